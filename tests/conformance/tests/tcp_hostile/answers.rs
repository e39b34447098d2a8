//! Peers that answer the server's reads and writes as no correct peer does.

use gannet_conformance::fabric::end::{Note, buffer_with};
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::{
    Access, ConnectionId, DisconnectReason, Fabric, Key, RemoteSlice, Transfer, TransferStatus,
};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;
use std::time::Duration;

use crate::bytes::{Frame, crc32c};
use crate::peer::RawPeer;
use crate::stage::{Stage, together};

const CANARY: u8 = 0xc5;
const LEN_BYTES: u32 = 1000;

/// Posts a read, a write and a read of 1000 bytes, with tokens 0, 1 and 2.
fn post(stage: &mut Stage, pool: &BufferPool, id: ConnectionId) {
    for token in 0..3 {
        // Where one does not wait for another.
        let address = (1 + token) * 4096;
        let remote = RemoteSlice { address, key: Key(1), len_bytes: LEN_BYTES };
        let memory = buffer_with(pool, &[CANARY; PAGE_BYTES]);
        let transfer = Transfer { token, memory, offset: 0, remote };
        let fabric = &mut stage.server.fabric;
        let posted =
            if token == 1 { fabric.write(id, transfer) } else { fabric.read(id, transfer) };
        posted.expect("room");
    }
}

/// What became of them, in the order of posting, and whether something other than `allowed` was
/// written.
fn outcome(stage: &mut Stage, id: ConnectionId, allowed: u8) -> Vec<TransferStatus> {
    let mut all = Vec::new();
    while let Some((token, memory, status)) = stage.server.completion(id) {
        assert_eq!(token, all.len() as u64);
        let buffer = memory.into_buffer().expect("a buffer");
        let (inside, outside) = buffer.split_at(LEN_BYTES as usize);
        assert!(outside.iter().all(|byte| *byte == CANARY), "beyond what was asked for");
        assert!(inside.iter().all(|byte| [CANARY, allowed].contains(byte)));
        all.push(status);
    }
    all
}

/// The peer has heard all three.
fn heard(stage: &mut Stage, peer: &mut RawPeer) {
    stage.until("the transfers", |_| {
        peer.listen();
        (peer.entries().len() == 3).then_some(())
    });
    assert_eq!(peer.entries(), [(3, 1), (2, 1), (3, 1)]);
}

#[test]
fn answers_that_fit_nothing_end_the_connection() {
    use TransferStatus::{AccessRefused, ConnectionLost, Done};
    let _turn = together();
    let mut stage = Stage::new();
    let pool = BufferPool::new(PAGE_BYTES, 3).expect("memory");
    let whole = [7; LEN_BYTES as usize];
    let first = || Frame::new(0);
    let placed = |count| Frame { writes_placed: count, ..first() };
    let violation = DisconnectReason::Protocol;
    let refused = DisconnectReason::TransferRefused;
    let lost = [ConnectionLost; 3];
    let cases = [
        ("an answer too short", first().answer(&whole[1..]), violation, lost),
        ("an answer too long", first().answer(&[7; 1001]), violation, lost),
        ("an empty answer", first().answer(b""), violation, lost),
        (
            "one answer too many",
            first().answer(&whole).answer(&whole).answer(&whole),
            violation,
            lost,
        ),
        ("two acknowledgements", placed(2), violation, lost),
        ("an acknowledgement of reads", placed(3), violation, lost),
        ("a refusal of what was not posted", first().refused(3), violation, lost),
        (
            "a refusal of what is done",
            placed(1).answer(&whole).refused(0),
            refused,
            [AccessRefused, Done, ConnectionLost],
        ),
        (
            "a refusal of the first",
            first().refused(0),
            refused,
            [AccessRefused, ConnectionLost, ConnectionLost],
        ),
        (
            "a refusal of the second",
            first().refused(1),
            refused,
            [ConnectionLost, AccessRefused, ConnectionLost],
        ),
        (
            "a refusal of the last",
            placed(1).refused(2),
            refused,
            [ConnectionLost, Done, AccessRefused],
        ),
        ("a goodbye instead", first().goodbye(), DisconnectReason::Remote, lost),
        (
            "an acknowledgement, and a goodbye",
            placed(1).goodbye(),
            DisconnectReason::Remote,
            [ConnectionLost, Done, ConnectionLost],
        ),
    ];
    for (what, frame, reason, statuses) in cases {
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        post(&mut stage, &pool, id);
        heard(&mut stage, &mut peer);
        stage.say(&mut peer, &frame.bytes());
        assert_eq!(stage.end_of(id), reason, "{what}");
        let found = outcome(&mut stage, id, 7);
        if what == "a refusal of what is done" {
            // It had completed when it was refused.
            assert!(found[0] == Done || found[0] == AccessRefused, "{what}: {found:?}");
            assert_eq!(found[1..], statuses[1..], "{what}");
        } else {
            assert_eq!(found, statuses, "{what}");
        }
        assert_eq!(pool.available(), 3, "{what}: all memory is back");
    }
    stage.finish();
}

#[test]
fn answers_as_they_should_be() {
    let _turn = together();
    let mut stage = Stage::new();
    let pool = BufferPool::new(PAGE_BYTES, 3).expect("memory");
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    post(&mut stage, &pool, id);
    heard(&mut stage, &mut peer);
    let whole = [7; LEN_BYTES as usize];
    let frame = Frame { writes_placed: 1, ..Frame::new(0) }.answer(&whole).answer(&whole);
    stage.say(&mut peer, &frame.goodbye().bytes());
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert_eq!(outcome(&mut stage, id, 7), [TransferStatus::Done; 3]);
    stage.finish();
}

/// A write is not done while the kernel still reads its memory, whatever the peer says.
#[test]
fn a_write_acknowledged_before_it_has_left_is_not_done() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let len_bytes = 8 << 20;
    let pool = BufferPool::new(len_bytes, 1).expect("memory");
    let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: len_bytes as u32 };
    let memory = buffer_with(&pool, &vec![CANARY; len_bytes]);
    let transfer = Transfer { token: 9, memory, offset: 0, remote };
    stage.server.fabric.write(id, transfer).expect("an empty queue");
    stage.turns(Duration::from_millis(20));
    stage.say(&mut peer, &Frame { writes_placed: 1, ..Frame::new(0) }.bytes());
    stage.turns(Duration::from_millis(50));
    assert!(stage.server.completion(id).is_none(), "its memory is still being sent");
    let status = stage.until("its completion", |server| {
        peer.listen();
        server.completion(id).map(|(_, _, status)| status)
    });
    assert_eq!(status, TransferStatus::Done);
    peer.finish();
    assert_eq!(stage.end_of(id), DisconnectReason::PeerLost);
    stage.finish();
}

/// An answer that stalls when the connection ends: nothing lands in memory that was handed back.
#[test]
fn nothing_of_an_answer_lands_after_the_end() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let len_bytes = 64 * PAGE_BYTES;
    let pool = BufferPool::new(len_bytes, 1).expect("memory");
    let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: len_bytes as u32 };
    let memory = buffer_with(&pool, &vec![0; len_bytes]);
    let transfer = Transfer { token: 9, memory, offset: 0, remote };
    stage.server.fabric.read(id, transfer).expect("an empty queue");
    stage.until("the read", |_| {
        peer.listen();
        (!peer.entries().is_empty()).then_some(())
    });
    let bytes = Frame::new(0).answer(&vec![7; len_bytes]).bytes();
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    stage.say(&mut peer, half);
    stage.turns(Duration::from_millis(20));
    stage.server.fabric.disconnect(id);
    assert_eq!(stage.end_of(id), DisconnectReason::Local);
    let (_, memory, status) = stage.server.completion(id).expect("handed back");
    assert_eq!(status, TransferStatus::ConnectionLost);
    let mut buffer = memory.into_buffer().expect("a buffer");
    buffer.fill(CANARY);
    stage.say(&mut peer, rest);
    stage.turns(Duration::from_millis(20));
    assert!(buffer.iter().all(|byte| *byte == CANARY), "it landed after the end");
    drop(buffer);
    stage.finish();
}

/// Where payload has checksums, what was damaged on the way is not acknowledged.
#[test]
fn payload_whose_checksum_is_wrong_ends_the_connection() {
    let _turn = together();
    let options = TcpOptions { payload_checksums: true, ..TcpOptions::default() };
    let mut stage = Stage::with(options);
    let memory = Mapping::shareable(16 * PAGE_BYTES).expect("memory");
    for len_bytes in [1, 1000, 5000, 60_000] {
        for damaged in [false, true] {
            let mut peer = stage.establish();
            let id = peer.id.expect("established");
            let registered = stage.server.fabric.register(id, &memory, Access::READ_WRITE);
            let at = registered.expect("room");
            stage.until("the key", |server| server.registered(id, at.key));
            let payload = vec![3; len_bytes];
            let mut frame = Frame::new(0).write(at.key.0, at.address, &payload);
            frame.control[4..8].copy_from_slice(&crc32c(&payload).to_le_bytes());
            let mut bytes = frame.message(b"behind").goodbye().bytes();
            *bytes.last_mut().expect("payload") ^= u8::from(damaged);
            stage.say(&mut peer, &bytes);
            let (reason, message): (_, Option<&[u8]>) = match damaged {
                false => (DisconnectReason::Remote, Some(b"behind")),
                true => (DisconnectReason::Protocol, None),
            };
            assert_eq!(stage.end_of(id), reason, "{len_bytes}");
            assert_eq!(stage.server.message(id).as_deref(), message, "{len_bytes}");
            stage
                .server
                .notes
                .retain(|(noted, note)| *noted != id || matches!(note, Note::Disconnected(_)));
        }
    }
    stage.finish();
}
