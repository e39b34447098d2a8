//! The ways in which all goes well, and the bounds.
#![allow(clippy::unwrap_used)]

use gannet_proto::operations::{
    DirectoryEntry, DirectoryReply, EntryReply, StatFsReply, StatsReply, connection_kind, io_flags,
    name_flags, name_operation,
};
use gannet_proto::stats::StatsTail;
use gannet_proto::{Handle, Inode, SessionId, ShardId, Status, TargetId};
use gannet_runtime::counting_allocator::allocations_on_this_thread;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::peer::{Asked, Cluster, attributes, file, header_of, options};
use crate::counters::{Counters, Peer, PeerConnection, Role};
use crate::error::ErrorKind;
use crate::identities::{Identity, IdentityId};
use crate::operation::{Operation, Outcome, Ownership, XattrMode};
use crate::options::ClientOptions;

fn stat(shard: u16) -> Operation {
    Operation::Stat { handle: file(shard) }
}

#[test]
fn a_path_is_resolved_over_shards() {
    let mut cluster = Cluster::new();
    let path = b"a/b/c".to_vec();
    cluster.client.submit(Operation::Lookup { parent: file(3), path }, 1).unwrap();
    cluster.settle();
    let hops = [(&b"a/b/c"[..], 3, 2, 9), (b"b/c", 9, 3, 3), (b"", 3, 0, 3)];
    for (hop, (rest, shard, consumed, next)) in hops.into_iter().enumerate() {
        let Asked::Name(request, name, _) = cluster.next() else { panic!("a lookup") };
        assert_eq!(request.operation.get(), name_operation::LOOKUP);
        assert_eq!((name.as_slice(), request.header.shard.get()), (rest, shard));
        let found = Handle::new(Inode::new(ShardId(next), 40 + hop as u64));
        let whole = if hop == 2 {
            attributes(found)
        } else {
            gannet_proto::operations::Attributes { handle: found, ..Default::default() }
        };
        let header = request.header.reply(Status::OK);
        let consumed = U16::new(consumed);
        let reply = EntryReply { header, attributes: whole, consumed, ..EntryReply::default() };
        cluster.send(cluster.meta(0), &reply, &[]);
        cluster.settle();
    }
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.token, 1);
    let Ok(Outcome::Entry(found)) = done.result else { panic!("{:?}", done.result) };
    assert_eq!(found.handle.inode().number(), 42);
}

#[test]
fn a_path_that_makes_no_progress_fails() {
    let mut cluster = Cluster::new();
    let path = b"a/b".to_vec();
    cluster.client.submit(Operation::Lookup { parent: file(3), path }, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    let attributes = gannet_proto::operations::Attributes { handle: file(3), ..Default::default() };
    let header = header.reply(Status::OK);
    cluster.send(cluster.meta(0), &EntryReply { header, attributes, ..Default::default() }, &[]);
    cluster.settle();
    let error = cluster.completions.pop().unwrap().result.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Protocol(_)), "{error}");
}

#[test]
fn replies_may_come_in_any_order() {
    let mut cluster = Cluster::new();
    for token in 0..8 {
        cluster.client.submit(stat(1), token).unwrap();
    }
    cluster.settle();
    let mut headers: Vec<_> = (0..8).map(|_| header_of(&cluster.next())).collect();
    headers.reverse();
    for header in headers {
        cluster.answer_entry(header, Status::OK);
    }
    cluster.settle();
    let tokens: Vec<u64> = cluster.completions.iter().map(|done| done.token).collect();
    assert_eq!(tokens, [7, 6, 5, 4, 3, 2, 1, 0]);
    assert!(cluster.completions.iter().all(|done| done.result.is_ok()));
}

#[test]
fn requests_wait_for_slots_and_each_slot_counts_on() {
    let mut cluster = Cluster::new();
    for token in 0..20 {
        cluster.client.submit(stat(1), token).unwrap();
    }
    cluster.settle();
    let mut seen = Vec::new();
    while let Some((_, asked)) = cluster.try_next() {
        let header = header_of(&asked);
        seen.push((header.slot.get(), header.sequence.get()));
        cluster.answer_entry(header, Status::OK);
        cluster.settle();
    }
    assert_eq!(cluster.completions.len(), 20);
    assert!(seen[..8].iter().all(|(_, sequence)| *sequence == 1), "eight slots at first");
    for slot in 0..8 {
        let sequences: Vec<u64> =
            seen.iter().filter(|seen| seen.0 == slot).map(|seen| seen.1).collect();
        assert!(sequences.iter().copied().eq(1..=sequences.len() as u64), "{sequences:?}");
    }
    // Each of the twelve waited once for the channel and was looked at again once per slot.
    assert!(cluster.client.counters().wakes <= 20 + 12, "{:?}", cluster.client.counters());
}

#[test]
fn waiting_requests_are_not_looked_at_in_each_turn() {
    let mut cluster = Cluster::new();
    for token in 0..100 {
        cluster.client.submit(stat(1), token).unwrap();
    }
    cluster.settle();
    let wakes = cluster.client.counters().wakes;
    for _ in 0..100 {
        cluster.turn();
    }
    assert_eq!(cluster.client.counters().wakes, wakes);
    assert_eq!(cluster.client.deadline(), gannet_runtime::time::Time::NEVER);
}

#[test]
fn the_number_of_requests_is_bounded_here_and_by_the_server() {
    let mut cluster = Cluster::with(ClientOptions { requests_max: 6, ..options() }, false);
    cluster.requests_max = 3;
    for token in 0..6 {
        cluster.client.submit(stat(token as u16), token).unwrap();
    }
    let refused = cluster.client.submit(stat(0), 9).unwrap_err();
    assert_eq!(refused.error.kind, ErrorKind::Busy { limit: 6 });
    assert_eq!(refused.error.errno(), 11);
    cluster.settle();
    let headers: Vec<_> =
        std::iter::from_fn(|| cluster.try_next()).map(|(_, asked)| header_of(&asked)).collect();
    assert_eq!(headers.len(), 3, "as many as the server takes");
    cluster.answer_entry(headers[1], Status::OK);
    cluster.settle();
    assert!(cluster.try_next().is_some() && cluster.try_next().is_none());
    assert!(cluster.client.submit(stat(0), 9).is_ok());
}

#[test]
fn a_fabric_without_credits_loses_nothing() {
    let mut cluster = Cluster::with(ClientOptions { requests_max: 2000, ..options() }, false);
    cluster.slots = 256;
    cluster.client.submit(stat(0), 0).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_entry(header, Status::OK);
    cluster.settle();
    cluster.fabric.world().credits = 0;
    for token in 1..=2000 {
        cluster.client.submit(stat(token as u16 % 64), token).unwrap();
    }
    for _ in 0..5 {
        cluster.turn();
    }
    assert!(cluster.try_next().is_none());
    assert!(cluster.client.deadline() > cluster.now, "no spinning while blocked");
    let mut answered = 0;
    while answered < 2000 {
        cluster.fabric.world().credits = 1;
        cluster.turn();
        while let Some((_, asked)) = cluster.try_next() {
            cluster.answer_entry(header_of(&asked), Status::OK);
            answered += 1;
        }
    }
    cluster.fabric.world().credits = usize::MAX;
    cluster.settle();
    let mut tokens: Vec<u64> = cluster.completions.iter().map(|done| done.token).collect();
    tokens.sort_unstable();
    assert!(tokens.into_iter().eq(0..=2000));
}

#[test]
fn a_stale_set_opens_data_sessions_and_registers_before_the_resend() {
    let mut cluster = Cluster::new();
    let read = cluster.read(file(0), 4096, 5000);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let first = header_of(&cluster.next());
    cluster.stale_set(first, &[4, 9]);
    cluster.settle();

    let order: Vec<Asked> = cluster.asked.drain(..).map(|(_, asked)| asked).collect();
    let position = |wanted: fn(&Asked) -> bool| order.iter().rposition(wanted).unwrap();
    let registered = position(|asked| matches!(asked, Asked::Register));
    let resent = position(|asked| matches!(asked, Asked::Read(_)));
    assert!(registered < resent, "{order:?}");
    let hello = order.iter().find_map(|asked| match asked {
        Asked::DataHello(hello, ticket) => Some((hello.session.get(), ticket.clone())),
        _ => None,
    });
    assert_eq!(hello, Some((77, b"ticket".to_vec())));
    let Asked::Read(read) = &order[resent] else { panic!("a read") };
    let second = read.header;
    assert!(second.sequence > first.sequence || second.slot != first.slot, "a new request");
    assert_eq!(second.attempt.get(), 1);
    let epochs: Vec<u64> = cluster.told.iter().map(|told| told.epoch.get()).collect();
    assert_eq!(epochs, [1, 2]);

    // Data lands, and its notices come in the other order, one of them twice.
    let view = cluster.view(read.buffer);
    view.copy_in(read.buffer.offset.get() as usize, &[8; 5000]);
    cluster.arrive(9, second, (1, 2), 5000);
    cluster.arrive(9, second, (1, 2), 5000);
    cluster.settle();
    assert!(cluster.completions.is_empty());
    cluster.arrive(4, second, (0, 2), 5000);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result, Ok(Outcome::Read { bytes: 5000, end_of_file: false }));
    assert!(done.buffer.unwrap()[..5000].iter().all(|byte| *byte == 8));
    assert_eq!(cluster.client.counters().late_arrivals, 1);

    // The next read goes straight out, and so does a write of another buffer of the arena.
    let (read, write) = (cluster.read(file(0), 0, 10), cluster.write(file(0), 0, 10));
    cluster.client.submit(read, 2).unwrap();
    cluster.client.submit(write, 3).unwrap();
    cluster.turn();
    assert!(matches!(cluster.asked[0].1, Asked::Read(_)));
    assert!(matches!(cluster.asked[1].1, Asked::Write(_)));
}

#[test]
fn opening_a_file_saves_the_stale_set() {
    let mut cluster = Cluster::new();
    cluster.client.submit(Operation::Open { file: file(0) }, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next()).reply(Status::OK);
    let (attributes, targets) = (attributes(file(0)), U16::new(1));
    let reply = EntryReply { header, attributes, targets, ..EntryReply::default() };
    cluster.send(cluster.meta(0), &reply, &[&6_u32.to_le_bytes()]);
    cluster.settle();
    let write = cluster.write(file(0), 0, 10);
    cluster.client.submit(write, 2).unwrap();
    cluster.settle();
    assert_eq!(cluster.told.len(), 1, "registered before the first request");
    let header = header_of(&cluster.next());
    cluster.answer_io(header, Status::OK, 10);
    cluster.settle();
    let outcome = cluster.completions.pop().unwrap().result.unwrap();
    assert_eq!(outcome, Outcome::Write { bytes: 10, offset: 0, size: 0 });
}

#[test]
fn holes_are_zeroed_by_the_host_and_nothing_else_is_touched() {
    let mut cluster = Cluster::new();
    let mut buffer = cluster.buffer();
    buffer.fill(7);
    let (offset, length) = (0, 100);
    let read = Operation::Read { file: file(0), offset, length, buffer, buffer_offset: 50 };
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_io(header, Status::OK, 60);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result, Ok(Outcome::Read { bytes: 60, end_of_file: false }));
    let buffer = done.buffer.unwrap();
    assert!(buffer[..50].iter().chain(&buffer[110..]).all(|byte| *byte == 7));
    assert!(buffer[50..110].iter().all(|byte| *byte == 0));
}

#[test]
fn the_metadata_server_completes_reads_if_it_is_asked_to() {
    let options = ClientOptions { complete_by_metaserver: true, ..options() };
    let mut cluster = Cluster::with(options, false);
    let mut buffer = cluster.buffer();
    buffer.fill(7);
    let read = Operation::Read { file: file(0), offset: 0, length: 100, buffer, buffer_offset: 0 };
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let Asked::Read(read) = cluster.next() else { panic!("a read") };
    assert_eq!(read.flags.get(), io_flags::COMPLETE_BY_METASERVER);
    cluster.stale_set(read.header, &[1]);
    cluster.settle();
    let Asked::Read(read) = cluster.next() else { panic!("a read") };
    cluster.view(read.buffer).copy_in(read.buffer.offset.get() as usize, &[9; 100]);
    cluster.answer_io(read.header, Status::OK, 100);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result, Ok(Outcome::Read { bytes: 100, end_of_file: false }));
    let buffer = done.buffer.unwrap();
    assert!(buffer[..100].iter().all(|byte| *byte == 9), "what was placed stays");
    assert!(buffer[100..].iter().all(|byte| *byte == 7));
}

#[test]
fn a_read_fails_with_the_first_failed_part_once_all_are_in() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    let failed = super::peer::arrival(header, (0, 2), 100, Status::IO);
    cluster.send(cluster.target(1), &failed, &[]);
    cluster.settle();
    assert!(cluster.completions.is_empty(), "the other part is still under way");
    cluster.arrive(1, header, (1, 2), 100);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result.unwrap_err().kind, ErrorKind::Status(Status::IO));
    assert!(done.buffer.is_some());
}

#[test]
fn directories_space_and_counters() {
    let mut cluster = Cluster::new();
    cluster.reactors = 2;
    let directory = file(0);
    let after = b"m".to_vec();
    cluster.client.submit(Operation::Readdir { directory, after }, 1).unwrap();
    cluster.settle();
    let Asked::Name(request, after, _) = cluster.next() else { panic!("a readdir") };
    assert_eq!((after.as_slice(), request.reply_bytes_max.get() > 4096), (&b"m"[..], true));
    let mut tail = Vec::new();
    for name in [&b"n"[..], b"oo"] {
        let (inode, name_bytes) = (U64::new(9), U16::new(name.len() as u16));
        let entry = DirectoryEntry { inode, name_bytes, ..DirectoryEntry::default() };
        tail.extend(entry.as_bytes());
        tail.extend(name);
    }
    let (header, count) = (request.header.reply(Status::OK), U16::new(2));
    let reply = DirectoryReply { header, count, end: U16::new(1), ..DirectoryReply::default() };
    cluster.send(cluster.meta(0), &reply, &[&tail]);
    cluster.settle();
    let outcome = cluster.completions.pop().unwrap().result.unwrap();
    let Outcome::Directory(listing) = outcome else { panic!("{outcome:?}") };
    let names: Vec<&[u8]> = listing.entries.iter().map(|entry| entry.name.as_slice()).collect();
    assert_eq!((names, listing.end), (vec![&b"n"[..], b"oo"], true));

    cluster.client.submit(Operation::StatFs { reactor: 1 }, 2).unwrap();
    cluster.client.submit(Operation::StatFs { reactor: 2 }, 3).unwrap();
    cluster.settle();
    let (connection, asked) = cluster.next_on();
    assert_eq!(connection, cluster.meta(1));
    let header = header_of(&asked).reply(Status::OK);
    let reply = StatFsReply { header, inodes: U64::new(5), ..StatFsReply::default() };
    cluster.send(connection, &reply, &[]);
    cluster.settle();
    let no_reactor = cluster.completions.remove(0);
    assert!(matches!(no_reactor.result.unwrap_err().kind, ErrorKind::Invalid(_)));
    let outcome = cluster.completions.pop().unwrap().result.unwrap();
    assert!(matches!(outcome, Outcome::Space(space) if space.inodes == 5));

    cluster.client.submit(Operation::Stats { reactor: 0, targets: true }, 4).unwrap();
    cluster.settle();
    let (connection, asked) = cluster.next_on();
    let header = header_of(&asked).reply(Status::OK);
    // The data server's in two parts, and with the connections that it has.
    for (role, part, last) in [(1, 0, 0), (1, 1, 0), (0, 0, 1)] {
        let mut tail = StatsTail::new();
        if part == 0 {
            tail.push_counter("reads", 3).unwrap();
        }
        let kind = if role == 1 { connection_kind::DATA_SESSION } else { connection_kind::TARGET };
        tail.push_connection(kind, 40 + part, "tcp", "10.0.0.1").unwrap();
        let reply = StatsReply {
            header,
            role: U16::new(role),
            index: U32::new(8),
            count: U16::new(tail.counters()),
            last: U16::new(last),
            connections: U16::new(tail.connections()),
            ..StatsReply::default()
        };
        cluster.send(connection, &reply, &[tail.bytes()]);
        cluster.settle();
    }
    let outcome = cluster.completions.pop().unwrap().result.unwrap();
    let Outcome::Counters(counters) = outcome else { panic!("{outcome:?}") };
    let over_tcp =
        |peer| PeerConnection { peer, fabric: "tcp".to_owned(), at: "10.0.0.1".to_owned() };
    let values = vec![("reads".to_owned(), 3)];
    let data = Counters {
        role: Role::Target(8),
        values: values.clone(),
        connections: [40, 41].map(|id| over_tcp(Peer::DataSession(SessionId(id)))).into(),
    };
    let connections = vec![over_tcp(Peer::Target(TargetId(40)))];
    let meta = Counters { role: Role::Metaserver(8), values, connections };
    assert_eq!(counters, [data, meta]);
}

/// A hole is answered by the metadata server without anybody touching the buffer.
#[test]
fn a_hole_is_zeros_also_when_the_metadata_server_completes() {
    let options = ClientOptions { complete_by_metaserver: true, ..options() };
    let mut cluster = Cluster::with(options, false);
    let mut buffer = cluster.buffer();
    buffer.fill(7);
    let (offset, length) = (0, 100);
    let read = Operation::Read { file: file(0), offset, length, buffer, buffer_offset: 50 };
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_io(header, Status::OK, 100);
    cluster.settle();
    let buffer = cluster.completions.pop().unwrap().buffer.unwrap();
    assert!(buffer[50..150].iter().all(|byte| *byte == 0));
    assert!(buffer[..50].iter().chain(&buffer[150..]).all(|byte| *byte == 7));
}

#[test]
fn a_hello_names_the_session_and_a_rename_both_names() {
    let mut cluster = Cluster::new();
    let (parent, to_parent) = (file(0), file(1));
    let (name, to_name) = (b"from".to_vec(), b"to".to_vec());
    let rename = Operation::Rename { parent, name, to_parent, to_name, no_replace: true };
    cluster.client.submit(rename, 1).unwrap();
    cluster.settle();
    let (_, Asked::Hello(hello)) = cluster.asked.pop_front().unwrap() else { panic!("a hello") };
    assert_eq!((hello.session.get(), hello.instance.get(), hello.slots.get()), (77, 99, 8));
    let Asked::Name(request, name, to_name) = cluster.next() else { panic!("a rename") };
    assert_eq!((name.as_slice(), to_name.as_slice()), (&b"from"[..], &b"to"[..]));
    assert_eq!((request.to_parent, request.flags.get()), (to_parent, 2));
}

#[test]
fn a_link_names_its_file_and_an_exchange_both_names() {
    let mut cluster = Cluster::new();
    let (parent, to_parent) = (file(0), file(1));
    let (name, to_name) = (b"one".to_vec(), b"other".to_vec());
    let exchange = Operation::Exchange { parent, name: name.clone(), to_parent, to_name };
    cluster.client.submit(exchange, 1).unwrap();
    cluster.client.submit(Operation::Link { file: to_parent, parent, name }, 2).unwrap();
    cluster.settle();
    cluster.asked.pop_front().unwrap();
    let Asked::Name(request, name, to_name) = cluster.next() else { panic!("an exchange") };
    assert_eq!((name.as_slice(), to_name.as_slice()), (&b"one"[..], &b"other"[..]));
    assert_eq!(request.operation.get(), name_operation::RENAME);
    assert_eq!((request.to_parent, request.flags.get()), (to_parent, name_flags::EXCHANGE));
    let Asked::Name(request, name, to_name) = cluster.next() else { panic!("a link") };
    assert_eq!((name.as_slice(), to_name.as_slice()), (&b"one"[..], &b""[..]));
    assert_eq!(request.operation.get(), name_operation::LINK);
    assert_eq!((request.parent, request.to_parent), (parent, to_parent));
    for lost in [
        Operation::Link { file: Handle::default(), parent, name: b"x".to_vec() },
        Operation::Link { file: parent, parent, name: b"a/b".to_vec() },
    ] {
        let refused = cluster.client.submit(lost, 3);
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[test]
fn requests_go_to_the_reactor_of_their_shard() {
    let mut cluster = Cluster::new();
    cluster.reactors = 2;
    for shard in 0..4 {
        cluster.client.submit(stat(shard), 0).unwrap();
    }
    cluster.settle();
    for _ in 0..4 {
        let (connection, asked) = cluster.next_on();
        let reactor = usize::from(header_of(&asked).shard.get() % 2);
        assert_eq!(connection, cluster.meta(reactor));
    }
}

#[test]
fn arguments_that_cannot_be_sent_come_back() {
    let mut cluster = Cluster::new();
    let name = vec![b'x'; 256];
    let create = Operation::Create {
        parent: file(0),
        name,
        ownership: Ownership::default(),
        exclusive: true,
    };
    let kind = |operation| cluster.client.submit(operation, 0).unwrap_err().error.kind;
    let mut kind = kind;
    assert_eq!(kind(create), ErrorKind::Status(Status::NAME_TOO_LONG));
    let unlink = Operation::Unlink { parent: file(0), name: b"a/b".to_vec() };
    assert_eq!(kind(unlink), ErrorKind::Status(Status::INVALID));
    let stat = Operation::Stat { handle: Handle::new(Inode(0)) };
    assert_eq!(kind(stat), ErrorKind::Status(Status::STALE_HANDLE));
    let empty = cluster.read(file(0), 0, 0);
    let beyond = cluster.read(file(0), 0, 8193);
    let far = cluster.write(file(0), u64::MAX, 10);
    let mut kind = |operation| cluster.client.submit(operation, 0).unwrap_err().error.kind;
    assert!(matches!(kind(empty), ErrorKind::Invalid(_)));
    assert!(matches!(kind(beyond), ErrorKind::Invalid(_)));
    assert_eq!(kind(far), ErrorKind::Status(Status::FILE_TOO_LARGE));
    assert_eq!(cluster.arena.available(), cluster.arena.capacity(), "buffers came back");
}

#[test]
fn reads_and_writes_allocate_nothing_in_steady_state() {
    let mut cluster = Cluster::new();
    cluster.warm_up(&[1]);
    let mut buffer = Some(cluster.buffer());
    let mut counted = 0;
    for round in 0..200_u64 {
        let (offset, length, buffer_offset) = (round * 4096, 4096, 0);
        let taken = buffer.take().unwrap();
        let operation = if round % 2 == 0 {
            Operation::Read { file: file(0), offset, length, buffer: taken, buffer_offset }
        } else {
            let append = false;
            Operation::Write { file: file(0), offset, length, buffer: taken, buffer_offset, append }
        };
        let before = allocations_on_this_thread();
        cluster.client.submit(operation, round).unwrap();
        cluster.client.poll(cluster.now, &mut cluster.completions);
        let own = allocations_on_this_thread() - before;
        // The fake fabric copies each packet into a vector of its own.
        counted += own.saturating_sub(cluster.fabric.world().sent.len() as u64);
        cluster.turn();
        let header = header_of(&cluster.next());
        if round % 2 == 0 {
            cluster.arrive(1, header, (0, 1), 4096);
        } else {
            cluster.answer_io(header, Status::OK, 4096);
        }
        let before = allocations_on_this_thread();
        cluster.client.poll(cluster.now, &mut cluster.completions);
        if round < 20 {
            counted = 0;
        } else {
            counted += allocations_on_this_thread() - before;
        }
        let done = cluster.completions.pop().unwrap();
        assert!(done.result.is_ok() && done.token == round, "{done:?}");
        buffer = done.buffer;
    }
    assert!(allocations_on_this_thread() > 0, "the allocator counts");
    assert_eq!(counted, 0);
}

#[test]
fn a_request_follows_what_explains_its_identity() {
    let mut cluster = Cluster::new();
    let (id, strange) = (IdentityId(7), IdentityId(8));
    let who = Identity { uid: 1000, gid: 100, groups: vec![4, 24] };
    cluster.client.set_identity(id, &who).unwrap();
    let refused = cluster.client.submit_as(stat(0), 1, None, strange).unwrap_err();
    assert_eq!(refused.error.kind, ErrorKind::Invalid("an identity that nobody has"));
    let numbers = |asked: Option<(_, Asked)>| match asked.map(|(_, asked)| asked) {
        Some(Asked::Identity(message, groups)) => {
            assert_eq!(
                (message.uid.get(), message.gid.get(), &groups[..]),
                (1000, 100, &[4, 24][..])
            );
            (message.identity.get(), 0)
        }
        Some(Asked::Inode(message)) => (message.identity.get(), 1),
        other => panic!("{other:?}"),
    };
    for token in 0..2 {
        cluster.client.submit_as(stat(0), token, None, id).unwrap();
    }
    cluster.client.submit(stat(0), 2).unwrap();
    cluster.settle();
    for expected in [(7, 0), (7, 1), (7, 1), (0, 1)] {
        assert_eq!(numbers(cluster.try_next()), expected, "once, before the first request");
    }
    cluster.client.set_identity(id, &who).unwrap();
    cluster.client.submit_as(stat(0), 3, None, id).unwrap();
    cluster.settle();
    for expected in [(7, 0), (7, 1)] {
        assert_eq!(numbers(cluster.try_next()), expected, "and when it is another");
    }
}

#[test]
fn extended_attributes_are_asked_for_and_changed() {
    use gannet_proto::xattr::{XattrReply, xattr_flags, xattr_operation};
    let mut cluster = Cluster::new();
    let (handle, name) = (file(0), || b"user.x".to_vec());
    let set = |mode| Operation::SetXattr { handle, name: name(), value: vec![7, 8], mode };
    let (get, list) =
        (Operation::GetXattr { handle, name: name() }, Operation::ListXattrs { handle });
    let remove = Operation::RemoveXattr { handle, name: name() };
    let table = [
        (get, xattr_operation::GET, 0, &b"user.x"[..], &b""[..], &b"value"[..]),
        (list, xattr_operation::LIST, 0, b"", b"", b"user.x\0"),
        (set(XattrMode::Set), xattr_operation::SET, 0, b"user.x", &[7, 8], b""),
        (
            set(XattrMode::Create),
            xattr_operation::SET,
            xattr_flags::CREATE,
            b"user.x",
            &[7, 8],
            b"",
        ),
        (
            set(XattrMode::Replace),
            xattr_operation::SET,
            xattr_flags::REPLACE,
            b"user.x",
            &[7, 8],
            b"",
        ),
        (remove, xattr_operation::REMOVE, 0, b"user.x", b"", b""),
    ];
    for (asked, operation, flags, name, value, answer) in table {
        cluster.client.submit(asked, 1).unwrap();
        cluster.settle();
        let Asked::Xattr(request, sent_name, sent_value) = cluster.next() else {
            panic!("a request")
        };
        assert_eq!((request.operation.get(), request.flags.get()), (operation, flags));
        assert_eq!((&sent_name[..], &sent_value[..]), (name, value));
        let reply = XattrReply {
            header: request.header.reply(Status::OK),
            value_bytes: U32::new(answer.len() as u32),
            tail_bytes: U32::new(answer.len() as u32),
        };
        cluster.send(cluster.meta(0), &reply, &[answer]);
        cluster.settle();
        let done = cluster.completions.pop().unwrap().result;
        assert_eq!(done.unwrap(), Outcome::Xattr(answer.to_vec()));
    }
    cluster.client.submit(Operation::GetXattr { handle, name: name() }, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    let reply = XattrReply { header: header.reply(Status::NO_DATA), ..XattrReply::default() };
    cluster.send(cluster.meta(0), &reply, &[]);
    cluster.settle();
    let error = cluster.completions.pop().unwrap().result.unwrap_err();
    assert_eq!((error.status(), error.errno()), (Some(Status::NO_DATA), 61));
    let refused = |operation| errno_unsent(&mut Cluster::new(), operation);
    assert_eq!(refused(Operation::GetXattr { handle, name: vec![b'x'; 256] }), 34);
    let value = vec![0; 4097];
    assert_eq!(
        refused(Operation::SetXattr { handle, name: name(), value, mode: XattrMode::Set }),
        28
    );
}

/// The error of an operation that is not even sent.
fn errno_unsent(cluster: &mut Cluster, operation: Operation) -> i32 {
    cluster.client.submit(operation, 0).unwrap_err().error.errno()
}
