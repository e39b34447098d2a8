//! Why a store cannot be formatted or opened, with the way out.

use std::io;
use std::path::PathBuf;

use gannet_disk::DiskError;

/// A store that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("store {}: {problem}", path.display())]
pub struct StoreError {
    /// Its superblock's file, or the device.
    pub path: PathBuf,
    /// What is wrong, and what helps.
    pub problem: StoreProblem,
}

/// What can be wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreProblem {
    /// There is no superblock.
    #[error("it is not formatted; format it with `gannet format`, or correct the path")]
    NotFormatted,
    /// There is a store, and the caller did not ask to destroy it.
    #[error("a store exists there; force the format to destroy its data, or use another path")]
    Exists,
    /// Something that is not a store lies there.
    #[error("it has content that is not a store's; force the format to destroy it")]
    Foreign,
    /// Both superblocks have a wrong checksum.
    #[error("both superblocks are damaged; restore them from a backup, or format the store anew")]
    Corrupt,
    /// It was written by a build with another format.
    #[error(
        "its format has version {found} and this build knows {known}; use the build that made it, \
         or format it anew"
    )]
    Version {
        /// Version of the superblock.
        found: u32,
        /// Version of this build.
        known: u32,
    },
    /// It uses features that this build does not know.
    #[error("it uses features {flags:#x} that this build does not know; use a newer build")]
    Features {
        /// The unknown flags.
        flags: u64,
    },
    /// It is of another kind than asked for.
    #[error("it is a {found} store and not a {wanted} store; correct the store's kind")]
    OtherKind {
        /// Kind in the superblock.
        found: &'static str,
        /// Kind asked for.
        wanted: &'static str,
    },
    /// It belongs to another data server.
    #[error(
        "it belongs to data server {:032x}; correct the path or the data server's uuid",
        u128::from_be_bytes(*found)
    )]
    OtherTarget {
        /// That data server.
        found: [u8; 16],
    },
    /// The file or device is shorter than it was.
    #[error(
        "it was {expected} bytes long and is {actual} now; restore its length before it is used"
    )]
    Short {
        /// Length when it was formatted, bytes.
        expected: u64,
        /// Length now, bytes.
        actual: u64,
    },
    /// There is too little room for a store.
    #[error("{size_bytes} bytes are too few for a store; give it at least {min}", min = super::STORE_BYTES_MIN)]
    TooSmall {
        /// Its length, bytes.
        size_bytes: u64,
    },
    /// Another process has it.
    #[error("it is in use by another process; stop that one first")]
    InUse,
    /// The disk refused; the error names the remedy.
    #[error("{0}")]
    Disk(DiskError),
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
}
