//! Operations over several shards, and a crash at every point: whatever is left of the logs, the next
//! start brings each operation to its end, wholly or not at all. And whatever it does to names, a file that a
//! host has open is there for it when it comes back.

use std::collections::BTreeMap;

use gannet_proto::operations::{
    NameRequest, file_type, inode_operation, name_flags, name_operation,
};
use gannet_proto::{Handle, Inode, ShardId, Status};

use super::world::{Output, Random, TestSink, World};
use crate::check::{Findings, check_replayed};
use crate::names::shard_of_name;
use crate::{Core, CoreConfig};

const ROOT: Inode = Inode::ROOT;

/// A directory in the root that lies on a shard.
fn directory_on(world: &mut World, shard: u16) -> (Inode, String) {
    let names = (0..).map(|number| format!("d{shard}-{number}"));
    let name = names.into_iter().find(|name| shard_of_name(name.as_bytes()) == ShardId(shard));
    let name = name.unwrap();
    let directory = world.mkdir(ROOT, &name).unwrap();
    assert_eq!(directory.shard(), Some(ShardId(shard)));
    (directory, name)
}

/// The tree as the root leads to it: paths, and type, links and size of what is there; and how many inodes there
/// are, so that none is left over.
fn shape(world: &World) -> (BTreeMap<String, (u32, u32, u64)>, usize) {
    let node = |inode: Inode| {
        world.cores.iter().find_map(|core| core.nodes.get(&inode)).expect("a name leads somewhere")
    };
    let mut shape = BTreeMap::new();
    let mut pending = vec![(ROOT, String::new())];
    while let Some((inode, path)) = pending.pop() {
        let found = node(inode);
        let links = if found.directory().is_some() { 0 } else { found.links };
        let size = found.attributes().size.get();
        shape.insert(path.clone(), (found.mode & file_type::MASK, links, size));
        for (name, entry) in found.directory().into_iter().flat_map(|d| d.entries.iter()) {
            pending.push((entry.inode, format!("{path}/{}", String::from_utf8_lossy(name))));
        }
    }
    (shape, world.cores.iter().map(|core| core.nodes.len()).sum())
}

/// The root's shard, then a shard for each letter.
struct Tree {
    world: World,
    a: Inode,
    b: Inode,
    c: Inode,
    /// Name of `c` in the root.
    c_name: String,
    /// In `a`.
    file: Inode,
    /// All files, with their content.
    files: Vec<(Inode, &'static [u8])>,
}

/// `a` holds `f` and the directories `sub` (with `inside`) and `empty`; `b` holds `g` of its own
/// shard, `far` whose inode lies on `c`'s shard, and `hollow`, an empty directory of `c`'s shard.
fn tree(reactors: u16) -> Tree {
    let mut world = World::new(reactors, 1, 1024);
    let ((a, _), (b, _)) = (directory_on(&mut world, 1), directory_on(&mut world, 2));
    let (c, c_name) = directory_on(&mut world, 4);
    let file = world.create(a, "f").unwrap();
    world.write(file, 0, b"content", 0).unwrap();
    let sub = world.mkdir(a, "sub").unwrap();
    let inside = world.create(sub, "inside").unwrap();
    world.mkdir(a, "empty").unwrap();
    let g = world.create(b, "g").unwrap();
    let far = world.create(c, "far").unwrap();
    world.write(far, 0, b"from afar", 0).unwrap();
    world.rename((c, "far"), (b, "far"), 0).unwrap();
    world.mkdir(c, "hollow").unwrap();
    world.rename((c, "hollow"), (b, "hollow"), 0).unwrap();
    let inner = world.mkdir(b, "full").unwrap();
    let within = world.create(inner, "within").unwrap();
    let files =
        vec![(file, &b"content"[..]), (inside, b""), (g, b""), (far, b"from afar"), (within, b"")];
    Tree { world, a, b, c, c_name, file, files }
}

/// The host opens all files of the tree.
fn open_all(world: &mut World, files: &[(Inode, &[u8])]) {
    for (number, (file, _)) in (1..).zip(files) {
        world.open_file(*file, inode_operation::OPEN_READ_WRITE, number).unwrap();
    }
}

/// The host of the last run comes back to what a crash has left, and says that it has files open, or the
/// last run had none. Its files are there, and stay.
fn come_back(left: &mut World, before: &mut World, files: &[(Inode, &[u8])], what: &str) {
    left.sequences.clone_from(&before.sequences);
    left.open();
    std::mem::swap(&mut left.servers, &mut before.servers);
    left.up_all();
    left.register(left.servers[0].id, 2);
    for (number, (file, _)) in (1..).zip(files) {
        left.declare(*file, inode_operation::OPEN_READ_WRITE, number);
    }
    left.end_reclaim();
    for (file, content) in files {
        assert!(left.stat(*file).is_ok(), "{what}: {file:?} is lost");
        assert_eq!(left.read(*file, 0, 100).0, *content, "{what}: {file:?}");
    }
    left.check();
    left.check_replay();
    std::mem::swap(&mut left.servers, &mut before.servers);
}

/// Closes what the host has declared: nothing is left over.
fn close_all(left: &mut World, files: &[(Inode, &[u8])], what: &str) {
    for (number, (file, _)) in (1..).zip(files) {
        left.open_file(*file, inode_operation::CLOSE, number).unwrap();
    }
    for core in &left.cores {
        let nameless = core.nodes.values().filter(|node| node.links == 0).count();
        assert_eq!(nameless, 0, "{what}: files without a name");
    }
}

type Build = fn(&mut Tree) -> (NameRequest, &'static str, &'static str);

fn request(tree: &mut Tree, operation: u16, from: Inode, to: Inode, flags: u32) -> NameRequest {
    let mut request = tree.world.name_message(operation, from, to, 5);
    request.flags = flags.into();
    request
}

/// Operations of which each takes at least two shards.
const OPERATIONS: [(&str, Build); 17] = [
    ("mkdir in the root", |t| (request(t, name_operation::MKDIR, ROOT, ROOT, 0), "new7", "")),
    ("rmdir of another shard's directory", |t| {
        (request(t, name_operation::RMDIR, t.b, ROOT, 0), "hollow", "")
    }),
    ("unlink of the last name, on another shard", |t| {
        (request(t, name_operation::UNLINK, t.b, ROOT, 0), "far", "")
    }),
    ("link into another shard", |t| {
        (request(t, name_operation::LINK, t.b, t.file, 0), "linked", "")
    }),
    ("unlink of one of two names", |t| {
        t.world.link(t.file, (t.b, "second")).unwrap();
        (request(t, name_operation::UNLINK, t.b, ROOT, 0), "second", "")
    }),
    ("rename to a free name", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, name_flags::NO_REPLACE), "f", "new")
    }),
    ("rename over a file of the destination", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, 0), "f", "g")
    }),
    ("rename over a file of a third shard", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, 0), "f", "far")
    }),
    ("rename over one of two names", |t| {
        let far = t.world.lookup(t.b, "far").unwrap();
        t.world.link(far, (t.a, "near")).unwrap();
        (request(t, name_operation::RENAME, t.a, t.b, 0), "f", "far")
    }),
    ("rename of a directory to a free name", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, 0), "sub", "sub")
    }),
    ("rename of a directory over one of a third shard", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, 0), "sub", "hollow")
    }),
    ("rename of a directory of another shard", |t| {
        (request(t, name_operation::RENAME, t.b, t.a, 0), "hollow", "hollow")
    }),
    ("rename of four shards", |t| {
        // From `b` to the root's shard, of an inode of `c`, over one of `a`.
        let empty = (t.a, "empty");
        t.world.rename(empty, (ROOT, "place"), 0).unwrap();
        (request(t, name_operation::RENAME, t.b, ROOT, 0), "hollow", "place")
    }),
    ("rename in one directory of what lies elsewhere", |t| {
        (request(t, name_operation::RENAME, t.b, t.b, 0), "far", "g")
    }),
    ("exchange of two files", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, name_flags::EXCHANGE), "f", "far")
    }),
    ("exchange of two directories", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, name_flags::EXCHANGE), "sub", "full")
    }),
    ("exchange of a file and a directory", |t| {
        (request(t, name_operation::RENAME, t.a, t.b, name_flags::EXCHANGE), "f", "hollow")
    }),
];

/// Delivers all messages, those of different senders in any order.
fn deliver_all(world: &mut World, random: &mut Random) {
    while let Some(places) = Some(world.deliverable()).filter(|places| !places.is_empty()) {
        world.deliver(places[random.below(places.len() as u64) as usize]);
    }
}

fn logs(world: &World, lengths: &[usize]) -> Vec<Vec<Vec<u8>>> {
    let sinks = world.sinks.iter().zip(lengths);
    sinks.map(|(sink, length)| sink.log[..*length].to_vec()).collect()
}

/// All ways to cut the logs between two moments that a crash can leave.
fn cuts(world: &World, from: &[usize]) -> Vec<Vec<usize>> {
    let mut cuts = vec![Vec::new()];
    for (sink, from) in world.sinks.iter().zip(from) {
        let longer = |cut: &Vec<usize>| {
            let cut = cut.clone();
            (*from..=sink.log.len()).map(move |len| [&cut[..], &[len]].concat())
        };
        cuts = cuts.iter().flat_map(longer).collect();
    }
    cuts.retain(|cut| world.can_remain(cut));
    cuts
}

/// Starts cores from what is left, and checks that they serve and that nothing is amiss, also for a
/// check of the logs that the start has made of it.
fn recover(config: &CoreConfig, left: &[Vec<Vec<u8>>], what: &str) -> World {
    let world = World::from_logs(config, left);
    for core in &world.cores {
        assert!(core.ready() && core.is_quiet(), "{what}: something is under way");
    }
    world.check();
    world.check_replay();
    let mut cores: Vec<Core> = Vec::new();
    for (reactor, sink) in world.sinks.iter().enumerate() {
        let mut core = Core::new(CoreConfig { reactor: reactor as u16, ..config.clone() });
        sink.log.iter().for_each(|record| core.replay(record).unwrap());
        cores.push(core);
    }
    let mut findings = Findings::new(10);
    check_replayed(&mut cores, &mut findings);
    let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(texts.is_empty(), "{what}: {texts:#?}");
    world
}

#[test]
fn an_operation_over_shards_is_whole_or_absent_after_a_crash_at_any_point() {
    let (mut points, mut whole, mut absent, mut orphaned) = (0, 0, 0, 0);
    let runs = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)];
    let runs = runs.into_iter().flat_map(|run| [(run, false), (run, true)]);
    for ((reactors, seed), opens) in runs {
        for (operation, build) in OPERATIONS {
            let (mut tree, mut random) = (tree(reactors), Random(seed * 0x9e37_79b9));
            let (request, name, to_name) = build(&mut tree);
            let Tree { mut world, files, .. } = tree;
            let files = if opens { &files[..] } else { &[] };
            open_all(&mut world, files);
            let before = shape(&world);
            let from: Vec<usize> = world.sinks.iter().map(|sink| sink.log.len()).collect();
            let replied = world.history.len();
            world.send_name(&request, name.as_bytes(), to_name.as_bytes());
            deliver_all(&mut world, &mut random);
            let answer = world.take(&request.header).unwrap();
            assert_eq!(answer.status(), Status::OK, "{operation}");
            let (after, _) = world.history[replied];
            let done = shape(&world);
            assert_ne!(before, done, "{operation} does nothing");
            let lost = |(file, _): &&(Inode, &[u8])| {
                world.cores.iter().any(|c| c.nodes.get(file).is_some_and(|node| node.links == 0))
            };
            orphaned += files.iter().filter(lost).count();
            assert!(world.cores.iter().all(Core::is_quiet), "{operation}");
            let records: usize =
                world.sinks.iter().zip(&from).map(|(sink, from)| sink.log.len() - from).sum();
            assert!(records >= 4, "{operation}: prepared, decided, applied, forgotten");
            let reactor = world.reactor(&request.header);
            let (mut found_before, mut found_done) = (false, false);
            for cut in cuts(&world, &from) {
                points += 1;
                let what = format!("{operation}, {reactors} reactors, {from:?} {cut:?}");
                let mut left = recover(&world.config, &logs(&world, &cut), &what);
                come_back(&mut left, &mut world, files, &what);
                let found = shape(&left);
                assert!(found == before || found == done, "{what}: {found:#?}");
                (found_before, found_done) =
                    (found_before || found == before, found_done || found == done);
                let decided = cut[reactor] as u64 >= after.0;
                assert_eq!(found == done, decided, "{what}: acknowledged, or not decided");
                *(if decided { &mut whole } else { &mut absent }) += 1;
                // The host asks again: what was done is answered from memory, the rest is done.
                let again = NameRequest {
                    header: gannet_proto::operations::RequestHeader {
                        attempt: 2.into(),
                        ..request.header
                    },
                    ..request
                };
                let records: usize = left.sinks.iter().map(|sink| sink.log.len()).sum();
                left.send_name(&again, name.as_bytes(), to_name.as_bytes());
                let answered = left.wait(&again.header);
                assert_eq!(answered.status(), Status::OK, "{what}: asked again");
                let made: usize = left.sinks.iter().map(|sink| sink.log.len()).sum();
                assert_eq!(made == records, decided, "{what}: executed once");
                assert_eq!(shape(&left), done, "{what}: asked again");
                if decided {
                    assert_eq!(answered.attributes(), answer.attributes(), "{what}");
                }
                close_all(&mut left, files, &what);
            }
            assert!(found_before && found_done, "{operation}: the cuts miss something");
        }
    }
    println!(
        "{points} points: {whole} whole, {absent} absent; {orphaned} open files lost their name"
    );
    assert!(points > 1000 && orphaned > 20);
}

/// Many operations at once, their messages delivered in random order, and a crash that leaves any
/// part of the logs that it can leave.
#[test]
fn concurrent_operations_survive_a_crash_at_any_point() {
    let mut points = 0;
    for seed in 1..=12u64 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut tree = tree(2 + (seed % 2) as u16);
        let (c_name, files) = (tree.c_name.clone(), std::mem::take(&mut tree.files));
        open_all(&mut tree.world, &files);
        let parents = [ROOT, tree.a, tree.b, tree.c];
        let names = ["f", "sub", "g", "far", "hollow", &c_name];
        let from: Vec<usize> = tree.world.sinks.iter().map(|sink| sink.log.len()).collect();
        for slot in 1..9u16 {
            let (parent, to) =
                (parents[random.below(4) as usize], parents[random.below(4) as usize]);
            let (name, to_name) =
                (names[random.below(6) as usize], names[random.below(6) as usize]);
            let operation = [
                name_operation::RENAME,
                name_operation::RENAME,
                name_operation::LINK,
                name_operation::MKDIR,
                name_operation::RMDIR,
                name_operation::UNLINK,
            ][random.below(6) as usize];
            let world = &mut tree.world;
            let mut request = world.name_message(operation, parent, to, slot);
            if operation == name_operation::LINK {
                request.to_parent = Handle::new(tree.file);
            } else if random.chance(30) {
                request.flags = name_flags::EXCHANGE.into();
            }
            world.send_name(&request, name.as_bytes(), to_name.as_bytes());
        }
        let world = &mut tree.world;
        deliver_all(world, &mut random);
        assert!(world.cores.iter().all(Core::is_quiet), "seed {seed}");
        for _ in 0..400 {
            let cut: Vec<usize> = world
                .sinks
                .iter()
                .zip(&from)
                .map(|(sink, from)| {
                    from + random.below((sink.log.len() - from) as u64 + 1) as usize
                })
                .collect();
            if world.can_remain(&cut) {
                points += 1;
                let what = format!("seed {seed}, {from:?} {cut:?}");
                let mut left = recover(&world.config, &logs(world, &cut), &what);
                come_back(&mut left, world, &files, &what);
                shape(&left);
                close_all(&mut left, &files, &what);
            }
        }
    }
    println!("{points} points");
    assert!(points > 200);
}

/// Cores of one server start at different speeds: a question may come before the log is replayed.
#[test]
fn questions_that_come_before_the_replay_are_answered_after_it() {
    let mut tree = tree(2);
    let (a, b) = (tree.a, tree.b);
    let rename = request(&mut tree, name_operation::RENAME, a, b, 0);
    let mut world = tree.world;
    world.send_name(&rename, b"f", b"g");
    let coordinator = world.reactor(&rename.header);
    // Prepared, decided, and not applied: the decision is on its way.
    let undecided = world.sinks[coordinator].log.len();
    while world.sinks[coordinator].log.len() == undecided {
        world.deliver(0);
    }
    let all: Vec<usize> = world.sinks.iter().map(|sink| sink.log.len()).collect();
    let left = logs(&world, &all);
    let participant = 1 - coordinator;
    let mut cores: Vec<Core> =
        (0..2).map(|reactor| Core::new(CoreConfig { reactor, ..world.config.clone() })).collect();
    let mut sinks = [TestSink::default(), TestSink::default()];
    let now = world.now();
    let carry = |from: usize, cores: &mut Vec<Core>, sinks: &mut [TestSink; 2]| {
        while let Some(output) = sinks[from].outputs.pop_front() {
            let Output::Peer { to, message, .. } = output else { panic!("{output:?}") };
            let to = usize::from(to);
            cores[to].peer(now, from as u16, message, &mut sinks[to]);
        }
    };
    for reactor in [participant, coordinator] {
        left[reactor].iter().for_each(|record| cores[reactor].replay(record).unwrap());
        cores[reactor].finish_replay(now, &mut sinks[reactor]);
        carry(reactor, &mut cores, &mut sinks);
        assert!(!cores[participant].ready() && !cores[coordinator].ready());
    }
    for _ in 0..3 {
        carry(participant, &mut cores, &mut sinks);
        carry(coordinator, &mut cores, &mut sinks);
    }
    for core in &cores {
        assert!(core.ready() && core.is_quiet());
    }
    let entry = cores[participant].nodes.get(&tree.b).unwrap().directory().unwrap();
    assert_eq!(entry.entries.get(b"g").unwrap().inode, tree.file, "it was decided");
}

/// A number that a participant remembers is not given to another operation.
#[test]
fn numbers_of_operations_that_only_a_participant_knows_are_not_used_again() {
    let mut tree = tree(2);
    let (a, b) = (tree.a, tree.b);
    let rename = request(&mut tree, name_operation::RENAME, a, b, 0);
    let mut world = tree.world;
    let number = |record: &[u8]| u64::from_le_bytes(record[8..16].try_into().unwrap());
    world.send_name(&rename, b"f", b"g");
    let participant = 1 - world.reactor(&rename.header);
    world.deliver_until_recorded(participant);
    let all: Vec<usize> = world.sinks.iter().map(|sink| sink.log.len()).collect();
    let asked = number(world.sinks[participant].log.last().unwrap());
    let mut left = recover(&world.config, &logs(&world, &all), "prepared only");
    left.sequences.clone_from(&world.sequences);
    left.open();
    let begun = left.sinks[1 - participant].log.len();
    left.create(tree.a, "next").unwrap();
    let next = number(&left.sinks[1 - participant].log[begun]);
    assert!(next > asked, "{next} after {asked}");
    assert_eq!(left.lookup(tree.a, "f"), Ok(tree.file), "it was not decided");
}
