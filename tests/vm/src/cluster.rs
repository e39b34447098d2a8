//! Clusters of `gannet` processes over the guest's device.

use std::time::Duration;

use gannet_integration::cluster::{Cluster, ClusterOptions, Network, Stats, Store};

use crate::guest;
use crate::resources::Resources;
use crate::wait;

/// Where the metadata server listens; the data servers are on the ports behind it.
pub const PORT: u16 = 7600;
/// Reactors of the metadata server.
pub const REACTORS: u32 = 2;
/// Longer than any outage that these tests make: a write whose session is lost fails.
const LEASE: Duration = Duration::from_secs(30);
/// The lease for tests of what a dead host leaves behind.
pub const LEASE_SHORT: Duration = Duration::from_millis(500);
/// How long servers may take to give back what a host had, its lease included.
const CLEAN_UP_MAX: Duration = Duration::from_secs(60);

/// Over the guest's device: two reactors, two data servers with these stores.
#[must_use]
pub fn options(stores: Vec<Store>) -> ClusterOptions {
    let host = guest::own_address().to_string();
    ClusterOptions {
        reactors: REACTORS,
        targets: stores.len(),
        stores,
        store_size: "96M",
        lease: LEASE,
        network: Network::Rdma { host, port: PORT, trusted_hosts: Vec::new() },
        ..ClusterOptions::default()
    }
}

/// Payload that the data servers have moved so far, over all ways.
#[must_use]
pub fn moved_bytes(stats: &Stats) -> u64 {
    ["bytes_direct", "bytes_copied", "bytes_bounced", "bytes_ram"]
        .iter()
        .map(|way| stats.targets(way))
        .sum()
}

/// Arguments for a host that keeps 32 requests outstanding until it is killed.
#[must_use]
pub fn endless_perf<'a>(file: &'a str, workload: &'a str, protection: &'a str) -> Vec<&'a str> {
    let fixed = "perf --no-ceilings --core any --server-core any --size 8M --block-size 64K --depth 32 \
                 --warm-up 0s --time 10m";
    let chosen = ["--file", file, "--workload", workload, "--protection", protection];
    fixed.split(' ').chain(chosen).collect()
}

/// What the servers hold for hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    sessions: u64,
    grants: u64,
    operations: u64,
    resources: Resources,
}

impl Held {
    /// Of the device.
    #[must_use]
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// What they hold now. The command that asks has a session itself, which counts.
    ///
    /// # Panics
    /// If the servers do not answer.
    #[must_use]
    pub fn now(cluster: &Cluster) -> Held {
        let stats = cluster.stats();
        Held {
            sessions: stats.metaserver("sessions"),
            grants: stats.metaserver("live_grants"),
            operations: stats.metaserver("live_operations"),
            resources: Resources::now(),
        }
    }

    /// Waits until the servers hold the session of one host, the command's own, at each
    /// reactor, and nothing changes any more.
    ///
    /// # Panics
    /// If that does not come.
    #[must_use]
    pub fn at_rest(cluster: &Cluster) -> Held {
        let mut last = Held::now(cluster);
        wait::until("the servers to come to rest", CLEAN_UP_MAX, || {
            let former = std::mem::replace(&mut last, Held::now(cluster));
            former == last && last.sessions == u64::from(REACTORS) && last.grants == 0
        });
        last
    }

    /// Waits until the servers hold no more than this.
    ///
    /// # Panics
    /// With what is too much, if that does not come.
    pub fn wait_within(&self, cluster: &Cluster) {
        let mut last = None;
        let within = wait::holds_within(CLEAN_UP_MAX, || {
            let now = Held::now(cluster);
            let within = now.sessions <= self.sessions
                && now.grants <= self.grants
                && now.operations <= self.operations
                && now.resources.is_within(&self.resources);
            last = Some(now);
            within
        });
        assert!(within, "more than {self:?}: {last:?}");
    }
}
