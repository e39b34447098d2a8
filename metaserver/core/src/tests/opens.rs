//! Open files: what they grant, and that they outlive their names.

use gannet_proto::operations::{
    Attributes, DeclareOpen, InodeRequest, attribute_mask, inode_operation, io_flags,
};
use gannet_proto::{Handle, Inode, Status};
use zerocopy::little_endian::{U16, U32};

use super::world::{World, pattern};
use crate::opens::OPENS_MAX;

const ROOT: Inode = Inode::ROOT;
use inode_operation::{CLOSE, OPEN_READ, OPEN_READ_WRITE, OPEN_WRITE};

fn open(world: &mut World, inode: Inode, kind: u16, number: u32) -> Result<Attributes, Status> {
    let request = InodeRequest {
        header: world.header(inode.shard().unwrap(), 0),
        handle: Handle::new(inode),
        operation: U16::new(kind),
        identity: U16::new(world.identity),
        open: U32::new(number),
    };
    world.send_inode(&request);
    World::result(world.wait(&request.header))
}

fn declare(world: &mut World, inode: Inode, kind: u16, number: u32) {
    let request = DeclareOpen {
        handle: Handle::new(inode),
        operation: U16::new(kind),
        identity: U16::new(world.identity),
        open: U32::new(number),
    };
    let reactor = usize::from(world.config.shard_map[usize::from(inode.shard().unwrap().0)]);
    world.cores[reactor].declare_open(world.indexes[reactor], &request);
}

fn used(world: &World) -> u64 {
    world.cores.iter().map(|core| core.space().blocks_used).sum()
}

fn end_reclaim(world: &mut World) {
    let now = world.now();
    for (core, sink) in world.cores.iter_mut().zip(&mut world.sinks) {
        core.end_reclaim(now, sink);
    }
    world.run();
}

/// A file with content that has no name any more, by one of the ways in which the last name goes.
/// Its names may lie on another reactor than the inode.
fn nameless(world: &mut World, way: usize, number: u32) -> (Inode, Vec<u8>) {
    let home = world.mkdir(ROOT, &format!("home{way}")).unwrap();
    let away = world.mkdir(ROOT, &format!("away{way}")).unwrap();
    let file = world.create(home, "f").unwrap();
    let data = pattern(way as u64, 30_000);
    world.write(file, 0, &data, 0).unwrap();
    open(world, file, OPEN_READ_WRITE, number).unwrap();
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
            open(&mut world, file, OPEN_READ, 2).unwrap();
            open(&mut world, file, OPEN_READ, 2).unwrap();
            assert_eq!(open(&mut world, file, CLOSE, 1).unwrap().links.get(), 0);
            assert_eq!(world.read(file, 0, 40_000), (data.clone(), true), "way {way}");
            world.write(file, 0, b"more", io_flags::APPEND).unwrap();
            world.write(file, 3, &pattern(9, 5_000), 0).unwrap();
            world.truncate(file, 20_000).unwrap();
            assert_eq!(world.read(file, 10_000, 40_000).0, data[10_000..20_000]);
            assert!(used(&world) > before);
            world.check();
            world.check_replay();
            open(&mut world, file, CLOSE, 2).unwrap();
            assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "way {way}");
            assert_eq!(used(&world), before, "its blocks are free");
            assert_eq!(open(&mut world, file, CLOSE, 2).map(|_| ()), Ok(()), "once more");
            assert_eq!(open(&mut world, file, OPEN_READ, 3), Err(Status::STALE_HANDLE));
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
    open(&mut world, file, OPEN_READ, 1).unwrap();
    let records = world.sinks[0].log.len();
    open(&mut world, file, CLOSE, 1).unwrap();
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
                    declare(&mut world, file, OPEN_READ_WRITE, 1);
                }
                assert_eq!(world.read(file, 0, 40_000), (data.clone(), true));
                end_reclaim(&mut world);
                if returns {
                    assert_eq!(world.read(file, 0, 40_000), (data, true), "way {way}");
                    // And once more: the record is there, and the host comes back again.
                    world.restart();
                    world.up_all();
                    declare(&mut world, file, OPEN_READ_WRITE, 1);
                    open(&mut world, file, CLOSE, 1).unwrap();
                    assert!(world.stat(file).is_ok(), "others may come back still");
                    end_reclaim(&mut world);
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
    end_reclaim(&mut world);
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
        assert_eq!(open(&mut world, file, kind, 5).map(drop), expected, "{case}");
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
        open(&mut world, file, CLOSE, 5).unwrap();
        assert_eq!(read(&mut world), Err(Status::ACCESS), "{case}");
        assert_eq!(world.write(file, 0, b"x", 0).unwrap_err(), Status::ACCESS, "{case}");
        // What is declared keeps the file, and grants what the mode does.
        declare(&mut world, file, kind, 6);
        assert_eq!(read(&mut world), Err(Status::ACCESS), "{case}");
        world.act_as(0, 0, &[]);
        world.unlink(ROOT, &format!("f{number}")).unwrap();
        assert!(world.stat(file).is_ok(), "{case}");
        open(&mut world, file, CLOSE, 6).unwrap();
        assert_eq!(world.stat(file), Err(Status::STALE_HANDLE), "{case}");
    }
    let directory = world.mkdir(ROOT, "d").unwrap();
    assert_eq!(open(&mut world, directory, OPEN_READ, 7).map(drop), Ok(()));
    assert_eq!(open(&mut world, directory, OPEN_WRITE, 8), Err(Status::IS_DIRECTORY));
    world.rmdir(ROOT, "d").unwrap();
    assert_eq!(world.stat(directory), Err(Status::STALE_HANDLE), "a directory is not kept");
    open(&mut world, directory, CLOSE, 7).unwrap();
    world.check();
    world.check_replay();
}

#[test]
fn a_session_has_so_many_files_open_at_most() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    for number in 0..OPENS_MAX as u32 {
        declare(&mut world, file, OPEN_READ, number);
    }
    let beyond = OPENS_MAX as u32;
    assert_eq!(open(&mut world, file, OPEN_READ, beyond), Err(Status::TOO_MANY_OPEN));
    assert!(open(&mut world, file, OPEN_WRITE, 0).is_ok(), "in place of the one before");
    open(&mut world, file, CLOSE, 17).unwrap();
    assert!(open(&mut world, file, OPEN_READ, beyond).is_ok());
}
