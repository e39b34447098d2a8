//! What an identity may do: the checks of requests, as POSIX has them, in Linux's order.
//!
//! The superuser passes them all. What belongs to other shards is asked there before the operation
//! begins ([`Step::Rights`], [`Step::Look`]), under the inode that it is about, and checked again when it is
//! prepared. `ACCESS` stands for a permission that the mode bits do not grant, `NOT_PERMITTED` for what
//! only an owner may do.
//!
//! The first check that fails is the answer. Flags and names come before all else; a name is too long
//! before it is malformed. Then, where a *directory* is checked, it is there (`STALE_HANDLE`), is one
//! (`NOT_DIRECTORY`), and may be searched (`ACCESS`):
//!
//! | request | in order |
//! |---|---|
//! | LOOKUP | length of the path; start is there; for each component: directory, `ACCESS`, `NAME_TOO_LONG`, `NOT_FOUND` |
//! | READDIR | directory, but for `ACCESS` if it may not be read |
//! | CREATE | directory; if the name is taken: `EXISTS`, `IS_DIRECTORY`; else the directory may be written to |
//! | MKDIR | directory, `EXISTS`, may be written to |
//! | LINK | as MKDIR; then the inode, wherever it is: `STALE_HANDLE`, `NOT_PERMITTED` for a directory, `NOT_FOUND` without a name, `TOO_MANY_LINKS` |
//! | UNLINK | directory, `NOT_FOUND`, may be written to, sticky: `NOT_PERMITTED`, `IS_DIRECTORY` |
//! | RMDIR | the same up to sticky, `NOT_DIRECTORY`, `NOT_EMPTY` |
//! | RENAME | source directory, destination directory; source `NOT_FOUND`; `EXISTS` without replacement, `NOT_FOUND` of an exchange; `INVALID` for a directory into itself; same inode: nothing to do; source may be written to, is sticky; destination may be written to, is sticky; types: `NOT_DIRECTORY`, `IS_DIRECTORY`; a directory that moves may be written to; `NOT_EMPTY` |
//! | SETATTR | is there; mask `INVALID`; size: `IS_DIRECTORY`, `ACCESS`, `FILE_TOO_LARGE`; both times to now: `ACCESS`; owner, group, mode, other times: `NOT_PERMITTED` |
//! | READ, WRITE | is there, `IS_DIRECTORY`, `ACCESS` |
//! | open | is there, for writing `IS_DIRECTORY`, `ACCESS`, `TOO_MANY_OPEN` |
//! | extended attributes | is there; flags `INVALID`; name: `NOT_SUPPORTED`, `RANGE`, `INVALID`; rights: `NO_DATA` for what only the superuser sees, `NOT_PERMITTED`, `ACCESS`; `EXISTS`, `NO_DATA`; `NO_SPACE`; `RANGE` of the answer |
//!
//! Linux differs in two places: it looks at the inode of LINK first, and refuses with `NOT_EMPTY` before any
//! right is looked at what would replace a directory above its source. Both would ask another shard before
//! a request that is refused anyway.

use gannet_proto::limits::FILE_BYTES_MAX;
use gannet_proto::operations::{
    NameRequest, Names, SetAttributes, attribute_mask, file_type, name_operation,
};
use gannet_proto::{Inode, Status};
use zerocopy::little_endian::U32;

use crate::directory::Entry;
use crate::identities::{Identity, READ, SEARCH, WRITE};
use crate::name_operations::{NameOperation, Stage, name_operation_of};
use crate::names::Stop;
use crate::namespace::Node;
use crate::peer::{Outcome, Step};
use crate::record::{Change, Reply};
use crate::rename_checks::Rights;
use crate::reply::Context;
use crate::{Core, Now, SessionIndex, Sink};

/// Runs with the rights of its owner.
const SET_UID: u32 = 0o4000;
/// Runs with the rights of its group; of a directory, passes its group on.
const SET_GID: u32 = 0o2000;
/// Of a directory: entries are removed by their owner, the directory's, or the superuser alone.
const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// What is left of the permission bits when somebody else than the owner changed the file, or its
/// owner changed.
fn without_set_id(mode: u32) -> u32 {
    // Without the right to execute, the bit of the group says something else to some systems.
    let group = if mode & GROUP_EXECUTE != 0 { SET_GID } else { 0 };
    mode & !(SET_UID | group)
}

fn is_regular(node: &Node) -> bool {
    node.mode & file_type::MASK == file_type::REGULAR
}

/// Whether an entry of the directory may be removed by its owner only.
pub(crate) fn is_guarded(directory: &Node, asker: &Identity) -> bool {
    directory.mode & STICKY != 0 && directory.uid != asker.uid
}

/// Checks that the mode bits of an inode grant all that is wanted.
pub(crate) fn check(node: &Node, asker: &Identity, wanted: u32) -> Result<(), Status> {
    if asker.may(node, wanted) { Ok(()) } else { Err(Status::ACCESS) }
}

impl Core {
    /// Checks a namespace request, and says who owns what it makes. `None`: the request waits for
    /// what another shard says of it. LOOKUP checks each directory that it passes, RENAME has checks of
    /// its own ([`crate::rename_checks`]).
    ///
    /// # Errors
    /// `ACCESS`, `NOT_PERMITTED`, `UNKNOWN_IDENTITY`. What else is wrong with a request is told by
    /// the operation itself.
    pub(crate) fn authorize_name(
        &mut self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        sink: &mut impl Sink,
    ) -> Result<Option<NameRequest>, Stop> {
        let asker = self.asker(context.session, request.identity.get())?.copied();
        let Some(directory) = self.nodes.get(&parent) else { return Ok(Some(*request)) };
        if directory.directory().is_none() {
            return Ok(Some(*request));
        }
        if let Some(asker) = &asker {
            let found = self.entry(parent, names.name).is_some();
            let operation = request.operation.get();
            let removes = matches!(operation, name_operation::UNLINK | name_operation::RMDIR);
            let wanted = match operation {
                name_operation::LOOKUP | name_operation::RENAME => 0,
                name_operation::READDIR => READ,
                // What is not there is not found, and what exists is found, or is in the way,
                // whoever may write.
                _ if found != removes => SEARCH,
                _ => WRITE | SEARCH,
            };
            check(directory, asker, wanted)?;
            let entry = self.entry(parent, names.name).filter(|_| removes);
            if let Some(Entry { inode, .. }) = entry.filter(|_| is_guarded(directory, asker)) {
                let asked = context.operation.and_then(|id| self.operations.find(id));
                if self.is_local(inode) {
                    self.check_owner(inode, Some(asker.uid))?;
                } else if asked.and_then(|operation| operation.passed) != Some(inode) {
                    let operation = Box::new(name_operation_of(request, names, Stage::Checking));
                    let Some(id) = self.keep_name(*context, operation, sink) else {
                        return Ok(None);
                    };
                    self.send_step(id, Step::Rights { inode, asker: *asker }, sink);
                    return Ok(None);
                }
            }
        }
        let Some(directory) = self.nodes.get(&parent) else { return Ok(Some(*request)) };
        Ok(Some(owned(directory, asker.as_ref(), request)))
    }

    /// Checks that names may be looked up in a directory of this reactor.
    ///
    /// # Errors
    /// `STALE_HANDLE`, `NOT_DIRECTORY`, `ACCESS`.
    pub(crate) fn check_searchable(
        &self,
        directory: Inode,
        asker: Option<&Identity>,
    ) -> Result<(), Status> {
        self.check_parent(directory)?;
        asker.map_or(Ok(()), |asker| self.check_access(directory, SEARCH, asker))
    }

    /// Checks that somebody may change the entries of a directory of this reactor. `Some`: the user to
    /// whom an entry has to belong that is removed.
    ///
    /// # Errors
    /// `ACCESS`.
    pub(crate) fn check_change(
        &self,
        directory: Inode,
        asker: Option<&Identity>,
    ) -> Result<Option<u32>, Status> {
        let (Some(node), Some(asker)) = (self.nodes.get(&directory), asker) else {
            return Ok(None);
        };
        check(node, asker, WRITE | SEARCH)?;
        Ok(is_guarded(node, asker).then_some(asker.uid))
    }

    /// Checks that the mode bits of an inode of this reactor grant all that is wanted.
    ///
    /// # Errors
    /// `ACCESS`.
    pub(crate) fn check_access(
        &self,
        inode: Inode,
        wanted: u32,
        asker: &Identity,
    ) -> Result<(), Status> {
        self.nodes.get(&inode).map_or(Ok(()), |node| check(node, asker, wanted))
    }

    /// Checks that an inode of this reactor belongs to a user, if it has to belong to one.
    ///
    /// # Errors
    /// `NOT_PERMITTED`.
    pub(crate) fn check_owner(&self, inode: Inode, owner: Option<u32>) -> Result<(), Status> {
        match (self.nodes.get(&inode), owner) {
            (Some(node), Some(uid)) if node.uid != uid => Err(Status::NOT_PERMITTED),
            // An entry that leads to nothing is nobody's.
            _ => Ok(()),
        }
    }

    /// Another shard has said whether an entry of a sticky directory may go.
    pub(crate) fn access_checked(
        &mut self,
        now: Now,
        context: &Context,
        mut operation: Box<NameOperation>,
        outcome: &Outcome,
        sink: &mut impl Sink,
    ) {
        let kind = operation.reply_kind();
        let status = match *outcome {
            Outcome::Rights(inode, Rights { owns: true, .. }) => {
                if let Some(kept) = context.operation.and_then(|id| self.operations.find_mut(id)) {
                    kept.passed = Some(inode);
                }
                operation.stage = Stage::Start;
                return self.resume_name(now, *context, operation, sink);
            }
            Outcome::Rights(..) => Status::NOT_PERMITTED,
            Outcome::Failed(status) => status,
            _ => Status::IO,
        };
        self.answer_status(context, kind, status, sink);
    }

    /// Checks that a file may be read or written by its handle: by its owner, by whom the mode bits
    /// let, and through an open of the session.
    #[inline]
    pub(crate) fn check_io(
        &self,
        session: SessionIndex,
        identity: u16,
        node: &Node,
        wanted: u32,
    ) -> Result<(), Status> {
        match self.asker(session, identity)? {
            None => Ok(()),
            Some(asker) if asker.uid == node.uid || asker.may(node, wanted) => Ok(()),
            Some(asker) if self.is_open_for(session, node.inode, asker.uid, wanted) => Ok(()),
            Some(_) => Err(Status::ACCESS),
        }
    }

    /// Takes from a file that somebody writes to the rights that it lends to those who run it.
    pub(crate) fn drop_set_id(
        &mut self,
        now: Now,
        context: &Context,
        inode: Inode,
        identity: u16,
        sink: &mut impl Sink,
    ) {
        let asker = self.asker(context.session, identity);
        let Some(node) = self.nodes.get(&inode) else { return };
        let mode = without_set_id(node.mode);
        if mode == node.mode || !is_regular(node) || !matches!(asker, Ok(Some(_))) {
            return;
        }
        let origin = self.origin(now, context, Reply::None);
        let change = Change::AttributesSet {
            inode,
            mask: attribute_mask::MODE,
            mode: mode & !file_type::MASK,
            uid: 0,
            gid: 0,
            atime_ns: 0,
            mtime_ns: 0,
            size: 0,
        };
        self.commit(&origin, &change, sink);
    }

    /// Checks a SETATTR, and says what it comes to: the attributes that change and their values.
    ///
    /// # Errors
    /// `ACCESS`, `FILE_TOO_LARGE`, `NOT_PERMITTED`, `UNKNOWN_IDENTITY`.
    pub(crate) fn authorize_attributes(
        &self,
        now: Now,
        session: SessionIndex,
        node: &Node,
        request: &SetAttributes,
    ) -> Result<SetAttributes, Status> {
        use attribute_mask::{ATIME, ATIME_NOW, GID, MODE, MTIME, MTIME_NOW, SIZE, UID};
        let asker = self.asker(session, request.identity.get())?;
        let mask = request.mask.get();
        let has = |bit| mask & bit != 0;
        let (uid, gid) = (request.uid.get(), request.gid.get());
        if let Some(asker) = asker {
            let owns = asker.uid == node.uid;
            if has(SIZE) && !self.is_open_for(session, node.inode, asker.uid, WRITE) {
                check(node, asker, WRITE)?;
            }
            if has(SIZE) && request.size.get() > FILE_BYTES_MAX {
                return Err(Status::FILE_TOO_LARGE);
            }
            let times = mask & (ATIME | MTIME | ATIME_NOW | MTIME_NOW);
            let are_now = times == ATIME_NOW | MTIME_NOW;
            if are_now && !owns {
                check(node, asker, WRITE)?;
            }
            if has(UID) && !(owns && uid == node.uid)
                || has(GID) && !(owns && (gid == node.gid || asker.is_in_group(gid)))
                || has(MODE) && !owns
                || times != 0 && !are_now && !owns
            {
                return Err(Status::NOT_PERMITTED);
            }
        } else if has(SIZE) && request.size.get() > FILE_BYTES_MAX {
            return Err(Status::FILE_TOO_LARGE);
        }
        let mut mode = node.mode & !file_type::MASK;
        if has(MODE) {
            mode = request.mode.get() & 0o7777;
            let group = if has(GID) { gid } else { node.gid };
            if asker.is_some_and(|asker| !asker.is_in_group(group)) {
                mode &= !SET_GID;
            }
        } else if is_regular(node) && (has(UID) || has(GID) || has(SIZE) && asker.is_some()) {
            mode = without_set_id(mode);
        }
        let changes_mode = has(MODE) || mode != node.mode & !file_type::MASK;
        let mut planned = *request;
        let mut bits = mask & (MODE | UID | GID | ATIME | MTIME | SIZE);
        bits |= if changes_mode { MODE } else { 0 };
        planned.mode = U32::new(mode);
        if has(ATIME_NOW) {
            bits |= ATIME;
            planned.atime_ns.set(now.wall_ns as i64);
        }
        if has(MTIME_NOW) {
            bits |= MTIME;
            planned.mtime_ns.set(now.wall_ns as i64);
        }
        planned.mask = U32::new(bits);
        Ok(planned)
    }
}

/// The request with the owner of what it makes: the asker, or whom the superuser names. A directory
/// whose set-group-id bit is set passes on its group, and to directories the bit.
fn owned(directory: &Node, asker: Option<&Identity>, request: &NameRequest) -> NameRequest {
    let mut made = *request;
    if let Some(asker) = asker {
        (made.uid, made.gid) = (U32::new(asker.uid), U32::new(asker.gid));
    }
    let mut mode = request.mode.get();
    let makes_directory = request.operation.get() == name_operation::MKDIR;
    if directory.mode & SET_GID != 0 {
        made.gid = U32::new(directory.gid);
        mode |= if makes_directory { SET_GID } else { 0 };
    }
    let is_stranger = asker.is_some_and(|asker| !asker.is_in_group(made.gid.get()));
    if !makes_directory && is_stranger && mode & GROUP_EXECUTE != 0 {
        // Nobody lends the rights of a group that is not theirs.
        mode &= !SET_GID;
    }
    made.mode = U32::new(mode);
    made
}
