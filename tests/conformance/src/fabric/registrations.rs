//! Keys and what they open.

use std::collections::HashSet;

use gannet_fabric::{Access, DisconnectReason, Fabric, FabricError, Key, Transfer, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use super::end::{Note, Pair, buffer_with, content};
use super::transfers::remote;
use super::{Bounds, Provider};

/// No two live registrations of one fabric have the same key, on whichever connection.
pub fn keys_are_unique(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let mut keys = HashSet::new();
    for _ in 0..3 {
        for _ in 0..20 {
            let at = pair.register_left(&memory, Access::READ_WRITE);
            assert!(keys.insert(at.key), "{:?} was given out before", at.key);
        }
        // The earlier ones go on.
        pair.connect();
    }
}

/// A key works on the connection it was registered on only.
pub fn a_foreign_key_is_refused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let first = (pair.to_right, pair.to_left);
    for writes in [true, false] {
        pair.connect();
        let view = pair.right.fabric.map(pair.to_left, remote(at, 0, 8), Access::READ_WRITE);
        assert!(view.is_none());
        let mut local = pool.take().expect("free");
        local.fill(0x22);
        let local = pair.refused(writes, Memory::Buffer(local), remote(at, 0, 8));
        let buffer = local.into_buffer().expect("a buffer");
        assert!(buffer.iter().all(|byte| *byte == 0x22));
    }
    assert!(content(&memory).iter().all(|byte| *byte == 0));
    (pair.to_right, pair.to_left) = first;
    let local = pool.take().expect("free");
    let (_, status) = pair.transfer(true, Memory::Buffer(local), remote(at, 0, 8));
    assert_eq!(status, TransferStatus::Done, "it still works where it belongs");
}

/// After `Deregistered` the key opens nothing.
pub fn a_deregistered_key_is_refused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    for round in 0..6 {
        let at = pair.register_left(&memory, Access::READ_WRITE);
        let kept = pair.register_left(&memory, Access::READ_WRITE);
        pair.left.fabric.deregister(pair.to_right, at.key);
        // Twice is once, and an unknown key is none.
        pair.left.fabric.deregister(pair.to_right, at.key);
        pair.left.fabric.deregister(pair.to_right, Key(u32::MAX));
        let to_right = pair.to_right;
        pair.until("the end of the key", |left, _| left.deregistered(to_right, at.key));
        let local = pool.take().expect("free");
        let (_, status) = pair.transfer(false, Memory::Buffer(local), remote(kept, 0, 8));
        assert_eq!(status, TransferStatus::Done, "another key of the same memory still works");
        assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
        let mut local = pool.take().expect("free");
        local.fill(0x33);
        drop(pair.refused(round % 2 == 0, Memory::Buffer(local), remote(at, 0, 8)));
        assert!(content(&memory).iter().all(|byte| *byte == 0));
        pair.connect();
    }
}

/// While the peer holds a view, a deregistration is not confirmed; no new view is made.
pub fn deregistration_waits_for_views(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let to_left = pair.to_left;
    let view = pair.right.fabric.map(to_left, remote(at, 64, 64), Access::READ_WRITE);
    let maps = pair.right.fabric.capabilities(to_left).maps_remote_memory;
    assert_eq!(view.is_some(), maps);
    let Some(view) = view else { return };
    let clone = view.clone();
    view.copy_in(0, b"through the view");
    assert_eq!(&content(&memory)[64..80], b"through the view");
    pair.left.fabric.deregister(pair.to_right, at.key);
    drop(view);
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(20) {
        pair.left.turn();
        pair.right.turn();
        assert!(pair.left.notes.is_empty(), "confirmed while a view lives: {:?}", pair.left.notes);
    }
    assert!(pair.right.fabric.map(to_left, remote(at, 0, 8), Access::READ_WRITE).is_none());
    clone.copy_in(0, b"THROUGH");
    drop(clone);
    let to_right = pair.to_right;
    pair.until("the end of the key", |left, _| left.deregistered(to_right, at.key));
}

/// A registration is taken back while the peer's transfers are posted: each completes once, and from
/// the confirmation on the memory changes no more, whatever the peer still has on its way.
pub fn deregistration_meets_transfers(provider: &impl Provider) {
    const TRANSFERS: u64 = 40;
    const BYTES: usize = 16 * PAGE_BYTES;
    for turns in 0..4 {
        let mut pair = Pair::new(provider);
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let memory = Mapping::shareable(BYTES).expect("memory");
        let at = pair.register_left(&memory, Access::READ_WRITE);
        let pool = BufferPool::new(BYTES, TRANSFERS as u32).expect("memory");
        for token in 0..TRANSFERS {
            let local = buffer_with(&pool, &[0x44; BYTES]);
            let all = remote(at, 0, BYTES as u32);
            let transfer = Transfer { token, memory: local, offset: 0, remote: all };
            pair.right.fabric.write(to_left, transfer).expect("room");
        }
        pair.right.fabric.flush();
        for _ in 0..turns {
            pair.right.turn();
        }
        pair.left.fabric.deregister(to_right, at.key);
        let mut ended = None;
        pair.until("the end of the key or of the connection", |left, _| {
            ended = left.ended(to_right);
            ended.map(|_| ()).or_else(|| left.deregistered(to_right, at.key))
        });
        memory.copy_in(0, &[0x55; BYTES]);
        let mut refused = 0;
        for token in 0..TRANSFERS {
            let (completed, _, status) =
                pair.until("a completion", |_, right| right.completion(to_left));
            assert_eq!(completed, token);
            match status {
                TransferStatus::Done => assert_eq!(refused, 0, "done behind a refused one"),
                TransferStatus::AccessRefused => refused += 1,
                TransferStatus::ConnectionLost => assert!(refused == 1 || ended.is_some()),
            }
        }
        assert!(refused <= 1, "{refused} refused on one connection");
        assert!(content(&memory).iter().all(|byte| *byte == 0x55), "written behind the end");
        if refused == 1 {
            let reason = pair.until("the end", |_, right| right.ended(to_left));
            assert_eq!(reason, DisconnectReason::TransferRefused);
        }
    }
}

/// Registrations have a bound that is told, and room made is room.
pub fn registrations_are_bounded(provider: &impl Provider) {
    let bounds = Bounds { registrations_max: 4, ..Bounds::default() };
    let mut pair = Pair::of(provider, provider.fabric_with(bounds), provider.fabric_with(bounds));
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let mut keys: Vec<_> =
        (0..4).map(|_| pair.register_left(&memory, Access::READ_WRITE).key).collect();
    for _ in 0..10 {
        let refused = pair
            .left
            .fabric
            .register(pair.to_right, &memory, Access::READ_WRITE)
            .expect_err("a fifth registration");
        assert!(matches!(refused, FabricError::Limit { limit: 4, .. }), "{refused}");
        pair.close_left(keys.remove(0));
        keys.push(pair.register_left(&memory, Access::READ_WRITE).key);
    }
}

/// A key of an ended connection opens nothing on a new one, and the ended one's end is the end of
/// pending registrations too.
pub fn registrations_end_with_the_connection(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    pair.left.fabric.register(to_right, &memory, Access::READ_WRITE).expect("registration");
    pair.left.fabric.deregister(to_right, at.key);
    pair.left.fabric.disconnect(to_right);
    pair.until("the end", |_, right| right.ended(to_left));
    let is_end = |(_, note): &(_, Note)| matches!(note, Note::Disconnected(_));
    pair.until("the end", |left, _| left.notes.iter().any(is_end).then_some(()));
    // They may have come to their own ends before, not behind it.
    assert!(pair.left.notes.back().is_some_and(is_end), "{:?}", pair.left.notes);
    pair.left.notes.clear();
    pair.connect();
    let local = pool.take().expect("free");
    drop(pair.refused(true, Memory::Buffer(local), remote(at, 0, 8)));
    assert!(content(&memory).iter().all(|byte| *byte == 0));
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
}
