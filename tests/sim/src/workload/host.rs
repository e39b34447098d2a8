//! A host that reads, writes, truncates, appends and names, and looks closely at what it gets.
//!
//! It owns a real client and an arena. Every buffer that belongs to no request is full of canaries,
//! and so is every byte around a request's range; both are looked at again and again. The data of a
//! read goes into the history as it is at the moment of the completion.

mod complete;
mod issue;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use gannet_client::{Client, ClientOptions, Completion, Operation, RequestId};
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_proto::Handle;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use super::content::CANARY;
use super::history::{OperationRef, SharedHistory};
use super::names::Names;
use crate::network::SimFabric;
use crate::random::{Chance, Delay, Random};
use crate::trace::Trace;

/// How one host behaves.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Tells the hosts of a run apart.
    pub number: u32,
    /// Requests of the load.
    pub operations: u32,
    /// Most requests under way.
    pub depth: usize,
    /// Bytes of each buffer.
    pub buffer_bytes: usize,
    /// Buffers in all.
    pub buffers: u32,
    /// Longest read or write, bytes.
    pub request_bytes_max: u64,
    /// Longest shared file, bytes.
    pub file_bytes_max: u64,
    /// Files that all hosts use.
    pub shared_files: usize,
    /// Directories below the root.
    pub directories: usize,
    /// Pause between submissions.
    pub think: Delay,
    /// How often a request is cancelled.
    pub cancel: Chance,
    /// When, after its submission.
    pub cancel_after: Delay,
    /// Weights of reads, writes, truncations, appends, questions, and requests about names.
    pub weights: [u64; 6],
    /// How often a read or write is of whole blocks.
    pub aligned: Chance,
    /// Whether a full store is no surprise.
    pub may_be_full: bool,
}

/// What all hosts of a run know together.
#[derive(Debug, Default)]
pub struct Board {
    /// The directories below the root.
    pub directories: Vec<Option<Handle>>,
    /// The shared files, the log file last.
    pub files: Vec<Option<Handle>>,
    /// Files of single hosts, by their number in the history.
    pub own: BTreeMap<usize, Handle>,
}

/// The board of a run.
pub type SharedBoard = Rc<RefCell<Board>>;

/// What comes before the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    MakeDirectory(usize),
    FindDirectory(usize),
    MakeFile(usize),
}

#[derive(Hash, Debug)]
enum Step<'a> {
    Submit { host: u32, token: u64, what: String },
    Completed { host: u32, token: u64, what: &'a str, result: String },
    Cancel { host: u32, token: u64 },
}

enum Kind {
    Setup(Setup),
    Read { of: OperationRef, offset: u32, length: u32 },
    Write { of: OperationRef, offset: u32, length: u32, at: u64 },
    Append { index: usize, number: u32, offset: u32, length: u32 },
    Truncate { of: OperationRef },
    Ask,
    Name,
    LogRead { offset: u32 },
}

struct Outstanding {
    request: RequestId,
    kind: Kind,
    /// The file of the history that it uses.
    file: Option<usize>,
}

/// One host program.
pub struct Host {
    options: HostOptions,
    client: Client<SimFabric>,
    idle: Vec<HostBuffer>,
    random: Random,
    history: SharedHistory,
    board: SharedBoard,
    trace: Trace,
    names: Names,
    /// Files of this host that the board shows.
    shown: Vec<usize>,
    setup: VecDeque<Setup>,
    is_set_up: bool,
    /// Reads that an auditor has still to do: the file of the history, the handle, the place.
    audit: Option<VecDeque<(Option<usize>, Handle, u64)>>,
    issued: u32,
    next_at: Time,
    tokens: u64,
    outstanding: BTreeMap<u64, Outstanding>,
    cancels: Vec<(Time, u64)>,
    completions: Vec<Completion>,
    /// Completions by error kind, in words.
    errors: BTreeMap<String, u32>,
    now: Time,
}

impl Host {
    /// A host that begins at once. Its arena is made here, as a process makes its own.
    ///
    /// # Panics
    /// Without memory.
    #[must_use]
    pub fn new(
        options: HostOptions,
        client: ClientOptions,
        fabric: SimFabric,
        random: Random,
        history: SharedHistory,
        board: SharedBoard,
        trace: &Trace,
    ) -> Host {
        let arena = Arena::new(&RegionIds::new(), options.buffer_bytes, options.buffers)
            .expect("memory for an arena");
        let mut idle: Vec<HostBuffer> = std::iter::from_fn(|| arena.take()).collect();
        idle.iter_mut().for_each(|buffer| buffer.fill(CANARY));
        let directories = (0..options.directories).map(Setup::MakeDirectory);
        let files = (0..=options.shared_files).map(Setup::MakeFile);
        Host {
            setup: directories.chain(files).collect(),
            client: Client::new(client, fabric),
            idle,
            random,
            history,
            board,
            trace: trace.clone(),
            names: Names::new(options.number, Vec::new()),
            shown: Vec::new(),
            is_set_up: false,
            audit: None,
            issued: 0,
            next_at: Time::ZERO,
            tokens: 0,
            outstanding: BTreeMap::new(),
            cancels: Vec::new(),
            completions: Vec::new(),
            errors: BTreeMap::new(),
            now: Time::ZERO,
            options,
        }
    }

    /// Makes the host one that reads everything once instead of doing its load.
    #[must_use]
    pub fn auditing(mut self) -> Host {
        self.audit = Some(VecDeque::new());
        self
    }

    /// The client, for planting defects.
    pub fn client_mut(&mut self) -> &mut Client<SimFabric> {
        &mut self.client
    }

    /// Whether everything is done and answered.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let is_read = self.audit.as_ref().is_none_or(VecDeque::is_empty);
        let is_issued = self.audit.is_some() || self.issued >= self.options.operations;
        self.is_set_up && is_issued && is_read && self.outstanding.is_empty()
    }

    /// Looks at all buffers that no request owns.
    pub fn check_idle_buffers(&self) {
        for buffer in &self.idle {
            self.check_canaries(buffer, "idle");
        }
    }

    /// Errors seen, in words, with their number.
    #[must_use]
    pub fn errors(&self) -> &BTreeMap<String, u32> {
        &self.errors
    }

    /// What is under way, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "host {}: set up {}, issued {}, outstanding {:?}, {:?}",
            self.options.number,
            self.is_set_up,
            self.issued,
            self.outstanding.values().map(|one| one.kind.name()).collect::<Vec<_>>(),
            self.client
        )
    }

    fn record(&self, step: Step<'_>) {
        self.trace.record(self.now, step);
    }

    fn violation(&self, text: &str) {
        let text = format!("host {} at {} ns: {text}", self.options.number, self.now.0);
        self.history.borrow_mut().violation(text);
    }

    fn check_canaries(&self, bytes: &[u8], what: &str) {
        if let Some(place) = bytes.iter().position(|byte| *byte != CANARY) {
            let seen = &bytes[place..bytes.len().min(place + 16)];
            self.violation(&format!("memory that is {what} was changed at {place}: {seen:02x?}"));
        }
    }

    fn take_buffer(&mut self) -> Option<HostBuffer> {
        if self.idle.is_empty() {
            return None;
        }
        let buffer = self.idle.swap_remove(self.random.index(self.idle.len()));
        self.check_canaries(&buffer, "idle");
        Some(buffer)
    }

    fn give_back(&mut self, buffer: Option<HostBuffer>) {
        match buffer {
            Some(mut buffer) => {
                buffer.fill(CANARY);
                self.idle.push(buffer);
            }
            None => self.violation("a buffer did not come back"),
        }
    }

    fn submit(&mut self, operation: Operation, kind: Kind, file: Option<usize>) {
        self.tokens += 1;
        let token = self.tokens;
        // Which buffer it is depends on the run alone, where it lies does not.
        let what = format!("{} {:?} {operation:?}", kind.name(), kind.number());
        match self.client.submit(operation, token) {
            Ok(request) => {
                self.record(Step::Submit { host: self.options.number, token, what });
                let may_cancel = !matches!(kind, Kind::Setup(_)) && self.audit.is_none();
                if self.random.happens(self.options.cancel) && may_cancel {
                    let at = self.now + self.random.delay(self.options.cancel_after);
                    self.cancels.push((at, token));
                }
                self.outstanding.insert(token, Outstanding { request, kind, file });
            }
            Err(refused) => self.violation(&format!("a request was refused: {}", refused.error)),
        }
    }

    fn run_cancels(&mut self) {
        let now = self.now;
        let due: Vec<u64> =
            self.cancels.iter().filter(|(at, _)| *at <= now).map(|(_, token)| *token).collect();
        self.cancels.retain(|(at, _)| *at > now);
        for token in due {
            if let Some(outstanding) = self.outstanding.get(&token) {
                let request = outstanding.request;
                self.record(Step::Cancel { host: self.options.number, token });
                self.client.cancel(request);
            }
        }
    }
}

impl Kind {
    /// The number of the operation in the history.
    fn number(&self) -> Option<u32> {
        match self {
            Kind::Read { of, .. } | Kind::Write { of, .. } | Kind::Truncate { of } => {
                Some(of.number)
            }
            Kind::Append { number, .. } => Some(*number),
            Kind::Setup(_) | Kind::Ask | Kind::Name | Kind::LogRead { .. } => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Kind::Setup(_) => "setup",
            Kind::Read { .. } => "read",
            Kind::Write { .. } => "write",
            Kind::Append { .. } => "append",
            Kind::Truncate { .. } => "truncate",
            Kind::Ask => "question",
            Kind::Name => "name",
            Kind::LogRead { .. } => "log read",
        }
    }
}

impl Poller for Host {
    fn poll(&mut self, now: Now) -> usize {
        self.now = now.time;
        let mut completions = std::mem::take(&mut self.completions);
        let mut work = self.client.poll(now.time, &mut completions);
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        self.completions = completions;
        self.run_cancels();
        while self.issue() {
            work += 1;
        }
        work
    }

    fn deadline(&self) -> Time {
        let may_issue = self.is_set_up
            && self.audit.is_none()
            && self.issued < self.options.operations
            && self.outstanding.len() < self.options.depth;
        let next = if may_issue { self.next_at } else { Time::NEVER };
        let cancel = self.cancels.iter().map(|(at, _)| *at).min().unwrap_or(Time::NEVER);
        self.client.deadline().min(next).min(cancel)
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        true
    }
}
