//! The shm provider: processes on one machine, or roles in one process.
//!
//! A connection is a unix socket for set-up, registrations and wake-ups, and one shared memfd with
//! a message ring per direction ([`layout`], [`ring`]). A peer's registered memory is mapped into
//! this process, so a one-sided operation is a copy made when it is posted; its completion is
//! handed out by the next poll.
//!
//! One reactor owns a [`ShmFabric`]. A poll in which nothing happened reads one word per
//! connection and makes no system call, but for a look at the sockets every
//! [`SOCKET_CHECK_IDLE`] (or [`SOCKET_CHECK_BUSY`] while something is being set up or taken back).
//! A peer that sends something over the socket announces it in the ring, so it is usually seen at
//! the next poll.
//!
//! A sleeper is woken by a control message on its socket, sent with `MSG_DONTWAIT`, and not through
//! an eventfd: whoever holds an eventfd's descriptor can make its other users block, by clearing
//! `O_NONBLOCK` on the file description that they share. So the sockets, in one epoll descriptor,
//! are all that a reactor has to watch.
//!
//! A transfer that is refused ends its connection at once: messages sent before it are delivered,
//! whatever is posted behind it has no effect. The side that posted it reports
//! [`DisconnectReason::TransferRefused`] with the next poll, the other [`DisconnectReason::Protocol`].
//! [`Fabric::map`] that is refused does no harm: nothing was posted.
//!
//! When a peer's process dies the kernel closes its socket: what it had published is delivered,
//! then the connection ends. When this process dies its peers see the same, and the memfds live on
//! with whoever maps them.

mod connection;
mod control;
mod layout;
mod listener;
mod options;
mod regions;
mod ring;
mod setup;
mod socket;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;
use rustix::event::epoll;

use self::connection::{Connection, Link, State};
use self::control::Control;
use self::listener::Listener;
use self::regions::REGION_BYTES_MAX;
use self::ring::{Received, SendError};
use crate::slots::{Slots, are_few};
use crate::timer::Timer;
use crate::{
    Access, Address, Capabilities, ConnectionId, DisconnectReason, Event, Events, Fabric,
    FabricError, Key, LARGE_MESSAGE_BYTES, PeerIdentity, PostError, Refused, Registration,
    RemoteSlice, Transfer, TransferStatus, WindowError,
};

pub use self::options::{CONNECTIONS_MAX, ShmOptions};

/// How often an idle fabric looks at its sockets.
pub const SOCKET_CHECK_IDLE: Duration = Duration::from_micros(500);
/// How often it does so while an answer is awaited.
pub const SOCKET_CHECK_BUSY: Duration = Duration::from_micros(30);

/// Ring entries taken per connection and poll.
const ENTRIES_PER_CONNECTION: usize = 64;
/// Ring entries taken per poll.
const ENTRIES_PER_POLL: usize = 512;
/// Message bytes taken per poll, give or take one connection's share.
const BYTES_PER_POLL: usize = 1 << 20;

/// A listening socket, and when it is looked at again after the process ran out of descriptors.
#[derive(Debug)]
struct Listening {
    listener: Listener,
    paused_until: Option<Time>,
}

/// The shm provider of one reactor. See the module.
pub struct ShmFabric {
    options: ShmOptions,
    slots: Slots<Connection>,
    /// Connections whose rings are polled: established or draining.
    live: Vec<u32>,
    /// Where in `live` the next poll starts, so that a poll's bound starves nobody.
    live_cursor: usize,
    /// Connections in set-up.
    half_open: Vec<u32>,
    /// Connections with something published since the last flush.
    dirty: Vec<u32>,
    /// Connections that ended during a pass over `live`.
    ended: Vec<(u32, DisconnectReason)>,
    /// Events made outside of `poll`: completions, and the ends that follow them.
    pending: VecDeque<Event>,
    transfers_pending: usize,
    listening: Vec<Listening>,
    next_key: u32,
    keys_wrapped: bool,
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
    timer: Timer,
    armed: bool,
    /// When the sockets are looked at next.
    next_socket_check: Time,
}

impl ShmFabric {
    /// Makes a fabric without connections.
    ///
    /// # Errors
    /// `Limit` naming an option that is out of bounds; `System` when no descriptor can be made.
    pub fn new(options: ShmOptions) -> Result<ShmFabric, FabricError> {
        options.check()?;
        let failed = |what: &str, error: rustix::io::Errno| FabricError::System {
            what: what.to_owned(),
            source: error.into(),
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| failed("making an epoll descriptor", error))?;
        let timer = Timer::new()?;
        let data = epoll::EventData::new_u64(setup::TIMER_TOKEN);
        epoll::add(&epoll, &timer, data, epoll::EventFlags::IN)
            .map_err(|error| failed("watching a timer", error))?;
        let connections = options.connections_max;
        Ok(ShmFabric {
            slots: Slots::new(connections),
            live: Vec::with_capacity(connections),
            live_cursor: 0,
            half_open: Vec::with_capacity(connections),
            dirty: Vec::with_capacity(connections),
            ended: Vec::with_capacity(connections),
            pending: VecDeque::with_capacity(options.transfers_max + connections),
            transfers_pending: 0,
            listening: Vec::new(),
            next_key: 1,
            keys_wrapped: false,
            epoll,
            ready: Vec::with_capacity(setup::READY_MAX),
            timer,
            armed: false,
            next_socket_check: Time::ZERO,
            options,
        })
    }

    /// Connections in the table: established, in set-up, or with an event still to be polled.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.slots.used()
    }

    /// Ends like the process's death: peers report [`DisconnectReason::PeerLost`], and socket
    /// files stay behind. For tests of what follows a crash.
    pub fn abandon(mut self) {
        self.slots.empty();
        for listening in self.listening.drain(..) {
            listening.listener.abandon();
        }
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.find_mut(id)
    }

    #[inline]
    fn established(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connection(id).filter(|connection| {
            matches!(connection.state, State::Established) && !connection.fault
        })
    }

    /// As [`ShmFabric::established`], for posts: a connection whose transfer was refused takes them
    /// until its user knows.
    #[inline]
    fn postable(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connection(id).filter(|connection| {
            matches!(connection.state, State::Established | State::Refused) && !connection.fault
        })
    }

    fn live_links(&self) -> impl Iterator<Item = &Link> {
        self.live
            .iter()
            .filter_map(|index| self.slots.at(*index))
            .filter_map(|connection| connection.link.as_ref())
    }

    fn id(&self, index: u32) -> ConnectionId {
        self.slots.id(index)
    }

    /// Checks, copies, and queues the completion. A refusal ends the connection; the poll that hands
    /// the completion out tells so.
    fn transfer(
        &mut self,
        connection: ConnectionId,
        mut transfer: Transfer,
        access: Access,
    ) -> Result<(), Refused> {
        let full = self.transfers_pending >= self.options.transfers_max;
        let len = transfer.remote.len_bytes as usize;
        let inside =
            transfer.offset.checked_add(len).is_some_and(|end| end <= transfer.memory.len());
        let found = match self.postable(connection) {
            None => return Err(Refused { error: PostError::NotConnected, transfer }),
            Some(_) if full => return Err(Refused { error: PostError::Full, transfer }),
            Some(_) if !inside => return Err(Refused { error: PostError::TooLong, transfer }),
            Some(found) => found,
        };
        let status = if let State::Refused = found.state {
            TransferStatus::ConnectionLost
        } else if len == 0 {
            TransferStatus::Done
        } else if let Some(view) = found.remote.resolve(transfer.remote, access) {
            let mut view = Memory::Shared(view);
            if access.remote_write {
                transfer.memory.copy_to(transfer.offset, &mut view, 0, len);
            } else {
                view.copy_to(0, &mut transfer.memory, transfer.offset, len);
            }
            TransferStatus::Done
        } else {
            found.close_refused();
            TransferStatus::AccessRefused
        };
        let Transfer { token, memory, .. } = transfer;
        self.pending.push_back(Event::Transferred { connection, token, memory, status });
        self.transfers_pending += 1;
        Ok(())
    }

    /// Hands out what was queued since the last poll.
    #[inline]
    fn poll_pending(&mut self, events: &mut Events) {
        while let Some(event) = self.pending.pop_front() {
            if let Event::Disconnected { connection, .. } = &event {
                self.slots.release(connection.index);
            }
            events.push(event);
        }
        self.transfers_pending = 0;
    }

    /// Looks at every live connection's ring.
    fn poll_rings(&mut self, events: &mut Events) {
        let count = self.live.len();
        self.live_cursor = if self.live_cursor + 1 < count { self.live_cursor + 1 } else { 0 };
        let (mut entries, mut bytes) = (ENTRIES_PER_POLL, BYTES_PER_POLL);
        for step in 0..count {
            let mut position = self.live_cursor + step;
            if position >= count {
                position -= count;
            }
            let index = self.live[position];
            if let Some(reason) = self.poll_ring(index, &mut entries, &mut bytes, events) {
                self.ended.push((index, reason));
            }
            if entries == 0 || bytes == 0 {
                break;
            }
        }
        while let Some((index, reason)) = self.ended.pop() {
            self.finish(index, reason, events);
        }
    }

    /// Takes messages of one connection; the reason if it has ended.
    #[inline]
    fn poll_ring(
        &mut self,
        index: u32,
        entries: &mut usize,
        bytes: &mut usize,
        events: &mut Events,
    ) -> Option<DisconnectReason> {
        let id = self.slots.id(index);
        let connection = self.slots.at_mut(index)?;
        let link = connection.link.as_mut()?;
        if connection.fault {
            return Some(DisconnectReason::Protocol);
        }
        if let State::Refused = connection.state {
            return Some(DisconnectReason::TransferRefused);
        }
        let mut taken = 0;
        loop {
            if taken == ENTRIES_PER_CONNECTION.min(*entries) {
                break;
            }
            match link.receiver.receive(&link.memory) {
                Ok(None) => {
                    if let State::Draining { reason, .. } = connection.state {
                        return Some(reason);
                    }
                    break;
                }
                Ok(Some(Received::Message(message))) => {
                    let memory = &link.memory;
                    let len_bytes = message.len_bytes;
                    events.push_message(id, len_bytes, |into| message.copy_out(memory, into));
                    *bytes = bytes.saturating_sub(len_bytes);
                }
                Ok(Some(Received::Kick)) => self.next_socket_check = Time::ZERO,
                Err(ring::Violation) => return Some(DisconnectReason::Protocol),
            }
            taken += 1;
            if let State::Draining { left, reason } = &mut connection.state {
                *left -= 1;
                if *left == 0 {
                    return Some(*reason);
                }
            }
        }
        *entries -= taken;
        if taken > 0 && link.receiver.return_credits(&link.memory) {
            // A peer without credits may have gone to sleep.
            connection.ring_doorbell();
        }
        None
    }

    /// A key that no registration of this fabric has.
    fn unused_key(&mut self) -> u32 {
        loop {
            let key = self.next_key;
            let (next, wrapped) = key.overflowing_add(1);
            self.next_key = next.max(1);
            let used = self.keys_wrapped
                && self.slots.iter().any(|connection| connection.local.contains(key));
            self.keys_wrapped |= wrapped;
            if !used {
                return key;
            }
        }
    }
}

impl Fabric for ShmFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        Capabilities {
            maps_remote_memory: true,
            disconnect_revokes_access: false,
            memory_windows: false,
            streams: false,
        }
    }

    fn scheme(&self, _connection: ConnectionId) -> &'static str {
        "shm"
    }

    fn is_short_of_places(&self, _connection: ConnectionId) -> bool {
        are_few(self.slots.free(), self.slots.places())
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        match at {
            Address::Shm(path) => self.listen_at(path),
            Address::Rdma { .. } | Address::Tcp { .. } => {
                Err(FabricError::Address(format!("{at} is not of the shm fabric")))
            }
        }
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        match to {
            Address::Shm(path) => self.connect_to(path),
            Address::Rdma { .. } | Address::Tcp { .. } => {
                Err(FabricError::Address(format!("{to} is not of the shm fabric")))
            }
        }
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let index = connection.index;
        let Some(found) = self.connection(connection) else { return };
        if matches!(found.state, State::Ended) {
            return;
        }
        found.close_orderly();
        self.end_locally(index, DisconnectReason::Local);
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        self.slots.find(connection)?.peer.clone()
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
        let unsent_max = self.options.unsent_max();
        if memory.file().is_none() {
            return Err(FabricError::Memory("it is private to this process; make it shareable"));
        }
        if memory.len() as u64 > self.options.region_limits().total_bytes_max.min(REGION_BYTES_MAX)
        {
            return Err(FabricError::Memory("it is longer than registered_bytes_max"));
        }
        let found = self.established(connection).ok_or(FabricError::NotConnected)?;
        if found.local.len() >= limit {
            return Err(FabricError::Limit { what: "registrations of one connection", limit });
        }
        let key = self.unused_key();
        let found = self.established(connection).ok_or(FabricError::NotConnected)?;
        let registration = found.local.begin(key, memory);
        let control = Control::Register {
            key,
            access,
            address: registration.address,
            len_bytes: memory.len() as u64,
        };
        found.fault |= found.send_control(control, Some(memory), unsent_max).is_err();
        self.after_control(connection.index);
        Ok(registration)
    }

    fn open_window(
        &mut self,
        _connection: ConnectionId,
        _base: Key,
        _offset: u64,
        _len_bytes: u64,
        _access: Access,
    ) -> Result<Registration, WindowError> {
        Err(WindowError::Unsupported)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        let unsent_max = self.options.unsent_max();
        let Some(found) = self.established(connection) else { return };
        if found.local.end(key.0) {
            let control = Control::Deregister { key: key.0 };
            found.fault |= found.send_control(control, None, unsent_max).is_err();
            self.after_control(connection.index);
        }
    }

    #[inline]
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        if message.len() > LARGE_MESSAGE_BYTES {
            return Err(PostError::TooLong);
        }
        let found = self.postable(connection).ok_or(PostError::NotConnected)?;
        if let State::Refused = found.state {
            // Behind the refused transfer: it must not arrive.
            return Ok(());
        }
        let link = found.link.as_mut().ok_or(PostError::NotConnected)?;
        match link.sender.send(&link.memory, message) {
            Ok(()) => {}
            Err(SendError::Full) => return Err(PostError::Full),
            Err(SendError::Violation) => {
                found.fault = true;
                return Err(PostError::NotConnected);
            }
        }
        if !found.dirty {
            found.dirty = true;
            self.dirty.push(connection.index);
        }
        Ok(())
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.transfer(connection, transfer, Access { remote_read: false, remote_write: true })
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.transfer(connection, transfer, Access { remote_read: true, remote_write: false })
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        self.established(connection)?.remote.resolve(remote, access)
    }

    #[inline]
    fn flush(&mut self) {
        if self.armed && !self.pending.is_empty() {
            self.timer.set(Time::ZERO);
        }
        if self.dirty.is_empty() {
            return;
        }
        while let Some(index) = self.dirty.pop() {
            if let Some(connection) = self.slots.at_mut(index) {
                connection.dirty = false;
                connection.ring_doorbell();
                if connection.has_unsent() {
                    self.next_socket_check = Time::ZERO;
                }
            }
        }
    }

    #[inline]
    fn poll(&mut self, now: Time, events: &mut Events) {
        if !self.pending.is_empty() {
            self.poll_pending(events);
        }
        // Before the rings: what a peer published before its wake-up or its end is then seen.
        if self.armed || now >= self.next_socket_check {
            self.service_sockets(now, events);
        }
        if !self.live.is_empty() {
            self.poll_rings(events);
        }
    }

    fn arm(&mut self) {
        self.armed = true;
        self.live_links().for_each(Link::arm);
    }

    fn disarm(&mut self) {
        self.armed = false;
        self.live_links().for_each(Link::disarm);
        self.timer.clear();
        self.next_socket_check = Time::ZERO;
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.epoll.as_fd());
    }
}

impl fmt::Debug for ShmFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmFabric")
            .field("options", &self.options)
            .field("listening", &self.listening)
            .field("live", &self.live.len())
            .field("half_open", &self.half_open.len())
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Drop for ShmFabric {
    fn drop(&mut self) {
        self.slots.iter_mut().for_each(Connection::close_orderly);
    }
}
