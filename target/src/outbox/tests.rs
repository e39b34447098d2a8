use super::*;
use gannet_proto::operations::CounterEntry;
use gannet_proto::packet::{Frames, Message};
use zerocopy::FromBytes;

const TERM: u64 = 9;

fn notice(number: u64) -> Notice {
    Notice { number: U64::new(number), ..Notice::default() }
}

/// Kinds of the frames in a packet.
fn kinds(packet: &[u8]) -> Vec<u16> {
    Frames::new(packet).map(|frame| frame.unwrap().kind).collect()
}

fn outbox(grants_max: u32) -> Outbox {
    let mut outbox = Outbox::new();
    outbox.begin(grants_max);
    outbox
}

#[test]
fn notices_come_before_answers_and_answers_before_retirements() {
    let mut outbox = outbox(100);
    let mut stats = Stats::default();
    outbox.retire(1);
    outbox.answer(Answer::Drained(Drained::default())).unwrap();
    outbox.answer(Answer::Stats { tag: 5, more: false }).unwrap();
    outbox.notice(notice(2)).unwrap();
    let mut packets = Vec::new();
    let sent = outbox.flush(TERM, &mut stats, |packet| {
        packets.push(packet.to_vec());
        Ok(())
    });
    assert_eq!((sent, packets.len()), (Ok(()), 1));
    let expected = [Notice::KIND, Drained::KIND, TargetStatsReply::KIND, Retired::KIND];
    assert_eq!(kinds(&packets[0]), expected);
    assert!(outbox.is_empty());
    assert_eq!((stats.notices, stats.retirement_reports), (1, 1));
}

#[test]
fn counters_travel_with_their_names() {
    let mut outbox = outbox(1);
    let mut stats = Stats { arrivals: 17, ..Stats::default() };
    outbox.answer(Answer::Stats { tag: 5, more: false }).unwrap();
    let mut found = Vec::new();
    outbox
        .flush(TERM, &mut stats, |packet| {
            let frame = Frames::new(packet).next().unwrap().unwrap();
            let (reply, mut tail) = frame.read::<TargetStatsReply>().unwrap();
            assert_eq!(reply.tag.get(), 5);
            for _ in 0..reply.count.get() {
                let (entry, rest) = CounterEntry::ref_from_prefix(tail).unwrap();
                let (name, rest) = rest.split_at(entry.name_bytes.get().into());
                found.push((String::from_utf8(name.to_vec()).unwrap(), entry.value.get()));
                tail = rest;
            }
            assert!(tail.is_empty());
            Ok(())
        })
        .unwrap();
    assert_eq!(found.len(), Stats::COUNT);
    assert!(found.contains(&("arrivals".to_owned(), 17)));
}

#[test]
fn what_a_full_connection_refuses_is_sent_later_and_once() {
    let mut outbox = outbox(4096);
    let mut stats = Stats::default();
    let mut numbers = Vec::new();
    for number in 1..=1000 {
        if number % 2 == 0 {
            outbox.notice(notice(number)).unwrap();
        } else {
            outbox.retire(number);
        }
    }
    let mut attempts = 0;
    let mut last_refused = Vec::new();
    while !outbox.is_empty() {
        // Two of three packets are refused.
        let _full = outbox.flush(TERM, &mut stats, |packet| {
            attempts += 1;
            if attempts % 3 != 0 {
                last_refused = packet.to_vec();
                return Err(PostError::Full);
            }
            assert!(last_refused == packet, "the refused packet comes first");
            for frame in Frames::new(packet) {
                let frame = frame.unwrap();
                if frame.kind == Notice::KIND {
                    numbers.push(frame.read::<Notice>().unwrap().0.number.get());
                } else {
                    let (retired, _) = frame.read::<Retired>().unwrap();
                    assert_eq!(retired.term.get(), TERM);
                    assert_eq!(retired.cumulative.get(), 1000);
                }
            }
            Ok(())
        });
    }
    assert_eq!(numbers, (1..=500).map(|half| half * 2).collect::<Vec<u64>>());
    assert!(attempts >= 9, "{attempts}: more than one packet was needed");
}

#[test]
fn grants_that_only_notices_tell_of_cause_no_report() {
    let mut outbox = outbox(16);
    let mut stats = Stats::default();
    for number in 1..=16 {
        outbox.notice(notice(number)).unwrap();
    }
    let mut frames = Vec::new();
    outbox
        .flush(TERM, &mut stats, |packet| {
            frames.extend(kinds(packet));
            Ok(())
        })
        .unwrap();
    assert_eq!(frames, [Notice::KIND; 16]);
    assert!(!outbox.admits(16) && outbox.admits(17), "their numbers are used up all the same");
}

#[test]
fn reports_with_many_gaps_take_several_packets_and_miss_nothing() {
    let mut outbox = outbox(4096);
    let mut stats = Stats::default();
    for number in (2..=2000).step_by(2) {
        outbox.retire(number);
    }
    let mut told = std::collections::BTreeSet::new();
    outbox
        .flush(TERM, &mut stats, |packet| {
            for frame in Frames::new(packet) {
                let (retired, tail) = frame.unwrap().read::<Retired>().unwrap();
                assert_eq!(retired.cumulative.get(), 0);
                let count = retired.ranges.get().into();
                let (ranges, _) =
                    <[RetiredRange]>::ref_from_prefix_with_elems(tail, count).unwrap();
                for range in ranges {
                    told.extend(range.first.get()..=range.last.get());
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(told, (2..=2000).step_by(2).collect());
}

#[test]
fn queues_are_bounded() {
    let mut outbox = outbox(10);
    for number in 1..=10 + NOTICES_SPARE as u64 {
        outbox.notice(notice(number)).unwrap();
    }
    assert_eq!(outbox.notice(notice(1000)), Err(Overflow));
    for tag in 0..ANSWERS_MAX as u64 {
        outbox.answer(Answer::Stats { tag, more: false }).unwrap();
    }
    assert_eq!(outbox.answer(Answer::Stats { tag: 0, more: false }), Err(Overflow));
    outbox.clear();
    assert!(outbox.is_empty());
}
