//! How a request names the host's memory: by a region that its session registered, or by memory
//! windows of its own.
//!
//! Either way a data server gets an address, a key and the epoch of the data session that the key
//! belongs to. A window is the request's alone and holds exactly its bytes; it is kept with the
//! operation for as long as grants are still to be made, and never beyond.

use gannet_proto::operations::{BufferRef, Window, io_flags};
use gannet_proto::{Epoch, Status, TargetId};

use crate::registrations::{Registration, Registrations};

/// The host's memory of one READ or WRITE.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer<'a> {
    /// A range of a region.
    Region(BufferRef),
    /// A window at each data server.
    Windows(&'a [Window]),
}

/// Where one data server finds the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostMemory {
    pub epoch: Epoch,
    pub address: u64,
    pub key: u32,
}

impl<'a> Buffer<'a> {
    /// The memory of a request with these flags.
    pub(crate) fn new(flags: u16, buffer: BufferRef, windows: &'a [Window]) -> Buffer<'a> {
        if flags & io_flags::WINDOWS != 0 {
            Buffer::Windows(windows)
        } else {
            Buffer::Region(buffer)
        }
    }

    /// The windows, to be kept; none of a region.
    pub(crate) fn windows(self) -> &'a [Window] {
        match self {
            Buffer::Region(_) => &[],
            Buffer::Windows(windows) => windows,
        }
    }

    /// Where a data server finds the memory, `length` bytes of it.
    ///
    /// # Errors
    /// `STALE_SET` if the host has not named it to the data server, `INVALID` if it does not lie in
    /// its region.
    #[inline(always)]
    pub(crate) fn at(
        self,
        registrations: &Registrations,
        target: TargetId,
        length: u32,
    ) -> Result<HostMemory, Status> {
        match self {
            Buffer::Region(buffer) => {
                let found = registrations.find(buffer.region.get(), target);
                let Registration { epoch, address, length: region_bytes, key } =
                    *found.ok_or(Status::STALE_SET)?;
                let offset = buffer.offset.get();
                let end = offset.checked_add(length.into()).ok_or(Status::INVALID)?;
                if end > region_bytes || address.checked_add(end).is_none() {
                    return Err(Status::INVALID);
                }
                Ok(HostMemory { epoch, address: address + offset, key })
            }
            Buffer::Windows(windows) => {
                let found = windows.iter().find(|window| window.target.get() == target.0);
                let window = found.ok_or(Status::STALE_SET)?;
                let address = window.address.get();
                address.checked_add(length.into()).ok_or(Status::INVALID)?;
                let (epoch, key) = (Epoch(window.epoch.get()), window.key.get());
                Ok(HostMemory { epoch, address, key })
            }
        }
    }
}
