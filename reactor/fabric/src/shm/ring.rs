//! The message rings of a connection: a [`Sender`] and a [`Receiver`] over [`SharedMemory`].
//!
//! One reactor owns each value. Positions count messages modulo 2^32 and are private; from shared
//! memory the sender reads only how far the peer consumed, the receiver only slot words. Both are
//! read once and bounded, so a peer that writes nonsense causes a [`Violation`] and nothing else.
//!
//! Credits: `large_slots` messages of the large class and `ring_slots - large_slots` of the small
//! class may be on their way. The receiver gives credits back when a quarter of either class is
//! consumed; a sender without a credit therefore always gets some once the receiver has caught up.

use std::sync::atomic::Ordering;

use super::layout::{SharedMemory, Side};
use crate::{LARGE_MESSAGE_BYTES, SMALL_MESSAGE_BYTES};

/// The peer wrote something into shared memory that the protocol excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation;

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// No credit of its class.
    Full,
    /// The peer states to have consumed what was never sent.
    Violation,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A message of at most [`SMALL_MESSAGE_BYTES`], in the slot.
    Small = 1,
    /// A message of at most [`LARGE_MESSAGE_BYTES`], in the next large body.
    Large = 2,
    /// No message: something waits in the socket.
    Kick = 3,
}

/// A slot's word: position + 1 in bits 0-31 (so that a zeroed slot is never valid at position 0),
/// length in bits 32-55, kind in bits 56-63.
#[derive(Clone, Copy)]
struct SlotWord(u64);

impl SlotWord {
    fn new(position: u32, kind: Kind, len_bytes: usize) -> SlotWord {
        debug_assert!(len_bytes <= LARGE_MESSAGE_BYTES);
        let sequence = u64::from(position.wrapping_add(1));
        SlotWord(sequence | (len_bytes as u64) << 32 | (kind as u64) << 56)
    }

    fn is_at(self, position: u32) -> bool {
        self.0 as u32 == position.wrapping_add(1)
    }

    fn len_bytes(self) -> usize {
        (self.0 >> 32 & 0xff_ffff) as usize
    }

    fn kind(self) -> Option<Kind> {
        match self.0 >> 56 {
            1 => Some(Kind::Small),
            2 => Some(Kind::Large),
            3 => Some(Kind::Kick),
            _ => None,
        }
    }
}

/// The producing end of a ring.
#[derive(Debug)]
pub(crate) struct Sender {
    side: Side,
    /// Next position to fill.
    tail: u32,
    /// How far the peer had consumed when last asked.
    consumed: u32,
    /// Next large body to fill.
    large_tail: u32,
    /// Large bodies that the peer had consumed when last asked.
    large_consumed: u32,
    /// Ring position of each large message on its way, by its large position.
    large_positions: Box<[u32]>,
    small_credits: u32,
    large_credits: u32,
}

impl Sender {
    pub(crate) fn new(memory: &SharedMemory, side: Side) -> Sender {
        let geometry = memory.geometry();
        Sender {
            side,
            tail: 0,
            consumed: 0,
            large_tail: 0,
            large_consumed: 0,
            large_positions: vec![0; geometry.large_slots as usize].into_boxed_slice(),
            small_credits: geometry.ring_slots - geometry.large_slots,
            large_credits: geometry.large_slots,
        }
    }

    /// Publishes a message. The caller has checked that it is at most [`LARGE_MESSAGE_BYTES`].
    #[inline]
    pub(crate) fn send(&mut self, memory: &SharedMemory, bytes: &[u8]) -> Result<(), SendError> {
        if bytes.len() <= SMALL_MESSAGE_BYTES {
            if self.small_outstanding() == self.small_credits {
                self.refresh(memory)?;
                if self.small_outstanding() == self.small_credits {
                    return Err(SendError::Full);
                }
            }
            memory.put_small(self.side, self.tail, bytes);
            self.publish(memory, Kind::Small, bytes.len());
        } else {
            if self.large_outstanding() == self.large_credits {
                self.refresh(memory)?;
                if self.large_outstanding() == self.large_credits {
                    return Err(SendError::Full);
                }
            }
            memory.put_large(self.side, self.large_tail, bytes);
            let index = self.large_tail & (self.large_credits - 1);
            self.large_positions[index as usize] = self.tail;
            self.large_tail = self.large_tail.wrapping_add(1);
            self.publish(memory, Kind::Large, bytes.len());
        }
        Ok(())
    }

    /// Tells the peer to look at its socket soon. It would do so by itself, only later, so a ring
    /// without a credit is no error.
    pub(crate) fn kick(&mut self, memory: &SharedMemory) {
        if self.small_outstanding() < self.small_credits {
            self.publish(memory, Kind::Kick, 0);
        }
    }

    #[inline]
    fn publish(&mut self, memory: &SharedMemory, kind: Kind, len_bytes: usize) {
        let word = SlotWord::new(self.tail, kind, len_bytes);
        // Release: whoever sees the word sees the bytes, and every write posted before.
        memory.slot_word(self.side, self.tail).store(word.0, Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
    }

    fn small_outstanding(&self) -> u32 {
        self.tail.wrapping_sub(self.consumed) - self.large_outstanding()
    }

    fn large_outstanding(&self) -> u32 {
        self.large_tail.wrapping_sub(self.large_consumed)
    }

    /// Reads how far the peer consumed.
    #[cold]
    fn refresh(&mut self, memory: &SharedMemory) -> Result<(), SendError> {
        // Acquire: the peer has copied a message out before it gives the slot back.
        let consumed = memory.side(self.side.other()).consumed.0.load(Ordering::Acquire);
        let newly = consumed.wrapping_sub(self.consumed);
        if newly > self.tail.wrapping_sub(self.consumed) {
            return Err(SendError::Violation);
        }
        while self.large_outstanding() > 0 {
            let index = self.large_consumed & (self.large_credits - 1);
            let position = self.large_positions[index as usize];
            if position.wrapping_sub(self.consumed) >= newly {
                break;
            }
            self.large_consumed = self.large_consumed.wrapping_add(1);
        }
        self.consumed = consumed;
        Ok(())
    }
}

/// What the receiver found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message: [`Message::copy_out`] before the next call.
    Message(Message),
    /// The peer sent something over the socket.
    Kick,
}

/// Where a message lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    producer: Side,
    position: u32,
    large: bool,
    /// Bounded by the message's class.
    pub(crate) len_bytes: usize,
}

impl Message {
    /// Copies the message's `len_bytes` bytes out.
    #[inline]
    pub(crate) fn copy_out(self, memory: &SharedMemory, into: &mut [u8]) {
        if self.large {
            memory.take_large(self.producer, self.position, into);
        } else {
            memory.take_small(self.producer, self.position, into);
        }
    }
}

/// The consuming end of a ring.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The side that fills the ring.
    producer: Side,
    /// Next position to read.
    head: u32,
    /// Position last given back.
    returned: u32,
    /// Next large body to read.
    large_head: u32,
    /// Large body last given back.
    large_returned: u32,
    return_at: u32,
    large_return_at: u32,
}

impl Receiver {
    pub(crate) fn new(memory: &SharedMemory, side: Side) -> Receiver {
        let geometry = memory.geometry();
        Receiver {
            producer: side.other(),
            head: 0,
            returned: 0,
            large_head: 0,
            large_returned: 0,
            return_at: (geometry.ring_slots / 4).max(1),
            large_return_at: (geometry.large_slots / 4).max(1),
        }
    }

    /// Takes the next entry. The slot stays the receiver's until [`Receiver::return_credits`].
    #[inline]
    pub(crate) fn receive(&mut self, memory: &SharedMemory) -> Result<Option<Received>, Violation> {
        // The only look at the word: kind and length are what this load said.
        let word = memory.slot_word(self.producer, self.head).load(Ordering::Acquire);
        let word = SlotWord(word);
        if !word.is_at(self.head) {
            return Ok(None);
        }
        let len_bytes = word.len_bytes();
        let producer = self.producer;
        let received = match word.kind() {
            Some(Kind::Small) if len_bytes <= SMALL_MESSAGE_BYTES => {
                let position = self.head;
                Received::Message(Message { producer, position, large: false, len_bytes })
            }
            Some(Kind::Large) if len_bytes <= LARGE_MESSAGE_BYTES => {
                let position = self.large_head;
                self.large_head = position.wrapping_add(1);
                Received::Message(Message { producer, position, large: true, len_bytes })
            }
            Some(Kind::Kick) if len_bytes == 0 => Received::Kick,
            _ => return Err(Violation),
        };
        self.head = self.head.wrapping_add(1);
        Ok(Some(received))
    }

    /// Gives credits back if enough is consumed. True if it did: the peer may wait for them asleep.
    #[inline]
    pub(crate) fn return_credits(&mut self, memory: &SharedMemory) -> bool {
        if self.head.wrapping_sub(self.returned) < self.return_at
            && self.large_head.wrapping_sub(self.large_returned) < self.large_return_at
        {
            return false;
        }
        self.returned = self.head;
        self.large_returned = self.large_head;
        // Release: the messages have been copied out.
        let consumer = self.producer.other();
        memory.side(consumer).consumed.0.store(self.head, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::super::layout::Geometry;
    use super::*;

    fn ring(geometry: Geometry) -> (SharedMemory, Sender, Receiver) {
        let memory = SharedMemory::create(geometry).expect("memfd");
        let sender = Sender::new(&memory, Side::Connector);
        let receiver = Receiver::new(&memory, Side::Acceptor);
        (memory, sender, receiver)
    }

    fn take(memory: &SharedMemory, receiver: &mut Receiver) -> Option<Vec<u8>> {
        match receiver.receive(memory).expect("no violation")? {
            Received::Message(message) => {
                let mut bytes = vec![0; message.len_bytes];
                message.copy_out(memory, &mut bytes);
                Some(bytes)
            }
            Received::Kick => Some(vec![0xff; 3]),
        }
    }

    /// Random sends and receives against a queue, starting shortly before positions wrap.
    #[test]
    fn the_ring_is_a_queue_with_credits() {
        let geometry = Geometry { ring_slots: 16, large_slots: 4 };
        let (memory, mut sender, mut receiver) = ring(geometry);
        let start = u32::MAX - 1000;
        sender.tail = start;
        sender.consumed = start;
        receiver.head = start;
        receiver.returned = start;
        memory.side(Side::Acceptor).consumed.0.store(start, Ordering::Relaxed);

        let mut oracle = VecDeque::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut refused = [0u32; 2];
        for step in 0..20_000u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if random % 5 < 3 {
                let large = random >> 8 & 3 == 0;
                let len = if large { 257 + (random >> 16) % 7936 } else { (random >> 16) % 257 };
                let bytes: Vec<u8> = (0..len).map(|i| (u64::from(step) + i) as u8).collect();
                match sender.send(&memory, &bytes) {
                    Ok(()) => oracle.push_back(bytes),
                    Err(SendError::Full) => {
                        let same_class = oracle.iter().filter(|m| (m.len() > 256) == large).count();
                        // Credits come back in quarters of the ring, so some may be on their way.
                        assert!(same_class > 0, "refused although nothing is outstanding");
                        refused[usize::from(large)] += 1;
                    }
                    Err(SendError::Violation) => panic!("an honest peer"),
                }
            } else {
                for _ in 0..(random >> 20) % 8 {
                    assert_eq!(take(&memory, &mut receiver), oracle.pop_front());
                }
                receiver.return_credits(&memory);
            }
        }
        assert!(refused[0] > 0 && refused[1] > 0, "both classes ran full: {refused:?}");
    }

    #[test]
    fn each_class_has_its_own_credits() {
        let (memory, mut sender, mut receiver) = ring(Geometry { ring_slots: 16, large_slots: 4 });
        for _ in 0..12 {
            sender.send(&memory, &[1; 256]).expect("a small credit");
        }
        assert_eq!(sender.send(&memory, &[1]), Err(SendError::Full));
        sender.kick(&memory);
        for _ in 0..4 {
            sender.send(&memory, &[2; 257]).expect("a large credit");
        }
        assert_eq!(sender.send(&memory, &[2; 257]), Err(SendError::Full));
        for _ in 0..16 {
            assert!(take(&memory, &mut receiver).is_some());
        }
        assert_eq!(take(&memory, &mut receiver), None);
        assert!(receiver.return_credits(&memory));
        sender.send(&memory, &[1]).expect("credits are back");
        sender.send(&memory, &[2; 8192]).expect("credits are back");
    }

    #[test]
    fn nonsense_in_shared_memory_is_a_violation() {
        let (memory, mut sender, mut receiver) = ring(Geometry { ring_slots: 16, large_slots: 4 });
        for (kind, len_bytes) in
            [(0, 1), (1, 257), (2, 8193), (2, 0xff_ffff), (3, 1), (4, 0), (255, 0xff_ffff)]
        {
            let word = 1 | len_bytes << 32 | kind << 56;
            memory.slot_word(Side::Connector, 0).store(word, Ordering::Relaxed);
            assert_eq!(receiver.receive(&memory), Err(Violation), "kind {kind} length {len_bytes}");
        }
        // A word of another lap is no message.
        memory.slot_word(Side::Connector, 0).store(17 | 1 << 56, Ordering::Relaxed);
        assert_eq!(receiver.receive(&memory), Ok(None));

        for _ in 0..12 {
            sender.send(&memory, &[0]).expect("a small credit");
        }
        for nonsense in [13, 1 << 31, u32::MAX] {
            memory.side(Side::Acceptor).consumed.0.store(nonsense, Ordering::Relaxed);
            assert_eq!(sender.send(&memory, &[0]), Err(SendError::Violation), "{nonsense}");
        }
    }
}
