//! Operations on names: what the metadata server does by itself.
//!
//! [`run`] makes directories, and in them files, and measures one operation after the other over the
//! same files, in the order of a file's life: create, stat, open, readdir, rename, unlink. Beside them
//! it measures, in the same run, what one thread does with the same names on a tmpfs, and, where the
//! log of an embedded server lies in a directory, how many group commits that place could take
//! ([`ceilings`]).
//!
//! Everything happens on the measuring thread, through the host library. What a run makes it removes,
//! also when it fails; a killed run leaves it behind.

pub mod ceilings;
mod counters;
mod names;
pub mod options;
mod phase;
pub mod report;
mod run;
mod table;
mod tree;

pub use options::{MetadataOperation, MetadataOptions};
pub use report::MetadataReport;
pub use run::{MetadataProgress, run};
