//! Ranges of files that writes hold from dispatch to commit.
//!
//! A write that covers whole blocks shares its range with others of its kind: they run in parallel
//! and the last commit wins. A block whose old content is merged, or whose unwritten rest depends
//! on the file's size, is held exclusively; so is everything by a truncation and everything from
//! the end on by an append. Who conflicts waits, first come first served: nobody overtakes a
//! waiting operation that it conflicts with.

use std::collections::VecDeque;

use gannet_proto::Inode;

use crate::operations::{NONE, OperationId};

/// Most operations that wait for ranges of one file.
pub(crate) const HOLD_WAITERS_MAX: usize = 4096;

/// Blocks `first .. end` of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub first: u64,
    pub end: u64,
}

impl Blocks {
    fn overlap(self, other: Blocks) -> bool {
        self.first < other.end && other.first < self.end
    }
}

/// What an operation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// All blocks of the operation.
    pub all: Blocks,
    /// Those that it shares with nobody.
    pub exclusive: [Blocks; 2],
}

impl Range {
    /// Everything from a block on, exclusively.
    pub(crate) fn from_block(first: u64) -> Range {
        let all = Blocks { first, end: u64::MAX };
        Range { all, exclusive: [all, Blocks::default()] }
    }

    /// Whether two operations may not run at the same time.
    pub(crate) fn conflicts(&self, other: &Range) -> bool {
        self.all.overlap(other.all)
            && (self.exclusive.iter().any(|blocks| blocks.overlap(other.all))
                || other.exclusive.iter().any(|blocks| blocks.overlap(self.all)))
    }
}

/// Ranges of one file.
#[derive(Debug)]
struct Table {
    inode: Inode,
    held: Vec<(OperationId, Range)>,
    waiting: VecDeque<(OperationId, Range)>,
}

/// What became of a wish for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// The range is held; the index of the table.
    Held(u32),
    /// The operation waits; the index of the table.
    Waits(u32),
    /// Too many wait already.
    Full,
}

/// The ranges of all files with writes under way. Tables are used again.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    tables: Vec<Table>,
    free: Vec<u32>,
}

impl Holds {
    /// Whether `range` could be held at once. `table` is the file's table or [`NONE`].
    pub(crate) fn is_free(&self, table: u32, range: &Range) -> bool {
        let Some(table) = self.tables.get(table as usize) else { return true };
        !table.held.iter().any(|(_, held)| held.conflicts(range))
            && !table.waiting.iter().any(|(_, waits)| waits.conflicts(range))
    }

    /// Holds a range, or waits for it. `table` is the file's table or [`NONE`].
    pub(crate) fn acquire(
        &mut self,
        table: u32,
        inode: Inode,
        id: OperationId,
        range: Range,
    ) -> Acquired {
        let free = self.is_free(table, &range);
        let index = if table != NONE {
            table
        } else if let Some(index) = self.free.pop() {
            self.tables[index as usize].inode = inode;
            index
        } else {
            self.tables.push(Table { inode, held: Vec::new(), waiting: VecDeque::new() });
            (self.tables.len() - 1) as u32
        };
        let table = &mut self.tables[index as usize];
        debug_assert_eq!(table.inode, inode);
        if free {
            table.held.push((id, range));
            return Acquired::Held(index);
        }
        if table.waiting.len() == HOLD_WAITERS_MAX {
            return Acquired::Full;
        }
        table.waiting.push_back((id, range));
        Acquired::Waits(index)
    }

    /// Forgets what an operation holds or awaits. `true` if the table is empty now, and free.
    pub(crate) fn release(&mut self, index: u32, id: OperationId) -> bool {
        let table = &mut self.tables[index as usize];
        table.held.retain(|(holder, _)| *holder != id);
        table.waiting.retain(|(waiter, _)| *waiter != id);
        let empty = table.held.is_empty() && table.waiting.is_empty();
        if empty {
            self.free.push(index);
        }
        empty
    }

    /// Lets waiting operations of a table hold what is free by now, in order. `range` says anew
    /// what an operation wants (the file may have changed); `woken` gets those that hold it.
    pub(crate) fn wake(
        &mut self,
        index: u32,
        mut range: impl FnMut(OperationId) -> Range,
        mut woken: impl FnMut(OperationId),
    ) {
        let table = &mut self.tables[index as usize];
        let mut place = 0;
        while place < table.waiting.len() {
            let id = table.waiting[place].0;
            let wanted = range(id);
            table.waiting[place].1 = wanted;
            let blocked = table.held.iter().any(|(_, held)| held.conflicts(&wanted))
                || table.waiting.iter().take(place).any(|(_, waits)| waits.conflicts(&wanted));
            if blocked {
                if wanted.exclusive[0] == (Blocks { first: 0, end: u64::MAX }) {
                    // It stands in everybody's way.
                    return;
                }
                place += 1;
                continue;
            }
            table.waiting.remove(place);
            table.held.push((id, wanted));
            woken(id);
        }
    }

    /// The file of a table.
    pub(crate) fn inode(&self, index: u32) -> Inode {
        self.tables[index as usize].inode
    }

    /// Whether no range is held or awaited.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.tables.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, end: u64, exclusive: &[(u64, u64)]) -> Range {
        let mut range = Range { all: Blocks { first, end }, exclusive: [Blocks::default(); 2] };
        for (place, (first, end)) in exclusive.iter().enumerate() {
            range.exclusive[place] = Blocks { first: *first, end: *end };
        }
        range
    }

    fn id(index: u32) -> OperationId {
        OperationId { index, generation: 1 }
    }

    #[test]
    fn ranges_conflict_where_one_of_them_is_exclusive() {
        let shared = range(0, 10, &[]);
        let table = [
            (range(0, 10, &[]), false),
            (range(9, 12, &[]), false),
            (range(9, 12, &[(9, 10)]), true),
            (range(9, 12, &[(11, 12)]), false),
            (range(10, 12, &[(10, 12)]), false),
            (Range::from_block(10), false),
            (Range::from_block(9), true),
        ];
        for (other, expected) in table {
            assert_eq!(shared.conflicts(&other), expected, "{other:?}");
            assert_eq!(other.conflicts(&shared), expected, "{other:?}");
        }
    }

    #[test]
    fn nobody_overtakes_a_conflicting_waiter() {
        let mut holds = Holds::default();
        let inode = Inode(7);
        let Acquired::Held(table) = holds.acquire(NONE, inode, id(1), range(0, 4, &[])) else {
            panic!("the first one holds")
        };
        assert_eq!(
            holds.acquire(table, inode, id(2), Range::from_block(0)),
            Acquired::Waits(table)
        );
        assert_eq!(holds.acquire(table, inode, id(3), range(8, 9, &[])), Acquired::Waits(table));
        assert!(!holds.release(table, id(1)));
        let mut woken = Vec::new();
        let wish = |id: OperationId| match id.index {
            2 => Range::from_block(0),
            _ => range(8, 9, &[]),
        };
        holds.wake(table, wish, |id| woken.push(id.index));
        assert_eq!(woken, [2]);
        assert!(!holds.release(table, id(2)));
        holds.wake(table, wish, |id| woken.push(id.index));
        assert_eq!(woken, [2, 3]);
        assert!(holds.release(table, id(3)));
        assert!(holds.is_empty());
    }
}
