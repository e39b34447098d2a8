//! One test per element of the claims that the design implements, named after it. Each looks at what
//! the three parties really post on their channels.

#![allow(clippy::unwrap_used)]

use gannet_client::{Operation, Outcome};
use gannet_conformance::cluster::{Cluster, Shape};
use gannet_conformance::spy::{Noted, Notes};
use gannet_proto::control::{
    Grant, Notice, Retired, TargetStats, TargetStatsReply, grant_operation,
};
use gannet_proto::data::{Arrival, DataHello};
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::operations::{
    DirectoryReply, EntryReply, HostWelcome, IoReply, StatFsReply, StatsReply, TargetReply,
};
use gannet_proto::packet::{Frames, Message, PacketWriter};
use gannet_proto::{Handle, Inode, Status};
use zerocopy::little_endian::{U16, U64};

fn root() -> Handle {
    Handle::new(Inode::ROOT)
}

fn read(file: Handle, offset: u64, length: u32, cluster: &Cluster, fill: u8) -> Operation {
    Operation::Read { file, offset, length, buffer: cluster.buffer(fill), buffer_offset: 0 }
}

/// All grants that metadata-server reactors sent in `notes`.
fn grants(notes: &[Noted]) -> Vec<Grant> {
    let packets = notes.iter().filter_map(|note| match note {
        Noted::Sent { packet, .. } => Some(packet),
        _ => None,
    });
    packets
        .flat_map(|packet| {
            Frames::new(packet)
                .flatten()
                .filter(|frame| frame.kind == Grant::KIND)
                .map(|frame| *frame.read::<Grant>().unwrap().0)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn a1_metadata_is_served_from_memory_without_data_server_traffic() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 4096, 1);
    // What the write still has to report is not the subject.
    for _ in 0..1000 {
        cluster.turn();
    }
    cluster.forget_notes();
    cluster.ok(Operation::Lookup { parent: root(), path: b"file".to_vec() });
    cluster.ok(Operation::Stat { handle: file });
    cluster.ok(Operation::Readdir { directory: root(), after: Vec::new() });
    for notes in &cluster.target_notes {
        assert_eq!(notes.take(), []);
    }
}

#[test]
fn a2_the_data_session_accepts_only_a_ticket_of_the_metadata_server() {
    let mut cluster = Cluster::new(Shape { targets: 1, ..Shape::default() });
    let file = cluster.make_file("file", 4096, 1);
    let sessions = cluster.targets[0].sessions();
    let notes = cluster.client_notes.take();
    let hello = notes.iter().find_map(|note| match note {
        Noted::Sent { packet, .. } => {
            let frames: Vec<_> = Frames::new(packet).flatten().collect();
            (frames.last()?.kind == DataHello::KIND).then(|| packet.clone())
        }
        _ => None,
    });
    let hello = hello.expect("the host opened a data session with a hello");
    let address = notes.iter().rev().find_map(|note| match note {
        Noted::Connecting(address) if address.to_string().contains("target") => {
            Some(address.clone())
        }
        _ => None,
    });
    let address = address.expect("the host connected to the data server");

    // The same hello with one bit of the ticket changed, and one with no ticket that was minted.
    let mut forged = hello.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut invented = PacketWriter::new();
    invented.push(&Hello::current(), &[]).unwrap();
    let data_hello = DataHello {
        session: U64::new(4711),
        epoch: U64::new(u64::MAX),
        ticket_bytes: U16::new(32),
        reserved: [0; 6],
    };
    invented.push(&data_hello, &[&[0; 32]]).unwrap();
    for packet in [&forged[..], invented.bytes()] {
        let answers = stranger(&mut cluster, &address, packet);
        let refusal = Frames::new(&answers).next().unwrap().unwrap();
        assert_eq!(refusal.kind, Refusal::KIND);
        let status = Status(refusal.read::<Refusal>().unwrap().0.status.get());
        assert_eq!(status, Status::BAD_TICKET);
    }
    assert_eq!(cluster.targets[0].sessions(), sessions);
    let outcome = cluster.ok(read(file, 0, 4096, &cluster, 0));
    assert_eq!(outcome, Outcome::Read { bytes: 4096, end_of_file: true });
}

/// Connects to `address` like a host, sends `packet`, and returns the first packet answered.
fn stranger(cluster: &mut Cluster, address: &gannet_fabric::Address, packet: &[u8]) -> Vec<u8> {
    use gannet_fabric::shm::{ShmFabric, ShmOptions};
    use gannet_fabric::{Event, Events, Fabric};
    let mut fabric = ShmFabric::new(ShmOptions::default()).unwrap();
    let connection = fabric.connect(address).unwrap();
    let mut events = Events::default();
    let mut answer = None;
    cluster.until("the stranger is answered", |cluster| {
        cluster.turn();
        fabric.poll(gannet_runtime::time::Time::monotonic(), &mut events);
        while let Some(event) = events.pop() {
            match event {
                Event::Connected { .. } => fabric.send(connection, packet).unwrap(),
                Event::Message { bytes, .. } => answer = Some(events.message(bytes).to_vec()),
                Event::Disconnected { reason, .. } if answer.is_none() => panic!("{reason}"),
                _ => {}
            }
        }
        events.clear();
        fabric.flush();
        answer.is_some()
    });
    answer.unwrap()
}

#[test]
fn a3_requests_are_asynchronous_and_answered_out_of_order_and_only_the_host_initiates() {
    let mut cluster = Cluster::new(Shape::default());
    // Two files, each wholly on a data server of its own.
    let files: Vec<Handle> =
        (0..8).map(|index| cluster.make_file(&format!("f{index}"), 4096, 1)).collect();
    cluster.forget_notes();
    for file in &files {
        cluster.ok(read(*file, 0, 4096, &cluster, 0));
    }
    let used = |notes: &Notes| notes.take().iter().filter(|n| matches!(n, Noted::Wrote(_))).count();
    let served: Vec<usize> = cluster.target_notes.iter().map(used).collect();
    assert!(served.iter().all(|count| *count > 0), "files lie on both data servers: {served:?}");

    // Data server 0 is slow: requests to it are overtaken by later ones to data server 1.
    cluster.stalled[0] = true;
    let requests: Vec<_> =
        files.iter().map(|file| cluster.submit(read(*file, 0, 4096, &cluster, 0))).collect();
    let mut done = Vec::new();
    let fast = served[1];
    cluster.until("the fast data server's requests complete", |cluster| {
        for (index, request) in requests.iter().enumerate() {
            if cluster.completed(*request).is_some() {
                done.push(index);
            }
        }
        done.len() == fast
    });
    cluster.stalled[0] = false;
    cluster.until("the slow one's complete", |cluster| {
        for (index, request) in requests.iter().enumerate() {
            if cluster.completed(*request).is_some() {
                done.push(index);
            }
        }
        done.len() == requests.len()
    });
    assert!(!done.is_sorted(), "answered in the order of asking: {done:?}");

    // What metadata-server reactors sent to the host is answers, nothing else.
    let answers = [
        HostWelcome::KIND,
        EntryReply::KIND,
        DirectoryReply::KIND,
        IoReply::KIND,
        TargetReply::KIND,
        StatFsReply::KIND,
        StatsReply::KIND,
    ];
    let arrivals = [Arrival::KIND, gannet_proto::data::DataWelcome::KIND];
    for kind in Notes::kinds(&cluster.client_notes.take(), false) {
        assert!(answers.contains(&kind) || arrivals.contains(&kind), "kind {kind:#x}");
    }
}

#[test]
fn a4_renaming_a_metafile_changes_nothing_on_a_data_server() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("before", 8192, 5);
    for _ in 0..1000 {
        cluster.turn();
    }
    cluster.forget_notes();
    cluster.ok(Operation::Rename {
        parent: root(),
        name: b"before".to_vec(),
        to_parent: root(),
        to_name: b"after".to_vec(),
        no_replace: false,
    });
    for notes in &cluster.target_notes {
        assert_eq!(notes.take(), []);
    }
    let outcome = cluster.ok(Operation::Lookup { parent: root(), path: b"after".to_vec() });
    let Outcome::Entry(attributes) = outcome else { panic!("{outcome:?}") };
    assert_eq!(attributes.handle, file);
    let done = cluster.run(read(file, 0, 8192, &cluster, 0));
    assert!(done.buffer.unwrap()[..8192].iter().all(|byte| *byte == 5));
}

#[test]
fn a5_any_range_of_a_metafile_resolves_to_store_and_blocks() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 200 << 10, 3);
    cluster.forget_notes();
    cluster.ok(read(file, 5000, 100_000, &cluster, 0));
    let granted: Vec<Grant> =
        cluster.metaserver_notes.iter().flat_map(|notes| grants(&notes.take())).collect();
    let covered: u32 = granted.iter().map(|grant| grant.length.get()).sum();
    assert_eq!(covered, 100_000);
    for grant in &granted {
        assert_eq!(grant.operation, grant_operation::READ);
        assert!(grant.block.get() + grant.blocks() <= 64 << 20 >> 12);
    }
    assert_eq!(granted[0].offset.get(), 5000 % 4096);
}

#[test]
fn a6_a9_the_grant_carries_session_address_key_length_and_operation() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 4096, 3);
    cluster.forget_notes();
    cluster.ok(read(file, 0, 4096, &cluster, 0));
    let notes: Vec<Vec<Noted>> = cluster.metaserver_notes.iter().map(Notes::take).collect();
    let granted: Vec<Grant> = notes.iter().flat_map(|notes| grants(notes)).collect();
    let [grant] = &granted[..] else { panic!("one grant, not {granted:?}") };
    assert_eq!(grant.session.get(), 77);
    assert_ne!(grant.epoch.get(), 0);
    assert_eq!(grant.length.get(), 4096);
    assert_eq!(grant.operation, grant_operation::READ);
    // The data server used exactly the address and key of the grant.
    let written: Vec<_> = cluster
        .target_notes
        .iter()
        .flat_map(Notes::take)
        .filter_map(|note| match note {
            Noted::Wrote(remote) => Some(remote),
            _ => None,
        })
        .collect();
    assert!(!written.is_empty());
    for remote in written {
        assert_eq!(remote.address, grant.host_address.get());
        assert_eq!(remote.key.0, grant.host_key.get());
        assert_eq!(remote.len_bytes, 4096);
    }
}

#[test]
fn a7_bytes_around_the_buffer_stay_untouched() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 100_000, 0xab);
    for (offset, length, at) in
        [(0, 4096, 4096), (1, 1, 17), (4095, 2, 8191), (99_000, 5000, 1), (0, 100_000, 12_345)]
    {
        let buffer = cluster.buffer(0x11);
        let done = cluster.run(Operation::Read { file, offset, length, buffer, buffer_offset: at });
        let Outcome::Read { bytes, .. } = done.result.unwrap() else { panic!() };
        assert_eq!(u64::from(bytes), u64::from(length).min(100_000 - offset));
        let buffer = done.buffer.unwrap();
        let (at, end) = (at as usize, (at + bytes) as usize);
        assert!(buffer[..at].iter().all(|byte| *byte == 0x11), "before, at {offset}");
        assert!(buffer[at..end].iter().all(|byte| *byte == 0xab), "inside, at {offset}");
        assert!(buffer[end..].iter().all(|byte| *byte == 0x11), "after, at {offset}");
    }
}

#[test]
fn a8_c3_payload_bypasses_the_metadata_server() {
    let mut cluster = Cluster::new(Shape::default());
    const MARK: u8 = 0xd7;
    let file = cluster.make_file("file", 64 << 10, MARK);
    let done = cluster.run(read(file, 0, 64 << 10, &cluster, 0));
    assert!(done.buffer.unwrap()[..64 << 10].iter().all(|byte| *byte == MARK));
    for notes in &cluster.metaserver_notes {
        for note in notes.take() {
            match note {
                Noted::Sent { packet, .. } | Noted::Received { packet, .. } => {
                    let run = packet.windows(8).any(|bytes| bytes.iter().all(|b| *b == MARK));
                    assert!(!run, "payload in a message of the metadata server");
                }
                Noted::Wrote(_)
                | Noted::Read(_)
                | Noted::Transferred(..)
                | Noted::Registered(_) => {
                    panic!("the metadata server moved data: {note:?}")
                }
                Noted::Connecting(_) | Noted::Accepted(_) => {}
            }
        }
    }
}

#[test]
fn b1_b3_one_id_traces_a_request_across_all_three_parties() {
    let mut cluster = Cluster::new(Shape { reactors: 1, targets: 1, ..Shape::default() });
    let file = cluster.make_file("file", 4096, 3);
    cluster.forget_notes();
    cluster.ok(read(file, 0, 4096, &cluster, 0));
    let sent = cluster.client_notes.take();
    let request = sent
        .iter()
        .find_map(|note| match note {
            Noted::Sent { packet, .. } => Frames::new(packet).flatten().find_map(|frame| {
                let (read, _) = frame.read::<gannet_proto::operations::Read>().ok()?;
                (frame.kind == gannet_proto::operations::Read::KIND).then_some(read.header)
            }),
            _ => None,
        })
        .expect("the host sent a READ");
    let granted = grants(&cluster.metaserver_notes[0].take());
    let arrived = sent
        .iter()
        .find_map(|note| match note {
            Noted::Received { packet, .. } => Frames::new(packet).flatten().find_map(|frame| {
                let (arrival, _) = frame.read::<Arrival>().ok()?;
                (frame.kind == Arrival::KIND).then_some(arrival.trailer)
            }),
            _ => None,
        })
        .expect("an arrival notice came");
    assert_eq!(arrived.request, request);
    assert_eq!(&granted[0].trailer[..16], zerocopy::IntoBytes::as_bytes(&request));
}

#[test]
fn b4_b5_the_data_server_initiates_every_transfer_and_the_host_posts_none() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 32 << 10, 3);
    cluster.ok(read(file, 0, 32 << 10, &cluster, 0));
    let moved =
        |notes: &[Noted]| notes.iter().any(|n| matches!(n, Noted::Wrote(_) | Noted::Read(_)));
    assert!(!moved(&cluster.client_notes.take()), "the host posted a transfer");
    let by_targets: Vec<Noted> = cluster.target_notes.iter().flat_map(Notes::take).collect();
    assert!(by_targets.iter().any(|note| matches!(note, Noted::Wrote(_))));
    assert!(by_targets.iter().any(|note| matches!(note, Noted::Read(_))));
}

#[test]
fn b6_b7_in_mode_metaserver_no_success_without_a_notice_and_after_it() {
    let shape = Shape { complete_by_metaserver: true, reactors: 1, targets: 1, ..Shape::default() };
    let mut cluster = Cluster::new(shape);
    let file = cluster.make_file("file", 4096, 6);
    cluster.ok(read(file, 0, 4096, &cluster, 0));
    cluster.forget_notes();
    cluster.stalled[0] = true;
    let request = cluster.submit(read(file, 0, 4096, &cluster, 0));
    for _ in 0..2000 {
        cluster.turn();
        assert!(cluster.completed(request).is_none(), "success without a notice");
    }
    cluster.stalled[0] = false;
    let mut done = None;
    cluster.until("the request completes", |cluster| {
        done = cluster.completed(request);
        done.is_some()
    });
    assert!(done.unwrap().buffer.unwrap()[..4096].iter().all(|byte| *byte == 6));
    let server = cluster.metaserver_notes[0].take();
    let order: Vec<u16> = server
        .iter()
        .flat_map(|note| {
            let sent = Notes::kinds(std::slice::from_ref(note), true);
            sent.into_iter().chain(Notes::kinds(std::slice::from_ref(note), false))
        })
        .filter(|kind| [Notice::KIND, IoReply::KIND].contains(kind))
        .collect();
    assert_eq!(order, [Notice::KIND, IoReply::KIND]);
    assert!(!Notes::kinds(&cluster.client_notes.take(), false).contains(&Arrival::KIND));
}

#[test]
fn b6_in_mode_direct_the_arrival_notice_completes_and_the_grant_is_retired() {
    let mut cluster = Cluster::new(Shape { reactors: 1, targets: 1, ..Shape::default() });
    let file = cluster.make_file("file", 4096, 6);
    cluster.ok(read(file, 0, 4096, &cluster, 0));
    cluster.forget_notes();
    let done = cluster.run(read(file, 0, 4096, &cluster, 0));
    assert!(done.buffer.unwrap()[..4096].iter().all(|byte| *byte == 6));
    let received = Notes::kinds(&cluster.client_notes.take(), false);
    assert_eq!(received, [Arrival::KIND]);
    let mut seen = Vec::new();
    cluster.until("the grant is retired", |cluster| {
        seen.extend(Notes::kinds(&cluster.metaserver_notes[0].take(), false));
        seen.contains(&Retired::KIND)
    });
}

#[test]
fn c1_c2_the_request_says_where_the_data_goes_and_the_control_channel_bypasses_the_host() {
    let mut cluster = Cluster::new(Shape::default());
    let file = cluster.make_file("file", 4096, 3);
    cluster.ok(read(file, 0, 4096, &cluster, 0));
    let noted = cluster.client_notes.take();
    let control = Grant::KIND..=TargetStatsReply::KIND;
    assert!(control.contains(&TargetStats::KIND));
    for kind in Notes::kinds(&noted, true).into_iter().chain(Notes::kinds(&noted, false)) {
        assert!(!(0x60..=0x6d).contains(&kind), "a control message {kind:#x} at the host");
    }
    // On data sessions the host sends its hello and nothing else.
    let sessions: Vec<_> = noted
        .iter()
        .filter_map(|note| match note {
            Noted::Registered(connection) => Some(*connection),
            _ => None,
        })
        .collect();
    assert!(!sessions.is_empty());
    for note in &noted {
        if let Noted::Sent { connection, packet } = note
            && sessions.contains(connection)
        {
            let kinds: Vec<u16> = Frames::new(packet).flatten().map(|frame| frame.kind).collect();
            assert_eq!(kinds, [Hello::KIND, DataHello::KIND]);
        }
    }
}

#[test]
fn d1_a_data_session_is_made_at_first_need_and_then_kept() {
    let mut cluster = Cluster::new(Shape { reactors: 1, targets: 1, ..Shape::default() });
    cluster.ok(Operation::Lookup { parent: root(), path: Vec::new() });
    assert_eq!(cluster.targets[0].sessions(), 0, "nothing was read or written");
    let file = cluster.make_file("file", 4096, 3);
    assert_eq!(cluster.targets[0].sessions(), 1);
    cluster.forget_notes();
    for _ in 0..10 {
        cluster.ok(read(file, 0, 4096, &cluster, 0));
    }
    let again = cluster.client_notes.take();
    assert!(!again.iter().any(|note| matches!(note, Noted::Connecting(_))));
    assert_eq!(cluster.targets[0].sessions(), 1);
}
