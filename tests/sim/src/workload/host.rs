//! A host that reads, writes, truncates, appends and names, and looks closely at what it gets.
//!
//! It owns a real client and an arena. Every buffer that belongs to no request is full of canaries,
//! and so is every byte around a request's range; both are looked at again and again. The data of a
//! read goes into the history as it is at the moment of the completion.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use gannet_client::{
    AttributeChanges, Client, ClientOptions, Completion, ErrorKind, Operation, Outcome, Ownership,
    RequestError, RequestId,
};
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_proto::{Handle, Inode, Status};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

use super::content::{self, CANARY, POISON};
use super::history::{Appended, OperationRef, Outcome as Ended, SharedHistory, What};
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

    /// Submits what comes next. False: nothing does now.
    fn issue(&mut self) -> bool {
        if !self.is_set_up {
            return self.outstanding.is_empty() && self.issue_setup();
        }
        if self.audit.is_some() {
            return self.outstanding.is_empty() && self.issue_audit();
        }
        if self.issued >= self.options.operations
            || self.outstanding.len() >= self.options.depth
            || self.now < self.next_at
        {
            return false;
        }
        self.next_at = self.now + self.random.delay(self.options.think);
        self.issued += 1;
        self.issue_load();
        true
    }

    fn issue_setup(&mut self) -> bool {
        let Some(step) = self.setup.front().copied() else { return self.begin_load() };
        let ownership = Ownership { mode: 0o755, uid: 0, gid: 0 };
        let operation = match step {
            Setup::MakeDirectory(index) => {
                Operation::Mkdir { parent: root(), name: directory_name(index), ownership }
            }
            Setup::FindDirectory(index) => {
                Operation::Lookup { parent: root(), path: directory_name(index) }
            }
            Setup::MakeFile(index) => {
                let places = self.options.directories + 1;
                let parent = match index % places {
                    0 => root(),
                    place => self.board.borrow().directories[place - 1].unwrap_or(root()),
                };
                let name = format!("file{index}").into_bytes();
                Operation::Create { parent, name, ownership, exclusive: false }
            }
        };
        self.submit(operation, Kind::Setup(step), None);
        true
    }

    fn begin_load(&mut self) -> bool {
        self.is_set_up = true;
        let board = self.board.borrow();
        let directories = board.directories.iter().flatten().copied();
        let directories = std::iter::once(root()).chain(directories).collect();
        self.names = Names::new(self.options.number, directories);
        if let Some(audit) = &mut self.audit {
            let log = self.options.shared_files;
            for (file, handle) in board.files.iter().enumerate() {
                if let Some(handle) = handle {
                    audit.push_back(((file != log).then_some(file), *handle, 0));
                }
            }
            audit.extend(board.own.iter().map(|(file, handle)| (Some(*file), *handle, 0)));
        }
        true
    }

    fn issue_audit(&mut self) -> bool {
        let next = self.audit.as_ref().and_then(|audit| audit.front().copied());
        let Some((file, handle, at)) = next else { return false };
        let Some(mut buffer) = self.take_buffer() else { return false };
        let length = (self.options.buffer_bytes as u64).min(self.options.request_bytes_max) as u32;
        buffer[..length as usize].fill(POISON);
        let kind = match file {
            Some(file) => {
                let (bytes, end_of_file) = (Vec::new(), false);
                let what = What::Read { offset: at, asked: length, bytes, end_of_file };
                let host = self.options.number;
                let of = self.history.borrow_mut().begin(host, file, what);
                Kind::Read { of, offset: 0, length }
            }
            None => Kind::LogRead { offset: 0 },
        };
        let operation =
            Operation::Read { file: handle, offset: at, length, buffer, buffer_offset: 0 };
        self.submit(operation, kind, file);
        true
    }

    fn issue_load(&mut self) {
        let weights = self.options.weights;
        let mut drawn = self.random.below(weights.iter().sum());
        let mut choice = 0;
        while drawn >= weights[choice] {
            drawn -= weights[choice];
            choice += 1;
        }
        match choice {
            0 => self.issue_read(),
            1 => self.issue_write(),
            2 => self.issue_truncate(),
            3 => self.issue_append(),
            4 => self.issue_question(),
            _ => self.issue_name(),
        }
    }

    fn choose_file(&mut self) -> Option<(Handle, usize)> {
        let own: Vec<(Handle, usize)> = self.names.files().collect();
        if !own.is_empty() && self.random.below(4) == 0 {
            return Some(own[self.random.index(own.len())]);
        }
        let file = self.random.index(self.options.shared_files);
        let handle = self.board.borrow().files[file];
        handle.map(|handle| (handle, file))
    }

    /// A range of a file and of a buffer.
    fn choose_range(&mut self) -> (u64, u32, u32) {
        let block = 4096;
        let HostOptions { file_bytes_max, request_bytes_max, .. } = self.options;
        let room = (self.options.buffer_bytes as u64).min(request_bytes_max);
        if self.random.happens(self.options.aligned) {
            let blocks = self.random.between(1, (room / block).max(1));
            let length = blocks * block;
            let offset =
                self.random.between(0, file_bytes_max.saturating_sub(length) / block) * block;
            let spare = (self.options.buffer_bytes as u64 - length) / block;
            return (offset, length as u32, (self.random.between(0, spare) * block) as u32);
        }
        // Short ranges, and those that touch few bytes of a block, are as likely as long ones.
        let longest = [64, block, room][self.random.index(3)].min(room);
        let length = self.random.between(1, longest);
        let offset = self.random.between(0, file_bytes_max.saturating_sub(length));
        let spare = self.options.buffer_bytes as u64 - length;
        (offset, length as u32, self.random.between(0, spare) as u32)
    }

    fn issue_read(&mut self) {
        let Some((file, index)) = self.choose_file() else { return };
        let (offset, length, buffer_offset) = self.choose_range();
        let Some(mut buffer) = self.take_buffer() else { return };
        buffer[buffer_offset as usize..][..length as usize].fill(POISON);
        let what = What::Read { offset, asked: length, bytes: Vec::new(), end_of_file: false };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let operation = Operation::Read { file, offset, length, buffer, buffer_offset };
        self.submit(operation, Kind::Read { of, offset: buffer_offset, length }, Some(index));
    }

    fn issue_write(&mut self) {
        let Some((file, index)) = self.choose_file() else { return };
        let (offset, length, buffer_offset) = self.choose_range();
        let Some(mut buffer) = self.take_buffer() else { return };
        let what = What::Write { offset, end: offset + u64::from(length) };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let range = buffer_offset as usize..(buffer_offset + length) as usize;
        content::fill(of.number, offset, &mut buffer[range]);
        let append = false;
        let operation = Operation::Write { file, offset, length, buffer, buffer_offset, append };
        let kind = Kind::Write { of, offset: buffer_offset, length, at: offset };
        self.submit(operation, kind, Some(index));
    }

    fn issue_append(&mut self) {
        let Some(Some(file)) = self.board.borrow().files.last().copied() else { return };
        let (_, length, buffer_offset) = self.choose_range();
        // Long enough to be told from others by its bytes.
        let (length, buffer_offset) = if length < 16 { (16, 0) } else { (length, buffer_offset) };
        let Some(mut buffer) = self.take_buffer() else { return };
        let mut history = self.history.borrow_mut();
        let number = history.next_number();
        let outcome = Ended::Pending;
        history.appends.push(Appended { number, len_bytes: length, offset: None, outcome });
        let index = history.appends.len() - 1;
        drop(history);
        content::fill(number, 0, &mut buffer[buffer_offset as usize..][..length as usize]);
        let (offset, append) = (0, true);
        let operation = Operation::Write { file, offset, length, buffer, buffer_offset, append };
        self.submit(operation, Kind::Append { index, number, offset: buffer_offset, length }, None);
    }

    fn issue_truncate(&mut self) {
        let Some((handle, index)) = self.choose_file() else { return };
        let size = self.random.between(0, self.options.file_bytes_max);
        let size = if self.random.coin() { size / 4096 * 4096 } else { size };
        let what = What::Truncate { size };
        let of = self.history.borrow_mut().begin(self.options.number, index, what);
        let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
        let operation = Operation::SetAttributes { handle, changes };
        self.submit(operation, Kind::Truncate { of }, Some(index));
    }

    fn issue_question(&mut self) {
        let Some((handle, index)) = self.choose_file() else { return };
        let operation = match self.random.below(4) {
            0 => Operation::Stat { handle },
            1 => Operation::Open { file: handle },
            2 => Operation::Fsync { file: handle },
            _ => Operation::StatFs { reactor: 0 },
        };
        self.submit(operation, Kind::Ask, Some(index));
    }

    fn issue_name(&mut self) {
        if self.names.is_busy() {
            return self.issue_question();
        }
        let outstanding = &self.outstanding;
        let is_used = |file| outstanding.values().any(|one| one.file == Some(file));
        let operation = self.names.next(&mut self.random, is_used);
        self.show_own_files();
        self.submit(operation, Kind::Name, None);
    }

    fn completed(&mut self, completion: Completion) {
        let Completion { token, result, buffer, .. } = completion;
        let Some(Outstanding { kind, .. }) = self.outstanding.remove(&token) else {
            return self.violation("a request completed twice");
        };
        let (host, what) = (self.options.number, kind.name());
        let text = match &result {
            Ok(outcome) => format!("{outcome:?}"),
            Err(error) => error.to_string(),
        };
        self.record(Step::Completed { host, token, what, result: text });
        let ended = match &result {
            Ok(_) => Ended::Done,
            Err(error) => self.judge(error),
        };
        match kind {
            Kind::Setup(step) => self.setup_completed(step, &result),
            Kind::Ask => {}
            Kind::Truncate { of } => self.history.borrow_mut().end(of, ended),
            Kind::Name => self.name_completed(&result, ended),
            Kind::Read { of, offset, length } => {
                self.read_completed(of, &result, buffer, offset as usize, length as usize);
            }
            Kind::LogRead { offset } => self.log_read_completed(&result, buffer, offset as usize),
            Kind::Write { of, offset, length, at } => {
                let range = offset as usize..(offset + length) as usize;
                self.written(buffer, of.number, at, range);
                let mut history = self.history.borrow_mut();
                match result {
                    Ok(Outcome::Write { bytes, offset, size }) => {
                        let fits = (1..=length).contains(&bytes)
                            && offset == at
                            && size >= at + u64::from(bytes);
                        history.end_write(of, bytes);
                        if !fits {
                            let text = format!("write {} wrote {bytes} at {offset}", of.number);
                            history.violation(text);
                        }
                    }
                    _ => history.end(of, ended),
                }
            }
            Kind::Append { index, number, offset, length } => {
                self.written(buffer, number, 0, offset as usize..(offset + length) as usize);
                let mut history = self.history.borrow_mut();
                history.appends[index].outcome = ended;
                if let Ok(Outcome::Write { bytes, offset, .. }) = result {
                    history.appends[index].len_bytes = bytes;
                    history.appends[index].offset = Some(offset);
                }
            }
        }
    }

    /// What an error says of the outcome; and whether it may come at all.
    fn judge(&mut self, error: &RequestError) -> Ended {
        let text = format!("{}: {}", error.operation, error.kind);
        *self.errors.entry(text).or_default() += 1;
        let expected = match error.kind {
            ErrorKind::Cancelled { .. } | ErrorKind::TimedOut { .. } => {
                self.client.options().request_timeout.is_some()
                    || self.options.cancel != Chance::NEVER
            }
            ErrorKind::OutcomeUnknown => true,
            ErrorKind::Status(Status::NO_SPACE) => self.options.may_be_full,
            // Judged by whoever knows the names.
            ErrorKind::Status(Status::EXISTS | Status::NOT_FOUND) => {
                matches!(
                    error.operation,
                    "mkdir" | "create" | "unlink" | "rmdir" | "rename" | "lookup"
                )
            }
            ErrorKind::SlotsLost => {
                self.client.options().request_timeout.is_some()
                    || self.options.cancel != Chance::NEVER
            }
            _ => false,
        };
        if !expected {
            self.violation(&format!("a request failed: {error}"));
        }
        match error.kind {
            ErrorKind::Cancelled { maybe_applied } | ErrorKind::TimedOut { maybe_applied } => {
                if maybe_applied {
                    Ended::Maybe
                } else {
                    Ended::Never
                }
            }
            ErrorKind::OutcomeUnknown | ErrorKind::Protocol(_) | ErrorKind::Memory(_) => {
                Ended::Maybe
            }
            _ => Ended::Never,
        }
    }

    fn setup_completed(&mut self, step: Setup, result: &Result<Outcome, RequestError>) {
        let status = result.as_ref().err().and_then(RequestError::status);
        match (step, result) {
            (Setup::MakeDirectory(index), Err(_)) if status == Some(Status::EXISTS) => {
                self.setup[0] = Setup::FindDirectory(index);
            }
            (_, Ok(Outcome::Entry(attributes))) => {
                self.setup.pop_front();
                let mut board = self.board.borrow_mut();
                let known = match step {
                    Setup::MakeDirectory(index) | Setup::FindDirectory(index) => {
                        &mut board.directories[index]
                    }
                    Setup::MakeFile(index) => &mut board.files[index],
                };
                let first = *known.get_or_insert(attributes.handle);
                drop(board);
                if first != attributes.handle {
                    self.violation(&format!("{step:?} leads to two inodes"));
                }
            }
            // It is tried again; whether the error may come at all is judged elsewhere.
            (_, Err(_)) => {}
            (_, other) => self.violation(&format!("{step:?} ended with {other:?}")),
        }
    }

    fn name_completed(&mut self, result: &Result<Outcome, RequestError>, ended: Ended) {
        match self.names.completed(result, ended) {
            Ok(made) => {
                if let Some(made) = made {
                    let mut history = self.history.borrow_mut();
                    history.files.push(Vec::new());
                    self.names.number(made, history.files.len() - 1);
                }
                self.show_own_files();
            }
            Err(text) => self.violation(&text),
        }
    }

    /// Tells the board which files of this host are there for certain.
    fn show_own_files(&mut self) {
        let mut board = self.board.borrow_mut();
        for file in self.shown.drain(..) {
            board.own.remove(&file);
        }
        for (handle, file) in self.names.files() {
            board.own.insert(file, handle);
            self.shown.push(file);
        }
    }

    /// Checks that nobody wrote into the memory of a write, and takes it back.
    fn written(
        &mut self,
        buffer: Option<HostBuffer>,
        number: u32,
        at: u64,
        range: std::ops::Range<usize>,
    ) {
        if let Some(buffer) = &buffer {
            if !content::is_of(number, at, &buffer[range.clone()]) {
                self.violation(&format!("the memory of write {number} was changed"));
            }
            self.check_canaries(&buffer[..range.start], "before a write's");
            self.check_canaries(&buffer[range.end..], "behind a write's");
        }
        self.give_back(buffer);
    }

    fn read_completed(
        &mut self,
        of: OperationRef,
        result: &Result<Outcome, RequestError>,
        buffer: Option<HostBuffer>,
        start: usize,
        length: usize,
    ) {
        if let Some(buffer) = &buffer {
            self.check_canaries(&buffer[..start], "before a read's");
            self.check_canaries(&buffer[start + length..], "behind a read's");
        }
        match (result, &buffer) {
            (Ok(Outcome::Read { bytes, end_of_file }), Some(buffer)) => {
                let count = (*bytes as usize).min(length);
                let data = &buffer[start..start + count];
                self.history.borrow_mut().end_read(of, data, *end_of_file);
                self.audited(count, *end_of_file);
            }
            (Err(_), _) => {
                self.history.borrow_mut().end(of, Ended::Never);
                self.audited(0, true);
            }
            _ => self.violation(&format!("read {} ended with {result:?}", of.number)),
        }
        self.give_back(buffer);
    }

    fn log_read_completed(
        &mut self,
        result: &Result<Outcome, RequestError>,
        buffer: Option<HostBuffer>,
        start: usize,
    ) {
        if let (Ok(Outcome::Read { bytes, end_of_file }), Some(buffer)) = (result, &buffer) {
            let data = &buffer[start..start + *bytes as usize];
            self.history.borrow_mut().log_content.extend_from_slice(data);
            self.audited(*bytes as usize, *end_of_file);
        } else {
            self.audited(0, true);
        }
        self.give_back(buffer);
    }

    /// An auditor goes on behind what it has read.
    fn audited(&mut self, count: usize, end_of_file: bool) {
        if let Some(audit) = &mut self.audit
            && let Some(mut current) = audit.pop_front()
            && !end_of_file
        {
            current.2 += count as u64;
            audit.push_front(current);
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

fn root() -> Handle {
    Handle::new(Inode::ROOT)
}

fn directory_name(index: usize) -> Vec<u8> {
    format!("directory{index}").into_bytes()
}
