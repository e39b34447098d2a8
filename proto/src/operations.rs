//! The operations channel: requests of a host to a metadata-server reactor, and their replies.
//!
//! Only the host initiates. A request carries its shard, slot, sequence and attempt
//! ([`RequestHeader`]); the reply repeats them. [`Register`], [`Unregister`] and [`Cancel`] have no
//! reply of their own.

use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::ids::Handle;
use crate::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, SHARDS, SLOTS_MAX};
use crate::packet::{DecodeError, Message, message};
use crate::status::Status;

message! {
    /// Follows [`crate::handshake::Hello`] from a host: opens or resumes its session at a reactor.
    0x10, 40, HostHello {
        /// The session: random, chosen by the host, the same at all reactors.
        session: U64,
        /// The host's instance: random, new at each start of the host program.
        instance: U64,
        /// The host, for people and for ending the sessions of its earlier instances; 0 if it
        /// does not want that.
        host: U64,
        /// Slots per shard that the host would like.
        slots: U16,
        /// User in whose name the host asks, unless the fabric knows it to be another; 0 for the
        /// superuser.
        uid: U32,
        /// Group of that user.
        gid: U32,
        /// Reserved, 0.
        reserved: [u8; 6],
    }
}

message! {
    /// Answers [`HostHello`]. Tail: `shards` bytes, the reactor of each shard; then for each
    /// reactor a length in two bytes and its first address; then `further_addresses`, each the
    /// number of its reactor in two bytes, a length in two bytes and the address.
    0x11, 80, HostWelcome {
        /// Protocol version of the channel from now on.
        version: U16,
        /// Number of shards, at most 64.
        shards: U16,
        /// Number of reactors.
        reactors: U16,
        /// Which of them answers.
        reactor: U16,
        /// Features in use on the channel.
        features: U64,
        /// The metadata server's run.
        term: U64,
        /// Names the file system for good.
        file_system_uuid: [u8; 16],
        /// Slots per shard that the host may use.
        slots: U16,
        /// Whether the session was known already: slots continue where they were.
        resumed: U16,
        /// Most bytes of a READ or WRITE.
        request_bytes_max: U32,
        /// Unit of allocation, bytes.
        block_bytes: U32,
        /// How long the session outlives its connection, milliseconds.
        lease_ms: U32,
        /// Version of the shard map.
        map_version: U64,
        /// Number of requests that may be outstanding on this channel over all shards.
        requests_max: U32,
        /// Number of addresses beyond the first one of each reactor; a reactor has at most 8.
        further_addresses: U16,
        /// Reserved, 0.
        reserved: [u8; 10],
    }
}

/// Names one request of a session.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// The shard asked; [`SESSION_SHARD`] for requests to the session itself.
    pub shard: U16,
    /// Slot of the session at that shard.
    pub slot: U16,
    /// Counts from 1; a host sends attempt a + 1 only after it cut attempt a off from its memory,
    /// or was answered RETRY.
    pub attempt: U32,
    /// Sequence of the slot, counts from 1.
    pub sequence: U64,
}
const _: () = assert!(size_of::<RequestHeader>() == 16);

/// Stands for the session in [`RequestHeader::shard`]: such requests are idempotent and have no
/// slots; `sequence` is the host's own tag.
pub const SESSION_SHARD: u16 = u16::MAX;

/// Starts every reply.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct ReplyHeader {
    /// The request's header.
    pub request: RequestHeader,
    /// A [`Status`].
    pub status: U32,
    /// Reserved, 0.
    pub reserved: U32,
}
const _: () = assert!(size_of::<ReplyHeader>() == 24);

impl RequestHeader {
    /// Checks shard, slot, sequence and attempt against the bounds of the protocol.
    ///
    /// # Errors
    /// `Field`.
    #[inline]
    pub fn check<T: Message>(&self) -> Result<(), DecodeError> {
        let field = |field, value| Err(DecodeError::Field { message: T::NAME, field, value });
        if self.shard.get() != SESSION_SHARD {
            if usize::from(self.shard.get()) >= SHARDS {
                return field("shard", self.shard.get().into());
            }
            if usize::from(self.slot.get()) >= SLOTS_MAX {
                return field("slot", self.slot.get().into());
            }
        }
        if self.sequence.get() == 0 {
            return field("sequence", 0);
        }
        if self.attempt.get() == 0 {
            return field("attempt", 0);
        }
        Ok(())
    }

    /// The reply header with a status.
    #[must_use]
    pub fn reply(self, status: Status) -> ReplyHeader {
        ReplyHeader { request: self, status: U32::new(status.0), reserved: U32::ZERO }
    }
}

/// A range of a host's registered memory; the request's length is its length.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct BufferRef {
    /// The region, see [`Register`].
    pub region: U32,
    /// Reserved, 0.
    pub reserved: U32,
    /// Where in the region, bytes.
    pub offset: U64,
}

/// How one data server names the memory of one READ or WRITE: a memory window that holds exactly
/// the request's `length` bytes. In the tail of a request with [`io_flags::WINDOWS`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct Window {
    /// The data server.
    pub target: U32,
    /// Key of the window, for that data server.
    pub key: U32,
    /// Epoch of the data session that the key belongs to.
    pub epoch: U64,
    /// Address of the window's first byte, for that data server.
    pub address: U64,
}
const _: () = assert!(size_of::<Window>() == 24);

/// Operations of a [`NameRequest`].
pub mod name_operation {
    /// Resolves `name`, a path relative to `parent` with any number of components, as far as it
    /// stays on the shard.
    pub const LOOKUP: u16 = 1;
    /// Makes a regular file, or opens the existing one unless [`super::name_flags::EXCLUSIVE`].
    pub const CREATE: u16 = 2;
    /// Makes a directory.
    pub const MKDIR: u16 = 3;
    /// Removes a name of a file.
    pub const UNLINK: u16 = 4;
    /// Removes an empty directory.
    pub const RMDIR: u16 = 5;
    /// Moves `parent`/`name` to `to_parent`/`to_name`, or with [`super::name_flags::EXCHANGE`] lets
    /// the two names change places.
    pub const RENAME: u16 = 6;
    /// Reads a directory's entries after `name` (from the first if it is empty), in byte order.
    /// Answered by [`DirectoryReply`].
    pub const READDIR: u16 = 7;
    /// Gives the inode `to_parent`, which is no directory, the further name `parent`/`name`.
    pub const LINK: u16 = 8;
}

/// Flags of a [`NameRequest`].
pub mod name_flags {
    /// CREATE fails with `EXISTS` if the name is taken.
    pub const EXCLUSIVE: u32 = 1;
    /// RENAME fails with `EXISTS` if the new name is taken.
    pub const NO_REPLACE: u32 = 2;
    /// RENAME: both names exist and change places. Not together with [`NO_REPLACE`].
    pub const EXCHANGE: u32 = 4;
    /// CREATE opens the file for reading too, under the number `open`: what is made whatever its mode,
    /// what exists as `OPEN_READ` would. An answer without a mode names a file of another shard, which
    /// is not opened.
    pub const OPEN_READ: u32 = 8;
    /// The same for writing. With both the file is opened for both.
    pub const OPEN_WRITE: u32 = 16;
    /// Flags that this build knows.
    pub const KNOWN: u32 = 31;
}

message! {
    /// A namespace operation, by parent and name. Tail: `name_bytes` of name or path, then
    /// `to_name_bytes`. Answered by [`EntryReply`], READDIR by [`DirectoryReply`].
    0x20, 80, NameRequest {
        /// Which request.
        header: RequestHeader,
        /// The directory.
        parent: Handle,
        /// The directory that RENAME moves into; the inode that LINK names.
        to_parent: Handle,
        /// See [`name_operation`].
        operation: U16,
        /// Length of the first name.
        name_bytes: U16,
        /// Length of the second name.
        to_name_bytes: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
        /// See [`name_flags`].
        flags: U32,
        /// Permission bits of what is made.
        mode: U32,
        /// Owner of what the superuser makes; what others make is theirs.
        uid: U32,
        /// Group of what the superuser makes, unless the directory passes on its own.
        gid: U32,
        /// READDIR: most bytes of entries that the reply shall hold.
        reply_bytes_max: U32,
        /// CREATE with [`name_flags::OPEN_READ`] or [`name_flags::OPEN_WRITE`]: number of the open.
        open: U32,
    }
}

/// Bits of [`SetAttributes::mask`].
pub mod attribute_mask {
    /// Set the permission bits.
    pub const MODE: u32 = 1;
    /// Set the owner.
    pub const UID: u32 = 2;
    /// Set the group.
    pub const GID: u32 = 4;
    /// Set the access time. Nothing else changes it: a read does not.
    pub const ATIME: u32 = 8;
    /// Set the modification time.
    pub const MTIME: u32 = 16;
    /// Set the size: truncate or extend with zeros.
    pub const SIZE: u32 = 32;
    /// Set the access time to the server's clock.
    pub const ATIME_NOW: u32 = 64;
    /// Set the modification time to the server's clock. With `ATIME_NOW` whoever may write to the
    /// inode may do so; otherwise times are set by the owner.
    pub const MTIME_NOW: u32 = 128;
    /// Bits that this build knows.
    pub const KNOWN: u32 = 255;
}

/// Operations of an [`InodeRequest`].
pub mod inode_operation {
    /// Attributes of an inode.
    pub const STAT: u16 = 1;
    /// Attributes and the set of data servers, for I/O.
    pub const OPEN: u16 = 2;
    /// Everything acknowledged on the file is durable when this is answered.
    pub const FSYNC: u16 = 3;
    /// Opens an inode for reading, under a number of the host's. An open file stays when its last
    /// name goes, and the open grants what it was made for, whatever becomes of the mode.
    pub const OPEN_READ: u16 = 4;
    /// Opens it for writing.
    pub const OPEN_WRITE: u16 = 5;
    /// Opens it for both.
    pub const OPEN_READ_WRITE: u16 = 6;
    /// Ends the open with that number. Succeeds if there is none.
    pub const CLOSE: u16 = 7;
}

message! {
    /// An operation on an inode without further arguments. Answered by [`EntryReply`].
    0x21, 40, InodeRequest {
        /// Which request.
        header: RequestHeader,
        /// The inode.
        handle: Handle,
        /// See [`inode_operation`].
        operation: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
        /// Number of the open that is made or ended; not looked at otherwise.
        open: U32,
    }
}

message! {
    /// Changes attributes, among them the size. Answered by [`EntryReply`].
    0x22, 80, SetAttributes {
        /// Which request.
        header: RequestHeader,
        /// The inode.
        handle: Handle,
        /// See [`attribute_mask`].
        mask: U32,
        /// Permission bits.
        mode: U32,
        /// Owner.
        uid: U32,
        /// Group.
        gid: U32,
        /// Access time, nanoseconds since the epoch.
        atime_ns: I64,
        /// Modification time, nanoseconds since the epoch.
        mtime_ns: I64,
        /// Size, bytes.
        size: U64,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
        /// Reserved, 0.
        reserved: [u8; 6],
    }
}

/// Flags of [`Read`] and [`Write`].
pub mod io_flags {
    /// The metadata server answers after the data servers confirmed (`completion = "metaserver"`);
    /// without it the data servers' arrival notices complete a read.
    pub const COMPLETE_BY_METASERVER: u16 = 1;
    /// WRITE goes to the end of the file, wherever that is when its turn comes.
    pub const APPEND: u16 = 2;
    /// The buffer is named by the memory windows in the tail, one per data server, rather than by
    /// region and offset. Feature [`crate::handshake::features::MEMORY_WINDOWS`].
    pub const WINDOWS: u16 = 4;
    /// Flags that this build knows.
    pub const KNOWN: u16 = 7;
}

message! {
    /// Reads `length` bytes at `offset` into the host's memory. Answered by arrival notices of the
    /// data servers, or by [`IoReply`]. Tail: `windows` of [`Window`], which the data servers may
    /// write.
    0x23, 72, Read {
        /// Which request.
        header: RequestHeader,
        /// The file.
        handle: Handle,
        /// Where in the file, bytes.
        offset: U64,
        /// How much, bytes, at least 1.
        length: U32,
        /// See [`io_flags`].
        flags: U16,
        /// Number of buffers: 1.
        buffers: U16,
        /// Where the data shall land; not looked at with [`io_flags::WINDOWS`].
        buffer: BufferRef,
        /// Reserved for a CRC32C, 0.
        crc32c: U32,
        /// Number of windows in the tail, at most 16; 0 without [`io_flags::WINDOWS`].
        windows: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
    }
}

message! {
    /// Writes `length` bytes at `offset` from the host's memory. Answered by [`IoReply`]. Tail:
    /// `windows` of [`Window`], which the data servers may read.
    0x24, 72, Write {
        /// Which request.
        header: RequestHeader,
        /// The file.
        handle: Handle,
        /// Where in the file, bytes; ignored for an append.
        offset: U64,
        /// How much, bytes, at least 1.
        length: U32,
        /// See [`io_flags`].
        flags: U16,
        /// Number of buffers: 1.
        buffers: U16,
        /// Where the data lies; not looked at with [`io_flags::WINDOWS`].
        buffer: BufferRef,
        /// Reserved for a CRC32C of the data, 0.
        crc32c: U32,
        /// Number of windows in the tail, at most 16; 0 without [`io_flags::WINDOWS`].
        windows: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
    }
}

message! {
    /// Asks for a session ticket of a data server. A request to the session. Answered by
    /// [`TargetReply`].
    0x25, 24, ConnectTarget {
        /// Which request.
        header: RequestHeader,
        /// The data server.
        target: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Asks for space and number of files as this reactor knows them. A request to the session.
    /// Answered by [`StatFsReply`].
    0x26, 16, StatFs {
        /// Which request.
        header: RequestHeader,
    }
}

message! {
    /// Asks for the counters of this reactor and, from the reactor asked with `targets` = 1, of all
    /// data servers. A request to the session. Answered by one or more [`StatsReply`].
    0x27, 24, Stats {
        /// Which request.
        header: RequestHeader,
        /// Whether data servers are asked too.
        targets: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Tells the reactor how one data server names a memory region of the host. No reply; a READ
    /// or WRITE that needs a registration which is missing is answered `STALE_SET`.
    0x28, 48, Register {
        /// The region.
        region: U32,
        /// The data server.
        target: U32,
        /// Epoch of the data session that the key belongs to.
        epoch: U64,
        /// Address of the region's first byte, for that data server.
        address: U64,
        /// Length of the region, bytes.
        length: U64,
        /// Key of the region, for that data server.
        key: U32,
        /// Reserved, 0.
        reserved: [u8; 12],
    }
}

message! {
    /// Forgets a region. The host keeps the memory until its requests on it have ended.
    0x29, 8, Unregister {
        /// The region.
        region: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Ends a request early. Its final reply still comes: `CANCELLED` if it took no effect, `RETRY`
    /// if the host has to cut data servers off before it may end it, as a connection broke.
    0x2a, 16, Cancel {
        /// The request, as it was sent.
        header: RequestHeader,
    }
}

message! {
    /// Tells a metadata server that started anew what the host has open there. No reply. A file whose
    /// last name is gone is kept if this comes while the leases of the last run last, and on behalf of
    /// its owner or of whom its mode lets. Later it is not looked at.
    0x51, 24, DeclareOpen {
        /// The inode.
        handle: Handle,
        /// What it was opened for, see [`inode_operation`].
        operation: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
        /// Number of the open.
        open: U32,
    }
}

message! {
    /// Follows the last [`DeclareOpen`] of a new channel: the host has told all that it has open there. No
    /// reply. When every session of the last run has sent this or has ended, files are dropped that have
    /// neither a name nor an open.
    0x5e, 8, ReclaimComplete {
        /// Reserved, 0.
        reserved: U64,
    }
}

/// Attributes of an inode.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct Attributes {
    /// The inode.
    pub handle: Handle,
    /// Length of a file in bytes; number of entries of a directory.
    pub size: U64,
    /// Bytes allocated on data servers.
    pub allocated_bytes: U64,
    /// Access time, nanoseconds since the epoch.
    pub atime_ns: I64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: I64,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: I64,
    /// File type and permission bits, as in `stat(2)`.
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Number of names.
    pub links: U32,
}
const _: () = assert!(size_of::<Attributes>() == 72);

/// File type bits of [`Attributes::mode`], as in `stat(2)`.
pub mod file_type {
    /// Mask of the type bits.
    pub const MASK: u32 = 0o170_000;
    /// A regular file.
    pub const REGULAR: u32 = 0o100_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
}

message! {
    /// Answers namespace and attribute requests. Fields beyond the header are zero on an error.
    /// Tail: `targets` data servers of the file, four bytes each.
    0x40, 112, EntryReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// The inode found, made or changed; of a removed name, zero.
        attributes: Attributes,
        /// LOOKUP: bytes of the path that this shard resolved, slashes included. If less than all,
        /// `attributes` holds only the handle of a directory of another shard, to go on from.
        consumed: U16,
        /// Number of data servers in the tail, at most 16.
        targets: U16,
        /// Reserved, 0.
        reserved: U32,
        /// Reserved, 0.
        reserved2: U64,
    }
}

message! {
    /// Answers READDIR. Tail: `count` entries, each a [`DirectoryEntry`] and its name.
    0x41, 32, DirectoryReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// Number of entries.
        count: U16,
        /// 1 if no entry follows these.
        end: U16,
        /// Reserved, 0.
        reserved: U32,
    }
}

/// One entry of a [`DirectoryReply`]; `name_bytes` of name follow.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct DirectoryEntry {
    /// The inode.
    pub inode: U64,
    /// File type bits.
    pub file_type: U32,
    /// Length of the name.
    pub name_bytes: U16,
    /// Reserved, 0.
    pub reserved: U16,
}
const _: () = assert!(size_of::<DirectoryEntry>() == 16);

message! {
    /// Answers READ (when no arrival notice does) and WRITE. Tail of a `STALE_SET`: `targets` data
    /// servers, four bytes each.
    0x42, 56, IoReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// Where the data begins in the file: of an append, what was chosen.
        offset: U64,
        /// Size of the file after a write.
        size: U64,
        /// Bytes read or written. A read answered here with bytes > 0 without
        /// `COMPLETE_BY_METASERVER` is all zeros, which the host fills in itself.
        length: U32,
        /// 1 if the read ended at the end of the file.
        end_of_file: U16,
        /// Number of data servers in the tail.
        targets: U16,
        /// Reserved for a CRC32C, 0.
        crc32c: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Answers [`ConnectTarget`]. Tail: the first address, then the ticket, then
    /// `further_addresses`, each a length in two bytes and the address. The ticket opens one
    /// session, at any of them.
    0x43, 48, TargetReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// The data server.
        target: U32,
        /// Length of the first address.
        address_bytes: U16,
        /// Length of the ticket, at most 256.
        ticket_bytes: U16,
        /// Epoch of the data session that the ticket opens.
        epoch: U64,
        /// Number of further addresses, at most 7.
        further_addresses: U16,
        /// Reserved, 0.
        reserved: [u8; 6],
    }
}

message! {
    /// Answers [`StatFs`]. Space is counted in blocks.
    0x44, 64, StatFsReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// Blocks of all stores of connected data servers.
        blocks_total: U64,
        /// Blocks mapped or held by this reactor's shards.
        blocks_used: U64,
        /// Inodes of this reactor's shards.
        inodes: U64,
        /// Data servers connected.
        targets: U32,
        /// Bytes of a block.
        block_bytes: U32,
        /// Reserved, 0.
        reserved: U64,
    }
}

message! {
    /// Answers [`Stats`]: one or more per role asked, the last one with `last` = 1. Tail: `count`
    /// counters of [`CounterEntry`] each with its name, then `connections` of [`ConnectionEntry`]
    /// each with its two texts.
    0x45, 40, StatsReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// Whose counters: 0 metadata-server reactor, 1 data server.
        role: U16,
        /// Number of counters.
        count: U16,
        /// Index of the reactor, or id of the data server.
        index: U32,
        /// 1 if no further reply follows.
        last: U16,
        /// Number of connections.
        connections: U16,
        /// Reserved, 0.
        reserved: [u8; 4],
    }
}

/// Kinds of connections of a [`ConnectionEntry`].
pub mod connection_kind {
    /// A host's operations channel at a metadata-server reactor; `id` is the host's session.
    pub const HOST: u16 = 0;
    /// A data server's back control channel at a metadata-server reactor; `id` is the data server.
    pub const TARGET: u16 = 1;
    /// A data session of a host at a data server; `id` is the host's session.
    pub const DATA_SESSION: u16 = 2;
}

/// A connection of whom a [`StatsReply`] is about; `fabric_bytes` of the fabric's name follow, as
/// addresses write it (`shm`, `rdma`, `tcp`), then `peer_bytes` that say who is at the other end.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct ConnectionEntry {
    /// Whose connection, see [`connection_kind`].
    pub id: U64,
    /// See [`connection_kind`].
    pub kind: U16,
    /// Length of the fabric's name.
    pub fabric_bytes: U16,
    /// Length of the text about the peer.
    pub peer_bytes: U16,
    /// Reserved, 0.
    pub reserved: U16,
}
const _: () = assert!(size_of::<ConnectionEntry>() == 16);

/// A counter of a [`StatsReply`]; `name_bytes` of name follow.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct CounterEntry {
    /// The value.
    pub value: U64,
    /// Length of the name.
    pub name_bytes: U16,
    /// Reserved, 0.
    pub reserved: [u8; 6],
}
const _: () = assert!(size_of::<CounterEntry>() == 16);

/// The names of a [`NameRequest`], checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names<'a> {
    /// The name, or a path for LOOKUP.
    pub name: &'a [u8],
    /// The second name of RENAME, else empty.
    pub to_name: &'a [u8],
}

impl NameRequest {
    /// Checks the request's bounds and takes its names from the tail.
    ///
    /// Whether a name is legal (not empty, no slash, not too long) is an answer to the host
    /// ([`check_name`]), not a protocol violation.
    ///
    /// # Errors
    /// `Field`.
    pub fn names<'a>(&self, tail: &'a [u8]) -> Result<Names<'a>, DecodeError> {
        self.header.check::<NameRequest>()?;
        let first = usize::from(self.name_bytes.get());
        let second = usize::from(self.to_name_bytes.get());
        let split = crate::handshake::split_tail::<NameRequest>;
        let (name, rest) = split(tail, "name_bytes", first, PATH_BYTES_MAX)?;
        let (to_name, _) = split(rest, "to_name_bytes", second, PATH_BYTES_MAX)?;
        Ok(Names { name, to_name })
    }
}

/// Whether `name` may name a directory entry.
///
/// # Errors
/// `INVALID` for an empty name, `.`, `..` or one with a slash or NUL; `NAME_TOO_LONG`.
pub fn check_name(name: &[u8]) -> Result<(), Status> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::NAME_TOO_LONG);
    }
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Status::INVALID);
    }
    if name.iter().any(|byte| *byte == b'/' || *byte == 0) {
        return Err(Status::INVALID);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::vec;

    use super::*;

    fn header() -> RequestHeader {
        RequestHeader {
            shard: U16::new(1),
            slot: U16::new(2),
            attempt: U32::new(1),
            sequence: U64::new(1),
        }
    }

    #[test]
    fn names_are_bounded_by_the_tail() {
        let request = NameRequest {
            header: header(),
            name_bytes: U16::new(3),
            to_name_bytes: U16::new(2),
            ..NameRequest::default()
        };
        let names = request.names(b"abcde").unwrap();
        assert_eq!((names.name, names.to_name), (&b"abc"[..], &b"de"[..]));
        assert!(request.names(b"abcd").is_err());
        assert_eq!(check_name(&vec![b'x'; 256]), Err(Status::NAME_TOO_LONG));
        assert_eq!(check_name(b"a/b"), Err(Status::INVALID));
        assert_eq!(check_name(b".."), Err(Status::INVALID));
        assert_eq!(check_name("ü b".as_bytes()), Ok(()));
    }
}
