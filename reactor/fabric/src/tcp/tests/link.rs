//! What the peer says of transfers whose frames the kernel is not seen to be done with; and what is
//! left of a batch when its memory goes.

use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory};
use proptest::prelude::*;

use crate::credits::Messages;
use crate::tcp::TcpOptions;
use crate::tcp::connection::Link;
use crate::tcp::outgoing::{Outgoing, OutgoingLimits};
use crate::tcp::ring::Vectors;
use crate::tcp::wire::{Entry, FrameHeader, Greeting, GreetingKind, HEADER_BYTES};
use crate::{ConnectionId, Event, Events, Key, RemoteSlice, Transfer, TransferStatus};

const ID: ConnectionId = ConnectionId { index: 0, generation: 0 };
const LEN_BYTES: u32 = 64;

fn link() -> Link {
    let welcome = Greeting {
        kind: GreetingKind::Welcome,
        small_credits: 8,
        large_credits: 8,
        transfers_max: 8,
        payload_checksums: false,
        seen: None,
    };
    Link::new(&TcpOptions::default(), &welcome)
}

fn post(link: &mut Link, token: u64, writes: bool) {
    let memory = Mapping::anonymous(4096).expect("memory").slice(0, 4096).expect("inside");
    let remote = RemoteSlice { address: token * 4096, key: Key(1), len_bytes: LEN_BYTES };
    let transfer = Transfer { token, memory: Memory::Shared(memory), offset: 0, remote };
    assert!(link.post_transfer(transfer, writes));
}

fn len_of(vectors: &Vectors) -> usize {
    vectors.ranges().map(|(_, len)| len).sum()
}

fn frame(placed: u32, entries: &[Entry], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    entries.iter().for_each(|entry| entry.push(&mut bytes));
    let header = FrameHeader {
        control_bytes: (bytes.len() - HEADER_BYTES) as u32,
        payload_bytes: payload.len() as u32,
        sequence: 0,
        writes_placed: placed,
        small_returned: 0,
        large_returned: 0,
    };
    header.encode(&mut bytes);
    bytes.extend_from_slice(payload);
    bytes
}

/// The frame arrives, and is handled.
fn arrive(link: &mut Link, mut bytes: &[u8]) {
    let mut sink = vec![0; 64];
    let mut events = Events::default();
    while !bytes.is_empty() {
        let (vectors, _) = link.request(&mut sink);
        let mut taken = 0;
        for (start, len) in vectors.ranges() {
            let (now, rest) = bytes.split_at(len.min(bytes.len()));
            // SAFETY: the link keeps what it asked for until it is told of the arrival.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start, now.len()) };
            bytes = rest;
            taken += now.len();
        }
        link.incoming.arrived(taken, !bytes.is_empty());
        link.handle(ID, false, &mut events).expect("what arrives is right");
    }
}

fn completed(link: &mut Link) -> Vec<(u64, TransferStatus)> {
    let mut all = Vec::new();
    link.transfers.complete(ID, |event| all.push(told(event)));
    all
}

fn told(event: Event) -> (u64, TransferStatus) {
    let Event::Transferred { token, status, .. } = event else { panic!("{event:?}") };
    (token, status)
}

/// The kernel may still read a write's memory for all that is known.
#[test]
fn a_write_placed_before_it_is_seen_to_have_left_is_not_done() {
    let mut link = link();
    post(&mut link, 1, true);
    post(&mut link, 2, true);
    let len = len_of(link.launch());
    arrive(&mut link, &frame(2, &[], &[]));
    assert_eq!(completed(&mut link), []);
    assert!(link.outgoing.sent(len - 1).is_some());
    link.transfers.settle(link.outgoing.writes_sent);
    assert_eq!(completed(&mut link), [], "a byte of it has not left");
    assert!(link.outgoing.sent(1).is_none());
    link.transfers.settle(link.outgoing.writes_sent);
    assert_eq!(completed(&mut link), [(1, TransferStatus::Done), (2, TransferStatus::Done)]);
}

/// The request does not touch the memory that the answer is for.
#[test]
fn a_read_answered_before_it_is_seen_to_have_left_is_done() {
    let mut link = link();
    post(&mut link, 1, false);
    let len = len_of(link.launch());
    let entry = Entry::ReadAnswer { len_bytes: LEN_BYTES, checksum: 0 };
    arrive(&mut link, &frame(0, &[entry], &[9; LEN_BYTES as usize]));
    assert_eq!(completed(&mut link), [(1, TransferStatus::Done)]);
    assert!(link.outgoing.sent(len).is_none());
    link.transfers.settle(link.outgoing.writes_sent);
    assert_eq!(completed(&mut link), []);
}

/// At the connection's end, what was placed and turns out to have left is done.
#[test]
fn what_was_placed_before_the_end_is_told() {
    for whole in [false, true] {
        let mut link = link();
        post(&mut link, 1, true);
        let len = len_of(link.launch());
        arrive(&mut link, &frame(1, &[], &[]));
        let _rest = link.outgoing.sent(len - usize::from(!whole));
        link.transfers.settle(link.outgoing.writes_sent);
        let mut all = Vec::new();
        link.transfers.abandon(ID, None, |event| all.push(told(event)));
        let expected = if whole { TransferStatus::Done } else { TransferStatus::ConnectionLost };
        assert_eq!(all, [(1, expected)]);
    }
}

#[derive(Clone, Copy, Debug)]
enum Post {
    Message(usize),
    /// Bytes from memory of others.
    Write(usize),
    Answer(usize),
}

fn posts() -> impl Strategy<Value = Vec<Post>> {
    let post = prop_oneof![
        8 => (0..256usize).prop_map(Post::Message),
        4 => (4000..8192usize).prop_map(Post::Message),
        1 => (0..5000usize).prop_map(Post::Write),
        1 => (0..5000usize).prop_map(Post::Answer),
    ];
    proptest::collection::vec(post, 0..16)
}

fn outgoing(checksums: bool) -> Outgoing {
    let messages = Messages { small: 64, large: 64 };
    Outgoing::new(OutgoingLimits { messages, transfers: 64, served: 64 }, checksums)
}

fn push(outgoing: &mut Outgoing, posts: &[Post], memory: &Arc<Mapping>) {
    for post in posts {
        match *post {
            Post::Message(len) => outgoing.push_message(&vec![len as u8; len]),
            Post::Write(len) => {
                let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: len as u32 };
                outgoing.push_write(memory.base(), remote);
            }
            Post::Answer(len) => {
                outgoing.push_answer(memory.base(), len as u32, Some((1, Arc::clone(memory))));
            }
        }
    }
}

/// The bytes that the kernel would take, and where those of `memory` begin.
fn bytes_of(vectors: &Vectors, memory: &Mapping) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut foreign) = (Vec::new(), Vec::new());
    for (start, len) in vectors.ranges() {
        let at = bytes.len();
        if start.addr() == memory.base().addr() {
            foreign.extend(at..at + len);
        }
        bytes.resize(at + len, 0);
        // SAFETY: the batch keeps its ranges until they are sent.
        unsafe { std::ptr::copy_nonoverlapping(start, bytes[at..].as_mut_ptr(), len) };
    }
    (bytes, foreign)
}

proptest! {
    /// Of a stream of which a part has left, that goes on which stands in front of the next byte from
    /// memory of others, and is what it would have been.
    #[test]
    fn what_is_left_ends_in_front_of_memory_of_others(
        flying in posts(),
        open in posts(),
        taken: prop::sample::Index,
        checksums: bool,
    ) {
        let memory = Mapping::anonymous(8192).expect("memory");
        memory.copy_in(0, &[0xab; 8192]);
        // The whole stream.
        let mut whole = outgoing(checksums);
        push(&mut whole, &flying, &memory);
        whole.push_nothing();
        let (mut stream, mut foreign) = bytes_of(whole.launch(1, Messages::default()), &memory);
        let launched = stream.len();
        prop_assert!(whole.sent(launched).is_none());
        push(&mut whole, &open, &memory);
        if whole.has_open() {
            let (more, further) = bytes_of(whole.launch(2, Messages::default()), &memory);
            stream.extend_from_slice(&more);
            foreign.extend(further.into_iter().map(|at| launched + at));
        }

        let mut cut = outgoing(checksums);
        push(&mut cut, &flying, &memory);
        cut.push_nothing();
        let _vectors = cut.launch(1, Messages::default());
        push(&mut cut, &open, &memory);
        let taken = taken.index(launched + 1);
        let _rest = cut.sent(taken);
        cut.cut_off_payload();
        let mut rest = Vec::new();
        while cut.has_rest() {
            let (bytes, foreign) = bytes_of(cut.rest(2).expect("it has some"), &memory);
            prop_assert!(foreign.is_empty());
            prop_assert!(cut.sent(bytes.len()).is_none());
            rest.extend_from_slice(&bytes);
        }
        let end = foreign.into_iter().find(|at| *at >= taken).unwrap_or(stream.len());
        // The checksums of payload that is not sent any more are not made.
        let same = rest == stream[taken..end];
        prop_assert!(same || checksums && rest.len() == end - taken);
        prop_assert!(rest.len() == end - taken);
    }
}
