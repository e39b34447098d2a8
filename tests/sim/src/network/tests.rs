//! What the simulated network guarantees, and that it does what it is there for.
#![allow(clippy::unwrap_used)]

mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Event, Events, Fabric, FabricError, PostError,
    Registration, RemoteSlice, Transfer, TransferStatus,
};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::time::Time;

use super::{Model, NetworkOptions, SimFabric, SimNetwork};
use crate::agenda::Device;
use crate::random::{Chance, Random};
use crate::trace::Trace;

const MODELS: [Model; 2] = [Model::Shm, Model::Verbs];

/// What a fabric's user has seen.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Accepted(ConnectionId),
    Connected(ConnectionId),
    Disconnected(ConnectionId, DisconnectReason),
    Message(ConnectionId, Vec<u8>),
    Registered(ConnectionId, u32),
    Deregistered(ConnectionId, u32),
    Transferred(ConnectionId, u64, TransferStatus),
}

/// Fabrics on one network, polled by hand.
struct Bench {
    network: SimNetwork,
    now: Time,
    fabrics: Vec<SimFabric>,
    /// Which of them are polled while the bench waits.
    polled: Vec<bool>,
    seen: Vec<Vec<Seen>>,
}

fn address(name: &str) -> Address {
    Address::shm(format!("/sim/{name}")).unwrap()
}

impl Bench {
    fn new(options: NetworkOptions, seed: u64, fabrics: usize) -> Bench {
        let network = SimNetwork::new(options, &Random::seeded(seed), &Trace::new());
        let fabrics = (0..fabrics).map(|index| network.fabric(&format!("f{index}"))).collect();
        let mut bench =
            Bench { network, now: Time::ZERO, fabrics, polled: Vec::new(), seen: Vec::new() };
        for (index, fabric) in bench.fabrics.iter_mut().enumerate() {
            fabric.listen(&address(&format!("f{index}"))).unwrap();
            bench.polled.push(true);
            bench.seen.push(Vec::new());
        }
        bench
    }

    fn poll(&mut self, index: usize) -> usize {
        let mut events = Events::default();
        self.fabrics[index].poll(self.now, &mut events);
        let count = events.len();
        while let Some(event) = events.pop() {
            self.seen[index].push(match event {
                Event::Accepted { connection, .. } => Seen::Accepted(connection),
                Event::Connected { connection } => Seen::Connected(connection),
                Event::Disconnected { connection, reason } => {
                    Seen::Disconnected(connection, reason)
                }
                Event::Message { connection, bytes } => {
                    Seen::Message(connection, events.message(bytes).to_vec())
                }
                Event::Registered { connection, key } => Seen::Registered(connection, key.0),
                Event::Deregistered { connection, key } => Seen::Deregistered(connection, key.0),
                Event::Transferred { connection, token, status, .. } => {
                    Seen::Transferred(connection, token, status)
                }
            });
        }
        count
    }

    fn poll_all(&mut self) -> usize {
        let mut count = 0;
        for index in 0..self.fabrics.len() {
            if self.polled[index] {
                count += self.poll(index);
            }
        }
        count
    }

    /// Runs until nothing happens any more.
    fn settle(&mut self) {
        self.settle_until(Time::NEVER);
    }

    fn settle_until(&mut self, end: Time) {
        loop {
            while self.poll_all() > 0 {}
            let next = self.network.next_event();
            if next == Time::NEVER || next > end {
                return;
            }
            self.now = next;
            self.network.advance(next);
        }
    }

    /// Connects `from` to `to`; both ends.
    fn connect(&mut self, from: usize, to: usize) -> (ConnectionId, ConnectionId) {
        let near = self.fabrics[from].connect(&address(&format!("f{to}"))).unwrap();
        self.settle();
        assert!(self.seen[from].contains(&Seen::Connected(near)));
        let far = self.seen[to].iter().rev().find_map(|seen| match seen {
            Seen::Accepted(connection) => Some(*connection),
            _ => None,
        });
        (near, far.unwrap())
    }

    fn register(
        &mut self,
        index: usize,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
    ) -> Registration {
        self.register_for(index, connection, memory, Access::READ_WRITE)
    }

    fn register_for(
        &mut self,
        index: usize,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Registration {
        let made = self.fabrics[index].register(connection, memory, access).unwrap();
        self.settle();
        assert!(self.seen[index].contains(&Seen::Registered(connection, made.key.0)));
        made
    }

    fn statuses(&self, index: usize) -> BTreeMap<u64, Vec<TransferStatus>> {
        let mut statuses: BTreeMap<u64, Vec<TransferStatus>> = BTreeMap::new();
        for seen in &self.seen[index] {
            if let Seen::Transferred(_, token, status) = seen {
                statuses.entry(*token).or_default().push(*status);
            }
        }
        statuses
    }

    fn end_of(&self, index: usize, connection: ConnectionId) -> Option<DisconnectReason> {
        self.seen[index].iter().find_map(|seen| match seen {
            Seen::Disconnected(ended, reason) if *ended == connection => Some(*reason),
            _ => None,
        })
    }

    /// The connections that are usable as far as their users know.
    fn open(&self) -> Vec<(usize, ConnectionId)> {
        let mut open = Vec::new();
        for (index, seen) in self.seen.iter().enumerate() {
            for seen in seen {
                match seen {
                    Seen::Accepted(connection) | Seen::Connected(connection) => {
                        open.push((index, *connection));
                    }
                    Seen::Disconnected(connection, _) => {
                        open.retain(|known| *known != (index, *connection));
                    }
                    _ => {}
                }
            }
        }
        open
    }

    fn messages(&self, index: usize, connection: ConnectionId) -> Vec<u8> {
        let of = self.seen[index].iter().filter_map(|seen| match seen {
            Seen::Message(from, bytes) if *from == connection => Some(bytes[0]),
            _ => None,
        });
        of.collect()
    }
}

fn filled(byte: u8, len_bytes: usize) -> Memory {
    let mapping = Mapping::shareable(len_bytes).unwrap();
    mapping.copy_in(0, &vec![byte; mapping.len()]);
    Memory::Shared(mapping.slice(0, len_bytes as u64).unwrap())
}

fn transfer(token: u64, memory: Memory, at: Registration, offset: u64) -> Transfer {
    let len_bytes = memory.len() as u32;
    let remote = RemoteSlice { address: at.address + offset, key: at.key, len_bytes };
    Transfer { token, memory, offset: 0, remote }
}

fn content(mapping: &Arc<Mapping>) -> Vec<u8> {
    let mut bytes = vec![0; mapping.len()];
    mapping.copy_out(0, &mut bytes);
    bytes
}

#[test]
fn messages_keep_their_order_on_a_connection_and_lose_it_across() {
    let mut overtaken = 0;
    for seed in 0..20 {
        let mut bench = Bench::new(NetworkOptions::calm(Model::Shm), seed, 2);
        let (one, at_one) = bench.connect(0, 1);
        let (two, at_two) = bench.connect(0, 1);
        for number in 0..40u8 {
            let on = if number % 2 == 0 { one } else { two };
            bench.fabrics[0].send(on, &[number]).unwrap();
        }
        bench.fabrics[0].flush();
        bench.settle();
        assert_eq!(bench.messages(1, at_one), (0..40).step_by(2).collect::<Vec<u8>>());
        assert_eq!(bench.messages(1, at_two), (1..40).step_by(2).collect::<Vec<u8>>());
        let arrived: Vec<u8> = bench.seen[1]
            .iter()
            .filter_map(|seen| match seen {
                Seen::Message(_, bytes) => Some(bytes[0]),
                _ => None,
            })
            .collect();
        overtaken += usize::from(!arrived.is_sorted());
    }
    assert!(overtaken > 10, "messages of different connections overtook in {overtaken} runs only");
}

#[test]
fn nothing_leaves_before_the_flush() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Shm), 1, 2);
    let (near, far) = bench.connect(0, 1);
    bench.fabrics[0].send(near, b"x").unwrap();
    bench.settle();
    assert!(bench.messages(1, far).is_empty());
    bench.fabrics[0].flush();
    bench.settle();
    assert_eq!(bench.messages(1, far), b"x");
}

#[test]
fn a_message_never_overtakes_the_bytes_written_before_it() {
    for (model, seed) in MODELS.into_iter().flat_map(|model| (0..50).map(move |s| (model, s))) {
        let options = NetworkOptions {
            break_connection: Chance::NEVER,
            split_transfer: Chance::percent(60),
            ..NetworkOptions::hostile(model)
        };
        let mut bench = Bench::new(options, seed, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(4 * PAGE_BYTES).unwrap();
        let made = bench.register(0, host, &memory);
        // The first post of a direction is never refused without need.
        let write = transfer(1, filled(7, 4 * PAGE_BYTES), made, 0);
        bench.fabrics[1].write(server, write).unwrap();
        bench.fabrics[1].send(server, b"there").unwrap();
        bench.fabrics[1].flush();
        while bench.messages(0, host).is_empty() {
            let next = bench.network.next_event();
            assert_ne!(next, Time::NEVER, "the message got lost");
            bench.now = next;
            bench.network.advance(next);
            bench.poll_all();
        }
        assert!(content(&memory).iter().all(|byte| *byte == 7), "{model:?} {seed}");
    }
}

#[test]
fn reads_bring_what_is_there_when_they_take_effect() {
    for model in MODELS {
        let mut bench = Bench::new(NetworkOptions::calm(model), 3, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(PAGE_BYTES).unwrap();
        memory.copy_in(100, b"payload");
        let made = bench.register(0, host, &memory);
        let local = Mapping::shareable(PAGE_BYTES).unwrap();
        let read = transfer(5, Memory::Shared(local.slice(10, 7).unwrap()), made, 100);
        bench.fabrics[1].read(server, read).unwrap();
        bench.fabrics[1].flush();
        bench.settle();
        assert_eq!(bench.statuses(1)[&5], [TransferStatus::Done]);
        assert_eq!(&content(&local)[10..17], b"payload");
    }
}

#[test]
fn keys_work_on_their_connection_in_their_range_and_rights_only() {
    for model in MODELS {
        for wrong in ["connection", "key", "range", "before", "right", "none"] {
            let mut bench = Bench::new(NetworkOptions::calm(model), 4, 3);
            let (host, server) = bench.connect(0, 1);
            let (_, stranger) = bench.connect(0, 2);
            let memory = Mapping::shareable(PAGE_BYTES).unwrap();
            let access = Access { remote_read: true, remote_write: wrong != "right" };
            let made = bench.register_for(0, host, &memory, access);
            let mut write = transfer(1, filled(9, 512), made, 0);
            match wrong {
                "key" => write.remote.key.0 += 1,
                "range" => write.remote.address += PAGE_BYTES as u64 - 511,
                "before" => write.remote.address -= 1,
                _ => {}
            }
            let (by, on) = if wrong == "connection" { (2, stranger) } else { (1, server) };
            bench.fabrics[by].write(on, write).unwrap();
            bench.fabrics[by].flush();
            bench.settle();
            let refused = wrong != "none";
            let status = if refused { TransferStatus::AccessRefused } else { TransferStatus::Done };
            assert_eq!(bench.statuses(by)[&1], [status], "{model:?} {wrong}");
            let moved = content(&memory).iter().any(|byte| *byte != 0);
            assert_eq!(moved, !refused, "{model:?} {wrong}");
            let end = refused.then_some(DisconnectReason::TransferRefused);
            assert_eq!(bench.end_of(by, on), end, "{model:?} {wrong}");
        }
    }
}

#[test]
fn nothing_posted_behind_a_refused_transfer_takes_effect() {
    for (model, seed) in MODELS.into_iter().flat_map(|model| (0..20).map(move |s| (model, s))) {
        let mut bench = Bench::new(NetworkOptions::calm(model), seed, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(PAGE_BYTES).unwrap();
        let made = bench.register(0, host, &memory);
        let fabric = &mut bench.fabrics[1];
        fabric.send(server, b"1").unwrap();
        fabric.write(server, transfer(1, filled(1, 64), made, 0)).unwrap();
        fabric.send(server, b"2").unwrap();
        let mut foreign = transfer(2, filled(2, 64), made, 0);
        foreign.remote.key.0 += 1;
        fabric.write(server, foreign).unwrap();
        fabric.send(server, b"3").unwrap();
        fabric.write(server, transfer(3, filled(3, 64), made, 0)).unwrap();
        fabric.flush();
        // In the next turn, before the poster can know.
        fabric.send(server, b"4").unwrap();
        fabric.write(server, transfer(4, filled(4, 64), made, 0)).unwrap();
        fabric.flush();
        bench.settle();
        assert_eq!(bench.messages(0, host), b"12", "{model:?}");
        assert_eq!(content(&memory)[..64], [1; 64]);
        let statuses = bench.statuses(1);
        assert_eq!(statuses[&2], [TransferStatus::AccessRefused]);
        for token in [3, 4] {
            assert_eq!(statuses[&token], [TransferStatus::ConnectionLost], "{model:?} {token}");
        }
        let ends = (bench.end_of(1, server), bench.end_of(0, host));
        let told = match model {
            Model::Shm => DisconnectReason::Protocol,
            Model::Verbs => DisconnectReason::PeerLost,
        };
        assert_eq!(ends, (Some(DisconnectReason::TransferRefused), Some(told)), "{model:?}");
    }
}

#[test]
fn a_full_queue_refuses_and_nothing_is_lost() {
    let mut bench = Bench::new(
        NetworkOptions { small_credits: 4, large_credits: 1, ..NetworkOptions::calm(Model::Shm) },
        5,
        2,
    );
    let (near, far) = bench.connect(0, 1);
    bench.polled[1] = false;
    for number in 0..4 {
        bench.fabrics[0].send(near, &[number]).unwrap();
    }
    bench.fabrics[0].flush();
    bench.settle();
    assert_eq!(bench.fabrics[0].send(near, b"x"), Err(PostError::Full), "nobody polled them");
    // The classes have credits of their own.
    bench.fabrics[0].send(near, &[9; 257]).unwrap();
    assert_eq!(bench.fabrics[0].send(near, &[9; 257]), Err(PostError::Full));
    assert_eq!(bench.fabrics[0].send(near, &[9; 8193]), Err(PostError::TooLong));
    bench.fabrics[0].flush();
    bench.polled[1] = true;
    bench.settle();
    bench.fabrics[0].send(near, &[10]).unwrap();
    bench.fabrics[0].flush();
    bench.settle();
    assert_eq!(bench.messages(1, far), [0, 1, 2, 3, 9, 10]);
}

#[test]
fn on_shm_only_replaced_pages_keep_a_disconnected_peer_out() {
    for replaces in [false, true] {
        let mut bench = Bench::new(NetworkOptions::calm(Model::Shm), 6, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(PAGE_BYTES).unwrap();
        let made = bench.register(0, host, &memory);
        bench.polled[1] = false;
        bench.fabrics[0].disconnect(host);
        bench.settle();
        assert_eq!(bench.end_of(0, host), Some(DisconnectReason::Local));
        let _fresh = replaces.then(|| memory.replace_pages(0, PAGE_BYTES, true).unwrap());
        // The server has not noticed.
        bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
        bench.fabrics[1].flush();
        let remote = RemoteSlice { address: made.address, key: made.key, len_bytes: 64 };
        let view = bench.fabrics[1].map(server, remote, Access::READ_WRITE).unwrap();
        bench.settle();
        view.copy_in(32, &[8; 32]);
        let expected = if replaces { [0, 0] } else { [9, 8] };
        assert_eq!([content(&memory)[0], content(&memory)[32]], expected);
        bench.polled[1] = true;
        bench.settle();
        assert_eq!(bench.end_of(1, server), Some(DisconnectReason::Remote));
        assert_eq!(bench.statuses(1)[&1].len(), 1);
        assert!(bench.fabrics[1].map(server, remote, Access::READ_WRITE).is_none());
    }
}

#[test]
fn on_verbs_a_disconnect_takes_access_away_at_once() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Verbs), 7, 2);
    let (host, server) = bench.connect(0, 1);
    let memory = Mapping::shareable(PAGE_BYTES).unwrap();
    let made = bench.register(0, host, &memory);
    bench.polled[1] = false;
    bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
    bench.fabrics[1].flush();
    bench.fabrics[0].disconnect(host);
    bench.settle();
    bench.polled[1] = true;
    bench.settle();
    assert!(content(&memory).iter().all(|byte| *byte == 0));
    assert_eq!(bench.statuses(1)[&1], [TransferStatus::ConnectionLost]);
    assert!(
        bench.fabrics[1]
            .map(
                server,
                RemoteSlice { address: made.address, key: made.key, len_bytes: 64 },
                Access::READ_WRITE
            )
            .is_none()
    );
}

#[test]
fn a_late_packet_lands_until_its_target_gives_up_and_never_after() {
    let mut landed = [0, 0];
    for (gives_up, seed) in [false, true].into_iter().flat_map(|g| (0..60).map(move |s| (g, s))) {
        let options =
            NetworkOptions { ghost_write: Chance::ALWAYS, ..NetworkOptions::calm(Model::Verbs) };
        let mut bench = Bench::new(options, seed, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(PAGE_BYTES).unwrap();
        let made = bench.register(0, host, &memory);
        bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
        bench.fabrics[1].flush();
        bench.fabrics[1].endpoint().kill();
        if gives_up {
            bench.fabrics[0].disconnect(host);
        }
        memory.zero(0, PAGE_BYTES);
        bench.settle();
        landed[usize::from(gives_up)] += bench.network.stats().ghost_writes;
        let dirty = content(&memory).iter().any(|byte| *byte != 0);
        assert!(!(gives_up && dirty), "seed {seed}: a write landed in memory that was taken back");
    }
    assert!(landed[0] > 5, "{landed:?}");
    assert_eq!(landed[1], 0);
}

#[test]
fn deregistration_waits_for_transfers_and_views() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Shm), 8, 2);
    let (host, server) = bench.connect(0, 1);
    let memory = Mapping::shareable(PAGE_BYTES).unwrap();
    let made = bench.register(0, host, &memory);
    let remote = RemoteSlice { address: made.address, key: made.key, len_bytes: 64 };
    let view = bench.fabrics[1].map(server, remote, Access::READ_WRITE).unwrap();
    // Posted, but the process stands still.
    bench.fabrics[1].endpoint().stall();
    bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
    bench.fabrics[1].flush();
    bench.fabrics[0].deregister(host, made.key);
    bench.settle();
    let gone = Seen::Deregistered(host, made.key.0);
    assert!(!bench.seen[0].contains(&gone));
    assert!(bench.fabrics[1].map(server, remote, Access::READ_WRITE).is_none());
    bench.fabrics[1].endpoint().resume();
    bench.settle();
    assert_eq!(content(&memory)[0], 9, "it held the registration from its post on");
    assert!(!bench.seen[0].contains(&gone), "a view lives");
    drop(view);
    bench.settle();
    assert!(bench.seen[0].contains(&gone));
    bench.fabrics[1].write(server, transfer(2, filled(8, 64), made, 0)).unwrap();
    bench.fabrics[1].flush();
    bench.settle();
    assert_eq!(bench.statuses(1)[&2], [TransferStatus::AccessRefused]);
    assert_eq!(content(&memory)[0], 9);
}

#[test]
fn the_dead_are_noticed_and_their_address_is_free() {
    for model in MODELS {
        let mut bench = Bench::new(NetworkOptions::calm(model), 9, 2);
        let (near, far) = bench.connect(0, 1);
        assert!(matches!(bench.fabrics[0].listen(&address("f1")), Err(FabricError::System { .. })));
        bench.fabrics[1].endpoint().kill();
        let to_nobody = bench.fabrics[0].connect(&address("f1")).unwrap();
        bench.settle();
        assert_eq!(bench.end_of(0, near), Some(DisconnectReason::PeerLost));
        assert_eq!(bench.end_of(0, to_nobody), Some(DisconnectReason::Unreachable));
        assert_eq!(bench.fabrics[0].send(near, b"x"), Err(PostError::NotConnected));
        assert_eq!(bench.fabrics[1].send(far, b"x"), Err(PostError::NotConnected));

        bench.fabrics[1] = bench.network.fabric("f1");
        bench.fabrics[1].listen(&address("f1")).unwrap();
        let (again, _) = bench.connect(0, 1);
        assert_ne!(again, near, "a connection id is not used again");
    }
}

#[test]
fn a_partition_holds_one_direction_until_it_heals() {
    for model in MODELS {
        let mut bench = Bench::new(NetworkOptions::calm(model), 10, 2);
        let (near, far) = bench.connect(0, 1);
        let (one, two) = (bench.fabrics[0].endpoint(), bench.fabrics[1].endpoint());
        bench.network.partition(&one, &two);
        bench.fabrics[0].send(near, b"a").unwrap();
        bench.fabrics[1].send(far, b"b").unwrap();
        bench.fabrics.iter_mut().for_each(SimFabric::flush);
        bench.settle();
        assert_eq!(bench.messages(0, near), b"b");
        assert!(bench.messages(1, far).is_empty());
        bench.network.heal(&one, &two);
        bench.settle();
        assert_eq!(bench.messages(1, far), b"a");

        // The credit of "b" came back too.
        for _ in 0..256 {
            bench.fabrics[1].send(far, b"c").unwrap();
        }
    }
}

#[test]
fn a_partition_of_completions_alone_leaves_the_bytes_and_breaks_in_the_end() {
    let timeout = Duration::from_millis(50);
    let options =
        NetworkOptions { partition_timeout: Some(timeout), ..NetworkOptions::calm(Model::Verbs) };
    let mut bench = Bench::new(options, 11, 2);
    let (host, server) = bench.connect(0, 1);
    let memory = Mapping::shareable(PAGE_BYTES).unwrap();
    let made = bench.register(0, host, &memory);
    let (from, to) = (bench.fabrics[0].endpoint(), bench.fabrics[1].endpoint());
    bench.network.partition(&from, &to);
    bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
    bench.fabrics[1].flush();
    bench.settle_until(bench.now + timeout / 2);
    assert_eq!(content(&memory)[0], 9);
    assert!(bench.statuses(1).is_empty(), "its completion cannot come through");
    bench.settle();
    assert_eq!(bench.statuses(1)[&1].len(), 1);
    assert_eq!(bench.end_of(1, server), Some(DisconnectReason::PeerLost));
    assert_eq!(bench.end_of(0, host), Some(DisconnectReason::PeerLost));
}

#[test]
fn an_orderly_end_delivers_what_was_posted() {
    for (model, seed) in MODELS.into_iter().flat_map(|model| (0..20).map(move |s| (model, s))) {
        let mut bench = Bench::new(NetworkOptions::calm(model), seed, 2);
        let (host, server) = bench.connect(0, 1);
        let memory = Mapping::shareable(PAGE_BYTES).unwrap();
        let made = bench.register(0, host, &memory);
        bench.fabrics[1].send(server, b"a").unwrap();
        bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
        bench.fabrics[1].send(server, b"b").unwrap();
        bench.fabrics[1].disconnect(server);
        assert_eq!(bench.fabrics[1].send(server, b"c"), Err(PostError::NotConnected));
        bench.settle();
        assert_eq!(bench.messages(0, host), b"ab");
        assert_eq!(bench.statuses(1)[&1], [TransferStatus::Done]);
        assert_eq!(bench.end_of(1, server), Some(DisconnectReason::Local));
        assert_eq!(bench.end_of(0, host), Some(DisconnectReason::Remote));
    }
}

#[test]
fn an_end_waits_for_a_stalled_peer_no_longer_than_it_lingers() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Verbs), 12, 2);
    let (host, server) = bench.connect(0, 1);
    let memory = Mapping::shareable(PAGE_BYTES).unwrap();
    let made = bench.register(0, host, &memory);
    let (from, to) = (bench.fabrics[1].endpoint(), bench.fabrics[0].endpoint());
    bench.network.partition(&from, &to);
    bench.fabrics[1].write(server, transfer(1, filled(9, 64), made, 0)).unwrap();
    bench.fabrics[1].disconnect(server);
    bench.settle();
    assert_eq!(bench.statuses(1)[&1], [TransferStatus::ConnectionLost]);
    assert_eq!(bench.end_of(1, server), Some(DisconnectReason::Local));
}

#[test]
fn a_listener_that_is_cut_off_is_unreachable() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Verbs), 13, 2);
    let (from, to) = (bench.fabrics[0].endpoint(), bench.fabrics[1].endpoint());
    bench.network.partition(&to, &from);
    let near = bench.fabrics[0].connect(&address("f1")).unwrap();
    bench.settle();
    assert_eq!(bench.end_of(0, near), Some(DisconnectReason::Unreachable));
    bench.network.heal_all();
    bench.connect(0, 1);
}

#[test]
fn memory_without_a_file_cannot_be_shared_on_shm() {
    let mut bench = Bench::new(NetworkOptions::calm(Model::Shm), 14, 2);
    let (host, _) = bench.connect(0, 1);
    let memory = Mapping::anonymous(PAGE_BYTES).unwrap();
    let refused = bench.fabrics[0].register(host, &memory, Access::READ_WRITE);
    assert!(matches!(refused, Err(FabricError::Memory(_))));
}

/// Everything that the contract promises about a connection's life, on a network that does its
/// worst: each transfer completes once and before the end, and nothing follows the end.
fn check_lives(bench: &Bench, index: usize, posted: &BTreeMap<u64, ConnectionId>) {
    let mut ended = Vec::new();
    let mut begun = Vec::new();
    let mut completed: BTreeMap<u64, ConnectionId> = BTreeMap::new();
    for seen in &bench.seen[index] {
        let connection = match seen {
            Seen::Accepted(connection) | Seen::Connected(connection) => {
                begun.push(*connection);
                connection
            }
            Seen::Disconnected(connection, _) => {
                assert!(!ended.contains(connection), "{connection:?} ended twice");
                ended.push(*connection);
                continue;
            }
            Seen::Transferred(connection, token, _) => {
                assert_eq!(completed.insert(*token, *connection), None, "{token} came twice");
                connection
            }
            Seen::Message(connection, _)
            | Seen::Registered(connection, _)
            | Seen::Deregistered(connection, _) => connection,
        };
        assert!(!ended.contains(connection), "{seen:?} after the end");
        assert!(begun.contains(connection), "{seen:?} before the beginning");
    }
    assert_eq!(&completed, posted, "posted and completed transfers of {index}");
    assert_eq!(begun.len(), ended.iter().filter(|ended| begun.contains(ended)).count());
}

/// What arrived on each connection is a beginning of what was sent on one, in its order.
fn check_messages(bench: &Bench, sent: &BTreeMap<(usize, ConnectionId), Vec<u64>>) {
    let mut arrived: BTreeMap<(usize, ConnectionId), Vec<u64>> = BTreeMap::new();
    for (index, seen) in bench.seen.iter().enumerate() {
        for seen in seen {
            if let Seen::Message(connection, bytes) = seen {
                let number = u64::from_le_bytes(bytes[..].try_into().unwrap());
                arrived.entry((index, *connection)).or_default().push(number);
            }
        }
    }
    for numbers in arrived.values() {
        let from = sent.values().find(|sent| sent[0] == numbers[0]).unwrap();
        assert!(from.starts_with(numbers), "{numbers:?} of {from:?}");
    }
}

#[test]
fn whatever_breaks_every_transfer_completes_once() {
    let mut stats = super::NetworkStats::default();
    for (model, seed) in MODELS.into_iter().flat_map(|model| (0..60).map(move |s| (model, s))) {
        let options = NetworkOptions {
            break_connection: Chance::percent(2),
            ..NetworkOptions::hostile(model)
        };
        let mut bench = Bench::new(options, seed, 3);
        let mut random = Random::seeded(seed).stream("test");
        let memory = Mapping::shareable(8 * PAGE_BYTES).unwrap();
        let mut posted = vec![BTreeMap::new(); 3];
        let mut sent: BTreeMap<(usize, ConnectionId), Vec<u64>> = BTreeMap::new();
        let mut open: Vec<(usize, ConnectionId)> = Vec::new();
        let mut keys: Vec<Registration> = Vec::new();
        for step in 0..300u64 {
            let index = random.index(3);
            match random.below(10) {
                0 => {
                    let to = address(&format!("f{}", random.index(3)));
                    let _full = bench.fabrics[index].connect(&to);
                }
                1 if random.below(4) == 0 && !open.is_empty() => {
                    let (index, connection) = open[random.index(open.len())];
                    bench.fabrics[index].disconnect(connection);
                }
                2 if !open.is_empty() => {
                    let (index, connection) = open[random.index(open.len())];
                    let made =
                        bench.fabrics[index].register(connection, &memory, Access::READ_WRITE);
                    keys.extend(made);
                }
                3 if !keys.is_empty() && !open.is_empty() => {
                    let key = keys[random.index(keys.len())].key;
                    let (index, connection) = open[random.index(open.len())];
                    bench.fabrics[index].deregister(connection, key);
                }
                4..8 if !open.is_empty() => {
                    let (index, connection) = open[random.index(open.len())];
                    let message = step.to_le_bytes();
                    if bench.fabrics[index].send(connection, &message).is_ok() {
                        sent.entry((index, connection)).or_default().push(step);
                    }
                    if let Some(made) = keys.last() {
                        let len_bytes = random.between(1, 4096) as usize;
                        let made = if random.coin() { *made } else { keys[0] };
                        let write = transfer(step, filled(1, len_bytes), made, 0);
                        let outcome = if random.coin() {
                            bench.fabrics[index].write(connection, write)
                        } else {
                            bench.fabrics[index].read(connection, write)
                        };
                        match outcome {
                            Ok(()) => {
                                posted[index].insert(step, connection);
                            }
                            Err(refused) => assert_eq!(refused.transfer.token, step),
                        }
                    }
                    bench.fabrics[index].flush();
                }
                _ => {
                    bench.now =
                        bench.network.next_event().min(bench.now + Duration::from_micros(50));
                    let now = bench.now;
                    bench.network.advance(now);
                    bench.poll_all();
                }
            }
            open = bench.open();
        }
        // Connections that were under way come up meanwhile.
        for _ in 0..2 {
            bench.settle();
            for (index, connection) in bench.open() {
                bench.fabrics[index].disconnect(connection);
            }
        }
        bench.settle();
        for (index, posted) in posted.iter().enumerate() {
            check_lives(&bench, index, posted);
        }
        check_messages(&bench, &sent);
        let seen = bench.network.stats();
        stats.breaks += seen.breaks;
        stats.split_transfers += seen.split_transfers;
        stats.cut_transfers += seen.cut_transfers;
        stats.refused += seen.refused;
        stats.transfers += seen.transfers;
        stats.transfers_after_disconnect += seen.transfers_after_disconnect;
    }
    let counts = [
        stats.breaks,
        stats.split_transfers,
        stats.cut_transfers,
        stats.refused,
        stats.transfers,
        stats.transfers_after_disconnect,
    ];
    assert!(counts.iter().all(|count| *count > 10), "the test did not see enough: {stats:?}");
}
