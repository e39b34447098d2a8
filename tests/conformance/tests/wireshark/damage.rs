//! Damaged, truncated and nonsensical streams are flagged, and never end the dissector.

use gannet_proto::operations::Read;
use gannet_proto::packet::PacketWriter;

use crate::capture::{Capture, Connection, Sender};
use crate::reading::{self, Packet};
use crate::samples;
use crate::stream::{answer, frame, greeting, message, reseal, transfer};

/// What may be said of a stream, the worst first.
const FINDINGS: [&str; 3] = ["gannet.malformed", "gannet.checksum_wrong", "gannet.incomplete"];

fn packet_of_read() -> Vec<u8> {
    let mut packet = PacketWriter::new();
    packet.push(&Read::default(), &[]).expect("it fits a packet");
    packet.bytes().to_vec()
}

/// One stream that is wrong, and what has to be said of it.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    words: &'static str,
}

fn case(name: &'static str, bytes: Vec<u8>, words: &'static str) -> Case {
    Case { name, bytes, words }
}

/// A frame of one message, with a byte of it changed and its checksum right again.
fn changed(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = frame(0, &message(&packet_of_read()), &[]);
    bytes[at] = byte;
    reseal(&mut bytes);
    bytes
}

fn cases() -> Vec<Case> {
    let read = packet_of_read();
    let good = frame(0, &message(&read), &[]);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let mut greeting_of_no_kind = greeting(9, 0);
    let sum = crc32c::crc32c(&greeting_of_no_kind[..60]);
    greeting_of_no_kind[60..].copy_from_slice(&sum.to_le_bytes());
    let mut broken_greeting = greeting(1, 0);
    broken_greeting[11] ^= 1;
    let mut long_credentials = greeting(1, 0);
    long_credentials[22..24].copy_from_slice(&2000_u16.to_le_bytes());
    let mut unaligned = good.clone();
    unaligned[4..8].copy_from_slice(&33_u32.to_le_bytes());
    let mut endless = good.clone();
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut endless_payload = good.clone();
    endless_payload[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let write = |payload: &[u8], len: u32| frame(0, &transfer(2, 0, 1, len, 2), payload);
    let wrong_sum = frame(0, &transfer(2, 77, 1, 4, 2), &[1, 2, 3, 4]);
    let long_message = {
        let mut entry = message(&[0; 8]);
        entry[2..4].copy_from_slice(&9000_u16.to_le_bytes());
        frame(0, &entry, &[])
    };
    vec![
        case("a bit of a frame's header", flipped(17), "its checksum does not fit"),
        case("a bit of a message", flipped(60), "its checksum does not fit"),
        case("a bit of the checksum", flipped(1), "its checksum does not fit"),
        case("a greeting's bit", broken_greeting, "checksum of a greeting"),
        case("a greeting of no kind", greeting_of_no_kind, "greeting of an unknown kind"),
        case("credentials without end", long_credentials, "credentials of a greeting"),
        case("a control part without alignment", unaligned, "impossible length"),
        case("a control part without end", endless, "impossible length"),
        case("a payload part without end", endless_payload, "longer than any"),
        case("an entry of no kind", frame(0, &[9; 16], &[]), "unknown kind 9"),
        case("an entry of kind 0", frame(0, &[0; 8], &[]), "unknown kind 0"),
        case("an entry cut off", frame(0, &transfer(3, 0, 1, 4, 2)[..16], &[]), "cut off"),
        case("a goodbye cut off", frame(0, &answer(6, 0, 0)[..8], &[]), "cut off"),
        case("a message longer than its frame", changed(32 + 2, 200), "cut off"),
        case("a message longer than any", long_message, "longer than any"),
        case("a transfer longer than any", write(&[], 9 << 20), "longer than any"),
        case("payload that is missing", write(&[1; 3], 4), "shorter than"),
        case("payload that nobody announced", write(&[1; 5], 4), "longer than"),
        case("payload with a wrong checksum", wrong_sum, "checksum of a payload"),
        case("a message that claims less than a header", changed(40, 4), "says that it is 4 bytes"),
        case("a message that claims more than there is", changed(40, 200), "200 bytes long"),
        case("a body that is too short", changed(40, 30), "bytes, and 22 are there"),
        case("a tail that is too short", changed(40 + 8 + 68, 3), "left of the message"),
        case("the rest of a packet", frame(0, &message(&read[..5]), &[]), "bytes long"),
        case("noise", vec![0x5a; 300], "impossible length"),
    ]
}

/// One case, alone in a capture, on a connection where frames are expected.
fn read_one(send: impl FnOnce(&mut Capture, &mut Connection) -> u32) -> Packet {
    let mut capture = Capture::new();
    let mut connection = capture.connect(40_000, 7470);
    let number = send(&mut capture, &mut connection);
    reading::read(&capture).remove(&number).expect("a packet")
}

#[test]
fn what_is_wrong_is_said() {
    let mut capture = Capture::new();
    let mut numbers = Vec::new();
    let cases = cases();
    // Each on a connection of its own, with something good in front of it.
    for (port, case) in (41_000..).zip(&cases) {
        let mut connection = capture.connect(port, 7470);
        capture.segment(&mut connection, Sender::Client, &greeting(1, 0));
        numbers.push(capture.segment(&mut connection, Sender::Client, &case.bytes));
    }
    let packets = reading::read(&capture);
    for (case, number) in cases.iter().zip(numbers) {
        let packet = &packets[&number];
        let complaints = packet.complaints().join("; ");
        assert!(complaints.contains(case.words), "{}: {complaints:?} {packet:#?}", case.name);
        assert!(FINDINGS.iter().any(|finding| packet.has(finding)), "{}", case.name);
        assert!(!packet.has("_ws.lua.error"), "{}: {packet:#?}", case.name);
    }
}

#[test]
fn a_frame_after_a_damaged_one_is_read() {
    let good = frame(1, &message(&packet_of_read()), &[]);
    let mut bad = frame(0, &message(&packet_of_read()), &[]);
    bad[70] ^= 1;
    let packet = read_one(|capture, connection| {
        capture.segment(connection, Sender::Client, &greeting(1, 0));
        capture.segment(connection, Sender::Client, &[bad, good].concat())
    });
    assert_eq!(packet.shown("gannet.message"), ["Read", "Read"]);
    let good: Vec<bool> = packet.all("gannet.checksum_good").map(|it| it.is_true()).collect();
    assert_eq!(good, [false, true]);
}

#[test]
fn frames_that_were_not_captured_as_a_whole_are_incomplete() {
    let whole = frame(0, &message(&packet_of_read()), &[]);
    for kept in [3, 20, 40, whole.len() - 1] {
        let packet = read_one(|capture, connection| {
            capture.cut_segment(connection, Sender::Client, &whole, kept)
        });
        assert!(packet.has("gannet.incomplete"), "{kept} bytes: {packet:#?}");
        assert!(!packet.has("_ws.lua.error"));
    }
}

/// With the last segment that has a part of it, with an end of its own, or with a reset.
#[test]
fn a_stream_that_ends_inside_a_frame_is_incomplete() {
    let whole = frame(0, &message(&packet_of_read()), &[]);
    let mut capture = Capture::new();
    let mut ends = Vec::new();
    for (number, cut) in (0..).zip([2, 31, 33, whole.len() - 1, whole.len()]) {
        let mut open = |way: u16| {
            let mut connection = capture.connect(40_000 + 10 * number + way, 7470);
            capture.segment(&mut connection, Sender::Client, &greeting(1, 0));
            connection
        };
        let mut ways = [open(0), open(1), open(2), open(3)];
        for connection in &mut ways[1..] {
            capture.segment(connection, Sender::Client, &whole[..cut]);
        }
        let numbers = [
            capture.last_segment(&mut ways[0], Sender::Client, &whole[..cut]),
            capture.last_segment(&mut ways[1], Sender::Client, &[]),
            capture.reset(&mut ways[2], Sender::Client),
            capture.reset(&mut ways[3], Sender::Server),
        ];
        ends.extend(numbers.map(|end| (end, cut < whole.len())));
    }
    for packets in [reading::read(&capture), reading::read_twice(&capture)] {
        for (end, is_cut) in &ends {
            let packet = &packets[end];
            assert_eq!(packet.has("gannet.incomplete"), *is_cut, "packet {end}: {packet:#?}");
            assert!(!packet.has("_ws.lua.error"), "{packet:#?}");
        }
    }
}

/// A capture that begins in the middle of a frame is read from the first segment on that begins with
/// one; what looks like a frame before is none if its checksum does not say so.
#[test]
fn a_capture_that_begins_in_mid_stream_finds_its_way() {
    let good = frame(7, &message(&packet_of_read()), &[]);
    let mut capture = Capture::new();
    let mut connection = capture.connect(40_000, 7470);
    // The rest of a payload: zeros are a frame of no length, and this one claims to be long.
    let mut long = vec![0; 300];
    long[8..12].copy_from_slice(&1_000_000_u32.to_le_bytes());
    let strays =
        [vec![0; 300], long].map(|bytes| capture.segment(&mut connection, Sender::Client, &bytes));
    let (front, back) = good.split_at(50);
    capture.segment(&mut connection, Sender::Client, front);
    let whole = capture.segment(&mut connection, Sender::Client, back);
    let next = capture.segment(&mut connection, Sender::Client, &frame(8, &answer(6, 0, 0), &[]));
    let packets = reading::read(&capture);
    for number in strays {
        let packet = &packets[&number];
        assert!(packet.has("gannet.lost") && !packet.has("gannet.frame.sequence"), "{packet:#?}");
    }
    assert_eq!(packets[&whole].shown("gannet.message"), ["Read"]);
    assert_eq!(packets[&next].shown("gannet.frame.sequence"), ["8"]);
    assert!(!packets[&next].has("gannet.out_of_sequence"));
    for (number, packet) in reading::read_twice(&capture) {
        assert_eq!(packet, packets[&number], "packet {number}");
    }
}

#[test]
fn missing_and_repeated_frames_are_noticed() {
    let mut capture = Capture::new();
    let mut connection = capture.connect(40_000, 7470);
    let mut number = |sequence| {
        let bytes = frame(sequence, &answer(6, 0, 0), &[]);
        capture.segment(&mut connection, Sender::Client, &bytes)
    };
    let numbers = [5, 6, 8, 8, 9].map(&mut number);
    let packets = reading::read(&capture);
    let noticed = numbers.map(|number| packets[&number].has("gannet.out_of_sequence"));
    assert_eq!(noticed, [false, false, true, true, false]);
}

/// Whatever bytes come, with right checksums as well, they are read to their end or flagged.
#[test]
fn no_bytes_end_the_dissector() {
    const STREAMS: u16 = 400;
    let samples = samples::all();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    };
    let mut capture = Capture::new();
    let mut numbers = Vec::new();
    for port in 0..STREAMS {
        let mut control = message(&samples[below(samples.len())].packet);
        control.extend(transfer(2, 0, 1, 16, 2));
        control.extend(message(&samples[below(samples.len())].packet));
        let mut bytes = frame(0, &control, &[3; 16]);
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            bytes[at] = below(256) as u8;
        }
        if port % 4 != 0 {
            // Past the checksum, to what lies behind it.
            bytes[4..8].copy_from_slice(&(control.len() as u32).to_le_bytes());
            reseal(&mut bytes);
        }
        let mut connection = capture.connect(20_000 + port, 7470);
        capture.segment(&mut connection, Sender::Server, &greeting(2, 0));
        numbers.push(capture.last_segment(&mut connection, Sender::Server, &bytes));
    }
    let packets = reading::read(&capture);
    let mut flagged = 0;
    for number in numbers {
        let packet = &packets[&number];
        assert!(!packet.has("_ws.lua.error"), "{packet:#?}");
        let told = ["gannet.frame.sequence", "gannet.stray", "gannet.incomplete"];
        assert!(told.iter().any(|field| packet.has(field)), "{packet:#?}");
        flagged += usize::from(FINDINGS.iter().any(|finding| packet.has(finding)));
    }
    assert!((50..400).contains(&flagged), "{flagged} of {STREAMS} were flagged");
}
