//! The stream of the tcp fabric written down a second time, from `docs/wire.md`: for frames that the
//! fabric itself never sends.

/// Puts a checksum over everything behind its place at the start.
fn seal(bytes: &mut [u8]) {
    let sum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
}

/// A greeting: 1 hello, 2 welcome, 3 a refusal with a reason.
pub(crate) fn greeting(kind: u8, reason: u8) -> Vec<u8> {
    let mut bytes = b"GNTC".to_vec();
    bytes.extend([kind, reason, 1, 0, 1, 0, 128, 0, 16, 0, 128, 0]);
    bytes.extend([0; 8]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 2]);
    bytes.resize(60, 0);
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// A frame of these entries and this payload.
pub(crate) fn frame(sequence: u32, control: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    let numbers = [control.len() as u32, payload.len() as u32, sequence, 0, 0, 0, 0];
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(control);
    seal(&mut bytes);
    bytes.extend(payload);
    bytes
}

/// Makes the checksum of a frame that was changed right again.
pub(crate) fn reseal(frame: &mut [u8]) {
    let control_bytes = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
    let end = (32 + control_bytes).min(frame.len());
    seal(&mut frame[..end]);
}

/// The entry of a message, with the message.
pub(crate) fn message(packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend((packet.len() as u16).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(packet);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// The entry of a write (2) or of a read (3).
pub(crate) fn transfer(kind: u8, checksum: u32, key: u32, len_bytes: u32, address: u64) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend([checksum, key, len_bytes].iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(address.to_le_bytes());
    bytes
}

/// The entry of the answer to a read (4), of a refusal (5) or of a goodbye (6).
pub(crate) fn answer(kind: u8, checksum: u32, number: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend([checksum, number, 0].iter().flat_map(|number| number.to_le_bytes()));
    bytes
}
