//! Faults in any order.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_fabric::{Capabilities, ConnectionId};
use gannet_proto::Status;
use gannet_proto::operations::{EntryReply, Read};
use gannet_runtime::time::Time;

use super::peer::{Asked, Cluster, META, file, header_of, options, target_address};
use crate::operation::{Operation, Ownership};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(100);

fn create() -> Operation {
    let (name, ownership) = (b"f".to_vec(), Ownership::default());
    Operation::Create { parent: file(0), name, ownership, exclusive: true }
}

/// A small deterministic source of choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// The data server's other address.
const TCP: &str = "tcp://10.0.0.1:1";

/// The open data sessions, at whatever address.
fn sessions(cluster: &Cluster) -> Vec<ConnectionId> {
    let world = cluster.fabric.world();
    [world.open_to(&target_address(1)), world.open_to(TCP)].concat()
}

/// Answers a request that is with the servers, as they would if all went well.
fn serve(cluster: &Cluster, asked: &Asked) {
    match asked {
        Asked::Read(read) => {
            // Data servers whose session is gone cannot say anything.
            if let Some(session) = sessions(cluster).last() {
                let arrival = super::peer::arrival(read.header, (0, 1), 100, Status::OK);
                cluster.send(*session, &arrival, &[]);
            }
        }
        Asked::Write(write) => cluster.answer_io(write.header, Status::OK, 100),
        Asked::Cancel(_) => {}
        other => cluster.answer_entry(header_of(other), Status::OK),
    }
}

/// Every fault in any order: each request completes exactly once, in bounded time, and every
/// buffer comes back. In every third round the data server is reached over two fabrics, of which the
/// better one comes and goes.
#[test]
fn whatever_fails_each_request_completes_once() {
    let mut over_two_fabrics = 0;
    for seed in 1..=90_u64 {
        let (revokes, is_mixed) = (seed % 3 == 1, seed % 3 == 2);
        let mut choices = Choices(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut cluster = Cluster::with(options(), revokes);
        if is_mixed {
            cluster.further = vec![TCP];
            let over_shm = cluster.fabric.world().capabilities;
            let over_tcp = Capabilities { disconnect_revokes_access: true, ..over_shm };
            cluster.fabric.world().capabilities_of.insert("tcp", over_tcp);
        }
        cluster.warm_up(&[1]);
        let mut ids = Vec::new();
        let mut held: Vec<Asked> = Vec::new();
        let mut finished = Vec::new();
        for token in 0..400_u64 {
            let operation = match choices.below(4) {
                0 => create(),
                1 => Operation::Stat { handle: file(0) },
                2 => cluster.read(file(0), 0, 100),
                _ => cluster.write(file(0), 0, 100),
            };
            let timeout = (choices.below(4) == 0).then_some(SECOND);
            ids.push(cluster.client.submit_with(operation, token, timeout).unwrap());
            cluster.turn();
            while let Some((_, asked)) = cluster.try_next() {
                held.push(asked);
            }
            let meta = cluster.fabric.world().open_to(META[0]);
            let targets = sessions(&cluster);
            match choices.below(if is_mixed { 17 } else { 16 }) {
                0 => meta.iter().for_each(|channel| cluster.break_off(*channel)),
                1 => targets.iter().for_each(|session| cluster.break_off(*session)),
                2 => cluster.resumed = !cluster.resumed,
                16 => {
                    let (address, mut world) = (target_address(1), cluster.fabric.world());
                    if !world.dead.remove(&address) {
                        world.dead.insert(address);
                    }
                }
                3 => cluster.pass_stepwise(Duration::from_millis(choices.below(3000))),
                4 => cluster.client.cancel(ids[choices.below(ids.len() as u64) as usize]),
                5..8 if !held.is_empty() && !meta.is_empty() => {
                    let asked = &held[choices.below(held.len() as u64) as usize];
                    let status = [
                        Status::RETRY,
                        Status::AGAIN,
                        Status::IO,
                        Status::CANCELLED,
                        Status::WRONG_SHARD,
                        Status::BAD_SEQUENCE,
                    ][choices.below(6) as usize];
                    match asked {
                        Asked::Read(Read { header, .. }) => cluster.answer_io(*header, status, 0),
                        Asked::Write(write) => cluster.answer_io(write.header, status, 0),
                        Asked::Cancel(_) => {}
                        other => {
                            let header = header_of(other).reply(status);
                            let reply = EntryReply { header, ..EntryReply::default() };
                            cluster.send(meta[0], &reply, &[]);
                        }
                    }
                }
                8 if !held.is_empty() && !meta.is_empty() => {
                    if let Asked::Read(read) = &held[choices.below(held.len() as u64) as usize] {
                        cluster.stale_set(read.header, &[1]);
                    }
                }
                _ if !held.is_empty() && !meta.is_empty() => {
                    let at = choices.below(held.len() as u64) as usize;
                    let asked = held.swap_remove(at);
                    serve(&cluster, &asked);
                }
                _ => {}
            }
            cluster.turn();
            finished.extend(cluster.completions.drain(..).map(|done| done.token));
        }
        // From now on all goes well. Whatever was held is answered, late or not.
        let begin = cluster.now;
        while cluster.client.outstanding() > 0 {
            cluster.pass_stepwise(Duration::from_millis(100));
            while let Some((_, asked)) = cluster.try_next() {
                held.push(asked);
            }
            let is_open = !cluster.fabric.world().open_to(META[0]).is_empty();
            for asked in std::mem::take(&mut held) {
                if is_open {
                    serve(&cluster, &asked);
                } else {
                    held.push(asked);
                }
            }
            finished.extend(cluster.completions.drain(..).map(|done| done.token));
            assert!(cluster.now.since(begin) < LONG, "seed {seed}: {:?}", cluster.client);
        }
        cluster.settle();
        finished.extend(cluster.completions.drain(..).map(|done| done.token));
        finished.sort_unstable();
        assert!(finished.iter().copied().eq(0..400), "seed {seed}");
        assert_eq!(cluster.arena.available(), cluster.arena.capacity(), "seed {seed}");
        let quiet = cluster.client.deadline();
        assert!(quiet == Time::NEVER || quiet > cluster.now, "seed {seed}: {quiet:?}");
        let tried = cluster.fabric.world().tried(0);
        over_two_fabrics += usize::from(tried.iter().filter(|text| *text == TCP).count() > 1);
    }
    assert!(over_two_fabrics > 20, "{over_two_fabrics}");
}
