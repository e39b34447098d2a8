//! Bounds that both ends of a channel rely on, with the arithmetic that ties them together.

use core::mem::size_of;

use crate::control::{Grant, StoreInfo};
use crate::operations::{Window, Write};
use crate::packet::FrameHeader;

/// Longest packet of the small class, bytes.
pub const SMALL_PACKET_BYTES: usize = 256;
/// Longest packet of the large class, bytes, and so the longest at all.
pub const LARGE_PACKET_BYTES: usize = 8192;
/// Unit of allocation, of atomic merging and of direct I/O, bytes.
pub const BLOCK_BYTES: u32 = 4096;
/// Most bytes that one READ or WRITE may name. Each such request is atomic as a whole.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;
/// Most grants that one request may need; a read that would need more is answered short.
pub const PARTS_MAX: usize = 256;
/// Virtual shards of a file system, fixed when it is formatted.
pub const SHARDS: usize = 64;
/// Most names of one file.
pub const LINKS_MAX: u32 = 65_000;
/// Most metadata-server reactors.
pub const REACTORS_MAX: usize = 64;
/// Most data servers that one file's blocks may lie on.
pub const TARGETS_PER_FILE_MAX: usize = 16;
/// Most stores of one data server.
pub const STORES_PER_TARGET_MAX: usize = 16;
/// Longest name of a directory entry, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path in one request, bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest address of a fabric end point, bytes.
pub const ADDRESS_BYTES_MAX: usize = 120;
/// Most addresses of one server: a metadata-server reactor or a data server.
pub const ADDRESSES_MAX: usize = 8;
/// Most bytes of the addresses of all metadata-server reactors, as
/// [`crate::addresses::reactors_bytes`] counts them: a welcome fits a packet.
pub const REACTOR_ADDRESSES_BYTES_MAX: usize = REACTORS_MAX * (ADDRESS_BYTES_MAX + 2);
/// Longest session ticket, bytes.
pub const TICKET_BYTES_MAX: usize = 256;
/// Longest credentials in a HELLO, bytes.
pub const CREDENTIALS_BYTES_MAX: usize = 1024;
/// Most slots of a session at one shard: requests outstanding there at the same time.
pub const SLOTS_MAX: usize = 256;
/// Most grants outstanding between one metadata-server reactor and one data server.
pub const GRANTS_MAX: usize = 4096;
/// Most memory regions of one session.
pub const REGIONS_MAX: usize = 4096;
/// Largest file, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 60;

const _: () = assert!(size_of::<FrameHeader>() + size_of::<Grant>() <= SMALL_PACKET_BYTES);
// Windows at seven data servers fit a small packet, at all of them one packet in any case.
const _: () = assert!(windows_bytes(7) <= SMALL_PACKET_BYTES);
const _: () = assert!(windows_bytes(TARGETS_PER_FILE_MAX) <= LARGE_PACKET_BYTES);
const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(PATH_BYTES_MAX + 512 <= LARGE_PACKET_BYTES);
const _: () = assert!(REACTOR_ADDRESSES_BYTES_MAX + 256 <= LARGE_PACKET_BYTES);
const _: () = assert!(
    512 + ADDRESSES_MAX * (ADDRESS_BYTES_MAX + 2) + STORES_PER_TARGET_MAX * size_of::<StoreInfo>()
        <= LARGE_PACKET_BYTES
);
const _: () = assert!(GRANTS_MAX >= PARTS_MAX * 2);
const _: () = assert!(GRANTS_MAX.is_power_of_two() && SLOTS_MAX.is_power_of_two());

/// Bytes of a WRITE with `windows` memory windows, alone in its packet.
const fn windows_bytes(windows: usize) -> usize {
    size_of::<FrameHeader>() + size_of::<Write>() + windows * size_of::<Window>()
}
