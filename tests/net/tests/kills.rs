//! `kill -9` of servers over TCP, under load from two hosts: nothing that was acknowledged is lost,
//! no request fails, and soon after the server's return all that were outstanding are answered.

use std::time::Duration;

use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::load::{Load, open};
use gannet_integration::one_at_a_time;
use gannet_net::fabrics;
use gannet_net::lab::Family;
use gannet_net::site::{HOSTS, Party, Site, TARGETS, load};

/// How long a killed server stays away.
const AWAY: Duration = Duration::from_millis(200);
/// How long after the server's return the requests that were outstanding may take.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// Requests of each host that complete between two kills.
const BETWEEN: u64 = 500;

#[test]
#[ignore = "needs root and network namespaces: run tests/run net"]
fn killed_servers_lose_nothing_and_delay_only() {
    let _turn = one_at_a_time();
    let site = Site::new(Family::V6);
    let mut cluster = Cluster::new(ClusterOptions { store_size: "128M", ..site.cluster() });
    let address = cluster.address();
    let mut loads: Vec<Load> = (0..HOSTS)
        .map(|host| site.space(Party::Host(host)).enter(|| Load::start(&address, load(host))))
        .collect();
    loads.iter_mut().for_each(|load| load.progress(BETWEEN));
    fabrics::check_busy(&site, &cluster.stats());
    let victims = (0..TARGETS).map(Party::Target).chain([Party::Metaserver]);
    let victims: Vec<Party> = victims.cycle().take(2 * (TARGETS + 1)).collect();
    for victim in victims {
        loads.iter_mut().for_each(|load| load.progress(BETWEEN));
        match victim {
            Party::Target(target) => cluster.kill_target(target),
            _ => cluster.kill_metaserver(),
        }
        // The outage itself, not a wait for something.
        std::thread::sleep(AWAY);
        let back = match victim {
            Party::Target(target) => cluster.start_target(target),
            _ => cluster.start_metaserver(),
        };
        let settled = loads.iter_mut().map(Load::settle).max().expect("there are loads");
        let recovered = settled.saturating_duration_since(back);
        println!("{victim}: all requests done {recovered:?} after its return");
        assert!(recovered <= RECOVERY_MAX, "{victim}: {recovered:?}");
        assert!(cluster.is_running(), "only the killed server was away");
    }
    loads.iter_mut().for_each(|load| load.progress(BETWEEN));
    // All of them, before anything is compared: a load that goes on uses what is compared.
    let finished: Vec<_> = loads.into_iter().map(Load::finish).collect();
    for (host, (model, done)) in finished.iter().enumerate() {
        println!("host {host}: {done:?}");
        assert!(done.resends > 0 && done.disconnects > 0, "kills under load were felt: {done:?}");
        // By the other host.
        let other = (host + 1) % HOSTS;
        site.space(Party::Host(other)).enter(|| model.verify(&mut open(&address)));
    }
    let used = cluster.used_bytes();
    let blocks: u64 = finished.iter().map(|(model, _)| model.blocks_bytes()).sum();
    assert_eq!(used, blocks, "what was cut short has left nothing behind");
    cluster.stop();
}
