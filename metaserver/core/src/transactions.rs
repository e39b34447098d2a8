//! Operations over several shards, as the log knows them: two-phase commit with presumed abort.
//!
//! The shard that a request names coordinates. Every other shard that takes part *prepares* its
//! effects by a record: from then on they are possible and what they concern is held, so that it
//! answers nobody. The *decision* is one record of the coordinator: it applies the coordinator's own
//! effects and keeps the request's answer. Then each participant *applies* by a record of its own,
//! and when all those are durable the coordinator *forgets*. An operation that fails is aborted by a
//! record of each participant and leaves none at the coordinator: what it does not know as decided
//! was not. [`crate::recovery`] brings to its end what a crash interrupts.
//!
//! Every try of an operation has a number of its own; an operation keeps its age.

use std::collections::BTreeMap;

use gannet_proto::{Inode, ShardId};

use crate::apply::contradiction;
use crate::directory::Entry;
use crate::held::Holder;
use crate::namespace::{Node, StoreSet};
use crate::record::{Action, Effect, EffectList, Effects, Origin, RecordError, ShardList};
use crate::{Core, Lsn};

/// Names a try of an operation over several shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TransactionId {
    pub coordinator: ShardId,
    pub number: u64,
}

/// A transaction at a participant.
pub(crate) type Part = (TransactionId, ShardId);

#[derive(Debug)]
struct Prepared {
    order: u64,
    effects: Effects,
}

/// What this reactor's shards prepared and do not know the decision of, and what they decided and
/// may be asked about. Both are bounded by the operations under way.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    prepared: BTreeMap<Part, Prepared>,
    decided: BTreeMap<TransactionId, Vec<ShardId>>,
}

impl Transactions {
    /// Whether nothing is prepared, and no decision is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.prepared.is_empty() && self.decided.is_empty()
    }

    /// What is prepared.
    pub(crate) fn prepared(&self) -> impl Iterator<Item = Part> {
        self.prepared.keys().copied()
    }

    /// Whether anything is prepared.
    pub(crate) fn has_prepared(&self) -> bool {
        !self.prepared.is_empty()
    }

    /// Whether a participant has prepared a transaction.
    pub(crate) fn is_prepared(&self, part: Part) -> bool {
        self.prepared.contains_key(&part)
    }

    /// Whether a transaction was decided for a participant that has not applied it.
    pub(crate) fn is_decided(&self, (id, shard): Part) -> bool {
        self.decided.get(&id).is_some_and(|participants| participants.contains(&shard))
    }

    /// What is decided and not forgotten.
    pub(crate) fn decided(&self) -> impl Iterator<Item = TransactionId> {
        self.decided.keys().copied()
    }

    /// A participant has applied a transaction durably. Whether that was the last.
    pub(crate) fn confirm(&mut self, (id, shard): Part) -> bool {
        let Some(participants) = self.decided.get_mut(&id) else { return false };
        participants.retain(|other| *other != shard);
        participants.is_empty()
    }

    /// All of it in words, in a fixed order.
    pub(crate) fn dump(&self, text: &mut String) {
        use std::fmt::Write as _;
        for (part, Prepared { order, effects }) in &self.prepared {
            let effects: Vec<Effect<'_>> = effects.list().iter().collect();
            let _ = writeln!(text, "prepared {part:?} order {order} {effects:?}");
        }
        // Participants leave one by one, without a record.
        for id in self.decided.keys() {
            let _ = writeln!(text, "decided {id:?}");
        }
    }
}

impl Core {
    fn holder_of(&self, id: TransactionId, order: u64) -> Holder {
        (order, self.reactor_of(id.coordinator))
    }

    /// Whether an effect is one of its shard and fits the state.
    fn check_effect(&self, shard: ShardId, effect: &Effect<'_>) -> Result<(), RecordError> {
        let inode = effect.inode;
        if inode.shard() != Some(shard) {
            return contradiction("an effect on another shard's inode", inode.0);
        }
        match effect.action {
            Action::Enter { .. } | Action::Reparent { .. } => self.check_directory(inode),
            Action::Remove { name } => self.check_entry(inode, name, true).map(|_| ()),
            Action::Make { .. } => self.check_new_node(inode),
            Action::Drop => match self.nodes.get(&inode).and_then(|node| node.directory()) {
                Some(directory) if directory.entries.is_empty() => Ok(()),
                _ => contradiction("an empty directory", inode.0),
            },
            Action::Link | Action::Unlink => match self.nodes.get(&inode) {
                Some(node) if node.directory().is_none() => Ok(()),
                _ => contradiction("a file", inode.0),
            },
            Action::Touch => self.check_node(inode),
        }
    }

    fn apply_effect(&mut self, effect: &Effect<'_>, lsn: Lsn) {
        let Effect { inode, time_ns, action } = *effect;
        match action {
            Action::Enter { entry, file_type, name } => {
                self.put_entry(inode, name, Entry { inode: entry, file_type }, time_ns, lsn);
            }
            Action::Remove { name } => {
                self.take_entry(inode, name, time_ns, lsn);
            }
            Action::Make { parent, mode, uid, gid } => {
                let set = StoreSet::default();
                self.add_node(Node::new(inode, parent, (mode, uid, gid), set, time_ns, lsn));
            }
            Action::Drop => self.release_node(inode, lsn),
            Action::Link => self.add_link(inode, time_ns, lsn),
            Action::Unlink => self.drop_link(inode, time_ns, lsn),
            Action::Reparent { parent } => self.set_parent(inode, parent, time_ns, lsn),
            Action::Touch => self.touch(inode, time_ns, lsn),
        }
    }

    pub(crate) fn apply_prepared(
        &mut self,
        origin: &Origin,
        (coordinator, order): (ShardId, u64),
        effects: EffectList<'_>,
    ) -> Result<(), RecordError> {
        let Some(shard) = origin.shard else {
            return contradiction("the shard of operation", origin.operation);
        };
        let id = TransactionId { coordinator, number: origin.operation };
        let holder = self.holder_of(id, order);
        for effect in effects.iter() {
            self.check_effect(shard, &effect)?;
            let held = effect.held_name().and_then(|name| self.held.holder(effect.inode, name));
            if held.is_some_and(|other| other != holder) {
                return contradiction("what an operation holds of inode", effect.inode.0);
            }
        }
        for effect in effects.iter() {
            if let Some(name) = effect.held_name() {
                self.held.hold(effect.inode, name, holder);
            } else {
                // The number is given out, whatever becomes of the operation.
                let state = &mut self.shards[usize::from(shard.0)];
                state.last_number = state.last_number.max(effect.inode.number());
            }
        }
        let blank = || Prepared { order, effects: Effects::default() };
        let prepared = self.transactions.prepared.entry((id, shard)).or_insert_with(blank);
        prepared.effects.extend(effects);
        Ok(())
    }

    pub(crate) fn apply_decided(
        &mut self,
        origin: &Origin,
        participants: ShardList<'_>,
        effects: EffectList<'_>,
        lsn: Lsn,
    ) -> Result<(), RecordError> {
        let Some(coordinator) = origin.shard else {
            return contradiction("the shard of operation", origin.operation);
        };
        effects.iter().try_for_each(|effect| self.check_effect(coordinator, &effect))?;
        effects.iter().for_each(|effect| self.apply_effect(&effect, lsn));
        let participants: Vec<ShardId> = participants.iter().collect();
        if !participants.is_empty() {
            let id = TransactionId { coordinator, number: origin.operation };
            self.transactions.decided.insert(id, participants);
        }
        Ok(())
    }

    /// What was prepared takes effect, or not, and is held no more.
    pub(crate) fn apply_outcome(
        &mut self,
        origin: &Origin,
        coordinator: ShardId,
        takes_effect: bool,
        lsn: Lsn,
    ) -> Result<(), RecordError> {
        let id = TransactionId { coordinator, number: origin.operation };
        let part = origin.shard.map(|shard| (id, shard));
        let Some((part, prepared)) =
            part.and_then(|part| Some((part, self.transactions.prepared.get(&part)?)))
        else {
            return contradiction("the preparation of operation", origin.operation);
        };
        if takes_effect {
            let effects = prepared.effects.list();
            effects.iter().try_for_each(|effect| self.check_effect(part.1, &effect))?;
        }
        let Some(prepared) = self.transactions.prepared.remove(&part) else { return Ok(()) };
        let holder = self.holder_of(id, prepared.order);
        for effect in prepared.effects.list().iter() {
            if takes_effect {
                self.apply_effect(&effect, lsn);
            }
            if let Some(name) = effect.held_name() {
                self.let_go_of(effect.inode, name, holder);
            }
        }
        Ok(())
    }

    /// The inode of which an operation takes a name, as its shard has prepared it.
    pub(crate) fn prepared_unlink(&self, origin: &Origin, coordinator: ShardId) -> Option<Inode> {
        let id = TransactionId { coordinator, number: origin.operation };
        self.transactions.prepared.get(&(id, origin.shard?))?.effects.list().unlinked()
    }

    pub(crate) fn apply_forgotten(&mut self, origin: &Origin) -> Result<(), RecordError> {
        let id = |coordinator| TransactionId { coordinator, number: origin.operation };
        let known = origin.shard.and_then(|shard| self.transactions.decided.remove(&id(shard)));
        match known {
            Some(_) => Ok(()),
            None => contradiction("the decision of operation", origin.operation),
        }
    }

    /// The name of a directory's entry that an operation has in hand, or of the directory itself:
    /// not free for `mine`.
    pub(crate) fn held_inside(&self, directory: Inode, mine: Option<Holder>) -> Option<Box<[u8]>> {
        let mut held = self.held.of(directory).filter(|(_, holder)| Some(*holder) != mine);
        held.next().map(|(name, _)| name.into())
    }
}
