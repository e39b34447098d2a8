//! Files in memory, alone and beside files on disk.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{BLOCK, bytes_of, finish_bytes, finish_one, memory, sleep_until_ready, transfer};
use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::ram::RamDisk;
use gannet_disk::uring::UringOptions;
use gannet_disk::{BLOCK_BYTES, Disk, DiskError, Durability, FileId, SubmitError};
use gannet_runtime::time::Time;

#[test]
fn what_is_written_is_read_and_resident() {
    let mut disk = RamDisk::new(4).unwrap();
    let file = disk.create(8 * BLOCK, 0).unwrap();
    let written = memory(2, |index| index as u8);
    let expected = bytes_of(&written);
    disk.write(transfer(1, file, 3, written), Durability::Durable).unwrap();
    assert_eq!(disk.in_flight(), 1, "completes at the next poll, not before");
    sleep_until_ready(&disk);
    finish_one(&mut disk).result.unwrap();
    disk.read(transfer(2, file, 3, memory(2, |_| 0))).unwrap();
    assert_eq!(finish_bytes(&mut disk), expected);

    let slice = disk.resident(file, 3 * BLOCK + 10, 100).unwrap();
    let mut seen = [0; 100];
    slice.copy_out(0, &mut seen);
    assert_eq!(seen, expected[10..110]);
    assert!(disk.resident(file, 8 * BLOCK - 1, 2).is_none());
    assert!(disk.resident(file, u64::MAX, 2).is_none());
    assert!(disk.resident(FileId(1), 0, 1).is_none());
    disk.sync(3, file).unwrap();
    assert!(finish_one(&mut disk).memory.is_none());
    let mut descriptors = 0;
    disk.wake_descriptors(&mut |_| descriptors += 1);
    assert_eq!(descriptors, 0, "nothing keeps a reactor awake when nothing is in flight");
}

#[test]
fn growth_ends_at_the_capacity() {
    let mut disk = RamDisk::new(4).unwrap();
    let file = disk.create(BLOCK, 4 * BLOCK).unwrap();
    assert!(disk.resident(file, BLOCK, 1).is_none());
    let refused = disk.read(transfer(1, file, 1, memory(1, |_| 0))).unwrap_err();
    assert_eq!(refused.error, SubmitError::Range);
    disk.grow(file, 4 * BLOCK).unwrap();
    disk.read(transfer(1, file, 3, memory(1, |_| 0xff))).unwrap();
    assert!(finish_bytes(&mut disk).iter().all(|byte| *byte == 0));
    let refused = disk.grow(file, 4 * BLOCK + 1).unwrap_err();
    assert!(matches!(refused, DiskError::Unsupported(_)), "{refused}");
}

#[test]
fn refused_transfers_come_back() {
    let mut disk = RamDisk::new(2).unwrap();
    let file = disk.create(4 * BLOCK, 0).unwrap();
    for token in 0..2 {
        disk.read(transfer(token, file, 0, memory(1, |_| 0))).unwrap();
    }
    let refused = disk.read(transfer(9, file, 0, memory(1, |_| 5))).unwrap_err();
    assert_eq!((refused.error, refused.transfer.token), (SubmitError::Full, 9));
    assert_eq!(bytes_of(&refused.transfer.memory)[0], 5);
    assert_eq!(disk.sync(9, file), Err(SubmitError::Full));
    let mut completions = Vec::new();
    disk.poll(Time::ZERO, &mut completions);
    assert_eq!(completions.len(), 2);
    let refused = disk.read(transfer(9, file, 4, refused.transfer.memory)).unwrap_err();
    assert_eq!(refused.error, SubmitError::Range);
    assert!(disk.create(u64::MAX, 0).is_err());
}

#[test]
fn reactors_share_a_file_by_its_mapping() {
    let mut first = AnyDisk::ram_only(4).unwrap();
    let file = first.create_ram(4 * BLOCK, 0).unwrap();
    let mut second = AnyDisk::ram_only(4).unwrap();
    let shared = second.attach_ram(Arc::clone(first.mapping(file).unwrap()));
    first.write(transfer(1, file, 2, memory(1, |_| 42)), Durability::Visible).unwrap();
    finish_one(&mut first).result.unwrap();
    second.read(transfer(1, shared, 2, memory(1, |_| 0))).unwrap();
    assert!(finish_bytes(&mut second).iter().all(|byte| *byte == 42));
    let refused = second.open(Path::new("/store"), &OpenOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("memory only"), "{refused}");
}

/// Ids are one space, whatever the provider's own ids are; refused transfers keep theirs.
#[test]
fn files_of_both_kinds_do_not_mix() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = UringOptions { entries: 8, files_max: 2, memory_pieces_max: 2 };
    let mut disk = AnyDisk::new(&options).unwrap();
    let create = OpenOptions { create: true, ..OpenOptions::default() };
    let files = [
        disk.create_ram(4 * BLOCK, 0).unwrap(),
        disk.open(&directory.path().join("first"), &create).unwrap(),
        disk.create_ram(4 * BLOCK, 0).unwrap(),
        disk.open(&directory.path().join("second"), &create).unwrap(),
    ];
    for (index, file) in files.into_iter().enumerate() {
        disk.grow(file, 4 * BLOCK).unwrap();
        let bytes = memory(1, |_| index as u8 + 1);
        disk.write(transfer(index as u64, file, 1, bytes), Durability::Visible).unwrap();
    }
    assert_eq!(common::finish(&mut disk).len(), 4);
    for (index, file) in files.into_iter().enumerate() {
        disk.read(transfer(0, file, 1, memory(1, |_| 0))).unwrap();
        assert_eq!(finish_bytes(&mut disk), vec![index as u8 + 1; BLOCK_BYTES]);
        assert_eq!(disk.resident(file, 0, BLOCK_BYTES).is_some(), index % 2 == 0);
        assert_eq!(disk.file(file).is_some(), index % 2 == 1);
        let refused = disk.read(transfer(0, file, 4, memory(1, |_| 0))).unwrap_err();
        assert_eq!((refused.error, refused.transfer.file), (SubmitError::Range, file));
        disk.sync(1, file).unwrap();
        finish_one(&mut disk).result.unwrap();
    }
    let unknown = FileId(4);
    assert!(disk.read(transfer(0, unknown, 0, memory(1, |_| 0))).is_err());
    assert_eq!(disk.sync(0, unknown), Err(SubmitError::Range));
    assert_eq!(disk.len_bytes(unknown), 0);
    assert!(disk.grow(unknown, 1).is_err());
}
