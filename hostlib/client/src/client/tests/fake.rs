//! A fabric of queues: the test sees everything that the client does and causes every event.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, DisconnectReason, Event, Events, Fabric,
    FabricError, Key, PeerIdentity, PostError, Refused, Registration, RemoteSlice, Transfer,
    WindowError,
};
use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

/// What the next poll will deliver.
pub(super) enum Delivery {
    Event(Event),
    Message(ConnectionId, Vec<u8>),
}

/// A registration that the client made.
pub(super) struct Registered {
    pub(super) connection: ConnectionId,
    pub(super) key: Key,
    pub(super) memory: Arc<Mapping>,
}

/// A window that the client opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) connection: ConnectionId,
    pub(super) base: Key,
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    pub(super) access: Access,
}

pub(super) struct World {
    pub(super) capabilities: Capabilities,
    /// What differs from that, by scheme of the address.
    pub(super) capabilities_of: BTreeMap<&'static str, Capabilities>,
    /// Addresses at which nobody listens.
    pub(super) dead: BTreeSet<String>,
    /// Schemes of fabrics that this machine does not have.
    pub(super) missing: BTreeSet<&'static str>,
    /// By connection index: address and whether it is open.
    pub(super) connections: Vec<(Address, bool)>,
    /// Whether `connect` succeeds by itself.
    pub(super) reachable: bool,
    /// Whether a registration becomes usable by itself.
    pub(super) registers: bool,
    /// Whether `disconnect` is followed by its event by itself.
    pub(super) disconnects: bool,
    pub(super) credits: usize,
    pub(super) sent: VecDeque<(ConnectionId, Vec<u8>)>,
    pub(super) inbox: VecDeque<Delivery>,
    pub(super) registered: Vec<Registered>,
    pub(super) deregistered: Vec<Key>,
    /// Rights of the registrations made.
    pub(super) accesses: Vec<Access>,
    /// How much memory may be pinned.
    pub(super) pinned_max: u64,
    /// Windows that are not gone.
    pub(super) windows: Vec<Opened>,
    pub(super) windows_max: usize,
    pub(super) windows_made: u32,
    /// Whether a window opens, and closes, by itself.
    pub(super) opens: bool,
    pub(super) closes: bool,
    pub(super) flushes: usize,
    pub(super) polls: usize,
}

/// The client's end.
#[derive(Clone)]
pub(super) struct FakeFabric {
    world: Rc<RefCell<World>>,
}

impl FakeFabric {
    pub(super) fn new(disconnect_revokes_access: bool) -> FakeFabric {
        let capabilities = Capabilities {
            maps_remote_memory: true,
            disconnect_revokes_access,
            memory_windows: false,
            streams: false,
        };
        FakeFabric {
            world: Rc::new(RefCell::new(World {
                capabilities,
                capabilities_of: BTreeMap::new(),
                dead: BTreeSet::new(),
                missing: BTreeSet::new(),
                connections: Vec::new(),
                reachable: true,
                registers: true,
                disconnects: true,
                credits: usize::MAX,
                sent: VecDeque::new(),
                inbox: VecDeque::new(),
                registered: Vec::new(),
                deregistered: Vec::with_capacity(1024),
                accesses: Vec::new(),
                pinned_max: u64::MAX,
                windows: Vec::with_capacity(64),
                windows_max: usize::MAX,
                windows_made: 0,
                opens: true,
                closes: true,
                flushes: 0,
                polls: 0,
            })),
        }
    }

    pub(super) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }
}

impl World {
    pub(super) fn capabilities_at(&self, connection: ConnectionId) -> Capabilities {
        let scheme = self.connections[connection.index as usize].0.scheme();
        self.capabilities_of.get(scheme).copied().unwrap_or(self.capabilities)
    }

    /// Addresses that were connected to since `from`, in order.
    pub(super) fn tried(&self, from: usize) -> Vec<String> {
        self.connections[from..].iter().map(|(address, _)| address.to_string()).collect()
    }

    /// The open connections to an address, oldest first.
    pub(super) fn open_to(&self, address: &str) -> Vec<ConnectionId> {
        let all = self.connections.iter().enumerate();
        all.filter(|(_, (to, open))| *open && to.to_string() == address)
            .map(|(index, _)| id(index))
            .collect()
    }

    pub(super) fn address(&self, connection: ConnectionId) -> String {
        self.connections[connection.index as usize].0.to_string()
    }

    /// Breaks a connection.
    pub(super) fn break_off(&mut self, connection: ConnectionId, reason: DisconnectReason) {
        let open = &mut self.connections[connection.index as usize].1;
        if std::mem::replace(open, false) {
            let event = Event::Disconnected { connection, reason };
            self.inbox.push_back(Delivery::Event(event));
            self.registered.retain(|registered| registered.connection != connection);
            self.windows.retain(|window| window.connection != connection);
        }
    }

    /// The fabric has closed a window.
    pub(super) fn closed(&mut self, connection: ConnectionId, key: Key) {
        self.windows.retain(|window| window.key != key);
        self.inbox.push_back(Delivery::Event(Event::Deregistered { connection, key }));
    }

    pub(super) fn deliver(&mut self, connection: ConnectionId, packet: &[u8]) {
        if self.connections[connection.index as usize].1 {
            self.inbox.push_back(Delivery::Message(connection, packet.to_vec()));
        }
    }
}

fn id(index: usize) -> ConnectionId {
    ConnectionId { index: index as u32, generation: 7 }
}

impl Fabric for FakeFabric {
    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        self.world().capabilities_at(connection)
    }

    fn listen(&mut self, _at: &Address) -> Result<(), FabricError> {
        Err(FabricError::Address("hosts do not listen".into()))
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let mut world = self.world();
        if world.missing.contains(to.scheme()) {
            return Err(FabricError::Missing("no such device".into()));
        }
        let connection = id(world.connections.len());
        let reachable = world.reachable && !world.dead.contains(&to.to_string());
        world.connections.push((to.clone(), reachable));
        world.inbox.push_back(Delivery::Event(if reachable {
            Event::Connected { connection }
        } else {
            Event::Disconnected { connection, reason: DisconnectReason::Unreachable }
        }));
        Ok(connection)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let mut world = self.world();
        if world.disconnects {
            world.break_off(connection, DisconnectReason::Local);
        }
    }

    fn peer(&self, _connection: ConnectionId) -> Option<PeerIdentity> {
        None
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
        let mut world = self.world();
        if !world.connections[connection.index as usize].1 {
            return Err(FabricError::NotConnected);
        }
        let (len_bytes, limit_bytes) = (memory.len() as u64, world.pinned_max);
        if len_bytes > limit_bytes {
            return Err(FabricError::LockedMemory { len_bytes, limit_bytes });
        }
        world.accesses.push(access);
        let key = Key(world.registered.len() as u32 + 1000 * (connection.index + 1));
        world.registered.push(Registered { connection, key, memory: Arc::clone(memory) });
        if world.registers {
            let event = Event::Registered { connection, key };
            world.inbox.push_back(Delivery::Event(event));
        }
        Ok(Registration { address: memory.base().addr() as u64, key })
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        let mut world = self.world();
        if !world.capabilities_at(connection).memory_windows {
            return Err(WindowError::Unsupported);
        }
        if !world.connections[connection.index as usize].1 {
            return Err(WindowError::NotConnected);
        }
        let registered = world.registered.iter().find(|registered| registered.key == base);
        let Some(memory) = registered.map(|registered| &registered.memory) else {
            return Err(WindowError::Range);
        };
        if offset + len_bytes > memory.len() as u64 {
            return Err(WindowError::Range);
        }
        let address = memory.base().addr() as u64 + offset;
        if world.windows.len() >= world.windows_max {
            return Err(WindowError::Full);
        }
        world.windows_made += 1;
        let key = Key(1 << 20 | world.windows_made);
        world.windows.push(Opened { connection, base, key, offset, len_bytes, access });
        if world.opens {
            let event = Event::Registered { connection, key };
            world.inbox.push_back(Delivery::Event(event));
        }
        Ok(Registration { address, key })
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        let mut world = self.world();
        world.deregistered.push(key);
        if world.windows.iter().any(|window| window.key == key) {
            if world.closes {
                world.closed(connection, key);
            }
            return;
        }
        world.registered.retain(|registered| registered.key != key);
        world.inbox.push_back(Delivery::Event(Event::Deregistered { connection, key }));
    }

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        let mut world = self.world();
        if !world.connections[connection.index as usize].1 {
            return Err(PostError::NotConnected);
        }
        if world.credits == 0 {
            return Err(PostError::Full);
        }
        world.credits -= 1;
        world.sent.push_back((connection, message.to_vec()));
        Ok(())
    }

    fn write(&mut self, _connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn read(&mut self, _connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        Err(Refused { error: PostError::NotConnected, transfer })
    }

    fn map(&mut self, _: ConnectionId, _: RemoteSlice, _: Access) -> Option<Slice> {
        None
    }

    fn flush(&mut self) {
        self.world().flushes += 1;
    }

    fn poll(&mut self, _now: Time, events: &mut Events) {
        let mut world = self.world();
        world.polls += 1;
        while let Some(delivery) = world.inbox.pop_front() {
            match delivery {
                Delivery::Event(event) => events.push(event),
                Delivery::Message(connection, bytes) => {
                    events.push_message(connection, bytes.len(), |room| {
                        room.copy_from_slice(&bytes);
                    });
                }
            }
        }
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
