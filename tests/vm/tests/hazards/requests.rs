//! A host with many requests outstanding, each of which has to complete once.

use std::time::{Duration, Instant};

use gannet_client::blocking::Session;
use gannet_client::{ClientOptions, Completion, Operation, Outcome, Ownership, Protection};
use gannet_fabric::Address;
use gannet_fabric::any::AnyFabric;
use gannet_fabric::arena::HostBuffer;
use gannet_integration::host::Host;
use gannet_integration::load::open;
use gannet_integration::pattern;
use gannet_proto::Handle;
use gannet_vm::tracked::Tracked;

/// Requests outstanding at a time.
pub(crate) const REQUESTS: u32 = 32;
/// Length of each, bytes: over several transfers and both data servers.
pub(crate) const REQUEST_BYTES: usize = 256 << 10;
/// How long everything outstanding may take, whatever happened.
pub(crate) const COMPLETE_MAX: Duration = Duration::from_secs(90);
/// Seed of what the file to be read holds.
const READ_SEED: u64 = 11;
/// Requests of a burst of writes that are appends; the others are at places of their own.
const APPENDS: u32 = REQUESTS / 2;

/// Owner of what these tests make.
pub(crate) const OWNERSHIP: Ownership = Ownership { mode: 0o600, uid: 0, gid: 0 };

/// Bytes of a file from `offset` on.
pub(crate) fn bytes(seed: u64, offset: usize, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    pattern::fill(&mut bytes, seed, offset as u64);
    bytes
}

/// All of a file.
pub(crate) fn read_all(
    session: &mut Session<AnyFabric>,
    file: Handle,
    len_bytes: usize,
) -> Vec<u8> {
    let mut found = vec![0xee; len_bytes];
    assert_eq!(session.read_at(file, 0, &mut found).expect("read"), len_bytes);
    found
}

/// What is outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Reads,
    Writes,
}

/// Files, and a host that works on them. The host's fabric can be broken.
pub(crate) struct Bench {
    pub(crate) host: Host<Tracked>,
    metaserver: Address,
    file: Handle,
    /// Written at places, by a burst number; appended to by all bursts.
    places: Handle,
    log: Handle,
    bursts: u64,
}

/// Requests under way.
pub(crate) struct Burst {
    kind: Kind,
    number: u64,
    /// By token: whether it has completed.
    done: Vec<bool>,
}

impl Bench {
    pub(crate) fn new(metaserver: &Address, protection: Protection) -> Bench {
        let metaserver = metaserver.clone();
        let mut session = open(&metaserver);
        let mut create = |name: &str| {
            let path = format!("/{protection}-{name}");
            session.create(&path, OWNERSHIP, true).expect("created").handle
        };
        let (file, places, log) = (create("read"), create("places"), create("log"));
        let all = REQUESTS as usize * REQUEST_BYTES;
        session.write_at(file, 0, &bytes(READ_SEED, 0, all)).expect("written");
        drop(session);
        let adjust = |options: &mut ClientOptions| options.protection = protection;
        let fabric = Tracked::new(&metaserver);
        let host = Host::over(fabric, &metaserver, REQUEST_BYTES, REQUESTS, adjust);
        let mut bench = Bench { host, metaserver, file, places, log, bursts: 0 };
        // With everything in place: sessions, registrations, sets.
        for kind in [Kind::Reads, Kind::Writes] {
            let burst = bench.begin(kind);
            bench.complete(burst);
        }
        bench
    }

    /// Submits the requests, which leave with the next wait.
    pub(crate) fn begin(&mut self, kind: Kind) -> Burst {
        self.bursts += 1;
        let number = self.bursts;
        for index in 0..REQUESTS {
            let mut buffer = self.host.buffer();
            let offset = index as usize * REQUEST_BYTES;
            let length = REQUEST_BYTES as u32;
            let operation = if kind == Kind::Reads {
                // What was there before must not pass for what is read.
                buffer.fill(0xdd);
                let (file, offset) = (self.file, offset as u64);
                Operation::Read { file, offset, length, buffer, buffer_offset: 0 }
            } else {
                let append = index < APPENDS;
                pattern::fill(&mut buffer, record_seed(number, index), 0);
                let file = if append { self.log } else { self.places };
                let offset = if append { 0 } else { offset as u64 };
                Operation::Write { file, offset, length, buffer, buffer_offset: 0, append }
            };
            self.host.submit(operation, token(number, index));
        }
        Burst { kind, number, done: vec![false; REQUESTS as usize] }
    }

    /// Waits until at least `count` of the burst's requests have completed.
    pub(crate) fn wait(&mut self, burst: &mut Burst, count: usize) {
        self.wait_for(burst, |_, burst| burst.done.len() - burst.outstanding() >= count);
    }

    /// Takes completions until `condition` holds. Whatever is to be sent is sent, even if it holds
    /// at once.
    pub(crate) fn wait_for(
        &mut self,
        burst: &mut Burst,
        condition: impl Fn(&Host<Tracked>, &Burst) -> bool,
    ) {
        let end = Instant::now() + COMPLETE_MAX;
        let mut at_most = Duration::ZERO;
        loop {
            for completion in self.host.wait(at_most) {
                burst.complete(completion);
            }
            if condition(&self.host, burst) {
                return;
            }
            let (host, left) = (&self.host, burst.outstanding());
            assert!(Instant::now() < end, "{left} of {REQUESTS} are outstanding: {host:?}");
            at_most = Duration::from_millis(100);
        }
    }

    /// Connections that the host has lost so far.
    #[allow(dead_code)] // Not in every test that has this module.
    pub(crate) fn disconnects(&self) -> u64 {
        self.host.client().counters().disconnects
    }

    /// Waits until all of the burst have completed, and checks what they did, by another host.
    pub(crate) fn complete(&mut self, mut burst: Burst) {
        self.wait(&mut burst, REQUESTS as usize);
        assert_eq!(self.host.client().outstanding(), 0, "nothing else is under way");
        assert!(self.host.wait(Duration::from_millis(1)).is_empty(), "each completed once");
        if burst.kind == Kind::Writes {
            self.check_writes(burst.number);
        }
    }

    /// Each write of the burst is there once, and those of earlier bursts still are.
    fn check_writes(&mut self, number: u64) {
        // Not one that is kept: nobody would poll it while something is under way.
        let mut session = open(&self.metaserver);
        for index in APPENDS..REQUESTS {
            let mut found = vec![0; REQUEST_BYTES];
            let offset = index as usize * REQUEST_BYTES;
            let read = session.read_at(self.places, offset as u64, &mut found).expect("read");
            assert_eq!(read, REQUEST_BYTES);
            assert!(found == bytes(record_seed(number, index), 0, REQUEST_BYTES), "write {index}");
        }
        // The log is emptied afterwards, so it has this burst's records and no others.
        let size = session.stat_handle(self.log).expect("there").size.get() as usize;
        assert_eq!(size, APPENDS as usize * REQUEST_BYTES, "as many records as appends");
        let log = read_all(&mut session, self.log, size);
        let mut missing: Vec<u32> = (0..APPENDS).collect();
        for (place, record) in log.chunks(REQUEST_BYTES).enumerate() {
            let begins = |index: &u32| record[..8] == bytes(record_seed(number, *index), 0, 8);
            let found = missing.iter().position(begins);
            let found = found.unwrap_or_else(|| panic!("record {place} is no append, or a second"));
            let index = missing.swap_remove(found);
            let expected = bytes(record_seed(number, index), 0, REQUEST_BYTES);
            assert!(record == expected, "append {index} is not whole");
        }
        session.truncate(self.log, 0).expect("truncated");
    }
}

fn record_seed(burst: u64, index: u32) -> u64 {
    burst << 8 | u64::from(index)
}

fn token(burst: u64, index: u32) -> u64 {
    burst << 32 | u64::from(index)
}

impl Burst {
    /// Requests that have not completed.
    pub(crate) fn outstanding(&self) -> usize {
        self.done.iter().filter(|done| !**done).count()
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { token, result, buffer, .. } = completion;
        assert_eq!(token >> 32, self.number, "a request of an earlier burst completed again");
        let index = token as u32 as usize;
        assert!(!std::mem::replace(&mut self.done[index], true), "request {index}: a second time");
        let buffer: HostBuffer = buffer.expect("the buffer is out of everybody's reach");
        match result {
            Ok(Outcome::Read { bytes: read, .. }) => {
                assert_eq!((self.kind, read as usize), (Kind::Reads, REQUEST_BYTES));
                let expected = bytes(READ_SEED, index * REQUEST_BYTES, REQUEST_BYTES);
                assert!(buffer[..REQUEST_BYTES] == expected, "read {index}");
            }
            Ok(Outcome::Write { .. }) => assert_eq!(self.kind, Kind::Writes),
            other => panic!("request {index}: {other:?}"),
        }
    }
}
