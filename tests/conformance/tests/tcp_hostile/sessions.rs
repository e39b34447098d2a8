//! A good session's frames, each repeated, left out, cut short, lengthened, or in another's place.

use gannet_conformance::fabric::end::{Random, content};
use gannet_fabric::{Access, DisconnectReason, Fabric};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use std::sync::Arc;

use crate::bytes::Frame;
use crate::stage::{Stage, together};

/// What is left of a session.
struct Left {
    reason: DisconnectReason,
    messages: Vec<Vec<u8>>,
    memory: Vec<u8>,
}

/// The frames of a session that uses everything.
fn frames(key: u32, address: u64) -> Vec<Vec<u8>> {
    let frames = [
        Frame::new(0).message(b"first"),
        Frame::new(1),
        Frame::new(2).write(key, address, &[2; 100]).message(b"second").message(&[3; 300]),
        Frame::new(3).read(key, address, 100).write(key, address + 200, &[4; 999]),
        Frame::new(4).message(b"").write(key, address + 1999, &[5; 1]).read(key, address, 0),
        Frame::new(5).message(b"last").goodbye(),
    ];
    frames.iter().map(Frame::bytes).collect()
}

/// Runs a session of which `spoil` changes the frames.
fn session(
    stage: &mut Stage,
    memory: &Arc<Mapping>,
    spoil: impl FnOnce(Vec<Vec<u8>>) -> Vec<Vec<u8>>,
) -> Left {
    memory.zero(0, memory.len());
    let mut peer = stage.establish();
    let id = peer.id.expect("established");
    let at = stage.server.fabric.register(id, memory, Access::READ_WRITE).expect("room");
    stage.until("the key", |server| server.registered(id, at.key));
    let bytes = spoil(frames(at.key.0, at.address)).concat();
    stage.say(&mut peer, &bytes);
    peer.finish();
    let reason = stage.end_of(id);
    stage.hear_out(&mut peer);
    let messages = std::iter::from_fn(|| stage.server.message(id)).collect();
    Left { reason, messages, memory: content(memory) }
}

/// What is left of the good session after each of its frames.
fn prefixes(stage: &mut Stage, memory: &Arc<Mapping>) -> Vec<Left> {
    let count = frames(0, 0).len();
    let prefix = |take| session(stage, memory, |frames| frames[..take].to_vec());
    (0..=count).map(prefix).collect()
}

/// What each frame may write.
const RANGES: [std::ops::Range<usize>; 6] = [0..0, 0..0, 0..100, 200..1199, 1999..2000, 0..0];

/// The messages are those of some prefix that has at least `whole` frames, or a part of the next
/// frame's, and so is the memory. Payload of the next frame has no shape: what came instead of it may
/// be in its place.
fn assert_prefix(what: &str, left: &Left, prefixes: &[Left], whole: usize) {
    let last = &prefixes[prefixes.len() - 1];
    assert!(last.messages.starts_with(&left.messages), "{what}: {:?}", left.messages);
    assert!(left.messages.starts_with(&prefixes[whole].messages), "{what}: {:?}", left.messages);
    let one_more = &prefixes[(whole + 1).min(prefixes.len() - 1)];
    assert!(one_more.messages.starts_with(&left.messages), "{what}: {:?}", left.messages);
    for (at, byte) in left.memory.iter().enumerate() {
        let before = prefixes[whole].memory[at];
        assert!(*byte == before || RANGES[whole].contains(&at), "{what}: byte {at} is {byte}");
    }
}

#[test]
fn the_good_session_works() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let left = session(&mut stage, &memory, |frames| frames);
    assert_eq!(left.reason, DisconnectReason::Remote);
    let expected: [&[u8]; 5] = [b"first", b"second", &[3; 300], b"", b"last"];
    assert_eq!(left.messages, expected);
    let ranges = [(0, 100, 2), (200, 1199, 4), (1999, 2000, 5)];
    for (at, byte) in left.memory.iter().enumerate() {
        let range = ranges.iter().find(|(start, end, _)| (*start..*end).contains(&at));
        assert_eq!(*byte, range.map_or(0, |(_, _, value)| *value), "byte {at}");
    }
    stage.finish();
}

#[test]
fn frames_repeated_left_out_or_out_of_order_end_the_session() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let prefixes = prefixes(&mut stage, &memory);
    let last = prefixes.len() - 2;
    for place in 0..=last {
        // Also long after.
        for later in place..=last {
            let left = session(&mut stage, &memory, |mut frames| {
                frames.insert(later + 1, frames[place].clone());
                frames
            });
            let what = format!("frame {place} repeated behind {later}");
            // Nobody reads behind the goodbye.
            let end = [DisconnectReason::Protocol, DisconnectReason::Remote];
            assert_eq!(left.reason, end[usize::from(later == last)], "{what}");
            assert_eq!(left.messages, prefixes[later + 1].messages, "{what}: each once");
            assert!(left.memory == prefixes[later + 1].memory, "{what}");
        }
        let left = session(&mut stage, &memory, |mut frames| {
            frames.remove(place);
            frames
        });
        let end = [DisconnectReason::Protocol, DisconnectReason::PeerLost];
        assert_eq!(left.reason, end[usize::from(place == last)], "frame {place} left out");
        assert_eq!(left.messages, prefixes[place].messages);
        assert!(left.memory == prefixes[place].memory);
        if place < last {
            let left = session(&mut stage, &memory, |mut frames| {
                frames.swap(place, place + 1);
                frames
            });
            assert_eq!(left.reason, DisconnectReason::Protocol, "frame {place} with the next");
            assert_eq!(left.messages, prefixes[place].messages);
        }
    }
    stage.finish();
}

/// Every length where frames are short, some where they are long.
fn lengths(len: usize, random: &mut Random) -> Vec<usize> {
    let mut lengths: Vec<_> = (1..=len.min(80)).collect();
    lengths.extend((0..16).map(|_| 1 + random.below(len as u64) as usize));
    lengths.extend(len.saturating_sub(16).max(1)..=len);
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

#[test]
fn frames_cut_short_end_the_session() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let prefixes = prefixes(&mut stage, &memory);
    let mut random = Random::new(5);
    let last = prefixes.len() - 2;
    let mut sessions = 0;
    for place in 0..=last {
        for less in lengths(frames(0, 0)[place].len(), &mut random) {
            for goes_on in [false, true] {
                let left = session(&mut stage, &memory, |mut frames| {
                    let len = frames[place].len() - less;
                    frames[place].truncate(len);
                    if !goes_on {
                        frames.truncate(place + 1);
                    }
                    frames
                });
                let what = format!("frame {place} without its last {less} bytes, on: {goes_on}");
                let allowed = [DisconnectReason::PeerLost, DisconnectReason::Protocol];
                let allowed = &allowed[..1 + usize::from(goes_on)];
                assert!(allowed.contains(&left.reason), "{what}: {:?}", left.reason);
                assert_prefix(&what, &left, &prefixes, place);
                sessions += 1;
            }
        }
    }
    println!("{sessions} sessions with a frame cut short; {:?}", stage.served());
    stage.finish();
}

#[test]
fn frames_lengthened_end_the_session() {
    let _turn = together();
    let mut stage = Stage::new();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let prefixes = prefixes(&mut stage, &memory);
    let mut random = Random::new(6);
    let last = prefixes.len() - 2;
    for place in 0..last {
        for more in (1..=72).chain([1000, 4096, 40_000]) {
            let noise = random.below(2) == 0;
            let left = session(&mut stage, &memory, |mut frames| {
                let extra = (0..more).map(|_| if noise { random.below(256) as u8 } else { 0 });
                frames[place].extend(extra);
                frames
            });
            let what = format!("frame {place} with {more} bytes behind it, noise: {noise}");
            let allowed = [DisconnectReason::PeerLost, DisconnectReason::Protocol];
            assert!(allowed.contains(&left.reason), "{what}: {:?}", left.reason);
            assert_eq!(left.messages, prefixes[place + 1].messages, "{what}");
            assert!(left.memory == prefixes[place + 1].memory, "{what}");
        }
    }
    stage.finish();
}
