//! H4: hosts are killed in the middle of their transfers; the servers go on, and hold no more for
//! them than before.

use std::time::Duration;

use gannet_integration::cluster::{Cluster, ClusterOptions, Store};
use gannet_integration::one_at_a_time;
use gannet_vm::cluster::{self, Held, moved_bytes};
use gannet_vm::process::Process;
use gannet_vm::resources::Resources;
use gannet_vm::{guest, wait};

const ROUNDS: u64 = 5;
/// How long a host may take until it is to be killed.
const BUSY_MAX: Duration = Duration::from_secs(60);
/// The later rounds let the victim move so much more before it is killed.
const ROUND_BYTES: u64 = 3 << 20;

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn hosts_killed_in_mid_transfer_leave_nothing_behind() {
    let _turn = one_at_a_time();
    let stores = vec![Store::Device(guest::disk("killed", 96)), Store::Ram];
    let options = ClusterOptions { lease: cluster::LEASE_SHORT, ..cluster::options(stores) };
    let mut cluster = Cluster::new(options);
    let source = cluster.directory().join("other");
    std::fs::write(&source, vec![0x5a; 300_001]).expect("room for a file");
    let put = ["put", "--verify", "-T", source.to_str().expect("text"), "/other"];
    // Once, so that what servers make once is there.
    let _said = cluster.run(&put).success();
    let rest = Held::at_rest(&cluster);
    println!("at rest: {rest:?}");

    for round in 0..ROUNDS {
        let (workload, protection) = match round % 4 {
            0 => ("write", "region"),
            1 => ("randread", "window"),
            2 => ("randwrite", "window"),
            _ => ("randread", "region"),
        };
        let file = format!("/victim-{round}");
        let command = cluster.command(&cluster::endless_perf(&file, workload, protection));
        let before = moved_bytes(&cluster.stats());
        let victim = Process::start("gannet perf", command);
        wait::until("the victim to have a queue pair", BUSY_MAX, || {
            Resources::now().count("ctx") > rest.resources().count("ctx")
        });
        // The first is killed while it connects or begins, the others ever later.
        if round > 0 {
            wait::until("the victim's transfers", BUSY_MAX, || {
                moved_bytes(&cluster.stats()) > before + round * ROUND_BYTES
            });
        }
        let _died = victim.kill();
        rest.wait_within(&cluster);
        let _said = cluster.run(&put).success();
        // It may have been killed before it made its file.
        let _removed = cluster.run(&["rm", &file]);
    }
    rest.wait_within(&cluster);
    assert!(cluster.is_running());
    let _said = cluster.run(&["rm", "/other"]).success();
    assert_eq!(cluster.used_bytes(), 0, "no block is lost");
    cluster.stop();
}
