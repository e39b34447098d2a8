//! Scripted servers: they greet and hand out tickets by themselves, and leave requests to the test.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_fabric::{ConnectionId, DisconnectReason};
use gannet_proto::addresses::push_text;
use gannet_proto::data::{Arrival, DataHello, DataWelcome, Trailer};
use gannet_proto::handshake::{FEATURES_KNOWN, Hello, Refusal};
use gannet_proto::identity::SetIdentity;
use gannet_proto::operations::{
    Attributes, BufferRef, Cancel, ConnectTarget, DeclareOpen, EntryReply, HostHello, HostWelcome,
    InodeRequest, IoReply, NameRequest, Read, ReclaimComplete, Register, RequestHeader,
    SetAttributes, StatFs, Stats, TargetReply, Unregister, Window, Write, file_type,
};
use gannet_proto::packet::{Frames, Message, PacketWriter};
use gannet_proto::xattr::XattrRequest;
use gannet_proto::{Handle, Inode, SessionId, ShardId, Status};
use gannet_runtime::time::Time;
use zerocopy::little_endian::{U16, U32, U64};

use super::fake::FakeFabric;
use crate::client::Client;
use crate::operation::{Completion, Operation};
use crate::options::ClientOptions;

pub(super) const META: [&str; 2] = ["shm:///meta0", "shm:///meta1"];
/// Requests of a channel, unless a test says otherwise.
const REQUESTS_MAX: u32 = 4096;

/// What the client asked, with the connection that it came on.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Hello(HostHello),
    Name(NameRequest, Vec<u8>, Vec<u8>),
    Inode(InodeRequest),
    Set(SetAttributes),
    Read(Read),
    Write(Write),
    Target(ConnectTarget),
    StatFs(StatFs),
    Stats(Stats),
    Register,
    Identity(SetIdentity, Vec<u32>),
    Declare(DeclareOpen),
    Complete,
    Xattr(XattrRequest, Vec<u8>, Vec<u8>),
    Unregister(Unregister),
    Cancel(Cancel),
    DataHello(DataHello, Vec<u8>),
}

/// A client and its scripted surroundings.
pub(super) struct Cluster {
    pub(super) client: Client<FakeFabric>,
    pub(super) fabric: FakeFabric,
    pub(super) arena: Arena,
    pub(super) now: Time,
    pub(super) completions: Vec<Completion>,
    /// Requests not looked at by the test, oldest first.
    pub(super) asked: VecDeque<(ConnectionId, Asked)>,
    /// All registrations that reactors were told of.
    pub(super) told: Vec<Register>,
    /// Channels on which the host has told all that it has open.
    pub(super) complete: Vec<ConnectionId>,
    /// The windows of the reads and writes sent, by their headers.
    pub(super) named: Vec<(RequestHeader, Vec<Window>)>,
    /// Features required by hellos so far.
    pub(super) required: u64,
    /// Features that the server has.
    pub(super) features: u64,
    pub(super) epoch: u64,
    pub(super) resumed: bool,
    pub(super) slots: u16,
    pub(super) requests_max: u32,
    pub(super) refusal: Option<Status>,
    /// Whether tickets are handed out.
    pub(super) tickets: bool,
    pub(super) reactors: u16,
    pub(super) map_version: u64,
    /// Addresses of each data server besides [`target_address`].
    pub(super) further: Vec<&'static str>,
    /// Addresses of reactors besides [`META`].
    pub(super) meta_further: Vec<(u16, &'static str)>,
    /// Addresses at which somebody else listens, who refuses every hello.
    pub(super) strangers: BTreeSet<String>,
    /// Addresses at which another metadata server welcomes everybody.
    pub(super) foreign: BTreeSet<String>,
    /// Addresses at which somebody listens who says nothing.
    pub(super) silent: BTreeSet<String>,
}

pub(super) fn options() -> ClientOptions {
    let address = META[0].parse().expect("an address");
    ClientOptions { slots: 8, ..ClientOptions::new(address, SessionId(77), 99) }
}

/// A file on a shard.
pub(super) fn file(shard: u16) -> Handle {
    Handle::new(Inode::new(ShardId(shard), 5))
}

pub(super) fn attributes(handle: Handle) -> Attributes {
    let mode = U32::new(file_type::REGULAR | 0o644);
    Attributes { handle, mode, size: U64::new(100), ..Attributes::default() }
}

/// The header of any request.
pub(super) fn header_of(asked: &Asked) -> RequestHeader {
    match asked {
        Asked::Name(message, _, _) => message.header,
        Asked::Inode(message) => message.header,
        Asked::Set(message) => message.header,
        Asked::Xattr(message, _, _) => message.header,
        Asked::Read(message) => message.header,
        Asked::Write(message) => message.header,
        Asked::Target(message) => message.header,
        Asked::StatFs(message) => message.header,
        Asked::Stats(message) => message.header,
        other => panic!("no request: {other:?}"),
    }
}

/// One frame as a packet.
pub(super) fn packet<T: Message>(message: &T, tail: &[&[u8]]) -> Vec<u8> {
    let mut packet = PacketWriter::new();
    packet.push(message, tail).expect("a packet takes one frame");
    packet.bytes().to_vec()
}

impl Cluster {
    pub(super) fn new() -> Cluster {
        Cluster::with(options(), false)
    }

    pub(super) fn with(options: ClientOptions, revokes: bool) -> Cluster {
        let fabric = FakeFabric::new(revokes);
        Cluster {
            client: Client::new(options, fabric.clone()),
            fabric,
            arena: Arena::new(&RegionIds::new(), 8192, 2000).expect("memory"),
            now: Time(1_000_000),
            completions: Vec::new(),
            asked: VecDeque::new(),
            told: Vec::new(),
            complete: Vec::new(),
            named: Vec::new(),
            required: 0,
            features: FEATURES_KNOWN,
            epoch: 0,
            resumed: true,
            slots: 8,
            requests_max: REQUESTS_MAX,
            refusal: None,
            tickets: true,
            reactors: 1,
            map_version: 1,
            further: Vec::new(),
            meta_further: Vec::new(),
            strangers: BTreeSet::new(),
            foreign: BTreeSet::new(),
            silent: BTreeSet::new(),
        }
    }

    pub(super) fn buffer(&self) -> HostBuffer {
        self.arena.take().expect("a free buffer")
    }

    pub(super) fn read(&self, file: Handle, offset: u64, length: u32) -> Operation {
        Operation::Read { file, offset, length, buffer: self.buffer(), buffer_offset: 0 }
    }

    pub(super) fn write(&self, file: Handle, offset: u64, length: u32) -> Operation {
        let buffer = self.buffer();
        Operation::Write { file, offset, length, buffer, buffer_offset: 0, append: false }
    }

    /// One poll of the client and one turn of the servers.
    pub(super) fn turn(&mut self) {
        self.client.poll(self.now, &mut self.completions);
        loop {
            let Some((connection, bytes)) = self.fabric.world().sent.pop_front() else { break };
            for frame in Frames::new(&bytes) {
                let frame = frame.expect("clients send whole frames");
                self.take(connection, &frame);
            }
        }
    }

    /// Turns until nothing moves any more at this time.
    pub(super) fn settle(&mut self) {
        for _ in 0..50 {
            self.turn();
            let is_quiet = self.fabric.world().inbox.is_empty();
            if is_quiet && self.client.deadline() > self.now {
                return;
            }
        }
        panic!("the client does not come to rest");
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.settle();
    }

    /// Lets time pass in steps of the client's deadlines.
    pub(super) fn pass_stepwise(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while self.client.deadline() <= end {
            self.now = self.client.deadline().max(self.now);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    fn take(&mut self, connection: ConnectionId, frame: &gannet_proto::packet::Frame<'_>) {
        let asked = match frame.kind {
            Hello::KIND => {
                let (hello, tail) = frame.read::<Hello>().expect("whole");
                self.required |= hello.features_required.get();
                return assert_eq!(hello.check(tail), Ok(()));
            }
            HostHello::KIND => {
                let (hello, _) = frame.read::<HostHello>().expect("whole");
                self.greet(connection);
                Asked::Hello(*hello)
            }
            DataHello::KIND => {
                let (hello, ticket) = frame.read::<DataHello>().expect("whole");
                let address = self.fabric.world().address(connection);
                let answer = if self.strangers.contains(&address) {
                    Some(packet(&Refusal::new(Status::BAD_TICKET), &[b"who?"]))
                } else if self.silent.contains(&address) {
                    None
                } else {
                    let version = U16::new(1);
                    Some(packet(&DataWelcome { version, ..DataWelcome::default() }, &[]))
                };
                if let Some(answer) = answer {
                    self.fabric.world().deliver(connection, &answer);
                }
                Asked::DataHello(*hello, ticket.to_vec())
            }
            ConnectTarget::KIND => {
                let (ask, _) = frame.read::<ConnectTarget>().expect("whole");
                if self.tickets {
                    self.hand_out(connection, ask);
                }
                Asked::Target(*ask)
            }
            NameRequest::KIND => {
                let (request, tail) = frame.read::<NameRequest>().expect("whole");
                let names = request.names(tail).expect("in bounds");
                Asked::Name(*request, names.name.to_vec(), names.to_name.to_vec())
            }
            Register::KIND => {
                let (register, _) = frame.read::<Register>().expect("whole");
                self.told.push(*register);
                Asked::Register
            }
            Read::KIND => {
                let (read, tail) = frame.read::<Read>().expect("whole");
                let windows = read.windows(tail).expect("in bounds");
                self.named.push((read.header, windows.to_vec()));
                Asked::Read(*read)
            }
            Write::KIND => {
                let (write, tail) = frame.read::<Write>().expect("whole");
                let windows = write.windows(tail).expect("in bounds");
                self.named.push((write.header, windows.to_vec()));
                Asked::Write(*write)
            }
            InodeRequest::KIND => Asked::Inode(*frame.read().expect("whole").0),
            SetAttributes::KIND => Asked::Set(*frame.read().expect("whole").0),
            StatFs::KIND => Asked::StatFs(*frame.read().expect("whole").0),
            Stats::KIND => Asked::Stats(*frame.read().expect("whole").0),
            XattrRequest::KIND => {
                let (request, tail) = frame.read::<XattrRequest>().expect("whole");
                let xattr = request.xattr(tail).expect("in bounds");
                Asked::Xattr(*request, xattr.name.to_vec(), xattr.value.to_vec())
            }
            ReclaimComplete::KIND => {
                self.complete.push(connection);
                Asked::Complete
            }
            DeclareOpen::KIND => {
                assert!(!self.complete.contains(&connection), "an open behind the last one");
                Asked::Declare(*frame.read().expect("whole").0)
            }
            SetIdentity::KIND => {
                let (message, tail) = frame.read::<SetIdentity>().expect("whole");
                let groups = message.groups(tail).expect("in bounds");
                Asked::Identity(*message, groups.iter().map(|group| group.get()).collect())
            }
            Unregister::KIND => Asked::Unregister(*frame.read().expect("whole").0),
            Cancel::KIND => Asked::Cancel(*frame.read().expect("whole").0),
            kind => panic!("a host does not send {kind:#x}"),
        };
        self.asked.push_back((connection, asked));
    }

    fn greet(&mut self, connection: ConnectionId) {
        if let Some(status) = self.refusal {
            let refusal = packet(&Refusal::new(status), &[b"no"]);
            return self.fabric.world().deliver(connection, &refusal);
        }
        let address = self.fabric.world().address(connection);
        if self.silent.contains(&address) {
            return;
        }
        if self.strangers.contains(&address) {
            let refusal = packet(&Refusal::new(Status::VERSION), &[b"no"]);
            return self.fabric.world().deliver(connection, &refusal);
        }
        let named = self.meta_further.iter().find(|(_, text)| *text == address);
        let first = META.iter().position(|meta| *meta == address);
        let reactor = first.map_or_else(|| named.expect("a reactor").0, |first| first as u16);
        let welcome = HostWelcome {
            version: U16::new(1),
            shards: U16::new(64),
            reactors: U16::new(self.reactors),
            reactor: U16::new(reactor),
            slots: U16::new(self.slots),
            features: U64::new(self.features),
            resumed: U16::new(self.resumed.into()),
            request_bytes_max: U32::new(4 << 20),
            block_bytes: U32::new(4096),
            map_version: U64::new(self.map_version),
            requests_max: U32::new(self.requests_max),
            file_system_uuid: [if self.foreign.contains(&address) { 2 } else { 1 }; 16],
            further_addresses: U16::new(self.meta_further.len() as u16),
            ..HostWelcome::default()
        };
        let mut tail: Vec<u8> = (0..64_u16).map(|shard| (shard % self.reactors) as u8).collect();
        for address in &META[..usize::from(self.reactors)] {
            tail.extend((address.len() as u16).to_le_bytes());
            tail.extend(address.as_bytes());
        }
        for (reactor, address) in &self.meta_further {
            tail.extend(reactor.to_le_bytes());
            push_text(&mut tail, address);
        }
        self.fabric.world().deliver(connection, &packet(&welcome, &[&tail]));
    }

    fn hand_out(&mut self, connection: ConnectionId, ask: &ConnectTarget) {
        self.epoch += 1;
        let address = target_address(ask.target.get());
        let reply = TargetReply {
            header: ask.header.reply(Status::OK),
            target: ask.target,
            address_bytes: U16::new(address.len() as u16),
            ticket_bytes: U16::new(6),
            epoch: U64::new(self.epoch),
            further_addresses: U16::new(self.further.len() as u16),
            ..TargetReply::default()
        };
        let mut further = Vec::new();
        self.further.iter().for_each(|text| push_text(&mut further, text));
        let reply = packet(&reply, &[address.as_bytes(), b"ticket", &further]);
        self.fabric.world().deliver(connection, &reply);
    }

    /// The oldest request that is not part of setting up sessions.
    pub(super) fn next(&mut self) -> Asked {
        self.next_on().1
    }

    pub(super) fn next_on(&mut self) -> (ConnectionId, Asked) {
        self.try_next().expect("the client asked for something")
    }

    pub(super) fn try_next(&mut self) -> Option<(ConnectionId, Asked)> {
        loop {
            let (connection, asked) = self.asked.pop_front()?;
            match asked {
                Asked::Hello(_)
                | Asked::Register
                | Asked::Complete
                | Asked::Target(_)
                | Asked::DataHello(_, _)
                | Asked::Unregister(_) => {}
                other => return Some((connection, other)),
            }
        }
    }

    pub(super) fn meta(&self, reactor: usize) -> ConnectionId {
        *self.fabric.world().open_to(META[reactor]).last().expect("a channel")
    }

    pub(super) fn target(&self, target: u32) -> ConnectionId {
        let address = target_address(target);
        *self.fabric.world().open_to(&address).last().expect("a data session")
    }

    pub(super) fn send<T: Message>(&self, to: ConnectionId, message: &T, tail: &[&[u8]]) {
        self.fabric.world().deliver(to, &packet(message, tail));
    }

    pub(super) fn break_off(&self, connection: ConnectionId) {
        self.fabric.world().break_off(connection, DisconnectReason::PeerLost);
    }

    /// Answers a read or write.
    pub(super) fn answer_io(&self, request: RequestHeader, status: Status, length: u32) {
        let header = request.reply(status);
        let reply = IoReply { header, length: U32::new(length), ..IoReply::default() };
        self.send(self.meta(0), &reply, &[]);
    }

    pub(super) fn stale_set(&self, request: RequestHeader, targets: &[u32]) {
        let header = request.reply(Status::STALE_SET);
        let targets_count = U16::new(targets.len() as u16);
        let reply = IoReply { header, targets: targets_count, ..IoReply::default() };
        let tail: Vec<u8> = targets.iter().flat_map(|target| target.to_le_bytes()).collect();
        self.send(self.meta(0), &reply, &[&tail]);
    }

    pub(super) fn answer_entry(&self, request: RequestHeader, status: Status) {
        let header = request.reply(status);
        let reply = EntryReply { header, attributes: attributes(file(0)), ..EntryReply::default() };
        self.send(self.meta(0), &reply, &[]);
    }

    /// Answers a request with these attributes.
    pub(super) fn answer_attributes(&self, request: RequestHeader, attributes: Attributes) {
        let header = request.reply(Status::OK);
        self.send(self.meta(0), &EntryReply { header, attributes, ..EntryReply::default() }, &[]);
    }

    /// Sends the arrival notice of one part.
    pub(super) fn arrive(&self, target: u32, request: RequestHeader, part: (u16, u16), total: u32) {
        self.send(self.target(target), &arrival(request, part, total, Status::OK), &[]);
    }

    /// Submits a read, lets it open data sessions with `targets`, and returns it as it was sent
    /// when all is in place.
    pub(super) fn warm_up(&mut self, targets: &[u32]) {
        let read = self.read(file(0), 0, 100);
        self.client.submit(read, 4711).expect("room");
        self.settle();
        let header = header_of(&self.next());
        self.stale_set(header, targets);
        self.settle();
        let header = header_of(&self.next());
        self.arrive(targets[0], header, (0, 1), 100);
        self.settle();
        let done = self.completions.pop().expect("completed");
        assert!(done.result.is_ok(), "{done:?}");
    }

    /// The data server's view of a buffer's memory, by what reactors were told last.
    pub(super) fn view(
        &self,
        buffer: BufferRef,
    ) -> std::sync::Arc<gannet_runtime::memory::Mapping> {
        let told = self.told.iter().rev().find(|told| told.region == buffer.region);
        let key = told.expect("told").key.get();
        let world = self.fabric.world();
        let found = world.registered.iter().find(|registered| registered.key.0 == key);
        let memory = &found.expect("registered").memory;
        let file = memory.file().expect("shareable").try_clone_to_owned().expect("a descriptor");
        gannet_runtime::memory::Mapping::from_peer(file, memory.len()).expect("mapped")
    }
}

pub(super) fn target_address(target: u32) -> String {
    format!("shm:///target{target}")
}

pub(super) fn arrival(
    request: RequestHeader,
    part: (u16, u16),
    total: u32,
    status: Status,
) -> Arrival {
    let trailer = Trailer {
        request,
        part: U16::new(part.0),
        parts: U16::new(part.1),
        total_bytes: U32::new(total),
        ..Trailer::default()
    };
    Arrival { status: U32::new(status.0), trailer, ..Arrival::default() }
}
