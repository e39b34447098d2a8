//! Links: how many names an inode has, and what happens when it has none any more.
//!
//! A file counts the entries that lead to it, on whichever shards they are; a directory counts two
//! and its subdirectories, as POSIX has it. The count changes together with the entries: by one
//! record where all of it lies on one shard, else by an operation over shards. Whatever goes, goes
//! by [`Core::release_node`].

use gannet_proto::limits::LINKS_MAX;
use gannet_proto::operations::{Attributes, NameRequest, Names, file_type};
use gannet_proto::{Inode, Status};

use crate::apply::Freed;
use crate::name_operations::{Stage, name_operation_of};
use crate::names::{Stop, directory_of};
use crate::peer::Step;
use crate::reply::Context;
use crate::{Core, Lsn, Sink};

impl Core {
    /// Whether an inode of this reactor may have one more name; its attributes.
    ///
    /// # Errors
    /// `STALE_HANDLE`, `NOT_FOUND` for a file that lost its last name, `NOT_PERMITTED` for a
    /// directory, `TOO_MANY_LINKS`.
    pub(crate) fn check_link(&self, inode: Inode) -> Result<Attributes, Status> {
        let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
        if node.directory().is_some() {
            return Err(Status::NOT_PERMITTED);
        }
        if node.links == 0 {
            // Somebody has it open, and nobody can name it.
            return Err(Status::NOT_FOUND);
        }
        match node.links < LINKS_MAX {
            true => Ok(node.attributes()),
            false => Err(Status::TOO_MANY_LINKS),
        }
    }

    /// An inode has one more name.
    pub(crate) fn add_link(&mut self, inode: Inode, time_ns: i64, lsn: Lsn) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.links = node.links.saturating_add(1);
            (node.ctime_ns, node.lsn) = (node.ctime_ns.max(time_ns), lsn);
        }
    }

    /// An inode has lost a name: it goes with the last one, or with its last open.
    pub(crate) fn drop_link(&mut self, inode: Inode, time_ns: i64, lsn: Lsn) {
        let Some(node) = self.nodes.get_mut(&inode) else { return };
        let is_last = node.directory().is_some() || node.links <= 1;
        if is_last && !self.opens.orphan(inode, self.replaying) {
            return self.release_node(inode, lsn);
        }
        node.links -= 1;
        (node.ctime_ns, node.lsn) = (node.ctime_ns.max(time_ns), lsn);
    }

    /// Whatever the name of an inode is, it has changed.
    pub(crate) fn touch(&mut self, inode: Inode, time_ns: i64, lsn: Lsn) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            (node.ctime_ns, node.lsn) = (node.ctime_ns.max(time_ns), lsn);
        }
    }

    /// The one way by which an inode goes: no name leads to it any more. Its blocks become free when
    /// no transfer may refer to them.
    pub(crate) fn release_node(&mut self, inode: Inode, lsn: Lsn) {
        let (Some(node), Some(shard)) = (self.nodes.remove(&inode), inode.shard()) else { return };
        self.opens.gone(inode);
        self.xattrs.forget(inode);
        self.shards[usize::from(shard.0)].removed = lsn;
        self.clock += 1;
        if let Some(file) = node.file() {
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
            file.extents.iter().for_each(|extent| freed.free(extent));
        }
    }

    /// LINK: `to_parent` names the inode that gets another name.
    pub(crate) fn link(
        &mut self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        self.check_place(parent, names.name)?;
        let (inode, _) = directory_of(&request.to_parent)?;
        if self.entry(parent, names.name).is_some() {
            return Err(Stop::Status(Status::EXISTS));
        }
        let operation = Box::new(name_operation_of(request, names, Stage::Counting));
        self.begin_plan(*context, operation, Step::Link { inode }, None, sink);
        Ok(())
    }
}

/// The type bits of attributes.
pub(crate) fn type_of(attributes: &Attributes) -> u32 {
    attributes.mode.get() & file_type::MASK
}
