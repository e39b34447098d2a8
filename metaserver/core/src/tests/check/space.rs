//! Findings about files, blocks, stores and sessions.

use gannet_proto::operations::file_type;
use gannet_proto::{Block, Inode, StoreId, TargetId};
use zerocopy::little_endian::{U32, U64};

use super::super::world::BLOCK;
use super::{Error, Kind, Unfinished, check, logs, new_tree};
use crate::Lsn;
use crate::extents::Extent;
use crate::namespace::Content;
use crate::record::{self, Change, ExtentList, IoKept, Reply, StoreList};
use crate::space::Span;

#[test]
fn sizes_and_extents() {
    let mut t = new_tree(1);
    let mut bytes = Vec::new();
    let mut extent = t.extent(t.file);
    extent.file_block = 10;
    extent.block.0 += 10;
    record::push_extent(&mut bytes, &extent);
    let extents = ExtentList::new(&bytes, 1);
    t.add(t.file, &Change::WriteCommitted { inode: t.file, size: 1, extents });
    let (end, size) = (14 * BLOCK, 4 * BLOCK);
    let said = t.finds(&[(Error, Kind::Size, 1)]);
    let expected = format!("/c/file: it is {size} bytes long and has data up to byte {end}");
    assert!(said[0].contains(&expected), "{said:?}");

    let t = new_tree(1);
    let extent = Extent { tail_valid: 0, ..t.extent(t.file) };
    let file = t.file;
    t.finds_after(
        |cores| {
            let node = cores[0].nodes.get_mut(&file).unwrap();
            let Content::File(file) = &mut node.content else { panic!("a file") };
            file.extents.replace(extent, |_| ());
        },
        &[(Error, Kind::Extents, 1)],
    );
}

#[test]
fn data_on_stores_that_there_are_not() {
    let mut t = new_tree(1);
    let extent = t.extent(t.file);
    t.write(t.file, Extent { store: StoreId(9), file_block: 20, ..extent });
    let said = t.finds(&[(Error, Kind::UnknownStore, 1)]);
    assert!(said[0].contains("/c/file, store 9 block"), "{said:?}");
    let mut t = new_tree(1);
    let block = Block(16384 - u64::from(extent.blocks) + 1);
    t.write(t.file, Extent { block, file_block: 20, ..extent });
    t.finds(&[(Error, Kind::OutsideStore, 1)]);
    let mut t = new_tree(1);
    t.write(t.file, Extent { block: Block(1 << 40), file_block: 20, ..extent });
    t.finds(&[(Error, Kind::OutsideStore, 1)]);

    // A file whose layout was chosen after it was made.
    let mut t = new_tree(1);
    let stores = [U32::new(1), U32::new(12)];
    let (inode, set) = (Inode::new(t.a.shard().unwrap(), 500), StoreList::default());
    let (parent, mode, name) = (t.a, file_type::REGULAR | 0o644, b"late");
    t.add(t.a, &Change::NodeCreated { parent, inode, mode, uid: 0, gid: 0, name, set });
    t.add(t.a, &Change::LayoutSet { inode, set: StoreList::new(&stores) });
    let said = t.finds(&[(Error, Kind::UnknownStore, 1)]);
    assert!(said[0].contains("/c/late: it is striped over store 12"), "{said:?}");
}

#[test]
fn data_of_generations_that_stores_have_not_reached_or_have_left() {
    for (reactors, severity) in [(1, Error), (2, Unfinished)] {
        let mut t = new_tree(reactors);
        let inode = if t.reactor(t.a) == 1 { t.file } else { t.other };
        let inode = if reactors == 1 { t.file } else { inode };
        let mut extent = t.extent(inode);
        extent.generation = 2;
        t.write(inode, extent);
        let said = t.finds(&[(severity, Kind::UnknownGeneration, 1)]);
        assert!(said[0].contains("generation 2, the store is known in 1"), "{said:?}");
        // What a store in memory lost with an earlier life is no damage.
        let (store, target) = (extent.store, TargetId(1));
        t.add_global(&Change::StoreChanged { store, target, generation: 2, blocks: 16384 });
        t.finds(&[]);
        let (summary, _) = check(&t.world.config, &t.logs);
        let mapped = 5;
        assert_eq!(summary.stores[0].mapped, mapped);
        assert_eq!(summary.stores[0].lost, mapped - u64::from(extent.blocks));
    }
}

#[test]
fn blocks_with_two_users() {
    // Of one shard.
    let mut t = new_tree(1);
    let second = t.world.create(t.a, "second").unwrap();
    t.logs = logs(&t.world);
    let extent = t.extent(t.file);
    t.write(
        second,
        Extent { file_block: 0, blocks: 2, block: Block(extent.block.0 + 1), ..extent },
    );
    let said = t.finds(&[(Error, Kind::UsedTwice, 1)]);
    assert!(said[0].contains("/c/second, store 1 block"), "{said:?}");
    let by = format!("the blocks are used by inode {:#x} and by inode {:#x}", t.file.0, second.0);
    assert!(said[0].ends_with(&by), "{said:?}");

    // Of shards of two reactors: the zone tells who of them is wrong.
    let mut t = new_tree(2);
    let extent = t.extent(t.file);
    t.write(t.other, Extent { file_block: 5, ..extent });
    let said = t.finds(&[(Error, Kind::UsedTwice, 1), (Error, Kind::ForeignZone, 1)]);
    assert!(said.iter().all(|text| text.contains("store 1 block")), "{said:?}");
    let shard = format!("belongs to shard {}", t.a.shard().unwrap());
    assert!(said[1].contains("/other") && said[1].ends_with(&shard), "{said:?}");
}

#[test]
fn zones_that_do_not_belong_to_who_uses_them() {
    let mut t = new_tree(2);
    let extent = t.extent(t.file);
    let zone = (extent.block.0 / crate::space::zone_blocks(16384)) as u32;
    t.add_global(&Change::ZoneReturned { store: extent.store, zone });
    let said = t.finds(&[(Error, Kind::ForeignZone, 1)]);
    assert!(said[0].ends_with("a zone that belongs to nobody"), "{said:?}");
    t.add_global(&Change::ZoneAssigned { store: extent.store, zone, shard: t.b.shard().unwrap() });
    t.finds(&[(Error, Kind::ForeignZone, 1)]);

    let t = new_tree(2);
    let (store, b) = (extent.store, t.b.shard().unwrap());
    let reactor = t.reactor(t.b);
    let (a, free) = (t.a.shard().unwrap(), 100);
    let said = t.finds_after(
        |cores| {
            assert!(cores[0].zones.assign(store, free, a));
            cores[t.reactor(t.a)].space.add_zone(a, store, free, 16384, Lsn(0));
            cores[reactor].space.add_zone(b, store, free, 16384, Lsn(0));
        },
        &[(Error, Kind::Zone, 2)],
    );
    assert!(said[0].contains("zone 100 of store 1 belongs to shards"), "{said:?}");
    let words = format!("has zone 100 of store 1, which reactor 0 did not give to shard {b}");
    assert!(said[1].contains(&words), "{said:?}");
    let said = t.finds_after(
        |cores| assert!(cores[0].zones.assign(store, 200, b)),
        &[(Error, Kind::Zone, 1)],
    );
    assert!(said[0].contains("zone 200 of store 1 is given to shard"), "{said:?}");
}

#[test]
fn blocks_that_are_marked_wrongly() {
    let t = new_tree(1);
    let extent = t.extent(t.file);
    let shard = t.a.shard().unwrap();
    let said = t.finds_after(
        |cores| assert!(cores[0].space.allocate(shard, extent.store, 3).is_some()),
        &[(Error, Kind::Leaked, 1), (Error, Kind::SpaceCount, 1)],
    );
    assert!(said[0].contains("neither used nor free"), "{said:?}");
    assert!(said[1].contains("5 blocks of store 1 are used and 120 free, of 128"), "{said:?}");
    let span = Span { store: extent.store, block: extent.block, blocks: 4 };
    t.finds_after(
        |cores| {
            cores[0].space.release(shard, span, Lsn(0));
            cores[0].space.thaw();
        },
        &[(Error, Kind::Unmarked, 1), (Error, Kind::SpaceCount, 1)],
    );
    // What cools down is used; twice if a file maps it still.
    t.finds_after(
        |cores| cores[0].space.release(shard, span, Lsn(0)),
        &[(Error, Kind::UsedTwice, 1)],
    );
    let said = t.finds_after(
        |cores| cores[0].space.miscount(shard, extent.store),
        &[(Error, Kind::SpaceCount, 2)],
    );
    assert!(said[0].contains("count as free, its zones have"), "{said:?}");
}

#[test]
fn data_servers_and_stores_with_the_names_of_others() {
    let mut t = new_tree(2);
    t.add_global(&Change::TargetAdded { target: TargetId(2), uuid: [1; 16] });
    let (uuid, generation, blocks) = ([101; 16], 1, 1000);
    let store = |store, target| Change::StoreAdded { store, target, uuid, generation, blocks };
    t.add_global(&store(StoreId(2), TargetId(2)));
    let uuid = [9; 16];
    let stray =
        Change::StoreAdded { store: StoreId(3), target: TargetId(7), uuid, generation, blocks };
    t.add_global(&stray);
    let said = t.finds(&[(Error, Kind::Target, 3)]);
    for words in ["data servers 1 and 2", "stores 1 and 2", "store 3 is of data server 7"] {
        assert!(said.iter().any(|text| text.contains(words)), "{words}: {said:?}");
    }
}

#[test]
fn answers_that_cannot_have_been_given() {
    let bad = IoKept {
        offset: U64::new(10),
        length: U32::new(5),
        size: U64::new(14),
        ..IoKept::default()
    };
    let good = IoKept { size: U64::new(15), ..bad };
    for (io, count) in [(good, 0), (bad, 1)] {
        let mut t = new_tree(2);
        let extents = ExtentList::new(&[], 0);
        let change = Change::WriteCommitted { inode: t.file, size: 0, extents };
        t.add_with(t.file.shard(), t.reactor(t.file), Reply::Io(io), &change);
        let expected = [(Error, Kind::Session, count)];
        let said = t.finds(&expected[..count as usize]);
        let words = "session 0x77 keeps in slot 3 an answer of a write beyond its file's end";
        assert!(said.iter().all(|text| text.ends_with(words)), "{said:?}");
    }
    // A record of a shard in the log of another reactor.
    let mut t = new_tree(2);
    let change = Change::ParentSet { inode: t.inner, parent: t.a };
    t.add_with(t.b.shard(), t.reactor(t.a), Reply::Empty, &change);
    let said = t.finds(&[(Error, Kind::Session, 1)]);
    assert!(said[0].ends_with("an answer of a shard of another reactor"), "{said:?}");
}
