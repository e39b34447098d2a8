//! What the data server itself costs: 4 KiB reads of a store in memory, beside the bare copy.
//!
//! The fabric costs nothing here: it hands in packets of grants, maps one range, and drops what is
//! sent. Prints nanoseconds per grant; as a test it runs a few turns. Either way it checks that every
//! grant moved its bytes.

use std::cell::RefCell;
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gannet_disk::Disk;
use gannet_disk::ram::RamDisk;
use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Event, Events, Fabric, FabricError, Key,
    PeerIdentity, PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};
use gannet_proto::control::{Grant, SessionOpen, StoreInfo, TargetWelcome, grant_operation};
use gannet_proto::data::DataHello;
use gannet_proto::handshake::Hello;
use gannet_proto::packet::{Message, PacketWriter};
use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use gannet_target::{OpenStore, Target, TargetConfig};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

const META: ConnectionId = ConnectionId { index: 0, generation: 0 };
const HOST: ConnectionId = ConnectionId { index: 1, generation: 0 };
/// Blocks of the store and of the host's buffer: both stay in the processor's cache.
const BLOCKS: u64 = 32;
const BLOCK: usize = 4096;
/// Grants in one packet, and in one turn.
const GRANTS: u64 = 32;

/// What the next poll hands in.
#[derive(Default)]
struct Inbox {
    events: Vec<Event>,
    packets: Vec<(ConnectionId, Vec<u8>)>,
}

struct NullFabric {
    memory: Arc<Mapping>,
    inbox: Rc<RefCell<Inbox>>,
}

impl Fabric for NullFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        Capabilities {
            maps_remote_memory: true,
            disconnect_revokes_access: false,
            memory_windows: false,
            streams: false,
        }
    }

    fn listen(&mut self, _at: &Address) -> Result<(), FabricError> {
        Ok(())
    }

    fn connect(&mut self, _to: &Address) -> Result<ConnectionId, FabricError> {
        self.inbox.borrow_mut().events.push(Event::Connected { connection: META });
        Ok(META)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        panic!("the target ends {connection:?}: the benchmark's messages are wrong");
    }

    fn peer(&self, _connection: ConnectionId) -> Option<PeerIdentity> {
        None
    }

    fn prepare(&mut self, _memory: &Arc<Mapping>) -> Result<(), FabricError> {
        Ok(())
    }

    fn register(
        &mut self,
        _connection: ConnectionId,
        _memory: &Arc<Mapping>,
        _access: Access,
    ) -> Result<Registration, FabricError> {
        Err(FabricError::NotConnected)
    }

    fn open_window(
        &mut self,
        _connection: ConnectionId,
        _base: Key,
        _offset: u64,
        _len_bytes: u64,
        _access: Access,
    ) -> Result<Registration, WindowError> {
        Err(WindowError::Unsupported)
    }

    fn deregister(&mut self, _connection: ConnectionId, _key: Key) {}

    fn send(&mut self, _connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        black_box(message);
        Ok(())
    }

    fn write(&mut self, _connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn read(&mut self, _connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn map(
        &mut self,
        _connection: ConnectionId,
        remote: RemoteSlice,
        _access: Access,
    ) -> Option<Slice> {
        self.memory.slice(remote.address, remote.len_bytes.into())
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _now: Time, events: &mut Events) {
        let mut inbox = self.inbox.borrow_mut();
        for event in inbox.events.drain(..) {
            events.push(event);
        }
        for (connection, packet) in &inbox.packets {
            events.push_message(*connection, packet.len(), |into| into.copy_from_slice(packet));
        }
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}

struct Bench {
    target: Target<NullFabric, RamDisk>,
    inbox: Rc<RefCell<Inbox>>,
    memory: Arc<Mapping>,
    store: Slice,
}

impl Bench {
    fn new() -> Bench {
        let memory = Mapping::shareable(BLOCKS as usize * BLOCK).expect("memory");
        let mut disk = RamDisk::new(64).expect("a disk");
        let len_bytes = BLOCKS * BLOCK as u64;
        let file = disk.create(len_bytes, len_bytes).expect("a store");
        let store = disk.resident(file, 0, len_bytes as usize).expect("it is in memory");
        let pattern: Vec<u8> =
            (0..len_bytes).map(|byte| (byte / BLOCK as u64 + byte * 3) as u8).collect();
        store.copy_in(0, &pattern);
        let info = StoreInfo {
            uuid: [1; 16],
            generation: U32::new(1),
            block_bytes: U32::new(BLOCK as u32),
            blocks: U64::new(BLOCKS),
        };
        let address = Address::shm("/bench").expect("an address");
        let config = TargetConfig::new([0; 16], 1, vec![address.clone()], address);
        let inbox = Rc::new(RefCell::new(Inbox::default()));
        let fabric = NullFabric { memory: Arc::clone(&memory), inbox: Rc::clone(&inbox) };
        let stores = vec![OpenStore::new(file, info, 0)];
        let target = Target::new(config, fabric, disk, stores).expect("a target");
        let mut bench = Bench { target, inbox, memory, store };
        bench.set_up();
        bench
    }

    /// Takes the target to where it accepts grants.
    fn set_up(&mut self) {
        self.poll();
        self.poll();
        let mut packet = PacketWriter::new();
        let welcome = TargetWelcome {
            version: U16::new(gannet_proto::VERSION),
            reactors: U16::new(1),
            stores: U16::new(1),
            grants_max: U32::new(1024),
            ..TargetWelcome::default()
        };
        push(&mut packet, &welcome, b"\0\0\0\0\x0a\0shm:///any");
        push(&mut packet, &SessionOpen::default(), &[]);
        self.hand_in(META, packet.bytes());
        let peer = PeerIdentity::Network(String::new());
        self.inbox.borrow_mut().events.push(Event::Accepted { connection: HOST, peer });
        packet.clear();
        push(&mut packet, &Hello::current(), &[]);
        push(&mut packet, &DataHello::default(), &[]);
        self.hand_in(HOST, packet.bytes());
        assert_eq!(self.target.stats().sessions_connected, 1);
    }

    fn hand_in(&mut self, connection: ConnectionId, packet: &[u8]) {
        self.inbox.borrow_mut().packets.push((connection, packet.to_vec()));
        self.poll();
        self.inbox.borrow_mut().packets.clear();
    }

    fn poll(&mut self) -> usize {
        self.target.poll(Now { time: Time::monotonic(), wall: WallTime(0) })
    }

    /// Runs turns of [`GRANTS`] grants in one packet; the time of each in the target alone.
    fn run(&mut self, turns: u64, first_number: u64) -> Vec<Duration> {
        let mut packet = PacketWriter::new();
        for index in 0..GRANTS {
            let grant = Grant {
                operation: grant_operation::READ,
                generation: U32::new(1),
                block: U64::new(index),
                length: U32::new(BLOCK as u32),
                valid: U32::new(BLOCK as u32),
                host_address: U64::new(index * BLOCK as u64),
                ..Grant::default()
            };
            push(&mut packet, &grant, &[]);
        }
        self.inbox.borrow_mut().packets.push((META, packet.bytes().to_vec()));
        let frame_bytes = packet.bytes().len() / GRANTS as usize;
        let number_at = frame_bytes - size_of::<Grant>() + std::mem::offset_of!(Grant, number);
        let mut spent = Vec::with_capacity(turns as usize);
        for turn in 0..turns {
            for index in 0..GRANTS {
                let number = U64::new(first_number + turn * GRANTS + index);
                let at = index as usize * frame_bytes + number_at;
                let mut inbox = self.inbox.borrow_mut();
                inbox.packets[0].1[at..at + 8].copy_from_slice(number.as_bytes());
            }
            let start = Instant::now();
            self.poll();
            spent.push(start.elapsed());
        }
        self.inbox.borrow_mut().packets.clear();
        spent
    }

    /// The same copies and nothing else.
    fn copies(&self, turns: u64) -> Vec<Duration> {
        let whole = self.memory.slice(0, BLOCKS * BLOCK as u64).expect("the whole of it");
        let mut into = Memory::Shared(whole);
        let from = Memory::Shared(self.store.clone());
        let mut turn = || {
            let start = Instant::now();
            for index in 0..GRANTS as usize {
                black_box(&from).copy_to(index * BLOCK, black_box(&mut into), index * BLOCK, BLOCK);
            }
            start.elapsed()
        };
        (0..turns).map(|_| turn()).collect()
    }
}

fn push<T: Message>(packet: &mut PacketWriter, message: &T, tail: &[u8]) {
    packet.push(message, &[tail]).expect("a packet takes its frames");
}

fn main() {
    // `cargo bench` passes `--bench`; without it this is a test run.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let turns = if is_bench { 100_000 } else { 20 };
    let mut bench = Bench::new();
    let warm = bench.run(20, 1);
    let spent = bench.run(turns, 1 + 20 * GRANTS);
    assert_eq!(warm.len(), 20);
    let done = bench.target.stats().grants_done;
    assert_eq!(done, (turns + 20) * GRANTS, "every grant ended well");
    let len_bytes = BLOCKS as usize * BLOCK;
    let (mut seen, mut expected) = (vec![0; len_bytes], vec![0; len_bytes]);
    bench.memory.copy_out(0, &mut seen);
    bench.store.copy_out(0, &mut expected);
    assert!(seen == expected, "the bytes are there");
    let copies = bench.copies(turns);
    // The median: a turn in which the system took the core away says nothing.
    let per_grant = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as u64 / GRANTS
    };
    let (all, copy) = (per_grant(spent), per_grant(copies));
    println!("4 KiB read of a RAM store: {all} ns per grant, {copy} ns of them the copy");
}
