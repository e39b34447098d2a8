//! RENAME, and its exchange of two names.
//!
//! Inside a shard a rename is one record, unless a directory gets another parent. All others, and
//! every exchange, are operations that the source's shard coordinates (see [`crate::coordinator`]):
//! it holds the source name, the destination's shard prepares the new entry, then the shards of the
//! inodes prepare what changes there, and one decision lets all of it take effect. If everything lies
//! on one shard, that is one record too.
//!
//! Directories that get another parent have a lock at the reactor of shard 0, so that no two of them
//! can make a cycle; the one that has it asks upwards from the destination whether it lies below the
//! directory that moves, and lets go of it when the move is applied everywhere. A crash loses the lock
//! and nothing else: no move begins before those that were under way have ended everywhere.
//!
//! Who waits for the lock holds nothing.

use std::collections::VecDeque;

use gannet_proto::operations::{Attributes, NameRequest, Names, check_name, name_flags};
use gannet_proto::{Inode, ShardId, Status};

use crate::coordinator::removal;
use crate::crossshard::is_directory;
use crate::directory::Entry;
use crate::identities::Identity;
use crate::name_operations::{NameOperation, Stage, name_operation_of};
use crate::names::{Stop, directory_of};
use crate::operations::Request;
use crate::peer::{EnterMode, Message, Outcome, PeerMessage, Step, StepRequest};
use crate::record::{Action, Change, Effect, Reply};
use crate::reply::Context;
use crate::transactions::TransactionId;
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

/// How far a rename that is more than one record has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RenameStage {
    /// It waits for the lock, and holds nothing.
    Locking,
    /// It holds the source name and asks upwards from the destination.
    Ancestry(Entry),
    /// The destination's shard prepares the new entry.
    Entering(Entry),
    /// Exchange: it asks upwards from the source, for the second entry.
    SecondAncestry(Entry, Entry),
    /// The shards of the inodes prepare what changes there.
    Preparing,
}

/// What stands at the destination of a rename.
pub(crate) enum Obstacle {
    /// Nothing, or a file that is replaced.
    Free { replaced: Option<Entry> },
    /// The inode itself.
    Same,
    /// A directory, which has to be empty.
    Directory(Entry),
}

/// What a rename may do to what it meets.
fn mode_of(request: &NameRequest) -> Result<EnterMode, Status> {
    let flags = request.flags.get();
    match (flags & name_flags::NO_REPLACE != 0, flags & name_flags::EXCHANGE != 0) {
        (false, false) => Ok(EnterMode::Replace),
        (true, false) => Ok(EnterMode::NoReplace),
        (false, true) => Ok(EnterMode::Exchange),
        (true, true) => Err(Status::INVALID),
    }
}

fn exchanges(request: &NameRequest) -> bool {
    request.flags.get() & name_flags::EXCHANGE != 0
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
        let mode = mode_of(request)?;
        self.check_free(parent, names.name, None)?;
        let entry = self.entry(parent, names.name).ok_or(Status::NOT_FOUND)?;
        let moves_directory = is_directory(entry) && parent != to_parent;
        let is_here = to_shard == context.shard() && shard_of(entry.inode) == to_shard;
        if is_here && !moves_directory && mode != EnterMode::Exchange {
            self.check_place(to_parent, names.to_name)?;
            let no_replace = mode == EnterMode::NoReplace;
            let replaced = match self.obstacle((to_parent, names.to_name), entry, no_replace)? {
                Obstacle::Same => {
                    let after = self.last_lsn;
                    self.answer_entry(context, after, (Attributes::default(), 0), None, sink);
                    return Ok(());
                }
                Obstacle::Free { replaced } => replaced,
                Obstacle::Directory(old) => Some(old),
            };
            if replaced.is_none_or(|old| shard_of(old.inode) == to_shard) {
                let drop_inode = match replaced {
                    Some(old) if is_directory(old) => self.check_removable(old.inode, None)?,
                    Some(old) => {
                        self.check_free(old.inode, b"", None)?;
                        self.nodes.contains_key(&old.inode)
                    }
                    None => false,
                };
                self.rename_here(now, context, parent, to_parent, names, drop_inode, sink);
                return Ok(());
            }
        }
        let stage = Stage::Start;
        let operation = Box::new(name_operation_of(request, names, stage));
        let Some(id) = self.keep_name(*context, operation, sink) else { return Ok(()) };
        let context = Context { operation: Some(id), ..*context };
        if let Some(kept) = self.operations.find_mut(id)
            && let Request::Name(operation) = std::mem::take(&mut kept.request)
        {
            self.begin_rename(now, context, operation, sink);
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
        if no_replace {
            return Err(Status::EXISTS);
        }
        if old.inode == entry.inode {
            return Ok(Obstacle::Same);
        }
        match (is_directory(entry), is_directory(old)) {
            (true, true) => Ok(Obstacle::Directory(old)),
            (false, false) => Ok(Obstacle::Free { replaced: Some(old) }),
            (true, false) => Err(Status::NOT_DIRECTORY),
            (false, true) => Err(Status::IS_DIRECTORY),
        }
    }

    /// Begins a rename of more than one record, or begins it anew.
    pub(crate) fn begin_rename(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let parent = operation.request.parent.inode();
        self.start_plan(&mut operation);
        if let Err(status) = self.check_parent(parent) {
            return self.end_plan(context, operation, Err(status), sink);
        }
        if self.held.holder(parent, &operation.name).is_some() {
            let name = operation.name.clone();
            return self.wait_for_name(context, operation, (parent, &name), sink);
        }
        let Some(entry) = self.entry(parent, &operation.name) else {
            return self.end_plan(context, operation, Err(Status::NOT_FOUND), sink);
        };
        let to_parent = operation.request.to_parent.inode();
        let exchanges = exchanges(&operation.request);
        // What an exchange finds at the destination may be a directory.
        if parent != to_parent && (is_directory(entry) || exchanges) && !operation.locked {
            operation.stage = Stage::Rename(RenameStage::Locking);
            return self.go_on(id, operation, Step::LockRenames, sink);
        }
        let name = operation.name.clone();
        if exchanges {
            self.hold_own(id, &mut operation, (parent, &name));
        } else {
            let holder = self.holder(id);
            self.held.hold(parent, &name, holder);
            operation.plan.take_on(&removal(now, parent, &name));
        }
        if parent != to_parent && is_directory(entry) {
            operation.stage = Stage::Rename(RenameStage::Ancestry(entry));
            let step = Step::Ancestry { from: to_parent, sought: entry.inode };
            return self.go_on(id, operation, step, sink);
        }
        self.enter(context, operation, entry, sink);
    }

    /// Asks the destination's shard for the new entry.
    fn enter(
        &mut self,
        context: Context,
        mut operation: Box<NameOperation>,
        entry: Entry,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let mode = match mode_of(&operation.request) {
            Ok(mode) => mode,
            Err(status) => return self.end_plan(context, operation, Err(status), sink),
        };
        operation.stage = Stage::Rename(RenameStage::Entering(entry));
        let directory = operation.request.to_parent.inode();
        let step = Step::Enter { directory, name: operation.to_name.clone(), entry, mode };
        self.go_on(id, operation, step, sink);
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
        match (stage, outcome) {
            (RenameStage::Locking, Outcome::Done) => {
                operation.locked = true;
                self.begin_rename(now, context, operation, sink);
            }
            (
                RenameStage::Ancestry(_) | RenameStage::SecondAncestry(..),
                Outcome::Ancestor(true),
            ) => self.end_plan(context, operation, Err(Status::INVALID), sink),
            (RenameStage::Ancestry(entry), Outcome::Ancestor(false)) => {
                self.enter(context, operation, entry, sink);
            }
            (
                RenameStage::Ancestry(Entry { inode: sought, .. })
                | RenameStage::SecondAncestry(_, Entry { inode: sought, .. }),
                Outcome::Continue(from),
            ) => self.go_on(id, operation, Step::Ancestry { from, sought }, sink),
            (RenameStage::Entering(_), Outcome::Same) => {
                self.end_unchanged(context, operation, sink);
            }
            (RenameStage::Entering(entry), Outcome::Entered { replaced }) => {
                self.entered(now, context, operation, (entry, replaced), sink);
            }
            (RenameStage::SecondAncestry(entry, other), Outcome::Ancestor(false)) => {
                self.prepare_both(now, context, operation, (entry, other), sink);
            }
            (RenameStage::Preparing, Outcome::Done) => {
                self.prepare_next(now, context, operation, sink);
            }
            (_, Outcome::Failed(status)) => {
                self.end_plan(context, operation, Err(status), sink);
            }
            (_, _) => self.end_plan(context, operation, Err(Status::IO), sink),
        }
    }

    /// The destination's shard has prepared the new entry: the inodes follow.
    fn entered(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        (entry, replaced): (Entry, Option<Entry>),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let parent = operation.request.parent.inode();
        let to_parent = operation.request.to_parent.inode();
        match replaced {
            Some(other) if exchanges(&operation.request) => {
                if parent != to_parent && is_directory(other) {
                    operation.stage = Stage::Rename(RenameStage::SecondAncestry(entry, other));
                    let step = Step::Ancestry { from: parent, sought: other.inode };
                    return self.go_on(id, operation, step, sink);
                }
                return self.prepare_both(now, context, operation, (entry, other), sink);
            }
            Some(Entry { inode, .. }) if replaced.is_some_and(is_directory) => {
                operation.plan.remaining.push(Step::RemoveDirectory { inode });
            }
            Some(Entry { inode, .. }) => operation.plan.remaining.push(Step::Unlink { inode }),
            None => {}
        }
        let moved = self.moved(&context, &operation, entry, (parent, to_parent));
        operation.plan.remaining.push(moved);
        self.prepare_next(now, context, operation, sink);
    }

    /// What changes at an inode whose entry moves between directories. A directory gets another
    /// parent, and so whoever asks has to have the right to write to it.
    fn moved(
        &self,
        context: &Context,
        operation: &NameOperation,
        entry: Entry,
        (from, to): (Inode, Inode),
    ) -> Step {
        if !is_directory(entry) || from == to {
            return Step::Touch { inode: entry.inode };
        }
        let asker = match self.asker(context.session, operation.request.identity.get()) {
            Ok(asker) => asker.copied(),
            // It was taken back meanwhile.
            Err(_) => Some(Identity::nobody()),
        };
        Step::SetParent { inode: entry.inode, parent: to, asker }
    }

    /// Exchange: the second entry comes to the source name, and both inodes follow.
    fn prepare_both(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        (entry, other): (Entry, Entry),
        sink: &mut impl Sink,
    ) {
        let parent = operation.request.parent.inode();
        let to_parent = operation.request.to_parent.inode();
        let name = operation.name.clone();
        let Entry { inode, file_type } = other;
        let action = Action::Enter { entry: inode, file_type, name: &name };
        let time_ns = now.wall_ns as i64;
        operation.plan.take_on(&Effect { inode: parent, time_ns, action });
        for (entry, way) in [(entry, (parent, to_parent)), (other, (to_parent, parent))] {
            let moved = self.moved(&context, &operation, entry, way);
            operation.plan.remaining.push(moved);
        }
        self.prepare_next(now, context, operation, sink);
    }

    /// Asks for the next step of those that remain, or decides.
    fn prepare_next(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        operation.stage = Stage::Rename(RenameStage::Preparing);
        match operation.plan.remaining.pop() {
            Some(step) => self.go_on(id, operation, step, sink),
            None => self.decide(now, context, operation, Reply::Empty, sink),
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

    /// Lets the next one have the lock.
    pub(crate) fn send_unlock(&mut self, sink: &mut impl Sink) {
        let request = StepRequest {
            reactor: self.config.reactor,
            token: 0,
            order: 0,
            id: TransactionId { coordinator: ShardId(0), number: 0 },
            step: Step::UnlockRenames,
        };
        self.send(self.reactor_of(ShardId(0)), PeerMessage(Message::Step(request)), sink);
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
