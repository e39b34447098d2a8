//! Requests that name the host's memory by windows rather than by a region.

use gannet_proto::operations::{Read, Window, Write, io_flags};
use gannet_proto::{Inode, Status};
use zerocopy::little_endian::{U16, U32, U64};

use super::world::{ADDRESS, Answer, BLOCK, SLOT_BYTES, World, pattern};

const ROOT: Inode = Inode::ROOT;

/// A window of a slot's memory at each of the servers, each with a key and an epoch of its own.
fn windows(world: &World, servers: &[usize], slot: u16) -> Vec<Window> {
    let window = |server: &usize| Window {
        target: U32::new(world.servers[*server].id.0),
        key: U32::new(1000 + *server as u32),
        epoch: U64::new(50 + *server as u64),
        address: U64::new(ADDRESS + u64::from(slot) * SLOT_BYTES as u64),
    };
    servers.iter().map(window).collect()
}

fn named_write(mut write: Write, count: usize) -> Write {
    write.flags = U16::new(write.flags.get() | io_flags::WINDOWS);
    write.windows = U16::new(count as u16);
    // Not looked at: no such region.
    write.buffer.region = U32::new(77);
    write
}

fn named_read(mut read: Read, count: usize) -> Read {
    read.flags = U16::new(read.flags.get() | io_flags::WINDOWS);
    read.windows = U16::new(count as u16);
    read.buffer.region = U32::new(77);
    read
}

/// Checks that each grant names the window of its data server, and lets the data servers do them.
fn carry_out(world: &mut World, windows: &[Window], grants: usize) {
    assert_eq!(world.pending.len(), grants);
    for pending in &mut world.pending {
        let window = windows.iter().find(|window| window.target.get() == pending.target.0);
        let window = window.expect("no grant to a data server that was not named");
        let grant = &mut pending.grant;
        assert_eq!((grant.host_key, grant.epoch), (window.key, window.epoch));
        assert!(grant.host_address.get() >= window.address.get());
        // What the servers of this world call the host's memory.
        grant.host_key = U32::new(9);
    }
    world.run();
}

#[test]
fn grants_carry_the_window_of_their_data_server() {
    let mut world = World::new(1, 2, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(1, 8 * BLOCK + 100);
    let named = windows(&world, &[0, 1], 3);
    let write = named_write(world.write_message(file, 10, &data, 3, 0), 2);
    world.send_write_by(&write, &named);
    let starts: Vec<u64> =
        world.pending.iter().map(|pending| pending.grant.host_address.get()).collect();
    assert_eq!(starts[0], ADDRESS + 3 * SLOT_BYTES as u64);
    assert!(starts[1] > starts[0], "parts follow each other in the window");
    carry_out(&mut world, &named, starts.len());
    assert_eq!(world.take(&write.header).unwrap().status(), Status::OK);

    let named = windows(&world, &[1, 0], 4);
    let read = named_read(world.read_message(file, 10, data.len(), 4, 0), 2);
    world.send_read_by(&read, &named);
    let grants = world.pending.len();
    carry_out(&mut world, &named, grants);
    assert_eq!(world.read_result(&read.header), Some((data.clone(), true)));
    // Regions go on working beside them.
    assert_eq!(world.read(file, 10, data.len()), (data, true));
    world.check();
    world.check_replay();
}

#[test]
fn a_data_server_without_a_window_makes_the_set_stale() {
    let mut world = World::new(1, 2, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(2, 8 * BLOCK);
    let all: Vec<u32> = world.servers.iter().map(|server| server.id.0).collect();
    let used = world.cores[0].space().blocks_used;
    for servers in [&[][..], &[0], &[1]] {
        let named = windows(&world, servers, 3);
        let write = named_write(world.write_message(file, 0, &data, 3, 0), named.len());
        world.send_write_by(&write, &named);
        let answer = world.take(&write.header).unwrap();
        assert_eq!(answer.status(), Status::STALE_SET);
        let Answer::Io(_, mut set) = answer else { panic!("a write is answered by IoReply") };
        set.sort_unstable();
        assert_eq!(set, all, "the host learns of the whole set");
        assert!(world.pending.is_empty());
        assert_eq!(world.cores[0].space().blocks_used, used, "nothing stays staged");
    }
    world.write(file, 0, &data, 0).unwrap();
    let named = windows(&world, &[1], 4);
    let read = named_read(world.read_message(file, 0, data.len(), 4, 0), 1);
    world.send_read_by(&read, &named);
    assert_eq!(world.take(&read.header).unwrap().status(), Status::STALE_SET);
    // What needs no data server needs no window.
    let beyond = named_read(world.read_message(file, data.len() as u64, 100, 4, 0), 0);
    world.send_read_by(&beyond, &[]);
    assert_eq!(world.take(&beyond.header).unwrap().status(), Status::OK);
    world.check();
}

#[test]
fn what_waits_keeps_its_windows_and_the_next_attempt_brings_its_own() {
    let mut world = World::new(1, 2, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(3, 8 * BLOCK);
    world.write(file, 0, &data, 0).unwrap();
    world.down(0, 0);
    let named = windows(&world, &[0, 1], 4);
    let mut read = named_read(world.read_message(file, 0, data.len(), 4, 0), 2);
    world.send_read_by(&read, &named);
    let changed = pattern(4, 8 * BLOCK);
    let write = named_write(world.write_message(file, 0, &changed, 5, 0), 2);
    let named_too = windows(&world, &[0, 1], 5);
    world.send_write_by(&write, &named_too);
    assert!(world.pending.is_empty(), "both wait for the data server");
    // The host cuts its read off and sends it again, by windows with other keys.
    let mut fresh = named.clone();
    fresh.iter_mut().for_each(|window| window.key = U32::new(window.key.get() + 500));
    read.header.attempt = U32::new(2);
    world.send_read_by(&read, &fresh);
    world.up(0, 0);
    let (reads, writes): (Vec<_>, Vec<_>) =
        world.pending.iter().partition(|pending| pending.grant.trailer[2] == 4);
    assert!(!reads.is_empty() && !writes.is_empty());
    assert!(reads.iter().all(|pending| pending.grant.host_key.get() >= 1500), "{reads:?}");
    assert!(writes.iter().all(|pending| pending.grant.host_key.get() < 1500), "{writes:?}");
    world.pending.iter_mut().for_each(|pending| pending.grant.host_key = U32::new(9));
    world.run();
    assert_eq!(world.read_result(&read.header).map(|(bytes, _)| bytes), Some(data));
    assert_eq!(world.take(&write.header).unwrap().status(), Status::OK);
    assert_eq!(world.read(file, 0, changed.len()).0, changed);
    world.check();
}
