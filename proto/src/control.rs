//! The back control channel between a metadata-server reactor and a data server.
//!
//! The data server connects, and names itself and its stores. Grants flow to it; notices and
//! retirements flow back. Nothing on this channel passes through a host.

use zerocopy::little_endian::{U16, U32, U64};

use crate::limits::{BLOCK_BYTES, PARTS_MAX, REQUEST_BYTES_MAX};
use crate::packet::{DecodeError, Message, message};

message! {
    /// Follows [`crate::handshake::Hello`] from a data server. Tail: the first address for data
    /// sessions, then `stores` of [`StoreInfo`], then `further_addresses`, each a length in two bytes
    /// and the address, then, with `names_file_system`, 16 bytes: the file system that the data
    /// server belongs to. A metadata server of another one refuses it.
    0x60, 40, TargetHello {
        /// Names the data server for good.
        uuid: [u8; 16],
        /// The data server's run: random, new at each start.
        instance: U64,
        /// Length of the first address.
        address_bytes: U16,
        /// Number of stores, at most 16.
        stores: U16,
        /// Number of further addresses, at most 7.
        further_addresses: U16,
        /// 1 if the data server says which file system it belongs to.
        names_file_system: U16,
        /// Reserved, 0.
        reserved2: U64,
    }
}

/// A store of a data server, in [`TargetHello`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct StoreInfo {
    /// Names the store for good.
    pub uuid: [u8; 16],
    /// Grows when the store lost its content: at each start of a RAM store.
    pub generation: U32,
    /// Bytes of a block.
    pub block_bytes: U32,
    /// Blocks that can be granted: numbers from 0 up to it.
    pub blocks: U64,
}
const _: () = assert!(size_of::<StoreInfo>() == 32);

message! {
    /// Answers [`TargetHello`]. Tail: `stores` store ids in the order of the hello, four bytes
    /// each; then for each reactor a length in two bytes and its first address; then
    /// `further_addresses`, each the number of its reactor in two bytes, a length in two bytes and
    /// the address; then, with `names_file_system`, the file system's 16 bytes. The data server opens
    /// a channel to every reactor.
    0x61, 40, TargetWelcome {
        /// Protocol version of the channel from now on.
        version: U16,
        /// Number of reactors.
        reactors: U16,
        /// Which of them answers.
        reactor: U16,
        /// Number of stores.
        stores: U16,
        /// Features in use on the channel.
        features: U64,
        /// The metadata server's run. Grants of lower terms are refused from now on.
        term: U64,
        /// The data server's number.
        target: U32,
        /// Most grants of this reactor that may be outstanding.
        grants_max: U32,
        /// Number of addresses beyond the first one of each reactor; a reactor has at most 8.
        further_addresses: U16,
        /// 1 if the tail ends with the file system's name.
        names_file_system: U16,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Asks the data server to end everything that this reactor granted in lower terms. Answered by
    /// [`Drained`] when nothing of it is posted, queued or under way any more.
    0x62, 16, Drain {
        /// The term that begins.
        term: U64,
        /// Reserved, 0.
        reserved: U64,
    }
}

message! {
    /// No I/O or transfer of a lower term of this reactor is under way, nor will be.
    0x63, 16, Drained {
        /// The term of the [`Drain`].
        term: U64,
        /// Reserved, 0.
        reserved: U64,
    }
}

message! {
    /// Announces a data session. All lower epochs of the session end. Tail: the ticket. Answered by
    /// [`SessionReady`].
    0x64, 32, SessionOpen {
        /// The host's session.
        session: U64,
        /// The new epoch.
        epoch: U64,
        /// Length of the ticket, at most 256.
        ticket_bytes: U16,
        /// Reserved, 0.
        reserved: [u8; 14],
    }
}

message! {
    /// The data server accepts the ticket from now on; nothing of lower epochs is under way.
    0x65, 24, SessionReady {
        /// The host's session.
        session: U64,
        /// The epoch.
        epoch: U64,
        /// How it went: `OK`, `STALE_EPOCH` if a higher epoch is known, `AGAIN` if the table is full.
        status: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Ends a data session up to an epoch: the host is gone. Answered by [`SessionClosed`].
    0x66, 16, SessionClose {
        /// The host's session.
        session: U64,
        /// The last epoch that ends.
        epoch: U64,
    }
}

message! {
    /// Nothing of the session up to the epoch is under way, nor will be.
    0x67, 16, SessionClosed {
        /// The host's session.
        session: U64,
        /// The last epoch that ended.
        epoch: U64,
    }
}

/// What a [`Grant`] asks for.
pub mod grant_operation {
    /// Block I/O from the store, then RDMA WRITE to the host.
    pub const READ: u8 = 1;
    /// RDMA READ from the host, then block I/O to the store, durable.
    pub const WRITE: u8 = 2;
    /// RDMA WRITE of zeros to the host.
    pub const ZERO: u8 = 3;
}

/// Flags of a [`Grant`].
pub mod grant_flags {
    /// Confirm placement to the metadata server with a [`super::Notice`]; no arrival notice goes to
    /// the host.
    pub const NOTIFY_METASERVER: u8 = 1;
    /// Flags that this build knows.
    pub const KNOWN: u8 = 1;
}

message! {
    /// Do this I/O for this host session, with this host buffer.
    ///
    /// A read moves `length` bytes that begin `offset` bytes into block `block`; only the first
    /// `valid` of them come from the store, the rest are zeros. A write fills the blocks from
    /// `block` on: `offset` bytes of the block at `head_block`, then the host's `length` bytes, then
    /// the rest of the last block from `tail_block`. Of those old blocks `head_valid` and
    /// `tail_valid` bytes count from the block's start, the rest is zeros; block `u64::MAX` is all
    /// zeros.
    0x68, 144, Grant {
        /// Term of the metadata server.
        term: U64,
        /// Number of the grant: with the term and the reactor its name. Counts up by 1.
        number: U64,
        /// The host's session.
        session: U64,
        /// Epoch of the data session.
        epoch: U64,
        /// The store.
        store: U32,
        /// The store's generation.
        generation: U32,
        /// See [`grant_operation`].
        operation: u8,
        /// See [`grant_flags`].
        flags: u8,
        /// The shard of the file, for tracing.
        shard: U16,
        /// Bytes between the first block's start and the host's first byte.
        offset: U32,
        /// First block in the store.
        block: U64,
        /// Bytes in the host's buffer, at least 1.
        length: U32,
        /// Bytes of a read that come from the store.
        valid: U32,
        /// Address of the host's buffer.
        host_address: U64,
        /// Key of the host's buffer.
        host_key: U32,
        /// Reserved for a CRC32C of the data, 0.
        crc32c: U32,
        /// Old block under the first block of a write.
        head_block: U64,
        /// Old block under the last block of a write.
        tail_block: U64,
        /// Valid bytes of the old block at the head.
        head_valid: U32,
        /// Valid bytes of the old block at the tail.
        tail_valid: U32,
        /// Copied into the arrival notice as it is.
        trailer: [u8; 32],
        /// Reserved, 0.
        reserved: U64,
    }
}

message! {
    /// How a single grant ended; retires it. Sent for writes, for reads with `NOTIFY_METASERVER`,
    /// and for whatever failed.
    0x69, 32, Notice {
        /// Term of the grant.
        term: U64,
        /// Number of the grant.
        number: U64,
        /// A [`crate::Status`].
        status: U32,
        /// Bytes moved.
        length: U32,
        /// Reserved for a CRC32C of the data, 0.
        crc32c: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

message! {
    /// Grants whose host has its arrival notice: all numbers up to `cumulative`, and `ranges` of
    /// [`RetiredRange`] in the tail.
    0x6a, 24, Retired {
        /// Term of the grants.
        term: U64,
        /// All grants up to this number are retired, by this message or earlier ones.
        cumulative: U64,
        /// Number of ranges.
        ranges: U16,
        /// Reserved, 0.
        reserved: [u8; 6],
    }
}

/// Numbers `first ..= last` are retired.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub struct RetiredRange {
    /// First number.
    pub first: U64,
    /// Last number.
    pub last: U64,
}
const _: () = assert!(size_of::<RetiredRange>() == 16);

message! {
    /// Ends a grant early. Its [`Notice`] follows in any case: `REVOKED` if nothing was posted.
    0x6b, 16, Revoke {
        /// Term of the grant.
        term: U64,
        /// Number of the grant.
        number: U64,
    }
}

message! {
    /// Asks for the data server's counters.
    0x6c, 8, TargetStats {
        /// Repeated in the answer.
        tag: U64,
    }
}

message! {
    /// Answers [`TargetStats`], in one or more parts. Tail: `count` of
    /// [`crate::operations::CounterEntry`] each with its name, then `connections` of
    /// [`crate::operations::ConnectionEntry`] each with its two texts.
    0x6d, 16, TargetStatsReply {
        /// Tag of the question.
        tag: U64,
        /// Number of counters.
        count: U16,
        /// Number of connections.
        connections: U16,
        /// 1 if another part follows.
        more: U16,
        /// Reserved, 0.
        reserved: U16,
    }
}

impl Grant {
    /// Checks the fields that are bounded by the protocol.
    ///
    /// # Errors
    /// `Field`.
    pub fn check(&self) -> Result<(), DecodeError> {
        let field = |field, value| Err(DecodeError::Field { message: Grant::NAME, field, value });
        if !(grant_operation::READ..=grant_operation::ZERO).contains(&self.operation) {
            return field("operation", self.operation.into());
        }
        if self.flags & !grant_flags::KNOWN != 0 {
            return field("flags", self.flags.into());
        }
        if self.number.get() == 0 {
            return field("number", 0);
        }
        let (offset, length) = (self.offset.get(), self.length.get());
        if offset >= BLOCK_BYTES {
            return field("offset", offset.into());
        }
        if length == 0 || length > REQUEST_BYTES_MAX {
            return field("length", length.into());
        }
        if self.valid.get() > length {
            return field("valid", self.valid.get().into());
        }
        if self.head_valid.get() > BLOCK_BYTES {
            return field("head_valid", self.head_valid.get().into());
        }
        if self.tail_valid.get() > BLOCK_BYTES {
            return field("tail_valid", self.tail_valid.get().into());
        }
        if self.block.get().checked_add(self.blocks()).is_none() {
            return field("block", self.block.get());
        }
        if self.host_address.get().checked_add(length.into()).is_none() {
            return field("host_address", self.host_address.get());
        }
        Ok(())
    }

    /// Blocks that the grant covers.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        let bytes = u64::from(self.offset.get()) + u64::from(self.length.get());
        bytes.div_ceil(u64::from(BLOCK_BYTES))
    }
}

const _: () = assert!(PARTS_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_out_of_bounds_are_refused_by_field() {
        let good = Grant {
            number: U64::new(1),
            operation: grant_operation::WRITE,
            length: U32::new(4096),
            offset: U32::new(4095),
            ..Grant::default()
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.blocks(), 2);
        let bad = |change: fn(&mut Grant), name: &str| {
            let mut grant = good;
            change(&mut grant);
            match grant.check() {
                Err(DecodeError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        };
        bad(|g| g.operation = 0, "operation");
        bad(|g| g.operation = 4, "operation");
        bad(|g| g.flags = 2, "flags");
        bad(|g| g.number = U64::ZERO, "number");
        bad(|g| g.offset = U32::new(4096), "offset");
        bad(|g| g.length = U32::ZERO, "length");
        bad(|g| g.length = U32::new(u32::MAX), "length");
        bad(|g| g.valid = U32::new(4097), "valid");
        bad(|g| g.head_valid = U32::new(4097), "head_valid");
        bad(|g| g.tail_valid = U32::new(4097), "tail_valid");
        bad(|g| g.block = U64::new(u64::MAX), "block");
        bad(|g| g.host_address = U64::new(u64::MAX), "host_address");
    }
}
