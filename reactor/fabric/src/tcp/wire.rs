//! The bytes on a stream of the tcp fabric. All numbers little-endian; `docs/wire.md` has the same
//! for readers of captures.
//!
//! Each end begins with one [`Greeting`]: the connector's says hello, the acceptor's answers. Then
//! frames follow, each a [`FrameHeader`], a *control part* and a *payload part*. The control part is
//! a sequence of [`Entry`]s in the order of posting; the payload part has the bytes of the control
//! part's writes and answers to reads, one behind the other. So a receiver knows where all bytes of
//! a frame belong before the first of them arrives, and takes them straight to their places.

use std::net::{IpAddr, Ipv6Addr};

use crate::{Key, LARGE_MESSAGE_BYTES, RemoteSlice};

/// Of this fabric's greetings.
const MAGIC: [u8; 4] = *b"GNTC";
/// The version of what this module describes, the only one so far.
pub(super) const VERSION: u16 = 1;

/// Length of a greeting, not counting the credentials that may follow it.
pub(super) const GREETING_BYTES: usize = 64;
/// Length of a frame's header.
pub(super) const HEADER_BYTES: usize = 32;
/// Longest control part of a frame.
pub(super) const CONTROL_BYTES_MAX: usize = 32 * 1024;
/// Longest payload of one write or read.
pub(super) const TRANSFER_BYTES_MAX: u32 = 8 << 20;
/// Entries begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Length of the entry that asks for a write or read.
pub(super) const TRANSFER_ENTRY_BYTES: usize = 24;
/// Length of the entries that answer.
pub(super) const ANSWER_ENTRY_BYTES: usize = 16;
/// Length of what stands in front of a message.
const MESSAGE_HEADER_BYTES: usize = 8;

/// What a greeting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GreetingKind {
    /// The connector's.
    Hello,
    /// The acceptor's: the connection is usable.
    Welcome,
    /// The acceptor's: it is not, and the stream ends.
    Refused(Refusal),
}

/// Why an acceptor does not want a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No room for another connection.
    Full,
    /// The peer is on no list of trusted hosts.
    NotTrusted,
    /// No version in common, or something that this version does not know.
    Protocol,
}

/// What each end says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) kind: GreetingKind,
    /// Messages of the small class that the peer may have on their way to the sender of this.
    pub(super) small_credits: u16,
    /// The same for the large class.
    pub(super) large_credits: u16,
    /// Writes and reads that the peer may have under way.
    pub(super) transfers_max: u16,
    /// Whether the sender wants payload to carry a checksum.
    pub(super) payload_checksums: bool,
    /// The receiver's address as the sender sees it.
    pub(super) seen: Option<IpAddr>,
}

/// What is wrong with bytes from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

const FEATURE_PAYLOAD_CHECKSUMS: u32 = 1;

impl Greeting {
    pub(super) fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        (bytes[4], bytes[5]) = match self.kind {
            GreetingKind::Hello => (1, 0),
            GreetingKind::Welcome => (2, 0),
            GreetingKind::Refused(Refusal::Full) => (3, 1),
            GreetingKind::Refused(Refusal::NotTrusted) => (3, 2),
            GreetingKind::Refused(Refusal::Protocol) => (3, 3),
        };
        let mut features = 0;
        if self.payload_checksums {
            features |= FEATURE_PAYLOAD_CHECKSUMS;
        }
        // Lowest and highest version that the sender speaks.
        put_u16(&mut bytes, 6, VERSION);
        put_u16(&mut bytes, 8, VERSION);
        put_u16(&mut bytes, 10, self.small_credits);
        put_u16(&mut bytes, 12, self.large_credits);
        put_u16(&mut bytes, 14, self.transfers_max);
        put_u32(&mut bytes, 16, features);
        // 20..22: method of authentication, 22..24: length of the credentials that follow. None yet.
        let seen = match self.seen {
            Some(IpAddr::V4(seen)) => seen.to_ipv6_mapped(),
            Some(IpAddr::V6(seen)) => seen,
            None => Ipv6Addr::UNSPECIFIED,
        };
        bytes[24..40].copy_from_slice(&seen.octets());
        let sum = crc32c::crc32c(&bytes[..60]);
        put_u32(&mut bytes, 60, sum);
        bytes
    }

    /// Checks what is there of a greeting, so that a service of another kind is known by its first
    /// bytes.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn check_begin(bytes: &[u8]) -> Result<(), Violation> {
        let there = bytes.len().min(MAGIC.len());
        if bytes[..there] != MAGIC[..there] {
            return Err(Violation("it does not speak the protocol of Gannet's tcp fabric"));
        }
        Ok(())
    }

    /// # Errors
    /// What is wrong, for the log.
    pub(super) fn decode(bytes: &[u8; GREETING_BYTES]) -> Result<Greeting, Violation> {
        Greeting::check_begin(bytes)?;
        if u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return Err(Violation("the checksum of its greeting is wrong"));
        }
        let kind = match (bytes[4], bytes[5]) {
            (1, 0) => GreetingKind::Hello,
            (2, 0) => GreetingKind::Welcome,
            (3, 1) => GreetingKind::Refused(Refusal::Full),
            (3, 2) => GreetingKind::Refused(Refusal::NotTrusted),
            (3, 3) => GreetingKind::Refused(Refusal::Protocol),
            _ => return Err(Violation("its greeting is of an unknown kind")),
        };
        let refused = matches!(kind, GreetingKind::Refused(_));
        if !refused && !(u16_at(bytes, 6)..=u16_at(bytes, 8)).contains(&VERSION) {
            return Err(Violation("it speaks other versions of the protocol"));
        }
        if u16_at(bytes, 20) != 0 || u16_at(bytes, 22) != 0 {
            return Err(Violation("it uses a method of authentication that is not known here"));
        }
        let seen = match <[u8; 16]>::try_from(&bytes[24..40]) {
            Ok(octets) => Ipv6Addr::from(octets),
            Err(_) => Ipv6Addr::UNSPECIFIED,
        };
        let greeting = Greeting {
            kind,
            small_credits: u16_at(bytes, 10),
            large_credits: u16_at(bytes, 12),
            transfers_max: u16_at(bytes, 14),
            payload_checksums: u32_at(bytes, 16) & FEATURE_PAYLOAD_CHECKSUMS != 0,
            seen: (!seen.is_unspecified()).then(|| seen.to_canonical()),
        };
        let nothing = [greeting.small_credits, greeting.large_credits, greeting.transfers_max];
        if !refused && nothing.contains(&0) {
            return Err(Violation("its greeting grants no credits"));
        }
        Ok(greeting)
    }
}

/// In front of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the control part, bytes.
    pub(super) control_bytes: u32,
    /// Length of the payload part, bytes.
    pub(super) payload_bytes: u32,
    /// Counts the frames of this direction, from 0.
    pub(super) sequence: u32,
    /// How many of the receiver's writes the sender has placed, in all, modulo 2^32.
    pub(super) writes_placed: u32,
    /// Credits that the receiver of this gets back.
    pub(super) small_returned: u16,
    pub(super) large_returned: u16,
}

impl FrameHeader {
    /// Writes the header in front of its control part: `frame` is both.
    pub(super) fn encode(&self, frame: &mut [u8]) {
        put_u32(frame, 4, self.control_bytes);
        put_u32(frame, 8, self.payload_bytes);
        put_u32(frame, 12, self.sequence);
        put_u32(frame, 16, self.writes_placed);
        put_u16(frame, 20, self.small_returned);
        put_u16(frame, 22, self.large_returned);
        // 24..32: reserved.
        frame[24..HEADER_BYTES].fill(0);
        let sum = crc32c::crc32c(&frame[4..]);
        put_u32(frame, 0, sum);
    }

    /// The length of the control part that `header` announces, before anything can be checked.
    ///
    /// # Errors
    /// Longer than any.
    pub(super) fn control_bytes(header: &[u8]) -> Result<usize, Violation> {
        let control_bytes = u32_at(header, 4) as usize;
        if control_bytes > CONTROL_BYTES_MAX || !control_bytes.is_multiple_of(ALIGNMENT) {
            return Err(Violation("a frame's control part has an impossible length"));
        }
        Ok(control_bytes)
    }

    /// Reads the header of `frame`, which is header and control part.
    ///
    /// # Errors
    /// Checksum or sequence are wrong.
    pub(super) fn decode(frame: &[u8], sequence: u32) -> Result<FrameHeader, Violation> {
        if u32_at(frame, 0) != crc32c::crc32c(&frame[4..]) {
            return Err(Violation("the checksum of a frame is wrong"));
        }
        let header = FrameHeader {
            control_bytes: u32_at(frame, 4),
            payload_bytes: u32_at(frame, 8),
            sequence: u32_at(frame, 12),
            writes_placed: u32_at(frame, 16),
            small_returned: u16_at(frame, 20),
            large_returned: u16_at(frame, 22),
        };
        if header.sequence != sequence {
            return Err(Violation("a frame is missing or repeated"));
        }
        Ok(header)
    }
}

/// One element of a control part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A message of so many bytes, which follow the entry.
    Message {
        /// Its length.
        len_bytes: u16,
    },
    /// Bytes for the receiver's memory; they are in the payload part.
    Write {
        /// Where to.
        remote: RemoteSlice,
        /// CRC32C of the payload, if checksums are in force; else 0.
        checksum: u32,
    },
    /// Asks for bytes of the receiver's memory.
    Read {
        /// Where from.
        remote: RemoteSlice,
    },
    /// Answers the oldest read that has no answer yet; the bytes are in the payload part.
    ReadAnswer {
        /// How many.
        len_bytes: u32,
        /// As in `Write`.
        checksum: u32,
    },
    /// The receiver's transfer with this number (they are counted from 0, modulo 2^32, writes and
    /// reads) was refused, and nothing behind it has any effect. Nothing follows.
    Refused {
        /// Which.
        transfer: u32,
    },
    /// The sender ends the connection in order. Nothing follows.
    Goodbye,
}

impl Entry {
    /// Appends the entry; a message's bytes have to follow, by [`push_message`].
    pub(super) fn push(self, to: &mut Vec<u8>) {
        let mut bytes = [0; TRANSFER_ENTRY_BYTES];
        let len = match self {
            Entry::Message { len_bytes } => {
                bytes[0] = 1;
                put_u16(&mut bytes, 2, len_bytes);
                MESSAGE_HEADER_BYTES
            }
            Entry::Write { remote, checksum } => {
                bytes[0] = 2;
                put_u32(&mut bytes, 4, checksum);
                put_remote(&mut bytes, remote)
            }
            Entry::Read { remote } => {
                bytes[0] = 3;
                put_remote(&mut bytes, remote)
            }
            Entry::ReadAnswer { len_bytes, checksum } => {
                bytes[0] = 4;
                put_u32(&mut bytes, 4, checksum);
                put_u32(&mut bytes, 8, len_bytes);
                ANSWER_ENTRY_BYTES
            }
            Entry::Refused { transfer } => {
                bytes[0] = 5;
                put_u32(&mut bytes, 8, transfer);
                ANSWER_ENTRY_BYTES
            }
            Entry::Goodbye => {
                bytes[0] = 6;
                ANSWER_ENTRY_BYTES
            }
        };
        to.extend_from_slice(&bytes[..len]);
    }

    /// Appends a message with its entry.
    pub(super) fn push_message(message: &[u8], to: &mut Vec<u8>) {
        Entry::Message { len_bytes: message.len() as u16 }.push(to);
        to.extend_from_slice(message);
        to.resize(to.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// How many bytes of a control part a message takes.
    pub(super) const fn message_bytes(len_bytes: usize) -> usize {
        (MESSAGE_HEADER_BYTES + len_bytes).next_multiple_of(ALIGNMENT)
    }

    /// Reads the entry at the start of `control`. Returns it with the bytes that belong to it (a
    /// message's follow its first [`Entry::MESSAGE_START`]), and how many bytes of payload it has.
    ///
    /// # Errors
    /// Unknown, cut off, or longer than allowed.
    pub(super) fn read(control: &[u8]) -> Result<(Entry, usize, u32), Violation> {
        let cut_off = Violation("an entry of a frame is cut off");
        let Some(first) = control.get(..MESSAGE_HEADER_BYTES) else { return Err(cut_off) };
        let len = match first[0] {
            1 => Entry::message_bytes(u16_at(first, 2).into()),
            2 | 3 => TRANSFER_ENTRY_BYTES,
            4..=6 => ANSWER_ENTRY_BYTES,
            _ => return Err(Violation("an entry of a frame is of an unknown kind")),
        };
        let Some(bytes) = control.get(..len) else { return Err(cut_off) };
        let entry = match bytes[0] {
            1 => Entry::Message { len_bytes: u16_at(bytes, 2) },
            2 => Entry::Write { remote: remote_at(bytes), checksum: u32_at(bytes, 4) },
            3 => Entry::Read { remote: remote_at(bytes) },
            4 => Entry::ReadAnswer { len_bytes: u32_at(bytes, 8), checksum: u32_at(bytes, 4) },
            5 => Entry::Refused { transfer: u32_at(bytes, 8) },
            _ => Entry::Goodbye,
        };
        let (payload, longest) = match entry {
            Entry::Message { len_bytes } if usize::from(len_bytes) > LARGE_MESSAGE_BYTES => {
                return Err(Violation("a message is longer than any"));
            }
            Entry::Write { remote, .. } => (remote.len_bytes, remote.len_bytes),
            Entry::Read { remote } => (0, remote.len_bytes),
            Entry::ReadAnswer { len_bytes, .. } => (len_bytes, len_bytes),
            _ => (0, 0),
        };
        if longest > TRANSFER_BYTES_MAX {
            return Err(Violation("a transfer is longer than any"));
        }
        Ok((entry, len, payload))
    }

    /// Where in a message's entry its bytes start.
    pub(super) const MESSAGE_START: usize = MESSAGE_HEADER_BYTES;
}

/// Fills in the checksum of an entry that was pushed with none.
pub(super) fn set_checksum(entry: &mut [u8], checksum: u32) {
    put_u32(entry, 4, checksum);
}

fn put_remote(bytes: &mut [u8], remote: RemoteSlice) -> usize {
    put_u32(bytes, 8, remote.key.0);
    put_u32(bytes, 12, remote.len_bytes);
    bytes[16..24].copy_from_slice(&remote.address.to_le_bytes());
    TRANSFER_ENTRY_BYTES
}

fn remote_at(bytes: &[u8]) -> RemoteSlice {
    let mut address = [0; 8];
    address.copy_from_slice(&bytes[16..24]);
    RemoteSlice {
        key: Key(u32_at(bytes, 8)),
        len_bytes: u32_at(bytes, 12),
        address: u64::from_le_bytes(address),
    }
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
