//! H2 and H3: a data server stands still past the hosts' time-outs, and goes on when their buffers
//! are in other use.

use std::time::{Duration, Instant};

use gannet_client::{ClientOptions, Completion, ErrorKind, Operation, Outcome, Protection};
use gannet_fabric::arena::HostBuffer;
use gannet_integration::cluster::{Cluster, Store};
use gannet_integration::host::Host;
use gannet_integration::load::open;
use gannet_integration::{one_at_a_time, pattern};
use gannet_proto::Handle;
use gannet_vm::resources::packets_sent;
use gannet_vm::{cluster, guest};
use rustix::process::Signal;

use super::requests::{COMPLETE_MAX, OWNERSHIP, bytes, read_all};

const REQUEST_BYTES: usize = 1 << 20;
/// Reads, and as many writes, under way when the data server stops.
const EACH: usize = 8;
const FILE_BYTES: usize = EACH * REQUEST_BYTES;
/// Packets of the transfers, a quarter of all, after which they are under way.
const UNDER_WAY_PACKETS: u64 = (2 * FILE_BYTES / 4096 / 4) as u64;
/// How often it is tried to stop the data server in time.
const ATTEMPTS_MAX: usize = 5;
/// After which the host gives a request up.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long buffers are watched after the data server has gone on.
const WATCH: Duration = Duration::from_secs(2);
/// What buffers hold that are in other use.
const CANARY: u8 = 0xc7;
/// Seeds of what the files hold, and of what is written.
const READ: u64 = 21;
const OLD: u64 = 22;
const NEW: u64 = 23;

/// When the data server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The requests have left the host, and nothing has come back.
    Submitted,
    /// Transfers are under way.
    UnderWay,
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_data_server_that_stood_still_reaches_nothing_with_region_protection() {
    stall(Protection::Region);
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_data_server_that_stood_still_reaches_nothing_with_window_protection() {
    stall(Protection::Window);
}

fn stall(protection: Protection) {
    let _turn = one_at_a_time();
    let disk = guest::disk(&format!("stall-{protection}"), 128);
    let mut cluster = Cluster::new(cluster::options(vec![Store::Device(disk)]));
    for moment in [Moment::Submitted, Moment::UnderWay] {
        // A data server that has done everything before it stops shows nothing.
        let failures = (0..ATTEMPTS_MAX)
            .map(|attempt| stall_once(&cluster, protection, moment, attempt))
            .find(|failures| *failures > 0);
        let failures = failures.expect("something is under way when the data server stops");
        println!("{protection}, {moment:?}: {failures} of {} requests were given up", 2 * EACH);
    }
    assert!(cluster.is_running());
    cluster.stop();
}

/// The requests' buffers lie between others that no request uses.
struct Buffers {
    requests: Vec<HostBuffer>,
    neighbours: Vec<HostBuffer>,
}

impl Buffers {
    fn take(host: &Host) -> Buffers {
        let (mut requests, mut neighbours) = (Vec::new(), Vec::new());
        for _ in 0..2 * EACH {
            requests.push(host.buffer());
            let mut neighbour = host.buffer();
            neighbour.fill(CANARY);
            neighbours.push(neighbour);
        }
        Buffers { requests, neighbours }
    }

    fn check(&self, when: &str) {
        for (kind, buffers) in [("reused", &self.requests), ("neighbouring", &self.neighbours)] {
            for buffer in buffers {
                let changed = buffer.iter().position(|byte| *byte != CANARY);
                assert_eq!(changed, None, "{when}: the {kind} {buffer:?} changed");
            }
        }
    }
}

/// Stops the data server with requests under way, and checks all that must not happen then. Returns
/// how many requests failed.
fn stall_once(cluster: &Cluster, protection: Protection, moment: Moment, attempt: usize) -> usize {
    let mut session = open(&cluster.address());
    let mut create = |name: &str, seed: u64| {
        let path = format!("/{protection}-{moment:?}-{attempt}-{name}");
        let file = session.create(&path, OWNERSHIP, true).expect("created").handle;
        session.write_at(file, 0, &bytes(seed, 0, FILE_BYTES)).expect("written");
        file
    };
    let (source, sink) = (create("source", READ), create("sink", OLD));
    let adjust = |options: &mut ClientOptions| {
        options.protection = protection;
        options.cancel_timeout = TIMEOUT / 4;
    };
    let mut host = Host::new(&cluster.address(), REQUEST_BYTES, 4 * EACH as u32 + 1, adjust);
    // Everything is set up before it is disturbed.
    read_one(&mut host, source);
    let mut buffers = Buffers::take(&host);
    submit(&mut host, &mut buffers, source, sink);

    let mut outcomes = Outcomes::default();
    let packets = packets_sent();
    let mut first = host.wait(Duration::ZERO);
    while moment == Moment::UnderWay && packets_sent() < packets + UNDER_WAY_PACKETS {
        first.extend(host.wait(Duration::from_millis(1)));
    }
    // Before anything else, which would take time.
    cluster.signal_target(0, Signal::STOP);
    for completion in first {
        outcomes.take(completion, &mut buffers);
    }
    outcomes.wait(&mut host, &mut buffers);
    assert_eq!(buffers.requests.len(), 2 * EACH, "every buffer is back");
    buffers.check("before the data server goes on");

    cluster.signal_target(0, Signal::CONT);
    // It works again: for a new session, and for this host on the same arena.
    let mut other = open(&cluster.address());
    assert!(read_all(&mut other, source, FILE_BYTES) == bytes(READ, 0, FILE_BYTES));
    buffers.check("when the data server works again");
    read_one(&mut host, source);
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        // The host goes on polling meanwhile.
        let late = host.wait(Duration::from_millis(200));
        assert!(late.is_empty(), "completed twice: {late:?}");
        buffers.check("after the data server went on");
    }
    let found = read_all(&mut other, sink, FILE_BYTES);
    for (index, found) in found.chunks(REQUEST_BYTES).enumerate() {
        let at = index * REQUEST_BYTES;
        let is_new = found == bytes(NEW, at, REQUEST_BYTES);
        let is_old = found == bytes(OLD, at, REQUEST_BYTES);
        assert!(is_new || is_old, "write {index} left something else than old or new");
        assert!(is_new || !outcomes.written[index], "write {index} was acknowledged");
    }
    outcomes.failures
}

/// Reads a piece of a file into the host's spare buffer, however long it takes.
fn read_one(host: &mut Host, file: Handle) {
    let (offset, length) = (0, REQUEST_BYTES as u32);
    let buffer = host.buffer();
    host.submit(Operation::Read { file, offset, length, buffer, buffer_offset: 0 }, u64::MAX);
    let mut done = host.wait(COMPLETE_MAX);
    let completion = done.pop().expect("the read completes");
    assert!(done.is_empty() && completion.token == u64::MAX, "{completion:?}");
    assert!(completion.result.is_ok(), "{completion:?}");
    let buffer = completion.buffer.expect("the buffer is back");
    assert!(buffer[..] == bytes(READ, 0, REQUEST_BYTES), "what is read");
}

/// Reads and writes in turn; the token is the number of the range, of reads and then of writes.
fn submit(host: &mut Host, buffers: &mut Buffers, source: Handle, sink: Handle) {
    let length = REQUEST_BYTES as u32;
    for (number, mut buffer) in std::mem::take(&mut buffers.requests).into_iter().enumerate() {
        let index = number / 2;
        let at = (index * REQUEST_BYTES) as u64;
        let (operation, token) = if number % 2 == 0 {
            buffer.fill(0xdd);
            let (file, offset) = (source, at);
            (Operation::Read { file, offset, length, buffer, buffer_offset: 0 }, index)
        } else {
            pattern::fill(&mut buffer, NEW, at);
            let (file, offset, append) = (sink, at, false);
            let write = Operation::Write { file, offset, length, buffer, buffer_offset: 0, append };
            (write, EACH + index)
        };
        host.submit_with(operation, token as u64, Some(TIMEOUT));
    }
}

/// How the requests ended.
#[derive(Default)]
struct Outcomes {
    completed: [bool; 2 * EACH],
    written: [bool; EACH],
    failures: usize,
}

impl Outcomes {
    /// Notes how a request ended. Its buffer is in other use at once.
    fn take(&mut self, completion: Completion, buffers: &mut Buffers) {
        let index = completion.token as usize;
        assert!(!std::mem::replace(&mut self.completed[index], true), "{index}: again");
        let mut buffer = completion.buffer.expect("out of the data server's reach");
        match completion.result {
            Ok(Outcome::Read { bytes: read, .. }) => {
                assert_eq!(read as usize, REQUEST_BYTES);
                let expected = bytes(READ, index * REQUEST_BYTES, REQUEST_BYTES);
                assert!(buffer[..] == expected, "read {index}");
            }
            Ok(Outcome::Write { .. }) => self.written[index - EACH] = true,
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                let timed_out = matches!(error.kind, ErrorKind::TimedOut { .. });
                assert!(timed_out, "request {index}: {error}");
                self.failures += 1;
            }
        }
        buffer.fill(CANARY);
        buffers.requests.push(buffer);
    }

    /// Waits until all have completed.
    fn wait(&mut self, host: &mut Host, buffers: &mut Buffers) {
        let end = Instant::now() + COMPLETE_MAX;
        while self.completed.contains(&false) {
            assert!(Instant::now() < end, "not all are complete: {host:?}");
            for completion in host.wait(Duration::from_millis(100)) {
                self.take(completion, buffers);
            }
        }
    }
}
