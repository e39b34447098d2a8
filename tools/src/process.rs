//! A process that runs roles on reactors until it is told to stop or a role fails.
//!
//! The main thread starts the reactors, then blocks until a signal, a report of a role or the end of
//! a reactor. Whatever ends it, all reactors come to an orderly end first.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use gannet_fabric::Address;
use gannet_runtime::reactor::{NamedPollers, ReactorOptions};
use gannet_runtime::spawn::{ReactorHandle, SpawnError, spawn};
use gannet_runtime::stats::ReactorStats;
use gannet_runtime::stop::StopFlag;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::roles::RolePlan;
use crate::watch::{Report, Watch};

/// The counters of a reactor, for the roles on it: they are built before the reactor is.
pub(crate) type LateStats = Arc<OnceLock<Arc<ReactorStats>>>;

/// A process and its reactors.
pub(crate) struct Process {
    stop: StopFlag,
    watch: Watch,
    reactors: Vec<ReactorHandle>,
    roles: usize,
}

impl Process {
    /// A process without reactors, which SIGTERM and SIGINT end from now on.
    ///
    /// # Errors
    /// When the operating system has no descriptors to give.
    pub(crate) fn new() -> Result<Process, Failure> {
        let system = |error: std::io::Error| Failure::operation(format!("starting: {error}"));
        let stop = StopFlag::new().map_err(system)?;
        stop.stop_on_signals().map_err(system)?;
        let watch = Watch::new().map_err(system)?;
        Ok(Process { stop, watch, reactors: Vec::new(), roles: 0 })
    }

    /// Starts a reactor with these roles, polled in this order.
    ///
    /// # Errors
    /// Why a role could not be built, with all earlier reactors ended.
    pub(crate) fn start(
        &mut self,
        options: ReactorOptions,
        plans: Vec<RolePlan>,
    ) -> Result<(), Failure> {
        self.roles += plans.len();
        let late = LateStats::default();
        let (watch, stats) = (self.watch.clone(), Arc::clone(&late));
        let build = move || -> Result<NamedPollers, Failure> {
            plans.into_iter().map(|plan| plan.build(&watch, &stats)).collect()
        };
        match spawn(options, self.stop.clone(), build) {
            Ok(handle) => {
                // Set once, right here: the cell is this call's own.
                let _first = late.set(Arc::clone(handle.stats()));
                self.reactors.push(handle);
                Ok(())
            }
            Err(error) => {
                self.stop.stop();
                self.join(None)?;
                Err(match error {
                    SpawnError::Build { source, .. } => source,
                    SpawnError::Core { .. } => Failure::usage(error),
                    SpawnError::Thread { .. } | SpawnError::Panicked(_) => {
                        Failure::operation(error)
                    }
                })
            }
        }
    }

    /// Calls `when_ready` once all roles serve, and returns when the process shall end.
    ///
    /// # Errors
    /// Why a role failed, or what `when_ready` returned.
    pub(crate) fn run(
        mut self,
        when_ready: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut when_ready = Some(when_ready);
        let mut ready = 0;
        let mut failure = None;
        while !self.stop.is_stopped() {
            wait_readable(&[self.stop.wake_descriptor(), self.watch.descriptor()])?;
            for report in self.watch.take() {
                match report {
                    Report::Ready { role } => {
                        tracing::info!(role, "serves");
                        ready += 1;
                    }
                    Report::Failed { role, reason } => {
                        tracing::error!(role, reason, "cannot go on");
                        let message = format!("{role} cannot go on: {reason}");
                        failure.get_or_insert(Failure::operation(message));
                    }
                }
            }
            if failure.is_none()
                && ready == self.roles
                && let Some(when_ready) = when_ready.take()
            {
                failure = when_ready().err();
            }
            if failure.is_some() {
                self.stop.stop();
            }
        }
        self.join(failure)
    }

    /// Waits for the reactors, and reports the first failure.
    fn join(&mut self, mut failure: Option<Failure>) -> Result<(), Failure> {
        for handle in self.reactors.drain(..) {
            let name = handle.name().to_owned();
            match handle.join() {
                Ok(report) if report.clean => tracing::info!(reactor = name, "ended"),
                Ok(report) => {
                    let unfinished = report.unfinished.join(", ");
                    tracing::warn!(reactor = name, unfinished, "ended before all work was done");
                }
                Err(panicked) => {
                    failure.get_or_insert(Failure::operation(panicked));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Blocks until a descriptor is readable.
fn wait_readable(descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    let mut entries: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN))
        .collect();
    loop {
        match rustix::event::poll(&mut entries, None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Failure::operation(format!("waiting: {error}"))),
        }
    }
}

/// Tells that the server at these addresses is ready: one line with the first one, after `what`, and
/// before it one line for each of the others.
///
/// # Errors
/// What writing the file returns.
pub(crate) fn ready(what: &str, listen: &[Address], file: Option<&Path>) -> Result<(), Failure> {
    let Some((first, others)) = listen.split_first() else {
        return Err(Failure::operation("the server listens nowhere"));
    };
    let mut out = std::io::stdout().lock();
    for address in others {
        // Nobody may be reading; the servers serve all the same.
        let _read = writeln!(out, "also at {address}");
    }
    drop(out);
    announce(&format!("ready: {what}{first}"), file)
}

/// Prints the ready line, and writes it to `file` in one step: whoever sees the file sees all of it.
fn announce(line: &str, file: Option<&Path>) -> Result<(), Failure> {
    if let Some(file) = file {
        let mut draft = file.as_os_str().to_owned();
        draft.push(".new");
        let draft = Path::new(&draft);
        std::fs::write(draft, format!("{line}\n"))
            .and_then(|()| std::fs::rename(draft, file))
            .map_err(|error| Failure::path("writing the ready file", file, &error))?;
    }
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; the servers serve all the same.
    let _read = writeln!(out, "{line}").and_then(|()| out.flush());
    Ok(())
}
