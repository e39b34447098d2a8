//! The shortest time in which one core can ask another something and hear back.
//!
//! Two threads, each pinned to its core and polling: one stores a number in a cache line, the other
//! sees it and stores it in another line. Nothing that two cores do together over memory takes less.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gannet_runtime::reactor::{CoreUnavailable, pin_to_core};
use gannet_runtime::time::Time;
use serde::{Deserialize, Serialize};

use super::cpu::CpuWatch;

/// Round trips per reading of the clock.
const BATCH: u64 = 64;
/// Most batches that are kept.
const BATCHES_MAX: usize = 1 << 16;
/// Polls between two readings of the clock by a thread that waits.
const POLLS_PER_READING: u32 = 1 << 12;
/// What the asking thread stores at the end.
const END: u64 = u64::MAX;

/// One word on cache lines of its own (two: processors fetch lines in pairs).
#[repr(align(128))]
struct Line(AtomicU64);

/// Round trips between two cores, timed in batches: 64 of one cache line, or single ones over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundTrip {
    /// Half of the batches took no longer per round trip, nanoseconds.
    pub median_ns: f64,
    /// The fastest batch, nanoseconds per round trip.
    pub fastest_ns: f64,
    /// How many were made.
    pub round_trips: u64,
    /// Share of the time in which the asking thread had its core.
    pub cpu_share: f64,
}

/// Measures for `budget` at most. `None` if the cores are one and the same, or if there was not time
/// for a single batch.
///
/// # Errors
/// If a core cannot be had.
pub fn measure(
    cores: [Option<usize>; 2],
    budget: Duration,
) -> Result<Option<RoundTrip>, CoreUnavailable> {
    if cores[0].is_some() && cores[0] == cores[1] {
        return Ok(None);
    }
    let (question, answer) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            pin(cores[1])?;
            reply(&question, &answer);
            Ok(())
        });
        let asking = scope.spawn(|| {
            // Ends the other thread whatever happens here.
            let _end = EndOnDrop(&question);
            pin(cores[0])?;
            Ok(ask(&question, &answer, budget))
        });
        let measured = joined(asking.join());
        joined(answering.join())?;
        measured
    })
}

/// What a thread returned; its panic goes on here.
pub(super) fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pin(core: Option<usize>) -> Result<(), CoreUnavailable> {
    core.map_or(Ok(()), pin_to_core)
}

struct EndOnDrop<'a>(&'a Line);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(END, Ordering::Release);
    }
}

/// Answers every question until the end.
fn reply(question: &Line, answer: &Line) {
    let mut last = 0;
    loop {
        let number = question.0.load(Ordering::Acquire);
        if number == END {
            return;
        }
        if number != last {
            answer.0.store(number, Ordering::Release);
            last = number;
        }
    }
}

fn ask(question: &Line, answer: &Line, budget: Duration) -> Option<RoundTrip> {
    let watch = CpuWatch::start();
    let mut batches_ns: Vec<u64> = Vec::with_capacity(BATCHES_MAX);
    let mut number = 0;
    let begin = Time::monotonic();
    let end = begin + budget;
    let mut before = begin;
    while before < end && batches_ns.len() < BATCHES_MAX {
        for _ in 0..BATCH {
            number += 1;
            question.0.store(number, Ordering::Release);
            if !wait_for(answer, number, end) {
                return summary(batches_ns, BATCH, watch);
            }
        }
        let after = Time::monotonic();
        batches_ns.push(after.0 - before.0);
        before = after;
    }
    summary(batches_ns, BATCH, watch)
}

/// False if the time was over before the answer was there.
fn wait_for(answer: &Line, number: u64, end: Time) -> bool {
    let mut polls = 0_u32;
    while answer.0.load(Ordering::Acquire) != number {
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(POLLS_PER_READING) && Time::monotonic() >= end {
            return false;
        }
    }
    true
}

/// What is reported of the times of batches of `batch` round trips; `None` if there are none.
pub(super) fn summary(mut batches_ns: Vec<u64>, batch: u64, watch: CpuWatch) -> Option<RoundTrip> {
    batches_ns.sort_unstable();
    let per_round_trip = |batch_ns: u64| batch_ns as f64 / batch as f64;
    let median = batches_ns.get(batches_ns.len() / 2)?;
    Some(RoundTrip {
        median_ns: per_round_trip(*median),
        fastest_ns: per_round_trip(*batches_ns.first()?),
        round_trips: batches_ns.len() as u64 * batch,
        cpu_share: watch.share(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_time_but_not_long() {
        if std::thread::available_parallelism().unwrap().get() < 2 {
            return;
        }
        // Beside other tests a thread may lose its core for all of a short budget.
        let measured = measure([None, None], Duration::from_secs(2)).unwrap().unwrap();
        assert!(measured.fastest_ns > 0.0 && measured.fastest_ns <= measured.median_ns);
        assert!(measured.round_trips >= BATCH);
        assert!((0.0..=1.0).contains(&measured.cpu_share));
    }

    #[test]
    fn one_core_cannot_play_both_sides() {
        assert_eq!(measure([Some(0), Some(0)], Duration::from_secs(1)).unwrap(), None);
    }

    #[test]
    fn a_core_that_does_not_exist_ends_both_threads() {
        for cores in [[Some(100_000), None], [None, Some(100_000)]] {
            let refused = measure(cores, Duration::from_millis(50)).unwrap_err();
            assert_eq!(refused.core, 100_000);
        }
    }
}
