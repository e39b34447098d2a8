//! Where a write goes: the stores of a file, and the fresh blocks of a write.

use gannet_proto::limits::{BLOCK_BYTES, TARGETS_PER_FILE_MAX};
use gannet_proto::{Inode, ShardId, Status, StoreId};

use crate::extents::Extent;
use crate::namespace::StoreSet;
use crate::operations::{OperationId, Run};
use crate::record::{Change, Reply};
use crate::reply::Context;
use crate::{Core, Now, Sink};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Why blocks cannot be staged now.
pub(crate) enum Obstacle {
    /// They cannot be at all.
    Status(Status),
    /// A data server is absent.
    Absent,
    /// The shard has no space left in its zones of the store.
    NoZone(StoreId),
}

/// The old blocks that a write merges.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edges {
    /// Under the first block.
    pub head: Option<Extent>,
    /// Under the last block.
    pub tail: Option<Extent>,
}

/// Where the bytes of a write go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub offset: u64,
    pub end: u64,
}

impl Place {
    pub(crate) fn first(self) -> u64 {
        self.offset / BLOCK
    }

    pub(crate) fn last(self) -> u64 {
        (self.end - 1) / BLOCK
    }
}

impl Core {
    /// Chooses the stores of a file that has none yet. `false`: no data server is up.
    pub(crate) fn choose_layout(
        &mut self,
        now: Now,
        context: &Context,
        inode: Inode,
        sink: &mut impl Sink,
    ) -> bool {
        let file = self.nodes.get(&inode).and_then(|node| node.file());
        if !file.is_some_and(|file| file.set.is_empty()) {
            return true;
        }
        let set = self.new_set(inode);
        if set.is_empty() {
            return false;
        }
        let origin = self.origin(now, context, Reply::None);
        self.commit(&origin, &Change::LayoutSet { inode, set: set.list() }, sink);
        true
    }

    /// Stores for a new file, from those that are up: successive inodes begin at successive stores.
    pub(crate) fn new_set(&self, inode: Inode) -> StoreSet {
        let up = || self.targets.stores().filter(|(_, store)| store.up).map(|(id, _)| id);
        let count = up().count();
        if count == 0 {
            return StoreSet::default();
        }
        let start = (inode.number() % count as u64) as usize;
        let width = usize::from(self.config.stripe_width).min(TARGETS_PER_FILE_MAX);
        StoreSet::new(up().chain(up()).skip(start).take(width.min(count)))
    }

    /// The old blocks that a write merges.
    pub(crate) fn edges(&self, inode: Inode, place: Place) -> Result<Edges, Obstacle> {
        let Some(file) = self.nodes.get(&inode).and_then(|node| node.file()) else {
            return Err(Obstacle::Status(Status::STALE_HANDLE));
        };
        let mut edges = Edges::default();
        if !place.offset.is_multiple_of(BLOCK) {
            edges.head = file.extents.covering(place.first());
        }
        let tail_bytes = (place.end % BLOCK) as u32;
        if tail_bytes != 0 {
            let old = file.extents.covering(place.last());
            edges.tail = old.filter(|extent| extent.valid_in(place.last()) > tail_bytes);
        }
        for extent in [edges.head, edges.tail].into_iter().flatten() {
            let store = self.targets.store(extent.store).ok_or(Obstacle::Absent)?;
            if store.generation > extent.generation {
                return Err(Obstacle::Status(Status::IO));
            }
            if store.generation < extent.generation {
                return Err(Obstacle::Absent);
            }
        }
        Ok(edges)
    }

    /// Takes blocks for a write. It may get shorter if free space is in many pieces.
    pub(crate) fn stage(
        &mut self,
        id: OperationId,
        shard: ShardId,
        set: &StoreSet,
        place: Place,
        edges: &Edges,
    ) -> Result<Place, Obstacle> {
        let Some(operation) = self.operations.find(id) else {
            return Err(Obstacle::Status(Status::STALE_HANDLE));
        };
        let refused = operation.refused;
        let (first, end_block) = (place.first(), place.last() + 1);
        let mut file_block = first;
        while file_block < end_block {
            let store = self.store_for(file_block, set, place, edges, refused)?;
            let mut until = self.stripe_end(file_block, set, place, edges).min(end_block);
            while until < end_block {
                if self.store_for(until, set, place, edges, refused)? != store {
                    break;
                }
                until = self.stripe_end(until, set, place, edges).min(end_block);
            }
            let generation = match self.targets.store(store) {
                Some(known) if known.up => known.generation,
                _ => return Err(Obstacle::Absent),
            };
            while file_block < until {
                let wanted = (until - file_block).min(u64::from(u32::MAX)) as u32;
                let Some((span, lsn)) = self.space.allocate(shard, store, wanted) else {
                    return Err(Obstacle::NoZone(store));
                };
                let Some(operation) = self.operations.find_mut(id) else { break };
                let full = operation.staged.len() == self.parts_max;
                match operation.staged.last_mut() {
                    Some(last)
                        if last.span.store == store
                            && last.span.block.0 + u64::from(last.span.blocks) == span.block.0 =>
                    {
                        last.span.blocks += span.blocks;
                        last.lsn = last.lsn.max(lsn);
                    }
                    _ if full => {
                        self.space.release(shard, span, lsn);
                        let end = file_block * BLOCK;
                        operation.tail_valid = BLOCK_BYTES as u16;
                        return Ok(Place { end, ..place });
                    }
                    _ => operation.staged.push(Run { file_block, span, generation, lsn }),
                }
                file_block += u64::from(span.blocks);
            }
        }
        let tail_bytes = (place.end % BLOCK) as u32;
        let old = edges.tail.map_or(0, |extent| extent.valid_in(place.last()));
        if let Some(operation) = self.operations.find_mut(id) {
            operation.tail_valid =
                if tail_bytes == 0 { BLOCK_BYTES as u16 } else { tail_bytes.max(old) as u16 };
        }
        Ok(place)
    }

    /// The store for a block of a write: that of the old block where one is merged, else the one
    /// whose turn it is, or the next of the set that has space.
    fn store_for(
        &self,
        file_block: u64,
        set: &StoreSet,
        place: Place,
        edges: &Edges,
        refused: u16,
    ) -> Result<StoreId, Obstacle> {
        let full = |index: usize| refused >> index & 1 == 1;
        let head = edges.head.filter(|_| file_block == place.first());
        let tail = edges.tail.filter(|_| file_block == place.last());
        if let Some(extent) = head.or(tail) {
            let index = set.iter().position(|store| store == extent.store);
            return match index {
                Some(index) if full(index) => Err(Obstacle::Status(Status::NO_SPACE)),
                _ => Ok(extent.store),
            };
        }
        let turn = file_block / u64::from(self.config.stripe_blocks) % set.len().max(1) as u64;
        let places = (0..set.len()).map(|step| (turn as usize + step) % set.len());
        places
            .into_iter()
            .find(|index| !full(*index))
            .map(|index| set.at(index))
            .ok_or(Obstacle::Status(Status::NO_SPACE))
    }

    /// Up to which block the same store serves a write, at least.
    fn stripe_end(&self, file_block: u64, set: &StoreSet, place: Place, edges: &Edges) -> u64 {
        if file_block == place.first() && edges.head.is_some() {
            return file_block + 1;
        }
        let stripe = u64::from(self.config.stripe_blocks);
        let end = if set.len() > 1 { (file_block / stripe + 1) * stripe } else { u64::MAX };
        if edges.tail.is_some() && file_block < place.last() { end.min(place.last()) } else { end }
    }

    /// Frees what an operation staged. Nothing refers to it: its grants are retired or never left.
    pub(crate) fn unstage(&mut self, id: OperationId) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        let shard = operation.shard();
        for run in operation.staged.drain(..) {
            self.space.release(shard, run.span, run.lsn);
        }
    }
}
