//! Data sessions, without I/O: which host session may have which epoch on which connection.
//!
//! | state | opened, higher epoch | closed | hello with the ticket | drained | connection lost |
//! |---|---|---|---|---|---|
//! | none | `Draining` | acknowledged | refused | - | - |
//! | `Draining`: grants of lower epochs are under way | stays, new epoch | `Closing` | refused | `Announced` | - |
//! | `Announced`: the host may connect | `Draining` | `Closing` | `Connected` | - | - |
//! | `Connected` | `Draining`, cut | `Closing`, cut | refused | - | `Ended` |
//! | `Ended`: keeps the epoch in mind | `Draining` | `Closing` | refused | - | - |
//! | `Closing`: grants are under way | `Draining` | stays | refused | none | - |
//!
//! A ticket opens one connection once; a host that lost it asks the metadata server for a new epoch.
//! Every open and every close is acknowledged to the back channel that sent it, and not before
//! nothing of lower (of the closed) epochs is under way. What is under way is counted in
//! [`crate::grants`]; this table is told by [`Sessions::drained`].
//!
//! A host can ask for epoch after epoch, and come and go, while an I/O of its first epoch hangs. What
//! is owed for its session is bounded all the same, by one answer of each kind per back channel:
//! - an epoch that is overtaken never becomes ready, so it is answered `STALE_EPOCH` at once;
//! - a close says that nothing *up to* its epoch is under way, so the highest answers for all.

use std::mem::discriminant;

use gannet_fabric::ConnectionId;
use gannet_proto::Status;
use rustc_hash::FxHashMap;

use crate::slab::Slab;

/// What is owed to a back channel about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledgement {
    /// The answer to a session that was opened.
    Ready { session: u64, epoch: u64, status: Status },
    /// The answer to a session that was closed.
    Closed { session: u64, epoch: u64 },
}

impl Acknowledgement {
    fn epoch(&self) -> u64 {
        match self {
            Acknowledgement::Ready { epoch, .. } | Acknowledgement::Closed { epoch, .. } => *epoch,
        }
    }
}

/// The back channel that asked. The answer is for that connection of it, not for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) channel: u16,
    pub(crate) connection: ConnectionId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Draining,
    Announced,
    Connected(ConnectionId),
    Ended,
    Closing,
}

#[derive(Debug)]
struct Session {
    id: u64,
    epoch: u64,
    ticket: Box<[u8]>,
    state: State,
    /// When it was opened or ended last, counted in such changes: the oldest gives way when the
    /// table is full.
    since: u64,
    /// At most one answer of each kind per back channel.
    owed: Vec<(Asker, Acknowledgement)>,
}

/// What opening or closing a session leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answer at once.
    Answer(Acknowledgement),
    /// Cut the session's grants off with `status`, end `connection`, and call
    /// [`Sessions::drained`] when nothing of earlier eras is under way, at once if it is so.
    Cut { index: u32, connection: Option<ConnectionId>, status: Status },
}

/// All data sessions that a data server knows.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: Slab<Session>,
    by_id: FxHashMap<u64, u32>,
    changes: u64,
}

impl Sessions {
    /// A table of at most `sessions_max` sessions.
    pub(crate) fn new(sessions_max: u32) -> Sessions {
        let mut by_id = FxHashMap::default();
        by_id.reserve(sessions_max as usize);
        Sessions { table: Slab::new(sessions_max), by_id, changes: 0 }
    }

    /// A session of the metadata server's making: `epoch` begins, all lower ones end.
    /// `is_idle` tells whether no grant of a session is left: only such a one gives way to a new one.
    /// The answers to epochs that are overtaken go to `overtaken`.
    pub(crate) fn open(
        &mut self,
        id: u64,
        epoch: u64,
        ticket: &[u8],
        asker: Asker,
        is_idle: impl Fn(u32) -> bool,
        mut overtaken: impl FnMut(Asker, Acknowledgement),
    ) -> Outcome {
        let ready = |status| Acknowledgement::Ready { session: id, epoch, status };
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => {
                if self.table.is_full() {
                    self.forget_one(is_idle);
                }
                let fresh = Session {
                    id,
                    epoch,
                    ticket: Box::default(),
                    state: State::Draining,
                    since: 0,
                    owed: Vec::new(),
                };
                let Ok(index) = self.table.insert(fresh) else {
                    return Outcome::Answer(ready(Status::AGAIN));
                };
                self.by_id.insert(id, index);
                index
            }
        };
        let Some(session) = self.table.get_mut(index) else {
            return Outcome::Answer(ready(Status::AGAIN));
        };
        let passed = epoch == session.epoch && session.state == State::Closing;
        if epoch < session.epoch || passed {
            return Outcome::Answer(ready(Status::STALE_EPOCH));
        }
        if epoch == session.epoch && matches!(session.state, State::Announced | State::Connected(_))
        {
            // Asked again, by a metadata server that lost the answer.
            return Outcome::Answer(ready(Status::OK));
        }
        let connection = session.connection();
        session.owed.retain(|(asker, owed)| match *owed {
            Acknowledgement::Ready { session, epoch: lower, .. } if lower < epoch => {
                let status = Status::STALE_EPOCH;
                overtaken(*asker, Acknowledgement::Ready { session, epoch: lower, status });
                false
            }
            _ => true,
        });
        session.epoch = epoch;
        session.ticket = ticket.into();
        session.state = State::Draining;
        self.changes += 1;
        session.since = self.changes;
        session.owe(asker, ready(Status::OK));
        Outcome::Cut { index, connection, status: Status::STALE_EPOCH }
    }

    /// The metadata server ends a session up to `epoch`.
    pub(crate) fn close(&mut self, id: u64, epoch: u64, asker: Asker) -> Outcome {
        let closed = Acknowledgement::Closed { session: id, epoch };
        let known = self.by_id.get(&id).copied();
        let Some((index, session)) =
            known.and_then(|index| Some((index, self.table.get_mut(index)?)))
        else {
            return Outcome::Answer(closed);
        };
        let drains = matches!(session.state, State::Draining | State::Closing);
        if session.epoch > epoch && !drains {
            return Outcome::Answer(closed);
        }
        session.owe(asker, closed);
        if session.epoch > epoch {
            // Lower epochs are on their way out already: it is answered with what waits for them.
            return Outcome::Cut { index, connection: None, status: Status::STALE_EPOCH };
        }
        let connection = session.connection();
        session.state = State::Closing;
        Outcome::Cut { index, connection, status: Status::SESSION_GONE }
    }

    /// Nothing of a session's earlier eras is under way. Gives what is owed to `answer`.
    pub(crate) fn drained(&mut self, index: u32, mut answer: impl FnMut(Asker, Acknowledgement)) {
        let Some(session) = self.table.get_mut(index) else { return };
        for (asker, owed) in session.owed.drain(..) {
            answer(asker, owed);
        }
        match session.state {
            State::Draining => session.state = State::Announced,
            State::Closing => self.forget(index),
            State::Announced | State::Connected(_) | State::Ended => {}
        }
    }

    /// A host presents a ticket. Its session's place, or what to refuse it with.
    pub(crate) fn hello(
        &mut self,
        id: u64,
        epoch: u64,
        ticket: &[u8],
        connection: ConnectionId,
    ) -> Result<u32, Status> {
        let index = *self.by_id.get(&id).ok_or(Status::BAD_TICKET)?;
        let session = self.table.get_mut(index).ok_or(Status::BAD_TICKET)?;
        if epoch < session.epoch {
            return Err(Status::STALE_EPOCH);
        }
        if epoch > session.epoch
            || session.state != State::Announced
            || !equal_in_constant_time(&session.ticket, ticket)
        {
            return Err(Status::BAD_TICKET);
        }
        session.state = State::Connected(connection);
        Ok(index)
    }

    /// The connection of a session ended by itself. True if the session had it still, and its
    /// grants are to be cut off.
    pub(crate) fn disconnected(&mut self, index: u32, connection: ConnectionId) -> bool {
        let Some(session) = self.table.get_mut(index) else { return false };
        if session.state != State::Connected(connection) {
            return false;
        }
        session.state = State::Ended;
        self.changes += 1;
        session.since = self.changes;
        true
    }

    /// Where a grant for (session, epoch) goes, or what it is to be answered.
    #[inline]
    pub(crate) fn find(&self, id: u64, epoch: u64) -> Result<(u32, ConnectionId), Status> {
        let index = *self.by_id.get(&id).ok_or(Status::SESSION_GONE)?;
        let session = self.table.get(index).ok_or(Status::SESSION_GONE)?;
        match session.state {
            _ if epoch < session.epoch => Err(Status::STALE_EPOCH),
            State::Connected(connection) if epoch == session.epoch => Ok((index, connection)),
            _ => Err(Status::SESSION_GONE),
        }
    }

    /// Sessions that have a connection, by the host's number.
    pub(crate) fn connected(&self) -> impl Iterator<Item = (u64, ConnectionId)> {
        let places = self.by_id.values().filter_map(|index| self.table.get(*index));
        places.filter_map(|session| Some((session.id, session.connection()?)))
    }

    /// The connection of a session.
    pub(crate) fn connection(&self, index: u32) -> Option<ConnectionId> {
        self.table.get(index)?.connection()
    }

    /// Number of sessions known.
    pub(crate) fn len(&self) -> u32 {
        self.table.len()
    }

    /// Drops the session that ended first, or else one that no host took up.
    fn forget_one(&mut self, is_idle: impl Fn(u32) -> bool) {
        let all = self.table.iter();
        let rank = |session: &Session| match session.state {
            State::Ended => Some((0, session.since)),
            State::Announced => Some((1, session.since)),
            State::Draining | State::Connected(_) | State::Closing => None,
        };
        let oldest = all
            .filter(|(index, _)| is_idle(*index))
            .filter_map(|(index, session)| Some((rank(session)?, index)))
            .min();
        if let Some((_, index)) = oldest {
            self.forget(index);
        }
    }

    fn forget(&mut self, index: u32) {
        if let Some(session) = self.table.remove(index) {
            self.by_id.remove(&session.id);
        }
    }
}

impl Session {
    fn connection(&self) -> Option<ConnectionId> {
        match self.state {
            State::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// Notes an answer in the place of the one of its kind that the back channel waits for. That one
    /// is for an earlier connection of the channel, which nothing can reach any more, or it is of
    /// the same epoch, or it is a close; of two closes the higher stays.
    fn owe(&mut self, asker: Asker, answer: Acknowledgement) {
        let same = |(to, owed): &&mut (Asker, Acknowledgement)| {
            to.channel == asker.channel && discriminant(owed) == discriminant(&answer)
        };
        match self.owed.iter_mut().find(same) {
            Some((to, owed)) if *to == asker && owed.epoch() > answer.epoch() => {}
            Some(place) => *place = (asker, answer),
            None => self.owed.push((asker, answer)),
        }
    }
}

/// Compares without telling by its duration how much of a guess was right.
fn equal_in_constant_time(ticket: &[u8], guess: &[u8]) -> bool {
    ticket.len() == guess.len()
        && ticket.iter().zip(guess).fold(0, |sum, (ours, theirs)| sum | (ours ^ theirs)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
