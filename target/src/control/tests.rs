use super::*;
use gannet_proto::addresses::push_text;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

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
    let routes: Vec<_> = control.channels.iter().map(|c| c.route.addresses().to_vec()).collect();
    assert_eq!(routes, [[address(0)], [address(1)], [address(2)]]);
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
    control.channels[1].route = Route::new([address(77)]);
    control.lost(0, Time(9));
    let moved = welcomed(&mut control, 6, 0, 3);
    assert_eq!(moved.disconnect, [(1, connection(1))]);
    assert_eq!(control.channels[1].route.current(), Some(&address(1)));
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

/// A welcome by a server of the file system `uuid` whose reactors listen over tcp as well.
fn broad_welcome(term: u64, reactor: u16, uuid: u8) -> (TargetWelcome, Vec<u8>) {
    let (mut message, mut tail) = welcome(term, reactor, 2);
    for reactor in 0..2_u16 {
        tail.extend_from_slice(&reactor.to_le_bytes());
        push_text(&mut tail, &format!("tcp://meta:{reactor}"));
    }
    tail.extend_from_slice(&[uuid; 16]);
    message.further_addresses = U16::new(2);
    message.names_file_system = U16::new(1);
    (message, tail)
}

fn current(control: &Control, index: usize) -> String {
    control.channels[index].route.current().unwrap().to_string()
}

#[test]
fn a_reactors_addresses_are_tried_in_turn_and_then_after_a_pause_again() {
    let mut control = control();
    greet(&mut control, 0);
    let (message, tail) = broad_welcome(3, 0, 6);
    control.welcome(0, &message, &tail, Time(6)).unwrap();
    assert_eq!(control.file_system_uuid(0), None, "whoever answers at the bootstrap address");
    assert_eq!(control.file_system_uuid(1), Some([6; 16]));
    assert_eq!(current(&control, 1), "shm:///meta/1");
    control.connecting(1, connection(1));
    assert!(!control.lost(1, Time(7)));
    assert_eq!((current(&control, 1).as_str(), control.due(Time(7))), ("tcp://meta:1", Some(1)));
    control.connecting(1, connection(1));
    control.lost(1, Time(8));
    assert_eq!((current(&control, 1).as_str(), control.due(Time(9))), ("shm:///meta/1", None));
    assert_eq!(control.deadline(), Time(8) + Timing::default().reconnect_delay_min);
    // Lost while it was open at a further address: the best one is tried first again.
    control.lost(1, Time(8));
    greet(&mut control, 1);
    let (message, tail) = broad_welcome(3, 1, 6);
    control.welcome(1, &message, &tail, Time(6)).unwrap();
    assert_eq!(current(&control, 1), "tcp://meta:1");
    assert!(control.lost(1, Time(9)));
    assert_eq!((current(&control, 1).as_str(), control.due(Time(9))), ("shm:///meta/1", None));
}

#[test]
fn another_file_systems_reactor_behind_a_learned_address_is_refused() {
    let mut control = control();
    greet(&mut control, 0);
    let (message, tail) = broad_welcome(3, 0, 6);
    control.welcome(0, &message, &tail, Time(6)).unwrap();
    greet(&mut control, 1);
    let (message, tail) = broad_welcome(9, 1, 7);
    let refused = control.welcome(1, &message, &tail, Time(6));
    let why = "another file system's metadata server";
    assert_eq!(refused, Err(WelcomeError::Malformed(why)));
    assert_eq!((control.live(1), control.term_max()), (None, 3), "its term means nothing here");
    // Reactor 0 at an address that was learned, and at the one that the user named.
    control.lost(0, Time(9));
    control.connecting(0, connection(0));
    control.lost(0, Time(9));
    assert_eq!(current(&control, 0), "tcp://meta:0");
    assert_eq!(control.file_system_uuid(0), Some([6; 16]));
    greet(&mut control, 0);
    let (message, tail) = broad_welcome(9, 0, 7);
    assert_eq!(control.welcome(0, &message, &tail, Time(6)), Err(WelcomeError::Malformed(why)));
    control.lost(0, Time(9));
    assert_eq!(current(&control, 0), address(0).to_string());
    greet(&mut control, 0);
    assert!(control.welcome(0, &message, &tail, Time(6)).is_ok(), "it was formatted anew");
    assert_eq!(control.file_system_uuid(1), Some([7; 16]));
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
