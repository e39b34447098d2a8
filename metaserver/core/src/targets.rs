//! Data servers and stores as this reactor knows them, and the window of grants at each.
//!
//! Numbers of data servers and stores are given by reactor 0 and durable in its log; the other
//! reactors learn them from its messages and from the data servers' own word. A data server is *up*
//! at a reactor while its channel to that reactor is open and drained of older terms; only then its
//! stores are allocated from and granted on.

use std::collections::VecDeque;

use gannet_proto::control::StoreInfo;
use gannet_proto::limits::GRANTS_MAX;
use gannet_proto::{GrantNumber, StoreId, TargetId};

use crate::operations::OperationId;

/// Most data servers and most stores that get a number.
pub(crate) const TARGETS_MAX: u32 = 4096;
/// Most blocks of a store.
pub(crate) const STORE_BLOCKS_MAX: u64 = 1 << 44;
/// Most stores that get a number.
pub(crate) const STORES_MAX: u32 = 16384;

/// A store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Store {
    pub uuid: [u8; 16],
    pub target: TargetId,
    pub generation: u32,
    pub blocks: u64,
    /// It has a number.
    pub known: bool,
    /// Its data server is up.
    pub up: bool,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    /// 0: none.
    number: u64,
    operation: OperationId,
}

/// A data server.
#[derive(Debug)]
pub(crate) struct Target {
    pub uuid: [u8; 16],
    /// It has a number.
    pub known: bool,
    pub up: bool,
    next: u64,
    /// No lower number is outstanding.
    oldest: u64,
    outstanding: u32,
    /// By number modulo [`GRANTS_MAX`]; empty until it is up for the first time.
    ring: Vec<Outstanding>,
    /// Operations with grants that went with a channel, one entry per grant.
    pub lost: Vec<OperationId>,
    /// Its stores in the order of its last hello; empty before that.
    pub stores: Vec<StoreId>,
    /// Operations that wait for room, first come first served.
    pub waiting: VecDeque<OperationId>,
}

impl Target {
    fn new() -> Target {
        Target {
            uuid: [0; 16],
            known: false,
            up: false,
            next: 1,
            oldest: 1,
            outstanding: 0,
            ring: Vec::new(),
            lost: Vec::new(),
            stores: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Grants outstanding.
    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether `needed` further grants fit: the bound on what is outstanding, and the window of
    /// numbers that one stalled grant holds open.
    pub(crate) fn has_room(&self, needed: u32, grants_max: u32) -> bool {
        self.up
            && self.outstanding + needed <= grants_max
            && self.next + u64::from(needed) - self.oldest <= GRANTS_MAX as u64
    }

    /// Takes the next number for an operation.
    #[inline(always)]
    pub(crate) fn grant(&mut self, operation: OperationId) -> GrantNumber {
        let number = self.next;
        let place = &mut self.ring[number as usize % GRANTS_MAX];
        debug_assert_eq!(place.number, 0);
        *place = Outstanding { number, operation };
        self.next += 1;
        self.outstanding += 1;
        GrantNumber(number)
    }

    /// Ends a grant. `None` if the number is not outstanding.
    pub(crate) fn retire(&mut self, number: GrantNumber) -> Option<OperationId> {
        if number.0 < self.oldest || number.0 >= self.next {
            return None;
        }
        let place = &mut self.ring[number.0 as usize % GRANTS_MAX];
        if place.number != number.0 {
            return None;
        }
        place.number = 0;
        let operation = place.operation;
        self.outstanding -= 1;
        while self.oldest < self.next && self.ring[self.oldest as usize % GRANTS_MAX].number == 0 {
            self.oldest += 1;
        }
        Some(operation)
    }

    /// The part of `first ..= last` that can hold outstanding numbers.
    pub(crate) fn window(&self, first: GrantNumber, last: GrantNumber) -> (u64, u64) {
        (first.0.max(self.oldest), last.0.saturating_add(1).min(self.next))
    }

    /// The outstanding grants of an operation.
    pub(crate) fn grants_of(&self, id: OperationId) -> impl Iterator<Item = GrantNumber> {
        (self.oldest..self.next).filter_map(move |number| {
            let place = &self.ring[number as usize % GRANTS_MAX];
            (place.number == number && place.operation == id).then_some(GrantNumber(number))
        })
    }

    /// A channel begins: numbers count from 1.
    fn begin(&mut self) {
        self.up = true;
        self.next = 1;
        self.oldest = 1;
        self.outstanding = 0;
        let none = OperationId { index: 0, generation: 0 };
        self.ring.clear();
        self.ring.resize(GRANTS_MAX, Outstanding { number: 0, operation: none });
    }
}

/// All data servers and stores.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    /// By number; number 0 is nobody's.
    targets: Vec<Target>,
    /// By number; number 0 is nobody's.
    stores: Vec<Store>,
}

impl Targets {
    /// A data server that has a number.
    #[inline]
    pub(crate) fn find(&mut self, id: TargetId) -> Option<&mut Target> {
        self.targets.get_mut(id.0 as usize).filter(|target| target.known)
    }

    /// A store that has a number.
    #[inline]
    pub(crate) fn store(&self, id: StoreId) -> Option<&Store> {
        self.stores.get(id.0 as usize).filter(|store| store.known)
    }

    /// All data servers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TargetId, &Target)> {
        let all = self.targets.iter().enumerate().filter(|(_, target)| target.known);
        all.map(|(index, target)| (TargetId(index as u32), target))
    }

    /// All stores.
    pub(crate) fn stores(&self) -> impl Iterator<Item = (StoreId, &Store)> {
        let all = self.stores.iter().enumerate().filter(|(_, store)| store.known);
        all.map(|(index, store)| (StoreId(index as u32), store))
    }

    /// The next free number of a data server and of a store.
    pub(crate) fn next_numbers(&self) -> (TargetId, StoreId) {
        (TargetId(self.targets.len().max(1) as u32), StoreId(self.stores.len().max(1) as u32))
    }

    /// Makes a data server known, or its name.
    pub(crate) fn add(&mut self, id: TargetId, uuid: Option<[u8; 16]>) -> bool {
        if id.0 == 0 || id.0 > TARGETS_MAX {
            return false;
        }
        let index = id.0 as usize;
        if self.targets.len() <= index {
            self.targets.resize_with(index + 1, Target::new);
        }
        self.targets[index].known = true;
        if let Some(uuid) = uuid {
            self.targets[index].uuid = uuid;
        }
        true
    }

    /// Makes a store known, or what became of it. Its number of blocks stays what it was at first,
    /// since zones are counted by it.
    pub(crate) fn set_store(&mut self, id: StoreId, target: TargetId, info: &StoreInfo) -> bool {
        if id.0 == 0 || id.0 > STORES_MAX || info.blocks.get() > STORE_BLOCKS_MAX {
            return false;
        }
        let index = id.0 as usize;
        if self.stores.len() <= index {
            self.stores.resize(index + 1, Store::default());
        }
        let store = &mut self.stores[index];
        if info.uuid != [0; 16] {
            store.uuid = info.uuid;
        }
        if !store.known {
            store.blocks = info.blocks.get();
        }
        store.known = true;
        store.target = target;
        store.generation = store.generation.max(info.generation.get());
        true
    }

    /// The channel of a data server is open and drained.
    pub(crate) fn up(&mut self, id: TargetId, stores: impl Iterator<Item = StoreId>) {
        if let Some(target) = self.find(id) {
            target.begin();
        }
        for store in stores {
            if let Some(store) = self.stores.get_mut(store.0 as usize) {
                store.up = store.known;
            }
        }
    }

    /// The channel of a data server is gone: its outstanding grants are lost, and noted as such.
    /// Returns how many.
    pub(crate) fn down(&mut self, id: TargetId) -> usize {
        for store in self.stores.iter_mut().filter(|store| store.target == id) {
            store.up = false;
        }
        let Some(target) = self.find(id) else { return 0 };
        let before = target.lost.len();
        target.up = false;
        for number in target.oldest..target.next {
            let place = &mut target.ring[number as usize % GRANTS_MAX];
            if place.number == number {
                place.number = 0;
                target.lost.push(place.operation);
            }
        }
        target.oldest = target.next;
        target.outstanding = 0;
        target.lost.len() - before
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(index: u32) -> OperationId {
        OperationId { index, generation: 1 }
    }

    #[test]
    fn one_stalled_grant_holds_the_window_open() {
        let mut targets = Targets::default();
        assert!(targets.add(TargetId(1), Some([1; 16])));
        targets.up(TargetId(1), std::iter::empty());
        let target = targets.find(TargetId(1)).unwrap();
        assert_eq!(target.grant(id(1)), GrantNumber(1));
        let mut granted = 1;
        while target.has_room(1, 64) {
            let number = target.grant(id(2));
            granted += 1;
            assert_eq!(target.retire(number), Some(id(2)));
            assert_eq!(target.retire(number), None);
        }
        assert_eq!(granted, GRANTS_MAX);
        assert_eq!(target.retire(GrantNumber(1)), Some(id(1)));
        assert!(target.has_room(64, 64) && !target.has_room(65, 64));
        assert_eq!(target.window(GrantNumber(0), GrantNumber(u64::MAX)), (4097, 4097));
    }

    #[test]
    fn grants_go_with_the_channel() {
        let mut targets = Targets::default();
        assert!(targets.add(TargetId(1), Some([1; 16])));
        let info = StoreInfo::default();
        assert!(targets.set_store(StoreId(2), TargetId(1), &info));
        targets.up(TargetId(1), [StoreId(2)].into_iter());
        assert!(targets.store(StoreId(2)).unwrap().up);
        let target = targets.find(TargetId(1)).unwrap();
        let first = target.grant(id(1));
        target.grant(id(2));
        target.retire(first);
        assert_eq!(targets.down(TargetId(1)), 1);
        assert!(!targets.store(StoreId(2)).unwrap().up);
        let target = targets.find(TargetId(1)).unwrap();
        assert_eq!(target.lost, [id(2)]);
        assert_eq!(target.retire(GrantNumber(2)), None);
        targets.up(TargetId(1), std::iter::empty());
        assert_eq!(targets.find(TargetId(1)).unwrap().grant(id(3)), GrantNumber(1));
    }
}
