//! Points in time as the reactors see them.
//!
//! A reactor reads the clock once per turn and hands the value to everything it polls, so code
//! above the runtime never reads a clock; the simulator hands out virtual time the same way.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on the monotonic clock since an arbitrary origin (boot, or the simulation's start).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Time = Time(0);
    /// Later than every reachable point in time.
    pub const NEVER: Time = Time(u64::MAX);

    /// Reads the monotonic clock (`CLOCK_MONOTONIC`). For reactors and harnesses only: everything
    /// else is told the time.
    #[must_use]
    pub fn monotonic() -> Time {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Time(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// Time passed since `earlier`, zero if `earlier` lies ahead.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, rhs: Duration) -> Time {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, rhs: Duration) -> Time {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_sub(nanos))
    }
}

/// Nanoseconds since the Unix epoch, for file times. Never used to order events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub u64);

impl WallTime {
    /// Reads the real-time clock.
    #[must_use]
    pub fn realtime() -> WallTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        WallTime((now.tv_sec.max(0) as u64) * 1_000_000_000 + now.tv_nsec as u64)
    }
}
