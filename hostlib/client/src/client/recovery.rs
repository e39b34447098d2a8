//! What happens to requests when an answer is not the hoped-for one, a connection breaks, or time
//! runs out.
//!
//! Two rules run through all of it. Before an attempt is followed by another one, or given up, its
//! memory is *cut*: no data server can reach it for that attempt any more. And a request that may
//! have had an effect keeps its place, so that the next attempt is known as the same request; if
//! the session is new, such a change is reported as of unknown outcome and never sent again.

use gannet_fabric::Fabric;
use gannet_proto::Status;
use gannet_proto::operations::Cancel;

use super::Client;
use crate::error::ErrorKind;
use crate::operation::Operation;
use crate::options::delay;
use crate::request::{AfterCut, Ending, Parts, State};
use crate::slots::Parked;
use crate::targets::members;
use crate::waiting::Queue;

/// Most attempts of a request beyond its first.
const TRIES_MAX: u32 = 1000;
/// How often a request may be answered STALE_SET although everything was in place. Each time more
/// is set up anew.
const STALE_SETS_MAX: u32 = 6;

/// How often a request is sent again at once because its set was not complete; then with delays.
const PROMPT_TRIES: u32 = 4;

/// How the cut of a request's memory went.
enum Cut {
    Done,
    /// Data sessions have to end first.
    Pending,
    /// There was no memory to replace the pages with.
    Failed,
}

impl<F: Fabric> Client<F> {
    /// A reply that is not OK. The metadata server has no grants of the request under way, except
    /// perhaps, with RETRY, at a data server that it lost.
    pub(super) fn on_failure(&mut self, index: u32, status: Status, targets: &[u8]) {
        let is_session_request = self.requests[index].place.is_none();
        match status {
            Status::RETRY => self.retry(index),
            Status::STALE_SET => self.on_stale_set(index, targets),
            Status::WRONG_SHARD => self.on_wrong_shard(index),
            Status::AGAIN if !is_session_request => self.resend_delayed(index, status),
            Status::BAD_SEQUENCE if !is_session_request => {
                self.disown_slot(index);
                self.resend_delayed(index, status);
            }
            Status::CANCELLED => {
                let ended = self.requests[index].ending_error(false);
                self.finish(index, Err(ended.unwrap_or(ErrorKind::Status(status))));
            }
            status => self.finish(index, Err(ErrorKind::Status(status))),
        }
    }

    /// Counts a further try; false if there have been enough.
    pub(super) fn may_try_again(&mut self, index: u32) -> bool {
        let (now, timeout) = (self.now, self.options.reconnect_timeout);
        let request = &mut self.requests[index];
        request.tries += 1;
        request.give_up_at = request.give_up_at.min(now + timeout);
        request.tries <= TRIES_MAX && now < request.give_up_at
    }

    fn retry_delay(&self, index: u32) -> std::time::Duration {
        let failures = self.requests[index].tries.saturating_sub(1);
        delay(self.options.retry_delay_min, self.options.retry_delay_max, failures)
    }

    /// The attempt is over without effect; the next one follows.
    fn retry(&mut self, index: u32) {
        if self.requests[index].place.is_none() {
            return self.resend_delayed(index, Status::RETRY);
        }
        let after = if self.may_try_again(index) {
            AfterCut::NextAttemptDelayed
        } else {
            AfterCut::Fail(ErrorKind::RetriesExhausted(Status::RETRY))
        };
        self.cut_then(index, after);
    }

    /// The request was answered without effect; it is sent as a new one after a delay.
    fn resend_delayed(&mut self, index: u32, status: Status) {
        self.make_new(index);
        if let Some(kind) = self.requests[index].ending_error(false) {
            return self.finish(index, Err(kind));
        }
        if !self.may_try_again(index) {
            return self.finish(index, Err(ErrorKind::RetriesExhausted(status)));
        }
        self.counters.resends += 1;
        self.set_delay(index, self.retry_delay(index));
    }

    /// Sends a request that was answered as a new one, at once.
    pub(super) fn send_anew(&mut self, index: u32) {
        self.make_new(index);
        match self.requests[index].ending_error(false) {
            Some(kind) => self.finish(index, Err(kind)),
            None => self.dispatch(index),
        }
    }

    /// Takes the request's place away, if it has one: the server has answered, or has forgotten it.
    fn make_new(&mut self, index: u32) {
        self.leave_server(index);
        self.close_windows(index);
        let request = &mut self.requests[index];
        request.state = State::Waiting;
        request.attempt = 1;
        request.uncertain = false;
        request.parts = Parts::default();
        request.counters.clear();
        if let Some(place) = request.place.take() {
            self.slots.release(place);
            self.wakes.slots |= 1 << place.shard;
        }
    }

    /// The server does not know the slot's sequence. Nothing may be sent there any more.
    fn disown_slot(&mut self, index: u32) {
        self.leave_server(index);
        let request = &mut self.requests[index];
        let attempt = request.attempt;
        if let Some(place) = request.place.take() {
            let (handle, answered_by_targets) = (None, false);
            self.slots.park(Parked { place, attempt, handle, answered_by_targets });
            self.wakes.slots |= 1 << place.shard;
        }
    }

    fn on_wrong_shard(&mut self, index: u32) {
        let request = &self.requests[index];
        let (reactor, is_map_current) =
            (request.reactor, request.sent_map == self.channels.map_version());
        self.resend_delayed(index, Status::WRONG_SHARD);
        if is_map_current {
            // The next welcome brings the map.
            self.renew_channel(reactor);
        }
    }

    fn on_stale_set(&mut self, index: u32, targets: &[u8]) {
        let status = Status::STALE_SET;
        let Some(mask) = self.targets.mask_of(targets) else {
            let limit = crate::targets::TARGETS_MAX;
            return self.finish(index, Err(ErrorKind::TooManyTargets { limit }));
        };
        let request = &mut self.requests[index];
        let Some(operation) = &request.operation else { return };
        let (Some(buffer), Some(file)) = (operation.buffer(), operation.handle()) else {
            return self.finish(index, Err(ErrorKind::Protocol("a set for no read or write")));
        };
        let (region, reactor) = (self.regions.find(buffer.region()), request.reactor);
        self.sets.insert(file.inode(), mask);
        request.needs = mask;
        let (sent_sets, tries) = (request.sent_sets, request.tries);
        let told = if self.is_windowed() {
            self.windows.targets(index)
        } else {
            region.map_or(0, |region| self.regions.told(region, reactor))
        };
        let was_complete = sent_sets == self.sets_version && told & mask == mask;
        let request = &mut self.requests[index];
        if !was_complete {
            if tries >= PROMPT_TRIES {
                return self.resend_delayed(index, status);
            }
            request.tries += 1;
            self.counters.resends += 1;
            return self.send_anew(index);
        }
        request.stale_sets += 1;
        let times = request.stale_sets;
        if times > STALE_SETS_MAX {
            return self.finish(index, Err(ErrorKind::RetriesExhausted(status)));
        }
        // The server has lost what it was told: tell it again, and if that does not help, begin
        // with new data sessions.
        if times % 2 == 1 {
            if let Some(region) = region {
                self.regions.untell(region, reactor, mask);
            }
        } else {
            for target in members(mask) {
                self.close_target(target);
            }
        }
        self.sets_version += 1;
        self.resend_delayed(index, status);
    }

    /// Takes a request's memory back from all data servers.
    fn cut(&mut self, index: u32) -> Cut {
        if self.defects.cuts() {
            return Cut::Done;
        }
        if self.is_windowed() {
            return self.cut_windows(index);
        }
        let Some(operation) = self.requests[index].operation.as_mut() else { return Cut::Done };
        let is_read = operation.is_read();
        let Some(buffer) = operation.buffer_mut() else { return Cut::Done };
        let (old, buffer_len) = (buffer.region(), buffer.len());
        let Some(region) = self.regions.find(old) else { return Cut::Done };
        let given = self.regions.get(region).was_given;
        if !given.any() {
            // A reactor that holds the request back must not find what is registered later.
            self.regions.renumber(region);
            return Cut::Done;
        }
        self.counters.cuts += 1;
        if given.revocable {
            // Sessions that are opened later reach the same memory: not in the request's name.
            self.regions.renumber(region);
            self.sets_version += 1;
        }
        if given.lasting {
            // Bytes around the request's range are the user's, so content is kept for reads too.
            // What a write left behind may still be fetched and committed.
            let replaced = if is_read { buffer.replace_pages(true) } else { buffer.leave_pages() };
            if replaced.is_err() {
                return Cut::Failed;
            }
        }
        let mut waits = 0;
        if given.revocable {
            // Also where pages were replaced: such a provider may go by the memory's address.
            for target in members(self.regions.exposed(region)) {
                if let Some(connection) = self.targets[target].link.connection()
                    && self.fabric.capabilities(connection).disconnect_revokes_access
                {
                    self.close_target(target);
                    waits |= 1 << target;
                }
            }
            self.requests[index].cut_waits = waits;
        }
        if given.lasting && self.regions.get(region).memory.len() == buffer_len {
            for (target, key) in self.regions.remove(old) {
                if let Some(connection) = self.targets[target].link.connection() {
                    self.fabric.deregister(connection, key);
                }
            }
        }
        if waits == 0 { Cut::Done } else { Cut::Pending }
    }

    /// Ends the data sessions that a request's windows belong to. To close the windows would not do:
    /// grants that name their keys may be under way, and the keys come back.
    fn cut_windows(&mut self, index: u32) -> Cut {
        let exposed = self.windows.targets(index);
        self.counters.cuts += u64::from(exposed != 0);
        if self.defects.sessions() {
            self.requests[index].cut_waits = exposed;
            return if self.close_windows(index) { Cut::Pending } else { Cut::Done };
        }
        let mut waits = 0;
        for target in members(exposed) {
            if self.targets[target].link.connection().is_some() {
                self.close_target(target);
                waits |= 1 << target;
            }
        }
        self.requests[index].cut_waits = waits;
        if waits == 0 { Cut::Done } else { Cut::Pending }
    }

    /// Cuts a request's memory and goes on as `after` says.
    pub(super) fn cut_then(&mut self, index: u32, after: AfterCut) {
        self.waiting.remove(index);
        if let Some(deadline) = self.requests[index].delay.take() {
            self.deadlines.cancel(deadline);
        }
        self.leave_server(index);
        self.requests[index].after_cut = after;
        match self.cut(index) {
            Cut::Done => self.after_cut(index),
            Cut::Pending => self.requests[index].state = State::Cutting,
            Cut::Failed => {
                let kind = ErrorKind::Memory("no pages to lay over a buffer that is given up");
                self.finish_with(index, Err(kind), true);
            }
        }
    }

    pub(super) fn cut_and_fail(&mut self, index: u32, kind: ErrorKind) {
        self.cut_then(index, AfterCut::Fail(kind));
    }

    /// The request's memory is out of reach.
    pub(super) fn after_cut(&mut self, index: u32) {
        let maybe_applied = self.is_change(index) && self.requests[index].uncertain;
        let request = &mut self.requests[index];
        request.state = State::Waiting;
        request.cut_waits = 0;
        if let Some(kind) = request.ending_error(maybe_applied) {
            return self.finish(index, Err(kind));
        }
        match request.after_cut {
            AfterCut::Fail(kind) => self.finish(index, Err(kind)),
            AfterCut::Anew => {
                self.counters.resends += 1;
                self.send_anew(index);
            }
            AfterCut::NextAttempt => {
                self.next_attempt(index);
                self.dispatch(index);
            }
            AfterCut::NextAttemptDelayed => {
                self.next_attempt(index);
                self.set_delay(index, self.retry_delay(index));
            }
        }
    }

    fn next_attempt(&mut self, index: u32) {
        self.counters.resends += 1;
        let request = &mut self.requests[index];
        request.attempt = request.attempt.saturating_add(1);
        request.parts = Parts::default();
    }

    /// A data session ended, and with it all registrations on it.
    pub(super) fn target_lost(&mut self, target: u8) {
        // Which requests it may concern has to be known before the registrations are forgotten.
        let mut concerned = Vec::new();
        for index in 0..self.requests.capacity() as u32 {
            let request = &self.requests[index];
            let Some(buffer) = request.operation.as_ref().and_then(Operation::buffer) else {
                continue;
            };
            let exposed = if self.is_windowed() {
                self.windows.targets(index)
            } else {
                let region = self.regions.find(buffer.region());
                region.map_or(0, |region| self.regions.exposed(region))
            };
            let is_exposed = exposed & (1 << target) != 0;
            match request.state {
                State::Sent if is_exposed => concerned.push(index),
                State::Cutting => concerned.push(index),
                _ => {}
            }
        }
        self.regions.target_lost(target);
        let mut windowless = Vec::new();
        self.windows.target_lost(target, &mut windowless);
        self.sets_version += 1;
        self.wakes.sets = true;
        for index in concerned {
            match self.requests[index].state {
                State::Sent => {
                    let after = if self.may_try_again(index) {
                        AfterCut::NextAttempt
                    } else {
                        AfterCut::Fail(ErrorKind::TargetLost { target: self.targets[target].id })
                    };
                    self.cut_then(index, after);
                }
                State::Cutting => {
                    self.requests[index].cut_waits &= !(1 << target);
                    if self.requests[index].cut_waits == 0 {
                        self.after_cut(index);
                    }
                }
                _ => {}
            }
        }
        for index in windowless {
            self.windows_moved(index);
        }
    }

    /// A data server was sought for long enough, or cannot be used for a `reason` of its own: what
    /// waits for it fails.
    pub(super) fn target_given_up(&mut self, target: u8, reason: Option<ErrorKind>) {
        self.targets[target].asked = 0;
        let kind = reason.unwrap_or(ErrorKind::TargetLost { target: self.targets[target].id });
        for _ in 0..self.waiting.len(Queue::Sets) {
            let Some(index) = self.waiting.pop(Queue::Sets) else { break };
            if self.needs(index) & (1 << target) != 0 {
                self.finish(index, Err(kind));
            } else {
                self.dispatch(index);
            }
        }
        // The files may have moved meanwhile: whoever asks next hears it from the server.
        self.sets.forget(target);
    }

    /// A request's time is over.
    pub(super) fn on_timeout(&mut self, index: u32) {
        self.requests[index].timeout = None;
        if self.requests[index].ending.is_none() {
            self.end_early(index, Ending::TimedOut);
        } else if self.requests[index].state == State::Sent {
            // No final answer came: whoever is silent is cut off.
            self.cut_then(index, AfterCut::NextAttempt);
        }
    }

    /// Ends a request as soon as it is safe.
    pub(super) fn end_early(&mut self, index: u32, ending: Ending) {
        let maybe_applied = self.is_change(index) && self.requests[index].uncertain;
        let id = self.requests.id(index);
        let request = &mut self.requests[index];
        request.ending = Some(ending);
        let Some(kind) = request.ending_error(maybe_applied) else { return };
        match request.state {
            State::Free | State::Cutting | State::Closing => {}
            State::Waiting | State::Delayed => self.finish(index, Err(kind)),
            State::Stranded => self.cut_then(index, AfterCut::NextAttempt),
            State::Sent => {
                let Some(place) = request.place else { return self.finish(index, Err(kind)) };
                let message = Cancel { header: request.header(place) };
                let channel = &mut self.channels[request.reactor];
                // If there is no room for it, the second time-out ends the request without it.
                let _room = channel.outbox.push_control(&message, &[]);
                self.set_timeout_at_next_poll(id, self.options.cancel_timeout);
            }
        }
    }
}
