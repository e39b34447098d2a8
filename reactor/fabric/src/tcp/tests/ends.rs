//! Ends of keys and connections while something is under way: nothing lands in memory afterwards,
//! and nobody is kept waiting by a peer that does not take what it gets.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::time::Time;

use super::peer::Stage;
use crate::tcp::TcpOptions;
use crate::tcp::connection::State;
use crate::tcp::wire::Entry;
use crate::{Access, DisconnectReason, Event, Fabric, Registration, RemoteSlice};

/// What the memory holds after the end.
const CANARY: u8 = 0xc5;
const PAYLOAD: u8 = 0x11;
const LEN_BYTES: usize = 2 * PAGE_BYTES;
/// Writes in a row, more than are taken in one poll.
const WRITES: usize = 16;

/// How what arrives is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The kernel has a request for it.
    Ring,
    /// The socket is asked at each poll.
    Direct,
}

/// What ends the peer's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Key,
    Disconnect,
    Death,
}

fn stage(way: Way) -> (Stage, Arc<Mapping>, Registration) {
    // With checksums, payload for the same place is taken write by write.
    let options = TcpOptions { payload_checksums: true, ..TcpOptions::default() };
    let mut stage = Stage::new(options);
    stage.fabric.busy_within = match way {
        Way::Ring => Duration::ZERO,
        Way::Direct => Duration::from_secs(3600),
    };
    for round in 1..=2 {
        let bytes = stage.message(b"busy");
        stage.say(&bytes);
        stage.until("a message", |stage| (stage.messages.len() == round).then_some(()));
    }
    let connection = stage.connection();
    assert_eq!(connection.direct, way == Way::Direct);
    let memory = Mapping::shareable(LEN_BYTES).expect("memory");
    let at = stage.fabric.register(stage.id, &memory, Access::READ_WRITE).expect("room");
    (stage, memory, at)
}

fn write(at: Registration) -> Entry {
    let remote = RemoteSlice { address: at.address, key: at.key, len_bytes: LEN_BYTES as u32 };
    Entry::Write { remote, checksum: 0 }
}

fn bytes_of(memory: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.copy_out(0, &mut bytes);
    bytes
}

/// Writes of which some have landed and others have not; what the peer has not said of them.
fn under_way(way: Way) -> (Stage, Arc<Mapping>, Registration, Vec<u8>) {
    let (mut stage, memory, at) = stage(way);
    let payload: &[u8] = &[PAYLOAD; LEN_BYTES];
    let frame = stage.frame(0, &[write(at); WRITES], &[payload; WRITES]);
    let rest = match way {
        // The kernel waits for the second half of the first write, with its place.
        Way::Ring => {
            let half = frame.len() - WRITES * LEN_BYTES + LEN_BYTES / 2;
            stage.say(&frame[..half]);
            stage.until("the first half", |_| {
                (bytes_of(&memory)[LEN_BYTES / 2 - 1] == PAYLOAD).then_some(())
            });
            frame[half..].to_vec()
        }
        // Everything is there, but one poll does not take it all.
        Way::Direct => {
            let rest = stage.begin(&frame).to_vec();
            stage.turn();
            rest
        }
    };
    let connection = stage.connection();
    assert_eq!((connection.direct, connection.receiving), (way == Way::Direct, way == Way::Ring));
    let link = connection.link.as_ref().expect("established");
    assert!(link.incoming.awaits_payload() && link.incoming.lands_by_key(at.key.0));
    assert_eq!(bytes_of(&memory)[0], PAYLOAD, "nothing has landed yet");
    (stage, memory, at, rest)
}

#[test]
fn nothing_lands_after_the_end() {
    for way in [Way::Ring, Way::Direct] {
        for cause in [Cause::Key, Cause::Disconnect, Cause::Death] {
            let (mut stage, memory, at, rest) = under_way(way);
            let expected = match cause {
                Cause::Key => {
                    stage.fabric.deregister(stage.id, at.key);
                    DisconnectReason::Protocol
                }
                Cause::Disconnect => {
                    stage.fabric.disconnect(stage.id);
                    DisconnectReason::Local
                }
                Cause::Death => {
                    stage.stream = None;
                    DisconnectReason::PeerLost
                }
            };
            assert_eq!(stage.end(), expected, "{way:?}, {cause:?}");
            memory.copy_in(0, &[CANARY; LEN_BYTES]);
            if stage.stream.is_some() {
                stage.say(&rest);
            }
            for _ in 0..200 {
                stage.turn();
            }
            let all = bytes_of(&memory).iter().all(|byte| *byte == CANARY);
            assert!(all, "{way:?}, {cause:?}: it landed after the end");
            let of_keys = |event: &Event| matches!(event, Event::Registered { .. });
            stage.events.retain(|event| !of_keys(event));
            assert!(stage.events.is_empty(), "{:?}", stage.events);
            assert!(stage.fabric.direct.is_empty(), "{way:?}, {cause:?}: it is asked still");
        }
    }
}

/// With nothing under way a key ends at once, however the connection is listened to.
#[test]
fn an_unused_key_ends_at_once() {
    for way in [Way::Ring, Way::Direct] {
        let (mut stage, memory, at) = stage(way);
        stage.fabric.deregister(stage.id, at.key);
        stage.turn();
        let ended = stage.take(|event| matches!(event, Event::Deregistered { .. }).then_some(()));
        assert_eq!(ended, Some(()), "{way:?}");
        memory.copy_in(0, &[CANARY; LEN_BYTES]);
        let frame = stage.frame(0, &[write(at)], &[&[PAYLOAD; LEN_BYTES]]);
        stage.say(&frame);
        assert_eq!(stage.end(), DisconnectReason::Protocol, "{way:?}");
        assert!(bytes_of(&memory).iter().all(|byte| *byte == CANARY), "{way:?}");
    }
}

/// Its place may be another's before the next poll.
#[test]
fn what_ends_is_not_asked_any_more() {
    let (mut stage, ..) = stage(Way::Direct);
    assert_eq!(stage.fabric.direct, [stage.id.index]);
    stage.fabric.end(stage.id.index, DisconnectReason::Local);
    assert!(stage.fabric.direct.is_empty());
}

/// A key waited for answers to leave, and they have: that time has no meaning any more.
#[test]
fn an_end_has_its_own_time() {
    let mut stage = backlogged(TcpOptions { large_credits: 1000, ..TcpOptions::default() });
    let linger = TcpOptions::default().linger;
    stage.fabric.await_leaving(stage.id.index, Time::monotonic() + Duration::from_millis(1));
    let begin = Time::monotonic();
    stage.fabric.disconnect(stage.id);
    assert!(stage.connection().deadline.is_some_and(|deadline| deadline >= begin + linger));
}

/// Peers that are turned away and stay have a share of the places, and no more time than the dead.
#[test]
fn strangers_have_a_share_of_the_places() {
    let options = TcpOptions { connections_max: 8, ..TcpOptions::default() };
    let peer_timeout = options.peer_timeout;
    let mut stage = Stage::new(options);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let at = listener.local_addr().expect("it is bound");
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(TcpStream::connect(at).expect("it listens"));
        stage.fabric.turn_out(listener.accept().expect("it connects").0.into());
    }
    let leaving = |stage: &Stage| stage.fabric.leaving.iter().flatten().count();
    assert_eq!(leaving(&stage), 2);
    stage.turn_at(Time::monotonic() + peer_timeout + Duration::from_millis(1));
    stage.until("their ends", |stage| (leaving(stage) == 0).then_some(()));
}

/// A message, again and again, and what becomes of them: more than sockets hold.
fn backlogged(options: TcpOptions) -> Stage {
    let count = options.large_credits;
    let mut stage = Stage::new(options);
    for _ in 0..count {
        stage.fabric.send(stage.id, &[7; 8192]).expect("a credit");
    }
    for _ in 0..100 {
        stage.turn();
    }
    assert!(stage.connection().sending, "the peer takes nothing");
    stage
}

/// Messages go on after the end was told, for as long as the peer takes some of them, but not longer
/// than the bound.
#[test]
fn a_peer_that_takes_too_little_is_reset_in_the_end() {
    let options = TcpOptions {
        large_credits: 1000,
        peer_timeout: Duration::from_secs(2),
        delivery_timeout: Duration::from_secs(5),
        ..TcpOptions::default()
    };
    let linger = options.linger;
    let mut stage = backlogged(options);
    stage.fabric.disconnect(stage.id);
    let disconnected = Time::monotonic();
    stage.turn();
    assert_eq!(stage.connection().state, State::Closing(DisconnectReason::Local));
    // The deadlines, before their times come.
    stage.turn_at(disconnected + linger + Duration::from_millis(100));
    assert_eq!(stage.end(), DisconnectReason::Local);
    let told = Time::monotonic();
    assert_eq!(stage.fabric.connections(), 0);
    assert!(stage.fabric.leaving[0].is_some());
    let later = |milliseconds| told + Duration::from_millis(milliseconds);
    for now in [later(2_100), later(4_300)] {
        stage.turn_at(now);
        stage.listen_up_to(1 << 16);
        for _ in 0..10 {
            stage.turn_at(now);
        }
        assert!(stage.fabric.leaving[0].is_some(), "the peer takes it");
        assert!(stage.over.is_none());
    }
    stage.turn_at(later(5_100));
    stage.until("the end of the socket", |stage| stage.fabric.leaving[0].is_none().then_some(()));
    stage
        .until("a reset", |stage| {
            stage.listen();
            stage.over.take()
        })
        .expect_err("the stream is cut off");
    assert!(stage.heard.len() < 1000 * 8192, "it was late for nothing");
}

/// A peer that takes everything is rid of the socket, too.
#[test]
fn nothing_is_left_when_everything_is_delivered() {
    let mut stage = backlogged(TcpOptions { large_credits: 1000, ..TcpOptions::default() });
    stage.fabric.disconnect(stage.id);
    stage.end();
    assert!(stage.fabric.leaving[0].is_some());
    let entries = stage.hear(1001);
    assert_eq!(entries[1000], Entry::Goodbye);
    stage
        .until("the end of the stream", |stage| {
            stage.listen();
            stage.over.take()
        })
        .expect("it is in order");
    stage.stream = None;
    stage.until("the end of the socket", |stage| {
        stage.fabric.leaving.iter().all(Option::is_none).then_some(())
    });
}

/// A fabric that is dropped takes back what it was delivering.
#[test]
fn a_fabric_ends_in_the_midst_of_a_delivery() {
    let mut stage = backlogged(TcpOptions { large_credits: 1000, ..TcpOptions::default() });
    stage.fabric.disconnect(stage.id);
    stage.end();
    assert!(stage.fabric.leaving[0].is_some());
    let Stage { fabric, .. } = stage;
    drop(fabric);
}
