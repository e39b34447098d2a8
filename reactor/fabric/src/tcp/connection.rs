//! One connection.
//!
//! ```text
//! connector:  Connecting -> AwaitingAnswer -> Established -> Closing -> Parting -> Ending -> Over
//! acceptor:                 AwaitingHello  -> Established -> Closing -> Parting -> Ending -> Over
//! ```
//! `Closing`: this side ends the connection in order; what was posted is sent, with a last entry
//! behind it, and the transfers under way complete. `Parting`: the peer ended it in order, and is sent
//! what it is owed; nothing more is received. Either may be left out. `Ending`: what the kernel still
//! has of the connection's memory is taken back. `Over`: the event that says so is on its way; the
//! socket may outlive the connection ([`super::leaving`]).

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gannet_runtime::time::Time;

use super::TcpOptions;
use super::held::Held;
use super::incoming::{Incoming, Landing, Next};
use super::outgoing::{Outgoing, OutgoingLimits};
use super::regions::Regions;
use super::socket::SocketAddress;
use super::transfers::Transfers;
use super::wire::{Entry, GREETING_BYTES, Greeting, Violation};
use crate::credits::{Class, Credits, Messages};
use crate::{ConnectionId, DisconnectReason, Events, RemoteSlice, Transfer};

/// Writes that were placed after which it is said without waiting for something else to say.
const PLACED_UNSAID_MAX: u32 = 64;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    AwaitingAnswer,
    AwaitingHello,
    Established,
    Closing(DisconnectReason),
    Parting(DisconnectReason),
    Ending(DisconnectReason),
    Over,
}

/// What only a connection in set-up needs.
pub(super) struct Handshake {
    /// Where to, while connecting.
    pub(super) address: Option<SocketAddress>,
    /// The peer's greeting, as far as it is there.
    pub(super) theirs: [u8; GREETING_BYTES],
    pub(super) arrived: usize,
    /// This side's.
    pub(super) ours: [u8; GREETING_BYTES],
    pub(super) vectors: [super::ring::Vectors; 2],
}

/// What only an established connection has.
pub(super) struct Link {
    pub(super) credits: Credits,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) held: Held,
    pub(super) transfers: Transfers,
    pub(super) regions: Regions,
    /// Writes of the peer that were placed, and how many of them it was told of.
    placed: u32,
    placed_said: u32,
    /// The last frame ended with a write: with nothing behind it, the peer waits to hear of it.
    awaited: bool,
    /// Transfers of the peer that were handled.
    handled: u32,
    /// Answers to reads that the peer may have outstanding.
    served_max: usize,
    /// Keys that were taken back while an answer to a read by them was being sent, and until when it
    /// may take.
    pub(super) leaving: Vec<(u32, Time)>,
    /// The kernel has this side's greeting still.
    pub(super) greeting_under_way: bool,
    /// Keys that just ended.
    ended: Vec<u32>,
    /// The transfer that the peer refused.
    pub(super) refused: Option<u32>,
}

/// Why a connection ends on account of what arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer broke the rules.
    Violation(Violation),
    /// The peer used a key that does not permit it. It is to be told, with the transfer's number.
    Refusal(u32),
    /// The peer refused a transfer of this side.
    Refused,
    /// The peer ends it in order.
    Goodbye,
}

impl Link {
    /// What a connection is from the greetings on.
    pub(super) fn new(options: &TcpOptions, peer: &Greeting) -> Link {
        let granted = Messages { small: options.small_credits, large: options.large_credits };
        // The peer may grant more than this side wants to keep room for.
        let messages = Messages {
            small: peer.small_credits.min(granted.small),
            large: peer.large_credits.min(granted.large),
        };
        let mut credits = Credits::new(granted);
        // A peer that keeps to the same rule uses no more than the less of the two.
        credits.return_at_half_of(messages);
        credits.begin(messages);
        let checksums = options.payload_checksums || peer.payload_checksums;
        let transfers = options.transfers_max.min(peer.transfers_max.into());
        let served = options.transfers_max;
        let limits = OutgoingLimits { messages, transfers, served };
        Link {
            credits,
            incoming: Incoming::new(checksums),
            outgoing: Outgoing::new(limits, checksums),
            held: Held::new(limits),
            transfers: Transfers::new(transfers),
            regions: Regions::default(),
            placed: 0,
            placed_said: 0,
            awaited: false,
            handled: 0,
            served_max: served,
            leaving: Vec::with_capacity(16),
            greeting_under_way: false,
            ended: Vec::with_capacity(16),
            refused: None,
        }
    }

    /// Whether so much is to be said that it should not wait for something else to say.
    #[inline]
    pub(super) fn should_answer(&self) -> bool {
        let unsaid = self.placed.wrapping_sub(self.placed_said);
        let many = PLACED_UNSAID_MAX.min((self.served_max as u32 / 4).max(1));
        unsaid >= many || self.awaited || self.credits.should_return()
    }

    /// Whether the peer waits to hear of writes that were placed.
    #[inline]
    pub(super) fn owes_answer(&self) -> bool {
        self.placed != self.placed_said
    }

    /// Writes of the peer that were placed.
    pub(super) fn placed(&self) -> u32 {
        self.placed
    }

    /// Posts a message, which has its credit. Whether there is something to be sent for it now.
    #[inline]
    pub(super) fn post_message(&mut self, message: &[u8]) -> bool {
        let goes = self.held.is_empty();
        if goes {
            self.outgoing.push_message(message);
        } else {
            self.held.push_message(message);
        }
        goes
    }

    /// Posts a write or read, whose local range was checked and for which there is room. Whether there
    /// is something to be sent for it now.
    #[inline]
    pub(super) fn post_transfer(&mut self, transfer: Transfer, writes: bool) -> bool {
        let Link { held, outgoing, transfers, .. } = self;
        let (remote, number) = (transfer.remote, transfers.next_number());
        let goes = held.is_empty() && !(writes && transfers.is_read(number, remote));
        let start = transfers.push(transfer, writes);
        match (goes, writes) {
            (true, true) => outgoing.push_write(start, remote),
            (true, false) => outgoing.push_read(remote),
            (false, true) => held.push_write(start, remote, number),
            (false, false) => held.push_read(remote),
        }
        goes
    }

    /// What is to be sent, closed for the kernel.
    #[inline]
    pub(super) fn launch(&mut self) -> &mut super::ring::Vectors {
        self.placed_said = self.placed;
        self.awaited = false;
        let returned = self.credits.take_owed();
        self.outgoing.launch(self.placed, returned)
    }

    /// Messages that the peer cannot have returned anything for.
    #[inline]
    fn unsent(&self) -> Messages {
        let (open, held) = (self.outgoing.open_messages(), self.held.messages());
        Messages { small: open.small + held.small, large: open.large + held.large }
    }

    /// Handles what arrived, until more has to arrive. Messages are delivered unless the connection is
    /// closing, when writes of the peer have no effect either.
    ///
    /// # Errors
    /// Why the connection ends.
    #[inline]
    pub(super) fn handle(
        &mut self,
        id: ConnectionId,
        closing: bool,
        events: &mut Events,
    ) -> Result<(), End> {
        loop {
            if let Some(header) = self.incoming.begin_frame().map_err(End::Violation)? {
                let returned =
                    Messages { small: header.small_returned, large: header.large_returned };
                let overdrawn = Violation("it returns credits that it never had");
                let taken = self.credits.returned(returned, self.unsent());
                taken.map_err(|_| End::Violation(overdrawn))?;
                let sent = self.outgoing.writes_sent;
                self.transfers.placed(header.writes_placed, sent).map_err(End::Violation)?;
                let Link { incoming, transfers, regions, outgoing, .. } = self;
                let launched = outgoing.reads_launched;
                let place = |entry| match entry {
                    Entry::Write { .. } if closing => Ok(Landing::nowhere()),
                    Entry::Write { remote, .. } => Ok(match regions.resolve(remote, true) {
                        Some((start, memory)) => Landing::write(remote.key.0, start, memory),
                        None => Landing::refused(),
                    }),
                    Entry::ReadAnswer { len_bytes, .. } => {
                        Ok(Landing::answer(transfers.answer(len_bytes, launched)?))
                    }
                    _ => Ok(Landing::nowhere()),
                };
                incoming.place_payload(header, place).map_err(End::Violation)?;
            }
            if !self.incoming.in_frame() {
                return Ok(());
            }
            self.entries(id, closing, events)?;
            if self.incoming.in_frame() {
                return Ok(());
            }
        }
    }

    /// Handles entries of the open frame, as far as they are there.
    #[inline]
    fn entries(&mut self, id: ConnectionId, closing: bool, events: &mut Events) -> Result<(), End> {
        loop {
            let (entry, at) = match self.incoming.next().map_err(End::Violation)? {
                Next::Entry(entry, at) => (entry, at),
                Next::Nothing => return Ok(()),
                Next::Refused => return Err(End::Refusal(self.handled)),
            };
            match entry {
                Entry::Message { len_bytes } => {
                    let len_bytes = usize::from(len_bytes);
                    let overdrawn = Violation("it sends messages without credits");
                    let class = Class::of(len_bytes);
                    self.credits.received(class).map_err(|_| End::Violation(overdrawn))?;
                    if !closing {
                        let message = self.incoming.message(at, len_bytes);
                        events.push_message(id, len_bytes, |into| into.copy_from_slice(message));
                    }
                }
                Entry::Write { .. } => {
                    self.handled = self.handled.wrapping_add(1);
                    if !closing {
                        self.placed = self.placed.wrapping_add(1);
                        self.awaited = self.incoming.at_last_entry();
                    }
                }
                Entry::Read { .. } if closing => {}
                Entry::Read { remote } => self.serve(remote)?,
                Entry::ReadAnswer { .. } => {
                    self.transfers.answered();
                    if !self.held.is_empty() {
                        let Link { held, outgoing, transfers, .. } = self;
                        held.release(outgoing, |number, remote| transfers.is_read(number, remote));
                    }
                }
                Entry::Refused { transfer } => {
                    if !self.transfers.has(transfer) {
                        let what = "it refuses a transfer that is not under way";
                        return Err(End::Violation(Violation(what)));
                    }
                    self.refused = Some(transfer);
                    return Err(End::Refused);
                }
                Entry::Goodbye => return Err(End::Goodbye),
            }
        }
    }

    fn serve(&mut self, remote: RemoteSlice) -> Result<(), End> {
        if self.outgoing.serving() >= self.served_max {
            return Err(End::Violation(Violation("it reads more at a time than was agreed")));
        }
        if remote.len_bytes == 0 {
            self.outgoing.push_answer(std::ptr::null_mut(), 0, None);
        } else {
            let found = self.regions.resolve(remote, false);
            let (start, memory) = found.ok_or(End::Refusal(self.handled))?;
            let served = Some((remote.key.0, Arc::clone(memory)));
            self.outgoing.push_answer(start, remote.len_bytes, served);
        }
        self.handled = self.handled.wrapping_add(1);
        Ok(())
    }

    /// What the kernel is to be asked for next.
    #[inline]
    pub(super) fn request(&mut self, sink: &mut [u8]) -> (&mut super::ring::Vectors, bool) {
        self.incoming.request(sink)
    }

    /// Takes a key back, with its windows. True if the memory can still be reached by a transfer that
    /// is being received: only the connection's end takes that away. What ended is told by
    /// `leaving` and `ended`.
    pub(super) fn end_key(&mut self, key: u32, deadline: Time, mut ended: impl FnMut(u32)) -> bool {
        self.regions.end(key, &mut self.ended);
        while let Some(key) = self.ended.pop() {
            if self.incoming.lands_by_key(key) {
                return true;
            }
            if self.outgoing.serves_key(key) {
                self.leaving.push((key, deadline));
            } else {
                ended(key);
            }
        }
        false
    }

    /// Whether this key was taken back and its answers have not left yet.
    pub(super) fn leaves(&self, key: u32) -> bool {
        self.leaving.iter().any(|(leaving, _)| *leaving == key)
    }

    /// Keys whose last answer to a read has left.
    pub(super) fn left(&mut self, mut ended: impl FnMut(u32)) {
        let Link { leaving, outgoing, .. } = self;
        leaving.retain(|(key, _)| {
            let serves = outgoing.serves_key(*key);
            if !serves {
                ended(*key);
            }
            serves
        });
    }
}

/// One connection.
pub(super) struct Connection {
    pub(super) state: State,
    pub(super) socket: Option<OwnedFd>,
    pub(super) peer: Option<IpAddr>,
    pub(super) handshake: Option<Box<Handshake>>,
    pub(super) link: Option<Box<Link>>,
    /// When what is being waited for is given up.
    pub(super) deadline: Option<Time>,
    /// Whether the user has its id.
    pub(super) known: bool,
    /// When something arrived last, and until when it is asked without the ring.
    pub(super) arrived: Time,
    pub(super) direct_until: Time,
    /// Whether it is among those that are asked so.
    pub(super) direct: bool,
    /// Whether it is among those that are asked for later.
    pub(super) listens_later: bool,
    /// Whether it waits to be flushed.
    pub(super) dirty: bool,
    /// Whether it is among those that owe an answer.
    pub(super) owing: bool,
    /// What is left of it at its end is to be delivered without it.
    pub(super) delivers: bool,
    /// What the kernel has of it.
    pub(super) receiving: bool,
    pub(super) sending: bool,
    pub(super) connecting: bool,
}

impl Connection {
    pub(super) fn new(state: State, deadline: Time) -> Connection {
        Connection {
            state,
            socket: None,
            peer: None,
            handshake: None,
            link: None,
            deadline: Some(deadline),
            known: state == State::Connecting,
            arrived: Time::ZERO,
            direct_until: Time::ZERO,
            direct: false,
            listens_later: false,
            dirty: false,
            owing: false,
            delivers: false,
            receiving: false,
            sending: false,
            connecting: false,
        }
    }

    /// Whether the kernel has something of it.
    pub(super) fn is_busy(&self) -> bool {
        self.receiving || self.sending || self.connecting
    }

    /// The link of an established connection.
    #[inline]
    pub(super) fn established(&mut self) -> Option<&mut Link> {
        match self.state {
            State::Established => self.link.as_deref_mut(),
            _ => None,
        }
    }
}
