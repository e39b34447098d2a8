//! The operations that the kernel has, and how each goes on when the kernel answers.
//!
//! An operation owns its memory from submission until the kernel's one answer to its current entry
//! says that it has let go. The table never grows, so starting an operation allocates nothing.

use std::io;

use crate::{BLOCK_BYTES, Completion, Durability, Transfer};

/// Answers that moved nothing (interrupted, out of resources), in a row, before one counts.
const FRUITLESS_MAX: u8 = 16;
/// Bytes of one entry, at most: below the kernel's own limit and a multiple of everything.
const PIECE_BYTES_MAX: usize = 1 << 30;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write(Durability),
}

/// A transfer in the kernel, and how far it is.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) action: Action,
    pub(super) transfer: Transfer,
    /// Index in the kernel's table of registered memory, if all of the transfer lies in one entry.
    pub(super) piece: Option<u16>,
    done_bytes: usize,
    fruitless: u8,
}

/// One operation.
#[derive(Debug)]
pub(super) enum Operation {
    Moving(Moving),
    Syncing { token: u64, file: u32, fruitless: u8 },
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing more to do.
    Done(io::Result<()>),
    /// The rest has to be submitted.
    Again,
}

impl Operation {
    pub(super) fn moving(action: Action, transfer: Transfer, piece: Option<u16>) -> Operation {
        Operation::Moving(Moving { action, transfer, piece, done_bytes: 0, fruitless: 0 })
    }

    pub(super) fn syncing(token: u64, file: u32) -> Operation {
        Operation::Syncing { token, file, fruitless: 0 }
    }

    /// Takes the kernel's answer: a number of bytes, or a negative error number.
    pub(super) fn answer(&mut self, result: i32) -> Step {
        let fruitless = match self {
            Operation::Moving(moving) => &mut moving.fruitless,
            Operation::Syncing { fruitless, .. } => fruitless,
        };
        if result < 0 {
            let errno = result.wrapping_neg();
            if matches!(errno, libc::EINTR | libc::EAGAIN) && *fruitless < FRUITLESS_MAX {
                *fruitless += 1;
                return Step::Again;
            }
            return Step::Done(Err(io::Error::from_raw_os_error(errno)));
        }
        match self {
            Operation::Moving(moving) => moving.advance(result as usize),
            Operation::Syncing { .. } => Step::Done(Ok(())),
        }
    }

    pub(super) fn into_completion(self, result: io::Result<()>) -> Completion {
        match self {
            Operation::Moving(Moving { transfer, .. }) => {
                Completion { token: transfer.token, memory: Some(transfer.memory), result }
            }
            Operation::Syncing { token, .. } => Completion { token, memory: None, result },
        }
    }
}

impl Moving {
    /// Where the rest starts in the file, bytes.
    pub(super) fn offset(&self) -> u64 {
        self.transfer.offset + self.done_bytes as u64
    }

    /// Where the rest starts in memory.
    pub(super) fn address(&self) -> *mut u8 {
        let start = self.transfer.memory_offset + self.done_bytes;
        self.transfer.memory.as_ptr().wrapping_add(start)
    }

    /// Length of the next entry, bytes.
    pub(super) fn len_bytes(&self) -> u32 {
        (self.transfer.len_bytes - self.done_bytes).min(PIECE_BYTES_MAX) as u32
    }

    /// Counts whole blocks only, so that the rest stays aligned; moving a part of a block once
    /// more does no harm.
    fn advance(&mut self, moved_bytes: usize) -> Step {
        if moved_bytes >= self.transfer.len_bytes - self.done_bytes {
            return Step::Done(Ok(()));
        }
        let whole_bytes = moved_bytes - moved_bytes % BLOCK_BYTES;
        if whole_bytes > 0 {
            self.done_bytes += whole_bytes;
            self.fruitless = 0;
            return Step::Again;
        }
        if moved_bytes > 0 && self.fruitless < FRUITLESS_MAX {
            self.fruitless += 1;
            return Step::Again;
        }
        // Inside the length that the file had when it was opened: somebody cut it.
        Step::Done(Err(match self.action {
            Action::Read => io::ErrorKind::UnexpectedEof.into(),
            Action::Write(_) => io::ErrorKind::WriteZero.into(),
        }))
    }
}

/// A fixed number of places for operations.
#[derive(Debug)]
pub(super) struct Operations {
    places: Vec<Option<Operation>>,
    free: Vec<u32>,
}

impl Operations {
    pub(super) fn new(count: u32) -> Operations {
        let places = (0..count).map(|_| None).collect();
        // Lowest indices last, so that shallow queues reuse the same warm places.
        Operations { places, free: (0..count).rev().collect() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes an operation; the caller has checked that there is a place.
    pub(super) fn insert(&mut self, operation: Operation) -> u32 {
        let index = self.free.pop().expect("the caller checks is_full");
        self.places[index as usize] = Some(operation);
        index
    }

    /// The operation at an index, `None` if there is none.
    pub(super) fn at(&mut self, index: u64) -> Option<&mut Operation> {
        self.places.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    /// Gives the operation at an index up.
    pub(super) fn remove(&mut self, index: u64) -> Option<Operation> {
        let operation = self.places.get_mut(usize::try_from(index).ok()?)?.take()?;
        self.free.push(index as u32);
        Some(operation)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_runtime::memory::{Mapping, Memory};

    use super::*;
    use crate::FileId;

    fn operation(action: Action, blocks: usize) -> Operation {
        let mapping = Mapping::anonymous(8 * BLOCK_BYTES).unwrap();
        let memory = Memory::Shared(mapping.slice(0, 8 * BLOCK_BYTES as u64).unwrap());
        let transfer = Transfer {
            token: 7,
            file: FileId(0),
            offset: 10 * BLOCK_BYTES as u64,
            memory,
            memory_offset: BLOCK_BYTES,
            len_bytes: blocks * BLOCK_BYTES,
        };
        Operation::moving(action, transfer, None)
    }

    fn moving(operation: &Operation) -> &Moving {
        match operation {
            Operation::Moving(moving) => moving,
            Operation::Syncing { .. } => panic!("a transfer"),
        }
    }

    #[test]
    fn short_transfers_go_on_behind_the_last_whole_block() {
        let mut read = operation(Action::Read, 4);
        let start = moving(&read).address();
        assert!(matches!(read.answer(BLOCK_BYTES as i32 + 512), Step::Again));
        assert_eq!(moving(&read).offset(), 11 * BLOCK_BYTES as u64);
        assert_eq!(moving(&read).address(), start.wrapping_add(BLOCK_BYTES));
        assert_eq!(moving(&read).len_bytes() as usize, 3 * BLOCK_BYTES);
        assert!(matches!(read.answer(3 * BLOCK_BYTES as i32), Step::Done(Ok(()))));
    }

    #[test]
    fn long_transfers_are_cut_into_pieces() {
        let pieces = 2 * PIECE_BYTES_MAX + BLOCK_BYTES;
        let mapping = Mapping::anonymous(pieces).unwrap();
        let memory = Memory::Shared(mapping.slice(0, pieces as u64).unwrap());
        let file = FileId(0);
        let transfer =
            Transfer { token: 0, file, offset: 0, memory, memory_offset: 0, len_bytes: pieces };
        let mut write = Operation::moving(Action::Write(Durability::Visible), transfer, None);
        for _ in 0..2 {
            assert_eq!(moving(&write).len_bytes() as usize, PIECE_BYTES_MAX);
            assert!(matches!(write.answer(PIECE_BYTES_MAX as i32), Step::Again));
        }
        assert_eq!(moving(&write).len_bytes() as usize, BLOCK_BYTES);
        assert!(matches!(write.answer(BLOCK_BYTES as i32), Step::Done(Ok(()))));
    }

    #[test]
    fn transient_errors_are_retried_a_bounded_number_of_times() {
        for mut operation in [operation(Action::Read, 1), Operation::syncing(1, 0)] {
            for _ in 0..FRUITLESS_MAX {
                assert!(matches!(operation.answer(-libc::EAGAIN), Step::Again));
            }
            let Step::Done(Err(error)) = operation.answer(-libc::EINTR) else {
                panic!("retried without bound")
            };
            assert_eq!(error.raw_os_error(), Some(libc::EINTR));
        }
    }

    #[test]
    fn progress_renews_the_retries() {
        let mut write = operation(Action::Write(Durability::Durable), 2);
        for _ in 0..FRUITLESS_MAX {
            assert!(matches!(write.answer(-libc::EAGAIN), Step::Again));
        }
        assert!(matches!(write.answer(BLOCK_BYTES as i32), Step::Again));
        assert!(matches!(write.answer(-libc::EAGAIN), Step::Again));
    }

    #[test]
    fn other_errors_and_the_end_of_the_file_are_reported() {
        let Step::Done(Err(error)) = operation(Action::Read, 1).answer(-libc::EIO) else {
            panic!("an I/O error is final")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let ends = [
            (Action::Read, io::ErrorKind::UnexpectedEof),
            (Action::Write(Durability::Visible), io::ErrorKind::WriteZero),
        ];
        for (action, kind) in ends {
            let Step::Done(Err(error)) = operation(action, 1).answer(0) else {
                panic!("nothing moved")
            };
            assert_eq!(error.kind(), kind);
        }
        // A part of the last block, again and again: a file that was cut inside a block.
        let mut read = operation(Action::Read, 1);
        let ended = (0..=FRUITLESS_MAX).find_map(|_| match read.answer(100) {
            Step::Done(result) => Some(result),
            Step::Again => None,
        });
        assert_eq!(ended.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn places_are_bounded_and_reused() {
        let mut operations = Operations::new(2);
        let first = operations.insert(Operation::syncing(1, 0));
        let second = operations.insert(Operation::syncing(2, 0));
        assert!(operations.is_full());
        assert!(operations.remove(u64::MAX).is_none());
        assert!(operations.remove(u64::from(first)).is_some());
        assert!(operations.remove(u64::from(first)).is_none(), "each ends once");
        assert_eq!(operations.insert(Operation::syncing(3, 0)), first);
        assert!(operations.at(u64::from(second)).is_some());
        assert_eq!(operations.len(), 2);
    }
}
