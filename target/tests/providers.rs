//! A target over the real shm fabric and real stores, with its peers in the same thread.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use gannet_disk::any::AnyDisk;
use gannet_disk::uring::UringOptions;
use gannet_fabric::shm::{ShmFabric, ShmOptions};
use gannet_fabric::{Access, Address, ConnectionId, Event, Events, Fabric, Registration};
use gannet_proto::Status;
use gannet_proto::control::{
    Grant, Notice, Retired, SessionOpen, SessionReady, TargetHello, TargetWelcome, grant_operation,
};
use gannet_proto::data::{Arrival, DataHello, DataWelcome};
use gannet_proto::handshake::Hello;
use gannet_proto::packet::{Frames, Message, PacketWriter};
use gannet_runtime::memory::Mapping;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use gannet_target::store::StoreNames;
use gannet_target::{StoreKind, StoreSpec, Target, TargetConfig, format_store, open_store};
use zerocopy::little_endian::{U16, U32, U64};

const NAMES: StoreNames = StoreNames { store: [2; 16], target: [3; 16] };
const TICKET: &[u8] = b"ticket";
const TURNS_MAX: usize = 2_000_000;

struct Peers {
    target: Target<ShmFabric, AnyDisk>,
    meta: ShmFabric,
    host: ShmFabric,
    events: Events,
    /// Frames that came to the metadata server and to the host: kind and body.
    to_meta: Vec<(u16, Vec<u8>)>,
    to_host: Vec<(u16, Vec<u8>)>,
    meta_connection: Option<ConnectionId>,
    registered: bool,
}

impl Peers {
    fn new(folder: &Path, mut disk: AnyDisk, spec: &StoreSpec) -> Peers {
        format_store(spec, NAMES, false).unwrap();
        let store = open_store(&mut disk, spec, NAMES.target).unwrap();
        let listen = Address::shm(folder.join("data.sock")).unwrap();
        let metadata_server = Address::shm(folder.join("meta.sock")).unwrap();
        let fabric = || ShmFabric::new(ShmOptions::default()).unwrap();
        let mut meta = fabric();
        meta.listen(&metadata_server).unwrap();
        let config = TargetConfig::new(NAMES.target, 1, vec![listen], metadata_server);
        let target = Target::new(config, fabric(), disk, vec![store]).unwrap();
        Peers {
            target,
            meta,
            host: fabric(),
            events: Events::default(),
            to_meta: Vec::new(),
            to_host: Vec::new(),
            meta_connection: None,
            registered: false,
        }
    }

    /// Polls all parties until `done`.
    fn run(&mut self, what: &str, done: impl Fn(&Peers) -> bool) {
        for _ in 0..TURNS_MAX {
            if done(self) {
                return;
            }
            let time = Time::monotonic();
            self.target.poll(Now { time, wall: WallTime(0) });
            self.meta.poll(time, &mut self.events);
            while let Some(event) = self.events.pop() {
                match event {
                    Event::Accepted { connection, .. } => self.meta_connection = Some(connection),
                    Event::Message { bytes, .. } => {
                        collect(&mut self.to_meta, self.events.message(bytes));
                    }
                    _ => {}
                }
            }
            self.events.clear();
            self.host.poll(time, &mut self.events);
            while let Some(event) = self.events.pop() {
                match event {
                    Event::Registered { .. } => self.registered = true,
                    Event::Message { bytes, .. } => {
                        collect(&mut self.to_host, self.events.message(bytes));
                    }
                    _ => {}
                }
            }
            self.events.clear();
            self.meta.flush();
            self.host.flush();
        }
        panic!("{what} never happens");
    }

    fn tell<T: Message>(&mut self, message: &T, tail: &[u8]) {
        let mut packet = PacketWriter::new();
        packet.push(message, &[tail]).unwrap();
        self.meta.send(self.meta_connection.unwrap(), packet.bytes()).unwrap();
    }

    /// Takes the target to where it accepts grants for a session with `memory`.
    fn set_up(&mut self, memory: &Arc<Mapping>) -> Registration {
        self.run("the hello", |peers| has::<TargetHello>(&peers.to_meta));
        let welcome = TargetWelcome {
            version: U16::new(gannet_proto::VERSION),
            reactors: U16::new(1),
            stores: U16::new(1),
            term: U64::new(1),
            grants_max: U32::new(64),
            ..TargetWelcome::default()
        };
        let mut tail = 5_u32.to_le_bytes().to_vec();
        tail.extend_from_slice(&[10, 0]);
        tail.extend_from_slice(b"shm:///any");
        self.tell(&welcome, &tail);
        let open = SessionOpen {
            session: U64::new(9),
            epoch: U64::new(1),
            ticket_bytes: U16::new(TICKET.len() as u16),
            ..SessionOpen::default()
        };
        self.tell(&open, TICKET);
        self.run("the session", |peers| has::<SessionReady>(&peers.to_meta));
        let hello = self.to_meta.iter().find(|(kind, _)| *kind == TargetHello::KIND).unwrap();
        let body = &hello.1[size_of::<TargetHello>()..];
        let text = String::from_utf8_lossy(body);
        let address = text.split_at(text.find("data.sock").unwrap() + "data.sock".len()).0;
        let connection = self.host.connect(&address.parse().unwrap()).unwrap();
        let mut packet = PacketWriter::new();
        packet.push(&Hello::current(), &[]).unwrap();
        let hello = DataHello {
            session: U64::new(9),
            epoch: U64::new(1),
            ticket_bytes: U16::new(TICKET.len() as u16),
            ..DataHello::default()
        };
        packet.push(&hello, &[TICKET]).unwrap();
        for _ in 0..TURNS_MAX {
            if self.host.send(connection, packet.bytes()).is_ok() {
                break;
            }
            let time = Time::monotonic();
            self.target.poll(Now { time, wall: WallTime(0) });
            self.host.poll(time, &mut self.events);
            self.events.clear();
        }
        self.run("the welcome", |peers| has::<DataWelcome>(&peers.to_host));
        let registration = self.host.register(connection, memory, Access::READ_WRITE).unwrap();
        self.run("the registration", |peers| peers.registered);
        registration
    }

    /// Grants, and waits for the end: the notice of a write, the arrival and report of a read.
    fn execute(&mut self, mut grant: Grant, generation: u32) {
        self.to_meta.clear();
        self.to_host.clear();
        grant.term = U64::new(1);
        grant.session = U64::new(9);
        grant.epoch = U64::new(1);
        grant.store = U32::new(5);
        grant.generation = U32::new(generation);
        self.tell(&grant, &[]);
        if grant.operation == grant_operation::WRITE {
            self.run("the notice", |peers| has::<Notice>(&peers.to_meta));
            let status = &self.to_meta[0].1[16..20];
            assert_eq!(status, Status::OK.0.to_le_bytes());
        } else {
            self.run("the arrival", |peers| has::<Arrival>(&peers.to_host));
            assert_eq!(self.to_host[0].1[..4], Status::OK.0.to_le_bytes());
            self.run("the report", |peers| has::<Retired>(&peers.to_meta));
        }
    }
}

fn collect(into: &mut Vec<(u16, Vec<u8>)>, packet: &[u8]) {
    for frame in Frames::new(packet) {
        let frame = frame.unwrap();
        let (body, tail) = (frame.kind, frame);
        into.push((body, raw(&tail)));
    }
}

/// The bytes of a frame's body and tail.
fn raw(frame: &gannet_proto::packet::Frame<'_>) -> Vec<u8> {
    let (first, rest) = frame.read::<First>().unwrap();
    [&first.0[..], rest].concat()
}

/// The shortest body of all, to get at a frame's bytes.
#[derive(
    Clone,
    Copy,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
struct First([u8; 8]);

impl Message for First {
    const KIND: u16 = 0;
    const NAME: &'static str = "First";
}

fn has<T: Message>(frames: &[(u16, Vec<u8>)]) -> bool {
    frames.iter().any(|(kind, _)| *kind == T::KIND)
}

fn write_then_read(folder: &Path, disk: AnyDisk, spec: &StoreSpec, generation: u32) {
    let mut peers = Peers::new(folder, disk, spec);
    let memory = Mapping::shareable(1 << 20).unwrap();
    let registration = peers.set_up(&memory);
    let pattern: Vec<u8> = (0..300_000_u32).map(|index| (index * 7 + index / 251) as u8).collect();
    memory.copy_in(0, &pattern);
    let base = Grant {
        number: U64::new(1),
        operation: grant_operation::WRITE,
        block: U64::new(10),
        length: U32::new(300_000),
        host_address: U64::new(registration.address),
        host_key: U32::new(registration.key.0),
        head_block: U64::new(u64::MAX),
        tail_block: U64::new(u64::MAX),
        ..Grant::default()
    };
    peers.execute(base, generation);
    // Merge a piece into the middle of a block.
    memory.copy_in(500_000, b"merged");
    let merge = Grant {
        number: U64::new(2),
        block: U64::new(200),
        offset: U32::new(100),
        length: U32::new(6),
        host_address: U64::new(registration.address + 500_000),
        head_block: U64::new(12),
        head_valid: U32::new(4096),
        tail_block: U64::new(12),
        tail_valid: U32::new(4096),
        ..base
    };
    peers.execute(merge, generation);
    memory.zero(0, memory.len());
    let read = Grant {
        number: U64::new(3),
        operation: grant_operation::READ,
        length: U32::new(400_000),
        valid: U32::new(300_000),
        ..base
    };
    peers.execute(read, generation);
    let mut seen = vec![1; 400_000];
    memory.copy_out(0, &mut seen);
    assert!(seen[..300_000] == pattern && seen[300_000..].iter().all(|byte| *byte == 0));
    let block = Grant {
        number: U64::new(4),
        operation: grant_operation::READ,
        block: U64::new(200),
        length: U32::new(4096),
        valid: U32::new(4096),
        ..base
    };
    peers.execute(block, generation);
    let mut expected = pattern[2 * 4096..3 * 4096].to_vec();
    expected[100..106].copy_from_slice(b"merged");
    memory.copy_out(0, &mut seen[..4096]);
    assert!(seen[..4096] == expected);
    let stats = peers.target.stats();
    let ram = matches!(spec.kind, StoreKind::Ram { .. });
    assert_eq!(ram, stats.bytes_ram > 0);
    assert!(ram || stats.bytes_direct + stats.bytes_copied >= 2 * 294_912, "{stats:?}");
}

#[test]
fn a_ram_store_over_shm() {
    let folder = tempfile::tempdir().unwrap();
    let kind = StoreKind::Ram { size_bytes: 16 << 20 };
    let spec = StoreSpec { path: folder.path().join("store"), kind };
    write_then_read(folder.path(), AnyDisk::ram_only(64).unwrap(), &spec, 2);
}

#[test]
fn a_directory_store_over_shm() {
    let Ok(disk) = AnyDisk::new(&UringOptions::default()) else {
        // A kernel without io_uring cannot have such a store at all.
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let kind = StoreKind::Directory { size_bytes: 16 << 20 };
    let spec = StoreSpec { path: folder.path().join("store"), kind };
    write_then_read(folder.path(), disk, &spec, 1);
}
