//! The plain way of what comes most: reads that need one grant, their retirement, and STAT.
//!
//! It looks up each thing once, and touches nothing before all is known to be plain: a slot that goes
//! on to its next request, a file whose mode or owner lets the asker read, an extent with all bytes of
//! the range, its data server up and with room, and the host's memory named to it. Everything else is
//! left, untouched, to the general way (`reply`, `read`, `grants`, `attributes`), which decides what
//! these functions do too: whatever it refuses, or lets wait, must not be plain. Tests drive cores with
//! and without this way and find them equal in outputs and state.

use gannet_proto::control::{Grant, grant_flags, grant_operation};
use gannet_proto::data::Trailer;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::operations::{
    EntryReply, InodeRequest, Read, RequestHeader, Window, inode_operation, io_flags,
};
use gannet_proto::slots::Slot;
use gannet_proto::{Handle, Inode, Status};
use zerocopy::little_endian::{U16, U32, U64};

use crate::buffer::Buffer;
use crate::identities::READ;
use crate::namespace::Content;
use crate::operations::{OperationId, PlainRead};
use crate::reply::TargetTail;
use crate::{Core, SessionIndex, Sink};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What went this way, in tests.
#[derive(Clone, Copy, Debug)]
enum Went {
    Read,
    Retirement,
    Stat,
}

/// For tests: whether the general way serves what this one could, and how often each went it.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct PlainWay {
    pub closed: bool,
    pub went: [u64; 3],
}

impl Core {
    #[cfg(test)]
    fn has_plain_way(&self) -> bool {
        !self.plain_way.closed
    }

    #[cfg(test)]
    fn note_plain(&mut self, went: Went) {
        self.plain_way.went[went as usize] += 1;
    }

    #[cfg(not(test))]
    fn note_plain(&mut self, _: Went) {}

    #[cfg(not(test))]
    fn has_plain_way(&self) -> bool {
        true
    }

    /// The inode of a request that this core serves and whose fields are plain.
    #[inline]
    fn plain_inode(&self, header: &RequestHeader, handle: &Handle) -> Option<Inode> {
        let (shard, inode) = (header.shard.get(), handle.inode());
        let reactor = *self.config.shard_map.get(usize::from(shard))?;
        let is_plain = self.ready
            && self.has_plain_way()
            && u16::from(reactor) == self.config.reactor
            && header.slot.get() < self.config.slots
            && inode.0 >> 48 == u64::from(shard)
            && handle.file_system.get() == 0
            && handle.generation.get() == 0;
        is_plain.then_some(inode)
    }

    /// READ, if it is plain. `false`: nothing was done.
    #[inline]
    pub(crate) fn read_plainly(
        &mut self,
        session: SessionIndex,
        request: &Read,
        windows: &[Window],
        sink: &mut impl Sink,
    ) -> bool {
        self.grant_plain_read(session, request, windows, sink).is_some()
    }

    fn grant_plain_read(
        &mut self,
        index: SessionIndex,
        request: &Read,
        windows: &[Window],
        sink: &mut impl Sink,
    ) -> Option<()> {
        let header = &request.header;
        let inode = self.plain_inode(header, &request.handle)?;
        let session = self.sessions.find(index)?;
        let session_id = session.id.0;
        let node = self.nodes.get_mut(&inode)?;
        if !session.identities.may_plainly(request.identity.get(), node, READ) {
            return None;
        }
        let (slot, registrations) = session.used_slot(header)?;
        if !slot.is_next(header.sequence.get()) {
            return None;
        }
        let after = node.lsn;
        let file = node.file_mut()?;
        let offset = request.offset.get();
        let until = offset.checked_add(request.length.get().into())?.min(file.size);
        let extent = file.extents.covering(offset / BLOCK)?;
        let start = extent.file_block * BLOCK;
        if offset >= until || start + extent.valid_bytes() < until {
            return None;
        }
        let store = self.targets.store(extent.store)?;
        if !store.up || store.generation != extent.generation {
            return None;
        }
        let target = store.target;
        let flags = request.flags.get();
        let buffer = Buffer::new(flags, request.buffer, windows);
        let memory = buffer.at(registrations, target, request.length.get()).ok()?;
        let known = self.targets.find(target)?;
        if !known.waiting.is_empty() || !known.has_room(1, self.config.grants_max) {
            return None;
        }
        let confirm = flags & io_flags::COMPLETE_BY_METASERVER != 0;
        let (length, end_of_file) = ((until - offset) as u32, until == file.size);
        let read = PlainRead {
            session: index,
            header: *header,
            inode,
            offset,
            length,
            end_of_file,
            direct: !confirm,
            start: self.clock,
        };
        let id = self.operations.begin_plain_read(&mut file.live, read)?;
        let (sequence, attempt) = (header.sequence.get(), header.attempt.get());
        slot.slot = if confirm {
            Slot::Busy { sequence, attempt, operation: id }
        } else {
            Slot::Delegated { sequence, attempt, operation: id }
        };
        let trailer = Trailer {
            request: *header,
            part: U16::ZERO,
            parts: U16::new(1),
            total_bytes: U32::new(length),
            end_of_file: end_of_file.into(),
            reserved: [0; 7],
        };
        let inside = offset - start;
        let grant = Grant {
            term: U64::new(self.config.term.0),
            number: U64::new(known.grant(id).0),
            session: U64::new(session_id),
            epoch: U64::new(memory.epoch.0),
            store: U32::new(extent.store.0),
            generation: U32::new(extent.generation),
            operation: grant_operation::READ,
            flags: if confirm { grant_flags::NOTIFY_METASERVER } else { 0 },
            shard: header.shard,
            offset: U32::new((inside % BLOCK) as u32),
            block: U64::new(extent.block.0 + inside / BLOCK),
            length: U32::new(length),
            valid: U32::new(length),
            host_address: U64::new(memory.address),
            host_key: U32::new(memory.key),
            trailer: zerocopy::transmute!(trailer),
            ..Grant::default()
        };
        self.note_plain(Went::Read);
        self.counters.grants += 1;
        self.counters.read_bytes += u64::from(length);
        sink.grant(target, after, &grant);
        Some(())
    }

    /// Ends a read whose only grant was retired, if it is plain. `false`: nothing was done.
    #[inline]
    pub(crate) fn end_plain_read(&mut self, id: OperationId) -> bool {
        if !self.has_plain_way() {
            return false;
        }
        let Some(operation) = self.operations.plain_read(id) else { return false };
        let inode = operation.inode;
        if !operation.dead
            && let Some(session) = self.sessions.find(operation.session)
            && let Some((slot, _)) = session.used_slot(&operation.header)
            && slot.carries(id)
        {
            let header = &operation.header;
            slot.slot.answer(header.sequence.get(), header.attempt.get(), None);
        }
        if let Some(tail) = self.operations.end_plain_read(id)
            && let Some(file) = self.nodes.get_mut(&inode).and_then(|node| node.file_mut())
        {
            file.live = tail;
        }
        self.note_plain(Went::Retirement);
        true
    }

    /// STAT, OPEN and FSYNC, if it is plain. `false`: nothing was done.
    #[inline]
    pub(crate) fn stat_plainly(
        &mut self,
        session: SessionIndex,
        request: &InodeRequest,
        sink: &mut impl Sink,
    ) -> bool {
        self.answer_plain_stat(session, request, sink).is_some()
    }

    fn answer_plain_stat(
        &mut self,
        index: SessionIndex,
        request: &InodeRequest,
        sink: &mut impl Sink,
    ) -> Option<()> {
        let header = &request.header;
        let inode = self.plain_inode(header, &request.handle)?;
        let (inode_operation::STAT | inode_operation::OPEN | inode_operation::FSYNC) =
            request.operation.get()
        else {
            return None;
        };
        let session = self.sessions.find(index)?;
        let is_connected = session.connected;
        let (slot, _) = session.used_slot(header)?;
        if !slot.is_next(header.sequence.get()) {
            return None;
        }
        let node = self.nodes.get(&inode)?;
        slot.slot.answer(header.sequence.get(), header.attempt.get(), None);
        if !is_connected {
            return Some(());
        }
        let mut tail = TargetTail::default();
        if let Content::File(file) = &node.content {
            let stores = file.set.iter().filter_map(|store| self.targets.store(store));
            stores.for_each(|store| tail.push(store.target));
        }
        let reply = EntryReply {
            header: header.reply(Status::OK),
            attributes: node.attributes(),
            targets: U16::new(tail.len() as u16),
            ..EntryReply::default()
        };
        sink.reply(index, node.lsn, &reply, &[tail.bytes()]);
        self.note_plain(Went::Stat);
        Some(())
    }
}
