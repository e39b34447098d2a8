//! Checks of READ and WRITE: what they have in common, and the memory windows in their tails.

use zerocopy::FromBytes;

use crate::limits::{REQUEST_BYTES_MAX, TARGETS_PER_FILE_MAX};
use crate::operations::{Read, RequestHeader, Window, Write, io_flags};
use crate::packet::{DecodeError, Message};

/// The fields that READ and WRITE share.
struct Io<'a> {
    header: &'a RequestHeader,
    length: u32,
    flags: u16,
    buffers: u16,
    windows: u16,
}

impl Io<'_> {
    #[inline]
    fn check<T: Message>(&self) -> Result<(), DecodeError> {
        self.header.check::<T>()?;
        let field = |field, value| Err(DecodeError::Field { message: T::NAME, field, value });
        if self.length == 0 || self.length > REQUEST_BYTES_MAX {
            return field("length", self.length.into());
        }
        if self.flags & !io_flags::KNOWN != 0 {
            return field("flags", self.flags.into());
        }
        if self.buffers != 1 {
            return field("buffers", self.buffers.into());
        }
        let named = self.flags & io_flags::WINDOWS != 0;
        let windows_max = if named { TARGETS_PER_FILE_MAX } else { 0 };
        if usize::from(self.windows) > windows_max {
            return field("windows", self.windows.into());
        }
        Ok(())
    }

    /// The windows in the tail, each for a data server of its own, none leaving the address space.
    #[inline]
    fn windows<'a, T: Message>(&self, tail: &'a [u8]) -> Result<&'a [Window], DecodeError> {
        self.check::<T>()?;
        let field = |field, value| DecodeError::Field { message: T::NAME, field, value };
        let count = usize::from(self.windows);
        if count == 0 {
            return Ok(&[]);
        }
        let (windows, _) = <[Window]>::ref_from_prefix_with_elems(tail, count)
            .map_err(|_too_short| field("windows", count as u64))?;
        for (index, window) in windows.iter().enumerate() {
            if windows[..index].iter().any(|other| other.target == window.target) {
                return Err(field("windows.target", window.target.get().into()));
            }
            if window.address.get().checked_add(self.length.into()).is_none() {
                return Err(field("windows.address", window.address.get()));
            }
        }
        Ok(windows)
    }
}

macro_rules! io_checks {
    ($message:ident) => {
        impl $message {
            #[inline]
            fn io(&self) -> Io<'_> {
                Io {
                    header: &self.header,
                    length: self.length.get(),
                    flags: self.flags.get(),
                    buffers: self.buffers.get(),
                    windows: self.windows.get(),
                }
            }

            /// Checks the fields that are bounded by the protocol.
            ///
            /// # Errors
            /// `Field`.
            pub fn check(&self) -> Result<(), DecodeError> {
                self.io().check::<$message>()
            }

            /// Checks the request's bounds and takes its windows from the tail: none, unless it
            /// has [`io_flags::WINDOWS`].
            ///
            /// # Errors
            /// `Field`.
            #[inline(always)]
            pub fn windows<'a>(&self, tail: &'a [u8]) -> Result<&'a [Window], DecodeError> {
                self.io().windows::<$message>(tail)
            }
        }
    };
}
io_checks!(Read);
io_checks!(Write);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zerocopy::IntoBytes;
    use zerocopy::little_endian::{U16, U32, U64};

    use super::*;

    fn header() -> RequestHeader {
        RequestHeader {
            shard: U16::new(1),
            slot: U16::new(2),
            attempt: U32::new(1),
            sequence: U64::new(1),
        }
    }

    #[test]
    fn io_out_of_bounds_is_refused_by_field() {
        let good = Read {
            header: header(),
            length: U32::new(4096),
            buffers: U16::new(1),
            ..Read::default()
        };
        assert_eq!(good.check(), Ok(()));
        let bad = |change: fn(&mut Read), name: &str| {
            let mut read = good;
            change(&mut read);
            match read.check() {
                Err(DecodeError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        };
        bad(|r| r.length = U32::ZERO, "length");
        bad(|r| r.length = U32::new(REQUEST_BYTES_MAX + 1), "length");
        bad(|r| r.flags = U16::new(8), "flags");
        bad(|r| r.windows = U16::new(1), "windows");
        bad(|r| r.buffers = U16::new(2), "buffers");
        bad(|r| r.header.shard = U16::new(64), "shard");
        bad(|r| r.header.slot = U16::new(256), "slot");
        bad(|r| r.header.sequence = U64::ZERO, "sequence");
        bad(|r| r.header.attempt = U32::ZERO, "attempt");
    }

    #[test]
    fn windows_are_bounded_by_the_tail_and_have_a_data_server_each() {
        let write = Write {
            header: header(),
            length: U32::new(4096),
            buffers: U16::new(1),
            flags: U16::new(io_flags::WINDOWS),
            windows: U16::new(2),
            ..Write::default()
        };
        let window = |target, address| Window {
            target: U32::new(target),
            key: U32::new(target + 100),
            epoch: U64::new(7),
            address: U64::new(address),
        };
        let named = |write: &Write, windows: &[Window]| match write.windows(windows.as_bytes()) {
            Ok(windows) => Ok(windows.len()),
            Err(DecodeError::Field { message: "Write", field, value }) => Err((field, value)),
            Err(other) => panic!("{other:?}"),
        };
        let highest = u64::MAX - 4096;
        let good = [window(1, 0), window(2, highest)];
        assert_eq!(write.windows(good.as_bytes()), Ok(&good[..]));
        assert_eq!(named(&write, &good[..1]), Err(("windows", 2)), "the tail is too short");
        assert_eq!(named(&write, &[good[0], good[0]]), Err(("windows.target", 1)));
        let beyond = [good[0], window(2, highest + 1)];
        assert_eq!(named(&write, &beyond), Err(("windows.address", highest + 1)));
        let many: std::vec::Vec<Window> = (0..17).map(|target| window(target, 0)).collect();
        let write_of = |windows| Write { windows: U16::new(windows), ..write };
        assert_eq!(named(&write_of(16), &many), Ok(16));
        assert_eq!(named(&write_of(17), &many), Err(("windows", 17)));
        assert_eq!(named(&write_of(0), &many), Ok(0), "before the set is known");
        let unnamed = Write { flags: U16::ZERO, ..write };
        assert_eq!(named(&unnamed, &good), Err(("windows", 2)));
        assert_eq!(named(&Write { windows: U16::ZERO, ..unnamed }, &good), Ok(0));
    }
}
