//! Which grants of a stream are retired: the form in which a data server reports them, and the
//! window in which a metadata-server reactor keeps those that are not.

use crate::control::RetiredRange;
use crate::ids::GrantNumber;
use crate::limits::GRANTS_MAX;
use zerocopy::little_endian::U64;

/// Collects retired numbers and yields them as a cumulative number plus ranges, so that one stalled
/// grant does not hold up the report of the others. Holds a window of [`GRANTS_MAX`] numbers.
#[derive(Clone, Debug)]
pub struct RetirementReport {
    /// All numbers up to this one are retired.
    cumulative: u64,
    /// Numbers above `cumulative` that are retired, by number modulo the window.
    retired: [u64; GRANTS_MAX / 64],
    /// Of those, the ones not yet reported in a range.
    unreported: [u64; GRANTS_MAX / 64],
    /// Highest number retired so far.
    highest: u64,
    changed: bool,
}

impl Default for RetirementReport {
    fn default() -> Self {
        RetirementReport::new()
    }
}

impl RetirementReport {
    /// A report of a stream that begins with number 1.
    #[must_use]
    pub const fn new() -> RetirementReport {
        RetirementReport {
            cumulative: 0,
            retired: [0; GRANTS_MAX / 64],
            unreported: [0; GRANTS_MAX / 64],
            highest: 0,
            changed: false,
        }
    }

    /// Whether `number` can be granted now: above everything retired in order, inside the window,
    /// and not retired before.
    #[must_use]
    pub fn admits(&self, number: GrantNumber) -> bool {
        number.0 > self.cumulative
            && number.0 - self.cumulative <= GRANTS_MAX as u64
            && !bit(&self.retired, number.0)
    }

    /// Notes that a grant is retired. A number outside the window or retired before is ignored.
    pub fn retire(&mut self, number: GrantNumber) {
        if !self.admits(number) {
            return;
        }
        set(&mut self.retired, number.0, true);
        set(&mut self.unreported, number.0, true);
        self.highest = self.highest.max(number.0);
        self.changed = true;
        while self.cumulative < self.highest && bit(&self.retired, self.cumulative + 1) {
            self.cumulative += 1;
            set(&mut self.retired, self.cumulative, false);
            set(&mut self.unreported, self.cumulative, false);
        }
    }

    /// Whether there is something to report.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.changed
    }

    /// Takes a report: the cumulative number, and up to `ranges.len()` ranges above it, whose
    /// number is returned. What did not fit stays for the next call.
    pub fn take(&mut self, ranges: &mut [RetiredRange]) -> (GrantNumber, usize) {
        let mut count = 0;
        let mut number = self.cumulative + 1;
        self.changed = false;
        while number <= self.highest {
            if !bit(&self.unreported, number) {
                number += 1;
                continue;
            }
            if count == ranges.len() {
                self.changed = true;
                break;
            }
            let first = number;
            while number <= self.highest && bit(&self.unreported, number) {
                set(&mut self.unreported, number, false);
                number += 1;
            }
            ranges[count] = RetiredRange { first: U64::new(first), last: U64::new(number - 1) };
            count += 1;
        }
        (GrantNumber(self.cumulative), count)
    }
}

fn bit(words: &[u64; GRANTS_MAX / 64], number: u64) -> bool {
    let index = number as usize % GRANTS_MAX;
    words[index / 64] >> (index % 64) & 1 == 1
}

fn set(words: &mut [u64; GRANTS_MAX / 64], number: u64, value: bool) {
    let index = number as usize % GRANTS_MAX;
    let mask = 1 << (index % 64);
    if value {
        words[index / 64] |= mask;
    } else {
        words[index / 64] &= !mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reports_cover_exactly_what_was_retired() {
        // A fixed permutation with a straggler: number 3 retires last.
        let mut report = RetirementReport::new();
        let mut told = BTreeSet::new();
        let order: std::vec::Vec<u64> =
            (1..=200).map(|n| (n * 37) % 201).filter(|n| *n != 3).chain([3]).collect();
        for (step, number) in order.iter().enumerate() {
            assert!(report.admits(GrantNumber(*number)));
            report.retire(GrantNumber(*number));
            assert!(!report.admits(GrantNumber(*number)));
            if step % 7 == 0 || *number == 3 {
                while report.has_news() {
                    let mut ranges = [RetiredRange::default(); 2];
                    let (cumulative, count) = report.take(&mut ranges);
                    told.extend(1..=cumulative.0);
                    for range in &ranges[..count] {
                        told.extend(range.first.get()..=range.last.get());
                    }
                }
                let done: BTreeSet<u64> = order[..=step].iter().copied().collect();
                assert_eq!(told, done);
            }
        }
        assert_eq!(told.len(), 200);
    }

    #[test]
    fn the_window_bounds_what_is_outstanding() {
        let report = RetirementReport::new();
        assert!(report.admits(GrantNumber(GRANTS_MAX as u64)));
        assert!(!report.admits(GrantNumber(GRANTS_MAX as u64 + 1)));
        assert!(!report.admits(GrantNumber(0)));
    }
}
