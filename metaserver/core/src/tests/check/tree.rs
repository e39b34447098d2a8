//! Findings about the tree.

use gannet_proto::Inode;
use gannet_proto::operations::file_type;

use super::{Error, Kind, ROOT, Unfinished, check, new_tree, on_one_shard, texts};
use crate::Lsn;
use crate::namespace::{Node, StoreSet};
use crate::record::{Action, Change, Effect, Effects, ShardList, StoreList};

#[test]
fn entries_that_lead_nowhere() {
    let mut t = new_tree(2);
    let never = Inode::new(t.b.shard().unwrap(), 777);
    let name = b"ghost\n";
    let file_type = file_type::DIRECTORY;
    t.add(t.a, &Change::EntryAdded { directory: t.a, inode: never, file_type, name });
    let said = t.finds(&[(Error, Kind::EntryNumber, 1)]);
    assert!(said[0].contains("/c: its entry ghost\\n leads to a directory"), "{said:?}");

    let mut t = new_tree(2);
    t.add(t.deep, &Change::NodeDropped { inode: t.deep });
    let said = t.finds(&[(Error, Kind::EntryToNothing, 1)]);
    let expected = format!("inode {:#x} /c/inner: its entry deep leads to a directory", t.inner.0);
    assert!(said[0].starts_with("error: ") && said[0].contains(&expected), "{said:?}");

    let mut t = on_one_shard();
    t.add(t.file, &Change::NodeDropped { inode: t.file });
    t.finds(&[(Error, Kind::EntryToNothing, 1)]);
}

#[test]
fn entries_of_the_wrong_type_and_miscounted_links() {
    let mut t = new_tree(1);
    let (inode, file_type) = (t.file, file_type::DIRECTORY);
    t.add(t.a, &Change::EntryAdded { directory: t.a, inode, file_type, name: b"file" });
    let said = t.finds(&[(Error, Kind::EntryType, 1)]);
    assert!(said[0].contains("says that") && said[0].contains("it is a regular file"), "{said:?}");

    let t = new_tree(1);
    let (file, a) = (t.file, t.a);
    let said = t.finds_after(
        |cores| {
            cores[0].nodes.get_mut(&file).unwrap().links = 2;
            cores[0].nodes.get_mut(&a).unwrap().links = 9;
        },
        &[(Error, Kind::Links, 2)],
    );
    assert!(said.iter().any(|text| text.contains("/c/file: it counts 2 links")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("9 links and has 1 subdir")), "{said:?}");
}

/// What a crash leaves undecided is told, and how it will end; the state is judged after that.
#[test]
fn operations_that_wait_for_their_decision() {
    let mut t = new_tree(2);
    let (inode, parent) = (t.other, t.a);
    let mut enter = Effects::default();
    let (entry, file_type) = (inode, file_type::REGULAR);
    let action = Action::Enter { entry, file_type, name: b"linked" };
    enter.push(&Effect { inode: parent, time_ns: 1, action });
    let mut link = Effects::default();
    link.push(&Effect { inode, time_ns: 1, action: Action::Link });
    let coordinator = t.a.shard().unwrap();
    t.add(inode, &Change::Prepared { coordinator, order: 1, effects: link.list() });
    let said = t.finds(&[(Unfinished, Kind::Undecided, 1)]);
    let ends = format!("of shard {coordinator} is undone at the next start");
    assert!(said[0].starts_with("unfinished, harmless: ") && said[0].ends_with(&ends), "{said:?}");
    let shards = [t.b.shard().unwrap().0.into()];
    let participants = ShardList::new(&shards);
    t.add(parent, &Change::Decided { participants, effects: enter.list() });
    let said = t.finds(&[(Unfinished, Kind::Undecided, 1)]);
    assert!(said[0].ends_with("takes effect at the next start"), "{said:?}");
    // Decided for somebody else.
    let shards = [ROOT.shard().unwrap().0.into()];
    let participants = ShardList::new(&shards);
    let none = Effects::default();
    let decided = Change::Decided { participants, effects: none.list() };
    t.add(parent, &decided);
    let said = t.finds(&[(Error, Kind::Links, 1), (Unfinished, Kind::Undecided, 1)]);
    assert!(said[0].contains("it counts 1 links, and 2 entries lead to it"), "{said:?}");
    t.add(inode, &Change::Aborted { coordinator });
    t.finds(&[(Error, Kind::Links, 1)]);
}

#[test]
fn inodes_without_a_name() {
    let mut t = new_tree(2);
    let (parent, mode) = (ROOT, file_type::DIRECTORY | 0o755);
    let made = |parent, inode| Change::DirectoryMade { parent, inode, mode, uid: 0, gid: 0 };
    t.add(t.a, &made(parent, Inode::new(t.a.shard().unwrap(), 99)));
    let said = t.finds(&[(Error, Kind::NoName, 1)]);
    assert!(said[0].contains("without a path: no entry leads to it"), "{said:?}");
    t.add(t.a, &made(t.a, Inode::new(t.a.shard().unwrap(), 100)));
    t.finds(&[(Error, Kind::NoName, 2)]);

    let mut t = new_tree(2);
    let gone = Change::EntryRemoved { directory: t.a, drop_inode: false, name: b"file" };
    t.add(t.a, &gone);
    let said = t.finds(&[(Error, Kind::NoName, 1)]);
    assert!(said[0].contains("it holds 4 blocks"), "{said:?}");
    let gone = Change::EntryRemoved { directory: t.a, drop_inode: false, name: b"inner" };
    t.add(t.a, &gone);
    // What hangs on a directory without a name cannot be reached either.
    t.finds(&[(Error, Kind::NoName, 2), (Error, Kind::Unreachable, 1)]);

    let mut t = on_one_shard();
    t.add(ROOT, &Change::EntryRemoved { directory: ROOT, drop_inode: false, name: b"file" });
    t.finds(&[(Error, Kind::NoName, 1)]);
}

#[test]
fn inodes_with_several_names_and_wrong_parents() {
    let mut t = new_tree(2);
    let (inode, file_type) = (t.file, file_type::REGULAR);
    t.add(t.b, &Change::EntryAdded { directory: t.b, inode, file_type, name: b"again" });
    let said = t.finds(&[(Error, Kind::Links, 1)]);
    assert!(said[0].contains("it counts 1 links, and 2 entries lead to it"), "{said:?}");
    let mut t = new_tree(2);
    t.add(t.a, &Change::EntryAdded { directory: t.inner, inode, file_type, name: b"again" });
    t.finds(&[(Error, Kind::Links, 1)]);

    let mut t = new_tree(2);
    t.add(t.deep, &Change::ParentSet { inode: t.deep, parent: t.a });
    let said = t.finds(&[(Error, Kind::WrongParent, 1)]);
    let (by, parent) = (t.inner.0, t.a.0);
    let expected = format!("directory {by:#x} names it, and its parent is said to be {parent:#x}");
    assert!(said[0].contains("/c/inner/deep: ") && said[0].ends_with(&expected), "{said:?}");
    let mut t = new_tree(2);
    t.add(t.deep, &Change::ParentSet { inode: t.deep, parent: t.b });
    t.finds(&[(Error, Kind::WrongParent, 1)]);

    // A directory with two names whose parent is neither of those who name it.
    let (inode, file_type) = (t.deep, file_type::DIRECTORY);
    t.add(t.a, &Change::EntryAdded { directory: t.a, inode, file_type, name: b"again" });
    t.finds(&[(Error, Kind::SeveralNames, 1)]);

    let mut t = new_tree(1);
    let (inode, file_type) = (ROOT, file_type::DIRECTORY);
    t.add(t.a, &Change::EntryAdded { directory: t.a, inode, file_type, name: b"root" });
    t.finds(&[(Error, Kind::SeveralNames, 1)]);
    let mut t = new_tree(1);
    t.add(ROOT, &Change::ParentSet { inode: ROOT, parent: t.a });
    t.finds(&[(Error, Kind::WrongParent, 1)]);
}

#[test]
fn directories_that_contain_each_other() {
    let mut t = new_tree(2);
    t.add(
        t.a,
        &Change::Renamed {
            directory: t.a,
            to_directory: t.deep,
            drop_inode: false,
            name: b"inner",
            to_name: b"inner",
        },
    );
    let said = t.finds(&[(Error, Kind::Cycle, 1), (Error, Kind::Unreachable, 2)]);
    assert!(said[0].contains("2 directories contain each other"), "{said:?}");
}

#[test]
fn numbers_and_a_root_that_cannot_be() {
    let mut t = new_tree(1);
    let inode = Inode::new(t.a.shard().unwrap(), 1);
    let (parent, mode) = (t.a, file_type::REGULAR | 0o644);
    let set = StoreList::default();
    let name = b"one";
    t.add(t.a, &Change::NodeCreated { parent, inode, mode, uid: 0, gid: 0, name, set });
    let said = t.finds(&[(Error, Kind::InodeNumber, 1)]);
    assert!(said[0].contains("/c/one: its number was never given out"), "{said:?}");

    let t = new_tree(2);
    let said = t.finds_after(
        |cores| {
            let (mode, set) = (file_type::DIRECTORY | 0o755, StoreSet::default());
            let stray = Node::new(t.b, ROOT, (mode, 0, 0), set, 1, Lsn(0));
            cores[t.reactor(t.a)].nodes.insert(t.b, Box::new(stray));
        },
        &[(Error, Kind::InodeNumber, 1)],
    );
    assert!(said[0].ends_with("it belongs to a shard of another reactor"), "{said:?}");
}

#[test]
fn a_lost_root_is_told() {
    let mut t = new_tree(2);
    let lost = t.reactor(ROOT);
    t.logs[lost].clear();
    let (_, findings) = check(&t.world.config, &t.logs);
    let kinds: Vec<Kind> = findings.counts().map(|(_, kind, ..)| kind).collect();
    assert_eq!(kinds[0], Kind::MissingRoot, "{:#?}", texts(&findings));
}
