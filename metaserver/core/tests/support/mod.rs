//! A core with one data server, one session and one file, driven by what hosts and data servers say.

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
use gannet_proto::{GrantNumber, Handle, Inode, SessionId, Status, StoreId, TargetId, Term};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Slots of the session.
pub(crate) const SLOTS: u16 = 32;
/// Blocks of the file.
pub(crate) const FILE_BLOCKS: u64 = 256;

/// Keeps what the next step needs and allocates nothing.
#[derive(Default)]
pub(crate) struct LastOutput {
    pub(crate) records: u64,
    pub(crate) record_bytes: u64,
    pub(crate) grants: u64,
    pub(crate) number: u64,
    pub(crate) replies: u64,
    pub(crate) status: u32,
    pub(crate) inode: Option<Inode>,
    pub(crate) enrollment: Option<Enrollment>,
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

pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) sink: LastOutput,
    pub(crate) session: SessionIndex,
    pub(crate) target: TargetId,
    pub(crate) file: Inode,
    /// Of the shards' slots.
    pub(crate) sequences: Vec<[u64; SLOTS as usize]>,
    /// Requests name the memory by windows, of which this is the data server's.
    pub(crate) window: Option<Window>,
    pub(crate) now: Now,
}

/// A core with an empty file.
pub(crate) fn bench() -> Bench {
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
        blocks: U64::new(1 << 24),
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
    let target = enrollment.target;
    let (file, sequences) = (Inode::ROOT, vec![[0; SLOTS as usize]; SHARDS]);
    let mut bench = Bench { core, sink, session, target, file, sequences, window: None, now };
    bench.file = bench.make(name_operation::CREATE, Inode::ROOT, b"file");
    bench
}

impl Bench {
    /// Makes a file or directory.
    pub(crate) fn make(&mut self, operation: u16, parent: Inode, name: &[u8]) -> Inode {
        let request = NameRequest {
            header: self.header(parent, 0),
            parent: Handle::new(parent),
            operation: U16::new(operation),
            mode: U32::new(0o755),
            ..NameRequest::default()
        };
        let names = Names { name, to_name: b"" };
        self.core.name_request(self.now, self.session, &request, names, &mut self.sink);
        assert_eq!(self.sink.status, 0);
        self.sink.inode.expect("it is made")
    }

    fn header(&mut self, inode: Inode, slot: u16) -> RequestHeader {
        let shard = inode.shard().expect("the core gave it out");
        let sequence = &mut self.sequences[usize::from(shard.0)][usize::from(slot)];
        *sequence += 1;
        RequestHeader {
            shard: U16::new(shard.0),
            slot: U16::new(slot),
            attempt: U32::new(1),
            sequence: U64::new(*sequence),
        }
    }

    fn windows(&self) -> (U16, U16) {
        let flags = self.window.map_or(0, |_| io_flags::WINDOWS);
        (U16::new(flags), U16::new(self.window.is_some().into()))
    }

    /// Writes whole blocks, to their commit.
    pub(crate) fn write(&mut self, slot: u16, block: u64, blocks: u64) {
        let (flags, windows) = self.windows();
        let request = Write {
            flags,
            windows,
            header: self.header(self.file, slot),
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
            header: self.header(self.file, slot),
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

    /// Reads a block by each slot, so many times.
    pub(crate) fn reads(&mut self, rounds: u64) {
        for round in 0..rounds {
            for slot in 0..SLOTS {
                self.read(slot, (round * 37 + u64::from(slot) * 11) % FILE_BLOCKS);
            }
            self.retire_all();
        }
    }
}
