//! Sessions, drains and revocation: what may be posted when, and who is told.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use gannet_disk::Disk;
use gannet_fabric::DisconnectReason;
use gannet_proto::Status;
use gannet_proto::control::{Grant, TargetStats, TargetStatsReply, grant_operation};
use gannet_proto::data::Arrival;
use gannet_proto::handshake::Refusal;
use gannet_proto::operations::connection_kind;
use gannet_proto::packet::{Frames, Message};
use gannet_proto::stats::{StatsEntry, read_stats};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::WallTime;
use gannet_target::Stats;
use support::fabric::Post;
use support::script::{
    Heard, Script, TERM, TICKET, Told, config, data_hello_packet, fill, notice, packet,
    welcome_packet,
};
use zerocopy::little_endian::{U32, U64};

fn ready(session: u64, epoch: u64) -> Told {
    Told::Ready { session, epoch, status: Status::OK }
}

/// Posts that reach hosts' memory, since the log was last emptied.
fn posts(script: &Script) -> Vec<Post> {
    let mut posts = std::mem::take(&mut script.fabric.0.borrow_mut().posts);
    posts.retain(|post| !matches!(post, Post::Send(_)));
    posts
}

/// Asks for counters; returns those named and the connections, from all parts of the answer.
fn ask_for_counters(script: &mut Script, parts: &mut usize) -> (usize, Vec<(u64, String, String)>) {
    script.fabric.take_sent(script.meta);
    script.tell(&TargetStats { tag: U64::new(77) }, &[]);
    script.settle();
    let (mut counters, mut connections, mut is_whole) = (0, Vec::new(), false);
    for packet in script.fabric.take_sent(script.meta) {
        for frame in Frames::new(&packet) {
            let frame = frame.unwrap();
            if frame.kind != TargetStatsReply::KIND {
                continue;
            }
            let (reply, tail) = frame.read::<TargetStatsReply>().unwrap();
            assert!(!is_whole && reply.tag.get() == 77);
            is_whole = reply.more.get() == 0;
            *parts += 1;
            let (count, others) = (reply.count.get(), reply.connections.get());
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            read_stats::<TargetStatsReply>(tail, count, others, |entry| match entry {
                StatsEntry::Counter { .. } => counters += 1,
                StatsEntry::Connection { kind, id, fabric, peer } => {
                    assert_eq!(kind, connection_kind::DATA_SESSION);
                    connections.push((id, text(fabric), text(peer)));
                }
            })
            .unwrap();
        }
    }
    assert!(is_whole, "an answer without end");
    connections.sort_unstable();
    (counters, connections)
}

#[test]
fn an_answer_about_counters_names_the_fabric_of_every_data_session() {
    let mut script = Script::new(true, true);
    let mut parts = 0;
    assert_eq!(ask_for_counters(&mut script, &mut parts), (Stats::COUNT, vec![]));
    assert_eq!(parts, 1);
    let hosts: Vec<_> = (0..400).map(|index| script.host(1000 + index, 1, 4096)).collect();
    parts = 0;
    let (counters, connections) = ask_for_counters(&mut script, &mut parts);
    assert_eq!(counters, Stats::COUNT);
    let expected = (1000..1400).map(|id| (id, "fake".to_owned(), "peer".to_owned()));
    assert!(connections.into_iter().eq(expected));
    assert!(parts > 2, "they do not fit one packet: {parts}");
    // Only sessions that are connected have a fabric.
    script.fabric.break_connection(hosts[0].connection, DisconnectReason::PeerLost);
    script.settle();
    assert_eq!(ask_for_counters(&mut script, &mut parts).1.len(), 399);
}

#[test]
fn who_asks_for_counters_without_taking_the_answers_is_answered_without_connections() {
    let mut script = Script::new(true, true);
    for index in 0..400 {
        script.host(1000 + index, 1, 4096);
    }
    script.fabric.take_sent(script.meta);
    script.fabric.set_credits(script.meta, Some(0));
    for tag in 0..100 {
        script.tell(&TargetStats { tag: U64::new(tag) }, &[]);
    }
    script.poll();
    script.fabric.set_credits(script.meta, None);
    script.advance(config().timing.resend_delay);
    script.settle();
    let (mut whole, mut with_connections) = (0, 0);
    for packet in script.fabric.take_sent(script.meta) {
        for frame in Frames::new(&packet) {
            let frame = frame.unwrap();
            if frame.kind == TargetStatsReply::KIND {
                let (reply, _) = frame.read::<TargetStatsReply>().unwrap();
                whole += usize::from(reply.more.get() == 0);
                with_connections += usize::from(reply.connections.get() > 0);
            }
        }
    }
    assert_eq!(whole, 100, "every question has its answer");
    assert!((2..=40).contains(&with_connections), "{with_connections}");
}

#[test]
fn tickets_open_their_session_once() {
    let mut script = Script::new(true, true);
    script.open_session(11, 7);
    script.poll();
    assert_eq!(script.told(), [ready(11, 7)]);
    let mut attempt = |epoch, ticket: &[u8]| {
        let connection = script.fabric.accept();
        script.fabric.deliver(connection, &data_hello_packet(11, epoch, ticket));
        script.poll();
        let heard = script.heard(connection);
        (heard, script.fabric.is_open(connection))
    };
    let refused = |status| (vec![Heard::Refused(status)], false);
    assert_eq!(attempt(7, b"another ticket, equally long"), refused(Status::BAD_TICKET));
    assert_eq!(attempt(7, &TICKET[1..]), refused(Status::BAD_TICKET));
    assert_eq!(attempt(8, TICKET), refused(Status::BAD_TICKET));
    assert_eq!(attempt(6, TICKET), refused(Status::STALE_EPOCH));
    assert_eq!(attempt(7, TICKET), (vec![Heard::Welcome], true));
    assert_eq!(attempt(7, TICKET), refused(Status::BAD_TICKET));
    script.open_session(11, 6);
    script.poll();
    let stale = Told::Ready { session: 11, epoch: 6, status: Status::STALE_EPOCH };
    assert_eq!(script.told(), [stale]);
}

#[test]
fn a_higher_epoch_ends_queued_grants_and_waits_for_posted_ones() {
    for maps in [true, false] {
        let mut script = Script::new(maps, false);
        let host = script.host(11, 1, 1 << 20);
        script.disk.0.borrow_mut().stalled = true;
        script.disk.0.borrow_mut().entries = 2;
        // Two on the disk; the third found the queue full, the fourth never got its turn.
        let numbers: Vec<u64> = (0..4).map(|block| script.read(&host, block, 4096)).collect();
        script.settle();
        assert_eq!(script.disk.under_way(), 2);
        script.open_session(11, 2);
        script.settle();
        let told = script.told();
        let stale = |number: u64| notice(number, Status::STALE_EPOCH, 0);
        assert_eq!(told, [stale(numbers[2]), stale(numbers[3])], "and no acknowledgement");
        assert!(!script.fabric.is_open(host.connection));
        posts(&script);
        script.disk.0.borrow_mut().stalled = false;
        script.settle();
        assert_eq!(script.told(), [stale(numbers[0]), stale(numbers[1]), ready(11, 2)]);
        assert_eq!(posts(&script), [], "nothing was posted for the old epoch (H5)");
        // The new epoch works.
        let host = script.connect_host(11, 2, 1 << 20);
        script.read(&host, 1, 4096);
        script.settle();
        assert_eq!(script.heard(host.connection).len(), 1);
    }
}

#[test]
fn a_transfer_under_way_holds_up_the_acknowledgement_of_a_close() {
    let mut script = Script::new(false, true);
    let host = script.host(11, 1, 1 << 20);
    script.fabric.0.borrow_mut().hold_transfers = true;
    let number = script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(script.fabric.transfers_waiting(), 1);
    script.fabric.0.borrow_mut().linger = true;
    script.close_session(11, 1);
    script.settle();
    assert!(!script.fabric.is_open(host.connection));
    assert_eq!(script.told(), [], "the transfer may still land");
    script.fabric.complete_transfers();
    script.settle();
    // The notice was posted behind the write, and is as true as it was.
    let arrived = Heard::Arrival { status: Status::OK, length: 4096, tag: number as u8 };
    assert_eq!(script.heard(host.connection), [arrived]);
    let gone = notice(number, Status::SESSION_GONE, 0);
    assert_eq!(script.told(), [gone, Told::Closed { session: 11, epoch: 1 }]);
    assert_eq!(script.target.sessions(), 0);
    script.close_session(11, 1);
    script.poll();
    assert_eq!(script.told(), [Told::Closed { session: 11, epoch: 1 }], "idempotent");
}

#[test]
fn an_overtaken_epoch_is_told_so_at_once() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    let number = script.read(&host, 1, 4096);
    script.settle();
    script.open_session(11, 2);
    script.open_session(11, 3);
    script.close_session(11, 1);
    script.settle();
    assert_eq!(script.told(), [Told::Ready { session: 11, epoch: 2, status: Status::STALE_EPOCH }]);
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    let closed = Told::Closed { session: 11, epoch: 1 };
    let stale = notice(number, Status::STALE_EPOCH, 0);
    assert_eq!(script.told(), [stale, ready(11, 3), closed]);
    script.connect_host(11, 3, 4096);
}

#[test]
fn a_failure_after_the_cut_is_told_to_the_metadata_server_alone() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    let number = script.read(&host, 1, 4096);
    script.settle();
    script.open_session(11, 2);
    script.settle();
    script.disk.0.borrow_mut().failures = 1;
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert_eq!(script.told(), [notice(number, Status::IO, 0), ready(11, 2)]);
    let host = script.connect_host(11, 2, 4096);
    script.settle();
    assert_eq!(script.heard(host.connection), [], "no arrival of the old epoch");
    assert_eq!(script.target.stats().arrivals_dropped, 0);
}

#[test]
fn revoking_ends_what_is_queued_and_leaves_what_is_posted() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    script.disk.0.borrow_mut().entries = 1;
    let posted = script.read(&host, 1, 4096);
    let put_off = script.read(&host, 2, 4096);
    let queued = script.write(&host, 3, 4096);
    script.settle();
    for number in [posted, put_off, queued, 999] {
        script.revoke(number);
    }
    script.settle();
    let revoked = |number| notice(number, Status::REVOKED, 0);
    assert_eq!(script.told(), [revoked(put_off), revoked(queued)]);
    assert_eq!(script.heard(host.connection), []);
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert_eq!(script.told(), [Told::Retired(1), Told::Retired(2), Told::Retired(3)]);
    let tag = posted as u8;
    assert_eq!(
        script.heard(host.connection),
        [Heard::Arrival { status: Status::OK, length: 4096, tag }]
    );
    assert_eq!(script.disk.0.borrow().log.len(), 1);
}

#[test]
fn a_drain_waits_for_what_earlier_connections_posted() {
    for same_term in [true, false] {
        let mut script = Script::new(true, false);
        let host = script.host(11, 1, 1 << 20);
        script.drain(TERM);
        script.poll();
        assert_eq!(script.told(), [Told::Drained(TERM)], "nothing to wait for");
        script.disk.0.borrow_mut().stalled = true;
        script.disk.0.borrow_mut().entries = 1;
        // An unaligned read still has a copy to make when its block I/O is done.
        script.grant(&host, grant_operation::READ, 1, 100, |g| g.offset = U32::new(5));
        script.read(&host, 2, 4096);
        script.settle();
        script.fabric.break_connection(script.meta, DisconnectReason::PeerLost);
        script.settle();
        assert_eq!(script.target.grants(), 1, "the queued one is dropped");
        script.advance(Duration::from_millis(10));
        script.poll();
        let term = if same_term { TERM } else { TERM + 1 };
        script.welcome(term);
        script.drain(term);
        let fresh = script.read(&host, 3, 4096);
        script.settle();
        assert_eq!(script.told(), [], "the old one is on the disk still");
        fill(&script.disk.content(), 1);
        script.disk.0.borrow_mut().stalled = false;
        script.settle();
        // The new grant goes as usual; the old one ends without a trace.
        assert_eq!(script.told(), [Told::Drained(term), Told::Retired(fresh)]);
        assert_eq!(script.heard(host.connection).len(), 1);
        assert_eq!(script.target.grants(), 0);
    }
}

#[test]
fn what_was_posted_goes_on_while_the_back_channel_is_down() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    let number = script.grant(&host, grant_operation::READ, 1, 100, |g| g.offset = U32::new(5));
    script.settle();
    script.fabric.break_connection(script.meta, DisconnectReason::PeerLost);
    script.settle();
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    let tag = number as u8;
    let arrival = Heard::Arrival { status: Status::OK, length: 100, tag };
    assert_eq!(script.heard(host.connection), [arrival]);
}

#[test]
fn a_lost_host_ends_its_grants_in_every_state() {
    for maps in [true, false] {
        let mut script = Script::new(maps, false);
        let host = script.host(11, 1, 8 << 20);
        let other = script.host(12, 1, 1 << 20);
        script.fabric.0.borrow_mut().hold_transfers = true;
        // A read whose transfer to the host is under way (or done, where memory is mapped).
        let first = script.grant(&host, grant_operation::READ, 1, 100, |g| {
            g.offset = U32::new(5);
        });
        // A write that waits for the host's bytes (or for the disk).
        let second = script.write(&host, 9, 8192);
        script.poll();
        script.disk.0.borrow_mut().stalled = true;
        script.poll();
        // One on the disk, one posted in part, one queued.
        script.disk.0.borrow_mut().entries = 3;
        let third = script.read(&host, 20, 4096);
        let fourth = script.grant(&host, grant_operation::READ, 30, 1 << 20, |g| {
            g.offset = U32::new(7);
        });
        let fifth = script.read(&host, 3, 4096);
        script.settle();
        script.fabric.break_connection(host.connection, DisconnectReason::PeerLost);
        script.settle();
        posts(&script);
        script.disk.0.borrow_mut().stalled = false;
        script.settle();
        assert_eq!(posts(&script), [], "nothing is posted for a host that is gone");
        let told = script.told();
        for number in [first, second, third, fourth, fifth] {
            let gone = notice(number, Status::SESSION_GONE, 0);
            let done = maps && number == first;
            assert!(done || told.contains(&gone), "{maps} {number}: {told:?}");
        }
        assert_eq!(script.target.grants(), 0);
        // The neighbour does not notice.
        script.fabric.0.borrow_mut().hold_transfers = false;
        script.read(&other, 1, 4096);
        script.settle();
        assert_eq!(script.heard(other.connection).len(), 1);
        // Grants for the lost session are answered so from now on.
        let late = script.read(&host, 1, 4096);
        script.settle();
        let gone = notice(late, Status::SESSION_GONE, 0);
        assert!(script.told().contains(&gone));
    }
}

#[test]
fn repeated_and_forbidden_numbers_have_no_second_effect() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    let grant = script.make(&host, grant_operation::READ, 1, 4096);
    for _ in 0..3 {
        script.tell(&grant, &[]);
    }
    script.settle();
    script.tell(&grant, &[]);
    script.settle();
    assert_eq!(script.disk.0.borrow().log.len(), 1);
    assert_eq!(script.target.stats().grants_duplicate, 3);
    let other_term = Grant { term: U64::new(TERM - 1), number: U64::new(2), ..grant };
    script.tell(&other_term, &[]);
    script.settle();
    assert!(script.told().contains(&notice(2, Status::STALE_EPOCH, 0)));
    // Far outside the window: no metadata server does that.
    let beyond = Grant { number: U64::new(1 << 40), ..grant };
    script.tell(&beyond, &[]);
    script.settle();
    assert!(!script.fabric.is_open(script.meta));
    assert_eq!(script.disk.0.borrow().log.len(), 1);
}

#[test]
fn connecting_backs_off_and_starts_over_after_a_welcome() {
    let mut script = Script::bare(config(), true, true, 64);
    script.poll();
    let mut delays = Vec::new();
    for _ in 0..9 {
        let (_, connection) = script.last_connect();
        script.fabric.break_connection(connection, DisconnectReason::Unreachable);
        script.settle();
        let delay = script.target.deadline().since(script.now);
        delays.push(delay.as_millis() as u64);
        let attempts = script.fabric.0.borrow().connects.len();
        script.advance(delay - Duration::from_nanos(1));
        script.settle();
        assert_eq!(script.fabric.0.borrow().connects.len(), attempts, "not before its time");
        script.advance(Duration::from_nanos(1));
        script.settle();
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    script.welcome(TERM);
    script.fabric.break_connection(script.meta, DisconnectReason::PeerLost);
    script.settle();
    assert_eq!(script.target.deadline().since(script.now), Duration::from_millis(10));
}

#[test]
fn silent_refusing_and_past_metadata_servers_are_left_and_tried_again() {
    let mut script = Script::new(true, true);
    let again = |script: &mut Script| {
        script.advance(Duration::from_secs(1));
        script.settle();
        let (_, connection) = script.last_connect();
        script.fabric.connected(connection);
        script.settle();
        connection
    };
    script.fabric.break_connection(script.meta, DisconnectReason::PeerLost);
    script.settle();
    let silent = again(&mut script);
    script.advance(Duration::from_secs(4));
    script.settle();
    assert!(script.fabric.is_open(silent));
    script.advance(Duration::from_secs(1));
    script.settle();
    assert!(!script.fabric.is_open(silent));
    let refusing = again(&mut script);
    script.fabric.deliver(refusing, &packet(&Refusal::new(Status::AGAIN), &[]));
    script.settle();
    assert!(!script.fabric.is_open(refusing));
    let past = again(&mut script);
    script.fabric.deliver(past, &welcome_packet(TERM - 1, 0, 1, 16));
    script.settle();
    assert!(!script.fabric.is_open(past));
    script.advance(Duration::from_secs(1));
    script.settle();
    script.welcome(TERM);
    let host = script.host(11, 1, 4096);
    script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(script.heard(host.connection).len(), 1);
}

#[test]
fn every_reactor_gets_a_channel_and_a_stream_of_its_own() {
    let mut script = Script::bare(config(), true, false, 1024);
    script.poll();
    let (_, first) = script.last_connect();
    script.fabric.connected(first);
    script.poll();
    script.fabric.deliver(first, &welcome_packet(TERM, 0, 3, 64));
    script.settle();
    let connects = script.fabric.0.borrow().connects.clone();
    let addresses: Vec<String> = connects.iter().map(|(to, _)| to.to_string()).collect();
    assert_eq!(addresses, ["shm:///meta/0", "shm:///meta/1", "shm:///meta/2"]);
    let second = connects[1].1;
    script.fabric.connected(second);
    script.poll();
    assert_eq!(script.fabric.take_sent(second).len(), 1, "a hello");
    script.fabric.deliver(second, &welcome_packet(TERM, 1, 3, 64));
    script.meta = first;
    let host = script.host(11, 1, 1 << 20);
    let mut grant = script.make(&host, grant_operation::WRITE, 1, 4096);
    grant.number = U64::new(1);
    script.tell(&grant, &[]);
    script.meta = second;
    script.tell(&grant, &[]);
    script.settle();
    assert_eq!(script.told(), [notice(1, Status::OK, 4096)], "second reactor");
    script.meta = first;
    assert!(script.told().contains(&notice(1, Status::OK, 4096)), "first reactor");
    // A new metadata server speaks through one channel first: the other's grants are of the past.
    script.disk.0.borrow_mut().stalled = true;
    script.disk.0.borrow_mut().entries = 1;
    script.meta = second;
    for number in [2, 3] {
        grant.number = U64::new(number);
        script.tell(&grant, &[]);
    }
    script.settle();
    script.fabric.break_connection(first, DisconnectReason::PeerLost);
    script.settle();
    script.advance(Duration::from_millis(10));
    script.settle();
    let (_, next) = script.last_connect();
    script.fabric.connected(next);
    script.poll();
    script.fabric.deliver(next, &welcome_packet(TERM + 1, 0, 3, 64));
    script.settle();
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert_eq!(script.disk.0.borrow().log.len(), 3, "what was queued is not posted any more");
    grant.number = U64::new(4);
    script.tell(&grant, &[]);
    script.settle();
    assert!(script.told().contains(&notice(4, Status::STALE_EPOCH, 0)));
}

#[test]
fn shutdown_finishes_what_is_posted_and_begins_nothing() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    script.disk.0.borrow_mut().entries = 1;
    let posted = script.write(&host, 1, 4096);
    script.write(&host, 2, 4096);
    script.settle();
    let now = Now { time: script.now, wall: WallTime(0) };
    assert!(!script.target.shutdown(now));
    script.settle();
    assert!(!script.target.shutdown(now));
    let stranger = script.fabric.accept();
    script.settle();
    assert!(!script.fabric.is_open(stranger));
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert!(script.target.shutdown(now));
    assert_eq!(script.told(), [notice(posted, Status::OK, 4096)]);
    assert_eq!(script.disk.0.borrow().log.len(), 1);
    assert_eq!(script.disk.in_flight(), 0);
    assert!(!script.fabric.is_open(host.connection) && !script.fabric.is_open(script.meta));
}

#[test]
fn a_host_that_speaks_on_its_data_session_is_cut_off() {
    let mut script = Script::new(true, true);
    let host = script.host(11, 1, 1 << 20);
    script.fabric.deliver(host.connection, &packet(&Arrival::default(), &[]));
    script.settle();
    assert!(!script.fabric.is_open(host.connection));
    let number = script.read(&host, 1, 4096);
    script.settle();
    assert!(script.told().contains(&notice(number, Status::SESSION_GONE, 0)));
}
