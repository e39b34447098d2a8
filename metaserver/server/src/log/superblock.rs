//! The log's first block: what the log belongs to and how the file system is laid out.

use gannet_proto::limits::{BLOCK_BYTES, REACTORS_MAX, SHARDS};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "GANNETLG": starts the superblock of a log.
pub const MAGIC: [u8; 8] = *b"GANNETLG";
/// Version of the format that this build writes.
pub const VERSION: u32 = 1;
/// Bytes of the superblock on disk, and so the offset of the first frame.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// The superblock's bytes. Feature words are masks: an unknown *compatible* bit is ignored, an
/// unknown *read-only-compatible* bit forbids writing, an unknown *incompatible* bit forbids use.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Superblock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// CRC32C of the whole superblock with this field zero.
    pub crc32c: U32,
    /// Features that other versions may ignore.
    pub features_compatible: U64,
    /// Features that forbid other versions to write.
    pub features_read_only_compatible: U64,
    /// Features that forbid other versions any use.
    pub features_incompatible: U64,
    /// Names the file system for good; the same in all its logs.
    pub file_system_uuid: [u8; 16],
    /// Which reactor's log this is.
    pub reactor: U16,
    /// How many reactors, and so logs, the file system has.
    pub reactors: U16,
    /// Number of virtual shards.
    pub shards: U16,
    /// Data servers over which a file is striped at most.
    pub stripe_width: U16,
    /// Blocks of a file on one data server before the next takes over.
    pub stripe_blocks: U32,
    /// Bytes of a block.
    pub block_bytes: U32,
    /// Version of the shard map.
    pub map_version: U64,
    /// The reactor of each shard.
    pub shard_map: [u8; SHARDS],
    /// Reserved, 0.
    pub reserved: [u8; 3952],
}
const _: () = assert!(size_of::<Superblock>() == SUPERBLOCK_BYTES);

/// Why a superblock cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// The file is no log.
    #[error("it is not a Gannet log (bad magic): format the metadata directory first")]
    Magic,
    /// The bytes were damaged.
    #[error("its superblock is damaged (checksum mismatch): restore it from a backup")]
    Checksum,
    /// Written by another version.
    #[error("it has format version {found}, this build knows {VERSION}: use the matching build")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Uses features that this build does not have.
    #[error("it uses unknown features {bits:#x}: use a newer build")]
    Features {
        /// The unknown bits.
        bits: u64,
    },
    /// A field is out of bounds although the checksum fits.
    #[error("its superblock field {field} is {value}, which is out of bounds")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl Superblock {
    /// A superblock of this version; `seal` it before writing.
    #[must_use]
    pub fn new(file_system_uuid: [u8; 16], reactor: u16, reactors: u16) -> Superblock {
        let mut shard_map = [0; SHARDS];
        for (shard, place) in shard_map.iter_mut().enumerate() {
            *place = (shard % usize::from(reactors)) as u8;
        }
        Superblock {
            magic: MAGIC,
            version: U32::new(VERSION),
            crc32c: U32::ZERO,
            features_compatible: U64::ZERO,
            features_read_only_compatible: U64::ZERO,
            features_incompatible: U64::ZERO,
            file_system_uuid,
            reactor: U16::new(reactor),
            reactors: U16::new(reactors),
            shards: U16::new(SHARDS as u16),
            stripe_width: U16::new(gannet_proto::limits::TARGETS_PER_FILE_MAX as u16),
            stripe_blocks: U32::new((1 << 20) / BLOCK_BYTES),
            block_bytes: U32::new(BLOCK_BYTES),
            map_version: U64::new(1),
            shard_map,
            reserved: [0; 3952],
        }
    }

    /// Computes the checksum.
    pub fn seal(&mut self) {
        self.crc32c = U32::ZERO;
        self.crc32c = U32::new(crc32c::crc32c(self.as_bytes()));
    }

    /// Reads and checks a superblock.
    ///
    /// # Errors
    /// Everything of [`SuperblockError`]; too few bytes are no log.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let (superblock, _) =
            Superblock::read_from_prefix(bytes).map_err(|_| SuperblockError::Magic)?;
        if superblock.magic != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let mut copy = superblock;
        copy.seal();
        if copy.crc32c != superblock.crc32c {
            return Err(SuperblockError::Checksum);
        }
        if superblock.version.get() != VERSION {
            return Err(SuperblockError::Version { found: superblock.version.get() });
        }
        let unknown =
            superblock.features_incompatible.get() | superblock.features_read_only_compatible.get();
        if unknown != 0 {
            return Err(SuperblockError::Features { bits: unknown });
        }
        superblock.check_fields()?;
        Ok(superblock)
    }

    fn check_fields(&self) -> Result<(), SuperblockError> {
        let field = |field, value| Err(SuperblockError::Field { field, value });
        let (reactor, reactors) = (self.reactor.get(), self.reactors.get());
        if reactors == 0 || usize::from(reactors) > REACTORS_MAX {
            return field("reactors", reactors.into());
        }
        if reactor >= reactors {
            return field("reactor", reactor.into());
        }
        if usize::from(self.shards.get()) != SHARDS {
            return field("shards", self.shards.get().into());
        }
        if self.block_bytes.get() != BLOCK_BYTES {
            return field("block_bytes", self.block_bytes.get().into());
        }
        if self.stripe_blocks.get() == 0 {
            return field("stripe_blocks", 0);
        }
        let width = usize::from(self.stripe_width.get());
        if width == 0 || width > gannet_proto::limits::TARGETS_PER_FILE_MAX {
            return field("stripe_width", width as u64);
        }
        match self.shard_map.iter().find(|place| u16::from(**place) >= reactors) {
            Some(place) => field("shard_map", (*place).into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_named() {
        let mut good = Superblock::new([7; 16], 1, 2);
        good.seal();
        assert_eq!(Superblock::decode(good.as_bytes()).unwrap(), good);
        assert_eq!(Superblock::decode(&[0; 4096]), Err(SuperblockError::Magic));
        assert_eq!(Superblock::decode(&good.as_bytes()[..100]), Err(SuperblockError::Magic));
        for byte in [9, 13, 60, 100, 4095] {
            let mut bytes = good.as_bytes().to_vec();
            bytes[byte] ^= 1;
            assert_eq!(Superblock::decode(&bytes), Err(SuperblockError::Checksum), "{byte}");
        }
        let decode = |change: fn(&mut Superblock)| {
            let mut bad = good;
            change(&mut bad);
            bad.seal();
            Superblock::decode(bad.as_bytes()).unwrap_err().to_string()
        };
        assert!(decode(|s| s.version = U32::new(9)).contains("version 9"));
        assert!(decode(|s| s.features_incompatible = U64::new(4)).contains("0x4"));
        assert!(decode(|s| s.reactors = U16::ZERO).contains("reactors"));
        assert!(decode(|s| s.reactor = U16::new(2)).contains("reactor is 2"));
        assert!(decode(|s| s.shards = U16::new(9)).contains("shards"));
        assert!(decode(|s| s.block_bytes = U32::new(512)).contains("block_bytes"));
        assert!(decode(|s| s.stripe_blocks = U32::ZERO).contains("stripe_blocks"));
        assert!(decode(|s| s.stripe_width = U16::new(17)).contains("stripe_width"));
        assert!(decode(|s| s.shard_map[63] = 2).contains("shard_map"));
    }

    #[test]
    fn golden_bytes() {
        let mut superblock = Superblock::new([0xaa; 16], 0, 1);
        superblock.seal();
        let bytes = superblock.as_bytes();
        assert_eq!(&bytes[..12], b"GANNETLG\x01\0\0\0");
        assert_eq!(&bytes[40..56], &[0xaa; 16]);
        assert_eq!(&bytes[56..72], &[0, 0, 1, 0, 64, 0, 16, 0, 0, 1, 0, 0, 0, 16, 0, 0]);
        assert_eq!(crc32c::crc32c(&bytes[..16]), 0x1972824f);
    }
}
