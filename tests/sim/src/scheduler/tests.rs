//! Two small roles on a simulated network and disk.
#![allow(clippy::unwrap_used)]

use std::os::fd::BorrowedFd;

use gannet_disk::{BLOCK_BYTES, Completion, Disk, Durability, FileId, Transfer};
use gannet_fabric::{Address, ConnectionId, Event, Events, Fabric, PostError};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;

use super::*;
use crate::disk::{DiskOptions, SimMedium};
use crate::network::{Model, NetworkOptions, SimNetwork};

const RETRY: Duration = Duration::from_millis(1);

fn address() -> Address {
    Address::shm("/sim/echo").unwrap()
}

/// Answers each message with the same bytes once they are durable.
struct Echo<F, D> {
    fabric: F,
    disk: D,
    pool: BufferPool,
    events: Events,
    /// To be answered when the write with this token is done.
    waiting: Vec<(u64, ConnectionId, Vec<u8>)>,
    answers: Vec<(ConnectionId, Vec<u8>)>,
    writes: u64,
}

impl<F: Fabric, D: Disk> Echo<F, D> {
    fn new(mut fabric: F, disk: D) -> Echo<F, D> {
        fabric.listen(&address()).unwrap();
        Echo {
            fabric,
            disk,
            pool: BufferPool::new(BLOCK_BYTES, 32).unwrap(),
            events: Events::default(),
            waiting: Vec::new(),
            answers: Vec::new(),
            writes: 0,
        }
    }
}

impl<F: Fabric, D: Disk> Poller for Echo<F, D> {
    fn poll(&mut self, now: Now) -> usize {
        self.fabric.poll(now.time, &mut self.events);
        let mut done: Vec<Completion> = Vec::new();
        self.disk.poll(now.time, &mut done);
        let work = self.events.len() + done.len();
        while let Some(event) = self.events.pop() {
            if let Event::Message { connection, bytes } = event {
                self.writes += 1;
                let bytes = self.events.message(bytes).to_vec();
                self.waiting.push((self.writes, connection, bytes));
                let mut buffer = self.pool.take().unwrap();
                buffer[..8].copy_from_slice(&self.writes.to_le_bytes());
                let write = Transfer {
                    token: self.writes,
                    file: FileId(0),
                    offset: 0,
                    memory: Memory::Buffer(buffer),
                    memory_offset: 0,
                    len_bytes: BLOCK_BYTES,
                };
                self.disk.write(write, Durability::Durable).unwrap();
            }
        }
        self.events.clear();
        for completion in done {
            let of = self.waiting.iter().position(|waiting| waiting.0 == completion.token);
            let (_, connection, bytes) = self.waiting.remove(of.unwrap());
            self.answers.push((connection, bytes));
        }
        let fabric = &mut self.fabric;
        self.answers.retain(|(to, bytes)| fabric.send(*to, bytes) == Err(PostError::Full));
        self.disk.flush();
        self.fabric.flush();
        work
    }

    fn deadline(&self) -> Time {
        Time::NEVER
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        self.waiting.is_empty() && self.answers.is_empty()
    }
}

/// Sends numbers one after the other, and again on a new connection if the old one ends.
struct Ping<F> {
    fabric: F,
    events: Events,
    connection: Option<ConnectionId>,
    is_open: bool,
    retry_at: Time,
    next: u64,
    is_asked: bool,
    reconnects: u64,
}

impl<F: Fabric> Ping<F> {
    fn new(fabric: F) -> Ping<F> {
        Ping {
            fabric,
            events: Events::default(),
            connection: None,
            is_open: false,
            retry_at: Time::ZERO,
            next: 0,
            is_asked: false,
            reconnects: 0,
        }
    }
}

impl<F: Fabric> Poller for Ping<F> {
    fn poll(&mut self, now: Now) -> usize {
        let mut work = 0;
        if self.connection.is_none() && now.time >= self.retry_at {
            self.connection = Some(self.fabric.connect(&address()).unwrap());
            work += 1;
        }
        self.fabric.poll(now.time, &mut self.events);
        work += self.events.len();
        while let Some(event) = self.events.pop() {
            match event {
                Event::Connected { .. } => self.is_open = true,
                Event::Message { bytes, .. } => {
                    assert_eq!(self.events.message(bytes), self.next.to_le_bytes());
                    self.next += 1;
                    self.is_asked = false;
                }
                Event::Disconnected { .. } => {
                    (self.connection, self.is_open, self.is_asked) = (None, false, false);
                    self.retry_at = now.time + RETRY;
                    self.reconnects += 1;
                }
                _ => {}
            }
        }
        self.events.clear();
        if let Some(connection) = self.connection
            && self.is_open
            && !self.is_asked
        {
            self.is_asked = self.fabric.send(connection, &self.next.to_le_bytes()).is_ok();
            work += 1;
        }
        self.fabric.flush();
        work
    }

    fn deadline(&self) -> Time {
        if self.connection.is_none() { self.retry_at } else { Time::NEVER }
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        true
    }
}

struct World {
    scheduler: Scheduler,
    network: SimNetwork,
    medium: SimMedium,
    trace: Trace,
    pings: Vec<Rc<RefCell<Ping<crate::network::SimFabric>>>>,
    ping_roles: Vec<RoleId>,
    echo: RoleId,
}

impl World {
    fn new(network: NetworkOptions, disk: DiskOptions, seed: u64) -> World {
        let (trace, random) = (Trace::new(), Random::seeded(seed));
        let network = SimNetwork::new(network, &random, &trace);
        let medium = SimMedium::new("echo", disk, &random, &trace);
        medium.create_file("log", 4096, 4096).unwrap();
        let mut scheduler = Scheduler::new(SchedulerOptions::default(), &random, &trace);
        scheduler.add_device(Rc::new(network.clone()));
        scheduler.add_device(Rc::new(medium.clone()));
        let mut pings = Vec::new();
        let mut ping_roles = Vec::new();
        for index in 0..3 {
            let name = format!("ping{index}");
            let fabric = network.fabric(&name);
            let endpoint = fabric.endpoint();
            let ping = Rc::new(RefCell::new(Ping::new(fabric)));
            ping_roles.push(scheduler.add_role(&name, ping.clone(), vec![endpoint]));
            pings.push(ping);
        }
        let mut world =
            World { scheduler, network, medium, trace, pings, ping_roles, echo: RoleId(0) };
        world.start_echo();
        world
    }

    fn start_echo(&mut self) {
        let fabric = self.network.fabric("echo");
        let endpoint = fabric.endpoint();
        let echo = Echo::new(fabric, self.medium.lock().unwrap().disk());
        self.echo = self.scheduler.add_role("echo", Rc::new(RefCell::new(echo)), vec![endpoint]);
    }

    fn kill_echo(&mut self) {
        self.scheduler.kill(self.echo);
        self.medium.kill();
    }

    fn run_until_each_has(&mut self, count: u64) -> Result<(), Stuck> {
        let pings = self.pings.clone();
        self.scheduler.run_until(Duration::from_secs(60), |_| {
            pings.iter().all(|ping| ping.borrow().next >= count)
        })
    }

    /// A run with deaths, restarts and standstills; what it comes to.
    fn eventful(seed: u64, model: Model) -> (u64, Time, Vec<u64>) {
        let options = NetworkOptions {
            break_connection: Chance::percent(1),
            ..NetworkOptions::hostile(model)
        };
        let mut world = World::new(options, DiskOptions::hostile(), seed);
        world.medium.tune(|options| options.spurious_full = Chance::NEVER);
        for goal in [10, 20, 30] {
            world.run_until_each_has(goal).unwrap();
            world.scheduler.stall(world.ping_roles[0], Duration::from_millis(30));
            world.kill_echo();
            if goal == 20 {
                world.medium.lose_power();
            }
            let medium = world.medium.clone();
            world.scheduler.run_until(Duration::from_secs(5), |_| medium.lock().is_ok()).unwrap();
            world.start_echo();
        }
        world.run_until_each_has(40).unwrap();
        let reconnects = world.pings.iter().map(|ping| ping.borrow().reconnects).collect();
        (world.trace.hash(), world.scheduler.now(), reconnects)
    }
}

#[test]
fn roles_work_in_virtual_time() {
    let mut world = World::new(NetworkOptions::calm(Model::Shm), DiskOptions::calm(), 1);
    world.run_until_each_has(100).unwrap();
    let passed = world.scheduler.now().since(Time::ZERO);
    // 100 times a hop, a write and a hop back.
    assert!(passed > Duration::from_micros(1200), "{passed:?}");
    assert!(passed < Duration::from_millis(40), "{passed:?}");
}

#[test]
fn a_seed_run_twice_is_the_same_run() {
    for model in [Model::Shm, Model::Verbs] {
        let first = World::eventful(11, model);
        assert_eq!(first, World::eventful(11, model));
        assert_ne!(first.0, World::eventful(12, model).0);
        assert!(first.2.iter().all(|reconnects| *reconnects >= 3), "{:?}", first.2);
    }
}

#[test]
fn a_role_that_stands_still_is_not_polled() {
    let mut world = World::new(NetworkOptions::calm(Model::Shm), DiskOptions::calm(), 2);
    world.run_until_each_has(5).unwrap();
    world.scheduler.stall(world.ping_roles[0], Duration::from_millis(100));
    let before = world.pings[0].borrow().next;
    world.scheduler.run_for(Duration::from_millis(99)).unwrap();
    assert_eq!(world.pings[0].borrow().next, before);
    assert!(world.pings[1].borrow().next > before + 100);
    world.scheduler.run_for(Duration::from_millis(5)).unwrap();
    assert!(world.pings[0].borrow().next > before);
}

#[test]
fn a_stopped_role_finishes_first() {
    let mut world = World::new(NetworkOptions::calm(Model::Shm), DiskOptions::calm(), 3);
    world.run_until_each_has(5).unwrap();
    world.scheduler.stop(world.echo);
    let echo = world.echo;
    world.scheduler.run_for(Duration::from_secs(1)).unwrap();
    assert!(!world.scheduler.is_running(echo));
    // Its lock went with it.
    world.start_echo();
    let so_far = world.pings[0].borrow().next;
    world.run_until_each_has(so_far + 5).unwrap();
}

/// A role that always wants to be polled and never works.
struct Spinner;

impl Poller for Spinner {
    fn poll(&mut self, _now: Now) -> usize {
        0
    }

    fn deadline(&self) -> Time {
        Time::ZERO
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, _now: Now) -> bool {
        true
    }
}

#[test]
fn runs_that_cannot_end_are_told() {
    let (trace, random) = (Trace::new(), Random::seeded(4));
    let mut scheduler = Scheduler::new(SchedulerOptions::default(), &random, &trace);
    let forever = Duration::from_secs(3600);
    assert!(matches!(scheduler.run_until(forever, |_| false), Err(Stuck::Quiescent { .. })));
    scheduler.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(scheduler.now(), Time(1_000_000_000));
    scheduler.run_to_quiescence(forever).unwrap();
    let spinner = scheduler.add_role("spinner", Rc::new(RefCell::new(Spinner)), Vec::new());
    let stuck = scheduler.run_until(forever, |_| false).unwrap_err();
    assert_eq!(stuck, Stuck::Spins { role: "spinner".to_owned() });
    scheduler.kill(spinner);

    let mut world = World::new(NetworkOptions::calm(Model::Shm), DiskOptions::calm(), 5);
    let stuck = world.scheduler.run_until(Duration::from_millis(1), |_| false);
    assert_eq!(stuck, Err(Stuck::TimeLimit));
}
