//! What an operation over several shards does in one of them: a list of effects in a record.
//!
//! Every effect changes one inode, and names the time that it sets. A list is kept in memory in the
//! form that it has in a record, so preparing, deciding and applying never translate it.

use gannet_proto::Inode;
use gannet_proto::operations::{check_name, file_type};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::layout::EffectRecord;

/// Most effects of one list: an exchange of two names takes four.
pub(crate) const EFFECTS_MAX: usize = 8;

mod kind {
    pub(super) const ENTER: u16 = 1;
    pub(super) const REMOVE: u16 = 2;
    pub(super) const MAKE: u16 = 3;
    pub(super) const DROP: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const UNLINK: u16 = 6;
    pub(super) const REPARENT: u16 = 7;
    pub(super) const TOUCH: u16 = 8;
}

/// A change of one inode, as a part of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Effect<'a> {
    /// The inode that changes.
    pub inode: Inode,
    /// When.
    pub time_ns: i64,
    /// How.
    pub action: Action<'a>,
}

/// How an effect changes its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action<'a> {
    /// The directory's name leads to `entry`, whatever it led to before.
    Enter { entry: Inode, file_type: u32, name: &'a [u8] },
    /// The directory loses a name.
    Remove { name: &'a [u8] },
    /// The inode, a directory, is made.
    Make { parent: Inode, mode: u32, uid: u32, gid: u32 },
    /// The inode, an empty directory, is removed.
    Drop,
    /// The inode, not a directory, has one more name.
    Link,
    /// The inode, not a directory, has one name less, and goes with the last.
    Unlink,
    /// The directory has another parent.
    Reparent { parent: Inode },
    /// The inode's name has changed.
    Touch,
}

impl Effect<'_> {
    /// The name that is held from the effect's preparation to its end. An empty one stands for the
    /// inode itself. A directory that is being made is known to nobody.
    pub(crate) fn held_name(&self) -> Option<&[u8]> {
        match self.action {
            Action::Enter { name, .. } | Action::Remove { name } => Some(name),
            Action::Make { .. } => None,
            Action::Drop
            | Action::Link
            | Action::Unlink
            | Action::Reparent { .. }
            | Action::Touch => Some(b""),
        }
    }
}

/// A list of effects in its form in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EffectList<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) count: u16,
}

impl<'a> EffectList<'a> {
    /// The effects in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Effect<'a>> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (effect, tail) = next_effect(rest).ok()?;
            rest = tail;
            Some(effect)
        })
    }

    /// The inode that loses a link; an operation takes at most one name of a file.
    pub(crate) fn unlinked(self) -> Option<Inode> {
        let unlinks = |effect: &Effect<'_>| matches!(effect.action, Action::Unlink);
        self.iter().find(unlinks).map(|effect| effect.inode)
    }
}

/// A list of effects that grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    bytes: Vec<u8>,
    count: u16,
}

impl Effects {
    /// The list.
    pub(crate) fn list(&self) -> EffectList<'_> {
        EffectList { bytes: &self.bytes, count: self.count }
    }

    /// Adds all of a list.
    pub(crate) fn extend(&mut self, list: EffectList<'_>) {
        self.bytes.extend_from_slice(list.bytes);
        self.count += list.count;
    }

    /// Adds one.
    pub(crate) fn push(&mut self, effect: &Effect<'_>) {
        let blank = EffectRecord {
            inode: U64::new(effect.inode.0),
            other: U64::ZERO,
            time_ns: I64::new(effect.time_ns),
            kind: U16::ZERO,
            name_bytes: U16::ZERO,
            mode: U32::ZERO,
            uid: U32::ZERO,
            gid: U32::ZERO,
        };
        let of = |kind| EffectRecord { kind: U16::new(kind), ..blank };
        let (record, name): (EffectRecord, &[u8]) = match effect.action {
            Action::Enter { entry, file_type, name } => {
                let (other, mode) = (U64::new(entry.0), U32::new(file_type));
                (EffectRecord { other, mode, ..of(kind::ENTER) }, name)
            }
            Action::Remove { name } => (of(kind::REMOVE), name),
            Action::Make { parent, mode, uid, gid } => {
                let (uid, gid) = (U32::new(uid), U32::new(gid));
                let (other, mode) = (U64::new(parent.0), U32::new(mode));
                (EffectRecord { other, mode, uid, gid, ..of(kind::MAKE) }, &[])
            }
            Action::Drop => (of(kind::DROP), &[]),
            Action::Link => (of(kind::LINK), &[]),
            Action::Unlink => (of(kind::UNLINK), &[]),
            Action::Reparent { parent } => {
                (EffectRecord { other: U64::new(parent.0), ..of(kind::REPARENT) }, &[])
            }
            Action::Touch => (of(kind::TOUCH), &[]),
        };
        let record = EffectRecord { name_bytes: U16::new(name.len() as u16), ..record };
        self.bytes.extend_from_slice(record.as_bytes());
        self.bytes.extend_from_slice(name);
        self.count += 1;
    }
}

/// Why an effect was refused: a field and its value, or the bytes end.
pub(super) type Refused = Option<(&'static str, u64)>;

/// Reads the next effect of a list.
pub(super) fn next_effect(bytes: &[u8]) -> Result<(Effect<'_>, &[u8]), Refused> {
    let (record, rest) = EffectRecord::ref_from_prefix(bytes).map_err(|_| None)?;
    let inode_of = |field, value: U64| {
        let inode = Inode(value.get());
        if inode.shard().is_some() { Ok(inode) } else { Err(Some((field, inode.0))) }
    };
    let len_bytes = usize::from(record.name_bytes.get());
    let (name, rest) = rest.split_at_checked(len_bytes).ok_or(None)?;
    let kind = record.kind.get();
    let is_named = matches!(kind, kind::ENTER | kind::REMOVE);
    if is_named && check_name(name).is_err() || !is_named && len_bytes != 0 {
        return Err(Some(("name_bytes", len_bytes as u64)));
    }
    let mode = record.mode.get();
    let made_of = mode & file_type::MASK;
    let action = match kind {
        kind::ENTER => {
            // Whatever type a later version makes, an entry can lead to it.
            if made_of == 0 || made_of != mode {
                return Err(Some(("mode", mode.into())));
            }
            Action::Enter { entry: inode_of("other", record.other)?, file_type: mode, name }
        }
        kind::REMOVE => Action::Remove { name },
        kind::MAKE => {
            if made_of != file_type::DIRECTORY {
                return Err(Some(("mode", mode.into())));
            }
            let (uid, gid) = (record.uid.get(), record.gid.get());
            Action::Make { parent: inode_of("other", record.other)?, mode, uid, gid }
        }
        kind::DROP => Action::Drop,
        kind::LINK => Action::Link,
        kind::UNLINK => Action::Unlink,
        kind::REPARENT => Action::Reparent { parent: inode_of("other", record.other)? },
        kind::TOUCH => Action::Touch,
        kind => return Err(Some(("effect", kind.into()))),
    };
    let inode = inode_of("inode", record.inode)?;
    Ok((Effect { inode, time_ns: record.time_ns.get(), action }, rest))
}
