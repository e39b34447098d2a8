//! Greetings that are not as they should be, from connectors and from acceptors.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::{End, Note};
use gannet_fabric::tcp::{TcpFabric, TcpOptions};
use gannet_fabric::{DisconnectReason, Fabric, PostError};

use crate::bytes::{
    Frame, GREETING_BYTES, HELLO, REFUSED_FULL, REFUSED_NOT_TRUSTED, REFUSED_PROTOCOL, WELCOME,
    greeting, hello, seal_greeting,
};
use crate::memory::{growth_mib, resident_bytes};
use crate::peer::RawPeer;
use crate::stage::{Stage, address_of, alone, free_port, together};

#[test]
fn hellos_that_end_early_leave_nothing() {
    let _turn = together();
    let mut stage = Stage::new();
    for len in 0..GREETING_BYTES {
        let mut peer = RawPeer::dial(stage.port);
        stage.say(&mut peer, &hello()[..len]);
        peer.finish();
        stage.hear_out(&mut peer);
        assert!(peer.heard.is_empty(), "{len} bytes are no hello");
    }
    stage.finish();
}

#[test]
fn hellos_that_hang_are_given_up() {
    let _turn = together();
    let handshake_timeout = Duration::from_millis(300);
    let mut stage = Stage::with(TcpOptions { handshake_timeout, ..TcpOptions::default() });
    let start = Instant::now();
    let mut peers: Vec<_> = (0..GREETING_BYTES).map(|_| RawPeer::dial(stage.port)).collect();
    for (len, peer) in peers.iter_mut().enumerate() {
        stage.say(peer, &hello()[..len]);
    }
    stage.until("all of them", |server| (server.fabric.connections() == 65).then_some(()));
    for peer in &mut peers {
        stage.hear_out(peer);
        assert!(peer.heard.is_empty());
    }
    let waited = start.elapsed();
    assert!(waited >= handshake_timeout, "given up before their time, after {waited:?}");
    stage.finish();
}

/// The peer hears no, and why; the server's user hears nothing.
fn refused(stage: &mut Stage, what: &str, hello: &[u8]) {
    let mut peer = RawPeer::dial(stage.port);
    stage.say(&mut peer, hello);
    stage.hear_out(&mut peer);
    assert_eq!(peer.greeting(), Some(REFUSED_PROTOCOL), "{what}");
    assert_eq!(peer.heard.len(), GREETING_BYTES, "{what}: nothing follows");
}

#[test]
fn hellos_that_are_wrong_are_refused() {
    let _turn = together();
    let mut stage = Stage::new();
    for at in 0..GREETING_BYTES {
        for change in [1, 0x80, 0xff] {
            let mut bytes = hello();
            bytes[at] ^= change;
            refused(&mut stage, &format!("byte {at} changed by {change:#x}"), &bytes);
        }
    }
    // Not damaged, but wrong.
    let changes: &[(&str, usize, &[u8])] = &[
        ("another magic", 0, b"GNTD"),
        ("a welcome", 4, &[2, 0]),
        ("a refusal", 4, &[3, 1]),
        ("kind 0", 4, &[0, 0]),
        ("kind 4", 4, &[4, 0]),
        ("a hello with a reason", 4, &[1, 1]),
        ("a later version", 6, &[2, 0, 2, 0]),
        ("an earlier version", 6, &[0, 0, 0, 0]),
        ("no version at all", 6, &[2, 0, 1, 0]),
        ("no small credits", 10, &[0, 0]),
        ("no large credits", 12, &[0, 0]),
        ("no transfers", 14, &[0, 0]),
        ("a method of authentication", 20, &[1, 0]),
        ("credentials", 22, &[1, 0]),
        ("credentials without end", 22, &[255, 255]),
    ];
    for (what, at, bytes) in changes {
        let mut hello = hello();
        hello[*at..*at + bytes.len()].copy_from_slice(bytes);
        seal_greeting(&mut hello);
        refused(&mut stage, what, &hello);
    }
    refused(&mut stage, "noise", &[0x47; GREETING_BYTES]);
    refused(&mut stage, "noise, and much of it", &[0; 1 << 20]);
    refused(&mut stage, "another protocol", &b"GET / HTTP/1.1\r\n".repeat(16));

    // The controls: as it should be, and with what later versions may add.
    drop(stage.establish());
    let mut later = hello();
    later[8] = 9;
    later[19] = 0x80;
    later[40..60].fill(7);
    seal_greeting(&mut later);
    drop(stage.establish_with(&later));
    stage.until("the end of both", |server| (server.fabric.connections() == 1).then_some(()));
    stage
        .server
        .notes
        .retain(|(_, note)| !matches!(note, Note::Disconnected(DisconnectReason::PeerLost)));
    stage.finish();
}

#[test]
fn a_hello_and_more_in_one_piece() {
    let _turn = together();
    let mut stage = Stage::new();
    // What follows belongs to the connection already: here a message,
    let mut peer = RawPeer::dial(stage.port);
    let frames = [Frame::new(0).message(b"early").bytes(), Frame::new(1).goodbye().bytes()];
    stage.say(&mut peer, &[hello(), frames.concat()].concat());
    let id = stage.accepted();
    assert_eq!(stage.end_of(id), DisconnectReason::Remote);
    assert_eq!(stage.server.message(id).as_deref(), Some(&b"early"[..]));
    // here another hello, which is no frame.
    let mut peer = RawPeer::dial(stage.port);
    stage.say(&mut peer, &[hello(), hello()].concat());
    let id = stage.accepted();
    assert_eq!(stage.end_of(id), DisconnectReason::Protocol);
    stage.finish();
}

/// Peers that claim to take any number of messages and transfers do not make the server keep room
/// for them.
#[test]
fn huge_credits_cost_no_memory() {
    let _turn = alone();
    const PEERS: usize = 100;
    let options = TcpOptions::default();
    let (small, large) = (options.small_credits, options.large_credits);
    let mut stage = Stage::with(options);
    // The allocator has taken from the kernel what it takes for any peer.
    let mut grown = [0.0; 2];
    for (round, credits) in [[small, large, 128], [u16::MAX; 3]].into_iter().enumerate() {
        let before = resident_bytes();
        let greeting = greeting(HELLO, credits);
        let peers: Vec<_> = (0..PEERS).map(|_| stage.establish_with(&greeting)).collect();
        for peer in &peers {
            let id = peer.id.expect("established");
            let fabric = &mut stage.server.fabric;
            let mut sent = [0; 2];
            for (sent, len_bytes) in sent.iter_mut().zip([256, 8192]) {
                let full = loop {
                    match fabric.send(id, &vec![5; len_bytes]) {
                        Ok(()) => *sent += 1,
                        Err(error) => break error,
                    }
                };
                assert_eq!(full, PostError::Full);
            }
            assert_eq!(sent, [small, large], "no more than this side would take itself");
        }
        stage.turns(Duration::from_millis(20));
        grown[round] = growth_mib(before, resident_bytes());
        for peer in &peers {
            stage.server.fabric.disconnect(peer.id.expect("established"));
        }
        drop(peers);
        stage.until("the ends", |server| (server.fabric.connections() == 1).then_some(()));
        stage.server.notes.clear();
    }
    println!(
        "{PEERS} peers that grant {small} and {large} messages, all of them on their way: \
         {:.1} MiB more; then with 65535: {:.1} MiB more",
        grown[0], grown[1]
    );
    let most = PEERS as f64 * 0.6;
    assert!(grown[0] < most && grown[1] < most, "{grown:?} MiB");
    stage.finish();
}

#[test]
fn acceptors_that_are_not_understood_are_left() {
    let _turn = together();
    let port = free_port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
    let connect_timeout = Duration::from_millis(500);
    let options = TcpOptions { connect_timeout, ..TcpOptions::default() };
    let mut end = End::new(TcpFabric::new(options).expect("a fabric"));
    let refusal = |kind| greeting(kind, [0; 3]);
    let mut later = greeting(WELCOME, [8; 3]);
    later[6..10].copy_from_slice(&[2, 0, 2, 0]);
    seal_greeting(&mut later);
    let mut spoilt = greeting(WELCOME, [8; 3]);
    spoilt[30] ^= 1;
    let welcome = greeting(WELCOME, [8; 3]);
    let cases = [
        ("not trusted", refusal(REFUSED_NOT_TRUSTED), DisconnectReason::NotTrusted),
        ("no room", refusal(REFUSED_FULL), DisconnectReason::Unreachable),
        ("not understood", refusal(REFUSED_PROTOCOL), DisconnectReason::Protocol),
        ("an unknown refusal", refusal((3, 9)), DisconnectReason::Protocol),
        ("another version", later, DisconnectReason::Protocol),
        ("a damaged welcome", spoilt, DisconnectReason::Protocol),
        ("a welcome without credits", greeting(WELCOME, [8, 0, 8]), DisconnectReason::Protocol),
        ("a hello", hello(), DisconnectReason::Protocol),
        ("noise", vec![7; 100], DisconnectReason::Protocol),
        ("nothing", vec![], DisconnectReason::PeerLost),
        ("half a welcome", welcome[..40].to_vec(), DisconnectReason::PeerLost),
    ];
    for (what, bytes, expected) in cases {
        let id = end.fabric.connect(&address_of(port)).expect("room");
        end.turn();
        let mut peer = RawPeer::accepted(listener.accept().expect("a connection").0);
        assert_eq!(peer.say(&bytes), bytes.len(), "{what}");
        peer.finish();
        let start = Instant::now();
        let reason = loop {
            end.turn();
            if let Some(reason) = end.ended(id) {
                break reason;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: no end");
        };
        assert_eq!(reason, expected, "{what}");
        assert_eq!(end.fabric.connections(), 0, "{what}");
    }

    // One that says nothing, and one that begins to say something.
    for bytes in [&[][..], &welcome[..63]] {
        let start = Instant::now();
        let id = end.fabric.connect(&address_of(port)).expect("room");
        end.turn();
        let mut peer = RawPeer::accepted(listener.accept().expect("a connection").0);
        assert_eq!(peer.say(bytes), bytes.len());
        let reason = loop {
            end.turn();
            if let Some(reason) = end.ended(id) {
                break reason;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "never given up");
        };
        assert_eq!(reason, DisconnectReason::PeerLost);
        assert!(start.elapsed() >= connect_timeout, "given up before its time");
        drop(peer);
    }
}
