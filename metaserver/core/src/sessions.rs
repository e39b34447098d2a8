//! Sessions of hosts: their slots at each shard, and how data servers name their memory.
//!
//! Kept replies survive a restart because the records of changes carry them; a session that the log
//! knows is *restarted*: its slots accept any sequence above the recorded one, as requests that
//! change nothing leave no record. Registrations live in memory only.

use std::collections::BTreeMap;

use gannet_proto::limits::SHARDS;
use gannet_proto::operations::{Attributes, Register, RequestHeader};
use gannet_proto::slots::{Admission, Slot};
use gannet_proto::{Inode, RegionId, SessionId, ShardId, Status};
use rustc_hash::FxHashMap;

use crate::identities::Identities;
use crate::opens::Open;
use crate::operations::OperationId;
use crate::record::IoKept;
use crate::registrations::Registrations;
use crate::{Lsn, SessionIndex};

/// Most sessions of a reactor.
pub(crate) const SESSIONS_MAX: usize = 1 << 16;

/// The kept answer of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptReply {
    /// Of a namespace or attribute request.
    Entry(Attributes),
    /// Of a write.
    Io(IoKept),
    /// Of a change of extended attributes.
    Xattr,
}

/// A slot, and whether its next sequence is open.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotState {
    pub slot: Slot<KeptReply, OperationId>,
    /// Nothing was asked since a restart.
    restarted: bool,
}

impl SlotState {
    /// Judges a request, see [`Slot::admit`].
    pub(crate) fn admit(
        &mut self,
        sequence: u64,
        attempt: u32,
    ) -> Admission<KeptReply, OperationId> {
        if self.restarted {
            let recorded = match &self.slot {
                Slot::Answered { sequence, .. } => *sequence,
                _ => 0,
            };
            if sequence > recorded {
                self.restarted = false;
                return Admission::New;
            }
        }
        self.slot.admit(sequence, attempt)
    }

    /// Whether a request is what [`Slot::admit`] calls new, behind another one that was answered or
    /// that the data servers answer.
    #[inline]
    pub(crate) fn is_next(&self, sequence: u64) -> bool {
        match &self.slot {
            Slot::Answered { sequence: last, .. } | Slot::Delegated { sequence: last, .. } => {
                sequence == last.wrapping_add(1) && !self.restarted
            }
            Slot::Fresh | Slot::Busy { .. } => false,
        }
    }

    /// Whether `id` is the request that the slot carries.
    pub(crate) fn carries(&self, id: OperationId) -> bool {
        match &self.slot {
            Slot::Busy { operation, .. } | Slot::Delegated { operation, .. } => *operation == id,
            _ => false,
        }
    }
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: SessionId,
    pub instance: u64,
    pub connected: bool,
    /// The log knows it.
    pub durable: bool,
    /// Where the log says that a start has to wait for what it has open.
    pub known_since: Option<Lsn>,
    restarted: bool,
    pub identities: Identities,
    /// What it has open, by inode and its own number.
    pub opens: BTreeMap<(Inode, u32), Open>,
    /// By shard, then by slot.
    slots: Vec<Vec<SlotState>>,
    pub registrations: Registrations,
}

impl Session {
    fn new(id: SessionId, instance: u64, restarted: bool) -> Session {
        Session {
            id,
            instance,
            connected: false,
            durable: restarted,
            known_since: restarted.then_some(Lsn(0)),
            restarted,
            identities: Identities::default(),
            opens: BTreeMap::new(),
            slots: (0..SHARDS).map(|_| Vec::new()).collect(),
            registrations: Registrations::default(),
        }
    }

    /// A slot; the table grows up to it.
    pub(crate) fn slot(&mut self, shard: ShardId, slot: u16) -> &mut SlotState {
        let (slots, index) = (&mut self.slots[usize::from(shard.0)], usize::from(slot));
        if slots.len() <= index {
            let restarted = self.restarted;
            let len = (index + 1).next_power_of_two();
            slots.resize_with(len, || SlotState { slot: Slot::Fresh, restarted });
        }
        &mut slots[index]
    }

    /// The slot of a request if it was used before, and how data servers name the host's memory.
    #[inline]
    pub(crate) fn used_slot(
        &mut self,
        header: &RequestHeader,
    ) -> Option<(&mut SlotState, &Registrations)> {
        let slots = self.slots.get_mut(usize::from(header.shard.get()))?;
        let slot = slots.get_mut(usize::from(header.slot.get()))?;
        Some((slot, &self.registrations))
    }

    /// Kept replies in order, for comparison.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (usize, usize, u64, &KeptReply)> {
        self.slots.iter().enumerate().flat_map(|(shard, slots)| {
            slots.iter().enumerate().filter_map(move |(index, slot)| match &slot.slot {
                Slot::Answered { sequence, reply: Some(reply), .. } => {
                    Some((shard, index, *sequence, reply))
                }
                _ => None,
            })
        })
    }
}

/// All sessions of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    slab: Vec<Option<Session>>,
    free: Vec<u32>,
    index: FxHashMap<u64, u32>,
}

impl Sessions {
    /// A session that exists.
    #[inline]
    pub(crate) fn find(&mut self, index: SessionIndex) -> Option<&mut Session> {
        self.slab.get_mut(index.0 as usize)?.as_mut()
    }

    /// A session that exists.
    pub(crate) fn view(&self, index: SessionIndex) -> Option<&Session> {
        self.slab.get(index.0 as usize)?.as_ref()
    }

    /// All sessions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SessionIndex, &Session)> {
        self.slab.iter().enumerate().filter_map(|(index, session)| {
            session.as_ref().map(|session| (SessionIndex(index as u32), session))
        })
    }

    /// Opens or resumes a session.
    ///
    /// # Errors
    /// `ACCESS` if the session belongs to another instance, `AGAIN` if there are too many,
    /// `INVALID` for session 0, which stands for none.
    pub(crate) fn open(
        &mut self,
        id: SessionId,
        instance: u64,
    ) -> Result<(SessionIndex, bool), Status> {
        if id.0 == 0 {
            return Err(Status::INVALID);
        }
        if let Some(index) = self.index.get(&id.0).copied() {
            let index = SessionIndex(index);
            return match self.find(index) {
                Some(session) if session.instance == instance => {
                    session.connected = true;
                    Ok((index, true))
                }
                _ => Err(Status::ACCESS),
            };
        }
        let index = self.insert(Session::new(id, instance, false)).ok_or(Status::AGAIN)?;
        if let Some(session) = self.find(index) {
            session.connected = true;
        }
        Ok((index, false))
    }

    fn insert(&mut self, session: Session) -> Option<SessionIndex> {
        let id = session.id.0;
        let index = match self.free.pop() {
            Some(index) => {
                self.slab[index as usize] = Some(session);
                index
            }
            None if self.slab.len() < SESSIONS_MAX => {
                self.slab.push(Some(session));
                (self.slab.len() - 1) as u32
            }
            None => return None,
        };
        self.index.insert(id, index);
        Some(SessionIndex(index))
    }

    /// A session that the log knows. `None` if there are too many.
    pub(crate) fn of_log(&mut self, id: u64, instance: u64) -> Option<&mut Session> {
        let index = match self.index.get(&id).copied() {
            Some(index) => SessionIndex(index),
            None => self.insert(Session::new(SessionId(id), instance, true))?,
        };
        let session = self.find(index)?;
        session.instance = instance;
        session.durable = true;
        Some(session)
    }

    /// Notes a kept reply of a record. `false` if there are too many sessions.
    pub(crate) fn recorded(
        &mut self,
        (id, instance): (u64, u64),
        (shard, slot, sequence): (ShardId, u16, u64),
        reply: KeptReply,
    ) -> bool {
        let Some(session) = self.of_log(id, instance) else { return false };
        let slot = session.slot(shard, slot);
        slot.slot.answer(sequence, 1, Some(reply));
        true
    }

    /// Forgets a session.
    pub(crate) fn remove(&mut self, id: u64) {
        if let Some(index) = self.index.remove(&id) {
            self.slab[index as usize] = None;
            self.free.push(index);
        }
    }

    /// Notes how a data server names a region. `false` if the session has too many.
    pub(crate) fn register(&mut self, index: SessionIndex, register: &Register) -> bool {
        self.find(index).is_some_and(|session| session.registrations.note(register))
    }

    /// Forgets a region at all data servers.
    pub(crate) fn unregister(&mut self, index: SessionIndex, region: RegionId) {
        if let Some(session) = self.find(index) {
            session.registrations.forget(region);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_resumed_by_the_same_instance_only() {
        let mut sessions = Sessions::default();
        let (index, resumed) = sessions.open(SessionId(5), 1).unwrap();
        assert!(!resumed);
        assert_eq!(sessions.open(SessionId(5), 1), Ok((index, true)));
        assert_eq!(sessions.open(SessionId(5), 2), Err(Status::ACCESS));
        assert_eq!(sessions.open(SessionId(0), 2), Err(Status::INVALID));
        sessions.remove(5);
        assert_eq!(sessions.open(SessionId(5), 2), Ok((index, false)));
    }

    #[test]
    fn after_a_restart_a_slot_goes_on_from_any_higher_sequence() {
        let mut sessions = Sessions::default();
        let reply = KeptReply::Io(IoKept::default());
        assert!(sessions.recorded((5, 1), (ShardId(0), 3, 7), reply));
        let (index, resumed) = sessions.open(SessionId(5), 1).unwrap();
        assert!(resumed);
        let session = sessions.find(index).unwrap();
        let slot = session.slot(ShardId(0), 3);
        assert_eq!(slot.admit(6, 1), Admission::BadSequence);
        assert_eq!(slot.admit(7, 2), Admission::Replay(reply));
        assert_eq!(slot.admit(12, 1), Admission::New);
        slot.slot.answer(12, 1, None);
        assert_eq!(slot.admit(14, 1), Admission::BadSequence);
        assert_eq!(session.slot(ShardId(9), 0).admit(40, 3), Admission::New);
    }
}
