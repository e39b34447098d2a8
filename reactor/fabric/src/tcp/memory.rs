//! Bytes that others may touch meanwhile: never through references, only by copies.

/// Copies to `to`.
///
/// # Safety
/// There are at least `from.len()` bytes of mapped memory at `to`.
#[inline]
pub(super) unsafe fn copy_in(from: &[u8], to: *mut u8) {
    // SAFETY: promised by the caller; `from` is a reference, which no memory of that kind has.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

/// CRC32C of such memory.
///
/// # Safety
/// There are `len_bytes` bytes of mapped memory at `start`.
pub(super) unsafe fn checksum(start: *const u8, len_bytes: usize) -> u32 {
    let mut piece = [0; 4096];
    let mut sum = 0;
    let mut done = 0;
    while done < len_bytes {
        let next = &mut piece[..(len_bytes - done).min(4096)];
        let from = start.wrapping_add(done);
        // SAFETY: promised by the caller; `piece` is this function's own.
        unsafe { std::ptr::copy_nonoverlapping(from, next.as_mut_ptr(), next.len()) };
        sum = crc32c::crc32c_append(sum, next);
        done += next.len();
    }
    sum
}
