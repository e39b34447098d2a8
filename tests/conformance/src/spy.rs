//! A fabric that notes what its user posts and receives, for tests that look at the channels.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Event, Events, Fabric, FabricError, PostError,
    Refused, Registration, RemoteSlice, Transfer, TransferStatus,
};
use gannet_proto::packet::Frames;
use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

/// One thing that happened at a fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noted {
    /// A message left.
    Sent {
        /// On which connection.
        connection: ConnectionId,
        /// Its bytes.
        packet: Vec<u8>,
    },
    /// A message arrived.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// Its bytes.
        packet: Vec<u8>,
    },
    /// A one-sided write, or block I/O straight into the peer's memory.
    Wrote(RemoteSlice),
    /// A one-sided read, or block I/O straight out of the peer's memory.
    Read(RemoteSlice),
    /// A one-sided transfer completed.
    Transferred(ConnectionId, TransferStatus),
    /// A connection was asked for.
    Connecting(Address),
    /// A peer connected.
    Accepted(ConnectionId),
    /// Memory was registered.
    Registered(ConnectionId),
}

/// What was noted so far; shared between the fabric and the test.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    list: Rc<RefCell<Vec<Noted>>>,
    paused: Rc<Cell<bool>>,
}

impl Notes {
    /// Takes everything noted since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Noted> {
        std::mem::take(&mut self.list.borrow_mut())
    }

    /// Notes nothing from now on, so that the fabric does no more than the one it wraps.
    pub fn pause(&self) {
        self.paused.set(true);
    }

    /// Kinds of all frames in `noted` that were sent (`true`) or received.
    #[must_use]
    pub fn kinds(noted: &[Noted], sent: bool) -> Vec<u16> {
        noted
            .iter()
            .filter_map(|note| match note {
                Noted::Sent { packet, .. } if sent => Some(packet),
                Noted::Received { packet, .. } if !sent => Some(packet),
                _ => None,
            })
            .flat_map(|packet| Frames::new(packet).flatten().map(|frame| frame.kind))
            .collect()
    }

    fn add(&self, note: Noted) {
        if !self.paused.get() {
            self.list.borrow_mut().push(note);
        }
    }
}

/// A provider with somebody looking over its shoulder.
pub struct SpyFabric<F> {
    inner: F,
    notes: Notes,
    batch: Events,
    maps: bool,
}

impl<F: Fabric> SpyFabric<F> {
    /// Wraps a provider; what happens goes to `notes`.
    pub fn new(inner: F, notes: Notes) -> SpyFabric<F> {
        SpyFabric { inner, notes, batch: Events::default(), maps: true }
    }

    /// Wraps a provider as one that maps no remote memory, so that all payload goes by one-sided
    /// transfers.
    pub fn without_maps(inner: F, notes: Notes) -> SpyFabric<F> {
        SpyFabric { maps: false, ..SpyFabric::new(inner, notes) }
    }
}

impl<F: Fabric> Fabric for SpyFabric<F> {
    crate::pass_on! {
        listen disconnect peer prepare open_window deregister flush sleeping
    }

    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        let inner = self.inner.capabilities(connection);
        Capabilities { maps_remote_memory: self.maps && inner.maps_remote_memory, ..inner }
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        self.notes.add(Noted::Connecting(to.clone()));
        self.inner.connect(to)
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        self.notes.add(Noted::Registered(connection));
        self.inner.register(connection, memory, access)
    }

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        self.inner.send(connection, message)?;
        if !self.notes.paused.get() {
            self.notes.add(Noted::Sent { connection, packet: message.to_vec() });
        }
        Ok(())
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        let remote = transfer.remote;
        self.inner.write(connection, transfer)?;
        self.notes.add(Noted::Wrote(remote));
        Ok(())
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        let remote = transfer.remote;
        self.inner.read(connection, transfer)?;
        self.notes.add(Noted::Read(remote));
        Ok(())
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        if !self.maps {
            return None;
        }
        let view = self.inner.map(connection, remote, access)?;
        let note = if access.remote_write { Noted::Wrote(remote) } else { Noted::Read(remote) };
        self.notes.add(note);
        Some(view)
    }

    fn poll(&mut self, now: Time, events: &mut Events) {
        if self.notes.paused.get() {
            return self.inner.poll(now, events);
        }
        self.inner.poll(now, &mut self.batch);
        while let Some(event) = self.batch.pop() {
            match event {
                Event::Message { connection, bytes } => {
                    let packet = self.batch.message(bytes).to_vec();
                    events.push_message(connection, packet.len(), |to| to.copy_from_slice(&packet));
                    self.notes.add(Noted::Received { connection, packet });
                }
                event => {
                    match &event {
                        Event::Accepted { connection, .. } => {
                            self.notes.add(Noted::Accepted(*connection));
                        }
                        Event::Transferred { connection, status, .. } => {
                            self.notes.add(Noted::Transferred(*connection, *status));
                        }
                        _ => {}
                    }
                    events.push(event);
                }
            }
        }
        self.batch.clear();
    }
}
