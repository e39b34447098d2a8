//! Lost connections, failed attempts, cancellation, time-outs: nothing hangs, nothing is executed
//! twice, and no buffer comes back while somebody can still write it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_fabric::ConnectionId;
use gannet_proto::operations::{IoReply, Read, RequestHeader, inode_operation};
use gannet_proto::{Handle, Status};
use zerocopy::little_endian::U64;

use super::super::Role;
use super::peer::{Asked, Cluster, META, file, header_of, options};
use crate::error::ErrorKind;
use crate::operation::{Operation, Outcome, Ownership};
use crate::options::ClientOptions;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(100);

fn create(shard: u16) -> Operation {
    let (name, ownership) = (b"f".to_vec(), Ownership::default());
    Operation::Create { parent: file(shard), name, ownership, exclusive: true }
}

fn stat(shard: u16) -> Operation {
    Operation::Stat { handle: file(shard) }
}

fn next_read(cluster: &mut Cluster) -> Read {
    match cluster.next() {
        Asked::Read(read) => read,
        other => panic!("a read, not {other:?}"),
    }
}

/// Submits a read of 100 bytes and returns it as it was sent.
fn begin_read(cluster: &mut Cluster, token: u64) -> Read {
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, token).unwrap();
    cluster.settle();
    next_read(cluster)
}

fn pop_error(cluster: &mut Cluster) -> ErrorKind {
    cluster.completions.pop().unwrap().result.unwrap_err().kind
}

#[test]
fn after_retry_the_next_attempt_counts_and_the_former_cannot_touch_the_buffer() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let first = begin_read(&mut cluster, 1);
    let stalled = cluster.view(first.buffer);
    cluster.answer_io(first.header, Status::RETRY, 0);
    cluster.settle();
    assert!(cluster.try_next().is_none(), "after a delay only");
    cluster.pass(SECOND);
    let second = next_read(&mut cluster);
    assert_eq!(
        (second.header.slot, second.header.sequence),
        (first.header.slot, first.header.sequence)
    );
    assert_eq!((first.header.attempt.get(), second.header.attempt.get()), (1, 2));
    assert_ne!(second.buffer.region, first.buffer.region, "fresh pages, registered anew");

    cluster.arrive(1, first.header, (0, 1), 100);
    cluster.settle();
    assert!(cluster.completions.is_empty(), "a late arrival completes nothing");
    assert_eq!(cluster.client.counters().late_arrivals, 1);
    let view = cluster.view(second.buffer);
    view.copy_in(second.buffer.offset.get() as usize, &[5; 100]);
    cluster.arrive(1, second.header, (0, 1), 100);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert!(done.result.is_ok());
    let buffer = done.buffer.unwrap();
    stalled.copy_in(0, &vec![0xee; stalled.len()]);
    assert!(buffer[..100].iter().all(|byte| *byte == 5), "late data lands elsewhere");
}

#[test]
fn endless_retry_ends_in_bounded_time() {
    let mut cluster = Cluster::new();
    cluster.client.submit(stat(0), 1).unwrap();
    cluster.settle();
    let begin = cluster.now;
    let mut attempts = 0;
    while cluster.completions.is_empty() {
        if let Some((_, asked)) = cluster.try_next() {
            attempts += 1;
            assert_eq!(header_of(&asked).attempt.get(), attempts);
            cluster.answer_entry(header_of(&asked), Status::RETRY);
            cluster.settle();
        }
        cluster.now = cluster.client.deadline().min(cluster.now + SECOND).max(cluster.now);
        cluster.settle();
        assert!(cluster.now.since(begin) < LONG);
    }
    assert_eq!(pop_error(&mut cluster), ErrorKind::RetriesExhausted(Status::RETRY));
    assert!((100..=1001).contains(&attempts), "{attempts}");
}

#[test]
fn a_resumed_channel_goes_on_with_the_next_attempts() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    cluster.client.submit(create(0), 1).unwrap();
    let Operation::Write { file, offset, length, mut buffer, buffer_offset, append } =
        cluster.write(file(0), 0, 100)
    else {
        panic!("a write")
    };
    buffer.fill(3);
    let write = Operation::Write { file, offset, length, buffer, buffer_offset, append };
    cluster.client.submit(write, 2).unwrap();
    cluster.settle();
    let created = header_of(&cluster.next());
    let Asked::Write(written) = cluster.next() else { panic!("a write") };
    cluster.break_off(cluster.meta(0));
    cluster.settle();
    assert!(cluster.completions.is_empty() && cluster.try_next().is_none());
    cluster.pass_stepwise(SECOND);

    let again = [cluster.next(), cluster.next()];
    for (first, second) in [created, written.header].iter().zip(&again) {
        let second = header_of(second);
        assert_eq!((second.slot, second.sequence), (first.slot, first.sequence));
        assert_eq!(second.attempt.get(), 2);
    }
    let Asked::Write(rewritten) = &again[1] else { panic!("a write") };
    let mut content = [0; 100];
    cluster.view(rewritten.buffer).copy_out(rewritten.buffer.offset.get() as usize, &mut content);
    assert_eq!(content, [3; 100], "fresh pages with the data to be written");
    cluster.answer_entry(header_of(&again[0]), Status::OK);
    cluster.answer_io(rewritten.header, Status::OK, 100);
    cluster.settle();
    assert_eq!(cluster.completions.len(), 2);
    assert!(cluster.completions.iter().all(|done| done.result.is_ok()));
}

#[test]
fn in_a_new_session_changes_are_of_unknown_outcome_and_reads_begin_anew() {
    let mut cluster = Cluster::new();
    cluster.slots = 2;
    cluster.warm_up(&[1]);
    cluster.client.submit(create(0), 1).unwrap();
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 2).unwrap();
    // No slot is left for this one: it was never sent.
    cluster.client.submit(create(0), 3).unwrap();
    cluster.settle();
    let headers = [header_of(&cluster.next()), header_of(&cluster.next())];
    assert!(headers.iter().any(|header| header.sequence.get() > 1));
    assert!(cluster.try_next().is_none());
    cluster.resumed = false;
    cluster.break_off(cluster.meta(0));
    cluster.pass_stepwise(SECOND);

    let done = cluster.completions.pop().unwrap();
    assert_eq!((done.token, done.result.unwrap_err().kind), (1, ErrorKind::OutcomeUnknown));
    let mut kinds = Vec::new();
    while let Some((_, asked)) = cluster.try_next() {
        let header = header_of(&asked);
        assert_eq!((header.sequence.get(), header.attempt.get()), (1, 1));
        match asked {
            Asked::Read(_) => {
                kinds.push("read");
                cluster.arrive(1, header, (0, 1), 100);
            }
            _ => {
                kinds.push("create");
                cluster.answer_entry(header, Status::OK);
            }
        }
        cluster.settle();
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["create", "read"]);
    assert!(cluster.completions.iter().all(|done| done.result.is_ok()));
    assert_eq!(cluster.completions.len(), 2);
}

#[test]
fn data_servers_may_complete_a_read_whose_channel_is_lost() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let read = begin_read(&mut cluster, 1);
    cluster.break_off(cluster.meta(0));
    cluster.settle();
    cluster.arrive(1, read.header, (0, 1), 100);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
    cluster.pass_stepwise(SECOND);
    assert!(cluster.try_next().is_none(), "nothing to send again");
}

#[test]
fn a_lost_metadata_server_is_an_error_in_bounded_time() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    cluster.client.submit(create(0), 1).unwrap();
    cluster.settle();
    let read = begin_read_after(&mut cluster, 2);
    let stalled = cluster.view(read.buffer);
    cluster.fabric.world().reachable = false;
    cluster.break_off(cluster.meta(0));
    cluster.settle();
    cluster.client.submit(create(0), 3).unwrap();
    cluster.pass_stepwise(Duration::from_secs(29));
    assert!(cluster.completions.is_empty(), "it is still being sought");
    cluster.pass_stepwise(Duration::from_secs(3));
    cluster.completions.sort_by_key(|done| done.token);
    let kinds: Vec<ErrorKind> =
        cluster.completions.iter().map(|done| done.result.clone().unwrap_err().kind).collect();
    assert_eq!(kinds[0], ErrorKind::OutcomeUnknown);
    assert!(matches!(kinds[1], ErrorKind::MetaserverLost { reactor: 0, reason: Some(_) }));
    assert!(matches!(kinds[2], ErrorKind::MetaserverLost { .. }));
    let buffer = cluster.completions[1].buffer.as_ref().unwrap();
    stalled.copy_in(0, &vec![0xee; stalled.len()]);
    assert!(!buffer[..100].contains(&0xee), "the buffer was cut before it came back");

    // Later it is there again: the slots whose fate is unknown are asked about, others are used.
    cluster.fabric.world().reachable = true;
    cluster.completions.clear();
    cluster.client.submit(create(0), 4).unwrap();
    cluster.pass_stepwise(SECOND);
    let mut probes = 0;
    while let Some((_, asked)) = cluster.try_next() {
        if let Asked::Inode(probe) = &asked {
            assert_eq!(probe.header.attempt.get(), 2, "supersedes the request that was given up");
            probes += 1;
        }
        cluster.answer_entry(header_of(&asked), Status::OK);
    }
    cluster.settle();
    assert_eq!(probes, 2);
    assert_eq!(cluster.completions.len(), 1);
    assert!(cluster.completions[0].result.is_ok());
    assert!(format!("{:?}", cluster.client).contains("parked_slots: 0"));
}

fn begin_read_after(cluster: &mut Cluster, token: u64) -> Read {
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, token).unwrap();
    cluster.settle();
    loop {
        if let Asked::Read(read) = cluster.next() {
            return read;
        }
    }
}

#[test]
fn nobody_home_and_silence_are_errors_in_bounded_time() {
    let mut cluster = Cluster::new();
    cluster.fabric.world().reachable = false;
    cluster.client.submit(stat(0), 1).unwrap();
    cluster.pass_stepwise(Duration::from_secs(31));
    assert!(matches!(pop_error(&mut cluster), ErrorKind::MetaserverLost { .. }));

    // It accepts connections but says nothing.
    let mut cluster = Cluster::new();
    cluster.client.submit(stat(0), 1).unwrap();
    let end = cluster.now + Duration::from_secs(36);
    while cluster.now < end && cluster.completions.is_empty() {
        cluster.client.poll(cluster.now, &mut cluster.completions);
        cluster.fabric.world().sent.clear();
        cluster.now =
            cluster.client.deadline().max(cluster.now + Duration::from_millis(1)).min(end);
    }
    assert!(matches!(pop_error(&mut cluster), ErrorKind::MetaserverLost { .. }));
}

#[test]
fn a_refused_session_fails_at_once_and_may_be_tried_again() {
    let mut cluster = Cluster::new();
    cluster.refusal = Some(Status::VERSION);
    cluster.client.submit(stat(0), 1).unwrap();
    cluster.settle();
    let error = cluster.completions.pop().unwrap().result.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Refused { status: Status::VERSION, .. }), "{error}");
    cluster.refusal = None;
    cluster.client.submit(stat(0), 2).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_entry(header, Status::OK);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());

    // A server that is merely full is tried again.
    let mut cluster = Cluster::new();
    cluster.refusal = Some(Status::AGAIN);
    cluster.client.submit(stat(0), 1).unwrap();
    cluster.pass_stepwise(SECOND);
    assert!(cluster.completions.is_empty());
    cluster.refusal = None;
    cluster.pass_stepwise(SECOND);
    assert!(cluster.try_next().is_some());
}

fn lose_a_data_session_with_requests_outstanding(revokes: bool) {
    let options = ClientOptions { slots: 64, ..options() };
    let mut cluster = Cluster::with(options, revokes);
    cluster.slots = 64;
    cluster.warm_up(&[1, 2]);
    for token in 0..32 {
        let operation = if token % 2 == 0 {
            cluster.read(file(0), 0, 100)
        } else {
            cluster.write(file(0), 0, 100)
        };
        cluster.client.submit(operation, token).unwrap();
    }
    cluster.settle();
    let mut former = Vec::new();
    while let Some((_, asked)) = cluster.try_next() {
        former.push(header_of(&asked));
    }
    assert_eq!(former.len(), 32);
    let surviving = cluster.target(2);
    cluster.break_off(cluster.target(1));
    cluster.pass_stepwise(SECOND);
    assert_eq!(cluster.target(2) == surviving, !revokes, "cut by pages, or by disconnecting");

    let mut seen = 0;
    while let Some((_, asked)) = cluster.try_next() {
        let header = header_of(&asked);
        assert!(former.iter().any(|f| f.slot == header.slot && f.sequence == header.sequence));
        assert_eq!(header.attempt.get(), 2);
        seen += 1;
        match asked {
            Asked::Read(_) => {
                cluster.arrive(2, header, (1, 2), 100);
                cluster.arrive(1, header, (0, 2), 100);
            }
            _ => cluster.answer_io(header, Status::OK, 100),
        }
    }
    assert_eq!(seen, 32);
    cluster.settle();
    let mut tokens: Vec<u64> = cluster.completions.iter().map(|done| done.token).collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..32), "each once");
    assert!(cluster.completions.iter().all(|done| done.result.is_ok()));
    cluster.completions.clear();
    assert_eq!(cluster.arena.available(), cluster.arena.capacity());
}

#[test]
fn a_lost_data_session_is_rebuilt_where_pages_are_replaced() {
    lose_a_data_session_with_requests_outstanding(false);
}

#[test]
fn a_lost_data_session_is_rebuilt_where_disconnecting_revokes() {
    lose_a_data_session_with_requests_outstanding(true);
}

#[test]
fn a_lost_data_server_is_an_error_in_bounded_time() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let write = cluster.write(file(0), 0, 100);
    cluster.client.submit(write, 1).unwrap();
    cluster.settle();
    cluster.tickets = false;
    cluster.break_off(cluster.target(1));
    cluster.pass_stepwise(Duration::from_secs(29));
    assert!(cluster.completions.is_empty());
    cluster.pass_stepwise(Duration::from_secs(3));
    let target = gannet_proto::TargetId(1);
    assert_eq!(pop_error(&mut cluster), ErrorKind::TargetLost { target });
    let write = header_of(&cluster.next());
    let _probe = next_probe(&mut cluster, write);
    // Files elsewhere are not concerned.
    let other = Handle::new(gannet_proto::Inode::new(gannet_proto::ShardId(1), 8));
    let write = cluster.write(other, 0, 100);
    cluster.client.submit(write, 2).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_io(header, Status::OK, 100);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
}

#[test]
fn a_cancelled_request_ends_by_its_final_answer() {
    let mut cluster = Cluster::new();
    for (status, token) in [(Status::CANCELLED, 1), (Status::OK, 2), (Status::RETRY, 3)] {
        let write = cluster.write(file(0), 0, 100);
        let id = cluster.client.submit(write, token).unwrap();
        cluster.settle();
        let header = header_of(&cluster.next());
        cluster.client.cancel(id);
        cluster.client.cancel(id);
        cluster.settle();
        let Asked::Cancel(cancel) = cluster.next() else { panic!("a cancel") };
        assert_eq!(cancel.header, header);
        assert!(cluster.try_next().is_none(), "once");
        assert!(cluster.completions.is_empty(), "not before the final answer");
        cluster.answer_io(header, status, 100);
        cluster.settle();
        let done = cluster.completions.pop().unwrap();
        assert!(done.buffer.is_some());
        if status.is_ok() {
            assert!(matches!(done.result, Ok(Outcome::Write { bytes: 100, .. })));
        } else {
            let kind = ErrorKind::Cancelled { maybe_applied: false };
            assert_eq!(done.result.unwrap_err().kind, kind);
        }
    }
    // One that waits ends at once.
    let mut cluster = Cluster::new();
    let id = cluster.client.submit(create(0), 1).unwrap();
    cluster.client.cancel(id);
    cluster.turn();
    let kind = ErrorKind::Cancelled { maybe_applied: false };
    assert_eq!(pop_error(&mut cluster), kind);
    cluster.client.cancel(id);
    cluster.settle();
    assert!(cluster.completions.is_empty() && cluster.try_next().is_none());
}

#[test]
fn a_timed_out_read_never_touches_the_reused_buffer() {
    for revokes in [false, true] {
        let mut cluster = Cluster::with(options(), revokes);
        cluster.warm_up(&[1]);
        let read = cluster.read(file(0), 0, 100);
        cluster.client.submit_with(read, 1, Some(SECOND)).unwrap();
        cluster.settle();
        let Asked::Read(read) = cluster.next() else { panic!("a read") };
        let stalled = cluster.view(read.buffer);
        let session = cluster.target(1);
        if revokes {
            // The provider is slow to end the connection.
            cluster.fabric.world().disconnects = false;
        }
        cluster.pass_stepwise(Duration::from_millis(1100));
        assert!(matches!(cluster.next(), Asked::Cancel(_)));
        assert!(cluster.completions.is_empty());
        cluster.pass_stepwise(SECOND);
        if revokes {
            assert!(cluster.completions.is_empty(), "the data server may still write");
            cluster.break_off(session);
            cluster.settle();
        }
        let done = cluster.completions.pop().unwrap();
        assert_eq!(done.result.unwrap_err().kind, ErrorKind::TimedOut { maybe_applied: false });
        let mut canary = done.buffer.unwrap();
        canary.fill(0xca);
        if !revokes {
            // With the other kind the access ended with the connection.
            stalled.copy_in(0, &vec![0xee; stalled.len()]);
            cluster.arrive(1, read.header, (0, 1), 100);
            cluster.settle();
        }
        assert!(canary.iter().all(|byte| *byte == 0xca));
        assert!(cluster.completions.is_empty());
        assert_eq!(cluster.client.counters().cuts, 1);
    }
}

#[test]
fn a_slot_that_is_given_up_is_used_again_after_its_final_answer_only() {
    let mut cluster = Cluster::with(ClientOptions { slots: 1, ..options() }, false);
    cluster.slots = 1;
    cluster.client.submit_with(create(0), 1, Some(SECOND)).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.pass_stepwise(Duration::from_secs(3));
    assert_eq!(pop_error(&mut cluster), ErrorKind::TimedOut { maybe_applied: true });
    assert!(matches!(cluster.next(), Asked::Cancel(_)));
    let probe = next_probe(&mut cluster, header);
    // Until then others wait, each as long as it may.
    cluster.client.submit(create(0), 2).unwrap();
    cluster.client.submit_with(create(0), 3, Some(SECOND)).unwrap();
    cluster.pass_stepwise(Duration::from_secs(2));
    assert_eq!(pop_error(&mut cluster), ErrorKind::TimedOut { maybe_applied: false });
    assert!(cluster.completions.is_empty());
    // What came before the probe's answer says nothing.
    for (answered, status) in [(header, Status::CANCELLED), (probe, Status::OK)] {
        assert_eq!(cluster.client.slots.parked(), 1);
        cluster.answer_entry(answered, status);
        cluster.settle();
    }
    let next = header_of(&cluster.next());
    assert_eq!((next.slot, next.sequence.get()), (header.slot, header.sequence.get() + 1));
    assert!(cluster.completions.is_empty());
}

/// As many requests as there are slots run out of time at once: those behind them get the slots a
/// round trip later.
#[test]
fn a_mass_time_out_loses_no_slots() {
    const SLOTS: u16 = 8;
    let mut cluster = Cluster::with(ClientOptions { slots: SLOTS, ..options() }, false);
    cluster.slots = SLOTS;
    for token in 0..SLOTS {
        cluster.client.submit_with(create(0), token.into(), Some(SECOND)).unwrap();
    }
    for token in SLOTS..2 * SLOTS {
        cluster.client.submit(create(0), token.into()).unwrap();
    }
    cluster.settle();
    cluster.pass_stepwise(Duration::from_secs(3));
    assert_eq!(cluster.completions.len(), SLOTS.into());
    for done in cluster.completions.drain(..) {
        let kind = done.result.unwrap_err().kind;
        assert_eq!(kind, ErrorKind::TimedOut { maybe_applied: true });
    }
    let mut probes = Vec::new();
    while let Some((_, asked)) = cluster.try_next() {
        if let Asked::Inode(probe) = asked {
            probes.push(probe.header);
        }
    }
    assert_eq!(probes.len(), SLOTS.into());
    for probe in probes {
        cluster.answer_entry(probe, Status::OK);
    }
    cluster.settle();
    for _ in 0..SLOTS {
        let next = header_of(&cluster.next());
        assert_eq!(next.sequence.get(), 2);
    }
    assert!(cluster.completions.is_empty());
}

/// Takes the probe of the slot of a request that was given up.
fn next_probe(cluster: &mut Cluster, of: RequestHeader) -> RequestHeader {
    let Asked::Inode(probe) = cluster.next() else { panic!("a probe") };
    assert_eq!(probe.operation.get(), inode_operation::STAT);
    let header = probe.header;
    assert_eq!((header.slot, header.sequence), (of.slot, of.sequence));
    assert!(header.attempt > of.attempt, "{header:?} probes {of:?}");
    header
}

/// A data server is away for longer than a request waits, while the metadata server is there: the
/// slot does not stay behind, although the attempt that it was parked with was never sent.
#[test]
fn a_slot_given_up_between_two_attempts_comes_back() {
    for is_read in [true, false] {
        let mut cluster = Cluster::new();
        cluster.warm_up(&[1]);
        let operation =
            if is_read { cluster.read(file(0), 0, 100) } else { cluster.write(file(0), 0, 100) };
        cluster.client.submit_with(operation, 1, Some(SECOND)).unwrap();
        cluster.settle();
        let first = header_of(&cluster.next());
        cluster.tickets = false;
        cluster.break_off(cluster.target(1));
        cluster.pass_stepwise(2 * SECOND);
        let timed_out = ErrorKind::TimedOut { maybe_applied: !is_read };
        assert_eq!(pop_error(&mut cluster), timed_out);
        assert_eq!(cluster.client.slots.parked(), 1);
        let probe = next_probe(&mut cluster, first);
        cluster.answer_entry(probe, Status::OK);
        cluster.settle();
        assert_eq!(cluster.client.slots.parked(), 0);
    }
}

/// Many slots may be given up at once: what finds no room to be probed is probed later.
#[test]
fn probes_wait_for_room() {
    const SLOTS: u16 = 256;
    let mut cluster = Cluster::with(ClientOptions { slots: SLOTS, ..options() }, false);
    cluster.slots = SLOTS;
    for token in 0..SLOTS {
        cluster.client.submit_with(create(0), token.into(), Some(SECOND)).unwrap();
    }
    cluster.settle();
    cluster.pass_stepwise(4 * SECOND);
    assert_eq!(cluster.completions.len(), SLOTS.into());
    cluster.completions.clear();
    let mut probes = Vec::new();
    while let Some((_, asked)) = cluster.try_next() {
        if let Asked::Inode(probe) = asked {
            probes.push(probe.header);
        }
    }
    assert_eq!((probes.len(), cluster.client.slots.parked()), (SLOTS.into(), SLOTS.into()));
    for probe in probes {
        cluster.answer_entry(probe, Status::OK);
    }
    cluster.settle();
    assert_eq!(cluster.client.slots.parked(), 0);
}

#[test]
fn a_change_that_a_former_attempt_achieved_is_not_awaited_twice() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let write = cluster.write(file(0), 0, 100);
    cluster.client.submit(write, 1).unwrap();
    cluster.settle();
    let first = header_of(&cluster.next());
    cluster.break_off(cluster.target(1));
    // The reply to the first attempt crosses with the loss of the data session.
    cluster.turn();
    let reply =
        IoReply { header: first.reply(Status::OK), size: U64::new(100), ..IoReply::default() };
    cluster.send(cluster.meta(0), &reply, &[]);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result, Ok(Outcome::Write { bytes: 0, offset: 0, size: 100 }));
    // A former attempt's failure says nothing: the next attempt may succeed.
    let write = cluster.write(file(0), 0, 100);
    cluster.client.submit(write, 2).unwrap();
    cluster.pass_stepwise(SECOND);
    let first = header_of(&cluster.next());
    cluster.break_off(cluster.target(1));
    cluster.pass_stepwise(SECOND);
    cluster.answer_io(first, Status::IO, 0);
    cluster.settle();
    assert!(cluster.completions.is_empty());
    assert_eq!(cluster.client.counters().late_replies, 1);
}

#[test]
fn answers_that_mean_try_again_are_tried_again_as_new_requests() {
    for status in [Status::AGAIN, Status::BAD_SEQUENCE, Status::WRONG_SHARD] {
        let mut cluster = Cluster::new();
        cluster.client.submit(create(0), 1).unwrap();
        cluster.settle();
        let first = header_of(&cluster.next());
        let channel = cluster.meta(0);
        cluster.map_version += 1;
        cluster.answer_entry(first, status);
        cluster.pass_stepwise(SECOND);
        let second = header_of(&cluster.next());
        assert_eq!(second.attempt.get(), 1);
        assert_ne!((first.slot, first.sequence), (second.slot, second.sequence), "{status}");
        if status == Status::BAD_SEQUENCE {
            assert_ne!(first.slot, second.slot, "the server disowned the slot");
        }
        assert_eq!(cluster.meta(0) != channel, status == Status::WRONG_SHARD, "asks for the map");
        assert_eq!(cluster.fabric.world().open_to(META[0]).len(), 1, "the former one is ended");
        cluster.answer_entry(second, Status::OK);
        cluster.settle();
        assert!(cluster.completions.pop().unwrap().result.is_ok());
    }
}

#[test]
fn a_set_that_stays_stale_is_told_again_then_rebuilt_then_given_up() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let session = cluster.target(1);
    let told = cluster.told.len();
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let mut answers = 0;
    while cluster.completions.is_empty() {
        if let Some((_, asked)) = cluster.try_next() {
            answers += 1;
            cluster.stale_set(header_of(&asked), &[1]);
        }
        cluster.pass_stepwise(SECOND);
        if answers == 1 {
            assert_eq!((cluster.told.len(), cluster.target(1)), (told + 1, session));
        }
        assert!(answers < 100);
    }
    assert_ne!(cluster.target(1), session);
    assert_eq!(pop_error(&mut cluster), ErrorKind::RetriesExhausted(Status::STALE_SET));
}

#[test]
fn a_dropped_client_leaves_no_buffer_to_stalled_data_servers() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let read = begin_read(&mut cluster, 1);
    let stalled = cluster.view(read.buffer);
    let arena = cluster.arena.clone();
    let fabric = cluster.fabric.clone();
    drop(cluster);
    drop(fabric);
    assert_eq!(arena.available(), arena.capacity());
    let mut buffer = arena.take().unwrap();
    buffer.fill(0xca);
    stalled.copy_in(0, &vec![0xee; stalled.len()]);
    assert!(buffer.iter().all(|byte| *byte == 0xca));
}

#[test]
fn replaced_regions_are_taken_back_everywhere() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let mut read = begin_read(&mut cluster, 1);
    let mut regions = vec![read.buffer.region.get()];
    let mut forgotten = Vec::new();
    for _ in 0..3 {
        cluster.answer_io(read.header, Status::RETRY, 0);
        cluster.pass_stepwise(SECOND);
        forgotten.extend(cluster.asked.iter().filter_map(|(_, asked)| match asked {
            Asked::Unregister(message) => Some(message.region.get()),
            _ => None,
        }));
        read = next_read(&mut cluster);
        regions.push(read.buffer.region.get());
    }
    regions.dedup();
    assert_eq!(regions.len(), 4);
    assert_eq!(forgotten, regions[1..3], "reactors are told, the arena's own region stays");
    assert_eq!(cluster.fabric.world().deregistered.len(), 2, "the arena's own region stays");
    assert_eq!(cluster.fabric.world().registered.len(), 2);
}

#[test]
fn a_position_that_is_given_on_does_not_hide_the_end_of_the_connection_before() {
    let mut cluster = Cluster::new();
    let client = &mut cluster.client;
    let at = |generation| ConnectionId { index: 40, generation };
    client.set_role(at(1), Role::Channel(0));
    client.set_role(at(2), Role::Target(3));
    assert_eq!(client.role(at(1)), Role::Channel(0), "its end is still to be told");
    assert_eq!(client.role(at(2)), Role::Target(3));
    client.set_role(at(1), Role::None);
    assert_eq!((client.role(at(1)), client.role(at(2))), (Role::None, Role::Target(3)));
    client.set_role(at(2), Role::None);
    client.set_role(at(3), Role::Channel(1));
    assert_eq!((client.role(at(2)), client.role(at(3))), (Role::None, Role::Channel(1)));
}
