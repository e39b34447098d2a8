//! A file system as simple as can be: maps and byte vectors, one operation at a time, with the
//! results that POSIX names. Where POSIX leaves the order of checks open, that of Linux.

use std::collections::BTreeMap;

use gannet_proto::Status;
use gannet_proto::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use gannet_proto::operations::{attribute_mask, file_type, name_flags};

/// Names a file or directory of the oracle, for good.
pub(super) type Id = u64;

pub(super) const ROOT: Id = 1;
/// Stands for no node.
const NOBODY: Id = 0;

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    File(Vec<u8>),
    Directory { parent: Id, entries: BTreeMap<Vec<u8>, Id> },
}

/// A file or directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

impl Node {
    pub(super) fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    /// Type and permission bits.
    pub(super) fn full_mode(&self) -> u32 {
        self.mode | if self.is_directory() { file_type::DIRECTORY } else { file_type::REGULAR }
    }

    /// Bytes, or entries.
    pub(super) fn size(&self) -> u64 {
        match &self.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Directory { entries, .. } => entries.len() as u64,
        }
    }
}

/// Who asks: user 0 is the superuser.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

const READ: u32 = 4;
const WRITE: u32 = 2;
const SEARCH: u32 = 1;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

impl Caller {
    fn is_root(&self) -> bool {
        self.uid == 0
    }

    fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    fn may(&self, node: &Node, wanted: u32) -> bool {
        let shift = match () {
            () if self.uid == node.uid => 6,
            () if self.is_in(node.gid) => 3,
            () => 0,
        };
        self.is_root() || node.mode >> shift & wanted == wanted
    }
}

/// Why an operation fails: any of these may be told, where nobody says which check comes first.
/// `OK` among them: it may succeed as well.
pub(super) type Refusals = Vec<Status>;

/// Fails if there are any.
fn refuse(refusals: Refusals) -> Result<(), Refusals> {
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// A rename that asks for what is there already. That it could not be done may be told as well.
fn nothing_to_do(refusals: Refusals) -> Result<(), Refusals> {
    let is_right = |status: &Status| matches!(*status, Status::ACCESS | Status::NOT_PERMITTED);
    let mut refusals: Refusals = refusals.into_iter().filter(is_right).collect();
    if !refusals.is_empty() {
        refusals.push(Status::OK);
    }
    refuse(refusals)
}

fn one<T>(status: Status) -> Result<T, Refusals> {
    Err(vec![status])
}

/// The permission bits of a regular file after somebody else's hand was on it.
fn without_set_id(mode: u32) -> u32 {
    if mode & GROUP_EXECUTE == 0 { mode & !SET_UID } else { mode & !(SET_UID | SET_GID) }
}

/// What SETATTR shall set: of those that the mask names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setting {
    pub mask: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub size: u64,
}

/// A directory, and a name in it.
pub(super) type Place<'a> = (Id, &'a [u8]);

/// The file system.
#[derive(Clone, Debug)]
pub(super) struct Oracle {
    pub nodes: BTreeMap<Id, Node>,
    last: Id,
    /// When the operation under way happens.
    pub now_ns: i64,
    /// Who asks for it.
    pub caller: Caller,
}

/// Whether a component may be made or removed.
fn check_name(name: &[u8]) -> Result<(), Status> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Status::NAME_TOO_LONG);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Status::INVALID);
    }
    Ok(())
}

impl Oracle {
    /// With a root of this owner and mode.
    pub(super) fn new(root: Node) -> Oracle {
        let caller = Caller { uid: 0, gid: 0, groups: &[] };
        Oracle { nodes: BTreeMap::from([(ROOT, root)]), last: ROOT, now_ns: 0, caller }
    }

    pub(super) fn node(&self, id: Id) -> Result<&Node, Status> {
        self.nodes.get(&id).ok_or(Status::STALE_HANDLE)
    }

    pub(super) fn entries(&self, id: Id) -> Result<&BTreeMap<Vec<u8>, Id>, Status> {
        match &self.node(id)?.content {
            Content::Directory { entries, .. } => Ok(entries),
            Content::File(_) => Err(Status::NOT_DIRECTORY),
        }
    }

    fn entry(&self, (directory, name): Place<'_>) -> Result<Option<Id>, Status> {
        Ok(self.entries(directory)?.get(name).copied())
    }

    fn is_directory(&self, id: Id) -> bool {
        self.nodes[&id].is_directory()
    }

    /// A directory's entries changed.
    fn enter(&mut self, (directory, name): Place<'_>, id: Option<Id>) {
        let now = self.now_ns;
        let node = self.nodes.get_mut(&directory).expect("checked");
        (node.mtime_ns, node.ctime_ns) = (now, now);
        let Content::Directory { entries, .. } = &mut node.content else { unreachable!("checked") };
        match id {
            Some(id) => drop(entries.insert(name.to_vec(), id)),
            None => drop(entries.remove(name)),
        }
    }

    fn count(&mut self, id: Id, by: i32) {
        let node = self.nodes.get_mut(&id).expect("checked");
        node.links = node.links.checked_add_signed(by).expect("links are counted");
    }

    /// A name of a node is gone; its directory's count of subdirectories is the caller's.
    fn release(&mut self, id: Id) {
        let now = self.now_ns;
        let node = self.nodes.get_mut(&id).expect("checked");
        node.ctime_ns = now;
        node.links -= 1;
        if node.links == 0 || node.is_directory() {
            self.nodes.remove(&id);
        }
    }

    /// The superuser says who owns what is made.
    fn make(&mut self, content: Content, mode: u32, owner: (u32, u32), at: Place<'_>) -> Id {
        self.last += 1;
        let (now, caller) = (self.now_ns, self.caller);
        let (uid, mut gid) = if caller.is_root() { owner } else { (caller.uid, caller.gid) };
        let directory = &self.nodes[&at.0];
        let (is_directory, mut mode) =
            (matches!(content, Content::Directory { .. }), mode & 0o7777);
        if directory.mode & SET_GID != 0 {
            gid = directory.gid;
            mode |= if is_directory { SET_GID } else { 0 };
        }
        let is_stranger = !caller.is_root() && !caller.is_in(gid);
        if !is_directory && is_stranger && mode & GROUP_EXECUTE != 0 {
            mode &= !SET_GID;
        }
        let links = if matches!(content, Content::File(_)) { 1 } else { 2 };
        let node =
            Node { content, mode, uid, gid, links, atime_ns: now, mtime_ns: now, ctime_ns: now };
        if node.is_directory() {
            self.count(at.0, 1);
        }
        self.nodes.insert(self.last, node);
        self.enter(at, Some(self.last));
        self.last
    }

    /// What is wrong with a name in a directory, whatever is to be done with it.
    fn check_place(&self, (directory, name): Place<'_>) -> Result<(), Refusals> {
        let mut refusals: Refusals = check_name(name).err().into_iter().collect();
        match self.nodes.get(&directory) {
            None => refusals.push(Status::STALE_HANDLE),
            Some(node) if !node.is_directory() => refusals.push(Status::NOT_DIRECTORY),
            Some(node) if !self.caller.may(node, SEARCH) => refusals.push(Status::ACCESS),
            Some(node) if !refusals.is_empty() && !self.caller.may(node, WRITE) => {
                refusals.push(Status::ACCESS);
            }
            Some(_) => {}
        }
        refuse(refusals)
    }

    /// What the rights of a directory have against a change of its entries.
    fn check_change(&self, directory: Id) -> Option<Status> {
        (!self.caller.may(&self.nodes[&directory], WRITE)).then_some(Status::ACCESS)
    }

    /// What they have against the removal of one.
    fn check_removal(&self, directory: Id, id: Id) -> Refusals {
        let (directory_node, uid) = (&self.nodes[&directory], self.caller.uid);
        let owns = uid == 0 || uid == directory_node.uid || uid == self.nodes[&id].uid;
        let guarded = (directory_node.mode & STICKY != 0 && !owns).then_some(Status::NOT_PERMITTED);
        self.check_change(directory).into_iter().chain(guarded).collect()
    }

    pub(super) fn create(
        &mut self,
        at: Place<'_>,
        mode: u32,
        owner: (u32, u32),
        flags: u32,
    ) -> Result<Id, Refusals> {
        self.check_place(at)?;
        match self.entries(at.0).or_else(one)?.get(at.1) {
            Some(_) if flags & name_flags::EXCLUSIVE != 0 => one(Status::EXISTS),
            Some(id) if self.is_directory(*id) => one(Status::IS_DIRECTORY),
            Some(id) => Ok(*id),
            None => {
                refuse(self.check_change(at.0).into_iter().collect())?;
                Ok(self.make(Content::File(Vec::new()), mode, owner, at))
            }
        }
    }

    pub(super) fn mkdir(
        &mut self,
        at: Place<'_>,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Id, Refusals> {
        self.check_place(at)?;
        if self.entry(at).or_else(one)?.is_some() {
            return one(Status::EXISTS);
        }
        refuse(self.check_change(at.0).into_iter().collect())?;
        let content = Content::Directory { parent: at.0, entries: BTreeMap::new() };
        Ok(self.make(content, mode, owner, at))
    }

    /// The node of a name that is to be removed.
    fn entry_there(&self, at: Place<'_>) -> Result<Id, Refusals> {
        self.check_place(at)?;
        self.entry(at).and_then(|id| id.ok_or(Status::NOT_FOUND)).or_else(one)
    }

    pub(super) fn unlink(&mut self, at: Place<'_>) -> Result<(), Refusals> {
        let id = self.entry_there(at)?;
        let mut refusals = self.check_removal(at.0, id);
        if self.is_directory(id) {
            refusals.push(Status::IS_DIRECTORY);
        }
        refuse(refusals)?;
        self.enter(at, None);
        self.release(id);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, at: Place<'_>) -> Result<(), Refusals> {
        let id = self.entry_there(at)?;
        let mut refusals = self.check_removal(at.0, id);
        match self.entries(id) {
            Err(status) => refusals.push(status),
            Ok(entries) if !entries.is_empty() => refusals.push(Status::NOT_EMPTY),
            Ok(_) => {}
        }
        refuse(refusals)?;
        self.enter(at, None);
        self.count(at.0, -1);
        self.release(id);
        Ok(())
    }

    /// One more name for a file.
    pub(super) fn link(&mut self, id: Id, at: Place<'_>) -> Result<(), Refusals> {
        self.check_place(at)?;
        let mut refusals = Refusals::new();
        match self.nodes.get(&id) {
            None => refusals.push(Status::STALE_HANDLE),
            Some(node) if node.is_directory() => refusals.push(Status::NOT_PERMITTED),
            Some(_) => {}
        }
        if self.entry(at).or_else(one)?.is_some() {
            refusals.push(Status::EXISTS);
        } else {
            refusals.extend(self.check_change(at.0));
        }
        refuse(refusals)?;
        let now = self.now_ns;
        self.enter(at, Some(id));
        self.count(id, 1);
        self.nodes.get_mut(&id).expect("checked").ctime_ns = now;
        Ok(())
    }

    /// Two names change places.
    pub(super) fn exchange(&mut self, from: Place<'_>, to: Place<'_>) -> Result<(), Refusals> {
        if let Err(status) = check_name(from.1).and(check_name(to.1)) {
            return Err(self.refusals_beside(status, from, to.0));
        }
        let (id, old) = self.both_there(from, to, true)?;
        let mut refusals = self.check_removal(from.0, id);
        refusals.extend(self.check_removal(to.0, old));
        for (moved, from, to) in [(id, from.0, to.0), (old, to.0, from.0)] {
            if self.is_directory(moved) && from != to {
                refusals.extend(self.check_change(moved));
                refusals.extend(self.is_above(moved, to).then_some(Status::INVALID));
            }
        }
        if id == old {
            return nothing_to_do(refusals);
        }
        refuse(refusals)?;
        self.put(id, from.0, to);
        self.put(old, to.0, from);
        Ok(())
    }

    /// Whether `above` is `below` or one of the directories above it.
    fn is_above(&self, above: Id, mut below: Id) -> bool {
        loop {
            if above == below {
                return true;
            }
            match self.nodes.get(&below).map(|node| &node.content) {
                Some(Content::Directory { parent, .. }) if below != ROOT => below = *parent,
                _ => return false,
            }
        }
    }

    /// Gives a node a name in place of what is there, and another parent if it is a directory.
    fn put(&mut self, id: Id, from: Id, to: Place<'_>) {
        self.enter(to, Some(id));
        let now = self.now_ns;
        let node = self.nodes.get_mut(&id).expect("checked");
        node.ctime_ns = now;
        if let Content::Directory { parent, .. } = &mut node.content {
            *parent = to.0;
            self.count(from, -1);
            self.count(to.0, 1);
        }
    }

    /// All that forbids a rename.
    fn check_rename(&self, (from, id): (Id, Id), to: Id, old: Option<Id>, flags: u32) -> Refusals {
        let mut refusals = self.check_removal(from, id);
        match old {
            Some(old) if flags & name_flags::NO_REPLACE == 0 => {
                refusals.extend(self.check_removal(to, old));
            }
            _ => refusals.extend(self.check_change(to)),
        }
        if old.is_some() && flags & name_flags::NO_REPLACE != 0 {
            refusals.push(Status::EXISTS);
        }
        // It gets another parent, which is one of its entries.
        if self.is_directory(id) && from != to {
            refusals.extend(self.check_change(id));
        }
        if self.is_directory(id) && self.is_above(id, to) {
            refusals.push(Status::INVALID);
        }
        match old.map(|old| (self.is_directory(id), self.entries(old))) {
            Some((true, Err(status))) => refusals.push(status),
            Some((false, Ok(_))) => refusals.push(Status::IS_DIRECTORY),
            Some((true, Ok(entries))) if !entries.is_empty() => refusals.push(Status::NOT_EMPTY),
            _ => {}
        }
        refusals
    }

    /// What the two names of a rename lead to; the second to [`NOBODY`] unless it has to be there.
    fn both_there(&self, from: Place<'_>, to: Place<'_>, both: bool) -> Result<(Id, Id), Refusals> {
        let there = self.check_place(to).and_then(|()| self.entry(to).or_else(one));
        let there = there.and_then(|old| match old {
            None if both => one(Status::NOT_FOUND),
            old => Ok(old.unwrap_or(NOBODY)),
        });
        match (self.entry_there(from), there) {
            (Ok(id), Ok(old)) => Ok((id, old)),
            // Nobody says which directory is looked at first.
            (Ok(id), Err(mut refusals)) => {
                refusals.extend(self.check_removal(from.0, id));
                if self.is_directory(id) {
                    refusals.extend(self.check_change(id));
                    refusals.extend(self.is_above(id, to.0).then_some(Status::INVALID));
                }
                if self.check_place(to).is_ok() {
                    refusals.extend(self.check_change(to.0));
                }
                Err(refusals)
            }
            (Err(refusals), Ok(_)) => Err(refusals),
            (Err(mut refusals), Err(more)) => {
                refusals.extend(more);
                Err(refusals)
            }
        }
    }

    /// What else may be told of a rename with a bad name: nobody says what is looked at first.
    fn refusals_beside(&self, status: Status, from: Place<'_>, to: Id) -> Refusals {
        let mut refusals = vec![status];
        for directory in [from.0, to] {
            match self.nodes.get(&directory) {
                None => refusals.push(Status::STALE_HANDLE),
                Some(node) if !node.is_directory() => refusals.push(Status::NOT_DIRECTORY),
                Some(node) if !self.caller.may(node, WRITE | SEARCH) => {
                    refusals.push(Status::ACCESS);
                }
                Some(_) => {}
            }
        }
        if let Ok(Some(id)) = self.entry(from) {
            refusals.extend(self.check_removal(from.0, id));
            if self.is_directory(id) {
                refusals.extend(self.check_change(id));
            }
        }
        refusals
    }

    pub(super) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        flags: u32,
    ) -> Result<(), Refusals> {
        if let Err(status) = check_name(from.1).and(check_name(to.1)) {
            return Err(self.refusals_beside(status, from, to.0));
        }
        let (id, old) = self.both_there(from, to, false)?;
        let old = (old != NOBODY).then_some(old);
        let refusals = self.check_rename((from.0, id), to.0, old, flags);
        if old == Some(id) && flags & name_flags::NO_REPLACE == 0 {
            return nothing_to_do(refusals);
        }
        refuse(refusals)?;
        if let Some(old) = old {
            if self.is_directory(old) {
                self.count(to.0, -1);
            }
            self.release(old);
        }
        self.enter(from, None);
        self.put(id, from.0, to);
        Ok(())
    }

    /// Follows a path; `.` and `..` are the directory and the one above.
    pub(super) fn lookup(&self, from: Id, path: &[u8]) -> Result<Id, Refusals> {
        if path.len() > PATH_BYTES_MAX {
            return one(Status::NAME_TOO_LONG);
        }
        self.node(from).or_else(one)?;
        if path.is_empty() {
            return Ok(from);
        }
        let mut at = from;
        for component in path.split(|byte| *byte == b'/') {
            let node = &self.nodes[&at];
            let Content::Directory { parent, entries } = &node.content else {
                return one(Status::NOT_DIRECTORY);
            };
            let too_long = component.len() > NAME_BYTES_MAX;
            let denied = !self.caller.may(node, SEARCH);
            let long = too_long.then_some(Status::NAME_TOO_LONG);
            refuse(long.into_iter().chain(denied.then_some(Status::ACCESS)).collect())?;
            at = match component {
                b"" | b"." => at,
                b".." => *parent,
                name => entries.get(name).copied().ok_or(Status::NOT_FOUND).or_else(one)?,
            };
        }
        Ok(at)
    }

    /// The entries of a directory, as they are listed.
    pub(super) fn list(&self, id: Id) -> Result<&BTreeMap<Vec<u8>, Id>, Refusals> {
        let entries = self.entries(id).or_else(one)?;
        let readable = self.caller.may(&self.nodes[&id], READ);
        refuse((!readable).then_some(Status::ACCESS).into_iter().collect())?;
        Ok(entries)
    }

    /// What forbids a SETATTR.
    fn check_setting(&self, node: &Node, setting: &Setting) -> Refusals {
        use attribute_mask::{ATIME, ATIME_NOW, GID, MODE, MTIME, MTIME_NOW, SIZE, UID};
        let has = |bits: u32| setting.mask & bits != 0;
        let (caller, owns) = (&self.caller, self.caller.uid == node.uid);
        let may_write = caller.may(node, WRITE);
        let mut refusals = Refusals::new();
        if has(ATIME) && has(ATIME_NOW) || has(MTIME) && has(MTIME_NOW) {
            refusals.push(Status::INVALID);
        }
        if has(SIZE) && node.is_directory() {
            refusals.push(Status::IS_DIRECTORY);
        }
        if caller.is_root() {
            return refusals;
        }
        let takes_user = has(UID) && setting.uid != node.uid;
        let takes_group = has(GID) && setting.gid != node.gid && !caller.is_in(setting.gid);
        if has(MODE | UID | GID) && !owns || takes_user || takes_group {
            refusals.push(Status::NOT_PERMITTED);
        }
        let times = setting.mask & (ATIME | MTIME | ATIME_NOW | MTIME_NOW);
        if times == ATIME_NOW | MTIME_NOW && !owns && !may_write || has(SIZE) && !may_write {
            refusals.push(Status::ACCESS);
        }
        if times != 0 && times != ATIME_NOW | MTIME_NOW && !owns {
            refusals.push(Status::NOT_PERMITTED);
        }
        refusals
    }

    pub(super) fn set(&mut self, id: Id, setting: &Setting) -> Result<(), Refusals> {
        let (now, caller) = (self.now_ns, self.caller);
        refuse(self.check_setting(self.node(id).or_else(one)?, setting))?;
        let has = |bit: u32| setting.mask & bit != 0;
        let node = self.nodes.get_mut(&id).expect("checked");
        let is_file = !node.is_directory();
        if let Content::File(bytes) = &mut node.content
            && has(attribute_mask::SIZE)
        {
            bytes.resize(setting.size as usize, 0);
            node.mtime_ns = now;
        }
        if has(attribute_mask::UID) {
            node.uid = setting.uid;
        }
        if has(attribute_mask::GID) {
            node.gid = setting.gid;
        }
        if has(attribute_mask::MODE) {
            node.mode = setting.mode & 0o7777;
            if !caller.is_root() && !caller.is_in(node.gid) {
                node.mode &= !SET_GID;
            }
        } else if is_file
            && (has(attribute_mask::UID | attribute_mask::GID)
                || has(attribute_mask::SIZE) && !caller.is_root())
        {
            node.mode = without_set_id(node.mode);
        }
        for (set, to_now, at_ns, time_ns) in [
            (
                attribute_mask::ATIME,
                attribute_mask::ATIME_NOW,
                setting.atime_ns,
                &mut node.atime_ns,
            ),
            (
                attribute_mask::MTIME,
                attribute_mask::MTIME_NOW,
                setting.mtime_ns,
                &mut node.mtime_ns,
            ),
        ] {
            if has(set) {
                *time_ns = at_ns;
            } else if has(to_now) {
                *time_ns = now;
            }
        }
        node.ctime_ns = now;
        Ok(())
    }

    /// What forbids I/O by a handle.
    fn check_io(&self, id: Id, wanted: u32) -> Result<(), Refusals> {
        let node = self.node(id).or_else(one)?;
        let may = self.caller.uid == node.uid || self.caller.may(node, wanted);
        let denied = (!may).then_some(Status::ACCESS);
        let directory = node.is_directory().then_some(Status::IS_DIRECTORY);
        refuse(denied.into_iter().chain(directory).collect())
    }

    /// Where the bytes went, and the size after it. `None` appends.
    pub(super) fn write(
        &mut self,
        id: Id,
        offset: Option<u64>,
        data: &[u8],
    ) -> Result<(u64, u64), Refusals> {
        self.check_io(id, WRITE)?;
        let (now, is_root) = (self.now_ns, self.caller.is_root());
        let node = self.nodes.get_mut(&id).expect("checked");
        let Content::File(bytes) = &mut node.content else { return one(Status::IS_DIRECTORY) };
        let start = offset.map_or(bytes.len(), |offset| offset as usize);
        let end = start + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[start..end].copy_from_slice(data);
        let size = bytes.len();
        (node.mtime_ns, node.ctime_ns) = (now, now);
        if !is_root {
            node.mode = without_set_id(node.mode);
        }
        Ok((start as u64, size as u64))
    }

    /// The bytes, and whether the file ends with them.
    pub(super) fn read(
        &self,
        id: Id,
        offset: u64,
        length: usize,
    ) -> Result<(&[u8], bool), Refusals> {
        self.check_io(id, READ)?;
        let Content::File(bytes) = &self.nodes[&id].content else {
            return one(Status::IS_DIRECTORY);
        };
        let start = offset as usize;
        let end = (start + length).min(bytes.len());
        Ok((bytes.get(start..end).unwrap_or(&[]), start + length >= bytes.len()))
    }
}
