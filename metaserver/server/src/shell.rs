//! What the core's outputs go through: the log, the gate and the connections.

use std::collections::VecDeque;

use gannet_fabric::ConnectionId;
use gannet_fabric::handshakes::Handshakes;
use gannet_meta_core::{Enrollment, Lsn, Now, PeerMessage, SessionIndex, Sink};
use gannet_proto::control::{Grant, Revoke, StoreInfo};
use gannet_proto::packet::{Message, PacketWriter};
use gannet_proto::{GrantNumber, SessionId, StoreId, TargetId};
use gannet_runtime::time::Time;
use rand_chacha::ChaCha12Rng;
use zerocopy::little_endian::U64;

use crate::connections::Connections;
use crate::gate::{Destination, Gate};
use crate::log::writer::LogWriter;
use crate::peers::{PeerLinks, ReactorMessage};
use crate::stats::{PendingStats, ShellCounters};

/// A host session, by the core's index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostSession {
    pub(crate) session: SessionId,
    pub(crate) connection: Option<ConnectionId>,
    /// The host has used the connection since its hello. A host that gave up waiting for the welcome
    /// closes in order too, and wants to come back.
    pub(crate) is_in_use: bool,
    /// When it ends unless the host comes back.
    pub(crate) lease_end: Time,
}

/// A data server's channel.
#[derive(Debug)]
pub(crate) struct TargetChannel {
    pub(crate) connection: ConnectionId,
    /// Where it listens for data sessions, the first one first.
    pub(crate) addresses: Vec<String>,
    pub(crate) stores: Vec<(StoreId, StoreInfo)>,
    /// It acknowledged that nothing of older terms is under way.
    pub(crate) drained: bool,
}

/// A data server that said hello and waits for its numbers.
#[derive(Debug)]
pub(crate) struct PendingTarget {
    pub(crate) connection: ConnectionId,
    pub(crate) uuid: [u8; 16],
    pub(crate) addresses: Vec<String>,
    pub(crate) stores: Vec<StoreInfo>,
}

/// A host that waits for a data server to accept its ticket.
#[derive(Debug)]
pub(crate) struct PendingTicket {
    pub(crate) host: SessionIndex,
    pub(crate) session: SessionId,
    pub(crate) header: gannet_proto::operations::RequestHeader,
    pub(crate) target: TargetId,
    pub(crate) epoch: u64,
    pub(crate) ticket: [u8; 32],
}

/// Everything of a reactor but its core, fabric and disk.
pub(crate) struct Shell {
    pub(crate) log: LogWriter,
    pub(crate) gate: Gate,
    pub(crate) connections: Connections,
    pub(crate) sessions: Vec<Option<HostSession>>,
    pub(crate) targets: Vec<Option<TargetChannel>>,
    pub(crate) enrolling: Vec<PendingTarget>,
    pub(crate) tickets: Vec<PendingTicket>,
    pub(crate) peers: PeerLinks,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) term: u64,
    pub(crate) epochs: u64,
    pub(crate) stats: Vec<PendingStats>,
    pub(crate) stats_tag: u64,
    pub(crate) counters: ShellCounters,
    /// New connections, which have to say who they are.
    pub(crate) handshakes: Handshakes,
    /// Sessions without a connection, in the order in which their leases may end.
    pub(crate) leases: VecDeque<(Time, SessionIndex)>,
    /// When hosts of the last run have told again what they have open.
    pub(crate) reclaim_end: Time,
    pub(crate) scratch: Box<PacketWriter>,
    /// Data servers whose numbers are durable and who can be welcomed.
    pub(crate) welcome: Vec<Enrollment>,
    /// Off only in builds with the feature `defects`: then rule H14 is broken on purpose.
    pub(crate) gate_outputs: bool,
}

impl Shell {
    /// The connection of a session's host, if it is there.
    pub(crate) fn host_connection(&self, session: SessionIndex) -> Option<ConnectionId> {
        self.sessions.get(session.0 as usize)?.as_ref()?.connection
    }

    /// The connection of a data server, if it is there.
    pub(crate) fn target_connection(&self, target: TargetId) -> Option<ConnectionId> {
        Some(self.targets.get(target.0 as usize)?.as_ref()?.connection)
    }

    /// Lets out what has become durable.
    pub(crate) fn release(&mut self) {
        let durable = self.log.durable();
        while let Some((destination, frame)) = self.gate.release(durable) {
            match destination {
                Destination::Host(session) => {
                    let host = self.sessions.get(session.0 as usize).and_then(Option::as_ref);
                    if let Some(connection) = host.and_then(|host| host.connection) {
                        self.connections.push_encoded(connection, frame);
                    }
                }
                Destination::Target(target) => {
                    let channel = self.targets.get(target.0 as usize).and_then(Option::as_ref);
                    if let Some(channel) = channel {
                        self.connections.push_encoded(channel.connection, frame);
                    }
                }
                Destination::Peer(reactor, message) => {
                    self.peers.send(reactor, ReactorMessage::Core(*message));
                }
                Destination::Enrollment(enrollment) => self.welcome.push(*enrollment),
                Destination::Nowhere => {}
            }
        }
    }

    fn may_pass(&self, after: Lsn) -> bool {
        after <= self.log.durable() || !self.gate_outputs
    }

    fn hold<T: Message>(
        &mut self,
        after: Lsn,
        destination: Destination,
        message: &T,
        tail: &[&[u8]],
    ) {
        self.scratch.clear();
        let fits = self.scratch.push(message, tail);
        debug_assert!(fits.is_ok(), "a frame fits an empty packet");
        self.gate.hold(after, destination, self.scratch.bytes());
        self.counters.outputs_held += 1;
    }
}

impl Sink for Shell {
    fn record(&mut self, record: &[u8]) -> Lsn {
        self.log.append(record)
    }

    fn reply<T: Message>(&mut self, session: SessionIndex, after: Lsn, reply: &T, tail: &[&[u8]]) {
        if !self.may_pass(after) {
            return self.hold(after, Destination::Host(session), reply, tail);
        }
        if let Some(connection) = self.host_connection(session) {
            self.connections.push(connection, reply, tail);
        }
    }

    #[inline]
    fn grant(&mut self, target: TargetId, after: Lsn, grant: &Grant) {
        if !self.may_pass(after) || self.gate.holds_target(target) {
            return self.hold(after, Destination::Target(target), grant, &[]);
        }
        if let Some(connection) = self.target_connection(target) {
            self.connections.push(connection, grant, &[]);
        }
    }

    fn revoke(&mut self, target: TargetId, number: GrantNumber) {
        let revoke = Revoke { term: U64::new(self.term), number: U64::new(number.0) };
        // Behind the grant, wherever that is.
        if self.gate.holds_target(target) {
            return self.hold(Lsn(0), Destination::Target(target), &revoke, &[]);
        }
        if let Some(connection) = self.target_connection(target) {
            self.connections.push(connection, &revoke, &[]);
        }
    }

    fn peer(&mut self, reactor: u16, after: Lsn, message: PeerMessage) {
        if self.may_pass(after) {
            self.peers.send(reactor, ReactorMessage::Core(message));
        } else {
            self.gate.hold(after, Destination::Peer(reactor, Box::new(message)), &[]);
        }
    }

    fn enrolled(&mut self, after: Lsn, enrollment: Enrollment) {
        if self.may_pass(after) {
            self.welcome.push(enrollment);
        } else {
            self.gate.hold(after, Destination::Enrollment(Box::new(enrollment)), &[]);
        }
    }
}

/// The core's view of the reactor's clocks.
pub(crate) fn core_now(now: gannet_runtime::poller::Now) -> Now {
    Now { monotonic: gannet_meta_core::Nanos(now.time.0), wall_ns: now.wall.0 }
}
