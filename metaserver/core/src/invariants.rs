//! What always holds, checked by tests and by the simulator; and the state as text, to compare.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::operations::file_type;
use gannet_proto::{Block, Inode, ShardId, StoreId};

use crate::Core;
use crate::namespace::{Content, Directory, File, Node};
use crate::space::Span;

/// Who uses each block.
struct Uses(BTreeMap<(ShardId, StoreId, Block), String>);

impl Uses {
    fn add(&mut self, shard: ShardId, span: Span, by: &dyn Fn() -> String) -> Result<(), String> {
        for step in 0..u64::from(span.blocks) {
            let block = Block(span.block.0 + step);
            if let Some(other) = self.0.insert((shard, span.store, block), by()) {
                return Err(format!(
                    "block {block} of store {} is used by {other} and by {}",
                    span.store,
                    by()
                ));
            }
        }
        Ok(())
    }
}

impl Core {
    /// Checks the tree, the link counts, the extents, that nobody waits for room that there is, and
    /// that exactly the blocks that somebody uses are marked in use. Costs time in proportion to the state.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut uses = Uses(BTreeMap::new());
        for node in self.nodes.values() {
            match &node.content {
                Content::File(file) => self.check_file(node, file, &mut uses)?,
                Content::Directory(inner) => self.check_directory_node(node, inner)?,
            }
        }
        self.check_reachable()?;
        self.check_waiting()?;
        if self.ready {
            self.check_space(uses)?;
        }
        Ok(())
    }

    fn check_file(&self, node: &Node, file: &File, uses: &mut Uses) -> Result<(), String> {
        let inode = node.inode;
        let (mut end, mut blocks, mut valid_end) = (0, 0, 0);
        for extent in file.extents.iter() {
            if extent.file_block < end {
                return Err(format!("extents of inode {:#x} overlap", inode.0));
            }
            if extent.tail_valid == 0 || u32::from(extent.tail_valid) > BLOCK_BYTES {
                return Err(format!("an extent of inode {:#x} has no valid tail", inode.0));
            }
            end = extent.end();
            blocks += u64::from(extent.blocks);
            valid_end = extent.file_block * u64::from(BLOCK_BYTES) + extent.valid_bytes();
            let span = Span { store: extent.store, block: extent.block, blocks: extent.blocks };
            let shard = inode.shard().ok_or("an inode without a shard")?;
            uses.add(shard, span, &|| format!("inode {:#x}", inode.0))?;
        }
        if blocks != file.extents.blocks() {
            return Err(format!("inode {:#x} miscounts its blocks", inode.0));
        }
        if valid_end > file.size {
            return Err(format!("inode {:#x} has data beyond its end", inode.0));
        }
        if node.links != 1 {
            return Err(format!("file {:#x} has {} links", inode.0, node.links));
        }
        Ok(())
    }

    fn check_directory_node(&self, node: &Node, directory: &Directory) -> Result<(), String> {
        let mut subdirectories = 0;
        for (name, entry) in &directory.entries {
            subdirectories += u32::from(entry.file_type == file_type::DIRECTORY);
            if !self.is_local(entry.inode) {
                continue;
            }
            let name = String::from_utf8_lossy(name);
            let Some(child) = self.nodes.get(&entry.inode) else {
                if self.held.is_empty() {
                    return Err(format!("{name} in {:#x} leads to nothing", node.inode.0));
                }
                continue;
            };
            if child.mode & file_type::MASK != entry.file_type {
                return Err(format!("{name} in {:#x} has the wrong type", node.inode.0));
            }
            let parent = child.directory().map(|directory| directory.parent);
            if parent.is_some_and(|parent| parent != node.inode) && self.operations.live() == 0 {
                return Err(format!("{name} in {:#x} has another parent", node.inode.0));
            }
        }
        if node.links != 2 + subdirectories {
            return Err(format!(
                "directory {:#x} has {} links and {subdirectories} subdirectories",
                node.inode.0, node.links
            ));
        }
        Ok(())
    }

    /// With one reactor and nothing under way, every inode has exactly one name.
    fn check_reachable(&self) -> Result<(), String> {
        if self.config.reactors > 1 || self.operations.live() > 0 {
            return Ok(());
        }
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        let directories = self.nodes.values().filter_map(|node| node.directory());
        for entry in directories.flat_map(|directory| directory.entries.values()) {
            *names.entry(entry.inode.0).or_default() += 1;
        }
        for inode in self.nodes.keys() {
            let expected = u32::from(*inode != Inode::ROOT);
            let count = names.get(&inode.0).copied().unwrap_or(0);
            if count != expected {
                return Err(format!("inode {:#x} has {count} names", inode.0));
            }
        }
        Ok(())
    }

    /// Who waits first for room at a data server finds none: only then a grant that ends wakes it.
    fn check_waiting(&self) -> Result<(), String> {
        for (id, target) in self.targets.iter() {
            let first = target.waiting.front().and_then(|first| self.operations.find(*first));
            let needed = first.map(|operation| u32::from(operation.needed));
            if needed.is_some_and(|needed| target.has_room(needed, self.config.grants_max)) {
                return Err(format!("an operation waits for room that data server {id} has"));
            }
        }
        Ok(())
    }

    fn check_space(&self, mut uses: Uses) -> Result<(), String> {
        for (id, operation) in self.operations.iter() {
            let by = || format!("operation {}", id.index);
            for run in &operation.staged {
                uses.add(operation.shard(), run.span, &by)?;
            }
            for run in &operation.pinned {
                uses.add(run.shard, run.span, &by)?;
            }
        }
        for (shard, span) in self.space.cooling() {
            uses.add(shard, span, &|| "cooling".to_owned())?;
        }
        for place in self.space.in_use() {
            if uses.0.remove(&place).is_none() {
                let (shard, store, block) = place;
                return Err(format!("block {block} of store {store} leaks in shard {shard}"));
            }
        }
        match uses.0.into_iter().next() {
            Some(((_, store, block), by)) => {
                Err(format!("block {block} of store {store} is used by {by} but not marked"))
            }
            None => Ok(()),
        }
    }

    /// Whether nothing is under way: no operation, no hold, no held name.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.operations.live() == 0 && self.holds.is_empty() && self.held.is_empty()
    }

    /// The durable state as text in a fixed order. A replay of the log gives the same text.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut inodes: Vec<&Inode> = self.nodes.keys().collect();
        inodes.sort_unstable();
        for inode in inodes {
            let node = &self.nodes[inode];
            let _ = writeln!(
                text,
                "{:#x} mode {:o} owner {}:{} links {} times {} {} {}",
                inode.0,
                node.mode,
                node.uid,
                node.gid,
                node.links,
                node.atime_ns,
                node.mtime_ns,
                node.ctime_ns
            );
            match &node.content {
                Content::File(file) => {
                    let set: Vec<u32> = file.set.iter().map(|store| store.0).collect();
                    let _ = writeln!(text, "  size {} set {set:?}", file.size);
                    for extent in file.extents.iter() {
                        let _ = writeln!(text, "  {extent:?}");
                    }
                }
                Content::Directory(directory) => {
                    let _ = writeln!(text, "  parent {:#x}", directory.parent.0);
                    for (name, entry) in &directory.entries {
                        let name = String::from_utf8_lossy(name);
                        let _ = writeln!(text, "  {name:?} {entry:?}");
                    }
                }
            }
        }
        let mut sessions: Vec<_> = self.sessions.iter().map(|(_, session)| session).collect();
        sessions.sort_unstable_by_key(|session| session.id);
        for session in sessions.into_iter().filter(|session| session.durable) {
            let _ = writeln!(text, "session {:#x} instance {:#x}", session.id.0, session.instance);
        }
        for (id, store) in self.targets.stores() {
            let Block(blocks) = Block(store.blocks);
            let _ = writeln!(
                text,
                "store {id} of {} generation {} blocks {blocks}",
                store.target, store.generation
            );
        }
        for zone in self.zones.assigned() {
            let _ = writeln!(text, "zone {zone:?}");
        }
        text
    }

    /// The kept replies as text in a fixed order. Those of slots that went on to requests which
    /// leave no record are in the log still, so this compares with a replay only when every slot's
    /// last request was a change.
    #[must_use]
    pub fn dump_replies(&self) -> String {
        let mut sessions: Vec<_> = self.sessions.iter().map(|(_, session)| session).collect();
        sessions.sort_unstable_by_key(|session| session.id);
        let mut text = String::new();
        for session in sessions {
            for (shard, slot, sequence, reply) in session.kept() {
                let _ = writeln!(text, "{:#x} {shard} {slot} {sequence} {reply:?}", session.id.0);
            }
        }
        text
    }
}
