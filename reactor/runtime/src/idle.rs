//! What a reactor does with its core while there is nothing to do.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::time::Time;

/// How a reactor waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Polls without end: the lowest latency, for an appliance whose cores are Gannet's alone. After
    /// [`SPIN_ALONE`] without work it offers the core to other threads between polls: the kernel's
    /// own, which end synchronous writes on devices without FUA, run on the core that the device
    /// interrupts, and would otherwise wait for the scheduler's tick with every one of them.
    Spin,
    /// Polls, then polls while giving the core to others, then sleeps: an idle reactor uses no CPU.
    Adaptive {
        /// How long to poll at full speed after the last work.
        spin: Duration,
        /// How long after that to offer the core to other threads between polls. Up to
        /// [`YIELDS_GROWTH_MAX`] times as long while sleeps turn out to be short: see [`Idle`].
        yields: Duration,
    },
}

/// How long a spinning thread keeps its core to itself after the last work: as long as
/// [`IdlePolicy::ADAPTIVE`] polls at full speed.
pub const SPIN_ALONE: Duration = Duration::from_micros(50);

/// How many times longer than the policy says [`Idle`] yields before it sleeps, at most.
pub const YIELDS_GROWTH_MAX: u32 = 4;

/// What comes next after a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleStep {
    /// Poll again at once.
    Spin,
    /// Offer the core to other threads, then poll again.
    Yield,
    /// Sleep until something happens.
    Sleep,
}

/// Where a poller stands between work and sleep.
///
/// Where the round trip of a request is longer than the policy's patience, each party would sleep
/// through every request and each request would pay for all their wake-ups. So a sleep that ended
/// soon after it began doubles the time that is spent yielding before the next one, and a long one
/// takes it back to what the policy says. (KVM polls in this way before it halts a processor.)
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    policy: IdlePolicy,
    growth: u32,
    last_work: Time,
}

impl Idle {
    /// As after work.
    #[must_use]
    pub fn new(policy: IdlePolicy, now: Time) -> Idle {
        Idle { policy, growth: 1, last_work: now }
    }

    /// There was work.
    #[inline]
    pub fn worked(&mut self, now: Time) {
        self.last_work = now;
    }

    /// The step after a turn without work.
    #[must_use]
    pub fn step(&self, now: Time) -> IdleStep {
        let idle = now.since(self.last_work);
        match self.policy {
            IdlePolicy::Spin if idle < SPIN_ALONE => IdleStep::Spin,
            IdlePolicy::Spin => IdleStep::Yield,
            IdlePolicy::Adaptive { spin, .. } if idle < spin => IdleStep::Spin,
            IdlePolicy::Adaptive { spin, yields }
                if idle < spin.saturating_add(yields.saturating_mul(self.growth)) =>
            {
                IdleStep::Yield
            }
            IdlePolicy::Adaptive { .. } => IdleStep::Sleep,
        }
    }

    /// A sleep is over.
    pub fn slept(&mut self, now: Time) {
        let IdlePolicy::Adaptive { spin, yields } = self.policy else { return };
        let patience_max = spin.saturating_add(yields.saturating_mul(YIELDS_GROWTH_MAX));
        let short = now.since(self.last_work) <= patience_max;
        self.growth = if short { (self.growth * 2).min(YIELDS_GROWTH_MAX) } else { 1 };
    }
}

impl IdlePolicy {
    /// Spins for 50 us, which covers a block operation on flash or a round trip on RDMA, so that a
    /// request under way never pays for a sleep; yields for another 200 us, some times what a sleep
    /// and its wake-up cost (5-50 us), so that sleeping late at most adds a small factor.
    pub const ADAPTIVE: IdlePolicy =
        IdlePolicy::Adaptive { spin: SPIN_ALONE, yields: Duration::from_micros(200) };
}

impl Default for IdlePolicy {
    fn default() -> IdlePolicy {
        IdlePolicy::ADAPTIVE
    }
}

impl fmt::Display for IdlePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IdlePolicy::Spin => "spin",
            IdlePolicy::Adaptive { .. } => "adaptive",
        })
    }
}

/// A word that names no idle policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no idle policy: use \"adaptive\" or \"spin\"")]
pub struct UnknownIdlePolicy {
    /// What was given.
    pub given: String,
}

impl FromStr for IdlePolicy {
    type Err = UnknownIdlePolicy;

    fn from_str(text: &str) -> Result<IdlePolicy, UnknownIdlePolicy> {
        match text {
            "spin" => Ok(IdlePolicy::Spin),
            "adaptive" => Ok(IdlePolicy::ADAPTIVE),
            _ => Err(UnknownIdlePolicy { given: text.to_owned() }),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_others_are_told_the_names() {
        for policy in [IdlePolicy::Spin, IdlePolicy::ADAPTIVE] {
            assert_eq!(policy.to_string().parse::<IdlePolicy>().unwrap(), policy);
        }
        let message = "lazy".parse::<IdlePolicy>().unwrap_err().to_string();
        for word in ["lazy", "adaptive", "spin"] {
            assert!(message.contains(word), "{message}");
        }
    }

    const POLICY: IdlePolicy =
        IdlePolicy::Adaptive { spin: Duration::from_micros(10), yields: Duration::from_micros(5) };

    /// Steps at these times, microseconds.
    fn steps<const N: usize>(idle: &Idle, at: [u64; N]) -> [IdleStep; N] {
        at.map(|microseconds| idle.step(Time(microseconds * 1000)))
    }

    #[test]
    fn adaptive_spins_then_yields_then_sleeps() {
        use IdleStep::{Sleep, Spin, Yield};
        let idle = Idle::new(POLICY, Time(0));
        let found = steps(&idle, [0, 9, 10, 14, 15, 1_000_000]);
        assert_eq!(found, [Spin, Spin, Yield, Yield, Sleep, Sleep]);
        let spins = Idle::new(IdlePolicy::Spin, Time(0));
        assert_eq!(steps(&spins, [0, 49, 50, u64::MAX / 1000]), [Spin, Spin, Yield, Yield]);
    }

    #[test]
    fn short_sleeps_make_it_patient_and_long_ones_impatient() {
        use IdleStep::{Sleep, Yield};
        let mut idle = Idle::new(POLICY, Time(0));
        for (slept_until, yields_until) in [(20, 20), (30, 30), (30, 30), (31, 15), (30, 20)] {
            idle.slept(Time(slept_until * 1000));
            let found = steps(&idle, [yields_until - 1, yields_until]);
            assert_eq!(found, [Yield, Sleep], "after {slept_until} us");
        }
        let mut never_yields = Idle::new(
            IdlePolicy::Adaptive { spin: Duration::ZERO, yields: Duration::ZERO },
            Time(0),
        );
        never_yields.slept(Time(0));
        assert_eq!(steps(&never_yields, [0]), [Sleep]);
    }
}
