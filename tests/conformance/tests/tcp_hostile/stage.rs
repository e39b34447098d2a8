//! A server, a peer of it that does nothing wrong and is served all the time, and room for others.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::{
    End, Note, PATIENCE, buffer_with, connect, content, pattern, until,
};
use gannet_fabric::tcp::{TcpFabric, TcpOptions};
use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Fabric, Registration, RemoteSlice, Transfer,
    TransferStatus,
};
use gannet_runtime::memory::{Mapping, Memory, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;

use crate::bytes::{WELCOME, hello};
use crate::peer::RawPeer;

/// Ports below those that the kernel gives to connections, where nobody listens by chance.
const PORTS: std::ops::Range<u16> = 10_000..30_000;
/// The longest that one round with the good peer may take, whatever others do: hundreds of times as
/// long as it takes on an idle machine, which tests do not have.
const SERVED_WITHIN: Duration = Duration::from_secs(3);
/// Bytes of a transfer with the good peer.
const TRANSFER_BYTES: usize = 4 * PAGE_BYTES;

static TURN: RwLock<()> = RwLock::new(());

/// Held by a test that runs beside others.
pub(crate) fn together() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that measures the process.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// A port at which nobody listens.
pub(crate) fn free_port() -> u16 {
    static NUMBER: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let start = std::process::id() as u16;
        let port = PORTS.start + start.wrapping_mul(13).wrapping_add(number) % PORTS.len() as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn address_of(port: u16) -> Address {
    Address::Tcp { host: "127.0.0.1".to_owned(), port }
}

/// How far the round with the good peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Its message is awaited by the server.
    Asked,
    /// The server's write into its memory, and the message behind it.
    Written,
    /// The server's read of its memory.
    Read,
    /// Its own write into the server's memory.
    WrittenBack,
}

/// The good peer.
struct Good {
    end: End<TcpFabric>,
    to_server: ConnectionId,
    /// Its memory, and how the server names it.
    memory: Arc<Mapping>,
    at: Registration,
    /// The server's memory, and how this peer names it.
    back: Arc<Mapping>,
    back_at: Registration,
    pool: BufferPool,
    step: Step,
    round: u64,
    since: Instant,
    slowest: Duration,
}

/// A server with its peers.
pub(crate) struct Stage {
    pub(crate) server: End<TcpFabric>,
    pub(crate) port: u16,
    to_good: ConnectionId,
    good: Good,
    server_pool: BufferPool,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage::with(TcpOptions::default())
    }

    pub(crate) fn with(options: TcpOptions) -> Stage {
        let mut fabric = TcpFabric::new(options).expect("a fabric");
        let port = free_port();
        fabric.listen(&address_of(port)).expect("a free address");
        let mut server = End::new(fabric);
        let mut end = End::new(TcpFabric::new(TcpOptions::default()).expect("a fabric"));
        let (to_server, to_good) = connect(&mut end, &mut server, &address_of(port));
        let memory = Mapping::shareable(TRANSFER_BYTES).expect("memory");
        let back = Mapping::shareable(TRANSFER_BYTES).expect("memory");
        let at = end.fabric.register(to_server, &memory, Access::READ_WRITE).expect("room");
        let back_at = server.fabric.register(to_good, &back, Access::READ_WRITE).expect("room");
        until("registrations", &mut end, &mut server, |end, _| end.registered(to_server, at.key));
        until("registrations", &mut end, &mut server, |_, server| {
            server.registered(to_good, back_at.key)
        });
        let pool = BufferPool::new(TRANSFER_BYTES, 2).expect("memory");
        let server_pool = BufferPool::new(TRANSFER_BYTES, 2).expect("memory");
        let good = Good {
            end,
            to_server,
            memory,
            at,
            back,
            back_at,
            pool,
            step: Step::Asked,
            round: 0,
            since: Instant::now(),
            slowest: Duration::ZERO,
        };
        let mut stage = Stage { server, port, to_good, good, server_pool };
        stage.ask();
        stage.serve();
        stage
    }

    /// The good peer begins a round.
    fn ask(&mut self) {
        let Good { end, to_server, round, step, since, .. } = &mut self.good;
        *round += 1;
        (*step, *since) = (Step::Asked, Instant::now());
        end.fabric.send(*to_server, &round.to_le_bytes()).expect("credits come back");
    }

    fn transfer(memory: Memory, at: Registration) -> Transfer {
        let len_bytes = TRANSFER_BYTES as u32;
        let remote = RemoteSlice { address: at.address, key: at.key, len_bytes };
        Transfer { token: 1, memory, offset: 0, remote }
    }

    /// Polls the server and the good peer once, and goes on with what they do.
    ///
    /// # Panics
    /// If the good peer is not served in time, or wrongly.
    pub(crate) fn turn(&mut self) -> bool {
        let any = self.server.turn() | self.good.end.turn();
        let (to_good, to_server) = (self.to_good, self.good.to_server);
        let (at, back_at, round) = (self.good.at, self.good.back_at, self.good.round);
        let bytes = |step: u64| pattern(round * 4 + step, TRANSFER_BYTES);
        match self.good.step {
            Step::Asked => {
                if let Some(message) = self.server.message(to_good) {
                    assert_eq!(message, round.to_le_bytes());
                    let memory = buffer_with(&self.server_pool, &bytes(1));
                    let write = Stage::transfer(memory, at);
                    self.server.fabric.write(to_good, write).expect("an empty queue");
                    self.server.fabric.send(to_good, &message).expect("credits come back");
                    self.good.step = Step::Written;
                }
            }
            Step::Written => {
                if let Some(message) = self.good.end.message(to_server) {
                    assert_eq!(message, round.to_le_bytes());
                    assert!(content(&self.good.memory) == bytes(1), "written before it was said");
                    self.good.memory.copy_in(0, &bytes(2));
                    let memory = Memory::Buffer(self.server_pool.take().expect("a buffer"));
                    let read = Stage::transfer(memory, at);
                    self.server.fabric.read(to_good, read).expect("room");
                    self.good.step = Step::Read;
                }
            }
            Step::Read => {
                // The write's, then the read's.
                while let Some((_, memory, status)) = self.server.completion(to_good) {
                    assert_eq!(status, TransferStatus::Done);
                    let buffer = memory.into_buffer().expect("a buffer");
                    if buffer[..] == bytes(2)[..] {
                        let memory = buffer_with(&self.good.pool, &bytes(3));
                        let write = Stage::transfer(memory, back_at);
                        self.good.end.fabric.write(to_server, write).expect("an empty queue");
                        self.good.step = Step::WrittenBack;
                    } else {
                        assert!(buffer[..] == bytes(1)[..], "what was read is what was there");
                    }
                }
            }
            Step::WrittenBack => {
                if let Some((_, _, status)) = self.good.end.completion(to_server) {
                    assert_eq!(status, TransferStatus::Done);
                    assert!(content(&self.good.back) == bytes(3));
                    self.good.slowest = self.good.slowest.max(self.good.since.elapsed());
                    self.ask();
                }
            }
        }
        let waits = self.good.since.elapsed();
        assert!(
            waits < SERVED_WITHIN,
            "the good peer waits for {waits:?} at {:?}; it: {:?}",
            self.good.step,
            self.good.end.notes
        );
        any
    }

    /// Rounds with the good peer, and the longest that one took so far.
    pub(crate) fn served(&self) -> (u64, Duration) {
        (self.good.round - 1, self.good.slowest)
    }

    /// The good peer's round that is under way comes to its end, and another whole one.
    pub(crate) fn serve(&mut self) {
        let whole = self.good.round + 2;
        while self.good.round < whole {
            self.turn();
        }
    }

    pub(crate) fn turns(&mut self, duration: Duration) {
        let start = Instant::now();
        while start.elapsed() < duration {
            self.turn();
        }
    }

    /// Polls until `done` yields something.
    ///
    /// # Panics
    /// If it does not for long.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut End<TcpFabric>) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = done(&mut self.server) {
                return value;
            }
            self.turn();
            let notes = &self.server.notes;
            assert!(start.elapsed() < PATIENCE / 4, "{what} did not happen; server: {notes:?}");
        }
    }

    /// Polls until the connection ends; why.
    pub(crate) fn end_of(&mut self, id: ConnectionId) -> DisconnectReason {
        self.until("the end", |server| server.ended(id))
    }

    /// A peer that completed the handshake.
    pub(crate) fn establish(&mut self) -> RawPeer {
        self.establish_with(&hello())
    }

    /// The same, with a hello of its own.
    pub(crate) fn establish_with(&mut self, hello: &[u8]) -> RawPeer {
        let mut peer = RawPeer::dial(self.port);
        self.say(&mut peer, hello);
        peer.id = Some(self.accepted());
        self.until("a welcome", |_| {
            peer.listen();
            peer.greeting()
        });
        assert_eq!(peer.greeting(), Some(WELCOME));
        peer
    }

    /// The connection that was accepted.
    pub(crate) fn accepted(&mut self) -> ConnectionId {
        self.until("a connection", |server| {
            server.take(|id, note| matches!(note, Note::Accepted).then_some(id))
        })
    }

    /// Lets a peer say all of it, or as much as there is until its stream is over.
    pub(crate) fn say(&mut self, peer: &mut RawPeer, bytes: &[u8]) {
        let mut rest = bytes;
        let start = Instant::now();
        while !rest.is_empty() && !peer.over {
            let said = peer.say(rest);
            rest = &rest[said..];
            if said == 0 {
                self.turn();
            }
            assert!(start.elapsed() < PATIENCE / 4, "{} bytes are not taken", rest.len());
        }
    }

    /// Lets a peer hear until its stream is over.
    pub(crate) fn hear_out(&mut self, peer: &mut RawPeer) {
        self.until("the end of the stream", |_| {
            peer.listen();
            peer.over.then_some(())
        });
    }

    /// Nothing is left of the hostile ones, and the good peer is served still; so is a new one.
    ///
    /// # Panics
    /// If something is left.
    pub(crate) fn finish(mut self) {
        self.until("nobody but the good peer", |server| {
            (server.fabric.connections() == 1).then_some(())
        });
        let of_others: Vec<_> =
            self.server.notes.iter().filter(|(id, _)| *id != self.to_good).collect();
        assert!(of_others.is_empty(), "{of_others:?}");
        self.serve();
        let mut peer = self.establish();
        self.say(&mut peer, &crate::bytes::Frame::new(0).message(b"hello?").goodbye().bytes());
        let id = peer.id.expect("established");
        let message = self.until("a message", |server| server.message(id));
        assert_eq!(message, b"hello?");
        assert_eq!(self.end_of(id), DisconnectReason::Remote);
        self.serve();
    }
}
