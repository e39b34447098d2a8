//! Memory that devices, other processes and this process touch at the same time.
//!
//! A [`Mapping`] is a range of mapped pages. Because somebody else may change its bytes at any
//! moment it never hands out references: bytes go in and out by bounded copies. A [`Slice`] is a
//! bounded piece of a mapping that keeps the mapping alive; an operation that was given a slice may
//! touch the memory until it drops it. Exclusive memory with ordinary references is
//! [`crate::pool::Buffer`]. [`Memory`] is either, and is what I/O operations own until they complete.
//!
//! Any thread may use a mapping. A crash of this process leaves a memfd's pages to its other users.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::pool::Buffer;

/// Size of a page: the unit of arenas, of protection and of direct I/O alignment.
pub const PAGE_BYTES: usize = 4096;
/// Mappings of at least this size ask for transparent huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Name of shareable memory that was given none.
const SHAREABLE_NAME: &str = "gannet-memory";

enum Backing {
    /// The mapping owns its address range.
    Owned(MmapRaw),
    /// Pages laid over a part of `_parent`, which owns the address range.
    Over { base: NonNull<u8>, len: usize, _parent: Arc<Mapping> },
}

/// A range of mapped memory, readable and writable, possibly shared with other processes.
pub struct Mapping {
    backing: Backing,
    file: Option<OwnedFd>,
}

// SAFETY: the address range lives as long as the value, and every access goes through raw-pointer
// copies that make no claim of exclusiveness.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; concurrent copies may observe torn bytes but never invalid memory.
unsafe impl Sync for Mapping {}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("base", &self.base())
            .field("len_bytes", &self.len())
            .field("shareable", &self.file.is_some())
            .finish()
    }
}

impl Mapping {
    /// Maps `len_bytes` (rounded up to pages) of private zeroed memory.
    ///
    /// # Errors
    /// What `mmap(2)` returns.
    pub fn anonymous(len_bytes: usize) -> io::Result<Arc<Mapping>> {
        let raw = MmapOptions::new().len(round_up_to_page(len_bytes)?).map_anon()?;
        let mapping = Mapping { backing: Backing::Owned(MmapRaw::from(raw)), file: None };
        mapping.prefer_huge_pages();
        Ok(Arc::new(mapping))
    }

    /// Maps `len_bytes` (rounded up to pages) of zeroed memory that can be handed to another
    /// process: a memfd sealed against any change of its size.
    ///
    /// # Errors
    /// What `memfd_create(2)`, `ftruncate(2)`, `fcntl(2)` or `mmap(2)` return.
    pub fn shareable(len_bytes: usize) -> io::Result<Arc<Mapping>> {
        Mapping::shareable_named(SHAREABLE_NAME, len_bytes)
    }

    /// As [`Mapping::shareable`], with the name that `/proc/PID/maps` shows for it.
    ///
    /// # Errors
    /// As [`Mapping::shareable`].
    pub fn shareable_named(name: &str, len_bytes: usize) -> io::Result<Arc<Mapping>> {
        let len = round_up_to_page(len_bytes)?;
        let file = sealed_memfd(name, len)?;
        let raw = MmapOptions::new().len(len).map_raw(&file)?;
        let mapping = Mapping { backing: Backing::Owned(raw), file: Some(file) };
        mapping.prefer_huge_pages();
        Ok(Arc::new(mapping))
    }

    /// Maps a memfd received from another process.
    ///
    /// # Errors
    /// `InvalidData` if the file is not sealed against shrinking (its owner could then crash this
    /// process), is empty, or is not `len_bytes` long; what `fcntl(2)`, `fstat(2)` or `mmap(2)`
    /// return.
    pub fn from_peer(file: OwnedFd, len_bytes: usize) -> io::Result<Arc<Mapping>> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(invalid_data("a peer's memory is not sealed against shrinking"));
        }
        let actual = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if len_bytes == 0 || actual != len_bytes as u64 || !len_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(invalid_data("a peer's memory has not the length that the peer stated"));
        }
        let raw = MmapOptions::new().len(len_bytes).map_raw(&file)?;
        let mapping = Mapping { backing: Backing::Owned(raw), file: Some(file) };
        mapping.prefer_huge_pages();
        Ok(Arc::new(mapping))
    }

    /// Lays fresh shareable pages over `len_bytes` at `offset`, at the same address, and returns
    /// them. Whoever mapped the old pages goes on reaching the old pages only; this is how a host
    /// takes its memory back from a data server that does not answer. With `keep_content` the new
    /// pages start with the old ones' bytes.
    ///
    /// # Errors
    /// `InvalidInput` if the range is not whole pages inside the mapping; what the system calls
    /// return. After an error the old pages are still in place.
    pub fn replace_pages(
        self: &Arc<Mapping>,
        offset: usize,
        len_bytes: usize,
        keep_content: bool,
    ) -> io::Result<Arc<Mapping>> {
        let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= self.len());
        if !inside
            || len_bytes == 0
            || !offset.is_multiple_of(PAGE_BYTES)
            || !len_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only whole pages inside the mapping can be replaced",
            ));
        }
        let file = sealed_memfd(SHAREABLE_NAME, len_bytes)?;
        if keep_content {
            let fresh = MmapOptions::new().len(len_bytes).map_raw(&file)?;
            // SAFETY: both ranges are `len_bytes` long, mapped, and distinct mappings.
            unsafe {
                std::ptr::copy_nonoverlapping(self.at(offset), fresh.as_mut_ptr(), len_bytes);
            }
        }
        let base = NonNull::new(self.at(offset)).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies inside this mapping, which stays alive through `_parent`; no
        // references into a mapping exist, so nobody observes the exchange but by copies.
        unsafe { rustix::mm::mmap(base.as_ptr().cast(), len_bytes, protection, flags, &file, 0)? };
        let backing = Backing::Over { base, len: len_bytes, _parent: Arc::clone(self) };
        Ok(Arc::new(Mapping { backing, file: Some(file) }))
    }

    /// Length in bytes, a multiple of [`PAGE_BYTES`].
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.backing {
            Backing::Owned(raw) => raw.len(),
            Backing::Over { len, .. } => *len,
        }
    }

    /// Whether the mapping has no bytes; it never has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memfd behind the mapping, if it can be shared.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// First address, for system calls and devices. Bytes behind it may change at any time.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        match &self.backing {
            Backing::Owned(raw) => raw.as_mut_ptr(),
            Backing::Over { base, .. } => base.as_ptr(),
        }
    }

    /// A piece of this mapping, `None` if it would leave the mapping.
    #[must_use]
    pub fn slice(self: &Arc<Mapping>, offset: u64, len_bytes: u64) -> Option<Slice> {
        let end = offset.checked_add(len_bytes)?;
        if end > self.len() as u64 {
            return None;
        }
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len_bytes).ok()?);
        Some(Slice { mapping: Arc::clone(self), offset, len })
    }

    /// Copies bytes out of the mapping.
    ///
    /// # Panics
    /// If the range leaves the mapping: callers bound what comes from peers before.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.assert_inside(offset, into.len());
        // SAFETY: the source range was just checked; `into` is exclusive, hence distinct.
        unsafe { std::ptr::copy_nonoverlapping(self.at(offset), into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes into the mapping.
    ///
    /// # Panics
    /// If the range leaves the mapping.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.assert_inside(offset, from.len());
        // SAFETY: the destination range was just checked. `from` is a live reference to memory
        // that no mapping hands out, hence distinct.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.at(offset), from.len()) };
    }

    /// Sets bytes to zero.
    ///
    /// # Panics
    /// If the range leaves the mapping.
    pub fn zero(&self, offset: usize, len_bytes: usize) {
        self.assert_inside(offset, len_bytes);
        // SAFETY: the range was just checked.
        unsafe { std::ptr::write_bytes(self.at(offset), 0, len_bytes) };
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.base().wrapping_add(offset)
    }

    fn assert_inside(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(inside, "range {offset}+{len} leaves a mapping of {} bytes", self.len());
    }

    /// Asks for transparent huge pages. They save translation misses; nothing depends on them, so
    /// a kernel without them is no error.
    fn prefer_huge_pages(&self) {
        if let Backing::Owned(raw) = &self.backing
            && raw.len() >= HUGE_PAGE_BYTES
        {
            let advice = rustix::mm::Advice::LinuxHugepage;
            // SAFETY: the range is this value's own mapping; the advice changes no content.
            let _unsupported =
                unsafe { rustix::mm::madvise(raw.as_mut_ptr().cast(), raw.len(), advice) };
        }
    }
}

/// A bounded piece of a [`Mapping`], which it keeps mapped.
#[derive(Clone, Debug)]
pub struct Slice {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl Slice {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First address, for system calls and devices.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.at(self.offset)
    }

    /// The mapping that the slice lies in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Where the slice starts in its mapping, bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Copies out of the slice. Panics if the range leaves the slice.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.assert_inside(offset, into.len());
        self.mapping.copy_out(self.offset + offset, into);
    }

    /// Copies into the slice. Panics if the range leaves the slice.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.assert_inside(offset, from.len());
        self.mapping.copy_in(self.offset + offset, from);
    }

    /// Zeroes a range of the slice. Panics if the range leaves the slice.
    pub fn zero(&self, offset: usize, len_bytes: usize) {
        self.assert_inside(offset, len_bytes);
        self.mapping.zero(self.offset + offset, len_bytes);
    }

    fn assert_inside(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "range {offset}+{len} leaves a slice of {} bytes", self.len);
    }
}

/// Memory that an I/O operation owns from submission to completion.
#[derive(Debug)]
pub enum Memory {
    /// Exclusive memory from a pool.
    Buffer(Buffer),
    /// A piece of a mapping that others may touch meanwhile: host memory, a RAM store.
    Shared(Slice),
}

impl Memory {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Memory::Buffer(buffer) => buffer.len(),
            Memory::Shared(slice) => slice.len(),
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First address, for system calls and devices.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match self {
            Memory::Buffer(buffer) => buffer.as_ptr(),
            Memory::Shared(slice) => slice.as_ptr(),
        }
    }

    /// The buffer, if it is one.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Memory::Buffer(buffer) => Some(buffer),
            Memory::Shared(_) => None,
        }
    }

    /// Copies `len_bytes` from `self[offset..]` to `to[to_offset..]`; the ranges may overlap.
    ///
    /// # Panics
    /// If a range leaves its memory.
    pub fn copy_to(&self, offset: usize, to: &mut Memory, to_offset: usize, len_bytes: usize) {
        let fits =
            |start: usize, len: usize| start.checked_add(len_bytes).is_some_and(|e| e <= len);
        assert!(fits(offset, self.len()), "copy leaves its source");
        assert!(fits(to_offset, to.len()), "copy leaves its destination");
        let from = self.as_ptr().wrapping_add(offset);
        let into = to.as_ptr().wrapping_add(to_offset);
        // SAFETY: both ranges were just checked to lie in live memory; `copy` allows overlap.
        unsafe { std::ptr::copy(from, into, len_bytes) };
    }
}

fn sealed_memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn round_up_to_page(len: usize) -> io::Result<usize> {
    len.max(1)
        .checked_next_multiple_of(PAGE_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "length overflows"))
}

fn invalid_data(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn replaced_pages_cut_off_other_users() {
        let host = Mapping::shareable(4 * PAGE_BYTES).unwrap();
        let fd = host.file().unwrap().try_clone_to_owned().unwrap();
        let server = Mapping::from_peer(fd, host.len()).unwrap();
        server.copy_in(PAGE_BYTES, b"before");
        let mut seen = [0u8; 6];
        host.copy_out(PAGE_BYTES, &mut seen);
        assert_eq!(&seen, b"before");

        let fresh = host.replace_pages(PAGE_BYTES, PAGE_BYTES, true).unwrap();
        server.copy_in(PAGE_BYTES, b"late!!");
        host.copy_out(PAGE_BYTES, &mut seen);
        assert_eq!(&seen, b"before");

        let fd = fresh.file().unwrap().try_clone_to_owned().unwrap();
        let again = Mapping::from_peer(fd, fresh.len()).unwrap();
        again.copy_in(0, b"after!");
        host.copy_out(PAGE_BYTES, &mut seen);
        assert_eq!(&seen, b"after!");
    }

    #[test]
    fn unsealed_or_mislabelled_peer_memory_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("unsealed", flags).unwrap();
        rustix::fs::ftruncate(&file, PAGE_BYTES as u64).unwrap();
        let refused = Mapping::from_peer(file, PAGE_BYTES).unwrap_err();
        assert!(refused.to_string().contains("sealed"), "{refused}");

        let host = Mapping::shareable(PAGE_BYTES).unwrap();
        let fd = host.file().unwrap().try_clone_to_owned().unwrap();
        assert!(Mapping::from_peer(fd, 2 * PAGE_BYTES).is_err());
    }

    #[test]
    fn slices_stay_inside() {
        let mapping = Mapping::anonymous(PAGE_BYTES).unwrap();
        assert!(mapping.slice(0, PAGE_BYTES as u64 + 1).is_none());
        assert!(mapping.slice(u64::MAX, 2).is_none());
        assert_eq!(mapping.slice(PAGE_BYTES as u64, 0).unwrap().len(), 0);
    }
}
