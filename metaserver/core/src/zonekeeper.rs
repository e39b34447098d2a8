//! Zones on their way between shards and reactor 0, which keeps the table.
//!
//! A shard asks for a zone when it runs low, and gives wholly free ones back beyond one per store.
//! When a store has none left, reactor 0 asks all reactors for wholly free ones, once per shortage,
//! before it refuses.

use gannet_proto::limits::SHARDS;
use gannet_proto::{ShardId, StoreId};

use crate::operations::OperationId;
use crate::peer::{Message, PeerMessage};
use crate::record::Change;
use crate::space::zone_blocks;
use crate::{Core, Lsn, Now, Sink};

/// Most requests of shards that wait while a store's free zones are recalled.
const PENDING_MAX: usize = SHARDS;

impl Core {
    /// Asks for a zone, unless a request is under way.
    pub(crate) fn request_zone(&mut self, shard: ShardId, store: StoreId, sink: &mut impl Sink) {
        let Some(pool) = self.space.pool(shard, store) else { return };
        if !std::mem::replace(&mut pool.requested, true) {
            self.send(0, PeerMessage(Message::ZoneRequest { shard, store }), sink);
        }
    }

    /// Asks for zones where an operation's allocation left little.
    pub(crate) fn request_zones_ahead(
        &mut self,
        id: OperationId,
        shard: ShardId,
        sink: &mut impl Sink,
    ) {
        let Some(operation) = self.operations.find(id) else { return };
        let Some(first) = operation.staged.first() else { return };
        let mut store = first.span.store;
        let mut index = 0;
        loop {
            if self.space.wants_zone(shard, store) {
                self.request_zone(shard, store, sink);
            }
            let Some(operation) = self.operations.find(id) else { return };
            let rest = &operation.staged[index..];
            let Some(step) = rest.iter().position(|run| run.span.store != store) else { return };
            index += step;
            store = operation.staged[index].span.store;
        }
    }

    /// Reactor 0: a shard would like a zone.
    pub(crate) fn zone_requested(
        &mut self,
        now: Now,
        shard: ShardId,
        store: StoreId,
        sink: &mut impl Sink,
    ) {
        if self.assign_zone(now, shard, store, sink) {
            return;
        }
        let zones = self.zones.store(store);
        if zones.pending.len() < PENDING_MAX && !zones.pending.contains(&shard) {
            zones.pending.push_back(shard);
        }
        if zones.recalled == 0 {
            zones.recalled = self.config.reactors;
            for reactor in 0..self.config.reactors {
                self.send(reactor, PeerMessage(Message::ZoneRecall { store }), sink);
            }
        }
    }

    fn assign_zone(
        &mut self,
        now: Now,
        shard: ShardId,
        store: StoreId,
        sink: &mut impl Sink,
    ) -> bool {
        let Some(zone) = self.zones.find_free(store) else { return false };
        let origin = self.origin_of_core(now, None);
        self.commit(&origin, &Change::ZoneAssigned { store, zone, shard }, sink);
        let message = Message::ZoneGranted { shard, store, zone };
        self.send(self.reactor_of(shard), PeerMessage(message), sink);
        true
    }

    /// A shard got a zone: who waited for it goes on.
    pub(crate) fn zone_granted(&mut self, shard: ShardId, store: StoreId, zone: u32) {
        let blocks = self.targets.store(store).map_or(0, |store| store.blocks);
        // On reactor 0 the assignment may not be durable yet; elsewhere it is.
        let lsn = if self.config.reactor == 0 { self.last_lsn } else { Lsn(0) };
        self.space.add_zone(shard, store, zone, blocks, lsn);
        self.zone_answered(shard, store, false);
    }

    /// A shard got none.
    pub(crate) fn zone_refused(&mut self, shard: ShardId, store: StoreId) {
        self.zone_answered(shard, store, true);
    }

    fn zone_answered(&mut self, shard: ShardId, store: StoreId, refused: bool) {
        if let Some(pool) = self.space.pool(shard, store) {
            pool.requested = false;
            pool.refused = refused;
        }
        for _ in 0..self.waiting.zones.len() {
            let Some(waiter) = self.waiting.zones.pop_front() else { return };
            if (waiter.0, waiter.1) != (shard, store) {
                self.waiting.zones.push_back(waiter);
                continue;
            }
            if refused {
                self.refuse_store(waiter.2, store);
            }
            self.wake(waiter.2);
        }
    }

    /// Whether an operation of a shard waits for a zone of a store. Such a shard gives none back:
    /// what it has free is what the operation tried with, and to get it again would go on forever.
    fn waits_for_zone(&self, shard: ShardId, store: StoreId) -> bool {
        self.waiting.zones.iter().any(|(of, at, _)| (*of, *at) == (shard, store))
    }

    /// Notes that a store of a write's set has no space for it.
    fn refuse_store(&mut self, id: OperationId, store: StoreId) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        let file = self.nodes.get(&operation.inode).and_then(|node| node.file());
        let index = file.and_then(|file| file.set.iter().position(|other| other == store));
        // A store outside the set can only be one whose old block is merged: nothing replaces it.
        operation.refused |= index.map_or(u16::MAX, |index| 1 << index);
    }

    /// All wholly free zones of a store are wanted back.
    pub(crate) fn zones_recalled(&mut self, store: StoreId, sink: &mut impl Sink) {
        self.space.thaw();
        let mut zones = Vec::new();
        // Only of stores that are up here: of others, nobody knows what is still under way.
        if self.targets.store(store).is_some_and(|store| store.up) {
            for shard in (0..SHARDS as u16).map(ShardId) {
                if self.is_ours(shard) && !self.waits_for_zone(shard, store) {
                    self.space.surrender(shard, store, 0, &mut zones);
                }
            }
        }
        let zones = zones.into_iter().map(|(zone, _)| zone).collect();
        let message = Message::ZonesReturned { store, zones, recalled: true };
        self.send(0, PeerMessage(message), sink);
    }

    /// Reactor 0: zones come back.
    pub(crate) fn zones_returned(
        &mut self,
        now: Now,
        (store, zones): (StoreId, &[u32]),
        recalled: bool,
        sink: &mut impl Sink,
    ) {
        for zone in zones {
            let origin = self.origin_of_core(now, None);
            self.commit(&origin, &Change::ZoneReturned { store, zone: *zone }, sink);
        }
        let table = self.zones.store(store);
        table.recalled -= u16::from(recalled);
        let last = table.recalled == 0;
        while let Some(shard) = self.zones.store(store).pending.pop_front() {
            if self.assign_zone(now, shard, store, sink) {
                continue;
            }
            if !last {
                self.zones.store(store).pending.push_front(shard);
                return;
            }
            let message = Message::ZoneRefused { shard, store };
            self.send(self.reactor_of(shard), PeerMessage(message), sink);
        }
    }

    /// Gives back what a shard has too much of in a store.
    pub(crate) fn return_spare_zones(
        &mut self,
        shard: ShardId,
        store: StoreId,
        sink: &mut impl Sink,
    ) {
        let up = self.targets.store(store).is_some_and(|store| store.up);
        if !up || self.waits_for_zone(shard, store) || !self.space.has_spare(shard, store, 1) {
            return;
        }
        let mut zones = Vec::new();
        self.space.surrender(shard, store, 1, &mut zones);
        let zones = zones.into_iter().map(|(zone, _)| zone).collect();
        let message = Message::ZonesReturned { store, zones, recalled: false };
        self.send(0, PeerMessage(message), sink);
    }

    /// Makes a store known to the allocator. Zones are counted by the size that it had at first.
    pub(crate) fn add_store(
        &mut self,
        store: StoreId,
        target: gannet_proto::TargetId,
        info: &gannet_proto::control::StoreInfo,
    ) -> bool {
        let added = self.targets.set_store(store, target, info);
        if let Some(known) = self.targets.store(store) {
            self.space.add_store(store, zone_blocks(known.blocks));
        }
        added
    }
}
