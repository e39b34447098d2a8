#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;

use super::*;
use crate::{DisconnectReason, Event, TransferStatus};

/// A provider that notes what it is asked to do.
struct Fake {
    kind: Kind,
    options: FabricOptions,
    connections: u32,
    events: Events,
    prepared: Vec<*const Mapping>,
    armed: bool,
    flushes: usize,
    /// Connections as it was told them.
    told: Vec<ConnectionId>,
}

impl Fake {
    fn tell(&mut self, connection: ConnectionId) {
        assert!(connection.index < self.connections, "{connection:?} is not of this provider");
        assert_eq!(connection.generation, 100 + connection.index);
        self.told.push(connection);
    }
}

impl Make for Fake {
    /// Fails as on a machine without devices where the options say so.
    fn make(kind: Kind, options: &FabricOptions) -> Result<Fake, FabricError> {
        if kind == Kind::Verbs && options.verbs.connections_max == 0 {
            return Err(FabricError::Missing("no device".to_owned()));
        }
        Ok(Fake {
            kind,
            options: options.clone(),
            connections: 0,
            events: Events::default(),
            prepared: Vec::new(),
            armed: false,
            flushes: 0,
            told: Vec::new(),
        })
    }

    fn abandon(self) {}
}

impl Fabric for Fake {
    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        assert!(connection.index < self.connections);
        Capabilities {
            maps_remote_memory: self.kind == Kind::Shm,
            disconnect_revokes_access: self.kind != Kind::Shm,
            memory_windows: self.kind == Kind::Verbs,
            streams: false,
        }
    }

    fn is_short_of_places(&self, connection: ConnectionId) -> bool {
        assert!(connection.index < self.connections);
        self.kind == Kind::Tcp
    }

    fn listen(&mut self, at: &Address) -> Result<(), FabricError> {
        assert_eq!(Kind::of(at), self.kind);
        Ok(())
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        assert_eq!(Kind::of(to), self.kind);
        let index = self.connections;
        self.connections += 1;
        let connection = ConnectionId { index, generation: 100 + index };
        self.events.push(Event::Connected { connection });
        Ok(connection)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        self.tell(connection);
        let reason = DisconnectReason::Local;
        self.events.push(Event::Disconnected { connection, reason });
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        Some(PeerIdentity::Network(format!("{:?} {}", self.kind, connection.index)))
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        if self.options.verbs.shared_receives == 0 && self.kind == Kind::Verbs {
            return Err(FabricError::LockedMemory { len_bytes: 1, limit_bytes: 0 });
        }
        self.prepared.push(Arc::as_ptr(memory));
        Ok(())
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        _memory: &Arc<Mapping>,
        _access: Access,
    ) -> Result<Registration, FabricError> {
        self.tell(connection);
        let key = Key(7);
        self.events.push(Event::Registered { connection, key });
        Ok(Registration { address: 4096, key })
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        _offset: u64,
        _len_bytes: u64,
        _access: Access,
    ) -> Result<Registration, WindowError> {
        self.tell(connection);
        Ok(Registration { address: 4096, key: base })
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        self.tell(connection);
        self.events.push(Event::Deregistered { connection, key });
    }

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        self.tell(connection);
        // What is sent comes back.
        self.events.push_message(connection, message.len(), |to| to.copy_from_slice(message));
        Ok(())
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.tell(connection);
        let Transfer { token, memory, .. } = transfer;
        let status = TransferStatus::Done;
        self.events.push(Event::Transferred { connection, token, memory, status });
        Ok(())
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.write(connection, transfer)
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        _remote: RemoteSlice,
        _access: Access,
    ) -> Option<Slice> {
        self.tell(connection);
        None
    }

    fn flush(&mut self) {
        self.flushes += 1;
    }

    fn poll(&mut self, _now: Time, events: &mut Events) {
        while let Some(event) = self.events.pop() {
            match event {
                Event::Message { connection, bytes } => {
                    let message = self.events.message(bytes).to_vec();
                    events.push_message(connection, message.len(), |to| {
                        to.copy_from_slice(&message);
                    });
                }
                other => events.push(other),
            }
        }
        self.events.clear();
    }

    fn arm(&mut self) {
        self.armed = true;
    }

    fn disarm(&mut self) {
        self.armed = false;
    }

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}

const ADDRESSES: [&str; KINDS] = ["shm:///peer", "rdma://peer:1", "tcp://peer:1"];

fn address(kind: Kind) -> Address {
    ADDRESSES[kind as usize].parse().unwrap()
}

fn fabric() -> AnyFabric<Fake> {
    AnyFabric::without_providers(FabricOptions::default())
}

fn present(fabric: &AnyFabric<Fake>) -> [bool; KINDS] {
    [0, 1, 2].map(|kind| fabric.providers[kind].is_some())
}

fn connection_of(event: &Event) -> ConnectionId {
    match event {
        Event::Accepted { connection, .. }
        | Event::Connected { connection }
        | Event::Disconnected { connection, .. }
        | Event::Message { connection, .. }
        | Event::Registered { connection, .. }
        | Event::Deregistered { connection, .. }
        | Event::Transferred { connection, .. } => *connection,
    }
}

#[test]
fn addresses_name_their_providers() {
    for (number, text) in ADDRESSES.iter().enumerate() {
        let address: Address = text.parse().unwrap();
        assert_eq!(Kind::of(&address) as usize, number);
        assert_eq!(Kind::ALL[number].scheme(), address.scheme());
    }
}

#[test]
fn connections_of_different_providers_never_clash() {
    let mut fabric = fabric();
    let mut seen = BTreeSet::new();
    for round in 0..5 {
        for kind in [Kind::Tcp, Kind::Shm, Kind::Verbs] {
            let connection = fabric.connect(&address(kind)).unwrap();
            assert!(seen.insert(connection.index), "{connection:?} twice");
            assert_eq!(connection.generation, 100 + round, "as its provider says");
            let name = PeerIdentity::Network(format!("{kind:?} {round}"));
            assert_eq!(fabric.peer(connection), Some(name));
            assert_eq!(fabric.scheme(connection), kind.scheme());
            assert_eq!(fabric.is_short_of_places(connection), kind == Kind::Tcp);
        }
    }
    assert_eq!(seen.last(), Some(&14), "positions stay small");
}

#[test]
fn identities_survive_the_way_there_and_back() {
    for kind in 0..KINDS {
        for index in [0, 1, 2, 3, 65_535, u32::MAX / 3 - 1] {
            let inner = ConnectionId { index, generation: u32::MAX };
            assert_eq!(split(outer(kind, inner)), (kind, inner));
        }
    }
}

#[test]
fn every_event_carries_the_users_name_of_its_connection() {
    let mut fabric = fabric();
    let mut events = Events::default();
    // What was there before stays as it is.
    let earlier = ConnectionId { index: 1000, generation: 1 };
    events.push(Event::Connected { connection: earlier });
    for kind in [Kind::Shm, Kind::Tcp, Kind::Verbs] {
        fabric.connect(&address(kind)).unwrap();
    }
    let connections: Vec<_> =
        [Kind::Shm, Kind::Tcp, Kind::Verbs].map(|k| fabric.connect(&address(k)).unwrap()).into();
    let memory = Mapping::anonymous(4096).unwrap();
    let pool = BufferPool::new(4096, 3).unwrap();
    let remote = RemoteSlice { address: 4096, key: Key(7), len_bytes: 1 };
    for connection in &connections {
        let at = fabric.register(*connection, &memory, Access::READ_WRITE).unwrap();
        fabric.open_window(*connection, at.key, 0, 1, Access::READ_WRITE).unwrap();
        fabric.send(*connection, format!("{connection:?}").as_bytes()).unwrap();
        let buffer = Memory::Buffer(pool.take().unwrap());
        fabric
            .write(*connection, Transfer { token: 5, memory: buffer, offset: 0, remote })
            .unwrap();
        fabric.deregister(*connection, at.key);
        assert!(fabric.map(*connection, remote, Access::READ_WRITE).is_none());
        fabric.disconnect(*connection);
    }
    fabric.poll(Time::ZERO, &mut events);
    assert_eq!(connection_of(&events.pop().unwrap()), earlier);
    let mut counts = std::collections::BTreeMap::new();
    while let Some(event) = events.pop() {
        let connection = connection_of(&event);
        *counts.entry(connection).or_insert(0) += 1;
        if let Event::Message { bytes, .. } = event {
            assert_eq!(events.message(bytes), format!("{connection:?}").as_bytes());
        }
    }
    for connection in connections {
        assert_eq!(counts.remove(&connection), Some(6), "{connection:?}");
    }
    assert_eq!(counts.len(), 3, "the first connections' events");
    assert!(counts.values().all(|count| *count == 1));
}

#[test]
fn capabilities_are_those_of_the_connection() {
    let mut fabric = fabric();
    let shm = fabric.connect(&address(Kind::Shm)).unwrap();
    let verbs = fabric.connect(&address(Kind::Verbs)).unwrap();
    assert!(fabric.capabilities(shm).maps_remote_memory);
    assert!(fabric.capabilities(verbs).memory_windows);
    let tcp = ConnectionId { index: Kind::Tcp as u32, generation: 0 };
    assert_eq!(fabric.capabilities(tcp), Capabilities::NONE, "there is no such provider");
    assert_eq!(fabric.send(tcp, b""), Err(PostError::NotConnected));
    assert_eq!(fabric.peer(tcp), None);
    fabric.disconnect(tcp);
    fabric.deregister(tcp, Key(1));
}

#[test]
fn providers_are_made_when_needed_and_with_their_options() {
    let mut options = FabricOptions::default();
    options.shm.ring_slots = 64;
    options.tcp.payload_checksums = true;
    let mut fabric = AnyFabric::<Fake>::without_providers(options.clone());
    assert_eq!(present(&fabric), [false; 3]);
    fabric.listen(&address(Kind::Shm)).unwrap();
    assert_eq!(present(&fabric), [true, false, false]);
    fabric.connect(&address(Kind::Tcp)).unwrap();
    assert_eq!(present(&fabric), [true, false, true]);
    fabric.open(&address(Kind::Verbs)).unwrap();
    assert_eq!(present(&fabric), [true; 3]);
    for provider in fabric.providers.iter().flatten() {
        assert_eq!(provider.options, options);
    }
    fabric.connect(&address(Kind::Tcp)).unwrap();
    assert_eq!(fabric.providers[2].as_ref().unwrap().connections, 2, "the same one");
    fabric.flush();
    assert!(fabric.providers.iter().flatten().all(|provider| provider.flushes == 1));
}

#[test]
fn memory_prepared_earlier_reaches_providers_made_later() {
    let mut fabric = fabric();
    let memory = [(); 3].map(|()| Mapping::anonymous(4096).unwrap());
    let expected: Vec<_> = memory.iter().map(Arc::as_ptr).collect();
    fabric.prepare(&memory[0]).unwrap();
    fabric.open(&address(Kind::Shm)).unwrap();
    fabric.prepare(&memory[1]).unwrap();
    fabric.open(&address(Kind::Tcp)).unwrap();
    fabric.prepare(&memory[2]).unwrap();
    fabric.connect(&address(Kind::Verbs)).unwrap();
    for provider in fabric.providers.iter().flatten() {
        assert_eq!(provider.prepared, expected, "{:?}", provider.kind);
    }
}

#[test]
fn a_provider_made_while_the_fabric_is_armed_is_armed() {
    let mut fabric = fabric();
    fabric.open(&address(Kind::Shm)).unwrap();
    fabric.arm();
    fabric.open(&address(Kind::Tcp)).unwrap();
    assert!(fabric.providers.iter().flatten().all(|provider| provider.armed));
    fabric.disarm();
    fabric.open(&address(Kind::Verbs)).unwrap();
    assert!(fabric.providers.iter().flatten().all(|provider| !provider.armed));
}

#[test]
fn a_provider_that_cannot_be_made_says_so_and_harms_no_other() {
    let mut options = FabricOptions::default();
    options.verbs.connections_max = 0;
    let mut fabric = AnyFabric::<Fake>::without_providers(options);
    let shm = fabric.connect(&address(Kind::Shm)).unwrap();
    let rdma = address(Kind::Verbs);
    for error in [
        fabric.open(&rdma).unwrap_err(),
        fabric.listen(&rdma).unwrap_err(),
        fabric.connect(&rdma).unwrap_err(),
    ] {
        assert!(matches!(error, FabricError::Missing(_)), "{error}");
    }
    assert_eq!(present(&fabric), [true, false, false]);
    assert_eq!(fabric.send(shm, b"still there"), Ok(()));
}

#[test]
fn a_provider_that_cannot_have_the_memory_is_not_kept() {
    let mut options = FabricOptions::default();
    options.verbs.shared_receives = 0;
    let mut fabric = AnyFabric::<Fake>::without_providers(options);
    fabric.prepare(&Mapping::anonymous(4096).unwrap()).unwrap();
    let error = fabric.open(&address(Kind::Verbs)).unwrap_err();
    assert!(matches!(error, FabricError::LockedMemory { .. }), "{error}");
    assert_eq!(present(&fabric), [false; 3]);
    fabric.open(&address(Kind::Tcp)).unwrap();
}

#[test]
fn real_providers_refuse_options_out_of_bounds_when_they_are_made() {
    let mut options = FabricOptions::default();
    options.tcp.small_credits = 0;
    let mut fabric = AnyFabric::new(options);
    assert!(fabric.open(&address(Kind::Tcp)).is_err());
    fabric.open(&address(Kind::Shm)).unwrap();
    assert!(fabric.providers[Kind::Shm as usize].is_some());
    fabric.abandon();
}
