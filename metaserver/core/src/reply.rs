//! Admission of requests and their answers.
//!
//! A request is judged by its slot before anything else; an answer leaves only for the request that
//! the slot still carries. Answers that depend on something absent, or on several things, wait for
//! the last record of the reactor, which is never too early (rule H14).

use gannet_proto::limits::{SHARDS, SLOTS_MAX, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::{Attributes, DirectoryReply, EntryReply, IoReply, RequestHeader};
use gannet_proto::slots::{Admission, Slot};
use gannet_proto::xattr::XattrReply;
use gannet_proto::{Handle, Inode, ShardId, Status, TargetId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::operations::{OperationId, Request, State};
use crate::record::{IoKept, Origin, Reply};
use crate::sessions::KeptReply;
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// Which message answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    Entry,
    Directory,
    Io,
    Xattr,
}

/// A request that is being executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub session: SessionIndex,
    pub header: RequestHeader,
    /// Its operation once it had to wait.
    pub operation: Option<OperationId>,
}

impl Context {
    /// The shard asked.
    pub(crate) fn shard(&self) -> ShardId {
        ShardId(self.header.shard.get())
    }
}

/// Data servers in the tail of a reply.
#[derive(Default)]
pub(crate) struct TargetTail {
    targets: [U32; TARGETS_PER_FILE_MAX],
    len: usize,
}

impl TargetTail {
    /// Appends a data server once.
    pub(crate) fn push(&mut self, target: TargetId) {
        let target = U32::new(target.0);
        if self.len < self.targets.len() && !self.targets[..self.len].contains(&target) {
            self.targets[self.len] = target;
            self.len += 1;
        }
    }

    /// Number of data servers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// As a reply carries them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.targets[..self.len].as_bytes()
    }
}

impl Core {
    /// Judges a request. `None`: it was answered, or there is nothing to do.
    pub(crate) fn admit(
        &mut self,
        session: SessionIndex,
        header: &RequestHeader,
        kind: ReplyKind,
        sink: &mut impl Sink,
    ) -> Option<Context> {
        let context = Context { session, header: *header, operation: None };
        let refuse = |core: &mut Core, status, sink: &mut _| {
            core.send_status(&context, kind, status, core.last_lsn, sink);
            None
        };
        if usize::from(header.shard.get()) >= SHARDS {
            return refuse(self, Status::INVALID, sink);
        }
        if !self.is_ours(context.shard()) {
            return refuse(self, Status::WRONG_SHARD, sink);
        }
        if !self.ready {
            self.counters.retries += 1;
            return refuse(self, Status::RETRY, sink);
        }
        if header.slot.get() >= self.config.slots.min(SLOTS_MAX as u16) {
            return refuse(self, Status::INVALID, sink);
        }
        let known = self.sessions.find(session)?;
        let slot = known.slot(context.shard(), header.slot.get());
        match slot.admit(header.sequence.get(), header.attempt.get()) {
            Admission::New | Admission::Again => Some(context),
            Admission::Supersedes(id) => self.supersede(id, &context, sink).then_some(context),
            Admission::Duplicate => {
                self.counters.duplicates += 1;
                None
            }
            Admission::BadSequence => {
                self.counters.bad_sequences += 1;
                refuse(self, Status::BAD_SEQUENCE, sink)
            }
            Admission::Replay(kept) => {
                self.counters.replays += 1;
                self.send_kept(&context, &kept, sink);
                None
            }
        }
    }

    /// A later attempt of a request under way came. `false`: the operation goes on and will answer
    /// the later attempt, since what it began at other shards cannot be undone.
    fn supersede(&mut self, id: OperationId, context: &Context, sink: &mut impl Sink) -> bool {
        let Some(operation) = self.operations.find_mut(id) else { return true };
        if operation.state == State::AwaitingPeer || matches!(operation.request, Request::Name(_)) {
            operation.header.attempt = context.header.attempt;
            let header = context.header;
            if let Some(session) = self.sessions.find(context.session) {
                let slot = session.slot(context.shard(), header.slot.get());
                slot.slot.begin(header.sequence.get(), header.attempt.get(), id);
            }
            return false;
        }
        self.kill(id, sink);
        true
    }

    /// Notes in the slot that the request is under way as `id`.
    pub(crate) fn begin_slot(&mut self, context: &Context, id: OperationId) {
        let header = &context.header;
        if let Some(session) = self.sessions.find(context.session) {
            let slot = session.slot(context.shard(), header.slot.get());
            slot.slot.begin(header.sequence.get(), header.attempt.get(), id);
        }
    }

    /// Whether the slot still waits for the answer of this request.
    pub(crate) fn carries(&mut self, context: &Context) -> bool {
        let Some(id) = context.operation else { return true };
        match self.operations.find(id) {
            Some(operation) if !operation.dead => {}
            _ => return false,
        }
        let slot = context.header.slot.get();
        let session = self.sessions.find(context.session);
        session.is_some_and(|session| session.slot(context.shard(), slot).carries(id))
    }

    /// Notes the answer in the slot. `false`: nobody waits for it.
    pub(crate) fn answer_slot(&mut self, context: &Context, kept: Option<KeptReply>) -> bool {
        if !self.carries(context) {
            return false;
        }
        let header = &context.header;
        let Some(session) = self.sessions.find(context.session) else { return false };
        let slot = session.slot(context.shard(), header.slot.get());
        slot.slot.answer(header.sequence.get(), header.attempt.get(), kept);
        true
    }

    fn connected(&self, session: SessionIndex) -> bool {
        self.sessions.view(session).is_some_and(|session| session.connected)
    }

    /// Answers a request with a status alone, and ends its operation.
    pub(crate) fn answer_status(
        &mut self,
        context: &Context,
        kind: ReplyKind,
        status: Status,
        sink: &mut impl Sink,
    ) {
        if self.answer_slot(context, None) {
            self.counters.retries += u64::from(status == Status::RETRY);
            self.send_status(context, kind, status, self.last_lsn, sink);
        }
        self.end_operation(context);
    }

    pub(crate) fn send_status(
        &self,
        context: &Context,
        kind: ReplyKind,
        status: Status,
        after: Lsn,
        sink: &mut impl Sink,
    ) {
        if !self.connected(context.session) {
            return;
        }
        let header = context.header.reply(status);
        match kind {
            ReplyKind::Entry => {
                let reply = EntryReply { header, ..EntryReply::default() };
                sink.reply(context.session, after, &reply, &[]);
            }
            ReplyKind::Directory => {
                let reply = DirectoryReply { header, ..DirectoryReply::default() };
                sink.reply(context.session, after, &reply, &[]);
            }
            ReplyKind::Xattr => {
                let reply = XattrReply { header, ..XattrReply::default() };
                sink.reply(context.session, after, &reply, &[]);
            }
            ReplyKind::Io => {
                let reply = IoReply { header, ..IoReply::default() };
                sink.reply(context.session, after, &reply, &[]);
            }
        }
    }

    /// Answers a request with attributes, and ends its operation.
    pub(crate) fn answer_entry(
        &mut self,
        context: &Context,
        after: Lsn,
        (attributes, consumed): (Attributes, usize),
        kept: Option<KeptReply>,
        sink: &mut impl Sink,
    ) {
        if self.answer_slot(context, kept) {
            self.send_entry(context, after, attributes, consumed, sink);
        }
        self.end_operation(context);
    }

    fn send_entry(
        &self,
        context: &Context,
        after: Lsn,
        attributes: Attributes,
        consumed: usize,
        sink: &mut impl Sink,
    ) {
        if !self.connected(context.session) {
            return;
        }
        let tail = self.targets_of(attributes.handle.inode());
        let reply = EntryReply {
            header: context.header.reply(Status::OK),
            attributes,
            consumed: U16::new(consumed as u16),
            targets: U16::new(tail.len as u16),
            ..EntryReply::default()
        };
        sink.reply(context.session, after, &reply, &[tail.bytes()]);
    }

    /// Answers a read or write, and ends its operation.
    pub(crate) fn answer_io(
        &mut self,
        context: &Context,
        after: Lsn,
        io: IoKept,
        end_of_file: bool,
        kept: Option<KeptReply>,
        sink: &mut impl Sink,
    ) {
        if self.answer_slot(context, kept) {
            self.send_io(context, after, io, end_of_file, sink);
        }
        self.end_operation(context);
    }

    fn send_io(
        &self,
        context: &Context,
        after: Lsn,
        io: IoKept,
        end_of_file: bool,
        sink: &mut impl Sink,
    ) {
        if !self.connected(context.session) {
            return;
        }
        let reply = IoReply {
            header: context.header.reply(Status::OK),
            offset: io.offset,
            size: io.size,
            length: io.length,
            end_of_file: U16::new(end_of_file.into()),
            ..IoReply::default()
        };
        sink.reply(context.session, after, &reply, &[]);
    }

    /// Answers `STALE_SET` with the data servers that the request needs: those of `tail`, and the
    /// file's.
    pub(crate) fn answer_stale_set(
        &mut self,
        context: &Context,
        mut tail: TargetTail,
        inode: Inode,
        sink: &mut impl Sink,
    ) {
        self.push_targets(inode, &mut tail);
        self.counters.stale_sets += 1;
        if self.answer_slot(context, None) && self.connected(context.session) {
            let reply = IoReply {
                header: context.header.reply(Status::STALE_SET),
                targets: U16::new(tail.len as u16),
                ..IoReply::default()
            };
            sink.reply(context.session, self.last_lsn, &reply, &[tail.bytes()]);
        }
        self.end_operation(context);
    }

    fn send_kept(&self, context: &Context, kept: &KeptReply, sink: &mut impl Sink) {
        match kept {
            KeptReply::Entry(attributes) => {
                self.send_entry(context, self.last_lsn, *attributes, 0, sink);
            }
            KeptReply::Io(io) => self.send_io(context, self.last_lsn, *io, false, sink),
            KeptReply::Xattr => self.send_xattr(context, self.last_lsn, (0, &[]), sink),
        }
    }

    /// The data servers of a file of this reactor.
    fn targets_of(&self, inode: Inode) -> TargetTail {
        let mut tail = TargetTail::default();
        self.push_targets(inode, &mut tail);
        tail
    }

    fn push_targets(&self, inode: Inode, tail: &mut TargetTail) {
        if let Some(file) = self.nodes.get(&inode).and_then(|node| node.file()) {
            let stores = file.set.iter().filter_map(|store| self.targets.store(store));
            stores.for_each(|store| tail.push(store.target));
        }
    }

    /// Ends the operation of an answered request: it awaits nothing and holds nothing any more.
    pub(crate) fn end_operation(&mut self, context: &Context) {
        if let Some(id) = context.operation {
            self.unlink_live(id);
            self.unstage(id);
            self.release_hold(id);
            self.operations.end(id);
        }
    }

    /// Where a change for a request comes from. The record names the request if its answer is
    /// still awaited.
    pub(crate) fn origin(&mut self, now: Now, context: &Context, reply: Reply) -> Origin {
        let awaited = self.carries(context);
        let operation = match context.operation.and_then(|id| self.operations.find(id)) {
            Some(operation) if operation.order != 0 => operation.order,
            _ => self.next_operation(),
        };
        let shard = Some(context.shard());
        let none = Origin { operation, ..self.origin_of_core_with(now, shard, operation) };
        match self.sessions.find(context.session) {
            Some(session) if awaited && reply != Reply::None => {
                session.durable = true;
                Origin {
                    session: session.id.0,
                    instance: session.instance,
                    sequence: context.header.sequence.get(),
                    slot: context.header.slot.get(),
                    reply,
                    ..none
                }
            }
            _ => none,
        }
    }

    /// Where a change comes from that belongs to no request of a host.
    pub(crate) fn origin_of_core(&mut self, now: Now, shard: Option<ShardId>) -> Origin {
        let operation = self.next_operation();
        self.origin_of_core_with(now, shard, operation)
    }

    /// The same, as a part of an operation.
    pub(crate) fn origin_of_core_with(
        &self,
        now: Now,
        shard: Option<ShardId>,
        operation: u64,
    ) -> Origin {
        Origin {
            shard,
            operation,
            session: 0,
            instance: 0,
            sequence: 0,
            slot: 0,
            time_ns: now.wall_ns as i64,
            reply: Reply::None,
        }
    }

    /// The inode that a handle of the request names, if it can belong to the shard asked.
    ///
    /// # Errors
    /// `INVALID` for an inode of another shard, `STALE_HANDLE` for one that nobody gave out.
    pub(crate) fn inode_of(&self, context: &Context, handle: &Handle) -> Result<Inode, Status> {
        let inode = handle.inode();
        match inode.shard() {
            None => Err(Status::STALE_HANDLE),
            Some(shard) if shard != context.shard() => Err(Status::INVALID),
            Some(_) if handle.file_system.get() != 0 || handle.generation.get() != 0 => {
                Err(Status::STALE_HANDLE)
            }
            Some(_) => Ok(inode),
        }
    }

    /// Answers a read without data.
    pub(crate) fn zeros(offset: u64, length: u32) -> IoKept {
        IoKept {
            offset: U64::new(offset),
            size: U64::ZERO,
            length: U32::new(length),
            reserved: U32::ZERO,
        }
    }

    /// Marks the slot of a read: its arrival notices answer it.
    pub(crate) fn delegate(&mut self, context: &Context) {
        if let Some(session) = self.sessions.find(context.session) {
            let slot = session.slot(context.shard(), context.header.slot.get());
            if let Slot::Busy { .. } = slot.slot {
                slot.slot.delegate();
            }
        }
    }
}
