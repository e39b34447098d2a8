//! What a host does, step by step.

use gannet_client::{AttributeChanges, OpenAccess, OpenId, Operation, Ownership};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::Handle;

use super::tree::{Tree, split};
use crate::workload::content::{self, POISON};

/// One request of a script. Paths begin at the root; where a file is asked for, `#1` is what was
/// opened as 1. Every step can succeed, and has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a directory.
    Mkdir(&'static str),
    /// Makes a file.
    Create(&'static str),
    /// Gives a file a further name.
    Link(&'static str, &'static str),
    /// Removes a name of a file.
    Unlink(&'static str),
    /// Removes a directory.
    Rmdir(&'static str),
    /// Moves a name, over what may be there.
    Rename(&'static str, &'static str),
    /// Two names change places.
    Exchange(&'static str, &'static str),
    /// Writes into a file.
    Write {
        /// Which.
        file: &'static str,
        /// Where, bytes.
        offset: u32,
        /// How much.
        len_bytes: u32,
    },
    /// Writes at the end of a file.
    Append {
        /// Which.
        file: &'static str,
        /// How much.
        len_bytes: u32,
    },
    /// Cuts or extends a file.
    Truncate {
        /// Which.
        file: &'static str,
        /// To how many bytes.
        size: u32,
    },
    /// Opens a file, so that it stays without a name.
    Open(&'static str, u8),
    /// Closes what was opened.
    Close(u8),
    /// Reads a file and compares it.
    Read(&'static str),
}

/// What a step needs of its host.
pub struct Means<'a> {
    /// The tree before the step.
    pub tree: &'a Tree,
    /// Finds the handle of a node.
    pub handle: &'a dyn Fn(usize) -> Handle,
    /// A number for a new open, or the open that is closed.
    pub open: &'a mut dyn FnMut(Option<u8>) -> OpenId,
    /// Takes a buffer.
    pub buffer: &'a mut dyn FnMut() -> HostBuffer,
    /// The number of the write, which its bytes tell.
    pub number: u32,
}

const OWNERSHIP: Ownership = Ownership { mode: 0o755, uid: 0, gid: 0 };

impl Step {
    /// The path of what the request names first: its shard has the request. `None` if it changes
    /// nothing.
    #[must_use]
    pub fn changes(&self) -> Option<&'static str> {
        match *self {
            Step::Mkdir(path)
            | Step::Create(path)
            | Step::Link(_, path)
            | Step::Unlink(path)
            | Step::Rmdir(path)
            | Step::Rename(path, _)
            | Step::Exchange(path, _) => Some(split(path).0),
            Step::Write { file, .. } | Step::Append { file, .. } | Step::Truncate { file, .. } => {
                Some(file)
            }
            Step::Open(..) | Step::Close(_) | Step::Read(_) => None,
        }
    }

    /// The request that does it.
    #[must_use]
    pub fn operation(&self, means: &mut Means<'_>) -> Operation {
        let tree = means.tree;
        let handle = |path: &str| (means.handle)(tree.at(path));
        let place = |path: &str| {
            let (parent, name) = split(path);
            (handle(parent), name.as_bytes().to_vec())
        };
        match *self {
            Step::Mkdir(path) => {
                let (parent, name) = place(path);
                Operation::Mkdir { parent, name, ownership: OWNERSHIP }
            }
            Step::Create(path) => {
                let (parent, name) = place(path);
                Operation::Create { parent, name, ownership: OWNERSHIP, exclusive: true }
            }
            Step::Link(from, to) => {
                let (parent, name) = place(to);
                Operation::Link { file: handle(from), parent, name }
            }
            Step::Unlink(path) => {
                let (parent, name) = place(path);
                Operation::Unlink { parent, name }
            }
            Step::Rmdir(path) => {
                let (parent, name) = place(path);
                Operation::Rmdir { parent, name }
            }
            Step::Rename(from, to) => {
                let ((parent, name), (to_parent, to_name)) = (place(from), place(to));
                Operation::Rename { parent, name, to_parent, to_name, no_replace: false }
            }
            Step::Exchange(one, other) => {
                let ((parent, name), (to_parent, to_name)) = (place(one), place(other));
                Operation::Exchange { parent, name, to_parent, to_name }
            }
            Step::Write { file, offset, len_bytes } => {
                let (file, offset) = (handle(file), u64::from(offset));
                write(means, file, offset, len_bytes, offset, false)
            }
            Step::Append { file, len_bytes } => {
                let at = tree.content(tree.at(file)).len() as u64;
                let file = handle(file);
                write(means, file, 0, len_bytes, at, true)
            }
            Step::Truncate { file, size } => {
                let size = Some(size.into());
                let changes = AttributeChanges { size, ..AttributeChanges::default() };
                Operation::SetAttributes { handle: handle(file), changes }
            }
            Step::Open(path, _) => {
                let file = handle(path);
                let open = (means.open)(None);
                Operation::OpenFile { file, access: OpenAccess::ReadWrite, open }
            }
            Step::Close(open) => {
                let file = handle(&format!("#{open}"));
                let open = (means.open)(Some(open));
                Operation::CloseFile { file, open }
            }
            Step::Read(path) => read(handle(path), 0, (means.buffer)()),
        }
    }
}

/// A read of as much as the buffer holds.
#[must_use]
pub fn read(file: Handle, offset: u64, mut buffer: HostBuffer) -> Operation {
    buffer.fill(POISON);
    let length = buffer.len() as u32;
    Operation::Read { file, offset, length, buffer, buffer_offset: 0 }
}

fn write(
    means: &mut Means<'_>,
    file: Handle,
    offset: u64,
    length: u32,
    at: u64,
    append: bool,
) -> Operation {
    let mut buffer = (means.buffer)();
    content::fill(means.number, at, &mut buffer[..length as usize]);
    Operation::Write { file, offset, length, buffer, buffer_offset: 0, append }
}
