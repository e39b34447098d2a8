//! Namespace requests: CREATE, MKDIR, UNLINK, RMDIR, and how all of them are carried on.
//!
//! What lies on one shard is done at once, by one record. What needs another shard becomes an
//! operation that holds its name and takes effect in all shards or in none (see
//! [`crate::transactions`]). RENAME, LINK, and LOOKUP with READDIR, have modules of their own.

use gannet_proto::limits::SHARDS;
use gannet_proto::operations::{
    Attributes, NameRequest, Names, check_name, file_type, name_flags, name_operation,
};
use gannet_proto::{Handle, Inode, ShardId, Status};

use crate::coordinator::removal;
use crate::crossshard::is_directory;
use crate::directory::Entry;
use crate::name_operations::{Stage, name_operation_of};
use crate::namespace::only_handle;
use crate::opens::rights_of_create;
use crate::peer::Step;
use crate::record::{Change, Reply, StoreList};
use crate::rename_checks::mode_of;
use crate::reply::{Context, ReplyKind};
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// Which message answers a namespace request.
pub(crate) fn kind_of(request: &NameRequest) -> ReplyKind {
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

/// Checks flags and names, before anything is looked at that they concern. The path of LOOKUP is checked
/// as it is followed, and where READDIR goes on may be any name.
fn check_names(request: &NameRequest, names: Names<'_>) -> Result<(), Status> {
    match request.operation.get() {
        name_operation::LOOKUP | name_operation::READDIR => Ok(()),
        name_operation::RENAME => {
            mode_of(request)?;
            check_name(names.name)?;
            check_name(names.to_name)
        }
        _ => check_name(names.name),
    }
}

/// The shard for a directory made in the root: spread by name, with no seed.
pub(crate) fn shard_of_name(name: &[u8]) -> ShardId {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ShardId(((hash ^ hash >> 32) % SHARDS as u64) as u16)
}

impl Core {
    /// LOOKUP, CREATE, MKDIR, UNLINK, RMDIR, RENAME, READDIR, LINK.
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
        self.open_made_again(now, session, request, sink);
        if let Some(context) = self.admit(session, &request.header, kind_of(request), sink) {
            self.start_name(now, context, request, names, sink);
        }
        self.settle(now, sink);
    }

    /// Executes a namespace request from the start.
    pub(crate) fn start_name(
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
        if let Err(status) = check_names(request, names) {
            return self.answer_status(&context, kind_of(request), status, sink);
        }
        let request = match self.authorize_name(&context, parent, request, names, sink) {
            Ok(Some(authorized)) => &{ authorized },
            Ok(None) => return,
            Err(stop) => return self.stop_name(context, request, names, stop, sink),
        };
        let done = match request.operation.get() {
            name_operation::LOOKUP => self.lookup(&context, parent, request, names, sink),
            name_operation::CREATE => self.create(now, &context, parent, request, names, sink),
            name_operation::MKDIR => self.mkdir(now, &context, parent, request, names, sink),
            name_operation::UNLINK => self.unlink(now, &context, parent, request, names, sink),
            name_operation::RMDIR => self.rmdir(now, &context, parent, request, names, sink),
            name_operation::RENAME => self.rename(now, &context, parent, request, names, sink),
            name_operation::READDIR => self.readdir(&context, parent, request, names, sink),
            name_operation::LINK => self.link(&context, parent, request, names, sink),
            _ => Err(Stop::Status(Status::NOT_SUPPORTED)),
        };
        if let Err(stop) = done {
            self.stop_name(context, request, names, stop, sink);
        }
    }

    /// Answers a request that cannot go on, or lets it wait.
    fn stop_name(
        &mut self,
        context: Context,
        request: &NameRequest,
        names: Names<'_>,
        stop: Stop,
        sink: &mut impl Sink,
    ) {
        match stop {
            Stop::Status(status) => {
                self.answer_status(&context, kind_of(request), status, sink);
            }
            Stop::Held(directory, name) => {
                let operation = name_operation_of(request, names, Stage::Start);
                self.wait_for_name(context, Box::new(operation), (directory, &name), sink);
            }
        }
    }

    /// A directory of this reactor that a request names as its parent.
    pub(crate) fn check_parent(&self, parent: Inode) -> Result<(), Status> {
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        node.directory().map(|_| ()).ok_or(Status::NOT_DIRECTORY)
    }

    /// A parent that nobody removes, and a name that nobody holds.
    pub(crate) fn check_place(&self, parent: Inode, name: &[u8]) -> Result<(), Stop> {
        self.check_parent(parent)?;
        self.check_free(parent, b"", None)?;
        self.check_free(parent, name, None)
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
            return self.open_existing(now, context, parent, entry, request, sink);
        }
        let inode = self.new_inode(context.shard());
        let open = self.open_of_create(context.session, request)?;
        let set = self.new_set(inode);
        let mode = file_type::REGULAR | request.mode.get() & 0o7777;
        let made = (inode, mode, set.list());
        self.make_node(now, context, (parent, names.name), request, made, sink);
        if let Some(open) = open {
            let key = (inode, request.open.get());
            self.note_open(now, context.session, key, open, sink)?;
        }
        Ok(())
    }

    fn open_existing(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        entry: Entry,
        request: &NameRequest,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        if request.flags.get() & name_flags::EXCLUSIVE != 0 {
            return Err(Stop::Status(Status::EXISTS));
        }
        if is_directory(entry) {
            return Err(Stop::Status(Status::IS_DIRECTORY));
        }
        let directory = self.nodes.get(&parent).map_or(Lsn(0), |node| node.lsn);
        let (attributes, after) = match self.nodes.get(&entry.inode) {
            Some(node) => {
                let mut found = (node.attributes(), directory.max(node.lsn));
                if let Some(rights) = rights_of_create(request) {
                    let (key, identity) =
                        ((entry.inode, request.open.get()), request.identity.get());
                    let known_since =
                        self.open_file(now, context.session, key, identity, rights, sink)?;
                    found.1 = found.1.max(known_since);
                }
                found
            }
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
        let (uid, gid) = (request.uid.get(), request.gid.get());
        let step = Step::MakeDirectory { shard: place, parent, mode, uid, gid };
        self.begin_plan(*context, operation, step, None, sink);
        Ok(())
    }

    /// Removes an entry, by one record, and a link of its inode with it if `drop_inode`.
    fn remove_entry(
        &mut self,
        now: Now,
        context: &Context,
        (directory, name): (Inode, &[u8]),
        drop_inode: bool,
        sink: &mut impl Sink,
    ) {
        let origin = self.origin(now, context, Reply::Empty);
        let change = Change::EntryRemoved { directory, drop_inode, name };
        let (after, kept) = self.commit(&origin, &change, sink);
        self.answer_entry(context, after, (Attributes::default(), 0), kept, sink);
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
        if is_directory(entry) {
            return Err(Stop::Status(Status::IS_DIRECTORY));
        }
        if entry.inode.shard() == Some(context.shard()) {
            self.check_free(entry.inode, b"", None)?;
            let is_there = self.nodes.contains_key(&entry.inode);
            self.remove_entry(now, context, (parent, names.name), is_there, sink);
            return Ok(());
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Removing));
        let own = removal(now, parent, names.name);
        let owner = self.guard(context, parent, request)?;
        let step = Step::Unlink { inode: entry.inode, owner };
        self.begin_plan(*context, operation, step, Some(own), sink);
        Ok(())
    }

    /// To whom an entry has to belong that a request removes from a directory of this reactor.
    fn guard(
        &self,
        context: &Context,
        directory: Inode,
        request: &NameRequest,
    ) -> Result<Option<u32>, Status> {
        let asker = self.asker(context.session, request.identity.get())?;
        self.check_change(directory, asker)
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
        if !is_directory(entry) {
            return Err(Stop::Status(Status::NOT_DIRECTORY));
        }
        if entry.inode.shard() == Some(context.shard()) {
            let is_there = self.check_removable(entry.inode, None)?;
            self.remove_entry(now, context, (parent, names.name), is_there, sink);
            return Ok(());
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Removing));
        let own = removal(now, parent, names.name);
        let owner = self.guard(context, parent, request)?;
        let step = Step::RemoveDirectory { inode: entry.inode, owner };
        self.begin_plan(*context, operation, step, Some(own), sink);
        Ok(())
    }
}

/// The inode that a handle of another shard names.
pub(crate) fn directory_of(handle: &Handle) -> Result<(Inode, ShardId), Status> {
    let inode = handle.inode();
    if handle.file_system.get() != 0 || handle.generation.get() != 0 {
        return Err(Status::STALE_HANDLE);
    }
    inode.shard().map(|shard| (inode, shard)).ok_or(Status::STALE_HANDLE)
}
