//! Captures without a network: TCP segments over IPv4 in a file as tcpdump writes it.

use std::net::Ipv4Addr;
use std::path::Path;

/// Length of the headers of a packet: IPv4 and TCP, both without options.
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
/// Most payload of one packet.
pub(crate) const SEGMENT_BYTES_MAX: usize = 65_535 - IP_BYTES - TCP_BYTES;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RESET: u8 = 4;
const ACK: u8 = 16;

/// Who sends a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Whoever opened the connection.
    Client,
    /// Whoever accepted it.
    Server,
}

/// Packets in the order in which they were seen.
#[derive(Debug)]
pub(crate) struct Capture {
    file: Vec<u8>,
    packets: u32,
}

/// One TCP connection of a capture.
#[derive(Debug)]
pub(crate) struct Connection {
    ports: [u16; 2],
    /// What the client and the server have sent so far, in the numbers of TCP.
    sent: [u32; 2],
}

impl Capture {
    /// Without packets.
    pub(crate) fn new() -> Capture {
        // Magic, version 2.4, no time zone, no accuracy, whole packets, raw IP.
        let words: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 1 << 18, 101];
        Capture { file: words.iter().flat_map(|word| word.to_le_bytes()).collect(), packets: 0 }
    }

    /// Opens a connection from one port to another.
    pub(crate) fn connect(&mut self, from: u16, to: u16) -> Connection {
        let mut connection = Connection { ports: [from, to], sent: [1000, 2000] };
        self.packet(&mut connection, Sender::Client, SYN, &[], usize::MAX);
        self.packet(&mut connection, Sender::Server, SYN | ACK, &[], usize::MAX);
        connection
    }

    /// A piece of the stream as one packet. Returns the packet's number, which begins at 1.
    pub(crate) fn segment(&mut self, on: &mut Connection, sender: Sender, bytes: &[u8]) -> u32 {
        self.packet(on, sender, ACK, bytes, usize::MAX)
    }

    /// As [`Capture::segment`], of which only the first `kept` bytes were captured.
    pub(crate) fn cut_segment(
        &mut self,
        on: &mut Connection,
        sender: Sender,
        bytes: &[u8],
        kept: usize,
    ) -> u32 {
        self.packet(on, sender, ACK, bytes, kept)
    }

    /// The sender's stream ends with these bytes.
    pub(crate) fn last_segment(
        &mut self,
        on: &mut Connection,
        sender: Sender,
        bytes: &[u8],
    ) -> u32 {
        self.packet(on, sender, ACK | FIN, bytes, usize::MAX)
    }

    /// The sender gives the connection up.
    pub(crate) fn reset(&mut self, on: &mut Connection, sender: Sender) -> u32 {
        self.packet(on, sender, ACK | RESET, &[], usize::MAX)
    }

    /// A stretch of the stream in packets of these lengths, again and again.
    pub(crate) fn stream(
        &mut self,
        on: &mut Connection,
        sender: Sender,
        bytes: &[u8],
        lengths: &[usize],
    ) {
        let mut rest = bytes;
        for length in lengths.iter().cycle() {
            if rest.is_empty() {
                return;
            }
            let (now, later) = rest.split_at((*length).min(rest.len()));
            self.segment(on, sender, now);
            rest = later;
        }
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, &self.file).expect("a file for the capture");
    }

    fn packet(
        &mut self,
        on: &mut Connection,
        sender: Sender,
        flags: u8,
        bytes: &[u8],
        kept: usize,
    ) -> u32 {
        assert!(bytes.len() <= SEGMENT_BYTES_MAX, "an IPv4 packet holds no more");
        let own = usize::from(sender == Sender::Server);
        let peer = 1 - own;
        let addresses = [CLIENT.octets(), SERVER.octets()];
        let total = IP_BYTES + TCP_BYTES + bytes.len();
        let mut packet = vec![0x45, 0];
        packet.extend((total as u16).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(addresses[own]);
        packet.extend(addresses[peer]);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(on.ports[own].to_be_bytes());
        packet.extend(on.ports[peer].to_be_bytes());
        packet.extend(on.sent[own].to_be_bytes());
        packet.extend(on.sent[peer].to_be_bytes());
        packet.extend([(TCP_BYTES as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(bytes);
        let turns = u32::from(flags & (SYN | FIN) != 0);
        on.sent[own] = on.sent[own].wrapping_add(bytes.len() as u32 + turns);
        let captured = packet.len().min((IP_BYTES + TCP_BYTES).saturating_add(kept));
        let time_us = self.packets * 10;
        for word in [time_us / 1_000_000, time_us % 1_000_000, captured as u32, total as u32] {
            self.file.extend(word.to_le_bytes());
        }
        self.file.extend(&packet[..captured]);
        self.packets += 1;
        self.packets
    }
}

/// The checksum of an IPv4 header.
fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
