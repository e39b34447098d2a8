//! Back-pressure: full queues, stalled disks, hosts that take nothing, crowds.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use gannet_fabric::DisconnectReason;
use gannet_proto::Status;
use gannet_proto::control::{TargetStats, TargetStatsReply, grant_operation};
use gannet_proto::packet::{Frames, Message};
use gannet_runtime::poller::Poller;
use gannet_runtime::time::Time;
use support::script::{Heard, Script, Told, bytes_of, config, fill, notice};
use zerocopy::little_endian::U64;

#[test]
fn a_stalled_disk_stops_neither_sessions_nor_messages() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 8 << 20);
    script.disk.0.borrow_mut().stalled = true;
    script.disk.0.borrow_mut().entries = 4;
    for block in 0..500 {
        script.read(&host, block, 4096);
    }
    script.settle();
    assert_eq!((script.target.grants(), script.disk.under_way()), (500, 4));
    for session in 100..150 {
        let fresh = script.host(session, 1, 4096);
        script.grant(&fresh, grant_operation::ZERO, 0, 4096, |_| {});
        script.settle();
        let arrivals = script.heard(fresh.connection).len();
        assert_eq!(arrivals, 1, "what needs no disk is served");
    }
    script.tell(&TargetStats { tag: U64::new(5) }, &[]);
    script.settle();
    let packets = script.fabric.take_sent(script.meta);
    let is_reply = |frame: gannet_proto::packet::Frame<'_>| frame.kind == TargetStatsReply::KIND;
    assert!(packets.iter().any(|packet| Frames::new(packet).any(|f| is_reply(f.unwrap()))));
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert_eq!(script.heard(host.connection).len(), 500);
    // In the order of the grants.
    let log: Vec<u64> = script.disk.0.borrow().log.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(log, (0..500).map(|block| block * 4096).collect::<Vec<_>>());
}

#[test]
fn sessions_take_turns() {
    let mut script = Script::new(true, false);
    let greedy = script.host(11, 1, 1 << 20);
    let modest = script.host(12, 1, 1 << 20);
    script.disk.0.borrow_mut().entries = 4;
    script.disk.0.borrow_mut().stalled = true;
    for block in 0..200 {
        script.read(&greedy, block, 4096);
    }
    script.poll();
    script.read(&modest, 900, 4096);
    script.read(&modest, 901, 4096);
    script.poll();
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    let log: Vec<u64> = script.disk.0.borrow().log.iter().map(|(at, _)| at / 4096).collect();
    let position = |block| log.iter().position(|found| *found == block).unwrap();
    assert!(position(900) < 8 && position(901) < 10, "{log:?}");
}

#[test]
fn large_grants_are_spread_over_turns_and_let_small_ones_pass() {
    let cases = [
        (grant_operation::READ, true),
        (grant_operation::ZERO, true),
        (grant_operation::READ, false),
        (grant_operation::ZERO, false),
    ];
    for (operation, maps) in cases {
        let mut script = Script::with(config(), maps, true, 2048);
        let greedy = script.host(11, 1, 4 << 20);
        let modest = script.host(12, 1, 4 << 20);
        script.grant(&greedy, operation, 0, 4 << 20, |_| {});
        script.read(&modest, 7, 4096);
        script.poll();
        assert_eq!(script.heard(greedy.connection).len(), 0);
        assert_eq!(script.heard(modest.connection).len(), 1, "in the same turn");
        let mut turns = 1;
        while script.heard(greedy.connection).is_empty() {
            assert!(script.poll() > 0, "a turn with work left is not idle");
            turns += 1;
        }
        assert_eq!(turns, 4, "1 MiB a turn");
    }
}

#[test]
fn a_host_that_takes_no_messages_holds_up_itself_alone() {
    let mut limits = config();
    limits.limits.arrivals_max = 16;
    let mut script = Script::with(limits, true, true, 1024);
    let host = script.host(11, 1, 1 << 20);
    let other = script.host(12, 1, 1 << 20);
    script.fabric.set_credits(host.connection, Some(0));
    let numbers: Vec<u64> = (0..40).map(|block| script.read(&host, block, 4096)).collect();
    script.settle();
    assert_eq!(script.told().len(), 16, "as many are done as notices have room");
    assert!(script.target.deadline() > script.now && script.target.deadline() < Time::NEVER);
    script.read(&other, 1, 4096);
    script.settle();
    assert_eq!(script.heard(other.connection).len(), 1);
    script.fabric.set_credits(host.connection, None);
    script.settle();
    let tags: Vec<u8> = script
        .heard(host.connection)
        .into_iter()
        .map(|heard| match heard {
            Heard::Arrival { status: Status::OK, tag, .. } => tag,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tags, numbers.iter().map(|number| *number as u8).collect::<Vec<_>>());
    assert!(script.target.stats().sends_refused > 0);
}

#[test]
fn a_full_back_channel_loses_nothing() {
    let mut script = Script::new(true, true);
    let host = script.host(11, 1, 1 << 20);
    script.fabric.set_credits(script.meta, Some(0));
    for block in 0..300 {
        script.write(&host, block, 4096);
    }
    let read = script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(script.told(), []);
    script.fabric.set_credits(script.meta, None);
    script.settle();
    let mut expected: Vec<Told> = (1..=300).map(|n| notice(n, Status::OK, 4096)).collect();
    expected.extend((1..=read).map(Told::Retired));
    assert_eq!(script.told(), expected);
}

#[test]
fn full_fabric_queues_put_off_and_lose_nothing() {
    let mut script = Script::new(false, false);
    let host = script.host(11, 1, 4 << 20);
    script.fabric.0.borrow_mut().transfers_max = 2;
    script.fabric.0.borrow_mut().hold_transfers = true;
    fill(&script.disk.content(), 8);
    for block in 0..100 {
        script.grant(&host, grant_operation::READ, block, 4096, |grant| {
            grant.host_address = U64::new(host.registration.address + block * 4096);
        });
    }
    let mut rounds = 0;
    loop {
        script.settle();
        if script.fabric.complete_transfers() == 0 {
            break;
        }
        rounds += 1;
    }
    assert_eq!(rounds, 50);
    assert!(script.target.stats().posts_put_off > 0);
    assert_eq!(script.heard(host.connection).len(), 100);
    let all = 100 * 4096;
    assert!(bytes_of(&host.memory, 0, all) == bytes_of(&script.disk.content(), 0, all));
}

#[test]
fn strangers_that_say_nothing_or_come_in_crowds_are_sent_away() {
    let mut limits = config();
    limits.limits.handshakes_max = 3;
    let mut script = Script::with(limits, true, true, 64);
    let silent: Vec<_> = (0..4).map(|_| script.fabric.accept()).collect();
    script.settle();
    assert!(!script.fabric.is_open(silent[0]), "more than may wait");
    assert!(silent[1..].iter().all(|connection| script.fabric.is_open(*connection)));
    // However many there are, somebody who says who they are is let in.
    script.host(10, 1, 4096);
    assert_eq!(script.target.stats().connections_refused, 2);
    script.advance(Duration::from_secs(5));
    script.settle();
    assert!(silent.iter().all(|connection| !script.fabric.is_open(*connection)));
    script.host(11, 1, 4096);
}

#[test]
fn a_full_table_of_sessions_forgets_ended_ones_first() {
    let mut limits = config();
    limits.limits.sessions_max = 2;
    let mut script = Script::with(limits, true, true, 64);
    let first = script.host(1, 1, 4096);
    let _second = script.host(2, 1, 4096);
    script.open_session(3, 1);
    script.settle();
    let full = Told::Ready { session: 3, epoch: 1, status: Status::AGAIN };
    assert_eq!(script.told(), [full]);
    script.fabric.break_connection(first.connection, DisconnectReason::PeerLost);
    script.settle();
    let _third = script.host(3, 1, 4096);
    let late = script.read(&first, 1, 4096);
    script.settle();
    assert!(script.told().contains(&notice(late, Status::SESSION_GONE, 0)));
}
