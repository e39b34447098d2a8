//! What a run over names found, as one document: `--json` prints it, the table is a view of it.

use serde::{Deserialize, Serialize};

use super::ceilings::MetadataCeilings;
use super::options::{MetadataOperation, MetadataOptions};
use crate::doubt;
use crate::latency::LatencySummary;
use crate::machine::Machine;
use crate::report::{Build, ServerSettings, nanoseconds};

/// Names the form of the document; changes when a reader has to.
pub const SCHEMA: &str = "gannet-perf-metadata/1";

/// Runs of one operation that differ by more than this were not on the same machine.
const SPREAD_MAX: f64 = 1.5;

/// A run's findings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was measured.
    pub build: Build,
    /// On what.
    pub machine: Machine,
    /// How.
    pub settings: MetadataSettings,
    /// What the machine itself reached; absent if that was not asked for.
    pub ceilings: Option<MetadataCeilings>,
    /// What was found, by depth and operation in the order of measurement.
    pub results: Vec<OperationResult>,
    /// What makes figures of this run doubtful; empty if nothing is known to.
    pub warnings: Vec<String>,
}

/// The options of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataSettings {
    /// The server's address; absent for an embedded one.
    pub server: Option<String>,
    /// Where an embedded metadata server kept its log.
    pub log: Option<String>,
    /// How an embedded server was reached, `shm` or `tcp`; of a running one, what the client might
    /// have used, as in `shm,rdma,tcp`.
    pub fabric: String,
    /// Reactors of the metadata server.
    pub reactors: u16,
    /// The client's core.
    pub core: Option<usize>,
    /// The server's core.
    pub server_core: Option<usize>,
    /// How the paths of the directories began.
    pub prefix: String,
    /// How many directories.
    pub directories: u32,
    /// How many files in all of them.
    pub files: u32,
    /// Length of each measurement of what changes nothing, nanoseconds.
    pub time_ns: u64,
    /// Length of the warm-up before each of these, nanoseconds.
    pub warm_up_ns: u64,
    /// How often all was done.
    pub repeat: u32,
    /// How the measuring thread waited: `spin` or `adaptive`.
    pub idle: String,
    /// The seed.
    pub seed: u64,
}

/// One operation at one depth: the run whose rate is the median, of an even number the slower of the
/// two in the middle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationResult {
    /// The operation.
    pub operation: MetadataOperation,
    /// Operations outstanding.
    pub depth: u32,
    /// How long was measured.
    pub seconds: f64,
    /// Operations completed in that time.
    pub operations: u64,
    /// Of these, per second.
    pub operations_per_second: f64,
    /// The rates of all runs in the order of measurement, this one among them.
    pub operations_per_second_of_runs: Vec<f64>,
    /// Of readdir: entries listed per second.
    pub entries_per_second: Option<f64>,
    /// Requests that an operation took on average.
    pub requests_per_operation: f64,
    /// From an operation's first submission to its last completion.
    pub latency: LatencySummary,
    /// Time of the server's reactors in turns with work, per operation, nanoseconds. Of an embedded
    /// server while it was measured; of a running one from before the warm-up to the end, as its
    /// counters tell.
    pub server_busy_ns_per_operation: Option<f64>,
    /// Time of the client in turns with work, per operation, nanoseconds.
    pub client_busy_ns_per_operation: f64,
    /// Share of the time in which the client had its core.
    pub client_cpu_share: f64,
    /// Of changes: what the server wrote to its log for them.
    pub log: Option<LogUse>,
    /// Rate as a share of one thread's on a tmpfs.
    pub share_of_tmpfs: Option<f64>,
    /// Of changes, with a log in a directory: rate as a share of what synchronous writes allow.
    pub share_of_group_commit: Option<f64>,
}

/// What a server wrote to its log during an operation's measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogUse {
    /// Group commits.
    pub groups: u64,
    /// Their bytes, each padded to blocks.
    pub bytes: u64,
    /// Operations for each group commit.
    pub operations_per_group: f64,
}

impl MetadataSettings {
    /// What the options say, of a metadata server with `reactors`.
    #[must_use]
    pub fn of(options: &MetadataOptions, reactors: u16) -> MetadataSettings {
        let ServerSettings { server, log, fabric, .. } =
            ServerSettings::of(&options.server, options.fabrics);
        MetadataSettings {
            server,
            log,
            fabric,
            reactors,
            core: options.core,
            server_core: options.server_core,
            prefix: options.prefix.clone(),
            directories: options.directories,
            files: options.files,
            time_ns: nanoseconds(options.time),
            warm_up_ns: nanoseconds(options.warm_up),
            repeat: options.repeat,
            idle: options.idle.to_string(),
            seed: options.seed,
        }
    }
}

impl OperationResult {
    /// The median of several runs of one operation at one depth; `None` of none.
    pub(crate) fn median(mut runs: Vec<OperationResult>) -> Option<OperationResult> {
        let rates = runs.iter().map(|run| run.operations_per_second).collect();
        runs.sort_by(|a, b| a.operations_per_second.total_cmp(&b.operations_per_second));
        let middle = runs.len().checked_sub(1)? / 2;
        let mut median = runs.swap_remove(middle);
        median.operations_per_second_of_runs = rates;
        Some(median)
    }

    /// Fills in what follows from the ceilings.
    pub(crate) fn relate(&mut self, ceilings: &MetadataCeilings) {
        let share = |ceiling: f64| self.operations_per_second / ceiling;
        let tmpfs = ceilings.tmpfs(self.operation);
        self.share_of_tmpfs = tmpfs.map(|it| share(it.operations_per_second));
        let commit = ceilings.group_commit(self.operation, self.depth);
        self.share_of_group_commit = commit.map(|it| share(it.operations_per_second));
    }

    /// The lowest and the highest rate of all runs.
    pub(crate) fn range(&self) -> (f64, f64) {
        let rates = self.operations_per_second_of_runs.iter().copied();
        let least = rates.clone().fold(self.operations_per_second, f64::min);
        (least, rates.fold(self.operations_per_second, f64::max))
    }
}

impl MetadataReport {
    /// Finds what makes the figures doubtful.
    pub(crate) fn judge(&mut self) {
        let mut warnings = Vec::from_iter(doubt::build(&self.build));
        warnings.extend(doubt::fabric(self.settings.server.as_deref(), &self.settings.fabric));
        let tmpfs = self.ceilings.iter().flat_map(|ceilings| &ceilings.tmpfs);
        let least = tmpfs.map(|ceiling| ceiling.cpu_share).min_by(f64::total_cmp);
        warnings.extend(least.and_then(|share| doubt::core("tmpfs", share)));
        let spins = self.settings.idle == "spin";
        for result in &self.results {
            let what = format!("{} at depth {}", result.operation, result.depth);
            // A thread that sleeps while it waits leaves its core by itself.
            warnings.extend(doubt::core(&what, result.client_cpu_share).filter(|_| spins));
            let (least, most) = result.range();
            if most > SPREAD_MAX * least {
                let (least, most) = (least / 1e3, most / 1e3);
                warnings.push(format!("{what}: {least:.1} k/s in one run, {most:.1} in another"));
            }
        }
        self.warnings = warnings;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metadata::ceilings::group_commit::GroupCommitCeiling;
    use crate::metadata::ceilings::tmpfs::TmpfsCeiling;
    use crate::options::{EmbeddedOptions, LogPlace, Server};

    pub(crate) fn example() -> MetadataReport {
        let log = LogPlace::Directory("/log".into());
        let embedded = EmbeddedOptions { log, ..EmbeddedOptions::default() };
        let options = MetadataOptions::new(Server::Embedded(embedded));
        let (create, readdir) = (MetadataOperation::Create, MetadataOperation::Readdir);
        let tmpfs = |operation, operations_per_second| TmpfsCeiling {
            operation,
            operations: 65_536,
            operations_per_second,
            cpu_share: 0.99,
        };
        let ceilings = MetadataCeilings {
            tmpfs: vec![tmpfs(create, 400_000.0), tmpfs(readdir, 4_000.0)],
            group_commits: vec![GroupCommitCeiling {
                operation: create,
                depth: 64,
                record_bytes: 112,
                group_bytes: 8192,
                direct: true,
                groups_per_second: 12_500.0,
                operations_per_second: 800_000.0,
            }],
        };
        let result = |operation, operations: u64| OperationResult {
            operation,
            depth: 64,
            seconds: 0.5,
            operations,
            operations_per_second: operations as f64 / 0.5,
            operations_per_second_of_runs: Vec::new(),
            entries_per_second: None,
            requests_per_operation: 1.0,
            latency: LatencySummary {
                mean_ns: 300.0,
                p50_ns: 310_000,
                p90_ns: 330_000,
                p99_ns: 400_000,
                p99_9_ns: 500_000,
                max_ns: 900_000,
            },
            server_busy_ns_per_operation: Some(1500.0),
            client_busy_ns_per_operation: 250.0,
            client_cpu_share: 0.99,
            log: None,
            share_of_tmpfs: None,
            share_of_group_commit: None,
        };
        let runs = [90_000, 110_000, 100_000].map(|operations| result(create, operations));
        let mut created = OperationResult::median(runs.to_vec()).expect("three runs");
        created.log = Some(LogUse { groups: 1600, bytes: 1600 * 8192, operations_per_group: 62.5 });
        let mut listed = OperationResult::median(vec![result(readdir, 1_000)]).expect("a run");
        listed.entries_per_second = Some(2_048_000.0);
        listed.requests_per_operation = 4.0;
        let mut report = MetadataReport {
            schema: SCHEMA.to_owned(),
            build: Build { debug: false, ..Build::current() },
            machine: Machine::of_this_process(),
            settings: MetadataSettings::of(&options, 1),
            ceilings: None,
            results: vec![created, listed],
            warnings: Vec::new(),
        };
        report.results.iter_mut().for_each(|result| result.relate(&ceilings));
        report.ceilings = Some(ceilings);
        report
    }

    #[test]
    fn the_median_run_is_reported_whole_with_the_rates_of_all() {
        let report = example();
        let created = &report.results[0];
        assert_eq!((created.operations, created.operations_per_second), (100_000, 200_000.0));
        assert_eq!(created.operations_per_second_of_runs, [180_000.0, 220_000.0, 200_000.0]);
        assert_eq!(created.range(), (180_000.0, 220_000.0));
        let slower = OperationResult::median(report.results.clone()).expect("two runs");
        assert_eq!(slower.operations, 1_000, "of an even number the slower one in the middle");
        assert_eq!(OperationResult::median(Vec::new()), None);
    }

    #[test]
    fn shares_follow_from_the_ceilings() {
        let report = example();
        let [created, listed] = &report.results[..] else { panic!("two results") };
        assert_eq!(created.share_of_tmpfs, Some(0.5));
        assert_eq!(created.share_of_group_commit, Some(0.25));
        assert_eq!((listed.share_of_tmpfs, listed.share_of_group_commit), (Some(0.5), None));
    }

    /// The names are an interface: dashboards and scripts read them.
    #[test]
    fn the_document_has_the_fields_of_its_schema_and_reads_back() {
        let report = example();
        let text = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<MetadataReport>(&text).expect("its own form"), report);
        let value: serde_json::Value = serde_json::from_str(&text).expect("a document");
        let keys = |value: &serde_json::Value| {
            let object = value.as_object().expect("an object");
            let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
            keys.sort_unstable();
            keys.join(" ")
        };
        assert_eq!(value["schema"], "gannet-perf-metadata/1");
        assert_eq!(keys(&value), "build ceilings machine results schema settings warnings");
        assert_eq!(
            keys(&value["settings"]),
            "core directories fabric files idle log prefix reactors repeat seed server server_core \
             time_ns warm_up_ns"
        );
        assert_eq!(keys(&value["ceilings"]), "group_commits tmpfs");
        assert_eq!(
            keys(&value["ceilings"]["tmpfs"][0]),
            "cpu_share operation operations operations_per_second"
        );
        assert_eq!(
            keys(&value["ceilings"]["group_commits"][0]),
            "depth direct group_bytes groups_per_second operation operations_per_second \
             record_bytes"
        );
        assert_eq!(
            keys(&value["results"][0]),
            "client_busy_ns_per_operation client_cpu_share depth entries_per_second latency log \
             operation operations operations_per_second operations_per_second_of_runs \
             requests_per_operation seconds server_busy_ns_per_operation share_of_group_commit \
             share_of_tmpfs"
        );
        assert_eq!(keys(&value["results"][0]["log"]), "bytes groups operations_per_group");
        assert_eq!(value["results"][0]["operation"], "create");
    }

    #[test]
    fn a_disturbed_run_says_so() {
        let mut report = example();
        report.judge();
        assert_eq!(report.warnings, Vec::<String>::new());
        report.settings.idle = "spin".to_owned();
        report.build.debug = true;
        report.results[0].client_cpu_share = 0.5;
        report.results[1].operations_per_second_of_runs.push(5_000.0);
        let ceilings = report.ceilings.as_mut().expect("the example has ceilings");
        ceilings.tmpfs[1].cpu_share = 0.8;
        report.judge();
        let expected = ["--release", "tmpfs: its thread", "create at depth 64", "readdir at depth"];
        assert_eq!(report.warnings.len(), expected.len(), "{:?}", report.warnings);
        for (warning, words) in report.warnings.iter().zip(expected) {
            assert!(warning.contains(words), "{warning}");
        }
    }
}
