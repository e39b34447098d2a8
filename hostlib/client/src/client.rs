//! One host session: the state machines wired to a fabric.
//!
//! Owns everything of the session; belongs to one thread. `submit` only notes and encodes, all
//! effects happen in [`Client::poll`]. A crash of the host program leaves nothing behind that the
//! servers do not clean up by its lease and connections.
//!
//! Invariants: a buffer is in a completion only when no data server can reach it for its request,
//! and all memory windows of the request are gone; a slot is free only when the server has answered
//! its last request; every waiting request is in exactly one queue, whose event is bound to happen
//! or to fail it, or it waits for windows of its own that are being opened or closed.

mod connections;
mod dispatch;
mod encode;
mod finish;
mod recovery;
mod replies;
mod session;
#[cfg(test)]
mod tests;
mod windows;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use gannet_fabric::arena::HostBuffer;
use gannet_fabric::{ConnectionId, Event, Events, Fabric};
use gannet_runtime::deadlines::Deadlines;
use gannet_runtime::time::Time;

use crate::channels::Channels;
use crate::counters::ClientCounters;
use crate::defects::Defects;
use crate::error::ErrorKind;
use crate::identities::{Identities, Identity, IdentityId};
use crate::link::LinkTimes;
use crate::opens::{OpenId, Opens};
use crate::operation::{Completion, Operation, Refused, RequestId};
use crate::options::{ClientOptions, Protection};
use crate::regions::Regions;
use crate::request::{Requests, State};
use crate::sets::Sets;
use crate::slots::Slots;
use crate::targets::Targets;
use crate::waiting::{Queue, Waiting};
use crate::windows::Windows;

/// How soon a packet that the fabric refused is tried again.
const BLOCKED_RETRY: Duration = Duration::from_micros(100);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    None,
    Channel(u16),
    Target(u8),
}

/// Timers of requests, as tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    Timeout(u32),
    Delay(u32),
}

impl Timer {
    fn token(self) -> u64 {
        match self {
            Timer::Timeout(request) => u64::from(request),
            Timer::Delay(request) => 1 << 32 | u64::from(request),
        }
    }

    fn of(token: u64) -> Timer {
        let request = token as u32;
        if token >> 32 == 0 { Timer::Timeout(request) } else { Timer::Delay(request) }
    }
}

/// Queues whose event has happened.
#[derive(Debug, Default)]
struct Wakes {
    slots: u64,
    /// Shards with slots to be probed.
    probes: u64,
    rooms: u64,
    channels: u64,
    sets: bool,
    windows: bool,
}

impl Wakes {
    fn any(&self) -> bool {
        self.slots | self.probes | self.rooms | self.channels != 0 || self.sets || self.windows
    }
}

/// A host session. See the module.
pub struct Client<F: Fabric> {
    fabric: F,
    options: ClientOptions,
    times: LinkTimes,
    now: Time,
    requests: Requests,
    waiting: Waiting,
    wakes: Wakes,
    slots: Slots,
    /// Shards with slots to be probed for which there was no room.
    probes_waiting: u64,
    channels: Channels,
    targets: Targets,
    regions: Regions,
    windows: Windows,
    /// The request whose turn it is to get windows.
    window_turn: Option<u32>,
    /// When windows are asked for again although none has become free.
    windows_due: Time,
    /// A batch of events is being looked at.
    is_draining: bool,
    /// Windows were opened or closed since the last flush.
    unflushed: bool,
    sets: Sets,
    identities: Identities,
    opens: Opens,
    /// Counts changes of data sessions and registrations.
    sets_version: u64,
    /// Tags of the client's own questions.
    next_tag: u64,
    deadlines: Deadlines,
    /// When the earliest connection is due.
    links_due: Time,
    /// Time-outs that begin at the next poll.
    untimed: Vec<(RequestId, Duration)>,
    events: Events,
    /// By position in the fabric's table: generation and role.
    roles: Vec<(u32, Role)>,
    /// Connections whose position was given on before their end was told.
    former_roles: Vec<(ConnectionId, Role)>,
    done: Vec<Completion>,
    /// Buffers that data servers may still reach; never used again.
    quarantine: Vec<HostBuffer>,
    counters: ClientCounters,
    defects: Defects,
}

impl<F: Fabric> Client<F> {
    /// Makes a client. It connects when the first request is submitted.
    #[must_use]
    pub fn new(options: ClientOptions, fabric: F) -> Client<F> {
        let capacity = options.requests_max.clamp(1, 1 << 20);
        let by_windows = options.protection == Protection::Window;
        Client {
            windows: Windows::new(if by_windows { capacity } else { 0 }),
            window_turn: None,
            windows_due: Time::NEVER,
            is_draining: false,
            unflushed: false,
            times: LinkTimes::new(&options),
            now: Time::ZERO,
            requests: Requests::new(capacity),
            waiting: Waiting::new(capacity),
            wakes: Wakes::default(),
            slots: Slots::new(),
            probes_waiting: 0,
            channels: Channels::new(options.metaserver.clone(), options.fabrics),
            targets: Targets::default(),
            regions: Regions::default(),
            sets: Sets::new(),
            identities: Identities::default(),
            opens: Opens::default(),
            sets_version: 0,
            next_tag: 0,
            deadlines: Deadlines::with_capacity(2 * capacity),
            links_due: Time::NEVER,
            untimed: Vec::with_capacity(2 * capacity),
            events: Events::with_capacity(1024, 256 << 10),
            roles: Vec::with_capacity(128),
            former_roles: Vec::new(),
            done: Vec::with_capacity(capacity),
            quarantine: Vec::new(),
            counters: ClientCounters::default(),
            defects: Defects::default(),
            fabric,
            options,
        }
    }

    /// Submits a request with the default time-out. It leaves at the next poll; `token` comes back
    /// with its completion.
    ///
    /// # Errors
    /// [`Refused`] with the operation: `Busy` when too many requests are outstanding, `Invalid` or
    /// a status when an argument cannot be sent.
    #[allow(clippy::result_large_err)] // The operation comes back with its buffer, unallocated.
    pub fn submit(&mut self, operation: Operation, token: u64) -> Result<RequestId, Refused> {
        self.submit_with(operation, token, self.options.request_timeout)
    }

    /// Submits a request with a time-out of its own; it counts from the next poll.
    ///
    /// # Errors
    /// As [`Client::submit`].
    #[allow(clippy::result_large_err)]
    pub fn submit_with(
        &mut self,
        operation: Operation,
        token: u64,
        timeout: Option<Duration>,
    ) -> Result<RequestId, Refused> {
        self.submit_as(operation, token, timeout, IdentityId::OWN)
    }

    /// Submits a request on behalf of a user, with a time-out of its own.
    ///
    /// # Errors
    /// As [`Client::submit`].
    #[allow(clippy::result_large_err)]
    pub fn submit_as(
        &mut self,
        operation: Operation,
        token: u64,
        timeout: Option<Duration>,
        identity: IdentityId,
    ) -> Result<RequestId, Refused> {
        let known = self.identities.is_known(identity);
        let unknown = || ErrorKind::Invalid("an identity that nobody has");
        let checked = known.then_some(()).ok_or_else(unknown).and_then(|()| operation.check());
        if let Err(kind) = checked {
            let error = operation.error(kind);
            return Err(Refused { operation, error });
        }
        let index = match self.requests.insert(operation, token) {
            Ok(index) => index,
            Err(operation) => {
                let error = operation.error(ErrorKind::Busy { limit: self.requests.capacity() });
                return Err(Refused { operation, error });
            }
        };
        if let Some(Operation::CloseFile { open, .. }) = &self.requests[index].operation {
            // However the request ends: the server is not told of it again.
            self.opens.remove(*open);
        }
        self.counters.requests += 1;
        self.requests[index].identity = identity;
        let id = self.requests.id(index);
        if let Some(timeout) = timeout {
            self.set_timeout_at_next_poll(id, timeout);
        }
        self.dispatch(index);
        Ok(id)
    }

    /// Says who a number stands for in [`Client::submit_as`], from the next request that is sent. The
    /// metadata server refuses what the program may not do in another's name.
    ///
    /// # Errors
    /// `Invalid` for a number or a number of groups that is out of bounds.
    pub fn set_identity(&mut self, id: IdentityId, identity: &Identity) -> Result<(), ErrorKind> {
        self.identities.set(id, identity)
    }

    /// A number for [`Operation::OpenFile`].
    pub fn new_open(&mut self) -> OpenId {
        self.opens.next()
    }

    /// Asks to end a request early. Its completion follows in bounded time: `Cancelled`, or its
    /// normal result if it was faster. No-op for a request that is over.
    pub fn cancel(&mut self, request: RequestId) {
        if let Some(index) = self.requests.find(request)
            && self.requests[index].ending.is_none()
        {
            self.end_early(index, crate::request::Ending::Cancelled);
        }
    }

    /// Does all work that is ready, without blocking, and appends the requests that are over to
    /// `completions`. Returns the number of events and completions: 0 means there was nothing to do.
    pub fn poll(&mut self, now: Time, completions: &mut Vec<Completion>) -> usize {
        self.now = self.now.max(now);
        self.begin_timeouts();
        self.run_wakes();
        self.transmit();
        if self.unflushed {
            self.flush();
        }
        let mut events = std::mem::take(&mut self.events);
        self.fabric.poll(self.now, &mut events);
        let mut work = events.len();
        self.is_draining = true;
        while let Some(event) = events.pop() {
            match event {
                Event::Message { connection, bytes } => {
                    self.on_message(connection, events.message(bytes));
                }
                other => self.on_event(other),
            }
        }
        self.is_draining = false;
        events.clear();
        self.events = events;
        self.run_timers();
        self.run_wakes();
        self.transmit();
        // Whatever was posted: where data servers cannot reach memory by themselves, the fabric has
        // answers of its own to send.
        self.flush();
        work += self.done.len();
        completions.append(&mut self.done);
        work
    }

    /// When [`Client::poll`] next has to run although nothing arrives; [`Time::NEVER`] if never,
    /// [`Time::ZERO`] if at once.
    #[must_use]
    pub fn deadline(&self) -> Time {
        if !self.done.is_empty() || !self.untimed.is_empty() || self.wakes.any() || self.unflushed {
            return Time::ZERO;
        }
        let mut deadline = self.deadlines.next().min(self.links_due).min(self.windows_due);
        for reactor in 0..self.channels.len() {
            let outbox = &self.channels[reactor].outbox;
            if outbox.is_blocked() {
                deadline = deadline.min(self.now + BLOCKED_RETRY);
            } else if !outbox.is_empty() {
                return Time::ZERO;
            }
        }
        if self.opens.has_untold() && deadline > self.now + BLOCKED_RETRY {
            return self.now + BLOCKED_RETRY;
        }
        deadline
    }

    /// Asks the servers to signal [`Client::wake_descriptors`] from now on. Poll once more before
    /// sleeping.
    pub fn arm(&mut self) {
        self.fabric.arm();
    }

    /// Takes back [`Client::arm`].
    pub fn disarm(&mut self) {
        self.fabric.disarm();
    }

    /// Calls `visit` with each descriptor that becomes readable when there is something to poll.
    pub fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.fabric.wake_descriptors(visit);
    }

    /// What the client has done so far.
    #[must_use]
    pub fn counters(&self) -> ClientCounters {
        self.counters
    }

    /// Requests under way.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.requests.len()
    }

    /// Most requests that may be under way.
    #[must_use]
    pub fn requests_max(&self) -> usize {
        self.requests.capacity()
    }

    /// Metadata-server reactors that are known: 1 before the first welcome.
    #[must_use]
    pub fn reactors(&self) -> u16 {
        self.channels.len()
    }

    /// Most bytes of one read or write, as the server said last.
    #[must_use]
    pub fn request_bytes_max(&self) -> u32 {
        self.channels.request_bytes_max()
    }

    /// Unit of allocation in bytes, as the server said last.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.channels.block_bytes()
    }

    /// The settings.
    #[must_use]
    pub fn options(&self) -> &ClientOptions {
        &self.options
    }

    /// Breaks rule H1 on purpose: a read completes with the first arrival notice.
    #[cfg(feature = "defects")]
    pub fn break_arrivals(&mut self) {
        self.defects.break_arrivals();
    }

    /// Breaks rule H2 on purpose: a buffer goes back to its user, or into the next attempt, while
    /// data servers can still reach it.
    #[cfg(feature = "defects")]
    pub fn break_cuts(&mut self) {
        self.defects.break_cuts();
    }

    /// Breaks rule H2 on purpose: a request completes before its memory windows are closed.
    #[cfg(feature = "defects")]
    pub fn break_windows(&mut self) {
        self.defects.break_windows();
    }

    /// Breaks rules H2 and H5 on purpose: an attempt that is given up has its memory windows closed,
    /// and the grants that name their keys stay alive.
    #[cfg(feature = "defects")]
    pub fn break_sessions(&mut self) {
        self.defects.break_sessions();
    }

    /// The fabric, for the harness that injects faults into it.
    pub fn fabric_mut(&mut self) -> &mut F {
        &mut self.fabric
    }

    fn role(&self, connection: ConnectionId) -> Role {
        match self.roles.get(connection.index as usize) {
            Some((generation, role)) if *generation == connection.generation => *role,
            _ => {
                let former = self.former_roles.iter().find(|(former, _)| *former == connection);
                former.map_or(Role::None, |(_, role)| *role)
            }
        }
    }

    fn set_role(&mut self, connection: ConnectionId, role: Role) {
        let ConnectionId { index, generation } = connection;
        if self.roles.len() <= index as usize {
            self.roles.resize(index as usize + 1, (0, Role::None));
        }
        let (present, held) = self.roles[index as usize];
        if present != generation && held != Role::None {
            if role == Role::None {
                // An end that was told late: the position is somebody else's already.
                return self.former_roles.retain(|(former, _)| *former != connection);
            }
            // The fabric gives a position on as soon as it has an end to tell, and the end of the
            // one before may lie behind in the same batch of events.
            self.former_roles.push((ConnectionId { index, generation: present }, held));
        }
        self.roles[index as usize] = (generation, role);
    }

    fn set_timeout_at_next_poll(&mut self, id: RequestId, timeout: Duration) {
        if self.untimed.len() == self.untimed.capacity() {
            // Requests may have come and gone since the last poll.
            let requests = &self.requests;
            self.untimed.retain(|(id, _)| requests.find(*id).is_some());
        }
        self.untimed.push((id, timeout));
    }

    fn begin_timeouts(&mut self) {
        for at in 0..self.untimed.len() {
            let (id, timeout) = self.untimed[at];
            if let Some(index) = self.requests.find(id) {
                self.set_timeout(index, timeout);
            }
        }
        self.untimed.clear();
    }

    fn set_timeout(&mut self, index: u32, timeout: Duration) {
        if let Some(former) = self.requests[index].timeout.take() {
            self.deadlines.cancel(former);
        }
        let token = Timer::Timeout(index).token();
        // Two deadlines per request fit, so the set is never full.
        self.requests[index].timeout = self.deadlines.insert(self.now + timeout, token).ok();
    }

    fn set_delay(&mut self, index: u32, delay: Duration) {
        let token = Timer::Delay(index).token();
        self.requests[index].state = State::Delayed;
        self.requests[index].delay = self.deadlines.insert(self.now + delay, token).ok();
    }

    fn run_timers(&mut self) {
        while let Some(token) = self.deadlines.pop_due(self.now) {
            match Timer::of(token) {
                Timer::Timeout(index) => self.on_timeout(index),
                Timer::Delay(index) => {
                    self.requests[index].delay = None;
                    if self.requests[index].state == State::Closing {
                        self.closing_is_late(index);
                        continue;
                    }
                    self.requests[index].state = State::Waiting;
                    self.dispatch(index);
                }
            }
        }
        if self.now >= self.windows_due {
            self.windows_due = Time::NEVER;
            self.wakes.windows = true;
        }
        if self.now >= self.links_due {
            self.run_links();
        }
    }

    /// The request is not with the server any more.
    fn leave_server(&mut self, index: u32) {
        self.leave_server_to(index, State::Waiting);
    }

    /// If the request is with the server: not any more, and `state` is next.
    fn leave_server_to(&mut self, index: u32, state: State) {
        let request = &mut self.requests[index];
        if request.state != State::Sent {
            return;
        }
        request.state = state;
        if request.place.is_some() {
            let reactor = request.reactor;
            let channel = &mut self.channels[reactor];
            channel.in_flight = channel.in_flight.saturating_sub(1);
            self.wakes.rooms |= 1 << reactor;
        }
    }

    /// Posts what the outboxes hold.
    fn transmit(&mut self) {
        self.send_afterthoughts();
        let mut posted = 0;
        for reactor in 0..self.channels.len() {
            let channel = &mut self.channels[reactor];
            if channel.outbox.is_empty() {
                continue;
            }
            if let Some(connection) = channel.link.connection() {
                let sent = channel.outbox.transmit(&mut self.fabric, connection);
                if sent > 0 && !self.waiting.is_empty(Queue::Room(reactor)) {
                    self.wakes.rooms |= 1 << reactor;
                }
                if sent > 0 {
                    self.wakes.probes |= std::mem::take(&mut self.probes_waiting);
                }
                posted += sent as u64;
            }
        }
        self.counters.packets += posted;
        self.unflushed |= posted > 0;
    }

    fn flush(&mut self) {
        self.unflushed = false;
        self.fabric.flush();
    }
}

impl<F: Fabric> Drop for Client<F> {
    /// Takes the memory of the requests under way back from the data servers, so that the arena
    /// may hand it out again. What cannot be taken back is leaked.
    fn drop(&mut self) {
        for index in 0..self.requests.capacity() as u32 {
            let state = self.requests[index].state;
            let reachable = matches!(state, State::Sent | State::Stranded | State::Cutting);
            let Some(operation) = self.requests.remove(index) else { continue };
            let is_read = operation.is_read();
            let Some(mut buffer) = operation.into_buffer() else { continue };
            // Where the end of a connection revokes access, the fabric's own end does it.
            let region = self.regions.find(buffer.region());
            let lasting = region.is_some_and(|region| self.regions.get(region).was_given.lasting);
            if !reachable || !lasting {
                continue;
            }
            let taken = if is_read { buffer.replace_pages(false) } else { buffer.leave_pages() };
            if taken.is_err() {
                std::mem::forget(buffer);
            }
        }
        for buffer in self.quarantine.drain(..) {
            std::mem::forget(buffer);
        }
    }
}

impl<F: Fabric> std::fmt::Debug for Client<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let channels: Vec<_> =
            (0..self.channels.len()).map(|reactor| self.channels[reactor].link.phase()).collect();
        let targets: Vec<_> =
            self.targets.indices().map(|target| self.targets[target].link.phase()).collect();
        f.debug_struct("Client")
            .field("metaserver", &self.options.metaserver)
            .field("outstanding", &self.requests.len())
            .field("channels", &channels)
            .field("data_sessions", &targets)
            .field("links_due", &self.links_due)
            .field("deadline", &self.deadline())
            .field("parked_slots", &self.slots.parked())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
