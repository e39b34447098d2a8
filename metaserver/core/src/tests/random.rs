//! Random operations against an oracle: names in maps, files in byte vectors.

use std::collections::BTreeMap;

use gannet_proto::operations::{RequestHeader, io_flags};
use gannet_proto::{Inode, Status};

use super::world::{Answer, BLOCK, Random, SLOTS, World, key, pattern};

const ROOT: Inode = Inode::ROOT;

/// Sequential operations on a tree and its files, each compared with the oracle.
fn sequence(seed: u64, steps: u64, reactors: u16, servers: usize) {
    let mut random = Random(seed);
    let mut world = World::new(reactors, servers, 8192);
    let directories: Vec<Inode> =
        (0..4).map(|number| world.mkdir(ROOT, &format!("d{number}")).unwrap()).collect();
    let mut names: Vec<BTreeMap<String, Inode>> = vec![BTreeMap::new(); 4];
    let mut files: BTreeMap<Inode, Vec<u8>> = BTreeMap::new();
    for step in 0..steps {
        world.now_ns += 5;
        let place = random.below(4) as usize;
        let (parent, name) = (directories[place], format!("f{}", random.below(6)));
        let known = names[place].get(&name).copied();
        match random.below(20) {
            0 | 1 => {
                let file = world.create(parent, &name).unwrap();
                assert_eq!(known.unwrap_or(file), file);
                names[place].insert(name, file);
                files.entry(file).or_default();
            }
            2 => {
                let done = world.unlink(parent, &name);
                assert_eq!(done, known.map(|_| ()).ok_or(Status::NOT_FOUND));
                if let Some(file) = names[place].remove(&name) {
                    files.remove(&file);
                    assert_eq!(world.stat(file), Err(Status::STALE_HANDLE));
                }
            }
            3 => {
                let to = random.below(4) as usize;
                let to_name = format!("f{}", random.below(6));
                let done = world.rename((parent, &name), (directories[to], &to_name), 0);
                assert_eq!(done, known.map(|_| ()).ok_or(Status::NOT_FOUND));
                if let Some(file) = names[place].remove(&name) {
                    let old = names[to].insert(to_name, file);
                    if let Some(old) = old.filter(|old| *old != file) {
                        files.remove(&old);
                    }
                }
            }
            4 => {
                let expected: Vec<String> = names[place].keys().cloned().collect();
                assert_eq!(world.list(parent), expected);
            }
            5 | 6 => {
                let Some(file) = known else { continue };
                let size = random.below(30 * BLOCK as u64);
                let attributes = world.truncate(file, size).unwrap();
                assert_eq!(attributes.size.get(), size);
                files.get_mut(&file).unwrap().resize(size as usize, 0);
            }
            7..=12 => {
                let Some(file) = known else { continue };
                let content = files.get_mut(&file).unwrap();
                let (offset, length) = range(&mut random);
                let data = pattern(seed ^ step, length);
                let append = random.chance(20);
                let flags = if append { io_flags::APPEND } else { 0 };
                let reply = world.write(file, offset as u64, &data, flags).unwrap();
                let offset = if append { content.len() } else { offset };
                assert_eq!(reply.offset.get(), offset as u64);
                let end = (offset + length).max(content.len());
                content.resize(end, 0);
                content[offset..offset + length].copy_from_slice(&data);
                assert_eq!(reply.size.get(), end as u64);
            }
            _ => {
                let Some(file) = known else { continue };
                let content = &files[&file];
                let (offset, length) = range(&mut random);
                let (bytes, end) = world.read(file, offset as u64, length);
                let until = (offset + length).min(content.len());
                let expected = content.get(offset..until).unwrap_or(&[]);
                assert!(bytes == expected, "seed {seed} step {step}: {file:?} at {offset}");
                assert_eq!(end, offset + length >= content.len());
            }
        }
        if step % 2000 == 1999 {
            world.check();
            world.check_replay();
            assert!(world.cores.iter().all(crate::Core::is_quiet));
            if random.chance(50) {
                // A reactor without changes in its log does not know the session.
                assert!(world.restart() || reactors > 1);
                world.up_all();
                world.end_reclaim();
            }
        }
    }
    for (file, content) in &files {
        let (bytes, _) = world.read(*file, 0, 60 * BLOCK);
        assert!(bytes == *content, "seed {seed}: {file:?}");
    }
    world.check();
    world.check_replay();
}

fn range(random: &mut Random) -> (usize, usize) {
    let unit = if random.chance(50) { BLOCK as u64 } else { 1 };
    let offset = random.below(24 * BLOCK as u64 / unit) * unit;
    let length = (1 + random.below(8 * BLOCK as u64 / unit)) * unit;
    (offset as usize, length as usize)
}

#[test]
fn a_tree_of_files_agrees_with_the_oracle() {
    sequence(0x1111, 40_000, 1, 1);
    sequence(0x2222, 40_000, 1, 3);
    sequence(0x3333, 30_000, 3, 2);
}

/// What is under way in a slot.
enum Under {
    Write {
        offset: usize,
        data: Vec<u8>,
        append: bool,
    },
    Truncate {
        size: usize,
    },
    /// What the file held when the read was granted.
    Read {
        offset: usize,
        length: usize,
        expected: Option<Vec<u8>>,
    },
}

/// Overlapping operations on one file, with grants carried out in any order, stalled, failed,
/// superseded, and with data servers that go and come. Whatever commits, commits in the order of
/// the answers; a read shows the file as it was when its grants were made, whole.
fn overlap(seed: u64, steps: u64) {
    let mut random = Random(seed);
    let mut world = World::new(1, 2, 2048);
    let file = world.create(ROOT, "f").unwrap();
    let mut content: Vec<u8> = Vec::new();
    let mut under: BTreeMap<u16, (RequestHeader, Under)> = BTreeMap::new();
    let mut completed = 0;
    for step in 0..steps {
        world.now_ns += 5;
        let slot = random.below(SLOTS as u64) as u16;
        if !under.contains_key(&slot) && random.chance(60) {
            begin(&mut world, &mut random, (slot, seed ^ step, file), &content, &mut under);
        } else if random.chance(3) {
            let server = random.below(2) as usize;
            world.down(0, server);
            let gone = world.servers[server].id;
            // Transfers of the lost channel may still run until the data server is back.
            let (lost, kept) = world.pending.drain(..).partition(|p| p.target == gone);
            world.pending = kept;
            let lost: Vec<super::world::Pending> = lost;
            settle(&mut world, &mut under, &mut content, &mut completed);
            for pending in &lost {
                if random.chance(50) && pending.grant.operation == 2 {
                    world.transfer(pending);
                }
            }
            world.up(0, server);
        } else if random.chance(3) {
            if let Some((header, _)) = under.get(&slot) {
                let header = *header;
                world.send_cancel(&header);
            }
        } else if !world.pending.is_empty() {
            let place = random.below(world.pending.len() as u64) as usize;
            if random.chance(4) {
                let pending = world.pending.remove(place);
                let told = random.chance(50);
                let status = if told { Status::IO } else { Status::SESSION_GONE };
                if pending.grant.flags == 0 && told {
                    world.arrive(&pending, status);
                }
                world.notice(&pending, status);
            } else {
                world.execute(place);
            }
        }
        settle(&mut world, &mut under, &mut content, &mut completed);
        if step % 500 == 499 {
            world.check();
        }
    }
    world.run();
    settle(&mut world, &mut under, &mut content, &mut completed);
    assert!(under.is_empty(), "seed {seed}: {} requests have no end", under.len());
    assert!(completed > steps / 10);
    assert!(world.cores[0].is_quiet());
    world.check();
    world.check_replay();
    assert!(world.read(file, 0, 50 * BLOCK).0 == content);
}

fn begin(
    world: &mut World,
    random: &mut Random,
    (slot, seed, file): (u16, u64, Inode),
    content: &[u8],
    under: &mut BTreeMap<u16, (RequestHeader, Under)>,
) {
    let (offset, length) = range(random);
    match random.below(10) {
        0 => {
            let size = random.below(30 * BLOCK as u64);
            let request = world.attributes_message(file, size, slot);
            under.insert(slot, (request.header, Under::Truncate { size: size as usize }));
            world.send_attributes(&request);
        }
        1..=4 => {
            let data = pattern(seed, length);
            let append = random.chance(10);
            let flags = if append { io_flags::APPEND } else { 0 };
            let request = world.write_message(file, offset as u64, &data, slot, flags);
            under.insert(slot, (request.header, Under::Write { offset, data, append }));
            world.send_write(&request);
        }
        _ => {
            let request = world.read_message(file, offset as u64, length, slot, 0);
            world.send_read(&request);
            let granted = world.pending.iter().any(|pending| {
                let trailer: &[u8] = &pending.grant.trailer;
                trailer[..16] == *zerocopy::IntoBytes::as_bytes(&request.header)
            });
            let answered = world.answers.iter().any(|answer| answer.header() == request.header);
            let until = (offset + length).min(content.len());
            let expected = content.get(offset..until).unwrap_or(&[]).to_vec();
            let expected = (granted || answered).then_some(expected);
            under.insert(slot, (request.header, Under::Read { offset, length, expected }));
        }
    }
}

/// Takes the answers in order and applies them to the oracle.
fn settle(
    world: &mut World,
    under: &mut BTreeMap<u16, (RequestHeader, Under)>,
    content: &mut Vec<u8>,
    completed: &mut u64,
) {
    for answer in std::mem::take(&mut world.answers) {
        let slot = answer.header().slot.get();
        let Some((_, operation)) = under.remove(&slot) else {
            panic!("an answer that nobody waits for: {answer:?}")
        };
        world.arrived.remove(&key(&answer.header()));
        let status = answer.status();
        if !status.is_ok() {
            let expected =
                [Status::RETRY, Status::CANCELLED, Status::IO, Status::TIMED_OUT, Status::NO_SPACE];
            assert!(expected.contains(&status), "{status}");
            continue;
        }
        *completed += 1;
        match operation {
            Under::Write { offset, data, append } => {
                let offset = if append { content.len() } else { offset };
                let Answer::Io(reply, _) = &answer else { panic!("{answer:?}") };
                assert_eq!(reply.offset.get(), offset as u64);
                let end = (offset + data.len()).max(content.len());
                content.resize(end, 0);
                content[offset..offset + data.len()].copy_from_slice(&data);
                assert_eq!(reply.size.get(), content.len() as u64);
            }
            Under::Truncate { size } => content.resize(size, 0),
            Under::Read { expected, .. } => {
                let length = answer.io().length.get() as usize;
                if let Some(expected) = expected {
                    assert_eq!(vec![0; length], expected);
                }
            }
        }
    }
    let complete: Vec<(u16, RequestHeader)> = under
        .iter()
        .filter(|(_, (header, _))| {
            world.arrived.get(&key(header)).is_some_and(|arrived| arrived.parts == arrived.of)
        })
        .map(|(slot, (header, _))| (*slot, *header))
        .collect();
    for (slot, header) in complete {
        let (_, operation) = under.remove(&slot).unwrap();
        let Under::Read { offset, length, expected } = operation else { panic!("not a read") };
        if world.arrived[&key(&header)].failed.is_some() {
            world.arrived.remove(&key(&header));
            continue;
        }
        let (bytes, _) = world.read_result(&header).unwrap();
        *completed += 1;
        if let Some(expected) = expected {
            assert!(bytes == expected, "a read at {offset} of {length} bytes is torn");
        }
    }
}

#[test]
fn overlapping_operations_are_atomic() {
    for seed in 1..=40 {
        overlap(seed * 0x0123_4567_89ab, 3_000);
    }
}
