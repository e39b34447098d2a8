//! Hosts, data servers and cores in one thread: requests go in, grants are carried out on memory,
//! and what comes out is kept in order.

mod opens;

use std::collections::{BTreeMap, VecDeque};

use gannet_proto::control::{Grant, StoreInfo, grant_flags, grant_operation};
use gannet_proto::data::Trailer;
use gannet_proto::identity::SetIdentity;
use gannet_proto::limits::{BLOCK_BYTES, SHARDS};
use gannet_proto::operations::{
    Attributes, BufferRef, Cancel, DirectoryEntry, DirectoryReply, EntryReply, InodeRequest,
    IoReply, NameRequest, Names, Read, Register, RequestHeader, SetAttributes, Window, Write,
    attribute_mask, inode_operation, name_operation,
};
use gannet_proto::packet::Message;
use gannet_proto::xattr::{Xattr, XattrReply, XattrRequest};
use gannet_proto::{
    GrantNumber, Handle, Inode, SessionId, ShardId, Status, StoreId, TargetId, Term,
};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Core, CoreConfig, Enrollment, Lsn, Nanos, Now, PeerMessage, SessionIndex, Sink};

pub(super) const BLOCK: usize = BLOCK_BYTES as usize;
/// Address of the host's memory at every data server.
pub(super) const ADDRESS: u64 = 0x10_0000;
pub(super) const REGION: u32 = 5;
/// Bytes of host memory for each slot.
pub(super) const SLOT_BYTES: usize = 1 << 18;
pub(super) const SLOTS: usize = 16;

/// A generator without a seed of its own.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Entry(EntryReply, Vec<u32>),
    Directory(DirectoryReply, Vec<u8>),
    Io(IoReply, Vec<u32>),
    Xattr(XattrReply, Vec<u8>),
}

impl Answer {
    pub(super) fn header(&self) -> RequestHeader {
        match self {
            Answer::Entry(reply, _) => reply.header.request,
            Answer::Directory(reply, _) => reply.header.request,
            Answer::Io(reply, _) => reply.header.request,
            Answer::Xattr(reply, _) => reply.header.request,
        }
    }

    pub(super) fn status(&self) -> Status {
        let status = match self {
            Answer::Entry(reply, _) => reply.header.status,
            Answer::Directory(reply, _) => reply.header.status,
            Answer::Io(reply, _) => reply.header.status,
            Answer::Xattr(reply, _) => reply.header.status,
        };
        Status(status.get())
    }

    pub(super) fn attributes(&self) -> Attributes {
        match self {
            Answer::Entry(reply, _) => reply.attributes,
            other => panic!("not attributes: {other:?}"),
        }
    }

    pub(super) fn io(&self) -> &IoReply {
        match self {
            Answer::Io(reply, _) => reply,
            other => panic!("not an I/O reply: {other:?}"),
        }
    }
}

/// What left a core.
#[derive(Clone, Debug)]
pub(super) enum Output {
    Reply { session: SessionIndex, after: Lsn, answer: Answer },
    Grant { target: TargetId, after: Lsn, grant: Grant },
    Revoke { target: TargetId, number: GrantNumber },
    Peer { to: u16, after: Lsn, message: PeerMessage },
    Enrolled,
}

/// Log and outputs of one core.
#[derive(Default)]
pub(super) struct TestSink {
    pub log: Vec<Vec<u8>>,
    pub outputs: VecDeque<Output>,
}

fn numbers(tail: &[&[u8]]) -> Vec<u32> {
    let bytes = tail.concat();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

impl Sink for TestSink {
    fn record(&mut self, record: &[u8]) -> Lsn {
        assert!(record.len() <= crate::RECORD_BYTES_MAX);
        self.log.push(record.to_vec());
        Lsn(self.log.len() as u64)
    }

    fn reply<T: Message>(&mut self, session: SessionIndex, after: Lsn, reply: &T, tail: &[&[u8]]) {
        assert!(after.0 <= self.log.len() as u64);
        let bytes = reply.as_bytes();
        let answer = match T::KIND {
            EntryReply::KIND => {
                Answer::Entry(EntryReply::read_from_bytes(bytes).unwrap(), numbers(tail))
            }
            DirectoryReply::KIND => {
                Answer::Directory(DirectoryReply::read_from_bytes(bytes).unwrap(), tail.concat())
            }
            IoReply::KIND => Answer::Io(IoReply::read_from_bytes(bytes).unwrap(), numbers(tail)),
            XattrReply::KIND => {
                Answer::Xattr(XattrReply::read_from_bytes(bytes).unwrap(), tail.concat())
            }
            kind => panic!("unexpected reply {kind:#x}"),
        };
        self.outputs.push_back(Output::Reply { session, after, answer });
    }

    fn grant(&mut self, target: TargetId, after: Lsn, grant: &Grant) {
        assert!(after.0 <= self.log.len() as u64);
        grant.check().unwrap();
        self.outputs.push_back(Output::Grant { target, after, grant: *grant });
    }

    fn revoke(&mut self, target: TargetId, number: GrantNumber) {
        self.outputs.push_back(Output::Revoke { target, number });
    }

    fn peer(&mut self, to: u16, after: Lsn, message: PeerMessage) {
        self.outputs.push_back(Output::Peer { to, after, message });
    }

    fn enrolled(&mut self, _after: Lsn, enrollment: Enrollment) {
        assert!(!enrollment.stores.is_empty());
        self.outputs.push_back(Output::Enrolled);
    }
}

/// A store of a data server.
pub(super) struct Store {
    pub info: StoreInfo,
    pub id: StoreId,
    pub bytes: Vec<u8>,
}

pub(super) struct DataServer {
    pub uuid: [u8; 16],
    pub id: TargetId,
    pub stores: Vec<Store>,
}

/// A read as its arrival notices tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrived {
    pub parts: usize,
    pub of: usize,
    pub total: u32,
    pub end_of_file: bool,
    pub failed: Option<Status>,
}

/// A grant that a data server has not carried out.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub reactor: usize,
    pub target: TargetId,
    pub grant: Grant,
    pub after: Lsn,
}

/// A message that a core took in: it left when its sender's log was durable up to `after`, and what
/// the receiver recorded from `len` on may depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cause {
    pub from: usize,
    pub after: Lsn,
    pub to: usize,
    pub len: usize,
}

pub(super) struct World {
    pub config: CoreConfig,
    pub cores: Vec<Core>,
    pub sinks: Vec<TestSink>,
    pub servers: Vec<DataServer>,
    pub pending: Vec<Pending>,
    pub messages: Vec<(usize, u16, Lsn, PeerMessage)>,
    /// Messages that were delivered, in order.
    pub causes: Vec<Cause>,
    pub memory: Vec<u8>,
    pub answers: Vec<Answer>,
    pub arrived: BTreeMap<(u16, u16, u64, u32), Arrived>,
    /// All replies with the position they waited for.
    pub history: Vec<(Lsn, Answer)>,
    pub session: SessionId,
    pub instance: u64,
    pub indexes: Vec<SessionIndex>,
    pub sequences: Vec<Vec<u64>>,
    pub now_ns: u64,
    /// On whose behalf the host asks.
    pub identity: u16,
}

pub(super) fn config(reactors: u16) -> CoreConfig {
    let mut shard_map = [0; SHARDS];
    for (shard, reactor) in shard_map.iter_mut().enumerate() {
        *reactor = (shard % usize::from(reactors)) as u8;
    }
    CoreConfig {
        reactor: 0,
        reactors,
        shard_map,
        term: Term(1),
        stripe_blocks: 4,
        stripe_width: 4,
        grants_max: 1024,
        slots: SLOTS as u16,
        target_wait_ns: 1_000_000,
    }
}

impl World {
    /// Cores, and data servers that are up, each with one store of `blocks`.
    pub(super) fn new(reactors: u16, servers: usize, blocks: u64) -> World {
        let mut world = World::empty(config(reactors));
        world.start();
        for number in 0..servers {
            world.add_server(number as u8 + 1, blocks);
        }
        world.open();
        world
    }

    fn empty(config: CoreConfig) -> World {
        World {
            cores: Vec::new(),
            sinks: (0..config.reactors).map(|_| TestSink::default()).collect(),
            servers: Vec::new(),
            pending: Vec::new(),
            messages: Vec::new(),
            causes: Vec::new(),
            memory: vec![0; SLOT_BYTES * SLOTS],
            answers: Vec::new(),
            arrived: BTreeMap::new(),
            history: Vec::new(),
            session: SessionId(0xabcd),
            instance: 77,
            indexes: Vec::new(),
            sequences: vec![vec![0; SLOTS]; SHARDS],
            now_ns: 1,
            identity: 0,
            config,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now { monotonic: Nanos(self.now_ns), wall_ns: 1_000_000 + self.now_ns }
    }

    fn start(&mut self) {
        self.cores.clear();
        for reactor in 0..self.config.reactors {
            self.cores.push(Core::new(CoreConfig { reactor, ..self.config.clone() }));
        }
        let now = self.now();
        for (core, sink) in self.cores.iter_mut().zip(&mut self.sinks) {
            for record in &sink.log {
                core.replay(record).unwrap();
            }
            core.finish_replay(now, sink);
        }
        self.collect();
        self.deliver_all();
    }

    /// Cores that start from logs, without data servers.
    pub(super) fn from_logs(config: &CoreConfig, logs: &[Vec<Vec<u8>>]) -> World {
        let mut world = World::empty(config.clone());
        for (sink, log) in world.sinks.iter_mut().zip(logs) {
            sink.log = log.clone();
        }
        world.config.term.0 += 1;
        world.now_ns += 1_000_000;
        world.start();
        world
    }

    /// Whether a crash can leave this much of every log.
    pub(super) fn can_remain(&self, lengths: &[usize]) -> bool {
        self.causes.iter().all(|cause| {
            lengths[cause.to] <= cause.len || lengths[cause.from] as u64 >= cause.after.0
        })
    }

    /// All cores crash and start again from their logs; the data servers go on and drain.
    pub(super) fn restart(&mut self) -> bool {
        self.pending.clear();
        self.messages.clear();
        self.answers.clear();
        self.config.term.0 += 1;
        self.now_ns += 1000;
        self.start();
        self.open()
    }

    /// The host's session at all reactors. Whether it was resumed everywhere.
    pub(super) fn open(&mut self) -> bool {
        let now = self.now();
        let opened: Vec<(SessionIndex, bool)> = self
            .cores
            .iter_mut()
            .map(|core| core.session_open(now, self.session, self.instance).unwrap())
            .collect();
        self.indexes = opened.iter().map(|(index, _)| *index).collect();
        for (shard, sequences) in self.sequences.iter_mut().enumerate() {
            // Slots at a reactor that does not know the session begin anew.
            if !opened[usize::from(self.config.shard_map[shard])].1 {
                sequences.fill(0);
            }
        }
        let targets: Vec<TargetId> = self.servers.iter().map(|server| server.id).collect();
        for target in targets {
            self.register(target, 1);
        }
        opened.iter().all(|(_, resumed)| *resumed)
    }

    pub(super) fn register(&mut self, target: TargetId, epoch: u64) {
        let register = Register {
            region: U32::new(REGION),
            target: U32::new(target.0),
            epoch: U64::new(epoch),
            address: U64::new(ADDRESS),
            length: U64::new(self.memory.len() as u64),
            key: U32::new(9),
            reserved: [0; 12],
        };
        for (core, index) in self.cores.iter_mut().zip(&self.indexes) {
            core.register(*index, &register);
        }
    }

    /// The host asks on behalf of a user from now on; of the superuser for user 0.
    pub(super) fn act_as(&mut self, uid: u32, gid: u32, groups: &[u32]) {
        let groups: Vec<U32> = groups.iter().map(|group| U32::new(*group)).collect();
        let request = SetIdentity {
            identity: U16::new(1),
            groups: U16::new(groups.len() as u16),
            uid: U32::new(uid),
            gid: U32::new(gid),
            reserved: U32::ZERO,
        };
        for (core, index) in self.cores.iter_mut().zip(&self.indexes) {
            core.set_identity(*index, &request, request.groups(groups.as_bytes()).unwrap());
        }
        self.identity = u16::from(uid != 0);
    }

    fn add_server(&mut self, name: u8, blocks: u64) {
        let info = StoreInfo {
            uuid: [name + 100; 16],
            generation: U32::new(1),
            block_bytes: U32::new(BLOCK_BYTES),
            blocks: U64::new(blocks),
        };
        let uuid = [name; 16];
        let now = self.now();
        self.cores[0].enroll(now, uuid, &[info], &mut self.sinks[0]);
        self.collect();
        self.deliver_all();
        let enrollment = self.cores[0].enrollment(&uuid, &[info]).unwrap();
        let store =
            Store { info, id: enrollment.stores[0], bytes: vec![0xee; blocks as usize * BLOCK] };
        self.servers.push(DataServer { uuid, id: enrollment.target, stores: vec![store] });
        let index = self.servers.len() - 1;
        for reactor in 0..self.cores.len() {
            self.up(reactor, index);
        }
    }

    /// A data server's channel to a reactor is open and drained.
    pub(super) fn up(&mut self, reactor: usize, server: usize) {
        let now = self.now();
        let server = &self.servers[server];
        let (id, stores): (_, Vec<_>) =
            (server.id, server.stores.iter().map(|store| (store.id, store.info)).collect());
        self.pending.retain(|pending| pending.reactor != reactor || pending.target != id);
        self.cores[reactor].target_up(now, id, &stores, &mut self.sinks[reactor]);
        self.collect();
    }

    pub(super) fn up_all(&mut self) {
        for server in 0..self.servers.len() {
            for reactor in 0..self.cores.len() {
                self.up(reactor, server);
            }
        }
    }

    pub(super) fn down(&mut self, reactor: usize, server: usize) {
        let now = self.now();
        let id = self.servers[server].id;
        self.cores[reactor].target_down(now, id, &mut self.sinks[reactor]);
        self.collect();
    }

    /// Sorts what left the cores.
    pub(super) fn collect(&mut self) {
        for reactor in 0..self.cores.len() {
            while let Some(output) = self.sinks[reactor].outputs.pop_front() {
                match output {
                    Output::Reply { session, after, answer } => {
                        assert!(self.indexes.get(reactor).is_none_or(|own| *own == session));
                        self.history.push((after, answer.clone()));
                        self.answers.push(answer);
                    }
                    Output::Grant { target, after, grant } => {
                        self.pending.push(Pending { reactor, target, grant, after });
                    }
                    Output::Revoke { target, number } => self.revoked(reactor, target, number),
                    Output::Peer { to, after, message } => {
                        self.messages.push((usize::from(to), reactor as u16, after, message));
                    }
                    Output::Enrolled => {}
                }
            }
        }
    }

    fn revoked(&mut self, reactor: usize, target: TargetId, number: GrantNumber) {
        let found = self.pending.iter().position(|pending| {
            pending.reactor == reactor
                && pending.target == target
                && pending.grant.number.get() == number.0
        });
        if let Some(place) = found {
            let pending = self.pending.remove(place);
            self.notice(&pending, Status::REVOKED);
        }
    }

    /// A data server reports on a grant.
    pub(super) fn notice(&mut self, pending: &Pending, status: Status) {
        let (now, reactor) = (self.now(), pending.reactor);
        let (number, length) =
            (GrantNumber(pending.grant.number.get()), pending.grant.length.get());
        self.cores[reactor].notice(
            now,
            pending.target,
            number,
            status,
            length,
            &mut self.sinks[reactor],
        );
        self.collect();
    }

    pub(super) fn deliver(&mut self, place: usize) {
        let (to, from, after, message) = self.messages.remove(place);
        let from_reactor = usize::from(from);
        self.causes.push(Cause { from: from_reactor, after, to, len: self.sinks[to].log.len() });
        let now = self.now();
        self.cores[to].peer(now, from, message, &mut self.sinks[to]);
        self.collect();
    }

    pub(super) fn deliver_all(&mut self) {
        while !self.messages.is_empty() {
            self.deliver(0);
        }
    }

    /// Delivers messages until a core has recorded something.
    pub(super) fn deliver_until_recorded(&mut self, reactor: usize) {
        let records = self.sinks[reactor].log.len();
        while self.sinks[reactor].log.len() == records {
            self.deliver(0);
        }
    }

    /// The reactor that an inode belongs to.
    pub(super) fn reactor_of(&self, inode: Inode) -> usize {
        self.config.shard_map[usize::from(inode.shard().unwrap().0)].into()
    }

    /// Where the messages are that may be delivered next: the first of each pair of reactors.
    pub(super) fn deliverable(&self) -> Vec<usize> {
        let mut seen = Vec::new();
        let mut places = Vec::new();
        for (place, (to, from, ..)) in self.messages.iter().enumerate() {
            if !seen.contains(&(*to, *from)) {
                seen.push((*to, *from));
                places.push(place);
            }
        }
        places
    }

    /// A data server carries out a grant and reports.
    pub(super) fn execute(&mut self, place: usize) {
        let pending = self.pending.remove(place);
        self.transfer(&pending);
        self.report(&pending);
    }

    /// Moves the bytes of a grant.
    pub(super) fn transfer(&mut self, pending: &Pending) {
        let grant = &pending.grant;
        let server = self.servers.iter_mut().find(|server| server.id == pending.target).unwrap();
        let store = server.stores.iter_mut().find(|s| s.id.0 == grant.store.get()).unwrap();
        assert_eq!(store.info.generation, grant.generation);
        assert_eq!(grant.host_key.get(), 9);
        let (offset, length) = (grant.offset.get() as usize, grant.length.get() as usize);
        let host = (grant.host_address.get() - ADDRESS) as usize;
        let host = &mut self.memory[host..host + length];
        let start = grant.block.get() as usize * BLOCK + offset;
        match grant.operation {
            grant_operation::READ | grant_operation::ZERO => {
                let valid = grant.valid.get() as usize;
                host[..valid].copy_from_slice(&store.bytes[start..start + valid]);
                host[valid..].fill(0);
            }
            _ => {
                let blocks = grant.blocks() as usize;
                let mut fresh = vec![0; blocks * BLOCK];
                let old = |block: u64, valid: u32| {
                    let mut bytes = vec![0; BLOCK];
                    if block != u64::MAX {
                        let (start, valid) = (block as usize * BLOCK, valid as usize);
                        bytes[..valid].copy_from_slice(&store.bytes[start..start + valid]);
                    }
                    bytes
                };
                let head = old(grant.head_block.get(), grant.head_valid.get());
                let tail = old(grant.tail_block.get(), grant.tail_valid.get());
                let end = offset + length;
                fresh[..offset].copy_from_slice(&head[..offset]);
                fresh[offset..end].copy_from_slice(host);
                let last = (blocks - 1) * BLOCK;
                fresh[end..].copy_from_slice(&tail[end - last..]);
                let start = start - offset;
                store.bytes[start..start + fresh.len()].copy_from_slice(&fresh);
            }
        }
    }

    /// Reports a grant that went well.
    pub(super) fn report(&mut self, pending: &Pending) {
        if pending.grant.flags & grant_flags::NOTIFY_METASERVER != 0 {
            return self.notice(pending, Status::OK);
        }
        self.arrive(pending, Status::OK);
        let (now, reactor) = (self.now(), pending.reactor);
        let number = GrantNumber(pending.grant.number.get());
        let sink = &mut self.sinks[reactor];
        self.cores[reactor].retired(now, pending.target, number, number, sink);
        self.collect();
    }

    /// The host gets an arrival notice.
    pub(super) fn arrive(&mut self, pending: &Pending, status: Status) {
        let trailer = Trailer::read_from_bytes(&pending.grant.trailer[..]).unwrap();
        let arrived = self.arrived.entry(key(&trailer.request)).or_default();
        arrived.parts += 1;
        arrived.of = trailer.parts.get().into();
        arrived.total = trailer.total_bytes.get();
        arrived.end_of_file = trailer.end_of_file != 0;
        if !status.is_ok() {
            arrived.failed = Some(status);
        }
    }

    /// Everything that can happen happens, first come first served.
    pub(super) fn run(&mut self) {
        loop {
            if !self.messages.is_empty() {
                self.deliver(0);
            } else if !self.pending.is_empty() {
                self.execute(0);
            } else {
                return;
            }
        }
    }

    /// The header of the next request in a slot.
    pub(super) fn header(&mut self, shard: ShardId, slot: u16) -> RequestHeader {
        let sequence = &mut self.sequences[usize::from(shard.0)][usize::from(slot)];
        *sequence += 1;
        RequestHeader {
            shard: U16::new(shard.0),
            slot: U16::new(slot),
            attempt: U32::new(1),
            sequence: U64::new(*sequence),
        }
    }

    pub(super) fn reactor(&self, header: &RequestHeader) -> usize {
        self.config.shard_map[usize::from(header.shard.get())].into()
    }

    pub(super) fn send_name(&mut self, request: &NameRequest, name: &[u8], to_name: &[u8]) {
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.name_request(now, self.indexes[reactor], request, Names { name, to_name }, sink);
        self.collect();
    }

    pub(super) fn send_read(&mut self, request: &Read) {
        self.send_read_by(request, &[]);
    }

    /// A read, with the windows in its tail.
    pub(super) fn send_read_by(&mut self, request: &Read, windows: &[Window]) {
        let windows = request.windows(windows.as_bytes()).unwrap();
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.read(now, self.indexes[reactor], request, windows, sink);
        self.collect();
    }

    pub(super) fn send_write(&mut self, request: &Write) {
        self.send_write_by(request, &[]);
    }

    /// A write, with the windows in its tail.
    pub(super) fn send_write_by(&mut self, request: &Write, windows: &[Window]) {
        let windows = request.windows(windows.as_bytes()).unwrap();
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.write(now, self.indexes[reactor], request, windows, sink);
        self.collect();
    }

    pub(super) fn send_attributes(&mut self, request: &SetAttributes) {
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.set_attributes(now, self.indexes[reactor], request, sink);
        self.collect();
    }

    pub(super) fn send_cancel(&mut self, header: &RequestHeader) {
        let (now, reactor) = (self.now(), self.reactor(header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        let cancel = Cancel { header: *header };
        core.cancel(now, self.indexes[reactor], &cancel.header, sink);
        self.collect();
    }

    /// The answer of a request, if it came.
    pub(super) fn take(&mut self, header: &RequestHeader) -> Option<Answer> {
        let place = self.answers.iter().position(|answer| answer.header() == *header)?;
        Some(self.answers.remove(place))
    }

    /// Runs until a request is answered.
    pub(super) fn wait(&mut self, header: &RequestHeader) -> Answer {
        self.run();
        self.take(header).unwrap_or_else(|| panic!("no answer to {header:?}"))
    }

    pub(super) fn result(answer: Answer) -> Result<Attributes, Status> {
        match answer.status() {
            Status::OK => Ok(answer.attributes()),
            status => Err(status),
        }
    }

    pub(super) fn name_message(
        &mut self,
        operation: u16,
        parent: Inode,
        to_parent: Inode,
        slot: u16,
    ) -> NameRequest {
        NameRequest {
            header: self.header(parent.shard().unwrap(), slot),
            parent: Handle::new(parent),
            to_parent: Handle::new(to_parent),
            operation: U16::new(operation),
            identity: U16::new(self.identity),
            mode: U32::new(0o640),
            uid: U32::new(10),
            gid: U32::new(20),
            ..NameRequest::default()
        }
    }

    /// A namespace request, carried through.
    pub(super) fn name(
        &mut self,
        operation: u16,
        parent: Inode,
        name: &str,
    ) -> Result<Attributes, Status> {
        let request = self.name_message(operation, parent, Inode::ROOT, 0);
        self.send_name(&request, name.as_bytes(), b"");
        World::result(self.wait(&request.header))
    }

    pub(super) fn create(&mut self, parent: Inode, name: &str) -> Result<Inode, Status> {
        self.name(name_operation::CREATE, parent, name).map(|found| found.handle.inode())
    }

    pub(super) fn mkdir(&mut self, parent: Inode, name: &str) -> Result<Inode, Status> {
        self.name(name_operation::MKDIR, parent, name).map(|found| found.handle.inode())
    }

    pub(super) fn lookup(&mut self, parent: Inode, name: &str) -> Result<Inode, Status> {
        self.name(name_operation::LOOKUP, parent, name).map(|found| found.handle.inode())
    }

    pub(super) fn unlink(&mut self, parent: Inode, name: &str) -> Result<(), Status> {
        self.name(name_operation::UNLINK, parent, name).map(|_| ())
    }

    pub(super) fn rmdir(&mut self, parent: Inode, name: &str) -> Result<(), Status> {
        self.name(name_operation::RMDIR, parent, name).map(|_| ())
    }

    pub(super) fn rename(
        &mut self,
        from: (Inode, &str),
        to: (Inode, &str),
        flags: u32,
    ) -> Result<(), Status> {
        let mut request = self.name_message(name_operation::RENAME, from.0, to.0, 0);
        request.flags = U32::new(flags);
        self.send_name(&request, from.1.as_bytes(), to.1.as_bytes());
        World::result(self.wait(&request.header)).map(|_| ())
    }

    pub(super) fn link(&mut self, inode: Inode, to: (Inode, &str)) -> Result<Attributes, Status> {
        let request = self.name_message(name_operation::LINK, to.0, inode, 0);
        self.send_name(&request, to.1.as_bytes(), b"");
        World::result(self.wait(&request.header))
    }

    /// All names of a directory.
    pub(super) fn list(&mut self, parent: Inode) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let mut request = self.name_message(name_operation::READDIR, parent, parent, 0);
            request.reply_bytes_max = U32::new(200);
            self.send_name(&request, after.as_bytes(), b"");
            let Answer::Directory(reply, mut tail) = self.wait(&request.header) else {
                panic!("READDIR is answered by entries")
            };
            assert_eq!(reply.header.status.get(), 0);
            for _ in 0..reply.count.get() {
                let (entry, rest) = DirectoryEntry::read_from_prefix(&tail).unwrap();
                let (name, rest) = rest.split_at(entry.name_bytes.get().into());
                after = String::from_utf8(name.to_vec()).unwrap();
                names.push(after.clone());
                tail = rest.to_vec();
            }
            if reply.end.get() == 1 {
                return names;
            }
        }
    }

    pub(super) fn send_xattr(&mut self, request: &XattrRequest, xattr: Xattr<'_>) {
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.xattr_request(now, self.indexes[reactor], request, xattr, sink);
        self.collect();
    }

    pub(super) fn send_inode(&mut self, request: &InodeRequest) {
        let (now, reactor) = (self.now(), self.reactor(&request.header));
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.inode_request(now, self.indexes[reactor], request, sink);
        self.collect();
    }

    pub(super) fn stat(&mut self, inode: Inode) -> Result<Attributes, Status> {
        let request = InodeRequest {
            header: self.header(inode.shard().unwrap(), 0),
            handle: Handle::new(inode),
            operation: U16::new(inode_operation::STAT),
            identity: U16::new(self.identity),
            ..InodeRequest::default()
        };
        self.send_inode(&request);
        World::result(self.wait(&request.header))
    }

    pub(super) fn attributes_message(
        &mut self,
        inode: Inode,
        size: u64,
        slot: u16,
    ) -> SetAttributes {
        SetAttributes {
            header: self.header(inode.shard().unwrap(), slot),
            handle: Handle::new(inode),
            mask: U32::new(attribute_mask::SIZE),
            size: U64::new(size),
            identity: U16::new(self.identity),
            atime_ns: I64::ZERO,
            ..SetAttributes::default()
        }
    }

    pub(super) fn truncate(&mut self, inode: Inode, size: u64) -> Result<Attributes, Status> {
        let request = self.attributes_message(inode, size, 0);
        self.send_attributes(&request);
        World::result(self.wait(&request.header))
    }

    /// A write whose data lie in its slot's part of the host's memory.
    pub(super) fn write_message(
        &mut self,
        inode: Inode,
        offset: u64,
        data: &[u8],
        slot: u16,
        flags: u16,
    ) -> Write {
        let start = usize::from(slot) * SLOT_BYTES;
        self.memory[start..start + data.len()].copy_from_slice(data);
        Write {
            header: self.header(inode.shard().unwrap(), slot),
            handle: Handle::new(inode),
            offset: U64::new(offset),
            length: U32::new(data.len() as u32),
            flags: U16::new(flags),
            buffers: U16::new(1),
            buffer: buffer(slot),
            identity: U16::new(self.identity),
            ..Write::default()
        }
    }

    pub(super) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        data: &[u8],
        flags: u16,
    ) -> Result<IoReply, Status> {
        let request = self.write_message(inode, offset, data, 1, flags);
        self.send_write(&request);
        let answer = self.wait(&request.header);
        match answer.status() {
            Status::OK => Ok(*answer.io()),
            status => Err(status),
        }
    }

    pub(super) fn read_message(
        &mut self,
        inode: Inode,
        offset: u64,
        length: usize,
        slot: u16,
        flags: u16,
    ) -> Read {
        let start = usize::from(slot) * SLOT_BYTES;
        self.memory[start..start + length].fill(0xdd);
        Read {
            header: self.header(inode.shard().unwrap(), slot),
            handle: Handle::new(inode),
            offset: U64::new(offset),
            length: U32::new(length as u32),
            flags: U16::new(flags),
            buffers: U16::new(1),
            buffer: buffer(slot),
            identity: U16::new(self.identity),
            ..Read::default()
        }
    }

    /// What a read brought, once it is complete: bytes and whether the file ends there.
    pub(super) fn read_result(&mut self, header: &RequestHeader) -> Option<(Vec<u8>, bool)> {
        let start = usize::from(header.slot.get()) * SLOT_BYTES;
        if let Some(answer) = self.take(header) {
            assert_eq!(answer.status(), Status::OK);
            let reply = answer.io();
            return Some((vec![0; reply.length.get() as usize], reply.end_of_file.get() == 1));
        }
        let arrived = self.arrived.get(&key(header))?;
        if arrived.parts < arrived.of {
            return None;
        }
        let arrived = self.arrived.remove(&key(header)).unwrap();
        assert_eq!((arrived.parts, arrived.failed), (arrived.of, None));
        let bytes = self.memory[start..start + arrived.total as usize].to_vec();
        Some((bytes, arrived.end_of_file))
    }

    pub(super) fn read(&mut self, inode: Inode, offset: u64, length: usize) -> (Vec<u8>, bool) {
        let request = self.read_message(inode, offset, length, 2, 0);
        self.send_read(&request);
        self.run();
        self.read_result(&request.header).expect("the read completes")
    }

    /// Checks every core.
    pub(super) fn check(&self) {
        for core in &self.cores {
            core.check_invariants().unwrap();
        }
    }

    /// Every core's log replayed into a fresh core gives the same state.
    pub(super) fn check_replay(&self) {
        for (reactor, (core, sink)) in self.cores.iter().zip(&self.sinks).enumerate() {
            let config = CoreConfig { reactor: reactor as u16, ..self.config.clone() };
            let mut copy = Core::new(config);
            for record in &sink.log {
                copy.replay(record).unwrap();
            }
            if reactor == 0 {
                assert_eq!(copy.dump(), core.dump());
            }
            let files = |core: &Core| {
                let dump = core.dump();
                dump.split("store ").next().unwrap_or("").to_owned()
            };
            assert_eq!(files(&copy), files(core));
        }
    }
}

pub(super) fn key(header: &RequestHeader) -> (u16, u16, u64, u32) {
    (header.shard.get(), header.slot.get(), header.sequence.get(), header.attempt.get())
}

fn buffer(slot: u16) -> BufferRef {
    let offset = U64::new(u64::from(slot) * SLOT_BYTES as u64);
    BufferRef { region: U32::new(REGION), reserved: U32::ZERO, offset }
}

/// Bytes that tell where they come from.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..length).map(|_| random.next() as u8).collect()
}
