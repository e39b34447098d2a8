//! Frames that no correct peer sends.

use std::time::Duration;

use gannet_conformance::fabric::end::content;
use gannet_fabric::{Access, DisconnectReason, Fabric};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};

use crate::bytes::{CONTROL_BYTES_MAX, Frame, HEADER_BYTES};
use crate::stage::{Stage, together};

/// Longest write or read, bytes.
const TRANSFER_BYTES_MAX: u32 = 8 << 20;
/// What messages and transfers a server with default options takes at a time.
const SMALL_CREDITS: usize = 128;
const LARGE_CREDITS: usize = 16;
const TRANSFERS: usize = 256;

fn first() -> Frame {
    Frame::new(0)
}

fn repeated(count: usize, mut each: impl FnMut(Frame) -> Frame) -> Frame {
    (0..count).fold(first(), |frame, _| each(frame))
}

#[test]
fn frames_that_break_the_rules_end_the_connection() {
    let _turn = together();
    let control_bytes = |value| Frame { control_bytes: Some(value), ..first() };
    let payload_bytes = |value, frame: Frame| Frame { payload_bytes: Some(value), ..frame };
    let kind = |kind: u8| first().raw(&[kind, 0, 0, 0, 0, 0, 0, 0]).raw(&[0; 24]);
    let cut = |frame: Frame, len: usize| first().raw(&frame.control[..len]);
    let long_message = first().raw(&[1, 0, 1, 0x20, 0, 0, 0, 0]).raw(&[0; 8200]);
    let cases: Vec<(&str, Frame)> = vec![
        ("a frame skipped", Frame::new(1)),
        ("the frame before the first", Frame::new(u32::MAX)),
        ("a control part out of line", control_bytes(4)),
        ("a control part longer than any", control_bytes(CONTROL_BYTES_MAX as u32 + 8)),
        ("a control part without end", control_bytes(u32::MAX)),
        ("a control part without end, in line", control_bytes(u32::MAX - 7)),
        ("payload of nothing", payload_bytes(1, first())),
        ("payload without end, of nothing", payload_bytes(u32::MAX, first())),
        ("payload of a message", payload_bytes(5, first().message(b"hello"))),
        ("payload that the header does not tell", payload_bytes(0, first().write(1, 0, b"hello"))),
        ("payload too short", payload_bytes(4, first().write(1, 0, b"hello"))),
        ("payload too long", payload_bytes(6, first().write(1, 0, b"hello"))),
        ("payload modulo 2^32", payload_bytes(0, repeated(512, |f| f.write_of(1, 0, 8 << 20)))),
        ("entry 0", kind(0)),
        ("entry 7", kind(7)),
        ("entry 255", kind(255)),
        ("a write cut off after 8", cut(first().write(1, 0, b""), 8)),
        ("a write cut off after 16", cut(first().write(1, 0, b""), 16)),
        ("a read cut off after 8", cut(first().read(1, 0, 0), 8)),
        ("a read cut off after 16", cut(first().read(1, 0, 0), 16)),
        ("an answer cut off", cut(first().answer(b""), 8)),
        ("a refusal cut off", cut(first().refused(0), 8)),
        ("a goodbye cut off", cut(first().goodbye(), 8)),
        ("a message cut off", cut(first().message(&[1; 100]), 96)),
        ("a message cut off at once", cut(first().message(&[1; 8192]), 8)),
        ("a message longer than any", long_message),
        ("a message longer than any frame", first().raw(&[1, 0, 255, 255, 0, 0, 0, 0])),
        (
            "a write longer than any",
            payload_bytes(TRANSFER_BYTES_MAX + 1, first().write_of(1, 0, TRANSFER_BYTES_MAX + 1)),
        ),
        ("a write without end", payload_bytes(u32::MAX, first().write_of(1, 0, u32::MAX))),
        ("a read longer than any", first().read(1, 0, TRANSFER_BYTES_MAX + 1)),
        ("a read without end", first().read(1, 0, u32::MAX)),
        ("small messages without credit", repeated(SMALL_CREDITS + 1, |f| f.message(b""))),
        ("large messages without credit", repeated(LARGE_CREDITS + 1, |f| f.message(&[9; 257]))),
        ("a small credit never taken", Frame { small_returned: 1, ..first() }),
        ("a large credit never taken", Frame { large_returned: 1, ..first() }),
        ("credits without end", Frame { small_returned: u16::MAX, ..first() }),
        ("an acknowledgement of nothing", Frame { writes_placed: 1, ..first() }),
        ("an acknowledgement taken back", Frame { writes_placed: u32::MAX, ..first() }),
        ("an answer to no read", first().answer(b"answer")),
        ("an empty answer to no read", first().answer(b"")),
        ("a refusal of nothing", first().refused(0)),
        ("a refusal of what was before", first().refused(u32::MAX)),
        ("more reads than agreed", repeated(TRANSFERS + 1, |f| f.read(0, 0, 0))),
    ];
    let mut stage = Stage::new();
    for (what, frame) in cases {
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        stage.say(&mut peer, &frame.bytes());
        assert_eq!(stage.end_of(id), DisconnectReason::Protocol, "{what}");
        stage.hear_out(&mut peer);
        assert!(peer.entries().is_empty(), "{what}: {:?}", peer.entries());
        let messages = std::iter::from_fn(|| stage.server.message(id)).count();
        // Up to the offending entry everything has its effect.
        let expected = match what {
            "small messages without credit" => SMALL_CREDITS,
            "large messages without credit" => LARGE_CREDITS,
            _ => 0,
        };
        assert_eq!(messages, expected, "{what}");
    }
    stage.finish();
}

#[test]
fn a_frame_with_any_byte_changed_has_no_effect() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let (mut late, mut violations) = (0, 0);
    let whole = first().message(b"a message").write(1, 0, b"written").read(1, 0, 64).bytes();
    for at in 0..whole.len() - b"written".len() {
        for change in [1, 8, 0x80, 0xff] {
            let mut peer = stage.establish();
            let id = peer.id.expect("established");
            let registered = stage.server.fabric.register(id, &memory, Access::READ_WRITE);
            let registration = registered.expect("room");
            stage.until("the key", |server| server.registered(id, registration.key));
            let (key, address) = (registration.key.0, registration.address);
            let frame = first().message(b"a message").write(key, address, b"written");
            let mut bytes = frame.read(key, address, 64).bytes();
            bytes[at] ^= change;
            stage.say(&mut peer, &bytes);
            peer.finish();
            let reason = stage.end_of(id);
            if (4..8).contains(&at) && reason == DisconnectReason::PeerLost {
                // More was announced than came.
                late += 1;
            } else {
                assert_eq!(reason, DisconnectReason::Protocol, "byte {at} by {change:#x}");
                violations += 1;
            }
            assert_eq!(stage.server.message(id), None, "byte {at} by {change:#x}");
        }
    }
    assert!(late > 0 && violations > 100, "{late}, {violations}");
    assert!(content(&memory).iter().all(|byte| *byte == 0), "something was written");
    stage.finish();
}

#[test]
fn nothing_behind_a_goodbye_has_an_effect() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    for separate in [false, true] {
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        let registration =
            stage.server.fabric.register(id, &memory, Access::READ_WRITE).expect("room");
        stage.until("the key", |server| server.registered(id, registration.key));
        let (key, address) = (registration.key.0, registration.address);
        let behind = |frame: Frame| frame.message(b"behind").write(key, address, b"behind");
        let before = first().message(b"before").goodbye();
        let bytes = match separate {
            false => behind(before).bytes(),
            true => [before.bytes(), behind(Frame::new(1)).bytes()].concat(),
        };
        stage.say(&mut peer, &bytes);
        assert_eq!(stage.end_of(id), DisconnectReason::Remote);
        assert_eq!(stage.server.message(id).as_deref(), Some(&b"before"[..]));
        stage.hear_out(&mut peer);
        assert_eq!(stage.server.message(id), None);
        assert!(content(&memory).iter().all(|byte| *byte == 0), "written behind the goodbye");
    }
    stage.finish();
}

/// Frames without anything in them, as fast as they go: legal, and no burden to others.
#[test]
fn empty_frames_without_end_are_no_burden() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let mut sequence = 0;
    for _ in 0..100 {
        let batch: Vec<_> =
            (0..500).flat_map(|number| Frame::new(sequence + number).bytes()).collect();
        sequence += 500;
        stage.say(&mut peer, &batch);
    }
    let last = Frame::new(sequence).message(b"the last").goodbye();
    stage.say(&mut peer, &last.bytes());
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert_eq!(stage.server.message(id).as_deref(), Some(&b"the last"[..]));
    stage.finish();
}

/// A frame that stops at any place holds up its own connection alone, and that can be ended.
#[test]
fn frames_that_stop_hold_up_nobody_else() {
    let _turn = together();
    let mut stage = Stage::new();
    let whole = first().message(b"never comes").read(0, 0, 0).bytes();
    let mut peers = Vec::new();
    for len in [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 8, whole.len() - 1] {
        let mut peer = stage.establish();
        stage.say(&mut peer, &whole[..len]);
        peers.push(peer);
    }
    stage.turns(Duration::from_millis(50));
    for peer in &mut peers {
        let id = peer.id.expect("established");
        assert_eq!(stage.server.message(id), None);
        stage.server.fabric.disconnect(id);
        assert_eq!(stage.end_of(id), DisconnectReason::Local);
        stage.hear_out(peer);
        assert_eq!(peer.entries(), [(6, 0)], "a goodbye");
    }
    stage.finish();
}
