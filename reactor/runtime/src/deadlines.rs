//! Timers of one reactor: a bounded set of (time, token) from which the earliest is taken first.
//!
//! A binary heap of slot indices whose slots know their place in the heap, so that a cancelled
//! deadline leaves at once: requests that set a distant time-out and finish early leave nothing
//! behind, and the capacity bounds what is *set*, however long ago the rest was cancelled. All
//! memory is allocated at start. Equal times come out in order of token, so a run is repeatable.

use crate::time::Time;

/// Names a deadline that was set, for [`Deadlines::cancel`]. A name whose deadline was taken or
/// cancelled matches no other deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeadlineId {
    slot: u32,
    generation: u32,
}

/// As many deadlines are set as the set was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} deadlines are in use; make the set for as many as can be outstanding")]
pub struct Full {
    /// How many deadlines the set was made for.
    pub capacity: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    time: Time,
    token: u64,
    generation: u32,
    /// Place in the heap while set, otherwise the next free slot (or `NONE`).
    place: u32,
}

const NONE: u32 = u32::MAX;

/// A bounded set of deadlines.
#[derive(Debug)]
pub struct Deadlines {
    slots: Vec<Slot>,
    heap: Vec<u32>,
    first_free: u32,
    capacity: usize,
}

impl Deadlines {
    /// Makes a set for up to `capacity` deadlines.
    ///
    /// # Panics
    /// If `capacity` is not below 2^32 - 1.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Deadlines {
        assert!(capacity < NONE as usize, "{capacity} deadlines do not fit their index");
        Deadlines {
            slots: Vec::with_capacity(capacity),
            heap: Vec::with_capacity(capacity),
            first_free: NONE,
            capacity,
        }
    }

    /// Sets a deadline: `token` is handed out by [`Deadlines::pop_due`] from `time` on.
    ///
    /// # Errors
    /// [`Full`] if the capacity is in use.
    pub fn insert(&mut self, time: Time, token: u64) -> Result<DeadlineId, Full> {
        if self.heap.len() == self.capacity {
            return Err(Full { capacity: self.capacity });
        }
        let place = self.heap.len() as u32;
        let index = if self.first_free == NONE {
            self.slots.push(Slot { time, token, generation: 0, place });
            self.slots.len() as u32 - 1
        } else {
            let index = self.first_free;
            let slot = &mut self.slots[index as usize];
            self.first_free = slot.place;
            *slot = Slot { time, token, generation: slot.generation, place };
            index
        };
        self.heap.push(index);
        self.sift_up(place as usize);
        Ok(DeadlineId { slot: index, generation: self.slots[index as usize].generation })
    }

    /// Cancels a deadline. False if it was taken or cancelled before.
    pub fn cancel(&mut self, id: DeadlineId) -> bool {
        match self.slots.get(id.slot as usize) {
            Some(slot) if slot.generation == id.generation && self.is_set(id.slot) => {
                self.remove(slot.place as usize);
                true
            }
            _ => false,
        }
    }

    /// Takes the earliest deadline if it is due, and returns its token.
    pub fn pop_due(&mut self, now: Time) -> Option<u64> {
        let slot = &self.slots[*self.heap.first()? as usize];
        let token = slot.token;
        if slot.time > now {
            return None;
        }
        self.remove(0);
        Some(token)
    }

    /// When the earliest deadline is due, [`Time::NEVER`] if none is set.
    #[must_use]
    pub fn next(&self) -> Time {
        self.heap.first().map_or(Time::NEVER, |index| self.slots[*index as usize].time)
    }

    /// How many deadlines are set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no deadline is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// How many deadlines can be set.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether a slot is in the heap: a free slot's `place` names a slot, which need not point back.
    fn is_set(&self, index: u32) -> bool {
        let place = self.slots[index as usize].place as usize;
        self.heap.get(place) == Some(&index)
    }

    fn remove(&mut self, place: usize) {
        let index = self.heap.swap_remove(place);
        if let Some(moved) = self.heap.get(place) {
            self.slots[*moved as usize].place = place as u32;
            self.sift_down(place);
            self.sift_up(place);
        }
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.place = self.first_free;
        self.first_free = index;
    }

    fn sift_up(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.key(parent) <= self.key(place) {
                return;
            }
            self.exchange(parent, place);
            place = parent;
        }
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let right_is_earlier = right < self.heap.len() && self.key(right) < self.key(left);
            let child = if right_is_earlier { right } else { left };
            if self.key(place) <= self.key(child) {
                return;
            }
            self.exchange(place, child);
            place = child;
        }
    }

    fn key(&self, place: usize) -> (Time, u64) {
        let slot = &self.slots[self.heap[place] as usize];
        (slot.time, slot.token)
    }

    fn exchange(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        for place in [one, other] {
            self.slots[self.heap[place] as usize].place = place as u32;
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_set_refuses_and_a_cancelled_deadline_makes_room() {
        let mut deadlines = Deadlines::with_capacity(2);
        assert_eq!(deadlines.next(), Time::NEVER);
        let late = deadlines.insert(Time(20), 2).unwrap();
        deadlines.insert(Time(10), 1).unwrap();
        assert_eq!(deadlines.insert(Time(5), 0), Err(Full { capacity: 2 }));
        assert!(deadlines.cancel(late));
        assert!(!deadlines.cancel(late), "cancelled twice");
        let reused = deadlines.insert(Time(5), 0).unwrap();
        assert!(!deadlines.cancel(late), "the old name matches the slot's next deadline");
        assert_eq!(deadlines.next(), Time(5));
        assert_eq!(deadlines.pop_due(Time(4)), None);
        assert_eq!(deadlines.pop_due(Time(5)), Some(0));
        assert!(!deadlines.cancel(reused), "already taken");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { time: u64, token: u64 },
        Cancel { which: usize },
        Pop { now: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..50u64, 0..8u64).prop_map(|(time, token)| Step::Insert { time, token }),
            2 => (0..200usize).prop_map(|which| Step::Cancel { which }),
            2 => (0..50u64).prop_map(|now| Step::Pop { now }),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(steps in steps(), capacity in 0..20usize) {
            let mut deadlines = Deadlines::with_capacity(capacity);
            // By (time, token, number of insertion); every name ever given stays in `names`.
            let mut oracle: BTreeMap<(u64, u64, usize), ()> = BTreeMap::new();
            let mut names: Vec<(DeadlineId, (u64, u64, usize))> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert { time, token } => {
                        let key = (time, token, names.len());
                        match deadlines.insert(Time(time), token) {
                            Ok(id) => {
                                oracle.insert(key, ());
                                names.push((id, key));
                            }
                            Err(_full) => prop_assert_eq!(oracle.len(), capacity),
                        }
                    }
                    Step::Cancel { which } => if let Some((id, key)) = names.get(which) {
                        // Of equal keys either may have been taken, so names of duplicates are
                        // exempt from the comparison, not from being cancelled.
                        let twins = names.iter().filter(|(_, k)| (k.0, k.1) == (key.0, key.1));
                        if twins.count() == 1 {
                            prop_assert_eq!(deadlines.cancel(*id), oracle.remove(key).is_some());
                        }
                    }
                    Step::Pop { now } => {
                        let due = oracle.keys().next().filter(|key| key.0 <= now).copied();
                        if let Some(key) = due {
                            oracle.remove(&key);
                        }
                        prop_assert_eq!(deadlines.pop_due(Time(now)), due.map(|key| key.1));
                    }
                }
                let next = oracle.keys().next().map_or(Time::NEVER, |key| Time(key.0));
                prop_assert_eq!(deadlines.next(), next);
                prop_assert_eq!(deadlines.len(), oracle.len());
            }
            while let Some(token) = deadlines.pop_due(Time::NEVER) {
                let key = *oracle.keys().next().unwrap();
                oracle.remove(&key);
                prop_assert_eq!(token, key.1);
            }
            prop_assert!(oracle.is_empty());
        }
    }
}
