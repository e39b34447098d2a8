//! What will happen when: the seam between virtual time and the simulated devices.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use gannet_runtime::time::Time;

/// A part of the simulated machine that does things by itself as time passes: a network, a disk.
pub trait Device {
    /// When the device next does something; `Time::NEVER` if never.
    fn next_event(&self) -> Time;

    /// Moves the device's time to `now` and does everything that is due.
    fn advance(&self, now: Time);
}

struct Entry<T> {
    at: Time,
    sequence: u64,
    item: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Entry<T>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Entry<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Entry<T>) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Things to do, by time; things of one time in the order of their entry.
pub struct Agenda<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    sequence: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Agenda<T> {
        Agenda { heap: BinaryHeap::new(), sequence: 0 }
    }
}

impl<T> Agenda<T> {
    /// Enters a thing to do.
    pub fn add(&mut self, at: Time, item: T) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { at, sequence: self.sequence, item }));
    }

    /// The time of the first thing; `Time::NEVER` if there is none.
    #[must_use]
    pub fn next(&self) -> Time {
        self.heap.peek().map_or(Time::NEVER, |Reverse(entry)| entry.at)
    }

    /// Takes the first thing if its time has come.
    pub fn take_due(&mut self, now: Time) -> Option<T> {
        if self.next() > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_come_by_time_and_then_by_entry() {
        let mut agenda = Agenda::default();
        for (at, item) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b'), (9, 'e')] {
            agenda.add(Time(at), item);
        }
        let due: Vec<char> = std::iter::from_fn(|| agenda.take_due(Time(5))).collect();
        assert_eq!(due, ['a', 'b', 'c', 'd']);
        assert_eq!(agenda.next(), Time(9));
        assert_eq!(agenda.take_due(Time(8)), None);
    }
}
