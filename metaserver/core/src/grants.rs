//! What becomes of grants: notices, retirement, cancellation, and data servers that go and come.
//!
//! An operation with grants out ends when all of them are retired. Grants whose data server went
//! away are *lost*: nobody can say whether they still run, so the blocks they refer to, and those
//! they fill, stay untouched until the data server is up again and has thereby confirmed that
//! nothing of its past is under way. The operation itself is answered RETRY as soon as its other
//! grants are retired.

use gannet_proto::control::StoreInfo;
use gannet_proto::operations::RequestHeader;
use gannet_proto::{GrantNumber, ShardId, Status, StoreId, TargetId};

use crate::operations::{OperationId, Request, State};
use crate::reply::ReplyKind;
use crate::{Core, Now, SessionIndex, Sink};

/// Whether a data server that ended a read with this status has told the host so.
fn host_was_told(status: Status) -> bool {
    matches!(status, Status::OK | Status::IO | Status::ACCESS_REFUSED | Status::NO_SPACE)
}

/// Whether a data server that ended a grant with this status has posted nothing for it, or knows
/// that what it posted is at its end. Where a connection broke off, it does not know that of the last
/// packets.
fn is_settled(status: Status) -> bool {
    host_was_told(status) || matches!(status, Status::REVOKED | Status::UNKNOWN_STORE)
}

impl Core {
    /// A data server says how a grant ended.
    pub fn notice(
        &mut self,
        now: Now,
        target: TargetId,
        number: GrantNumber,
        status: Status,
        _length: u32,
        sink: &mut impl Sink,
    ) {
        let Some(id) = self.targets.find(target).and_then(|target| target.retire(number)) else {
            self.counters.grants_unknown += 1;
            return;
        };
        if let Some(operation) = self.operations.find_mut(id)
            && !status.is_ok()
        {
            self.counters.grants_failed += 1;
            operation.silent |= !host_was_told(status);
            operation.severed |= !is_settled(status);
            if operation.failure.is_ok() {
                operation.failure = status;
            }
        }
        self.grant_ended(now, id, sink);
        self.wake_for_credit(target);
        self.settle(now, sink);
    }

    /// The hosts have the arrival notices of the grants `first ..= last`.
    pub fn retired(
        &mut self,
        now: Now,
        target: TargetId,
        first: GrantNumber,
        last: GrantNumber,
        sink: &mut impl Sink,
    ) {
        let Some(known) = self.targets.find(target) else { return };
        let (from, until) = known.window(first, last);
        for number in from..until {
            let known = self.targets.find(target);
            if let Some(id) = known.and_then(|target| target.retire(GrantNumber(number)))
                && !self.end_plain_read(id)
            {
                self.grant_ended(now, id, sink);
            }
        }
        self.wake_for_credit(target);
        self.settle(now, sink);
    }

    fn grant_ended(&mut self, now: Now, id: OperationId, sink: &mut impl Sink) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.outstanding -= 1;
        if operation.outstanding == 0 {
            self.grants_ended(now, id, sink);
        }
    }

    /// No grant of the operation is out any more, but some may be lost.
    fn grants_ended(&mut self, now: Now, id: OperationId, sink: &mut impl Sink) {
        let Some(operation) = self.operations.find(id) else { return };
        if operation.lost > 0 {
            self.lose(id, sink);
            return;
        }
        match operation.request {
            Request::ReadGranted => self.finish_read(id, sink),
            Request::Write(_) => self.finish_write(now, id, sink),
            _ => {}
        }
    }

    /// Answers an operation whose grants are lost; it stays until the data server is back.
    fn lose(&mut self, id: OperationId, sink: &mut impl Sink) {
        let Some((context, _)) = self.context_of(id) else { return };
        if self.answer_slot(&context, None) {
            self.counters.retries += 1;
            self.send_retry(&context, sink);
        }
        self.release_hold(id);
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::Lost;
        }
    }

    /// How an operation ends whose grants all ended, at least one of them with an error.
    pub(crate) fn failure_of(&self, id: OperationId) -> Status {
        let Some(operation) = self.operations.find(id) else { return Status::OK };
        if !operation.silent {
            return operation.failure;
        }
        // After RETRY the host cuts off what may be on its way, even if it goes no further.
        let is_cancelled = operation.cancelled && !operation.severed;
        if is_cancelled { Status::CANCELLED } else { Status::RETRY }
    }

    /// Ends an operation that shall take no further effect and answer nobody: at once if it only
    /// waits, else when its grants are retired.
    pub(crate) fn kill(&mut self, id: OperationId, sink: &mut impl Sink) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.dead = true;
        match operation.state {
            State::Granted => self.revoke(id, sink),
            // What began at other shards is carried through.
            State::AwaitingPeer | State::Lost | State::Free => {}
            _ if operation.request.has_begun() => {}
            _ => {
                self.unqueue(id);
                if let Some((context, _)) = self.context_of(id) {
                    self.end_operation(&context);
                }
            }
        }
    }

    fn revoke(&mut self, id: OperationId, sink: &mut impl Sink) {
        for (target, known) in self.targets.iter() {
            for number in known.grants_of(id) {
                self.counters.revokes += 1;
                sink.revoke(target, number);
            }
        }
    }

    /// A host wants a request ended early. The final answer still comes.
    pub fn cancel(
        &mut self,
        now: Now,
        session: SessionIndex,
        header: &RequestHeader,
        sink: &mut impl Sink,
    ) {
        self.counters.cancels += 1;
        let shard = header.shard.get();
        if usize::from(shard) >= gannet_proto::limits::SHARDS
            || !self.is_ours(ShardId(shard))
            || header.slot.get() >= self.config.slots
        {
            return;
        }
        let found = self.operations.iter().find(|(_, operation)| {
            operation.session == session && operation.header == *header && !operation.dead
        });
        let Some((id, operation)) = found else { return };
        let begun = operation.request.has_begun();
        match operation.state {
            State::Granted => {
                if let Some(operation) = self.operations.find_mut(id) {
                    operation.cancelled = true;
                }
                self.revoke(id, sink);
            }
            State::AwaitingPeer | State::Lost | State::Free => {}
            _ if begun => {}
            _ => {
                self.unqueue(id);
                self.fail(id, Status::CANCELLED, sink);
            }
        }
        self.settle(now, sink);
    }

    /// The channel to a data server is open and drained of older terms: grants may go, and its free
    /// blocks may be had. A store that has fewer blocks than it once had stays away.
    pub fn target_up(
        &mut self,
        now: Now,
        target: TargetId,
        stores: &[(StoreId, StoreInfo)],
        sink: &mut impl Sink,
    ) {
        if self.targets.find(target).is_some_and(|target| target.up) {
            self.target_down(now, target, sink);
        }
        if !self.targets.add(target, None) {
            return;
        }
        for (store, info) in stores {
            self.add_store(*store, target, info);
        }
        let whole = stores.iter().filter(|(store, info)| {
            self.targets.store(*store).is_some_and(|known| known.blocks <= info.blocks.get())
        });
        let whole: Vec<StoreId> = whole.map(|(store, _)| *store).collect();
        self.targets.up(target, whole.into_iter());
        let lost = self.targets.find(target).map(|target| std::mem::take(&mut target.lost));
        for id in lost.unwrap_or_default() {
            self.found(id);
        }
        for (_, id) in std::mem::take(&mut self.waiting.parked) {
            self.wake(id);
        }
        self.wake_for_credit(target);
        self.settle(now, sink);
    }

    /// A lost grant is known not to run any more.
    fn found(&mut self, id: OperationId) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.lost -= 1;
        if operation.lost == 0 && operation.state == State::Lost {
            self.unlink_live(id);
            self.unstage(id);
            self.operations.end(id);
        }
    }

    /// The channel to a data server broke.
    pub fn target_down(&mut self, now: Now, target: TargetId, sink: &mut impl Sink) {
        let lost = self.targets.down(target);
        self.counters.grants_lost += lost as u64;
        let mut touched = std::mem::take(&mut self.scratch.operations);
        if let Some(known) = self.targets.find(target) {
            touched.extend_from_slice(&known.lost[known.lost.len() - lost..]);
        }
        for id in &touched {
            if let Some(operation) = self.operations.find_mut(*id) {
                operation.outstanding -= 1;
                operation.lost += 1;
                operation.silent = true;
                operation.severed = true;
                operation.failure = Status::RETRY;
            }
        }
        touched.dedup();
        for id in touched.drain(..) {
            let operation = self.operations.find(id);
            if operation.is_some_and(|op| op.outstanding == 0 && op.state == State::Granted) {
                self.grants_ended(now, id, sink);
            }
        }
        self.scratch.operations = touched;
        // Who waited for room there waits for the data server now.
        let waiting = self.targets.find(target).map(|target| std::mem::take(&mut target.waiting));
        for id in waiting.unwrap_or_default() {
            self.wake(id);
        }
        self.settle(now, sink);
    }

    fn send_retry(&self, context: &crate::reply::Context, sink: &mut impl Sink) {
        self.send_status(context, ReplyKind::Io, Status::RETRY, self.last_lsn, sink);
    }
}
