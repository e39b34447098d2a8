//! What one host does to names of its own, one request after the other, and what must come of it.
//!
//! No other host touches these names, so their state is known exactly. When the outcome of a change
//! is unknown, its names are given up: the change may still come.

use std::collections::BTreeMap;

use gannet_client::{Operation, Outcome, Ownership, RequestError};
use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::{Handle, Status};

use super::history::Outcome as Ended;
use crate::random::Random;

/// Names that a host keeps at a time.
const NAMES_MAX: usize = 8;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode.
    pub handle: Handle,
    /// What it is.
    pub is_directory: bool,
    /// Which file of the history it is.
    pub file: Option<usize>,
}

/// A directory by its position among the run's, and a name in it.
type Name = (usize, Vec<u8>);

#[derive(Clone, Debug)]
enum Step {
    Make { name: Name, is_directory: bool },
    Remove { name: Name },
    Rename { name: Name, to: Name },
    Exchange { name: Name, to: Name },
    Link { name: Name, to: Name, file: Found },
    Find { name: Name },
    List { directory: usize },
}

/// The names of one host.
#[derive(Debug)]
pub struct Names {
    host: u32,
    made: u32,
    directories: Vec<Handle>,
    known: BTreeMap<Name, Option<Found>>,
    pending: Option<Step>,
}

impl Names {
    /// No names in these directories.
    #[must_use]
    pub fn new(host: u32, directories: Vec<Handle>) -> Names {
        Names { host, made: 0, directories, known: BTreeMap::new(), pending: None }
    }

    /// Whether a request is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    /// The files that can be used, with their numbers in the history.
    pub fn files(&self) -> impl Iterator<Item = (Handle, usize)> {
        let in_doubt: Vec<&Name> = match &self.pending {
            Some(Step::Remove { name }) => vec![name],
            Some(Step::Rename { name, to } | Step::Exchange { name, to }) => vec![name, to],
            _ => Vec::new(),
        };
        self.known
            .iter()
            .filter(move |(name, _)| !in_doubt.contains(name))
            .filter_map(|(_, found)| found.and_then(|found| Some((found.handle, found.file?))))
    }

    /// Gives a file that was made its number.
    pub fn number(&mut self, handle: Handle, file: usize) {
        for found in self.known.values_mut().flatten().filter(|found| found.handle == handle) {
            found.file = Some(file);
        }
    }

    /// The next request. `is_used` tells which files have I/O under way: they stay.
    pub fn next(&mut self, random: &mut Random, is_used: impl Fn(usize) -> bool) -> Operation {
        let step = self.choose(random, is_used);
        let operation = self.operation(&step);
        self.pending = Some(step);
        operation
    }

    fn choose(&mut self, random: &mut Random, is_used: impl Fn(usize) -> bool) -> Step {
        let free_to_go: Vec<Name> = self
            .known
            .iter()
            .filter(|(_, found)| !found.is_some_and(|found| found.file.is_some_and(&is_used)))
            .map(|(name, _)| name.clone())
            .collect();
        let pick = |random: &mut Random, names: &[Name]| {
            (!names.is_empty()).then(|| names[random.index(names.len())].clone())
        };
        let present: Vec<Name> =
            free_to_go.iter().filter(|name| self.known[*name].is_some()).cloned().collect();
        let step = match random.below(10) {
            0 | 1 => pick(random, &present).map(|name| Step::Remove { name }),
            2 | 3 => pick(random, &present).and_then(|name| {
                let to =
                    if random.coin() { pick(random, &free_to_go)? } else { self.fresh(random) };
                let kind = |name: &Name| {
                    self.known.get(name).copied().flatten().map(|found| found.is_directory)
                };
                let fits = kind(&to).is_none_or(|directory| Some(directory) == kind(&name));
                (fits && to != name).then_some(Step::Rename { name, to })
            }),
            4 | 5 => {
                let all: Vec<Name> = self.known.keys().cloned().collect();
                pick(random, &all).map(|name| Step::Find { name })
            }
            6 => Some(Step::List { directory: random.index(self.directories.len()) }),
            7 if random.coin() => pick(random, &present).and_then(|name| {
                let to = pick(random, &present)?;
                (to != name).then_some(Step::Exchange { name, to })
            }),
            7 => pick(random, &present).and_then(|name| {
                let file = self.known[&name].filter(|found| !found.is_directory)?;
                Some(Step::Link { name, to: self.fresh(random), file })
            }),
            _ => None,
        };
        if let Some(step) = step {
            return step;
        }
        let is_directory = random.below(4) == 0;
        let absent: Vec<Name> = self
            .known
            .iter()
            .filter(|(_, found)| found.is_none())
            .map(|(n, _)| n.clone())
            .collect();
        let name = match pick(random, &absent) {
            Some(name) => name,
            None if self.known.len() >= NAMES_MAX => match pick(random, &present) {
                Some(name) => return Step::Remove { name },
                None => return Step::List { directory: 0 },
            },
            None => self.fresh(random),
        };
        Step::Make { name, is_directory }
    }

    fn fresh(&mut self, random: &mut Random) -> Name {
        self.made += 1;
        let name = (random.index(self.directories.len()), self.name_of(self.made));
        self.known.insert(name.clone(), None);
        name
    }

    fn name_of(&self, number: u32) -> Vec<u8> {
        format!("h{}-{number}", self.host).into_bytes()
    }

    fn operation(&self, step: &Step) -> Operation {
        let parent = |name: &Name| self.directories[name.0];
        let ownership = Ownership { mode: 0o644, uid: 1, gid: 1 };
        match step.clone() {
            Step::Make { name, is_directory: true } => {
                Operation::Mkdir { parent: parent(&name), name: name.1, ownership }
            }
            Step::Make { name, .. } => Operation::Create {
                parent: parent(&name),
                name: name.1,
                ownership,
                exclusive: true,
            },
            Step::Remove { name } => {
                let is_directory = self.known[&name].is_some_and(|found| found.is_directory);
                if is_directory {
                    Operation::Rmdir { parent: parent(&name), name: name.1 }
                } else {
                    Operation::Unlink { parent: parent(&name), name: name.1 }
                }
            }
            Step::Rename { name, to } => Operation::Rename {
                parent: parent(&name),
                name: name.1,
                to_parent: parent(&to),
                to_name: to.1,
                no_replace: false,
            },
            Step::Exchange { name, to } => Operation::Exchange {
                parent: parent(&name),
                name: name.1,
                to_parent: parent(&to),
                to_name: to.1,
            },
            Step::Link { to, file, .. } => {
                Operation::Link { file: file.handle, parent: parent(&to), name: to.1 }
            }
            Step::Find { name } => Operation::Lookup { parent: parent(&name), path: name.1 },
            Step::List { directory } => {
                Operation::Readdir { directory: self.directories[directory], after: Vec::new() }
            }
        }
    }

    /// Takes the completion of the request under way. Returns a file that it made.
    ///
    /// # Errors
    /// What contradicts the names' state.
    pub fn completed(
        &mut self,
        result: &Result<Outcome, RequestError>,
        ended: Ended,
    ) -> Result<Option<Handle>, String> {
        let Some(step) = self.pending.take() else { return Ok(None) };
        let complaint = |what: &str| Err(format!("{step:?} {what}: {result:?}"));
        if ended == Ended::Maybe {
            self.give_up(&step);
            return Ok(None);
        }
        let status = result.as_ref().err().and_then(RequestError::status);
        match (&step, result) {
            (Step::Make { name, is_directory }, Ok(Outcome::Entry(made))) => {
                if self.known[name].is_some() {
                    return complaint("made what was there");
                }
                let found = found(made);
                if found.is_directory != *is_directory {
                    return complaint("made something else");
                }
                self.known.insert(name.clone(), Some(found));
                return Ok((!is_directory).then_some(found.handle));
            }
            (Step::Make { name, .. }, Err(_)) if status == Some(Status::EXISTS) => {
                if self.known[name].is_none() {
                    return complaint("found what nobody made");
                }
            }
            (Step::Remove { name }, Ok(_)) => {
                if self.known.insert(name.clone(), None).flatten().is_none() {
                    return complaint("removed what was not there");
                }
            }
            (Step::Rename { name, to }, Ok(_)) => {
                let Some(moved) = self.known[name] else {
                    return complaint("moved what was not there");
                };
                // Two names of one file stay.
                if self.known[to].is_none_or(|there| there.handle != moved.handle) {
                    self.known.insert(name.clone(), None);
                    self.known.insert(to.clone(), Some(moved));
                }
            }
            (Step::Exchange { name, to }, Ok(_)) => {
                let (one, other) = (self.known[name], self.known[to]);
                if one.is_none() || other.is_none() {
                    return complaint("exchanged what was not there");
                }
                self.known.insert(name.clone(), other);
                self.known.insert(to.clone(), one);
            }
            (Step::Link { name, to, file }, Ok(Outcome::Entry(linked))) => {
                if self.known[to].is_some() {
                    return complaint("linked over what was there");
                }
                let names =
                    self.known.values().flatten().filter(|found| found.handle == file.handle);
                // More, if a name was given up that is there.
                let links = linked.links.get() as usize;
                if linked.handle != file.handle || links < names.count() + 1 {
                    return complaint("linked something else");
                }
                let file = self.known[name];
                self.known.insert(to.clone(), file);
            }
            (
                Step::Remove { name }
                | Step::Rename { name, .. }
                | Step::Exchange { name, .. }
                | Step::Find { name },
                Err(_),
            ) if status == Some(Status::NOT_FOUND) => {
                if self.known[name].is_some() {
                    return complaint("did not find what is there");
                }
            }
            (Step::Find { name }, Ok(Outcome::Entry(seen))) => {
                let seen = found(seen);
                let same = self.known[name].is_some_and(|known| {
                    known.handle == seen.handle && known.is_directory == seen.is_directory
                });
                if !same {
                    return complaint(&format!("should have found {:?}", self.known[name]));
                }
            }
            (Step::List { directory }, Ok(Outcome::Directory(listing))) => {
                if let Err(what) = self.check_listing(*directory, listing) {
                    return complaint(&what);
                }
            }
            (_, Err(_)) => {}
            _ => return complaint("was answered by something else"),
        }
        Ok(None)
    }

    fn check_listing(
        &self,
        directory: usize,
        listing: &gannet_client::Listing,
    ) -> Result<(), String> {
        let names = || listing.entries.iter().map(|entry| &entry.name);
        if !names().is_sorted() {
            return Err("is not in order".to_owned());
        }
        let last = names().next_back().filter(|_| !listing.end);
        let own = self.known.iter().filter(|((place, name), _)| {
            *place == directory && last.is_none_or(|last| name <= last)
        });
        for ((_, name), known) in own {
            let listed = listing.entries.iter().find(|entry| entry.name == *name);
            if listed.map(|entry| entry.handle) != known.map(|found| found.handle) {
                let name = String::from_utf8_lossy(name);
                return Err(format!("has {listed:?} at {name}, where {known:?} is"));
            }
        }
        Ok(())
    }

    /// Forgets the names of a change whose outcome is unknown.
    fn give_up(&mut self, step: &Step) {
        let names = match step {
            Step::Make { name, .. } | Step::Remove { name } => vec![name],
            Step::Rename { name, to } | Step::Exchange { name, to } => vec![name, to],
            Step::Link { to, .. } => vec![to],
            Step::Find { .. } | Step::List { .. } => Vec::new(),
        };
        for name in names {
            self.known.remove(name);
        }
    }
}

fn found(attributes: &Attributes) -> Found {
    let is_directory = attributes.mode.get() & file_type::MASK == file_type::DIRECTORY;
    Found { handle: attributes.handle, is_directory, file: None }
}
