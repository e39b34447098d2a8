//! STAT, OPEN, FSYNC and SETATTR.

use gannet_proto::operations::{InodeRequest, SetAttributes, attribute_mask, inode_operation};
use gannet_proto::{Inode, Status};

use crate::holds::Range;
use crate::opens::opens_or_closes;
use crate::operations::{NONE, Request};
use crate::record::{Change, Reply};
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::{Core, Now, SessionIndex, Sink};

impl Core {
    /// STAT, OPEN, FSYNC. What was acknowledged on the file is durable when the answer leaves, since
    /// the answer waits for the record of the file's last change.
    pub fn inode_request(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &InodeRequest,
        sink: &mut impl Sink,
    ) {
        self.counters.inode_requests += 1;
        if self.stat_plainly(session, request, sink) {
            return;
        }
        let kind = ReplyKind::Entry;
        let Some(context) = self.admit(session, &request.header, kind, sink) else { return };
        let status = match self.inode_of(&context, &request.handle) {
            Err(status) => status,
            Ok(inode) => match (self.nodes.get(&inode), request.operation.get()) {
                (_, operation) if opens_or_closes(operation) => {
                    return self.open_or_close(now, &context, inode, request, sink);
                }
                (
                    Some(node),
                    inode_operation::STAT | inode_operation::OPEN | inode_operation::FSYNC,
                ) => {
                    let (after, attributes) = (node.lsn, node.attributes());
                    return self.answer_entry(&context, after, (attributes, 0), None, sink);
                }
                (Some(_), _) => Status::NOT_SUPPORTED,
                (None, _) => Status::STALE_HANDLE,
            },
        };
        self.answer_status(&context, kind, status, sink);
        self.settle(now, sink);
    }

    /// SETATTR. A change of size takes the whole file to itself.
    pub fn set_attributes(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &SetAttributes,
        sink: &mut impl Sink,
    ) {
        self.counters.attribute_changes += 1;
        if let Some(context) = self.admit(session, &request.header, ReplyKind::Entry, sink) {
            self.start_attributes(now, context, request, sink);
        }
        self.settle(now, sink);
    }

    /// Executes a SETATTR from the start, or when it holds the file.
    pub(crate) fn start_attributes(
        &mut self,
        now: Now,
        mut context: Context,
        request: &SetAttributes,
        sink: &mut impl Sink,
    ) {
        let checked = self.check_attributes(&context, request);
        let authorized = checked.and_then(|(inode, resizes)| {
            let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
            let planned = self.authorize_attributes(now, context.session, node, request)?;
            Ok((inode, resizes, planned))
        });
        let (inode, resizes, planned) = match authorized {
            Ok(authorized) => authorized,
            Err(status) => return self.answer_status(&context, ReplyKind::Entry, status, sink),
        };
        let holds = self.operation_holds(&context);
        if resizes && !holds && !self.hold_all(&mut context, inode, request, sink) {
            return;
        }
        let origin = self.origin(now, &context, Reply::Node);
        let change = Change::AttributesSet {
            inode,
            mask: planned.mask.get(),
            mode: planned.mode.get(),
            uid: planned.uid.get(),
            gid: planned.gid.get(),
            atime_ns: planned.atime_ns.get(),
            mtime_ns: planned.mtime_ns.get(),
            size: if resizes { request.size.get() } else { 0 },
        };
        let (after, kept) = self.commit(&origin, &change, sink);
        let Some(node) = self.nodes.get(&inode) else { return };
        let attributes = node.attributes();
        debug_assert!(kept.is_none() || kept == Some(KeptReply::Entry(attributes)));
        self.answer_entry(&context, after, (attributes, 0), kept, sink);
    }

    fn check_attributes(
        &self,
        context: &Context,
        request: &SetAttributes,
    ) -> Result<(Inode, bool), Status> {
        let inode = self.inode_of(context, &request.handle)?;
        let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
        let mask = request.mask.get();
        let both = |bits| mask & bits == bits;
        if mask & !attribute_mask::KNOWN != 0
            || both(attribute_mask::ATIME | attribute_mask::ATIME_NOW)
            || both(attribute_mask::MTIME | attribute_mask::MTIME_NOW)
        {
            return Err(Status::INVALID);
        }
        let resizes = mask & attribute_mask::SIZE != 0;
        if resizes && node.file().is_none() {
            return Err(Status::IS_DIRECTORY);
        }
        Ok((inode, resizes))
    }

    fn operation_holds(&self, context: &Context) -> bool {
        let operation = context.operation.and_then(|id| self.operations.find(id));
        operation.is_some_and(|operation| operation.holding != NONE)
    }

    /// Holds the whole file. `false`: the request waits for it, or was answered. A file that nobody
    /// holds needs no hold: the change is made before anybody else comes.
    fn hold_all(
        &mut self,
        context: &mut Context,
        inode: Inode,
        request: &SetAttributes,
        sink: &mut impl Sink,
    ) -> bool {
        let range = Range::from_block(0);
        let table = self.nodes.get(&inode).and_then(|node| node.file()).map(|file| file.holds);
        if table.is_some_and(|table| self.holds.is_free(table, &range)) {
            return true;
        }
        let (kind, kept) = (ReplyKind::Entry, Request::Attributes(*request));
        let Some(id) = self.ensure_operation(context, kind, inode, kept, &[], sink) else {
            return false;
        };
        match self.acquire_hold(id, inode, range) {
            Ok(held) => held,
            Err(status) => {
                self.answer_status(context, kind, status, sink);
                false
            }
        }
    }
}
