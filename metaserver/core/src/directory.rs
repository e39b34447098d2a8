//! The entries of a directory, in the order of their names.
//!
//! READDIR goes on after a name, so what is made or removed between two parts of a listing neither
//! repeats nor hides anything else. A directory with millions of entries is ordinary: an entry
//! takes nine bytes beside its name.

use std::collections::BTreeMap;
use std::ops::Bound;

use gannet_proto::Inode;
use gannet_proto::operations::file_type;
use zerocopy::little_endian::U64;

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub inode: Inode,
    pub file_type: u32,
}

/// The bits of a mode that say the type, moved to the lowest place.
const TYPE_SHIFT: u32 = file_type::MASK.trailing_zeros();
const _: () = assert!(file_type::MASK >> TYPE_SHIFT <= u8::MAX as u32);

/// An entry as it is kept: without padding.
#[derive(Clone, Copy, Debug)]
struct Packed {
    inode: U64,
    file_type: u8,
}
const _: () = assert!(size_of::<Packed>() == 9);

impl From<Entry> for Packed {
    fn from(entry: Entry) -> Packed {
        debug_assert_eq!(entry.file_type & !file_type::MASK, 0, "a type and nothing else");
        let file_type = ((entry.file_type & file_type::MASK) >> TYPE_SHIFT) as u8;
        Packed { inode: U64::new(entry.inode.0), file_type }
    }
}

impl From<Packed> for Entry {
    fn from(packed: Packed) -> Entry {
        let file_type = u32::from(packed.file_type) << TYPE_SHIFT;
        Entry { inode: Inode(packed.inode.get()), file_type }
    }
}

/// Names, and what they lead to.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    map: BTreeMap<Box<[u8]>, Packed>,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// What a name leads to.
    pub(crate) fn get(&self, name: &[u8]) -> Option<Entry> {
        self.map.get(name).map(|packed| (*packed).into())
    }

    /// Lets a name lead somewhere, and returns where it led before.
    pub(crate) fn put(&mut self, name: &[u8], entry: Entry) -> Option<Entry> {
        match self.map.get_mut(name) {
            Some(place) => Some(std::mem::replace(place, entry.into()).into()),
            None => self.map.insert(name.into(), entry.into()).map(Entry::from),
        }
    }

    /// Removes a name.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Entry> {
        self.map.remove(name).map(Entry::from)
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Entry)> {
        self.map.iter().map(|(name, packed)| (&**name, (*packed).into()))
    }

    /// Those behind a name, whether it is there or not; an empty one is in front of all.
    pub(crate) fn after(&self, name: &[u8]) -> impl Iterator<Item = (&[u8], Entry)> {
        let from = if name.is_empty() { Bound::Unbounded } else { Bound::Excluded(name) };
        let range = self.map.range::<[u8], _>((from, Bound::Unbounded));
        range.map(|(name, packed)| (&**name, (*packed).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, file_type: u32) -> Entry {
        Entry { inode: Inode(number), file_type }
    }

    #[test]
    fn entries_come_back_as_they_were_put() {
        let mut entries = Entries::default();
        let types = [file_type::REGULAR, file_type::DIRECTORY, 0o120_000, 0o140_000];
        for (number, file_type) in (1..).zip(types) {
            let name = [number as u8];
            // The highest shard and number that there may be.
            let found = entry(u64::MAX - number, file_type);
            assert_eq!(entries.put(&name, found), None);
            assert_eq!(entries.get(&name), Some(found));
        }
        assert_eq!((entries.len(), entries.is_empty()), (types.len(), false));
        let (old, new) = (entry(u64::MAX - 2, file_type::DIRECTORY), entry(7, file_type::REGULAR));
        assert_eq!(entries.put(&[2], new), Some(old));
        assert_eq!((entries.remove(&[2]), entries.remove(&[2])), (Some(new), None));
        assert_eq!(entries.iter().count(), types.len() - 1);
    }

    #[test]
    fn a_listing_goes_on_behind_a_name_that_is_gone() {
        let mut entries = Entries::default();
        for name in ["a", "b", "c", "d"] {
            entries.put(name.as_bytes(), entry(1, file_type::REGULAR));
        }
        let after = |entries: &Entries, name: &str| -> Vec<u8> {
            entries.after(name.as_bytes()).map(|(name, _)| name[0]).collect()
        };
        assert_eq!(after(&entries, ""), b"abcd");
        assert_eq!(after(&entries, "b"), b"cd");
        entries.remove(b"b");
        entries.put(b"bb", entry(2, file_type::REGULAR));
        assert_eq!(after(&entries, "b"), b"bcd", "what was made meanwhile is there");
        assert_eq!(after(&entries, "d"), b"");
    }
}
