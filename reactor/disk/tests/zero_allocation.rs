//! Operations allocate nothing, once the caller's list of completions has grown to its length.

#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use common::BLOCK;
use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::uring::UringOptions;
use gannet_disk::{BLOCK_BYTES, Disk, Durability, FileId, Transfer};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is the system allocator's; only a counter without destructor is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: u64 = 32;

/// Reads, writes, writes durably and syncs at full depth.
fn work(disk: &mut AnyDisk, file: FileId, pool: &BufferPool, rounds: u64) -> u64 {
    let mut completions = Vec::with_capacity(DEPTH as usize);
    let before = ALLOCATIONS.get();
    for round in 0..rounds {
        for slot in 0..DEPTH {
            let transfer = |memory| Transfer {
                token: slot,
                file,
                offset: slot * BLOCK,
                memory: Memory::Buffer(memory),
                memory_offset: 0,
                len_bytes: BLOCK_BYTES,
            };
            match (round + slot) % 16 {
                0 => disk.sync(slot, file).unwrap(),
                1 => disk.write(transfer(pool.take().unwrap()), Durability::Durable).unwrap(),
                2..8 => disk.write(transfer(pool.take().unwrap()), Durability::Visible).unwrap(),
                _ => disk.read(transfer(pool.take().unwrap())).unwrap(),
            }
        }
        disk.flush();
        while disk.in_flight() > 0 {
            disk.poll(Time::monotonic(), &mut completions);
        }
        assert_eq!(completions.len(), DEPTH as usize);
        for completion in completions.drain(..) {
            completion.result.unwrap();
        }
    }
    ALLOCATIONS.get() - before
}

#[test]
fn steady_state_allocates_nothing() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = UringOptions { entries: DEPTH as u32, files_max: 2, memory_pieces_max: 8 };
    let mut disk = AnyDisk::new(&options).unwrap();
    let open = OpenOptions { create: true, lock_wait: Duration::ZERO, ..OpenOptions::default() };
    let on_disk = disk.open(&directory.path().join("store"), &open).unwrap();
    disk.grow(on_disk, DEPTH * BLOCK).unwrap();
    let in_memory = disk.create_ram(DEPTH * BLOCK, 0).unwrap();
    let pool = BufferPool::new(BLOCK_BYTES, DEPTH as u32).unwrap();
    for registered in [false, true] {
        if registered {
            disk.register_memory(pool.mapping()).unwrap();
        }
        for file in [on_disk, in_memory] {
            assert_eq!(work(&mut disk, file, &pool, 16), 0, "{file:?}, registered {registered}");
        }
    }
    let before = ALLOCATIONS.get();
    drop(Box::new([1u8; 64]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the counter counts");
}
