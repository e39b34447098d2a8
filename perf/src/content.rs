//! What the file should hold, so that everything read can be checked.
//!
//! Filling and rewriting have patterns of their own, and every unit remembers which of them it was
//! last given: a rewrite that was acknowledged and is not there shows as much as wrong data does.

use crate::pattern::{Mismatch, Pattern, UNIT_BYTES};

/// Tells the pattern of rewrites from that of the fill.
const REWRITTEN: u64 = 0x5245_5752_4954_4545;
const WORD_BITS: u64 = u64::BITS as u64;

/// The content of one file.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    filled: Pattern,
    rewritten: Pattern,
    /// One bit per unit: whether it was rewritten.
    units: Vec<u64>,
}

impl Content {
    /// The content of a file of `size_bytes` that is filled and never rewritten.
    pub(crate) fn new(seed: u64, size_bytes: u64) -> Content {
        let units = size_bytes.div_ceil(UNIT_BYTES as u64);
        Content {
            filled: Pattern::new(seed),
            rewritten: Pattern::new(seed ^ REWRITTEN),
            units: vec![0; units.div_ceil(WORD_BITS) as usize],
        }
    }

    /// What the file is filled with at `offset`.
    pub(crate) fn fill(&self, bytes: &mut [u8], offset: u64) {
        self.filled.fill(bytes, offset / UNIT_BYTES as u64);
    }

    /// What to write at `offset` after that, from now on expected there.
    pub(crate) fn rewrite(&mut self, bytes: &mut [u8], offset: u64) {
        let first = offset / UNIT_BYTES as u64;
        self.rewritten.fill(bytes, first);
        for unit in first..first + (bytes.len() / UNIT_BYTES) as u64 {
            self.units[(unit / WORD_BITS) as usize] |= 1 << (unit % WORD_BITS);
        }
    }

    /// Checks what was read at `offset` while no write was under way. Returns the number of units.
    pub(crate) fn check(&self, bytes: &[u8], offset: u64) -> Result<u64, Mismatch> {
        let mut unit = offset / UNIT_BYTES as u64;
        for bytes in bytes.chunks_exact(UNIT_BYTES) {
            let word = self.units[(unit / WORD_BITS) as usize];
            let is_rewritten = word >> (unit % WORD_BITS) & 1 == 1;
            let pattern = if is_rewritten { self.rewritten } else { self.filled };
            pattern.check(bytes, unit)?;
            unit += 1;
        }
        Ok(unit - offset / UNIT_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = UNIT_BYTES as u64;

    #[test]
    fn a_lost_rewrite_is_found_and_so_is_one_too_many() {
        let mut content = Content::new(7, 130 * UNIT);
        let mut file = vec![0; 130 * UNIT_BYTES];
        content.fill(&mut file, 0);
        assert_eq!(content.check(&file, 0), Ok(130));

        // Units 63 and 64 lie in different words of the map.
        let mut bytes = vec![0; 2 * UNIT_BYTES];
        content.rewrite(&mut bytes, 63 * UNIT);
        let lost = content.check(&file, 0).expect_err("the old content is still there");
        assert_eq!(lost.unit, 63);
        file[63 * UNIT_BYTES..65 * UNIT_BYTES].copy_from_slice(&bytes);
        assert_eq!(content.check(&file, 0), Ok(130));
        assert_eq!(content.check(&file[64 * UNIT_BYTES..66 * UNIT_BYTES], 64 * UNIT), Ok(2));

        let mut other = content.clone();
        other.rewrite(&mut file[129 * UNIT_BYTES..], 129 * UNIT);
        let stray = content.check(&file, 0).expect_err("nobody was asked to write it");
        assert_eq!(stray.unit, 129);
    }
}
