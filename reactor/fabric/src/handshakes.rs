//! Connections that were accepted and whose peers have not said who they are.
//!
//! A list in the order of acceptance, threaded through a table by position, so that whoever says
//! hello leaves it at once, however many others wait. One reactor owns it; nothing of it outlives the
//! process. Time alone does not keep the places of a fabric free of peers that say nothing: where
//! they run short the one that has had the most time goes ([`Handshakes::take_for_room`]).

use gannet_runtime::time::Time;

use crate::{ConnectionId, Fabric};

/// The end of the list.
const NONE: u32 = u32::MAX;

/// A connection that waits, between its neighbours by age.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    connection: ConnectionId,
    until: Time,
    older: u32,
    younger: u32,
}

/// Accepted connections without a hello, oldest first.
#[derive(Debug)]
pub struct Handshakes {
    /// By the connection's position.
    places: Vec<Option<Waiting>>,
    oldest: u32,
    youngest: u32,
    len: usize,
}

impl Default for Handshakes {
    fn default() -> Handshakes {
        Handshakes { places: Vec::new(), oldest: NONE, youngest: NONE, len: 0 }
    }
}

impl Handshakes {
    /// A peer connected and has until `until` to say hello: not before those that came before it.
    pub fn add(&mut self, connection: ConnectionId, until: Time) {
        let index = connection.index as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        // Whoever had the position before is gone.
        self.unlink(connection.index);
        self.places[index] =
            Some(Waiting { connection, until, older: self.youngest, younger: NONE });
        match self.waiting(self.youngest) {
            Some(last) => last.younger = connection.index,
            None => self.oldest = connection.index,
        }
        self.youngest = connection.index;
        self.len += 1;
    }

    /// The peer said hello or is gone. Whether it was waited for.
    pub fn remove(&mut self, connection: ConnectionId) -> bool {
        let found = self.waiting(connection.index).map(|waiting| waiting.connection);
        found == Some(connection) && self.unlink(connection.index)
    }

    /// Takes a peer whose time is over.
    pub fn take_overdue(&mut self, now: Time) -> Option<ConnectionId> {
        let first = *self.waiting(self.oldest)?;
        (first.until <= now && self.unlink(self.oldest)).then_some(first.connection)
    }

    /// Takes the peer that has to go for `newcomer`, which was just added, to be followed by others:
    /// where the fabric is short of places the oldest one of the same provider, where more than
    /// `len_max` wait the oldest one. Nobody, if there is only the newcomer.
    pub fn take_for_room<F: Fabric>(
        &mut self,
        fabric: &F,
        newcomer: ConnectionId,
        len_max: usize,
    ) -> Option<ConnectionId> {
        let is_short = fabric.is_short_of_places(newcomer);
        if !is_short && self.len <= len_max {
            return None;
        }
        let scheme = fabric.scheme(newcomer);
        let mut index = self.oldest;
        while let Some(&mut waiting) = self.waiting(index) {
            let helps = !is_short || fabric.scheme(waiting.connection) == scheme;
            if helps && waiting.connection != newcomer {
                self.unlink(index);
                return Some(waiting.connection);
            }
            index = waiting.younger;
        }
        None
    }

    /// When the next peer's time is over.
    #[must_use]
    pub fn deadline(&self) -> Time {
        let first = self.places.get(self.oldest as usize).and_then(Option::as_ref);
        first.map_or(Time::NEVER, |first| first.until)
    }

    /// How many peers are waited for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody is waited for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn waiting(&mut self, index: u32) -> Option<&mut Waiting> {
        self.places.get_mut(index as usize)?.as_mut()
    }

    /// Takes what waits at a position out of the list. Whether there was something.
    fn unlink(&mut self, index: u32) -> bool {
        let Some(gone) = self.places.get_mut(index as usize).and_then(Option::take) else {
            return false;
        };
        match self.waiting(gone.older) {
            Some(older) => older.younger = gone.younger,
            None => self.oldest = gone.younger,
        }
        match self.waiting(gone.younger) {
            Some(younger) => younger.older = gone.older,
            None => self.youngest = gone.older,
        }
        self.len -= 1;
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::shm::{ShmFabric, ShmOptions};
    use crate::{Address, Event, Events};

    fn connection(index: u32, generation: u32) -> ConnectionId {
        ConnectionId { index, generation }
    }

    #[test]
    fn they_are_overdue_in_order() {
        let mut handshakes = Handshakes::default();
        assert_eq!((handshakes.deadline(), handshakes.is_empty()), (Time::NEVER, true));
        for index in 0..3 {
            handshakes.add(connection(index, 0), Time(10 + u64::from(index)));
        }
        assert!(handshakes.remove(connection(1, 0)));
        assert!(!handshakes.remove(connection(1, 0)), "it said hello before");
        assert!(!handshakes.remove(connection(2, 7)), "that is another one");
        assert_eq!((handshakes.len(), handshakes.deadline()), (2, Time(10)));
        assert_eq!(handshakes.take_overdue(Time(9)), None);
        assert_eq!(handshakes.take_overdue(Time(12)), Some(connection(0, 0)));
        assert_eq!(handshakes.take_overdue(Time(12)), Some(connection(2, 0)));
        assert_eq!((handshakes.take_overdue(Time(12)), handshakes.deadline()), (None, Time::NEVER));
    }

    proptest! {
        /// Against a queue that is searched from end to end.
        #[test]
        fn whoever_leaves_leaves_the_others_in_order(
            steps in proptest::collection::vec((0u32..3, 0u32..12), 1..200)
        ) {
            let mut handshakes = Handshakes::default();
            let mut oracle = VecDeque::<(ConnectionId, Time)>::new();
            for (number, (step, index)) in steps.into_iter().enumerate() {
                let now = Time(number as u64);
                match step {
                    0 => {
                        let newcomer = connection(index, number as u32);
                        oracle.retain(|(waiting, _)| waiting.index != index);
                        oracle.push_back((newcomer, now));
                        handshakes.add(newcomer, now);
                    }
                    1 => {
                        let found = oracle.iter().find(|(waiting, _)| waiting.index == index);
                        let gone = found.map_or(connection(index, 0), |(waiting, _)| *waiting);
                        let was_there = found.is_some();
                        oracle.retain(|(waiting, _)| *waiting != gone);
                        prop_assert_eq!(handshakes.remove(gone), was_there);
                    }
                    _ => {
                        let due = oracle.pop_front().map(|(waiting, _)| waiting);
                        prop_assert_eq!(handshakes.take_overdue(now), due);
                    }
                }
                let next = oracle.front().map_or(Time::NEVER, |(_, until)| *until);
                prop_assert_eq!((handshakes.len(), handshakes.deadline()), (oracle.len(), next));
            }
        }
    }

    #[test]
    fn the_oldest_makes_room_where_places_run_short() {
        let path = std::env::temp_dir().join(format!("gannet-handshakes-{}", std::process::id()));
        let at = Address::Shm(path);
        let options = ShmOptions { connections_max: 20, ..ShmOptions::default() };
        let mut server = ShmFabric::new(options).unwrap();
        server.listen(&at).unwrap();
        let mut host = ShmFabric::new(ShmOptions::default()).unwrap();
        let mut handshakes = Handshakes::default();
        let (mut accepted, mut gone) = (Vec::new(), Vec::new());
        let mut events = Events::default();
        while accepted.len() < 30 {
            let connecting = host.connect(&at).unwrap();
            let count = accepted.len();
            let mut refused = None;
            while accepted.len() == count {
                server.poll(Time::monotonic(), &mut events);
                while let Some(event) = events.pop() {
                    if let Event::Accepted { connection, .. } = event {
                        accepted.push(connection);
                    }
                }
                host.poll(Time::monotonic(), &mut events);
                while let Some(event) = events.pop() {
                    if let Event::Disconnected { connection, reason } = event
                        && connection == connecting
                    {
                        refused = Some(reason);
                    }
                }
                assert_eq!(refused, None, "there is a place for number {count}");
            }
            let newcomer = *accepted.last().unwrap();
            handshakes.add(newcomer, Time::NEVER);
            if let Some(oldest) = handshakes.take_for_room(&server, newcomer, usize::MAX) {
                server.disconnect(oldest);
                gone.push(oldest);
            }
        }
        assert!(gone.len() >= 10, "{} had to go", gone.len());
        assert_eq!(gone, accepted[..gone.len()], "oldest first");
        assert!(handshakes.len() >= 16, "as many as there is room for stay: {}", handshakes.len());
        // However many places there are.
        let newest = *accepted.last().unwrap();
        let roomy = ShmFabric::new(ShmOptions::default()).unwrap();
        assert_eq!(handshakes.take_for_room(&roomy, newest, 30), None);
        assert_eq!(handshakes.take_for_room(&roomy, newest, 3), Some(accepted[gone.len()]));
    }
}
