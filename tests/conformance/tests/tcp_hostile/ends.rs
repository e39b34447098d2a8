//! Ends in order, with peers that do not hurry, or that wait for what they are owed.

use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::{content, pattern};
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::{Access, DisconnectReason, Fabric, Key, RemoteSlice, Transfer, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use crate::bytes::{Frame, HELLO, greeting};
use crate::peer::RawPeer;
use crate::stage::{Stage, together};

/// More than sockets hold, in messages of the longest kind.
const MESSAGES: u16 = 1000;
const MESSAGE_BYTES: usize = 8192;
const CANARY: u8 = 0xc5;
/// The entry as a peer hears it.
const GOODBYE: (u8, u32) = (6, 0);

/// A server that has posted many messages to a peer which takes none of them yet.
fn backlogged() -> (Stage, RawPeer, Duration) {
    let options = TcpOptions { large_credits: MESSAGES + 1, ..TcpOptions::default() };
    let linger = options.linger;
    let mut stage = Stage::with(options);
    let peer = stage.establish_with(&greeting(HELLO, [128, MESSAGES + 1, 128]));
    let id = peer.id.expect("established");
    for number in 0..MESSAGES {
        let message = pattern(number.into(), MESSAGE_BYTES);
        stage.server.fabric.send(id, &message).expect("a credit");
    }
    stage.turns(Duration::from_millis(20));
    (stage, peer, linger)
}

/// The peer takes everything; nothing of it is missing.
fn take_all(stage: &mut Stage, peer: &mut RawPeer) {
    stage.hear_out(peer);
    let mut messages = 0;
    for (number, message) in (0..).zip(peer.messages()) {
        assert!(message == pattern(number, MESSAGE_BYTES), "message {number}");
        messages += 1;
    }
    assert_eq!(messages, MESSAGES);
}

/// The end is told in time, whoever waits for memory; messages are delivered nevertheless.
#[test]
fn a_slow_peer_gets_what_was_posted_before_the_end() {
    let _turn = together();
    let (mut stage, mut peer, linger) = backlogged();
    let id = peer.id.expect("established");
    stage.server.fabric.disconnect(id);
    let start = Instant::now();
    assert_eq!(stage.end_of(id), DisconnectReason::Local);
    assert!(start.elapsed() >= linger, "the peer took nothing");
    stage.turns(2 * linger);
    take_all(&mut stage, &mut peer);
    assert_eq!(peer.entries().last(), Some(&GOODBYE));
    stage.finish();
}

/// What stands in front of a write is delivered; the write's memory is given back meanwhile, so
/// neither it nor anything behind it is.
#[test]
fn memory_is_not_waited_for_and_what_is_in_front_of_it_is_delivered() {
    let _turn = together();
    let (mut stage, mut peer, _) = backlogged();
    let id = peer.id.expect("established");
    let len_bytes = 16 * PAGE_BYTES;
    let pool = BufferPool::new(len_bytes, 1).expect("memory");
    let mut buffer = pool.take().expect("free");
    buffer.fill(1);
    let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: len_bytes as u32 };
    let transfer = Transfer { token: 3, memory: Memory::Buffer(buffer), offset: 0, remote };
    stage.server.fabric.write(id, transfer).expect("room");
    stage.server.fabric.send(id, b"behind the write").expect("a credit");
    stage.server.fabric.disconnect(id);
    assert_eq!(stage.end_of(id), DisconnectReason::Local);
    let (token, memory, status) = stage.server.completion(id).expect("completed before the end");
    assert_eq!((token, status), (3, TransferStatus::ConnectionLost));
    let mut buffer = memory.into_buffer().expect("a buffer");
    buffer.fill(CANARY);
    take_all(&mut stage, &mut peer);
    assert!(!peer.entries().contains(&GOODBYE), "the write did not arrive");
    let after = peer.heard.windows(16).filter(|found| **found == [CANARY; 16]).count();
    assert_eq!(after, 0, "the buffer was read after it was given back");
    drop(buffer);
    stage.finish();
}

/// Whoever says goodbye is told of its writes, and has its reads answered, before the stream ends.
#[test]
fn a_goodbye_is_answered_with_what_is_owed() {
    let _turn = together();
    let mut stage = Stage::new();
    // In one piece with the transfers, or behind them; answers that leave at once, or take a while.
    for (separate, len_bytes) in [(false, 64), (true, 64), (false, 4 << 20), (true, 4 << 20)] {
        let what = format!("separate: {separate}, {len_bytes} bytes");
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        let memory = Mapping::shareable(4 << 20).expect("memory");
        let fabric = &mut stage.server.fabric;
        let at = fabric.register(id, &memory, Access::READ_WRITE).expect("room");
        stage.until("the key", |server| server.registered(id, at.key));
        let frame = Frame::new(0).write(at.key.0, at.address, b"placed");
        let frame = (0..3).fold(frame, |frame, _| frame.read(at.key.0, at.address, len_bytes));
        let bytes = match separate {
            false => frame.goodbye().bytes(),
            true => [frame.bytes(), Frame::new(1).goodbye().bytes()].concat(),
        };
        stage.say(&mut peer, &bytes);
        // Nothing moves until this peer listens, and then everything.
        stage.turns(Duration::from_millis(20));
        stage.hear_out(&mut peer);
        assert_eq!(peer.entries(), [(4, len_bytes); 3], "{what}");
        assert_eq!(peer.writes_placed(), 1, "{what}");
        assert_eq!(stage.end_of(id), DisconnectReason::Remote, "{what}");
        assert_eq!(&content(&memory)[..6], b"placed", "{what}");
    }
    stage.finish();
}

/// Whoever says goodbye and does not take what it is owed keeps nobody waiting.
#[test]
fn what_is_owed_after_a_goodbye_is_not_waited_for_long() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let memory = Mapping::shareable(8 << 20).expect("memory");
    let at = stage.server.fabric.register(id, &memory, Access::READ_WRITE).expect("room");
    stage.until("the key", |server| server.registered(id, at.key));
    let frame = (0..8).fold(Frame::new(0), |frame, _| frame.read(at.key.0, at.address, 8 << 20));
    stage.say(&mut peer, &frame.goodbye().bytes());
    let start = Instant::now();
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert!(start.elapsed() < TcpOptions::default().peer_timeout / 2, "{:?}", start.elapsed());
    // What is in the memory from now on is nobody's business.
    memory.copy_in(0, &vec![CANARY; memory.len()]);
    stage.hear_out(&mut peer);
    let after = peer.heard.windows(16).filter(|found| **found == [CANARY; 16]).count();
    assert_eq!(after, 0, "the memory was read after the end");
    stage.finish();
}
