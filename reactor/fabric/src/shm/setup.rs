//! Everything that goes over the sockets: accepting, handshakes, registrations, wake-ups, ends.
//!
//! Part of [`ShmFabric`]; runs inside `poll`, at most every [`SOCKET_CHECK_BUSY`] unless armed.
//! Nothing here blocks: two ends may live in one thread. Work per call is bounded; what is left
//! over is still readable at the next call.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use gannet_runtime::time::Time;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use super::connection::{Connection, Link, State};
use super::control::{Control, Refusal};
use super::layout::{Geometry, SharedMemory, Side};
use super::listener::Listener;
use super::ring::Violation;
use super::socket::{self, Delivery, Dialled};
use super::{Listening, SOCKET_CHECK_BUSY, SOCKET_CHECK_IDLE, ShmFabric, regions};
use crate::{ConnectionId, DisconnectReason, Event, Events, FabricError, Key, PeerIdentity};

/// Ready descriptors taken per call.
pub(super) const READY_MAX: usize = 64;
/// Control messages taken per connection and call.
const MESSAGES_PER_CALL: usize = 32;
/// Connections accepted per listener and call.
const ACCEPTS_PER_CALL: usize = 32;
/// Sockets that one fabric may listen on.
const LISTENERS_MAX: usize = 64;
/// How long a listener rests when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How soon a sleeper dials again when the listener's queue was full.
const REDIAL_AFTER: Duration = Duration::from_millis(1);

/// Tokens whose low half is above every index of a connection.
const SPECIAL_TOKENS: u64 = 0xffff_0000;
pub(super) const TIMER_TOKEN: u64 = 0xffff_ffff;

const _: () = assert!((super::CONNECTIONS_MAX as u64) < SPECIAL_TOKENS);

fn token(id: ConnectionId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.index)
}

impl ShmFabric {
    pub(super) fn listen_at(&mut self, path: &Path) -> Result<(), FabricError> {
        if self.listening.len() >= LISTENERS_MAX {
            return Err(FabricError::Limit { what: "listening sockets", limit: LISTENERS_MAX });
        }
        let listener = Listener::bind(path, !self.options.trusted_uids.is_empty())?;
        let token = SPECIAL_TOKENS + self.listening.len() as u64;
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, listener.socket(), data, epoll::EventFlags::IN)
            .map_err(|error| system("watching", path, error.into()))?;
        self.listening.push(Listening { listener, paused_until: None });
        Ok(())
    }

    pub(super) fn connect_to(&mut self, path: &Path) -> Result<ConnectionId, FabricError> {
        let limit = self.options.connections_max;
        let Some(index) = self.slots.claim() else {
            return Err(FabricError::Limit { what: "shm connections", limit });
        };
        let (connection, failure) = match self.dial(index, path) {
            Ok(dialled) => dialled,
            Err(source) => {
                self.slots.release(index);
                return Err(system("connecting to", path, source));
            }
        };
        self.slots.put(index, connection);
        self.half_open.push(index);
        self.next_socket_check = Time::ZERO;
        let id = self.id(index);
        match failure {
            Some(reason) => self.end_locally(index, reason),
            None => self.watch(index),
        }
        Ok(id)
    }

    /// A connection that was begun, and why it ends if it does so at once.
    fn dial(&self, index: u32, path: &Path) -> io::Result<(Connection, Option<DisconnectReason>)> {
        let mut connection = Connection::new(State::Dialling { path: path.to_path_buf() });
        let failure = match socket::dial(path)? {
            Dialled::Connected(socket) => self.greet(index, &mut connection, socket)?,
            Dialled::Later => None,
            Dialled::Nobody | Dialled::Foreign => Some(DisconnectReason::Unreachable),
            Dialled::Denied => Some(DisconnectReason::NotTrusted),
        };
        Ok((connection, failure))
    }

    /// Starts the handshake over a connected socket; the reason if the peer is not acceptable.
    fn greet(
        &self,
        index: u32,
        connection: &mut Connection,
        socket: OwnedFd,
    ) -> io::Result<Option<DisconnectReason>> {
        let peer = socket::identity(&socket)?;
        if !self.is_trusted(&peer) {
            return Ok(Some(DisconnectReason::NotTrusted));
        }
        let memory = SharedMemory::create(self.options.geometry())?;
        let data = epoll::EventData::new_u64(token(self.id(index)));
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        connection.peer = Some(peer);
        connection.socket = Some(socket);
        connection.link = Some(Link::new(memory, Side::Connector));
        connection.state = State::AwaitingWelcome;
        connection.send_hello();
        Ok(None)
    }

    /// Queues the end of a connection that this side ends outside of `poll`.
    pub(super) fn end_locally(&mut self, index: u32, reason: DisconnectReason) {
        let id = self.id(index);
        self.unlist(index);
        if let Some(connection) = self.slots.at_mut(index) {
            // Everything but the place in the table goes now.
            *connection = Connection::new(State::Ended);
        }
        self.pending.push_back(Event::Disconnected { connection: id, reason });
    }

    /// Ends a connection inside `poll`, where its completions have been handed out.
    pub(super) fn finish(&mut self, index: u32, reason: DisconnectReason, events: &mut Events) {
        let id = self.id(index);
        if let Some(connection) = self.slots.at_mut(index) {
            match reason {
                DisconnectReason::Protocol => connection.close_violated(),
                _ => connection.close_orderly(),
            }
        }
        self.unlist(index);
        self.slots.release(index);
        events.push(Event::Disconnected { connection: id, reason });
    }

    /// Forgets an accepted connection that its user never heard of.
    fn forget(&mut self, index: u32) {
        self.unlist(index);
        self.slots.release(index);
    }

    fn unlist(&mut self, index: u32) {
        for list in [&mut self.live, &mut self.half_open] {
            if let Some(position) = list.iter().position(|listed| *listed == index) {
                list.swap_remove(position);
            }
        }
    }

    fn is_trusted(&self, peer: &PeerIdentity) -> bool {
        let PeerIdentity::Local { uid, .. } = peer else { return false };
        *uid == 0
            || *uid == rustix::process::geteuid().as_raw()
            || self.options.trusted_uids.contains(uid)
    }

    /// Looks at every socket that has something to say.
    pub(super) fn service_sockets(&mut self, now: Time, events: &mut Events) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let space = rustix::buffer::spare_capacity(&mut ready);
        // INTR and the like: the next call looks again.
        let _looked = epoll::wait(&self.epoll, space, Some(&no_wait));
        let mut unfinished = ready.len() == READY_MAX;
        for event in &ready {
            let data = event.data;
            let token = data.u64();
            if token == TIMER_TOKEN {
                // Reset below, or when the reactor wakes up.
            } else if token & SPECIAL_TOKENS == SPECIAL_TOKENS {
                self.accept(now, (token & 0xffff) as usize, events);
            } else {
                unfinished |= self.service_connection(token, events);
            }
        }
        self.ready = ready;
        if !self.half_open.is_empty() {
            self.service_half_open(now, events);
        }
        self.resume_listeners(now);
        self.release_regions();
        let unsettled = self.answers_awaited() || !self.half_open.is_empty();
        self.next_socket_check = match (unfinished, unsettled) {
            (true, _) => Time::ZERO,
            (false, true) => now + SOCKET_CHECK_BUSY,
            (false, false) => now + SOCKET_CHECK_IDLE,
        };
        if self.armed {
            self.set_timer(now);
        }
    }

    /// Whether anything over a socket is under way. Has sockets watched for room where something
    /// waits for it.
    fn answers_awaited(&mut self) -> bool {
        let mut awaited = false;
        for position in 0..self.live.len() {
            let index = self.live[position];
            let Some(connection) = self.slots.at(index) else { continue };
            awaited |= connection.local.awaited() > 0
                || connection.remote.releasing() > 0
                || connection.has_unsent();
            if connection.has_unsent() {
                self.watch(index);
            }
        }
        awaited
    }

    fn accept(&mut self, now: Time, listener: usize, events: &mut Events) {
        for _ in 0..ACCEPTS_PER_CALL {
            match self.listening[listener].listener.accept() {
                Ok(socket) => self.accepted(now, socket, events),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.pause_listener(now, listener);
                    return;
                }
                // AGAIN: all accepted. Others concern a connection that is gone already.
                Err(_) => return,
            }
        }
    }

    fn accepted(&mut self, now: Time, socket: OwnedFd, events: &mut Events) {
        let Ok(peer) = socket::identity(&socket) else { return };
        let accepted_half_open = self
            .half_open
            .iter()
            .filter_map(|index| self.slots.at(*index))
            .filter(|connection| matches!(connection.state, State::AwaitingHello))
            .count();
        let refusal = if !self.is_trusted(&peer) {
            Some(Refusal::NotTrusted)
        } else if self.slots.free() == 0 || accepted_half_open >= self.options.half_open_max {
            Some(Refusal::Full)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            // Unsent, the peer learns of its end only.
            let _sent = socket::send(&socket, Control::Refused(refusal), None);
            return;
        }
        let Some(index) = self.slots.claim() else { return };
        let id = self.id(index);
        let data = epoll::EventData::new_u64(token(id));
        if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_err() {
            self.slots.release(index);
            return;
        }
        let mut connection = Connection::new(State::AwaitingHello);
        connection.peer = Some(peer);
        connection.socket = Some(socket);
        connection.deadline = Some(now + self.options.handshake_timeout);
        self.slots.put(index, connection);
        self.half_open.push(index);
        // The greeting usually is there already.
        self.service_connection(token(id), events);
    }

    fn pause_listener(&mut self, now: Time, listener: usize) {
        let listening = &mut self.listening[listener];
        listening.paused_until = Some(now + ACCEPT_PAUSE);
        // If it fails the listener is merely looked at too often.
        let _changed = epoll::modify(
            &self.epoll,
            listening.listener.socket(),
            epoll::EventData::new_u64(SPECIAL_TOKENS + listener as u64),
            epoll::EventFlags::empty(),
        );
    }

    fn resume_listeners(&mut self, now: Time) {
        for (number, listening) in self.listening.iter_mut().enumerate() {
            if listening.paused_until.is_some_and(|until| now >= until) {
                let data = epoll::EventData::new_u64(SPECIAL_TOKENS + number as u64);
                let socket = listening.listener.socket();
                if epoll::modify(&self.epoll, socket, data, epoll::EventFlags::IN).is_ok() {
                    listening.paused_until = None;
                }
            }
        }
    }

    /// Gives up handshakes that take too long, and dials again where a queue was full.
    fn service_half_open(&mut self, now: Time, events: &mut Events) {
        let mut position = 0;
        while let Some(&index) = self.half_open.get(position) {
            let timeout = self.options.handshake_timeout;
            let Some(connection) = self.slots.at_mut(index) else { return };
            let expired = now >= *connection.deadline.get_or_insert(now + timeout);
            let outcome = match &connection.state {
                State::Dialling { .. } if expired => Some(DisconnectReason::Unreachable),
                State::Dialling { path } => {
                    let path = path.clone();
                    self.redial(index, &path)
                }
                State::AwaitingWelcome if expired => Some(DisconnectReason::PeerLost),
                State::AwaitingHello if expired => {
                    self.forget(index);
                    continue;
                }
                _ => None,
            };
            match outcome {
                // Removed from the list, whose last element takes its place.
                Some(reason) => self.finish(index, reason, events),
                None => position += 1,
            }
        }
    }

    fn redial(&mut self, index: u32, path: &Path) -> Option<DisconnectReason> {
        let mut connection = self.slots.take(index)?;
        let outcome = match socket::dial(path) {
            Ok(Dialled::Connected(socket)) => self
                .greet(index, &mut connection, socket)
                .unwrap_or(Some(DisconnectReason::Unreachable)),
            Ok(Dialled::Later) => None,
            Ok(Dialled::Denied) => Some(DisconnectReason::NotTrusted),
            Ok(Dialled::Nobody | Dialled::Foreign) | Err(_) => Some(DisconnectReason::Unreachable),
        };
        self.slots.put(index, connection);
        self.watch(index);
        outcome
    }

    /// Reads a connection's socket. True if something may be left in it.
    fn service_connection(&mut self, token: u64, events: &mut Events) -> bool {
        let id = ConnectionId { index: token as u32, generation: (token >> 32) as u32 };
        for _ in 0..MESSAGES_PER_CALL {
            // An earlier message, or an earlier event of the batch, may have ended it.
            let Some(connection) = self.connection(id) else { return false };
            let Some(socket) = &connection.socket else { return false };
            match socket::receive(socket) {
                Delivery::Empty => {
                    connection.send_unsent();
                    self.watch(id.index);
                    return false;
                }
                Delivery::End => {
                    self.lost(id, events);
                    return false;
                }
                Delivery::Garbage => {
                    self.violated(id, events);
                    return false;
                }
                Delivery::Message(control, file) => {
                    if self.handle(id, control, file, events) == Err(Violation) {
                        self.violated(id, events);
                        return false;
                    }
                }
            }
        }
        true
    }

    /// The socket is at its end.
    fn lost(&mut self, id: ConnectionId, events: &mut Events) {
        let Some(connection) = self.connection(id) else { return };
        match connection.state {
            State::AwaitingHello => self.forget(id.index),
            State::Established => connection.drain(),
            State::Dialling { .. } | State::AwaitingWelcome => {
                self.finish(id.index, DisconnectReason::PeerLost, events);
            }
            State::Draining { .. } | State::Refused | State::Ended => {}
        }
    }

    /// The peer does not keep to the protocol.
    fn violated(&mut self, id: ConnectionId, events: &mut Events) {
        let Some(connection) = self.connection(id) else { return };
        if let State::AwaitingHello = connection.state {
            if let Some(socket) = &connection.socket {
                let _sent = socket::send(socket, Control::Refused(Refusal::Protocol), None);
            }
            self.forget(id.index);
        } else {
            self.finish(id.index, DisconnectReason::Protocol, events);
        }
    }

    fn handle(
        &mut self,
        id: ConnectionId,
        control: Control,
        file: Option<OwnedFd>,
        events: &mut Events,
    ) -> Result<(), Violation> {
        let limits = self.options.region_limits();
        let unsent_max = self.options.unsent_max();
        let armed = self.armed;
        let Some(connection) = self.connection(id) else { return Ok(()) };
        match (&connection.state, control) {
            (State::AwaitingHello, Control::Hello { geometry, memory_bytes }) => {
                let memory = accept_memory(geometry, memory_bytes, file)?;
                connection.link = Some(Link::new(memory, Side::Acceptor));
                connection.send_control(Control::Welcome, None, unsent_max)?;
                let peer = connection.peer.clone();
                self.establish(id.index);
                if let Some(peer) = peer {
                    events.push(Event::Accepted { connection: id, peer });
                }
            }
            (State::AwaitingWelcome, Control::Welcome) => {
                self.establish(id.index);
                events.push(Event::Connected { connection: id });
            }
            (State::AwaitingWelcome, Control::Refused(refusal)) => {
                let reason = match refusal {
                    Refusal::NotTrusted => DisconnectReason::NotTrusted,
                    Refusal::Protocol => DisconnectReason::Protocol,
                    Refusal::Full => DisconnectReason::Unreachable,
                };
                self.finish(id.index, reason, events);
            }
            (State::Established, Control::Register { key, access, address, len_bytes }) => {
                let file = file.ok_or(Violation)?;
                connection.remote.add(key, access, address, len_bytes, file, limits)?;
                connection.send_control(Control::Registered { key }, None, unsent_max)?;
            }
            (State::Established, Control::Registered { key }) => {
                if connection.local.registered(key)? {
                    events.push(Event::Registered { connection: id, key: Key(key) });
                }
            }
            (State::Established, Control::Deregister { key }) => {
                connection.remote.remove(key)?;
            }
            (State::Established, Control::Deregistered { key }) => {
                connection.local.ended(key)?;
                events.push(Event::Deregistered { connection: id, key: Key(key) });
            }
            (State::Established, Control::Wake) => {
                if let (true, Some(link)) = (armed, &connection.link) {
                    // The peer took the word back to send this. The rings are looked at next.
                    link.arm();
                }
            }
            _ => return Err(Violation),
        }
        Ok(())
    }

    fn establish(&mut self, index: u32) {
        if let Some(position) = self.half_open.iter().position(|listed| *listed == index) {
            self.half_open.swap_remove(position);
        }
        self.live.push(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        connection.state = State::Established;
        connection.deadline = None;
        if let (true, Some(link)) = (self.armed, &connection.link) {
            link.arm();
        }
    }

    /// Confirms the end of registrations whose last views are gone.
    fn release_regions(&mut self) {
        let unsent_max = self.options.unsent_max();
        for position in 0..self.live.len() {
            let index = self.live[position];
            let Some(connection) = self.slots.at_mut(index) else { continue };
            if connection.remote.releasing() == 0 || !matches!(connection.state, State::Established)
            {
                continue;
            }
            let mut remote = std::mem::take(&mut connection.remote);
            remote.release(|key| {
                let control = Control::Deregistered { key };
                connection.fault |= connection.send_control(control, None, unsent_max).is_err();
            });
            connection.remote = remote;
            self.watch(index);
        }
    }

    /// After something was sent outside of `poll`: its answer is looked for soon.
    pub(super) fn after_control(&mut self, index: u32) {
        self.next_socket_check = Time::ZERO;
        self.watch(index);
    }

    /// Watches a socket for room exactly while something waits for it.
    fn watch(&mut self, index: u32) {
        let id = self.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let wanted = connection.has_unsent();
        let Some(socket) = &connection.socket else { return };
        if wanted == connection.watched_for_room {
            return;
        }
        let mut interest = epoll::EventFlags::IN;
        interest.set(epoll::EventFlags::OUT, wanted);
        let data = epoll::EventData::new_u64(token(id));
        if epoll::modify(&self.epoll, socket, data, interest).is_ok() {
            connection.watched_for_room = wanted;
        }
    }

    /// Lets the descriptors become readable when the next deadline passes: the reactor may sleep.
    fn set_timer(&mut self, now: Time) {
        let deadline = |index: &u32| match self.slots.at(*index)? {
            Connection { state: State::Dialling { .. }, .. } => Some(now + REDIAL_AFTER),
            other => other.deadline,
        };
        let connections = self.half_open.iter().filter_map(deadline);
        let listeners = self.listening.iter().filter_map(|listening| listening.paused_until);
        let next = connections.chain(listeners).min();
        self.timer.set(next.unwrap_or(Time::NEVER));
    }
}

/// Maps a connector's memory, after checking everything that it stated about it.
fn accept_memory(
    geometry: Geometry,
    memory_bytes: u64,
    file: Option<OwnedFd>,
) -> Result<SharedMemory, Violation> {
    let file = file.ok_or(Violation)?;
    if !geometry.is_valid()
        || memory_bytes != geometry.memory_bytes() as u64
        || !regions::is_plain_memfd(&file)
    {
        return Err(Violation);
    }
    SharedMemory::from_peer(file, geometry).map_err(|_| Violation)
}

fn system(what: &str, path: &Path, source: io::Error) -> FabricError {
    FabricError::System { what: format!("{what} {}", path.display()), source }
}
