//! Extended attributes.

use gannet_proto::Status;
use gannet_proto::xattr::{XATTR_NAME_BYTES_MAX, xattr_flags, xattr_operation};

use super::{Done, Id, Node, Oracle, READ, STICKY, WRITE, ensure};

/// What is asked: operation, name, value, flags, and room for the answer.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Ask<'a> {
    pub operation: u16,
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub flags: u16,
    pub room: usize,
}

/// The words with which names begin.
const CLASSES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

fn class_of(name: &[u8]) -> Done<&'static [u8]> {
    let class = CLASSES.into_iter().find(|class| name.starts_with(class));
    let class = class.ok_or(Status::NOT_SUPPORTED)?;
    ensure(name.len() <= XATTR_NAME_BYTES_MAX, Status::RANGE)?;
    ensure(name.len() > class.len() && !name.contains(&0), Status::INVALID)?;
    Ok(class)
}

impl Oracle {
    fn check_xattr_read(&self, node: &Node, class: &[u8]) -> Done<()> {
        let is_root = self.caller.is_root();
        ensure(class != b"trusted." || is_root, Status::NO_DATA)?;
        ensure(class != b"user." || self.caller.may(node, READ), Status::ACCESS)
    }

    fn check_xattr_write(&self, node: &Node, class: &[u8]) -> Done<()> {
        if self.caller.is_root() {
            return Ok(());
        }
        ensure(class == b"user.", Status::NOT_PERMITTED)?;
        let guarded = node.is_directory() && node.mode & STICKY != 0 && node.uid != self.caller.uid;
        ensure(!guarded, Status::NOT_PERMITTED)?;
        ensure(self.caller.may(node, WRITE), Status::ACCESS)
    }

    /// GET, SET, LIST and REMOVE: what they answer, whole.
    pub(in super::super) fn xattr(&mut self, id: Id, ask: &Ask<'_>) -> Done<Vec<u8>> {
        let (now, is_root) = (self.now_ns, self.caller.is_root());
        let node = self.node(id)?;
        ensure(ask.flags < xattr_flags::KNOWN, Status::INVALID)?;
        let known = node.xattrs.get(ask.name);
        let answer = match ask.operation {
            xattr_operation::GET => {
                self.check_xattr_read(node, class_of(ask.name)?)?;
                known.cloned().ok_or(Status::NO_DATA)?
            }
            xattr_operation::LIST => {
                let seen = |name: &&Vec<u8>| is_root || !name.starts_with(b"trusted.");
                let names = node.xattrs.keys().filter(seen);
                names.flat_map(|name| name.iter().copied().chain([0])).collect()
            }
            xattr_operation::SET => {
                self.check_xattr_write(node, class_of(ask.name)?)?;
                ensure(ask.flags != xattr_flags::CREATE || known.is_none(), Status::EXISTS)?;
                ensure(ask.flags != xattr_flags::REPLACE || known.is_some(), Status::NO_DATA)?;
                let node = self.nodes.get_mut(&id).expect("checked");
                node.xattrs.insert(ask.name.to_vec(), ask.value.to_vec());
                node.ctime_ns = now;
                return Ok(Vec::new());
            }
            _ => {
                self.check_xattr_write(node, class_of(ask.name)?)?;
                ensure(known.is_some(), Status::NO_DATA)?;
                let node = self.nodes.get_mut(&id).expect("checked");
                node.xattrs.remove(ask.name);
                node.ctime_ns = now;
                return Ok(Vec::new());
            }
        };
        ensure(ask.room == 0 || answer.len() <= ask.room, Status::RANGE)?;
        Ok(answer)
    }
}
