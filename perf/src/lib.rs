//! Gannet's performance harness.
//!
//! [`run()`] measures a file system as a host sees it, through the host library, on one pinned thread
//! that polls: closed loops of reads and writes at chosen depths, every latency in a histogram. In
//! the same run it measures what the machine itself can do ([`ceilings`]), and reports the one as a
//! share of the other, because figures of different machines cannot be compared.
//!
//! [`metadata`] does the same for operations on names: create, stat, open, readdir, rename, unlink.
//!
//! The server is one that runs already, or one made for the run on a reactor of this process, with
//! every message encoded, sent through shared memory or over TCP, and checked as between processes.

#![forbid(unsafe_code)]

pub mod ceilings;
mod closed_loop;
mod content;
mod doubt;
mod embedded;
mod error;
mod host;
pub mod latency;
pub mod machine;
pub mod metadata;
pub mod options;
pub mod pattern;
mod random;
pub mod report;
mod run;
mod table;
mod workload;

pub use error::PerfError;
pub use options::{
    EmbeddedFabric, EmbeddedOptions, LogPlace, PerfOptions, Server, StorePlace, WorkloadKind,
};
pub use report::Report;
pub use run::{Progress, run};
