//! One end of the fabric under test, and two ends that are polled in turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Event, Events, Fabric, Key, Registration,
    RemoteSlice, Transfer, TransferStatus,
};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;

use super::Provider;

/// How long anything may take before a case fails: long enough for a device under emulation.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An event that owns its message.
#[derive(Debug)]
pub enum Note {
    /// A peer connected.
    Accepted,
    /// The connection is usable.
    Connected,
    /// It ended.
    Disconnected(DisconnectReason),
    /// A message.
    Message(Vec<u8>),
    /// A registration is usable.
    Registered(Key),
    /// A registration is gone.
    Deregistered(Key),
    /// A transfer completed.
    Transferred {
        /// Its token.
        token: u64,
        /// Its memory.
        memory: Memory,
        /// How it ended.
        status: TransferStatus,
    },
}

/// A fabric and the events that its case has not looked at yet.
pub struct End<F: Fabric> {
    /// The fabric.
    pub fabric: F,
    /// Events in order, with their connection.
    pub notes: VecDeque<(ConnectionId, Note)>,
    events: Events,
}

impl<F: Fabric> End<F> {
    /// Wraps a fabric.
    pub fn new(fabric: F) -> End<F> {
        End { fabric, notes: VecDeque::new(), events: Events::with_capacity(1024, 1 << 20) }
    }

    /// Flushes and polls once; true if something happened.
    pub fn turn(&mut self) -> bool {
        self.fabric.flush();
        self.fabric.poll(Time::monotonic(), &mut self.events);
        let any = !self.events.is_empty();
        while let Some(event) = self.events.pop() {
            let noted = match event {
                Event::Accepted { connection, .. } => (connection, Note::Accepted),
                Event::Connected { connection } => (connection, Note::Connected),
                Event::Disconnected { connection, reason } => {
                    (connection, Note::Disconnected(reason))
                }
                Event::Message { connection, bytes } => {
                    (connection, Note::Message(self.events.message(bytes).to_vec()))
                }
                Event::Registered { connection, key } => (connection, Note::Registered(key)),
                Event::Deregistered { connection, key } => (connection, Note::Deregistered(key)),
                Event::Transferred { connection, token, memory, status } => {
                    (connection, Note::Transferred { token, memory, status })
                }
            };
            self.notes.push_back(noted);
        }
        self.events.clear();
        any
    }

    /// Takes the oldest note that `wanted` picks.
    pub fn take<T>(
        &mut self,
        mut wanted: impl FnMut(ConnectionId, &Note) -> Option<T>,
    ) -> Option<T> {
        let found = self
            .notes
            .iter()
            .enumerate()
            .find_map(|(at, (id, note))| wanted(*id, note).map(|value| (at, value)));
        found.map(|(at, value)| {
            self.notes.remove(at);
            value
        })
    }

    /// Takes the next message of `connection`.
    pub fn message(&mut self, connection: ConnectionId) -> Option<Vec<u8>> {
        self.take(|id, note| match note {
            Note::Message(bytes) if id == connection => Some(bytes.clone()),
            _ => None,
        })
    }

    /// Takes the end of `connection`.
    pub fn ended(&mut self, connection: ConnectionId) -> Option<DisconnectReason> {
        self.take(|id, note| match note {
            Note::Disconnected(reason) if id == connection => Some(*reason),
            _ => None,
        })
    }

    /// Takes the notice that a key of `connection` is usable.
    pub fn registered(&mut self, connection: ConnectionId, key: Key) -> Option<()> {
        self.take(|id, note| match note {
            Note::Registered(noted) if (id, *noted) == (connection, key) => Some(()),
            _ => None,
        })
    }

    /// Takes the notice that a key of `connection` is gone.
    pub fn deregistered(&mut self, connection: ConnectionId, key: Key) -> Option<()> {
        self.take(|id, note| match note {
            Note::Deregistered(noted) if (id, *noted) == (connection, key) => Some(()),
            _ => None,
        })
    }

    /// Takes the oldest completion: token, memory, status.
    pub fn completion(
        &mut self,
        connection: ConnectionId,
    ) -> Option<(u64, Memory, TransferStatus)> {
        let at = self
            .notes
            .iter()
            .position(|(id, note)| *id == connection && matches!(note, Note::Transferred { .. }))?;
        match self.notes.remove(at) {
            Some((_, Note::Transferred { token, memory, status })) => Some((token, memory, status)),
            _ => None,
        }
    }
}

/// Two ends with a connection between them: `left` connected to `right`.
pub struct Pair<F: Fabric> {
    /// The end that connected.
    pub left: End<F>,
    /// The end that accepted.
    pub right: End<F>,
    /// The connection at the left end.
    pub to_right: ConnectionId,
    /// The connection at the right end.
    pub to_left: ConnectionId,
    /// Where the right end listens.
    pub address: Address,
}

impl<F: Fabric> Pair<F> {
    /// Makes two fabrics and connects them.
    pub fn new(provider: &impl Provider<Fabric = F>) -> Pair<F> {
        Pair::of(provider, provider.fabric(), provider.fabric())
    }

    /// Connects `left` to `right`.
    pub fn of(provider: &impl Provider<Fabric = F>, left: F, mut right: F) -> Pair<F> {
        let address = provider.address();
        right.listen(&address).expect("the address is free");
        let (mut left, mut right) = (End::new(left), End::new(right));
        let (to_right, to_left) = connect(&mut left, &mut right, &address);
        Pair { left, right, to_right, to_left, address }
    }

    /// Polls both ends until `done` yields something.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut End<F>, &mut End<F>) -> Option<T>,
    ) -> T {
        until(what, &mut self.left, &mut self.right, |left, right| done(left, right))
    }

    /// Lets the left end register `memory`; usable when this returns.
    pub fn register_left(&mut self, memory: &Arc<Mapping>, access: Access) -> Registration {
        let to_right = self.to_right;
        let registration =
            self.left.fabric.register(to_right, memory, access).expect("registration");
        self.until("the registration", |left, _| left.registered(to_right, registration.key));
        registration
    }

    /// Makes another connection, which takes the place of the one known here.
    pub fn connect(&mut self) {
        let Pair { left, right, address, .. } = self;
        (self.to_right, self.to_left) = connect(left, right, address);
    }

    /// Posts a write or read by the right end that the left one's memory protection has to refuse:
    /// it completes so, and both ends are told that the connection is over. The memory is back.
    pub fn refused(&mut self, writes: bool, memory: Memory, remote: RemoteSlice) -> Memory {
        let (memory, status) = self.transfer(writes, memory, remote);
        assert_eq!(status, TransferStatus::AccessRefused, "writes {writes}: {remote:?}");
        self.both_ends_after_a_refusal();
        memory
    }

    /// Waits until both ends know that the connection is over because a transfer was refused.
    pub fn both_ends_after_a_refusal(&mut self) {
        let (to_right, to_left) = (self.to_right, self.to_left);
        let reason = self.until("the end at the poster", |_, right| right.ended(to_left));
        assert_eq!(reason, DisconnectReason::TransferRefused);
        let reason = self.until("the end at the owner", |left, _| left.ended(to_right));
        let told = [DisconnectReason::Protocol, DisconnectReason::PeerLost];
        assert!(told.contains(&reason), "the owner was told: {reason}");
    }

    /// Lets the left end open a window; usable when this returns.
    pub fn open_left(
        &mut self,
        base: Registration,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Registration {
        let to_right = self.to_right;
        let window = self
            .left
            .fabric
            .open_window(to_right, base.key, offset, len_bytes, access)
            .expect("a window");
        self.until("the window", |left, _| left.registered(to_right, window.key));
        window
    }

    /// Lets the left end take a key back, and waits until it is gone.
    pub fn close_left(&mut self, key: Key) {
        let to_right = self.to_right;
        self.left.fabric.deregister(to_right, key);
        self.until("the end of the key", |left, _| left.deregistered(to_right, key));
    }

    /// Posts a write or read by the right end and waits for its completion.
    pub fn transfer(
        &mut self,
        writes: bool,
        memory: Memory,
        remote: RemoteSlice,
    ) -> (Memory, TransferStatus) {
        let to_left = self.to_left;
        let transfer = Transfer { token: 0x7a11, memory, offset: 0, remote };
        let posted = if writes {
            self.right.fabric.write(to_left, transfer)
        } else {
            self.right.fabric.read(to_left, transfer)
        };
        posted.expect("an empty queue");
        let (token, memory, status) =
            self.until("a completion", |_, right| right.completion(to_left));
        assert_eq!(token, 0x7a11);
        (memory, status)
    }

    /// Sends, waiting for credits.
    pub fn send_right(&mut self, message: &[u8]) {
        let to_right = self.to_right;
        self.until("a credit", |left, _| left.fabric.send(to_right, message).ok());
    }
}

/// Polls two ends in turn until `done` yields something.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub fn until<F: Fabric, T>(
    what: &str,
    left: &mut End<F>,
    right: &mut End<F>,
    mut done: impl FnMut(&mut End<F>, &mut End<F>) -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done(left, right) {
            return value;
        }
        let any = left.turn() | right.turn();
        if !any {
            assert!(
                start.elapsed() < PATIENCE,
                "{what} did not happen; left: {:?}, right: {:?}",
                left.notes,
                right.notes
            );
            std::thread::yield_now();
        }
    }
}

/// Connects `left` to `right`, which listens at `address`; both ids.
pub fn connect<F: Fabric>(
    left: &mut End<F>,
    right: &mut End<F>,
    address: &Address,
) -> (ConnectionId, ConnectionId) {
    let to_right = left.fabric.connect(address).expect("room for a connection");
    let mut connected = false;
    let mut accepted = None;
    until("the connection", left, right, |left, right| {
        connected |= left
            .take(|id, note| match note {
                Note::Connected if id == to_right => Some(()),
                _ => None,
            })
            .is_some();
        accepted = accepted
            .or_else(|| right.take(|id, note| matches!(note, Note::Accepted).then_some(id)));
        accepted.filter(|_| connected)
    });
    (to_right, accepted.expect("accepted"))
}

/// A pseudo-random sequence that is the same in every run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// Bytes that tell `seed` and position.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| ((seed ^ at).wrapping_mul(0x9e37_79b9) >> 16) as u8).collect()
}

/// A buffer that holds `bytes` at its start.
#[must_use]
pub fn buffer_with(pool: &BufferPool, bytes: &[u8]) -> Memory {
    let mut buffer = pool.take().expect("a free buffer");
    buffer[..bytes.len()].copy_from_slice(bytes);
    Memory::Buffer(buffer)
}

/// The bytes of a mapping.
#[must_use]
pub fn content(mapping: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.len()];
    mapping.copy_out(0, &mut bytes);
    bytes
}
