//! Blocks a reactor's thread until a descriptor is readable or a time has passed.
//!
//! With io_uring, one `io_uring_enter` submits a one-shot poll request per descriptor and waits.
//! After each sleep every request that did not fire is cancelled and its end awaited: an outstanding
//! request holds the *file* open, so it would keep a socket from closing that its owner dropped, and
//! would go on watching the old file when the number is given to a new one. Between sleeps the ring
//! is therefore empty. Where io_uring is not to be had, or fails, `ppoll(2)` takes its place.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::eventfd::EventFd;

/// Poll requests per `io_uring_enter`; a reactor with more descriptors needs another one per so
/// many.
const RING_ENTRIES: u32 = 256;
/// Names the request that cancels the others; those are named by 0.
const CANCELLATION: u64 = 1;

/// What a reactor sleeps in. Belongs to the reactor's thread.
pub(crate) struct Sleeper {
    mechanism: Mechanism,
    descriptors: Vec<RawFd>,
}

enum Mechanism {
    Uring(IoUring),
    Ppoll,
}

impl Sleeper {
    /// A sleeper over io_uring if the machine has it, with a warning and over ppoll otherwise.
    pub(crate) fn new() -> Sleeper {
        let mechanism = match ring_that_works() {
            Ok(ring) => Mechanism::Uring(ring),
            Err(error) => fall_back(&error),
        };
        Sleeper { mechanism, descriptors: Vec::with_capacity(RING_ENTRIES as usize) }
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn with_ppoll() -> Sleeper {
        Sleeper {
            mechanism: Mechanism::Ppoll,
            descriptors: Vec::with_capacity(RING_ENTRIES as usize),
        }
    }

    /// Blocks until one of the descriptors that `collect` visits is readable, `timeout` has passed
    /// (`None`: never does), or for no reason at all: the caller polls afterwards in any case.
    pub(crate) fn sleep(
        &mut self,
        collect: impl FnOnce(&mut dyn FnMut(BorrowedFd<'_>)),
        timeout: Option<Duration>,
    ) {
        self.descriptors.clear();
        let descriptors = &mut self.descriptors;
        collect(&mut |descriptor| descriptors.push(descriptor.as_raw_fd()));
        match &mut self.mechanism {
            Mechanism::Uring(ring) => {
                if let Err(error) = wait_in_ring(ring, &self.descriptors, timeout) {
                    // Dropping the ring cancels whatever it still holds.
                    self.mechanism = fall_back(&error);
                }
            }
            Mechanism::Ppoll => wait_in_ppoll(&self.descriptors, timeout),
        }
    }

    #[cfg(all(test, not(loom)))]
    fn uses_io_uring(&self) -> bool {
        matches!(self.mechanism, Mechanism::Uring(_))
    }
}

fn fall_back(error: &io::Error) -> Mechanism {
    tracing::warn!(%error, "a reactor sleeps in ppoll, because io_uring cannot be used");
    Mechanism::Ppoll
}

/// Makes a ring and tries all that a sleep needs of it: a wait with a time limit (Linux 5.11) and
/// the cancellation of everything at once (5.19).
fn ring_that_works() -> io::Result<IoUring> {
    let mut ring = IoUring::builder().dontfork().build(RING_ENTRIES)?;
    if !ring.params().is_feature_ext_arg() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's io_uring cannot wait with a time limit (Linux 5.11)",
        ));
    }
    let never_readable = EventFd::new()?;
    let descriptors = [never_readable.as_fd().as_raw_fd()];
    wait_in_ring(&mut ring, &descriptors, Some(Duration::ZERO))?;
    Ok(ring)
}

fn wait_in_ring(
    ring: &mut IoUring,
    descriptors: &[RawFd],
    timeout: Option<Duration>,
) -> io::Result<()> {
    let readable = u32::from(PollFlags::IN.bits());
    let mut outstanding = 0;
    for descriptor in descriptors {
        push(ring, &opcode::PollAdd::new(Fd(*descriptor), readable).build())?;
        outstanding += 1;
    }
    let entered = match timeout {
        None => ring.submit_and_wait(1),
        Some(timeout) => {
            let limit = Timespec::from(timeout);
            ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
        }
    };
    pass_over(entered, &[Errno::INTR, Errno::TIME])?;
    outstanding -= reap(ring)?;
    if outstanding == 0 {
        return Ok(());
    }
    let everything = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
    push(ring, &everything.user_data(CANCELLATION))?;
    outstanding += 1;
    while outstanding > 0 {
        // Busy: more requests have ended than the ring of completions holds; reaping makes room.
        pass_over(ring.submit_and_wait(1), &[Errno::INTR, Errno::BUSY])?;
        outstanding -= reap(ring)?;
    }
    Ok(())
}

/// Queues a request, submitting those before it if the queue is full.
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    if ring.submission().is_full() {
        ring.submit()?;
    }
    // SAFETY: polls and cancellations refer to no memory of this process.
    let pushed = unsafe { ring.submission().push(entry) };
    pushed.map_err(|_full| io::Error::other("the kernel takes no requests from a full ring"))
}

/// Takes all completions and returns their number. A poll request that ended with an error counts
/// as one that fired: the poll that follows finds out what is wrong with its descriptor.
fn reap(ring: &mut IoUring) -> io::Result<usize> {
    let mut reaped = 0;
    for completion in ring.completion() {
        reaped += 1;
        let nothing_left = -Errno::NOENT.raw_os_error();
        let result = completion.result();
        if completion.user_data() == CANCELLATION && result < 0 && result != nothing_left {
            return Err(io::Error::from_raw_os_error(-result));
        }
    }
    Ok(reaped)
}

fn pass_over(entered: io::Result<usize>, expected: &[Errno]) -> io::Result<()> {
    match entered {
        Ok(_submitted) => Ok(()),
        Err(error) => {
            let code = error.raw_os_error();
            let is_expected = expected.iter().any(|errno| code == Some(errno.raw_os_error()));
            if is_expected { Ok(()) } else { Err(error) }
        }
    }
}

fn wait_in_ppoll(descriptors: &[RawFd], timeout: Option<Duration>) {
    let mut polls: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|descriptor| {
            // SAFETY: the pollers that own the descriptors are borrowed by the reactor's thread,
            // which is here: nobody closes them before this function returns.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*descriptor) };
            PollFd::from_borrowed_fd(descriptor, PollFlags::IN)
        })
        .collect();
    let limit = timeout.map(|timeout| rustix::event::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(&mut polls, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Out of memory or descriptors: the reactor goes on polling, others get the core meanwhile.
        Err(_) => rustix::thread::sched_yield(),
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    /// Sleeps over `events` and tells how long it took.
    fn nap(sleeper: &mut Sleeper, events: &[&EventFd], timeout: Duration) -> Duration {
        let start = Instant::now();
        sleeper.sleep(|visit| events.iter().for_each(|event| visit(event.as_fd())), Some(timeout));
        start.elapsed()
    }

    fn sleepers() -> [Sleeper; 2] {
        let sleepers = [Sleeper::new(), Sleeper::with_ppoll()];
        let is_to_be_had = IoUring::new(1).is_ok();
        assert_eq!(sleepers[0].uses_io_uring(), is_to_be_had, "fell back without need");
        sleepers
    }

    #[test]
    fn wakes_for_a_descriptor_and_for_the_time() {
        for mut sleeper in sleepers() {
            let (first, second) = (EventFd::new().unwrap(), EventFd::new().unwrap());
            let events = [&first, &second];
            assert!(nap(&mut sleeper, &events, SHORT) >= SHORT);
            second.signal();
            assert!(nap(&mut sleeper, &events, LONG) < LONG, "readable before the sleep");
            second.drain();
            assert!(nap(&mut sleeper, &events, SHORT) >= SHORT, "an old signal is not seen again");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(SHORT);
                    first.signal();
                });
                assert!(nap(&mut sleeper, &events, LONG) < LONG, "signalled during the sleep");
            });
        }
    }

    /// A number that was closed and given to a new file is watched as the new file, and a file
    /// whose owner closed it is not kept open by an earlier sleep.
    #[test]
    fn the_set_of_descriptors_may_change_between_sleeps() {
        for mut sleeper in sleepers() {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            sleeper.sleep(|visit| visit(ours.as_fd()), Some(SHORT));
            let number = ours.as_raw_fd();
            drop(ours);
            let mut polls = [PollFd::new(&theirs, PollFlags::IN)];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let hung_up = rustix::event::poll(&mut polls, Some(&at_once)).unwrap();
            assert_eq!(hung_up, 1, "the sleeper kept the socket open");

            // Tests run beside each other, so ask for the number rather than hope for it.
            let fresh = EventFd::new().unwrap();
            let reused = rustix::io::fcntl_dupfd_cloexec(&fresh, number).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(SHORT);
                    fresh.signal();
                });
                let start = Instant::now();
                sleeper.sleep(|visit| visit(reused.as_fd()), Some(LONG));
                assert!(start.elapsed() < LONG, "the new file at the old number was not watched");
            });
        }
    }

    #[test]
    fn more_descriptors_than_the_ring_holds() {
        for mut sleeper in sleepers() {
            let started_with_ring = sleeper.uses_io_uring();
            let events: Vec<EventFd> =
                (0..3 * RING_ENTRIES).map(|_| EventFd::new().unwrap()).collect();
            let all: Vec<&EventFd> = events.iter().collect();
            for _ in 0..3 {
                assert!(nap(&mut sleeper, &all, SHORT) >= SHORT);
            }
            events[2 * RING_ENTRIES as usize].signal();
            assert!(nap(&mut sleeper, &all, LONG) < LONG);
            events.iter().for_each(EventFd::signal);
            assert!(nap(&mut sleeper, &all, LONG) < LONG);
            assert!(nap(&mut sleeper, &[], SHORT) >= SHORT);
            assert_eq!(sleeper.uses_io_uring(), started_with_ring, "fell back");
        }
    }
}
