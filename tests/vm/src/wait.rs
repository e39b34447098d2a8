//! Waiting for a condition, never longer than a bound.

use std::time::{Duration, Instant};

/// How often a condition is looked at that nothing can wake a waiter for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `condition` holds; false if it does not within `at_most`.
#[must_use]
pub fn holds_within(at_most: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + at_most;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within `at_most`; the message says that it waited for `what`.
pub fn until(what: &str, at_most: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(at_most, condition), "waited {at_most:?} for {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        assert!(holds_within(Duration::from_secs(10), || {
            looks += 1;
            looks == 3
        }));
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_condition_that_never_holds_is_looked_at_once_at_least() {
        let mut looks = 0;
        assert!(!holds_within(Duration::ZERO, || {
            looks += 1;
            false
        }));
        assert_eq!(looks, 1);
    }
}
