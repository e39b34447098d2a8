//! Open files: what they grant, and that they outlive their names.

use gannet_proto::operations::{
    NameRequest, RequestHeader, attribute_mask, inode_operation, io_flags, name_flags,
    name_operation,
};
use gannet_proto::{Inode, Status};
use zerocopy::little_endian::U32;

use super::world::{World, pattern};
use crate::opens::OPENS_MAX;

const ROOT: Inode = Inode::ROOT;
use inode_operation::{CLOSE, OPEN_READ, OPEN_READ_WRITE, OPEN_WRITE};

fn used(world: &World) -> u64 {
    world.cores.iter().map(|core| core.space().blocks_used).sum()
}

/// An open file with content, and two directories. Its names may lie on another reactor than the inode.
fn named(world: &mut World, way: usize, number: u32) -> (Inode, Inode, Inode, Vec<u8>) {
    let home = world.mkdir(ROOT, &format!("home{way}")).unwrap();
    let away = world.mkdir(ROOT, &format!("away{way}")).unwrap();
    let file = world.create(home, "f").unwrap();
    let data = pattern(way as u64, 30_000);
    world.write(file, 0, &data, 0).unwrap();
    world.open_file(file, OPEN_READ_WRITE, number).unwrap();
    (home, away, file, data)
}

/// Takes its last name, by one of the ways in which that goes.
fn take_name(world: &mut World, way: usize, (home, away): (Inode, Inode)) {
    match way {
        0 => world.unlink(home, "f").unwrap(),
        1 => {
            world.create(home, "other").unwrap();
            world.rename((home, "other"), (home, "f"), 0).unwrap();
        }
        2 => {
            world.rename((home, "f"), (away, "f"), 0).unwrap();
            world.unlink(away, "f").unwrap();
        }
        _ => {
            world.create(away, "other").unwrap();
            world.rename((away, "other"), (home, "f"), 0).unwrap();
        }
    }
}

/// A file with content that has no name any more.
fn nameless(world: &mut World, way: usize, number: u32) -> (Inode, Vec<u8>) {
    let (home, away, file, data) = named(world, way, number);
    take_name(world, way, (home, away));
    (file, data)
}
const WAYS: usize = 4;

#[test]
fn an_open_file_outlives_its_names() {
    for reactors in [1, 2] {
        for way in 0..WAYS {
            let mut world = World::new(reactors, 2, 8192);
            let before = used(&world);
            let (file, data) = nameless(&mut world, way, 1);
            world.open_file(file, OPEN_READ, 2).unwrap();
            world.open_file(file, OPEN_READ, 2).unwrap();
            assert_eq!(world.open_file(file, CLOSE, 1).unwrap().links.get(), 0);
            assert_eq!(world.read(file, 0, 40_000), (data.clone(), true), "way {way}");
            world.write(file, 0, b"more", io_flags::APPEND).unwrap();
            world.write(file, 3, &pattern(9, 5_000), 0).unwrap();
            world.truncate(file, 20_000).unwrap();
            assert_eq!(world.read(file, 10_000, 40_000).0, data[10_000..20_000]);
            assert!(used(&world) > before);
            world.check();
            world.check_replay();
            world.open_file(file, CLOSE, 2).unwrap();
            assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "way {way}");
            assert_eq!(used(&world), before, "its blocks are free");
            assert_eq!(world.open_file(file, CLOSE, 2).map(|_| ()), Ok(()), "once more");
            assert_eq!(world.open_file(file, OPEN_READ, 3), Err(Status::STALE_HANDLE));
            world.check();
            world.check_replay();
            assert!(world.cores.iter().all(crate::Core::is_quiet));
        }
    }
}

#[test]
fn without_an_open_a_file_goes_with_its_name() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    world.open_file(file, OPEN_READ, 1).unwrap();
    let records = world.sinks[0].log.len();
    world.open_file(file, CLOSE, 1).unwrap();
    assert_eq!(world.sinks[0].log.len(), records, "an open leaves no record");
    world.unlink(ROOT, "f").unwrap();
    assert_eq!(world.sinks[0].log.len(), records + 1);
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
}

#[test]
fn an_open_ends_with_its_session() {
    for reactors in [1, 2] {
        for way in 0..WAYS {
            let mut world = World::new(reactors, 1, 8192);
            let before = used(&world);
            let (file, _) = nameless(&mut world, way, 1);
            let now = world.now();
            for reactor in 0..world.cores.len() {
                let (core, sink) = (&mut world.cores[reactor], &mut world.sinks[reactor]);
                core.session_disconnected(now, world.indexes[reactor]);
                core.session_end(now, world.indexes[reactor], sink);
            }
            world.run();
            assert_eq!(used(&world), before);
            world.open();
            assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
            world.check();
            world.check_replay();
        }
    }
}

/// Nobody else is awaited when all hosts that the log knows have told what they have open.
#[test]
fn what_is_not_open_goes_when_all_hosts_have_told() {
    for reactors in [1, 2] {
        for way in 0..WAYS {
            for returns in [true, false] {
                let mut world = World::new(reactors, 1, 8192);
                let before = used(&world);
                let (file, data) = nameless(&mut world, way, 1);
                world.restart();
                world.up_all();
                if returns {
                    world.declare(file, OPEN_READ_WRITE, 1);
                }
                assert_eq!(world.read(file, 0, 40_000), (data.clone(), true), "not all have told");
                world.reclaim_complete();
                if returns {
                    assert_eq!(world.read(file, 0, 40_000), (data, true), "way {way}");
                    world.open_file(file, CLOSE, 1).unwrap();
                }
                assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "way {way}");
                assert_eq!(used(&world), before);
                world.check();
            }
        }
    }
}

/// An open leaves no record, but the log has to tell that its host may come back.
#[test]
fn a_start_waits_for_a_host_that_has_only_opened() {
    let mut world = World::new(1, 1, 8192);
    let file = world.create(ROOT, "file").unwrap();
    let (now, maker) = (world.now(), world.indexes[0]);
    world.cores[0].session_end(now, maker, &mut world.sinks[0]);
    assert!(!world.open(), "a session that the log does not know");
    let commits = world.cores[0].counters().commits;
    world.open_file(file, OPEN_READ_WRITE, 1).unwrap();
    world.open_file(file, OPEN_READ_WRITE, 2).unwrap();
    assert_eq!(world.cores[0].counters().commits, commits + 1, "told once");
    assert!(world.restart(), "the log knows it");
    world.up_all();
    // Nobody has told anything yet, so the file is taken for open.
    world.unlink(ROOT, "file").unwrap();
    assert!(world.stat(file).is_ok());
    world.declare(file, OPEN_READ_WRITE, 1);
    world.reclaim_complete();
    world.open_file(file, CLOSE, 1).unwrap();
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
}

#[test]
fn after_a_restart_hosts_say_what_they_have_open() {
    for reactors in [1, 2] {
        for way in 0..WAYS {
            for returns in [true, false] {
                let mut world = World::new(reactors, 1, 8192);
                let before = used(&world);
                let (file, data) = nameless(&mut world, way, 1);
                world.restart();
                world.up_all();
                world.check();
                if returns {
                    world.declare(file, OPEN_READ_WRITE, 1);
                }
                assert_eq!(world.read(file, 0, 40_000), (data.clone(), true));
                world.end_reclaim();
                if returns {
                    assert_eq!(world.read(file, 0, 40_000), (data, true), "way {way}");
                    // And once more: the record is there, and the host comes back again.
                    world.restart();
                    world.up_all();
                    world.declare(file, OPEN_READ_WRITE, 1);
                    world.open_file(file, CLOSE, 1).unwrap();
                    assert!(world.stat(file).is_ok(), "others may come back still");
                    world.end_reclaim();
                }
                assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "way {way}");
                assert_eq!(used(&world), before);
                world.check();
                world.check_replay();
            }
        }
    }
}

/// Whoever takes the last name away, the host that has the file open may not have come back yet.
#[test]
fn what_loses_its_name_soon_after_a_restart_waits_for_who_had_it_open() {
    for reactors in [1, 2] {
        for way in 0..WAYS {
            for returns in [true, false] {
                let mut world = World::new(reactors, 1, 8192);
                let before = used(&world);
                let (home, away, file, data) = named(&mut world, way, 1);
                world.restart();
                world.up_all();
                let later = world.create(ROOT, "made later").unwrap();
                take_name(&mut world, way, (home, away));
                world.check();
                world.check_replay();
                assert_eq!(world.stat(file).unwrap().links.get(), 0, "way {way}");
                world.unlink(ROOT, "made later").unwrap();
                assert_eq!(world.stat(later), Err(Status::STALE_HANDLE), "nobody can have it open");
                if returns {
                    world.declare(file, OPEN_READ_WRITE, 1);
                }
                world.end_reclaim();
                if returns {
                    assert_eq!(world.read(file, 0, 40_000), (data, true), "way {way}");
                    world.open_file(file, CLOSE, 1).unwrap();
                }
                assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "way {way}");
                assert_eq!(used(&world), before);
                world.check();
                world.check_replay();
            }
        }
    }
}

/// A crash between the record that keeps a file and the one that takes its name.
#[test]
fn a_file_that_was_kept_in_vain_goes_with_its_name() {
    let mut world = World::new(1, 1, 4096);
    let before = used(&world);
    let (file, _) = nameless(&mut world, 0, 1);
    world.sinks[0].log.pop();
    world.restart();
    world.up_all();
    let home = world.lookup(ROOT, "home0").unwrap();
    assert_eq!(world.lookup(home, "f"), Ok(file));
    world.end_reclaim();
    world.unlink(home, "f").unwrap();
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
    assert_eq!(used(&world), before);
    world.check();
    world.check_replay();
}

#[test]
fn an_open_grants_what_it_was_made_for() {
    const OTHER: (u32, u32) = (12, 98);
    // What for, the file's mode for others, how it ends.
    let table = [
        (OPEN_READ, 0o604, Ok(())),
        (OPEN_READ, 0o662, Err(Status::ACCESS)),
        (OPEN_WRITE, 0o602, Ok(())),
        (OPEN_WRITE, 0o664, Err(Status::ACCESS)),
        (OPEN_READ_WRITE, 0o606, Ok(())),
        (OPEN_READ_WRITE, 0o664, Err(Status::ACCESS)),
        (OPEN_READ_WRITE, 0o662, Err(Status::ACCESS)),
    ];
    let mut world = World::new(1, 1, 4096);
    let chmod = |world: &mut World, file, mode| {
        let mut request = world.attributes_message(file, 0, 0);
        (request.mask, request.mode) = (U32::new(attribute_mask::MODE), U32::new(mode));
        world.send_attributes(&request);
        World::result(world.wait(&request.header)).unwrap();
    };
    for (number, (kind, mode, expected)) in table.into_iter().enumerate() {
        let case = format!("{kind} {mode:o}");
        let file = world.create(ROOT, &format!("f{number}")).unwrap();
        chmod(&mut world, file, mode);
        world.act_as(OTHER.0, OTHER.1, &[]);
        assert_eq!(world.open_file(file, kind, 5).map(drop), expected, "{case}");
        world.act_as(0, 0, &[]);
        chmod(&mut world, file, 0o600);
        world.act_as(OTHER.0, OTHER.1, &[]);
        let opened_for = |right| expected.is_ok() && (kind == right || kind == OPEN_READ_WRITE);
        let granted = |right| if opened_for(right) { Ok(()) } else { Err(Status::ACCESS) };
        let read = |world: &mut World| {
            let request = world.read_message(file, 0, 1, 2, 0);
            world.send_read(&request);
            world.run();
            let status = world.take(&request.header).map(|answer| answer.status());
            match status {
                None | Some(Status::OK) => Ok(()),
                Some(status) => Err(status),
            }
        };
        assert_eq!(read(&mut world), granted(OPEN_READ), "{case}");
        assert_eq!(world.write(file, 0, b"x", 0).map(drop), granted(OPEN_WRITE), "{case}");
        assert_eq!(world.truncate(file, 9).map(drop), granted(OPEN_WRITE), "{case}");
        world.act_as(13, 98, &[]);
        assert_eq!(read(&mut world), Err(Status::ACCESS), "another user of the host {case}");
        world.act_as(OTHER.0, OTHER.1, &[]);
        world.open_file(file, CLOSE, 5).unwrap();
        assert_eq!(read(&mut world), Err(Status::ACCESS), "{case}");
        assert_eq!(world.write(file, 0, b"x", 0).unwrap_err(), Status::ACCESS, "{case}");
        world.act_as(0, 0, &[]);
        world.unlink(ROOT, &format!("f{number}")).unwrap();
        assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "{case}");
    }
    let directory = world.mkdir(ROOT, "d").unwrap();
    assert_eq!(world.open_file(directory, OPEN_READ, 7).map(drop), Ok(()));
    assert_eq!(world.open_file(directory, OPEN_WRITE, 8), Err(Status::IS_DIRECTORY));
    world.rmdir(ROOT, "d").unwrap();
    assert_eq!(world.stat(directory), Err(Status::STALE_HANDLE), "a directory is not kept");
    world.open_file(directory, CLOSE, 7).unwrap();
    world.check();
    world.check_replay();
}

/// What a host says of its opens counts for those who may, for files of the last run, and in time.
#[test]
fn what_is_declared_is_checked() {
    const OWNER: (u32, u32) = (10, 20);
    const OTHER: (u32, u32) = (12, 98);
    // Who declares, the file's mode, what it is declared for, whether it counts.
    let table = [
        (OWNER, 0o000, OPEN_READ_WRITE, true),
        (OTHER, 0o604, OPEN_READ, true),
        (OTHER, 0o602, OPEN_WRITE, true),
        (OTHER, 0o604, OPEN_READ_WRITE, false),
        (OTHER, 0o640, OPEN_READ, false),
        (OTHER, 0o666, CLOSE, false),
        ((0, 0), 0o000, OPEN_READ_WRITE, true),
    ];
    for late in [false, true] {
        for ((uid, gid), mode, kind, counts) in table {
            let mut world = World::new(1, 1, 4096);
            let file = world.create(ROOT, "f").unwrap();
            let mut request = world.attributes_message(file, 0, 0);
            (request.mask, request.mode) = (U32::new(attribute_mask::MODE), U32::new(mode));
            world.send_attributes(&request);
            World::result(world.wait(&request.header)).unwrap();
            world.restart();
            let case = format!("{uid} {mode:o} {kind} {late}");
            if late {
                world.end_reclaim();
            }
            let later = world.create(ROOT, "later").unwrap();
            world.act_as(uid, gid, &[]);
            world.declare(file, kind, 1);
            world.declare(later, OPEN_READ, 2);
            world.act_as(0, 0, &[]);
            world.unlink(ROOT, "later").unwrap();
            assert_eq!(world.stat(later), Err(Status::STALE_HANDLE), "{case}");
            world.unlink(ROOT, "f").unwrap();
            world.end_reclaim();
            assert_eq!(world.stat(file).is_ok(), counts && !late, "{case}");
            world.check_replay();
        }
    }
}

/// A CREATE that opens what it makes, or finds.
fn create_open(world: &mut World, name: &str, flags: u32, mode: u32) -> NameRequest {
    let mut request = world.name_message(name_operation::CREATE, ROOT, ROOT, 3);
    (request.flags, request.mode, request.open) = (U32::new(flags), U32::new(mode), U32::new(7));
    world.send_name(&request, name.as_bytes(), b"");
    request
}
const BOTH: u32 = name_flags::OPEN_READ | name_flags::OPEN_WRITE;

/// Whoever makes a file has it open for what it wanted, whatever its mode.
#[test]
fn what_is_made_is_open_for_who_made_it() {
    const OWNER: (u32, u32) = (12, 98);
    for mode in [0o444, 0o000, 0o200, 0o644] {
        let mut world = World::new(1, 1, 4096);
        world.act_as(0, 0, &[]);
        let mut request = world.attributes_message(ROOT, 0, 0);
        (request.mask, request.mode) = (U32::new(attribute_mask::MODE), U32::new(0o777));
        world.send_attributes(&request);
        World::result(world.wait(&request.header)).unwrap();
        world.act_as(OWNER.0, OWNER.1, &[]);
        let request = create_open(&mut world, "f", BOTH, mode);
        let made = World::result(world.wait(&request.header)).unwrap();
        let file = made.handle.inode();
        assert_eq!(made.mode.get() & 0o777, mode);
        assert!(world.write(file, 0, b"content", 0).is_ok());
        assert_eq!(world.truncate(file, 4).map(drop), Ok(()), "{mode:o}: a right of the open");
        assert_eq!(world.read(file, 0, 9).0, b"cont");
        // Whoever finds it opens it as the mode lets.
        let found = create_open(&mut world, "f", BOTH, 0);
        let expected = if mode & 0o600 == 0o600 { Ok(()) } else { Err(Status::ACCESS) };
        assert_eq!(World::result(world.wait(&found.header)).map(drop), expected, "{mode:o}");
        let taken = create_open(&mut world, "f", BOTH | name_flags::EXCLUSIVE, 0);
        assert_eq!(World::result(world.wait(&taken.header)), Err(Status::EXISTS));
        world.unlink(ROOT, "f").unwrap();
        assert_eq!(world.read(file, 0, 9).0, b"cont", "{mode:o}: it is open");
        world.open_file(file, CLOSE, 7).unwrap();
        assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
        world.check();
        world.check_replay();
    }
}

/// A host that missed the answer asks again: the file is made once, and open, also by a server that has
/// started anew.
#[test]
fn a_create_that_is_asked_again_has_made_and_opened_one_file() {
    for restarts in [false, true] {
        let mut world = World::new(1, 1, 4096);
        let request = create_open(&mut world, "f", BOTH | name_flags::EXCLUSIVE, 0o444);
        let made = World::result(world.wait(&request.header)).unwrap();
        let records = world.sinks[0].log.len();
        if restarts {
            world.restart();
        }
        let header = RequestHeader { attempt: U32::new(2), ..request.header };
        let again = NameRequest { header, ..request };
        world.send_name(&again, b"f", b"");
        assert_eq!(World::result(world.wait(&again.header)), Ok(made));
        assert_eq!(world.sinks[0].log.len(), records, "made once");
        world.end_reclaim();
        let file = made.handle.inode();
        world.unlink(ROOT, "f").unwrap();
        assert!(world.stat(file).is_ok(), "it is open");
        world.open_file(file, CLOSE, 7).unwrap();
        assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "opened once");
        world.check_replay();
    }
}

#[test]
fn a_session_has_so_many_files_open_at_most() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    world.restart();
    for number in 0..OPENS_MAX as u32 {
        world.declare(file, OPEN_READ, number);
    }
    let beyond = OPENS_MAX as u32;
    assert_eq!(world.open_file(file, OPEN_READ, beyond), Err(Status::TOO_MANY_OPEN));
    assert!(world.open_file(file, OPEN_WRITE, 0).is_ok(), "in place of the one before");
    let refused = create_open(&mut world, "g", BOTH, 0o600);
    assert_eq!(World::result(world.wait(&refused.header)), Err(Status::TOO_MANY_OPEN));
    assert_eq!(world.lookup(ROOT, "g"), Err(Status::NOT_FOUND), "it is not made either");
    world.open_file(file, CLOSE, 17).unwrap();
    assert!(world.open_file(file, OPEN_READ, beyond).is_ok());
}
