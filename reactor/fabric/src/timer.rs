//! A timer among the descriptors on which a reactor sleeps, for the deadlines of a provider.
//!
//! Belongs to the provider and so to one reactor. It is set while the reactor may sleep, and read by
//! nobody: setting or clearing it makes it unreadable again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use gannet_runtime::time::Time;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::FabricError;

/// A descriptor that becomes readable at a time.
#[derive(Debug)]
pub(crate) struct Timer {
    descriptor: OwnedFd,
    is_set: bool,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// `System` when no descriptor can be made.
    pub(crate) fn new() -> Result<Timer, FabricError> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        match timerfd_create(TimerfdClockId::Monotonic, flags) {
            Ok(descriptor) => Ok(Timer { descriptor, is_set: false }),
            Err(error) => {
                Err(FabricError::System { what: "making a timer".to_owned(), source: error.into() })
            }
        }
    }

    /// Lets the descriptor become readable at `deadline`, at once if that has passed, and never for
    /// [`Time::NEVER`].
    pub(crate) fn set(&mut self, deadline: Time) {
        if deadline == Time::NEVER {
            return self.clear();
        }
        // Zero would mean never.
        self.write(deadline.since(Time::monotonic()).max(Duration::from_nanos(1)));
        self.is_set = true;
    }

    /// Lets the descriptor not become readable any more.
    pub(crate) fn clear(&mut self) {
        if self.is_set {
            self.write(Duration::ZERO);
            self.is_set = false;
        }
    }

    fn write(&self, left: Duration) {
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let value = Itimerspec { it_interval, it_value };
        // A timer takes every valid time; without it a deadline is merely noticed later.
        let _set = timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &value);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_readable_within(timer: &Timer, within: Duration) -> bool {
        let mut entry = [PollFd::new(timer, PollFlags::IN)];
        let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: 0 };
        poll(&mut entry, Some(&within)).unwrap() == 1
    }

    #[test]
    fn it_is_readable_from_its_deadline_until_it_is_set_or_cleared() {
        let at_once = Duration::ZERO;
        let long = Duration::from_secs(10);
        let mut timer = Timer::new().unwrap();
        assert!(!is_readable_within(&timer, at_once));
        timer.set(Time::monotonic() + Duration::from_millis(1));
        assert!(is_readable_within(&timer, long));
        timer.clear();
        assert!(!is_readable_within(&timer, at_once), "cleared");
        timer.set(Time::ZERO);
        assert!(is_readable_within(&timer, long), "a deadline of the past");
        timer.set(Time::monotonic() + long);
        assert!(!is_readable_within(&timer, at_once), "set anew");
        timer.set(Time::ZERO);
        timer.set(Time::NEVER);
        assert!(!is_readable_within(&timer, at_once), "never");
    }
}
