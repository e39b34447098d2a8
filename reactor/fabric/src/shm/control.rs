//! The control messages of the shm fabric: what travels over the unix socket.
//!
//! One message is one record of [`CONTROL_BYTES`] bytes, little endian, with at most one file
//! descriptor beside it. Every field is checked when it is decoded or where it is used; a record
//! that does not decode ends the connection.

use super::layout::Geometry;
use crate::Access;

/// Length of a control message, bytes.
pub(crate) const CONTROL_BYTES: usize = 32;
/// Tells this protocol from others.
const MAGIC: u64 = u64::from_le_bytes(*b"gannshm\0");
/// Changes with the layout of the shared memory or of a control message.
pub(crate) const VERSION: u32 = 1;

const ACCESS_READ: u32 = 1;
const ACCESS_WRITE: u32 = 2;

/// Why an acceptor refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The credentials are not on the list.
    NotTrusted,
    /// The greeting was not understood or its memory was not acceptable.
    Protocol,
    /// The table of connections is full.
    Full,
}

/// One control message. `+fd` marks those with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Connector's greeting; +fd of the connection's memory.
    Hello { geometry: Geometry, memory_bytes: u64 },
    /// The acceptor has mapped the memory: the connection is usable.
    Welcome,
    /// The acceptor does not want the connection.
    Refused(Refusal),
    /// The sender's memory becomes reachable; +fd of it.
    Register { key: u32, access: Access, address: u64, len_bytes: u64 },
    /// Answer to `Register`.
    Registered { key: u32 },
    /// The sender's memory is to be reachable no longer.
    Deregister { key: u32 },
    /// Answer to `Deregister`: nothing here reaches the memory any more.
    Deregistered { key: u32 },
    /// There is something in the rings.
    Wake,
}

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;
const REGISTER: u32 = 4;
const REGISTERED: u32 = 5;
const DEREGISTER: u32 = 6;
const DEREGISTERED: u32 = 7;
const WAKE: u32 = 8;

/// The fields of a record, by position: kind u32, a u32, b u32, c u32, d u64, e u64.
struct Record {
    kind: u32,
    a: u32,
    b: u32,
    c: u32,
    d: u64,
    e: u64,
}

impl Record {
    fn of(kind: u32, a: u32) -> Record {
        Record { kind, a, b: 0, c: 0, d: 0, e: 0 }
    }
}

impl Control {
    /// Whether a descriptor has to come with the message.
    pub(crate) fn carries_file(self) -> bool {
        matches!(self, Control::Hello { .. } | Control::Register { .. })
    }

    pub(crate) fn encode(self) -> [u8; CONTROL_BYTES] {
        let record = match self {
            Control::Hello { geometry, memory_bytes } => Record {
                kind: HELLO,
                a: VERSION,
                b: geometry.ring_slots,
                c: geometry.large_slots,
                d: MAGIC,
                e: memory_bytes,
            },
            Control::Welcome => Record { d: MAGIC, ..Record::of(WELCOME, VERSION) },
            Control::Refused(refusal) => {
                let reason = match refusal {
                    Refusal::NotTrusted => 1,
                    Refusal::Protocol => 2,
                    Refusal::Full => 3,
                };
                Record { d: MAGIC, ..Record::of(REFUSED, reason) }
            }
            Control::Register { key, access, address, len_bytes } => {
                let read = if access.remote_read { ACCESS_READ } else { 0 };
                let write = if access.remote_write { ACCESS_WRITE } else { 0 };
                Record { kind: REGISTER, a: key, b: read | write, c: 0, d: address, e: len_bytes }
            }
            Control::Registered { key } => Record::of(REGISTERED, key),
            Control::Deregister { key } => Record::of(DEREGISTER, key),
            Control::Deregistered { key } => Record::of(DEREGISTERED, key),
            Control::Wake => Record::of(WAKE, 0),
        };
        let mut bytes = [0; CONTROL_BYTES];
        bytes[0..4].copy_from_slice(&record.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&record.a.to_le_bytes());
        bytes[8..12].copy_from_slice(&record.b.to_le_bytes());
        bytes[12..16].copy_from_slice(&record.c.to_le_bytes());
        bytes[16..24].copy_from_slice(&record.d.to_le_bytes());
        bytes[24..32].copy_from_slice(&record.e.to_le_bytes());
        bytes
    }

    /// `None` for everything that `encode` does not produce: other magic or version included.
    pub(crate) fn decode(bytes: &[u8; CONTROL_BYTES]) -> Option<Control> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let record =
            Record { kind: word(0), a: word(4), b: word(8), c: word(12), d: long(16), e: long(24) };
        let key = record.a;
        let control = match record.kind {
            HELLO => {
                let geometry = Geometry { ring_slots: record.b, large_slots: record.c };
                Control::Hello { geometry, memory_bytes: record.e }
            }
            WELCOME => Control::Welcome,
            REFUSED => Control::Refused(match record.a {
                1 => Refusal::NotTrusted,
                2 => Refusal::Protocol,
                3 => Refusal::Full,
                _ => return None,
            }),
            REGISTER => Control::Register {
                key,
                access: Access {
                    remote_read: record.b & ACCESS_READ != 0,
                    remote_write: record.b & ACCESS_WRITE != 0,
                },
                address: record.d,
                len_bytes: record.e,
            },
            REGISTERED => Control::Registered { key },
            DEREGISTER => Control::Deregister { key },
            DEREGISTERED => Control::Deregistered { key },
            WAKE => Control::Wake,
            _ => return None,
        };
        // One spelling per message: unused fields are zero, magic and version are ours.
        (control.encode() == *bytes).then_some(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip_and_nothing_else_decodes() {
        let geometry = Geometry { ring_slots: 1024, large_slots: 64 };
        let access = Access { remote_read: true, remote_write: false };
        for control in [
            Control::Hello { geometry, memory_bytes: 1 << 20 },
            Control::Welcome,
            Control::Refused(Refusal::NotTrusted),
            Control::Refused(Refusal::Protocol),
            Control::Refused(Refusal::Full),
            Control::Register { key: 7, access, address: u64::MAX, len_bytes: 4096 },
            Control::Registered { key: 7 },
            Control::Deregister { key: u32::MAX },
            Control::Deregistered { key: 7 },
            Control::Wake,
        ] {
            let bytes = control.encode();
            assert_eq!(Control::decode(&bytes), Some(control));
            for at in 0..CONTROL_BYTES {
                for bit in 0..8 {
                    let mut damaged = bytes;
                    damaged[at] ^= 1 << bit;
                    assert_ne!(Control::decode(&damaged), Some(control));
                }
            }
        }
        assert_eq!(Control::decode(&[0; CONTROL_BYTES]), None);
        assert_eq!(Control::decode(&[0xff; CONTROL_BYTES]), None);
    }

    #[test]
    fn the_bytes_of_the_greeting_are_fixed() {
        let geometry = Geometry { ring_slots: 1024, large_slots: 64 };
        let bytes = Control::Hello { geometry, memory_bytes: 0x1234 }.encode();
        assert_eq!(
            &bytes,
            b"\x01\0\0\0\x01\0\0\0\0\x04\0\0\x40\0\0\0gannshm\0\x34\x12\0\0\0\0\0\0"
        );
    }
}
