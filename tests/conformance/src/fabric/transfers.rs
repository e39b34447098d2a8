//! One-sided reads and writes.

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
    const ROUNDS: u64 = 300;
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let memory = Mapping::shareable(64 * 1024).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(64 * 1024, 2).expect("memory");
    for round in 0..ROUNDS {
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

/// One byte past either end, overflowing addresses, missing rights: no byte moves.
pub fn bounds_and_rights_are_enforced(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let len = 2 * PAGE_BYTES as u64;
    let registered: Vec<_> = [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .map(|(remote_read, remote_write)| {
            let memory = Mapping::shareable(len as usize).expect("memory");
            memory.copy_in(0, &vec![CANARY; len as usize]);
            let access = Access { remote_read, remote_write };
            (pair.register_left(&memory, access), access, memory)
        })
        .collect();
    let pool = BufferPool::new(len as usize + 1, 1).expect("memory");
    let mut refused = 0;
    for (at, access, memory) in &registered {
        let past_ends = [
            remote(*at, len, 1),
            remote(*at, 1, len as u32),
            remote(*at, len + 1, 0),
            remote(*at, u64::MAX, 2),
            remote(*at, 0, len as u32 + 1),
            RemoteSlice { address: u64::MAX, ..remote(*at, 0, 1) },
            RemoteSlice { address: u64::MAX - 7, ..remote(*at, 0, 8) },
            RemoteSlice { address: 0u64.wrapping_sub(len), ..remote(*at, 0, len as u32) },
            RemoteSlice { key: Key(u32::MAX), ..remote(*at, 0, 8) },
            RemoteSlice { key: Key(0), ..remote(*at, 0, 8) },
        ];
        let inside = [remote(*at, 0, 8), remote(*at, len - 1, 1), remote(*at, 0, len as u32)];
        for writes in [true, false] {
            let allowed = if writes { access.remote_write } else { access.remote_read };
            let cases = past_ends.iter().map(|target| (target, false));
            for (target, ok) in cases.chain(inside.iter().map(|target| (target, allowed))) {
                memory.copy_in(0, &vec![CANARY; len as usize]);
                let local = buffer_with(&pool, &vec![0x11; len as usize + 1]);
                let (local, status) = pair.transfer(writes, local, *target);
                let buffer = local.into_buffer().expect("a buffer");
                if ok {
                    assert_eq!(status, TransferStatus::Done, "{target:?} {access:?}");
                } else {
                    refused += 1;
                    assert_eq!(status, TransferStatus::AccessRefused, "{target:?} {access:?}");
                    assert!(content(memory).iter().all(|byte| *byte == CANARY), "{target:?}");
                    assert!(buffer[..=len as usize].iter().all(|byte| *byte == 0x11));
                }
            }
        }
        if pair.right.fabric.capabilities().maps_remote_memory {
            let to_left = pair.to_left;
            for target in &past_ends {
                for wanted in [*access, Access::READ_WRITE] {
                    assert!(pair.right.fabric.map(to_left, *target, wanted).is_none());
                }
            }
            let views = [(true, true), (true, false), (false, true)];
            for (remote_read, remote_write) in views {
                let wanted = Access { remote_read, remote_write };
                let allowed =
                    (access.remote_read || !remote_read) && (access.remote_write || !remote_write);
                let view = pair.right.fabric.map(to_left, inside[2], wanted);
                assert_eq!(view.is_some(), allowed, "{wanted:?} of {access:?}");
            }
        }
    }
    assert_eq!(refused, 4 * (2 * 10) + 4 * 3);
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

/// Reads and writes, refused ones among them, complete in the order of posting, and each sees the
/// effect of those before it.
pub fn completions_keep_their_order(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let to_left = pair.to_left;
    let memory = Mapping::shareable(PAGE_BYTES).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(PAGE_BYTES, 64).expect("memory");
    for token in 0..60u64 {
        let target = match token % 3 {
            2 => RemoteSlice { key: Key(u32::MAX), ..remote(at, 0, 8) },
            _ => remote(at, 0, 8),
        };
        let local = buffer_with(&pool, &token.to_le_bytes());
        let transfer = Transfer { token, memory: local, offset: 0, remote: target };
        let fabric = &mut pair.right.fabric;
        let posted = if token % 3 == 1 {
            fabric.read(to_left, transfer)
        } else {
            fabric.write(to_left, transfer)
        };
        posted.expect("room for 60 transfers");
    }
    for expected in 0..60u64 {
        let (token, memory, status) =
            pair.until("a completion", |_, right| right.completion(to_left));
        assert_eq!(token, expected);
        match token % 3 {
            2 => assert_eq!(status, TransferStatus::AccessRefused),
            kind => {
                assert_eq!(status, TransferStatus::Done);
                let buffer = memory.into_buffer().expect("a buffer");
                // A read returns what the write before it wrote.
                assert_eq!(buffer[..8], (token - kind).to_le_bytes());
            }
        }
    }
}
