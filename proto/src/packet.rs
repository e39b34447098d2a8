//! Packets: what a fabric carries as one message.
//!
//! A packet is one or more *frames*, each a [`FrameHeader`], a fixed body and a tail of bytes. The
//! header's length covers all three, so a reader skips frames and tails that it does not know.

use core::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::{LARGE_PACKET_BYTES, SMALL_PACKET_BYTES};

/// Starts every frame.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    /// Bytes of the frame, this header included.
    pub length: U16,
    /// Which message: see [`Message::KIND`].
    pub kind: U16,
    /// Reserved, 0.
    pub reserved: U32,
}
const _: () = assert!(size_of::<FrameHeader>() == 8);

/// A fixed-layout message body.
pub trait Message: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {
    /// Tells the messages of all channels apart.
    const KIND: u16;
    /// For error messages.
    const NAME: &'static str;
}

/// Why a packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The packet ends inside a frame header.
    #[error("the packet ends inside a frame header")]
    TruncatedHeader,
    /// A frame claims more bytes than the packet has, or fewer than a header.
    #[error("a frame of kind {kind:#x} claims {claimed} bytes of {available}")]
    FrameLength {
        /// The frame's kind.
        kind: u16,
        /// What its header says.
        claimed: usize,
        /// What is there.
        available: usize,
    },
    /// A body is shorter than its message.
    #[error("a {name} message of {len_bytes} bytes is too short")]
    TooShort {
        /// Which message.
        name: &'static str,
        /// Bytes after the frame header.
        len_bytes: usize,
    },
    /// A field is outside its domain.
    #[error("{message}.{field} is {value}, which is out of bounds")]
    Field {
        /// Which message.
        message: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A message that has no business on this channel or in this state.
    #[error("a message of kind {kind:#x} is not expected here")]
    Unexpected {
        /// Its kind.
        kind: u16,
    },
}

/// A frame of a received packet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Which message.
    pub kind: u16,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The body as `T`, and the tail after it.
    ///
    /// # Errors
    /// `TooShort`.
    pub fn read<T: Message>(&self) -> Result<(&'a T, &'a [u8]), DecodeError> {
        T::ref_from_prefix(self.body)
            .map_err(|_| DecodeError::TooShort { name: T::NAME, len_bytes: self.body.len() })
    }
}

/// Iterates over the frames of a received packet; ends after the first error.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The frames of `packet`.
    #[must_use]
    pub fn new(packet: &'a [u8]) -> Frames<'a> {
        Frames { rest: packet }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let available = self.rest.len();
        let Ok((header, _)) = FrameHeader::ref_from_prefix(self.rest) else {
            self.rest = &[];
            return Some(Err(DecodeError::TruncatedHeader));
        };
        let (claimed, kind) = (usize::from(header.length.get()), header.kind.get());
        if claimed < size_of::<FrameHeader>() || claimed > available {
            self.rest = &[];
            return Some(Err(DecodeError::FrameLength { kind, claimed, available }));
        }
        let (frame, rest) = self.rest.split_at(claimed);
        self.rest = rest;
        Some(Ok(Frame { kind, body: &frame[size_of::<FrameHeader>()..] }))
    }
}

/// The packet cannot take the frame: send it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet is full")]
pub struct PacketFull;

/// Collects frames into a packet.
#[derive(Clone, Debug)]
pub struct PacketWriter {
    bytes: [u8; LARGE_PACKET_BYTES],
    len: usize,
    frames: usize,
}

impl Default for PacketWriter {
    fn default() -> Self {
        PacketWriter::new()
    }
}

impl PacketWriter {
    /// An empty packet.
    #[must_use]
    pub const fn new() -> PacketWriter {
        PacketWriter { bytes: [0; LARGE_PACKET_BYTES], len: 0, frames: 0 }
    }

    /// Appends a frame of `message` and the pieces of its tail.
    ///
    /// # Errors
    /// [`PacketFull`], and the packet is as it was. A frame that does not fit an empty packet is
    /// full as well: callers bound their tails by `limits`.
    pub fn push<T: Message>(&mut self, message: &T, tail: &[&[u8]]) -> Result<(), PacketFull> {
        let tail_bytes: usize = tail.iter().map(|piece| piece.len()).sum();
        let length = size_of::<FrameHeader>() + size_of::<T>() + tail_bytes;
        let Some(target) = self.bytes.get_mut(self.len..self.len + length) else {
            return Err(PacketFull);
        };
        let header = FrameHeader {
            length: U16::new(length as u16),
            kind: U16::new(T::KIND),
            reserved: U32::ZERO,
        };
        let (head, rest) = target.split_at_mut(size_of::<FrameHeader>());
        head.copy_from_slice(header.as_bytes());
        let (body, mut rest) = rest.split_at_mut(size_of::<T>());
        body.copy_from_slice(message.as_bytes());
        for piece in tail {
            let (place, after) = rest.split_at_mut(piece.len());
            place.copy_from_slice(piece);
            rest = after;
        }
        self.len += length;
        self.frames += 1;
        Ok(())
    }

    /// Appends a frame that another packet was made of.
    ///
    /// # Errors
    /// [`PacketFull`], and the packet is as it was.
    pub fn push_encoded(&mut self, frame: &[u8]) -> Result<(), PacketFull> {
        let target = self.bytes.get_mut(self.len..self.len + frame.len()).ok_or(PacketFull)?;
        target.copy_from_slice(frame);
        self.len += frame.len();
        self.frames += 1;
        Ok(())
    }

    /// The packet so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether no frame is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of frames in it.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Whether it still fits a packet of the small class.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.len <= SMALL_PACKET_BYTES
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.len = 0;
        self.frames = 0;
    }
}

/// Declares a message: its kind, the struct with its derives, and a compile-time check of its size.
macro_rules! message {
    ($(#[$doc:meta])* $kind:literal, $size:literal, $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
            zerocopy::KnownLayout, zerocopy::Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl $crate::packet::Message for $name {
            const KIND: u16 = $kind;
            const NAME: &'static str = stringify!($name);
        }

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}
pub(crate) use message;
