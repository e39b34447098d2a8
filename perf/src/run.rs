//! One run from the options to the report.
//!
//! Every workload gets a new file, and an embedded one a new file system: random writes scatter a
//! file's blocks, and what a workload finds should not depend on the one before it.

use std::time::Duration;

use gannet_fabric::Fabric;
use gannet_fabric::any::AnyFabric;
use gannet_runtime::reactor::pin_to_core;

use crate::ceilings::Ceilings;
use crate::content::Content;
use crate::embedded::Embedded;
use crate::error::PerfError;
use crate::host::{Host, HostSettings, SWEEP_DEPTH, WorkFile};
use crate::machine::Machine;
use crate::options::{PerfOptions, Server, WorkloadKind};
use crate::report::{Build, Measurement, Report, SCHEMA, Settings};
use crate::workload::{Observed, Workload};

/// What a run is doing, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It measures what the machine itself can do.
    Ceilings,
    /// It makes and fills the file.
    Filling,
    /// It measures a workload at a depth.
    Measuring(WorkloadKind, u32),
}

/// Measures what the options ask for, and tells `progress` of each step. The measuring happens on a
/// thread of its own, so that the caller's stays where it is.
///
/// # Errors
/// Everything of [`PerfError`]. Nothing is left behind but, after a failure at a running server,
/// perhaps the file.
pub fn run(
    options: &PerfOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, PerfError> {
    options.check()?;
    // Before anything is pinned: a pinned thread sees one core.
    let machine = Machine::of_this_process();
    on_a_thread("gannet-perf", || measure(options, machine, progress))
}

/// Does `work` on a thread of its own, which it may pin.
pub(crate) fn on_a_thread<T: Send>(
    name: &str,
    work: impl FnOnce() -> Result<T, PerfError> + Send,
) -> Result<T, PerfError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let working = thread.spawn_scoped(scope, work);
        let working = working.map_err(PerfError::system("starting a thread"))?;
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(
    options: &PerfOptions,
    machine: Machine,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, PerfError> {
    let mut ceilings = None;
    if options.ceilings {
        progress(Progress::Ceilings);
        ceilings = Some(Ceilings::measure(options)?);
    }
    if let Some(core) = options.core {
        pin_to_core(core)?;
    }
    let mut results = Vec::new();
    for (index, kind) in options.workloads.iter().enumerate() {
        // Left for whoever asked for it, but not in the way of the next workload.
        let keep = options.keep && index + 1 == options.workloads.len();
        results.extend(match &options.server {
            Server::Running(address) => {
                let mut host = Host::connect(&host_settings(options), address, None)?;
                workload(options, *kind, keep, &mut host, None, progress)?
            }
            Server::Embedded(embedded) => {
                let server = Embedded::start(embedded, options.server_core)?;
                embedded_workload(options, *kind, server, progress)?
            }
        });
    }
    if let Some(ceilings) = &mut ceilings {
        progress(Progress::Ceilings);
        ceilings.merge(&Ceilings::measure(options)?);
        results.iter_mut().for_each(|result| result.relate(ceilings));
    }
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        build: Build::current(),
        machine,
        settings: Settings::of(options),
        ceilings,
        results,
        warnings: Vec::new(),
    };
    report.judge();
    Ok(report)
}

/// Runs a workload against an embedded server, and ends it.
fn embedded_workload(
    options: &PerfOptions,
    kind: WorkloadKind,
    server: Embedded,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<Measurement>, PerfError> {
    against_embedded(server, &host_settings(options), |host, busy| {
        workload(options, kind, false, host, Some(busy), progress)
    })
}

/// Does `work` with a client of an embedded server, tells it how long the server has been busy, and
/// ends both.
pub(crate) fn against_embedded<T>(
    server: Embedded,
    settings: &HostSettings,
    work: impl FnOnce(&mut Host<AnyFabric>, &dyn Fn() -> Duration) -> Result<T, PerfError>,
) -> Result<T, PerfError> {
    let host = Host::connect(settings, server.address(), Some(server.stop_flag().clone()));
    let busy = || server.busy();
    // The client ends before the server does.
    let done = host.and_then(|mut host| work(&mut host, &busy));
    match (done, server.stop()) {
        (done, Ok(())) => done,
        // A server that gave up explains what the client saw of it.
        (_, Err(error)) => Err(error),
    }
}

fn host_settings(options: &PerfOptions) -> HostSettings {
    let depth_max = options.depths.iter().copied().max().unwrap_or(1).max(SWEEP_DEPTH);
    HostSettings {
        requests_max: depth_max as usize,
        complete_by_metaserver: options.complete_by_metaserver,
        protection: options.protection,
        fabrics: options.server.fabrics(options.fabrics),
        tcp: options.tcp.clone(),
        idle: options.idle,
    }
}

/// Runs a workload at every depth on a file made for it.
fn workload<F: Fabric>(
    options: &PerfOptions,
    kind: WorkloadKind,
    keep: bool,
    host: &mut Host<F>,
    busy: Option<&dyn Fn() -> Duration>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<Measurement>, PerfError> {
    progress(Progress::Filling);
    let file = host.create(options)?;
    let mut content = Content::new(options.seed, options.size_bytes);
    host.fill(&file, &content)?;
    if kind.is_write() {
        // Writes go to fresh blocks: once more, so that memory which nobody ever touched, and the
        // kernel's work to provide it, is not what is measured.
        host.fill(&file, &content)?;
    }
    let mut results = Vec::new();
    for depth in &options.depths {
        progress(Progress::Measuring(kind, *depth));
        let workload = Workload::new(options, kind, *depth);
        results.push(measurement(&workload, host, &file, &mut content, busy)?);
    }
    if !keep {
        host.remove(&file)?;
    }
    Ok(results)
}

fn measurement<F: Fabric>(
    workload: &Workload,
    host: &mut Host<F>,
    file: &WorkFile,
    content: &mut Content,
    busy: Option<&dyn Fn() -> Duration>,
) -> Result<Measurement, PerfError> {
    let mut busy_at = Vec::with_capacity(2);
    let observed = workload.run(host, file, content, || busy_at.extend(busy.map(|busy| busy())))?;
    let Observed { elapsed, operations, latency, verified_units, cpu_share, .. } = observed;
    let seconds = elapsed.as_secs_f64();
    if operations == 0 {
        let (workload, depth) = (workload.kind.name(), workload.depth);
        return Err(PerfError::Nothing { workload, depth, seconds });
    }
    let per_operation_ns = |time: Duration| time.as_nanos() as f64 / operations as f64;
    let server_busy = match busy_at[..] {
        [before, after] => Some(per_operation_ns(after.saturating_sub(before))),
        _ => None,
    };
    Ok(Measurement {
        workload: workload.kind,
        block_bytes: workload.block_bytes as usize,
        depth: workload.depth,
        seconds,
        operations,
        operations_per_second: operations as f64 / seconds,
        bytes_per_second: operations as f64 * f64::from(workload.block_bytes) / seconds,
        latency,
        verified_units,
        server_busy_ns_per_operation: server_busy,
        client_busy_ns_per_operation: per_operation_ns(observed.busy),
        client_cpu_share: cpu_share,
        share_of_copy: None,
        latency_floor_ns: None,
        share_of_latency_floor: None,
        latency_in_tcp_round_trips: None,
        share_of_tcp_echo: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_runtime::idle::IdlePolicy;

    use super::*;
    use crate::options::EmbeddedOptions;

    /// A log that is full is the end of a metadata server; the run ends with its words, soon.
    #[test]
    fn a_server_that_gives_up_ends_the_run_and_says_why() {
        let embedded = EmbeddedOptions::default();
        let mut options = PerfOptions::new(Server::Embedded(embedded.clone()));
        (options.core, options.server_core) = (None, None);
        options.size_bytes = 4 << 20;
        options.depths = vec![1];
        options.time = Duration::from_secs(600);
        let server = Embedded::start_with_log(&embedded, None, IdlePolicy::Spin, 1 << 20).unwrap();
        let kind = WorkloadKind::RandomWrite;
        let error = embedded_workload(&options, kind, server, &mut |_| {}).unwrap_err();
        assert!(matches!(error, PerfError::Embedded(_)), "{error}");
        assert!(error.to_string().contains("log cannot grow"), "{error}");
    }
}
