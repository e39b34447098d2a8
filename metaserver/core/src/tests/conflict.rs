//! Logs that give blocks to two files, or blocks that are not theirs, are refused.

use gannet_proto::{Block, Inode};

use super::world::{BLOCK, World, pattern};
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

/// A core of the world's log, behind which a record maps an extent in a file.
fn started(world: &mut World, inode: Inode, extent: Extent) -> Core {
    let mut bytes = Vec::new();
    record::push_extent(&mut bytes, &extent);
    let extents = ExtentList::new(&bytes, 1);
    let now = world.now();
    let origin = world.cores[0].origin_of_core(now, inode.shard());
    let mut record = Vec::new();
    let size = 100 * BLOCK as u64;
    record::encode(&mut record, &origin, &Change::WriteCommitted { inode, size, extents });
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
