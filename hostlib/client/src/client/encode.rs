//! Requests as the wire carries them.

use gannet_proto::Handle;
use gannet_proto::limits::LARGE_PACKET_BYTES;
use gannet_proto::operations::{
    BufferRef, DirectoryReply, InodeRequest, NameRequest, Read, RequestHeader, SetAttributes,
    StatFs, Stats, Window, Write, inode_operation, io_flags, name_flags, name_operation,
};
use gannet_proto::packet::FrameHeader;
use gannet_proto::xattr::{
    XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XattrRequest, xattr_flags, xattr_operation,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::identities::IdentityId;
use crate::operation::{Operation, Ownership, SetTime, XattrMode};
use crate::outbox::{Outbox, OutboxFull};

/// Most bytes of entries that a directory reply has room for.
const LISTING_BYTES_MAX: usize =
    LARGE_PACKET_BYTES - size_of::<FrameHeader>() - size_of::<DirectoryReply>();

/// Most bytes of a value or list of extended attributes.
const XATTR_REPLY_BYTES_MAX: u32 = if XATTR_VALUE_BYTES_MAX > XATTR_LIST_BYTES_MAX {
    XATTR_VALUE_BYTES_MAX as u32
} else {
    XATTR_LIST_BYTES_MAX as u32
};

/// How a request names its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// By its region, as the servers know it.
    Region(u32),
    /// By a window at each data server.
    Windows(&'a [Window]),
}

/// What a request's encoding needs beyond the operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) header: RequestHeader,
    pub(super) place: Place<'a>,
    pub(super) identity: IdentityId,
    pub(super) complete_by_metaserver: bool,
    /// LOOKUP: bytes of the path that are resolved already.
    pub(super) resolved: u16,
}

/// Appends the request to an outbox.
pub(super) fn encode(
    operation: &Operation,
    context: Context<'_>,
    outbox: &mut Outbox,
) -> Result<(), OutboxFull> {
    let (by_windows, windows) = match context.place {
        Place::Region(_) => (0, &[][..]),
        Place::Windows(windows) => (io_flags::WINDOWS, windows),
    };
    match operation {
        Operation::Read { file, offset, length, buffer, buffer_offset } => {
            let complete =
                if context.complete_by_metaserver { io_flags::COMPLETE_BY_METASERVER } else { 0 };
            let message = Read {
                header: context.header,
                handle: *file,
                offset: U64::new(*offset),
                length: U32::new(*length),
                flags: U16::new(complete | by_windows),
                buffers: U16::new(1),
                buffer: buffer_ref(context.place, buffer.region_offset(), *buffer_offset),
                windows: U16::new(windows.len() as u16),
                identity: U16::new(context.identity.0),
                ..Read::default()
            };
            outbox.push(&message, &[windows.as_bytes()])
        }
        Operation::Write { file, offset, length, buffer, buffer_offset, append } => {
            let append_flag = if *append { io_flags::APPEND } else { 0 };
            let message = Write {
                header: context.header,
                handle: *file,
                offset: U64::new(if *append { 0 } else { *offset }),
                length: U32::new(*length),
                flags: U16::new(append_flag | by_windows),
                buffers: U16::new(1),
                buffer: buffer_ref(context.place, buffer.region_offset(), *buffer_offset),
                windows: U16::new(windows.len() as u16),
                identity: U16::new(context.identity.0),
                ..Write::default()
            };
            outbox.push(&message, &[windows.as_bytes()])
        }
        Operation::Stat { handle } => inode(context, *handle, inode_operation::STAT, outbox),
        Operation::GetXattr { handle, name } => {
            xattr(context, *handle, xattr_operation::GET, (name, &[], 0), outbox)
        }
        Operation::ListXattrs { handle } => {
            xattr(context, *handle, xattr_operation::LIST, (&[], &[], 0), outbox)
        }
        Operation::SetXattr { handle, name, value, mode } => {
            let flags = match mode {
                XattrMode::Set => 0,
                XattrMode::Create => xattr_flags::CREATE,
                XattrMode::Replace => xattr_flags::REPLACE,
            };
            xattr(context, *handle, xattr_operation::SET, (name, value, flags), outbox)
        }
        Operation::RemoveXattr { handle, name } => {
            xattr(context, *handle, xattr_operation::REMOVE, (name, &[], 0), outbox)
        }
        Operation::OpenFile { file, access, open } => {
            let message = inode_message(context, *file, access.operation());
            outbox.push(&InodeRequest { open: U32::new(open.0), ..message }, &[])
        }
        Operation::CloseFile { file, open } => {
            let message = inode_message(context, *file, inode_operation::CLOSE);
            outbox.push(&InodeRequest { open: U32::new(open.0), ..message }, &[])
        }
        Operation::Open { file } => inode(context, *file, inode_operation::OPEN, outbox),
        Operation::Fsync { file } => inode(context, *file, inode_operation::FSYNC, outbox),
        Operation::SetAttributes { handle, changes } => {
            let message = SetAttributes {
                header: context.header,
                handle: *handle,
                mask: U32::new(changes.mask()),
                mode: U32::new(changes.mode.unwrap_or(0)),
                uid: U32::new(changes.uid.unwrap_or(0)),
                gid: U32::new(changes.gid.unwrap_or(0)),
                atime_ns: I64::new(explicit(changes.atime)),
                mtime_ns: I64::new(explicit(changes.mtime)),
                size: U64::new(changes.size.unwrap_or(0)),
                identity: U16::new(context.identity.0),
                ..SetAttributes::default()
            };
            outbox.push(&message, &[])
        }
        Operation::StatFs { .. } => outbox.push(&StatFs { header: context.header }, &[]),
        Operation::Stats { targets, .. } => {
            let targets = U32::new((*targets).into());
            outbox.push(&Stats { header: context.header, targets, ..Stats::default() }, &[])
        }
        names => encode_names(names, context, outbox),
    }
}

fn encode_names(
    operation: &Operation,
    context: Context<'_>,
    outbox: &mut Outbox,
) -> Result<(), OutboxFull> {
    let request = |code, parent: &Handle, flags, ownership: &Ownership| NameRequest {
        header: context.header,
        parent: *parent,
        operation: U16::new(code),
        identity: U16::new(context.identity.0),
        flags: U32::new(flags),
        mode: U32::new(ownership.mode),
        uid: U32::new(ownership.uid),
        gid: U32::new(ownership.gid),
        ..NameRequest::default()
    };
    let nobody = Ownership::default();
    let mut send = |mut message: NameRequest, name: &[u8], to_name: &[u8]| {
        message.name_bytes = U16::new(name.len() as u16);
        message.to_name_bytes = U16::new(to_name.len() as u16);
        outbox.push(&message, &[name, to_name])
    };
    match operation {
        Operation::Lookup { parent, path } => {
            let rest = path.get(usize::from(context.resolved)..).unwrap_or(&[]);
            send(request(name_operation::LOOKUP, parent, 0, &nobody), rest, &[])
        }
        Operation::Create { parent, name, ownership, exclusive } => {
            let flags = if *exclusive { name_flags::EXCLUSIVE } else { 0 };
            send(request(name_operation::CREATE, parent, flags, ownership), name, &[])
        }
        Operation::CreateOpen { parent, name, ownership, exclusive, access, open } => {
            let flags = if *exclusive { name_flags::EXCLUSIVE } else { 0 } | access.flags();
            let mut message = request(name_operation::CREATE, parent, flags, ownership);
            message.open = U32::new(open.0);
            send(message, name, &[])
        }
        Operation::Mkdir { parent, name, ownership } => {
            send(request(name_operation::MKDIR, parent, 0, ownership), name, &[])
        }
        Operation::Unlink { parent, name } => {
            send(request(name_operation::UNLINK, parent, 0, &nobody), name, &[])
        }
        Operation::Rmdir { parent, name } => {
            send(request(name_operation::RMDIR, parent, 0, &nobody), name, &[])
        }
        Operation::Rename { parent, name, to_parent, to_name, no_replace } => {
            let flags = if *no_replace { name_flags::NO_REPLACE } else { 0 };
            let mut message = request(name_operation::RENAME, parent, flags, &nobody);
            message.to_parent = *to_parent;
            send(message, name, to_name)
        }
        Operation::Exchange { parent, name, to_parent, to_name } => {
            let mut message =
                request(name_operation::RENAME, parent, name_flags::EXCHANGE, &nobody);
            message.to_parent = *to_parent;
            send(message, name, to_name)
        }
        Operation::Link { file, parent, name } => {
            let mut message = request(name_operation::LINK, parent, 0, &nobody);
            message.to_parent = *file;
            send(message, name, &[])
        }
        Operation::Readdir { directory, after } => {
            let mut message = request(name_operation::READDIR, directory, 0, &nobody);
            message.reply_bytes_max = U32::new(LISTING_BYTES_MAX as u32);
            send(message, after, &[])
        }
        // Encoded by the caller.
        _ => Ok(()),
    }
}

/// Asks for attributes under a header: a request of its own, or the probe of a parked slot.
pub(super) fn inode(
    context: Context<'_>,
    handle: Handle,
    operation: u16,
    outbox: &mut Outbox,
) -> Result<(), OutboxFull> {
    outbox.push(&inode_message(context, handle, operation), &[])
}

fn inode_message(context: Context<'_>, handle: Handle, operation: u16) -> InodeRequest {
    InodeRequest {
        header: context.header,
        handle,
        operation: U16::new(operation),
        identity: U16::new(context.identity.0),
        ..InodeRequest::default()
    }
}

fn xattr(
    context: Context<'_>,
    handle: Handle,
    operation: u16,
    (name, value, flags): (&[u8], &[u8], u16),
    outbox: &mut Outbox,
) -> Result<(), OutboxFull> {
    let message = XattrRequest {
        header: context.header,
        handle,
        operation: U16::new(operation),
        name_bytes: U16::new(name.len() as u16),
        value_bytes: U16::new(value.len() as u16),
        flags: U16::new(flags),
        identity: U16::new(context.identity.0),
        reserved: U16::ZERO,
        reply_bytes_max: U32::new(XATTR_REPLY_BYTES_MAX),
    };
    outbox.push(&message, &[name, value])
}

/// The time to set, if the host says which.
fn explicit(time: Option<SetTime>) -> i64 {
    match time {
        Some(SetTime::At(time_ns)) => time_ns,
        Some(SetTime::Now) | None => 0,
    }
}

fn buffer_ref(place: Place<'_>, region_offset: u64, buffer_offset: u32) -> BufferRef {
    let Place::Region(region) = place else { return BufferRef::default() };
    BufferRef {
        region: U32::new(region),
        reserved: U32::ZERO,
        offset: U64::new(region_offset + u64::from(buffer_offset)),
    }
}
