//! End-to-end tests with real processes of the `gannet` command.
//!
//! The tests are in `tests/`; this library starts and kills the processes ([`process`],
//! [`cluster`]), looks at them from outside ([`procfs`]), makes and compares trees of files
//! ([`tree`]), and keeps a cluster busy with requests whose effects it remembers, on a thread
//! ([`load`]) or in processes that may be killed ([`worker`], [`journal`], [`oracle`]). It
//! belongs to tests: what goes wrong panics, with the output of the servers.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod host;
pub mod journal;
pub mod load;
pub mod oracle;
pub mod pattern;
pub mod process;
pub mod procfs;
pub mod tree;
pub mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test that measures or that needs much of the machine: such tests of one program run
/// one after the other.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
