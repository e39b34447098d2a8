//! What the tests of the disks share: memory with known bytes, and waiting for completions.

#![allow(dead_code, clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use gannet_disk::{BLOCK_BYTES, Completion, Disk, FileId, Transfer};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec};

/// Longest wait for a device before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Private memory of whole blocks, each byte from `byte(index)`.
pub(crate) fn memory(blocks: usize, byte: impl Fn(usize) -> u8) -> Memory {
    let mapping = Mapping::anonymous(blocks * BLOCK_BYTES).unwrap();
    let bytes: Vec<u8> = (0..blocks * BLOCK_BYTES).map(byte).collect();
    mapping.copy_in(0, &bytes);
    Memory::Shared(mapping.slice(0, mapping.len() as u64).unwrap())
}

pub(crate) fn bytes_of(memory: &Memory) -> Vec<u8> {
    match memory {
        Memory::Buffer(buffer) => buffer.to_vec(),
        Memory::Shared(slice) => {
            let mut bytes = vec![0; slice.len()];
            slice.copy_out(0, &mut bytes);
            bytes
        }
    }
}

/// A transfer of all of `memory` at block `block`.
pub(crate) fn transfer(token: u64, file: FileId, block: u64, memory: Memory) -> Transfer {
    let len_bytes = memory.len();
    Transfer { token, file, offset: block * BLOCK, memory, memory_offset: 0, len_bytes }
}

/// Sleeps until one of the disk's descriptors is readable: what a reactor does that has nothing
/// else to do. Fails if that takes too long.
pub(crate) fn sleep_until_ready(disk: &impl Disk) {
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    disk.wake_descriptors(&mut |fd| descriptors.push(fd.try_clone_to_owned().unwrap()));
    let mut polled: Vec<_> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&timeout)));
    assert!(ready.unwrap() > 0, "nothing became readable with {} in flight", disk.in_flight());
}

/// Flushes, then sleeps and polls until everything in flight has completed.
pub(crate) fn finish(disk: &mut impl Disk) -> Vec<Completion> {
    let mut completions = Vec::new();
    disk.flush();
    disk.poll(Time::monotonic(), &mut completions);
    while disk.in_flight() > 0 {
        sleep_until_ready(disk);
        disk.poll(Time::monotonic(), &mut completions);
    }
    completions
}

/// Finishes a single operation.
pub(crate) fn finish_one(disk: &mut impl Disk) -> Completion {
    let mut completions = finish(disk);
    assert_eq!(completions.len(), 1);
    completions.pop().unwrap()
}

/// Finishes a single operation that succeeds, and returns its bytes.
pub(crate) fn finish_bytes(disk: &mut impl Disk) -> Vec<u8> {
    let completion = finish_one(disk);
    completion.result.unwrap();
    bytes_of(&completion.memory.unwrap())
}
