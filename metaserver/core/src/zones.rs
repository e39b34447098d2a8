//! Who owns which zone: the table that reactor 0 keeps for all shards.
//!
//! A zone is assigned to a shard by a record and comes back by a record. When a store has no free
//! zone left, the reactors are asked once for those of their zones that are wholly free.

use std::collections::VecDeque;

use gannet_proto::{ShardId, StoreId};

/// Owner of a zone that nobody owns.
const FREE: u16 = u16::MAX;

/// The zones of one store.
#[derive(Debug, Default)]
pub(crate) struct StoreZones {
    owners: Vec<u16>,
    free: u32,
    cursor: usize,
    /// Reactors that have not answered the recall under way.
    pub recalled: u16,
    /// Shards that wait for a zone.
    pub pending: VecDeque<ShardId>,
}

/// The zones of all stores.
#[derive(Debug, Default)]
pub(crate) struct ZoneTable {
    stores: Vec<StoreZones>,
}

impl ZoneTable {
    /// The zones of a store; the table grows up to it.
    pub(crate) fn store(&mut self, store: StoreId) -> &mut StoreZones {
        let index = store.0 as usize;
        if self.stores.len() <= index {
            self.stores.resize_with(index + 1, StoreZones::default);
        }
        &mut self.stores[index]
    }

    /// A store has at least `zones`.
    pub(crate) fn resize(&mut self, store: StoreId, zones: u64) {
        let store = self.store(store);
        let added = (zones as usize).saturating_sub(store.owners.len());
        store.owners.resize(store.owners.len() + added, FREE);
        store.free += added as u32;
    }

    /// A free zone of a store.
    pub(crate) fn find_free(&mut self, store: StoreId) -> Option<u32> {
        let store = self.store(store);
        if store.free == 0 {
            return None;
        }
        let count = store.owners.len();
        let place = (0..count)
            .map(|step| (store.cursor + step) % count)
            .find(|place| store.owners[*place] == FREE)?;
        store.cursor = (place + 1) % count;
        Some(place as u32)
    }

    /// Gives a zone to a shard. `false` if it does not exist or has an owner.
    pub(crate) fn assign(&mut self, store: StoreId, zone: u32, shard: ShardId) -> bool {
        let store = self.store(store);
        match store.owners.get_mut(zone as usize) {
            Some(owner) if *owner == FREE => {
                *owner = shard.0;
                store.free -= 1;
                true
            }
            _ => false,
        }
    }

    /// Takes a zone back. `false` if nobody owns it.
    pub(crate) fn give_back(&mut self, store: StoreId, zone: u32) -> bool {
        let store = self.store(store);
        match store.owners.get_mut(zone as usize) {
            Some(owner) if *owner != FREE => {
                *owner = FREE;
                store.free += 1;
                true
            }
            _ => false,
        }
    }

    /// All zones with an owner.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = (StoreId, u32, ShardId)> {
        self.stores.iter().enumerate().flat_map(|(store, zones)| {
            zones
                .owners
                .iter()
                .enumerate()
                .filter(|(_, owner)| **owner != FREE)
                .map(move |(zone, owner)| (StoreId(store as u32), zone as u32, ShardId(*owner)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_has_one_owner() {
        let store = StoreId(1);
        let mut table = ZoneTable::default();
        table.resize(store, 2);
        assert_eq!(table.find_free(store), Some(0));
        assert!(table.assign(store, 0, ShardId(5)));
        assert!(!table.assign(store, 0, ShardId(6)));
        assert!(!table.assign(store, 2, ShardId(6)));
        assert_eq!(table.find_free(store), Some(1));
        assert!(table.assign(store, 1, ShardId(6)));
        assert_eq!(table.find_free(store), None);
        assert!(table.give_back(store, 0));
        assert!(!table.give_back(store, 0));
        assert_eq!(table.find_free(store), Some(0));
        table.resize(store, 5);
        assert_eq!(table.assigned().collect::<Vec<_>>(), [(store, 1, ShardId(6))]);
    }
}
