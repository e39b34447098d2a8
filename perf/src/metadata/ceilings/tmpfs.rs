//! What one thread does with the same names on a tmpfs, by system calls: no server, no network, no
//! log, but the kernel's way into it and its locks.
//!
//! As at the server, names are looked up in directories that are open already: `fstatat`, `openat`
//! and `close`, `renameat`, `unlinkat`, and `getdents` from the start of an open directory.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use gannet_runtime::time::Time;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::ceilings::cpu::CpuWatch;
use crate::error::PerfError;
use crate::metadata::names::{NAME_BYTES, Naming, Spread};
use crate::metadata::options::{MetadataOperation, MetadataOptions};
use crate::random::Random;

/// Where a tmpfs is on every Linux machine.
const PLACE: &str = "/dev/shm";
/// `f_type` of a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// For how long files are made, looked at and removed at least.
const TIME_MIN: Duration = Duration::from_millis(400);
/// Bytes of entries that one system call returns.
const LISTING_BYTES: usize = 32 << 10;

/// One operation by one thread on a tmpfs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TmpfsCeiling {
    /// The operation.
    pub operation: MetadataOperation,
    /// How many were done.
    pub operations: u64,
    /// Of these, per second.
    pub operations_per_second: f64,
    /// Share of the time in which the thread had its core, over all operations.
    pub cpu_share: f64,
}

/// Measures the operations of the options, with as many directories and files.
pub(crate) fn measure(options: &MetadataOptions) -> Result<Vec<TmpfsCeiling>, PerfError> {
    let refused = |what| {
        let directory = PLACE.to_owned();
        move |source: io::Error| PerfError::Ceiling { what, directory, source }
    };
    let place = rustix::fs::statfs(PLACE).map_err(io::Error::from);
    if place.map_err(refused("looking for a tmpfs"))?.f_type as u64 != TMPFS_MAGIC {
        let source = io::Error::other("it is none");
        return Err(refused("looking for a tmpfs")(source));
    }
    let tree = LocalTree::make(Path::new(PLACE), options.spread());
    let mut tree = tree.map_err(refused("making directories"))?;
    let mut random = Random::new(options.seed);
    let mut spent = [(0_u64, Duration::ZERO); MetadataOperation::ALL.len()];
    let watch = CpuWatch::start();
    let begin = Time::monotonic();
    while Time::monotonic() < begin + TIME_MIN {
        tree.naming = Naming::Made;
        for (operation, (count, time)) in MetadataOperation::ALL.into_iter().zip(&mut spent) {
            // Files have to be there for the others.
            let (done, took) = tree
                .pass(operation, &mut random)
                .map_err(refused("measuring a tmpfs with as many files"))?;
            *count += done;
            *time += took;
        }
    }
    let cpu_share = watch.share();
    let ceilings =
        MetadataOperation::ALL.into_iter().zip(spent).map(|(operation, (count, time))| {
            let operations_per_second = count as f64 / time.as_secs_f64();
            TmpfsCeiling { operation, operations: count, operations_per_second, cpu_share }
        });
    Ok(ceilings.filter(|ceiling| options.measures(ceiling.operation)).collect())
}

/// Directories on this machine, each open.
struct LocalTree {
    spread: Spread,
    naming: Naming,
    directories: Vec<OwnedFd>,
    listing: Vec<MaybeUninit<u8>>,
    /// Removed last, with whatever is in it.
    _root: TempDir,
}

/// A file's name as the kernel takes it.
struct Name([u8; NAME_BYTES + 1]);

impl Name {
    fn new(naming: Naming, file: u32) -> Name {
        let mut bytes = [0; NAME_BYTES + 1];
        bytes[..NAME_BYTES].copy_from_slice(&naming.name(file));
        Name(bytes)
    }

    fn text(&self) -> io::Result<&CStr> {
        CStr::from_bytes_with_nul(&self.0).map_err(io::Error::other)
    }
}

impl LocalTree {
    fn make(place: &Path, spread: Spread) -> io::Result<LocalTree> {
        let root = tempfile::Builder::new().prefix("gannet-perf-").tempdir_in(place)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directories = (0..spread.directories).map(|index| {
            let path = root.path().join(format!("{index:03}"));
            std::fs::create_dir(&path)?;
            Ok(rustix::fs::open(&path, flags, Mode::empty())?)
        });
        Ok(LocalTree {
            spread,
            naming: Naming::Made,
            directories: directories.collect::<io::Result<_>>()?,
            listing: vec![MaybeUninit::uninit(); LISTING_BYTES],
            _root: root,
        })
    }

    /// Does an operation to every file, or directory, once. Returns how many, and how long it took.
    fn pass(
        &mut self,
        operation: MetadataOperation,
        random: &mut Random,
    ) -> io::Result<(u64, Duration)> {
        let files = self.spread.files;
        let mut done = u64::from(files);
        let begin = Time::monotonic();
        match operation {
            MetadataOperation::Create => (0..files).try_for_each(|file| self.create(file))?,
            MetadataOperation::Stat => {
                let mut any = || random.below(u64::from(files)) as u32;
                (0..files).try_for_each(|_| self.stat(any()))?;
            }
            MetadataOperation::Open => {
                let mut any = || random.below(u64::from(files)) as u32;
                (0..files).try_for_each(|_| self.open(any()))?;
            }
            MetadataOperation::Readdir => {
                done = u64::from(self.spread.directories);
                (0..self.spread.directories).try_for_each(|directory| self.list(directory))?;
            }
            MetadataOperation::Rename => {
                (0..files).try_for_each(|file| self.rename(file))?;
                self.naming = Naming::Renamed;
            }
            MetadataOperation::Unlink => (0..files).try_for_each(|file| self.unlink(file))?,
        }
        Ok((done, Time::monotonic().since(begin)))
    }

    fn directory_of(&self, file: u32) -> &OwnedFd {
        &self.directories[self.spread.directory_of(file) as usize]
    }

    fn create(&self, file: u32) -> io::Result<()> {
        let name = Name::new(self.naming, file);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        drop(rustix::fs::openat(self.directory_of(file), name.text()?, flags, mode)?);
        Ok(())
    }

    fn stat(&self, file: u32) -> io::Result<()> {
        let name = Name::new(self.naming, file);
        let found =
            rustix::fs::statat(self.directory_of(file), name.text()?, AtFlags::SYMLINK_NOFOLLOW)?;
        // Keeps the answer from being thought unused.
        std::hint::black_box(found.st_ino);
        Ok(())
    }

    fn open(&self, file: u32) -> io::Result<()> {
        let name = Name::new(self.naming, file);
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        drop(rustix::fs::openat(self.directory_of(file), name.text()?, flags, Mode::empty())?);
        Ok(())
    }

    fn rename(&self, file: u32) -> io::Result<()> {
        let (name, to) = (Name::new(self.naming, file), Name::new(Naming::Renamed, file));
        let directory = self.directory_of(file);
        Ok(rustix::fs::renameat(directory, name.text()?, directory, to.text()?)?)
    }

    fn unlink(&self, file: u32) -> io::Result<()> {
        let name = Name::new(self.naming, file);
        Ok(rustix::fs::unlinkat(self.directory_of(file), name.text()?, AtFlags::empty())?)
    }

    fn list(&mut self, directory: u32) -> io::Result<()> {
        let descriptor = &self.directories[directory as usize];
        rustix::fs::seek(descriptor, SeekFrom::Start(0))?;
        let mut entries = RawDir::new(descriptor, &mut self.listing);
        let mut found = 0;
        while let Some(entry) = entries.next() {
            let is_name = !matches!(entry?.file_name().to_bytes(), b"." | b"..");
            found += u32::from(is_name);
        }
        if found == self.spread.files_in(directory) {
            return Ok(());
        }
        Err(io::Error::other("a listing does not have all files"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_does_what_it_says_to_every_file() {
        let place = tempfile::tempdir().unwrap();
        let spread = Spread { files: 10, directories: 3 };
        let mut tree = LocalTree::make(place.path(), spread).unwrap();
        let mut random = Random::new(1);
        let mut files_after = |operation: MetadataOperation| {
            let (done, _) = tree.pass(operation, &mut random).unwrap();
            let expected = if operation == MetadataOperation::Readdir { 3 } else { 10 };
            assert_eq!(done, expected);
            let root = tree._root.path();
            let directories = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
            let mut names: Vec<String> = directories
                .flat_map(|directory| std::fs::read_dir(directory).unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort_unstable();
            names
        };
        let made = files_after(MetadataOperation::Create);
        assert_eq!((made.len(), made[9].as_str()), (10, "f0000009"));
        use MetadataOperation::{Open, Readdir, Rename, Stat, Unlink};
        for operation in [Stat, Open, Readdir] {
            assert_eq!(files_after(operation), made);
        }
        assert_eq!(files_after(Rename)[0], "r0000000");
        assert!(files_after(Unlink).is_empty());
        drop(tree);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
