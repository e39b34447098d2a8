//! Which operations to measure, over how many names, and against what.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use gannet_client::Fabrics;
use gannet_fabric::tcp::TcpOptions;
use gannet_proto::limits::NAME_BYTES_MAX;
use gannet_runtime::idle::IdlePolicy;
use serde::{Deserialize, Serialize};

use super::names::{FILES_MAX, Spread};
use crate::error::PerfError;
use crate::options::{DEPTH_MAX, EmbeddedOptions, LogPlace, Server};

/// Most directories: each is held open while the tmpfs is measured.
pub const DIRECTORIES_MAX: u32 = 512;
/// Most repetitions of a run.
pub const REPEAT_MAX: u32 = 99;
/// What follows the prefix in a directory's name, bytes.
const SUFFIX_BYTES: usize = 4;

/// An operation on names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadataOperation {
    /// Makes a file; fails if the name is taken.
    Create,
    /// Attributes of what has a name in a directory: one request.
    Stat,
    /// Finds a file by its name in a directory, then opens it: two requests.
    Open,
    /// Lists all of a directory: as many requests as it takes.
    Readdir,
    /// Gives a file another name in its directory.
    Rename,
    /// Removes a file.
    Unlink,
}

impl MetadataOperation {
    /// All of them, in the order in which they run.
    pub const ALL: [MetadataOperation; 6] = [
        MetadataOperation::Create,
        MetadataOperation::Stat,
        MetadataOperation::Open,
        MetadataOperation::Readdir,
        MetadataOperation::Rename,
        MetadataOperation::Unlink,
    ];

    /// The word for it on command lines and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MetadataOperation::Create => "create",
            MetadataOperation::Stat => "stat",
            MetadataOperation::Open => "open",
            MetadataOperation::Readdir => "readdir",
            MetadataOperation::Rename => "rename",
            MetadataOperation::Unlink => "unlink",
        }
    }

    /// Whether it changes something, and so is done to each file no more than once.
    #[must_use]
    pub fn is_change(self) -> bool {
        use MetadataOperation::{Create, Rename, Unlink};
        matches!(self, Create | Rename | Unlink)
    }
}

impl fmt::Display for MetadataOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no operation: use create, stat, open, readdir, rename or unlink")]
pub struct UnknownOperation {
    /// What was given.
    pub given: String,
}

impl FromStr for MetadataOperation {
    type Err = UnknownOperation;

    fn from_str(text: &str) -> Result<MetadataOperation, UnknownOperation> {
        let found = MetadataOperation::ALL.into_iter().find(|operation| operation.name() == text);
        found.ok_or_else(|| UnknownOperation { given: text.to_owned() })
    }
}

/// A run over names.
#[derive(Clone, Debug)]
pub struct MetadataOptions {
    /// Against what.
    pub server: Server,
    /// The core of the measuring thread; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// The core that the server runs on, for the ceilings; an embedded server is pinned to it.
    pub server_core: Option<usize>,
    /// How the paths of the directories begin that the run makes and removes. Directories of the root
    /// are spread over the server's shards, those of another directory stay with it.
    pub prefix: String,
    /// How many directories.
    pub directories: u32,
    /// How many files there are in all of them.
    pub files: u32,
    /// Which operations. They run in the order of [`MetadataOperation::ALL`]; files are made and
    /// removed in any case.
    pub operations: Vec<MetadataOperation>,
    /// Operations outstanding at a time; all operations run with each.
    pub depths: Vec<u32>,
    /// How long stat, open and readdir are measured each. The others are done once to each file, but
    /// end when this is over, whatever is left.
    pub time: Duration,
    /// How long stat, open and readdir run before they are measured.
    pub warm_up: Duration,
    /// How often all of it is done; the median is reported.
    pub repeat: u32,
    /// Which of the addresses that servers listen at the client may use. Of an embedded server it uses
    /// the one that [`crate::EmbeddedOptions::fabric`] says.
    pub fabrics: Fabrics,
    /// How the client connects over TCP.
    pub tcp: TcpOptions,
    /// What the measuring thread, and an embedded server, do while nothing has arrived.
    pub idle: IdlePolicy,
    /// Measure what the machine itself can do, before and after.
    pub ceilings: bool,
    /// In which order files are looked at.
    pub seed: u64,
}

impl MetadataOptions {
    /// The defaults for a server: cores are left to others only while a log in a directory is written.
    #[must_use]
    pub fn new(server: Server) -> MetadataOptions {
        let idle = match &server {
            Server::Embedded(EmbeddedOptions { log: LogPlace::Directory(_), .. }) => {
                IdlePolicy::ADAPTIVE
            }
            Server::Embedded(_) | Server::Running(_) => IdlePolicy::Spin,
        };
        MetadataOptions {
            server,
            core: Some(1),
            server_core: Some(0),
            prefix: "/perf-metadata".to_owned(),
            directories: 64,
            files: 1 << 16,
            operations: MetadataOperation::ALL.to_vec(),
            depths: vec![1, 16, 64],
            time: Duration::from_secs(1),
            warm_up: Duration::from_millis(100),
            repeat: 3,
            fabrics: Fabrics::ALL,
            tcp: TcpOptions::default(),
            idle,
            ceilings: true,
            seed: 1,
        }
    }

    /// Whether an operation is measured.
    #[must_use]
    pub fn measures(&self, operation: MetadataOperation) -> bool {
        self.operations.contains(&operation)
    }

    pub(crate) fn spread(&self) -> Spread {
        Spread { files: self.files, directories: self.directories }
    }

    /// Checks everything that can be checked before a server is asked.
    ///
    /// # Errors
    /// [`PerfError::Option`] naming the option and what it may be.
    pub fn check(&self) -> Result<(), PerfError> {
        let refuse =
            |option: &'static str, reason: String| Err(PerfError::Option { option, reason });
        let name = self.prefix.rsplit('/').next().unwrap_or_default();
        if !self.prefix.starts_with('/') || name.is_empty() {
            let reason = format!("{:?} is no start of an absolute path, as in /perf-", self.prefix);
            return refuse("prefix", reason);
        }
        if name.len() + SUFFIX_BYTES > NAME_BYTES_MAX {
            let most = NAME_BYTES_MAX - SUFFIX_BYTES;
            return refuse("prefix", format!("its name is longer than {most} bytes"));
        }
        if self.operations.is_empty() {
            return refuse("workload", "none is given".to_owned());
        }
        for (index, operation) in self.operations.iter().enumerate() {
            if self.operations[..index].contains(operation) {
                return refuse("workload", format!("{operation} is given twice"));
            }
        }
        if self.depths.is_empty() {
            return refuse("depth", "none is given".to_owned());
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(1..=DEPTH_MAX).contains(*depth)) {
            return refuse("depth", format!("{depth} is not between 1 and {DEPTH_MAX}"));
        }
        for (index, depth) in self.depths.iter().enumerate() {
            if self.depths[..index].contains(depth) {
                return refuse("depth", format!("{depth} is given twice: --repeat does it again"));
            }
        }
        if !(1..=DIRECTORIES_MAX).contains(&self.directories) {
            let reason = format!("{} is not between 1 and {DIRECTORIES_MAX}", self.directories);
            return refuse("directories", reason);
        }
        if !(self.directories..=FILES_MAX).contains(&self.files) {
            let (files, least) = (self.files, self.directories);
            let reason =
                format!("{files} is not between {least}, one a directory, and {FILES_MAX}");
            return refuse("files", reason);
        }
        if self.time.is_zero() {
            return refuse("time", "a measurement takes more than no time".to_owned());
        }
        if !(1..=REPEAT_MAX).contains(&self.repeat) {
            return refuse("repeat", format!("{} is not between 1 and {REPEAT_MAX}", self.repeat));
        }
        if self.core.is_some() && self.core == self.server_core {
            let core = self.core.unwrap_or_default();
            let reason = format!("client and server would share core {core}; give one another");
            return refuse("core", reason);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded() -> MetadataOptions {
        MetadataOptions::new(Server::Embedded(EmbeddedOptions::default()))
    }

    #[test]
    fn operations_have_names() {
        for operation in MetadataOperation::ALL {
            assert_eq!(operation.name().parse(), Ok(operation));
            let json = serde_json::to_string(&operation).expect("a plain enum");
            assert_eq!(json, format!("{:?}", operation.name()), "one name everywhere");
        }
        assert!(MetadataOperation::ALL.is_sorted(), "their order is that of a file's life");
        let message = "chmod".parse::<MetadataOperation>().expect_err("unknown").to_string();
        assert!(message.contains("chmod") && message.contains("readdir"), "{message}");
    }

    #[test]
    fn each_mistake_names_its_option() {
        type Change = fn(&mut MetadataOptions);
        let cases: [(&str, Change); 18] = [
            ("prefix", |options| options.prefix = "perf".to_owned()),
            ("prefix", |options| options.prefix = "/perf/".to_owned()),
            ("prefix", |options| options.prefix = String::new()),
            ("prefix", |options| options.prefix = format!("/{}", "x".repeat(252))),
            ("workload", |options| options.operations.clear()),
            ("workload", |options| options.operations = vec![MetadataOperation::Stat; 2]),
            ("depth", |options| options.depths.clear()),
            ("depth", |options| options.depths = vec![1, 0]),
            ("depth", |options| options.depths = vec![DEPTH_MAX + 1]),
            ("depth", |options| options.depths = vec![4, 1, 4]),
            ("directories", |options| options.directories = 0),
            ("directories", |options| options.directories = DIRECTORIES_MAX + 1),
            ("files", |options| options.files = options.directories - 1),
            ("files", |options| options.files = FILES_MAX + 1),
            ("time", |options| options.time = Duration::ZERO),
            ("repeat", |options| options.repeat = 0),
            ("repeat", |options| options.repeat = REPEAT_MAX + 1),
            ("core", |options| options.core = options.server_core),
        ];
        assert!(embedded().check().is_ok(), "the defaults are in order");
        for (option, change) in cases {
            let mut options = embedded();
            change(&mut options);
            let error = options.check().expect_err("a mistake");
            assert!(error.to_string().starts_with(&format!("--{option}: ")), "{error}");
            assert!(error.is_usage());
        }
    }
}
