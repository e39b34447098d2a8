//! Operations over several shards, on several reactors, with messages delivered in any order.

use gannet_proto::control::StoreInfo;
use gannet_proto::operations::{file_type, name_flags, name_operation};
use gannet_proto::{Handle, Inode, Status, StoreId};
use zerocopy::little_endian::{U32, U64};

use super::world::{Random, World, pattern};

const ROOT: Inode = Inode::ROOT;

#[test]
fn directories_of_the_root_spread_over_shards_and_reactors() {
    let mut world = World::new(2, 2, 8192);
    let mut shards = std::collections::BTreeSet::new();
    for number in 0..40 {
        let directory = world.mkdir(ROOT, &format!("d{number}")).unwrap();
        shards.insert(directory.shard().unwrap());
        // Found by handle only where it lies on the other reactor.
        assert_eq!(world.lookup(ROOT, &format!("d{number}")), Ok(directory));
        assert_eq!(world.lookup(directory, ".."), Ok(ROOT));
        let file = world.create(directory, "f").unwrap();
        let data = pattern(number, 10_000);
        world.write(file, 0, &data, 0).unwrap();
        assert_eq!(world.read(file, 0, 20_000), (data, true));
    }
    assert!(shards.len() > 10);
    assert_eq!(world.stat(ROOT).unwrap().links.get(), 42);
    assert_eq!(world.mkdir(ROOT, "d1"), Err(Status::EXISTS));
    assert_eq!(world.rmdir(ROOT, "d1"), Err(Status::NOT_EMPTY));
    let directory = world.lookup(ROOT, "d1").unwrap();
    world.unlink(directory, "f").unwrap();
    world.rmdir(ROOT, "d1").unwrap();
    assert_eq!(world.lookup(ROOT, "d1"), Err(Status::NOT_FOUND));
    assert_eq!(world.stat(directory), Err(Status::STALE_HANDLE));
    world.check();
    world.check_replay();
    assert!(world.cores.iter().all(crate::Core::is_quiet));
}

/// Two directories on different reactors.
fn two(world: &mut World) -> (Inode, Inode) {
    let first = world.mkdir(ROOT, "first").unwrap();
    let reactor =
        |world: &World, inode: Inode| world.config.shard_map[usize::from(inode.shard().unwrap().0)];
    for number in 0.. {
        let second = world.mkdir(ROOT, &format!("second{number}")).unwrap();
        if reactor(world, second) != reactor(world, first) {
            return (first, second);
        }
    }
    unreachable!()
}

#[test]
fn renames_between_reactors() {
    let mut world = World::new(2, 1, 8192);
    let (a, b) = two(&mut world);
    let file = world.create(a, "f").unwrap();
    let data = pattern(1, 9_000);
    world.write(file, 0, &data, 0).unwrap();
    let replaced = world.create(b, "g").unwrap();
    world.rename((a, "f"), (b, "g"), 0).unwrap();
    assert_eq!(world.lookup(b, "g"), Ok(file));
    assert_eq!(world.lookup(a, "f"), Err(Status::NOT_FOUND));
    assert_eq!(world.stat(replaced), Err(Status::STALE_HANDLE));
    assert_eq!(world.read(file, 0, 10_000), (data, true));
    // The file's inode stays where it was; unlinking it takes both shards.
    world.unlink(b, "g").unwrap();
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
    // Directories, over an empty one and over a full one.
    let inner = world.mkdir(a, "inner").unwrap();
    let full = world.mkdir(b, "full").unwrap();
    world.create(full, "x").unwrap();
    let empty = world.mkdir(b, "empty").unwrap();
    assert_eq!(world.rename((a, "inner"), (b, "full"), 0), Err(Status::NOT_EMPTY));
    world.rename((a, "inner"), (b, "empty"), 0).unwrap();
    assert_eq!(world.stat(empty), Err(Status::STALE_HANDLE));
    assert_eq!(world.lookup(inner, ".."), Ok(b));
    let deep = world.mkdir(inner, "deep").unwrap();
    // `inner` lies on the reactor of `a` and below `b`: the walk upwards crosses reactors.
    let name = world.list(ROOT).into_iter().find(|name| world.lookup(ROOT, name) == Ok(b));
    let name = name.unwrap();
    assert_eq!(world.rename((ROOT, &name), (deep, "x"), 0), Err(Status::INVALID));
    assert_eq!(world.rename((ROOT, &name), (inner, "x"), 0), Err(Status::INVALID));
    world.rename((ROOT, &name), (a, "x"), 0).unwrap();
    assert_eq!(world.lookup(b, ".."), Ok(a));
    // An empty directory in the way that lies on another shard than its entry.
    let far = world.mkdir(ROOT, "far").unwrap();
    let near = world.mkdir(a, "near").unwrap();
    world.rename((a, "near"), (ROOT, "far"), 0).unwrap();
    assert_eq!(world.lookup(ROOT, "far"), Ok(near));
    assert_eq!(world.stat(far), Err(Status::STALE_HANDLE));
    world.check();
    world.check_replay();
    assert!(world.cores.iter().all(crate::Core::is_quiet));
}

/// Many renames, makings and removals under way at once, their messages delivered in random order.
#[test]
fn concurrent_operations_over_shards_all_end() {
    for seed in 1..=60 {
        let mut world = World::new(2 + (seed % 2) as u16, 1, 8192);
        let mut random = Random(seed * 0x9e37_79b9);
        let (a, b) = two(&mut world);
        let c = world.mkdir(a, "c").unwrap();
        let d = world.mkdir(b, "d").unwrap();
        let parents = [ROOT, a, b, c, d];
        let names = ["c", "d", "p", "q", "first"];
        let mut files = 0;
        for round in 0..20 {
            let mut headers = Vec::new();
            for slot in 1..9u16 {
                let (from, to) =
                    (parents[random.below(5) as usize], parents[random.below(5) as usize]);
                let (name, to_name) =
                    (names[random.below(5) as usize], names[random.below(5) as usize]);
                let operation = [
                    name_operation::RENAME,
                    name_operation::RENAME,
                    name_operation::RENAME,
                    name_operation::MKDIR,
                    name_operation::RMDIR,
                    name_operation::CREATE,
                    name_operation::UNLINK,
                    name_operation::LOOKUP,
                    name_operation::LINK,
                ][random.below(9) as usize];
                let mut request = world.name_message(operation, from, to, slot);
                match operation {
                    name_operation::LINK => {
                        let files = files_of(&world);
                        let place = random.below(files.len().max(1) as u64) as usize;
                        request.to_parent = Handle::new(files.get(place).copied().unwrap_or(a));
                    }
                    name_operation::RENAME => {
                        request.flags = [0, 0, name_flags::NO_REPLACE, name_flags::EXCHANGE]
                            [random.below(4) as usize]
                            .into();
                    }
                    _ => {}
                }
                world.send_name(&request, name.as_bytes(), to_name.as_bytes());
                headers.push(request.header);
                if random.chance(30) {
                    let places = world.deliverable();
                    if !places.is_empty() {
                        world.deliver(places[random.below(places.len() as u64) as usize]);
                    }
                }
            }
            while let Some(places) = Some(world.deliverable()).filter(|places| !places.is_empty()) {
                world.deliver(places[random.below(places.len() as u64) as usize]);
            }
            for header in headers {
                let answer = world.take(&header);
                let answer =
                    answer.unwrap_or_else(|| panic!("seed {seed} round {round}: {header:?}"));
                files += u32::from(answer.status() == Status::OK);
            }
            world.check();
            assert!(world.cores.iter().all(crate::Core::is_quiet), "seed {seed} round {round}");
            check_tree(&world);
        }
        assert!(files > 20);
        world.check_replay();
    }
}

fn files_of(world: &World) -> Vec<Inode> {
    let nodes = world.cores.iter().flat_map(|core| core.nodes.values());
    let mut files: Vec<Inode> =
        nodes.filter(|node| node.file().is_some()).map(|node| node.inode).collect();
    files.sort_unstable();
    files
}

/// Over all cores: every directory has exactly one entry and the right parent, every file as many
/// entries as links.
fn check_tree(world: &World) {
    let mut entries = std::collections::BTreeMap::new();
    let mut links = std::collections::BTreeMap::<Inode, u32>::new();
    for core in &world.cores {
        for node in core.nodes.values() {
            for (name, entry) in node.directory().into_iter().flat_map(|d| d.entries.iter()) {
                let other = entries.insert(entry.inode, node.inode);
                let is_file = entry.file_type == file_type::REGULAR;
                let name = String::from_utf8_lossy(name);
                assert!(other.is_none() || is_file, "{name:?} has two names");
                *links.entry(entry.inode).or_default() += 1;
            }
        }
    }
    for core in &world.cores {
        for node in core.nodes.values() {
            let parent = entries.remove(&node.inode);
            if node.file().is_some() {
                assert_eq!(links.get(&node.inode), Some(&node.links));
            }
            if node.inode == ROOT {
                assert_eq!(parent, None);
                continue;
            }
            assert!(parent.is_some(), "inode {:#x} has no name", node.inode.0);
            if let Some(directory) = node.directory() {
                assert_eq!(Some(directory.parent), parent);
            }
        }
    }
    assert!(entries.is_empty(), "names that lead to nothing: {entries:?}");
    // No cycle: from every directory the root is reached.
    let parent_of = |inode: Inode| {
        world.cores.iter().find_map(|core| core.nodes.get(&inode)?.directory().map(|d| d.parent))
    };
    for core in &world.cores {
        for node in core.nodes.values().filter(|node| node.directory().is_some()) {
            let mut at = node.inode;
            for _ in 0..1000 {
                at = parent_of(at).unwrap();
            }
            assert_eq!(at, ROOT);
        }
    }
}

#[test]
fn zones_move_between_shards_of_different_reactors() {
    // A small store: the second shard can only write when the first gives its zones back.
    let mut world = World::new(2, 1, 4 * 1024);
    let (a, b) = two(&mut world);
    for round in 0..3 {
        for parent in [a, b] {
            let file = world.create(parent, "big").unwrap();
            let data = pattern(round, 60 * 4096);
            let mut written = 0;
            while world.write(file, written, &data, 0).is_ok() {
                written += data.len() as u64;
            }
            assert!(written > 3 * 1024 * 4096, "round {round}: only {written} bytes");
            world.check();
            world.unlink(parent, "big").unwrap();
            world.run();
            world.check();
        }
    }
    world.check_replay();
    world.restart();
    world.up_all();
    let file = world.create(a, "after").unwrap();
    world.write(file, 0, b"restart", 0).unwrap();
    world.check();
}

#[test]
fn an_operation_of_an_ended_session_stops_before_its_decision_and_lets_go_of_everything() {
    let mut outcomes = [0, 0];
    for delivered in 0.. {
        let mut world = World::new(2, 1, 8192);
        let (a, b) = two(&mut world);
        // The lock of moves is at the reactor of shard 0: it takes messages to get it.
        let is_far =
            |inode: Inode| world.config.shard_map[usize::from(inode.shard().unwrap().0)] == 1;
        let (from, to) = if is_far(a) { (a, b) } else { (b, a) };
        let files = [world.create(from, "d").unwrap(), world.create(to, "e").unwrap()];
        let mut request = world.name_message(name_operation::RENAME, from, to, 0);
        request.flags = U32::new(name_flags::EXCHANGE);
        world.send_name(&request, b"d", b"e");
        for _ in 0..delivered {
            if !world.messages.is_empty() {
                world.deliver(0);
            }
        }
        let is_over = world.messages.is_empty();
        let now = world.now();
        for reactor in 0..world.cores.len() {
            let (core, sink) = (&mut world.cores[reactor], &mut world.sinks[reactor]);
            core.session_disconnected(now, world.indexes[reactor]);
            core.session_end(now, world.indexes[reactor], sink);
        }
        world.run();
        world.open();
        let places = [(from, "d"), (to, "e")];
        let found = places.map(|(directory, name)| world.lookup(directory, name));
        let exchanged = match found {
            [Ok(first), Ok(second)] if [first, second] == files => false,
            [Ok(first), Ok(second)] if [second, first] == files => true,
            other => panic!("after {delivered} messages: {other:?}"),
        };
        outcomes[usize::from(exchanged)] += 1;
        assert!(delivered > 1 || !exchanged, "it began after its session had ended");
        // The names and the lock are free.
        world.rename(places[0], places[1], name_flags::EXCHANGE).unwrap();
        world.check();
        world.check_replay();
        assert!(world.cores.iter().all(crate::Core::is_quiet));
        if is_over {
            break;
        }
    }
    assert!(outcomes[0] > 2 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn a_repeated_request_over_shards_is_answered_once_it_is_done() {
    let mut world = World::new(2, 1, 4096);
    let name = (0..).map(|n| format!("n{n}")).find(|name| {
        // A name whose directory the other reactor makes.
        let mut probe = World::new(2, 1, 4096);
        let made = probe.mkdir(ROOT, name).unwrap();
        probe.config.shard_map[usize::from(made.shard().unwrap().0)] == 1
    });
    let name = name.unwrap();
    let mut request = world.name_message(name_operation::MKDIR, ROOT, ROOT, 2);
    world.send_name(&request, name.as_bytes(), b"");
    assert_eq!(world.messages.len(), 1);
    // Names under way answer nobody.
    let lookup = world.name_message(name_operation::LOOKUP, ROOT, ROOT, 3);
    world.send_name(&lookup, name.as_bytes(), b"");
    let cancelled = world.name_message(name_operation::LOOKUP, ROOT, ROOT, 4);
    world.send_name(&cancelled, name.as_bytes(), b"");
    world.send_cancel(&cancelled.header);
    assert_eq!(world.take(&cancelled.header).unwrap().status(), Status::CANCELLED);
    assert!(world.answers.is_empty());
    request.header.attempt = 2.into();
    world.send_name(&request, name.as_bytes(), b"");
    world.send_cancel(&request.header);
    let made = world.wait(&request.header);
    assert_eq!(made.status(), Status::OK, "the later attempt is answered");
    let found = world.take(&lookup.header).unwrap();
    assert_eq!(found.attributes().handle, made.attributes().handle);
    assert!(world.answers.is_empty());
    request.header.attempt = 3.into();
    world.send_name(&request, name.as_bytes(), b"");
    assert_eq!(world.wait(&request.header).attributes(), made.attributes());
}

/// A data server says hello to each reactor for itself, and its disks may have been changed between.
/// No reactor takes one store for another because there are as many.
#[test]
fn a_data_server_with_other_stores_is_not_taken_for_the_one_that_enrolled() {
    let mut world = World::new(2, 0, 0);
    let store = |name: u8| StoreInfo {
        uuid: [name; 16],
        generation: U32::new(1),
        block_bytes: U32::new(4096),
        blocks: U64::new(1000),
    };
    let (uuid, now) = ([9; 16], world.now());
    let (one, two, three) = (store(1), store(2), store(3));
    world.cores[0].enroll(now, uuid, &[one, two], &mut world.sinks[0]);
    world.collect();
    world.deliver_all();
    for core in &world.cores {
        let known = core.enrollment(&uuid, &[one, two]).unwrap();
        assert_eq!(known.stores, [StoreId(1), StoreId(2)]);
        for others in
            [&[two, one][..], &[one, three], &[three, two], &[one], &[one, two, three], &[]]
        {
            assert_eq!(core.enrollment(&uuid, others), None, "{others:?}");
        }
        assert_eq!(core.enrollment(&[8; 16], &[one, two]), None);
    }
    // It comes back with one store replaced: each reactor goes on when reactor 0 has told it.
    world.cores[0].enroll(now, uuid, &[three, two], &mut world.sinks[0]);
    assert_eq!(world.cores[1].enrollment(&uuid, &[three, two]), None);
    world.collect();
    world.deliver_all();
    let known = world.cores[1].enrollment(&uuid, &[three, two]).unwrap();
    assert_eq!(known.stores, [StoreId(3), StoreId(2)]);
}
