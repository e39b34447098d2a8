//! Which memory the kernel has pinned for a ring, and where it stands in the ring's table.
//!
//! Transfers to and from registered memory save the kernel looking up and pinning pages. Memory is
//! found by the identity of its mapping, not by address: pages that were laid over a part of a
//! mapping ([`Mapping::replace_pages`]) are another mapping at the same address, and the kernel
//! would go on reaching the old pages through the old entry.

use std::ops::Range;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory};
use io_uring::Submitter;

use crate::DiskError;

/// Longest piece of memory that the kernel takes as one entry.
const PIECE_BYTES: usize = 1 << 30;

#[derive(Debug)]
struct Region {
    /// Kept so that no other mapping can get the same identity.
    mapping: Arc<Mapping>,
    first: u16,
}

impl Region {
    fn identity(&self) -> usize {
        identity(&self.mapping)
    }
}

/// The mappings that are registered with one ring.
#[derive(Debug)]
pub(super) struct Registered {
    /// Sorted by identity.
    regions: Vec<Region>,
    /// Which entries of the kernel's table are in use.
    used: Vec<bool>,
}

fn identity(mapping: &Arc<Mapping>) -> usize {
    Arc::as_ptr(mapping) as usize
}

fn pieces(mapping: &Arc<Mapping>) -> usize {
    mapping.len().div_ceil(PIECE_BYTES)
}

impl Registered {
    pub(super) fn new(entries: u16) -> Registered {
        Registered { regions: Vec::new(), used: vec![false; entries.into()] }
    }

    fn position(&self, mapping: &Arc<Mapping>) -> Result<usize, usize> {
        let wanted = identity(mapping);
        self.regions.binary_search_by_key(&wanted, Region::identity)
    }

    /// The table's entry that holds all of `memory[offset..offset + len_bytes]`, if one does.
    pub(super) fn find(&self, memory: &Memory, offset: usize, len_bytes: usize) -> Option<u16> {
        if self.regions.is_empty() || len_bytes == 0 {
            return None;
        }
        let mapping = match memory {
            Memory::Buffer(buffer) => buffer.mapping(),
            Memory::Shared(slice) => slice.mapping(),
        };
        let region = &self.regions[self.position(mapping).ok()?];
        let start = (memory.as_ptr() as usize - mapping.base() as usize) + offset;
        let piece = start / PIECE_BYTES;
        let last = (start + len_bytes - 1) / PIECE_BYTES;
        (piece == last).then(|| region.first + piece as u16)
    }

    /// Registers a mapping; again is no error.
    pub(super) fn add(
        &mut self,
        submitter: &Submitter<'_>,
        mapping: &Arc<Mapping>,
    ) -> Result<(), DiskError> {
        let Err(position) = self.position(mapping) else {
            return Ok(());
        };
        let entries = self.free_run(pieces(mapping)).ok_or(DiskError::Limit {
            what: "pieces of memory registered with an io_uring",
            limit: self.used.len(),
        })?;
        let base = mapping.base();
        let vectors: Vec<libc::iovec> = (0..mapping.len())
            .step_by(PIECE_BYTES)
            .map(|offset| libc::iovec {
                iov_base: base.wrapping_add(offset).cast(),
                iov_len: PIECE_BYTES.min(mapping.len() - offset),
            })
            .collect();
        let first = entries.start as u16;
        // SAFETY: the vectors describe the mapping, which stays mapped while it is in `regions`;
        // the kernel holds the pages themselves, so even an early unmapping would not free them.
        unsafe { submitter.register_buffers_update(first.into(), &vectors, None) }.map_err(
            |source| DiskError::System {
                what: format!(
                    "registering {} MiB of memory with io_uring (raise the limit of locked \
                     memory: `ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
                    mapping.len() >> 20
                ),
                source,
            },
        )?;
        self.used[entries].fill(true);
        self.regions.insert(position, Region { mapping: Arc::clone(mapping), first });
        Ok(())
    }

    /// Takes a mapping out of the table. Transfers that use it go on; the kernel unpins the pages
    /// behind the last.
    pub(super) fn remove(&mut self, submitter: &Submitter<'_>, mapping: &Arc<Mapping>) {
        let Ok(position) = self.position(mapping) else {
            return;
        };
        let first = self.regions[position].first;
        let count = pieces(mapping);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let vectors = vec![empty; count];
        // SAFETY: empty vectors give the kernel no memory.
        let emptied = unsafe { submitter.register_buffers_update(first.into(), &vectors, None) };
        // An entry that the kernel could not empty keeps its pages; then its place, and the
        // mapping, whose identity must not come up again, stay taken.
        if emptied.is_ok() {
            self.used[usize::from(first)..usize::from(first) + count].fill(false);
            self.regions.remove(position);
        }
    }

    /// The first `count` free entries in a row.
    fn free_run(&self, count: usize) -> Option<Range<usize>> {
        let starts = 0..(self.used.len() + 1).checked_sub(count)?;
        starts
            .map(|start| start..start + count)
            .find(|range| !self.used[range.clone()].contains(&true))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn free_entries_are_found_in_a_row() {
        let mut registered = Registered::new(6);
        registered.used = vec![false, true, false, false, true, false];
        assert_eq!(registered.free_run(1), Some(0..1));
        assert_eq!(registered.free_run(2), Some(2..4));
        assert_eq!(registered.free_run(3), None);
        assert_eq!(registered.free_run(7), None);
    }

    #[test]
    fn memory_is_found_by_mapping_and_within_one_piece() {
        let large = Mapping::anonymous(2 * PIECE_BYTES).unwrap();
        let other = Mapping::anonymous(4096).unwrap();
        let mut registered = Registered::new(8);
        registered.regions.push(Region { mapping: Arc::clone(&large), first: 3 });
        let memory = |offset: usize, len: usize| {
            Memory::Shared(large.slice(offset as u64, len as u64).unwrap())
        };
        assert_eq!(registered.find(&memory(4096, 8192), 4096, 4096), Some(3));
        assert_eq!(registered.find(&memory(PIECE_BYTES, 4096), 0, 4096), Some(4));
        assert_eq!(registered.find(&memory(PIECE_BYTES - 4096, 8192), 0, 8192), None);
        assert_eq!(registered.find(&memory(PIECE_BYTES - 4096, 8192), 4096, 4096), Some(4));
        let foreign = Memory::Shared(other.slice(0, 4096).unwrap());
        assert_eq!(registered.find(&foreign, 0, 4096), None);
    }

    #[test]
    fn pages_laid_over_a_registered_mapping_are_not_mistaken_for_it() {
        let host = Mapping::shareable(4 * 4096).unwrap();
        let fresh = host.replace_pages(4096, 4096, false).unwrap();
        let mut registered = Registered::new(8);
        registered.regions.push(Region { mapping: Arc::clone(&host), first: 0 });
        let replaced = Memory::Shared(fresh.slice(0, 4096).unwrap());
        assert_eq!(registered.find(&replaced, 0, 4096), None);
    }
}
