//! A file system as simple as can be: maps and byte vectors, one operation at a time, with the
//! results that POSIX names, and exactly one of them: the first check that fails, in the order that
//! `access.rs` of the core tells.

mod opens;
mod xattrs;

pub(super) use xattrs::Ask;

use std::collections::BTreeMap;

use gannet_proto::Status;
use gannet_proto::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use gannet_proto::operations::{attribute_mask, file_type, name_flags};

/// Names a file or directory of the oracle, for good.
pub(super) type Id = u64;

pub(super) const ROOT: Id = 1;

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
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
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

pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
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

/// How an operation ends.
pub(super) type Done<T> = Result<T, Status>;

/// Fails unless something holds.
fn ensure(holds: bool, status: Status) -> Done<()> {
    if holds { Ok(()) } else { Err(status) }
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

/// A file that is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub id: Id,
    pub caller: Caller,
    pub rights: u32,
}

/// The file system.
#[derive(Clone, Debug)]
pub(super) struct Oracle {
    pub nodes: BTreeMap<Id, Node>,
    last: Id,
    /// Who has what open, for what, by the host's number.
    pub opens: BTreeMap<u32, Open>,
    /// After a restart: nodes up to this one may be open without the server's knowing.
    reclaimable: Id,
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
        let (nodes, opens) = (BTreeMap::from([(ROOT, root)]), BTreeMap::new());
        Oracle { nodes, last: ROOT, opens, reclaimable: 0, now_ns: 0, caller }
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
        let node = &self.nodes[&id];
        if node.is_directory() || node.links == 0 && !self.is_kept(id) {
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
        let (atime_ns, mtime_ns, ctime_ns) = (now, now, now);
        let xattrs = BTreeMap::new();
        let node = Node { content, mode, uid, gid, links, atime_ns, mtime_ns, ctime_ns, xattrs };
        if node.is_directory() {
            self.count(at.0, 1);
        }
        self.nodes.insert(self.last, node);
        self.enter(at, Some(self.last));
        self.last
    }

    /// Whether names may be looked up in a directory.
    fn check_directory(&self, directory: Id) -> Done<()> {
        let node = self.node(directory)?;
        ensure(node.is_directory(), Status::NOT_DIRECTORY)?;
        ensure(self.caller.may(node, SEARCH), Status::ACCESS)
    }

    /// Whether the entries of a directory may be changed.
    fn check_change(&self, directory: Id) -> Done<()> {
        ensure(self.caller.may(&self.nodes[&directory], WRITE | SEARCH), Status::ACCESS)
    }

    /// Whether this one may be removed.
    fn check_removal(&self, directory: Id, id: Id) -> Done<()> {
        self.check_change(directory)?;
        let (directory, uid) = (&self.nodes[&directory], self.caller.uid);
        let owns = uid == 0 || uid == directory.uid || uid == self.nodes[&id].uid;
        ensure(directory.mode & STICKY == 0 || owns, Status::NOT_PERMITTED)
    }

    /// What a name leads to, in a directory where it may be looked up.
    fn look(&self, at: Place<'_>) -> Done<Option<Id>> {
        self.check_directory(at.0)?;
        self.entry(at)
    }

    pub(super) fn create(
        &mut self,
        at: Place<'_>,
        mode: u32,
        owner: (u32, u32),
        flags: u32,
    ) -> Done<Id> {
        check_name(at.1)?;
        match self.look(at)? {
            Some(_) if flags & name_flags::EXCLUSIVE != 0 => Err(Status::EXISTS),
            Some(id) if self.is_directory(id) => Err(Status::IS_DIRECTORY),
            Some(id) => Ok(id),
            None => {
                self.check_change(at.0)?;
                Ok(self.make(Content::File(Vec::new()), mode, owner, at))
            }
        }
    }

    pub(super) fn mkdir(&mut self, at: Place<'_>, mode: u32, owner: (u32, u32)) -> Done<Id> {
        check_name(at.1)?;
        ensure(self.look(at)?.is_none(), Status::EXISTS)?;
        self.check_change(at.0)?;
        let content = Content::Directory { parent: at.0, entries: BTreeMap::new() };
        Ok(self.make(content, mode, owner, at))
    }

    pub(super) fn unlink(&mut self, at: Place<'_>) -> Done<()> {
        check_name(at.1)?;
        let id = self.look(at)?.ok_or(Status::NOT_FOUND)?;
        self.check_removal(at.0, id)?;
        ensure(!self.is_directory(id), Status::IS_DIRECTORY)?;
        self.enter(at, None);
        self.release(id);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, at: Place<'_>) -> Done<()> {
        check_name(at.1)?;
        let id = self.look(at)?.ok_or(Status::NOT_FOUND)?;
        self.check_removal(at.0, id)?;
        ensure(self.entries(id)?.is_empty(), Status::NOT_EMPTY)?;
        self.enter(at, None);
        self.count(at.0, -1);
        self.release(id);
        Ok(())
    }

    /// One more name for a file.
    pub(super) fn link(&mut self, id: Id, at: Place<'_>) -> Done<()> {
        check_name(at.1)?;
        ensure(self.look(at)?.is_none(), Status::EXISTS)?;
        self.check_change(at.0)?;
        ensure(!self.node(id)?.is_directory(), Status::NOT_PERMITTED)?;
        ensure(self.nodes[&id].links > 0, Status::NOT_FOUND)?;
        let now = self.now_ns;
        self.enter(at, Some(id));
        self.count(id, 1);
        self.nodes.get_mut(&id).expect("checked").ctime_ns = now;
        Ok(())
    }

    /// Moves a name, over what is there, or lets two change places.
    pub(super) fn rename(&mut self, from: Place<'_>, to: Place<'_>, flags: u32) -> Done<()> {
        let exchanges = flags & name_flags::EXCHANGE != 0;
        check_name(from.1)?;
        check_name(to.1)?;
        self.check_directory(from.0)?;
        self.check_directory(to.0)?;
        let id = self.entry(from)?.ok_or(Status::NOT_FOUND)?;
        let old = self.entry(to)?;
        ensure(flags & name_flags::NO_REPLACE == 0 || old.is_none(), Status::EXISTS)?;
        ensure(!exchanges || old.is_some(), Status::NOT_FOUND)?;
        // What gets another parent.
        let moves = |id: &Id| from.0 != to.0 && self.is_directory(*id);
        let moved = [Some(id).filter(moves), old.filter(|old| exchanges && moves(old))];
        for (moved, into) in moved.iter().zip([to.0, from.0]) {
            ensure(moved.is_none_or(|moved| !self.is_above(moved, into)), Status::INVALID)?;
        }
        if old == Some(id) {
            return Ok(());
        }
        self.check_removal(from.0, id)?;
        match old {
            Some(old) => self.check_removal(to.0, old)?,
            None => self.check_change(to.0)?,
        }
        if let Some(old) = old.filter(|_| !exchanges) {
            let (moves, stands) = (self.is_directory(id), self.is_directory(old));
            ensure(!moves || stands, Status::NOT_DIRECTORY)?;
            ensure(moves || !stands, Status::IS_DIRECTORY)?;
        }
        for moved in moved.iter().flatten() {
            ensure(self.caller.may(&self.nodes[moved], WRITE), Status::ACCESS)?;
        }
        match old {
            Some(old) if exchanges => {
                self.put(id, from.0, to);
                self.put(old, to.0, from);
                return Ok(());
            }
            Some(old) => {
                if self.is_directory(old) {
                    ensure(self.entries(old)?.is_empty(), Status::NOT_EMPTY)?;
                    self.count(to.0, -1);
                }
                self.release(old);
            }
            None => {}
        }
        self.enter(from, None);
        self.put(id, from.0, to);
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

    /// Follows a path; `.` and `..` are the directory and the one above.
    pub(super) fn lookup(&self, from: Id, path: &[u8]) -> Done<Id> {
        ensure(path.len() <= PATH_BYTES_MAX, Status::NAME_TOO_LONG)?;
        self.node(from)?;
        if path.is_empty() {
            return Ok(from);
        }
        let mut at = from;
        for component in path.split(|byte| *byte == b'/') {
            self.check_directory(at)?;
            ensure(component.len() <= NAME_BYTES_MAX, Status::NAME_TOO_LONG)?;
            let Content::Directory { parent, entries } = &self.nodes[&at].content else {
                return Err(Status::NOT_DIRECTORY);
            };
            at = match component {
                b"" | b"." => at,
                b".." => *parent,
                name => *entries.get(name).ok_or(Status::NOT_FOUND)?,
            };
        }
        Ok(at)
    }

    /// The entries of a directory, as they are listed.
    pub(super) fn list(&self, id: Id) -> Done<&BTreeMap<Vec<u8>, Id>> {
        let entries = self.entries(id)?;
        ensure(self.caller.may(&self.nodes[&id], READ), Status::ACCESS)?;
        Ok(entries)
    }

    fn check_setting(&self, id: Id, setting: &Setting) -> Done<()> {
        use attribute_mask::{ATIME, ATIME_NOW, GID, MODE, MTIME, MTIME_NOW, SIZE, UID};
        let node = self.node(id)?;
        let has = |bits: u32| setting.mask & bits != 0;
        let twice = has(ATIME) && has(ATIME_NOW) || has(MTIME) && has(MTIME_NOW);
        ensure(!twice, Status::INVALID)?;
        ensure(!(has(SIZE) && node.is_directory()), Status::IS_DIRECTORY)?;
        let (caller, owns) = (&self.caller, self.caller.uid == node.uid);
        if caller.is_root() {
            return Ok(());
        }
        let may_write = caller.may(node, WRITE);
        ensure(!has(SIZE) || may_write || self.is_open_for(id, WRITE), Status::ACCESS)?;
        let times = setting.mask & (ATIME | MTIME | ATIME_NOW | MTIME_NOW);
        let are_now = times == ATIME_NOW | MTIME_NOW;
        ensure(!are_now || owns || may_write, Status::ACCESS)?;
        let takes_user = has(UID) && setting.uid != node.uid;
        let takes_group = has(GID) && setting.gid != node.gid && !caller.is_in(setting.gid);
        let sets_times = times != 0 && !are_now;
        let may = owns && !takes_user && !takes_group || !(has(UID | GID | MODE) || sets_times);
        ensure(may, Status::NOT_PERMITTED)
    }

    pub(super) fn set(&mut self, id: Id, setting: &Setting) -> Done<()> {
        let (now, caller) = (self.now_ns, self.caller);
        self.check_setting(id, setting)?;
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

    /// Whether a file may be read or written by its handle.
    fn check_io(&self, id: Id, wanted: u32) -> Done<()> {
        let node = self.node(id)?;
        ensure(!node.is_directory(), Status::IS_DIRECTORY)?;
        let may = self.caller.uid == node.uid || self.caller.may(node, wanted);
        ensure(may || self.is_open_for(id, wanted), Status::ACCESS)
    }

    /// Where the bytes went, and the size after it. `None` appends.
    pub(super) fn write(&mut self, id: Id, offset: Option<u64>, data: &[u8]) -> Done<(u64, u64)> {
        self.check_io(id, WRITE)?;
        let (now, is_root) = (self.now_ns, self.caller.is_root());
        let node = self.nodes.get_mut(&id).expect("checked");
        let Content::File(bytes) = &mut node.content else { return Err(Status::IS_DIRECTORY) };
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
    pub(super) fn read(&self, id: Id, offset: u64, length: usize) -> Done<(&[u8], bool)> {
        self.check_io(id, READ)?;
        let Content::File(bytes) = &self.nodes[&id].content else {
            return Err(Status::IS_DIRECTORY);
        };
        let start = offset as usize;
        let end = (start + length).min(bytes.len());
        Ok((bytes.get(start..end).unwrap_or(&[]), start + length >= bytes.len()))
    }
}
