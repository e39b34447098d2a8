//! Messages: order, credits, bounds.

use gannet_fabric::{
    DisconnectReason, Fabric, LARGE_MESSAGE_BYTES, PostError, SMALL_MESSAGE_BYTES,
};

use super::Provider;
use super::end::{Pair, Random, pattern};

fn random_length(random: &mut Random) -> usize {
    let edges = [0, 1, 55, 56, 57, 119, 120, 121, 255, 256, 257, 8191, 8192];
    match random.below(4) {
        0 => edges[random.below(edges.len() as u64) as usize],
        1 => random.below(LARGE_MESSAGE_BYTES as u64 + 1) as usize,
        _ => random.below(SMALL_MESSAGE_BYTES as u64 + 1) as usize,
    }
}

/// Messages of all lengths, both ways at once, arrive whole and in the order of posting.
pub fn order_over_both_classes(provider: &impl Provider) {
    let messages = provider.rounds(4000);
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let mut lengths = [Random::new(1), Random::new(2)];
    let mut expected = lengths.clone();
    let mut next: [Option<Vec<u8>>; 2] = [None, None];
    let mut sent = [0u64; 2];
    let mut received = [0u64; 2];
    pair.until("all messages", |left, right| {
        for (way, end, id) in [(0, &mut *left, to_right), (1, &mut *right, to_left)] {
            while sent[way] < messages {
                let seed = sent[way] * 2 + way as u64;
                let message = next[way]
                    .get_or_insert_with(|| pattern(seed, random_length(&mut lengths[way])));
                match end.fabric.send(id, message) {
                    Ok(()) => (sent[way], next[way]) = (sent[way] + 1, None),
                    Err(PostError::Full) => break,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        for (way, end, id) in [(0, &mut *right, to_left), (1, &mut *left, to_right)] {
            while let Some(message) = end.message(id) {
                let seed = received[way] * 2 + way as u64;
                let wanted = pattern(seed, random_length(&mut expected[way]));
                assert_eq!(message.len(), wanted.len(), "message {}", received[way]);
                assert!(message == wanted, "content of message {}", received[way]);
                received[way] += 1;
            }
        }
        (received == [messages; 2]).then_some(())
    });
}

/// One byte too many is refused; the limits themselves are not.
pub fn long_messages_are_refused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let long = vec![1; LARGE_MESSAGE_BYTES + 1];
    assert_eq!(pair.left.fabric.send(to_right, &long), Err(PostError::TooLong));
    pair.left.fabric.send(to_right, &long[1..]).expect("the longest message");
    pair.left.fabric.send(to_right, &[]).expect("the empty message");
    let message = pair.until("a message", |_, right| right.message(to_left));
    assert_eq!(message.len(), LARGE_MESSAGE_BYTES);
    let message = pair.until("a message", |_, right| right.message(to_left));
    assert!(message.is_empty());
}

/// A sender that fills its queue is refused, loses nothing, and gets all credits back.
pub fn a_full_queue_refuses_and_nothing_is_lost(provider: &impl Provider) {
    for len in [8, SMALL_MESSAGE_BYTES, LARGE_MESSAGE_BYTES] {
        let mut pair = Pair::new(provider);
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let (mut sent, mut received) = (0u64, 0u64);
        let mut first_round = 0;
        for round in 0..5 {
            // Credits may take a while to come back.
            pair.send_right(&pattern(sent, len));
            sent += 1;
            let mut in_round = 1;
            // The right end is not polled meanwhile.
            loop {
                match pair.left.fabric.send(to_right, &pattern(sent, len)) {
                    Ok(()) => (sent, in_round) = (sent + 1, in_round + 1),
                    Err(PostError::Full) => break,
                    Err(other) => panic!("{other}"),
                }
                assert!(in_round < 1 << 20, "a queue without a bound");
                pair.left.fabric.flush();
            }
            assert!(in_round >= 4, "{in_round} messages of {len} bytes in round {round}");
            if round == 0 {
                first_round = in_round;
            }
            assert_eq!(pair.left.fabric.send(to_right, &pattern(0, len)), Err(PostError::Full));
            pair.until("all messages", |_, right| {
                while let Some(message) = right.message(to_left) {
                    assert!(message == pattern(received, len), "message {received}");
                    received += 1;
                }
                (received == sent).then_some(())
            });
        }
        assert!(sent >= first_round * 3, "credits leak: {first_round} first, {sent} in 5 rounds");
    }
}

/// A class that is out of credits does not stop the other.
pub fn classes_have_their_own_credits(provider: &impl Provider) {
    for (filled, other) in [(8, LARGE_MESSAGE_BYTES), (LARGE_MESSAGE_BYTES, 8)] {
        let mut pair = Pair::new(provider);
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let mut sent = 0;
        while pair.left.fabric.send(to_right, &vec![1; filled]).is_ok() {
            sent += 1;
        }
        pair.left.fabric.send(to_right, &vec![2; other]).expect("a credit of the other class");
        let mut received = 0;
        pair.until("all messages", |_, right| {
            while let Some(message) = right.message(to_left) {
                let expected = if received < sent { (1, filled) } else { (2, other) };
                assert_eq!((message[0], message.len()), expected);
                received += 1;
            }
            (received == sent + 1).then_some(())
        });
    }
}

/// Messages posted before an orderly end arrive before the end, up to as many as the queue takes.
pub fn disconnect_delivers_what_was_sent(provider: &impl Provider) {
    for wanted in [1, 10, 700] {
        let mut pair = Pair::new(provider);
        let (to_right, to_left) = (pair.to_right, pair.to_left);
        let mut count = 0;
        while count < wanted {
            let len = if count % 50 == 7 { 3000 } else { 64 };
            match pair.left.fabric.send(to_right, &pattern(count, len)) {
                Ok(()) => count += 1,
                Err(PostError::Full) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(count >= wanted.min(8), "a queue of {count} messages");
        pair.left.fabric.disconnect(to_right);
        let reason = pair.until("the local end", |left, _| left.ended(to_right));
        assert_eq!(reason, DisconnectReason::Local);
        let mut received = 0;
        let reason = pair.until("the remote end", |_, right| {
            while let Some(message) = right.message(to_left) {
                assert!(message == pattern(received, message.len()), "message {received}");
                received += 1;
            }
            right.ended(to_left)
        });
        assert_eq!((received, reason), (count, DisconnectReason::Remote));
    }
}
