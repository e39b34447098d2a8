//! The checks that every provider makes before it takes a transfer.

use crate::{BLOCK_BYTES, Transfer};

/// Whether a transfer moves whole blocks between memory and a file of `file_len_bytes`, inside
/// both.
pub(crate) fn is_valid(transfer: &Transfer, file_len_bytes: u64) -> bool {
    let Transfer { offset, memory, memory_offset, len_bytes, .. } = transfer;
    let block = BLOCK_BYTES as u64;
    let aligned = offset % block == 0
        && len_bytes % BLOCK_BYTES == 0
        && (memory.as_ptr() as usize).wrapping_add(*memory_offset) % BLOCK_BYTES == 0;
    let in_file = offset.checked_add(*len_bytes as u64).is_some_and(|end| end <= file_len_bytes);
    let in_memory = memory_offset.checked_add(*len_bytes).is_some_and(|end| end <= memory.len());
    *len_bytes > 0 && aligned && in_file && in_memory
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_runtime::memory::{Mapping, Memory};

    use super::*;
    use crate::FileId;

    #[test]
    fn only_whole_blocks_inside_file_and_memory_pass() {
        let block = BLOCK_BYTES as u64;
        let mapping = Mapping::anonymous(4 * BLOCK_BYTES).unwrap();
        let valid = |slice_offset: u64, offset, memory_offset, len_bytes| {
            let slice = mapping.slice(slice_offset, 2 * block).unwrap();
            let transfer = Transfer {
                token: 0,
                file: FileId(0),
                offset,
                memory: Memory::Shared(slice),
                memory_offset,
                len_bytes,
            };
            is_valid(&transfer, 8 * block)
        };
        assert!(valid(0, 0, 0, 2 * BLOCK_BYTES));
        assert!(valid(0, 7 * block, BLOCK_BYTES, BLOCK_BYTES));
        // A slice may start inside a block as long as the transfer does not.
        assert!(valid(100, 0, BLOCK_BYTES - 100, BLOCK_BYTES));
        assert!(!valid(100, 0, 0, BLOCK_BYTES), "unaligned address");
        assert!(!valid(0, 512, 0, BLOCK_BYTES), "unaligned offset");
        assert!(!valid(0, 0, 0, 512), "unaligned length");
        assert!(!valid(0, 0, 0, 0), "empty");
        assert!(!valid(0, 7 * block, 0, 2 * BLOCK_BYTES), "past the file's end");
        assert!(!valid(0, u64::MAX - block + 1, 0, BLOCK_BYTES), "overflowing file range");
        assert!(!valid(0, 0, BLOCK_BYTES, 2 * BLOCK_BYTES), "past the memory's end");
        assert!(
            !valid(0, 0, usize::MAX - BLOCK_BYTES + 1, BLOCK_BYTES),
            "overflowing memory range"
        );
    }
}
