//! Numbers of data servers and stores, which reactor 0 gives out and the others learn.

use gannet_proto::control::StoreInfo;
use gannet_proto::{ShardId, StoreId, TargetId};
use zerocopy::little_endian::{U32, U64};

use crate::peer::{Message, PeerMessage};
use crate::record::Change;
use crate::space::Span;
use crate::targets::{STORE_BLOCKS_MAX, STORES_MAX, Store, TARGETS_MAX};
use crate::{Core, Enrollment, Lsn, Now, Sink};

/// A store in the form of a hello.
fn info_of(store: &Store) -> StoreInfo {
    StoreInfo {
        uuid: store.uuid,
        generation: U32::new(store.generation),
        block_bytes: U32::new(gannet_proto::limits::BLOCK_BYTES),
        blocks: U64::new(store.blocks),
    }
}

impl Core {
    /// Reactor 0: gives numbers to a data server and its stores, tells the other reactors, and
    /// answers by [`Sink::enrolled`]. Beyond the bounds on numbers there is no answer.
    pub fn enroll(&mut self, now: Now, uuid: [u8; 16], stores: &[StoreInfo], sink: &mut impl Sink) {
        let known = self.targets.iter().find(|(_, target)| target.uuid == uuid);
        let known = known.map(|(id, _)| id);
        let (next_target, next_store) = self.targets.next_numbers();
        if known.is_none() && next_target.0 > TARGETS_MAX
            || next_store.0 as usize + stores.len() > STORES_MAX as usize
            || stores.iter().any(|info| info.blocks.get() > STORE_BLOCKS_MAX)
        {
            self.counters.enrollments_refused += 1;
            return;
        }
        let target = known.unwrap_or(next_target);
        if known.is_none() {
            let origin = self.origin_of_core(now, None);
            self.commit(&origin, &Change::TargetAdded { target, uuid }, sink);
            self.tell_peers(&Message::TargetKnown { target, uuid }, sink);
        }
        for info in stores {
            self.enroll_store(now, target, info, sink);
        }
        if let Some(enrollment) = self.enrollment_of(target, uuid, stores) {
            let stores = enrollment.stores.clone();
            if let Some(known) = self.targets.find(target) {
                known.stores.clone_from(&stores);
            }
            self.tell_peers(&Message::Enrolled { target, stores }, sink);
            sink.enrolled(self.last_lsn, enrollment);
        }
        self.settle(now, sink);
    }

    fn enroll_store(&mut self, now: Now, target: TargetId, info: &StoreInfo, sink: &mut impl Sink) {
        let known = self.targets.stores().find(|(_, store)| store.uuid == info.uuid);
        let known = known.map(|(id, store)| (id, *store));
        let (generation, blocks) = (info.generation.get(), info.blocks.get());
        let (store, change) = match known {
            Some((_, known)) if known.target == target && known.generation >= generation => return,
            Some((store, _)) => (store, Change::StoreChanged { store, target, generation, blocks }),
            None => {
                let (_, store) = self.targets.next_numbers();
                let uuid = info.uuid;
                (store, Change::StoreAdded { store, target, uuid, generation, blocks })
            }
        };
        let origin = self.origin_of_core(now, None);
        self.commit(&origin, &change, sink);
        self.tell_peers(&Message::StoreKnown { store, target, info: *info }, sink);
    }

    fn tell_peers(&mut self, message: &Message, sink: &mut impl Sink) {
        let own = self.config.reactor;
        for reactor in (0..self.config.reactors).filter(|other| *other != own) {
            self.send(reactor, PeerMessage(message.clone()), sink);
        }
    }

    fn enrollment_of(
        &self,
        target: TargetId,
        uuid: [u8; 16],
        stores: &[StoreInfo],
    ) -> Option<Enrollment> {
        let number = |info: &StoreInfo| {
            self.targets.stores().find(|(_, store)| store.uuid == info.uuid).map(|(id, _)| id)
        };
        let stores: Option<Vec<StoreId>> = stores.iter().map(number).collect();
        Some(Enrollment { uuid, target, stores: stores? })
    }

    /// The numbers of a data server and of its stores, on any reactor, as it enrolled last with
    /// this run of the metadata server. `None` before that, and if it enrolled with other stores or
    /// in another order: then its word is newer than what this reactor was told, or older.
    #[must_use]
    pub fn enrollment(&self, uuid: &[u8; 16], stores: &[StoreInfo]) -> Option<Enrollment> {
        let (target, known) = self.targets.iter().find(|(_, target)| target.uuid == *uuid)?;
        let is_same = |(store, info): (&StoreId, &StoreInfo)| {
            self.targets.store(*store).is_some_and(|store| store.uuid == info.uuid)
        };
        let all_same = !known.stores.is_empty()
            && known.stores.len() == stores.len()
            && known.stores.iter().zip(stores).all(is_same);
        all_same.then(|| Enrollment { uuid: *uuid, target, stores: known.stores.clone() })
    }

    /// Reactor 0 after its start: tells the others what they need to serve.
    pub(crate) fn send_directory(&mut self, sink: &mut impl Sink) {
        let targets: Vec<_> = self.targets.iter().map(|(id, target)| (id, target.uuid)).collect();
        let stores: Vec<_> =
            self.targets.stores().map(|(id, store)| (id, store.target, info_of(store))).collect();
        let own = self.config.reactor;
        for reactor in (0..self.config.reactors).filter(|other| *other != own) {
            let zones =
                self.zones.assigned().filter(|(_, _, shard)| self.reactor_of(*shard) == reactor);
            let zones = zones.collect();
            let (targets, stores) = (targets.clone(), stores.clone());
            let message = Message::Directory { targets, stores, zones };
            self.send(reactor, PeerMessage(message), sink);
        }
    }

    /// Another reactor than 0 learns what it needs to serve.
    pub(crate) fn learn_directory(
        &mut self,
        targets: &[(TargetId, [u8; 16])],
        stores: &[(StoreId, TargetId, StoreInfo)],
        zones: &[(StoreId, u32, ShardId)],
    ) {
        for (target, uuid) in targets {
            self.targets.add(*target, Some(*uuid));
        }
        for (store, target, info) in stores {
            self.add_store(*store, *target, info);
        }
        if self.replaying {
            self.told_zones = Some(zones.to_vec());
        } else if !self.recovery.placed {
            self.place_extents(zones);
        }
    }

    /// Rebuilds free space: the zones of this reactor's shards, less what their files map. If
    /// files map blocks that are not their own, the first such conflict is kept.
    pub(crate) fn place_extents(&mut self, zones: &[(StoreId, u32, ShardId)]) {
        self.recovery.placed = true;
        for (store, zone, shard) in zones {
            if self.is_ours(*shard) {
                let blocks = self.targets.store(*store).map_or(0, |store| store.blocks);
                self.space.add_zone(*shard, *store, *zone, blocks, Lsn(0));
            }
        }
        let mut first = None;
        for node in self.nodes.values() {
            let (Some(file), Some(shard)) = (node.file(), node.inode.shard()) else { continue };
            for extent in file.extents.iter() {
                let span = Span { store: extent.store, block: extent.block, blocks: extent.blocks };
                if !self.space.claim(shard, span) {
                    self.counters.extents_unplaced += 1;
                    first.get_or_insert((node.inode, extent));
                }
            }
        }
        if let Some((inode, extent)) = first {
            self.block_conflict = Some(Box::new(self.describe_conflict(inode, &extent)));
        }
    }
}
