//! One packet of every message of the protocol, made by its own encoder.
//!
//! Every byte of a body differs from zero and from its neighbours, so that a field that is read at
//! another place or with another length shows. Where a field counts what is in the tail it does.

use gannet_proto::control::{
    Drain, Drained, Grant, Notice, Retired, RetiredRange, Revoke, SessionClose, SessionClosed,
    SessionOpen, SessionReady, StoreInfo, TargetHello, TargetStats, TargetStatsReply,
    TargetWelcome,
};
use gannet_proto::data::{Arrival, DataHello, DataWelcome};
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::identity::SetIdentity;
use gannet_proto::operations::{
    Cancel, ConnectTarget, ConnectionEntry, CounterEntry, DeclareOpen, DirectoryEntry,
    DirectoryReply, EntryReply, HostHello, HostWelcome, InodeRequest, IoReply, NameRequest, Read,
    ReclaimComplete, Register, SetAttributes, StatFs, StatFsReply, Stats, StatsReply, TargetReply,
    Unregister, Window, Write,
};
use gannet_proto::packet::{Message, PacketWriter};
use gannet_proto::xattr::{XattrReply, XattrRequest};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A packet of one message.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Kind of the message.
    pub(crate) kind: u16,
    /// Its name.
    pub(crate) name: &'static str,
    /// Length of its body.
    pub(crate) body_bytes: usize,
    /// The packet.
    pub(crate) packet: Vec<u8>,
    /// Parts of messages in its tail: their names, and where they begin in the packet.
    pub(crate) parts: Vec<(&'static str, usize)>,
    /// What else has to be read in the tail: fields and values as a display filter has them.
    pub(crate) texts: Vec<(&'static str, &'static str)>,
}

/// A value of bytes that differ from zero and from their neighbours.
fn filled<T: FromBytes>(seed: u16) -> T {
    let bytes: Vec<u8> = (0..size_of::<T>()).map(|at| (seed as usize + at * 7) as u8 | 1).collect();
    T::read_from_bytes(&bytes).expect("as many bytes as it has")
}

/// The parts of a tail, one behind the other.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    parts: Vec<(&'static str, usize)>,
    texts: Vec<(&'static str, &'static str)>,
}

impl Tail {
    fn bytes(mut self, bytes: &[u8], field: &'static str, shown: &'static str) -> Tail {
        self.bytes.extend(bytes);
        self.texts.push((field, shown));
        self
    }

    fn text(self, text: &'static str, field: &'static str) -> Tail {
        self.bytes(text.as_bytes(), field, text)
    }

    /// A text with its length in front.
    fn address(mut self, text: &'static str, field: &'static str) -> Tail {
        self.bytes.extend((text.len() as u16).to_le_bytes());
        self.text(text, field)
    }

    fn part<T: IntoBytes + Immutable>(mut self, name: &'static str, part: &T) -> Tail {
        self.parts.push((name, self.bytes.len()));
        self.bytes.extend(part.as_bytes());
        self
    }
}

fn sample<T: Message>(change: impl FnOnce(&mut T), tail: Tail) -> Sample {
    let mut message: T = filled(T::KIND);
    change(&mut message);
    let mut packet = PacketWriter::new();
    packet.push(&message, &[&tail.bytes]).expect("it fits a packet");
    let body_bytes = size_of::<T>();
    let start = packet.bytes().len() - tail.bytes.len();
    Sample {
        kind: T::KIND,
        name: T::NAME,
        body_bytes,
        packet: packet.bytes().to_vec(),
        parts: tail.parts.iter().map(|(name, at)| (*name, start + at)).collect(),
        texts: tail.texts,
    }
}

fn plain<T: Message>() -> Sample {
    sample::<T>(|_| {}, Tail::default())
}

fn named<T: IntoBytes + Immutable>(
    tail: Tail,
    part_name: &'static str,
    part: &T,
    text: &'static str,
    field: &'static str,
) -> Tail {
    tail.part(part_name, part).text(text, field)
}

/// All messages.
pub(crate) fn all() -> Vec<Sample> {
    let mut samples = shaking_hands();
    samples.extend(operations());
    samples.extend(control());
    samples.extend(data());
    samples
}

fn shaking_hands() -> Vec<Sample> {
    let credentials = Tail::default().bytes(&[1, 2, 3], "gannet.hello.credentials", "01:02:03");
    let reason = Tail::default().text("not today", "gannet.refusal.text");
    vec![
        sample::<Hello>(|hello| hello.credentials_bytes = U16::new(3), credentials),
        sample::<Refusal>(|_| {}, reason),
    ]
}

fn operations() -> Vec<Sample> {
    let welcome = Tail::default()
        .bytes(&[5], "gannet.host_welcome.reactor_of_shard", "5")
        .bytes(&[6], "gannet.host_welcome.reactor_of_shard", "6")
        .address("shm:///run/meta.sock", "gannet.host_welcome.address")
        .address("tcp://192.0.2.2:7470", "gannet.host_welcome.address")
        .bytes(&[1, 0], "gannet.host_welcome.reactor_of_address", "1")
        .address("rdma://192.0.2.2:7471", "gannet.host_welcome.address");
    let names = Tail::default()
        .text("old name", "gannet.name_request.name")
        .text("new", "gannet.name_request.to_name");
    let windows = || {
        let windows: [Window; 2] = [filled(1), filled(90)];
        Tail::default().part("Window", &windows[0]).part("Window", &windows[1])
    };
    let entry = DirectoryEntry { name_bytes: U16::new(4), ..filled(3) };
    let directory =
        named(Tail::default(), "DirectoryEntry", &entry, "file", "gannet.directory_reply.name");
    let target = Tail::default()
        .text("tcp://[fd00::1]:9", "gannet.target_reply.address")
        .bytes(&[9; 4], "gannet.target_reply.ticket", "09:09:09:09")
        .address("shm:///t.sock", "gannet.target_reply.address");
    let entry_targets = Tail::default()
        .bytes(&[1, 1, 0, 0], "gannet.entry_reply.target", "257")
        .bytes(&[2, 0, 0, 0], "gannet.entry_reply.target", "2");
    let groups = Tail::default().bytes(&[1, 1, 0, 0], "gannet.set_identity.group", "257").bytes(
        &[2, 0, 0, 0],
        "gannet.set_identity.group",
        "2",
    );
    let io_targets = Tail::default().bytes(&[7, 0, 0, 1], "gannet.io_reply.target", "16777223");
    vec![
        plain::<HostHello>(),
        sample::<HostWelcome>(
            |it| {
                (it.shards, it.reactors) = (U16::new(2), U16::new(2));
                it.further_addresses = U16::new(1);
            },
            welcome,
        ),
        sample::<NameRequest>(
            |it| (it.name_bytes, it.to_name_bytes) = (U16::new(8), U16::new(3)),
            names,
        ),
        plain::<InodeRequest>(),
        plain::<SetAttributes>(),
        sample::<Read>(|it| it.windows = U16::new(2), windows()),
        sample::<Write>(|it| it.windows = U16::new(2), windows()),
        plain::<ConnectTarget>(),
        plain::<StatFs>(),
        plain::<Stats>(),
        plain::<Register>(),
        plain::<Unregister>(),
        plain::<Cancel>(),
        sample::<EntryReply>(|it| it.targets = U16::new(2), entry_targets),
        sample::<DirectoryReply>(|it| it.count = U16::new(1), directory),
        sample::<IoReply>(|it| it.targets = U16::new(1), io_targets),
        sample::<TargetReply>(
            |it| {
                (it.address_bytes, it.ticket_bytes) = (U16::new(17), U16::new(4));
                it.further_addresses = U16::new(1);
            },
            target,
        ),
        plain::<StatFsReply>(),
        plain::<DeclareOpen>(),
        plain::<ReclaimComplete>(),
        sample::<XattrRequest>(
            |it| (it.name_bytes, it.value_bytes) = (U16::new(6), U16::new(2)),
            Tail::default().text("user.x", "gannet.xattr_request.name").bytes(
                &[7, 8],
                "gannet.xattr_request.value",
                "07:08",
            ),
        ),
        sample::<XattrReply>(
            |it| it.tail_bytes = U32::new(2),
            Tail::default().bytes(&[7, 8], "gannet.xattr_reply.value", "07:08"),
        ),
        sample::<SetIdentity>(|it| it.groups = U16::new(2), groups),
        sample::<StatsReply>(
            |it| (it.count, it.connections) = (U16::new(1), U16::new(1)),
            counters([
                "gannet.stats_reply.name",
                "gannet.stats_reply.fabric",
                "gannet.stats_reply.peer",
            ]),
        ),
    ]
}

/// A counter with its name and a connection with its two texts.
fn counters(fields: [&'static str; 3]) -> Tail {
    let counter = CounterEntry { name_bytes: U16::new(5), ..filled(5) };
    let connection =
        ConnectionEntry { fabric_bytes: U16::new(3), peer_bytes: U16::new(9), ..filled(50) };
    named(Tail::default(), "CounterEntry", &counter, "reads", fields[0])
        .part("ConnectionEntry", &connection)
        .text("tcp", fields[1])
        .text("192.0.2.1", fields[2])
}

fn control() -> Vec<Sample> {
    let uuid = [0x11; 16];
    let shown = "11111111-1111-1111-1111-111111111111";
    let hello = Tail::default()
        .text("tcp://192.0.2.3:1", "gannet.target_hello.address")
        .part("StoreInfo", &filled::<StoreInfo>(4))
        .part("StoreInfo", &filled::<StoreInfo>(77))
        .address("shm:///x", "gannet.target_hello.address")
        .bytes(&uuid, "gannet.target_hello.file_system_uuid", shown);
    let welcome = Tail::default()
        .bytes(&[3, 0, 0, 0], "gannet.target_welcome.store", "3")
        .address("tcp://a:1", "gannet.target_welcome.address")
        .bytes(&[0, 0], "gannet.target_welcome.reactor_of_address", "0")
        .address("tcp://b:2", "gannet.target_welcome.address")
        .bytes(&uuid, "gannet.target_welcome.file_system_uuid", shown);
    let ranges: [RetiredRange; 2] = [filled(6), filled(60)];
    let ranges = Tail::default().part("RetiredRange", &ranges[0]).part("RetiredRange", &ranges[1]);
    let ticket = Tail::default().bytes(&[7, 8], "gannet.session_open.ticket", "07:08");
    vec![
        sample::<TargetHello>(
            |it| {
                (it.address_bytes, it.stores) = (U16::new(17), U16::new(2));
                (it.further_addresses, it.names_file_system) = (U16::new(1), U16::new(1));
            },
            hello,
        ),
        sample::<TargetWelcome>(
            |it| {
                (it.reactors, it.stores) = (U16::new(1), U16::new(1));
                (it.further_addresses, it.names_file_system) = (U16::new(1), U16::new(1));
            },
            welcome,
        ),
        plain::<Drain>(),
        plain::<Drained>(),
        sample::<SessionOpen>(|it| it.ticket_bytes = U16::new(2), ticket),
        plain::<SessionReady>(),
        plain::<SessionClose>(),
        plain::<SessionClosed>(),
        sample::<Grant>(|it| it.tail_block = U64::new(u64::MAX), Tail::default()),
        plain::<Notice>(),
        sample::<Retired>(|it| it.ranges = U16::new(2), ranges),
        plain::<Revoke>(),
        plain::<TargetStats>(),
        sample::<TargetStatsReply>(
            |it| (it.count, it.connections) = (U16::new(1), U16::new(1)),
            counters([
                "gannet.target_stats_reply.name",
                "gannet.target_stats_reply.fabric",
                "gannet.target_stats_reply.peer",
            ]),
        ),
    ]
}

fn data() -> Vec<Sample> {
    let ticket = Tail::default().bytes(&[0xaa], "gannet.data_hello.ticket", "aa");
    vec![
        sample::<DataHello>(|it| it.ticket_bytes = U16::new(1), ticket),
        plain::<DataWelcome>(),
        plain::<Arrival>(),
    ]
}
