//! Connections coming up and going down, and their handshakes.

use gannet_fabric::route::Route;
use gannet_fabric::{ConnectionId, DisconnectReason, Event, Fabric};
use gannet_proto::data::{DataHello, DataWelcome};
use gannet_proto::handshake::{Hello, Refusal, features};
use gannet_proto::operations::{
    ConnectTarget, HostHello, HostWelcome, ReclaimComplete, RequestHeader, SESSION_SHARD,
    TargetReply, Unregister,
};
use gannet_proto::packet::{DecodeError, Frame, Message, PacketWriter};
use gannet_proto::{Epoch, Status};
use zerocopy::little_endian::{U16, U32, U64};

use super::{Client, Role};
use crate::counters::{Role as ServerRole, ServerConnection};
use crate::error::ErrorKind;
use crate::link::{Due, Link, Lost, Phase};
use crate::opens::Untold;
use crate::targets::ticket;
use crate::waiting::Queue;

/// Set in the tags of the client's own questions.
const OWN_TAG: u64 = 1 << 63;

impl<F: Fabric> Client<F> {
    /// The servers that the client is connected to at present, and by which of their addresses.
    pub fn connections(&self) -> impl Iterator<Item = ServerConnection> {
        let of = |link: &Link, route: &Route, server| {
            link.ready()?;
            Some(ServerConnection { server, address: route.current()?.clone() })
        };
        let channels = (0..self.channels.len()).filter_map(move |reactor| {
            let channel = &self.channels[reactor];
            of(&channel.link, &channel.route, ServerRole::Metaserver(reactor.into()))
        });
        let targets = self.targets.indices().filter_map(move |target| {
            let target = &self.targets[target];
            of(&target.link, &target.route, ServerRole::Target(target.id.0))
        });
        channels.chain(targets)
    }

    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Connected { connection } => self.on_connected(connection),
            Event::Disconnected { connection, reason } => self.on_disconnected(connection, reason),
            Event::Registered { connection, key } => self.on_registered(connection, key),
            Event::Deregistered { connection, key } => self.on_deregistered(connection, key),
            // A host accepts nobody and posts no transfers.
            Event::Accepted { connection, .. } => self.fabric.disconnect(connection),
            Event::Transferred { .. } | Event::Message { .. } => {}
        }
    }

    /// Somebody needs a channel.
    pub(super) fn wake_channel(&mut self, reactor: u16) {
        self.channels[reactor].link.wake();
        self.links_due = self.links_due.min(self.channels[reactor].link.next());
    }

    /// Somebody needs a data session.
    pub(super) fn wake_target(&mut self, target: u8) {
        self.targets[target].link.wake();
        self.links_due = self.links_due.min(self.targets[target].link.next());
    }

    /// Does what connections are due for.
    pub(super) fn run_links(&mut self) {
        for reactor in 0..self.channels.len() {
            match self.channels[reactor].link.due(self.now, &self.times) {
                Due::Nothing => {}
                Due::Begin => {
                    self.channels[reactor].route.restart();
                    self.connect_channel(reactor);
                }
                Due::Abort(connection) => self.fabric.disconnect(connection),
                Due::GaveUp => {
                    self.end_former(reactor);
                    self.channel_given_up(reactor, None);
                }
            }
        }
        for target in self.targets.indices() {
            match self.targets[target].link.due(self.now, &self.times) {
                Due::Nothing => {}
                Due::Begin => self.ask_for_ticket(target),
                Due::Abort(connection) => self.fabric.disconnect(connection),
                Due::GaveUp => {
                    let reason = self.why_unusable(target);
                    self.target_given_up(target, reason);
                }
            }
        }
        self.note_links_due();
    }

    pub(super) fn note_links_due(&mut self) {
        let channels = (0..self.channels.len()).map(|reactor| self.channels[reactor].link.next());
        let targets = self.targets.indices().map(|target| self.targets[target].link.next());
        self.links_due = channels.chain(targets).min().unwrap_or(gannet_runtime::time::Time::NEVER);
    }

    /// Connects to a reactor at the address that it is tried at, or the first one after it that can
    /// be tried.
    fn connect_channel(&mut self, reactor: u16) {
        match first_way(&mut self.fabric, &mut self.channels[reactor].route) {
            Some(connection) => {
                self.set_role(connection, Role::Channel(reactor));
                let channel = &mut self.channels[reactor];
                channel.outbox.clear();
                channel.link.connecting(connection, self.now, &self.times);
            }
            None => {
                if self.channels[reactor].link.lost(self.now, &self.times) == Lost::GaveUp {
                    self.channel_given_up(reactor, None);
                }
            }
        }
    }

    /// As [`Client::connect_channel`], for a data server whose ticket is there.
    fn connect_target(&mut self, target: u8) {
        match first_way(&mut self.fabric, &mut self.targets[target].route) {
            Some(connection) => {
                self.set_role(connection, Role::Target(target));
                self.targets[target].link.connecting(connection, self.now, &self.times);
            }
            None => self.target_unreachable(target),
        }
    }

    /// None of a data server's addresses led to it.
    fn target_unreachable(&mut self, target: u8) {
        let reason = self.why_unusable(target);
        let entry = &mut self.targets[target];
        if reason.is_some() && entry.windowless == entry.route.addresses().len() {
            // Nothing that time could change.
            entry.link.abandon();
            self.target_given_up(target, reason);
        } else if entry.link.lost(self.now, &self.times) == Lost::GaveUp {
            self.target_given_up(target, reason);
        }
    }

    /// What else than silence kept a data server from being used, when it was tried last.
    fn why_unusable(&self, target: u8) -> Option<ErrorKind> {
        let entry = &self.targets[target];
        if entry.has_ticket && entry.route.current().is_none() {
            return Some(ErrorKind::NoFabric { target: entry.id });
        }
        (entry.windowless > 0).then_some(ErrorKind::NoWindows)
    }

    fn ask_for_ticket(&mut self, target: u8) {
        self.next_tag += 1;
        let entry = &mut self.targets[target];
        entry.link.asking();
        entry.asked = OWN_TAG | self.next_tag;
        entry.ask = true;
        if self.channels[0].link.ready().is_none() {
            self.wake_channel(0);
        }
    }

    /// Sends the small things that follow from what happened in this turn.
    pub(super) fn send_afterthoughts(&mut self) {
        if self.channels[0].link.ready().is_some() {
            for target in self.targets.indices() {
                let entry = &mut self.targets[target];
                if !entry.ask || entry.link.phase() != Phase::Asking {
                    continue;
                }
                let header = RequestHeader {
                    shard: U16::new(SESSION_SHARD),
                    slot: U16::ZERO,
                    attempt: U32::new(1),
                    sequence: U64::new(entry.asked),
                };
                let target = U32::new(entry.id.0);
                let message = ConnectTarget { header, target, ..ConnectTarget::default() };
                entry.ask = self.channels[0].outbox.push_control(&message, &[]).is_err();
            }
        }
        while let Some((reactor, untold)) = self.opens.untold() {
            let outbox = &mut self.channels[reactor].outbox;
            let told = match untold {
                Untold::Open(message, opener) => opener
                    .as_ref()
                    .map_or(Ok(()), |opener| self.identities.tell_former(opener, reactor, outbox))
                    .and_then(|()| outbox.push(&message, &[])),
                Untold::Complete => outbox.push(&ReclaimComplete::default(), &[]),
            };
            if told.is_err() {
                break;
            }
            self.opens.told();
        }
        if self.regions.forgotten.is_empty() {
            return;
        }
        let channels = &mut self.channels;
        self.regions.forgotten.retain(|forgotten| {
            let channel = &mut channels[forgotten.reactor];
            let region = U32::new(forgotten.number);
            let message = Unregister { region, ..Unregister::default() };
            channel.link.ready().is_none() || channel.outbox.push_control(&message, &[]).is_err()
        });
    }

    fn on_connected(&mut self, connection: ConnectionId) {
        match self.role(connection) {
            Role::Channel(reactor) => {
                let hello = HostHello {
                    session: U64::new(self.options.session.0),
                    instance: U64::new(self.options.instance),
                    host: U64::new(self.options.host),
                    slots: U16::new(self.options.slots),
                    uid: U32::new(self.options.uid),
                    gid: U32::new(self.options.gid),
                    ..HostHello::default()
                };
                let required = if self.is_windowed() { features::MEMORY_WINDOWS } else { 0 };
                let greeting = Hello { features_required: U64::new(required), ..Hello::current() };
                let channel = &mut self.channels[reactor];
                if channel.link.phase() != Phase::Connecting(connection) {
                    return;
                }
                channel.link.greeting();
                let outbox = &mut channel.outbox;
                // An outbox that was just cleared has room.
                let _room = outbox
                    .push_control(&greeting, &[])
                    .and_then(|()| outbox.push_control(&hello, &[]));
            }
            Role::Target(target) => self.greet_target(target, connection),
            Role::None => self.fabric.disconnect(connection),
        }
    }

    fn greet_target(&mut self, target: u8, connection: ConnectionId) {
        let can_protect = !self.is_windowed() || {
            // Attempts that are given up are cut off by ending their data sessions.
            let capabilities = self.fabric.capabilities(connection);
            capabilities.memory_windows && capabilities.disconnect_revokes_access
        };
        let entry = &mut self.targets[target];
        if entry.link.phase() != Phase::Connecting(connection) {
            return;
        }
        if !can_protect {
            entry.windowless += 1;
            return self.close_target(target);
        }
        entry.link.greeting();
        let hello = DataHello {
            session: U64::new(self.options.session.0),
            epoch: U64::new(entry.epoch.0),
            ticket_bytes: U16::new(entry.ticket.len() as u16),
            ..DataHello::default()
        };
        let mut packet = PacketWriter::new();
        let fits = packet.push(&Hello::current(), &[]).is_ok()
            && packet.push(&hello, &[&entry.ticket]).is_ok();
        if fits && self.fabric.send(connection, packet.bytes()).is_ok() {
            self.counters.packets += 1;
            self.fabric.flush();
        } else {
            // A fresh connection has credits; one that has not is of no use.
            self.close_target(target);
        }
    }

    pub(super) fn close_target(&mut self, target: u8) {
        if let Some(connection) = self.targets[target].link.close() {
            self.fabric.disconnect(connection);
        }
    }

    /// Ends a channel, and the session with it if the server had welcomed it.
    fn close_channel(&mut self, reactor: u16) {
        if let Some(connection) = self.channels[reactor].link.close() {
            self.fabric.disconnect(connection);
        }
    }

    /// Gives an open channel up for a new one on which the session goes on.
    pub(super) fn renew_channel(&mut self, reactor: u16) {
        let Some(connection) = self.channels[reactor].link.ready() else {
            return self.close_channel(reactor);
        };
        self.set_role(connection, Role::None);
        self.end_former(reactor);
        self.channels[reactor].former = Some(connection);
        self.channel_down(reactor);
        self.note_links_due();
    }

    fn end_former(&mut self, reactor: u16) {
        if let Some(former) = self.channels[reactor].former.take() {
            self.fabric.disconnect(former);
        }
    }

    fn on_disconnected(&mut self, connection: ConnectionId, reason: DisconnectReason) {
        let role = self.role(connection);
        self.set_role(connection, Role::None);
        self.counters.disconnects += u64::from(role != Role::None);
        match role {
            Role::None => {}
            Role::Channel(reactor) => {
                self.channels[reactor].last_reason = Some(reason);
                self.channel_down(reactor);
            }
            Role::Target(target) => self.target_down(target),
        }
        self.note_links_due();
    }

    /// A data session ended. One that never led to the data server is tried at the next address with
    /// the same ticket, which nobody has used.
    fn target_down(&mut self, target: u8) {
        let entry = &mut self.targets[target];
        let was_welcomed = entry.link.was_welcomed();
        if !was_welcomed && entry.route.advance() {
            // The requests look at it before it may be theirs again.
            self.target_lost(target);
            return self.connect_target(target);
        }
        if was_welcomed {
            let lost = self.targets[target].link.lost(self.now, &self.times);
            self.target_lost(target);
            if lost == Lost::GaveUp {
                self.target_given_up(target, None);
            }
            return;
        }
        self.target_lost(target);
        self.target_unreachable(target);
    }

    fn channel_down(&mut self, reactor: u16) {
        let channel = &mut self.channels[reactor];
        channel.outbox.clear();
        channel.in_flight = 0;
        if !channel.link.was_welcomed() && channel.route.advance() {
            return self.connect_channel(reactor);
        }
        let refused = std::mem::take(&mut channel.refused);
        let lost = channel.link.lost(self.now, &self.times);
        self.channel_lost(reactor);
        if refused {
            // Nobody waits but those who came after the refusal.
            self.channels[reactor].link.abandon();
            if !self.waiting.is_empty(Queue::Channel(reactor)) {
                self.wake_channel(reactor);
            }
        } else if lost == Lost::GaveUp {
            self.channel_given_up(reactor, None);
        }
    }

    /// The first message on a channel.
    pub(super) fn on_channel_greeting(
        &mut self,
        reactor: u16,
        frame: &Frame<'_>,
    ) -> Result<(), DecodeError> {
        match frame.kind {
            HostWelcome::KIND => {
                let (message, tail) = frame.read::<HostWelcome>()?;
                let in_use = message.features.get();
                if self.is_windowed() && in_use & features::MEMORY_WINDOWS == 0 {
                    let (message, field) = (HostWelcome::NAME, "features");
                    return Err(DecodeError::Field { message, field, value: in_use });
                }
                let welcome = self.channels.welcome(reactor, message, tail)?;
                self.channels[reactor].link.welcomed();
                self.end_former(reactor);
                self.counters.connects += 1;
                self.note_links_due();
                self.channel_open(reactor, welcome);
                Ok(())
            }
            Refusal::KIND => {
                let (refusal, _) = frame.read::<Refusal>()?;
                let status = Status(refusal.status.get());
                self.close_channel(reactor);
                // Somebody else may sit at this address; the last one has the last word.
                let is_final = self.channels[reactor].route.is_last();
                if is_final && !matches!(status, Status::AGAIN | Status::BUSY | Status::NO_MEMORY) {
                    let kind = ErrorKind::Refused {
                        status,
                        version_min: refusal.version_min.get(),
                        version_max: refusal.version_max.get(),
                    };
                    self.channels[reactor].refused = true;
                    self.channel_given_up(reactor, Some(kind));
                }
                Ok(())
            }
            kind => Err(DecodeError::Unexpected { kind }),
        }
    }

    /// The first message on a data session.
    pub(super) fn on_target_greeting(
        &mut self,
        target: u8,
        frame: &Frame<'_>,
    ) -> Result<(), DecodeError> {
        match frame.kind {
            DataWelcome::KIND => {
                let (welcome, _) = frame.read::<DataWelcome>()?;
                if welcome.version.get() != gannet_proto::VERSION {
                    let (message, field) = (DataWelcome::NAME, "version");
                    let value = welcome.version.get().into();
                    return Err(DecodeError::Field { message, field, value });
                }
                let entry = &mut self.targets[target];
                entry.link.welcomed();
                entry.windowless = 0;
                self.counters.connects += 1;
                self.sets_version += 1;
                self.wakes.sets = true;
                self.note_links_due();
                Ok(())
            }
            Refusal::KIND => {
                // Tickets age and epochs pass: the next try asks for new ones.
                self.close_target(target);
                Ok(())
            }
            kind => Err(DecodeError::Unexpected { kind }),
        }
    }

    /// The answer to a question for a ticket.
    pub(super) fn on_ticket(
        &mut self,
        reply: &TargetReply,
        tail: &[u8],
    ) -> Result<(), DecodeError> {
        let tag = reply.header.request.sequence.get();
        let Some(target) = self.targets.asked(tag) else { return Ok(()) };
        if self.targets[target].link.phase() != Phase::Asking {
            return Ok(());
        }
        self.targets[target].asked = 0;
        let granted = if Status(reply.header.status.get()).is_ok() {
            Some(ticket(reply, tail)?)
        } else {
            None
        };
        match granted {
            Some((route, ticket)) => {
                let entry = &mut self.targets[target];
                entry.epoch = Epoch(reply.epoch.get());
                entry.ticket.clear();
                entry.ticket.extend_from_slice(ticket);
                let fabrics = self.options.fabrics;
                let mut addresses = route.into_addresses();
                addresses.retain(|address| fabrics.allow(address));
                entry.route = Route::new(addresses);
                entry.windowless = 0;
                entry.has_ticket = true;
                self.connect_target(target);
            }
            None => {
                if self.targets[target].link.lost(self.now, &self.times) == Lost::GaveUp {
                    self.target_given_up(target, None);
                }
            }
        }
        self.note_links_due();
        Ok(())
    }
}

/// Begins to connect at the route's address, or at the first one after it at which the fabric can.
fn first_way<F: Fabric>(fabric: &mut F, route: &mut Route) -> Option<ConnectionId> {
    loop {
        if let Ok(connection) = fabric.connect(route.current()?) {
            return Some(connection);
        }
        if !route.advance() {
            return None;
        }
    }
}
