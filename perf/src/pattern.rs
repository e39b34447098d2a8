//! Bytes from which a reader can tell which block of the file it got.
//!
//! Each *unit* of 4 KiB holds its number in the file, then words that count up from a tag drawn from
//! that number and the run's seed. A unit of another place, of another run, half of one and half of
//! another, or never written differs in some word, and every word is checked.

use std::fmt;

use crate::random::mix;

/// Length of a unit, bytes.
pub const UNIT_BYTES: usize = 4096;
const WORD_BYTES: usize = size_of::<u64>();

/// A unit that does not hold what its place in the file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Number of the unit in the file.
    pub unit: u64,
    /// The first wrong byte's word, counted in bytes from the unit's start.
    pub offset_bytes: usize,
    /// What the word should be.
    pub expected: u64,
    /// What it is.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unit {} of 4 KiB differs at its byte {}: {:#018x} where {:#018x} was written",
            self.unit, self.offset_bytes, self.found, self.expected
        )
    }
}

/// The pattern of one run.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The pattern that belongs to a seed.
    #[must_use]
    pub fn new(seed: u64) -> Pattern {
        Pattern { seed }
    }

    /// Fills `bytes`, whole units from unit number `first` on.
    pub fn fill(self, bytes: &mut [u8], first: u64) {
        for (unit, number) in bytes.chunks_exact_mut(UNIT_BYTES).zip(first..) {
            let tag = self.tag(number);
            for (word, at) in unit.chunks_exact_mut(WORD_BYTES).zip(0..) {
                word.copy_from_slice(&tag.wrapping_add(at).to_le_bytes());
            }
            unit[..WORD_BYTES].copy_from_slice(&number.to_le_bytes());
        }
    }

    /// Checks every word of `bytes`, whole units from unit number `first` on.
    ///
    /// # Errors
    /// The first [`Mismatch`].
    pub fn check(self, bytes: &[u8], first: u64) -> Result<(), Mismatch> {
        for (unit, number) in bytes.chunks_exact(UNIT_BYTES).zip(first..) {
            let tag = self.tag(number);
            // One test at the end, so that the loop over the words has no branch.
            let mut difference = word(unit, 0) ^ number;
            for at in 1..UNIT_BYTES / WORD_BYTES {
                difference |= word(unit, at) ^ tag.wrapping_add(at as u64);
            }
            if difference != 0 {
                return Err(self.first_mismatch(unit, number));
            }
        }
        Ok(())
    }

    fn tag(self, number: u64) -> u64 {
        mix(number ^ self.seed)
    }

    #[cold]
    fn first_mismatch(self, unit: &[u8], number: u64) -> Mismatch {
        let tag = self.tag(number);
        let expected = |at: usize| if at == 0 { number } else { tag.wrapping_add(at as u64) };
        let words = UNIT_BYTES / WORD_BYTES;
        let at = (0..words).find(|at| word(unit, *at) != expected(*at)).unwrap_or(0);
        Mismatch {
            unit: number,
            offset_bytes: at * WORD_BYTES,
            expected: expected(at),
            found: word(unit, at),
        }
    }
}

fn word(unit: &[u8], at: usize) -> u64 {
    let bytes = &unit[at * WORD_BYTES..][..WORD_BYTES];
    u64::from_le_bytes(bytes.try_into().expect("a word has eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_wrong_content_is_found() {
        let pattern = Pattern::new(5);
        let mut bytes = vec![0; 4 * UNIT_BYTES];
        assert!(pattern.check(&bytes, 0).is_err(), "zeros, although unit 0 is numbered 0");
        pattern.fill(&mut bytes, 100);
        assert_eq!(pattern.check(&bytes, 100), Ok(()));
        assert_eq!(pattern.check(&bytes[UNIT_BYTES..], 101), Ok(()));
        assert!(pattern.check(&bytes, 101).is_err(), "another place");
        assert!(Pattern::new(6).check(&bytes, 100).is_err(), "another run");
        for at in [0, 7, 8, 2000, UNIT_BYTES - 1, 4 * UNIT_BYTES - 1] {
            bytes[at] ^= 1;
            let mismatch = pattern.check(&bytes, 100).expect_err("one bit is wrong");
            assert_eq!(mismatch.unit, 100 + (at / UNIT_BYTES) as u64);
            assert_eq!(mismatch.offset_bytes, at % UNIT_BYTES / 8 * 8);
            assert_eq!((mismatch.expected ^ mismatch.found).count_ones(), 1);
            bytes[at] ^= 1;
        }
        let (front, back) = bytes.split_at_mut(UNIT_BYTES);
        front[2048..].copy_from_slice(&back[2048..UNIT_BYTES]);
        let mismatch = pattern.check(&bytes, 100).expect_err("half of another unit");
        assert_eq!((mismatch.unit, mismatch.offset_bytes), (100, 2048));
    }
}
