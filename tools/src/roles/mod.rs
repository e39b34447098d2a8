//! The server roles, from settings to pollers.
//!
//! A plan is made on the main thread and can be sent; [`RolePlan::build`] runs on the reactor's
//! thread and opens files, memory and sockets there.

mod metaserver;
mod target;

use std::path::Path;
use std::sync::Arc;

use gannet_disk::DiskError;
use gannet_disk::uring::UringOptions;
use gannet_fabric::Address;
use gannet_runtime::poller::Poller;
use gannet_target::ReactorCounters;

use crate::failure::Failure;
use crate::process::LateStats;
use crate::watch::Watch;

pub(crate) use metaserver::{LogPlace, MetaServerPlan, check_formatted};
pub(crate) use target::{TargetPlan, spec};

/// A role that is to run on a reactor.
pub(crate) enum RolePlan {
    /// One reactor's part of the metadata server.
    MetaServer(Box<MetaServerPlan>),
    /// A data server.
    Target(Box<TargetPlan>),
}

impl RolePlan {
    /// Builds the role on the calling thread, which is the one that will poll it.
    ///
    /// # Errors
    /// What cannot be opened, with the way out.
    pub(crate) fn build(
        self,
        watch: &Watch,
        stats: &LateStats,
    ) -> Result<(String, Box<dyn Poller>), Failure> {
        match self {
            RolePlan::MetaServer(plan) => plan.build(watch, stats),
            RolePlan::Target(plan) => plan.build(watch, stats),
        }
    }
}

/// Counters of the reactor that the calling thread is, by name.
fn reactor_counters(stats: &LateStats) -> ReactorCounters {
    let stats = Arc::clone(stats);
    let thread = u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
    Box::new(move |visit: &mut dyn FnMut(&str, u64)| {
        let Some(stats) = stats.get() else { return };
        let sample = stats.sample();
        visit("reactor_thread", thread);
        visit("reactor_turns", sample.turns);
        visit("reactor_busy_ns", sample.busy_ns);
        visit("reactor_idle_ns", sample.idle_ns);
        visit("reactor_sleep_ns", sample.sleep_ns);
        visit("reactor_sleeps", sample.sleeps);
        visit("reactor_work", sample.work);
    })
}

fn disk_options() -> UringOptions {
    UringOptions::default()
}

/// Refuses addresses whose socket cannot be made, before anything is opened.
fn check_directories(listen: &[Address]) -> Result<(), Failure> {
    listen.iter().try_for_each(check_directory)
}

fn check_directory(listen: &Address) -> Result<(), Failure> {
    let Address::Shm(path) = listen else { return Ok(()) };
    let parent = path.parent().unwrap_or(Path::new("/"));
    match std::fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::operation(format!(
            "listening at {listen}: {} is no directory: correct the address",
            parent.display()
        ))),
        Err(error) => {
            Err(Failure::path(&format!("listening at {listen}: its directory"), parent, &error))
        }
    }
}

fn disk_failure(error: DiskError) -> Failure {
    Failure::operation(error)
}
