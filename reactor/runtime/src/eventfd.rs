//! A counter in the kernel that one thread signals and another one polls for readability.
//!
//! Any thread may signal; the owner drains. A crash of either side leaves nothing behind: the
//! kernel frees the counter with its last descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// An eventfd: readable from [`EventFd::signal`] until [`EventFd::drain`].
#[derive(Debug)]
pub struct EventFd {
    descriptor: OwnedFd,
}

impl EventFd {
    /// Makes an eventfd that is not readable yet.
    ///
    /// # Errors
    /// What `eventfd2(2)` returns: descriptors or memory ran out.
    pub fn new() -> io::Result<EventFd> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(EventFd { descriptor: rustix::event::eventfd(0, flags)? })
    }

    /// Makes it readable. One `write(2)` without an allocation or a lock, so a signal handler may
    /// call it.
    pub fn signal(&self) {
        // The only possible refusal is a counter at its maximum, which is readable already.
        let _already_readable = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }

    /// Takes back all signals so far. Returns whether there were any.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        rustix::io::read(&self.descriptor, &mut count).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
