//! The superblock: its bytes, where its two copies lie, which of them counts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use gannet_proto::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::StoreProblem;
use super::read_at;

/// Bytes of a superblock's place.
pub(super) const SUPERBLOCK_BYTES: u64 = 4096;
/// Number of places.
pub(super) const SUPERBLOCKS: u64 = 2;
/// Bytes kept for each block behind the superblocks, unused as yet.
pub(super) const RESERVED_BYTES_PER_BLOCK: u64 = 16;
/// Data begins at a multiple of this.
pub(super) const DATA_ALIGNMENT_BYTES: u64 = 1 << 20;
/// Version of the format.
const VERSION: u32 = 1;
/// Starts every superblock.
const MAGIC: [u8; 8] = *b"GNTSTORE";
/// Features that this build knows, of either kind that may stop it.
const FEATURES_KNOWN: u64 = 0;
/// Bytes under the checksum: all of the place but the checksum itself.
const CHECKED_BYTES: usize = SUPERBLOCK_BYTES as usize - 4;

/// Bytes that have to be zero where a store is formatted without force.
const CONTENT_BYTES: usize = 128 << 10;

pub(super) const KIND_DIRECTORY: u32 = 1;
pub(super) const KIND_DEVICE: u32 = 2;
pub(super) const KIND_RAM: u32 = 3;

/// The fields of a superblock. They begin its place; zeros follow, and a CRC32C of all that in the
/// last four bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub(super) struct Superblock {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) kind: U32,
    /// Features that a build may ignore.
    pub(super) compatible: U64,
    /// Features that a build must know to write: a data server always writes.
    pub(super) read_only_compatible: U64,
    /// Features that a build must know to read.
    pub(super) incompatible: U64,
    /// Names the store.
    pub(super) store: [u8; 16],
    /// Names its data server.
    pub(super) target: [u8; 16],
    /// Grows with every write of a superblock: the higher valid one counts.
    pub(super) sequence: U64,
    /// Grows when the content is lost.
    pub(super) generation: U32,
    pub(super) block_bytes: U32,
    pub(super) blocks: U64,
    /// Where block 0 lies, bytes.
    pub(super) data_offset: U64,
    /// Length of the file or device when it was formatted.
    pub(super) file_bytes: U64,
    pub(super) reserved_bytes_per_block: U32,
    pub(super) reserved: U32,
}
const _: () = assert!(size_of::<Superblock>() == 120);
const _: () = assert!(size_of::<Superblock>() <= CHECKED_BYTES);

/// What lies in the two places.
#[derive(Debug)]
pub(super) enum Found {
    /// The superblock that counts.
    Valid(Superblock),
    /// Neither place has the magic: no store of ours.
    Nothing,
    /// The magic is there, and no checksum is right.
    Corrupt,
}

impl Superblock {
    /// A superblock of this build with no store in it.
    pub(super) fn current() -> Superblock {
        Superblock {
            magic: MAGIC,
            version: U32::new(VERSION),
            block_bytes: U32::new(BLOCK_BYTES),
            reserved_bytes_per_block: U32::new(RESERVED_BYTES_PER_BLOCK as u32),
            ..Superblock::new_zeroed()
        }
    }

    /// Why this build cannot use the store, if it cannot.
    pub(super) fn unusable(&self) -> Option<StoreProblem> {
        let flags = (self.incompatible.get() | self.read_only_compatible.get()) & !FEATURES_KNOWN;
        if self.version.get() != VERSION {
            Some(StoreProblem::Version { found: self.version.get(), known: VERSION })
        } else if flags != 0 {
            Some(StoreProblem::Features { flags })
        } else if self.block_bytes.get() != BLOCK_BYTES {
            Some(StoreProblem::Corrupt)
        } else {
            None
        }
    }

    /// The bytes of a superblock's place.
    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_BYTES as usize] {
        let mut place = [0; SUPERBLOCK_BYTES as usize];
        place[..size_of::<Superblock>()].copy_from_slice(self.as_bytes());
        let sum = crc32c::crc32c(&place[..CHECKED_BYTES]);
        place[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
        place
    }

    /// The superblock in a place, if its checksum is right.
    fn decode(place: &[u8; SUPERBLOCK_BYTES as usize]) -> Option<Superblock> {
        let (superblock, _) = Superblock::read_from_prefix(place).ok()?;
        let (checked, sum) = place.split_at(CHECKED_BYTES);
        let is_right = crc32c::crc32c(checked).to_le_bytes() == sum;
        (is_right && superblock.magic == MAGIC).then_some(superblock)
    }
}

/// Reads both places.
pub(super) fn find(file: &File) -> io::Result<Found> {
    let mut best: Option<Superblock> = None;
    let mut has_magic = false;
    for place in 0..SUPERBLOCKS {
        let mut bytes = [0; SUPERBLOCK_BYTES as usize];
        read_at(file, place * SUPERBLOCK_BYTES, &mut bytes)?;
        has_magic |= bytes.starts_with(&MAGIC);
        if let Some(superblock) = Superblock::decode(&bytes)
            && best.is_none_or(|best| best.sequence.get() < superblock.sequence.get())
        {
            best = Some(superblock);
        }
    }
    Ok(match best {
        Some(superblock) => Found::Valid(superblock),
        None if has_magic => Found::Corrupt,
        None => Found::Nothing,
    })
}

/// Whether the start of a file or device, where file systems and partition tables lie, has anything
/// but zeros.
pub(super) fn has_content(file: &File) -> io::Result<bool> {
    let mut start = vec![0; CONTENT_BYTES];
    read_at(file, 0, &mut start)?;
    Ok(start.iter().any(|byte| *byte != 0))
}

/// Writes both places, each durable before the next is touched: the copy first.
pub(super) fn write(file: &File, superblock: &Superblock) -> io::Result<()> {
    let bytes = superblock.encode();
    for place in (0..SUPERBLOCKS).rev() {
        file.write_all_at(&bytes, place * SUPERBLOCK_BYTES)?;
        file.sync_all()?;
    }
    Ok(())
}

/// A kind, for people.
pub(super) fn kind_name(kind: u32) -> &'static str {
    match kind {
        KIND_DIRECTORY => "directory",
        KIND_DEVICE => "device",
        KIND_RAM => "RAM",
        _ => "unknown",
    }
}
