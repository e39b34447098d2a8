//! Servers in one machine, hosts in another: each of the tests runs in both, at the same time, and
//! does its machine's part. Guest 1 serves, guest 2 is the host.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gannet_client::Protection;
use gannet_fabric::Address;
use gannet_integration::cluster::{Cluster, ClusterOptions, Network, Store};
use gannet_integration::{one_at_a_time, tree};
use gannet_vm::cluster::{self, Held, moved_bytes};
use gannet_vm::process::{Finished, Process, run};
use gannet_vm::{guest, wait};

#[path = "two_guests_cluster/fabric.rs"]
mod fabric;
#[path = "hazards/requests.rs"]
mod requests;

use requests::{Bench, Kind};

const BARRIER_MAX: Duration = Duration::from_secs(120);
const RUN_MAX: Duration = Duration::from_secs(120);
const BLOCK_BYTES: u64 = 4096;
const SIZES: [u64; 7] = [0, 1, 4095, 4096, 4097, (1 << 20) + 1, (5 << 20) + 4093];
const SMALL_FILES: u64 = 100;
/// What a host moves before it is killed, bytes.
const KILL_BYTES: u64 = 4 << 20;
/// An outage that is over before the device has repeated for long what was lost.
const OUTAGE: Duration = Duration::from_millis(700);

fn serves() -> bool {
    guest::number() == 1
}

fn meet(name: &str) {
    guest::barrier(name, BARRIER_MAX);
}

/// The servers, for hosts on the network between the machines.
fn start_cluster(name: &str, trusted_hosts: &[&str]) -> Cluster {
    Cluster::new(options(name, trusted_hosts))
}

fn options(name: &str, trusted_hosts: &[&str]) -> ClusterOptions {
    let disk = guest::disk(name, 96);
    let options = cluster::options(vec![Store::Device(disk), Store::Ram]);
    let trusted_hosts = trusted_hosts.iter().map(|host| (*host).to_owned()).collect();
    let host = guest::own_address().to_string();
    let network = Network::Rdma { host, port: cluster::PORT, trusted_hosts };
    ClusterOptions { network, ..options }
}

/// Where the other machine's metadata server listens.
fn metaserver() -> Address {
    Address::Rdma { host: guest::peer_address().to_string(), port: cluster::PORT }
}

/// The command, to be run on the other machine's servers.
fn gannet(arguments: &[&str]) -> Command {
    let mut command = Command::new(guest::gannet());
    command.args(arguments).env("GANNET_SERVER", metaserver().to_string());
    command
}

fn succeed(arguments: &[&str]) {
    let _said = run(gannet(arguments), RUN_MAX).success();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the guest's paths are text")
}

fn fresh(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("gannet-{name}"));
    let _absent = std::fs::remove_dir_all(&path);
    path
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_tree_goes_to_another_machine_and_back_with_either_protection() {
    let _turn = one_at_a_time();
    let protections = ["region", "window"];
    if serves() {
        let mut cluster = start_cluster("tree", &["10.77.0.0/24"]);
        meet("the servers are ready");
        meet("the tree is back");
        let stats = cluster.stats();
        assert_eq!(stats.metaserver("payload_bytes"), 0, "through the metadata server");
        let stored = cluster.used_bytes();
        // Twice there and twice back; what is stored are whole blocks.
        let moved = moved_bytes(&stats);
        assert!(moved > stored && moved <= 2 * stored, "{moved} bytes moved, {stored} stored");
        meet("the counters were right");
        cluster.stop();
    } else {
        let source = fresh("source");
        tree::make_with(&source, &SIZES, SMALL_FILES);
        meet("the servers are ready");
        for protection in protections {
            let (there, copy) = (format!("/{protection}"), fresh(protection));
            succeed(&["put", "--protection", protection, "-T", text(&source), &there]);
            succeed(&["get", "--protection", protection, "-T", &there, text(&copy)]);
            println!("{protection}: {:?}", tree::compare(&source, &copy, BLOCK_BYTES));
        }
        meet("the tree is back");
        meet("the counters were right");
    }
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_host_killed_on_another_machine_leaves_nothing_behind() {
    let _turn = one_at_a_time();
    if serves() {
        let options = options("killed", &["10.77.0.2"]);
        let mut cluster = Cluster::new(ClusterOptions { lease: cluster::LEASE_SHORT, ..options });
        let rest = Held::at_rest(&cluster);
        let before = moved_bytes(&cluster.stats());
        meet("the servers are at rest");
        wait::until("the host's transfers", RUN_MAX, || {
            moved_bytes(&cluster.stats()) > before + KILL_BYTES
        });
        meet("the host is under way");
        meet("the host is dead");
        rest.wait_within(&cluster);
        meet("the servers hold nothing of it");
        meet("another host has worked");
        assert!(cluster.is_running());
        cluster.stop();
    } else {
        let source = fresh("file");
        std::fs::write(&source, vec![0x6b; 1_000_001]).expect("room for a file");
        meet("the servers are at rest");
        let perf = gannet(&cluster::endless_perf("/victim", "randwrite", "window"));
        let victim = Process::start("gannet perf", perf);
        meet("the host is under way");
        let _died = victim.kill();
        meet("the host is dead");
        meet("the servers hold nothing of it");
        succeed(&["put", "--verify", "-T", text(&source), "/file"]);
        meet("another host has worked");
    }
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_host_that_is_not_trusted_is_refused_by_name() {
    let _turn = one_at_a_time();
    if serves() {
        let mut cluster = start_cluster("untrusted", &["10.77.0.9"]);
        meet("the servers are ready");
        meet("the host was refused");
        let log = cluster.metaserver_log();
        let line = log.lines().find(|line| line.contains("refused")).unwrap_or_default();
        let named = format!("peer={}", guest::peer_address());
        assert!(line.contains("trusted") && line.contains(&named), "{log}");
        cluster.stop();
    } else {
        meet("the servers are ready");
        let Finished { status, output, .. } = run(gannet(&["ls", "--patience", "3s"]), RUN_MAX);
        meet("the host was refused");
        assert_eq!(status.code(), Some(1), "{output}");
        for words in ["not trusted", "trusted_hosts"] {
            assert!(output.contains(words), "{words}: {output}");
        }
    }
}

/// Loses all that this machine sends, while the value lives.
struct Loss;

impl Loss {
    fn new() -> Loss {
        traffic(&["add", "dev", guest::NETWORK, "root", "netem", "loss", "100%"]);
        Loss
    }
}

impl Drop for Loss {
    fn drop(&mut self) {
        traffic(&["del", "dev", guest::NETWORK, "root"]);
    }
}

fn traffic(arguments: &[&str]) {
    let mut command = Command::new("tc");
    command.arg("qdisc").args(arguments);
    let _said = run(command, RUN_MAX).success();
}

/// H9 for all connections of a host at once: shortly, so that the device repeats what was lost, and
/// until it gives up.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn requests_outlive_a_network_that_loses_everything() {
    let _turn = one_at_a_time();
    if serves() {
        let mut cluster = start_cluster("loss", &["10.77.0.0/24"]);
        meet("the servers are ready");
        meet("all requests are complete");
        assert!(cluster.is_running());
        cluster.stop();
    } else {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("sch_netem");
        let _said = run(modprobe, RUN_MAX).success();
        meet("the servers are ready");
        let mut bench = Bench::new(&metaserver(), Protection::Region);
        lose(&mut bench, Kind::Writes, false);
        lose(&mut bench, Kind::Reads, true);
        drop(bench);
        meet("all requests are complete");
    }
}

fn lose(bench: &mut Bench, kind: Kind, breaks: bool) {
    let former = bench.disconnects();
    let mut burst = bench.begin(kind);
    bench.wait(&mut burst, 1);
    let lost = Loss::new();
    let begun = Instant::now();
    // What came before nothing came any more.
    bench.wait_for(&mut burst, |_, _| true);
    if burst.outstanding() == 0 {
        bench.complete(burst);
        burst = bench.begin(kind);
    }
    let outstanding = burst.outstanding();
    bench.wait_for(&mut burst, |host, _| {
        if breaks {
            host.client().counters().disconnects > former
        } else {
            begun.elapsed() > OUTAGE
        }
    });
    let lasted = begun.elapsed();
    drop(lost);
    bench.complete(burst);
    let broken = bench.disconnects() - former;
    println!("{kind:?}: {broken} connections broke in {lasted:?}, {outstanding} outstanding");
    assert_eq!(broken > 0, breaks, "{kind:?}");
}
