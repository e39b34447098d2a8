//! A killed data server's block I/O runs on for a moment (`HAZARDS` H13). It must reach neither the
//! memory that a host has taken back, nor blocks that the metadata server has given to others.
//!
//! Each round has 512 direct reads and writes outstanding, kills the data server in their midst,
//! ends the requests, reuses their memory for canaries, starts the data server again, and reuses the
//! blocks for another file. That the hazard is real is shown beside the lock that ends it, in
//! `reactor/disk/tests/lock_outlives_process.rs`.

use std::time::{Duration, Instant};

use gannet_client::blocking::Session;
use gannet_client::{Completion, ErrorKind, Operation, Outcome, Ownership};
use gannet_fabric::Address;
use gannet_fabric::any::AnyFabric;
use gannet_fabric::arena::HostBuffer;
use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::host::Host;
use gannet_integration::load::open;
use gannet_integration::one_at_a_time;
use gannet_integration::pattern::{GRANULE_BYTES, stamp, version};
use gannet_proto::Handle;

const ROUNDS: u32 = 50;
/// Requests of each kind that are outstanding when the data server is killed.
const DEPTH: u32 = 256;
/// Bytes of a request: enough that the device is busy with them for a while after the kill. So a
/// host that does not take its memory back loses canaries, if not in each run.
const CELL_BYTES: usize = 256 << 10;
const CELL_GRANULES: u32 = (CELL_BYTES / GRANULE_BYTES) as u32;
/// Bytes of the file that is read, and of the one that is written.
const FILE_BYTES: usize = DEPTH as usize * CELL_BYTES;
/// Bytes of the file that reuses blocks: nearly all that the other two leave of the store, and so
/// nearly all that the dead data server was writing to.
const REUSE_BYTES: usize = 60 << 20;
const STORE_SIZE: &str = "200M";
const CANARY: u8 = 0xca;
/// How long a request whose servers are silent may take to its end.
const END_MAX: Duration = Duration::from_secs(10);
const OWNERSHIP: Ownership = Ownership { mode: 0o600, uid: 0, gid: 0 };

/// Numbers of the files in their bytes.
const READ_FILE: u32 = 1;
const WRITTEN_FILE: u32 = 2;
const REUSE_FILE: u32 = 3;

fn stamped(file: u32, first_granule: u32, version: u32, bytes: &mut [u8]) {
    for (granule, bytes) in (first_granule..).zip(bytes.chunks_exact_mut(GRANULE_BYTES)) {
        stamp(bytes, file, granule, version);
    }
}

/// The version of a range that one write wrote.
fn version_of(file: u32, first_granule: u32, bytes: &[u8]) -> u32 {
    let mut versions = (first_granule..)
        .zip(bytes.chunks_exact(GRANULE_BYTES))
        .map(|(granule, bytes)| version(bytes, file, granule).unwrap_or_else(|e| panic!("{e}")));
    let first = versions.next().expect("some bytes");
    assert!(versions.all(|version| version == first), "file {file}: a mixture of writes");
    first
}

/// A file, and its directory, whose requests do not share slots with those of another file.
fn file_apart(
    session: &mut Session<AnyFabric>,
    name: &str,
    other: Option<Handle>,
) -> (Handle, String) {
    let shard = |handle: Handle| handle.inode().shard();
    for attempt in 0..64 {
        let directory = format!("/{name}-{attempt}");
        session.mkdir_all(&directory, OWNERSHIP).expect("made");
        let path = format!("{directory}/{name}");
        let file = session.create(&path, OWNERSHIP, true).expect("created").handle;
        if other.is_none_or(|other| shard(other) != shard(file)) {
            return (file, directory);
        }
        session.unlink(&path).expect("removed");
    }
    panic!("all directories are in one shard");
}

/// What the written file may hold, by cell.
struct Written {
    acknowledged: Vec<u32>,
    /// A write whose end nobody told.
    perhaps: Vec<Option<u32>>,
}

/// One round's requests.
struct Round {
    host: Host,
    number: u32,
    read: Handle,
    written: Handle,
    requests: Vec<Option<gannet_client::RequestId>>,
    outstanding: usize,
    /// Buffers of the requests that are over, full of canaries.
    canaries: Vec<HostBuffer>,
}

impl Round {
    fn begin(metaserver: &Address, number: u32, read: Handle, written: Handle) -> Round {
        let host = Host::new(metaserver, CELL_BYTES, 2 * DEPTH, |options| {
            options.cancel_timeout = Duration::from_millis(10);
        });
        let mut round = Round {
            host,
            number,
            read,
            written,
            requests: Vec::new(),
            outstanding: 0,
            canaries: Vec::new(),
        };
        for token in 0..2 * DEPTH {
            let operation = round.operation(token);
            let request = round.host.submit(operation, token.into());
            round.requests.push(Some(request));
            round.outstanding += 1;
        }
        round
    }

    /// Even tokens read, odd ones write.
    fn operation(&self, token: u32) -> Operation {
        let cell = token / 2;
        let mut buffer = self.host.buffer();
        let (offset, length) = (u64::from(cell) * CELL_BYTES as u64, CELL_BYTES as u32);
        if token.is_multiple_of(2) {
            Operation::Read { file: self.read, offset, length, buffer, buffer_offset: 0 }
        } else {
            stamped(WRITTEN_FILE, cell * CELL_GRANULES, self.number, &mut buffer);
            let (file, append) = (self.written, false);
            Operation::Write { file, offset, length, buffer, buffer_offset: 0, append }
        }
    }

    /// Waits until at most `left` requests are outstanding.
    fn wait(&mut self, left: usize, model: &mut Written) {
        let end = Instant::now() + END_MAX;
        while self.outstanding > left {
            assert!(
                Instant::now() < end,
                "{} requests do not end: {:?}",
                self.outstanding,
                self.host
            );
            for completion in self.host.wait(Duration::from_millis(10)) {
                self.complete(completion, model);
            }
        }
    }

    fn complete(&mut self, completion: Completion, model: &mut Written) {
        let Completion { token, result, buffer, .. } = completion;
        let mut buffer = buffer.expect("its memory is the host's own again");
        let cell = token as usize / 2;
        self.requests[token as usize] = None;
        self.outstanding -= 1;
        match result {
            Ok(Outcome::Read { bytes, .. }) => {
                assert_eq!(bytes as usize, CELL_BYTES);
                let found = version_of(READ_FILE, cell as u32 * CELL_GRANULES, &buffer);
                assert_eq!(found, 1, "the file that is only read");
            }
            Ok(Outcome::Write { .. }) => model.acknowledged[cell] = self.number,
            Ok(other) => panic!("an answer of another kind: {other:?}"),
            Err(error) => match error.kind {
                ErrorKind::Cancelled { maybe_applied: true } if token % 2 == 1 => {
                    model.perhaps[cell] = Some(self.number);
                }
                ErrorKind::Cancelled { .. } => {}
                _ => panic!("{error}"),
            },
        }
        // The memory is reused for something else at once.
        buffer.fill(CANARY);
        self.canaries.push(buffer);
    }

    fn cancel_all(&mut self) {
        for request in self.requests.iter().flatten() {
            self.host.cancel(*request);
        }
    }

    fn check_canaries(&self, when: &str) {
        for buffer in &self.canaries {
            let changed = buffer.iter().position(|byte| *byte != CANARY);
            assert_eq!(changed, None, "round {}: a canary died {when}", self.number);
        }
    }
}

#[test]
fn a_dead_data_servers_io_reaches_neither_reused_memory_nor_reused_blocks() {
    let _turn = one_at_a_time();
    let options = ClusterOptions { targets: 1, store_size: STORE_SIZE, ..Default::default() };
    let mut cluster = Cluster::new(options);
    let address = cluster.address();
    let mut session = open(&address);
    let (read, _) = file_apart(&mut session, "read", None);
    let (written, directory) = file_apart(&mut session, "written", Some(read));
    session.truncate(written, FILE_BYTES as u64).expect("all of it is a hole");
    // A neighbour of the written file, and so with its shard's space.
    let path = format!("{directory}/reuse");
    let mut bytes = vec![0; FILE_BYTES];
    stamped(READ_FILE, 0, 1, &mut bytes);
    session.write_at(read, 0, &bytes).expect("written");
    let (mut reuse, mut again) = (vec![0; REUSE_BYTES], vec![0; REUSE_BYTES]);
    let mut model =
        Written { acknowledged: vec![0; DEPTH as usize], perhaps: vec![None; DEPTH as usize] };
    let (mut cut_short, mut cuts, mut perhaps) = (0, 0, 0);

    for number in 1..=ROUNDS {
        let mut round = Round::begin(&address, number, read, written);
        // With few completed, the kill meets hundreds of reads and writes.
        let completed = 1 + number as usize % 8;
        round.wait(2 * DEPTH as usize - completed, &mut model);
        cut_short += round.outstanding;
        // The requests end, and their memory is reused, while the process is still dying.
        cluster.kill_target_and(0, || {
            round.cancel_all();
            round.wait(0, &mut model);
        });
        round.check_canaries("before the server was back");
        cluster.start_target(0);
        round.check_canaries("before the server's return");

        let file = session.create(&path, OWNERSHIP, true).expect("created").handle;
        stamped(REUSE_FILE, 0, number, &mut reuse);
        session.write_at(file, 0, &reuse).expect("the blocks of the dead writes are free again");
        assert_eq!(session.read_at(file, 0, &mut again).expect("read"), REUSE_BYTES);
        assert!(reuse == again, "round {number}: reused blocks hold something else");
        session.unlink(&path).expect("removed");

        assert_eq!(session.read_at(written, 0, &mut bytes).expect("read"), FILE_BYTES);
        for (cell, bytes) in (0..).zip(bytes.chunks_exact(CELL_BYTES)) {
            let found = version_of(WRITTEN_FILE, cell * CELL_GRANULES, bytes);
            let cell = cell as usize;
            let maybe = model.perhaps[cell].take();
            perhaps += usize::from(maybe.is_some());
            let acknowledged = model.acknowledged[cell];
            assert!(
                found == acknowledged || Some(found) == maybe,
                "round {number}: cell {cell} holds {found}, acknowledged was {acknowledged}, \
                 perhaps written {maybe:?}"
            );
            model.acknowledged[cell] = found;
        }
        round.check_canaries("after blocks were reused");
        cuts += round.host.client().counters().cuts;
    }
    println!(
        "{ROUNDS} kills cut {cut_short} requests short; {cuts} buffers were taken back; {perhaps} \
         writes ended without anybody being told how"
    );
    assert!(cut_short > ROUNDS as usize, "no kill met a transfer");
    assert!(cuts > ROUNDS.into(), "no memory that data servers reached was taken back");
    let mut content = vec![0; FILE_BYTES];
    assert_eq!(session.read_at(read, 0, &mut content).expect("read"), FILE_BYTES);
    assert_eq!(version_of(READ_FILE, 0, &content), 1);
    drop(session);
    cluster.stop();
}
