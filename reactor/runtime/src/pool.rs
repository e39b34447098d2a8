//! Pools of page-aligned buffers that belong to one reactor.
//!
//! A [`Buffer`] is exclusive: it derefs to bytes and returns to its pool when dropped. Pools are
//! made at start and never grow, so taking a buffer allocates nothing; an empty pool is
//! back-pressure, not an error.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::memory::{Mapping, PAGE_BYTES};

/// A pool of equally long buffers over one mapping.
#[derive(Clone)]
pub struct BufferPool {
    shared: Rc<Shared>,
}

struct Shared {
    mapping: Arc<Mapping>,
    buffer_bytes: usize,
    free: RefCell<Vec<u32>>,
    count: u32,
}

impl BufferPool {
    /// Makes a pool of `count` buffers of `buffer_bytes` each (rounded up to pages).
    ///
    /// # Errors
    /// What mapping the memory returns.
    pub fn new(buffer_bytes: usize, count: u32) -> io::Result<BufferPool> {
        let buffer_bytes = buffer_bytes.max(1).next_multiple_of(PAGE_BYTES);
        let total = buffer_bytes.checked_mul(count as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let mapping = Mapping::anonymous(total)?;
        // Lowest indices last, so that a lightly used pool keeps reusing the same warm buffers.
        let free = RefCell::new((0..count).rev().collect());
        Ok(BufferPool { shared: Rc::new(Shared { mapping, buffer_bytes, free, count }) })
    }

    /// Takes a buffer, `None` when all are in use.
    #[must_use]
    pub fn take(&self) -> Option<Buffer> {
        let index = self.shared.free.borrow_mut().pop()?;
        Some(Buffer { pool: Rc::clone(&self.shared), index })
    }

    /// Length of each buffer, bytes.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    /// Buffers not in use at the moment.
    #[must_use]
    pub fn available(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// Buffers in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.count as usize
    }

    /// The memory behind all buffers, for registration with a device.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.shared.mapping
    }
}

/// One buffer of a pool: exclusive, page-aligned, returned to the pool when dropped. Content is
/// what the last user left.
pub struct Buffer {
    pool: Rc<Shared>,
    index: u32,
}

impl Buffer {
    /// First address, for system calls and devices.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        let offset = self.index as usize * self.pool.buffer_bytes;
        self.pool.mapping.base().wrapping_add(offset)
    }

    /// Index of the buffer in its pool.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The mapping that the buffer lies in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.pool.mapping
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the index was handed out once, so this value alone refers to the range, which
        // lies inside a private mapping that the pool keeps alive.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.pool.buffer_bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for Deref, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.pool.buffer_bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.index);
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.index, self.pool.buffer_bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_distinct_and_return_when_dropped() {
        let pool = BufferPool::new(100, 2).unwrap();
        assert_eq!(pool.buffer_bytes(), PAGE_BYTES);
        let mut first = pool.take().unwrap();
        let mut second = pool.take().unwrap();
        assert!(pool.take().is_none());
        first.fill(1);
        second.fill(2);
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        assert_eq!(pool.available(), 1);
        assert!(second.iter().all(|byte| *byte == 2));
    }
}
