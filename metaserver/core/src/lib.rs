//! The metadata state machine: virtual shards, namespace, extents, allocation, requests.
//!
//! [`Core`] is the state of one metadata-server reactor. It does no I/O, reads no clock and starts
//! no thread: it takes time and inputs, changes state only by records that it also gives to the
//! log, and hands what shall leave to a [`Sink`], each output with the log position that must be
//! durable before it may leave (rule H14). Everything in it is deterministic.

#![forbid(unsafe_code)]

use gannet_proto::control::{Grant, StoreInfo};
use gannet_proto::{Epoch, GrantNumber, SessionId, ShardId, StoreId, TargetId, Term};

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
