//! Namespace requests that had to wait: for a name, or for another shard.

use gannet_proto::operations::{NameRequest, Names};
use gannet_proto::{Inode, Status};

use crate::coordinator::{Decision, Plan};
use crate::held::{Holder, Waiter};
use crate::names::kind_of;
use crate::operations::{OperationId, Request, State};
use crate::peer::{Message, PeerMessage};
use crate::rename::RenameStage;
use crate::rename_checks::Facts;
use crate::reply::{Context, ReplyKind};
use crate::{Core, Now, Sink};

/// How far a namespace operation has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// It begins anew when it goes on.
    Start,
    /// Another shard checks what the host may do; nothing was done yet.
    Checking,
    /// It let go of everything for an older operation, and begins anew when a name is free.
    Yielding,
    /// MKDIR: the other shard prepares the directory.
    Making,
    /// LINK: the inode's shard prepares one more link.
    Counting,
    /// RMDIR, UNLINK: the inode's shard prepares its removal.
    Removing,
    /// RENAME.
    Rename(RenameStage),
    /// It takes effect: the participants apply it.
    Decided(Decision),
}

/// A namespace request that had to wait.
#[derive(Debug)]
pub(crate) struct NameOperation {
    pub request: NameRequest,
    pub name: Box<[u8]>,
    pub to_name: Box<[u8]>,
    pub stage: Stage,
    /// What it is about to do, if several shards take part.
    pub plan: Plan,
    /// RENAME: it has the lock that serialises moves of directories.
    pub locked: bool,
    /// RENAME: what other shards have said of this try.
    pub facts: Facts,
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
        plan: Plan::default(),
        locked: false,
        facts: Facts::default(),
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
        let under_way = context.operation.and_then(|id| self.operations.find(id));
        if under_way.is_some_and(|operation| operation.dead) {
            return self.end_plan(context, operation, Err(Status::CANCELLED), sink);
        }
        if operation.locked {
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

    /// Ends a waiting operation with an error.
    pub(crate) fn fail_name(&mut self, id: OperationId, status: Status, sink: &mut impl Sink) {
        let Some((context, _)) = self.context_of(id) else { return };
        let Some(operation) = self.operations.find_mut(id) else { return };
        match std::mem::take(&mut operation.request) {
            Request::Name(name) if name.locked => {
                self.end_plan(context, name, Err(status), sink);
            }
            Request::Name(name) => {
                self.answer_status(&context, name.reply_kind(), status, sink);
            }
            _ => {}
        }
    }

    /// Lets go of a name if a holder has it, and wakes who waits for it.
    pub(crate) fn let_go_of(&mut self, directory: Inode, name: &[u8], holder: Holder) {
        for waiter in self.held.release(directory, name, holder) {
            match waiter {
                Waiter::Operation(id) => self.wake(id),
                Waiter::Step(step) => self.local.push_back(PeerMessage(Message::Step(step))),
            }
        }
    }
}
