//! Which data servers hold a file, as far as the client has heard.
//!
//! A hint of fixed size: an entry may be overwritten by another file's or be out of date. Then the
//! metadata server answers a request STALE_SET and names the set.

use gannet_proto::Inode;

const ENTRIES: usize = 1024;

/// Sets by file.
#[derive(Debug)]
pub(crate) struct Sets {
    entries: Box<[(Inode, u64)]>,
}

impl Sets {
    pub(crate) fn new() -> Sets {
        Sets { entries: vec![(Inode(0), 0); ENTRIES].into_boxed_slice() }
    }

    fn place(file: Inode) -> usize {
        // Fibonacci hashing: neighbouring numbers and equal numbers of other shards spread.
        (file.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % ENTRIES
    }

    pub(crate) fn insert(&mut self, file: Inode, targets: u64) {
        self.entries[Sets::place(file)] = (file, targets);
    }

    /// The file's data servers; none if nothing is known.
    #[inline]
    pub(crate) fn of(&self, file: Inode) -> u64 {
        let (inode, targets) = self.entries[Sets::place(file)];
        if inode == file { targets } else { 0 }
    }

    /// Forgets the sets that a data server is in.
    pub(crate) fn forget(&mut self, target: u8) {
        for (_, targets) in &mut self.entries {
            if *targets & (1 << target) != 0 {
                *targets = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_file_and_forgotten_by_target() {
        let mut sets = Sets::new();
        sets.insert(Inode(5), 0b11);
        sets.insert(Inode(6), 0b10);
        assert_eq!((sets.of(Inode(5)), sets.of(Inode(6)), sets.of(Inode(7))), (3, 2, 0));
        sets.forget(0);
        assert_eq!((sets.of(Inode(5)), sets.of(Inode(6))), (0, 2));
        let other = (7..).map(Inode).find(|i| Sets::place(*i) == Sets::place(Inode(6)));
        sets.insert(other.unwrap_or_default(), 0b100);
        assert_eq!(sets.of(Inode(6)), 0, "overwritten, not mixed up");
    }
}
