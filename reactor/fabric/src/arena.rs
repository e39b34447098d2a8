//! A host's request buffers: whole pages of memory that data servers write and read.
//!
//! An [`Arena`] is one shareable mapping cut into equal buffers. A [`HostBuffer`] is exclusive
//! within this process: it derefs to bytes and returns to its arena when dropped. It lies in a
//! *region*, the unit that is registered with data servers; at first all buffers of an arena lie in
//! the same one. [`HostBuffer::replace_pages`] takes a buffer back from data servers that do not
//! answer: it lays fresh pages at the same address, which are a region of their own from then on,
//! and whoever mapped the old pages reaches only those.
//!
//! **What makes references into such memory sound.** A data server touches a buffer only between
//! the submission of a request that names it and that request's completion, and the request owns
//! the [`HostBuffer`] for that time, so no reference exists. A request that is given up completes
//! only after its buffer's pages were replaced (or access was revoked in another proven way).
//! Whoever is trusted with a registration is trusted with this rule, as with RDMA.
//!
//! Belongs to one thread. A crash leaves the old pages to the data servers that map them.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use rustix::fs::FallocateFlags;

/// A range of memory that is registered as a whole. Unique among the arenas that share a
/// [`RegionIds`], never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u32);

/// Hands out region ids. Clones share the counter: all arenas of a host instance use one.
#[derive(Clone, Debug, Default)]
pub struct RegionIds {
    next: Rc<Cell<u32>>,
}

impl RegionIds {
    /// A counter that starts at 0.
    #[must_use]
    pub fn new() -> RegionIds {
        RegionIds::default()
    }

    /// The next id.
    ///
    /// # Errors
    /// `QuotaExceeded` after 2^32 - 1 ids.
    pub fn allocate(&self) -> io::Result<RegionId> {
        let id = self.next.get();
        let next = id.checked_add(1).ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "the ids of memory regions are used up")
        })?;
        self.next.set(next);
        Ok(RegionId(id))
    }
}

/// A region and its memory.
#[derive(Clone, Debug)]
struct Region {
    id: RegionId,
    mapping: Arc<Mapping>,
}

/// Buffers of equal length that data servers may reach.
#[derive(Clone)]
pub struct Arena {
    shared: Rc<Shared>,
}

struct Shared {
    ids: RegionIds,
    /// Covers the address range of all buffers.
    base: Region,
    buffer_bytes: usize,
    count: u32,
    free: RefCell<Vec<u32>>,
    /// By buffer: the region laid over it, if its pages were replaced.
    replaced: RefCell<Vec<Option<Region>>>,
    /// Former entries of `replaced` that somebody may still map.
    retired: RefCell<Vec<Region>>,
}

impl Arena {
    /// Makes `count` buffers of `buffer_bytes` each (rounded up to pages).
    ///
    /// # Errors
    /// `InvalidInput` if there are none or the total overflows; what making shareable memory
    /// returns; `QuotaExceeded` as [`RegionIds::allocate`].
    pub fn new(ids: &RegionIds, buffer_bytes: usize, count: u32) -> io::Result<Arena> {
        let total = buffer_bytes
            .max(1)
            .checked_next_multiple_of(PAGE_BYTES)
            .and_then(|bytes| bytes.checked_mul(count as usize))
            .filter(|total| *total > 0)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such arena"))?;
        let mapping = Mapping::shareable(total)?;
        let base = Region { id: ids.allocate()?, mapping };
        Ok(Arena {
            shared: Rc::new(Shared {
                ids: ids.clone(),
                base,
                buffer_bytes: total / count as usize,
                count,
                // Lowest indices last, so that a lightly used arena reuses the same warm buffers.
                free: RefCell::new((0..count).rev().collect()),
                replaced: RefCell::new(vec![None; count as usize]),
                retired: RefCell::new(Vec::new()),
            }),
        })
    }

    /// Takes a buffer, `None` when all are in use. Content is what the last user left.
    #[must_use]
    pub fn take(&self) -> Option<HostBuffer> {
        let index = self.shared.free.borrow_mut().pop()?;
        Some(HostBuffer { shared: Rc::clone(&self.shared), index })
    }

    /// Length of each buffer, bytes.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// Buffers in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.count as usize
    }

    /// Buffers not in use at the moment.
    #[must_use]
    pub fn available(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// The memory of a region that buffers lie in, for its registration; `None` for a region of
    /// another arena or a retired one.
    #[must_use]
    pub fn region(&self, id: RegionId) -> Option<Arc<Mapping>> {
        if id == self.shared.base.id {
            return Some(Arc::clone(&self.shared.base.mapping));
        }
        let replaced = self.shared.replaced.borrow();
        let found = replaced.iter().flatten().find(|region| region.id == id);
        found.map(|region| Arc::clone(&region.mapping))
    }

    /// All regions that buffers lie in.
    #[must_use]
    pub fn regions(&self) -> Vec<(RegionId, Arc<Mapping>)> {
        let replaced = self.shared.replaced.borrow();
        std::iter::once(&self.shared.base)
            .chain(replaced.iter().flatten())
            .map(|region| (region.id, Arc::clone(&region.mapping)))
            .collect()
    }

    /// Regions that no buffer lies in any more but that somebody holds; to be deregistered.
    #[must_use]
    pub fn retired_regions(&self) -> Vec<RegionId> {
        self.shared.free_retired();
        self.shared.retired.borrow().iter().map(|region| region.id).collect()
    }

    /// Memory of the retired regions, bytes. It is freed once nobody in this process holds the
    /// region and no data server maps it.
    #[must_use]
    pub fn retired_bytes(&self) -> u64 {
        self.shared.free_retired();
        self.shared.retired.borrow().iter().map(|region| region.mapping.len() as u64).sum()
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = &self.shared;
        write!(f, "Arena({:?}, {} of {} bytes)", shared.base.id, shared.count, shared.buffer_bytes)
    }
}

impl Shared {
    /// Lets go of retired regions that nobody else holds.
    fn free_retired(&self) {
        self.retired.borrow_mut().retain(|region| Arc::strong_count(&region.mapping) > 1);
    }

    fn offset_of(&self, index: u32) -> usize {
        index as usize * self.buffer_bytes
    }

    /// Gives the pages of `base` under a replaced buffer back to the kernel. A late writer gets
    /// fresh pages there that nobody reads.
    fn punch_base(&self, index: u32) {
        if let Some(file) = self.base.mapping.file() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (offset, len) = (self.offset_of(index) as u64, self.buffer_bytes as u64);
            // Without it the pages stay allocated as long as the arena: memory, not correctness.
            let _freed = rustix::fs::fallocate(file, flags, offset, len);
        }
    }
}

/// One buffer of an arena: exclusive within this process, whole pages, returned when dropped. See
/// the module for when data servers may touch it.
pub struct HostBuffer {
    shared: Rc<Shared>,
    index: u32,
}

impl HostBuffer {
    /// The region that the buffer lies in at present.
    #[must_use]
    pub fn region(&self) -> RegionId {
        match &self.shared.replaced.borrow()[self.index as usize] {
            Some(region) => region.id,
            None => self.shared.base.id,
        }
    }

    /// The memory of that region, for its registration.
    #[must_use]
    pub fn memory(&self) -> Arc<Mapping> {
        match &self.shared.replaced.borrow()[self.index as usize] {
            Some(region) => Arc::clone(&region.mapping),
            None => Arc::clone(&self.shared.base.mapping),
        }
    }

    /// Where the buffer starts in its region, bytes.
    #[must_use]
    pub fn region_offset(&self) -> u64 {
        match &self.shared.replaced.borrow()[self.index as usize] {
            Some(_) => 0,
            None => self.shared.offset_of(self.index) as u64,
        }
    }

    /// Index of the buffer in its arena.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// First address. It stays the same when pages are replaced.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.shared.base.mapping.base().wrapping_add(self.shared.offset_of(self.index))
    }

    /// Lays fresh pages under the buffer, which become a region of their own; the buffer at this
    /// index keeps it until the next replacement or the arena's end. Data servers that mapped the
    /// old pages reach only those from now on. With `keep_content` the fresh pages start with the
    /// old bytes, otherwise with zeros. What lies in the old pages is lost: whoever still writes
    /// there may, but nobody may still read there.
    ///
    /// # Errors
    /// What making and mapping shareable memory returns, `QuotaExceeded` as
    /// [`RegionIds::allocate`]. After an error the old pages are still in place.
    pub fn replace_pages(&mut self, keep_content: bool) -> io::Result<()> {
        self.replace(keep_content, true)
    }

    /// As [`HostBuffer::replace_pages`] with the content kept, and what lies in the old pages stays
    /// there too: for a write that is given up while a data server may still fetch it, and the
    /// metadata server may still commit what was fetched.
    ///
    /// # Errors
    /// As [`HostBuffer::replace_pages`].
    pub fn leave_pages(&mut self) -> io::Result<()> {
        self.replace(true, false)
    }

    fn replace(&mut self, keep_content: bool, frees_old: bool) -> io::Result<()> {
        let shared = &self.shared;
        let id = shared.ids.allocate()?;
        let offset = shared.offset_of(self.index);
        let mapping =
            shared.base.mapping.replace_pages(offset, shared.buffer_bytes, keep_content)?;
        let fresh = Some(Region { id, mapping });
        match std::mem::replace(&mut shared.replaced.borrow_mut()[self.index as usize], fresh) {
            Some(old) => shared.retired.borrow_mut().push(old),
            None if frees_old => shared.punch_base(self.index),
            None => {}
        }
        shared.free_retired();
        Ok(())
    }
}

impl Deref for HostBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the index was handed out once, so within this process this value alone refers
        // to the range, which the arena keeps mapped; other processes keep to the rule that the
        // module states.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.shared.buffer_bytes) }
    }
}

impl DerefMut for HostBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for Deref, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.shared.buffer_bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.shared.free.borrow_mut().push(self.index);
    }
}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostBuffer({} in {:?})", self.index, self.region())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer_view(arena: &Arena, region: RegionId) -> Arc<Mapping> {
        let mapping = arena.region(region).expect("a live region");
        let file = mapping.file().expect("shareable").try_clone_to_owned().expect("dup");
        Mapping::from_peer(file, mapping.len()).expect("sealed")
    }

    #[test]
    fn buffers_are_distinct_and_return() {
        let arena = Arena::new(&RegionIds::new(), 5000, 3).expect("memory");
        assert_eq!(arena.buffer_bytes(), 8192);
        let mut buffers: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!((buffers.len(), arena.available()), (3, 0));
        for (number, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.region_offset(), number as u64 * 8192);
            buffer.fill(number as u8 + 1);
        }
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == number as u8 + 1));
        }
        drop(buffers);
        assert_eq!((arena.available(), arena.capacity()), (3, 3));
        assert!(Arena::new(&RegionIds::new(), 4096, 0).is_err());
        assert!(Arena::new(&RegionIds::new(), usize::MAX, 2).is_err());
    }

    #[test]
    fn replaced_pages_cut_old_users_off_and_spare_the_neighbours() {
        let ids = RegionIds::new();
        let arena = Arena::new(&ids, PAGE_BYTES, 3).expect("memory");
        let mut buffers: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        let base = buffers[1].region();
        let server = peer_view(&arena, base);
        for buffer in &mut buffers {
            buffer.fill(7);
        }
        buffers[1].replace_pages(true).expect("replaced");
        let fresh = buffers[1].region();
        assert_ne!(fresh, base);
        assert_eq!(buffers[1].region_offset(), 0);
        assert_eq!((buffers[0].region(), buffers[2].region()), (base, base));
        assert_eq!(arena.regions().len(), 2);

        server.copy_in(0, &[9; 3 * PAGE_BYTES]);
        assert!(buffers[1].iter().all(|byte| *byte == 7), "a late write lands elsewhere");
        assert!(buffers[0].iter().all(|byte| *byte == 9));
        assert!(buffers[2].iter().all(|byte| *byte == 9));
        peer_view(&arena, fresh).copy_in(0, &[5; PAGE_BYTES]);
        assert!(buffers[1].iter().all(|byte| *byte == 5));

        // Sticky: the next user of the index is in the fresh region too.
        let middle = buffers.remove(1);
        drop(middle);
        assert_eq!(arena.take().expect("free").region(), fresh);
    }

    #[test]
    fn pages_that_are_left_keep_what_a_late_reader_looks_for() {
        let arena = Arena::new(&RegionIds::new(), PAGE_BYTES, 2).expect("memory");
        let (mut left, mut replaced) = (arena.take().expect("free"), arena.take().expect("free"));
        let server = peer_view(&arena, left.region());
        left.fill(7);
        replaced.fill(8);
        left.leave_pages().expect("replaced");
        replaced.replace_pages(true).expect("replaced");
        assert!(left.iter().all(|byte| *byte == 7) && replaced.iter().all(|byte| *byte == 8));
        left.fill(1);
        replaced.fill(2);
        let mut seen = [0; PAGE_BYTES];
        server.copy_out(left.index() as usize * PAGE_BYTES, &mut seen);
        assert_eq!(seen, [7; PAGE_BYTES]);
        server.copy_out(replaced.index() as usize * PAGE_BYTES, &mut seen);
        assert_eq!(seen, [0; PAGE_BYTES], "nobody reads there any more, so the memory is freed");
    }

    #[test]
    fn retired_regions_are_freed_when_nobody_holds_them() {
        let arena = Arena::new(&RegionIds::new(), PAGE_BYTES, 1).expect("memory");
        let mut buffer = arena.take().expect("free");
        buffer.fill(1);
        buffer.replace_pages(false).expect("replaced");
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert_eq!(arena.retired_bytes(), 0);

        let first = buffer.region();
        let registered = arena.region(first).expect("a live region");
        buffer.replace_pages(false).expect("replaced");
        assert!(arena.region(first).is_none());
        assert_eq!(arena.retired_regions(), [first]);
        assert_eq!(arena.retired_bytes(), PAGE_BYTES as u64);
        drop(registered);
        assert_eq!(arena.retired_bytes(), 0);
        buffer.fill(3);
        assert!(buffer.iter().all(|byte| *byte == 3), "the address range is still mapped");
    }
}
