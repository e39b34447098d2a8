//! A whole cluster of the real roles on a simulated network and simulated disks.
//!
//! Processes live and die here: a metadata server of several reactors with one medium for its logs,
//! data servers with a medium each, hosts with their memory. What survives a death is the media and
//! what others hold; everything else is made anew at the next start.

mod look;
mod shape;

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use gannet_client::ClientOptions;
use gannet_disk::FileId;
use gannet_fabric::Address;
use gannet_metaserver::{MetaServer, MetaServerConfig, peers};
use gannet_proto::SessionId;
use gannet_proto::control::StoreInfo;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;
use gannet_target::{OpenStore, Target, TargetConfig};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

pub use shape::{Defect, Faults, Shape};

use crate::disk::{SimDisk, SimMedium};
use crate::network::{Endpoint, SimFabric, SimNetwork};
use crate::random::Random;
use crate::scheduler::{RoleId, Scheduler, SchedulerOptions, Stuck};
use crate::trace::Trace;
use crate::workload::history::{History, SharedHistory};
use crate::workload::host::{Board, Host, HostOptions, SharedBoard};

/// Bytes of a new log, and how far it may grow.
const LOG_BYTES: (u64, u64) = (256 << 10, 64 << 20);
/// Names the file system of every simulation.
const FILE_SYSTEM: [u8; 16] = [7; 16];

/// A metadata-server reactor, with the rule that it breaks.
pub struct Reactor {
    server: MetaServer<SimFabric, SimDisk>,
    defect: Option<Defect>,
}

impl Reactor {
    /// The server.
    #[must_use]
    pub fn server(&self) -> &MetaServer<SimFabric, SimDisk> {
        &self.server
    }

    #[cfg(feature = "defects")]
    fn break_rules(&mut self) {
        match self.defect {
            Some(Defect::OutputGate) => self.server.break_output_gate(),
            Some(Defect::Attempts) => {
                if let Some(core) = self.server.core_mut() {
                    core.break_attempts();
                }
            }
            Some(Defect::Pins) => {
                if let Some(core) = self.server.core_mut() {
                    core.break_pins();
                }
            }
            Some(Defect::Decisions) => {
                if let Some(core) = self.server.core_mut() {
                    core.break_decisions();
                }
            }
            _ => {}
        }
    }

    #[cfg(not(feature = "defects"))]
    fn break_rules(&mut self) {
        assert_eq!(self.defect, None, "defects are compiled in with the feature `defects` only");
    }
}

impl Poller for Reactor {
    fn poll(&mut self, now: Now) -> usize {
        self.break_rules();
        self.server.poll(now)
    }

    fn deadline(&self) -> Time {
        self.server.deadline()
    }

    fn arm(&mut self) {}

    fn disarm(&mut self) {}

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn shutdown(&mut self, now: Now) -> bool {
        self.server.shutdown(now)
    }
}

/// A process: its roles and what is known of it outside.
struct Process<R> {
    roles: Vec<RoleId>,
    values: Vec<Rc<RefCell<R>>>,
    endpoints: Vec<Endpoint>,
}

type SimTarget = Target<SimFabric, SimDisk>;

/// A host's slot: when its process dies, another one takes the place.
struct HostPlace {
    process: Option<Process<Host>>,
    instances: u64,
}

/// A running cluster.
pub struct Cluster {
    /// How it looks.
    pub shape: Shape,
    /// Whose turn it is.
    pub scheduler: Scheduler,
    /// Its network.
    pub network: SimNetwork,
    /// What hosts did.
    pub history: SharedHistory,
    /// What was recorded.
    pub trace: Trace,
    board: SharedBoard,
    random: Random,
    metaserver_medium: SimMedium,
    metaserver: Option<Process<Reactor>>,
    target_media: Vec<SimMedium>,
    targets: Vec<Option<Process<SimTarget>>>,
    target_starts: Vec<u32>,
    hosts: Vec<HostPlace>,
}

impl Cluster {
    /// Makes a cluster and starts it, without hosts.
    ///
    /// # Panics
    /// Without memory.
    #[must_use]
    pub fn new(shape: Shape, random: &Random, trace: &Trace) -> Cluster {
        let network = SimNetwork::new(shape.network.clone(), random, trace);
        let mut scheduler = Scheduler::new(SchedulerOptions::default(), random, trace);
        scheduler.add_device(Rc::new(network.clone()));
        let medium = SimMedium::new("meta", shape.metaserver_disk.clone(), random, trace);
        for reactor in 0..shape.reactors {
            let (len_bytes, capacity_bytes) = LOG_BYTES;
            let name = format!("log.{reactor}");
            let log = medium.create_file(&name, len_bytes, capacity_bytes).expect("memory");
            let reactors = shape.reactors as u16;
            let mut superblock =
                gannet_metaserver::format::superblock(FILE_SYSTEM, reactor as u16, reactors);
            superblock.stripe_blocks = U32::new(shape.stripe_blocks);
            superblock.stripe_width = U16::new(shape.stripe_width);
            superblock.seal();
            medium.damage(log, 0, superblock.as_bytes());
        }
        scheduler.add_device(Rc::new(medium.clone()));
        let store_bytes = shape.store_blocks * u64::from(BLOCK_BYTES);
        let target_media: Vec<SimMedium> = (0..shape.targets)
            .map(|index| {
                let name = format!("target.{index}");
                let medium = SimMedium::new(&name, shape.target_disk.clone(), random, trace);
                if shape.ram_stores {
                    medium.create_ram("blocks", store_bytes).expect("memory");
                } else {
                    medium.create_file("blocks", store_bytes, store_bytes).expect("memory");
                }
                medium
            })
            .collect();
        for medium in &target_media {
            scheduler.add_device(Rc::new(medium.clone()));
        }
        let board = Board {
            directories: vec![None; shape.load.directories],
            files: vec![None; shape.load.shared_files + 1],
            ..Board::default()
        };
        let history = History::new(shape.load.shared_files + 1);
        let mut cluster = Cluster {
            targets: (0..shape.targets).map(|_| None).collect(),
            target_starts: vec![0; shape.targets],
            hosts: Vec::new(),
            scheduler,
            network,
            history: Rc::new(RefCell::new(history)),
            trace: trace.clone(),
            board: Rc::new(RefCell::new(board)),
            random: random.stream("cluster"),
            metaserver_medium: medium,
            metaserver: None,
            target_media,
            shape,
        };
        cluster.start_metaserver();
        for index in 0..cluster.targets.len() {
            cluster.start_target(index);
        }
        cluster
    }

    fn metaserver_addresses(&self) -> Vec<Vec<Address>> {
        (0..self.shape.reactors).map(|reactor| vec![address(&format!("meta.{reactor}"))]).collect()
    }

    /// Starts the metadata server if it is down. False: its media are still in use.
    ///
    /// # Panics
    /// Without memory.
    pub fn start_metaserver(&mut self) -> bool {
        if self.metaserver.is_some() {
            return true;
        }
        let Ok(lock) = self.metaserver_medium.lock() else { return false };
        let addresses = self.metaserver_addresses();
        let links = peers::link(addresses.len()).expect("eventfds");
        let mut process = Process::new();
        for (reactor, link) in links.into_iter().enumerate() {
            let name = format!("meta.{reactor}");
            let fabric = self.network.fabric(&name);
            let endpoint = fabric.endpoint();
            let mut seed = [0; 32];
            for word in seed.chunks_exact_mut(8) {
                word.copy_from_slice(&self.random.bits().to_le_bytes());
            }
            let config = MetaServerConfig {
                lease: self.shape.lease,
                slots: self.shape.slots,
                ..MetaServerConfig::new(reactor as u16, addresses.clone(), seed)
            };
            let log = FileId(reactor as u32);
            let server = MetaServer::new(config, fabric, lock.disk(), log, name.clone(), link);
            let server = server.expect("memory");
            let reactor = Reactor { server, defect: self.shape.defect };
            process.add(&mut self.scheduler, &name, reactor, endpoint);
        }
        self.metaserver = Some(process);
        true
    }

    /// Starts a data server if it is down. False: its medium is still in use.
    ///
    /// # Panics
    /// Without memory.
    pub fn start_target(&mut self, index: usize) -> bool {
        if self.targets[index].is_some() {
            return true;
        }
        let Ok(lock) = self.target_media[index].lock() else { return false };
        self.target_starts[index] += 1;
        let generation = if self.shape.ram_stores { self.target_starts[index] } else { 1 };
        let info = StoreInfo {
            uuid: [index as u8 + 1; 16],
            generation: U32::new(generation),
            block_bytes: U32::new(BLOCK_BYTES),
            blocks: U64::new(self.shape.store_blocks),
        };
        let name = format!("target.{index}");
        let fabric = self.network.fabric(&name);
        let endpoint = fabric.endpoint();
        let metaserver = address("meta.0");
        let instance = self.random.bits();
        let uuid = [index as u8 + 101; 16];
        let mut config = TargetConfig::new(uuid, instance, vec![address(&name)], metaserver);
        (config.limits.small_buffers, config.limits.large_buffers) =
            (Some(self.shape.bounce_buffers.0), Some(self.shape.bounce_buffers.1));
        config.limits.sessions_max = 64;
        let store = OpenStore::new(FileId(0), info, 0);
        let target = Target::new(config, fabric, lock.disk(), vec![store]).expect("a usable store");
        let target = self.with_defect(target);
        let mut process = Process::new();
        process.add(&mut self.scheduler, &name, target, endpoint);
        self.targets[index] = Some(process);
        true
    }

    #[cfg(feature = "defects")]
    fn with_defect(&self, mut target: SimTarget) -> SimTarget {
        if self.shape.defect == Some(Defect::LiveChecks) {
            target.break_live_checks();
        }
        target
    }

    #[cfg(not(feature = "defects"))]
    fn with_defect(&self, target: SimTarget) -> SimTarget {
        target
    }

    /// Starts a host with this load in a new place. Returns the place.
    pub fn add_host(&mut self, load: HostOptions, audits: bool) -> usize {
        self.hosts.push(HostPlace { process: None, instances: 0 });
        let place = self.hosts.len() - 1;
        self.start_host(place, load, audits);
        place
    }

    /// Starts another host in the place of one that died, if there is none.
    pub fn restart_host(&mut self, place: usize) {
        if self.hosts[place].process.is_none() {
            self.start_host(place, self.shape.load.clone(), false);
        }
    }

    fn start_host(&mut self, place: usize, load: HostOptions, audits: bool) {
        self.hosts[place].instances += 1;
        let number = (self.hosts[place].instances * 100) as u32 + place as u32;
        let name = format!("host.{number}");
        let fabric = self.network.fabric(&name);
        let endpoint = fabric.endpoint();
        let session = SessionId(self.random.bits() | 1);
        let mut client = ClientOptions::new(address("meta.0"), session, self.random.bits());
        client.host = place as u64 + 1;
        client.slots = self.shape.slots;
        client.complete_by_metaserver = self.shape.complete_by_metaserver;
        client.protection = self.shape.protection;
        client.cancel_timeout = self.shape.cancel_timeout;
        client.requests_max = load.depth.max(4);
        if !audits {
            client.request_timeout = self.shape.request_timeout;
        }
        let random = self.random.stream(&name);
        let load = HostOptions { number, ..load };
        let (history, board) = (Rc::clone(&self.history), Rc::clone(&self.board));
        let mut host = Host::new(load, client, fabric, random, history, board, &self.trace);
        if audits {
            host = host.auditing();
        }
        let host = self.host_with_defect(host);
        let mut process = Process::new();
        process.add(&mut self.scheduler, &name, host, endpoint);
        self.hosts[place].process = Some(process);
    }

    #[cfg(feature = "defects")]
    fn host_with_defect(&self, mut host: Host) -> Host {
        match self.shape.defect {
            Some(Defect::Arrivals) => host.client_mut().break_arrivals(),
            Some(Defect::Cuts) => host.client_mut().break_cuts(),
            Some(Defect::Windows) => host.client_mut().break_windows(),
            Some(Defect::Sessions) => host.client_mut().break_sessions(),
            _ => {}
        }
        host
    }

    #[cfg(not(feature = "defects"))]
    fn host_with_defect(&self, host: Host) -> Host {
        host
    }

    /// The metadata server's process dies, perhaps with its machine's power.
    pub fn crash_metaserver(&mut self, loses_power: bool) {
        if let Some(process) = self.metaserver.take() {
            process.kill(&mut self.scheduler);
            end(&self.metaserver_medium, loses_power);
        }
    }

    /// A data server's process dies, perhaps with its machine's power.
    pub fn crash_target(&mut self, index: usize, loses_power: bool) {
        if let Some(process) = self.targets[index].take() {
            process.kill(&mut self.scheduler);
            end(&self.target_media[index], loses_power);
        }
    }

    /// A host's process dies.
    pub fn crash_host(&mut self, place: usize) {
        if let Some(process) = self.hosts[place].process.take() {
            process.kill(&mut self.scheduler);
        }
    }

    /// The metadata server's medium.
    #[must_use]
    pub fn metaserver_medium(&self) -> &SimMedium {
        &self.metaserver_medium
    }

    /// The media of the data servers.
    #[must_use]
    pub fn target_media(&self) -> &[SimMedium] {
        &self.target_media
    }

    /// Places of hosts.
    #[must_use]
    pub fn host_places(&self) -> usize {
        self.hosts.len()
    }

    /// The end points of all living processes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let metaserver = self.metaserver.iter().flat_map(|process| &process.endpoints);
        let targets = self.targets.iter().flatten().flat_map(|process| &process.endpoints);
        let hosts = self.hosts.iter().filter_map(|place| place.process.as_ref());
        metaserver.chain(targets).chain(hosts.flat_map(|host| &host.endpoints)).cloned().collect()
    }

    /// The end points of the metadata server's reactors, and of the hosts.
    #[must_use]
    pub fn channel_ends(&self) -> (Vec<Endpoint>, Vec<Endpoint>) {
        let servers = self.metaserver.iter().flat_map(|process| &process.endpoints);
        let hosts = self.hosts.iter().filter_map(|place| place.process.as_ref());
        (servers.cloned().collect(), hosts.flat_map(|host| &host.endpoints).cloned().collect())
    }

    /// Makes a process stand still: by number, the metadata server first, then data servers, then
    /// hosts.
    pub fn stall(&mut self, process: usize, how_long: Duration) {
        let targets = self.targets.len();
        let roles = match process {
            0 => self.metaserver.as_ref().map(|process| &process.roles),
            _ if process <= targets => {
                self.targets[process - 1].as_ref().map(|process| &process.roles)
            }
            _ => self.hosts[process - 1 - targets].process.as_ref().map(|process| &process.roles),
        };
        for role in roles.into_iter().flatten() {
            self.scheduler.stall(*role, how_long);
        }
    }

    /// Whether all hosts are through with their load.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.hosts.iter().all(|place| {
            place.process.as_ref().is_some_and(|process| process.values[0].borrow().is_done())
        })
    }

    /// A function that tells whether all hosts of now are through, for [`Scheduler::run_until`].
    pub fn done(&self) -> impl FnMut(Time) -> bool + use<> {
        let hosts: Vec<Option<Rc<RefCell<Host>>>> = self
            .hosts
            .iter()
            .map(|place| place.process.as_ref().map(|process| Rc::clone(&process.values[0])))
            .collect();
        move |_| hosts.iter().all(|host| host.as_ref().is_some_and(|host| host.borrow().is_done()))
    }

    /// Why a server cannot go on, if one cannot.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let reactors = self.metaserver.iter().flat_map(|process| &process.values);
        reactors.filter_map(|reactor| reactor.borrow().server().failure().map(str::to_owned)).next()
    }

    /// Runs for some time.
    ///
    /// # Errors
    /// As [`Scheduler::run_for`].
    pub fn run_for(&mut self, how_long: Duration) -> Result<(), Stuck> {
        self.scheduler.run_for(how_long)
    }
}

impl<R: Poller + 'static> Process<R> {
    fn new() -> Process<R> {
        Process { roles: Vec::new(), values: Vec::new(), endpoints: Vec::new() }
    }

    fn add(&mut self, scheduler: &mut Scheduler, name: &str, value: R, endpoint: Endpoint) {
        let value = Rc::new(RefCell::new(value));
        let role = scheduler.add_role(name, value.clone(), vec![endpoint.clone()]);
        self.roles.push(role);
        self.values.push(value);
        self.endpoints.push(endpoint);
    }

    fn kill(self, scheduler: &mut Scheduler) {
        for role in self.roles {
            scheduler.kill(role);
        }
    }
}

fn end(medium: &SimMedium, loses_power: bool) {
    if loses_power {
        medium.lose_power();
    } else {
        medium.kill();
    }
}

fn address(name: &str) -> Address {
    Address::shm(format!("/sim/{name}")).expect("a short path")
}
