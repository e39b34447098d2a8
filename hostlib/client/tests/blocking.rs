//! Blocking calls over the shm fabric against a small metadata server in another thread. Files are
//! all holes, so that no data server is needed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use gannet_client::blocking::Session;
use gannet_client::{ErrorKind, Ownership, Role};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{Address, ConnectionId, Event, Events, Fabric};
use gannet_proto::handshake::Hello;
use gannet_proto::operations::{
    Attributes, CounterEntry, DirectoryEntry, DirectoryReply, EntryReply, HostHello, HostWelcome,
    InodeRequest, IoReply, NameRequest, Read, ReclaimComplete, RequestHeader, SetAttributes,
    StatFs, StatFsReply, Stats, StatsReply, Write, file_type, inode_operation, name_flags,
    name_operation,
};
use gannet_proto::packet::{Frame, Frames, Message, PacketWriter};
use gannet_proto::{Handle, Inode, ShardId, Status};
use gannet_runtime::time::Time;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Reads are answered at most this long, so that callers have to go on.
const READ_BYTES_MAX: u64 = 700_000;
/// Entries of a listing, so that callers have to go on.
const LISTING_MAX: usize = 3;
/// How long the answer to FSYNC takes: longer than a waiter spins and yields.
const FSYNC: Duration = Duration::from_millis(30);

/// A metadata server with one reactor.
struct Server {
    fabric: AnyFabric,
    /// By directory and name: inode.
    names: BTreeMap<(u64, Vec<u8>), u64>,
    /// By inode: mode and size.
    inodes: BTreeMap<u64, (u32, u64)>,
    /// Replies that are due later.
    later: Vec<(Time, ConnectionId, Vec<u8>)>,
}

impl Server {
    fn run(mut self, stop: &AtomicBool) {
        let mut events = Events::default();
        while !stop.load(Ordering::Relaxed) {
            let now = Time::monotonic();
            self.fabric.poll(now, &mut events);
            while let Some(event) = events.pop() {
                if let Event::Message { connection, bytes } = event {
                    let packet = events.message(bytes).to_vec();
                    for frame in Frames::new(&packet) {
                        self.answer(now, connection, &frame.unwrap());
                    }
                }
            }
            events.clear();
            let due: Vec<_> = self.later.extract_if(.., |later| later.0 <= now).collect();
            for (_, connection, packet) in due {
                self.fabric.send(connection, &packet).unwrap();
            }
            self.fabric.flush();
            std::thread::yield_now();
        }
    }

    fn attributes(&self, inode: u64) -> Attributes {
        let (mode, size) = self.inodes[&inode];
        let handle = Handle::new(Inode(inode));
        Attributes { handle, mode: U32::new(mode), size: U64::new(size), ..Attributes::default() }
    }

    fn answer(&mut self, now: Time, to: ConnectionId, frame: &Frame<'_>) {
        match frame.kind {
            Hello::KIND => {}
            HostHello::KIND => self.welcome(to),
            NameRequest::KIND => {
                let (request, tail) = frame.read::<NameRequest>().unwrap();
                let names = request.names(tail).unwrap();
                let (name, to_name) = (names.name.to_vec(), names.to_name.to_vec());
                self.on_name(to, request, name, to_name);
            }
            InodeRequest::KIND => {
                let (request, _) = frame.read::<InodeRequest>().unwrap();
                let attributes = self.attributes(request.handle.inode().0);
                let header = request.header.reply(Status::OK);
                let reply = EntryReply { header, attributes, ..EntryReply::default() };
                if request.operation.get() == inode_operation::FSYNC {
                    self.later.push((now + FSYNC, to, packet(&reply, &[])));
                } else {
                    self.send(to, &reply, &[]);
                }
            }
            SetAttributes::KIND => {
                let (request, _) = frame.read::<SetAttributes>().unwrap();
                let inode = request.handle.inode().0;
                self.inodes.get_mut(&inode).unwrap().1 = request.size.get();
                self.entry(to, request.header, Ok(inode), 0);
            }
            Read::KIND => {
                let (request, _) = frame.read::<Read>().unwrap();
                let size = self.inodes[&request.handle.inode().0].1;
                let left = size.saturating_sub(request.offset.get());
                let length = left.min(READ_BYTES_MAX).min(request.length.get().into());
                let reply = IoReply {
                    header: request.header.reply(Status::OK),
                    length: U32::new(length as u32),
                    end_of_file: U16::new((length == left).into()),
                    ..IoReply::default()
                };
                self.send(to, &reply, &[]);
            }
            Write::KIND => {
                let (request, _) = frame.read::<Write>().unwrap();
                let size = &mut self.inodes.get_mut(&request.handle.inode().0).unwrap().1;
                let append = request.flags.get() & 2 != 0;
                let offset = if append { *size } else { request.offset.get() };
                *size = (*size).max(offset + u64::from(request.length.get()));
                let reply = IoReply {
                    header: request.header.reply(Status::OK),
                    length: request.length,
                    offset: U64::new(offset),
                    size: U64::new(*size),
                    ..IoReply::default()
                };
                self.send(to, &reply, &[]);
            }
            StatFs::KIND => {
                let header = frame.read::<StatFs>().unwrap().0.header.reply(Status::OK);
                let inodes = U64::new(self.inodes.len() as u64);
                self.send(to, &StatFsReply { header, inodes, ..StatFsReply::default() }, &[]);
            }
            Stats::KIND => {
                let header = frame.read::<Stats>().unwrap().0.header.reply(Status::OK);
                let (count, last) = (U16::new(1), U16::new(1));
                let reply = StatsReply { header, count, last, ..StatsReply::default() };
                let (value, name_bytes) = (U64::new(1), U16::new(5));
                let entry = CounterEntry { value, name_bytes, ..CounterEntry::default() };
                self.send(to, &reply, &[entry.as_bytes(), b"stats"]);
            }
            // It starts once, so nobody of a run before comes back.
            ReclaimComplete::KIND => {}
            kind => panic!("not expected: {kind:#x}"),
        }
    }

    fn welcome(&mut self, to: ConnectionId) {
        let message = HostWelcome {
            version: U16::new(1),
            shards: U16::new(64),
            reactors: U16::new(1),
            slots: U16::new(4),
            request_bytes_max: U32::new(1 << 20),
            block_bytes: U32::new(4096),
            requests_max: U32::new(100),
            ..HostWelcome::default()
        };
        let address = b"shm:///unused";
        let length = (address.len() as u16).to_le_bytes();
        self.send(to, &message, &[&[0; 64], &length, address]);
    }

    fn on_name(
        &mut self,
        to: ConnectionId,
        request: &NameRequest,
        name: Vec<u8>,
        to_name: Vec<u8>,
    ) {
        let parent = request.parent.inode().0;
        let key = (parent, name);
        let found = self.names.get(&key).copied();
        let next = Inode::new(ShardId(0), 2 + self.names.len() as u64).0;
        let result = match request.operation.get() {
            name_operation::READDIR => return self.list(to, request, &key.1),
            name_operation::LOOKUP => self.resolve(parent, &key.1),
            name_operation::MKDIR if found.is_some() => Err(Status::EXISTS),
            operation @ (name_operation::CREATE | name_operation::MKDIR) => {
                let is_file = operation == name_operation::CREATE;
                let kind = if is_file { file_type::REGULAR } else { file_type::DIRECTORY };
                let inode = *self.names.entry(key.clone()).or_insert(next);
                self.inodes.entry(inode).or_insert((kind | request.mode.get(), 0));
                Ok(inode)
            }
            name_operation::LINK if found.is_some() => Err(Status::EXISTS),
            name_operation::LINK => {
                let inode = request.to_parent.inode().0;
                self.names.insert(key.clone(), inode);
                Ok(inode)
            }
            name_operation::RENAME if request.flags.get() & name_flags::EXCHANGE != 0 => {
                let to = (request.to_parent.inode().0, to_name);
                let other = self.names.get(&to).copied();
                found.zip(other).ok_or(Status::NOT_FOUND).map(|(inode, other)| {
                    self.names.insert(to, inode);
                    self.names.insert(key.clone(), other);
                    inode
                })
            }
            name_operation::RENAME => found.ok_or(Status::NOT_FOUND).inspect(|inode| {
                self.names.remove(&key);
                self.names.insert((request.to_parent.inode().0, to_name), *inode);
            }),
            _ => self.names.remove(&key).ok_or(Status::NOT_FOUND),
        };
        self.entry(to, request.header, result, key.1.len() as u16);
    }

    fn resolve(&self, parent: u64, path: &[u8]) -> Result<u64, Status> {
        let mut at = parent;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            at = *self.names.get(&(at, name.to_vec())).ok_or(Status::NOT_FOUND)?;
        }
        Ok(at)
    }

    fn list(&mut self, to: ConnectionId, request: &NameRequest, after: &[u8]) {
        let parent = request.parent.inode().0;
        let mut tail = Vec::new();
        let all: Vec<_> = self
            .names
            .iter()
            .filter(|((directory, name), _)| *directory == parent && name.as_slice() > after)
            .collect();
        for ((_, name), inode) in all.iter().take(LISTING_MAX) {
            let entry = DirectoryEntry {
                inode: U64::new(**inode),
                name_bytes: U16::new(name.len() as u16),
                ..DirectoryEntry::default()
            };
            tail.extend(entry.as_bytes());
            tail.extend(name);
        }
        let reply = DirectoryReply {
            header: request.header.reply(Status::OK),
            count: U16::new(all.len().min(LISTING_MAX) as u16),
            end: U16::new((all.len() <= LISTING_MAX).into()),
            ..DirectoryReply::default()
        };
        self.send(to, &reply, &[&tail]);
    }

    fn entry(
        &mut self,
        to: ConnectionId,
        request: RequestHeader,
        result: Result<u64, Status>,
        consumed: u16,
    ) {
        let status = result.err().unwrap_or(Status::OK);
        let attributes = result.map_or(Attributes::default(), |inode| self.attributes(inode));
        let (header, consumed) = (request.reply(status), U16::new(consumed));
        self.send(to, &EntryReply { header, attributes, consumed, ..EntryReply::default() }, &[]);
    }

    fn send<T: Message>(&mut self, to: ConnectionId, message: &T, tail: &[&[u8]]) {
        self.fabric.send(to, &packet(message, tail)).unwrap();
    }
}

fn packet<T: Message>(message: &T, tail: &[&[u8]]) -> Vec<u8> {
    let mut packet = PacketWriter::new();
    packet.push(message, tail).unwrap();
    packet.bytes().to_vec()
}

/// A running server; stops when dropped.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    address: Address,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start() -> Running {
        let directory = tempfile::tempdir().unwrap();
        let address = Address::shm(directory.path().join("meta")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, at) = (Arc::clone(&stop), address.clone());
        let (ready, listens) = std::sync::mpsc::channel();
        let thread = Some(std::thread::spawn(move || {
            let mut fabric = AnyFabric::new(FabricOptions::default());
            fabric.listen(&at).unwrap();
            ready.send(()).unwrap();
            let root = (file_type::DIRECTORY | 0o755, 0);
            let inodes = BTreeMap::from([(Inode::ROOT.0, root)]);
            Server { fabric, names: BTreeMap::new(), inodes, later: Vec::new() }.run(&flag);
        }));
        listens.recv().unwrap();
        Running { stop, thread, address, _directory: directory }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

#[test]
fn a_program_uses_a_file_system_by_blocking_calls() {
    let server = Running::start();
    let mut session = Session::open_metaserver(&server.address).unwrap();
    let nobody = Ownership { mode: 0o700, ..Ownership::default() };
    session.mkdir_all("/a/b/c", nobody).unwrap();
    session.mkdir_all("a/b", nobody).unwrap();
    let file = session.create("/a/b/file", nobody, false).unwrap().handle;
    assert_eq!(session.open("a/b/file").unwrap().handle, file);
    let error = session.mkdir_all("/a/b/file/x", nobody).unwrap_err();
    assert_eq!(error.errno(), 20, "{error}");
    assert_eq!(session.stat("/a/none").unwrap_err().status(), Some(Status::NOT_FOUND));

    // More than the arena holds at once, in pieces that come back short.
    let bytes = 40 << 20;
    session.write_at(file, 0, &vec![1; bytes]).unwrap();
    session.append(file, &[2; 100]).unwrap();
    assert_eq!(session.stat("/a/b/file").unwrap().size.get(), bytes as u64 + 100);
    let mut content = vec![3; bytes + 1000];
    assert_eq!(session.read_at(file, 0, &mut content).unwrap(), bytes + 100);
    assert!(content[..bytes + 100].iter().all(|byte| *byte == 0));
    assert!(content[bytes + 100..].iter().all(|byte| *byte == 3), "beyond the end");
    session.truncate(file, 10).unwrap();
    assert_eq!(session.read_at(file, 4, &mut content).unwrap(), 6);
    assert_eq!(session.read_at(file, 10, &mut content).unwrap(), 0);
    assert_eq!(session.read_at(file, 0, &mut []).unwrap(), 0);
    session.write_at(file, 0, &[]).unwrap();

    for name in 0..10 {
        session.create(&format!("/a/b/c/{name}"), nobody, true).unwrap();
    }
    session.rename("/a/b/c/3", "/a/b/c/x").unwrap();
    session.unlink("/a/b/c/4").unwrap();
    let (one, other) = (session.stat("/a/b/c/x").unwrap(), session.stat("/a/b/c/9").unwrap());
    session.rename_exchange("/a/b/c/x", "/a/b/c/9").unwrap();
    assert_eq!(session.stat("/a/b/c/x").unwrap().handle, other.handle);
    assert_eq!(session.stat("/a/b/c/9").unwrap().handle, one.handle);
    let missing = session.rename_exchange("/a/b/c/x", "/a/b/c/none").unwrap_err();
    assert_eq!(missing.status(), Some(Status::NOT_FOUND));
    assert_eq!(session.link("/a/b/c/x", "/a/b/linked").unwrap().handle, other.handle);
    assert_eq!(session.stat("/a/b/linked").unwrap().handle, other.handle);
    let taken = session.link("/a/b/c/x", "/a/b/linked").unwrap_err();
    assert_eq!(taken.status(), Some(Status::EXISTS));
    let entries = session.readdir_all("/a/b/c").unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_slice()).collect();
    assert_eq!(names.concat(), b"01256789x");
    assert!(session.statfs().unwrap().inodes > 10);
    let counters = session.stats(true).unwrap();
    assert_eq!(counters[0].role, Role::Metaserver(0));
    assert_eq!(session.arena().available(), session.arena().capacity());
}

/// The answer takes longer than the waiter spins: it has to be woken, and uses no core meanwhile.
#[test]
fn a_waiting_call_sleeps_until_it_is_woken() {
    let server = Running::start();
    let mut session = Session::open_metaserver(&server.address).unwrap();
    let file = session.create("f", Ownership::default(), true).unwrap().handle;
    let used = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (before, start) = (used(), std::time::Instant::now());
    for _ in 0..10 {
        session.fsync(file).unwrap();
    }
    let after = used();
    let cpu = Duration::new(after.tv_sec as u64, after.tv_nsec as u32)
        .saturating_sub(Duration::new(before.tv_sec as u64, before.tv_nsec as u32));
    assert!(start.elapsed() >= 10 * FSYNC);
    assert!(cpu < 5 * FSYNC, "{cpu:?} of the processor for {:?} of waiting", start.elapsed());
}

#[test]
fn an_address_that_nobody_listens_at_is_an_error() {
    use gannet_client::{Client, ClientOptions};
    use gannet_fabric::arena::{Arena, RegionIds};

    let directory = tempfile::tempdir().unwrap();
    let address = Address::shm(directory.path().join("none")).unwrap();
    let mut options = ClientOptions::random(address.clone()).unwrap();
    options.reconnect_timeout = Duration::from_millis(200);
    let fabric = AnyFabric::new(FabricOptions::default());
    let arena = Arena::new(&RegionIds::new(), 4096, 4).unwrap();
    let mut session = Session::new(Client::new(options, fabric), arena).unwrap();
    let error = session.connect().unwrap_err();
    assert!(matches!(error.kind, ErrorKind::MetaserverLost { reactor: 0, .. }), "{error}");
}
