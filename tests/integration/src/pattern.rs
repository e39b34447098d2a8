//! Bytes that tell where they belong.

/// Bytes of a granule: the unit in which the load generator knows what a file holds.
pub const GRANULE_BYTES: usize = 512;
const WORD_BYTES: usize = 8;
const WORDS: usize = GRANULE_BYTES / WORD_BYTES;

/// A well-mixed function of a number (the finaliser of splitmix64).
#[must_use]
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Fills with bytes that depend on `seed` and the position from `start` on.
pub fn fill(bytes: &mut [u8], seed: u64, start: u64) {
    let seed = mix(seed);
    for (index, word) in bytes.chunks_mut(WORD_BYTES).enumerate() {
        let value = mix(seed ^ (start + (index * WORD_BYTES) as u64)).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

/// Random numbers that a seed repeats.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence for this seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound
    }
}

/// Writes the granule that is number `granule` of file `file` in version `version`, which is not
/// 0: version 0 is a hole, all zeros.
///
/// # Panics
/// If `into` is no granule.
pub fn stamp(into: &mut [u8], file: u32, granule: u32, version: u32) {
    assert_eq!(into.len(), GRANULE_BYTES);
    for (word, value) in into.chunks_exact_mut(WORD_BYTES).zip(words(file, granule, version)) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The version of a granule.
///
/// # Errors
/// What is wrong if it is none of this place, or a mixture.
pub fn version(bytes: &[u8], file: u32, granule: u32) -> Result<u32, String> {
    let found = bytes.chunks_exact(WORD_BYTES).map(|word| {
        let mut value = [0; WORD_BYTES];
        value.copy_from_slice(word);
        u64::from_le_bytes(value)
    });
    let found: Vec<u64> = found.collect();
    if found.len() == WORDS && found.iter().all(|word| *word == 0) {
        return Ok(0);
    }
    let version = found.first().map_or(0, |first| *first as u32);
    if version != 0 && found.iter().copied().eq(words(file, granule, version)) {
        return Ok(version);
    }
    let at = found.iter().copied().zip(words(file, granule, version)).position(|(a, b)| a != b);
    let owner = found.get(1).copied().unwrap_or(0);
    Err(format!(
        "granule {granule} of file {file}: not its bytes from word {at:?} on; they begin as \
         version {version} of granule {} of file {}",
        owner as u32,
        owner >> 32
    ))
}

fn words(file: u32, granule: u32, version: u32) -> impl Iterator<Item = u64> {
    let place = u64::from(file) << 32 | u64::from(granule);
    let seed = mix(place) ^ u64::from(version);
    // The first two say who it is; the rest is a check of them over all of the granule.
    (0..WORDS as u64).map(move |index| match index {
        0 => u64::from(version),
        1 => place,
        _ => mix(seed.wrapping_add(index << 40)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_tell_their_version_and_nothing_else_passes() {
        let mut granule = [0; GRANULE_BYTES];
        assert_eq!(version(&granule, 1, 2), Ok(0));
        stamp(&mut granule, 1, 2, 7);
        assert_eq!(version(&granule, 1, 2), Ok(7));
        assert!(version(&granule, 1, 3).is_err());
        assert!(version(&granule, 2, 2).is_err());
        let mut other = granule;
        stamp(&mut other, 1, 2, 8);
        let mut mixed = granule;
        mixed[256..].copy_from_slice(&other[256..]);
        assert!(version(&mixed, 1, 2).is_err());
        granule[511] ^= 1;
        assert!(version(&granule, 1, 2).is_err());
    }

    #[test]
    fn bytes_depend_on_seed_and_place_only() {
        let (mut whole, mut part) = ([0; 100], [0; 36]);
        fill(&mut whole, 5, 4096);
        fill(&mut part, 5, 4096 + 64);
        assert_eq!(whole[64..], part);
        fill(&mut part, 6, 4096 + 64);
        assert_ne!(whole[64..], part);
    }
}
