//! Extended attributes.
//!
//! They lie aside of the inodes, so that those without any cost nothing. `user.*` is read and
//! written by whom the mode lets, `trusted.*` exists for the superuser alone, `security.*` is for all
//! to read and for the superuser to write. Other names are not supported.

use std::collections::BTreeMap;

use gannet_proto::xattr::{
    XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, Xattr, XattrReply, XattrRequest, xattr_flags,
    xattr_operation,
};
use gannet_proto::{Inode, Status};
use rustc_hash::FxHashMap;
use zerocopy::little_endian::U32;

use crate::identities::{Identity, READ, WRITE};
use crate::namespace::Node;
use crate::record::{Change, Reply};
use crate::reply::{Context, ReplyKind};
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// Most bytes of the values of one inode.
const VALUES_BYTES_MAX: usize = 64 << 10;
/// Of a directory: only its owner gives it attributes of its own.
const STICKY: u32 = 0o1000;

/// Names and values of one inode.
pub(crate) type Attributes = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// All extended attributes of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Xattrs {
    table: FxHashMap<Inode, Attributes>,
}

impl Xattrs {
    fn find(&self, inode: Inode, name: &[u8]) -> Option<&[u8]> {
        self.table.get(&inode)?.get(name).map(|value| &**value)
    }

    /// Those of an inode.
    pub(crate) fn of(&self, inode: Inode) -> impl Iterator<Item = (&[u8], &[u8])> {
        let attributes = self.table.get(&inode).into_iter().flatten();
        attributes.map(|(name, value)| (&**name, &**value))
    }

    /// Gives an attribute a value.
    pub(crate) fn set(&mut self, inode: Inode, name: &[u8], value: &[u8]) {
        self.table.entry(inode).or_default().insert(name.into(), value.into());
    }

    /// Removes an attribute. `false`: it is not there.
    pub(crate) fn remove(&mut self, inode: Inode, name: &[u8]) -> bool {
        let Some(attributes) = self.table.get_mut(&inode) else { return false };
        let removed = attributes.remove(name).is_some();
        if attributes.is_empty() {
            self.table.remove(&inode);
        }
        removed
    }

    /// An inode is gone.
    pub(crate) fn forget(&mut self, inode: Inode) {
        self.table.remove(&inode);
    }

    /// Whether an attribute finds room beside the others.
    fn has_room(&self, inode: Inode, name: &[u8], value: &[u8]) -> bool {
        let others = self.of(inode).filter(|(other, _)| *other != name);
        let (names, values) = others.fold((0, 0), |(names, values), (name, value)| {
            (names + name.len() + 1, values + value.len())
        });
        names + name.len() < XATTR_LIST_BYTES_MAX && values + value.len() <= VALUES_BYTES_MAX
    }
}

/// Who may see and change the attributes that begin with a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    User,
    Trusted,
    Security,
}

fn class_of(name: &[u8]) -> Result<Class, Status> {
    let classes = [
        (&b"user."[..], Class::User),
        (b"trusted.", Class::Trusted),
        (b"security.", Class::Security),
    ];
    let found = classes.into_iter().find(|(word, _)| name.starts_with(word));
    let (word, class) = found.ok_or(Status::NOT_SUPPORTED)?;
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Status::RANGE);
    }
    if name.len() == word.len() || name.contains(&0) {
        return Err(Status::INVALID);
    }
    Ok(class)
}

fn check_read(node: &Node, asker: Option<&Identity>, class: Class) -> Result<(), Status> {
    match (class, asker) {
        (_, None) | (Class::Security, _) => Ok(()),
        (Class::Trusted, Some(_)) => Err(Status::NO_DATA),
        (Class::User, Some(asker)) if asker.may(node, READ) => Ok(()),
        (Class::User, Some(_)) => Err(Status::ACCESS),
    }
}

fn check_write(node: &Node, asker: Option<&Identity>, class: Class) -> Result<(), Status> {
    let Some(asker) = asker else { return Ok(()) };
    if class != Class::User {
        return Err(Status::NOT_PERMITTED);
    }
    if node.directory().is_some() && node.mode & STICKY != 0 && node.uid != asker.uid {
        return Err(Status::NOT_PERMITTED);
    }
    if asker.may(node, WRITE) { Ok(()) } else { Err(Status::ACCESS) }
}

impl Core {
    /// GET, SET, LIST and REMOVE of extended attributes, with what [`XattrRequest::xattr`] found.
    pub fn xattr_request(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &XattrRequest,
        xattr: Xattr<'_>,
        sink: &mut impl Sink,
    ) {
        self.counters.xattr_requests += 1;
        let kind = ReplyKind::Xattr;
        let Some(context) = self.admit(session, &request.header, kind, sink) else { return };
        if let Err(status) = self.perform_xattr(now, &context, request, xattr, sink) {
            self.answer_status(&context, kind, status, sink);
        }
        self.settle(now, sink);
    }

    fn perform_xattr(
        &mut self,
        now: Now,
        context: &Context,
        request: &XattrRequest,
        xattr: Xattr<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Status> {
        let inode = self.inode_of(context, &request.handle)?;
        let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
        let asker = self.asker(context.session, request.identity.get())?;
        let (after, flags) = (node.lsn, request.flags.get());
        if flags & !xattr_flags::KNOWN != 0 || flags == xattr_flags::KNOWN {
            return Err(Status::INVALID);
        }
        let Xattr { name, value } = xattr;
        let known = self.xattrs.find(inode, name);
        let change = match request.operation.get() {
            xattr_operation::GET => {
                check_read(node, asker, class_of(name)?)?;
                let mut bytes = std::mem::take(&mut self.scratch.entries);
                bytes.clear();
                let found = self.xattrs.find(inode, name).map(|known| bytes.extend(known));
                let done = found.ok_or(Status::NO_DATA);
                let done =
                    done.and_then(|()| self.answer_value(context, after, request, &bytes, sink));
                self.scratch.entries = bytes;
                return done;
            }
            xattr_operation::LIST => {
                let all = asker.is_none();
                let mut bytes = std::mem::take(&mut self.scratch.entries);
                bytes.clear();
                for (name, _) in self.xattrs.of(inode) {
                    if all || class_of(name) != Ok(Class::Trusted) {
                        bytes.extend_from_slice(name);
                        bytes.push(0);
                    }
                }
                let done = self.answer_value(context, after, request, &bytes, sink);
                self.scratch.entries = bytes;
                return done;
            }
            xattr_operation::SET => {
                check_write(node, asker, class_of(name)?)?;
                match (flags, known) {
                    (xattr_flags::CREATE, Some(_)) => return Err(Status::EXISTS),
                    (xattr_flags::REPLACE, None) => return Err(Status::NO_DATA),
                    _ if !self.xattrs.has_room(inode, name, value) => {
                        return Err(Status::NO_SPACE);
                    }
                    _ => Change::XattrSet { inode, name, value },
                }
            }
            xattr_operation::REMOVE => {
                check_write(node, asker, class_of(name)?)?;
                if known.is_none() {
                    return Err(Status::NO_DATA);
                }
                Change::XattrRemoved { inode, name }
            }
            _ => return Err(Status::NOT_SUPPORTED),
        };
        let origin = self.origin(now, context, Reply::Xattr);
        let (after, kept) = self.commit(&origin, &change, sink);
        if self.answer_slot(context, kept) {
            self.send_xattr(context, after, (0, &[]), sink);
        }
        self.end_operation(context);
        Ok(())
    }

    /// Answers with a value or list, as far as the host has room for it.
    fn answer_value(
        &mut self,
        context: &Context,
        after: Lsn,
        request: &XattrRequest,
        bytes: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), Status> {
        let room = request.reply_bytes_max.get() as usize;
        let tail = if room == 0 { &[] } else { bytes };
        if tail.len() > room {
            return Err(Status::RANGE);
        }
        if self.answer_slot(context, None) {
            self.send_xattr(context, after, (bytes.len(), tail), sink);
        }
        self.end_operation(context);
        Ok(())
    }

    /// Sends the answer of a request for extended attributes.
    pub(crate) fn send_xattr(
        &self,
        context: &Context,
        after: Lsn,
        (value_bytes, tail): (usize, &[u8]),
        sink: &mut impl Sink,
    ) {
        if self.sessions.view(context.session).is_some_and(|session| session.connected) {
            let reply = XattrReply {
                header: context.header.reply(Status::OK),
                value_bytes: U32::new(value_bytes as u32),
                tail_bytes: U32::new(tail.len() as u32),
            };
            sink.reply(context.session, after, &reply, &[tail]);
        }
    }
}
