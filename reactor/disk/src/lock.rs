//! The lock that a file's I/O outlives no longer than the file's I/O lives.
//!
//! When a process is killed, the transfers it had handed to the kernel go on: reads land in shared
//! memory and writes on the medium after `waitpid(2)` has reported the death. A successor that
//! reuses that memory or those blocks must know when this has ended. The kernel's own bookkeeping
//! says so: each transfer holds a reference on the *open file description* that it was started on,
//! and an `flock(2)` (for a block device, the claim of `O_EXCL` too) belongs to that description
//! and is released with its last reference. Hence two rules:
//!
//! 1. all I/O on a file runs on one open file description, which holds the exclusive lock;
//!    [`crate::open::LockedFile`] is that description, and reactors that share a file share it;
//! 2. nobody ever unlocks: the lock ends when the last descriptor is closed *and* the last transfer
//!    has ended, never before.
//!
//! Whoever gets the lock therefore knows that no transfer of an earlier owner, alive or dead, still
//! runs. `tests/lock_outlives_process.rs` kills processes in mid-transfer to prove it.
//!
//! Limits: on NFS the client drops `flock` locks when the descriptors are closed, so a store on NFS
//! does not have this guarantee.
//!
//! Waiting happens at start-up only, on the thread that opens the file.

use std::path::Path;
use std::time::Duration;

use gannet_runtime::time::Time;

use crate::DiskError;

/// First pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Repeats `attempt` until it yields a value, fails, or `wait` has passed: `Ok(None)` means that
/// another process still has the file.
///
/// The lock is polled, with growing pauses, because the alternatives are worse: `flock(2)` has no
/// time-out; interrupting it takes a signal, which is process-wide state that a library must not
/// touch; and a helper thread that blocks in it cannot be called back when the wait is over, so it
/// could take the lock after its caller gave up.
pub(crate) fn acquire<T>(
    path: &Path,
    wait: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, DiskError>,
) -> Result<T, DiskError> {
    let start = Time::monotonic();
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        let left = wait.saturating_sub(Time::monotonic().since(start));
        if left.is_zero() {
            return Err(DiskError::InUse { path: path.display().to_string() });
        }
        std::thread::sleep(pause.min(left));
        pause = (2 * pause).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_no_longer_than_allowed_and_names_the_file() {
        let wait = Duration::from_millis(20);
        let start = Time::monotonic();
        let mut attempts = 0;
        let refused = acquire(Path::new("/some/store"), wait, || {
            attempts += 1;
            Ok(None::<()>)
        });
        assert!(matches!(refused, Err(DiskError::InUse { path }) if path == "/some/store"));
        assert!(Time::monotonic().since(start) >= wait);
        assert!((2..=21).contains(&attempts), "{attempts} attempts");
    }

    #[test]
    fn tries_once_when_there_is_no_time_to_wait() {
        let mut attempts = 0;
        let refused = acquire(Path::new("x"), Duration::ZERO, || {
            attempts += 1;
            Ok(None::<()>)
        });
        assert!(refused.is_err());
        assert_eq!(attempts, 1);
    }

    #[test]
    fn a_lock_that_becomes_free_is_taken() {
        let mut attempts = 0;
        let taken = acquire(Path::new("x"), Duration::from_secs(60), || {
            attempts += 1;
            Ok((attempts == 3).then_some(attempts))
        });
        assert!(matches!(taken, Ok(3)));
    }
}
