//! The port goes down, and the device goes away: H9 with everything broken at once.

use std::process::Command;
use std::time::Duration;

use gannet_client::Protection;
use gannet_integration::cluster::{Cluster, Store};
use gannet_integration::{one_at_a_time, pattern};
use gannet_vm::process::{Process, run};
use gannet_vm::{cluster, guest, wait};
use rustix::process::Signal;

use super::requests::{Bench, Kind};

const COMMAND_MAX: Duration = Duration::from_secs(60);
/// How long servers may take to notice what happened to their device.
const NOTICE_MAX: Duration = Duration::from_secs(60);
/// How long what a host has under way may take to its end after that.
const FINISH_MAX: Duration = Duration::from_secs(90);
/// Length of the file that is under way when the device goes, bytes.
const FILE_BYTES: usize = (24 << 20) + 4093;
/// How long the port is down.
const DOWN: Duration = Duration::from_millis(700);

fn tool(name: &str, arguments: &[&str]) {
    let mut command = Command::new(name);
    command.args(arguments);
    let _said = run(command, COMMAND_MAX).success();
}

/// Puts the network back where it was, also when the test fails.
struct Down;

impl Down {
    fn new() -> Down {
        tool("ip", &["link", "set", guest::NETWORK, "down"]);
        Down
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        tool("ip", &["link", "set", guest::NETWORK, "up"]);
    }
}

/// A soft-RoCE device, while the value lives.
struct Device(&'static str);

impl Device {
    fn add(name: &'static str, network: &str) -> Device {
        tool("rdma", &["link", "add", name, "type", "rxe", "netdev", network]);
        Device(name)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut command = Command::new("rdma");
        command.args(["link", "delete", self.0]);
        // The test fails already if this does.
        let _said = run(command, COMMAND_MAX);
    }
}

/// The guest's device is there again at the end, also when the test fails.
struct Removed;

impl Removed {
    fn new() -> Removed {
        tool("rdma", &["link", "delete", guest::DEVICE]);
        Removed
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        tool("rdma", &["link", "add", guest::DEVICE, "type", "rxe", "netdev", guest::NETWORK]);
    }
}

fn logs(cluster: &Cluster) -> [String; 3] {
    [cluster.metaserver_log(), cluster.target_log(0), cluster.target_log(1)]
}

/// The driver of soft-RoCE waits until nobody uses the device any more, and librdmacm looks at its
/// devices only if there is one: so there is another one here.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn servers_and_hosts_outlive_the_removal_of_their_device() {
    let _turn = one_at_a_time();
    let other = Device::add("rxe-other", "lo");
    let stores = vec![Store::Device(guest::disk("removal", 96)), Store::Ram];
    let mut cluster = Cluster::new(cluster::options(stores));
    let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
    let mut content = vec![0; FILE_BYTES];
    pattern::fill(&mut content, 31, 0);
    std::fs::write(&source, &content).expect("room for a file");
    let source = source.to_str().expect("text");
    let put = cluster.command(&["put", "--verify", "-T", source, "/file"]);
    let put = Process::start("gannet put", put);
    wait::until("the file to be under way", NOTICE_MAX, || cluster.used_bytes() > 0);

    let removed = Removed::new();
    let all_say = |what: &str| {
        wait::until(what, NOTICE_MAX, || logs(&cluster).iter().all(|log| log.contains(what)));
    };
    all_say("an RDMA device was removed");
    assert!(put.is_running(), "the device went too late: {}", put.output());
    drop(removed);
    all_say("listening again");
    let _said = put.wait(FINISH_MAX).success();
    // A host that never saw the old device.
    let get = ["get", "--protection", "window", "-T", "/file", copy.to_str().expect("text")];
    let _said = cluster.run(&get).success();
    assert!(std::fs::read(&copy).expect("read") == content, "what comes out is what went in");
    assert!(cluster.is_running());
    cluster.stop();
    drop(other);
}

/// While the port is down, soft-RoCE fails what is sent at once, and its queue pair of the
/// connection manager stays broken: so the device has to be made anew, under a host that has
/// requests outstanding.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn requests_outlive_a_port_that_was_down_and_a_new_device() {
    let _turn = one_at_a_time();
    let other = Device::add("rxe-other", "lo");
    let stores = (0..2).map(|index| Store::Device(guest::disk(&format!("down-{index}"), 96)));
    let mut cluster = Cluster::new(cluster::options(stores.collect()));
    let mut bench = Bench::new(&cluster.address(), Protection::Region);
    for kind in [Kind::Reads, Kind::Writes] {
        // The data server that stands still holds some of them until the port is down.
        cluster.signal_target(0, Signal::STOP);
        let mut burst = bench.begin(kind);
        bench.wait(&mut burst, 0);
        let down = Down::new();
        cluster.signal_target(0, Signal::CONT);
        // The outage itself, not a wait for something.
        std::thread::sleep(DOWN);
        drop(down);
        let mut command = Command::new("rdma");
        command.args(["link", "delete", guest::DEVICE]);
        let removal = Process::start("rdma link delete", command);
        // This host has to let go of the device as well.
        bench.wait_for(&mut burst, |_| !removal.is_running());
        let _said = removal.wait(COMMAND_MAX).success();
        println!("{kind:?}: {} outstanding when the device was gone", burst.outstanding());
        assert!(burst.outstanding() > 0, "{kind:?}: nothing was under way");
        tool("rdma", &["link", "add", guest::DEVICE, "type", "rxe", "netdev", guest::NETWORK]);
        bench.complete(burst);
    }
    for log in logs(&cluster) {
        for words in ["an RDMA port is down", "an RDMA device was removed", "listening again"] {
            assert!(log.contains(words), "{words}: {log}");
        }
    }
    assert!(cluster.is_running());
    drop(bench);
    cluster.stop();
    drop(other);
}
