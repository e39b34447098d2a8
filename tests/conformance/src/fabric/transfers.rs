//! One-sided reads and writes.

use std::sync::Arc;

use gannet_fabric::{
    Access, Fabric, Key, PostError, Registration, RemoteSlice, Transfer, TransferStatus,
};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use super::Provider;
use super::end::{Pair, Random, buffer_with, content, pattern};

/// What surrounds a target.
const CANARY: u8 = 0xc5;

pub(super) fn remote(at: Registration, offset: u64, len_bytes: u32) -> RemoteSlice {
    RemoteSlice { address: at.address.wrapping_add(offset), key: at.key, len_bytes }
}

/// A message posted after a write arrives after the written bytes.
pub fn a_write_is_visible_before_the_next_message(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let memory = Mapping::shareable(64 * 1024).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(64 * 1024, 2).expect("memory");
    for round in 0..provider.rounds(300) {
        let len = [8, 4096, 65536][round as usize % 3];
        let bytes = pattern(round, len);
        let transfer = Transfer {
            token: round,
            memory: buffer_with(&pool, &bytes),
            offset: 0,
            remote: remote(at, 0, len as u32),
        };
        pair.right.fabric.write(to_left, transfer).expect("room");
        pair.right.fabric.send(to_left, &round.to_le_bytes()).expect("a credit");
        let notice = pair.until("the notice", |left, _| left.message(to_right));
        assert_eq!(notice, round.to_le_bytes());
        assert!(content(&memory)[..len] == bytes, "round {round}: the notice overtook the bytes");
        let (token, _, status) = pair.until("the completion", |_, right| right.completion(to_left));
        assert_eq!((token, status), (round, TransferStatus::Done));
    }
}

/// Bytes go where they should and nowhere else, whatever offset and length.
pub fn reads_and_writes_of_every_size(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let len = 40 * PAGE_BYTES;
    let memory = Mapping::shareable(len).expect("memory");
    memory.copy_in(0, &vec![CANARY; len]);
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(len, 1).expect("memory");
    let mut random = Random::new(3);
    let mut expected = content(&memory);
    let mut sizes = vec![0, 1, 2, 63, 64, 65, 4095, 4096, 4097, len];
    sizes.extend((0..40).map(|_| random.below(len as u64) as usize));
    for (round, size) in sizes.into_iter().enumerate() {
        let offset = random.below((len - size) as u64 + 1) as usize;
        let bytes = pattern(round as u64, size);
        let target = remote(at, offset as u64, size as u32);
        let (local, status) = pair.transfer(true, buffer_with(&pool, &bytes), target);
        assert_eq!(status, TransferStatus::Done);
        expected[offset..offset + size].copy_from_slice(&bytes);
        assert!(content(&memory) == expected, "write of {size} bytes at {offset}");
        drop(local);

        let source = random.below((len - size) as u64 + 1) as usize;
        let local = buffer_with(&pool, &vec![CANARY; len]);
        let (local, status) = pair.transfer(false, local, remote(at, source as u64, size as u32));
        assert_eq!(status, TransferStatus::Done);
        let buffer = local.into_buffer().expect("a buffer");
        assert!(buffer[..size] == expected[source..source + size], "read of {size} at {source}");
        assert!(buffer[size..len].iter().all(|byte| *byte == CANARY), "bytes behind the target");
    }
}

/// Bytes of a registration in [`bounds_and_rights_are_enforced`].
const REGISTERED_BYTES: u64 = 2 * PAGE_BYTES as u64;

/// Ranges that no registration of [`REGISTERED_BYTES`] allows.
fn ranges_outside(at: Registration) -> [RemoteSlice; 9] {
    let len = REGISTERED_BYTES;
    [
        remote(at, len, 1),
        remote(at, 1, len as u32),
        remote(at, u64::MAX, 2),
        remote(at, 0, len as u32 + 1),
        RemoteSlice { address: u64::MAX, ..remote(at, 0, 1) },
        RemoteSlice { address: u64::MAX - 7, ..remote(at, 0, 8) },
        RemoteSlice { address: 0u64.wrapping_sub(len), ..remote(at, 0, len as u32) },
        RemoteSlice { key: Key(u32::MAX), ..remote(at, 0, 8) },
        RemoteSlice { key: Key(0), ..remote(at, 0, 8) },
    ]
}

/// Ranges inside of one.
fn ranges_inside(at: Registration) -> [RemoteSlice; 3] {
    let len = REGISTERED_BYTES;
    [remote(at, 0, 8), remote(at, len - 1, 1), remote(at, 0, len as u32)]
}

/// One byte past either end, overflowing addresses, missing rights: no byte moves, and the
/// connection ends.
pub fn bounds_and_rights_are_enforced(provider: &impl Provider) {
    let len = REGISTERED_BYTES as usize;
    let mut pair = Pair::new(provider);
    let pool = BufferPool::new(len + 1, 1).expect("memory");
    let mut refused = 0;
    for (remote_read, remote_write) in [(true, true), (true, false), (false, true), (false, false)]
    {
        let access = Access { remote_read, remote_write };
        let memory = Mapping::shareable(len).expect("memory");
        let mut at = pair.register_left(&memory, access);
        check_views(&mut pair, at, access);
        for writes in [true, false] {
            let allowed = if writes { access.remote_write } else { access.remote_read };
            let outside = (0..9).map(|case| (case, false));
            for (case, ok) in outside.chain((9..12).map(|case| (case, allowed))) {
                let target =
                    if case < 9 { ranges_outside(at)[case] } else { ranges_inside(at)[case - 9] };
                memory.copy_in(0, &vec![CANARY; len]);
                let local = buffer_with(&pool, &vec![0x11; len + 1]);
                if ok {
                    let (_, status) = pair.transfer(writes, local, target);
                    assert_eq!(status, TransferStatus::Done, "{target:?} {access:?}");
                    continue;
                }
                refused += 1;
                let local = pair.refused(writes, local, target);
                let buffer = local.into_buffer().expect("a buffer");
                assert!(content(&memory).iter().all(|byte| *byte == CANARY), "{target:?}");
                assert!(buffer[..=len].iter().all(|byte| *byte == 0x11));
                pair.connect();
                at = pair.register_left(&memory, access);
            }
        }
    }
    assert_eq!(refused, 4 * (2 * 9) + 4 * 3);
}

/// Views are bounded as transfers are, where there are any; a refused one does no harm.
fn check_views<F: Fabric>(pair: &mut Pair<F>, at: Registration, access: Access) {
    let maps = pair.right.fabric.capabilities(pair.to_left).maps_remote_memory;
    let to_left = pair.to_left;
    for target in &ranges_outside(at) {
        for wanted in [access, Access::READ_WRITE] {
            assert!(pair.right.fabric.map(to_left, *target, wanted).is_none());
        }
    }
    for (remote_read, remote_write) in [(true, true), (true, false), (false, true)] {
        let wanted = Access { remote_read, remote_write };
        let allowed =
            (access.remote_read || !remote_read) && (access.remote_write || !remote_write);
        let view = pair.right.fabric.map(to_left, ranges_inside(at)[2], wanted);
        assert_eq!(view.is_some(), allowed && maps, "{wanted:?} of {access:?}");
    }
}

/// A transfer that leaves its own memory is refused and gives it back.
pub fn a_local_range_must_fit(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let to_left = pair.to_left;
    let memory = Mapping::shareable(4 * PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(PAGE_BYTES, 1).expect("memory");
    for (offset, len_bytes) in [(0, 4097), (4096, 1), (4097, 0), (usize::MAX, 1)] {
        for writes in [true, false] {
            let transfer = Transfer {
                token: 1,
                memory: buffer_with(&pool, b"mine"),
                offset,
                remote: remote(at, 0, len_bytes),
            };
            let fabric = &mut pair.right.fabric;
            let posted = if writes {
                fabric.write(to_left, transfer)
            } else {
                fabric.read(to_left, transfer)
            };
            let refused = posted.expect_err("longer than its memory");
            assert_eq!(refused.error, PostError::TooLong, "offset {offset} length {len_bytes}");
            assert!(refused.transfer.memory.into_buffer().is_some());
        }
    }
    for _ in 0..10 {
        pair.left.turn();
        pair.right.turn();
    }
    assert!(pair.right.notes.is_empty(), "{:?}", pair.right.notes);
    assert!(content(&memory).iter().all(|byte| *byte == 0));
}

/// A queue of transfers has a bound; beyond it a post is refused, and nothing is lost.
pub fn a_full_transfer_queue_gives_memory_back(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let to_left = pair.to_left;
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let local = Mapping::anonymous(PAGE_BYTES).expect("memory");
    let slice = || Memory::Shared(local.slice(0, 8).expect("inside"));
    for _ in 0..3 {
        let mut posted = 0;
        loop {
            let transfer =
                Transfer { token: posted, memory: slice(), offset: 0, remote: remote(at, 0, 8) };
            match pair.right.fabric.write(to_left, transfer) {
                Ok(()) => posted += 1,
                Err(refused) => {
                    assert_eq!(refused.error, PostError::Full);
                    assert_eq!(refused.transfer.token, posted);
                    break;
                }
            }
            assert!(posted < 1 << 20, "a queue without a bound");
        }
        assert!(posted >= 8);
        let mut completed = 0;
        pair.until("all completions", |_, right| {
            while let Some((token, _, status)) = right.completion(to_left) {
                assert_eq!((token, status), (completed, TransferStatus::Done));
                completed += 1;
            }
            (completed == posted).then_some(())
        });
    }
}

/// Reads and writes complete in the order of posting, and each sees the effect of those before it. So
/// does a refused one; those behind it complete as lost, and have no effect.
pub fn completions_keep_their_order(provider: &impl Provider) {
    const DONE: u64 = 40;
    const POSTED: u64 = 60;
    let mut pair = Pair::new(provider);
    let to_left = pair.to_left;
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(PAGE_BYTES, 64).expect("memory");
    for token in 0..POSTED {
        let target = match token {
            DONE => RemoteSlice { key: Key(u32::MAX), ..remote(at, 0, 8) },
            _ => remote(at, 0, 8),
        };
        let local = buffer_with(&pool, &token.to_le_bytes());
        let transfer = Transfer { token, memory: local, offset: 0, remote: target };
        let fabric = &mut pair.right.fabric;
        let posted = if token % 2 == 1 {
            fabric.read(to_left, transfer)
        } else {
            fabric.write(to_left, transfer)
        };
        posted.expect("room for 60 transfers");
    }
    for expected in 0..POSTED {
        let (token, memory, status) =
            pair.until("a completion", |_, right| right.completion(to_left));
        assert_eq!(token, expected);
        let buffer = memory.into_buffer().expect("a buffer");
        match token {
            0..DONE => {
                assert_eq!(status, TransferStatus::Done);
                // A read returns what the write before it wrote.
                assert_eq!(buffer[..8], (token - token % 2).to_le_bytes());
            }
            DONE => assert_eq!(status, TransferStatus::AccessRefused),
            _ => assert_eq!(status, TransferStatus::ConnectionLost, "transfer {token}"),
        }
        if token >= DONE {
            assert_eq!(buffer[..8], token.to_le_bytes(), "transfer {token} moved bytes");
        }
    }
    pair.both_ends_after_a_refusal();
    assert_eq!(content(&memory)[..8], (DONE - 2).to_le_bytes());
    assert_eq!(pool.available(), 64);
}

/// A message posted behind a transfer tells that it was done: it does not arrive if that was refused,
/// whether it was posted in the same turn or in the next. Those before it arrive.
pub fn a_message_behind_a_refused_transfer_is_not_delivered(provider: &impl Provider) {
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let pool = BufferPool::new(PAGE_BYTES, 2).expect("memory");
    let mut pair = Pair::new(provider);
    for (writes, turns_over) in [(true, false), (true, true), (false, false), (false, true)] {
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let at = pair.register_left(&memory, Access::READ_WRITE);
        let fabric = &mut pair.right.fabric;
        fabric.send(to_left, b"before").expect("a credit");
        let foreign = RemoteSlice { key: Key(u32::MAX), ..remote(at, 0, 8) };
        for (token, target) in [(1, foreign), (2, remote(at, 0, 8))] {
            let local = buffer_with(&pool, b"unwanted");
            let transfer = Transfer { token, memory: local, offset: 0, remote: target };
            let posted = if writes {
                fabric.write(to_left, transfer)
            } else {
                fabric.read(to_left, transfer)
            };
            posted.expect("room");
            if turns_over && token == 1 {
                // The poster does not know yet.
                fabric.flush();
            }
            fabric.send(to_left, b"behind").expect("a credit");
        }
        fabric.flush();
        let expected = [TransferStatus::AccessRefused, TransferStatus::ConnectionLost];
        for (number, expected) in (1..).zip(expected) {
            let (token, _, status) =
                pair.until("a completion", |_, right| right.completion(to_left));
            assert_eq!((token, status), (number, expected));
        }
        pair.both_ends_after_a_refusal();
        assert_eq!(pair.left.message(to_right).as_deref(), Some(&b"before"[..]));
        assert_eq!(pair.left.message(to_right), None);
        assert!(content(&memory).iter().all(|byte| *byte == 0));
        assert_eq!(pair.right.fabric.send(to_left, b"late"), Err(PostError::NotConnected));
        pair.connect();
    }
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
    assert!(pair.right.notes.is_empty(), "{:?}", pair.right.notes);
}

/// Transfers under way on another connection between the same ends are done, each once.
pub fn a_refused_transfer_spares_other_connections(provider: &impl Provider) {
    const TRANSFERS: u64 = 30;
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(TRANSFERS as usize * PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let neighbour = (pair.to_right, pair.to_left);
    let pool = BufferPool::new(PAGE_BYTES, TRANSFERS as u32 + 1).expect("memory");
    for breaks_at in [0, TRANSFERS / 2, TRANSFERS - 1] {
        memory.copy_in(0, &vec![CANARY; memory.len()]);
        pair.connect();
        let broken = pair.to_left;
        for token in 0..TRANSFERS {
            let transfer = Transfer {
                token,
                memory: buffer_with(&pool, &pattern(token, PAGE_BYTES)),
                offset: 0,
                remote: remote(at, token * PAGE_BYTES as u64, PAGE_BYTES as u32),
            };
            pair.right.fabric.write(neighbour.1, transfer).expect("room");
            if token == breaks_at {
                let local = buffer_with(&pool, b"unwanted");
                let target = remote(at, 0, 8);
                let transfer = Transfer { token: 4711, memory: local, offset: 0, remote: target };
                // A key of the neighbour's connection.
                pair.right.fabric.write(broken, transfer).expect("room");
            }
        }
        pair.right.fabric.send(neighbour.1, b"all written").expect("a credit");
        let message = pair.until("the message", |left, _| left.message(neighbour.0));
        assert_eq!(message, b"all written");
        for (number, page) in (0..TRANSFERS).zip(content(&memory).chunks(PAGE_BYTES)) {
            assert!(page == pattern(number, PAGE_BYTES), "page {number}");
        }
        for expected in 0..TRANSFERS {
            let (token, _, status) =
                pair.until("a completion", |_, right| right.completion(neighbour.1));
            assert_eq!((token, status), (expected, TransferStatus::Done));
        }
        let (token, _, status) = pair.until("the refusal", |_, right| right.completion(broken));
        assert_eq!((token, status), (4711, TransferStatus::AccessRefused));
        pair.both_ends_after_a_refusal();
        assert!(pair.right.notes.is_empty(), "{:?}", pair.right.notes);
        assert_eq!(pool.available(), TRANSFERS as usize + 1);
    }
}

/// Memory can be made ready for transfers beforehand, or is by the first one; it makes no difference
/// to what moves.
pub fn prepared_memory_and_other_memory_transfers(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let memory = Mapping::shareable(4 * PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    for (number, prepared) in [(1, true), (2, false)] {
        let private = Mapping::anonymous(4 * PAGE_BYTES).expect("memory");
        let shareable = Mapping::shareable(4 * PAGE_BYTES).expect("memory");
        let pool = BufferPool::new(4 * PAGE_BYTES, 1).expect("memory");
        if prepared {
            // Before and after a connection of the end needs it; twice is once.
            for mapping in [&private, &shareable, pool.mapping(), &private] {
                pair.right.fabric.prepare(mapping).expect("memory that can be pinned");
            }
        }
        let slice = |mapping: &Arc<Mapping>| {
            Memory::Shared(mapping.slice(64, 2 * PAGE_BYTES as u64).expect("inside"))
        };
        let kinds = [slice(&private), slice(&shareable), buffer_with(&pool, b"")];
        for (kind, mut local) in (0..).zip(kinds) {
            let bytes = pattern(number * 8 + kind, PAGE_BYTES);
            fill(&mut local, &bytes);
            let (mut local, status) =
                pair.transfer(true, local, remote(at, 100, PAGE_BYTES as u32));
            assert_eq!(status, TransferStatus::Done);
            assert!(content(&memory)[100..100 + PAGE_BYTES] == bytes, "write from kind {kind}");
            fill(&mut local, &[0; PAGE_BYTES]);
            let (local, status) = pair.transfer(false, local, remote(at, 100, PAGE_BYTES as u32));
            assert_eq!(status, TransferStatus::Done);
            assert!(bytes_of(&local) == bytes, "read into kind {kind}");
        }
    }
}

fn fill(memory: &mut Memory, bytes: &[u8]) {
    match memory {
        Memory::Buffer(buffer) => buffer[..bytes.len()].copy_from_slice(bytes),
        Memory::Shared(slice) => slice.copy_in(0, bytes),
    }
}

/// The first page of a memory.
fn bytes_of(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    match memory {
        Memory::Buffer(buffer) => bytes.copy_from_slice(&buffer[..PAGE_BYTES]),
        Memory::Shared(slice) => slice.copy_out(0, &mut bytes),
    }
    bytes
}
