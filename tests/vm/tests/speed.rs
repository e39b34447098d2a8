//! How near the host's reads and writes come to what the device gives, measured with perftest in the
//! same boot, round by round in turn.
//!
//! All servers are one process here, on one reactor, as the emulated machine has two cores: the
//! metadata server, one data server with a store in memory, and RDMA between all parties, the two
//! servers included. A read's latency is compared with the three one-way hops that it is made of:
//! request, grant, and data with its notice.
//!
//! The goals are met on a machine that does nothing else. What fails the test by default is less
//! than the floors, which an unlucky neighbour does not reach; GANNET_VM_GOALS=1 makes the goals
//! themselves count.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use gannet_vm::guest::{self, gannet, tcp_listens};
use gannet_vm::process::{Process, run};
use gannet_vm::wait;

const ROUNDS: usize = 5;
const PERFTEST_TRIES: usize = 3;
const START_MAX: Duration = Duration::from_secs(30);
const RUN_MAX: Duration = Duration::from_secs(120);
/// Where the servers listen, and on the ports behind it.
const PORT: u16 = 7570;
/// Where perftest exchanges its queue pairs' numbers.
const EXCHANGE_PORT: u16 = 18515;
/// About the size of a request and of a grant, bytes.
const MESSAGE_BYTES: u64 = 128;
const SMALL_BLOCK: u64 = 4 << 10;
const MIB: f64 = (1 << 20) as f64;

/// A figure in every round, in units of what perftest reached in that round.
struct Shares {
    what: String,
    /// At least, of a rate; at most, of a latency.
    goal: f64,
    floor: f64,
    rounds: Vec<f64>,
}

impl Shares {
    fn of_rate(what: String) -> Shares {
        Shares { what, goal: 0.90, floor: 0.70, rounds: Vec::new() }
    }

    fn of_latency(what: String) -> Shares {
        Shares { what, goal: 2.5, floor: 5.0, rounds: Vec::new() }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn reaches(&self, bound: f64) -> bool {
        if self.goal < self.floor { self.median() <= bound } else { self.median() >= bound }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, goal) = (self.median(), self.goal);
        let word = if self.goal < self.floor { "at most" } else { "at least" };
        write!(f, "{:<44} {median:.2} (goal: {word} {goal}; rounds:", self.what)?;
        for round in &self.rounds {
            write!(f, " {round:.2}")?;
        }
        f.write_str(")")
    }
}

/// Runs a tool of perftest between two processes and returns a column of its last line. The emulated
/// clock makes it print 0 now and then; it is run again then.
fn perftest(tool: &str, bytes: u64, times: u32, column: usize) -> f64 {
    let figures = (0..PERFTEST_TRIES).map(|_| perftest_once(tool, bytes, times, column));
    figures.into_iter().find(|figure| *figure > 0.0).expect("a figure that is not 0")
}

fn perftest_once(tool: &str, bytes: u64, times: u32, column: usize) -> f64 {
    let arguments = format!("-d {} -s {bytes} -n {times} -F", guest::DEVICE);
    let command = |peer: Option<String>| {
        let mut command = Command::new(tool);
        command.args(arguments.split_whitespace());
        command.args(peer);
        command
    };
    let server = Process::start(tool, command(None));
    wait::until("perftest to listen", START_MAX, || tcp_listens(EXCHANGE_PORT));
    let said = run(command(Some(guest::own_address().to_string())), RUN_MAX).success();
    let _said = server.wait(RUN_MAX).success();
    let (bytes, times) = (bytes.to_string(), times.to_string());
    let figures = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.len() > column && words[0] == bytes && words[1] == times)
        .unwrap_or_else(|| panic!("{tool} printed no figures:\n{said}"));
    figures[column].parse().expect("a number")
}

/// The average bandwidth that a tool of perftest reaches, bytes per second.
fn bandwidth(tool: &str, bytes: u64, times: u32) -> f64 {
    perftest(tool, bytes, times, 3) * MIB
}

/// The typical one-way latency that a tool of perftest sees, microseconds.
fn latency_us(tool: &str, bytes: u64) -> f64 {
    perftest(tool, bytes, 1000, 4)
}

/// What `gannet perf` reports of its workloads.
fn measure(workloads: &str, block_bytes: u64, depth: u32) -> Vec<serde_json::Value> {
    let mut command = Command::new(gannet());
    command
        .args("perf --json --no-ceilings --idle adaptive --core any --server-core any".split(' '));
    command.args(["--server", &format!("rdma://{}:{PORT}", guest::own_address())]);
    command.args("--size 16M --time 900ms --warm-up 150ms".split(' '));
    command.args(["--workload", workloads, "--block-size", &block_bytes.to_string()]);
    command.args(["--depth", &depth.to_string()]);
    let said = run(command, RUN_MAX).success();
    let json = said.find('{').map_or("", |start| &said[start..]);
    let report: serde_json::Value = serde_json::Deserializer::from_str(json)
        .into_iter()
        .next()
        .and_then(Result::ok)
        .unwrap_or_else(|| panic!("no report:\n{said}"));
    report["results"].as_array().expect("results").clone()
}

fn servers() -> Process {
    let directory = std::env::temp_dir().join("gannet-speed");
    let mut command = Command::new(gannet());
    command.arg("dev").arg("--dir").arg(&directory);
    command.args("--targets 1 --reactors 1 --store-size ram:256M --log-in-ram".split(' '));
    command.args(["--idle", "adaptive"]);
    command.args(["--listen", &format!("rdma://{}:{PORT}", guest::own_address())]);
    let servers = Process::start("gannet dev", command);
    let _line = servers.wait_line(START_MAX, |line| line.starts_with("ready: "));
    servers
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn transfers_go_at_the_device_s_speed() {
    let servers = servers();
    let mut latency = Shares::of_latency("4 KiB read at depth 1, of its three hops".to_owned());
    let mut rates = Vec::new();
    for (name, ..) in SIZES {
        rates.push(Shares::of_rate(format!("{name} reads, of ib_write_bw")));
        rates.push(Shares::of_rate(format!("{name} writes, of ib_read_bw")));
    }
    for _ in 0..ROUNDS {
        for ((_, bytes, times, depth), shares) in SIZES.into_iter().zip(rates.chunks_mut(2)) {
            let device_writes = bandwidth("ib_write_bw", bytes, times);
            let results = measure("read,write", bytes, depth);
            let device_reads = bandwidth("ib_read_bw", bytes, times);
            for (at, device) in [device_writes, device_reads].into_iter().enumerate() {
                let rate = results[at]["bytes_per_second"].as_f64().expect("a rate");
                shares[at].rounds.push(rate / device);
            }
        }
        let hops = 2.0 * latency_us("ib_send_lat", MESSAGE_BYTES)
            + latency_us("ib_write_lat", SMALL_BLOCK);
        let results = measure("randread", SMALL_BLOCK, 1);
        let p50_ns = results[0]["latency"]["p50_ns"].as_f64().expect("a latency");
        latency.rounds.push(p50_ns / 1e3 / hops);
    }
    assert!(servers.is_running());
    rates.push(latency);
    for shares in &rates {
        println!("{shares}");
    }
    let goals = std::env::var_os("GANNET_VM_GOALS").is_some();
    for shares in &rates {
        let bound = if goals { shares.goal } else { shares.floor };
        assert!(shares.reaches(bound), "{shares}");
    }
}

/// Sizes of transfers: their name, bytes, how many perftest does, how many a host has outstanding.
const SIZES: [(&str, u64, u32, u32); 2] =
    [("64 KiB", 64 << 10, 500, 32), ("1 MiB", 1 << 20, 32, 8)];
