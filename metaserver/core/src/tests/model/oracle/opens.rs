//! Files that are open, and what a restart makes of them.

use gannet_proto::Status;
use gannet_proto::operations::name_flags;

use super::{Done, Id, Open, Oracle, Place, READ, WRITE, ensure};

impl Oracle {
    /// Whether a file stays without a name: it is open, or a host of the last run may say so yet.
    pub(super) fn is_kept(&self, id: Id) -> bool {
        self.opens.values().any(|open| open.id == id) || id <= self.reclaimable
    }

    /// Whether the caller has it open for this.
    pub(super) fn is_open_for(&self, id: Id, wanted: u32) -> bool {
        let grants =
            |open: &Open| open.caller.uid == self.caller.uid && open.rights & wanted == wanted;
        self.opens.values().any(|open| open.id == id && grants(open))
    }

    /// Opens a file under a free number.
    pub(in super::super) fn open(&mut self, id: Id, number: u32, rights: u32) -> Done<()> {
        let node = self.node(id)?;
        ensure(!node.is_directory() || rights & WRITE == 0, Status::IS_DIRECTORY)?;
        ensure(self.caller.may(node, rights), Status::ACCESS)?;
        self.opens.insert(number, Open { id, caller: self.caller, rights });
        Ok(())
    }

    /// CREATE that opens: what it makes whatever the mode, and what it finds if it is near, on the
    /// reactor asked.
    pub(in super::super) fn create_open(
        &mut self,
        at: Place<'_>,
        (mode, owner): (u32, (u32, u32)),
        flags: u32,
        (number, is_near): (u32, impl Fn(Id) -> bool),
    ) -> Done<Id> {
        let right = |flag, right| if flags & flag != 0 { right } else { 0 };
        let rights = right(name_flags::OPEN_READ, READ) | right(name_flags::OPEN_WRITE, WRITE);
        let last = self.last;
        let id = self.create(at, mode, owner, flags)?;
        if id > last && rights != 0 {
            self.opens.insert(number, Open { id, caller: self.caller, rights });
        } else if rights != 0 && is_near(id) {
            self.open(id, number, rights)?;
        }
        Ok(id)
    }

    /// Ends an open.
    pub(in super::super) fn close(&mut self, number: u32) {
        self.opens.remove(&number);
        self.drop_nameless();
    }

    /// What has neither name nor open goes.
    fn drop_nameless(&mut self) {
        let opens = &self.opens;
        let reclaimable = self.reclaimable;
        self.nodes.retain(|id, node| {
            node.links > 0 || *id <= reclaimable || opens.values().any(|open| open.id == *id)
        });
    }

    /// The server starts anew, and is told of all opens: those stay that belong to the file's owner or that
    /// its mode lets. Until [`Oracle::end_reclaim`] everything is taken for open.
    pub(in super::super) fn restart(&mut self) {
        self.reclaimable = self.last;
        let nodes = &self.nodes;
        self.opens.retain(|_, Open { id, caller, rights }| {
            nodes.get(id).is_some_and(|node| caller.uid == node.uid || caller.may(node, *rights))
        });
    }

    /// Nobody comes back any more.
    pub(in super::super) fn end_reclaim(&mut self) {
        self.reclaimable = 0;
        self.drop_nameless();
    }
}
