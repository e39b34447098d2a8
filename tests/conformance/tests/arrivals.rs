//! Order of data and notices between the real roles, where one-sided transfers move the bytes.

#![allow(clippy::unwrap_used)]

use gannet_client::{Operation, Outcome};
use gannet_conformance::cluster::{Cluster, Shape};
use gannet_conformance::spy::Noted;
use gannet_fabric::{ConnectionId, TransferStatus};
use gannet_proto::data::Arrival;
use gannet_proto::packet::{Frames, Message};

/// What a data server did for one read.
#[derive(Debug, PartialEq, Eq)]
enum Did {
    Write,
    Tell(ConnectionId),
    Complete,
}

fn doings(notes: Vec<Noted>) -> Vec<Did> {
    let arrival = |packet: &[u8]| Frames::new(packet).flatten().any(|f| f.kind == Arrival::KIND);
    notes
        .into_iter()
        .filter_map(|note| match note {
            Noted::Wrote(_) => Some(Did::Write),
            Noted::Sent { connection, packet } if arrival(&packet) => Some(Did::Tell(connection)),
            Noted::Transferred(_, status) => {
                assert_eq!(status, TransferStatus::Done);
                Some(Did::Complete)
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_read_is_told_behind_its_last_write_and_before_its_completion() {
    let shape = Shape { reactors: 1, targets: 1, maps: false, ..Shape::default() };
    let mut cluster = Cluster::new(shape);
    let file = cluster.make_file("file", 256 << 10, 0x5d);
    for (offset, length, at) in [(0, 4096, 0), (1, 1, 17), (100, 200_000, 5), (0, 256 << 10, 0)] {
        for _ in 0..100 {
            cluster.turn();
        }
        cluster.forget_notes();
        let buffer = cluster.buffer(0x11);
        let done = cluster.run(Operation::Read { file, offset, length, buffer, buffer_offset: at });
        let bytes = match done.result.unwrap() {
            Outcome::Read { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(bytes, length);
        let buffer = done.buffer.unwrap();
        let (start, end) = (at as usize, (at + length) as usize);
        assert!(buffer[start..end].iter().all(|byte| *byte == 0x5d), "{length} at {offset}");
        assert!(buffer[..start].iter().chain(&buffer[end..]).all(|byte| *byte == 0x11));
        let did = doings(cluster.target_notes[0].take());
        let tell = did.iter().position(|did| matches!(did, Did::Tell(_))).unwrap();
        assert!(tell > 0 && did[..tell].iter().all(|did| *did == Did::Write), "{did:?}");
        assert!(did[tell + 1..].iter().all(|did| *did == Did::Complete), "{did:?}");
    }
    assert!(cluster.targets[0].stats().arrivals_chained >= 4);
}

#[test]
fn the_metadata_server_completes_a_read_after_its_writes_only() {
    let shape = Shape { reactors: 1, targets: 1, maps: false, complete_by_metaserver: true };
    let mut cluster = Cluster::new(shape);
    let file = cluster.make_file("file", 64 << 10, 0x5d);
    cluster.forget_notes();
    let buffer = cluster.buffer(0x11);
    let (offset, length, buffer_offset) = (0, 64 << 10, 0);
    let request = cluster.submit(Operation::Read { file, offset, length, buffer, buffer_offset });
    let mut completed = None;
    cluster.until("the read completes", |cluster| {
        completed = cluster.completed(request);
        completed.is_some()
    });
    let buffer = completed.unwrap().buffer.unwrap();
    assert!(buffer[..64 << 10].iter().all(|byte| *byte == 0x5d));
    let did = doings(cluster.target_notes[0].take());
    assert_eq!(did, [Did::Write, Did::Complete], "and no notice to the host");
    assert_eq!(cluster.targets[0].stats().arrivals_chained, 0);
}
