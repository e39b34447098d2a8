//! Making connections, and what may take too long about them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use gannet_runtime::time::Time;

use super::connection::{Connection, Handshake, Link, State};
use super::fabric::TcpFabric;
use super::ring::Vectors;
use super::socket::{self, SocketAddress};
use super::wire::{GREETING_BYTES, Greeting, GreetingKind, Refusal};
use crate::address::numeric;
use crate::names::Answer;
use crate::trust::is_trusted;
use crate::{Address, ConnectionId, DisconnectReason, Event, Events, FabricError, PeerIdentity};

/// Refusals are written to the log so often at most.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

impl TcpFabric {
    pub(super) fn connect_to(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let (host, port) = socket::host_and_port(to)?;
        let limit = self.options.connections_max;
        let full = FabricError::Limit { what: "connections of one fabric", limit };
        let index = self.slots.claim().ok_or(full)?;
        // Not the time of the last poll: the caller may have done other things for long.
        let deadline = Time::monotonic() + self.options.connect_timeout;
        let connection = Connection::new(State::Connecting, deadline);
        self.slots.put(index, Box::new(connection));
        self.watch(index, deadline);
        let id = self.id(index);
        match numeric(host, port) {
            Some(address) => self.open(index, address),
            None => {
                if let Err(error) = self.names.ask(id, host, port, deadline) {
                    tracing::warn!(%to, %error, "the name cannot be looked up");
                    self.end(index, DisconnectReason::Unreachable);
                }
            }
        }
        Ok(id)
    }

    /// Goes on with connections whose peers' names were looked up.
    #[cold]
    pub(super) fn take_names(&mut self) {
        for Answer { asker, host, address } in self.names.take() {
            // It may be given up; it has not begun to connect, as it had nowhere to.
            let Some(connection) = self.connection(asker) else { continue };
            if connection.state != State::Connecting {
                continue;
            }
            match address {
                Ok(address) => self.open(asker.index, address),
                Err(error) => {
                    tracing::debug!(%host, %error, "the name has no address");
                    self.end(asker.index, DisconnectReason::Unreachable);
                }
            }
        }
    }

    /// Begins to connect to an address.
    fn open(&mut self, index: u32, address: SocketAddr) {
        let made = socket::new(address).and_then(|socket| {
            socket::configure(&socket, self.options.peer_timeout)?;
            Ok(socket)
        });
        match made {
            Ok(socket) => self.dial(index, socket, socket::encode(address)),
            Err(error) => {
                tracing::debug!(%address, %error, "no connection");
                self.end(index, DisconnectReason::Unreachable);
            }
        }
    }

    fn dial(&mut self, index: u32, socket: OwnedFd, address: SocketAddress) {
        let hello = self.greeting(GreetingKind::Hello, None);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let handshake = connection.handshake.insert(Handshake::new(&hello));
        let address = handshake.address.insert(address);
        let socket = connection.socket.insert(socket);
        self.ring.connect(index, socket.as_fd(), address);
        connection.connecting = true;
    }

    pub(super) fn greeting(&self, kind: GreetingKind, seen: Option<IpAddr>) -> Greeting {
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
        let Some(connection) = self.slots.at_mut(index) else { return };
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
        let Some(connection) = self.slots.at_mut(index) else { return };
        if let (Some(handshake), Some(socket)) = (&mut connection.handshake, &connection.socket) {
            let Handshake { ours, vectors: [sent, _], .. } = &mut **handshake;
            sent.clear();
            sent.push(ours.as_mut_ptr(), ours.len());
            self.ring.send(index, socket.as_fd(), sent);
            connection.sending = true;
        }
    }

    /// Asks for the rest of the peer's greeting.
    pub(super) fn await_greeting(&mut self, index: u32) {
        let Some(connection) = self.slots.at_mut(index) else { return };
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
        let Some(connection) = self.slots.at_mut(index) else { return };
        match connection.state {
            State::Ending(_) => self.finish_if_idle(index),
            State::Closing(reason) => self.end(index, reason),
            _ if result != GREETING_BYTES as i32 => {
                self.end(index, DisconnectReason::Unreachable);
            }
            _ => {}
        }
    }

    /// A part of the peer's greeting arrived.
    pub(super) fn greeted(&mut self, index: u32, result: i32, events: &mut Events) {
        let Some(connection) = self.slots.at_mut(index) else { return };
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
        let Some(connection) = self.slots.at(index) else { return };
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
        let Some(connection) = self.slots.at(index) else { return };
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
    pub(super) fn may_log_refusal(&mut self) -> bool {
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
        let Some(connection) = self.slots.at_mut(index) else { return };
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
        let Some(connection) = self.slots.at_mut(index) else { return };
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

    /// The last event of a connection was handed out.
    pub(super) fn release(&mut self, index: u32) {
        if self.slots.take(index).is_some() {
            self.slots.release(index);
            self.ending -= 1;
        }
    }

    /// Looks at a connection again when its deadline has passed.
    pub(super) fn watch(&mut self, index: u32, deadline: Time) {
        if !std::mem::replace(&mut self.is_timed[index as usize], true) {
            self.timed.push(index);
        }
        self.watch_deadline(deadline);
    }

    /// Gives a connection up if it took too long. Whether it has a deadline still.
    fn check_deadline(&mut self, index: u32, now: Time) -> bool {
        let Some(connection) = self.slots.at(index) else { return false };
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
            State::Closing(reason) | State::Parting(reason) => self.stop_lingering(index, reason),
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
            self.is_timed[*index as usize] = waits;
            waits
        });
        // Whatever was added meanwhile comes behind.
        timed.append(&mut self.timed);
        self.timed = timed;
        self.check_leaving(now);
        self.check_listeners(now);
    }
}

/// A peer's address as it is written in the log.
fn text(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

impl Handshake {
    pub(super) fn new(greeting: &Greeting) -> Box<Handshake> {
        Box::new(Handshake {
            address: None,
            theirs: [0; GREETING_BYTES],
            arrived: 0,
            ours: greeting.encode(),
            vectors: [Vectors::with_capacity(1), Vectors::with_capacity(1)],
        })
    }
}
