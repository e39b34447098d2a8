//! From a change to bytes.

use gannet_proto::{Inode, StoreId, TargetId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use super::layout::{
    AttributesBody, DROP_INODE, DecidedBody, EndedBody, EntryBody, ExtentRecord, LocationRecord,
    NodeBody, PairBody, PreparedBody, RenameBody, StoreBody, WriteBody, XattrBody, ZoneBody, kind,
};
use super::{Change, NO_SHARD, Origin, RECORD_BYTES_MAX, RecordHeader, Reply};
use crate::extents::Extent;

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
            Change::SessionKnown { .. } => kind::SESSION_KNOWN,
            Change::Prepared { .. } => kind::PREPARED,
            Change::Decided { .. } => kind::DECIDED,
            Change::Applied { .. } => kind::APPLIED,
            Change::Aborted { .. } => kind::ABORTED,
            Change::Forgotten => kind::FORGOTTEN,
            Change::OpenKept { .. } => kind::OPEN_KEPT,
            Change::XattrSet { .. } => kind::XATTR_SET,
            Change::XattrRemoved { .. } => kind::XATTR_REMOVED,
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
            Reply::Xattr => 5,
        }),
        reserved: U32::ZERO,
        time_ns: I64::new(origin.time_ns),
    };
    bytes.extend_from_slice(header.as_bytes());
    match &origin.reply {
        Reply::Attributes(attributes) => bytes.extend_from_slice(attributes.as_bytes()),
        Reply::Io(io) => bytes.extend_from_slice(io.as_bytes()),
        Reply::None | Reply::Node | Reply::Empty | Reply::Xattr => {}
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
        Change::NodeDropped { inode } | Change::OpenKept { inode } => {
            let body = PairBody { inode: U64::new(inode.0), other: U64::ZERO };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::ParentSet { inode, parent } => {
            let body = PairBody { inode: U64::new(inode.0), other: U64::new(parent.0) };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::SessionKnown { session, instance } => {
            let body = PairBody { inode: U64::new(session), other: U64::new(instance) };
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
        Change::XattrSet { inode, name, value } => {
            put(bytes, xattr_body(inode, name, value).as_bytes(), [name, value]);
        }
        Change::XattrRemoved { inode, name } => {
            put(bytes, xattr_body(inode, name, &[]).as_bytes(), [name, &[]]);
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
        Change::Prepared { coordinator, order, effects } => {
            let body = PreparedBody {
                order: U64::new(order),
                coordinator: U16::new(coordinator.0),
                effects: U16::new(effects.count),
                reserved: U32::ZERO,
            };
            put(bytes, body.as_bytes(), [effects.bytes, &[]]);
        }
        Change::Decided { participants, effects } => {
            let body = DecidedBody {
                participants: U16::new(participants.0.len() as u16),
                effects: U16::new(effects.count),
                reserved: U32::ZERO,
            };
            put(bytes, body.as_bytes(), [participants.0.as_bytes(), effects.bytes]);
        }
        Change::Applied { coordinator } | Change::Aborted { coordinator } => {
            let body = EndedBody { coordinator: U16::new(coordinator.0), reserved: [0; 6] };
            put(bytes, body.as_bytes(), [&[], &[]]);
        }
        Change::Forgotten => {}
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

fn xattr_body(inode: Inode, name: &[u8], value: &[u8]) -> XattrBody {
    XattrBody {
        inode: U64::new(inode.0),
        name_bytes: U16::new(name.len() as u16),
        value_bytes: U16::new(value.len() as u16),
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
