//! What the providers of two ends say to each other: in the private data of the connection
//! manager when a connection is made, and in front of every message. All numbers little-endian.

use crate::LARGE_MESSAGE_BYTES;
use crate::credits::{Class, Messages};

/// Of this provider's connections.
const MAGIC: [u8; 4] = *b"GNET";
/// Version of what this module describes.
const VERSION: u16 = 1;

/// Length of the private data of requests, answers and refusals.
pub(super) const GREETING_BYTES: usize = 16;
/// Length of what stands in front of every message.
pub(super) const HEADER_BYTES: usize = 8;
/// Longest message with its header.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + LARGE_MESSAGE_BYTES;

/// Why a connection was refused, as the refusal's private data says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No room for another connection.
    Full,
    /// The peer is on no list of trusted hosts.
    NotTrusted,
    /// Another protocol or version.
    Protocol,
}

/// What each end tells the other when they connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Messages that the peer may have on their way to the sender of this.
    pub(super) granted: Messages,
}

impl Greeting {
    pub(super) fn encode(self) -> [u8; GREETING_BYTES] {
        let mut bytes = prefix();
        bytes[8..10].copy_from_slice(&self.granted.small.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.granted.large.to_le_bytes());
        bytes
    }

    /// `None` for another protocol or version, or without credits. The connection manager may have
    /// padded what was sent.
    pub(super) fn decode(bytes: &[u8]) -> Option<Greeting> {
        let bytes = bytes.get(..GREETING_BYTES)?;
        let granted = Messages { small: u16_at(bytes, 8), large: u16_at(bytes, 10) };
        let usable = granted.small > 0 && granted.large > 0;
        (bytes[..6] == prefix()[..6] && usable).then_some(Greeting { granted })
    }
}

impl Refusal {
    pub(super) fn encode(self) -> [u8; GREETING_BYTES] {
        let mut bytes = prefix();
        bytes[6] = match self {
            Refusal::Full => 1,
            Refusal::NotTrusted => 2,
            Refusal::Protocol => 3,
        };
        bytes
    }

    /// `None` if it is not from this provider.
    pub(super) fn decode(bytes: &[u8]) -> Option<Refusal> {
        let bytes = bytes.get(..GREETING_BYTES)?;
        match (bytes[..4] == MAGIC, bytes[6]) {
            (true, 1) => Some(Refusal::Full),
            (true, 2) => Some(Refusal::NotTrusted),
            (true, 3) => Some(Refusal::Protocol),
            _ => None,
        }
    }
}

fn prefix() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message of the user, which took a credit of its class.
    Message(Class),
    /// Nothing but credits. Takes none.
    Credits,
    /// The sender ends the connection in order; nothing follows. Takes no credit.
    Goodbye,
}

/// In front of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Credits that the receiver of this gets back.
    pub(super) returned: Messages,
}

impl Header {
    pub(super) fn new(kind: Kind, returned: Messages) -> Header {
        Header { kind, returned }
    }

    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = match self.kind {
            Kind::Message(Class::Small) => 1,
            Kind::Message(Class::Large) => 2,
            Kind::Credits => 3,
            Kind::Goodbye => 4,
        };
        bytes[2..4].copy_from_slice(&self.returned.small.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.returned.large.to_le_bytes());
        bytes
    }

    /// The header of a frame of `frame_bytes` bytes; `None` if a peer that keeps to the protocol
    /// could not have sent it.
    pub(super) fn decode(bytes: [u8; HEADER_BYTES], frame_bytes: usize) -> Option<Header> {
        let body_bytes = frame_bytes.checked_sub(HEADER_BYTES)?;
        if frame_bytes > FRAME_BYTES_MAX {
            return None;
        }
        let kind = match bytes[0] {
            1 => Kind::Message(Class::Small),
            2 => Kind::Message(Class::Large),
            3 => Kind::Credits,
            4 => Kind::Goodbye,
            _ => return None,
        };
        let fits = match kind {
            Kind::Message(class) => Class::of(body_bytes) == class,
            Kind::Credits | Kind::Goodbye => body_bytes == 0,
        };
        let returned = Messages { small: u16_at(&bytes, 2), large: u16_at(&bytes, 4) };
        fits.then_some(Header { kind, returned })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn greetings_and_refusals_are_told_apart() {
        let greeting = Greeting { granted: Messages { small: 128, large: 300 } };
        let mut padded = greeting.encode().to_vec();
        padded.resize(56, 0);
        assert_eq!(Greeting::decode(&padded), Some(greeting));
        assert_eq!(Refusal::decode(&padded), None);
        for refusal in [Refusal::Full, Refusal::NotTrusted, Refusal::Protocol] {
            assert_eq!(Refusal::decode(&refusal.encode()), Some(refusal));
            assert_eq!(Greeting::decode(&refusal.encode()), None);
        }
    }

    #[test]
    fn foreign_greetings_are_refused() {
        let good = Greeting { granted: Messages { small: 1, large: 1 } }.encode();
        assert!(Greeting::decode(&good).is_some());
        for at in [0, 3, 4, 5] {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(Greeting::decode(&bad), None, "byte {at}");
        }
        for len in 0..GREETING_BYTES {
            assert_eq!(Greeting::decode(&good[..len]), None);
        }
        for none in [8, 10] {
            let mut bad = good;
            bad[none] = 0;
            assert_eq!(Greeting::decode(&bad), None);
        }
    }

    #[test]
    fn headers_survive_and_bad_ones_are_refused() {
        let lengths = [(Class::Small, 0), (Class::Small, 256), (Class::Large, 257)];
        for (class, body_bytes) in lengths {
            let returned = Messages { small: 7, large: 0x1234 };
            let header = Header { kind: Kind::Message(class), returned };
            let bytes = header.encode();
            assert_eq!(Header::decode(bytes, HEADER_BYTES + body_bytes), Some(header));
        }
        for kind in [Kind::Credits, Kind::Goodbye] {
            let bytes = Header { kind, returned: Messages { small: 1, large: 2 } }.encode();
            assert!(Header::decode(bytes, HEADER_BYTES).is_some());
            assert_eq!(Header::decode(bytes, HEADER_BYTES + 1), None, "{kind:?} with a body");
        }
        let small = Header::new(Kind::Message(Class::Small), Messages::default());
        assert_eq!(Header::decode(small.encode(), HEADER_BYTES + 257), None);
        let large = Header { kind: Kind::Message(Class::Large), ..small };
        assert_eq!(Header::decode(large.encode(), FRAME_BYTES_MAX), Some(large));
        for too_long in [FRAME_BYTES_MAX + 1, u32::MAX as usize] {
            assert_eq!(Header::decode(large.encode(), too_long), None);
        }
        assert_eq!(Header::decode(small.encode(), HEADER_BYTES - 1), None);
        for kind in [0, 5, 255] {
            let mut bytes = small.encode();
            bytes[0] = kind;
            assert_eq!(Header::decode(bytes, HEADER_BYTES), None);
        }
    }
}
