//! RDMA semantics behind one trait, and the providers of it.
//!
//! [`Fabric`] is the smallest set that reliable-connected RDMA gives: connections, messages with
//! credits, one-sided reads and writes of memory that the peer registered, completions in batches.
//! A value belongs to one reactor. Nothing above the trait may assume that remote memory is
//! passive: with some providers the peer has to poll for a one-sided operation to progress.
//!
//! What every provider guarantees, and the conformance suite checks:
//! - on one connection, operations take effect in the order of posting: a message posted after a
//!   write arrives after the written bytes are visible;
//! - an operation owns its memory until its completion is polled; a refused post gives it back;
//! - every posted read and write completes exactly once, if need be with an error when the
//!   connection breaks; after [`Event::Disconnected`] of a connection nothing more of it completes;
//! - a key works on the connection it was registered on only, inside its range and rights only;
//!   an operation that violates this moves no byte, and ends the connection: whatever was posted
//!   after it has no effect, so a message posted behind a write arrives only if the write did. (An
//!   operation of no bytes is not checked.);
//! - a full queue refuses and nothing is lost.

pub mod address;
pub mod any;
pub mod arena;
mod credits;
pub mod handshakes;
mod names;
pub mod route;
pub mod shm;
mod slots;
pub mod tcp;
mod timer;
mod trust;
pub mod verbs;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

pub use address::{Address, AddressError};

/// Longest message of the small class, bytes.
pub const SMALL_MESSAGE_BYTES: usize = 256;
/// Longest message of the large class, bytes; the longest message at all.
pub const LARGE_MESSAGE_BYTES: usize = 8192;

/// A connection of one fabric value. Never reused within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    /// Position in the provider's table; small, so that users can index tables by it.
    pub index: u32,
    /// Tells successive users of one position apart.
    pub generation: u32,
}

/// Names a registered range to the peer, as an rkey does. Unique over all live registrations and
/// windows of the registering provider; connections of an [`any::AnyFabric`] that are of different
/// providers may have the same key, each for itself. Where the end of a connection takes access
/// away (`Capabilities::disconnect_revokes_access`), a key may come back as soon as `poll` has
/// handed out its [`Event::Deregistered`], in the same batch even; elsewhere not as long as its
/// connection lives, since a peer that was told of it may come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

/// What a peer may do with a registered range. Nothing else of it is checked by the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The peer may read it.
    pub remote_read: bool,
    /// The peer may write it.
    pub remote_write: bool,
}

impl Access {
    /// Both directions.
    pub const READ_WRITE: Access = Access { remote_read: true, remote_write: true };
    /// The peer may do nothing, but windows can be opened on the range ([`Fabric::open_window`]).
    pub const WINDOWS_ONLY: Access = Access { remote_read: false, remote_write: false };
}

/// A registered range, as the peer has to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Address of the range's first byte.
    pub address: u64,
    /// Key of the range.
    pub key: Key,
}

/// A range of the peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlice {
    /// Address of the first byte: the registration's address plus an offset.
    pub address: u64,
    /// Key of the registration.
    pub key: Key,
    /// Length in bytes.
    pub len_bytes: u32,
}

/// A one-sided operation: `remote.len_bytes` bytes between `memory[offset..]` and `remote`.
#[derive(Debug)]
pub struct Transfer {
    /// Returned with the completion.
    pub token: u64,
    /// Local memory, owned by the operation until its completion.
    pub memory: Memory,
    /// Where in `memory` the local range starts, bytes.
    pub offset: usize,
    /// The peer's range.
    pub remote: RemoteSlice,
}

/// Why a post was refused. The operation did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// No credit or no queue entry is free; try again after the next poll.
    #[error("the queue of the connection is full")]
    Full,
    /// The connection is not established (any more).
    #[error("the connection is not established")]
    NotConnected,
    /// A message is longer than its class, or a transfer leaves its local memory.
    #[error("the message or range is longer than the limit")]
    TooLong,
}

/// Why a window was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Too many windows are open, or the queue has no room; try again after the next poll.
    #[error("no window is free at present")]
    Full,
    /// The connection is not established (any more).
    #[error("the connection is not established")]
    NotConnected,
    /// There is no such registration, it is not for windows ([`Access::WINDOWS_ONLY`]), or the
    /// range leaves it.
    #[error("the window leaves its registration")]
    Range,
    /// The provider has no windows: [`Capabilities::memory_windows`].
    #[error("the fabric has no memory windows")]
    Unsupported,
}

/// A refused transfer, given back.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: PostError,
    /// The operation with its memory.
    pub transfer: Transfer,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferStatus {
    /// All bytes moved. For a write: they are placed in the peer's memory.
    Done,
    /// The key, range or rights were refused; no byte moved, unless the key was taken back while the
    /// transfer was under way. The connection ends.
    AccessRefused,
    /// The connection broke; how many bytes moved is unknown.
    ConnectionLost,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// This side asked for it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it in order.
    #[error("closed by the peer")]
    Remote,
    /// The peer died or became unreachable.
    #[error("the peer is gone")]
    PeerLost,
    /// Nobody listens at the address.
    #[error("nobody listens at the address")]
    Unreachable,
    /// The peer did not speak this provider's protocol, or broke its rules.
    #[error("the peer violated the protocol")]
    Protocol,
    /// The peer may not connect (other user, not on the list of trusted hosts).
    #[error("the peer is not trusted")]
    NotTrusted,
    /// A transfer of this side was refused: see [`TransferStatus::AccessRefused`].
    #[error("the peer's memory protection refused a transfer")]
    TransferRefused,
}

/// What is known about a peer without asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A process on this machine, by its credentials.
    Local {
        /// Process id.
        pid: u32,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// A peer known by its network address.
    Network(String),
}

impl std::fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PeerIdentity::Local { pid, uid, gid } => {
                write!(f, "process {pid}, user {uid}, group {gid}")
            }
            PeerIdentity::Network(address) => f.write_str(address),
        }
    }
}

/// One completion or notice. Messages lie in the [`Events`] that returned the event.
#[derive(Debug)]
pub enum Event {
    /// A peer connected to a listening address; the connection is usable.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// Who it is.
        peer: PeerIdentity,
    },
    /// A connection asked for with [`Fabric::connect`] is usable.
    Connected {
        /// The connection.
        connection: ConnectionId,
    },
    /// A connection ended, or could not be made. The last event of the connection; all its
    /// transfers have completed before.
    Disconnected {
        /// The connection.
        connection: ConnectionId,
        /// Why.
        reason: DisconnectReason,
    },
    /// A message arrived; its receive entry is already posted again.
    Message {
        /// Where from.
        connection: ConnectionId,
        /// The bytes: see [`Events::message`].
        bytes: MessageRef,
    },
    /// A registration is usable by the peer.
    Registered {
        /// On which connection.
        connection: ConnectionId,
        /// Which key.
        key: Key,
    },
    /// A registration is gone: nothing reaches the memory through it any more.
    Deregistered {
        /// On which connection.
        connection: ConnectionId,
        /// Which key.
        key: Key,
    },
    /// A read or write completed; its memory is back.
    Transferred {
        /// On which connection.
        connection: ConnectionId,
        /// The transfer's token.
        token: u64,
        /// The transfer's memory.
        memory: Memory,
        /// How it ended.
        status: TransferStatus,
    },
}

/// Where in an [`Events`] a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef {
    start: u32,
    len: u32,
}

/// A reusable batch of events with the messages' bytes. Polling appends; the user takes events out
/// with [`Events::pop`] and reads messages, then clears.
#[derive(Debug, Default)]
pub struct Events {
    list: std::collections::VecDeque<Event>,
    /// Message bytes; what lies behind `used` is left from earlier batches, so that it need not be
    /// zeroed before it is filled.
    bytes: Vec<u8>,
    used: usize,
}

impl Events {
    /// A batch with room for `events` events and `bytes` message bytes before it allocates.
    #[must_use]
    pub fn with_capacity(events: usize, bytes: usize) -> Events {
        Events {
            list: std::collections::VecDeque::with_capacity(events),
            bytes: vec![0; bytes],
            used: 0,
        }
    }

    /// For providers: appends an event that is not a message.
    pub fn push(&mut self, event: Event) {
        self.list.push_back(event);
    }

    /// For providers: appends a message of `len_bytes` that `fill` writes, all of it.
    pub fn push_message(
        &mut self,
        connection: ConnectionId,
        len_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let start = self.used;
        self.used += len_bytes;
        if self.bytes.len() < self.used {
            self.bytes.resize(self.used, 0);
        }
        fill(&mut self.bytes[start..self.used]);
        let bytes = MessageRef { start: start as u32, len: len_bytes as u32 };
        self.list.push_back(Event::Message { connection, bytes });
    }

    /// Takes the oldest event.
    pub fn pop(&mut self) -> Option<Event> {
        self.list.pop_front()
    }

    /// The bytes of a message of this batch.
    #[must_use]
    pub fn message(&self, message: MessageRef) -> &[u8] {
        &self.bytes[message.start as usize..(message.start + message.len) as usize]
    }

    /// Number of events not yet taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether no event is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Calls `rewrite` with the connection of each event from position `start` on.
    fn rewrite_connections(
        &mut self,
        start: usize,
        mut rewrite: impl FnMut(ConnectionId) -> ConnectionId,
    ) {
        for event in self.list.range_mut(start..) {
            let (Event::Accepted { connection, .. }
            | Event::Connected { connection }
            | Event::Disconnected { connection, .. }
            | Event::Message { connection, .. }
            | Event::Registered { connection, .. }
            | Event::Deregistered { connection, .. }
            | Event::Transferred { connection, .. }) = event;
            *connection = rewrite(*connection);
        }
    }

    /// Forgets all events and messages, keeping the memory.
    pub fn clear(&mut self) {
        self.list.clear();
        self.used = 0;
    }
}

/// Properties in which providers differ and which users may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`Fabric::map`] can hand out local views of remote memory.
    pub maps_remote_memory: bool,
    /// Ending a connection takes the peer's access to memory registered on it away at once. Where
    /// it does not, the owner replaces the pages ([`Mapping::replace_pages`]).
    pub disconnect_revokes_access: bool,
    /// [`Fabric::open_window`] works.
    pub memory_windows: bool,
    /// What is posted reaches the peer piece by piece, so that a message between two writes arrives
    /// while the second is still on its way.
    pub streams: bool,
}

impl Capabilities {
    /// Nothing of it.
    pub const NONE: Capabilities = Capabilities {
        maps_remote_memory: false,
        disconnect_revokes_access: false,
        memory_windows: false,
        streams: false,
    };
}

/// What can go wrong when a connection, a listener or a registration is set up.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried, with the name of the thing.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The address is of another fabric, or cannot be used for this.
    #[error("{0}")]
    Address(String),
    /// A bound is reached.
    #[error("{what}: at most {limit}")]
    Limit {
        /// Of what there are too many.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The connection is not established (any more).
    #[error("the connection is not established")]
    NotConnected,
    /// The memory cannot be shared over this fabric.
    #[error("the memory cannot be registered: {0}")]
    Memory(&'static str),
    /// The device needs the memory pinned, and this process may not pin that much.
    #[error(
        "{len_bytes} bytes of memory cannot be pinned for the device: the limit of locked memory \
         (RLIMIT_MEMLOCK) of this process is {limit_bytes} bytes; raise it with `ulimit -l unlimited`, \
         LimitMEMLOCK=infinity in the unit of a service, or memlock in /etc/security/limits.conf"
    )]
    LockedMemory {
        /// Length of the memory.
        len_bytes: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// This build or this machine lacks what the fabric needs; the text names the remedy.
    #[error("{0}")]
    Missing(String),
}

/// An RDMA-like fabric, seen by one reactor.
pub trait Fabric {
    /// What the provider of this connection can do. Of a connection that has ended it may say what
    /// it said before, or that it can do nothing.
    fn capabilities(&self, connection: ConnectionId) -> Capabilities;

    /// The provider of this connection, as addresses write it: `shm`, `rdma`, `tcp`. For people.
    fn scheme(&self, _connection: ConnectionId) -> &'static str {
        "other"
    }

    /// Whether the provider of this connection has few places left for newcomers. Connections that
    /// are not introduced yet, and make room for newcomers by themselves, do not count.
    fn is_short_of_places(&self, _connection: ConnectionId) -> bool {
        false
    }

    /// Accepts connections at `at` from now on.
    ///
    /// # Errors
    /// `System` when the address is taken or not permitted, `Address` when it is not of this kind.
    fn listen(&mut self, at: &Address) -> Result<(), FabricError>;

    /// Starts to connect. [`Event::Connected`] or [`Event::Disconnected`] follows.
    ///
    /// # Errors
    /// `Limit` when the table of connections is full, `Address` when it is not of this kind.
    /// That nobody listens is told by [`Event::Disconnected`].
    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError>;

    /// Ends a connection; [`Event::Disconnected`] follows once its transfers have completed.
    /// Messages already posted are still delivered if the peer lives. No-op when it has ended.
    fn disconnect(&mut self, connection: ConnectionId);

    /// Who is at the other end; `None` when the connection has ended.
    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity>;

    /// Makes memory of this process ready to be the local side of transfers. Providers do it at
    /// the first transfer otherwise, which then takes long.
    ///
    /// # Errors
    /// `LockedMemory` or `System` when the device cannot have it.
    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError>;

    /// Lets the peer of `connection` reach `memory`. [`Event::Registered`] follows when the peer
    /// can; the key must not be used before. Ends with the connection. For the side that connected:
    /// whoever accepts connections need not be able to.
    ///
    /// # Errors
    /// `Memory` when it is not shareable, `LockedMemory`, `Limit` when too many ranges are
    /// registered, `NotConnected`.
    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError>;

    /// Opens a window: a key of its own for `len_bytes` bytes from `offset` of the registration
    /// `base`, with rights of its own. [`Event::Registered`] follows when the peer can use it;
    /// [`Fabric::deregister`] closes it, and so does the end of `base` or of the connection.
    ///
    /// # Errors
    /// `Full`, `NotConnected`, `Range`, `Unsupported`.
    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError>;

    /// Takes a registration back, or closes a window. [`Event::Deregistered`] (or the connection's
    /// end) follows when nothing can reach the memory through it and no operation of the peer on it
    /// is under way.
    fn deregister(&mut self, connection: ConnectionId, key: Key);

    /// Posts a message. The bytes are copied; the message leaves at the next [`Fabric::flush`].
    ///
    /// # Errors
    /// `Full` without a credit of the message's size class, `TooLong` above
    /// [`LARGE_MESSAGE_BYTES`], `NotConnected`.
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError>;

    /// Posts a write of local bytes to the peer's memory.
    ///
    /// # Errors
    /// `Full`, `NotConnected`, `TooLong`, each with the transfer. A bad key or range is no refusal:
    /// it completes with `AccessRefused`.
    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused>;

    /// Posts a read of the peer's memory into local memory. Errors as for `write`.
    ///
    /// # Errors
    /// As for [`Fabric::write`].
    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused>;

    /// A local view of the peer's memory, for block I/O straight into or out of it; `None` when
    /// the provider has none or the key, range or right is refused. While the view lives, the
    /// peer's deregistration waits.
    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice>;

    /// Makes everything posted visible to the peers and wakes those that sleep: one doorbell per
    /// connection. Call once per turn, after all posts: what a call completed at once, as a connection
    /// to where nobody listens, keeps an armed caller awake from then on.
    fn flush(&mut self);

    /// Appends what happened since the last call. Bounded work; never blocks.
    fn poll(&mut self, now: Time, events: &mut Events);

    /// Asks the peers to signal [`Fabric::wake_descriptors`] from now on. The caller polls once
    /// more before it sleeps; whoever has a refused post to repeat does that behind this poll, which
    /// may have made room without an event.
    fn arm(&mut self);

    /// Takes back `arm`.
    fn disarm(&mut self);

    /// Calls `visit` with each descriptor that becomes readable when there is something to poll.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>));
}
