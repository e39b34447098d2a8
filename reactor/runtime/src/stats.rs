//! Where a reactor's time went, for others to read while it runs.
//!
//! One thread, the reactor's, writes; any thread reads. Each counter is exact; several read
//! together may be one turn apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A counter that one thread adds to and any thread reads.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    /// Not an atomic addition: there is one writer.
    fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one reactor. On cache lines of its own, since it is written every turn.
#[derive(Debug)]
#[repr(align(128))]
pub struct ReactorStats {
    turns: Counter,
    busy_ns: Counter,
    idle_ns: Counter,
    sleep_ns: Counter,
    sleeps: Counter,
    work: Counter,
    pollers: Box<[PollerStats]>,
    name: String,
}

#[derive(Debug)]
struct PollerStats {
    name: String,
    work: Counter,
}

/// A reactor's counters at one moment, or the difference of two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorSample {
    /// Times that every poller was polled.
    pub turns: u64,
    /// Time of the turns in which a poller had work.
    pub busy_ns: u64,
    /// Time of the turns in which none had, the core offered to others included.
    pub idle_ns: u64,
    /// Time spent blocked; a sleep counts when it ends.
    pub sleep_ns: u64,
    /// Times that the reactor blocked.
    pub sleeps: u64,
    /// Completions and messages that the pollers handled.
    pub work: u64,
}

impl ReactorSample {
    /// What was added since an earlier sample.
    #[must_use]
    pub fn since(self, earlier: ReactorSample) -> ReactorSample {
        ReactorSample {
            turns: self.turns.wrapping_sub(earlier.turns),
            busy_ns: self.busy_ns.wrapping_sub(earlier.busy_ns),
            idle_ns: self.idle_ns.wrapping_sub(earlier.idle_ns),
            sleep_ns: self.sleep_ns.wrapping_sub(earlier.sleep_ns),
            sleeps: self.sleeps.wrapping_sub(earlier.sleeps),
            work: self.work.wrapping_sub(earlier.work),
        }
    }
}

impl ReactorStats {
    pub(crate) fn new(name: String, pollers: impl Iterator<Item = String>) -> ReactorStats {
        ReactorStats {
            turns: Counter::default(),
            busy_ns: Counter::default(),
            idle_ns: Counter::default(),
            sleep_ns: Counter::default(),
            sleeps: Counter::default(),
            work: Counter::default(),
            pollers: pollers.map(|name| PollerStats { name, work: Counter::default() }).collect(),
            name,
        }
    }

    /// The reactor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All counters now.
    #[must_use]
    pub fn sample(&self) -> ReactorSample {
        ReactorSample {
            turns: self.turns.value(),
            busy_ns: self.busy_ns.value(),
            idle_ns: self.idle_ns.value(),
            sleep_ns: self.sleep_ns.value(),
            sleeps: self.sleeps.value(),
            work: self.work.value(),
        }
    }

    /// Name of each poller, and the completions and messages that it handled.
    pub fn pollers(&self) -> impl Iterator<Item = (&str, u64)> {
        self.pollers.iter().map(|poller| (poller.name.as_str(), poller.work.value()))
    }

    pub(crate) fn add_turn(&self, took: Duration, work: u64) {
        self.turns.add(1);
        if work > 0 {
            self.busy_ns.add(nanoseconds(took));
            self.work.add(work);
        } else {
            self.idle_ns.add(nanoseconds(took));
        }
    }

    pub(crate) fn add_poller_work(&self, poller: usize, work: u64) {
        self.pollers[poller].work.add(work);
    }

    pub(crate) fn add_idle(&self, took: Duration) {
        self.idle_ns.add(nanoseconds(took));
    }

    pub(crate) fn begin_sleep(&self) {
        self.sleeps.add(1);
    }

    pub(crate) fn end_sleep(&self, took: Duration) {
        self.sleep_ns.add(nanoseconds(took));
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
