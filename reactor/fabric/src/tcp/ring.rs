//! The io_uring of a fabric: what is asked of the kernel, and its answers.
//!
//! Operations name a connection by its position. At most one of a kind is under way per position, so
//! the pair finds its owner; the owner keeps what the kernel was given until the answer is taken.
//!
//! The kernel may be short of what it needs to take requests. They then stay, in their order, in the
//! submission queue and behind it in a backlog, and every later [`Ring::submit`] hands over as much
//! as it can. Since an owner has no second request of a kind before the first one's answer, the
//! backlog is bounded by what the fabric may have under way. Nothing but a later call brings them to
//! the kernel: whoever sleeps while there are some has to wake up by itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use gannet_runtime::time::Time;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::FabricError;

/// Places for requests; more are handed over in portions.
const SUBMISSIONS: u32 = 1024;
/// Places for answers; the kernel keeps what finds none.
const ANSWERS: u32 = 4096;
/// `IORING_RECVSEND_POLL_FIRST`: do not even try before the socket says that it has something.
const POLL_FIRST: u16 = 1;
/// How often a call enters the kernel until it has all requests, where it took some of them.
const SUBMIT_ATTEMPTS_MAX: usize = 8;
/// How long the end of a fabric waits for a kernel that is short of resources, and how long for
/// answers before it asks again.
const SHORTAGE_MAX: Duration = Duration::from_secs(1);
const WAIT_BETWEEN: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Bytes for a connection.
    Receive,
    /// Bytes of a connection.
    Send,
    /// A connection.
    Connect,
    /// Somebody who can be accepted at a listener.
    Accept,
    /// Bytes of a connection that is over, which nobody wants.
    Discard,
    /// Bytes that are left of a connection that is over.
    Deliver,
    /// The end of another operation. Its own answer says nothing.
    Cancel,
}

const OPERATIONS: [Operation; 7] = [
    Operation::Receive,
    Operation::Send,
    Operation::Connect,
    Operation::Accept,
    Operation::Discard,
    Operation::Deliver,
    Operation::Cancel,
];

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) operation: Operation,
    pub(super) index: u32,
    /// A number of bytes, what a listener is ready for, or a negative errno.
    pub(super) result: i32,
    /// Whether a socket has more to be received.
    pub(super) more: bool,
}

impl Answer {
    #[inline]
    fn read(entry: &cqueue::Entry) -> Option<Answer> {
        Some(Answer {
            operation: *OPERATIONS.get((entry.user_data() >> 32) as usize)?,
            index: entry.user_data() as u32,
            result: entry.result(),
            more: cqueue::sock_nonempty(entry.flags()),
        })
    }
}

/// Memory ranges that one operation covers, and how far it is. Pointers are handed to the kernel, so
/// it must not change while an operation on it is under way.
pub(super) struct Vectors {
    list: Vec<libc::iovec>,
    first: usize,
    header: Box<libc::msghdr>,
}

/// The kernel takes no longer lists.
const VECTORS_MAX: usize = 1024;

impl Vectors {
    pub(super) fn with_capacity(capacity: usize) -> Vectors {
        // SAFETY: a message header of zeros names nothing, and is valid.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        Vectors { list: Vec::with_capacity(capacity), first: 0, header }
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
    }

    #[inline]
    pub(super) fn push(&mut self, start: *mut u8, len_bytes: usize) {
        if len_bytes > 0 {
            self.list.push(libc::iovec { iov_base: start.cast(), iov_len: len_bytes });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == self.list.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= VECTORS_MAX
    }

    /// Drops the first range whose start `ends` picks, and all behind it. Whether there was one.
    pub(super) fn cut_at(&mut self, ends: impl Fn(*const u8) -> bool) -> bool {
        let cut = self.rest().iter().position(|range| ends(range.iov_base.cast_const().cast()));
        if let Some(cut) = cut {
            self.list.truncate(self.first + cut);
        }
        cut.is_some()
    }

    /// So many bytes are done.
    pub(super) fn advance(&mut self, mut len_bytes: usize) {
        while let Some(next) = self.list.get_mut(self.first) {
            if len_bytes < next.iov_len {
                next.iov_base = next.iov_base.cast::<u8>().wrapping_add(len_bytes).cast();
                next.iov_len -= len_bytes;
                return;
            }
            len_bytes -= next.iov_len;
            self.first += 1;
        }
    }

    /// What is left of it.
    #[cfg(test)]
    pub(super) fn ranges(&self) -> impl Iterator<Item = (*mut u8, usize)> {
        self.rest().iter().map(|range| (range.iov_base.cast(), range.iov_len))
    }

    fn rest(&self) -> &[libc::iovec] {
        &self.list[self.first..]
    }

    /// Receives what is there, without waiting and without the ring: a number of bytes, or a negative
    /// errno.
    ///
    /// # Safety
    /// The ranges are memory that nobody has references to.
    pub(super) unsafe fn receive_now(&mut self, socket: BorrowedFd<'_>) -> i32 {
        let message = self.message();
        // SAFETY: the header names this value's ranges, which the caller vouches for.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) };
        match i32::try_from(count) {
            Ok(count @ 0..) => count,
            _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        }
    }

    fn message(&mut self) -> *mut libc::msghdr {
        let rest = &mut self.list[self.first..];
        self.header.msg_iovlen = rest.len().min(VECTORS_MAX);
        self.header.msg_iov = rest.as_mut_ptr();
        &raw mut *self.header
    }
}

/// A fabric's io_uring. See the module.
pub(super) struct Ring {
    ring: IoUring,
    /// Requests that found no place in the submission queue, which the kernel did not empty.
    backlog: VecDeque<squeue::Entry>,
    /// Requests that the kernel does not have yet, those of the backlog included.
    unsubmitted: usize,
    under_way: usize,
    /// What the kernel answers instead of taking requests.
    #[cfg(test)]
    pub(super) refusal: Option<i32>,
}

impl Ring {
    pub(super) fn new() -> Result<Ring, FabricError> {
        let mut failed = io::Error::from(io::ErrorKind::Unsupported);
        for cooperative in [true, false] {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_cqsize(ANSWERS);
            if cooperative {
                // Linux 5.19: answers wait for the thread's next system call instead of
                // interrupting it, and a flag in memory says that they wait.
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            match builder.build(SUBMISSIONS) {
                Ok(ring) => {
                    return Ok(Ring {
                        ring,
                        backlog: VecDeque::with_capacity(SUBMISSIONS as usize),
                        unsubmitted: 0,
                        under_way: 0,
                        #[cfg(test)]
                        refusal: None,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => failed = error,
                Err(error) => return Err(refused(error)),
            }
        }
        Err(refused(failed))
    }

    /// Operations that have no answer yet.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether a call of [`Ring::submit`] would do something.
    #[inline]
    pub(super) fn has_unsubmitted(&self) -> bool {
        self.unsubmitted > 0
    }

    /// Whether there are answers, or the kernel has some to give at the next call.
    #[inline]
    pub(super) fn has_answers(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.kernel_waits()
    }

    #[inline]
    fn kernel_waits(&mut self) -> bool {
        let submissions = self.ring.submission();
        submissions.taskrun() || submissions.cq_overflow()
    }

    /// Enters the kernel if that brings anything about.
    #[inline]
    pub(super) fn enter_if_useful(&mut self) {
        if self.unsubmitted > 0 || self.kernel_waits() {
            self.submit();
        }
    }

    pub(super) fn receive(
        &mut self,
        index: u32,
        socket: BorrowedFd<'_>,
        into: &mut Vectors,
        poll_first: bool,
    ) {
        let socket = types::Fd(socket.as_raw_fd());
        let ioprio = if poll_first { POLL_FIRST } else { 0 };
        let entry = match into.rest() {
            [one] => opcode::Recv::new(socket, one.iov_base.cast(), clamp(one.iov_len))
                .ioprio(ioprio)
                .build(),
            _ => opcode::RecvMsg::new(socket, into.message()).ioprio(ioprio).build(),
        };
        self.push(entry, Operation::Receive, index);
    }

    pub(super) fn send(&mut self, index: u32, socket: BorrowedFd<'_>, from: &mut Vectors) {
        self.send_as(Operation::Send, index, socket, from);
    }

    /// Sends what is left of a connection that is over.
    pub(super) fn deliver(&mut self, index: u32, socket: BorrowedFd<'_>, from: &mut Vectors) {
        self.send_as(Operation::Deliver, index, socket, from);
    }

    #[inline]
    fn send_as(
        &mut self,
        operation: Operation,
        index: u32,
        socket: BorrowedFd<'_>,
        from: &mut Vectors,
    ) {
        let socket = types::Fd(socket.as_raw_fd());
        // The kernel goes on by itself after a part.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = match from.rest() {
            [one] => {
                opcode::Send::new(socket, one.iov_base.cast_const().cast(), clamp(one.iov_len))
                    .flags(flags)
                    .build()
            }
            _ => opcode::SendMsg::new(socket, from.message()).flags(flags.cast_unsigned()).build(),
        };
        self.push(entry, operation, index);
    }

    /// `address` stays in place until the answer.
    pub(super) fn connect(
        &mut self,
        index: u32,
        socket: BorrowedFd<'_>,
        address: &(libc::sockaddr_storage, libc::socklen_t),
    ) {
        let pointer = (&raw const address.0).cast();
        let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), pointer, address.1);
        self.push(entry.build(), Operation::Connect, index);
    }

    /// Asks to be told when somebody can be accepted.
    pub(super) fn accept(&mut self, index: u32, listener: BorrowedFd<'_>) {
        let listener = types::Fd(listener.as_raw_fd());
        let entry = opcode::PollAdd::new(listener, u32::from(libc::POLLIN.cast_unsigned()));
        self.push(entry.build(), Operation::Accept, index);
    }

    /// Takes what nobody wants; `sink` is never read.
    pub(super) fn discard(&mut self, index: u32, socket: BorrowedFd<'_>, sink: &mut [u8]) {
        let socket = types::Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(socket, sink.as_mut_ptr(), clamp(sink.len())).build();
        self.push(entry, Operation::Discard, index);
    }

    /// Asks for the end of an operation, which answers as ever: with what it did, or `ECANCELED`.
    pub(super) fn cancel(&mut self, operation: Operation, index: u32) {
        let entry = opcode::AsyncCancel::new(token(operation, index)).build();
        self.push(entry, Operation::Cancel, index);
    }

    fn push(&mut self, entry: squeue::Entry, operation: Operation, index: u32) {
        let entry = entry.user_data(token(operation, index));
        self.unsubmitted += 1;
        self.under_way += 1;
        if self.backlog.is_empty() {
            if self.offer(&entry) {
                return;
            }
            self.submit();
            if self.offer(&entry) {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Puts a request into the submission queue, if it has room.
    #[inline]
    fn offer(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to belongs to the owner of the operation, who keeps it
        // until the answer; `TcpFabric::drop` waits for all answers, or gives the memory up.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Moves what the submission queue has room for out of the backlog.
    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.offer(&entry) {
                return self.backlog.push_front(entry);
            }
        }
    }

    /// Enters the kernel with all requests of the submission queue, and waits for so many answers.
    #[inline]
    fn enter(&mut self, answers: usize) -> io::Result<()> {
        #[cfg(test)]
        if let Some(number) = self.refusal {
            return Err(io::Error::from_raw_os_error(number));
        }
        let taken = self.ring.submit_and_wait(answers)?;
        self.unsubmitted = self.unsubmitted.saturating_sub(taken);
        Ok(())
    }

    /// Hands all requests to the kernel, or as many as it takes now, and lets it deliver answers that
    /// wait.
    pub(super) fn submit(&mut self) {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            self.refill();
            match self.enter(0) {
                Ok(()) if self.unsubmitted == 0 => return,
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It may want its answers to be taken first, or has no memory.
                Err(error) if is_transient(&error) => return,
                Err(error) => panic!("io_uring_enter refused well-formed entries: {error}"),
            }
        }
    }

    /// Forgets the requests of the backlog: the kernel never heard of them, and nobody will wait for
    /// their answers.
    pub(super) fn forget_backlog(&mut self) {
        let forgotten = self.backlog.len();
        self.backlog.clear();
        self.unsubmitted -= forgotten;
        self.under_way -= forgotten;
    }

    /// Waits until there is an answer. False if the kernel cannot be asked, or did not have what it
    /// needs for [`SHORTAGE_MAX`].
    pub(super) fn wait(&mut self) -> bool {
        let deadline = Time::monotonic() + SHORTAGE_MAX;
        loop {
            if !self.ring.completion().is_empty() {
                return true;
            }
            self.refill();
            match self.enter(1) {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_transient(&error) && Time::monotonic() < deadline => {
                    let descriptor = self.descriptor();
                    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
                    // Interrupted, it waits for less long.
                    let _ready = rustix::event::poll(&mut polled, Some(&WAIT_BETWEEN));
                }
                Err(_) => return false,
            }
        }
    }

    /// Appends the answers that are there.
    #[inline]
    pub(super) fn take(&mut self, answers: &mut Vec<Answer>) {
        let before = answers.len();
        let room = (answers.capacity() - answers.len()).max(1);
        let entries = self.ring.completion().take(room);
        answers.extend(entries.filter_map(|entry| Answer::read(&entry)));
        self.under_way -= answers.len() - before;
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

fn token(operation: Operation, index: u32) -> u64 {
    (operation as u64) << 32 | u64::from(index)
}

fn clamp(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes).unwrap_or(u32::MAX)
}

/// Whether the kernel may take requests a little later.
fn is_transient(error: &io::Error) -> bool {
    let number = error.raw_os_error().unwrap_or(0);
    matches!(number, libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
}

fn refused(source: io::Error) -> FabricError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => {
            " (it may be switched off by the sysctl kernel.io_uring_disabled or by a container's \
             seccomp profile)"
        }
        Some(libc::ENOMEM) => " (raise the limit of locked memory, `ulimit -l`)",
        Some(libc::EMFILE | libc::ENFILE) => " (too many open files: raise `ulimit -n`)",
        _ => "",
    };
    FabricError::System { what: format!("setting up io_uring for tcp{remedy}"), source }
}
