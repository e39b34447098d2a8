//! Namespace requests: LOOKUP, CREATE, MKDIR, UNLINK, RMDIR, READDIR.
//!
//! What lies on one shard is done at once, by one record. What needs another shard becomes an
//! operation that holds its name and goes on with the other shard's answers; an inode is made
//! before its entry, and removed after it, so that no name ever leads to nothing. RENAME has a
//! module of its own.

use gannet_proto::limits::{LARGE_PACKET_BYTES, NAME_BYTES_MAX, PATH_BYTES_MAX, SHARDS};
use gannet_proto::operations::{
    Attributes, DirectoryEntry, DirectoryReply, NameRequest, Names, check_name, file_type,
    name_flags, name_operation,
};
use gannet_proto::packet::FrameHeader;
use gannet_proto::{Handle, Inode, ShardId, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::held::{Holder, Waiter};
use crate::namespace::{Entry, only_handle};
use crate::operations::{OperationId, Request, State};
use crate::peer::{Message, Outcome, PeerMessage, Step, StepRequest};
use crate::record::{Change, Reply, StoreList};
use crate::rename::RenameStage;
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// Most bytes of entries in a [`DirectoryReply`].
const ENTRIES_BYTES_MAX: usize =
    LARGE_PACKET_BYTES - size_of::<FrameHeader>() - size_of::<DirectoryReply>();

/// How far a namespace operation has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It begins anew when it goes on.
    Start,
    /// MKDIR: the other shard makes the directory.
    Making,
    /// RMDIR: the other shard removes the directory.
    Removing,
    /// UNLINK: the entry is gone, the other shard drops the inode.
    Dropping { kept: Option<KeptReply> },
    /// RENAME.
    Rename(RenameStage),
}

/// A namespace request that had to wait.
#[derive(Debug)]
pub(crate) struct NameOperation {
    pub request: NameRequest,
    pub name: Box<[u8]>,
    pub to_name: Box<[u8]>,
    pub stage: Stage,
    /// RENAME: it has the lock that serialises moves of directories.
    pub locked: bool,
}

impl NameOperation {
    /// Which message answers it.
    pub(crate) fn reply_kind(&self) -> ReplyKind {
        kind_of(&self.request)
    }
}

fn kind_of(request: &NameRequest) -> ReplyKind {
    if request.operation.get() == name_operation::READDIR {
        ReplyKind::Directory
    } else {
        ReplyKind::Entry
    }
}

/// Why a namespace request cannot be answered with success at once.
pub(crate) enum Stop {
    Status(Status),
    /// Another operation holds this name in this directory.
    Held(Inode, Box<[u8]>),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Stop {
        Stop::Status(status)
    }
}

/// Where a path led.
struct Resolved {
    inode: Inode,
    /// Bytes of the path that lie behind.
    consumed: usize,
    /// The last change of what was passed.
    after: Lsn,
}

/// The shard for a directory made in the root: spread by name, with no seed.
fn shard_of_name(name: &[u8]) -> ShardId {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ShardId(((hash ^ hash >> 32) % SHARDS as u64) as u16)
}

impl Core {
    /// LOOKUP, CREATE, MKDIR, UNLINK, RMDIR, RENAME, READDIR.
    pub fn name_request(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) {
        match request.operation.get() {
            name_operation::LOOKUP => self.counters.lookups += 1,
            name_operation::READDIR => self.counters.readdirs += 1,
            _ => self.counters.name_changes += 1,
        }
        if let Some(context) = self.admit(session, &request.header, kind_of(request), sink) {
            self.start_name(now, context, request, names, sink);
        }
        self.settle(now, sink);
    }

    fn start_name(
        &mut self,
        now: Now,
        context: Context,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) {
        let parent = match self.inode_of(&context, &request.parent) {
            Ok(parent) => parent,
            Err(status) => {
                return self.answer_status(&context, kind_of(request), status, sink);
            }
        };
        let done = match request.operation.get() {
            name_operation::LOOKUP => self.lookup(&context, parent, names.name, sink),
            name_operation::CREATE => self.create(now, &context, parent, request, names, sink),
            name_operation::MKDIR => self.mkdir(now, &context, parent, request, names, sink),
            name_operation::UNLINK => self.unlink(now, &context, parent, request, names, sink),
            name_operation::RMDIR => self.rmdir(now, &context, parent, request, names, sink),
            name_operation::RENAME => self.rename(now, &context, parent, request, names, sink),
            name_operation::READDIR => self.readdir(&context, parent, request, names, sink),
            _ => Err(Stop::Status(Status::NOT_SUPPORTED)),
        };
        match done {
            Ok(()) => {}
            Err(Stop::Status(status)) => {
                self.answer_status(&context, kind_of(request), status, sink);
            }
            Err(Stop::Held(directory, name)) => {
                let operation = name_operation_of(request, names, Stage::Start);
                self.wait_for_name(context, Box::new(operation), (directory, &name), sink);
            }
        }
    }

    /// Lets a request wait for a name.
    pub(crate) fn wait_for_name(
        &mut self,
        context: Context,
        operation: Box<NameOperation>,
        (directory, name): (Inode, &[u8]),
        sink: &mut impl Sink,
    ) {
        let Some(id) = self.keep_name(context, operation, sink) else { return };
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::AwaitingName;
        }
        self.counters.parked += 1;
        if !self.held.wait(directory, name, Waiter::Operation(id)) {
            self.fail_name(id, Status::AGAIN, sink);
        }
    }

    /// Makes a namespace request an operation, or keeps what became of it.
    pub(crate) fn keep_name(
        &mut self,
        mut context: Context,
        operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) -> Option<OperationId> {
        let (kind, parent) = (operation.reply_kind(), operation.request.parent.inode());
        let kept = Request::Name(operation);
        let id = self.ensure_operation(&mut context, kind, parent, kept, sink)?;
        let order = self.last_operation + 1;
        if let Some(operation) = self.operations.find_mut(id)
            && operation.order == 0
        {
            operation.order = order;
            self.last_operation = order;
        }
        Some(id)
    }

    /// Goes on with an operation that waited for a name.
    pub(crate) fn resume_name(
        &mut self,
        now: Now,
        context: Context,
        operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        if let Stage::Rename(_) = operation.stage {
            return self.begin_rename(now, context, operation, sink);
        }
        let request = operation.request;
        let request = NameRequest { header: context.header, ..request };
        let names = Names { name: &operation.name, to_name: &operation.to_name };
        self.start_name(now, context, &request, names, sink);
    }

    /// The age of an operation, under which it holds names.
    pub(crate) fn holder(&self, id: OperationId) -> Holder {
        let order = self.operations.find(id).map_or(0, |operation| operation.order);
        (order, self.config.reactor)
    }

    /// Sends a step of an operation to the shard of an inode.
    pub(crate) fn send_step(
        &mut self,
        id: OperationId,
        shard: ShardId,
        step: Step,
        sink: &mut impl Sink,
    ) {
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::AwaitingPeer;
            let (reactor, token, order) = (self.config.reactor, id.token(), operation.order);
            let request = StepRequest { reactor, token, order, step };
            self.send(self.reactor_of(shard), PeerMessage(Message::Step(request)), sink);
        }
    }

    /// Another shard has done its step, or not.
    pub(crate) fn step_done(
        &mut self,
        now: Now,
        token: u64,
        outcome: Outcome,
        sink: &mut impl Sink,
    ) {
        let id = OperationId::from_token(token);
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        let Request::Name(mut name) = std::mem::take(&mut operation.request) else { return };
        let parent = name.request.parent.inode();
        match (&mut name.stage, outcome) {
            (Stage::Rename(_), outcome) => {
                self.rename_step_done(now, context, name, outcome, sink);
            }
            (Stage::Making, Outcome::Made(attributes)) => {
                let inode = attributes.handle.inode();
                let file_type = file_type::DIRECTORY;
                let entry = Entry { inode, file_type };
                self.link_made(now, &context, (parent, &name.name), entry, attributes, sink);
            }
            (Stage::Removing, Outcome::Done | Outcome::Failed(Status::STALE_HANDLE)) => {
                // An inode that is gone leaves an entry that leads to nothing: it goes too.
                let (removed, after, kept) =
                    self.remove_entry(now, &context, (parent, &name.name), false, sink);
                self.let_go(id, parent, &name.name);
                debug_assert!(removed);
                self.answer_entry(&context, after, (Attributes::default(), 0), kept, sink);
            }
            (Stage::Making | Stage::Removing, Outcome::Failed(status)) => {
                self.let_go(id, parent, &name.name);
                self.answer_status(&context, ReplyKind::Entry, status, sink);
            }
            (Stage::Dropping { kept }, _) => {
                let kept = kept.take();
                let after = self.last_lsn;
                self.answer_entry(&context, after, (Attributes::default(), 0), kept, sink);
            }
            (_, _) => self.answer_status(&context, ReplyKind::Entry, Status::IO, sink),
        }
    }

    /// Ends a waiting operation with an error.
    pub(crate) fn fail_name(&mut self, id: OperationId, status: Status, sink: &mut impl Sink) {
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        match std::mem::take(&mut operation.request) {
            Request::Name(name) if matches!(name.stage, Stage::Rename(_)) => {
                self.end_rename(context, name, Err(status), sink);
            }
            Request::Name(name) => {
                self.answer_status(&context, name.reply_kind(), status, sink);
            }
            _ => {}
        }
    }

    /// Lets go of a name, and wakes who waits for it.
    pub(crate) fn let_go(&mut self, id: OperationId, directory: Inode, name: &[u8]) {
        let holder = self.holder(id);
        self.let_go_of(directory, name, holder);
    }

    /// The same for a holder that may be of another reactor.
    pub(crate) fn let_go_of(&mut self, directory: Inode, name: &[u8], holder: Holder) {
        for waiter in self.held.release(directory, name, holder) {
            match waiter {
                Waiter::Operation(id) => self.wake(id),
                Waiter::Step(step) => self.local.push_back(PeerMessage(Message::Step(step))),
            }
        }
    }

    /// A directory of this reactor that a request names as its parent.
    pub(crate) fn check_parent(&self, parent: Inode) -> Result<(), Status> {
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        node.directory().map(|_| ()).ok_or(Status::NOT_DIRECTORY)
    }

    /// A parent and a name that nobody holds.
    fn check_place(&self, parent: Inode, name: &[u8]) -> Result<(), Stop> {
        check_name(name)?;
        self.check_parent(parent)?;
        if self.held.holder(parent, name).is_some() {
            return Err(Stop::Held(parent, name.into()));
        }
        Ok(())
    }

    fn lookup(
        &mut self,
        context: &Context,
        parent: Inode,
        path: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        let Resolved { inode, consumed, after } = self.resolve(parent, path)?;
        let (attributes, after) = match self.nodes.get(&inode) {
            Some(node) => (node.attributes(), after.max(node.lsn)),
            None if self.is_local(inode) => return Err(Stop::Status(Status::NOT_FOUND)),
            None => (only_handle(inode), after),
        };
        self.answer_entry(context, after, (attributes, consumed), None, sink);
        Ok(())
    }

    /// Follows a path as far as it stays on this reactor.
    fn resolve(&self, parent: Inode, path: &[u8]) -> Result<Resolved, Stop> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Stop::Status(Status::NAME_TOO_LONG));
        }
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        let mut at = Resolved { inode: parent, consumed: 0, after: node.lsn };
        while at.consumed < path.len() && self.is_local(at.inode) {
            let start = at.consumed + usize::from(path[at.consumed] == b'/');
            let rest = &path[start..];
            let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let component = &rest[..length];
            // An entry whose inode is gone is about to go as well.
            let node = self.nodes.get(&at.inode).ok_or(Status::NOT_FOUND)?;
            let directory = node.directory().ok_or(Status::NOT_DIRECTORY)?;
            at.after = at.after.max(node.lsn);
            at.consumed = start + length;
            match component {
                b"" | b"." => {}
                b".." => at.inode = directory.parent,
                name if name.len() > NAME_BYTES_MAX => {
                    return Err(Stop::Status(Status::NAME_TOO_LONG));
                }
                name if self.held.holder(at.inode, name).is_some() => {
                    return Err(Stop::Held(at.inode, name.into()));
                }
                name => match directory.entries.get(name) {
                    Some(entry) => at.inode = entry.inode,
                    None => return Err(Stop::Status(Status::NOT_FOUND)),
                },
            }
        }
        Ok(at)
    }

    fn create(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        self.check_place(parent, names.name)?;
        if let Some(entry) = self.entry(parent, names.name) {
            return self.open_existing(context, parent, entry, request, sink);
        }
        let inode = self.new_inode(context.shard());
        let set = self.new_set(inode);
        let mode = file_type::REGULAR | request.mode.get() & 0o7777;
        let made = (inode, mode, set.list());
        self.make_node(now, context, (parent, names.name), request, made, sink);
        Ok(())
    }

    fn open_existing(
        &mut self,
        context: &Context,
        parent: Inode,
        entry: Entry,
        request: &NameRequest,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        if request.flags.get() & name_flags::EXCLUSIVE != 0 {
            return Err(Stop::Status(Status::EXISTS));
        }
        if entry.file_type == file_type::DIRECTORY {
            return Err(Stop::Status(Status::IS_DIRECTORY));
        }
        let directory = self.nodes.get(&parent).map_or(Lsn(0), |node| node.lsn);
        let (attributes, after) = match self.nodes.get(&entry.inode) {
            Some(node) => (node.attributes(), directory.max(node.lsn)),
            None => (only_handle(entry.inode), directory),
        };
        self.answer_entry(context, after, (attributes, 0), None, sink);
        Ok(())
    }

    /// The next inode number of a shard. It is given out by the record that uses it.
    pub(crate) fn new_inode(&self, shard: ShardId) -> Inode {
        // Number 1 of shard 0 is the root.
        Inode::new(shard, self.shards[usize::from(shard.0)].last_number.max(1) + 1)
    }

    fn make_node(
        &mut self,
        now: Now,
        context: &Context,
        (parent, name): (Inode, &[u8]),
        request: &NameRequest,
        (inode, mode, set): (Inode, u32, StoreList<'_>),
        sink: &mut impl Sink,
    ) {
        let origin = self.origin(now, context, Reply::Node);
        let (uid, gid) = (request.uid.get(), request.gid.get());
        let change = Change::NodeCreated { parent, inode, mode, uid, gid, name, set };
        let (after, kept) = self.commit(&origin, &change, sink);
        let node = self.nodes.get(&inode);
        let attributes = node.map_or_else(Attributes::default, |node| node.attributes());
        self.answer_entry(context, after, (attributes, 0), kept, sink);
    }

    fn mkdir(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        self.check_place(parent, names.name)?;
        if self.entry(parent, names.name).is_some() {
            return Err(Stop::Status(Status::EXISTS));
        }
        let mode = file_type::DIRECTORY | request.mode.get() & 0o7777;
        let shard = context.shard();
        let place = if parent == Inode::ROOT { shard_of_name(names.name) } else { shard };
        if place == shard {
            let made = (self.new_inode(shard), mode, StoreList::default());
            self.make_node(now, context, (parent, names.name), request, made, sink);
            return Ok(());
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Making));
        if let Some(id) = self.keep_name(*context, operation, sink) {
            let holder = self.holder(id);
            self.held.hold(parent, names.name, holder);
            let (uid, gid) = (request.uid.get(), request.gid.get());
            let step = Step::MakeDirectory { shard: place, parent, mode, uid, gid };
            self.send_step(id, place, step, sink);
        }
        Ok(())
    }

    /// Enters a directory that another shard has made.
    fn link_made(
        &mut self,
        now: Now,
        context: &Context,
        (parent, name): (Inode, &[u8]),
        entry: Entry,
        attributes: Attributes,
        sink: &mut impl Sink,
    ) {
        let origin = self.origin(now, context, Reply::Attributes(attributes));
        let Entry { inode, file_type } = entry;
        let change = Change::EntryAdded { directory: parent, inode, file_type, name };
        let (after, kept) = self.commit(&origin, &change, sink);
        if let Some(id) = context.operation {
            self.let_go(id, parent, name);
        }
        self.answer_entry(context, after, (attributes, 0), kept, sink);
    }

    /// Removes an entry, and its inode with it if `drop_inode`.
    pub(crate) fn remove_entry(
        &mut self,
        now: Now,
        context: &Context,
        (directory, name): (Inode, &[u8]),
        drop_inode: bool,
        sink: &mut impl Sink,
    ) -> (bool, Lsn, Option<KeptReply>) {
        if self.entry(directory, name).is_none() {
            return (false, self.last_lsn, None);
        }
        let origin = self.origin(now, context, Reply::Empty);
        let change = Change::EntryRemoved { directory, drop_inode, name };
        let (after, kept) = self.commit(&origin, &change, sink);
        (true, after, kept)
    }

    fn unlink(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        self.check_place(parent, names.name)?;
        let entry = self.entry(parent, names.name).ok_or(Status::NOT_FOUND)?;
        if entry.file_type == file_type::DIRECTORY {
            return Err(Stop::Status(Status::IS_DIRECTORY));
        }
        let here = entry.inode.shard() == Some(context.shard());
        let drop_inode = here && self.nodes.contains_key(&entry.inode);
        if here {
            let place = (parent, names.name);
            let (_, after, kept) = self.remove_entry(now, context, place, drop_inode, sink);
            self.answer_entry(context, after, (Attributes::default(), 0), kept, sink);
            return Ok(());
        }
        let stage = Stage::Dropping { kept: None };
        let operation = Box::new(name_operation_of(request, names, stage));
        let Some(id) = self.keep_name(*context, operation, sink) else { return Ok(()) };
        let context = Context { operation: Some(id), ..*context };
        let (_, _, reply) =
            self.remove_entry(now, &context, (parent, names.name), false, sink);
        if let Some(operation) = self.operations.find_mut(id)
            && let Request::Name(name) = &mut operation.request
        {
            name.stage = Stage::Dropping { kept: reply };
        }
        if let Some(shard) = entry.inode.shard() {
            self.send_step(id, shard, Step::DropLink { inode: entry.inode }, sink);
        }
        Ok(())
    }

    fn rmdir(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        self.check_place(parent, names.name)?;
        let entry = self.entry(parent, names.name).ok_or(Status::NOT_FOUND)?;
        if entry.file_type != file_type::DIRECTORY {
            return Err(Stop::Status(Status::NOT_DIRECTORY));
        }
        if entry.inode.shard() == Some(context.shard()) {
            let node = self.nodes.get(&entry.inode);
            let directory = node.and_then(|node| node.directory());
            if directory.is_some_and(|directory| !directory.entries.is_empty()) {
                return Err(Stop::Status(Status::NOT_EMPTY));
            }
            let drop_inode = directory.is_some();
            let place = (parent, names.name);
            let (_, after, kept) = self.remove_entry(now, context, place, drop_inode, sink);
            self.answer_entry(context, after, (Attributes::default(), 0), kept, sink);
            return Ok(());
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Removing));
        if let Some(id) = self.keep_name(*context, operation, sink) {
            let holder = self.holder(id);
            self.held.hold(parent, names.name, holder);
            if let Some(shard) = entry.inode.shard() {
                self.send_step(id, shard, Step::RemoveDirectory { inode: entry.inode }, sink);
            }
        }
        Ok(())
    }

    fn readdir(
        &mut self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        let directory = node.directory().ok_or(Status::NOT_DIRECTORY)?;
        let after = node.lsn;
        let bytes_max = match request.reply_bytes_max.get() as usize {
            0 => ENTRIES_BYTES_MAX,
            bytes => bytes.min(ENTRIES_BYTES_MAX),
        };
        let mut bytes = std::mem::take(&mut self.scratch.entries);
        bytes.clear();
        let (mut count, mut end) = (0, true);
        let from = if names.name.is_empty() {
            std::ops::Bound::Unbounded
        } else {
            std::ops::Bound::Excluded(names.name)
        };
        for (name, entry) in directory.entries.range::<[u8], _>((from, std::ops::Bound::Unbounded))
        {
            if bytes.len() + size_of::<DirectoryEntry>() + name.len() > bytes_max {
                end = false;
                break;
            }
            let head = DirectoryEntry {
                inode: U64::new(entry.inode.0),
                file_type: U32::new(entry.file_type),
                name_bytes: U16::new(name.len() as u16),
                reserved: U16::ZERO,
            };
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(name);
            count += 1;
        }
        if count == 0 && !end {
            // Not even one entry fits: asking again would never end.
            self.scratch.entries = bytes;
            return Err(Stop::Status(Status::INVALID));
        }
        let answered = self.answer_slot(context, None);
        if answered && self.sessions.view(context.session).is_some_and(|known| known.connected) {
            let reply = DirectoryReply {
                header: context.header.reply(Status::OK),
                count: U16::new(count),
                end: U16::new(end.into()),
                reserved: U32::ZERO,
            };
            sink.reply(context.session, after, &reply, &[&bytes]);
        }
        self.scratch.entries = bytes;
        self.end_operation(context);
        Ok(())
    }
}

/// Keeps a request beyond its message.
pub(crate) fn name_operation_of(
    request: &NameRequest,
    names: Names<'_>,
    stage: Stage,
) -> NameOperation {
    NameOperation {
        request: *request,
        name: names.name.into(),
        to_name: names.to_name.into(),
        stage,
        locked: false,
    }
}

/// The directory that a handle of another party names.
pub(crate) fn directory_of(handle: &Handle) -> Result<(Inode, ShardId), Status> {
    let inode = handle.inode();
    if handle.file_system.get() != 0 || handle.generation.get() != 0 {
        return Err(Status::STALE_HANDLE);
    }
    inode.shard().map(|shard| (inode, shard)).ok_or(Status::STALE_HANDLE)
}
