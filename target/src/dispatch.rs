//! What each event and each message does.
//!
//! Nothing that a peer sends can make this panic: a message that is malformed, or that has no
//! business where it comes, ends its connection and is counted.

use gannet_disk::Disk;
use gannet_fabric::{
    Address, ConnectionId, DisconnectReason, Event, Events, Fabric, TransferStatus,
};
use gannet_proto::Status;
use gannet_proto::addresses::push_text;
use gannet_proto::control::{
    Drain, Grant, Revoke, SessionClose, SessionOpen, TargetHello, TargetStats, TargetWelcome,
    grant_operation,
};
use gannet_proto::data::{DataHello, DataWelcome};
use gannet_proto::handshake::{FEATURES_KNOWN, Hello, Refusal, split_tail};
use gannet_proto::limits::{BLOCK_BYTES, TICKET_BYTES_MAX};
use gannet_proto::packet::{DecodeError, Frame, Frames, Message, PacketFull, PacketWriter};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use crate::engine::Store;
use crate::report::{notice_of, wire_answer};
use crate::seats::Role;
use crate::sessions::{Asker, Outcome};
use crate::target::Target;

/// Why a connection is ended by this side.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Welcome(#[from] crate::control::WelcomeError),
    #[error("grant {0} is outside the window of grants that may be outstanding")]
    Window(u64),
}

impl<F: Fabric, D: Disk> Target<F, D> {
    /// Handles a batch of events; returns their number.
    pub(crate) fn take_events(&mut self, events: &mut Events) -> usize {
        let count = events.len();
        while let Some(event) = events.pop() {
            match event {
                Event::Message { connection, bytes } => {
                    self.message(connection, events.message(bytes));
                }
                Event::Transferred { token, memory, status, .. } => {
                    let result = match status {
                        TransferStatus::Done => Ok(()),
                        TransferStatus::AccessRefused => Err(Status::ACCESS_REFUSED),
                        TransferStatus::ConnectionLost => Err(Status::SESSION_GONE),
                    };
                    self.completed(token, Some(memory), result);
                }
                Event::Accepted { connection, .. } => self.accepted(connection),
                Event::Connected { connection } => self.connected(connection),
                Event::Disconnected { connection, reason } => {
                    self.disconnected(connection, reason);
                }
                // This side registers nothing.
                Event::Registered { .. } | Event::Deregistered { .. } => {}
            }
        }
        count
    }

    /// Does what is due by the clock: connects, and gives up on peers that are silent.
    pub(crate) fn keep_time(&mut self) -> usize {
        let mut work = 0;
        while let Some(connection) = self.handshakes.take_overdue(self.now) {
            self.stats.connections_refused += 1;
            self.hang_up(connection);
            work += 1;
        }
        while let Some((channel, _)) = self.control.overdue(self.now) {
            tracing::warn!(channel, "the metadata server does not answer the hello");
            self.break_channel(channel);
            work += 1;
        }
        if self.stopping {
            return work;
        }
        while let Some(channel) = self.control.due(self.now) {
            self.connect(channel);
            work += 1;
        }
        work
    }

    fn connect(&mut self, channel: u16) {
        let route = &self.control.channels[usize::from(channel)].route;
        let Some(address) = route.current().cloned() else {
            self.control.lost(channel, self.now);
            return;
        };
        match self.engine.fabric.connect(&address) {
            Ok(connection) if self.seats.set(connection, Role::Reactor(channel)) => {
                self.control.connecting(channel, connection);
            }
            Ok(connection) => {
                self.engine.fabric.disconnect(connection);
                self.control.lost(channel, self.now);
            }
            Err(error) => {
                tracing::warn!(%address, %error, "cannot connect to the metadata server");
                self.control.lost(channel, self.now);
            }
        }
    }

    fn accepted(&mut self, connection: ConnectionId) {
        if self.stopping || !self.seats.set(connection, Role::Stranger) {
            self.stats.connections_refused += 1;
            self.engine.fabric.disconnect(connection);
            return;
        }
        let until = self.now + self.config.timing.handshake_timeout;
        self.handshakes.add(connection, until);
        // Peers that say nothing must not keep others out.
        let most = self.config.limits.handshakes_max as usize;
        let fabric = &self.engine.fabric;
        if let Some(oldest) = self.handshakes.take_for_room(fabric, connection, most) {
            self.stats.connections_refused += 1;
            self.hang_up(oldest);
        }
    }

    fn connected(&mut self, connection: ConnectionId) {
        let Some(Role::Reactor(channel)) = self.seats.role(connection) else { return };
        self.control.connected(channel, connection, self.now);
        let mut listen = self.config.listen.iter().map(Address::to_string);
        let first = listen.next().unwrap_or_default();
        let (mut further, mut further_count) = (Vec::new(), 0);
        for text in listen {
            push_text(&mut further, &text);
            further_count += 1;
        }
        let file_system = self.control.file_system_uuid(channel);
        let hello = TargetHello {
            uuid: self.config.uuid,
            instance: U64::new(self.config.instance),
            address_bytes: U16::new(first.len() as u16),
            stores: U16::new(self.infos.len() as u16),
            further_addresses: U16::new(further_count),
            names_file_system: U16::new(file_system.is_some().into()),
            ..TargetHello::default()
        };
        let file_system = file_system.unwrap_or_default();
        let named = if hello.names_file_system.get() != 0 { &file_system[..] } else { &[] };
        let infos = std::mem::take(&mut self.infos);
        let said = self.say(connection, |packet| {
            packet.push(&Hello::current(), &[])?;
            packet.push(&hello, &[first.as_bytes(), infos.as_bytes(), &further, named])
        });
        self.infos = infos;
        if !said {
            self.break_channel(channel);
        }
    }

    fn disconnected(&mut self, connection: ConnectionId, reason: DisconnectReason) {
        let role = self.seats.role(connection);
        self.seats.clear(connection);
        match role {
            Some(Role::Stranger) => {
                self.handshakes.remove(connection);
            }
            Some(Role::Host(session)) => self.host_lost(session, connection),
            Some(Role::Reactor(channel)) => {
                tracing::debug!(channel, %reason, "back channel ended");
                self.channel_lost(channel);
            }
            None => {}
        }
    }

    fn message(&mut self, connection: ConnectionId, packet: &[u8]) {
        match self.seats.role(connection) {
            Some(Role::Reactor(channel)) => {
                if let Err(violation) = self.reactor_packet(channel, connection, packet) {
                    tracing::warn!(channel, "back channel ended: {violation}");
                    self.stats.protocol_errors += 1;
                    // A frame may have ended the channel already.
                    if self.seats.role(connection).is_some() {
                        self.break_channel(channel);
                    }
                }
            }
            Some(Role::Stranger) => self.greet_host(connection, packet),
            Some(Role::Host(session)) => {
                // Hosts send nothing on a data session.
                self.stats.protocol_errors += 1;
                if self.sessions.disconnected(session, connection) {
                    self.cut_session(session, Status::SESSION_GONE, Some(connection));
                }
            }
            None => {}
        }
    }

    /// Reads the hello of a host.
    fn greet_host(&mut self, connection: ConnectionId, packet: &[u8]) {
        self.handshakes.remove(connection);
        match self.data_hello(connection, packet) {
            Ok(session) => {
                self.seats.set(connection, Role::Host(session));
                self.arrivals.begin(session);
                self.stats.sessions_connected += 1;
                let welcome = DataWelcome {
                    version: U16::new(gannet_proto::VERSION),
                    features: U64::new(FEATURES_KNOWN),
                    ..DataWelcome::default()
                };
                if !self.say(connection, |packet| packet.push(&welcome, &[]))
                    && self.sessions.disconnected(session, connection)
                {
                    self.cut_session(session, Status::SESSION_GONE, Some(connection));
                }
            }
            Err(status) => {
                tracing::debug!(%status, "data session refused");
                self.stats.connections_refused += 1;
                // Whether the refusal gets through or not, the connection ends.
                let _said = self.say(connection, |packet| packet.push(&Refusal::new(status), &[]));
                self.hang_up(connection);
            }
        }
    }

    fn data_hello(&mut self, connection: ConnectionId, packet: &[u8]) -> Result<u32, Status> {
        let mut frames = Frames::new(packet);
        let protocol = |_: DecodeError| Status::PROTOCOL;
        let (hello, tail) = next::<Hello>(&mut frames).map_err(protocol)?;
        hello.check(tail)?;
        let (data, tail) = next::<DataHello>(&mut frames).map_err(protocol)?;
        let ticket_bytes = usize::from(data.ticket_bytes.get());
        let (ticket, _) =
            split_tail::<DataHello>(tail, "ticket_bytes", ticket_bytes, TICKET_BYTES_MAX)
                .map_err(protocol)?;
        self.sessions.hello(data.session.get(), data.epoch.get(), ticket, connection)
    }

    fn reactor_packet(
        &mut self,
        channel: u16,
        connection: ConnectionId,
        packet: &[u8],
    ) -> Result<(), Violation> {
        for frame in Frames::new(packet) {
            let frame = frame?;
            if self.control.live(channel) == Some(connection) {
                self.live_frame(channel, connection, &frame)?;
            } else {
                self.greeting_frame(channel, &frame)?;
            }
            if self.seats.role(connection).is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A frame on a channel that has not been welcomed.
    fn greeting_frame(&mut self, channel: u16, frame: &Frame<'_>) -> Result<(), Violation> {
        match frame.kind {
            TargetWelcome::KIND => {
                let (welcome, tail) = frame.read::<TargetWelcome>()?;
                let welcomed = self.control.welcome(channel, welcome, tail, self.now)?;
                tracing::info!(channel, term = welcome.term.get(), "back channel open");
                self.stats.channels_welcomed += 1;
                for (other, connection) in welcomed.disconnect {
                    self.seats.clear(connection);
                    self.engine.fabric.disconnect(connection);
                    self.finish_those(|grants, idle| grants.drop_queued(other, idle));
                }
                self.grants.reserve(self.control.channels.len(), self.control.grants_max());
                for cut in welcomed.cut {
                    self.finish_those(|grants, idle| grants.cut_channel(cut, idle));
                }
                Ok(())
            }
            Refusal::KIND => {
                let (refusal, _) = frame.read::<Refusal>()?;
                let status = Status(refusal.status.get());
                if status == Status::AGAIN {
                    tracing::debug!(channel, "the metadata server is not ready");
                } else {
                    tracing::warn!(channel, "the metadata server refuses this server: {status}");
                }
                self.break_channel(channel);
                Ok(())
            }
            kind => Err(DecodeError::Unexpected { kind }.into()),
        }
    }

    /// A frame on a channel that is welcomed. Kinds that this build does not know are skipped.
    fn live_frame(
        &mut self,
        channel: u16,
        connection: ConnectionId,
        frame: &Frame<'_>,
    ) -> Result<(), Violation> {
        let asker = Asker { channel, connection };
        match frame.kind {
            Grant::KIND => return self.grant(channel, frame.read::<Grant>()?.0),
            Revoke::KIND => {
                let (revoke, _) = frame.read::<Revoke>()?;
                if revoke.term.get() == self.control.channels[usize::from(channel)].term
                    && let Some(place) = self.grants.revoke(channel, revoke.number.get())
                {
                    self.finish(place);
                }
            }
            Drain::KIND => {
                let (drain, _) = frame.read::<Drain>()?;
                self.control.channels[usize::from(channel)].draining = Some(drain.term.get());
                if self.grants.channel_is_drained(channel) {
                    self.channel_drained(channel);
                }
            }
            SessionOpen::KIND => {
                let (open, tail) = frame.read::<SessionOpen>()?;
                let len = usize::from(open.ticket_bytes.get());
                let (ticket, _) =
                    split_tail::<SessionOpen>(tail, "ticket_bytes", len, TICKET_BYTES_MAX)?;
                self.stats.sessions_opened += 1;
                let (session, epoch) = (open.session.get(), open.epoch.get());
                let grants = &self.grants;
                let is_idle = |index| grants.is_idle(index);
                let mut stale = Vec::new();
                let overtaken = |asker, answer| stale.push((asker, answer));
                let outcome = self.sessions.open(session, epoch, ticket, asker, is_idle, overtaken);
                self.acknowledge(stale);
                self.session_outcome(channel, outcome);
            }
            SessionClose::KIND => {
                let (close, _) = frame.read::<SessionClose>()?;
                self.stats.sessions_closed += 1;
                let (session, epoch) = (close.session.get(), close.epoch.get());
                let outcome = self.sessions.close(session, epoch, asker);
                self.session_outcome(channel, outcome);
            }
            TargetStats::KIND => {
                let (question, _) = frame.read::<TargetStats>()?;
                self.refresh_reactor_counters();
                self.answer_stats(channel, question.tag.get());
            }
            TargetWelcome::KIND => {
                return Err(DecodeError::Unexpected { kind: frame.kind }.into());
            }
            _ => {}
        }
        Ok(())
    }

    fn session_outcome(&mut self, channel: u16, outcome: Outcome) {
        match outcome {
            Outcome::Answer(acknowledgement) => {
                self.answer(channel, wire_answer(acknowledgement));
            }
            Outcome::Cut { index, connection, status } => {
                self.cut_session(index, status, connection);
            }
        }
    }

    /// Queues a grant, or refuses it.
    fn grant(&mut self, index: u16, grant: &Grant) -> Result<(), Violation> {
        grant.check()?;
        let number = grant.number.get();
        let channel = &mut self.control.channels[usize::from(index)];
        if grant.term.get() != channel.term {
            // Of another connection's stream: its number says nothing on this one.
            self.stats.grants_refused += 1;
            let stale = Status::STALE_EPOCH;
            self.refuse(index, notice_of(grant.term.get(), number, stale, 0));
            return Ok(());
        }
        if number <= channel.last_number {
            self.stats.grants_duplicate += 1;
            return Ok(());
        }
        if !channel.outbox.admits(number) {
            return Err(Violation::Window(number));
        }
        channel.last_number = number;
        match self.place(index, grant) {
            Ok((store, session, connection)) => {
                let admitted = self.grants.admit(grant, index, store, session, connection);
                if admitted.is_none() {
                    return Err(Violation::Window(number));
                }
                match grant.operation {
                    grant_operation::READ => self.stats.grants_read += 1,
                    grant_operation::WRITE => self.stats.grants_write += 1,
                    _ => self.stats.grants_zero += 1,
                }
                self.make_ready(session);
            }
            Err(status) => {
                self.stats.grants_refused += 1;
                self.notice(index, notice_of(grant.term.get(), number, status, 0));
            }
        }
        Ok(())
    }

    /// The store, session and connection of a grant, or what it is to be answered.
    #[inline]
    fn place(&self, index: u16, grant: &Grant) -> Result<(u16, u32, ConnectionId), Status> {
        if grant.term.get() < self.control.term_max() {
            return Err(Status::STALE_EPOCH);
        }
        let (session, connection) = self.sessions.find(grant.session.get(), grant.epoch.get())?;
        let ids = &self.control.channels[usize::from(index)].store_ids;
        let position = ids.iter().position(|id| *id == grant.store.get());
        if grant.operation == grant_operation::ZERO {
            return Ok((position.unwrap_or(0) as u16, session, connection));
        }
        let position = position.ok_or(Status::UNKNOWN_STORE)?;
        let store = self.engine.stores.get(position).ok_or(Status::UNKNOWN_STORE)?;
        if store.generation != grant.generation.get() || !fits(store, grant) {
            return Err(Status::UNKNOWN_STORE);
        }
        Ok((position as u16, session, connection))
    }

    /// A session's connection ended by itself.
    fn host_lost(&mut self, session: u32, connection: ConnectionId) {
        if self.sessions.disconnected(session, connection) {
            self.stats.sessions_lost += 1;
            self.cut_session(session, Status::SESSION_GONE, None);
        }
    }

    /// Cuts off a session's grants, and ends its connection if it still has one.
    fn cut_session(&mut self, session: u32, status: Status, connection: Option<ConnectionId>) {
        if let Some(connection) = connection {
            self.stats.sessions_lost += 1;
            self.hang_up(connection);
        }
        self.stats.arrivals_dropped += self.arrivals.clear(session);
        self.finish_those(|grants, idle| grants.cut_session(session, status, idle));
        if self.grants.session_is_drained(session) {
            self.session_drained(session);
        }
    }

    /// Ends a back channel by this side.
    pub(crate) fn break_channel(&mut self, channel: u16) {
        let state = &self.control.channels[usize::from(channel)];
        if let Some(connection) = state.connection() {
            self.hang_up(connection);
        }
        self.channel_lost(channel);
    }

    fn channel_lost(&mut self, channel: u16) {
        if self.control.lost(channel, self.now) {
            tracing::info!(channel, "back channel lost");
            self.stats.channels_lost += 1;
        }
        self.finish_those(|grants, idle| grants.drop_queued(channel, idle));
    }

    /// Ends a connection; nothing that still comes from it is heard.
    fn hang_up(&mut self, connection: ConnectionId) {
        self.handshakes.remove(connection);
        self.seats.clear(connection);
        self.engine.fabric.disconnect(connection);
    }

    /// Sends a handshake's packet at once: nothing else is on its connection yet.
    fn say(
        &mut self,
        connection: ConnectionId,
        fill: impl FnOnce(&mut PacketWriter) -> Result<(), PacketFull>,
    ) -> bool {
        let mut packet = PacketWriter::new();
        fill(&mut packet).is_ok() && self.engine.fabric.send(connection, packet.bytes()).is_ok()
    }
}

/// The next frame of a packet, which must be a `T`.
fn next<'a, T: Message + 'a>(frames: &mut Frames<'a>) -> Result<(&'a T, &'a [u8]), DecodeError> {
    let frame = frames.next().ok_or(DecodeError::TruncatedHeader)??;
    if frame.kind != T::KIND {
        return Err(DecodeError::Unexpected { kind: frame.kind });
    }
    frame.read::<T>()
}

/// Whether all blocks that a grant names lie in the store. The zeros at the end of a read need none.
fn fits(store: &Store, grant: &Grant) -> bool {
    let (offset, length) = (grant.offset.get(), grant.length.get());
    if grant.operation == grant_operation::READ {
        let bytes = u64::from(offset) + u64::from(grant.valid.get());
        let blocks = bytes.div_ceil(u64::from(BLOCK_BYTES));
        return grant.valid.get() == 0 || within(store, grant.block.get(), blocks);
    }
    let old = |needed: bool, block: u64, valid: u32| {
        !needed || valid == 0 || block == u64::MAX || within(store, block, 1)
    };
    let has_tail = !(offset + length).is_multiple_of(BLOCK_BYTES);
    within(store, grant.block.get(), grant.blocks())
        && old(offset > 0, grant.head_block.get(), grant.head_valid.get())
        && old(has_tail, grant.tail_block.get(), grant.tail_valid.get())
}

fn within(store: &Store, block: u64, blocks: u64) -> bool {
    block.checked_add(blocks).is_some_and(|end| end <= store.blocks)
}
