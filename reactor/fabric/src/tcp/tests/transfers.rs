//! Transfers under way, and what a peer may say of them.

use gannet_runtime::memory::{Mapping, Memory};

use crate::tcp::transfers::Transfers;
use crate::{ConnectionId, Event, Key, RemoteSlice, Transfer, TransferStatus};

const CONNECTION: ConnectionId = ConnectionId { index: 3, generation: 4 };

fn transfer(token: u64, len_bytes: u32) -> Transfer {
    let memory = Mapping::anonymous(4096).expect("memory").slice(0, 4096).expect("inside");
    let remote = RemoteSlice { address: 0, key: Key(1), len_bytes };
    Transfer { token, memory: Memory::Shared(memory), offset: 16, remote }
}

fn told(event: Event) -> (u64, TransferStatus) {
    let Event::Transferred { connection, token, status, .. } = event else {
        panic!("{event:?} of a transfer");
    };
    assert_eq!(connection, CONNECTION);
    (token, status)
}

fn completed(transfers: &mut Transfers) -> Vec<u64> {
    let mut tokens = Vec::new();
    transfers.complete(CONNECTION, |event| {
        let (token, status) = told(event);
        assert_eq!(status, TransferStatus::Done);
        tokens.push(token);
    });
    tokens
}

fn abandoned(transfers: &mut Transfers, refused: Option<u32>) -> Vec<(u64, TransferStatus)> {
    let mut all = Vec::new();
    transfers.abandon(CONNECTION, refused, |event| all.push(told(event)));
    assert!(transfers.is_empty());
    all
}

#[test]
fn they_complete_in_the_order_of_posting() {
    let mut transfers = Transfers::new(8);
    transfers.push(transfer(1, 10), true);
    transfers.push(transfer(2, 20), false);
    transfers.push(transfer(3, 30), true);
    // Nothing has left, so nothing can be done, whatever the peer says.
    transfers.placed(2, 0).expect("posted");
    assert!(completed(&mut transfers).is_empty());
    transfers.settle(1);
    assert_eq!(completed(&mut transfers), [1]);
    transfers.settle(2);
    assert!(completed(&mut transfers).is_empty(), "a read is in front of it");
    transfers.answer(20, 1).expect("it was asked for");
    assert!(completed(&mut transfers).is_empty(), "begun is not done");
    transfers.answered();
    assert_eq!(completed(&mut transfers), [2, 3]);
    assert!(transfers.is_empty());
}

#[test]
fn it_is_full_at_its_bound() {
    let mut transfers = Transfers::new(2);
    transfers.push(transfer(1, 1), true);
    assert!(!transfers.is_full());
    transfers.push(transfer(2, 1), false);
    assert!(transfers.is_full());
    transfers.placed(1, 1).expect("posted");
    assert_eq!(completed(&mut transfers), [1]);
    assert!(!transfers.is_full());
}

#[test]
fn acknowledging_more_than_was_posted_is_a_violation() {
    for said in [1, 2, 1000, u32::MAX, u32::MAX / 2] {
        assert!(Transfers::new(8).placed(said, 0).is_err(), "{said} of none");
    }
    let mut transfers = Transfers::new(8);
    transfers.push(transfer(1, 1), true);
    transfers.push(transfer(2, 1), false);
    transfers.push(transfer(3, 1), true);
    assert!(transfers.placed(3, 2).is_err(), "reads are not acknowledged");
    transfers.placed(1, 2).expect("posted");
    assert_eq!(completed(&mut transfers), [1]);
    transfers.placed(1, 2).expect("the same again");
    assert!(transfers.placed(0, 2).is_err(), "taken back");
    assert!(transfers.placed(3, 2).is_err());
    transfers.placed(2, 2).expect("posted");
}

#[test]
fn answers_are_for_the_oldest_read_and_of_its_length() {
    let mut transfers = Transfers::new(8);
    assert!(transfers.answer(0, 5).is_err(), "nothing was asked for");
    let first = transfers.push(transfer(1, 100), false);
    let second = transfers.push(transfer(2, 200), false);
    assert!(transfers.answer(100, 0).is_err(), "the read has not left");
    assert!(transfers.answer(99, 2).is_err());
    assert!(transfers.answer(101, 2).is_err());
    assert!(transfers.answer(200, 2).is_err(), "out of order");
    assert_eq!(transfers.answer(100, 2).expect("asked for"), first);
    assert!(transfers.answer(100, 2).is_err(), "the same again");
    assert!(transfers.answer(200, 1).is_err(), "the second has not left");
    assert_eq!(transfers.answer(200, 2).expect("asked for"), second);
    assert!(transfers.answer(0, 2).is_err());
    transfers.answered();
    assert_eq!(completed(&mut transfers), [1]);
    transfers.answered();
    assert_eq!(completed(&mut transfers), [2]);
    // More answers than reads change nothing.
    transfers.answered();
    assert!(completed(&mut transfers).is_empty());
}

#[test]
fn what_was_refused_and_what_was_behind_it() {
    let mut transfers = Transfers::new(8);
    for token in 0..6 {
        transfers.push(transfer(token, 1), token % 2 == 0);
    }
    transfers.placed(1, 3).expect("posted");
    assert_eq!(completed(&mut transfers), [0]);
    for (number, under_way) in [(0, false), (1, true), (5, true), (6, false), (u32::MAX, false)] {
        assert_eq!(transfers.has(number), under_way, "{number}");
    }
    // The second write is placed, the read in front of it is not answered.
    transfers.placed(2, 3).expect("posted");
    assert!(completed(&mut transfers).is_empty());
    let lost = TransferStatus::ConnectionLost;
    let expected = [
        (1, lost),
        (2, TransferStatus::Done),
        (3, TransferStatus::AccessRefused),
        (4, lost),
        (5, lost),
    ];
    assert_eq!(abandoned(&mut transfers, Some(3)), expected);
    assert!(!transfers.has(3));
}

#[test]
fn everything_is_handed_back_when_the_connection_is_lost() {
    let mut transfers = Transfers::new(4);
    for token in 0..4 {
        transfers.push(transfer(token, 1), token == 3);
    }
    transfers.answer(1, 4).expect("asked for");
    let lost = TransferStatus::ConnectionLost;
    assert_eq!(abandoned(&mut transfers, None), [(0, lost), (1, lost), (2, lost), (3, lost)]);
}

#[test]
fn ranges_that_are_being_read() {
    let at = |address, len_bytes| RemoteSlice { address, key: Key(9), len_bytes };
    let read = |token, address, len_bytes| Transfer {
        remote: at(address, len_bytes),
        ..transfer(token, 0)
    };
    let mut transfers = Transfers::new(8);
    assert!(!transfers.is_read(transfers.next_number(), at(0, u32::MAX)), "nothing is");
    transfers.push(read(1, 1000, 100), false);
    transfers.push(read(2, 3000, 100), false);
    // Of a write it does not matter.
    transfers.push(read(3, 2000, 100), true);
    let number = transfers.next_number();
    assert_eq!(number, 3);
    for (address, len_bytes, expected) in [
        (1000, 1, true),
        (1099, 1, true),
        (1100, 1, false),
        (999, 1, false),
        (999, 2, true),
        (0, 5000, true),
        (1050, 0, false),
        (2000, 100, false),
        (1100, 1900, false),
        (1100, 1901, true),
        (u64::MAX, u32::MAX, false),
        (0, u32::MAX, true),
    ] {
        let remote = at(address, len_bytes);
        assert_eq!(transfers.is_read(number, remote), expected, "{address} {len_bytes}");
        assert!(!transfers.is_read(0, remote), "nothing is in front of the first");
    }
    assert!(!transfers.is_read(1, at(3000, 1)) && transfers.is_read(2, at(3000, 1)));
    transfers.answer(100, 2).expect("asked for");
    assert!(transfers.is_read(number, at(1000, 1)), "begun is not done");
    transfers.answered();
    assert!(!transfers.is_read(number, at(1000, 1)) && transfers.is_read(number, at(3000, 1)));
    // Those that are done are handed out, and numbers go on.
    assert_eq!(completed(&mut transfers), [1]);
    assert!(transfers.is_read(number, at(3000, 1)) && !transfers.is_read(1, at(3000, 1)));
    transfers.answer(100, 2).expect("asked for");
    transfers.answered();
    assert!(!transfers.is_read(number, at(0, u32::MAX)));
}
