//! The table of a provider's connections.
//!
//! A bounded number of places, each with a generation that tells successive users apart. A place is
//! claimed, gets its connection, and is released when the connection's last event was handed out;
//! between claim and release it may be empty. Whoever walks over the table by position takes what is
//! there; whoever has a [`ConnectionId`] of a predecessor finds nothing. Belongs to one reactor.

use crate::ConnectionId;

/// Of so many places one is kept for newcomers, up to [`KEPT_MAX`].
const KEPT_ONE_OF: usize = 16;
/// A fabric with this many free places is not short of them. More than newcomers take before those
/// who have to go are gone.
const KEPT_MAX: usize = 16;

/// Whether `free` of `places` are so few that newcomers will soon find none.
pub(crate) fn are_few(free: usize, places: usize) -> bool {
    free < (places / KEPT_ONE_OF).clamp(1, KEPT_MAX)
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    occupant: Option<T>,
}

/// Places for connections.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    /// A table of `places` free places.
    pub(crate) fn new(places: usize) -> Slots<T> {
        Slots {
            places: (0..places).map(|_| Place { generation: 0, occupant: None }).collect(),
            // Lowest positions last, so that tables indexed by them stay small.
            free: (0..places as u32).rev().collect(),
        }
    }

    /// Places, free or not.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Places that are free.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Places that are not free.
    pub(crate) fn used(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes a free place; `None` if there is none.
    pub(crate) fn claim(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Puts a connection into a place that was claimed.
    pub(crate) fn put(&mut self, index: u32, occupant: T) {
        self.places[index as usize].occupant = Some(occupant);
    }

    /// Takes the connection out of its place, which stays claimed.
    pub(crate) fn take(&mut self, index: u32) -> Option<T> {
        self.places.get_mut(index as usize)?.occupant.take()
    }

    /// Frees a place that was claimed. Its next user has another generation.
    pub(crate) fn release(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        place.occupant = None;
        place.generation = place.generation.wrapping_add(1);
        debug_assert!(!self.free.contains(&index), "a place is released once");
        self.free.push(index);
    }

    /// The name of whoever has the place, or will have it next.
    #[inline]
    pub(crate) fn id(&self, index: u32) -> ConnectionId {
        ConnectionId { index, generation: self.places[index as usize].generation }
    }

    /// The connection at a position.
    #[inline]
    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        self.places.get(index as usize)?.occupant.as_ref()
    }

    /// The connection at a position.
    #[inline]
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.places.get_mut(index as usize)?.occupant.as_mut()
    }

    /// The connection of this name.
    #[inline]
    pub(crate) fn find(&self, id: ConnectionId) -> Option<&T> {
        let place = self.places.get(id.index as usize)?;
        place.occupant.as_ref().filter(|_| place.generation == id.generation)
    }

    /// The connection of this name.
    #[inline]
    pub(crate) fn find_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.generation != id.generation {
            return None;
        }
        place.occupant.as_mut()
    }

    /// All connections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.occupant.as_ref())
    }

    /// All connections.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().filter_map(|place| place.occupant.as_mut())
    }

    /// Drops all connections; the places stay claimed.
    pub(crate) fn empty(&mut self) {
        for place in &mut self.places {
            place.occupant = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn successors_are_told_apart() {
        let mut slots = Slots::new(2);
        let first = slots.claim().unwrap();
        assert_eq!(first, 0, "positions stay small");
        let early = slots.id(first);
        assert_eq!((slots.at(first), slots.find(early)), (None, None), "claimed only");
        slots.put(first, "first");
        assert_eq!((slots.at(first), slots.find(early)), (Some(&"first"), Some(&"first")));
        let second = slots.claim().unwrap();
        assert_eq!((slots.claim(), slots.free(), slots.used()), (None, 0, 2));
        slots.put(second, "second");
        assert_eq!(slots.iter().copied().collect::<Vec<_>>(), ["first", "second"]);

        slots.release(first);
        assert_eq!(slots.find(early), None);
        assert_eq!(slots.find_mut(early), None);
        assert_eq!((slots.claim(), slots.places()), (Some(first), 2));
        slots.put(first, "third");
        assert_eq!((slots.find(early), slots.find(slots.id(first))), (None, Some(&"third")));

        assert_eq!(slots.take(second), Some("second"));
        assert_eq!((slots.at(second), slots.used()), (None, 2), "taken out, not released");
        slots.empty();
        assert_eq!((slots.iter().count(), slots.used()), (0, 2));
        let stranger = ConnectionId { index: 7, generation: 0 };
        assert_eq!((slots.find(stranger), slots.at(7)), (None, None));
        assert_eq!(slots.take(7), None);
    }

    #[test]
    fn a_share_of_the_places_is_kept() {
        for (places, enough) in [(1, 1), (8, 1), (64, 4), (256, 16), (1024, 16), (1 << 16, 16)] {
            assert!(are_few(enough - 1, places) && !are_few(enough, places), "of {places}");
        }
    }
}
