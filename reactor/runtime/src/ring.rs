//! Bounded rings that carry messages from one reactor to another.
//!
//! One sender, one receiver. A full ring gives the message back. The sender pushes any number of
//! messages and flushes once per turn; only then is a sleeping receiver signalled
//! ([`crate::wake`]). Each end belongs to one reactor and may be moved to its thread at start.
//!
//! An end that goes away (also when its reactor panics) closes the ring: the other end sees
//! `is_closed`, and a sleeping receiver is woken to see it. The ring itself is `rtrb`'s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

#[cfg(loom)]
use loom::sync::atomic::AtomicU32;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;

use crate::eventfd::EventFd;
use crate::wake::SleepFlag;

/// Makes a ring that holds up to `capacity` messages.
///
/// # Errors
/// What making the receiver's eventfd returns.
pub fn channel<T>(capacity: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let bell = Arc::new(Bell { asleep: AtomicU32::new(0), event: EventFd::new()? });
    let closing = RingOnDrop(Arc::clone(&bell));
    Ok((Sender { producer, bell: closing, pushed: false }, Receiver { consumer, bell }))
}

/// The receiver's wake-up. On cache lines of its own: the sender reads the flag each turn.
#[derive(Debug)]
#[repr(align(128))]
struct Bell {
    asleep: AtomicU32,
    event: EventFd,
}

impl Bell {
    fn ring(&self) {
        if SleepFlag::new(&self.asleep).must_signal() {
            self.event.signal();
        }
    }
}

/// Tells a sleeping receiver that the ring was closed.
#[derive(Debug)]
struct RingOnDrop(Arc<Bell>);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The sending end of a ring.
#[derive(Debug)]
pub struct Sender<T> {
    // Fields drop in this order: the ring is closed before the receiver is told.
    producer: rtrb::Producer<T>,
    bell: RingOnDrop,
    pushed: bool,
}

impl<T> Sender<T> {
    /// Puts a message into the ring. A receiver that is awake may take it at once; one that sleeps
    /// learns of it by [`Sender::flush`].
    ///
    /// # Errors
    /// Gives the message back if the ring is full.
    pub fn push(&mut self, message: T) -> Result<(), T> {
        match self.producer.push(message) {
            Ok(()) => {
                self.pushed = true;
                Ok(())
            }
            Err(rtrb::PushError::Full(message)) => Err(message),
        }
    }

    /// Wakes the receiver if it sleeps and messages were pushed since the last flush. To be called
    /// once per turn after the last push.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.pushed) {
            self.bell.0.ring();
        }
    }

    /// Messages that fit for certain; the receiver may make more room meanwhile.
    #[must_use]
    pub fn free(&self) -> usize {
        self.producer.slots()
    }

    /// Whether the receiving end is gone: what was not received never will be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.producer.is_abandoned()
    }
}

/// The receiving end of a ring.
#[derive(Debug)]
pub struct Receiver<T> {
    consumer: rtrb::Consumer<T>,
    bell: Arc<Bell>,
}

impl<T> Receiver<T> {
    /// Takes the oldest message.
    pub fn pop(&mut self) -> Option<T> {
        self.consumer.pop().ok()
    }

    /// Messages that can be taken for certain; the sender may add more meanwhile.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.consumer.slots()
    }

    /// Whether the sending end is gone. Messages that it left can still be taken: a receiver is
    /// done when the ring is closed *and then* found empty.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.consumer.is_abandoned()
    }

    /// Asks the sender to signal [`Receiver::wake_descriptor`] from now on. The receiver has to
    /// look into the ring once more before it blocks.
    pub fn arm(&self) {
        SleepFlag::new(&self.bell.asleep).arm();
    }

    /// Takes back [`Receiver::arm`] and consumes a pending signal.
    pub fn disarm(&self) {
        SleepFlag::new(&self.bell.asleep).disarm();
        // Drained in any case: a sender may have taken the flag down and signal only now, and a
        // descriptor left readable would end every later sleep at once.
        self.bell.event.drain();
    }

    /// Becomes readable when messages arrive, or the ring is closed, while armed.
    #[must_use]
    pub fn wake_descriptor(&self) -> BorrowedFd<'_> {
        self.bell.event.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn readable(receiver: &Receiver<u32>) -> bool {
        let fd = receiver.wake_descriptor();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&at_once)).unwrap() > 0
    }

    #[test]
    fn a_full_ring_gives_the_message_back() {
        let (mut sender, mut receiver) = channel(2).unwrap();
        assert_eq!(sender.push(1), Ok(()));
        assert_eq!(sender.push(2), Ok(()));
        assert_eq!(sender.push(3), Err(3));
        assert_eq!(receiver.pop(), Some(1));
        assert_eq!(sender.push(3), Ok(()));
        assert_eq!((receiver.pop(), receiver.pop(), receiver.pop()), (Some(2), Some(3), None));
    }

    #[test]
    fn only_a_sleeper_is_signalled_and_only_once() {
        let (mut sender, mut receiver) = channel(8).unwrap();
        sender.push(1).unwrap();
        sender.flush();
        assert!(!readable(&receiver), "the receiver was awake");

        receiver.arm();
        sender.flush();
        assert!(!readable(&receiver), "nothing was pushed since the last flush");
        sender.push(2).unwrap();
        assert!(!readable(&receiver), "signals are sent by flush only");
        sender.flush();
        assert!(readable(&receiver));
        receiver.bell.event.drain();
        sender.push(3).unwrap();
        sender.flush();
        assert!(!readable(&receiver), "one signal per sleep");

        receiver.arm();
        sender.push(4).unwrap();
        sender.flush();
        receiver.disarm();
        assert!(!readable(&receiver), "disarm consumes the signal");
        assert_eq!(std::iter::from_fn(|| receiver.pop()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_sender_that_goes_away_wakes_its_receiver() {
        let (mut sender, mut receiver) = channel(8).unwrap();
        sender.push(7).unwrap();
        receiver.arm();
        assert!(!receiver.is_closed());
        drop(sender);
        assert!(readable(&receiver));
        assert!(receiver.is_closed());
        assert_eq!(receiver.pop(), Some(7));

        let (sender, receiver) = channel::<u32>(1).unwrap();
        drop(receiver);
        assert!(sender.is_closed());
    }

    #[test]
    fn messages_cross_threads_in_order_and_none_is_lost() {
        const MESSAGES: u32 = 200_000;
        let (mut sender, mut receiver) = channel(64).unwrap();
        let producer = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                let mut message = number;
                while let Err(back) = sender.push(message) {
                    message = back;
                    sender.flush();
                    std::thread::yield_now();
                }
            }
            sender.flush();
        });
        let mut expected = 0;
        while expected < MESSAGES {
            match receiver.pop() {
                Some(number) => {
                    assert_eq!(number, expected);
                    expected += 1;
                }
                None => {
                    receiver.arm();
                    if receiver.pending() == 0 {
                        let fd = receiver.wake_descriptor();
                        let mut fds =
                            [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
                        let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
                        let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
                        assert_eq!(ready, 1, "a wake-up was lost at message {expected}");
                    }
                    receiver.disarm();
                }
            }
        }
        producer.join().unwrap();
    }
}
