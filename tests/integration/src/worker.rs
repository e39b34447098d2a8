//! A process that changes a tree of files all the time, and knows what must be there.
//!
//! It does one change after the other and keeps a [`Journal`] of them, so whoever comes after it knows
//! what was acknowledged, and the one change that was under way. In between it looks at what there is.
//! It works in *generations*: each has names of its own, in directories that all share. When the process
//! is killed, the next one begins a new generation and leaves the old one as it is: its last change may
//! come even later, or never, but nothing else may change, and that is looked at again and again.
//!
//! Servers that die and come back are not to be noticed. One error is excused: a reactor's log learns of
//! a session with the first change that the session asks of it, so the outcome of that change is unknown
//! if the reactor dies over it. The generation ends there.

mod changes;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gannet_client::blocking::Session;
use gannet_client::{ErrorKind, RequestError};
use gannet_fabric::Address;
use gannet_fabric::any::AnyFabric;
use gannet_proto::Handle;

use crate::journal::{Journal, Record};
use crate::load::open;
use crate::oracle::{Change, NodeId, ROOT, Tree, fill, split};
use crate::pattern::Random;

pub use verify::{Verified, verify};

/// Directories that all workers share.
pub const SHARED: usize = 4;
/// Changes between two looks at everything of the generation.
const LOOK_CHANGES: u64 = 150;
/// Changes between two looks at an older generation.
const LOOK_BACK_CHANGES: u64 = 60;

/// What a worker works on.
#[derive(Clone, Debug)]
pub struct Workplace {
    /// Where the metadata server is.
    pub metaserver: Address,
    /// Its reactors.
    pub reactors: u16,
    /// Where journals are, and the file `stop` once it is to end.
    pub directory: PathBuf,
    /// Tells the workers apart.
    pub worker: u32,
}

impl Workplace {
    /// The directories that all workers share.
    #[must_use]
    pub fn shared() -> Vec<String> {
        (0..SHARED).map(|number| format!("/shared-{number}")).collect()
    }

    /// What all names of a generation begin with.
    #[must_use]
    pub fn prefix(&self, generation: u32) -> String {
        format!("w{}g{generation}-", self.worker)
    }

    /// The journal of a generation.
    #[must_use]
    pub fn journal(&self, generation: u32) -> PathBuf {
        self.directory.join(format!("worker-{}-{generation}.journal", self.worker))
    }

    /// Generations that have begun.
    #[must_use]
    pub fn generations(&self) -> u32 {
        (0..).take_while(|generation| self.journal(*generation).exists()).count() as u32
    }

    /// What the journal of a generation tells.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn record(&self, generation: u32) -> Record {
        let tree = Tree::new(&Workplace::shared());
        Record::read(&self.journal(generation), tree).expect("a journal can be read")
    }

    /// The file that tells workers to end.
    #[must_use]
    pub fn stop_file(directory: &Path) -> PathBuf {
        directory.join("stop")
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The worker is to end.
    Stopped,
    /// The outcome of a change is unknown.
    InDoubt,
}

struct Worker<'a> {
    place: &'a Workplace,
    session: Session<AnyFabric>,
    random: Random,
    /// Reactors that have acknowledged a change of the session.
    changed: BTreeSet<u16>,
}

/// One generation.
struct Generation {
    number: u32,
    journal: Journal,
    tree: Tree,
    handles: BTreeMap<NodeId, Handle>,
    /// Names made so far.
    names: u64,
    changes: u64,
}

/// Works until it is told to stop; says `ready:` when the first change was acknowledged.
///
/// # Panics
/// If anything is not as it must be.
pub fn work(place: &Workplace) {
    let session = open(&place.metaserver);
    let seed = u64::from(place.worker) << 32 | u64::from(place.generations());
    let random = Random::new(seed);
    let mut worker = Worker { place, session, random, changed: BTreeSet::new() };
    let former = place.generations();
    if former > 0 {
        worker.look_back(former - 1);
    }
    let mut generation = former;
    while worker.generation(generation) == End::InDoubt {
        generation += 1;
    }
}

impl Worker<'_> {
    fn generation(&mut self, number: u32) -> End {
        let journal = Journal::create(&self.place.journal(number)).expect("a journal can be made");
        let tree = Tree::new(&Workplace::shared());
        let mut handles = BTreeMap::new();
        for path in Workplace::shared() {
            let found = self.session.resolve(&path).expect("the stage is there");
            handles.insert(tree.at(&path), found.handle);
        }
        handles.insert(ROOT, Handle::new(gannet_proto::Inode::ROOT));
        let mut now = Generation { number, journal, tree, handles, names: 0, changes: 0 };
        let stop = Workplace::stop_file(&self.place.directory);
        while !stop.exists() {
            let prefix = self.place.prefix(number);
            let change = changes::choose(&now.tree, &prefix, &mut now.names, &mut self.random);
            if self.change(&mut now, &change) == Some(End::InDoubt) {
                return End::InDoubt;
            }
            if now.changes == 1 {
                println!("ready: generation {number}");
            }
            self.look(&mut now);
        }
        let verified = self.verify(&now);
        now.journal.verified(verified).expect("the journal can be written");
        End::Stopped
    }

    fn change(&mut self, now: &mut Generation, change: &Change) -> Option<End> {
        now.changes += 1;
        let number = now.changes;
        now.journal.begin(number, change).expect("the journal can be written");
        let reactor = self.reactor_of(now, change);
        match self.perform(now, change, number) {
            Ok(made) => {
                now.journal.done(number).expect("the journal can be written");
                let node = now.tree.next();
                now.tree.apply(change, number);
                now.handles.extend(made.map(|handle| (node, handle)));
                self.changed.insert(reactor);
                None
            }
            Err(error)
                if error.kind == ErrorKind::OutcomeUnknown && !self.changed.contains(&reactor) =>
            {
                Some(End::InDoubt)
            }
            Err(error) => panic!("{change}: {error} ({:?})", error.kind),
        }
    }

    /// The reactor that a change is asked of: shards go round the reactors.
    fn reactor_of(&self, now: &Generation, change: &Change) -> u16 {
        let node = match change {
            Change::Mkdir(path)
            | Change::Create(path)
            | Change::Link(_, path)
            | Change::Unlink(path)
            | Change::Rmdir(path)
            | Change::Rename(path, _)
            | Change::Exchange(path, _) => now.tree.at(split(path).0),
            Change::Write(path, ..) | Change::Append(path, _) | Change::Truncate(path, _) => {
                now.tree.at(path)
            }
        };
        let shard = now.handles[&node].inode().shard().expect("handles are of some shard");
        shard.0 % self.place.reactors
    }

    /// Does a change; returns the handle of what it made.
    fn perform(
        &mut self,
        now: &Generation,
        change: &Change,
        number: u64,
    ) -> Result<Option<Handle>, RequestError> {
        let session = &mut self.session;
        let handle = |path: &str| now.handles[&now.tree.at(path)];
        match change {
            Change::Mkdir(path) => {
                session.mkdir(path, changes::OWNERSHIP).map(|made| Some(made.handle))
            }
            Change::Create(path) => {
                session.create(path, changes::OWNERSHIP, true).map(|made| Some(made.handle))
            }
            Change::Link(from, to) => session.link(from, to).map(|linked| {
                assert_eq!(linked.handle, handle(from), "{change}");
                None
            }),
            Change::Unlink(path) => session.unlink(path).map(|()| None),
            Change::Rmdir(path) => session.rmdir(path).map(|()| None),
            Change::Rename(from, to) => session.rename(from, to).map(|()| None),
            Change::Exchange(one, other) => session.rename_exchange(one, other).map(|()| None),
            Change::Write(path, offset, len_bytes) => {
                let mut bytes = vec![0; *len_bytes as usize];
                fill(&mut bytes, number, *offset);
                session.write_at(handle(path), *offset, &bytes).map(|()| None)
            }
            Change::Append(path, len_bytes) => {
                let mut bytes = vec![0; *len_bytes as usize];
                fill(&mut bytes, number, now.tree.content(path).size());
                session.append(handle(path), &bytes).map(|()| None)
            }
            Change::Truncate(path, size) => session.truncate(handle(path), *size).map(|()| None),
        }
    }

    /// Looks at something, now and then at everything.
    fn look(&mut self, now: &mut Generation) {
        let verified = if now.changes.is_multiple_of(LOOK_CHANGES) {
            self.verify(now)
        } else if now.changes.is_multiple_of(LOOK_BACK_CHANGES) && now.number > 0 {
            let older = self.random.below(now.number.into()) as u32;
            self.look_back(older)
        } else {
            self.look_at_one(now)
        };
        if verified > 0 {
            now.journal.verified(verified).expect("the journal can be written");
        }
    }

    /// Compares one thing, in one of four cases.
    fn look_at_one(&mut self, now: &Generation) -> u64 {
        let prefix = self.place.prefix(now.number);
        let paths: Vec<String> =
            now.tree.paths().into_keys().filter(|path| path.contains(&prefix)).collect();
        if paths.is_empty() || self.random.below(4) > 0 {
            return 0;
        }
        let path = &paths[self.random.below(paths.len() as u64) as usize];
        let compared = verify::compare(&mut self.session, &now.tree, &now.handles, path);
        compared.unwrap_or_else(|text| panic!("generation {}: {text}", now.number));
        1
    }

    /// Compares everything of the generation.
    fn verify(&mut self, now: &Generation) -> u64 {
        let prefix = self.place.prefix(now.number);
        let whole = verify::compare_all(&mut self.session, &now.tree, &now.handles, &prefix);
        whole.unwrap_or_else(|text| panic!("generation {}: {text}", now.number))
    }

    /// Compares everything of an older generation.
    fn look_back(&mut self, generation: u32) -> u64 {
        let verified = verify(self.place, generation, &mut self.session);
        verified.unwrap_or_else(|text| panic!("{text}")).things
    }
}
