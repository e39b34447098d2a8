//! Which fabric joins whom, as `gannet stats` says.

use gannet_integration::cluster::Stats;
use serde_json::Value;

use crate::site::{HOSTS, Party, Site, TARGETS};

/// Checks that all is over TCP: each of the metadata server's reactors with every data server and
/// with host 0, which asks.
///
/// # Panics
/// If somebody is not joined, or not by TCP.
pub fn check(site: &Site, stats: &Stats) {
    let from = |party: Party| site.lab().address(party.number()).to_string();
    for reactor in list(&stats.0["metaservers"]) {
        let joined = joined(reactor);
        for target in (0..TARGETS).map(Party::Target) {
            assert!(has(&joined, "target", &from(target)), "{target}: {reactor:#}");
        }
        assert!(has(&joined, "host", &from(Party::Host(0))), "{reactor:#}");
    }
    let totals = stats.0["totals"]["connections"].as_object().expect("totals");
    assert!(totals.keys().eq(["tcp"]), "{totals:?}");
}

/// As [`check`], while both hosts work: each has sessions with all servers, over TCP.
///
/// # Panics
/// As [`check`].
pub fn check_busy(site: &Site, stats: &Stats) {
    check(site, stats);
    for (role, kind) in [("metaservers", "host"), ("targets", "data session")] {
        for server in list(&stats.0[role]) {
            let joined = joined(server);
            for host in (0..HOSTS).map(Party::Host) {
                let address = site.lab().address(host.number()).to_string();
                assert!(has(&joined, kind, &address), "{host}: {server:#}");
            }
        }
    }
}

/// How many connections the servers have with a host.
///
/// # Panics
/// If the statistics are not as they should be.
#[must_use]
pub fn connections_with(site: &Site, stats: &Stats, host: usize) -> usize {
    let address = site.lab().address(Party::Host(host).number()).to_string();
    let servers = ["metaservers", "targets"].into_iter().flat_map(|role| list(&stats.0[role]));
    let joined = servers.flat_map(joined);
    joined.filter(|(_, at)| at.contains(&address)).count()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// Kind and place of those at the other ends of TCP connections.
fn joined(server: &Value) -> Vec<(&str, &str)> {
    let connections = list(&server["connections"]).iter();
    let tcp = connections.filter(|connection| connection["fabric"] == "tcp");
    tcp.map(|connection| (text(&connection["kind"]), text(&connection["peer"]))).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn has(joined: &[(&str, &str)], kind: &str, address: &str) -> bool {
    joined.iter().any(|(of, at)| *of == kind && at.contains(address))
}
