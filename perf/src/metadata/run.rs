//! One run over names, from the options to the report.
//!
//! Each depth of each repetition gets new directories, and an embedded one a new file system: what an
//! operation finds should not depend on how often others were measured before. Repetitions are the
//! outer loop, so that whatever changes in the course of a run meets all depths and operations alike.

use std::time::Duration;

use gannet_client::{Operation, Outcome};
use gannet_fabric::Fabric;
use gannet_runtime::reactor::pin_to_core;
use gannet_runtime::time::Time;

use super::ceilings::MetadataCeilings;
use super::counters::ServerCounters;
use super::options::{MetadataOperation, MetadataOptions};
use super::phase::{Observed, Phase};
use super::report::{LogUse, MetadataReport, MetadataSettings, OperationResult, SCHEMA};
use super::tree::{SETUP_DEPTH, Tree};
use crate::embedded::Embedded;
use crate::error::PerfError;
use crate::host::{Host, HostSettings, request, unexpected};
use crate::machine::Machine;
use crate::options::Server;
use crate::report::Build;
use crate::run::{against_embedded, on_a_thread};

/// How long the data server of an embedded server may take to join it.
const JOIN_TIME_MAX: Duration = Duration::from_secs(30);

/// What a run is doing, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataProgress {
    /// It measures what the machine itself can do.
    Ceilings,
    /// It makes directories.
    Making,
    /// It measures an operation at a depth.
    Measuring {
        /// The operation.
        operation: MetadataOperation,
        /// Operations outstanding.
        depth: u32,
        /// For the how manieth time, from 1.
        run: u32,
    },
    /// It removes what it made.
    Removing,
}

/// How a run tells its steps.
type Tell<'a> = dyn FnMut(MetadataProgress) + Send + 'a;

/// Measures what the options ask for, and tells `progress` of each step. The measuring happens on a
/// thread of its own, so that the caller's stays where it is.
///
/// # Errors
/// Everything of [`PerfError`]. What a run made is removed first; if that fails too, the error is
/// [`PerfError::LeftBehind`].
pub fn run(
    options: &MetadataOptions,
    progress: &mut Tell<'_>,
) -> Result<MetadataReport, PerfError> {
    options.check()?;
    // Before anything is pinned: a pinned thread sees one core.
    let machine = Machine::of_this_process();
    on_a_thread("gannet-perf", || measure(options, machine, progress))
}

fn measure(
    options: &MetadataOptions,
    machine: Machine,
    progress: &mut Tell<'_>,
) -> Result<MetadataReport, PerfError> {
    let mut ceilings = None;
    if options.ceilings {
        progress(MetadataProgress::Ceilings);
        ceilings = Some(MetadataCeilings::measure(options)?);
    }
    if let Some(core) = options.core {
        pin_to_core(core)?;
    }
    let mut found = Findings::default();
    for run in 1..=options.repeat {
        for depth in &options.depths {
            let round = Round { options, depth: *depth, run };
            found.add(round.measure(progress)?);
        }
    }
    let mut results = found.medians();
    if let Some(ceilings) = &mut ceilings {
        progress(MetadataProgress::Ceilings);
        ceilings.merge(&MetadataCeilings::measure(options)?);
        results.iter_mut().for_each(|result| result.relate(ceilings));
    }
    let mut report = MetadataReport {
        schema: SCHEMA.to_owned(),
        build: Build::current(),
        machine,
        settings: MetadataSettings::of(options, found.reactors),
        ceilings,
        results,
        warnings: Vec::new(),
    };
    report.judge();
    Ok(report)
}

/// Results of all rounds so far.
#[derive(Default)]
struct Findings {
    reactors: u16,
    /// By operation and depth, in the order of measurement.
    runs: Vec<Vec<OperationResult>>,
}

impl Findings {
    fn add(&mut self, (reactors, results): (u16, Vec<OperationResult>)) {
        self.reactors = self.reactors.max(reactors);
        for result in results {
            let of_the_same = self.runs.iter_mut().find(|runs| {
                let known = &runs[0];
                (known.operation, known.depth) == (result.operation, result.depth)
            });
            match of_the_same {
                Some(runs) => runs.push(result),
                None => self.runs.push(vec![result]),
            }
        }
    }

    fn medians(&mut self) -> Vec<OperationResult> {
        self.runs.drain(..).filter_map(OperationResult::median).collect()
    }
}

/// All operations at one depth, on directories made for it.
struct Round<'a> {
    options: &'a MetadataOptions,
    depth: u32,
    run: u32,
}

/// How long an embedded server has been busy.
type Busy<'a> = Option<&'a dyn Fn() -> Duration>;

impl Round<'_> {
    /// Returns the number of the metadata server's reactors, too.
    fn measure(&self, progress: &mut Tell<'_>) -> Result<(u16, Vec<OperationResult>), PerfError> {
        let settings = self.host_settings();
        match &self.options.server {
            Server::Running(address) => {
                let mut host = Host::connect(&settings, address, None)?;
                let results = self.with_tree(&mut host, None, progress)?;
                Ok((host.client.reactors(), results))
            }
            Server::Embedded(embedded) => {
                let (core, idle) = (self.options.server_core, self.options.idle);
                let server = Embedded::start_waiting(embedded, core, idle)?;
                against_embedded(server, &settings, |host, busy| {
                    await_data_server(host)?;
                    let results = self.with_tree(host, Some(busy), progress)?;
                    Ok((host.client.reactors(), results))
                })
            }
        }
    }

    fn host_settings(&self) -> HostSettings {
        let options = self.options;
        HostSettings {
            requests_max: self.depth.max(SETUP_DEPTH) as usize,
            fabrics: options.server.fabrics(options.fabrics),
            tcp: options.tcp.clone(),
            idle: options.idle,
            ..HostSettings::default()
        }
    }

    /// Makes the directories, measures, and removes them, whatever came in between.
    fn with_tree<F: Fabric>(
        &self,
        host: &mut Host<F>,
        busy: Busy<'_>,
        progress: &mut Tell<'_>,
    ) -> Result<Vec<OperationResult>, PerfError> {
        progress(MetadataProgress::Making);
        let mut tree = Tree::find(host, self.options)?;
        let made = tree.make(host);
        let measured = made.and_then(|()| self.operations(host, &tree, busy, progress));
        match measured {
            // Nobody is there who could remove anything.
            Err(error @ PerfError::Embedded(_)) => return Err(error),
            Err(error @ PerfError::Stalled { .. }) => {
                let reason = "the server does not answer";
                return Err(error.leaving_behind(&self.options.prefix, reason));
            }
            Ok(_) | Err(_) => {}
        }
        progress(MetadataProgress::Removing);
        let removed = host.abandon().and_then(|()| tree.remove(host));
        match (measured, removed) {
            (Ok(results), Ok(())) => Ok(results),
            (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            (Err(error), Err(why)) => {
                Err(error.leaving_behind(&self.options.prefix, &why.to_string()))
            }
        }
    }

    fn operations<F: Fabric>(
        &self,
        host: &mut Host<F>,
        tree: &Tree,
        busy: Busy<'_>,
        progress: &mut Tell<'_>,
    ) -> Result<Vec<OperationResult>, PerfError> {
        let options = self.options;
        let mut renamed = 0;
        let mut results = Vec::with_capacity(options.operations.len());
        for operation in MetadataOperation::ALL {
            let mut changed = 0;
            if options.measures(operation) {
                let run = self.run;
                progress(MetadataProgress::Measuring { operation, depth: self.depth, run });
                let phase = Phase::new(options, operation, self.depth, renamed);
                let (result, reached) = self.operation(&phase, host, tree, busy)?;
                results.push(result);
                changed = reached;
            }
            match operation {
                // The others need all files.
                MetadataOperation::Create => {
                    Phase::filling(options, changed).run(host, tree, || {})?;
                }
                MetadataOperation::Rename => renamed = changed,
                // What is left of the files is removed with their directories.
                _ => {}
            }
        }
        Ok(results)
    }

    /// Returns how many files were changed, too.
    fn operation<F: Fabric>(
        &self,
        phase: &Phase,
        host: &mut Host<F>,
        tree: &Tree,
        busy: Busy<'_>,
    ) -> Result<(OperationResult, u32), PerfError> {
        let before = ServerCounters::ask(host)?;
        let mut busy_at = Vec::with_capacity(2);
        let observed = phase.run(host, tree, || busy_at.extend(busy.map(|busy| busy())))?;
        let after = ServerCounters::ask(host)?;
        if observed.operations == 0 {
            let (workload, depth) = (phase.operation.name(), phase.depth);
            let seconds = observed.elapsed.as_secs_f64();
            return Err(PerfError::Nothing { workload, depth, seconds });
        }
        let per = |time: Duration, operations: u64| time.as_nanos() as f64 / operations as f64;
        let server_busy = match busy_at[..] {
            [before, after] => Some(per(after.saturating_sub(before), observed.operations)),
            _ => after.busy_since(&before).map(|busy| per(busy, observed.operations_in_all)),
        };
        let log = log_use(phase, &observed, &before, &after);
        Ok((result(phase, &observed, server_busy, log), observed.changed))
    }
}

/// Asks until the data server of an embedded server has joined: files that are made before have no
/// stores yet, and what its joining costs is nobody's operation.
fn await_data_server<F: Fabric>(host: &mut Host<F>) -> Result<(), PerfError> {
    const WHAT: &str = "asking for the data servers of";
    const WHOM: &str = "the metadata server";
    let end = Time::monotonic() + JOIN_TIME_MAX;
    while Time::monotonic() < end {
        let answer = host.call(Operation::StatFs { reactor: 0 })?;
        match answer.map_err(|error| request(WHAT, WHOM, error))? {
            Outcome::Space(space) if space.targets > 0 => return Ok(()),
            Outcome::Space(_) => {}
            _ => return Err(unexpected(WHAT, WHOM)),
        }
    }
    Err(PerfError::Embedded("its data server does not join it".to_owned()))
}

fn result(
    phase: &Phase,
    observed: &Observed,
    server_busy_ns_per_operation: Option<f64>,
    log: Option<LogUse>,
) -> OperationResult {
    let seconds = observed.elapsed.as_secs_f64();
    let operations = observed.operations as f64;
    let lists = phase.operation == MetadataOperation::Readdir;
    OperationResult {
        operation: phase.operation,
        depth: phase.depth,
        seconds,
        operations: observed.operations,
        operations_per_second: operations / seconds,
        operations_per_second_of_runs: Vec::new(),
        entries_per_second: lists.then_some(observed.entries as f64 / seconds),
        requests_per_operation: observed.requests_in_all as f64 / observed.operations_in_all as f64,
        latency: observed.latency,
        server_busy_ns_per_operation,
        client_busy_ns_per_operation: observed.busy.as_nanos() as f64 / operations,
        client_cpu_share: observed.cpu_share,
        log,
        share_of_tmpfs: None,
        share_of_group_commit: None,
    }
}

/// What a change cost the log.
fn log_use(
    phase: &Phase,
    observed: &Observed,
    before: &ServerCounters,
    after: &ServerCounters,
) -> Option<LogUse> {
    let groups = after.log_frames.saturating_sub(before.log_frames);
    let bytes = after.log_bytes.saturating_sub(before.log_bytes);
    let operations_per_group = observed.operations as f64 / groups as f64;
    (phase.operation.is_change() && groups > 0).then_some(LogUse {
        groups,
        bytes,
        operations_per_group,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_client::Ownership;
    use gannet_metaserver::log::frame;
    use gannet_proto::{Handle, Inode};

    use super::*;
    use crate::metadata::ceilings::group_commit::record_bytes;
    use crate::options::{EmbeddedOptions, LogPlace};

    const FILES: u32 = 40;

    fn options(embedded: EmbeddedOptions) -> MetadataOptions {
        let mut options = MetadataOptions::new(Server::Embedded(embedded));
        (options.core, options.server_core) = (None, None);
        (options.files, options.directories) = (FILES, 4);
        options.ceilings = false;
        options
    }

    /// The records of a log as bytes, in order.
    fn records(log: &[u8]) -> Vec<Vec<u8>> {
        // The first frame lies behind the superblock.
        let (mut at, mut position) = (frame::FRAME_ALIGNMENT, frame::Position::default());
        let mut found = Vec::new();
        let uuid: [u8; 16] = log[40..56].try_into().unwrap();
        while let frame::Verdict::Next { position: next, padded_bytes, payload_bytes } =
            frame::judge(&log[at..], position, uuid)
        {
            let payload = &log[at + frame::HEADER_BYTES..][..payload_bytes];
            found.extend(frame::records(payload).map(|record| record.unwrap().to_vec()));
            (at, position) = (at + padded_bytes, next);
        }
        found
    }

    /// The sizes that the ceilings assume are those of the records that a server writes.
    #[test]
    fn records_have_the_size_that_the_ceilings_assume() {
        let place = tempfile::tempdir().unwrap();
        let log = LogPlace::Directory(place.path().to_path_buf());
        let embedded = EmbeddedOptions { log, ..EmbeddedOptions::default() };
        let options = options(embedded.clone());
        let server = Embedded::start(&embedded, None).unwrap();
        let path = server.log_directory().unwrap().join("log.0");
        let round = Round { options: &options, depth: 8, run: 1 };
        let records = against_embedded(server, &round.host_settings(), |host, busy| {
            await_data_server(host)?;
            round.with_tree(host, Some(busy), &mut |_| {})?;
            Ok(records(&std::fs::read(&path).unwrap()))
        });
        let records = records.unwrap();
        use MetadataOperation::{Create, Rename, Unlink};
        for (operation, kind) in [(Create, 1_u16), (Rename, 6), (Unlink, 4)] {
            let expected = record_bytes(operation).unwrap() - 4;
            let found = records
                .iter()
                .filter(|record| record[4..6] == kind.to_le_bytes() && record.len() == expected);
            assert_eq!(found.count() as u32, FILES, "{operation}: records of {expected} bytes");
        }
    }

    /// A server that is there already tells of itself by its counters only, and is left as it was.
    #[test]
    fn a_running_server_is_left_as_it_was() {
        let embedded = EmbeddedOptions::default();
        let server = Embedded::start(&embedded, None).unwrap();
        let mut options = options(embedded);
        let address = server.address().clone();
        options.server = Server::Running(address.clone());
        options.operations = vec![MetadataOperation::Create, MetadataOperation::Rename];
        options.depths = vec![1, 4];
        options.repeat = 2;
        let done = against_embedded(server, &HostSettings::default(), |host, _| {
            let report = measure(&options, Machine::default(), &mut |_| {})?;
            Ok((report, names_in_root(host)))
        });
        let (report, names) = done.unwrap();
        assert_eq!(names, Vec::<String>::new());
        assert_eq!(report.settings.server, Some(address.to_string()));
        assert_eq!(report.results.len(), 4);
        for result in &report.results {
            assert_eq!(result.operations, u64::from(FILES));
            assert_eq!(result.operations_per_second_of_runs.len(), 2);
            assert!(result.log.is_some(), "{result:?}");
            assert_eq!(result.server_busy_ns_per_operation, None, "it tells of no thread");
        }
    }

    /// Names in the root.
    fn names_in_root<F: Fabric>(host: &mut Host<F>) -> Vec<String> {
        let directory = Handle::new(Inode::ROOT);
        let listed = host.call(Operation::Readdir { directory, after: Vec::new() });
        let Ok(Ok(Outcome::Directory(listing))) = listed else { panic!("no listing: {listed:?}") };
        let names = listing.entries.into_iter().map(|entry| String::from_utf8(entry.name));
        names.map(|name| name.unwrap()).collect()
    }

    /// What the run made goes, and nothing else, whatever made it fail: here another client, which
    /// uses a directory's name first, and then a file's.
    #[test]
    fn a_run_that_fails_removes_what_it_made() {
        let embedded = EmbeddedOptions::default();
        let options = options(embedded.clone());
        let server = Embedded::start(&embedded, None).unwrap();
        let address = server.address().clone();
        let round = Round { options: &options, depth: 8, run: 1 };
        let settings = round.host_settings();
        let other = |path: &str, operation: fn(Handle, Vec<u8>) -> Operation| {
            let mut other = Host::connect(&settings, &address, None).unwrap();
            let (parent, name) = other.place(path).unwrap();
            other.call(operation(parent, name)).unwrap().unwrap();
        };
        let mkdir =
            |parent, name| Operation::Mkdir { parent, name, ownership: Ownership::default() };
        let create = |parent, name| {
            let ownership = Ownership::default();
            Operation::Create { parent, name, ownership, exclusive: true }
        };
        let done = against_embedded(server, &settings, |host, busy| {
            let mut hinder = |step: MetadataProgress| {
                if step == MetadataProgress::Making {
                    other("/perf-metadata-002", mkdir);
                }
            };
            let error = round.with_tree(host, Some(busy), &mut hinder).unwrap_err();
            assert!(matches!(error, PerfError::DirectoryExists { .. }), "{error}");
            assert!(error.to_string().contains("/perf-metadata-002"), "{error}");
            assert_eq!(names_in_root(host), ["perf-metadata-002"]);
            other("/perf-metadata-002", |parent, name| Operation::Rmdir { parent, name });

            let mut hinder = |step: MetadataProgress| {
                if matches!(step, MetadataProgress::Measuring { .. }) {
                    // One of the first, so that many are outstanding.
                    other("/perf-metadata-002/f0000006", create);
                }
            };
            let error = round.with_tree(host, Some(busy), &mut hinder).unwrap_err();
            assert!(matches!(error, PerfError::Request { .. }), "{error}");
            assert!(error.to_string().contains("/perf-metadata-002"), "{error}");
            Ok(names_in_root(host))
        });
        assert_eq!(done.unwrap(), Vec::<String>::new());
    }
}
