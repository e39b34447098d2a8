//! Ends of established connections.
//!
//! An end keeps somebody else waiting: the owners of memory that the peer may reach, and those of
//! transfers. They wait until everything posted before has left and the transfers are done, for
//! [`TcpOptions::linger`](super::TcpOptions::linger) at most. What is left of messages by then goes on
//! without the connection ([`super::leaving`]), up to the first byte that comes from memory of theirs.

use gannet_runtime::time::Time;

use super::connection::{Connection, State};
use super::fabric::TcpFabric;
use super::leaving::Rest;
use super::ring::Operation;
use super::wire::Entry;
use crate::{DisconnectReason, Event};

impl Connection {
    /// Begins to wait for something, not longer than for keys whose answers have to leave.
    fn wait_until(&mut self, deadline: Time) {
        let leaving = self.link.as_ref().is_some_and(|link| !link.leaving.is_empty());
        let earlier = self.deadline.filter(|other| leaving && *other < deadline);
        self.deadline = Some(earlier.unwrap_or(deadline));
    }
}

impl TcpFabric {
    /// A key waits for answers to reads to leave; not longer than an orderly end.
    pub(super) fn await_leaving(&mut self, index: u32, deadline: Time) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        if connection.deadline.is_none() {
            connection.deadline = Some(deadline);
            self.watch(index, deadline);
        }
    }

    /// Ends an established connection from this side: what was posted is sent, and `last` behind it.
    pub(super) fn close(&mut self, index: u32, reason: DisconnectReason, last: Entry) {
        let deadline = Time::monotonic() + self.options.linger;
        let Some(connection) = self.slots.at_mut(index) else { return };
        let (State::Established, Some(link)) = (connection.state, &mut connection.link) else {
            return;
        };
        match last {
            Entry::Goodbye if !link.held.is_empty() => link.held.push_goodbye(),
            last => {
                link.held.clear();
                link.outgoing.push_last(last);
            }
        }
        if !connection.receiving {
            link.incoming.turn_away_writes();
        } else if link.incoming.awaits_payload() {
            self.ring.cancel(Operation::Receive, index);
        }
        connection.wait_until(deadline);
        connection.state = State::Closing(reason);
        self.watch(index, deadline);
        self.mark_dirty(index);
        self.check_closing(index);
    }

    /// The peer ended an established connection in order. It may wait for what it is owed:
    /// acknowledgements, and answers to its reads. They leave, with what stands between them.
    pub(super) fn part(&mut self, index: u32) {
        let deadline = Time::monotonic() + self.options.linger;
        let Some(connection) = self.slots.at_mut(index) else { return };
        let reason = match connection.state {
            State::Closing(reason) => reason,
            _ => DisconnectReason::Remote,
        };
        let Some(link) = &mut connection.link else { return };
        // What it does not answer any more will never let them go.
        link.held.clear();
        if link.owes_answer() {
            link.outgoing.push_nothing();
        }
        connection.wait_until(deadline);
        connection.state = State::Parting(reason);
        self.watch(index, deadline);
        self.mark_dirty(index);
        self.check_closing(index);
    }

    /// Ends a closing connection once there is nothing left to wait for.
    pub(super) fn check_closing(&mut self, index: u32) {
        let Some(connection) = self.slots.at(index) else { return };
        let (reason, hears) = match connection.state {
            State::Closing(reason) => (reason, true),
            State::Parting(reason) => (reason, false),
            _ => return,
        };
        let Some(link) = &connection.link else { return };
        let answers = hears && reason == DisconnectReason::Local;
        let unanswered = answers && !link.transfers.is_empty();
        let sent = link.outgoing.is_idle() && link.held.is_empty() && !connection.sending;
        if sent && !unanswered {
            self.end(index, reason);
        }
    }

    /// An orderly end took too long: memory that is not the connection's own is not waited for.
    pub(super) fn stop_lingering(&mut self, index: u32, reason: DisconnectReason) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        // The peer may not even have this side's greeting.
        connection.delivers = connection.link.as_ref().is_some_and(|link| !link.greeting_under_way);
        self.end(index, reason);
    }

    /// Ends a connection: takes back what the kernel has of it, then tells.
    pub(super) fn end(&mut self, index: u32, reason: DisconnectReason) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        match connection.state {
            State::Ending(_) | State::Over => return,
            _ => connection.state = State::Ending(reason),
        }
        self.ending += 1;
        connection.deadline = None;
        if std::mem::take(&mut connection.direct) {
            self.direct.retain(|listed| *listed != index);
        }
        let operations = [
            (connection.receiving, Operation::Receive),
            (connection.sending, Operation::Send),
            (connection.connecting, Operation::Connect),
        ];
        for (under_way, operation) in operations {
            if under_way {
                self.ring.cancel(operation, index);
            }
        }
        self.finish_if_idle(index);
    }

    /// The kernel let go of what it was sending for a connection that is ending, having taken some of
    /// it or nothing.
    pub(super) fn sent_at_end(&mut self, index: u32, result: i32) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        if let Some(link) = &mut connection.link
            && !link.greeting_under_way
        {
            let nothing = [libc::ECANCELED, libc::EAGAIN, libc::EINTR, libc::ENOBUFS];
            match usize::try_from(result) {
                Ok(count) => {
                    let _rest = link.outgoing.sent(count);
                    // It may have had its answer before.
                    link.transfers.settle(link.outgoing.writes_sent);
                }
                Err(_) => connection.delivers &= nothing.contains(&-result),
            }
        }
        self.finish_if_idle(index);
    }

    /// Tells of the end once the kernel has nothing of the connection.
    pub(super) fn finish_if_idle(&mut self, index: u32) {
        let id = self.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let State::Ending(reason) = connection.state else { return };
        if connection.is_busy() {
            return;
        }
        connection.state = State::Over;
        let (known, delivers) = (connection.known, connection.delivers);
        let link = connection.link.take();
        let socket = connection.socket.take();
        let mut rest = None;
        if let Some(mut link) = link {
            let pending = &mut self.pending;
            let refused = link.refused;
            link.outgoing.cut_off_payload();
            link.transfers.abandon(id, refused, |event| pending.push_back(event));
            let placed = link.placed();
            rest = (delivers && link.outgoing.has_rest())
                .then_some(Rest { outgoing: link.outgoing, placed });
        }
        if let Some(socket) = socket
            && !matches!(reason, DisconnectReason::PeerLost | DisconnectReason::Unreachable)
        {
            match known {
                true => self.leave_behind(socket, rest),
                false => self.turn_out(socket),
            }
        }
        if known {
            self.pending.push_back(Event::Disconnected { connection: id, reason });
        } else {
            self.release(index);
        }
    }

    /// The peer does not take the answers to its reads by a key that was taken back; or it has time
    /// for others still, which is what is returned.
    pub(super) fn leaving_expired(&mut self, index: u32, now: Time) -> bool {
        let Some(connection) = self.slots.at_mut(index) else { return false };
        let leaving = connection.link.as_ref().map_or(&[][..], |link| &link.leaving);
        let deadline = leaving.iter().map(|(_, deadline)| *deadline).min();
        connection.deadline = deadline.filter(|deadline| now < *deadline);
        let waits = connection.deadline.is_some();
        match (connection.deadline, deadline) {
            (Some(deadline), _) => self.watch_deadline(deadline),
            (None, Some(_)) => self.end(index, DisconnectReason::PeerLost),
            (None, None) => {}
        }
        waits
    }
}
