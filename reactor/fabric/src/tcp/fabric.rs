//! The provider itself: its tables, and the trait.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use super::TcpOptions;
use super::connection::{Connection, End, State};
use super::leaving::Leaving;
use super::listeners::Listener;
use super::ring::{Answer, Operation, Ring};
use super::wire::{Entry, GREETING_BYTES, TRANSFER_BYTES_MAX};
use crate::credits::Class;
use crate::names::Names;
use crate::slots::{Slots, are_few};
use crate::timer::Timer;
use crate::{
    Access, Address, Capabilities, ConnectionId, DisconnectReason, Event, Events, Fabric,
    FabricError, Key, LARGE_MESSAGE_BYTES, PeerIdentity, PostError, Refused, Registration,
    RemoteSlice, Transfer, WindowError,
};

/// Answers taken from the kernel at a time.
const ANSWERS_PER_ROUND: usize = 512;
/// How often a poll goes back to the kernel for payload that is announced and probably there.
const ROUNDS_PER_POLL: usize = 4;
/// Bytes received per poll, give or take one request of each connection.
const BYTES_PER_POLL: usize = 2 << 20;
/// How long the acknowledgement of a write may wait for something that is sent anyway.
const ANSWER_WITHIN: Duration = Duration::from_micros(200);
/// A connection on which the last two arrivals were no further apart is busy: for so long after each
/// it is asked at every poll, which brings what arrives a little sooner than the ring would.
const BUSY_WITHIN: Duration = Duration::from_micros(100);
/// How many connections are asked so.
const DIRECT_MAX: usize = 4;
/// How long a sleeper waits before it offers the kernel once more what that could not take.
const SUBMIT_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// What nobody wants to have goes here.
const SINK_BYTES: usize = 64 * 1024;

/// The tcp provider of one reactor. See the module.
pub struct TcpFabric {
    pub(super) options: TcpOptions,
    pub(super) ring: Ring,
    pub(super) slots: Slots<Box<Connection>>,
    pub(super) listeners: Vec<Listener>,
    /// A newcomer waits for a place.
    pub(super) newcomer_waits: bool,
    /// Names of peers that are being looked up.
    pub(super) names: Names,
    /// Connections that are being taken back or over, whose places are about to be free.
    pub(super) ending: usize,
    /// Sockets whose connections are over, and which are read to their end.
    pub(super) leaving: Vec<Option<Leaving>>,
    /// Connections with something to be sent at the next flush.
    dirty: Vec<u32>,
    /// Connections that owe their peers acknowledgements, and since when at the earliest.
    owing: Vec<u32>,
    owing_since: Time,
    /// Places of connections with a deadline, each once.
    pub(super) timed: Vec<u32>,
    /// Whether a place is among them; whoever had it before may be there still.
    pub(super) is_timed: Vec<bool>,
    /// When the next deadline passes.
    pub(super) next_deadline: Time,
    /// Events that are not handed out yet.
    pub(super) pending: VecDeque<Event>,
    answers: Vec<Answer>,
    /// Connections of which nothing is expected at once, and which the kernel was not asked for yet.
    listening_later: Vec<u32>,
    /// They were there at the last poll already.
    put_off_once: bool,
    /// Busy connections, asked at every poll without the ring.
    pub(super) direct: VecDeque<u32>,
    /// How far apart arrivals may be on a busy connection: [`BUSY_WITHIN`], but in tests.
    pub(super) busy_within: Duration,
    /// One of them is being handled.
    handles_direct: bool,
    /// Payload is announced that may be there already.
    hot: bool,
    received_bytes: usize,
    pub(super) sink: Box<[u8]>,
    next_key: u32,
    keys_wrapped: bool,
    timer: Timer,
    armed: bool,
    /// The time of the last poll.
    pub(super) now: Time,
    /// When a refusal was written to the log last.
    pub(super) refusal_logged: Option<Time>,
}

// SAFETY: the pointers inside are to memory that the value owns or keeps mapped, and it is used by
// one thread at a time.
unsafe impl Send for TcpFabric {}

impl TcpFabric {
    /// Makes a fabric without connections.
    ///
    /// # Errors
    /// `Limit` or `Address` naming an option that is out of bounds; `System` when io_uring or a
    /// descriptor cannot be had, with the remedy.
    pub fn new(options: TcpOptions) -> Result<TcpFabric, FabricError> {
        options.check()?;
        let places = options.connections_max;
        Ok(TcpFabric {
            ring: Ring::new()?,
            slots: Slots::new(places),
            listeners: Vec::new(),
            newcomer_waits: false,
            names: Names::new()?,
            ending: 0,
            leaving: Vec::new(),
            dirty: Vec::with_capacity(places),
            owing: Vec::with_capacity(places),
            owing_since: Time::ZERO,
            timed: Vec::with_capacity(places),
            is_timed: vec![false; places],
            next_deadline: Time::NEVER,
            pending: VecDeque::with_capacity(places + options.transfers_max),
            answers: Vec::with_capacity(ANSWERS_PER_ROUND),
            listening_later: Vec::with_capacity(places),
            put_off_once: false,
            direct: VecDeque::with_capacity(2 * DIRECT_MAX),
            busy_within: BUSY_WITHIN,
            handles_direct: false,
            hot: false,
            received_bytes: 0,
            sink: vec![0; SINK_BYTES].into_boxed_slice(),
            next_key: 1,
            keys_wrapped: false,
            timer: Timer::new()?,
            armed: false,
            now: Time::monotonic(),
            refusal_logged: None,
            options,
        })
    }

    /// Connections in the table: established, in set-up, or with an event still to be polled.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.slots.used()
    }

    /// Ends like the process's death, without a word to the peers. For tests of what follows a
    /// crash.
    pub fn abandon(mut self) {
        self.take_back_everything();
        self.slots.empty();
        self.dirty.clear();
    }

    #[inline]
    pub(super) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.find_mut(id).map(Box::as_mut)
    }

    #[inline]
    fn link(&mut self, id: ConnectionId) -> Option<&mut super::connection::Link> {
        self.connection(id)?.established()
    }

    #[inline]
    pub(super) fn at(&mut self, index: u32) -> Option<&mut Connection> {
        self.slots.at_mut(index).map(Box::as_mut)
    }

    pub(super) fn id(&self, index: u32) -> ConnectionId {
        self.slots.id(index)
    }

    /// Something is to be sent at the next flush.
    #[inline]
    pub(super) fn mark_dirty(&mut self, index: u32) {
        if let Some(connection) = self.slots.at_mut(index)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Hands over what was collected, unless the kernel has something of the connection still.
    #[inline]
    pub(super) fn launch(&mut self, index: u32) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        let sends =
            matches!(connection.state, State::Established | State::Closing(_) | State::Parting(_));
        if connection.sending || !sends {
            return;
        }
        if let (Some(link), Some(socket)) = (&mut connection.link, &connection.socket)
            && link.outgoing.has_open()
        {
            let vectors = link.launch();
            self.ring.send(index, socket.as_fd(), vectors);
            connection.sending = true;
        }
    }

    /// Asks for more of a connection: at once if it probably is there, else behind what is sent next.
    #[inline]
    pub(super) fn request(&mut self, index: u32) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        let Some(link) = &connection.link else { return };
        if connection.receiving {
            return;
        }
        let payload = link.incoming.awaits_payload();
        let busy = !self.armed && self.now < connection.direct_until;
        if busy && (self.handles_direct || (!payload && self.direct.len() < DIRECT_MAX)) {
            if !connection.direct {
                connection.direct = true;
                self.direct.push_back(index);
            }
        } else if payload {
            self.hot = true;
            self.request_now(index);
        } else if !connection.listens_later {
            connection.listens_later = true;
            self.listening_later.push(index);
        }
    }

    #[inline]
    fn request_now(&mut self, index: u32) {
        let Some(connection) = self.slots.at_mut(index) else { return };
        connection.listens_later = false;
        let receives = matches!(connection.state, State::Established | State::Closing(_));
        if connection.receiving || !receives {
            return;
        }
        if let (Some(link), Some(socket)) = (&mut connection.link, &connection.socket) {
            let (vectors, poll_first) = link.request(&mut self.sink);
            self.ring.receive(index, socket.as_fd(), vectors, poll_first);
            connection.receiving = true;
        }
    }

    /// Asks the sockets of busy connections.
    #[inline]
    fn receive_directly(&mut self, events: &mut Events) {
        for _ in 0..self.direct.len() {
            if self.received_bytes > BYTES_PER_POLL {
                // They stay in front, and are asked first at the next poll.
                return;
            }
            let Some(index) = self.direct.pop_front() else { return };
            for round in 1..=ROUNDS_PER_POLL {
                let Some(connection) = self.slots.at_mut(index) else { break };
                let receives = matches!(connection.state, State::Established | State::Closing(_));
                if !std::mem::take(&mut connection.direct) || connection.receiving || !receives {
                    break;
                }
                let (Some(link), Some(socket)) = (&mut connection.link, &connection.socket) else {
                    break;
                };
                let (vectors, _) = link.request(&mut self.sink);
                // SAFETY: the ranges are the connection's own buffer, and memory that its landings
                // keep mapped.
                let result = unsafe { vectors.receive_now(socket.as_fd()) };
                if result == -libc::EAGAIN {
                    link.incoming.gave_up();
                    if link.incoming.awaits_payload() || self.now >= connection.direct_until {
                        self.request_now(index);
                    } else {
                        connection.direct = true;
                        self.direct.push_back(index);
                    }
                    break;
                }
                self.handles_direct = true;
                let operation = Operation::Receive;
                self.received(Answer { operation, index, result, more: true }, events);
                self.handles_direct = false;
                let link = self.at(index).and_then(|connection| connection.link.as_ref());
                let more = link.is_some_and(|link| link.incoming.awaits_payload());
                let enough = round == ROUNDS_PER_POLL || self.received_bytes > BYTES_PER_POLL;
                if !more || enough {
                    break;
                }
                // It is listed again, and asked again here.
                self.direct.retain(|listed| *listed != index);
            }
        }
    }

    /// Asks for what was put off.
    #[inline]
    fn request_all(&mut self) {
        self.put_off_once = false;
        while let Some(index) = self.listening_later.pop() {
            if self.at(index).is_some_and(|connection| connection.listens_later) {
                self.request_now(index);
            }
        }
    }

    /// Handles what arrived on a connection, and asks for more.
    #[inline]
    pub(super) fn handle(&mut self, index: u32, events: &mut Events) {
        let id = self.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let closing = matches!(connection.state, State::Closing(_));
        let Some(link) = &mut connection.link else { return };
        let outcome = link.handle(id, closing, events);
        link.transfers.complete(id, |event| self.pending.push_back(event));
        match outcome {
            Ok(()) => {
                if link.outgoing.has_open() || link.should_answer() {
                    self.mark_dirty(index);
                } else if link.owes_answer() && !connection.owing {
                    connection.owing = true;
                    if self.owing.is_empty() {
                        self.owing_since = self.now;
                    }
                    self.owing.push(index);
                }
                self.request(index);
                self.check_closing(index);
            }
            Err(End::Violation(violation)) => {
                let (peer, what) = (connection.peer, violation.0);
                self.log_refusal(peer, what);
                self.end(index, DisconnectReason::Protocol);
            }
            Err(End::Refusal(transfer)) => {
                self.close(index, DisconnectReason::Protocol, Entry::Refused { transfer });
            }
            Err(End::Refused) => self.end(index, DisconnectReason::TransferRefused),
            Err(End::Goodbye) => self.part(index),
        }
    }

    /// The kernel brought something, or says that it does not.
    #[inline]
    fn received(&mut self, answer: Answer, events: &mut Events) {
        let index = answer.index;
        let Some(connection) = self.slots.at_mut(index) else { return };
        connection.receiving = false;
        if matches!(connection.state, State::AwaitingAnswer | State::AwaitingHello) {
            return self.greeted(index, answer.result, events);
        }
        if let State::Ending(_) = connection.state {
            return self.finish_if_idle(index);
        }
        let Some(link) = &mut connection.link else { return };
        match (connection.state, answer.result) {
            (state, count @ 1..) => {
                link.incoming.arrived(count as usize, answer.more);
                let busy = self.now.since(connection.arrived) <= self.busy_within;
                let until = self.now + self.busy_within;
                connection.direct_until = if busy { until } else { Time::ZERO };
                connection.arrived = self.now;
                self.received_bytes += count as usize;
                if let State::Closing(_) = state {
                    link.incoming.turn_away_writes();
                }
                self.handle(index, events);
            }
            (state, result) => {
                link.incoming.gave_up();
                let again = [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOBUFS];
                if again.contains(&-result) {
                    if let State::Closing(_) = state {
                        link.incoming.turn_away_writes();
                    }
                    self.handle(index, events);
                } else {
                    self.broken(index);
                }
            }
        }
    }

    /// The stream is over without a goodbye, or broke.
    fn broken(&mut self, index: u32) {
        let reason = match self.at(index).map(|connection| connection.state) {
            Some(State::Closing(reason) | State::Parting(reason)) => reason,
            _ => DisconnectReason::PeerLost,
        };
        self.end(index, reason);
    }

    /// The kernel took something, or does not.
    #[inline]
    fn sent(&mut self, answer: Answer) {
        let index = answer.index;
        let id = self.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        connection.sending = false;
        let Some(link) = &mut connection.link else {
            return self.greeting_sent(index, answer.result);
        };
        if let State::Ending(_) = connection.state {
            return self.sent_at_end(index, answer.result);
        }
        if link.greeting_under_way {
            link.greeting_under_way = false;
            connection.handshake = None;
            return match answer.result {
                count if count == GREETING_BYTES as i32 => {
                    self.launch(index);
                    self.check_closing(index);
                }
                _ => self.broken(index),
            };
        }
        let count = match answer.result {
            count @ 0.. => count as usize,
            result if [libc::EAGAIN, libc::EINTR, libc::ENOBUFS].contains(&-result) => 0,
            _ => return self.broken(index),
        };
        if let (Some(rest), Some(socket)) = (link.outgoing.sent(count), &connection.socket) {
            self.ring.send(index, socket.as_fd(), rest);
            connection.sending = true;
            return;
        }
        link.transfers.settle(link.outgoing.writes_sent);
        if link.should_answer() {
            link.outgoing.push_nothing();
        }
        let pending = &mut self.pending;
        link.transfers.complete(id, |event| pending.push_back(event));
        link.left(|key| {
            pending.push_back(Event::Deregistered { connection: id, key: Key(key) });
        });
        self.launch(index);
        self.check_closing(index);
    }

    /// Handles the kernel's answers, and goes back for payload that is probably there.
    #[inline]
    fn poll_ring(&mut self, events: &mut Events) {
        let mut answers = std::mem::take(&mut self.answers);
        for _ in 0..ROUNDS_PER_POLL {
            self.ring.enter_if_useful();
            self.hot = false;
            self.ring.take(&mut answers);
            for answer in &answers {
                match answer.operation {
                    Operation::Receive => self.received(*answer, events),
                    Operation::Send => self.sent(*answer),
                    Operation::Connect => self.dialled(answer.index, answer.result),
                    Operation::Accept => self.accepted(answer.index, answer.result),
                    Operation::Discard => self.discarded(answer.index, answer.result),
                    Operation::Deliver => self.delivered(answer.index, answer.result),
                    Operation::Cancel => {}
                }
            }
            answers.clear();
            if !self.hot || self.received_bytes > BYTES_PER_POLL {
                break;
            }
        }
        self.answers = answers;
    }

    /// Lets those hear that wait for acknowledgements.
    fn answer_owing(&mut self) {
        while let Some(index) = self.owing.pop() {
            let Some(connection) = self.slots.at_mut(index) else { continue };
            connection.owing = false;
            let owes = |link: &&mut super::connection::Link| link.owes_answer();
            if connection.established().filter(owes).is_some() {
                self.mark_dirty(index);
            }
        }
    }

    fn send_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let Some(connection) = self.slots.at_mut(index) else { continue };
            connection.dirty = false;
            if let (State::Established, Some(link)) = (connection.state, &mut connection.link) {
                if !connection.sending {
                    link.outgoing.push_nothing();
                } else if link.owes_answer() && !connection.owing {
                    connection.owing = true;
                    self.owing.push(index);
                }
            }
            self.launch(index);
        }
    }

    /// A key that no registration of this fabric has.
    fn unused_key(&mut self) -> u32 {
        loop {
            let key = self.next_key;
            let (next, wrapped) = key.overflowing_add(1);
            self.next_key = next.max(1);
            let used = self.keys_wrapped
                && self
                    .slots
                    .iter()
                    .filter_map(|connection| connection.link.as_ref())
                    .any(|link| link.regions.contains(key) || link.leaves(key));
            self.keys_wrapped |= wrapped;
            if !used {
                return key;
            }
        }
    }

    /// Checks and posts a read or write.
    #[inline]
    fn transfer(
        &mut self,
        connection: ConnectionId,
        transfer: Transfer,
        writes: bool,
    ) -> Result<(), Refused> {
        let Some(link) = self.link(connection) else {
            return Err(Refused { error: PostError::NotConnected, transfer });
        };
        let len = transfer.remote.len_bytes;
        let end = transfer.offset.checked_add(len as usize);
        if end.is_none_or(|end| end > transfer.memory.len()) || len > TRANSFER_BYTES_MAX {
            return Err(Refused { error: PostError::TooLong, transfer });
        }
        if link.transfers.is_full() {
            return Err(Refused { error: PostError::Full, transfer });
        }
        if link.post_transfer(transfer, writes) {
            self.mark_dirty(connection.index);
        }
        Ok(())
    }

    pub(super) fn watch_deadline(&mut self, deadline: Time) {
        self.next_deadline = self.next_deadline.min(deadline);
    }

    fn set_timer(&mut self) {
        let mut deadline = self.next_deadline;
        if self.ring.has_unsubmitted() {
            // The kernel was short of something, and does not say when it has it again.
            deadline = deadline.min(Time::monotonic() + SUBMIT_AGAIN_AFTER);
        }
        self.timer.set(deadline);
    }

    /// Takes back from the kernel whatever it has of this value's memory.
    fn take_back_everything(&mut self) {
        self.ring.forget_backlog();
        for index in 0..self.slots.places() as u32 {
            let Some(connection) = self.slots.at(index) else { continue };
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
        }
        for index in 0..self.leaving.len() as u32 {
            self.ring.cancel(Operation::Discard, index);
            self.ring.cancel(Operation::Deliver, index);
        }
        for index in 0..self.listeners.len() as u32 {
            self.ring.cancel(Operation::Accept, index);
        }
        while self.ring.under_way() > 0 {
            if !self.ring.wait() {
                // The kernel may still touch the memory: it must never be used again.
                std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
                std::mem::forget(std::mem::take(&mut self.leaving));
                std::mem::forget(std::mem::take(&mut self.sink));
                return;
            }
            self.answers.clear();
            self.ring.take(&mut self.answers);
        }
    }
}

impl Fabric for TcpFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        Capabilities {
            maps_remote_memory: false,
            disconnect_revokes_access: true,
            memory_windows: true,
            streams: true,
        }
    }

    fn scheme(&self, _connection: ConnectionId) -> &'static str {
        "tcp"
    }

    fn is_short_of_places(&self, _connection: ConnectionId) -> bool {
        let half_open = |index: &&u32| {
            self.slots.at(**index).is_some_and(|found| found.state == State::AwaitingHello)
        };
        let waiting = self.timed.iter().filter(half_open).count();
        are_few(self.slots.free() + waiting, self.slots.places())
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        self.listen_at(at)
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        self.connect_to(to)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let Some(found) = self.connection(connection) else { return };
        match found.state {
            State::Established => {
                self.close(connection.index, DisconnectReason::Local, Entry::Goodbye);
            }
            State::Connecting | State::AwaitingAnswer => {
                self.end(connection.index, DisconnectReason::Local);
            }
            _ => {}
        }
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        let found = self.slots.find(connection)?;
        found.peer.map(|peer| PeerIdentity::Network(peer.to_string()))
    }

    fn prepare(&mut self, _memory: &Arc<Mapping>) -> Result<(), FabricError> {
        Ok(())
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        let limit = self.options.registrations_max;
        let found = self.link(connection).ok_or(FabricError::NotConnected)?;
        if found.regions.registrations() >= limit {
            return Err(FabricError::Limit { what: "registrations of one connection", limit });
        }
        let key = self.unused_key();
        let found = self.link(connection).ok_or(FabricError::NotConnected)?;
        let registration = found.regions.register(key, memory, access);
        self.pending.push_back(Event::Registered { connection, key: Key(key) });
        Ok(registration)
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        let limit = self.options.windows_max;
        let found = self.link(connection).ok_or(WindowError::NotConnected)?;
        if found.regions.windows() >= limit {
            return Err(WindowError::Full);
        }
        let key = self.unused_key();
        let found = self.link(connection).ok_or(WindowError::NotConnected)?;
        let window = found.regions.open_window(key, base.0, offset, len_bytes, access)?;
        self.pending.push_back(Event::Registered { connection, key: Key(key) });
        Ok(window)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        let deadline = Time::monotonic() + self.options.linger;
        let found = self.slots.find_mut(connection);
        let Some(link) = found.and_then(|found| found.established()) else { return };
        let pending = &mut self.pending;
        let lands = link.end_key(key.0, deadline, |key| {
            pending.push_back(Event::Deregistered { connection, key: Key(key) });
        });
        if lands {
            self.end(connection.index, DisconnectReason::Protocol);
        } else if !link.leaving.is_empty() {
            self.await_leaving(connection.index, deadline);
        }
    }

    #[inline]
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        if message.len() > LARGE_MESSAGE_BYTES {
            return Err(PostError::TooLong);
        }
        let link = self.link(connection).ok_or(PostError::NotConnected)?;
        let class = Class::of(message.len());
        if !link.credits.has(class) {
            return Err(PostError::Full);
        }
        link.credits.take(class);
        if link.post_message(message) {
            self.mark_dirty(connection.index);
        }
        Ok(())
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.transfer(connection, transfer, true)
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.transfer(connection, transfer, false)
    }

    fn map(
        &mut self,
        _connection: ConnectionId,
        _remote: RemoteSlice,
        _access: Access,
    ) -> Option<Slice> {
        None
    }

    #[inline]
    fn flush(&mut self) {
        if !self.dirty.is_empty() {
            self.send_dirty();
        }
        // What merely asks for bytes to come goes behind, in the same call, or waits: whoever flushes
        // now may have something better to do first.
        if self.ring.has_unsubmitted() {
            self.request_all();
            self.ring.submit();
        }
        if self.armed && !self.pending.is_empty() {
            self.timer.set(Time::ZERO);
        }
    }

    #[inline]
    fn poll(&mut self, now: Time, events: &mut Events) {
        self.now = now;
        self.received_bytes = 0;
        // A user who has something to send in answer flushes before the second poll.
        if !self.listening_later.is_empty() && std::mem::replace(&mut self.put_off_once, true) {
            self.request_all();
        }
        if self.names.has_answers() {
            self.take_names();
        }
        if self.ring.has_unsubmitted() || self.ring.has_answers() {
            self.poll_ring(events);
        }
        // Behind the ring's answers: what is received may answer what they say to have been sent.
        if !self.direct.is_empty() {
            self.receive_directly(events);
            if self.ring.has_unsubmitted() {
                self.poll_ring(events);
            }
        }
        if !self.owing.is_empty() && now.since(self.owing_since) >= ANSWER_WITHIN {
            self.answer_owing();
        }
        if now >= self.next_deadline {
            self.check_deadlines(now);
        }
        if self.newcomer_waits && (self.slots.free() > 0 || self.ending == 0) {
            self.seat_waiting();
        }
        if self.armed {
            // The user may go to sleep without another flush.
            self.answer_owing();
            self.send_dirty();
            self.request_all();
            self.ring.enter_if_useful();
            self.set_timer();
        }
        while let Some(event) = self.pending.pop_front() {
            if let Event::Disconnected { connection, .. } = &event {
                self.release(connection.index);
            }
            events.push(event);
        }
    }

    fn arm(&mut self) {
        self.answer_owing();
        self.send_dirty();
        self.request_all();
        while let Some(index) = self.direct.pop_front() {
            if self.at(index).is_some_and(|found| std::mem::take(&mut found.direct)) {
                self.request_now(index);
            }
        }
        self.ring.enter_if_useful();
        self.armed = true;
        self.set_timer();
    }

    fn disarm(&mut self) {
        self.armed = false;
        self.timer.clear();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.ring.descriptor());
        visit(self.timer.as_fd());
        visit(self.names.as_fd());
    }
}

impl fmt::Debug for TcpFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpFabric")
            .field("options", &self.options)
            .field("connections", &self.connections())
            .field("listeners", &self.listeners.len())
            .field("under_way", &self.ring.under_way())
            .finish_non_exhaustive()
    }
}

impl Drop for TcpFabric {
    /// Says goodbye to the peers, as far as their sockets take it at once, and takes everything back
    /// from the kernel.
    fn drop(&mut self) {
        for index in 0..self.slots.places() as u32 {
            if let Some(connection) = self.at(index)
                && let State::Established = connection.state
            {
                self.close(index, DisconnectReason::Local, Entry::Goodbye);
            }
        }
        self.send_dirty();
        self.ring.submit();
        self.take_back_everything();
    }
}
