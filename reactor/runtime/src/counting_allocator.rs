//! A global allocator that counts, for tests which prove that the data path allocates nothing.
//!
//! A test binary declares it and compares the count of its thread before and after:
//!
//! ```
//! use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! # fn main() {
//! let before = allocations_on_this_thread();
//! let boxed = std::hint::black_box(Box::new(1));
//! assert_eq!(allocations_on_this_thread(), before + 1);
//! # drop(boxed);
//! # }
//! ```
//!
//! Counts are per thread, so tests that run beside each other do not disturb each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Const-initialised and without a destructor: access allocates nothing and works at any point
    // of a thread's life.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting allocations and re-allocations per thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// Allocations and re-allocations that the calling thread has made through [`CountingAllocator`].
/// Stays zero if that is not the global allocator: a test first shows that it counts.
#[must_use]
pub fn allocations_on_this_thread() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is handed to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`; `pointer` came from `System`, where all requests go.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
