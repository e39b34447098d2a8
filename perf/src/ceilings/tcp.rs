//! What the measurements over TCP have in common: a connection of this machine with itself, and the
//! lengths of the messages that Gannet exchanges over one.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use gannet_proto::data::Arrival;
use gannet_proto::operations::{IoReply, Read, Write};
use gannet_proto::packet::FrameHeader;

/// In front of each frame on a stream of the tcp fabric (`docs/wire.md`).
const STREAM_HEADER_BYTES: usize = 32;
/// In front of each message in such a frame.
const MESSAGE_ENTRY_BYTES: usize = 8;
/// Says in such a frame where a payload belongs.
const WRITE_ENTRY_BYTES: usize = 24;

/// A READ or WRITE of a host, alone in its frame: 120 bytes. They are of one length.
pub(super) const REQUEST_BYTES: usize =
    STREAM_HEADER_BYTES + MESSAGE_ENTRY_BYTES + size_of::<FrameHeader>() + size_of::<Read>();
const _: () = assert!(size_of::<Read>() == size_of::<Write>());
/// An arrival notice with the place of its payload, alone in its frame: 120 bytes.
pub(super) const READ_NOTICE_BYTES: usize = STREAM_HEADER_BYTES
    + WRITE_ENTRY_BYTES
    + MESSAGE_ENTRY_BYTES
    + size_of::<FrameHeader>()
    + size_of::<Arrival>();
/// The answer to a WRITE, alone in its frame: 104 bytes.
pub(super) const WRITE_NOTICE_BYTES: usize =
    STREAM_HEADER_BYTES + MESSAGE_ENTRY_BYTES + size_of::<FrameHeader>() + size_of::<IoReply>();

/// A connection over loopback that sends at once whatever it is given: the client's end, and the
/// server's.
pub(super) fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let own = client.local_addr()?;
    // Somebody else may connect, too.
    let server = loop {
        let (server, peer) = listener.accept()?;
        if peer == own {
            break server;
        }
    };
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    Ok((client, server))
}
