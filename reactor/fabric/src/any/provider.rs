//! One provider of those that this build has, and how it is made.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use super::FabricOptions;
use crate::shm::ShmFabric;
use crate::tcp::TcpFabric;
#[cfg(feature = "verbs")]
use crate::verbs::VerbsFabric;
use crate::{
    Access, Address, Capabilities, ConnectionId, Events, Fabric, FabricError, Key, PeerIdentity,
    PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};

/// Number of kinds of providers.
pub(super) const KINDS: usize = 3;

/// Which provider: the remainder of a connection's position by [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes on one machine.
    Shm = 0,
    /// RDMA devices.
    Verbs = 1,
    /// Any network.
    Tcp = 2,
}

impl Kind {
    /// All kinds, by number.
    pub(super) const ALL: [Kind; KINDS] = [Kind::Shm, Kind::Verbs, Kind::Tcp];

    /// As [`Address::scheme`] of its addresses.
    pub(super) fn scheme(self) -> &'static str {
        match self {
            Kind::Shm => "shm",
            Kind::Verbs => "rdma",
            Kind::Tcp => "tcp",
        }
    }

    /// The provider that an address belongs to.
    pub(super) fn of(address: &Address) -> Kind {
        match address {
            Address::Shm(_) => Kind::Shm,
            Address::Rdma { .. } => Kind::Verbs,
            Address::Tcp { .. } => Kind::Tcp,
        }
    }
}

/// A fabric that [`super::AnyFabric`] makes when it is first needed.
pub trait Make: Fabric + Sized {
    /// Makes the provider of a kind, without connections.
    ///
    /// # Errors
    /// What the machine, or this build, lacks for it.
    fn make(kind: Kind, options: &FabricOptions) -> Result<Self, FabricError>;

    /// Ends like the process's death.
    fn abandon(self);
}

/// One of the providers of this build. A value never becomes another kind.
#[derive(Debug)]
pub enum Provider {
    /// Processes on one machine.
    Shm(ShmFabric),
    /// RDMA devices.
    #[cfg(feature = "verbs")]
    Verbs(VerbsFabric),
    /// Any network.
    Tcp(TcpFabric),
}

impl Make for Provider {
    fn make(kind: Kind, options: &FabricOptions) -> Result<Provider, FabricError> {
        match kind {
            Kind::Shm => Ok(Provider::Shm(ShmFabric::new(options.shm.clone())?)),
            Kind::Tcp => Ok(Provider::Tcp(TcpFabric::new(options.tcp.clone())?)),
            #[cfg(feature = "verbs")]
            Kind::Verbs => Ok(Provider::Verbs(VerbsFabric::new(options.verbs.clone())?)),
            #[cfg(not(feature = "verbs"))]
            Kind::Verbs => Err(FabricError::Missing(
                "this build has no RDMA: build it with the feature verbs (on by default), which \
                 needs libibverbs-dev, librdmacm-dev and libclang-dev"
                    .to_owned(),
            )),
        }
    }

    fn abandon(self) {
        match self {
            Provider::Shm(fabric) => fabric.abandon(),
            #[cfg(feature = "verbs")]
            Provider::Verbs(fabric) => fabric.abandon(),
            Provider::Tcp(fabric) => fabric.abandon(),
        }
    }
}

/// Runs an expression on whichever provider it is.
macro_rules! each {
    ($provider:expr, $fabric:ident => $call:expr) => {
        match $provider {
            Provider::Shm($fabric) => $call,
            #[cfg(feature = "verbs")]
            Provider::Verbs($fabric) => $call,
            Provider::Tcp($fabric) => $call,
        }
    };
}

impl Fabric for Provider {
    #[inline]
    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        each!(self, fabric => fabric.capabilities(connection))
    }

    fn is_short_of_places(&self, connection: ConnectionId) -> bool {
        each!(self, fabric => fabric.is_short_of_places(connection))
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
