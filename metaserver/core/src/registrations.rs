//! How data servers name the regions of one session's memory.
//!
//! Every read and write of a region asks here, so the registrations noted last lie in a small table
//! that is indexed directly; all of them are in a map behind it. The table holds nothing that the map
//! does not hold.

use gannet_proto::limits::{REGIONS_MAX, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::Register;
use gannet_proto::{Epoch, RegionId, TargetId};
use rustc_hash::FxHashMap;

/// Most registrations of a session: each region at each data server of a file's set.
const REGISTRATIONS_MAX: usize = REGIONS_MAX * TARGETS_PER_FILE_MAX;
/// Places of the table: a region at all data servers of a file's set has one for each.
const PLACES: usize = TARGETS_PER_FILE_MAX;

/// How a data server names a region of a host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub epoch: Epoch,
    pub address: u64,
    pub length: u64,
    pub key: u32,
}

/// A region at a data server.
type Key = (u32, TargetId);

/// All registrations of a session.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    recent: [Option<(Key, Registration)>; PLACES],
    all: FxHashMap<Key, Registration>,
}

/// Where a registration lies in the table if it lies there.
fn place((region, target): Key) -> usize {
    // Neighbouring data servers differ, and so do neighbouring regions.
    (region.wrapping_mul(5).wrapping_add(target.0)) as usize % PLACES
}

impl Registrations {
    /// The registration of a region at a data server.
    #[inline(always)]
    pub(crate) fn find(&self, region: u32, target: TargetId) -> Option<&Registration> {
        let key = (region, target);
        match &self.recent[place(key)] {
            Some((known, registration)) if *known == key => Some(registration),
            _ => self.all.get(&key),
        }
    }

    /// Notes how a data server names a region. `false` if there are too many.
    pub(crate) fn note(&mut self, register: &Register) -> bool {
        let key = (register.region.get(), TargetId(register.target.get()));
        if self.all.len() >= REGISTRATIONS_MAX && !self.all.contains_key(&key) {
            return false;
        }
        let registration = Registration {
            epoch: Epoch(register.epoch.get()),
            address: register.address.get(),
            length: register.length.get(),
            key: register.key.get(),
        };
        let known = self.all.entry(key).or_insert(registration);
        // Messages of an older life of the data session may still be on their way.
        if known.epoch <= registration.epoch {
            *known = registration;
        }
        self.recent[place(key)] = Some((key, *known));
        true
    }

    /// Forgets a region at all data servers.
    pub(crate) fn forget(&mut self, region: RegionId) {
        self.all.retain(|(known, _), _| *known != region.0);
        for place in &mut self.recent {
            if place.is_some_and(|((known, _), _)| known == region.0) {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use zerocopy::little_endian::{U32, U64};

    use super::*;

    proptest! {
        #[test]
        fn registrations_agree_with_a_map(
            steps in prop::collection::vec((0..40u32, 1..20u32, 0..4u64, 0..8u8), 1..300)
        ) {
            let (mut known, mut oracle) = (Registrations::default(), BTreeMap::new());
            for (step, (region, target, epoch, what)) in steps.into_iter().enumerate() {
                if what == 0 {
                    known.forget(RegionId(region));
                    oracle.retain(|(other, _), _| *other != region);
                } else {
                    let register = Register {
                        region: U32::new(region),
                        target: U32::new(target),
                        epoch: U64::new(epoch),
                        address: U64::new(step as u64),
                        ..Register::default()
                    };
                    prop_assert!(known.note(&register));
                    let newest = oracle.entry((region, target)).or_insert((epoch, step as u64));
                    if newest.0 <= epoch {
                        *newest = (epoch, step as u64);
                    }
                }
                for (region, target) in (0..40).flat_map(|r| (1..20).map(move |t| (r, t))) {
                    let found = known.find(region, TargetId(target));
                    let found = found.map(|found| (found.epoch.0, found.address));
                    prop_assert_eq!(found, oracle.get(&(region, target)).copied());
                }
            }
        }
    }
}
