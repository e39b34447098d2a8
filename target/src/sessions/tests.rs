use super::*;

const ID: u64 = 77;
const TICKET: &[u8] = b"ticket";

fn connection(index: u32) -> ConnectionId {
    ConnectionId { index, generation: 1 }
}

fn asker() -> Asker {
    Asker { channel: 0, connection: connection(900) }
}

fn ready(epoch: u64, status: Status) -> Acknowledgement {
    Acknowledgement::Ready { session: ID, epoch, status }
}

fn closed(epoch: u64) -> Acknowledgement {
    Acknowledgement::Closed { session: ID, epoch }
}

fn drain(sessions: &mut Sessions, index: u32) -> Vec<Acknowledgement> {
    let mut answers = Vec::new();
    sessions.drained(index, |from, answer| {
        assert_eq!(from, asker());
        answers.push(answer);
    });
    answers
}

fn open(sessions: &mut Sessions, epoch: u64) -> Outcome {
    sessions.open(ID, epoch, TICKET, asker(), |_| true, |_, _| {})
}

/// The states of the table; `None`: the session is not known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    None,
    Draining,
    Announced,
    Connected,
    Ended,
    Closing,
}

/// A table with one session of epoch 5 in a state.
fn prepare(state: Is) -> Sessions {
    let mut sessions = Sessions::new(4);
    if state == Is::None {
        return sessions;
    }
    let opened = open(&mut sessions, 5);
    let cut = Outcome::Cut { index: 0, connection: None, status: Status::STALE_EPOCH };
    assert_eq!(opened, cut);
    if state == Is::Draining {
        return sessions;
    }
    assert_eq!(drain(&mut sessions, 0), [ready(5, Status::OK)]);
    if state == Is::Announced {
        return sessions;
    }
    assert_eq!(sessions.hello(ID, 5, TICKET, connection(3)), Ok(0));
    match state {
        Is::Ended => assert!(sessions.disconnected(0, connection(3))),
        Is::Closing => {
            let status = Status::SESSION_GONE;
            let cut = Outcome::Cut { index: 0, connection: Some(connection(3)), status };
            assert_eq!(sessions.close(ID, 5, asker()), cut);
        }
        _ => {}
    }
    sessions
}

fn state_of(sessions: &Sessions) -> Is {
    match sessions.by_id.get(&ID).and_then(|index| sessions.table.get(*index)) {
        None => Is::None,
        Some(session) => match session.state {
            State::Draining => Is::Draining,
            State::Announced => Is::Announced,
            State::Connected(_) => Is::Connected,
            State::Ended => Is::Ended,
            State::Closing => Is::Closing,
        },
    }
}

/// What an opening leads to: the grants are cut off, or it is answered at once.
type Opened = Result<(), Status>;

const ALL: [Is; 6] = [Is::None, Is::Draining, Is::Announced, Is::Connected, Is::Ended, Is::Closing];

#[test]
fn every_state_meets_every_opening() {
    use Is::{Announced, Closing, Connected, Draining, Ended, None as Unknown};
    // Epoch, and per state in the order of `ALL`: `Ok` begins to drain, `Err` is answered at once.
    let stale = Err(Status::STALE_EPOCH);
    let known = Err(Status::OK);
    let cut = Ok(());
    let table: [(u64, [(Opened, Is); 6]); 3] = [
        (
            4,
            [
                (cut, Draining),
                (stale, Draining),
                (stale, Announced),
                (stale, Connected),
                (stale, Ended),
                (stale, Closing),
            ],
        ),
        (
            5,
            [
                (cut, Draining),
                (cut, Draining),
                (known, Announced),
                (known, Connected),
                (cut, Draining),
                (stale, Closing),
            ],
        ),
        (6, [(cut, Draining); 6]),
    ];
    for (epoch, row) in table {
        for (state, (expected, then)) in ALL.into_iter().zip(row) {
            let mut sessions = prepare(state);
            let outcome = open(&mut sessions, epoch);
            let about = format!("{state:?} opened with {epoch}: {outcome:?}");
            match (expected, outcome) {
                (Err(status), Outcome::Answer(answer)) => {
                    assert_eq!(answer, ready(epoch, status), "{about}");
                }
                (Ok(()), Outcome::Cut { connection: ended, status, .. }) => {
                    assert_eq!(status, Status::STALE_EPOCH, "{about}");
                    let had = (state == Connected).then(|| connection(3));
                    assert_eq!(ended, had, "{about}");
                }
                (_, outcome) => panic!("{about} {outcome:?}"),
            }
            assert_eq!(state_of(&sessions), then, "{about}");
            assert!(state != Unknown || sessions.len() == 1);
        }
    }
}

#[test]
fn every_state_meets_every_close() {
    use Is::{Announced, Closing, Connected, Draining, Ended, None as Unknown};
    // `true`: the answer waits for the drain.
    let table: [(u64, [(bool, Is); 6]); 2] = [
        (
            4,
            [
                (false, Unknown),
                (true, Draining),
                (false, Announced),
                (false, Connected),
                (false, Ended),
                (true, Closing),
            ],
        ),
        (
            5,
            [
                (false, Unknown),
                (true, Closing),
                (true, Closing),
                (true, Closing),
                (true, Closing),
                (true, Closing),
            ],
        ),
    ];
    for (epoch, row) in table {
        for (state, (waits, then)) in ALL.into_iter().zip(row) {
            let mut sessions = prepare(state);
            let outcome = sessions.close(ID, epoch, asker());
            let about = format!("{state:?} closed up to {epoch}: {outcome:?}");
            assert_eq!(state_of(&sessions), then, "{about}");
            if waits {
                assert!(matches!(outcome, Outcome::Cut { .. }), "{about}");
                // A close that waits already, of a higher epoch, answers for this one too.
                let answer = closed(if state == Closing { 5 } else { epoch });
                assert!(drain(&mut sessions, 0).contains(&answer), "{about}");
            } else {
                assert_eq!(outcome, Outcome::Answer(closed(epoch)), "{about}");
            }
        }
    }
}

#[test]
fn a_host_connects_in_one_state_only() {
    for state in ALL {
        let mut sessions = prepare(state);
        let hello = sessions.hello(ID, 5, TICKET, connection(8));
        if state == Is::Announced {
            assert_eq!(hello, Ok(0));
            assert_eq!(sessions.find(ID, 5), Ok((0, connection(8))));
        } else {
            assert_eq!(hello, Err(Status::BAD_TICKET), "{state:?}");
        }
    }
    for (epoch, ticket, status) in [
        (4, TICKET, Status::STALE_EPOCH),
        (6, TICKET, Status::BAD_TICKET),
        (5, b"Ticket" as &[u8], Status::BAD_TICKET),
        (5, b"ticket5", Status::BAD_TICKET),
        (5, b"", Status::BAD_TICKET),
    ] {
        let mut sessions = prepare(Is::Announced);
        assert_eq!(sessions.hello(ID, epoch, ticket, connection(8)), Err(status));
        assert_eq!(state_of(&sessions), Is::Announced);
    }
}

#[test]
fn grants_find_a_connected_session_of_their_epoch_only() {
    for state in ALL {
        let sessions = prepare(state);
        let connected = state == Is::Connected;
        let found = if connected { Ok((0, connection(3))) } else { Err(Status::SESSION_GONE) };
        assert_eq!(sessions.find(ID, 5), found, "{state:?}");
        assert_eq!(sessions.find(ID, 6), Err(Status::SESSION_GONE), "{state:?}");
        let lower = if state == Is::None { Status::SESSION_GONE } else { Status::STALE_EPOCH };
        assert_eq!(sessions.find(ID, 4), Err(lower), "{state:?}");
    }
}

#[test]
fn only_the_connection_of_a_session_ends_it() {
    for state in ALL {
        let mut sessions = prepare(state);
        assert!(!sessions.disconnected(0, connection(4)), "{state:?}");
        assert_eq!(sessions.disconnected(0, connection(3)), state == Is::Connected, "{state:?}");
    }
}

#[test]
fn drained_sessions_move_on_and_answer_once() {
    for (state, then) in [
        (Is::Draining, Is::Announced),
        (Is::Announced, Is::Announced),
        (Is::Connected, Is::Connected),
        (Is::Ended, Is::Ended),
        (Is::Closing, Is::None),
    ] {
        let mut sessions = prepare(state);
        let answers = drain(&mut sessions, 0).len();
        assert_eq!(answers, usize::from(matches!(state, Is::Draining | Is::Closing)));
        assert_eq!(state_of(&sessions), then);
        assert_eq!(drain(&mut sessions, 0), []);
    }
}

#[test]
fn the_table_gives_ended_sessions_up_first_then_unused_ones() {
    let mut sessions = Sessions::new(3);
    let add = |sessions: &mut Sessions, id| {
        let outcome = sessions.open(id, 1, TICKET, asker(), |_| true, |_, _| {});
        if let Outcome::Cut { index, .. } = outcome {
            drain_any(sessions, index);
            return true;
        }
        false
    };
    for id in [1, 2, 3] {
        assert!(add(&mut sessions, id));
    }
    let connect = |sessions: &mut Sessions, id: u64| {
        sessions.hello(id, 1, TICKET, connection(id as u32)).unwrap()
    };
    let first = connect(&mut sessions, 1);
    let second = connect(&mut sessions, 2);
    sessions.disconnected(second, connection(2));
    sessions.disconnected(first, connection(1));
    assert!(add(&mut sessions, 4));
    assert!(!sessions.by_id.contains_key(&2), "it ended first");
    assert!(add(&mut sessions, 5));
    assert!(!sessions.by_id.contains_key(&1));
    assert!(add(&mut sessions, 6));
    assert!(!sessions.by_id.contains_key(&3), "nobody had taken it up");
    // Sessions in use do not give way.
    for id in [4, 5, 6] {
        connect(&mut sessions, id);
    }
    assert!(!add(&mut sessions, 7));
    // Nor does one with grants left.
    let five = sessions.by_id[&5];
    sessions.disconnected(five, connection(5));
    let refused = sessions.open(8, 1, TICKET, asker(), |index| index != five, |_, _| {});
    let full = Acknowledgement::Ready { session: 8, epoch: 1, status: Status::AGAIN };
    assert_eq!(refused, Outcome::Answer(full));
}

#[test]
fn what_is_owed_for_a_session_is_one_answer_of_each_kind_per_channel() {
    let mut sessions = prepare(Is::Draining);
    let mut told = Vec::new();
    for epoch in 6..1000 {
        let overtaken = |to, answer| told.push((to, answer));
        let outcome = sessions.open(ID, epoch, TICKET, asker(), |_| true, overtaken);
        assert!(matches!(outcome, Outcome::Cut { .. }));
        // As its host comes and goes; and asked again, by a metadata server that lost the answer.
        sessions.close(ID, epoch - 1, asker());
        open(&mut sessions, epoch);
        let owed = &sessions.table.get(0).unwrap().owed;
        assert_eq!(owed.len(), 2, "{owed:?}");
    }
    let overtaken: Vec<_> =
        (5..999).map(|epoch| (asker(), ready(epoch, Status::STALE_EPOCH))).collect();
    assert_eq!(told, overtaken, "each once, when it was overtaken");
    // A close of a lower epoch is contained in what is owed.
    sessions.close(ID, 7, asker());
    assert_eq!(drain(&mut sessions, 0), [closed(998), ready(999, Status::OK)]);
}

#[test]
fn answers_follow_a_channel_to_its_new_connection_and_leave_others_alone() {
    let mut sessions = prepare(Is::Draining);
    let reconnected = Asker { channel: 0, connection: connection(901) };
    let other = Asker { channel: 1, connection: connection(902) };
    sessions.close(ID, 4, asker());
    for from in [reconnected, other] {
        sessions.open(ID, 5, TICKET, from, |_| true, |_, _| panic!("nothing is overtaken"));
        sessions.close(ID, 3, from);
    }
    let mut told = Vec::new();
    sessions.drained(0, |to, answer| told.push((to, answer)));
    let expected = [
        (reconnected, ready(5, Status::OK)),
        (reconnected, closed(3)),
        (other, ready(5, Status::OK)),
        (other, closed(3)),
    ];
    assert_eq!(told, expected);
}

fn drain_any(sessions: &mut Sessions, index: u32) {
    sessions.drained(index, |_, _| {});
}
