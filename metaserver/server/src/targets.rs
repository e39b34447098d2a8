//! The back control channel: what data servers send.

use gannet_disk::Disk;
use gannet_fabric::{ConnectionId, Fabric};
use gannet_meta_core::Enrollment;
use gannet_proto::control::{
    Drain, Drained, Notice, Retired, RetiredRange, SessionClosed, SessionReady, StoreInfo,
    TargetHello, TargetStatsReply, TargetWelcome,
};
use gannet_proto::handshake::split_tail;
use gannet_proto::limits::{ADDRESS_BYTES_MAX, BLOCK_BYTES, STORES_PER_TARGET_MAX};
use gannet_proto::packet::{DecodeError, Frame, Message};
use gannet_proto::{GrantNumber, SessionId, Status, TargetId};
use gannet_runtime::poller::Now;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::connections::Role;
use crate::server::MetaServer;
use crate::shell::{PendingTarget, TargetChannel, core_now};

/// Data servers that may wait for their numbers at one time.
const ENROLLING_MAX: usize = 1024;

/// A data server's opening message, checked.
pub(crate) struct TargetOpening {
    address: Vec<u8>,
    stores: Vec<StoreInfo>,
}

/// Reads the tail of a data server's hello.
pub(crate) fn opening(hello: &TargetHello, tail: &[u8]) -> Result<TargetOpening, DecodeError> {
    let field = |field, value| Err(DecodeError::Field { message: TargetHello::NAME, field, value });
    let address_bytes = usize::from(hello.address_bytes.get());
    let (address, rest) =
        split_tail::<TargetHello>(tail, "address_bytes", address_bytes, ADDRESS_BYTES_MAX)?;
    let count = usize::from(hello.stores.get());
    if count == 0 || count > STORES_PER_TARGET_MAX {
        return field("stores", count as u64);
    }
    let stores_bytes = count * size_of::<StoreInfo>();
    let (stores, _) = split_tail::<TargetHello>(rest, "stores", stores_bytes, stores_bytes)?;
    let stores: Vec<StoreInfo> = stores
        .chunks_exact(size_of::<StoreInfo>())
        .filter_map(|bytes| StoreInfo::read_from_bytes(bytes).ok())
        .collect();
    if let Some(store) = stores.iter().find(|store| store.block_bytes.get() != BLOCK_BYTES) {
        return field("block_bytes", store.block_bytes.get().into());
    }
    if std::str::from_utf8(address).is_err() {
        return field("address_bytes", address_bytes as u64);
    }
    Ok(TargetOpening { address: address.to_vec(), stores })
}

impl<F: Fabric, D: Disk> MetaServer<F, D> {
    pub(crate) fn target_hello(
        &mut self,
        now: Now,
        connection: ConnectionId,
        hello: &TargetHello,
        opening: TargetOpening,
    ) -> Result<(), Status> {
        let Some(core) = &mut self.core else { return Err(Status::AGAIN) };
        if self.shell.enrolling.len() >= ENROLLING_MAX {
            return Err(Status::AGAIN);
        }
        let pending = PendingTarget {
            connection,
            uuid: hello.uuid,
            address: opening.address,
            stores: opening.stores,
        };
        if self.config.reactor == 0 {
            self.shell.enrolling.retain(|other| other.uuid != hello.uuid);
            let stores = pending.stores.clone();
            self.shell.enrolling.push(pending);
            self.shell.connections.set_role(connection, Role::Enrolling);
            core.enroll(core_now(now), hello.uuid, &stores, &mut self.shell);
            return Ok(());
        }
        // Reactor 0 gave the numbers and told us, unless its message is still under way.
        let enrollment = core.enrollment(&hello.uuid);
        let known = enrollment.filter(|known| known.stores.len() == pending.stores.len());
        let Some(enrollment) = known else { return Err(Status::AGAIN) };
        self.shell.enrolling.push(pending);
        self.shell.connections.set_role(connection, Role::Enrolling);
        self.shell.welcome.push(enrollment);
        Ok(())
    }

    /// Welcomes the data servers whose numbers are durable.
    pub(crate) fn welcome_targets(&mut self, now: Now) {
        while let Some(enrollment) = self.shell.welcome.pop() {
            let waiting = &mut self.shell.enrolling;
            let Some(place) = waiting.iter().position(|other| other.uuid == enrollment.uuid) else {
                continue;
            };
            let pending = waiting.swap_remove(place);
            self.welcome_target(now, pending, &enrollment);
        }
    }

    fn welcome_target(&mut self, now: Now, pending: PendingTarget, enrollment: &Enrollment) {
        let (target, connection) = (enrollment.target, pending.connection);
        let place = target.0 as usize;
        // A new channel ends the one before: its grants are lost to us until the drain.
        if let Some(Some(old)) = self.shell.targets.get(place) {
            let old = old.connection;
            self.shell.connections.set_role(old, Role::Refused);
            self.fabric.disconnect(old);
            self.target_gone(now, target);
        }
        if self.shell.targets.len() <= place {
            self.shell.targets.resize_with(place + 1, || None);
        }
        let stores: Vec<_> =
            enrollment.stores.iter().copied().zip(pending.stores.iter().copied()).collect();
        let ids: Vec<U32> = enrollment.stores.iter().map(|store| U32::new(store.0)).collect();
        self.shell.targets[place] =
            Some(TargetChannel { connection, address: pending.address, stores, drained: false });
        self.shell.counters.targets_connected += 1;
        self.shell.connections.set_role(connection, Role::Target(target));
        let welcome = TargetWelcome {
            version: U16::new(gannet_proto::VERSION),
            reactors: U16::new(self.config.addresses.len() as u16),
            reactor: U16::new(self.config.reactor),
            stores: U16::new(ids.len() as u16),
            features: U64::ZERO,
            term: U64::new(self.shell.term),
            target: U32::new(target.0),
            grants_max: U32::new(self.config.grants_max),
            reserved: U64::ZERO,
        };
        let addresses = self.encoded_addresses();
        self.shell.connections.push(connection, &welcome, &[ids.as_bytes(), &addresses]);
        let drain = Drain { term: U64::new(self.shell.term), reserved: U64::ZERO };
        self.shell.connections.push(connection, &drain, &[]);
    }

    /// Handles one frame of a data server.
    pub(crate) fn target_frame(
        &mut self,
        now: Now,
        target: TargetId,
        frame: Frame<'_>,
    ) -> Result<(), DecodeError> {
        let Some(core) = &mut self.core else { return Ok(()) };
        let (sink, core_now) = (&mut self.shell, core_now(now));
        match frame.kind {
            Retired::KIND => {
                let (retired, tail) = frame.read::<Retired>()?;
                if retired.term.get() != sink.term {
                    return Ok(());
                }
                let count = usize::from(retired.ranges.get());
                let bytes = count * size_of::<RetiredRange>();
                let (ranges, _) = split_tail::<Retired>(tail, "ranges", bytes, bytes)?;
                let cumulative = GrantNumber(retired.cumulative.get());
                core.retired(core_now, target, GrantNumber(1), cumulative, sink);
                for range in ranges.chunks_exact(size_of::<RetiredRange>()) {
                    let Ok(range) = RetiredRange::read_from_bytes(range) else { continue };
                    let (first, last) = (range.first.get(), range.last.get());
                    core.retired(core_now, target, GrantNumber(first), GrantNumber(last), sink);
                }
            }
            Notice::KIND => {
                let (notice, _) = frame.read::<Notice>()?;
                if notice.term.get() == sink.term {
                    let number = GrantNumber(notice.number.get());
                    let (status, length) = (Status(notice.status.get()), notice.length.get());
                    core.notice(core_now, target, number, status, length, sink);
                }
            }
            Drained::KIND => {
                let (drained, _) = frame.read::<Drained>()?;
                if drained.term.get() == sink.term
                    && let Some(Some(channel)) = sink.targets.get_mut(target.0 as usize)
                    && !channel.drained
                {
                    channel.drained = true;
                    let stores = channel.stores.clone();
                    core.target_up(core_now, target, &stores, sink);
                }
            }
            SessionReady::KIND => {
                let (ready, _) = frame.read::<SessionReady>()?;
                let (session, epoch) = (SessionId(ready.session.get()), ready.epoch.get());
                self.session_ready(target, session, epoch, Status(ready.status.get()));
            }
            SessionClosed::KIND => {
                frame.read::<SessionClosed>()?;
            }
            TargetStatsReply::KIND => {
                let (reply, tail) = frame.read::<TargetStatsReply>()?;
                self.shell.forward_stats(target, reply.tag.get(), reply.count.get(), tail);
            }
            kind => return Err(DecodeError::Unexpected { kind }),
        }
        Ok(())
    }

    /// A data server's channel broke.
    pub(crate) fn target_gone(&mut self, now: Now, target: TargetId) {
        let Some(Some(channel)) = self.shell.targets.get_mut(target.0 as usize).map(Option::take)
        else {
            return;
        };
        self.shell.counters.targets_connected -= 1;
        self.shell.gate.forget_target(target);
        for pending in &mut self.shell.stats {
            pending.waiting.retain(|waiting| *waiting != target);
        }
        if channel.drained
            && let Some(core) = &mut self.core
        {
            core.target_down(core_now(now), target, &mut self.shell);
        }
        let mut refused = Vec::new();
        self.shell.tickets.retain(|pending| {
            let lost = pending.target == target;
            if lost {
                refused.push((pending.host, pending.header));
            }
            !lost
        });
        for (host, header) in refused {
            if let Some(connection) = self.shell.host_connection(host) {
                self.refuse_ticket(connection, header, target, Status::AGAIN);
            }
        }
    }
}
