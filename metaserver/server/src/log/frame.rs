//! A frame: the records of one group commit.
//!
//! ```text
//! 0      8          24     32      40          48        52             56         60            64
//! magic  fs uuid    term   number  first_lsn   records   payload_bytes  previous   payload_crc
//! 64 header_crc  68 reserved (12)  80: records, each a length in 4 bytes and its bytes; zeros up to a block
//! ```
//! `previous` is the `payload_crc` of the frame before, so a frame of another history does not fit.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "GNTFRAME": starts every frame.
pub const MAGIC: [u8; 8] = *b"GNTFRAME";
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
/// Longest frame on disk, header and padding included, bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most bytes of records in a frame.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// Frames begin and end at multiples of this, bytes.
pub const FRAME_ALIGNMENT: usize = 4096;

/// Starts a frame.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// The file system's name.
    pub file_system_uuid: [u8; 16],
    /// Run of the metadata server that wrote it.
    pub term: U64,
    /// Counts the frames of the log from 1.
    pub number: U64,
    /// Position of the first record; positions count records from 1.
    pub first_lsn: U64,
    /// Number of records.
    pub records: U32,
    /// Bytes of all records with their lengths.
    pub payload_bytes: U32,
    /// `payload_crc32c` of the frame before; 0 in the first.
    pub previous_crc32c: U32,
    /// CRC32C of `previous_crc32c` and the payload.
    pub payload_crc32c: U32,
    /// CRC32C of the header with this field zero.
    pub header_crc32c: U32,
    /// Reserved, 0.
    pub reserved: [u8; 12],
}
const _: () = assert!(HEADER_BYTES == 80);

/// Where a log stands: what the next frame must continue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Number of the last frame, 0 before the first.
    pub number: u64,
    /// Position of the last record, 0 before the first.
    pub lsn: u64,
    /// Payload checksum of the last frame.
    pub crc32c: u32,
    /// Term of the last frame.
    pub term: u64,
}

/// What lies at a place where a frame could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next frame, whole; `padded_bytes` long on disk.
    Next {
        /// Where the log stands after it.
        position: Position,
        /// Bytes on disk.
        padded_bytes: usize,
        /// Bytes of records.
        payload_bytes: usize,
    },
    /// The next frame's header, but not all of it is in the bytes at hand.
    Incomplete {
        /// Bytes that the frame has on disk.
        padded_bytes: usize,
    },
    /// The next frame's header, but its payload was not written whole.
    TornPayload {
        /// Bytes that the frame has on disk.
        padded_bytes: usize,
    },
    /// Nothing that a frame of this log starts with.
    NoFrame,
    /// A frame of this file system that does not continue the log's last one.
    OutOfSequence {
        /// Its number.
        number: u64,
    },
}

/// Length of a frame with `payload_bytes` of records on disk.
#[must_use]
pub fn padded_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(FRAME_ALIGNMENT)
}

/// Writes the frame that follows `at` around the payload already at `frame[HEADER_BYTES..]`, zeroes
/// its padding and returns the position after it and its length on disk.
///
/// # Panics
/// If the payload does not fit `frame`: the writer bounds it.
pub fn seal(
    frame: &mut [u8],
    at: Position,
    term: u64,
    file_system_uuid: [u8; 16],
    records: u32,
    payload_bytes: usize,
) -> (Position, usize) {
    let padded = padded_bytes(payload_bytes);
    assert!(padded <= frame.len() && padded <= FRAME_BYTES_MAX, "a frame must fit its buffer");
    frame[HEADER_BYTES + payload_bytes..padded].fill(0);
    let payload = &frame[HEADER_BYTES..HEADER_BYTES + payload_bytes];
    let crc32c = payload_crc(at.crc32c, payload);
    let mut header = FrameHeader {
        magic: MAGIC,
        file_system_uuid,
        term: U64::new(term),
        number: U64::new(at.number + 1),
        first_lsn: U64::new(at.lsn + 1),
        records: U32::new(records),
        payload_bytes: U32::new(payload_bytes as u32),
        previous_crc32c: U32::new(at.crc32c),
        payload_crc32c: U32::new(crc32c),
        header_crc32c: U32::ZERO,
        reserved: [0; 12],
    };
    header.header_crc32c = U32::new(crc32c::crc32c(header.as_bytes()));
    frame[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let position =
        Position { number: at.number + 1, lsn: at.lsn + u64::from(records), crc32c, term };
    (position, padded)
}

/// Judges the bytes at a place where the frame after `at` could begin.
#[must_use]
pub fn judge(bytes: &[u8], at: Position, file_system_uuid: [u8; 16]) -> Verdict {
    let Some(header) = header(bytes, file_system_uuid) else {
        return Verdict::NoFrame;
    };
    let continues = header.number.get() == at.number.wrapping_add(1)
        && header.first_lsn.get() == at.lsn.wrapping_add(1)
        && header.previous_crc32c.get() == at.crc32c
        && header.term.get() >= at.term;
    if !continues {
        return Verdict::OutOfSequence { number: header.number.get() };
    }
    let payload_bytes = header.payload_bytes.get() as usize;
    let padded_bytes = padded_bytes(payload_bytes);
    if padded_bytes > bytes.len() {
        return Verdict::Incomplete { padded_bytes };
    }
    let payload = &bytes[HEADER_BYTES..HEADER_BYTES + payload_bytes];
    if payload_crc(at.crc32c, payload) != header.payload_crc32c.get() {
        return Verdict::TornPayload { padded_bytes };
    }
    let position = Position {
        number: header.number.get(),
        lsn: at.lsn + u64::from(header.records.get()),
        crc32c: header.payload_crc32c.get(),
        term: header.term.get(),
    };
    Verdict::Next { position, padded_bytes, payload_bytes }
}

/// The number of a frame of this file system that begins here, whatever it continues.
#[must_use]
pub fn frame_number(bytes: &[u8], file_system_uuid: [u8; 16]) -> Option<u64> {
    header(bytes, file_system_uuid).map(|header| header.number.get())
}

/// The records of a frame's payload.
pub fn records(payload: &[u8]) -> impl Iterator<Item = Result<&[u8], MalformedPayload>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let taken = rest
            .split_first_chunk::<4>()
            .and_then(|(len, after)| after.split_at_checked(u32::from_le_bytes(*len) as usize));
        Some(match taken {
            Some((record, after)) => {
                rest = after;
                Ok(record)
            }
            None => {
                rest = &[];
                Err(MalformedPayload)
            }
        })
    })
}

/// A frame's checksum fits, but its records do not fill its payload: a defect of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the records of a frame do not fill it")]
pub struct MalformedPayload;

fn header(bytes: &[u8], file_system_uuid: [u8; 16]) -> Option<FrameHeader> {
    let (header, _) = FrameHeader::read_from_prefix(bytes).ok()?;
    let mut copy = header;
    copy.header_crc32c = U32::ZERO;
    let fits = header.magic == MAGIC
        && header.file_system_uuid == file_system_uuid
        && crc32c::crc32c(copy.as_bytes()) == header.header_crc32c.get()
        && header.payload_bytes.get() as usize <= PAYLOAD_BYTES_MAX;
    fits.then_some(header)
}

fn payload_crc(previous: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&previous.to_le_bytes()), payload)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = [3; 16];

    fn frame(payload: &[u8], at: Position) -> (Vec<u8>, Position) {
        let mut bytes = vec![0xee; 8192];
        bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let (position, padded) = seal(&mut bytes, at, 5, UUID, 2, payload.len());
        bytes.truncate(padded);
        (bytes, position)
    }

    #[test]
    fn a_frame_is_read_back_and_each_flipped_bit_is_noticed() {
        let at = Position { number: 4, lsn: 10, crc32c: 99, term: 5 };
        let payload = [&3u32.to_le_bytes()[..], b"abc", &0u32.to_le_bytes()[..]].concat();
        let (bytes, position) = frame(&payload, at);
        assert_eq!((position.number, position.lsn), (5, 12));
        let verdict = judge(&bytes, at, UUID);
        let expected = Verdict::Next { position, padded_bytes: 4096, payload_bytes: payload.len() };
        assert_eq!(verdict, expected);
        let read: Vec<_> = records(&payload).collect();
        assert_eq!(read, [Ok(&b"abc"[..]), Ok(&b""[..])]);
        for bit in 0..(HEADER_BYTES + payload.len()) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let verdict = judge(&damaged, at, UUID);
            let noticed = matches!(verdict, Verdict::NoFrame | Verdict::TornPayload { .. });
            assert!(noticed, "bit {bit}: {verdict:?}");
        }
    }

    #[test]
    fn golden_bytes() {
        // The checksums were computed outside this crate, from the layout in docs/disk-format.md.
        let payload = [&3u32.to_le_bytes()[..], b"abc", &0u32.to_le_bytes()[..]].concat();
        let (bytes, _) = frame(&payload, Position { number: 4, lsn: 10, crc32c: 99, term: 5 });
        assert_eq!(bytes.len(), 4096);
        assert_eq!(&bytes[..8], b"GNTFRAME");
        assert_eq!(&bytes[8..24], &[3; 16]);
        assert_eq!(
            &bytes[24..48],
            &[5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(&bytes[48..60], &[2, 0, 0, 0, 11, 0, 0, 0, 99, 0, 0, 0]);
        assert_eq!(&bytes[60..64], &0x0240b543_u32.to_le_bytes());
        assert_eq!(&bytes[64..68], &0x35c5f44b_u32.to_le_bytes());
        assert_eq!(&bytes[68..80], &[0; 12]);
        assert_eq!(&bytes[80..91], b"\x03\0\0\0abc\0\0\0\0");
        assert!(bytes[91..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn frames_of_other_histories_do_not_fit() {
        let at = Position { number: 4, lsn: 10, crc32c: 99, term: 5 };
        let (bytes, _) = frame(b"", at);
        for other in [
            Position { number: 5, ..at },
            Position { lsn: 11, ..at },
            Position { crc32c: 98, ..at },
            Position { term: 6, ..at },
        ] {
            let expected = Verdict::OutOfSequence { number: 5 };
            assert_eq!(judge(&bytes, other, UUID), expected, "{other:?}");
        }
        assert_eq!(judge(&bytes, at, [4; 16]), Verdict::NoFrame);
        assert_eq!(judge(&bytes[..100], at, UUID), Verdict::Incomplete { padded_bytes: 4096 });
        assert_eq!(judge(&[], at, UUID), Verdict::NoFrame);
    }

    #[test]
    fn records_that_overrun_their_payload_are_refused() {
        let payload = [&9u32.to_le_bytes()[..], b"abc"].concat();
        assert_eq!(records(&payload).collect::<Vec<_>>(), [Err(MalformedPayload)]);
        assert_eq!(records(b"ab").collect::<Vec<_>>(), [Err(MalformedPayload)]);
    }
}
