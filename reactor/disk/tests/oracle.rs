//! Both providers against a plain vector of bytes, with random operations in flight at once.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{BLOCK, bytes_of, memory, sleep_until_ready, transfer};
use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::uring::UringOptions;
use gannet_disk::{BLOCK_BYTES, Completion, Disk, Durability, FileId};
use gannet_runtime::time::Time;
use proptest::prelude::*;

const BLOCKS: u64 = 24;
const ENTRIES: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: usize, seed: u8, durable: bool },
    Read { block: u64, blocks: usize },
    Sync,
    Grow { blocks: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..BLOCKS + 4, 1..6usize);
    let step = prop_oneof![
        4 => (range(), any::<u8>(), any::<bool>()).prop_map(|((block, blocks), seed, durable)| {
            Step::Write { block, blocks, seed, durable }
        }),
        4 => range().prop_map(|(block, blocks)| Step::Read { block, blocks }),
        1 => Just(Step::Sync),
        1 => (0..BLOCKS).prop_map(|blocks| Step::Grow { blocks }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What the file must hold, and which operations may still change or see it.
struct Oracle {
    bytes: Vec<u8>,
    /// By token: its blocks, whether it writes, and for a read what it must see.
    open: HashMap<u64, (std::ops::Range<u64>, bool, Vec<u8>)>,
}

impl Oracle {
    /// Operations on the same blocks at once have no defined outcome, unless all only read.
    fn conflicts(&self, range: &std::ops::Range<u64>, writes: bool) -> bool {
        self.open.values().any(|(other, other_writes, _)| {
            (writes || *other_writes) && range.start < other.end && other.start < range.end
        })
    }

    fn complete(&mut self, completion: Completion) {
        completion.result.unwrap();
        let (_, _, expected) = self.open.remove(&completion.token).expect("completes once");
        if let Some(memory) = completion.memory {
            assert!(bytes_of(&memory) == expected, "operation {}", completion.token);
        }
    }
}

fn run(disk: &mut AnyDisk, file: FileId, steps: &[Step]) {
    let len_bytes = disk.len_bytes(file) as usize;
    let mut oracle = Oracle { bytes: vec![0; len_bytes], open: HashMap::new() };
    let mut completions = Vec::new();
    for (token, step) in (0u64..).zip(steps) {
        let (block, blocks, writes) = match *step {
            Step::Write { block, blocks, .. } => (block, blocks, true),
            Step::Read { block, blocks } => (block, blocks, false),
            Step::Sync | Step::Grow { .. } => (0, 0, false),
        };
        let range = block..block + blocks as u64;
        while oracle.conflicts(&range, writes) || oracle.open.len() == ENTRIES {
            disk.flush();
            sleep_until_ready(disk);
            disk.poll(Time::monotonic(), &mut completions);
            completions.drain(..).for_each(|completion| oracle.complete(completion));
        }
        let bytes = (block as usize * BLOCK_BYTES)..((block as usize + blocks) * BLOCK_BYTES);
        let inside = bytes.end <= oracle.bytes.len();
        let (accepted, expected) = match *step {
            Step::Write { seed, durable, .. } => {
                let memory = memory(blocks, |index| seed.wrapping_add((index / 509) as u8));
                let content = bytes_of(&memory);
                let durability = if durable { Durability::Durable } else { Durability::Visible };
                let accepted = disk.write(transfer(token, file, block, memory), durability).is_ok();
                if inside {
                    oracle.bytes[bytes].copy_from_slice(&content);
                }
                (accepted, content)
            }
            Step::Read { .. } => {
                let memory = memory(blocks, |_| 0xee);
                let accepted = disk.read(transfer(token, file, block, memory)).is_ok();
                (accepted, oracle.bytes.get(bytes).map(<[u8]>::to_vec).unwrap_or_default())
            }
            Step::Sync => (disk.sync(token, file).is_ok(), Vec::new()),
            Step::Grow { blocks } => {
                disk.grow(file, blocks * BLOCK).unwrap();
                let len_bytes = oracle.bytes.len().max(blocks as usize * BLOCK_BYTES);
                oracle.bytes.resize(len_bytes, 0);
                assert_eq!(disk.len_bytes(file), len_bytes as u64);
                continue;
            }
        };
        assert_eq!(accepted, inside, "{step:?}");
        if accepted {
            oracle.open.insert(token, (range, writes, expected));
        }
    }
    for completion in common::finish(disk) {
        oracle.complete(completion);
    }
    assert!(oracle.open.is_empty(), "each completes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn both_providers_behave_like_bytes(steps in steps()) {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options =
            UringOptions { entries: ENTRIES as u32, files_max: 2, memory_pieces_max: 4 };
        let mut disk = AnyDisk::new(&options).unwrap();
        let open =
            OpenOptions { create: true, lock_wait: Duration::ZERO, ..OpenOptions::default() };
        let on_disk = disk.open(&directory.path().join("store"), &open).unwrap();
        disk.grow(on_disk, BLOCKS / 2 * BLOCK).unwrap();
        let in_memory = disk.create_ram(BLOCKS / 2 * BLOCK, BLOCKS * BLOCK).unwrap();
        run(&mut disk, in_memory, &steps);
        run(&mut disk, on_disk, &steps);
    }
}
