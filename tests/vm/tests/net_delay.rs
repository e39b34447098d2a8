//! Trees of files go from two hosts at once into a cluster over TCP, and each comes out at the other
//! host byte for byte, over a network with long ways on which packets overtake each other.
//!
//! The parties are namespaces in the virtual machine, because its kernel has netem, which the
//! machine's own may lack. `tests/run net` runs it.

use std::process::Command;
use std::time::{Duration, Instant};

use gannet_integration::cluster::{Cluster, ClusterOptions, Store};
use gannet_integration::load::open;
use gannet_integration::one_at_a_time;
use gannet_net::exchange::exchange;
use gannet_net::lab::{DEVICE, Family};
use gannet_net::site::{Party, Site, TARGETS};
use gannet_vm::process::run;

/// How long a packet is under way, unless it overtakes others.
const DELAY: Duration = Duration::from_millis(20);
/// How many of a hundred packets overtake, and how much one's chance depends on the last one's.
const OVERTAKE: [&str; 2] = ["25%", "50%"];
const SIZES: [u64; 7] = [0, 1, 4095, 4096, 4097, (1 << 20) + 1, (4 << 20) + 4093];
const SMALL_FILES: u64 = 200;
/// Requests, one after the other, that show how long the way is.
const REQUESTS: usize = 21;
const MODPROBE_MAX: Duration = Duration::from_secs(30);

#[test]
#[ignore = "needs a kernel with netem: run tests/run net"]
fn two_hosts_exchange_trees_over_links_that_delay_and_reorder() {
    let _turn = one_at_a_time();
    for module in ["veth", "bridge", "sch_netem"] {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg(module);
        let _said = run(modprobe, MODPROBE_MAX).success();
    }
    let site = Site::new(Family::V4);
    // Packets overtake each other then, not bundles of them.
    site.lab().unbundle();
    let delay = format!("{}ms", DELAY.as_millis());
    let netem = ["root", "netem", "delay", &delay, "reorder", OVERTAKE[0], OVERTAKE[1]];
    for party in Party::all() {
        let add = ["qdisc", "add", "dev", DEVICE];
        let _said = site.space(party).run("tc", &[&add[..], &netem[..]].concat());
    }
    let stores = vec![Store::Ram; TARGETS];
    let options = ClusterOptions { stores, store_size: "96M", ..site.cluster() };
    let mut cluster = Cluster::new(options);

    let address = cluster.address();
    let median = site.space(Party::Host(0)).enter(|| {
        let mut session = open(&address);
        let ask = |_| {
            let begun = Instant::now();
            session.stat("/").expect("answered");
            begun.elapsed()
        };
        let mut times: Vec<Duration> = (0..REQUESTS).map(ask).collect();
        times.sort();
        times[REQUESTS / 2]
    });
    println!("a request takes {median:?}");
    assert!(median >= DELAY, "the way is short: {median:?}");
    let exchanged = exchange(&site, &cluster, &SIZES, SMALL_FILES);
    println!("{exchanged:?}");
    for party in Party::all() {
        let early = site.lab().tcp_counter(party.number(), "TCPOFOQueue");
        println!("{party}: {early} packets came before others that were sent earlier");
        assert!(early > 0, "{party}: all came in order");
    }
    assert!(cluster.is_running());
    cluster.stop();
}
