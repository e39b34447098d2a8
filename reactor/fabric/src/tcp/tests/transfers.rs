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
