//! `kill -9` of servers and hosts in a loop, under load: nothing that was acknowledged is lost, what was
//! not is there as a whole or not at all, and the metadata passes its check.
//!
//! `GANNET_KILLS=n` kills n times instead of the usual number.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gannet_client::Ownership;
use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::load::{Load, LoadOptions, open};
use gannet_integration::one_at_a_time;
use gannet_integration::oracle::Node;
use gannet_integration::pattern::Random;
use gannet_integration::process::Server;
use gannet_integration::worker::{Workplace, verify};

/// Kills of a usual run.
const KILLS: u64 = 200;
/// Processes that change names and files, beside a load on a thread.
const WORKERS: usize = 3;
/// Most requests of the load that complete between two kills.
const BETWEEN_MAX: u64 = 500;
/// How long after the return of what was killed the requests that were outstanding may take.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// Kills between two comparisons of everything that the load has written.
const CHECK_KILLS: u64 = 20;
const REACTORS: u16 = 2;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Metaserver,
    Target(usize),
    Worker(usize),
    Servers,
    /// All servers and a worker.
    Everything,
}

/// One after the other.
const ROLES: [Role; 9] = [
    Role::Metaserver,
    Role::Target(0),
    Role::Worker(0),
    Role::Servers,
    Role::Worker(2),
    Role::Metaserver,
    Role::Target(1),
    Role::Worker(1),
    Role::Everything,
];

struct Test {
    cluster: Cluster,
    workers: Vec<Option<Server>>,
    /// Times of the check of the logs, and what it called unfinished.
    checks: (u64, Duration),
    unfinished: u64,
}

fn workplace(cluster: &Cluster, worker: usize) -> Workplace {
    Workplace {
        metaserver: cluster.address(),
        reactors: REACTORS,
        directory: cluster.directory().to_path_buf(),
        worker: worker as u32,
    }
}

impl Test {
    fn start_worker(&mut self, worker: usize) {
        let place = workplace(&self.cluster, worker);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gannet_worker"));
        command
            .arg(place.metaserver.to_string())
            .arg(place.reactors.to_string())
            .arg(&place.directory)
            .arg(place.worker.to_string());
        let log = place.directory.join(format!("worker-{worker}.log"));
        let server = Server::start(&format!("worker {worker}"), command, &log);
        self.workers[worker].insert(server).wait_ready();
    }

    fn kill_worker(&mut self, worker: usize) {
        self.workers[worker].take().expect("the worker runs").kill();
    }

    /// Checks the logs of a metadata server that was killed.
    fn check(&mut self) {
        let begun = Instant::now();
        let said = self.cluster.fsck();
        self.checks.0 += 1;
        self.checks.1 += begun.elapsed();
        assert_eq!(said["errors"], 0, "{said:#}");
        self.unfinished += said["unfinished"].as_u64().expect("a number");
    }

    /// Kills, and starts again at once. Returns since when all is back.
    fn kill(&mut self, role: Role, number: u64) -> Instant {
        match role {
            Role::Metaserver => {
                self.cluster.kill_metaserver();
                self.check();
                self.cluster.start_metaserver()
            }
            Role::Target(target) => {
                self.cluster.kill_target(target);
                self.cluster.start_target(target)
            }
            Role::Worker(worker) => {
                self.kill_worker(worker);
                self.start_worker(worker);
                Instant::now()
            }
            Role::Servers | Role::Everything => {
                let worker = number as usize / ROLES.len() % WORKERS;
                if role == Role::Everything {
                    self.kill_worker(worker);
                }
                self.cluster.kill_metaserver();
                self.cluster.kill_target(0);
                self.cluster.kill_target(1);
                self.check();
                // The metadata server first, or last: a data server waits for it.
                let back = self.cluster.start_in_order(number.is_multiple_of(2));
                if role == Role::Everything {
                    self.start_worker(worker);
                }
                back
            }
        }
    }

    fn are_running(&mut self) -> bool {
        let mut workers = self.workers.iter_mut().flatten();
        workers.all(Server::is_running) && self.cluster.is_running()
    }
}

/// What workers have done, over all their generations.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    generations: u64,
    acknowledged: u64,
    verified: u64,
    compared: u64,
    whole: u64,
    absent: u64,
}

/// Compares everything that workers have ever made.
fn compare(cluster: &Cluster) -> Sums {
    let mut session = open(&cluster.address());
    let mut sums = Sums::default();
    for worker in 0..WORKERS {
        let place = workplace(cluster, worker);
        for generation in 0..place.generations() {
            let record = place.record(generation);
            let verified = verify(&place, generation, &mut session);
            let verified = verified.unwrap_or_else(|text| panic!("{text}"));
            sums.generations += 1;
            sums.acknowledged += record.acknowledged;
            sums.verified += record.verified;
            sums.compared += verified.things;
            sums.whole += u64::from(verified.outstanding == Some(true));
            sums.absent += u64::from(verified.outstanding == Some(false));
        }
    }
    sums
}

/// Makes the directories that all workers share.
fn make_stage(cluster: &Cluster) {
    let mut session = open(&cluster.address());
    for path in Workplace::shared() {
        session.mkdir(&path, Ownership { mode: 0o755, uid: 0, gid: 0 }).expect("made");
    }
}

fn stop_workers(directory: &Path, workers: Vec<Option<Server>>) {
    std::fs::write(Workplace::stop_file(directory), "").expect("a file");
    workers.into_iter().flatten().for_each(Server::wait_end);
}

/// Each kind of loss is told, and put right again it is not.
#[test]
fn a_loss_is_noticed() {
    let _turn = one_at_a_time();
    let cluster = Cluster::new(ClusterOptions { reactors: REACTORS.into(), ..Default::default() });
    let mut session = open(&cluster.address());
    make_stage(&cluster);
    let workers = vec![None];
    let mut test = Test { cluster, workers, checks: (0, Duration::ZERO), unfinished: 0 };
    test.start_worker(0);
    let place = workplace(&test.cluster, 0);
    let wanted = |node: &Node| matches!(node, Node::File(content) if content.size() > 1);
    let begun = Instant::now();
    // Something to lose.
    let has_written = || {
        let tree = place.record(0).tree;
        tree.paths().into_values().any(|node| wanted(tree.node(node)))
    };
    while !has_written() {
        assert!(begun.elapsed() < RECOVERY_MAX, "the worker writes nothing");
    }
    stop_workers(test.cluster.directory(), test.workers.drain(..).collect());
    let tree = place.record(0).tree;
    let (path, _) = tree
        .paths()
        .into_iter()
        .find(|(_, node)| wanted(tree.node(*node)))
        .expect("it had written something");
    let bytes = tree.content(&path).bytes();
    let file = session.resolve(&path).expect("it is there").handle;
    let other = format!("/shared-0/{}lost", place.prefix(0));
    let look = || {
        let mut session = open(&place.metaserver);
        verify(&place, 0, &mut session).map(|verified| verified.outstanding)
    };
    assert_eq!(look(), Ok(None));

    let (last, lost) = (bytes.len() as u64 - 1, bytes[bytes.len() - 1] ^ 1);
    session.write_at(file, last, &[lost]).expect("written");
    assert!(look().is_err_and(|text| text.contains("and others from")));
    session.write_at(file, last, &bytes[last as usize..]).expect("written");
    assert_eq!(look(), Ok(None));

    session.truncate(file, last).expect("cut");
    assert!(look().is_err_and(|text| text.contains("bytes instead of")));
    session.write_at(file, last, &bytes[last as usize..]).expect("written");
    assert_eq!(look(), Ok(None));

    session.link(&path, &other).expect("linked");
    assert!(look().is_err(), "a name that nobody made");
    session.unlink(&other).expect("removed");
    assert_eq!(look(), Ok(None));

    session.rename(&path, "/elsewhere").expect("moved");
    assert!(look().is_err(), "a name is gone");
    session.rename("/elsewhere", &path).expect("moved");
    assert_eq!(look(), Ok(None));
    drop(session);
    test.cluster.stop();
}

#[test]
fn nothing_acknowledged_is_lost_by_killing_in_a_loop() {
    let _turn = one_at_a_time();
    let kills = std::env::var("GANNET_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let options = ClusterOptions { reactors: REACTORS.into(), ..Default::default() };
    let cluster = Cluster::new(options);
    make_stage(&cluster);
    let load = LoadOptions { depth: 16, file_bytes: 1 << 20, ..LoadOptions::default() };
    let mut load = Load::start(&cluster.address(), load);
    let workers = (0..WORKERS).map(|_| None).collect();
    let mut test = Test { cluster, workers, checks: (0, Duration::ZERO), unfinished: 0 };
    for worker in 0..WORKERS {
        test.start_worker(worker);
    }

    let (mut random, begun) = (Random::new(kills), Instant::now());
    let mut by_role: BTreeMap<Role, (u64, Duration)> = BTreeMap::new();
    let (mut longest, mut reads, mut writes, mut names) = (Duration::ZERO, 0, 0, 0);
    for number in 0..kills {
        load.progress(1 + random.below(BETWEEN_MAX));
        let role = ROLES[number as usize % ROLES.len()];
        let killed = Instant::now();
        let back = test.kill(role, number);
        let sum = by_role.entry(role).or_default();
        *sum = (sum.0 + 1, sum.1 + killed.elapsed());
        let recovered = load.settle().saturating_duration_since(back);
        longest = longest.max(recovered);
        assert!(recovered <= RECOVERY_MAX, "{role:?}: {recovered:?}");
        assert!(test.are_running(), "{role:?}: only what was killed was away");
        if (number + 1).is_multiple_of(CHECK_KILLS) {
            let done = load.check();
            (reads, writes, names) = (reads + done.reads, writes + done.writes, names + done.names);
        }
    }
    let took = begun.elapsed();

    let Test { mut cluster, workers, .. } = test;
    stop_workers(cluster.directory(), workers);
    let (model, done) = load.finish();
    (reads, writes, names) = (reads + done.reads, writes + done.writes, names + done.names);
    let before = compare(&cluster);
    model.verify(&mut open(&cluster.address()));
    cluster.stop();
    let said = cluster.fsck();
    assert_eq!((&said["errors"], &said["unfinished"]), (&0.into(), &0.into()), "{said:#}");
    cluster.start();
    let after = compare(&cluster);
    model.verify(&mut open(&cluster.address()));
    assert_eq!(
        (before.whole, before.compared),
        (after.whole, after.compared),
        "a restart changes it"
    );
    cluster.stop();

    println!("{kills} kills in {:.1} s:", took.as_secs_f64());
    for (role, (count, time)) in &by_role {
        println!("  {role:?}: {count}, back after {:?} on average", *time / *count as u32);
    }
    println!(
        "  requests done again {longest:?} after the return at the latest\n  \
         {} checks of logs, {:?} each, {} unfinished, no error\n  \
         workers: {} changes acknowledged in {} generations, {} things verified meanwhile and {} at \
         the end; of changes under way at a kill {} whole, {} absent\n  \
         load: {reads} reads checked, {writes} writes and {names} changes of names acknowledged",
        test.checks.0,
        test.checks.1 / test.checks.0 as u32,
        test.unfinished,
        after.acknowledged,
        after.generations,
        after.verified,
        after.compared,
        after.whole,
        after.absent,
    );
    let worker_kills =
        by_role.iter().filter(|(role, _)| matches!(role, Role::Worker(_) | Role::Everything));
    let worker_kills: u64 = worker_kills.map(|(_, (count, _))| count).sum();
    assert!(after.generations >= worker_kills + WORKERS as u64, "each kill begins a generation");
    assert!(after.acknowledged > kills * 10, "{} changes are no load", after.acknowledged);
    assert!(after.verified > kills && after.compared > after.generations, "{after:?}");
    assert!(writes > kills * 10 && reads > kills * 10 && names > kills, "the load goes on");
}
