//! The memory that the two ends of a connection share, and who writes which word of it.
//!
//! The connector makes one sealed memfd per connection:
//!
//! ```text
//! 0                       SideWords of the connector   (128-byte lines: consumed | flags)
//! 256                     SideWords of the acceptor
//! 4096                    ring connector -> acceptor: `ring_slots` slots of SLOT_BYTES,
//!                         as many bodies of SMALL_BODY_BYTES,
//!                         `large_slots` bodies of LARGE_MESSAGE_BYTES
//! 4096 + ring_bytes()     ring acceptor -> connector, the same
//! ```
//!
//! A slot is a pair of cache lines. It starts with one 64-bit word that says everything about the
//! message (position, length, kind); a message of up to SLOT_BODY_BYTES follows it, and a longer
//! small one lies in the body of the same position. Slots are dense, which keeps the pages that a
//! busy ring walks through few. The producer writes the bytes, then the word with release; the
//! consumer reads the word *once* with acquire. A large message's bytes lie in the ring's next
//! large body, so one ring orders both classes.
//!
//! Everything here may be changed by a hostile peer at any moment: shared words are accessed with
//! atomics only, each is read once per decision and bounded, and message bytes are copied out
//! before anybody looks at them. A crash of one end leaves the words as they were; the other end
//! learns it from the socket.

use std::io;
use std::mem::{align_of, offset_of, size_of};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use gannet_runtime::memory::{Mapping, PAGE_BYTES};

use crate::{LARGE_MESSAGE_BYTES, SMALL_MESSAGE_BYTES};

/// What `/proc/PID/maps` shows for the memory of a connection: it holds messages, never the payload
/// of a transfer.
const MEMORY_NAME: &str = "gannet-connection";
/// Bytes of one slot: the pair of cache lines that prefetchers take together. Measured between two
/// cores: a 64-byte message takes 0.67 us there and back when it lies in one pair with its word and
/// 0.8 us when it does not; slots with room for every small message halve the rate of long ones.
pub(crate) const SLOT_BYTES: usize = 128;
/// Bytes of the slot's word.
const WORD_BYTES: usize = size_of::<AtomicU64>();
/// Longest message that lies in the slot itself.
const SLOT_BODY_BYTES: usize = SLOT_BYTES - WORD_BYTES;
/// Bytes set aside for a small message that does not fit into its slot.
const SMALL_BODY_BYTES: usize = SMALL_MESSAGE_BYTES;
/// Bytes before the rings.
const HEADER_BYTES: usize = PAGE_BYTES;
/// Most slots of a ring.
pub(crate) const RING_SLOTS_MAX: u32 = 1 << 16;
/// Most large bodies of a ring.
pub(crate) const LARGE_SLOTS_MAX: u32 = 1 << 12;

/// The words of one side. Only that side writes `consumed` and `closed`; `sleeping` is set by that
/// side and taken by the other.
#[repr(C)]
pub(crate) struct SideWords {
    /// How many slots of the ring *towards* this side it has consumed, modulo 2^32.
    pub(crate) consumed: ConsumedLine,
    /// What the other side looks at once per flush.
    pub(crate) flags: FlagsLine,
}

/// A cache line (pair) of its own.
#[repr(C, align(128))]
pub(crate) struct ConsumedLine(pub(crate) AtomicU32);

/// A cache line (pair) of its own.
#[repr(C, align(128))]
pub(crate) struct FlagsLine {
    /// 1 while this side wants to be woken.
    pub(crate) sleeping: AtomicU32,
    /// How this side ended the connection: one of the `CLOSED_` values.
    pub(crate) closed: AtomicU32,
}

/// Not closed; with the socket at its end of file the peer is dead.
pub(crate) const CLOSED_NOT: u32 = 0;
/// Closed in order.
pub(crate) const CLOSED_ORDERLY: u32 = 1;
/// Closed because the other side broke the rules.
pub(crate) const CLOSED_VIOLATION: u32 = 2;
/// Closed because a transfer of this side was refused.
pub(crate) const CLOSED_REFUSED: u32 = 3;

const _: () = assert!(size_of::<SideWords>() == 256);
const _: () = assert!(align_of::<SideWords>() == 128);
const _: () = assert!(offset_of!(SideWords, flags) == 128);
const _: () = assert!(offset_of!(FlagsLine, closed) == 4);
const _: () = assert!(2 * size_of::<SideWords>() <= HEADER_BYTES);
const _: () = assert!(SLOT_BYTES.is_multiple_of(128) && SMALL_BODY_BYTES.is_multiple_of(64));
const _: () = assert!(LARGE_MESSAGE_BYTES.is_multiple_of(64));

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The end that made the memory.
    Connector,
    /// The end that received it.
    Acceptor,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Connector => Side::Acceptor,
            Side::Acceptor => Side::Connector,
        }
    }
}

/// How large the rings of a connection are, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Slots per ring, a power of two.
    pub(crate) ring_slots: u32,
    /// Large bodies per ring, a power of two; so many slots are set aside for large messages.
    pub(crate) large_slots: u32,
}

impl Geometry {
    /// Checks what a user configured or a peer stated.
    pub(crate) fn is_valid(self) -> bool {
        self.ring_slots.is_power_of_two()
            && self.large_slots.is_power_of_two()
            && self.ring_slots <= RING_SLOTS_MAX
            && self.large_slots <= LARGE_SLOTS_MAX
            && self.large_slots <= self.ring_slots / 2
    }

    /// Length of the whole memory, bytes.
    pub(crate) fn memory_bytes(self) -> usize {
        HEADER_BYTES + 2 * self.ring_bytes()
    }

    fn ring_bytes(self) -> usize {
        let slots = self.ring_slots as usize * (SLOT_BYTES + SMALL_BODY_BYTES);
        let bodies = self.large_slots as usize * LARGE_MESSAGE_BYTES;
        (slots + bodies).next_multiple_of(PAGE_BYTES)
    }
}

/// The mapped memory of one connection.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    mapping: Arc<Mapping>,
    geometry: Geometry,
    /// Start of the rings, by [`Side`] of the producer.
    ring_offsets: [usize; 2],
}

impl SharedMemory {
    /// Makes the memory of a new connection, zeroed.
    ///
    /// # Errors
    /// What making a memfd or mapping it returns.
    pub(crate) fn create(geometry: Geometry) -> io::Result<SharedMemory> {
        Ok(Self::over(Mapping::shareable_named(MEMORY_NAME, geometry.memory_bytes())?, geometry))
    }

    /// Maps the memory that a connector made; `geometry` has been checked.
    ///
    /// # Errors
    /// As [`Mapping::from_peer`].
    pub(crate) fn from_peer(file: OwnedFd, geometry: Geometry) -> io::Result<SharedMemory> {
        Ok(Self::over(Mapping::from_peer(file, geometry.memory_bytes())?, geometry))
    }

    fn over(mapping: Arc<Mapping>, geometry: Geometry) -> SharedMemory {
        assert!(geometry.is_valid(), "geometry is checked before memory is mapped");
        assert!(mapping.len() >= geometry.memory_bytes(), "the mapping holds both rings");
        let ring_offsets = [HEADER_BYTES, HEADER_BYTES + geometry.ring_bytes()];
        SharedMemory { mapping, geometry, ring_offsets }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The memfd, to hand to the peer.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file()
    }

    /// The words that `side` writes.
    #[inline]
    pub(crate) fn side(&self, side: Side) -> &SideWords {
        let pointer = self.mapping.base().wrapping_add(side as usize * size_of::<SideWords>());
        #[allow(clippy::cast_ptr_alignment)] // The mapping starts at a page.
        let words = pointer.cast::<SideWords>();
        // SAFETY: both sides' words lie in the first page of the mapping, aligned to 128; they
        // consist of atomics, for which every bit pattern and every concurrent change is allowed.
        unsafe { &*words }
    }

    /// The word of slot `position` of the ring that `producer` fills.
    #[inline]
    pub(crate) fn slot_word(&self, producer: Side, position: u32) -> &AtomicU64 {
        let pointer = self.mapping.base().wrapping_add(self.slot_offset(producer, position));
        #[allow(clippy::cast_ptr_alignment)] // Slots start at multiples of 128.
        let word = pointer.cast::<AtomicU64>();
        // SAFETY: the position is masked to the ring, which lies in the mapping; the word is
        // aligned and an atomic.
        unsafe { &*word }
    }

    /// Copies a small message's bytes to where they travel at `position`.
    #[inline]
    pub(crate) fn put_small(&self, producer: Side, position: u32, bytes: &[u8]) {
        self.mapping.copy_in(self.small_offset(producer, position, bytes.len()), bytes);
    }

    /// Copies a small message's bytes out; afterwards the peer cannot change them.
    #[inline]
    pub(crate) fn take_small(&self, producer: Side, position: u32, bytes: &mut [u8]) {
        self.mapping.copy_out(self.small_offset(producer, position, bytes.len()), bytes);
    }

    /// As [`SharedMemory::put_small`], for the large message number `position`.
    pub(crate) fn put_large(&self, producer: Side, position: u32, bytes: &[u8]) {
        self.mapping.copy_in(self.large_offset(producer, position), bytes);
    }

    /// As [`SharedMemory::take_small`], for the large message number `position`.
    pub(crate) fn take_large(&self, producer: Side, position: u32, bytes: &mut [u8]) {
        self.mapping.copy_out(self.large_offset(producer, position), bytes);
    }

    #[inline]
    fn slot_offset(&self, producer: Side, position: u32) -> usize {
        let index = (position & (self.geometry.ring_slots - 1)) as usize;
        self.ring_offsets[producer as usize] + index * SLOT_BYTES
    }

    #[inline]
    fn small_offset(&self, producer: Side, position: u32, len_bytes: usize) -> usize {
        if len_bytes <= SLOT_BODY_BYTES {
            self.slot_offset(producer, position) + WORD_BYTES
        } else {
            self.body_offset(producer, position)
        }
    }

    #[inline]
    fn body_offset(&self, producer: Side, position: u32) -> usize {
        let index = (position & (self.geometry.ring_slots - 1)) as usize;
        let slots = self.geometry.ring_slots as usize * SLOT_BYTES;
        self.ring_offsets[producer as usize] + slots + index * SMALL_BODY_BYTES
    }

    fn large_offset(&self, producer: Side, position: u32) -> usize {
        let index = (position & (self.geometry.large_slots - 1)) as usize;
        let before = self.geometry.ring_slots as usize * (SLOT_BYTES + SMALL_BODY_BYTES);
        self.ring_offsets[producer as usize] + before + index * LARGE_MESSAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_geometries_are_refused() {
        for (ring_slots, large_slots, valid) in [
            (1024, 64, true),
            (2, 1, true),
            (RING_SLOTS_MAX, LARGE_SLOTS_MAX, true),
            (0, 0, false),
            (1, 1, false),
            (1000, 64, false),
            (1024, 0, false),
            (1024, 63, false),
            (64, 64, false),
            (RING_SLOTS_MAX * 2, 64, false),
            (u32::MAX, u32::MAX, false),
        ] {
            let geometry = Geometry { ring_slots, large_slots };
            assert_eq!(geometry.is_valid(), valid, "{geometry:?}");
        }
    }

    #[test]
    fn no_two_ranges_of_the_memory_overlap() {
        let geometry = Geometry { ring_slots: 8, large_slots: 4 };
        let memory = SharedMemory::create(geometry).expect("memfd");
        let mut ranges = vec![(0, HEADER_BYTES)];
        for producer in [Side::Connector, Side::Acceptor] {
            for position in 0..8 {
                ranges.push((memory.slot_offset(producer, position), SLOT_BYTES));
                ranges.push((memory.body_offset(producer, position), SMALL_BODY_BYTES));
            }
            for position in 0..4 {
                ranges.push((memory.large_offset(producer, position), LARGE_MESSAGE_BYTES));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        let (start, len) = ranges[ranges.len() - 1];
        assert!(start + len <= memory.mapping.len());
    }
}
