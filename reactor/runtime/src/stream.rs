//! One end of a connected stream socket on an io_uring of its own: what a plain program would use
//! that moves bytes over TCP as fast as it can. The performance harness measures with it what a
//! stream on this machine can carry; Gannet itself does not use it.
//!
//! A [`StreamEnd`] owns a socket, a ring and the memory that bytes are sent from and received into.
//! At most one send and one receive are under way at a time; each gathers or scatters many pieces of
//! the memory in one system call. It belongs to the thread that made it, which polls and never
//! waits: [`StreamEnd::poll`] looks at the ring in memory and enters the kernel only when it has
//! something to hand over or the kernel has something to deliver.
//!
//! The memory outlives whatever the kernel does with it: dropping the end shuts the socket down and
//! waits for the kernel's answers. A crash of the process closes the socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::memory::Mapping;

/// Most pieces of one send or receive, the kernel's own bound.
pub const PIECES_MAX: usize = 1024;
/// One send and one receive; each has at most one entry in the ring.
const ENTRIES: u32 = 4;
/// Names of the two in the ring.
const SEND: u64 = 0;
const RECEIVE: u64 = 1;

/// A range of a stream end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, bytes.
    pub offset: usize,
    /// Its length.
    pub len_bytes: usize,
}

/// What has come to an end since the last poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many bytes the send moved: all of its pieces, or fewer.
    pub sent: Option<usize>,
    /// How many bytes the receive moved; 0 at the end of the stream.
    pub received: Option<usize>,
}

/// One end of a connected stream. See the module's documentation.
pub struct StreamEnd {
    ring: IoUring,
    socket: OwnedFd,
    memory: Arc<Mapping>,
    sending: Direction,
    receiving: Direction,
    /// Entries in the ring that the kernel has not taken.
    unsubmitted: usize,
}

/// A send or a receive, with what the kernel reads of it at addresses that do not change.
struct Direction {
    message: Box<libc::msghdr>,
    pieces: Vec<libc::iovec>,
    under_way: bool,
}

impl StreamEnd {
    /// Takes a connected stream socket over, on the thread that will use it.
    ///
    /// # Errors
    /// What the system returns when it is asked for an io_uring.
    pub fn new(socket: OwnedFd, memory: Arc<Mapping>) -> io::Result<StreamEnd> {
        Ok(StreamEnd {
            ring: ring()?,
            socket,
            memory,
            sending: Direction::new(),
            receiving: Direction::new(),
            unsubmitted: 0,
        })
    }

    /// The memory that pieces are ranges of.
    #[must_use]
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// Whether a send is under way.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.sending.under_way
    }

    /// Whether a receive is under way.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.receiving.under_way
    }

    /// Sends the pieces, the first [`PIECES_MAX`] of them, in their order. It begins with the next
    /// poll. Without pieces nothing happens.
    ///
    /// # Panics
    /// If a send is under way, or a piece leaves the memory.
    pub fn send(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        if !self.sending.fill(&self.memory, pieces) {
            return;
        }
        // A stream takes all that it is given, if not at once.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let descriptor = types::Fd(self.socket.as_raw_fd());
        let entry = opcode::SendMsg::new(descriptor, self.sending.message())
            .flags(flags.cast_unsigned())
            .build();
        self.push(entry.user_data(SEND));
    }

    /// Receives into the pieces, the first [`PIECES_MAX`] of them, in their order: whatever is there,
    /// at least one byte. It begins with the next poll. Without pieces nothing happens.
    ///
    /// # Panics
    /// If a receive is under way, or a piece leaves the memory.
    pub fn receive(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        if !self.receiving.fill(&self.memory, pieces) {
            return;
        }
        let descriptor = types::Fd(self.socket.as_raw_fd());
        let entry = opcode::RecvMsg::new(descriptor, self.receiving.message()).build();
        self.push(entry.user_data(RECEIVE));
    }

    /// Hands over what was asked for, and returns what has ended. Never waits.
    ///
    /// # Errors
    /// What the system says of the send or the receive that failed.
    pub fn poll(&mut self) -> io::Result<Moved> {
        let waiting = self.ring.submission().taskrun();
        if self.unsubmitted > 0 || waiting {
            self.enter(0)?;
        }
        let mut moved = Moved::default();
        for answer in self.ring.completion() {
            let (direction, place) = match answer.user_data() {
                SEND => (&mut self.sending, &mut moved.sent),
                _ => (&mut self.receiving, &mut moved.received),
            };
            direction.under_way = false;
            let result = answer.result();
            if result < 0 {
                return Err(io::Error::from_raw_os_error(result.wrapping_neg()));
            }
            *place = Some(result as usize);
        }
        Ok(moved)
    }

    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(wanted) {
            Ok(count) => self.unsubmitted = self.unsubmitted.saturating_sub(count),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: message, pieces and memory belong to this value, stay where they are, and are
        // touched no more until the kernel has answered; see `Drop` for the end.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has a place for each direction");
        self.unsubmitted += 1;
    }

    /// Waits until the kernel has let go of the memory. False when it cannot be asked.
    fn wait_for_all(&mut self) -> bool {
        while self.sending.under_way || self.receiving.under_way {
            if self.enter(1).is_err() {
                return false;
            }
            for answer in self.ring.completion() {
                match answer.user_data() {
                    SEND => self.sending.under_way = false,
                    _ => self.receiving.under_way = false,
                }
            }
        }
        true
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        // Ends what is under way; the peer may have gone before.
        let _ended = rustix::net::shutdown(&self.socket, Shutdown::Both);
        if !self.wait_for_all() {
            // The kernel may still use them.
            std::mem::forget(Arc::clone(&self.memory));
            std::mem::forget(std::mem::replace(&mut self.sending, Direction::new()));
            std::mem::forget(std::mem::replace(&mut self.receiving, Direction::new()));
        }
    }
}

impl Direction {
    fn new() -> Direction {
        // SAFETY: a message header of zeros is one without address, pieces and control data.
        let message = Box::new(unsafe { std::mem::zeroed() });
        Direction { message, pieces: Vec::with_capacity(PIECES_MAX), under_way: false }
    }

    /// Notes the pieces; false if there are none.
    fn fill(&mut self, memory: &Mapping, pieces: impl IntoIterator<Item = Piece>) -> bool {
        assert!(!self.under_way, "one send and one receive at a time");
        self.pieces.clear();
        for Piece { offset, len_bytes } in pieces.into_iter().take(PIECES_MAX) {
            let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= memory.len());
            assert!(inside, "piece {offset}+{len_bytes} leaves {} bytes", memory.len());
            let iov_base = memory.base().wrapping_add(offset).cast();
            self.pieces.push(libc::iovec { iov_base, iov_len: len_bytes });
        }
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = self.pieces.len();
        self.under_way = !self.pieces.is_empty();
        self.under_way
    }

    fn message(&mut self) -> *mut libc::msghdr {
        &raw mut *self.message
    }
}

/// A ring for one thread that polls, with the best flags that the kernel knows.
fn ring() -> io::Result<IoUring> {
    let mut deferred = IoUring::builder();
    deferred.dontfork().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    match deferred.build(ENTRIES) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            // Before Linux 6.1.
            let mut plain = IoUring::builder();
            plain.dontfork();
            plain.build(ENTRIES)
        }
        result => result,
    }
}

/// Whether the kernel may take entries a little later.
fn is_transient(error: &io::Error) -> bool {
    let errors = [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
    errors.iter().any(|transient| error.raw_os_error() == Some(transient.raw_os_error()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::memory::PAGE_BYTES;

    fn pair() -> (StreamEnd, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        let memory = Mapping::anonymous(4 * PAGE_BYTES).unwrap();
        (StreamEnd::new(one.into(), memory).unwrap(), other)
    }

    fn piece(offset: usize, len_bytes: usize) -> Piece {
        Piece { offset, len_bytes }
    }

    fn poll_until(end: &mut StreamEnd, done: impl Fn(Moved) -> bool) -> Moved {
        loop {
            let moved = end.poll().unwrap();
            if done(moved) {
                return moved;
            }
        }
    }

    #[test]
    fn sends_gather_and_receives_scatter() {
        let (mut end, mut peer) = pair();
        end.memory().copy_in(100, b"one");
        end.memory().copy_in(0, b"two");
        end.send([piece(100, 3), piece(0, 3)]);
        assert!(end.is_sending());
        let moved = poll_until(&mut end, |moved| moved.sent.is_some());
        assert_eq!(moved, Moved { sent: Some(6), received: None });
        let mut bytes = [0; 6];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"onetwo");

        end.receive([piece(PAGE_BYTES, 2), piece(200, 10)]);
        assert_eq!(end.poll().unwrap(), Moved::default(), "nothing is there");
        peer.write_all(b"three").unwrap();
        let moved = poll_until(&mut end, |moved| moved.received.is_some());
        assert_eq!(moved.received, Some(5), "what is there, not all that has room");
        let read = |offset, len| {
            let mut bytes = vec![0; len];
            end.memory().copy_out(offset, &mut bytes);
            bytes
        };
        assert_eq!((read(PAGE_BYTES, 2), read(200, 3)), (b"th".to_vec(), b"ree".to_vec()));
    }

    #[test]
    fn the_end_of_the_stream_is_an_empty_receive_and_a_lost_peer_an_error() {
        let (mut end, peer) = pair();
        end.receive([piece(0, 1)]);
        drop(peer);
        assert_eq!(poll_until(&mut end, |it| it.received.is_some()).received, Some(0));
        end.send([piece(0, 1)]);
        let error = loop {
            if let Err(error) = end.poll() {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_under_way_ends_with_the_end() {
        let (mut end, _peer) = pair();
        let memory = Arc::clone(end.memory());
        end.receive([piece(0, 4 * PAGE_BYTES)]);
        // More than the socket takes.
        end.send((0..PIECES_MAX).map(|_| piece(0, 4 * PAGE_BYTES)));
        end.poll().unwrap();
        assert!(end.is_receiving() && end.is_sending());
        drop(end);
        assert_eq!(Arc::strong_count(&memory), 1, "nothing was left behind");
    }

    #[test]
    #[should_panic(expected = "leaves 16384 bytes")]
    fn pieces_stay_inside_the_memory() {
        let (mut end, _peer) = pair();
        end.receive([piece(4 * PAGE_BYTES - 1, 2)]);
    }
}
