//! No interleaving and no weak memory order loses a wake-up: every execution of the sleep protocol
//! is tried. Leaving out any one step is shown to be found.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p gannet-runtime --release --test loom_wake`.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32 as Tally, Ordering as TallyOrdering};

use gannet_runtime::wake::{ASLEEP, AWAKE, SleepFlag};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Which steps of the protocol are taken.
#[derive(Clone, Copy)]
struct Protocol {
    consumer_fences: bool,
    consumer_polls_again: bool,
    producer_fences: bool,
}

const WHOLE: Protocol =
    Protocol { consumer_fences: true, consumer_polls_again: true, producer_fences: true };

impl Protocol {
    fn arm(self, flag: &AtomicU32) {
        if self.consumer_fences {
            SleepFlag::new(flag).arm();
        } else {
            flag.store(ASLEEP, Ordering::Relaxed);
        }
    }

    fn must_signal(self, flag: &AtomicU32) -> bool {
        if self.producer_fences {
            SleepFlag::new(flag).must_signal()
        } else {
            let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
            flag.load(Ordering::Relaxed) == ASLEEP
                && flag.compare_exchange(ASLEEP, AWAKE, success, failure).is_ok()
        }
    }
}

/// What an eventfd does, and how many producers may still signal it.
struct Event {
    readable: Mutex<bool>,
    producers: AtomicU32,
}

impl Event {
    fn signal(&self) {
        *self.readable.lock().unwrap() = true;
    }

    fn is_readable(&self) -> bool {
        *self.readable.lock().unwrap()
    }

    /// Blocks without a time limit.
    ///
    /// # Panics
    /// If nobody is left who could end the wait.
    fn wait(&self) {
        while !self.is_readable() {
            let nobody_left = self.producers.load(Ordering::Acquire) == 0;
            assert!(!nobody_left || self.is_readable(), "a wake-up was lost");
            thread::yield_now();
        }
    }

    fn drain(&self) {
        *self.readable.lock().unwrap() = false;
    }
}

/// `producers` threads publish `messages` each, one after another; the consumer sleeps whenever it
/// finds nothing new, until it has seen all. Tells executions in which it did sleep.
fn all_messages_arrive(protocol: Protocol, producers: usize, messages: u32) -> u32 {
    let sleeps_in_all = std::sync::Arc::new(Tally::new(0));
    let tally = sleeps_in_all.clone();
    let mut explorer = loom::model::Builder::new();
    // Two threads are explored in full. With three, all executions with up to so many preemptions:
    // the number of all is out of reach, and few preemptions show nearly every such bug.
    explorer.preemption_bound = (producers > 1).then_some(2);
    explorer.check(move || {
        let flag = Arc::new(AtomicU32::new(AWAKE));
        let event = Arc::new(Event {
            readable: Mutex::new(false),
            producers: AtomicU32::new(producers as u32),
        });
        let signals = std::sync::Arc::new(Tally::new(0));
        let published: Vec<_> = (0..producers).map(|_| Arc::new(AtomicU32::new(0))).collect();
        let threads: Vec<_> = published
            .iter()
            .map(|published| {
                let (published, flag) = (published.clone(), flag.clone());
                let (event, signals) = (event.clone(), signals.clone());
                thread::spawn(move || {
                    for message in 1..=messages {
                        published.store(message, Ordering::Release);
                        if protocol.must_signal(&flag) {
                            signals.fetch_add(1, TallyOrdering::Relaxed);
                            event.signal();
                        }
                    }
                    event.producers.fetch_sub(1, Ordering::Release);
                })
            })
            .collect();

        let mut seen = vec![0; producers];
        let mut poll = || {
            let before = seen.clone();
            for (seen, published) in seen.iter_mut().zip(&published) {
                *seen = published.load(Ordering::Acquire);
            }
            (seen != before, seen.iter().all(|seen| *seen == messages))
        };
        let mut arms = 0;
        let (mut found_some, mut found_all) = poll();
        while !found_all {
            if found_some {
                (found_some, found_all) = poll();
                continue;
            }
            protocol.arm(&flag);
            arms += 1;
            if protocol.consumer_polls_again {
                (found_some, found_all) = poll();
            }
            if !found_some {
                tally.fetch_add(1, TallyOrdering::Relaxed);
                event.wait();
            }
            SleepFlag::new(&flag).disarm();
            event.drain();
            if !found_some {
                (found_some, found_all) = poll();
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(signals.load(TallyOrdering::Relaxed) <= arms, "more signals than sleeps");
    });
    sleeps_in_all.load(TallyOrdering::Relaxed)
}

#[test]
fn one_producer_loses_no_wake_up() {
    assert!(all_messages_arrive(WHOLE, 1, 2) > 0, "no execution slept: nothing was tested");
}

#[test]
fn two_producers_lose_no_wake_up() {
    assert!(all_messages_arrive(WHOLE, 2, 1) > 0, "no execution slept: nothing was tested");
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn without_the_consumers_fence_a_wake_up_is_lost() {
    all_messages_arrive(Protocol { consumer_fences: false, ..WHOLE }, 1, 1);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn without_the_producers_fence_a_wake_up_is_lost() {
    all_messages_arrive(Protocol { producer_fences: false, ..WHOLE }, 1, 1);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn without_the_last_poll_a_wake_up_is_lost() {
    all_messages_arrive(Protocol { consumer_polls_again: false, ..WHOLE }, 1, 1);
}
