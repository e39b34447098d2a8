//! Operations, flags, statuses and units are told by their names.

use gannet_proto::Status;
use gannet_proto::control::{Grant, Notice, grant_operation};
use gannet_proto::data::DataWelcome;
use gannet_proto::handshake::Hello;
use gannet_proto::operations::{
    ConnectionEntry, EntryReply, InodeRequest, NameRequest, Read, SetAttributes, StatsReply,
    name_operation,
};
use gannet_proto::packet::{Message, PacketWriter};
use gannet_proto::xattr::{XattrRequest, xattr_operation};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::capture::{Capture, Sender};
use crate::reading::{self, Packet};
use crate::source::{self, snake};
use crate::stream;

/// Packets that are read in one go.
#[derive(Default)]
struct Session {
    frames: Vec<Vec<u8>>,
}

impl Session {
    fn push<T: Message>(&mut self, message: &T, tail: &[u8]) {
        let mut packet = PacketWriter::new();
        packet.push(message, &[tail]).expect("it fits a packet");
        let sequence = self.frames.len() as u32;
        self.frames.push(stream::frame(sequence, &stream::message(packet.bytes()), &[]));
    }

    fn read(self) -> Vec<Packet> {
        let mut capture = Capture::new();
        let mut connection = capture.connect(40_000, 7470);
        let numbers: Vec<u32> = self
            .frames
            .iter()
            .map(|frame| capture.segment(&mut connection, Sender::Server, frame))
            .collect();
        let mut packets = reading::read(&capture);
        numbers.iter().map(|number| packets.remove(number).expect("a packet")).collect()
    }
}

#[test]
fn every_operation_and_flag_has_its_name() {
    let mut session = Session::default();
    let constants = source::protocol().constants;
    assert!(constants.len() >= 30, "too few constants found in the source: {constants:?}");
    let mut fields = Vec::new();
    for constant in &constants {
        let value = constant.value;
        let short = U16::new(value as u16);
        let (field, is_flag) = match constant.module.as_str() {
            "authentication" => {
                session.push(&Hello { authentication: short, ..Hello::default() }, &[]);
                ("gannet.hello.authentication", false)
            }
            "features" => {
                let features = U64::new(value);
                session.push(&DataWelcome { features, ..DataWelcome::default() }, &[]);
                ("gannet.data_welcome.features", true)
            }
            "name_operation" => {
                session.push(&NameRequest { operation: short, ..NameRequest::default() }, &[]);
                ("gannet.name_request.operation", false)
            }
            "name_flags" => {
                let flags = U32::new(value as u32);
                let operation = U16::new(name_operation::CREATE);
                session.push(&NameRequest { flags, operation, ..NameRequest::default() }, &[]);
                ("gannet.name_request.flags", true)
            }
            "attribute_mask" => {
                let mask = U32::new(value as u32);
                session.push(&SetAttributes { mask, ..SetAttributes::default() }, &[]);
                ("gannet.set_attributes.mask", true)
            }
            "inode_operation" => {
                session.push(&InodeRequest { operation: short, ..InodeRequest::default() }, &[]);
                ("gannet.inode_request.operation", false)
            }
            "xattr_operation" => {
                session.push(&XattrRequest { operation: short, ..XattrRequest::default() }, &[]);
                ("gannet.xattr_request.operation", false)
            }
            "xattr_flags" => {
                let operation = U16::new(xattr_operation::SET);
                session.push(
                    &XattrRequest { flags: short, operation, ..XattrRequest::default() },
                    &[],
                );
                ("gannet.xattr_request.flags", true)
            }
            "io_flags" => {
                session.push(&Read { flags: short, ..Read::default() }, &[]);
                ("gannet.read.flags", true)
            }
            "grant_operation" => {
                session.push(&Grant { operation: value as u8, ..Grant::default() }, &[]);
                ("gannet.grant.operation", false)
            }
            "grant_flags" => {
                let operation = grant_operation::READ;
                session.push(&Grant { flags: value as u8, operation, ..Grant::default() }, &[]);
                ("gannet.grant.flags", true)
            }
            "connection_kind" => {
                let reply = StatsReply { connections: U16::new(1), ..StatsReply::default() };
                let entry = ConnectionEntry { kind: short, ..ConnectionEntry::default() };
                session.push(&reply, entry.as_bytes());
                ("gannet.connection_entry.kind", false)
            }
            // Shown by its octal digits.
            "file_type" => {
                session.push(&EntryReply::default(), &[]);
                continue;
            }
            other => panic!("constants of {other} are new: the dissector has to know them"),
        };
        fields.push((session.frames.len() - 1, field, is_flag, constant));
    }
    let packets = session.read();
    for (at, field, is_flag, constant) in fields {
        let packet = &packets[at];
        let line = &packet.one(field).line;
        assert!(line.contains(&constant.name), "{constant:?}: {line}");
        assert!(!packet.has("gannet.unknown"), "{constant:?}: {:?}", packet.complaints());
        if is_flag {
            let flag = format!("{field}.{}", snake(&constant.name));
            assert!(packet.one(&flag).is_true(), "{constant:?}");
        }
    }
}

#[test]
fn every_status_has_its_text_and_shows_as_a_finding() {
    let statuses = source::protocol().statuses;
    assert!(statuses.len() >= 36, "too few statuses found in the source: {statuses:?}");
    let mut session = Session::default();
    for (_, status, text) in &statuses {
        assert_eq!(Status(*status).text(), text, "the source is read rightly");
        session.push(&Notice { status: U32::new(*status), ..Notice::default() }, &[]);
    }
    for ((name, status, text), packet) in statuses.iter().zip(session.read()) {
        let line = &packet.one("gannet.notice.status").line;
        // A status of the protocol's own is told by its name; what it means fits most lines.
        let told = if *status < 0x1000 { line.contains(text) } else { line.contains(name) };
        assert!(told, "{name}: {line}");
        assert_eq!(packet.has("gannet.failed"), *status != 0, "{name}");
        assert!(!packet.has("gannet.unknown"), "{name}: {:?}", packet.complaints());
    }
}

#[test]
fn numbers_have_their_units_and_meanings() {
    let mut session = Session::default();
    let grant = Grant {
        number: U64::new(12),
        operation: grant_operation::WRITE,
        length: U32::new(4096),
        head_block: U64::new(u64::MAX),
        host_address: U64::new(0x7f00_1234_5000),
        ..Grant::default()
    };
    session.push(&grant, &[]);
    let mut reply = EntryReply::default();
    reply.attributes.handle.inode = U64::new(5 << 48 | 77);
    reply.attributes.mode = U32::new(0o100_644);
    reply.attributes.mtime_ns = I64::new(1_700_000_000_123_456_789);
    reply.attributes.atime_ns = I64::new(-1_500_000_000);
    reply.header.request.shard = U16::new(u16::MAX);
    reply.header.request.sequence = U64::new(u64::MAX - 1);
    session.push(&reply, &[]);
    let packets = session.read();
    let line = |packet: usize, field: &str| packets[packet].one(field).line.clone();
    assert_eq!(line(0, "gannet.grant.length"), "length: 4096 bytes");
    assert!(line(0, "gannet.grant.head_block").contains("none: zeros"));
    assert_eq!(line(0, "gannet.grant.host_address"), "host_address: 0x00007f0012345000");
    assert!(line(1, "gannet.handle.inode").contains("shard 5, number 77"));
    assert!(line(1, "gannet.attributes.mode").contains("0100644"));
    let time = line(1, "gannet.attributes.mtime_ns");
    assert!(time.contains("1700000000123456789 ns (2023-11-14 22:13:20 UTC)"), "{time}");
    let before = line(1, "gannet.attributes.atime_ns");
    assert!(before.contains("-1500000000 ns (1969-12-31 23:59:5"), "{before}");
    assert!(line(1, "gannet.request_header.shard").contains("the session"));
    assert_eq!(packets[1].one("gannet.request_header.sequence").show, (u64::MAX - 1).to_string());
}
