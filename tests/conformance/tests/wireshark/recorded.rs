//! What the real fabric says to itself, on record.
//!
//! Two fabrics talk through a relay that keeps what passes. The captures that are made of it need no
//! rights on the network, and hold the very bytes of the stream.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use gannet_conformance::fabric::end::{End, Pair, connect, content, pattern, until};
use gannet_conformance::fabric::{Bounds, Provider};
use gannet_fabric::tcp::{TcpFabric, TcpOptions};
use gannet_fabric::{Access, Address, DisconnectReason, Fabric, Key, RemoteSlice, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory};

use crate::capture::{Capture, SEGMENT_BYTES_MAX, Sender};
use crate::reading::{self, Packet};
use crate::samples;

type Record = Arc<Mutex<Vec<(Sender, Vec<u8>)>>>;

/// Takes connections at one port and passes all bytes on to another, and back.
struct Relay {
    port: u16,
    accepting: JoinHandle<Vec<Record>>,
}

impl Relay {
    /// For so many connections to a server's port.
    fn new(server: u16, connections: usize) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let accepting = std::thread::spawn(move || {
            let mut records = Vec::new();
            let mut passing = Vec::new();
            for _ in 0..connections {
                let (client, _) = listener.accept().expect("a client");
                let to = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).expect("the server");
                let record = Record::default();
                passing.push(pass(&client, &to, Sender::Client, &record));
                passing.push(pass(&to, &client, Sender::Server, &record));
                records.push(record);
            }
            passing.into_iter().for_each(|thread| thread.join().expect("it passes bytes on"));
            records
        });
        Relay { port, accepting }
    }

    /// What passed, once both ends are through: a capture of it, in which each connection has the
    /// server's port 7470.
    fn capture(self) -> Capture {
        let records = self.accepting.join().expect("the relay ends with its connections");
        let mut capture = Capture::new();
        for (port, record) in (50_000..).zip(records) {
            let mut connection = capture.connect(port, 7470);
            for (sender, bytes) in record.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                capture.stream(&mut connection, *sender, bytes, &[SEGMENT_BYTES_MAX]);
            }
        }
        capture
    }
}

fn pass(from: &TcpStream, to: &TcpStream, sender: Sender, record: &Record) -> JoinHandle<()> {
    let (mut from, mut to) =
        (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    let record = Arc::clone(record);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 16 << 10];
        // An end that is gone ends the other one, too.
        while let Ok(count) = from.read(&mut bytes)
            && count > 0
        {
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            record.push((sender, bytes[..count].to_vec()));
            drop(record);
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _gone = to.shutdown(Shutdown::Write);
    })
}

/// Over loopback.
#[derive(Clone, Copy)]
struct Tcp {
    payload_checksums: bool,
}

impl Provider for Tcp {
    type Fabric = TcpFabric;

    fn fabric_with(&self, bounds: Bounds) -> TcpFabric {
        let options = TcpOptions {
            connections_max: bounds.connections_max,
            payload_checksums: self.payload_checksums,
            ..TcpOptions::default()
        };
        TcpFabric::new(options).expect("a fabric")
    }

    fn address(&self) -> Address {
        at(free_port())
    }

    fn kill(&self, fabric: TcpFabric) {
        fabric.abandon();
    }
}

fn at(port: u16) -> Address {
    Address::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A pair with a relay between, for so many connections in all.
fn pair(provider: Tcp, connections: usize, bounds: Bounds) -> (Pair<TcpFabric>, Relay) {
    let server = free_port();
    let relay = Relay::new(server, connections);
    let mut right = End::new(provider.fabric_with(bounds));
    right.fabric.listen(&at(server)).expect("the port is free");
    let mut left = End::new(provider.fabric());
    let address = at(relay.port);
    let (to_right, to_left) = connect(&mut left, &mut right, &address);
    (Pair { left, right, to_right, to_left, address }, relay)
}

/// Memory with these bytes at its start.
fn memory(bytes: &[u8]) -> Memory {
    let mapping = Mapping::anonymous(bytes.len()).expect("memory");
    mapping.copy_in(0, bytes);
    Memory::Shared(mapping.slice(0, bytes.len() as u64).expect("all of it"))
}

fn all_of<'a>(
    packets: &'a [Packet],
    name: &'a str,
) -> impl Iterator<Item = &'a reading::Field> + use<'a> {
    packets.iter().flat_map(move |packet| packet.all(name))
}

fn shown<'a>(packets: &'a [Packet], name: &'a str) -> Vec<&'a str> {
    all_of(packets, name).map(|field| field.show.as_str()).collect()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn nothing_is_wrong(packets: &[Packet]) {
    for packet in packets {
        for wrong in ["malformed", "incomplete", "checksum_wrong", "out_of_sequence", "stray"] {
            let complaints = packet.complaints();
            assert!(!packet.has(&format!("gannet.{wrong}")), "{wrong}: {complaints:?}");
        }
        assert!(!packet.has("_ws.lua.error"), "{packet:#?}");
    }
    assert!(all_of(packets, "gannet.checksum_good").all(reading::Field::is_true));
}

/// Every message of the protocol, writes and reads between the real ends, with and without
/// checksums of payload.
fn a_session(payload_checksums: bool) {
    let (mut pair, relay) = pair(Tcp { payload_checksums }, 1, Bounds::default());
    let region = Mapping::shareable(64 << 10).expect("memory");
    let seed = pattern(1, 64 << 10);
    region.copy_in(0, &seed);
    let registration = pair.register_left(&region, Access::READ_WRITE);
    let remote = |offset: u64, len_bytes: u32| RemoteSlice {
        address: registration.address + offset,
        key: registration.key,
        len_bytes,
    };
    let written = [pattern(2, 4096), pattern(3, 1), pattern(4, 40_000)];
    for bytes in &written {
        let (_, status) = pair.transfer(true, memory(bytes), remote(100, bytes.len() as u32));
        assert_eq!(status, TransferStatus::Done);
    }
    let read_bytes = 10_000;
    let expected = content(&region)[50_000..50_000 + read_bytes].to_vec();
    let (_, status) =
        pair.transfer(false, memory(&vec![0; read_bytes]), remote(50_000, read_bytes as u32));
    assert_eq!(status, TransferStatus::Done);
    let samples = samples::all();
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    for sample in &samples {
        pair.send_right(&sample.packet);
        pair.until("a message", |_, right| right.message(to_left));
    }
    pair.left.fabric.disconnect(to_right);
    assert_eq!(pair.until("the end", |_, right| right.ended(to_left)), DisconnectReason::Remote);
    pair.until("the end", |left, _| left.ended(to_right));
    drop(pair);

    let capture = relay.capture();
    let packets = reading::read(&capture);
    for (number, packet) in reading::read_twice(&capture) {
        assert_eq!(packet, packets[&number], "packet {number}");
    }
    let packets: Vec<Packet> = packets.into_values().collect();
    nothing_is_wrong(&packets);
    let names: Vec<&str> = samples.iter().map(|sample| sample.name).collect();
    assert_eq!(shown(&packets, "gannet.message"), names);
    assert!(shown(&packets, "gannet.greeting.kind").starts_with(&["1", "2"]));
    let payloads: Vec<&str> =
        all_of(&packets, "gannet.payload").map(|field| field.value.as_str()).collect();
    let moved = written.iter().chain([&expected]);
    assert_eq!(payloads, moved.map(|bytes| digits(bytes)).collect::<Vec<String>>());
    let key = format!("0x{:08x}", registration.key.0);
    assert_eq!(shown(&packets, "gannet.payload.key"), [key.as_str(); 4]);
    let address = |offset: u64| format!("0x{:016x}", registration.address + offset);
    let addresses = [address(100), address(100), address(100), address(50_000)];
    assert_eq!(shown(&packets, "gannet.payload.address"), addresses);
    let kinds = shown(&packets, "gannet.entry.kind");
    for (kind, count) in [("1", samples.len()), ("2", 3), ("3", 1), ("4", 1), ("5", 0)] {
        assert_eq!(kinds.iter().filter(|found| **found == kind).count(), count, "kind {kind}");
    }
    assert!(kinds.contains(&"6"), "nobody said goodbye: {kinds:?}");
    // Of what has a checksum besides frames and greetings, payload is all.
    let frames = shown(&packets, "gannet.frame.sequence").len();
    let sums = all_of(&packets, "gannet.checksum_good").count();
    assert_eq!(sums, 2 + frames + if payload_checksums { 4 } else { 0 });
}

#[test]
fn a_recorded_session_is_read_as_it_was_sent() {
    a_session(false);
}

#[test]
fn a_recorded_session_with_checksums_of_payload_is_read_as_it_was_sent() {
    a_session(true);
}

#[test]
fn refused_transfers_and_refused_connections_are_read() {
    let bounds = Bounds { connections_max: 1, ..Bounds::default() };
    let (mut pair, relay) = pair(Tcp { payload_checksums: false }, 2, bounds);
    // There is no room for another one.
    let refused = pair.left.fabric.connect(&pair.address).expect("room at this end");
    until("the refusal", &mut pair.left, &mut pair.right, |left, _| left.ended(refused));
    let nowhere = RemoteSlice { address: 0x1000, key: Key(0xdead), len_bytes: 16 };
    pair.refused(true, memory(&[1; 16]), nowhere);
    drop(pair);

    let packets: Vec<Packet> = reading::read(&relay.capture()).into_values().collect();
    nothing_is_wrong(&packets);
    // Of two connections whose packets may come in any order.
    let mut refusals = shown(&packets, "gannet.greeting.refusal");
    refusals.sort_unstable();
    assert_eq!(refusals, ["0", "0", "0", "1"]);
    assert_eq!(shown(&packets, "gannet.entry.kind"), ["2", "5"]);
    assert_eq!(shown(&packets, "gannet.entry.transfer"), ["0"]);
}
