//! One zone: a bitmap of its blocks, and the search for free runs.

use crate::Lsn;

/// A zone of a shard.
#[derive(Debug)]
pub(crate) struct Zone {
    pub number: u32,
    pub first: u64,
    pub blocks: u32,
    pub free: u32,
    /// No free run is longer than this.
    pub longest: u32,
    /// Where the next search begins.
    pub cursor: u32,
    /// One bit per block, set while it is in use.
    bitmap: Vec<u64>,
    /// Position of the last record that freed a block or gave the zone to the shard.
    pub lsn: Lsn,
}

impl Zone {
    /// A zone of which nothing is in use.
    pub(crate) fn new(number: u32, first: u64, blocks: u32, lsn: Lsn) -> Zone {
        let bitmap = vec![0; (blocks as usize).div_ceil(64)];
        Zone { number, first, blocks, free: blocks, longest: blocks, cursor: 0, bitmap, lsn }
    }

    /// Whether a block is in use.
    pub(crate) fn bit(&self, index: u32) -> bool {
        self.bitmap[(index / 64) as usize] >> (index % 64) & 1 == 1
    }

    /// The first block from `index` on whose bit is `used`, or the number of blocks.
    pub(crate) fn seek(&self, index: u32, used: bool) -> u32 {
        let mut index = index;
        while index < self.blocks {
            let word = self.bitmap[(index / 64) as usize];
            let word = (if used { word } else { !word }) >> (index % 64);
            if word != 0 {
                return (index + word.trailing_zeros()).min(self.blocks);
            }
            index = (index / 64 + 1) * 64;
        }
        self.blocks
    }

    /// The first run of `wanted` free blocks from the cursor on, else the longest there is.
    pub(crate) fn find(&mut self, wanted: u32) -> (u32, u32) {
        let mut best = (0, 0);
        for (from, until) in [(self.cursor, self.blocks), (0, self.cursor)] {
            let mut index = from;
            while index < until {
                let start = self.seek(index, false);
                if start >= self.blocks {
                    break;
                }
                let end = self.seek(start, true);
                if end - start >= wanted {
                    return (start, wanted);
                }
                if end - start > best.1 {
                    best = (start, end - start);
                }
                index = end;
            }
        }
        // A run that spans the cursor was seen from its start in the second pass.
        self.longest = best.1;
        best
    }

    /// Sets or clears a run of bits.
    pub(crate) fn mark(&mut self, start: u32, blocks: u32, used: bool) {
        let mut index = start;
        let end = start + blocks;
        while index < end {
            let bits = (64 - index % 64).min(end - index);
            let mask = (u64::MAX >> (64 - bits)) << (index % 64);
            let word = &mut self.bitmap[(index / 64) as usize];
            debug_assert_eq!(*word & mask, if used { 0 } else { mask }, "a block changes twice");
            if used {
                *word |= mask;
            } else {
                *word &= !mask;
            }
            index += bits;
        }
        if used {
            self.free -= blocks;
            self.longest = self.longest.min(self.free);
        } else {
            self.free += blocks;
            self.longest = self.free;
        }
    }
}
