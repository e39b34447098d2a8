//! The map of a file: which of its blocks lie where.
//!
//! An extent maps consecutive blocks of a file to consecutive blocks of a store. Extents never
//! overlap; what none covers is a hole and reads as zeros. Only the last block of an extent may be
//! partly valid, and what is not valid reads as zeros too. Every mutation hands the extents that it
//! unmaps to its caller, who owns their blocks from then on.

use std::collections::{BTreeMap, btree_map};
use std::num::NonZeroU32;

use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::{Block, StoreId};

/// Consecutive blocks of a file in consecutive blocks of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block in the file.
    pub file_block: u64,
    /// Number of blocks, at least 1.
    pub blocks: u32,
    /// The store.
    pub store: StoreId,
    /// First block in the store.
    pub block: Block,
    /// Generation of the store when it was written.
    pub generation: u32,
    /// Valid bytes of the last block, from 1 to [`BLOCK_BYTES`].
    pub tail_valid: u16,
    /// Number of the commit that mapped it.
    pub birth: u64,
}

impl Extent {
    /// The file block after the last.
    pub(crate) fn end(&self) -> u64 {
        self.file_block + u64::from(self.blocks)
    }

    /// Bytes from the start that are valid.
    pub(crate) fn valid_bytes(&self) -> u64 {
        (u64::from(self.blocks) - 1) * u64::from(BLOCK_BYTES) + u64::from(self.tail_valid)
    }

    /// Valid bytes of one of its blocks.
    pub(crate) fn valid_in(&self, file_block: u64) -> u32 {
        if file_block + 1 == self.end() { self.tail_valid.into() } else { BLOCK_BYTES }
    }

    /// Where one of its blocks lies.
    pub(crate) fn block_of(&self, file_block: u64) -> Block {
        Block(self.block.0 + (file_block - self.file_block))
    }

    /// The blocks `first .. end` of it.
    fn part(&self, first: u64, end: u64) -> Extent {
        Extent {
            file_block: first,
            blocks: (end - first) as u32,
            block: self.block_of(first),
            tail_valid: if end == self.end() { self.tail_valid } else { BLOCK_BYTES as u16 },
            ..*self
        }
    }

    /// Whether it has a block of the file.
    fn covers(&self, file_block: u64) -> bool {
        self.file_block <= file_block && file_block < self.end()
    }

    /// This and what continues it, in one.
    fn joined(&self, next: &Extent) -> Extent {
        Extent {
            blocks: self.blocks + next.blocks,
            tail_valid: next.tail_valid,
            birth: self.birth.min(next.birth),
            ..*self
        }
    }

    /// Whether `next` goes on where this ends, in the file and in the store.
    fn continued_by(&self, next: &Extent) -> bool {
        self.end() == next.file_block
            && self.store == next.store
            && self.generation == next.generation
            && self.block.0 + u64::from(self.blocks) == next.block.0
            && u32::from(self.tail_valid) == BLOCK_BYTES
            && self.blocks.checked_add(next.blocks).is_some()
    }
}

/// An extent without its key.
#[derive(Clone, Copy, Debug)]
struct Stored {
    block: Block,
    birth: u64,
    blocks: NonZeroU32,
    store: StoreId,
    generation: u32,
    tail_valid: u16,
}

impl Stored {
    fn with(&self, file_block: u64) -> Extent {
        Extent {
            file_block,
            blocks: self.blocks.get(),
            store: self.store,
            block: self.block,
            generation: self.generation,
            tail_valid: self.tail_valid,
            birth: self.birth,
        }
    }
}

impl From<Extent> for Stored {
    fn from(extent: Extent) -> Stored {
        Stored {
            block: extent.block,
            birth: extent.birth,
            blocks: NonZeroU32::new(extent.blocks).unwrap_or(NonZeroU32::MIN),
            store: extent.store,
            generation: extent.generation,
            tail_valid: extent.tail_valid,
        }
    }
}

/// Several extents.
#[derive(Debug, Default)]
struct Tree {
    map: BTreeMap<u64, Stored>,
    blocks: u64,
}

impl Tree {
    fn covering(&self, file_block: u64) -> Option<Extent> {
        let (start, stored) = self.map.range(..=file_block).next_back()?;
        let extent = stored.with(*start);
        (extent.end() > file_block).then_some(extent)
    }

    fn from(&self, file_block: u64) -> btree_map::Range<'_, u64, Stored> {
        let start = self.covering(file_block).map_or(file_block, |extent| extent.file_block);
        self.map.range(start..)
    }

    fn put(&mut self, extent: Extent) {
        self.map.insert(extent.file_block, extent.into());
    }

    fn replace(&mut self, new: Extent, freed: &mut impl FnMut(Extent)) {
        if let Some(stored) = self.map.get_mut(&new.file_block)
            && stored.blocks.get() == new.blocks
        {
            // The same range again, as in most overwrites: nothing moves.
            freed(stored.with(new.file_block));
            *stored = new.into();
        } else {
            self.unmap(new.file_block, new.end(), freed);
            self.put(new);
            self.blocks += u64::from(new.blocks);
        }
        self.join(new);
    }

    /// Joins an extent with its neighbours where they continue each other.
    fn join(&mut self, mut extent: Extent) {
        let before = self.map.range(..extent.file_block).next_back();
        if let Some(before) = before.map(|(key, stored)| stored.with(*key))
            && before.continued_by(&extent)
        {
            self.map.remove(&extent.file_block);
            extent = before.joined(&extent);
            self.put(extent);
        }
        if let Some(stored) = self.map.get(&extent.end()) {
            let after = stored.with(extent.end());
            if extent.continued_by(&after) {
                self.map.remove(&after.file_block);
                self.put(extent.joined(&after));
            }
        }
    }

    fn unmap(&mut self, first: u64, end: u64, freed: &mut impl FnMut(Extent)) {
        loop {
            let next = self.from(first).next();
            let next = next.map(|(file_block, stored)| stored.with(*file_block));
            let Some(extent) = next.filter(|extent| extent.file_block < end) else { return };
            let cut = extent.part(extent.file_block.max(first), extent.end().min(end));
            if extent.file_block < cut.file_block {
                self.put(extent.part(extent.file_block, cut.file_block));
            } else {
                self.map.remove(&extent.file_block);
            }
            if cut.end() < extent.end() {
                self.put(extent.part(cut.end(), extent.end()));
            }
            self.blocks -= u64::from(cut.blocks);
            freed(cut);
        }
    }
}

/// The extents of a file, by file block. A file with one, as most are, costs no memory beside its
/// inode.
#[derive(Debug)]
pub(crate) struct ExtentMap(Form);

#[derive(Debug)]
enum Form {
    /// One extent, by its first block.
    One(u64, Stored),
    /// None, or several.
    Other(Option<Box<Tree>>),
}
const _: () = assert!(size_of::<ExtentMap>() == 40);

impl Default for ExtentMap {
    fn default() -> ExtentMap {
        ExtentMap(Form::Other(None))
    }
}

impl From<Option<Extent>> for ExtentMap {
    fn from(extent: Option<Extent>) -> ExtentMap {
        ExtentMap(match extent {
            Some(extent) => Form::One(extent.file_block, extent.into()),
            None => Form::Other(None),
        })
    }
}

impl ExtentMap {
    /// The only extent.
    fn one(&self) -> Option<Extent> {
        match &self.0 {
            Form::One(file_block, stored) => Some(stored.with(*file_block)),
            Form::Other(_) => None,
        }
    }

    fn tree(&self) -> Option<&Tree> {
        match &self.0 {
            Form::One(..) => None,
            Form::Other(tree) => tree.as_deref(),
        }
    }

    /// Blocks mapped.
    pub(crate) fn blocks(&self) -> u64 {
        match &self.0 {
            Form::One(_, stored) => stored.blocks.get().into(),
            Form::Other(tree) => tree.as_ref().map_or(0, |tree| tree.blocks),
        }
    }

    /// All extents in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Extent> {
        self.from(0)
    }

    /// The extent that covers a block.
    #[inline(always)]
    pub(crate) fn covering(&self, file_block: u64) -> Option<Extent> {
        match &self.0 {
            Form::One(first, stored) => {
                let one = stored.with(*first);
                one.covers(file_block).then_some(one)
            }
            Form::Other(tree) => tree.as_deref()?.covering(file_block),
        }
    }

    /// The extents from the one that covers `file_block`, or the first after it, in order.
    pub(crate) fn from(&self, file_block: u64) -> impl Iterator<Item = Extent> {
        let one = self.one().filter(|one| one.end() > file_block);
        let several = self.tree().map(|tree| tree.from(file_block)).into_iter().flatten();
        one.into_iter().chain(several.map(|(file_block, stored)| stored.with(*file_block)))
    }

    /// Changes several extents, or what becomes of them.
    fn change(&mut self, change: impl FnOnce(&mut Tree)) {
        let mut tree = match std::mem::replace(&mut self.0, Form::Other(None)) {
            Form::Other(tree) => tree.unwrap_or_default(),
            Form::One(file_block, stored) => {
                let mut tree = Box::<Tree>::default();
                tree.map.insert(file_block, stored);
                tree.blocks = stored.blocks.get().into();
                tree
            }
        };
        change(&mut tree);
        self.0 = match tree.map.first_key_value() {
            None => Form::Other(None),
            Some((file_block, stored)) if tree.map.len() == 1 => Form::One(*file_block, *stored),
            Some(_) => Form::Other(Some(tree)),
        };
    }

    /// Maps `new`, unmapping what it covers.
    pub(crate) fn replace(&mut self, new: Extent, mut freed: impl FnMut(Extent)) {
        let joined = match (self.one(), self.tree()) {
            (None, None) => Some(new),
            (Some(one), _) if new.file_block <= one.file_block && one.end() <= new.end() => {
                freed(one);
                Some(new)
            }
            (Some(one), _) if one.continued_by(&new) => Some(one.joined(&new)),
            (Some(one), _) if new.continued_by(&one) => Some(new.joined(&one)),
            _ => None,
        };
        match joined {
            Some(joined) => *self = Some(joined).into(),
            None => self.change(|tree| tree.replace(new, &mut freed)),
        }
    }

    /// Unmaps the blocks `first .. end`.
    pub(crate) fn unmap(&mut self, first: u64, end: u64, mut freed: impl FnMut(Extent)) {
        let Some(one) = self.one() else {
            if self.tree().is_some() {
                self.change(|tree| tree.unmap(first, end, &mut freed));
            }
            return;
        };
        let (first, end) = (first.max(one.file_block), end.min(one.end()));
        if first >= end {
            return;
        }
        if one.file_block < first && end < one.end() {
            return self.change(|tree| tree.unmap(first, end, &mut freed));
        }
        let left = (one.file_block < first).then(|| one.part(one.file_block, first));
        let right = (end < one.end()).then(|| one.part(end, one.end()));
        *self = left.or(right).into();
        freed(one.part(first, end));
    }

    /// Forgets what lies beyond `size` bytes.
    pub(crate) fn clip(&mut self, size: u64, freed: impl FnMut(Extent)) {
        let block_bytes = u64::from(BLOCK_BYTES);
        self.unmap(size.div_ceil(block_bytes), u64::MAX, freed);
        let inside = (size % block_bytes) as u16;
        if inside == 0 {
            return;
        }
        let last = size / block_bytes;
        if let Some(extent) = self.covering(last) {
            // Nothing lies behind this block any more, so it is the extent's last.
            let clipped = Extent { tail_valid: extent.tail_valid.min(inside), ..extent };
            match &mut self.0 {
                Form::One(..) => *self = Some(clipped).into(),
                Form::Other(tree) => {
                    tree.iter_mut().for_each(|tree| tree.put(clipped));
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: u64 = 64;

    /// One block: where it lies and how much of it is valid.
    type Cell = Option<(u32, u64, u32)>;

    fn cells(map: &ExtentMap) -> Vec<Cell> {
        let mut cells = vec![None; SPAN as usize];
        let mut last_end = 0;
        for extent in map.iter() {
            assert!(extent.file_block >= last_end, "extents overlap");
            last_end = extent.end();
            for block in extent.file_block..extent.end() {
                cells[block as usize] =
                    Some((extent.store.0, extent.block_of(block).0, extent.valid_in(block)));
            }
        }
        cells
    }

    #[derive(Clone, Debug)]
    enum Step {
        Replace { first: u64, blocks: u32, store: u32, tail_valid: u16 },
        Unmap { first: u64, end: u64 },
        Clip { size: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..SPAN, 1..9u32, 1..3u32, prop_oneof![Just(4096u16), 1..=4096u16]).prop_map(
                |(first, blocks, store, tail_valid)| Step::Replace {
                    first,
                    blocks: blocks.min((SPAN - first) as u32),
                    store,
                    tail_valid,
                }
            ),
            1 => (0..SPAN, 0..SPAN).prop_map(|(a, b)| Step::Unmap { first: a.min(b), end: a.max(b) }),
            1 => (0..SPAN * 4096).prop_map(|size| Step::Clip { size }),
        ]
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_one_cell_per_block(steps in prop::collection::vec(step(), 1..80)) {
            let mut map = ExtentMap::default();
            let mut oracle: Vec<Cell> = vec![None; SPAN as usize];
            let mut next_block = 0u64;
            for (birth, step) in steps.into_iter().enumerate() {
                let mut freed = Vec::new();
                let mut expected = Vec::new();
                match step {
                    Step::Replace { first, blocks, store, tail_valid } => {
                        // Every other extent continues the last one in the store.
                        if birth % 2 == 0 {
                            next_block += 1000;
                        }
                        let new = Extent {
                            file_block: first,
                            blocks,
                            store: StoreId(store),
                            block: Block(next_block),
                            generation: 1,
                            tail_valid,
                            birth: birth as u64,
                        };
                        next_block += u64::from(blocks);
                        for block in first..new.end() {
                            expected.extend(oracle[block as usize]);
                            oracle[block as usize] =
                                Some((store, new.block_of(block).0, new.valid_in(block)));
                        }
                        map.replace(new, |extent| freed.push(extent));
                    }
                    Step::Unmap { first, end } => {
                        for block in first..end {
                            expected.extend(oracle[block as usize].take());
                        }
                        map.unmap(first, end, |extent| freed.push(extent));
                    }
                    Step::Clip { size } => {
                        for block in 0..SPAN {
                            let start = block * 4096;
                            if start >= size {
                                expected.extend(oracle[block as usize].take());
                            } else if let Some(cell) = &mut oracle[block as usize] {
                                cell.2 = cell.2.min((size - start).min(4096) as u32);
                            }
                        }
                        map.clip(size, |extent| freed.push(extent));
                    }
                }
                let mut told: Vec<(u32, u64)> = freed
                    .iter()
                    .flat_map(|e| (e.file_block..e.end()).map(|b| (e.store.0, e.block_of(b).0)))
                    .collect();
                let mut expected: Vec<(u32, u64)> =
                    expected.iter().map(|cell| (cell.0, cell.1)).collect();
                told.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(told, expected);
                prop_assert_eq!(cells(&map), oracle.clone());
                let mapped = oracle.iter().flatten().count() as u64;
                prop_assert_eq!(map.blocks(), mapped);
            }
        }
    }

    #[test]
    fn a_file_written_in_sequence_is_one_extent() {
        let mut map = ExtentMap::default();
        for step in 0..100u64 {
            let new = Extent {
                file_block: step * 4,
                blocks: 4,
                store: StoreId(1),
                block: Block(50 + step * 4),
                generation: 1,
                tail_valid: 4096,
                birth: step,
            };
            map.replace(new, |_| panic!("nothing was mapped here"));
        }
        let all: Vec<Extent> = map.iter().collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].blocks, all[0].birth), (400, 0));
        assert_eq!(map.covering(399).unwrap().block_of(399), Block(449));
        assert_eq!(map.covering(400), None);
    }
}
