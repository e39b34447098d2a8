//! Stores on disk: what is written when one is formatted, and what is checked when one is opened.
//!
//! ```text
//!  0          4 KiB       8 KiB          1 MiB-aligned
//!  +----------+-----------+--------------+---------------------------------+
//!  | super-   | its copy  | 16 bytes per | data: block b at                |
//!  | block    |           | block, zeros | data offset + b * 4096          |
//!  +----------+-----------+--------------+---------------------------------+
//! ```
//!
//! A directory store is the file `DIR/blocks`; a device store is the device; a RAM store keeps its
//! data in memory and has the two superblocks alone in `DIR/superblock`, so that its identity and its
//! generation survive: the generation grows, durably, each time that the store is opened, since its
//! content did not survive.
//!
//! A change of the superblock goes to the copy first and then to the first place, with a sequence
//! number that grows: a crash at any point leaves one valid superblock, the old or the new one. What
//! is assumed of the medium: a write that was synced stays; a torn write fails the checksum.
//!
//! Start-up code: it blocks. The lock of [`gannet_disk::lock`] is held from before the first byte is
//! read or written until the store is closed.

mod error;
mod superblock;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_disk::any::AnyDisk;
use gannet_disk::open::{Direct, LockedFile};
use gannet_disk::{DiskError, FileId};
use gannet_proto::control::StoreInfo;
use gannet_proto::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};

pub use error::{StoreError, StoreProblem};
use superblock::{
    DATA_ALIGNMENT_BYTES, Found, RESERVED_BYTES_PER_BLOCK, SUPERBLOCK_BYTES, SUPERBLOCKS,
    Superblock,
};

/// Smallest store that can be formatted, bytes.
pub const STORE_BYTES_MIN: u64 = 2 << 20;
/// How long to wait for the lock of a store whose last owner was killed.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Where a store lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A file in a directory.
    Directory {
        /// Length of the file when it is formatted, bytes; not looked at when it is opened.
        size_bytes: u64,
    },
    /// A block device, all of it.
    Device,
    /// Memory of the data server's process; its identity lies in a directory.
    Ram {
        /// Bytes of data.
        size_bytes: u64,
    },
}

/// A store to format or open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSpec {
    /// The directory, or the device.
    pub path: PathBuf,
    /// What it is.
    pub kind: StoreKind,
}

/// The names that a store gets when it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreNames {
    /// Names the store for good: random.
    pub store: [u8; 16],
    /// Names its data server.
    pub target: [u8; 16],
}

/// A store that is open.
#[derive(Debug)]
pub struct OpenStore {
    /// Its file on the disk.
    pub file: FileId,
    /// What the metadata server is told of it.
    pub info: StoreInfo,
    /// Where block 0 lies in the file, bytes.
    pub data_offset: u64,
    /// Held for a RAM store, whose file is not on the disk.
    lock: Option<LockedFile>,
}

impl OpenStore {
    /// A store on a file that needs no superblock, as simulated ones.
    #[must_use]
    pub fn new(file: FileId, info: StoreInfo, data_offset: u64) -> OpenStore {
        OpenStore { file, info, data_offset, lock: None }
    }

    /// The lock that a RAM store holds beside its memory.
    #[must_use]
    pub fn lock(&self) -> Option<&LockedFile> {
        self.lock.as_ref()
    }
}

impl StoreSpec {
    /// The file or device that holds the superblock.
    #[must_use]
    pub fn superblock_path(&self) -> PathBuf {
        match self.kind {
            StoreKind::Directory { .. } => self.path.join("blocks"),
            StoreKind::Device => self.path.clone(),
            StoreKind::Ram { .. } => self.path.join("superblock"),
        }
    }

    fn kind_number(&self) -> u32 {
        match self.kind {
            StoreKind::Directory { .. } => superblock::KIND_DIRECTORY,
            StoreKind::Device => superblock::KIND_DEVICE,
            StoreKind::Ram { .. } => superblock::KIND_RAM,
        }
    }

    fn error(&self, problem: StoreProblem) -> StoreError {
        StoreError { path: self.superblock_path(), problem }
    }
}

/// Makes a store: its file with its space, and its superblocks. What a store of that path held is
/// lost; without `force` an existing one is refused, and so is anything else that is not empty.
///
/// # Errors
/// [`StoreError`] with path and remedy.
pub fn format_store(
    spec: &StoreSpec,
    names: StoreNames,
    force: bool,
) -> Result<StoreInfo, StoreError> {
    let path = spec.superblock_path();
    if !matches!(spec.kind, StoreKind::Device) {
        create_directory(&spec.path).map_err(|source| {
            spec.error(StoreProblem::Io { what: "creating its directory", source })
        })?;
    }
    let lock = lock(spec, true)?;
    let file = open_file(spec, &path)?;
    let found = superblock::find(&file).map_err(|source| spec.error(reading(source)))?;
    if !force && !matches!(found, Found::Nothing) {
        return Err(spec.error(StoreProblem::Exists));
    }
    if !force && superblock::has_content(&file).map_err(|source| spec.error(reading(source)))? {
        return Err(spec.error(StoreProblem::Foreign));
    }
    let (file_bytes, data_bytes) = match spec.kind {
        StoreKind::Directory { size_bytes } => (size_bytes, None),
        StoreKind::Device => (lock.len_bytes(), None),
        StoreKind::Ram { size_bytes } => (SUPERBLOCKS * SUPERBLOCK_BYTES, Some(size_bytes)),
    };
    let wanted = data_bytes.unwrap_or(file_bytes);
    if wanted < STORE_BYTES_MIN {
        return Err(spec.error(StoreProblem::TooSmall { size_bytes: wanted }));
    }
    if !matches!(spec.kind, StoreKind::Device) {
        lock.grow(file_bytes).map_err(|source| spec.error(StoreProblem::Disk(source)))?;
    }
    // A forced format may find a longer file: all of it is used.
    let file_bytes = if data_bytes.is_some() { file_bytes } else { lock.len_bytes() };
    let (blocks, data_offset) = match data_bytes {
        Some(bytes) => (bytes / u64::from(BLOCK_BYTES), 0),
        None => layout(file_bytes),
    };
    let sequence = match &found {
        Found::Valid(old) => old.sequence.get() + 1,
        Found::Nothing | Found::Corrupt => 1,
    };
    let superblock = Superblock {
        store: names.store,
        target: names.target,
        sequence: U64::new(sequence),
        generation: U32::new(1),
        kind: U32::new(spec.kind_number()),
        blocks: U64::new(blocks),
        data_offset: U64::new(data_offset),
        file_bytes: U64::new(file_bytes),
        ..Superblock::current()
    };
    superblock::write(&file, &superblock).map_err(|source| {
        spec.error(StoreProblem::Io { what: "writing its superblock", source })
    })?;
    Ok(info(&superblock))
}

/// Opens a store on `disk`: takes its lock, checks its superblock, and for a RAM store takes the
/// memory and begins a new generation. `target` is the data server that opens it.
///
/// # Errors
/// [`StoreError`] with path and remedy.
pub fn open_store(
    disk: &mut AnyDisk,
    spec: &StoreSpec,
    target: [u8; 16],
) -> Result<OpenStore, StoreError> {
    let path = spec.superblock_path();
    let locked = lock(spec, false)?;
    let file = open_file(spec, &path)?;
    let mut superblock =
        match superblock::find(&file).map_err(|source| spec.error(reading(source)))? {
            Found::Valid(superblock) => superblock,
            Found::Nothing => return Err(spec.error(StoreProblem::NotFormatted)),
            Found::Corrupt => return Err(spec.error(StoreProblem::Corrupt)),
        };
    check(spec, &superblock, target, locked.len_bytes())?;
    let StoreKind::Ram { size_bytes } = spec.kind else {
        let file = disk.attach(locked).map_err(|source| spec.error(StoreProblem::Disk(source)))?;
        let data_offset = superblock.data_offset.get();
        return Ok(OpenStore { file, info: info(&superblock), data_offset, lock: None });
    };
    let blocks = size_bytes / u64::from(BLOCK_BYTES);
    if size_bytes < STORE_BYTES_MIN {
        return Err(spec.error(StoreProblem::TooSmall { size_bytes }));
    }
    let len_bytes = blocks * u64::from(BLOCK_BYTES);
    let memory = disk
        .create_ram(len_bytes, len_bytes)
        .map_err(|source| spec.error(StoreProblem::Disk(source)))?;
    // Durable before any block of the new generation can be granted.
    superblock.generation = U32::new(superblock.generation.get().wrapping_add(1));
    superblock.sequence = U64::new(superblock.sequence.get() + 1);
    superblock.blocks = U64::new(blocks);
    superblock::write(&file, &superblock).map_err(|source| {
        spec.error(StoreProblem::Io { what: "writing its superblock", source })
    })?;
    Ok(OpenStore { file: memory, info: info(&superblock), data_offset: 0, lock: Some(locked) })
}

/// The data server that the store at `spec` was formatted for. Takes no lock.
///
/// # Errors
/// [`StoreError`] when there is no usable superblock.
pub fn store_target(spec: &StoreSpec) -> Result<[u8; 16], StoreError> {
    let path = spec.superblock_path();
    let file = File::open(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => spec.error(StoreProblem::NotFormatted),
        _ => spec.error(reading(source)),
    })?;
    match superblock::find(&file).map_err(|source| spec.error(reading(source)))? {
        Found::Valid(superblock) => Ok(superblock.target),
        Found::Nothing => Err(spec.error(StoreProblem::NotFormatted)),
        Found::Corrupt => Err(spec.error(StoreProblem::Corrupt)),
    }
}

/// Whether a store, or what is left of one, lies where `spec` says. Takes no lock.
///
/// # Errors
/// [`StoreError`] when the file is there and cannot be read.
pub fn store_exists(spec: &StoreSpec) -> Result<bool, StoreError> {
    let path = spec.superblock_path();
    match File::open(&path) {
        Ok(file) => {
            let found = superblock::find(&file).map_err(|source| spec.error(reading(source)))?;
            Ok(!matches!(found, Found::Nothing))
        }
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(spec.error(reading(source))),
    }
}

fn check(
    spec: &StoreSpec,
    superblock: &Superblock,
    target: [u8; 16],
    len_bytes: u64,
) -> Result<(), StoreError> {
    let refuse = |problem| Err(spec.error(problem));
    if let Some(problem) = superblock.unusable() {
        return refuse(problem);
    }
    if superblock.kind.get() != spec.kind_number() {
        return refuse(StoreProblem::OtherKind {
            found: superblock::kind_name(superblock.kind.get()),
            wanted: superblock::kind_name(spec.kind_number()),
        });
    }
    if superblock.target != target {
        return refuse(StoreProblem::OtherTarget { found: superblock.target });
    }
    if len_bytes < superblock.file_bytes.get() {
        let expected = superblock.file_bytes.get();
        return refuse(StoreProblem::Short { expected, actual: len_bytes });
    }
    let data_bytes = superblock.blocks.get().checked_mul(u64::from(BLOCK_BYTES));
    let end = data_bytes.and_then(|bytes| bytes.checked_add(superblock.data_offset.get()));
    let in_file = matches!(spec.kind, StoreKind::Ram { .. })
        || end.is_some_and(|end| end <= superblock.file_bytes.get());
    if !in_file || !superblock.data_offset.get().is_multiple_of(u64::from(BLOCK_BYTES)) {
        return refuse(StoreProblem::Corrupt);
    }
    Ok(())
}

/// Blocks of a file of `file_bytes`, and where the first one lies.
fn layout(file_bytes: u64) -> (u64, u64) {
    let block = u64::from(BLOCK_BYTES);
    let fixed = SUPERBLOCKS * SUPERBLOCK_BYTES;
    // Upper bound first, then as many as fit behind the area that this many blocks need.
    let most = file_bytes.saturating_sub(fixed) / (block + RESERVED_BYTES_PER_BLOCK);
    let data_offset =
        (fixed + most * RESERVED_BYTES_PER_BLOCK).next_multiple_of(DATA_ALIGNMENT_BYTES);
    (file_bytes.saturating_sub(data_offset) / block, data_offset)
}

fn info(superblock: &Superblock) -> StoreInfo {
    StoreInfo {
        uuid: superblock.store,
        generation: superblock.generation,
        block_bytes: superblock.block_bytes,
        blocks: superblock.blocks,
    }
}

fn lock(spec: &StoreSpec, create: bool) -> Result<LockedFile, StoreError> {
    let path = spec.superblock_path();
    let direct = match spec.kind {
        StoreKind::Ram { .. } => Direct::Never,
        StoreKind::Directory { .. } | StoreKind::Device => Direct::WherePossible,
    };
    let create = create && !matches!(spec.kind, StoreKind::Device);
    if !create && !path.exists() {
        return Err(spec.error(StoreProblem::NotFormatted));
    }
    let options = gannet_disk::open::OpenOptions { create, direct, lock_wait: LOCK_WAIT };
    LockedFile::open(&path, &options).map_err(|source| match source {
        DiskError::InUse { .. } => spec.error(StoreProblem::InUse),
        source => spec.error(StoreProblem::Disk(source)),
    })
}

/// Makes a directory, its name durable.
fn create_directory(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Opens the superblock's file for ordinary I/O beside the locked description.
fn open_file(spec: &StoreSpec, path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| spec.error(StoreProblem::Io { what: "opening it", source }))
}

fn reading(source: std::io::Error) -> StoreProblem {
    StoreProblem::Io { what: "reading its superblock", source }
}

/// Reads from an offset on; what lies behind the file's end is zeros.
fn read_at(file: &File, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    into[done..].fill(0);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
