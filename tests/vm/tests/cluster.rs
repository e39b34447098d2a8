//! Servers and hosts as processes of their own, over RDMA: what goes in comes out, with both kinds
//! of protection, across restarts, and none of it by way of the metadata server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_integration::cluster::{Cluster, ClusterOptions, Network, Stats, Store};
use gannet_integration::process::run;
use gannet_integration::{one_at_a_time, tree};
use gannet_vm::process::Process;
use gannet_vm::{cluster, guest, wait};

const BLOCK_BYTES: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Around a block, around a request, and a file over several requests and stripes.
const SIZES: [u64; 7] = [0, 1, 4095, 4096, 4097, MIB + 1, 5 * MIB + 4093];
const SMALL_FILES: u64 = 500;
/// How long a process may take to say what it lacks.
const SAY_MAX: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().expect("the guest's paths are text")
}

/// A tree to be stored, in the cluster's directory.
fn make_tree(cluster: &Cluster, small_files: u64) -> PathBuf {
    let source = cluster.directory().join("source");
    tree::make_with(&source, &SIZES, small_files);
    source
}

/// Checks that every byte went between data servers and hosts.
fn check_ways(stats: &Stats, payload_bytes: u64, what: &str) {
    assert_eq!(stats.metaserver("payload_bytes"), 0, "{what}: through the metadata server");
    assert_eq!(cluster::moved_bytes(stats), payload_bytes, "{what}: through the data servers");
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_tree_comes_back_byte_for_byte_with_either_protection() {
    let _turn = one_at_a_time();
    let stores = vec![Store::Device(guest::disk("tree", 96)), Store::Ram];
    let mut cluster = Cluster::new(cluster::options(stores));
    let source = make_tree(&cluster, SMALL_FILES);
    let mut moved = 0;
    for protection in ["region", "window"] {
        let copy = cluster.directory().join(protection);
        let with = |mut words: Vec<&str>| {
            words.extend(["--protection", protection, "--json", "-T"]);
            words.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let there = format!("/{protection}");
        let mut put = with(vec!["put"]);
        put.extend([text(&source).to_owned(), there.clone()]);
        let put = cluster.run(&put).json();
        let mut get = with(vec!["get"]);
        get.extend([there, text(&copy).to_owned()]);
        let get = cluster.run(&get).json();

        let content = tree::compare(&source, &copy, BLOCK_BYTES);
        assert!(content.files >= SMALL_FILES + SIZES.len() as u64, "{content:?}");
        for side in [&put, &get] {
            assert_eq!(side["files"], content.files, "{protection}: {side}");
            assert_eq!(side["bytes"], content.bytes, "{protection}: {side}");
            assert_eq!(side["failures"], 0, "{protection}: {side}");
        }
        moved += 2 * content.bytes;
        let stats = cluster.stats();
        check_ways(&stats, moved, protection);
        let in_memory = stats.targets("bytes_ram");
        assert!(0 < in_memory && in_memory < moved, "both data servers took part: {in_memory}");
        let seconds = |side: &serde_json::Value| side["seconds"].as_f64().unwrap_or_default();
        println!("{protection}: {content:?}; put {} s, get {} s", seconds(&put), seconds(&get));
    }
    cluster.stop();
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn what_is_on_a_device_outlives_its_servers() {
    let _turn = one_at_a_time();
    let stores = ["first", "second"].map(|name| Store::Device(guest::disk(name, 96)));
    let mut cluster = Cluster::new(cluster::options(stores.to_vec()));
    let source = make_tree(&cluster, SMALL_FILES / 5);
    let _said = cluster.run(&["put", "-T", text(&source), "/tree"]).success();

    // One after the other, in order; then all at once, without a word.
    cluster.stop_target(0);
    cluster.start_target(0);
    cluster.stop_metaserver();
    cluster.start_metaserver();
    let check = |cluster: &Cluster, name: &str, protection: &str| {
        let copy = cluster.directory().join(name);
        let get = ["get", "--protection", protection, "-T", "/tree", text(&copy)];
        let _said = cluster.run(&get).success();
        let content = tree::compare(&source, &copy, BLOCK_BYTES);
        let stats = cluster.stats();
        assert_eq!(stats.metaserver("payload_bytes"), 0, "{name}: through the metadata server");
        assert_eq!(stats.targets("bytes_ram"), 0, "{name}: no store is in memory");
        content
    };
    let content = check(&cluster, "in order", "window");
    cluster.kill_metaserver();
    cluster.kill_target(0);
    cluster.kill_target(1);
    cluster.start();
    assert_eq!(check(&cluster, "killed", "region"), content);
    // New processes count anew.
    check_ways(&cluster.stats(), content.bytes, "killed");
    let _said = cluster.run(&["rm", "-r", "/tree"]).success();
    assert_eq!(cluster.used_bytes(), 0, "everything is free again");
    cluster.stop();
}

/// A data server that cannot listen ends and says why; the others go on.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn an_address_that_no_device_has_is_named() {
    let _turn = one_at_a_time();
    let network = Network::Rdma {
        host: "192.0.2.7".to_owned(),
        port: cluster::PORT,
        trusted_hosts: Vec::new(),
    };
    let options = ClusterOptions { network, ..cluster::options(vec![Store::Ram, Store::Ram]) };
    // Formatting needs no device.
    let cluster = Cluster::format(options);
    for (role, name) in [("metaserver", "metaserver"), ("target", "target-0")] {
        let config = cluster.directory().join(format!("{name}.toml"));
        let command = cluster.command(&[role, "--config", text(&config)]);
        let ended = run(command);
        assert_eq!(ended.status.code(), Some(1), "{role}: {}", ended.stderr);
        for words in ["192.0.2.7", "no RDMA device has the address", "gannet doctor --rdma"] {
            assert!(ended.stderr.contains(words), "{role}: {words}: {}", ended.stderr);
        }
    }
}

/// A host that looks for servers which are not there yet finds them once they are.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn hosts_wait_for_servers_that_start_later() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::format(cluster::options(vec![Store::Ram, Store::Ram]));
    let source = cluster.directory().join("file");
    std::fs::write(&source, vec![7; 100_000]).expect("room for a file");
    let put = cluster.command(&["put", "-T", "--verify", text(&source), "/file"]);
    let host = Process::start("gannet put", put);
    // It has asked at least once.
    wait::until("the host to use the device", SAY_MAX, || {
        gannet_vm::resources::Resources::now().count("ctx") > 0
    });
    cluster.start_in_order(false);
    let _said = host.wait(SAY_MAX).success();
    cluster.stop();
}
