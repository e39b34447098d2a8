use super::*;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

fn address(reactor: usize) -> Address {
    Address::shm(format!("/meta/{reactor}")).unwrap()
}

fn connection(index: u32) -> ConnectionId {
    ConnectionId { index, generation: 0 }
}

fn control() -> Control {
    Control::new(address(0), 2, Timing::default())
}

fn welcome(term: u64, reactor: u16, reactors: u16) -> (TargetWelcome, Vec<u8>) {
    let message = TargetWelcome {
        version: U16::new(gannet_proto::VERSION),
        reactors: U16::new(reactors),
        reactor: U16::new(reactor),
        stores: U16::new(2),
        term: U64::new(term),
        grants_max: U32::new(128),
        ..TargetWelcome::default()
    };
    let mut tail = [U32::new(40), U32::new(41)].as_bytes().to_vec();
    for reactor in 0..reactors.into() {
        let text = address(reactor).to_string();
        tail.extend_from_slice(U16::new(text.len() as u16).as_bytes());
        tail.extend_from_slice(text.as_bytes());
    }
    (message, tail)
}

/// Takes a channel to the point where it waits for its welcome.
fn greet(control: &mut Control, index: u16) {
    control.connecting(index, connection(index.into()));
    control.connected(index, connection(index.into()), Time(5));
}

fn welcomed(control: &mut Control, term: u64, index: u16, reactors: u16) -> Welcomed {
    greet(control, index);
    let (message, tail) = welcome(term, index, reactors);
    control.welcome(index, &message, &tail, Time(6)).unwrap()
}

#[test]
fn the_first_welcome_names_the_other_reactors() {
    let mut control = control();
    assert_eq!(control.due(Time::ZERO), Some(0));
    let first = welcomed(&mut control, 3, 0, 3);
    assert_eq!(first, Welcomed { cut: vec![0, 1, 2], disconnect: vec![] });
    assert_eq!(control.live(0), Some(connection(0)));
    assert_eq!(control.channels[0].store_ids, [40, 41]);
    let addresses: Vec<_> = control.channels.iter().map(|c| c.address.clone()).collect();
    assert_eq!(addresses, [address(0), address(1), address(2)]);
    assert_eq!(control.due(Time(6)), Some(1));
    assert_eq!(control.grants_max(), 128);
    let second = welcomed(&mut control, 3, 1, 3);
    assert_eq!(second.cut, [1, 2], "channel 0 has the same term");
    assert_eq!(control.grants_max(), 256);
}

#[test]
fn a_higher_term_cuts_all_channels_of_lower_ones() {
    let mut control = control();
    for index in 0..3 {
        welcomed(&mut control, 3, index, 3);
    }
    control.lost(0, Time(9));
    assert_eq!(welcomed(&mut control, 4, 0, 3).cut, [0, 1, 2]);
    assert_eq!(control.term_max(), 4);
    control.lost(1, Time(9));
    assert_eq!(welcomed(&mut control, 4, 1, 3).cut, [1, 2]);
}

#[test]
fn fewer_or_moved_reactors_end_their_channels() {
    let mut control = control();
    for index in 0..3 {
        welcomed(&mut control, 3, index, 3);
    }
    control.lost(0, Time(9));
    let fewer = welcomed(&mut control, 4, 0, 2);
    assert_eq!(fewer.disconnect, [(2, connection(2))]);
    assert_eq!(control.channels[2].phase, Phase::Unused);
    control.lost(2, Time(10));
    assert_eq!(control.channels[2].phase, Phase::Unused, "it is not tried again");
    control.lost(0, Time(9));
    let more = welcomed(&mut control, 5, 0, 3);
    assert_eq!(more.disconnect, []);
    assert_eq!(control.channels[2].phase, Phase::Waiting(Time(6)));
    control.channels[1].address = address(77);
    control.lost(0, Time(9));
    let moved = welcomed(&mut control, 6, 0, 3);
    assert_eq!(moved.disconnect, [(1, connection(1))]);
    assert_eq!(control.channels[1].address, address(1));
}

#[test]
fn welcomes_that_cannot_be_are_refused() {
    type Change = fn(&mut TargetWelcome, &mut Vec<u8>);
    let table: [(&str, Change); 11] = [
        ("version", |w, _| w.version = U16::new(2)),
        ("reactors", |w, _| w.reactors = U16::ZERO),
        ("reactors", |w, _| w.reactors = U16::new(65)),
        ("reactors", |w, _| w.reactor = U16::new(1)),
        ("grants_max", |w, _| w.grants_max = U32::ZERO),
        ("grants_max", |w, _| w.grants_max = U32::new(4097)),
        ("stores", |w, _| w.stores = U16::new(1)),
        ("store ids", |_, tail| tail.truncate(7)),
        ("reactor addresses", |_, tail| tail.truncate(9)),
        ("reactor addresses", |_, tail| tail[8] = 0xff),
        ("reactor addresses", |_, tail| tail[10] = 0xff),
    ];
    for (what, change) in table {
        let mut control = control();
        greet(&mut control, 0);
        let (mut message, mut tail) = welcome(3, 0, 1);
        change(&mut message, &mut tail);
        let refused = control.welcome(0, &message, &tail, Time(6));
        assert_eq!(refused, Err(WelcomeError::Malformed(what)));
        assert_eq!((control.live(0), control.term_max()), (None, 0));
    }
    let mut control = control();
    let (message, tail) = welcome(3, 0, 1);
    let refused = control.welcome(0, &message, &tail, Time(6));
    assert_eq!(refused, Err(WelcomeError::Malformed("nobody asked for it")));
    welcomed(&mut control, 3, 0, 1);
    control.lost(0, Time(9));
    greet(&mut control, 0);
    let (message, tail) = welcome(2, 0, 1);
    let refused = control.welcome(0, &message, &tail, Time(6));
    assert_eq!(refused, Err(WelcomeError::StaleTerm { term: 2, known: 3 }));
}

#[test]
fn silent_peers_are_overdue_and_pauses_grow() {
    let mut control = control();
    greet(&mut control, 0);
    let until = Time(5) + Timing::default().handshake_timeout;
    assert_eq!(control.deadline(), until);
    assert_eq!(control.overdue(until - Duration::from_nanos(1)), None);
    assert_eq!(control.overdue(until), Some((0, connection(0))));
    assert!(!control.lost(0, Time(0)), "it was not live");
    assert_eq!(control.deadline(), Time(10_000_000));
    assert!(!control.lost(0, Time(0)));
    assert_eq!(control.deadline(), Time(20_000_000));
    welcomed(&mut control, 3, 0, 1);
    assert_eq!(control.deadline(), Time::NEVER);
    assert!(control.lost(0, Time(0)));
    assert_eq!(control.deadline(), Time(10_000_000), "a welcome starts the pauses over");
}

#[test]
fn handshakes_are_overdue_in_order() {
    let mut handshakes = Handshakes::default();
    for index in 0..3 {
        handshakes.add(connection(index), Time(10 + u64::from(index)));
    }
    handshakes.remove(connection(1));
    assert_eq!((handshakes.len(), handshakes.deadline()), (2, Time(10)));
    assert_eq!(handshakes.overdue(Time(9)), None);
    assert_eq!(handshakes.overdue(Time(12)), Some(connection(0)));
    assert_eq!(handshakes.overdue(Time(12)), Some(connection(2)));
    assert_eq!((handshakes.overdue(Time(12)), handshakes.deadline()), (None, Time::NEVER));
}
