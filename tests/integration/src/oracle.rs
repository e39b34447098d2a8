//! What a tree of files must be after some operations, for [`crate::worker`].
//!
//! Operations are words of a line, so that a journal can hold them. The bytes of a write follow from
//! its number and their place in the file, so the oracle remembers which write lies where and no bytes.

use std::collections::BTreeMap;
use std::fmt;

use crate::pattern::mix;

/// Tells the inodes of a tree apart; counts from 0, which is the root.
pub type NodeId = usize;

/// The root.
pub const ROOT: NodeId = 0;

/// One change. Paths begin with a slash and have no spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a directory.
    Mkdir(String),
    /// Makes a file.
    Create(String),
    /// Gives a file a further name.
    Link(String, String),
    /// Removes a name of a file.
    Unlink(String),
    /// Removes an empty directory.
    Rmdir(String),
    /// Moves a name, over what may be there.
    Rename(String, String),
    /// Two names change places.
    Exchange(String, String),
    /// Writes so many bytes at a place.
    Write(String, u64, u64),
    /// Writes so many bytes at the end.
    Append(String, u64),
    /// Cuts or extends.
    Truncate(String, u64),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Mkdir(path) => write!(f, "mkdir {path}"),
            Change::Create(path) => write!(f, "create {path}"),
            Change::Link(from, to) => write!(f, "link {from} {to}"),
            Change::Unlink(path) => write!(f, "unlink {path}"),
            Change::Rmdir(path) => write!(f, "rmdir {path}"),
            Change::Rename(from, to) => write!(f, "rename {from} {to}"),
            Change::Exchange(one, other) => write!(f, "exchange {one} {other}"),
            Change::Write(path, offset, len_bytes) => {
                write!(f, "write {path} {offset} {len_bytes}")
            }
            Change::Append(path, len_bytes) => write!(f, "append {path} {len_bytes}"),
            Change::Truncate(path, size) => write!(f, "truncate {path} {size}"),
        }
    }
}

impl Change {
    /// Reads what [`fmt::Display`] wrote; `None` if it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Change> {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse().ok();
        let own = |word: &str| word.to_owned();
        Some(match words[..] {
            ["mkdir", path] => Change::Mkdir(own(path)),
            ["create", path] => Change::Create(own(path)),
            ["link", from, to] => Change::Link(own(from), own(to)),
            ["unlink", path] => Change::Unlink(own(path)),
            ["rmdir", path] => Change::Rmdir(own(path)),
            ["rename", from, to] => Change::Rename(own(from), own(to)),
            ["exchange", one, other] => Change::Exchange(own(one), own(other)),
            ["write", path, offset, len_bytes] => {
                Change::Write(own(path), number(offset)?, number(len_bytes)?)
            }
            ["append", path, len_bytes] => Change::Append(own(path), number(len_bytes)?),
            ["truncate", path, size] => Change::Truncate(own(path), number(size)?),
            _ => return None,
        })
    }
}

/// Content of a file: which write lies where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    size: u64,
    /// By beginning, the end and the write's number; they do not overlap, and the rest is zeros.
    pieces: BTreeMap<u64, (u64, u64)>,
}

/// Puts the bytes of a write that begin at `offset` of a file into `bytes`.
pub fn fill(bytes: &mut [u8], number: u64, offset: u64) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        // Odd, so that they are told from holes.
        let word = (mix(mix(number) ^ (at / 8)) | 0x0101_0101_0101_0101).to_le_bytes();
        let word = &word[(at % 8) as usize..];
        let count = word.len().min(rest.len());
        let (front, back) = rest.split_at_mut(count);
        front.copy_from_slice(&word[..count]);
        (rest, at) = (back, at + count as u64);
    }
}

impl Content {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        for (start, (end, number)) in &self.pieces {
            fill(&mut bytes[*start as usize..*end as usize], *number, *start);
        }
        bytes
    }

    /// Takes out whatever lies in a range.
    fn clear(&mut self, from: u64, until: u64) {
        let touched: Vec<u64> = self.pieces.range(..until).map(|(start, _)| *start).collect();
        for start in touched.into_iter().rev() {
            let (end, number) = self.pieces[&start];
            if end <= from {
                // Pieces do not overlap: those before end before.
                break;
            }
            self.pieces.remove(&start);
            if start < from {
                self.pieces.insert(start, (from, number));
            }
            if end > until {
                self.pieces.insert(until, (end, number));
            }
        }
    }

    fn write(&mut self, offset: u64, len_bytes: u64, number: u64) {
        let end = offset + len_bytes;
        self.clear(offset, end);
        self.pieces.insert(offset, (end, number));
        self.size = self.size.max(end);
    }

    fn truncate(&mut self, size: u64) {
        self.clear(size, u64::MAX);
        self.size = size;
    }
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory with its entries.
    Directory(BTreeMap<String, NodeId>),
    /// A file.
    File(Content),
}

/// A tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
}

/// The path of the directory that a path is in, and the last name.
///
/// # Panics
/// If there is no slash in it.
#[must_use]
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').expect("paths begin with a slash")
}

impl Tree {
    /// A root with these directories, which are not looked into.
    #[must_use]
    pub fn new(directories: &[String]) -> Tree {
        let mut tree = Tree { nodes: vec![Node::Directory(BTreeMap::new())] };
        for path in directories {
            tree.apply(&Change::Mkdir(path.clone()), 0);
        }
        tree
    }

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

    /// Where a path leads.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| {
            match &self.nodes[at] {
                Node::Directory(entries) => entries.get(name).copied(),
                Node::File(_) => None,
            }
        })
    }

    /// As [`Tree::find`], for what is there.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn at(&self, path: &str) -> NodeId {
        self.find(path).unwrap_or_else(|| panic!("{path} is not in the tree"))
    }

    /// Content of a file.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn content(&self, path: &str) -> &Content {
        match &self.nodes[self.at(path)] {
            Node::File(content) => content,
            Node::Directory(_) => panic!("{path} is a directory"),
        }
    }

    fn content_mut(&mut self, path: &str) -> &mut Content {
        let node = self.at(path);
        match &mut self.nodes[node] {
            Node::File(content) => content,
            Node::Directory(_) => panic!("{path} is a directory"),
        }
    }

    fn entries_mut(&mut self, path: &str) -> &mut BTreeMap<String, NodeId> {
        let node = self.at(path);
        match &mut self.nodes[node] {
            Node::Directory(entries) => entries,
            Node::File(_) => panic!("{path} is a file"),
        }
    }

    fn enter(&mut self, path: &str, node: NodeId) {
        let (parent, name) = split(path);
        self.entries_mut(parent).insert(name.to_owned(), node);
    }

    fn remove(&mut self, path: &str) {
        let (parent, name) = split(path);
        let removed = self.entries_mut(parent).remove(name);
        assert!(removed.is_some(), "{path} is not in the tree");
    }

    fn make(&mut self, path: &str, node: Node) {
        self.nodes.push(node);
        self.enter(path, self.nodes.len() - 1);
    }

    /// Does a change, whose bytes are those of write `number`.
    ///
    /// # Panics
    /// If it cannot succeed.
    pub fn apply(&mut self, change: &Change, number: u64) {
        match change {
            Change::Mkdir(path) => self.make(path, Node::Directory(BTreeMap::new())),
            Change::Create(path) => self.make(path, Node::File(Content::default())),
            Change::Link(from, to) => self.enter(to, self.at(from)),
            Change::Unlink(path) | Change::Rmdir(path) => self.remove(path),
            Change::Rename(from, to) => {
                let node = self.at(from);
                // Two names of one file stay.
                if self.find(to) != Some(node) {
                    self.remove(from);
                    self.enter(to, node);
                }
            }
            Change::Exchange(one, other) => {
                let (first, second) = (self.at(one), self.at(other));
                self.enter(one, second);
                self.enter(other, first);
            }
            Change::Write(path, offset, len_bytes) => {
                self.content_mut(path).write(*offset, *len_bytes, number);
            }
            Change::Append(path, len_bytes) => {
                let content = self.content_mut(path);
                content.write(content.size, *len_bytes, number);
            }
            Change::Truncate(path, size) => self.content_mut(path).truncate(*size),
        }
    }

    /// Every path with its node; the root is not among them.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, NodeId> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((path, node)) = pending.pop() {
            let Node::Directory(entries) = &self.nodes[node] else { continue };
            for (name, node) in entries {
                let path = format!("{path}/{name}");
                found.insert(path.clone(), *node);
                pending.push((path, *node));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Random;

    #[test]
    fn changes_are_read_back() {
        let own = |path: &str| path.to_owned();
        for change in [
            Change::Mkdir(own("/a")),
            Change::Create(own("/a/f")),
            Change::Link(own("/a/f"), own("/b/g")),
            Change::Unlink(own("/a/f")),
            Change::Rmdir(own("/a")),
            Change::Rename(own("/a"), own("/b")),
            Change::Exchange(own("/a"), own("/b")),
            Change::Write(own("/a"), 17, 4096),
            Change::Append(own("/a"), 1),
            Change::Truncate(own("/a"), 0),
        ] {
            let text = change.to_string();
            assert_eq!(Change::parse(&text), Some(change));
            // A part of a line is no line.
            let cut = text.rsplit_once(' ').map(|(front, _)| front);
            assert!(cut.is_none_or(|cut| Change::parse(cut).is_none_or(|c| c.to_string() == cut)));
        }
        assert_eq!(Change::parse("write /a 1"), None);
        assert_eq!(Change::parse("write /a 1 x"), None);
    }

    #[test]
    fn pieces_are_what_bytes_would_be() {
        let mut random = Random::new(7);
        for _ in 0..50 {
            let (mut content, mut bytes) = (Content::default(), Vec::new());
            for number in 1..40 {
                let (offset, len_bytes) = (random.below(300), 1 + random.below(100));
                if random.below(5) == 0 {
                    content.truncate(offset);
                    bytes.resize(offset as usize, 0);
                } else {
                    content.write(offset, len_bytes, number);
                    let end = (offset + len_bytes) as usize;
                    bytes.resize(bytes.len().max(end), 0);
                    fill(&mut bytes[offset as usize..end], number, offset);
                }
                assert_eq!(content.bytes(), bytes);
            }
        }
    }

    #[test]
    fn names_move_with_what_they_lead_to() {
        let mut tree = Tree::new(&["/a".to_owned(), "/b".to_owned()]);
        for (number, text) in [
            "mkdir /a/d",
            "create /a/d/f",
            "write /a/d/f 3 4",
            "rename /a/d /b/e",
            "link /b/e/f /a/g",
            "create /a/h",
            "exchange /a/h /a/g",
            "rename /a/g /b/e/f",
        ]
        .into_iter()
        .enumerate()
        {
            tree.apply(&Change::parse(text).expect("a change"), number as u64);
        }
        let paths: Vec<String> = tree.paths().into_keys().collect();
        assert_eq!(paths, ["/a", "/a/h", "/b", "/b/e", "/b/e/f"]);
        assert_eq!((tree.content("/a/h").size(), tree.content("/b/e/f").size()), (7, 0));
    }
}
