//! Golden bytes: what the first version put on the wire, so that no later one reads it differently.
//! And hostile bytes: whatever arrives, the decoders answer with a value or an error.

#![allow(clippy::unwrap_used)]

use gannet_proto::addresses::{push_reactors, push_text, split_further, split_reactors};
use gannet_proto::control::{
    Grant, Notice, Retired, RetiredRange, StoreInfo, TargetHello, TargetStatsReply, TargetWelcome,
    grant_operation,
};
use gannet_proto::data::{Arrival, DataHello, Trailer};
use gannet_proto::handshake::Hello;
use gannet_proto::operations::{
    BufferRef, HostHello, HostWelcome, NameRequest, Read, RequestHeader, StatsReply, TargetReply,
    Window, Write, connection_kind, io_flags, name_operation,
};
use gannet_proto::packet::{DecodeError, Frames, Message, PacketFull, PacketWriter};
use gannet_proto::stats::{StatsTail, read_stats};
use gannet_proto::{Handle, Inode, ShardId, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

fn header() -> RequestHeader {
    RequestHeader {
        shard: U16::new(0x0102),
        slot: U16::new(0x0304),
        attempt: U32::new(0x0506_0708),
        sequence: U64::new(0x090a_0b0c_0d0e_0f10),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoded<T: Message>(message: &T, tail: &[&[u8]]) -> String {
    let mut packet = PacketWriter::new();
    packet.push(message, tail).unwrap();
    hex(packet.bytes())
}

const HEADER: &str = "0201040308070605100f0e0d0c0b0a09";

#[test]
fn a_hello_and_a_host() {
    let hello = "3000010000000000 47414e4e45540001 0100 0100 0000 0000";
    let rest = "0000000000000000 0000000000000000";
    let first = Hello { features_offered: U64::ZERO, ..Hello::current() };
    let expected = format!("{hello} 0000000000000000 {rest}").replace(' ', "");
    assert_eq!(encoded(&first, &[]), expected, "as the first version said it");
    let expected = format!("{hello} 0100000000000000 {rest}").replace(' ', "");
    assert_eq!(encoded(&Hello::current(), &[]), expected, "with memory windows");
    let host = HostHello {
        session: U64::new(0x1122_3344_5566_7788),
        instance: U64::new(1),
        host: U64::new(2),
        slots: U16::new(64),
        ..HostHello::default()
    };
    let rest = "0100000000000000 0200000000000000 4000 0000000000000000000000000000";
    let expected = format!("3000100000000000 8877665544332211 {rest}").replace(' ', "");
    assert_eq!(encoded(&host, &[]), expected);
}

#[test]
fn requests() {
    let handle = Handle::new(Inode::new(ShardId(5), 0x77));
    let read = Read {
        header: header(),
        handle,
        offset: U64::new(0x1000),
        length: U32::new(0x2000),
        flags: U16::new(io_flags::COMPLETE_BY_METASERVER),
        buffers: U16::new(1),
        buffer: BufferRef { region: U32::new(9), reserved: U32::ZERO, offset: U64::new(0x3000) },
        ..Read::default()
    };
    let body = format!(
        "{HEADER} 7700000000000500 00000000 00000000 0010000000000000 00200000 0100 0100 \
         09000000 00000000 0030000000000000 00000000 00000000"
    )
    .replace(' ', "");
    assert_eq!(encoded(&read, &[]), format!("5000230000000000{body}"));
    let write = Write {
        header: read.header,
        handle: read.handle,
        offset: read.offset,
        length: read.length,
        flags: read.flags,
        buffers: read.buffers,
        buffer: read.buffer,
        ..Write::default()
    };
    assert_eq!(encoded(&write, &[]), format!("5000240000000000{body}"));

    let windows = [1_u32, 2].map(|target| Window {
        target: U32::new(target),
        key: U32::new(0x1122_3344),
        epoch: U64::new(0x0005_0000_0006),
        address: U64::new(0x7f00_1234_5000),
    });
    let flags = U16::new(io_flags::COMPLETE_BY_METASERVER | io_flags::WINDOWS);
    let (count, buffer) = (U16::new(2), BufferRef::default());
    let named = Read { flags, buffer, windows: count, ..read };
    let expected = format!(
        "8000230000000000 {HEADER} 7700000000000500 00000000 00000000 0010000000000000 00200000 \
         0500 0100 00000000 00000000 0000000000000000 00000000 0200 0000 \
         01000000 44332211 0600000005000000 00503412007f0000 \
         02000000 44332211 0600000005000000 00503412007f0000"
    )
    .replace(' ', "");
    assert_eq!(encoded(&named, &[windows.as_bytes()]), expected);

    let rename = NameRequest {
        header: header(),
        parent: handle,
        to_parent: Handle::new(Inode::ROOT),
        operation: U16::new(name_operation::RENAME),
        name_bytes: U16::new(1),
        to_name_bytes: U16::new(2),
        mode: U32::new(0o644),
        uid: U32::new(1),
        gid: U32::new(2),
        ..NameRequest::default()
    };
    let expected = format!(
        "5b00200000000000 {HEADER} 7700000000000500 0000000000000000 0100000000000000 \
         0000000000000000 0600 0100 0200 0000 00000000 a4010000 01000000 02000000 00000000 \
         00000000 616263"
    )
    .replace(' ', "");
    assert_eq!(encoded(&rename, &[b"a", b"bc"]), expected);
}

#[test]
fn grants_and_what_comes_back() {
    let trailer = Trailer {
        request: header(),
        part: U16::new(1),
        parts: U16::new(2),
        total_bytes: U32::new(0x2000),
        end_of_file: 1,
        reserved: [0; 7],
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(trailer.as_bytes());
    let grant = Grant {
        term: U64::new(1),
        number: U64::new(2),
        session: U64::new(3),
        epoch: U64::new(4),
        store: U32::new(5),
        generation: U32::new(6),
        operation: grant_operation::WRITE,
        flags: 1,
        shard: U16::new(7),
        offset: U32::new(8),
        block: U64::new(9),
        length: U32::new(10),
        valid: U32::new(9),
        host_address: U64::new(11),
        host_key: U32::new(12),
        crc32c: U32::ZERO,
        head_block: U64::new(13),
        tail_block: U64::new(u64::MAX),
        head_valid: U32::new(14),
        tail_valid: U32::new(15),
        trailer: bytes,
        reserved: U64::ZERO,
    };
    let trailer_hex = format!("{HEADER} 0100 0200 00200000 01 00000000000000");
    let expected = format!(
        "9800680000000000 0100000000000000 0200000000000000 0300000000000000 0400000000000000 \
         05000000 06000000 02 01 0700 08000000 0900000000000000 0a000000 09000000 \
         0b00000000000000 0c000000 00000000 0d00000000000000 ffffffffffffffff 0e000000 0f000000 \
         {trailer_hex} 0000000000000000"
    )
    .replace(' ', "");
    assert_eq!(encoded(&grant, &[]), expected);

    let arrival = Arrival { length: U32::new(0x1000), trailer, ..Arrival::default() };
    let expected = format!("3800820000000000 00000000 00100000 00000000 00000000 {trailer_hex}");
    assert_eq!(encoded(&arrival, &[]), expected.replace(' ', ""));

    let notice = Notice { term: U64::new(1), number: U64::new(2), ..Notice::default() };
    let expected =
        "2800690000000000 0100000000000000 0200000000000000 00000000000000000000000000000000";
    assert_eq!(encoded(&notice, &[]), expected.replace(' ', ""));

    let retired = Retired {
        term: U64::new(1),
        cumulative: U64::new(2),
        ranges: U16::new(1),
        reserved: [0; 6],
    };
    let range = RetiredRange { first: U64::new(4), last: U64::new(5) };
    let expected = "30006a0000000000 0100000000000000 0200000000000000 0100 000000000000 \
                    0400000000000000 0500000000000000";
    assert_eq!(encoded(&retired, &[range.as_bytes()]), expected.replace(' ', ""));
}

/// A first address and a further one, as tails carry them.
const SHM: &str = "73686d3a2f2f2f61";
const TCP: &str = "7463703a2f2f623a31";
const OURS: &str = "06060606060606060606060606060606";

#[test]
fn servers_and_their_addresses() {
    let (shm, tcp) = (&b"shm:///a"[..], "tcp://b:1");
    let mut further = Vec::new();
    push_text(&mut further, tcp);
    let store = StoreInfo {
        uuid: [3; 16],
        generation: U32::new(4),
        block_bytes: U32::new(4096),
        blocks: U64::new(5),
    };
    let store_hex = "03030303030303030303030303030303 04000000 00100000 0500000000000000";
    let first = TargetHello {
        uuid: [1; 16],
        instance: U64::new(2),
        address_bytes: U16::new(8),
        stores: U16::new(1),
        ..TargetHello::default()
    };
    let who = "01010101010101010101010101010101 0200000000000000 0800 0100";
    let expected = format!("5800600000000000 {who} 00000000 0000000000000000 {SHM} {store_hex}");
    let encoded_first = encoded(&first, &[shm, store.as_bytes()]);
    assert_eq!(encoded_first, expected.replace(' ', ""), "as the first version said it");
    let hello =
        TargetHello { further_addresses: U16::new(1), names_file_system: U16::new(1), ..first };
    let expected = format!(
        "7300600000000000 {who} 0100 0100 0000000000000000 {SHM} {store_hex} 0900 {TCP} {OURS}"
    );
    let tail: [&[u8]; 4] = [shm, store.as_bytes(), &further, &[6; 16]];
    assert_eq!(encoded(&hello, &tail), expected.replace(' ', ""));

    let mut reactors = Vec::new();
    assert_eq!(push_reactors(&mut reactors, &[vec!["shm:///a", tcp]]), 1);
    let welcome = TargetWelcome {
        version: U16::new(1),
        reactors: U16::new(1),
        stores: U16::new(1),
        term: U64::new(2),
        target: U32::new(3),
        grants_max: U32::new(0x80),
        further_addresses: U16::new(1),
        names_file_system: U16::new(1),
        ..TargetWelcome::default()
    };
    let expected = format!(
        "5b00610000000000 0100 0100 0000 0100 0000000000000000 0200000000000000 03000000 80000000 \
         0100 0100 00000000 04000000 0800 {SHM} 0000 0900 {TCP} {OURS}"
    );
    let tail: [&[u8]; 3] = [&[4, 0, 0, 0], &reactors, &[6; 16]];
    assert_eq!(encoded(&welcome, &tail), expected.replace(' ', ""));

    let mut reactors = Vec::new();
    assert_eq!(push_reactors(&mut reactors, &[vec!["shm:///a", tcp], vec![tcp]]), 1);
    let welcome = HostWelcome {
        version: U16::new(1),
        shards: U16::new(2),
        reactors: U16::new(2),
        reactor: U16::new(1),
        features: U64::new(1),
        term: U64::new(2),
        file_system_uuid: [6; 16],
        slots: U16::new(8),
        resumed: U16::new(1),
        request_bytes_max: U32::new(4 << 20),
        block_bytes: U32::new(4096),
        lease_ms: U32::new(1000),
        map_version: U64::new(5),
        requests_max: U32::new(100),
        further_addresses: U16::new(1),
        reserved: [0; 10],
    };
    let expected = format!(
        "7c00110000000000 0100 0200 0200 0100 0100000000000000 0200000000000000 {OURS} 0800 0100 \
         00004000 00100000 e8030000 0500000000000000 64000000 0100 00000000000000000000 \
         0001 0800 {SHM} 0900 {TCP} 0000 0900 {TCP}"
    );
    assert_eq!(encoded(&welcome, &[&[0, 1], &reactors]), expected.replace(' ', ""));

    let reply = TargetReply {
        header: header().reply(Status::OK),
        target: U32::new(7),
        address_bytes: U16::new(8),
        ticket_bytes: U16::new(6),
        epoch: U64::new(9),
        further_addresses: U16::new(1),
        reserved: [0; 6],
    };
    let expected = format!(
        "5100430000000000 {HEADER} 00000000 00000000 07000000 0800 0600 0900000000000000 0100 \
         000000000000 {SHM} 7469636b6574 0900 {TCP}"
    );
    assert_eq!(encoded(&reply, &[shm, b"ticket", &further]), expected.replace(' ', ""));
}

#[test]
fn counters_and_connections() {
    let mut tail = StatsTail::new();
    tail.push_counter("ab", 7).unwrap();
    tail.push_connection(connection_kind::TARGET, 9, "tcp", "me").unwrap();
    let entries = "0700000000000000 0200 000000000000 6162 \
                   0900000000000000 0100 0300 0200 0000 746370 6d65";
    let reply = StatsReply {
        header: header().reply(Status::OK),
        role: U16::ZERO,
        count: U16::new(tail.counters()),
        index: U32::new(2),
        last: U16::new(1),
        connections: U16::new(tail.connections()),
        reserved: [0; 4],
    };
    let expected = format!(
        "5700450000000000 {HEADER} 00000000 00000000 0000 0100 02000000 0100 0100 00000000 {entries}"
    );
    assert_eq!(encoded(&reply, &[tail.bytes()]), expected.replace(' ', ""));
    let part = TargetStatsReply {
        tag: U64::new(3),
        count: U16::new(1),
        connections: U16::new(1),
        more: U16::new(1),
        reserved: U16::ZERO,
    };
    let expected =
        format!("3f006d0000000000 0300000000000000 0100 0100 0100 0000 {entries}").replace(' ', "");
    assert_eq!(encoded(&part, &[tail.bytes()]), expected);
}

/// Reads a frame as every message in turn, with its checks.
fn read_as_everything(packet: &[u8]) -> usize {
    let mut read = 0;
    for frame in Frames::new(packet) {
        let Ok(frame) = frame else { break };
        let mut note = |ok: bool| read += usize::from(ok);
        note(frame.read::<Hello>().is_ok_and(|(m, tail)| m.check(tail).is_ok()));
        note(frame.read::<Read>().is_ok_and(|(m, tail)| m.windows(tail).is_ok()));
        note(frame.read::<Write>().is_ok_and(|(m, tail)| m.windows(tail).is_ok()));
        note(frame.read::<NameRequest>().is_ok_and(|(m, tail)| m.names(tail).is_ok()));
        note(frame.read::<Grant>().is_ok_and(|(m, _)| m.check().is_ok()));
        note(frame.read::<Arrival>().is_ok_and(|(m, _)| m.check().is_ok()));
        note(frame.read::<DataHello>().is_ok());
        note(frame.read::<TargetHello>().is_ok_and(|(m, tail)| {
            split_further::<TargetHello>(tail, m.further_addresses.get(), |_| {}).is_ok()
        }));
        note(frame.read::<HostWelcome>().is_ok_and(|(m, tail)| {
            let (reactors, further) = (m.reactors.get(), m.further_addresses.get());
            split_reactors::<HostWelcome>(tail, reactors, further, |_, _| {}).is_ok()
        }));
        note(frame.read::<StatsReply>().is_ok_and(|(m, tail)| {
            let (count, connections) = (m.count.get(), m.connections.get());
            read_stats::<StatsReply>(tail, count, connections, |_| {}).is_ok()
        }));
    }
    read
}

#[test]
fn truncated_frames_are_refused_at_every_length() {
    let read =
        Read { header: header(), length: U32::new(1), buffers: U16::new(1), ..Read::default() };
    let mut packet = PacketWriter::new();
    packet.push(&read, &[]).unwrap();
    let bytes = packet.bytes();
    for len in 1..bytes.len() {
        let outcome: Result<Vec<_>, _> = Frames::new(&bytes[..len]).collect();
        let expected = match len {
            0..8 => DecodeError::TruncatedHeader,
            _ => DecodeError::FrameLength { kind: 0x23, claimed: 80, available: len },
        };
        assert_eq!(outcome.unwrap_err(), expected);
        // The same with a header that fits the shorter body.
        let mut short = bytes[..len].to_vec();
        if len >= 8 {
            short[..2].copy_from_slice(&(len as u16).to_le_bytes());
            let frame = Frames::new(&short).next().unwrap().unwrap();
            let name = "Read";
            assert_eq!(
                frame.read::<Read>().unwrap_err(),
                DecodeError::TooShort { name, len_bytes: len - 8 }
            );
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut readable = 0;
    for _ in 0..20_000 {
        let len = (next() % 400) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        if len > 8 && next() % 4 != 0 {
            bytes[..2].copy_from_slice(&(len as u16).to_le_bytes());
        }
        readable += read_as_everything(&bytes);
    }
    assert!(readable > 1000, "the inputs must get past the frame header: {readable}");
}

#[test]
fn full_packets_refuse_and_stay_as_they_are() {
    let mut packet = PacketWriter::new();
    let mut frames = 0;
    while packet.push(&Notice::default(), &[]).is_ok() {
        frames += 1;
    }
    let before = packet.bytes().to_vec();
    assert_eq!(packet.push(&Notice::default(), &[]), Err(PacketFull));
    assert_eq!((packet.bytes(), packet.frames()), (&before[..], frames));
    assert_eq!(Frames::new(packet.bytes()).count(), frames);
    assert_eq!(PacketWriter::new().push(&Notice::default(), &[&[0; 9000]]), Err(PacketFull));
}
