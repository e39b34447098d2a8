//! Opening files and block devices for direct I/O under a lock.
//!
//! A [`LockedFile`] is one open file description with its exclusive lock (why: [`crate::lock`]),
//! its length, and whether transfers on it bypass the page cache. Clones share the description, so
//! every reactor of a process can do I/O on the same file. Any thread may use it. A crash leaves the
//! lock until the last transfer has ended.

use std::fs::FileType;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::{BLOCK_BYTES, DiskError, lock};

/// `f_type` of a tmpfs: since Linux 6.6 it accepts `O_DIRECT`, but copies all the same.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// How often a call interrupted by a signal is repeated.
const INTERRUPTS_MAX: usize = 64;

/// Whether the operating system's page cache is bypassed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Where the file system allows it.
    #[default]
    WherePossible,
    /// Never: all I/O goes through the page cache.
    Never,
}

/// How to open a file.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Create the file, empty, if it does not exist. Its name is durable when opening returns.
    pub create: bool,
    /// Whether to bypass the page cache.
    pub direct: Direct,
    /// How long to wait for a lock that another process holds. A killed predecessor's transfers
    /// may run for as long as its device takes, so a successor should allow for some seconds.
    pub lock_wait: Duration,
}

impl Default for OpenOptions {
    /// An existing file, direct where possible, five seconds for the lock.
    fn default() -> OpenOptions {
        let lock_wait = Duration::from_secs(5);
        OpenOptions { create: false, direct: Direct::WherePossible, lock_wait }
    }
}

/// A file or block device, open for reading and writing and exclusively locked.
#[derive(Clone, Debug)]
pub struct LockedFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    descriptor: OwnedFd,
    path: PathBuf,
    is_device: bool,
    buffered_reason: Option<String>,
    len_bytes: AtomicU64,
}

impl LockedFile {
    /// Opens and locks the file or block device at `path`.
    ///
    /// # Errors
    /// `InUse` when another process, or the I/O of a dead one, holds the lock for longer than
    /// allowed (for a device: also when it is mounted); `Unsupported` for what is neither file nor
    /// block device; `System` with path and remedy when the operating system refuses.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<LockedFile, DiskError> {
        lock::acquire(path, options.lock_wait, || LockedFile::attempt(path, options))
    }

    /// Opens and locks once; `None` when the file is in use or was just exchanged for another.
    fn attempt(path: &Path, options: &OpenOptions) -> Result<Option<LockedFile>, DiskError> {
        let (is_device, exists) = match std::fs::metadata(path) {
            Ok(metadata) => (is_device(path, metadata.file_type())?, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (false, false),
            Err(error) => return Err(refused("opening", path, error)),
        };
        let (descriptor, mut buffered_reason) = match open_once(path, is_device, options) {
            Ok(opened) => opened,
            Err(Errno::BUSY) => return Ok(None),
            Err(errno) => return Err(refused("opening", path, errno.into())),
        };
        match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(refused("locking", path, errno.into())),
        }
        if !is_still(path, &descriptor, is_device)? {
            return Ok(None);
        }
        if buffered_reason.is_none() {
            buffered_reason = why_not_direct(&descriptor, is_device);
            if buffered_reason.is_some() {
                set_buffered(path, &descriptor)?;
            }
        }
        if options.create && !exists {
            sync_creation(path, &descriptor)?;
        }
        let len_bytes = AtomicU64::new(measure(path, &descriptor)?);
        let path = path.to_owned();
        let shared = Shared { descriptor, path, is_device, buffered_reason, len_bytes };
        Ok(Some(LockedFile { shared: Arc::new(shared) }))
    }

    /// Where the file was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.shared.is_device
    }

    /// Why transfers go through the page cache; `None` when they bypass it.
    #[must_use]
    pub fn buffered_reason(&self) -> Option<&str> {
        self.shared.buffered_reason.as_deref()
    }

    /// Length, bytes: whole blocks only, what is left at the end is not used.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.shared.len_bytes.load(Ordering::Relaxed)
    }

    /// Makes the file at least `len_bytes` long, rounded up to blocks, with its space reserved
    /// where the file system can; the new part reads as zero. Durable when it returns; may block.
    ///
    /// # Errors
    /// `Unsupported` on a device that is shorter, `System` when there is no space.
    pub fn grow(&self, len_bytes: u64) -> Result<(), DiskError> {
        let from = self.len_bytes();
        if len_bytes <= from {
            return Ok(());
        }
        let path = self.path();
        if self.shared.is_device {
            return Err(DiskError::Unsupported(format!(
                "{} is a device of {from} bytes and cannot grow to {len_bytes}",
                path.display()
            )));
        }
        let target = len_bytes
            .checked_next_multiple_of(BLOCK_BYTES as u64)
            .ok_or_else(|| refused("growing", path, Errno::FBIG.into()))?;
        let descriptor = &self.shared.descriptor;
        match uninterrupted(|| {
            rustix::fs::fallocate(descriptor, FallocateFlags::empty(), from, target - from)
        }) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::fs::ftruncate(descriptor, target),
            other => other,
        }
        .and_then(|()| uninterrupted(|| rustix::fs::fsync(descriptor)))
        .map_err(|errno| refused("growing", path, errno.into()))?;
        let actual = measure(path, descriptor)?;
        self.shared.len_bytes.fetch_max(actual, Ordering::Relaxed);
        Ok(())
    }
}

impl AsFd for LockedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.descriptor.as_fd()
    }
}

/// Tells devices from files and refuses everything else, before opening: opening a pipe would block.
fn is_device(path: &Path, kind: FileType) -> Result<bool, DiskError> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a pipe or socket"
    };
    Err(DiskError::Unsupported(format!(
        "{} is {what}; name a regular file or a block device",
        path.display()
    )))
}

/// Opens with `O_DIRECT` if wanted and possible; otherwise tells why not.
fn open_once(
    path: &Path,
    is_device: bool,
    options: &OpenOptions,
) -> rustix::io::Result<(OwnedFd, Option<String>)> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    if is_device {
        flags |= OFlags::EXCL;
    } else if options.create {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let open = |flags| uninterrupted(|| rustix::fs::open(path, flags, mode));
    if options.direct == Direct::Never {
        return Ok((open(flags)?, Some("direct I/O is switched off".to_owned())));
    }
    match open(flags | OFlags::DIRECT) {
        Err(Errno::INVAL) => {
            Ok((open(flags)?, Some("the file system refuses direct I/O (O_DIRECT)".to_owned())))
        }
        opened => Ok((opened?, None)),
    }
}

/// Whether `path` still names the file behind `descriptor`: between opening and locking somebody
/// may have put another file there, whose lock this one's says nothing about.
fn is_still(path: &Path, descriptor: &OwnedFd, is_device: bool) -> Result<bool, DiskError> {
    let opened =
        rustix::fs::fstat(descriptor).map_err(|errno| refused("examining", path, errno.into()))?;
    let kind = rustix::fs::FileType::from_raw_mode(opened.st_mode);
    let same_kind = match is_device {
        true => kind == rustix::fs::FileType::BlockDevice,
        false => kind == rustix::fs::FileType::RegularFile,
    };
    match std::fs::metadata(path) {
        Ok(named) => Ok(same_kind && named.dev() == opened.st_dev && named.ino() == opened.st_ino),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused("examining", path, error)),
    }
}

/// Why a file that was opened with `O_DIRECT` cannot be used that way.
fn why_not_direct(descriptor: &OwnedFd, is_device: bool) -> Option<String> {
    // A device's node may lie on a tmpfs; the device itself does not.
    if !is_device
        && let Ok(system) = rustix::fs::fstatfs(descriptor)
        && u64::try_from(system.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC)
    {
        return Some("tmpfs keeps files in memory and copies them".to_owned());
    }
    // Kernels before 6.1 and some file systems do not tell the alignment: then accepting the flag
    // has to do.
    let limits =
        rustix::fs::statx(descriptor, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if limits.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let (offset, memory) = (limits.stx_dio_offset_align, limits.stx_dio_mem_align);
    if offset == 0 || memory == 0 {
        return Some("the file system does not do direct I/O on this file".to_owned());
    }
    let fits = |align: u32| BLOCK_BYTES.is_multiple_of(align as usize);
    (!fits(offset) || !fits(memory))
        .then(|| format!("direct I/O would have to be aligned to {} bytes", offset.max(memory)))
}

fn set_buffered(path: &Path, descriptor: &OwnedFd) -> Result<(), DiskError> {
    rustix::fs::fcntl_getfl(descriptor)
        .and_then(|flags| rustix::fs::fcntl_setfl(descriptor, flags - OFlags::DIRECT))
        .map_err(|errno| refused("switching direct I/O off for", path, errno.into()))
}

/// Makes a new file and its name durable.
fn sync_creation(path: &Path, descriptor: &OwnedFd) -> Result<(), DiskError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    uninterrupted(|| rustix::fs::fsync(descriptor))
        .and_then(|()| rustix::fs::open(parent, flags, Mode::empty()))
        .and_then(|directory| uninterrupted(|| rustix::fs::fsync(&directory)))
        .map_err(|errno| refused("making durable", path, errno.into()))
}

/// Length in whole blocks; for devices `fstat(2)` says zero, seeking to the end does not.
fn measure(path: &Path, descriptor: &OwnedFd) -> Result<u64, DiskError> {
    let len_bytes = rustix::fs::seek(descriptor, SeekFrom::End(0))
        .map_err(|errno| refused("measuring", path, errno.into()))?;
    Ok(len_bytes - len_bytes % BLOCK_BYTES as u64)
}

fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 0..INTERRUPTS_MAX {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
    call()
}

/// An error that names operation, path and, where there is one, the way out.
fn refused(operation: &str, path: &Path, source: io::Error) -> DiskError {
    let parent_missing =
        path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && !parent.exists());
    let remedy = match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) if parent_missing => " (its directory does not exist: create it)",
        Some(Errno::NOENT) => " (it does not exist: create it, or correct the path)",
        Some(Errno::NOTDIR) => " (a part of its path is not a directory: correct the path)",
        Some(Errno::ACCESS | Errno::PERM) => {
            " (it must be readable and writable: change its owner or mode, or run as its owner)"
        }
        Some(Errno::ROFS) => " (its file system is read-only: remount it, or use another)",
        Some(Errno::NOSPC | Errno::DQUOT) => " (no space left: free some, or ask for less)",
        Some(Errno::FBIG) => " (too long for its file system: ask for less)",
        Some(Errno::MFILE | Errno::NFILE) => " (too many open files: raise `ulimit -n`)",
        Some(Errno::NOLCK | Errno::OPNOTSUPP) if operation == "locking" => {
            " (its file system has no locks: use a local one)"
        }
        _ => "",
    };
    DiskError::System { what: format!("{operation} {}{remedy}", path.display()), source }
}
