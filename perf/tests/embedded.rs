//! Whole runs against an embedded server: host library, metadata server and data server over shared
//! memory, with every word that is read checked.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gannet_client::Protection;
use gannet_perf::{
    EmbeddedFabric, EmbeddedOptions, LogPlace, PerfError, PerfOptions, Progress, Report, Server,
    StorePlace, WorkloadKind,
};

/// One run at a time: two threads that poll are as many as a small machine has cores.
static RUNNING: Mutex<()> = Mutex::new(());

fn run(
    options: &PerfOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, PerfError> {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    gannet_perf::run(options, progress)
}

/// Short, small, checked, and not pinned, since tests run beside each other.
fn options(embedded: EmbeddedOptions) -> PerfOptions {
    let mut options = PerfOptions::new(Server::Embedded(embedded));
    (options.core, options.server_core) = (None, None);
    options.size_bytes = 16 << 20;
    options.depths = vec![1, 16];
    options.time = Duration::from_millis(200);
    options.warm_up = Duration::from_millis(20);
    options.verify = true;
    options.ceilings = false;
    options
}

fn ram() -> EmbeddedOptions {
    let store = StorePlace::Ram { size_bytes: 64 << 20 };
    EmbeddedOptions { store, ..EmbeddedOptions::default() }
}

fn check(report: &Report, options: &PerfOptions) {
    let expected = options
        .workloads
        .iter()
        .flat_map(|workload| options.depths.iter().map(move |depth| (*workload, *depth)));
    let measured = report.results.iter().map(|result| (result.workload, result.depth));
    assert!(measured.eq(expected), "every workload at every depth, in order");
    for result in &report.results {
        assert!(result.operations > 0 && result.operations_per_second > 0.0, "{result:?}");
        assert!(result.seconds >= options.time.as_secs_f64(), "{result:?}");
        let latency = result.latency;
        let rising = [latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.p99_9_ns];
        assert!(latency.p50_ns > 0 && rising.is_sorted(), "{result:?}");
        assert!(latency.max_ns >= latency.p99_9_ns, "{result:?}");
        assert!(result.server_busy_ns_per_operation.is_some_and(|ns| ns > 0.0), "{result:?}");
        let units = result.operations * (result.block_bytes as u64 / 4096);
        if result.workload.is_write() {
            assert_eq!(result.verified_units, options.size_bytes / 4096, "{result:?}");
        } else {
            assert!(result.verified_units >= units, "not all that was counted was checked");
        }
    }
}

#[test]
fn a_store_in_memory_serves_every_workload() {
    let options = options(ram());
    let mut steps = Vec::new();
    let report = run(&options, &mut |step| steps.push(step)).unwrap();
    check(&report, &options);
    assert_eq!(steps.len(), options.workloads.len() + report.results.len());
    assert_eq!(steps[..2], [Progress::Filling, Progress::Measuring(WorkloadKind::RandomRead, 1)]);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn a_server_over_tcp_serves_every_workload_and_is_compared_with_plain_tcp() {
    let mut options = options(EmbeddedOptions { fabric: EmbeddedFabric::Tcp, ..ram() });
    options.ceilings = true;
    let report = run(&options, &mut |_| {}).unwrap();
    check(&report, &options);
    assert_eq!(report.settings.fabric, "tcp");
    let ceilings = report.ceilings.as_ref().unwrap();
    let round_trip = ceilings.tcp_round_trip.unwrap();
    assert_eq!(ceilings.tcp_echoes.len(), report.results.len());
    for result in &report.results {
        let echo = ceilings.tcp_echo(result.workload, result.block_bytes, result.depth).unwrap();
        let share = result.operations_per_second / echo.operations_per_second;
        assert_eq!(result.share_of_tcp_echo, Some(share));
        let trips = result.latency.p50_ns as f64 / round_trip.median_ns;
        assert_eq!(result.latency_in_tcp_round_trips, (result.depth == 1).then_some(trips));
    }
}

#[test]
fn memory_windows_guard_a_host_over_tcp() {
    let mut options = options(EmbeddedOptions { fabric: EmbeddedFabric::Tcp, ..ram() });
    options.protection = Protection::Window;
    options.workloads = vec![WorkloadKind::RandomRead, WorkloadKind::Write];
    let report = run(&options, &mut |_| {}).unwrap();
    check(&report, &options);
}

#[test]
fn the_metadata_server_may_complete_the_reads() {
    let mut options = options(ram());
    options.complete_by_metaserver = true;
    options.workloads = vec![WorkloadKind::RandomRead, WorkloadKind::Read];
    let report = run(&options, &mut |_| {}).unwrap();
    check(&report, &options);
    assert_eq!(report.settings.completion, "metaserver");
}

#[test]
fn store_and_log_may_lie_on_disk_and_nothing_is_left_there() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_path_buf();
    let store = StorePlace::File { directory: place.clone(), size_bytes: 64 << 20 };
    let mut options = options(EmbeddedOptions { store, log: LogPlace::Directory(place), ..ram() });
    options.block_bytes = Some(16 << 10);
    options.workloads = vec![WorkloadKind::RandomWrite, WorkloadKind::RandomRead];
    let report = run(&options, &mut |_| {}).unwrap();
    check(&report, &options);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ceilings_are_part_of_the_run() {
    let mut options = options(ram());
    options.ceilings = true;
    options.workloads = vec![WorkloadKind::RandomRead];
    let report = run(&options, &mut |_| {}).unwrap();
    check(&report, &options);
    assert_eq!(report.ceilings.as_ref().unwrap().copies.len(), 2);
    assert!(report.results.iter().all(|result| result.share_of_copy.is_some_and(|it| it > 0.0)));
    let one = &report.results[0];
    assert_eq!(one.depth, 1);
    let has_two_cores = report.ceilings.as_ref().unwrap().round_trip.is_some();
    assert_eq!(one.latency_floor_ns.is_some(), has_two_cores);
}

#[test]
fn mistakes_and_absent_places_are_told_with_their_option() {
    let refused = |change: &dyn Fn(&mut PerfOptions)| {
        let mut options = options(ram());
        change(&mut options);
        run(&options, &mut |_| {}).unwrap_err()
    };
    let nowhere = std::path::PathBuf::from("/no/such/directory");
    let error = refused(&|options| {
        let log = LogPlace::Directory(nowhere.clone());
        options.server = Server::Embedded(EmbeddedOptions { log, ..ram() });
    });
    assert!(error.to_string().starts_with("--metadata-log: "), "{error}");
    assert!(error.to_string().contains("/no/such/directory"), "{error}");
    let error = refused(&|options| options.core = Some(100_000));
    assert!(matches!(error, PerfError::Core(_)), "{error}");
    let error = refused(&|options| options.server_core = Some(100_000));
    assert!(error.to_string().contains("100000"), "{error}");
    let error = refused(&|options| options.file = "/no/such/file".to_owned());
    assert!(error.to_string().contains("/no/such/file"), "{error}");
}
