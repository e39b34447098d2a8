//! What users ask of the network: connections, registrations, messages, transfers.

use std::path::Path;
use std::sync::Arc;

use gannet_fabric::{
    Access, ConnectionId, FabricError, Key, PostError, Refused, Registration, RemoteSlice, Transfer,
};
use gannet_runtime::memory::{Mapping, Slice};

use super::link::{
    End, Flight, Lane, Link, Notice, Op, Phase, Port, Region, RegionState, class_of,
};
use super::state::{State, Timer};

impl State {
    pub(super) fn port(&self, endpoint: usize, connection: ConnectionId) -> Option<Port> {
        let endpoint = &self.endpoints[endpoint];
        if endpoint.alive { endpoint.port(connection) } else { None }
    }

    fn open_port(&self, endpoint: usize, connection: ConnectionId) -> Option<Port> {
        self.port(endpoint, connection).filter(|port| self.phase(*port) == Phase::Open)
    }

    pub(super) fn listen(&mut self, endpoint: usize, path: &Path) -> Result<(), FabricError> {
        if self.listeners.contains_key(path) {
            return Err(FabricError::System {
                what: format!("listening at {}", path.display()),
                source: std::io::ErrorKind::AddrInUse.into(),
            });
        }
        if self.endpoints[endpoint].alive {
            self.listeners.insert(path.to_owned(), endpoint);
        }
        Ok(())
    }

    pub(super) fn connect(
        &mut self,
        endpoint: usize,
        path: &Path,
    ) -> Result<ConnectionId, FabricError> {
        let limit = self.options.connections_max;
        let refused = FabricError::Limit { what: "connections", limit };
        let port = Port { link: self.links_made, side: 0 };
        let state = &mut self.endpoints[endpoint];
        if !state.alive {
            return Err(refused);
        }
        let Some(connection) = state.take_slot(port, limit) else { return Err(refused) };
        self.links_made += 1;
        let ends = [End::new(Some(endpoint), connection), End::new(None, connection)];
        let link = Link { ends, lanes: [Lane::default(), Lane::default()], broken: false };
        self.links.insert(port.link, link);
        let at = self.after_hop();
        self.agenda.add(at, Timer::Arrive(port.link, path.to_owned()));
        Ok(connection)
    }

    pub(super) fn register(
        &mut self,
        endpoint: usize,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        let is_shm = self.is_shm();
        let port = self.open_port(endpoint, connection).ok_or(FabricError::NotConnected)?;
        let limit = self.options.registrations_max;
        let registrations =
            |end: &mut End| end.regions.values().filter(|region| region.base.is_none()).count();
        if self.end(port).is_none_or(|end| registrations(end) >= limit) {
            return Err(FabricError::Limit { what: "registrations of a connection", limit });
        }
        let view = match memory.file() {
            Some(file) => second_view(file.try_clone_to_owned(), memory.len())?,
            None if is_shm => return Err(FabricError::Memory("it has no file to hand over")),
            None => Arc::clone(memory),
        };
        let key = self.take_key(endpoint);
        // Addresses of the simulated kind, since real ones differ from run to run.
        let address = u64::from(key) << 32;
        let state = if is_shm { RegionState::Announced } else { RegionState::Usable };
        let (len_bytes, owner) = (memory.len(), memory.base().addr());
        let region = Region {
            access,
            address,
            state,
            view,
            start: 0,
            len_bytes,
            owner,
            base: None,
            pins: 0,
        };
        if let Some(end) = self.end(port) {
            end.regions.insert(key, region);
        }
        if is_shm {
            let at = self.after_hop();
            self.agenda.add(at, Timer::Deliver(Notice::PeerRegisters(port.other(), key)));
        } else {
            self.deliver(Notice::Registered(port, key));
        }
        Ok(Registration { address, key: Key(key) })
    }

    /// A key for a new registration or window, perhaps that of a former one.
    pub(super) fn take_key(&mut self, endpoint: usize) -> u32 {
        let reuse = self.random.happens(self.options.reuse_key);
        let state = &mut self.endpoints[endpoint];
        match state.free_keys.pop() {
            Some(key) if reuse => key,
            kept => {
                state.free_keys.extend(kept);
                state.next_key += 1;
                state.next_key
            }
        }
    }

    pub(super) fn deregister(&mut self, endpoint: usize, connection: ConnectionId, key: Key) {
        let is_shm = self.is_shm();
        let Some(port) = self.open_port(endpoint, connection) else { return };
        let at = self.after_hop();
        let Some(region) = self.end(port).and_then(|end| end.regions.get(&key.0)) else { return };
        if region.base.is_some() {
            return self.close_window(port, key.0);
        }
        self.end_windows_of(port, key.0);
        let Some(region) = self.end(port).and_then(|end| end.regions.get_mut(&key.0)) else {
            return;
        };
        if is_shm {
            self.agenda.add(at, Timer::Deliver(Notice::PeerDeregisters(port.other(), key.0)));
        } else if region.state == RegionState::Usable {
            region.state = RegionState::Leaving;
            if region.pins == 0 {
                self.deliver(Notice::Deregistered(port, key.0));
            }
        }
    }

    pub(super) fn send(
        &mut self,
        endpoint: usize,
        connection: ConnectionId,
        message: &[u8],
    ) -> Result<(), PostError> {
        let class = class_of(message.len())?;
        let port = self.open_port(endpoint, connection).ok_or(PostError::NotConnected)?;
        let spurious = self.random.happens(self.options.spurious_full);
        let limit = [self.options.small_credits, self.options.large_credits][class];
        let Some(link) = self.links.get_mut(&port.link) else {
            return Err(PostError::NotConnected);
        };
        let out = &mut link.ends[port.side].messages_out[class];
        // Something else is on its way, so that a refused user has something to wait for.
        if (spurious && *out > 0) || *out >= limit {
            return Err(PostError::Full);
        }
        *out += 1;
        link.lanes[port.side].staged.push(Op::Message(message.to_vec()));
        Ok(())
    }

    pub(super) fn transfer(
        &mut self,
        endpoint: usize,
        connection: ConnectionId,
        transfer: Transfer,
        is_write: bool,
    ) -> Result<(), Refused> {
        let len_bytes = transfer.remote.len_bytes as usize;
        let fits =
            transfer.offset.checked_add(len_bytes).is_some_and(|end| end <= transfer.memory.len());
        if !fits {
            return Err(Refused { error: PostError::TooLong, transfer });
        }
        let Some(port) = self.open_port(endpoint, connection) else {
            return Err(Refused { error: PostError::NotConnected, transfer });
        };
        let spurious = self.random.happens(self.options.spurious_full);
        let backwards = self.random.coin();
        let limit = self.options.transfers_max;
        let is_shm = self.is_shm();
        let Some(link) = self.links.get_mut(&port.link) else {
            return Err(Refused { error: PostError::NotConnected, transfer });
        };
        let out = &mut link.ends[port.side].transfers_out;
        if (spurious && *out > 0) || *out >= limit {
            return Err(Refused { error: PostError::Full, transfer });
        }
        *out += 1;
        let mut flight = Flight { is_write, transfer, moved: 0, backwards, pinned: false };
        // On shm the initiator holds the registration from the post on.
        let key = flight.transfer.remote.key.0;
        if is_shm
            && let Some(region) = link.ends[1 - port.side].regions.get_mut(&key)
            && region.state == RegionState::Usable
        {
            region.pins += 1;
            flight.pinned = true;
        }
        link.lanes[port.side].staged.push(Op::Transfer(flight));
        Ok(())
    }

    pub(super) fn map(
        &mut self,
        endpoint: usize,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        if !self.options.model.capabilities().maps_remote_memory {
            return None;
        }
        let port = self.open_port(endpoint, connection)?;
        let region = self.end(port.other())?.regions.get(&remote.key.0)?;
        if region.state != RegionState::Usable || !region.grants(access) {
            return None;
        }
        let offset = region.offset_of(remote)?;
        region.view.slice(offset as u64, u64::from(remote.len_bytes))
    }
}

fn second_view(
    file: std::io::Result<std::os::fd::OwnedFd>,
    len_bytes: usize,
) -> Result<Arc<Mapping>, FabricError> {
    file.and_then(|file| Mapping::from_peer(file, len_bytes)).map_err(|source| {
        FabricError::System { what: "mapping registered memory a second time".to_owned(), source }
    })
}
