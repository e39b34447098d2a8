//! Memory windows: keys of their own for a part of a registration.
//!
//! Where the provider has none, each case checks that it says so.

use std::sync::Arc;

use gannet_fabric::{Access, Fabric, Key, Registration, TransferStatus, WindowError};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use super::end::{Pair, Random, buffer_with, content, pattern};
use super::transfers::remote;
use super::{Bounds, Provider};

/// Length of the registration that windows are opened on.
const BASE_BYTES: u64 = 16 * PAGE_BYTES as u64;
const CANARY: u8 = 0xc5;
const WRITE: Access = Access { remote_read: false, remote_write: true };
const READ: Access = Access { remote_read: true, remote_write: false };

/// A pair, memory full of canaries that the left end registered for windows only, and buffers;
/// `None` if the provider has no windows, which was checked.
fn prepare<F: Fabric>(pair: &mut Pair<F>) -> Option<(Arc<Mapping>, Registration, BufferPool)> {
    let memory = Mapping::shareable(BASE_BYTES as usize).expect("memory");
    memory.copy_in(0, &vec![CANARY; BASE_BYTES as usize]);
    let base = pair.register_left(&memory, Access::WINDOWS_ONLY);
    if !pair.left.fabric.capabilities(pair.to_right).memory_windows {
        let refused = pair.left.fabric.open_window(pair.to_right, base.key, 0, 8, WRITE);
        assert_eq!(refused, Err(WindowError::Unsupported));
        return None;
    }
    // A byte more, for what goes past the end.
    let pool = BufferPool::new(BASE_BYTES as usize + 1, 1).expect("memory");
    Some((memory, base, pool))
}

fn assert_untouched(memory: &Mapping, what: &str) {
    assert!(content(memory).iter().all(|byte| *byte == CANARY), "{what}: a byte moved");
}

/// Both ends of a provider agree on whether there are windows, and without them none is opened.
pub fn without_windows_none_is_opened(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let ends = [(&pair.left, pair.to_right), (&pair.right, pair.to_left)];
    let has = ends.map(|(end, to)| end.fabric.capabilities(to).memory_windows);
    assert_eq!(has[0], has[1]);
    assert_eq!(prepare(&mut pair).is_some(), has[0]);
}

/// A window works in its range and direction; beside it and the other way nothing moves. The
/// registration itself opens nothing.
pub fn a_window_opens_its_range_and_direction(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let Some((memory, mut base, pool)) = prepare(&mut pair) else { return };
    let exact = provider.windows_are_exact();
    for (offset, len) in [(0, BASE_BYTES), (PAGE_BYTES as u64, PAGE_BYTES as u64), (4099, 777)] {
        for access in [WRITE, READ, Access::READ_WRITE] {
            let window = pair.open_left(base, offset, len, access);
            let bytes = pattern(offset, len as usize);
            if access.remote_write {
                let local = buffer_with(&pool, &bytes);
                let (_, status) = pair.transfer(true, local, remote(window, 0, len as u32));
                assert_eq!(status, TransferStatus::Done);
                let mut expected = vec![CANARY; BASE_BYTES as usize];
                expected[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
                assert!(content(&memory) == expected, "{len} bytes at {offset}");
            }
            if access.remote_read {
                memory.copy_in(offset as usize, &bytes);
                let local = buffer_with(&pool, &[]);
                let (local, status) = pair.transfer(false, local, remote(window, 0, len as u32));
                assert_eq!(status, TransferStatus::Done);
                let buffer = local.into_buffer().expect("a buffer");
                assert!(buffer[..len as usize] == bytes, "{len} bytes at {offset}");
            }
            pair.close_left(window.key);
            memory.copy_in(0, &vec![CANARY; BASE_BYTES as usize]);

            // Everything that it does not allow, each on a connection of its own.
            let mut targets = Vec::new();
            for writes in [true, false] {
                let allowed = if writes { access.remote_write } else { access.remote_read };
                if !allowed {
                    targets.extend([(writes, 0, len), (writes, len - 1, 1)]);
                }
                // The registration's own ends are always the window's.
                if exact || offset + len == BASE_BYTES {
                    targets.extend([(writes, len, 1), (writes, 0, len + 1)]);
                }
                if exact || offset == 0 {
                    targets.extend([(writes, u64::MAX, 1), (writes, u64::MAX, 2)]);
                }
            }
            for (writes, from, bytes) in targets {
                let window = pair.open_left(base, offset, len, access);
                let target = remote(window, from, bytes as u32);
                pair.refused(writes, buffer_with(&pool, &[]), target);
                assert_untouched(&memory, "beside a window");
                pair.connect();
                base = pair.register_left(&memory, Access::WINDOWS_ONLY);
            }
        }
    }
    for writes in [true, false] {
        pair.refused(writes, buffer_with(&pool, &[]), remote(base, 0, 8));
        assert_untouched(&memory, "the registration without a window");
        pair.connect();
        base = pair.register_left(&memory, Access::WINDOWS_ONLY);
    }
}

/// After `Deregistered` the window's key opens nothing; others of the same registration still do.
pub fn a_closed_window_is_refused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let Some((memory, mut base, pool)) = prepare(&mut pair) else { return };
    for writes in [true, false] {
        let access = if writes { WRITE } else { READ };
        let closed = pair.open_left(base, 0, 4096, access);
        let kept = pair.open_left(base, 8192, 4096, access);
        assert_ne!(closed.key, kept.key);
        let (_, status) =
            pair.transfer(writes, buffer_with(&pool, &[CANARY; 8]), remote(closed, 0, 8));
        assert_eq!(status, TransferStatus::Done);
        pair.left.fabric.deregister(pair.to_right, closed.key);
        // Twice is once.
        pair.close_left(closed.key);
        let (_, status) =
            pair.transfer(writes, buffer_with(&pool, &[CANARY; 8]), remote(kept, 0, 8));
        assert_eq!(status, TransferStatus::Done, "another window of the same registration");
        assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
        pair.refused(writes, buffer_with(&pool, &[0; 8]), remote(closed, 0, 8));
        assert_untouched(&memory, "a closed window");
        pair.connect();
        base = pair.register_left(&memory, Access::WINDOWS_ONLY);
    }
}

/// A window does not outlive its registration or its connection.
pub fn a_window_ends_with_its_base_and_its_connection(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let Some((memory, base, pool)) = prepare(&mut pair) else { return };
    let window = pair.open_left(base, 0, 4096, WRITE);
    pair.close_left(base.key);
    pair.refused(true, buffer_with(&pool, &[0; 8]), remote(window, 0, 8));
    assert_untouched(&memory, "a window without its registration");

    pair.left.notes.clear();
    pair.connect();
    let base = pair.register_left(&memory, Access::WINDOWS_ONLY);
    let window = pair.open_left(base, 0, 4096, WRITE);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    pair.left.fabric.disconnect(to_right);
    pair.until("the end", |left, _| left.ended(to_right));
    pair.until("the end", |_, right| right.ended(to_left));
    let late = pair.left.fabric.open_window(to_right, base.key, 0, 8, WRITE);
    assert_eq!(late, Err(WindowError::NotConnected));
    pair.connect();
    pair.refused(true, buffer_with(&pool, &[0; 8]), remote(window, 0, 8));
    assert_untouched(&memory, "a window of an ended connection");
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
}

/// No window leaves its registration, or is opened on what is none.
pub fn impossible_windows_are_not_opened(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let Some((memory, base, _)) = prepare(&mut pair) else { return };
    let first = pair.to_right;
    let window = pair.open_left(base, 0, 4096, WRITE);
    let gone = pair.register_left(&memory, Access::WINDOWS_ONLY);
    pair.close_left(gone.key);
    let cases = [
        (base.key, 0, BASE_BYTES + 1),
        (base.key, BASE_BYTES, 1),
        (base.key, u64::MAX, 2),
        (base.key, 1, u64::MAX),
        (Key(u32::MAX), 0, 8),
        (gone.key, 0, 8),
        // A window is no registration.
        (window.key, 0, 8),
    ];
    let fabric = &mut pair.left.fabric;
    for (key, offset, len_bytes) in cases {
        let opened = fabric.open_window(first, key, offset, len_bytes, WRITE);
        assert_eq!(opened, Err(WindowError::Range), "{len_bytes} bytes from {offset} of {key:?}");
    }
    pair.connect();
    let foreign = pair.left.fabric.open_window(pair.to_right, base.key, 0, 8, WRITE);
    assert_eq!(foreign, Err(WindowError::Range), "a registration of another connection");
    for _ in 0..10 {
        pair.left.turn();
        pair.right.turn();
    }
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
}

/// So many windows as are configured may be open; beyond that it is said so, and a closed one makes
/// room.
pub fn windows_are_bounded(provider: &impl Provider) {
    const WINDOWS: usize = 4;
    let bounds = Bounds { windows_max: WINDOWS, ..Bounds::default() };
    let mut pair = Pair::of(provider, provider.fabric_with(bounds), provider.fabric_with(bounds));
    let Some((_, base, pool)) = prepare(&mut pair) else { return };
    let mut open: Vec<_> =
        (0..WINDOWS as u64).map(|page| pair.open_left(base, page * 4096, 4096, WRITE)).collect();
    for round in 0..10 {
        let refused = pair.left.fabric.open_window(pair.to_right, base.key, 0, 8, WRITE);
        assert_eq!(refused, Err(WindowError::Full), "a fifth window");
        pair.close_left(open.remove(0).key);
        open.push(pair.open_left(base, round * 4096, 4096, WRITE));
        for window in &open {
            let (_, status) =
                pair.transfer(true, buffer_with(&pool, b"here"), remote(*window, 0, 4));
            assert_eq!(status, TransferStatus::Done);
        }
    }
}

/// Windows that open and close for each of many transfers, several at a time and in any order, each
/// open exactly what they should; a key used once more opens nothing.
pub fn many_windows_open_and_close(provider: &impl Provider) {
    const OPEN: usize = 8;
    let mut pair = Pair::new(provider);
    let Some((memory, base, pool)) = prepare(&mut pair) else { return };
    let to_right = pair.to_right;
    let mut random = Random::new(11);
    let mut expected = content(&memory);
    let mut closed = None;
    for round in 0..provider.rounds(300) {
        let mut windows: Vec<Registration> = Vec::new();
        let mut places = Vec::new();
        for _ in 0..OPEN {
            let offset = random.below(BASE_BYTES - 1);
            let len = 1 + random.below((BASE_BYTES - offset).min(5000));
            let fabric = &mut pair.left.fabric;
            let window = fabric.open_window(to_right, base.key, offset, len, WRITE);
            let window = window.expect("room for a few windows");
            assert!(windows.iter().all(|other| other.key != window.key), "a key given out twice");
            windows.push(window);
            places.push((offset, len));
        }
        for window in &windows {
            pair.until("a window", |left, _| left.registered(to_right, window.key));
        }
        while !windows.is_empty() {
            let next = random.below(windows.len() as u64) as usize;
            let (window, (offset, len)) = (windows.swap_remove(next), places.swap_remove(next));
            let bytes = pattern(round, len as usize);
            let local = buffer_with(&pool, &bytes);
            let (_, status) = pair.transfer(true, local, remote(window, 0, len as u32));
            assert_eq!(status, TransferStatus::Done, "round {round}");
            expected[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
            pair.left.fabric.deregister(to_right, window.key);
            closed = Some(window);
        }
        let mut left_open = OPEN;
        pair.until("the ends of the windows", |left, _| {
            while left
                .take(|_, note| matches!(note, super::end::Note::Deregistered(_)).then_some(()))
                .is_some()
            {
                left_open -= 1;
            }
            (left_open == 0).then_some(())
        });
        assert!(content(&memory) == expected, "round {round}");
        assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
    }
    let closed = closed.expect("at least one round");
    pair.refused(true, buffer_with(&pool, b"late"), remote(closed, 0, 1));
    assert!(content(&memory) == expected);
}
