//! A fabric that costs little: what is staged arrives with the next poll, what is sent is kept.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Event, Events, Fabric, FabricError, Key,
    PeerIdentity, PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};
use gannet_proto::packet::Frames;
use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

/// What is on its way in both directions.
#[derive(Default)]
pub(crate) struct Wire {
    accepted: Vec<ConnectionId>,
    incoming: Vec<(ConnectionId, usize)>,
    incoming_bytes: Vec<u8>,
    sent: Vec<(ConnectionId, usize)>,
    sent_bytes: Vec<u8>,
}

impl Wire {
    /// Has a connection accepted with the next poll.
    pub(crate) fn accept(&mut self, connection: ConnectionId) {
        self.accepted.push(connection);
    }

    /// Has a packet arrive with the next poll.
    pub(crate) fn stage(&mut self, connection: ConnectionId, packet: &[u8]) {
        self.incoming.push((connection, packet.len()));
        self.incoming_bytes.extend_from_slice(packet);
    }

    /// Hands every frame that was sent to `visit`, with its kind, and forgets it.
    pub(crate) fn take_sent(&mut self, mut visit: impl FnMut(ConnectionId, u16, &[u8])) {
        let mut rest = &self.sent_bytes[..];
        for (connection, len_bytes) in self.sent.drain(..) {
            let (packet, behind) = rest.split_at(len_bytes);
            rest = behind;
            let mut at = 0;
            for frame in Frames::new(packet) {
                let kind = frame.expect("the server sends whole frames").kind;
                let end = at + usize::from(u16::from_le_bytes([packet[at], packet[at + 1]]));
                visit(connection, kind, &packet[at + 8..end]);
                at = end;
            }
        }
        self.sent_bytes.clear();
    }
}

/// The server's end of a [`Wire`].
pub(crate) struct WireFabric(pub(crate) Rc<RefCell<Wire>>);

impl Fabric for WireFabric {
    fn capabilities(&self, _: ConnectionId) -> Capabilities {
        Capabilities::NONE
    }

    fn listen(&mut self, _: &Address) -> Result<(), FabricError> {
        Ok(())
    }

    fn connect(&mut self, _: &Address) -> Result<ConnectionId, FabricError> {
        Err(FabricError::NotConnected)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        panic!("the server gave up {connection:?}");
    }

    fn peer(&self, _: ConnectionId) -> Option<PeerIdentity> {
        None
    }

    fn prepare(&mut self, _: &Arc<Mapping>) -> Result<(), FabricError> {
        Ok(())
    }

    fn register(
        &mut self,
        _: ConnectionId,
        _: &Arc<Mapping>,
        _: Access,
    ) -> Result<Registration, FabricError> {
        Err(FabricError::NotConnected)
    }

    fn open_window(
        &mut self,
        _: ConnectionId,
        _: Key,
        _: u64,
        _: u64,
        _: Access,
    ) -> Result<Registration, WindowError> {
        Err(WindowError::NotConnected)
    }

    fn deregister(&mut self, _: ConnectionId, _: Key) {}

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        let wire = &mut *self.0.borrow_mut();
        wire.sent.push((connection, message.len()));
        wire.sent_bytes.extend_from_slice(message);
        Ok(())
    }

    fn write(&mut self, _: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn read(&mut self, _: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn map(&mut self, _: ConnectionId, _: RemoteSlice, _: Access) -> Option<Slice> {
        None
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: Time, events: &mut Events) {
        let wire = &mut *self.0.borrow_mut();
        for connection in wire.accepted.drain(..) {
            let peer = PeerIdentity::Network("a wire".to_owned());
            events.push(Event::Accepted { connection, peer });
        }
        let mut start = 0;
        for (connection, len_bytes) in wire.incoming.drain(..) {
            let packet = &wire.incoming_bytes[start..start + len_bytes];
            events.push_message(connection, len_bytes, |bytes| bytes.copy_from_slice(packet));
            start += len_bytes;
        }
        wire.incoming_bytes.clear();
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
