//! Values in numbered places that are used again: constant time, and no allocation below the
//! capacity reserved.

/// A table of values, each named by a small number while it is there.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// A table with room for `capacity` values.
    pub(crate) fn new(capacity: u32) -> Slab<T> {
        let mut slab = Slab { places: Vec::new(), free: Vec::new() };
        slab.reserve(capacity);
        slab
    }

    /// Makes room for `capacity` values in all.
    pub(crate) fn reserve(&mut self, capacity: u32) {
        let from = self.places.len() as u32;
        if capacity <= from {
            return;
        }
        self.places.resize_with(capacity as usize, || None);
        // The lowest places last, so that a lightly used table keeps using the same warm ones.
        let mut free = Vec::with_capacity(capacity as usize);
        free.extend((from..capacity).rev());
        free.append(&mut self.free);
        self.free = free;
    }

    /// Puts a value in a free place; gives it back when there is none.
    pub(crate) fn insert(&mut self, value: T) -> Result<u32, T> {
        let Some(place) = self.free.pop() else { return Err(value) };
        self.places[place as usize] = Some(value);
        Ok(place)
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(value)
    }

    pub(crate) fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    /// Whether every place is taken.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Number of values.
    pub(crate) fn len(&self) -> u32 {
        (self.places.len() - self.free.len()) as u32
    }

    /// All values with their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let numbered = self.places.iter().enumerate();
        numbered.filter_map(|(place, value)| Some((place as u32, value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_room_grows() {
        let mut slab = Slab::new(2);
        assert_eq!(slab.insert('a'), Ok(0));
        assert_eq!(slab.insert('b'), Ok(1));
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!(slab.remove(0), Some('a'));
        assert_eq!(slab.remove(0), None);
        slab.reserve(3);
        assert_eq!(slab.insert('d'), Ok(0));
        assert_eq!(slab.insert('e'), Ok(2));
        assert!(slab.is_full());
        assert_eq!(slab.len(), 3);
        assert_eq!(slab.get(9), None);
        assert_eq!(slab.iter().map(|(_, value)| *value).collect::<String>(), "dbe");
    }
}
