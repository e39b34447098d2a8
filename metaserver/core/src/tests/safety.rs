//! What must hold when things go wrong: repeated requests, restarts, stalled and lost grants.

use gannet_proto::operations::{io_flags, name_operation};
use gannet_proto::{Inode, Status};
use zerocopy::little_endian::{U32, U64};

use super::world::{BLOCK, Random, World, pattern};
use crate::{Core, CoreConfig, Lsn, Nanos};

const ROOT: Inode = Inode::ROOT;

#[test]
fn a_change_takes_effect_once() {
    let mut world = World::new(1, 1, 4096);
    let mut request = world.name_message(name_operation::MKDIR, ROOT, ROOT, 3);
    world.send_name(&request, b"d", b"");
    let first = world.wait(&request.header);
    assert_eq!(first.status(), Status::OK);
    request.header.attempt = U32::new(2);
    world.send_name(&request, b"d", b"");
    let again = world.wait(&request.header);
    assert_eq!(again.status(), Status::OK, "answered from memory, not EXISTS");
    assert_eq!(again.attributes(), first.attributes());
    // A failed change kept no reply and is executed again.
    let mut absent = world.name_message(name_operation::UNLINK, ROOT, ROOT, 3);
    world.send_name(&absent, b"absent", b"");
    assert_eq!(world.wait(&absent.header).status(), Status::NOT_FOUND);
    absent.header.attempt = U32::new(2);
    world.send_name(&absent, b"absent", b"");
    assert_eq!(world.wait(&absent.header).status(), Status::NOT_FOUND);
    // A sequence out of line.
    absent.header.sequence = U64::new(absent.header.sequence.get() + 5);
    world.send_name(&absent, b"absent", b"");
    assert_eq!(world.wait(&absent.header).status(), Status::BAD_SEQUENCE);
}

#[test]
fn kept_replies_survive_a_restart() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let mut unlink = world.name_message(name_operation::UNLINK, ROOT, ROOT, 4);
    world.send_name(&unlink, b"f", b"");
    assert_eq!(world.wait(&unlink.header).status(), Status::OK);
    let other = world.create(ROOT, "g").unwrap();
    let data = pattern(1, 100);
    let mut append = world.write_message(other, 0, &data, 5, io_flags::APPEND);
    world.send_write(&append);
    let appended = world.wait(&append.header);
    let mut create = world.name_message(name_operation::CREATE, ROOT, ROOT, 6);
    world.send_name(&create, b"h", b"");
    let created = world.wait(&create.header);
    let before = world.cores[0].dump_replies();
    assert!(world.restart(), "the session is resumed");
    assert_eq!(world.cores[0].dump_replies(), before);
    world.up_all();
    for header in [&mut unlink.header, &mut append.header, &mut create.header] {
        header.attempt = U32::new(2);
    }
    let records = world.sinks[0].log.len();
    world.send_name(&unlink, b"f", b"");
    assert_eq!(world.wait(&unlink.header).status(), Status::OK);
    world.send_write(&append);
    assert_eq!(world.wait(&append.header).io().offset, appended.io().offset);
    world.send_name(&create, b"h", b"");
    assert_eq!(world.wait(&create.header).attributes(), created.attributes());
    assert_eq!(world.sinks[0].log.len(), records, "nothing was done twice");
    assert_eq!(world.read(other, 0, 1000), (data, true));
    // Slots go on after sequences that left no record.
    world.sequences[0][4] += 3;
    world.sequences[0][0] += 2;
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
    world.create(ROOT, "i").unwrap();
    world.check();
    world.check_replay();
}

#[test]
fn an_ended_session_is_forgotten_for_good() {
    let mut world = World::new(1, 1, 4096);
    world.create(ROOT, "f").unwrap();
    let (now, index) = (world.now(), world.indexes[0]);
    assert_eq!(world.cores[0].session_open(now, world.session, 78), Err(Status::ACCESS));
    world.cores[0].session_end(now, index, &mut world.sinks[0]);
    assert!(world.cores[0].sessions().next().is_none());
    assert!(!world.restart(), "the log does not know it any more");
    assert_eq!(world.cores[0].dump_replies(), "");
}

#[test]
fn a_session_that_ends_aborts_its_writes() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(1, 4 * BLOCK), 0).unwrap();
    let write = world.write_message(file, 10, &pattern(2, BLOCK), 1, 0);
    world.send_write(&write);
    let queued = world.write_message(file, 20, &pattern(3, BLOCK), 2, 0);
    world.send_write(&queued);
    let granted = world.pending.clone();
    assert_eq!(granted.len(), 1);
    let (now, index) = (world.now(), world.indexes[0]);
    // The revocation comes too late: the transfer is done.
    world.pending.clear();
    world.cores[0].session_end(now, index, &mut world.sinks[0]);
    world.collect();
    assert!(!world.cores[0].is_quiet(), "the grant is out");
    world.transfer(&granted[0]);
    world.notice(&granted[0], Status::OK);
    assert!(world.cores[0].is_quiet());
    assert!(world.answers.is_empty());
    world.instance += 1;
    world.sequences.iter_mut().flatten().for_each(|sequence| *sequence = 0);
    world.open();
    assert_eq!(world.read(file, 0, 1 << 16).0, pattern(1, 4 * BLOCK));
    world.check();
    world.check_replay();
}

/// H7: the read of the old content is stalled while the file is overwritten again and again.
#[test]
fn a_stalled_read_keeps_its_blocks_and_no_others() {
    let blocks = 1024;
    let mut world = World::new(1, 1, blocks);
    let file = world.create(ROOT, "f").unwrap();
    let old = pattern(1, 8 * BLOCK);
    world.write(file, 0, &old, 0).unwrap();
    let read = world.read_message(file, 0, old.len(), 7, 0);
    world.send_read(&read);
    let stalled: Vec<_> = world.pending.drain(..).collect();
    assert_eq!(stalled.len(), 1);
    // Many times the store: everything but the stalled read's blocks is used again.
    for step in 0..4 * blocks / 8 {
        world.write(file, 0, &pattern(step + 2, 8 * BLOCK), 0).unwrap();
    }
    assert_eq!(world.cores[0].space().blocks_used, 16);
    world.check();
    world.transfer(&stalled[0]);
    world.report(&stalled[0]);
    assert_eq!(world.read_result(&read.header), Some((old, true)));
    assert_eq!(world.cores[0].space().blocks_used, 8);
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn a_stalled_read_keeps_an_unlinked_file() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    let old = pattern(1, 100 * BLOCK / 2);
    world.write(file, 0, &old, 0).unwrap();
    let read = world.read_message(file, 0, old.len(), 7, 0);
    world.send_read(&read);
    let second = world.read_message(file, 0, old.len(), 8, 0);
    world.send_read(&second);
    let stalled: Vec<_> = world.pending.drain(..).collect();
    world.unlink(ROOT, "f").unwrap();
    let other = world.create(ROOT, "g").unwrap();
    for step in 0..60 {
        world.write(other, 0, &pattern(step, 50 * BLOCK), 0).unwrap();
    }
    world.check();
    world.transfer(&stalled[0]);
    world.report(&stalled[0]);
    assert_eq!(world.read_result(&read.header), Some((old.clone(), true)));
    assert_eq!(world.cores[0].space().blocks_used, 100, "the other read keeps them still");
    for step in 0..60 {
        world.write(other, 0, &pattern(step, 50 * BLOCK), 0).unwrap();
    }
    world.transfer(&stalled[1]);
    world.report(&stalled[1]);
    assert_eq!(world.read_result(&second.header), Some((old, true)));
    assert_eq!(world.cores[0].space().blocks_used, 50);
    world.check();
}

/// H7 across a restart: nothing is allocated before the data server has drained.
#[test]
fn after_a_restart_nothing_is_allocated_before_the_drain() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    let old = pattern(1, 8 * BLOCK);
    world.write(file, 0, &old, 0).unwrap();
    let read = world.read_message(file, 0, old.len(), 7, 0);
    world.send_read(&read);
    let stalled: Vec<_> = world.pending.drain(..).collect();
    world.write(file, 0, &pattern(2, 8 * BLOCK), 0).unwrap();
    assert!(world.restart());
    let write = world.write_message(file, 0, &pattern(3, 8 * BLOCK), 1, 0);
    world.send_write(&write);
    assert!(world.pending.is_empty() && world.take(&write.header).is_none());
    // The stalled transfer of the old term still finds its content.
    world.transfer(&stalled[0]);
    let start = 7 * super::world::SLOT_BYTES;
    assert_eq!(world.memory[start..start + old.len()], old);
    world.up_all();
    assert_eq!(world.pending.len(), 1);
    assert_eq!(world.pending[0].grant.term.get(), 2);
    assert_eq!(world.pending[0].grant.number.get(), 1);
    assert_eq!(world.wait(&write.header).status(), Status::OK);
    world.check();
}

#[test]
fn requests_for_an_absent_data_server_wait_and_then_fail() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(1, BLOCK), 0).unwrap();
    world.down(0, 0);
    assert_eq!(world.cores[0].targets().count(), 0);
    let read = world.read_message(file, 0, 10, 2, 0);
    world.send_read(&read);
    let write = world.write_message(file, 0, b"x", 3, 0);
    world.send_write(&write);
    assert_eq!(world.cores[0].deadline(), Nanos(world.now_ns + 1_000_000));
    world.now_ns += 999_999;
    let now = world.now();
    world.cores[0].expire(now, &mut world.sinks[0]);
    world.collect();
    assert!(world.answers.is_empty());
    let late = world.read_message(file, 0, 10, 4, 0);
    world.send_read(&late);
    world.now_ns += 1;
    let now = world.now();
    world.cores[0].expire(now, &mut world.sinks[0]);
    world.collect();
    assert_eq!(world.take(&read.header).unwrap().status(), Status::TIMED_OUT);
    assert_eq!(world.take(&write.header).unwrap().status(), Status::TIMED_OUT);
    world.up(0, 0);
    world.run();
    assert_eq!(world.read_result(&late.header).unwrap().0, pattern(1, BLOCK)[..10]);
    assert_eq!(world.cores[0].deadline(), Nanos(u64::MAX));
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn lost_grants_keep_their_blocks_until_the_data_server_is_back() {
    let mut world = World::new(1, 2, 1024);
    let file = world.create(ROOT, "f").unwrap();
    let old = pattern(1, 8 * BLOCK);
    world.write(file, 0, &old, 0).unwrap();
    let read = world.read_message(file, 0, old.len(), 2, 0);
    world.send_read(&read);
    let write = world.write_message(file, 0, &pattern(2, 8 * BLOCK), 3, 0);
    world.send_write(&write);
    assert_eq!(world.pending.len(), 4);
    let lost = world.servers[0].id;
    world.down(0, 0);
    assert!(world.answers.is_empty(), "other grants are still out");
    let (gone, mut rest): (Vec<_>, Vec<_>) =
        world.pending.drain(..).partition(|pending| pending.target == lost);
    assert_eq!((gone.len(), rest.len()), (2, 2));
    for pending in rest.drain(..) {
        world.transfer(&pending);
        world.report(&pending);
    }
    assert_eq!(world.take(&read.header).unwrap().status(), Status::RETRY);
    assert_eq!(world.take(&write.header).unwrap().status(), Status::RETRY);
    // What the lost grants name, old and new, is in use: 8 mapped and 8 staged.
    assert_eq!(world.cores[0].space().blocks_used, 16);
    world.check();
    world.unlink(ROOT, "f").unwrap();
    assert_eq!(world.cores[0].space().blocks_used, 16);
    let report = world.cores[0].counters().grants_unknown;
    world.notice(&gone[0], Status::OK);
    assert_eq!(world.cores[0].counters().grants_unknown, report + 1);
    world.up(0, 0);
    assert_eq!(world.cores[0].space().blocks_used, 0);
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn the_next_attempt_takes_over_and_the_last_one_never_commits() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    let mut write = world.write_message(file, 5, &pattern(1, BLOCK), 3, 0);
    world.send_write(&write);
    let first: Vec<_> = world.pending.drain(..).collect();
    // The same attempt again is ignored.
    world.send_write(&write);
    assert!(world.pending.is_empty());
    write.header.attempt = U32::new(2);
    world.send_write(&write);
    assert!(world.pending.is_empty(), "its blocks are held until the first attempt has ended");
    world.transfer(&first[0]);
    world.notice(&first[0], Status::OK);
    assert_eq!(world.stat(file).unwrap().size.get(), 0, "no effect of the first attempt");
    assert_eq!(world.wait(&write.header).status(), Status::OK);
    assert_eq!(world.stat(file).unwrap().size.get(), BLOCK as u64 + 5);
    let mut read = world.read_message(file, 0, BLOCK, 2, 0);
    world.send_read(&read);
    let stale: Vec<_> = world.pending.drain(..).collect();
    read.header.attempt = U32::new(2);
    world.send_read(&read);
    world.run();
    assert!(world.read_result(&read.header).is_some());
    world.notice(&stale[0], Status::SESSION_GONE);
    assert!(world.answers.is_empty());
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn failed_grants_are_answered_by_what_the_host_knows() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(1, BLOCK), 0).unwrap();
    let table = [
        (Status::SESSION_GONE, Some(Status::RETRY), Status::RETRY),
        (Status::STALE_EPOCH, Some(Status::RETRY), Status::RETRY),
        (Status::UNKNOWN_STORE, Some(Status::RETRY), Status::RETRY),
        (Status::IO, None, Status::IO),
        (Status::ACCESS_REFUSED, None, Status::ACCESS_REFUSED),
    ];
    for (failure, read_answer, write_answer) in table {
        let read = world.read_message(file, 0, 100, 2, 0);
        world.send_read(&read);
        let pending = world.pending.remove(0);
        world.notice(&pending, failure);
        assert_eq!(world.take(&read.header).map(|answer| answer.status()), read_answer);
        let read = world.read_message(file, 0, 100, 3, io_flags::COMPLETE_BY_METASERVER);
        world.send_read(&read);
        let pending = world.pending.remove(0);
        world.notice(&pending, failure);
        assert_eq!(world.take(&read.header).unwrap().status(), write_answer);
        let write = world.write_message(file, 0, b"abc", 4, 0);
        world.send_write(&write);
        let pending = world.pending.remove(0);
        world.notice(&pending, failure);
        assert_eq!(world.take(&write.header).unwrap().status(), write_answer);
        world.check();
    }
    assert_eq!(world.read(file, 0, BLOCK).0, pattern(1, BLOCK));
    assert!(world.cores[0].is_quiet());
}

#[test]
fn cancelled_requests_end_and_say_how() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(1, 2 * BLOCK), 0).unwrap();
    // Granted, and revoked in time.
    let write = world.write_message(file, 1, b"one", 2, 0);
    world.send_write(&write);
    let queued = world.write_message(file, 2, b"two", 3, 0);
    world.send_write(&queued);
    world.send_cancel(&queued.header);
    assert_eq!(world.take(&queued.header).unwrap().status(), Status::CANCELLED);
    world.send_cancel(&write.header);
    assert_eq!(world.take(&write.header).unwrap().status(), Status::CANCELLED);
    assert_eq!(world.read(file, 0, 2 * BLOCK).0, pattern(1, 2 * BLOCK));
    // Granted, and too late.
    let write = world.write_message(file, 0, b"three", 2, 0);
    world.send_write(&write);
    let granted = world.pending.remove(0);
    world.send_cancel(&write.header);
    world.transfer(&granted);
    world.notice(&granted, Status::OK);
    assert_eq!(world.take(&write.header).unwrap().status(), Status::OK);
    let read = world.read_message(file, 0, 100, 2, 0);
    world.send_read(&read);
    world.send_cancel(&read.header);
    assert_eq!(world.take(&read.header).unwrap().status(), Status::CANCELLED);
    // A request that is over, or was never made.
    world.send_cancel(&read.header);
    world.send_cancel(&queued.header);
    assert!(world.answers.is_empty());
    // The connection to the host broke off: what was posted may still be on its way.
    for (ended, answer) in [
        (Status::REVOKED, Status::CANCELLED),
        (Status::UNKNOWN_STORE, Status::CANCELLED),
        (Status::SESSION_GONE, Status::RETRY),
        (Status::STALE_EPOCH, Status::RETRY),
    ] {
        let read = world.read_message(file, 0, 100, 2, 0);
        world.send_read(&read);
        let write = world.write_message(file, 0, b"lost", 3, 0);
        world.send_write(&write);
        for header in [read.header, write.header] {
            let granted = world.pending.remove(0);
            world.send_cancel(&header);
            world.notice(&granted, ended);
            assert_eq!(world.take(&header).unwrap().status(), answer, "{ended}");
        }
    }
    // While its data server is away, only RETRY lets the host cut it off.
    let read = world.read_message(file, 0, 100, 2, 0);
    world.send_read(&read);
    world.pending.clear();
    world.send_cancel(&read.header);
    world.down(0, 0);
    assert_eq!(world.take(&read.header).unwrap().status(), Status::RETRY);
    world.up(0, 0);
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn a_lost_generation_reads_as_an_error_until_it_is_overwritten() {
    let mut world = World::new(1, 1, 1024);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(1, 2 * BLOCK), 0).unwrap();
    world.down(0, 0);
    world.servers[0].stores[0].info.generation = U32::new(2);
    let (uuid, info, now) = (world.servers[0].uuid, world.servers[0].stores[0].info, world.now());
    world.cores[0].enroll(now, uuid, &[info], &mut world.sinks[0]);
    world.up(0, 0);
    let read = world.read_message(file, 0, 10, 2, 0);
    world.send_read(&read);
    assert_eq!(world.take(&read.header).unwrap().status(), Status::IO);
    assert_eq!(world.write(file, 10, b"edge", 0).unwrap_err(), Status::IO);
    world.write(file, 0, &pattern(2, 2 * BLOCK), 0).unwrap();
    assert_eq!(world.read(file, 0, 2 * BLOCK).0, pattern(2, 2 * BLOCK));
    world.check();
    world.check_replay();
}

/// One data server confirms its part of a write, and loses it before the other confirms its own.
#[test]
fn a_write_whose_part_was_lost_meanwhile_is_not_committed() {
    let mut world = World::new(1, 2, 1024);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(1, 8 * BLOCK);
    let mut write = world.write_message(file, 0, &data, 3, 0);
    world.send_write(&write);
    let lossy = world.servers[0].id;
    let first = world.pending.iter().position(|pending| pending.target == lossy).unwrap();
    world.execute(first);
    let stalled: Vec<_> = world.pending.drain(..).collect();
    assert_eq!(stalled.len(), 1);
    assert_ne!(stalled[0].target, lossy);
    world.down(0, 0);
    world.servers[0].stores[0].info.generation = U32::new(2);
    world.servers[0].stores[0].bytes.fill(0);
    let (uuid, info, now) = (world.servers[0].uuid, world.servers[0].stores[0].info, world.now());
    world.cores[0].enroll(now, uuid, &[info], &mut world.sinks[0]);
    world.up(0, 0);
    assert!(world.answers.is_empty(), "a grant is still out");
    let records = world.sinks[0].log.len();
    world.transfer(&stalled[0]);
    world.notice(&stalled[0], Status::OK);
    assert_eq!(world.take(&write.header).unwrap().status(), Status::RETRY);
    assert_eq!(world.sinks[0].log.len(), records, "nothing is committed");
    assert_eq!(world.stat(file).unwrap().size.get(), 0);
    assert_eq!(world.cores[0].space().blocks_used, 0);
    world.check();
    assert!(world.cores[0].is_quiet());
    write.header.attempt = U32::new(2);
    world.send_write(&write);
    assert_eq!(world.wait(&write.header).status(), Status::OK);
    assert_eq!(world.read(file, 0, data.len()), (data, true));
    world.check();
    world.check_replay();
}

/// H14: what an answer shows can be rebuilt from the records that it waited for.
#[test]
fn answers_show_nothing_that_a_crash_could_take_back() {
    let mut world = World::new(1, 2, 4096);
    let mut random = Random(0x1234_5678);
    let directory = world.mkdir(ROOT, "d").unwrap();
    let names = ["a", "b", "c", "e"];
    for step in 0..400 {
        world.now_ns += 10;
        let (parent, name) = (
            *[ROOT, directory].get(random.below(2) as usize).unwrap(),
            names[random.below(4) as usize],
        );
        match random.below(6) {
            0 => drop(world.create(parent, name)),
            1 => drop(world.unlink(parent, name)),
            2 => drop(world.rename((parent, name), (ROOT, names[random.below(4) as usize]), 0)),
            3 => {
                if let Ok(file) = world.lookup(parent, name) {
                    let _ = world.write(file, random.below(9000), &pattern(step, 700), 0);
                }
            }
            4 => {
                if let Ok(file) = world.lookup(parent, name) {
                    let _ = world.truncate(file, random.below(9000));
                }
            }
            _ => {}
        }
        let request = world.name_message(name_operation::LOOKUP, parent, parent, 0);
        world.history.clear();
        world.send_name(&request, name.as_bytes(), b"");
        let answer = world.wait(&request.header);
        let (after, _) = world.history.last().unwrap().clone();
        let mut copy = Core::new(CoreConfig { reactor: 0, ..world.config.clone() });
        for record in &world.sinks[0].log[..after.0 as usize] {
            copy.replay(record).unwrap();
        }
        let found = copy.entry(parent, name.as_bytes());
        match answer.status() {
            Status::OK => {
                let node = copy.nodes.get(&found.unwrap().inode).unwrap();
                assert_eq!(node.attributes(), answer.attributes());
            }
            Status::NOT_FOUND => assert_eq!(found, None),
            other => panic!("{other}"),
        }
    }
    // Grants wait for the map that they were built from, and for what freed the blocks they fill.
    let file = world.create(ROOT, "grants").unwrap();
    world.write(file, 0, &pattern(1, BLOCK), 0).unwrap();
    let committed = Lsn(world.sinks[0].log.len() as u64);
    let read = world.read_message(file, 0, 10, 2, 0);
    world.send_read(&read);
    assert_eq!(world.pending[0].after, committed);
    world.run();
}
