//! RENAME, and its exchange of two names.
//!
//! Inside a shard a rename is one record, unless a directory gets another parent. All others, and
//! every exchange, are operations that the source's shard coordinates (see [`crate::coordinator`]):
//! it asks for what its checks need ([`crate::rename_checks`]), holding nothing, then it holds the source
//! name, the destination's shard prepares the new entry, then the shards of the
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

use gannet_proto::operations::{Attributes, NameRequest, Names, name_flags};
use gannet_proto::{Inode, ShardId, Status};

use crate::coordinator::removal;
use crate::crossshard::is_directory;
use crate::directory::Entry;
use crate::identities::Identity;
use crate::name_operations::{NameOperation, Stage, name_operation_of};
use crate::names::Stop;
use crate::operations::Request;
use crate::peer::{Message, Outcome, PeerMessage, Step, StepRequest};
use crate::record::{Action, Change, Effect, Reply};
use crate::rename_checks::{Facts, Verdict, mode_of};
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
    /// Another shard is asked for what the checks lack; it holds nothing.
    Checking,
    /// It asks upwards whether this directory is above the place that it moves to; it holds nothing.
    Ancestry(Inode),
    /// The destination's shard prepares the new entry, over what stood there when it was asked.
    Entering(Entry, Option<Entry>),
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

fn exchanges(request: &NameRequest) -> bool {
    request.flags.get() & name_flags::EXCHANGE != 0
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
        let asker = self.asker(context.session, request.identity.get())?;
        let known = Facts::default();
        let to_parent = request.to_parent.inode();
        match self.judge_rename(request, names, asker, (&known, false))? {
            Verdict::Same => {
                let after = self.last_lsn;
                self.answer_entry(context, after, (Attributes::default(), 0), None, sink);
                return Ok(());
            }
            Verdict::Go(entry, over) if Core::is_one_record(request, entry, over) => {
                let drop_inode = match over {
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
            Verdict::Go(..) | Verdict::Ask(_) => {}
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Start));
        let Some(id) = self.keep_name(*context, operation, sink) else { return Ok(()) };
        let context = Context { operation: Some(id), ..*context };
        if let Some(kept) = self.operations.find_mut(id)
            && let Request::Name(operation) = std::mem::take(&mut kept.request)
        {
            self.begin_rename(now, context, operation, sink);
        }
        Ok(())
    }

    /// Whether all that a rename changes lies in the shard of its source, and no directory moves.
    fn is_one_record(request: &NameRequest, entry: Entry, over: Option<Entry>) -> bool {
        let (parent, to_parent) = (request.parent.inode(), request.to_parent.inode());
        let moves_directory = parent != to_parent && is_directory(entry);
        let inodes = [Some(to_parent), Some(entry.inode), over.map(|old| old.inode)];
        let is_here = inodes.into_iter().flatten().all(|inode| inode.shard() == parent.shard());
        is_here && !moves_directory && !exchanges(request)
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
        self.start_plan(&mut operation);
        operation.facts = Facts::default();
        self.check_rename(now, context, operation, sink);
    }

    /// Goes through the checks, as far as what they need is known, and on from there.
    fn check_rename(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let NameOperation { request, name, to_name, facts, locked, .. } = &*operation;
        let names = Names { name, to_name };
        let asker = self.asker(context.session, request.identity.get()).map_err(Stop::Status);
        let verdict =
            asker.and_then(|asker| self.judge_rename(request, names, asker, (facts, *locked)));
        match verdict {
            Ok(Verdict::Go(entry, over)) => {
                self.enter(now, context, operation, (entry, over), sink);
            }
            Ok(Verdict::Same) => self.end_unchanged(context, operation, sink),
            Ok(Verdict::Ask(step)) => {
                operation.stage = Stage::Rename(match &step {
                    Step::LockRenames => RenameStage::Locking,
                    Step::Ancestry { sought, .. } => RenameStage::Ancestry(*sought),
                    _ => RenameStage::Checking,
                });
                self.go_on(id, operation, step, sink);
            }
            Err(Stop::Status(status)) => self.end_plan(context, operation, Err(status), sink),
            Err(Stop::Held(directory, name)) => {
                self.wait_for_name(context, operation, (directory, &name), sink);
            }
        }
    }

    /// Holds the source name, and asks the destination's shard for the new entry.
    fn enter(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        (entry, over): (Entry, Option<Entry>),
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let (parent, name) = (operation.request.parent.inode(), operation.name.clone());
        if exchanges(&operation.request) {
            self.hold_own(id, &mut operation, (parent, &name));
        } else {
            let holder = self.holder(id);
            self.held.hold(parent, &name, holder);
            operation.plan.take_on(&removal(now, parent, &name));
        }
        let mode = match mode_of(&operation.request) {
            Ok(mode) => mode,
            Err(status) => return self.end_plan(context, operation, Err(status), sink),
        };
        operation.stage = Stage::Rename(RenameStage::Entering(entry, over));
        let (directory, name) = (operation.request.to_parent.inode(), operation.to_name.clone());
        let asker = self.asker_of(&context, &operation);
        let step = Step::Enter { directory, name, entry, mode, asker };
        self.go_on(id, operation, step, sink);
    }

    /// On whose behalf an operation goes on: somebody without rights if the host took it back.
    fn asker_of(&self, context: &Context, operation: &NameOperation) -> Option<Identity> {
        match self.asker(context.session, operation.request.identity.get()) {
            Ok(asker) => asker.copied(),
            Err(_) => Some(Identity::nobody()),
        }
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
                self.check_rename(now, context, operation, sink);
            }
            (RenameStage::Checking, Outcome::Standing(standing)) => {
                operation.facts.standing = Some(standing);
                self.check_rename(now, context, operation, sink);
            }
            (RenameStage::Checking, Outcome::Rights(inode, rights)) => {
                operation.facts.rights.push((inode, rights));
                self.check_rename(now, context, operation, sink);
            }
            (RenameStage::Ancestry(_), Outcome::Ancestor(true)) => {
                self.end_plan(context, operation, Err(Status::INVALID), sink);
            }
            (RenameStage::Ancestry(sought), Outcome::Ancestor(false)) => {
                operation.facts.not_above.push(sought);
                self.check_rename(now, context, operation, sink);
            }
            (RenameStage::Ancestry(sought), Outcome::Continue(from)) => {
                self.go_on(id, operation, Step::Ancestry { from, sought }, sink);
            }
            (RenameStage::Entering(entry, over), Outcome::Entered { replaced, guarded }) => {
                if replaced == over {
                    let parts = (entry, replaced, guarded);
                    return self.entered(now, context, operation, parts, sink);
                }
                // It is not what the checks were about any more.
                self.abort_plan(context, &mut operation, sink);
                self.begin_rename(now, context, operation, sink);
            }
            (RenameStage::Entering(..), Outcome::Same) => {
                self.end_unchanged(context, operation, sink);
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
        (entry, replaced, guarded): (Entry, Option<Entry>, bool),
        sink: &mut impl Sink,
    ) {
        let (parent, to_parent) =
            (operation.request.parent.inode(), operation.request.to_parent.inode());
        let asker = self.asker_of(&context, &operation);
        let owner = match self.check_change(parent, asker.as_ref()) {
            Ok(owner) => owner,
            Err(status) => return self.end_plan(context, operation, Err(status), sink),
        };
        let old_owner = asker.filter(|_| guarded).map(|asker| asker.uid);
        let moved = moved(entry, (parent, to_parent), asker, owner);
        match replaced {
            Some(old) if exchanges(&operation.request) => {
                let name = operation.name.clone();
                let Entry { inode, file_type } = old;
                let action = Action::Enter { entry: inode, file_type, name: &name };
                let time_ns = now.wall_ns as i64;
                operation.plan.take_on(&Effect { inode: parent, time_ns, action });
                operation.plan.remaining.push(moved);
                let back = self::moved(old, (to_parent, parent), asker, old_owner);
                operation.plan.remaining.push(back);
            }
            Some(old) => {
                let (inode, owner) = (old.inode, old_owner);
                operation.plan.remaining.push(match is_directory(old) {
                    true => Step::RemoveDirectory { inode, owner },
                    false => Step::Unlink { inode, owner },
                });
                operation.plan.remaining.push(moved);
            }
            None => operation.plan.remaining.push(moved),
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

/// What changes at an inode whose entry moves between directories. A directory gets another parent, and
/// so whoever asks has to have the right to write to it.
fn moved(
    entry: Entry,
    (from, to): (Inode, Inode),
    asker: Option<Identity>,
    owner: Option<u32>,
) -> Step {
    let inode = entry.inode;
    match is_directory(entry) && from != to {
        true => Step::SetParent { inode, parent: to, asker, owner },
        false => Step::Touch { inode, owner },
    }
}
