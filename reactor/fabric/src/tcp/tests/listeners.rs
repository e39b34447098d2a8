//! Listeners that cannot accept, and rushes at those that can.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gannet_runtime::time::Time;

use super::{is_woken, port_of};
use crate::tcp::wire::GREETING_BYTES;
use crate::tcp::{TcpFabric, TcpOptions};
use crate::{Address, Events, Fabric};

const LONG: Duration = Duration::from_secs(10);

fn listening(options: TcpOptions) -> (TcpFabric, u16) {
    let mut fabric = TcpFabric::new(options).unwrap();
    fabric.listen(&Address::tcp("127.0.0.1:0").unwrap()).unwrap();
    let port = port_of(&fabric);
    (fabric, port)
}

/// Options with which nobody has to hurry with a greeting.
fn patient() -> TcpOptions {
    TcpOptions { handshake_timeout: 10 * LONG, ..TcpOptions::default() }
}

fn dial(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// Sleeps like a reactor until something wakes it, and polls then. Whether it did.
fn sleep(fabric: &mut TcpFabric, within: Duration) -> bool {
    let mut events = Events::default();
    fabric.flush();
    fabric.arm();
    fabric.poll(Time::monotonic(), &mut events);
    let woken = is_woken(fabric, within);
    fabric.disarm();
    fabric.poll(Time::monotonic(), &mut events);
    woken
}

fn until(fabric: &mut TcpFabric, what: &str, mut done: impl FnMut(&TcpFabric) -> bool) {
    let start = Instant::now();
    let mut events = Events::default();
    while !done(fabric) {
        fabric.poll(Time::monotonic(), &mut events);
        fabric.flush();
        assert!(start.elapsed() < LONG, "{what}");
    }
}

/// An error that stays does not keep the reactor awake, and one that goes away is noticed.
#[test]
fn a_listener_that_fails_rests_and_comes_back() {
    let (mut fabric, port) = listening(patient());
    let first = dial(port);
    until(&mut fabric, "the first", |fabric| fabric.connections() == 1);
    let socket = fabric.listeners[0].socket.try_clone().unwrap();
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
    let start = Instant::now();
    // It tries again and again, ten times a second; with each time it may wake up twice.
    for wake in 0..8 {
        assert!(sleep(&mut fabric, LONG), "it never tries again after wake-up {wake}");
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(250), "it does not sleep: 8 wake-ups in {took:?}");
    rustix::net::listen(&socket, 16).unwrap();
    // A port that the kernel chose is another one now.
    let second = dial(port_of(&fabric));
    until(&mut fabric, "the second", |fabric| fabric.connections() == 2);
    drop((first, second));
    until(&mut fabric, "their ends", |fabric| fabric.connections() == 0);
}

/// Of a rush many are taken in at a time, and no more than a poll has time for.
#[test]
fn a_rush_is_taken_in_a_few_polls() {
    const COUNT: usize = 100;
    let (mut fabric, port) = listening(patient());
    let peers: Vec<_> = (0..COUNT).map(|_| dial(port)).collect();
    let mut events = Events::default();
    let (start, mut steps) = (Instant::now(), Vec::new());
    while fabric.connections() < COUNT {
        let before = fabric.connections();
        fabric.poll(Time::monotonic(), &mut events);
        let step = fabric.connections() - before;
        if step > 0 {
            steps.push(step);
        }
        assert!(start.elapsed() < LONG, "{} are in", fabric.connections());
    }
    assert!(steps.len() <= COUNT / 8, "{steps:?}");
    assert!(steps.iter().all(|step| *step <= 64), "{steps:?}");
    drop(peers);
}

/// Who waits for a place has it when it is free, else hears within the time of a handshake that there
/// is none; those behind wait in the kernel.
#[test]
fn a_newcomer_waits_for_a_place_and_not_for_ever() {
    let handshake_timeout = Duration::from_millis(200);
    let (mut fabric, port) = listening(TcpOptions { handshake_timeout, ..TcpOptions::default() });
    // A table that is full, and one connection that the kernel has not given back yet.
    let mut others: Vec<_> = std::iter::from_fn(|| fabric.slots.claim()).collect();
    fabric.ending = 1;
    let start = Instant::now();
    let mut turned_away = dial(port);
    turned_away.set_nonblocking(true).unwrap();
    let mut heard = [0; GREETING_BYTES];
    let mut refused = false;
    until(&mut fabric, "a refusal", |_| {
        refused = turned_away.read(&mut heard).is_ok_and(|count| count == GREETING_BYTES);
        refused
    });
    assert!(start.elapsed() >= handshake_timeout, "it did not wait");

    fabric.options = patient();
    let mut seated = dial(port);
    let mut behind = dial(port);
    until(&mut fabric, "that it waits", |fabric| fabric.newcomer_waits);
    // Whoever had to go is gone.
    fabric.ending = 0;
    fabric.slots.release(others.pop().unwrap());
    until(&mut fabric, "a place", |fabric| fabric.slots.free() == 0 && !fabric.newcomer_waits);
    others.into_iter().for_each(|other| fabric.slots.release(other));
    until(&mut fabric, "the next one", |fabric| fabric.connections() == 2);
    seated.write_all(b"not a greeting").unwrap();
    behind.write_all(b"neither").unwrap();
    until(&mut fabric, "the ends", |fabric| fabric.connections() == 0);
}
