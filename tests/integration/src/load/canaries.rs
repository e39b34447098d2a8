//! Buffers of requests that failed, put to other use: nobody may write into them any more.

use std::collections::VecDeque;

use gannet_fabric::arena::HostBuffer;

/// Most buffers that are watched at a time; for another one the oldest is looked at and let go.
pub(crate) const CANARIES_MAX: usize = 512;
/// What they hold.
const CANARY: u8 = 0xc7;

/// The buffers. Each is watched until the second look after its request's end, so that what is late
/// by a whole outage is seen too.
#[derive(Default)]
pub(crate) struct Canaries {
    buffers: VecDeque<HostBuffer>,
    /// Of them, those that were looked at once, the oldest ones.
    seen: usize,
    checked: u64,
}

impl Canaries {
    /// Puts the buffer of a request that is over to other use.
    ///
    /// # Panics
    /// If the oldest one has to make room, and has changed.
    pub(crate) fn add(&mut self, mut buffer: HostBuffer) {
        if self.buffers.len() == CANARIES_MAX {
            self.release(1);
        }
        buffer.fill(CANARY);
        self.buffers.push_back(buffer);
    }

    /// Looks at all of them, and lets those go that were looked at before. Returns how many were
    /// let go since the last time.
    ///
    /// # Panics
    /// If one has changed.
    pub(crate) fn look(&mut self) -> u64 {
        self.buffers.iter().for_each(check);
        self.release(self.seen);
        self.seen = self.buffers.len();
        std::mem::take(&mut self.checked)
    }

    fn release(&mut self, count: usize) {
        for buffer in self.buffers.drain(..count) {
            check(&buffer);
            self.checked += 1;
        }
        self.seen -= count.min(self.seen);
    }
}

fn check(buffer: &HostBuffer) {
    let changed = buffer.iter().position(|byte| *byte != CANARY);
    assert_eq!(changed, None, "a buffer in other use was written into: {buffer:?}");
}

#[cfg(test)]
mod tests {
    use gannet_fabric::arena::{Arena, RegionIds};

    use super::*;

    #[test]
    fn a_buffer_is_let_go_at_the_second_look() {
        let arena = Arena::new(&RegionIds::new(), 4096, 2).expect("memory");
        let mut canaries = Canaries::default();
        canaries.add(arena.take().expect("a buffer"));
        assert_eq!(canaries.look(), 0);
        canaries.add(arena.take().expect("a buffer"));
        assert_eq!((canaries.look(), arena.available()), (1, 1));
        assert_eq!((canaries.look(), arena.available()), (1, 2));
    }

    #[test]
    #[should_panic(expected = "was written into")]
    fn a_changed_byte_is_found() {
        let arena = Arena::new(&RegionIds::new(), 4096, 1).expect("memory");
        let mut canaries = Canaries::default();
        canaries.add(arena.take().expect("a buffer"));
        canaries.buffers[0][4095] = 0;
        canaries.look();
    }
}
