//! The provider itself: its tables, and the trait.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;
use rustc_hash::FxHashMap;
use rustix::event::epoll;

use super::VerbsOptions;
use super::cm::EventChannel;
use super::connection::{Connection, State};
use super::device::{Device, DeviceLimits};
use super::objects::{Completion, Context, POLL_BATCH, failed};
use super::setup::Listener;
use super::wire::{Header, Kind};
use crate::names::Names;
use crate::slots::{Slots, are_few};
use crate::timer::Timer;
use crate::{
    Access, Address, Capabilities, ConnectionId, DisconnectReason, Event, Events, Fabric,
    FabricError, Key, LARGE_MESSAGE_BYTES, PeerIdentity, PostError, Refused, Registration,
    RemoteSlice, Transfer, WindowError,
};

/// How often an idle fabric looks at the connection manager.
pub const SERVICE_IDLE: Duration = Duration::from_micros(500);
/// How often it does so while a connection is being made or ended.
pub const SERVICE_BUSY: Duration = Duration::from_micros(30);

/// Longest transfer: what every device takes in one request.
const TRANSFER_BYTES_MAX: u32 = 8 << 20;

/// What an entry of the epoll descriptor is about: the connection manager, the timer, names of peers,
/// or a device by its index.
pub(super) const MANAGER_TOKEN: u64 = 0;
pub(super) const TIMER_TOKEN: u64 = 1;
pub(super) const NAMES_TOKEN: u64 = 2;
pub(super) const DEVICE_TOKENS: u64 = 3;

/// The verbs provider of one reactor. See the module.
///
/// The order of the fields is the order in which they go: connections before devices, and
/// everything before the event channel.
pub struct VerbsFabric {
    pub(super) options: VerbsOptions,
    pub(super) slots: Slots<Box<Connection>>,
    pub(super) listeners: Vec<Listener>,
    /// Names of peers that are being looked up.
    pub(super) names: Names,
    /// Devices in use. A device that was removed leaves its place empty.
    pub(super) devices: Vec<Option<Device>>,
    /// Index of a device and number of a queue pair there: the position of an accepted connection.
    pub(super) pairs: FxHashMap<(usize, u32), u32>,
    /// Memory that every device in use has registered.
    pub(super) prepared: Vec<Arc<Mapping>>,
    /// Events made outside of `poll`.
    pub(super) pending: VecDeque<Event>,
    /// Connections with something posted since the last flush.
    pub(super) dirty: Vec<u32>,
    /// Connections with receive entries to be posted.
    pub(super) refill: Vec<u32>,
    /// Connections that owe their peers credits.
    pub(super) owing: Vec<u32>,
    /// Connections whose last completion was just taken, and why they end.
    pub(super) drained: Vec<(u32, DisconnectReason)>,
    /// Connections with a deadline.
    pub(super) timed: Vec<u32>,
    pub(super) batch: Option<Box<[Completion; POLL_BATCH]>>,
    pub(super) epoll: OwnedFd,
    pub(super) ready: Vec<epoll::Event>,
    timer: Timer,
    pub(super) armed: bool,
    /// When the connection manager is looked at next.
    pub(super) next_service: Time,
    /// The time of the last poll.
    pub(super) now: Time,
    windows: bool,
    pub(super) channel: EventChannel,
}

// SAFETY: the objects of libibverbs and librdmacm may be used by any thread, one at a time, and the
// reference counts that are not atomic are all inside this value.
unsafe impl Send for VerbsFabric {}

impl VerbsFabric {
    /// Makes a fabric without connections.
    ///
    /// # Errors
    /// `Missing` when the machine has no RDMA device or no connection manager, with the remedy;
    /// `Limit` naming an option that is out of bounds; `System` when no descriptor can be made.
    pub fn new(options: VerbsOptions) -> Result<VerbsFabric, FabricError> {
        options.check()?;
        let contexts = Context::all();
        if contexts.is_empty() {
            return Err(FabricError::Missing(
                "there is no RDMA device that this process can use: for an RDMA NIC check its \
                 driver and the package ibverbs-providers, for soft-RoCE run `rdma link add rxe0 \
                 type rxe netdev INTERFACE`; `gannet doctor --rdma` tells what is missing"
                    .to_owned(),
            ));
        }
        let windows = contexts
            .iter()
            .all(|context| DeviceLimits::of(*context).is_ok_and(|limits| limits.windows));
        let channel = EventChannel::new()?;
        let system = |what: &str, error: rustix::io::Errno| failed(what, error.into());
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| system("making an epoll descriptor", error))?;
        let timer = Timer::new()?;
        let names = Names::new()?;
        for (token, descriptor) in [
            (MANAGER_TOKEN, channel.descriptor()),
            (TIMER_TOKEN, timer.as_fd()),
            (NAMES_TOKEN, names.as_fd()),
        ] {
            let data = epoll::EventData::new_u64(token);
            epoll::add(&epoll, descriptor, data, epoll::EventFlags::IN)
                .map_err(|error| system("watching a descriptor", error))?;
        }
        let places = options.connections_max;
        Ok(VerbsFabric {
            slots: Slots::new(places),
            listeners: Vec::new(),
            names,
            devices: Vec::new(),
            pairs: FxHashMap::default(),
            prepared: Vec::new(),
            pending: VecDeque::with_capacity(places),
            dirty: Vec::with_capacity(places),
            refill: Vec::with_capacity(places),
            owing: Vec::with_capacity(places),
            drained: Vec::with_capacity(places),
            timed: Vec::with_capacity(places),
            batch: Some(Completion::batch()),
            epoll,
            ready: Vec::with_capacity(16),
            timer,
            armed: false,
            next_service: Time::ZERO,
            now: Time::monotonic(),
            windows,
            channel,
            options,
        })
    }

    /// Connections in the table: established, in set-up, or with an event still to be polled.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.slots.used()
    }

    /// Puts the queue pair of a connection into the error state, as a device does when something
    /// goes wrong with it. For tests of what follows.
    pub fn break_queue_pair(&mut self, connection: ConnectionId) {
        if let Some(found) = self.connection(connection)
            && found.wiring.is_some()
        {
            found.id.fail_pair();
        }
    }

    /// Ends like the process's death, without a word to the peers. For tests of what follows a
    /// crash.
    pub fn abandon(mut self) {
        self.slots.empty();
    }

    #[inline]
    pub(super) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.find_mut(id).map(Box::as_mut)
    }

    pub(super) fn id(&self, index: u32) -> ConnectionId {
        self.slots.id(index)
    }

    /// What comes back with completions and manager's events of a connection.
    pub(super) fn tag(&self, index: u32) -> u64 {
        Tag::of(self.slots.id(index)).encode()
    }

    /// The doorbell is rung at the next flush.
    #[inline]
    pub(super) fn mark_dirty(&mut self, index: u32) {
        if let Some(connection) = self.slots.at_mut(index)
            && !connection.dirty
        {
            connection.dirty = true;
            self.dirty.push(index);
        }
    }

    /// Checks and pushes a read or write.
    #[inline]
    fn transfer(
        &mut self,
        connection: ConnectionId,
        transfer: Transfer,
        writes: bool,
    ) -> Result<(), Refused> {
        let transfers_max = self.options.transfers_max;
        let len = transfer.remote.len_bytes;
        let end = transfer.offset.checked_add(len as usize);
        let fits = end.is_some_and(|end| end <= transfer.memory.len()) && len <= TRANSFER_BYTES_MAX;
        let Some(found) = self.slots.find_mut(connection) else {
            return Err(Refused { error: PostError::NotConnected, transfer });
        };
        let device = found.device;
        let Some(wiring) = found.usable() else {
            return Err(Refused { error: PostError::NotConnected, transfer });
        };
        if !fits {
            return Err(Refused { error: PostError::TooLong, transfer });
        }
        if wiring.send.transfers() >= transfers_max || !wiring.send.has_room() {
            return Err(Refused { error: PostError::Full, transfer });
        }
        let local = match (&mut wiring.own, self.devices.get_mut(device)) {
            (Some(own), _) => &mut own.memory,
            (None, Some(Some(device))) => &mut device.memory,
            (None, _) => return Err(Refused { error: PostError::NotConnected, transfer }),
        };
        let local_key = match local.key(&transfer.memory) {
            Ok(key) => key,
            Err(error) => {
                // Prepared memory never comes here.
                tracing::error!(%error, "memory for a transfer cannot be registered");
                return Err(Refused { error: PostError::TooLong, transfer });
            }
        };
        let Transfer { token, memory, offset, remote } = transfer;
        wiring.send.push_transfer(writes, token, memory, offset, local_key, remote);
        self.mark_dirty(connection.index);
        Ok(())
    }

    /// Rings the doorbells of all connections with something to post.
    #[inline]
    pub(super) fn ring(&mut self) {
        while let Some(index) = self.dirty.pop() {
            let Some(connection) = self.slots.at_mut(index) else { continue };
            connection.dirty = false;
            if matches!(connection.state, State::Established | State::Lingering)
                && !connection.post()
            {
                self.begin_drain(index, DisconnectReason::PeerLost);
            }
        }
    }

    /// Hands out what was queued since the last poll.
    fn poll_pending(&mut self, events: &mut Events) {
        while let Some(event) = self.pending.pop_front() {
            match &event {
                Event::Disconnected { connection, .. } => self.release(connection.index),
                Event::Deregistered { connection, key } => {
                    let wiring = self.connection(*connection).and_then(Connection::usable);
                    if let Some(own) = wiring.and_then(|wiring| wiring.own.as_mut()) {
                        own.forget(key.0);
                    }
                }
                _ => {}
            }
            events.push(event);
        }
    }

    /// Sets the timer to the earliest deadline.
    pub(super) fn set_timer(&mut self) {
        let slots = &self.slots;
        let deadlines = self
            .timed
            .iter()
            .filter_map(|index| slots.at(*index)?.deadline)
            .chain(self.listeners.iter().filter_map(|listener| listener.retry_at));
        self.timer.set(deadlines.min().unwrap_or(Time::NEVER));
    }
}

/// Names a connection in the words that come back with its completions and events: 15 bits of
/// generation, 15 of position, above 32 bits for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// In a word: it is about a receive entry.
pub(super) const RECEIVE_TAG: u64 = 1 << 63;
/// In a word: of the queue that accepted connections share; of a listener.
pub(super) const SHARED_TAG: u64 = 1 << 62;

/// In a word: of the id that keeps a device open.
pub(super) const KEEPER_TAG: u64 = SHARED_TAG | 1 << 32;

impl Tag {
    const BITS: u32 = 15;
    const MASK: u32 = (1 << Tag::BITS) - 1;

    /// The name of a connection.
    pub(super) fn of(connection: ConnectionId) -> Tag {
        Tag { index: connection.index, generation: connection.generation }
    }

    pub(super) fn encode(self) -> u64 {
        u64::from((self.generation & Tag::MASK) << Tag::BITS | self.index) << 32
    }

    /// The position that a word names, if it is of this generation still.
    #[inline]
    pub(super) fn find<T>(word: u64, slots: &Slots<T>) -> Option<u32> {
        let upper = (word >> 32) as u32 & !(3 << 30);
        let (index, generation) = (upper & Tag::MASK, upper >> Tag::BITS);
        slots.at(index)?;
        let same = slots.id(index).generation & Tag::MASK == generation;
        same.then_some(index)
    }
}

impl Fabric for VerbsFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        Capabilities {
            maps_remote_memory: false,
            disconnect_revokes_access: true,
            memory_windows: self.windows,
            streams: false,
        }
    }

    fn scheme(&self, _connection: ConnectionId) -> &'static str {
        "rdma"
    }

    fn is_short_of_places(&self, _connection: ConnectionId) -> bool {
        are_few(self.slots.free(), self.slots.places())
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        self.listen_at(at)
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        self.connect_to(to)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let now = self.now;
        let linger = self.options.linger;
        let Some(found) = self.connection(connection) else { return };
        match found.state {
            State::Established => {
                found.state = State::Lingering;
                found.deadline = Some(now + linger);
                if let Some(wiring) = &mut found.wiring {
                    let header = Header::new(Kind::Goodbye, wiring.credits.take_owed());
                    wiring.send.push_message(header, &[]);
                }
                let posted = found.post();
                self.timed.push(connection.index);
                self.next_service = Time::ZERO;
                if !posted {
                    self.begin_drain(connection.index, DisconnectReason::Local);
                }
            }
            State::Resolving | State::Connecting | State::Accepting => {
                self.end_unconnected(connection.index, DisconnectReason::Local);
            }
            State::Lingering | State::Draining(_) | State::Ended => {}
        }
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        self.slots.find(connection)?.peer.clone()
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        for device in self.devices.iter_mut().flatten() {
            device.memory.add(memory)?;
        }
        if !self.prepared.iter().any(|known| Arc::ptr_eq(known, memory)) {
            self.prepared.push(Arc::clone(memory));
        }
        Ok(())
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        let registrations_max = self.options.registrations_max;
        let windows = self.windows;
        let found = self.connection(connection).ok_or(FabricError::NotConnected)?;
        let wiring = found.usable().ok_or(FabricError::NotConnected)?;
        let own = wiring.own.as_mut().ok_or(FabricError::Memory(
            "connections that were accepted share a protection domain: register at the side that \
             connected",
        ))?;
        let registration = own.register(memory, access, registrations_max, windows)?;
        self.pending.push_back(Event::Registered { connection, key: registration.key });
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
        if !self.windows {
            return Err(WindowError::Unsupported);
        }
        let windows_max = self.options.windows_max;
        let found = self.connection(connection).ok_or(WindowError::NotConnected)?;
        let wiring = found.usable().ok_or(WindowError::NotConnected)?;
        let own = wiring.own.as_mut().ok_or(WindowError::Range)?;
        let send = &mut wiring.send;
        let opened = own.open_window(base.0, offset, len_bytes, access, windows_max, send)?;
        self.mark_dirty(connection.index);
        Ok(opened)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        let Some(found) = self.connection(connection) else { return };
        let Some(wiring) = found.usable() else { return };
        let Some(own) = &mut wiring.own else { return };
        if own.deregister(key.0, &mut wiring.send) {
            self.pending.push_back(Event::Deregistered { connection, key });
        } else {
            self.mark_dirty(connection.index);
        }
    }

    #[inline]
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        if message.len() > LARGE_MESSAGE_BYTES {
            return Err(PostError::TooLong);
        }
        let found = self.connection(connection).ok_or(PostError::NotConnected)?;
        found.send(message)?;
        self.mark_dirty(connection.index);
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
            self.ring();
        }
        if self.armed && !self.pending.is_empty() {
            self.timer.set(Time::ZERO);
        }
    }

    #[inline]
    fn poll(&mut self, now: Time, events: &mut Events) {
        self.now = now;
        // First, so that the end of a connection is the last that is told of it.
        if !self.pending.is_empty() {
            self.poll_pending(events);
        }
        self.poll_completions(events);
        if self.armed || now >= self.next_service {
            self.service(now, events);
        }
        if !self.pending.is_empty() {
            self.poll_pending(events);
        }
    }

    fn arm(&mut self) {
        self.armed = true;
        for device in self.devices.iter().flatten() {
            device.completions.take_notices();
            device.completions.request_notice();
        }
        self.set_timer();
    }

    fn disarm(&mut self) {
        self.armed = false;
        self.timer.clear();
        self.next_service = Time::ZERO;
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.epoll.as_fd());
    }
}

impl fmt::Debug for VerbsFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsFabric")
            .field("options", &self.options)
            .field("listeners", &self.listeners)
            .field("devices", &self.devices)
            .field("connections", &self.connections())
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Drop for VerbsFabric {
    /// Ends all connections in order, as far as the peers let it within the time to linger.
    fn drop(&mut self) {
        for index in 0..self.slots.places() as u32 {
            self.disconnect(self.id(index));
        }
        let begun = Instant::now();
        let mut events = Events::default();
        while self.slots.iter().any(|found| found.state == State::Lingering)
            && begun.elapsed() < self.options.linger
        {
            self.poll_completions(&mut events);
            events.clear();
        }
        self.slots.empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_name_one_generation() {
        let tag = Tag { index: 3, generation: Tag::MASK + 6 };
        let word = tag.encode() | RECEIVE_TAG | SHARED_TAG | 0xffff_ffff;
        assert_eq!(word >> 32 & u64::from(Tag::MASK), 3);
        assert_eq!(word >> 47 & u64::from(Tag::MASK), 5);

        let mut slots = Slots::new(4);
        let index = slots.claim().expect("a place");
        let first = Tag::of(slots.id(index)).encode() | RECEIVE_TAG | SHARED_TAG;
        assert_eq!(Tag::find(first, &slots), None, "nobody is there");
        slots.put(index, ());
        assert_eq!(Tag::find(first, &slots), Some(index));
        slots.release(index);
        assert_eq!(slots.claim(), Some(index));
        slots.put(index, ());
        assert_eq!(Tag::find(first, &slots), None, "somebody else is there");
        let second = Tag::of(slots.id(index)).encode();
        assert_eq!(Tag::find(second, &slots), Some(index));
        assert_eq!(Tag::find(u64::MAX, &slots), None);
    }
}
