//! Records of the log: their format, encoder and decoder.
//!
//! A record is a [`RecordHeader`], the kept reply if there is one, a fixed body by kind, and a tail
//! (names, stores, extents). The header's length covers all of it; bytes after what this build
//! knows of a kind are skipped, so a later version may append fields. The decoder bounds whatever it
//! reads: it never panics on bytes of a disk, and what it returns was checked field by field.
//! Nothing here touches state: [`crate::Core`] applies a [`Change`] in the same way when it makes
//! one and when it replays one.

use gannet_proto::limits::{
    BLOCK_BYTES, FILE_BYTES_MAX, NAME_BYTES_MAX, PARTS_MAX, SHARDS, SLOTS_MAX, TARGETS_PER_FILE_MAX,
};
use gannet_proto::operations::{Attributes, attribute_mask, file_type};
use gannet_proto::{Block, Inode, ShardId, StoreId, TargetId};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::extents::Extent;
use crate::targets::STORE_BLOCKS_MAX;

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
    /// A session and its kept replies are forgotten.
    SessionEnded { session: u64 },
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

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtentRecord {
    file_block: U64,
    birth: U64,
    valid_bytes: U64,
    blocks: U32,
    locations: U16,
    reserved: U16,
}
const _: () = assert!(size_of::<ExtentRecord>() == 32);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocationRecord {
    block: U64,
    store: U32,
    generation: U32,
}
const _: () = assert!(size_of::<LocationRecord>() == 16);

/// Bytes of one extent with one location.
const EXTENT_BYTES: usize = size_of::<ExtentRecord>() + size_of::<LocationRecord>();
const _: () = assert!(
    size_of::<RecordHeader>() + size_of::<Attributes>() + 64 + PARTS_MAX * EXTENT_BYTES
        <= RECORD_BYTES_MAX
);
const _: () = assert!(
    size_of::<RecordHeader>() + size_of::<Attributes>() + 64 + 2 * NAME_BYTES_MAX
        <= RECORD_BYTES_MAX
);

/// Appends an extent in its record form.
pub(crate) fn push_extent(bytes: &mut Vec<u8>, extent: &Extent) {
    let record = ExtentRecord {
        file_block: U64::new(extent.file_block),
        birth: U64::new(extent.birth),
        valid_bytes: U64::new(extent.valid_bytes()),
        blocks: U32::new(extent.blocks),
        locations: U16::new(1),
        reserved: U16::ZERO,
    };
    let location = LocationRecord {
        block: U64::new(extent.block.0),
        store: U32::new(extent.store.0),
        generation: U32::new(extent.generation),
    };
    bytes.extend_from_slice(record.as_bytes());
    bytes.extend_from_slice(location.as_bytes());
}

impl<'a> ExtentList<'a> {
    /// The list of `count` extents that [`push_extent`] wrote to `bytes`.
    pub(crate) fn new(bytes: &'a [u8], count: u16) -> ExtentList<'a> {
        ExtentList { bytes, count }
    }

    /// The extents in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Extent> + 'a {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (extent, tail) = next_extent(rest).ok()?;
            rest = tail;
            Some(extent)
        })
    }
}

fn next_extent(bytes: &[u8]) -> Result<(Extent, &[u8]), RecordError> {
    let kind = kind::WRITE_COMMITTED;
    let short = RecordError::TooShort { kind, len_bytes: bytes.len() };
    let field = |field, value| Err(RecordError::Field { kind, field, value });
    let (extent, rest) = ExtentRecord::ref_from_prefix(bytes).map_err(|_| short)?;
    // A list of locations is what the format provides for; this build writes one and reads the
    // first, so a longer list is a thing of a later version.
    if extent.locations.get() != 1 {
        return field("locations", extent.locations.get().into());
    }
    let (location, rest) = LocationRecord::ref_from_prefix(rest).map_err(|_| short)?;
    let (file_block, blocks) = (extent.file_block.get(), extent.blocks.get());
    let block_bytes = u64::from(BLOCK_BYTES);
    if blocks == 0 || file_block > FILE_BYTES_MAX / block_bytes {
        return field("file_block", file_block);
    }
    if file_block + u64::from(blocks) > FILE_BYTES_MAX / block_bytes {
        return field("blocks", blocks.into());
    }
    let valid = extent.valid_bytes.get();
    let (low, high) = ((u64::from(blocks) - 1) * block_bytes, u64::from(blocks) * block_bytes);
    if valid <= low || valid > high {
        return field("valid_bytes", valid);
    }
    let block = location.block.get();
    if block > STORE_BLOCKS_MAX || block + u64::from(blocks) > STORE_BLOCKS_MAX {
        return field("block", block);
    }
    let extent = Extent {
        file_block,
        blocks,
        store: StoreId(location.store.get()),
        block: Block(block),
        generation: location.generation.get(),
        tail_valid: (valid - low) as u16,
        birth: extent.birth.get(),
    };
    Ok((extent, rest))
}

/// Numbers of the kinds of record.
mod kind {
    pub(super) const NODE_CREATED: u16 = 1;
    pub(super) const DIRECTORY_MADE: u16 = 2;
    pub(super) const ENTRY_ADDED: u16 = 3;
    pub(super) const ENTRY_REMOVED: u16 = 4;
    pub(super) const NODE_DROPPED: u16 = 5;
    pub(super) const RENAMED: u16 = 6;
    pub(super) const PARENT_SET: u16 = 7;
    pub(super) const ATTRIBUTES_SET: u16 = 8;
    pub(super) const LAYOUT_SET: u16 = 9;
    pub(super) const WRITE_COMMITTED: u16 = 10;
    pub(super) const TARGET_ADDED: u16 = 11;
    pub(super) const STORE_ADDED: u16 = 12;
    pub(super) const STORE_CHANGED: u16 = 13;
    pub(super) const ZONE_ASSIGNED: u16 = 14;
    pub(super) const ZONE_RETURNED: u16 = 15;
    pub(super) const SESSION_ENDED: u16 = 16;
}

/// Declares the fixed body of a kind of record, with its size.
macro_rules! body {
    ($size:literal, $name:ident { $($field:ident: $type:ty,)* }) => {
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        struct $name { $($field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

body!(40, NodeBody {
    parent: U64,
    inode: U64,
    mode: U32,
    uid: U32,
    gid: U32,
    quota: U32,
    name_bytes: U16,
    stores: U16,
    reserved: U32,
});
body!(24, EntryBody {
    directory: U64,
    inode: U64,
    file_type: U32,
    name_bytes: U16,
    flags: U16,
});
body!(24, RenameBody {
    directory: U64,
    to_directory: U64,
    name_bytes: U16,
    to_name_bytes: U16,
    flags: U16,
    reserved: U16,
});
body!(16, PairBody { inode: U64, other: U64, });
body!(48, AttributesBody {
    inode: U64,
    mask: U32,
    mode: U32,
    uid: U32,
    gid: U32,
    atime_ns: I64,
    mtime_ns: I64,
    size: U64,
});
body!(24, WriteBody { inode: U64, size: U64, extents: U16, reserved: [u8; 6], });
body!(40, StoreBody {
    store: U32,
    target: U32,
    uuid: [u8; 16],
    blocks: U64,
    generation: U32,
    reserved: U32,
});
body!(16, ZoneBody { store: U32, zone: U32, shard: U16, reserved: [u8; 6], });

/// [`EntryBody::flags`], [`RenameBody::flags`]: the inode goes with the entry.
const DROP_INODE: u16 = 1;

impl Change<'_> {
    fn kind(&self) -> u16 {
        match self {
            Change::NodeCreated { .. } => kind::NODE_CREATED,
            Change::DirectoryMade { .. } => kind::DIRECTORY_MADE,
            Change::EntryAdded { .. } => kind::ENTRY_ADDED,
            Change::EntryRemoved { .. } => kind::ENTRY_REMOVED,
            Change::NodeDropped { .. } => kind::NODE_DROPPED,
            Change::Renamed { .. } => kind::RENAMED,
            Change::ParentSet { .. } => kind::PARENT_SET,
            Change::AttributesSet { .. } => kind::ATTRIBUTES_SET,
            Change::LayoutSet { .. } => kind::LAYOUT_SET,
            Change::WriteCommitted { .. } => kind::WRITE_COMMITTED,
            Change::TargetAdded { .. } => kind::TARGET_ADDED,
            Change::StoreAdded { .. } => kind::STORE_ADDED,
            Change::StoreChanged { .. } => kind::STORE_CHANGED,
            Change::ZoneAssigned { .. } => kind::ZONE_ASSIGNED,
            Change::ZoneReturned { .. } => kind::ZONE_RETURNED,
            Change::SessionEnded { .. } => kind::SESSION_ENDED,
        }
    }

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

/// Writes a record to `bytes`, which is cleared first.
pub(crate) fn encode(bytes: &mut Vec<u8>, origin: &Origin, change: &Change<'_>) {
    bytes.clear();
    let header = RecordHeader {
        length: U32::ZERO,
        kind: U16::new(change.kind()),
        shard: U16::new(origin.shard.map_or(NO_SHARD, |shard| shard.0)),
        operation: U64::new(origin.operation),
        session: U64::new(origin.session),
        instance: U64::new(origin.instance),
        sequence: U64::new(origin.sequence),
        slot: U16::new(origin.slot),
        reply: U16::new(match origin.reply {
            Reply::None => 0,
            Reply::Node => 1,
            Reply::Empty => 2,
            Reply::Attributes(_) => 3,
            Reply::Io(_) => 4,
        }),
        reserved: U32::ZERO,
        time_ns: I64::new(origin.time_ns),
    };
    bytes.extend_from_slice(header.as_bytes());
    match &origin.reply {
        Reply::Attributes(attributes) => bytes.extend_from_slice(attributes.as_bytes()),
        Reply::Io(io) => bytes.extend_from_slice(io.as_bytes()),
        Reply::None | Reply::Node | Reply::Empty => {}
    }
    encode_body(bytes, change);
    let length = U32::new(bytes.len() as u32);
    bytes[..size_of::<U32>()].copy_from_slice(length.as_bytes());
    debug_assert!(bytes.len() <= RECORD_BYTES_MAX);
}

fn encode_body(bytes: &mut Vec<u8>, change: &Change<'_>) {
    let put = |bytes: &mut Vec<u8>, body: &[u8], tails: [&[u8]; 2]| {
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(tails[0]);
        bytes.extend_from_slice(tails[1]);
    };
    let drops = |drop_inode: bool| U16::new(if drop_inode { DROP_INODE } else { 0 });
    match *change {
        Change::NodeCreated { parent, inode, mode, uid, gid, name, set } => {
            let body = node_body(parent, inode, mode, uid, gid, name.len(), set.0.len());
            put(bytes, body.as_bytes(), [name, set.0.as_bytes()]);
        }
        Change::DirectoryMade { parent, inode, mode, uid, gid } => {
            put(bytes, node_body(parent, inode, mode, uid, gid, 0, 0).as_bytes(), [&[], &[]]);
        }
        Change::LayoutSet { inode, set } => {
            let body = node_body(Inode(0), inode, 0, 0, 0, 0, set.0.len());
            put(bytes, body.as_bytes(), [set.0.as_bytes(), &[]]);
        }
        Change::EntryAdded { directory, inode, file_type, name } => {
            let body = EntryBody {
                directory: U64::new(directory.0),
                inode: U64::new(inode.0),
                file_type: U32::new(file_type),
                name_bytes: U16::new(name.len() as u16),
                flags: U16::ZERO,
            };
            put(bytes, body.as_bytes(), [name, &[]]);
        }
        Change::EntryRemoved { directory, drop_inode, name } => {
            let body = EntryBody {
                directory: U64::new(directory.0),
                inode: U64::ZERO,
                file_type: U32::ZERO,
                name_bytes: U16::new(name.len() as u16),
                flags: drops(drop_inode),
            };
            put(bytes, body.as_bytes(), [name, &[]]);
        }
        Change::Renamed { directory, to_directory, drop_inode, name, to_name } => {
            let body = RenameBody {
                directory: U64::new(directory.0),
                to_directory: U64::new(to_directory.0),
                name_bytes: U16::new(name.len() as u16),
                to_name_bytes: U16::new(to_name.len() as u16),
                flags: drops(drop_inode),
                reserved: U16::ZERO,
            };
            put(bytes, body.as_bytes(), [name, to_name]);
        }
        Change::NodeDropped { inode } => {
            let body = PairBody { inode: U64::new(inode.0), other: U64::ZERO };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::ParentSet { inode, parent } => {
            let body = PairBody { inode: U64::new(inode.0), other: U64::new(parent.0) };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::SessionEnded { session } => {
            let body = PairBody { inode: U64::new(session), other: U64::ZERO };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::AttributesSet { inode, mask, mode, uid, gid, atime_ns, mtime_ns, size } => {
            let body = AttributesBody {
                inode: U64::new(inode.0),
                mask: U32::new(mask),
                mode: U32::new(mode),
                uid: U32::new(uid),
                gid: U32::new(gid),
                atime_ns: I64::new(atime_ns),
                mtime_ns: I64::new(mtime_ns),
                size: U64::new(size),
            };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::WriteCommitted { inode, size, extents } => {
            let body = WriteBody {
                inode: U64::new(inode.0),
                size: U64::new(size),
                extents: U16::new(extents.count),
                reserved: [0; 6],
            };
            put(bytes, body.as_bytes(), [extents.bytes, &[]]);
        }
        Change::TargetAdded { target, uuid } => {
            put(bytes, store_body(0, target, uuid, 0, 0).as_bytes(), [&[], &[]]);
        }
        Change::StoreAdded { store, target, uuid, generation, blocks } => {
            let body = store_body(store.0, target, uuid, generation, blocks);
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::StoreChanged { store, target, generation, blocks } => {
            let body = store_body(store.0, target, [0; 16], generation, blocks);
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::ZoneAssigned { store, zone, shard } => {
            put(bytes, zone_body(store, zone, shard.0).as_bytes(), [&[], &[]]);
        }
        Change::ZoneReturned { store, zone } => {
            put(bytes, zone_body(store, zone, NO_SHARD).as_bytes(), [&[], &[]]);
        }
    }
}

fn node_body(
    parent: Inode,
    inode: Inode,
    mode: u32,
    uid: u32,
    gid: u32,
    name_bytes: usize,
    stores: usize,
) -> NodeBody {
    NodeBody {
        parent: U64::new(parent.0),
        inode: U64::new(inode.0),
        mode: U32::new(mode),
        uid: U32::new(uid),
        gid: U32::new(gid),
        quota: U32::ZERO,
        name_bytes: U16::new(name_bytes as u16),
        stores: U16::new(stores as u16),
        reserved: U32::ZERO,
    }
}

fn store_body(
    store: u32,
    target: TargetId,
    uuid: [u8; 16],
    generation: u32,
    blocks: u64,
) -> StoreBody {
    StoreBody {
        store: U32::new(store),
        target: U32::new(target.0),
        uuid,
        blocks: U64::new(blocks),
        generation: U32::new(generation),
        reserved: U32::ZERO,
    }
}

fn zone_body(store: StoreId, zone: u32, shard: u16) -> ZoneBody {
    ZoneBody {
        store: U32::new(store.0),
        zone: U32::new(zone),
        shard: U16::new(shard),
        reserved: [0; 6],
    }
}

/// Reads the parts of one record, with its kind for the errors.
struct Reader<'a> {
    kind: u16,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
    ) -> Result<&'a T, RecordError> {
        let short = RecordError::TooShort { kind: self.kind, len_bytes: self.rest.len() };
        let (value, rest) = T::ref_from_prefix(self.rest).map_err(|_| short)?;
        self.rest = rest;
        Ok(value)
    }

    fn bytes(&mut self, len_bytes: usize) -> Result<&'a [u8], RecordError> {
        let short = RecordError::TooShort { kind: self.kind, len_bytes: self.rest.len() };
        let (bytes, rest) = self.rest.split_at_checked(len_bytes).ok_or(short)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn field<V>(&self, field: &'static str, value: u64) -> Result<V, RecordError> {
        Err(RecordError::Field { kind: self.kind, field, value })
    }

    fn inode(&self, field: &'static str, value: U64) -> Result<Inode, RecordError> {
        let inode = Inode(value.get());
        if inode.shard().is_none() { self.field(field, inode.0) } else { Ok(inode) }
    }

    fn name(&mut self, len_bytes: U16) -> Result<&'a [u8], RecordError> {
        let name = self.bytes(len_bytes.get().into())?;
        match gannet_proto::operations::check_name(name) {
            Ok(()) => Ok(name),
            Err(_) => self.field("name_bytes", name.len() as u64),
        }
    }

    fn stores(&mut self, count: U16) -> Result<StoreList<'a>, RecordError> {
        let count = usize::from(count.get());
        if count > TARGETS_PER_FILE_MAX {
            return self.field("stores", count as u64);
        }
        let bytes = self.bytes(count * size_of::<U32>())?;
        match <[U32]>::ref_from_bytes(bytes) {
            Ok(stores) => Ok(StoreList(stores)),
            Err(_) => self.field("stores", count as u64),
        }
    }
}

/// Reads a record.
///
/// # Errors
/// Whatever is out of bounds, by field.
pub(crate) fn decode(record: &[u8]) -> Result<(Origin, Change<'_>), RecordError> {
    let (header, _) = RecordHeader::ref_from_prefix(record)
        .map_err(|_| RecordError::TooShort { kind: 0, len_bytes: record.len() })?;
    let kind = header.kind.get();
    let length = header.length.get() as usize;
    if length > record.len() || length < size_of::<RecordHeader>() {
        return Err(RecordError::Field { kind, field: "length", value: length as u64 });
    }
    let mut reader = Reader { kind, rest: &record[size_of::<RecordHeader>()..length] };
    let shard = match header.shard.get() {
        NO_SHARD => None,
        shard if usize::from(shard) < SHARDS => Some(ShardId(shard)),
        shard => return reader.field("shard", shard.into()),
    };
    if usize::from(header.slot.get()) >= SLOTS_MAX {
        return reader.field("slot", header.slot.get().into());
    }
    let reply = match header.reply.get() {
        0 => Reply::None,
        1 => Reply::Node,
        2 => Reply::Empty,
        3 => Reply::Attributes(*reader.take::<Attributes>()?),
        4 => Reply::Io(*reader.take::<IoKept>()?),
        reply => return reader.field("reply", reply.into()),
    };
    if reply != Reply::None && (header.session.get() == 0 || shard.is_none()) {
        return reader.field("session", header.session.get());
    }
    let origin = Origin {
        shard,
        operation: header.operation.get(),
        session: header.session.get(),
        instance: header.instance.get(),
        sequence: header.sequence.get(),
        slot: header.slot.get(),
        time_ns: header.time_ns.get(),
        reply,
    };
    Ok((origin, decode_body(&mut reader)?))
}

fn decode_body<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, RecordError> {
    Ok(match reader.kind {
        kind::NODE_CREATED => {
            let body = reader.take::<NodeBody>()?;
            let mode = reader_mode(reader, body.mode)?;
            Change::NodeCreated {
                parent: reader.inode("parent", body.parent)?,
                inode: reader.inode("inode", body.inode)?,
                mode,
                uid: body.uid.get(),
                gid: body.gid.get(),
                name: reader.name(body.name_bytes)?,
                set: reader.stores(body.stores)?,
            }
        }
        kind::DIRECTORY_MADE => {
            let body = reader.take::<NodeBody>()?;
            let mode = reader_mode(reader, body.mode)?;
            if mode & file_type::MASK != file_type::DIRECTORY {
                return reader.field("mode", mode.into());
            }
            Change::DirectoryMade {
                parent: reader.inode("parent", body.parent)?,
                inode: reader.inode("inode", body.inode)?,
                mode,
                uid: body.uid.get(),
                gid: body.gid.get(),
            }
        }
        kind::LAYOUT_SET => {
            let body = reader.take::<NodeBody>()?;
            let inode = reader.inode("inode", body.inode)?;
            Change::LayoutSet { inode, set: reader.stores(body.stores)? }
        }
        kind::ENTRY_ADDED => {
            let body = reader.take::<EntryBody>()?;
            let file_type = reader_mode(reader, body.file_type)? & file_type::MASK;
            Change::EntryAdded {
                directory: reader.inode("directory", body.directory)?,
                inode: reader.inode("inode", body.inode)?,
                file_type,
                name: reader.name(body.name_bytes)?,
            }
        }
        kind::ENTRY_REMOVED => {
            let body = reader.take::<EntryBody>()?;
            Change::EntryRemoved {
                directory: reader.inode("directory", body.directory)?,
                drop_inode: reader_drops(reader, body.flags)?,
                name: reader.name(body.name_bytes)?,
            }
        }
        kind::RENAMED => {
            let body = reader.take::<RenameBody>()?;
            Change::Renamed {
                directory: reader.inode("directory", body.directory)?,
                to_directory: reader.inode("to_directory", body.to_directory)?,
                drop_inode: reader_drops(reader, body.flags)?,
                name: reader.name(body.name_bytes)?,
                to_name: reader.name(body.to_name_bytes)?,
            }
        }
        kind::NODE_DROPPED => {
            let body = reader.take::<PairBody>()?;
            Change::NodeDropped { inode: reader.inode("inode", body.inode)? }
        }
        kind::PARENT_SET => {
            let body = reader.take::<PairBody>()?;
            Change::ParentSet {
                inode: reader.inode("inode", body.inode)?,
                parent: reader.inode("parent", body.other)?,
            }
        }
        kind::SESSION_ENDED => {
            Change::SessionEnded { session: reader.take::<PairBody>()?.inode.get() }
        }
        kind::ATTRIBUTES_SET => {
            let body = reader.take::<AttributesBody>()?;
            if body.mask.get() & !attribute_mask::KNOWN != 0 {
                return reader.field("mask", body.mask.get().into());
            }
            if body.size.get() > FILE_BYTES_MAX {
                return reader.field("size", body.size.get());
            }
            Change::AttributesSet {
                inode: reader.inode("inode", body.inode)?,
                mask: body.mask.get(),
                mode: body.mode.get(),
                uid: body.uid.get(),
                gid: body.gid.get(),
                atime_ns: body.atime_ns.get(),
                mtime_ns: body.mtime_ns.get(),
                size: body.size.get(),
            }
        }
        kind::WRITE_COMMITTED => {
            let body = reader.take::<WriteBody>()?;
            if body.size.get() > FILE_BYTES_MAX {
                return reader.field("size", body.size.get());
            }
            let count = body.extents.get();
            if usize::from(count) > PARTS_MAX {
                return reader.field("extents", count.into());
            }
            let inode = reader.inode("inode", body.inode)?;
            let all = reader.rest;
            for _ in 0..count {
                let (_, rest) = next_extent(reader.rest)?;
                reader.rest = rest;
            }
            let bytes = &all[..all.len() - reader.rest.len()];
            let extents = ExtentList { bytes, count };
            Change::WriteCommitted { inode, size: body.size.get(), extents }
        }
        kind::TARGET_ADDED => {
            let body = reader.take::<StoreBody>()?;
            Change::TargetAdded { target: TargetId(body.target.get()), uuid: body.uuid }
        }
        kind::STORE_ADDED => {
            let body = reader.take::<StoreBody>()?;
            Change::StoreAdded {
                store: StoreId(body.store.get()),
                target: TargetId(body.target.get()),
                uuid: body.uuid,
                generation: body.generation.get(),
                blocks: body.blocks.get(),
            }
        }
        kind::STORE_CHANGED => {
            let body = reader.take::<StoreBody>()?;
            Change::StoreChanged {
                store: StoreId(body.store.get()),
                target: TargetId(body.target.get()),
                generation: body.generation.get(),
                blocks: body.blocks.get(),
            }
        }
        kind::ZONE_ASSIGNED => {
            let body = reader.take::<ZoneBody>()?;
            let shard = body.shard.get();
            if usize::from(shard) >= SHARDS {
                return reader.field("shard", shard.into());
            }
            Change::ZoneAssigned {
                store: StoreId(body.store.get()),
                zone: body.zone.get(),
                shard: ShardId(shard),
            }
        }
        kind::ZONE_RETURNED => {
            let body = reader.take::<ZoneBody>()?;
            Change::ZoneReturned { store: StoreId(body.store.get()), zone: body.zone.get() }
        }
        kind => return Err(RecordError::UnknownKind { kind }),
    })
}

fn reader_mode(reader: &Reader<'_>, mode: U32) -> Result<u32, RecordError> {
    match mode.get() & file_type::MASK {
        file_type::REGULAR | file_type::DIRECTORY => Ok(mode.get()),
        _ => reader.field("mode", mode.get().into()),
    }
}

fn reader_drops(reader: &Reader<'_>, flags: U16) -> Result<bool, RecordError> {
    if flags.get() & !DROP_INODE != 0 {
        return reader.field("flags", flags.get().into());
    }
    Ok(flags.get() & DROP_INODE != 0)
}
