//! The tree: what entries lead to, which names inodes have, and what the root leads to.

use gannet_proto::Inode;
use gannet_proto::operations::file_type;
use rustc_hash::FxHashSet;

use super::{FindingKind, Findings, Place, View, given_out};
use crate::Core;
use crate::directory::Entry;
use crate::namespace::{Content, Directory, Node};

/// Directories that a path climbs through at most before it counts as none.
const DEPTH_MAX: usize = 4096;

/// An entry: where it leads, and the directory that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    inode: Inode,
    directory: Inode,
}

/// All entries that lead to an inode of one of the cores, by inode.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Name>);

impl Names {
    /// Makes inodes findable.
    pub(super) fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// The entries that lead to an inode.
    fn of(&self, inode: Inode) -> &[Name] {
        let start = self.0.partition_point(|name| name.inode < inode);
        let count = self.0[start..].iter().take_while(|name| name.inode == inode).count();
        &self.0[start..start + count]
    }
}

/// A name as it is shown, on one line whatever it consists of.
fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for symbol in String::from_utf8_lossy(name).chars() {
        match symbol.is_control() {
            true => text.extend(symbol.escape_default()),
            false => text.push(symbol),
        }
    }
    text
}

fn type_word(file_type: u32) -> &'static str {
    match file_type {
        file_type::DIRECTORY => "a directory",
        file_type::REGULAR => "a regular file",
        _ => "something else",
    }
}

impl<'a> View<'a> {
    /// A directory's entries: each leads to an inode of its type; and the links that they amount to.
    pub(super) fn check_directory(
        &self,
        core: &'a Core,
        node: &Node,
        directory: &Directory,
        names: &mut Names,
        findings: &mut Findings,
    ) {
        let mut subdirectories = 0;
        for (name, entry) in directory.entries.iter() {
            subdirectories += u32::from(entry.file_type == file_type::DIRECTORY);
            let Some(owner) = self.owner(entry.inode) else { continue };
            match self.node(entry.inode) {
                Some(child) => {
                    names.0.push(Name { inode: entry.inode, directory: node.inode });
                    self.check_entry(core, node, (name, entry), child, findings);
                }
                None => self.check_lost_entry(core, owner, node, (name, entry), findings),
            }
        }
        if node.links != 2 + subdirectories {
            let place = Place::inode(core.config.reactor, node.inode);
            findings.error(FindingKind::Links, place, || {
                format!("it counts {} links and has {subdirectories} subdirectories", node.links)
            });
        }
    }

    fn check_entry(
        &self,
        core: &Core,
        node: &Node,
        (name, entry): (&[u8], Entry),
        child: &Node,
        findings: &mut Findings,
    ) {
        let place = || Place::inode(core.config.reactor, node.inode);
        let found = child.mode & file_type::MASK;
        let kind = match child.content {
            Content::File(_) => file_type::REGULAR,
            Content::Directory(_) => file_type::DIRECTORY,
        };
        if found != entry.file_type || kind != found {
            findings.error(FindingKind::EntryType, place(), || {
                let (name, inode) = (shown(name), entry.inode.0);
                let (says, is) = (type_word(entry.file_type), type_word(kind));
                format!("its entry {name} says that inode {inode:#x} is {says}, and it is {is}")
            });
        }
        // With all names at hand, `check_names` tells more.
        let parent = child.directory().map(|directory| directory.parent);
        let is_wrong = parent.is_some_and(|parent| parent != node.inode);
        let is_moving = core.operations.live() > 0 || core.transactions.has_prepared();
        if !self.names_are_known() && is_wrong && !is_moving {
            findings.error(FindingKind::WrongParent, place(), || {
                format!("its entry {} leads to a directory of another parent", shown(name))
            });
        }
    }

    /// An entry that leads to an inode that does not exist.
    fn check_lost_entry(
        &self,
        core: &Core,
        owner: &Core,
        node: &Node,
        (name, entry): (&[u8], Entry),
        findings: &mut Findings,
    ) {
        if !core.held.is_empty() || owner.transactions.has_prepared() {
            // An operation that makes or removes both is under way.
            return;
        }
        let place = Place::inode(core.config.reactor, node.inode);
        let (inode, kind) = (entry.inode.0, type_word(entry.file_type));
        if !given_out(owner, entry.inode) {
            findings.error(FindingKind::EntryNumber, place, || {
                let name = shown(name);
                format!("its entry {name} leads to {kind}, inode {inode:#x}, that never existed")
            });
            return;
        }
        findings.error(FindingKind::EntryToNothing, place, || {
            let name = shown(name);
            format!("its entry {name} leads to {kind}, inode {inode:#x}, that does not exist")
        });
    }

    /// Every inode but the root has one name, directories know by whom, and all hang on the root.
    pub(super) fn check_names(&self, names: &Names, findings: &mut Findings) {
        if !self.names_are_known() {
            return;
        }
        for core in self.cores {
            let mut inodes: Vec<Inode> = core.nodes.keys().copied().collect();
            inodes.sort_unstable();
            for node in inodes.iter().filter_map(|inode| core.nodes.get(inode)) {
                self.check_names_of(core, node, names.of(node.inode), findings);
            }
        }
        self.check_reachable(names, findings);
    }

    fn check_names_of(&self, core: &Core, node: &Node, names: &[Name], findings: &mut Findings) {
        let inode = node.inode;
        let place = || Place::inode(core.config.reactor, inode);
        let parent = node.directory().map(|directory| directory.parent);
        if inode == Inode::ROOT {
            if !names.is_empty() {
                findings.error(FindingKind::SeveralNames, place(), || {
                    format!("{} entries lead to the root", names.len())
                });
            }
            if parent != Some(Inode::ROOT) {
                findings.error(FindingKind::WrongParent, place(), || {
                    "the root is not its own parent".to_owned()
                });
            }
            return;
        }
        if names.is_empty() {
            return self.check_nameless(core, node, findings);
        }
        let Some(parent) = parent else {
            if node.links as usize != names.len() {
                findings.error(FindingKind::Links, place(), || {
                    format!(
                        "it counts {} links, and {} entries lead to it",
                        node.links,
                        names.len()
                    )
                });
            }
            return;
        };
        match names {
            [name] if parent != name.directory => {
                findings.error(FindingKind::WrongParent, place(), || {
                    let (parent, by) = (parent.0, name.directory.0);
                    format!("directory {by:#x} names it, and its parent is said to be {parent:#x}")
                });
            }
            [first, second, ..] => {
                findings.error(FindingKind::SeveralNames, place(), || {
                    let (count, one, other) = (names.len(), first.directory.0, second.directory.0);
                    format!("{count} entries lead to it, in directories {one:#x} and {other:#x}")
                });
            }
            _ => {}
        }
    }

    fn check_nameless(&self, core: &Core, node: &Node, findings: &mut Findings) {
        let place = Place::inode(core.config.reactor, node.inode);
        if core.opens.is_orphan(node.inode) {
            // Somebody has it open, or had so before the last stop.
            return;
        }
        findings.error(FindingKind::NoName, place, || match &node.content {
            Content::File(file) => {
                format!("no entry leads to it; it holds {} blocks", file.extents.blocks())
            }
            Content::Directory(directory) => {
                let (entries, parent) = (directory.entries.len(), directory.parent.0);
                format!("no entry leads to it; it has {entries} entries and parent {parent:#x}")
            }
        });
    }

    /// Marks the directories that one leads to, itself among them.
    fn reach(&self, from: Inode, reached: &mut FxHashSet<Inode>) {
        let mut pending = vec![from];
        while let Some(inode) = pending.pop() {
            let directory = self.node(inode).and_then(|node| node.directory());
            let Some(directory) = directory.filter(|_| reached.insert(inode)) else { continue };
            let directories =
                directory.entries.iter().filter(|(_, e)| e.file_type == file_type::DIRECTORY);
            pending.extend(directories.map(|(_, entry)| entry.inode));
        }
    }

    /// What has a name but hangs on a directory without one, or on itself.
    fn check_reachable(&self, names: &Names, findings: &mut Findings) {
        let mut reached = FxHashSet::default();
        self.reach(Inode::ROOT, &mut reached);
        // What is said already, and what hangs on it; then what is left hangs on itself.
        let mut explained = FxHashSet::default();
        let (mut lost, mut left) = (Vec::new(), Vec::new());
        for core in self.cores {
            for node in core.nodes.values().filter(|node| node.inode != Inode::ROOT) {
                let named_by = names.of(node.inode);
                if named_by.is_empty() {
                    if node.directory().is_some_and(|directory| !directory.entries.is_empty()) {
                        self.reach(node.inode, &mut explained);
                    }
                } else if !named_by.iter().any(|name| reached.contains(&name.directory)) {
                    lost.push(node.inode);
                    left.extend(node.directory().map(|_| node.inode));
                }
            }
        }
        lost.sort_unstable();
        left.sort_unstable();
        for inode in &left {
            if !explained.contains(inode) {
                self.report_cycle(*inode, names, &mut explained, findings);
            }
        }
        for inode in lost {
            let reactor = self.owner(inode).map_or(0, |core| core.config.reactor);
            findings.error(FindingKind::Unreachable, Place::inode(reactor, inode), || {
                "it has a name, and the root does not lead to it".to_owned()
            });
        }
    }

    /// Climbs from a directory that hangs on no other until one comes again.
    fn report_cycle(
        &self,
        from: Inode,
        names: &Names,
        explained: &mut FxHashSet<Inode>,
        findings: &mut Findings,
    ) {
        let mut path = Vec::new();
        let mut seen = FxHashSet::default();
        let mut at = from;
        while seen.insert(at) {
            path.push(at);
            match names.of(at).first() {
                Some(name) => at = name.directory,
                None => return,
            }
        }
        let start = path.iter().position(|inode| *inode == at).unwrap_or(0);
        let cycle = &path[start..];
        if explained.contains(&at) {
            return;
        }
        let first = cycle.iter().copied().min().unwrap_or(at);
        let reactor = self.owner(first).map_or(0, |core| core.config.reactor);
        findings.error(FindingKind::Cycle, Place::inode(reactor, first), || match cycle {
            [_] => "the directory contains itself".to_owned(),
            _ => format!("{} directories contain each other in a circle", cycle.len()),
        });
        self.reach(first, explained);
    }

    /// The path of an inode; `None` if the root does not lead to it.
    pub(super) fn path(&self, names: &Names, inode: Inode) -> Option<String> {
        let mut parts = Vec::new();
        let mut at = inode;
        for _ in 0..DEPTH_MAX {
            if at == Inode::ROOT {
                parts.reverse();
                return Some(format!("/{}", parts.join("/")));
            }
            let directory = names.of(at).first()?.directory;
            let entries = &self.node(directory)?.directory()?.entries;
            let (name, _) = entries.iter().find(|(_, entry)| entry.inode == at)?;
            parts.push(shown(name));
            at = directory;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_on_one_line() {
        assert_eq!(shown("größe ☃".as_bytes()), "größe ☃");
        assert_eq!(shown(b"a\nb\x1b[0m"), "a\\nb\\u{1b}[0m");
        assert_eq!(shown(b"\xff"), "\u{fffd}");
    }
}
