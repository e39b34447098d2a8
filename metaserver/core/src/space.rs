//! Free space of this reactor's shards: zones with bitmaps, and freed runs that cool down.
//!
//! A store is cut into zones; a zone belongs to one shard at a time and only that shard allocates in
//! it. A bit is set while its block is mapped, staged for a write, pinned by an operation or
//! cooling. Freed runs *cool*: they wait in a bounded queue before their bits are cleared, so that a
//! write into reused blocks seldom has to wait until the record that freed them is durable. It
//! still carries that record's position. Bitmaps are not in the log; they are rebuilt from the
//! extents after a start.

use std::collections::VecDeque;

use gannet_proto::limits::{BLOCK_BYTES, SHARDS};
use gannet_proto::{Block, ShardId, StoreId};

use crate::Lsn;
use crate::zone::Zone;

/// Freed runs that cool down at the same time.
const COOLING_MAX: usize = 1024;
/// Most zones of a store.
pub(crate) const ZONES_PER_STORE_MAX: u64 = 32768;
/// Zones that a small store is cut into, so that each shard can have some.
const ZONES_PER_STORE_LOW: u64 = 4 * SHARDS as u64;
/// Fewest blocks of a zone in a small store.
const ZONE_BLOCKS_MIN: u64 = 64;
/// Blocks of a zone in a store that is neither small nor huge: the longest request is one run.
const ZONE_BLOCKS_USUAL: u64 = 1024;
const _: () = assert!(
    ZONE_BLOCKS_USUAL * BLOCK_BYTES as u64 == gannet_proto::limits::REQUEST_BYTES_MAX as u64
);

/// Blocks of a zone in a store of `blocks`: a power of two.
pub(crate) fn zone_blocks(blocks: u64) -> u64 {
    let small = blocks.div_ceil(ZONES_PER_STORE_LOW).next_power_of_two();
    let huge = blocks.div_ceil(ZONES_PER_STORE_MAX).next_power_of_two();
    small.clamp(ZONE_BLOCKS_MIN, ZONE_BLOCKS_USUAL).max(huge)
}

/// Consecutive blocks of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    /// The store.
    pub store: StoreId,
    /// The first block.
    pub block: Block,
    /// Number of blocks.
    pub blocks: u32,
}

/// The zones of one shard in one store.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By number.
    zones: Vec<Zone>,
    cursor: usize,
    free: u64,
    /// A request for a further zone is under way.
    pub requested: bool,
    /// The last such request was refused, and nothing was freed since.
    pub refused: bool,
}

impl Pool {
    /// Whether less is free than a part of a zone.
    fn is_low(&self, zone_blocks: u64) -> bool {
        self.free < zone_blocks / 4
    }

    fn zone_of(&mut self, block: u64, zone_blocks: u64) -> Option<&mut Zone> {
        let number = u32::try_from(block / zone_blocks).ok()?;
        let index = self.zones.binary_search_by_key(&number, |zone| zone.number).ok()?;
        Some(&mut self.zones[index])
    }

    fn allocate(&mut self, wanted: u32) -> Option<(u64, u32, Lsn)> {
        let count = self.zones.len();
        for step in 0..count {
            let index = (self.cursor + step) % count;
            let zone = &mut self.zones[index];
            if zone.longest >= wanted {
                let (start, blocks) = zone.find(wanted);
                if blocks >= wanted {
                    return Some(self.take(index, start, blocks));
                }
            }
        }
        // No run is long enough: the longest of all zones.
        loop {
            let index = (0..count).max_by_key(|index| self.zones[*index].longest)?;
            let zone = &mut self.zones[index];
            if zone.longest == 0 {
                return None;
            }
            // What is found corrects the bound if it was too high.
            let (start, blocks) = zone.find(wanted);
            if blocks > 0 {
                return Some(self.take(index, start, blocks));
            }
        }
    }

    fn take(&mut self, index: usize, start: u32, blocks: u32) -> (u64, u32, Lsn) {
        let zone = &mut self.zones[index];
        zone.mark(start, blocks, true);
        zone.cursor = if start + blocks == zone.blocks { 0 } else { start + blocks };
        self.cursor = index;
        self.free -= u64::from(blocks);
        (zone.first + u64::from(start), blocks, zone.lsn)
    }
}

/// A freed run that cools down.
#[derive(Clone, Copy, Debug)]
struct Cooling {
    shard: ShardId,
    span: Span,
    lsn: Lsn,
}

/// The zones of all shards of this reactor, and the sizes of the stores.
#[derive(Debug)]
pub(crate) struct SpaceMap {
    /// By shard, then by store number.
    pools: Vec<Vec<Pool>>,
    /// Blocks of a zone, by store number; 0 of a store that is not known.
    zone_blocks: Vec<u64>,
    cooling: VecDeque<Cooling>,
    used: u64,
    /// A shard and store where a zone became wholly free.
    spare: Option<(ShardId, StoreId)>,
}

impl SpaceMap {
    /// No store, no zone.
    pub(crate) fn new() -> SpaceMap {
        SpaceMap {
            pools: (0..SHARDS).map(|_| Vec::new()).collect(),
            zone_blocks: Vec::new(),
            cooling: VecDeque::with_capacity(COOLING_MAX + 1),
            used: 0,
            spare: None,
        }
    }

    /// Blocks in use: mapped, staged or pinned.
    pub(crate) fn used(&self) -> u64 {
        let cooling: u64 = self.cooling.iter().map(|run| u64::from(run.span.blocks)).sum();
        self.used - cooling
    }

    /// Makes a store known.
    pub(crate) fn add_store(&mut self, store: StoreId, zone_blocks: u64) {
        let index = store.0 as usize;
        if self.zone_blocks.len() <= index {
            self.zone_blocks.resize(index + 1, 0);
            for pools in &mut self.pools {
                pools.resize_with(index + 1, Pool::default);
            }
        }
        self.zone_blocks[index] = zone_blocks;
    }

    /// The zones of a shard in a store that is known.
    pub(crate) fn pool(&mut self, shard: ShardId, store: StoreId) -> Option<&mut Pool> {
        self.pools.get_mut(usize::from(shard.0))?.get_mut(store.0 as usize)
    }

    /// Gives a zone to a shard. A zone that it has is left alone.
    pub(crate) fn add_zone(
        &mut self,
        shard: ShardId,
        store: StoreId,
        zone: u32,
        store_blocks: u64,
        lsn: Lsn,
    ) {
        let zone_blocks = self.zone_blocks.get(store.0 as usize).copied().unwrap_or(0);
        let first = u64::from(zone) * zone_blocks;
        if zone_blocks == 0 || first >= store_blocks {
            return;
        }
        let blocks = (store_blocks - first).min(zone_blocks) as u32;
        let Some(pool) = self.pool(shard, store) else { return };
        if let Err(index) = pool.zones.binary_search_by_key(&zone, |zone| zone.number) {
            pool.zones.insert(index, Zone::new(zone, first, blocks, lsn));
            pool.cursor = index;
            pool.free += u64::from(blocks);
            pool.refused = false;
        }
    }

    /// Whether a shard runs low in a store, and should ask for a zone ahead of need.
    pub(crate) fn wants_zone(&mut self, shard: ShardId, store: StoreId) -> bool {
        let zone_blocks = self.zone_blocks.get(store.0 as usize).copied().unwrap_or(0);
        let low = |space: &mut SpaceMap| {
            let pool = space.pool(shard, store);
            pool.is_some_and(|pool| pool.is_low(zone_blocks) && !pool.requested && !pool.refused)
        };
        low(self) && (!self.thaw() || low(self))
    }

    /// Takes up to `wanted` consecutive blocks, as many as there are in one run. The position is
    /// that of the records that freed them.
    pub(crate) fn allocate(
        &mut self,
        shard: ShardId,
        store: StoreId,
        wanted: u32,
    ) -> Option<(Span, Lsn)> {
        let mut found = self.pool(shard, store)?.allocate(wanted);
        if found.is_none() && self.thaw() {
            found = self.pool(shard, store)?.allocate(wanted);
        }
        let (block, blocks, lsn) = found?;
        self.used += u64::from(blocks);
        Some((Span { store, block: Block(block), blocks }, lsn))
    }

    /// Marks blocks in use that a map names, after a start. `false` if they do not lie in a zone of
    /// the shard or are in use already.
    pub(crate) fn claim(&mut self, shard: ShardId, span: Span) -> bool {
        let zone_blocks = self.zone_blocks.get(span.store.0 as usize).copied().unwrap_or(0);
        let Some(pool) = self.pool(shard, span.store) else { return false };
        let (mut block, end) = (span.block.0, span.block.0 + u64::from(span.blocks));
        let mut claimed = 0;
        while block < end && zone_blocks != 0 {
            let Some(zone) = pool.zone_of(block, zone_blocks) else { return false };
            let start = (block - zone.first) as u32;
            // A map that names blocks beyond a store's end is refused like any other.
            let blocks = (end - block).min(u64::from(zone.blocks.saturating_sub(start))) as u32;
            if blocks == 0 || zone.bit(start) || zone.seek(start, true) < start + blocks {
                return false;
            }
            zone.mark(start, blocks, true);
            pool.free -= u64::from(blocks);
            claimed += u64::from(blocks);
            block += u64::from(blocks);
        }
        self.used += claimed;
        block == end
    }

    /// Frees blocks that nothing refers to any more; `lsn` is the record that unmapped them.
    pub(crate) fn release(&mut self, shard: ShardId, span: Span, lsn: Lsn) {
        self.cooling.push_back(Cooling { shard, span, lsn });
        if self.cooling.len() > COOLING_MAX
            && let Some(run) = self.cooling.pop_front()
        {
            self.clear(run);
        }
    }

    /// Ends the cooling of all freed runs. `false` if there was none.
    pub(crate) fn thaw(&mut self) -> bool {
        let any = !self.cooling.is_empty();
        while let Some(run) = self.cooling.pop_front() {
            self.clear(run);
        }
        any
    }

    fn clear(&mut self, run: Cooling) {
        let zone_blocks = self.zone_blocks[run.span.store.0 as usize];
        let pools = &mut self.pools[usize::from(run.shard.0)];
        let Some(pool) = pools.get_mut(run.span.store.0 as usize) else { return };
        // An extent may have been joined across zones.
        let (mut block, end) = (run.span.block.0, run.span.block.0 + u64::from(run.span.blocks));
        let mut cleared = 0;
        while block < end {
            let Some(zone) = pool.zone_of(block, zone_blocks) else { break };
            let start = (block - zone.first) as u32;
            let blocks = (end - block).min(u64::from(zone.blocks - start)) as u32;
            zone.mark(start, blocks, false);
            zone.lsn = zone.lsn.max(run.lsn);
            if zone.free == zone.blocks {
                self.spare = Some((run.shard, run.span.store));
            }
            pool.free += u64::from(blocks);
            block += u64::from(blocks);
            cleared += u64::from(blocks);
        }
        pool.refused = false;
        debug_assert_eq!(block, end, "freed blocks lie in zones of their shard");
        self.used -= cleared;
    }

    /// Where a zone became wholly free since the last call.
    pub(crate) fn take_spare(&mut self) -> Option<(ShardId, StoreId)> {
        self.spare.take()
    }

    /// Takes wholly free zones of a shard away, but leaves it `keep` of them. Numbers go to `out`
    /// together with the position of the last record that freed a block there.
    pub(crate) fn surrender(
        &mut self,
        shard: ShardId,
        store: StoreId,
        keep: usize,
        out: &mut Vec<(u32, Lsn)>,
    ) {
        let Some(pool) = self.pool(shard, store) else { return };
        let mut kept = 0;
        let mut freed = 0;
        pool.zones.retain(|zone| {
            if zone.free < zone.blocks || kept < keep {
                kept += usize::from(zone.free == zone.blocks);
                return true;
            }
            freed += u64::from(zone.blocks);
            out.push((zone.number, zone.lsn));
            false
        });
        pool.free -= freed;
        pool.cursor = 0;
    }

    /// Whether a shard has more wholly free zones in a store than `keep`.
    pub(crate) fn has_spare(&mut self, shard: ShardId, store: StoreId, keep: usize) -> bool {
        let Some(pool) = self.pool(shard, store) else { return false };
        pool.zones.iter().filter(|zone| zone.free == zone.blocks).nth(keep).is_some()
    }

    /// The zones of all shards and what is free in them, for checks: shard, store, free blocks, zones.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (ShardId, StoreId, u64, &[Zone])> {
        self.pools.iter().enumerate().flat_map(|(shard, pools)| {
            pools.iter().enumerate().map(move |(store, pool)| {
                (ShardId(shard as u16), StoreId(store as u32), pool.free, &pool.zones[..])
            })
        })
    }

    /// Counts one free block of a shard too much.
    #[cfg(test)]
    pub(crate) fn miscount(&mut self, shard: ShardId, store: StoreId) {
        self.pools[usize::from(shard.0)][store.0 as usize].free += 1;
    }

    /// Blocks of a shard that are in use, cooling ones included.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> Vec<(ShardId, StoreId, Block)> {
        let mut blocks = Vec::new();
        for (shard, pools) in self.pools.iter().enumerate() {
            for (store, pool) in pools.iter().enumerate() {
                for zone in &pool.zones {
                    let used = (0..zone.blocks).filter(|index| zone.bit(*index));
                    blocks.extend(used.map(|index| {
                        let block = Block(zone.first + u64::from(index));
                        (ShardId(shard as u16), StoreId(store as u32), block)
                    }));
                }
            }
        }
        blocks
    }

    /// Freed runs that cool down, for checks.
    pub(crate) fn cooling(&self) -> impl Iterator<Item = (ShardId, Span)> {
        self.cooling.iter().map(|run| (run.shard, run.span))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const STORE: StoreId = StoreId(3);
    const SHARD: ShardId = ShardId(7);
    /// Two zones and a short one.
    const BLOCKS: u64 = 2 * 1024 + 100;

    fn whole() -> SpaceMap {
        let mut space = SpaceMap::new();
        space.add_store(STORE, 1024);
        for zone in 0..3 {
            space.add_zone(SHARD, STORE, zone, BLOCKS, Lsn(0));
        }
        space
    }

    proptest! {
        #[test]
        fn allocation_agrees_with_a_set_of_blocks(
            steps in prop::collection::vec((any::<bool>(), 1..300u32, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut space = whole();
            let mut used = BTreeSet::new();
            let mut spans: Vec<Span> = Vec::new();
            for (allocate, wanted, pick) in steps {
                if allocate {
                    let free = BLOCKS - used.len() as u64;
                    match space.allocate(SHARD, STORE, wanted) {
                        Some((span, _)) => {
                            prop_assert!(span.blocks >= 1 && span.blocks <= wanted);
                            for block in span.block.0..span.block.0 + u64::from(span.blocks) {
                                prop_assert!(block < BLOCKS && used.insert(block));
                            }
                            spans.push(span);
                        }
                        None => prop_assert_eq!(free, 0),
                    }
                } else if !spans.is_empty() {
                    let span = spans.swap_remove(pick.index(spans.len()));
                    for block in span.block.0..span.block.0 + u64::from(span.blocks) {
                        used.remove(&block);
                    }
                    space.release(SHARD, span, Lsn(1));
                }
                prop_assert_eq!(space.used(), used.len() as u64);
            }
            space.thaw();
            let bits: BTreeSet<u64> = space.in_use().iter().map(|(_, _, block)| block.0).collect();
            prop_assert_eq!(bits, used.clone());
            prop_assert_eq!(space.pool(SHARD, STORE).unwrap().free, BLOCKS - used.len() as u64);
        }
    }

    #[test]
    fn a_long_request_gets_one_run_and_all_space_can_be_had() {
        let mut space = whole();
        let (span, _) = space.allocate(SHARD, STORE, 256).unwrap();
        assert_eq!(span.blocks, 256);
        let mut total = 256;
        while let Some((span, _)) = space.allocate(SHARD, STORE, 256) {
            total += u64::from(span.blocks);
        }
        assert_eq!(total, BLOCKS);
        assert_eq!(space.used(), BLOCKS);
    }

    #[test]
    fn reused_blocks_carry_the_position_that_freed_them() {
        let mut space = whole();
        while space.allocate(SHARD, STORE, 1024).is_some() {}
        let span = Span { store: STORE, block: Block(10), blocks: 5 };
        space.release(SHARD, span, Lsn(42));
        assert_eq!(space.allocate(SHARD, STORE, 5), Some((span, Lsn(42))));
    }

    #[test]
    fn wholly_free_zones_can_be_surrendered() {
        let mut space = whole();
        let (span, _) = space.allocate(SHARD, STORE, 1).unwrap();
        assert!(space.has_spare(SHARD, STORE, 1));
        let mut zones = Vec::new();
        space.surrender(SHARD, STORE, 1, &mut zones);
        assert_eq!(zones.len(), 1);
        assert!(!space.has_spare(SHARD, STORE, 1));
        space.release(SHARD, span, Lsn(9));
        space.thaw();
        zones.clear();
        space.surrender(SHARD, STORE, 0, &mut zones);
        assert_eq!(zones.iter().filter(|(_, lsn)| *lsn == Lsn(9)).count(), 1);
        assert_eq!(zones.len(), 2);
        assert_eq!(space.allocate(SHARD, STORE, 1), None);
    }

    #[test]
    fn what_a_map_names_is_claimed_once() {
        let mut space = whole();
        let across = Span { store: STORE, block: Block(1020), blocks: 8 };
        assert!(space.claim(SHARD, across));
        assert!(!space.claim(SHARD, across));
        assert!(!space.claim(ShardId(8), across));
        assert!(!space.claim(SHARD, Span { block: Block(BLOCKS), ..across }));
        assert!(!space.claim(SHARD, Span { block: Block(BLOCKS + 1), ..across }));
        assert_eq!(space.used(), 8);
        space.release(SHARD, across, Lsn(1));
        space.thaw();
        assert_eq!(space.used(), 0);
    }

    #[test]
    fn zones_grow_with_the_store() {
        assert_eq!(zone_blocks(1), 64);
        assert_eq!(zone_blocks(16_384), 64);
        assert_eq!(zone_blocks(131_072), 512);
        assert_eq!(zone_blocks(262_144), 1024);
        assert_eq!(zone_blocks(1 << 25), 1024);
        assert_eq!(zone_blocks(1 << 28), 8192);
        assert_eq!(zone_blocks((1 << 28) + 1), 16384);
    }
}
