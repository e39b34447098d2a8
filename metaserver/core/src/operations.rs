//! Operations under way: a slab, and the lists that tie operations to the blocks they refer to.
//!
//! An operation is *live* on its inode from the moment its grants leave until the last of them is
//! retired. Blocks that the inode's map loses meanwhile are *pinned* by a live operation that may
//! refer to them (rule H7): one that began after the blocks were mapped and before they were
//! unmapped. Both are told by the commit counter: an extent is born at a commit, an operation starts
//! between two. When the pinning operation ends, the blocks move to another one that may refer to
//! them, or are free. So a stalled read holds back exactly what it may still read.
//!
//! Memory of ended operations is used again, their vectors included.

use gannet_proto::operations::{Read, RequestHeader, SetAttributes, Window, Write};
use gannet_proto::{Inode, ShardId, Status, StoreId, TargetId};

use crate::name_operations::NameOperation;
use crate::space::Span;
use crate::{Lsn, Nanos, SessionIndex};

/// Most operations under way at a reactor.
pub(crate) const OPERATIONS_MAX: usize = 1 << 16;

/// No operation, no hold table.
pub(crate) const NONE: u32 = u32::MAX;

/// Names an operation; a later one in the same place has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OperationId {
    pub index: u32,
    pub generation: u32,
}

impl OperationId {
    /// One number for messages between cores.
    pub(crate) fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What [`OperationId::token`] made.
    pub(crate) fn from_token(token: u64) -> OperationId {
        OperationId { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// What an operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The place is free.
    Free,
    /// About to be carried on.
    Runnable,
    /// A range of its file.
    AwaitingHold,
    /// A data server that is absent.
    AwaitingTarget,
    /// Room for further grants at a data server.
    AwaitingCredit(TargetId),
    /// A zone of a store.
    AwaitingZone(StoreId),
    /// A name that is held by another operation.
    AwaitingName,
    /// The answer of another shard.
    AwaitingPeer,
    /// Its grants.
    Granted,
    /// Lost grants of an operation that was answered: the return of their data server.
    Lost,
}

/// What was asked.
#[derive(Debug, Default)]
pub(crate) enum Request {
    #[default]
    None,
    Read(Read),
    /// A read whose grants are out.
    ReadGranted,
    Write(Write),
    Attributes(SetAttributes),
    Name(Box<NameOperation>),
}

impl Request {
    /// Whether something at another shard depends on the request being carried through.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self, Request::Name(name) if name.locked)
    }
}

/// Blocks staged for a write: consecutive in the file and in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub file_block: u64,
    pub span: Span,
    /// Of the store when the blocks were taken: what the grants name, and so what the data are of.
    pub generation: u32,
    pub lsn: Lsn,
}

/// Blocks that were unmapped while an operation may refer to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    pub shard: ShardId,
    pub span: Span,
    /// Commit that mapped them.
    pub birth: u64,
    /// Commit that unmapped them.
    pub freed: u64,
    /// Record of that commit.
    pub lsn: Lsn,
}

/// An operation under way.
///
/// What a plain read uses comes first, in two lines of the processor's cache; `begin` alone sets what
/// lies behind, for those that wait or change something.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Operation {
    pub generation: u32,
    /// Grants out.
    pub outstanding: u16,
    /// Grants whose data server went away before they were retired.
    pub lost: u16,
    pub state: State,
    pub session: SessionIndex,
    /// A grant failed of which no data server told the host.
    pub silent: bool,
    /// Bytes of it may be on their way to or from the host although no grant is out: the data server
    /// or its connection to the host broke off. Only the host can end that, by cutting it off.
    pub severed: bool,
    /// Superseded, or its session ended: takes no effect and answers nobody.
    pub dead: bool,
    /// The host asked for its end.
    pub cancelled: bool,
    /// Its arrival notices answer it.
    pub direct: bool,
    /// Linked into the live list of its inode.
    pub live: bool,
    pub end_of_file: bool,
    pub header: RequestHeader,
    /// How the first failed grant ended.
    pub failure: Status,
    pub previous: u32,
    pub next: u32,
    pub inode: Inode,
    /// Commit counter when it became live.
    pub start: u64,
    /// Write, read: where in the file and how much.
    pub offset: u64,
    pub length: u32,
    pub pinned: Vec<Pinned>,
    pub request: Request,
    /// Read, write: the windows by which the host named its memory, if it did so.
    pub windows: Vec<Window>,
    /// When waiting for a data server ends; `u64::MAX` before that wait begins.
    pub deadline: Nanos,
    /// Grants that must fit a data server's window before it can go on.
    pub needed: u16,
    /// Write: its staged blocks.
    pub staged: Vec<Run>,
    /// Write: valid bytes of its last block.
    pub tail_valid: u16,
    /// Index of the hold table in which it holds or awaits a range.
    pub holding: u32,
    /// Stores of the set that have no space for it, one bit each.
    pub refused: u16,
    /// Age of the operation: older ones wait for younger ones, never the other way round.
    pub order: u64,
    /// Name: the inode of another shard whose owner lets it go.
    pub passed: Option<Inode>,
}
const _: () = assert!(std::mem::offset_of!(Operation, request) <= 128);

impl Operation {
    fn empty() -> Operation {
        Operation {
            generation: 0,
            state: State::Free,
            session: SessionIndex(NONE),
            header: RequestHeader::default(),
            inode: Inode(0),
            request: Request::None,
            windows: Vec::new(),
            deadline: Nanos(u64::MAX),
            outstanding: 0,
            lost: 0,
            needed: 0,
            failure: Status::OK,
            silent: false,
            severed: false,
            dead: false,
            cancelled: false,
            direct: false,
            live: false,
            start: 0,
            previous: NONE,
            next: NONE,
            pinned: Vec::new(),
            staged: Vec::new(),
            offset: 0,
            length: 0,
            end_of_file: false,
            tail_valid: 0,
            holding: NONE,
            refused: 0,
            order: 0,
            passed: None,
        }
    }

    /// The shard asked.
    pub(crate) fn shard(&self) -> ShardId {
        ShardId(self.header.shard.get())
    }
}

/// What is known of a read that needs one grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainRead {
    pub session: SessionIndex,
    pub header: RequestHeader,
    pub inode: Inode,
    pub offset: u64,
    pub length: u32,
    pub end_of_file: bool,
    pub direct: bool,
    /// Commit counter.
    pub start: u64,
}

/// All operations under way.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    slab: Vec<Operation>,
    free: Vec<u32>,
}

impl Operations {
    /// Number of operations under way.
    pub(crate) fn live(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    /// Begins an operation; `None` when [`OPERATIONS_MAX`] are under way.
    pub(crate) fn begin(
        &mut self,
        session: SessionIndex,
        header: RequestHeader,
        inode: Inode,
        request: Request,
    ) -> Option<OperationId> {
        let index = self.take_place()?;
        let operation = &mut self.slab[index as usize];
        operation.generation = operation.generation.wrapping_add(1);
        operation.state = State::Runnable;
        operation.session = session;
        operation.header = header;
        operation.inode = inode;
        operation.request = request;
        operation.windows.clear();
        operation.deadline = Nanos(u64::MAX);
        operation.failure = Status::OK;
        operation.silent = false;
        operation.severed = false;
        operation.dead = false;
        operation.cancelled = false;
        operation.direct = false;
        operation.refused = 0;
        operation.order = 0;
        operation.passed = None;
        operation.needed = 0;
        Some(OperationId { index, generation: operation.generation })
    }

    /// Begins a read whose only grant is about to leave, as the last member of a live list, given the
    /// one before. `None` when [`OPERATIONS_MAX`] are under way.
    #[inline(always)]
    pub(crate) fn begin_plain_read(
        &mut self,
        tail: &mut u32,
        read: PlainRead,
    ) -> Option<OperationId> {
        let index = self.take_place()?;
        let before = std::mem::replace(tail, index);
        if before != NONE {
            self.slab[before as usize].next = index;
        }
        let operation = &mut self.slab[index as usize];
        operation.generation = operation.generation.wrapping_add(1);
        operation.outstanding = 1;
        operation.lost = 0;
        operation.state = State::Granted;
        operation.session = read.session;
        operation.silent = false;
        operation.severed = false;
        operation.dead = false;
        operation.cancelled = false;
        operation.direct = read.direct;
        operation.live = true;
        operation.end_of_file = read.end_of_file;
        operation.header = read.header;
        operation.failure = Status::OK;
        operation.previous = before;
        operation.next = NONE;
        operation.inode = read.inode;
        operation.start = read.start;
        operation.offset = read.offset;
        operation.length = read.length;
        operation.request = Request::ReadGranted;
        Some(OperationId { index, generation: operation.generation })
    }

    /// The operation, if it is a read that the data servers answer and that has one grant out, none
    /// lost, and pins nothing.
    #[inline]
    pub(crate) fn plain_read(&self, id: OperationId) -> Option<&Operation> {
        let operation = self.slab.get(id.index as usize)?;
        let is_plain = operation.generation == id.generation
            && operation.state == State::Granted
            && (operation.outstanding, operation.lost) == (1, 0)
            && operation.direct
            && !operation.silent
            && operation.pinned.is_empty()
            && matches!(operation.request, Request::ReadGranted);
        is_plain.then_some(operation)
    }

    /// Ends what [`Operations::plain_read`] found, with its grant. Returns the new last member of the
    /// live list if it was the last.
    #[inline]
    pub(crate) fn end_plain_read(&mut self, id: OperationId) -> Option<u32> {
        let operation = &mut self.slab[id.index as usize];
        debug_assert!(operation.live && operation.holding == NONE && operation.staged.is_empty());
        let (previous, next) = (operation.previous, operation.next);
        operation.outstanding = 0;
        operation.live = false;
        operation.state = State::Free;
        operation.request = Request::None;
        if previous != NONE {
            self.slab[previous as usize].next = next;
        }
        if next != NONE {
            self.slab[next as usize].previous = previous;
        }
        self.free.push(id.index);
        (next == NONE).then_some(previous)
    }

    #[inline]
    fn take_place(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| self.add_place())
    }

    #[cold]
    fn add_place(&mut self) -> Option<u32> {
        if self.slab.len() == OPERATIONS_MAX {
            return None;
        }
        self.slab.push(Operation::empty());
        Some((self.slab.len() - 1) as u32)
    }

    /// Ends an operation that is live nowhere and pins and stages nothing.
    pub(crate) fn end(&mut self, id: OperationId) {
        let Some(operation) = self.find_mut(id) else { return };
        debug_assert!(!operation.live && operation.outstanding == 0 && operation.lost == 0);
        debug_assert!(operation.pinned.is_empty() && operation.staged.is_empty());
        debug_assert!(operation.holding == NONE);
        operation.state = State::Free;
        operation.request = Request::None;
        self.free.push(id.index);
    }

    /// The operation, if it is still under way.
    pub(crate) fn find(&self, id: OperationId) -> Option<&Operation> {
        let operation = self.slab.get(id.index as usize)?;
        (operation.generation == id.generation && operation.state != State::Free)
            .then_some(operation)
    }

    /// The operation, if it is still under way.
    pub(crate) fn find_mut(&mut self, id: OperationId) -> Option<&mut Operation> {
        let operation = self.slab.get_mut(id.index as usize)?;
        (operation.generation == id.generation && operation.state != State::Free)
            .then_some(operation)
    }

    /// All operations under way.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (OperationId, &Operation)> {
        self.slab.iter().enumerate().filter(|(_, operation)| operation.state != State::Free).map(
            |(index, operation)| {
                let generation = operation.generation;
                (OperationId { index: index as u32, generation }, operation)
            },
        )
    }

    /// Links an operation at the end of a live list, given its last member.
    pub(crate) fn link(&mut self, id: OperationId, tail: &mut u32, start: u64) {
        let before = *tail;
        if before != NONE {
            self.slab[before as usize].next = id.index;
        }
        let operation = &mut self.slab[id.index as usize];
        debug_assert!(!operation.live);
        operation.live = true;
        operation.start = start;
        operation.previous = before;
        operation.next = NONE;
        *tail = id.index;
    }

    /// Takes an operation out of its live list and hands on what it pinned: to another member, or
    /// to `free`. Returns the new last member if it was the last.
    pub(crate) fn unlink(&mut self, id: OperationId, mut free: impl FnMut(Pinned)) -> Option<u32> {
        let operation = &mut self.slab[id.index as usize];
        debug_assert!(operation.live);
        operation.live = false;
        let (previous, next) = (operation.previous, operation.next);
        let mut pinned = std::mem::take(&mut operation.pinned);
        if previous != NONE {
            self.slab[previous as usize].next = next;
        }
        if next != NONE {
            self.slab[next as usize].previous = previous;
        }
        for run in pinned.drain(..) {
            let heir = self
                .member(previous, |operation| operation.previous, &run)
                .or_else(|| self.member(next, |operation| operation.next, &run));
            match heir {
                Some(heir) => self.slab[heir as usize].pinned.push(run),
                None => free(run),
            }
        }
        self.slab[id.index as usize].pinned = pinned;
        (next == NONE).then_some(previous)
    }

    /// Pins a run by a live operation that may refer to it. `false` if there is none.
    pub(crate) fn pin(&mut self, tail: u32, run: Pinned) -> bool {
        match self.member(tail, |operation| operation.previous, &run) {
            Some(index) => {
                self.slab[index as usize].pinned.push(run);
                true
            }
            None => false,
        }
    }

    fn member(&self, from: u32, step: impl Fn(&Operation) -> u32, run: &Pinned) -> Option<u32> {
        let mut index = from;
        while index != NONE {
            let operation = &self.slab[index as usize];
            if (run.birth..run.freed).contains(&operation.start) {
                return Some(index);
            }
            index = step(operation);
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use gannet_proto::Block;

    fn run(birth: u64, freed: u64) -> Pinned {
        let span = Span { store: StoreId(1), block: Block(birth), blocks: 1 };
        Pinned { shard: ShardId(0), span, birth, freed, lsn: Lsn(0) }
    }

    #[test]
    fn only_operations_that_may_refer_to_a_run_pin_it() {
        let mut operations = Operations::default();
        let mut tail = NONE;
        let mut begin = |operations: &mut Operations, start| {
            let id = operations
                .begin(SessionIndex(0), RequestHeader::default(), Inode(1), Request::None)
                .unwrap();
            operations.link(id, &mut tail, start);
            id
        };
        let first = begin(&mut operations, 5);
        let second = begin(&mut operations, 8);
        let third = begin(&mut operations, 8);
        let tail = third.index;
        // Mapped after the first began, unmapped before the others did.
        assert!(!operations.pin(tail, run(6, 8)));
        // Mapped before all, unmapped after all: one after the other keeps it.
        assert!(operations.pin(tail, run(1, 9)));
        // Only the first may refer to this one.
        assert!(operations.pin(tail, run(2, 6)));
        let mut freed = Vec::new();
        let mut end = |operations: &mut Operations, id| {
            operations.unlink(id, |run| freed.push(run.birth));
            operations.end(id);
            freed.clone()
        };
        assert!(end(&mut operations, third).is_empty());
        assert_eq!(end(&mut operations, first), [2]);
        assert_eq!(end(&mut operations, second), [2, 1]);
        assert_eq!(operations.live(), 0);
    }

    #[test]
    fn a_name_of_an_ended_operation_finds_nothing() {
        let mut operations = Operations::default();
        let begin = |operations: &mut Operations| {
            operations
                .begin(SessionIndex(0), RequestHeader::default(), Inode(1), Request::None)
                .unwrap()
        };
        let old = begin(&mut operations);
        operations.end(old);
        let new = begin(&mut operations);
        assert_eq!(old.index, new.index);
        assert!(operations.find(old).is_none() && operations.find(new).is_some());
        assert_eq!(OperationId::from_token(new.token()), new);
    }
}
