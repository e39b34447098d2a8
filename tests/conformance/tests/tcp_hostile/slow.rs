//! Peers that take their time.

use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::Note;
use gannet_fabric::DisconnectReason;
use gannet_fabric::tcp::TcpOptions;

use crate::bytes::{Frame, WELCOME, hello};
use crate::peer::RawPeer;
use crate::stage::{Stage, together};

/// How many slow peers there are at a time.
const PEERS: usize = 300;

#[test]
fn hundreds_of_peers_that_speak_byte_by_byte_are_understood() {
    let _turn = together();
    let options = TcpOptions {
        half_open_max: 2 * PEERS,
        handshake_timeout: Duration::from_secs(30),
        ..TcpOptions::default()
    };
    let mut stage = Stage::with(options);
    let start = Instant::now();
    let mut peers: Vec<_> = (0..PEERS).map(|_| RawPeer::dial(stage.port)).collect();
    let mut bytewise = |stage: &mut Stage, bytes: &[u8]| {
        for byte in bytes {
            for (number, peer) in peers.iter_mut().enumerate() {
                stage.say(peer, &[*byte]);
                if number % 8 == 0 {
                    stage.turn();
                }
            }
        }
    };
    bytewise(&mut stage, &hello());
    for _ in 0..PEERS {
        stage.accepted();
    }
    bytewise(&mut stage, &Frame::new(0).message(b"at last").goodbye().bytes());
    stage.until("the ends", |server| (server.fabric.connections() == 1).then_some(()));
    for peer in &mut peers {
        stage.hear_out(peer);
        assert_eq!(peer.greeting(), Some(WELCOME));
    }
    let mut messages = 0;
    let mut ends = 0;
    for (_, note) in stage.server.notes.drain(..) {
        match note {
            Note::Message(message) if message == b"at last" => messages += 1,
            Note::Disconnected(DisconnectReason::Remote) => ends += 1,
            // The good peer's are taken at once, but its next may be there.
            _ => {}
        }
    }
    assert_eq!((messages, ends), (PEERS, PEERS));
    println!("{PEERS} peers byte by byte: {:?}; served: {:?}", start.elapsed(), stage.served());
}

#[test]
fn peers_that_are_too_slow_to_greet_are_given_up() {
    let _turn = together();
    let options = TcpOptions {
        half_open_max: 2 * PEERS,
        handshake_timeout: Duration::from_millis(400),
        ..TcpOptions::default()
    };
    let mut stage = Stage::with(options);
    let start = Instant::now();
    let mut peers: Vec<_> = (0..PEERS).map(|_| RawPeer::dial(stage.port)).collect();
    let mut rounds = 0;
    while peers.iter().any(|peer| !peer.over) {
        let round = Instant::now();
        for (number, peer) in peers.iter_mut().enumerate() {
            if !peer.over {
                peer.say(&hello()[rounds.min(63)..=rounds.min(63)]);
                peer.listen();
            }
            if number % 8 == 0 {
                stage.turn();
            }
        }
        // One byte each in so long a time that it takes longer than is allowed.
        while round.elapsed() < Duration::from_millis(20) {
            stage.turn();
        }
        rounds += 1;
        assert!(rounds < 64, "a byte in 20 ms was fast enough");
    }
    let took = start.elapsed();
    assert!(peers.iter().all(|peer| peer.heard.is_empty()), "nobody was welcome");
    assert!(took >= Duration::from_millis(400), "{took:?}");
    println!("{PEERS} slow greetings given up after {took:?}; served: {:?}", stage.served());
    stage.finish();
}

/// As slow as one byte per second, in the greeting and in frames.
#[test]
fn one_byte_per_second_is_no_burden() {
    let _turn = together();
    let mut stage = Stage::new();
    let mut greeting: Vec<_> = (0..16).map(|_| RawPeer::dial(stage.port)).collect();
    let mut framing: Vec<_> = (0..16).map(|_| stage.establish()).collect();
    let frame = Frame::new(0).message(b"never whole").bytes();
    for second in 0..5 {
        for peer in &mut greeting {
            peer.say(&hello()[second..=second]);
        }
        for peer in &mut framing {
            assert_eq!(peer.say(&frame[second..=second]), 1);
        }
        stage.turns(Duration::from_secs(1));
    }
    for peer in &mut greeting {
        peer.listen();
        assert!(peer.over && peer.heard.is_empty(), "longer than a greeting may take");
    }
    for peer in &mut framing {
        peer.listen();
        assert!(!peer.over, "a frame may take long");
        peer.finish();
        assert_eq!(stage.end_of(peer.id.expect("established")), DisconnectReason::PeerLost);
    }
    let (rounds, slowest) = stage.served();
    println!("one byte per second: the good peer {rounds} rounds, at most {slowest:?} each");
    assert!(rounds > 100, "{rounds}");
    stage.finish();
}
