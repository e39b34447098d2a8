//! Changes of state: every one is a record first.
//!
//! [`Core::commit`] gives a record to the log and applies it; replay applies the same records in
//! the same way. What a change needs is checked before anything is touched, so a record that
//! contradicts the state leaves it as it was. Blocks that a change unmaps go through one function,
//! [`Freed::free`].

use gannet_proto::control::StoreInfo;
use gannet_proto::operations::{attribute_mask, file_type};
use gannet_proto::{Inode, ShardId};
use zerocopy::little_endian::{U32, U64};

use crate::defects::Defects;
use crate::directory::Entry;
use crate::extents::Extent;
use crate::namespace::{Content, Node, StoreSet};
use crate::operations::{NONE, Operations, Pinned};
use crate::record::{self, Change, Origin, RecordError, Reply};
use crate::sessions::KeptReply;
use crate::space::{SpaceMap, Span, zone_blocks};
use crate::{Core, Lsn, Sink};

/// Takes the blocks that a change unmaps.
pub(crate) struct Freed<'a> {
    pub(crate) operations: &'a mut Operations,
    pub(crate) space: &'a mut SpaceMap,
    pub(crate) shard: ShardId,
    /// Last member of the live list of the inode.
    pub(crate) live: u32,
    /// Number of the commit.
    pub(crate) commit: u64,
    pub(crate) lsn: Lsn,
    /// Free space is rebuilt when the log is replayed.
    pub(crate) replaying: bool,
    pub(crate) defects: Defects,
}

impl Freed<'_> {
    /// The one way by which blocks become free: when no operation may refer to them any more.
    pub(crate) fn free(&mut self, extent: Extent) {
        if self.replaying {
            return;
        }
        let span = Span { store: extent.store, block: extent.block, blocks: extent.blocks };
        let run = Pinned {
            shard: self.shard,
            span,
            birth: extent.birth,
            freed: self.commit,
            lsn: self.lsn,
        };
        if self.defects.pins() {
            self.space.release(self.shard, span, self.lsn);
            self.space.thaw();
        } else if !self.operations.pin(self.live, run) {
            self.space.release(self.shard, span, self.lsn);
        }
    }
}

fn info(uuid: [u8; 16], generation: u32, blocks: u64) -> StoreInfo {
    StoreInfo {
        uuid,
        generation: U32::new(generation),
        blocks: U64::new(blocks),
        block_bytes: U32::ZERO,
    }
}

pub(crate) fn contradiction<T>(what: &'static str, value: u64) -> Result<T, RecordError> {
    Err(RecordError::Contradiction { what, value })
}

impl Core {
    /// Records a change and applies it. Returns the record's position and the reply that it keeps.
    ///
    /// # Panics
    /// If the change contradicts the state: callers have checked what they ask for.
    pub(crate) fn commit(
        &mut self,
        origin: &Origin,
        change: &Change<'_>,
        sink: &mut impl Sink,
    ) -> (Lsn, Option<KeptReply>) {
        self.keep_what_is_open(origin, change, sink);
        let mut bytes = std::mem::take(&mut self.scratch.record);
        record::encode(&mut bytes, origin, change);
        debug_assert_eq!(record::decode(&bytes), Ok((*origin, *change)));
        let lsn = sink.record(&bytes);
        self.scratch.record = bytes;
        self.last_lsn = lsn;
        self.counters.commits += 1;
        if let Err(error) = self.apply(origin, change, lsn) {
            panic!("a change was made that does not fit the state: {error}");
        }
        (lsn, self.kept(origin, change))
    }

    /// The reply that a record keeps, right after its change was applied.
    pub(crate) fn kept(&self, origin: &Origin, change: &Change<'_>) -> Option<KeptReply> {
        match origin.reply {
            Reply::None => None,
            Reply::Empty => Some(KeptReply::Entry(Default::default())),
            Reply::Attributes(attributes) => Some(KeptReply::Entry(attributes)),
            Reply::Io(io) => Some(KeptReply::Io(io)),
            Reply::Xattr => Some(KeptReply::Xattr),
            Reply::Node => {
                let node = change.inode().and_then(|inode| self.nodes.get(&inode));
                node.map(|node| KeptReply::Entry(node.attributes()))
            }
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// `Contradiction`, and nothing was changed.
    pub(crate) fn apply(
        &mut self,
        origin: &Origin,
        change: &Change<'_>,
        lsn: Lsn,
    ) -> Result<(), RecordError> {
        let time_ns = origin.time_ns;
        self.last_operation = self.last_operation.max(origin.operation);
        match *change {
            Change::NodeCreated { parent, inode, mode, uid, gid, name, set } => {
                self.check_new_node(inode)?;
                self.check_entry(parent, name, false)?;
                let set = StoreSet::from(set);
                self.add_node(Node::new(inode, parent, (mode, uid, gid), set, time_ns, lsn));
                let entry = Entry { inode, file_type: mode & file_type::MASK };
                self.put_entry(parent, name, entry, time_ns, lsn);
            }
            Change::DirectoryMade { parent, inode, mode, uid, gid } => {
                self.check_new_node(inode)?;
                let set = StoreSet::default();
                self.add_node(Node::new(inode, parent, (mode, uid, gid), set, time_ns, lsn));
            }
            Change::EntryAdded { directory, inode, file_type, name } => {
                self.check_directory(directory)?;
                self.put_entry(directory, name, Entry { inode, file_type }, time_ns, lsn);
            }
            Change::EntryRemoved { directory, drop_inode, name } => {
                let entry = self.check_entry(directory, name, true)?;
                if let Some(entry) = entry.filter(|_| drop_inode) {
                    self.check_node(entry.inode)?;
                }
                let removed = self.take_entry(directory, name, time_ns, lsn);
                if let Some(entry) = removed.filter(|_| drop_inode) {
                    self.drop_link(entry.inode, time_ns, lsn);
                }
            }
            Change::NodeDropped { inode } => {
                self.check_node(inode)?;
                self.release_node(inode, lsn);
            }
            Change::Renamed { directory, to_directory, drop_inode, name, to_name } => {
                self.check_entry(directory, name, true)?;
                self.check_directory(to_directory)?;
                self.rename_entry(
                    (directory, name),
                    (to_directory, to_name),
                    drop_inode,
                    time_ns,
                    lsn,
                );
            }
            Change::ParentSet { inode, parent } => {
                self.check_directory(inode)?;
                self.set_parent(inode, parent, time_ns, lsn);
            }
            Change::AttributesSet { inode, .. } => {
                self.check_node(inode)?;
                self.apply_attributes(change, time_ns, lsn)?;
            }
            Change::LayoutSet { inode, set } => match self.nodes.get_mut(&inode) {
                Some(node) if node.file().is_some_and(|file| file.set.is_empty()) => {
                    node.lsn = lsn;
                    if let Some(file) = node.file_mut() {
                        file.set = set.into();
                    }
                }
                _ => return contradiction("the layout of inode", inode.0),
            },
            Change::WriteCommitted { inode, size, extents } => {
                self.apply_write(inode, size, extents, time_ns, lsn)?;
            }
            Change::OpenKept { inode } => match self.nodes.get(&inode) {
                Some(node) if node.file().is_some() && node.links > 0 => self.opens.keep(inode),
                _ => return contradiction("open file", inode.0),
            },
            Change::XattrSet { inode, name, value } => {
                self.change_xattr(inode, time_ns, lsn)?;
                self.xattrs.set(inode, name, value);
            }
            Change::XattrRemoved { inode, name } => {
                self.change_xattr(inode, time_ns, lsn)?;
                if !self.xattrs.remove(inode, name) {
                    return contradiction("an extended attribute of inode", inode.0);
                }
            }
            Change::SessionKnown { session, instance } => {
                if self.sessions.of_log(session, instance).is_none() {
                    return contradiction("session", session);
                }
            }
            Change::SessionEnded { session } => self.sessions.remove(session),
            Change::Prepared { coordinator, order, effects } => {
                self.apply_prepared(origin, (coordinator, order), effects)?;
            }
            Change::Decided { participants, effects } => {
                self.apply_decided(origin, participants, effects, lsn)?;
            }
            Change::Applied { coordinator } => {
                self.apply_outcome(origin, coordinator, true, lsn)?;
            }
            Change::Aborted { coordinator } => {
                self.apply_outcome(origin, coordinator, false, lsn)?;
            }
            Change::Forgotten => self.apply_forgotten(origin)?,
            Change::TargetAdded { .. }
            | Change::StoreAdded { .. }
            | Change::StoreChanged { .. }
            | Change::ZoneAssigned { .. }
            | Change::ZoneReturned { .. } => self.apply_space(change)?,
        }
        Ok(())
    }

    pub(crate) fn check_new_node(&self, inode: Inode) -> Result<(), RecordError> {
        if !self.is_local(inode) || self.nodes.contains_key(&inode) {
            return contradiction("a new inode", inode.0);
        }
        Ok(())
    }

    pub(crate) fn check_node(&self, inode: Inode) -> Result<(), RecordError> {
        if self.nodes.contains_key(&inode) { Ok(()) } else { contradiction("inode", inode.0) }
    }

    pub(crate) fn check_directory(&self, inode: Inode) -> Result<(), RecordError> {
        match self.nodes.get(&inode) {
            Some(node) if node.directory().is_some() => Ok(()),
            _ => contradiction("directory", inode.0),
        }
    }

    pub(crate) fn check_entry(
        &self,
        directory: Inode,
        name: &[u8],
        exists: bool,
    ) -> Result<Option<Entry>, RecordError> {
        self.check_directory(directory)?;
        let entry = self.entry(directory, name);
        if entry.is_some() == exists {
            Ok(entry)
        } else {
            contradiction("an entry of directory", directory.0)
        }
    }

    /// An entry of a directory of this reactor.
    pub(crate) fn entry(&self, directory: Inode, name: &[u8]) -> Option<Entry> {
        self.nodes.get(&directory)?.directory()?.entries.get(name)
    }

    pub(crate) fn add_node(&mut self, node: Node) {
        let inode = node.inode;
        if let Some(shard) = inode.shard() {
            let state = &mut self.shards[usize::from(shard.0)];
            state.last_number = state.last_number.max(inode.number());
        }
        self.nodes.insert(inode, Box::new(node));
    }

    pub(crate) fn put_entry(
        &mut self,
        directory: Inode,
        name: &[u8],
        entry: Entry,
        time_ns: i64,
        lsn: Lsn,
    ) {
        let Some(node) = self.nodes.get_mut(&directory) else { return };
        let mut links = node.links;
        if let Content::Directory(directory) = &mut node.content {
            let replaced = directory.entries.put(name, entry);
            links += u32::from(entry.file_type == file_type::DIRECTORY);
            links -= u32::from(replaced.is_some_and(|old| old.file_type == file_type::DIRECTORY));
        }
        node.links = links;
        node.changed(time_ns, lsn);
    }

    pub(crate) fn take_entry(
        &mut self,
        directory: Inode,
        name: &[u8],
        time_ns: i64,
        lsn: Lsn,
    ) -> Option<Entry> {
        let node = self.nodes.get_mut(&directory)?;
        let entry = node.directory_mut()?.entries.remove(name)?;
        node.links -= u32::from(entry.file_type == file_type::DIRECTORY);
        node.changed(time_ns, lsn);
        Some(entry)
    }

    fn rename_entry(
        &mut self,
        (directory, name): (Inode, &[u8]),
        (to_directory, to_name): (Inode, &[u8]),
        drop_inode: bool,
        time_ns: i64,
        lsn: Lsn,
    ) {
        let replaced = self.entry(to_directory, to_name);
        let Some(entry) = self.take_entry(directory, name, time_ns, lsn) else { return };
        self.put_entry(to_directory, to_name, entry, time_ns, lsn);
        if let Some(replaced) = replaced.filter(|_| drop_inode) {
            self.drop_link(replaced.inode, time_ns, lsn);
        }
        if entry.inode.shard() == directory.shard() {
            self.touch(entry.inode, time_ns, lsn);
        }
        if entry.file_type == file_type::DIRECTORY && directory != to_directory {
            self.set_parent(entry.inode, to_directory, time_ns, lsn);
        }
    }

    fn change_xattr(&mut self, inode: Inode, time_ns: i64, lsn: Lsn) -> Result<(), RecordError> {
        let Some(node) = self.nodes.get_mut(&inode) else { return contradiction("inode", inode.0) };
        (node.ctime_ns, node.lsn) = (node.ctime_ns.max(time_ns), lsn);
        Ok(())
    }

    pub(crate) fn set_parent(&mut self, inode: Inode, parent: Inode, time_ns: i64, lsn: Lsn) {
        if let Some(node) = self.nodes.get_mut(&inode)
            && let Some(directory) = node.directory_mut()
        {
            directory.parent = parent;
            (node.ctime_ns, node.lsn) = (node.ctime_ns.max(time_ns), lsn);
        }
    }

    fn apply_attributes(
        &mut self,
        change: &Change<'_>,
        time_ns: i64,
        lsn: Lsn,
    ) -> Result<(), RecordError> {
        let Change::AttributesSet { inode, mask, mode, uid, gid, atime_ns, mtime_ns, size } =
            *change
        else {
            return Ok(());
        };
        let (Some(node), Some(shard)) = (self.nodes.get_mut(&inode), inode.shard()) else {
            return contradiction("inode", inode.0);
        };
        if mask & attribute_mask::SIZE != 0 {
            let Content::File(file) = &mut node.content else {
                return contradiction("the size of inode", inode.0);
            };
            self.clock += 1;
            if size < file.size {
                let mut freed = Freed {
                    operations: &mut self.operations,
                    space: &mut self.space,
                    shard,
                    live: file.live,
                    commit: self.clock,
                    lsn,
                    replaying: self.replaying,
                    defects: self.defects,
                };
                file.extents.clip(size, |extent| freed.free(extent));
            }
            file.size = size;
            node.mtime_ns = time_ns;
        }
        if mask & attribute_mask::MODE != 0 {
            node.mode = node.mode & file_type::MASK | mode & 0o7777;
        }
        if mask & attribute_mask::UID != 0 {
            node.uid = uid;
        }
        if mask & attribute_mask::GID != 0 {
            node.gid = gid;
        }
        if mask & attribute_mask::ATIME != 0 {
            node.atime_ns = atime_ns;
        }
        if mask & attribute_mask::MTIME != 0 {
            node.mtime_ns = mtime_ns;
        }
        (node.ctime_ns, node.lsn) = (time_ns, lsn);
        Ok(())
    }

    fn apply_write(
        &mut self,
        inode: Inode,
        size: u64,
        extents: record::ExtentList<'_>,
        time_ns: i64,
        lsn: Lsn,
    ) -> Result<(), RecordError> {
        let (Some(node), Some(shard)) = (self.nodes.get_mut(&inode), inode.shard()) else {
            return contradiction("inode", inode.0);
        };
        let Content::File(file) = &mut node.content else {
            return contradiction("file", inode.0);
        };
        let birth = extents.iter().map(|extent| extent.birth).max();
        self.clock = self.clock.max(birth.unwrap_or(0));
        let mut freed = Freed {
            operations: &mut self.operations,
            space: &mut self.space,
            shard,
            live: file.live,
            commit: self.clock,
            lsn,
            replaying: self.replaying,
            defects: self.defects,
        };
        for extent in extents.iter() {
            file.extents.replace(extent, |extent| freed.free(extent));
        }
        file.size = file.size.max(size);
        (node.mtime_ns, node.ctime_ns, node.lsn) = (time_ns, time_ns, lsn);
        Ok(())
    }

    fn apply_space(&mut self, change: &Change<'_>) -> Result<(), RecordError> {
        let done = match *change {
            Change::TargetAdded { target, uuid } => {
                (self.targets.add(target, Some(uuid)), "data server", target.0)
            }
            Change::StoreAdded { store, target, uuid, generation, blocks } => {
                let added = self.add_store(store, target, &info(uuid, generation, blocks));
                if added {
                    self.zones.resize(store, blocks.div_ceil(zone_blocks(blocks)));
                }
                (added, "store", store.0)
            }
            Change::StoreChanged { store, target, generation, blocks } => {
                let known = self.targets.store(store).is_some();
                let info = info([0; 16], generation, blocks);
                (known && self.add_store(store, target, &info), "store", store.0)
            }
            Change::ZoneAssigned { store, zone, shard } => {
                let known = self.targets.store(store).is_some();
                (known && self.zones.assign(store, zone, shard), "zone", zone)
            }
            Change::ZoneReturned { store, zone } => {
                let known = self.targets.store(store).is_some();
                (known && self.zones.give_back(store, zone), "zone", zone)
            }
            _ => return Ok(()),
        };
        match done {
            (true, _, _) => Ok(()),
            (false, what, value) => contradiction(what, value.into()),
        }
    }

    /// Unlinks an operation from the live list of its inode; what it alone pinned becomes free.
    pub(crate) fn unlink_live(&mut self, id: crate::operations::OperationId) {
        let Some(operation) = self.operations.find(id).filter(|operation| operation.live) else {
            return;
        };
        let inode = operation.inode;
        let space = &mut self.space;
        let tail = self.operations.unlink(id, |run| space.release(run.shard, run.span, run.lsn));
        if let Some(tail) = tail
            && let Some(file) = self.nodes.get_mut(&inode).and_then(|node| node.file_mut())
        {
            debug_assert!(tail == NONE || file.live == id.index);
            file.live = tail;
        }
    }
}
