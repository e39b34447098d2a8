//! A descriptor that is always readable.
//!
//! A provider shows it to the reactor while it has work that no other descriptor will announce, so
//! that the reactor does not sleep over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// An event counter that stays at one.
pub(crate) struct AlwaysReady(OwnedFd);

impl AlwaysReady {
    pub(crate) fn new() -> io::Result<AlwaysReady> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(AlwaysReady(rustix::event::eventfd(1, flags)?))
    }
}

impl AsFd for AlwaysReady {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
