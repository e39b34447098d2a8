//! Who may do what: mode bits, owners, groups, sticky and set-id bits, each with its error.

use gannet_proto::identity::SetIdentity;
use gannet_proto::operations::{
    Attributes, NameRequest, SetAttributes, attribute_mask as mask, name_flags, name_operation,
};
use gannet_proto::{Inode, ShardId, Status};
use zerocopy::little_endian::{I64, U16, U32};

use super::world::World;
use crate::names::shard_of_name;

const ROOT: Inode = Inode::ROOT;
const OK: Result<(), Status> = Ok(());
const DENIED: Result<(), Status> = Err(Status::ACCESS);
const NOT_OWNER: Result<(), Status> = Err(Status::NOT_PERMITTED);

/// A user: number, group, supplementary groups.
type User = (u32, u32, &'static [u32]);
const SUPERUSER: User = (0, 0, &[]);
/// Owner of what [`World::create`] makes, and in its group.
const OWNER: User = (10, 20, &[]);
const MEMBER: User = (11, 99, &[7, 20]);
const OTHER: User = (12, 98, &[7]);

fn act_as(world: &mut World, (uid, gid, groups): User) {
    world.act_as(uid, gid, groups);
}

/// A SETATTR of what `change` sets.
fn set(
    world: &mut World,
    inode: Inode,
    bits: u32,
    change: impl FnOnce(&mut SetAttributes),
) -> Result<Attributes, Status> {
    let mut request = world.attributes_message(inode, 0, 0);
    request.mask = U32::new(bits);
    change(&mut request);
    world.send_attributes(&request);
    World::result(world.wait(&request.header))
}

fn chmod(world: &mut World, inode: Inode, mode: u32) -> Result<Attributes, Status> {
    set(world, inode, mask::MODE, |request| request.mode = U32::new(mode))
}

fn chown(world: &mut World, inode: Inode, uid: u32, gid: u32) -> Result<Attributes, Status> {
    set(world, inode, mask::UID | mask::GID, |request| {
        (request.uid, request.gid) = (U32::new(uid), U32::new(gid));
    })
}

/// Made by the superuser for its owner, in the directory, with exactly this mode.
fn file(world: &mut World, directory: Inode, name: &str, owner: User, mode: u32) -> Inode {
    made(world, name_operation::CREATE, directory, name, owner, mode)
}

fn directory(world: &mut World, parent: Inode, name: &str, owner: User, mode: u32) -> Inode {
    made(world, name_operation::MKDIR, parent, name, owner, mode)
}

fn made(world: &mut World, kind: u16, parent: Inode, name: &str, owner: User, mode: u32) -> Inode {
    act_as(world, SUPERUSER);
    let inode = world.name(kind, parent, name).unwrap().handle.inode();
    chown(world, inode, owner.0, owner.1).unwrap();
    chmod(world, inode, mode).unwrap();
    inode
}

fn list(world: &mut World, directory: Inode) -> Result<(), Status> {
    let request = world.name_message(name_operation::READDIR, directory, directory, 0);
    world.send_name(&request, b"", b"");
    match world.wait(&request.header).status() {
        Status::OK => Ok(()),
        status => Err(status),
    }
}

fn read(world: &mut World, file: Inode) -> Result<(), Status> {
    let request = world.read_message(file, 0, 10, 2, 0);
    world.send_read(&request);
    world.run();
    match world.take(&request.header).map(|answer| answer.status()) {
        None => world.read_result(&request.header).map(drop).ok_or(Status::TIMED_OUT),
        Some(Status::OK) => Ok(()),
        Some(status) => Err(status),
    }
}

/// All modes for owner, group and others against everybody: the class that counts is the first that
/// somebody belongs to.
#[test]
fn mode_bits_grant_to_the_class_that_somebody_belongs_to() {
    let mut world = World::new(1, 1, 4096);
    chmod(&mut world, ROOT, 0o755).unwrap();
    let inner = directory(&mut world, ROOT, "d", OWNER, 0o700);
    let entry = file(&mut world, inner, "f", SUPERUSER, 0o777);
    let subject = file(&mut world, ROOT, "subject", OWNER, 0o600);
    for mode in 0..0o1000 {
        for (user, shift) in [(OWNER, 6), (MEMBER, 3), (OTHER, 0), (SUPERUSER, 6)] {
            act_as(&mut world, SUPERUSER);
            chmod(&mut world, inner, mode).unwrap();
            chmod(&mut world, subject, mode).unwrap();
            act_as(&mut world, user);
            let granted = if user == SUPERUSER { 7 } else { mode >> shift };
            let expected = |wanted: u32| if granted & wanted == wanted { OK } else { DENIED };
            let case = format!("{mode:o} {user:?}");
            assert_eq!(list(&mut world, inner), expected(4), "list {case}");
            let found = world.lookup(inner, "f").map(|found| assert_eq!(found, entry));
            assert_eq!(found, expected(1), "search {case}");
            assert_eq!(world.lookup(ROOT, "d").map(drop), OK, "found {case}");
            assert_eq!(world.lookup(ROOT, "d/f").map(drop), expected(1), "walk {case}");
            assert_eq!(world.create(inner, "new").map(drop), expected(3), "create {case}");
            assert_eq!(world.create(inner, "f").map(drop), expected(1), "open {case}");
            let absent = if granted & 1 == 1 { Err(Status::NOT_FOUND) } else { DENIED };
            assert_eq!(world.unlink(inner, "absent"), absent, "{case}");
            let gone = if granted & 3 == 3 {
                OK
            } else if granted & 1 == 1 {
                absent
            } else {
                DENIED
            };
            assert_eq!(world.unlink(inner, "new"), gone, "unlink {case}");
            assert_eq!(world.mkdir(inner, "sub").map(drop), expected(3), "mkdir {case}");
            assert_eq!(world.rmdir(inner, "sub"), gone, "rmdir {case}");
            assert_eq!(world.stat(inner).map(drop), OK, "anybody may ask {case}");
            // By handle, the owner of a file always may; by truncate(2) it needs the right.
            let by_handle = |wanted| if user == OWNER { OK } else { expected(wanted) };
            assert_eq!(read(&mut world, subject), by_handle(4), "read {case}");
            let written = world.write(subject, 0, b"x", 0).map(drop);
            assert_eq!(written, by_handle(2), "write {case}");
            assert_eq!(world.truncate(subject, 1).map(drop), expected(2), "truncate {case}");
        }
    }
    world.check();
    world.check_replay();
}

#[test]
fn a_sticky_directory_guards_its_entries() {
    // Directory's owner, entry's owner, who removes it, and how that ends.
    let table = [
        (SUPERUSER, ALICE, ALICE, OK),
        (SUPERUSER, ALICE, BOB, NOT_OWNER),
        (BOB, ALICE, BOB, OK),
        (SUPERUSER, ALICE, SUPERUSER, OK),
    ];
    for reactors in [1, 2] {
        let mut world = World::new(reactors, 1, 4096);
        chmod(&mut world, ROOT, 0o1777).unwrap();
        for (number, (owner, of_entry, user, expected)) in table.into_iter().enumerate() {
            // Directories of the root lie on other shards than it, some on another reactor.
            let guard = directory(&mut world, ROOT, &format!("guard{number}"), owner, 0o1777);
            let open = directory(&mut world, ROOT, &format!("open{number}"), owner, 0o777);
            for name in ["f", "g", "h", "replaced"] {
                file(&mut world, guard, name, of_entry, 0o666);
            }
            // Its inode stays where it was made.
            for place in 0..3 {
                let other =
                    directory(&mut world, ROOT, &format!("o{number}.{place}"), owner, 0o777);
                file(&mut world, other, "moved", of_entry, 0o666);
                world.rename((other, "moved"), (guard, &format!("moved{place}")), 0).unwrap();
            }
            directory(&mut world, guard, "d", of_entry, 0o777);
            act_as(&mut world, user);
            let case = format!("{number} on {reactors}");
            assert_eq!(world.unlink(guard, "f"), expected, "unlink {case}");
            assert_eq!(world.unlink(guard, "moved0"), expected, "unlink moved {case}");
            assert_eq!(world.rmdir(guard, "d"), expected, "rmdir {case}");
            assert_eq!(world.rename((guard, "g"), (guard, "g2"), 0), expected, "move {case}");
            assert_eq!(world.rename((guard, "h"), (open, "h"), 0), expected, "move out {case}");
            assert_eq!(world.rename((guard, "moved1"), (open, "m"), 0), expected, "{case}");
            world.create(open, "mine").unwrap();
            let over = world.rename((open, "mine"), (guard, "replaced"), 0);
            assert_eq!(over, expected, "replace {case}");
            world.create(open, "mine").unwrap();
            let over = world.rename((open, "mine"), (guard, "moved2"), 0);
            assert_eq!(over, expected, "replace what lies elsewhere {case}");
            world.create(guard, "mine").unwrap();
            assert_eq!(world.unlink(guard, "mine"), OK, "what is one's own {case}");
            // A directory of the root itself.
            let name = format!("guard{number}");
            act_as(&mut world, BOB);
            let moved = world.rename((ROOT, &name), (ROOT, "elsewhere"), 0);
            let may = owner == BOB;
            assert_eq!(moved, if may { OK } else { NOT_OWNER }, "{case}");
        }
        world.check();
        assert!(world.cores.iter().all(crate::Core::is_quiet));
    }
}

const ALICE: User = (30, 30, &[]);
const BOB: User = (31, 31, &[]);

/// A sticky directory on one reactor, an open one on another, and in both, under names of their own, inodes
/// of Alice and of Bob that lie on a third. What takes a name while another reactor is asked about the
/// one before it is guarded all the same.
#[test]
fn a_sticky_directory_guards_what_takes_a_name_meanwhile() {
    type Ask = fn(&mut World, Inode, Inode) -> NameRequest;
    // What Bob asks for, with its names, and who of the two comes to own the names after it.
    let cases: [(&str, Ask, &[u8], &[u8]); 6] = [
        ("unlink", |w, guard, _| w.name_message(name_operation::UNLINK, guard, ROOT, 5), b"f", b""),
        ("rmdir", |w, guard, _| w.name_message(name_operation::RMDIR, guard, ROOT, 5), b"d", b""),
        ("move out", |w, guard, open| rename(w, (guard, open), 0), b"f", b"new"),
        ("move out a directory", |w, guard, open| rename(w, (guard, open), 0), b"d", b"new"),
        ("replace", |w, guard, open| rename(w, (open, guard), 0), b"mine", b"f"),
        (
            "exchange",
            |w, guard, open| rename(w, (open, guard), name_flags::EXCHANGE),
            b"mine",
            b"f",
        ),
    ];
    let (mut refused, mut done) = (0, 0);
    for (case, ask, name, to_name) in cases {
        for delivered in 0..12 {
            let mut world = World::new(4, 1, 4096);
            chmod(&mut world, ROOT, 0o777).unwrap();
            let on = |world: &mut World, shard: u16, mode| {
                let name = (0..).map(|number| format!("d{shard}.{number}"));
                let is_there = |name: &String| shard_of_name(name.as_bytes()) == ShardId(shard);
                let name = name.into_iter().find(is_there).unwrap();
                directory(world, ROOT, &name, SUPERUSER, mode)
            };
            let guard = on(&mut world, 1, 0o1777);
            let open = on(&mut world, 2, 0o777);
            let (alices, bobs) = (on(&mut world, 3, 0o777), on(&mut world, 7, 0o777));
            for (place, owner) in [(alices, ALICE), (bobs, BOB)] {
                file(&mut world, place, "f", owner, 0o666);
                directory(&mut world, place, "d", owner, 0o777);
            }
            file(&mut world, open, "mine", BOB, 0o666);
            act_as(&mut world, SUPERUSER);
            for name in ["f", "d"] {
                world.rename((bobs, name), (guard, name), 0).unwrap();
            }
            act_as(&mut world, BOB);
            let request = ask(&mut world, guard, open);
            world.send_name(&request, name, to_name);
            for _ in 0..delivered {
                if !world.messages.is_empty() {
                    world.deliver(0);
                }
            }
            // Alice's take the names of Bob's, wherever Bob's request has come to: its messages are slow.
            let slow = std::mem::take(&mut world.messages);
            world.identity = 0;
            let swaps = [("f", 9), ("d", 10)].map(|(name, slot)| {
                let mut swap = world.name_message(name_operation::RENAME, alices, guard, slot);
                swap.flags = U32::new(name_flags::EXCHANGE);
                world.send_name(&swap, name.as_bytes(), name.as_bytes());
                world.run();
                swap.header
            });
            world.messages.splice(0..0, slow);
            world.run();
            let swaps = swaps.map(|header| world.take(&header).unwrap().status());
            let status = world.take(&request.header).unwrap().status();
            // What is Alice's is where she, or the superuser, has put it.
            for (name, swapped) in ["f", "d"].into_iter().zip(swaps) {
                let place = if swapped.is_ok() { guard } else { alices };
                let found = world.lookup(place, name).and_then(|found| world.stat(found));
                let owner = found.map(|found| found.uid.get());
                assert_eq!(owner, Ok(ALICE.0), "{case} after {delivered}: {status:?} {name}");
            }
            match status {
                Status::OK => done += 1,
                Status::NOT_PERMITTED => refused += 1,
                other => panic!("{case} after {delivered}: {other:?}"),
            }
            world.check();
            assert!(world.cores.iter().all(crate::Core::is_quiet));
        }
    }
    println!("{refused} refused, {done} done");
    assert!(refused >= 12 && done >= 12, "{refused} refused, {done} done");
}

fn rename(world: &mut World, (from, to): (Inode, Inode), flags: u32) -> NameRequest {
    let request = world.name_message(name_operation::RENAME, from, to, 5);
    NameRequest { flags: U32::new(flags), ..request }
}

#[test]
fn a_rename_needs_both_directories_and_a_directory_that_moves() {
    for reactors in [1, 2] {
        let mut world = World::new(reactors, 1, 4096);
        let mine: Vec<Inode> = (0..6)
            .map(|number| directory(&mut world, ROOT, &format!("d{number}"), OWNER, 0o777))
            .collect();
        for place in 1..6 {
            let (from, to) = (mine[0], mine[place]);
            for name in ["f", "d"] {
                let kind = if name == "f" { name_operation::CREATE } else { name_operation::MKDIR };
                made(&mut world, kind, from, name, OTHER, 0o600);
            }
            act_as(&mut world, OWNER);
            // The one that moves has its parent in it.
            assert_eq!(world.rename((from, "d"), (to, "d"), 0), DENIED, "{place}");
            assert_eq!(world.rename((from, "d"), (from, "d2"), 0), OK, "in place");
            chmod(&mut world, to, 0o555).unwrap();
            assert_eq!(world.rename((from, "f"), (to, "f"), 0), DENIED, "{place}");
            assert_eq!(world.rename((from, "none"), (to, "f"), 0), Err(Status::NOT_FOUND));
            chmod(&mut world, to, 0o755).unwrap();
            chmod(&mut world, from, 0o555).unwrap();
            assert_eq!(world.rename((from, "f"), (to, "f"), 0), DENIED, "{place}");
            chmod(&mut world, from, 0o755).unwrap();
            assert_eq!(world.rename((from, "f"), (to, "f"), 0), OK, "{place}");
            act_as(&mut world, OTHER);
            assert_eq!(world.rename((to, "f"), (from, "f"), 0), DENIED, "{place}");
            act_as(&mut world, SUPERUSER);
            assert_eq!(world.rename((from, "d2"), (to, "d"), 0), OK, "{place}");
        }
        world.check();
        assert!(world.cores.iter().all(crate::Core::is_quiet));
    }
}

#[test]
fn owners_change_modes_and_owners_within_bounds() {
    let mut world = World::new(1, 1, 4096);
    let modes = [
        // Who, wanted, what it comes to.
        (OWNER, 0o6755, Ok(0o6755)),
        (OWNER, 0o1777, Ok(0o1777)),
        (MEMBER, 0o644, Err(Status::NOT_PERMITTED)),
        (OTHER, 0o644, Err(Status::NOT_PERMITTED)),
        (SUPERUSER, 0o7777, Ok(0o7777)),
        // Its owner is not in the file's group.
        ((10, 55, &[56]), 0o2755, Ok(0o755)),
        ((10, 55, &[20]), 0o2755, Ok(0o2755)),
    ];
    for (number, (user, wanted, expected)) in modes.into_iter().enumerate() {
        let file = file(&mut world, ROOT, &format!("m{number}"), OWNER, 0o600);
        act_as(&mut world, user);
        let mode = chmod(&mut world, file, wanted).map(|set| set.mode.get() & 0o7777);
        assert_eq!(mode, expected, "{user:?} {wanted:o}");
    }
    let owners = [
        // Who, new owner and group, mode before, mode after.
        (OWNER, (10, 20), 0o6755, Ok(0o755)),
        (OWNER, (11, 20), 0o6755, Err(Status::NOT_PERMITTED)),
        (OWNER, (10, 7), 0o6755, Err(Status::NOT_PERMITTED)),
        ((10, 5, &[7]), (10, 7), 0o6755, Ok(0o755)),
        ((10, 7, &[]), (10, 7), 0o6744, Ok(0o2744)),
        (MEMBER, (11, 20), 0o755, Err(Status::NOT_PERMITTED)),
        (OTHER, (10, 98), 0o755, Err(Status::NOT_PERMITTED)),
        (SUPERUSER, (77, 88), 0o6755, Ok(0o755)),
    ];
    for (number, (user, (uid, gid), before, expected)) in owners.into_iter().enumerate() {
        let file = file(&mut world, ROOT, &format!("o{number}"), OWNER, before);
        act_as(&mut world, user);
        let done = chown(&mut world, file, uid, gid);
        assert_eq!(done.map(|set| set.mode.get() & 0o7777), expected, "{user:?} {uid} {gid}");
        act_as(&mut world, SUPERUSER);
        let now = world.stat(file).unwrap();
        let owner = if expected.is_ok() { (uid, gid) } else { (10, 20) };
        assert_eq!((now.uid.get(), now.gid.get()), owner, "{user:?}");
    }
    let shared = directory(&mut world, ROOT, "shared", OWNER, 0o2775);
    act_as(&mut world, OWNER);
    let kept = chown(&mut world, shared, 10, 20).unwrap().mode.get();
    assert_eq!(kept & 0o7777, 0o2775, "a directory runs as nobody");
    world.check_replay();
}

#[test]
fn times_are_set_by_the_owner_or_to_now_by_whoever_may_write() {
    let (now, explicit) = (mask::ATIME_NOW | mask::MTIME_NOW, mask::ATIME | mask::MTIME);
    let table = [
        // Mode, who, what, how that ends.
        (0o600, OWNER, explicit, OK),
        (0o400, OWNER, now, OK),
        (0o666, OTHER, explicit, NOT_OWNER),
        (0o666, OTHER, now, OK),
        (0o664, OTHER, now, DENIED),
        (0o660, MEMBER, now, OK),
        (0o666, OTHER, mask::MTIME_NOW, NOT_OWNER),
        (0o666, OTHER, mask::ATIME | mask::MTIME_NOW, NOT_OWNER),
        (0o000, SUPERUSER, explicit, OK),
        (0o600, OWNER, mask::ATIME | mask::ATIME_NOW, Err(Status::INVALID)),
        (0o600, OWNER, mask::MTIME | mask::MTIME_NOW, Err(Status::INVALID)),
        (0o600, OWNER, mask::KNOWN + 1, Err(Status::INVALID)),
    ];
    let mut world = World::new(1, 1, 4096);
    for (number, (mode, user, bits, expected)) in table.into_iter().enumerate() {
        let file = file(&mut world, ROOT, &format!("f{number}"), OWNER, mode);
        act_as(&mut world, user);
        let before = world.stat(file).unwrap();
        world.now_ns += 1_000;
        let clock = world.now().wall_ns as i64;
        let done = set(&mut world, file, bits, |request| {
            (request.atime_ns, request.mtime_ns) =
                (I64::new(-5), I64::new(1_234_567_890_123_456_789));
        });
        assert_eq!(done.map(drop), expected, "{number}");
        let after = world.stat(file).unwrap();
        if expected.is_err() {
            assert_eq!(after, before, "{number}");
            continue;
        }
        let value = |set: u32, now: u32, explicit: i64, before: I64| match bits {
            bits if bits & set != 0 => explicit,
            bits if bits & now != 0 => clock,
            _ => before.get(),
        };
        let atime = value(mask::ATIME, mask::ATIME_NOW, -5, before.atime_ns);
        let mtime = value(mask::MTIME, mask::MTIME_NOW, 1_234_567_890_123_456_789, before.mtime_ns);
        let times = (after.atime_ns.get(), after.mtime_ns.get(), after.ctime_ns.get());
        assert_eq!(times, (atime, mtime, clock), "{number}");
    }
    world.check_replay();
}

#[test]
fn every_change_shows_in_the_times() {
    for reactors in [1, 2] {
        let mut world = World::new(reactors, 1, 4096);
        let a = world.mkdir(ROOT, "a").unwrap();
        let b = world.mkdir(ROOT, "b").unwrap();
        let file = world.create(a, "f").unwrap();
        type Step = fn(&mut World, Inode, Inode);
        // What is done, and whose times of change it sets: modification, and of the inode.
        let steps: &[(&str, Step, &[usize], &[usize])] = &[
            ("create", |w, a, _| assert!(w.create(a, "new").is_ok()), &[0], &[0]),
            ("mkdir", |w, a, _| assert!(w.mkdir(a, "sub").is_ok()), &[0], &[0]),
            ("open", |w, a, _| assert!(w.create(a, "f").is_ok()), &[], &[]),
            ("unlink", |w, a, _| w.unlink(a, "new").unwrap(), &[0], &[0]),
            ("rmdir", |w, a, _| w.rmdir(a, "sub").unwrap(), &[0], &[0]),
            ("rename", |w, a, b| w.rename((a, "f"), (b, "f"), 0).unwrap(), &[0, 1], &[0, 1, 2]),
            ("back", |w, a, b| w.rename((b, "f"), (a, "f"), 0).unwrap(), &[0, 1], &[0, 1, 2]),
            (
                "write",
                |w, a, _| {
                    let file = w.lookup(a, "f").unwrap();
                    w.write(file, 0, b"data", 0).unwrap();
                },
                &[2],
                &[2],
            ),
            (
                "read",
                |w, a, _| {
                    let file = w.lookup(a, "f").unwrap();
                    assert_eq!(w.read(file, 0, 9).0, b"data");
                },
                &[],
                &[],
            ),
            (
                "truncate",
                |w, a, _| {
                    let file = w.lookup(a, "f").unwrap();
                    w.truncate(file, 2).unwrap();
                },
                &[2],
                &[2],
            ),
            (
                "extend",
                |w, a, _| {
                    let file = w.lookup(a, "f").unwrap();
                    w.truncate(file, 100).unwrap();
                },
                &[2],
                &[2],
            ),
            (
                "chmod",
                |w, a, _| {
                    let file = w.lookup(a, "f").unwrap();
                    chmod(w, file, 0o600).unwrap();
                },
                &[],
                &[2],
            ),
        ];
        let inodes = [a, b, file];
        for (name, step, modified, changed) in steps {
            let before = inodes.map(|inode| world.stat(inode).unwrap());
            world.now_ns += 1_000;
            let clock = world.now().wall_ns as i64;
            step(&mut world, a, b);
            for (place, (inode, old)) in inodes.iter().zip(before).enumerate() {
                let new = world.stat(*inode).unwrap();
                let expected =
                    |sets: &[usize], old: i64| if sets.contains(&place) { clock } else { old };
                let case = format!("{name}: {place} on {reactors}");
                assert_eq!(new.mtime_ns.get(), expected(modified, old.mtime_ns.get()), "{case}");
                let ctime = expected(changed, old.ctime_ns.get());
                assert_eq!(new.ctime_ns.get(), ctime, "{case}");
                assert_eq!(new.atime_ns, old.atime_ns, "{case}");
            }
        }
        world.check_replay();
    }
}

#[test]
fn what_is_made_belongs_to_who_asks_and_inherits_the_group() {
    let mut world = World::new(2, 1, 4096);
    chmod(&mut world, ROOT, 0o777).unwrap();
    let shared = directory(&mut world, ROOT, "shared", (5, 66, &[]), 0o2777);
    // Who asks, where, kind, wanted mode; owner, group and mode of what is made.
    let table = [
        (OWNER, ROOT, name_operation::CREATE, 0o2755, (10, 20, 0o2755)),
        (OTHER, ROOT, name_operation::CREATE, 0o4644, (12, 98, 0o4644)),
        (MEMBER, ROOT, name_operation::MKDIR, 0o755, (11, 99, 0o755)),
        (SUPERUSER, ROOT, name_operation::CREATE, 0o640, (10, 20, 0o640)),
        (OWNER, shared, name_operation::CREATE, 0o644, (10, 66, 0o644)),
        (OWNER, shared, name_operation::CREATE, 0o2755, (10, 66, 0o755)),
        ((10, 20, &[66]), shared, name_operation::CREATE, 0o2755, (10, 66, 0o2755)),
        (OWNER, shared, name_operation::MKDIR, 0o755, (10, 66, 0o2755)),
        (SUPERUSER, shared, name_operation::MKDIR, 0o700, (10, 66, 0o2700)),
    ];
    for (number, (user, parent, kind, mode, expected)) in table.into_iter().enumerate() {
        act_as(&mut world, user);
        let mut request = world.name_message(kind, parent, parent, 0);
        request.mode = U32::new(mode);
        world.send_name(&request, format!("n{number}").as_bytes(), b"");
        let made = World::result(world.wait(&request.header)).unwrap();
        let made = (made.uid.get(), made.gid.get(), made.mode.get() & 0o7777);
        assert_eq!(made, expected, "{number}");
    }
    world.check_replay();
}

#[test]
fn whoever_writes_to_a_file_takes_its_set_id_bits() {
    // Who, mode before; after a write, after a truncation.
    let table = [
        (OWNER, 0o6755, 0o755),
        (OTHER, 0o6777, 0o777),
        (OTHER, 0o6767, 0o2767),
        (SUPERUSER, 0o6755, 0o6755),
        (OWNER, 0o1755, 0o1755),
    ];
    let mut world = World::new(1, 1, 4096);
    for (number, (user, before, after)) in table.into_iter().enumerate() {
        for truncates in [false, true] {
            let name = format!("{number}{truncates}");
            let file = file(&mut world, ROOT, &name, OWNER, before);
            act_as(&mut world, user);
            if truncates {
                world.truncate(file, 3).unwrap();
            } else {
                world.write(file, 0, b"new", 0).unwrap();
            }
            assert_eq!(world.stat(file).unwrap().mode.get() & 0o7777, after, "{name}");
        }
    }
    world.check_replay();
}

#[test]
fn a_host_speaks_for_whom_it_named_and_may_name() {
    let mut world = World::new(1, 1, 4096);
    let file = file(&mut world, ROOT, "f", OWNER, 0o600);
    world.identity = 2;
    let unknown = Err(Status::UNKNOWN_IDENTITY);
    assert_eq!(world.lookup(ROOT, "f"), unknown);
    assert_eq!(read(&mut world, file).map(|()| file), unknown);
    assert_eq!(chmod(&mut world, file, 0o777).map(|_| file), unknown);
    assert_eq!(world.write(file, 0, b"x", 0).map(|_| file), unknown);
    let name = |world: &mut World, identity: u16, uid: u32, gid: u32, groups: &[U32]| {
        let request = SetIdentity {
            identity: U16::new(identity),
            uid: U32::new(uid),
            gid: U32::new(gid),
            ..SetIdentity::default()
        };
        let index = world.indexes[0];
        world.cores[0].set_identity(index, &request, groups);
    };
    name(&mut world, 2, 12, 98, &[]);
    assert_eq!(world.lookup(ROOT, "f"), Ok(file));
    assert_eq!(read(&mut world, file), DENIED);
    // The host turns out to be an ordinary user.
    let index = world.indexes[0];
    world.cores[0].session_identity(index, 12, 98);
    assert_eq!(world.lookup(ROOT, "f"), unknown, "it has to say again for whom it speaks");
    world.identity = 0;
    assert_eq!(read(&mut world, file), DENIED);
    let attempts: [(u32, u32, &[U32], _); 5] = [
        (12, 98, &[], DENIED),
        (10, 98, &[], Err(Status::UNKNOWN_IDENTITY)),
        (12, 20, &[], Err(Status::UNKNOWN_IDENTITY)),
        (12, 98, &[U32::new(20)], Err(Status::UNKNOWN_IDENTITY)),
        (0, 0, &[], Err(Status::UNKNOWN_IDENTITY)),
    ];
    for (uid, gid, groups, expected) in attempts {
        world.identity = 256;
        name(&mut world, 256, uid, gid, groups);
        assert_eq!(read(&mut world, file), expected, "{uid} {gid}");
    }
    assert_eq!(world.cores[0].counters().identities_refused, 4);
}
