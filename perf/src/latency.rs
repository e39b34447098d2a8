//! How long requests took.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest time that is told apart, nanoseconds: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Decimal digits that are kept of each time.
const DIGITS: u8 = 3;

/// Times of the requests of one measurement.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
    longest_ns: u64,
}

/// What is reported of them, nanoseconds, each within a thousandth; the longest is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencySummary {
    /// The mean.
    pub mean_ns: f64,
    /// Half of the requests took no longer.
    pub p50_ns: u64,
    /// 90 of 100 took no longer.
    pub p90_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1000 took no longer.
    pub p99_9_ns: u64,
    /// None took longer.
    pub max_ns: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

impl Latencies {
    /// Without any times. All memory that it will need is taken here.
    #[must_use]
    pub fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS)
            .expect("constant bounds that the histogram supports");
        Latencies { histogram, longest_ns: 0 }
    }

    /// Adds a time.
    pub fn record(&mut self, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns = self.longest_ns.max(latency_ns);
        self.histogram.saturating_record(latency_ns);
    }

    /// How many times were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The figures to report; zeros if no time was added.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        // A bucket is reported by its upper end, which may lie above the longest time.
        let at = |quantile| self.histogram.value_at_quantile(quantile).min(self.longest_ns);
        LatencySummary {
            mean_ns: self.histogram.mean(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            max_ns: self.longest_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within_a_thousandth(found: u64, expected: u64) {
        assert!(found.abs_diff(expected) * 1000 <= expected, "{found} where {expected} is right");
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut latencies = Latencies::new();
        for microseconds in 1..=10_000 {
            latencies.record(Duration::from_micros(microseconds));
        }
        let summary = latencies.summary();
        within_a_thousandth(summary.p50_ns, 5_000_000);
        within_a_thousandth(summary.p90_ns, 9_000_000);
        within_a_thousandth(summary.p99_ns, 9_900_000);
        within_a_thousandth(summary.p99_9_ns, 9_990_000);
        within_a_thousandth(summary.mean_ns as u64, 5_000_500);
        assert_eq!((summary.max_ns, latencies.count()), (10_000_000, 10_000));
    }

    #[test]
    fn one_outlier_shows_in_the_maximum_only() {
        let mut latencies = Latencies::new();
        for _ in 0..99_999 {
            latencies.record(Duration::from_nanos(1_500));
        }
        latencies.record(Duration::from_secs(7200));
        let summary = latencies.summary();
        within_a_thousandth(summary.p99_9_ns, 1_500);
        assert_eq!(summary.max_ns, 7_200_000_000_000, "exact even beyond what is told apart");
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        let latencies = Latencies::default();
        assert_eq!(latencies.summary(), LatencySummary::default());
        assert_eq!(latencies.count(), 0);
    }

    #[test]
    fn one_time_is_every_percentile() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_nanos(12_345));
        let summary = latencies.summary();
        for value in [summary.p50_ns, summary.p99_9_ns, summary.max_ns] {
            assert_eq!(value, 12_345);
        }
    }
}
