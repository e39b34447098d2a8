//! RENAME.
//!
//! Inside a shard it is one record. Otherwise the shard of the source coordinates: it holds the
//! source name, lets the shard of the destination enter the inode there (which first removes an
//! empty directory that is in the way), then removes the source entry, then drops a file that was
//! replaced. Moves of directories to another parent have a lock at the reactor of shard 0, so that
//! no two of them can make a cycle; the one that has it asks upwards from the destination whether
//! it lies below the directory that moves.
//!
//! Who waits for a name while it holds one is always older than the holder; a younger one lets go
//! of its own name and begins again. Who waits for the lock holds nothing. So nobody waits forever.

use std::collections::VecDeque;

use gannet_proto::operations::{Attributes, NameRequest, Names, check_name, file_type, name_flags};
use gannet_proto::{Inode, ShardId, Status};

use crate::directory::Entry;
use crate::name_operations::{NameOperation, Stage, name_operation_of};
use crate::names::{Stop, directory_of};
use crate::operations::OperationId;
use crate::peer::{Message, Outcome, PeerMessage, Step, StepRequest};
use crate::record::{Change, Reply};
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::{Core, Now, Sink};

/// Most moves of directories that wait for the lock.
const LOCK_WAITERS_MAX: usize = 4096;

/// The lock that serialises moves of directories; at the reactor of shard 0.
#[derive(Debug, Default)]
pub(crate) struct RenameLock {
    /// Reactor and operation that have it.
    holder: Option<(u16, u64)>,
    waiting: VecDeque<(u16, u64)>,
}

/// How far a rename over several shards has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RenameStage {
    /// It holds no name.
    Begin,
    /// It waits for the lock.
    Locking,
    /// It holds the source name and asks upwards from the destination.
    Ancestry(Entry),
    /// The destination's shard enters the inode.
    Linking(Entry),
    /// A directory in the way is being removed; the destination's name is held there.
    Clearing(Entry),
    /// It let go of its name for an older operation, and waits until the destination is free.
    Yielding,
    /// The directory that moved gets its new parent.
    Moving { replaced: Option<Inode>, kept: Option<KeptReply> },
    /// The replaced file is dropped.
    Dropping { kept: Option<KeptReply> },
}

/// What stands at the destination of a rename.
pub(crate) enum Obstacle {
    /// Nothing, or a file that is replaced.
    Free { replaced: Option<Entry> },
    /// The inode itself: it is the same name, or a rename over two shards was interrupted.
    Same,
    /// A directory, which has to be empty.
    Directory(Entry),
}

fn shard_of(inode: Inode) -> ShardId {
    inode.shard().unwrap_or(ShardId(0))
}

impl Core {
    /// RENAME, from the beginning.
    pub(crate) fn rename(
        &mut self,
        now: Now,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        check_name(names.name)?;
        check_name(names.to_name)?;
        self.check_parent(parent)?;
        let (to_parent, to_shard) = directory_of(&request.to_parent)?;
        if self.held.holder(parent, names.name).is_some() {
            return Err(Stop::Held(parent, names.name.into()));
        }
        let entry = self.entry(parent, names.name).ok_or(Status::NOT_FOUND)?;
        let moves_directory = entry.file_type == file_type::DIRECTORY && parent != to_parent;
        if to_shard == context.shard() && !moves_directory {
            self.check_parent(to_parent)?;
            if self.held.holder(to_parent, names.to_name).is_some() {
                return Err(Stop::Held(to_parent, names.to_name.into()));
            }
            let no_replace = request.flags.get() & name_flags::NO_REPLACE != 0;
            match self.obstacle((to_parent, names.to_name), entry, no_replace)? {
                Obstacle::Same if parent == to_parent && names.name == names.to_name => {
                    if no_replace {
                        return Err(Status::EXISTS.into());
                    }
                    let after = self.last_lsn;
                    self.answer_entry(context, after, (Attributes::default(), 0), None, sink);
                    return Ok(());
                }
                Obstacle::Free { replaced }
                    if replaced.is_none_or(|old| shard_of(old.inode) == to_shard) =>
                {
                    let drop_inode =
                        replaced.is_some_and(|old| self.nodes.contains_key(&old.inode));
                    self.rename_here(now, context, parent, to_parent, names, drop_inode, sink);
                    return Ok(());
                }
                Obstacle::Directory(old) if shard_of(old.inode) == to_shard => {
                    let drop_inode = self.check_empty(old.inode)?;
                    self.rename_here(now, context, parent, to_parent, names, drop_inode, sink);
                    return Ok(());
                }
                // What is replaced lies on another shard.
                _ => {}
            }
        }
        let stage = Stage::Rename(RenameStage::Begin);
        let operation = Box::new(name_operation_of(request, names, stage));
        if let Some(id) = self.keep_name(*context, operation, sink) {
            self.wake(id);
        }
        Ok(())
    }

    /// Renames inside a shard, by one record.
    fn rename_here(
        &mut self,
        now: Now,
        context: &Context,
        directory: Inode,
        to_directory: Inode,
        names: Names<'_>,
        drop_inode: bool,
        sink: &mut impl Sink,
    ) {
        let origin = self.origin(now, context, Reply::Empty);
        let Names { name, to_name } = names;
        let change = Change::Renamed { directory, to_directory, drop_inode, name, to_name };
        let (after, kept) = self.commit(&origin, &change, sink);
        self.answer_entry(context, after, (Attributes::default(), 0), kept, sink);
    }

    /// Whether a directory of this reactor exists (else its entry leads to nothing).
    ///
    /// # Errors
    /// `NOT_EMPTY`.
    fn check_empty(&self, inode: Inode) -> Result<bool, Status> {
        let node = self.nodes.get(&inode);
        match node.and_then(|node| node.directory()) {
            Some(directory) if !directory.entries.is_empty() => Err(Status::NOT_EMPTY),
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// What stands in the way of entering `entry` under a name of a directory of this reactor.
    ///
    /// # Errors
    /// `EXISTS`, `IS_DIRECTORY`, `NOT_DIRECTORY`.
    pub(crate) fn obstacle(
        &self,
        (directory, name): (Inode, &[u8]),
        entry: Entry,
        no_replace: bool,
    ) -> Result<Obstacle, Status> {
        let Some(old) = self.entry(directory, name) else {
            return Ok(Obstacle::Free { replaced: None });
        };
        if old.inode == entry.inode {
            return Ok(Obstacle::Same);
        }
        if no_replace {
            return Err(Status::EXISTS);
        }
        match (entry.file_type == file_type::DIRECTORY, old.file_type == file_type::DIRECTORY) {
            (true, true) => Ok(Obstacle::Directory(old)),
            (false, false) => Ok(Obstacle::Free { replaced: Some(old) }),
            (true, false) => Err(Status::NOT_DIRECTORY),
            (false, true) => Err(Status::IS_DIRECTORY),
        }
    }

    /// Begins a rename over several shards, or begins it again.
    pub(crate) fn begin_rename(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let parent = operation.request.parent.inode();
        operation.stage = Stage::Rename(RenameStage::Begin);
        if let Err(status) = self.check_parent(parent) {
            return self.end_rename(context, operation, Err(status), sink);
        }
        if self.held.holder(parent, &operation.name).is_some() {
            let name = operation.name.clone();
            return self.wait_for_name(context, operation, (parent, &name), sink);
        }
        let Some(entry) = self.entry(parent, &operation.name) else {
            return self.end_rename(context, operation, Err(Status::NOT_FOUND), sink);
        };
        let to_parent = operation.request.to_parent.inode();
        let moves_directory = entry.file_type == file_type::DIRECTORY && parent != to_parent;
        if moves_directory && !operation.locked {
            operation.stage = Stage::Rename(RenameStage::Locking);
            self.go_on(id, operation, ShardId(0), Step::LockRenames, sink);
            return;
        }
        let holder = self.holder(id);
        self.held.hold(parent, &operation.name, holder);
        if moves_directory {
            operation.stage = Stage::Rename(RenameStage::Ancestry(entry));
            let step = Step::Ancestry { from: to_parent, sought: entry.inode };
            self.go_on(id, operation, shard_of(to_parent), step, sink);
        } else {
            self.link(now, context, operation, (entry, false), sink);
        }
    }

    /// Keeps the operation and sends its next step.
    fn go_on(
        &mut self,
        id: OperationId,
        operation: Box<NameOperation>,
        shard: ShardId,
        step: Step,
        sink: &mut impl Sink,
    ) {
        if let Some(kept) = self.operations.find_mut(id) {
            kept.request = crate::operations::Request::Name(operation);
            self.send_step(id, shard, step, sink);
        }
    }

    /// Enters the inode at the destination. `removed`: a directory that was there is gone.
    fn link(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        (entry, removed): (Entry, bool),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let to_parent = operation.request.to_parent.inode();
        let no_replace = operation.request.flags.get() & name_flags::NO_REPLACE != 0;
        operation.stage = Stage::Rename(RenameStage::Linking(entry));
        let shard = shard_of(to_parent);
        if shard == context.shard() && shard_of(entry.inode) == shard && !removed {
            return self.link_here(now, context, operation, entry, sink);
        }
        let step = Step::Link {
            directory: to_parent,
            name: operation.to_name.clone(),
            inode: entry.inode,
            file_type: entry.file_type,
            no_replace,
            removed,
        };
        self.go_on(id, operation, shard, step, sink);
    }

    /// The last step of a rename whose entries and inode lie on one shard: one record if the
    /// destination is free of other operations and of what lies elsewhere.
    fn link_here(
        &mut self,
        now: Now,
        context: Context,
        operation: Box<NameOperation>,
        entry: Entry,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let parent = operation.request.parent.inode();
        let to_parent = operation.request.to_parent.inode();
        let no_replace = operation.request.flags.get() & name_flags::NO_REPLACE != 0;
        let place = (to_parent, &operation.to_name[..]);
        let checked = self.check_parent(to_parent);
        let obstacle = checked.and_then(|()| self.obstacle(place, entry, no_replace));
        let held = self.held.holder(to_parent, &operation.to_name).is_some();
        let drop_inode = match obstacle {
            Ok(Obstacle::Free { replaced: None }) if !held => Ok(false),
            Ok(Obstacle::Free { replaced: Some(old) })
                if !held && shard_of(old.inode) == context.shard() =>
            {
                Ok(self.nodes.contains_key(&old.inode))
            }
            Ok(Obstacle::Directory(old)) if !held && shard_of(old.inode) == context.shard() => {
                self.check_empty(old.inode)
            }
            Ok(_) => {
                let step = Step::Link {
                    directory: to_parent,
                    name: operation.to_name.clone(),
                    inode: entry.inode,
                    file_type: entry.file_type,
                    no_replace,
                    removed: false,
                };
                return self.go_on(id, operation, context.shard(), step, sink);
            }
            Err(status) => Err(status),
        };
        let done = drop_inode.map(|drop_inode| {
            let origin = self.origin(now, &context, Reply::Empty);
            let change = Change::Renamed {
                directory: parent,
                to_directory: to_parent,
                drop_inode,
                name: &operation.name,
                to_name: &operation.to_name,
            };
            self.commit(&origin, &change, sink).1
        });
        self.end_rename(context, operation, done, sink);
    }

    /// A step of a rename is done, or not.
    pub(crate) fn rename_step_done(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        outcome: Outcome,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let Stage::Rename(stage) = operation.stage else { return };
        let to_parent = operation.request.to_parent.inode();
        match (stage, outcome) {
            (RenameStage::Locking, Outcome::Done) => {
                operation.locked = true;
                self.begin_rename(now, context, operation, sink);
            }
            (RenameStage::Yielding, _) => self.begin_rename(now, context, operation, sink),
            (RenameStage::Ancestry(_), Outcome::Ancestor(true)) => {
                self.end_rename(context, operation, Err(Status::INVALID), sink);
            }
            (RenameStage::Ancestry(entry), Outcome::Ancestor(false)) => {
                self.link(now, context, operation, (entry, false), sink);
            }
            (RenameStage::Ancestry(entry), Outcome::Continue(from)) => {
                let step = Step::Ancestry { from, sought: entry.inode };
                self.go_on(id, operation, shard_of(from), step, sink);
            }
            (RenameStage::Linking(entry), Outcome::Linked { replaced }) => {
                self.finish_link(now, context, operation, (entry, replaced), sink);
            }
            // An inode has one name, so the metadata server stopped between the two records of
            // this rename: what is left of it follows.
            (RenameStage::Linking(entry), Outcome::Same) => {
                self.finish_link(now, context, operation, (entry, None), sink);
            }
            (RenameStage::Linking(_), Outcome::Held) => {
                let parent = operation.request.parent.inode();
                self.let_go(id, parent, &operation.name);
                let name = operation.to_name.clone();
                operation.stage = Stage::Rename(RenameStage::Yielding);
                let step = Step::AwaitName { directory: to_parent, name };
                self.go_on(id, operation, shard_of(to_parent), step, sink);
            }
            (RenameStage::Linking(entry), Outcome::Replace(inode)) => {
                operation.stage = Stage::Rename(RenameStage::Clearing(entry));
                self.go_on(id, operation, shard_of(inode), Step::RemoveDirectory { inode }, sink);
            }
            (
                RenameStage::Clearing(entry),
                Outcome::Done | Outcome::Failed(Status::STALE_HANDLE),
            ) => self.link(now, context, operation, (entry, true), sink),
            (RenameStage::Clearing(_), Outcome::Failed(status)) => {
                let name = operation.to_name.clone();
                let step = Step::Release { directory: to_parent, name };
                self.send_step(id, shard_of(to_parent), step, sink);
                self.end_rename(context, operation, Err(status), sink);
            }
            (RenameStage::Moving { replaced, kept }, _) => {
                self.drop_replaced(context, operation, (replaced, kept), sink);
            }
            (RenameStage::Dropping { kept }, _) => {
                self.end_rename(context, operation, Ok(kept), sink);
            }
            (_, Outcome::Failed(status)) => {
                self.end_rename(context, operation, Err(status), sink);
            }
            (_, _) => self.end_rename(context, operation, Err(Status::IO), sink),
        }
    }

    /// The inode is entered at the destination: the source entry goes, which decides the rename.
    fn finish_link(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        (entry, replaced): (Entry, Option<Inode>),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let parent = operation.request.parent.inode();
        let to_parent = operation.request.to_parent.inode();
        let (_, _, kept) = self.remove_entry(now, &context, (parent, &operation.name), false, sink);
        self.let_go(id, parent, &operation.name);
        if entry.file_type == file_type::DIRECTORY && parent != to_parent {
            operation.stage = Stage::Rename(RenameStage::Moving { replaced, kept });
            let step = Step::SetParent { inode: entry.inode, parent: to_parent };
            self.go_on(id, operation, shard_of(entry.inode), step, sink);
        } else {
            self.drop_replaced(context, operation, (replaced, kept), sink);
        }
    }

    fn drop_replaced(
        &mut self,
        context: Context,
        mut operation: Box<NameOperation>,
        (replaced, kept): (Option<Inode>, Option<KeptReply>),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        match replaced {
            Some(inode) => {
                operation.stage = Stage::Rename(RenameStage::Dropping { kept });
                self.go_on(id, operation, shard_of(inode), Step::DropLink { inode }, sink);
            }
            None => self.end_rename(context, operation, Ok(kept), sink),
        }
    }

    /// Answers a rename; it lets go of whatever it holds.
    pub(crate) fn end_rename(
        &mut self,
        context: Context,
        operation: Box<NameOperation>,
        result: Result<Option<KeptReply>, Status>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        self.let_go(id, operation.request.parent.inode(), &operation.name);
        if operation.locked {
            self.send_step(id, ShardId(0), Step::UnlockRenames, sink);
        }
        match result {
            Ok(kept) => {
                let after = self.last_lsn;
                self.answer_entry(&context, after, (Attributes::default(), 0), kept, sink);
            }
            Err(status) => self.answer_status(&context, ReplyKind::Entry, status, sink),
        }
    }

    /// At the reactor of shard 0: somebody wants the lock.
    pub(crate) fn lock_renames(&mut self, request: &StepRequest, sink: &mut impl Sink) {
        let wanted = (request.reactor, request.token);
        if self.rename_lock.holder.is_none() {
            self.rename_lock.holder = Some(wanted);
            self.answer_step(wanted, Outcome::Done, sink);
        } else if self.rename_lock.waiting.len() < LOCK_WAITERS_MAX {
            self.rename_lock.waiting.push_back(wanted);
        } else {
            self.answer_step(wanted, Outcome::Failed(Status::AGAIN), sink);
        }
    }

    /// At the reactor of shard 0: the lock is free.
    pub(crate) fn unlock_renames(&mut self, sink: &mut impl Sink) {
        self.rename_lock.holder = self.rename_lock.waiting.pop_front();
        if let Some(next) = self.rename_lock.holder {
            self.answer_step(next, Outcome::Done, sink);
        }
    }

    /// Tells the coordinator how its step went.
    pub(crate) fn answer_step(
        &mut self,
        (reactor, token): (u16, u64),
        outcome: Outcome,
        sink: &mut impl Sink,
    ) {
        self.send(reactor, PeerMessage(Message::Outcome { token, outcome }), sink);
    }
}
