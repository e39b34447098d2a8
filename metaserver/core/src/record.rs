//! Records of the log: their format, encoder and decoder.
//!
//! A record is a [`RecordHeader`], the kept reply if there is one, a fixed body by kind, and a tail
//! (names, stores, extents). The header's length covers all of it; bytes after what this build
//! knows of a kind are skipped, so a later version may append fields. The decoder bounds whatever it
//! reads: it never panics on bytes of a disk, and what it returns was checked field by field.
//! Nothing here touches state: [`crate::Core`] applies a [`Change`] in the same way when it makes
//! one and when it replays one.

mod decode;
mod effects;
mod encode;
mod layout;

use gannet_proto::limits::{NAME_BYTES_MAX, PARTS_MAX, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::Attributes;
use gannet_proto::xattr::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use gannet_proto::{Inode, ShardId, StoreId, TargetId};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) use decode::decode;
pub(crate) use effects::{Action, EFFECTS_MAX, Effect, EffectList, Effects};
pub(crate) use encode::{encode, push_extent};

use crate::extents::Extent;

/// Longest record that a core makes, bytes.
pub const RECORD_BYTES_MAX: usize = 16 << 10;

/// Shard of a record that belongs to the reactor as a whole.
pub(crate) const NO_SHARD: u16 = u16::MAX;

/// Why a record was refused at replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record ends before its header or body does.
    #[error("a record of kind {kind} is too short: {len_bytes} bytes")]
    TooShort {
        /// Its kind, 0 if not even the header is whole.
        kind: u16,
        /// Bytes that are there.
        len_bytes: usize,
    },
    /// This build does not know the kind.
    #[error("a record of unknown kind {kind}: the log was written by a later version")]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// A field is outside its domain.
    #[error("a record of kind {kind} holds {field} = {value}, which is out of bounds")]
    Field {
        /// Its kind.
        kind: u16,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The record does not fit the state that the records before it built.
    #[error("a record contradicts the log before it: {what} {value:#x}")]
    Contradiction {
        /// What does not fit.
        what: &'static str,
        /// The inode, store or number concerned.
        value: u64,
    },
}

/// Starts every record.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct RecordHeader {
    /// Bytes of the record, this header included.
    pub length: U32,
    /// Which change.
    pub kind: U16,
    /// The shard changed, or `u16::MAX`.
    pub shard: U16,
    /// Names the operation, which may have records in several shards.
    pub operation: U64,
    /// Session of the request, 0 for none.
    pub session: U64,
    /// Instance of that session's host.
    pub instance: U64,
    /// Sequence of the request in its slot.
    pub sequence: U64,
    /// Slot of the request.
    pub slot: U16,
    /// Which form of kept reply follows, 0 for none.
    pub reply: U16,
    /// Reserved, 0.
    pub reserved: U32,
    /// Wall time of the change, nanoseconds since the epoch.
    pub time_ns: I64,
}
const _: () = assert!(size_of::<RecordHeader>() == 56);

/// Where a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The shard changed; `None` for the reactor as a whole.
    pub shard: Option<ShardId>,
    /// Names the operation.
    pub operation: u64,
    /// Session of the request, 0 for none.
    pub session: u64,
    /// Instance of that session's host.
    pub instance: u64,
    /// Sequence of the request.
    pub sequence: u64,
    /// Slot of the request.
    pub slot: u16,
    /// Wall time.
    pub time_ns: i64,
    /// What the request was answered.
    pub reply: Reply,
}

/// The answer that a record keeps for its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reply {
    /// None: the record ends no request.
    #[default]
    None,
    /// The attributes of the changed inode, as they are right after the change.
    Node,
    /// Success without attributes.
    Empty,
    /// These attributes: of an inode of another shard.
    Attributes(Attributes),
    /// Of a write.
    Io(IoKept),
    /// Success of a change of extended attributes.
    Xattr,
}

/// The kept answer of a write.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub(crate) struct IoKept {
    /// Where the data begins in the file, bytes.
    pub offset: U64,
    /// Size of the file after it.
    pub size: U64,
    /// Bytes written.
    pub length: U32,
    /// Reserved, 0.
    pub reserved: U32,
}
const _: () = assert!(size_of::<IoKept>() == 24);

/// A change of state: what a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// A file or directory was made together with its entry, on one shard.
    NodeCreated {
        parent: Inode,
        inode: Inode,
        mode: u32,
        uid: u32,
        gid: u32,
        name: &'a [u8],
        set: StoreList<'a>,
    },
    /// A directory was made whose entry lies on another shard (or that is the root).
    DirectoryMade { parent: Inode, inode: Inode, mode: u32, uid: u32, gid: u32 },
    /// An entry was added, or replaced.
    EntryAdded { directory: Inode, inode: Inode, file_type: u32, name: &'a [u8] },
    /// An entry was removed; with `drop_inode` its inode, of the same shard, went too.
    EntryRemoved { directory: Inode, drop_inode: bool, name: &'a [u8] },
    /// An inode was removed whose entry lies on another shard.
    NodeDropped { inode: Inode },
    /// An entry was moved inside a shard; with `drop_inode` the replaced inode went too.
    Renamed {
        directory: Inode,
        to_directory: Inode,
        drop_inode: bool,
        name: &'a [u8],
        to_name: &'a [u8],
    },
    /// A directory has a new parent.
    ParentSet { inode: Inode, parent: Inode },
    /// Attributes were set.
    AttributesSet {
        inode: Inode,
        mask: u32,
        mode: u32,
        uid: u32,
        gid: u32,
        atime_ns: i64,
        mtime_ns: i64,
        size: u64,
    },
    /// The stores of a file were chosen after it was made.
    LayoutSet { inode: Inode, set: StoreList<'a> },
    /// A write took effect.
    WriteCommitted { inode: Inode, size: u64, extents: ExtentList<'a> },
    /// A data server has a number.
    TargetAdded { target: TargetId, uuid: [u8; 16] },
    /// A store has a number.
    StoreAdded { store: StoreId, target: TargetId, uuid: [u8; 16], generation: u32, blocks: u64 },
    /// A store has a new generation, size or data server.
    StoreChanged { store: StoreId, target: TargetId, generation: u32, blocks: u64 },
    /// A zone belongs to a shard.
    ZoneAssigned { store: StoreId, zone: u32, shard: ShardId },
    /// A zone belongs to nobody.
    ZoneReturned { store: StoreId, zone: u32 },
    /// A file stays when its last name goes: somebody has it open.
    OpenKept { inode: Inode },
    /// An inode has an extended attribute with this value.
    XattrSet { inode: Inode, name: &'a [u8], value: &'a [u8] },
    /// An inode has lost an extended attribute.
    XattrRemoved { inode: Inode, name: &'a [u8] },
    /// A session has files open, which leave no record of their own: a start waits for its host.
    SessionKnown { session: u64, instance: u64 },
    /// A session and its kept replies are forgotten.
    SessionEnded { session: u64 },
    /// The shard is ready to take part in an operation of another shard, the coordinator, and does
    /// nothing else with what is concerned until it knows the decision. `order` is the operation's age.
    Prepared { coordinator: ShardId, order: u64, effects: EffectList<'a> },
    /// The shard, a coordinator, decided that an operation takes effect: here at once, in the
    /// participants when they hear of it.
    Decided { participants: ShardList<'a>, effects: EffectList<'a> },
    /// What was prepared took effect.
    Applied { coordinator: ShardId },
    /// What was prepared takes no effect.
    Aborted { coordinator: ShardId },
    /// All participants of a decided operation have applied it: nobody will ask for the decision.
    Forgotten,
}

/// The shards that take part in an operation, besides its coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShardList<'a>(&'a [U16]);

/// Most shards of a [`ShardList`]: a rename is one of at most four shards.
pub(crate) const PARTICIPANTS_MAX: usize = 8;

impl<'a> ShardList<'a> {
    /// A list over its wire form.
    pub(crate) fn new(shards: &'a [U16]) -> ShardList<'a> {
        ShardList(shards)
    }

    /// The shards in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = ShardId> + 'a {
        self.0.iter().map(|shard| ShardId(shard.get()))
    }
}

/// The stores of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreList<'a>(&'a [U32]);

impl<'a> StoreList<'a> {
    /// A list over its wire form.
    pub(crate) fn new(stores: &'a [U32]) -> StoreList<'a> {
        StoreList(&stores[..stores.len().min(TARGETS_PER_FILE_MAX)])
    }

    /// The stores, in the order of the stripes.
    pub(crate) fn iter(self) -> impl Iterator<Item = StoreId> + 'a {
        self.0.iter().map(|store| StoreId(store.get()))
    }
}

/// Extents in their form in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtentList<'a> {
    bytes: &'a [u8],
    count: u16,
}

const _: () = assert!(
    size_of::<RecordHeader>() + size_of::<Attributes>() + 64 + PARTS_MAX * layout::EXTENT_BYTES
        <= RECORD_BYTES_MAX
);
const _: () = assert!(
    size_of::<RecordHeader>() + 64 + XATTR_NAME_BYTES_MAX + XATTR_VALUE_BYTES_MAX
        <= RECORD_BYTES_MAX
);
const _: () = assert!(
    size_of::<RecordHeader>() + size_of::<Attributes>() + 64 + 2 * NAME_BYTES_MAX
        <= RECORD_BYTES_MAX
);

const _: () = assert!(
    size_of::<RecordHeader>()
        + size_of::<Attributes>()
        + 64
        + EFFECTS_MAX * (size_of::<layout::EffectRecord>() + NAME_BYTES_MAX)
        <= RECORD_BYTES_MAX
);

impl<'a> ExtentList<'a> {
    /// The list of `count` extents that [`push_extent`] wrote to `bytes`.
    pub(crate) fn new(bytes: &'a [u8], count: u16) -> ExtentList<'a> {
        ExtentList { bytes, count }
    }

    /// The extents in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Extent> + 'a {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (extent, tail) = decode::next_extent(rest).ok()?;
            rest = tail;
            Some(extent)
        })
    }
}

impl Change<'_> {
    /// The inode whose attributes [`Reply::Node`] means.
    pub(crate) fn inode(&self) -> Option<Inode> {
        match *self {
            Change::NodeCreated { inode, .. }
            | Change::DirectoryMade { inode, .. }
            | Change::EntryAdded { inode, .. }
            | Change::AttributesSet { inode, .. } => Some(inode),
            _ => None,
        }
    }
}
