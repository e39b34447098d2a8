//! Slots of the session at each shard: which are free, and which request has which.
//!
//! A slot is taken for a request and counts its sequence up by one. It is released when the server
//! has answered, and *parked* when the host gave the request up before: then nothing may follow on
//! the slot until it is known that the server has finished with the last sequence. No late answer
//! can be relied upon for that: it may have come before, or a data session that has broken was to
//! bring it. So a parked slot is *probed*, and once more whenever the channel was resumed: a
//! harmless query is sent as the next attempt of the same sequence. Whatever the server knows of
//! that sequence (nothing, under way, answered), it answers the probe and stands at the sequence
//! afterwards. Until the probe is sent a late answer frees the slot too.

use gannet_proto::Handle;
use gannet_proto::limits::{SHARDS, SLOTS_MAX};

/// A request's place at a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) shard: u16,
    pub(crate) slot: u16,
    pub(crate) sequence: u64,
}

/// Who has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody.
    Free,
    /// The request at this index.
    Request(u32),
    /// A request that was given up.
    Parked,
}

/// What is known of a request that was given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    pub(crate) place: Place,
    pub(crate) attempt: u32,
    /// An inode of the shard; `None` for a slot that the server disowned, which stays parked until
    /// the session is new.
    pub(crate) handle: Option<Handle>,
    /// Whether data servers answer the request rather than the metadata server.
    pub(crate) answered_by_targets: bool,
}

#[derive(Debug, Default)]
struct Shard {
    sequences: Vec<u64>,
    owners: Vec<Owner>,
    free: Vec<u16>,
    parked: Vec<Parked>,
    /// Slots among the parked ones that are to be probed.
    unprobed: Vec<u16>,
}

/// The slots of all shards.
#[derive(Debug)]
pub(crate) struct Slots {
    shards: Vec<Shard>,
}

impl Slots {
    pub(crate) fn new() -> Slots {
        Slots { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }

    /// Makes `slots` fresh slots at a shard whose session is new. Requests have no places there any
    /// more. Also gives a shard its first slots.
    pub(crate) fn reset(&mut self, shard: u16, slots: u16) {
        let count = usize::from(slots).clamp(1, SLOTS_MAX);
        let Some(table) = self.shards.get_mut(usize::from(shard)) else { return };
        table.sequences.clear();
        table.sequences.resize(count, 0);
        table.owners.clear();
        table.owners.resize(count, Owner::Free);
        table.free.clear();
        table.free.extend((0..count as u16).rev());
        table.parked.clear();
        table.parked.reserve(count);
        table.unprobed.clear();
        table.unprobed.reserve(count);
    }

    pub(crate) fn is_known(&self, shard: u16) -> bool {
        self.shards.get(usize::from(shard)).is_some_and(|table| !table.sequences.is_empty())
    }

    pub(crate) fn has_free(&self, shard: u16) -> bool {
        self.shards.get(usize::from(shard)).is_some_and(|table| !table.free.is_empty())
    }

    /// Takes a free slot for a request.
    pub(crate) fn acquire(&mut self, shard: u16, request: u32) -> Option<Place> {
        let table = self.shards.get_mut(usize::from(shard))?;
        let slot = table.free.pop()?;
        table.owners[usize::from(slot)] = Owner::Request(request);
        let sequence = &mut table.sequences[usize::from(slot)];
        *sequence += 1;
        Some(Place { shard, slot, sequence: *sequence })
    }

    /// Gives a slot back whose request the server has answered.
    pub(crate) fn release(&mut self, place: Place) {
        let Some(table) = self.shards.get_mut(usize::from(place.shard)) else { return };
        debug_assert!(matches!(table.owners[usize::from(place.slot)], Owner::Request(_)));
        table.owners[usize::from(place.slot)] = Owner::Free;
        table.free.push(place.slot);
    }

    /// Sets a slot aside whose request is given up.
    pub(crate) fn park(&mut self, parked: Parked) {
        let Some(table) = self.shards.get_mut(usize::from(parked.place.shard)) else { return };
        table.owners[usize::from(parked.place.slot)] = Owner::Parked;
        if parked.handle.is_some() {
            table.unprobed.push(parked.place.slot);
        }
        table.parked.push(parked);
    }

    /// Who has the slot at this sequence.
    #[inline]
    pub(crate) fn owner(&self, shard: u16, slot: u16, sequence: u64) -> Owner {
        let Some(table) = self.shards.get(usize::from(shard)) else { return Owner::Free };
        match table.sequences.get(usize::from(slot)) {
            Some(current) if *current == sequence => table.owners[usize::from(slot)],
            _ => Owner::Free,
        }
    }

    /// Notes an answer to a parked slot's request or probe; true if the slot is free now.
    pub(crate) fn answered(&mut self, place: Place, attempt: u32, by_target: bool) -> bool {
        let Some(table) = self.shards.get_mut(usize::from(place.shard)) else { return false };
        let found = table.parked.iter().position(|parked| {
            parked.place == place
                && parked.attempt == attempt
                && parked.handle.is_some()
                && (parked.answered_by_targets || !by_target)
        });
        let Some(found) = found else { return false };
        table.parked.swap_remove(found);
        table.unprobed.retain(|slot| *slot != place.slot);
        table.owners[usize::from(place.slot)] = Owner::Free;
        table.free.push(place.slot);
        true
    }

    /// What was sent to the shard may have been lost: all its parked slots are probed again.
    pub(crate) fn forget_probes(&mut self, shard: u16) {
        let Some(table) = self.shards.get_mut(usize::from(shard)) else { return };
        table.unprobed.clear();
        let parked = table.parked.iter().filter(|parked| parked.handle.is_some());
        table.unprobed.extend(parked.map(|parked| parked.place.slot));
    }

    /// Calls `probe` with each parked slot of a shard that is to be probed, each as its next
    /// attempt, until it returns false: that one is to be probed still, and so are those behind it.
    pub(crate) fn probe(&mut self, shard: u16, mut probe: impl FnMut(Place, u32, Handle) -> bool) {
        let Some(table) = self.shards.get_mut(usize::from(shard)) else { return };
        while let Some(slot) = table.unprobed.last() {
            let found = table.parked.iter_mut().find(|parked| parked.place.slot == *slot);
            if let Some((parked, handle)) = found.and_then(|p| p.handle.map(|handle| (p, handle))) {
                let attempt = parked.attempt.saturating_add(1);
                if !probe(parked.place, attempt, handle) {
                    return;
                }
                parked.attempt = attempt;
                parked.answered_by_targets = false;
            }
            table.unprobed.pop();
        }
    }

    /// Whether a parked slot of the shard is to be probed.
    pub(crate) fn has_unprobed(&self, shard: u16) -> bool {
        self.shards.get(usize::from(shard)).is_some_and(|table| !table.unprobed.is_empty())
    }

    /// Whether every slot of the shard is parked without a probe that could bring it back: none will
    /// be free before the session is new. The others come back with the answers to their probes, as
    /// those in use come back with theirs.
    pub(crate) fn all_lost(&self, shard: u16) -> bool {
        self.shards.get(usize::from(shard)).is_some_and(|table| {
            !table.sequences.is_empty()
                && table.parked.len() == table.sequences.len()
                && table.parked.iter().all(|parked| parked.handle.is_none())
        })
    }

    pub(crate) fn parked(&self) -> usize {
        self.shards.iter().map(|table| table.parked.len()).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parked(place: Place, attempt: u32) -> Parked {
        Parked { place, attempt, handle: Some(Handle::default()), answered_by_targets: true }
    }

    #[test]
    fn slots_count_sequences_and_run_out() {
        let mut slots = Slots::new();
        assert_eq!(slots.acquire(5, 1), None, "no slots before the welcome");
        slots.reset(5, 2);
        let first = slots.acquire(5, 10).unwrap();
        let second = slots.acquire(5, 11).unwrap();
        assert_eq!((first.slot, first.sequence, second.slot), (0, 1, 1));
        assert_eq!(slots.acquire(5, 12), None);
        assert_eq!(slots.owner(5, 1, 1), Owner::Request(11));
        assert_eq!(slots.owner(5, 1, 2), Owner::Free, "another sequence");
        assert_eq!(slots.owner(77, 0, 1), Owner::Free);
        assert_eq!(slots.owner(5, 9, 1), Owner::Free);
        slots.release(first);
        assert_eq!(slots.acquire(5, 13).unwrap().sequence, 2);
    }

    #[test]
    fn parked_slots_come_back_by_an_answer_to_the_right_attempt() {
        let mut slots = Slots::new();
        slots.reset(0, 1);
        let place = slots.acquire(0, 1).unwrap();
        slots.park(parked(place, 3));
        assert!(!slots.all_lost(0) && !slots.has_free(0), "its probe will be answered");
        assert!(!slots.answered(place, 2, false), "an older attempt says nothing");
        let mut probes = Vec::new();
        slots.probe(0, |_, _, _| false);
        assert!(slots.has_unprobed(0), "there was no room for it");
        let mut send = |place, attempt, _| {
            probes.push((place, attempt));
            true
        };
        slots.probe(0, &mut send);
        slots.probe(0, &mut send);
        slots.forget_probes(0);
        slots.probe(0, &mut send);
        assert_eq!(probes, [(place, 4), (place, 5)], "once, and once more when it may be lost");
        assert!(!slots.has_unprobed(0));
        assert!(!slots.answered(place, 3, false), "superseded by the probe");
        assert!(!slots.answered(place, 5, true), "data servers do not answer probes");
        assert!(slots.answered(place, 5, false));
        assert_eq!(slots.acquire(0, 1).unwrap().sequence, 2);
    }

    #[test]
    fn an_answer_spares_the_probe() {
        let mut slots = Slots::new();
        slots.reset(0, 1);
        let place = slots.acquire(0, 1).unwrap();
        slots.park(parked(place, 3));
        assert!(slots.answered(place, 3, true) && !slots.has_unprobed(0));
        slots.probe(0, |_, _, _| panic!("nothing to probe"));
    }

    #[test]
    fn disowned_slots_stay_parked_until_the_session_is_new() {
        let mut slots = Slots::new();
        slots.reset(0, 1);
        let place = slots.acquire(0, 1).unwrap();
        slots.park(Parked { handle: None, ..parked(place, 1) });
        slots.forget_probes(0);
        slots.probe(0, |_, _, _| panic!("nothing to probe with"));
        assert!(!slots.answered(place, 1, false));
        assert_eq!(slots.parked(), 1);
        assert!(slots.all_lost(0));
        slots.reset(0, 1);
        assert_eq!(slots.acquire(0, 1).unwrap().sequence, 1);
        assert_eq!(slots.parked(), 0);
        assert!(!slots.all_lost(0));
    }

    #[test]
    fn one_slot_that_will_come_back_is_enough() {
        let mut slots = Slots::new();
        slots.reset(0, 2);
        let (first, second) = (slots.acquire(0, 1).unwrap(), slots.acquire(0, 2).unwrap());
        slots.park(Parked { handle: None, ..parked(first, 1) });
        assert!(!slots.all_lost(0), "the other one is in use");
        slots.park(parked(second, 1));
        assert!(!slots.all_lost(0), "the other one is probed");
        assert!(slots.answered(second, 1, false));
        let second = slots.acquire(0, 2).unwrap();
        slots.park(Parked { handle: None, ..parked(second, 1) });
        assert!(slots.all_lost(0));
    }
}
