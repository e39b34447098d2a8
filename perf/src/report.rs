//! What a run found, as one document: `--json` prints it, the table is a view of it.

use std::time::Duration;

use gannet_client::Fabrics;
use serde::{Deserialize, Serialize};

use crate::ceilings::Ceilings;
use crate::ceilings::round_trip::RoundTrip;
use crate::doubt;
use crate::latency::LatencySummary;
use crate::machine::Machine;
use crate::options::{LogPlace, PerfOptions, Server, StorePlace, WorkloadKind};

/// Names the form of the document; changes when a reader has to.
pub const SCHEMA: &str = "gannet-perf/3";

/// A run's findings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was measured.
    pub build: Build,
    /// On what.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// What the machine itself reached; absent if that was not asked for.
    pub ceilings: Option<Ceilings>,
    /// What was found, in order of measurement.
    pub results: Vec<Measurement>,
    /// What makes figures of this run doubtful; empty if nothing is known to.
    pub warnings: Vec<String>,
}

/// Which Gannet was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The commit, if the environment variable `GANNET_COMMIT` told it at build time.
    pub commit: Option<String>,
    /// Whether it was built without optimization.
    pub debug: bool,
}

/// The options of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server's address; absent for an embedded one.
    pub server: Option<String>,
    /// Where an embedded data server kept its blocks.
    pub store: Option<String>,
    /// Where an embedded metadata server kept its log.
    pub log: Option<String>,
    /// How an embedded server was reached, `shm` or `tcp`; of a running one, what the client might
    /// have used, as in `shm,rdma,tcp`.
    pub fabric: String,
    /// The client's core.
    pub core: Option<usize>,
    /// The server's core.
    pub server_core: Option<usize>,
    /// The file.
    pub file: String,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// Length of each measurement, nanoseconds.
    pub time_ns: u64,
    /// Length of the warm-up before each, nanoseconds.
    pub warm_up_ns: u64,
    /// Whether all data was checked.
    pub verify: bool,
    /// Who completed the reads: `direct` (the data servers) or `metaserver`.
    pub completion: String,
    /// How the client's memory was guarded: `region` or `window`.
    pub protection: String,
    /// How the measuring thread waited: `spin` or `adaptive`.
    pub idle: String,
    /// The seed.
    pub seed: u64,
}

/// One workload at one depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The workload.
    pub workload: WorkloadKind,
    /// Length of a block, bytes.
    pub block_bytes: usize,
    /// Requests outstanding.
    pub depth: u32,
    /// How long was measured.
    pub seconds: f64,
    /// Requests completed in that time.
    pub operations: u64,
    /// Of these, per second.
    pub operations_per_second: f64,
    /// Payload, bytes per second.
    pub bytes_per_second: f64,
    /// From submission to completion.
    pub latency: LatencySummary,
    /// Units of 4 KiB whose content was checked: by reads as they came, warm-up included; after
    /// writes, all of the file.
    pub verified_units: u64,
    /// Time of the embedded server's reactor in turns with work, per request, nanoseconds.
    pub server_busy_ns_per_operation: Option<f64>,
    /// Time of the client in turns with work, per request, nanoseconds.
    pub client_busy_ns_per_operation: f64,
    /// Share of the time in which the client had its core.
    pub client_cpu_share: f64,
    /// Bandwidth as a share of what one core can copy.
    pub share_of_copy: Option<f64>,
    /// At depth 1: a round trip between the cores and one copy, nanoseconds.
    pub latency_floor_ns: Option<f64>,
    /// At depth 1: the floor as a share of the median latency.
    pub share_of_latency_floor: Option<f64>,
    /// Over TCP, at depth 1: the median latency as a multiple of a polled round trip.
    pub latency_in_tcp_round_trips: Option<f64>,
    /// Over TCP: rate, and so bandwidth, as a share of a plain service's.
    pub share_of_tcp_echo: Option<f64>,
}

impl Build {
    /// This build.
    #[must_use]
    pub fn current() -> Build {
        Build {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("GANNET_COMMIT").map(str::to_owned),
            debug: cfg!(debug_assertions),
        }
    }
}

/// Which server, as settings tell it.
pub(crate) struct ServerSettings {
    pub(crate) server: Option<String>,
    pub(crate) store: Option<String>,
    pub(crate) log: Option<String>,
    pub(crate) fabric: String,
}

impl ServerSettings {
    /// A server that the client may reach over `fabrics`.
    pub(crate) fn of(server: &Server, fabrics: Fabrics) -> ServerSettings {
        let embedded = match server {
            Server::Running(address) => {
                let (server, fabric) = (Some(address.to_string()), fabrics.to_string());
                return ServerSettings { server, store: None, log: None, fabric };
            }
            Server::Embedded(embedded) => embedded,
        };
        let store = match &embedded.store {
            StorePlace::Ram { size_bytes } => format!("ram:{size_bytes}"),
            StorePlace::File { directory, size_bytes } => {
                format!("{}:{size_bytes}", directory.display())
            }
        };
        let log = match &embedded.log {
            LogPlace::Ram => "ram".to_owned(),
            LogPlace::Directory(directory) => directory.display().to_string(),
        };
        let fabric = embedded.fabric.name().to_owned();
        ServerSettings { server: None, store: Some(store), log: Some(log), fabric }
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Settings {
    /// What the options say.
    #[must_use]
    pub fn of(options: &PerfOptions) -> Settings {
        let ServerSettings { server, store, log, fabric } =
            ServerSettings::of(&options.server, options.fabrics);
        let completion = if options.complete_by_metaserver { "metaserver" } else { "direct" };
        Settings {
            server,
            store,
            log,
            fabric,
            core: options.core,
            server_core: options.server_core,
            file: options.file.clone(),
            size_bytes: options.size_bytes,
            time_ns: nanoseconds(options.time),
            warm_up_ns: nanoseconds(options.warm_up),
            verify: options.verify,
            completion: completion.to_owned(),
            protection: options.protection.to_string(),
            idle: options.idle.to_string(),
            seed: options.seed,
        }
    }
}

impl Measurement {
    /// Fills in what follows from the ceilings.
    pub fn relate(&mut self, ceilings: &Ceilings) {
        let copy = ceilings.copy(self.workload, self.block_bytes, self.depth);
        self.share_of_copy = copy.map(|copy| self.bytes_per_second / copy.bytes_per_second);
        if self.depth == 1 {
            let floor_ns = ceilings.latency_floor_ns(self.workload, self.block_bytes);
            self.latency_floor_ns = floor_ns;
            self.share_of_latency_floor =
                floor_ns.map(|floor_ns| floor_ns / self.latency.p50_ns.max(1) as f64);
            self.latency_in_tcp_round_trips = ceilings
                .tcp_round_trip
                .map(|round_trip| self.latency.p50_ns as f64 / round_trip.median_ns);
        }
        let echo = ceilings.tcp_echo(self.workload, self.block_bytes, self.depth);
        self.share_of_tcp_echo =
            echo.map(|echo| self.operations_per_second / echo.operations_per_second);
    }
}

/// Two medians of the same round trip that differ by more than this were not of the same machine.
const ROUND_TRIP_SPREAD_MAX: f64 = 1.5;
/// The same over TCP, where it is the kernel's work that gets slower with what lies under it.
const TCP_ROUND_TRIP_SPREAD_MAX: f64 = 1.25;

impl Report {
    /// Finds what makes the figures doubtful.
    pub(crate) fn judge(&mut self) {
        let mut warnings = Vec::from_iter(doubt::build(&self.build));
        if self.settings.verify {
            warnings.push("the client also checked every word that it read".to_owned());
        }
        let mut spread = |what: &str, best: Option<RoundTrip>, slowest_ns, spread_max: f64| {
            if let (Some(RoundTrip { median_ns, .. }), Some(slowest_ns)) = (best, slowest_ns)
                && slowest_ns > spread_max * median_ns
            {
                warnings.push(format!(
                    "{what} between the cores: {median_ns:.0} ns at one end of the run and \
                     {slowest_ns:.0} ns at the other; what lies under the cores has changed"
                ));
            }
        };
        if let Some(it) = &self.ceilings {
            let slowest_ns = it.round_trip_slowest_ns;
            spread("round trip", it.round_trip, slowest_ns, ROUND_TRIP_SPREAD_MAX);
            let slowest_ns = it.tcp_round_trip_slowest_ns;
            spread("round trip over TCP", it.tcp_round_trip, slowest_ns, TCP_ROUND_TRIP_SPREAD_MAX);
        }
        warnings.extend(doubt::fabric(self.settings.server.as_deref(), &self.settings.fabric));
        let mut disturbed = |what: &str, share: f64| warnings.extend(doubt::core(what, share));
        if let Some(ceilings) = &self.ceilings {
            if let Some(round_trip) = ceilings.round_trip {
                disturbed("round trip between the cores", round_trip.cpu_share);
            }
            for copy in &ceilings.copies {
                let what = format!("copy ceiling of {} at depth {}", copy.workload, copy.depth);
                disturbed(&what, copy.cpu_share);
            }
            if let Some(round_trip) = ceilings.tcp_round_trip {
                disturbed("round trip over TCP", round_trip.cpu_share);
            }
            for echo in &ceilings.tcp_echoes {
                let what = format!("service over TCP of {} at depth {}", echo.workload, echo.depth);
                disturbed(&what, echo.cpu_share);
            }
        }
        for result in &self.results {
            let what = format!("{} at depth {}", result.workload, result.depth);
            disturbed(&what, result.client_cpu_share);
        }
        self.warnings = warnings;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ceilings::copy::{CopyCeiling, RoutineRate};
    use crate::ceilings::tcp_echo::EchoCeiling;
    use crate::options::EmbeddedOptions;

    pub(crate) fn example() -> Report {
        let options = PerfOptions::new(Server::Embedded(EmbeddedOptions::default()));
        let copy = |depth| CopyCeiling {
            workload: WorkloadKind::RandomRead,
            block_bytes: 4096,
            depth,
            best: "memcpy".to_owned(),
            bytes_per_second: 8.192e9,
            cpu_share: 0.99,
            routines: vec![RoutineRate { routine: "memcpy".to_owned(), bytes_per_second: 8.192e9 }],
        };
        let ceilings = Ceilings {
            round_trip: Some(RoundTrip {
                median_ns: 400.0,
                fastest_ns: 380.0,
                round_trips: 64_000,
                cpu_share: 0.99,
            }),
            round_trip_slowest_ns: Some(420.0),
            copies: vec![copy(1), copy(32)],
            ..Ceilings::default()
        };
        let measurement = |depth, operations: u64, p50_ns| Measurement {
            workload: WorkloadKind::RandomRead,
            block_bytes: 4096,
            depth,
            seconds: 2.0,
            operations,
            operations_per_second: operations as f64 / 2.0,
            bytes_per_second: operations as f64 / 2.0 * 4096.0,
            latency: LatencySummary {
                mean_ns: 1500.5,
                p50_ns,
                p90_ns: 1700,
                p99_ns: 2000,
                p99_9_ns: 4000,
                max_ns: 90_000,
            },
            verified_units: 0,
            server_busy_ns_per_operation: Some(600.0),
            client_busy_ns_per_operation: 200.0,
            client_cpu_share: 0.98,
            share_of_copy: None,
            latency_floor_ns: None,
            share_of_latency_floor: None,
            latency_in_tcp_round_trips: None,
            share_of_tcp_echo: None,
        };
        let mut report = Report {
            schema: SCHEMA.to_owned(),
            build: Build::current(),
            machine: Machine::of_this_process(),
            settings: Settings::of(&options),
            results: vec![measurement(1, 1_200_000, 1800), measurement(32, 2_000_000, 30_000)],
            ceilings: None,
            warnings: Vec::new(),
        };
        report.results.iter_mut().for_each(|result| result.relate(&ceilings));
        report.ceilings = Some(ceilings);
        report
    }

    /// As [`example`], of a server over TCP.
    pub(crate) fn example_over_tcp() -> Report {
        let mut report = example();
        report.settings.fabric = "tcp".to_owned();
        let ceilings = report.ceilings.as_mut().expect("the example has ceilings");
        ceilings.tcp_round_trip = Some(RoundTrip {
            median_ns: 600.0,
            fastest_ns: 550.0,
            round_trips: 30_000,
            cpu_share: 0.99,
        });
        ceilings.tcp_round_trip_slowest_ns = Some(620.0);
        ceilings.tcp_echoes = vec![EchoCeiling {
            workload: WorkloadKind::RandomRead,
            block_bytes: 4096,
            depth: 32,
            request_bytes: 120,
            notice_bytes: 120,
            operations_per_second: 1_250_000.0,
            bytes_per_second: 5.12e9,
            p50_ns: 25_000,
            p99_ns: 40_000,
            cpu_share: 0.99,
        }];
        report.results.iter_mut().for_each(|result| result.relate(ceilings));
        report
    }

    #[test]
    fn shares_follow_from_the_ceilings() {
        let report = example();
        let [one, many] = &report.results[..] else { panic!("two results") };
        // 4096 bytes at 8.192 GB/s take 500 ns, a round trip 400 ns: half of 1.8 us.
        assert_eq!(one.latency_floor_ns, Some(900.0));
        assert_eq!(one.share_of_latency_floor, Some(0.5));
        assert_eq!(one.share_of_copy, Some(0.3));
        assert_eq!(many.share_of_copy, Some(0.5));
        assert_eq!((many.latency_floor_ns, many.share_of_latency_floor), (None, None));
        assert_eq!((one.latency_in_tcp_round_trips, one.share_of_tcp_echo), (None, None));

        let report = example_over_tcp();
        let [one, many] = &report.results[..] else { panic!("two results") };
        assert_eq!((one.latency_in_tcp_round_trips, one.share_of_tcp_echo), (Some(3.0), None));
        assert_eq!((many.latency_in_tcp_round_trips, many.share_of_tcp_echo), (None, Some(0.8)));
    }

    /// The names are an interface: dashboards and scripts read them.
    #[test]
    fn the_document_has_the_fields_of_its_schema_and_reads_back() {
        let report = example_over_tcp();
        let text = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("its own form"), report);
        let value: serde_json::Value = serde_json::from_str(&text).expect("a document");
        let keys = |value: &serde_json::Value| {
            let object = value.as_object().expect("an object");
            let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
            keys.sort_unstable();
            keys.join(" ")
        };
        assert_eq!(value["schema"], "gannet-perf/3");
        assert_eq!(keys(&value), "build ceilings machine results schema settings warnings");
        assert_eq!(
            keys(&value["machine"]),
            "cores cpu_model huge_pages huge_pages_shared kernel memory_bytes virtual_machine"
        );
        assert_eq!(
            keys(&value["settings"]),
            "completion core fabric file idle log protection seed server server_core size_bytes store time_ns verify \
             warm_up_ns"
        );
        assert_eq!(keys(&value["build"]), "commit debug version");
        assert_eq!(
            keys(&value["ceilings"]),
            "copies round_trip round_trip_slowest_ns tcp_echoes tcp_round_trip \
             tcp_round_trip_slowest_ns"
        );
        assert_eq!(
            keys(&value["ceilings"]["tcp_echoes"][0]),
            "block_bytes bytes_per_second cpu_share depth notice_bytes operations_per_second \
             p50_ns p99_ns request_bytes workload"
        );
        assert_eq!(
            keys(&value["ceilings"]["copies"][0]),
            "best block_bytes bytes_per_second cpu_share depth routines workload"
        );
        assert_eq!(
            keys(&value["results"][0]),
            "block_bytes bytes_per_second client_busy_ns_per_operation client_cpu_share depth \
             latency latency_floor_ns latency_in_tcp_round_trips operations \
             operations_per_second seconds server_busy_ns_per_operation share_of_copy \
             share_of_latency_floor share_of_tcp_echo verified_units workload"
        );
        assert_eq!(
            keys(&value["results"][0]["latency"]),
            "max_ns mean_ns p50_ns p90_ns p99_9_ns p99_ns"
        );
        assert_eq!(value["results"][0]["workload"], "randread");
    }

    #[test]
    fn a_disturbed_run_says_so() {
        let mut report = example();
        report.build.debug = false;
        report.judge();
        assert_eq!(report.warnings, Vec::<String>::new());
        let ceilings = report.ceilings.as_mut().expect("the example has ceilings");
        ceilings.round_trip_slowest_ns = Some(1000.0);
        report.judge();
        assert!(report.warnings[0].contains("1000 ns"), "{:?}", report.warnings);
        let ceilings = report.ceilings.as_mut().expect("the example has ceilings");
        ceilings.round_trip_slowest_ns = Some(420.0);
        report.results[1].client_cpu_share = 0.5;
        report.build.debug = true;
        report.judge();
        assert_eq!(report.warnings.len(), 2);
        assert!(report.warnings[1].contains("randread at depth 32"), "{:?}", report.warnings);
    }

    #[test]
    fn a_run_over_tcp_says_what_may_have_changed_it() {
        let mut report = example_over_tcp();
        report.build.debug = false;
        report.judge();
        assert_eq!(report.warnings, Vec::<String>::new());
        let ceilings = report.ceilings.as_mut().expect("the example has ceilings");
        ceilings.tcp_round_trip_slowest_ns = Some(800.0);
        ceilings.tcp_echoes[0].cpu_share = 0.5;
        let options = PerfOptions::new(Server::Running("tcp://h:1".parse().expect("an address")));
        report.settings = Settings::of(&options);
        report.judge();
        let expected = ["over TCP between the cores: 600 ns", "--fabric tcp", "service over TCP"];
        assert_eq!(report.warnings.len(), expected.len(), "{:?}", report.warnings);
        for (warning, words) in report.warnings.iter().zip(expected) {
            assert!(warning.contains(words), "{warning}");
        }
    }
}
