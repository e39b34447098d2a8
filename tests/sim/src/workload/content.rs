//! What bytes say about where they come from.
//!
//! Bytes of a write are odd and tell the write and the place in the file. What lies in buffers that
//! belong to no request, or around the range of one, is even. Zeros are holes. So a byte in the
//! wrong place is seen to be wrong, wherever it turns up.

/// Fills buffers that no request uses, and what lies around the range of one.
pub const CANARY: u8 = 0xd4;
/// Fills the range of a read before it is submitted.
pub const POISON: u8 = 0x36;

/// Eight bytes of a file, as the write with this number leaves them.
fn word(number: u32, index: u64) -> [u8; 8] {
    let mut state = (u64::from(number) << 40) ^ index ^ 0x9e37_79b9_7f4a_7c15;
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((state ^ (state >> 31)) | 0x0101_0101_0101_0101).to_le_bytes()
}

/// Calls `visit` with the bytes that write `number` puts at `offset` and after, with their index.
fn each(
    number: u32,
    offset: u64,
    len_bytes: usize,
    mut visit: impl FnMut(usize, u8) -> bool,
) -> bool {
    let mut done = 0;
    while done < len_bytes {
        let at = offset + done as u64;
        let bytes = word(number, at / 8);
        for byte in &bytes[(at % 8) as usize..] {
            if done == len_bytes {
                break;
            }
            if !visit(done, *byte) {
                return false;
            }
            done += 1;
        }
    }
    true
}

/// Fills `bytes` with what write `number` puts at `offset` of its file.
pub fn fill(number: u32, offset: u64, bytes: &mut [u8]) {
    let len_bytes = bytes.len();
    each(number, offset, len_bytes, |index, byte| {
        bytes[index] = byte;
        true
    });
}

/// Whether `bytes` are what write `number` puts at `offset` of its file.
#[must_use]
pub fn is_of(number: u32, offset: u64, bytes: &[u8]) -> bool {
    each(number, offset, bytes.len(), |index, byte| bytes[index] == byte)
}

/// Whether all bytes are `byte`.
#[must_use]
pub fn is_all(byte: u8, bytes: &[u8]) -> bool {
    bytes.iter().all(|found| *found == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_write_and_place() {
        let mut bytes = [0; 100];
        fill(7, 13, &mut bytes);
        assert!(is_of(7, 13, &bytes) && is_of(7, 20, &bytes[7..]));
        assert!(!is_of(7, 14, &bytes[..99]) && !is_of(8, 13, &bytes));
        assert!(bytes.iter().all(|byte| byte % 2 == 1));
        assert!(CANARY.is_multiple_of(2) && POISON.is_multiple_of(2));
    }
}
