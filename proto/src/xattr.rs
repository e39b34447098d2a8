//! Extended attributes: names with values beside those that every inode has.

use crate::handshake::split_tail;
use crate::ids::Handle;
use crate::limits::LARGE_PACKET_BYTES;
use crate::operations::{ReplyHeader, RequestHeader};
use crate::packet::{DecodeError, FrameHeader, Message, message};
use core::mem::size_of;
use zerocopy::little_endian::{U16, U32};

/// Longest name of an extended attribute, bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute, bytes: what a message has room for.
pub const XATTR_VALUE_BYTES_MAX: usize = 4096;
/// Most bytes of the names of one inode's extended attributes, each with a zero behind it: their
/// list fits a message.
pub const XATTR_LIST_BYTES_MAX: usize = 4096;

const _: () = assert!(
    size_of::<FrameHeader>()
        + size_of::<XattrRequest>()
        + XATTR_NAME_BYTES_MAX
        + XATTR_VALUE_BYTES_MAX
        <= LARGE_PACKET_BYTES
);
const _: () = assert!(
    size_of::<FrameHeader>() + size_of::<XattrReply>() + XATTR_LIST_BYTES_MAX <= LARGE_PACKET_BYTES
);

/// Operations of a [`XattrRequest`].
pub mod xattr_operation {
    /// The value of an attribute.
    pub const GET: u16 = 1;
    /// Gives an attribute a value.
    pub const SET: u16 = 2;
    /// The names of all attributes, each with a zero behind it.
    pub const LIST: u16 = 3;
    /// Removes an attribute.
    pub const REMOVE: u16 = 4;
}

/// Flags of a [`XattrRequest`].
pub mod xattr_flags {
    /// SET fails with `EXISTS` if the attribute is there.
    pub const CREATE: u16 = 1;
    /// SET fails with `NO_DATA` if it is not.
    pub const REPLACE: u16 = 2;
    /// Flags that this build knows.
    pub const KNOWN: u16 = 3;
}

message! {
    /// Asks for an extended attribute, or changes it. Answered by [`XattrReply`]. Names begin with
    /// `user.`, `trusted.` or `security.`. Tail: `name_bytes` of name, then `value_bytes` of value.
    0x52, 48, XattrRequest {
        /// Which request.
        header: RequestHeader,
        /// The inode.
        handle: Handle,
        /// See [`xattr_operation`].
        operation: U16,
        /// Length of the name; 0 for LIST.
        name_bytes: U16,
        /// SET: length of the value, at most 4096.
        value_bytes: U16,
        /// See [`xattr_flags`].
        flags: U16,
        /// On whose behalf, see [`crate::identity::SetIdentity`].
        identity: U16,
        /// Reserved, 0.
        reserved: U16,
        /// GET, LIST: most bytes that the tail of the reply shall hold; what is longer is answered
        /// `RANGE`. With 0 the reply tells the length alone.
        reply_bytes_max: U32,
    }
}

message! {
    /// Answers [`XattrRequest`]. Tail: `tail_bytes` of value or list.
    0x53, 32, XattrReply {
        /// Which request, and how it ended.
        header: ReplyHeader,
        /// Length of the value or list.
        value_bytes: U32,
        /// Bytes of it in the tail: all or none.
        tail_bytes: U32,
    }
}

/// Name and value of a [`XattrRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// The name; empty for LIST.
    pub name: &'a [u8],
    /// The value of SET.
    pub value: &'a [u8],
}

impl XattrRequest {
    /// Checks the request's bounds and takes name and value from the tail. Which names there may be
    /// is an answer to the host, not a protocol violation.
    ///
    /// # Errors
    /// `Field`.
    pub fn xattr<'a>(&self, tail: &'a [u8]) -> Result<Xattr<'a>, DecodeError> {
        self.header.check::<XattrRequest>()?;
        let (name, value) = (self.name_bytes.get().into(), self.value_bytes.get().into());
        let split = split_tail::<XattrRequest>;
        let (name, rest) = split(tail, "name_bytes", name, XATTR_NAME_BYTES_MAX)?;
        let (value, _) = split(rest, "value_bytes", value, XATTR_VALUE_BYTES_MAX)?;
        Ok(Xattr { name, value })
    }
}

impl XattrReply {
    /// Takes the value or list from the tail.
    ///
    /// # Errors
    /// `Field`.
    pub fn value<'a>(&self, tail: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        let (tail_bytes, value_bytes) = (self.tail_bytes.get(), self.value_bytes.get());
        if tail_bytes != 0 && tail_bytes != value_bytes {
            let (message, field) = (XattrReply::NAME, "tail_bytes");
            return Err(DecodeError::Field { message, field, value: tail_bytes.into() });
        }
        let (value, _) =
            split_tail::<XattrReply>(tail, "tail_bytes", tail_bytes as usize, LARGE_PACKET_BYTES)?;
        Ok(value)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zerocopy::little_endian::U64;

    use super::*;

    #[test]
    fn names_and_values_are_bounded_by_the_tail_and_their_limits() {
        let header =
            RequestHeader { attempt: U32::new(1), sequence: U64::new(1), ..Default::default() };
        let of = |name, value| XattrRequest {
            header,
            name_bytes: U16::new(name),
            value_bytes: U16::new(value),
            ..XattrRequest::default()
        };
        let tail = [7; 5000];
        let xattr = of(2, 3).xattr(b"abcde").unwrap();
        assert_eq!((xattr.name, xattr.value), (&b"ab"[..], &b"cde"[..]));
        assert!(of(2, 4).xattr(b"abcde").is_err());
        assert!(of(255, 4096).xattr(&tail).is_ok());
        assert!(of(256, 0).xattr(&tail).is_err());
        assert!(of(0, 4097).xattr(&tail).is_err());
        assert!(of(1, 1).xattr(b"").is_err());
        let reply = |value, tail| XattrReply {
            value_bytes: U32::new(value),
            tail_bytes: U32::new(tail),
            ..XattrReply::default()
        };
        assert_eq!(reply(3, 3).value(b"abcd"), Ok(&b"abc"[..]));
        assert_eq!(reply(9, 0).value(b""), Ok(&b""[..]));
        assert!(reply(9, 8).value(&tail).is_err() && reply(5, 5).value(b"abcd").is_err());
        assert!(reply(u32::MAX, u32::MAX).value(&tail).is_err());
    }
}
