//! Trees of files go from two hosts at once into a cluster over TCP, and each comes out at the other
//! host byte for byte: over a network that is whole, and over one that loses packets everywhere.
//! With packets that come late and out of order it is `tests/vm/tests/net_delay.rs` that does this.

use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::one_at_a_time;
use gannet_net::exchange::exchange;
use gannet_net::filter::Drops;
use gannet_net::lab::{DIRECTIONS, Family};
use gannet_net::site::{Party, Site};

/// Around a block, around a request, and many requests.
const SIZES: [u64; 7] = [0, 1, 4095, 4096, 4097, (1 << 20) + 1, (24 << 20) + 4093];
/// Besides those that every tree has.
const SMALL_FILES: u64 = 300;
/// How many packets of a hundred are lost in each direction of each link.
const LOST_PERCENT: u32 = 1;

fn exchange_over(site: &Site) {
    let mut cluster = Cluster::new(ClusterOptions { store_size: "256M", ..site.cluster() });
    println!("{:?}", exchange(site, &cluster, &SIZES, SMALL_FILES));
    assert!(cluster.is_running());
    cluster.stop();
}

#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn two_hosts_exchange_trees_over_ipv4() {
    let _turn = one_at_a_time();
    exchange_over(&Site::new(Family::V4));
}

#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn two_hosts_exchange_trees_over_ipv6() {
    let _turn = one_at_a_time();
    exchange_over(&Site::new(Family::V6));
}

#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn two_hosts_exchange_trees_over_links_that_lose_packets() {
    let _turn = one_at_a_time();
    let site = Site::new(Family::V4);
    let lab = site.lab();
    // What is lost then is one packet, not a bundle of them.
    lab.unbundle();
    for party in 0..lab.parties() {
        for direction in DIRECTIONS {
            lab.filter(party, direction, Drops::Percent(LOST_PERCENT));
        }
    }
    exchange_over(&site);
    for party in Party::all() {
        let lost = DIRECTIONS.map(|direction| lab.dropped(party.number(), direction));
        let gaps = lab.tcp_counter(party.number(), "TCPOFOQueue");
        println!("{party}: {} packets to it and {} from it were lost", lost[0], lost[1]);
        println!("{party}: {gaps} came after a gap");
        assert!(lost.iter().all(|lost| *lost > 0), "{party}: nothing was lost");
        assert!(gaps > 0, "{party}: nothing was missed");
    }
}
