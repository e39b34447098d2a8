//! What to measure, and against what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use gannet_client::{Fabrics, Protection};
use gannet_fabric::Address;
use gannet_fabric::tcp::TcpOptions;
use gannet_proto::limits::{FILE_BYTES_MAX, REQUEST_BYTES_MAX};
use gannet_runtime::idle::IdlePolicy;
use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::pattern::UNIT_BYTES;

/// Most requests that a workload keeps outstanding.
pub const DEPTH_MAX: u32 = 1024;

/// An access pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// Reads of blocks chosen at random.
    #[serde(rename = "randread")]
    RandomRead,
    /// Writes of blocks chosen at random.
    #[serde(rename = "randwrite")]
    RandomWrite,
    /// Reads of one block after the other, from the start again at the end.
    #[serde(rename = "read")]
    Read,
    /// Writes of one block after the other, from the start again at the end.
    #[serde(rename = "write")]
    Write,
}

impl WorkloadKind {
    /// All of them, in the order in which they run.
    pub const ALL: [WorkloadKind; 4] = [
        WorkloadKind::RandomRead,
        WorkloadKind::RandomWrite,
        WorkloadKind::Read,
        WorkloadKind::Write,
    ];

    /// The word for it on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            WorkloadKind::RandomRead => "randread",
            WorkloadKind::RandomWrite => "randwrite",
            WorkloadKind::Read => "read",
            WorkloadKind::Write => "write",
        }
    }

    /// Whether it writes.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, WorkloadKind::RandomWrite | WorkloadKind::Write)
    }

    /// Whether it goes to places chosen at random.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, WorkloadKind::RandomRead | WorkloadKind::RandomWrite)
    }

    /// Length of its blocks unless the options say otherwise, bytes.
    #[must_use]
    pub fn block_bytes_default(self) -> u32 {
        if self.is_random() { 4 << 10 } else { 128 << 10 }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no workload: use randread, randwrite, read or write")]
pub struct UnknownWorkload {
    /// What was given.
    pub given: String,
}

impl FromStr for WorkloadKind {
    type Err = UnknownWorkload;

    fn from_str(text: &str) -> Result<WorkloadKind, UnknownWorkload> {
        let found = WorkloadKind::ALL.into_iter().find(|workload| workload.name() == text);
        found.ok_or_else(|| UnknownWorkload { given: text.to_owned() })
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A file system that is already served.
    Running(Address),
    /// One that is made for the run, on one reactor of this process.
    Embedded(EmbeddedOptions),
}

impl Server {
    /// Whether it is reached over TCP, as far as its address tells.
    #[must_use]
    pub fn reaches_over_tcp(&self) -> bool {
        match self {
            Server::Running(address) => matches!(address, Address::Tcp { .. }),
            Server::Embedded(embedded) => embedded.fabric == EmbeddedFabric::Tcp,
        }
    }

    fn reaches_over_shm(&self) -> bool {
        match self {
            Server::Running(address) => matches!(address, Address::Shm { .. }),
            Server::Embedded(embedded) => embedded.fabric == EmbeddedFabric::Shm,
        }
    }

    /// Which fabrics a client may use that may use those of `asked`.
    pub(crate) fn fabrics(&self, asked: Fabrics) -> Fabrics {
        match self {
            // The server also listens where its data server reaches it.
            Server::Embedded(EmbeddedOptions { fabric: EmbeddedFabric::Tcp, .. }) => {
                Fabrics { shm: false, rdma: false, tcp: true }
            }
            Server::Embedded(_) | Server::Running(_) => asked,
        }
    }
}

/// A file system for the length of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Where the data server keeps its blocks.
    pub store: StorePlace,
    /// Where the metadata server keeps its log.
    pub log: LogPlace,
    /// How hosts reach both.
    pub fabric: EmbeddedFabric,
}

/// How hosts reach an embedded server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmbeddedFabric {
    /// Through shared memory.
    #[default]
    Shm,
    /// Over TCP, on loopback.
    Tcp,
}

impl EmbeddedFabric {
    /// The word for it on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EmbeddedFabric::Shm => "shm",
            EmbeddedFabric::Tcp => "tcp",
        }
    }
}

/// Where the data server of an embedded run keeps its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// In this many bytes of memory.
    Ram {
        /// Length of the store.
        size_bytes: u64,
    },
    /// In a file of this many bytes in a directory, which has to exist.
    File {
        /// The directory.
        directory: PathBuf,
        /// Length of the store.
        size_bytes: u64,
    },
}

/// Where the metadata server of an embedded run keeps its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPlace {
    /// In memory.
    Ram,
    /// In a file in a directory, which has to exist.
    Directory(PathBuf),
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            store: StorePlace::Ram { size_bytes: 512 << 20 },
            log: LogPlace::Ram,
            fabric: EmbeddedFabric::Shm,
        }
    }
}

/// A run of the harness.
#[derive(Clone, Debug)]
pub struct PerfOptions {
    /// Against what.
    pub server: Server,
    /// The core of the measuring thread; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// The core that the server runs on, for the ceilings; an embedded server is pinned to it.
    pub server_core: Option<usize>,
    /// Absolute path of the file to work on, which the run makes and removes.
    pub file: String,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// Whether an existing file may be overwritten.
    pub overwrite: bool,
    /// Whether the file stays.
    pub keep: bool,
    /// The workloads, in order.
    pub workloads: Vec<WorkloadKind>,
    /// Requests outstanding at a time; each workload runs with each.
    pub depths: Vec<u32>,
    /// Length of the blocks, bytes; `None` takes each workload's own.
    pub block_bytes: Option<u32>,
    /// How long each measurement takes.
    pub time: Duration,
    /// How long each workload runs before it is measured.
    pub warm_up: Duration,
    /// Check every word that is read, and write words that can be checked.
    pub verify: bool,
    /// Let the metadata server complete the reads.
    pub complete_by_metaserver: bool,
    /// How the client's memory is guarded against the data servers.
    pub protection: Protection,
    /// Which of the addresses that servers listen at the client may use. Of an embedded server it uses
    /// the one that [`EmbeddedOptions::fabric`] says.
    pub fabrics: Fabrics,
    /// How the client connects over TCP.
    pub tcp: TcpOptions,
    /// What the measuring thread does while nothing has arrived.
    pub idle: IdlePolicy,
    /// Measure what the machine itself can do, before and after.
    pub ceilings: bool,
    /// Which blocks are chosen, and what they hold.
    pub seed: u64,
}

impl PerfOptions {
    /// The defaults for a server.
    #[must_use]
    pub fn new(server: Server) -> PerfOptions {
        PerfOptions {
            server,
            core: Some(1),
            server_core: Some(0),
            file: "/perf.dat".to_owned(),
            size_bytes: 256 << 20,
            overwrite: false,
            keep: false,
            workloads: WorkloadKind::ALL.to_vec(),
            depths: vec![1, 8, 32],
            block_bytes: None,
            time: Duration::from_secs(3),
            warm_up: Duration::from_millis(300),
            verify: false,
            complete_by_metaserver: false,
            protection: Protection::Region,
            fabrics: Fabrics::ALL,
            tcp: TcpOptions::default(),
            idle: IdlePolicy::Spin,
            ceilings: true,
            seed: 1,
        }
    }

    /// Length of a workload's blocks, bytes.
    #[must_use]
    pub fn block_bytes(&self, workload: WorkloadKind) -> u32 {
        self.block_bytes.unwrap_or_else(|| workload.block_bytes_default())
    }

    /// Whether the server is reached over TCP, as far as its address tells.
    #[must_use]
    pub fn reaches_over_tcp(&self) -> bool {
        self.server.reaches_over_tcp()
    }

    /// Checks everything that can be checked before a server is asked.
    ///
    /// # Errors
    /// [`PerfError::Option`] naming the option and what it may be.
    pub fn check(&self) -> Result<(), PerfError> {
        let refuse =
            |option: &'static str, reason: String| Err(PerfError::Option { option, reason });
        let unit = UNIT_BYTES as u64;
        if !self.file.starts_with('/') || self.file.ends_with('/') {
            let reason = format!("{:?} is no absolute path of a file, as in /perf.dat", self.file);
            return refuse("file", reason);
        }
        if self.workloads.is_empty() {
            return refuse("workload", "none is given".to_owned());
        }
        if self.depths.is_empty() {
            return refuse("depth", "none is given".to_owned());
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(1..=DEPTH_MAX).contains(*depth)) {
            return refuse("depth", format!("{depth} is not between 1 and {DEPTH_MAX}"));
        }
        for workload in &self.workloads {
            let block_bytes = u64::from(self.block_bytes(*workload));
            let most = u64::from(REQUEST_BYTES_MAX);
            if block_bytes == 0 || block_bytes > most || !block_bytes.is_multiple_of(unit) {
                let reason =
                    format!("{block_bytes} is not a multiple of {unit} between {unit} and {most}");
                return refuse("block-size", reason);
            }
            if self.size_bytes < block_bytes || !self.size_bytes.is_multiple_of(block_bytes) {
                let size_bytes = self.size_bytes;
                let reason = format!(
                    "{size_bytes} is not a multiple of the {block_bytes} bytes of a {workload}"
                );
                return refuse("size", reason);
            }
        }
        if self.size_bytes > FILE_BYTES_MAX {
            let reason = format!("{} is more than {FILE_BYTES_MAX}", self.size_bytes);
            return refuse("size", reason);
        }
        if self.time.is_zero() {
            return refuse("time", "a measurement takes more than no time".to_owned());
        }
        if self.core.is_some() && self.core == self.server_core {
            let core = self.core.unwrap_or_default();
            let reason = format!("client and server would share core {core}; give one another");
            return refuse("core", reason);
        }
        if self.protection == Protection::Window && self.server.reaches_over_shm() {
            let reason = "shared memory has no memory windows: leave it at region, or measure a \
                          server at an rdma:// or tcp:// address, or an embedded one with \
                          --fabric tcp";
            return refuse("protection", reason.to_owned());
        }
        if let Server::Embedded(embedded) = &self.server {
            let (StorePlace::Ram { size_bytes } | StorePlace::File { size_bytes, .. }) =
                embedded.store;
            // Writes go to fresh blocks before the old ones are freed.
            let needed_bytes = self.size_bytes.saturating_add(self.size_bytes / 4);
            if size_bytes < needed_bytes {
                let reason = format!(
                    "{size_bytes} bytes are too few for a file of {} bytes and room to write it \
                     anew: take {needed_bytes} or more",
                    self.size_bytes
                );
                return refuse("store", reason);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> PerfOptions {
        PerfOptions::new(Server::Embedded(EmbeddedOptions::default()))
    }

    #[test]
    fn workloads_have_names() {
        for workload in WorkloadKind::ALL {
            assert_eq!(workload.name().parse(), Ok(workload));
            let json = serde_json::to_string(&workload).expect("a plain enum");
            assert_eq!(json, format!("{:?}", workload.name()), "one name everywhere");
        }
        let message = "scan".parse::<WorkloadKind>().expect_err("unknown").to_string();
        assert!(message.contains("scan") && message.contains("randread"), "{message}");
    }

    #[test]
    fn defaults_are_in_order() {
        assert!(embedded().check().is_ok());
        assert!(!embedded().reaches_over_tcp());
    }

    #[test]
    fn windows_guard_what_is_reached_over_a_network() {
        let fabric = EmbeddedFabric::Tcp;
        let server = Server::Embedded(EmbeddedOptions { fabric, ..EmbeddedOptions::default() });
        let mut options = PerfOptions::new(server);
        options.protection = Protection::Window;
        assert!(options.reaches_over_tcp() && options.check().is_ok());
        for (address, is_tcp) in [("tcp://127.0.0.1:7470", true), ("shm:///meta.sock", false)] {
            options.server = Server::Running(address.parse().expect("an address"));
            assert_eq!((options.reaches_over_tcp(), options.check().is_ok()), (is_tcp, is_tcp));
        }
        assert_eq!(EmbeddedFabric::Tcp.name(), "tcp");
    }

    #[test]
    fn each_mistake_names_its_option() {
        type Change = fn(&mut PerfOptions);
        let cases: [(&str, Change); 15] = [
            ("file", |options| options.file = "perf.dat".to_owned()),
            ("file", |options| options.file = "/".to_owned()),
            ("file", |options| options.file = String::new()),
            ("workload", |options| options.workloads.clear()),
            ("depth", |options| options.depths.clear()),
            ("depth", |options| options.depths = vec![1, 0]),
            ("depth", |options| options.depths = vec![DEPTH_MAX + 1]),
            ("block-size", |options| options.block_bytes = Some(0)),
            ("block-size", |options| options.block_bytes = Some(1000)),
            ("block-size", |options| options.block_bytes = Some(8 << 20)),
            ("size", |options| options.size_bytes = (256 << 20) + 4096),
            ("time", |options| options.time = Duration::ZERO),
            ("core", |options| options.core = options.server_core),
            ("store", |options| options.size_bytes = 512 << 20),
            ("protection", |options| options.protection = Protection::Window),
        ];
        for (option, change) in cases {
            let mut options = embedded();
            change(&mut options);
            let error = options.check().expect_err("a mistake");
            assert!(error.to_string().starts_with(&format!("--{option}: ")), "{error}");
            assert!(error.is_usage());
        }
    }
}
