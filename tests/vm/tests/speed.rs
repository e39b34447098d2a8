//! How near the host's reads and writes come to what the device gives, measured with perftest in the
//! same boot, round by round in turn.
//!
//! The servers are one process, with RDMA between all parties, the two servers included: a metadata
//! server, and one data server with a store in memory. Three parties have the two cores of the
//! emulated machine. For rates the data server has one of them for itself, since all work on the
//! bytes is done by the processor that posts a transfer. For latency both servers share a thread,
//! which leaves the host one core; a read is compared with the three one-way hops that it is made
//! of: request, grant, and data with its notice.
//!
//! At 64 KiB a host keeps as many requests outstanding as perftest does by default.
//!
//! An emulated machine that shares its processors' caches with strangers has seconds in which it is
//! slower by a third, and they fall on one side or the other of a comparison. So what is short of its
//! goal after the first rounds is measured for ten rounds more, and the median of all of them decides;
//! nobody looks at it in between.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use gannet_vm::guest::{self, gannet, tcp_listens};
use gannet_vm::process::{Process, run};
use gannet_vm::wait;

const ROUNDS: usize = 5;
/// With those that follow where a median is short of its goal; odd, as medians like it.
const ROUNDS_MAX: usize = 15;
const PERFTEST_TRIES: usize = 3;
const START_MAX: Duration = Duration::from_secs(30);
const RUN_MAX: Duration = Duration::from_secs(120);
/// Where perftest exchanges its queue pairs' numbers.
const EXCHANGE_PORT: u16 = 18515;
/// About the size of a request and of a grant, bytes.
const MESSAGE_BYTES: u64 = 128;
const SMALL_BLOCK: u64 = 4 << 10;
const MIB: f64 = (1 << 20) as f64;

/// A figure in every round, in units of what perftest reached in that round.
struct Shares {
    what: String,
    goal: Goal,
    rounds: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Shares {
    fn new(what: String, goal: Goal) -> Shares {
        Shares { what, goal, rounds: Vec::new() }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn is_reached(&self) -> bool {
        match self.goal {
            Goal::AtLeast(goal) => self.median() >= goal,
            Goal::AtMost(goal) => self.median() <= goal,
        }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, goal) = match self.goal {
            Goal::AtLeast(goal) => ("at least", goal),
            Goal::AtMost(goal) => ("at most", goal),
        };
        write!(f, "{:<44} {:.2} (goal: {word} {goal}; rounds:", self.what, self.median())?;
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
fn measure(on: On, workloads: &str, block_bytes: u64, depth: u32) -> Vec<serde_json::Value> {
    let mut command = Command::new(gannet());
    command.args("perf --json --no-ceilings --idle adaptive --server-core any".split(' '));
    command.args(["--core", on.host_core(), "--server", &on.address()]);
    command.args("--size 32M --time 900ms --warm-up 150ms".split(' '));
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

/// Where the servers run.
#[derive(Clone, Copy, Debug)]
enum On {
    /// The data server on core 1, the metadata server on core 0, as the host.
    CoresOfTheirOwn,
    /// Both on one thread.
    OneThread,
}

impl On {
    /// Where the servers listen; on the ports behind it too.
    fn address(self) -> String {
        let port = match self {
            On::CoresOfTheirOwn => 7570,
            On::OneThread => 7590,
        };
        format!("rdma://{}:{port}", guest::own_address())
    }

    fn host_core(self) -> &'static str {
        match self {
            On::CoresOfTheirOwn => "0",
            On::OneThread => "any",
        }
    }

    fn servers(self) -> Process {
        let directory = std::env::temp_dir().join(format!("gannet-speed-{self:?}"));
        let mut command = Command::new(gannet());
        command.arg("dev").arg("--dir").arg(&directory);
        command.args("--targets 1 --reactors 1 --store-size ram:256M --log-in-ram".split(' '));
        command.args(["--idle", "adaptive", "--listen", &self.address()]);
        if let On::CoresOfTheirOwn = self {
            command.args(["--cores", "0,1"]);
        }
        let servers = Process::start("gannet dev", command);
        let _line = servers.wait_line(START_MAX, |line| line.starts_with("ready: "));
        servers
    }
}

/// What is measured together, and the shares that come of it.
struct Measured {
    what: What,
    shares: Vec<Shares>,
}

#[derive(Clone, Copy)]
enum What {
    /// Reads and writes of one size.
    Rates { bytes: u64, perftest_times: u32, depth: u32 },
    /// The latency of a small read that is alone.
    Latency,
}

impl Measured {
    fn rates(name: &str, what: What) -> Measured {
        let share = |what| Shares::new(what, Goal::AtLeast(0.90));
        let reads = share(format!("{name} reads, of ib_write_bw"));
        let writes = share(format!("{name} writes, of ib_read_bw"));
        Measured { what, shares: vec![reads, writes] }
    }

    fn latency() -> Measured {
        let what = "4 KiB read at depth 1, of its three hops".to_owned();
        Measured { what: What::Latency, shares: vec![Shares::new(what, Goal::AtMost(2.5))] }
    }

    fn round(&mut self) {
        let of_round = match self.what {
            What::Rates { bytes, perftest_times, depth } => {
                let device_writes = bandwidth("ib_write_bw", bytes, perftest_times);
                let results = measure(On::CoresOfTheirOwn, "read,write", bytes, depth);
                let device_reads = bandwidth("ib_read_bw", bytes, perftest_times);
                let rate = |at: usize| results[at]["bytes_per_second"].as_f64().expect("a rate");
                vec![rate(0) / device_writes, rate(1) / device_reads]
            }
            What::Latency => {
                let hops = 2.0 * latency_us("ib_send_lat", MESSAGE_BYTES)
                    + latency_us("ib_write_lat", SMALL_BLOCK);
                let results = measure(On::OneThread, "randread", SMALL_BLOCK, 1);
                let p50_ns = results[0]["latency"]["p50_ns"].as_f64().expect("a latency");
                vec![p50_ns / 1e3 / hops]
            }
        };
        for (shares, share) in self.shares.iter_mut().zip(of_round) {
            println!("{:<44} {share:.2}", shares.what);
            shares.rounds.push(share);
        }
    }

    fn is_reached(&self) -> bool {
        self.shares.iter().all(Shares::is_reached)
    }
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn transfers_go_at_the_device_s_speed() {
    let servers = [On::CoresOfTheirOwn, On::OneThread].map(On::servers);
    let small = What::Rates { bytes: 64 << 10, perftest_times: 800, depth: 128 };
    let large = What::Rates { bytes: 1 << 20, perftest_times: 48, depth: 16 };
    let mut all =
        [Measured::rates("64 KiB", small), Measured::rates("1 MiB", large), Measured::latency()];
    for _ in 0..ROUNDS {
        all.iter_mut().for_each(Measured::round);
    }
    let mut short: Vec<_> = all.iter_mut().filter(|measured| !measured.is_reached()).collect();
    for _ in ROUNDS..ROUNDS_MAX {
        short.iter_mut().for_each(|measured| measured.round());
    }
    assert!(servers.iter().all(Process::is_running));
    let shares = || all.iter().flat_map(|measured| &measured.shares);
    for shares in shares() {
        println!("{shares}");
    }
    for shares in shares() {
        assert!(shares.is_reached(), "{shares}");
    }
}
