//! Random 4 KiB reads of a file: the rate that one reactor gets out of its disk.
//!
//! `cargo run --release -p gannet-disk --example random_read -- FILE [SECONDS]`
//!
//! Makes a file of 1 GiB if there is none (real bytes, so that the device has to read them).

use std::path::Path;
use std::time::Duration;

use gannet_disk::open::OpenOptions;
use gannet_disk::uring::{UringDisk, UringOptions};
use gannet_disk::{BLOCK_BYTES, Completion, Disk, Durability, FileId, Transfer};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::{Buffer, BufferPool};
use gannet_runtime::time::Time;

const FILE_BYTES: u64 = 1 << 30;
const DEPTH_MAX: u32 = 32;
const FILL_BYTES: usize = 1 << 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn transfer(file: FileId, offset: u64, buffer: Buffer) -> Transfer {
    let len_bytes = buffer.len();
    let memory = Memory::Buffer(buffer);
    Transfer { token: 0, file, offset, memory, memory_offset: 0, len_bytes }
}

/// Waits for all that is in flight.
fn finish(disk: &mut UringDisk) -> Outcome<()> {
    let mut completions = Vec::new();
    while disk.in_flight() > 0 {
        disk.flush();
        disk.poll(Time::monotonic(), &mut completions);
    }
    for completion in completions {
        completion.result?;
    }
    Ok(())
}

fn fill(disk: &mut UringDisk, file: FileId) -> Outcome<()> {
    let pool = BufferPool::new(FILL_BYTES, 8)?;
    disk.grow(file, FILE_BYTES)?;
    let mut state = 1u64;
    for offset in (0..FILE_BYTES).step_by(FILL_BYTES) {
        if pool.available() == 0 {
            finish(disk)?;
        }
        let mut buffer = pool.take().ok_or("a pool without buffers")?;
        buffer.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next(&mut state)));
        disk.write(transfer(file, offset, buffer), Durability::Visible)
            .map_err(|refused| refused.error)?;
    }
    finish(disk)?;
    disk.sync(0, file)?;
    finish(disk)
}

/// Marsaglia's xorshift.
fn next(state: &mut u64) -> [u8; 8] {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.to_ne_bytes()
}

/// Keeps `depth` reads in flight for `duration`; returns the reads per second.
fn measure(
    disk: &mut UringDisk,
    file: FileId,
    pool: &BufferPool,
    depth: u32,
    duration: Duration,
) -> Outcome<f64> {
    let blocks = disk.len_bytes(file) / BLOCK_BYTES as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut completions: Vec<Completion> = Vec::with_capacity(DEPTH_MAX as usize);
    let start = Time::monotonic();
    let mut now = start;
    let mut reads = 0u64;
    while now.since(start) < duration {
        while (disk.in_flight() as u32) < depth {
            let block = u64::from_ne_bytes(next(&mut state)) % blocks;
            let buffer = pool.take().ok_or("a pool without buffers")?;
            disk.read(transfer(file, block * BLOCK_BYTES as u64, buffer))
                .map_err(|refused| refused.error)?;
        }
        disk.flush();
        disk.poll(now, &mut completions);
        for completion in completions.drain(..) {
            completion.result?;
            reads += 1;
        }
        now = Time::monotonic();
    }
    finish(disk)?;
    Ok(reads as f64 / now.since(start).as_secs_f64())
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: random_read FILE [SECONDS]")?;
    let seconds = arguments.next().map_or(Ok(3), |seconds| seconds.parse())?;
    let duration = Duration::from_secs(seconds);
    let mut disk = UringDisk::new(&UringOptions::default())?;
    let file =
        disk.open(Path::new(&path), &OpenOptions { create: true, ..OpenOptions::default() })?;
    if disk.len_bytes(file) == 0 {
        fill(&mut disk, file)?;
    }
    if let Some(reason) = disk.file(file).and_then(|file| file.buffered_reason()) {
        println!("not direct: {reason}");
    }
    let pool = BufferPool::new(BLOCK_BYTES, DEPTH_MAX)?;
    for registered in [false, true] {
        if registered {
            disk.register_memory(pool.mapping())?;
        }
        let memory = if registered { "registered" } else { "plain" };
        for depth in [1, DEPTH_MAX] {
            let rate = measure(&mut disk, file, &pool, depth, duration)?;
            println!("4 KiB random read, depth {depth:2}, {memory} memory: {rate:.0} IOPS");
        }
    }
    Ok(())
}
