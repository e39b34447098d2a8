//! What a plain service of requests and answers reaches over TCP, with the workload's own sizes.
//!
//! The client keeps `depth` requests outstanding on one loopback connection; the server answers each
//! with a block out of its memory and a notice, or takes a block with each request and answers with a
//! notice. Messages are as long as Gannet's and hold nothing. There is no third party, no metadata and
//! no checksum, and blocks go straight from and to their places. Both ends poll an io_uring of their
//! own on a core of their own. Sends gather whatever is ready, receives take whatever is there: at
//! most one system call for each per turn.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::memory::Mapping;
use gannet_runtime::reactor::pin_to_core;
use gannet_runtime::stream::{Piece, StreamEnd};
use gannet_runtime::time::Time;
use serde::{Deserialize, Serialize};

use super::cpu::CpuWatch;
use super::round_trip::joined;
use super::tcp::{self, READ_NOTICE_BYTES, REQUEST_BYTES, WRITE_NOTICE_BYTES};
use crate::error::PerfError;
use crate::latency::Latencies;
use crate::options::{DEPTH_MAX, WorkloadKind};
use crate::random::mix;

/// Runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(20);
/// Most pieces per send or receive. Longer lists only delay the other end.
const PIECES_MAX: usize = 128;
/// Memory of the server beside its blocks, for requests and notices.
pub(super) const MESSAGE_MEMORY_BYTES: usize =
    DEPTH_MAX as usize * (REQUEST_BYTES + READ_NOTICE_BYTES);
const _: () = assert!(WRITE_NOTICE_BYTES <= READ_NOTICE_BYTES);

/// What to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoPlan {
    /// The workload that it is the ceiling of: decides who sends the blocks, and their order in the
    /// server's memory.
    pub workload: WorkloadKind,
    /// Length of a block, bytes.
    pub block_bytes: usize,
    /// Requests outstanding.
    pub depth: u32,
}

/// What was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EchoCeiling {
    /// The workload that it is the ceiling of.
    pub workload: WorkloadKind,
    /// Length of a block, bytes.
    pub block_bytes: usize,
    /// Requests outstanding.
    pub depth: u32,
    /// Length of a request without its block, bytes.
    pub request_bytes: usize,
    /// Length of an answer without its block, bytes.
    pub notice_bytes: usize,
    /// Requests answered per second.
    pub operations_per_second: f64,
    /// Blocks, bytes per second.
    pub bytes_per_second: f64,
    /// Half of the requests took no longer, nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// Share of the time in which the client's thread had its core.
    pub cpu_share: f64,
}

impl EchoCeiling {
    /// Takes a second measurement of the same plan over if it did better.
    pub(crate) fn merge(&mut self, other: &EchoCeiling) {
        if other.operations_per_second > self.operations_per_second {
            self.clone_from(other);
        }
    }
}

/// Measures for `budget` between two threads, each pinned to its core. `store` plays the server's
/// memory: its last [`MESSAGE_MEMORY_BYTES`] are for messages, the others hold blocks. `None` if the
/// cores are one and the same, or if nothing was answered in time.
///
/// # Errors
/// If a core, memory or a connection cannot be had, or the connection breaks.
pub fn measure(
    plan: EchoPlan,
    cores: [Option<usize>; 2],
    store: &Arc<Mapping>,
    budget: Duration,
) -> Result<Option<EchoCeiling>, PerfError> {
    if cores[0].is_some() && cores[0] == cores[1] {
        return Ok(None);
    }
    let failed = || PerfError::system("measuring a plain service over TCP");
    let (client, server) = tcp::pair().map_err(failed())?;
    // Each thread owns its socket, and so ends the other when it ends itself.
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<(), PerfError> {
            cores[1].map_or(Ok(()), pin_to_core)?;
            serve(plan, server, store).map_err(failed())
        });
        let asking = scope.spawn(|| -> Result<_, PerfError> {
            cores[0].map_or(Ok(()), pin_to_core)?;
            let mut client = Client::new(plan, client).map_err(failed())?;
            client.run(budget).map_err(failed())
        });
        let measured = joined(asking.join());
        // What is wrong at the server's end explains what the client saw of it.
        joined(serving.join())?;
        measured
    })
}

impl EchoPlan {
    fn notice_bytes(self) -> usize {
        if self.workload.is_write() { WRITE_NOTICE_BYTES } else { READ_NOTICE_BYTES }
    }

    /// A direction of the stream, requests or answers, in the memory of one end: `places` holds its
    /// blocks, `messages_at` is where its messages lie.
    fn lane(self, is_request: bool, messages_at: usize, places: Places) -> Lane {
        let has_block = is_request == self.workload.is_write();
        Lane {
            message_bytes: if is_request { REQUEST_BYTES } else { self.notice_bytes() },
            messages_at,
            depth: u64::from(self.depth),
            block_bytes: if has_block { self.block_bytes } else { 0 },
            places,
            moved_bytes: 0,
        }
    }
}

/// Where the blocks of successive units lie.
#[derive(Clone, Copy, Debug)]
enum Places {
    /// One after the other from the memory's start, and again after so many.
    InOrder(u64),
    /// Anywhere among so many.
    Scattered(u64),
}

impl Places {
    fn of(self, unit: u64) -> u64 {
        match self {
            Places::InOrder(count) => unit % count,
            Places::Scattered(count) => {
                ((u128::from(mix(unit)) * u128::from(count)) >> u64::BITS) as u64
            }
        }
    }
}

/// One direction of the stream: units of a message and perhaps a block, without end.
#[derive(Clone, Copy, Debug)]
struct Lane {
    message_bytes: usize,
    /// Where the messages lie, `depth` of them in turn.
    messages_at: usize,
    depth: u64,
    /// 0 if the units have no blocks.
    block_bytes: usize,
    places: Places,
    /// How far the stream has come.
    moved_bytes: u64,
}

impl Lane {
    fn unit_bytes(&self) -> u64 {
        (self.message_bytes + self.block_bytes) as u64
    }

    /// How many units have been moved wholly.
    fn whole(&self) -> u64 {
        self.moved_bytes / self.unit_bytes()
    }

    fn advance(&mut self, moved: Option<usize>) {
        self.moved_bytes += moved.unwrap_or(0) as u64;
    }

    /// What is to be moved next, up to unit number `end`. Neighbours become one piece.
    fn gather(&self, end: u64, pieces: &mut Vec<Piece>) {
        let mut skip = (self.moved_bytes % self.unit_bytes()) as usize;
        for unit in self.whole()..end {
            let message = self.messages_at + (unit % self.depth) as usize * self.message_bytes;
            let block = self.places.of(unit) as usize * self.block_bytes;
            for (offset, len_bytes) in [(message, self.message_bytes), (block, self.block_bytes)] {
                let skipped = skip.min(len_bytes);
                skip -= skipped;
                let piece = Piece { offset: offset + skipped, len_bytes: len_bytes - skipped };
                let is_full = pieces.len() == PIECES_MAX;
                match pieces.last_mut() {
                    _ if piece.len_bytes == 0 => {}
                    Some(last) if last.offset + last.len_bytes == piece.offset => {
                        last.len_bytes += piece.len_bytes;
                    }
                    _ if is_full => return,
                    _ => pieces.push(piece),
                }
            }
        }
    }
}

/// Answers until the stream ends.
fn serve(plan: EchoPlan, socket: TcpStream, store: &Arc<Mapping>) -> io::Result<()> {
    let messages_at = store.len() - MESSAGE_MEMORY_BYTES;
    let count = (messages_at / plan.block_bytes) as u64;
    let places = match plan.workload.is_random() {
        true => Places::Scattered(count),
        false => Places::InOrder(count),
    };
    let mut requests = plan.lane(true, messages_at, places);
    let notices_at = messages_at + DEPTH_MAX as usize * REQUEST_BYTES;
    let mut answers = plan.lane(false, notices_at, places);
    let mut end = StreamEnd::new(socket.into(), Arc::clone(store))?;
    let mut pieces = Vec::with_capacity(PIECES_MAX);
    loop {
        if !end.is_receiving() {
            // No more can come than the client may have outstanding.
            requests.gather(answers.whole() + u64::from(plan.depth), &mut pieces);
            end.receive(pieces.drain(..));
        }
        if !end.is_sending() {
            answers.gather(requests.whole(), &mut pieces);
            end.send(pieces.drain(..));
        }
        let moved = end.poll()?;
        if moved.received == Some(0) {
            return Ok(());
        }
        requests.advance(moved.received);
        answers.advance(moved.sent);
    }
}

/// The end that asks.
struct Client {
    plan: EchoPlan,
    end: StreamEnd,
    requests: Lane,
    answers: Lane,
    /// Requests that were made.
    asked: u64,
    /// When, for those outstanding.
    asked_at: Vec<Time>,
    pieces: Vec<Piece>,
}

impl Client {
    fn new(plan: EchoPlan, socket: TcpStream) -> io::Result<Client> {
        let depth = plan.depth as usize;
        let blocks_bytes = depth * plan.block_bytes;
        let messages_bytes = depth * (REQUEST_BYTES + plan.notice_bytes());
        let memory = Mapping::shareable(blocks_bytes + messages_bytes)?;
        super::touch(&memory);
        let places = Places::InOrder(u64::from(plan.depth));
        Ok(Client {
            plan,
            end: StreamEnd::new(socket.into(), memory)?,
            requests: plan.lane(true, blocks_bytes, places),
            answers: plan.lane(false, blocks_bytes + depth * REQUEST_BYTES, places),
            asked: 0,
            asked_at: vec![Time::monotonic(); depth],
            pieces: Vec::with_capacity(PIECES_MAX),
        })
    }

    fn run(&mut self, budget: Duration) -> io::Result<Option<EchoCeiling>> {
        let mut latencies = Latencies::new();
        let mut now = Time::monotonic();
        let warm = now + WARM_UP;
        while now < warm {
            self.ask(now);
            now = self.turn(now, None)?;
        }
        let watch = CpuWatch::start();
        let begin = Time::monotonic();
        now = begin;
        while now < begin + budget {
            self.ask(now);
            now = self.turn(now, Some(&mut latencies))?;
        }
        let (seconds, cpu_share) = (now.since(begin).as_secs_f64(), watch.share());
        while self.answers.whole() < self.asked {
            now = self.turn(now, None)?;
        }
        if latencies.count() == 0 {
            return Ok(None);
        }
        let EchoPlan { workload, block_bytes, depth } = self.plan;
        let operations_per_second = latencies.count() as f64 / seconds;
        let latency = latencies.summary();
        Ok(Some(EchoCeiling {
            workload,
            block_bytes,
            depth,
            request_bytes: REQUEST_BYTES,
            notice_bytes: self.plan.notice_bytes(),
            operations_per_second,
            bytes_per_second: operations_per_second * block_bytes as f64,
            p50_ns: latency.p50_ns,
            p99_ns: latency.p99_ns,
            cpu_share,
        }))
    }

    /// Makes as many requests as may be outstanding.
    fn ask(&mut self, now: Time) {
        while self.asked < self.answers.whole() + u64::from(self.plan.depth) {
            let place = self.asked % u64::from(self.plan.depth);
            self.asked_at[place as usize] = now;
            self.asked += 1;
        }
    }

    /// Polls once. Returns the time to begin the next turn with.
    fn turn(&mut self, now: Time, latencies: Option<&mut Latencies>) -> io::Result<Time> {
        if !self.end.is_sending() {
            self.requests.gather(self.asked, &mut self.pieces);
            self.end.send(self.pieces.drain(..));
        }
        if !self.end.is_receiving() {
            let expected = self.answers.whole() + u64::from(self.plan.depth);
            self.answers.gather(expected, &mut self.pieces);
            self.end.receive(self.pieces.drain(..));
        }
        let moved = self.end.poll()?;
        self.requests.advance(moved.sent);
        let Some(received) = moved.received else { return Ok(Time::monotonic().max(now)) };
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answered = self.answers.whole();
        self.answers.advance(Some(received));
        let completed = Time::monotonic();
        if let Some(latencies) = latencies {
            for answer in answered..self.answers.whole() {
                let place = answer % u64::from(self.plan.depth);
                latencies.record(completed.since(self.asked_at[place as usize]));
            }
        }
        Ok(completed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BLOCKS: usize = 64;

    fn plan(workload: WorkloadKind, depth: u32) -> EchoPlan {
        EchoPlan { workload, block_bytes: 4096, depth }
    }

    fn store() -> Arc<Mapping> {
        let store = Mapping::anonymous(BLOCKS * 4096 + MESSAGE_MEMORY_BYTES).unwrap();
        for block in 0..BLOCKS {
            store.copy_in(block * 4096, &[block as u8 + 1; 4096]);
        }
        store
    }

    #[test]
    fn every_workload_has_a_ceiling() {
        for workload in WorkloadKind::ALL {
            for depth in [1, 3, 200] {
                let budget = Duration::from_millis(100);
                let plan = plan(workload, depth);
                let ceiling = measure(plan, [None, None], &store(), budget).unwrap().unwrap();
                assert!(ceiling.operations_per_second > 0.0, "{ceiling:?}");
                assert!(0 < ceiling.p50_ns && ceiling.p50_ns <= ceiling.p99_ns, "{ceiling:?}");
                assert_eq!((ceiling.request_bytes, ceiling.notice_bytes % 8), (120, 0));
            }
        }
        let same = measure(plan(WorkloadKind::Read, 1), [Some(0); 2], &store(), WARM_UP);
        assert!(same.unwrap().is_none(), "one core cannot play both sides");
    }

    /// Blocks arrive where they belong, whatever the pieces are that they come in.
    #[test]
    fn blocks_reach_their_places() {
        for workload in [WorkloadKind::RandomRead, WorkloadKind::Write] {
            let plan = plan(workload, 5);
            let (client, server) = tcp::pair().unwrap();
            let store = store();
            let mut last = 0;
            let memory = std::thread::scope(|scope| {
                let serving = scope.spawn(|| serve(plan, server, &store));
                let mut client = Client::new(plan, client).unwrap();
                let memory = Arc::clone(client.end.memory());
                for place in 0..5 {
                    memory.copy_in(place * 4096, &[100 + place as u8; 4096]);
                }
                client.run(Duration::from_millis(50)).unwrap().unwrap();
                last += client.asked;
                drop(client);
                serving.join().unwrap().unwrap();
                memory
            });
            let uniform = |memory: &Mapping, block: u64| {
                let mut bytes = [0; 4096];
                memory.copy_out(block as usize * 4096, &mut bytes);
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                bytes[0]
            };
            // The last five requests hold their places still.
            let count = ((store.len() - MESSAGE_MEMORY_BYTES) / 4096) as u64;
            for unit in last - 5..last {
                if workload.is_write() {
                    assert_eq!(u64::from(uniform(&store, unit % count)), 100 + unit % 5);
                } else {
                    let source = Places::Scattered(count).of(unit);
                    assert_eq!(uniform(&memory, unit % 5), uniform(&store, source));
                }
            }
        }
    }

    #[test]
    fn what_is_left_of_a_unit_comes_first() {
        let mut lane = plan(WorkloadKind::Read, 2).lane(false, 10_000, Places::InOrder(2));
        let pieces = |lane: &Lane, end| {
            let mut pieces = Vec::new();
            lane.gather(end, &mut pieces);
            pieces.iter().map(|piece| (piece.offset, piece.len_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(pieces(&lane, 1), [(10_000, 120), (0, 4096)]);
        lane.advance(Some(20));
        assert_eq!(pieces(&lane, 1), [(10_020, 100), (0, 4096)]);
        lane.advance(Some(200));
        assert_eq!(pieces(&lane, 2), [(100, 3996), (10_120, 120), (4096, 4096)]);
        assert_eq!(lane.whole(), 0);
        lane.advance(Some(3996));
        assert_eq!((lane.whole(), pieces(&lane, 1)), (1, vec![]));

        let requests = plan(WorkloadKind::Read, 4).lane(true, 0, Places::InOrder(4));
        assert_eq!(pieces(&requests, 6), [(0, 480), (0, 240)], "neighbours are one piece");
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (client, server) = tcp::pair().unwrap();
        drop(server);
        let mut client = Client::new(plan(WorkloadKind::Read, 1), client).unwrap();
        assert!(client.run(Duration::from_secs(60)).is_err());
    }
}
