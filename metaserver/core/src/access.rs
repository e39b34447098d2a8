//! What an identity may do: the checks before an operation, as POSIX has them.
//!
//! The superuser passes them all. What belongs to other shards is asked there before the operation
//! begins ([`Step::CheckEntering`], [`Step::CheckOwner`]): the right is one that was there at some
//! moment between request and reply. `ACCESS` stands for a permission that the mode bits do not
//! grant, `NOT_PERMITTED` for what only an owner may do.

use gannet_proto::operations::{
    NameRequest, Names, SetAttributes, attribute_mask, file_type, name_flags, name_operation,
};
use gannet_proto::{Inode, Status};
use zerocopy::little_endian::U32;

use crate::identities::{Identity, READ, SEARCH, WRITE};
use crate::name_operations::{NameOperation, Stage, name_operation_of};
use crate::names::{Stop, directory_of};
use crate::namespace::Node;
use crate::peer::{Outcome, Step};
use crate::record::{Change, Reply};
use crate::reply::Context;
use crate::{Core, Now, SessionIndex, Sink};

/// Runs with the rights of its owner.
const SET_UID: u32 = 0o4000;
/// Runs with the rights of its group; of a directory, passes its group on.
const SET_GID: u32 = 0o2000;
/// Of a directory: entries are removed by their owner, the directory's, or the superuser alone.
const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// Checks at other shards that an operation has passed, as bits.
mod passed {
    /// The entry that goes may go.
    pub(super) const SOURCE: u8 = 1;
    /// The directory that RENAME moves into may be written to.
    pub(super) const DESTINATION: u8 = 2;
}

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
fn is_guarded(directory: &Node, asker: &Identity) -> bool {
    directory.mode & STICKY != 0 && directory.uid != asker.uid
}

fn check(node: &Node, asker: &Identity, wanted: u32) -> Result<(), Status> {
    if asker.may(node, wanted) { Ok(()) } else { Err(Status::ACCESS) }
}

/// A question to another shard, and the bit that says that it was answered well.
struct Question {
    step: Step,
    bit: u8,
}

impl Core {
    /// Checks a namespace request, and says who owns what it makes. `None`: the request waits for
    /// what another shard says of it.
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
        let asker = self.asker(context.session, request.identity.get())?;
        let Some(directory) = self.nodes.get(&parent) else { return Ok(Some(*request)) };
        if directory.directory().is_none() {
            return Ok(Some(*request));
        }
        if let Some(asker) = asker {
            let found = self.entry(parent, names.name).is_some();
            let wanted = match request.operation.get() {
                // LOOKUP checks each directory that it passes.
                name_operation::LOOKUP => 0,
                name_operation::READDIR => READ,
                name_operation::UNLINK | name_operation::RMDIR if found => WRITE | SEARCH,
                name_operation::RENAME if found => WRITE | SEARCH,
                name_operation::UNLINK | name_operation::RMDIR | name_operation::RENAME => SEARCH,
                // What exists is found, or is in the way, whoever may write.
                _ if found => SEARCH,
                _ => WRITE | SEARCH,
            };
            check(directory, asker, wanted)?;
            if let Some(question) = self.check_removal(context, parent, request, names, asker)? {
                let operation = Box::new(name_operation_of(request, names, Stage::Checking));
                self.ask(*context, operation, question, sink);
                return Ok(None);
            }
        }
        Ok(Some(owned(directory, asker, request)))
    }

    /// Checks what else the entries that go have to say; `Some`: another shard has to be asked.
    fn check_removal(
        &self,
        context: &Context,
        parent: Inode,
        request: &NameRequest,
        names: Names<'_>,
        asker: &Identity,
    ) -> Result<Option<Question>, Status> {
        let operation = request.operation.get();
        let renames = operation == name_operation::RENAME;
        let removes = matches!(operation, name_operation::UNLINK | name_operation::RMDIR);
        if !(renames || removes) || self.entry(parent, names.name).is_none() {
            return Ok(None);
        }
        let asked = context.operation.and_then(|id| self.operations.find(id));
        let passed = asked.map_or(0, |operation| operation.passed);
        if passed & passed::SOURCE == 0
            && let Some(inode) = self.check_owner_of(parent, names.name, asker)?
        {
            let step = Step::CheckOwner { inode, uid: asker.uid };
            return Ok(Some(Question { step, bit: passed::SOURCE }));
        }
        if !renames {
            return Ok(None);
        }
        let (to_parent, _) = directory_of(&request.to_parent)?;
        if passed & passed::DESTINATION != 0 {
            return Ok(None);
        }
        let replaces = request.flags.get() & name_flags::NO_REPLACE == 0;
        if self.is_local(to_parent) {
            let owner = self.check_entering(to_parent, names.to_name, replaces, asker)?;
            return Ok(owner.map(|inode| {
                let step = Step::CheckOwner { inode, uid: asker.uid };
                Question { step, bit: passed::DESTINATION }
            }));
        }
        let (name, identity) = (names.to_name.into(), *asker);
        let step = Step::CheckEntering { directory: to_parent, name, replaces, identity };
        Ok(Some(Question { step, bit: passed::DESTINATION }))
    }

    /// Checks that an entry may be moved into a directory of this reactor, over what is there.
    /// `Some`: the owner of that inode, which is another reactor's, decides.
    pub(crate) fn check_entering(
        &self,
        directory: Inode,
        name: &[u8],
        replaces: bool,
        asker: &Identity,
    ) -> Result<Option<Inode>, Status> {
        let node = self.nodes.get(&directory).filter(|node| node.directory().is_some());
        let Some(node) = node else { return Ok(None) };
        check(node, asker, WRITE | SEARCH)?;
        if replaces { self.check_owner_of(directory, name, asker) } else { Ok(None) }
    }

    /// Checks that an entry may be removed from a directory that others may write to as well.
    fn check_owner_of(
        &self,
        directory: Inode,
        name: &[u8],
        asker: &Identity,
    ) -> Result<Option<Inode>, Status> {
        let Some(node) = self.nodes.get(&directory) else { return Ok(None) };
        let entry = self.entry(directory, name);
        match entry.filter(|_| is_guarded(node, asker)) {
            None => Ok(None),
            Some(entry) if self.is_local(entry.inode) => {
                self.check_owner(entry.inode, asker.uid).map(|()| None)
            }
            Some(entry) => Ok(Some(entry.inode)),
        }
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

    /// Checks that an inode of this reactor belongs to a user.
    ///
    /// # Errors
    /// `NOT_PERMITTED`.
    pub(crate) fn check_owner(&self, inode: Inode, uid: u32) -> Result<(), Status> {
        match self.nodes.get(&inode) {
            Some(node) if node.uid != uid => Err(Status::NOT_PERMITTED),
            // An entry that leads to nothing is nobody's.
            _ => Ok(()),
        }
    }

    fn ask(
        &mut self,
        context: Context,
        operation: Box<NameOperation>,
        question: Question,
        sink: &mut impl Sink,
    ) {
        let Some(id) = self.keep_name(context, operation, sink) else { return };
        if let Some(operation) = self.operations.find_mut(id) {
            operation.asked = question.bit;
        }
        self.send_step(id, question.step, sink);
    }

    /// Another shard has said whether a namespace request may go on.
    pub(crate) fn access_checked(
        &mut self,
        now: Now,
        context: &Context,
        mut operation: Box<NameOperation>,
        outcome: &Outcome,
        sink: &mut impl Sink,
    ) {
        let Some(id) = context.operation else { return };
        let kind = operation.reply_kind();
        let Some(kept) = self.operations.find_mut(id) else { return };
        match *outcome {
            Outcome::Failed(status) => self.answer_status(context, kind, status, sink),
            Outcome::Continue(inode) => {
                let number = operation.request.identity.get();
                let uid = match self.asker(context.session, number) {
                    Ok(asker) => asker.map_or(0, |asker| asker.uid),
                    Err(status) => return self.answer_status(context, kind, status, sink),
                };
                let bit = self.operations.find(id).map_or(0, |operation| operation.asked);
                let step = Step::CheckOwner { inode, uid };
                self.ask(*context, operation, Question { step, bit }, sink);
            }
            _ => {
                kept.passed |= std::mem::take(&mut kept.asked);
                operation.stage = Stage::Start;
                self.resume_name(now, *context, operation, sink);
            }
        }
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
    /// `ACCESS`, `NOT_PERMITTED`, `INVALID`, `UNKNOWN_IDENTITY`.
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
        if has(ATIME) && has(ATIME_NOW) || has(MTIME) && has(MTIME_NOW) {
            return Err(Status::INVALID);
        }
        let (uid, gid) = (request.uid.get(), request.gid.get());
        if let Some(asker) = asker {
            let owns = asker.uid == node.uid;
            if has(MODE) && !owns || has(UID) && !(owns && uid == node.uid) {
                return Err(Status::NOT_PERMITTED);
            }
            if has(GID) && !(owns && (gid == node.gid || asker.is_in_group(gid))) {
                return Err(Status::NOT_PERMITTED);
            }
            let times = mask & (ATIME | MTIME | ATIME_NOW | MTIME_NOW);
            if times == ATIME_NOW | MTIME_NOW {
                if !owns {
                    check(node, asker, WRITE)?;
                }
            } else if times != 0 && !owns {
                return Err(Status::NOT_PERMITTED);
            }
            if has(SIZE) && !self.is_open_for(session, node.inode, asker.uid, WRITE) {
                check(node, asker, WRITE)?;
            }
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
