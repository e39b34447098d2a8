//! What a reactor does with its core while there is nothing to do.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a reactor waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Polls without end: the lowest latency, for an appliance whose cores are Gannet's alone.
    Spin,
    /// Polls, then polls while giving the core to others, then sleeps: an idle reactor uses no CPU.
    Adaptive {
        /// How long to poll at full speed after the last work.
        spin: Duration,
        /// How long after that to offer the core to other threads between polls.
        yields: Duration,
    },
}

/// What comes next after a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdleStep {
    Spin,
    Yield,
    Sleep,
}

impl IdlePolicy {
    /// Spins for 50 us, which covers a block operation on flash or a round trip on RDMA, so that a
    /// request under way never pays for a sleep; yields for another 200 us, some times what a sleep
    /// and its wake-up cost (5-50 us), so that sleeping late at most adds a small factor.
    pub const ADAPTIVE: IdlePolicy = IdlePolicy::Adaptive {
        spin: Duration::from_micros(50),
        yields: Duration::from_micros(200),
    };

    /// The step after a turn without work, `idle` after the last work.
    pub(crate) fn step(self, idle: Duration) -> IdleStep {
        match self {
            IdlePolicy::Spin => IdleStep::Spin,
            IdlePolicy::Adaptive { spin, .. } if idle < spin => IdleStep::Spin,
            IdlePolicy::Adaptive { spin, yields } if idle < spin.saturating_add(yields) => {
                IdleStep::Yield
            }
            IdlePolicy::Adaptive { .. } => IdleStep::Sleep,
        }
    }
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

    #[test]
    fn adaptive_spins_then_yields_then_sleeps() {
        let microseconds = Duration::from_micros;
        let policy = IdlePolicy::Adaptive { spin: microseconds(10), yields: microseconds(5) };
        let steps = [0, 9, 10, 14, 15, 1_000_000].map(|idle| policy.step(microseconds(idle)));
        use IdleStep::{Sleep, Spin, Yield};
        assert_eq!(steps, [Spin, Spin, Yield, Yield, Sleep, Sleep]);
        assert_eq!(IdlePolicy::Spin.step(Duration::MAX), Spin);
    }
}
