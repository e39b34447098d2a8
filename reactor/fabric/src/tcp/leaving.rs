//! Sockets that outlive their connections.
//!
//! A connection's end is told as soon as nothing of the user's or the peer's memory is needed any
//! more. What it had to say may not have left this process then, and what has left may not have
//! reached the peer: messages are delivered from here, from memory of the connection's own, and the
//! peer's stream is read to its end, since a socket that is closed with something unread in it would
//! cut this side's stream short.
//!
//! That takes as long as the peer takes it, within bounds: the kernel gives up a peer that
//! acknowledges or takes nothing for [`TcpOptions::peer_timeout`](super::TcpOptions::peer_timeout),
//! and one that takes too little is reset after `delivery_timeout`. There are no more of these
//! sockets than there may be connections; beyond that they are closed at once. Peers that never had a
//! connection get a share of the places, and the shorter time.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use gannet_runtime::time::Time;
use rustix::net::{Shutdown, sockopt};

use super::fabric::TcpFabric;
use super::outgoing::Outgoing;
use super::ring::Operation;

/// One of so many places is for peers that were turned away.
const STRANGERS_ONE_OF: usize = 4;

/// What remains to be sent of a connection that is over.
pub(super) struct Rest {
    pub(super) outgoing: Outgoing,
    /// Writes of the peer that were placed.
    pub(super) placed: u32,
}

/// A socket whose connection is over.
pub(super) struct Leaving {
    socket: OwnedFd,
    rest: Option<Rest>,
    /// When it is looked at next, and when it is given up at the latest.
    deadline: Time,
    last_deadline: Time,
    /// What the kernel has of it.
    receiving: bool,
    sending: bool,
    /// Given up; the kernel's answers are awaited.
    ended: bool,
    /// It never was a connection's.
    stranger: bool,
}

impl Leaving {
    /// Whether the peer has not acknowledged everything.
    fn is_awaited(&self) -> bool {
        let mut queued_bytes: libc::c_int = 0;
        // SAFETY: the request writes one int to where it is told.
        let asked =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued_bytes) };
        self.rest.is_some() || asked == 0 && queued_bytes > 0
    }
}

impl TcpFabric {
    /// Reads the socket of a peer that was turned away to its end before it is closed.
    pub(super) fn turn_out(&mut self, socket: OwnedFd) {
        let strangers = self.leaving.iter().flatten().filter(|leaving| leaving.stranger).count();
        if strangers < self.options.connections_max.div_ceil(STRANGERS_ONE_OF) {
            self.leave(socket, None, true);
        }
    }

    /// Reads the socket of a connection that is over to its end before it is closed, and delivers
    /// what remains to be sent.
    pub(super) fn leave_behind(&mut self, socket: OwnedFd, rest: Option<Rest>) {
        self.leave(socket, rest, false);
    }

    fn leave(&mut self, socket: OwnedFd, rest: Option<Rest>, stranger: bool) {
        if rest.is_none() && rustix::net::shutdown(&socket, Shutdown::Write).is_err() {
            return;
        }
        let place = match self.leaving.iter().position(Option::is_none) {
            Some(place) => place,
            None if self.leaving.len() < self.options.connections_max => {
                self.leaving.push(None);
                self.leaving.len() - 1
            }
            None => return,
        };
        let now = Time::monotonic();
        let deadline = now + self.options.peer_timeout;
        let last_deadline = match stranger {
            true => deadline,
            false => deadline.max(now + self.options.delivery_timeout),
        };
        let leaving = self.leaving[place].insert(Leaving {
            socket,
            rest,
            deadline,
            last_deadline,
            receiving: true,
            sending: false,
            ended: false,
            stranger,
        });
        self.ring.discard(place as u32, leaving.socket.as_fd(), &mut self.sink);
        self.deliver(place as u32);
        self.watch_deadline(deadline);
    }

    /// Hands over what remains; behind it, the stream ends.
    fn deliver(&mut self, place: u32) {
        let Some(leaving) = &mut self.leaving[place as usize] else { return };
        let Some(Rest { outgoing, placed }) = &mut leaving.rest else { return };
        if let Some(vectors) = outgoing.rest(*placed) {
            self.ring.deliver(place, leaving.socket.as_fd(), vectors);
            leaving.sending = true;
        } else {
            leaving.rest = None;
            // Where the peer is gone already, its stream is over.
            let _shut = rustix::net::shutdown(&leaving.socket, Shutdown::Write);
        }
    }

    /// The kernel took something of what remained, or does not.
    pub(super) fn delivered(&mut self, place: u32, result: i32) {
        let Some(leaving) = self.leaving.get_mut(place as usize).and_then(Option::as_mut) else {
            return;
        };
        leaving.sending = false;
        let again = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS].contains(&-result);
        if leaving.ended || (result < 0 && !again) {
            return self.give_up(place);
        }
        if let Some(Rest { outgoing, .. }) = &mut leaving.rest {
            let _rest = outgoing.sent(usize::try_from(result).unwrap_or(0));
        }
        self.deliver(place);
    }

    /// More of what nobody wants arrived, or the end of it.
    pub(super) fn discarded(&mut self, place: u32, result: i32) {
        let Some(leaving) = self.leaving.get_mut(place as usize).and_then(Option::as_mut) else {
            return;
        };
        if result > 0 && !leaving.ended {
            self.ring.discard(place, leaving.socket.as_fd(), &mut self.sink);
        } else {
            leaving.receiving = false;
            self.give_up(place);
        }
    }

    /// Takes back what the kernel has of a socket, and closes it.
    fn give_up(&mut self, place: u32) {
        let Some(leaving) = &mut self.leaving[place as usize] else { return };
        if !leaving.receiving && !leaving.sending {
            self.leaving[place as usize] = None;
            return;
        }
        if !std::mem::replace(&mut leaving.ended, true) {
            let operations =
                [(leaving.receiving, Operation::Discard), (leaving.sending, Operation::Deliver)];
            for (_, operation) in operations.into_iter().filter(|(under_way, _)| *under_way) {
                self.ring.cancel(operation, place);
            }
        }
    }

    /// Gives up those whose peers took too long, or who have nothing to wait for but the peers' ends.
    pub(super) fn check_leaving(&mut self, now: Time) {
        for place in 0..self.leaving.len() {
            let Some(leaving) = &mut self.leaving[place] else { continue };
            if leaving.ended {
                continue;
            }
            if now >= leaving.deadline {
                let awaited = leaving.is_awaited();
                if awaited && now >= leaving.last_deadline {
                    // The kernel would go on for it.
                    let reset = Some(Duration::ZERO);
                    let _set = sockopt::set_socket_linger(&leaving.socket, reset);
                }
                if !awaited || now >= leaving.last_deadline {
                    self.give_up(place as u32);
                    continue;
                }
                let next = now + self.options.peer_timeout;
                leaving.deadline = next.min(leaving.last_deadline);
            }
            let deadline = leaving.deadline;
            self.watch_deadline(deadline);
        }
    }
}
