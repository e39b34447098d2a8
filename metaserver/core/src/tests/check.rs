//! What a check of replayed cores finds: nothing in what cores wrote, at any moment; and each kind of
//! finding in logs and states that hold exactly that.

mod space;
mod tree;

use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::operations::name_operation;
use gannet_proto::{Inode, ShardId};

use super::world::{BLOCK, Random, World, pattern};
use crate::check::{FindingKind, Findings, Severity, Summary, View, check_replayed};
use crate::extents::Extent;
use crate::record::{self, Change, ExtentList, Origin, Reply};
use crate::{Core, CoreConfig};
use FindingKind as Kind;
use Severity::{Error, Unfinished};

const ROOT: Inode = Inode::ROOT;

/// The logs of all reactors.
type Logs = Vec<Vec<Vec<u8>>>;

fn logs(world: &World) -> Logs {
    world.sinks.iter().map(|sink| sink.log.clone()).collect()
}

fn replayed(config: &CoreConfig, logs: &Logs) -> Vec<Core> {
    let replay = |(reactor, log): (usize, &Vec<Vec<u8>>)| {
        let mut core = Core::new(CoreConfig { reactor: reactor as u16, ..config.clone() });
        log.iter().for_each(|record| core.replay(record).unwrap());
        core
    };
    logs.iter().enumerate().map(replay).collect()
}

fn check(config: &CoreConfig, logs: &Logs) -> (Summary, Findings) {
    let mut findings = Findings::new(10);
    let summary = check_replayed(&mut replayed(config, logs), &mut findings);
    (summary, findings)
}

fn texts(findings: &Findings) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}

/// A world with a tree over several shards, and what the tests change in it.
struct Tree {
    world: World,
    logs: Logs,
    /// Two directories in the root, on shards of their own; with two reactors, one on each.
    a: Inode,
    b: Inode,
    /// In `a`.
    inner: Inode,
    /// In `inner`.
    deep: Inode,
    /// In `a`, with four blocks.
    file: Inode,
    /// In `b`, with one block.
    other: Inode,
}

fn new_tree(reactors: u16) -> Tree {
    let mut world = World::new(reactors, 1, 16384);
    // Not on the root's shard.
    let a = world.mkdir(ROOT, "c").unwrap();
    assert_ne!(a.shard(), ROOT.shard());
    let reactor = |world: &World, inode: Inode| {
        usize::from(world.config.shard_map[usize::from(inode.shard().unwrap().0)])
    };
    let mut number = 0;
    let b = loop {
        let b = world.mkdir(ROOT, &format!("b{number}")).unwrap();
        let apart = reactors == 1 || reactor(&world, b) != reactor(&world, a);
        if b.shard() != a.shard() && apart {
            break b;
        }
        number += 1;
    };
    let inner = world.mkdir(a, "inner").unwrap();
    let deep = world.mkdir(inner, "deep").unwrap();
    let file = world.create(a, "file").unwrap();
    world.write(file, 0, &pattern(1, 4 * BLOCK), 0).unwrap();
    let other = world.create(b, "other").unwrap();
    world.write(other, 0, &pattern(2, 100), 0).unwrap();
    let logs = logs(&world);
    Tree { world, logs, a, b, inner, deep, file, other }
}

impl Tree {
    fn reactor(&self, inode: Inode) -> usize {
        self.world.config.shard_map[usize::from(inode.shard().unwrap().0)].into()
    }

    /// Appends a record to the log of an inode's reactor.
    fn add(&mut self, inode: Inode, change: &Change<'_>) {
        self.add_with(inode.shard(), self.reactor(inode), Reply::None, change);
    }

    /// Appends a record to the log of reactor 0.
    fn add_global(&mut self, change: &Change<'_>) {
        self.add_with(None, 0, Reply::None, change);
    }

    fn add_with(
        &mut self,
        shard: Option<ShardId>,
        reactor: usize,
        reply: Reply,
        change: &Change<'_>,
    ) {
        let session = u64::from(reply != Reply::None) * 0x77;
        let origin = Origin {
            shard,
            operation: 1 << 20,
            session,
            instance: 1,
            sequence: 5,
            slot: 3,
            time_ns: 1,
            reply,
        };
        let mut bytes = Vec::new();
        record::encode(&mut bytes, &origin, change);
        self.logs[reactor].push(bytes);
    }

    /// Writes one extent to a file.
    fn write(&mut self, inode: Inode, extent: Extent) {
        let mut bytes = Vec::new();
        record::push_extent(&mut bytes, &extent);
        let extents = ExtentList::new(&bytes, 1);
        let size = extent.file_block * u64::from(BLOCK_BYTES) + extent.valid_bytes();
        self.add(inode, &Change::WriteCommitted { inode, size, extents });
    }

    /// The first extent of a file, as the running core has it.
    fn extent(&self, inode: Inode) -> Extent {
        let core = &self.world.cores[self.reactor(inode)];
        core.nodes.get(&inode).unwrap().file().unwrap().extents.iter().next().unwrap()
    }

    /// What a check of the logs finds is exactly this; returns its words.
    fn finds(&self, expected: &[(Severity, FindingKind, u64)]) -> Vec<String> {
        let (_, findings) = check(&self.world.config, &self.logs);
        assert_counts(&findings, expected);
        texts(&findings)
    }

    /// What a check of a state finds that no log leads to.
    fn finds_after(
        &self,
        change: impl FnOnce(&mut [Core]),
        expected: &[(Severity, FindingKind, u64)],
    ) -> Vec<String> {
        let mut cores = replayed(&self.world.config, &self.logs);
        let mut findings = Findings::new(10);
        check_replayed(&mut cores, &mut findings);
        assert_counts(&findings, &[]);
        change(&mut cores);
        let cores: Vec<&Core> = cores.iter().collect();
        View::new(&cores).check(&mut findings);
        assert_counts(&findings, expected);
        texts(&findings)
    }
}

fn assert_counts(findings: &Findings, expected: &[(Severity, FindingKind, u64)]) {
    let counts: Vec<_> =
        findings.counts().map(|(severity, kind, count, _)| (severity, kind, count)).collect();
    assert_eq!(counts, expected, "{:#?}", texts(findings));
}

/// A tree of one file, on the root's shard.
fn on_one_shard() -> Tree {
    let mut world = World::new(1, 1, 16384);
    let file = world.create(ROOT, "file").unwrap();
    let logs = logs(&world);
    Tree { world, logs, a: ROOT, b: ROOT, inner: ROOT, deep: ROOT, file, other: file }
}

#[test]
fn what_cores_write_is_clean_and_counted() {
    for reactors in 1..=3 {
        let mut tree = new_tree(reactors);
        tree.world.rename((tree.a, "file"), (tree.b, "moved"), 0).unwrap();
        tree.world.unlink(tree.b, "other").unwrap();
        tree.world.truncate(tree.file, 5000).unwrap();
        let (summary, findings) = check(&tree.world.config, &logs(&tree.world));
        assert_counts(&findings, &[]);
        let blocks: u64 = tree.world.cores.iter().map(|core| core.space().blocks_used).sum();
        assert_eq!((summary.files, summary.extents, blocks), (1, 1, 2));
        let directories = tree.world.cores.iter().map(|core| core.nodes.len() as u64).sum::<u64>();
        assert_eq!(summary.directories, directories - 1);
        let [store] = summary.stores[..] else { panic!("{summary:?}") };
        assert_eq!((store.blocks, store.mapped, store.lost), (16384, 2, 0));
        assert_eq!(store.free + store.mapped, store.zone_blocks);
        assert!(store.zones > 0 && summary.kept_replies > 0 && summary.sessions > 0);
        // A file system that never served is clean too.
        let empty = vec![Vec::new(); usize::from(reactors)];
        let (summary, findings) = check(&tree.world.config, &empty);
        assert_counts(&findings, &[]);
        assert_eq!((summary.files, summary.directories), (0, 1));
    }
}

/// Renames, makings and removals under way at once, on two and three reactors, and a crash between
/// any two messages: undecided operations are found, and never an error.
#[test]
fn a_crash_at_any_moment_leaves_no_error() {
    let mut unfinished = std::collections::BTreeMap::<Kind, u64>::new();
    for seed in 1..=12u64 {
        let mut world = World::new(2 + (seed % 2) as u16, 1, 8192);
        let mut random = Random(seed * 0x9e37_79b9);
        let a = world.mkdir(ROOT, "a").unwrap();
        let b = world.mkdir(ROOT, "b").unwrap();
        let (c, d) = (world.mkdir(a, "c").unwrap(), world.mkdir(b, "d").unwrap());
        let parents = [ROOT, a, b, c, d];
        let names = ["c", "d", "p", "q", "a"];
        for round in 0..8 {
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
                    name_operation::CREATE,
                    name_operation::UNLINK,
                ][random.below(8) as usize];
                let request = world.name_message(operation, from, to, slot);
                world.send_name(&request, name.as_bytes(), to_name.as_bytes());
            }
            loop {
                let (_, findings) = check(&world.config, &logs(&world));
                let errors = findings.count(Error);
                assert_eq!(errors, 0, "seed {seed} round {round}: {:#?}", texts(&findings));
                findings.counts().for_each(|(_, kind, count, _)| {
                    *unfinished.entry(kind).or_default() += count;
                });
                let places = world.deliverable();
                if places.is_empty() {
                    assert_counts(&findings, &[]);
                    break;
                }
                world.deliver(places[random.below(places.len() as u64) as usize]);
            }
            world.answers.clear();
        }
    }
    let kinds: Vec<Kind> = unfinished.keys().copied().collect();
    println!("{unfinished:?}");
    assert_eq!(kinds, [Kind::Undecided]);
}
