//! A killed process's transfers never touch what its successor uses: `HAZARDS` H13.
//!
//! Each round starts a victim (this test binary again) that keeps hundreds of direct reads into
//! memory shared with us, and writes to a file, in flight, and kills it in mid-transfer. Only after
//! the successor's [`LockedFile::open`] has returned it puts canaries into the memory and new
//! content into the blocks, and then watches them for longer than any transfer was ever seen to
//! run on.
//!
//! The hazard itself is timing: canaries that are written between the victim's death and the lock
//! are only counted. That count, printed at the end, shows that the watch can fail.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{BLOCK, memory, transfer};
use gannet_disk::open::{LockedFile, OpenOptions};
use gannet_disk::uring::{UringDisk, UringOptions};
use gannet_disk::{BLOCK_BYTES, Disk, Durability, FileId, Transfer};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;

const ROUNDS: usize = 50;
/// How long canaries are watched.
const WATCH: Duration = Duration::from_millis(300);
/// Names the victim's file, and makes a process the victim.
const VICTIM_FILE: &str = "GANNET_DISK_TEST_VICTIM_FILE";
/// Makes the victim register the shared memory: its pages are then held in another way.
const VICTIM_REGISTERS: &str = "GANNET_DISK_TEST_VICTIM_REGISTERS";

/// Transfers of each kind in flight.
const DEPTH: u64 = 256;
const TRANSFER_BYTES: usize = 32 * BLOCK_BYTES;
const HALF_BYTES: u64 = DEPTH * TRANSFER_BYTES as u64;
/// The file's first half is read, the second written.
const FILE_BYTES: u64 = 2 * HALF_BYTES;

const STORED: u8 = 0x11;
const WRITTEN_BY_VICTIM: u8 = 0x22;
const CANARY: u8 = 0xca;
const UNPROTECTED_CANARY: u8 = 0xcb;

fn options() -> UringOptions {
    UringOptions { entries: 2 * DEPTH as u32, files_max: 1, memory_pieces_max: 2 }
}

/// Reads into the memory on standard input, and writes, until it is killed.
fn victim(path: &Path) -> ! {
    let input = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let shared = Mapping::from_peer(input, HALF_BYTES as usize).unwrap();
    let mut disk = UringDisk::new(&options()).unwrap();
    let file = disk.open(path, &OpenOptions::default()).unwrap();
    if std::env::var_os(VICTIM_REGISTERS).is_some() {
        // Where locked memory is short the round is one without.
        let _slower_without = disk.register_memory(&shared);
    }
    let source = Mapping::anonymous(TRANSFER_BYTES).unwrap();
    source.copy_in(0, &[WRITTEN_BY_VICTIM; TRANSFER_BYTES]);
    let start = |disk: &mut UringDisk, token: u64| {
        let slot = token % DEPTH * TRANSFER_BYTES as u64;
        let mapping = if token < DEPTH { &shared } else { &source };
        let offset = if token < DEPTH { slot } else { 0 };
        let slice = mapping.slice(offset, TRANSFER_BYTES as u64).unwrap();
        let memory = Memory::Shared(slice);
        let len_bytes = TRANSFER_BYTES;
        let transfer = Transfer { token, file, offset: slot, memory, memory_offset: 0, len_bytes };
        if token < DEPTH {
            disk.read(transfer).unwrap();
        } else {
            let transfer = Transfer { offset: HALF_BYTES + slot, ..transfer };
            disk.write(transfer, Durability::Visible).unwrap();
        }
    };
    (0..2 * DEPTH).for_each(|token| start(&mut disk, token));
    disk.flush();
    let mut completions = Vec::new();
    let mut completed = 0;
    let mut told = false;
    loop {
        common::sleep_until_ready(&disk);
        disk.poll(Time::monotonic(), &mut completions);
        completed += completions.len();
        for completion in completions.drain(..) {
            completion.result.unwrap();
            start(&mut disk, completion.token);
        }
        disk.flush();
        if !told && completed >= DEPTH as usize / 2 {
            told = true;
            std::io::stdout().write_all(b"\nin flight\n").unwrap();
            std::io::stdout().flush().unwrap();
        }
    }
}

/// Starts a victim on the file, kills it when it is busy, and returns when it is dead.
fn kill_one(path: &Path, shared: &Arc<Mapping>, registers: bool) {
    let input = shared.file().unwrap().try_clone_to_owned().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    if registers {
        command.env(VICTIM_REGISTERS, "yes");
    }
    let mut child = command
        .args(["--exact", "no_transfer_outlives_the_lock", "--nocapture"])
        .env(VICTIM_FILE, path)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let busy = lines.map_while(Result::ok).any(|line| line == "in flight");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(busy, "the victim died by itself");
}

fn fill(shared: &Mapping, byte: u8) {
    let bytes = vec![byte; TRANSFER_BYTES];
    (0..shared.len()).step_by(TRANSFER_BYTES).for_each(|offset| shared.copy_in(offset, &bytes));
}

/// Blocks of memory that hold anything but `byte`.
fn changed_blocks(shared: &Mapping, byte: u8) -> usize {
    let expected = [byte; BLOCK_BYTES];
    let mut seen = [0; BLOCK_BYTES];
    (0..shared.len())
        .step_by(BLOCK_BYTES)
        .filter(|offset| {
            shared.copy_out(*offset, &mut seen);
            seen != expected
        })
        .count()
}

/// The first block of every transfer that the victim wrote: what a successor reallocates.
fn reallocate(disk: &mut UringDisk, file: FileId) {
    for slot in 0..DEPTH {
        let block = (HALF_BYTES + slot * TRANSFER_BYTES as u64) / BLOCK;
        let content = transfer(slot, file, block, memory(1, |_| CANARY));
        disk.write(content, Durability::Visible).unwrap();
    }
    for completion in common::finish(disk) {
        completion.result.unwrap();
    }
}

fn changed_reallocated_blocks(disk: &mut UringDisk, file: FileId) -> usize {
    for slot in 0..DEPTH {
        let block = (HALF_BYTES + slot * TRANSFER_BYTES as u64) / BLOCK;
        disk.read(transfer(slot, file, block, memory(1, |_| 0))).unwrap();
    }
    let expected = vec![CANARY; BLOCK_BYTES];
    common::finish(disk)
        .into_iter()
        .filter(|completion| {
            assert!(completion.result.is_ok());
            common::bytes_of(completion.memory.as_ref().unwrap()) != expected
        })
        .count()
}

#[test]
fn no_transfer_outlives_the_lock() {
    if let Some(path) = std::env::var_os(VICTIM_FILE) {
        victim(Path::new(&path));
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("store");
    let file = std::fs::File::create_new(&path).unwrap();
    let content = vec![STORED; TRANSFER_BYTES];
    (0..2 * DEPTH).for_each(|_| (&file).write_all(&content).unwrap());
    file.sync_all().unwrap();
    let shared = Mapping::shareable(HALF_BYTES as usize).unwrap();

    let start = Time::monotonic();
    let (mut rounds_overwritten, mut blocks_overwritten) = (0, 0);
    let mut waited_longest = Duration::ZERO;
    for round in 0..ROUNDS {
        kill_one(&path, &shared, round % 2 == 0);
        let dead = Time::monotonic();
        fill(&shared, UNPROTECTED_CANARY);
        let open = OpenOptions { lock_wait: common::PATIENCE, ..OpenOptions::default() };
        let locked = LockedFile::open(&path, &open).unwrap();
        let taken = Time::monotonic();
        waited_longest = waited_longest.max(taken.since(dead));
        assert_eq!(locked.len_bytes(), FILE_BYTES);

        let overwritten = changed_blocks(&shared, UNPROTECTED_CANARY);
        rounds_overwritten += usize::from(overwritten > 0);
        blocks_overwritten += overwritten;

        fill(&shared, CANARY);
        let mut disk = UringDisk::new(&options()).unwrap();
        let file = disk.attach(locked).unwrap();
        reallocate(&mut disk, file);
        loop {
            let changed = changed_blocks(&shared, CANARY);
            assert_eq!(changed, 0, "round {round}: memory was written after the lock was taken");
            if Time::monotonic().since(taken) >= WATCH {
                break;
            }
        }
        let changed = changed_reallocated_blocks(&mut disk, file);
        assert_eq!(changed, 0, "round {round}: blocks were written after the lock was taken");
    }
    println!(
        "{ROUNDS} rounds in {:?}; without the lock {blocks_overwritten} blocks of canaries were \
         overwritten, in {rounds_overwritten} rounds; longest wait for the lock {waited_longest:?}",
        Time::monotonic().since(start)
    );
}
