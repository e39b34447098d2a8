//! Namespace requests that had to wait: for a name, or for another shard.

use gannet_proto::operations::{Attributes, NameRequest, Names, file_type};
use gannet_proto::{Inode, ShardId, Status};

use crate::directory::Entry;
use crate::held::{Holder, Waiter};
use crate::names::kind_of;
use crate::operations::{OperationId, Request, State};
use crate::peer::{Message, Outcome, PeerMessage, Step, StepRequest};
use crate::rename::RenameStage;
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::{Core, Now, Sink};

/// How far a namespace operation has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It begins anew when it goes on.
    Start,
    /// Another shard checks what the host may do; nothing was done yet.
    Checking,
    /// MKDIR: the other shard makes the directory.
    Making,
    /// RMDIR: the other shard removes the directory.
    Removing,
    /// UNLINK: the entry is gone, the other shard drops the inode.
    Dropping { kept: Option<KeptReply> },
    /// RENAME.
    Rename(RenameStage),
}

/// A namespace request that had to wait.
#[derive(Debug)]
pub(crate) struct NameOperation {
    pub request: NameRequest,
    pub name: Box<[u8]>,
    pub to_name: Box<[u8]>,
    pub stage: Stage,
    /// RENAME: it has the lock that serialises moves of directories.
    pub locked: bool,
}

impl NameOperation {
    /// Which message answers it.
    pub(crate) fn reply_kind(&self) -> ReplyKind {
        kind_of(&self.request)
    }
}

/// Keeps a request beyond its message.
pub(crate) fn name_operation_of(
    request: &NameRequest,
    names: Names<'_>,
    stage: Stage,
) -> NameOperation {
    NameOperation {
        request: *request,
        name: names.name.into(),
        to_name: names.to_name.into(),
        stage,
        locked: false,
    }
}

impl Core {
    /// Lets a request wait for a name.
    pub(crate) fn wait_for_name(
        &mut self,
        context: Context,
        operation: Box<NameOperation>,
        (directory, name): (Inode, &[u8]),
        sink: &mut impl Sink,
    ) {
        let Some(id) = self.keep_name(context, operation, sink) else { return };
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::AwaitingName;
        }
        self.counters.parked += 1;
        if !self.held.wait(directory, name, Waiter::Operation(id)) {
            self.fail_name(id, Status::AGAIN, sink);
        }
    }

    /// Makes a namespace request an operation, or keeps what became of it.
    pub(crate) fn keep_name(
        &mut self,
        mut context: Context,
        operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) -> Option<OperationId> {
        let (kind, parent) = (operation.reply_kind(), operation.request.parent.inode());
        let kept = Request::Name(operation);
        let id = self.ensure_operation(&mut context, kind, parent, kept, &[], sink)?;
        let order = self.last_operation + 1;
        if let Some(operation) = self.operations.find_mut(id)
            && operation.order == 0
        {
            operation.order = order;
            self.last_operation = order;
        }
        Some(id)
    }

    /// Goes on with an operation that waited for a name.
    pub(crate) fn resume_name(
        &mut self,
        now: Now,
        context: Context,
        operation: Box<NameOperation>,
        sink: &mut impl Sink,
    ) {
        if let Stage::Rename(_) = operation.stage {
            return self.begin_rename(now, context, operation, sink);
        }
        let request = operation.request;
        let request = NameRequest { header: context.header, ..request };
        let names = Names { name: &operation.name, to_name: &operation.to_name };
        self.start_name(now, context, &request, names, sink);
    }

    /// The age of an operation, under which it holds names.
    pub(crate) fn holder(&self, id: OperationId) -> Holder {
        let order = self.operations.find(id).map_or(0, |operation| operation.order);
        (order, self.config.reactor)
    }

    /// Sends a step of an operation to the shard of an inode.
    pub(crate) fn send_step(
        &mut self,
        id: OperationId,
        shard: ShardId,
        step: Step,
        sink: &mut impl Sink,
    ) {
        if let Some(operation) = self.operations.find_mut(id) {
            operation.state = State::AwaitingPeer;
            let (reactor, token, order) = (self.config.reactor, id.token(), operation.order);
            let request = StepRequest { reactor, token, order, step };
            self.send(self.reactor_of(shard), PeerMessage(Message::Step(request)), sink);
        }
    }

    /// Another shard has done its step, or not.
    pub(crate) fn step_done(
        &mut self,
        now: Now,
        token: u64,
        outcome: Outcome,
        sink: &mut impl Sink,
    ) {
        let id = OperationId::from_token(token);
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        let Request::Name(mut name) = std::mem::take(&mut operation.request) else { return };
        let parent = name.request.parent.inode();
        match (&mut name.stage, outcome) {
            (Stage::Checking, outcome) => self.access_checked(now, &context, name, &outcome, sink),
            (Stage::Rename(_), outcome) => {
                self.rename_step_done(now, context, name, outcome, sink);
            }
            (Stage::Making, Outcome::Made(attributes)) => {
                let inode = attributes.handle.inode();
                let file_type = file_type::DIRECTORY;
                let entry = Entry { inode, file_type };
                self.link_made(now, &context, (parent, &name.name), entry, attributes, sink);
            }
            (Stage::Removing, Outcome::Done | Outcome::Failed(Status::STALE_HANDLE)) => {
                // An inode that is gone leaves an entry that leads to nothing: it goes too.
                let (removed, after, kept) =
                    self.remove_entry(now, &context, (parent, &name.name), false, sink);
                self.let_go(id, parent, &name.name);
                debug_assert!(removed);
                self.answer_entry(&context, after, (Attributes::default(), 0), kept, sink);
            }
            (Stage::Making | Stage::Removing, Outcome::Failed(status)) => {
                self.let_go(id, parent, &name.name);
                self.answer_status(&context, ReplyKind::Entry, status, sink);
            }
            (Stage::Dropping { kept }, _) => {
                let kept = kept.take();
                let after = self.last_lsn;
                self.answer_entry(&context, after, (Attributes::default(), 0), kept, sink);
            }
            (_, _) => self.answer_status(&context, ReplyKind::Entry, Status::IO, sink),
        }
    }

    /// Ends a waiting operation with an error.
    pub(crate) fn fail_name(&mut self, id: OperationId, status: Status, sink: &mut impl Sink) {
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        match std::mem::take(&mut operation.request) {
            Request::Name(name) if matches!(name.stage, Stage::Rename(_)) => {
                self.end_rename(context, name, Err(status), sink);
            }
            Request::Name(name) => {
                self.answer_status(&context, name.reply_kind(), status, sink);
            }
            _ => {}
        }
    }

    /// Lets go of a name, and wakes who waits for it.
    pub(crate) fn let_go(&mut self, id: OperationId, directory: Inode, name: &[u8]) {
        let holder = self.holder(id);
        self.let_go_of(directory, name, holder);
    }

    /// The same for a holder that may be of another reactor.
    pub(crate) fn let_go_of(&mut self, directory: Inode, name: &[u8], holder: Holder) {
        for waiter in self.held.release(directory, name, holder) {
            match waiter {
                Waiter::Operation(id) => self.wake(id),
                Waiter::Step(step) => self.local.push_back(PeerMessage(Message::Step(step))),
            }
        }
    }
}
