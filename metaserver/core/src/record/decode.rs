//! From bytes to a change, with every field checked.

use gannet_proto::limits::{
    BLOCK_BYTES, FILE_BYTES_MAX, PARTS_MAX, SHARDS, SLOTS_MAX, TARGETS_PER_FILE_MAX,
};
use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::xattr::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use gannet_proto::{Block, Inode, ShardId, StoreId, TargetId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::effects::next_effect;
use super::layout::{
    ATTRIBUTES, AttributesBody, DROP_INODE, DecidedBody, EndedBody, EntryBody, ExtentRecord,
    LocationRecord, NodeBody, PairBody, PreparedBody, RenameBody, StoreBody, WriteBody, XattrBody,
    ZoneBody, kind,
};
use super::{
    Change, EFFECTS_MAX, EffectList, ExtentList, IoKept, NO_SHARD, Origin, PARTICIPANTS_MAX,
    RecordError, RecordHeader, Reply, ShardList, StoreList,
};
use crate::extents::Extent;
use crate::targets::STORE_BLOCKS_MAX;

/// Reads the next extent of a list.
pub(super) fn next_extent(bytes: &[u8]) -> Result<(Extent, &[u8]), RecordError> {
    let kind = kind::WRITE_COMMITTED;
    let short = RecordError::TooShort { kind, len_bytes: bytes.len() };
    let field = |field, value| Err(RecordError::Field { kind, field, value });
    let (extent, rest) = ExtentRecord::ref_from_prefix(bytes).map_err(|_| short)?;
    // A list of locations is what the format provides for; this build writes one and reads the
    // first, so a longer list is a thing of a later version.
    if extent.locations.get() != 1 {
        return field("locations", extent.locations.get().into());
    }
    let (location, rest) = LocationRecord::ref_from_prefix(rest).map_err(|_| short)?;
    let (file_block, blocks) = (extent.file_block.get(), extent.blocks.get());
    let block_bytes = u64::from(BLOCK_BYTES);
    if blocks == 0 || file_block > FILE_BYTES_MAX / block_bytes {
        return field("file_block", file_block);
    }
    if file_block + u64::from(blocks) > FILE_BYTES_MAX / block_bytes {
        return field("blocks", blocks.into());
    }
    let valid = extent.valid_bytes.get();
    let (low, high) = ((u64::from(blocks) - 1) * block_bytes, u64::from(blocks) * block_bytes);
    if valid <= low || valid > high {
        return field("valid_bytes", valid);
    }
    let block = location.block.get();
    if block > STORE_BLOCKS_MAX || block + u64::from(blocks) > STORE_BLOCKS_MAX {
        return field("block", block);
    }
    let extent = Extent {
        file_block,
        blocks,
        store: StoreId(location.store.get()),
        block: Block(block),
        generation: location.generation.get(),
        tail_valid: (valid - low) as u16,
        birth: extent.birth.get(),
    };
    Ok((extent, rest))
}

/// Reads the parts of one record, with its kind for the errors.
struct Reader<'a> {
    kind: u16,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
    ) -> Result<&'a T, RecordError> {
        let short = RecordError::TooShort { kind: self.kind, len_bytes: self.rest.len() };
        let (value, rest) = T::ref_from_prefix(self.rest).map_err(|_| short)?;
        self.rest = rest;
        Ok(value)
    }

    fn bytes(&mut self, len_bytes: usize) -> Result<&'a [u8], RecordError> {
        let short = RecordError::TooShort { kind: self.kind, len_bytes: self.rest.len() };
        let (bytes, rest) = self.rest.split_at_checked(len_bytes).ok_or(short)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn field<V>(&self, field: &'static str, value: u64) -> Result<V, RecordError> {
        Err(RecordError::Field { kind: self.kind, field, value })
    }

    fn inode(&self, field: &'static str, value: U64) -> Result<Inode, RecordError> {
        let inode = Inode(value.get());
        if inode.shard().is_none() { self.field(field, inode.0) } else { Ok(inode) }
    }

    fn name(&mut self, len_bytes: U16) -> Result<&'a [u8], RecordError> {
        let name = self.bytes(len_bytes.get().into())?;
        match gannet_proto::operations::check_name(name) {
            Ok(()) => Ok(name),
            Err(_) => self.field("name_bytes", name.len() as u64),
        }
    }

    fn shard(&self, field: &'static str, value: U16) -> Result<ShardId, RecordError> {
        let shard = value.get();
        match usize::from(shard) < SHARDS {
            true => Ok(ShardId(shard)),
            false => self.field(field, shard.into()),
        }
    }

    fn shards(&mut self, count: U16) -> Result<ShardList<'a>, RecordError> {
        let count = usize::from(count.get());
        if count > PARTICIPANTS_MAX {
            return self.field("participants", count as u64);
        }
        let bytes = self.bytes(count * size_of::<U16>())?;
        match <[U16]>::ref_from_bytes(bytes) {
            Ok(shards) => {
                for shard in shards {
                    self.shard("participants", *shard)?;
                }
                Ok(ShardList(shards))
            }
            Err(_) => self.field("participants", count as u64),
        }
    }

    fn effects(&mut self, count: U16) -> Result<EffectList<'a>, RecordError> {
        let count = count.get();
        if usize::from(count) > EFFECTS_MAX {
            return self.field("effects", count.into());
        }
        let (kind, all) = (self.kind, self.rest);
        for _ in 0..count {
            let refused = |refused| match refused {
                Some((field, value)) => RecordError::Field { kind, field, value },
                None => RecordError::TooShort { kind, len_bytes: all.len() },
            };
            let (_, rest) = next_effect(self.rest).map_err(refused)?;
            self.rest = rest;
        }
        let bytes = &all[..all.len() - self.rest.len()];
        Ok(EffectList { bytes, count })
    }

    fn xattr(&mut self, body: &XattrBody) -> Result<(&'a [u8], &'a [u8]), RecordError> {
        let (name, value) = (body.name_bytes.get(), body.value_bytes.get());
        if name == 0 || usize::from(name) > XATTR_NAME_BYTES_MAX {
            return self.field("name_bytes", name.into());
        }
        if usize::from(value) > XATTR_VALUE_BYTES_MAX {
            return self.field("value_bytes", value.into());
        }
        Ok((self.bytes(name.into())?, self.bytes(value.into())?))
    }

    fn stores(&mut self, count: U16) -> Result<StoreList<'a>, RecordError> {
        let count = usize::from(count.get());
        if count > TARGETS_PER_FILE_MAX {
            return self.field("stores", count as u64);
        }
        let bytes = self.bytes(count * size_of::<U32>())?;
        match <[U32]>::ref_from_bytes(bytes) {
            Ok(stores) => Ok(StoreList(stores)),
            Err(_) => self.field("stores", count as u64),
        }
    }
}

/// Reads a record.
///
/// # Errors
/// Whatever is out of bounds, by field.
pub(crate) fn decode(record: &[u8]) -> Result<(Origin, Change<'_>), RecordError> {
    let (header, _) = RecordHeader::ref_from_prefix(record)
        .map_err(|_| RecordError::TooShort { kind: 0, len_bytes: record.len() })?;
    let kind = header.kind.get();
    let length = header.length.get() as usize;
    if length > record.len() || length < size_of::<RecordHeader>() {
        return Err(RecordError::Field { kind, field: "length", value: length as u64 });
    }
    let mut reader = Reader { kind, rest: &record[size_of::<RecordHeader>()..length] };
    let shard = match header.shard.get() {
        NO_SHARD => None,
        shard if usize::from(shard) < SHARDS => Some(ShardId(shard)),
        shard => return reader.field("shard", shard.into()),
    };
    if usize::from(header.slot.get()) >= SLOTS_MAX {
        return reader.field("slot", header.slot.get().into());
    }
    let reply = match header.reply.get() {
        0 => Reply::None,
        1 => Reply::Node,
        2 => Reply::Empty,
        3 => Reply::Attributes(*reader.take::<Attributes>()?),
        4 => Reply::Io(*reader.take::<IoKept>()?),
        5 => Reply::Xattr,
        reply => return reader.field("reply", reply.into()),
    };
    if reply != Reply::None && (header.session.get() == 0 || shard.is_none()) {
        return reader.field("session", header.session.get());
    }
    let origin = Origin {
        shard,
        operation: header.operation.get(),
        session: header.session.get(),
        instance: header.instance.get(),
        sequence: header.sequence.get(),
        slot: header.slot.get(),
        time_ns: header.time_ns.get(),
        reply,
    };
    Ok((origin, decode_body(&mut reader)?))
}

fn decode_body<'a>(reader: &mut Reader<'a>) -> Result<Change<'a>, RecordError> {
    Ok(match reader.kind {
        kind::NODE_CREATED => {
            let body = reader.take::<NodeBody>()?;
            let mode = reader_mode(reader, body.mode)?;
            Change::NodeCreated {
                parent: reader.inode("parent", body.parent)?,
                inode: reader.inode("inode", body.inode)?,
                mode,
                uid: body.uid.get(),
                gid: body.gid.get(),
                name: reader.name(body.name_bytes)?,
                set: reader.stores(body.stores)?,
            }
        }
        kind::DIRECTORY_MADE => {
            let body = reader.take::<NodeBody>()?;
            let mode = reader_mode(reader, body.mode)?;
            if mode & file_type::MASK != file_type::DIRECTORY {
                return reader.field("mode", mode.into());
            }
            Change::DirectoryMade {
                parent: reader.inode("parent", body.parent)?,
                inode: reader.inode("inode", body.inode)?,
                mode,
                uid: body.uid.get(),
                gid: body.gid.get(),
            }
        }
        kind::LAYOUT_SET => {
            let body = reader.take::<NodeBody>()?;
            let inode = reader.inode("inode", body.inode)?;
            Change::LayoutSet { inode, set: reader.stores(body.stores)? }
        }
        kind::ENTRY_ADDED => {
            let body = reader.take::<EntryBody>()?;
            let file_type = reader_mode(reader, body.file_type)? & file_type::MASK;
            Change::EntryAdded {
                directory: reader.inode("directory", body.directory)?,
                inode: reader.inode("inode", body.inode)?,
                file_type,
                name: reader.name(body.name_bytes)?,
            }
        }
        kind::ENTRY_REMOVED => {
            let body = reader.take::<EntryBody>()?;
            Change::EntryRemoved {
                directory: reader.inode("directory", body.directory)?,
                drop_inode: reader_drops(reader, body.flags)?,
                name: reader.name(body.name_bytes)?,
            }
        }
        kind::RENAMED => {
            let body = reader.take::<RenameBody>()?;
            Change::Renamed {
                directory: reader.inode("directory", body.directory)?,
                to_directory: reader.inode("to_directory", body.to_directory)?,
                drop_inode: reader_drops(reader, body.flags)?,
                name: reader.name(body.name_bytes)?,
                to_name: reader.name(body.to_name_bytes)?,
            }
        }
        kind::NODE_DROPPED => {
            let body = reader.take::<PairBody>()?;
            Change::NodeDropped { inode: reader.inode("inode", body.inode)? }
        }
        kind::OPEN_KEPT => {
            let body = reader.take::<PairBody>()?;
            Change::OpenKept { inode: reader.inode("inode", body.inode)? }
        }
        kind::XATTR_SET => {
            let body = reader.take::<XattrBody>()?;
            let inode = reader.inode("inode", body.inode)?;
            let (name, value) = reader.xattr(body)?;
            Change::XattrSet { inode, name, value }
        }
        kind::XATTR_REMOVED => {
            let body = reader.take::<XattrBody>()?;
            let inode = reader.inode("inode", body.inode)?;
            let (name, _) = reader.xattr(body)?;
            Change::XattrRemoved { inode, name }
        }
        kind::PARENT_SET => {
            let body = reader.take::<PairBody>()?;
            Change::ParentSet {
                inode: reader.inode("inode", body.inode)?,
                parent: reader.inode("parent", body.other)?,
            }
        }
        kind::SESSION_KNOWN => {
            let body = reader.take::<PairBody>()?;
            Change::SessionKnown { session: body.inode.get(), instance: body.other.get() }
        }
        kind::SESSION_ENDED => {
            Change::SessionEnded { session: reader.take::<PairBody>()?.inode.get() }
        }
        kind::ATTRIBUTES_SET => {
            let body = reader.take::<AttributesBody>()?;
            if body.mask.get() & !ATTRIBUTES != 0 {
                return reader.field("mask", body.mask.get().into());
            }
            if body.size.get() > FILE_BYTES_MAX {
                return reader.field("size", body.size.get());
            }
            Change::AttributesSet {
                inode: reader.inode("inode", body.inode)?,
                mask: body.mask.get(),
                mode: body.mode.get(),
                uid: body.uid.get(),
                gid: body.gid.get(),
                atime_ns: body.atime_ns.get(),
                mtime_ns: body.mtime_ns.get(),
                size: body.size.get(),
            }
        }
        kind::WRITE_COMMITTED => {
            let body = reader.take::<WriteBody>()?;
            if body.size.get() > FILE_BYTES_MAX {
                return reader.field("size", body.size.get());
            }
            let count = body.extents.get();
            if usize::from(count) > PARTS_MAX {
                return reader.field("extents", count.into());
            }
            let inode = reader.inode("inode", body.inode)?;
            let all = reader.rest;
            for _ in 0..count {
                let (_, rest) = next_extent(reader.rest)?;
                reader.rest = rest;
            }
            let bytes = &all[..all.len() - reader.rest.len()];
            let extents = ExtentList { bytes, count };
            Change::WriteCommitted { inode, size: body.size.get(), extents }
        }
        kind::TARGET_ADDED => {
            let body = reader.take::<StoreBody>()?;
            Change::TargetAdded { target: TargetId(body.target.get()), uuid: body.uuid }
        }
        kind::STORE_ADDED => {
            let body = reader.take::<StoreBody>()?;
            Change::StoreAdded {
                store: StoreId(body.store.get()),
                target: TargetId(body.target.get()),
                uuid: body.uuid,
                generation: body.generation.get(),
                blocks: body.blocks.get(),
            }
        }
        kind::STORE_CHANGED => {
            let body = reader.take::<StoreBody>()?;
            Change::StoreChanged {
                store: StoreId(body.store.get()),
                target: TargetId(body.target.get()),
                generation: body.generation.get(),
                blocks: body.blocks.get(),
            }
        }
        kind::ZONE_ASSIGNED => {
            let body = reader.take::<ZoneBody>()?;
            Change::ZoneAssigned {
                store: StoreId(body.store.get()),
                zone: body.zone.get(),
                shard: reader.shard("shard", body.shard)?,
            }
        }
        kind::ZONE_RETURNED => {
            let body = reader.take::<ZoneBody>()?;
            Change::ZoneReturned { store: StoreId(body.store.get()), zone: body.zone.get() }
        }
        kind::PREPARED => {
            let body = reader.take::<PreparedBody>()?;
            Change::Prepared {
                coordinator: reader.shard("coordinator", body.coordinator)?,
                order: body.order.get(),
                effects: reader.effects(body.effects)?,
            }
        }
        kind::DECIDED => {
            let body = reader.take::<DecidedBody>()?;
            Change::Decided {
                participants: reader.shards(body.participants)?,
                effects: reader.effects(body.effects)?,
            }
        }
        kind::APPLIED => {
            let body = reader.take::<EndedBody>()?;
            Change::Applied { coordinator: reader.shard("coordinator", body.coordinator)? }
        }
        kind::ABORTED => {
            let body = reader.take::<EndedBody>()?;
            Change::Aborted { coordinator: reader.shard("coordinator", body.coordinator)? }
        }
        kind::FORGOTTEN => Change::Forgotten,
        kind => return Err(RecordError::UnknownKind { kind }),
    })
}

fn reader_mode(reader: &Reader<'_>, mode: U32) -> Result<u32, RecordError> {
    match mode.get() & file_type::MASK {
        file_type::REGULAR | file_type::DIRECTORY => Ok(mode.get()),
        _ => reader.field("mode", mode.get().into()),
    }
}

fn reader_drops(reader: &Reader<'_>, flags: U16) -> Result<bool, RecordError> {
    if flags.get() & !DROP_INODE != 0 {
        return reader.field("flags", flags.get().into());
    }
    Ok(flags.get() & DROP_INODE != 0)
}
