//! What became of a copy: counts, failures, and the summary at the end.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use gannet_client::{ErrorKind, RequestError};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::connection::explain;
use crate::failure::Failure;
use crate::units::format_size;

/// Failures after which nothing new is begun.
const FAILURES_MAX: u64 = 100;

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
    pub(super) failures: u64,
    /// Nothing new shall be begun: a server is lost, or too much failed.
    pub(super) is_hopeless: bool,
}

impl Outcomes {
    /// Tells a failure and counts it.
    pub(super) fn fail(&mut self, what: impl Display) {
        eprintln!("gannet: {what}");
        self.failures += 1;
        if self.failures == FAILURES_MAX {
            eprintln!("gannet: {FAILURES_MAX} failures: nothing more is tried");
            self.is_hopeless = true;
        }
    }

    /// Tells and counts the failure of a request about a local path.
    pub(super) fn fail_request(&mut self, path: &Path, error: &RequestError) {
        self.is_hopeless |= matches!(
            error.kind,
            ErrorKind::MetaserverLost { .. }
                | ErrorKind::TargetLost { .. }
                | ErrorKind::Refused { .. }
        );
        self.fail(format!("{}: {}: {}", path.display(), error.operation, explain(error)));
    }

    /// Tells and counts the failure of a system call.
    pub(super) fn fail_path(&mut self, what: &str, path: &Path, error: &std::io::Error) {
        self.fail(Failure::path(what, path, error));
    }
}

/// Percentiles of the reads or writes, microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latencies {
    requests: u64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl Latencies {
    pub(super) fn of(histogram: &Histogram<u64>) -> Latencies {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let quantile = |quantile| microseconds(histogram.value_at_quantile(quantile));
        Latencies {
            requests: histogram.len(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: microseconds(histogram.max()),
        }
    }
}

/// What a pass over the files did.
#[derive(Debug, Serialize)]
pub(super) struct Pass {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
    pub(super) failures: u64,
    pub(super) seconds: f64,
    pub(super) bytes_per_second: f64,
    pub(super) files_per_second: f64,
    pub(super) latency: Latencies,
}

impl Pass {
    pub(super) fn of(outcomes: &Outcomes, took: Duration, latencies: &Histogram<u64>) -> Pass {
        let seconds = took.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Pass {
            files: outcomes.files,
            directories: outcomes.directories,
            bytes: outcomes.bytes,
            failures: outcomes.failures,
            seconds,
            bytes_per_second: rate(outcomes.bytes),
            files_per_second: rate(outcomes.files),
            latency: Latencies::of(latencies),
        }
    }

    fn line(&self, verb: &str) -> String {
        format!(
            "{verb} {} files and {} directories, {} ({} bytes) in {:.2} s: {}/s, {:.0} files/s; \
             requests p50 {:.0} us, p99 {:.0} us",
            self.files,
            self.directories,
            format_size(self.bytes),
            self.bytes,
            self.seconds,
            format_size(self.bytes_per_second as u64),
            self.files_per_second,
            self.latency.p50_us,
            self.latency.p99_us,
        )
    }
}

/// What a command did in all.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) operation: &'static str,
    #[serde(flatten)]
    pub(super) pass: Pass,
    /// Links and special files that were not copied.
    pub(super) skipped: u64,
    /// The comparison afterwards, if it was asked for.
    pub(super) verified: Option<Pass>,
}

impl Summary {
    /// Prints the summary, and fails if anything did.
    pub(super) fn finish(&self, json: bool, skipping_is_fine: bool) -> Result<(), Failure> {
        if json {
            let text = serde_json::to_string(self).map_err(Failure::operation)?;
            println!("{text}");
        } else {
            println!("{}", self.pass.line(self.operation));
            if let Some(verified) = &self.verified {
                println!("{}", verified.line("compared"));
            }
        }
        let failures = self.pass.failures + self.verified.as_ref().map_or(0, |pass| pass.failures);
        let unverified = self
            .verified
            .as_ref()
            .is_some_and(|pass| (pass.files, pass.bytes) != (self.pass.files, self.pass.bytes));
        if failures > 0 {
            return Err(Failure::operation(format!("{failures} failure(s), see above")));
        }
        if unverified {
            return Err(Failure::operation("not everything that was copied could be compared"));
        }
        if self.skipped > 0 && !skipping_is_fine {
            return Err(Failure::operation(format!(
                "{} link(s) or special file(s) were skipped (--skip-special accepts that)",
                self.skipped
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pass(files: u64, failures: u64) -> Pass {
        let histogram = Histogram::new(3).unwrap();
        let outcomes = Outcomes { files, failures, ..Outcomes::default() };
        Pass::of(&outcomes, Duration::from_secs(2), &histogram)
    }

    #[test]
    fn rates_are_per_second_and_json_is_flat() {
        let summary = Summary { operation: "put", pass: pass(10, 0), skipped: 1, verified: None };
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["operation"], "put");
        assert_eq!(json["files_per_second"], 5.0);
        assert!(json["verified"].is_null());
        assert!(summary.finish(true, false).unwrap_err().message.contains("1 link(s)"));
        assert!(summary.finish(true, true).is_ok());
    }

    #[test]
    fn what_failed_or_was_not_compared_is_a_failure() {
        let verified = Some(pass(9, 0));
        let summary = Summary { operation: "put", pass: pass(10, 0), skipped: 0, verified };
        assert!(summary.finish(true, true).unwrap_err().message.contains("compared"));
        let summary = Summary { operation: "get", pass: pass(10, 2), skipped: 0, verified: None };
        assert!(summary.finish(true, true).unwrap_err().message.contains("2 failure(s)"));
    }

    #[test]
    fn too_many_failures_end_the_attempt() {
        let mut outcomes = Outcomes::default();
        for _ in 0..FAILURES_MAX {
            assert!(!outcomes.is_hopeless);
            outcomes.fail("no");
        }
        assert!(outcomes.is_hopeless);
    }
}
