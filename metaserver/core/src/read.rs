//! READ: from a range of a file to grants.
//!
//! The extents of the range become parts, at most one grant each; holes become zero tails of the
//! parts before them, or parts of their own. A range without any data is answered from here. The
//! grants carry what the map said, so they leave when the map's last change is durable.

use gannet_proto::control::{Grant, grant_flags, grant_operation};
use gannet_proto::data::Trailer;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::operations::{Read, Window, io_flags};
use gannet_proto::{Status, StoreId, TargetId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::buffer::{Buffer, HostMemory};
use crate::extents::Extent;
use crate::identities::READ;
use crate::namespace::File;
use crate::operations::{OperationId, Request, State};
use crate::reply::{Context, ReplyKind, TargetTail};
use crate::targets::Targets;
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// One grant to be: consecutive bytes of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub store: StoreId,
    pub target: TargetId,
    pub generation: u32,
    /// First block in the store.
    pub block: u64,
    /// Bytes into that block.
    pub offset: u32,
    /// Bytes of the file.
    pub length: u32,
    /// Of those, the bytes that come from the store.
    pub valid: u32,
    /// Bytes that the part may have without leaving the store.
    room: u64,
}

/// Why a read cannot be granted now.
enum Obstacle {
    /// It cannot be at all.
    Status(Status),
    /// A data server is absent.
    Absent,
}

/// Cuts a range of a file into parts.
struct Planner<'a> {
    targets: &'a Targets,
    parts: &'a mut Vec<Part>,
    parts_max: usize,
    /// Bytes of a hole before the first part.
    leading_zeros: u32,
    /// Bytes planned so far.
    planned: u32,
}

impl Planner<'_> {
    /// Plans `length` bytes of zeros. `false`: no further part fits.
    fn zeros(&mut self, length: u32) -> bool {
        let count = self.parts.len();
        match self.parts.last_mut() {
            None => self.leading_zeros += length,
            Some(part) if u64::from(part.length + length) <= part.room => part.length += length,
            Some(_) if count + usize::from(self.leading_zeros > 0) >= self.parts_max => {
                return false;
            }
            Some(part) => {
                let zeros = Part { offset: 0, length, valid: 0, room: u64::MAX, ..*part };
                self.parts.push(zeros);
            }
        }
        self.planned += length;
        true
    }

    /// Plans `length` bytes from `offset` bytes into an extent, of which `valid` are data.
    fn data(
        &mut self,
        extent: &Extent,
        offset: u64,
        length: u32,
        valid: u32,
    ) -> Result<bool, Obstacle> {
        if valid == 0 {
            return Ok(self.zeros(length));
        }
        let Some(store) = self.targets.store(extent.store) else { return Err(Obstacle::Absent) };
        if store.generation != extent.generation {
            if !store.up && store.generation < extent.generation {
                return Err(Obstacle::Absent);
            }
            return Err(Obstacle::Status(Status::IO));
        }
        if !store.up {
            return Err(Obstacle::Absent);
        }
        let block = extent.block.0 + offset / u64::from(BLOCK_BYTES);
        let inside = (offset % u64::from(BLOCK_BYTES)) as u32;
        if let Some(last) = self.parts.last_mut()
            && last.store == extent.store
            && last.generation == extent.generation
            && last.valid == last.length
            && last.block * u64::from(BLOCK_BYTES) + u64::from(last.offset + last.length)
                == block * u64::from(BLOCK_BYTES) + u64::from(inside)
        {
            // Extents too long to be one, or of different commits, but one run in the store.
            last.length += length;
            last.valid += valid;
            self.planned += length;
            return Ok(true);
        }
        if self.parts.len() + usize::from(self.leading_zeros > 0) >= self.parts_max {
            return Ok(false);
        }
        self.parts.push(Part {
            store: extent.store,
            target: store.target,
            generation: extent.generation,
            block,
            offset: inside,
            length,
            valid,
            room: (store.blocks - block) * u64::from(BLOCK_BYTES) - u64::from(inside),
        });
        self.planned += length;
        Ok(true)
    }

    /// Plans the bytes `from .. until` of a file.
    fn file(&mut self, file: &File, from: u64, until: u64) -> Result<(), Obstacle> {
        let block_bytes = u64::from(BLOCK_BYTES);
        let first = from / block_bytes;
        if let Some(extent) = file.extents.covering(first)
            && extent.file_block * block_bytes + extent.valid_bytes() >= until
        {
            let (offset, length) = (from - extent.file_block * block_bytes, (until - from) as u32);
            self.data(&extent, offset, length, length)?;
            return Ok(());
        }
        let mut position = from;
        for extent in file.extents.from(first) {
            let start = extent.file_block * block_bytes;
            if start >= until {
                break;
            }
            if start > position {
                if !self.zeros((start - position) as u32) {
                    return Ok(());
                }
                position = start;
            }
            let end = (extent.end() * block_bytes).min(until);
            let valid_end = (start + extent.valid_bytes()).clamp(position, end);
            let (length, valid) = ((end - position) as u32, (valid_end - position) as u32);
            if !self.data(&extent, position - start, length, valid)? {
                return Ok(());
            }
            position = end;
        }
        if position < until {
            self.zeros((until - position) as u32);
        }
        Ok(())
    }
}

/// What all grants of a request have in common.
pub(crate) struct GrantBase<'a> {
    pub context: Context,
    pub id: OperationId,
    pub session: u64,
    pub buffer: Buffer<'a>,
    /// Bytes of the request.
    pub length: u32,
    pub after: Lsn,
}

impl Core {
    /// READ, with the windows that [`Read::windows`] found in it.
    pub fn read(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &Read,
        windows: &[Window],
        sink: &mut impl Sink,
    ) {
        self.counters.reads += 1;
        if self.read_plainly(session, request, windows, sink) {
            return;
        }
        if let Some(context) = self.admit(session, &request.header, ReplyKind::Io, sink) {
            let buffer = Buffer::new(request.flags.get(), request.buffer, windows);
            self.start_read(now, context, request, buffer, sink);
        }
        self.settle(now, sink);
    }

    /// Executes a read from the start.
    pub(crate) fn start_read(
        &mut self,
        now: Now,
        mut context: Context,
        request: &Read,
        buffer: Buffer<'_>,
        sink: &mut impl Sink,
    ) {
        let refuse = |core: &mut Core, status, sink: &mut _| {
            core.answer_status(&context, ReplyKind::Io, status, sink);
        };
        let inode = match self.inode_of(&context, &request.handle) {
            Ok(inode) => inode,
            Err(status) => return refuse(self, status, sink),
        };
        let Some(node) = self.nodes.get(&inode) else {
            return refuse(self, Status::STALE_HANDLE, sink);
        };
        let Some(file) = node.file() else { return refuse(self, Status::IS_DIRECTORY, sink) };
        if let Err(status) = self.check_io(context.session, request.identity.get(), node, READ) {
            return refuse(self, status, sink);
        }
        let (offset, wanted) = (request.offset.get(), request.length.get());
        let until = match offset.checked_add(wanted.into()) {
            Some(end) => end.min(file.size),
            None => return refuse(self, Status::INVALID, sink),
        };
        let (after, size) = (node.lsn, file.size);
        if offset >= until {
            return self.answer_io(&context, after, Core::zeros(offset, 0), true, None, sink);
        }
        let mut parts = std::mem::take(&mut self.scratch.parts);
        parts.clear();
        let mut planner = Planner {
            targets: &self.targets,
            parts: &mut parts,
            parts_max: self.parts_max,
            leading_zeros: 0,
            planned: 0,
        };
        let planned = planner.file(file, offset, until);
        let (length, leading_zeros) = (planner.planned, planner.leading_zeros);
        let end_of_file = offset + u64::from(length) == size;
        match planned {
            Ok(()) if parts.is_empty() => {
                let io = Core::zeros(offset, length);
                self.answer_io(&context, after, io, end_of_file, None, sink);
            }
            Ok(()) => {
                if leading_zeros > 0 {
                    let zeros = Part { offset: 0, length: leading_zeros, valid: 0, ..parts[0] };
                    parts.insert(0, zeros);
                }
                let reply = (length, end_of_file, after);
                let asked = (request, buffer);
                self.grant_read(&mut context, asked, &parts, reply, sink);
            }
            Err(Obstacle::Status(status)) => refuse(self, status, sink),
            Err(Obstacle::Absent) => {
                let (kept, kind) = (Request::Read(*request), ReplyKind::Io);
                let windows = buffer.windows();
                let id = self.ensure_operation(&mut context, kind, inode, kept, windows, sink);
                if let Some(id) = id {
                    self.park_for_target(now, id);
                }
            }
        }
        self.scratch.parts = parts;
    }

    /// Sends the grants of a read whose parts are planned, if nothing is missing.
    fn grant_read(
        &mut self,
        context: &mut Context,
        (request, buffer): (&Read, Buffer<'_>),
        parts: &[Part],
        (total, end_of_file, after): (u32, bool, Lsn),
        sink: &mut impl Sink,
    ) {
        let refuse = |core: &mut Core, context: &Context, status, sink: &mut _| {
            core.answer_status(context, ReplyKind::Io, status, sink);
        };
        let targets = parts.iter().map(|part| part.target);
        match self.check_buffer(context, targets, buffer, request.length.get()) {
            Ok(()) => {}
            Err(Status::STALE_SET) => {
                let mut tail = TargetTail::default();
                parts.iter().for_each(|part| tail.push(part.target));
                return self.answer_stale_set(context, tail, request.handle.inode(), sink);
            }
            Err(status) => return refuse(self, context, status, sink),
        }
        let inode = request.handle.inode();
        let resumed = context.operation.is_some();
        let kept = Request::Read(*request);
        let kind = ReplyKind::Io;
        let windows = buffer.windows();
        let id = self.ensure_operation(context, kind, inode, kept, windows, sink);
        let Some(id) = id else { return };
        let targets = parts.iter().map(|part| part.target);
        if let Some((target, needed)) = self.without_room(targets, resumed) {
            return self.park_for_credit(id, target, needed);
        }
        let confirm = request.flags.get() & io_flags::COMPLETE_BY_METASERVER != 0;
        self.begin_granted(id, parts.len(), request.offset.get(), total);
        if let Some(operation) = self.operations.find_mut(id) {
            operation.end_of_file = end_of_file;
            operation.direct = !confirm;
            // Nothing of what was asked is needed any more.
            operation.request = Request::ReadGranted;
        }
        if !confirm {
            self.delegate(context);
        }
        let session = self.sessions.view(context.session).map_or(0, |session| session.id.0);
        let length = request.length.get();
        let base = GrantBase { context: *context, id, session, buffer, length, after };
        let mut done = 0;
        for (index, part) in parts.iter().enumerate() {
            let trailer = Trailer {
                request: context.header,
                part: U16::new(index as u16),
                parts: U16::new(parts.len() as u16),
                total_bytes: U32::new(total),
                end_of_file: end_of_file.into(),
                reserved: [0; 7],
            };
            let mut grant = Grant {
                store: U32::new(part.store.0),
                generation: U32::new(part.generation),
                operation: if part.valid > 0 {
                    grant_operation::READ
                } else {
                    grant_operation::ZERO
                },
                flags: if confirm { grant_flags::NOTIFY_METASERVER } else { 0 },
                offset: U32::new(part.offset),
                block: U64::new(part.block),
                length: U32::new(part.length),
                valid: U32::new(part.valid),
                ..Grant::default()
            };
            grant.trailer.copy_from_slice(trailer.as_bytes());
            self.send_grant(&base, part.target, done, &mut grant, sink);
            done += u64::from(part.length);
        }
        self.counters.read_bytes += u64::from(total);
    }

    /// Checks that the host has named its memory to every data server.
    ///
    /// # Errors
    /// As [`Buffer::at`].
    pub(crate) fn check_buffer(
        &self,
        context: &Context,
        targets: impl Iterator<Item = TargetId>,
        buffer: Buffer<'_>,
        length: u32,
    ) -> Result<(), Status> {
        let session = self.sessions.view(context.session).ok_or(Status::STALE_SET)?;
        let mut checked = TargetId(0);
        for target in targets {
            if target == checked {
                continue;
            }
            buffer.at(&session.registrations, target, length)?;
            checked = target;
        }
        Ok(())
    }

    /// The first data server that has no room for the grants of a request, and how many they are.
    /// A request that comes anew does not overtake those that wait.
    pub(crate) fn without_room(
        &mut self,
        targets: impl Iterator<Item = TargetId> + Clone,
        resumed: bool,
    ) -> Option<(TargetId, u16)> {
        let grants_max = self.config.grants_max;
        let mut checked = TargetId(0);
        for target in targets.clone() {
            if target == checked {
                continue;
            }
            checked = target;
            let known = self.targets.find(target)?;
            if known.waiting.is_empty() && known.has_room(self.parts_max as u32, grants_max) {
                // Room for any request: the usual case.
                continue;
            }
            let needed = targets.clone().filter(|other| *other == target).count();
            let behind = !resumed && !known.waiting.is_empty();
            if behind || !known.has_room(needed as u32, grants_max) {
                return Some((target, needed as u16));
            }
        }
        None
    }

    /// Notes that an operation's grants are about to leave, and makes it live on its inode.
    pub(crate) fn begin_granted(
        &mut self,
        id: OperationId,
        parts: usize,
        offset: u64,
        length: u32,
    ) {
        let start = self.clock;
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.state = State::Granted;
        operation.outstanding = parts as u16;
        operation.lost = 0;
        operation.needed = 0;
        operation.offset = offset;
        operation.length = length;
        let inode = operation.inode;
        if let Some(file) = self.nodes.get_mut(&inode).and_then(|node| node.file_mut()) {
            self.operations.link(id, &mut file.live, start);
        }
    }

    /// Completes a grant and sends it. `done` bytes of the host's buffer belong to parts before.
    pub(crate) fn send_grant(
        &mut self,
        base: &GrantBase<'_>,
        target: TargetId,
        done: u64,
        grant: &mut Grant,
        sink: &mut impl Sink,
    ) {
        let session = self.sessions.view(base.context.session);
        let memory = session
            .and_then(|session| base.buffer.at(&session.registrations, target, base.length).ok());
        let (Some(memory), Some(known)) = (memory, self.targets.find(target)) else { return };
        let HostMemory { epoch, address, key } = memory;
        grant.term = U64::new(self.config.term.0);
        grant.number = U64::new(known.grant(base.id).0);
        grant.session = U64::new(base.session);
        grant.epoch = U64::new(epoch.0);
        grant.shard = base.context.header.shard;
        grant.host_address = U64::new(address + done);
        grant.host_key = U32::new(key);
        self.counters.grants += 1;
        sink.grant(target, base.after, grant);
    }

    /// All grants of a read are retired.
    pub(crate) fn finish_read(&mut self, id: OperationId, sink: &mut impl Sink) {
        let failure = self.failure_of(id);
        let Some((context, kind)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find(id) else { return };
        let io = Core::zeros(operation.offset, operation.length);
        let end_of_file = operation.end_of_file;
        if operation.direct && !operation.silent {
            // The arrival notices have answered, with errors where there were any.
            self.answer_slot(&context, None);
            self.end_operation(&context);
        } else if failure.is_ok() {
            self.answer_io(&context, Lsn(0), io, end_of_file, None, sink);
        } else {
            self.answer_status(&context, kind, failure, sink);
        }
    }
}
