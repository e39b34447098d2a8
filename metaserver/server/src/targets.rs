//! The back control channel: what data servers send.

use gannet_disk::Disk;
use gannet_fabric::{ConnectionId, Fabric};
use gannet_meta_core::Enrollment;
use gannet_proto::addresses::{split_further, text_of};
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
    addresses: Vec<String>,
    stores: Vec<StoreInfo>,
    /// The file system that it belongs to, if it says so.
    file_system_uuid: Option<[u8; 16]>,
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
    let (stores, rest) = split_tail::<TargetHello>(rest, "stores", stores_bytes, stores_bytes)?;
    let stores: Vec<StoreInfo> = stores
        .chunks_exact(size_of::<StoreInfo>())
        .filter_map(|bytes| StoreInfo::read_from_bytes(bytes).ok())
        .collect();
    if let Some(store) = stores.iter().find(|store| store.block_bytes.get() != BLOCK_BYTES) {
        return field("block_bytes", store.block_bytes.get().into());
    }
    let mut addresses = vec![text_of::<TargetHello>(address)?.to_owned()];
    let further = hello.further_addresses.get();
    let rest = split_further::<TargetHello>(rest, further, |text| addresses.push(text.to_owned()))?;
    let file_system_uuid = match hello.names_file_system.get() {
        0 => None,
        1 => match rest.first_chunk() {
            Some(uuid) => Some(*uuid),
            None => return field("names_file_system", rest.len() as u64),
        },
        other => return field("names_file_system", other.into()),
    };
    Ok(TargetOpening { addresses, stores, file_system_uuid })
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
        // A path or a host's name may mean another metadata server there than it means here. One
        // whose data server this is not must not give it numbers, nor write to its stores.
        if opening.file_system_uuid.is_some_and(|uuid| uuid != self.superblock.file_system_uuid) {
            return Err(Status::OTHER_FILE_SYSTEM);
        }
        if self.shell.enrolling.len() >= ENROLLING_MAX {
            return Err(Status::AGAIN);
        }
        let pending = PendingTarget {
            connection,
            uuid: hello.uuid,
            addresses: opening.addresses,
            stores: opening.stores,
        };
        if self.config.reactor == 0 {
            let same = |other: &PendingTarget| other.uuid == hello.uuid;
            if let Some(place) = self.shell.enrolling.iter().position(same) {
                // Nothing would end the connection that is overtaken.
                let overtaken = self.shell.enrolling.swap_remove(place).connection;
                self.shell.connections.set_role(overtaken, Role::Refused);
                self.fabric.disconnect(overtaken);
            }
            let stores = pending.stores.clone();
            self.shell.enrolling.push(pending);
            self.shell.connections.set_role(connection, Role::Enrolling);
            core.enroll(core_now(now), hello.uuid, &stores, &mut self.shell);
            return Ok(());
        }
        // Reactor 0 gave the numbers and told us, unless its message is still under way.
        let Some(enrollment) = core.enrollment(&hello.uuid, &pending.stores) else {
            return Err(Status::AGAIN);
        };
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
        let addresses = pending.addresses;
        self.shell.targets[place] =
            Some(TargetChannel { connection, addresses, stores, drained: false });
        self.shell.counters.targets_connected += 1;
        self.shell.connections.set_role(connection, Role::Target(target));
        let welcome = TargetWelcome {
            version: U16::new(gannet_proto::VERSION),
            reactors: U16::new(self.config.reactors()),
            reactor: U16::new(self.config.reactor),
            stores: U16::new(ids.len() as u16),
            features: U64::ZERO,
            term: U64::new(self.shell.term),
            target: U32::new(target.0),
            grants_max: U32::new(self.config.grants_max),
            further_addresses: U16::new(self.reactor_addresses.further),
            names_file_system: U16::new(1),
            reserved: U32::ZERO,
        };
        let addresses = &self.reactor_addresses.encoded;
        let file_system = &self.superblock.file_system_uuid;
        let tail = [ids.as_bytes(), addresses, file_system];
        self.shell.connections.push(connection, &welcome, &tail);
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
                self.shell.forward_stats(target, reply, tail);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_proto::addresses::push_text;

    use super::*;

    const SHM: &[u8] = b"shm:///t";

    fn hello(further: u16, names: u16) -> TargetHello {
        TargetHello {
            address_bytes: U16::new(SHM.len() as u16),
            stores: U16::new(1),
            further_addresses: U16::new(further),
            names_file_system: U16::new(names),
            ..TargetHello::default()
        }
    }

    fn tail() -> Vec<u8> {
        let store = StoreInfo { block_bytes: U32::new(BLOCK_BYTES), ..StoreInfo::default() };
        [SHM, store.as_bytes()].concat()
    }

    #[test]
    fn a_data_server_names_all_its_addresses_and_its_file_system() {
        let mut tail = tail();
        let first = opening(&hello(0, 0), &tail).unwrap();
        assert_eq!(first.addresses, ["shm:///t"], "as the first version says it");
        assert_eq!((first.stores.len(), first.file_system_uuid), (1, None));
        push_text(&mut tail, "tcp://t:1");
        push_text(&mut tail, "odd://t");
        tail.extend([7; 16]);
        let all = opening(&hello(2, 1), &tail).unwrap();
        assert_eq!(all.addresses, ["shm:///t", "tcp://t:1", "odd://t"], "hosts choose");
        assert_eq!(all.file_system_uuid, Some([7; 16]));
        for length in 0..tail.len() {
            assert!(opening(&hello(2, 1), &tail[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn hellos_out_of_bounds_are_refused_by_field() {
        let refused = |hello: &TargetHello, tail: &[u8]| match opening(hello, tail) {
            Err(DecodeError::Field { field, .. }) => field,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("taken"),
        };
        let tail = tail();
        assert_eq!(refused(&hello(8, 0), &[&tail[..], &[0; 64]].concat()), "further_addresses");
        assert_eq!(refused(&hello(1, 0), &[&tail[..], &[0xff; 2]].concat()), "address");
        assert_eq!(refused(&hello(1, 0), &[&tail[..], &[1, 0, 0xff]].concat()), "address");
        assert_eq!(refused(&hello(0, 1), &[&tail[..], &[0; 15]].concat()), "names_file_system");
        assert_eq!(refused(&hello(0, 2), &[&tail[..], &[0; 16]].concat()), "names_file_system");
        let long = TargetHello { address_bytes: U16::new(121), ..hello(0, 0) };
        assert_eq!(refused(&long, &[b'x'; 400]), "address_bytes");
        let none = TargetHello { stores: U16::ZERO, ..hello(0, 0) };
        assert_eq!(refused(&none, &tail), "stores");
    }
}
