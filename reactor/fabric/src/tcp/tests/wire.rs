//! Bytes on the stream: what is encoded is decoded, and nothing else is.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::tcp::wire::{
    CONTROL_BYTES_MAX, Entry, FrameHeader, GREETING_BYTES, Greeting, GreetingKind, HEADER_BYTES,
    Refusal, TRANSFER_BYTES_MAX, set_checksum,
};
use crate::{Key, LARGE_MESSAGE_BYTES, RemoteSlice};

fn kinds() -> impl Strategy<Value = GreetingKind> {
    prop_oneof![
        Just(GreetingKind::Hello),
        Just(GreetingKind::Welcome),
        Just(GreetingKind::Refused(Refusal::Full)),
        Just(GreetingKind::Refused(Refusal::NotTrusted)),
        Just(GreetingKind::Refused(Refusal::Protocol)),
    ]
}

fn addresses() -> impl Strategy<Value = Option<IpAddr>> {
    let told = |address: IpAddr| (!address.is_unspecified()).then(|| address.to_canonical());
    prop_oneof![
        Just(None),
        any::<[u8; 4]>().prop_map(|octets| Some(IpAddr::from(octets))),
        any::<[u8; 16]>().prop_map(move |octets| told(IpAddr::from(octets))),
    ]
}

fn greetings() -> impl Strategy<Value = Greeting> {
    let credits = (1..=u16::MAX, 1..=u16::MAX, 1..=u16::MAX);
    (kinds(), credits, any::<bool>(), addresses()).prop_map(|(kind, credits, sums, seen)| {
        Greeting {
            kind,
            small_credits: credits.0,
            large_credits: credits.1,
            transfers_max: credits.2,
            payload_checksums: sums,
            seen,
        }
    })
}

fn remotes() -> impl Strategy<Value = RemoteSlice> {
    (any::<u64>(), any::<u32>(), 0..=TRANSFER_BYTES_MAX)
        .prop_map(|(address, key, len_bytes)| RemoteSlice { address, key: Key(key), len_bytes })
}

/// Entries without bytes of their own.
fn entries() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (remotes(), any::<u32>()).prop_map(|(remote, checksum)| Entry::Write { remote, checksum }),
        remotes().prop_map(|remote| Entry::Read { remote }),
        (0..=TRANSFER_BYTES_MAX, any::<u32>())
            .prop_map(|(len_bytes, checksum)| Entry::ReadAnswer { len_bytes, checksum }),
        any::<u32>().prop_map(|transfer| Entry::Refused { transfer }),
        Just(Entry::Goodbye),
    ]
}

/// A frame of entries, whose payload is not there.
fn frame(header: FrameHeader, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    entries.iter().for_each(|entry| entry.push(&mut bytes));
    let control_bytes = (bytes.len() - HEADER_BYTES) as u32;
    FrameHeader { control_bytes, ..header }.encode(&mut bytes);
    bytes
}

fn sample_greeting() -> Greeting {
    Greeting {
        kind: GreetingKind::Hello,
        small_credits: 0x0102,
        large_credits: 0x0304,
        transfers_max: 0x0506,
        payload_checksums: true,
        seen: Some(IpAddr::from([192, 168, 1, 7])),
    }
}

fn sample_header() -> FrameHeader {
    FrameHeader {
        control_bytes: 0,
        payload_bytes: 0x0a0b,
        sequence: 7,
        writes_placed: 0x0c0d_0e0f,
        small_returned: 0x1011,
        large_returned: 0x1213,
    }
}

fn sample_entries() -> [Entry; 5] {
    let remote = RemoteSlice { address: 0x1122_3344_5566_7788, key: Key(0xaabb), len_bytes: 4096 };
    [
        Entry::Write { remote, checksum: 0x0102_0304 },
        Entry::Read { remote },
        Entry::ReadAnswer { len_bytes: 99, checksum: 5 },
        Entry::Refused { transfer: 6 },
        Entry::Goodbye,
    ]
}

proptest! {
    #[test]
    fn greetings_survive_a_round_trip(greeting in greetings()) {
        prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
    }

    #[test]
    fn frames_survive_a_round_trip(
        entries in proptest::collection::vec(entries(), 0..20),
        words in any::<[u32; 3]>(),
        returned in any::<[u16; 2]>(),
    ) {
        let header = FrameHeader {
            control_bytes: 0,
            payload_bytes: words[0],
            sequence: words[1],
            writes_placed: words[2],
            small_returned: returned[0],
            large_returned: returned[1],
        };
        let bytes = frame(header, &entries);
        let control_bytes = FrameHeader::control_bytes(&bytes);
        prop_assert_eq!(control_bytes, Ok(bytes.len() - HEADER_BYTES));
        let header = FrameHeader { control_bytes: control_bytes.unwrap_or(0) as u32, ..header };
        prop_assert_eq!(FrameHeader::decode(&bytes, words[1]), Ok(header));
        prop_assert!(FrameHeader::decode(&bytes, words[1].wrapping_add(1)).is_err());
        let mut rest = &bytes[HEADER_BYTES..];
        for entry in entries {
            let (read, len, payload) = Entry::read(rest).expect("it was just encoded");
            prop_assert_eq!(read, entry);
            let expected = match entry {
                Entry::Write { remote, .. } => remote.len_bytes,
                Entry::ReadAnswer { len_bytes, .. } => len_bytes,
                _ => 0,
            };
            prop_assert_eq!(payload, expected);
            rest = &rest[len..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn messages_survive_a_round_trip(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 1..5),
    ) {
        let mut control = Vec::new();
        let mut whole = 0;
        for message in &messages {
            Entry::push_message(message, &mut control);
            whole += Entry::message_bytes(message.len());
        }
        prop_assert_eq!(control.len(), whole);
        let mut rest = &control[..];
        for message in &messages {
            let (entry, len, payload) = Entry::read(rest).expect("it was just encoded");
            prop_assert_eq!(entry, Entry::Message { len_bytes: message.len() as u16 });
            prop_assert_eq!(payload, 0);
            prop_assert_eq!(&rest[Entry::MESSAGE_START..][..message.len()], &message[..]);
            rest = &rest[len..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_bytes_are_a_greeting_or_none(bytes in any::<[[u8; 32]; 2]>(), begins_well: bool) {
        let mut bytes: [u8; GREETING_BYTES] = bytes.concat().try_into().expect("64 bytes");
        let _decoded = Greeting::decode(&bytes);
        // Not stopped by the magic and the checksum.
        bytes[..4].copy_from_slice(b"GNTC");
        if begins_well {
            (bytes[4], bytes[5]) = (1 + bytes[4] % 3, bytes[5] % 4);
            bytes[6..10].copy_from_slice(&[1, 0, 1, 0]);
            bytes[20..24].fill(0);
        }
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(greeting) = Greeting::decode(&bytes) {
            let refused = matches!(greeting.kind, GreetingKind::Refused(_));
            prop_assert!(refused || greeting.small_credits > 0 && greeting.large_credits > 0);
            prop_assert!(refused || greeting.transfers_max > 0);
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        }
    }

    #[test]
    fn any_bytes_are_a_frame_or_none(
        mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES..2 * HEADER_BYTES),
        sequence: u32,
    ) {
        let _length = FrameHeader::control_bytes(&bytes);
        let _decoded = FrameHeader::decode(&bytes, sequence);
        let sum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        let said = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        prop_assert_eq!(FrameHeader::decode(&bytes, sequence).is_ok(), said == sequence);
        prop_assert!(FrameHeader::decode(&bytes, said).is_ok());
        if let Ok(length) = FrameHeader::control_bytes(&bytes) {
            prop_assert!(length <= CONTROL_BYTES_MAX && length.is_multiple_of(8));
        }
    }

    #[test]
    fn any_bytes_are_an_entry_or_none(
        mut control in proptest::collection::vec(any::<u8>(), 0..300),
        kind in 0..9u8,
        modest: bool,
    ) {
        if let [first, _, low, high, ..] = &mut control[..] {
            *first = kind;
            if modest {
                (*low, *high) = (*low & 0x3f, 0);
            }
        }
        if let Ok((entry, len, payload)) = Entry::read(&control) {
            prop_assert!(len > 0 && len <= control.len() && len.is_multiple_of(8));
            prop_assert!(payload <= TRANSFER_BYTES_MAX);
            if let Entry::Message { len_bytes } = entry {
                prop_assert!(Entry::MESSAGE_START + usize::from(len_bytes) <= len);
            }
            // Nothing behind it is looked at.
            prop_assert_eq!(Entry::read(&control[..len]), Ok((entry, len, payload)));
            prop_assert!(Entry::read(&control[..len - 1]).is_err());
        }
    }
}

#[test]
fn a_greeting_with_any_byte_changed_is_refused() {
    let good = sample_greeting().encode();
    for at in 0..GREETING_BYTES {
        for value in 0..=u8::MAX {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Greeting::decode(&bytes).is_ok(), bytes == good, "byte {at} is {value}");
        }
    }
}

#[test]
fn a_frame_with_any_byte_changed_is_refused() {
    let good = frame(sample_header(), &sample_entries());
    for at in 0..good.len() {
        for value in 0..=u8::MAX {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _length = FrameHeader::control_bytes(&bytes);
            let decoded = FrameHeader::decode(&bytes, 7);
            assert_eq!(decoded.is_ok(), bytes == good, "byte {at} is {value}");
        }
    }
}

#[test]
fn the_longest_is_taken_and_nothing_longer() {
    let remote = |len_bytes| RemoteSlice { address: 0, key: Key(1), len_bytes };
    let longer = TRANSFER_BYTES_MAX + 1;
    for (entry, allowed) in [
        (Entry::Read { remote: remote(TRANSFER_BYTES_MAX) }, true),
        (Entry::Read { remote: remote(longer) }, false),
        (Entry::Write { remote: remote(TRANSFER_BYTES_MAX), checksum: 0 }, true),
        (Entry::Write { remote: remote(longer), checksum: 0 }, false),
        (Entry::ReadAnswer { len_bytes: TRANSFER_BYTES_MAX, checksum: 0 }, true),
        (Entry::ReadAnswer { len_bytes: u32::MAX, checksum: 0 }, false),
    ] {
        let mut control = Vec::new();
        entry.push(&mut control);
        assert_eq!(Entry::read(&control).is_ok(), allowed, "{entry:?}");
    }
    for (len, allowed) in [(LARGE_MESSAGE_BYTES, true), (LARGE_MESSAGE_BYTES + 1, false)] {
        let mut control = Vec::new();
        Entry::push_message(&vec![1; len], &mut control);
        assert_eq!(Entry::read(&control).is_ok(), allowed, "{len}");
    }
    let length = |bytes: u32| {
        let mut header = [0; HEADER_BYTES];
        header[4..8].copy_from_slice(&bytes.to_le_bytes());
        FrameHeader::control_bytes(&header).is_ok()
    };
    let longest = CONTROL_BYTES_MAX as u32;
    assert!(length(0) && length(8) && length(longest));
    assert!(!length(4) && !length(longest - 1) && !length(longest + 8) && !length(u32::MAX));
}

/// The bytes as they are, for whoever speaks the same with another program.
#[test]
fn the_format_is_what_it_was() {
    let mut greeting = Vec::new();
    greeting.extend_from_slice(b"GNTC\x01\x00\x01\x00\x01\x00");
    greeting.extend_from_slice(&[2, 1, 4, 3, 6, 5, 1, 0, 0, 0, 0, 0, 0, 0]);
    greeting.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 7]);
    greeting.extend_from_slice(&[0; 20]);
    greeting.extend_from_slice(&crc32c::crc32c(&greeting).to_le_bytes());
    assert_eq!(sample_greeting().encode()[..], greeting[..]);

    let mut control = Vec::new();
    control.extend_from_slice(&[2, 0, 0, 0, 4, 3, 2, 1, 0xbb, 0xaa, 0, 0, 0, 0x10, 0, 0]);
    control.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    control.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0xbb, 0xaa, 0, 0, 0, 0x10, 0, 0]);
    control.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    control.extend_from_slice(&[4, 0, 0, 0, 5, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0]);
    control.extend_from_slice(&[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    control.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut rest = Vec::new();
    rest.extend_from_slice(&[96, 0, 0, 0, 0x0b, 0x0a, 0, 0, 7, 0, 0, 0]);
    rest.extend_from_slice(&[0x0f, 0x0e, 0x0d, 0x0c, 0x11, 0x10, 0x13, 0x12]);
    rest.extend_from_slice(&[0; 8]);
    rest.extend_from_slice(&control);
    let mut whole = crc32c::crc32c(&rest).to_le_bytes().to_vec();
    whole.extend_from_slice(&rest);
    assert_eq!(frame(sample_header(), &sample_entries()), whole);

    let mut message = Vec::new();
    Entry::push_message(b"message", &mut message);
    assert_eq!(message, b"\x01\x00\x07\x00\x00\x00\x00\x00message\x00");
    let mut entry = control[48..64].to_vec();
    set_checksum(&mut entry, 0x0908_0706);
    assert_eq!(entry[..8], [4, 0, 0, 0, 6, 7, 8, 9]);
}
