//! The tcp provider passes the suite.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use gannet_conformance::fabric::end::{End, Pair, connect, pattern};
use gannet_conformance::fabric::{Bounds, Provider};
use gannet_fabric::tcp::{TcpFabric, TcpOptions};
use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Fabric, PeerIdentity, Registration,
    RemoteSlice, Transfer, TransferStatus,
};
use gannet_runtime::counting_allocator::CountingAllocator;
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::pool::BufferPool;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Ports below those that the kernel gives to connections, where nobody listens by chance.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A long transfer.
const LEN_BYTES: usize = 8 << 20;

/// Over loopback.
struct Tcp {
    payload_checksums: bool,
}

impl Provider for Tcp {
    type Fabric = TcpFabric;

    fn fabric_with(&self, bounds: Bounds) -> TcpFabric {
        let options = TcpOptions {
            connections_max: bounds.connections_max,
            registrations_max: bounds.registrations_max,
            windows_max: bounds.windows_max,
            payload_checksums: self.payload_checksums,
            ..TcpOptions::default()
        };
        TcpFabric::new(options).expect("a fabric")
    }

    fn address(&self) -> Address {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let start = std::process::id() as u16;
            let port =
                PORTS.start + start.wrapping_mul(7).wrapping_add(number) % PORTS.len() as u16;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Address::Tcp { host: "127.0.0.1".to_owned(), port };
            }
        }
    }

    fn kill(&self, fabric: TcpFabric) {
        fabric.abandon();
    }

    fn slowdown(&self) -> u32 {
        4
    }
}

/// A name leads to the same peer, by whatever looks names up on this machine.
#[test]
fn peers_have_names() {
    let provider = Tcp { payload_checksums: false };
    let Address::Tcp { port, .. } = provider.address() else { panic!("of another fabric") };
    let address = Address::Tcp { host: "localhost".to_owned(), port };
    let mut server = provider.fabric();
    server.listen(&address).expect("a free address");
    let (mut left, mut right) = (End::new(provider.fabric()), End::new(server));
    let (to_right, _) = connect(&mut left, &mut right, &address);
    let peer = left.fabric.peer(to_right);
    assert!(
        matches!(&peer, Some(PeerIdentity::Network(peer)) if peer == "127.0.0.1" || peer == "::1"),
        "{peer:?}"
    );
}

/// Ends that grant each other different numbers of credits return them in time, also to one that only
/// sends.
#[test]
fn one_way_traffic_goes_on_with_unequal_credits() {
    const MESSAGES: u64 = 1000;
    let provider = Tcp { payload_checksums: false };
    let few = || {
        let credits = TcpOptions { small_credits: 16, large_credits: 1, ..TcpOptions::default() };
        TcpFabric::new(credits).expect("a fabric")
    };
    for few_send in [true, false] {
        let (left, right) = match few_send {
            true => (few(), provider.fabric()),
            false => (provider.fabric(), few()),
        };
        let mut pair = Pair::of(&provider, left, right);
        let to_left = pair.to_left;
        for number in 0..MESSAGES {
            let len = if number % 3 == 0 { 1000 } else { 100 };
            pair.send_right(&pattern(number, len));
            while pair.right.message(to_left).is_some() {}
        }
    }
}

/// Posts a read and a write of all the left end's memory at the right end.
fn read_and_write(end: &mut End<TcpFabric>, id: ConnectionId, at: Registration, pool: &BufferPool) {
    for writes in [false, true] {
        let memory = Memory::Buffer(pool.take().expect("free"));
        let remote = RemoteSlice { address: at.address, key: at.key, len_bytes: LEN_BYTES as u32 };
        let transfer = Transfer { token: writes.into(), memory, offset: 0, remote };
        let posted =
            if writes { end.fabric.write(id, transfer) } else { end.fabric.read(id, transfer) };
        posted.expect("room");
    }
}

/// Each end reads a lot of the other and writes into the same bytes: neither waits for the other to
/// take first what it has to say.
#[test]
fn ends_that_write_what_they_read_do_not_wait_for_each_other() {
    const ROUNDS: u64 = 4;
    let provider = Tcp { payload_checksums: false };
    let mut pair = Pair::new(&provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let pool = BufferPool::new(LEN_BYTES, 4 * ROUNDS as u32).expect("memory");
    let memory = [(); 2].map(|()| Mapping::shareable(LEN_BYTES).expect("memory"));
    let right_at =
        pair.right.fabric.register(to_left, &memory[1], Access::READ_WRITE).expect("room");
    pair.until("the key", |_, right| right.registered(to_left, right_at.key));
    let left_at = pair.register_left(&memory[0], Access::READ_WRITE);
    for _ in 0..ROUNDS {
        read_and_write(&mut pair.left, to_right, right_at, &pool);
        read_and_write(&mut pair.right, to_left, left_at, &pool);
    }
    for number in 0..2 * ROUNDS {
        for left in [true, false] {
            let (token, _, status) = pair.until("a completion", |left_end, right_end| match left {
                true => left_end.completion(to_right),
                false => right_end.completion(to_left),
            });
            assert_eq!((token, status), (number % 2, TransferStatus::Done), "{number}, {left}");
        }
    }
}

/// What was posted before a disconnect completes, where the peer lives: it is told although the
/// goodbye comes right behind.
#[test]
fn transfers_posted_before_a_disconnect_are_done() {
    let provider = Tcp { payload_checksums: false };
    for turns in 0..4 {
        let mut pair = Pair::new(&provider);
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let memory = Mapping::shareable(64 * 1024).expect("memory");
        let at = pair.register_left(&memory, Access::READ_WRITE);
        let pool = BufferPool::new(32 * 1024, 40).expect("memory");
        for token in 0..40u64 {
            let writes = token % 3 != 0;
            let address = at.address + if writes { 0 } else { 32 * 1024 };
            let remote = RemoteSlice { address, key: at.key, len_bytes: 32 * 1024 };
            let local = Memory::Buffer(pool.take().expect("free"));
            let transfer = Transfer { token, memory: local, offset: 0, remote };
            let fabric = &mut pair.right.fabric;
            let posted = match writes {
                true => fabric.write(to_left, transfer),
                false => fabric.read(to_left, transfer),
            };
            posted.expect("room");
        }
        for _ in 0..turns {
            pair.right.turn();
            pair.left.turn();
        }
        pair.right.fabric.disconnect(to_left);
        for expected in 0..40 {
            let (token, _, status) =
                pair.until("a completion", |_, right| right.completion(to_left));
            assert_eq!((token, status), (expected, TransferStatus::Done), "after {turns} turns");
        }
        let reason = pair.until("the end", |left, _| left.ended(to_right));
        assert_eq!(reason, DisconnectReason::Remote);
        let reason = pair.until("the end", |_, right| right.ended(to_left));
        assert_eq!(reason, DisconnectReason::Local);
    }
}

mod plain {
    use super::Tcp;

    gannet_conformance::fabric_conformance!(Tcp { payload_checksums: false });
}

mod with_checksums {
    use super::Tcp;

    gannet_conformance::fabric_conformance!(Tcp { payload_checksums: true });
}
