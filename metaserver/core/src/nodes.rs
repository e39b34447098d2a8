//! The inodes of a reactor, by number.
//!
//! A shard gives out its numbers one after the other, so those that exist lie close together: they
//! are kept in pages of neighbours, and only the pages are hashed. So an inode costs a pointer, and
//! the table never moves more than a pointer per page when it grows: no request waits for millions of
//! inodes to be hashed anew.

use std::collections::hash_map::Entry as Place;

use gannet_proto::Inode;
use rustc_hash::FxHashMap;

use crate::namespace::Node;

/// Inodes of a page.
const PAGE_NODES: usize = 256;

#[derive(Debug)]
struct Page {
    used: u32,
    nodes: [Option<Box<Node>>; PAGE_NODES],
}

impl Default for Page {
    fn default() -> Page {
        Page { used: 0, nodes: [const { None }; PAGE_NODES] }
    }
}

/// Where an inode is: its page, and its place there.
fn place(inode: Inode) -> (u64, usize) {
    (inode.0 / PAGE_NODES as u64, (inode.0 % PAGE_NODES as u64) as usize)
}

/// All inodes of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pages: FxHashMap<u64, Box<Page>>,
    len: usize,
}

impl Nodes {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An inode that exists.
    #[inline]
    pub(crate) fn get(&self, inode: &Inode) -> Option<&Node> {
        let (page, place) = place(*inode);
        self.pages.get(&page)?.nodes[place].as_deref()
    }

    /// An inode that exists.
    #[inline]
    pub(crate) fn get_mut(&mut self, inode: &Inode) -> Option<&mut Node> {
        let (page, place) = place(*inode);
        self.pages.get_mut(&page)?.nodes[place].as_deref_mut()
    }

    /// Whether an inode exists.
    pub(crate) fn contains_key(&self, inode: &Inode) -> bool {
        self.get(inode).is_some()
    }

    /// Adds an inode.
    pub(crate) fn insert(&mut self, inode: Inode, node: Box<Node>) {
        let (page, place) = place(inode);
        let page = self.pages.entry(page).or_default();
        if page.nodes[place].replace(node).is_none() {
            page.used += 1;
            self.len += 1;
        }
    }

    /// Removes an inode.
    pub(crate) fn remove(&mut self, inode: &Inode) -> Option<Box<Node>> {
        let (page, place) = place(*inode);
        let Place::Occupied(mut page) = self.pages.entry(page) else { return None };
        let node = page.get_mut().nodes[place].take()?;
        page.get_mut().used -= 1;
        self.len -= 1;
        if page.get().used == 0 {
            page.remove();
        }
        Some(node)
    }

    /// All inodes, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Node> {
        self.pages.values().flat_map(|page| page.nodes.iter().filter_map(Option::as_deref))
    }

    /// Their numbers, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Inode> {
        self.values().map(|node| &node.inode)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::Lsn;
    use crate::namespace::StoreSet;

    fn node(inode: Inode) -> Box<Node> {
        let set = StoreSet::default();
        Box::new(Node::new(inode, Inode::ROOT, (0o100_644, 0, 0), set, 0, Lsn(1)))
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_set(steps in prop::collection::vec((0..3u64, 0..600u64, any::<bool>()), 1..400)) {
            let (mut nodes, mut oracle) = (Nodes::default(), BTreeSet::new());
            for (shard, number, adds) in steps {
                let inode = Inode(shard << 48 | number);
                if adds {
                    nodes.insert(inode, node(inode));
                    oracle.insert(inode);
                } else {
                    let removed = nodes.remove(&inode).map(|node| node.inode);
                    prop_assert_eq!(removed, oracle.take(&inode));
                }
                prop_assert_eq!(nodes.contains_key(&inode), oracle.contains(&inode));
                prop_assert_eq!(nodes.get_mut(&inode).is_some(), oracle.contains(&inode));
            }
            prop_assert_eq!((nodes.len(), nodes.is_empty()), (oracle.len(), oracle.is_empty()));
            let found: BTreeSet<Inode> = nodes.keys().copied().collect();
            prop_assert_eq!(&found, &oracle);
            oracle.iter().for_each(|inode| drop(nodes.remove(inode)));
            prop_assert!(nodes.pages.is_empty(), "pages of nobody are kept");
        }
    }
}
