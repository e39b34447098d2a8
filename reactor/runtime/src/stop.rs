//! How a process is asked to end: a flag that every reactor reads each turn, with a descriptor that
//! wakes those that sleep.
//!
//! Once set it stays set. Any thread, and signal handlers, may set it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::eventfd::EventFd;

/// Exit status of a process that a signal ended, by convention of the shells.
const EXIT_BY_SIGNAL: i32 = 128;

/// Asks reactors to stop. Clones are the same flag.
#[derive(Clone, Debug)]
pub struct StopFlag {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stopped: AtomicBool,
    /// Signalled once and never drained: it wakes every sleeper, whenever it goes to sleep.
    event: EventFd,
}

impl StopFlag {
    /// Makes a flag that is not set.
    ///
    /// # Errors
    /// What making an eventfd returns.
    pub fn new() -> io::Result<StopFlag> {
        let shared = Shared { stopped: AtomicBool::new(false), event: EventFd::new()? };
        Ok(StopFlag { shared: Arc::new(shared) })
    }

    /// Asks to stop, and wakes all who sleep.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.event.signal();
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    /// Readable from the moment that a stop was asked for.
    #[must_use]
    pub fn wake_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// From now on SIGTERM and SIGINT set this flag. A second such signal ends the process at once,
    /// with status 143 or 130. The handlers stay for the life of the process.
    ///
    /// # Errors
    /// What `sigaction(2)` returns.
    pub fn stop_on_signals(&self) -> io::Result<()> {
        let signalled = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Actions run in order of registration: this one still sees the flag of an earlier
            // signal, not of its own.
            let status = EXIT_BY_SIGNAL + signal;
            signal_hook::flag::register_conditional_shutdown(
                signal,
                status,
                Arc::clone(&signalled),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&signalled))?;
            let flag = self.clone();
            // SAFETY: the action stores to an atomic and makes one `write(2)` by a raw system call,
            // which leaves `errno` alone: nothing that a signal handler must not do.
            unsafe { signal_hook::low_level::register(signal, move || flag.stop())? };
        }
        Ok(())
    }
}
