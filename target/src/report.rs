//! What hosts and metadata servers are told: ends of grants, arrivals, answers; and sending it.
//!
//! Part of [`Target`], at the end of its turn: everything that a turn led to leaves together, behind
//! the bytes that it tells of.

use gannet_disk::Disk;
use gannet_fabric::{Fabric, PostError};
use gannet_proto::Status;
use gannet_proto::control::{Drained, Notice, SessionClosed, SessionReady};
use gannet_proto::data::Arrival;
use gannet_proto::operations::connection_kind;
use gannet_proto::stats::StatsTail;
use gannet_runtime::time::Time;
use zerocopy::little_endian::{U32, U64};

use crate::grants::{Ended, ends_with_arrival};
use crate::outbox::{Answer, ConnectionsPart, Overflow};
use crate::sessions::{Acknowledgement, Asker};
use crate::target::Target;

impl<F: Fabric, D: Disk> Target<F, D> {
    /// Ends a grant: tells the host, tells the metadata server, and lets a drain that waited for it
    /// go on.
    pub(crate) fn finish(&mut self, place: u32) {
        let Some(ended) = self.grants.end(place) else { return };
        let Ended { status, channel, session, number, .. } = ended;
        match status {
            Status::OK => self.stats.grants_done += 1,
            Status::REVOKED => self.stats.grants_revoked += 1,
            _ => self.stats.grants_failed += 1,
        }
        let length = if status.is_ok() { ended.length } else { 0 };
        // A host that was told already, of bytes that then failed, never hears of it: its connection
        // has ended.
        let tell_host = !ended.told
            && ends_with_arrival(ended.operation, ended.flags)
            && ended.session_is_current
            && matches!(status, Status::OK | Status::IO | Status::ACCESS_REFUSED);
        if tell_host {
            self.arrivals.push(session, arrival_of(status, length, ended.trailer));
        }
        if !ended.channel_is_current || self.control.live(channel).is_none() {
            self.stats.grants_dropped += 1;
        } else if (tell_host || ended.told) && status.is_ok() {
            self.control.channels[usize::from(channel)].outbox.retire(number);
        } else {
            self.notice(channel, notice_of(ended.term, number, status, length));
        }
        if ended.session_drained {
            self.session_drained(session);
        }
        if ended.channel_drained {
            self.channel_drained(channel);
        }
    }

    /// Notices the end of a grant to the reactor that it came from.
    pub(crate) fn notice(&mut self, channel: u16, notice: Notice) {
        let noticed = self.control.channels[usize::from(channel)].outbox.notice(notice);
        self.check_room(channel, noticed);
    }

    /// As [`Target::notice`], for a grant that is not of the channel's stream.
    pub(crate) fn refuse(&mut self, channel: u16, notice: Notice) {
        let outbox = &mut self.control.channels[usize::from(channel)].outbox;
        let noticed = outbox.notice_of_another_stream(notice);
        self.check_room(channel, noticed);
    }

    /// Gives an answer to a back channel, if it is the connection that asked.
    pub(crate) fn answer(&mut self, channel: u16, answer: Answer) {
        let Some(to) = self.control.channels.get_mut(usize::from(channel)) else { return };
        let answered = to.outbox.answer(answer);
        self.check_room(channel, answered);
    }

    /// Answers a question for counters: the counters, then the connections of all data sessions, in
    /// as many parts as it takes.
    pub(crate) fn answer_stats(&mut self, channel: u16, tag: u64) {
        let Some(to) = self.control.channels.get(usize::from(channel)) else { return };
        let mut parts = Vec::new();
        if to.outbox.has_room_for_connections() {
            let mut tail = StatsTail::new();
            for (id, connection) in self.sessions.connected() {
                let scheme = self.engine.fabric.scheme(connection);
                let peer = self.engine.fabric.peer(connection);
                let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
                let push = |tail: &mut StatsTail| {
                    tail.push_connection(connection_kind::DATA_SESSION, id, scheme, &peer)
                };
                if push(&mut tail).is_err() {
                    parts.push(std::mem::take(&mut tail));
                    // One fits an empty tail.
                    let _fits = push(&mut tail);
                }
            }
            if tail.connections() > 0 {
                parts.push(tail);
            }
        }
        self.answer(channel, Answer::Stats { tag, more: !parts.is_empty() });
        let last = parts.len().saturating_sub(1);
        for (index, part) in parts.into_iter().enumerate() {
            let part = ConnectionsPart {
                tag,
                count: part.connections(),
                tail: part.bytes().to_vec(),
                more: index != last,
            };
            self.answer(channel, Answer::Connections(Box::new(part)));
        }
    }

    fn check_room(&mut self, channel: u16, queued: Result<(), Overflow>) {
        if let Err(overflow) = queued {
            tracing::warn!(channel, "{overflow}");
            self.break_channel(channel);
        }
    }

    /// Nothing of a session's earlier eras is under way: what waited for that is answered.
    pub(crate) fn session_drained(&mut self, session: u32) {
        let mut owed = Vec::new();
        self.sessions.drained(session, |asker, answer| owed.push((asker, answer)));
        self.acknowledge(owed);
    }

    /// Gives each answer to the connection that asked, if it is still there.
    pub(crate) fn acknowledge(&mut self, owed: Vec<(Asker, Acknowledgement)>) {
        for (asker, acknowledgement) in owed {
            if self.control.live(asker.channel) == Some(asker.connection) {
                self.answer(asker.channel, wire_answer(acknowledgement));
            }
        }
    }

    /// Nothing of a channel's earlier eras is under way: a drain that waited is acknowledged.
    pub(crate) fn channel_drained(&mut self, channel: u16) {
        let Some(state) = self.control.channels.get_mut(usize::from(channel)) else { return };
        if let Some(term) = state.draining.take() {
            self.stats.drains += 1;
            let drained = Drained { term: U64::new(term), ..Drained::default() };
            self.answer(channel, Answer::Drained(drained));
        }
    }

    /// Queues the arrival notices of the grants whose last bytes were posted in this turn: they leave
    /// behind those bytes. The check right before them is that of every post (HAZARDS H5); a grant
    /// that is live no more is answered when it ends. A notice that a full queue holds back is
    /// dropped with its session, and otherwise sent whatever became of the back channel: it is true,
    /// and so are all that wait there.
    fn tell_of_written(&mut self) {
        self.engine.streamed_bytes = 0;
        for place in self.engine.written.drain(..) {
            let Some(entry) = self.grants.get(place) else { continue };
            if !entry.may_be_told() || self.grants.check_live(entry).is_err() {
                continue;
            }
            let (session, length) = (entry.session, entry.grant.length.get());
            let arrival = arrival_of(Status::OK, length, entry.grant.trailer);
            self.arrivals.push(session, arrival);
            self.stats.arrivals_chained += 1;
            if let Some(entry) = self.grants.get_mut(place) {
                entry.told = true;
            }
        }
    }

    /// Posts the arrival notices that wait: the number of packets, and whether some wait on.
    pub(crate) fn tell(&mut self) -> (usize, bool) {
        self.tell_of_written();
        let Target { engine, arrivals, sessions, stats, .. } = self;
        let mut packets = 0;
        let refused = !arrivals.is_empty()
            && arrivals.flush(stats, |session, packet| {
                let connection = sessions.connection(session).ok_or(PostError::NotConnected)?;
                engine.fabric.send(connection, packet).inspect(|()| packets += 1)
            });
        (packets, refused)
    }

    /// Sends what waits to be sent; returns the number of packets. They count as work: what they
    /// made room for may be begun in the next turn.
    pub(crate) fn flush(&mut self) -> usize {
        let (mut packets, mut refused) = self.tell();
        let Target { engine, control, stats, .. } = self;
        let fabric = &mut engine.fabric;
        for index in 0..control.channels.len() {
            let Some(connection) = control.live(index as u16) else { continue };
            let channel = &mut control.channels[index];
            if channel.outbox.is_empty() {
                continue;
            }
            let send = |packet: &[u8]| fabric.send(connection, packet).inspect(|()| packets += 1);
            if channel.outbox.flush(channel.term, stats, send) == Err(PostError::Full) {
                stats.sends_refused += 1;
                refused = true;
            }
        }
        self.resend_at =
            if refused { self.now + self.config.timing.resend_delay } else { Time::NEVER };
        self.engine.disk.flush();
        self.engine.fabric.flush();
        packets
    }
}

fn arrival_of(status: Status, length: u32, trailer: [u8; 32]) -> Arrival {
    Arrival {
        status: U32::new(status.0),
        length: U32::new(length),
        crc32c: U32::ZERO,
        reserved: U32::ZERO,
        trailer: zerocopy::transmute!(trailer),
    }
}

pub(crate) fn notice_of(term: u64, number: u64, status: Status, length: u32) -> Notice {
    Notice {
        term: U64::new(term),
        number: U64::new(number),
        status: U32::new(status.0),
        length: U32::new(length),
        ..Notice::default()
    }
}

pub(crate) fn wire_answer(acknowledgement: Acknowledgement) -> Answer {
    match acknowledgement {
        Acknowledgement::Ready { session, epoch, status } => Answer::Ready(SessionReady {
            session: U64::new(session),
            epoch: U64::new(epoch),
            status: U32::new(status.0),
            reserved: U32::ZERO,
        }),
        Acknowledgement::Closed { session, epoch } => {
            Answer::Closed(SessionClosed { session: U64::new(session), epoch: U64::new(epoch) })
        }
    }
}
