//! Writes of what is being read: they wait for the answer, and so does all behind them.

use gannet_runtime::memory::{Mapping, Memory};
use std::time::Duration;

use super::peer::Stage;
use crate::tcp::TcpOptions;
use crate::tcp::connection::State;
use crate::tcp::wire::Entry;
use crate::{DisconnectReason, Fabric, Key, RemoteSlice, Transfer, TransferStatus};

use TransferStatus::{ConnectionLost, Done};

const LEN_BYTES: usize = 100;
const GOODBYE: Entry = Entry::Goodbye;

fn remote(address: u64) -> RemoteSlice {
    RemoteSlice { address, key: Key(1), len_bytes: LEN_BYTES as u32 }
}

fn post(stage: &mut Stage, token: u64, address: u64, writes: bool) {
    let memory = Mapping::anonymous(4096).expect("memory").slice(0, 4096).expect("inside");
    let memory = Memory::Shared(memory);
    let transfer = Transfer { token, memory, offset: 0, remote: remote(address) };
    let posted = match writes {
        true => stage.fabric.write(stage.id, transfer),
        false => stage.fabric.read(stage.id, transfer),
    };
    posted.expect("room");
}

/// A read has left; a write of its last byte waits for the answer, and so do a message and another
/// read.
fn held(options: TcpOptions) -> Stage {
    let mut stage = Stage::new(options);
    post(&mut stage, 0, 1000, false);
    post(&mut stage, 1, 2000, true);
    post(&mut stage, 2, 1099, true);
    stage.fabric.send(stage.id, b"behind").expect("a credit");
    post(&mut stage, 3, 3000, false);
    assert_eq!(stage.hear(2), [Entry::Read { remote: remote(1000) }, written(2000)]);
    for _ in 0..50 {
        stage.turn();
    }
    assert_eq!(stage.entries().len(), 2, "something did not wait");
    stage
}

fn written(address: u64) -> Entry {
    Entry::Write { remote: remote(address), checksum: 0 }
}

fn answer(stage: &mut Stage, placed: u32) -> Vec<u8> {
    let entry = Entry::ReadAnswer { len_bytes: LEN_BYTES as u32, checksum: 0 };
    stage.frame(placed, &[entry], &[&[7; LEN_BYTES]])
}

/// The peer heard what was held.
fn hear_released(stage: &mut Stage) {
    let entries = stage.hear(5);
    let released =
        [written(1099), Entry::Message { len_bytes: 6 }, Entry::Read { remote: remote(3000) }];
    assert_eq!(entries[2..5], released);
}

#[test]
fn a_write_waits_for_the_whole_answer() {
    let mut stage = held(TcpOptions::default());
    let bytes = answer(&mut stage, 1);
    let (most, last) = bytes.split_at(bytes.len() - 1);
    stage.say(most);
    for _ in 0..50 {
        stage.turn();
    }
    assert_eq!(stage.entries().len(), 2, "the answer's last byte is missing");
    stage.say(last);
    hear_released(&mut stage);
    let bytes = answer(&mut stage, 2);
    stage.say(&bytes);
    let mut completed = Vec::new();
    stage.until("completions", |stage| {
        completed.append(&mut stage.completed());
        (completed.len() == 4).then_some(())
    });
    assert_eq!(completed, [(0, Done), (1, Done), (2, Done), (3, Done)]);
    // And again, in memory that is there now.
    post(&mut stage, 4, 1000, false);
    post(&mut stage, 5, 901, true);
    post(&mut stage, 6, 900, true);
    assert_eq!(stage.hear(6)[5..], [Entry::Read { remote: remote(1000) }]);
    let bytes = answer(&mut stage, 2);
    stage.say(&bytes);
    assert_eq!(stage.hear(8)[6..], [written(901), written(900)]);
}

/// What touches none of the bytes that are being read does not wait; nor does a write that is read
/// only by what was posted behind it.
#[test]
fn only_what_is_being_read_waits() {
    let mut stage = Stage::new(TcpOptions::default());
    post(&mut stage, 0, 1000, false);
    post(&mut stage, 1, 3000, false);
    for (token, address) in [(2, 900), (3, 1100), (4, 2000), (5, 3100)] {
        post(&mut stage, token, address, true);
    }
    post(&mut stage, 6, 2000, false);
    assert_eq!(stage.hear(7).len(), 7);
    // One waits, and the read behind it of the same bytes is no reason to wait for ever.
    post(&mut stage, 7, 3050, true);
    post(&mut stage, 8, 3050, false);
    let bytes = [answer(&mut stage, 0), answer(&mut stage, 0)].concat();
    stage.say(&bytes);
    assert_eq!(stage.hear(9)[7..], [written(3050), Entry::Read { remote: remote(3050) }]);
}

#[test]
fn a_disconnect_waits_for_what_is_held() {
    let mut stage = held(TcpOptions::default());
    stage.fabric.disconnect(stage.id);
    let bytes = answer(&mut stage, 1);
    stage.say(&bytes);
    hear_released(&mut stage);
    assert_eq!(stage.hear(6)[5..], [GOODBYE]);
    let bytes = answer(&mut stage, 2);
    stage.say(&bytes);
    assert_eq!(stage.end(), DisconnectReason::Local);
    assert_eq!(stage.completed(), [(0, Done), (1, Done), (2, Done), (3, Done)]);
}

/// The read is not answered in time, so nothing behind it has an effect.
#[test]
fn what_is_held_goes_when_the_end_lingers_too_long() {
    let mut stage = held(TcpOptions { linger: Duration::from_millis(20), ..TcpOptions::default() });
    stage.fabric.disconnect(stage.id);
    assert_eq!(stage.end(), DisconnectReason::Local);
    let lost = ConnectionLost;
    assert_eq!(stage.completed(), [(0, lost), (1, lost), (2, lost), (3, lost)]);
    stage
        .until("the end of the stream", |stage| {
            stage.listen();
            stage.over.take()
        })
        .expect("it is not cut off");
    assert_eq!(stage.entries().len(), 2);
}

#[test]
fn everything_comes_back_when_the_peer_goes() {
    for goodbye in [false, true] {
        let mut stage = held(TcpOptions::default());
        let expected = if goodbye {
            let bytes = stage.frame(1, &[GOODBYE], &[]);
            stage.say(&bytes);
            DisconnectReason::Remote
        } else {
            stage.stream = None;
            DisconnectReason::PeerLost
        };
        assert_eq!(stage.end(), expected);
        let lost = ConnectionLost;
        let write = if goodbye { Done } else { lost };
        assert_eq!(stage.completed(), [(0, lost), (1, write), (2, lost), (3, lost)]);
    }
}

/// Whoever is refused is told at once, whatever waits.
#[test]
fn a_refusal_does_not_wait() {
    let mut stage = held(TcpOptions::default());
    let bytes = stage.frame(1, &[Entry::Read { remote: remote(5) }], &[]);
    stage.say(&bytes);
    assert_eq!(stage.hear(3)[2..], [Entry::Refused { transfer: 0 }]);
    assert_eq!(stage.end(), DisconnectReason::Protocol);
}

/// A message that is held has its credit, and nothing can be returned for it.
#[test]
fn held_messages_have_not_left() {
    let mut stage = held(TcpOptions { small_credits: 2, ..TcpOptions::default() });
    assert_eq!(stage.connection().state, State::Established);
    let mut bytes = stage.frame(1, &[], &[]);
    bytes[20] = 1;
    let sum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    stage.say(&bytes);
    assert_eq!(stage.end(), DisconnectReason::Protocol);
}
