//! One end of a fabric: the target's. The test plays all of its peers.
//!
//! Transfers and messages of a connection take effect in the order of posting: behind a transfer that
//! waits messages wait too, and behind one that fails they are lost.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, DisconnectReason, Event, Events, Fabric,
    FabricError, Key, PeerIdentity, PostError, Refused, Registration, RemoteSlice, Transfer,
    TransferStatus, WindowError,
};
use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

/// Something that reached a host's memory, or could have, or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    Map(ConnectionId),
    Write(ConnectionId),
    Read(ConnectionId),
    Send(ConnectionId),
}

struct Pending {
    connection: ConnectionId,
    transfer: Transfer,
    writes: bool,
}

/// What was posted and has not taken effect.
enum Queued {
    Transfer(Pending),
    Message(ConnectionId, Vec<u8>),
}

impl Queued {
    fn connection(&self) -> ConnectionId {
        match self {
            Queued::Transfer(one) => one.connection,
            Queued::Message(connection, _) => *connection,
        }
    }
}

#[derive(Default)]
struct Connection {
    open: bool,
    generation: u32,
    /// What arrived of what the target sent, packet by packet.
    sent: Vec<Vec<u8>>,
    registrations: HashMap<u32, (Arc<Mapping>, Access)>,
    /// Messages that may be sent before `Full`; `None`: any number.
    credits: Option<usize>,
}

enum Incoming {
    Event(Event),
    Message(ConnectionId, Vec<u8>),
}

pub struct World {
    pub maps: bool,
    /// Transfers wait for `complete_transfers`.
    pub hold_transfers: bool,
    /// A connection that the target ends lets its transfers complete when the test says so.
    pub linger: bool,
    /// Most transfers that may wait.
    pub transfers_max: usize,
    /// Packets are counted and not kept.
    pub discard: bool,
    pub discarded: usize,
    /// Memory that was made ready for the device, by its length.
    pub prepared: Vec<usize>,
    /// How many more mappings the device takes.
    pub prepares_left: usize,
    pub posts: Vec<Post>,
    pub connects: Vec<(Address, ConnectionId)>,
    pub disconnects: Vec<ConnectionId>,
    connections: Vec<Connection>,
    incoming: VecDeque<Incoming>,
    pending: VecDeque<Queued>,
    next_key: u32,
}

/// Where registrations begin, so that address 0 is none.
const ADDRESS: u64 = 0x10_0000;

#[derive(Clone)]
pub struct FakeFabric(pub Rc<RefCell<World>>);

impl FakeFabric {
    pub fn new(maps: bool) -> FakeFabric {
        FakeFabric(Rc::new(RefCell::new(World {
            maps,
            hold_transfers: false,
            linger: false,
            transfers_max: 64,
            discard: false,
            discarded: 0,
            prepared: Vec::new(),
            prepares_left: usize::MAX,
            posts: Vec::new(),
            connects: Vec::new(),
            disconnects: Vec::new(),
            connections: Vec::new(),
            incoming: VecDeque::new(),
            pending: VecDeque::new(),
            next_key: 1,
        })))
    }

    /// A peer connects to the target.
    pub fn accept(&self) -> ConnectionId {
        let mut world = self.0.borrow_mut();
        let connection = world.open();
        let peer = PeerIdentity::Network("peer".to_owned());
        world.incoming.push_back(Incoming::Event(Event::Accepted { connection, peer }));
        connection
    }

    /// The target's attempt to connect succeeds.
    pub fn connected(&self, connection: ConnectionId) {
        self.push(Event::Connected { connection });
    }

    pub fn push(&self, event: Event) {
        self.0.borrow_mut().incoming.push_back(Incoming::Event(event));
    }

    /// A peer sends a packet.
    pub fn deliver(&self, connection: ConnectionId, packet: &[u8]) {
        let mut world = self.0.borrow_mut();
        world.incoming.push_back(Incoming::Message(connection, packet.to_vec()));
    }

    /// A connection breaks: its transfers complete first.
    pub fn break_connection(&self, connection: ConnectionId, reason: DisconnectReason) {
        self.0.borrow_mut().end(connection, reason);
    }

    /// Lets all transfers that wait complete; returns their number.
    pub fn complete_transfers(&self) -> usize {
        self.complete_some(usize::MAX)
    }

    /// Lets up to `transfers` that wait complete, with the messages right behind them.
    pub fn complete_some(&self, transfers: usize) -> usize {
        let mut world = self.0.borrow_mut();
        let mut count = 0;
        while let Some(next) = world.pending.pop_front() {
            match next {
                Queued::Transfer(one) if count < transfers => {
                    count += 1;
                    world.execute(one);
                }
                Queued::Message(connection, packet) => {
                    world.connections[connection.index as usize].sent.push(packet);
                }
                transfer @ Queued::Transfer(_) => {
                    world.pending.push_front(transfer);
                    break;
                }
            }
        }
        count
    }

    pub fn transfers_waiting(&self) -> usize {
        self.0.borrow().transfers()
    }

    pub fn register_memory(
        &self,
        connection: ConnectionId,
        mapping: &Arc<Mapping>,
        access: Access,
    ) -> Registration {
        let mut world = self.0.borrow_mut();
        let key = world.next_key;
        world.next_key += 1;
        let registrations = &mut world.connections[connection.index as usize].registrations;
        registrations.insert(key, (Arc::clone(mapping), access));
        Registration { address: ADDRESS, key: Key(key) }
    }

    pub fn set_credits(&self, connection: ConnectionId, credits: Option<usize>) {
        self.0.borrow_mut().connections[connection.index as usize].credits = credits;
    }

    /// Takes the packets that the target sent on a connection.
    pub fn take_sent(&self, connection: ConnectionId) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.borrow_mut().connections[connection.index as usize].sent)
    }

    pub fn is_open(&self, connection: ConnectionId) -> bool {
        self.0.borrow().connections[connection.index as usize].open
    }
}

impl World {
    fn open(&mut self) -> ConnectionId {
        let index = self.connections.len() as u32;
        self.connections.push(Connection { open: true, generation: 1, ..Connection::default() });
        ConnectionId { index, generation: 1 }
    }

    fn is_open(&self, connection: ConnectionId) -> bool {
        self.connections
            .get(connection.index as usize)
            .is_some_and(|found| found.open && found.generation == connection.generation)
    }

    fn slice(
        &self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        let registrations = &self.connections[connection.index as usize].registrations;
        let (mapping, allowed) = registrations.get(&remote.key.0)?;
        if (access.remote_read && !allowed.remote_read)
            || (access.remote_write && !allowed.remote_write)
        {
            return None;
        }
        mapping.slice(remote.address.checked_sub(ADDRESS)?, remote.len_bytes.into())
    }

    fn transfers(&self) -> usize {
        self.pending.iter().filter(|queued| matches!(queued, Queued::Transfer(_))).count()
    }

    /// Ends a connection: its transfers complete as lost, its messages are lost.
    fn end(&mut self, connection: ConnectionId, reason: DisconnectReason) {
        for queued in std::mem::take(&mut self.pending) {
            match queued {
                other if other.connection() != connection => self.pending.push_back(other),
                Queued::Transfer(one) => self.transferred(one, TransferStatus::ConnectionLost),
                Queued::Message(..) => {}
            }
        }
        self.connections[connection.index as usize].open = false;
        let event = Event::Disconnected { connection, reason };
        self.incoming.push_back(Incoming::Event(event));
    }

    fn execute(&mut self, one: Pending) {
        let access = Access { remote_read: !one.writes, remote_write: one.writes };
        let Some(slice) = self.slice(one.connection, one.transfer.remote, access) else {
            let connection = one.connection;
            self.transferred(one, TransferStatus::AccessRefused);
            self.end(connection, DisconnectReason::TransferRefused);
            return;
        };
        let Pending { connection, mut transfer, writes } = one;
        let mut remote = Memory::Shared(slice);
        let len_bytes = transfer.remote.len_bytes as usize;
        if writes {
            transfer.memory.copy_to(transfer.offset, &mut remote, 0, len_bytes);
        } else {
            remote.copy_to(0, &mut transfer.memory, transfer.offset, len_bytes);
        }
        self.transferred(Pending { connection, transfer, writes }, TransferStatus::Done);
    }

    fn transferred(&mut self, one: Pending, status: TransferStatus) {
        let Pending { connection, transfer: Transfer { token, memory, .. }, .. } = one;
        let event = Event::Transferred { connection, token, memory, status };
        self.incoming.push_back(Incoming::Event(event));
    }

    fn post(&mut self, one: Pending) -> Result<(), Refused> {
        let error = if !self.is_open(one.connection) {
            Some(PostError::NotConnected)
        } else if self.transfers() >= self.transfers_max {
            Some(PostError::Full)
        } else if one.transfer.offset + one.transfer.remote.len_bytes as usize
            > one.transfer.memory.len()
        {
            Some(PostError::TooLong)
        } else {
            None
        };
        if let Some(error) = error {
            return Err(Refused { error, transfer: one.transfer });
        }
        let post =
            if one.writes { Post::Write(one.connection) } else { Post::Read(one.connection) };
        if !self.discard {
            self.posts.push(post);
        }
        if self.hold_transfers {
            self.pending.push_back(Queued::Transfer(one));
        } else {
            self.execute(one);
        }
        Ok(())
    }
}

impl Fabric for FakeFabric {
    fn capabilities(&self, _connection: ConnectionId) -> Capabilities {
        let maps = self.0.borrow().maps;
        Capabilities {
            maps_remote_memory: maps,
            disconnect_revokes_access: !maps,
            memory_windows: false,
            streams: false,
        }
    }

    fn listen(&mut self, _at: &Address) -> Result<(), FabricError> {
        Ok(())
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let mut world = self.0.borrow_mut();
        let connection = world.open();
        world.connects.push((to.clone(), connection));
        Ok(connection)
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        let was_open = self.0.borrow().is_open(connection);
        if was_open {
            self.0.borrow_mut().disconnects.push(connection);
            if self.0.borrow().linger {
                self.0.borrow_mut().connections[connection.index as usize].open = false;
                return;
            }
            self.break_connection(connection, DisconnectReason::Local);
        }
    }

    fn scheme(&self, _connection: ConnectionId) -> &'static str {
        "fake"
    }

    fn peer(&self, connection: ConnectionId) -> Option<PeerIdentity> {
        let is_open = self.0.borrow().is_open(connection);
        is_open.then(|| PeerIdentity::Network("peer".to_owned()))
    }

    fn prepare(&mut self, memory: &Arc<Mapping>) -> Result<(), FabricError> {
        let mut world = self.0.borrow_mut();
        let len_bytes = memory.len() as u64;
        if world.prepares_left == 0 {
            return Err(FabricError::LockedMemory { len_bytes, limit_bytes: 8 << 20 });
        }
        world.prepares_left -= 1;
        world.prepared.push(memory.len());
        Ok(())
    }

    fn register(
        &mut self,
        _connection: ConnectionId,
        _memory: &Arc<Mapping>,
        _access: Access,
    ) -> Result<Registration, FabricError> {
        Err(FabricError::Memory("a data server registers nothing"))
    }

    fn open_window(
        &mut self,
        _connection: ConnectionId,
        _base: Key,
        _offset: u64,
        _len_bytes: u64,
        _access: Access,
    ) -> Result<Registration, WindowError> {
        Err(WindowError::Unsupported)
    }

    fn deregister(&mut self, _connection: ConnectionId, _key: Key) {}

    fn send(&mut self, connection: ConnectionId, message: &[u8]) -> Result<(), PostError> {
        let mut world = self.0.borrow_mut();
        if !world.is_open(connection) {
            return Err(PostError::NotConnected);
        }
        if world.discard {
            world.discarded += message.len();
            return Ok(());
        }
        let found = &mut world.connections[connection.index as usize];
        match &mut found.credits {
            Some(0) => return Err(PostError::Full),
            Some(left) => *left -= 1,
            None => {}
        }
        world.posts.push(Post::Send(connection));
        if world.pending.iter().any(|queued| queued.connection() == connection) {
            world.pending.push_back(Queued::Message(connection, message.to_vec()));
        } else {
            world.connections[connection.index as usize].sent.push(message.to_vec());
        }
        Ok(())
    }

    fn write(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.0.borrow_mut().post(Pending { connection, transfer, writes: true })
    }

    fn read(&mut self, connection: ConnectionId, transfer: Transfer) -> Result<(), Refused> {
        self.0.borrow_mut().post(Pending { connection, transfer, writes: false })
    }

    fn map(
        &mut self,
        connection: ConnectionId,
        remote: RemoteSlice,
        access: Access,
    ) -> Option<Slice> {
        let mut world = self.0.borrow_mut();
        if !world.maps || !world.is_open(connection) {
            return None;
        }
        if !world.discard {
            world.posts.push(Post::Map(connection));
        }
        world.slice(connection, remote, access)
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _now: Time, events: &mut Events) {
        let mut world = self.0.borrow_mut();
        while let Some(incoming) = world.incoming.pop_front() {
            match incoming {
                Incoming::Event(event) => events.push(event),
                Incoming::Message(connection, packet) => {
                    if world.is_open(connection) {
                        events.push_message(connection, packet.len(), |into| {
                            into.copy_from_slice(&packet);
                        });
                    }
                }
            }
        }
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
