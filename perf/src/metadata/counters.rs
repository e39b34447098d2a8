//! What the metadata server's reactors have counted, asked for before and after a phase.

use std::collections::BTreeMap;
use std::time::Duration;

use gannet_client::{Operation, Outcome, Role};
use gannet_fabric::Fabric;

use crate::error::PerfError;
use crate::host::{Host, request, unexpected};

/// Counters of all reactors of a metadata server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerCounters {
    /// Group commits.
    pub(crate) log_frames: u64,
    /// Bytes of group commits, each padded to blocks.
    pub(crate) log_bytes: u64,
    /// Time in turns with work by thread, nanoseconds; empty where the server tells of none.
    busy_ns: BTreeMap<u64, u64>,
}

impl ServerCounters {
    /// Asks all reactors, with nothing else outstanding.
    pub(crate) fn ask<F: Fabric>(host: &mut Host<F>) -> Result<ServerCounters, PerfError> {
        const WHAT: &str = "asking for the counters of";
        const WHOM: &str = "the metadata server";
        let mut counters = ServerCounters::default();
        for reactor in 0..host.client.reactors() {
            let answer = host.call(Operation::Stats { reactor, targets: false })?;
            let answer = answer.map_err(|error| request(WHAT, WHOM, error))?;
            let Outcome::Counters(roles) = answer else { return Err(unexpected(WHAT, WHOM)) };
            for role in roles.iter().filter(|role| matches!(role.role, Role::Metaserver(_))) {
                counters.add(&role.values);
            }
        }
        Ok(counters)
    }

    fn add(&mut self, values: &[(String, u64)]) {
        let value =
            |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        self.log_frames += value("log_frames").unwrap_or_default();
        self.log_bytes += value("log_bytes").unwrap_or_default();
        // Roles on one thread report the same one.
        if let (Some(thread), Some(busy_ns)) = (value("reactor_thread"), value("reactor_busy_ns")) {
            let known = self.busy_ns.entry(thread).or_default();
            *known = busy_ns.max(*known);
        }
    }

    /// Time that all threads have spent in turns with work since `before`.
    pub(crate) fn busy_since(&self, before: &ServerCounters) -> Option<Duration> {
        let since = |(thread, busy_ns): (&u64, &u64)| {
            busy_ns.saturating_sub(before.busy_ns.get(thread).copied().unwrap_or_default())
        };
        let busy_ns = self.busy_ns.iter().map(since).sum();
        (!self.busy_ns.is_empty()).then(|| Duration::from_nanos(busy_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reactor(thread: u64, busy_ns: u64, frames: u64) -> Vec<(String, u64)> {
        let values =
            [("reactor_thread", thread), ("reactor_busy_ns", busy_ns), ("log_frames", frames)];
        values.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    #[test]
    fn a_thread_counts_once_however_many_reactors_it_runs() {
        let mut before = ServerCounters::default();
        before.add(&reactor(7, 1000, 1));
        let mut after = ServerCounters::default();
        after.add(&reactor(7, 5000, 2));
        after.add(&reactor(7, 5010, 3));
        after.add(&reactor(8, 300, 4));
        assert_eq!(after.busy_since(&before), Some(Duration::from_nanos(4010 + 300)));
        assert_eq!(after.log_frames, 9);
        let silent = ServerCounters::default();
        assert_eq!(silent.busy_since(&silent), None, "a server that tells of no thread");
    }
}
