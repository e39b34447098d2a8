//! From a submitted request to the packet that it leaves in: everything that it needs first.

use gannet_fabric::{Access, Fabric, FabricError};
use gannet_proto::operations::{Register, RequestHeader, SESSION_SHARD, Window};
use zerocopy::little_endian::{U16, U32, U64};

use super::Client;
use super::encode::{Context, Place, encode};
use crate::error::ErrorKind;
use crate::link::Phase;
use crate::operation::{Class, Operation};
use crate::options::Protection;
use crate::regions::Reach;
use crate::request::State;
use crate::targets::members;
use crate::waiting::Queue;
use crate::windows::WINDOWS_MAX;

/// Whether everything that a request needs is in place.
pub(super) enum Ready {
    Yes,
    /// It waits for something.
    Wait(Queue),
    /// Windows of its own are being opened or closed.
    Windows,
    Never(ErrorKind),
}

impl<F: Fabric> Client<F> {
    /// Sends a request, or queues it for the first thing that it lacks, or fails it.
    pub(super) fn dispatch(&mut self, index: u32) {
        match self.try_dispatch(index) {
            Ready::Yes => {}
            Ready::Wait(queue) => {
                self.requests[index].state = State::Waiting;
                if !matches!(queue, Queue::Room(_) | Queue::Windows) {
                    // Others may need them to get to what this one waits for.
                    self.close_windows(index);
                }
                self.waiting.push(queue, index);
            }
            Ready::Windows => self.requests[index].state = State::Waiting,
            Ready::Never(kind) => self.finish(index, Err(kind)),
        }
    }

    fn try_dispatch(&mut self, index: u32) -> Ready {
        let request = &self.requests[index];
        let Some(operation) = &request.operation else {
            return Ready::Never(ErrorKind::Invalid("no operation"));
        };
        let shard = operation.handle().and_then(|handle| handle.inode().shard());
        let asked = match operation {
            Operation::StatFs { reactor } | Operation::Stats { reactor, .. } => Some(*reactor),
            _ => None,
        };
        let route = match (asked, shard) {
            (Some(reactor), _) => Some(reactor),
            (None, Some(shard)) => self.channels.route(shard),
            (None, None) => return Ready::Never(ErrorKind::Invalid("not an inode")),
        };
        let (Some(reactor), true) = (route, self.channels.is_known()) else {
            self.requests[index].reactor = 0;
            self.wake_channel(0);
            return Ready::Wait(Queue::Channel(0));
        };
        if reactor >= self.channels.len() {
            return Ready::Never(ErrorKind::Invalid("the metadata server has no such reactor"));
        }
        self.requests[index].reactor = reactor;
        if self.channels[reactor].link.ready().is_none() {
            self.wake_channel(reactor);
            return Ready::Wait(Queue::Channel(reactor));
        }
        if self.requests[index].is_io() {
            match self.prepare_io(index, reactor) {
                Ready::Yes => {}
                other => return other,
            }
        }
        match shard {
            Some(shard) => self.send_in_slot(index, reactor, shard.0),
            None => self.send_to_session(index, reactor),
        }
    }

    fn send_in_slot(&mut self, index: u32, reactor: u16, shard: u16) -> Ready {
        if !self.channels[reactor].has_room() {
            return Ready::Wait(Queue::Room(reactor));
        }
        let place = match self.requests[index].place {
            Some(place) => place,
            None => match self.slots.acquire(shard, index) {
                Some(place) => {
                    self.requests[index].place = Some(place);
                    place
                }
                None if self.slots.all_lost(shard) => return Ready::Never(ErrorKind::SlotsLost),
                None => return Ready::Wait(Queue::Slot(shard)),
            },
        };
        if self.is_windowed() && self.requests[index].is_io() {
            match self.open_windows(index) {
                Ready::Yes => {}
                other => return other,
            }
        }
        let header = self.requests[index].header(place);
        match self.encode(index, reactor, header) {
            Ready::Yes => {
                let request = &mut self.requests[index];
                request.state = State::Sent;
                request.uncertain = true;
                request.sent_sets = self.sets_version;
                request.sent_map = self.channels.map_version();
                self.channels[reactor].in_flight += 1;
                Ready::Yes
            }
            other => other,
        }
    }

    fn send_to_session(&mut self, index: u32, reactor: u16) -> Ready {
        let header = RequestHeader {
            shard: U16::new(SESSION_SHARD),
            slot: U16::ZERO,
            attempt: U32::new(1),
            sequence: U64::new(session_tag(index, self.requests[index].generation)),
        };
        match self.encode(index, reactor, header) {
            Ready::Yes => {
                self.requests[index].state = State::Sent;
                Ready::Yes
            }
            other => other,
        }
    }

    fn encode(&mut self, index: u32, reactor: u16, header: RequestHeader) -> Ready {
        if self.options.complete_by_metaserver {
            self.zero_range(index);
        }
        let request = &self.requests[index];
        let Some(operation) = &request.operation else {
            return Ready::Never(ErrorKind::Invalid("no operation"));
        };
        let mut named = [Window::default(); WINDOWS_MAX];
        let count = if self.is_windowed() { self.named_windows(index, &mut named) } else { 0 };
        let place = match operation.buffer() {
            Some(_) if self.is_windowed() => Place::Windows(&named[..count]),
            None => Place::Region(0),
            Some(buffer) => match self.regions.of(buffer) {
                Ok(region) => Place::Region(self.regions.get(region).number),
                Err(kind) => return Ready::Never(kind),
            },
        };
        let request = &self.requests[index];
        let identity = request.identity;
        let context = Context {
            header,
            place,
            identity,
            complete_by_metaserver: self.options.complete_by_metaserver,
            resolved: request.resolved,
        };
        let outbox = &mut self.channels[reactor].outbox;
        let told = self.identities.tell(identity, reactor, outbox);
        let opens = operation.opens().is_some();
        match told.and_then(|()| encode(operation, context, outbox)) {
            Ok(()) => {
                if opens {
                    self.requests[index].opener = self.identities.definition(identity);
                }
                Ready::Yes
            }
            Err(_full) => Ready::Wait(Queue::Room(reactor)),
        }
    }

    /// A reply of the metadata server does not tell data that was placed from a hole that nobody
    /// touches, so the range of a read is made zeros before.
    fn zero_range(&mut self, index: u32) {
        if let Some(Operation::Read { length, buffer, buffer_offset, .. }) =
            &mut self.requests[index].operation
        {
            let start = *buffer_offset as usize;
            buffer[start..start + *length as usize].fill(0);
        }
    }

    /// Sees to it that all data servers that the request needs have sessions, that they can reach
    /// its buffer and that the reactor knows how.
    fn prepare_io(&mut self, index: u32, reactor: u16) -> Ready {
        let request = &self.requests[index];
        let Some(operation) = &request.operation else {
            return Ready::Never(ErrorKind::Invalid("no operation"));
        };
        let Some(buffer) = operation.buffer() else { return Ready::Yes };
        if io_length(operation) > self.channels.request_bytes_max() {
            return Ready::Never(ErrorKind::Invalid("longer than the server's request_bytes_max"));
        }
        let region = match self.regions.of(buffer) {
            Ok(region) => region,
            Err(kind) => return Ready::Never(kind),
        };
        let missing = if self.is_windowed() {
            self.windows_needed(index) & !self.windows.targets(index)
        } else {
            self.needs(index) & !self.regions.told(region, reactor)
        };
        if missing == 0 {
            return Ready::Yes;
        }
        let mut waits = None;
        for target in members(missing) {
            match self.reach(region, target, reactor) {
                Ready::Yes => {}
                Ready::Wait(queue) => waits = Some(queue),
                other => return other,
            }
        }
        waits.map_or(Ready::Yes, Ready::Wait)
    }

    /// The data servers that a read or write needs, as far as is known.
    pub(super) fn needs(&self, index: u32) -> u64 {
        let request = &self.requests[index];
        let file = request.operation.as_ref().and_then(Operation::handle).unwrap_or_default();
        request.needs | self.sets.of(file.inode())
    }

    /// Takes the next step to let a data server reach a region for a reactor.
    fn reach(&mut self, region: u32, target: u8, reactor: u16) -> Ready {
        let Phase::Ready(connection) = self.targets[target].link.phase() else {
            self.wake_target(target);
            return Ready::Wait(Queue::Sets);
        };
        match self.regions.reach(region, target) {
            Reach::Pending(_) => Ready::Wait(Queue::Sets),
            Reach::None => {
                let memory = &self.regions.get(region).memory;
                let windowed = self.options.protection == Protection::Window;
                let access = if windowed { Access::WINDOWS_ONLY } else { Access::READ_WRITE };
                match self.fabric.register(connection, memory, access) {
                    Ok(registration) => {
                        let capabilities = self.fabric.capabilities(connection);
                        let lasting = !capabilities.disconnect_revokes_access;
                        self.regions.pending(region, target, registration, lasting);
                        Ready::Wait(Queue::Sets)
                    }
                    // Its end will be polled, and the session opened anew.
                    Err(FabricError::NotConnected) => Ready::Wait(Queue::Sets),
                    Err(error) => Ready::Never(not_registered(&error)),
                }
            }
            // The windows are what is told, with each request.
            Reach::Usable(_) if self.is_windowed() => Ready::Yes,
            Reach::Usable(registration) => {
                let message = Register {
                    region: U32::new(self.regions.get(region).number),
                    target: U32::new(self.targets[target].id.0),
                    epoch: U64::new(self.targets[target].epoch.0),
                    address: U64::new(registration.address),
                    length: U64::new(self.regions.get(region).memory.len() as u64),
                    key: U32::new(registration.key.0),
                    ..Register::default()
                };
                if self.channels[reactor].outbox.push(&message, &[]).is_err() {
                    return Ready::Wait(Queue::Room(reactor));
                }
                self.regions.tell(region, reactor, target);
                self.sets_version += 1;
                Ready::Yes
            }
        }
    }

    /// Looks at the queues whose events have happened, until nothing is left to do.
    pub(super) fn run_wakes(&mut self) {
        while self.wakes.any() {
            let wakes = std::mem::take(&mut self.wakes);
            for reactor in members(wakes.channels) {
                self.dispatch_all(Queue::Channel(reactor.into()));
            }
            if wakes.sets {
                self.dispatch_all(Queue::Sets);
            }
            // Before requests of their reactors, which would take the room.
            for shard in members(wakes.probes) {
                self.probe_parked(shard.into());
            }
            for reactor in members(wakes.rooms) {
                self.run_room(reactor.into());
            }
            for shard in members(wakes.slots) {
                self.run_slots(shard.into());
            }
            if wakes.windows {
                self.run_windows();
            }
        }
    }

    /// Looks at all requests of a queue once.
    fn dispatch_all(&mut self, queue: Queue) {
        if self.waiting.is_empty(queue) {
            return;
        }
        for _ in 0..self.waiting.len(queue) {
            let Some(index) = self.waiting.pop(queue) else { return };
            self.counters.wakes += 1;
            self.dispatch(index);
        }
    }

    fn run_room(&mut self, reactor: u16) {
        let queue = Queue::Room(reactor);
        if self.waiting.is_empty(queue) {
            return;
        }
        for _ in 0..self.waiting.len(queue) {
            let is_open = self.channels[reactor].link.ready().is_some();
            if is_open && !self.channels[reactor].has_room() {
                return;
            }
            let Some(index) = self.waiting.pop(queue) else { return };
            self.counters.wakes += 1;
            self.dispatch(index);
            if self.waiting.is_in(queue, index) && is_open {
                // The outbox is full again; the next transmission wakes the queue.
                return;
            }
        }
    }

    fn run_slots(&mut self, shard: u16) {
        while self.slots.has_free(shard) || self.slots.all_lost(shard) {
            let Some(index) = self.waiting.pop(Queue::Slot(shard)) else { return };
            self.counters.wakes += 1;
            self.dispatch(index);
        }
    }

    /// Whether executing the request twice would show.
    pub(super) fn is_change(&self, index: u32) -> bool {
        let operation = self.requests[index].operation.as_ref();
        operation.is_some_and(|operation| operation.class() == Class::Change)
    }
}

/// Why the fabric does not register memory, as a request tells it.
fn not_registered(error: &FabricError) -> ErrorKind {
    match error {
        FabricError::Memory(why) => ErrorKind::Memory(why),
        FabricError::LockedMemory { len_bytes, limit_bytes } => {
            ErrorKind::LockedMemory { len_bytes: *len_bytes, limit_bytes: *limit_bytes }
        }
        FabricError::Limit { .. } => {
            ErrorKind::Memory("the fabric registers no more memory for the data server")
        }
        _ => ErrorKind::Memory("the fabric could not register the memory for the data server"),
    }
}

/// Tag of a user's request to the session. The client's own questions have the upper bit set.
pub(super) fn session_tag(index: u32, generation: u32) -> u64 {
    (u64::from(generation & 0x7fff_ffff) << 32) | (u64::from(index) + 1)
}

fn io_length(operation: &Operation) -> u32 {
    match operation {
        Operation::Read { length, .. } | Operation::Write { length, .. } => *length,
        _ => 0,
    }
}
