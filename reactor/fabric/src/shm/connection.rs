//! One connection: its socket, its rings and its registrations.
//!
//! ```text
//! connector:  Dialling -> AwaitingWelcome -> Established -> Draining -> (ended)
//! acceptor:                AwaitingHello  -> Established -> Draining -> (ended)
//!                                      \-> Refused  -> (ended)
//! ```
//! `Draining` begins when the socket says that the peer is gone: what the peer had published is
//! still delivered, then the connection ends. A connection that this side ends, or that ends
//! before it was established, goes to `Ended` directly and waits there for its last event.
//! `Refused` begins with a transfer of this side that key, range or rights do not allow, and lasts
//! until the next poll tells the user: what is posted meanwhile has no effect.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gannet_runtime::memory::Mapping;
use gannet_runtime::time::Time;
use gannet_runtime::wake::SleepFlag;

use super::control::Control;
use super::layout::{
    CLOSED_NOT, CLOSED_ORDERLY, CLOSED_REFUSED, CLOSED_VIOLATION, SharedMemory, Side, SideWords,
};
use super::regions::{LocalRegions, RemoteRegions};
use super::ring::{Receiver, Sender, Violation};
use super::socket::{self, Sent};
use crate::{DisconnectReason, PeerIdentity};

/// Where a connection is in its life.
#[derive(Debug)]
pub(crate) enum State {
    /// The listener's queue was full; dials again.
    Dialling {
        /// Where to.
        path: PathBuf,
    },
    /// Has sent the greeting.
    AwaitingWelcome,
    /// Was accepted; the user does not know it yet.
    AwaitingHello,
    /// Usable.
    Established,
    /// The peer is gone; at most `left` more ring entries are delivered.
    Draining {
        /// What the last event will say.
        reason: DisconnectReason,
        /// Bounds what a hostile peer can publish after its end.
        left: u32,
    },
    /// A transfer of this side was refused; the next poll ends the connection.
    Refused,
    /// The last event is queued.
    Ended,
}

/// The shared memory of a connection, with both rings.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) memory: SharedMemory,
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    side: Side,
}

impl Link {
    pub(crate) fn new(memory: SharedMemory, side: Side) -> Link {
        let sender = Sender::new(&memory, side);
        let receiver = Receiver::new(&memory, side);
        Link { memory, sender, receiver, side }
    }

    fn own_words(&self) -> &SideWords {
        self.memory.side(self.side)
    }

    fn peer_words(&self) -> &SideWords {
        self.memory.side(self.side.other())
    }

    /// Asks the peer for a signal; a look at the rings has to follow.
    pub(crate) fn arm(&self) {
        SleepFlag::new(&self.own_words().flags.sleeping).arm();
    }

    /// Takes back [`Link::arm`].
    pub(crate) fn disarm(&self) {
        SleepFlag::new(&self.own_words().flags.sleeping).disarm();
    }

    /// Whether the peer sleeps and this caller has to signal it, asked after publishing.
    #[inline]
    fn must_signal(&self) -> bool {
        SleepFlag::new(&self.peer_words().flags.sleeping).must_signal()
    }

    /// Tells the peer how this side ends. Release: after everything this side published.
    fn close(&self, how: u32) {
        self.own_words().flags.closed.store(how, Ordering::Release);
    }

    /// How the peer ended, once its socket has. A peer whose transfer was refused used a key that
    /// this side did not give it, or not for that.
    fn peer_ended(&self) -> DisconnectReason {
        match self.peer_words().flags.closed.load(Ordering::Acquire) {
            CLOSED_NOT => DisconnectReason::PeerLost,
            CLOSED_ORDERLY => DisconnectReason::Remote,
            // CLOSED_VIOLATION, CLOSED_REFUSED, and what no peer of ours writes.
            _ => DisconnectReason::Protocol,
        }
    }
}

/// A control message that the socket did not take yet.
#[derive(Debug)]
struct Unsent {
    control: Control,
    /// Whose descriptor goes with it.
    memory: Option<Arc<Mapping>>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Present in `AwaitingWelcome`, `Established` and `Draining`.
    pub(crate) link: Option<Link>,
    pub(crate) state: State,
    /// Something was sent since the last flush.
    pub(crate) dirty: bool,
    /// The peer broke the rules; the next poll ends the connection.
    pub(crate) fault: bool,
    /// When an unfinished handshake is given up; unset until the first poll sees it.
    pub(crate) deadline: Option<Time>,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) peer: Option<PeerIdentity>,
    pub(crate) local: LocalRegions,
    pub(crate) remote: RemoteRegions,
    unsent: VecDeque<Unsent>,
    /// Whether the socket is watched for room.
    pub(crate) watched_for_room: bool,
}

impl Connection {
    pub(crate) fn new(state: State) -> Connection {
        Connection {
            link: None,
            state,
            dirty: false,
            fault: false,
            deadline: None,
            socket: None,
            peer: None,
            local: LocalRegions::default(),
            remote: RemoteRegions::default(),
            unsent: VecDeque::new(),
            watched_for_room: false,
        }
    }

    /// Sends a control message, after those that wait; a message that the socket does not take is
    /// kept. More than `unsent_max` waiting means a peer that asks without reading the answers.
    pub(crate) fn send_control(
        &mut self,
        control: Control,
        memory: Option<&Arc<Mapping>>,
        unsent_max: usize,
    ) -> Result<(), Violation> {
        let Some(socket) = &self.socket else { return Ok(()) };
        if self.unsent.is_empty() {
            let file = memory.and_then(|memory| memory.file());
            match socket::send(socket, control, file) {
                Sent::Done => {
                    if let (Some(link), State::Established) = (&mut self.link, &self.state) {
                        link.sender.kick(&link.memory);
                    }
                    return Ok(());
                }
                // Its end of file will be read.
                Sent::Gone => return Ok(()),
                Sent::Later => {}
            }
        }
        if self.unsent.len() >= unsent_max {
            return Err(Violation);
        }
        self.unsent.push_back(Unsent { control, memory: memory.map(Arc::clone) });
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn send_unsent(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(next) = self.unsent.front() {
            // The greeting carries the connection's own memory.
            let file = match (&next.memory, next.control) {
                (Some(memory), _) => memory.file(),
                (None, Control::Hello { .. }) => {
                    self.link.as_ref().and_then(|link| link.memory.file())
                }
                (None, _) => None,
            };
            match socket::send(socket, next.control, file) {
                Sent::Done => drop(self.unsent.pop_front()),
                Sent::Gone => self.unsent.clear(),
                Sent::Later => return,
            }
        }
    }

    /// Sends the greeting. The link has been made.
    pub(crate) fn send_hello(&mut self) {
        let (Some(link), Some(socket)) = (&self.link, &self.socket) else { return };
        let geometry = link.memory.geometry();
        let memory_bytes = geometry.memory_bytes() as u64;
        let hello = Control::Hello { geometry, memory_bytes };
        let file = link.memory.file();
        if socket::send(socket, hello, file) == Sent::Later {
            self.unsent.push_back(Unsent { control: hello, memory: None });
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Wakes the peer if it sleeps. Called after publishing, once per turn.
    #[inline]
    pub(crate) fn ring_doorbell(&mut self) {
        if self.link.as_ref().is_some_and(Link::must_signal) {
            self.send_wake();
        }
    }

    #[cold]
    fn send_wake(&mut self) {
        let Some(socket) = &self.socket else { return };
        // A full queue means that the peer has something to read and does not sleep; but the
        // kernel may also be short of memory, so the signal is kept.
        if socket::send(socket, Control::Wake, None) == Sent::Later
            && self.unsent.iter().all(|unsent| unsent.control != Control::Wake)
        {
            self.unsent.push_back(Unsent { control: Control::Wake, memory: None });
        }
    }

    /// The socket is at its end: what the peer had published remains to be delivered.
    pub(crate) fn drain(&mut self) {
        let Some(link) = &self.link else { return };
        let (reason, left) = (link.peer_ended(), link.memory.geometry().ring_slots);
        self.state = State::Draining { reason, left };
        self.socket = None;
        self.unsent.clear();
    }

    /// Closes in order: the peer delivers what was sent and reports that this side closed.
    pub(crate) fn close_orderly(&mut self) {
        self.close(CLOSED_ORDERLY);
    }

    /// Closes because the peer broke the rules.
    pub(crate) fn close_violated(&mut self) {
        self.close(CLOSED_VIOLATION);
    }

    /// Closes because a transfer of this side was refused: the peer delivers what was sent before.
    pub(crate) fn close_refused(&mut self) {
        self.close(CLOSED_REFUSED);
        self.state = State::Refused;
    }

    fn close(&mut self, how: u32) {
        if let (Some(link), State::Established) = (&mut self.link, &self.state) {
            link.close(how);
            self.socket = None;
            link.sender.kick(&link.memory);
        }
        self.socket = None;
    }
}
