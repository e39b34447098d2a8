//! The poller: one turn after the other, what arrived, what completed, what is due, what can be
//! posted, what is to be sent.
//!
//! A received message is acted upon or copied into the grants' table before the next one is looked
//! at, so that slow storage holds no receive buffer (HAZARDS H12). Messages of a turn leave at its
//! end, after all data of the turn was placed, or posted on the messages' own connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use gannet_disk::{BLOCK_BYTES, Completion, Disk};
use gannet_fabric::handshakes::Handshakes;
use gannet_fabric::{Address, Events, Fabric, FabricError};
use gannet_proto::Status;
use gannet_proto::control::StoreInfo;
use gannet_proto::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, STORES_PER_TARGET_MAX};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use crate::arrivals::Arrivals;
use crate::config::TargetConfig;
use crate::control::Control;
use crate::engine::{Engine, Store};
use crate::execute::Visit;
use crate::grants::{Grants, Stage};
use crate::seats::Seats;
use crate::sessions::Sessions;
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
    /// There is no address for hosts, or there are more or longer ones than the protocol carries.
    #[error(
        "a data server listens at 1 to {ADDRESSES_MAX} addresses of up to {ADDRESS_BYTES_MAX} bytes, \
         and {count} are given, the longest of {longest_bytes} bytes"
    )]
    Addresses {
        /// Number of addresses.
        count: usize,
        /// Length of the longest.
        longest_bytes: usize,
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
    /// The fabric's device cannot have the memory that it is to move bytes from and to.
    #[error("{what} of the data server cannot be made ready for transfers: {source}")]
    Prepare {
        /// Which memory.
        what: &'static str,
        /// The fabric's answer.
        source: FabricError,
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
    pub(crate) resend_at: Time,
    stores: Vec<OpenStore>,
    reactor_counters: Option<ReactorCounters>,
}

/// On a fabric that streams, hosts are told of so many bytes at a time: they ask for more while the
/// rest of a long batch is on its way.
const STREAMED_BYTES_PER_NOTICE: u32 = 16 << 10;
/// So often in a turn, at most: each takes a credit of the large class.
const TOLD_PER_TURN_MAX: u32 = 4;
/// With more grants queued than this the server is the one that others wait for: it tells at the end
/// of the turn, which takes it less.
const TOLD_EARLY_MAX: u32 = 64;

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
        check_addresses(&config.listen)?;
        for address in &config.listen {
            fabric
                .listen(address)
                .map_err(|source| TargetError::Listen { address: address.clone(), source })?;
        }
        let limits = config.limits;
        let sessions_max = limits.sessions_max.max(1);
        let mut engine = Engine::new(fabric, disk, usable, &limits)?;
        engine.prepare().map_err(|(what, source)| TargetError::Prepare { what, source })?;
        engine.register_buffers();
        Ok(Target {
            engine,
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

    /// Visits the heads of the queues in turn, one grant at a time, until none gets on or a turn's
    /// share of bytes is under way.
    fn run_queues(&mut self) -> usize {
        let bytes_max = self.config.limits.bytes_per_turn.max(1);
        self.engine.moved_bytes = 0;
        let queued = self.grants.len() - self.grants.begun_in_all();
        let told_max = if queued <= TOLD_EARLY_MAX { TOLD_PER_TURN_MAX } else { 0 };
        let (mut progress, mut blocked, mut told) = (0, 0, 0);
        while blocked < self.ready.len() && self.engine.moved_bytes < bytes_max {
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
            if self.engine.streamed_bytes >= STREAMED_BYTES_PER_NOTICE && told < told_max {
                // What is refused for want of a credit waits for the end of the turn.
                self.tell();
                told += 1;
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
}

/// Refuses addresses that a hello could not carry.
fn check_addresses(addresses: &[Address]) -> Result<(), TargetError> {
    let count = addresses.len();
    let lengths = addresses.iter().map(|address| address.to_string().len());
    let longest_bytes = lengths.max().unwrap_or(0);
    if count == 0 || count > ADDRESSES_MAX || longest_bytes > ADDRESS_BYTES_MAX {
        return Err(TargetError::Addresses { count, longest_bytes });
    }
    Ok(())
}

impl<F: Fabric, D: Disk> Poller for Target<F, D> {
    fn poll(&mut self, now: Now) -> usize {
        self.now = now.time;
        self.engine.disk_full = false;
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
