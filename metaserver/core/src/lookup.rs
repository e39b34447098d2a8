//! LOOKUP and READDIR: what is read of the namespace.
//!
//! An answer waits for the last change of every directory that it was read from.

use gannet_proto::limits::{LARGE_PACKET_BYTES, NAME_BYTES_MAX, PATH_BYTES_MAX};
use gannet_proto::operations::{DirectoryEntry, DirectoryReply, NameRequest, Names};
use gannet_proto::packet::FrameHeader;
use gannet_proto::{Inode, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::identities::{Identity, SEARCH};
use crate::names::Stop;
use crate::namespace::only_handle;
use crate::reply::Context;
use crate::{Core, Lsn, Sink};

/// Most bytes of entries in a [`DirectoryReply`].
const ENTRIES_BYTES_MAX: usize =
    LARGE_PACKET_BYTES - size_of::<FrameHeader>() - size_of::<DirectoryReply>();

/// Where a path led.
struct Resolved {
    inode: Inode,
    /// Bytes of the path that lie behind.
    consumed: usize,
    /// The last change of what was passed.
    after: Lsn,
}

impl Core {
    /// LOOKUP.
    pub(crate) fn lookup(
        &mut self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        let asker = self.asker(context.session, request.identity.get())?;
        let Resolved { inode, consumed, after } = self.resolve(parent, names.name, asker)?;
        let (attributes, after) = match self.nodes.get(&inode) {
            Some(node) => (node.attributes(), after.max(node.lsn)),
            None if self.is_local(inode) => return Err(Stop::Status(Status::NOT_FOUND)),
            None => (only_handle(inode), after),
        };
        self.answer_entry(context, after, (attributes, consumed), None, sink);
        Ok(())
    }

    /// Follows a path as far as it stays on this reactor.
    fn resolve(
        &self,
        parent: Inode,
        path: &[u8],
        asker: Option<&Identity>,
    ) -> Result<Resolved, Stop> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Stop::Status(Status::NAME_TOO_LONG));
        }
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        let mut at = Resolved { inode: parent, consumed: 0, after: node.lsn };
        while at.consumed < path.len() && self.is_local(at.inode) {
            let start = at.consumed + usize::from(path[at.consumed] == b'/');
            let rest = &path[start..];
            let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let component = &rest[..length];
            // An entry whose inode is gone is about to go as well.
            let node = self.nodes.get(&at.inode).ok_or(Status::NOT_FOUND)?;
            let directory = node.directory().ok_or(Status::NOT_DIRECTORY)?;
            if asker.is_some_and(|asker| !asker.may(node, SEARCH)) {
                return Err(Stop::Status(Status::ACCESS));
            }
            at.after = at.after.max(node.lsn);
            at.consumed = start + length;
            match component {
                b"" | b"." => {}
                b".." => {
                    self.check_free(at.inode, b"", None)?;
                    at.inode = directory.parent;
                }
                name if name.len() > NAME_BYTES_MAX => {
                    return Err(Stop::Status(Status::NAME_TOO_LONG));
                }
                name if self.held.holder(at.inode, name).is_some() => {
                    return Err(Stop::Held(at.inode, name.into()));
                }
                name => match directory.entries.get(name) {
                    Some(entry) => at.inode = entry.inode,
                    None => return Err(Stop::Status(Status::NOT_FOUND)),
                },
            }
        }
        Ok(at)
    }

    /// READDIR.
    pub(crate) fn readdir(
        &mut self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
        let directory = node.directory().ok_or(Status::NOT_DIRECTORY)?;
        let after = node.lsn;
        let bytes_max = match request.reply_bytes_max.get() as usize {
            0 => ENTRIES_BYTES_MAX,
            bytes => bytes.min(ENTRIES_BYTES_MAX),
        };
        let mut bytes = std::mem::take(&mut self.scratch.entries);
        bytes.clear();
        let (mut count, mut end) = (0, true);
        for (name, entry) in directory.entries.after(names.name) {
            if bytes.len() + size_of::<DirectoryEntry>() + name.len() > bytes_max {
                end = false;
                break;
            }
            let head = DirectoryEntry {
                inode: U64::new(entry.inode.0),
                file_type: U32::new(entry.file_type),
                name_bytes: U16::new(name.len() as u16),
                reserved: U16::ZERO,
            };
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(name);
            count += 1;
        }
        if count == 0 && !end {
            // Not even one entry fits: asking again would never end.
            self.scratch.entries = bytes;
            return Err(Stop::Status(Status::INVALID));
        }
        let answered = self.answer_slot(context, None);
        if answered && self.sessions.view(context.session).is_some_and(|known| known.connected) {
            let reply = DirectoryReply {
                header: context.header.reply(Status::OK),
                count: U16::new(count),
                end: U16::new(end.into()),
                reserved: U32::ZERO,
            };
            sink.reply(context.session, after, &reply, &[&bytes]);
        }
        self.scratch.entries = bytes;
        self.end_operation(context);
        Ok(())
    }
}
