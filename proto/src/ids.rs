//! Identifiers. Newtypes, so that none is taken for another.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::SHARDS;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A run of the metadata server: grows by one at each start, kept in its log.
    Term(u64)
}
id! {
    /// A virtual shard of the metafile tree, below [`SHARDS`].
    ShardId(u16)
}
id! {
    /// A host's session: a random number that the host chose, and that only it knows.
    SessionId(u64)
}
id! {
    /// A life of the data session between one host session and one data server. A higher epoch
    /// ends all lower ones.
    Epoch(u64)
}
id! {
    /// A data server, as the metadata server numbers them.
    TargetId(u32)
}
id! {
    /// A store of blocks. Extents name stores, never servers.
    StoreId(u32)
}
id! {
    /// Position of a block in a store, in blocks.
    Block(u64)
}
id! {
    /// A grant of one metadata-server reactor to one data server in one term; counts from 1.
    GrantNumber(u64)
}
id! {
    /// A memory region of a host session.
    RegionId(u32)
}
id! {
    /// An inode: the virtual shard in the upper 16 bits, a number that is never reused below.
    Inode(u64)
}

impl Block {
    /// No block: reads as zero.
    pub const NONE: Block = Block(u64::MAX);
}

impl Inode {
    /// The root directory.
    pub const ROOT: Inode = Inode::new(ShardId(0), 1);

    /// An inode of a shard.
    #[must_use]
    pub const fn new(shard: ShardId, number: u64) -> Inode {
        Inode(((shard.0 as u64) << 48) | (number & ((1 << 48) - 1)))
    }

    /// The shard that owns the inode; `None` for a number that no shard can have given out.
    #[must_use]
    pub const fn shard(self) -> Option<ShardId> {
        let shard = (self.0 >> 48) as u16;
        if (shard as usize) < SHARDS && self.number() != 0 { Some(ShardId(shard)) } else { None }
    }

    /// The number inside the shard.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }
}

/// A file or directory, as requests name it.
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
pub struct Handle {
    /// See [`Inode`].
    pub inode: U64,
    /// The file system; 0 until servers hold several.
    pub file_system: U32,
    /// Reserved, 0: tells successive users of an inode number apart should they ever be reused.
    pub generation: U32,
}

impl Handle {
    /// The handle of an inode of the only file system.
    #[must_use]
    pub fn new(inode: Inode) -> Handle {
        Handle { inode: U64::new(inode.0), file_system: U32::ZERO, generation: U32::ZERO }
    }

    /// The inode.
    #[must_use]
    pub fn inode(&self) -> Inode {
        Inode(self.inode.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_carry_their_shard() {
        let inode = Inode::new(ShardId(63), 77);
        assert_eq!((inode.shard(), inode.number()), (Some(ShardId(63)), 77));
        assert_eq!(Inode(64 << 48 | 1).shard(), None);
        assert_eq!(Inode(0).shard(), None);
    }
}
