//! The poller: one turn after the other, what arrived, what completed, what is due, what can be
//! posted, what is to be sent.
//!
//! A received message is acted upon or copied into the grants' table before the next one is looked
//! at, so that slow storage holds no receive buffer (HAZARDS H12). Messages of a turn leave at its
//! end, after all data of the turn was placed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use gannet_disk::{BLOCK_BYTES, Completion, Disk};
use gannet_fabric::{Address, Events, Fabric, FabricError, PostError};
use gannet_proto::Status;
use gannet_proto::control::{
    Drained, Notice, SessionClosed, SessionReady, StoreInfo, grant_flags, grant_operation,
};
use gannet_proto::data::Arrival;
use gannet_proto::limits::STORES_PER_TARGET_MAX;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use zerocopy::little_endian::{U32, U64};

use crate::arrivals::Arrivals;
use crate::config::TargetConfig;
use crate::control::{Control, Handshakes};
use crate::engine::{Engine, Store};
use crate::execute::Visit;
use crate::grants::{Ended, Grants, Stage};
use crate::outbox::{Answer, Overflow};
use crate::seats::Seats;
use crate::sessions::{Acknowledgement, Asker, Sessions};
use crate::stats::Stats;
use crate::store::OpenStore;

/// Events that a turn may bring before the batch grows.
const EVENTS: usize = 1024;
/// Message bytes that a turn may bring before the batch grows.
const EVENT_BYTES: usize = 256 << 10;

/// Why a data server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The address for hosts cannot be used.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Which address.
        address: Address,
        /// The fabric's answer.
        source: FabricError,
    },
    /// There is no store, or there are more than the protocol can name.
    #[error("a data server has 1 to {STORES_PER_TARGET_MAX} stores, and {0} are given")]
    Stores(usize),
    /// A store says that it is longer than its file, or has blocks of another size.
    #[error("store {index} does not fit its file: {problem}")]
    Store {
        /// Position in the list of stores.
        index: usize,
        /// What does not fit.
        problem: &'static str,
    },
    /// No memory for buffers.
    #[error("taking memory for buffers: {0} (ask for fewer buffers)")]
    Memory(#[from] io::Error),
}

/// Counters of the thread that a data server runs on, by name; the names are those of [`Stats`].
pub type ReactorCounters = Box<dyn Fn(&mut dyn FnMut(&str, u64))>;

/// A data server, driven by [`Poller::poll`].
pub struct Target<F: Fabric, D: Disk> {
    pub(crate) config: TargetConfig,
    pub(crate) engine: Engine<F, D>,
    pub(crate) grants: Grants,
    pub(crate) sessions: Sessions,
    pub(crate) arrivals: Arrivals,
    pub(crate) control: Control,
    pub(crate) handshakes: Handshakes,
    pub(crate) seats: Seats,
    pub(crate) infos: Vec<StoreInfo>,
    pub(crate) stats: Stats,
    pub(crate) now: Time,
    pub(crate) stopping: bool,
    /// Sessions whose queue may have work, each once, in the order of their turns.
    ready: VecDeque<u32>,
    is_ready: Vec<bool>,
    /// Grants to be ended; empty between calls.
    idle: Vec<u32>,
    events: Events,
    completions: Vec<Completion>,
    resend_at: Time,
    stores: Vec<OpenStore>,
    reactor_counters: Option<ReactorCounters>,
}

impl<F: Fabric, D: Disk> Target<F, D> {
    /// Starts a data server of `stores`: it listens for hosts now, and connects to the metadata
    /// server with the first poll.
    ///
    /// # Errors
    /// [`TargetError`] names what cannot be used.
    pub fn new(
        config: TargetConfig,
        mut fabric: F,
        disk: D,
        stores: Vec<OpenStore>,
    ) -> Result<Target<F, D>, TargetError> {
        if stores.is_empty() || stores.len() > STORES_PER_TARGET_MAX {
            return Err(TargetError::Stores(stores.len()));
        }
        let usable = stores.iter().enumerate();
        let usable = usable
            .map(|(index, store)| runtime_store(&disk, store, index))
            .collect::<Result<Vec<Store>, TargetError>>()?;
        if let Err(source) = fabric.listen(&config.listen) {
            return Err(TargetError::Listen { address: config.listen, source });
        }
        let limits = config.limits;
        let sessions_max = limits.sessions_max.max(1);
        Ok(Target {
            engine: Engine::new(fabric, disk, usable, &limits)?,
            grants: Grants::new(sessions_max),
            sessions: Sessions::new(sessions_max),
            arrivals: Arrivals::new(sessions_max, limits.arrivals_max.max(1)),
            control: Control::new(config.metadata_server.clone(), stores.len(), config.timing),
            handshakes: Handshakes::default(),
            seats: Seats::default(),
            infos: stores.iter().map(|store| store.info).collect(),
            stats: Stats::default(),
            now: Time::ZERO,
            stopping: false,
            ready: VecDeque::with_capacity(sessions_max as usize),
            is_ready: vec![false; sessions_max as usize],
            idle: Vec::new(),
            events: Events::with_capacity(EVENTS, EVENT_BYTES),
            completions: Vec::with_capacity(limits.operations_max as usize),
            resend_at: Time::NEVER,
            stores,
            reactor_counters: None,
            config,
        })
    }

    /// Adds counters of the reactor's thread to those that the metadata server can ask for.
    pub fn set_reactor_counters(&mut self, counters: ReactorCounters) {
        self.reactor_counters = Some(counters);
    }

    pub(crate) fn refresh_reactor_counters(&mut self) {
        if let Some(counters) = &self.reactor_counters {
            counters(&mut |name, value| self.stats.set(name, value));
        }
    }

    /// Whether every reactor of the metadata server has welcomed this data server.
    #[must_use]
    pub fn is_welcomed(&self) -> bool {
        self.control.is_welcomed()
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The stores that are served.
    #[must_use]
    pub fn stores(&self) -> &[OpenStore] {
        &self.stores
    }

    /// Number of data sessions that are known.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.sessions.len()
    }

    /// Number of grants that have not ended.
    #[must_use]
    pub fn grants(&self) -> u32 {
        self.grants.len()
    }

    /// Breaks rule H5 on purpose: grants are not looked at again right before a post, and what is
    /// under way of the past is not waited for.
    #[cfg(feature = "defects")]
    pub fn break_live_checks(&mut self) {
        self.grants.defects.break_live_checks();
    }

    fn take_completions(&mut self) -> usize {
        let mut completions = std::mem::take(&mut self.completions);
        self.engine.disk.poll(self.now, &mut completions);
        let count = completions.len();
        for Completion { token, memory, result } in completions.drain(..) {
            let result = result.map_err(|error| {
                tracing::warn!(%error, "block I/O failed");
                Status::IO
            });
            self.completed(token, memory, result);
        }
        self.completions = completions;
        count
    }

    pub(crate) fn completed(
        &mut self,
        token: u64,
        memory: Option<gannet_runtime::memory::Memory>,
        result: Result<(), Status>,
    ) {
        let ended = self.engine.completed(&mut self.grants, token, memory, result, &mut self.stats);
        if let Some(place) = ended {
            self.finish(place);
        }
    }

    fn retry(&mut self) -> usize {
        if self.engine.put_off.is_empty() {
            return 0;
        }
        let mut idle = std::mem::take(&mut self.idle);
        let progress = self.engine.retry(&mut self.grants, &mut idle, &mut self.stats);
        self.finish_all(idle);
        progress
    }

    /// A session's queue has work.
    #[inline]
    pub(crate) fn make_ready(&mut self, session: u32) {
        let is_ready = &mut self.is_ready[session as usize];
        if !*is_ready {
            *is_ready = true;
            self.ready.push_back(session);
        }
    }

    /// Visits the heads of the queues in turn, one grant at a time, until none gets on.
    fn run_queues(&mut self) -> usize {
        let copy_bytes = self.config.limits.copy_bytes_per_turn;
        let (mut progress, mut blocked) = (0, 0);
        while blocked < self.ready.len() && self.engine.copied_bytes < copy_bytes {
            let Some(session) = self.ready.pop_front() else { break };
            let Some(place) = self.grants.head(session) else {
                self.is_ready[session as usize] = false;
                continue;
            };
            self.ready.push_back(session);
            if !self.may_visit(session, place) {
                blocked += 1;
                continue;
            }
            match self.engine.visit(&mut self.grants, place, &mut self.stats) {
                Visit::Ended => self.finish(place),
                Visit::Posted | Visit::Yielded => {}
                Visit::Blocked => {
                    blocked += 1;
                    continue;
                }
            }
            progress += 1;
            blocked = 0;
        }
        progress
    }

    /// A grant is begun only if its arrival notice will have room, and not during shutdown.
    fn may_visit(&self, session: u32, place: u32) -> bool {
        let is_begun = self.grants.get(place).is_some_and(|entry| entry.stage != Stage::Queued);
        let has_room = self.arrivals.has_room(session, self.grants.begun(session));
        is_begun || (has_room && !self.stopping)
    }

    /// Ends grants that were collected in [`Target::idle`].
    fn finish_all(&mut self, mut places: Vec<u32>) {
        for place in places.drain(..) {
            self.finish(place);
        }
        self.idle = places;
    }

    /// Ends the grants that `collect` picks.
    pub(crate) fn finish_those(&mut self, collect: impl FnOnce(&mut Grants, &mut Vec<u32>)) {
        let mut idle = std::mem::take(&mut self.idle);
        collect(&mut self.grants, &mut idle);
        self.finish_all(idle);
    }

    /// Ends a grant: tells the host, tells the metadata server, and lets a drain that waited for it
    /// go on.
    pub(crate) fn finish(&mut self, place: u32) {
        let Some(ended) = self.grants.end(place) else { return };
        let Ended { status, channel, session, number, .. } = ended;
        match status {
            Status::OK => self.stats.grants_done += 1,
            Status::REVOKED => self.stats.grants_revoked += 1,
            _ => self.stats.grants_failed += 1,
        }
        let length = if status.is_ok() { ended.length } else { 0 };
        let by_arrival = ended.operation != grant_operation::WRITE
            && ended.flags & grant_flags::NOTIFY_METASERVER == 0;
        let tell_host = by_arrival
            && ended.session_is_current
            && matches!(status, Status::OK | Status::IO | Status::ACCESS_REFUSED);
        if tell_host {
            let arrival = Arrival {
                status: U32::new(status.0),
                length: U32::new(length),
                crc32c: U32::ZERO,
                reserved: U32::ZERO,
                trailer: zerocopy::transmute!(ended.trailer),
            };
            self.arrivals.push(session, arrival);
        }
        if !ended.channel_is_current || self.control.live(channel).is_none() {
            self.stats.grants_dropped += 1;
        } else if tell_host && status.is_ok() {
            self.control.channels[usize::from(channel)].outbox.retire(number);
        } else {
            self.notice(channel, notice_of(ended.term, number, status, length));
        }
        if ended.session_drained {
            self.session_drained(session);
        }
        if ended.channel_drained {
            self.channel_drained(channel);
        }
    }

    /// Notices the end of a grant to the reactor that it came from.
    pub(crate) fn notice(&mut self, channel: u16, notice: Notice) {
        let noticed = self.control.channels[usize::from(channel)].outbox.notice(notice);
        self.check_room(channel, noticed);
    }

    /// As [`Target::notice`], for a grant that is not of the channel's stream.
    pub(crate) fn refuse(&mut self, channel: u16, notice: Notice) {
        let outbox = &mut self.control.channels[usize::from(channel)].outbox;
        let noticed = outbox.notice_of_another_stream(notice);
        self.check_room(channel, noticed);
    }

    /// Gives an answer to a back channel, if it is the connection that asked.
    pub(crate) fn answer(&mut self, channel: u16, answer: Answer) {
        let Some(to) = self.control.channels.get_mut(usize::from(channel)) else { return };
        let answered = to.outbox.answer(answer);
        self.check_room(channel, answered);
    }

    fn check_room(&mut self, channel: u16, queued: Result<(), Overflow>) {
        if let Err(overflow) = queued {
            tracing::warn!(channel, "{overflow}");
            self.break_channel(channel);
        }
    }

    /// Nothing of a session's earlier eras is under way: what waited for that is answered.
    pub(crate) fn session_drained(&mut self, session: u32) {
        let mut owed = Vec::new();
        self.sessions.drained(session, |asker, answer| owed.push((asker, answer)));
        self.acknowledge(owed);
    }

    /// Gives each answer to the connection that asked, if it is still there.
    pub(crate) fn acknowledge(&mut self, owed: Vec<(Asker, Acknowledgement)>) {
        for (asker, acknowledgement) in owed {
            if self.control.live(asker.channel) == Some(asker.connection) {
                self.answer(asker.channel, wire_answer(acknowledgement));
            }
        }
    }

    /// Nothing of a channel's earlier eras is under way: a drain that waited is acknowledged.
    pub(crate) fn channel_drained(&mut self, channel: u16) {
        let Some(state) = self.control.channels.get_mut(usize::from(channel)) else { return };
        if let Some(term) = state.draining.take() {
            self.stats.drains += 1;
            let drained = Drained { term: U64::new(term), ..Drained::default() };
            self.answer(channel, Answer::Drained(drained));
        }
    }

    /// Sends what waits to be sent; returns the number of packets. They count as work: what they
    /// made room for may be begun in the next turn.
    fn flush(&mut self) -> usize {
        let mut packets = 0;
        let Target { engine, arrivals, sessions, control, stats, .. } = self;
        let fabric = &mut engine.fabric;
        let mut refused = !arrivals.is_empty()
            && arrivals.flush(stats, |session, packet| {
                let connection = sessions.connection(session).ok_or(PostError::NotConnected)?;
                fabric.send(connection, packet).inspect(|()| packets += 1)
            });
        for index in 0..control.channels.len() {
            let Some(connection) = control.live(index as u16) else { continue };
            let channel = &mut control.channels[index];
            if channel.outbox.is_empty() {
                continue;
            }
            let send = |packet: &[u8]| fabric.send(connection, packet).inspect(|()| packets += 1);
            if channel.outbox.flush(channel.term, stats, send) == Err(PostError::Full) {
                stats.sends_refused += 1;
                refused = true;
            }
        }
        self.resend_at =
            if refused { self.now + self.config.timing.resend_delay } else { Time::NEVER };
        self.engine.disk.flush();
        self.engine.fabric.flush();
        packets
    }
}

impl<F: Fabric, D: Disk> Poller for Target<F, D> {
    fn poll(&mut self, now: Now) -> usize {
        self.now = now.time;
        self.engine.disk_full = false;
        self.engine.copied_bytes = 0;
        let mut events = std::mem::take(&mut self.events);
        self.engine.fabric.poll(self.now, &mut events);
        let mut work = self.take_events(&mut events);
        events.clear();
        self.events = events;
        work += self.take_completions();
        work += self.keep_time();
        work += self.retry();
        work += self.run_queues();
        work + self.flush()
    }

    fn deadline(&self) -> Time {
        let control = if self.stopping { Time::NEVER } else { self.control.deadline() };
        control.min(self.handshakes.deadline()).min(self.resend_at)
    }

    fn arm(&mut self) {
        self.engine.fabric.arm();
    }

    fn disarm(&mut self) {
        self.engine.fabric.disarm();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.engine.fabric.wake_descriptors(visit);
        self.engine.disk.wake_descriptors(visit);
    }

    /// Begins nothing new, lets what is under way end, sends its notices, and ends all connections.
    fn shutdown(&mut self, now: Now) -> bool {
        self.now = now.time;
        self.stopping = true;
        if self.grants.begun_in_all() > 0 || self.engine.disk.in_flight() > 0 {
            return false;
        }
        self.flush();
        let connections: Vec<_> = self.seats.connections().collect();
        for connection in connections {
            self.engine.fabric.disconnect(connection);
        }
        self.engine.fabric.flush();
        true
    }
}

fn runtime_store<D: Disk>(disk: &D, store: &OpenStore, index: usize) -> Result<Store, TargetError> {
    let wrong = |problem| Err(TargetError::Store { index, problem });
    let (blocks, block_bytes) = (store.info.blocks.get(), BLOCK_BYTES as u64);
    if u64::from(store.info.block_bytes.get()) != block_bytes {
        return wrong("its blocks have another size than this build's");
    }
    if !store.data_offset.is_multiple_of(block_bytes) {
        return wrong("its data does not start at a block");
    }
    let end = blocks.checked_mul(block_bytes).and_then(|len| len.checked_add(store.data_offset));
    if blocks == 0 || end.is_none_or(|end| end > disk.len_bytes(store.file)) {
        return wrong("it has no blocks, or more than the file holds");
    }
    Ok(Store {
        file: store.file,
        data_offset: store.data_offset,
        blocks,
        generation: store.info.generation.get(),
        resident: disk.resident(store.file, store.data_offset, BLOCK_BYTES).is_some(),
        direct: disk.is_direct(store.file),
    })
}

pub(crate) fn notice_of(term: u64, number: u64, status: Status, length: u32) -> Notice {
    Notice {
        term: U64::new(term),
        number: U64::new(number),
        status: U32::new(status.0),
        length: U32::new(length),
        ..Notice::default()
    }
}

pub(crate) fn wire_answer(acknowledgement: Acknowledgement) -> Answer {
    match acknowledgement {
        Acknowledgement::Ready { session, epoch, status } => Answer::Ready(SessionReady {
            session: U64::new(session),
            epoch: U64::new(epoch),
            status: U32::new(status.0),
            reserved: U32::ZERO,
        }),
        Acknowledgement::Closed { session, epoch } => {
            Answer::Closed(SessionClosed { session: U64::new(session), epoch: U64::new(epoch) })
        }
    }
}
