//! Where connections are accepted, and who gets a place in the table.
//!
//! The kernel says when somebody waits at a listener; a few are then taken in at a time, without
//! waiting, and the others stay in the kernel's queue until the next poll. Where the table or the
//! number of half-open connections is at its bound, a newcomer makes somebody go who did not say
//! anything yet. What the kernel still has of that one's memory is taken back before its place is
//! free, so the newcomer waits for it, one per listener, and those behind it in the kernel's queue.
//!
//! What goes wrong for want of something that comes back (descriptors, memory) makes a listener rest
//! for [`ACCEPT_PAUSE`]; so does what is not understood, which may be there to stay.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use gannet_runtime::time::Time;
use rustc_hash::FxHashMap;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::connection::{Connection, Handshake, State};
use super::fabric::TcpFabric;
use super::socket;
use super::wire::{GreetingKind, Refusal};
use crate::{Address, DisconnectReason, FabricError};

/// How long a listener rests that cannot accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Newcomers per listener and poll, or a small multiple of it.
const NEWCOMERS_AT_A_TIME: usize = 16;

/// Where connections are accepted.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    paused_until: Option<Time>,
    /// Waits for a place; nobody else is taken in meanwhile.
    newcomer: Option<Newcomer>,
}

/// A connection without a place.
struct Newcomer {
    socket: OwnedFd,
    peer: IpAddr,
    /// When its handshake has to be over.
    deadline: Time,
}

impl TcpFabric {
    pub(super) fn listen_at(&mut self, at: &Address) -> Result<(), FabricError> {
        let failed = |source| FabricError::System { what: format!("listening at {at}"), source };
        let address = socket::resolve(at)?.map_err(failed)?;
        let socket = socket::listen(address).map_err(failed)?;
        let number = self.listeners.len() as u32;
        self.ring.accept(number, socket.as_fd());
        self.listeners.push(Listener { socket, paused_until: None, newcomer: None });
        Ok(())
    }

    /// Somebody waits at a listener, or it cannot be asked whether.
    pub(super) fn accepted(&mut self, number: u32, result: i32) {
        match result {
            0.. => self.take_in(number),
            _ => self.pause(number, Errno::from_raw_os_error(-result)),
        }
    }

    /// Takes in those who wait at a listener, up to a few.
    fn take_in(&mut self, number: u32) {
        let Some(listener) = self.listeners.get(number as usize) else { return };
        debug_assert!(listener.newcomer.is_none(), "whoever waits for a place is the first");
        for _ in 0..NEWCOMERS_AT_A_TIME {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listeners[number as usize].socket, flags) {
                Ok(socket) => {
                    let Some((newcomer, displaced)) = self.receive(socket) else { continue };
                    if let Some(waits) = self.seat(newcomer) {
                        self.listeners[number as usize].newcomer = Some(waits);
                        self.newcomer_waits = true;
                        return;
                    }
                    if displaced {
                        // What this one has said already is heard before the next one displaces it.
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(error) if concerns_one_connection(error) => {}
                Err(error) => return self.pause(number, error),
            }
        }
        self.ring.accept(number, self.listeners[number as usize].socket.as_fd());
    }

    /// Lets a listener rest.
    fn pause(&mut self, number: u32, error: Errno) {
        if self.may_log_refusal() {
            tracing::warn!(%error, "no connection can be accepted: trying again every {ACCEPT_PAUSE:?}");
        }
        let Some(listener) = self.listeners.get_mut(number as usize) else { return };
        let until = self.now + ACCEPT_PAUSE;
        listener.paused_until = Some(until);
        self.watch_deadline(until);
    }

    /// Makes room for whoever just connected; whether somebody has to go for it. `None` if it is gone
    /// again.
    fn receive(&mut self, socket: OwnedFd) -> Option<(Newcomer, bool)> {
        let (peer, _) = socket::ends(&socket).ok()?;
        socket::configure(&socket, self.options.peer_timeout).ok()?;
        let displaced = self.make_room_for(peer);
        let deadline = self.now + self.options.handshake_timeout;
        Some((Newcomer { socket, peer, deadline }, displaced))
    }

    /// Gives a newcomer a place, or gives it back if one is about to be free.
    fn seat(&mut self, newcomer: Newcomer) -> Option<Newcomer> {
        let Newcomer { socket, peer, deadline } = newcomer;
        let Some(index) = self.slots.claim() else {
            if self.ending > 0 && self.now < deadline {
                self.watch_deadline(deadline);
                return Some(Newcomer { socket, peer, deadline });
            }
            self.turn_away(socket, peer);
            return None;
        };
        let mut connection = Connection::new(State::AwaitingHello, deadline);
        connection.peer = Some(peer);
        connection.socket = Some(socket);
        let welcome = self.greeting(GreetingKind::Welcome, Some(peer));
        connection.handshake = Some(Handshake::new(&welcome));
        self.slots.put(index, Box::new(connection));
        self.watch(index, deadline);
        self.await_greeting(index);
        None
    }

    fn turn_away(&mut self, socket: OwnedFd, peer: IpAddr) {
        self.log_refusal(Some(peer), "there is no room for another connection");
        let refusal = self.greeting(GreetingKind::Refused(Refusal::Full), Some(peer));
        // A fresh socket has room for it; if not, the peer learns of the end alone.
        let flags = rustix::net::SendFlags::NOSIGNAL;
        let _sent = rustix::net::send(&socket, &refusal.encode(), flags);
        self.turn_out(socket);
    }

    /// Gives places to those who wait for one, and goes on behind them.
    pub(super) fn seat_waiting(&mut self) {
        self.newcomer_waits = false;
        for number in 0..self.listeners.len() {
            let Some(newcomer) = self.listeners[number].newcomer.take() else { continue };
            // Somebody else may have had the place that it waited for.
            if self.slots.free() == 0 && self.ending == 0 {
                self.make_room_for(newcomer.peer);
            }
            if let Some(waits) = self.seat(newcomer) {
                self.listeners[number].newcomer = Some(waits);
                self.newcomer_waits = true;
            } else {
                // Behind what it may have said already.
                self.ring.accept(number as u32, self.listeners[number].socket.as_fd());
            }
        }
    }

    /// Where there are too many half-open connections, the oldest one of whoever has most of them
    /// goes. Whether one does.
    fn make_room_for(&mut self, newcomer: IpAddr) -> bool {
        let half_open = |index: &u32| {
            let connection = self.slots.at(*index)?;
            let waits = connection.state == State::AwaitingHello;
            Some((connection.peer?, connection.deadline?)).filter(|_| waits)
        };
        let waiting = self.timed.iter().filter(|index| half_open(index).is_some()).count();
        let last_place = self.slots.free() <= 1 && waiting > 0;
        if waiting < self.options.half_open_max && !last_place {
            return false;
        }
        let mut counts = FxHashMap::<IpAddr, usize>::default();
        counts.insert(newcomer, 1);
        for (peer, _) in self.timed.iter().filter_map(half_open) {
            *counts.entry(peer).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let oldest = self
            .timed
            .iter()
            .filter_map(|index| Some((*index, half_open(index)?)))
            .filter(|(_, (peer, _))| counts.get(peer) == Some(&most))
            .min_by_key(|(_, (_, deadline))| *deadline);
        if let Some((index, _)) = oldest {
            self.end(index, DisconnectReason::PeerLost);
        }
        oldest.is_some()
    }

    /// Goes on with listeners that have rested, and with newcomers who waited too long.
    pub(super) fn check_listeners(&mut self, now: Time) {
        for number in 0..self.listeners.len() {
            let listener = &mut self.listeners[number];
            let Some(until) = listener.paused_until else { continue };
            if now >= until {
                listener.paused_until = None;
                self.ring.accept(number as u32, listener.socket.as_fd());
            } else {
                self.watch_deadline(until);
            }
        }
        if self.newcomer_waits {
            self.seat_waiting();
        }
    }
}

/// Whether it says that somebody who was about to be accepted is gone: accept(2) hands on what became
/// of a connection meanwhile.
fn concerns_one_connection(error: Errno) -> bool {
    [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NONET,
        Errno::OPNOTSUPP,
    ]
    .contains(&error)
}
