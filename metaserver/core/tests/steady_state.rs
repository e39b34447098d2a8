//! A core in its steady state: reads and overwrites do not allocate, and a read takes its time in
//! hundreds of nanoseconds.

use std::time::Instant;

use gannet_meta_core::{
    Core, CoreConfig, Enrollment, Lsn, Nanos, Now, PeerMessage, SessionIndex, Sink,
};
use gannet_proto::control::{Grant, StoreInfo};
use gannet_proto::limits::SHARDS;
use gannet_proto::operations::{
    BufferRef, EntryReply, NameRequest, Names, Read, Register, RequestHeader, Window, Write,
    io_flags, name_operation,
};
use gannet_proto::packet::Message;
use gannet_proto::{
    GrantNumber, Handle, Inode, RegionId, SessionId, Status, StoreId, TargetId, Term,
};
use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BLOCK: u64 = 4096;
const SLOTS: u16 = 32;
const FILE_BLOCKS: u64 = 256;

/// Keeps what the next step needs and allocates nothing.
#[derive(Default)]
struct LastOutput {
    records: u64,
    record_bytes: u64,
    grants: u64,
    number: u64,
    replies: u64,
    status: u32,
    inode: Option<Inode>,
    enrollment: Option<Enrollment>,
}

impl Sink for LastOutput {
    fn record(&mut self, record: &[u8]) -> Lsn {
        self.records += 1;
        self.record_bytes += record.len() as u64;
        Lsn(self.records)
    }

    fn reply<T: Message>(&mut self, _: SessionIndex, _: Lsn, reply: &T, _: &[&[u8]]) {
        self.replies += 1;
        // Every reply begins with its header: the request's, then the status.
        self.status =
            u32::read_from_prefix(&reply.as_bytes()[16..]).map_or(0, |(status, _)| status);
        if T::KIND == EntryReply::KIND {
            let entry = EntryReply::read_from_bytes(reply.as_bytes());
            self.inode = entry.ok().map(|entry| entry.attributes.handle.inode());
        }
    }

    fn grant(&mut self, _: TargetId, _: Lsn, grant: &Grant) {
        self.grants += 1;
        self.number = grant.number.get();
    }

    fn revoke(&mut self, _: TargetId, _: GrantNumber) {}

    fn peer(&mut self, _: u16, _: Lsn, _: PeerMessage) {}

    fn enrolled(&mut self, _: Lsn, enrollment: Enrollment) {
        self.enrollment = Some(enrollment);
    }
}

struct Bench {
    core: Core,
    sink: LastOutput,
    session: SessionIndex,
    target: TargetId,
    file: Inode,
    sequences: [u64; SLOTS as usize],
    /// Requests name the memory by windows, of which this is the data server's.
    window: Option<Window>,
    now: Now,
}

fn bench() -> Bench {
    let now = Now { monotonic: Nanos(1), wall_ns: 1 };
    let mut sink = LastOutput::default();
    let mut core = Core::new(CoreConfig {
        reactor: 0,
        reactors: 1,
        shard_map: [0; SHARDS],
        term: Term(1),
        stripe_blocks: 256,
        stripe_width: 1,
        grants_max: 1024,
        slots: SLOTS,
        target_wait_ns: 1,
    });
    core.finish_replay(now, &mut sink);
    let info = StoreInfo {
        uuid: [2; 16],
        generation: U32::new(1),
        block_bytes: U32::new(BLOCK as u32),
        blocks: U64::new(1 << 20),
    };
    core.enroll(now, [1; 16], &[info], &mut sink);
    let enrollment = sink.enrollment.take().expect("the data server gets its numbers");
    let stores: Vec<(StoreId, StoreInfo)> = vec![(enrollment.stores[0], info)];
    core.target_up(now, enrollment.target, &stores, &mut sink);
    let (session, _) = core.session_open(now, SessionId(5), 6).expect("a new session opens");
    let register = Register {
        region: U32::new(1),
        target: U32::new(enrollment.target.0),
        epoch: U64::new(1),
        length: U64::new(1 << 30),
        ..Register::default()
    };
    core.register(session, &register);
    let create = NameRequest {
        header: header(0, 1),
        parent: Handle::new(Inode::ROOT),
        operation: U16::new(name_operation::CREATE),
        ..NameRequest::default()
    };
    let names = Names { name: b"file", to_name: b"" };
    core.name_request(now, session, &create, names, &mut sink);
    let file = sink.inode.expect("the file is made");
    let mut sequences = [0; SLOTS as usize];
    sequences[0] = 1;
    let target = enrollment.target;
    Bench { core, sink, session, target, file, sequences, window: None, now }
}

fn header(slot: u16, sequence: u64) -> RequestHeader {
    RequestHeader {
        shard: U16::ZERO,
        slot: U16::new(slot),
        attempt: U32::new(1),
        sequence: U64::new(sequence),
    }
}

impl Bench {
    fn header(&mut self, slot: u16) -> RequestHeader {
        self.sequences[usize::from(slot)] += 1;
        header(slot, self.sequences[usize::from(slot)])
    }

    fn windows(&self) -> (U16, U16) {
        let flags = self.window.map_or(0, |_| io_flags::WINDOWS);
        (U16::new(flags), U16::new(self.window.is_some().into()))
    }

    fn write(&mut self, slot: u16, block: u64, blocks: u64) {
        let (flags, windows) = self.windows();
        let request = Write {
            flags,
            windows,
            header: self.header(slot),
            handle: Handle::new(self.file),
            offset: U64::new(block * BLOCK),
            length: U32::new((blocks * BLOCK) as u32),
            buffers: U16::new(1),
            buffer: BufferRef { region: U32::new(1), ..BufferRef::default() },
            ..Write::default()
        };
        let before = self.sink.grants;
        let named = self.window.as_slice();
        self.core.write(self.now, self.session, &request, named, &mut self.sink);
        for number in self.sink.number + before + 1 - self.sink.grants..=self.sink.number {
            let number = GrantNumber(number);
            self.core.notice(self.now, self.target, number, Status::OK, 0, &mut self.sink);
        }
        assert_eq!(self.sink.status, 0);
    }

    fn read(&mut self, slot: u16, block: u64) {
        let (flags, windows) = self.windows();
        let request = Read {
            flags,
            windows,
            header: self.header(slot),
            handle: Handle::new(self.file),
            offset: U64::new(block * BLOCK),
            length: U32::new(BLOCK as u32),
            buffers: U16::new(1),
            buffer: BufferRef { region: U32::new(1), ..BufferRef::default() },
            ..Read::default()
        };
        let named = self.window.as_slice();
        self.core.read(self.now, self.session, &request, named, &mut self.sink);
    }

    fn retire_all(&mut self) {
        let last = GrantNumber(self.sink.number);
        self.core.retired(self.now, self.target, GrantNumber(1), last, &mut self.sink);
    }

    fn reads(&mut self, rounds: u64) {
        for round in 0..rounds {
            for slot in 0..SLOTS {
                self.read(slot, (round * 37 + u64::from(slot) * 11) % FILE_BLOCKS);
            }
            self.retire_all();
        }
    }
}

#[test]
fn reads_and_overwrites_do_not_allocate() {
    steady(bench());
}

#[test]
fn neither_do_those_that_name_windows() {
    let mut bench = bench();
    let target = U32::new(bench.target.0);
    bench.window = Some(Window { target, key: U32::new(1), ..Window::default() });
    // The region is not what they use.
    bench.core.unregister(bench.session, RegionId(1));
    steady(bench);
}

fn steady(mut bench: Bench) {
    // Blocks one by one in a scattered order, so that the map has many extents.
    for block in 0..FILE_BLOCKS {
        bench.write(0, (block * 91) % FILE_BLOCKS, 1);
    }
    bench.reads(10);
    let before = (allocations_on_this_thread(), bench.sink.grants);
    bench.reads(1000);
    assert_eq!(bench.sink.grants - before.1, 1000 * u64::from(SLOTS));
    assert_eq!(allocations_on_this_thread() - before.0, 0, "reads allocate");
    for round in 0..4 * FILE_BLOCKS {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    let (allocations, records) = (allocations_on_this_thread(), bench.sink.records);
    for round in 0..4 * FILE_BLOCKS {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    assert_eq!(bench.sink.records - records, 4 * FILE_BLOCKS);
    assert_eq!(allocations_on_this_thread() - allocations, 0, "overwrites allocate");
    bench.core.check_invariants().expect("the state is sound");
}

/// Prints what a read and a write cost; with optimisation, holds a read to a bound that leaves room
/// for a loaded machine.
#[test]
fn a_read_takes_hundreds_of_nanoseconds() {
    let mut bench = bench();
    for block in 0..FILE_BLOCKS {
        bench.write(0, (block * 91) % FILE_BLOCKS, 1);
    }
    let rounds = if cfg!(debug_assertions) { 200 } else { 5_000 };
    let per = |start: Instant, count: u64| start.elapsed().as_nanos() as u64 / count;
    let mut read_ns = u64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        bench.reads(rounds);
        read_ns = read_ns.min(per(start, rounds * u64::from(SLOTS)));
    }
    let start = Instant::now();
    for round in 0..rounds {
        bench.write(1, (round * 91) % FILE_BLOCKS, 1);
    }
    let write_ns = per(start, rounds);
    println!(
        "a read with its retirement takes {read_ns} ns, a write with its commit {write_ns} ns"
    );
    if !cfg!(debug_assertions) {
        assert!(read_ns < 1_000, "a read takes {read_ns} ns");
    }
}
