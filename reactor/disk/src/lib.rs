//! Block I/O behind one trait, and the providers of it: io_uring over files and devices, and RAM.
//!
//! A [`Disk`] belongs to one reactor and holds the files that its provider opened. Operations own
//! their memory until their completion is polled. Offsets, lengths and memory addresses of
//! transfers are multiples of [`BLOCK_BYTES`]: what is smaller is the caller's to merge.
//!
//! Durability: a write with [`Durability::Durable`], or a write followed by a completed
//! [`Disk::sync`] of its file, survives a crash of the machine. Until then any subset of its
//! sectors may survive.
//!
//! Files are opened with a lock that outlives the process as long as its I/O does: see [`lock`].

pub mod any;
pub mod lock;
pub mod open;
pub mod ram;
pub mod uring;

mod range;
mod ready;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

/// Unit of transfers, bytes.
pub const BLOCK_BYTES: usize = 4096;

/// A file that a disk holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// When a write counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When later reads see it.
    Visible,
    /// When it survives a crash of the machine.
    Durable,
}

/// A transfer of `len_bytes` between `memory[memory_offset..]` and `file[offset..]`.
#[derive(Debug)]
pub struct Transfer {
    /// Returned with the completion.
    pub token: u64,
    /// Which file.
    pub file: FileId,
    /// Where in the file, bytes.
    pub offset: u64,
    /// Memory, owned by the operation until its completion.
    pub memory: Memory,
    /// Where in the memory, bytes.
    pub memory_offset: usize,
    /// How much, bytes.
    pub len_bytes: usize,
}

/// Why an operation was refused. It did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The submission queue is full; try again after the next poll.
    #[error("the disk's queue is full")]
    Full,
    /// The range leaves the file or its memory, is empty, or is not aligned to blocks. A file that
    /// is not open has no range.
    #[error("the range is outside the file or its memory, or not aligned to blocks")]
    Range,
}

/// A refused transfer, given back.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: SubmitError,
    /// The operation with its memory.
    pub transfer: Transfer,
}

/// A completed operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: u64,
    /// The operation's memory; `None` for a sync.
    pub memory: Option<Memory>,
    /// All of it was done, or why not (a short transfer is finished by the provider).
    pub result: io::Result<()>,
}

/// What can go wrong when a file is opened, locked or grown.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried, with the path.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Another process, or the last I/O of a dead one, still holds the file.
    #[error("{path} is in use by another process; stop it first")]
    InUse {
        /// Which file.
        path: String,
    },
    /// A bound is reached.
    #[error("{what}: at most {limit}")]
    Limit {
        /// Of what there are too many.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The operation has no meaning on this file.
    #[error("{0}")]
    Unsupported(String),
}

/// Block I/O, seen by one reactor.
pub trait Disk {
    /// Length of a file, bytes.
    fn len_bytes(&self, file: FileId) -> u64;

    /// Makes a file at least `len_bytes` long; the new part reads as zero. May block: control path
    /// only.
    ///
    /// # Errors
    /// `System` when there is no space, `Unsupported` on a device.
    fn grow(&mut self, file: FileId, len_bytes: u64) -> Result<(), DiskError>;

    /// Whether transfers bypass the operating system's page cache, so that no CPU copies them.
    fn is_direct(&self, file: FileId) -> bool;

    /// A view of a range of a file that lies in memory (a RAM store); `None` on other files or
    /// outside the file.
    fn resident(&self, file: FileId, offset: u64, len_bytes: usize) -> Option<Slice>;

    /// Makes transfers to and from a mapping cheaper where the provider can: the kernel pins it once
    /// and not for each of them. To be asked for at the start; again is no error. The pages of a
    /// registered mapping must not be replaced ([`Mapping::replace_pages`]).
    ///
    /// # Errors
    /// `System` or `Limit` when the kernel or a table takes no more, often for want of locked memory:
    /// the text says so. All transfers work all the same: report it and go on.
    fn register_memory(&mut self, memory: &Arc<Mapping>) -> Result<(), DiskError>;

    /// Starts to read from a file.
    ///
    /// # Errors
    /// `Full` or `Range`, with the transfer.
    fn read(&mut self, transfer: Transfer) -> Result<(), Refused>;

    /// Starts to write to a file.
    ///
    /// # Errors
    /// `Full` or `Range`, with the transfer.
    fn write(&mut self, transfer: Transfer, durability: Durability) -> Result<(), Refused>;

    /// Starts to make all completed writes of a file durable.
    ///
    /// # Errors
    /// `Full`.
    fn sync(&mut self, token: u64, file: FileId) -> Result<(), SubmitError>;

    /// Hands everything started to the device: one system call. Call once per turn.
    fn flush(&mut self);

    /// Appends completions. Never blocks.
    fn poll(&mut self, now: Time, completions: &mut Vec<Completion>);

    /// Operations started and not yet polled as complete.
    fn in_flight(&self) -> usize;

    /// Calls `visit` with each descriptor that becomes readable when there is something to poll.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>));
}
