//! A fabric that knows the connections its user made by their addresses, so that a test can break
//! one of them under the user.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Events, Fabric, FabricError, Key, PeerIdentity,
    PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};
use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

/// The verbs fabric, and what was connected to what. Belongs to one thread.
#[derive(Debug)]
pub struct Tracked {
    inner: AnyFabric,
    /// Connections that were asked for, oldest first. Those that ended are among them.
    made: Vec<(Address, ConnectionId)>,
}

impl Tracked {
    /// A fabric with the default settings for `address`.
    ///
    /// # Panics
    /// If there is no device, or `address` is not of RDMA.
    #[must_use]
    pub fn new(address: &Address) -> Tracked {
        let inner = AnyFabric::new(FabricOptions::for_address(address)).expect("a fabric");
        assert!(matches!(inner, AnyFabric::Verbs(_)), "{address} is not of RDMA");
        Tracked { inner, made: Vec::new() }
    }

    /// Puts the queue pair of the latest connection to `to` into the error state.
    ///
    /// # Panics
    /// If there was never one, or it has ended: the test is about one that is up.
    pub fn break_connection(&mut self, to: &Address) {
        let made = self.made.iter().rfind(|(address, _)| address == to);
        let (_, connection) = *made.unwrap_or_else(|| panic!("no connection to {to} was made"));
        assert!(self.inner.peer(connection).is_some(), "the connection to {to} has ended");
        match &mut self.inner {
            AnyFabric::Verbs(verbs) => verbs.break_queue_pair(connection),
            AnyFabric::Shm(_) => unreachable!("made by new"),
        }
    }

    /// How often a connection to `to` was asked for.
    #[must_use]
    pub fn connections_to(&self, to: &Address) -> usize {
        self.made.iter().filter(|(address, _)| address == to).count()
    }
}

impl Fabric for Tracked {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        self.inner.listen(at)
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let connection = self.inner.connect(to)?;
        self.made.push((to.clone(), connection));
        Ok(connection)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        self.inner.disconnect(connection);
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        self.inner.peer(connection)
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        self.inner.prepare(memory)
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        self.inner.register(connection, memory, access)
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        self.inner.open_window(connection, base, offset, len_bytes, access)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        self.inner.deregister(connection, key);
    }

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        self.inner.send(connection, message)
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.inner.write(connection, transfer)
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.inner.read(connection, transfer)
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        self.inner.map(connection, remote, access)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn poll(&mut self, now: Time, events: &mut Events) {
        self.inner.poll(now, events);
    }

    fn arm(&mut self) {
        self.inner.arm();
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.inner.wake_descriptors(visit);
    }
}
