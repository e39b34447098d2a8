//! The metadata state machine: virtual shards, namespace, extents, allocation, requests.
//!
//! [`Core`] is the state of one metadata-server reactor. It does no I/O, reads no clock and starts
//! no thread: it takes time and inputs, changes state only by records that it also gives to the
//! log, and hands what shall leave to a [`Sink`], each output with the log position that must be
//! durable before it may leave (rule H14). Everything in it is deterministic.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use gannet_proto::control::Grant;
use gannet_proto::limits::{GRANTS_MAX, PARTS_MAX, SHARDS, SLOTS_MAX, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::{Register, Window};
use gannet_proto::{
    GrantNumber, Inode, RegionId, SessionId, ShardId, Status, StoreId, TargetId, Term,
};

use crate::defects::Defects;
use crate::held::HeldNames;
use crate::holds::Holds;
use crate::nodes::Nodes;
use crate::opens::Opens;
use crate::operations::{OperationId, Operations};
use crate::record::Change;
use crate::recovery::Recovery;
use crate::rename::RenameLock;
use crate::sessions::Sessions;
use crate::space::SpaceMap;
use crate::targets::Targets;
use crate::transactions::Transactions;
use crate::waiting::Waiting;
use crate::xattrs::Xattrs;
use crate::zones::ZoneTable;

/// Monotonic nanoseconds, as the caller counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

/// What the caller's clocks say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Monotonic time, for deadlines.
    pub monotonic: Nanos,
    /// Wall time in nanoseconds since the epoch, for file times.
    pub wall_ns: u64,
}

/// Position in this reactor's log: an output that depends on it waits until it is durable.
/// `Lsn(0)` depends on nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

/// A host session at this reactor; a small index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionIndex(pub u32);

/// How a core is set up.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Which reactor this is.
    pub reactor: u16,
    /// How many there are.
    pub reactors: u16,
    /// The reactor of each shard.
    pub shard_map: [u8; gannet_proto::limits::SHARDS],
    /// Run of the metadata server.
    pub term: Term,
    /// Blocks of a file that lie on one data server before the next takes over.
    pub stripe_blocks: u32,
    /// Most data servers over which one file is striped.
    pub stripe_width: u8,
    /// Most grants outstanding at one data server.
    pub grants_max: u32,
    /// Slots per shard of a session.
    pub slots: u16,
    /// How long a request may wait for an absent data server before it fails, nanoseconds.
    pub target_wait_ns: u64,
}

/// A message between the cores of one metadata server. Opaque to the shell, which carries it.
pub use peer::PeerMessage;

/// Takes what leaves a core.
pub trait Sink {
    /// Appends a record to the log and returns its position.
    fn record(&mut self, record: &[u8]) -> Lsn;

    /// Sends a reply to a host: a message of [`gannet_proto::operations`] and its tail.
    fn reply<T: gannet_proto::packet::Message>(
        &mut self,
        session: SessionIndex,
        after: Lsn,
        reply: &T,
        tail: &[&[u8]],
    );

    /// Sends a grant to a data server.
    fn grant(&mut self, target: TargetId, after: Lsn, grant: &Grant);

    /// Asks a data server to end a grant early; its notice still comes.
    fn revoke(&mut self, target: TargetId, number: GrantNumber);

    /// Sends a message to another reactor's core.
    fn peer(&mut self, reactor: u16, after: Lsn, message: PeerMessage);

    /// Reactor 0 only: a data server asked for with [`Core::enroll`] has its numbers.
    fn enrolled(&mut self, after: Lsn, enrollment: Enrollment);
}

/// The numbers of a data server and its stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// The data server's name.
    pub uuid: [u8; 16],
    /// Its number.
    pub target: TargetId,
    /// Its stores' numbers, in the order of its hello.
    pub stores: Vec<StoreId>,
}

mod access;
mod apply;
mod attributes;
mod buffer;
pub mod check;
mod conflict;
mod coordinator;
mod counters;
mod crossshard;
mod defects;
mod directory;
mod enrollment;
mod extents;
mod grants;
mod held;
mod holds;
mod identities;
mod invariants;
mod links;
mod lookup;
mod name_operations;
mod names;
mod namespace;
mod nodes;
mod opens;
mod operations;
mod peer;
mod plain;
mod read;
mod record;
mod recovery;
mod registrations;
mod rename;
mod rename_checks;
mod replay;
mod reply;
mod sessions;
mod space;
mod staging;
mod targets;
mod transactions;
mod waiting;
mod write;
mod xattrs;
mod zone;
mod zonekeeper;
mod zones;

pub use conflict::{BlockConflict, ConflictingFile};
pub use counters::CoreCounters;
pub use record::{RECORD_BYTES_MAX, RecordError, RecordHeader};

/// What [`Core::space`] tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Blocks of all stores of data servers that are up.
    pub blocks_total: u64,
    /// Blocks mapped, staged or pinned by this reactor's shards.
    pub blocks_used: u64,
    /// Inodes of this reactor's shards.
    pub inodes: u64,
    /// Data servers that are up.
    pub targets: u32,
}

/// What a core knows of one of its shards, besides inodes and space.
#[derive(Clone, Copy, Debug, Default)]
struct ShardState {
    /// Highest inode number given out.
    last_number: u64,
    /// Record of the last removal of an inode: what is absent depends on it.
    removed: Lsn,
}

/// The state of one metadata-server reactor.
///
/// Owned by one thread. A crash loses it; [`Core::replay`] rebuilds from the log what is durable.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    /// Most grants of one request.
    parts_max: usize,
    shards: [ShardState; SHARDS],
    nodes: Nodes,
    sessions: Sessions,
    operations: Operations,
    holds: Holds,
    held: HeldNames,
    targets: Targets,
    space: SpaceMap,
    /// Reactor 0 only.
    zones: ZoneTable,
    /// Reactor 0 only: serialises moves of directories.
    rename_lock: RenameLock,
    transactions: Transactions,
    recovery: Recovery,
    waiting: Waiting,
    opens: Opens,
    xattrs: Xattrs,
    /// Messages to this core itself.
    local: VecDeque<PeerMessage>,
    /// Number of the last commit that mapped or unmapped blocks.
    clock: u64,
    last_operation: u64,
    last_lsn: Lsn,
    replaying: bool,
    ready: bool,
    /// The zones of this reactor, if it was told of them before its log was replayed.
    told_zones: Option<Vec<(StoreId, u32, ShardId)>>,
    /// Files that map blocks which are not their own.
    block_conflict: Option<Box<BlockConflict>>,
    defects: Defects,
    counters: CoreCounters,
    scratch: Scratch,
    #[cfg(test)]
    plain_way: plain::PlainWay,
}

/// Buffers that are used again, so that requests do not allocate.
#[derive(Debug, Default)]
struct Scratch {
    record: Vec<u8>,
    extents: Vec<u8>,
    parts: Vec<read::Part>,
    entries: Vec<u8>,
    operations: Vec<OperationId>,
    windows: Vec<Window>,
}

impl Core {
    /// An empty core. [`Core::replay`] and [`Core::finish_replay`] follow.
    #[must_use]
    pub fn new(config: CoreConfig) -> Core {
        let grants_max = config.grants_max.clamp(PARTS_MAX as u32, GRANTS_MAX as u32);
        let config = CoreConfig {
            grants_max,
            slots: config.slots.clamp(1, SLOTS_MAX as u16),
            stripe_blocks: config.stripe_blocks.max(1),
            stripe_width: config.stripe_width.clamp(1, TARGETS_PER_FILE_MAX as u8),
            ..config
        };
        Core {
            parts_max: PARTS_MAX,
            config,
            shards: [ShardState::default(); SHARDS],
            nodes: Nodes::default(),
            sessions: Sessions::default(),
            operations: Operations::default(),
            holds: Holds::default(),
            held: HeldNames::default(),
            targets: Targets::default(),
            space: SpaceMap::new(),
            zones: ZoneTable::default(),
            rename_lock: RenameLock::default(),
            transactions: Transactions::default(),
            recovery: Recovery::default(),
            waiting: Waiting::default(),
            opens: Opens::default(),
            xattrs: Xattrs::default(),
            local: VecDeque::new(),
            clock: 0,
            last_operation: 0,
            last_lsn: Lsn(0),
            replaying: true,
            ready: false,
            told_zones: None,
            block_conflict: None,
            defects: Defects::default(),
            counters: CoreCounters::default(),
            scratch: Scratch::default(),
            #[cfg(test)]
            plain_way: plain::PlainWay::default(),
        }
    }

    /// Sets the run that grants belong to, once all logs are read. Before [`Core::finish_replay`].
    pub fn begin_term(&mut self, term: Term) {
        self.config.term = term;
    }

    /// Whether requests are served: the log is replayed and the data servers are known.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Space and files as this reactor knows them.
    #[must_use]
    pub fn space(&self) -> Space {
        let up = self.targets.stores().filter(|(_, store)| store.up);
        Space {
            blocks_total: up.map(|(_, store)| store.blocks).sum(),
            blocks_used: self.space.used(),
            inodes: self.nodes.len() as u64,
            targets: self.targets.iter().filter(|(_, target)| target.up).count() as u32,
        }
    }

    /// The data servers that are up.
    pub fn targets(&self) -> impl Iterator<Item = TargetId> {
        self.targets.iter().filter(|(_, target)| target.up).map(|(id, _)| id)
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> CoreCounters {
        CoreCounters {
            live_operations: self.operations.live() as u64,
            live_grants: self.targets.iter().map(|(_, t)| u64::from(t.outstanding())).sum(),
            sessions: self.sessions.iter().count() as u64,
            inodes: self.nodes.len() as u64,
            ..self.counters
        }
    }

    /// A host's channel opened. `true`: the session was known already, its slots continue.
    ///
    /// # Errors
    /// `ACCESS` if the session belongs to another instance, `AGAIN` if there are too many sessions,
    /// `INVALID` for session 0.
    pub fn session_open(
        &mut self,
        _now: Now,
        session: SessionId,
        instance: u64,
    ) -> Result<(SessionIndex, bool), Status> {
        self.sessions.open(session, instance)
    }

    /// The sessions that the core knows, those of the log included: a shell that restarted gives
    /// each of them a lease, within which its host may come back.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionIndex, SessionId)> {
        self.sessions.iter().map(|(index, session)| (index, session.id))
    }

    /// The channel broke. Operations go on, and their replies are dropped; the host may resume.
    pub fn session_disconnected(&mut self, _now: Now, session: SessionIndex) {
        if let Some(session) = self.sessions.find(session) {
            session.connected = false;
        }
    }

    /// The session is over: its operations take no further effect, and what is kept of it is
    /// forgotten.
    pub fn session_end(&mut self, now: Now, session: SessionIndex, sink: &mut impl Sink) {
        let Some(known) = self.sessions.find(session) else { return };
        let (id, durable) = (known.id.0, known.durable);
        let of_session = self.operations.iter().filter(|(_, op)| op.session == session);
        let operations: Vec<OperationId> = of_session.map(|(id, _)| id).collect();
        for operation in operations {
            self.kill(operation, sink);
        }
        self.close_all(session);
        if durable {
            let origin = self.origin_of_core(now, None);
            self.commit(&origin, &Change::SessionEnded { session: id }, sink);
        } else {
            self.sessions.remove(id);
        }
        self.reclaim_complete(now, session, sink);
        self.settle(now, sink);
    }

    /// Notes how a data server names a region of the host's memory. Beyond the bound on
    /// registrations it is not noted, and requests that need it are answered `STALE_SET`.
    pub fn register(&mut self, session: SessionIndex, register: &Register) {
        if !self.sessions.register(session, register) {
            self.counters.registrations_refused += 1;
        }
    }

    /// Forgets a region.
    pub fn unregister(&mut self, session: SessionIndex, region: RegionId) {
        self.sessions.unregister(session, region);
    }

    /// The reactor of a shard.
    fn reactor_of(&self, shard: ShardId) -> u16 {
        self.config.shard_map[usize::from(shard.0)].into()
    }

    /// Whether a shard is this reactor's.
    fn is_ours(&self, shard: ShardId) -> bool {
        self.reactor_of(shard) == self.config.reactor
    }

    /// Whether an inode belongs to a shard of this reactor.
    fn is_local(&self, inode: Inode) -> bool {
        inode.shard().is_some_and(|shard| self.is_ours(shard))
    }

    /// The next operation number: grows over all starts.
    fn next_operation(&mut self) -> u64 {
        self.last_operation += 1;
        self.last_operation
    }

    /// Carries on whatever can go on.
    fn settle(&mut self, now: Now, sink: &mut impl Sink) {
        loop {
            if let Some(id) = self.waiting.runnable.pop_front() {
                self.run(now, id, sink);
            } else if let Some(message) = self.local.pop_front() {
                self.handle(now, self.config.reactor, message, sink);
            } else if let Some(target) = self.waiting.room.pop() {
                self.wake_for_credit(target);
            } else if let Some(inode) = self.opens.take_abandoned() {
                self.drop_orphan(now, inode, sink);
            } else if let Some((shard, store)) = self.space.take_spare() {
                self.return_spare_zones(shard, store, sink);
            } else {
                return;
            }
        }
    }

    /// Sends a message to a core, possibly this one. It leaves when everything that was decided
    /// here so far is durable.
    fn send(&mut self, reactor: u16, message: PeerMessage, sink: &mut impl Sink) {
        if reactor == self.config.reactor {
            self.local.push_back(message);
        } else {
            sink.peer(reactor, self.last_lsn, message);
        }
    }
}

#[cfg(test)]
mod tests;
