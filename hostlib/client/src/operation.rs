//! What a host can ask for, and what it gets.

use gannet_fabric::arena::HostBuffer;
use gannet_proto::limits::{FILE_BYTES_MAX, PATH_BYTES_MAX, REQUEST_BYTES_MAX};
use gannet_proto::operations::{Attributes, attribute_mask, check_name};
use gannet_proto::xattr::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use gannet_proto::{Handle, Inode, Status};

use crate::counters::Counters;
use crate::error::{ErrorKind, RequestError};
use crate::opens::{OpenAccess, OpenId};

/// Names a submitted request until its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Who owns what is made, and with which permission bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits.
    pub mode: u32,
    /// Owner of what the superuser makes. What others make is theirs.
    pub uid: u32,
    /// Group of what the superuser makes, unless the directory passes on its own.
    pub gid: u32,
}

/// What [`Operation::SetXattr`] asks of what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Nothing: the attribute is made or replaced.
    #[default]
    Set,
    /// That there is no such attribute.
    Create,
    /// That there is one.
    Replace,
}

/// What a time is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Nanoseconds since the epoch.
    At(i64),
    /// What the metadata server's clock says. Whoever may write to the inode may set both times so.
    Now,
}

/// The attributes to change: those that are `Some`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChanges {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time. Nothing else changes it.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Size in bytes: truncates, or extends with zeros.
    pub size: Option<u64>,
}

impl AttributeChanges {
    pub(crate) fn mask(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.mode.is_some(), attribute_mask::MODE)
            | bit(self.uid.is_some(), attribute_mask::UID)
            | bit(self.gid.is_some(), attribute_mask::GID)
            | bit(matches!(self.atime, Some(SetTime::At(_))), attribute_mask::ATIME)
            | bit(matches!(self.mtime, Some(SetTime::At(_))), attribute_mask::MTIME)
            | bit(self.atime == Some(SetTime::Now), attribute_mask::ATIME_NOW)
            | bit(self.mtime == Some(SetTime::Now), attribute_mask::MTIME_NOW)
            | bit(self.size.is_some(), attribute_mask::SIZE)
    }
}

/// A request. Reads and writes own their buffer until the completion gives it back.
#[derive(Debug)]
pub enum Operation {
    /// Resolves `path` relative to `parent`, over as many shards as it takes.
    Lookup {
        /// Where to start.
        parent: Handle,
        /// Components separated by slashes; empty for `parent` itself.
        path: Vec<u8>,
    },
    /// Makes a regular file, or finds the existing one unless `exclusive`.
    Create {
        /// The directory.
        parent: Handle,
        /// The name in it.
        name: Vec<u8>,
        /// Owner and permissions of a new file.
        ownership: Ownership,
        /// Fail if the name is taken.
        exclusive: bool,
    },
    /// Makes a regular file and opens it, as one step and whatever its permission bits; finds and opens the
    /// existing one unless `exclusive`, if its bits let. See [`Operation::OpenFile`].
    CreateOpen {
        /// The directory.
        parent: Handle,
        /// The name in it.
        name: Vec<u8>,
        /// Owner and permissions of a new file.
        ownership: Ownership,
        /// Fail if the name is taken.
        exclusive: bool,
        /// What it is opened for.
        access: OpenAccess,
        /// A number of [`crate::Client::new_open`].
        open: OpenId,
    },
    /// Makes a directory.
    Mkdir {
        /// The directory to make it in.
        parent: Handle,
        /// Its name.
        name: Vec<u8>,
        /// Owner and permissions.
        ownership: Ownership,
    },
    /// Removes a name of a file.
    Unlink {
        /// The directory.
        parent: Handle,
        /// The name in it.
        name: Vec<u8>,
    },
    /// Removes an empty directory.
    Rmdir {
        /// The directory that it is in.
        parent: Handle,
        /// Its name.
        name: Vec<u8>,
    },
    /// Moves a name.
    Rename {
        /// The directory to move from.
        parent: Handle,
        /// The name there.
        name: Vec<u8>,
        /// The directory to move to.
        to_parent: Handle,
        /// The name there.
        to_name: Vec<u8>,
        /// Fail if the new name is taken, rather than replace it.
        no_replace: bool,
    },
    /// Lets two names, which both exist, change places.
    Exchange {
        /// The directory of the one.
        parent: Handle,
        /// Its name.
        name: Vec<u8>,
        /// The directory of the other.
        to_parent: Handle,
        /// Its name.
        to_name: Vec<u8>,
    },
    /// Gives a file a further name.
    Link {
        /// The file.
        file: Handle,
        /// The directory for the name.
        parent: Handle,
        /// The name, which is free.
        name: Vec<u8>,
    },
    /// Lists a directory in byte order of the names.
    Readdir {
        /// The directory.
        directory: Handle,
        /// List what follows this name; from the start if it is empty.
        after: Vec<u8>,
    },
    /// Attributes of an inode.
    Stat {
        /// The inode.
        handle: Handle,
    },
    /// Attributes of a file that I/O will follow on: sessions with its data servers are opened in
    /// the background.
    Open {
        /// The file.
        file: Handle,
    },
    /// Opens a file: it stays when its last name goes, and may be read and written until
    /// [`Operation::CloseFile`] or the end of the session, whatever becomes of its mode. After a
    /// restart of the metadata server it is open still if the user it was opened for owns it, or if the
    /// mode that it has then lets.
    OpenFile {
        /// The file.
        file: Handle,
        /// What for.
        access: OpenAccess,
        /// A number of [`crate::Client::new_open`].
        open: OpenId,
    },
    /// Ends an open, which counts as ended when this is submitted.
    CloseFile {
        /// The file.
        file: Handle,
        /// The open.
        open: OpenId,
    },
    /// Changes attributes.
    SetAttributes {
        /// The inode.
        handle: Handle,
        /// Which ones.
        changes: AttributeChanges,
    },
    /// The value of an extended attribute.
    GetXattr {
        /// The inode.
        handle: Handle,
        /// Which one.
        name: Vec<u8>,
    },
    /// The names of all extended attributes that may be seen.
    ListXattrs {
        /// The inode.
        handle: Handle,
    },
    /// Gives an extended attribute a value.
    SetXattr {
        /// The inode.
        handle: Handle,
        /// Which one: `user.`, `trusted.` or `security.` and what follows, at most 255 bytes.
        name: Vec<u8>,
        /// The value, at most 4096 bytes.
        value: Vec<u8>,
        /// Whether it has to be new, or there.
        mode: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The inode.
        handle: Handle,
        /// Which one.
        name: Vec<u8>,
    },
    /// Waits until everything acknowledged on the file is durable.
    Fsync {
        /// The file.
        file: Handle,
    },
    /// Reads into a buffer. May deliver less than asked for, see [`Outcome::Read`].
    Read {
        /// The file.
        file: Handle,
        /// Where in the file, bytes.
        offset: u64,
        /// How much, bytes: 1 to 4 MiB.
        length: u32,
        /// Where the data goes.
        buffer: HostBuffer,
        /// Where in the buffer, bytes.
        buffer_offset: u32,
    },
    /// Writes from a buffer, as one atomic and durable change.
    Write {
        /// The file.
        file: Handle,
        /// Where in the file, bytes; ignored for an append.
        offset: u64,
        /// How much, bytes: 1 to 4 MiB.
        length: u32,
        /// Where the data is.
        buffer: HostBuffer,
        /// Where in the buffer, bytes.
        buffer_offset: u32,
        /// Write at the end of the file, wherever that is when the write's turn comes.
        append: bool,
    },
    /// Space and number of files, as one metadata-server reactor knows them.
    StatFs {
        /// Which reactor.
        reactor: u16,
    },
    /// Counters of one metadata-server reactor.
    Stats {
        /// Which reactor.
        reactor: u16,
        /// Ask the data servers for theirs too.
        targets: bool,
    },
}

/// How a request succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Attributes of what was found, made or changed; of a removed name, zeros.
    Entry(Attributes),
    /// The value of an extended attribute, or the names of all, each with a zero behind it; empty
    /// after a change.
    Xattr(Vec<u8>),
    /// A part of a directory.
    Directory(Listing),
    /// Data is in the buffer. Fewer `bytes` than asked for without `end_of_file` means: ask again
    /// for the rest. Bytes of the request's range beyond them are undefined: an attempt that was
    /// given up may have placed more. The buffer around the range is as it was.
    Read {
        /// Bytes in the buffer.
        bytes: u32,
        /// Whether they reach the end of the file.
        end_of_file: bool,
    },
    /// Data is in the file, durable.
    Write {
        /// Bytes written.
        bytes: u32,
        /// Where in the file they begin; of an append, what was chosen.
        offset: u64,
        /// Size of the file afterwards.
        size: u64,
    },
    /// Space and number of files.
    Space(Space),
    /// Counters.
    Counters(Vec<Counters>),
}

/// Entries of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entries, in byte order of their names.
    pub entries: Vec<Entry>,
    /// Whether no entry follows these.
    pub end: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode.
    pub handle: Handle,
    /// File type bits, as in `stat(2)`.
    pub file_type: u32,
    /// The name.
    pub name: Vec<u8>,
}

/// Space and number of files, as one reactor knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Blocks of all stores of connected data servers.
    pub blocks_total: u64,
    /// Blocks mapped or held by this reactor's shards.
    pub blocks_used: u64,
    /// Inodes of this reactor's shards.
    pub inodes: u64,
    /// Data servers connected.
    pub targets: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// Which request.
    pub request: RequestId,
    /// What the submitter gave along.
    pub token: u64,
    /// How it ended.
    pub result: Result<Outcome, RequestError>,
    /// The buffer of a read or write. No transfer of the request can reach it any more. `None`
    /// only if that could not be achieved, because the kernel had no pages to lay over it: such
    /// a buffer stays out of use.
    pub buffer: Option<HostBuffer>,
}

/// A refused submission. Nothing happened.
#[derive(Debug)]
pub struct Refused {
    /// The operation with its buffer.
    pub operation: Operation,
    /// Why.
    pub error: RequestError,
}

/// What an operation does to the file system; decides what happens when a session is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Asks the session itself; has no slot.
    Session,
    /// May be executed again at will.
    Query,
    /// Executing it twice would show.
    Change,
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Operation::Lookup { .. } => "lookup",
            Operation::Create { .. } | Operation::CreateOpen { .. } => "create",
            Operation::Mkdir { .. } => "mkdir",
            Operation::Unlink { .. } => "unlink",
            Operation::Rmdir { .. } => "rmdir",
            Operation::Rename { .. } => "rename",
            Operation::Exchange { .. } => "exchange",
            Operation::Link { .. } => "link",
            Operation::Readdir { .. } => "readdir",
            Operation::Stat { .. } => "stat",
            Operation::Open { .. } | Operation::OpenFile { .. } => "open",
            Operation::CloseFile { .. } => "close",
            Operation::SetAttributes { .. } => "set attributes",
            Operation::GetXattr { .. } => "get extended attribute",
            Operation::ListXattrs { .. } => "list extended attributes",
            Operation::SetXattr { .. } => "set extended attribute",
            Operation::RemoveXattr { .. } => "remove extended attribute",
            Operation::Fsync { .. } => "fsync",
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::StatFs { .. } => "statfs",
            Operation::Stats { .. } => "stats",
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self {
            Operation::StatFs { .. } | Operation::Stats { .. } => Class::Session,
            Operation::Lookup { .. }
            | Operation::Readdir { .. }
            | Operation::Stat { .. }
            | Operation::Open { .. }
            | Operation::OpenFile { .. }
            | Operation::CloseFile { .. }
            | Operation::GetXattr { .. }
            | Operation::ListXattrs { .. }
            | Operation::Fsync { .. }
            | Operation::Read { .. } => Class::Query,
            Operation::Create { .. }
            | Operation::CreateOpen { .. }
            | Operation::Mkdir { .. }
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. }
            | Operation::Exchange { .. }
            | Operation::Link { .. }
            | Operation::SetAttributes { .. }
            | Operation::SetXattr { .. }
            | Operation::RemoveXattr { .. }
            | Operation::Write { .. } => Class::Change,
        }
    }

    /// The open that it makes.
    pub(crate) fn opens(&self) -> Option<(OpenAccess, OpenId)> {
        match self {
            Operation::OpenFile { access, open, .. }
            | Operation::CreateOpen { access, open, .. } => Some((*access, *open)),
            _ => None,
        }
    }

    /// The inode whose shard the request goes to; `None` for requests to the session.
    pub(crate) fn handle(&self) -> Option<Handle> {
        match self {
            Operation::Lookup { parent, .. }
            | Operation::Create { parent, .. }
            | Operation::CreateOpen { parent, .. }
            | Operation::Mkdir { parent, .. }
            | Operation::Unlink { parent, .. }
            | Operation::Rmdir { parent, .. }
            | Operation::Rename { parent, .. }
            | Operation::Exchange { parent, .. }
            | Operation::Link { parent, .. } => Some(*parent),
            Operation::Readdir { directory, .. } => Some(*directory),
            Operation::Stat { handle }
            | Operation::SetAttributes { handle, .. }
            | Operation::GetXattr { handle, .. }
            | Operation::ListXattrs { handle }
            | Operation::SetXattr { handle, .. }
            | Operation::RemoveXattr { handle, .. } => Some(*handle),
            Operation::Open { file }
            | Operation::OpenFile { file, .. }
            | Operation::CloseFile { file, .. }
            | Operation::Fsync { file }
            | Operation::Read { file, .. }
            | Operation::Write { file, .. } => Some(*file),
            Operation::StatFs { .. } | Operation::Stats { .. } => None,
        }
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Operation::Read { .. })
    }

    pub(crate) fn buffer(&self) -> Option<&HostBuffer> {
        match self {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
            _ => None,
        }
    }

    pub(crate) fn buffer_mut(&mut self) -> Option<&mut HostBuffer> {
        match self {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
            _ => None,
        }
    }

    pub(crate) fn into_buffer(self) -> Option<HostBuffer> {
        match self {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => Some(buffer),
            _ => None,
        }
    }

    /// The operation's context with a kind of failure.
    pub(crate) fn error(&self, kind: ErrorKind) -> RequestError {
        let name = match self {
            Operation::Lookup { path: name, .. }
            | Operation::Create { name, .. }
            | Operation::CreateOpen { name, .. }
            | Operation::Mkdir { name, .. }
            | Operation::Unlink { name, .. }
            | Operation::Rmdir { name, .. }
            | Operation::GetXattr { name, .. }
            | Operation::SetXattr { name, .. }
            | Operation::RemoveXattr { name, .. }
            | Operation::Rename { name, .. }
            | Operation::Exchange { name, .. }
            | Operation::Link { name, .. } => Some(Box::from(name.as_slice())),
            _ => None,
        };
        let offset = match self {
            Operation::Read { offset, .. } => Some(*offset),
            Operation::Write { offset, append, .. } => (!append).then_some(*offset),
            _ => None,
        };
        let inode = self.handle().map_or(Inode(0), |handle| handle.inode());
        RequestError { kind, operation: self.name(), inode, name, offset }
    }

    /// Checks what can be checked without a server.
    pub(crate) fn check(&self) -> Result<(), ErrorKind> {
        if let Some(handle) = self.handle()
            && handle.inode().shard().is_none()
        {
            return Err(ErrorKind::Status(Status::STALE_HANDLE));
        }
        let checked = |name: &[u8]| check_name(name).map_err(ErrorKind::Status);
        match self {
            Operation::Lookup { path, .. } => {
                let too_long = path.len() > PATH_BYTES_MAX;
                if too_long { Err(ErrorKind::Status(Status::NAME_TOO_LONG)) } else { Ok(()) }
            }
            Operation::Create { name, .. }
            | Operation::CreateOpen { name, .. }
            | Operation::Mkdir { name, .. }
            | Operation::Unlink { name, .. }
            | Operation::Rmdir { name, .. } => checked(name),
            Operation::Link { file, name, .. } => {
                if file.inode().shard().is_none() {
                    return Err(ErrorKind::Status(Status::STALE_HANDLE));
                }
                checked(name)
            }
            Operation::Rename { name, to_name, to_parent, .. }
            | Operation::Exchange { name, to_name, to_parent, .. } => {
                if to_parent.inode().shard().is_none() {
                    return Err(ErrorKind::Status(Status::STALE_HANDLE));
                }
                checked(name).and_then(|()| checked(to_name))
            }
            Operation::Readdir { after, .. } if after.len() > PATH_BYTES_MAX => {
                Err(ErrorKind::Status(Status::NAME_TOO_LONG))
            }
            Operation::GetXattr { name, .. }
            | Operation::SetXattr { name, .. }
            | Operation::RemoveXattr { name, .. }
                if name.len() > XATTR_NAME_BYTES_MAX =>
            {
                Err(ErrorKind::Status(Status::RANGE))
            }
            Operation::SetXattr { value, .. } if value.len() > XATTR_VALUE_BYTES_MAX => {
                Err(ErrorKind::Status(Status::NO_SPACE))
            }
            Operation::Read { offset, length, buffer, buffer_offset, .. } => {
                check_range(*offset, *length, buffer, *buffer_offset)
            }
            Operation::Write { offset, length, buffer, buffer_offset, append, .. } => {
                let offset = if *append { 0 } else { *offset };
                check_range(offset, *length, buffer, *buffer_offset)
            }
            _ => Ok(()),
        }
    }
}

fn check_range(
    offset: u64,
    length: u32,
    buffer: &HostBuffer,
    buffer_offset: u32,
) -> Result<(), ErrorKind> {
    if length == 0 || length > REQUEST_BYTES_MAX {
        return Err(ErrorKind::Invalid("a read or write has 1 byte to 4 MiB"));
    }
    let end_in_buffer = u64::from(buffer_offset) + u64::from(length);
    if end_in_buffer > buffer.len() as u64 {
        return Err(ErrorKind::Invalid("the range leaves the buffer"));
    }
    match offset.checked_add(u64::from(length)) {
        Some(end) if end <= FILE_BYTES_MAX => Ok(()),
        _ => Err(ErrorKind::Status(Status::FILE_TOO_LARGE)),
    }
}
