//! H9: a data session breaks with requests outstanding; all complete, each once.

use gannet_client::Protection;
use gannet_integration::cluster::{Cluster, Store};
use gannet_integration::one_at_a_time;
use gannet_vm::{cluster, guest};

use super::requests::{Bench, Kind, REQUESTS};

fn cluster_of(name: &str) -> Cluster {
    let stores = (0..2).map(|index| Store::Device(guest::disk(&format!("{name}-{index}"), 96)));
    Cluster::new(cluster::options(stores.collect()))
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn requests_outlive_a_broken_queue_pair_of_the_host() {
    let _turn = one_at_a_time();
    let mut cluster = cluster_of("broken");
    for protection in [Protection::Region, Protection::Window] {
        let mut bench = Bench::new(&cluster.address(), protection);
        for kind in [Kind::Reads, Kind::Writes] {
            // Before anything has come back, and in the middle.
            for answered in [0, REQUESTS as usize / 4] {
                // An attempt that is given up ends all its sessions: these make them anew.
                let whole = bench.begin(kind);
                bench.complete(whole);
                let address = cluster.target_address(answered % 2);
                let made = bench.host.fabric_mut().connections_to(&address);
                let resent = bench.host.client().counters().resends;
                let mut burst = bench.begin(kind);
                bench.wait(&mut burst, answered);
                bench.host.fabric_mut().break_connection(&address);
                let what = format!("{protection}, {kind:?}, {} outstanding", burst.outstanding());
                bench.complete(burst);
                let resent = bench.host.client().counters().resends - resent;
                println!("{what}: {resent} attempts beyond the first");
                if bench.host.fabric_mut().connections_to(&address) == made {
                    // What was outstanding needed that data server no more; this does.
                    let next = bench.begin(kind);
                    bench.complete(next);
                }
                let again = bench.host.fabric_mut().connections_to(&address) - made;
                assert!(again > 0, "{what}: the session was opened again");
            }
        }
    }
    assert!(cluster.is_running());
    cluster.stop();
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn requests_outlive_the_death_of_a_data_server() {
    let _turn = one_at_a_time();
    let mut cluster = cluster_of("dying");
    for (protection, victim) in [(Protection::Region, 0), (Protection::Window, 1)] {
        let mut bench = Bench::new(&cluster.address(), protection);
        for kind in [Kind::Reads, Kind::Writes] {
            let address = cluster.target_address(victim);
            let made = bench.host.fabric_mut().connections_to(&address);
            let mut burst = bench.begin(kind);
            bench.wait(&mut burst, 0);
            cluster.kill_target(victim);
            // All that it can have done for the host is known to the host now.
            bench.wait(&mut burst, 0);
            let what = format!("{protection}, {kind:?}: {} outstanding", burst.outstanding());
            assert!(burst.outstanding() > 0, "{what}: killed too late");
            cluster.start_target(victim);
            bench.complete(burst);
            let again = bench.host.fabric_mut().connections_to(&address) - made;
            println!("{what} when data server {victim} died");
            assert!(again > 0, "{what}: the session was opened again");
        }
    }
    cluster.stop();
}
