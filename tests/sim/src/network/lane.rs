//! What takes effect on a lane, and when.

use std::hash::Hasher;

use gannet_fabric::{DisconnectReason, TransferStatus};
use gannet_runtime::time::Time;
use rustc_hash::FxHasher;

use super::link::{Executed, Flight, Flying, Link, Notice, Op, Phase, Port, RegionState};
use super::spell::spell;
use super::state::{State, Step, Timer};

/// Pieces of a split transfer are multiples of this, bytes: what hardware places at once.
const PIECE_BYTES: usize = 64;

/// What became of the transfer at the head of a lane.
enum Progress {
    /// Some bytes are placed, the rest follows later.
    Partly,
    Done(TransferStatus),
    /// The other end is out of reach.
    Unreachable,
}

impl State {
    /// Puts something on the lane of `port`, to take effect at `at` and after all before it.
    pub(super) fn put(&mut self, port: Port, op: Op, at: Time) {
        let Some(link) = self.links.get_mut(&port.link) else { return };
        let lane = &mut link.lanes[port.side];
        if lane.dead || (link.broken && !op.is_transfer()) {
            if let Op::Transfer(flight) = op {
                lane.lost.push(flight);
            }
            return;
        }
        let due = at.max(lane.last_due);
        lane.last_due = due;
        lane.flying.push_back(Flying { due, op });
        self.look_at_lane(port, due);
    }

    /// Makes sure that a lane is looked at, at `at` or earlier.
    pub(super) fn look_at_lane(&mut self, port: Port, at: Time) {
        if let Some(lane) = self.lane(port)
            && at < lane.timer
        {
            lane.timer = at;
            self.agenda.add(at, Timer::Lane(port));
        }
    }

    pub(super) fn flush(&mut self, endpoint: usize) {
        for port in self.endpoints[endpoint].ports() {
            self.flush_windows(port);
            self.flush_port(port);
        }
    }

    pub(super) fn flush_port(&mut self, port: Port) {
        let Some(lane) = self.lane(port) else { return };
        for op in std::mem::take(&mut lane.staged) {
            let at = self.after_hop();
            self.put(port, op, at);
        }
    }

    pub(super) fn run_lane(&mut self, port: Port) {
        loop {
            let now = self.now;
            let held = self.is_held(port);
            let stands_still = self.is_shm()
                && self.endpoint_of(port).is_some_and(|from| self.endpoints[from].stalled);
            let Some(lane) = self.lane(port) else { return };
            let Some(head) = lane.flying.front() else { return };
            if head.due > now {
                let due = head.due;
                self.look_at_lane(port, due);
                return;
            }
            if held {
                self.note_held(port);
                return;
            }
            if stands_still && head.op.is_transfer() {
                return;
            }
            let Some(flying) = lane.flying.pop_front() else { return };
            match flying.op {
                Op::Welcome => self.deliver(Notice::Connected(port.other())),
                Op::Message(bytes) => self.deliver_message(port, bytes),
                Op::Close => {
                    let (peer, now) = (port.other(), self.now);
                    self.come_to_end(peer, DisconnectReason::Remote, now);
                }
                Op::Transfer(flight) => {
                    if !self.run_transfer(port, flight) {
                        return;
                    }
                }
            }
            let breaks = self.random.happens(self.options.break_connection);
            if breaks && self.phase(port) == Phase::Open && self.phase(port.other()) == Phase::Open
            {
                self.break_link(port.link);
            }
        }
    }

    fn deliver_message(&mut self, port: Port, bytes: Vec<u8>) {
        let mut hasher = FxHasher::default();
        hasher.write(&bytes);
        let digest = hasher.finish();
        let to = port.other();
        self.record(Step::Message { to, len_bytes: bytes.len(), digest });
        self.trace.note(self.now, || {
            let ends = (self.endpoint_of(port), self.endpoint_of(to));
            let name = |end: Option<usize>| end.map_or("?", |end| &self.endpoints[end].name);
            format!("{} -> {}: {}", name(ends.0), name(ends.1), spell(&bytes))
        });
        self.stats.messages += 1;
        self.deliver(Notice::Message(to, bytes));
    }

    /// Lets the transfer at the head of a lane go on. False: the lane has to wait for it.
    fn run_transfer(&mut self, port: Port, mut flight: Flight) -> bool {
        match self.progress(port, &mut flight) {
            Progress::Partly => {
                let due = self.after_hop();
                let Some(lane) = self.lane(port) else { return false };
                lane.last_due = lane.last_due.max(due);
                lane.flying.push_front(Flying { due, op: Op::Transfer(flight) });
                self.look_at_lane(port, due);
                false
            }
            Progress::Unreachable => {
                let at = self.now + self.random.delay(self.options.peer_lost_delay);
                if let Some(lane) = self.lane(port) {
                    lane.lost.push(flight);
                    lane.truncate(0);
                }
                self.come_to_end(port, DisconnectReason::PeerLost, at);
                true
            }
            Progress::Done(status) => {
                self.unpin(port.other(), &mut flight);
                let token = flight.transfer.token;
                self.record(Step::Executed { by: port, token, status: status as u8 });
                let back = self.after_hop();
                let Some(lane) = self.lane(port) else { return true };
                let due = back.max(lane.last_ack);
                lane.last_ack = due;
                lane.executed.push_back(Executed { due, flight, status });
                self.agenda.add(due, Timer::Ack(port));
                if status == TransferStatus::AccessRefused {
                    self.stats.refused += 1;
                    self.end_refused(port);
                } else {
                    self.stats.transfers += 1;
                }
                true
            }
        }
    }

    /// A transfer of `port` was refused: nothing behind it takes effect, and the connection ends.
    fn end_refused(&mut self, port: Port) {
        if let Some(lane) = self.lane(port) {
            lane.truncate(0);
        }
        let at = self.now + self.random.delay(self.options.peer_lost_delay);
        self.come_to_end(port, DisconnectReason::TransferRefused, at);
        if self.is_shm() {
            // The process that was refused says so when it leaves.
            let at = self.now + self.random.delay(self.options.peer_lost_delay);
            self.come_to_end(port.other(), DisconnectReason::Protocol, at);
        }
        self.break_link(port.link);
    }

    fn progress(&mut self, port: Port, flight: &mut Flight) -> Progress {
        let is_shm = self.is_shm();
        let splits = self.random.happens(self.options.split_transfer);
        let total = flight.len_bytes();
        let pieces = (total - flight.moved).div_ceil(PIECE_BYTES) as u64;
        let share = self.random.below(pieces.max(1)) as usize * PIECE_BYTES;
        let Some(Link { ends, .. }) = self.links.get_mut(&port.link) else {
            return Progress::Unreachable;
        };
        let owner = &mut ends[1 - port.side];
        if owner.out_of_reach && !is_shm {
            return Progress::Unreachable;
        }
        if total == 0 {
            // Nothing to check.
            return Progress::Done(TransferStatus::Done);
        }
        let gives_up = matches!(owner.phase, Phase::Closing | Phase::Ended);
        let key = flight.transfer.remote.key.0;
        let access = flight.access();
        let region = owner.regions.get_mut(&key).filter(|region| {
            (flight.pinned || region.state == RegionState::Usable) && region.grants(access)
        });
        let Some((region, offset)) = region
            .and_then(|region| region.offset_of(flight.transfer.remote).map(|at| (region, at)))
        else {
            return Progress::Done(TransferStatus::AccessRefused);
        };
        let is_partial = splits && share > 0;
        if is_partial && !flight.pinned {
            flight.pinned = true;
            region.pins += 1;
        }
        flight.place(region, offset, if is_partial { share } else { total });
        self.stats.split_transfers += u64::from(is_partial);
        self.stats.transfers_after_disconnect += u64::from(gives_up);
        let left = total - flight.moved;
        self.record(Step::Place { by: port, key, len_bytes: total, left });
        if left > 0 { Progress::Partly } else { Progress::Done(TransferStatus::Done) }
    }

    /// Releases a transfer's hold on the registration at `owner`.
    pub(super) fn unpin(&mut self, owner: Port, flight: &mut Flight) {
        if !std::mem::take(&mut flight.pinned) {
            return;
        }
        let is_shm = self.is_shm();
        let key = flight.transfer.remote.key.0;
        let Some(region) = self.end(owner).and_then(|end| end.regions.get_mut(&key)) else {
            return;
        };
        region.pins -= 1;
        if !is_shm && region.pins == 0 && region.state == RegionState::Leaving {
            self.deliver(Notice::Deregistered(owner, key));
        }
    }

    /// Brings completions back to where the transfers were posted.
    pub(super) fn run_acks(&mut self, port: Port) {
        let is_shm = self.is_shm();
        if !is_shm && self.is_held(port.other()) {
            self.note_held(port.other());
            return;
        }
        let now = self.now;
        loop {
            let Some(link) = self.links.get_mut(&port.link) else { return };
            if link.broken && !is_shm {
                return;
            }
            let executed = &mut link.lanes[port.side].executed;
            if executed.front().is_none_or(|executed| executed.due > now) {
                break;
            }
            let Some(Executed { flight, status, .. }) = executed.pop_front() else { break };
            let transfer = flight.transfer;
            self.deliver(Notice::Transferred(port, transfer.token, transfer.memory, status));
        }
        self.check_closing(port);
    }

    pub(super) fn note_held(&mut self, port: Port) {
        let now = self.now;
        let timeout = self.options.partition_timeout;
        if let Some(lane) = self.lane(port)
            && lane.held_since.is_none()
        {
            lane.held_since = Some(now);
            if let Some(timeout) = timeout {
                self.agenda.add(now + timeout, Timer::HeldTooLong(port));
            }
        }
    }

    pub(super) fn held_too_long(&mut self, port: Port) {
        let now = self.now;
        let timeout = self.options.partition_timeout;
        let Some(lane) = self.lane(port) else { return };
        let (Some(since), Some(timeout)) = (lane.held_since, timeout) else { return };
        if now >= since + timeout {
            self.break_link(port.link);
        }
    }

    /// Lets what was held go on: after the end of a partition or a standstill.
    pub(super) fn release(&mut self, port: Port) {
        if let Some(lane) = self.lane(port) {
            lane.held_since = None;
        }
        let at = self.after_hop();
        self.look_at_lane(port, at);
        let peer = port.other();
        if let Some(end) = self.end(peer) {
            let held = std::mem::take(&mut end.credits_held);
            for (class, credits) in held.into_iter().enumerate() {
                end.messages_out[class] -= credits;
            }
        }
        let at = self.after_hop();
        self.agenda.add(at, Timer::Ack(peer));
    }
}
