//! Names and links: every case and every error of LINK, UNLINK, RMDIR, RENAME and its exchange, with
//! what is concerned on one, two and three shards, on one and on three reactors.

use gannet_proto::limits::LINKS_MAX;
use gannet_proto::operations::{Attributes, name_flags, name_operation};
use gannet_proto::{Inode, ShardId, Status};

use super::world::{BLOCK, World, pattern};
use crate::names::shard_of_name;

const ROOT: Inode = Inode::ROOT;
const EXCHANGE: u32 = name_flags::EXCHANGE;
const NO_REPLACE: u32 = name_flags::NO_REPLACE;

/// A directory in the root that lies on a shard.
fn directory_on(world: &mut World, shard: u16, salt: &str) -> Inode {
    let names = (0..).map(|number| format!("{salt}{number}"));
    let mut names = names.filter(|name| shard_of_name(name.as_bytes()) == ShardId(shard));
    world.mkdir(ROOT, &names.next().unwrap()).unwrap()
}

/// Three directories: where names come from, where they go, and where inodes are made.
struct Places {
    world: World,
    from: Inode,
    to: Inode,
    home: Inode,
}

impl Places {
    /// Makes a file or a directory on the home shard, and brings its name to a directory.
    fn place(&mut self, directory: bool, to: Inode, name: &str) -> Inode {
        let home = self.home;
        let made = match directory {
            true => self.world.mkdir(home, "new"),
            false => self.world.create(home, "new"),
        };
        self.world.rename((home, "new"), (to, name), 0).unwrap();
        self.world.now_ns += 10;
        made.unwrap()
    }

    fn stat(&mut self, inode: Inode) -> Attributes {
        self.world.stat(inode).unwrap()
    }

    fn gone(&mut self, inode: Inode) {
        assert_eq!(self.world.stat(inode), Err(Status::STALE_HANDLE));
    }

    /// After every test: nothing is under way, and everything holds.
    fn end(self) {
        self.world.check();
        self.world.check_replay();
        assert!(self.world.cores.iter().all(crate::Core::is_quiet));
        let logs: Vec<_> = self.world.sinks.iter().map(|sink| sink.log.clone()).collect();
        let mut cores: Vec<crate::Core> = Vec::new();
        for (reactor, log) in logs.iter().enumerate() {
            let reactor = reactor as u16;
            let mut core =
                crate::Core::new(crate::CoreConfig { reactor, ..self.world.config.clone() });
            log.iter().for_each(|record| core.replay(record).unwrap());
            cores.push(core);
        }
        let mut findings = crate::check::Findings::new(10);
        crate::check::check_replayed(&mut cores, &mut findings);
        let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(texts.is_empty(), "{texts:#?}");
    }
}

/// Runs a case with its directories on every combination of up to three shards, on one reactor and
/// on three.
fn everywhere(case: fn(&mut Places)) {
    for reactors in [1, 3] {
        for (from, to, home) in [
            (1, 1, 1),
            (1, 1, 2),
            (1, 2, 1),
            (1, 2, 2),
            (1, 2, 3),
            // Other shards of the same reactors.
            (1, 4, 7),
            (3, 0, 2),
        ] {
            let mut world = World::new(reactors, 1, 4096);
            let from = directory_on(&mut world, from, "from");
            let to = directory_on(&mut world, to, "to");
            let home = directory_on(&mut world, home, "home");
            let mut places = Places { world, from, to, home };
            case(&mut places);
            places.end();
        }
    }
}

#[test]
fn links_share_an_inode_until_the_last_one_goes() {
    everywhere(|p| {
        let (from, to) = (p.from, p.to);
        let file = p.place(false, from, "one");
        let data = pattern(7, 2 * BLOCK);
        p.world.write(file, 0, &data, 0).unwrap();
        let before = p.stat(file);
        p.world.now_ns += 10;
        let linked = p.world.link(file, (to, "two")).unwrap();
        assert_eq!(
            (linked.links.get(), linked.handle, linked.size),
            (2, before.handle, before.size)
        );
        assert_eq!(linked.mtime_ns, before.mtime_ns, "the content is as it was");
        assert!(linked.ctime_ns.get() > before.ctime_ns.get(), "the inode has changed");
        assert_eq!(p.stat(file), linked, "the answer is what is there");
        assert_eq!(p.world.lookup(to, "two"), Ok(file));
        assert_eq!(p.world.link(file, (to, "two")), Err(Status::EXISTS));
        p.world.now_ns += 10;
        p.world.unlink(from, "one").unwrap();
        let left = p.stat(file);
        assert_eq!(left.links.get(), 1);
        assert!(left.ctime_ns.get() > linked.ctime_ns.get());
        assert_eq!(p.world.read(file, 0, 3 * BLOCK), (data, true));
        p.world.unlink(to, "two").unwrap();
        p.gone(file);
        let used: u64 = p.world.cores.iter().map(|core| core.space().blocks_used).sum();
        assert_eq!(used, 0, "its blocks are free");
    });
}

#[test]
fn what_cannot_be_linked_is_refused() {
    everywhere(|p| {
        let (from, to) = (p.from, p.to);
        let file = p.place(false, from, "file");
        let directory = p.place(true, from, "directory");
        let never = Inode::new(file.shard().unwrap(), 9999);
        let long = "n".repeat(256);
        for (inode, parent, name, status) in [
            (directory, to, "x", Status::NOT_PERMITTED),
            (ROOT, to, "x", Status::NOT_PERMITTED),
            (never, to, "x", Status::STALE_HANDLE),
            (file, from, "directory", Status::EXISTS),
            (file, file, "x", Status::NOT_DIRECTORY),
            (file, to, "", Status::INVALID),
            (file, to, "..", Status::INVALID),
            (file, to, &long, Status::NAME_TOO_LONG),
            (Inode(u64::MAX), to, "x", Status::STALE_HANDLE),
        ] {
            assert_eq!(p.world.link(inode, (parent, name)), Err(status), "{inode:?} as {name:.9}");
        }
        let reactor = usize::from(p.world.config.shard_map[usize::from(file.shard().unwrap().0)]);
        let links = |p: &mut Places, links| {
            p.world.cores[reactor].nodes.get_mut(&file).unwrap().links = links;
        };
        links(p, LINKS_MAX);
        assert_eq!(p.world.link(file, (to, "x")), Err(Status::TOO_MANY_LINKS));
        assert_eq!(p.world.lookup(to, "x"), Err(Status::NOT_FOUND));
        links(p, 1);
        p.world.link(file, (to, "x")).unwrap();
        assert_eq!(p.world.rmdir(to, "x"), Err(Status::NOT_DIRECTORY));
        assert_eq!(p.world.unlink(from, "directory"), Err(Status::IS_DIRECTORY));
        assert_eq!(p.world.unlink(from, "nothing"), Err(Status::NOT_FOUND));
    });
}

#[test]
fn a_rename_over_a_link_takes_one_link() {
    everywhere(|p| {
        let (from, to, home) = (p.from, p.to, p.home);
        let file = p.place(false, from, "file");
        let other = p.place(false, to, "other");
        p.world.link(other, (home, "kept")).unwrap();
        let before = (p.stat(file), p.stat(other));
        p.world.now_ns += 10;
        p.world.rename((from, "file"), (to, "other"), 0).unwrap();
        let after = (p.stat(file), p.stat(other));
        assert_eq!((after.0.links.get(), after.1.links.get()), (1, 1));
        assert!(after.0.ctime_ns.get() > before.0.ctime_ns.get(), "its name has changed");
        assert!(after.1.ctime_ns.get() > before.1.ctime_ns.get(), "its links have changed");
        assert_eq!(after.0.mtime_ns, before.0.mtime_ns);
        // Two names of one inode: nothing happens.
        p.world.link(file, (from, "again")).unwrap();
        let twice = p.stat(file);
        p.world.now_ns += 10;
        for flags in [0, EXCHANGE] {
            p.world.rename((from, "again"), (to, "other"), flags).unwrap();
            p.world.rename((to, "other"), (from, "again"), flags).unwrap();
            p.world.rename((to, "other"), (to, "other"), flags).unwrap();
        }
        assert_eq!(p.stat(file), twice);
        let refused = p.world.rename((from, "again"), (to, "other"), NO_REPLACE);
        assert_eq!(refused, Err(Status::EXISTS));
        assert_eq!(p.world.rename((to, "other"), (home, "kept"), 0), Ok(()));
        p.gone(other);
        assert_eq!(p.stat(file).links.get(), 2);
    });
}

#[test]
fn renames_fail_as_posix_says() {
    everywhere(|p| {
        let (from, to) = (p.from, p.to);
        let file = p.place(false, from, "file");
        p.place(true, from, "dir");
        let full = p.place(true, to, "full");
        let empty = p.place(true, to, "empty");
        p.place(false, to, "there");
        p.world.create(full, "inside").unwrap();
        let deep = p.world.mkdir(full, "deep").unwrap();
        let long = "n".repeat(256);
        let both = EXCHANGE | NO_REPLACE;
        for ((parent, name), (to_parent, to_name), flags, status) in [
            ((from, "file"), (to, "empty"), 0, Status::IS_DIRECTORY),
            ((from, "file"), (to, "full"), 0, Status::IS_DIRECTORY),
            ((from, "dir"), (to, "there"), 0, Status::NOT_DIRECTORY),
            ((from, "dir"), (to, "full"), 0, Status::NOT_EMPTY),
            ((to, "empty"), (to, "full"), 0, Status::NOT_EMPTY),
            ((to, "full"), (deep, "x"), 0, Status::INVALID),
            ((to, "full"), (full, "x"), 0, Status::INVALID),
            ((to, "full"), (deep, "x"), NO_REPLACE, Status::INVALID),
            ((full, "deep"), (to, "full"), 0, Status::NOT_EMPTY),
            ((from, "file"), (to, "there"), NO_REPLACE, Status::EXISTS),
            ((from, "file"), (to, "empty"), NO_REPLACE, Status::EXISTS),
            ((from, "dir"), (to, "empty"), NO_REPLACE, Status::EXISTS),
            ((from, "file"), (from, "file"), NO_REPLACE, Status::EXISTS),
            ((from, "nothing"), (to, "x"), 0, Status::NOT_FOUND),
            ((from, "nothing"), (to, "there"), EXCHANGE, Status::NOT_FOUND),
            ((from, "file"), (to, "nothing"), EXCHANGE, Status::NOT_FOUND),
            ((from, "dir"), (to, "nothing"), EXCHANGE, Status::NOT_FOUND),
            ((from, "file"), (to, "there"), both, Status::INVALID),
            ((to, "full"), (full, "inside"), EXCHANGE, Status::INVALID),
            ((full, "inside"), (to, "full"), EXCHANGE, Status::INVALID),
            ((to, "full"), (full, "deep"), EXCHANGE, Status::INVALID),
            ((full, "deep"), (to, "full"), EXCHANGE, Status::INVALID),
            ((from, "file"), (file, "x"), 0, Status::NOT_DIRECTORY),
            ((from, "file"), (to, ".."), 0, Status::INVALID),
            ((from, "."), (to, "x"), 0, Status::INVALID),
            ((from, "file"), (to, &long), 0, Status::NAME_TOO_LONG),
        ] {
            let before: Vec<String> = p.world.cores.iter().map(crate::Core::dump).collect();
            let result = p.world.rename((parent, name), (to_parent, to_name), flags);
            assert_eq!(result, Err(status), "{name} to {to_name:.9} with {flags}");
            let after: Vec<String> = p.world.cores.iter().map(crate::Core::dump).collect();
            assert_eq!(before, after, "{name} to {to_name:.9} with {flags} changes something");
        }
        let missing = Inode::new(to.shard().unwrap(), 9999);
        let lost = p.world.rename((from, "file"), (missing, "x"), 0);
        assert_eq!(lost, Err(Status::STALE_HANDLE));
        p.world.rename((from, "file"), (to, "free"), NO_REPLACE).unwrap();
        assert_eq!(p.world.lookup(to, "free"), Ok(file));
        p.world.rename((from, "dir"), (to, "empty"), 0).unwrap();
        p.gone(empty);
    });
}

#[test]
fn an_exchange_lets_names_change_places() {
    everywhere(|p| {
        let (from, to) = (p.from, p.to);
        for (one_is_directory, other_is_directory) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let one = p.place(one_is_directory, from, "one");
            let other = p.place(other_is_directory, to, "other");
            // Full directories too.
            for (is_directory, inode) in [(one_is_directory, one), (other_is_directory, other)] {
                if is_directory {
                    p.world.create(inode, "inside").unwrap();
                }
            }
            let before = (p.stat(one), p.stat(other));
            let links = |p: &mut Places| (p.stat(from).links.get(), p.stat(to).links.get());
            let (from_links, to_links) = links(p);
            p.world.now_ns += 10;
            p.world.rename((from, "one"), (to, "other"), EXCHANGE).unwrap();
            assert_eq!(p.world.lookup(from, "one"), Ok(other));
            assert_eq!(p.world.lookup(to, "other"), Ok(one));
            let after = (p.stat(one), p.stat(other));
            assert!(after.0.ctime_ns.get() > before.0.ctime_ns.get());
            assert!(after.1.ctime_ns.get() > before.1.ctime_ns.get());
            assert_eq!((after.0.links, after.1.links), (before.0.links, before.1.links));
            if one_is_directory {
                assert_eq!(p.world.lookup(one, ".."), Ok(to));
            }
            if other_is_directory {
                assert_eq!(p.world.lookup(other, ".."), Ok(from));
            }
            let moved = u32::from(other_is_directory).wrapping_sub(u32::from(one_is_directory));
            let expected = (from_links.wrapping_add(moved), to_links.wrapping_sub(moved));
            if from != to {
                assert_eq!(links(p), expected, "directories count their subdirectories");
            }
            // And in one directory.
            p.world.rename((to, "other"), (to, "third"), 0).unwrap();
            let fourth = p.place(false, to, "fourth");
            p.world.rename((to, "third"), (to, "fourth"), EXCHANGE).unwrap();
            assert_eq!(p.world.lookup(to, "third"), Ok(fourth));
            for (parent, name) in [(from, "one"), (to, "third"), (to, "fourth")] {
                let found = p.world.lookup(parent, name).unwrap();
                match p.world.unlink(parent, name) {
                    Err(Status::IS_DIRECTORY) => {
                        p.world.unlink(found, "inside").unwrap();
                        p.world.rmdir(parent, name).unwrap();
                    }
                    done => done.unwrap(),
                }
                p.gone(found);
            }
        }
    });
}

#[test]
fn directories_count_their_subdirectories() {
    everywhere(|p| {
        let (from, to) = (p.from, p.to);
        let links = |p: &mut Places| (p.stat(from).links.get(), p.stat(to).links.get());
        assert_eq!(links(p), (2, 2));
        let moved = p.place(true, from, "moved");
        p.place(false, from, "file");
        assert_eq!((links(p), p.stat(moved).links.get()), ((3, 2), 2));
        p.place(true, to, "replaced");
        assert_eq!(links(p), (3, 3));
        p.world.rename((from, "moved"), (to, "replaced"), 0).unwrap();
        assert_eq!((links(p), p.stat(moved).links.get()), ((2, 3), 2));
        assert_eq!(p.world.lookup(moved, ".."), Ok(to));
        p.world.rmdir(to, "replaced").unwrap();
        assert_eq!(links(p), (2, 2));
        p.gone(moved);
    });
}

/// Inside one shard all of this is one record, and fails without any.
#[test]
fn one_shard_needs_one_record() {
    let mut world = World::new(1, 1, 4096);
    let a = directory_on(&mut world, 5, "a");
    let file = world.create(a, "file").unwrap();
    let (inner, other) = (world.mkdir(a, "inner").unwrap(), world.mkdir(a, "other").unwrap());
    type Case = fn(&mut World, [Inode; 4]);
    let cases: [(&str, Case); 9] = [
        ("link", |w, [a, file, ..]| {
            w.link(file, (a, "two")).unwrap();
        }),
        ("rename", |w, [a, ..]| w.rename((a, "two"), (a, "three"), 0).unwrap()),
        ("exchange", |w, [a, ..]| w.rename((a, "three"), (a, "inner"), EXCHANGE).unwrap()),
        ("exchange back", |w, [a, ..]| w.rename((a, "three"), (a, "inner"), EXCHANGE).unwrap()),
        ("exchange between directories", |w, [a, _, inner, _]| {
            w.create(inner, "x").unwrap();
            w.rename((inner, "x"), (a, "other"), EXCHANGE).unwrap();
            w.rename((inner, "x"), (a, "other"), EXCHANGE).unwrap();
        }),
        ("unlink", |w, [a, ..]| w.unlink(a, "three").unwrap()),
        ("move of a directory", |w, [a, _, inner, _]| {
            w.rename((a, "other"), (inner, "other"), 0).unwrap();
        }),
        ("rmdir", |w, [_, _, inner, _]| w.rmdir(inner, "other").unwrap()),
        ("no link", |w, [a, _, inner, _]| {
            assert_eq!(w.link(inner, (a, "x")), Err(Status::NOT_PERMITTED));
        }),
    ];
    for ((name, case), records) in cases.into_iter().zip([1, 1, 1, 1, 3, 1, 1, 1, 0]) {
        let before = world.sinks[0].log.len();
        case(&mut world, [a, file, inner, other]);
        assert_eq!(world.sinks[0].log.len() - before, records, "{name}");
    }
    world.check();
    world.check_replay();
}

/// What is prepared answers nobody until it is decided, and what was decided is seen by whoever
/// knows it.
#[test]
fn names_that_are_prepared_wait_for_the_decision() {
    let mut world = World::new(3, 1, 4096);
    let (a, b) = (directory_on(&mut world, 1, "a"), directory_on(&mut world, 2, "b"));
    let file = world.create(a, "f").unwrap();
    let rename = world.name_message(name_operation::RENAME, a, b, 1);
    world.send_name(&rename, b"f", b"g");
    // The destination has prepared the entry; its answer is on its way.
    world.deliver_until_recorded(world.reactor_of(b));
    let source = world.name_message(name_operation::LOOKUP, a, ROOT, 2);
    world.send_name(&source, b"f", b"");
    let destination = world.name_message(name_operation::LOOKUP, b, ROOT, 2);
    world.send_name(&destination, b"g", b"");
    // Nor can the directory go, whose entry is on its way, or anybody else have the name.
    let create = world.name_message(name_operation::CREATE, b, ROOT, 3);
    world.send_name(&create, b"g", b"");
    let places = (world.answers.len(), world.messages.len());
    assert_eq!(places, (0, 1), "nobody is answered");
    let answers: Vec<_> = [rename.header, source.header, destination.header, create.header]
        .iter()
        .map(|header| world.wait(header))
        .collect();
    let statuses: Vec<Status> = answers.iter().map(|answer| answer.status()).collect();
    assert_eq!(statuses, [Status::OK, Status::NOT_FOUND, Status::OK, Status::OK]);
    assert_eq!(answers[2].attributes().handle.inode(), file);
    assert_eq!(answers[3].attributes().handle.inode(), file);

    // A directory into which something moves cannot be removed meanwhile.
    let (from, victim) = (a, world.mkdir(b, "victim").unwrap());
    world.create(from, "h").unwrap();
    let rename = world.name_message(name_operation::RENAME, from, victim, 1);
    world.send_name(&rename, b"h", b"h");
    world.deliver_until_recorded(world.reactor_of(victim));
    let rmdir = world.name_message(name_operation::RMDIR, b, ROOT, 2);
    world.send_name(&rmdir, b"victim", b"");
    assert!(world.answers.is_empty());
    assert_eq!(world.wait(&rename.header).status(), Status::OK);
    assert_eq!(world.wait(&rmdir.header).status(), Status::NOT_EMPTY);
    world.check();
    assert!(world.cores.iter().all(crate::Core::is_quiet));
}

/// A directory that another shard makes has its name when it is there: not before, although the
/// decision is durable.
#[test]
fn a_decided_name_is_held_until_everything_is_there() {
    let mut world = World::new(3, 1, 4096);
    let names = (0..).map(|number| format!("n{number}"));
    let mut names = names.filter(|name| shard_of_name(name.as_bytes()) == ShardId(4));
    let name = names.next().unwrap();
    let mkdir = world.name_message(name_operation::MKDIR, ROOT, ROOT, 1);
    world.send_name(&mkdir, name.as_bytes(), b"");
    let undecided = world.sinks[0].log.len();
    while world.sinks[0].log.len() == undecided {
        world.deliver(0);
    }
    let lookup = world.name_message(name_operation::LOOKUP, ROOT, ROOT, 2);
    world.send_name(&lookup, name.as_bytes(), b"");
    assert!(world.answers.is_empty(), "it is not made yet");
    let made = world.wait(&mkdir.header);
    let found = world.take(&lookup.header).unwrap();
    assert_eq!(found.attributes().handle, made.attributes().handle);
    assert_eq!(world.stat(made.attributes().handle.inode()), Ok(made.attributes()));
    assert!(world.cores.iter().all(crate::Core::is_quiet));
}
