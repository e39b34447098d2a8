//! Each operation with its successes and its errors, one at a time.

use gannet_proto::operations::{io_flags, name_flags, name_operation};
use gannet_proto::{Inode, ShardId, Status};
use zerocopy::little_endian::{U16, U32, U64};

use super::world::{Answer, BLOCK, Random, World, pattern};

const ROOT: Inode = Inode::ROOT;

#[test]
fn names_are_made_found_listed_and_removed() {
    let mut world = World::new(1, 2, 4096);
    let directory = world.mkdir(ROOT, "directory").unwrap();
    let file = world.create(directory, "file").unwrap();
    assert_eq!(file.shard(), directory.shard());
    assert_eq!(world.lookup(ROOT, "directory/file"), Ok(file));
    assert_eq!(world.lookup(ROOT, "//directory/./../directory//file"), Ok(file));
    assert_eq!(world.lookup(ROOT, ""), Ok(ROOT));
    assert_eq!(world.lookup(ROOT, "../.."), Ok(ROOT));
    assert_eq!(world.lookup(directory, ".."), Ok(ROOT));
    assert_eq!(world.stat(directory).unwrap().links.get(), 2);
    assert_eq!(world.stat(ROOT).unwrap().links.get(), 3);
    let made = world.stat(file).unwrap();
    assert_eq!((made.mode.get(), made.uid.get(), made.gid.get()), (0o100_640, 10, 20));
    assert_eq!(world.create(directory, "file"), Ok(file), "CREATE opens what is there");
    for number in 0..40 {
        world.create(directory, &format!("entry{number:02}")).unwrap();
    }
    let names = world.list(directory);
    assert_eq!(names.len(), 41);
    assert!(names.is_sorted());
    assert_eq!(world.rmdir(ROOT, "directory"), Err(Status::NOT_EMPTY));
    for name in names {
        world.unlink(directory, &name).unwrap();
    }
    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
    world.rmdir(ROOT, "directory").unwrap();
    assert_eq!(world.stat(ROOT).unwrap().links.get(), 2);
    assert_eq!(world.list(ROOT), Vec::<String>::new());
    world.check();
    world.check_replay();
}

#[test]
fn namespace_errors() {
    let mut world = World::new(1, 1, 4096);
    let directory = world.mkdir(ROOT, "d").unwrap();
    let file = world.create(ROOT, "f").unwrap();
    world.create(directory, "inner").unwrap();
    let long = "x".repeat(256);
    use name_operation::{CREATE, LOOKUP, MKDIR, RMDIR, UNLINK};
    let table: &[(u16, Inode, &str, Status)] = &[
        (LOOKUP, ROOT, "absent", Status::NOT_FOUND),
        (LOOKUP, ROOT, "f/below", Status::NOT_DIRECTORY),
        (LOOKUP, ROOT, "f/", Status::NOT_DIRECTORY),
        (LOOKUP, ROOT, &long, Status::NAME_TOO_LONG),
        (LOOKUP, Inode::new(ShardId(0), 999), "x", Status::STALE_HANDLE),
        (CREATE, ROOT, "d", Status::IS_DIRECTORY),
        (CREATE, ROOT, &long, Status::NAME_TOO_LONG),
        (CREATE, ROOT, "a/b", Status::INVALID),
        (CREATE, ROOT, "", Status::INVALID),
        (CREATE, ROOT, "..", Status::INVALID),
        (CREATE, file, "x", Status::NOT_DIRECTORY),
        (MKDIR, ROOT, "d", Status::EXISTS),
        (MKDIR, ROOT, "f", Status::EXISTS),
        (UNLINK, ROOT, "absent", Status::NOT_FOUND),
        (UNLINK, ROOT, "d", Status::IS_DIRECTORY),
        (RMDIR, ROOT, "absent", Status::NOT_FOUND),
        (RMDIR, ROOT, "f", Status::NOT_DIRECTORY),
        (RMDIR, ROOT, "d", Status::NOT_EMPTY),
        (99, ROOT, "f", Status::NOT_SUPPORTED),
    ];
    for (operation, parent, name, expected) in table {
        assert_eq!(world.name(*operation, *parent, name), Err(*expected), "{operation} {name:?}");
    }
    let mut exclusive = world.name_message(CREATE, ROOT, ROOT, 0);
    exclusive.flags = U32::new(name_flags::EXCLUSIVE);
    world.send_name(&exclusive, b"f", b"");
    assert_eq!(world.wait(&exclusive.header).status(), Status::EXISTS);
    let mut foreign = world.name_message(LOOKUP, ROOT, ROOT, 0);
    foreign.parent.inode = U64::new(Inode::new(ShardId(3), 5).0);
    world.send_name(&foreign, b"f", b"");
    assert_eq!(world.wait(&foreign.header).status(), Status::INVALID);
    world.check();
}

#[test]
fn renames_inside_and_between_directories() {
    let mut world = World::new(1, 1, 4096);
    let a = world.mkdir(ROOT, "a").unwrap();
    let b = world.mkdir(ROOT, "b").unwrap();
    let file = world.create(a, "f").unwrap();
    let other = world.create(b, "g").unwrap();
    let inner = world.mkdir(a, "inner").unwrap();
    world.rename((a, "f"), (a, "f2"), 0).unwrap();
    assert_eq!(world.lookup(a, "f2"), Ok(file));
    assert_eq!(world.lookup(a, "f"), Err(Status::NOT_FOUND));
    assert_eq!(world.rename((a, "f2"), (b, "g"), name_flags::NO_REPLACE), Err(Status::EXISTS));
    world.rename((a, "f2"), (b, "g"), 0).unwrap();
    assert_eq!(world.lookup(b, "g"), Ok(file));
    assert_eq!(world.stat(other), Err(Status::STALE_HANDLE), "the replaced file is gone");
    world.rename((a, "inner"), (b, "moved"), 0).unwrap();
    assert_eq!(world.lookup(inner, ".."), Ok(b));
    assert_eq!(world.stat(a).unwrap().links.get(), 2);
    assert_eq!(world.stat(b).unwrap().links.get(), 3);
    let deep = world.mkdir(inner, "deep").unwrap();
    assert_eq!(world.rename((ROOT, "b"), (deep, "x"), 0), Err(Status::INVALID));
    assert_eq!(world.rename((ROOT, "b"), (b, "x"), 0), Err(Status::INVALID));
    assert_eq!(world.rename((b, "g"), (b, "moved"), 0), Err(Status::IS_DIRECTORY));
    assert_eq!(world.rename((b, "moved"), (b, "g"), 0), Err(Status::NOT_DIRECTORY));
    assert_eq!(world.rename((ROOT, "a"), (b, "moved"), 0), Err(Status::NOT_EMPTY));
    assert_eq!(world.rename((a, "absent"), (b, "x"), 0), Err(Status::NOT_FOUND));
    world.rename((b, "g"), (b, "g"), 0).unwrap();
    world.rmdir(inner, "deep").unwrap();
    world.rename((ROOT, "a"), (b, "moved"), 0).unwrap();
    assert_eq!(world.lookup(b, "moved"), Ok(a), "an empty directory is replaced");
    assert_eq!(world.stat(inner), Err(Status::STALE_HANDLE));
    assert_eq!(world.list(ROOT), ["b"]);
    world.check();
    world.check_replay();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn files_are_written_read_and_truncated() {
    let mut world = World::new(1, 3, 4096);
    let file = world.create(ROOT, "f").unwrap();
    assert_eq!(world.read(file, 0, 100), (vec![], true));
    let data = pattern(1, 3 * 16 * BLOCK + 1234);
    let reply = world.write(file, 0, &data, 0).unwrap();
    assert_eq!((reply.offset.get(), reply.size.get()), (0, data.len() as u64));
    assert_eq!(world.read(file, 0, data.len() + 10), (data.clone(), true));
    assert_eq!(world.read(file, 5000, 3), (data[5000..5003].to_vec(), false));
    // Unaligned inside, across blocks and stripes.
    let patch = pattern(2, 40_000);
    world.write(file, 7_777, &patch, 0).unwrap();
    let mut expected = data.clone();
    expected[7_777..47_777].copy_from_slice(&patch);
    assert_eq!(world.read(file, 0, expected.len()), (expected.clone(), true));
    // Beyond the end: the gap reads as zeros.
    let far = 80 * BLOCK + 17;
    world.write(file, far as u64, b"far", 0).unwrap();
    expected.resize(far, 0);
    expected.extend_from_slice(b"far");
    assert_eq!(world.read(file, 0, 1 << 18), (expected[..1 << 18].to_vec(), false));
    assert_eq!(world.read(file, 1 << 18, 1 << 18), (expected[1 << 18..].to_vec(), true));
    // Shrinking and growing leaves zeros.
    world.truncate(file, 10_001).unwrap();
    world.truncate(file, 30_000).unwrap();
    expected.truncate(10_001);
    expected.resize(30_000, 0);
    assert_eq!(world.read(file, 0, 50_000), (expected.clone(), true));
    world.write(file, 12_000, b"inside", 0).unwrap();
    expected[12_000..12_006].copy_from_slice(b"inside");
    assert_eq!(world.read(file, 0, 50_000), (expected.clone(), true));
    // Appending.
    let reply = world.write(file, 3, b"tail", io_flags::APPEND).unwrap();
    assert_eq!((reply.offset.get(), reply.size.get()), (30_000, 30_004));
    expected.extend_from_slice(b"tail");
    assert_eq!(world.read(file, 0, 50_000), (expected.clone(), true));
    world.truncate(file, 0).unwrap();
    assert_eq!(world.stat(file).unwrap().allocated_bytes.get(), 0);
    world.check();
    world.check_replay();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn reads_without_data_are_answered_by_the_metadata_server() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    world.truncate(file, 10_000).unwrap();
    let request = world.read_message(file, 5_000, 9_000, 2, 0);
    world.send_read(&request);
    let answer = world.take(&request.header).unwrap();
    assert_eq!((answer.io().length.get(), answer.io().end_of_file.get()), (5_000, 1));
    assert!(world.pending.is_empty());
}

#[test]
fn completion_by_the_metadata_server_comes_after_all_notices() {
    let mut world = World::new(1, 2, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(3, 8 * BLOCK);
    world.write(file, 0, &data, 0).unwrap();
    let flags = io_flags::COMPLETE_BY_METASERVER;
    let request = world.read_message(file, 0, 9 * BLOCK, 2, flags);
    world.send_read(&request);
    assert_eq!(world.pending.len(), 2);
    world.execute(1);
    assert!(world.take(&request.header).is_none());
    world.execute(0);
    let answer = world.take(&request.header).unwrap();
    assert_eq!(answer.io().length.get() as usize, data.len());
    let start = 2 * super::world::SLOT_BYTES;
    assert_eq!(world.memory[start..start + data.len()], data);
    assert!(world.arrived.is_empty());
}

#[test]
fn io_errors() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let directory = world.mkdir(ROOT, "d").unwrap();
    assert_eq!(world.write(directory, 0, b"x", 0).unwrap_err(), Status::IS_DIRECTORY);
    assert_eq!(world.truncate(directory, 0), Err(Status::IS_DIRECTORY));
    assert_eq!(world.write(file, u64::MAX, b"x", 0).unwrap_err(), Status::FILE_TOO_LARGE);
    assert_eq!(world.write(file, 1 << 60, b"x", 0).unwrap_err(), Status::FILE_TOO_LARGE);
    assert_eq!(world.truncate(file, (1 << 60) + 1), Err(Status::FILE_TOO_LARGE));
    world.write(file, 0, b"data", 0).unwrap();
    let mut unknown = world.read_message(file, 0, 4, 2, 0);
    unknown.buffer.region = U32::new(99);
    world.send_read(&unknown);
    match world.take(&unknown.header) {
        Some(Answer::Io(reply, targets)) => {
            assert_eq!(reply.header.status.get(), Status::STALE_SET.0);
            assert_eq!(targets, [world.servers[0].id.0]);
        }
        other => panic!("{other:?}"),
    }
    let mut unknown = world.write_message(file, 0, b"abc", 1, 0);
    unknown.buffer.region = U32::new(99);
    world.send_write(&unknown);
    assert_eq!(world.take(&unknown.header).unwrap().status(), Status::STALE_SET);
    let mut outside = world.read_message(file, 0, 4, 2, 0);
    outside.buffer.offset = U64::new(world.memory.len() as u64 - 3);
    world.send_read(&outside);
    assert_eq!(world.take(&outside.header).unwrap().status(), Status::INVALID);
    let mut overflow = world.read_message(file, 0, 4, 2, 0);
    overflow.buffer.offset = U64::new(u64::MAX);
    overflow.offset = U64::new(1);
    world.send_read(&overflow);
    assert_eq!(world.take(&overflow.header).unwrap().status(), Status::INVALID);
    let mut wrong = world.read_message(file, 0, 4, 2, 0);
    wrong.offset = U64::new(u64::MAX);
    world.send_read(&wrong);
    assert_eq!(world.take(&wrong.header).unwrap().status(), Status::INVALID);
    let mut slot = world.read_message(file, 0, 4, 2, 0);
    slot.header.slot = U16::new(200);
    world.send_read(&slot);
    assert_eq!(world.take(&slot.header).unwrap().status(), Status::INVALID);
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn a_full_store_says_so_and_recovers() {
    // Not a whole number of zones; one shard can use all of them.
    let blocks = 2 * 1024 + 500 - 8;
    let mut world = World::new(1, 1, blocks);
    let a = world.create(ROOT, "a").unwrap();
    // More than what is left in the end: that must not go round in circles.
    let chunk = pattern(1, 64 * BLOCK);
    let full = blocks / 64 * 64 * BLOCK as u64;
    let mut written = 0;
    let status = loop {
        match world.write(a, written, &chunk, 0) {
            Ok(reply) => written += u64::from(reply.length.get()),
            Err(status) => break status,
        }
    };
    assert_eq!(status, Status::NO_SPACE);
    assert_eq!(written, full);
    world.write(a, full, &chunk[..(blocks % 64) as usize * BLOCK], 0).unwrap();
    assert_eq!(world.cores[0].space().blocks_used, blocks, "all of the store is used");
    world.check();
    assert_eq!(world.write(a, 0, b"x", 0).unwrap_err(), Status::NO_SPACE);
    world.unlink(ROOT, "a").unwrap();
    let directory = world.mkdir(ROOT, "another").unwrap();
    let b = world.create(directory, "b").unwrap();
    assert_ne!(b.shard(), a.shard());
    for step in 0..written / chunk.len() as u64 {
        world.write(b, step * chunk.len() as u64, &chunk, 0).unwrap();
    }
    assert_eq!(world.read(b, written - 100, 100).0, chunk[chunk.len() - 100..]);
    assert_eq!(world.cores[0].space().blocks_used, blocks / 64 * 64);
    world.check();
    world.check_replay();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn a_full_store_of_a_set_is_stood_in_for() {
    let mut world = World::new(1, 2, 1024);
    let file = world.create(ROOT, "f").unwrap();
    // Fill one store through files of one stripe each.
    let mut number = 0;
    while world.cores[0].space().blocks_used < 1024 + 512 {
        let other = world.create(ROOT, &format!("o{number}")).unwrap();
        world.write(other, 0, &pattern(number, 4 * BLOCK), 0).unwrap();
        number += 1;
    }
    let data = pattern(9, 63 * BLOCK);
    let mut written = 0;
    while world.write(file, written, &data, 0).is_ok() {
        written += data.len() as u64;
    }
    assert!(world.cores[0].space().blocks_used > 2048 - 64);
    for step in 0..written / data.len() as u64 {
        assert_eq!(world.read(file, step * data.len() as u64, data.len()).0, data);
    }
    world.check();
}

#[test]
fn striping_spreads_a_file_over_its_set() {
    let mut world = World::new(1, 3, 4096);
    let file = world.create(ROOT, "f").unwrap();
    let data = pattern(4, 24 * BLOCK);
    let request = world.write_message(file, 0, &data, 1, 0);
    world.send_write(&request);
    let opened = world.name_message(name_operation::LOOKUP, ROOT, ROOT, 0);
    world.send_name(&opened, b"f", b"");
    match world.take(&opened.header) {
        Some(Answer::Entry(_, mut targets)) => {
            targets.sort_unstable();
            assert_eq!(targets, [1, 2, 3]);
        }
        other => panic!("{other:?}"),
    }
    // 24 blocks in stripes of 4: six runs, of which two each lie on the same store.
    let mut per_target = std::collections::BTreeMap::new();
    for pending in &world.pending {
        *per_target.entry(pending.target).or_insert(0) += pending.grant.blocks();
    }
    assert_eq!(per_target.values().copied().collect::<Vec<_>>(), [8, 8, 8]);
    assert_eq!(world.wait(&request.header).status(), Status::OK);
    assert_eq!(world.read(file, 0, data.len()), (data, true));
}

#[test]
fn aligned_writes_run_in_parallel_and_edges_exclude() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    world.write(file, 0, &pattern(0, 8 * BLOCK), 0).unwrap();
    let one = world.write_message(file, 0, &pattern(1, 2 * BLOCK), 1, 0);
    let two = world.write_message(file, 0, &pattern(2, 2 * BLOCK), 2, 0);
    world.send_write(&one);
    world.send_write(&two);
    assert_eq!(world.pending.len(), 2, "both are granted");
    let edge = world.write_message(file, 100, b"edge", 3, 0);
    world.send_write(&edge);
    assert_eq!(world.pending.len(), 2, "the edge waits for both");
    let append = world.write_message(file, 0, b"append", 4, io_flags::APPEND);
    world.send_write(&append);
    assert_eq!(world.pending.len(), 3, "the append is elsewhere");
    let cut = world.attributes_message(file, 50, 5);
    world.send_attributes(&cut);
    assert!(world.take(&cut.header).is_none(), "truncation waits for all");
    let late = world.write_message(file, 4 * BLOCK as u64, &pattern(3, BLOCK), 6, 0);
    world.send_write(&late);
    assert_eq!(world.pending.len(), 3, "nobody overtakes the truncation");
    // The second write commits last.
    world.execute(0);
    world.execute(0);
    world.run();
    for request in [one.header, two.header, edge.header, append.header, cut.header, late.header] {
        assert_eq!(world.take(&request).unwrap().status(), Status::OK);
    }
    let mut expected = pattern(2, 50);
    expected.resize(4 * BLOCK, 0);
    expected.extend_from_slice(&pattern(3, BLOCK));
    assert_eq!(world.read(file, 0, 8 * BLOCK), (expected, true));
    world.check();
    assert!(world.cores[0].is_quiet());
}

#[test]
fn a_sequential_write_loop_makes_few_extents() {
    let mut world = World::new(1, 1, 4096);
    let file = world.create(ROOT, "f").unwrap();
    for step in 0..64 {
        world.write(file, step * 16 * BLOCK as u64, &pattern(step, 16 * BLOCK), 0).unwrap();
    }
    let extents = world.cores[0].dump().matches("Extent").count();
    assert_eq!(extents, 1);
}

#[test]
fn a_read_of_many_pieces_is_answered_short() {
    let mut world = World::new(1, 1, 8192);
    world.cores[0].parts_max = 4;
    let file = world.create(ROOT, "f").unwrap();
    let mut random = Random(5);
    let mut expected = pattern(1, 40 * BLOCK);
    world.write(file, 0, &expected, 0).unwrap();
    for step in 0..30 {
        let block = random.below(40) as usize;
        let data = pattern(step + 10, BLOCK);
        expected[block * BLOCK..(block + 1) * BLOCK].copy_from_slice(&data);
        world.write(file, (block * BLOCK) as u64, &data, 0).unwrap();
    }
    let (mut position, mut reads) = (0, 0);
    while position < expected.len() {
        let (bytes, end) = world.read(file, position as u64, expected.len());
        assert_eq!(bytes, expected[position..position + bytes.len()]);
        position += bytes.len();
        assert_eq!(end, position == expected.len());
        reads += 1;
    }
    assert!(reads > 4);
}

#[test]
fn misdirected_requests_are_told_so() {
    let mut world = World::new(2, 1, 4096);
    let mut request = world.name_message(name_operation::LOOKUP, ROOT, ROOT, 0);
    request.header.shard = U16::new(1);
    let (core, sink) = (&mut world.cores[0], &mut world.sinks[0]);
    let names = gannet_proto::operations::Names { name: b"x", to_name: b"" };
    let now = crate::Now::default();
    core.name_request(now, world.indexes[0], &request, names, sink);
    world.collect();
    assert_eq!(world.take(&request.header).unwrap().status(), Status::WRONG_SHARD);
}
