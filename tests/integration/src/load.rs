//! A load of reads, writes, creations and removals that knows what must have become of them.
//!
//! [`Load`] drives a client on a thread of its own and keeps a fixed number of requests outstanding,
//! whatever happens to the servers. Each write stamps its bytes with place and version; each read
//! must return, as one moment of the file, nothing older than what was acknowledged before it began.
//!
//! No request may fail: servers that die and come back within the session's lease are not to be
//! noticed by anything but the time it takes. With [`Outages`] requests have a time-out, and may
//! fail as long as nothing acknowledged is lost: what failed is in doubt until [`Load::check`]
//! decides it, and its buffer is a canary, which must not change any more.

mod canaries;
mod model;
mod running;

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gannet_client::blocking::Session;
use gannet_client::{Ownership, Protection};
use gannet_fabric::Address;
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_proto::Handle;

use self::canaries::CANARIES_MAX;
use self::model::{FileModel, Names};
use self::running::Running;
use crate::host::Host;
use crate::pattern::GRANULE_BYTES;

/// Bytes of the longest read or write, and of a buffer.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Granules of a block.
const BLOCK_GRANULES: u64 = 8;
/// Owner and permissions of what is made.
const OWNERSHIP: Ownership = Ownership { mode: 0o644, uid: 0, gid: 0 };

/// What the load does.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A directory of its own, below the root.
    pub directory: &'static str,
    /// Files that are read and written.
    pub files: u32,
    /// Size of each, bytes, a multiple of 64 KiB.
    pub file_bytes: u64,
    /// Names that are created and removed.
    pub names: u32,
    /// Requests outstanding.
    pub depth: u32,
    /// Which load it is.
    pub seed: u64,
    /// How the host reaches its servers.
    pub fabric: FabricOptions,
    /// What keeps data servers from memory that they are not to reach.
    pub protection: Protection,
    /// What happens to requests while servers are out of reach for long; if `None`, that does not
    /// happen.
    pub outages: Option<Outages>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            directory: "load",
            files: 4,
            file_bytes: 4 << 20,
            names: 64,
            depth: 64,
            seed: 1,
            fabric: FabricOptions::default(),
            protection: Protection::Region,
            outages: None,
        }
    }
}

/// Time-outs of a host whose servers are out of reach for longer than it waits.
#[derive(Clone, Copy, Debug)]
pub struct Outages {
    /// Of a request.
    pub request_timeout: Duration,
    /// Of a request that is cancelled: its memory is taken back by force then.
    pub cancel_timeout: Duration,
    /// Of a connection, until the server's welcome.
    pub handshake_timeout: Duration,
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
    /// Requests that failed.
    pub failures: u64,
    /// Of them, changes that may have taken effect.
    pub doubts: u64,
    /// Of those, writes that have.
    pub applied: u64,
    /// Requests that the client sent again.
    pub resends: u64,
    /// Connections that ended.
    pub disconnects: u64,
    /// The longest that a request took.
    pub longest: Duration,
    /// Buffers of failed requests that were looked at and had not changed.
    pub canaries: u64,
}

/// Since when the load is served again. See [`Load::served`].
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// The first read was completed.
    pub read: Instant,
    /// The first write was.
    pub write: Instant,
    /// A read and a write of every file were, and a name was changed.
    pub all: Instant,
}

enum Command {
    /// Answer when all requests that are outstanding now have completed.
    Settle(Sender<Instant>),
    /// Answer when this many more requests have completed.
    Progress(u64, Sender<Instant>),
    /// Answer when there was a success of every kind.
    Serve(Sender<Served>),
    /// Let everything complete, check it, answer and go on.
    Check(Sender<Done>),
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
        let top = format!("/{}", options.directory);
        let names = session.mkdir_all(&format!("{top}/names"), OWNERSHIP).expect("made").handle;
        let files = (0..options.files).map(|index| {
            let file = session.create(&path(&top, index), OWNERSHIP, true).expect("made").handle;
            session.truncate(file, options.file_bytes).expect("truncated");
            FileModel::new(index, file, (options.file_bytes / GRANULE_BYTES as u64) as u32)
        });
        let files = files.collect();
        drop(session);
        let model = Model { top, files, names: Names::new(options.names), directory: names };
        let (commands, receiver) = channel();
        let metaserver = metaserver.clone();
        let thread = std::thread::spawn(move || {
            let fabric = AnyFabric::new(options.fabric.clone());
            let mut buffers = options.depth;
            if options.outages.is_some() {
                buffers += CANARIES_MAX as u32;
            }
            let host = Host::over(fabric, &metaserver, REQUEST_BYTES_MAX, buffers, |client| {
                client.protection = options.protection;
                let Some(outages) = options.outages else { return };
                client.request_timeout = Some(outages.request_timeout);
                client.cancel_timeout = outages.cancel_timeout;
                client.handshake_timeout = outages.handshake_timeout;
            });
            Running::new(host, metaserver, model, options).run(&receiver)
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

    /// Waits until, from now on, every file was read and written, and a name changed, with success.
    /// What the files hold is spread over all data servers, so all servers work then.
    ///
    /// # Panics
    /// As [`Load::settle`].
    #[must_use]
    pub fn served(&mut self) -> Served {
        self.ask(Command::Serve)
    }

    /// Lets all outstanding requests complete, and compares everything with what another host
    /// sees, who thereby decides what became of requests that failed. Then the load goes on.
    /// Returns what was done since the last check.
    ///
    /// # Panics
    /// As [`Load::settle`], at the first difference, and if a canary has changed.
    pub fn check(&mut self) -> Done {
        self.ask(Command::Check)
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> T {
        let (reply, answer) = channel();
        // Both fail only when the thread has ended, whose own message says why. What could not be
        // sent holds the other end of the answer, so it has to go before the wait.
        drop(self.commands.send(command(reply)));
        answer.recv().expect("the load goes on; see its panic above")
    }

    /// Lets all outstanding requests complete, and returns what must be in the files now.
    ///
    /// # Panics
    /// As [`Load::check`].
    #[must_use]
    pub fn finish(self) -> (Model, Done) {
        let _sent = self.commands.send(Command::Finish);
        self.thread.join().expect("the load goes on; see its panic above")
    }
}

/// What must be in the files.
#[derive(Debug)]
pub struct Model {
    top: String,
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
            file.check_final(&self.content(file, session));
        }
        self.names.check(&self.listing(session));
    }

    /// As [`Model::verify`], and decides what was in doubt. Returns how many writes that were have
    /// taken effect.
    fn decide(&mut self, session: &mut Session<AnyFabric>) -> u64 {
        let contents: Vec<Vec<u8>> =
            self.files.iter().map(|file| self.content(file, session)).collect();
        let applied = self.files.iter_mut().zip(&contents).map(|(file, bytes)| file.decide(bytes));
        let applied = applied.sum();
        let listing = self.listing(session);
        self.names.decide(&listing);
        applied
    }

    fn content(&self, file: &FileModel, session: &mut Session<AnyFabric>) -> Vec<u8> {
        let path = path(&self.top, file.index);
        let found = session.open(&path).expect("the file was acknowledged");
        assert_eq!(found.handle, file.handle, "{path}");
        let mut bytes = vec![0xee; file.size_bytes() as usize];
        let length = session.read_at(file.handle, 0, &mut bytes).expect("read again");
        assert_eq!(length, bytes.len(), "{path}");
        bytes
    }

    fn listing(&self, session: &mut Session<AnyFabric>) -> Vec<Vec<u8>> {
        let entries = session.readdir_all(&format!("{}/names", self.top)).expect("listed");
        entries.into_iter().map(|entry| entry.name).collect()
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
            session.unlink(&path(&self.top, file.index)).expect("removed");
        }
        for name in self.names.present() {
            session.unlink(&format!("{}/names/{name}", self.top)).expect("removed");
        }
        session.rmdir(&format!("{}/names", self.top)).expect("removed");
        session.rmdir(&self.top).expect("removed");
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

fn path(top: &str, index: u32) -> String {
    format!("{top}/file-{index}")
}
