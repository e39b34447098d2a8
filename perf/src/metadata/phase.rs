//! One operation at one depth, as a closed loop.
//!
//! Changes are done once to each file, but for a time at most, and measured from the first submission
//! to the last completion. What only looks is measured for a time, after a warm-up. Slots and histograms are made before the
//! loop; names are made as requests are, since these own them.

use std::time::Duration;

use gannet_client::{Completion, Listing, Operation, Outcome, Ownership};
use gannet_fabric::Fabric;
use gannet_proto::operations::{Attributes, file_type};
use gannet_runtime::time::Time;

use super::names::{Naming, Order};
use super::options::{MetadataOperation, MetadataOptions};
use super::tree::{SETUP_DEPTH, Tree};
use crate::ceilings::cpu::CpuWatch;
use crate::closed_loop::{self, Load, Window};
use crate::error::PerfError;
use crate::host::{Host, request, unexpected};
use crate::latency::LatencySummary;
use crate::random::Random;

/// Permissions of the files.
const MODE: u32 = 0o644;

/// One operation at one depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phase {
    pub(crate) operation: MetadataOperation,
    pub(crate) depth: u32,
    /// Files before this one were renamed.
    renamed: u32,
    /// The first file that is changed.
    first: u32,
    warm_up: Duration,
    /// As long as it takes to change every file, if there is none.
    time: Option<Duration>,
    seed: u64,
}

/// What the client saw of it.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) elapsed: Duration,
    pub(crate) operations: u64,
    pub(crate) latency: LatencySummary,
    pub(crate) busy: Duration,
    pub(crate) cpu_share: f64,
    /// Entries that were listed by the operations.
    pub(crate) entries: u64,
    /// Operations from the start, before the measurement and after it, too.
    pub(crate) operations_in_all: u64,
    /// Requests that these took.
    pub(crate) requests_in_all: u64,
    /// Of changes: files before this one have been changed.
    pub(crate) changed: u32,
}

/// How far an operation has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Its first or only request is outstanding.
    #[default]
    First,
    /// Open: the file is found.
    Opening,
    /// Readdir: so many entries were listed.
    Listing { entries: u64 },
}

/// An operation under way, named by its index as token.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    submitted: Time,
    /// The file, or the directory that is listed.
    item: u32,
    step: Step,
}

impl Phase {
    /// An operation to be measured, where files before `renamed` were renamed.
    pub(crate) fn new(
        options: &MetadataOptions,
        operation: MetadataOperation,
        depth: u32,
        renamed: u32,
    ) -> Phase {
        let (warm_up, time, seed) = (options.warm_up, Some(options.time), options.seed);
        Phase { operation, depth, renamed, first: 0, warm_up, time, seed }
    }

    /// Makes the files from `first` on, however long it takes.
    pub(crate) fn filling(options: &MetadataOptions, first: u32) -> Phase {
        let phase = Phase::new(options, MetadataOperation::Create, SETUP_DEPTH, 0);
        Phase { first, time: None, ..phase }
    }

    /// Runs to its end, with nothing outstanding before or, unless it fails, after. `measuring` is
    /// called when the measurement begins and when it ends.
    pub(crate) fn run<F: Fabric>(
        &self,
        host: &mut Host<F>,
        tree: &Tree,
        mut measuring: impl FnMut(),
    ) -> Result<Observed, PerfError> {
        let requests = host.client.counters().requests;
        let mut state = Loop {
            phase: self,
            host,
            tree,
            order: self.order(tree),
            flights: vec![Flight::default(); self.depth as usize],
            outstanding: 0,
            operations: 0,
            entries: 0,
        };
        let mut window = Window::default();
        let (elapsed, cpu_share) = if self.operation.is_change() {
            state.all_files(&mut window, &mut measuring)?
        } else {
            state.for_a_time(&mut window, &mut measuring)?
        };
        let (operations_in_all, entries) = (state.operations, state.entries);
        let changed = state.order.given();
        Ok(Observed {
            elapsed,
            operations: window.latencies.count(),
            latency: window.latencies.summary(),
            busy: window.busy,
            cpu_share,
            entries,
            operations_in_all,
            requests_in_all: host.client.counters().requests - requests,
            changed,
        })
    }

    fn order(&self, tree: &Tree) -> Order {
        let files = tree.spread.files;
        match self.operation {
            MetadataOperation::Readdir => Order::InTurn { next: 0, count: tree.spread.directories },
            operation if operation.is_change() => Order::Once { next: self.first, count: files },
            _ => Order::AtRandom { random: Random::new(self.seed), count: files },
        }
    }

    /// What is being done, for messages.
    fn what(&self) -> &'static str {
        match self.operation {
            MetadataOperation::Create => "creating a file in",
            MetadataOperation::Stat => "looking at a file in",
            MetadataOperation::Open => "opening a file in",
            MetadataOperation::Readdir => "listing",
            MetadataOperation::Rename => "renaming a file in",
            MetadataOperation::Unlink => "removing a file of",
        }
    }
}

struct Loop<'a, F: Fabric> {
    phase: &'a Phase,
    host: &'a mut Host<F>,
    tree: &'a Tree,
    order: Order,
    flights: Vec<Flight>,
    outstanding: u32,
    /// Operations that are over.
    operations: u64,
    /// Entries listed by those of them that counted.
    entries: u64,
}

impl<F: Fabric> Load<F> for Loop<'_, F> {
    fn host(&mut self) -> &mut Host<F> {
        self.host
    }

    fn completed(
        &mut self,
        completion: Completion,
        now: Time,
        window: Option<&mut Window>,
    ) -> Result<(), PerfError> {
        let index = completion.token as usize;
        let flight = self.flights[index];
        let outcome = match completion.result {
            Ok(outcome) => outcome,
            Err(error) => return Err(request(self.phase.what(), &self.path(flight), error)),
        };
        let mut entries = 0;
        match (self.phase.operation, outcome) {
            (MetadataOperation::Readdir, Outcome::Directory(listing)) => {
                match self.list_on(index, listing)? {
                    Some(all) => entries = all,
                    None => return Ok(()),
                }
            }
            (MetadataOperation::Open, Outcome::Entry(found)) if flight.step == Step::First => {
                self.flights[index].step = Step::Opening;
                return self.submit(index, Operation::Open { file: found.handle });
            }
            (MetadataOperation::Stat, Outcome::Entry(found)) if !is_file(&found) => {
                return Err(unexpected(self.phase.what(), &self.path(flight)));
            }
            (MetadataOperation::Readdir, _) => {
                return Err(unexpected(self.phase.what(), &self.path(flight)));
            }
            (_, Outcome::Entry(_)) => {}
            (_, _) => return Err(unexpected(self.phase.what(), &self.path(flight))),
        }
        if let Some(window) = window {
            window.latencies.record(now.since(flight.submitted));
            self.entries += entries;
        }
        self.operations += 1;
        self.outstanding -= 1;
        self.begin_next(index, now)
    }
}

impl<F: Fabric> Loop<'_, F> {
    /// Does the operation once to each file, or to as many as there is time for.
    fn all_files(
        &mut self,
        window: &mut Window,
        measuring: &mut impl FnMut(),
    ) -> Result<(Duration, f64), PerfError> {
        measuring();
        let watch = CpuWatch::start();
        let begin = Time::monotonic();
        self.begin_all(begin)?;
        let mut now = begin;
        while self.outstanding > 0 {
            now = closed_loop::turn(self, now, Some(window))?;
            if self.phase.time.is_some_and(|time| now > begin + time) {
                self.order.end();
            }
        }
        let cpu_share = watch.share();
        measuring();
        Ok((now.since(begin), cpu_share))
    }

    /// Does the operation for the warm-up and for the time, and lets what is then outstanding end.
    fn for_a_time(
        &mut self,
        window: &mut Window,
        measuring: &mut impl FnMut(),
    ) -> Result<(Duration, f64), PerfError> {
        let mut now = Time::monotonic();
        self.begin_all(now)?;
        let warm = now + self.phase.warm_up;
        while now < warm {
            now = closed_loop::turn(self, now, None)?;
        }
        measuring();
        let watch = CpuWatch::start();
        let begin = Time::monotonic();
        now = begin;
        while now < begin + self.phase.time.unwrap_or_default() {
            now = closed_loop::turn(self, now, Some(window))?;
        }
        let (elapsed, cpu_share) = (now.since(begin), watch.share());
        measuring();
        self.order.end();
        while self.outstanding > 0 {
            now = closed_loop::turn(self, now, None)?;
        }
        Ok((elapsed, cpu_share))
    }

    fn begin_all(&mut self, now: Time) -> Result<(), PerfError> {
        (0..self.flights.len()).try_for_each(|index| self.begin_next(index, now))
    }

    /// Begins the next operation, if there is one, in the place of one that is over.
    fn begin_next(&mut self, index: usize, now: Time) -> Result<(), PerfError> {
        let Some(item) = self.order.next() else { return Ok(()) };
        self.flights[index] = Flight { submitted: now, item, step: Step::First };
        self.outstanding += 1;
        let operation = self.first_request(item);
        self.submit(index, operation)
    }

    fn first_request(&self, item: u32) -> Operation {
        let spread = self.tree.spread;
        let naming = if item < self.phase.renamed { Naming::Renamed } else { Naming::Made };
        if self.phase.operation == MetadataOperation::Readdir {
            return Operation::Readdir { directory: self.tree.directory(item), after: Vec::new() };
        }
        let parent = self.tree.directory(spread.directory_of(item));
        let name = naming.name(item).to_vec();
        match self.phase.operation {
            MetadataOperation::Create => {
                let ownership = Ownership { mode: MODE, uid: 0, gid: 0 };
                Operation::Create { parent, name, ownership, exclusive: true }
            }
            MetadataOperation::Rename => {
                let to_name = Naming::Renamed.name(item).to_vec();
                Operation::Rename { parent, name, to_parent: parent, to_name, no_replace: false }
            }
            MetadataOperation::Unlink => Operation::Unlink { parent, name },
            _ => Operation::Lookup { parent, path: name },
        }
    }

    /// Takes a part of a listing: asks for the next, or returns how many entries all parts had.
    fn list_on(&mut self, index: usize, mut listing: Listing) -> Result<Option<u64>, PerfError> {
        let Flight { item, step, .. } = self.flights[index];
        let before = if let Step::Listing { entries } = step { entries } else { 0 };
        let entries = before + listing.entries.len() as u64;
        let expected = u64::from(self.tree.spread.files_in(item));
        // A listing that goes back would never end.
        if listing.end || entries > expected {
            let directory = self.tree.path(item);
            let whole = entries == expected;
            let wrong = PerfError::Listing { directory, expected, found: entries };
            return if whole { Ok(Some(entries)) } else { Err(wrong) };
        }
        let Some(last) = listing.entries.pop() else {
            return Err(unexpected(self.phase.what(), &self.tree.path(item)));
        };
        self.flights[index].step = Step::Listing { entries };
        let directory = self.tree.directory(item);
        self.submit(index, Operation::Readdir { directory, after: last.name })?;
        Ok(None)
    }

    fn submit(&mut self, index: usize, operation: Operation) -> Result<(), PerfError> {
        self.host.submit(operation, index as u64, self.tree.prefix())
    }

    #[cold]
    fn path(&self, flight: Flight) -> String {
        let directory = match self.phase.operation {
            MetadataOperation::Readdir => flight.item,
            _ => self.tree.spread.directory_of(flight.item),
        };
        self.tree.path(directory)
    }
}

fn is_file(attributes: &Attributes) -> bool {
    attributes.mode.get() & file_type::MASK == file_type::REGULAR
}
