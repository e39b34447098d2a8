//! The checks of RENAME, in the order of [`crate::access`]'s table, over whichever shards they concern.
//!
//! They are gone through from the start whenever another shard has answered. What it said is kept under
//! the inode that it was asked about, so it counts for no other one that has taken the name meanwhile.
//! They look at names without holding them: the steps that prepare a rename check once more what they do,
//! and a destination that has changed by then lets the rename begin anew.

use gannet_proto::operations::{NameRequest, Names, name_flags};
use gannet_proto::{Inode, Status};

use crate::Core;
use crate::access::{check, is_guarded};
use crate::crossshard::is_directory;
use crate::directory::Entry;
use crate::identities::{Identity, SEARCH, WRITE};
use crate::names::{Stop, directory_of};
use crate::peer::{EnterMode, Step};

/// What stands at a rename's destination, for who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub entry: Option<Entry>,
    /// The directory's entries may be changed.
    pub may_change: bool,
    /// What is there has to belong to who removes it.
    pub guarded: bool,
}

/// What somebody may do with an inode that has a part in a rename.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rights {
    pub owns: bool,
    pub may_write: bool,
}

/// What other shards have said of a rename.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub standing: Option<Standing>,
    pub rights: Vec<(Inode, Rights)>,
    /// Directories that are not above the place that they move to; known under the lock of renames.
    pub not_above: Vec<Inode>,
}

/// What comes of the checks, if nothing forbids the rename.
pub(crate) enum Verdict {
    /// It may be done: what moves, and what it finds.
    Go(Entry, Option<Entry>),
    /// Both names lead to the same inode: nothing is to be done.
    Same,
    /// Somebody has to be asked first.
    Ask(Step),
}

/// What a rename may do to what it meets.
///
/// # Errors
/// `INVALID` for flags that contradict each other.
pub(crate) fn mode_of(request: &NameRequest) -> Result<EnterMode, Status> {
    let flags = request.flags.get();
    match (flags & name_flags::NO_REPLACE != 0, flags & name_flags::EXCHANGE != 0) {
        (false, false) => Ok(EnterMode::Replace),
        (true, false) => Ok(EnterMode::NoReplace),
        (false, true) => Ok(EnterMode::Exchange),
        (true, true) => Err(Status::INVALID),
    }
}

/// Whether an entry may take the place of another one.
fn check_types(entry: Entry, old: Entry) -> Result<(), Status> {
    match (is_directory(entry), is_directory(old)) {
        (true, false) => Err(Status::NOT_DIRECTORY),
        (false, true) => Err(Status::IS_DIRECTORY),
        _ => Ok(()),
    }
}

impl Core {
    /// What stands under a name of a directory of this reactor.
    ///
    /// # Errors
    /// `STALE_HANDLE`, `NOT_DIRECTORY`, `ACCESS` if names may not be looked up in it; or it is held.
    pub(crate) fn standing(
        &self,
        directory: Inode,
        name: &[u8],
        asker: Option<&Identity>,
    ) -> Result<Standing, Stop> {
        self.check_searchable(directory, asker)?;
        self.check_free(directory, b"", None)?;
        self.check_free(directory, name, None)?;
        let node = self.nodes.get(&directory).ok_or(Status::STALE_HANDLE)?;
        Ok(Standing {
            entry: self.entry(directory, name),
            may_change: asker.is_none_or(|asker| asker.may(node, WRITE | SEARCH)),
            guarded: asker.is_some_and(|asker| is_guarded(node, asker)),
        })
    }

    /// What somebody may do with an inode of this reactor; with one that is gone, anything.
    pub(crate) fn rights(&self, inode: Inode, asker: &Identity) -> Rights {
        let node = self.nodes.get(&inode);
        Rights {
            owns: node.is_none_or(|node| node.uid == asker.uid),
            may_write: node.is_none_or(|node| asker.may(node, WRITE)),
        }
    }

    /// The same for an inode of any reactor, if it is known.
    fn known_rights(&self, facts: &Facts, inode: Inode, asker: &Identity) -> Option<Rights> {
        if self.is_local(inode) {
            return Some(self.rights(inode, asker));
        }
        facts.rights.iter().find(|(other, _)| *other == inode).map(|(_, rights)| *rights)
    }

    /// Goes through all checks of a rename but whether a directory that it replaces is empty.
    ///
    /// # Errors
    /// The first that fails; or a name is held.
    pub(crate) fn judge_rename(
        &self,
        request: &NameRequest,
        names: Names<'_>,
        asker: Option<&Identity>,
        (facts, locked): (&Facts, bool),
    ) -> Result<Verdict, Stop> {
        let (mode, parent) = (mode_of(request)?, request.parent.inode());
        self.check_searchable(parent, asker)?;
        let (to_parent, _) = directory_of(&request.to_parent)?;
        let standing = match facts.standing {
            Some(standing) => standing,
            None if self.is_local(to_parent) => self.standing(to_parent, names.to_name, asker)?,
            None => {
                let (name, asker) = (names.to_name.into(), asker.copied());
                return Ok(Verdict::Ask(Step::Look { directory: to_parent, name, asker }));
            }
        };
        self.check_free(parent, names.name, None)?;
        let entry = self.entry(parent, names.name).ok_or(Status::NOT_FOUND)?;
        let over = match (mode, standing.entry) {
            (EnterMode::NoReplace, Some(_)) => return Err(Stop::Status(Status::EXISTS)),
            (EnterMode::Exchange, None) => return Err(Stop::Status(Status::NOT_FOUND)),
            (_, over) => over,
        };
        let exchanges = mode == EnterMode::Exchange;
        let moves = |entry: &Entry| parent != to_parent && is_directory(*entry);
        let moved = [Some(entry).filter(moves), over.filter(|old| exchanges && moves(old))];
        for (moved, into) in moved.iter().zip([to_parent, parent]) {
            let Some(Entry { inode: sought, .. }) = *moved else { continue };
            if !locked {
                return Ok(Verdict::Ask(Step::LockRenames));
            }
            if !facts.not_above.contains(&sought) {
                return Ok(Verdict::Ask(Step::Ancestry { from: into, sought }));
            }
        }
        if over.is_some_and(|old| old.inode == entry.inode) {
            return Ok(Verdict::Same);
        }
        if let Some(asker) = asker {
            let node = self.nodes.get(&parent).ok_or(Status::STALE_HANDLE)?;
            check(node, asker, WRITE | SEARCH)?;
            let guarded = [
                Some(entry).filter(|_| is_guarded(node, asker)),
                over.filter(|_| standing.guarded),
            ];
            for (place, guarded) in guarded.into_iter().enumerate() {
                if place == 1 && !standing.may_change {
                    return Err(Stop::Status(Status::ACCESS));
                }
                let Some(Entry { inode, .. }) = guarded else { continue };
                match self.known_rights(facts, inode, asker) {
                    None => return Ok(Verdict::Ask(Step::Rights { inode, asker: *asker })),
                    Some(rights) if !rights.owns => {
                        return Err(Stop::Status(Status::NOT_PERMITTED));
                    }
                    Some(_) => {}
                }
            }
        }
        if let Some(old) = over.filter(|_| !exchanges) {
            check_types(entry, old)?;
        }
        for Entry { inode, .. } in moved.into_iter().flatten() {
            let Some(asker) = asker else { break };
            match self.known_rights(facts, inode, asker) {
                None => return Ok(Verdict::Ask(Step::Rights { inode, asker: *asker })),
                Some(rights) if !rights.may_write => return Err(Stop::Status(Status::ACCESS)),
                Some(_) => {}
            }
        }
        Ok(Verdict::Go(entry, over))
    }
}
