//! The network as a role sees it.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Events, Fabric, FabricError, Key, PeerIdentity,
    PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};
use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use super::Endpoint;
use super::link::Phase;
use super::state::State;

/// A fabric value of one role. Dropping it is the death of its process: peers learn of it as of a
/// lost peer, and what was posted takes effect up to any point. Who wants an orderly end
/// disconnects and polls until the ends are told.
pub struct SimFabric {
    endpoint: Endpoint,
}

impl SimFabric {
    pub(super) fn new(endpoint: Endpoint) -> SimFabric {
        SimFabric { endpoint }
    }

    /// The handle by which a test does things to this fabric value.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    fn state(&self) -> &Rc<RefCell<State>> {
        &self.endpoint.state
    }
}

impl Drop for SimFabric {
    fn drop(&mut self) {
        self.endpoint.kill();
    }
}

impl Fabric for SimFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        self.state().borrow().options.model.capabilities()
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        let Address::Shm(path) = at else {
            return Err(FabricError::Address(format!("{at} is not in the simulation")));
        };
        self.state().borrow_mut().listen(self.endpoint.index, path)
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let Address::Shm(path) = to else {
            return Err(FabricError::Address(format!("{to} is not in the simulation")));
        };
        self.state().borrow_mut().connect(self.endpoint.index, path)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let mut state = self.state().borrow_mut();
        if let Some(port) = state.port(self.endpoint.index, connection) {
            state.disconnect(port);
        }
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        let state = self.state().borrow();
        let port = state.port(self.endpoint.index, connection)?;
        (state.phase(port) != Phase::Connecting).then(|| state.identity_of_peer(port))
    }

    fn prepare(&mut self, _memory: &Arc<Mapping>) -> Result<(), FabricError> {
        Ok(())
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        self.state().borrow_mut().register(self.endpoint.index, connection, memory, access)
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        let (endpoint, range) = (self.endpoint.index, (offset, len_bytes));
        self.state().borrow_mut().open_window(endpoint, connection, base, range, access)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        self.state().borrow_mut().deregister(self.endpoint.index, connection, key);
    }

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        self.state().borrow_mut().send(self.endpoint.index, connection, message)
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.state().borrow_mut().transfer(self.endpoint.index, connection, transfer, true)
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.state().borrow_mut().transfer(self.endpoint.index, connection, transfer, false)
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        self.state().borrow_mut().map(self.endpoint.index, connection, remote, access)
    }

    fn flush(&mut self) {
        self.state().borrow_mut().flush(self.endpoint.index);
    }

    /// The network's own time counts, which the scheduler keeps equal to `now`.
    fn poll(&mut self, _now: Time, events: &mut Events) {
        self.state().borrow_mut().poll(self.endpoint.index, events);
    }

    // Roles do not sleep in a simulation: the scheduler polls them when time has moved on.
    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
