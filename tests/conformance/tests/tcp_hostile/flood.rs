//! Very many connections that say nothing.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use gannet_fabric::DisconnectReason;
use gannet_fabric::tcp::TcpOptions;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bytes::{Frame, REFUSED_FULL, WELCOME, hello};
use crate::memory::{descriptors, growth_mib, resident_bytes};
use crate::peer::RawPeer;
use crate::stage::{Stage, alone, together};

const HALF_OPEN: usize = 10_000;

/// How long a newcomer may need until it is served, in the midst of it all.
const NEWCOMER_WITHIN: Duration = Duration::from_secs(3);

/// # Panics
/// If this process may not have so many descriptors.
fn allow_descriptors(count: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let hard = limit.maximum;
        assert!(
            hard.is_none_or(|hard| hard >= count),
            "the test needs {count} descriptors, and the hard limit is {hard:?}: raise it \
             (`ulimit -Hn`, LimitNOFILE=)"
        );
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).expect("within the hard limit");
    }
}

/// The address from which the attacker makes its connection.
fn from(number: usize, addresses: usize) -> Ipv4Addr {
    let host = 256 + (number % addresses) as u32;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + host)
}

/// A newcomer connects, is heard, and leaves.
fn newcomer(stage: &mut Stage) -> Duration {
    let start = Instant::now();
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    stage.say(&mut peer, &Frame::new(0).message(b"new here").goodbye().bytes());
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert_eq!(stage.server.message(id).as_deref(), Some(&b"new here"[..]));
    start.elapsed()
}

fn flood(addresses: usize) {
    allow_descriptors(HALF_OPEN as u64 + 2000);
    // Time does not help the server here.
    let options =
        TcpOptions { handshake_timeout: Duration::from_secs(60), ..TcpOptions::default() };
    let half_open_max = options.half_open_max;
    let mut stage = Stage::with(options);
    let (resident, open) = (resident_bytes(), descriptors());
    let start = Instant::now();
    let mut peers = Vec::with_capacity(HALF_OPEN);
    let (mut most, mut slowest_newcomer, mut resident_most) = (0, Duration::ZERO, resident);
    while peers.len() < HALF_OPEN {
        peers.push(RawPeer::dial_from(Some(from(peers.len(), addresses)), stage.port));
        stage.turn();
        most = most.max(stage.server.fabric.connections());
        if peers.len() % 500 == 0 {
            slowest_newcomer = slowest_newcomer.max(newcomer(&mut stage));
            resident_most = resident_most.max(resident_bytes());
        }
    }
    stage.until("those that have to go", |_| {
        peers.iter_mut().for_each(RawPeer::listen);
        let over = peers.iter().filter(|peer| peer.over).count();
        (over >= HALF_OPEN - half_open_max).then_some(())
    });
    let over = peers.iter().filter(|peer| peer.over).count();
    let took = start.elapsed();
    slowest_newcomer = slowest_newcomer.max(newcomer(&mut stage));
    let open_then = descriptors() - open;
    resident_most = resident_most.max(resident_bytes());
    let connections = stage.server.fabric.connections();
    let (rounds, slowest) = stage.served();
    drop(peers);
    stage.until("the rest", |server| (server.fabric.connections() == 1).then_some(()));
    let (open_after, resident_after) = (descriptors().saturating_sub(open), resident_bytes());
    println!(
        "{HALF_OPEN} half-open connections from {addresses} addresses in {took:?}: {over} had to \
         go, {connections} connections in the table (at most {most}); {open_then} descriptors more \
         ({HALF_OPEN} are the attacker's), then {open_after}; resident memory {:.1} MiB, at most \
         {:.1} MiB more, then {:.1} MiB; the good peer {rounds} rounds, at most {slowest:?} each; \
         newcomers served within {slowest_newcomer:?}",
        growth_mib(0, resident),
        growth_mib(resident, resident_most),
        growth_mib(resident, resident_after)
    );
    assert!(over >= HALF_OPEN - half_open_max);
    // Those on their way out, and the good ones.
    assert!(most <= half_open_max + 8, "{most} connections");
    assert!(open_then <= HALF_OPEN + half_open_max + 64, "{open_then} descriptors");
    assert!(open_after <= 64, "{open_after} descriptors");
    assert!(growth_mib(resident, resident_most) < 16.0);
    assert!(slowest_newcomer < NEWCOMER_WITHIN, "{slowest_newcomer:?}");
    stage.finish();
}

#[test]
fn ten_thousand_half_open_connections_from_one_address() {
    let _turn = alone();
    flood(1);
}

#[test]
fn ten_thousand_half_open_connections_from_ten_thousand_addresses() {
    let _turn = alone();
    flood(HALF_OPEN);
}

/// Who has most of them goes, and not who came first.
#[test]
fn a_slow_newcomer_outlasts_a_flood_from_elsewhere() {
    let _turn = together();
    let options = TcpOptions { half_open_max: 16, ..TcpOptions::default() };
    let mut stage = Stage::with(options);
    let mut slow = RawPeer::dial_from(Some(Ipv4Addr::new(127, 0, 0, 9)), stage.port);
    stage.say(&mut slow, &hello()[..32]);
    stage.until("it", |server| (server.fabric.connections() == 2).then_some(()));
    let mut flood = Vec::new();
    for number in 0..400 {
        flood.push(RawPeer::dial_from(Some(from(number, 4)), stage.port));
        stage.turn();
    }
    stage.until("those that have to go", |_| {
        flood.iter_mut().for_each(RawPeer::listen);
        (flood.iter().filter(|peer| peer.over).count() >= 400 - 16).then_some(())
    });
    stage.say(&mut slow, &hello()[32..]);
    let id = stage.accepted();
    stage.until("a welcome", |_| {
        slow.listen();
        slow.greeting()
    });
    assert_eq!(slow.greeting(), Some(WELCOME));
    slow.finish();
    assert_eq!(stage.end_of(id), DisconnectReason::PeerLost);
    drop(flood);
    stage.finish();
}

/// Connections that come and go in one place of the table do not count as many at a time.
#[test]
fn those_that_are_gone_do_not_count() {
    let _turn = together();
    let options = TcpOptions { half_open_max: 16, ..TcpOptions::default() };
    let mut stage = Stage::with(options);
    for _ in 0..100 {
        let peer = RawPeer::dial(stage.port);
        stage.until("it", |server| (server.fabric.connections() == 2).then_some(()));
        drop(peer);
        stage.until("its end", |server| (server.fabric.connections() == 1).then_some(()));
    }
    let mut slow = RawPeer::dial(stage.port);
    stage.say(&mut slow, &hello()[..32]);
    stage.until("it", |server| (server.fabric.connections() == 2).then_some(()));
    let others: Vec<_> = (0..10).map(|_| RawPeer::dial(stage.port)).collect();
    stage.until("them", |server| {
        slow.listen();
        (server.fabric.connections() >= 12 || slow.over).then_some(())
    });
    assert!(!slow.over, "it had to go, although there was room");
    stage.say(&mut slow, &hello()[32..]);
    let id = stage.accepted();
    slow.finish();
    assert_eq!(stage.end_of(id), DisconnectReason::PeerLost);
    drop(others);
    stage.finish();
}

/// Tens of thousands that come and go: what is remembered of them is bounded, and so is the time that
/// each costs.
#[test]
fn connections_that_come_and_go_leave_nothing() {
    let _turn = alone();
    const COUNT: usize = 20_000;
    let mut stage = Stage::with(TcpOptions {
        handshake_timeout: Duration::from_secs(60),
        ..TcpOptions::default()
    });
    let mut times = Vec::new();
    let mut resident = Vec::new();
    let mut peers = std::collections::VecDeque::new();
    for _ in 0..4 {
        let start = Instant::now();
        for number in 0..COUNT / 4 {
            peers.push_back(RawPeer::dial_from(Some(from(number, 64)), stage.port));
            if peers.len() > 32 {
                peers.pop_front();
            }
            stage.turn();
        }
        times.push(start.elapsed());
        resident.push(resident_bytes());
    }
    drop(peers);
    let grown = growth_mib(resident[0], resident[3]);
    println!(
        "{COUNT} connections that came and went, a quarter each in {times:?}; {grown:.2} MiB more \
         at the end than after the first quarter; served: {:?}",
        stage.served()
    );
    assert!(grown < 1.0, "{grown} MiB");
    assert!(times[3] < times[0] * 4, "{times:?}: each costs more than those before");
    stage.finish();
}

#[test]
fn a_full_table_says_so_and_keeps_whom_it_has() {
    let _turn = together();
    let options = TcpOptions { connections_max: 8, half_open_max: 64, ..TcpOptions::default() };
    let mut stage = Stage::with(options);
    let port = stage.port;
    let mut established: Vec<_> = (0..6).map(|_| stage.establish()).collect();
    // One place is left: of those that say nothing, the last comer has it.
    let mut silent: Vec<_> = (0..50).map(|_| RawPeer::dial(stage.port)).collect();
    stage.until("those that have to go", |_| {
        silent.iter_mut().for_each(RawPeer::listen);
        (silent.iter().filter(|peer| peer.over).count() >= 49).then_some(())
    });
    assert!(silent.iter().all(|peer| peer.heard.is_empty()), "there was room for each");
    // So has somebody who greets, at once, with others before and behind it in the queue.
    let rush = |count: usize| (0..count).map(|_| RawPeer::dial(port)).collect::<Vec<_>>();
    let mut before = rush(40);
    let mut eighth = RawPeer::dial(port);
    stage.say(&mut eighth, &hello());
    let behind = rush(40);
    stage.until("an answer", |_| {
        eighth.listen();
        (eighth.greeting().is_some() || eighth.over).then_some(())
    });
    assert_eq!(eighth.greeting(), Some(WELCOME));
    eighth.id = Some(stage.accepted());
    stage.until("the ends of those before", |_| {
        before.iter_mut().for_each(RawPeer::listen);
        before.iter().all(|peer| peer.over).then_some(())
    });
    assert!(before.iter().all(|peer| peer.heard.is_empty()), "there was room for each");
    // Nobody has to go for a ninth.
    let mut ninth = RawPeer::dial(stage.port);
    stage.say(&mut ninth, &hello());
    stage.hear_out(&mut ninth);
    assert_eq!(ninth.greeting(), Some(REFUSED_FULL));
    established.push(eighth);
    for peer in &mut established {
        let id = peer.id.expect("established");
        stage.say(peer, &Frame::new(0).message(b"here").goodbye().bytes());
        assert_eq!(stage.end_of(id), DisconnectReason::Remote);
        assert_eq!(stage.server.message(id).as_deref(), Some(&b"here"[..]));
    }
    drop((silent, before, behind));
    stage.finish();
}

/// While it lives, this process gets no descriptors.
struct Exhausted(Rlimit);

impl Exhausted {
    fn new() -> Exhausted {
        let before = getrlimit(Resource::Nofile);
        let none = Rlimit { current: Some(3), maximum: before.maximum };
        setrlimit(Resource::Nofile, none).expect("less is always allowed");
        Exhausted(before)
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).expect("as it was");
    }
}

/// A process that has no descriptors left serves whom it has, and others when there are some again.
#[test]
fn without_descriptors_newcomers_wait() {
    let _turn = alone();
    let mut stage = Stage::new();
    let mut established: Vec<_> = (0..4).map(|_| stage.establish()).collect();
    let before = stage.server.fabric.connections();
    let mut waiting: Vec<_> = (0..20).map(|_| RawPeer::dial(stage.port)).collect();
    let exhausted = Exhausted::new();
    for peer in &mut waiting {
        stage.say(peer, &hello());
    }
    stage.turns(Duration::from_millis(250));
    assert_eq!(stage.server.fabric.connections(), before, "without a descriptor");
    for peer in &mut established {
        let id = peer.id.expect("established");
        stage.say(peer, &Frame::new(0).message(b"still here").bytes());
        let message = stage.until("a message", |server| server.message(id));
        assert_eq!(message, b"still here");
    }
    drop(exhausted);
    for peer in waiting.iter_mut().chain(&mut established) {
        stage.until("a welcome", |_| {
            peer.listen();
            peer.greeting()
        });
        assert_eq!(peer.greeting(), Some(WELCOME));
    }
    drop((waiting, established));
    stage.until("the ends", |server| (server.fabric.connections() == 1).then_some(()));
    stage.server.notes.clear();
    stage.finish();
}
