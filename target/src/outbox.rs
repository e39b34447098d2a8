//! What waits to be sent on one back channel: notices, answers, reports of retired grants.
//!
//! Everything of a turn leaves in as few packets as hold it. A packet that the connection refused is
//! kept and tried again before anything else, and the frames behind it stay where they are, so the
//! order holds: notices, then answers, then retirements. All of it is bounded by the grants that may
//! be outstanding, and belongs to one connection: it is cleared when that is lost.

use std::collections::VecDeque;

use gannet_fabric::PostError;
use gannet_proto::GrantNumber;
use gannet_proto::control::{
    Drained, Notice, Retired, RetiredRange, SessionClosed, SessionReady, TargetStatsReply,
};
use gannet_proto::limits::LARGE_PACKET_BYTES;
use gannet_proto::packet::{FrameHeader, PacketFull, PacketWriter};
use gannet_proto::retirement::RetirementReport;
use gannet_proto::stats::StatsTail;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use crate::stats::Stats;

/// Most answers that wait; a metadata server has few questions open.
const ANSWERS_MAX: usize = 4096;
/// So many parts of connections may wait before further questions are answered without.
const CONNECTIONS_PARTS_MAX: usize = 32;
/// Most ranges in one report.
const RANGES_MAX: usize = 64;
/// Longest frame of a report.
const RETIRED_FRAME_BYTES_MAX: usize =
    size_of::<FrameHeader>() + size_of::<Retired>() + RANGES_MAX * size_of::<RetiredRange>();
/// Grants refused on receipt may be noticed beyond those outstanding.
const NOTICES_SPARE: usize = 64;

/// An answer to the metadata server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ready(SessionReady),
    Closed(SessionClosed),
    Drained(Drained),
    /// The counters, as they are when it is sent; with the tag of the question.
    Stats {
        tag: u64,
        more: bool,
    },
    /// Connections, as they were when they were asked for.
    Connections(Box<ConnectionsPart>),
}

/// A part of the answer to a question for counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionsPart {
    pub(crate) tag: u64,
    pub(crate) count: u16,
    pub(crate) tail: Vec<u8>,
    pub(crate) more: bool,
}

/// More waits than any correct peer can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the back channel's queue overflows: its peer breaks the protocol's bounds")]
pub(crate) struct Overflow;

#[derive(Debug)]
pub(crate) struct Outbox {
    notices: VecDeque<Notice>,
    answers: VecDeque<Answer>,
    report: RetirementReport,
    /// A grant was retired that no notice tells of.
    report_due: bool,
    packet: Box<PacketWriter>,
    notices_max: usize,
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox {
            notices: VecDeque::new(),
            answers: VecDeque::new(),
            report: RetirementReport::new(),
            report_due: false,
            packet: Box::new(PacketWriter::new()),
            notices_max: 0,
        }
    }

    /// A new connection begins, with at most `grants_max` grants outstanding.
    pub(crate) fn begin(&mut self, grants_max: u32) {
        self.clear();
        self.notices_max = grants_max as usize + NOTICES_SPARE;
        self.notices.reserve(self.notices_max);
    }

    /// The connection is lost, and what was to be sent on it.
    pub(crate) fn clear(&mut self) {
        self.notices.clear();
        self.answers.clear();
        self.packet.clear();
        self.report = RetirementReport::new();
        self.report_due = false;
    }

    /// Whether a grant's number is one that can come now.
    #[inline]
    pub(crate) fn admits(&self, number: u64) -> bool {
        self.report.admits(GrantNumber(number))
    }

    /// Retires a grant of which the host was told.
    #[inline]
    pub(crate) fn retire(&mut self, number: u64) {
        self.report.retire(GrantNumber(number));
        self.report_due = true;
    }

    /// Retires a grant with a notice.
    pub(crate) fn notice(&mut self, notice: Notice) -> Result<(), Overflow> {
        self.notice_of_another_stream(notice)?;
        self.report.retire(GrantNumber(notice.number.get()));
        Ok(())
    }

    /// Notices the end of a grant whose number is not of this connection.
    pub(crate) fn notice_of_another_stream(&mut self, notice: Notice) -> Result<(), Overflow> {
        if self.notices.len() >= self.notices_max {
            return Err(Overflow);
        }
        self.notices.push_back(notice);
        Ok(())
    }

    pub(crate) fn answer(&mut self, answer: Answer) -> Result<(), Overflow> {
        if self.answers.len() >= ANSWERS_MAX {
            return Err(Overflow);
        }
        self.answers.push_back(answer);
        Ok(())
    }

    /// Whether a question for counters may be answered with connections too. They take memory, so
    /// that who asks without end, or takes no answers, gets counters alone.
    pub(crate) fn has_room_for_connections(&self) -> bool {
        let waits = |answer: &&Answer| matches!(answer, Answer::Connections(_));
        self.answers.iter().filter(waits).count() < CONNECTIONS_PARTS_MAX
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.report_due
            && self.notices.is_empty()
            && self.answers.is_empty()
            && self.packet.is_empty()
    }

    /// Sends what waits, until nothing does or `send` refuses.
    pub(crate) fn flush(
        &mut self,
        term: u64,
        stats: &mut Stats,
        mut send: impl FnMut(&[u8]) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        while !self.is_empty() {
            if self.packet.is_empty() {
                self.fill(term, stats);
            }
            send(self.packet.bytes())?;
            self.packet.clear();
        }
        Ok(())
    }

    fn fill(&mut self, term: u64, stats: &mut Stats) {
        while let Some(notice) = self.notices.front() {
            if self.packet.push(notice, &[]).is_err() {
                return;
            }
            self.notices.pop_front();
            stats.notices += 1;
        }
        while let Some(answer) = self.answers.front() {
            let pushed = match answer {
                Answer::Ready(message) => self.packet.push(message, &[]),
                Answer::Closed(message) => self.packet.push(message, &[]),
                Answer::Drained(message) => self.packet.push(message, &[]),
                Answer::Stats { tag, more } => push_counters(&mut self.packet, *tag, *more, stats),
                Answer::Connections(part) => {
                    let message = TargetStatsReply {
                        tag: U64::new(part.tag),
                        connections: U16::new(part.count),
                        more: U16::new(part.more.into()),
                        ..TargetStatsReply::default()
                    };
                    self.packet.push(&message, &[&part.tail])
                }
            };
            if pushed.is_err() {
                return;
            }
            self.answers.pop_front();
        }
        if self.report_due
            && LARGE_PACKET_BYTES - self.packet.bytes().len() >= RETIRED_FRAME_BYTES_MAX
        {
            self.fill_report(term);
            stats.retirement_reports += 1;
        }
    }

    fn fill_report(&mut self, term: u64) {
        let mut ranges = [RetiredRange::default(); RANGES_MAX];
        let (cumulative, count) = self.report.take(&mut ranges);
        self.report_due = self.report.has_news();
        let retired = Retired {
            term: U64::new(term),
            cumulative: U64::new(cumulative.0),
            ranges: U16::new(count as u16),
            ..Retired::default()
        };
        let pushed = self.packet.push(&retired, &[ranges[..count].as_bytes()]);
        debug_assert!(pushed.is_ok(), "the room was checked before the report was taken");
    }
}

fn push_counters(
    packet: &mut PacketWriter,
    tag: u64,
    more: bool,
    stats: &Stats,
) -> Result<(), PacketFull> {
    let mut tail = StatsTail::new();
    for (name, value) in stats.iter() {
        let fits = tail.push_counter(name, value);
        debug_assert!(fits.is_ok(), "all counters fit one answer");
    }
    let reply = TargetStatsReply {
        tag: U64::new(tag),
        count: U16::new(tail.counters()),
        more: U16::new(more.into()),
        ..TargetStatsReply::default()
    };
    packet.push(&reply, &[tail.bytes()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
