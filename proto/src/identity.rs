//! On whose behalf a request is made.
//!
//! A host serves many users. It tells a reactor of each with [`SetIdentity`], under a number of its
//! own, and requests name the number. Number 0 is the connection's own identity: what the fabric
//! knows of the peer, else what [`crate::operations::HostHello`] says.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use crate::packet::{DecodeError, Message, message};

/// Most supplementary groups of an identity.
pub const GROUPS_MAX: usize = 16;
/// Most identities of a session, besides that of the connection.
pub const IDENTITIES_MAX: u16 = 256;

message! {
    /// Tells the reactor who `identity` is, from the next request on. No reply: it may be repeated,
    /// and a host does so on each new channel. A host whose own identity is not the superuser's may
    /// name nobody but itself; what it is refused stays unknown, and requests in the name of an
    /// unknown identity are answered `UNKNOWN_IDENTITY`. Tail: `groups` numbers of supplementary
    /// groups, four bytes each.
    0x50, 16, SetIdentity {
        /// The host's number for it, 1 to 256.
        identity: U16,
        /// Number of supplementary groups, at most 16.
        groups: U16,
        /// The user; 0 is the superuser, whom no permission stops.
        uid: U32,
        /// The user's group.
        gid: U32,
        /// Reserved, 0.
        reserved: U32,
    }
}

impl SetIdentity {
    /// Checks the number of the identity and takes the groups from the tail.
    ///
    /// # Errors
    /// `Field`.
    pub fn groups<'a>(&self, tail: &'a [u8]) -> Result<&'a [U32], DecodeError> {
        let field = |field, value| DecodeError::Field { message: SetIdentity::NAME, field, value };
        let (identity, count) = (self.identity.get(), usize::from(self.groups.get()));
        if identity == 0 || identity > IDENTITIES_MAX {
            return Err(field("identity", identity.into()));
        }
        if count > GROUPS_MAX {
            return Err(field("groups", count as u64));
        }
        let (groups, _) = <[U32]>::ref_from_prefix_with_elems(tail, count)
            .map_err(|_too_short| field("groups", count as u64))?;
        Ok(groups)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn an_identity_is_bounded_by_its_table_and_the_tail() {
        let groups: [U32; 17] = core::array::from_fn(|group| U32::new(group as u32));
        let tail = groups.as_bytes();
        let of = |identity, count| SetIdentity {
            identity: U16::new(identity),
            groups: U16::new(count),
            ..SetIdentity::default()
        };
        let refused = |message: SetIdentity, tail| match message.groups(tail) {
            Err(DecodeError::Field { message: "SetIdentity", field, value }) => (field, value),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(1, 16).groups(tail), Ok(&groups[..16]));
        assert_eq!(of(IDENTITIES_MAX, 0).groups(&[]), Ok(&[][..]));
        assert_eq!(refused(of(0, 0), tail), ("identity", 0));
        assert_eq!(refused(of(IDENTITIES_MAX + 1, 0), tail), ("identity", 257));
        assert_eq!(refused(of(1, 17), tail), ("groups", 17));
        assert_eq!(refused(of(1, 3), &tail[..11]), ("groups", 3));
    }
}
