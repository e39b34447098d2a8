//! Memory regions: which data server can reach which, and which reactor was told how.
//!
//! A region is registered with a data server's connection when a request first needs it there, and
//! each reactor is told address and key once per data session. When a connection ends, everything
//! that hung on it is forgotten here, so a request that needs it waits until it is there again.

use std::sync::Arc;

use gannet_fabric::arena::{HostBuffer, RegionId};
use gannet_fabric::{Key, Registration};
use gannet_proto::limits::REGIONS_MAX;
use gannet_runtime::memory::Mapping;
use rustc_hash::FxHashMap;

use crate::error::ErrorKind;

/// How far a region's registration with a data server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Not registered.
    #[default]
    None,
    /// The fabric is at it.
    Pending(Registration),
    /// The data server can use it.
    Usable(Registration),
}

/// A region.
#[derive(Debug)]
pub(crate) struct Region {
    id: RegionId,
    /// How requests name it. Counted up by the client, so that it never comes back.
    pub(crate) number: u32,
    pub(crate) memory: Arc<Mapping>,
    reach: Vec<Reach>,
    /// By reactor: the data servers about which it was told.
    told: Vec<u64>,
    /// What access was ever given.
    pub(crate) was_given: Given,
}

/// The kinds of access to a region that data servers ever had, so that they may have it yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// The end of the data session takes it away.
    pub(crate) revocable: bool,
    /// It outlives the data session: only other pages in the memory's place take it away.
    pub(crate) lasting: bool,
}

impl Given {
    /// Whether there was any.
    pub(crate) fn any(self) -> bool {
        self.revocable || self.lasting
    }
}

/// A region that nobody will use again and that reactors should forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) number: u32,
    pub(crate) reactor: u16,
}

/// All regions of the client's buffers.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    by_id: FxHashMap<RegionId, u32>,
    table: Vec<Option<Region>>,
    free: Vec<u32>,
    next_number: u32,
    /// Reactors that still have to be told to forget.
    pub(crate) forgotten: Vec<Forgotten>,
}

impl Regions {
    /// The index of the region that a buffer lies in, a new one if need be.
    #[inline]
    pub(crate) fn of(&mut self, buffer: &HostBuffer) -> Result<u32, ErrorKind> {
        let id = buffer.region();
        let index = match self.by_id.get(&id) {
            Some(index) => *index,
            None => self.insert(id, buffer)?,
        };
        let base = self.get(index).memory.base().addr();
        let expected = base.wrapping_add(buffer.region_offset() as usize);
        if expected == buffer.as_ptr().addr() {
            Ok(index)
        } else {
            Err(ErrorKind::Memory("the arenas of a client must share their region ids"))
        }
    }

    fn insert(&mut self, id: RegionId, buffer: &HostBuffer) -> Result<u32, ErrorKind> {
        if self.by_id.len() == REGIONS_MAX {
            return Err(ErrorKind::Memory("the client's buffers lie in too many regions"));
        }
        let region = Region {
            id,
            number: self.next_number,
            memory: buffer.memory(),
            reach: Vec::new(),
            told: Vec::new(),
            was_given: Given::default(),
        };
        self.next_number = self.next_number.wrapping_add(1);
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.table.push(None);
                self.table.len() as u32 - 1
            }
        };
        self.table[index as usize] = Some(region);
        self.by_id.insert(id, index);
        Ok(index)
    }

    /// The region of a buffer if a request used it before.
    pub(crate) fn find(&self, id: RegionId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// A region by an index that `of` or `find` returned and that was not removed since.
    pub(crate) fn get(&self, index: u32) -> &Region {
        self.table[index as usize].as_ref().expect("an index of a live region")
    }

    fn get_mut(&mut self, index: u32) -> &mut Region {
        self.table[index as usize].as_mut().expect("an index of a live region")
    }

    /// The data servers about which a reactor was told.
    #[inline]
    pub(crate) fn told(&self, index: u32, reactor: u16) -> u64 {
        self.get(index).told.get(usize::from(reactor)).copied().unwrap_or(0)
    }

    pub(crate) fn reach(&self, index: u32, target: u8) -> Reach {
        self.get(index).reach.get(usize::from(target)).copied().unwrap_or_default()
    }

    /// The data servers at which the region is registered, or about to be.
    pub(crate) fn exposed(&self, index: u32) -> u64 {
        let reach = self.get(index).reach.iter().enumerate();
        reach.fold(0, |mask, (target, reach)| mask | (u64::from(*reach != Reach::None) << target))
    }

    /// The fabric began to register the region, with access that outlives the data session or not.
    pub(crate) fn pending(
        &mut self,
        index: u32,
        target: u8,
        registration: Registration,
        lasting: bool,
    ) {
        let region = self.get_mut(index);
        let target = usize::from(target);
        if region.reach.len() <= target {
            region.reach.resize(target + 1, Reach::None);
        }
        region.reach[target] = Reach::Pending(registration);
        region.was_given.lasting |= lasting;
        region.was_given.revocable |= !lasting;
    }

    /// The fabric has registered what has this key; false if nothing waits for it.
    pub(crate) fn usable(&mut self, target: u8, key: Key) -> bool {
        for region in self.table.iter_mut().flatten() {
            if let Some(reach) = region.reach.get_mut(usize::from(target))
                && let Reach::Pending(registration) = *reach
                && registration.key == key
            {
                *reach = Reach::Usable(registration);
                return true;
            }
        }
        false
    }

    /// A reactor was told.
    pub(crate) fn tell(&mut self, index: u32, reactor: u16, target: u8) {
        let region = self.get_mut(index);
        let reactor = usize::from(reactor);
        if region.told.len() <= reactor {
            region.told.resize(reactor + 1, 0);
        }
        region.told[reactor] |= 1 << target;
    }

    /// A reactor turned out not to know what it was told.
    pub(crate) fn untell(&mut self, index: u32, reactor: u16, targets: u64) {
        if let Some(told) = self.get_mut(index).told.get_mut(usize::from(reactor)) {
            *told &= !targets;
        }
    }

    /// The data session is gone, and all registrations on it.
    pub(crate) fn target_lost(&mut self, target: u8) {
        for region in self.table.iter_mut().flatten() {
            if let Some(reach) = region.reach.get_mut(usize::from(target)) {
                *reach = Reach::None;
            }
            for told in &mut region.told {
                *told &= !(1 << target);
            }
        }
    }

    /// The channel is gone; on the next one everything is told anew.
    pub(crate) fn reactor_lost(&mut self, reactor: u16) {
        for region in self.table.iter_mut().flatten() {
            if let Some(told) = region.told.get_mut(usize::from(reactor)) {
                *told = 0;
            }
        }
    }

    /// Gives a region another number. A request that a reactor holds back knows the former one,
    /// so it does not find what the region is registered as from now on.
    pub(crate) fn renumber(&mut self, index: u32) {
        let fresh = self.next_number;
        self.next_number = fresh.wrapping_add(1);
        let region = self.get_mut(index);
        let number = std::mem::replace(&mut region.number, fresh);
        let told = std::mem::take(&mut region.told);
        let reactors = told.iter().enumerate().filter(|(_, told)| **told != 0);
        self.forgotten
            .extend(reactors.map(|(reactor, _)| Forgotten { number, reactor: reactor as u16 }));
    }

    /// Takes a region out that no buffer lies in any more. Returns the registrations to take back;
    /// the reactors to be told are in `forgotten`.
    pub(crate) fn remove(&mut self, id: RegionId) -> Vec<(u8, Key)> {
        let Some(index) = self.by_id.remove(&id) else { return Vec::new() };
        let Some(region) = self.table[index as usize].take() else { return Vec::new() };
        debug_assert_eq!(region.id, id);
        self.free.push(index);
        let number = region.number;
        for (reactor, told) in region.told.iter().enumerate() {
            if *told != 0 {
                self.forgotten.push(Forgotten { number, reactor: reactor as u16 });
            }
        }
        let registered = region.reach.iter().enumerate();
        registered
            .filter_map(|(target, reach)| match reach {
                Reach::None => None,
                Reach::Pending(registration) | Reach::Usable(registration) => {
                    Some((target as u8, registration.key))
                }
            })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_fabric::arena::{Arena, RegionIds};

    use super::*;

    fn registration(key: u32) -> Registration {
        Registration { address: 4096, key: Key(key) }
    }

    #[test]
    fn what_was_told_is_forgotten_with_its_connection() {
        let arena = Arena::new(&RegionIds::new(), 4096, 2).unwrap();
        let (first, second) = (arena.take().unwrap(), arena.take().unwrap());
        let mut regions = Regions::default();
        let index = regions.of(&first).unwrap();
        assert_eq!(regions.of(&second).unwrap(), index, "one arena, one region");
        assert_eq!((regions.told(index, 1), regions.exposed(index)), (0, 0));
        regions.pending(index, 2, registration(5), true);
        assert!(!regions.usable(1, Key(5)) && !regions.usable(2, Key(6)));
        assert!(regions.usable(2, Key(5)));
        assert_eq!(regions.reach(index, 2), Reach::Usable(registration(5)));
        regions.tell(index, 1, 2);
        regions.tell(index, 0, 2);
        assert_eq!((regions.told(index, 1), regions.exposed(index)), (4, 4));
        regions.reactor_lost(1);
        assert_eq!((regions.told(index, 1), regions.told(index, 0)), (0, 4));
        regions.target_lost(2);
        assert_eq!((regions.told(index, 0), regions.exposed(index)), (0, 0));
        assert_eq!(regions.get(index).was_given, Given { lasting: true, revocable: false });
        regions.pending(index, 3, registration(6), false);
        assert_eq!(regions.get(index).was_given, Given { lasting: true, revocable: true });
    }

    #[test]
    fn a_renumbered_region_is_unknown_to_reactors_but_not_to_data_servers() {
        let arena = Arena::new(&RegionIds::new(), 4096, 1).unwrap();
        let buffer = arena.take().unwrap();
        let mut regions = Regions::default();
        let index = regions.of(&buffer).unwrap();
        let number = regions.get(index).number;
        regions.pending(index, 2, registration(1), false);
        regions.tell(index, 0, 2);
        regions.renumber(index);
        assert_ne!(regions.get(index).number, number);
        assert_eq!((regions.told(index, 0), regions.exposed(index)), (0, 4));
        assert_eq!(regions.forgotten, [Forgotten { number, reactor: 0 }]);
    }

    #[test]
    fn removed_regions_leave_their_registrations_to_take_back() {
        let arena = Arena::new(&RegionIds::new(), 4096, 1).unwrap();
        let mut buffer = arena.take().unwrap();
        let mut regions = Regions::default();
        let index = regions.of(&buffer).unwrap();
        let number = regions.get(index).number;
        regions.pending(index, 0, registration(1), true);
        regions.pending(index, 3, registration(2), true);
        regions.tell(index, 1, 3);
        let old = buffer.region();
        buffer.replace_pages(true).unwrap();
        assert_eq!(regions.remove(old), [(0, Key(1)), (3, Key(2))]);
        assert_eq!(regions.forgotten, [Forgotten { number, reactor: 1 }]);
        assert!(regions.remove(old).is_empty());
        let fresh = regions.of(&buffer).unwrap();
        assert_ne!(regions.get(fresh).number, number, "numbers do not come back");
    }

    #[test]
    fn arenas_with_clashing_ids_are_told_apart() {
        let one = Arena::new(&RegionIds::new(), 4096, 1).unwrap();
        let other = Arena::new(&RegionIds::new(), 4096, 1).unwrap();
        let mut regions = Regions::default();
        assert!(regions.of(&one.take().unwrap()).is_ok());
        assert!(matches!(regions.of(&other.take().unwrap()), Err(ErrorKind::Memory(_))));
    }
}
