//! A port that goes down, and a device that goes away, under servers and a host at work: H9 of the
//! design's list of hazards with everything broken at once.
//!
//! The driver of soft-RoCE lets a device go only when nobody has it open, and librdmacm closes one
//! that is gone only if there is another one, and then only when somebody asks it for its devices.
//! So there is another device here, and no fabric in this process.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gannet_integration::cluster::{Cluster, Store};
use gannet_integration::{one_at_a_time, pattern};
use gannet_vm::process::Process;
use gannet_vm::resources::packets_sent;
use gannet_vm::{cluster, guest, wait};
use rustix::process::Signal;

const COMMAND_MAX: Duration = Duration::from_secs(60);
/// How long servers may take to notice what happened to their device.
const NOTICE_MAX: Duration = Duration::from_secs(60);
/// How long what a host has under way may take to its end after that.
const FINISH_MAX: Duration = Duration::from_secs(90);
/// Length of the file that is under way when the device goes, bytes.
const FILE_BYTES: usize = (48 << 20) + 4093;
/// Packets, an eighth of all, after which it is under way.
const UNDER_WAY_PACKETS: u64 = (FILE_BYTES / 4096 / 8) as u64;
/// How long the port is down.
const DOWN: Duration = Duration::from_millis(700);
const OTHER_DEVICE: &str = "rxe-other";

fn tool(name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(name);
    command.args(arguments);
    Process::start(name, command)
}

fn run_tool(name: &str, arguments: &[&str]) {
    let _said = tool(name, arguments).wait(COMMAND_MAX).success();
}

/// Another device, while the value lives.
struct OtherDevice;

impl OtherDevice {
    fn new() -> OtherDevice {
        run_tool("rdma", &["link", "add", OTHER_DEVICE, "type", "rxe", "netdev", "lo"]);
        OtherDevice
    }
}

impl Drop for OtherDevice {
    fn drop(&mut self) {
        run_tool("rdma", &["link", "delete", OTHER_DEVICE]);
    }
}

/// The device is gone while the value lives.
struct Removed;

impl Removed {
    /// `meanwhile` runs when the removal has begun.
    fn new(meanwhile: impl FnOnce()) -> Removed {
        let removal = tool("rdma", &["link", "delete", guest::DEVICE]);
        meanwhile();
        let _said = removal.wait(COMMAND_MAX).success();
        Removed
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        run_tool("rdma", &["link", "add", guest::DEVICE, "type", "rxe", "netdev", guest::NETWORK]);
    }
}

/// The port is down while the value lives.
struct Down;

impl Down {
    fn new() -> Down {
        run_tool("ip", &["link", "set", guest::NETWORK, "down"]);
        Down
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        run_tool("ip", &["link", "set", guest::NETWORK, "up"]);
    }
}

/// A host that stores a file, and servers.
struct Bench {
    // The host first: it ends before the servers do.
    host: Process,
    cluster: Cluster,
    content: Vec<u8>,
    copy: PathBuf,
}

impl Bench {
    /// With the file partly stored: the first data server stands still.
    fn new(name: &str) -> Bench {
        let stores = vec![Store::Device(guest::disk(name, 96)), Store::Ram];
        let cluster = Cluster::new(cluster::options(stores));
        let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
        let mut content = vec![0; FILE_BYTES];
        pattern::fill(&mut content, 31, 0);
        std::fs::write(&source, &content).expect("room for a file");
        let source = source.to_str().expect("text");
        let put = cluster.command(&["put", "--verify", "-T", source, "/file"]);
        let packets = packets_sent();
        let host = Process::start("gannet put", put);
        let goal = packets + UNDER_WAY_PACKETS;
        wait::until("the file to be under way", NOTICE_MAX, || packets_sent() > goal);
        cluster.signal_target(0, Signal::STOP);
        assert!(host.is_running(), "the file is stored already");
        Bench { host, cluster, content, copy }
    }

    /// Waits until each server has said it.
    fn all_say(&self, what: &str) {
        wait::until(what, NOTICE_MAX, || self.logs().iter().all(|log| log.contains(what)));
    }

    fn logs(&self) -> [String; 3] {
        [self.cluster.metaserver_log(), self.cluster.target_log(0), self.cluster.target_log(1)]
    }

    /// The host comes to its end, a new one finds what it stored, and the servers are all well.
    fn finish(mut self) {
        let _said = self.host.wait(FINISH_MAX).success();
        let copy = self.copy.to_str().expect("text");
        let get = ["get", "--protection", "window", "-T", "/file", copy];
        let _said = self.cluster.run(&get).success();
        let found = std::fs::read(&self.copy).expect("the copy was made");
        assert!(found == self.content, "what comes out is what went in");
        assert!(self.cluster.is_running());
        self.cluster.stop();
    }
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn servers_and_hosts_outlive_the_removal_of_their_device() {
    let _turn = one_at_a_time();
    let other = OtherDevice::new();
    let bench = Bench::new("removal");
    let removed = Removed::new(|| bench.cluster.signal_target(0, Signal::CONT));
    bench.all_say("an RDMA device was removed");
    assert!(bench.host.is_running(), "{}", bench.host.output());
    drop(removed);
    bench.all_say("listening again");
    bench.finish();
    drop(other);
}

/// While its port is down, soft-RoCE fails at once whatever is sent, and the queue pair of the
/// connection manager stays broken until there is a new device: so there will be one.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn servers_and_hosts_outlive_a_port_that_is_down() {
    let _turn = one_at_a_time();
    let other = OtherDevice::new();
    let bench = Bench::new("port-down");
    let down = Down::new();
    bench.cluster.signal_target(0, Signal::CONT);
    bench.all_say("an RDMA port is down");
    // The outage itself, not a wait for something.
    std::thread::sleep(DOWN);
    drop(down);
    bench.all_say("an RDMA port is active");
    assert!(bench.host.is_running(), "{}", bench.host.output());
    drop(Removed::new(|| ()));
    bench.all_say("listening again");
    bench.finish();
    drop(other);
}
