//! Non-blocking unix sockets that carry [`Control`] messages and file descriptors.
//!
//! `SOCK_SEQPACKET` keeps message boundaries and tells the end of the peer, however it ended: the
//! kernel closes a killed process's sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::control::{CONTROL_BYTES, Control};
use crate::PeerIdentity;

/// What a socket delivered.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// A message, with its descriptor if its kind carries one.
    Message(Control, Option<OwnedFd>),
    /// Something that is no control message.
    Garbage,
    /// Nothing now.
    Empty,
    /// The peer is gone, in order or not.
    End,
}

/// What became of a message to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The kernel has it.
    Done,
    /// The socket's queue is full; try again when it is writable.
    Later,
    /// The peer is gone. Receiving will say so too, after what the peer had sent before.
    Gone,
}

/// How an attempt to connect went.
#[derive(Debug)]
pub(crate) enum Dialled {
    /// The listener has the connection in its queue.
    Connected(OwnedFd),
    /// The listener's queue is full at the moment.
    Later,
    /// Nobody listens.
    Nobody,
    /// Somebody listens with another kind of socket.
    Foreign,
    /// Permission denied by the file system.
    Denied,
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A socket ready to be bound.
pub(crate) fn unbound() -> Result<OwnedFd, Errno> {
    new_socket()
}

/// Connects to the socket at `path` without waiting.
///
/// # Errors
/// When no socket can be made, and what `connect(2)` returns for reasons other than the above.
pub(crate) fn dial(path: &Path) -> Result<Dialled, Errno> {
    let socket = new_socket()?;
    let address = SocketAddrUnix::new(path)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Dialled::Connected(socket)),
        Err(Errno::AGAIN) => Ok(Dialled::Later),
        Err(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR) => Ok(Dialled::Nobody),
        Err(Errno::PROTOTYPE) => Ok(Dialled::Foreign),
        Err(Errno::ACCESS | Errno::PERM) => Ok(Dialled::Denied),
        Err(error) => Err(error),
    }
}

/// Credentials of the process at the other end: for an acceptor, of the process that connected;
/// for a connector, of the process that listened.
pub(crate) fn identity(socket: &OwnedFd) -> Result<PeerIdentity, Errno> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(PeerIdentity::Local {
        pid: credentials.pid.as_raw_nonzero().get().unsigned_abs(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

/// Sends one message.
pub(crate) fn send(socket: &OwnedFd, control: Control, file: Option<BorrowedFd<'_>>) -> Sent {
    debug_assert_eq!(control.carries_file(), file.is_some());
    let bytes = control.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file.unwrap_or(rustix::fs::CWD)];
    if file.is_some() {
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&files));
        assert!(pushed, "the space is sized for one descriptor");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Ok(_) => return Sent::Done,
            Err(Errno::INTR) => {}
            // TOOMANYREFS: too many descriptors are in flight; it passes when peers take theirs.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => {
                return Sent::Later;
            }
            Err(_) => return Sent::Gone,
        }
    }
}

/// Receives one message.
pub(crate) fn receive(socket: &OwnedFd) -> Delivery {
    // One byte more than a message has, so that a longer one shows.
    let mut bytes = [0; CONTROL_BYTES + 1];
    // Room for more descriptors than allowed: the kernel closes what does not fit, silently.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut reset_seen = false;
    let (message, mut ancillary) = loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut into, &mut ancillary, flags) {
            Ok(message) => break (message, ancillary),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Delivery::Empty,
            // The peer closed with unread messages in its queue. The error is told once, before
            // what the peer had sent; the end of file follows that.
            Err(Errno::CONNRESET) if !reset_seen => reset_seen = true,
            Err(_) => return Delivery::End,
        }
    };
    let mut file = None;
    let mut files = 0;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            for descriptor in received {
                files += 1;
                file = Some(descriptor);
            }
        }
    }
    if message.bytes == 0 && files == 0 {
        return Delivery::End;
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let Some((record, [])) = bytes[..message.bytes.min(bytes.len())].split_first_chunk() else {
        return Delivery::Garbage;
    };
    match Control::decode(record) {
        Some(control) if !truncated && files == usize::from(control.carries_file()) => {
            Delivery::Message(control, file)
        }
        _ => Delivery::Garbage,
    }
}
