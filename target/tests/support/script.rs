//! A scripted metadata server and host around a target.

use std::sync::Arc;
use std::time::Duration;

use gannet_fabric::{Access, Address, ConnectionId, Registration};
use gannet_proto::Status;
use gannet_proto::control::{
    Drain, Drained, Grant, Notice, Retired, RetiredRange, Revoke, SessionClose, SessionClosed,
    SessionOpen, SessionReady, StoreInfo, TargetHello, TargetWelcome, grant_operation,
};
use gannet_proto::data::{Arrival, DataHello, DataWelcome};
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::packet::{Frames, Message, PacketWriter};
use gannet_runtime::memory::Mapping;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use gannet_target::{OpenStore, Target, TargetConfig, TargetError};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::disk::{FILE, FakeDisk};
use super::fabric::FakeFabric;

pub const TERM: u64 = 5;
pub const STORE: u32 = 77;
pub const GENERATION: u32 = 3;
pub const TICKET: &[u8] = b"the ticket of this session";

/// What the target told the metadata server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Hello { stores: u16, address: String },
    Notice { number: u64, status: Status, length: u32 },
    Retired(u64),
    Ready { session: u64, epoch: u64, status: Status },
    Closed { session: u64, epoch: u64 },
    Drained(u64),
    Other(u16),
}

/// What the target told a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Welcome,
    Refused(Status),
    Arrival { status: Status, length: u32, tag: u8 },
}

pub struct Script {
    pub fabric: FakeFabric,
    pub disk: FakeDisk,
    pub target: Target<FakeFabric, FakeDisk>,
    pub now: Time,
    pub meta: ConnectionId,
    pub number: u64,
    pub term: u64,
    pub retired_up_to: u64,
}

/// A host with a data session and a registered buffer.
#[derive(Clone)]
pub struct Host {
    pub session: u64,
    pub epoch: u64,
    pub connection: ConnectionId,
    pub memory: Arc<Mapping>,
    pub registration: Registration,
}

pub fn packet<T: Message>(message: &T, tail: &[u8]) -> Vec<u8> {
    let mut writer = PacketWriter::new();
    writer.push(message, &[tail]).unwrap();
    writer.bytes().to_vec()
}

pub fn config() -> TargetConfig {
    let listen = Address::shm("/data/server").unwrap();
    let metadata_server = Address::shm("/meta/0").unwrap();
    TargetConfig::new([7; 16], 99, vec![listen], metadata_server)
}

pub fn welcome_packet(term: u64, reactor: u16, reactors: u16, grants_max: u32) -> Vec<u8> {
    let welcome = TargetWelcome {
        version: U16::new(gannet_proto::VERSION),
        reactors: U16::new(reactors),
        reactor: U16::new(reactor),
        stores: U16::new(1),
        term: U64::new(term),
        target: U32::new(4),
        grants_max: U32::new(grants_max),
        ..TargetWelcome::default()
    };
    let mut tail = STORE.to_le_bytes().to_vec();
    for reactor in 0..reactors {
        let text = format!("shm:///meta/{reactor}");
        tail.extend_from_slice(&(text.len() as u16).to_le_bytes());
        tail.extend_from_slice(text.as_bytes());
    }
    packet(&welcome, &tail)
}

pub fn data_hello_packet(session: u64, epoch: u64, ticket: &[u8]) -> Vec<u8> {
    let mut writer = PacketWriter::new();
    writer.push(&Hello::current(), &[]).unwrap();
    let hello = DataHello {
        session: U64::new(session),
        epoch: U64::new(epoch),
        ticket_bytes: U16::new(ticket.len() as u16),
        ..DataHello::default()
    };
    writer.push(&hello, &[ticket]).unwrap();
    writer.bytes().to_vec()
}

pub fn session_open_packet(session: u64, epoch: u64) -> Vec<u8> {
    let open = SessionOpen {
        session: U64::new(session),
        epoch: U64::new(epoch),
        ticket_bytes: U16::new(TICKET.len() as u16),
        ..SessionOpen::default()
    };
    packet(&open, TICKET)
}

/// Starts a target over one store that fills a disk.
pub fn start(
    config: TargetConfig,
    fabric: &FakeFabric,
    disk: &FakeDisk,
) -> Result<Target<FakeFabric, FakeDisk>, TargetError> {
    let info = StoreInfo {
        uuid: [1; 16],
        generation: U32::new(GENERATION),
        block_bytes: U32::new(4096),
        blocks: U64::new(disk.content().len() as u64 / 4096),
    };
    let store = OpenStore::new(FILE, info, 0);
    Target::new(config, fabric.clone(), disk.clone(), vec![store])
}

impl Script {
    /// A target over one store of `blocks` blocks, not connected yet.
    pub fn bare(config: TargetConfig, maps: bool, resident: bool, blocks: usize) -> Script {
        let fabric = FakeFabric::new(maps);
        let disk = FakeDisk::new(blocks, resident);
        let target = start(config, &fabric, &disk).unwrap();
        Script::around(fabric, disk, target)
    }

    fn around(fabric: FakeFabric, disk: FakeDisk, target: Target<FakeFabric, FakeDisk>) -> Script {
        Script {
            fabric,
            disk,
            target,
            now: Time(1_000_000),
            meta: ConnectionId { index: u32::MAX, generation: 0 },
            number: 0,
            term: TERM,
            retired_up_to: 0,
        }
    }

    /// A target that is welcomed by a metadata server of one reactor.
    pub fn new(maps: bool, resident: bool) -> Script {
        Script::with(config(), maps, resident, 1024)
    }

    pub fn with(config: TargetConfig, maps: bool, resident: bool, blocks: usize) -> Script {
        let mut script = Script::bare(config, maps, resident, blocks);
        script.poll();
        script.welcome(TERM);
        script
    }

    /// As [`Script::new`], around a target that was started on this fabric and disk.
    pub fn over(
        fabric: FakeFabric,
        disk: FakeDisk,
        target: Target<FakeFabric, FakeDisk>,
    ) -> Script {
        let mut script = Script::around(fabric, disk, target);
        script.poll();
        script.welcome(TERM);
        script
    }

    pub fn poll(&mut self) -> usize {
        self.target.poll(Now { time: self.now, wall: WallTime(0) })
    }

    /// Polls until a turn is idle.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.poll() == 0 {
                return;
            }
        }
        panic!("the target never comes to rest");
    }

    pub fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    pub fn last_connect(&self) -> (Address, ConnectionId) {
        self.fabric.0.borrow().connects.last().unwrap().clone()
    }

    /// Answers the last attempt to connect, as reactor 0 of one.
    pub fn welcome(&mut self, term: u64) {
        let (_, connection) = self.last_connect();
        self.fabric.connected(connection);
        self.poll();
        let hello = self.fabric.take_sent(connection);
        assert!(matches!(told(&hello)[..], [Told::Hello { stores: 1, .. }]), "{:?}", told(&hello));
        self.fabric.deliver(connection, &welcome_packet(term, 0, 1, 1024));
        self.meta = connection;
        self.number = 0;
        self.term = term;
        self.retired_up_to = 0;
        self.poll();
    }

    pub fn tell<T: Message>(&mut self, message: &T, tail: &[u8]) {
        let packet = packet(message, tail);
        self.fabric.deliver(self.meta, &packet);
    }

    pub fn open_session(&mut self, session: u64, epoch: u64) {
        let packet = session_open_packet(session, epoch);
        self.fabric.deliver(self.meta, &packet);
    }

    pub fn close_session(&mut self, session: u64, epoch: u64) {
        let close = SessionClose { session: U64::new(session), epoch: U64::new(epoch) };
        self.tell(&close, &[]);
    }

    pub fn drain(&mut self, term: u64) {
        self.tell(&Drain { term: U64::new(term), reserved: U64::ZERO }, &[]);
    }

    pub fn revoke(&mut self, number: u64) {
        let revoke = Revoke { term: U64::new(self.term), number: U64::new(number) };
        self.tell(&revoke, &[]);
    }

    /// Opens and connects a data session with a registered buffer of `bytes`.
    pub fn host(&mut self, session: u64, epoch: u64, bytes: usize) -> Host {
        self.open_session(session, epoch);
        self.poll();
        let ready = Told::Ready { session, epoch, status: Status::OK };
        let told = self.told();
        assert!(told.contains(&ready), "{told:?}");
        self.connect_host(session, epoch, bytes)
    }

    pub fn connect_host(&mut self, session: u64, epoch: u64, bytes: usize) -> Host {
        let connection = self.fabric.accept();
        self.fabric.deliver(connection, &data_hello_packet(session, epoch, TICKET));
        self.poll();
        let heard = self.heard(connection);
        assert_eq!(heard, [Heard::Welcome]);
        let memory = Mapping::shareable(bytes).unwrap();
        let registration = self.fabric.register_memory(connection, &memory, Access::READ_WRITE);
        Host { session, epoch, connection, memory, registration }
    }

    /// A grant of `operation` with the next number; not sent.
    pub fn make(&mut self, host: &Host, operation: u8, block: u64, length: u32) -> Grant {
        self.number += 1;
        let mut trailer = [0; 32];
        trailer[31] = self.number as u8;
        Grant {
            term: U64::new(self.term),
            number: U64::new(self.number),
            session: U64::new(host.session),
            epoch: U64::new(host.epoch),
            store: U32::new(STORE),
            generation: U32::new(GENERATION),
            operation,
            block: U64::new(block),
            length: U32::new(length),
            valid: U32::new(if operation == grant_operation::READ { length } else { 0 }),
            host_address: U64::new(host.registration.address),
            host_key: U32::new(host.registration.key.0),
            head_block: U64::new(u64::MAX),
            tail_block: U64::new(u64::MAX),
            trailer,
            ..Grant::default()
        }
    }

    /// Sends a grant made by [`Script::make`] and changed by `change`; its number.
    pub fn grant(
        &mut self,
        host: &Host,
        operation: u8,
        block: u64,
        length: u32,
        change: impl FnOnce(&mut Grant),
    ) -> u64 {
        let mut grant = self.make(host, operation, block, length);
        change(&mut grant);
        self.tell(&grant, &[]);
        self.number
    }

    pub fn read(&mut self, host: &Host, block: u64, length: u32) -> u64 {
        self.grant(host, grant_operation::READ, block, length, |_| {})
    }

    pub fn write(&mut self, host: &Host, block: u64, length: u32) -> u64 {
        self.grant(host, grant_operation::WRITE, block, length, |_| {})
    }

    /// What the metadata server was told since the last call; retired numbers one by one.
    pub fn told(&mut self) -> Vec<Told> {
        let packets = self.fabric.take_sent(self.meta);
        let mut all = told(&packets);
        // Cumulative numbers repeat what was told before.
        let (from, mut up_to) = (self.retired_up_to, self.retired_up_to);
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|one| match one {
            Told::Retired(number) => {
                up_to = up_to.max(*number);
                *number > from && seen.insert(*number)
            }
            _ => true,
        });
        self.retired_up_to = up_to;
        all
    }

    pub fn heard(&mut self, connection: ConnectionId) -> Vec<Heard> {
        heard(&self.fabric.take_sent(connection))
    }
}

pub fn notice(number: u64, status: Status, length: u32) -> Told {
    Told::Notice { number, status, length }
}

fn told(packets: &[Vec<u8>]) -> Vec<Told> {
    let mut all = Vec::new();
    for packet in packets {
        for frame in Frames::new(packet) {
            let frame = frame.unwrap();
            match frame.kind {
                Hello::KIND => assert_eq!(frame.read::<Hello>().unwrap().0.check(&[]), Ok(())),
                TargetHello::KIND => {
                    let (hello, tail) = frame.read::<TargetHello>().unwrap();
                    let address = &tail[..usize::from(hello.address_bytes.get())];
                    let address = String::from_utf8(address.to_vec()).unwrap();
                    all.push(Told::Hello { stores: hello.stores.get(), address });
                }
                Notice::KIND => {
                    let (found, _) = frame.read::<Notice>().unwrap();
                    let status = Status(found.status.get());
                    all.push(notice(found.number.get(), status, found.length.get()));
                }
                Retired::KIND => {
                    let (retired, tail) = frame.read::<Retired>().unwrap();
                    all.extend((1..=retired.cumulative.get()).map(Told::Retired));
                    let count = usize::from(retired.ranges.get());
                    let (ranges, _) =
                        <[RetiredRange]>::ref_from_prefix_with_elems(tail, count).unwrap();
                    for range in ranges {
                        let numbers = range.first.get()..=range.last.get();
                        all.extend(numbers.map(Told::Retired));
                    }
                }
                SessionReady::KIND => {
                    let (ready, _) = frame.read::<SessionReady>().unwrap();
                    all.push(Told::Ready {
                        session: ready.session.get(),
                        epoch: ready.epoch.get(),
                        status: Status(ready.status.get()),
                    });
                }
                SessionClosed::KIND => {
                    let (closed, _) = frame.read::<SessionClosed>().unwrap();
                    let (session, epoch) = (closed.session.get(), closed.epoch.get());
                    all.push(Told::Closed { session, epoch });
                }
                Drained::KIND => {
                    let (drained, _) = frame.read::<Drained>().unwrap();
                    all.push(Told::Drained(drained.term.get()));
                }
                kind => all.push(Told::Other(kind)),
            }
        }
    }
    all
}

fn heard(packets: &[Vec<u8>]) -> Vec<Heard> {
    let mut all = Vec::new();
    for packet in packets {
        for frame in Frames::new(packet) {
            let frame = frame.unwrap();
            all.push(match frame.kind {
                DataWelcome::KIND => Heard::Welcome,
                Refusal::KIND => {
                    Heard::Refused(Status(frame.read::<Refusal>().unwrap().0.status.get()))
                }
                Arrival::KIND => {
                    let (arrival, _) = frame.read::<Arrival>().unwrap();
                    Heard::Arrival {
                        status: Status(arrival.status.get()),
                        length: arrival.length.get(),
                        tag: arrival.trailer.reserved[6],
                    }
                }
                kind => panic!("a host was sent a message of kind {kind:#x}"),
            });
        }
    }
    all
}

/// Bytes of a mapping.
pub fn bytes_of(mapping: &Arc<Mapping>, offset: usize, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    mapping.copy_out(offset, &mut bytes);
    bytes
}

/// Fills a mapping with a pattern that differs from byte to byte and from seed to seed.
pub fn fill(mapping: &Arc<Mapping>, seed: u64) {
    let mut numbers = super::Numbers(seed);
    for offset in (0..mapping.len()).step_by(8) {
        mapping.copy_in(offset, &numbers.next().to_le_bytes());
    }
}
