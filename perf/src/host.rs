//! The measuring side's client: single requests, and the file that the workloads use.

use std::io;
use std::time::Duration;

use gannet_client::waiter::Waiter;
use gannet_client::{
    Client, ClientOptions, Completion, ErrorKind, Fabrics, Operation, Outcome, Ownership,
    Protection, RequestError,
};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::{Address, Fabric};
use gannet_proto::{Handle, Inode, Status};
use gannet_runtime::idle::IdlePolicy;
use gannet_runtime::stop::StopFlag;
use gannet_runtime::time::Time;

use crate::content::Content;
use crate::error::PerfError;
use crate::options::PerfOptions;

/// Bytes per request of a sweep over the file.
const SWEEP_BYTES: u64 = 1 << 20;
/// Requests outstanding during a sweep.
pub(crate) const SWEEP_DEPTH: u32 = 8;
/// Permissions of the file.
const MODE: u32 = 0o644;
/// How long nothing may happen while requests are outstanding. Above all bounds within which the
/// client itself gives up, and without the timer per request that a time-out would cost.
const STALL_MAX: Duration = Duration::from_secs(90);

/// A client that polls on the calling thread.
pub(crate) struct Host<F: Fabric> {
    pub(crate) client: Client<F>,
    pub(crate) completions: Vec<Completion>,
    waiter: Waiter,
    regions: RegionIds,
    /// When something last happened.
    alive: Time,
    /// Set when the embedded server has given up.
    server_stopped: Option<StopFlag>,
}

/// How a client is set up.
#[derive(Clone, Debug)]
pub(crate) struct HostSettings {
    /// Most requests outstanding.
    pub(crate) requests_max: usize,
    pub(crate) complete_by_metaserver: bool,
    pub(crate) protection: Protection,
    pub(crate) fabrics: Fabrics,
    pub(crate) tcp: TcpOptions,
    pub(crate) idle: IdlePolicy,
}

impl Default for HostSettings {
    fn default() -> HostSettings {
        HostSettings {
            requests_max: 1,
            complete_by_metaserver: false,
            protection: Protection::Region,
            fabrics: Fabrics::ALL,
            tcp: TcpOptions::default(),
            idle: IdlePolicy::Spin,
        }
    }
}

/// The file that the workloads use.
#[derive(Clone, Debug)]
pub(crate) struct WorkFile {
    /// Its path, for messages.
    pub(crate) path: String,
    pub(crate) handle: Handle,
    pub(crate) size_bytes: u64,
    directory: Handle,
    name: Vec<u8>,
}

impl Host<AnyFabric> {
    /// A client of the metadata server at `metaserver`; it connects with the first request, and gives
    /// up when `server_stopped` is set.
    pub(crate) fn connect(
        settings: &HostSettings,
        metaserver: &Address,
        server_stopped: Option<StopFlag>,
    ) -> Result<Host<AnyFabric>, PerfError> {
        let tcp = settings.tcp.clone();
        let mut fabric = AnyFabric::new(FabricOptions { tcp, ..FabricOptions::default() });
        fabric.open(metaserver)?;
        let random = ClientOptions::random(metaserver.clone());
        let mut client = random.map_err(|error| PerfError::System {
            what: "drawing a random session number",
            source: io::Error::other(error.to_string()),
        })?;
        client.requests_max = settings.requests_max;
        client.complete_by_metaserver = settings.complete_by_metaserver;
        client.protection = settings.protection;
        client.fabrics = settings.fabrics;
        Host::new(client, fabric, settings.idle, server_stopped)
    }
}

impl<F: Fabric> Host<F> {
    fn new(
        options: ClientOptions,
        fabric: F,
        idle: IdlePolicy,
        server_stopped: Option<StopFlag>,
    ) -> Result<Host<F>, PerfError> {
        let waiter =
            Waiter::new(idle).map_err(PerfError::system("making a descriptor to sleep on"))?;
        Ok(Host {
            waiter,
            completions: Vec::with_capacity(options.requests_max),
            client: Client::new(options, fabric),
            regions: RegionIds::new(),
            alive: Time::monotonic(),
            server_stopped,
        })
    }

    /// Polls the client once, and waits a little as its idle policy says if nothing happened.
    /// Returns how much happened.
    pub(crate) fn poll(&mut self, now: Time) -> Result<usize, PerfError> {
        let work = self.client.poll(now, &mut self.completions);
        if work > 0 {
            self.waiter.worked(now);
        } else if self.client.outstanding() > 0 {
            self.waiter.idle(&mut self.client, &mut self.completions, now);
        }
        if work > 0 || self.client.outstanding() == 0 {
            self.alive = now;
        } else if self.server_stopped.as_ref().is_some_and(StopFlag::is_stopped) {
            return Err(PerfError::Embedded("it has stopped".to_owned()));
        } else if now.since(self.alive) > STALL_MAX {
            return Err(self.stalled());
        }
        Ok(work)
    }

    #[cold]
    fn stalled(&self) -> PerfError {
        let counters = self.client.counters();
        let counters = counters.iter().filter(|(_, value)| *value > 0);
        PerfError::Stalled {
            outstanding: self.client.outstanding(),
            seconds: STALL_MAX.as_secs(),
            counters: counters
                .map(|(name, value)| format!("{name} {value}"))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// Buffers that requests can name.
    pub(crate) fn arena(&self, buffer_bytes: usize, count: u32) -> Result<Arena, PerfError> {
        Arena::new(&self.regions, buffer_bytes, count)
            .map_err(PerfError::system("mapping memory for request buffers"))
    }

    /// Makes the file that the options name.
    pub(crate) fn create(&mut self, options: &PerfOptions) -> Result<WorkFile, PerfError> {
        let (directory, name) = self.place(&options.file)?;
        let create = |exclusive| Operation::Create {
            parent: directory,
            name: name.clone(),
            ownership: Ownership { mode: MODE, uid: 0, gid: 0 },
            exclusive,
        };
        let handle = match self.call(create(!options.overwrite))? {
            Ok(Outcome::Entry(attributes)) => attributes.handle,
            Ok(_) => return Err(unexpected("creating", &options.file)),
            Err(error) if error.status() == Some(Status::EXISTS) => {
                return Err(PerfError::Exists { file: options.file.clone() });
            }
            Err(error) => return Err(request("creating", &options.file, error)),
        };
        Ok(WorkFile {
            path: options.file.clone(),
            handle,
            size_bytes: options.size_bytes,
            directory,
            name,
        })
    }

    /// Writes all of the file.
    pub(crate) fn fill(&mut self, file: &WorkFile, content: &Content) -> Result<(), PerfError> {
        self.sweep("writing", file, |offset, length, mut buffer| {
            content.fill(&mut buffer[..length as usize], offset);
            write(file, offset, length, buffer)
        })?;
        Ok(())
    }

    /// Reads all of the file and checks it. Returns the number of units.
    pub(crate) fn check(&mut self, file: &WorkFile, content: &Content) -> Result<u64, PerfError> {
        let make = |offset, length, buffer| read(file, offset, length, buffer);
        let mut units = 0;
        self.sweep_and("reading", file, make, |offset, bytes| {
            units += check_content(content, file, bytes, offset)?;
            Ok(())
        })?;
        Ok(units)
    }

    fn sweep(
        &mut self,
        what: &'static str,
        file: &WorkFile,
        make: impl FnMut(u64, u32, HostBuffer) -> Operation,
    ) -> Result<(), PerfError> {
        self.sweep_and(what, file, make, |_, _| Ok(()))
    }

    /// Makes large requests over all of the file, several at a time, and looks at each buffer that
    /// comes back.
    fn sweep_and(
        &mut self,
        what: &'static str,
        file: &WorkFile,
        mut make: impl FnMut(u64, u32, HostBuffer) -> Operation,
        mut look: impl FnMut(u64, &[u8]) -> Result<(), PerfError>,
    ) -> Result<(), PerfError> {
        let arena = self.arena(SWEEP_BYTES as usize, SWEEP_DEPTH)?;
        let length_at = |offset: u64| SWEEP_BYTES.min(file.size_bytes - offset) as u32;
        let mut next = 0;
        let mut outstanding = 0;
        while next < file.size_bytes || outstanding > 0 {
            while next < file.size_bytes
                && let Some(buffer) = arena.take()
            {
                let length = length_at(next);
                self.submit(make(next, length, buffer), next, &file.path)?;
                next += u64::from(length);
                outstanding += 1;
            }
            self.poll(Time::monotonic())?;
            for completion in self.completions.drain(..) {
                let offset = completion.token;
                let buffer = take_buffer(what, file, offset, length_at(offset), completion)?;
                look(offset, &buffer[..length_at(offset) as usize])?;
                outstanding -= 1;
            }
        }
        Ok(())
    }

    /// Removes the file.
    pub(crate) fn remove(&mut self, file: &WorkFile) -> Result<(), PerfError> {
        let removal = Operation::Unlink { parent: file.directory, name: file.name.clone() };
        let removed = self.call(removal)?;
        removed.map(|_| ()).map_err(|error| request("removing", &file.path, error))
    }

    /// Submits a request of a workload.
    pub(crate) fn submit(
        &mut self,
        operation: Operation,
        token: u64,
        path: &str,
    ) -> Result<(), PerfError> {
        match self.client.submit(operation, token) {
            Ok(_) => Ok(()),
            Err(refused) => Err(request("submitting a request for", path, refused.error)),
        }
    }

    /// The directory that the last name of a path is in, and that name.
    pub(crate) fn place(&mut self, path: &str) -> Result<(Handle, Vec<u8>), PerfError> {
        const WHAT: &str = "finding the directory of";
        let split = path.rfind('/').map_or(0, |slash| slash + 1);
        let (directory, name) = path.as_bytes().split_at(split);
        let parent = Handle::new(Inode::ROOT);
        match self.call(Operation::Lookup { parent, path: directory.to_vec() })? {
            Ok(Outcome::Entry(attributes)) => Ok((attributes.handle, name.to_vec())),
            Ok(_) => Err(unexpected(WHAT, path)),
            Err(error) => Err(request(WHAT, path, error)),
        }
    }

    /// Waits for the end of everything that is outstanding, however it ends.
    pub(crate) fn abandon(&mut self) -> Result<(), PerfError> {
        while self.client.outstanding() > 0 {
            self.poll(Time::monotonic())?;
            self.completions.clear();
        }
        self.completions.clear();
        Ok(())
    }

    /// Makes one request while nothing else is outstanding, and waits for its end.
    pub(crate) fn call(
        &mut self,
        operation: Operation,
    ) -> Result<Result<Outcome, RequestError>, PerfError> {
        if let Err(refused) = self.client.submit(operation, 0) {
            return Ok(Err(refused.error));
        }
        loop {
            self.poll(Time::monotonic())?;
            if let Some(completion) = self.completions.pop() {
                return Ok(completion.result);
            }
        }
    }
}

/// A read of a whole buffer.
pub(crate) fn read(file: &WorkFile, offset: u64, length: u32, buffer: HostBuffer) -> Operation {
    Operation::Read { file: file.handle, offset, length, buffer, buffer_offset: 0 }
}

/// A write of a whole buffer.
pub(crate) fn write(file: &WorkFile, offset: u64, length: u32, buffer: HostBuffer) -> Operation {
    Operation::Write { file: file.handle, offset, length, buffer, buffer_offset: 0, append: false }
}

/// Checks that a read or write succeeded as a whole, and returns its buffer.
pub(crate) fn take_buffer(
    what: &'static str,
    file: &WorkFile,
    offset: u64,
    asked: u32,
    completion: Completion,
) -> Result<HostBuffer, PerfError> {
    let moved = match completion.result {
        Ok(Outcome::Read { bytes, .. } | Outcome::Write { bytes, .. }) => bytes,
        Ok(_) => return Err(unexpected(what, &file.path)),
        Err(error) => return Err(request(what, &file.path, error)),
    };
    if moved != asked {
        return Err(PerfError::Short { what, file: file.path.clone(), offset, asked, moved });
    }
    completion.buffer.ok_or_else(|| PerfError::BufferLost { what, file: file.path.clone() })
}

/// Checks what was read; returns the number of units.
pub(crate) fn check_content(
    content: &Content,
    file: &WorkFile,
    bytes: &[u8],
    offset: u64,
) -> Result<u64, PerfError> {
    let checked = content.check(bytes, offset);
    checked.map_err(|mismatch| PerfError::Wrong { file: file.path.clone(), mismatch })
}

/// The error of a request that failed.
pub(crate) fn request(what: &'static str, file: &str, source: RequestError) -> PerfError {
    PerfError::Request { what, file: file.to_owned(), source }
}

/// The error of a request whose answer is of another kind.
pub(crate) fn unexpected(what: &'static str, file: &str) -> PerfError {
    let kind = ErrorKind::Protocol("the outcome is of another kind than the request");
    request(what, file, RequestError::new(what, kind))
}
