//! The load's own thread: keeps requests outstanding, and checks how they end.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use gannet_client::{ClientCounters, Completion, ErrorKind, Operation, Outcome, RequestError};
use gannet_fabric::Address;
use gannet_proto::Status;

use super::canaries::Canaries;
use super::model::{Names, Read};
use super::{
    BLOCK_GRANULES, Command, Done, LoadOptions, Model, OWNERSHIP, REQUEST_BYTES_MAX, Served, open,
};
use crate::host::Host;
use crate::pattern::{GRANULE_BYTES, Random};

/// How long nothing may complete before the load is declared stuck.
const STUCK: Duration = Duration::from_secs(60);
/// How often commands are looked for when nothing completes.
const COMMAND_INTERVAL: Duration = Duration::from_millis(5);

/// A request under way.
enum Step {
    Write { file: usize, version: u32 },
    Read { file: usize, read: Read },
    Create { name: u32 },
    Unlink { name: u32 },
}

/// Waits until everything was served once.
struct Watch {
    reply: Sender<Served>,
    since: Instant,
    /// By file, the first successes.
    reads: Vec<Option<Instant>>,
    writes: Vec<Option<Instant>>,
    name: Option<Instant>,
}

impl Watch {
    fn served(&self) -> Option<Served> {
        let all = |times: &[Option<Instant>]| times.iter().copied().collect::<Option<Vec<_>>>();
        let (reads, writes) = (all(&self.reads)?, all(&self.writes)?);
        let every = reads.iter().chain(&writes).copied().chain([self.name?]);
        Some(Served {
            all: every.max()?,
            read: reads.into_iter().min()?,
            write: writes.into_iter().min()?,
        })
    }
}

pub(super) struct Running {
    host: Host,
    metaserver: Address,
    model: Model,
    options: LoadOptions,
    random: Random,
    /// By token; tokens rise.
    steps: BTreeMap<u64, (Step, Instant)>,
    next_token: u64,
    completed: u64,
    /// Answers owed: when no token below the number is under way, or so many have completed.
    settling: Vec<(u64, Sender<Instant>)>,
    progressing: Vec<(u64, Sender<Instant>)>,
    watching: Vec<Watch>,
    /// Answers owed when nothing is under way; nothing is begun until then.
    checking: Vec<Sender<Done>>,
    canaries: Canaries,
    done: Done,
    /// The client's counters at the last check.
    counters: ClientCounters,
}

impl Running {
    pub(super) fn new(
        host: Host,
        metaserver: Address,
        model: Model,
        options: LoadOptions,
    ) -> Running {
        Running {
            host,
            metaserver,
            model,
            random: Random::new(options.seed),
            options,
            steps: BTreeMap::new(),
            next_token: 0,
            completed: 0,
            settling: Vec::new(),
            progressing: Vec::new(),
            watching: Vec::new(),
            checking: Vec::new(),
            canaries: Canaries::default(),
            done: Done::default(),
            counters: ClientCounters::default(),
        }
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) -> (Model, Done) {
        let mut finishing = false;
        let mut alive = Instant::now();
        loop {
            for command in commands.try_iter() {
                finishing |= matches!(command, Command::Finish);
                self.command(command);
            }
            self.answer();
            let begins = !finishing && self.checking.is_empty();
            while begins && self.steps.len() < self.options.depth as usize {
                self.begin();
            }
            if self.steps.is_empty() {
                break;
            }
            let completions = self.host.wait(COMMAND_INTERVAL);
            if !completions.is_empty() {
                alive = Instant::now();
            }
            assert!(
                alive.elapsed() < STUCK,
                "{} requests are outstanding and nothing completes: {:?}",
                self.steps.len(),
                self.host
            );
            for completion in completions {
                self.complete(completion);
            }
        }
        let done = if self.options.outages.is_some() { self.check() } else { self.interval() };
        (self.model, done)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Settle(reply) => self.settling.push((self.next_token, reply)),
            Command::Progress(more, reply) => {
                self.progressing.push((self.completed + more, reply));
            }
            Command::Serve(reply) => {
                let none = vec![None; self.options.files as usize];
                let (reads, writes) = (none.clone(), none);
                let since = Instant::now();
                self.watching.push(Watch { reply, since, reads, writes, name: None });
            }
            Command::Check(reply) => self.checking.push(reply),
            Command::Finish => {}
        }
    }

    /// Gives the answers whose time has come.
    fn answer(&mut self) {
        let oldest = self.steps.keys().next().copied().unwrap_or(u64::MAX);
        let completed = self.completed;
        let tell = |owed: &mut Vec<(u64, Sender<Instant>)>, due: &dyn Fn(u64) -> bool| {
            owed.retain(|(number, reply)| {
                // Whoever asked waits for the answer.
                let _told = due(*number).then(|| reply.send(Instant::now()));
                !due(*number)
            });
        };
        tell(&mut self.settling, &|mark| oldest >= mark);
        tell(&mut self.progressing, &|goal| completed >= goal);
        self.watching.retain(|watch| {
            let served = watch.served();
            assert!(
                served.is_some() || watch.since.elapsed() < STUCK,
                "not served by all: reads {:?}, writes {:?}, name {:?}; {:?}",
                watch.reads,
                watch.writes,
                watch.name,
                self.host
            );
            let _told = served.map(|served| watch.reply.send(served));
            served.is_none()
        });
        if self.steps.is_empty() && !self.checking.is_empty() {
            let done = self.check();
            for reply in self.checking.drain(..) {
                let _told = reply.send(done);
            }
        }
    }

    /// Checks everything while nothing is under way.
    fn check(&mut self) -> Done {
        // A host of its own: this one is not polled meanwhile, and has nothing to do.
        let mut session = open(&self.metaserver);
        self.done.applied += self.model.decide(&mut session);
        self.done.canaries += self.canaries.look();
        self.interval()
    }

    /// What was done since the last time.
    fn interval(&mut self) -> Done {
        let counters = self.host.client().counters();
        let former = std::mem::replace(&mut self.counters, counters);
        let resends = counters.resends - former.resends;
        let disconnects = counters.disconnects - former.disconnects;
        Done { resends, disconnects, ..std::mem::take(&mut self.done) }
    }

    /// Starts a request of a kind, at a place and of a length that chance decides.
    fn begin(&mut self) {
        let (operation, step) = match self.random.below(20) {
            0 | 1 => self.name_change(),
            2..=10 => self.write(),
            _ => self.read(),
        };
        let token = self.next_token;
        self.next_token += 1;
        self.host.submit(operation, token);
        self.steps.insert(token, (step, Instant::now()));
    }

    fn name_change(&mut self) -> (Operation, Step) {
        let name = self.model.names.choose(&mut self.random);
        let Some((name, exists)) = name else { return self.read() };
        let (parent, text) = (self.model.directory, Names::text(name).into_bytes());
        if exists {
            (Operation::Unlink { parent, name: text }, Step::Unlink { name })
        } else {
            let ownership = OWNERSHIP;
            let create = Operation::Create { parent, name: text, ownership, exclusive: true };
            (create, Step::Create { name })
        }
    }

    /// A file, and first and number of granules. Most ranges are whole blocks.
    fn range(&mut self) -> (usize, u32, u32) {
        let file = self.random.below(self.options.files.into()) as usize;
        let granules = u64::from(self.model.files[file].granules());
        let longest = (REQUEST_BYTES_MAX / GRANULE_BYTES) as u64;
        let (start, count) = if self.random.below(4) > 0 {
            let count = 1 + self.random.below(longest / BLOCK_GRANULES);
            let start = self.random.below(granules / BLOCK_GRANULES - count + 1);
            (start * BLOCK_GRANULES, count * BLOCK_GRANULES)
        } else {
            let count = BLOCK_GRANULES + self.random.below(longest - BLOCK_GRANULES + 1);
            (self.random.below(granules - count + 1), count)
        };
        (file, start as u32, count as u32)
    }

    fn write(&mut self) -> (Operation, Step) {
        let (file, start, count) = self.range();
        let mut buffer = self.host.buffer();
        let model = &mut self.model.files[file];
        // Two writes of one place at the same time have no order that could be checked.
        let Some(version) = model.begin_write(start, count, &mut buffer) else {
            drop(buffer);
            return self.read_at(file, start, count);
        };
        let operation = Operation::Write {
            file: model.handle,
            offset: u64::from(start) * GRANULE_BYTES as u64,
            length: count * GRANULE_BYTES as u32,
            buffer,
            buffer_offset: 0,
            append: false,
        };
        (operation, Step::Write { file, version })
    }

    fn read(&mut self) -> (Operation, Step) {
        let (file, start, count) = self.range();
        self.read_at(file, start, count)
    }

    fn read_at(&mut self, file: usize, start: u32, count: u32) -> (Operation, Step) {
        let mut buffer = self.host.buffer();
        // What was there before must not pass for what is read.
        buffer.fill(0xdd);
        let model = &mut self.model.files[file];
        let operation = Operation::Read {
            file: model.handle,
            offset: u64::from(start) * GRANULE_BYTES as u64,
            length: count * GRANULE_BYTES as u32,
            buffer,
            buffer_offset: 0,
        };
        (operation, Step::Read { file, read: model.begin_read(start, count) })
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { token, result, buffer, .. } = completion;
        let (step, begun) = self.steps.remove(&token).expect("completions belong to requests");
        self.completed += 1;
        let now = Instant::now();
        let took = now - begun;
        self.done.longest = self.done.longest.max(took);
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                self.fail(step, &error, took);
                if let Some(buffer) = buffer {
                    self.canaries.add(buffer);
                }
                return;
            }
        };
        match (step, outcome) {
            (Step::Write { file, version }, Outcome::Write { bytes, .. }) => {
                self.model.files[file].end_write(version, bytes);
                self.done.writes += 1;
                for watch in &mut self.watching {
                    watch.writes[file].get_or_insert(now);
                }
            }
            (Step::Read { file, read }, Outcome::Read { bytes, .. }) => {
                let buffer = buffer.expect("a read returns its buffer");
                self.model.files[file].end_read(&read, &buffer[..bytes as usize]);
                self.done.reads += 1;
                for watch in &mut self.watching {
                    watch.reads[file].get_or_insert(now);
                }
            }
            (Step::Create { name }, Outcome::Entry(_)) => self.named(name, true, now),
            (Step::Unlink { name }, Outcome::Entry(_)) => self.named(name, false, now),
            (_, outcome) => panic!("an answer of another kind: {outcome:?}"),
        }
    }

    fn named(&mut self, name: u32, exists: bool, now: Instant) {
        if exists {
            self.model.names.created(name);
        } else {
            self.model.names.removed(name);
        }
        self.done.names += 1;
        for watch in &mut self.watching {
            watch.name.get_or_insert(now);
        }
    }

    /// A request ended with an error.
    fn fail(&mut self, step: Step, error: &RequestError, took: Duration) {
        let doubt = self.options.outages.and_then(|_| in_doubt(&error.kind));
        let Some(in_doubt) = doubt else {
            panic!("after {took:?}: {error} ({:?}); {:?}", error.kind, self.host)
        };
        self.done.failures += 1;
        let is_change = !matches!(step, Step::Read { .. });
        self.done.doubts += u64::from(is_change && in_doubt);
        match step {
            Step::Write { file, version } => {
                self.model.files[file].fail_write(version, in_doubt);
            }
            Step::Read { file, .. } => self.model.files[file].fail_read(),
            Step::Create { name } | Step::Unlink { name } if in_doubt => {
                self.model.names.in_doubt(name);
            }
            Step::Create { name } => self.model.names.removed(name),
            Step::Unlink { name } => self.model.names.created(name),
        }
    }
}

/// Whether a change that failed like this may have taken effect; `None` if nothing may fail like
/// this because servers are out of reach.
fn in_doubt(kind: &ErrorKind) -> Option<bool> {
    match kind {
        ErrorKind::TimedOut { maybe_applied } | ErrorKind::Cancelled { maybe_applied } => {
            Some(*maybe_applied)
        }
        ErrorKind::OutcomeUnknown | ErrorKind::Status(Status::OUTCOME_UNKNOWN) => Some(true),
        // It waited for a data server; a write that had been sent may be committed.
        ErrorKind::TargetLost { .. } => Some(true),
        ErrorKind::MetaserverLost { .. }
        | ErrorKind::RetriesExhausted(_)
        | ErrorKind::Status(
            Status::TIMED_OUT | Status::AGAIN | Status::RETRY | Status::CANCELLED,
        ) => Some(false),
        _ => None,
    }
}
