//! Operations that wait: for absent data servers with a deadline, for room, for zones.

use std::collections::VecDeque;

use gannet_proto::operations::Window;
use gannet_proto::{Inode, ShardId, Status, StoreId, TargetId};

use crate::buffer::Buffer;
use crate::operations::{OperationId, Request, State};
use crate::reply::{Context, ReplyKind};
use crate::{Core, Nanos, Now, Sink};

/// Queues of operations. Each operation is in at most one of them, told by its [`State`].
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// To be carried on.
    pub runnable: VecDeque<OperationId>,
    /// Wait for a data server; ascending deadlines.
    pub parked: VecDeque<(Nanos, OperationId)>,
    /// Wait for a zone of a store.
    pub zones: VecDeque<(ShardId, StoreId, OperationId)>,
    /// Data servers, each at most once, that may have room for who waits for it: looked at again
    /// before the turn ends.
    pub room: Vec<TargetId>,
}

impl Core {
    /// When [`Core::expire`] shall be called; `u64::MAX` for never.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        self.waiting.parked.front().map_or(Nanos(u64::MAX), |(deadline, _)| *deadline)
    }

    /// Fails what waited too long for a data server.
    pub fn expire(&mut self, now: Now, sink: &mut impl Sink) {
        while let Some((deadline, id)) = self.waiting.parked.front().copied()
            && deadline <= now.monotonic
        {
            self.waiting.parked.pop_front();
            self.fail(id, Status::TIMED_OUT, sink);
        }
        self.settle(now, sink);
    }

    /// Answers a waiting operation with an error and ends it.
    pub(crate) fn fail(&mut self, id: OperationId, status: Status, sink: &mut impl Sink) {
        if let Some((context, kind)) = self.context_of(id) {
            self.answer_status(&context, kind, status, sink);
        }
    }

    /// The context of an operation, and which message answers it.
    pub(crate) fn context_of(&self, id: OperationId) -> Option<(Context, ReplyKind)> {
        let operation = self.operations.find(id)?;
        let kind = match &operation.request {
            Request::Read(_) | Request::ReadGranted | Request::Write(_) => ReplyKind::Io,
            Request::Name(name) => name.reply_kind(),
            Request::Attributes(_) | Request::None => ReplyKind::Entry,
        };
        let (session, header) = (operation.session, operation.header);
        Some((Context { session, header, operation: Some(id) }, kind))
    }

    /// Makes sure that a request has an operation. `None`: too many are under way, which the host
    /// was told.
    pub(crate) fn ensure_operation(
        &mut self,
        context: &mut Context,
        kind: ReplyKind,
        inode: Inode,
        request: Request,
        windows: &[Window],
        sink: &mut impl Sink,
    ) -> Option<OperationId> {
        if let Some(id) = context.operation {
            let operation = self.operations.find_mut(id)?;
            operation.request = request;
            return Some(id);
        }
        match self.operations.begin(context.session, context.header, inode, request) {
            Some(id) => {
                if let Some(operation) = self.operations.find_mut(id) {
                    operation.windows.extend_from_slice(windows);
                }
                self.begin_slot(context, id);
                context.operation = Some(id);
                Some(id)
            }
            None => {
                self.answer_status(context, kind, Status::AGAIN, sink);
                None
            }
        }
    }

    /// Carries an operation on.
    pub(crate) fn run(&mut self, now: Now, id: OperationId, sink: &mut impl Sink) {
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.state = State::Runnable;
        let mut windows = std::mem::take(&mut self.scratch.windows);
        windows.clear();
        windows.extend_from_slice(&operation.windows);
        match std::mem::take(&mut operation.request) {
            Request::Read(read) => {
                let buffer = Buffer::new(read.flags.get(), read.buffer, &windows);
                self.start_read(now, context, &read, buffer, sink);
            }
            Request::Write(write) => {
                let buffer = Buffer::new(write.flags.get(), write.buffer, &windows);
                self.start_write(now, context, &write, buffer, sink);
            }
            Request::Attributes(request) => {
                self.start_attributes(now, context, &request, sink);
            }
            Request::Name(name) => self.resume_name(now, context, name, sink),
            Request::ReadGranted | Request::None => {}
        }
        self.scratch.windows = windows;
    }

    /// Puts an operation to what can go on.
    pub(crate) fn wake(&mut self, id: OperationId) {
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::Runnable;
            self.waiting.runnable.push_back(id);
        }
    }

    /// Lets an operation wait for an absent data server.
    pub(crate) fn park_for_target(&mut self, now: Now, id: OperationId) {
        let wait_ns = self.config.target_wait_ns;
        let Some(operation) = self.operations.find_mut(id) else { return };
        if operation.deadline.0 == u64::MAX {
            operation.deadline = Nanos(now.monotonic.0.saturating_add(wait_ns).min(u64::MAX - 1));
        }
        operation.state = State::AwaitingTarget;
        let deadline = operation.deadline;
        self.counters.parked += 1;
        let parked = &mut self.waiting.parked;
        let later = parked.iter().rev().take_while(|(other, _)| *other > deadline).count();
        parked.insert(parked.len() - later, (deadline, id));
    }

    /// Lets an operation wait for room at a data server.
    pub(crate) fn park_for_credit(&mut self, id: OperationId, target: TargetId, needed: u16) {
        let resumed = self.operations.find_mut(id).map(|operation| {
            operation.state = State::AwaitingCredit(target);
            std::mem::replace(&mut operation.needed, needed) != 0
        });
        self.counters.parked += 1;
        if let Some(target) = self.targets.find(target) {
            // Who waited before keeps its place ahead of those that came later.
            match resumed {
                Some(true) => target.waiting.push_front(id),
                _ => target.waiting.push_back(id),
            }
        }
    }

    /// Wakes operations that wait for room at a data server, as far as there is room.
    ///
    /// Room is promised to each of them, but not all make use of it: some are answered otherwise,
    /// or wait elsewhere. So the data server is looked at again once they have run, until it has no
    /// room for the first that waits. That comes to an end: within a turn room only shrinks, and
    /// who comes back to wait found too little.
    pub(crate) fn wake_for_credit(&mut self, target: TargetId) {
        let grants_max = self.config.grants_max;
        let mut promised = 0;
        while let Some(known) = self.targets.find(target)
            && let Some(id) = known.waiting.front().copied()
        {
            let needed = self.operations.find(id).map_or(0, |operation| operation.needed);
            let Some(known) = self.targets.find(target) else { return };
            if !known.has_room(promised + u32::from(needed), grants_max) {
                break;
            }
            promised += u32::from(needed);
            known.waiting.pop_front();
            self.wake(id);
        }
        if promised > 0 {
            self.look_again(target);
        }
    }

    /// Has the operations that wait for room at a data server woken before the turn ends.
    fn look_again(&mut self, target: TargetId) {
        if !self.waiting.room.contains(&target) {
            self.waiting.room.push(target);
        }
    }

    /// Lets an operation wait for a zone, and asks for one.
    pub(crate) fn park_for_zone(
        &mut self,
        id: OperationId,
        shard: ShardId,
        store: StoreId,
        sink: &mut impl Sink,
    ) {
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::AwaitingZone(store);
            self.counters.parked += 1;
            self.waiting.zones.push_back((shard, store, id));
            self.request_zone(shard, store, sink);
        }
    }

    /// Takes an operation out of the queue that it waits in.
    pub(crate) fn unqueue(&mut self, id: OperationId) {
        let Some(operation) = self.operations.find(id) else { return };
        match operation.state {
            State::Runnable => self.waiting.runnable.retain(|other| *other != id),
            State::AwaitingTarget => self.waiting.parked.retain(|(_, other)| *other != id),
            State::AwaitingCredit(target) => {
                if let Some(known) = self.targets.find(target) {
                    known.waiting.retain(|other| *other != id);
                    // Those behind it may need less.
                    self.look_again(target);
                }
            }
            State::AwaitingZone(_) => self.waiting.zones.retain(|(_, _, other)| *other != id),
            State::AwaitingName => self.held.forget(id),
            State::AwaitingHold
            | State::AwaitingPeer
            | State::Granted
            | State::Lost
            | State::Free => {}
        }
    }
}
