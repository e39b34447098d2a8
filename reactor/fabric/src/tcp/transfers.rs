//! Writes and reads of this side that are under way on one connection. They complete in the order of
//! posting.

use std::collections::VecDeque;

use gannet_runtime::memory::Memory;

use super::wire::Violation;
use crate::{ConnectionId, Event, RemoteSlice, Transfer, TransferStatus};

#[derive(Debug)]
struct UnderWay {
    token: u64,
    memory: Memory,
    start: *mut u8,
    len_bytes: u32,
    /// Of the peer's memory.
    address: u64,
    kind: Kind,
    done: bool,
}

impl UnderWay {
    /// Whether it reads bytes of this range still.
    fn reads(&self, start: u64, end: u64) -> bool {
        let reads = matches!(self.kind, Kind::Read(..)) && !self.done;
        reads && self.address < end && start < self.address.saturating_add(self.len_bytes.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With its number among the writes.
    Write(u32),
    /// With its number among the reads; and whether its answer has begun to arrive.
    Read(u32, bool),
}

/// Transfers of one connection. See the module.
#[derive(Debug)]
pub(super) struct Transfers {
    list: VecDeque<UnderWay>,
    max: usize,
    /// Number of the first one in the list.
    first: u32,
    writes: u32,
    reads: u32,
    /// Writes that the peer said it has placed.
    placed: u32,
    /// Reads that are not done, and a range of the peer's memory that has all of theirs.
    reading: usize,
    read_start: u64,
    read_end: u64,
}

impl Transfers {
    pub(super) fn new(max: usize) -> Transfers {
        let list = VecDeque::with_capacity(max);
        Transfers {
            list,
            max,
            first: 0,
            writes: 0,
            reads: 0,
            placed: 0,
            reading: 0,
            read_start: u64::MAX,
            read_end: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= self.max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Keeps a transfer, whose local range was checked, until it completes; where its bytes are.
    pub(super) fn push(&mut self, transfer: Transfer, writes: bool) -> *mut u8 {
        let Transfer { token, memory, offset, remote } = transfer;
        let count = if writes { &mut self.writes } else { &mut self.reads };
        let number = std::mem::replace(count, count.wrapping_add(1));
        let kind = if writes { Kind::Write(number) } else { Kind::Read(number, false) };
        let (start, len_bytes) = (memory.as_ptr().wrapping_add(offset), remote.len_bytes);
        let address = remote.address;
        if !writes {
            if self.reading == 0 {
                (self.read_start, self.read_end) = (u64::MAX, 0);
            }
            self.reading += 1;
            self.read_start = self.read_start.min(address);
            self.read_end = self.read_end.max(address.saturating_add(len_bytes.into()));
        }
        self.list.push_back(UnderWay {
            token,
            memory,
            start,
            len_bytes,
            address,
            kind,
            done: false,
        });
        start
    }

    /// The number that the next transfer gets.
    pub(super) fn next_number(&self) -> u32 {
        self.first.wrapping_add(self.list.len() as u32)
    }

    /// Whether a transfer in front of the one with this number reads bytes of this range still.
    #[inline]
    pub(super) fn is_read(&self, number: u32, remote: RemoteSlice) -> bool {
        let (start, len_bytes) = (remote.address, u64::from(remote.len_bytes));
        let end = start.saturating_add(len_bytes);
        let near = self.reading > 0 && start < self.read_end && self.read_start < end;
        let in_front = number.wrapping_sub(self.first) as usize;
        near && len_bytes > 0
            && self.list.iter().take(in_front).any(|transfer| transfer.reads(start, end))
    }

    /// The peer says how many writes it has placed in all. Those count whose bytes have left this
    /// process (`sent`): nothing else gives memory back that the kernel may still read.
    #[inline]
    pub(super) fn placed(&mut self, placed: u32, sent: u32) -> Result<(), Violation> {
        if placed.wrapping_sub(self.placed) > self.writes.wrapping_sub(self.placed) {
            return Err(Violation("it acknowledges writes that were not posted"));
        }
        self.placed = placed;
        self.settle(sent);
        Ok(())
    }

    /// Marks the writes done that are placed and have left.
    #[inline]
    pub(super) fn settle(&mut self, sent: u32) {
        for transfer in &mut self.list {
            if let Kind::Write(number) = transfer.kind {
                let before = |count: u32| (count.wrapping_sub(number) as i32) > 0;
                if !(before(self.placed) && before(sent)) {
                    return;
                }
                transfer.done = true;
            }
        }
    }

    /// The place for the next answer to a read.
    pub(super) fn answer(&mut self, len_bytes: u32, sent: u32) -> Result<*mut u8, Violation> {
        for transfer in &mut self.list {
            if let Kind::Read(number, answered @ false) = &mut transfer.kind {
                if transfer.len_bytes != len_bytes || (sent.wrapping_sub(*number) as i32) <= 0 {
                    break;
                }
                *answered = true;
                return Ok(transfer.start);
            }
        }
        Err(Violation("it answers a read that was not asked for"))
    }

    /// An answer to a read is complete.
    pub(super) fn answered(&mut self) {
        let read = |transfer: &&mut UnderWay| {
            matches!(transfer.kind, Kind::Read(_, true)) && !transfer.done
        };
        if let Some(found) = self.list.iter_mut().find(read) {
            found.done = true;
            self.reading -= 1;
        }
    }

    /// Hands out what is complete, up to the first that is not.
    #[inline]
    pub(super) fn complete(&mut self, connection: ConnectionId, mut push: impl FnMut(Event)) {
        while self.list.front().is_some_and(|first| first.done) {
            let Some(UnderWay { token, memory, .. }) = self.list.pop_front() else { return };
            self.first = self.first.wrapping_add(1);
            let status = TransferStatus::Done;
            push(Event::Transferred { connection, token, memory, status });
        }
    }

    /// Whether a transfer with this number is under way.
    pub(super) fn has(&self, number: u32) -> bool {
        (number.wrapping_sub(self.first) as usize) < self.list.len()
    }

    /// Hands out everything: the connection is over, and the kernel has none of it any more.
    /// `refused` is the number of the one that the peer refused.
    pub(super) fn abandon(
        &mut self,
        connection: ConnectionId,
        refused: Option<u32>,
        mut push: impl FnMut(Event),
    ) {
        while let Some(UnderWay { token, memory, done, .. }) = self.list.pop_front() {
            let behind = refused.map(|refused| self.first.wrapping_sub(refused) as i32);
            let status = match behind {
                Some(0) => TransferStatus::AccessRefused,
                _ if done => TransferStatus::Done,
                _ => TransferStatus::ConnectionLost,
            };
            push(Event::Transferred { connection, token, memory, status });
            self.first = self.first.wrapping_add(1);
        }
    }
}
