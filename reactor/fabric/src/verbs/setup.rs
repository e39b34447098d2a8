//! Making and ending connections.

use std::net::SocketAddr;
use std::time::Duration;

use gannet_runtime::time::Time;
use rustix::event::epoll;

use super::cm::{CmEvent, CmEventKind, CmId, PairAttributes, ReadDepths, SocketAddress};
use super::completions::nobody;
use super::connection::{Connection, FRAMES_WITHOUT_CREDIT, Own, State, Wiring};
use super::device::Device;
use super::fabric::{
    DEVICE_TOKENS, KEEPER_TAG, MANAGER_TOKEN, NAMES_TOKEN, RECEIVE_TAG, SERVICE_BUSY, SERVICE_IDLE,
    SHARED_TAG, Tag, VerbsFabric,
};
use super::objects::{Context, Domain, failed};
use super::receive::{Queue, Receives};
use super::send::{RESERVE, SendLimits, SendQueue, Work};
use super::wire::{Greeting, HEADER_BYTES, Refusal};
use crate::address::{look_up, numeric};
use crate::credits::Credits;
use crate::names::Answer;
use crate::trust::is_trusted;
use crate::{
    Address, ConnectionId, DisconnectReason, Event, Events, FabricError, PeerIdentity,
    SMALL_MESSAGE_BYTES, TransferStatus,
};

/// Manager's events taken per look.
const EVENTS_PER_SERVICE: usize = 64;
/// How long the completions of a broken queue pair may take; a device that is gone has none.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// How often a listener whose device was removed tries again.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// How long a sender waits whose message found no receive entry: code of 0.64 ms.
const RECEIVER_NOT_READY_CODE: u8 = 12;
/// Longest message that devices are asked to take by value.
const INLINE_BYTES: u32 = (HEADER_BYTES + SMALL_MESSAGE_BYTES) as u32;

/// What entries of a receive queue that accepted connections share are called, besides their number.
const SHARED_RECEIVES: u64 = RECEIVE_TAG | SHARED_TAG;

/// Where connections are accepted.
#[derive(Debug)]
pub(super) struct Listener {
    address: Address,
    /// What it stood for at the start.
    resolved: SocketAddr,
    /// `None` after the device was removed.
    id: Option<CmId>,
    pub(super) retry_at: Option<Time>,
}

impl VerbsFabric {
    pub(super) fn listen_at(&mut self, at: &Address) -> Result<(), FabricError> {
        let (host, port) = host_and_port(at)?;
        let resolved =
            look_up(host, port).map_err(|error| failed(format!("listening at {at}"), error))?;
        let id = self.listening_id(at, resolved, self.listeners.len())?;
        // A listener at one address belongs to one device, which is in use from now on: what cannot
        // be had is told at the start.
        if let Some(context) = id.context() {
            let number = self.device_of(context, id.own_address())?;
            let wanted = self.options.shared_receives;
            if let Some(Some(device)) = self.devices.get_mut(number) {
                device.share_receives(wanted, SHARED_RECEIVES)?;
            }
        }
        self.listeners.push(Listener {
            address: at.clone(),
            resolved,
            id: Some(id),
            retry_at: None,
        });
        Ok(())
    }

    fn listening_id(
        &self,
        at: &Address,
        address: SocketAddr,
        number: usize,
    ) -> Result<CmId, FabricError> {
        let listening = || format!("listening at {at}");
        let mut id = CmId::new(&self.channel, SHARED_TAG | number as u64)
            .map_err(|error| failed(listening(), error))?;
        id.listen(address).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => FabricError::Missing(format!(
                "listening at {at}: no RDMA device has the address {}; give the address of an \
                 interface with RDMA (`gannet doctor --rdma` lists them)",
                address.ip()
            )),
            _ => failed(listening(), error),
        })?;
        Ok(id)
    }

    pub(super) fn connect_to(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let (host, port) = host_and_port(to)?;
        let limit = self.options.connections_max;
        let full = FabricError::Limit { what: "connections of one fabric", limit };
        let index = self.slots.claim().ok_or(full)?;
        let id = match CmId::new(&self.channel, self.tag(index)) {
            Ok(id) => id,
            Err(error) => {
                self.slots.release(index);
                return Err(failed(format!("connecting to {to}"), error));
            }
        };
        // Not the time of the last poll: the caller may have done other things for long.
        let deadline = Time::monotonic() + self.options.connect_timeout;
        let connection = Connection::new(id, State::Resolving, deadline);
        self.slots.put(index, Box::new(connection));
        self.timed.push(index);
        self.next_service = Time::ZERO;
        let connection = self.id(index);
        match numeric(host, port) {
            Some(address) => self.begin_to_resolve(connection, Ok(address)),
            None => {
                if let Err(error) = self.names.ask(connection, host, port, deadline) {
                    self.begin_to_resolve(connection, Err(error));
                }
            }
        }
        Ok(connection)
    }

    /// Goes on with connections whose peers' names were looked up.
    fn take_names(&mut self) {
        for Answer { asker, host, address } in self.names.take() {
            if let Err(error) = &address {
                tracing::debug!(%host, %error, "the name has no address");
            }
            self.begin_to_resolve(asker, address);
        }
    }

    /// Asks the connection manager how to get to an address, if anybody waits for it still.
    fn begin_to_resolve(&mut self, id: ConnectionId, address: std::io::Result<SocketAddr>) {
        let within = self.options.connect_timeout;
        let Some(found) = self.connection(id) else { return };
        if found.state != State::Resolving {
            return;
        }
        if address.and_then(|address| found.id.resolve_address(address, within)).is_err() {
            self.end_unconnected(id.index, DisconnectReason::Unreachable);
        }
    }

    /// The index of a device, which is opened if it is not in use yet; `at` is an address that it
    /// has.
    fn device_of(
        &mut self,
        context: Context,
        at: std::io::Result<SocketAddress>,
    ) -> Result<usize, FabricError> {
        let known = |device: &Option<Device>| {
            device.as_ref().is_some_and(|device| device.context == context)
        };
        if let Some(index) = self.devices.iter().position(known) {
            return Ok(index);
        }
        let index = match self.devices.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.devices.push(None);
                self.devices.len() - 1
            }
        };
        let keeper = CmId::new(&self.channel, KEEPER_TAG | index as u64)
            .and_then(|mut keeper| keeper.bind(at?).map(|()| keeper))
            .map_err(|error| failed("binding to an RDMA device", error))?;
        let mut device = Device::open(context, keeper)?;
        for memory in &self.prepared {
            device.memory.add(memory)?;
        }
        let data = epoll::EventData::new_u64(DEVICE_TOKENS + index as u64);
        let [asynchronous, wake] = device.watch.descriptors();
        for descriptor in [device.completions.descriptor(), asynchronous, wake] {
            epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN)
                .map_err(|error| failed("watching an RDMA device", error.into()))?;
        }
        self.devices[index] = Some(device);
        Ok(index)
    }

    /// Looks at the connection manager, the devices' events and the deadlines.
    #[cold]
    pub(super) fn service(&mut self, now: Time, events: &mut Events) {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        // Interrupted, it sees nothing; the next look will.
        let _seen =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&at_once));
        for event in &ready {
            match event.data.u64() {
                MANAGER_TOKEN => self.take_manager_events(events),
                NAMES_TOKEN => self.take_names(),
                token if token >= DEVICE_TOKENS => {
                    self.take_device_events((token - DEVICE_TOKENS) as usize);
                }
                _ => {}
            }
        }
        self.ready = ready;
        self.check_deadlines(now, events);
        let busy = !self.timed.is_empty();
        self.next_service = now + if busy { SERVICE_BUSY } else { SERVICE_IDLE };
        if self.armed {
            // There may be earlier deadlines than those that `arm` knew of.
            self.set_timer();
        }
    }

    fn take_manager_events(&mut self, events: &mut Events) {
        for _ in 0..EVENTS_PER_SERVICE {
            let Some(event) = self.channel.next() else { return };
            self.manage(event, events);
        }
    }

    fn take_device_events(&mut self, index: usize) {
        let Some(Some(device)) = self.devices.get(index) else { return };
        // Before a sleep they stay: what they tell of may have come behind the last look at the
        // completions, and there are no others until `arm` asks again.
        if !self.armed {
            device.completions.take_notices();
        }
        let failures = device.watch.take();
        for slot in 0..self.slots.places() as u32 {
            let Some(found) = self.slots.at(slot) else { continue };
            let failed = found.device == index
                && (failures.device
                    || found.wiring.as_ref().is_some_and(|w| failures.pairs.contains(&w.pair)));
            if failed {
                self.begin_drain(slot, DisconnectReason::PeerLost);
            }
        }
    }

    fn manage(&mut self, mut event: CmEvent, events: &mut Events) {
        if event.kind == CmEventKind::Request {
            if let Some(id) = event.take_request() {
                self.asked(id, &event);
            }
            return;
        }
        if event.user & KEEPER_TAG == KEEPER_TAG {
            let device = self.devices.get(event.user as u32 as usize).and_then(Option::as_ref);
            let context = device.map(|device| device.context);
            if event.kind == CmEventKind::DeviceRemoved {
                self.device_removed(context, events);
            }
            return;
        }
        if event.user & SHARED_TAG != 0 {
            if event.kind == CmEventKind::DeviceRemoved
                && let Some(listener) = self.listeners.get_mut(event.user as u32 as usize)
            {
                listener.retry_at = Some(self.now + LISTEN_RETRY);
                let context = listener.id.as_ref().and_then(CmId::context);
                self.device_removed(context, events);
                self.listeners[event.user as u32 as usize].id = None;
            }
            return;
        }
        let Some(index) = Tag::find(event.user, &self.slots) else { return };
        let Some(found) = self.slots.at_mut(index) else { return };
        let state = found.state;
        match (event.kind, state) {
            (CmEventKind::AddressResolved, State::Resolving) => {
                let exponent = acknowledge_exponent(self.options.acknowledge_timeout);
                found.id.set_acknowledge_timeout(exponent);
                if found.id.resolve_route(self.options.connect_timeout).is_err() {
                    self.end_unconnected(index, DisconnectReason::Unreachable);
                }
            }
            (CmEventKind::RouteResolved, State::Resolving) => {
                if let Err(error) = self.ask(index) {
                    tracing::warn!(%error, "a connection over RDMA cannot be made");
                    self.end_unconnected(index, DisconnectReason::Unreachable);
                }
            }
            (CmEventKind::Established, State::Connecting) => {
                match Greeting::decode(event.private()) {
                    Some(greeting) => self.connected(index, greeting, events),
                    None => self.end_unconnected(index, DisconnectReason::Protocol),
                }
            }
            (CmEventKind::Established, State::Accepting) => self.accepted(index, events),
            (CmEventKind::Established, State::Established) => {
                found.id.set_receiver_not_ready_timer(RECEIVER_NOT_READY_CODE);
            }
            (CmEventKind::Rejected, State::Connecting) => {
                let reason = match Refusal::decode(event.private()) {
                    Some(Refusal::NotTrusted) => DisconnectReason::NotTrusted,
                    Some(Refusal::Protocol) => DisconnectReason::Protocol,
                    Some(Refusal::Full) | None => DisconnectReason::Unreachable,
                };
                self.end_unconnected(index, reason);
            }
            (
                CmEventKind::Failed | CmEventKind::Rejected | CmEventKind::Disconnected,
                State::Resolving | State::Connecting,
            ) => self.end_unconnected(index, DisconnectReason::Unreachable),
            // Those behind the first message say that the peer's answer never came, or that it is
            // gone again.
            (
                CmEventKind::Disconnected | CmEventKind::Failed | CmEventKind::Rejected,
                State::Established | State::Accepting,
            ) => self.begin_drain(index, DisconnectReason::PeerLost),
            (CmEventKind::Disconnected, State::Lingering) => {
                self.begin_drain(index, DisconnectReason::Local);
            }
            (CmEventKind::DeviceRemoved, _) => {
                let context = found.id.context();
                self.device_removed(context, events);
            }
            _ => {}
        }
    }

    /// A route is there: makes the queue pair and asks the peer for the connection.
    fn ask(&mut self, index: u32) -> Result<(), FabricError> {
        let found = self.slots.at(index);
        let found = found.ok_or(FabricError::NotConnected)?;
        let (context, at) = (found.id.context(), found.id.own_address());
        let device = self.device_of(context.ok_or(FabricError::NotConnected)?, at)?;
        self.wire(index, device, true)?;
        let limits = self.limits(device)?;
        let greeting = self.greeting().encode();
        let Some(found) = self.slots.at_mut(index) else {
            return Err(FabricError::NotConnected);
        };
        let depths = ReadDepths { initiates: limits.reads_initiated, serves: limits.reads_served };
        found.id.connect(&greeting, depths).map_err(|error| failed("connecting", error))?;
        found.state = State::Connecting;
        Ok(())
    }

    /// A peer asks for a connection.
    fn asked(&mut self, mut id: CmId, event: &CmEvent) {
        let Some(greeting) = Greeting::decode(event.private()) else {
            return id.reject(&Refusal::Protocol.encode());
        };
        let (peer, local) = (id.peer(), id.local());
        let trusted = match (peer, local) {
            (Some(peer), Some(local)) => is_trusted(peer, local, &self.options.trusted_hosts),
            _ => false,
        };
        if !trusted {
            let peer = peer.map_or_else(|| "a peer".to_owned(), |peer| peer.to_string());
            tracing::warn!(%peer, "refused: the host is not among the trusted ones");
            return id.reject(&Refusal::NotTrusted.encode());
        }
        let Some(index) = self.slots.claim() else {
            return id.reject(&Refusal::Full.encode());
        };
        id.set_user(self.tag(index));
        let deadline = self.now + self.options.connect_timeout;
        let mut connection = Connection::new(id, State::Accepting, deadline);
        connection.peer = peer.map(|peer| PeerIdentity::Network(peer.to_string()));
        self.slots.put(index, Box::new(connection));
        if let Err(error) = self.answer(index, greeting, event.reads) {
            tracing::warn!(%error, "a connection over RDMA cannot be accepted");
            if let Some(connection) = self.slots.take(index) {
                let mut connection = *connection;
                self.unwire(&mut connection);
                connection.id.reject(&Refusal::Full.encode());
            }
            self.release(index);
            return;
        }
        self.timed.push(index);
    }

    fn answer(
        &mut self,
        index: u32,
        greeting: Greeting,
        asked: ReadDepths,
    ) -> Result<(), FabricError> {
        let found = self.slots.at(index);
        let found = found.ok_or(FabricError::NotConnected)?;
        let (context, at) = (found.id.context(), found.id.own_address());
        let device = self.device_of(context.ok_or(FabricError::NotConnected)?, at)?;
        self.wire(index, device, false)?;
        let limits = self.limits(device)?;
        let granted = self.greeting().encode();
        let exponent = acknowledge_exponent(self.options.acknowledge_timeout);
        let Some(found) = self.slots.at_mut(index) else {
            return Err(FabricError::NotConnected);
        };
        if let Some(wiring) = &mut found.wiring {
            wiring.credits.begin(greeting.granted);
        }
        found.id.set_acknowledge_timeout(exponent);
        let depths = ReadDepths {
            initiates: limits.reads_initiated.min(asked.initiates),
            serves: limits.reads_served.min(asked.serves),
        };
        found.id.accept(&granted, depths).map_err(|error| failed("accepting", error))
    }

    fn limits(&self, device: usize) -> Result<super::device::DeviceLimits, FabricError> {
        let device = self.devices.get(device).and_then(Option::as_ref);
        device.map(|device| device.limits).ok_or(FabricError::NotConnected)
    }

    fn greeting(&self) -> Greeting {
        Greeting { granted: self.options.granted() }
    }

    /// Makes the queue pair of a connection and all that goes with it.
    fn wire(&mut self, index: u32, number: usize, connects: bool) -> Result<(), FabricError> {
        let options = &self.options;
        let tag = self.tag(index);
        let (Some(Some(device)), Some(found)) =
            (self.devices.get_mut(number), self.slots.at_mut(index))
        else {
            return Err(FabricError::NotConnected);
        };
        let granted = options.granted();
        let messages = u32::from(options.small_credits) + u32::from(options.large_credits);
        let windows = if connects && device.limits.windows { options.windows_max } else { 0 };
        let sends = messages + (options.transfers_max + windows + 2 * RESERVE) as u32;
        let sends = sends.min(device.limits.sends_max);
        let entries = messages + FRAMES_WITHOUT_CREDIT;
        let completions = sends + if connects { entries } else { 0 };
        if !connects {
            device.share_receives(options.shared_receives, SHARED_RECEIVES)?;
        }
        let pair_failed =
            |error| failed(format!("making a queue pair of RDMA device {}", device.name), error);
        let domain = if connects {
            Domain::new(device.context).map_err(pair_failed)?
        } else {
            std::rc::Rc::clone(&device.domain)
        };
        let shared = device.receives.as_ref().and_then(Receives::shared);
        let shared = shared.filter(|_| !connects).map(|queue| queue.as_ptr());
        let mut wanted = PairAttributes {
            completions: device.completions.as_ptr(),
            shared_receives: shared.unwrap_or(std::ptr::null_mut()),
            sends,
            receives: if connects { entries } else { 0 },
            inline_bytes: INLINE_BYTES,
        };
        let limits = SendLimits {
            depth: sends as usize,
            small_buffers: options.small_credits,
            large_buffers: options.large_credits,
        };
        let mut send = SendQueue::new(&domain, limits, tag)?;
        device.reserve_completions(completions)?;
        let made = loop {
            // Devices tell the longest message that they take by value only by refusing.
            match found.id.make_pair(domain.as_ptr(), wanted) {
                Err(_) if wanted.inline_bytes > 0 => wanted.inline_bytes /= 2,
                made => break made,
            }
        };
        let (pair, inline_bytes) = match made {
            Ok(made) => made,
            Err(error) => {
                device.release_completions(completions);
                return Err(failed(
                    format!("making a queue pair of RDMA device {}", device.name),
                    error,
                ));
            }
        };
        send.set_inline_bytes_max(inline_bytes);
        found.device = number;
        let mut wiring = Wiring {
            pair,
            send,
            credits: Credits::new(granted),
            completions,
            receives: None,
            own: connects.then(|| Own::new(&domain)),
        };
        if connects {
            let queue = Queue::Own(found.id.pair());
            let receives = Receives::new(&domain, queue, entries, tag | RECEIVE_TAG);
            let posted = receives.and_then(|mut receives| {
                receives.post().map_err(|error| failed("posting receive entries", error))?;
                Ok(receives)
            });
            match posted {
                Ok(receives) => wiring.receives = Some(receives),
                Err(error) => {
                    device.release_completions(completions);
                    found.tear_down();
                    return Err(error);
                }
            }
        } else {
            self.pairs.insert((number, pair), index);
        }
        found.wiring = Some(wiring);
        Ok(())
    }

    fn connected(&mut self, index: u32, greeting: Greeting, events: &mut Events) {
        let id = self.id(index);
        let Some(found) = self.slots.at_mut(index) else { return };
        if let Some(wiring) = &mut found.wiring {
            wiring.credits.begin(greeting.granted);
        }
        found.peer = found.id.peer().map(|peer| PeerIdentity::Network(peer.to_string()));
        found.id.set_receiver_not_ready_timer(RECEIVER_NOT_READY_CODE);
        found.state = State::Established;
        found.deadline = None;
        events.push(Event::Connected { connection: id });
    }

    fn accepted(&mut self, index: u32, events: &mut Events) {
        let id = self.id(index);
        let Some(found) = self.slots.at_mut(index) else { return };
        found.id.set_receiver_not_ready_timer(RECEIVER_NOT_READY_CODE);
        found.state = State::Established;
        found.deadline = None;
        let peer = found.peer.clone().unwrap_or_else(nobody);
        events.push(Event::Accepted { connection: id, peer });
    }

    fn check_deadlines(&mut self, now: Time, events: &mut Events) {
        let mut timed = std::mem::take(&mut self.timed);
        timed.retain(|index| {
            let Some(found) = self.slots.at(*index) else { return false };
            let Some(deadline) = found.deadline else { return false };
            if now < deadline {
                return true;
            }
            match found.state {
                State::Resolving | State::Connecting => {
                    self.end_unconnected(*index, DisconnectReason::Unreachable);
                }
                State::Accepting => self.end_unconnected(*index, DisconnectReason::PeerLost),
                State::Lingering => {
                    self.begin_drain(*index, DisconnectReason::Local);
                    return true;
                }
                State::Draining(reason) => self.finish(*index, reason, events),
                State::Established | State::Ended => {}
            }
            false
        });
        // Whatever was added meanwhile comes behind.
        timed.append(&mut self.timed);
        self.timed = timed;
        for at in 0..self.listeners.len() {
            if self.listeners[at].retry_at.is_some_and(|at| now >= at) {
                self.listen_again(at, now);
            }
        }
    }

    fn listen_again(&mut self, at: usize, now: Time) {
        let Listener { address, resolved, .. } = &self.listeners[at];
        let (address, resolved) = (address.clone(), *resolved);
        let id = self.listening_id(&address, resolved, at).ok();
        let listener = &mut self.listeners[at];
        listener.retry_at = id.is_none().then(|| now + LISTEN_RETRY);
        if id.is_some() {
            tracing::info!(%address, "listening again");
        }
        listener.id = id;
    }

    /// Ends a connection that never was established.
    pub(super) fn end_unconnected(&mut self, index: u32, reason: DisconnectReason) {
        let connection = self.id(index);
        let Some(found) = self.slots.at_mut(index) else { return };
        match found.state {
            State::Ended => {}
            // Nobody was told of it.
            State::Accepting => self.release(index),
            _ => {
                found.state = State::Ended;
                found.deadline = None;
                self.pending.push_back(Event::Disconnected { connection, reason });
            }
        }
    }

    /// Lets nobody in any more and waits for the completions of what is outstanding.
    pub(super) fn begin_drain(&mut self, index: u32, reason: DisconnectReason) {
        let Some(found) = self.slots.at_mut(index) else { return };
        match found.state {
            State::Established | State::Lingering | State::Accepting => {}
            State::Resolving | State::Connecting => {
                return self.end_unconnected(index, DisconnectReason::Unreachable);
            }
            State::Draining(_) | State::Ended => return,
        }
        if found.state == State::Accepting {
            return self.end_unconnected(index, reason);
        }
        let mut reason = reason;
        if found.state == State::Lingering {
            // Whatever comes in between: this side asked for the end.
            reason = DisconnectReason::Local;
        } else {
            self.timed.push(index);
        }
        let now = self.now;
        found.state = State::Draining(reason);
        found.deadline = Some(now + DRAIN_TIME_MAX);
        found.id.disconnect();
        if let Some(wiring) = &mut found.wiring {
            wiring.send.abandon_unposted();
            wiring.send.push_marker();
        }
        if !found.post() {
            // No completion will come.
            found.deadline = Some(now);
        }
        self.next_service = Time::ZERO;
    }

    /// Nothing of a connection is outstanding: destroys it and tells its end.
    pub(super) fn finish(&mut self, index: u32, reason: DisconnectReason, events: &mut Events) {
        let id = self.id(index);
        let Some(found) = self.slots.at(index) else { return };
        let reason = match reason {
            DisconnectReason::PeerLost if found.goodbye => DisconnectReason::Remote,
            other => other,
        };
        let Some(mut found) = self.slots.take(index) else { return };
        // Before anybody hears of it, nothing may touch memory any more.
        found.destroy_pair();
        if let Some(wiring) = &mut found.wiring {
            while let Some(work) = wiring.send.take_lost() {
                if let Work::Transfer { token, memory } = work {
                    let status = TransferStatus::ConnectionLost;
                    events.push(Event::Transferred { connection: id, token, memory, status });
                }
            }
        }
        self.unwire(&mut found);
        events.push(Event::Disconnected { connection: id, reason });
        self.release(index);
    }

    /// Frees what a connection has besides its place.
    fn unwire(&mut self, connection: &mut Connection) {
        if let Some(wiring) = &connection.wiring {
            self.pairs.remove(&(connection.device, wiring.pair));
            if let Some(Some(device)) = self.devices.get_mut(connection.device) {
                device.release_completions(wiring.completions);
            }
        }
        connection.tear_down();
    }

    /// Gives a place of the table free.
    pub(super) fn release(&mut self, index: u32) {
        if let Some(mut connection) = self.slots.take(index) {
            self.unwire(&mut connection);
        }
        self.slots.release(index);
    }

    /// A device is gone, and all connections over it.
    fn device_removed(&mut self, context: Option<Context>, events: &mut Events) {
        let known = |device: &Option<Device>| {
            device.as_ref().is_some_and(|device| Some(device.context) == context)
        };
        let Some(number) = self.devices.iter().position(known) else { return };
        if let Some(device) = &self.devices[number] {
            tracing::error!(device = %device.name, "an RDMA device was removed");
        }
        for index in 0..self.slots.places() as u32 {
            let Some(found) = self.slots.at_mut(index) else { continue };
            if found.device != number {
                continue;
            }
            found.destroy_pair();
            match found.state {
                State::Established | State::Lingering | State::Draining(_) => {
                    self.finish(index, DisconnectReason::PeerLost, events);
                }
                State::Resolving | State::Connecting | State::Accepting | State::Ended => {
                    found.wiring = None;
                    self.end_unconnected(index, DisconnectReason::Unreachable);
                }
            }
        }
        if let Some(device) = self.devices[number].take() {
            let [asynchronous, wake] = device.watch.descriptors();
            for descriptor in [device.completions.descriptor(), asynchronous, wake] {
                // They may be gone already.
                let _gone = epoll::delete(&self.epoll, descriptor);
            }
        }
        self.pairs.retain(|(device, _), _| *device != number);
        Context::close_removed();
    }
}

/// Host and port of an address of this fabric.
fn host_and_port(address: &Address) -> Result<(&str, u16), FabricError> {
    match address {
        Address::Rdma { host, port } => Ok((host, *port)),
        Address::Shm(_) | Address::Tcp { .. } => {
            Err(FabricError::Address(format!("{address} is not of the verbs fabric")))
        }
    }
}

/// The device's measure of a time: the next power of two of 4.096 us.
fn acknowledge_exponent(timeout: Duration) -> u8 {
    let units = timeout.as_nanos().div_ceil(4096).max(1);
    (units.next_power_of_two().trailing_zeros() as u8).min(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_to_what_devices_take() {
        for (milliseconds, exponent) in [(0, 0), (67, 14), (68, 15), (268, 16), (600_000, 28)] {
            let timeout = Duration::from_millis(milliseconds);
            assert_eq!(acknowledge_exponent(timeout), exponent, "{milliseconds} ms");
        }
        assert_eq!(acknowledge_exponent(Duration::MAX), 31);
    }
}
