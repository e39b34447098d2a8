//! Reactors, rings and deadlines allocate nothing once they run.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};
use gannet_runtime::deadlines::Deadlines;
use gannet_runtime::idle::IdlePolicy;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::reactor::ReactorOptions;
use gannet_runtime::ring::{Receiver, Sender, channel};
use gannet_runtime::spawn::spawn;
use gannet_runtime::stop::StopFlag;
use gannet_runtime::time::Time;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn the_counter_counts() {
    let before = allocations_on_this_thread();
    let mut bytes = std::hint::black_box(Vec::<u8>::with_capacity(10));
    assert_eq!(allocations_on_this_thread(), before + 1);
    bytes.reserve_exact(1000);
    assert_eq!(allocations_on_this_thread(), before + 2);
    std::thread::spawn(|| drop(std::hint::black_box(Box::new(1u64)))).join().unwrap();
    let after_thread = allocations_on_this_thread();
    drop(bytes);
    assert_eq!(allocations_on_this_thread(), after_thread, "freeing is not allocating");
}

#[test]
fn deadlines_below_their_capacity_allocate_nothing() {
    let mut deadlines = Deadlines::with_capacity(64);
    let before = allocations_on_this_thread();
    for round in 0..1000u64 {
        let kept = deadlines.insert(Time(round), round).unwrap();
        while deadlines.len() < deadlines.capacity() {
            deadlines.insert(Time(round ^ 0x55), round).unwrap();
        }
        assert!(deadlines.cancel(kept));
        while deadlines.pop_due(Time(round / 2 + 60)).is_some() {}
    }
    assert_eq!(allocations_on_this_thread(), before);
}

/// Sends back what it receives, and tells what its thread has allocated since it was under way.
struct Echo {
    receiver: Receiver<u64>,
    sender: Sender<u64>,
    turns: u64,
    allocations_after_start: Option<u64>,
    allocated: Arc<AtomicU64>,
}

/// Turns after which nothing may be allocated any more: the set of descriptors has been collected.
const TURNS_TO_START: u64 = 10;

impl Poller for Echo {
    fn poll(&mut self, _: Now) -> usize {
        self.turns += 1;
        if self.turns == TURNS_TO_START {
            self.allocations_after_start = Some(allocations_on_this_thread());
        }
        if let Some(at_start) = self.allocations_after_start {
            self.allocated.store(allocations_on_this_thread() - at_start, Ordering::Relaxed);
        }
        let mut work = 0;
        while let Some(message) = self.receiver.pop() {
            self.sender.push(message).unwrap();
            work += 1;
        }
        self.sender.flush();
        work
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
    fn arm(&mut self) {
        self.receiver.arm();
    }
    fn disarm(&mut self) {
        self.receiver.disarm();
    }
    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.receiver.wake_descriptor());
    }
    fn shutdown(&mut self, _: Now) -> bool {
        true
    }
}

#[test]
fn a_reactor_that_works_idles_and_sleeps_allocates_nothing() {
    let (mut requests, receiver) = channel(8).unwrap();
    let (sender, mut replies) = channel(8).unwrap();
    let allocated = Arc::new(AtomicU64::new(u64::MAX));
    let stop = StopFlag::new().unwrap();
    let mut options = ReactorOptions::new("echo");
    options.idle = IdlePolicy::Adaptive { spin: Duration::ZERO, yields: Duration::from_nanos(1) };
    let told = Arc::clone(&allocated);
    let reactor = spawn(options, stop.clone(), move || {
        let echo =
            Echo { receiver, sender, turns: 0, allocations_after_start: None, allocated: told };
        let echo: Box<dyn Poller> = Box::new(echo);
        Ok::<_, Infallible>(vec![("echo".to_owned(), echo)])
    })
    .unwrap();

    for message in 0..500u64 {
        let before = allocations_on_this_thread();
        requests.push(message).unwrap();
        requests.flush();
        let reply = loop {
            match replies.pop() {
                Some(reply) => break reply,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(reply, message);
        assert_eq!(allocations_on_this_thread(), before, "ring");
    }
    assert_eq!(allocated.load(Ordering::Relaxed), 0, "reactor");
    stop.stop();
    let stats = Arc::clone(reactor.stats());
    assert!(reactor.join().unwrap().clean);
    assert!(stats.sample().sleeps > 10, "{:?}", stats.sample());
}
