//! What leaves one end and arrives at the other, cut into any pieces: the same entries in the same
//! order, and payload in its place.

use std::sync::Arc;

use gannet_runtime::memory::Mapping;
use proptest::prelude::*;

use crate::credits::Messages;
use crate::tcp::incoming::{Incoming, Landing, Next};
use crate::tcp::outgoing::{Outgoing, OutgoingLimits};
use crate::tcp::wire::{Entry, FrameHeader, Violation};
use crate::{Key, RemoteSlice};

/// Memory of each kind: what is sent from, what is written into, where answers go.
const MEMORY_BYTES: usize = 256 * 1024;
/// The key of what is written into.
const KEY: u32 = 7;
/// A key that opens nothing.
const NO_KEY: u32 = 8;

/// What is posted at one end.
#[derive(Clone, Debug)]
enum Post {
    Message(Vec<u8>),
    /// From, to, how much.
    Write(usize, usize, usize),
    /// The same, of a frame that nobody wants.
    Unwanted(usize, usize),
    Read(u64, u32),
    /// From, how much.
    Answer(usize, usize),
    /// What was posted so far leaves.
    Launch,
}

fn posts() -> impl Strategy<Value = Post> {
    let len = prop_oneof![0..300usize, 3000..6000usize, 0..40_000usize];
    let far = len.clone().prop_flat_map(|len| {
        let places = 0..=MEMORY_BYTES - len;
        (places.clone(), places, Just(len))
    });
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..400).prop_map(Post::Message),
        1 => proptest::collection::vec(any::<u8>(), 4000..8000).prop_map(Post::Message),
        4 => far.clone().prop_map(|(from, to, len)| Post::Write(from, to, len)),
        // Into the same few bytes again and again.
        1 => (0..1000usize, 0..50usize, 0..100usize).prop_map(|(f, t, l)| Post::Write(f, t, l)),
        1 => far.clone().prop_map(|(from, _, len)| Post::Unwanted(from, len)),
        2 => (any::<u64>(), 0..1u32 << 20).prop_map(|(address, len)| Post::Read(address, len)),
        3 => far.prop_map(|(from, _, len)| Post::Answer(from, len)),
        3 => Just(Post::Launch),
    ]
}

/// The sender, what its stream is, and what has to arrive.
struct Sender {
    outgoing: Outgoing,
    source: Arc<Mapping>,
    target: Arc<Mapping>,
    stream: Vec<u8>,
    launches: u32,
    entries: Vec<Entry>,
    messages: Vec<Vec<u8>>,
    written: Vec<u8>,
    answered: Vec<u8>,
}

fn bytes_of(memory: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.copy_out(0, &mut bytes);
    bytes
}

impl Sender {
    fn new(checksums: bool) -> Sender {
        let source = Mapping::anonymous(MEMORY_BYTES).expect("memory");
        let noise = |at: usize| ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
        source.copy_in(0, &(0..MEMORY_BYTES).map(noise).collect::<Vec<_>>());
        let messages = Messages { small: 128, large: 16 };
        let limits = OutgoingLimits { messages, transfers: 128, served: 128 };
        Sender {
            outgoing: Outgoing::new(limits, checksums),
            source,
            target: Mapping::anonymous(MEMORY_BYTES).expect("memory"),
            stream: Vec::new(),
            launches: 0,
            entries: Vec::new(),
            messages: Vec::new(),
            written: vec![0; MEMORY_BYTES],
            answered: Vec::new(),
        }
    }

    fn from(&self, offset: usize, len: usize) -> (*mut u8, Vec<u8>) {
        let mut bytes = vec![0; len];
        self.source.copy_out(offset, &mut bytes);
        (self.source.base().wrapping_add(offset), bytes)
    }

    fn write(&mut self, from: usize, to: usize, len: usize, key: u32) {
        let (start, bytes) = self.from(from, len);
        let address = (self.target.base().addr() + to) as u64;
        let remote = RemoteSlice { address, key: Key(key), len_bytes: len as u32 };
        self.outgoing.push_write(start, remote);
        self.entries.push(Entry::Write { remote, checksum: 0 });
        if key == KEY {
            self.written[to..to + len].copy_from_slice(&bytes);
        }
    }

    fn post(&mut self, post: &Post) {
        match post {
            Post::Message(message) => {
                self.outgoing.push_message(message);
                self.entries.push(Entry::Message { len_bytes: message.len() as u16 });
                self.messages.push(message.clone());
            }
            Post::Write(from, to, len) => self.write(*from, *to, *len, KEY),
            Post::Unwanted(from, len) => self.write(*from, 0, *len, NO_KEY),
            Post::Read(address, len_bytes) => {
                let remote = RemoteSlice { address: *address, key: Key(1), len_bytes: *len_bytes };
                self.outgoing.push_read(remote);
                self.entries.push(Entry::Read { remote });
            }
            Post::Answer(from, len) => {
                let (start, bytes) = self.from(*from, *len);
                let served = Some((1, Arc::clone(&self.source)));
                self.outgoing.push_answer(start, *len as u32, served);
                self.entries.push(Entry::ReadAnswer { len_bytes: *len as u32, checksum: 0 });
                self.answered.extend_from_slice(&bytes);
            }
            Post::Launch => self.launch(),
        }
    }

    fn launch(&mut self) {
        self.outgoing.push_nothing();
        self.launches += 1;
        let returned = Messages { small: self.launches as u16, large: 2 };
        let vectors = self.outgoing.launch(self.launches, returned);
        let mut len_bytes = 0;
        for (start, len) in vectors.ranges() {
            let at = self.stream.len();
            self.stream.resize(at + len, 0);
            let to = self.stream[at..].as_mut_ptr();
            // SAFETY: the sender keeps its frames and its memory until they are sent.
            unsafe { std::ptr::copy_nonoverlapping(start, to, len) };
            len_bytes += len;
        }
        // The kernel may have taken a part of it first.
        assert!(self.outgoing.sent(len_bytes / 2).is_some() || len_bytes < 2);
        assert!(self.outgoing.sent(len_bytes - len_bytes / 2).is_none());
        assert_eq!(self.outgoing.serving(), 0);
    }
}

/// The receiver, and what arrived.
struct Receiver {
    incoming: Incoming,
    target: Arc<Mapping>,
    answers: Arc<Mapping>,
    answered: usize,
    headers: Vec<FrameHeader>,
    entries: Vec<Entry>,
    messages: Vec<Vec<u8>>,
    sink: Vec<u8>,
}

impl Receiver {
    fn new(target: &Arc<Mapping>, answers_bytes: usize, checksums: bool) -> Receiver {
        let answers = Mapping::anonymous(answers_bytes.max(1).next_multiple_of(4096));
        Receiver {
            incoming: Incoming::new(checksums),
            target: Arc::clone(target),
            answers: answers.expect("memory"),
            answered: 0,
            headers: Vec::new(),
            entries: Vec::new(),
            messages: Vec::new(),
            sink: vec![0; 1000],
        }
    }

    /// Handles what is there.
    fn handle(&mut self) -> Result<(), Violation> {
        loop {
            if let Some(header) = self.incoming.begin_frame()? {
                self.headers.push(header);
                let Receiver { incoming, target, answers, answered, .. } = self;
                incoming.place_payload(header, |entry| match entry {
                    Entry::Write { remote, .. } if remote.key == Key(KEY) => {
                        let within = remote.address as usize - target.base().addr();
                        let start = target.base().wrapping_add(within);
                        Ok(Landing::write(KEY, start, target))
                    }
                    Entry::ReadAnswer { len_bytes, .. } => {
                        let start = answers.base().wrapping_add(*answered);
                        *answered += len_bytes as usize;
                        if *answered > answers.len() {
                            return Err(Violation("more than was sent"));
                        }
                        Ok(Landing::answer(start))
                    }
                    _ => Ok(Landing::nowhere()),
                })?;
            }
            if !self.incoming.in_frame() {
                return Ok(());
            }
            while let Next::Entry(entry, at) = self.incoming.next()? {
                if let Entry::Message { len_bytes } = entry {
                    self.messages.push(self.incoming.message(at, len_bytes.into()).to_vec());
                }
                // Payload is in its place by now.
                self.entries.push(match entry {
                    Entry::Write { remote, .. } => Entry::Write { remote, checksum: 0 },
                    Entry::ReadAnswer { len_bytes, .. } => {
                        Entry::ReadAnswer { len_bytes, checksum: 0 }
                    }
                    other => other,
                });
            }
            if self.incoming.in_frame() {
                return Ok(());
            }
        }
    }

    /// Takes a part of what was asked for, at most `most` bytes, off the stream.
    fn take(&mut self, stream: &mut &[u8], most: usize) -> Result<(), Violation> {
        let (vectors, _) = self.incoming.request(&mut self.sink);
        let asked: usize = vectors.ranges().map(|(_, len)| len).sum();
        assert!(asked > 0, "it asks for nothing");
        let mut left = asked.min(stream.len()).min(most.max(1));
        let taken = left;
        for (start, len) in vectors.ranges() {
            let part = len.min(left);
            let (now, rest) = stream.split_at(part);
            // SAFETY: the receiver keeps what it asked for until it is told of the arrival.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start, part) };
            *stream = rest;
            left -= part;
        }
        self.incoming.arrived(taken, !stream.is_empty());
        self.handle()
    }
}

/// Sends the posts, and receives them in pieces as long as `pieces` says in turn.
fn carry(posts: &[Post], pieces: &[usize], checksums: bool) -> (Sender, Receiver) {
    let mut sender = Sender::new(checksums);
    posts.iter().for_each(|post| sender.post(post));
    sender.launch();
    let mut receiver = Receiver::new(&sender.target, sender.answered.len(), checksums);
    let mut stream = &sender.stream[..];
    let mut pieces = pieces.iter().copied().cycle();
    while !stream.is_empty() {
        let most = pieces.next().unwrap_or(usize::MAX);
        receiver.take(&mut stream, most).expect("what was sent is right");
    }
    (sender, receiver)
}

fn assert_arrived(sender: &Sender, receiver: &Receiver) {
    assert!(!receiver.incoming.in_frame() && !receiver.incoming.awaits_payload());
    assert_eq!(receiver.entries, sender.entries);
    assert_eq!(receiver.messages, sender.messages);
    assert!(bytes_of(&sender.target) == sender.written, "writes are in their places");
    let answers = bytes_of(&receiver.answers);
    assert!(answers[..sender.answered.len()] == sender.answered[..], "and answers");
    // Each launch says once what is returned.
    let returned = receiver.headers.iter().filter(|header| header.large_returned > 0).count();
    assert_eq!(returned, sender.launches as usize);
    let placed: Vec<_> = receiver.headers.iter().map(|header| header.writes_placed).collect();
    assert!(placed.is_sorted() && placed.last() == Some(&sender.launches));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_posted_arrives(
        posts in proptest::collection::vec(posts(), 0..40),
        pieces in proptest::collection::vec(
            prop_oneof![1..100usize, 1..5000usize, Just(usize::MAX)], 1..50,
        ),
        checksums: bool,
    ) {
        let (sender, receiver) = carry(&posts, &pieces, checksums);
        assert_arrived(&sender, &receiver);
    }

    #[test]
    fn any_bytes_are_received_or_refused(
        posts in proptest::collection::vec(posts(), 1..8),
        spoilt in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        pieces in proptest::collection::vec(1..3000usize, 1..9),
        sealed: bool,
    ) {
        let mut sender = Sender::new(true);
        posts.iter().for_each(|post| sender.post(post));
        sender.launch();
        let control = u32::from_le_bytes(sender.stream[4..8].try_into().expect("four bytes"));
        for (at, value) in &spoilt {
            // In the first frame's header or control part, whose checksum may be made right again.
            let end = if sealed { 32 + control as usize } else { sender.stream.len() };
            let at = at.index(end);
            sender.stream[at] = *value;
        }
        if sealed {
            // Key, range and the length of answers stay what the receiver has room for.
            sender.stream[4..8].copy_from_slice(&control.to_le_bytes());
            let sum = crc32c::crc32c(&sender.stream[4..32 + control as usize]);
            sender.stream[..4].copy_from_slice(&sum.to_le_bytes());
        }
        let mut receiver = Guarded::new(&sender);
        let mut stream = &sender.stream[..];
        let mut pieces = pieces.iter().copied().cycle();
        while !stream.is_empty() {
            let most = pieces.next().unwrap_or(usize::MAX);
            if receiver.take(&mut stream, most).is_err() {
                break;
            }
        }
    }
}

/// A receiver that lets in what lies in its memory.
struct Guarded {
    incoming: Incoming,
    target: Arc<Mapping>,
    sink: Vec<u8>,
}

impl Guarded {
    fn new(sender: &Sender) -> Guarded {
        let (incoming, target) = (Incoming::new(true), Arc::clone(&sender.target));
        Guarded { incoming, target, sink: vec![0; 1000] }
    }

    fn take(&mut self, stream: &mut &[u8], most: usize) -> Result<(), Violation> {
        let (vectors, _) = self.incoming.request(&mut self.sink);
        let asked: usize = vectors.ranges().map(|(_, len)| len).sum();
        let mut left = asked.min(stream.len()).min(most);
        let taken = left;
        for (start, len) in vectors.ranges() {
            let part = len.min(left);
            let (now, rest) = stream.split_at(part);
            // SAFETY: the receiver keeps what it asked for until it is told of the arrival.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start, part) };
            *stream = rest;
            left -= part;
        }
        self.incoming.arrived(taken, !stream.is_empty());
        loop {
            let header = self.incoming.begin_frame()?;
            if header.is_none() && !self.incoming.in_frame() {
                return Ok(());
            }
            if let Some(header) = header {
                let Guarded { incoming, target, .. } = self;
                incoming.place_payload(header, |entry| {
                    let Entry::Write { remote, .. } = entry else { return Ok(Landing::nowhere()) };
                    let within = remote.address.wrapping_sub(target.base().addr() as u64);
                    let end = within.checked_add(remote.len_bytes.into());
                    if end.is_none_or(|end| end > target.len() as u64) {
                        return Ok(Landing::refused());
                    }
                    let start = target.base().wrapping_add(within as usize);
                    Ok(Landing::write(remote.key.0, start, target))
                })?;
            }
            loop {
                match self.incoming.next()? {
                    Next::Entry(..) => {}
                    Next::Nothing => break,
                    Next::Refused => return Err(Violation("refused")),
                }
            }
            if self.incoming.in_frame() {
                return Ok(());
            }
        }
    }
}

#[test]
fn byte_by_byte() {
    let posts = [
        Post::Message(vec![1; 300]),
        Post::Write(0, 5000, 7000),
        Post::Launch,
        Post::Launch,
        Post::Answer(100, 5000),
        Post::Message(Vec::new()),
        Post::Unwanted(0, 3000),
        Post::Write(3, 11, 1),
    ];
    for checksums in [false, true] {
        let (sender, receiver) = carry(&posts, &[1], checksums);
        assert_arrived(&sender, &receiver);
    }
}

/// Two writes into the same bytes, received at once: the later one is what remains, and both were
/// right.
#[test]
fn writes_into_the_same_place_arrive_together() {
    let posts =
        [Post::Write(0, 100, 20_000), Post::Write(50_000, 100, 20_000), Post::Write(9, 50, 9000)];
    for checksums in [false, true] {
        let (sender, receiver) = carry(&posts, &[usize::MAX], checksums);
        assert_arrived(&sender, &receiver);
    }
}

/// As many as fit: control parts are split into frames, and payload into requests to the kernel.
#[test]
fn as_much_as_is_allowed_at_a_time() {
    let messages = (0..128).map(|number| Post::Message(vec![number; 256]));
    let large = (0..16).map(|number| Post::Message(vec![number; 8192]));
    let writes = (0..128).map(|number| Post::Write(number * 1000, number * 2000, 1999));
    let answers = (0..128).map(|number| Post::Answer(number * 999, 1500));
    let posts: Vec<_> = messages.chain(large).chain(writes).chain(answers).collect();
    let (sender, receiver) = carry(&posts, &[usize::MAX], true);
    assert_arrived(&sender, &receiver);
    assert!(receiver.headers.len() > 4, "{} frames", receiver.headers.len());
}

#[test]
fn a_checksum_that_is_wrong_is_a_violation() {
    let mut sender = Sender::new(true);
    sender.post(&Post::Write(0, 0, 9000));
    sender.launch();
    *sender.stream.last_mut().expect("payload") ^= 1;
    let mut receiver = Receiver::new(&sender.target, 0, true);
    let mut stream = &sender.stream[..];
    let mut outcome = Ok(());
    while outcome.is_ok() && !stream.is_empty() {
        outcome = receiver.take(&mut stream, usize::MAX);
    }
    assert_eq!(outcome, Err(Violation("the checksum of a payload is wrong")));
    assert!(receiver.entries.is_empty(), "the write is not acknowledged");
}

#[test]
fn a_frame_repeated_is_a_violation() {
    let mut sender = Sender::new(false);
    sender.post(&Post::Message(vec![1; 10]));
    sender.launch();
    let twice = [&sender.stream[..], &sender.stream[..]].concat();
    let mut receiver = Receiver::new(&sender.target, 0, false);
    let mut stream = &twice[..];
    let repeated = Err(Violation("a frame is missing or repeated"));
    assert_eq!(receiver.take(&mut stream, usize::MAX), repeated);
    assert_eq!(receiver.messages.len(), 1);
}

/// Payload under way that nobody wants any more goes to where nothing is kept.
#[test]
fn payload_that_is_turned_away_lands_nowhere() {
    let mut sender = Sender::new(false);
    sender.post(&Post::Write(0, 0, 10_000));
    sender.post(&Post::Write(0, 100_000, 10_000));
    sender.post(&Post::Message(vec![3; 3]));
    sender.launch();
    let mut receiver = Receiver::new(&sender.target, 0, false);
    let mut stream = &sender.stream[..];
    receiver.take(&mut stream, 32 + 24 + 24 + 16).expect("right so far");
    let (vectors, _) = receiver.incoming.request(&mut receiver.sink);
    let asked: Vec<_> = vectors.ranges().take(2).collect();
    let second = sender.target.base().wrapping_add(100_000);
    assert_eq!(asked, [(sender.target.base(), 10_000), (second, 10_000)]);
    receiver.incoming.gave_up();
    assert!(receiver.incoming.lands_by_key(KEY) && !receiver.incoming.lands_by_key(NO_KEY));
    receiver.incoming.turn_away_writes();
    assert!(!receiver.incoming.lands_by_key(KEY));
    while !stream.is_empty() {
        receiver.take(&mut stream, usize::MAX).expect("right");
    }
    assert!(bytes_of(&sender.target).iter().all(|byte| *byte == 0));
    assert_eq!(receiver.messages, [vec![3; 3]]);
}
