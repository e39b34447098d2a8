//! Operations over several shards, at the shard that coordinates them.
//!
//! An operation asks one shard after the other to prepare its part, and takes its own into its plan.
//! When all have, its decision is one record, and the answer of the request with it. It is answered
//! when every participant has applied it in memory, so whoever knows the answer sees its effects, and
//! until then it holds whatever it held. If a part fails, or meets what an older operation holds, the
//! participants are told to abort; in the second case the operation waits, holding nothing, and begins
//! anew.
//!
//! Who waits while it holds something is always older than the one it waits for. So nobody waits
//! forever.

use gannet_proto::operations::Attributes;
use gannet_proto::{Inode, ShardId, Status};
use zerocopy::little_endian::U16;

use crate::links::type_of;
use crate::name_operations::{NameOperation, Stage};
use crate::operations::{OperationId, Request};
use crate::peer::{Message, Outcome, PeerMessage, Step};
use crate::record::{Action, Change, Effect, Effects, Origin, Reply, ShardList};
use crate::rename::RenameStage;
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::transactions::{Part, TransactionId};
use crate::{Core, Lsn, Now, Sink};

/// What an operation over several shards is about to do.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Number of this try.
    pub number: u64,
    /// What its own shard will do.
    effects: Effects,
    /// What it holds at its own shard.
    held: Vec<(Inode, Box<[u8]>)>,
    /// Shards that may have prepared something.
    participants: Vec<ShardId>,
    /// Steps that are still to be asked for, the last one first.
    pub remaining: Vec<Step>,
}

impl Plan {
    /// Takes an effect of the coordinator's own shard on, whose name is held.
    pub(crate) fn take_on(&mut self, effect: &Effect<'_>) {
        self.effects.push(effect);
        self.held.extend(effect.held_name().map(|name| (effect.inode, name.into())));
    }
}

/// A decided operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    /// Participants that have not applied it.
    awaited: usize,
    after: Lsn,
    attributes: Attributes,
    kept: Option<KeptReply>,
}

impl Core {
    /// Begins an operation over several shards: holds its name, takes `own` on and asks for a step.
    pub(crate) fn begin_plan(
        &mut self,
        context: Context,
        mut operation: Box<NameOperation>,
        step: Step,
        own: Option<Effect<'_>>,
        sink: &mut impl Sink,
    ) {
        let (parent, name) = (operation.request.parent.inode(), operation.name.clone());
        self.start_plan(&mut operation);
        if let Some(effect) = own {
            operation.plan.effects.push(&effect);
        }
        operation.plan.held.push((parent, name.clone()));
        if let Some(id) = self.keep_name(context, operation, sink) {
            let holder = self.holder(id);
            self.held.hold(parent, &name, holder);
            self.send_step(id, step, sink);
        }
    }

    /// A new try, that holds nothing.
    pub(crate) fn start_plan(&mut self, operation: &mut NameOperation) {
        operation.plan = Plan { number: self.next_operation(), ..Plan::default() };
    }

    /// Holds a name of the coordinator's own shard that is free.
    pub(crate) fn hold_own(
        &mut self,
        id: OperationId,
        operation: &mut NameOperation,
        (directory, name): (Inode, &[u8]),
    ) {
        let holder = self.holder(id);
        self.held.hold(directory, name, holder);
        operation.plan.held.push((directory, name.into()));
    }

    /// Asks a shard for the next step of an operation.
    pub(crate) fn send_step(&mut self, id: OperationId, step: Step, sink: &mut impl Sink) {
        let Some(operation) = self.operations.find_mut(id) else { return };
        operation.state = crate::operations::State::AwaitingPeer;
        let (order, coordinator) = (operation.order, operation.shard());
        let Request::Name(name) = &mut operation.request else { return };
        let (shard, participants) = (step.shard(), &mut name.plan.participants);
        if step.prepares() && shard != coordinator && !participants.contains(&shard) {
            participants.push(shard);
        }
        let transaction = TransactionId { coordinator, number: name.plan.number };
        let request = crate::peer::StepRequest {
            reactor: self.config.reactor,
            token: id.token(),
            order,
            id: transaction,
            step,
        };
        self.send(self.reactor_of(shard), PeerMessage(Message::Step(request)), sink);
    }

    /// Keeps the operation and asks for its next step.
    pub(crate) fn go_on(
        &mut self,
        id: OperationId,
        operation: Box<NameOperation>,
        step: Step,
        sink: &mut impl Sink,
    ) {
        if let Some(kept) = self.operations.find_mut(id) {
            kept.request = Request::Name(operation);
            self.send_step(id, step, sink);
        }
    }

    /// A shard has done its step, or not.
    pub(crate) fn step_done(
        &mut self,
        now: Now,
        token: u64,
        outcome: Outcome,
        sink: &mut impl Sink,
    ) {
        let id = OperationId::from_token(token);
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(kept) = self.operations.find_mut(id) else { return };
        let Request::Name(mut operation) = std::mem::take(&mut kept.request) else { return };
        if kept.dead {
            // Nothing is decided, and nobody is left in whose name it could go on.
            let stage = &operation.stage;
            let has_lock = matches!(stage, Stage::Rename(RenameStage::Locking))
                && matches!(outcome, Outcome::Done);
            operation.locked |= has_lock;
            return self.end_plan(context, operation, Err(Status::CANCELLED), sink);
        }
        match (&operation.stage, outcome) {
            (Stage::Checking, outcome) => {
                self.access_checked(now, &context, operation, &outcome, sink);
            }
            (_, Outcome::Held(directory, name)) => {
                self.abort_plan(context, &mut operation, sink);
                operation.stage = Stage::Yielding;
                self.go_on(id, operation, Step::AwaitName { directory, name }, sink);
            }
            (Stage::Yielding, Outcome::Done) => self.resume_name(now, context, operation, sink),
            (Stage::Rename(_), outcome) => {
                self.rename_step_done(now, context, operation, outcome, sink);
            }
            (_, Outcome::Failed(status)) => {
                self.end_plan(context, operation, Err(status), sink);
            }
            (Stage::Counting, Outcome::Attributes(attributes))
            | (Stage::Making, Outcome::Attributes(attributes)) => {
                let (entry, file_type) = (attributes.handle.inode(), type_of(&attributes));
                let time_ns = now.wall_ns as i64;
                let NameOperation { request, name, plan, .. } = &mut *operation;
                let action = Action::Enter { entry, file_type, name };
                plan.effects.push(&Effect { inode: request.parent.inode(), time_ns, action });
                self.decide(now, context, operation, Reply::Attributes(attributes), sink);
            }
            (Stage::Removing, Outcome::Done) => {
                self.decide(now, context, operation, Reply::Empty, sink);
            }
            (_, _) => self.end_plan(context, operation, Err(Status::IO), sink),
        }
    }

    /// All parts are prepared: the operation takes effect.
    pub(crate) fn decide(
        &mut self,
        now: Now,
        context: Context,
        mut operation: Box<NameOperation>,
        reply: Reply,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let Plan { number, effects, participants, .. } = &operation.plan;
        let transaction = TransactionId { coordinator: context.shard(), number: *number };
        let origin = Origin { operation: *number, ..self.origin(now, &context, reply) };
        let shards: Vec<U16> = participants.iter().map(|shard| U16::new(shard.0)).collect();
        let change =
            Change::Decided { participants: ShardList::new(&shards), effects: effects.list() };
        let (after, kept) = self.commit(&origin, &change, sink);
        let attributes = match reply {
            Reply::Attributes(attributes) => attributes,
            _ => Attributes::default(),
        };
        let awaited = participants.len();
        let decision = Decision { awaited, after, attributes, kept };
        if awaited == 0 {
            return self.end_plan(context, operation, Ok(decision), sink);
        }
        self.tell_participants(transaction, id, &operation.plan, true, sink);
        operation.stage = Stage::Decided(decision);
        if let Some(kept) = self.operations.find_mut(id) {
            kept.state = crate::operations::State::AwaitingPeer;
            kept.request = Request::Name(operation);
        }
    }

    fn tell_participants(
        &mut self,
        id: TransactionId,
        operation: OperationId,
        plan: &Plan,
        commits: bool,
        sink: &mut impl Sink,
    ) {
        let token = operation.token();
        for shard in &plan.participants {
            let decision = PeerMessage(Message::Decision { part: (id, *shard), commits, token });
            let reactor = self.reactor_of(*shard);
            if self.defects.decisions() && reactor != self.config.reactor {
                sink.peer(reactor, Lsn(0), decision);
            } else {
                self.send(reactor, decision, sink);
            }
        }
    }

    /// A participant has applied the decision in memory.
    pub(crate) fn part_applied(&mut self, token: u64, id: TransactionId, sink: &mut impl Sink) {
        let operation = OperationId::from_token(token);
        let Some((context, _)) = self.context_of(operation) else { return };
        let Some(kept) = self.operations.find_mut(operation) else { return };
        let Request::Name(name) = &mut kept.request else { return };
        let Stage::Decided(decision) = &mut name.stage else { return };
        if name.plan.number != id.number {
            return;
        }
        decision.awaited -= 1;
        if decision.awaited == 0 {
            let decision = *decision;
            if let Request::Name(name) = std::mem::take(&mut kept.request) {
                self.end_plan(context, name, Ok(decision), sink);
            }
        }
    }

    /// A participant has applied the decision durably.
    pub(crate) fn part_confirmed(&mut self, now: Now, part: Part, sink: &mut impl Sink) {
        if self.transactions.confirm(part) {
            self.forget_decision(now, part.0, sink);
        }
    }

    /// Nobody will ask for a decision any more.
    pub(crate) fn forget_decision(&mut self, now: Now, id: TransactionId, sink: &mut impl Sink) {
        let origin = self.origin_of_core_with(now, Some(id.coordinator), id.number);
        self.commit(&origin, &Change::Forgotten, sink);
    }

    /// Lets go of whatever this try holds, at all shards; it takes no effect.
    pub(crate) fn abort_plan(
        &mut self,
        context: Context,
        operation: &mut NameOperation,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let plan = std::mem::take(&mut operation.plan);
        let transaction = TransactionId { coordinator: context.shard(), number: plan.number };
        self.tell_participants(transaction, id, &plan, false, sink);
        self.let_go_all(id, &plan);
    }

    fn let_go_all(&mut self, id: OperationId, plan: &Plan) {
        let holder = self.holder(id);
        for (directory, name) in &plan.held {
            self.let_go_of(*directory, name, holder);
        }
    }

    /// Ends an operation over several shards: decided and applied, or failed.
    pub(crate) fn end_plan(
        &mut self,
        context: Context,
        mut operation: Box<NameOperation>,
        result: Result<Decision, Status>,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        match &result {
            Ok(_) => self.let_go_all(id, &operation.plan),
            Err(_) => self.abort_plan(context, &mut operation, sink),
        }
        if operation.locked {
            self.send_unlock(sink);
        }
        match result {
            Ok(Decision { after, attributes, kept, .. }) => {
                self.answer_entry(&context, after, (attributes, 0), kept, sink);
            }
            Err(status) => self.answer_status(&context, ReplyKind::Entry, status, sink),
        }
    }

    /// Ends an operation that succeeds although there is nothing to do.
    pub(crate) fn end_unchanged(
        &mut self,
        context: Context,
        mut operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        self.abort_plan(context, &mut operation, sink);
        if operation.locked {
            self.send_unlock(sink);
        }
        let after = self.last_lsn;
        self.answer_entry(&context, after, (Attributes::default(), 0), None, sink);
    }
}

/// The effect of removing a name.
pub(crate) fn removal(now: Now, directory: Inode, name: &[u8]) -> Effect<'_> {
    let action = Action::Remove { name };
    Effect { inode: directory, time_ns: now.wall_ns as i64, action }
}
