//! Bytes: what grants move, compared with a model of stores and host memory.
#![allow(clippy::unwrap_used)]

mod support;

use gannet_fabric::Access;
use gannet_proto::Status;
use gannet_proto::control::{Grant, grant_flags, grant_operation};
use support::Numbers;
use support::script::{Heard, Host, Script, Told, bytes_of, config, fill, notice};
use zerocopy::little_endian::{U32, U64};

const BLOCK: usize = 4096;
/// Every provider and store that a data server can meet: mapped memory or not, RAM or file.
const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

fn arrival(tag: u64, length: u32) -> Heard {
    Heard::Arrival { status: Status::OK, length, tag: tag as u8 }
}

/// Executes a grant on plain bytes as the protocol describes it.
fn model(grant: &Grant, store: &mut [u8], host: &mut [u8]) {
    let (offset, length) = (grant.offset.get() as usize, grant.length.get() as usize);
    let from = grant.block.get() as usize * BLOCK;
    let valid = grant.valid.get() as usize;
    match grant.operation {
        grant_operation::READ => {
            host[..valid].copy_from_slice(&store[from + offset..from + offset + valid]);
            host[valid..length].fill(0);
        }
        grant_operation::ZERO => host[..length].fill(0),
        _ => {
            let old = |block: u64, valid: u32| {
                let mut bytes = [0; BLOCK];
                if block != u64::MAX {
                    let (start, valid) = (block as usize * BLOCK, valid as usize);
                    bytes[..valid].copy_from_slice(&store[start..start + valid]);
                }
                bytes
            };
            let head = old(grant.head_block.get(), grant.head_valid.get());
            let tail = old(grant.tail_block.get(), grant.tail_valid.get());
            let end = (offset + length) % BLOCK;
            let mut bytes = head[..offset].to_vec();
            bytes.extend_from_slice(&host[..length]);
            if end > 0 {
                bytes.extend_from_slice(&tail[end..]);
            }
            store[from..from + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

#[test]
fn random_grants_move_the_bytes_that_the_model_moves() {
    for (maps, resident) in KINDS {
        for seed in 0..4 {
            let mut numbers = Numbers(seed);
            let mut limits = config();
            // Few buffers and short queues, so that grants have to wait for them.
            limits.limits.small_buffers = Some(2);
            limits.limits.large_buffers = Some(2);
            limits.limits.operations_max = 7;
            let mut script = Script::with(limits, maps, resident, 1024);
            script.disk.0.borrow_mut().entries = 3;
            script.disk.0.borrow_mut().backwards = seed % 2 == 1;
            script.fabric.0.borrow_mut().transfers_max = 3;
            fill(&script.disk.content(), seed);
            let mut store = bytes_of(&script.disk.content(), 0, 1024 * BLOCK);
            // Four buffers that start at different places of a page, and grants on disjoint blocks.
            let host = script.host(11, 1, 8 << 20);
            fill(&host.memory, 1000 + seed);
            let mut memory = bytes_of(&host.memory, 0, 8 << 20);
            for _round in 0..12 {
                let mut waits = 0;
                for area in 0..4_u64 {
                    let grant = random_grant(&mut script, &host, &mut numbers, area);
                    let at = (grant.host_address.get() - host.registration.address) as usize;
                    model(&grant, &mut store, &mut memory[at..]);
                    script.tell(&grant, &[]);
                    waits += 1;
                }
                script.fabric.0.borrow_mut().hold_transfers = numbers.chance(50);
                script.settle();
                while script.fabric.complete_transfers() > 0 {
                    script.settle();
                }
                let arrivals = script.heard(host.connection).len();
                let told = script.told();
                let notices = told.iter().filter(|one| matches!(one, Told::Notice { .. })).count();
                assert_eq!(arrivals + notices, waits, "{told:?}");
            }
            assert!(bytes_of(&script.disk.content(), 0, store.len()) == store, "store {seed}");
            assert!(bytes_of(&host.memory, 0, memory.len()) == memory, "memory {seed}");
            assert_eq!(script.target.grants(), 0);
            let stats = *script.target.stats();
            assert_eq!(stats.grants_done, 48);
            assert_eq!(resident, stats.bytes_bounced == 0);
        }
    }
}

/// A grant in blocks and host memory of its own area, so that those of a round do not meet.
fn random_grant(script: &mut Script, host: &Host, numbers: &mut Numbers, area: u64) -> Grant {
    let operation = 1 + numbers.below(3) as u8;
    let sizes = [1, 4096, 4096, 8192, 5000, 100_000, 262_144, 600_000];
    let length = match numbers.below(3) {
        0 => 1 + numbers.below(600_000) as u32,
        _ => sizes[numbers.below(8) as usize],
    };
    let block = area * 256 + 2 + numbers.below(50);
    let mut grant = script.make(host, operation, block, length);
    if numbers.chance(60) {
        grant.offset = U32::new(numbers.below(4096) as u32);
    }
    let at = area * (2 << 20)
        + match numbers.below(3) {
            0 => 0,
            1 => u64::from(grant.offset.get()),
            _ => numbers.below(10_000),
        };
    grant.host_address = U64::new(host.registration.address + at);
    if operation == grant_operation::READ && numbers.chance(40) {
        grant.valid = U32::new(numbers.below(u64::from(length) + 1) as u32);
    }
    if operation == grant_operation::WRITE && numbers.chance(80) {
        grant.head_block = U64::new(area * 256);
        grant.head_valid = U32::new(numbers.below(4097) as u32);
        let same = u64::from(!numbers.chance(40));
        grant.tail_block = U64::new(area * 256 + same);
        grant.tail_valid = U32::new(numbers.below(4097) as u32);
    }
    if numbers.chance(30) {
        grant.flags = grant_flags::NOTIFY_METASERVER;
    }
    grant
}

#[test]
fn a_read_is_told_to_the_host_and_retired_in_one_packet_each() {
    for (maps, resident) in KINDS {
        let mut script = Script::new(maps, resident);
        let host = script.host(11, 1, 1 << 20);
        let numbers: Vec<u64> = (0..20).map(|block| script.read(&host, block, 4096)).collect();
        script.fabric.0.borrow_mut().hold_transfers = true;
        for _ in 0..3 {
            script.poll();
            script.fabric.complete_transfers();
        }
        script.poll();
        let packets = script.fabric.take_sent(host.connection);
        assert_eq!(packets.len(), 1, "{maps} {resident}");
        let told = script.told();
        assert_eq!(told, numbers.iter().map(|n| Told::Retired(*n)).collect::<Vec<_>>());
        assert_eq!(script.target.stats().arrivals, 20);
    }
}

#[test]
fn aligned_transfers_of_files_touch_no_buffer_where_memory_is_mapped() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.read(&host, 3, 256 << 10);
    script.write(&host, 80, 256 << 10);
    script.settle();
    let stats = script.target.stats();
    assert_eq!((stats.bytes_direct, stats.bytes_bounced), (512 << 10, 0));
    // One operation each.
    assert_eq!(script.disk.0.borrow().log, [(3 * 4096, false), (80 * 4096, true)]);
}

#[test]
fn what_the_host_did_not_allow_is_refused_and_moves_nothing() {
    let (read, write) = (grant_operation::READ, grant_operation::WRITE);
    let read_only = Access { remote_read: true, remote_write: false };
    let write_only = Access { remote_read: false, remote_write: true };
    type Change = fn(&mut Grant);
    let cases: [(u8, Access, Change); 5] = [
        (read, Access::READ_WRITE, |grant| grant.host_key = U32::new(4711)),
        (read, read_only, |_| {}),
        (write, write_only, |_| {}),
        (read, Access::READ_WRITE, |grant| grant.host_address -= 1),
        (read, Access::READ_WRITE, |grant| grant.host_address += (1 << 20) - 4095),
    ];
    for (maps, resident) in KINDS {
        let mut script = Script::new(maps, resident);
        fill(&script.disk.content(), 5);
        let before = bytes_of(&script.disk.content(), 0, 64 * BLOCK);
        for (epoch, (operation, access, change)) in (1..).zip(cases) {
            let mut host = script.host(11, epoch, 1 << 20);
            host.registration =
                script.fabric.register_memory(host.connection, &host.memory, access);
            let number = script.grant(&host, operation, 1, 4096, change);
            script.settle();
            let refused = Status::ACCESS_REFUSED;
            assert!(script.told().contains(&notice(number, refused, 0)), "{maps} {resident}");
            let heard = script.heard(host.connection);
            // A view is refused without harm; a transfer takes the connection with it.
            assert_eq!(script.fabric.is_open(host.connection), maps);
            if operation == read && maps {
                let tag = number as u8;
                assert_eq!(heard, [Heard::Arrival { status: refused, length: 0, tag }]);
            } else {
                assert_eq!(heard, []);
            }
            assert!(bytes_of(&host.memory, 0, 1 << 20).iter().all(|byte| *byte == 0));
        }
        if !resident {
            assert!(bytes_of(&script.disk.content(), 0, 64 * BLOCK) == before);
        }
    }
}

#[test]
fn another_connections_key_does_not_work() {
    let mut script = Script::new(true, true);
    let host = script.host(11, 1, 1 << 20);
    let other = script.host(12, 1, 1 << 20);
    let number = script.grant(&host, grant_operation::READ, 1, 4096, |grant| {
        grant.host_key = U32::new(other.registration.key.0);
    });
    script.settle();
    assert!(script.told().contains(&notice(number, Status::ACCESS_REFUSED, 0)));
}

#[test]
fn failed_block_io_is_told_to_both() {
    for maps in [true, false] {
        let mut script = Script::new(maps, false);
        let host = script.host(11, 1, 1 << 20);
        script.disk.0.borrow_mut().failures = 2;
        let read = script.read(&host, 1, 4096);
        let write = script.write(&host, 9, 4096);
        script.settle();
        let told = script.told();
        assert!(told.contains(&notice(read, Status::IO, 0)), "{told:?}");
        assert!(told.contains(&notice(write, Status::IO, 0)), "{told:?}");
        let heard = script.heard(host.connection);
        assert_eq!(heard, [Heard::Arrival { status: Status::IO, length: 0, tag: read as u8 }]);
        // And the next one works.
        let again = script.read(&host, 1, 4096);
        script.settle();
        assert_eq!(script.heard(host.connection), [arrival(again, 4096)]);
    }
}

#[test]
fn confirmation_to_the_metadata_server_replaces_the_arrival() {
    for (maps, resident) in KINDS {
        let mut script = Script::new(maps, resident);
        let host = script.host(11, 1, 1 << 20);
        let notify = |grant: &mut Grant| grant.flags = grant_flags::NOTIFY_METASERVER;
        let number = script.grant(&host, grant_operation::READ, 1, 8192, notify);
        script.settle();
        assert_eq!(script.told(), [notice(number, Status::OK, 8192)]);
        assert_eq!(script.heard(host.connection), []);
    }
}

#[test]
fn grants_outside_the_store_are_refused_before_anything_is_posted() {
    let mut script = Script::new(false, false);
    let host = script.host(11, 1, 8 << 20);
    let (read, write) = (grant_operation::READ, grant_operation::WRITE);
    let unknown = Status::UNKNOWN_STORE;
    type Change = fn(&mut Grant);
    let table: [(u8, u64, u32, Change, Status); 9] = [
        (read, 1024, 1, |_| {}, unknown),
        (read, 1023, 4097, |_| {}, unknown),
        (read, u64::MAX - 3, 4096, |_| {}, unknown),
        (write, 1020, 5 * 4096, |_| {}, unknown),
        (read, 0, 4096, |g| g.store = U32::new(78), unknown),
        (read, 0, 4096, |g| g.generation = U32::new(2), unknown),
        (
            write,
            0,
            10,
            |g| {
                g.offset = U32::new(1);
                g.head_block = U64::new(5000);
                g.head_valid = U32::new(1);
            },
            unknown,
        ),
        (read, 0, 4096, |g| g.session = U64::new(12), Status::SESSION_GONE),
        (read, 0, 4096, |g| g.epoch = U64::new(0), Status::STALE_EPOCH),
    ];
    for (operation, block, length, change, status) in table {
        let number = script.grant(&host, operation, block, length, change);
        script.settle();
        assert_eq!(script.told(), [notice(number, status, 0)]);
    }
    assert!(script.disk.0.borrow().log.is_empty());
    // Zeros behind the store's end need no blocks.
    script.grant(&host, read, 1023, 3 * 4096, |grant| grant.valid = U32::new(4096));
    script.settle();
    assert_eq!(script.heard(host.connection).len(), 1);
}

#[test]
fn memory_of_the_longest_grant_moves_through_few_buffers() {
    let mut limits = config();
    limits.limits.large_buffers = Some(1);
    limits.limits.small_buffers = Some(1);
    let mut script = Script::with(limits, false, false, 2048);
    let host = script.host(11, 1, 8 << 20);
    fill(&script.disk.content(), 3);
    script.grant(&host, grant_operation::READ, 1, 4 << 20, |grant| {
        grant.offset = U32::new(17);
    });
    script.settle();
    let (from, len) = (BLOCK + 17, 4 << 20);
    assert!(bytes_of(&host.memory, 0, len) == bytes_of(&script.disk.content(), from, len));
}
