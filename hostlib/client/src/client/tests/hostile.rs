//! Servers that break the protocol: errors, never a panic, and never a wrong buffer touched.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_proto::Status;
use gannet_proto::data::Arrival;
use gannet_proto::operations::{
    DirectoryReply, EntryReply, HostWelcome, IoReply, StatFsReply, StatsReply, TargetReply,
};
use gannet_proto::packet::Message;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::peer::{Asked, Cluster, arrival, file, header_of, packet};
use crate::error::ErrorKind;
use crate::operation::Operation;

#[test]
fn impossible_arrivals_end_the_data_session_and_complete_nothing() {
    let change: [fn(&mut Arrival); 6] = [
        |a| a.trailer.part = U16::new(2),
        |a| a.trailer.parts = U16::new(257),
        |a| a.trailer.total_bytes = U32::new(101),
        |a| a.trailer.request.attempt = U32::ZERO,
        |a| a.trailer.request.shard = U16::new(64),
        |a| a.trailer.request.slot = U16::new(256),
    ];
    for change in change {
        let mut cluster = Cluster::new();
        cluster.warm_up(&[1]);
        let read = cluster.read(file(0), 0, 100);
        cluster.client.submit(read, 1).unwrap();
        cluster.settle();
        let header = header_of(&cluster.next());
        let mut bad = arrival(header, (0, 2), 100, Status::OK);
        change(&mut bad);
        let session = cluster.target(1);
        cluster.send(session, &bad, &[]);
        cluster.pass_stepwise(Duration::from_secs(1));
        assert!(cluster.completions.is_empty(), "{bad:?}");
        assert_eq!(cluster.client.counters().protocol_errors, 1, "{bad:?}");
        assert_ne!(cluster.target(1), session);
        assert_eq!(header_of(&cluster.next()).attempt.get(), 2);
    }
}

#[test]
fn parts_that_contradict_each_other_end_the_data_session() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.arrive(1, header, (0, 2), 100);
    cluster.arrive(1, header, (1, 3), 100);
    cluster.pass_stepwise(Duration::from_secs(1));
    assert!(cluster.completions.is_empty());
    let second = header_of(&cluster.next());
    assert_eq!(second.attempt.get(), 2);
    cluster.arrive(1, second, (0, 1), 100);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok(), "parts count per attempt");
}

#[test]
fn replies_that_do_not_fit_the_request_fail_it() {
    let mut cluster = Cluster::new();
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.client.submit(Operation::Stat { handle: file(0) }, 2).unwrap();
    let directory = file(0);
    cluster.client.submit(Operation::Readdir { directory, after: Vec::new() }, 3).unwrap();
    cluster.settle();
    let headers =
        [header_of(&cluster.next()), header_of(&cluster.next()), header_of(&cluster.next())];
    cluster.answer_io(headers[0], Status::OK, 101);
    cluster.answer_io(headers[1], Status::OK, 1);
    let header = headers[2].reply(Status::OK);
    cluster.send(cluster.meta(0), &DirectoryReply { header, ..DirectoryReply::default() }, &[]);
    cluster.settle();
    assert_eq!(cluster.completions.len(), 3);
    for done in &cluster.completions {
        let kind = done.result.as_ref().unwrap_err().kind;
        assert!(matches!(kind, ErrorKind::Protocol(_)), "{kind:?}");
    }
}

/// Packets of every kind, cut short at every length and with random bytes: whatever happens, the
/// client goes on and the requests under way complete once a server speaks properly again.
#[test]
fn garbage_never_panics_and_is_recovered_from() {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    for round in 0..400_u64 {
        let read = cluster.read(file(0), 0, 100);
        cluster.client.submit(read, round).unwrap();
        cluster.client.submit(Operation::Stats { reactor: 0, targets: true }, round).unwrap();
        cluster.client.submit(Operation::Stat { handle: file(0) }, round).unwrap();
        cluster.pass_stepwise(Duration::from_secs(1));
        let mut headers = Vec::new();
        while let Some((_, asked)) = cluster.try_next() {
            headers.push(header_of(&asked));
        }
        let header = headers[(random() % 3) as usize % headers.len()].reply(Status::OK);
        let whole = match random() % 8 {
            0 => packet(&IoReply { header, ..IoReply::default() }, &[&[0; 64]]),
            1 => packet(&EntryReply { header, ..EntryReply::default() }, &[&[0; 64]]),
            2 => packet(&DirectoryReply { header, ..DirectoryReply::default() }, &[&[0; 64]]),
            3 => packet(&StatsReply { header, ..StatsReply::default() }, &[&[0; 64]]),
            4 => packet(&TargetReply { header, ..TargetReply::default() }, &[&[0; 64]]),
            5 => packet(&StatFsReply { header, ..StatFsReply::default() }, &[]),
            6 => packet(&HostWelcome::default(), &[&[0; 64]]),
            _ => packet(&arrival(header.request, (0, 1), 100, Status::OK), &[]),
        };
        let mut bytes = whole;
        for _ in 0..random() % 4 {
            let at = (random() % bytes.len() as u64) as usize;
            bytes[at] = random() as u8;
        }
        bytes.truncate((random() % (bytes.len() as u64 + 1)) as usize + 1);
        let to = if random() % 2 == 0 { cluster.meta(0) } else { cluster.target(1) };
        cluster.fabric.world().deliver(to, &bytes);
        cluster.pass_stepwise(Duration::from_secs(1));
        let mut turns = 0;
        let mut asked_again = headers;
        while cluster.client.outstanding() > 0 {
            for header in asked_again.drain(..) {
                // A request to the session, or a slot: each in the way that fits it.
                let reply = header.reply(Status::IO);
                cluster.send(
                    cluster.meta(0),
                    &IoReply { header: reply, ..IoReply::default() },
                    &[],
                );
            }
            cluster.pass_stepwise(Duration::from_secs(1));
            while let Some((_, asked)) = cluster.try_next() {
                if !matches!(asked, Asked::Cancel(_)) {
                    asked_again.push(header_of(&asked));
                }
            }
            turns += 1;
            assert!(turns < 100, "round {round}: {:?}", cluster.client);
        }
        cluster.settle();
        assert_eq!(cluster.completions.drain(..).count(), 3, "round {round}");
    }
    assert!(cluster.client.counters().protocol_errors > 100);
    assert_eq!(cluster.arena.available(), cluster.arena.capacity());
}

#[test]
fn broken_greetings_are_tried_again_until_the_time_is_over() {
    let mut cluster = Cluster::new();
    cluster.client.submit(Operation::Stat { handle: file(0) }, 1).unwrap();
    let mut greetings = 0;
    let begin = cluster.now;
    while cluster.completions.is_empty() {
        cluster.client.poll(cluster.now, &mut cluster.completions);
        let sent: Vec<_> = cluster.fabric.world().sent.drain(..).collect();
        for (connection, _hello) in sent {
            greetings += 1;
            let mut bytes = packet(&HostWelcome::default(), &[]);
            bytes.truncate(8 + greetings % HostWelcome::default().as_bytes().len());
            bytes[2..4].copy_from_slice(&HostWelcome::KIND.to_le_bytes());
            let length = bytes.len() as u16;
            bytes[..2].copy_from_slice(&length.to_le_bytes());
            cluster.fabric.world().deliver(connection, &bytes);
        }
        if cluster.completions.is_empty() && cluster.fabric.world().inbox.is_empty() {
            cluster.now = cluster.client.deadline().max(cluster.now);
        }
        let passed = cluster.now.since(begin);
        assert!(passed < Duration::from_secs(40), "{passed:?}, {greetings}: {:?}", cluster.client);
    }
    assert!(greetings > 20, "{greetings}");
    let kind = cluster.completions.pop().unwrap().result.unwrap_err().kind;
    assert!(matches!(kind, ErrorKind::MetaserverLost { .. }));
}
