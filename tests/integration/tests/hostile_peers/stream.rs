//! The tcp fabric's bytes, as far as messages need them: a peer that keeps to the framing and says in
//! it whatever it is told, and what others said in it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

const GREETING_BYTES: usize = 64;
const HEADER_BYTES: usize = 32;
/// How long anything that is to come may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ 0x82f6_3b78 };
        }
    }
    !sum
}

/// A hello.
pub(crate) fn hello() -> Vec<u8> {
    let mut bytes = vec![0; GREETING_BYTES];
    bytes[..5].copy_from_slice(b"GNTC\x01");
    for (at, value) in [(6, 1u16), (8, 1), (10, 128), (12, 16), (14, 128)] {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let sum = crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A frame of one message.
pub(crate) fn frame(sequence: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(message.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(message);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let control_bytes = (bytes.len() - HEADER_BYTES) as u32;
    bytes[4..8].copy_from_slice(&control_bytes.to_le_bytes());
    bytes[12..16].copy_from_slice(&sequence.to_le_bytes());
    let sum = crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The messages in what one end said.
pub(crate) fn messages(said: &[u8]) -> Vec<Vec<u8>> {
    let word = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
    };
    let mut found = Vec::new();
    let mut rest = said.get(GREETING_BYTES..).unwrap_or_default();
    while rest.len() >= HEADER_BYTES {
        let end = HEADER_BYTES + word(rest, 4);
        let Some(next) = rest.get(end + word(rest, 8)..) else { break };
        let mut at = HEADER_BYTES;
        while at < end {
            at += match rest[at] {
                1 => {
                    let len = word(rest, at) >> 16;
                    found.push(rest[at + 8..at + 8 + len].to_vec());
                    (8 + len).next_multiple_of(8)
                }
                2 | 3 => 24,
                _ => 16,
            };
        }
        rest = next;
    }
    found
}

/// A connection of an attacker.
pub(crate) struct Attacker {
    stream: TcpStream,
    sequence: u32,
    heard: Vec<u8>,
}

impl Attacker {
    /// Connects, and says nothing yet.
    pub(crate) fn dial(port: u16) -> Attacker {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("somebody listens");
        stream.set_nodelay(true).expect("an option of every socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option of every socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("an option of every socket");
        Attacker { stream, sequence: 0, heard: Vec::new() }
    }

    /// Begins to connect from this address of the machine, and does not wait for it.
    pub(crate) fn begin(from: Ipv4Addr, port: u16) -> Attacker {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let socket = socket.expect("a descriptor");
        rustix::net::bind(&socket, &SocketAddrV4::new(from, 0)).expect("a free port");
        match rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => panic!("nobody listens: {error}"),
        }
        Attacker { stream: TcpStream::from(socket), sequence: 0, heard: Vec::new() }
    }

    /// A connection on which messages can be sent.
    pub(crate) fn establish(port: u16) -> Attacker {
        let mut attacker = Attacker::dial(port);
        attacker.stream.write_all(&hello()).expect("taken");
        let mut welcome = [0; GREETING_BYTES];
        attacker.stream.read_exact(&mut welcome).expect("a welcome");
        assert_eq!(welcome[..6], *b"GNTC\x02\0");
        attacker.heard.extend_from_slice(&welcome);
        attacker
    }

    /// Says these bytes; false if the other end is gone.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a message; false if the other end is gone.
    pub(crate) fn send(&mut self, message: &[u8]) -> bool {
        let bytes = frame(self.sequence, message);
        self.sequence += 1;
        self.say(&bytes)
    }

    /// Hears the other end until it says nothing for some time, or is gone.
    pub(crate) fn listen(&mut self, quiet: Duration) {
        self.stream.set_read_timeout(Some(quiet)).expect("an option of every socket");
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut bytes) {
            self.heard.extend_from_slice(&bytes[..count]);
        }
        self.stream.set_read_timeout(Some(PATIENCE)).expect("an option of every socket");
    }

    /// Says that nothing follows, and hears the other end out: its messages.
    ///
    /// # Panics
    /// If it goes on for long.
    pub(crate) fn finish(mut self) -> Vec<Vec<u8>> {
        let _gone = self.stream.shutdown(Shutdown::Write);
        match self.stream.read_to_end(&mut self.heard) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("the server holds on to a peer that is gone")
            }
            // Cut off, or at its end.
            _ => messages(&self.heard),
        }
    }

    /// Whether the other end has gone, without waiting for it.
    pub(crate) fn is_over(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("an option of every socket");
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    let waits = [io::ErrorKind::WouldBlock, io::ErrorKind::NotConnected];
                    return !waits.contains(&error.kind());
                }
            }
        }
    }
}
