//! Trees of files: making one with everything that is awkward, and comparing two byte for byte.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::pattern;

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Data and the distance of its starts in the largest file, bytes.
const SPREAD: (u64, u64) = (300_001, (16 << 20) + 4093);

/// Sizes that every tree has, bytes: around a block, around a request, and many requests.
pub const SIZES: [u64; 7] = [0, 1, 4095, 4096, 4097, (1 << 20) + 1, 1 << 30];

/// What a tree has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Regular files.
    pub files: u64,
    /// Directories, the top included.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of whole blocks of all files.
    pub whole_block_bytes: u64,
}

impl Content {
    fn add(&mut self, size: u64, block_bytes: u64) {
        self.files += 1;
        self.bytes += size;
        self.whole_block_bytes += size / block_bytes * block_bytes;
    }

    /// Bytes of all files beyond their last whole blocks.
    #[must_use]
    pub fn tail_bytes(&self) -> u64 {
        self.bytes - self.whole_block_bytes
    }
}

/// Small files that a tree has if nothing else is said.
const SMALL_FILES: u64 = 200;
/// The small files get larger up to this, bytes.
const SMALL_BYTES_MAX: u64 = 20_000;

/// Makes a tree at `root`: files of all [`SIZES`], names with spaces, in several scripts, of 255
/// bytes and that are no text at all, permissions, old times, and empty directories.
///
/// # Panics
/// If the machine refuses.
pub fn make(root: &Path) {
    make_with(root, &SIZES, SMALL_FILES);
}

/// As [`make`], with files of these sizes, one of which is 4097 bytes, and as many small ones.
///
/// # Panics
/// If the machine refuses.
pub fn make_with(root: &Path, sizes: &[u64], small_files: u64) {
    std::fs::create_dir(root).expect("a new directory");
    for (seed, size) in (0..).zip(sizes) {
        make_file(&root.join(format!("{size} bytes")), *size, seed);
    }
    let names = root.join("names, with spaces ");
    std::fs::create_dir(&names).expect("a new directory");
    let mut longest = "é".repeat(127);
    longest.push('x');
    assert_eq!(longest.len(), 255);
    let awkward: [OsString; 7] = [
        "two words".into(),
        " leading and trailing ".into(),
        "Schlüssel ключ 鍵 🗝".into(),
        "n".repeat(255).into(),
        longest.clone().into(),
        OsString::from_vec(b"no text \xff\xfe\x80".to_vec()),
        "line\nbreak\tand \"quotes\" \\ * ? -rf".into(),
    ];
    for (seed, name) in awkward.iter().enumerate() {
        make_file(&names.join(name), 10_000 + seed as u64, 100 + seed as u64);
    }
    let mut deep = root.join("deep");
    for level in 0..20 {
        deep.push(format!("level {level}"));
    }
    std::fs::create_dir_all(&deep).expect("new directories");
    make_file(&deep.join("bottom"), 12_345, 200);
    std::fs::create_dir_all(root.join("empty/emptier")).expect("new directories");
    std::fs::create_dir(root.join(longest)).expect("a new directory");
    for index in 0..small_files {
        let path = root.join(format!("deep/{index:03}"));
        make_file(&path, index * 97 % SMALL_BYTES_MAX, 300 + index);
    }
    let script = root.join("deep/000");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o751)).expect("permissions");
    std::fs::set_permissions(root.join("empty"), PermissionsExt::from_mode(0o710))
        .expect("permissions");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456);
    let file = File::options().write(true).open(root.join("4097 bytes")).expect("it was made");
    file.set_modified(old).expect("a time");
}

/// Makes a file. Small ones are full of data; large ones have data at odd places all over them.
fn make_file(path: &Path, size: u64, seed: u64) {
    let file = File::create_new(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    file.set_len(size).expect("room for a sparse file");
    let (length, distance) = if size <= 4 << 20 { (size, size.max(1)) } else { SPREAD };
    let mut data = vec![0; length as usize];
    let mut at = 0;
    while at + length <= size {
        pattern::fill(&mut data, seed, at);
        file.write_all_at(&data, at).expect("room for the data");
        at += distance;
    }
    if size > length {
        pattern::fill(&mut data, seed, size - length);
        file.write_all_at(&data, size - length).expect("room for the data");
    }
}

/// Compares two trees: names, types, permissions, times of modification, and every byte. Returns
/// what was compared.
///
/// # Panics
/// At the first difference.
#[must_use]
pub fn compare(left: &Path, right: &Path, block_bytes: u64) -> Content {
    let mut content = Content::default();
    compare_at(left, right, block_bytes, &mut content);
    content
}

fn compare_at(left: &Path, right: &Path, block_bytes: u64, content: &mut Content) {
    let describe = |path: &Path| -> Metadata {
        path.symlink_metadata().unwrap_or_else(|error| panic!("{path:?}: {error}"))
    };
    let (ours, theirs) = (describe(left), describe(right));
    let named = |metadata: &Metadata| (metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
    assert_eq!(named(&ours), named(&theirs), "mode and time of {left:?} and {right:?}");
    if ours.is_dir() {
        content.directories += 1;
        let (ours, theirs) = (entries(left), entries(right));
        assert!(
            ours.keys().eq(theirs.keys()),
            "{left:?} has {:?}, {right:?} has {:?}",
            ours.keys(),
            theirs.keys()
        );
        for name in ours.keys() {
            compare_at(&left.join(name), &right.join(name), block_bytes, content);
        }
    } else {
        assert!(ours.is_file() && theirs.is_file(), "{left:?} and {right:?} are files");
        assert_eq!(ours.len(), theirs.len(), "sizes of {left:?} and {right:?}");
        compare_bytes(left, right);
        content.add(ours.len(), block_bytes);
    }
}

fn entries(directory: &Path) -> BTreeMap<OsString, ()> {
    let list = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory:?}: {e}"));
    list.map(|entry| (entry.expect("an entry").file_name(), ())).collect()
}

fn compare_bytes(left: &Path, right: &Path) {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let (mut ours, mut theirs) = (open(left), open(right));
    let (mut our_bytes, mut their_bytes) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    loop {
        let (our_part, their_part) =
            (fill(&mut ours, &mut our_bytes), fill(&mut theirs, &mut their_bytes));
        if our_part != their_part {
            let differ = our_part.iter().zip(their_part).position(|(ours, theirs)| ours != theirs);
            panic!("{left:?} and {right:?} differ at byte {:?} after {at}", differ);
        }
        if our_part.is_empty() {
            return;
        }
        at += our_part.len();
    }
}

/// Reads until the buffer is full or the file ends.
fn fill<'a>(file: &mut File, into: &'a mut [u8]) -> &'a [u8] {
    let mut length = 0;
    while length < into.len() {
        match file.read(&mut into[length..]).expect("a file is read") {
            0 => break,
            bytes => length += bytes,
        }
    }
    &into[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let top = tempfile::tempdir().expect("a directory");
        let (left, right) = (top.path().join("left"), top.path().join("right"));
        for side in [&left, &right] {
            std::fs::create_dir_all(side.join("sub")).expect("a directory");
            make_file(&side.join("sub/file"), 5 << 20, 1);
            make_file(&side.join("sub/small"), 4097, 2);
            let old = std::time::SystemTime::UNIX_EPOCH;
            for path in ["sub/file", "sub/small", "sub", ""] {
                File::open(side.join(path)).expect("made").set_modified(old).expect("a time");
            }
        }
        (top, left, right)
    }

    #[test]
    fn equal_trees_are_counted() {
        let (_top, left, right) = two();
        let content = compare(&left, &right, 4096);
        assert_eq!((content.files, content.directories), (2, 2));
        assert_eq!((content.bytes, content.tail_bytes()), ((5 << 20) + 4097, 1));
    }

    #[test]
    #[should_panic(expected = "differ at byte Some(7)")]
    fn one_byte_is_a_difference() {
        let (_top, left, right) = two();
        let file = File::options().write(true).open(right.join("sub/file")).expect("made");
        file.write_all_at(b"\0\0\0\0\0\0\0\0", 0).expect("written");
        file.write_all_at(&std::fs::read(left.join("sub/file")).expect("made")[..7], 0)
            .expect("written");
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
        let _content = compare(&left, &right, 4096);
    }

    #[test]
    #[should_panic(expected = "right/sub\" has [\"file\"]")]
    fn a_missing_name_is_a_difference() {
        let (_top, left, right) = two();
        std::fs::remove_file(right.join("sub/small")).expect("made");
        File::open(right.join("sub"))
            .expect("made")
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .expect("a time");
        let _content = compare(&left, &right, 4096);
    }

    #[test]
    fn large_files_have_data_at_both_ends_and_in_between() {
        let top = tempfile::tempdir().expect("a directory");
        let path = top.path().join("file");
        make_file(&path, 40 << 20, 3);
        let bytes = std::fs::read(&path).expect("made");
        let has_data = |range: std::ops::Range<usize>| bytes[range].iter().any(|byte| *byte != 0);
        let middle = SPREAD.1 as usize;
        assert!(has_data(0..64) && has_data(bytes.len() - 64..bytes.len()));
        assert!(has_data(middle..middle + 64) && !has_data(1 << 20..2 << 20));
    }
}
