//! The names that a run uses: all of one length, so that every record of one kind has one, too.

use crate::random::Random;

/// Bytes of a file's name.
pub(crate) const NAME_BYTES: usize = 8;
/// Most files that the names tell apart.
pub(crate) const FILES_MAX: u32 = 9_999_999;

/// A file's name before or after it was renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// As it was made.
    Made,
    /// As it was renamed.
    Renamed,
}

impl Naming {
    /// The name of a file, without a formatter: it is made once per request.
    pub(crate) fn name(self, file: u32) -> [u8; NAME_BYTES] {
        let mut name = [0; NAME_BYTES];
        name[0] = match self {
            Naming::Made => b'f',
            Naming::Renamed => b'r',
        };
        let mut rest = file;
        for digit in name[1..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        name
    }
}

/// Files spread over directories, in turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) files: u32,
    pub(crate) directories: u32,
}

impl Spread {
    /// The directory of a file.
    pub(crate) fn directory_of(self, file: u32) -> u32 {
        file % self.directories
    }

    /// How many files a directory has.
    pub(crate) fn files_in(self, directory: u32) -> u32 {
        self.files / self.directories + u32::from(directory < self.files % self.directories)
    }
}

/// Which file or directory comes next.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Each of `count` once.
    Once { next: u32, count: u32 },
    /// One after the other, from the start again at the end.
    InTurn { next: u32, count: u32 },
    /// Any, again and again.
    AtRandom { random: Random, count: u32 },
    /// None any more; so many were given out one after the other.
    Ended { given: u32 },
}

impl Order {
    /// The next one; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<u32> {
        match self {
            Order::Once { next, count } => {
                let this = *next;
                *next += u32::from(this < *count);
                (this < *count).then_some(this)
            }
            Order::InTurn { next, count } => {
                let after = if *next + 1 < *count { *next + 1 } else { 0 };
                Some(std::mem::replace(next, after))
            }
            Order::AtRandom { random, count } => Some(random.below(u64::from(*count)) as u32),
            Order::Ended { .. } => None,
        }
    }

    /// Gives out nothing more.
    pub(crate) fn end(&mut self) {
        *self = Order::Ended { given: self.given() };
    }

    /// Of an order that gives out each once: how many it has given.
    pub(crate) fn given(&self) -> u32 {
        match self {
            Order::Once { next, .. } | Order::Ended { given: next } => *next,
            Order::InTurn { .. } | Order::AtRandom { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_length_and_are_told_apart() {
        assert_eq!(&Naming::Made.name(0), b"f0000000");
        assert_eq!(&Naming::Renamed.name(42), b"r0000042");
        assert_eq!(&Naming::Made.name(FILES_MAX), b"f9999999");
    }

    #[test]
    fn every_file_is_in_the_directory_that_counts_it() {
        let spread = Spread { files: 23, directories: 5 };
        for directory in 0..5 {
            let inside = (0..23).filter(|file| spread.directory_of(*file) == directory).count();
            assert_eq!(inside as u32, spread.files_in(directory));
        }
    }

    #[test]
    fn orders_end_repeat_or_jump() {
        let taken = |mut order: Order, most: usize| -> Vec<u32> {
            std::iter::from_fn(|| order.next()).take(most).collect()
        };
        assert_eq!(taken(Order::Once { next: 0, count: 3 }, 9), [0, 1, 2]);
        assert_eq!(taken(Order::InTurn { next: 0, count: 2 }, 5), [0, 1, 0, 1, 0]);
        let random = Random::new(5);
        let mut seen = taken(Order::AtRandom { random, count: 4 }, 100);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3]);
        let mut order = Order::Once { next: 4, count: 9 };
        assert_eq!((order.next(), order.next(), order.given()), (Some(4), Some(5), 6));
        order.end();
        assert_eq!((order.next(), order.given()), (None, 6));
    }
}
