//! The data path allocates nothing once it has started.
#![allow(clippy::unwrap_used)]

mod support;

use gannet_proto::control::{grant_flags, grant_operation};
use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};
use support::script::{Script, packet};
use zerocopy::little_endian::U32;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Delivers `rounds` packets of grants and counts what handling them allocates.
fn allocations(maps: bool, resident: bool, rounds: usize) -> u64 {
    let mut script = Script::new(maps, resident);
    let host = script.host(11, 1, 1 << 20);
    // A test's fabric and disk collect what they see; here they must not.
    script.fabric.0.borrow_mut().discard = true;
    script.disk.0.borrow_mut().log.reserve(1 << 20);
    let mut count = 0;
    for _ in 0..rounds {
        let mut packets = Vec::new();
        for index in 0..16 {
            let operation = 1 + (index % 3) as u8;
            let mut grant = script.make(&host, operation, 1 + index, 4096);
            grant.offset = U32::new(if index % 2 == 0 { 0 } else { 100 });
            grant.flags = if index % 5 == 0 { grant_flags::NOTIFY_METASERVER } else { 0 };
            grant.valid = U32::new(if operation == grant_operation::READ { 4000 } else { 0 });
            packets.push(packet(&grant, &[]));
        }
        for packet in packets {
            script.fabric.deliver(script.meta, &packet);
        }
        let before = allocations_on_this_thread();
        for _ in 0..8 {
            script.poll();
        }
        count += allocations_on_this_thread() - before;
        assert_eq!(script.target.grants(), 0);
    }
    count
}

#[test]
fn grants_are_executed_without_allocating() {
    let before = allocations_on_this_thread();
    drop(Box::new(7_u64));
    assert!(allocations_on_this_thread() > before, "the allocator counts");
    for (maps, resident) in [(true, true), (true, false), (false, true), (false, false)] {
        // The first rounds fill what grows to its bound: events, the test's own queues.
        let warm = allocations(maps, resident, 20);
        let long = allocations(maps, resident, 220);
        assert_eq!(long, warm, "mapped {maps}, in memory {resident}: per grant {}", long - warm);
    }
}
