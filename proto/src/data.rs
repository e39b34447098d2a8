//! The data session between a host and a data server.
//!
//! The host opens it with a ticket of the metadata server and sends nothing afterwards. The data
//! server posts RDMA on it and, after the data, arrival notices.

use zerocopy::little_endian::{U16, U32, U64};

use crate::limits::PARTS_MAX;
use crate::operations::RequestHeader;
use crate::packet::{DecodeError, Message, message};

message! {
    /// Follows [`crate::handshake::Hello`] from a host. Tail: the ticket.
    0x80, 24, DataHello {
        /// The host's session.
        session: U64,
        /// The epoch that the ticket opens.
        epoch: U64,
        /// Length of the ticket, at most 256.
        ticket_bytes: U16,
        /// Reserved, 0.
        reserved: [u8; 6],
    }
}

message! {
    /// Answers [`DataHello`].
    0x81, 16, DataWelcome {
        /// Protocol version of the session from now on.
        version: U16,
        /// Reserved, 0.
        reserved: [u8; 6],
        /// Features in use on the session.
        features: U64,
    }
}

message! {
    /// A part of a read is in the host's memory, or failed.
    0x82, 48, Arrival {
        /// A [`crate::Status`].
        status: U32,
        /// Bytes of this part.
        length: U32,
        /// Reserved for a CRC32C of the part, 0.
        crc32c: U32,
        /// Reserved, 0.
        reserved: U32,
        /// The grant's trailer.
        trailer: Trailer,
    }
}

/// What a metadata server puts into a grant's trailer for the host to read in the arrival notice.
/// Data servers do not look into it.
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
pub struct Trailer {
    /// The request.
    pub request: RequestHeader,
    /// Which part this is, from 0.
    pub part: U16,
    /// Number of parts.
    pub parts: U16,
    /// Bytes of the whole answer.
    pub total_bytes: U32,
    /// 1 if the answer ends at the end of the file.
    pub end_of_file: u8,
    /// Reserved, 0.
    pub reserved: [u8; 7],
}
const _: () = assert!(size_of::<Trailer>() == 32);

impl Arrival {
    /// Checks the fields that are bounded by the protocol.
    ///
    /// # Errors
    /// `Field`.
    pub fn check(&self) -> Result<(), DecodeError> {
        self.trailer.request.check::<Arrival>()?;
        let (part, parts) = (self.trailer.part.get(), self.trailer.parts.get());
        if usize::from(parts) > PARTS_MAX || part >= parts {
            return Err(DecodeError::Field {
                message: Arrival::NAME,
                field: "part",
                value: part.into(),
            });
        }
        Ok(())
    }
}
