//! Sleeping on the wake descriptors, two threads.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use gannet_fabric::{Access, ConnectionId, DisconnectReason, Fabric, PostError};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::Provider;
use super::end::{End, Note, PATIENCE};

/// Arms, polls once more, blocks if there is nothing, disarms. What `done` yields after the poll in
/// place of a sleep: room in a queue is no event, so that poll may have made some silently.
///
/// # Panics
/// If nothing wakes it within [`PATIENCE`]: a lost wake-up.
fn sleep<F: Fabric, T>(
    end: &mut End<F>,
    done: &mut impl FnMut(&mut End<F>) -> Option<T>,
) -> Option<T> {
    end.fabric.flush();
    end.fabric.arm();
    let any = end.turn();
    let found = done(end);
    if !any && found.is_none() {
        // Duplicates, because they have to outlive the visit.
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        end.fabric.wake_descriptors(&mut |descriptor| {
            descriptors.push(descriptor.try_clone_to_owned().expect("a free descriptor"));
        });
        let mut polled: Vec<PollFd<'_>> =
            descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let woken = rustix::event::poll(&mut polled, Some(&timeout)).expect("poll");
        assert!(woken > 0, "nothing woke the sleeper: a lost wake-up");
    }
    end.fabric.disarm();
    end.turn();
    found
}

fn sleep_until<F: Fabric, T>(
    end: &mut End<F>,
    mut done: impl FnMut(&mut End<F>) -> Option<T>,
) -> T {
    loop {
        end.turn();
        if let Some(value) = done(end) {
            return value;
        }
        if let Some(value) = sleep(end, &mut done) {
            return value;
        }
    }
}

fn spin_until<F: Fabric, T>(end: &mut End<F>, mut done: impl FnMut(&mut End<F>) -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done(end) {
            return value;
        }
        if !end.turn() {
            assert!(start.elapsed() < PATIENCE, "nothing arrived: {:?}", end.notes);
        }
    }
}

/// Runs `left` and `right` in threads of their own, connected.
fn two_threads<P: Provider>(
    provider: &P,
    left: impl FnOnce(End<P::Fabric>, ConnectionId) + Send,
    right: impl FnOnce(End<P::Fabric>, ConnectionId) + Send,
) {
    let address = provider.address();
    let (listening, listens) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let at = address.clone();
        scope.spawn(move || {
            let mut fabric = provider.fabric();
            fabric.listen(&at).expect("a free address");
            listening.send(()).expect("the other thread waits");
            let mut end = End::new(fabric);
            let id = sleep_until(&mut end, |end| {
                end.take(|id, note| matches!(note, Note::Accepted).then_some(id))
            });
            right(end, id);
        });
        listens.recv().expect("the other thread listens");
        let mut end = End::new(provider.fabric());
        let id = end.fabric.connect(&address).expect("room");
        sleep_until(&mut end, |end| {
            end.take(|_, note| matches!(note, Note::Connected).then_some(()))
        });
        left(end, id);
    });
}

/// Ping-pong in which both ends sleep whenever they have nothing to do.
pub fn no_wake_up_is_lost(provider: &impl Provider) {
    let rounds = provider.rounds(100_000);
    two_threads(
        provider,
        |mut end, id| {
            for round in 0..rounds {
                end.fabric.send(id, &round.to_le_bytes()).expect("a credit");
                let answer = sleep_until(&mut end, |end| end.message(id));
                assert_eq!(answer, round.to_le_bytes());
            }
            end.fabric.disconnect(id);
        },
        |mut end, id| {
            for round in 0..rounds {
                // Half of the time it does not sleep, and answers after a delay that makes the
                // answer fall into every step of the other end's going to sleep.
                let question = if round % 2 == 0 {
                    spin_until(&mut end, |end| end.message(id))
                } else {
                    sleep_until(&mut end, |end| end.message(id))
                };
                for _ in 0..round % 256 {
                    std::hint::spin_loop();
                }
                assert_eq!(question, round.to_le_bytes());
                end.fabric.send(id, &question).expect("a credit");
            }
            end.fabric.flush();
            sleep_until(&mut end, |end| end.ended(id));
        },
    );
}

/// A sender that ran out of credits and sleeps is woken when it gets some.
pub fn a_sleeper_without_credits_is_woken(provider: &impl Provider) {
    let messages = provider.rounds(20_000);
    two_threads(
        provider,
        |mut end, id| {
            for number in 0..messages {
                sleep_until(&mut end, |end| match end.fabric.send(id, &number.to_le_bytes()) {
                    Ok(()) => Some(()),
                    Err(PostError::Full) => None,
                    Err(other) => panic!("{other}"),
                });
            }
            end.fabric.flush();
            sleep_until(&mut end, |end| end.message(id));
            end.fabric.disconnect(id);
        },
        |mut end, id| {
            for number in 0..messages {
                if number % messages.div_ceil(4) == 0 {
                    // Long enough that the sender fills the queue and goes to sleep.
                    std::thread::sleep(Duration::from_millis(20));
                }
                let message = sleep_until(&mut end, |end| end.message(id));
                assert_eq!(message, number.to_le_bytes());
            }
            end.fabric.send(id, b"all").expect("a credit");
            sleep_until(&mut end, |end| end.ended(id));
        },
    );
}

/// A sleeper is woken by the end of its connection, orderly or not.
pub fn a_sleeper_learns_of_the_end(provider: &impl Provider) {
    for dies in [false, true] {
        two_threads(
            provider,
            |mut end, id| {
                sleep_until(&mut end, |end| end.ended(id));
            },
            |mut end, id| {
                std::thread::sleep(Duration::from_millis(20));
                if dies {
                    provider.kill(end.fabric);
                } else {
                    end.fabric.disconnect(id);
                    end.turn();
                }
            },
        );
    }
}

/// What is done between the last poll before a sleep and the sleep may be over at once, and its event
/// then wakes: a connection to where nobody listens, a registration, an end.
pub fn what_is_over_at_once_keeps_awake(provider: &impl Provider) {
    let mut end = End::new(provider.fabric());
    let mut dialled = None;
    sleep(&mut end, &mut |end: &mut End<_>| {
        dialled = Some(end.fabric.connect(&provider.address()).expect("room for a connection"));
        end.fabric.flush();
        None::<()>
    });
    let dialled = dialled.expect("posted before the sleep");
    let reason = sleep_until(&mut end, |end| end.ended(dialled));
    assert_eq!(reason, DisconnectReason::Unreachable);

    two_threads(
        provider,
        |mut end, id| {
            let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
            let mut key = None;
            sleep(&mut end, &mut |end: &mut End<_>| {
                let made = end.fabric.register(id, &memory, Access::READ_WRITE);
                key = Some(made.expect("room for a registration").key);
                end.fabric.flush();
                None::<()>
            });
            sleep_until(&mut end, |end| {
                end.take(|_, note| {
                    matches!(note, Note::Registered(found) if Some(*found) == key).then_some(())
                })
            });
            sleep(&mut end, &mut |end: &mut End<_>| {
                end.fabric.disconnect(id);
                end.fabric.flush();
                None::<()>
            });
            assert_eq!(sleep_until(&mut end, |end| end.ended(id)), DisconnectReason::Local);
        },
        |mut end, id| {
            sleep_until(&mut end, |end| end.ended(id));
        },
    );
}
