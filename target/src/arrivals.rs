//! Arrival notices that wait to be sent to hosts, by session.
//!
//! A session's queue has a bound, and no grant of it is begun whose notice might not fit: a host that
//! takes no notices holds up its own grants and nobody else's. Notices of a turn leave in as few
//! packets as hold them. A refused packet's notices stay and are packed anew.

use std::collections::VecDeque;

use gannet_fabric::PostError;
use gannet_proto::data::Arrival;
use gannet_proto::packet::PacketWriter;

use crate::stats::Stats;

/// The queues of all sessions.
pub(crate) struct Arrivals {
    queues: Vec<Queue>,
    /// Sessions with notices, each once.
    waiting: VecDeque<u32>,
    packet: Box<PacketWriter>,
    per_session_max: u32,
}

#[derive(Default)]
struct Queue {
    notices: VecDeque<Arrival>,
    waits: bool,
}

impl Arrivals {
    pub(crate) fn new(sessions_max: u32, per_session_max: u32) -> Arrivals {
        let mut queues = Vec::new();
        queues.resize_with(sessions_max as usize, Queue::default);
        Arrivals {
            queues,
            waiting: VecDeque::with_capacity(sessions_max as usize),
            packet: Box::new(PacketWriter::new()),
            per_session_max,
        }
    }

    /// A session's connection begins: takes the memory for its queue.
    pub(crate) fn begin(&mut self, session: u32) {
        let queue = &mut self.queues[session as usize].notices;
        queue.clear();
        queue.reserve(self.per_session_max as usize);
    }

    /// A session's connection ended: what waits is dropped, its number is returned.
    pub(crate) fn clear(&mut self, session: u32) -> u64 {
        let queue = &mut self.queues[session as usize].notices;
        let dropped = queue.len() as u64;
        queue.clear();
        dropped
    }

    /// Whether another grant may be begun beside `begun` others of the session.
    #[inline]
    pub(crate) fn has_room(&self, session: u32, begun: u32) -> bool {
        self.queues[session as usize].notices.len() as u32 + begun < self.per_session_max
    }

    /// Adds a notice.
    #[inline]
    pub(crate) fn push(&mut self, session: u32, arrival: Arrival) {
        let queue = &mut self.queues[session as usize];
        queue.notices.push_back(arrival);
        if !queue.waits {
            queue.waits = true;
            self.waiting.push_back(session);
        }
    }

    /// Whether no session has notices.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what waits: each session until it has nothing more or its connection refuses. `send`
    /// answers `NotConnected` for a session whose connection is gone: its notices are dropped.
    /// True if something was refused and waits on.
    pub(crate) fn flush(
        &mut self,
        stats: &mut Stats,
        mut send: impl FnMut(u32, &[u8]) -> Result<(), PostError>,
    ) -> bool {
        let mut refused = false;
        for _ in 0..self.waiting.len() {
            let Some(session) = self.waiting.pop_front() else { break };
            let queue = &mut self.queues[session as usize];
            queue.waits = false;
            while !queue.notices.is_empty() {
                self.packet.clear();
                for arrival in &queue.notices {
                    if self.packet.push(arrival, &[]).is_err() {
                        break;
                    }
                }
                let packed = self.packet.frames();
                match send(session, self.packet.bytes()) {
                    Ok(()) => {
                        stats.arrivals += packed as u64;
                        stats.arrival_packets += 1;
                        queue.notices.drain(..packed);
                    }
                    Err(PostError::Full) => {
                        stats.sends_refused += 1;
                        queue.waits = true;
                        self.waiting.push_back(session);
                        refused = true;
                        break;
                    }
                    Err(PostError::NotConnected | PostError::TooLong) => {
                        stats.arrivals_dropped += queue.notices.len() as u64;
                        queue.notices.clear();
                    }
                }
            }
        }
        refused
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use gannet_proto::packet::Frames;
    use zerocopy::little_endian::U32;

    fn arrival(length: u32) -> Arrival {
        Arrival { length: U32::new(length), ..Arrival::default() }
    }

    fn lengths(packet: &[u8]) -> Vec<u32> {
        let read = |frame: gannet_proto::packet::Frame<'_>| {
            frame.read::<Arrival>().unwrap().0.length.get()
        };
        Frames::new(packet).map(|frame| read(frame.unwrap())).collect()
    }

    #[test]
    fn a_refused_packet_keeps_its_notices_in_order_and_delays_no_other_session() {
        let mut arrivals = Arrivals::new(4, 400);
        let mut stats = Stats::default();
        arrivals.begin(1);
        arrivals.begin(2);
        for length in 0..300 {
            assert!(arrivals.has_room(1, 0));
            arrivals.push(1, arrival(length));
        }
        arrivals.push(2, arrival(7));
        assert!(!arrivals.has_room(1, 100), "those under way need room too");
        let mut seen = Vec::new();
        let refused = arrivals.flush(&mut stats, |session, packet| {
            seen.push((session, lengths(packet)));
            if session == 1 { Err(PostError::Full) } else { Ok(()) }
        });
        assert!(refused);
        assert_eq!(seen.last().unwrap(), &(2, vec![7]));
        let mut got = Vec::new();
        let refused = arrivals.flush(&mut stats, |session, packet| {
            assert_eq!(session, 1);
            got.extend(lengths(packet));
            Ok(())
        });
        assert!(!refused && arrivals.is_empty());
        assert_eq!(got, (0..300).collect::<Vec<_>>());
        assert_eq!((stats.arrivals, stats.sends_refused), (301, 1));
    }

    #[test]
    fn notices_for_a_lost_connection_are_dropped_and_counted() {
        let mut arrivals = Arrivals::new(1, 8);
        let mut stats = Stats::default();
        arrivals.begin(0);
        arrivals.push(0, arrival(1));
        arrivals.push(0, arrival(2));
        assert!(!arrivals.flush(&mut stats, |_, _| Err(PostError::NotConnected)));
        assert_eq!((stats.arrivals_dropped, arrivals.is_empty()), (2, true));
    }
}
