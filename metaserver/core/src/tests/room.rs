//! Requests that wait for room at a data server: none is forgotten.

use gannet_proto::operations::Read;
use gannet_proto::{Inode, Status};

use super::world::{BLOCK, Pending, World, pattern};

const ROOT: Inode = Inode::ROOT;

/// A world with one data server that takes `grants` grants at a time.
fn narrow(grants: u16) -> World {
    let mut world = World::new(1, 1, 4096);
    world.cores[0].config.grants_max = grants.into();
    world.cores[0].parts_max = grants.into();
    world
}

/// Sends a read of one block, which has to wait.
fn send_waiting(world: &mut World, inode: Inode, slot: u16) -> Read {
    let read = world.read_message(inode, 0, BLOCK, slot, 0);
    let granted = world.pending.len();
    world.send_read(&read);
    assert_eq!(world.pending.len(), granted, "there is no room");
    assert!(world.answers.is_empty());
    read
}

/// Sends a read of one block, and keeps its grant from being carried out.
fn stall(world: &mut World, inode: Inode, slot: u16) -> (Read, Pending) {
    let read = world.read_message(inode, 0, BLOCK, slot, 0);
    world.send_read(&read);
    assert_eq!(world.pending.len(), 1);
    (read, world.pending.remove(0))
}

/// Many reads of a file wait behind one stalled grant, and a read of another file behind them. Then
/// the file changes so that the reads of it need no grant, and the stalled grant ends.
fn reads_of_a_changed_file(change: impl Fn(&mut World, Inode), check: impl Fn(&mut World, &Read)) {
    let mut world = narrow(1);
    let changed = world.create(ROOT, "changed").unwrap();
    let other = world.create(ROOT, "other").unwrap();
    world.write(changed, 0, &pattern(1, BLOCK), 0).unwrap();
    let data = pattern(2, BLOCK);
    world.write(other, 0, &data, 0).unwrap();
    let (first, stalled) = stall(&mut world, other, 2);
    let reads: Vec<_> = (3..11).map(|slot| send_waiting(&mut world, changed, slot)).collect();
    let last = send_waiting(&mut world, other, 11);
    change(&mut world, changed);
    assert!(world.answers.is_empty());
    world.transfer(&stalled);
    world.report(&stalled);
    for read in &reads {
        check(&mut world, read);
    }
    world.check();
    world.run();
    for read in [&first, &last] {
        assert_eq!(world.read_result(&read.header), Some((data.clone(), true)));
    }
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn waiting_reads_of_an_unlinked_file_do_not_strand_those_behind() {
    reads_of_a_changed_file(
        |world, _| world.unlink(ROOT, "changed").unwrap(),
        |world, read| {
            let answer = world.take(&read.header).expect("the read is answered");
            assert_eq!(answer.status(), Status::STALE_HANDLE);
        },
    );
}

#[test]
fn waiting_reads_of_a_truncated_file_do_not_strand_those_behind() {
    reads_of_a_changed_file(
        |world, inode| assert_eq!(world.truncate(inode, 0).unwrap().size.get(), 0),
        |world, read| {
            let answer = world.take(&read.header).expect("the read is answered");
            assert_eq!((answer.status(), answer.io().length.get()), (Status::OK, 0));
        },
    );
}

/// A read that needs more room than there is waits; one behind it needs no more than there is.
#[test]
fn a_cancelled_request_lets_those_behind_it_have_the_room() {
    let mut world = narrow(2);
    let pieces = world.create(ROOT, "pieces").unwrap();
    let other = world.create(ROOT, "other").unwrap();
    let data = pattern(1, 2 * BLOCK);
    world.write(pieces, 0, &data[..BLOCK], 0).unwrap();
    world.write(other, 0, &pattern(2, BLOCK), 0).unwrap();
    world.write(pieces, BLOCK as u64, &data[BLOCK..], 0).unwrap();
    let (first, stalled) = stall(&mut world, other, 2);
    let wide = world.read_message(pieces, 0, data.len(), 3, 0);
    world.send_read(&wide);
    let behind = send_waiting(&mut world, other, 4);
    world.check();
    world.send_cancel(&wide.header);
    assert_eq!(world.take(&wide.header).unwrap().status(), Status::CANCELLED);
    assert_eq!(world.pending.len(), 1, "the other read goes on beside the stalled one");
    world.check();
    world.run();
    assert_eq!(world.read_result(&behind.header), Some((pattern(2, BLOCK), true)));
    world.transfer(&stalled);
    world.report(&stalled);
    assert_eq!(world.read_result(&first.header), Some((pattern(2, BLOCK), true)));
    assert!(world.cores[0].is_quiet());
}

#[test]
fn grants_are_bounded_and_requests_queue() {
    let mut world = World::new(1, 1, 4096);
    world.cores[0].config.grants_max = 4;
    world.cores[0].parts_max = 4;
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(1, 10 * BLOCK);
    world.write(file, 0, &data, 0).unwrap();
    let reads: Vec<_> = (0..10u16)
        .map(|slot| {
            let offset = u64::from(slot) * BLOCK as u64;
            let read = world.read_message(file, offset, BLOCK, slot, 0);
            world.send_read(&read);
            read
        })
        .collect();
    assert_eq!(world.pending.len(), 4);
    world.execute(2);
    assert_eq!(world.pending.len(), 4);
    world.run();
    for (index, read) in reads.iter().enumerate() {
        let expected = data[index * BLOCK..(index + 1) * BLOCK].to_vec();
        assert_eq!(world.read_result(&read.header).unwrap().0, expected);
    }
    assert!(world.cores[0].is_quiet());
}
