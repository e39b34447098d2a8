//! A host that plays a script, one step after the other.
//!
//! A reactor's log learns of a session with the first change that the session asks of it. If that
//! change is under way when the reactor dies, nobody may know the session afterwards, and the host is
//! told that the change is in doubt. This is the one error that a script may meet, and it ends there:
//! the change counts as outstanding, whole or absent, as if the host had died.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;

use gannet_client::{Client, ClientOptions, Completion, ErrorKind, OpenId, Outcome};
use gannet_fabric::arena::{Arena, RegionIds};
use gannet_proto::{Handle, Inode};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use super::script::{Means, Step, read};
use super::tree::{NodeId, ROOT, Tree};
use crate::network::SimFabric;

/// Bytes of a buffer: no file of a script is longer.
pub const BUFFER_BYTES: usize = 64 << 10;

/// What a host finds: a tree, and the handles of its nodes.
pub type Stage = (Tree, BTreeMap<NodeId, Handle>);

/// How far a host has come; what others can know of it when it is dead.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Which host.
    pub number: u8,
    /// Its script.
    pub script: Vec<Step>,
    /// Steps that were acknowledged.
    pub acknowledged: usize,
    /// Whether the next one was asked for.
    pub is_outstanding: bool,
    /// Whether it was the first change asked of its reactor, and is in doubt: the script ends.
    pub is_in_doubt: bool,
    /// What the acknowledged steps have made.
    pub tree: Tree,
    /// Handles of its nodes.
    pub handles: BTreeMap<NodeId, Handle>,
    /// What was wrong.
    pub violations: Vec<String>,
}

impl Progress {
    /// The number by which the bytes of a step's write are told.
    #[must_use]
    pub fn write_number(&self, step: usize) -> u32 {
        u32::from(self.number) * 1000 + step as u32 + 1
    }

    /// Whether the script has come to its end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.acknowledged == self.script.len()
    }

    /// Whether nothing more will be asked for.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_complete() || self.is_in_doubt || !self.violations.is_empty()
    }

    /// What there may be: what was acknowledged, and what the outstanding step makes of it.
    #[must_use]
    pub fn candidates(&self) -> Vec<Tree> {
        let mut trees = vec![self.tree.clone()];
        if self.is_outstanding {
            let mut after = self.tree.clone();
            let number = self.write_number(self.acknowledged);
            after.apply(&self.script[self.acknowledged], number);
            trees.push(after);
        }
        trees
    }
}

/// A host.
pub struct Player {
    client: Client<SimFabric>,
    arena: Arena,
    opens: BTreeMap<u8, OpenId>,
    progress: Progress,
    /// Reactors of the metadata server.
    reactors: u16,
    /// Those that have acknowledged a change.
    changed: BTreeSet<u16>,
    /// What a read has brought so far.
    read: Vec<u8>,
    completions: Vec<Completion>,
}

impl Player {
    /// A host that goes on from a tree that others have made.
    ///
    /// # Panics
    /// Without memory.
    #[must_use]
    pub fn new(
        number: u8,
        script: Vec<Step>,
        (tree, mut handles): Stage,
        reactors: u16,
        client: ClientOptions,
        fabric: SimFabric,
    ) -> Player {
        handles.insert(ROOT, Handle::new(Inode::ROOT));
        let progress = Progress {
            number,
            script,
            acknowledged: 0,
            is_outstanding: false,
            is_in_doubt: false,
            tree,
            handles,
            violations: Vec::new(),
        };
        Player {
            client: Client::new(client, fabric),
            arena: Arena::new(&RegionIds::new(), BUFFER_BYTES, 2).expect("memory for an arena"),
            opens: BTreeMap::new(),
            progress,
            reactors,
            changed: BTreeSet::new(),
            read: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    fn begin(&mut self) {
        let at = self.progress.acknowledged;
        let (step, number) = (self.progress.script[at], self.progress.write_number(at));
        let Player { client, arena, opens, progress, .. } = self;
        let mut open = |closed: Option<u8>| match closed {
            Some(number) => opens[&number],
            None => {
                let open = client.new_open();
                if let Step::Open(_, number) = step {
                    opens.insert(number, open);
                }
                open
            }
        };
        let mut means = Means {
            tree: &progress.tree,
            handle: &|node| progress.handles[&node],
            open: &mut open,
            buffer: &mut || arena.take().expect("one request at a time"),
            number,
        };
        let operation = step.operation(&mut means);
        self.read.clear();
        self.submit(operation);
        self.progress.is_outstanding = true;
    }

    fn submit(&mut self, operation: gannet_client::Operation) {
        if let Err(refused) = self.client.submit(operation, 0) {
            self.violation(&format!("was refused: {}", refused.error));
        }
    }

    fn violation(&mut self, text: &str) {
        let Progress { number, script, acknowledged, .. } = &self.progress;
        let step = script.get(*acknowledged);
        let text = format!("host {number}, step {acknowledged} {step:?} {text}");
        self.progress.violations.push(text);
    }

    /// The reactor that a change is asked of: shards go round the reactors.
    fn reactor_of(&self, step: &Step) -> Option<u16> {
        let node = self.progress.tree.at(step.changes()?);
        Some(self.progress.handles[&node].inode().shard()?.0 % self.reactors)
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { result, buffer, .. } = completion;
        let step = self.progress.script[self.progress.acknowledged];
        let reactor = self.reactor_of(&step);
        let number = self.progress.write_number(self.progress.acknowledged);
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error)
                if error.kind == ErrorKind::OutcomeUnknown
                    && reactor.is_some_and(|reactor| !self.changed.contains(&reactor)) =>
            {
                self.progress.is_in_doubt = true;
                return;
            }
            // The script cannot go on: it would ask for what may not be there.
            Err(error) => return self.violation(&format!("failed: {error}")),
        };
        match (step, &outcome) {
            (Step::Mkdir(_) | Step::Create(_), Outcome::Entry(made)) => {
                let node = self.progress.tree.next();
                self.progress.handles.insert(node, made.handle);
            }
            (Step::Link(from, _), Outcome::Entry(linked)) => {
                let node = self.progress.tree.at(from);
                let links = self.progress.tree.links(node) + 1;
                let is_right = self.progress.handles[&node] == linked.handle
                    && linked.links.get() as usize == links;
                if !is_right {
                    self.violation(&format!("linked something else: {linked:?}"));
                }
            }
            (Step::Write { offset, len_bytes, .. }, Outcome::Write { bytes, offset: at, .. })
                if (u64::from(offset), len_bytes) == (*at, *bytes) => {}
            (Step::Append { file, len_bytes }, Outcome::Write { bytes, offset, .. }) => {
                let end = self.progress.tree.content(self.progress.tree.at(file)).len() as u64;
                if (*offset, *bytes) != (end, len_bytes) {
                    self.violation(&format!("wrote {bytes} bytes at {offset}, not at {end}"));
                }
            }
            (Step::Read(path), Outcome::Read { bytes, end_of_file }) => {
                let Some(buffer) = buffer else { return self.violation("kept its buffer") };
                self.read.extend_from_slice(&buffer[..*bytes as usize]);
                let node = self.progress.tree.at(path);
                if !end_of_file {
                    let again = read(self.progress.handles[&node], self.read.len() as u64, buffer);
                    return self.submit(again);
                }
                let expected = self.progress.tree.content(node);
                if *expected != self.read {
                    let text = super::judge::difference(expected, &self.read);
                    self.violation(&format!("read something else: {text}"));
                }
            }
            (
                Step::Unlink(_)
                | Step::Rmdir(_)
                | Step::Rename(..)
                | Step::Exchange(..)
                | Step::Truncate { .. }
                | Step::Open(..)
                | Step::Close(_),
                Outcome::Entry(_),
            ) => {}
            _ => self.violation(&format!("was answered by {outcome:?}")),
        }
        self.changed.extend(reactor);
        self.progress.tree.apply(&step, number);
        self.progress.acknowledged += 1;
        self.progress.is_outstanding = false;
    }
}

impl Poller for Player {
    fn poll(&mut self, now: Now) -> usize {
        let mut completions = std::mem::take(&mut self.completions);
        let mut work = self.client.poll(now.time, &mut completions);
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        self.completions = completions;
        if !self.progress.is_outstanding && !self.progress.is_over() {
            self.begin();
            work += 1;
        }
        work
    }

    fn deadline(&self) -> Time {
        self.client.deadline()
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        true
    }
}
