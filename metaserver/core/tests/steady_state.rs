//! A core in its steady state: reads and overwrites do not allocate, and a read takes its time in
//! hundreds of nanoseconds.

#[allow(dead_code)]
mod support;

use std::time::Instant;

use gannet_proto::RegionId;
use gannet_proto::operations::Window;
use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};
use support::{Bench, FILE_BLOCKS, SLOTS, bench};
use zerocopy::little_endian::U32;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn reads_and_overwrites_do_not_allocate() {
    steady(bench());
}

#[test]
fn neither_do_those_that_name_windows() {
    let mut bench = bench();
    let target = U32::new(bench.target.0);
    bench.window = Some(Window { target, key: U32::new(1), ..Window::default() });
    // The region is not what they use.
    bench.core.unregister(bench.session, RegionId(1));
    steady(bench);
}

fn steady(mut bench: Bench) {
    // Blocks one by one in a scattered order, so that the map has many extents.
    for block in 0..FILE_BLOCKS {
        bench.write(0, (block * 91) % FILE_BLOCKS, 1);
    }
    bench.reads(10);
    let before = (allocations_on_this_thread(), bench.sink.grants);
    bench.reads(1000);
    assert_eq!(bench.sink.grants - before.1, 1000 * u64::from(SLOTS));
    assert_eq!(allocations_on_this_thread() - before.0, 0, "reads allocate");
    for round in 0..4 * FILE_BLOCKS {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    let (allocations, records) = (allocations_on_this_thread(), bench.sink.records);
    for round in 0..4 * FILE_BLOCKS {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    assert_eq!(bench.sink.records - records, 4 * FILE_BLOCKS);
    assert_eq!(allocations_on_this_thread() - allocations, 0, "overwrites allocate");
    bench.core.check_invariants().expect("the state is sound");
}

/// Prints what a read and a write cost; with optimisation, holds a read to a bound that leaves room
/// for a loaded machine.
#[test]
fn a_read_takes_hundreds_of_nanoseconds() {
    let mut bench = bench();
    for block in 0..FILE_BLOCKS {
        bench.write(0, (block * 91) % FILE_BLOCKS, 1);
    }
    let rounds = if cfg!(debug_assertions) { 200 } else { 5_000 };
    let per = |start: Instant, count: u64| start.elapsed().as_nanos() as u64 / count;
    let mut read_ns = u64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        bench.reads(rounds);
        read_ns = read_ns.min(per(start, rounds * u64::from(SLOTS)));
    }
    let start = Instant::now();
    for round in 0..rounds {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    let write_ns = per(start, rounds);
    println!(
        "a read with its retirement takes {read_ns} ns, a write with its commit {write_ns} ns"
    );
    if !cfg!(debug_assertions) {
        assert!(read_ns < 1_000, "a read takes {read_ns} ns");
    }
}
