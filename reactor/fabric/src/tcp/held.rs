//! Posts that wait for the answer to a read.
//!
//! An answer leaves later than the peer handles the read, so a write behind the read could change
//! what it returns. Such a write is held back until the whole answer is there, and so is all that is
//! posted behind it. The sender does that, not the receiver: whoever holds up a stream may hold up the
//! very answer that the other end waits for, while what the peer is owed goes past what is held here.
//!
//! Nothing is held unless somebody writes what he is reading; the memory for it is made then, and
//! kept. Bounded by the credits and by the transfers that may be under way.

use std::collections::VecDeque;

use super::outgoing::{Outgoing, OutgoingLimits};
use super::wire::Entry;
use crate::credits::{Class, Messages};
use crate::{LARGE_MESSAGE_BYTES, RemoteSlice, SMALL_MESSAGE_BYTES};

#[derive(Debug)]
enum Post {
    /// Of so many of the collected bytes.
    Message(usize),
    /// Where from, and its number among the transfers.
    Write(*mut u8, RemoteSlice, u32),
    Read(RemoteSlice),
    Goodbye,
}

/// Posts of one connection that wait. See the module.
#[derive(Debug)]
pub(super) struct Held {
    posts: VecDeque<Post>,
    /// Messages, one behind the other; those in front of `sent` have gone.
    bytes: Vec<u8>,
    sent: usize,
    messages: Messages,
    limits: OutgoingLimits,
}

impl Held {
    pub(super) fn new(limits: OutgoingLimits) -> Held {
        let (posts, bytes) = (VecDeque::new(), Vec::new());
        Held { posts, bytes, sent: 0, messages: Messages::default(), limits }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.posts.is_empty()
    }

    /// Messages that wait.
    #[inline]
    pub(super) fn messages(&self) -> Messages {
        self.messages
    }

    #[cold]
    pub(super) fn push_message(&mut self, message: &[u8]) {
        self.push(Post::Message(message.len()));
        if self.bytes.len() + message.len() > self.bytes.capacity() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(message);
        match Class::of(message.len()) {
            Class::Small => self.messages.small += 1,
            Class::Large => self.messages.large += 1,
        }
    }

    #[cold]
    pub(super) fn push_write(&mut self, start: *mut u8, remote: RemoteSlice, number: u32) {
        self.push(Post::Write(start, remote, number));
    }

    #[cold]
    pub(super) fn push_read(&mut self, remote: RemoteSlice) {
        self.push(Post::Read(remote));
    }

    /// The last entry of a connection.
    pub(super) fn push_goodbye(&mut self) {
        self.push(Post::Goodbye);
    }

    fn push(&mut self, post: Post) {
        if self.posts.capacity() == 0 {
            let OutgoingLimits { messages: Messages { small, large }, transfers, .. } = self.limits;
            let (small, large) = (usize::from(small), usize::from(large));
            self.posts.reserve(small + large + transfers + 1);
            self.bytes.reserve(small * SMALL_MESSAGE_BYTES + large * LARGE_MESSAGE_BYTES);
        }
        self.posts.push_back(post);
    }

    /// Lets go what need not wait any more, in order. `waits` is asked with a write's number and
    /// range.
    #[cold]
    pub(super) fn release(
        &mut self,
        outgoing: &mut Outgoing,
        waits: impl Fn(u32, RemoteSlice) -> bool,
    ) {
        while let Some(post) = self.posts.front() {
            match *post {
                Post::Write(_, remote, number) if waits(number, remote) => return,
                Post::Write(start, remote, _) => outgoing.push_write(start, remote),
                Post::Read(remote) => outgoing.push_read(remote),
                Post::Goodbye => outgoing.push_last(Entry::Goodbye),
                Post::Message(len_bytes) => {
                    let end = self.sent + len_bytes;
                    outgoing.push_message(&self.bytes[self.sent..end]);
                    self.sent = end;
                    match Class::of(len_bytes) {
                        Class::Small => self.messages.small -= 1,
                        Class::Large => self.messages.large -= 1,
                    }
                }
            }
            self.posts.pop_front();
        }
        self.clear();
    }

    /// Forgets what waits: it will never go.
    pub(super) fn clear(&mut self) {
        self.posts.clear();
        self.bytes.clear();
        self.sent = 0;
        self.messages = Messages::default();
    }
}
