//! Extended attributes, each operation with its errors.

use gannet_proto::xattr::{
    XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX, Xattr, XattrRequest, xattr_flags, xattr_operation,
};
use gannet_proto::{Handle, Inode, Status};
use zerocopy::little_endian::{U16, U32};

use super::world::{Answer, World};

const ROOT: Inode = Inode::ROOT;
use xattr_operation::{GET, LIST, REMOVE, SET};

/// One request: the operation, name, value and flags, and how many bytes the reply may have.
#[derive(Clone, Copy)]
struct Ask<'a>(u16, &'a str, &'a [u8], u16, u32);

fn message(world: &mut World, inode: Inode, ask: Ask<'_>) -> XattrRequest {
    let Ask(operation, name, value, flags, reply_bytes_max) = ask;
    XattrRequest {
        header: world.header(inode.shard().unwrap(), 0),
        handle: Handle::new(inode),
        operation: U16::new(operation),
        name_bytes: U16::new(name.len() as u16),
        value_bytes: U16::new(value.len() as u16),
        flags: U16::new(flags),
        identity: U16::new(world.identity),
        reserved: U16::ZERO,
        reply_bytes_max: U32::new(reply_bytes_max),
    }
}

/// Length and bytes of the answer.
fn ask(world: &mut World, inode: Inode, asked: Ask<'_>) -> Result<(u32, Vec<u8>), Status> {
    let request = message(world, inode, asked);
    let Ask(_, name, value, ..) = asked;
    world.send_xattr(&request, Xattr { name: name.as_bytes(), value });
    match world.wait(&request.header) {
        Answer::Xattr(reply, tail) if reply.header.status.get() == 0 => {
            assert_eq!(reply.tail_bytes.get() as usize, tail.len());
            Ok((reply.value_bytes.get(), tail))
        }
        answer => Err(answer.status()),
    }
}

fn set(world: &mut World, inode: Inode, name: &str, value: &[u8]) -> Result<(), Status> {
    ask(world, inode, Ask(SET, name, value, 0, 0)).map(drop)
}

fn get(world: &mut World, inode: Inode, name: &str) -> Result<Vec<u8>, Status> {
    ask(world, inode, Ask(GET, name, b"", 0, 4096)).map(|(_, value)| value)
}

fn list(world: &mut World, inode: Inode) -> Vec<u8> {
    ask(world, inode, Ask(LIST, "", b"", 0, 4096)).unwrap().1
}

#[test]
fn attributes_are_set_read_listed_and_removed() {
    let mut world = World::new(1, 1, 4096);
    let directory = world.mkdir(ROOT, "d").unwrap();
    let file = world.create(directory, "f").unwrap();
    for inode in [file, directory] {
        let before = world.stat(inode).unwrap();
        world.now_ns += 1_000;
        set(&mut world, inode, "user.b", b"two").unwrap();
        set(&mut world, inode, "user.a", b"").unwrap();
        set(&mut world, inode, "trusted.t", &[0, 255]).unwrap();
        let after = world.stat(inode).unwrap();
        assert!(after.ctime_ns.get() > before.ctime_ns.get());
        assert_eq!(after.mtime_ns, before.mtime_ns);
        assert_eq!(get(&mut world, inode, "user.b").unwrap(), b"two");
        assert_eq!(get(&mut world, inode, "user.a").unwrap(), b"");
        set(&mut world, inode, "user.b", b"2").unwrap();
        assert_eq!(get(&mut world, inode, "user.b").unwrap(), b"2");
        assert_eq!(list(&mut world, inode), b"trusted.t\0user.a\0user.b\0");
        ask(&mut world, inode, Ask(REMOVE, "user.a", b"", 0, 0)).unwrap();
        assert_eq!(list(&mut world, inode), b"trusted.t\0user.b\0");
    }
    world.check();
    world.check_replay();
    world.restart();
    world.end_reclaim();
    assert_eq!(get(&mut world, file, "trusted.t").unwrap(), [0, 255]);
    world.unlink(directory, "f").unwrap();
    world.rmdir(ROOT, "d").unwrap();
    assert_eq!(get(&mut world, file, "user.b"), Err(Status::STALE_HANDLE));
    let other = world.create(ROOT, "other").unwrap();
    assert_eq!(list(&mut world, other), b"");
    world.check();
    world.check_replay();
}

#[test]
fn a_change_is_made_once_however_often_it_is_sent() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let request = message(&mut world, file, Ask(SET, "user.x", b"1", xattr_flags::CREATE, 0));
    let xattr = Xattr { name: b"user.x", value: b"1" };
    for restarts in [false, true, false] {
        world.send_xattr(&request, xattr);
        assert_eq!(world.wait(&request.header).status(), Status::OK);
        let records = world.sinks[0].log.len();
        world.send_xattr(&request, xattr);
        assert_eq!(world.wait(&request.header).status(), Status::OK, "the kept answer");
        assert_eq!(world.sinks[0].log.len(), records);
        if restarts {
            world.restart();
        }
    }
}

#[test]
fn errors() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    set(&mut world, file, "user.x", b"12345").unwrap();
    let long = format!("user.{}", "x".repeat(251));
    let longest = format!("user.{}", "x".repeat(250));
    use xattr_flags::{CREATE, KNOWN, REPLACE};
    let table: &[(Ask<'_>, Status)] = &[
        (Ask(GET, "user.none", b"", 0, 100), Status::NO_DATA),
        (Ask(GET, "user.x", b"", 0, 4), Status::RANGE),
        (Ask(GET, "user.x", b"", 0, 5), Status::OK),
        (Ask(GET, "user.x", b"", 0, 0), Status::OK),
        (Ask(LIST, "", b"", 0, 6), Status::RANGE),
        (Ask(LIST, "", b"", 0, 7), Status::OK),
        (Ask(SET, "user.x", b"", CREATE, 0), Status::EXISTS),
        (Ask(SET, "user.none", b"", REPLACE, 0), Status::NO_DATA),
        (Ask(SET, "user.x", b"", KNOWN, 0), Status::INVALID),
        (Ask(SET, "user.x", b"", 4, 0), Status::INVALID),
        (Ask(SET, "user.x", b"12345", REPLACE, 0), Status::OK),
        (Ask(SET, "user.", b"", 0, 0), Status::INVALID),
        (Ask(SET, "user.a\0b", b"", 0, 0), Status::INVALID),
        (Ask(SET, &long, b"", 0, 0), Status::RANGE),
        (Ask(SET, &longest, &[1; XATTR_VALUE_BYTES_MAX], 0, 0), Status::OK),
        (Ask(REMOVE, &longest, b"", 0, 0), Status::OK),
        (Ask(REMOVE, &longest, b"", 0, 0), Status::NO_DATA),
        (Ask(SET, "system.posix_acl_access", b"", 0, 0), Status::NOT_SUPPORTED),
        (Ask(GET, "other", b"", 0, 0), Status::NOT_SUPPORTED),
        (Ask(REMOVE, "", b"", 0, 0), Status::NOT_SUPPORTED),
        (Ask(9, "user.x", b"", 0, 0), Status::NOT_SUPPORTED),
    ];
    for (asked, expected) in table {
        let status = ask(&mut world, file, *asked).map_or_else(|status| status, |_| Status::OK);
        assert_eq!(status, *expected, "{} {:?} {}", asked.0, asked.1, asked.3);
    }
    assert_eq!(ask(&mut world, file, Ask(GET, "user.x", b"", 0, 0)), Ok((5, Vec::new())));
    let gone = Inode::new(file.shard().unwrap(), 999);
    assert_eq!(get(&mut world, gone, "user.x"), Err(Status::STALE_HANDLE));
    world.check_replay();
}

#[test]
fn an_inode_has_room_for_so_many() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let mut values = 0;
    while set(&mut world, file, &format!("user.{values}"), &[5; 4096]).is_ok() {
        values += 1;
    }
    assert_eq!(values, 16, "64 KiB of values");
    assert_eq!(set(&mut world, file, "user.more", b"x"), Err(Status::NO_SPACE));
    set(&mut world, file, "user.0", &[6; 4095]).unwrap();
    set(&mut world, file, "user.more", b"x").unwrap();
    let other = world.create(ROOT, "g").unwrap();
    let mut names = 0;
    while set(&mut world, other, &format!("user.{names:0250}"), b"").is_ok() {
        names += 1;
    }
    assert_eq!(list(&mut world, other).len(), 256 * names);
    assert_eq!(names, XATTR_LIST_BYTES_MAX / 256);
}

#[test]
fn who_may_see_and_change_them() {
    const OTHER: (u32, u32) = (12, 98);
    // Mode of the file for others, name; how GET and SET end for others.
    let denied = Err(Status::ACCESS);
    let table = [
        (0o604, "user.x", Ok(()), denied),
        (0o602, "user.x", denied, Ok(())),
        (0o606, "user.x", Ok(()), Ok(())),
        (0o600, "user.x", denied, denied),
        (0o606, "trusted.x", Err(Status::NO_DATA), Err(Status::NOT_PERMITTED)),
        (0o600, "security.x", Ok(()), Err(Status::NOT_PERMITTED)),
    ];
    let mut world = World::new(1, 1, 4096);
    for (number, (mode, name, read, write)) in table.into_iter().enumerate() {
        world.act_as(0, 0, &[]);
        let mut request = world.name_message(2, ROOT, ROOT, 0);
        request.mode = U32::new(mode);
        world.send_name(&request, format!("f{number}").as_bytes(), b"");
        let file = world.wait(&request.header).attributes().handle.inode();
        set(&mut world, file, name, b"1").unwrap();
        assert_eq!(list(&mut world, file), format!("{name}\0").as_bytes());
        world.act_as(OTHER.0, OTHER.1, &[]);
        assert_eq!(get(&mut world, file, name).map(drop), read, "{mode:o} {name}");
        assert_eq!(set(&mut world, file, name, b"2"), write, "{mode:o} {name}");
        let removed = ask(&mut world, file, Ask(REMOVE, name, b"", 0, 0)).map(drop);
        assert_eq!(removed, write, "{mode:o} {name}");
        let shown = write.is_err() && !name.starts_with("trusted");
        assert_eq!(!list(&mut world, file).is_empty(), shown, "{mode:o} {name}");
    }
    world.act_as(0, 0, &[]);
    let mut request = world.name_message(3, ROOT, ROOT, 0);
    request.mode = U32::new(0o1777);
    world.send_name(&request, b"sticky", b"");
    let sticky = world.wait(&request.header).attributes().handle.inode();
    world.act_as(OTHER.0, OTHER.1, &[]);
    assert_eq!(set(&mut world, sticky, "user.x", b""), Err(Status::NOT_PERMITTED));
    world.act_as(10, 20, &[]);
    assert_eq!(set(&mut world, sticky, "user.x", b""), Ok(()), "its owner");
}
