//! The structs and numbers that records consist of.

use gannet_proto::operations::attribute_mask;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Numbers of the kinds of record.
pub(super) mod kind {
    pub(in crate::record) const NODE_CREATED: u16 = 1;
    pub(in crate::record) const DIRECTORY_MADE: u16 = 2;
    pub(in crate::record) const ENTRY_ADDED: u16 = 3;
    pub(in crate::record) const ENTRY_REMOVED: u16 = 4;
    pub(in crate::record) const NODE_DROPPED: u16 = 5;
    pub(in crate::record) const RENAMED: u16 = 6;
    pub(in crate::record) const PARENT_SET: u16 = 7;
    pub(in crate::record) const ATTRIBUTES_SET: u16 = 8;
    pub(in crate::record) const LAYOUT_SET: u16 = 9;
    pub(in crate::record) const WRITE_COMMITTED: u16 = 10;
    pub(in crate::record) const TARGET_ADDED: u16 = 11;
    pub(in crate::record) const STORE_ADDED: u16 = 12;
    pub(in crate::record) const STORE_CHANGED: u16 = 13;
    pub(in crate::record) const ZONE_ASSIGNED: u16 = 14;
    pub(in crate::record) const ZONE_RETURNED: u16 = 15;
    pub(in crate::record) const SESSION_ENDED: u16 = 16;
    pub(in crate::record) const SESSION_KNOWN: u16 = 17;
    pub(in crate::record) const PREPARED: u16 = 20;
    pub(in crate::record) const DECIDED: u16 = 21;
    pub(in crate::record) const APPLIED: u16 = 22;
    pub(in crate::record) const ABORTED: u16 = 23;
    pub(in crate::record) const FORGOTTEN: u16 = 24;
    pub(in crate::record) const OPEN_KEPT: u16 = 40;
    pub(in crate::record) const XATTR_SET: u16 = 41;
    pub(in crate::record) const XATTR_REMOVED: u16 = 42;
}

/// Declares the fixed body of a kind of record, with its size.
macro_rules! body {
    ($size:literal, $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

body!(
    40,
    NodeBody {
        parent: U64,
        inode: U64,
        mode: U32,
        uid: U32,
        gid: U32,
        quota: U32,
        name_bytes: U16,
        stores: U16,
        reserved: U32,
    }
);
body!(24, EntryBody { directory: U64, inode: U64, file_type: U32, name_bytes: U16, flags: U16 });
body!(
    24,
    RenameBody {
        directory: U64,
        to_directory: U64,
        name_bytes: U16,
        to_name_bytes: U16,
        flags: U16,
        reserved: U16,
    }
);
body!(16, PairBody { inode: U64, other: U64 });
body!(
    48,
    AttributesBody {
        inode: U64,
        mask: U32,
        mode: U32,
        uid: U32,
        gid: U32,
        atime_ns: I64,
        mtime_ns: I64,
        size: U64,
    }
);
body!(24, WriteBody { inode: U64, size: U64, extents: U16, reserved: [u8; 6] });
body!(16, XattrBody { inode: U64, name_bytes: U16, value_bytes: U16, reserved: U32 });
body!(
    40,
    StoreBody {
        store: U32,
        target: U32,
        uuid: [u8; 16],
        blocks: U64,
        generation: U32,
        reserved: U32,
    }
);
body!(16, PreparedBody { order: U64, coordinator: U16, effects: U16, reserved: U32 });
body!(8, DecidedBody { participants: U16, effects: U16, reserved: U32 });
body!(8, EndedBody { coordinator: U16, reserved: [u8; 6] });
body!(
    40,
    EffectRecord {
        inode: U64,
        other: U64,
        time_ns: I64,
        kind: U16,
        name_bytes: U16,
        mode: U32,
        uid: U32,
        gid: U32,
    }
);
body!(16, ZoneBody { store: U32, zone: U32, shard: U16, reserved: [u8; 6] });

/// [`AttributesBody::mask`]: which attributes there may be. What the clock says is in the record.
pub(super) const ATTRIBUTES: u32 = attribute_mask::MODE
    | attribute_mask::UID
    | attribute_mask::GID
    | attribute_mask::ATIME
    | attribute_mask::MTIME
    | attribute_mask::SIZE;

/// [`EntryBody::flags`], [`RenameBody::flags`]: the inode goes with the entry.
pub(super) const DROP_INODE: u16 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ExtentRecord {
    pub(super) file_block: U64,
    pub(super) birth: U64,
    pub(super) valid_bytes: U64,
    pub(super) blocks: U32,
    pub(super) locations: U16,
    pub(super) reserved: U16,
}
const _: () = assert!(size_of::<ExtentRecord>() == 32);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LocationRecord {
    pub(super) block: U64,
    pub(super) store: U32,
    pub(super) generation: U32,
}
const _: () = assert!(size_of::<LocationRecord>() == 16);

/// Bytes of one extent with one location.
pub(super) const EXTENT_BYTES: usize = size_of::<ExtentRecord>() + size_of::<LocationRecord>();
