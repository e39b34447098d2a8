//! Inodes and directories in memory.

use std::sync::Arc;

use gannet_proto::limits::{BLOCK_BYTES, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::{Handle, Inode, StoreId};
use zerocopy::little_endian::{I64, U32, U64};

use crate::Lsn;
use crate::directory::Entries;
use crate::extents::ExtentMap;
use crate::operations::NONE;
use crate::record::StoreList;

/// The stores over which a file is striped, in the order of the stripes. Most files have few: those
/// cost no memory of their own.
#[derive(Clone, Debug)]
pub(crate) enum StoreSet {
    /// So many of the places are used.
    Few(u8, [U32; FEW_STORES]),
    /// So many of them are used, more than that.
    Many(u8, Arc<[U32; TARGETS_PER_FILE_MAX]>),
}

/// Stores that fit beside the length of a set.
const FEW_STORES: usize = 3;

const _: () = assert!(size_of::<StoreSet>() == 16);

impl Default for StoreSet {
    fn default() -> StoreSet {
        StoreSet::Few(0, [U32::ZERO; FEW_STORES])
    }
}

impl StoreSet {
    /// A set of the stores that are given, up to the bound.
    pub(crate) fn new(stores: impl Iterator<Item = StoreId>) -> StoreSet {
        let mut list = [U32::ZERO; TARGETS_PER_FILE_MAX];
        let mut len = 0;
        for (place, store) in list.iter_mut().zip(stores) {
            *place = U32::new(store.0);
            len += 1;
        }
        match list {
            [first, second, third, ..] if len <= FEW_STORES => {
                StoreSet::Few(len as u8, [first, second, third])
            }
            _ => StoreSet::Many(len as u8, Arc::new(list)),
        }
    }

    fn stores(&self) -> &[U32] {
        match self {
            StoreSet::Few(len, stores) => &stores[..usize::from(*len)],
            StoreSet::Many(len, stores) => &stores[..usize::from(*len)],
        }
    }

    /// Number of stores.
    pub(crate) fn len(&self) -> usize {
        self.stores().len()
    }

    /// Whether no store was chosen yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.stores().is_empty()
    }

    /// A store by its place.
    pub(crate) fn at(&self, index: usize) -> StoreId {
        StoreId(self.stores()[index].get())
    }

    /// All stores.
    pub(crate) fn iter(&self) -> impl Iterator<Item = StoreId> {
        self.list().iter()
    }

    /// The form in a record.
    pub(crate) fn list(&self) -> StoreList<'_> {
        StoreList::new(self.stores())
    }
}

impl From<StoreList<'_>> for StoreSet {
    fn from(list: StoreList<'_>) -> StoreSet {
        StoreSet::new(list.iter())
    }
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct File {
    pub size: u64,
    pub extents: ExtentMap,
    pub set: StoreSet,
    /// Last member of the list of live operations.
    pub live: u32,
    /// Its table of holds.
    pub holds: u32,
}

/// A directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub parent: Inode,
    pub entries: Entries,
}

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Content {
    File(File),
    Directory(Directory),
}

/// An inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub inode: Inode,
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Record of the last change.
    pub lsn: Lsn,
    pub content: Content,
}

impl Node {
    /// A new file or directory, by the type bits of `mode`.
    pub(crate) fn new(
        inode: Inode,
        parent: Inode,
        (mode, uid, gid): (u32, u32, u32),
        set: StoreSet,
        time_ns: i64,
        lsn: Lsn,
    ) -> Node {
        let directory = mode & file_type::MASK == file_type::DIRECTORY;
        let content = if directory {
            Content::Directory(Directory { parent, entries: Entries::default() })
        } else {
            let extents = ExtentMap::default();
            Content::File(File { size: 0, extents, set, live: NONE, holds: NONE })
        };
        Node {
            inode,
            mode,
            uid,
            gid,
            links: if directory { 2 } else { 1 },
            atime_ns: time_ns,
            mtime_ns: time_ns,
            ctime_ns: time_ns,
            lsn,
            content,
        }
    }

    /// A directory's entries have changed. What was prepared before may take effect after what came
    /// later: the time of the last change never goes back.
    pub(crate) fn changed(&mut self, time_ns: i64, lsn: Lsn) {
        let time_ns = time_ns.max(self.ctime_ns);
        (self.mtime_ns, self.ctime_ns, self.lsn) = (time_ns, time_ns, lsn);
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&File> {
        match &self.content {
            Content::File(file) => Some(file),
            Content::Directory(_) => None,
        }
    }

    /// The file, if it is one.
    pub(crate) fn file_mut(&mut self) -> Option<&mut File> {
        match &mut self.content {
            Content::File(file) => Some(file),
            Content::Directory(_) => None,
        }
    }

    /// The directory, if it is one.
    pub(crate) fn directory(&self) -> Option<&Directory> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            Content::File(_) => None,
        }
    }

    /// The directory, if it is one.
    pub(crate) fn directory_mut(&mut self) -> Option<&mut Directory> {
        match &mut self.content {
            Content::Directory(directory) => Some(directory),
            Content::File(_) => None,
        }
    }

    /// What `stat` shows.
    pub(crate) fn attributes(&self) -> Attributes {
        let (size, blocks) = match &self.content {
            Content::File(file) => (file.size, file.extents.blocks()),
            Content::Directory(directory) => (directory.entries.len() as u64, 0),
        };
        Attributes {
            handle: Handle::new(self.inode),
            size: U64::new(size),
            allocated_bytes: U64::new(blocks * u64::from(BLOCK_BYTES)),
            atime_ns: I64::new(self.atime_ns),
            mtime_ns: I64::new(self.mtime_ns),
            ctime_ns: I64::new(self.ctime_ns),
            mode: U32::new(self.mode),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            links: U32::new(self.links),
        }
    }
}

/// Attributes that name an inode of another shard and say nothing else.
pub(crate) fn only_handle(inode: Inode) -> Attributes {
    Attributes { handle: Handle::new(inode), ..Attributes::default() }
}
