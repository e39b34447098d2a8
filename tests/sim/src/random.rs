//! The one source of chance.
//!
//! A simulation has one seed. Every part of it takes a stream of its own from that seed
//! ([`Random::stream`]), so that a part which draws once more does not change what the others see.
//! The generator is SplitMix64: its numbers never change with a version of a library, so a seed
//! written down in a test stays the same run.

use std::time::Duration;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

/// How often something happens, in parts of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// Not once.
    pub const NEVER: Chance = Chance(0);
    /// Each time.
    pub const ALWAYS: Chance = Chance(1_000_000);

    /// So many times in a hundred.
    ///
    /// # Panics
    /// Above 100.
    #[must_use]
    pub const fn percent(percent: u32) -> Chance {
        Chance::per_million(percent * 10_000)
    }

    /// So many times in a million.
    ///
    /// # Panics
    /// Above a million.
    #[must_use]
    pub const fn per_million(parts: u32) -> Chance {
        assert!(parts <= 1_000_000, "nothing happens more often than each time");
        Chance(parts)
    }
}

/// How long something takes: between `min` and `max`, and by `tail_chance` up to `tail_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Shortest.
    pub min: Duration,
    /// Longest of the usual ones.
    pub max: Duration,
    /// How often it takes unusually long.
    pub tail_chance: Chance,
    /// Longest of all.
    pub tail_max: Duration,
}

impl Delay {
    /// Between two values, without outliers.
    #[must_use]
    pub const fn between(min: Duration, max: Duration) -> Delay {
        Delay { min, max, tail_chance: Chance::NEVER, tail_max: max }
    }

    /// The same with outliers.
    #[must_use]
    pub const fn with_tail(self, tail_chance: Chance, tail_max: Duration) -> Delay {
        Delay { tail_chance, tail_max, ..self }
    }
}

impl Random {
    /// The stream of a whole simulation.
    #[must_use]
    pub fn seeded(seed: u64) -> Random {
        Random { state: mix(seed) }
    }

    /// A stream for the part called `label`. Depends on the seed and the label only, not on what
    /// was drawn before, as long as nothing was drawn from `self` itself.
    #[must_use]
    pub fn stream(&self, label: &str) -> Random {
        let mut state = self.state;
        for byte in label.bytes() {
            state = mix(state ^ u64::from(byte));
        }
        Random { state }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        // The high half of the product is as even as 64 bits allow.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `len`.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `min` to `max`, both included.
    ///
    /// # Panics
    /// If `min` is above `max`.
    pub fn between(&mut self, min: u64, max: u64) -> u64 {
        assert!(min <= max, "an empty range");
        min.saturating_add(self.below((max - min).saturating_add(1)))
    }

    /// Whether something happens this time.
    pub fn happens(&mut self, chance: Chance) -> bool {
        // Drawn in any case, so that a knob at 0 does not shift the numbers of the others.
        self.below(1_000_000) < u64::from(chance.0)
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// How long something takes this time.
    pub fn delay(&mut self, delay: Delay) -> Duration {
        let tail = self.happens(delay.tail_chance);
        let (min, max) =
            if tail { (delay.max, delay.tail_max.max(delay.max)) } else { (delay.min, delay.max) };
        Duration::from_nanos(self.between(nanos(min), nanos(max.max(min))))
    }

    /// Puts a list into any order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.index(last + 1));
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_numbers_for_ever() {
        let mut random = Random::seeded(7);
        let drawn = [random.bits(), random.bits(), random.below(1000)];
        assert_eq!(drawn, [9_672_475_392_221_035_855, 5_573_481_420_429_128_725, 940]);
    }

    #[test]
    fn streams_differ_and_do_not_disturb_each_other() {
        let root = Random::seeded(1);
        let (mut one, mut two) = (root.stream("one"), root.stream("two"));
        assert_ne!(one.bits(), two.bits());
        let mut again = root.stream("two");
        assert_eq!(again.bits(), root.stream("two").bits());
    }

    #[test]
    fn ranges_are_kept_and_exhausted() {
        let mut random = Random::seeded(2);
        let mut seen = [false; 6];
        for _ in 0..200 {
            seen[random.between(0, 5) as usize] = true;
        }
        assert_eq!(seen, [true; 6]);
        assert!(!random.happens(Chance::NEVER));
        assert!(random.happens(Chance::ALWAYS));
        let delay = Delay::between(Duration::from_nanos(5), Duration::from_nanos(9))
            .with_tail(Chance::percent(50), Duration::from_nanos(99));
        let drawn: Vec<u128> = (0..400).map(|_| random.delay(delay).as_nanos()).collect();
        assert!(drawn.iter().all(|nanos| (5..=99).contains(nanos)));
        assert!(drawn.iter().any(|nanos| *nanos > 9) && drawn.iter().any(|nanos| *nanos < 9));
    }

    #[test]
    fn shuffling_keeps_what_is_there() {
        let mut random = Random::seeded(3);
        let mut list: Vec<u32> = (0..50).collect();
        random.shuffle(&mut list);
        assert_ne!(list, (0..50).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..50).collect::<Vec<_>>());
    }
}
