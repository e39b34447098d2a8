//! Why a run ends without a report.

use std::io;

use gannet_client::RequestError;
use gannet_fabric::FabricError;
use gannet_runtime::reactor::CoreUnavailable;

use crate::pattern::Mismatch;

/// Why a run ends without a report.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// An option cannot be meant.
    #[error("--{option}: {reason}")]
    Option {
        /// Which option of the command.
        option: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A core cannot be had.
    #[error(transparent)]
    Core(#[from] CoreUnavailable),
    /// The fabric refused.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The file is there already.
    #[error("{file} exists: give --overwrite to lose its content, or another --file")]
    Exists {
        /// The file.
        file: String,
    },
    /// A directory that a run makes is there already.
    #[error("{directory} exists: remove it, or give another --prefix")]
    DirectoryExists {
        /// The directory.
        directory: String,
    },
    /// A request failed.
    #[error("{what} {file}: {source}")]
    Request {
        /// What was being done.
        what: &'static str,
        /// The file.
        file: String,
        /// How it failed.
        source: RequestError,
    },
    /// A read or write moved less than was asked for.
    #[error("{file}: {what} of {asked} bytes at {offset} moved {moved}")]
    Short {
        /// Which operation.
        what: &'static str,
        /// The file.
        file: String,
        /// Where in the file, bytes.
        offset: u64,
        /// Bytes asked for.
        asked: u32,
        /// Bytes moved.
        moved: u32,
    },
    /// What was read is not what was written.
    #[error("{file}: {mismatch}")]
    Wrong {
        /// The file.
        file: String,
        /// Where and how it differs.
        mismatch: Mismatch,
    },
    /// A directory does not have as many entries as were made in it.
    #[error("{directory} has {expected} files, and its listing {found}")]
    Listing {
        /// The directory.
        directory: String,
        /// How many files were made in it.
        expected: u64,
        /// How many were listed.
        found: u64,
    },
    /// A run failed, and what it had made could not be removed.
    #[error("{source}; what begins with {prefix} is left behind: {reason}")]
    LeftBehind {
        /// Why the run failed.
        source: Box<PerfError>,
        /// How the names of what is left begin.
        prefix: String,
        /// Why it could not be removed.
        reason: String,
    },
    /// What the machine itself can do could not be measured.
    #[error("{what} in {directory}: {source}; --no-ceilings measures without")]
    Ceiling {
        /// What was tried.
        what: &'static str,
        /// Where.
        directory: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A completed read or write came without its buffer.
    #[error("{file}: a request of {what} came back without its buffer")]
    BufferLost {
        /// Which operation.
        what: &'static str,
        /// The file.
        file: String,
    },
    /// Requests are outstanding and nothing happens.
    #[error(
        "{outstanding} requests are outstanding and nothing has happened for {seconds} s; the \
         client counts {counters}"
    )]
    Stalled {
        /// How many.
        outstanding: usize,
        /// For how long.
        seconds: u64,
        /// What the client has counted.
        counters: String,
    },
    /// Nothing completed while it was measured.
    #[error(
        "{workload} at depth {depth} completed nothing in {seconds:.3} s: take a longer --time"
    )]
    Nothing {
        /// The workload.
        workload: &'static str,
        /// Requests outstanding.
        depth: u32,
        /// How long it was measured.
        seconds: f64,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The server of an embedded run did not start or did not go on.
    #[error("the embedded server: {0}")]
    Embedded(String),
}

impl PerfError {
    /// Whether the command was wrong, rather than what it led to.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, PerfError::Option { .. })
    }

    /// The same, with what could not be removed after it.
    pub(crate) fn leaving_behind(self, prefix: &str, reason: &str) -> PerfError {
        let (prefix, reason) = (prefix.to_owned(), reason.to_owned());
        PerfError::LeftBehind { source: Box::new(self), prefix, reason }
    }

    /// Names what was tried when the operating system refused.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> PerfError {
        move |source| PerfError::System { what, source }
    }
}
