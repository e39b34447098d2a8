//! A whole run from a seed: a cluster, its load, its faults, and the verdict.

use std::fmt;
use std::time::Duration;

use gannet_runtime::time::Time;

use crate::cluster::{Cluster, Shape};
use crate::network::{Endpoint, NetworkStats};
use crate::random::{Chance, Random};
use crate::scheduler::Stuck;
use crate::trace::Trace;
use crate::workload::checker;

/// Virtual time that a cluster may take to finish its load once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(200);
/// How soon a start is tried again while a dead process's I/O runs.
const START_RETRY: Duration = Duration::from_millis(2);

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The hash over everything that happened: the same for the same seed.
    pub hash: u64,
    /// Virtual time at the end.
    pub time: Time,
    /// Rounds of the scheduler.
    pub rounds: u64,
    /// Operations on files that were done, are in doubt, and took no effect.
    pub ends: [u64; 3],
    /// Faults from outside.
    pub faults: u64,
    /// What the network did.
    pub network: NetworkStats,
    /// Errors that hosts were told.
    pub errors: Vec<(String, u32)>,
}

/// A run that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which seed.
    pub seed: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// The cluster's shape.
    pub shape: String,
    /// What everybody was doing at the end.
    pub state: String,
    /// The last steps, if they were asked for.
    pub steps: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed:", self.seed)?;
        for violation in &self.violations {
            writeln!(f, "  - {violation}")?;
        }
        writeln!(f, "{}", self.shape)?;
        write!(f, "{}", self.state)?;
        write!(f, "{}", self.steps)
    }
}

/// What comes back after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    Metaserver,
    Target(usize),
    Host(usize),
}

struct Run {
    cluster: Cluster,
    random: Random,
    recoveries: Vec<(Time, Recovery)>,
    heals: Vec<(Time, Endpoint, Endpoint)>,
    faults: u64,
}

/// Runs `seed` on a cluster of the shape that `shape` makes of it. Keeps the text of the last
/// `lines` steps.
///
/// # Errors
/// [`Failure`] when anything was wrong.
pub fn run(
    seed: u64,
    lines: usize,
    shape: impl FnOnce(&mut Random) -> Shape,
) -> Result<Report, Box<Failure>> {
    let random = Random::seeded(seed);
    let trace = Trace::new();
    trace.keep_lines(lines);
    let shape = shape(&mut random.stream("shape"));
    let cluster = Cluster::new(shape, &random, &trace);
    let mut run = Run {
        cluster,
        random: random.stream("faults"),
        recoveries: Vec::new(),
        heals: Vec::new(),
        faults: 0,
    };
    let outcome = run.everything();
    let cluster = &run.cluster;
    let mut violations = cluster.history.borrow().violations.clone();
    violations.extend(outcome.err());
    if !violations.is_empty() {
        return Err(Box::new(Failure {
            seed,
            violations,
            shape: format!("{:?}", cluster.shape),
            state: cluster.describe(),
            steps: trace.text(),
        }));
    }
    let ends = cluster.history.borrow().ends;
    Ok(Report {
        hash: trace.hash(),
        time: cluster.scheduler.now(),
        rounds: cluster.scheduler.rounds(),
        ends,
        faults: run.faults,
        network: cluster.network.stats(),
        errors: cluster.errors(),
    })
}

impl Run {
    fn everything(&mut self) -> Result<(), String> {
        for _ in 0..self.cluster.shape.hosts {
            self.cluster.add_host(self.cluster.shape.load.clone(), false);
        }
        let end_of_faults = self.now() + self.cluster.shape.faults.until;
        while self.now() < end_of_faults && !(self.cluster.is_done() && self.recoveries.is_empty())
        {
            let pause = self.random.delay(self.cluster.shape.faults.pause);
            let until = (self.now() + pause).min(end_of_faults);
            self.run_to(until)?;
            if self.now() < end_of_faults {
                self.fault();
            }
        }
        self.heal();
        self.finish("the load")?;
        self.audit()?;
        self.judge()
    }

    fn now(&self) -> Time {
        self.cluster.scheduler.now()
    }

    fn stuck(&self, what: &str, stuck: &Stuck) -> String {
        format!("{what} does not end: {stuck}, at {} ns", self.now().0)
    }

    /// Runs up to a time, starting again what is due. Ends early when the hosts are done and
    /// nothing is down.
    fn run_to(&mut self, until: Time) -> Result<(), String> {
        while self.now() < until {
            self.recover();
            if self.recoveries.is_empty() && self.heals.is_empty() && self.cluster.is_done() {
                return Ok(());
            }
            let next = self.next_recovery().min(until);
            let span = next.since(self.now());
            let done = self.cluster.done();
            let ran = match self.cluster.scheduler.run_until(span, done) {
                // What happens next comes from outside.
                Err(Stuck::Quiescent { .. }) => self.cluster.run_for(next.since(self.now())),
                // Hosts are done: time passes for what is to come back.
                Ok(()) => self.cluster.run_for(next.since(self.now())),
                Err(Stuck::TimeLimit) => Ok(()),
                Err(stuck) => Err(stuck),
            };
            ran.map_err(|stuck| self.stuck("the load", &stuck))?;
            if let Some(reason) = self.cluster.failure() {
                return Err(format!("the metadata server failed: {reason}"));
            }
            if !self.cluster.history.borrow().violations.is_empty() {
                return Err("stopped at the first violation".to_owned());
            }
        }
        self.recover();
        Ok(())
    }

    fn next_recovery(&self) -> Time {
        let recoveries = self.recoveries.iter().map(|(at, _)| *at);
        let heals = self.heals.iter().map(|(at, ..)| *at);
        recoveries.chain(heals).min().unwrap_or(Time::NEVER)
    }

    /// Starts and heals what is due.
    fn recover(&mut self) {
        let now = self.now();
        let mut later = Vec::new();
        for (at, recovery) in std::mem::take(&mut self.recoveries) {
            if at > now {
                later.push((at, recovery));
                continue;
            }
            let is_up = match recovery {
                Recovery::Metaserver => self.cluster.start_metaserver(),
                Recovery::Target(index) => self.cluster.start_target(index),
                Recovery::Host(place) => {
                    self.cluster.restart_host(place);
                    true
                }
            };
            if !is_up {
                later.push((now + START_RETRY, recovery));
            }
        }
        self.recoveries = later;
        for (at, one, other) in std::mem::take(&mut self.heals) {
            if at > now {
                self.heals.push((at, one, other));
            } else {
                self.cluster.network.heal(&one, &other);
            }
        }
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let faults = self.cluster.shape.faults.clone();
        let weights = [
            faults.metaserver_crash,
            faults.metaserver_power,
            faults.target_crash,
            faults.target_power,
            faults.host_crash,
            faults.breaks,
            faults.partition,
            faults.stall,
            faults.target_stall,
            faults.channel_breaks,
        ];
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return;
        }
        let mut drawn = self.random.below(total);
        let mut choice = 0;
        while drawn >= weights[choice] {
            drawn -= weights[choice];
            choice += 1;
        }
        self.faults += 1;
        let down_until = self.now() + self.random.delay(faults.down);
        let lasting = self.random.delay(faults.lasting);
        let (targets, hosts) = (self.cluster.shape.targets, self.cluster.host_places());
        let coin = self.random.coin();
        match choice {
            0 | 1 => {
                self.cluster.crash_metaserver(choice == 1);
                self.recoveries.push((down_until, Recovery::Metaserver));
            }
            2 | 3 => {
                let target = self.random.index(targets);
                self.cluster.crash_target(target, choice == 3);
                self.recoveries.push((down_until, Recovery::Target(target)));
            }
            4 => {
                let host = self.random.index(hosts);
                self.cluster.crash_host(host);
                self.recoveries.push((down_until, Recovery::Host(host)));
            }
            5 | 6 => {
                let endpoints = self.cluster.endpoints();
                if endpoints.is_empty() {
                    return;
                }
                let mut pick = || endpoints[self.random.index(endpoints.len())].clone();
                let (one, other) = (pick(), pick());
                if choice == 5 {
                    self.cluster.network.break_between(&one, &other);
                    return;
                }
                let until = self.now() + lasting;
                self.cluster.network.partition(&one, &other);
                self.heals.push((until, one.clone(), other.clone()));
                if coin {
                    self.cluster.network.partition(&other, &one);
                    self.heals.push((until, other, one));
                }
            }
            7 => {
                let process = self.random.index(1 + targets + hosts);
                self.cluster.stall(process, lasting);
            }
            8 => {
                let target = self.random.index(targets);
                self.cluster.stall(1 + target, lasting);
            }
            _ => {
                let (servers, hosts) = self.cluster.channel_ends();
                if !servers.is_empty() && !hosts.is_empty() {
                    let server = &servers[self.random.index(servers.len())];
                    let host = &hosts[self.random.index(hosts.len())];
                    self.cluster.network.break_between(host, server);
                }
            }
        }
    }

    /// From now on nothing goes wrong.
    fn heal(&mut self) {
        let now = self.now();
        self.recoveries.iter_mut().for_each(|(at, _)| *at = (*at).min(now));
        self.heals.clear();
        self.cluster.network.heal_all();
        self.cluster.network.tune(|options| {
            options.break_connection = Chance::NEVER;
        });
    }

    /// Lets all hosts come to their end.
    fn finish(&mut self, what: &str) -> Result<(), String> {
        let until = self.now() + PATIENCE;
        self.run_to(until)?;
        if self.cluster.is_done() {
            Ok(())
        } else {
            Err(format!("{what} does not end in {} s of virtual time", PATIENCE.as_secs()))
        }
    }

    /// A further host reads everything; then all sessions that nobody uses end, and the state at
    /// rest is looked at.
    fn audit(&mut self) -> Result<(), String> {
        let load = self.cluster.shape.load.clone();
        self.cluster.add_host(load, true);
        self.finish("the audit")?;
        let rest = self.cluster.shape.lease + Duration::from_secs(15);
        let rested = self.cluster.run_for(rest);
        rested.map_err(|stuck| self.stuck("the rest", &stuck))?;
        self.cluster.check_at_rest();
        Ok(())
    }

    fn judge(&self) -> Result<(), String> {
        let history = self.cluster.history.borrow();
        for file in 0..history.files.len() {
            checker::check_file(&history, file)?;
        }
        checker::check_log(&history)
    }
}
