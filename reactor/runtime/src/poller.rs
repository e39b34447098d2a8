//! The contract between a reactor and what it polls.

use std::os::fd::BorrowedFd;

use crate::time::{Time, WallTime};

/// What a reactor tells a poller on each turn.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic time, read once per turn.
    pub time: Time,
    /// Wall time, for file times only.
    pub wall: WallTime,
}

/// One role on a reactor: a metadata-server reactor, a data-server reactor, a client loop.
pub trait Poller {
    /// Does all work that is ready, without blocking. Returns the number of completions and
    /// messages handled: 0 means the turn was idle.
    fn poll(&mut self, now: Now) -> usize;

    /// When the poller next has to run although nothing arrives; `Time::NEVER` if never.
    fn deadline(&self) -> Time;

    /// Asks every producer to signal the descriptors of [`Poller::wake_descriptors`] from now on:
    /// sets the sleep flags and fences. The reactor polls once more afterwards, then sleeps.
    fn arm(&mut self);

    /// Takes back [`Poller::arm`] and consumes pending signals.
    fn disarm(&mut self);

    /// Calls `visit` with each descriptor that becomes readable when there is work. The set may
    /// change only inside `poll`.
    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>));

    /// Starts or continues an orderly end; true when nothing is left to do. Called once per turn,
    /// beside `poll`, after a stop was asked for.
    fn shutdown(&mut self, now: Now) -> bool;
}
