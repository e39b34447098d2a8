//! A socket that says whatever it is told.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};

use gannet_fabric::ConnectionId;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::bytes::{GREETING_BYTES, HEADER_BYTES};

/// One end of a stream, never blocking.
pub(crate) struct RawPeer {
    stream: TcpStream,
    /// What was heard.
    pub(crate) heard: Vec<u8>,
    /// The stream is over.
    pub(crate) over: bool,
    /// Its connection at the other end, once established.
    pub(crate) id: Option<ConnectionId>,
}

impl RawPeer {
    /// Begins to connect to a port of this machine.
    pub(crate) fn dial(port: u16) -> RawPeer {
        RawPeer::dial_from(None, port)
    }

    /// The same, from an address of this machine.
    pub(crate) fn dial_from(from: Option<Ipv4Addr>, port: u16) -> RawPeer {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let socket = socket.expect("a descriptor");
        if let Some(from) = from {
            rustix::net::bind(&socket, &SocketAddrV4::new(from, 0)).expect("a free port");
        }
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => panic!("nobody listens at {to}: {error}"),
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("an option of every socket");
        RawPeer { stream, heard: Vec::new(), over: false, id: None }
    }

    /// A stream that was accepted.
    pub(crate) fn accepted(stream: TcpStream) -> RawPeer {
        stream.set_nonblocking(true).expect("an option of every socket");
        RawPeer { stream, heard: Vec::new(), over: false, id: None }
    }

    /// Says as much as there is room for; how much. Nothing once the stream is over.
    pub(crate) fn say(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(count) => count,
            Err(error) if unfinished(&error) => 0,
            Err(_) => {
                self.over = true;
                0
            }
        }
    }

    /// Takes what is there.
    pub(crate) fn listen(&mut self) {
        let mut piece = [0; 16 * 1024];
        while !self.over {
            match self.stream.read(&mut piece) {
                Ok(0) => self.over = true,
                Ok(count) => self.heard.extend_from_slice(&piece[..count]),
                Err(error) if unfinished(&error) => return,
                Err(_) => self.over = true,
            }
        }
    }

    /// Says that nothing follows.
    pub(crate) fn finish(&mut self) {
        // It may be over already.
        let _shut = self.stream.shutdown(Shutdown::Write);
    }

    /// The kind of the greeting that was heard.
    pub(crate) fn greeting(&self) -> Option<(u8, u8)> {
        (self.heard.len() >= GREETING_BYTES).then(|| (self.heard[4], self.heard[5]))
    }

    /// Frames that were heard whole, without their payload.
    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.heard.get(GREETING_BYTES..).unwrap_or_default();
        std::iter::from_fn(move || {
            let header = rest.get(..HEADER_BYTES)?;
            let end = HEADER_BYTES + word(header, 4) as usize;
            let (whole, behind) = rest.split_at_checked(end + word(header, 8) as usize)?;
            rest = behind;
            Some(&whole[..end])
        })
    }

    /// Entries of a frame: kind, the word that says what about, and what follows the first 8 bytes.
    fn entries_of(frame: &[u8]) -> impl Iterator<Item = (u8, u32, &[u8])> {
        let mut rest = &frame[HEADER_BYTES..];
        std::iter::from_fn(move || {
            let kind = *rest.first()?;
            let (about, len) = match kind {
                1 => (word(rest, 0) >> 16, 8 + (word(rest, 0) >> 16) as usize),
                2 | 3 => (word(rest, 8), 24),
                _ => (word(rest, 8), 16),
            };
            let body = &rest[8..len];
            rest = &rest[len.next_multiple_of(8)..];
            Some((kind, about, body))
        })
    }

    /// Entries in the frames that were heard whole: their kinds, and the word that says what about.
    pub(crate) fn entries(&self) -> Vec<(u8, u32)> {
        let entries = self.frames().flat_map(RawPeer::entries_of);
        entries.map(|(kind, about, _)| (kind, about)).collect()
    }

    /// Messages in the frames that were heard whole.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let entries = self.frames().flat_map(RawPeer::entries_of);
        entries.filter(|(kind, ..)| *kind == 1).map(|(_, _, message)| message)
    }

    /// How many writes were acknowledged in frames that were heard whole.
    pub(crate) fn writes_placed(&self) -> u32 {
        self.frames().last().map_or(0, |frame| word(frame, 16))
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Whether it may succeed later.
fn unfinished(error: &io::Error) -> bool {
    // A connection that is being made is not connected.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
