//! The inodes of a reactor, by number.
//!
//! A shard gives out its numbers one after the other, so those that exist lie close together: they
//! are kept in pages of neighbours, and only the pages are hashed. So an inode costs a pointer, and
//! the table never moves more than a place per page when it grows: no request waits for millions of
//! inodes to be hashed anew. Every request looks its inode up here.

use gannet_proto::Inode;

use crate::namespace::Node;

/// Inodes of a page.
const PAGE_NODES: usize = 256;
/// Places of the smallest table of pages.
const PLACES_MIN: usize = 16;

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

/// Where an inode is: the number of its page, and its place there.
fn place(inode: Inode) -> (u64, usize) {
    (inode.0 / PAGE_NODES as u64, (inode.0 % PAGE_NODES as u64) as usize)
}

/// Pages by number: an open table with linear probing. At least half of its places are free, so a
/// page lies where it is looked for first or close behind, and every search ends.
#[derive(Debug)]
struct Pages {
    /// As many as a power of two.
    places: Vec<Option<(u64, Box<Page>)>>,
    /// Bits of a hash beyond those that name a place.
    shift: u32,
    len: usize,
}

impl Default for Pages {
    fn default() -> Pages {
        Pages::with_places(PLACES_MIN)
    }
}

impl Pages {
    fn with_places(count: usize) -> Pages {
        let places = std::iter::repeat_with(|| None).take(count).collect();
        Pages { places, shift: u64::BITS - count.trailing_zeros(), len: 0 }
    }

    /// Where a page is looked for first. Multiplying by the golden ratio keeps neighbours apart.
    #[inline]
    fn first(&self, number: u64) -> usize {
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    /// The place behind another one.
    #[inline]
    fn behind(&self, index: usize) -> usize {
        (index + 1) & (self.places.len() - 1)
    }

    /// The place of a page, or the free one where it would lie.
    #[inline]
    fn find(&self, number: u64) -> usize {
        let mut index = self.first(number);
        while matches!(&self.places[index], Some((found, _)) if *found != number) {
            index = self.behind(index);
        }
        index
    }

    #[inline]
    fn get(&self, number: u64) -> Option<&Page> {
        let (_, page) = self.places[self.find(number)].as_ref()?;
        Some(page)
    }

    #[inline]
    fn get_mut(&mut self, number: u64) -> Option<&mut Page> {
        let index = self.find(number);
        let (_, page) = self.places[index].as_mut()?;
        Some(page)
    }

    /// A page; it is made if there is none.
    fn get_or_make(&mut self, number: u64) -> &mut Page {
        if 2 * (self.len + 1) > self.places.len() {
            self.grow();
        }
        let index = self.find(number);
        let place = &mut self.places[index];
        self.len += usize::from(place.is_none());
        let (_, page) = place.get_or_insert_with(|| (number, Box::default()));
        page
    }

    fn grow(&mut self) {
        let larger = Pages { len: self.len, ..Pages::with_places(2 * self.places.len()) };
        let smaller = std::mem::replace(self, larger);
        for page in smaller.places.into_iter().flatten() {
            let index = self.find(page.0);
            self.places[index] = Some(page);
        }
    }

    /// Removes a page. Those that were pushed behind it move up, so that they are found.
    fn remove(&mut self, number: u64) {
        let mut free = self.find(number);
        if self.places[free].take().is_none() {
            return;
        }
        self.len -= 1;
        let mask = self.places.len() - 1;
        let mut index = self.behind(free);
        while let Some((found, _)) = &self.places[index] {
            let from_first = index.wrapping_sub(self.first(*found)) & mask;
            if from_first >= index.wrapping_sub(free) & mask {
                self.places.swap(free, index);
                free = index;
            }
            index = self.behind(index);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Page> {
        self.places.iter().flatten().map(|(_, page)| &**page)
    }
}

/// All inodes of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    pages: Pages,
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
        self.pages.get(page)?.nodes[place].as_deref()
    }

    /// An inode that exists.
    #[inline]
    pub(crate) fn get_mut(&mut self, inode: &Inode) -> Option<&mut Node> {
        let (page, place) = place(*inode);
        self.pages.get_mut(page)?.nodes[place].as_deref_mut()
    }

    /// Whether an inode exists.
    pub(crate) fn contains_key(&self, inode: &Inode) -> bool {
        self.get(inode).is_some()
    }

    /// Adds an inode.
    pub(crate) fn insert(&mut self, inode: Inode, node: Box<Node>) {
        let (page, place) = place(inode);
        let page = self.pages.get_or_make(page);
        if page.nodes[place].replace(node).is_none() {
            page.used += 1;
            self.len += 1;
        }
    }

    /// Removes an inode.
    pub(crate) fn remove(&mut self, inode: &Inode) -> Option<Box<Node>> {
        let (number, place) = place(*inode);
        let page = self.pages.get_mut(number)?;
        let node = page.nodes[place].take()?;
        page.used -= 1;
        self.len -= 1;
        if page.used == 0 {
            self.pages.remove(number);
        }
        Some(node)
    }

    /// All inodes, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Node> {
        self.pages.iter().flat_map(|page| page.nodes.iter().filter_map(Option::as_deref))
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

    /// Numbers of few pages with many inodes, and of many pages with one.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..600u64, (0..60u64).prop_map(|page| page * PAGE_NODES as u64)]
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_set(steps in prop::collection::vec((0..3u64, number(), any::<bool>()), 1..400)) {
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
            prop_assert_eq!(nodes.pages.len, 0);
            prop_assert!(nodes.pages.iter().next().is_none(), "pages of nobody are kept");
        }
    }
}
