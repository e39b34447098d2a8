//! How connections end: in order, by a break, by a death.

use std::collections::VecDeque;

use gannet_fabric::{Access, DisconnectReason, Event, Events, RemoteSlice, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;

use super::link::{Executed, Flight, Lane, Notice, Op, Phase, Port, RegionState};
use super::state::{State, Step, Timer};

impl State {
    /// Tells an end at `at` that its connection is over; the first reason counts.
    pub(super) fn come_to_end(&mut self, port: Port, reason: DisconnectReason, at: Time) {
        let Some(end) = self.end(port) else { return };
        if end.phase == Phase::Ended || end.end_is_coming {
            return;
        }
        end.end_is_coming = true;
        self.agenda.add(at, Timer::Deliver(Notice::Ending(port, reason)));
    }

    /// The user of an end does not want the connection any longer.
    pub(super) fn disconnect(&mut self, port: Port) {
        let is_shm = self.is_shm();
        let Some(end) = self.end(port) else { return };
        if matches!(end.phase, Phase::Closing | Phase::Ended) {
            return;
        }
        let was_open = end.phase == Phase::Open;
        end.phase = Phase::Closing;
        end.out_of_reach = !is_shm;
        if was_open {
            self.flush_port(port);
            let at = self.after_hop();
            self.put(port, Op::Close, at);
            let at = self.now + self.options.linger;
            self.agenda.add(at, Timer::Linger(port));
        }
        self.check_closing(port);
    }

    /// Ends a closing end once its transfers have completed.
    pub(super) fn check_closing(&mut self, port: Port) {
        let Some(link) = self.links.get(&port.link) else { return };
        if link.ends[port.side].phase == Phase::Closing && !link.lanes[port.side].has_transfers() {
            let at = self.after_hop();
            self.come_to_end(port, DisconnectReason::Local, at);
        }
    }

    /// An end that disconnects has waited long enough for its transfers.
    pub(super) fn linger_is_over(&mut self, port: Port) {
        if self.phase(port) == Phase::Closing {
            let now = self.now;
            self.come_to_end(port, DisconnectReason::Local, now);
        }
    }

    /// Breaks a connection: each direction still delivers any beginning of what is under way.
    pub(super) fn break_link(&mut self, id: u64) {
        let is_shm = self.is_shm();
        let Some(link) = self.links.get_mut(&id) else { return };
        if std::mem::replace(&mut link.broken, true) {
            return;
        }
        self.stats.breaks += 1;
        let mut kept = [0; 2];
        for (lane, kept) in link.lanes.iter_mut().zip(&mut kept) {
            *kept = self.random.index(lane.flying.len() + 1);
            if is_shm {
                // The initiators go on moving bytes until they notice; only messages get lost.
                let keep = *kept;
                let mut position = 0;
                lane.flying.retain(|flying| {
                    position += 1;
                    position <= keep || flying.op.is_transfer()
                });
            } else {
                lane.truncate(*kept);
            }
        }
        self.record(Step::Broken { link: id, kept });
        for side in 0..2 {
            let at = self.now + self.random.delay(self.options.peer_lost_delay);
            self.come_to_end(Port { link: id, side }, DisconnectReason::PeerLost, at);
        }
    }

    /// Tells a user the end of its connection, after the end of its transfers.
    pub(super) fn finish_end(
        &mut self,
        endpoint: usize,
        port: Port,
        reason: DisconnectReason,
        events: &mut Events,
    ) {
        let inbox = &mut self.endpoints[endpoint].inbox;
        let (mine, others) =
            std::mem::take(inbox).into_iter().partition(|notice| notice.port() == port);
        *inbox = others;
        let Some(end) = self.end(port) else { return };
        let connection = end.connection;
        let reason = if end.phase == Phase::Closing { DisconnectReason::Local } else { reason };
        let mine: VecDeque<Notice> = mine;
        for notice in mine {
            if let Notice::Transferred(_, token, memory, status) = notice {
                events.push(Event::Transferred { connection, token, memory, status });
            }
        }
        for (flight, status) in self.give_up_transfers(port) {
            let (token, memory) = (flight.transfer.token, flight.transfer.memory);
            events.push(Event::Transferred { connection, token, memory, status });
        }
        self.record(Step::Ended { port, reason: reason as u8 });
        events.push(Event::Disconnected { connection, reason });
        self.endpoints[endpoint].release_slot(connection);
        self.endpoints[endpoint].leaving.retain(|(leaving, _)| *leaving != port);
        self.leave(port);
    }

    /// Ends all transfers of an end that its user is going to be told about.
    fn give_up_transfers(&mut self, port: Port) -> Vec<(Flight, TransferStatus)> {
        let is_shm = self.is_shm();
        let Some(lane) = self.lane(port) else { return Vec::new() };
        let Lane { staged, flying, executed, lost, .. } = std::mem::take(lane);
        let mut given_up = Vec::new();
        for Executed { flight, status, .. } in executed {
            // A device that broke off cannot tell whether the last writes arrived.
            let is_unknown = !is_shm && status == TransferStatus::Done && self.random.coin();
            let status = if is_unknown { TransferStatus::ConnectionLost } else { status };
            given_up.push((flight, status));
        }
        let mut messages_end = false;
        let mut left = Lane::default();
        for flying in flying {
            match flying.op {
                Op::Transfer(mut flight) => {
                    messages_end = true;
                    self.cut_short(port, &mut flight);
                    given_up.push((flight, TransferStatus::ConnectionLost));
                }
                _ if messages_end => {}
                _ => left.flying.push_back(flying),
            }
        }
        let unsent = staged.into_iter().filter_map(|op| match op {
            Op::Transfer(flight) => Some(flight),
            _ => None,
        });
        for mut flight in lost.into_iter().chain(unsent) {
            self.unpin(port.other(), &mut flight);
            given_up.push((flight, TransferStatus::ConnectionLost));
        }
        // What was sent before and depends on no lost transfer still arrives.
        if let Some(due) = left.flying.front().map(|flying| flying.due) {
            let at = due.max(self.now);
            if let Some(lane) = self.lane(port) {
                *lane = left;
            }
            self.look_at_lane(port, at);
        }
        if let Some(lane) = self.lane(port) {
            lane.dead = true;
        }
        given_up
    }

    /// Ends a transfer in flight: some of its bytes may have moved, or may move later.
    fn cut_short(&mut self, port: Port, flight: &mut Flight) {
        let is_shm = self.is_shm();
        let owner = port.other();
        let remote = flight.transfer.remote;
        let left = flight.len_bytes() - flight.moved;
        let moves = self.random.coin() && left > 0;
        let len_bytes = self.random.index(left + 1);
        let ghost = moves && !is_shm && flight.is_write;
        let lands = ghost && self.random.happens(self.options.ghost_write);
        if is_shm && moves {
            let access = flight.access();
            if let Some(region) = self.end(owner).and_then(|end| end.regions.get_mut(&remote.key.0))
                && (flight.pinned || region.state == RegionState::Usable)
                && region.grants(access)
                && let Some(offset) = region.offset_of(remote)
            {
                flight.place(region, offset, len_bytes);
                self.stats.cut_transfers += 1;
            }
        } else if lands && let Ok(copy) = copy_of(flight) {
            let target = self
                .end(owner)
                .and_then(|end| end.regions.get(&remote.key.0))
                .filter(|region| region.grants(flight.access()))
                .and_then(|region| region.offset_of(remote));
            if target.is_some() {
                let at = self.now + self.random.delay(self.options.peer_lost_delay);
                self.agenda.add(at, Timer::Ghost { owner, remote, bytes: copy });
            }
        }
        self.unpin(owner, flight);
    }

    /// Packets of a write whose initiator has given up reach the other end, if that has not. Its
    /// device looks at the key as it is then.
    pub(super) fn land_ghost(&mut self, owner: Port, remote: RemoteSlice, bytes: &Memory) {
        let key = remote.key.0;
        let access = Access { remote_read: false, remote_write: true };
        let region = self
            .end(owner)
            .filter(|end| !end.out_of_reach && end.phase != Phase::Ended)
            .and_then(|end| end.regions.get(&key))
            .filter(|region| region.state == RegionState::Usable && region.grants(access));
        let slice = region.and_then(|region| {
            let offset = region.offset_of(remote)?;
            region.view.slice(offset as u64, bytes.len() as u64)
        });
        let landed = slice.is_some();
        if let Some(slice) = slice {
            bytes.copy_to(0, &mut Memory::Shared(slice), 0, bytes.len());
            self.stats.ghost_writes += 1;
        }
        self.record(Step::Ghost { at: owner, key, landed });
    }

    /// Marks an end as ended and sees to it that the other end learns of it.
    fn leave(&mut self, port: Port) {
        let Some(link) = self.links.get_mut(&port.link) else { return };
        let keys: Vec<u32> = link.ends[port.side].regions.keys().copied().collect();
        let end = &mut link.ends[port.side];
        end.phase = Phase::Ended;
        end.out_of_reach = true;
        let endpoint = end.endpoint;
        let peer_closes = link.ends[1 - port.side].phase == Phase::Closing;
        let peer_is_gone = link.ends[1 - port.side].phase == Phase::Ended
            || link.ends[1 - port.side].endpoint.is_none();
        let closes = link.lanes[port.side].flying.iter().any(|f| matches!(f.op, Op::Close));
        if let Some(endpoint) = endpoint {
            self.endpoints[endpoint].free_keys.extend(keys);
        }
        if peer_is_gone {
            self.links.remove(&port.link);
        } else if !closes && !peer_closes {
            // A peer that closes too ends by itself.
            let at = self.now + self.random.delay(self.options.peer_lost_delay);
            self.come_to_end(port.other(), DisconnectReason::PeerLost, at);
        }
    }

    /// A process dies: what it posted takes effect up to any point, and its peers learn of it.
    pub(super) fn kill(&mut self, endpoint: usize) {
        let state = &mut self.endpoints[endpoint];
        if !std::mem::replace(&mut state.alive, false) {
            return;
        }
        state.inbox.clear();
        state.leaving.clear();
        let ports = state.ports();
        state.table.clear();
        self.listeners.retain(|_, listener| *listener != endpoint);
        self.record(Step::Fault { what: "kill", endpoint, of: ports.len() as u64 });
        for port in ports {
            let Some(lane) = self.lane(port) else { continue };
            // Nothing is reported to the dead, and its memory goes.
            lane.staged.clear();
            lane.executed.clear();
            let kept = lane.flying.len();
            let kept = self.random.index(kept + 1);
            let mut cut = Vec::new();
            if let Some(lane) = self.lane(port) {
                let transfer = lane.flying.iter().position(|flying| flying.op.is_transfer());
                if let Some(first) = transfer
                    && let Some(Op::Transfer(flight)) = lane.flying.remove(first).map(|f| f.op)
                {
                    cut.push(flight);
                }
                lane.truncate(kept.min(transfer.unwrap_or(kept)));
            }
            for mut flight in cut {
                self.cut_short(port, &mut flight);
            }
            let lost = self.lane(port).map(|lane| std::mem::take(&mut lane.lost));
            for mut flight in lost.unwrap_or_default() {
                self.unpin(port.other(), &mut flight);
            }
            self.leave(port);
        }
    }
}

/// The rest of a write as it left the initiator.
fn copy_of(flight: &Flight) -> std::io::Result<Memory> {
    let len_bytes = flight.len_bytes();
    let mapping = Mapping::anonymous(len_bytes)?;
    let slice = mapping.slice(0, len_bytes as u64).ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut copy = Memory::Shared(slice);
    flight.transfer.memory.copy_to(flight.transfer.offset, &mut copy, 0, len_bytes);
    Ok(copy)
}
