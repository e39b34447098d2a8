//! A fabric that reaches peers over every provider of this build.
//!
//! Which provider a connection belongs to follows from the address that it was made or accepted at.
//! A provider is made when it is first needed: by [`Fabric::listen`], [`Fabric::connect`] or
//! [`AnyFabric::open`]. So a machine without RDMA notices nothing until somebody wants `rdma://`,
//! and what cannot be made harms none of the others. Once made it stays.
//!
//! A provider's connection appears at position `its position * 3 + the provider's number`, so that
//! positions stay small and never clash. Keys pass through as the provider gave them: they belong
//! to their connection.
//!
//! One reactor owns an [`AnyFabric`]. Its process's death is that of each provider.

mod provider;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use self::provider::KINDS;
pub use self::provider::{Kind, Make, Provider};
use crate::shm::ShmOptions;
use crate::tcp::TcpOptions;
use crate::verbs::VerbsOptions;
use crate::{
    Access, Address, Capabilities, ConnectionId, Events, Fabric, FabricError, Key, PeerIdentity,
    PostError, Refused, Registration, RemoteSlice, Transfer, WindowError,
};

/// The settings of each provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FabricOptions {
    /// Of `shm://`.
    pub shm: ShmOptions,
    /// Of `rdma://`.
    pub verbs: VerbsOptions,
    /// Of `tcp://`.
    pub tcp: TcpOptions,
}

/// All providers of this build as one fabric. See the module. `P` differs in tests only.
pub struct AnyFabric<P = Provider> {
    options: FabricOptions,
    /// By number of the kind.
    providers: [Option<P>; KINDS],
    /// Memory that every provider has made ready, for those to come.
    prepared: Vec<Arc<Mapping>>,
    armed: bool,
}

impl AnyFabric {
    /// A fabric without providers yet.
    #[must_use]
    pub fn new(options: FabricOptions) -> AnyFabric {
        AnyFabric::without_providers(options)
    }
}

/// A provider's connection as the user sees it.
#[inline]
fn outer(kind: usize, inner: ConnectionId) -> ConnectionId {
    ConnectionId { index: inner.index * KINDS as u32 + kind as u32, ..inner }
}

/// The number of the provider, and its name for the connection.
#[inline]
fn split(connection: ConnectionId) -> (usize, ConnectionId) {
    let kinds = KINDS as u32;
    let inner = ConnectionId { index: connection.index / kinds, ..connection };
    ((connection.index % kinds) as usize, inner)
}

impl<P: Make> AnyFabric<P> {
    fn without_providers(options: FabricOptions) -> AnyFabric<P> {
        AnyFabric {
            options,
            providers: std::array::from_fn(|_| None),
            prepared: Vec::new(),
            armed: false,
        }
    }

    /// Makes the provider that `address` belongs to, if it was not made yet.
    ///
    /// # Errors
    /// What the machine, or this build, lacks for it; what [`Fabric::prepare`] of memory that was
    /// prepared before returns. The provider is then not there, and the next call tries again.
    pub fn open(&mut self, address: &Address) -> Result<(), FabricError> {
        self.provider(address).map(|_| ())
    }

    /// Ends like the process's death: peers find this side lost. For tests of what follows a crash.
    pub fn abandon(self) {
        self.providers.into_iter().flatten().for_each(P::abandon);
    }

    /// The provider for an address, made if need be, and its number.
    fn provider(&mut self, address: &Address) -> Result<(usize, &mut P), FabricError> {
        let kind = Kind::of(address);
        let place = &mut self.providers[kind as usize];
        if place.is_none() {
            let mut made = P::make(kind, &self.options)?;
            for memory in &self.prepared {
                made.prepare(memory)?;
            }
            if self.armed {
                made.arm();
            }
            *place = Some(made);
        }
        let provider = place.as_mut().expect("it was made above if it was missing");
        Ok((kind as usize, provider))
    }

    /// The provider of a connection, and its name for it.
    #[inline]
    fn at(&mut self, connection: ConnectionId) -> Option<(&mut P, ConnectionId)> {
        let (kind, inner) = split(connection);
        self.providers[kind].as_mut().map(|provider| (provider, inner))
    }

    #[inline]
    fn made(&mut self) -> impl Iterator<Item = &mut P> {
        self.providers.iter_mut().flatten()
    }
}

impl<P: Make> Fabric for AnyFabric<P> {
    #[inline]
    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        let (kind, inner) = split(connection);
        match &self.providers[kind] {
            Some(provider) => provider.capabilities(inner),
            None => Capabilities::NONE,
        }
    }

    fn scheme(&self, connection: ConnectionId) -> &'static str {
        Kind::ALL[split(connection).0].scheme()
    }

    fn is_short_of_places(&self, connection: ConnectionId) -> bool {
        let (kind, inner) = split(connection);
        self.providers[kind].as_ref().is_some_and(|provider| provider.is_short_of_places(inner))
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        self.provider(at)?.1.listen(at)
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let (kind, provider) = self.provider(to)?;
        provider.connect(to).map(|inner| outer(kind, inner))
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        if let Some((provider, inner)) = self.at(connection) {
            provider.disconnect(inner);
        }
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        let (kind, inner) = split(connection);
        self.providers[kind].as_ref()?.peer(inner)
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        self.made().try_for_each(|provider| provider.prepare(memory))?;
        self.prepared.push(Arc::clone(memory));
        Ok(())
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        let (provider, inner) = self.at(connection).ok_or(FabricError::NotConnected)?;
        provider.register(inner, memory, access)
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        let (provider, inner) = self.at(connection).ok_or(WindowError::NotConnected)?;
        provider.open_window(inner, base, offset, len_bytes, access)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        if let Some((provider, inner)) = self.at(connection) {
            provider.deregister(inner, key);
        }
    }

    #[inline]
    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        let (provider, inner) = self.at(connection).ok_or(PostError::NotConnected)?;
        provider.send(inner, message)
    }

    #[inline]
    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        match self.at(connection) {
            Some((provider, inner)) => provider.write(inner, transfer),
            None => Err(Refused { error: PostError::NotConnected, transfer }),
        }
    }

    #[inline]
    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        match self.at(connection) {
            Some((provider, inner)) => provider.read(inner, transfer),
            None => Err(Refused { error: PostError::NotConnected, transfer }),
        }
    }

    #[inline]
    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        let (provider, inner) = self.at(connection)?;
        provider.map(inner, remote, access)
    }

    #[inline]
    fn flush(&mut self) {
        self.made().for_each(P::flush);
    }

    #[inline]
    fn poll(&mut self, now: Time, events: &mut Events) {
        for (kind, provider) in self.providers.iter_mut().enumerate() {
            if let Some(provider) = provider {
                let start = events.len();
                provider.poll(now, events);
                events.rewrite_connections(start, |inner| outer(kind, inner));
            }
        }
    }

    fn arm(&mut self) {
        self.armed = true;
        self.made().for_each(P::arm);
    }

    fn disarm(&mut self) {
        self.armed = false;
        self.made().for_each(P::disarm);
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        for provider in self.providers.iter().flatten() {
            provider.wake_descriptors(visit);
        }
    }
}

impl<P: fmt::Debug> fmt::Debug for AnyFabric<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyFabric")
            .field("providers", &self.providers)
            .field("prepared", &self.prepared.len())
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}
