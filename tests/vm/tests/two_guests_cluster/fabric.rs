//! One end of the fabric in each machine: what is written and read arrives, and what was not given is
//! refused by the device of the machine that owns it.

use std::sync::Arc;
use std::time::Instant;

use gannet_conformance::fabric::end::{End, Note, PATIENCE, buffer_with, content, pattern};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::verbs::VerbsOptions;
use gannet_fabric::{
    Access, Address, ConnectionId, Fabric, Key, RemoteSlice, Transfer, TransferStatus,
};
use gannet_integration::one_at_a_time;
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;
use gannet_vm::guest;

use super::{meet, serves};

const PORT: u16 = 7800;
const MEMORY_BYTES: usize = 64 * PAGE_BYTES;
const CANARY: u8 = 0xcd;
/// Lengths of what is written and read back, over one packet and over many.
const SIZES: [usize; 7] = [1, 8, 4095, 4096, 4097, 65_536, 200_001];
/// The connections of the host, in the order in which they are made: on the first, the server does
/// what it may; on the others it uses the first one's key, and goes past the end of what it was given.
const CONNECTIONS: usize = 3;

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn transfers_between_machines_arrive_or_are_refused() {
    let _turn = one_at_a_time();
    let trusted = format!("{}/32", guest::peer_address()).parse().expect("a network");
    let options = VerbsOptions { trusted_hosts: vec![trusted], ..VerbsOptions::default() };
    let mut end =
        End::new(AnyFabric::new(FabricOptions { verbs: options, ..FabricOptions::default() }));
    if serves() { serve(&mut end) } else { own(&mut end) }
}

/// Polls until `done` yields something.
fn until<T>(
    what: &str,
    end: &mut End<AnyFabric>,
    mut done: impl FnMut(&mut End<AnyFabric>) -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done(end) {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen: {:?}", end.notes);
        end.turn();
    }
}

fn message(end: &mut End<AnyFabric>, from: ConnectionId) -> Vec<u8> {
    until("a message", end, |end| end.message(from))
}

fn send(end: &mut End<AnyFabric>, to: ConnectionId, bytes: &[u8]) {
    until("a credit", end, |end| end.fabric.send(to, bytes).ok());
    end.turn();
}

fn address_of(host: std::net::Ipv4Addr) -> Address {
    Address::Rdma { host: host.to_string(), port: PORT }
}

/// The machine whose memory it is.
fn own(end: &mut End<AnyFabric>) {
    let given = Mapping::shareable(MEMORY_BYTES).expect("memory");
    let other = Mapping::shareable(PAGE_BYTES).expect("memory");
    for memory in [&given, &other] {
        memory.copy_in(0, &vec![CANARY; memory.len()]);
    }
    meet("the fabric listens");
    let mut connections = Vec::new();
    for index in 0..CONNECTIONS {
        let to = address_of(guest::peer_address());
        let connection = end.fabric.connect(&to).expect("room for a connection");
        until("the connection", end, |end| {
            end.take(|id, note| (id == connection && matches!(note, Note::Connected)).then_some(()))
        });
        connections.push(connection);
        // So that both sides count them alike.
        send(end, connection, &[index as u8]);
    }
    let first = give(end, connections[0], &given);
    // On the second connection nothing is given: what the server has is the first one's key.
    for (connection, slice) in [(connections[0], first), (connections[1], first)] {
        send(end, connection, &encode(slice));
    }
    let third = give(end, connections[2], &other);
    send(end, connections[2], &encode(third));

    for (round, size) in SIZES.into_iter().enumerate() {
        assert_eq!(message(end, connections[0]), (size as u64).to_le_bytes());
        let found = content(&given);
        assert!(found[round..round + size] == pattern(round as u64, size), "{size} bytes");
        assert!(found[round + size..].iter().all(|byte| *byte == CANARY), "behind {size} bytes");
        given.copy_in(0, &vec![CANARY; MEMORY_BYTES]);
        send(end, connections[0], b"seen");
    }
    for trespassed in [connections[1], connections[2]] {
        until("the end of a connection", end, |end| end.ended(trespassed));
    }
    assert_eq!(message(end, connections[0]), b"still here");
    for memory in [&given, &other] {
        assert!(content(memory).iter().all(|byte| *byte == CANARY), "a byte was written");
    }
    send(end, connections[0], b"nothing came");
    meet("both have seen it");
}

fn give(end: &mut End<AnyFabric>, to: ConnectionId, memory: &Arc<Mapping>) -> RemoteSlice {
    let made = end.fabric.register(to, memory, Access::READ_WRITE).expect("registered");
    until("the registration", end, |end| end.registered(to, made.key));
    RemoteSlice { address: made.address, key: made.key, len_bytes: memory.len() as u32 }
}

fn encode(slice: RemoteSlice) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&slice.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&slice.key.0.to_le_bytes());
    bytes[12..].copy_from_slice(&slice.len_bytes.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> RemoteSlice {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let address = u64::from(word(4)) << 32 | u64::from(word(0));
    RemoteSlice { address, key: Key(word(8)), len_bytes: word(12) }
}

/// The machine that reaches for it.
fn serve(end: &mut End<AnyFabric>) {
    end.fabric.listen(&address_of(guest::own_address())).expect("the address is free");
    meet("the fabric listens");
    let mut connections = Vec::new();
    for index in 0..CONNECTIONS {
        let connection = until("a connection", end, |end| {
            end.take(|id, note| matches!(note, Note::Accepted).then_some(id))
        });
        assert_eq!(message(end, connection), [index as u8]);
        connections.push(connection);
    }
    let slices: Vec<RemoteSlice> =
        connections.iter().map(|connection| decode(&message(end, *connection))).collect();
    let pool = BufferPool::new(MEMORY_BYTES, 1).expect("memory");
    for (round, size) in SIZES.into_iter().enumerate() {
        let address = slices[0].address + round as u64;
        let remote = RemoteSlice { address, len_bytes: size as u32, ..slices[0] };
        let bytes = pattern(round as u64, size);
        assert_eq!(transfer(end, connections[0], true, &pool, &bytes, remote).0, bytes);
        let (found, status) = transfer(end, connections[0], false, &pool, &vec![0; size], remote);
        assert_eq!(status, TransferStatus::Done, "{size} bytes");
        assert!(found == bytes, "{size} bytes are read back");
        send(end, connections[0], &(size as u64).to_le_bytes());
        assert_eq!(message(end, connections[0]), b"seen");
    }
    let foreign = RemoteSlice { len_bytes: 64, ..slices[1] };
    let beyond = slices[2].address + u64::from(slices[2].len_bytes) - 32;
    let beyond = RemoteSlice { address: beyond, len_bytes: 64, ..slices[2] };
    for (connection, remote, writes) in
        [(connections[1], foreign, true), (connections[2], beyond, false)]
    {
        let (found, status) = transfer(end, connection, writes, &pool, &[0x77; 64], remote);
        assert_eq!(status, TransferStatus::AccessRefused, "{remote:?}");
        assert!(found.iter().all(|byte| *byte == 0x77), "something was read");
        until("the end of the connection", end, |end| end.ended(connection));
    }
    send(end, connections[0], b"still here");
    assert_eq!(message(end, connections[0]), b"nothing came");
    meet("both have seen it");
}

/// Writes `bytes`, or reads over them; what is in the local memory then, and how it ended.
fn transfer(
    end: &mut End<AnyFabric>,
    connection: ConnectionId,
    writes: bool,
    pool: &BufferPool,
    bytes: &[u8],
    remote: RemoteSlice,
) -> (Vec<u8>, TransferStatus) {
    let memory = buffer_with(pool, bytes);
    let transfer = Transfer { token: 9, memory, offset: 0, remote };
    let posted = if writes {
        end.fabric.write(connection, transfer)
    } else {
        end.fabric.read(connection, transfer)
    };
    posted.expect("an empty queue");
    let (token, memory, status) = until("a completion", end, |end| end.completion(connection));
    assert_eq!(token, 9);
    let buffer = memory.into_buffer().expect("a buffer");
    (buffer[..bytes.len()].to_vec(), status)
}
