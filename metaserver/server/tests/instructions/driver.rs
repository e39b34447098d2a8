//! A metadata server with one host, one data server and one file, driven by packets.

use std::cell::RefCell;
use std::rc::Rc;

use gannet_disk::Disk;
use gannet_disk::ram::RamDisk;
use gannet_fabric::{Address, ConnectionId};
use gannet_metaserver::{MetaServer, MetaServerConfig, format, peers};
use gannet_proto::control::{Drained, Grant, Notice, Retired, StoreInfo, TargetHello};
use gannet_proto::handshake::Hello;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::operations::{
    BufferRef, EntryReply, HostHello, InodeRequest, IoReply, NameRequest, Read, Register,
    RequestHeader, Write, inode_operation, name_operation,
};
use gannet_proto::packet::{Message, PacketWriter};
use gannet_proto::{Handle, Inode};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::wire::{Wire, WireFabric};

/// Slots that the host uses: requests outstanding at one time.
pub(crate) const SLOTS: u16 = 32;
/// Blocks of the file.
const FILE_BLOCKS: u64 = 256;
const BLOCK: u64 = BLOCK_BYTES as u64;
const LOG_BYTES: u64 = 64 << 20;
const HOST: ConnectionId = ConnectionId { index: 0, generation: 1 };
const TARGET: ConnectionId = ConnectionId { index: 1, generation: 1 };
const ADDRESS: &str = "shm:///wire";

/// A kind of turn of the server. Instructions are counted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Requests came.
    Requests,
    /// Word of the data server came.
    Endings,
    /// Neither did.
    Other,
}

pub(crate) struct Driver {
    server: MetaServer<WireFabric, RamDisk>,
    wire: Rc<RefCell<Wire>>,
    packet: Box<PacketWriter>,
    shard_sequences: Vec<[u64; SLOTS as usize]>,
    file: Inode,
    /// Numbers of grants that have not ended.
    granted: Vec<u64>,
    last_number: u64,
    pub(crate) grants: u64,
    pub(crate) replies: u64,
    entry: Option<EntryReply>,
    turns: [u64; 3],
}

/// One turn with requests: in a function of its own, so that what it costs can be told.
#[inline(never)]
fn turn_with_requests(server: &mut MetaServer<WireFabric, RamDisk>, turns: &mut [u64; 3]) {
    turns[0] += 1;
    server.poll(now());
}

/// One turn with word of the data server.
#[inline(never)]
fn turn_with_endings(server: &mut MetaServer<WireFabric, RamDisk>, turns: &mut [u64; 3]) {
    turns[1] += 1;
    server.poll(now());
}

/// Any other turn.
#[inline(never)]
fn turn_of_another_kind(server: &mut MetaServer<WireFabric, RamDisk>, turns: &mut [u64; 3]) {
    turns[2] += 1;
    server.poll(now());
}

fn now() -> Now {
    Now { time: Time(1), wall: WallTime(1) }
}

impl Driver {
    /// A server with an empty file.
    pub(crate) fn new() -> Driver {
        let wire = Rc::new(RefCell::new(Wire::default()));
        let mut disk = RamDisk::new(64).expect("a descriptor is to be had");
        let log = disk.create(LOG_BYTES, LOG_BYTES).expect("there is memory for the log");
        let start = disk.resident(log, 0, gannet_disk::BLOCK_BYTES).expect("the log has a start");
        format::format_resident(&start, [7; 16], 0, 1);
        let address: Address = ADDRESS.parse().expect("the address is good");
        let config = MetaServerConfig::new(0, vec![vec![address]], [0; 32]);
        let mut links = peers::link(1).expect("no ring is needed");
        let links = links.pop().expect("of one reactor");
        let fabric = WireFabric(Rc::clone(&wire));
        let server = MetaServer::new(config, fabric, disk, log, "log", links);
        let mut driver = Driver {
            server: server.expect("the server starts"),
            wire,
            packet: Box::default(),
            shard_sequences: vec![[0; SLOTS as usize]; gannet_proto::limits::SHARDS],
            file: Inode::ROOT,
            granted: Vec::with_capacity(4096),
            last_number: 0,
            grants: 0,
            replies: 0,
            entry: None,
            turns: [0; 3],
        };
        while !driver.server.is_serving() {
            driver.turn(Turn::Other);
        }
        driver.join();
        driver.file = driver.make(b"file");
        driver
    }

    /// Has the data server and the host join, and the host name its memory.
    fn join(&mut self) {
        self.wire.borrow_mut().accept(TARGET);
        self.push(&Hello::current(), &[]);
        let hello = TargetHello {
            uuid: [1; 16],
            instance: U64::new(1),
            address_bytes: U16::new(ADDRESS.len() as u16),
            stores: U16::new(1),
            ..TargetHello::default()
        };
        let store = StoreInfo {
            uuid: [2; 16],
            generation: U32::new(1),
            block_bytes: U32::new(BLOCK_BYTES),
            blocks: U64::new(1 << 24),
        };
        self.push(&hello, &[ADDRESS.as_bytes(), zerocopy::IntoBytes::as_bytes(&store)]);
        self.send(TARGET);
        self.settle();
        self.push(&Drained { term: U64::new(1), reserved: U64::ZERO }, &[]);
        self.send(TARGET);
        self.wire.borrow_mut().accept(HOST);
        self.push(&Hello::current(), &[]);
        self.push(
            &HostHello { session: U64::new(5), instance: U64::new(6), ..HostHello::default() },
            &[],
        );
        let register = Register {
            region: U32::new(1),
            target: U32::new(1),
            epoch: U64::new(1),
            length: U64::new(1 << 30),
            ..Register::default()
        };
        self.push(&register, &[]);
        self.send(HOST);
        self.settle();
    }

    fn push<T: Message>(&mut self, message: &T, tail: &[&[u8]]) {
        self.packet.push(message, tail).expect("a packet holds what a turn brings");
    }

    fn send(&mut self, connection: ConnectionId) {
        self.wire.borrow_mut().stage(connection, self.packet.bytes());
        self.packet.clear();
    }

    /// Lets the server take a turn, and reads what it sent.
    fn turn(&mut self, kind: Turn) {
        match kind {
            Turn::Requests => turn_with_requests(&mut self.server, &mut self.turns),
            Turn::Endings => turn_with_endings(&mut self.server, &mut self.turns),
            Turn::Other => turn_of_another_kind(&mut self.server, &mut self.turns),
        }
        let wire = Rc::clone(&self.wire);
        wire.borrow_mut().take_sent(|_, kind, body| match kind {
            Grant::KIND => {
                let (grant, _) = Grant::ref_from_prefix(body).expect("a whole grant");
                self.last_number = grant.number.get();
                self.granted.push(self.last_number);
                self.grants += 1;
            }
            EntryReply::KIND => {
                let (entry, _) = EntryReply::ref_from_prefix(body).expect("a whole reply");
                assert_eq!(entry.header.status.get(), 0, "{entry:?}");
                self.entry = Some(*entry);
                self.replies += 1;
            }
            IoReply::KIND => {
                let (reply, _) = IoReply::ref_from_prefix(body).expect("a whole reply");
                assert_eq!(reply.header.status.get(), 0, "{reply:?}");
                self.replies += 1;
            }
            _ => {}
        });
    }

    /// Lets the server take turns until its log is at rest.
    fn settle(&mut self) {
        (0..4).for_each(|_| self.turn(Turn::Other));
    }

    fn header(&mut self, inode: Inode, slot: u16) -> RequestHeader {
        let shard = inode.shard().expect("the server gave it out");
        let sequence = &mut self.shard_sequences[usize::from(shard.0)][usize::from(slot)];
        *sequence += 1;
        RequestHeader {
            shard: U16::new(shard.0),
            slot: U16::new(slot),
            attempt: U32::new(1),
            sequence: U64::new(*sequence),
        }
    }

    fn push_create(&mut self, slot: u16, name: &[u8]) {
        let request = NameRequest {
            header: self.header(Inode::ROOT, slot),
            parent: Handle::new(Inode::ROOT),
            operation: U16::new(name_operation::CREATE),
            name_bytes: U16::new(name.len() as u16),
            mode: U32::new(0o644),
            ..NameRequest::default()
        };
        self.push(&request, &[name]);
    }

    /// Makes a file.
    fn make(&mut self, name: &[u8]) -> Inode {
        self.push_create(0, name);
        self.send(HOST);
        self.settle();
        self.entry.expect("the file is made").attributes.handle.inode()
    }

    fn push_write(&mut self, slot: u16, block: u64, blocks: u64) {
        let request = Write {
            header: self.header(self.file, slot),
            handle: Handle::new(self.file),
            offset: U64::new(block * BLOCK),
            length: U32::new((blocks * BLOCK) as u32),
            buffers: U16::new(1),
            buffer: BufferRef { region: U32::new(1), ..BufferRef::default() },
            ..Write::default()
        };
        self.push(&request, &[]);
    }

    /// Confirms all grants that are out.
    fn end_grants(&mut self) {
        let numbers = std::mem::take(&mut self.granted);
        for number in &numbers {
            let notice =
                Notice { term: U64::new(1), number: U64::new(*number), ..Notice::default() };
            self.push(&notice, &[]);
        }
        self.send(TARGET);
        self.granted = numbers;
        self.granted.clear();
    }

    /// Writes the file: as one extent, or block by block in no order.
    pub(crate) fn fill(&mut self, in_one: bool) {
        let parts = if in_one { 1 } else { FILE_BLOCKS };
        for part in 0..parts {
            let blocks = FILE_BLOCKS / parts;
            self.push_write(0, part * 91 % FILE_BLOCKS, blocks);
            self.send(HOST);
            // The first one waits for a zone of the store.
            self.settle();
            self.end_grants();
            self.settle();
        }
    }

    /// Reads blocks, `count` at a time.
    pub(crate) fn reads(&mut self, rounds: u64, count: u16) {
        for round in 0..rounds {
            for slot in 0..count {
                let block = (round * 37 + u64::from(slot) * 11) % FILE_BLOCKS;
                let request = Read {
                    header: self.header(self.file, slot),
                    handle: Handle::new(self.file),
                    offset: U64::new(block * BLOCK),
                    length: U32::new(BLOCK_BYTES),
                    buffers: U16::new(1),
                    buffer: BufferRef { region: U32::new(1), ..BufferRef::default() },
                    ..Read::default()
                };
                self.push(&request, &[]);
            }
            self.send(HOST);
            self.turn(Turn::Requests);
            let retired = Retired {
                term: U64::new(1),
                cumulative: U64::new(self.last_number),
                ..Retired::default()
            };
            self.granted.clear();
            self.push(&retired, &[]);
            self.send(TARGET);
            self.turn(Turn::Endings);
        }
    }

    /// Asks for the file's attributes, `count` times at a time.
    pub(crate) fn stats(&mut self, rounds: u64, count: u16) {
        for _ in 0..rounds {
            for slot in 0..count {
                let request = InodeRequest {
                    header: self.header(self.file, slot),
                    handle: Handle::new(self.file),
                    operation: U16::new(inode_operation::STAT),
                    ..InodeRequest::default()
                };
                self.push(&request, &[]);
            }
            self.send(HOST);
            self.turn(Turn::Requests);
        }
    }

    /// Overwrites blocks, `count` at a time.
    pub(crate) fn writes(&mut self, rounds: u64, count: u16) {
        for round in 0..rounds {
            for slot in 0..count {
                self.push_write(slot, (round * 37 + u64::from(slot) * 11) % FILE_BLOCKS, 1);
            }
            self.send(HOST);
            self.turn(Turn::Requests);
            self.end_grants();
            self.turn(Turn::Endings);
            self.turn(Turn::Endings);
        }
        self.settle();
    }

    /// Makes files, `count` at a time.
    pub(crate) fn creates(&mut self, rounds: u64, count: u16) {
        for round in 0..rounds {
            for slot in 0..count {
                let number = round * u64::from(count) + u64::from(slot);
                let name = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
                let name = name.map(|byte| b'a' + (byte >> 4));
                let wide = [name, number.to_le_bytes().map(|byte| b'a' + (byte & 15))].concat();
                self.push_create(slot, &wide);
            }
            self.send(HOST);
            self.turn(Turn::Requests);
            self.turn(Turn::Endings);
        }
        self.settle();
    }
}
