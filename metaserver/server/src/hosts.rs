//! The operations channel: what hosts send.

use gannet_disk::Disk;
use gannet_fabric::{ConnectionId, Fabric, PeerIdentity};
use gannet_meta_core::SessionIndex;
use gannet_proto::addresses::push_text;
use gannet_proto::control::{SessionClose, SessionOpen, TargetStats};
use gannet_proto::identity::SetIdentity;
use gannet_proto::operations::{
    Cancel, ConnectTarget, DeclareOpen, HostHello, HostWelcome, InodeRequest, NameRequest, Read,
    ReclaimComplete, Register, RequestHeader, SetAttributes, StatFs, StatFsReply, Stats,
    StatsReply, TargetReply, Unregister, Write,
};
use gannet_proto::packet::{DecodeError, Frame, Message};
use gannet_proto::xattr::XattrRequest;
use gannet_proto::{RegionId, SessionId, Status, TargetId};
use gannet_runtime::poller::Now;
use gannet_runtime::time::Time;
use rand_chacha::rand_core::Rng;
use zerocopy::little_endian::{U16, U32, U64};

use crate::connections::Role;
use crate::server::MetaServer;
use crate::shell::{HostSession, PendingTicket, core_now};
use crate::stats::{Asked, PendingStats, STATS_TIMEOUT};

/// Requests that may be outstanding on one channel.
const REQUESTS_MAX: u32 = 4096;
/// Questions for counters that one host may have open.
const STATS_OPEN_MAX: usize = 8;
/// Hosts that may wait for a ticket, and questions for counters that may be open, at one time.
const PENDING_MAX: usize = 4096;

impl<F: Fabric, D: Disk> MetaServer<F, D> {
    pub(crate) fn host_hello(
        &mut self,
        now: Now,
        connection: ConnectionId,
        hello: &HostHello,
        features: u64,
    ) -> Result<(), Status> {
        let Some(core) = &mut self.core else { return Err(Status::AGAIN) };
        let session = SessionId(hello.session.get());
        let (index, resumed) = core.session_open(core_now(now), session, hello.instance.get())?;
        let said = (hello.uid.get(), hello.gid.get());
        let (uid, gid) = identity_of(self.fabric.peer(connection).as_ref(), said);
        core.session_identity(index, uid, gid);
        let place = index.0 as usize;
        if self.shell.sessions.len() <= place {
            self.shell.sessions.resize(place + 1, None);
        }
        // A host that comes back before its old connection was seen to break takes it over.
        if let Some(Some(old)) = self.shell.sessions.get(place)
            && let Some(old) = old.connection
        {
            self.shell.connections.set_role(old, Role::Refused);
            self.fabric.disconnect(old);
            self.shell.counters.hosts_connected -= 1;
        }
        self.shell.counters.hosts_connected += 1;
        self.shell.sessions[place] = Some(HostSession {
            session,
            connection: Some(connection),
            is_in_use: false,
            lease_end: Time::NEVER,
        });
        self.shell.connections.set_role(connection, Role::Host(index));
        self.welcome_host(connection, resumed, features);
        Ok(())
    }

    fn welcome_host(&mut self, connection: ConnectionId, resumed: bool, features: u64) {
        let welcome = HostWelcome {
            version: U16::new(gannet_proto::VERSION),
            shards: U16::new(self.superblock.shard_map.len() as u16),
            reactors: U16::new(self.config.reactors()),
            reactor: U16::new(self.config.reactor),
            features: U64::new(features),
            term: U64::new(self.shell.term),
            file_system_uuid: self.superblock.file_system_uuid,
            slots: U16::new(self.config.slots),
            resumed: U16::new(resumed.into()),
            request_bytes_max: U32::new(gannet_proto::limits::REQUEST_BYTES_MAX),
            block_bytes: U32::new(gannet_proto::limits::BLOCK_BYTES),
            lease_ms: U32::new(u32::try_from(self.config.lease.as_millis()).unwrap_or(u32::MAX)),
            map_version: self.superblock.map_version,
            requests_max: U32::new(REQUESTS_MAX),
            further_addresses: U16::new(self.reactor_addresses.further),
            reserved: [0; 10],
        };
        let addresses = &self.reactor_addresses.encoded;
        let map = &self.superblock.shard_map;
        self.shell.connections.push(connection, &welcome, &[map, addresses]);
    }

    /// Handles one frame of a host.
    pub(crate) fn host_frame(
        &mut self,
        now: Now,
        connection: ConnectionId,
        host: SessionIndex,
        frame: Frame<'_>,
    ) -> Result<(), DecodeError> {
        let Some(core) = &mut self.core else { return Ok(()) };
        let (sink, core_now) = (&mut self.shell, core_now(now));
        match frame.kind {
            Read::KIND => {
                let (read, tail) = frame.read::<Read>()?;
                let windows = read.windows(tail)?;
                core.read(core_now, host, read, windows, sink);
            }
            Write::KIND => {
                let (write, tail) = frame.read::<Write>()?;
                let windows = write.windows(tail)?;
                core.write(core_now, host, write, windows, sink);
            }
            NameRequest::KIND => {
                let (request, tail) = frame.read::<NameRequest>()?;
                let names = request.names(tail)?;
                core.name_request(core_now, host, request, names, sink);
            }
            InodeRequest::KIND => {
                let (request, _) = frame.read::<InodeRequest>()?;
                request.header.check::<InodeRequest>()?;
                core.inode_request(core_now, host, request, sink);
            }
            SetAttributes::KIND => {
                let (request, _) = frame.read::<SetAttributes>()?;
                request.header.check::<SetAttributes>()?;
                core.set_attributes(core_now, host, request, sink);
            }
            SetIdentity::KIND => {
                let (request, tail) = frame.read::<SetIdentity>()?;
                core.set_identity(host, request, request.groups(tail)?);
            }
            XattrRequest::KIND => {
                let (request, tail) = frame.read::<XattrRequest>()?;
                core.xattr_request(core_now, host, request, request.xattr(tail)?, sink);
            }
            DeclareOpen::KIND => {
                core.declare_open(core_now, host, frame.read::<DeclareOpen>()?.0, sink);
            }
            ReclaimComplete::KIND => {
                frame.read::<ReclaimComplete>()?;
                core.reclaim_complete(core_now, host, sink);
            }
            Register::KIND => core.register(host, frame.read::<Register>()?.0),
            Unregister::KIND => {
                let region = frame.read::<Unregister>()?.0.region.get();
                core.unregister(host, RegionId(region));
            }
            Cancel::KIND => {
                let (cancel, _) = frame.read::<Cancel>()?;
                cancel.header.check::<Cancel>()?;
                core.cancel(core_now, host, &cancel.header, sink);
            }
            ConnectTarget::KIND => {
                let (request, _) = frame.read::<ConnectTarget>()?;
                let target = TargetId(request.target.get());
                self.connect_target(connection, host, request.header, target);
            }
            StatFs::KIND => self.stat_fs(connection, frame.read::<StatFs>()?.0.header),
            Stats::KIND => {
                let (request, _) = frame.read::<Stats>()?;
                let ask_targets = request.targets.get() == 1;
                self.stats(now.time, host, request.header, ask_targets);
            }
            kind => return Err(DecodeError::Unexpected { kind }),
        }
        Ok(())
    }

    /// A host's connection ended: in order, or it broke and the host may come back.
    pub(crate) fn host_gone(&mut self, now: Now, host: SessionIndex, in_order: bool) {
        let place = host.0 as usize;
        let Some(Some(session)) = self.shell.sessions.get_mut(place) else { return };
        session.connection = None;
        let in_order = in_order && session.is_in_use;
        self.shell.counters.hosts_connected -= 1;
        self.shell.stats.retain(|pending| pending.host != host);
        self.shell.tickets.retain(|pending| pending.host != host);
        if in_order {
            return self.end_session(now, host);
        }
        session.lease_end = now.time + self.config.lease;
        self.shell.leases.push_back((session.lease_end, host));
        if let Some(core) = &mut self.core {
            core.session_disconnected(core_now(now), host);
        }
    }

    /// Ends the sessions whose hosts did not come back.
    pub(crate) fn end_leases(&mut self, now: Now) {
        if self.shell.reclaim_end <= now.time {
            self.shell.reclaim_end = Time::NEVER;
            if let Some(core) = &mut self.core {
                core.end_reclaim(core_now(now), &mut self.shell);
            }
        }
        while let Some((time, host)) = self.shell.leases.front().copied() {
            if time > now.time {
                break;
            }
            self.shell.leases.pop_front();
            let session = self.shell.sessions.get(host.0 as usize).and_then(Option::as_ref);
            if session.is_some_and(|s| s.connection.is_none() && s.lease_end <= now.time) {
                self.end_session(now, host);
            }
        }
    }

    fn end_session(&mut self, now: Now, host: SessionIndex) {
        let Some(ended) = self.shell.sessions.get_mut(host.0 as usize).and_then(Option::take)
        else {
            return;
        };
        self.shell.gate.forget_host(host);
        if let Some(core) = &mut self.core {
            core.session_end(core_now(now), host, &mut self.shell);
        }
        // Reactor 0 mints the tickets, so it ends the data sessions too.
        if self.config.reactor != 0 {
            return;
        }
        let close =
            SessionClose { session: U64::new(ended.session.0), epoch: U64::new(self.last_epoch()) };
        for channel in self.shell.targets.iter().flatten() {
            self.shell.connections.push(channel.connection, &close, &[]);
        }
    }

    fn last_epoch(&self) -> u64 {
        self.shell.term << 32 | self.shell.epochs
    }

    /// Mints a ticket, tells it to the data server, and answers the host when that accepts it.
    fn connect_target(
        &mut self,
        connection: ConnectionId,
        host: SessionIndex,
        header: RequestHeader,
        target: TargetId,
    ) {
        let session = self.shell.sessions.get(host.0 as usize).and_then(Option::as_ref);
        let Some(session) = session.map(|session| session.session) else { return };
        let channel = self.shell.targets.get(target.0 as usize).and_then(Option::as_ref);
        let Some(target_connection) = channel.map(|channel| channel.connection) else {
            return self.refuse_ticket(connection, header, target, Status::AGAIN);
        };
        if self.config.reactor != 0 {
            return self.refuse_ticket(connection, header, target, Status::WRONG_SHARD);
        }
        // One ticket of a host and data server is under way at a time: a host that asks again gets
        // it in answer to its last question.
        let pending = self
            .shell
            .tickets
            .iter_mut()
            .find(|other| other.host == host && other.target == target);
        if let Some(pending) = pending {
            let overtaken = std::mem::replace(&mut pending.header, header);
            return self.refuse_ticket(connection, overtaken, target, Status::AGAIN);
        }
        if self.shell.tickets.len() >= PENDING_MAX {
            return self.refuse_ticket(connection, header, target, Status::AGAIN);
        }
        self.shell.epochs += 1;
        let epoch = self.last_epoch();
        let mut ticket = [0; 32];
        self.shell.rng.fill_bytes(&mut ticket);
        let open = SessionOpen {
            session: U64::new(session.0),
            epoch: U64::new(epoch),
            ticket_bytes: U16::new(ticket.len() as u16),
            reserved: [0; 14],
        };
        self.shell.connections.push(target_connection, &open, &[&ticket]);
        self.shell.tickets.push(PendingTicket { host, session, header, target, epoch, ticket });
    }

    /// Answers the host that waits for `session` and `epoch`.
    pub(crate) fn session_ready(
        &mut self,
        target: TargetId,
        session: SessionId,
        epoch: u64,
        status: Status,
    ) {
        let matches = |pending: &PendingTicket| {
            pending.target == target && pending.session == session && pending.epoch == epoch
        };
        let Some(place) = self.shell.tickets.iter().position(matches) else { return };
        let pending = self.shell.tickets.swap_remove(place);
        let Some(connection) = self.shell.host_connection(pending.host) else { return };
        if !status.is_ok() {
            return self.refuse_ticket(connection, pending.header, target, status);
        }
        let channel = self.shell.targets.get(target.0 as usize).and_then(Option::as_ref);
        let Some((first, further)) = channel.and_then(|channel| channel.addresses.split_first())
        else {
            return;
        };
        let mut encoded = Vec::new();
        further.iter().for_each(|text| push_text(&mut encoded, text));
        let reply = TargetReply {
            header: pending.header.reply(Status::OK),
            target: U32::new(target.0),
            address_bytes: U16::new(first.len() as u16),
            ticket_bytes: U16::new(pending.ticket.len() as u16),
            epoch: U64::new(epoch),
            further_addresses: U16::new(further.len() as u16),
            reserved: [0; 6],
        };
        let tail = [first.as_bytes(), &pending.ticket, &encoded];
        self.shell.connections.push(connection, &reply, &tail);
    }

    pub(crate) fn refuse_ticket(
        &mut self,
        connection: ConnectionId,
        header: RequestHeader,
        target: TargetId,
        status: Status,
    ) {
        let reply = TargetReply {
            header: header.reply(status),
            target: U32::new(target.0),
            ..TargetReply::default()
        };
        self.shell.connections.push(connection, &reply, &[]);
    }

    fn stat_fs(&mut self, connection: ConnectionId, header: RequestHeader) {
        let Some(core) = &self.core else { return };
        let space = core.space();
        let reply = StatFsReply {
            header: header.reply(Status::OK),
            blocks_total: U64::new(space.blocks_total),
            blocks_used: U64::new(space.blocks_used),
            inodes: U64::new(space.inodes),
            targets: U32::new(space.targets),
            block_bytes: U32::new(gannet_proto::limits::BLOCK_BYTES),
            reserved: U64::ZERO,
        };
        self.shell.connections.push(connection, &reply, &[]);
    }

    fn stats(&mut self, now: Time, host: SessionIndex, header: RequestHeader, targets: bool) {
        let open = self.shell.stats.iter().filter(|pending| pending.host == host).count();
        if open >= STATS_OPEN_MAX || self.shell.stats.len() >= PENDING_MAX {
            let reply = StatsReply {
                header: header.reply(Status::AGAIN),
                last: U16::new(1),
                ..StatsReply::default()
            };
            if let Some(connection) = self.shell.host_connection(host) {
                self.shell.connections.push(connection, &reply, &[]);
            }
            return;
        }
        self.shell.stats_tag += 1;
        let tag = self.shell.stats_tag;
        let mut waiting = Vec::new();
        for (index, channel) in self.shell.targets.iter().enumerate() {
            if let Some(channel) = channel
                && targets
            {
                let question = TargetStats { tag: U64::new(tag) };
                self.shell.connections.push(channel.connection, &question, &[]);
                waiting.push(TargetId(index as u32));
            }
        }
        let deadline = now + STATS_TIMEOUT;
        self.shell.stats.push(PendingStats { host, header, tag, waiting, deadline });
    }

    /// Answers questions for counters that have waited for everybody, or long enough.
    pub(crate) fn finish_stats(&mut self, now: Time) {
        while let Some(pending) = self.shell.take_finished_stats(now) {
            let connection = self.shell.host_connection(pending.host);
            let (Some(connection), Some(core)) = (connection, &self.core) else { continue };
            let asked = Asked { connection, header: pending.header, reactor: self.config.reactor };
            let counters = self.reactor_counters.as_ref();
            self.shell.reply_stats(core, counters, &self.fabric, &asked);
        }
    }
}

/// In whose name a host asks: what the fabric knows of the peer goes before what it says. Root, and
/// the user that the server itself runs as, who may read the log and the stores in any case, speak
/// for whom they like.
fn identity_of(peer: Option<&PeerIdentity>, said: (u32, u32)) -> (u32, u32) {
    match peer {
        Some(PeerIdentity::Local { uid, gid, .. })
            if *uid != 0 && *uid != rustix::process::geteuid().as_raw() =>
        {
            (*uid, *gid)
        }
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fabric_knows_of_a_peer_goes_before_what_it_says() {
        let own = rustix::process::geteuid().as_raw();
        let stranger = own.wrapping_add(1).max(1);
        let local = |uid| PeerIdentity::Local { pid: 1, uid, gid: 7 };
        let network = PeerIdentity::Network("192.0.2.1:5".to_owned());
        for said in [(0, 0), (1000, 100)] {
            assert_eq!(identity_of(Some(&local(0)), said), said, "root");
            assert_eq!(identity_of(Some(&local(own)), said), said, "the server's own user");
            assert_eq!(identity_of(Some(&local(stranger)), said), (stranger, 7));
            assert_eq!(identity_of(Some(&network), said), said, "a trusted host");
            assert_eq!(identity_of(None, said), said);
        }
    }
}
