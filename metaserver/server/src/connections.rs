//! The connections of one reactor and who is at their other ends.

use gannet_fabric::{ConnectionId, Fabric};
use gannet_meta_core::SessionIndex;
use gannet_proto::TargetId;
use gannet_proto::packet::Message;

use crate::outbox::Outbox;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has not said.
    New,
    /// A host's session.
    Host(SessionIndex),
    /// A data server that waits for its numbers.
    Enrolling,
    /// A data server.
    Target(TargetId),
    /// It was refused; only the refusal is still sent.
    Refused,
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) role: Role,
    outbox: Outbox,
    queued: bool,
}

/// All connections, by the fabric's index.
#[derive(Default)]
pub(crate) struct Connections {
    table: Vec<Option<Connection>>,
    /// Connections whose outbox is not empty.
    pending: Vec<ConnectionId>,
    retry: Vec<ConnectionId>,
}

impl Connections {
    pub(crate) fn open(&mut self, id: ConnectionId) {
        let index = id.index as usize;
        if self.table.len() <= index {
            self.table.resize_with(index + 1, || None);
        }
        self.table[index] =
            Some(Connection { id, role: Role::New, outbox: Outbox::new(), queued: false });
    }

    pub(crate) fn role(&self, id: ConnectionId) -> Option<Role> {
        let connection = self.table.get(id.index as usize)?.as_ref()?;
        (connection.id == id).then_some(connection.role)
    }

    pub(crate) fn set_role(&mut self, id: ConnectionId, role: Role) {
        if let Some(connection) = self.live(id) {
            connection.role = role;
        }
    }

    pub(crate) fn close(&mut self, id: ConnectionId) -> Option<Role> {
        let slot = self.table.get_mut(id.index as usize)?;
        if slot.as_ref()?.id != id {
            return None;
        }
        slot.take().map(|connection| connection.role)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.table.iter().flatten().map(|connection| connection.id)
    }

    /// Appends a frame to what leaves for the peer; nothing if the connection has ended.
    pub(crate) fn push<T: Message>(&mut self, id: ConnectionId, message: &T, tail: &[&[u8]]) {
        if let Some(outbox) = self.outbox(id) {
            outbox.push(message, tail);
        }
    }

    /// Appends an encoded frame.
    pub(crate) fn push_encoded(&mut self, id: ConnectionId, frame: &[u8]) {
        if let Some(outbox) = self.outbox(id) {
            outbox.push_encoded(frame);
        }
    }

    /// Whether something waits for a peer's credits.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Sends what waits. A peer that takes nothing is disconnected; so is a refused one that got
    /// its refusal.
    pub(crate) fn send_all<F: Fabric>(&mut self, fabric: &mut F) {
        let mut pending = std::mem::take(&mut self.pending);
        for id in pending.drain(..) {
            let Some(connection) = self.live(id) else { continue };
            connection.queued = false;
            let sent = connection.outbox.send(fabric, id);
            let done = connection.outbox.is_empty();
            if sent.is_err() || (done && connection.role == Role::Refused) {
                fabric.disconnect(id);
            } else if !done {
                connection.queued = true;
                self.retry.push(id);
            }
        }
        self.pending = std::mem::replace(&mut self.retry, pending);
    }

    fn live(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let connection = self.table.get_mut(id.index as usize)?.as_mut()?;
        (connection.id == id).then_some(connection)
    }

    fn outbox(&mut self, id: ConnectionId) -> Option<&mut Outbox> {
        let connection = self.table.get_mut(id.index as usize)?.as_mut()?;
        if connection.id != id {
            return None;
        }
        if !connection.queued {
            connection.queued = true;
            self.pending.push(id);
        }
        Some(&mut connection.outbox)
    }
}
