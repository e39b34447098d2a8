//! What the simulated disk guarantees, and that it does what it is there for.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use gannet_disk::{
    BLOCK_BYTES, Completion, Disk, DiskError, Durability, FileId, SubmitError, Transfer,
};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;

use super::{
    DiskEvents, DiskOptions, EventKind, Moment, PowerLoss, SECTOR_BYTES, SimDisk, SimLock,
    SimMedium,
};
use crate::agenda::Device;
use crate::random::{Chance, Random};
use crate::trace::Trace;

const FILE: FileId = FileId(0);
const BLOCKS: usize = 8;
const SECTORS: usize = BLOCKS * BLOCK_BYTES / SECTOR_BYTES;

struct Bench {
    medium: SimMedium,
    disk: SimDisk,
    now: Time,
    trace: Trace,
}

impl Bench {
    fn new(options: DiskOptions, seed: u64) -> Bench {
        let trace = Trace::new();
        let medium = SimMedium::new("medium", options, &Random::seeded(seed), &trace);
        let len_bytes = (BLOCKS * BLOCK_BYTES) as u64;
        medium.create_file("store", len_bytes, 2 * len_bytes).unwrap();
        let disk = medium.lock().unwrap().disk();
        Bench { medium, disk, now: Time::ZERO, trace }
    }

    /// Moves to the next thing that happens on the medium; false if there is none.
    fn step(&mut self) -> bool {
        let next = self.medium.next_event();
        if next == Time::NEVER {
            return false;
        }
        self.now = next;
        self.medium.advance(next);
        true
    }

    fn settle(&mut self) -> Vec<Completion> {
        let mut completions = Vec::new();
        self.disk.flush();
        loop {
            let before = completions.len();
            self.disk.poll(self.now, &mut completions);
            if completions.len() == before && !self.step() {
                return completions;
            }
        }
    }

    fn write(&mut self, block: usize, byte: u8, durability: Durability) {
        self.disk.write(transfer(0, block, &filled(byte)), durability).unwrap();
        self.disk.flush();
    }

    /// The byte that each sector of the file is filled with.
    fn sectors(&self) -> Vec<u8> {
        let mut bytes = vec![0; SECTORS * SECTOR_BYTES];
        self.medium.content(FILE, 0, &mut bytes);
        let sectors = bytes.chunks(SECTOR_BYTES).map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
            sector[0]
        });
        sectors.collect()
    }

    fn relock(&mut self) -> SimLock {
        loop {
            match self.medium.lock() {
                Ok(lock) => return lock,
                Err(DiskError::InUse { .. }) => assert!(self.step(), "the lock never gets free"),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

fn filled(byte: u8) -> Arc<Mapping> {
    let mapping = Mapping::anonymous(BLOCK_BYTES).unwrap();
    mapping.copy_in(0, &[byte; BLOCK_BYTES]);
    mapping
}

fn transfer(token: u64, block: usize, memory: &Arc<Mapping>) -> Transfer {
    let memory = Memory::Shared(memory.slice(0, memory.len() as u64).unwrap());
    let (offset, len_bytes) = ((block * BLOCK_BYTES) as u64, memory.len());
    Transfer { token, file: FILE, offset, memory, memory_offset: 0, len_bytes }
}

#[test]
fn reads_return_what_was_written_and_completions_come_in_any_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..20 {
        let mut bench =
            Bench::new(DiskOptions { split: Chance::percent(50), ..DiskOptions::calm() }, seed);
        for block in 0..BLOCKS {
            bench.write(block, block as u8 + 1, Durability::Visible);
        }
        assert_eq!(bench.disk.in_flight(), BLOCKS);
        assert_eq!(bench.settle().len(), BLOCKS);
        let memories: Vec<Arc<Mapping>> = (0..BLOCKS).map(|_| filled(0)).collect();
        for (block, memory) in memories.iter().enumerate() {
            bench.disk.read(transfer(block as u64, block, memory)).unwrap();
        }
        let completions = bench.settle();
        assert!(completions.iter().all(|completion| completion.result.is_ok()));
        let order: Vec<u64> = completions.iter().map(|completion| completion.token).collect();
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), BLOCKS);
        orders.insert(order);
        assert_eq!(bench.disk.in_flight(), 0);
        for (block, memory) in memories.iter().enumerate() {
            let mut bytes = [0; BLOCK_BYTES];
            memory.copy_out(0, &mut bytes);
            assert_eq!(bytes, [block as u8 + 1; BLOCK_BYTES]);
        }
        assert!(bench.medium.stats().split > 0);
    }
    assert!(orders.len() > 10, "{orders:?}");
}

#[test]
fn nothing_starts_before_the_flush() {
    let mut bench = Bench::new(DiskOptions::calm(), 1);
    bench.disk.write(transfer(0, 0, &filled(1)), Durability::Durable).unwrap();
    assert!(!bench.step());
    bench.medium.kill();
    drop(bench.relock());
    assert_eq!(bench.sectors()[0], 0);
}

#[test]
fn what_is_durable_survives_a_loss_of_power() {
    for seed in 0..50 {
        let mut bench = Bench::new(DiskOptions::hostile(), seed);
        bench.medium.tune(|options| options.spurious_full = Chance::NEVER);
        bench.write(0, 1, Durability::Durable);
        bench.write(1, 1, Durability::Visible);
        bench.settle();
        bench.disk.sync(9, FILE).unwrap();
        // Not covered: it completes after the sync has begun.
        bench.write(2, 1, Durability::Visible);
        bench.settle();
        bench.write(0, 2, Durability::Visible);
        bench.settle();
        bench.medium.lose_power();
        let sectors = bench.sectors();
        assert!(sectors[..8].iter().all(|byte| [1, 2].contains(byte)), "{sectors:?}");
        assert_eq!(sectors[8..16], [1; 8]);
        assert!(sectors[16..24].iter().all(|byte| [0, 1].contains(byte)), "{sectors:?}");
        assert_eq!(sectors[24..], [0; SECTORS - 24]);
        // What is left is settled: a second loss takes nothing more.
        bench.medium.lose_power();
        assert_eq!(bench.sectors(), sectors);
    }
}

#[test]
fn each_sector_that_is_not_durable_is_kept_or_lost_on_its_own() {
    let mut images = BTreeSet::new();
    for seed in 0..200 {
        let mut bench = Bench::new(DiskOptions::calm(), seed);
        bench.write(0, 1, Durability::Visible);
        bench.settle();
        bench.medium.lose_power();
        images.insert(bench.sectors()[..8].to_vec());
        let stats = bench.medium.stats();
        assert_eq!(stats.sectors_kept + stats.sectors_lost, 8);
    }
    assert!(images.len() > 100, "only {} of 256 images in 200 runs", images.len());
}

#[test]
fn a_loss_of_power_can_leave_everything_or_nothing() {
    for (power_loss, left) in [(PowerLoss::AllLost, [0; 24]), (PowerLoss::AllKept, [1; 24])] {
        for seed in 0..20 {
            let options =
                DiskOptions { power_loss, split: Chance::percent(50), ..DiskOptions::calm() };
            let mut bench = Bench::new(options, seed);
            bench.write(0, 1, Durability::Visible);
            bench.settle();
            bench.write(1, 1, Durability::Visible);
            bench.write(2, 1, Durability::Durable);
            // Half of them begin to take effect.
            if seed % 2 == 0 {
                bench.step();
            }
            let durable = bench.medium.under_way() < 2;
            bench.medium.lose_power();
            if !durable {
                assert_eq!(bench.sectors()[..24], left, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_disk_that_lies_loses_what_it_called_durable() {
    let power_loss = PowerLoss::AllLost;
    let mut bench = Bench::new(DiskOptions { lies: true, power_loss, ..DiskOptions::calm() }, 1);
    bench.write(0, 1, Durability::Durable);
    assert_eq!(bench.settle().len(), 1);
    bench.medium.lose_power();
    assert_eq!(bench.sectors()[..8], [0; 8]);
}

#[test]
fn a_run_stands_still_before_or_behind_an_event_and_goes_on() {
    // A write and a sync: each begins and ends.
    let expected =
        [EventKind::WriteBegun, EventKind::WriteEnded, EventKind::SyncBegun, EventKind::SyncEnded];
    for number in 0..4 {
        for moment in [Moment::Before(number), Moment::After(number)] {
            let mut bench = Bench::new(DiskOptions::calm(), number);
            let events = DiskEvents::default();
            bench.medium.watch(&events, 7);
            events.record();
            events.stop_at(moment);
            bench.write(0, 1, Durability::Visible);
            let mut is_synced = false;
            let mut completions = Vec::new();
            while completions.len() < 2 {
                if events.stands_still() {
                    let done = number + u64::from(moment == Moment::After(number));
                    assert_eq!(events.count(), done);
                    let at = events.at().unwrap();
                    assert_eq!((at.disk, at.kind), (7, expected[number as usize]));
                    // Nothing happens however late it gets.
                    bench.medium.advance(Time(1 << 40));
                    assert_eq!(events.count(), done);
                    events.go_on();
                }
                bench.step();
                bench.disk.poll(bench.now, &mut completions);
                if completions.len() == 1 && !is_synced {
                    is_synced = true;
                    bench.disk.sync(9, FILE).unwrap();
                    bench.disk.flush();
                }
            }
            let kinds: Vec<EventKind> = events.recorded().iter().map(|event| event.kind).collect();
            assert_eq!(kinds, expected);
            assert_eq!(bench.sectors()[..8], [1; 8]);
        }
    }
}

#[test]
fn what_is_handed_over_while_all_stands_still_dies_with_its_process() {
    let mut bench = Bench::new(DiskOptions::calm(), 1);
    let events = DiskEvents::default();
    bench.medium.watch(&events, 0);
    events.stop_at(Moment::Before(0));
    bench.write(0, 1, Durability::Durable);
    assert!(events.stands_still());
    bench.medium.kill();
    events.go_on();
    drop(bench.relock());
    assert!(!bench.step());
    assert_eq!((bench.sectors()[0], events.count()), (0, 0));
}

#[test]
fn a_sector_may_fall_back_to_any_version_since_it_was_durable() {
    let mut left = BTreeSet::new();
    for seed in 0..100 {
        let options = DiskOptions { write_back: Chance::percent(30), ..DiskOptions::calm() };
        let mut bench = Bench::new(options, seed);
        for version in 1..=3 {
            bench.write(0, version, Durability::Visible);
            bench.settle();
        }
        bench.medium.lose_power();
        left.extend(bench.sectors()[..8].iter().copied());
    }
    assert_eq!(left, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn a_write_under_way_at_a_loss_of_power_leaves_any_of_its_sectors() {
    let mut images = BTreeSet::new();
    for seed in 0..100 {
        let mut bench = Bench::new(DiskOptions::calm(), seed);
        bench.write(0, 1, Durability::Durable);
        bench.medium.lose_power();
        assert_eq!(bench.medium.under_way(), 0);
        images.insert(bench.sectors()[..8].to_vec());
    }
    assert!(images.len() > 30, "{} images", images.len());
}

#[test]
fn a_dead_process_s_transfers_go_on_until_its_lock_is_free() {
    let (mut late_reads, mut late_writes, mut waits) = (0, 0, 0);
    for seed in 0..50 {
        let mut bench = Bench::new(DiskOptions::hostile(), seed);
        bench.medium.tune(|options| options.spurious_full = Chance::NEVER);
        bench.write(0, 1, Durability::Durable);
        bench.settle();
        assert!(matches!(bench.medium.lock(), Err(DiskError::InUse { .. })));
        let host = filled(0);
        bench.disk.read(transfer(0, 0, &host)).unwrap();
        bench.disk.write(transfer(1, 1, &filled(2)), Durability::Durable).unwrap();
        bench.disk.flush();
        bench.medium.kill();
        let mut completions = Vec::new();
        host.copy_in(0, &[7; BLOCK_BYTES]);
        let is_busy = bench.medium.lock().is_err();
        assert_eq!(is_busy, bench.medium.under_way() > 0);
        waits += usize::from(is_busy);
        let lock = bench.relock();
        let mut bytes = [0; BLOCK_BYTES];
        host.copy_out(0, &mut bytes);
        late_reads += usize::from(bytes != [7; BLOCK_BYTES]);
        let sectors = bench.sectors();
        late_writes += usize::from(sectors[8] == 2);
        // From the lock on, nothing of it moves any more.
        host.copy_in(0, &[7; BLOCK_BYTES]);
        let mut successor = lock.disk();
        successor.write(transfer(5, 1, &filled(3)), Durability::Durable).unwrap();
        successor.flush();
        while bench.step() {}
        successor.poll(bench.now, &mut completions);
        assert_eq!(completions.len(), 1);
        host.copy_out(0, &mut bytes);
        assert_eq!(bytes, [7; BLOCK_BYTES]);
        assert_eq!(bench.sectors()[8], 3);
        completions.clear();
        bench.disk.poll(bench.now, &mut completions);
        assert!(completions.is_empty(), "the dead are told nothing");
    }
    assert!(late_reads > 5 && late_writes > 5, "{late_reads} {late_writes}");
    assert!((10..50).contains(&waits), "{waits}");
}

#[test]
fn the_lock_lasts_as_long_as_its_last_handle() {
    let bench = Bench::new(DiskOptions::calm(), 2);
    let Bench { medium, disk, .. } = bench;
    assert!(medium.lock().is_err());
    drop(disk);
    let lock = medium.lock().unwrap();
    let second = lock.clone();
    drop(lock);
    assert!(medium.lock().is_err());
    drop(second);
    assert!(medium.lock().is_ok());
}

#[test]
fn a_ram_file_is_resident_and_empty_at_each_start() {
    let medium = SimMedium::new("m", DiskOptions::calm(), &Random::seeded(3), &Trace::new());
    let file = medium.create_ram("ram", 2 * BLOCK_BYTES as u64).unwrap();
    let lock = medium.lock().unwrap();
    let disk = lock.disk();
    let resident = disk.resident(file, 100, 10).unwrap();
    resident.copy_in(0, b"0123456789");
    assert!(disk.resident(file, 2 * BLOCK_BYTES as u64 - 1, 2).is_none());
    let mut bytes = [0; 10];
    medium.content(file, 100, &mut bytes);
    assert_eq!(&bytes, b"0123456789");
    drop((disk, lock));
    let disk = medium.lock().unwrap().disk();
    disk.resident(file, 100, 10).unwrap().copy_out(0, &mut bytes);
    assert_eq!(bytes, [0; 10]);
    // The dead process's view shows its own pages still.
    resident.copy_out(0, &mut bytes);
    assert_eq!(&bytes, b"0123456789");
}

#[test]
fn impossible_ranges_and_full_queues_are_refused_with_the_transfer() {
    let mut bench = Bench::new(DiskOptions { entries: 2, ..DiskOptions::calm() }, 4);
    let memory = filled(1);
    for (name, change) in [
        (
            "end",
            Box::new(|t: &mut Transfer| t.offset = (BLOCKS * BLOCK_BYTES) as u64)
                as Box<dyn Fn(&mut Transfer)>,
        ),
        ("alignment", Box::new(|t: &mut Transfer| t.offset = 512)),
        ("length", Box::new(|t: &mut Transfer| t.len_bytes = 512)),
        ("empty", Box::new(|t: &mut Transfer| t.len_bytes = 0)),
        ("memory", Box::new(|t: &mut Transfer| t.memory_offset = BLOCK_BYTES)),
        ("overflow", Box::new(|t: &mut Transfer| t.offset = u64::MAX - 4095)),
        ("file", Box::new(|t: &mut Transfer| t.file = FileId(7))),
    ] {
        let mut bad = transfer(3, 0, &memory);
        change(&mut bad);
        let refused = bench.disk.read(bad).unwrap_err();
        assert_eq!((refused.error, refused.transfer.token), (SubmitError::Range, 3), "{name}");
    }
    bench.write(0, 1, Durability::Visible);
    bench.disk.sync(1, FILE).unwrap();
    assert_eq!(bench.disk.sync(2, FILE), Err(SubmitError::Full));
    let refused = bench.disk.read(transfer(3, 0, &memory)).unwrap_err();
    assert_eq!(refused.error, SubmitError::Full);
    assert_eq!(bench.settle().len(), 2);
    bench.disk.read(transfer(3, 0, &memory)).unwrap();
}

#[test]
fn files_grow_up_to_their_capacity() {
    let mut bench = Bench::new(DiskOptions::calm(), 5);
    let whole = 2 * (BLOCKS * BLOCK_BYTES) as u64;
    bench.disk.grow(FILE, whole).unwrap();
    assert_eq!(bench.disk.len_bytes(FILE), whole);
    bench.disk.grow(FILE, 1).unwrap();
    assert_eq!(bench.disk.len_bytes(FILE), whole, "never shrinks");
    assert!(matches!(bench.disk.grow(FILE, whole + 1), Err(DiskError::System { .. })));
}

#[test]
fn failures_are_told_and_a_failed_sync_promises_nothing() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut bench = Bench::new(DiskOptions::calm(), seed);
        bench.write(0, 1, Durability::Visible);
        bench.settle();
        bench.medium.tune(|options| options.io_error = Chance::ALWAYS);
        bench.disk.sync(1, FILE).unwrap();
        bench.write(1, 1, Durability::Durable);
        let completions = bench.settle();
        assert_eq!(completions.len(), 2);
        assert!(completions.iter().all(|completion| completion.result.is_err()));
        assert_eq!(bench.sectors()[8..16], [0; 8]);
        bench.medium.lose_power();
        lost += bench.medium.stats().sectors_lost;
    }
    assert!(lost > 0);
}

#[test]
fn a_seed_is_a_run() {
    let run = |seed| {
        let mut bench = Bench::new(DiskOptions::hostile(), seed);
        for round in 0..20 {
            let durability = if round % 2 == 0 { Durability::Durable } else { Durability::Visible };
            let write = transfer(round, round as usize % BLOCKS, &filled(round as u8));
            let _spuriously_full = bench.disk.write(write, durability);
            bench.disk.flush();
            bench.step();
        }
        bench.medium.lose_power();
        (bench.trace.hash(), bench.sectors())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}
