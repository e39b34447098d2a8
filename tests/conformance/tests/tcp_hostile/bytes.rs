//! What goes over the stream, written out once more.

pub(crate) const GREETING_BYTES: usize = 64;
pub(crate) const HEADER_BYTES: usize = 32;
pub(crate) const CONTROL_BYTES_MAX: usize = 32 * 1024;

pub(crate) const HELLO: (u8, u8) = (1, 0);
pub(crate) const WELCOME: (u8, u8) = (2, 0);
pub(crate) const REFUSED_FULL: (u8, u8) = (3, 1);
pub(crate) const REFUSED_NOT_TRUSTED: (u8, u8) = (3, 2);
pub(crate) const REFUSED_PROTOCOL: (u8, u8) = (3, 3);

/// The checksum of the format, by its definition.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0x82f6_3b78 };
        }
    }
    !sum
}

/// A greeting with its checksum.
pub(crate) fn greeting(kind: (u8, u8), credits: [u16; 3]) -> Vec<u8> {
    let mut bytes = vec![0; GREETING_BYTES];
    bytes[..4].copy_from_slice(b"GNTC");
    (bytes[4], bytes[5]) = kind;
    for (at, value) in [(6, 1), (8, 1), (10, credits[0]), (12, credits[1]), (14, credits[2])] {
        bytes[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    seal_greeting(&mut bytes);
    bytes
}

/// Makes the checksum right again.
pub(crate) fn seal_greeting(bytes: &mut [u8]) {
    let sum = crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
}

/// A hello that any acceptor takes.
pub(crate) fn hello() -> Vec<u8> {
    greeting(HELLO, [128, 16, 128])
}

/// A frame, as long as it is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) sequence: u32,
    pub(crate) writes_placed: u32,
    pub(crate) small_returned: u16,
    pub(crate) large_returned: u16,
    pub(crate) control: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// What the header says where that is not the length of what follows.
    pub(crate) control_bytes: Option<u32>,
    pub(crate) payload_bytes: Option<u32>,
}

impl Frame {
    pub(crate) fn new(sequence: u32) -> Frame {
        Frame { sequence, ..Frame::default() }
    }

    pub(crate) fn raw(mut self, control: &[u8]) -> Frame {
        self.control.extend_from_slice(control);
        self
    }

    pub(crate) fn message(mut self, message: &[u8]) -> Frame {
        self.control.extend_from_slice(&[1, 0]);
        self.control.extend_from_slice(&(message.len() as u16).to_le_bytes());
        self.control.extend_from_slice(&[0; 4]);
        self.control.extend_from_slice(message);
        self.control.resize(self.control.len().next_multiple_of(8), 0);
        self
    }

    fn transfer(mut self, kind: u8, key: u32, address: u64, len_bytes: u32) -> Frame {
        self.control.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        self.control.extend_from_slice(&key.to_le_bytes());
        self.control.extend_from_slice(&len_bytes.to_le_bytes());
        self.control.extend_from_slice(&address.to_le_bytes());
        self
    }

    /// A write of bytes that are to follow.
    pub(crate) fn write_of(self, key: u32, address: u64, len_bytes: u32) -> Frame {
        self.transfer(2, key, address, len_bytes)
    }

    pub(crate) fn write(mut self, key: u32, address: u64, bytes: &[u8]) -> Frame {
        self.payload.extend_from_slice(bytes);
        self.write_of(key, address, bytes.len() as u32)
    }

    pub(crate) fn read(self, key: u32, address: u64, len_bytes: u32) -> Frame {
        self.transfer(3, key, address, len_bytes)
    }

    fn answer_entry(mut self, kind: u8, value: u32) -> Frame {
        self.control.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        self.control.extend_from_slice(&value.to_le_bytes());
        self.control.extend_from_slice(&[0; 4]);
        self
    }

    pub(crate) fn answer(mut self, bytes: &[u8]) -> Frame {
        self.payload.extend_from_slice(bytes);
        self.answer_entry(4, bytes.len() as u32)
    }

    pub(crate) fn refused(self, transfer: u32) -> Frame {
        self.answer_entry(5, transfer)
    }

    pub(crate) fn goodbye(self) -> Frame {
        self.answer_entry(6, 0)
    }

    /// Header, control part and payload.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let control_bytes = self.control_bytes.unwrap_or(self.control.len() as u32);
        let payload_bytes = self.payload_bytes.unwrap_or(self.payload.len() as u32);
        let mut bytes = vec![0; HEADER_BYTES];
        let words = [control_bytes, payload_bytes, self.sequence, self.writes_placed];
        for (number, word) in words.into_iter().enumerate() {
            bytes[4 + 4 * number..8 + 4 * number].copy_from_slice(&word.to_le_bytes());
        }
        bytes[20..22].copy_from_slice(&self.small_returned.to_le_bytes());
        bytes[22..24].copy_from_slice(&self.large_returned.to_le_bytes());
        bytes.extend_from_slice(&self.control);
        let sum = crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

#[test]
fn the_checksum_is_the_one_of_the_format() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
