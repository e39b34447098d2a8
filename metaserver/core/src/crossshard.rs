//! Steps of operations over several shards, at the shard that is not the coordinator.
//!
//! Every step that changes something is one record of this shard, tagged with the operation, and is
//! answered when it is durable.

use gannet_proto::operations::Attributes;
use gannet_proto::{Inode, ShardId, Status};

use crate::directory::Entry;
use crate::held::Waiter;
use crate::peer::{Outcome, Step, StepRequest};
use crate::record::{Change, Origin};
use crate::rename::Obstacle;
use crate::{Core, Now, Sink};

impl Core {
    /// Does a step, and answers it unless it has to wait.
    pub(crate) fn perform(&mut self, now: Now, request: StepRequest, sink: &mut impl Sink) {
        let coordinator = (request.reactor, request.token);
        let origin =
            |core: &Core, inode: Inode| core.origin_of_core_with(now, inode.shard(), request.order);
        let outcome = match &request.step {
            Step::MakeDirectory { shard, parent, mode, uid, gid } => {
                let inode = self.new_inode(*shard);
                let (parent, mode, uid, gid) = (*parent, *mode, *uid, *gid);
                let change = Change::DirectoryMade { parent, inode, mode, uid, gid };
                self.commit(&origin(self, inode), &change, sink);
                let node = self.nodes.get(&inode);
                Outcome::Made(node.map_or_else(Attributes::default, |node| node.attributes()))
            }
            Step::RemoveDirectory { inode } => {
                self.remove_directory(&origin(self, *inode), *inode, sink)
            }
            Step::DropLink { inode } => {
                if self.nodes.contains_key(inode) {
                    let dropped = Change::NodeDropped { inode: *inode };
                    self.commit(&origin(self, *inode), &dropped, sink);
                }
                Outcome::Done
            }
            Step::SetParent { inode, parent } => {
                if self.nodes.get(inode).is_some_and(|node| node.directory().is_some()) {
                    let moved = Change::ParentSet { inode: *inode, parent: *parent };
                    self.commit(&origin(self, *inode), &moved, sink);
                }
                Outcome::Done
            }
            Step::Ancestry { from, sought } => self.ancestry(*from, *sought),
            Step::Link { .. } => match self.enter(now, &request, sink) {
                Some(outcome) => outcome,
                None => return,
            },
            Step::CheckEntering { directory, name, replaces, identity } => {
                match self.check_entering(*directory, name, *replaces, identity) {
                    Ok(None) => Outcome::Done,
                    Ok(Some(inode)) => Outcome::Continue(inode),
                    Err(status) => Outcome::Failed(status),
                }
            }
            Step::CheckOwner { inode, uid } => checked(self.check_owner(*inode, *uid)),
            Step::CheckAccess { inode, wanted, identity } => {
                checked(self.check_access(*inode, *wanted, identity))
            }
            Step::Release { directory, name } => {
                let holder = (request.order, request.reactor);
                return self.let_go_of(*directory, name, holder);
            }
            Step::AwaitName { directory, name } => {
                let held = self.held.holder(*directory, name).is_some();
                let waiter = || Waiter::Step(request.clone());
                if held && self.held.wait(*directory, name, waiter()) {
                    return;
                }
                Outcome::Done
            }
            Step::LockRenames => return self.lock_renames(&request, sink),
            Step::UnlockRenames => return self.unlock_renames(sink),
        };
        self.answer_step(coordinator, outcome, sink);
    }

    fn remove_directory(&mut self, origin: &Origin, inode: Inode, sink: &mut impl Sink) -> Outcome {
        let Some(node) = self.nodes.get(&inode) else {
            return Outcome::Failed(Status::STALE_HANDLE);
        };
        match node.directory() {
            Some(directory) if directory.entries.is_empty() => {
                self.commit(origin, &Change::NodeDropped { inode }, sink);
                Outcome::Done
            }
            Some(_) => Outcome::Failed(Status::NOT_EMPTY),
            None => Outcome::Failed(Status::NOT_DIRECTORY),
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

    /// `Link`: enters an inode into a directory of this reactor. `None`: it waits for the name.
    fn enter(&mut self, now: Now, request: &StepRequest, sink: &mut impl Sink) -> Option<Outcome> {
        let Step::Link { directory, name, inode, file_type, no_replace, removed } = &request.step
        else {
            return None;
        };
        let (directory, mine) = (*directory, (request.order, request.reactor));
        if let Err(status) = self.check_parent(directory) {
            self.let_go_of(directory, name, mine);
            return Some(Outcome::Failed(status));
        }
        match self.held.holder(directory, name) {
            // The older one waits, the younger one lets go and begins again.
            Some(holder) if holder != mine && mine < holder => {
                let waits = self.held.wait(directory, name, Waiter::Step(request.clone()));
                return (!waits).then_some(Outcome::Failed(Status::AGAIN));
            }
            Some(holder) if holder != mine => return Some(Outcome::Held),
            _ => {}
        }
        let entry = Entry { inode: *inode, file_type: *file_type };
        let replaced = match self.obstacle((directory, name), entry, *no_replace) {
            _ if *removed => None,
            Ok(Obstacle::Free { replaced }) => replaced.map(|old| old.inode),
            Ok(Obstacle::Same) => return Some(Outcome::Same),
            Ok(Obstacle::Directory(old)) => {
                self.held.hold(directory, name, mine);
                return Some(Outcome::Replace(old.inode));
            }
            Err(status) => return Some(Outcome::Failed(status)),
        };
        let shard: Option<ShardId> = directory.shard();
        let origin = self.origin_of_core_with(now, shard, request.order);
        let added = Change::EntryAdded { directory, inode: *inode, file_type: *file_type, name };
        self.commit(&origin, &added, sink);
        self.let_go_of(directory, name, mine);
        Some(Outcome::Linked { replaced })
    }
}

/// The answer of a check that changes nothing.
fn checked(result: Result<(), Status>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(status) => Outcome::Failed(status),
    }
}
