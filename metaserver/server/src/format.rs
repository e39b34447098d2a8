//! Makes the metadata directory of a new file system: one log per reactor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gannet_disk::BLOCK_BYTES;
use gannet_runtime::memory::Slice;
use zerocopy::IntoBytes;

use crate::log::superblock::Superblock;

/// Length of a new log, bytes; it grows as needed.
pub const LOG_BYTES: u64 = 64 << 20;

/// Why a metadata directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Something is there already.
    #[error("{} already holds a metadata log; remove it to start over", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The number of reactors is out of bounds.
    #[error("reactors = {0} is out of bounds: 1 to {max}", max = gannet_proto::limits::REACTORS_MAX)]
    Reactors(usize),
    /// The operating system refused.
    #[error("{what} {}: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// Path of a reactor's log in a metadata directory.
#[must_use]
pub fn log_path(directory: &Path, reactor: usize) -> PathBuf {
    directory.join(format!("log.{reactor}"))
}

/// Number of reactors that a metadata directory was formatted for; `None` if it holds no log.
#[must_use]
pub fn formatted_reactors(directory: &Path) -> Option<usize> {
    let count = (0..).take_while(|reactor| log_path(directory, *reactor).exists()).count();
    (count > 0).then_some(count)
}

/// Makes the logs of a new file system named `uuid` for `reactors` reactors in `directory`, which is
/// made if it does not exist. A crash on the way leaves nothing that starts.
///
/// # Errors
/// Everything of [`FormatError`].
pub fn format(directory: &Path, uuid: [u8; 16], reactors: usize) -> Result<(), FormatError> {
    if reactors == 0 || reactors > gannet_proto::limits::REACTORS_MAX {
        return Err(FormatError::Reactors(reactors));
    }
    let system = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| FormatError::System { what, path, source }
    };
    fs::create_dir_all(directory).map_err(system("creating the directory", directory))?;
    // The log of reactor 0 comes last: without it nothing counts as formatted.
    for reactor in (0..reactors).rev() {
        let path = log_path(directory, reactor);
        if path.exists() {
            return Err(FormatError::Exists { path });
        }
        let draft = directory.join(format!("log.{reactor}.new"));
        write_log(&draft, uuid, reactor as u16, reactors as u16)
            .map_err(system("writing", &draft))?;
        fs::rename(&draft, &path).map_err(system("renaming to", &path))?;
    }
    let sync = File::open(directory).and_then(|handle| handle.sync_all());
    sync.map_err(system("syncing the directory", directory))
}

/// The superblock of a reactor's log, for a log in memory.
#[must_use]
pub fn superblock(uuid: [u8; 16], reactor: u16, reactors: u16) -> Superblock {
    let mut superblock = Superblock::new(uuid, reactor, reactors);
    superblock.seal();
    superblock
}

/// Formats a log that lies in memory: `log` is a view of its start.
///
/// # Panics
/// If `log` is shorter than a block.
pub fn format_resident(log: &Slice, uuid: [u8; 16], reactor: u16, reactors: u16) {
    assert!(log.len() >= BLOCK_BYTES, "a log needs room for its superblock");
    log.copy_in(0, superblock(uuid, reactor, reactors).as_bytes());
}

fn write_log(path: &Path, uuid: [u8; 16], reactor: u16, reactors: u16) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(superblock(uuid, reactor, reactors).as_bytes())?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, LOG_BYTES)
        .or_else(|_unsupported| rustix::fs::ftruncate(&file, LOG_BYTES))?;
    file.sync_all()
}
