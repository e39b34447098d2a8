//! A load of reads, writes, creations and removals that knows what must have become of them.
//!
//! [`Load`] drives a client on a thread of its own and keeps a fixed number of requests outstanding,
//! whatever happens to the servers. Each write stamps its bytes with place and version; each read
//! must return, as one moment of the file, nothing older than what was acknowledged before it began.
//! No request may fail: servers that die and come back within the session's lease are not to be
//! noticed by anything but the time it takes.

mod model;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gannet_client::blocking::Session;
use gannet_client::{Completion, Operation, Outcome, Ownership};
use gannet_fabric::Address;
use gannet_fabric::any::AnyFabric;
use gannet_proto::Handle;

use crate::host::Host;
use crate::pattern::{GRANULE_BYTES, Random};
use model::{FileModel, Names};

/// Bytes of the longest read or write, and of a buffer.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Granules of a block.
const BLOCK_GRANULES: u64 = 8;
/// How long nothing may complete before the load is declared stuck.
const STUCK: Duration = Duration::from_secs(60);
/// How often commands are looked for when nothing completes.
const COMMAND_INTERVAL: Duration = Duration::from_millis(5);
/// Names that are created and removed.
const NAMES: u32 = 64;
/// Owner and permissions of what is made.
const OWNERSHIP: Ownership = Ownership { mode: 0o644, uid: 0, gid: 0 };

/// What the load does.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Files that are read and written.
    pub files: u32,
    /// Size of each, bytes, a multiple of 64 KiB.
    pub file_bytes: u64,
    /// Requests outstanding.
    pub depth: u32,
    /// Which load it is.
    pub seed: u64,
}

/// What the load did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Reads that completed.
    pub reads: u64,
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Names created or removed.
    pub names: u64,
    /// Requests that the client sent again.
    pub resends: u64,
    /// The longest that a request took.
    pub longest: Duration,
}

enum Command {
    /// Answer when all requests that are outstanding now have completed.
    Settle(Sender<Instant>),
    /// Answer when this many more requests have completed.
    Progress(u64, Sender<Instant>),
    /// Start nothing new, and end.
    Finish,
}

/// A load on a thread of its own.
#[derive(Debug)]
pub struct Load {
    commands: Sender<Command>,
    thread: JoinHandle<(Model, Done)>,
}

impl Load {
    /// Makes the files, and starts the load on them.
    ///
    /// # Panics
    /// If the cluster does not let the files be made.
    #[must_use]
    pub fn start(metaserver: &Address, options: LoadOptions) -> Load {
        let mut session = open(metaserver);
        let directory = session.mkdir_all("/load/names", OWNERSHIP).expect("made").handle;
        let files = (0..options.files).map(|index| {
            let file = session.create(&path(index), OWNERSHIP, true).expect("made").handle;
            session.truncate(file, options.file_bytes).expect("truncated");
            FileModel::new(index, file, (options.file_bytes / GRANULE_BYTES as u64) as u32)
        });
        let files = files.collect();
        drop(session);
        let model = Model { files, names: Names::new(NAMES), directory };
        let (commands, receiver) = channel();
        let metaserver = metaserver.clone();
        let thread = std::thread::spawn(move || {
            let host = Host::new(&metaserver, REQUEST_BYTES_MAX, options.depth, |_| {});
            Running::new(host, model, options).run(&receiver)
        });
        Load { commands, thread }
    }

    /// Waits until every request that is outstanding now has completed; returns when that was.
    ///
    /// # Panics
    /// If the load has failed, or nothing completes for a minute.
    #[must_use]
    pub fn settle(&mut self) -> Instant {
        self.ask(Command::Settle)
    }

    /// Waits until this many more requests have completed.
    ///
    /// # Panics
    /// As [`Load::settle`].
    pub fn progress(&mut self, completions: u64) {
        let _when = self.ask(|reply| Command::Progress(completions, reply));
    }

    fn ask(&self, command: impl FnOnce(Sender<Instant>) -> Command) -> Instant {
        let (reply, answer) = channel();
        // Both fail only when the thread has ended, whose own message says why.
        let _sent = self.commands.send(command(reply));
        answer.recv().expect("the load goes on; see its panic above")
    }

    /// Lets all outstanding requests complete, and returns what must be in the files now.
    ///
    /// # Panics
    /// As [`Load::settle`].
    #[must_use]
    pub fn finish(self) -> (Model, Done) {
        let _sent = self.commands.send(Command::Finish);
        self.thread.join().expect("the load goes on; see its panic above")
    }
}

/// What must be in the files.
#[derive(Debug)]
pub struct Model {
    files: Vec<FileModel>,
    names: Names,
    directory: Handle,
}

impl Model {
    /// Reads everything again and compares it.
    ///
    /// # Panics
    /// At the first difference.
    pub fn verify(&self, session: &mut Session<AnyFabric>) {
        for file in &self.files {
            let path = path(file.index);
            let found = session.open(&path).expect("the file was acknowledged");
            assert_eq!(found.handle, file.handle, "{path}");
            let mut bytes = vec![0xee; file.size_bytes() as usize];
            let length = session.read_at(file.handle, 0, &mut bytes).expect("read again");
            assert_eq!(length, bytes.len(), "{path}");
            file.check_final(&bytes);
        }
        let entries = session.readdir_all("/load/names").expect("listed");
        self.names.check(entries.into_iter().map(|entry| entry.name).collect());
    }

    /// Bytes of blocks that were written at least once: they are in use, and no others.
    #[must_use]
    pub fn blocks_bytes(&self) -> u64 {
        let blocks: u64 = self.files.iter().map(|file| file.blocks(BLOCK_GRANULES as u32)).sum();
        blocks * BLOCK_GRANULES * GRANULE_BYTES as u64
    }

    /// Removes everything.
    ///
    /// # Panics
    /// If something is not there or cannot be removed.
    pub fn remove(&self, session: &mut Session<AnyFabric>) {
        for file in &self.files {
            session.unlink(&path(file.index)).expect("removed");
        }
        for name in self.names.present() {
            session.unlink(&format!("/load/names/{name}")).expect("removed");
        }
        session.rmdir("/load/names").expect("removed");
        session.rmdir("/load").expect("removed");
    }
}

/// A session with blocking calls.
///
/// # Panics
/// If the metadata server does not answer.
#[must_use]
pub fn open(metaserver: &Address) -> Session<AnyFabric> {
    Session::open_metaserver(metaserver).unwrap_or_else(|error| panic!("{error}"))
}

fn path(index: u32) -> String {
    format!("/load/file-{index}")
}

/// A request under way.
enum Step {
    Write { file: usize, version: u32 },
    Read { file: usize, read: model::Read },
    Create { name: u32 },
    Unlink { name: u32 },
}

struct Running {
    host: Host,
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
    done: Done,
}

impl Running {
    fn new(host: Host, model: Model, options: LoadOptions) -> Running {
        Running {
            host,
            model,
            options,
            random: Random::new(options.seed),
            steps: BTreeMap::new(),
            next_token: 0,
            completed: 0,
            settling: Vec::new(),
            progressing: Vec::new(),
            done: Done::default(),
        }
    }

    fn run(mut self, commands: &Receiver<Command>) -> (Model, Done) {
        let mut finishing = false;
        let mut alive = Instant::now();
        loop {
            for command in commands.try_iter() {
                match command {
                    Command::Settle(reply) => self.settling.push((self.next_token, reply)),
                    Command::Progress(more, reply) => {
                        self.progressing.push((self.completed + more, reply));
                    }
                    Command::Finish => finishing = true,
                }
            }
            self.answer();
            while !finishing && self.steps.len() < self.options.depth as usize {
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
        self.done.resends = self.host.client().counters().resends;
        (self.model, self.done)
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
        self.done.longest = self.done.longest.max(begun.elapsed());
        let outcome = result.unwrap_or_else(|error| {
            let took = begun.elapsed();
            panic!("after {took:?}: {error} ({:?}); {:?}", error.kind, self.host)
        });
        match (step, outcome) {
            (Step::Write { file, version }, Outcome::Write { bytes, .. }) => {
                self.model.files[file].end_write(version, bytes);
                self.done.writes += 1;
            }
            (Step::Read { file, read }, Outcome::Read { bytes, .. }) => {
                let buffer = buffer.expect("a read returns its buffer");
                self.model.files[file].end_read(&read, &buffer[..bytes as usize]);
                self.done.reads += 1;
            }
            (Step::Create { name }, Outcome::Entry(_)) => {
                self.model.names.created(name);
                self.done.names += 1;
            }
            (Step::Unlink { name }, Outcome::Entry(_)) => {
                self.model.names.removed(name);
                self.done.names += 1;
            }
            (_, outcome) => panic!("an answer of another kind: {outcome:?}"),
        }
    }
}
