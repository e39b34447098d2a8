//! Payload that is under way when it must not land any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::{Random, content};
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::{Access, DisconnectReason, Fabric, Registration};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};

use crate::bytes::Frame;
use crate::peer::RawPeer;
use crate::stage::{Stage, together};

/// What the memory holds after its key is gone.
const CANARY: u8 = 0xc5;
const PAYLOAD: u8 = 0x11;
/// Longer than what is received together with a frame's header.
const LEN_BYTES: usize = 64 * PAGE_BYTES;

fn region(stage: &mut Stage, peer: &RawPeer) -> (Arc<Mapping>, Registration) {
    let id = peer.id.expect("established");
    let memory = Mapping::shareable(LEN_BYTES).expect("memory");
    let at = stage.server.fabric.register(id, &memory, Access::READ_WRITE).expect("room");
    stage.until("the key", |server| server.registered(id, at.key));
    (memory, at)
}

fn all(memory: &Mapping, byte: u8) -> bool {
    content(memory).iter().all(|found| *found == byte)
}

/// A write of which the first half has landed.
fn half(stage: &mut Stage) -> (RawPeer, Arc<Mapping>, Registration, Vec<u8>) {
    let mut peer = stage.establish();
    let (memory, at) = region(stage, &peer);
    let bytes = Frame::new(0).write(at.key.0, at.address, &[PAYLOAD; LEN_BYTES]).bytes();
    let (first, rest) = bytes.split_at(bytes.len() - LEN_BYTES / 2);
    stage.say(&mut peer, first);
    stage.until("the first half", |_| {
        (content(&memory)[LEN_BYTES / 2 - 1] == PAYLOAD).then_some(())
    });
    (peer, memory, at, rest.to_vec())
}

/// Puts canaries there and lets the rest come.
fn nothing_lands(stage: &mut Stage, peer: &mut RawPeer, memory: &Mapping, rest: &[u8]) {
    memory.copy_in(0, &vec![CANARY; LEN_BYTES]);
    stage.say(peer, rest);
    stage.turns(Duration::from_millis(20));
    assert!(all(memory, CANARY), "it landed after the end");
}

#[test]
fn a_key_taken_back_under_a_stalled_write_ends_the_connection() {
    let _turn = together();
    let mut stage = Stage::new();
    let (mut peer, memory, at, rest) = half(&mut stage);
    let id = peer.id.expect("established");
    stage.server.fabric.deregister(id, at.key);
    assert_eq!(stage.end_of(id), DisconnectReason::Protocol);
    nothing_lands(&mut stage, &mut peer, &memory, &rest);
    stage.server.notes.clear();
    stage.finish();
}

/// A window's base goes, and the window with it.
#[test]
fn a_window_taken_back_under_a_stalled_write_ends_the_connection() {
    let _turn = together();
    let mut stage = Stage::new();
    for closes_base in [false, true] {
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        let memory = Mapping::shareable(LEN_BYTES).expect("memory");
        let fabric = &mut stage.server.fabric;
        let base = fabric.register(id, &memory, Access::WINDOWS_ONLY).expect("room");
        let window = fabric
            .open_window(id, base.key, 0, LEN_BYTES as u64, Access::READ_WRITE)
            .expect("room");
        let bytes =
            Frame::new(0).write(window.key.0, window.address, &[PAYLOAD; LEN_BYTES]).bytes();
        let (first, rest) = bytes.split_at(bytes.len() - LEN_BYTES / 2);
        stage.say(&mut peer, first);
        stage.until("the first half", |_| {
            (content(&memory)[LEN_BYTES / 2 - 1] == PAYLOAD).then_some(())
        });
        let key = if closes_base { base.key } else { window.key };
        stage.server.fabric.deregister(id, key);
        assert_eq!(stage.end_of(id), DisconnectReason::Protocol);
        nothing_lands(&mut stage, &mut peer, &memory, rest);
        stage.server.notes.clear();
    }
    stage.finish();
}

/// Another key's end does not concern a write that is under way.
#[test]
fn a_stalled_write_survives_the_end_of_other_keys() {
    let _turn = together();
    let mut stage = Stage::new();
    let (mut peer, memory, _, rest) = half(&mut stage);
    let id = peer.id.expect("established");
    let (_, other) = region(&mut stage, &peer);
    stage.server.fabric.deregister(id, other.key);
    stage.until("the key's end", |server| server.deregistered(id, other.key));
    stage.say(&mut peer, &rest);
    stage.say(&mut peer, &Frame::new(1).message(b"written").goodbye().bytes());
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert_eq!(stage.server.message(id).as_deref(), Some(&b"written"[..]));
    assert!(all(&memory, PAYLOAD));
    stage.finish();
}

/// Each key that waits for answers to leave has its own time for it.
#[test]
fn a_key_taken_back_later_may_take_as_long() {
    let _turn = together();
    let linger = Duration::from_millis(400);
    let mut stage = Stage::with(TcpOptions { linger, ..TcpOptions::default() });
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    // More than sockets hold, so that answers wait for the peer.
    let memory = Mapping::shareable(8 << 20).expect("memory");
    let register = |stage: &mut Stage| {
        let at = stage.server.fabric.register(id, &memory, Access::READ_WRITE).expect("room");
        stage.until("the key", |server| server.registered(id, at.key));
        at
    };
    let keys = [register(&mut stage), register(&mut stage)];
    let start = Instant::now();
    for (number, at) in keys.into_iter().enumerate() {
        let frame = Frame::new(number as u32).read(at.key.0, at.address, 8 << 20);
        let frame = frame.read(at.key.0, at.address, 8 << 20);
        stage.say(&mut peer, &frame.bytes());
        stage.turns(Duration::from_millis(20));
        // The second one late in the first one's time.
        if number == 1 {
            stage.turns((linger - Duration::from_millis(50)).saturating_sub(start.elapsed()));
        }
        stage.server.fabric.deregister(id, at.key);
        stage.turns(Duration::from_millis(100));
        stage.until("the key's end", |server| {
            assert_eq!(server.ended(id), None, "key {number} had time still");
            peer.listen();
            server.deregistered(id, at.key)
        });
    }
    stage.server.fabric.disconnect(id);
    assert_eq!(stage.end_of(id), DisconnectReason::Local);
    drop(peer);
    stage.finish();
}

#[test]
fn nothing_lands_after_a_disconnect() {
    let _turn = together();
    let mut stage = Stage::new();
    let (mut peer, memory, _, rest) = half(&mut stage);
    let id = peer.id.expect("established");
    stage.server.fabric.disconnect(id);
    assert_eq!(stage.end_of(id), DisconnectReason::Local);
    nothing_lands(&mut stage, &mut peer, &memory, &rest);
    stage.server.notes.clear();
    stage.finish();
}

/// Writes without end, one behind the other, when the connection ends at some moment: what came
/// before may have landed, nothing does after the end was told.
#[test]
fn a_stream_of_writes_is_cut_off_at_any_moment() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut random = Random::new(11);
    for round in 0..24 {
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        let (memory, at) = region(&mut stage, &peer);
        let mut sequence = 0;
        let mut bytes = Vec::new();
        let moment = random.below(400);
        let mut ended = None;
        let mut after = 0;
        for turn in 0.. {
            if bytes.is_empty() {
                let len = 1 + random.below(LEN_BYTES as u64) as usize;
                let payload = vec![PAYLOAD; len];
                bytes = Frame::new(sequence).write(at.key.0, at.address, &payload).bytes();
                sequence += 1;
            }
            let said = peer.say(&bytes);
            bytes.drain(..said);
            peer.listen();
            stage.turn();
            if turn == moment {
                match round % 3 {
                    0 => stage.server.fabric.disconnect(id),
                    1 => stage.server.fabric.deregister(id, at.key),
                    // One that must not be there ends it from the other side.
                    _ => bytes.extend(Frame::new(u32::MAX).bytes()),
                }
            }
            if ended.is_none() {
                ended = stage.server.ended(id);
                if ended.is_some() {
                    memory.copy_in(0, &vec![CANARY; LEN_BYTES]);
                }
            } else {
                after += 1;
                if after > 50 || peer.over {
                    break;
                }
            }
            assert!(turn < 2_000_000, "round {round}: no end");
        }
        assert!(all(&memory, CANARY), "round {round}: it landed after {ended:?}");
        stage.server.notes.clear();
    }
    stage.finish();
}
