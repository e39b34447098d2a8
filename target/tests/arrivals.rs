//! When a host is told that its bytes are there, on a fabric whose device moves them: behind the last
//! write, in the same turn, and never of bytes that did not arrive.
#![allow(clippy::unwrap_used)]

mod support;

use gannet_fabric::{ConnectionId, DisconnectReason};
use gannet_proto::Status;
use gannet_proto::control::{grant_flags, grant_operation};
use support::fabric::Post;
use support::script::{Heard, Host, Script, Told, bytes_of, config, fill, notice};
use zerocopy::little_endian::U32;

const BLOCK: usize = 4096;

/// A data server whose transfers wait for the test, with one host.
fn held(resident: bool) -> (Script, Host) {
    let mut script = Script::new(false, resident);
    let host = script.host(11, 1, 4 << 20);
    fill(&script.disk.content(), 3);
    script.fabric.0.borrow_mut().hold_transfers = true;
    script.fabric.0.borrow_mut().posts.clear();
    (script, host)
}

/// What was posted on a connection since the last call.
fn posts(script: &Script, connection: ConnectionId) -> Vec<Post> {
    let mut posts = std::mem::take(&mut script.fabric.0.borrow_mut().posts);
    posts.retain(|post| match post {
        Post::Map(on) | Post::Write(on) | Post::Read(on) | Post::Send(on) => *on == connection,
    });
    posts
}

fn arrival(number: u64, length: u32) -> Heard {
    Heard::Arrival { status: Status::OK, length, tag: number as u8 }
}

#[test]
fn the_notice_of_a_read_leaves_with_its_write() {
    for resident in [true, false] {
        let (mut script, host) = held(resident);
        let on = host.connection;
        let number = script.read(&host, 1, 4096);
        script.poll();
        if !resident {
            assert_eq!(posts(&script, on), [], "the block is on its way from the disk");
            script.poll();
        }
        assert_eq!(posts(&script, on), [Post::Write(on), Post::Send(on)], "in one turn");
        script.settle();
        assert_eq!(script.heard(on), [], "the fabric holds it back behind the write");
        assert_eq!(script.told(), [], "the blocks are still in use");
        script.fabric.complete_transfers();
        assert_eq!(script.heard(on), [arrival(number, 4096)]);
        assert!(bytes_of(&host.memory, 0, BLOCK) == bytes_of(&script.disk.content(), BLOCK, BLOCK));
        script.settle();
        assert_eq!(script.told(), [Told::Retired(number)]);
        assert_eq!(script.heard(on), [], "told once");
        let stats = script.target.stats();
        assert_eq!((stats.arrivals, stats.arrivals_chained, stats.grants_done), (1, 1, 1));
    }
}

#[test]
fn the_notices_of_a_long_batch_leave_in_portions() {
    let (mut script, host) = held(true);
    let on = host.connection;
    let length: u32 = 64 << 10;
    for at in 0..32 {
        script.grant(&host, grant_operation::READ, at * 16, length, |_| {});
    }
    for _ in 0..2 {
        assert!(script.poll() > 0, "there is more to do");
        let mut portion = vec![Post::Write(on); 16];
        portion.push(Post::Send(on));
        assert_eq!(posts(&script, on), portion, "1 MiB, and a packet that tells of it");
    }
    script.settle();
    assert_eq!(posts(&script, on), []);
    script.fabric.complete_transfers();
    assert_eq!(script.heard(on).len(), 32);
}

#[test]
fn a_grant_of_many_pieces_is_told_behind_the_last_of_them() {
    for (resident, backwards) in [(true, false), (false, false), (false, true)] {
        let (mut script, host) = held(resident);
        script.fabric.0.borrow_mut().transfers_max = 3;
        script.disk.0.borrow_mut().entries = 2;
        script.disk.0.borrow_mut().backwards = backwards;
        let on = host.connection;
        // Unaligned, and zeros behind the store's bytes.
        let length = 3 << 20;
        let number = script.grant(&host, grant_operation::READ, 1, length, |grant| {
            grant.offset = U32::new(100);
            grant.valid = U32::new(2_000_000);
        });
        let mut all = Vec::new();
        let mut heard = Vec::new();
        loop {
            script.settle();
            all.extend(posts(&script, on));
            if all.contains(&Post::Send(on)) && heard.is_empty() {
                assert!(script.fabric.transfers_waiting() > 0, "it waits for no completion");
                assert_eq!(script.told(), []);
            }
            if script.fabric.complete_some(1) == 0 {
                break;
            }
            heard.extend(script.heard(on));
            if script.fabric.transfers_waiting() > 0 {
                assert_eq!(heard, [], "writes are still under way");
            }
        }
        let writes = all.iter().filter(|post| **post == Post::Write(on)).count();
        assert!(writes >= 12, "{writes} pieces");
        assert_eq!(all.len(), writes + 1);
        assert_eq!(all.last(), Some(&Post::Send(on)));
        assert_eq!(heard, [arrival(number, length)]);
        assert_eq!(script.told(), [Told::Retired(number)]);
        let (valid, from) = (2_000_000, BLOCK + 100);
        assert!(bytes_of(&host.memory, 0, valid) == bytes_of(&script.disk.content(), from, valid));
        let zeros = bytes_of(&host.memory, valid, length as usize - valid);
        assert!(zeros.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_write_that_is_refused_takes_its_notice_with_it() {
    let (mut script, host) = held(true);
    let on = host.connection;
    let before = script.read(&host, 1, 4096);
    let refused = script.grant(&host, grant_operation::READ, 2, 4096, |grant| {
        grant.host_key = U32::new(4711);
    });
    let behind = script.read(&host, 3, 4096);
    script.settle();
    let (write, send) = (Post::Write(on), Post::Send(on));
    assert_eq!(posts(&script, on), [write, write, write, send], "one packet of notices");
    script.fabric.complete_transfers();
    script.settle();
    // The three notices are one message, behind all three writes.
    assert_eq!(script.heard(on), []);
    assert!(!script.fabric.is_open(on));
    let told = script.told();
    assert!(told.contains(&notice(refused, Status::ACCESS_REFUSED, 0)), "{told:?}");
    assert!(told.contains(&notice(behind, Status::SESSION_GONE, 0)), "{told:?}");
    // Its write was done, and so was the host told as far as this side can know; the metadata server
    // learns of the lost session.
    assert!(told.contains(&Told::Retired(before)), "{told:?}");
    assert_eq!(script.target.grants(), 0);
    assert_eq!(script.target.stats().access_refused, 1);
    script.fabric.0.borrow_mut().hold_transfers = false;
    let host = script.host(11, 2, 4 << 20);
    let number = script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(script.heard(host.connection), [arrival(number, 4096)], "the next epoch works");
}

#[test]
fn a_connection_that_breaks_takes_notices_with_it() {
    let (mut script, host) = held(true);
    let on = host.connection;
    let numbers: Vec<u64> = (0..4).map(|block| script.read(&host, block, 4096)).collect();
    script.settle();
    assert_eq!(posts(&script, on).last(), Some(&Post::Send(on)));
    script.fabric.complete_some(2);
    script.fabric.break_connection(on, DisconnectReason::PeerLost);
    script.settle();
    assert_eq!(script.heard(on), []);
    let told = script.told();
    let retired = |number: &u64| told.contains(&Told::Retired(*number));
    assert!(numbers[..2].iter().all(retired), "{told:?}");
    for number in &numbers[2..] {
        assert!(told.contains(&notice(*number, Status::SESSION_GONE, 0)), "{told:?}");
    }
    assert_eq!((script.target.grants(), script.target.stats().sessions_lost), (0, 1));
}

#[test]
fn a_full_connection_holds_notices_back_and_loses_none() {
    let (mut script, host) = held(true);
    let on = host.connection;
    script.fabric.set_credits(on, Some(0));
    let numbers: Vec<u64> = (0..5).map(|block| script.read(&host, block, 4096)).collect();
    script.settle();
    assert_eq!(posts(&script, on), [Post::Write(on); 5]);
    script.fabric.complete_some(3);
    script.settle();
    assert_eq!(script.told(), numbers[..3].iter().map(|n| Told::Retired(*n)).collect::<Vec<_>>());
    // Two writes are under way, three are done: the notices of all leave behind them.
    script.fabric.set_credits(on, None);
    script.settle();
    assert_eq!(posts(&script, on), [Post::Send(on)]);
    assert_eq!(script.heard(on), []);
    script.fabric.complete_transfers();
    script.settle();
    let expected: Vec<_> = numbers.iter().map(|number| arrival(*number, 4096)).collect();
    assert_eq!(script.heard(on), expected);
    assert_eq!(script.told(), numbers[3..].iter().map(|n| Told::Retired(*n)).collect::<Vec<_>>());
    assert_eq!(script.target.stats().arrivals_chained, 5);
}

#[test]
fn notices_that_wait_are_bounded_as_those_of_ended_grants_are() {
    let mut limits = config();
    limits.limits.arrivals_max = 8;
    let mut script = Script::with(limits, false, true, 1024);
    let host = script.host(11, 1, 1 << 20);
    script.fabric.0.borrow_mut().hold_transfers = true;
    script.fabric.set_credits(host.connection, Some(0));
    let numbers: Vec<u64> = (0..40).map(|block| script.read(&host, block, 4096)).collect();
    while script.poll() > 0 || script.fabric.complete_transfers() > 0 {}
    let told = script.told().len();
    assert!((1..=8).contains(&told), "{told} grants were executed");
    script.fabric.set_credits(host.connection, None);
    while script.poll() > 0 || script.fabric.complete_transfers() > 0 {
        script.advance(std::time::Duration::from_millis(1));
    }
    let expected: Vec<_> = numbers.iter().map(|number| arrival(*number, 4096)).collect();
    assert_eq!(script.heard(host.connection), expected);
}

#[test]
fn a_session_that_is_cut_gets_no_notice_that_still_waits() {
    let (mut script, host) = held(true);
    let on = host.connection;
    script.fabric.set_credits(on, Some(0));
    let number = script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(posts(&script, on), [Post::Write(on)]);
    script.fabric.0.borrow_mut().linger = true;
    script.open_session(11, 2);
    script.settle();
    assert_eq!(script.told(), [], "the write may still land (H5)");
    script.fabric.complete_transfers();
    script.settle();
    let stale = notice(number, Status::STALE_EPOCH, 0);
    let ready = Told::Ready { session: 11, epoch: 2, status: Status::OK };
    assert_eq!(script.told(), [stale, ready]);
    script.fabric.set_credits(on, None);
    let next = script.connect_host(11, 2, 4096);
    script.settle();
    assert_eq!(posts(&script, on), []);
    assert_eq!((script.heard(on), script.heard(next.connection)), (vec![], vec![]));
    assert_eq!(script.target.stats().arrivals_dropped, 1);
}

#[test]
fn a_grant_of_an_earlier_term_posts_neither_bytes_nor_a_notice() {
    let (mut script, host) = held(false);
    let on = host.connection;
    script.disk.0.borrow_mut().stalled = true;
    let number = script.read(&host, 1, 4096);
    script.settle();
    // The metadata server starts again.
    script.fabric.break_connection(script.meta, DisconnectReason::PeerLost);
    script.settle();
    script.advance(std::time::Duration::from_secs(1));
    script.settle();
    script.welcome(script.term + 1);
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    assert_eq!(posts(&script, on), [], "neither a write nor a notice for grant {number} (H5)");
    assert_eq!(script.target.grants(), 0);
}

#[test]
fn the_metadata_server_is_told_of_placed_bytes_only() {
    for resident in [true, false] {
        let (mut script, host) = held(resident);
        let on = host.connection;
        let notify = |grant: &mut gannet_proto::control::Grant| {
            grant.flags = grant_flags::NOTIFY_METASERVER;
        };
        let number = script.grant(&host, grant_operation::READ, 1, 8192, notify);
        script.settle();
        assert_eq!(posts(&script, on), [Post::Write(on)], "no notice to the host");
        assert_eq!(script.told(), []);
        script.fabric.complete_transfers();
        assert_eq!(script.told(), []);
        script.settle();
        assert_eq!(script.told(), [notice(number, Status::OK, 8192)]);
        // Refused, it is told of nothing placed.
        let number = script.grant(&host, grant_operation::READ, 1, 8192, |grant| {
            notify(grant);
            grant.host_key = U32::new(4711);
        });
        script.settle();
        script.fabric.complete_transfers();
        script.settle();
        assert_eq!(script.told(), [notice(number, Status::ACCESS_REFUSED, 0)]);
        assert_eq!(script.heard(on), []);
    }
}

#[test]
fn a_piece_that_cannot_be_read_is_told_once_and_at_the_end() {
    let (mut script, host) = held(false);
    let on = host.connection;
    script.disk.0.borrow_mut().entries = 1;
    script.disk.0.borrow_mut().backwards = true;
    let number = script.read(&host, 1, 1 << 20);
    script.poll();
    script.poll();
    // The first piece is on its way to the host, the next one fails.
    assert_eq!(posts(&script, on), [Post::Write(on)]);
    script.disk.0.borrow_mut().failures = 1;
    script.settle();
    assert_eq!(posts(&script, on), [], "neither another piece nor a notice");
    assert_eq!(script.told(), []);
    script.fabric.complete_transfers();
    script.settle();
    let failed = Heard::Arrival { status: Status::IO, length: 0, tag: number as u8 };
    assert_eq!(script.heard(on), [failed]);
    assert_eq!(script.told(), [notice(number, Status::IO, 0)]);
}
