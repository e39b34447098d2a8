//! Logs that give blocks to two files, or blocks that are not theirs, are refused.

use gannet_proto::operations::name_operation;
use gannet_proto::{Block, Inode};

use super::world::{BLOCK, World, pattern};
use crate::check::{Findings, Severity, check_replayed};
use crate::extents::Extent;
use crate::record::{self, Change, ExtentList};
use crate::{Core, CoreConfig};

/// Two files with three blocks each, and an extent of the first one.
fn two_files() -> (World, Inode, Extent) {
    let mut world = World::new(1, 1, 4096);
    let first = world.create(Inode::ROOT, "first").unwrap();
    let second = world.create(Inode::ROOT, "second").unwrap();
    for file in [first, second] {
        world.write(file, 0, &pattern(file.0, 3 * BLOCK), 0).unwrap();
    }
    let extent = world.cores[0].nodes.get(&first).unwrap().file().unwrap().extents.iter().next();
    (world, second, extent.unwrap())
}

/// A record that maps an extent in a file.
fn mapping(world: &mut World, inode: Inode, extent: Extent) -> Vec<u8> {
    let mut bytes = Vec::new();
    record::push_extent(&mut bytes, &extent);
    let extents = ExtentList::new(&bytes, 1);
    let (now, reactor) = (world.now(), world.reactor_of(inode));
    let origin = world.cores[reactor].origin_of_core(now, inode.shard());
    let mut record = Vec::new();
    let size = 100 * BLOCK as u64;
    record::encode(&mut record, &origin, &Change::WriteCommitted { inode, size, extents });
    record
}

/// A core of the world's log, behind which a record maps an extent in a file.
fn started(world: &mut World, inode: Inode, extent: Extent) -> Core {
    let (now, record) = (world.now(), mapping(world, inode, extent));
    let mut core = Core::new(CoreConfig { reactor: 0, ..world.config.clone() });
    for record in world.sinks[0].log.iter().chain([&record]) {
        core.replay(record).unwrap();
    }
    core.finish_replay(now, &mut world.sinks[0]);
    core
}

#[test]
fn two_files_that_share_a_block_are_named() {
    let (mut world, second, extent) = two_files();
    let shared = Extent { file_block: 50, block: Block(extent.block.0 + 2), blocks: 1, ..extent };
    let core = started(&mut world, second, shared);
    let text = core.block_conflict().unwrap().to_string();
    let (first, second) = ("(\"first\")", "(\"second\")");
    assert!(text.contains(first) && text.contains(second) && text.contains("share"), "{text}");
}

/// An operation that a crash interrupted is not brought to its end in a log that is damaged.
#[test]
fn nothing_is_recorded_beside_a_conflict() {
    let mut world = World::new(2, 1, 4096);
    let made: Vec<Inode> =
        (0..8).map(|number| world.mkdir(Inode::ROOT, &format!("d{number}")).unwrap()).collect();
    let on = |world: &World, reactor| {
        *made.iter().find(|directory| world.reactor_of(**directory) == reactor).unwrap()
    };
    let (from, to) = (on(&world, 0), on(&world, 1));
    let files = [(from, "first"), (to, "second"), (to, "third")].map(|(directory, name)| {
        let file = world.create(directory, name).unwrap();
        world.write(file, 0, &pattern(file.0, 3 * BLOCK), 0).unwrap();
        file
    });
    let rename = world.name_message(name_operation::RENAME, from, to, 5);
    world.send_name(&rename, b"first", b"second");
    // Decided, and applied by nobody.
    world.deliver_until_recorded(1);
    world.deliver_until_recorded(0);
    let extent = world.cores[1].nodes.get(&files[2]).unwrap().file().unwrap().extents.iter().next();
    let shared = Extent { file_block: 50, blocks: 1, ..extent.unwrap() };
    let logs: Vec<_> = world.sinks.iter().map(|sink| sink.log.clone()).collect();
    for conflicts in [false, true] {
        let mut logs = logs.clone();
        if conflicts {
            let record = mapping(&mut world, files[1], shared);
            logs[1].push(record);
        }
        let left = World::from_logs(&world.config, &logs);
        assert_eq!(left.cores[1].block_conflict().is_some(), conflicts);
        for core in &left.cores {
            assert_eq!((core.ready(), core.is_quiet()), (!conflicts, !conflicts));
        }
        let recorded = left.sinks[1].log.len() > logs[1].len();
        assert_eq!(recorded, !conflicts, "the damaged log stays as it is");
        // A check looks at what a start would come to all the same.
        let mut cores: Vec<Core> = (0..2)
            .map(|reactor| Core::new(CoreConfig { reactor, ..world.config.clone() }))
            .collect();
        for (core, log) in cores.iter_mut().zip(&logs) {
            log.iter().for_each(|record| core.replay(record).unwrap());
        }
        let mut findings = Findings::new(10);
        check_replayed(&mut cores, &mut findings);
        assert!(cores.iter().all(Core::ready), "all is checked");
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        assert_eq!(errors > 0, conflicts);
    }
}

#[test]
fn blocks_of_nobodys_zone_are_refused() {
    let (mut world, second, extent) = two_files();
    for block in [4000, 1 << 40] {
        let outside = Extent { file_block: 50, block: Block(block), blocks: 1, ..extent };
        let core = started(&mut world, second, outside);
        let text = core.block_conflict().unwrap().to_string();
        assert!(text.contains("(\"second\") maps blocks") && text.contains("shard"), "{text}");
    }
    // A hole that the same file fills with blocks of its own zone is in order.
    let own = Extent { file_block: 50, block: Block(extent.block.0 + 20), blocks: 1, ..extent };
    assert_eq!(started(&mut world, second, own).block_conflict(), None);
}
