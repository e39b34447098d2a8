//! The io_uring provider on real files.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{
    BLOCK, bytes_of, finish, finish_bytes, finish_one, memory, sleep_until_ready, transfer,
};
use gannet_disk::open::{Direct, LockedFile, OpenOptions};
use gannet_disk::uring::{UringDisk, UringOptions};
use gannet_disk::{BLOCK_BYTES, Disk, DiskError, Durability, FileId, SubmitError};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;
use tempfile::TempDir;

const OPTIONS: UringOptions = UringOptions { entries: 64, files_max: 4, memory_pieces_max: 16 };

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Creates on demand, waits for nobody.
fn creating() -> OpenOptions {
    OpenOptions { create: true, lock_wait: Duration::ZERO, ..OpenOptions::default() }
}

fn disk_with_file(path: &Path, options: &OpenOptions, blocks: u64) -> (UringDisk, FileId) {
    let mut disk = UringDisk::new(&OPTIONS).unwrap();
    let file = disk.open(path, options).unwrap();
    disk.grow(file, blocks * BLOCK).unwrap();
    (disk, file)
}

fn round_trip(path: &Path, options: &OpenOptions) {
    let (mut disk, file) = disk_with_file(path, options, 64);
    let written = memory(8, |index| (index / 7) as u8);
    let expected = bytes_of(&written);
    for (token, durability) in [(1, Durability::Visible), (2, Durability::Durable)] {
        let block = token * 8;
        let again = memory(8, |index| (index / 7) as u8);
        disk.write(transfer(token, file, block, again), durability).unwrap();
        let completion = finish_one(&mut disk);
        assert_eq!(completion.token, token);
        completion.result.unwrap();
        assert_eq!(bytes_of(&completion.memory.unwrap()), expected, "a write changes no memory");

        disk.read(transfer(9, file, block, memory(8, |_| 0xee))).unwrap();
        assert_eq!(finish_bytes(&mut disk), expected);
    }
    disk.sync(3, file).unwrap();
    let completion = finish_one(&mut disk);
    assert_eq!((completion.token, completion.memory.is_none()), (3, true));
    completion.result.unwrap();
    // Others see it through the page cache.
    let mut seen = vec![0; expected.len()];
    std::fs::File::open(path).unwrap().read_exact_at(&mut seen, 16 * BLOCK).unwrap();
    assert_eq!(seen, expected);
}

#[test]
fn what_is_written_is_read_again() {
    let directory = directory();
    round_trip(&directory.path().join("store"), &creating());
}

#[test]
fn without_direct_io_everything_works_through_the_page_cache() {
    let directory = directory();
    let path = directory.path().join("store");
    let options = OpenOptions { direct: Direct::Never, ..creating() };
    round_trip(&path, &options);
    let (disk, file) = disk_with_file(&path, &options, 1);
    assert!(!disk.is_direct(file));
    assert!(disk.file(file).unwrap().buffered_reason().unwrap().contains("switched off"));
}

#[test]
fn files_on_tmpfs_are_not_called_direct() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("no /dev/shm here: nothing to check");
        return;
    };
    let path = directory.path().join("store");
    round_trip(&path, &creating());
    let (disk, file) = disk_with_file(&path, &creating(), 1);
    assert!(!disk.is_direct(file));
    let reason = disk.file(file).unwrap().buffered_reason().unwrap();
    assert!(reason.contains("tmpfs") || reason.contains("O_DIRECT"), "{reason}");
}

/// All kinds of memory, registered and not, at offsets inside it.
#[test]
fn every_kind_of_memory_is_served() {
    let directory = directory();
    let (mut disk, file) = disk_with_file(&directory.path().join("store"), &creating(), 64);
    let pool = BufferPool::new(2 * BLOCK_BYTES, 4).unwrap();
    let host = Mapping::shareable(16 * BLOCK_BYTES).unwrap();
    for registered in [false, true, true] {
        if registered {
            // Twice is no error.
            disk.register_memory(pool.mapping()).unwrap();
            disk.register_memory(&host).unwrap();
        }
        let mut buffer = pool.take().unwrap();
        buffer.fill(if registered { 0x5a } else { 0xa5 });
        let expected = buffer.to_vec();
        disk.write(transfer(1, file, 3, Memory::Buffer(buffer)), Durability::Visible).unwrap();
        finish_one(&mut disk).result.unwrap();
        assert_eq!(pool.available(), 4);

        let slice = host.slice(5 * BLOCK, 4 * BLOCK).unwrap();
        let mut into_host = transfer(2, file, 3, Memory::Shared(slice.clone()));
        (into_host.memory_offset, into_host.len_bytes) = (BLOCK_BYTES, 2 * BLOCK_BYTES);
        disk.read(into_host).unwrap();
        finish_one(&mut disk).result.unwrap();
        let mut seen = vec![0; expected.len()];
        host.copy_out(6 * BLOCK_BYTES, &mut seen);
        assert_eq!(seen, expected);
        let mut around = vec![0xff; BLOCK_BYTES];
        slice.copy_out(0, &mut around);
        assert!(around.iter().all(|byte| *byte == 0), "the read stays in its range");
    }
    disk.unregister_memory(&host);
    disk.read(transfer(3, file, 3, Memory::Shared(host.slice(0, 2 * BLOCK).unwrap()))).unwrap();
    finish_one(&mut disk).result.unwrap();
}

#[test]
fn registration_is_bounded_and_its_failure_harmless() {
    let directory = directory();
    let mut disk = UringDisk::new(&UringOptions { memory_pieces_max: 1, ..OPTIONS }).unwrap();
    let file = disk.open(&directory.path().join("store"), &creating()).unwrap();
    disk.grow(file, 4 * BLOCK).unwrap();
    let first = Mapping::shareable(4 * BLOCK_BYTES).unwrap();
    let second = Mapping::shareable(4 * BLOCK_BYTES).unwrap();
    disk.register_memory(&first).unwrap();
    let refused = disk.register_memory(&second).unwrap_err();
    assert!(matches!(refused, DiskError::Limit { limit: 1, .. }), "{refused}");
    disk.read(transfer(1, file, 0, Memory::Shared(second.slice(0, 4 * BLOCK).unwrap()))).unwrap();
    finish_one(&mut disk).result.unwrap();
    disk.unregister_memory(&first);
    disk.register_memory(&second).unwrap();
}

#[test]
fn refused_transfers_come_back_with_their_memory() {
    let directory = directory();
    let (mut disk, file) = disk_with_file(&directory.path().join("store"), &creating(), 8);
    let refuse = |disk: &mut UringDisk, change: &dyn Fn(&mut gannet_disk::Transfer)| {
        let mut asked = transfer(7, file, 0, memory(2, |_| 1));
        change(&mut asked);
        let refused = disk.read(asked).unwrap_err();
        assert_eq!(refused.error, SubmitError::Range);
        assert_eq!((refused.transfer.token, refused.transfer.memory.len()), (7, 2 * BLOCK_BYTES));
        let refused = disk.write(refused.transfer, Durability::Visible).unwrap_err();
        assert_eq!(refused.error, SubmitError::Range);
    };
    refuse(&mut disk, &|t| t.offset = 512);
    refuse(&mut disk, &|t| t.offset = 7 * BLOCK);
    refuse(&mut disk, &|t| t.offset = u64::MAX - 4095);
    refuse(&mut disk, &|t| t.len_bytes = 512);
    refuse(&mut disk, &|t| t.len_bytes = 0);
    refuse(&mut disk, &|t| t.memory_offset = 512);
    refuse(&mut disk, &|t| t.memory_offset = BLOCK_BYTES);
    refuse(&mut disk, &|t| t.file = FileId(3));
    assert_eq!(disk.sync(1, FileId(3)), Err(SubmitError::Range));
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn a_full_queue_pushes_back_and_recovers() {
    let directory = directory();
    let (mut disk, file) = disk_with_file(&directory.path().join("store"), &creating(), 64);
    for token in 0..64 {
        let bytes = memory(1, |_| token as u8);
        disk.write(transfer(token, file, token, bytes), Durability::Visible).unwrap();
    }
    let refused = disk.write(transfer(99, file, 0, memory(1, |_| 0)), Durability::Visible);
    let refused = refused.unwrap_err();
    assert_eq!((refused.error, refused.transfer.token), (SubmitError::Full, 99));
    assert_eq!(disk.sync(1, file), Err(SubmitError::Full));

    let mut tokens: Vec<u64> = finish(&mut disk)
        .into_iter()
        .map(|completion| {
            completion.result.unwrap();
            assert_eq!(bytes_of(&completion.memory.unwrap())[0], completion.token as u8);
            completion.token
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..64).collect::<Vec<_>>(), "each completes once, in whatever order");
    disk.read(transfer(1, file, 63, memory(1, |_| 0))).unwrap();
    assert_eq!(finish_bytes(&mut disk)[0], 63);
}

/// A sleeping reactor is woken, even when it goes to sleep before anything has completed and when
/// the completion came while it did something else.
#[test]
fn the_ring_becomes_readable() {
    let directory = directory();
    let (mut disk, file) = disk_with_file(&directory.path().join("store"), &creating(), 64);
    let mut completions = Vec::new();
    for round in 0..200 {
        disk.read(transfer(round, file, round % 64, memory(1, |_| 0))).unwrap();
        disk.flush();
        while disk.in_flight() > 0 {
            sleep_until_ready(&disk);
            disk.poll(Time::monotonic(), &mut completions);
        }
    }
    disk.sync(200, file).unwrap();
    disk.flush();
    while disk.in_flight() > 0 {
        sleep_until_ready(&disk);
        disk.poll(Time::monotonic(), &mut completions);
    }
    assert_eq!(completions.len(), 201);
    // What was started but not flushed keeps a reactor from sleeping.
    disk.sync(201, file).unwrap();
    sleep_until_ready(&disk);
}

/// Polling alone makes progress: no descriptor is waited on.
#[test]
fn polling_alone_is_enough() {
    let directory = directory();
    let (mut disk, file) = disk_with_file(&directory.path().join("store"), &creating(), 64);
    let deadline = Time::monotonic() + common::PATIENCE;
    let mut completions = Vec::new();
    for token in 0..32 {
        disk.read(transfer(token, file, token, memory(1, |_| 0xff))).unwrap();
    }
    disk.flush();
    while disk.in_flight() > 0 {
        let now = Time::monotonic();
        assert!(now < deadline, "{} of 32 completed", completions.len());
        disk.poll(now, &mut completions);
    }
    for completion in completions {
        completion.result.unwrap();
        assert!(bytes_of(&completion.memory.unwrap()).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn growing_adds_zeros_and_keeps_the_rest() {
    let directory = directory();
    let path = directory.path().join("store");
    std::fs::write(&path, vec![7; BLOCK_BYTES + 100]).unwrap();
    let (mut disk, file) = disk_with_file(&path, &creating(), 0);
    assert_eq!(disk.len_bytes(file), BLOCK, "whole blocks only");
    disk.grow(file, 3 * BLOCK - 5).unwrap();
    assert_eq!(disk.len_bytes(file), 3 * BLOCK);
    disk.grow(file, BLOCK).unwrap();
    assert_eq!(disk.len_bytes(file), 3 * BLOCK, "never shorter");
    disk.read(transfer(1, file, 0, memory(3, |_| 0xee))).unwrap();
    let bytes = finish_bytes(&mut disk);
    assert!(bytes[..BLOCK_BYTES + 100].iter().all(|byte| *byte == 7));
    assert!(bytes[BLOCK_BYTES + 100..].iter().all(|byte| *byte == 0));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * BLOCK);

    let refused = disk.grow(file, u64::MAX - 1).unwrap_err().to_string();
    assert!(refused.contains("store") && refused.contains("grow"), "{refused}");
}

#[test]
fn a_file_cut_by_somebody_else_is_an_error_not_a_hang() {
    let directory = directory();
    let path = directory.path().join("store");
    let (mut disk, file) = disk_with_file(&path, &creating(), 8);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2 * BLOCK + 600).unwrap();
    disk.read(transfer(1, file, 0, memory(8, |_| 0))).unwrap();
    let completion = finish_one(&mut disk);
    assert_eq!(completion.result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(completion.memory.is_some(), "memory comes back with an error too");
}

#[test]
fn dropping_waits_for_the_kernel() {
    let directory = directory();
    let path = directory.path().join("store");
    let host = Mapping::shareable(64 * 64 * BLOCK_BYTES).unwrap();
    for flushed in [true, false] {
        let (mut disk, file) = disk_with_file(&path, &creating(), 64 * 64);
        for token in 0..64 {
            let slice = host.slice(token * 64 * BLOCK, 64 * BLOCK).unwrap();
            disk.read(transfer(token, file, token * 64, Memory::Shared(slice))).unwrap();
        }
        if flushed {
            disk.flush();
        }
        drop(disk);
        assert_eq!(std::sync::Arc::strong_count(&host), 1, "no operation keeps memory");
        // No read lands any more.
        let canary = vec![0xca; host.len()];
        host.copy_in(0, &canary);
        // The lock is free at once, which also says that the kernel is done.
        drop(LockedFile::open(&path, &creating()).unwrap());
        let mut seen = vec![0; host.len()];
        host.copy_out(0, &mut seen);
        assert!(seen == canary);
    }
}

#[test]
fn a_file_in_use_is_named() {
    let directory = directory();
    let path = directory.path().join("store");
    let (disk, _) = disk_with_file(&path, &creating(), 1);
    let refused = LockedFile::open(&path, &creating()).unwrap_err();
    let DiskError::InUse { path: named } = &refused else { panic!("{refused}") };
    assert_eq!(Path::new(named), path);
    // Another reactor of the same process shares the description instead.
    let shared = disk.file(FileId(0)).unwrap().clone();
    let mut second = UringDisk::new(&OPTIONS).unwrap();
    let file = second.attach(shared).unwrap();
    drop(disk);
    LockedFile::open(&path, &creating()).unwrap_err();
    second.read(transfer(1, file, 0, memory(1, |_| 9))).unwrap();
    assert_eq!(finish_bytes(&mut second)[0], 0);
    drop(second);
    LockedFile::open(&path, &creating()).unwrap();
}

#[test]
fn the_lock_is_taken_as_soon_as_it_is_free() {
    let directory = directory();
    let path = directory.path().join("store");
    let held = LockedFile::open(&path, &creating()).unwrap();
    let waiting = OpenOptions { lock_wait: common::PATIENCE, ..OpenOptions::default() };
    let (started, start) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            started.send(()).unwrap();
            LockedFile::open(&path, &waiting)
        });
        start.recv().unwrap();
        drop(held);
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn errors_name_path_operation_and_remedy() {
    let directory = directory();
    let options = OpenOptions { create: false, ..creating() };
    let refused = |path: PathBuf, options: &OpenOptions| {
        let message = LockedFile::open(&path, options).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        message
    };
    let message = refused(directory.path().join("store"), &options);
    assert!(message.starts_with("opening ") && message.contains("create it"), "{message}");
    let message = refused(directory.path().join("no/store"), &creating());
    assert!(message.contains("its directory does not exist"), "{message}");
    let message = refused(directory.path().to_owned(), &options);
    assert!(message.contains("is a directory"), "{message}");
    let message = refused("/dev/null".into(), &options);
    assert!(message.contains("character device"), "{message}");
    let message = refused("/proc/version".into(), &options);
    assert!(message.contains("error"), "the system's own words: {message}");

    let mut disk = UringDisk::new(&UringOptions { files_max: 1, ..OPTIONS }).unwrap();
    disk.open(&directory.path().join("first"), &creating()).unwrap();
    let refused = disk.open(&directory.path().join("second"), &creating()).unwrap_err();
    assert!(matches!(refused, DiskError::Limit { limit: 1, .. }), "{refused}");
    assert!(!directory.path().join("second").exists(), "a refused open creates nothing");
    assert!(UringDisk::new(&UringOptions { entries: 0, ..OPTIONS }).is_err());
}

/// Destroys the content of the device's first blocks.
#[test]
#[ignore = "needs a block device to overwrite, named by GANNET_TEST_BLOCK_DEVICE"]
fn a_block_device_is_served_and_claimed() {
    let path = PathBuf::from(std::env::var_os("GANNET_TEST_BLOCK_DEVICE").expect("a device"));
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let mut disk = UringDisk::new(&OPTIONS).unwrap();
    let file = disk.open(&path, &options).unwrap();
    let locked = disk.file(file).unwrap();
    assert!(locked.is_device());
    assert_eq!(locked.buffered_reason(), None);
    let len_bytes = disk.len_bytes(file);
    assert!(len_bytes >= 64 * BLOCK, "{len_bytes} bytes");
    disk.grow(file, len_bytes).unwrap();
    let refused = disk.grow(file, len_bytes + 1).unwrap_err();
    assert!(matches!(refused, DiskError::Unsupported(_)), "{refused}");

    for durability in [Durability::Visible, Durability::Durable] {
        let written = memory(8, |index| (index / 11) as u8);
        let expected = bytes_of(&written);
        disk.write(transfer(1, file, 2, written), durability).unwrap();
        finish_one(&mut disk).result.unwrap();
        disk.sync(2, file).unwrap();
        finish_one(&mut disk).result.unwrap();
        disk.read(transfer(3, file, 2, memory(8, |_| 0))).unwrap();
        assert_eq!(finish_bytes(&mut disk), expected);
    }
    let last = len_bytes / BLOCK - 1;
    disk.read(transfer(4, file, last, memory(1, |_| 0))).unwrap();
    finish_one(&mut disk).result.unwrap();
    assert!(disk.read(transfer(5, file, last + 1, memory(1, |_| 0))).is_err());

    let hasty = OpenOptions { lock_wait: Duration::ZERO, ..options };
    assert!(matches!(LockedFile::open(&path, &hasty), Err(DiskError::InUse { .. })));
    drop(disk);
    LockedFile::open(&path, &hasty).unwrap();
}
