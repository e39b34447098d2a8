//! Making and ending connections.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use gannet_runtime::time::Time;
use rustc_hash::FxHashMap;

use super::connection::{Connection, Handshake, Link, State};
use super::fabric::TcpFabric;
use super::ring::{Operation, Vectors};
use super::socket::{self, SocketAddress};
use super::wire::{Entry, GREETING_BYTES, Greeting, GreetingKind, Refusal};
use crate::trust::is_trusted;
use crate::{Address, ConnectionId, DisconnectReason, Event, Events, FabricError, PeerIdentity};

/// How long a listener rests after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Refusals are written to the log so often at most.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// Where connections are accepted.
pub(super) struct Listener {
    socket: OwnedFd,
    paused_until: Option<Time>,
}

/// A socket whose connection is over: its peer may still be reading, which a socket that is closed
/// with something unread in it would cut short.
pub(super) struct Leaving {
    socket: OwnedFd,
    deadline: Time,
    /// Given up; the kernel's answer is awaited.
    ended: bool,
}

/// An accepted descriptor that nobody wants.
pub(super) fn close_accepted(result: i32) {
    if result >= 0 {
        // SAFETY: the kernel made the descriptor for this process, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

impl TcpFabric {
    pub(super) fn listen_at(&mut self, at: &Address) -> Result<(), FabricError> {
        let failed =
            |source: io::Error| FabricError::System { what: format!("listening at {at}"), source };
        let address = socket::resolve(at)?.map_err(failed)?;
        let socket = socket::listen(address).map_err(failed)?;
        let index = self.listeners.len() as u32;
        self.ring.accept(index, socket.as_fd());
        self.listeners.push(Listener { socket, paused_until: None });
        Ok(())
    }

    pub(super) fn connect_to(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let address = socket::resolve(to)?;
        let limit = self.options.connections_max;
        let full = FabricError::Limit { what: "connections of one fabric", limit };
        let index = self.free.pop().ok_or(full)?;
        // Not the time of the last poll: the caller may have done other things for long.
        let deadline = Time::monotonic() + self.options.connect_timeout;
        let connection = Connection::new(State::Connecting, deadline);
        self.slots[index as usize].connection = Some(Box::new(connection));
        self.watch(index, deadline);
        let made = address.and_then(|address| {
            let socket = socket::new(address)?;
            socket::configure(&socket, self.options.peer_timeout)?;
            Ok((socket, socket::encode(address)))
        });
        match made {
            Ok((socket, address)) => self.dial(index, socket, address),
            Err(error) => {
                tracing::debug!(%to, %error, "no connection");
                self.end(index, DisconnectReason::Unreachable);
            }
        }
        Ok(self.id(index))
    }

    fn dial(&mut self, index: u32, socket: OwnedFd, address: SocketAddress) {
        let hello = self.greeting(GreetingKind::Hello, None);
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        let handshake = connection.handshake.insert(Handshake::new(&hello));
        let address = handshake.address.insert(address);
        let socket = connection.socket.insert(socket);
        self.ring.connect(index, socket.as_fd(), address);
        connection.connecting = true;
    }

    fn greeting(&self, kind: GreetingKind, seen: Option<IpAddr>) -> Greeting {
        Greeting {
            kind,
            small_credits: self.options.small_credits,
            large_credits: self.options.large_credits,
            transfers_max: self.options.transfers_max as u16,
            payload_checksums: self.options.payload_checksums,
            seen,
        }
    }

    /// The kernel connected, or did not.
    pub(super) fn dialled(&mut self, index: u32, result: i32) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        connection.connecting = false;
        match connection.state {
            State::Ending(_) => self.finish_if_idle(index),
            State::Connecting if result == 0 => {
                let ends = connection.socket.as_ref().and_then(|socket| socket::ends(socket).ok());
                connection.peer = ends.map(|(peer, _)| peer);
                connection.state = State::AwaitingAnswer;
                self.greet(index);
                self.await_greeting(index);
            }
            _ => self.end(index, DisconnectReason::Unreachable),
        }
    }

    /// Sends this side's greeting.
    fn greet(&mut self, index: u32) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        if let (Some(handshake), Some(socket)) = (&mut connection.handshake, &connection.socket) {
            let Handshake { ours, vectors: [sent, _], .. } = &mut **handshake;
            sent.clear();
            sent.push(ours.as_mut_ptr(), ours.len());
            self.ring.send(index, socket.as_fd(), sent);
            connection.sending = true;
        }
    }

    /// Asks for the rest of the peer's greeting.
    fn await_greeting(&mut self, index: u32) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        if let (Some(handshake), Some(socket)) = (&mut connection.handshake, &connection.socket) {
            let Handshake { theirs, arrived, vectors: [_, received], .. } = &mut **handshake;
            let rest = &mut theirs[*arrived..];
            received.clear();
            received.push(rest.as_mut_ptr(), rest.len());
            self.ring.receive(index, socket.as_fd(), received, false);
            connection.receiving = true;
        }
    }

    /// The kernel has sent a greeting whose connection is not established: a hello, or a refusal.
    pub(super) fn greeting_sent(&mut self, index: u32, result: i32) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        match connection.state {
            State::Ending(_) => self.finish_if_idle(index),
            State::Closing(reason) => self.end(index, reason),
            _ if result != GREETING_BYTES as i32 => {
                self.end(index, DisconnectReason::Unreachable);
            }
            _ => {}
        }
    }

    /// A peer connected.
    pub(super) fn accepted(&mut self, number: u32, result: i32) {
        if result >= 0 {
            // SAFETY: the kernel made the descriptor for this process, and nobody else has it.
            let socket = unsafe { OwnedFd::from_raw_fd(result) };
            self.take_in(socket);
        }
        let Some(listener) = self.listeners.get_mut(number as usize) else { return };
        let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
        if exhausted.contains(&-result) {
            let until = self.now + ACCEPT_PAUSE;
            listener.paused_until = Some(until);
            self.watch_deadline(until);
        } else {
            // Other failures concern a connection that is gone already.
            self.ring.accept(number, listener.socket.as_fd());
        }
    }

    fn take_in(&mut self, socket: OwnedFd) {
        let Ok((peer, _)) = socket::ends(&socket) else { return };
        if socket::configure(&socket, self.options.peer_timeout).is_err() {
            return;
        }
        self.make_room_for(peer);
        let Some(index) = self.free.pop() else {
            self.log_refusal(Some(peer), "there is no room for another connection");
            let refusal = self.greeting(GreetingKind::Refused(Refusal::Full), Some(peer));
            // A fresh socket has room for it; if not, the peer learns of the end alone.
            let flags = rustix::net::SendFlags::NOSIGNAL;
            let _sent = rustix::net::send(&socket, &refusal.encode(), flags);
            return self.let_leave(socket);
        };
        let deadline = self.now + self.options.handshake_timeout;
        let mut connection = Connection::new(State::AwaitingHello, deadline);
        connection.peer = Some(peer);
        connection.socket = Some(socket);
        let welcome = self.greeting(GreetingKind::Welcome, Some(peer));
        connection.handshake = Some(Handshake::new(&welcome));
        self.slots[index as usize].connection = Some(Box::new(connection));
        self.watch(index, deadline);
        self.await_greeting(index);
    }

    /// Where there are too many half-open connections, the oldest one of whoever has most of them
    /// goes.
    fn make_room_for(&mut self, newcomer: IpAddr) {
        let half_open = |index: &u32| {
            let connection = self.slots[*index as usize].connection.as_ref()?;
            let waits = connection.state == State::AwaitingHello;
            Some((connection.peer?, connection.deadline?)).filter(|_| waits)
        };
        let waiting = self.timed.iter().filter(|index| half_open(index).is_some()).count();
        let last_place = self.free.len() <= 1 && waiting > 0;
        if waiting < self.options.half_open_max && !last_place {
            return;
        }
        let mut counts = FxHashMap::<IpAddr, usize>::default();
        counts.insert(newcomer, 1);
        for (peer, _) in self.timed.iter().filter_map(half_open) {
            *counts.entry(peer).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let oldest = self
            .timed
            .iter()
            .filter_map(|index| Some((*index, half_open(index)?)))
            .filter(|(_, (peer, _))| counts.get(peer) == Some(&most))
            .min_by_key(|(_, (_, deadline))| *deadline);
        if let Some((index, _)) = oldest {
            self.end(index, DisconnectReason::PeerLost);
        }
    }

    /// A part of the peer's greeting arrived.
    pub(super) fn greeted(&mut self, index: u32, result: i32, events: &mut Events) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        let Some(handshake) = &mut connection.handshake else { return };
        if [libc::EAGAIN, libc::EINTR, libc::ECANCELED].contains(&-result) {
            return self.await_greeting(index);
        }
        if result <= 0 {
            return self.end(index, DisconnectReason::PeerLost);
        }
        handshake.arrived += result as usize;
        if handshake.arrived < GREETING_BYTES {
            return match Greeting::check_begin(&handshake.theirs[..handshake.arrived]) {
                Ok(()) => self.await_greeting(index),
                Err(violation) => self.not_understood(index, violation.0),
            };
        }
        let decoded = Greeting::decode(&handshake.theirs);
        let hello = connection.state == State::AwaitingHello;
        match decoded {
            Ok(greeting) if hello && greeting.kind == GreetingKind::Hello => {
                self.answer_hello(index, &greeting, events);
            }
            Ok(greeting) if !hello && greeting.kind == GreetingKind::Welcome => {
                self.establish(index, &greeting, events);
            }
            Ok(Greeting { kind: GreetingKind::Refused(refusal), seen, .. }) if !hello => {
                let (reason, why) = match refusal {
                    Refusal::Full => (DisconnectReason::Unreachable, "it has no room"),
                    Refusal::NotTrusted => {
                        (DisconnectReason::NotTrusted, "this host is not among its trusted ones")
                    }
                    Refusal::Protocol => {
                        (DisconnectReason::Protocol, "it speaks another version of the protocol")
                    }
                };
                let (server, this_host) = (text(connection.peer), text(seen));
                if self.may_log_refusal() {
                    tracing::warn!(%server, %this_host, "the server refused to connect: {why}");
                }
                self.end(index, reason);
            }
            Ok(_) => self.not_understood(index, "its greeting is not the one expected"),
            Err(violation) => self.not_understood(index, violation.0),
        }
    }

    fn not_understood(&mut self, index: u32, what: &'static str) {
        let Some(connection) = &self.slots[index as usize].connection else { return };
        let (peer, hello) = (connection.peer, connection.state == State::AwaitingHello);
        if hello {
            self.log_refusal(peer, what);
            self.refuse(index, Refusal::Protocol);
        } else {
            if self.may_log_refusal() {
                tracing::warn!(server = %text(peer), "the server is not understood: {what}");
            }
            self.end(index, DisconnectReason::Protocol);
        }
    }

    fn answer_hello(&mut self, index: u32, hello: &Greeting, events: &mut Events) {
        let Some(connection) = &self.slots[index as usize].connection else { return };
        let ends = connection.socket.as_ref().and_then(|socket| socket::ends(socket).ok());
        let networks = &self.options.trusted_hosts;
        if !ends.is_some_and(|(peer, local)| is_trusted(peer, local, networks)) {
            let peer = connection.peer;
            self.log_refusal(peer, "the host is not among the trusted ones");
            return self.refuse(index, Refusal::NotTrusted);
        }
        self.greet(index);
        self.establish(index, hello, events);
    }

    pub(super) fn log_refusal(&mut self, peer: Option<IpAddr>, why: &str) {
        if self.may_log_refusal() {
            tracing::warn!(peer = %text(peer), "connection refused or ended: {why}");
        }
    }

    /// Whether the last refusal in the log is old enough for another one.
    fn may_log_refusal(&mut self) -> bool {
        let recent = |at: Time| self.now.since(at) < REFUSALS_LOGGED_EVERY;
        let may = !self.refusal_logged.is_some_and(recent);
        if may {
            self.refusal_logged = Some(self.now);
        }
        may
    }

    /// Tells an acceptor's no, and ends.
    fn refuse(&mut self, index: u32, refusal: Refusal) {
        let peer = self.at(index).and_then(|connection| connection.peer);
        let greeting = self.greeting(GreetingKind::Refused(refusal), peer).encode();
        let deadline = self.now + self.options.linger;
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        if let Some(handshake) = &mut connection.handshake {
            handshake.ours = greeting;
        }
        connection.state = State::Closing(DisconnectReason::NotTrusted);
        connection.deadline = Some(deadline);
        self.watch_deadline(deadline);
        self.greet(index);
    }

    fn establish(&mut self, index: u32, peer: &Greeting, events: &mut Events) {
        let id = self.id(index);
        let options = &self.options;
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        let accepted = !std::mem::replace(&mut connection.known, true);
        let mut link = Link::new(options, peer);
        // An acceptor's welcome is on its way; a connector's hello has arrived, so it has left.
        link.greeting_under_way = connection.sending;
        if !connection.sending {
            connection.handshake = None;
        }
        connection.link = Some(Box::new(link));
        connection.state = State::Established;
        connection.deadline = None;
        let identity = connection.peer.map_or_else(String::new, |peer| peer.to_string());
        let peer = PeerIdentity::Network(identity);
        events.push(match accepted {
            true => Event::Accepted { connection: id, peer },
            false => Event::Connected { connection: id },
        });
        self.request(index);
    }

    /// A key waits for answers to reads to leave; not longer than an orderly end.
    pub(super) fn await_leaving(&mut self, index: u32, deadline: Time) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        if connection.deadline.is_none() {
            connection.deadline = Some(deadline);
            self.watch(index, deadline);
        }
    }

    /// Ends an established connection from this side: what was posted is sent, and `last` behind it.
    pub(super) fn close(&mut self, index: u32, reason: DisconnectReason, last: Entry) {
        let deadline = Time::monotonic() + self.options.linger;
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        let (State::Established, Some(link)) = (connection.state, &mut connection.link) else {
            return;
        };
        link.outgoing.push_last(last);
        connection.deadline = Some(deadline);
        connection.state = State::Closing(reason);
        if !connection.receiving {
            link.incoming.turn_away_writes();
        } else if link.incoming.awaits_payload() {
            self.ring.cancel(Operation::Receive, index);
        }
        self.watch(index, deadline);
        self.mark_dirty(index);
        self.check_closing(index);
    }

    /// Ends a closing connection once there is nothing left to wait for.
    pub(super) fn check_closing(&mut self, index: u32) {
        let Some(connection) = &self.slots[index as usize].connection else { return };
        let State::Closing(reason) = connection.state else { return };
        let Some(link) = &connection.link else { return };
        let unanswered = reason == DisconnectReason::Local && !link.transfers.is_empty();
        if link.outgoing.is_idle() && !connection.sending && !unanswered {
            self.end(index, reason);
        }
    }

    /// Ends a connection: takes back what the kernel has of it, then tells.
    pub(super) fn end(&mut self, index: u32, reason: DisconnectReason) {
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        match connection.state {
            State::Ending(_) | State::Over => return,
            _ => connection.state = State::Ending(reason),
        }
        connection.deadline = None;
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

    /// Tells of the end once the kernel has nothing of the connection.
    pub(super) fn finish_if_idle(&mut self, index: u32) {
        let id = self.id(index);
        let Some(connection) = &mut self.slots[index as usize].connection else { return };
        let State::Ending(reason) = connection.state else { return };
        if connection.is_busy() {
            return;
        }
        connection.state = State::Over;
        let known = connection.known;
        let link = connection.link.take();
        let socket = connection.socket.take();
        if let Some(mut link) = link {
            let pending = &mut self.pending;
            link.outgoing.gave_up();
            let refused = link.refused;
            link.transfers.abandon(id, refused, |event| pending.push_back(event));
        }
        if let Some(socket) = socket
            && !matches!(reason, DisconnectReason::PeerLost | DisconnectReason::Unreachable)
        {
            self.let_leave(socket);
        }
        if known {
            self.pending.push_back(Event::Disconnected { connection: id, reason });
        } else {
            self.release(index);
        }
    }

    /// Reads a socket to its end before it is closed.
    fn let_leave(&mut self, socket: OwnedFd) {
        if rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).is_err() {
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
        let deadline = Time::monotonic() + self.options.peer_timeout;
        let leaving = self.leaving[place].insert(Leaving { socket, deadline, ended: false });
        self.ring.discard(place as u32, leaving.socket.as_fd(), &mut self.sink);
        self.watch_deadline(deadline);
    }

    /// More of what nobody wants arrived, or the end of it.
    pub(super) fn discarded(&mut self, place: u32, result: i32) {
        let Some(found) = self.leaving.get_mut(place as usize) else { return };
        match found {
            Some(leaving) if result > 0 && !leaving.ended => {
                let socket = leaving.socket.as_fd();
                self.ring.discard(place, socket, &mut self.sink);
            }
            _ => *found = None,
        }
    }

    /// The last event of a connection was handed out.
    pub(super) fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.connection.take().is_some() {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    /// Looks at a connection again when its deadline has passed.
    fn watch(&mut self, index: u32, deadline: Time) {
        // Who had the place before may be in the list still.
        if !std::mem::replace(&mut self.slots[index as usize].timed, true) {
            self.timed.push(index);
        }
        self.watch_deadline(deadline);
    }

    /// Gives a connection up if it took too long. Whether it has a deadline still.
    fn check_deadline(&mut self, index: u32, now: Time) -> bool {
        let Some(connection) = &self.slots[index as usize].connection else { return false };
        let Some(deadline) = connection.deadline else { return false };
        if now < deadline {
            self.watch_deadline(deadline);
            return true;
        }
        match connection.state {
            State::Connecting => self.end(index, DisconnectReason::Unreachable),
            State::AwaitingAnswer | State::AwaitingHello => {
                self.end(index, DisconnectReason::PeerLost);
            }
            State::Closing(reason) => self.end(index, reason),
            State::Established => return self.leaving_expired(index, now),
            State::Ending(_) | State::Over => {}
        }
        false
    }

    /// Gives up what took too long.
    #[cold]
    pub(super) fn check_deadlines(&mut self, now: Time) {
        self.next_deadline = Time::NEVER;
        let mut timed = std::mem::take(&mut self.timed);
        timed.retain(|index| {
            let waits = self.check_deadline(*index, now);
            self.slots[*index as usize].timed = waits;
            waits
        });
        // Whatever was added meanwhile comes behind.
        timed.append(&mut self.timed);
        self.timed = timed;
        for place in 0..self.leaving.len() {
            let Some(leaving) = &mut self.leaving[place] else { continue };
            if leaving.ended {
                continue;
            }
            if now >= leaving.deadline {
                leaving.ended = true;
                self.ring.cancel(Operation::Discard, place as u32);
            } else {
                let deadline = leaving.deadline;
                self.watch_deadline(deadline);
            }
        }
        for number in 0..self.listeners.len() {
            let listener = &mut self.listeners[number];
            let Some(until) = listener.paused_until else { continue };
            if now >= until {
                listener.paused_until = None;
                self.ring.accept(number as u32, listener.socket.as_fd());
            } else {
                self.watch_deadline(until);
            }
        }
    }

    /// The peer does not take the answers to its reads by a key that was taken back; or it has time
    /// for others still, which is what is returned.
    fn leaving_expired(&mut self, index: u32, now: Time) -> bool {
        let Some(connection) = &mut self.slots[index as usize].connection else { return false };
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

/// A peer's address as it is written in the log.
fn text(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

impl Handshake {
    fn new(greeting: &Greeting) -> Box<Handshake> {
        Box::new(Handshake {
            address: None,
            theirs: [0; GREETING_BYTES],
            arrived: 0,
            ours: greeting.encode(),
            vectors: [Vectors::with_capacity(1), Vectors::with_capacity(1)],
        })
    }
}
