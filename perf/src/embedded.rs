//! A file system for the length of a run: a metadata server and a data server as two pollers of one
//! reactor, on a thread of this process.
//!
//! Only the thread is shared with the harness. Host, metadata server and data server each have a
//! fabric of their own and speak through shared memory as they would between processes; hosts speak
//! with both over TCP, on loopback, if the options say so. What a run leaves on disk lies in
//! directories that are removed at its end; a killed run leaves them behind.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::uring::UringOptions;
use gannet_disk::{BLOCK_BYTES, Disk, FileId};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{Address, Fabric};
use gannet_metaserver::format::{self, LOG_BYTES};
use gannet_metaserver::{MetaServer, MetaServerConfig, peers};
use gannet_runtime::idle::IdlePolicy;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::reactor::{NamedPollers, ReactorOptions};
use gannet_runtime::spawn::{ReactorHandle, spawn};
use gannet_runtime::stop::StopFlag;
use gannet_runtime::time::Time;
use gannet_target::store::StoreNames;
use gannet_target::{
    OpenStore, StoreKind, StoreSpec, Target, TargetConfig, format_store, open_store,
};
use tempfile::TempDir;

use crate::error::PerfError;
use crate::machine;
use crate::options::{EmbeddedFabric, EmbeddedOptions, LogPlace, StorePlace};

/// Operations that a disk in memory holds between two polls.
const RAM_DISK_ENTRIES: u32 = 4096;
/// Address space of a log in memory where the system does not tell how much memory there is.
const RAM_LOG_BYTES_MIN: u64 = 1 << 30;

/// A server that runs until it is stopped.
pub(crate) struct Embedded {
    address: Address,
    reactor: ReactorHandle,
    stop: StopFlag,
    failure: Failure,
    /// Removed last.
    _directories: Directories,
}

/// Why the metadata server gave up, if it did; told by its thread.
#[derive(Clone, Debug, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn set(&self, reason: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where the run's files lie.
struct Directories {
    sockets: TempDir,
    store: Option<TempDir>,
    log: Option<TempDir>,
}

/// Everything that the reactor's thread needs to build its pollers.
struct Plan {
    /// Where the metadata server listens: first where hosts connect, last where the data server does.
    metaserver: Vec<Address>,
    target: Address,
    names: StoreNames,
    file_system: [u8; 16],
    instance: u64,
    seed: [u8; 32],
    store: StoreSpec,
    log: Option<PathBuf>,
    log_bytes_max: u64,
    failure: Failure,
    stop: StopFlag,
}

impl Embedded {
    /// Starts a server on `core` with an empty file system. It serves soon; hosts that connect
    /// earlier wait.
    pub(crate) fn start(
        options: &EmbeddedOptions,
        core: Option<usize>,
    ) -> Result<Embedded, PerfError> {
        Embedded::start_waiting(options, core, IdlePolicy::Spin)
    }

    /// As [`Embedded::start`]; on a core of its own the server waits for work as `idle` says.
    pub(crate) fn start_waiting(
        options: &EmbeddedOptions,
        core: Option<usize>,
        idle: IdlePolicy,
    ) -> Result<Embedded, PerfError> {
        let log_bytes_max = (machine::memory_available_bytes() / 2).max(RAM_LOG_BYTES_MIN);
        Embedded::start_with_log(options, core, idle, log_bytes_max)
    }

    /// As [`Embedded::start_waiting`]; a log in memory grows to `log_bytes_max`.
    pub(crate) fn start_with_log(
        options: &EmbeddedOptions,
        core: Option<usize>,
        idle: IdlePolicy,
        log_bytes_max: u64,
    ) -> Result<Embedded, PerfError> {
        let directories = Directories::make(options)?;
        let stop = StopFlag::new().map_err(PerfError::system("making the stop flag"))?;
        let failure = Failure::default();
        let (metaserver, target) = addresses(options.fabric, &directories)?;
        let plan = Plan {
            metaserver,
            target,
            names: StoreNames { store: random()?, target: random()? },
            file_system: random()?,
            instance: u64::from_le_bytes(random()?),
            seed: random()?,
            store: directories.store_spec(options),
            log: directories.log.as_ref().map(|log| log.path().to_path_buf()),
            log_bytes_max,
            failure: failure.clone(),
            stop: stop.clone(),
        };
        let address = plan.metaserver[0].clone();
        let mut reactor = ReactorOptions::new("gannet-server");
        reactor.core = core;
        // Spinning pays on a core of one's own; elsewhere it takes the client's time.
        reactor.idle = if core.is_some() { idle } else { IdlePolicy::ADAPTIVE };
        let reactor = spawn(reactor, stop.clone(), move || plan.build())
            .map_err(|error| PerfError::Embedded(error.to_string()))?;
        Ok(Embedded { address, reactor, stop, failure, _directories: directories })
    }

    /// Where hosts connect.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Where its log lies, unless that is in memory.
    #[cfg(test)]
    pub(crate) fn log_directory(&self) -> Option<&Path> {
        self._directories.log.as_ref().map(TempDir::path)
    }

    /// Set when the server has given up.
    pub(crate) fn stop_flag(&self) -> &StopFlag {
        &self.stop
    }

    /// Time that the reactor has spent in turns with work.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.reactor.stats().sample().busy_ns)
    }

    /// Ends the server in order.
    pub(crate) fn stop(self) -> Result<(), PerfError> {
        self.stop.stop();
        let report = self.reactor.join();
        if let Some(failure) = self.failure.take() {
            return Err(PerfError::Embedded(failure));
        }
        let report = report.map_err(|panic| PerfError::Embedded(panic.to_string()))?;
        if report.clean {
            return Ok(());
        }
        let unfinished = report.unfinished.join(", ");
        Err(PerfError::Embedded(format!("{unfinished} did not come to an orderly end")))
    }
}

impl Directories {
    fn make(options: &EmbeddedOptions) -> Result<Directories, PerfError> {
        let inside = |parent: &Path, option| {
            tempfile::Builder::new().prefix("gannet-perf-").tempdir_in(parent).map_err(|error| {
                let reason = format!("no directory can be made in {}: {error}", parent.display());
                PerfError::Option { option, reason }
            })
        };
        let sockets = tempfile::Builder::new().prefix("gannet-perf-").tempdir();
        Ok(Directories {
            sockets: sockets.map_err(PerfError::system("making a directory for sockets"))?,
            store: match &options.store {
                StorePlace::Ram { .. } => None,
                StorePlace::File { directory, .. } => Some(inside(directory, "store")?),
            },
            log: match &options.log {
                LogPlace::Ram => None,
                LogPlace::Directory(directory) => Some(inside(directory, "metadata-log")?),
            },
        })
    }

    fn store_spec(&self, options: &EmbeddedOptions) -> StoreSpec {
        let kind = match options.store {
            StorePlace::Ram { size_bytes } => StoreKind::Ram { size_bytes },
            StorePlace::File { size_bytes, .. } => StoreKind::Directory { size_bytes },
        };
        let directory = self.store.as_ref().unwrap_or(&self.sockets);
        StoreSpec { path: directory.path().join("store"), kind }
    }
}

/// Where the metadata server and the data server listen. Back control goes through shared memory in
/// any case: both are on one core.
fn addresses(
    fabric: EmbeddedFabric,
    directories: &Directories,
) -> Result<(Vec<Address>, Address), PerfError> {
    let metaserver = socket(directories, "meta.sock")?;
    match fabric {
        EmbeddedFabric::Shm => Ok((vec![metaserver], socket(directories, "target.sock")?)),
        EmbeddedFabric::Tcp => {
            let [first, second] = free_ports().map_err(PerfError::system("finding free ports"))?;
            Ok((vec![loopback(first), metaserver], loopback(second)))
        }
    }
}

fn loopback(port: u16) -> Address {
    Address::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port }
}

/// Ports at which nobody listens.
fn free_ports() -> std::io::Result<[u16; 2]> {
    // Both are held until both are known.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (one, two) = (bind()?, bind()?);
    Ok([one.local_addr()?.port(), two.local_addr()?.port()])
}

fn socket(directories: &Directories, name: &str) -> Result<Address, PerfError> {
    let path = directories.sockets.path().join(name);
    Address::shm(path).map_err(|error| PerfError::Embedded(error.to_string()))
}

fn random<const N: usize>() -> Result<[u8; N], PerfError> {
    let mut bytes = [0; N];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(PerfError::Embedded(format!("drawing random bytes: {error}"))),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Plan {
    /// Runs on the reactor's thread, so that memory lies near its core.
    fn build(self) -> Result<NamedPollers, String> {
        let (disk, log_file, log_name) = self.log()?;
        let config = MetaServerConfig::new(0, vec![self.metaserver.clone()], self.seed);
        let links = peers::link(1).map_err(text)?.pop().ok_or("no ring was made")?;
        let fabric = AnyFabric::new(FabricOptions::default());
        let metaserver =
            MetaServer::new(config, fabric, disk, log_file, log_name, links).map_err(text)?;
        let watched =
            Watched { metaserver, failure: self.failure.clone(), stop: self.stop.clone() };
        let target = self.target()?;
        Ok(vec![
            ("metaserver".to_owned(), Box::new(watched) as Box<dyn Poller>),
            ("target".to_owned(), Box::new(target) as Box<dyn Poller>),
        ])
    }

    fn log(&self) -> Result<(AnyDisk, FileId, String), String> {
        match &self.log {
            None => {
                let mut disk = AnyDisk::ram_only(RAM_DISK_ENTRIES).map_err(text)?;
                let log = disk
                    .create_ram(LOG_BYTES.min(self.log_bytes_max), self.log_bytes_max)
                    .map_err(text)?;
                let start = disk.resident(log, 0, BLOCK_BYTES).ok_or("a log without its start")?;
                format::format_resident(&start, self.file_system, 0, 1);
                Ok((disk, log, "in memory".to_owned()))
            }
            Some(directory) => {
                format::format(directory, self.file_system, 1).map_err(text)?;
                let path = format::log_path(directory, 0);
                let mut disk = AnyDisk::new(&UringOptions::default()).map_err(text)?;
                let log = disk.open(&path, &OpenOptions::default()).map_err(text)?;
                Ok((disk, log, path.display().to_string()))
            }
        }
    }

    fn target(&self) -> Result<Target<AnyFabric, AnyDisk>, String> {
        format_store(&self.store, self.names, false).map_err(text)?;
        let disk = match self.store.kind {
            StoreKind::Ram { .. } => AnyDisk::ram_only(RAM_DISK_ENTRIES),
            _ => AnyDisk::new(&UringOptions::default()),
        };
        let mut disk = disk.map_err(text)?;
        let store: OpenStore =
            open_store(&mut disk, &self.store, self.names.target).map_err(text)?;
        let fabric = AnyFabric::new(FabricOptions::default());
        let config = TargetConfig::new(
            self.names.target,
            self.instance,
            vec![self.target.clone()],
            self.metaserver.last().ok_or("the metadata server has no address")?.clone(),
        );
        Target::new(config, fabric, disk, vec![store]).map_err(text)
    }
}

/// A metadata server that ends the run when it cannot go on.
struct Watched<F: Fabric, D: Disk> {
    metaserver: MetaServer<F, D>,
    failure: Failure,
    stop: StopFlag,
}

impl<F: Fabric, D: Disk> Poller for Watched<F, D> {
    #[inline]
    fn poll(&mut self, now: Now) -> usize {
        let work = self.metaserver.poll(now);
        if let Some(reason) = self.metaserver.failure() {
            self.failure.set(reason);
            self.stop.stop();
        }
        work
    }

    fn deadline(&self) -> Time {
        self.metaserver.deadline()
    }

    fn arm(&mut self) {
        self.metaserver.arm();
    }

    fn disarm(&mut self) {
        self.metaserver.disarm();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.metaserver.wake_descriptors(visit);
    }

    fn shutdown(&mut self, now: Now) -> bool {
        self.metaserver.shutdown(now)
    }
}
