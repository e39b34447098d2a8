//! Whole runs over names against an embedded server.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gannet_perf::metadata::{
    MetadataOperation, MetadataOptions, MetadataProgress, MetadataReport, run,
};
use gannet_perf::{EmbeddedFabric, EmbeddedOptions, LogPlace, PerfError, Server};

use MetadataOperation::{Create, Open, Readdir, Rename, Stat, Unlink};

/// One run at a time: two threads that poll are as many as a small machine has cores.
static RUNNING: Mutex<()> = Mutex::new(());

/// Entries of one reply to a listing are fewer than this, with names of eight bytes.
const ENTRIES_PER_REPLY_MAX: u32 = 400;

fn measure(options: &MetadataOptions) -> Result<MetadataReport, PerfError> {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    run(options, &mut |_| {})
}

/// Short, small, and not pinned, since tests run beside each other.
fn options(embedded: EmbeddedOptions) -> MetadataOptions {
    let mut options = MetadataOptions::new(Server::Embedded(embedded));
    (options.core, options.server_core) = (None, None);
    (options.directories, options.files) = (2, 900);
    options.depths = vec![1, 16];
    options.time = Duration::from_millis(100);
    options.warm_up = Duration::from_millis(10);
    options.repeat = 1;
    options.ceilings = false;
    options
}

fn check(report: &MetadataReport, options: &MetadataOptions) {
    let expected = options.depths.iter().flat_map(|depth| {
        let operations = MetadataOperation::ALL.into_iter();
        let measured = operations.filter(|operation| options.operations.contains(operation));
        measured.map(move |operation| (operation, *depth))
    });
    let measured = report.results.iter().map(|result| (result.operation, result.depth));
    assert!(measured.eq(expected), "every operation at every depth, in order");
    assert_eq!(report.settings.reactors, 1);
    for result in &report.results {
        assert!(result.operations_per_second > 0.0, "{result:?}");
        let rate = result.operations as f64 / result.seconds;
        assert_eq!(result.operations_per_second, rate);
        assert_eq!(result.operations_per_second_of_runs.len(), options.repeat as usize);
        assert!(result.operations_per_second_of_runs.contains(&rate), "{result:?}");
        let latency = result.latency;
        let rising = [latency.p50_ns, latency.p90_ns, latency.p99_ns, latency.p99_9_ns];
        assert!(latency.p50_ns > 0 && rising.is_sorted(), "{result:?}");
        assert!(latency.max_ns >= latency.p99_9_ns, "{result:?}");
        assert!(result.server_busy_ns_per_operation.is_some_and(|ns| ns > 0.0), "{result:?}");
        assert!(result.client_busy_ns_per_operation > 0.0, "{result:?}");
        if result.operation.is_change() {
            let files = u64::from(options.files);
            let ended_early = result.seconds >= options.time.as_secs_f64();
            assert!(result.operations == files || ended_early, "once to each file: {result:?}");
            assert!(result.operations > 0 && result.operations <= files, "{result:?}");
            let log = result.log.unwrap();
            assert!(log.groups > 0, "{result:?}");
            assert!(log.bytes >= log.groups * 4096, "{result:?}");
            let per_group = result.operations as f64 / log.groups as f64;
            assert_eq!(log.operations_per_group, per_group);
            assert!(per_group <= f64::from(result.depth), "{result:?}");
        } else {
            assert!(result.operations > 0, "{result:?}");
            assert!(result.seconds >= options.time.as_secs_f64(), "{result:?}");
            assert_eq!(result.log, None, "nothing was changed: {result:?}");
        }
        let requests = result.requests_per_operation;
        match result.operation {
            Open => assert_eq!(requests, 2.0),
            Readdir => {
                // All directories have as many files.
                let files = options.files / options.directories;
                let replies = files.div_ceil(ENTRIES_PER_REPLY_MAX);
                assert!(requests >= f64::from(replies), "{result:?}");
                let entries = result.entries_per_second.unwrap() / result.operations_per_second;
                assert_eq!(entries.round(), f64::from(files), "{result:?}");
            }
            _ => assert_eq!(requests, 1.0, "{result:?}"),
        }
        assert_eq!(result.entries_per_second.is_some(), result.operation == Readdir);
    }
}

#[test]
fn a_log_in_memory_serves_every_operation() {
    let options = options(EmbeddedOptions::default());
    let mut steps = Vec::new();
    let report = {
        let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        run(&options, &mut |step| steps.push(step)).unwrap()
    };
    check(&report, &options);
    assert_eq!((report.ceilings.as_ref(), report.settings.log.as_deref()), (None, Some("ram")));
    let first = MetadataProgress::Measuring { operation: Create, depth: 1, run: 1 };
    assert_eq!(steps[..2], [MetadataProgress::Making, first]);
    assert_eq!(steps.len(), report.results.len() + 2 * options.depths.len());
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<MetadataReport>(&text).unwrap(), report);
}

#[test]
fn a_log_on_disk_is_compared_with_its_place_and_nothing_is_left_there() {
    let directory = tempfile::tempdir().unwrap();
    let log = LogPlace::Directory(directory.path().to_path_buf());
    let mut options = options(EmbeddedOptions { log, ..EmbeddedOptions::default() });
    options.files = 600;
    options.ceilings = true;
    let report = measure(&options).unwrap();
    check(&report, &options);
    let ceilings = report.ceilings.as_ref().unwrap();
    assert_eq!(ceilings.tmpfs.len(), MetadataOperation::ALL.len());
    assert_eq!(ceilings.group_commits.len(), 3 * options.depths.len());
    for result in &report.results {
        let tmpfs = ceilings.tmpfs(result.operation).unwrap();
        let share = result.operations_per_second / tmpfs.operations_per_second;
        assert_eq!(result.share_of_tmpfs, Some(share));
        let commit = ceilings.group_commit(result.operation, result.depth);
        let share = commit.map(|it| result.operations_per_second / it.operations_per_second);
        assert_eq!(result.share_of_group_commit, share);
        assert_eq!(share.is_some(), result.operation.is_change());
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_server_over_tcp_serves_every_operation() {
    let embedded = EmbeddedOptions { fabric: EmbeddedFabric::Tcp, ..EmbeddedOptions::default() };
    let options = options(embedded);
    let report = measure(&options).unwrap();
    check(&report, &options);
    assert_eq!(report.settings.fabric, "tcp");
}

#[test]
fn changes_that_take_too_long_end_early_and_the_others_find_all_files() {
    let mut options = options(EmbeddedOptions::default());
    // Many directories, so that each listing is short.
    (options.directories, options.files) = (400, 80_000);
    options.depths = vec![2];
    options.time = Duration::from_millis(100);
    let report = measure(&options).unwrap();
    check(&report, &options);
    for result in report.results.iter().filter(|result| result.operation.is_change()) {
        assert!(result.operations < u64::from(options.files), "{result:?}");
    }
}

#[test]
fn a_choice_of_operations_runs_in_the_order_of_a_files_life_as_often_as_asked() {
    for operations in [vec![Unlink, Stat], vec![Readdir], vec![Rename, Open]] {
        let mut options = options(EmbeddedOptions::default());
        options.operations = operations;
        options.depths = vec![4];
        options.repeat = 3;
        let report = measure(&options).unwrap();
        check(&report, &options);
    }
}

#[test]
fn mistakes_and_absent_places_are_told_with_their_option() {
    let refused = |change: &dyn Fn(&mut MetadataOptions)| {
        let mut options = options(EmbeddedOptions::default());
        change(&mut options);
        measure(&options).unwrap_err()
    };
    for ceilings in [true, false] {
        let error = refused(&|options| {
            let log = LogPlace::Directory(PathBuf::from("/no/such/directory"));
            options.server =
                Server::Embedded(EmbeddedOptions { log, ..EmbeddedOptions::default() });
            options.ceilings = ceilings;
        });
        assert!(error.to_string().starts_with("--metadata-log: "), "{error}");
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
        assert!(error.is_usage());
    }
    let error = refused(&|options| options.files = 1);
    assert!(error.to_string().starts_with("--files: 1 is not between 2"), "{error}");
    let error = refused(&|options| options.core = Some(100_000));
    assert!(matches!(error, PerfError::Core(_)), "{error}");
    let error = refused(&|options| options.prefix = "/no/such/place".to_owned());
    assert!(error.to_string().contains("/no/such/place"), "{error}");
}
