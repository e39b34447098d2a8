//! A file system as simple as can be: maps and byte vectors, one operation at a time, with the
//! results that POSIX names. Where POSIX leaves the order of checks open, that of Linux.

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
    /// Of the operation under way.
    pub now_ns: i64,
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

fn one(status: Status) -> Vec<Status> {
    vec![status]
}

impl Oracle {
    /// With a root of this owner and mode.
    pub(super) fn new(root: Node) -> Oracle {
        Oracle { nodes: BTreeMap::from([(ROOT, root)]), last: ROOT, now_ns: 0 }
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

    fn make(&mut self, content: Content, mode: u32, (uid, gid): (u32, u32), at: Place<'_>) -> Id {
        self.last += 1;
        let now = self.now_ns;
        let links = if matches!(content, Content::File(_)) { 1 } else { 2 };
        let node = Node {
            content,
            mode: mode & 0o7777,
            uid,
            gid,
            links,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
        };
        if node.is_directory() {
            self.count(at.0, 1);
        }
        self.nodes.insert(self.last, node);
        self.enter(at, Some(self.last));
        self.last
    }

    pub(super) fn create(
        &mut self,
        at: Place<'_>,
        mode: u32,
        owner: (u32, u32),
        flags: u32,
    ) -> Result<Id, Status> {
        self.entries_for(at)?;
        match self.entry(at)? {
            Some(_) if flags & name_flags::EXCLUSIVE != 0 => Err(Status::EXISTS),
            Some(id) if self.is_directory(id) => Err(Status::IS_DIRECTORY),
            Some(id) => Ok(id),
            None => Ok(self.make(Content::File(Vec::new()), mode, owner, at)),
        }
    }

    /// Checks a name, then its directory.
    fn entries_for(&self, (directory, name): Place<'_>) -> Result<(), Status> {
        check_name(name)?;
        self.entries(directory).map(|_| ())
    }

    pub(super) fn mkdir(
        &mut self,
        at: Place<'_>,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Id, Status> {
        self.entries_for(at)?;
        if self.entry(at)?.is_some() {
            return Err(Status::EXISTS);
        }
        let content = Content::Directory { parent: at.0, entries: BTreeMap::new() };
        Ok(self.make(content, mode, owner, at))
    }

    pub(super) fn unlink(&mut self, at: Place<'_>) -> Result<(), Status> {
        self.entries_for(at)?;
        let id = self.entry(at)?.ok_or(Status::NOT_FOUND)?;
        if self.is_directory(id) {
            return Err(Status::IS_DIRECTORY);
        }
        self.enter(at, None);
        self.release(id);
        Ok(())
    }

    pub(super) fn rmdir(&mut self, at: Place<'_>) -> Result<(), Status> {
        self.entries_for(at)?;
        let id = self.entry(at)?.ok_or(Status::NOT_FOUND)?;
        if !self.is_directory(id) {
            return Err(Status::NOT_DIRECTORY);
        }
        if !self.entries(id)?.is_empty() {
            return Err(Status::NOT_EMPTY);
        }
        self.enter(at, None);
        self.count(at.0, -1);
        self.release(id);
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

    /// All that forbids a rename; POSIX does not say which of them is told.
    fn obstacles(
        &self,
        id: Id,
        to: Place<'_>,
        old: Option<Id>,
        flags: u32,
    ) -> Result<Vec<Status>, Status> {
        let mut obstacles = Vec::new();
        if old.is_some() && flags & name_flags::NO_REPLACE != 0 {
            obstacles.push(Status::EXISTS);
        }
        if self.is_directory(id) && self.is_above(id, to.0) {
            obstacles.push(Status::INVALID);
        }
        if let Some(old) = old {
            match (self.is_directory(id), self.is_directory(old)) {
                (true, false) => obstacles.push(Status::NOT_DIRECTORY),
                (false, true) => obstacles.push(Status::IS_DIRECTORY),
                (true, true) if !self.entries(old)?.is_empty() => {
                    obstacles.push(Status::NOT_EMPTY);
                }
                _ => {}
            }
        }
        Ok(obstacles)
    }

    pub(super) fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        flags: u32,
    ) -> Result<(), Vec<Status>> {
        check_name(from.1).and(check_name(to.1)).map_err(one)?;
        let id = self.entry(from).and_then(|id| id.ok_or(Status::NOT_FOUND)).map_err(one)?;
        let old = self.entry(to).map_err(one)?;
        if old == Some(id) && flags & name_flags::NO_REPLACE == 0 {
            return Ok(());
        }
        let obstacles = self.obstacles(id, to, old, flags).map_err(one)?;
        if !obstacles.is_empty() {
            return Err(obstacles);
        }
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
    pub(super) fn lookup(&self, from: Id, path: &[u8]) -> Result<Id, Status> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Status::NAME_TOO_LONG);
        }
        self.node(from)?;
        if path.is_empty() {
            return Ok(from);
        }
        let mut at = from;
        for component in path.split(|byte| *byte == b'/') {
            let Content::Directory { parent, entries } = &self.nodes[&at].content else {
                return Err(Status::NOT_DIRECTORY);
            };
            at = match component {
                b"" | b"." => at,
                b".." => *parent,
                name if name.len() > NAME_BYTES_MAX => return Err(Status::NAME_TOO_LONG),
                name => *entries.get(name).ok_or(Status::NOT_FOUND)?,
            };
        }
        Ok(at)
    }

    pub(super) fn set(&mut self, id: Id, setting: &Setting) -> Result<(), Status> {
        let now = self.now_ns;
        let has = |bit: u32| setting.mask & bit != 0;
        let node = self.nodes.get_mut(&id).ok_or(Status::STALE_HANDLE)?;
        match &mut node.content {
            Content::Directory { .. } if has(attribute_mask::SIZE) => {
                return Err(Status::IS_DIRECTORY);
            }
            Content::File(bytes) if has(attribute_mask::SIZE) => {
                bytes.resize(setting.size as usize, 0);
                node.mtime_ns = now;
            }
            _ => {}
        }
        if has(attribute_mask::MODE) {
            node.mode = setting.mode & 0o7777;
        }
        if has(attribute_mask::UID) {
            node.uid = setting.uid;
        }
        if has(attribute_mask::GID) {
            node.gid = setting.gid;
        }
        if has(attribute_mask::ATIME) {
            node.atime_ns = setting.atime_ns;
        }
        if has(attribute_mask::MTIME) {
            node.mtime_ns = setting.mtime_ns;
        }
        node.ctime_ns = now;
        Ok(())
    }

    /// Where the bytes went, and the size after it. `None` appends.
    pub(super) fn write(
        &mut self,
        id: Id,
        offset: Option<u64>,
        data: &[u8],
    ) -> Result<(u64, u64), Status> {
        let now = self.now_ns;
        let node = self.nodes.get_mut(&id).ok_or(Status::STALE_HANDLE)?;
        let Content::File(bytes) = &mut node.content else { return Err(Status::IS_DIRECTORY) };
        let start = offset.map_or(bytes.len(), |offset| offset as usize);
        let end = start + data.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[start..end].copy_from_slice(data);
        (node.mtime_ns, node.ctime_ns) = (now, now);
        Ok((start as u64, bytes.len() as u64))
    }

    /// The bytes, and whether the file ends with them.
    pub(super) fn read(&self, id: Id, offset: u64, length: usize) -> Result<(&[u8], bool), Status> {
        let Content::File(bytes) = &self.node(id)?.content else {
            return Err(Status::IS_DIRECTORY);
        };
        let start = offset as usize;
        let end = (start + length).min(bytes.len());
        Ok((bytes.get(start..end).unwrap_or(&[]), start + length >= bytes.len()))
    }
}
