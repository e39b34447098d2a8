//! Connections that break.

use gannet_fabric::{Access, DisconnectReason, Fabric, Transfer, TransferStatus};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use super::Provider;
use super::end::{End, Note, PATIENCE, Pair, buffer_with, connect};
use super::transfers::remote;

/// Who breaks the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    /// The side that posted.
    Poster,
    /// The other side, in order.
    Owner,
    /// The other side dies.
    Death,
}

/// Each posted transfer completes once, before the end of its connection, and nothing after it.
pub fn every_transfer_completes_once(provider: &impl Provider) {
    let turns_max = provider.rounds(4).min(4) as usize;
    for breaker in [Breaker::Poster, Breaker::Owner, Breaker::Death] {
        for turns in 0..turns_max {
            for count in [0, 1, 30] {
                break_with_transfers(provider, breaker, turns, count);
            }
        }
    }
}

fn break_with_transfers<P: Provider>(provider: &P, breaker: Breaker, turns: usize, count: u64) {
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(PAGE_BYTES, 64).expect("memory");
    for token in 0..count {
        let local = buffer_with(&pool, b"payload");
        let transfer =
            Transfer { token, memory: local, offset: 0, remote: remote(at, token * 8, 8) };
        let fabric = &mut pair.right.fabric;
        let posted = if token % 2 == 0 {
            fabric.write(to_left, transfer)
        } else {
            fabric.read(to_left, transfer)
        };
        posted.expect("room");
    }
    let Pair { mut left, mut right, .. } = pair;
    for _ in 0..turns {
        right.turn();
        left.turn();
    }
    let mut left = match breaker {
        Breaker::Poster => {
            right.fabric.disconnect(to_left);
            Some(left)
        }
        Breaker::Owner => {
            left.fabric.disconnect(to_right);
            Some(left)
        }
        Breaker::Death => {
            provider.kill(left.fabric);
            None
        }
    };
    let reason = wait_for_end(&mut right, left.as_mut(), to_left);
    let expected = match breaker {
        Breaker::Poster => DisconnectReason::Local,
        Breaker::Owner => DisconnectReason::Remote,
        Breaker::Death => DisconnectReason::PeerLost,
    };
    assert_eq!(reason, expected);
    let mut tokens = Vec::new();
    let mut ended = false;
    while let Some((id, note)) = right.notes.pop_front() {
        assert_eq!(id, to_left);
        assert!(!ended, "{note:?} after the end");
        match note {
            Note::Transferred { token, status, memory } => {
                assert_ne!(status, TransferStatus::AccessRefused);
                drop(memory);
                tokens.push(token);
            }
            Note::Disconnected(_) => ended = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(ended);
    assert_eq!(tokens, (0..count).collect::<Vec<_>>(), "{breaker:?} after {turns} turns");
    assert_eq!(pool.available(), 64, "every buffer is back");
    for _ in 0..50 {
        right.turn();
    }
    assert!(right.notes.is_empty(), "after the end: {:?}", right.notes);
}

/// Polls until the end of `connection` is among the notes, which it leaves there.
fn wait_for_end<F: Fabric>(
    right: &mut End<F>,
    mut left: Option<&mut End<F>>,
    connection: gannet_fabric::ConnectionId,
) -> DisconnectReason {
    let start = std::time::Instant::now();
    loop {
        right.turn();
        if let Some(left) = &mut left {
            left.turn();
        }
        let reason = right.notes.iter().find_map(|(id, note)| match note {
            Note::Disconnected(reason) if *id == connection => Some(*reason),
            _ => None,
        });
        if let Some(reason) = reason {
            return reason;
        }
        assert!(start.elapsed() < PATIENCE, "the end was not noticed: {:?}", right.notes);
    }
}

/// What a dying peer had sent arrives, then its death is told; other connections go on. On a network
/// the last message may be lost with the device's queue, but nothing comes in its place.
pub fn a_dead_peer_is_noticed(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let mut other = End::new(provider.fabric());
    let (other_to_right, right_to_other) = connect(&mut other, &mut pair.right, &address);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    pair.left.fabric.send(to_right, b"last words").expect("a credit");
    pair.left.fabric.flush();
    let Pair { left, mut right, .. } = pair;
    let maps = right.fabric.capabilities(to_left).maps_remote_memory;
    provider.kill(left.fabric);
    let reason = wait_for_end(&mut right, Some(&mut other), to_left);
    assert_eq!(reason, DisconnectReason::PeerLost);
    let (id, first) = right.notes.pop_front().expect("at least the end");
    assert_eq!(id, to_left);
    match first {
        Note::Message(bytes) => {
            assert_eq!(bytes, b"last words");
            let after = right.notes.pop_front();
            assert!(matches!(after, Some((id, Note::Disconnected(_))) if id == to_left));
        }
        Note::Disconnected(_) => assert!(!maps),
        other => panic!("{other:?}"),
    }
    assert!(right.notes.is_empty(), "{:?}", right.notes);
    other.fabric.send(other_to_right, b"alive").expect("a credit");
    let message = super::end::until("a message", &mut other, &mut right, |_, right| {
        right.message(right_to_other)
    });
    assert_eq!(message, b"alive");
}

/// After a listener's death somebody else can listen at its address.
pub fn a_dead_listener_is_replaced(provider: &impl Provider) {
    let pair = Pair::new(provider);
    let address = pair.address.clone();
    let Pair { mut left, right, to_right, .. } = pair;
    provider.kill(right.fabric);
    let mut successor = provider.fabric();
    successor.listen(&address).expect("the address of a dead listener");
    let mut successor = End::new(successor);
    let reason = wait_for_end(&mut left, Some(&mut successor), to_right);
    assert_eq!(reason, DisconnectReason::PeerLost);
    left.notes.clear();
    connect(&mut left, &mut successor, &address);
}
