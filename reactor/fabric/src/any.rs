//! The provider that a daemon was configured with, as one enum: static dispatch everywhere above,
//! one predictable branch here.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use crate::shm::{ShmFabric, ShmOptions};
#[cfg(feature = "verbs")]
use crate::verbs::VerbsFabric;
use crate::verbs::VerbsOptions;
use crate::{
    Access, Address, Capabilities, ConnectionId, Events, Fabric, FabricError, Key, PeerIdentity,
    PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};

/// Settings of a provider; choosing the variant chooses the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FabricOptions {
    /// Processes on one machine.
    Shm(ShmOptions),
    /// RDMA devices.
    Verbs(VerbsOptions),
}

impl FabricOptions {
    /// The default settings of the provider that `address` belongs to.
    #[must_use]
    pub fn for_address(address: &Address) -> FabricOptions {
        match address {
            Address::Shm(_) => FabricOptions::Shm(ShmOptions::default()),
            Address::Rdma { .. } => FabricOptions::Verbs(VerbsOptions::default()),
        }
    }
}

/// Any provider of this build.
#[derive(Debug)]
pub enum AnyFabric {
    /// Processes on one machine.
    Shm(ShmFabric),
    /// RDMA devices.
    #[cfg(feature = "verbs")]
    Verbs(VerbsFabric),
}

impl AnyFabric {
    /// Makes the provider that `options` chooses.
    ///
    /// # Errors
    /// What the provider's constructor returns.
    pub fn new(options: FabricOptions) -> Result<AnyFabric, FabricError> {
        match options {
            FabricOptions::Shm(options) => Ok(AnyFabric::Shm(ShmFabric::new(options)?)),
            #[cfg(feature = "verbs")]
            FabricOptions::Verbs(options) => Ok(AnyFabric::Verbs(VerbsFabric::new(options)?)),
            #[cfg(not(feature = "verbs"))]
            FabricOptions::Verbs(_) => Err(FabricError::Missing(
                "this build has no RDMA: build it with the feature verbs (on by default), which \
                 needs libibverbs-dev, librdmacm-dev and libclang-dev"
                    .to_owned(),
            )),
        }
    }
}

/// Runs an expression on whichever provider it is.
macro_rules! each {
    ($any:expr, $fabric:ident => $call:expr) => {
        match $any {
            AnyFabric::Shm($fabric) => $call,
            #[cfg(feature = "verbs")]
            AnyFabric::Verbs($fabric) => $call,
        }
    };
}

impl Fabric for AnyFabric {
    fn capabilities(&self) -> Capabilities {
        each!(self, fabric => fabric.capabilities())
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        each!(self, fabric => fabric.listen(at))
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        each!(self, fabric => fabric.connect(to))
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        each!(self, fabric => fabric.disconnect(connection));
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        each!(self, fabric => fabric.peer(connection))
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        each!(self, fabric => fabric.prepare(memory))
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        each!(self, fabric => fabric.register(connection, memory, access))
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        each!(self, fabric => fabric.open_window(connection, base, offset, len_bytes, access))
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        each!(self, fabric => fabric.deregister(connection, key));
    }

    #[inline]
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        each!(self, fabric => fabric.send(connection, message))
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        each!(self, fabric => fabric.write(connection, transfer))
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        each!(self, fabric => fabric.read(connection, transfer))
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        each!(self, fabric => fabric.map(connection, remote, access))
    }

    #[inline]
    fn flush(&mut self) {
        each!(self, fabric => fabric.flush());
    }

    #[inline]
    fn poll(&mut self, now: Time, events: &mut Events) {
        each!(self, fabric => fabric.poll(now, events));
    }

    fn arm(&mut self) {
        each!(self, fabric => fabric.arm());
    }

    fn disarm(&mut self) {
        each!(self, fabric => fabric.disarm());
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        each!(self, fabric => fabric.wake_descriptors(visit));
    }
}
