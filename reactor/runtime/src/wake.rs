//! The flag by which a sleeper asks to be woken, and the order of memory accesses that loses no
//! wake-up.
//!
//! ```text
//! consumer                          producer
//!   flag = ASLEEP                     publish the message
//!   fence                             fence
//!   poll every source once more       flag == ASLEEP?  then flag = AWAKE, signal the descriptor
//!   nothing? block on the descriptor
//! ```
//!
//! With both fences at least one side sees the other's store: either the consumer's last poll finds
//! the message, or the producer finds the flag. The producer takes the flag down as it signals, so a
//! sleep costs its producers one signal in all, not one per message.
//!
//! The word may lie in memory shared with another process. What a broken peer writes there can cost
//! needless signals or miss its own wake-ups, nothing else. A producer that dies between taking the
//! flag down and signalling leaves its consumer asleep, so a consumer of another process's messages
//! also watches a descriptor that tells of that process's end.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// The consumer polls by itself: no signal needed.
pub const AWAKE: u32 = 0;
/// The consumer blocks, or is about to: the first producer that publishes signals it.
pub const ASLEEP: u32 = 1;

/// The protocol over a word that both sides reach; zeroed memory means awake.
#[derive(Clone, Copy, Debug)]
pub struct SleepFlag<'a> {
    word: &'a AtomicU32,
}

impl<'a> SleepFlag<'a> {
    /// The flag that lives in `word`.
    #[must_use]
    pub fn new(word: &'a AtomicU32) -> SleepFlag<'a> {
        SleepFlag { word }
    }

    /// Consumer: asks for a signal from now on. Afterwards the consumer must look at everything the
    /// flag covers once more before it blocks.
    pub fn arm(self) {
        self.word.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Consumer: takes the request back. A signal may be on its way all the same.
    pub fn disarm(self) {
        // A read-modify-write, so that it is ordered with the one by which a producer takes the flag
        // down: whatever a producer does to this sleep's flag comes before the next sleep's.
        self.word.swap(AWAKE, Ordering::AcqRel);
    }

    /// Producer: whether to signal the consumer's descriptor now, asked after publishing, once per
    /// turn. True for one producer per [`SleepFlag::arm`].
    #[must_use = "true obliges the caller to signal the consumer's descriptor"]
    pub fn must_signal(self) -> bool {
        fence(Ordering::SeqCst);
        self.word.load(Ordering::Relaxed) == ASLEEP && self.take_down()
    }

    fn take_down(self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.word.compare_exchange(ASLEEP, AWAKE, success, failure).is_ok()
    }
}
