//! One reactor of the metadata server.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use gannet_disk::{Completion, Disk, FileId};
use gannet_fabric::handshakes::Handshakes;
use gannet_fabric::{Address, ConnectionId, DisconnectReason, Event, Events, Fabric, FabricError};
use gannet_meta_core::{BlockConflict, Core, PeerMessage};
use gannet_proto::Status;
use gannet_proto::addresses::push_reactors;
use gannet_proto::control::TargetHello;
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::operations::HostHello;
use gannet_proto::packet::{DecodeError, Frame, Frames, Message};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::config::MetaServerConfig;
use crate::connections::{Connections, Role};
use crate::gate::Gate;
use crate::log::frame::Position;
use crate::log::recovery::{Recovery, RecoveryError};
use crate::log::superblock::Superblock;
use crate::log::writer::LogWriter;
use crate::peers::{PeerLinks, ReactorMessage};
use crate::shell::{Shell, core_now};
use crate::startup::Phase;
use crate::stats::{ReactorCounters, ShellCounters};
use crate::targets;

/// Events taken from the fabric per turn before it allocates.
const EVENTS: usize = 1024;
/// Message bytes taken from the fabric per turn before it allocates.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages of other reactors handled per turn.
const PEER_MESSAGES: usize = 256;
/// How soon to try again what waits for a peer's credits or for room in a ring: nobody announces
/// either.
const RESEND_DELAY: Duration = Duration::from_micros(100);

/// Why a reactor of the metadata server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum MetaServerError {
    /// The log cannot be recovered.
    #[error("the metadata log {log} cannot be used: {source}")]
    Recovery {
        /// Which log.
        log: String,
        /// Why.
        source: RecoveryError,
    },
    /// Files map blocks that are not their own.
    #[error(
        "the metadata log {log} cannot be served: {conflict}; run `gannet fsck` to see all such \
         files, and restore the metadata directory from a backup"
    )]
    Blocks {
        /// Which log.
        log: String,
        /// Which files.
        conflict: BlockConflict,
    },
    /// The reactors' addresses cannot be told to anybody.
    #[error("the metadata server's addresses: {0}")]
    Addresses(String),
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Which address.
        address: Address,
        /// The fabric's answer.
        source: FabricError,
    },
    /// Memory could not be mapped.
    #[error("mapping memory: {0}")]
    Memory(#[from] std::io::Error),
}

/// One reactor of a metadata server, generic over the machine.
pub struct MetaServer<F: Fabric, D: Disk> {
    pub(crate) config: MetaServerConfig,
    pub(crate) reactor_addresses: ReactorAddresses,
    pub(crate) core: Option<Core>,
    pub(crate) shell: Shell,
    pub(crate) fabric: F,
    pub(crate) disk: D,
    pub(crate) phase: Phase,
    pub(crate) log_file: FileId,
    pub(crate) log_name: String,
    pub(crate) superblock: Superblock,
    pub(crate) early_messages: Vec<(u16, PeerMessage)>,
    pub(crate) completions: Vec<Completion>,
    pub(crate) reactor_counters: Option<ReactorCounters>,
    /// When to try again what could not be sent.
    resend_at: Time,
    events: Events,
}

/// The addresses of all reactors as welcomes carry them.
pub(crate) struct ReactorAddresses {
    pub(crate) encoded: Vec<u8>,
    /// How many there are beyond the first one of each reactor.
    pub(crate) further: u16,
}

impl ReactorAddresses {
    fn of(addresses: &[Vec<Address>]) -> ReactorAddresses {
        let texts = |list: &Vec<Address>| list.iter().map(Address::to_string).collect();
        let texts: Vec<Vec<String>> = addresses.iter().map(texts).collect();
        let mut encoded = Vec::new();
        let further = push_reactors(&mut encoded, &texts);
        ReactorAddresses { encoded, further }
    }
}

impl<F: Fabric, D: Disk> MetaServer<F, D> {
    /// A reactor over `log_file` of `disk`, called `log_name` in messages, with its ends of the
    /// rings to the others. It starts to read its log with the first poll.
    ///
    /// # Errors
    /// `Addresses` that are too many or too long; what mapping its buffers returns.
    pub fn new(
        config: MetaServerConfig,
        fabric: F,
        disk: D,
        log_file: FileId,
        log_name: impl Into<String>,
        peers: PeerLinks,
    ) -> Result<MetaServer<F, D>, MetaServerError> {
        config.check_addresses().map_err(MetaServerError::Addresses)?;
        let reactor_addresses = ReactorAddresses::of(&config.addresses);
        let shell = Shell {
            log: LogWriter::new(log_file, [0; 16], 0, Position::default(), 0)?,
            gate: Gate::default(),
            connections: Connections::default(),
            sessions: Vec::new(),
            targets: Vec::new(),
            enrolling: Vec::new(),
            tickets: Vec::new(),
            peers,
            rng: ChaCha12Rng::from_seed(config.seed),
            term: 0,
            epochs: 0,
            stats: Vec::new(),
            stats_tag: 0,
            counters: ShellCounters::default(),
            handshakes: Handshakes::default(),
            leases: std::collections::VecDeque::new(),
            reclaim_end: Time::NEVER,
            scratch: Box::default(),
            welcome: Vec::new(),
            gate_outputs: true,
        };
        Ok(MetaServer {
            superblock: Superblock::new([0; 16], config.reactor, config.reactors()),
            reactor_addresses,
            config,
            core: None,
            shell,
            fabric,
            disk,
            phase: Phase::Recovering(Box::new(Recovery::new(log_file)?)),
            log_file,
            log_name: log_name.into(),
            early_messages: Vec::new(),
            completions: Vec::with_capacity(64),
            reactor_counters: None,
            resend_at: Time::NEVER,
            events: Events::with_capacity(EVENTS, MESSAGE_BYTES),
        })
    }

    /// Adds counters of the reactor's thread to those that hosts can ask for.
    pub fn set_reactor_counters(&mut self, counters: ReactorCounters) {
        self.reactor_counters = Some(counters);
    }

    /// Whether requests are served.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// Why the reactor cannot go on, if it cannot.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        match &self.phase {
            Phase::Failed(reason) => Some(reason),
            _ => self.shell.log.failure(),
        }
    }

    /// The metadata state machine, once the log's superblock is read.
    #[must_use]
    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }

    /// Breaks rule H14 on purpose: outputs leave before what they depend on is durable.
    #[cfg(feature = "defects")]
    pub fn break_output_gate(&mut self) {
        self.shell.gate_outputs = false;
    }

    /// The metadata state machine, for planting defects.
    #[cfg(feature = "defects")]
    pub fn core_mut(&mut self) -> Option<&mut Core> {
        self.core.as_mut()
    }

    fn fabric_events(&mut self, now: Now) -> usize {
        let mut events = std::mem::take(&mut self.events);
        // Behind with the log: leave messages where they are, so that their senders wait.
        if !self.shell.log.is_behind() {
            self.fabric.poll(now.time, &mut events);
        }
        let mut work = 0;
        while let Some(event) = events.pop() {
            work += 1;
            match event {
                Event::Accepted { connection, .. } => self.accepted(now, connection),
                Event::Message { connection, bytes } => {
                    self.message(now, connection, events.message(bytes));
                }
                Event::Disconnected { connection, reason } => {
                    self.disconnected(now, connection, reason);
                }
                // Nothing is connected to, registered or transferred from here.
                Event::Transferred { memory, .. } => {
                    self.shell.counters.payload_bytes += memory.len() as u64;
                }
                Event::Connected { .. } | Event::Registered { .. } | Event::Deregistered { .. } => {
                }
            }
        }
        events.clear();
        self.events = events;
        work
    }

    /// A peer connected, and has not said who it is. Peers that never do must not keep others out.
    fn accepted(&mut self, now: Now, connection: ConnectionId) {
        self.shell.connections.open(connection);
        let until = now.time + self.config.handshake_timeout;
        let handshakes = &mut self.shell.handshakes;
        handshakes.add(connection, until);
        if let Some(oldest) = handshakes.take_for_room(&self.fabric, connection, usize::MAX) {
            self.send_away(oldest);
        }
    }

    /// Ends a connection whose peer did not say who it is.
    fn send_away(&mut self, connection: ConnectionId) {
        self.shell.counters.connections_refused += 1;
        self.shell.connections.set_role(connection, Role::Refused);
        self.fabric.disconnect(connection);
    }

    fn message(&mut self, now: Now, connection: ConnectionId, packet: &[u8]) {
        self.shell.counters.messages_received += 1;
        self.shell.counters.message_bytes_received += packet.len() as u64;
        let mut frames = Frames::new(packet);
        let outcome = match self.shell.connections.role(connection) {
            Some(Role::New) => {
                self.shell.handshakes.remove(connection);
                self.hello(now, connection, &mut frames)
            }
            Some(Role::Host(host)) => {
                if let Some(Some(session)) = self.shell.sessions.get_mut(host.0 as usize) {
                    session.is_in_use = true;
                }
                Ok(())
            }
            Some(_) => Ok(()),
            None => return,
        };
        let outcome = outcome.and_then(|()| self.frames(now, connection, frames));
        if let Err((status, text)) = outcome {
            self.refuse(connection, status, &text);
        }
    }

    fn frames(
        &mut self,
        now: Now,
        connection: ConnectionId,
        frames: Frames<'_>,
    ) -> Result<(), (Status, String)> {
        // What a peer sends changes the role of other connections at most.
        let role = self.shell.connections.role(connection);
        let mut handle = |frame| -> Result<(), DecodeError> {
            let frame: Frame<'_> = frame?;
            match role {
                Some(Role::Host(host)) => self.host_frame(now, connection, host, frame),
                Some(Role::Target(target)) => self.target_frame(now, target, frame),
                Some(Role::Enrolling | Role::New) => {
                    Err(DecodeError::Unexpected { kind: frame.kind })
                }
                Some(Role::Refused) | None => Ok(()),
            }
        };
        for frame in frames {
            handle(frame).map_err(|error| (Status::PROTOCOL, error.to_string()))?;
        }
        Ok(())
    }

    /// Takes the opening frames of a new connection.
    fn hello(
        &mut self,
        now: Now,
        connection: ConnectionId,
        frames: &mut Frames<'_>,
    ) -> Result<(), (Status, String)> {
        let protocol = |error: DecodeError| (Status::PROTOCOL, error.to_string());
        let refuse = |status: Status| (status, status.text().to_owned());
        let mut next = || -> Result<Frame<'_>, DecodeError> {
            frames.next().unwrap_or(Err(DecodeError::TruncatedHeader))
        };
        let frame = next().map_err(protocol)?;
        if frame.kind != Hello::KIND {
            return Err(protocol(DecodeError::Unexpected { kind: frame.kind }));
        }
        let (hello, tail) = frame.read::<Hello>().map_err(protocol)?;
        hello.check(tail).map_err(refuse)?;
        let frame = next().map_err(protocol)?;
        match frame.kind {
            HostHello::KIND => {
                let (opening, _) = frame.read::<HostHello>().map_err(protocol)?;
                let features = hello.features_in_use();
                self.host_hello(now, connection, opening, features).map_err(refuse)
            }
            TargetHello::KIND => {
                let (hello, tail) = frame.read::<TargetHello>().map_err(protocol)?;
                let opening = targets::opening(hello, tail).map_err(protocol)?;
                self.target_hello(now, connection, hello, opening).map_err(refuse)
            }
            kind => Err(protocol(DecodeError::Unexpected { kind })),
        }
    }

    fn refuse(&mut self, connection: ConnectionId, status: Status, text: &str) {
        if status == Status::PROTOCOL {
            self.shell.counters.protocol_violations += 1;
        }
        let text = &text.as_bytes()[..text.len().min(128)];
        self.shell.connections.push(connection, &Refusal::new(status), &[text]);
        // The role goes when the connection does, so that its session or channel is let go.
        match self.shell.connections.role(connection) {
            Some(Role::Host(_) | Role::Target(_)) => self.fabric.disconnect(connection),
            _ => self.shell.connections.set_role(connection, Role::Refused),
        }
    }

    fn disconnected(&mut self, now: Now, connection: ConnectionId, reason: DisconnectReason) {
        match self.shell.connections.close(connection) {
            Some(Role::Host(host)) => {
                self.host_gone(now, host, reason == DisconnectReason::Remote);
            }
            Some(Role::Target(target)) => self.target_gone(now, target),
            Some(Role::Enrolling) => {
                self.shell.enrolling.retain(|pending| pending.connection != connection);
            }
            Some(Role::New) => {
                self.shell.handshakes.remove(connection);
            }
            Some(Role::Refused) | None => {}
        }
    }

    fn peer_messages(&mut self, now: Now) -> usize {
        let Some(core) = &mut self.core else { return 0 };
        let mut work = 0;
        while work < PEER_MESSAGES {
            let Some((from, message)) = self.shell.peers.receive() else { break };
            work += 1;
            if let ReactorMessage::Core(message) = message {
                core.peer(core_now(now), from, message, &mut self.shell);
            }
        }
        if work > 0 && core.block_conflict().is_some() {
            self.refuse_conflicts();
        }
        work
    }

    /// Fails if free space could not be rebuilt. A reactor other than 0 learns that when it serves
    /// already, but no request was taken up until now.
    pub(crate) fn refuse_conflicts(&mut self) {
        let conflict = self.core.as_ref().and_then(Core::block_conflict).cloned();
        if let Some(conflict) = conflict {
            let error = MetaServerError::Blocks { log: self.log_name.clone(), conflict };
            self.fail(error.to_string());
        }
    }

    fn fail(&mut self, reason: String) {
        self.phase = Phase::Failed(reason);
        for connection in self.shell.connections.ids().collect::<Vec<_>>() {
            self.fabric.disconnect(connection);
        }
    }

    fn log_completions(&mut self) -> usize {
        let work = self.completions.len();
        for completion in self.completions.drain(..) {
            self.shell.log.complete(completion.token, completion.result);
        }
        work
    }

    fn timers(&mut self, now: Now) {
        while let Some(connection) = self.shell.handshakes.take_overdue(now.time) {
            self.send_away(connection);
        }
        self.end_leases(now);
        if let Some(core) = &mut self.core
            && core.deadline().0 <= now.time.0
        {
            core.expire(core_now(now), &mut self.shell);
        }
        if !self.shell.stats.is_empty() {
            self.finish_stats(now.time);
        }
    }
}

impl<F: Fabric, D: Disk> Poller for MetaServer<F, D> {
    fn poll(&mut self, now: Now) -> usize {
        self.disk.poll(now.time, &mut self.completions);
        let mut work = 0;
        if matches!(self.phase, Phase::Serving | Phase::Stopping) {
            work += self.log_completions();
            self.shell.release();
            work += self.fabric_events(now);
            work += self.peer_messages(now);
            self.timers(now);
        } else {
            if matches!(self.phase, Phase::Beginning | Phase::Failed(_)) {
                work += self.log_completions();
            }
            work += usize::from(self.start_up(now));
        }
        self.shell.log.commit(&mut self.disk, false);
        if !self.shell.welcome.is_empty() {
            self.welcome_targets(now);
        }
        self.shell.connections.send_all(&mut self.fabric);
        self.fabric.flush();
        self.disk.flush();
        self.shell.peers.flush();
        let is_held_up = self.shell.connections.has_pending() || self.shell.peers.has_overflow();
        self.resend_at = if is_held_up { now.time + RESEND_DELAY } else { Time::NEVER };
        if let Some(reason) = self.shell.log.failure()
            && !matches!(self.phase, Phase::Failed(_))
        {
            // Nothing can be promised any more, so nobody may hear from here again.
            self.fail(reason.to_owned());
        }
        work
    }

    fn deadline(&self) -> Time {
        let handshake = self.shell.handshakes.deadline();
        let lease = self.shell.leases.front().map_or(Time::NEVER, |(time, _)| *time);
        let lease = lease.min(self.shell.reclaim_end);
        let core = self.core.as_ref().map_or(Time::NEVER, |core| Time(core.deadline().0));
        let stats = self.shell.stats.iter().map(|pending| pending.deadline).min();
        handshake.min(lease).min(core).min(stats.unwrap_or(Time::NEVER)).min(self.resend_at)
    }

    fn arm(&mut self) {
        self.fabric.arm();
        self.shell.peers.arm();
    }

    fn disarm(&mut self) {
        self.fabric.disarm();
        self.shell.peers.disarm();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.fabric.wake_descriptors(visit);
        self.disk.wake_descriptors(visit);
        self.shell.peers.wake_descriptors(visit);
    }

    /// Ends in order: what is acknowledged is durable already, so only the log's last frame and the
    /// answers that wait for it are left.
    fn shutdown(&mut self, _now: Now) -> bool {
        if matches!(self.phase, Phase::Serving) {
            self.phase = Phase::Stopping;
        }
        matches!(self.phase, Phase::Failed(_))
            || (self.shell.log.is_idle()
                && self.shell.gate.is_empty()
                && self.disk.in_flight() == 0
                && !self.shell.connections.has_pending())
    }
}
