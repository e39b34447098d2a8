//! The session over the loss of operations channels.
//!
//! | the reactor's next welcome says | requests that were with it |
//! |---|---|
//! | resumed | are cut and sent as the next attempts of the same sequences |
//! | new session | changes end with unknown outcome, all else is cut and sent anew |
//! | (none comes in time) | are cut and fail |

use gannet_fabric::Fabric;
use gannet_proto::ShardId;
use gannet_proto::limits::SHARDS;
use gannet_proto::operations::{RequestHeader, inode_operation};
use zerocopy::little_endian::{U16, U32, U64};

use super::Client;
use super::encode::{Context, Place, inode};
use crate::channels::Welcome;
use crate::error::ErrorKind;
use crate::identities::IdentityId;
use crate::link::Phase;
use crate::request::{AfterCut, State};

impl<F: Fabric> Client<F> {
    /// A channel ended. Its requests may still be completed by data servers, until it is known
    /// whether the session goes on.
    pub(super) fn channel_lost(&mut self, reactor: u16) {
        self.regions.reactor_lost(reactor);
        self.identities.forget(reactor);
        self.opens.channel_lost(reactor);
        self.wakes.rooms |= 1 << reactor;
        if reactor == 0 {
            for target in self.targets.indices() {
                let entry = &mut self.targets[target];
                entry.ask = entry.link.phase() == Phase::Asking;
            }
        }
        for index in 0..self.requests.capacity() as u32 {
            let request = &mut self.requests[index];
            if request.reactor != reactor || request.state != State::Sent {
                continue;
            }
            request.state = State::Stranded;
            if request.ending.is_some() {
                // No final answer will come.
                self.cut_then(index, AfterCut::NextAttempt);
            }
        }
    }

    /// A channel is open; its requests go on as the session allows.
    pub(super) fn channel_open(&mut self, reactor: u16, welcome: Welcome) {
        self.identities.forget(reactor);
        let channels = &self.channels;
        self.opens.channel_open(reactor, |file| {
            file.inode().shard().and_then(|shard| channels.route(shard)) == Some(reactor)
        });
        let mut is_new = welcome.moved;
        for shard in 0..SHARDS as u16 {
            let is_ours = self.channels.route(ShardId(shard)) == Some(reactor);
            if is_ours && (!welcome.resumed || !self.slots.is_known(shard)) {
                is_new |= 1 << shard;
            }
            if is_new & (1 << shard) != 0 {
                self.slots.reset(shard, welcome.slots);
            }
            if is_ours {
                self.wakes.slots |= 1 << shard;
            }
        }
        for index in 0..self.requests.capacity() as u32 {
            let request = &mut self.requests[index];
            let is_place_lost = request.place.is_some_and(|place| is_new & (1 << place.shard) != 0);
            if request.state == State::Free {
                continue;
            }
            if is_place_lost {
                self.leave_server_to(index, State::Stranded);
                self.requests[index].place = None;
                self.go_on_in_new_session(index);
            } else if request.state == State::Stranded && request.reactor == reactor {
                if request.place.is_none() {
                    self.counters.resends += 1;
                    self.send_anew(index);
                    continue;
                }
                let after = if self.may_try_again(index) {
                    AfterCut::NextAttempt
                } else {
                    AfterCut::Fail(self.lost_kind(index, reactor))
                };
                self.cut_then(index, after);
            }
        }
        if welcome.resumed {
            for shard in 0..SHARDS as u16 {
                if self.channels.route(ShardId(shard)) == Some(reactor) {
                    self.slots.forget_probes(shard);
                    self.wakes.probes |= 1 << shard;
                }
            }
        } else {
            self.regions.forgotten.retain(|forgotten| forgotten.reactor != reactor);
        }
        self.wakes.channels |= 1 << reactor;
        self.wakes.rooms |= 1 << reactor;
        self.wakes.sets = true;
    }

    /// The server does not know the request any more, nor what became of it.
    fn go_on_in_new_session(&mut self, index: u32) {
        let is_change = self.is_change(index);
        let request = &mut self.requests[index];
        let after = if is_change && request.uncertain {
            AfterCut::Fail(ErrorKind::OutcomeUnknown)
        } else {
            AfterCut::Anew
        };
        match request.state {
            State::Cutting => request.after_cut = after,
            State::Stranded => self.cut_then(index, after),
            // Its memory was cut when it left `Sent`.
            State::Waiting | State::Delayed if after == AfterCut::Anew => {
                request.attempt = 1;
                request.uncertain = false;
            }
            _ => self.finish(index, Err(ErrorKind::OutcomeUnknown)),
        }
    }

    /// Asks for the final word on a shard's slots whose requests were given up. Without room it
    /// is tried again after the next transmission, without a channel when that is resumed.
    pub(super) fn probe_parked(&mut self, shard: u16) {
        let Some(reactor) = self.channels.route(ShardId(shard)) else { return };
        if reactor >= self.channels.len() || self.channels[reactor].link.ready().is_none() {
            return;
        }
        let outbox = &mut self.channels[reactor].outbox;
        self.slots.probe(shard, |place, attempt, handle| {
            let header = RequestHeader {
                shard: U16::new(place.shard),
                slot: U16::new(place.slot),
                attempt: U32::new(attempt),
                sequence: U64::new(place.sequence),
            };
            let place = Place::Region(0);
            let context = Context {
                header,
                place,
                identity: IdentityId::OWN,
                complete_by_metaserver: false,
                resolved: 0,
            };
            inode(context, handle, inode_operation::STAT, outbox).is_ok()
        });
        if self.slots.has_unprobed(shard) {
            self.probes_waiting |= 1 << shard;
        }
    }

    /// A reactor was sought for long enough, or refuses the session: its requests fail.
    pub(super) fn channel_given_up(&mut self, reactor: u16, refused: Option<ErrorKind>) {
        if refused.is_none() {
            self.channels[reactor].link.abandon();
        }
        for index in 0..self.requests.capacity() as u32 {
            if self.requests[index].reactor != reactor {
                continue;
            }
            let kind = match (self.lost_kind(index, reactor), refused) {
                (ErrorKind::MetaserverLost { .. }, Some(refused)) => refused,
                (kind, _) => kind,
            };
            let request = &mut self.requests[index];
            match request.state {
                State::Waiting => self.finish(index, Err(kind)),
                State::Stranded => self.cut_then(index, AfterCut::Fail(kind)),
                State::Cutting => request.after_cut = AfterCut::Fail(kind),
                State::Free | State::Sent | State::Delayed | State::Closing => {}
            }
        }
    }

    /// How a request ends whose reactor is lost for good.
    fn lost_kind(&self, index: u32, reactor: u16) -> ErrorKind {
        if self.is_change(index) && self.requests[index].uncertain {
            return ErrorKind::OutcomeUnknown;
        }
        ErrorKind::MetaserverLost { reactor, reason: self.channels[reactor].last_reason }
    }
}
