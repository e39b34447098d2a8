//! Sizes and durations as people write them, and back.
//!
//! `4096`, `512K`, `1G`, `1GiB` are bytes, in powers of 1024; `500us`, `10ms`, `5s`, `2m`, `1h` are
//! durations. A bare number is no duration: its unit would be a guess.

use std::time::Duration;

/// Units of sizes: the letter and the power of two.
const SIZE_UNITS: [(&str, u32); 5] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];
/// Units of durations with their nanoseconds.
const DURATION_UNITS: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a size in bytes.
///
/// # Errors
/// A text that says what is allowed.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let refuse = || format!("{text:?} is no size: write bytes, or K, M, G, T, as in \"512M\"");
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, shift) = SIZE_UNITS
        .iter()
        .find_map(|(unit, shift)| Some((number.strip_suffix(unit)?, *shift)))
        .unwrap_or((number, 0));
    let count = parse_digits(digits.trim_end()).ok_or_else(refuse)?;
    let factor = 1_u64 << shift;
    count.checked_mul(factor).ok_or_else(|| format!("{text:?} is more than 64 bits can hold"))
}

/// Reads a duration.
///
/// # Errors
/// A text that says what is allowed.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || {
        format!("{text:?} is no duration: write a number and ns, us, ms, s, m or h, as in \"10s\"")
    };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
    let (digits, unit) = trimmed.split_at(split);
    let count = parse_digits(digits).ok_or_else(refuse)?;
    let unit = unit.trim_start();
    let (_, unit_ns) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
    let nanoseconds = count.checked_mul(*unit_ns);
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| format!("{text:?} is too long a duration"))
}

/// Digits only: `u64::from_str` alone would also take a plus sign.
fn parse_digits(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten()
}

/// A size for people: at most one decimal, in the largest unit that leaves at least 1.
pub(crate) fn format_size(bytes: u64) -> String {
    let largest = SIZE_UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift);
    match largest {
        None => format!("{bytes} B"),
        Some((unit, shift)) => format!("{:.1} {unit}iB", bytes as f64 / (1_u64 << shift) as f64),
    }
}

/// A size as a configuration would say it: exact.
pub(crate) fn format_size_exact(bytes: u64) -> String {
    let exact = |shift: &u32| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match SIZE_UNITS.iter().rev().find(|(_, shift)| exact(shift)) {
        None => bytes.to_string(),
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
    }
}

/// A duration as a configuration would say it: exact.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let exact = |unit: &u64| nanoseconds != 0 && nanoseconds.is_multiple_of(*unit);
    match DURATION_UNITS.iter().rev().find(|(_, unit)| exact(unit)) {
        None => "0s".to_owned(),
        Some((name, unit)) => format!("{}{name}", nanoseconds / unit),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("1G", 1 << 30),
            ("2TB", 2 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "+1", "1.5G", "1X", "1GG", "0x10", "99999999999G"] {
            let message = parse_size(text).unwrap_err();
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, duration) in [
            ("5ns", Duration::from_nanos(5)),
            ("50us", Duration::from_micros(50)),
            ("10ms", Duration::from_millis(10)),
            ("10 s", Duration::from_secs(10)),
            ("2m", Duration::from_secs(120)),
            ("1h", Duration::from_secs(3600)),
        ] {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1 parsec", "99999999999999h"] {
            let message = parse_duration(text).unwrap_err();
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn what_is_formatted_exactly_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1536, 512 << 20, 3 << 30] {
            assert_eq!(parse_size(&format_size_exact(bytes)), Ok(bytes));
        }
        for duration in [1_u64, 1_000, 1_500, 2_000_000, 10_000_000_000, 3_600_000_000_000] {
            let duration = Duration::from_nanos(duration);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(1 << 30), "1.0 GiB");
    }
}
