//! Every message of the protocol is read, every field of it at its place.

use std::collections::BTreeSet;

use crate::capture::{Capture, Sender};
use crate::reading::{self, Packet};
use crate::samples::{self, Sample};
use crate::source::{self, Protocol, snake};
use crate::stream;

/// Where Gannet listens, and where only a greeting tells that it is Gannet.
const USUAL_PORT: u16 = 7470;

/// A field that has to be read: its abbreviation, and its bytes.
type Expected = (String, Vec<u8>);

/// The fields of a struct at the start of `bytes`, those of its parts included.
fn expected(protocol: &Protocol, name: &str, bytes: &[u8], into: &mut Vec<Expected>) {
    let layout = &protocol.layouts[name];
    let mut at = 0;
    for (field, kind) in &layout.fields {
        // Opaque to a data server, not to a reader of captures.
        let kind = if (name, field.as_str()) == ("Grant", "trailer") { "Trailer" } else { kind };
        let len = protocol.size_of(kind);
        let part = &bytes[at..at + len];
        if protocol.layouts.contains_key(kind) {
            expected(protocol, kind, part, into);
        } else {
            into.push((format!("gannet.{}.{field}", snake(name)), part.to_vec()));
        }
        at += len;
    }
}

/// All fields of a sample in the order in which they are sent.
fn expected_of(protocol: &Protocol, sample: &Sample) -> Vec<Expected> {
    let mut fields = Vec::new();
    expected(protocol, "FrameHeader", &sample.packet, &mut fields);
    // Of the header only reserved bytes are zero, which are not shown.
    fields.retain(|(name, _)| name != "gannet.frame_header.reserved");
    expected(protocol, sample.name, &sample.packet[8..], &mut fields);
    for (name, at) in &sample.parts {
        expected(protocol, name, &sample.packet[*at..], &mut fields);
    }
    fields
}

fn check(protocol: &Protocol, sample: &Sample, packet: &Packet) {
    let mut position = 0;
    for (name, bytes) in expected_of(protocol, sample) {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = packet.fields[position..].iter().position(|field| field.name == name);
        let found = found.unwrap_or_else(|| panic!("{}: {name} is not read", sample.name));
        position += found;
        let field = &packet.fields[position];
        assert_eq!(field.value, digits, "{}: {field:?}", sample.name);
        if !name.contains(".reserved") {
            assert_eq!(number(&field.show), little_endian(&bytes), "{}: {field:?}", sample.name);
        }
        position += 1;
    }
    for (name, value) in &sample.texts {
        assert!(packet.shown(name).contains(value), "{}: {name}: {packet:#?}", sample.name);
    }
    let names: Vec<&str> = packet.shown("gannet.message");
    assert_eq!(names, [sample.name]);
    for wrong in ["gannet.malformed", "gannet.checksum_wrong", "gannet.incomplete"] {
        assert!(!packet.has(wrong), "{}: {:?}", sample.name, packet.complaints());
    }
    for left in ["gannet.unknown_tail", "gannet.unknown_body", "gannet.stray", "_ws.lua.error"] {
        assert!(!packet.has(left), "{}: {left}", sample.name);
    }
}

/// A number as a display filter has it; `None` for digits of bytes.
fn number(shown: &str) -> Option<u64> {
    let signed = || shown.parse::<i64>().ok().map(i64::cast_unsigned);
    match shown.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => shown.parse().ok().or_else(signed),
    }
}

/// A number of bytes that make one; reserved ones and names do not.
fn little_endian(bytes: &[u8]) -> Option<u64> {
    if ![1, 2, 4, 8].contains(&bytes.len()) {
        return None;
    }
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    Some(u64::from_le_bytes(number))
}

#[test]
fn every_message_of_the_protocol_is_read_field_for_field() {
    let protocol = source::protocol();
    let samples = samples::all();
    let in_source: BTreeSet<(u16, &str)> =
        protocol.messages().iter().map(|(kind, layout)| (*kind, layout.name.as_str())).collect();
    let sampled: BTreeSet<(u16, &str)> =
        samples.iter().map(|sample| (sample.kind, sample.name)).collect();
    assert_eq!(in_source, sampled, "a message is missing in samples.rs");
    assert!(in_source.len() >= 38, "too few messages found in the source: {in_source:?}");

    let mut capture = Capture::new();
    let mut connection = capture.connect(40_000, USUAL_PORT);
    let mut numbers = Vec::new();
    for (sequence, sample) in (0..).zip(&samples) {
        let layout = &protocol.layouts[sample.name];
        assert_eq!(layout.message, Some((sample.kind, sample.body_bytes)));
        let frame = stream::frame(sequence, &stream::message(&sample.packet), &[]);
        numbers.push(capture.segment(&mut connection, Sender::Client, &frame));
    }
    let packets = reading::read(&capture);
    for (sample, number) in samples.iter().zip(numbers) {
        check(&protocol, sample, &packets[&number]);
    }
}

/// Many messages in a packet, many entries in a frame, frames in pieces and pieces of several frames,
/// at a port that only the greeting tells to be Gannet's.
#[test]
fn frames_are_put_together_from_segments_of_any_length() {
    let samples = samples::all();
    let mut control = Vec::new();
    for sample in &samples {
        control.extend(stream::message(&[&sample.packet[..], &sample.packet[..]].concat()));
    }
    let payload: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
    let sum = crc32c::crc32c(&payload);
    control.extend(stream::transfer(2, sum, 0xabcd, payload.len() as u32, 0x7f00_0000_1000));
    for lengths in [&[1448][..], &[1, 7, 31, 65, 3000], &[60_000], &[40, 8]] {
        let mut capture = Capture::new();
        let mut connection = capture.connect(40_001, 12_345);
        let mut bytes = stream::greeting(1, 0);
        for sequence in 0..3 {
            bytes.extend(stream::frame(sequence, &control, &payload));
        }
        // A greeting comes in one piece, as it is sent.
        let first = lengths[0].max(64);
        capture.segment(&mut connection, Sender::Client, &bytes[..first]);
        capture.stream(&mut connection, Sender::Client, &bytes[first..], lengths);
        let packets = reading::read(&capture);
        let all = |name: &str| -> Vec<String> {
            let packets = packets.values();
            packets.flat_map(|packet| packet.shown(name)).map(str::to_owned).collect()
        };
        assert_eq!(all("gannet.message").len(), 3 * 2 * samples.len(), "{lengths:?}");
        assert_eq!(all("gannet.frame.sequence"), ["0", "1", "2"]);
        assert_eq!(all("gannet.payload.length"), ["100000"; 3]);
        assert_eq!(all("gannet.payload.key"), ["0x0000abcd"; 3]);
        assert_eq!(all("gannet.payload.address"), ["0x00007f0000001000"; 3]);
        // A greeting's, three frames' and three payloads'.
        let sums = packets.values().flat_map(|packet| packet.all("gannet.checksum_good"));
        let good: Vec<bool> = sums.map(|it| it.is_true()).collect();
        assert_eq!(good, [true; 7], "{lengths:?}");
        for wrong in ["gannet.malformed", "gannet.incomplete", "gannet.stray", "_ws.lua.error"] {
            assert_eq!(all(wrong), [""; 0], "{lengths:?}");
        }
    }
}

/// Without its beginning a stream is only read at a port of the preferences.
#[test]
fn the_port_and_the_greeting_tell_what_is_gannets() {
    let frame = stream::frame(7, &stream::message(&samples::all()[0].packet), &[]);
    for (port, greets, reads) in
        [(USUAL_PORT, false, true), (9999, false, false), (9999, true, true)]
    {
        let mut capture = Capture::new();
        let mut connection = capture.connect(40_002, port);
        if greets {
            capture.segment(&mut connection, Sender::Client, &stream::greeting(1, 0));
            capture.segment(&mut connection, Sender::Server, &stream::greeting(2, 0));
        }
        let number = capture.segment(&mut connection, Sender::Server, &frame);
        let packet = &reading::read(&capture)[&number];
        assert_eq!(packet.has("gannet.message"), reads, "port {port}, greeting {greets}");
    }
}
