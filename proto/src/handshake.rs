//! The first messages on every channel.
//!
//! The connecting side sends [`Hello`] followed in the same packet by the channel's own opening
//! message; the accepting side answers with [`Refusal`] and ends the connection, or with the
//! channel's welcome.

use zerocopy::little_endian::{U16, U32, U64};

use crate::limits::CREDENTIALS_BYTES_MAX;
use crate::packet::{DecodeError, Message, message};
use crate::status::Status;

/// Starts every handshake: "GANNET" and the number of the handshake's own format.
pub const MAGIC: u64 = u64::from_le_bytes(*b"GANNET\0\x01");

/// Authentication methods of [`Hello::authentication`].
pub mod authentication {
    /// The fabric's own knowledge of the peer (credentials of a local process, list of hosts).
    pub const FABRIC: u16 = 0;
}

message! {
    /// Opens a channel. Tail: `credentials_bytes` of credentials for the authentication method.
    0x01, 40, Hello {
        /// [`MAGIC`].
        magic: U64,
        /// Lowest protocol version that the sender speaks.
        version_min: U16,
        /// Highest protocol version that the sender speaks.
        version_max: U16,
        /// See [`authentication`].
        authentication: U16,
        /// Length of the tail, at most 1024.
        credentials_bytes: U16,
        /// Features that the sender can use.
        features_offered: U64,
        /// Features that the sender cannot do without.
        features_required: U64,
        /// Reserved, 0.
        reserved: U64,
    }
}

message! {
    /// Refuses a channel. Tail: a text for people.
    0x02, 16, Refusal {
        /// Why: a [`Status`].
        status: U32,
        /// Lowest protocol version that the sender speaks.
        version_min: U16,
        /// Highest protocol version that the sender speaks.
        version_max: U16,
        /// Features that the sender cannot do without.
        features_required: U64,
    }
}

/// Features of [`Hello::features_offered`] and [`Hello::features_required`].
pub mod features {
    /// READ and WRITE may name the buffer by memory windows:
    /// [`crate::operations::io_flags::WINDOWS`].
    pub const MEMORY_WINDOWS: u64 = 1;
}

/// Features that this build knows.
pub const FEATURES_KNOWN: u64 = features::MEMORY_WINDOWS;

impl Hello {
    /// The hello of this build, without credentials.
    #[must_use]
    pub fn current() -> Hello {
        Hello {
            magic: U64::new(MAGIC),
            version_min: U16::new(crate::VERSION),
            version_max: U16::new(crate::VERSION),
            authentication: U16::new(authentication::FABRIC),
            features_offered: U64::new(FEATURES_KNOWN),
            ..Hello::default()
        }
    }

    /// The features that both ends know: those in use from now on.
    #[must_use]
    pub fn features_in_use(&self) -> u64 {
        (self.features_offered.get() | self.features_required.get()) & FEATURES_KNOWN
    }

    /// Checks a received hello against this build.
    ///
    /// # Errors
    /// The status to refuse it with: `PROTOCOL`, `VERSION`, `FEATURE` or `NOT_SUPPORTED`.
    pub fn check(&self, tail: &[u8]) -> Result<(), Status> {
        let credentials = usize::from(self.credentials_bytes.get());
        if self.magic.get() != MAGIC
            || credentials > CREDENTIALS_BYTES_MAX
            || credentials > tail.len()
        {
            return Err(Status::PROTOCOL);
        }
        if self.version_min.get() > crate::VERSION || self.version_max.get() < crate::VERSION {
            return Err(Status::VERSION);
        }
        if self.features_required.get() & !FEATURES_KNOWN != 0 {
            return Err(Status::FEATURE);
        }
        if self.authentication.get() != authentication::FABRIC {
            return Err(Status::NOT_SUPPORTED);
        }
        Ok(())
    }
}

impl Refusal {
    /// A refusal by this build.
    #[must_use]
    pub fn new(status: Status) -> Refusal {
        Refusal {
            status: U32::new(status.0),
            version_min: U16::new(crate::VERSION),
            version_max: U16::new(crate::VERSION),
            features_required: U64::ZERO,
        }
    }
}

/// Cuts `len_bytes` off the front of a tail.
///
/// # Errors
/// `Field` naming `field` of `T` when the tail is shorter or the length is above `max`.
pub fn split_tail<'a, T: Message>(
    tail: &'a [u8],
    field: &'static str,
    len_bytes: usize,
    max: usize,
) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    if len_bytes > max || len_bytes > tail.len() {
        return Err(DecodeError::Field { message: T::NAME, field, value: len_bytes as u64 });
    }
    Ok(tail.split_at(len_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_that_cannot_be_served_are_refused() {
        assert_eq!(Hello::current().check(&[]), Ok(()));
        let newer =
            Hello { version_min: U16::new(2), version_max: U16::new(9), ..Hello::current() };
        assert_eq!(newer.check(&[]), Err(Status::VERSION));
        let noise = Hello { magic: U64::new(7), ..Hello::current() };
        assert_eq!(noise.check(&[]), Err(Status::PROTOCOL));
        let needs = |features| Hello { features_required: U64::new(features), ..Hello::current() };
        assert_eq!(needs(1 << 63).check(&[]), Err(Status::FEATURE));
        assert_eq!(needs(features::MEMORY_WINDOWS).check(&[]), Ok(()));
        let newer = Hello { features_offered: U64::new(u64::MAX), ..Hello::current() };
        assert_eq!(newer.features_in_use(), FEATURES_KNOWN);
        let plain = Hello { features_offered: U64::ZERO, ..Hello::current() };
        assert_eq!(plain.features_in_use(), 0);
        let short = Hello { credentials_bytes: U16::new(4), ..Hello::current() };
        assert_eq!(short.check(b"abc"), Err(Status::PROTOCOL));
        let other = Hello { authentication: U16::new(1), ..Hello::current() };
        assert_eq!(other.check(&[]), Err(Status::NOT_SUPPORTED));
    }
}
