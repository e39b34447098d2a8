//! Blocks that a file maps although they are not its own: a log that says so is not served.
//!
//! Free space is rebuilt at a start from what the files map. A block that two files map, or one
//! outside the zones of its file's shard, can only come from damage or a defect; whoever served on
//! would let one file's writes go into another. So the core tells which files are concerned, and its
//! caller serves nobody.

use std::fmt;

use gannet_proto::{Inode, StoreId};

use crate::Core;
use crate::extents::Extent;

/// A file of this reactor, with a name that leads to it if one of its directories has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictingFile {
    /// Its number.
    pub inode: Inode,
    /// Its last name.
    pub name: Option<Vec<u8>>,
}

/// Blocks with two owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConflict {
    /// Where they lie.
    pub store: StoreId,
    /// The first of them.
    pub block: u64,
    /// How many there are.
    pub blocks: u32,
    /// Who maps them.
    pub file: ConflictingFile,
    /// Who maps them as well; `None` if they lie in no zone of the file's shard.
    pub other: Option<ConflictingFile>,
}

impl fmt::Display for ConflictingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {:#x}", self.inode.0)?;
        match &self.name {
            Some(name) => write!(f, " ({:?})", String::from_utf8_lossy(name)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for BlockConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, block, blocks, file, other } = self;
        let end = block + u64::from(*blocks);
        match other {
            Some(other) => {
                write!(f, "{file} and {other} share blocks of {block}..{end} of store {store}")
            }
            None => write!(
                f,
                "{file} maps blocks {block}..{end} of store {store}, which do not belong to its shard"
            ),
        }
    }
}

impl Core {
    /// What of the blocks of its files does not fit together, if something does not. Known when free space
    /// is rebuilt, at reactor 0 by [`Core::finish_replay`], elsewhere by a message. Such a core never gets
    /// [`ready`](Core::ready), and records nothing.
    #[must_use]
    pub fn block_conflict(&self) -> Option<&BlockConflict> {
        self.block_conflict.as_deref()
    }

    /// Finds out with whom a file shares an extent that could not be claimed.
    pub(crate) fn describe_conflict(&self, inode: Inode, extent: &Extent) -> BlockConflict {
        let end = extent.block.0 + u64::from(extent.blocks);
        let overlaps = |one: &Extent| {
            one.store == extent.store
                && one.block.0 < end
                && extent.block.0 < one.block.0 + u64::from(one.blocks)
        };
        let shares = |(other, one): &(Inode, Extent)| {
            overlaps(one) && (*other, one.file_block) != (inode, extent.file_block)
        };
        let of_files = self.nodes.values().flat_map(|node| {
            let extents = node.file().into_iter().flat_map(|file| file.extents.iter());
            extents.map(|extent| (node.inode, extent))
        });
        let other = of_files.into_iter().find(shares).map(|(other, _)| self.named(other));
        BlockConflict {
            store: extent.store,
            block: extent.block.0,
            blocks: extent.blocks,
            file: self.named(inode),
            other,
        }
    }

    fn named(&self, inode: Inode) -> ConflictingFile {
        let mut directories = self.nodes.values().filter_map(|node| node.directory());
        let name = directories.find_map(|directory| {
            let mut entries = directory.entries.iter();
            entries.find(|(_, entry)| entry.inode == inode).map(|(name, _)| name.to_vec())
        });
        ConflictingFile { inode, name }
    }
}
