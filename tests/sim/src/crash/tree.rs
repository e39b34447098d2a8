//! What a tree of files must be after some steps: the oracle.

use std::collections::BTreeMap;

use super::script::Step;
use crate::workload::content;

/// Tells the inodes of a tree apart; counts from 0, which is the root.
pub type NodeId = usize;

/// The root.
pub const ROOT: NodeId = 0;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory with its entries.
    Directory(BTreeMap<String, NodeId>),
    /// A file with its content.
    File(Vec<u8>),
}

/// A tree. Nodes without a name stay, as files that are open do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
    /// What is open, by the number that the script gives it.
    opens: BTreeMap<u8, NodeId>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { nodes: vec![Node::Directory(BTreeMap::new())], opens: BTreeMap::new() }
    }
}

/// The path of the directory that a path is in, and the last name.
#[must_use]
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Tree {
    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node]
    }

    /// The number that the next node will have.
    #[must_use]
    pub fn next(&self) -> NodeId {
        self.nodes.len()
    }

    /// Where a path leads, or an open: `#1` is what the script opened as 1.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        if let Some(open) = path.strip_prefix('#') {
            return self.opens.get(&open.parse().ok()?).copied();
        }
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| {
            match &self.nodes[at] {
                Node::Directory(entries) => entries.get(name).copied(),
                Node::File(_) => None,
            }
        })
    }

    /// As [`Tree::find`], for what a script says is there.
    ///
    /// # Panics
    /// If it is not: the script is wrong.
    #[must_use]
    pub fn at(&self, path: &str) -> NodeId {
        self.find(path).unwrap_or_else(|| panic!("the script says that {path} is there"))
    }

    /// Content of a file.
    ///
    /// # Panics
    /// If it is a directory: the script is wrong.
    #[must_use]
    pub fn content(&self, node: NodeId) -> &Vec<u8> {
        match &self.nodes[node] {
            Node::File(content) => content,
            Node::Directory(_) => panic!("the script uses a directory as a file"),
        }
    }

    fn content_mut(&mut self, node: NodeId) -> &mut Vec<u8> {
        match &mut self.nodes[node] {
            Node::File(content) => content,
            Node::Directory(_) => panic!("the script uses a directory as a file"),
        }
    }

    fn entries_mut(&mut self, path: &str) -> &mut BTreeMap<String, NodeId> {
        let node = self.at(path);
        match &mut self.nodes[node] {
            Node::Directory(entries) => entries,
            Node::File(_) => panic!("the script uses a file as a directory: {path}"),
        }
    }

    fn enter(&mut self, path: &str, node: NodeId) {
        let (parent, name) = split(path);
        self.entries_mut(parent).insert(name.to_owned(), node);
    }

    fn remove(&mut self, path: &str) {
        let (parent, name) = split(path);
        let removed = self.entries_mut(parent).remove(name);
        assert!(removed.is_some(), "the script removes {path}, which is not there");
    }

    fn make(&mut self, path: &str, node: Node) {
        assert_eq!(self.find(path), None, "the script makes {path}, which is there");
        self.nodes.push(node);
        self.enter(path, self.nodes.len() - 1);
    }

    /// Does a step whose bytes are those of write `number`.
    ///
    /// # Panics
    /// If it cannot succeed: the script is wrong.
    pub fn apply(&mut self, step: &Step, number: u32) {
        match *step {
            Step::Mkdir(path) => self.make(path, Node::Directory(BTreeMap::new())),
            Step::Create(path) => self.make(path, Node::File(Vec::new())),
            Step::Link(from, to) => {
                let node = self.at(from);
                assert_eq!(self.find(to), None, "the script links over {to}");
                self.enter(to, node);
            }
            Step::Unlink(path) | Step::Rmdir(path) => self.remove(path),
            Step::Rename(from, to) => {
                let node = self.at(from);
                // Two names of one file stay.
                if self.find(to) != Some(node) {
                    self.remove(from);
                    self.enter(to, node);
                }
            }
            Step::Exchange(one, other) => {
                let (first, second) = (self.at(one), self.at(other));
                self.enter(one, second);
                self.enter(other, first);
            }
            Step::Write { file, offset, len_bytes } => {
                self.write(self.at(file), offset as usize, len_bytes as usize, number);
            }
            Step::Append { file, len_bytes } => {
                let node = self.at(file);
                let end = self.content(node).len();
                self.write(node, end, len_bytes as usize, number);
            }
            Step::Truncate { file, size } => {
                let node = self.at(file);
                self.content_mut(node).resize(size as usize, 0);
            }
            Step::Open(path, open) => {
                let node = self.at(path);
                assert!(self.opens.insert(open, node).is_none(), "the script opens {open} twice");
            }
            Step::Close(open) => {
                assert!(self.opens.remove(&open).is_some(), "the script closes {open} twice");
            }
            Step::Read(_) => {}
        }
    }

    fn write(&mut self, node: NodeId, offset: usize, len_bytes: usize, number: u32) {
        let content = self.content_mut(node);
        let end = offset + len_bytes;
        if content.len() < end {
            content.resize(end, 0);
        }
        content::fill(number, offset as u64, &mut content[offset..end]);
    }

    /// Every path with its node; the root is not among them.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, NodeId> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((path, node)) = pending.pop() {
            let Node::Directory(entries) = &self.nodes[node] else { continue };
            for (name, node) in entries {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                found.insert(path.clone(), *node);
                pending.push((path, *node));
            }
        }
        found
    }

    /// Names that lead to a node.
    #[must_use]
    pub fn links(&self, node: NodeId) -> usize {
        self.paths().values().filter(|found| **found == node).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_do_what_they_say() {
        let mut tree = Tree::default();
        let steps = [
            Step::Mkdir("a"),
            Step::Mkdir("b"),
            Step::Create("a/f"),
            Step::Write { file: "a/f", offset: 3, len_bytes: 4 },
            Step::Link("a/f", "b/g"),
            Step::Open("a/f", 1),
            Step::Unlink("a/f"),
            Step::Append { file: "#1", len_bytes: 2 },
            Step::Create("a/h"),
            Step::Exchange("a/h", "b/g"),
            Step::Rename("a/h", "b/g"),
            Step::Truncate { file: "#1", size: 8 },
        ];
        for (number, step) in steps.iter().enumerate() {
            tree.apply(step, number as u32 + 1);
        }
        let paths: Vec<String> = tree.paths().into_keys().collect();
        assert_eq!(paths, ["a", "b", "b/g"]);
        let node = tree.at("#1");
        assert_eq!((tree.at("b/g"), tree.links(node)), (node, 1));
        let bytes = tree.content(node);
        assert_eq!((bytes.len(), &bytes[..3]), (8, &[0; 3][..]));
        assert!(content::is_of(4, 3, &bytes[3..7]) && content::is_of(8, 7, &bytes[7..]));
        tree.apply(&Step::Close(1), 0);
        assert_eq!(tree.find("#1"), None);
    }
}
