//! A kernel that is short of what it needs to take requests.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gannet_runtime::eventfd::EventFd;
use gannet_runtime::time::Time;

use super::{is_woken, port_of};
use crate::tcp::ring::{Operation, Ring};
use crate::tcp::{TcpFabric, TcpOptions};
use crate::{Address, Event, Events, Fabric};

/// More than the submission queue and the queue of answers have places.
const REQUESTS: u32 = 6000;
const SHORT: [i32; 3] = [libc::EAGAIN, libc::EBUSY, libc::ENOMEM];
const LONG: Duration = Duration::from_secs(30);

#[test]
fn requests_that_the_kernel_does_not_take_wait_in_their_order() {
    for refusal in SHORT {
        let ready = EventFd::new().unwrap();
        ready.signal();
        let idle = EventFd::new().unwrap();
        let mut ring = Ring::new().unwrap();
        ring.refusal = Some(refusal);
        ring.accept(REQUESTS, idle.as_fd());
        for index in 0..REQUESTS {
            ring.accept(index, ready.as_fd());
        }
        // Sent before what it is about, it would find nothing.
        ring.cancel(Operation::Accept, REQUESTS);
        ring.submit();
        assert!(ring.has_unsubmitted());
        assert_eq!(ring.under_way(), REQUESTS as usize + 2);

        ring.refusal = None;
        let (mut answers, mut answered) = (Vec::new(), vec![0; REQUESTS as usize + 1]);
        while ring.under_way() > 0 {
            assert!(ring.wait());
            ring.take(&mut answers);
            for answer in answers.drain(..) {
                if answer.operation == Operation::Accept {
                    answered[answer.index as usize] += 1;
                    let cancelled = answer.result == -libc::ECANCELED;
                    assert_eq!(cancelled, answer.index == REQUESTS, "{answer:?}");
                }
            }
        }
        assert!(answered.iter().all(|times| *times == 1), "each once");
        assert!(!ring.has_unsubmitted());
    }
}

#[test]
fn the_end_waits_for_answers_and_not_for_ever_for_the_kernel() {
    let ready = EventFd::new().unwrap();
    ready.signal();
    let idle = EventFd::new().unwrap();
    let mut ring = Ring::new().unwrap();
    ring.accept(0, ready.as_fd());
    ring.submit();
    ring.refusal = Some(libc::EAGAIN);
    ring.accept(1, idle.as_fd());
    let start = Instant::now();
    assert!(ring.wait(), "there is an answer");
    let mut answers = Vec::new();
    ring.take(&mut answers);
    assert_eq!((answers.len(), answers[0].index, ring.under_way()), (1, 0, 1));
    assert!(!ring.wait(), "there never will be one");
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());

    // What the kernel never heard of is not waited for.
    for index in 2..REQUESTS {
        ring.accept(index, idle.as_fd());
    }
    ring.forget_backlog();
    let left = ring.under_way();
    assert!(left < 2000, "{left} of a queue with room for fewer");
    ring.refusal = None;
    (0..REQUESTS).for_each(|index| ring.cancel(Operation::Accept, index));
    while ring.under_way() > 0 {
        assert!(ring.wait());
        ring.take(&mut answers);
    }
    let ends = answers.iter().filter(|answer| answer.operation == Operation::Accept);
    assert_eq!(ends.count(), left + 1);
}

#[test]
fn a_sleeper_wakes_up_to_offer_its_requests_again() {
    let mut server = TcpFabric::new(TcpOptions::default()).unwrap();
    server.listen(&Address::tcp("127.0.0.1:0").unwrap()).unwrap();
    let port = port_of(&server);
    let options = TcpOptions { connect_timeout: 10 * LONG, ..TcpOptions::default() };
    let mut fabric = TcpFabric::new(options).unwrap();
    fabric.ring.refusal = Some(libc::ENOMEM);
    let id = fabric.connect(&Address::tcp(&format!("127.0.0.1:{port}")).unwrap()).unwrap();
    let mut events = Events::default();
    for round in 0..100 {
        if round == 50 {
            fabric.ring.refusal = None;
        }
        server.poll(Time::monotonic(), &mut events);
        server.flush();
        events.clear();
        fabric.flush();
        fabric.arm();
        fabric.poll(Time::monotonic(), &mut events);
        if let Some(Event::Connected { .. }) = events.pop() {
            assert!(round >= 50, "without the kernel");
            assert!(fabric.peer(id).is_some());
            return;
        }
        // With all of it in the kernel it is the server's turn.
        if fabric.ring.has_unsubmitted() {
            assert!(is_woken(&fabric, LONG), "nothing wakes it at round {round}");
        }
        fabric.disarm();
    }
    panic!("no connection");
}

#[test]
fn a_fabric_ends_although_the_kernel_takes_nothing() {
    let mut fabric = TcpFabric::new(TcpOptions::default()).unwrap();
    fabric.listen(&Address::tcp("127.0.0.1:0").unwrap()).unwrap();
    fabric.flush();
    fabric.ring.refusal = Some(libc::EAGAIN);
    let _connecting = fabric.connect(&Address::tcp("127.0.0.1:1").unwrap()).unwrap();
    let start = Instant::now();
    drop(fabric);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}
