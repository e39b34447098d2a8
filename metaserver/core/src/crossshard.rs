//! Steps of operations over several shards, at the shards that take part.
//!
//! A step is checked, then what it will do is prepared: by one record at a participant, in the
//! operation's plan at the coordinator's own shard. Names and inodes that are concerned are held from
//! then on until the operation has ended.

use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::{Inode, ShardId, Status};

use crate::held::{Holder, Waiter};
use crate::identities::WRITE;
use crate::names::Stop;
use crate::namespace::{Node, StoreSet};
use crate::operations::{OperationId, Request};
use crate::peer::{EnterMode, Message, Outcome, PeerMessage, Step, StepRequest};
use crate::record::{Action, Change, Effect, Effects};
use crate::rename::Obstacle;
use crate::transactions::Part;
use crate::{Core, Lsn, Now, Sink};

impl Step {
    /// The shard that does it.
    pub(crate) fn shard(&self) -> ShardId {
        let inode = match self {
            Step::MakeDirectory { shard, .. } => return *shard,
            Step::LockRenames | Step::UnlockRenames => return ShardId(0),
            Step::RemoveDirectory { inode, .. }
            | Step::Link { inode }
            | Step::Unlink { inode, .. }
            | Step::SetParent { inode, .. }
            | Step::Touch { inode, .. }
            | Step::Enter { directory: inode, .. }
            | Step::AwaitName { directory: inode, .. }
            | Step::Look { directory: inode, .. }
            | Step::Rights { inode, .. }
            | Step::Ancestry { from: inode, .. } => *inode,
        };
        // Handles and records with another one are refused where they come in.
        inode.shard().unwrap_or(ShardId(0))
    }

    /// Whether it prepares something.
    pub(crate) fn prepares(&self) -> bool {
        !matches!(
            self,
            Step::AwaitName { .. }
                | Step::Ancestry { .. }
                | Step::Look { .. }
                | Step::Rights { .. }
                | Step::LockRenames
                | Step::UnlockRenames
        )
    }
}

impl Core {
    /// Does a step, and answers it unless it has to wait.
    pub(crate) fn perform(&mut self, now: Now, request: StepRequest, sink: &mut impl Sink) {
        let coordinator = (request.reactor, request.token);
        let outcome = match &request.step {
            Step::Ancestry { from, sought } => self.ancestry(*from, *sought),
            Step::Look { directory, name, asker } => {
                match self.standing(*directory, name, asker.as_ref()) {
                    Ok(standing) => Outcome::Standing(standing),
                    Err(Stop::Status(status)) => Outcome::Failed(status),
                    Err(Stop::Held(directory, name)) => Outcome::Held(directory, name),
                }
            }
            Step::Rights { inode, asker } => Outcome::Rights(*inode, self.rights(*inode, asker)),
            Step::AwaitName { directory, name } => {
                if self.held.holder(*directory, name).is_none() {
                    Outcome::Done
                } else if self.held.wait(*directory, name, Waiter::Step(request.clone())) {
                    return;
                } else {
                    // Too many wait: beginning anew would meet the same.
                    Outcome::Failed(Status::AGAIN)
                }
            }
            Step::LockRenames => return self.lock_renames(&request, sink),
            Step::UnlockRenames => return self.unlock_renames(sink),
            _ => match self.prepare(now, &request, sink) {
                Ok(outcome) => outcome,
                Err(Stop::Status(status)) => Outcome::Failed(status),
                Err(Stop::Held(directory, name)) => {
                    // The older one waits, the younger one lets go of everything and begins again.
                    let mine = (request.order, request.reactor);
                    let is_older = self.held.holder(directory, &name).is_some_and(|h| mine < h);
                    if !is_older {
                        Outcome::Held(directory, name)
                    } else if self.held.wait(directory, &name, Waiter::Step(request.clone())) {
                        return;
                    } else {
                        Outcome::Failed(Status::AGAIN)
                    }
                }
            },
        };
        self.answer_step(coordinator, outcome, sink);
    }

    /// Checks a step and prepares what it will do.
    fn prepare(
        &mut self,
        now: Now,
        request: &StepRequest,
        sink: &mut impl Sink,
    ) -> Result<Outcome, Stop> {
        let (shard, mine) = (request.step.shard(), (request.order, request.reactor));
        let effect = |inode, action| Effect { inode, time_ns: now.wall_ns as i64, action };
        let (effect, outcome) = match &request.step {
            Step::MakeDirectory { parent, mode, uid, gid, .. } => {
                let inode = self.new_inode(shard);
                let (parent, mode, uid, gid) = (*parent, *mode, *uid, *gid);
                let made = effect(inode, Action::Make { parent, mode, uid, gid });
                let (owner, set) = ((mode, uid, gid), StoreSet::default());
                let node = Node::new(inode, parent, owner, set, made.time_ns, Lsn(0));
                (Some(made), Outcome::Attributes(node.attributes()))
            }
            Step::RemoveDirectory { inode, owner } => {
                self.check_owner(*inode, *owner)?;
                let is_there = self.check_removable(*inode, Some(mine))?;
                (is_there.then(|| effect(*inode, Action::Drop)), Outcome::Done)
            }
            Step::Link { inode } => {
                self.check_free(*inode, b"", Some(mine))?;
                let found = self.check_link(*inode)?;
                let linked = effect(*inode, Action::Link);
                let ctime_ns = found.ctime_ns.get().max(linked.time_ns).into();
                let links = (found.links.get() + 1).into();
                let attributes = Attributes { links, ctime_ns, ..found };
                (Some(linked), Outcome::Attributes(attributes))
            }
            Step::Unlink { inode, owner } => {
                self.check_free(*inode, b"", Some(mine))?;
                self.check_owner(*inode, *owner)?;
                let node = self.nodes.get(inode);
                if node.is_some_and(|node| node.directory().is_some()) {
                    return Err(Stop::Status(Status::IS_DIRECTORY));
                }
                (node.map(|_| effect(*inode, Action::Unlink)), Outcome::Done)
            }
            Step::Enter { directory, name, entry, mode, asker } => {
                self.check_parent(*directory)?;
                self.check_free(*directory, b"", Some(mine))?;
                self.check_free(*directory, name, Some(mine))?;
                let guarded = self.check_change(*directory, asker.as_ref())?.is_some();
                let no_replace = *mode == EnterMode::NoReplace;
                let replaced = match (mode, self.entry(*directory, name)) {
                    (EnterMode::Exchange, None) => return Err(Status::NOT_FOUND.into()),
                    (EnterMode::Exchange, Some(old)) if old.inode == entry.inode => {
                        return Ok(Outcome::Same);
                    }
                    (EnterMode::Exchange, old) => old,
                    _ => match self.obstacle((*directory, name), *entry, no_replace)? {
                        Obstacle::Same => return Ok(Outcome::Same),
                        Obstacle::Free { replaced } => replaced,
                        Obstacle::Directory(old) => Some(old),
                    },
                };
                let (inode, file_type) = (entry.inode, entry.file_type);
                let entered = Action::Enter { entry: inode, file_type, name };
                (Some(effect(*directory, entered)), Outcome::Entered { replaced, guarded })
            }
            Step::SetParent { inode, parent, asker, owner } => {
                self.check_free(*inode, b"", Some(mine))?;
                self.check_owner(*inode, *owner)?;
                if let Some(asker) = asker {
                    self.check_access(*inode, WRITE, asker)?;
                }
                let node = self.nodes.get(inode).filter(|node| node.directory().is_some());
                let moved = Action::Reparent { parent: *parent };
                (node.map(|_| effect(*inode, moved)), Outcome::Done)
            }
            Step::Touch { inode, owner } => {
                self.check_free(*inode, b"", Some(mine))?;
                self.check_owner(*inode, *owner)?;
                let node = self.nodes.get(inode);
                (node.map(|_| effect(*inode, Action::Touch)), Outcome::Done)
            }
            _ => return Err(Stop::Status(Status::IO)),
        };
        // What is gone needs no change: its entry leads to nothing.
        if let Some(effect) = effect {
            self.take_on(now, request, &effect, sink);
        }
        Ok(outcome)
    }

    /// Prepares an effect: in the plan of an operation of this shard, else by a record.
    fn take_on(
        &mut self,
        now: Now,
        request: &StepRequest,
        effect: &Effect<'_>,
        sink: &mut impl Sink,
    ) {
        let shard = request.step.shard();
        if shard == request.id.coordinator {
            let id = OperationId::from_token(request.token);
            let holder = self.holder(id);
            let Some(operation) = self.operations.find_mut(id) else { return };
            let Request::Name(name) = &mut operation.request else { return };
            name.plan.take_on(effect);
            if let Some(name) = effect.held_name() {
                self.held.hold(effect.inode, name, holder);
            }
            return;
        }
        let mut effects = Effects::default();
        effects.push(effect);
        let (coordinator, order) = (request.id.coordinator, request.order);
        let origin = self.origin_of_core_with(now, Some(shard), request.id.number);
        let change = Change::Prepared { coordinator, order, effects: effects.list() };
        self.commit(&origin, &change, sink);
    }

    /// Whether nobody but `mine` has a name in hand.
    pub(crate) fn check_free(
        &self,
        directory: Inode,
        name: &[u8],
        mine: Option<Holder>,
    ) -> Result<(), Stop> {
        match self.held.holder(directory, name) {
            Some(holder) if Some(holder) != mine => Err(Stop::Held(directory, name.into())),
            _ => Ok(()),
        }
    }

    /// Whether a directory of this reactor can be removed. `false`: it is gone.
    ///
    /// # Errors
    /// `NOT_EMPTY`, `NOT_DIRECTORY`, or what is held of it.
    pub(crate) fn check_removable(&self, inode: Inode, mine: Option<Holder>) -> Result<bool, Stop> {
        let Some(node) = self.nodes.get(&inode) else { return Ok(false) };
        let directory = node.directory().ok_or(Status::NOT_DIRECTORY)?;
        if !directory.entries.is_empty() {
            return Err(Stop::Status(Status::NOT_EMPTY));
        }
        match self.held_inside(inode, mine) {
            Some(name) => Err(Stop::Held(inode, name)),
            None => Ok(true),
        }
    }

    /// Walks upwards as far as the directories are this reactor's.
    fn ancestry(&self, from: Inode, sought: Inode) -> Outcome {
        let mut at = from;
        // The tree has no cycle, but a bound costs nothing.
        for _ in 0..=self.nodes.len() {
            if at == sought {
                return Outcome::Ancestor(true);
            }
            if at == Inode::ROOT {
                return Outcome::Ancestor(false);
            }
            if !self.is_local(at) {
                return Outcome::Continue(at);
            }
            match self.nodes.get(&at).map(|node| node.directory()) {
                Some(Some(directory)) => at = directory.parent,
                Some(None) => return Outcome::Failed(Status::NOT_DIRECTORY),
                None => return Outcome::Failed(Status::STALE_HANDLE),
            }
        }
        Outcome::Failed(Status::IO)
    }

    /// The decision on what was prepared here.
    pub(crate) fn decision_came(
        &mut self,
        now: Now,
        (from, token): (u16, u64),
        part: Part,
        commits: bool,
        sink: &mut impl Sink,
    ) {
        self.apply_decision(now, part, commits, sink);
        if !commits {
            return;
        }
        let applied = PeerMessage(Message::Applied { id: part.0, token });
        if from == self.config.reactor {
            self.local.push_back(applied);
        } else {
            // The decision is durable, so its effects may be seen.
            sink.peer(from, Lsn(0), applied);
        }
        self.send(from, PeerMessage(Message::Confirmed { part }), sink);
    }

    /// What was prepared takes effect, or not. A step that found nothing to do prepared nothing.
    pub(crate) fn apply_decision(
        &mut self,
        now: Now,
        part: Part,
        commits: bool,
        sink: &mut impl Sink,
    ) {
        if !self.transactions.is_prepared(part) {
            return;
        }
        let (id, shard) = part;
        let coordinator = id.coordinator;
        let origin = self.origin_of_core_with(now, Some(shard), id.number);
        let change = match commits {
            true => Change::Applied { coordinator },
            false => Change::Aborted { coordinator },
        };
        self.commit(&origin, &change, sink);
    }
}

/// Whether an entry leads to a directory.
pub(crate) fn is_directory(entry: crate::directory::Entry) -> bool {
    entry.file_type == file_type::DIRECTORY
}
