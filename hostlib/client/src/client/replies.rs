//! What servers send on open connections: replies and arrival notices.
//!
//! Every field that is used as an index or length is bounded before. A packet that breaks the
//! protocol ends its connection; the requests on it are recovered like those of any lost one.

use gannet_fabric::{ConnectionId, Fabric};
use gannet_proto::data::Arrival;
use gannet_proto::handshake::split_tail;
use gannet_proto::limits::{LARGE_PACKET_BYTES, TARGETS_PER_FILE_MAX};
use gannet_proto::operations::{
    Attributes, DirectoryEntry, DirectoryReply, EntryReply, IoReply, ReplyHeader, SESSION_SHARD,
    StatFsReply, StatsReply, TargetReply, connection_kind,
};
use gannet_proto::packet::{DecodeError, Frame, Frames, Message};
use gannet_proto::stats::{StatsEntry, read_stats};
use gannet_proto::xattr::XattrReply;
use gannet_proto::{Handle, Inode, SessionId, Status, TargetId};
use zerocopy::FromBytes;

use super::dispatch::session_tag;
use super::{Client, Role};
use crate::counters::{Counters, Peer, PeerConnection};
use crate::error::ErrorKind;
use crate::link::Phase;
use crate::opens::Known;
use crate::operation::{Entry, Listing, Operation, Outcome, Space};
use crate::request::State;
use crate::slots::{Owner, Place};

/// Most shards that a path may lead over.
const HOPS_MAX: u16 = 4096;
/// Most roles whose counters one request collects.
const ROLES_MAX: usize = 4096;
/// Most connections that they may tell of, all of them together.
const CONNECTIONS_MAX: usize = 1 << 20;

impl<F: Fabric> Client<F> {
    pub(super) fn on_message(&mut self, connection: ConnectionId, packet: &[u8]) {
        let role = self.role(connection);
        let read = match role {
            Role::Target(target) => self.on_target_packet(target, connection, packet),
            Role::Channel(reactor) => self.on_channel_packet(reactor, connection, packet),
            Role::None => Ok(()),
        };
        if read.is_err() {
            self.counters.protocol_errors += 1;
            match role {
                Role::Channel(reactor) => self.renew_channel(reactor),
                Role::Target(target) => self.close_target(target),
                Role::None => {}
            }
        }
    }

    fn on_target_packet(
        &mut self,
        target: u8,
        connection: ConnectionId,
        packet: &[u8],
    ) -> Result<(), DecodeError> {
        for frame in Frames::new(packet) {
            let frame = frame?;
            match self.targets[target].link.phase() {
                Phase::Ready(current) if current == connection => {
                    if frame.kind == Arrival::KIND {
                        self.on_arrival(frame.read::<Arrival>()?.0)?;
                    }
                }
                Phase::Greeting(current) if current == connection => {
                    self.on_target_greeting(target, &frame)?;
                }
                // Being closed: what still comes may count, and nothing else is expected.
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    fn on_channel_packet(
        &mut self,
        reactor: u16,
        connection: ConnectionId,
        packet: &[u8],
    ) -> Result<(), DecodeError> {
        for frame in Frames::new(packet) {
            let frame = frame?;
            match self.channels[reactor].link.phase() {
                Phase::Ready(current) if current == connection => self.on_reply(reactor, &frame)?,
                Phase::Greeting(current) if current == connection => {
                    self.on_channel_greeting(reactor, &frame)?;
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// A part of a read is in its buffer, or failed.
    fn on_arrival(&mut self, arrival: &Arrival) -> Result<(), DecodeError> {
        self.counters.arrivals += 1;
        arrival.check()?;
        let trailer = &arrival.trailer;
        let header = &trailer.request;
        let (shard, slot) = (header.shard.get(), header.slot.get());
        let (sequence, attempt) = (header.sequence.get(), header.attempt.get());
        let index = match self.slots.owner(shard, slot, sequence) {
            Owner::Request(index) => index,
            Owner::Parked => {
                self.counters.late_arrivals += 1;
                if self.slots.answered(Place { shard, slot, sequence }, attempt, true) {
                    self.wakes.slots |= 1 << shard;
                }
                return Ok(());
            }
            Owner::Free => {
                self.counters.late_arrivals += 1;
                return Ok(());
            }
        };
        let request = &mut self.requests[index];
        let asked = match (&request.operation, request.state) {
            (Some(Operation::Read { length, .. }), State::Sent | State::Stranded)
                if request.attempt == attempt && !self.options.complete_by_metaserver =>
            {
                *length
            }
            _ => {
                self.counters.late_arrivals += 1;
                return Ok(());
            }
        };
        let parts = &mut request.parts;
        let (total_bytes, end_of_file) = (trailer.total_bytes.get(), trailer.end_of_file != 0);
        if parts.expected == 0 {
            parts.expected = trailer.parts.get();
            parts.total_bytes = total_bytes;
            parts.end_of_file = end_of_file;
        }
        if parts.expected != trailer.parts.get()
            || parts.total_bytes != total_bytes
            || parts.end_of_file != end_of_file
            || total_bytes > asked
        {
            let (message, field) = (Arrival::NAME, "total_bytes");
            return Err(DecodeError::Field { message, field, value: total_bytes.into() });
        }
        if !parts.insert(trailer.part.get()) {
            self.counters.late_arrivals += 1;
            return Ok(());
        }
        if parts.failure == 0 {
            parts.failure = arrival.status.get();
        }
        if parts.is_complete() || self.defects.arrivals() {
            let failure = Status(parts.failure);
            request.uncertain = false;
            let result = if failure.is_ok() {
                Ok(Outcome::Read { bytes: total_bytes, end_of_file })
            } else {
                Err(ErrorKind::Status(failure))
            };
            self.finish(index, result);
        }
        Ok(())
    }

    fn on_reply(&mut self, reactor: u16, frame: &Frame<'_>) -> Result<(), DecodeError> {
        match frame.kind {
            IoReply::KIND => {
                let (reply, tail) = frame.read::<IoReply>()?;
                let targets = targets_of::<IoReply>(reply.targets.get(), tail)?;
                let Some(index) = self.accept::<IoReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_io_done(index, reply),
                    status => self.on_failure(index, status, targets),
                }
            }
            EntryReply::KIND => {
                let (reply, tail) = frame.read::<EntryReply>()?;
                let targets = targets_of::<EntryReply>(reply.targets.get(), tail)?;
                let Some(index) = self.accept::<EntryReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_entry(index, reply, targets),
                    status => self.on_failure(index, status, targets),
                }
            }
            DirectoryReply::KIND => {
                let (reply, tail) = frame.read::<DirectoryReply>()?;
                let listing = listing(reply, tail)?;
                let Some(index) = self.accept::<DirectoryReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_listing(index, listing),
                    status => self.on_failure(index, status, &[]),
                }
            }
            XattrReply::KIND => {
                let (reply, tail) = frame.read::<XattrReply>()?;
                let value = reply.value(tail)?;
                let Some(index) = self.accept::<XattrReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_xattr(index, value),
                    status => self.on_failure(index, status, &[]),
                }
            }
            TargetReply::KIND => {
                let (reply, tail) = frame.read::<TargetReply>()?;
                self.counters.replies += 1;
                return self.on_ticket(reply, tail);
            }
            StatFsReply::KIND => {
                let (reply, _) = frame.read::<StatFsReply>()?;
                let Some(index) = self.accept::<StatFsReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_space(index, reply),
                    status => self.on_failure(index, status, &[]),
                }
            }
            StatsReply::KIND => {
                let (reply, tail) = frame.read::<StatsReply>()?;
                let counters = counters(reply, tail)?;
                let Some(index) = self.accept::<StatsReply>(reactor, &reply.header)? else {
                    return Ok(());
                };
                match Status(reply.header.status.get()) {
                    Status::OK => self.on_counters(index, counters, reply.last.get() != 0),
                    status => self.on_failure(index, status, &[]),
                }
            }
            // A later version's message: not for us.
            _ => {}
        }
        Ok(())
    }

    /// The request that a reply answers; `None` for one that is over or has moved on.
    fn accept<T: Message>(
        &mut self,
        reactor: u16,
        header: &ReplyHeader,
    ) -> Result<Option<u32>, DecodeError> {
        self.counters.replies += 1;
        header.request.check::<T>()?;
        let found = if header.request.shard.get() == SESSION_SHARD {
            self.find_session_request(header.request.sequence.get())
        } else {
            self.find_answered(header)
        };
        match found {
            Some(index) if self.requests[index].reactor == reactor => {
                if self.requests[index].place.is_some() {
                    self.requests[index].uncertain = false;
                }
                Ok(Some(index))
            }
            _ => {
                self.counters.late_replies += 1;
                Ok(None)
            }
        }
    }

    fn find_session_request(&self, tag: u64) -> Option<u32> {
        let index = (tag as u32).checked_sub(1)?;
        if index as usize >= self.requests.capacity() {
            return None;
        }
        let request = &self.requests[index];
        let is_it = request.state == State::Sent
            && request.place.is_none()
            && session_tag(index, request.generation) == tag;
        is_it.then_some(index)
    }

    fn find_answered(&mut self, header: &ReplyHeader) -> Option<u32> {
        let (shard, slot) = (header.request.shard.get(), header.request.slot.get());
        let (sequence, attempt) = (header.request.sequence.get(), header.request.attempt.get());
        match self.slots.owner(shard, slot, sequence) {
            Owner::Free => None,
            Owner::Parked => {
                if self.slots.answered(Place { shard, slot, sequence }, attempt, false) {
                    self.wakes.slots |= 1 << shard;
                }
                None
            }
            Owner::Request(index) => {
                let request = &self.requests[index];
                let is_current = request.attempt == attempt && request.state == State::Sent;
                // A change that a former attempt achieved is achieved: the server answers later
                // attempts by the same reply and executes nothing.
                let is_achieved = attempt <= request.attempt
                    && request.uncertain
                    && Status(header.status.get()).is_ok()
                    && self.is_change(index);
                (is_current || is_achieved).then_some(index)
            }
        }
    }

    fn on_io_done(&mut self, index: u32, reply: &IoReply) {
        let (bytes, end_of_file) = (reply.length.get(), reply.end_of_file.get() != 0);
        let request = &mut self.requests[index];
        let parts = request.parts.count;
        let zeros = !self.options.complete_by_metaserver;
        let result = match &mut request.operation {
            Some(Operation::Read { length, buffer, buffer_offset, .. }) => {
                let start = *buffer_offset as usize;
                if bytes > *length || (zeros && parts > 0) {
                    Err(ErrorKind::Protocol("a read's reply contradicts the request"))
                } else {
                    if zeros {
                        buffer[start..start + bytes as usize].fill(0);
                    }
                    Ok(Outcome::Read { bytes, end_of_file })
                }
            }
            Some(Operation::Write { length, .. }) => {
                if bytes > *length {
                    Err(ErrorKind::Protocol("a write's reply contradicts the request"))
                } else {
                    let (offset, size) = (reply.offset.get(), reply.size.get());
                    Ok(Outcome::Write { bytes, offset, size })
                }
            }
            _ => Err(ErrorKind::Protocol("a reply of another kind of request")),
        };
        match result {
            // Who knows what such a server has under way.
            Err(kind) => self.cut_and_fail(index, kind),
            result => self.finish(index, result),
        }
    }

    fn on_entry(&mut self, index: u32, reply: &EntryReply, targets: &[u8]) {
        let attributes = reply.attributes;
        if !targets.is_empty()
            && let Some(mask) = self.targets.mask_of(targets)
        {
            self.sets.insert(attributes.handle.inode(), mask);
            let operation = &self.requests[index].operation;
            let opens = operation.as_ref().is_some_and(|operation| operation.opens().is_some());
            if opens || matches!(operation, Some(Operation::Open { .. })) {
                for target in crate::targets::members(mask) {
                    self.wake_target(target);
                }
            }
        }
        let request = &self.requests[index];
        if let Some((access, open)) = request.operation.as_ref().and_then(Operation::opens) {
            let file = match &request.operation {
                Some(Operation::OpenFile { file, .. }) => *file,
                _ => attributes.handle,
            };
            let creates = matches!(request.operation, Some(Operation::CreateOpen { .. }));
            if creates && attributes.mode.get() == 0 {
                // It was there, and lies on another shard, which opens it.
                let request = &mut self.requests[index];
                request.operation = Some(Operation::OpenFile { file, access, open });
                return self.send_anew(index);
            }
            let (identity, opener) = (request.identity, request.opener);
            self.opens.insert(open, Known { file, access, identity, opener });
        }
        let result = match &self.requests[index].operation {
            Some(Operation::Lookup { path, .. }) => {
                let length = path.len();
                return self.on_resolved(index, reply.consumed.get(), length, attributes);
            }
            Some(
                Operation::Read { .. }
                | Operation::Write { .. }
                | Operation::Readdir { .. }
                | Operation::GetXattr { .. }
                | Operation::ListXattrs { .. }
                | Operation::SetXattr { .. }
                | Operation::RemoveXattr { .. }
                | Operation::StatFs { .. }
                | Operation::Stats { .. },
            )
            | None => Err(ErrorKind::Protocol("a reply of another kind of request")),
            Some(_) => Ok(Outcome::Entry(attributes)),
        };
        self.finish(index, result);
    }

    /// A shard has resolved a path, or the part of it that it could.
    fn on_resolved(&mut self, index: u32, consumed: u16, length: usize, attributes: Attributes) {
        let request = &mut self.requests[index];
        let resolved = usize::from(request.resolved) + usize::from(consumed);
        let is_whole = resolved == length && attributes.mode.get() != 0;
        if is_whole {
            return self.finish(index, Ok(Outcome::Entry(attributes)));
        }
        let handle = attributes.handle;
        let from = request.operation.as_ref().and_then(Operation::handle).unwrap_or_default();
        let is_progress = consumed > 0 || handle != from;
        if resolved > length
            || handle.inode().shard().is_none()
            || !is_progress
            || request.hops >= HOPS_MAX
        {
            let kind = ErrorKind::Protocol("a path was resolved beyond its end, or not at all");
            return self.finish(index, Err(kind));
        }
        request.hops += 1;
        request.resolved = resolved as u16;
        if let Some(Operation::Lookup { parent, .. }) = &mut request.operation {
            *parent = handle;
        }
        self.send_anew(index);
    }

    fn on_xattr(&mut self, index: u32, value: &[u8]) {
        let result = match self.requests[index].operation {
            Some(
                Operation::GetXattr { .. }
                | Operation::ListXattrs { .. }
                | Operation::SetXattr { .. }
                | Operation::RemoveXattr { .. },
            ) => Ok(Outcome::Xattr(value.to_vec())),
            _ => Err(ErrorKind::Protocol("a reply of another kind of request")),
        };
        match result {
            // Who knows what such a server has under way.
            Err(kind) => self.cut_and_fail(index, kind),
            result => self.finish(index, result),
        }
    }

    fn on_listing(&mut self, index: u32, listing: Listing) {
        let is_readdir = matches!(self.requests[index].operation, Some(Operation::Readdir { .. }));
        let result = if is_readdir && (listing.end || !listing.entries.is_empty()) {
            Ok(Outcome::Directory(listing))
        } else {
            Err(ErrorKind::Protocol("a listing that was not asked for or makes no progress"))
        };
        self.finish(index, result);
    }

    fn on_space(&mut self, index: u32, reply: &StatFsReply) {
        let space = Space {
            blocks_total: reply.blocks_total.get(),
            blocks_used: reply.blocks_used.get(),
            inodes: reply.inodes.get(),
            targets: reply.targets.get(),
            block_bytes: reply.block_bytes.get(),
        };
        let result = match self.requests[index].operation {
            Some(Operation::StatFs { .. }) => Ok(Outcome::Space(space)),
            _ => Err(ErrorKind::Protocol("a reply of another kind of request")),
        };
        self.finish(index, result);
    }

    fn on_counters(&mut self, index: u32, counters: Counters, last: bool) {
        let request = &mut self.requests[index];
        if !matches!(request.operation, Some(Operation::Stats { .. })) {
            let kind = ErrorKind::Protocol("a reply of another kind of request");
            return self.finish(index, Err(kind));
        }
        // A role may answer in several parts.
        let parts: usize = request.counters.iter().map(|one| one.connections.len()).sum();
        let is_room = request.counters.len() < ROLES_MAX;
        match request.counters.iter_mut().find(|one| one.role == counters.role) {
            Some(one) if parts < CONNECTIONS_MAX => {
                one.values.extend(counters.values);
                one.connections.extend(counters.connections);
            }
            None if is_room => request.counters.push(counters),
            _ => {
                request.counters.clear();
                let kind = ErrorKind::Protocol("counters without end");
                return self.finish(index, Err(kind));
            }
        }
        if last {
            let collected = std::mem::take(&mut request.counters);
            self.finish(index, Ok(Outcome::Counters(collected)));
        }
    }
}

/// The data servers in a reply's tail, four bytes each.
fn targets_of<T: Message>(count: u16, tail: &[u8]) -> Result<&[u8], DecodeError> {
    let bytes = usize::from(count) * 4;
    Ok(split_tail::<T>(tail, "targets", bytes, TARGETS_PER_FILE_MAX * 4)?.0)
}

fn listing(reply: &DirectoryReply, mut tail: &[u8]) -> Result<Listing, DecodeError> {
    let too_short = DecodeError::TooShort { name: DirectoryReply::NAME, len_bytes: tail.len() };
    let count = usize::from(reply.count.get());
    if count > LARGE_PACKET_BYTES / size_of::<DirectoryEntry>() {
        return Err(too_short);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, rest) = DirectoryEntry::ref_from_prefix(tail).map_err(|_| too_short)?;
        let length = usize::from(entry.name_bytes.get());
        let split = split_tail::<DirectoryReply>;
        let (name, rest) = split(rest, "name_bytes", length, LARGE_PACKET_BYTES)?;
        tail = rest;
        entries.push(Entry {
            handle: Handle::new(Inode(entry.inode.get())),
            file_type: entry.file_type.get(),
            name: name.to_vec(),
        });
    }
    Ok(Listing { entries, end: reply.end.get() != 0 })
}

fn counters(reply: &StatsReply, tail: &[u8]) -> Result<Counters, DecodeError> {
    let (mut values, mut connections) = (Vec::new(), Vec::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (count, connection_count) = (reply.count.get(), reply.connections.get());
    read_stats::<StatsReply>(tail, count, connection_count, |entry| match entry {
        StatsEntry::Counter { name, value } => values.push((text(name), value)),
        StatsEntry::Connection { kind, id, fabric, peer } => {
            let of = match (kind, u32::try_from(id)) {
                (connection_kind::HOST, _) => Peer::Host(SessionId(id)),
                (connection_kind::TARGET, Ok(id)) => Peer::Target(TargetId(id)),
                (connection_kind::DATA_SESSION, _) => Peer::DataSession(SessionId(id)),
                _ => Peer::Unknown { kind, id },
            };
            connections.push(PeerConnection { peer: of, fabric: text(fabric), at: text(peer) });
        }
    })?;
    let index = reply.index.get();
    let role = match reply.role.get() {
        0 => crate::counters::Role::Metaserver(index),
        1 => crate::counters::Role::Target(index),
        role => crate::counters::Role::Unknown { role, index },
    };
    Ok(Counters { role, values, connections })
}
