//! Reads and writes that no key permits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::content;
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::{Access, DisconnectReason, Fabric, Registration};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};

use crate::bytes::Frame;
use crate::memory::{growth_mib, resident_bytes};
use crate::peer::RawPeer;
use crate::stage::{Stage, alone, together};

/// What the server's memory holds.
const CANARY: u8 = 0xc5;

const READ_ONLY: Access = Access { remote_read: true, remote_write: false };
const WRITE_ONLY: Access = Access { remote_read: false, remote_write: true };

fn canaries(pages: usize) -> Arc<Mapping> {
    let memory = Mapping::shareable(pages * PAGE_BYTES).expect("memory");
    memory.copy_in(0, &vec![CANARY; memory.len()]);
    memory
}

fn register(
    stage: &mut Stage,
    peer: &RawPeer,
    memory: &Arc<Mapping>,
    access: Access,
) -> Registration {
    let id = peer.id.expect("established");
    let registration = stage.server.fabric.register(id, memory, access).expect("room");
    stage.until("the key", |server| server.registered(id, registration.key));
    registration
}

fn deregister(stage: &mut Stage, peer: &RawPeer, registration: Registration) {
    let id = peer.id.expect("established");
    stage.server.fabric.deregister(id, registration.key);
    stage.until("the key's end", |server| server.deregistered(id, registration.key));
}

/// Whose key is used, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misuse {
    AnothersKey,
    AKeyOfTheSameMemory,
    NoKey,
    OneByteBehind,
    OneByteInFront,
    AroundTheEnd,
    Elsewhere,
    WithoutRight,
    OfWindows,
    Deregistered,
    ClosedWindow,
    BesideTheWindow,
    BaseOfAWindowGone,
}

const MISUSES: [Misuse; 13] = [
    Misuse::AnothersKey,
    Misuse::AKeyOfTheSameMemory,
    Misuse::NoKey,
    Misuse::OneByteBehind,
    Misuse::OneByteInFront,
    Misuse::AroundTheEnd,
    Misuse::Elsewhere,
    Misuse::WithoutRight,
    Misuse::OfWindows,
    Misuse::Deregistered,
    Misuse::ClosedWindow,
    Misuse::BesideTheWindow,
    Misuse::BaseOfAWindowGone,
];

/// Key and address for 64 bytes that the peer may not write (or read).
fn misused(
    stage: &mut Stage,
    misuse: Misuse,
    writes: bool,
    peer: &RawPeer,
    other: &RawPeer,
    memory: &Arc<Mapping>,
) -> (u32, u64) {
    let all = Access::READ_WRITE;
    let own = register(stage, peer, memory, all);
    let id = peer.id.expect("established");
    let len = memory.len() as u64;
    let window = |stage: &mut Stage| {
        let base = register(stage, peer, memory, Access::WINDOWS_ONLY);
        let fabric = &mut stage.server.fabric;
        let window = fabric.open_window(id, base.key, 128, 64, all).expect("room");
        stage.until("the window", |server| server.registered(id, window.key));
        (base, window)
    };
    match misuse {
        Misuse::AnothersKey => {
            let anothers = register(stage, other, &canaries(1), all);
            (anothers.key.0, anothers.address)
        }
        Misuse::AKeyOfTheSameMemory => {
            let anothers = register(stage, other, memory, all);
            deregister(stage, peer, own);
            (anothers.key.0, anothers.address)
        }
        Misuse::NoKey => (u32::MAX, own.address),
        Misuse::OneByteBehind => (own.key.0, own.address + len - 63),
        Misuse::OneByteInFront => (own.key.0, own.address - 1),
        Misuse::AroundTheEnd => (own.key.0, u64::MAX - 31),
        Misuse::Elsewhere => (own.key.0, 0),
        Misuse::WithoutRight => {
            let access = if writes { READ_ONLY } else { WRITE_ONLY };
            let other_way = register(stage, peer, memory, access);
            (other_way.key.0, other_way.address)
        }
        Misuse::OfWindows => {
            let base = register(stage, peer, memory, Access::WINDOWS_ONLY);
            (base.key.0, base.address)
        }
        Misuse::Deregistered => {
            deregister(stage, peer, own);
            (own.key.0, own.address)
        }
        Misuse::ClosedWindow => {
            let (_, window) = window(stage);
            deregister(stage, peer, window);
            (window.key.0, window.address)
        }
        Misuse::BesideTheWindow => {
            let (_, window) = window(stage);
            (window.key.0, window.address + 1)
        }
        Misuse::BaseOfAWindowGone => {
            let (base, window) = window(stage);
            deregister(stage, peer, base);
            (window.key.0, window.address)
        }
    }
}

#[test]
fn what_no_key_permits_moves_no_byte() {
    let _turn = together();
    let mut stage = Stage::new();
    let other = stage.establish();
    for (misuse, writes) in MISUSES.into_iter().flat_map(|misuse| [(misuse, true), (misuse, false)])
    {
        let what = format!("{misuse:?}, writes: {writes}");
        let mut peer = stage.establish();
        let id = peer.id.expect("established");
        let memory = canaries(2);
        let allowed = canaries(1);
        let may = register(&mut stage, &peer, &allowed, Access::READ_WRITE);
        let (key, address) = misused(&mut stage, misuse, writes, &peer, &other, &memory);
        // What stands in front of it takes effect, what stands behind it does not.
        let frame = Frame::new(0).message(b"in front").write(may.key.0, may.address, b"in front");
        let frame = match writes {
            true => frame.write(key, address, &[1; 64]),
            false => frame.read(key, address, 64),
        };
        let frame = frame.write(may.key.0, may.address, b"behind").message(b"behind");
        stage.say(&mut peer, &frame.bytes());
        let then = Frame::new(1).write(may.key.0, may.address + 64, b"then").message(b"then");
        stage.say(&mut peer, &then.bytes());
        assert_eq!(stage.end_of(id), DisconnectReason::Protocol, "{what}");
        assert_eq!(stage.server.message(id).as_deref(), Some(&b"in front"[..]), "{what}");
        assert_eq!(stage.server.message(id), None, "{what}");
        stage.hear_out(&mut peer);
        assert_eq!(peer.entries(), [(5, 1)], "{what}: the second transfer was refused");
        assert!(content(&memory).iter().all(|byte| *byte == CANARY), "{what}");
        let mut expected = vec![CANARY; PAGE_BYTES];
        expected[..8].copy_from_slice(b"in front");
        assert!(content(&allowed) == expected, "{what}");
        stage.server.notes.retain(|(noted, _)| *noted != id);
    }
    stage.server.fabric.disconnect(other.id.expect("established"));
    assert_eq!(stage.end_of(other.id.expect("established")), DisconnectReason::Local);
    stage.finish();
}

/// Payload of a write that is refused is never stored, however much of it comes.
#[test]
fn refused_payload_is_not_kept() {
    let _turn = together();
    let mut stage = Stage::new();
    for megabytes in [1, 8] {
        let mut peer = stage.establish();
        let frame = Frame::new(0).write(77, 0, &vec![1; megabytes << 20]).message(b"behind");
        stage.say(&mut peer, &frame.bytes());
        let id = peer.id.expect("established");
        assert_eq!(stage.end_of(id), DisconnectReason::Protocol);
        assert_eq!(stage.server.message(id), None);
        stage.server.notes.clear();
    }
    stage.finish();
}

#[test]
fn more_reads_than_agreed_end_the_connection() {
    let _turn = together();
    let transfers_max = 4;
    let mut stage = Stage::with(TcpOptions { transfers_max, ..TcpOptions::default() });
    let memory = canaries(256);
    for len_bytes in [0, 1, memory.len() as u32] {
        for apart in [false, true] {
            let mut peer = stage.establish();
            let id = peer.id.expect("established");
            let at = register(&mut stage, &peer, &memory, READ_ONLY);
            let read = |frame: Frame| frame.read(at.key.0, at.address, len_bytes);
            // As many as agreed are answered.
            let agreed = (0..transfers_max).fold(Frame::new(0), |frame, _| read(frame));
            stage.say(&mut peer, &agreed.bytes());
            stage.until("answers", |_| {
                peer.listen();
                (peer.entries() == vec![(4, len_bytes); transfers_max]).then_some(())
            });
            // One more at a time is not.
            let frames: Vec<_> = match apart {
                false => vec![(0..=transfers_max).fold(Frame::new(1), |frame, _| read(frame))],
                true => (0..=transfers_max as u32).map(|n| read(Frame::new(1 + n))).collect(),
            };
            let bytes: Vec<_> = frames.iter().flat_map(Frame::bytes).collect();
            stage.say(&mut peer, &bytes);
            assert_eq!(stage.end_of(id), DisconnectReason::Protocol, "{len_bytes} {apart}");
        }
    }
    stage.finish();
}

/// Reads as many as agreed, again and again, and takes none of the answers: the server keeps none of
/// them in memory of its own, and gives the peer up.
#[test]
fn a_peer_that_takes_no_answers_is_given_up() {
    let _turn = alone();
    let peer_timeout = Duration::from_secs(2);
    let mut stage = Stage::with(TcpOptions { peer_timeout, ..TcpOptions::default() });
    let memory = canaries(512);
    let resident = resident_bytes();
    let start = Instant::now();
    let mut peers: Vec<_> = (0..8).map(|_| stage.establish()).collect();
    for peer in &mut peers {
        let at = register(&mut stage, peer, &memory, READ_ONLY);
        let len_bytes = memory.len() as u32;
        let reads =
            (0..128).fold(Frame::new(0), |frame, _| frame.read(at.key.0, at.address, len_bytes));
        stage.say(peer, &reads.bytes());
    }
    stage.turns(Duration::from_millis(200));
    let grown = growth_mib(resident, resident_bytes());
    let (rounds, _) = stage.served();
    for peer in &peers {
        let id = peer.id.expect("established");
        assert_eq!(stage.end_of(id), DisconnectReason::PeerLost);
    }
    let took = start.elapsed();
    let (more_rounds, slowest) = stage.served();
    println!(
        "8 peers that asked for 128 x 2 MiB each and took none: {grown:.1} MiB more in use; given \
         up after {took:?}; the good peer: {} rounds meanwhile, at most {slowest:?} each",
        more_rounds - rounds
    );
    assert!(grown < 8.0, "{grown} MiB");
    assert!(took > peer_timeout / 2, "{took:?}");
    assert!(more_rounds > rounds + 20);
    stage.finish();
}

/// The same, and a key is taken back meanwhile: its end is not put off for the peer's sake.
#[test]
fn a_key_is_taken_back_from_a_peer_that_takes_no_answers() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = canaries(512);
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let at = register(&mut stage, &peer, &memory, READ_ONLY);
    let len_bytes = memory.len() as u32;
    let reads = (0..64).fold(Frame::new(0), |frame, _| frame.read(at.key.0, at.address, len_bytes));
    stage.say(&mut peer, &reads.bytes());
    stage.turns(Duration::from_millis(50));
    let start = Instant::now();
    stage.server.fabric.deregister(id, at.key);
    assert_eq!(stage.end_of(id), DisconnectReason::PeerLost);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    // What the peer takes now is what was sent before: nothing that is written from now on.
    memory.copy_in(0, &vec![!CANARY; memory.len()]);
    peer.listen();
    let frames = &peer.heard[64..];
    assert!(frames.len() > 4096, "{} bytes were sent before", frames.len());
    assert!(frames[2048..].iter().all(|byte| *byte == CANARY), "what came after the end");
    stage.server.notes.clear();
    stage.finish();
}
