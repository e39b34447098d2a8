//! Keys and what they open.

use std::collections::HashSet;

use gannet_fabric::{Access, Fabric, FabricError, Key, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use super::end::{Note, Pair, connect, content};
use super::transfers::remote;
use super::{Bounds, Provider};

fn deregistered(wanted: Key) -> impl FnMut(gannet_fabric::ConnectionId, &Note) -> Option<()> {
    move |_, note| matches!(note, Note::Deregistered(key) if *key == wanted).then_some(())
}

/// No two registrations of one fabric have the same key, on whichever connection.
pub fn keys_are_unique(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let mut keys = HashSet::new();
    for _ in 0..3 {
        for _ in 0..20 {
            let at = pair.register_left(&memory, Access::READ_WRITE);
            assert!(keys.insert(at.key), "{:?} was given out before", at.key);
        }
        (pair.to_right, pair.to_left) = connect(&mut pair.left, &mut pair.right, &address);
    }
}

/// A key works on the connection it was registered on only.
pub fn a_foreign_key_is_refused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let first = (pair.to_right, pair.to_left);
    (pair.to_right, pair.to_left) = connect(&mut pair.left, &mut pair.right, &address);
    for writes in [true, false] {
        let mut local = pool.take().expect("free");
        local.fill(0x22);
        let (local, status) = pair.transfer(writes, Memory::Buffer(local), remote(at, 0, 8));
        assert_eq!(status, TransferStatus::AccessRefused);
        let buffer = local.into_buffer().expect("a buffer");
        assert!(buffer.iter().all(|byte| *byte == 0x22));
    }
    assert!(pair.right.fabric.map(pair.to_left, remote(at, 0, 8), Access::READ_WRITE).is_none());
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
    for _ in 0..5 {
        let at = pair.register_left(&memory, Access::READ_WRITE);
        let kept = pair.register_left(&memory, Access::READ_WRITE);
        pair.left.fabric.deregister(pair.to_right, at.key);
        // Twice is once, and an unknown key is none.
        pair.left.fabric.deregister(pair.to_right, at.key);
        pair.left.fabric.deregister(pair.to_right, Key(u32::MAX));
        pair.until("the end of the key", |left, _| left.take(deregistered(at.key)));
        for writes in [true, false] {
            let mut local = pool.take().expect("free");
            local.fill(0x33);
            let (_, status) = pair.transfer(writes, Memory::Buffer(local), remote(at, 0, 8));
            assert_eq!(status, TransferStatus::AccessRefused);
        }
        assert!(content(&memory).iter().all(|byte| *byte == 0));
        let local = pool.take().expect("free");
        let (_, status) = pair.transfer(false, Memory::Buffer(local), remote(kept, 0, 8));
        assert_eq!(status, TransferStatus::Done, "another key of the same memory still works");
        assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
    }
}

/// While the peer holds a view, a deregistration is not confirmed; no new view is made.
pub fn deregistration_waits_for_views(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let to_left = pair.to_left;
    let view = pair.right.fabric.map(to_left, remote(at, 64, 64), Access::READ_WRITE);
    let maps = pair.right.fabric.capabilities().maps_remote_memory;
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
    pair.until("the end of the key", |left, _| left.take(deregistered(at.key)));
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
        let key = keys.remove(0);
        pair.left.fabric.deregister(pair.to_right, key);
        pair.until("the end of the key", |left, _| left.take(deregistered(key)));
        keys.push(pair.register_left(&memory, Access::READ_WRITE).key);
    }
}

/// A key of an ended connection opens nothing on a new one, and the ended one's end is the end of
/// pending registrations too.
pub fn registrations_end_with_the_connection(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    pair.left.fabric.register(to_right, &memory, Access::READ_WRITE).expect("registration");
    pair.left.fabric.deregister(to_right, at.key);
    pair.left.fabric.disconnect(to_right);
    pair.until("the end", |_, right| right.ended(to_left));
    pair.until("the end", |left, _| left.ended(to_right));
    assert!(pair.left.notes.is_empty(), "after the last event: {:?}", pair.left.notes);
    (pair.to_right, pair.to_left) = connect(&mut pair.left, &mut pair.right, &address);
    let local = pool.take().expect("free");
    let (_, status) = pair.transfer(true, Memory::Buffer(local), remote(at, 0, 8));
    assert_eq!(status, TransferStatus::AccessRefused);
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
}
