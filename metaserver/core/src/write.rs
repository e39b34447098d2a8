//! WRITE: hold a range, stage fresh blocks, let data servers fill them, commit.
//!
//! Nothing of the file changes before every data server confirmed that its part is durable; then
//! one record maps all of it. An edge that does not fall on a block boundary is merged by the data
//! server from the old block, so the fresh block lies on the same store. Until the commit, or until
//! an abort's grants are retired, the range is held, so the old block stays what it was.

use gannet_proto::control::{Grant, grant_flags, grant_operation};
use gannet_proto::data::Trailer;
use gannet_proto::limits::{BLOCK_BYTES, FILE_BYTES_MAX};
use gannet_proto::operations::{Window, Write, io_flags};
use gannet_proto::{Block, Inode, Status, TargetId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::buffer::Buffer;
use crate::extents::Extent;
use crate::holds::{Acquired, Blocks, Range};
use crate::identities::WRITE;
use crate::operations::{NONE, OperationId, Request, Run, State};
use crate::read::GrantBase;
use crate::record::{self, Change, ExtentList, IoKept, Reply};
use crate::reply::{Context, ReplyKind, TargetTail};
use crate::staging::{BLOCK, Edges, Obstacle, Place};
use crate::{Core, Lsn, Now, SessionIndex, Sink};

impl Core {
    /// WRITE, with the windows that [`Write::windows`] found in it.
    pub fn write(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &Write,
        windows: &[Window],
        sink: &mut impl Sink,
    ) {
        self.counters.writes += 1;
        if let Some(mut context) = self.admit(session, &request.header, ReplyKind::Io, sink) {
            let inode = request.handle.inode();
            let kept = Request::Write(*request);
            let kind = ReplyKind::Io;
            let id = self.ensure_operation(&mut context, kind, inode, kept, windows, sink);
            if id.is_some() {
                let buffer = Buffer::new(request.flags.get(), request.buffer, windows);
                self.start_write(now, context, request, buffer, sink);
            }
        }
        self.settle(now, sink);
    }

    /// Executes a write from the start, or from where it had to wait.
    pub(crate) fn start_write(
        &mut self,
        now: Now,
        context: Context,
        request: &Write,
        buffer: Buffer<'_>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        if let Some(operation) = self.operations.find_mut(id) {
            operation.request = Request::Write(*request);
        }
        match self.prepare_write(id, &context, request) {
            Ok(true) => {
                let (inode, identity) = (request.handle.inode(), request.identity.get());
                self.drop_set_id(now, &context, inode, identity, sink);
                self.grant_write(now, &context, (request, buffer), sink);
            }
            Ok(false) => {}
            Err(status) => self.answer_status(&context, ReplyKind::Io, status, sink),
        }
    }

    /// Checks a write and holds its range. `false`: it waits for the range.
    fn prepare_write(
        &mut self,
        id: OperationId,
        context: &Context,
        request: &Write,
    ) -> Result<bool, Status> {
        let inode = self.inode_of(context, &request.handle)?;
        let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
        let file = node.file().ok_or(Status::IS_DIRECTORY)?;
        let size = file.size;
        self.check_io(context.session, request.identity.get(), node, WRITE)?;
        let place = Core::place_of(request, size).ok_or(Status::FILE_TOO_LARGE)?;
        let held = self.operations.find(id).is_some_and(|operation| operation.holding != NONE);
        if held {
            return Ok(true);
        }
        let range = Core::range_of_write(request, place, size);
        self.acquire_hold(id, inode, range)
    }

    /// Holds a range of a file for an operation. `false`: it waits.
    ///
    /// # Errors
    /// `AGAIN` if too many wait.
    pub(crate) fn acquire_hold(
        &mut self,
        id: OperationId,
        inode: Inode,
        range: Range,
    ) -> Result<bool, Status> {
        let file = self.nodes.get_mut(&inode).and_then(|node| node.file_mut());
        let file = file.ok_or(Status::STALE_HANDLE)?;
        let acquired = self.holds.acquire(file.holds, inode, id, range);
        let (Acquired::Held(table) | Acquired::Waits(table)) = acquired else {
            return Err(Status::AGAIN);
        };
        file.holds = table;
        let held = matches!(acquired, Acquired::Held(_));
        self.counters.parked += u64::from(!held);
        if let Some(operation) = self.operations.find_mut(id) {
            operation.holding = table;
            if !held {
                operation.state = State::AwaitingHold;
            }
        }
        Ok(held)
    }

    /// Lets go of what an operation holds or awaits, and wakes who can go on.
    pub(crate) fn release_hold(&mut self, id: OperationId) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        let table = std::mem::replace(&mut operation.holding, NONE);
        if table == NONE {
            return;
        }
        let inode = self.holds.inode(table);
        let file = self.nodes.get_mut(&inode).and_then(|node| node.file_mut());
        if self.holds.release(table, id) {
            if let Some(file) = file {
                file.holds = NONE;
            }
            return;
        }
        let size = file.map_or(0, |file| file.size);
        let operations = &self.operations;
        let range = |id| match operations.find(id).map(|operation| &operation.request) {
            Some(Request::Write(write)) => match Core::place_of(write, size) {
                Some(place) => Core::range_of_write(write, place, size),
                None => Range::from_block(0),
            },
            _ => Range::from_block(0),
        };
        let runnable = &mut self.waiting.runnable;
        self.holds.wake(table, range, |id| runnable.push_back(id));
    }

    /// Where the bytes of a write go in a file of `size` bytes.
    fn place_of(request: &Write, size: u64) -> Option<Place> {
        let append = request.flags.get() & io_flags::APPEND != 0;
        let offset = if append { size } else { request.offset.get() };
        let end = offset.checked_add(request.length.get().into())?;
        (end <= FILE_BYTES_MAX).then_some(Place { offset, end })
    }

    /// What a write holds. A last block that it fills partly is exclusive even beyond the end of
    /// the file: a write beside it may make the rest of the block part of the file.
    fn range_of_write(request: &Write, place: Place, size: u64) -> Range {
        if request.flags.get() & io_flags::APPEND != 0 {
            return Range::from_block(size / BLOCK);
        }
        let (first, last) = (place.first(), place.last());
        let block = |number| Blocks { first: number, end: number + 1 };
        let mut exclusive = [Blocks::default(); 2];
        if !place.offset.is_multiple_of(BLOCK) {
            exclusive[0] = block(first);
        }
        if !place.end.is_multiple_of(BLOCK) {
            exclusive[1] = block(last);
        }
        Range { all: Blocks { first, end: last + 1 }, exclusive }
    }

    /// Stages blocks for a write that holds its range, and sends its grants.
    fn grant_write(
        &mut self,
        now: Now,
        context: &Context,
        (request, buffer): (&Write, Buffer<'_>),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let inode = request.handle.inode();
        if !self.choose_layout(now, context, inode, sink) {
            return self.park_for_target(now, id);
        }
        let Some(node) = self.nodes.get(&inode) else { return };
        let Some(file) = node.file() else { return };
        let (set, size, lsn) = (file.set.clone(), file.size, node.lsn);
        let Some(place) = Core::place_of(request, size) else { return };
        let staged = self.edges(inode, place).and_then(|edges| {
            let staged = self.stage(id, context.shard(), &set, place, &edges)?;
            // A write that was shortened ends with a whole block.
            let tail = edges.tail.filter(|_| staged.end == place.end);
            Ok((Edges { tail, ..edges }, staged))
        });
        let (edges, place) = match staged {
            Ok(staged) => staged,
            Err(obstacle) => {
                self.unstage(id);
                return match obstacle {
                    Obstacle::Status(status) => {
                        self.answer_status(context, ReplyKind::Io, status, sink);
                    }
                    Obstacle::Absent => self.park_for_target(now, id),
                    Obstacle::NoZone(store) => {
                        self.park_for_zone(id, context.shard(), store, sink);
                    }
                };
            }
        };
        self.request_zones_ahead(id, context.shard(), sink);
        let mut targets = [TargetId(0); gannet_proto::limits::PARTS_MAX];
        let mut count = 0;
        if let Some(operation) = self.operations.find(id) {
            for (slot, run) in targets.iter_mut().zip(&operation.staged) {
                *slot = self.targets.store(run.span.store).map_or(*slot, |store| store.target);
                count += 1;
            }
        }
        let targets = &targets[..count];
        let length = request.length.get();
        let checked = self.check_buffer(context, targets.iter().copied(), buffer, length);
        match checked {
            Ok(()) => {}
            Err(Status::STALE_SET) => {
                let mut tail = TargetTail::default();
                targets.iter().for_each(|target| tail.push(*target));
                return self.answer_stale_set(context, tail, inode, sink);
            }
            Err(status) => return self.answer_status(context, ReplyKind::Io, status, sink),
        }
        let resumed = self.operations.find(id).is_some_and(|operation| operation.needed != 0);
        if let Some((target, needed)) = self.without_room(targets.iter().copied(), resumed) {
            self.unstage(id);
            return self.park_for_credit(id, target, needed);
        }
        self.send_write(context, (request, buffer), (place, &edges), (targets, lsn), sink);
    }

    /// Sends the grants of a write whose blocks are staged.
    fn send_write(
        &mut self,
        context: &Context,
        (request, buffer): (&Write, Buffer<'_>),
        (place, edges): (Place, &Edges),
        (targets, lsn): (&[TargetId], Lsn),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let total = (place.end - place.offset) as u32;
        self.begin_granted(id, targets.len(), place.offset, total);
        let session = self.sessions.view(context.session).map_or(0, |session| session.id.0);
        for (index, target) in targets.iter().enumerate() {
            let Some(operation) = self.operations.find(id) else { return };
            let run = operation.staged[index];
            let run_end = run.file_block + u64::from(run.span.blocks);
            let start = (run.file_block * BLOCK).max(place.offset);
            let end = (run_end * BLOCK).min(place.end);
            let trailer = Trailer {
                request: context.header,
                part: U16::new(index as u16),
                parts: U16::new(targets.len() as u16),
                total_bytes: U32::new(total),
                ..Trailer::default()
            };
            let mut grant = Grant {
                store: U32::new(run.span.store.0),
                generation: U32::new(run.generation),
                operation: grant_operation::WRITE,
                flags: grant_flags::NOTIFY_METASERVER,
                offset: U32::new((start % BLOCK) as u32),
                block: U64::new(run.span.block.0),
                length: U32::new((end - start) as u32),
                head_block: U64::new(Block::NONE.0),
                tail_block: U64::new(Block::NONE.0),
                ..Grant::default()
            };
            if let Some(head) = edges.head.filter(|_| run.file_block == place.first()) {
                grant.head_block = U64::new(head.block_of(place.first()).0);
                grant.head_valid = U32::new(head.valid_in(place.first()));
            }
            if let Some(tail) = edges.tail.filter(|_| run_end == place.last() + 1) {
                grant.tail_block = U64::new(tail.block_of(place.last()).0);
                grant.tail_valid = U32::new(tail.valid_in(place.last()));
            }
            grant.trailer.copy_from_slice(trailer.as_bytes());
            let base = GrantBase {
                context: *context,
                id,
                session,
                buffer,
                length: request.length.get(),
                after: lsn.max(run.lsn),
            };
            self.send_grant(&base, *target, start - place.offset, &mut grant, sink);
        }
        self.counters.write_bytes += u64::from(total);
    }

    /// All grants of a write are retired.
    pub(crate) fn finish_write(&mut self, now: Now, id: OperationId, sink: &mut impl Sink) {
        self.unlink_live(id);
        self.fail_if_replaced(id);
        let failure = self.failure_of(id);
        let Some((context, kind)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find(id) else { return };
        if operation.dead && !self.defects.attempts() {
            return self.end_operation(&context);
        }
        let inode = operation.inode;
        let file = self.nodes.get(&inode).and_then(|node| node.file());
        match file.map(|file| file.size) {
            Some(size) if failure.is_ok() => self.commit_write(now, id, &context, size, sink),
            None if failure.is_ok() => {
                self.answer_status(&context, kind, Status::STALE_HANDLE, sink);
            }
            _ => self.answer_status(&context, kind, failure, sink),
        }
    }

    /// Fails a write of which a part went to a store that has lost its content since: the data
    /// server confirmed that part, and then came back with a new generation while other grants were
    /// out. The whole write is to be done again.
    fn fail_if_replaced(&mut self, id: OperationId) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        let replaced = |run: &Run| {
            let store = self.targets.store(run.span.store);
            store.is_none_or(|store| store.generation != run.generation)
        };
        if operation.failure.is_ok() && operation.staged.iter().any(replaced) {
            operation.failure = Status::RETRY;
            operation.silent = true;
        }
    }

    fn commit_write(
        &mut self,
        now: Now,
        id: OperationId,
        context: &Context,
        size: u64,
        sink: &mut impl Sink,
    ) {
        let Some(operation) = self.operations.find(id) else { return };
        let (inode, offset, length) = (operation.inode, operation.offset, operation.length);
        let size = size.max(offset + u64::from(length));
        let mut bytes = std::mem::take(&mut self.scratch.extents);
        bytes.clear();
        let count = operation.staged.len();
        for (index, run) in operation.staged.iter().enumerate() {
            let last = index + 1 == count;
            let extent = Extent {
                file_block: run.file_block,
                blocks: run.span.blocks,
                store: run.span.store,
                block: run.span.block,
                generation: run.generation,
                tail_valid: if last { operation.tail_valid } else { BLOCK_BYTES as u16 },
                birth: self.clock + 1,
            };
            record::push_extent(&mut bytes, &extent);
        }
        let io = IoKept {
            offset: U64::new(offset),
            size: U64::new(size),
            length: U32::new(length),
            reserved: U32::ZERO,
        };
        let origin = self.origin(now, context, Reply::Io(io));
        let extents = ExtentList::new(&bytes, count as u16);
        // The blocks are the file's from here on.
        if let Some(operation) = self.operations.find_mut(id) {
            operation.staged.clear();
        }
        let change = Change::WriteCommitted { inode, size, extents };
        let (after, kept) = self.commit(&origin, &change, sink);
        self.scratch.extents = bytes;
        self.answer_io(context, after, io, false, kept, sink);
    }
}
