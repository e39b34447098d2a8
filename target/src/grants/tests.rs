use std::collections::VecDeque;

use proptest::prelude::*;
use zerocopy::little_endian::U64;

use super::*;

const SESSIONS: u32 = 3;
const CHANNELS: u16 = 2;
const ROOM: u32 = 12;

#[derive(Clone, Debug)]
enum Input {
    Admit {
        session: u32,
        channel: u16,
    },
    /// Posts a piece of the head of a session's queue.
    Post(u32),
    /// All pieces of the head are posted.
    PostAll(u32),
    /// A piece of some begun grant ends; `true`: it fails.
    Complete(usize, bool),
    CutSession(u32),
    CutChannel(u16),
    DropQueued(u16),
    Revoke(usize),
}

/// What a grant should be.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    place: u32,
    number: u64,
    session: u32,
    channel: u16,
    stage: Stage,
    begun: bool,
    under_way: u32,
    status: Status,
    session_is_current: bool,
    channel_is_current: bool,
}

struct Both {
    grants: Grants,
    model: Vec<Model>,
    queues: Vec<VecDeque<u32>>,
    cut_status: Vec<Status>,
    next_number: u64,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        6 => (0..SESSIONS, 0..CHANNELS)
            .prop_map(|(session, channel)| Input::Admit { session, channel }),
        5 => (0..SESSIONS).prop_map(Input::Post),
        4 => (0..SESSIONS).prop_map(Input::PostAll),
        6 => (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(which, fails)| Input::Complete(which, fails)),
        1 => (0..SESSIONS).prop_map(Input::CutSession),
        1 => (0..CHANNELS).prop_map(Input::CutChannel),
        1 => (0..CHANNELS).prop_map(Input::DropQueued),
        1 => any::<usize>().prop_map(Input::Revoke),
    ]
}

impl Both {
    fn new() -> Both {
        let mut grants = Grants::new(SESSIONS);
        grants.reserve(CHANNELS.into(), ROOM);
        Both {
            grants,
            model: Vec::new(),
            queues: vec![VecDeque::new(); SESSIONS as usize],
            cut_status: vec![Status::SESSION_GONE; SESSIONS as usize],
            next_number: 1,
        }
    }

    fn find(&mut self, place: u32) -> &mut Model {
        self.model.iter_mut().find(|grant| grant.place == place).unwrap()
    }

    fn admit(&mut self, session: u32, channel: u16) {
        let number = self.next_number;
        let grant = Grant { number: U64::new(number), ..Grant::default() };
        let connection = ConnectionId { index: session, generation: 0 };
        let place = self.grants.admit(&grant, channel, 0, session, connection);
        assert_eq!(place.is_some(), self.model.len() < ROOM as usize);
        let Some(place) = place else { return };
        self.next_number += 1;
        self.queues[session as usize].push_back(place);
        self.model.push(Model {
            place,
            number,
            session,
            channel,
            stage: Stage::Queued,
            begun: false,
            under_way: 0,
            status: Status::OK,
            session_is_current: true,
            channel_is_current: true,
        });
    }

    /// Removes a grant from the model's queue and its future posts.
    fn stop(&mut self, place: u32, status: Status) {
        let grant = self.find(place);
        if grant.status.is_ok() {
            grant.status = status;
        }
        grant.stage = Stage::Posted;
        for queue in &mut self.queues {
            queue.retain(|queued| *queued != place);
        }
    }

    fn end(&mut self, place: u32) {
        let at = self.model.iter().position(|grant| grant.place == place).unwrap();
        let expected = self.model.swap_remove(at);
        for queue in &mut self.queues {
            queue.retain(|queued| *queued != place);
        }
        let ended = self.grants.end(place).unwrap();
        assert_eq!(ended.number, expected.number);
        assert_eq!((ended.session, ended.channel), (expected.session, expected.channel));
        assert_eq!(ended.session_is_current, expected.session_is_current);
        assert_eq!(ended.channel_is_current, expected.channel_is_current);
        let cut = self.cut_status[expected.session as usize];
        let status = match expected.status {
            Status::OK if !expected.session_is_current => cut,
            status => status,
        };
        assert_eq!(ended.status, status);
        let others = |other: &&Model| other.begun;
        let same_session = self.model.iter().filter(others);
        let session_left =
            same_session.filter(|o| o.session == expected.session && !o.session_is_current);
        let drained = expected.begun && !expected.session_is_current && session_left.count() == 0;
        assert_eq!(ended.session_drained, drained);
        let same_channel = self.model.iter().filter(others);
        let channel_left =
            same_channel.filter(|o| o.channel == expected.channel && !o.channel_is_current);
        let drained = expected.begun && !expected.channel_is_current && channel_left.count() == 0;
        assert_eq!(ended.channel_drained, drained);
    }

    fn apply(&mut self, input: &Input) {
        match *input {
            Input::Admit { session, channel } => self.admit(session, channel),
            Input::Post(session) => {
                let Some(place) = self.grants.head(session) else { return };
                let entry = self.grants.get_mut(place).unwrap();
                entry.under_way += 1;
                self.grants.begin(place);
                let grant = self.find(place);
                grant.begun = true;
                grant.stage = Stage::Posting;
                grant.under_way += 1;
            }
            Input::PostAll(session) => {
                let Some(place) = self.grants.head(session) else { return };
                if self.grants.get(place).unwrap().under_way == 0 {
                    self.end(place);
                    return;
                }
                self.grants.begin(place);
                self.find(place).begun = true;
                assert!(!self.grants.stop(place, Status::OK));
                self.stop(place, Status::OK);
            }
            Input::Complete(which, fails) => {
                let busy: Vec<u32> =
                    self.model.iter().filter(|g| g.under_way > 0).map(|g| g.place).collect();
                if busy.is_empty() {
                    return;
                }
                let place = busy[which % busy.len()];
                self.grants.get_mut(place).unwrap().under_way -= 1;
                self.find(place).under_way -= 1;
                if fails {
                    self.grants.stop(place, Status::IO);
                    self.stop(place, Status::IO);
                }
                let grant = self.find(place);
                if grant.stage == Stage::Posted && grant.under_way == 0 {
                    self.end(place);
                }
            }
            Input::CutSession(session) => {
                let mut idle = Vec::new();
                self.grants.cut_session(session, Status::STALE_EPOCH, &mut idle);
                self.cut_status[session as usize] = Status::STALE_EPOCH;
                let queue: Vec<u32> = self.queues[session as usize].iter().copied().collect();
                for place in queue {
                    self.stop(place, Status::STALE_EPOCH);
                }
                for grant in self.model.iter_mut().filter(|grant| grant.session == session) {
                    grant.session_is_current = false;
                }
                self.end_idle(idle);
            }
            Input::CutChannel(channel) => {
                let mut idle = Vec::new();
                self.grants.cut_channel(channel, &mut idle);
                let its: Vec<u32> = self
                    .model
                    .iter()
                    .filter(|grant| grant.channel == channel && grant.stage != Stage::Posted)
                    .map(|grant| grant.place)
                    .collect();
                for place in its {
                    self.stop(place, Status::STALE_EPOCH);
                }
                for grant in self.model.iter_mut().filter(|grant| grant.channel == channel) {
                    grant.channel_is_current = false;
                }
                self.end_idle(idle);
            }
            Input::DropQueued(channel) => {
                let mut idle = Vec::new();
                self.grants.drop_queued(channel, &mut idle);
                let its: Vec<u32> = self
                    .model
                    .iter()
                    .filter(|grant| grant.channel == channel && grant.stage == Stage::Queued)
                    .map(|grant| grant.place)
                    .collect();
                for place in its {
                    self.stop(place, Status::STALE_EPOCH);
                }
                self.end_idle(idle);
            }
            Input::Revoke(which) => {
                if self.model.is_empty() {
                    return;
                }
                let grant = self.model[which % self.model.len()].clone();
                let revoked = self.grants.revoke(grant.channel, grant.number);
                let may = grant.stage == Stage::Queued && grant.channel_is_current;
                assert_eq!(revoked, may.then_some(grant.place));
                if let Some(place) = revoked {
                    self.stop(place, Status::REVOKED);
                    self.end(place);
                }
            }
        }
    }

    /// Ends what a cut says is idle: exactly what the model says.
    fn end_idle(&mut self, idle: Vec<u32>) {
        let mut expected: Vec<u32> = self
            .model
            .iter()
            .filter(|grant| grant.stage == Stage::Posted && grant.under_way == 0)
            .map(|grant| grant.place)
            .collect();
        let mut given = idle.clone();
        expected.sort_unstable();
        given.sort_unstable();
        assert_eq!(given, expected);
        for place in idle {
            self.end(place);
        }
    }

    fn check(&self) {
        for (session, queue) in (0..).zip(&self.queues) {
            assert_eq!(self.grants.head(session), queue.front().copied());
            let count = |current: bool| {
                let its = self.model.iter().filter(|grant| grant.session == session);
                its.filter(|g| g.begun && g.session_is_current == current).count() as u32
            };
            assert_eq!(self.grants.begun(session), count(true));
            assert_eq!(self.grants.session_is_drained(session), count(false) == 0);
            let none = self.model.iter().all(|grant| grant.session != session || !grant.begun);
            assert_eq!(self.grants.is_idle(session), none && queue.is_empty());
        }
        for channel in 0..CHANNELS {
            let mut its = self.model.iter().filter(|grant| grant.channel == channel);
            let is_left = its.any(|grant| grant.begun && !grant.channel_is_current);
            assert_eq!(self.grants.channel_is_drained(channel), !is_left);
        }
        for grant in &self.model {
            let entry = self.grants.get(grant.place).unwrap();
            assert_eq!(entry.stage, grant.stage);
            let is_live =
                grant.status.is_ok() && grant.session_is_current && grant.channel_is_current;
            assert_eq!(self.grants.check_live(entry).is_ok(), is_live, "{grant:?}");
        }
        let begun = self.model.iter().filter(|grant| grant.begun).count();
        assert_eq!(self.grants.begun_in_all(), begun as u32);
        assert_eq!(self.grants.len(), self.model.len() as u32);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn grants_behave_as_the_model(inputs in prop::collection::vec(input(), 1..120)) {
        let mut both = Both::new();
        for input in &inputs {
            both.apply(input);
            both.check();
        }
    }
}

#[test]
fn a_queue_is_served_in_order_whatever_is_taken_out_of_it() {
    let mut grants = Grants::new(1);
    grants.reserve(1, 16);
    let connection = ConnectionId { index: 0, generation: 0 };
    for number in 1..=6 {
        let grant = Grant { number: U64::new(number), ..Grant::default() };
        grants.admit(&grant, 0, 0, 0, connection).unwrap();
    }
    for number in [1, 4, 6] {
        let place = grants.revoke(0, number).unwrap();
        assert_eq!(grants.end(place).unwrap().status, Status::REVOKED);
    }
    let mut served = Vec::new();
    while let Some(place) = grants.head(0) {
        served.push(grants.end(place).unwrap().number);
    }
    assert_eq!(served, [2, 3, 5]);
}

#[test]
fn a_connection_that_broke_off_outweighs_block_io_that_failed() {
    let mut grants = Grants::new(1);
    grants.reserve(1, 16);
    let connection = ConnectionId { index: 0, generation: 0 };
    for (number, failures, expected) in [
        (1, [Status::IO, Status::SESSION_GONE], Status::SESSION_GONE),
        (2, [Status::SESSION_GONE, Status::IO], Status::SESSION_GONE),
        (3, [Status::ACCESS_REFUSED, Status::SESSION_GONE], Status::ACCESS_REFUSED),
    ] {
        let grant = Grant { number: U64::new(number), ..Grant::default() };
        let place = grants.admit(&grant, 0, 0, 0, connection).unwrap();
        for failure in failures {
            grants.stop(place, failure);
        }
        assert_eq!(grants.end(place).unwrap().status, expected, "{failures:?}");
    }
}
