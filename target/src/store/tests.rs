use std::os::unix::fs::FileExt;

use gannet_disk::Disk;
use gannet_disk::any::AnyDisk;
use gannet_disk::uring::UringOptions;

use super::*;

const NAMES: StoreNames = StoreNames { store: [0xa5; 16], target: [0x5a; 16] };
const MIB: u64 = 1 << 20;

fn directory(path: &Path) -> StoreSpec {
    StoreSpec { path: path.to_owned(), kind: StoreKind::Directory { size_bytes: 64 * MIB } }
}

fn ram(path: &Path) -> StoreSpec {
    StoreSpec { path: path.to_owned(), kind: StoreKind::Ram { size_bytes: 8 * MIB } }
}

fn problem<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreProblem {
    result.unwrap_err().problem
}

/// Opens with a disk that needs no io_uring; a directory store gets as far as being attached.
fn open(spec: &StoreSpec) -> Result<OpenStore, StoreError> {
    open_store(&mut AnyDisk::ram_only(8).unwrap(), spec, NAMES.target)
}

/// Changes the superblock's places, with a right checksum.
fn edit(spec: &StoreSpec, places: &[u64], change: impl Fn(&mut Superblock)) {
    let path = spec.superblock_path();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let Found::Valid(mut superblock) = superblock::find(&file).unwrap() else { panic!() };
    change(&mut superblock);
    for place in places {
        file.write_all_at(&superblock.encode(), place * SUPERBLOCK_BYTES).unwrap();
    }
}

#[test]
fn the_superblock_has_these_bytes() {
    let superblock = Superblock {
        store: *b"0123456789abcdef",
        target: *b"ABCDEFGHIJKLMNOP",
        sequence: U64::new(7),
        generation: U32::new(3),
        kind: U32::new(superblock::KIND_DEVICE),
        blocks: U64::new(0x0102_0304_0506_0708),
        data_offset: U64::new(MIB),
        file_bytes: U64::new(1 << 40),
        ..Superblock::current()
    };
    let place = superblock.encode();
    let golden: [&[u8]; 15] = [
        b"GNTSTORE",
        &[1, 0, 0, 0],
        &[2, 0, 0, 0],
        &[0; 8],
        &[0; 8],
        &[0; 8],
        b"0123456789abcdef",
        b"ABCDEFGHIJKLMNOP",
        &[7, 0, 0, 0, 0, 0, 0, 0],
        &[3, 0, 0, 0],
        &[0, 0x10, 0, 0],
        &[8, 7, 6, 5, 4, 3, 2, 1],
        &[0, 0, 0x10, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0],
        &[16, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(place[..120], golden.concat());
    assert!(place[120..4092].iter().all(|byte| *byte == 0));
    assert_eq!(place[4092..], GOLDEN_SUM);
}

/// CRC32C of the bytes above, little-endian.
const GOLDEN_SUM: [u8; 4] = [209, 237, 102, 57];

#[test]
fn a_directory_store_is_formatted_and_opened() {
    let folder = tempfile::tempdir().unwrap();
    let spec = directory(&folder.path().join("new/store"));
    assert!(!store_exists(&spec).unwrap());
    let formatted = format_store(&spec, NAMES, false).unwrap();
    assert!(store_exists(&spec).unwrap());
    assert_eq!(formatted.uuid, NAMES.store);
    assert_eq!(formatted.generation.get(), 1);
    let length = std::fs::metadata(spec.superblock_path()).unwrap().len();
    assert_eq!(length, 64 * MIB);
    assert_eq!(formatted.blocks.get(), 63 * MIB / 4096);
    let Ok(mut disk) = AnyDisk::new(&UringOptions::default()) else {
        // Without io_uring the rest is covered by RAM stores.
        return;
    };
    let store = open_store(&mut disk, &spec, NAMES.target).unwrap();
    assert_eq!((store.info, store.data_offset), (formatted, MIB));
    assert!(disk.len_bytes(store.file) >= store.data_offset + store.info.blocks.get() * 4096);
    assert!(matches!(problem(store_in_use(&spec)), StoreProblem::InUse));
    drop(disk);
    // A second opening finds the same generation: the content is still there.
    let mut disk = AnyDisk::new(&UringOptions::default()).unwrap();
    let store = open_store(&mut disk, &spec, NAMES.target).unwrap();
    assert_eq!(store.info, formatted);
}

/// Tries to format without waiting as long as a real format does.
fn store_in_use(spec: &StoreSpec) -> Result<LockedFile, StoreError> {
    let lock_wait = Duration::ZERO;
    let options =
        gannet_disk::open::OpenOptions { create: false, direct: Direct::Never, lock_wait };
    LockedFile::open(&spec.superblock_path(), &options).map_err(|source| match source {
        DiskError::InUse { .. } => spec.error(StoreProblem::InUse),
        source => spec.error(StoreProblem::Disk(source)),
    })
}

#[test]
fn each_opening_of_a_ram_store_is_a_new_generation() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ram(folder.path());
    assert_eq!(format_store(&spec, NAMES, false).unwrap().generation.get(), 1);
    for generation in 2..5 {
        let store = open(&spec).unwrap();
        assert_eq!(store.info.generation.get(), generation);
        assert_eq!((store.info.blocks.get(), store.data_offset), (2048, 0));
        assert_eq!(store.info.uuid, NAMES.store);
        assert!(store.lock().is_some());
        assert!(matches!(problem(store_in_use(&spec)), StoreProblem::InUse));
    }
    // Its size is that of the opening: nothing of it is kept.
    let smaller =
        StoreSpec { path: spec.path.clone(), kind: StoreKind::Ram { size_bytes: 4 * MIB } };
    assert_eq!(open(&smaller).unwrap().info.blocks.get(), 1024);
}

#[test]
fn an_existing_store_is_overwritten_by_force_only() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ram(folder.path());
    format_store(&spec, NAMES, false).unwrap();
    assert!(matches!(problem(format_store(&spec, NAMES, false)), StoreProblem::Exists));
    let other = StoreNames { store: [9; 16], ..NAMES };
    assert_eq!(format_store(&spec, other, true).unwrap().uuid, [9; 16]);
    assert_eq!(open(&spec).unwrap().info.uuid, [9; 16]);
    // What is left of a store counts as one too.
    let file = OpenOptions::new().write(true).open(spec.superblock_path()).unwrap();
    for place in 0..SUPERBLOCKS {
        file.write_all_at(b"damage", place * SUPERBLOCK_BYTES + 100).unwrap();
    }
    assert!(matches!(problem(format_store(&spec, NAMES, false)), StoreProblem::Exists));
}

#[test]
fn what_is_not_a_store_is_overwritten_by_force_only() {
    let folder = tempfile::tempdir().unwrap();
    let spec = directory(folder.path());
    // Where ext4 and btrfs have their superblocks.
    for offset in [1024, 64 << 10] {
        let mut content = vec![0; 2 << 20];
        content[offset + 56] = 0x53;
        std::fs::write(spec.superblock_path(), &content).unwrap();
        assert!(matches!(problem(format_store(&spec, NAMES, false)), StoreProblem::Foreign));
        assert!(std::fs::read(spec.superblock_path()).unwrap() == content, "it is as it was");
        format_store(&spec, NAMES, true).unwrap();
    }
    std::fs::write(spec.superblock_path(), vec![0; 2 << 20]).unwrap();
    format_store(&spec, NAMES, false).unwrap();
}

#[test]
fn one_good_superblock_is_enough_and_the_newer_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ram(folder.path());
    format_store(&spec, NAMES, false).unwrap();
    for damaged in 0..SUPERBLOCKS {
        let generation = open(&spec).unwrap().info.generation.get();
        let path = spec.superblock_path();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 17], damaged * SUPERBLOCK_BYTES + 50).unwrap();
        assert_eq!(open(&spec).unwrap().info.generation.get(), generation + 1);
    }
    // A crash between the two writes: the copy is newer than the first place.
    edit(&spec, &[1], |superblock| {
        superblock.sequence = U64::new(1000);
        superblock.generation = U32::new(500);
    });
    assert_eq!(open(&spec).unwrap().info.generation.get(), 501);
    edit(&spec, &[0], |superblock| superblock.sequence = U64::new(5));
    assert_eq!(open(&spec).unwrap().info.generation.get(), 502, "the older one does not");
}

#[test]
fn what_cannot_be_used_is_refused_with_path_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ram(folder.path());
    let refused = |expected: &str, remedy: &str| {
        let message = open(&spec).unwrap_err().to_string();
        let path = spec.superblock_path();
        for part in [path.to_str().unwrap(), expected, remedy] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    };
    refused("not formatted", "gannet format");
    std::fs::write(spec.superblock_path(), vec![0; 8192]).unwrap();
    refused("not formatted", "gannet format");
    std::fs::write(spec.superblock_path(), b"short").unwrap();
    refused("not formatted", "gannet format");
    format_store(&spec, NAMES, true).unwrap();
    let restore = |change: &dyn Fn(&mut Superblock)| {
        format_store(&spec, NAMES, true).unwrap();
        edit(&spec, &[0, 1], change);
    };
    restore(&|superblock| superblock.version = U32::new(2));
    refused("version 2", "use the build that made it");
    restore(&|superblock| superblock.incompatible = U64::new(4));
    refused("features 0x4", "newer build");
    restore(&|superblock| superblock.read_only_compatible = U64::new(8));
    refused("features 0x8", "newer build");
    restore(&|superblock| superblock.kind = U32::new(1));
    refused("a directory store and not a RAM store", "correct");
    restore(&|superblock| superblock.target = [0xab; 16]);
    refused("abababab", "uuid");
    restore(&|superblock| superblock.file_bytes = U64::new(1 << 30));
    refused("1073741824 bytes long", "restore its length");
    restore(&|superblock| superblock.data_offset = U64::new(5));
    refused("damaged", "format");
    restore(&|superblock| superblock.block_bytes = U32::new(512));
    refused("damaged", "format");
    // A feature that may be ignored is.
    restore(&|superblock| superblock.compatible = U64::new(1));
    open(&spec).unwrap();
    std::fs::write(spec.superblock_path(), [*b"GNTSTORE"; 1024].concat()).unwrap();
    refused("damaged", "backup");
}

#[test]
fn a_file_store_that_lost_its_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spec = directory(folder.path());
    format_store(&spec, NAMES, false).unwrap();
    let file = OpenOptions::new().write(true).open(spec.superblock_path()).unwrap();
    file.set_len(32 * MIB).unwrap();
    let expected = 64 * MIB;
    assert!(matches!(
        problem(open(&spec)),
        StoreProblem::Short { expected: found, actual } if (found, actual) == (expected, 32 * MIB)
    ));
    file.set_len(64 * MIB).unwrap();
    edit(&spec, &[0, 1], |superblock| superblock.blocks = U64::new(u64::MAX));
    assert!(matches!(problem(open(&spec)), StoreProblem::Corrupt));
}

#[test]
fn stores_that_are_too_small_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [
        StoreKind::Directory { size_bytes: MIB },
        StoreKind::Ram { size_bytes: STORE_BYTES_MIN - 1 },
    ] {
        let spec = StoreSpec { path: folder.path().join(format!("{kind:?}")), kind };
        let message = format_store(&spec, NAMES, false).unwrap_err().to_string();
        assert!(message.contains("at least 2097152"), "{message}");
    }
    let missing = StoreSpec { path: folder.path().join("none"), kind: StoreKind::Device };
    assert!(matches!(problem(format_store(&missing, NAMES, false)), StoreProblem::NotFormatted));
}

#[test]
fn the_layout_holds_what_it_promises() {
    for file_bytes in [STORE_BYTES_MIN, 3 * MIB + 17, 64 * MIB, 1 << 30, 7 << 40, u64::MAX / 2] {
        let (blocks, data_offset) = layout(file_bytes);
        assert!(blocks > 0 && data_offset % DATA_ALIGNMENT_BYTES == 0);
        let reserved_end = SUPERBLOCKS * SUPERBLOCK_BYTES + blocks * RESERVED_BYTES_PER_BLOCK;
        assert!(reserved_end <= data_offset, "{file_bytes}");
        assert!(data_offset + blocks * 4096 <= file_bytes, "{file_bytes}");
        let unused = file_bytes - data_offset - blocks * 4096;
        assert!(unused < 4096 && data_offset - reserved_end <= 2 * DATA_ALIGNMENT_BYTES);
    }
}
