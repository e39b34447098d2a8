//! Packets that no correct peer sends: nothing panics, nobody else is harmed.
#![allow(clippy::unwrap_used)]

mod support;

use gannet_fabric::DisconnectReason;
use gannet_proto::Status;
use gannet_proto::control::{
    Drain, Grant, Revoke, SessionClose, SessionOpen, TargetStats, grant_operation,
};
use gannet_proto::packet::{Message, PacketWriter};
use support::Numbers;
use support::script::{
    Host, Script, TERM, Told, config, data_hello_packet, notice, packet, session_open_packet,
    welcome_packet,
};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Changes some bytes, cuts, or lengthens a packet.
fn spoil(packet: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..1 + numbers.below(4) {
        match numbers.below(4) {
            0 if !packet.is_empty() => packet.truncate(numbers.below(packet.len() as u64) as usize),
            1 if packet.len() < 4000 => packet.extend_from_slice(&numbers.next().to_le_bytes()),
            _ if !packet.is_empty() => {
                let at = numbers.below(packet.len() as u64) as usize;
                // Extremes are likelier than chance to find a missing bound.
                packet[at] =
                    [0, 1, 0x7f, 0x80, 0xff, numbers.next() as u8][numbers.below(6) as usize];
            }
            _ => {}
        }
    }
}

/// A packet as a metadata server might send it, before it is spoiled.
fn plausible(script: &mut Script, host: &Host, numbers: &mut Numbers) -> Vec<u8> {
    match numbers.below(8) {
        0 => packet(&Revoke { term: U64::new(TERM), number: U64::new(numbers.below(9)) }, &[]),
        1 => packet(&Drain { term: U64::new(TERM), ..Drain::default() }, &[]),
        2 => session_open_packet(numbers.below(5), numbers.below(5)),
        3 => {
            let session = U64::new(numbers.below(5));
            packet(&SessionClose { session, epoch: U64::new(numbers.below(5)) }, &[])
        }
        4 => packet(&TargetStats { tag: U64::new(1) }, &[]),
        _ => {
            let operation = 1 + numbers.below(3) as u8;
            let length = 1 + numbers.below(100_000) as u32;
            let grant = script.make(host, operation, numbers.below(1000), length);
            packet(&grant, &[])
        }
    }
}

#[test]
fn spoiled_packets_of_a_metadata_server_break_nothing_but_its_channel() {
    for (maps, resident) in [(true, true), (true, false), (false, false)] {
        let mut script = Script::new(maps, resident);
        let mut numbers = Numbers(42);
        let mut broken = 0;
        for round in 0..1500 {
            let host = script.host(1000 + round, 1, 1 << 20);
            for _ in 0..8 {
                let mut bytes = plausible(&mut script, &host, &mut numbers);
                spoil(&mut bytes, &mut numbers);
                script.fabric.deliver(script.meta, &bytes);
            }
            script.settle();
            script.close_session(1000 + round, 1);
            script.settle();
            script.fabric.break_connection(host.connection, DisconnectReason::Remote);
            script.settle();
            if !script.fabric.is_open(script.meta) {
                broken += 1;
                script.advance(std::time::Duration::from_secs(1));
                script.settle();
                let term = script.term;
                script.welcome(term);
            }
            script.told();
        }
        assert!(broken > 100, "{broken}: the packets are too tame");
        // It still works.
        let host = script.host(77_777, 1, 1 << 20);
        script.read(&host, 1, 4096);
        script.settle();
        assert_eq!(script.heard(host.connection).len(), 1);
    }
}

#[test]
fn spoiled_packets_of_hosts_are_refused() {
    let mut script = Script::new(true, true);
    let host = script.host(11, 1, 1 << 20);
    let mut numbers = Numbers(7);
    script.open_session(12, 1);
    script.settle();
    let mut refused = 0;
    for _ in 0..3000 {
        let connection = script.fabric.accept();
        let mut bytes = data_hello_packet(12, 1, b"not the ticket of the session");
        spoil(&mut bytes, &mut numbers);
        if numbers.chance(10) {
            bytes = (0..numbers.below(300)).map(|_| numbers.next() as u8).collect();
        }
        script.fabric.deliver(connection, &bytes);
        script.settle();
        refused += u32::from(!script.fabric.is_open(connection));
        script.fabric.break_connection(connection, DisconnectReason::Remote);
    }
    // Those that are not refused are empty packets, from which nothing follows.
    assert_eq!(refused, 3000, "no spoiled hello opens a session");
    script.read(&host, 1, 4096);
    script.settle();
    assert_eq!(script.heard(host.connection).len(), 1);
}

#[test]
fn spoiled_welcomes_are_refused_or_harmless() {
    let mut script = Script::bare(config(), true, true, 64);
    script.poll();
    let mut numbers = Numbers(3);
    let mut refused = 0;
    for _ in 0..2000 {
        let (_, connection) = script.last_connect();
        script.fabric.connected(connection);
        script.poll();
        let mut bytes = welcome_packet(TERM, 0, 1 + numbers.below(4) as u16, 16);
        spoil(&mut bytes, &mut numbers);
        // The term decides what is of the past: keep it, to see the rest.
        let term_at = 8 + std::mem::offset_of!(gannet_proto::control::TargetWelcome, term);
        if let Some(term) = bytes.get_mut(term_at..term_at + 8) {
            term.copy_from_slice(&TERM.to_le_bytes());
        }
        script.fabric.deliver(connection, &bytes);
        script.settle();
        refused += u32::from(!script.fabric.is_open(connection));
        if script.fabric.is_open(connection) {
            script.fabric.break_connection(connection, DisconnectReason::Remote);
        }
        script.advance(std::time::Duration::from_secs(1));
        script.settle();
        // The bootstrap address is always tried again.
        let (to, _) = script.fabric.0.borrow().connects[0].clone();
        let connects = script.fabric.0.borrow().connects.clone();
        let last = connects.iter().rposition(|(address, _)| *address == to).unwrap();
        script.fabric.0.borrow_mut().connects.push(connects[last].clone());
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn a_grant_with_a_field_out_of_bounds_ends_the_channel() {
    type Change = fn(&mut Grant);
    let changes: [Change; 5] = [
        |grant| grant.operation = 9,
        |grant| grant.flags = 0x80,
        |grant| grant.length = U32::new(u32::MAX),
        |grant| grant.offset = U32::new(4096),
        |grant| grant.number = U64::ZERO,
    ];
    for change in changes {
        let mut script = Script::new(true, true);
        let host = script.host(11, 1, 1 << 20);
        script.grant(&host, grant_operation::READ, 1, 4096, change);
        script.settle();
        assert!(!script.fabric.is_open(script.meta));
        assert_eq!(script.target.stats().protocol_errors, 1);
        assert!(script.fabric.is_open(host.connection), "the host has nothing to do with it");
    }
}

#[test]
fn unknown_kinds_on_the_back_channel_are_skipped() {
    let mut script = Script::new(true, true);
    let host = script.host(11, 1, 1 << 20);
    let mut unknown = packet(&TargetStats::default(), &[]);
    unknown[2..4].copy_from_slice(&0x7777_u16.to_le_bytes());
    let grant = script.make(&host, grant_operation::WRITE, 1, 4096);
    unknown.extend_from_slice(&packet(&grant, &[]));
    script.fabric.deliver(script.meta, &unknown);
    script.settle();
    assert_eq!(script.told(), [notice(1, Status::OK, 4096)]);
}

#[test]
fn a_flood_of_questions_is_bounded() {
    let mut script = Script::new(true, true);
    script.fabric.set_credits(script.meta, Some(0));
    let mut questions = PacketWriter::new();
    while questions.push(&TargetStats { tag: U64::new(1) }, &[]).is_ok() {}
    for _ in 0..10 {
        script.fabric.deliver(script.meta, questions.bytes());
    }
    script.settle();
    assert!(!script.fabric.is_open(script.meta), "answers that nobody takes are bounded");
}

#[test]
fn a_host_that_asks_for_epochs_while_its_disk_hangs_harms_nobody_else() {
    let mut script = Script::new(true, false);
    let host = script.host(11, 1, 1 << 20);
    let other = script.host(12, 1, 1 << 20);
    script.disk.0.borrow_mut().stalled = true;
    let hung = script.read(&host, 1, 4096);
    script.settle();
    let ready = |epoch, status| Told::Ready { session: 11, epoch, status };
    for epoch in 2..=101 {
        script.open_session(11, epoch);
        script.settle();
        let overtaken = ready(epoch - 1, Status::STALE_EPOCH);
        let expected = if epoch == 2 { vec![] } else { vec![overtaken] };
        assert_eq!(script.told(), expected, "answered at once");
    }
    assert!(script.fabric.is_open(script.meta));
    // Its host comes and goes too.
    for epoch in 1..=100 {
        script.close_session(11, epoch);
    }
    // Another session's grants need no disk, or wait for it, as before.
    script.grant(&other, grant_operation::ZERO, 0, 4096, |_| {});
    let waits = script.write(&other, 2, 4096);
    script.settle();
    assert!(script.fabric.is_open(script.meta));
    assert_eq!(script.heard(other.connection).len(), 1);
    script.disk.0.borrow_mut().stalled = false;
    script.settle();
    let told = script.told();
    for expected in [
        notice(hung, Status::STALE_EPOCH, 0),
        ready(101, Status::OK),
        Told::Closed { session: 11, epoch: 100 },
        notice(waits, Status::OK, 4096),
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told:?}");
    }
    let place = |one| told.iter().position(|told| *told == one).unwrap();
    assert!(place(notice(hung, Status::STALE_EPOCH, 0)) < place(ready(101, Status::OK)));
    let answers =
        told.iter().filter(|told| matches!(told, Told::Ready { .. } | Told::Closed { .. }));
    assert_eq!(answers.count(), 2, "one of each kind: {told:?}");
    script.connect_host(11, 101, 4096);
    assert_eq!(script.target.stats().protocol_errors, 0);
}

#[test]
fn tickets_longer_than_their_message_are_refused() {
    let open = SessionOpen { ticket_bytes: U16::new(200), ..SessionOpen::default() };
    let bytes = packet(&open, b"short");
    assert!(SessionOpen::ref_from_prefix(&bytes[8..]).is_ok());
    assert_eq!(SessionOpen::KIND, 0x64);
    let mut script = Script::new(true, true);
    script.fabric.deliver(script.meta, &bytes);
    script.settle();
    assert!(!script.fabric.is_open(script.meta));
    assert_eq!(script.target.sessions(), 0);
}
