//! `kill -9` of a server under load: every request is answered or sent again soon after the server is
//! back, what was acknowledged is intact, and nothing hangs.

use std::time::Duration;

use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::load::{Load, LoadOptions, open};
use gannet_integration::one_at_a_time;

/// Kills per test.
const ROUNDS: usize = 5;
/// How long a killed server stays away.
const AWAY: Duration = Duration::from_millis(200);
/// How long after the server's return the requests that were outstanding may take.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// Requests that complete between two kills.
const BETWEEN: u64 = 2000;

/// Runs a load, kills and restarts by `kill` and `restart`, and checks everything afterwards.
fn survive(
    seed: u64,
    kill: fn(&mut Cluster, usize),
    restart: fn(&mut Cluster, usize) -> std::time::Instant,
) {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::new(ClusterOptions { store_size: "128M", ..Default::default() });
    let before = cluster.used_bytes();
    let mut load = Load::start(&cluster.address(), LoadOptions { seed, ..LoadOptions::default() });
    for round in 0..ROUNDS {
        load.progress(BETWEEN);
        kill(&mut cluster, round);
        // The outage itself, not a wait for something.
        std::thread::sleep(AWAY);
        let back = restart(&mut cluster, round);
        let recovered = load.settle().saturating_duration_since(back);
        println!("round {round}: all requests done {recovered:?} after the server's return");
        assert!(recovered <= RECOVERY_MAX, "{recovered:?}");
        assert!(cluster.is_running(), "only the killed server was away");
    }
    load.progress(BETWEEN);
    let (model, done) = load.finish();
    println!("{done:?}");
    assert!(done.reads > BETWEEN && done.writes > BETWEEN && done.names > 100, "{done:?}");
    assert!(done.resends > 0, "a kill under load was felt: {done:?}");
    let mut session = open(&cluster.address());
    model.verify(&mut session);
    // Blocks of the writes that were cut short are free again.
    let used = cluster.used_bytes() - before;
    assert_eq!(used, model.blocks_bytes(), "bytes in use");
    // What the log says is what the memory said.
    drop(session);
    cluster.stop();
    cluster.start();
    let mut session = open(&cluster.address());
    model.verify(&mut session);
    model.remove(&mut session);
    assert_eq!(cluster.used_bytes(), before, "everything is free again");
    drop(session);
    cluster.stop();
}

#[test]
fn killed_data_servers_lose_nothing_and_delay_only() {
    survive(
        1,
        |cluster, round| cluster.kill_target(round % 2),
        |cluster, round| cluster.start_target(round % 2),
    );
}

#[test]
fn a_killed_metadata_server_loses_nothing_and_delays_only() {
    survive(2, |cluster, _| cluster.kill_metaserver(), |cluster, _| cluster.start_metaserver());
}

#[test]
fn all_servers_killed_at_once_lose_nothing_and_delay_only() {
    survive(
        3,
        |cluster, _| {
            cluster.kill_metaserver();
            cluster.kill_target(0);
            cluster.kill_target(1);
        },
        |cluster, round| {
            // The metadata server first, or last: a data server waits for it.
            cluster.start_in_order(round % 2 == 0)
        },
    );
}
