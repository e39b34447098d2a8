//! Millions of random operations, each compared with an oracle: what it answers, and now and then
//! everything that there is. Directories lie on all shards, so that many operations concern two or
//! three of them; the cores restart from their logs in between.
//!
//! `GANNET_MODEL_SEED` repeats one seed.

mod oracle;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use gannet_proto::operations::{
    Attributes, DirectoryEntry, NameRequest, attribute_mask, inode_operation, io_flags, name_flags,
    name_operation,
};
use gannet_proto::xattr::{Xattr, XattrRequest, xattr_operation};
use gannet_proto::{Handle, Inode, Status};
use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U16, U32};

use self::oracle::{
    Ask, Caller, Content, Done, Id, Node, Open, Oracle, READ, ROOT, Setting, WRITE,
};
use super::world::{Answer, BLOCK, Random, World, pattern};

/// Operations of one seed.
const STEPS: u64 = 50_000;
/// Seeds of the short test, which is part of every run.
const SEEDS_SHORT: u64 = 6;
/// Seeds of the long one: 10 million operations.
const SEEDS_LONG: u64 = 200;
/// Operations from one look at everything to the next.
const LOOK_EVERY: u64 = 5_000;
/// Operations from a restart to the time when nobody is awaited any more.
const RECLAIM_AFTER: u64 = 300;
/// Opens from which on none is added.
const OPENS_MANY: usize = 24;
const OPEN_BOTH: u32 = name_flags::OPEN_READ | name_flags::OPEN_WRITE;
/// Nodes from which on fewer are made than removed.
const NODES_MANY: usize = 120;
/// Longest file, blocks.
const FILE_BLOCKS: u64 = 12;

/// Who asks: most often the superuser, else nobody would get far.
const CALLERS: [Caller; 6] = [
    Caller { uid: 0, gid: 0, groups: &[] },
    Caller { uid: 0, gid: 0, groups: &[] },
    Caller { uid: 0, gid: 0, groups: &[] },
    Caller { uid: 1, gid: 1, groups: &[] },
    Caller { uid: 2, gid: 1, groups: &[2] },
    Caller { uid: 3, gid: 0, groups: &[1, 2, 4] },
];

/// Names that meet each other, some of them odd.
const NAMES: [&[u8]; 14] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"A",
    b" ",
    b"\xff\xfe",
    b"...",
    b"-rf",
    b"a\n",
    b"\x01",
    b"g",
];
/// Names that no entry may have.
const BAD_NAMES: [&[u8]; 6] = [b"", b".", b"..", b"a/b", b"a\0", &[b'x'; 256]];

struct Model {
    random: Random,
    world: World,
    oracle: Oracle,
    /// Of every node that there ever was.
    inodes: BTreeMap<Id, Inode>,
    /// Number of the last open.
    last_open: u32,
    /// Where a failure happened.
    place: String,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let reactors = [1, 2, 3, 5][random.below(4) as usize];
        let mut world = World::new(reactors, 1 + random.below(3) as usize, 16_384);
        let root = world.stat(Inode::ROOT).unwrap();
        let content = Content::Directory { parent: ROOT, entries: BTreeMap::new() };
        let oracle = Oracle::new(Node {
            content,
            mode: root.mode.get() & 0o7777,
            uid: root.uid.get(),
            gid: root.gid.get(),
            links: root.links.get(),
            atime_ns: root.atime_ns.get(),
            mtime_ns: root.mtime_ns.get(),
            ctime_ns: root.ctime_ns.get(),
            xattrs: BTreeMap::new(),
        });
        let inodes = BTreeMap::from([(ROOT, Inode::ROOT)]);
        Model { random, world, oracle, inodes, last_open: 0, place: String::new() }
    }

    /// One of those for which `is_sought` holds, or, now and then, one that may be gone or of
    /// another kind.
    fn pick(&mut self, is_sought: impl Fn(&Node) -> bool) -> Id {
        if self.random.chance(3) {
            let place = self.random.below(self.inodes.len() as u64) as usize;
            return *self.inodes.keys().nth(place).unwrap();
        }
        let sought: Vec<Id> = self
            .oracle
            .nodes
            .iter()
            .filter(|(_, node)| is_sought(node))
            .map(|(id, _)| *id)
            .collect();
        match sought.len() {
            0 => ROOT,
            len => sought[self.random.below(len as u64) as usize],
        }
    }

    fn directory(&mut self) -> Id {
        self.pick(Node::is_directory)
    }

    fn file(&mut self) -> Id {
        self.pick(|node| !node.is_directory())
    }

    fn name(&mut self) -> Vec<u8> {
        if self.random.chance(2) {
            return BAD_NAMES[self.random.below(BAD_NAMES.len() as u64) as usize].to_vec();
        }
        if self.random.chance(2) {
            return vec![b'y'; 255];
        }
        NAMES[self.random.below(NAMES.len() as u64) as usize].to_vec()
    }

    /// A name that is there, if there is one, or any.
    fn name_in(&mut self, directory: Id) -> Vec<u8> {
        match self.oracle.entries(directory) {
            Ok(entries) if !entries.is_empty() && self.random.chance(70) => {
                let place = self.random.below(entries.len() as u64) as usize;
                entries.keys().nth(place).unwrap().clone()
            }
            _ => self.name(),
        }
    }

    fn owner(&mut self) -> (u32, u32) {
        (self.random.below(3) as u32, self.random.below(3) as u32)
    }

    /// A namespace request, carried through.
    fn ask(
        &mut self,
        (parent, to_parent): (Id, Id),
        (name, to_name): (&[u8], &[u8]),
        fill: impl FnOnce(&mut NameRequest),
    ) -> Answer {
        let (parent, to_parent) = (self.inodes[&parent], self.inodes[&to_parent]);
        let mut request = self.world.name_message(0, parent, to_parent, 0);
        fill(&mut request);
        let (operation, flags) = (request.operation.get(), request.flags.get());
        let names = (name.escape_ascii(), to_name.escape_ascii());
        let what =
            format_args!("{operation} {flags} {parent:?} {} {to_parent:?} {}", names.0, names.1);
        write!(self.place, ": {what}").unwrap();
        self.world.send_name(&request, name, to_name);
        self.world.wait(&request.header)
    }

    fn ask_entry(
        &mut self,
        operation: u16,
        parents: (Id, Id),
        names: (&[u8], &[u8]),
        fill: impl FnOnce(&mut NameRequest),
    ) -> Done<Attributes> {
        let answer = self.ask(parents, names, |request| {
            request.operation.set(operation);
            fill(request);
        });
        match answer.status() {
            Status::OK => Ok(answer.attributes()),
            status => Err(status),
        }
    }

    /// Compares attributes of a node with the oracle's.
    fn same(&self, id: Id, found: &Attributes) {
        let node = &self.oracle.nodes[&id];
        let found_here = (
            found.handle.inode(),
            found.mode.get(),
            (found.uid.get(), found.gid.get()),
            found.links.get(),
            found.size.get(),
            (found.atime_ns.get(), found.mtime_ns.get(), found.ctime_ns.get()),
        );
        let expected = (
            self.inodes[&id],
            node.full_mode(),
            (node.uid, node.gid),
            node.links,
            node.size(),
            (node.atime_ns, node.mtime_ns, node.ctime_ns),
        );
        assert_eq!(found_here, expected, "{}", self.place);
    }

    /// Whether an operation ended as the oracle has it; `Some` if it succeeded.
    fn agrees<T: fmt::Debug, E: fmt::Debug>(
        &self,
        done: Done<T>,
        expected: Done<E>,
    ) -> Option<(T, E)> {
        match (done, expected) {
            (Ok(done), Ok(expected)) => Some((done, expected)),
            (Err(status), Err(expected)) if status == expected => None,
            (done, expected) => panic!("{}: {done:?}, not {expected:?}", self.place),
        }
    }

    /// Notes the inode of a node that was made or found, and compares its attributes.
    fn made(&mut self, done: Done<Attributes>, expected: Done<Id>) {
        let Some((found, id)) = self.agrees(done, expected) else { return };
        let inode = found.handle.inode();
        assert_eq!(*self.inodes.entry(id).or_insert(inode), inode, "{}", self.place);
        // An answer from another shard than the inode's says no more than which it is.
        if found.mode.get() != 0 {
            self.same(id, &found);
        }
    }

    fn make(&mut self) {
        let (parent, name, owner) = (self.directory(), self.name(), self.owner());
        let mode = self.random.below(0o10000) as u32;
        let fill = |request: &mut NameRequest| {
            request.mode.set(mode);
            request.uid.set(owner.0);
            request.gid.set(owner.1);
        };
        if self.random.chance(35) {
            let expected = self.oracle.mkdir((parent, &name), mode, owner);
            let done = self.ask_entry(name_operation::MKDIR, (parent, ROOT), (&name, b""), fill);
            self.made(done, expected);
        } else {
            let mut flags = if self.random.chance(50) { name_flags::EXCLUSIVE } else { 0 };
            if self.has_room_for_opens() {
                flags |= [0, name_flags::OPEN_READ, name_flags::OPEN_WRITE, OPEN_BOTH]
                    [self.random.below(4) as usize];
            }
            let number = self.next_open();
            let (inodes, world) = (&self.inodes, &self.world);
            let reactor = world.reactor_of(inodes[&parent]);
            let is_near = |id: Id| inodes.get(&id).is_some_and(|i| world.reactor_of(*i) == reactor);
            let (made, open) = ((mode, owner), (number, is_near));
            let expected = self.oracle.create_open((parent, &name), made, flags, open);
            let done =
                self.ask_entry(name_operation::CREATE, (parent, ROOT), (&name, b""), |request| {
                    fill(request);
                    request.flags.set(flags);
                    request.open.set(number);
                });
            self.made(done, expected);
        }
    }

    fn link(&mut self) {
        let (parent, name, id) = (self.directory(), self.name(), self.file());
        let expected = self.oracle.link(id, (parent, &name)).map(|()| id);
        let done = self.ask_entry(name_operation::LINK, (parent, id), (&name, b""), |_| {});
        self.made(done, expected);
    }

    fn remove(&mut self) {
        let parent = self.directory();
        let name = self.name_in(parent);
        let (operation, expected) = if self.random.chance(60) {
            (name_operation::UNLINK, self.oracle.unlink((parent, &name)))
        } else {
            (name_operation::RMDIR, self.oracle.rmdir((parent, &name)))
        };
        let done = self.ask_entry(operation, (parent, ROOT), (&name, b""), |_| {});
        let _done = self.agrees(done, expected);
    }

    fn rename(&mut self) {
        let (from, to) = (self.directory(), self.directory());
        let (name, to_name) = (self.name_in(from), self.name_in(to));
        let flags = match self.random.below(10) {
            0 | 1 => name_flags::NO_REPLACE,
            2 | 3 => name_flags::EXCHANGE,
            _ => 0,
        };
        let expected = self.oracle.rename((from, &name), (to, &to_name), flags);
        let names = (&name[..], &to_name[..]);
        let done = self.ask_entry(name_operation::RENAME, (from, to), names, |request| {
            request.flags.set(flags);
        });
        let _done = self.agrees(done, expected);
    }

    /// A path of several components, resolved shard by shard as a host does it.
    fn lookup(&mut self) {
        let from = self.directory();
        let mut path = Vec::new();
        let mut at = from;
        for _ in 0..1 + self.random.below(5) {
            let component = match self.random.below(10) {
                0 => b"..".to_vec(),
                1 => b".".to_vec(),
                _ => self.name_in(at),
            };
            at = self.oracle.lookup(at, &component).unwrap_or(ROOT);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&component);
        }
        let expected = self.oracle.lookup(from, &path);
        let (mut parent, mut rest) = (self.inodes[&from], &path[..]);
        let done = loop {
            let request = self.world.name_message(name_operation::LOOKUP, parent, parent, 0);
            self.world.send_name(&request, rest, b"");
            let answer = self.world.wait(&request.header);
            if let Err(status) = check(answer.status()) {
                break Err(status);
            }
            let Answer::Entry(reply, _) = &answer else { panic!("LOOKUP is answered by an entry") };
            parent = reply.attributes.handle.inode();
            rest = &rest[reply.consumed.get() as usize..];
            if rest.is_empty() {
                break Ok(answer.attributes());
            }
        };
        self.made(done, expected);
    }

    fn set(&mut self) {
        let id = self.pick(|_| true);
        let mut setting = Setting {
            mask: self.random.below(256) as u32 & self.random.below(256) as u32,
            mode: self.random.below(0o10000) as u32,
            atime_ns: self.random.next() as i64,
            mtime_ns: self.random.next() as i64,
            size: self.random.below(FILE_BLOCKS * BLOCK as u64),
            ..Setting::default()
        };
        (setting.uid, setting.gid) = self.owner();
        if self.random.chance(50) {
            setting.mask &= !attribute_mask::SIZE;
        }
        let expected = self.oracle.set(id, &setting).map(|()| id);
        let mut request = self.world.attributes_message(self.inodes[&id], setting.size, 0);
        request.mask = U32::new(setting.mask);
        request.mode = U32::new(setting.mode);
        request.uid = U32::new(setting.uid);
        request.gid = U32::new(setting.gid);
        request.atime_ns = I64::new(setting.atime_ns);
        request.mtime_ns = I64::new(setting.mtime_ns);
        self.world.send_attributes(&request);
        let answer = self.world.wait(&request.header);
        self.made(check(answer.status()).map(|()| answer.attributes()), expected);
    }

    fn range(&mut self) -> (u64, usize) {
        let unit = if self.random.chance(50) { BLOCK as u64 } else { 1 };
        let offset = self.random.below(FILE_BLOCKS * BLOCK as u64 / 2 / unit) * unit;
        let length = (1 + self.random.below(FILE_BLOCKS * BLOCK as u64 / 2 / unit)) * unit;
        (offset, length as usize)
    }

    fn write(&mut self, step: u64) {
        let id = self.file();
        let (offset, length) = self.range();
        let data = pattern(step, length);
        let size = self.oracle.node(id).map_or(0, Node::size);
        let appends = self.random.chance(20) && size < FILE_BLOCKS * BLOCK as u64;
        let expected = self.oracle.write(id, (!appends).then_some(offset), &data);
        let flags = if appends { io_flags::APPEND } else { 0 };
        let done = self.world.write(self.inodes[&id], offset, &data, flags);
        let done = done.map(|reply| (reply.offset.get(), reply.size.get()));
        if let Some((done, expected)) = self.agrees(done, expected) {
            assert_eq!(done, expected, "{}", self.place);
        }
    }

    fn read(&mut self) {
        let id = self.file();
        let (offset, length) = self.range();
        match self.oracle.read(id, offset, length) {
            Ok(expected) => {
                let (bytes, end) = self.world.read(self.inodes[&id], offset, length);
                assert!((&bytes[..], end) == expected, "{}: {offset} {length}", self.place);
            }
            Err(expected) => {
                let request = self.world.read_message(self.inodes[&id], offset, length, 2, 0);
                self.world.send_read(&request);
                let answer = self.world.wait(&request.header);
                assert_eq!(answer.status(), expected, "{}", self.place);
            }
        }
    }

    fn next_open(&mut self) -> u32 {
        self.last_open += 1;
        self.last_open
    }

    fn has_room_for_opens(&self) -> bool {
        self.oracle.opens.len() < OPENS_MANY
    }

    fn open(&mut self) {
        let (id, number) = (self.pick(|_| true), self.next_open());
        let kinds = [
            (inode_operation::OPEN_READ, READ),
            (inode_operation::OPEN_WRITE, WRITE),
            (inode_operation::OPEN_READ_WRITE, READ | WRITE),
        ];
        let (kind, rights) = kinds[self.random.below(3) as usize];
        let expected = self.oracle.open(id, number, rights).map(|()| id);
        let done = self.world.open_file(self.inodes[&id], kind, number);
        self.made(done, expected);
    }

    fn close(&mut self) {
        let opens = &self.oracle.opens;
        let place = self.random.below(opens.len().max(1) as u64) as usize;
        let Some((number, Open { id, .. })) = opens.iter().nth(place).map(|(n, open)| (*n, *open))
        else {
            return;
        };
        let inode = self.inodes[&id];
        let done = self.world.open_file(inode, inode_operation::CLOSE, number);
        assert!(done.is_ok(), "{}: {done:?}", self.place);
        self.oracle.close(number);
    }

    fn xattr(&mut self) {
        let id = self.pick(|_| true);
        let long = [&b"user."[..], &[b'l'; 251]].concat();
        let names: [&[u8]; 9] = [
            b"user.a",
            b"user.b",
            b"user.\xff",
            b"trusted.t",
            b"security.s",
            b"user.",
            b"user.\0",
            b"other.x",
            &long,
        ];
        let operations = [
            xattr_operation::GET,
            xattr_operation::SET,
            xattr_operation::SET,
            xattr_operation::LIST,
            xattr_operation::REMOVE,
        ];
        let value = pattern(self.random.next(), self.random.below(20) as usize);
        let ask = Ask {
            operation: operations[self.random.below(5) as usize],
            name: match self.random.chance(85) {
                true => names[self.random.below(5) as usize],
                false => names[self.random.below(9) as usize],
            },
            value: &value,
            flags: self.random.below(20).saturating_sub(16) as u16,
            room: [0, 7, 4096][self.random.below(3) as usize],
        };
        let expected = self.oracle.xattr(id, &ask);
        let request = XattrRequest {
            header: self.world.header(self.inodes[&id].shard().unwrap(), 0),
            handle: Handle::new(self.inodes[&id]),
            operation: U16::new(ask.operation),
            name_bytes: U16::new(ask.name.len() as u16),
            value_bytes: U16::new(value.len() as u16),
            flags: U16::new(ask.flags),
            identity: U16::new(self.world.identity),
            reserved: U16::ZERO,
            reply_bytes_max: U32::new(ask.room as u32),
        };
        self.world.send_xattr(&request, Xattr { name: ask.name, value: ask.value });
        let answer = self.world.wait(&request.header);
        write!(self.place, ": {ask:?} of {id}").unwrap();
        let done = check(answer.status()).map(|()| match answer {
            Answer::Xattr(reply, tail) => (reply.value_bytes.get() as usize, tail),
            other => panic!("{}: {other:?}", self.place),
        });
        if let Some((done, expected)) = self.agrees(done, expected) {
            let len = expected.len();
            let tail = if ask.room == 0 { Vec::new() } else { expected };
            assert_eq!(done, (len, tail), "{}", self.place);
        }
    }

    /// The server starts anew, its host comes back and says what it has open. Whether its files without a
    /// name are awaited yet, [`Model::end_reclaim`] ends that.
    fn restart(&mut self) {
        self.world.restart();
        self.world.up_all();
        let opens: Vec<(u32, Open)> =
            self.oracle.opens.iter().map(|(number, open)| (*number, *open)).collect();
        for (number, Open { id, caller, rights }) in opens {
            let inode = self.inodes[&id];
            let kind = match rights {
                READ => inode_operation::OPEN_READ,
                WRITE => inode_operation::OPEN_WRITE,
                _ => inode_operation::OPEN_READ_WRITE,
            };
            self.act_as(caller);
            self.world.declare(inode, kind, number);
        }
        self.oracle.restart();
    }

    fn end_reclaim(&mut self) {
        self.world.end_reclaim();
        self.oracle.end_reclaim();
    }

    fn stat(&mut self) {
        let id = self.pick(|_| true);
        let done = self.world.stat(self.inodes[&id]);
        let expected = self.oracle.node(id).map(|_| id);
        self.made(done, expected);
    }

    /// Lists a directory in parts.
    fn list(&mut self, id: Id, bytes_max: u32) -> Done<Vec<(Vec<u8>, Inode)>> {
        let (mut found, mut after) = (Vec::new(), Vec::new());
        loop {
            let answer = self.ask((id, id), (&after, b""), |request| {
                request.operation.set(name_operation::READDIR);
                request.reply_bytes_max.set(bytes_max);
            });
            check(answer.status())?;
            let Answer::Directory(reply, tail) = answer else {
                panic!("READDIR is answered by entries")
            };
            let mut tail = &tail[..];
            for _ in 0..reply.count.get() {
                let (entry, rest) = DirectoryEntry::read_from_prefix(tail).unwrap();
                let (name, rest) = rest.split_at(entry.name_bytes.get().into());
                after = name.to_vec();
                found.push((after.clone(), Inode(entry.inode.get())));
                tail = rest;
            }
            if reply.end.get() == 1 {
                return Ok(found);
            }
        }
    }

    fn readdir(&mut self, id: Id) {
        let bytes_max = 300 + self.random.below(2000) as u32;
        let done = self.list(id, bytes_max);
        let expected = self.oracle.list(id).map(|entries| {
            entries.iter().map(|(name, id)| (name.clone(), self.inodes[id])).collect::<Vec<_>>()
        });
        if let Some((done, expected)) = self.agrees(done, expected) {
            assert_eq!(done, expected, "{}", self.place);
        }
    }

    /// Compares everything that there is.
    fn look(&mut self) {
        self.act_as(CALLERS[0]);
        let known: Vec<Id> = self.inodes.keys().copied().collect();
        for id in known {
            let expected = self.oracle.node(id).map(|_| id);
            let done = self.world.stat(self.inodes[&id]);
            self.made(done, expected);
            match self.oracle.nodes.get(&id).map(|node| node.content.clone()) {
                None if self.oracle.opens.values().any(|open| open.id == id) => {}
                None => drop(self.inodes.remove(&id)),
                Some(Content::Directory { .. }) => self.readdir(id),
                Some(Content::File(bytes)) => {
                    let (found, _) = self.world.read(self.inodes[&id], 0, bytes.len() + 1);
                    assert!(found == bytes, "{}: file {id}", self.place);
                }
            }
        }
        self.world.check();
        self.world.check_replay();
        assert!(self.world.cores.iter().all(crate::Core::is_quiet), "{}", self.place);
    }

    fn act_as(&mut self, caller: Caller) {
        self.world.act_as(caller.uid, caller.gid, caller.groups);
        self.oracle.caller = caller;
    }

    fn step(&mut self, step: u64) {
        self.world.now_ns += 5;
        self.oracle.now_ns = self.world.now().wall_ns as i64;
        let caller = self.random.below(CALLERS.len() as u64) as usize;
        self.act_as(CALLERS[caller]);
        let crowded = self.oracle.nodes.len() > NODES_MANY;
        match self.random.below(100) {
            0..16 if !crowded => self.make(),
            0..22 => self.remove(),
            22..27 => self.link(),
            27..42 => self.rename(),
            42..57 => self.lookup(),
            57..67 => self.set(),
            67..73 => self.write(step),
            73..79 => self.read(),
            79..82 if self.has_room_for_opens() => self.open(),
            79..85 => self.close(),
            85..90 => self.xattr(),
            90..96 => self.stat(),
            _ => {
                let id = self.directory();
                self.readdir(id);
            }
        }
        // What was answered, and what was written to the log long ago, is not looked at again.
        self.world.history.clear();
    }
}

fn check(status: Status) -> Done<()> {
    if status.is_ok() { Ok(()) } else { Err(status) }
}

/// The operations of one seed.
fn run(seed: u64) {
    let mut model = Model::new(seed);
    for step in 0..STEPS {
        model.place.clear();
        write!(model.place, "GANNET_MODEL_SEED={seed}, operation {step}").unwrap();
        model.step(step);
        if step % LOOK_EVERY == LOOK_EVERY - 1 {
            model.look();
            if model.random.chance(50) {
                model.restart();
            }
        } else if step % LOOK_EVERY == RECLAIM_AFTER {
            model.end_reclaim();
        }
    }
}

fn run_seeds(seeds_max: u64) {
    let given = std::env::var("GANNET_MODEL_SEED").ok();
    if let Some(seed) = given.map(|seed| seed.parse().expect("a number")) {
        return run(seed);
    }
    let next = AtomicU64::new(1);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let seeds = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                seeds.take_while(|seed| *seed <= seeds_max).for_each(run);
            });
        }
    });
    println!("{} operations agree with the oracle", seeds_max * STEPS);
}

#[test]
fn operations_agree_with_the_oracle() {
    run_seeds(SEEDS_SHORT);
}

/// `cargo test --release --package gannet-meta-core --lib -- --ignored ten_million`
#[test]
#[ignore = "takes minutes; tests/run model runs it, optimised"]
fn ten_million_operations_agree_with_the_oracle() {
    run_seeds(SEEDS_LONG);
}
