//! One cluster over several fabrics at once: real roles and real fabrics, in one thread. Each server
//! listens at addresses of shm and of tcp, and each host and data server takes what is best for it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use gannet_client::{
    Client, ClientOptions, Completion, Counters, Operation, Outcome, Ownership, Peer, Protection,
    Role,
};
use gannet_disk::Disk;
use gannet_disk::ram::RamDisk;
use gannet_fabric::Address;
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::arena::{Arena, RegionIds};
use gannet_metaserver::{MetaServer, MetaServerConfig, format, peers};
use gannet_proto::control::StoreInfo;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::{Handle, Inode, SessionId, TargetId};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use gannet_target::store::OpenStore;
use gannet_target::{Target, TargetConfig};
use zerocopy::little_endian::{U32, U64};

const STORE_BYTES: u64 = 64 << 20;
/// A cluster that does not get somewhere within this time is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
const REACTORS: usize = 2;
/// Long enough to lie on every data server.
const FILE_BYTES: u32 = 4 << 20;

/// An address of shm at which a name stands for a path.
fn shm(directory: &Path, name: &str) -> Address {
    Address::shm(directory.join(name)).unwrap()
}

/// An address of tcp at which nobody listens.
fn tcp() -> Address {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    Address::Tcp { host: "127.0.0.1".to_owned(), port }
}

fn fabric() -> AnyFabric {
    AnyFabric::new(FabricOptions::default())
}

/// A host and what it has done.
struct Host {
    client: Client<AnyFabric>,
    arena: Arena,
    completions: Vec<Completion>,
}

/// The servers of a file system, and hosts.
struct Cluster {
    metaservers: Vec<MetaServer<AnyFabric, RamDisk>>,
    addresses: Vec<Vec<Address>>,
    targets: Vec<Target<AnyFabric, RamDisk>>,
    hosts: Vec<Host>,
    /// Tells the file systems of one test apart.
    number: u8,
}

impl Cluster {
    /// A metadata server whose reactors listen at `meta.N` in the directory and over tcp.
    fn new(directory: &Path, number: u8) -> Cluster {
        let reactors =
            (0..REACTORS).map(|index| vec![tcp(), shm(directory, &format!("meta.{index}"))]);
        let addresses: Vec<Vec<Address>> = reactors.collect();
        let links = peers::link(REACTORS).unwrap();
        let mut metaservers = Vec::new();
        for (reactor, link) in links.into_iter().enumerate() {
            let mut disk = RamDisk::new(64).unwrap();
            let log = disk.create(4 << 20, 256 << 20).unwrap();
            let view = disk.resident(log, 0, BLOCK_BYTES as usize).unwrap();
            format::format_resident(&view, [number; 16], reactor as u16, REACTORS as u16);
            let config = MetaServerConfig::new(reactor as u16, addresses.clone(), [number; 32]);
            let server = MetaServer::new(config, fabric(), disk, log, "the log in memory", link);
            metaservers.push(server.unwrap());
        }
        let mut cluster =
            Cluster { metaservers, addresses, targets: Vec::new(), hosts: Vec::new(), number };
        cluster.until("the metadata server serves", |cluster| {
            cluster.metaservers.iter().all(MetaServer::is_serving)
        });
        cluster
    }

    fn over_tcp(&self) -> Address {
        self.addresses[0][0].clone()
    }

    fn over_shm(&self) -> Address {
        self.addresses[0][1].clone()
    }

    /// Starts a data server and waits until every reactor has welcomed it.
    fn add_target(&mut self, listen: Vec<Address>, metaserver: Address) {
        let index = self.targets.len() as u8;
        let mut disk = RamDisk::new(1024).unwrap();
        let file = disk.create(STORE_BYTES, STORE_BYTES).unwrap();
        let info = StoreInfo {
            uuid: [16 * self.number + index; 16],
            generation: U32::new(1),
            block_bytes: U32::new(BLOCK_BYTES),
            blocks: U64::new(STORE_BYTES / u64::from(BLOCK_BYTES)),
        };
        let uuid = [128 + 16 * self.number + index; 16];
        let config = TargetConfig::new(uuid, 1, listen, metaserver);
        let store = OpenStore::new(file, info, 0);
        self.targets.push(Target::new(config, fabric(), disk, vec![store]).unwrap());
        let wanted = self.targets.len();
        self.until("the data server is welcomed", |cluster| cluster.targets_up() == [wanted; 2]);
    }

    /// Data servers that each reactor uses.
    fn targets_up(&self) -> [usize; REACTORS] {
        [0, 1].map(|reactor| {
            let core = self.metaservers[reactor].core();
            core.map_or(0, |core| core.targets().count())
        })
    }

    /// Adds a host; returns its number.
    fn add_host(&mut self, metaserver: Address, adjust: impl FnOnce(&mut ClientOptions)) -> usize {
        let number = self.hosts.len();
        let mut options = ClientOptions::new(metaserver, SessionId(700 + number as u64), 1);
        adjust(&mut options);
        self.hosts.push(Host {
            client: Client::new(options, fabric()),
            arena: Arena::new(&RegionIds::new(), FILE_BYTES as usize, 4).unwrap(),
            completions: Vec::new(),
        });
        number
    }

    fn turn(&mut self) {
        let now = Now { time: Time::monotonic(), wall: WallTime::realtime() };
        for server in &mut self.metaservers {
            server.poll(now);
            assert_eq!(server.failure(), None);
        }
        for target in &mut self.targets {
            target.poll(now);
        }
        for host in &mut self.hosts {
            host.client.poll(now.time, &mut host.completions);
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "it takes too long until {what}");
            self.turn();
        }
    }

    /// Runs a request of a host to its end, with the turns of `others` in between.
    fn run_beside(
        &mut self,
        host: usize,
        operation: Operation,
        others: &mut [&mut Cluster],
    ) -> Completion {
        let request = self.hosts[host].client.submit(operation, 0).unwrap();
        let start = Instant::now();
        loop {
            let completions = &mut self.hosts[host].completions;
            if let Some(place) = completions.iter().position(|done| done.request == request) {
                return completions.swap_remove(place);
            }
            assert!(
                start.elapsed() < PATIENCE,
                "a request takes too long: {:#?} {:#?}",
                self.hosts[host].client,
                self.targets.iter().map(|target| *target.stats()).collect::<Vec<_>>()
            );
            self.turn();
            others.iter_mut().for_each(|other| other.turn());
        }
    }

    fn make(&mut self, host: usize, name: &str, others: &mut [&mut Cluster]) -> Handle {
        let create = Operation::Create {
            parent: Handle::new(Inode::ROOT),
            name: name.into(),
            ownership: Ownership { mode: 0o644, uid: 0, gid: 0 },
            exclusive: true,
        };
        let done = self.run_beside(host, create, others).result.unwrap();
        let Outcome::Entry(attributes) = done else { panic!("{done:?}") };
        attributes.handle
    }

    fn write(&mut self, host: usize, file: Handle, seed: u64, others: &mut [&mut Cluster]) {
        let mut buffer = self.hosts[host].arena.take().unwrap();
        buffer.copy_from_slice(&content(seed));
        let (offset, buffer_offset, append, length) = (0, 0, false, FILE_BYTES);
        let write = Operation::Write { file, offset, length, buffer, buffer_offset, append };
        let done = self.run_beside(host, write, others).result.unwrap();
        assert!(matches!(done, Outcome::Write { bytes: FILE_BYTES, .. }), "{done:?}");
    }

    fn check(&mut self, host: usize, file: Handle, seed: u64, others: &mut [&mut Cluster]) {
        let buffer = self.hosts[host].arena.take().unwrap();
        let (offset, buffer_offset, length) = (0, 0, FILE_BYTES);
        let read = Operation::Read { file, offset, length, buffer, buffer_offset };
        let done = self.run_beside(host, read, others);
        done.result.unwrap();
        assert!(done.buffer.unwrap()[..] == content(seed), "host {host} reads something else");
    }

    /// A host's connections: to whom, over which fabric.
    fn ways(&self, host: usize) -> BTreeSet<(u32, bool, &'static str)> {
        let connections = self.hosts[host].client.connections();
        connections
            .map(|one| match one.server {
                Role::Metaserver(reactor) => (reactor, false, one.address.scheme()),
                Role::Target(target) => (target, true, one.address.scheme()),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// What every role says about its connections: role, peer, fabric.
    fn told(&mut self, host: usize) -> BTreeSet<(String, String, String)> {
        let mut told = BTreeSet::new();
        for reactor in 0..REACTORS as u16 {
            let stats = Operation::Stats { reactor, targets: reactor == 0 };
            let done = self.run_beside(host, stats, &mut []).result.unwrap();
            let Outcome::Counters(all) = done else { panic!("{done:?}") };
            for Counters { role, connections, values } in all {
                assert!(!values.is_empty());
                for one in connections {
                    assert!(!one.at.is_empty(), "{one:?}");
                    let role = match role {
                        Role::Metaserver(reactor) => format!("meta {reactor}"),
                        Role::Target(target) => format!("target {target}"),
                        other => panic!("{other:?}"),
                    };
                    let peer = match one.peer {
                        Peer::Host(SessionId(id)) => format!("host {id}"),
                        Peer::Target(TargetId(id)) => format!("target {id}"),
                        Peer::DataSession(SessionId(id)) => format!("data {id}"),
                        other => panic!("{other:?}"),
                    };
                    assert!(told.insert((role, peer, one.fabric)), "twice");
                }
            }
        }
        told
    }
}

/// Bytes that no other seed gives.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = Vec::with_capacity(FILE_BYTES as usize);
    while words.len() < FILE_BYTES as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.to_le_bytes());
    }
    words
}

/// Files on both reactors' shards.
fn files(cluster: &mut Cluster, host: usize, others: &mut [&mut Cluster]) -> Vec<Handle> {
    (0..4).map(|index| cluster.make(host, &format!("file.{host}.{index}"), others)).collect()
}

#[test]
fn hosts_over_shm_and_over_tcp_share_a_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(directory.path(), 1);
    cluster.add_target(vec![tcp(), shm(directory.path(), "target.0")], cluster.over_shm());
    cluster.add_target(vec![tcp()], cluster.over_tcp());
    let near = cluster.add_host(cluster.over_shm(), |_| {});
    let far = cluster.add_host(cluster.over_tcp(), |options| {
        options.fabrics = "tcp".parse().unwrap();
    });
    for (writer, reader) in [(near, far), (far, near)] {
        let made = files(&mut cluster, writer, &mut []);
        for (index, file) in made.iter().enumerate() {
            let seed = 100 * writer as u64 + index as u64;
            cluster.write(writer, *file, seed, &mut []);
            cluster.check(reader, *file, seed, &mut []);
            cluster.write(reader, *file, seed + 1000, &mut []);
            cluster.check(writer, *file, seed + 1000, &mut []);
        }
    }
    // Both were up at once; the near one reaches one data server over shm and one over tcp.
    let ways = cluster.ways(near);
    assert!(ways.contains(&(0, false, "shm")), "{ways:?}");
    let data: Vec<_> = ways.iter().filter(|way| way.1).map(|way| way.2).collect();
    assert_eq!(data.len(), 2, "{ways:?}");
    assert_eq!(data.iter().collect::<BTreeSet<_>>().len(), 2, "{ways:?}");
    assert!(cluster.ways(far).iter().all(|way| way.2 == "tcp"));
    assert_eq!(cluster.ways(far).iter().filter(|way| way.1).count(), 2);

    let told = cluster.told(near);
    let fabrics = |role: &str, peer: &str| -> Vec<&str> {
        let found = told.iter().filter(|(of, who, _)| of == role && who == peer);
        found.map(|(_, _, fabric)| fabric.as_str()).collect()
    };
    for reactor in ["meta 0", "meta 1"] {
        assert_eq!(fabrics(reactor, "host 700"), ["shm"], "{told:?}");
        let channels = ["target 1", "target 2"].map(|target| fabrics(reactor, target));
        assert!(channels.iter().all(|channel| channel.len() == 1), "{told:?}");
    }
    assert_eq!(fabrics("meta 0", "host 701"), ["tcp"]);
    // The second data server found reactor 1's socket by itself.
    let over_shm =
        told.iter().filter(|(_, who, fabric)| who.starts_with("target") && fabric == "shm");
    assert_eq!(over_shm.count(), 3, "{told:?}");
    let mut near_data: Vec<_> =
        ["target 1", "target 2"].iter().flat_map(|target| fabrics(target, "data 700")).collect();
    near_data.sort_unstable();
    assert_eq!(near_data, ["shm", "tcp"], "{told:?}");
    for target in ["target 1", "target 2"] {
        assert_eq!(fabrics(target, "data 701"), ["tcp"], "{told:?}");
    }
}

#[test]
fn windows_take_a_host_to_the_fabric_that_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(directory.path(), 1);
    cluster.add_target(vec![shm(directory.path(), "target.0"), tcp()], cluster.over_shm());
    let guarded = cluster.add_host(cluster.over_shm(), |options| {
        options.protection = Protection::Window;
    });
    let plain = cluster.add_host(cluster.over_shm(), |_| {});
    let file = cluster.make(guarded, "file", &mut []);
    cluster.write(guarded, file, 1, &mut []);
    cluster.check(plain, file, 1, &mut []);
    cluster.write(plain, file, 2, &mut []);
    cluster.check(guarded, file, 2, &mut []);
    let data =
        |cluster: &Cluster, host| cluster.ways(host).into_iter().find(|way| way.1).map(|way| way.2);
    assert_eq!(data(&cluster, guarded), Some("tcp"));
    assert_eq!(data(&cluster, plain), Some("shm"));
    assert!(cluster.hosts[guarded].client.counters().windows >= 2);
}

/// On another machine the same paths mean another cluster's servers. Here the sockets are taken
/// over instead, which leads hosts and data servers to the same strangers.
#[test]
fn another_clusters_servers_behind_the_same_paths_harm_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let mut ours = Cluster::new(directory.path(), 1);
    let mut theirs = {
        let target = shm(directory.path(), "target.0");
        ours.add_target(vec![target.clone(), tcp()], ours.over_tcp());
        // With the sockets go the files that say who listens there.
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let mut theirs = Cluster::new(directory.path(), 2);
        theirs.add_target(vec![target], theirs.over_shm());
        theirs
    };
    let others = &mut [&mut theirs];
    // A host that sees their sockets where ours are named.
    let host = ours.add_host(ours.over_tcp(), |_| {});
    for (index, file) in files(&mut ours, host, others).into_iter().enumerate() {
        ours.write(host, file, index as u64, others);
        ours.check(host, file, index as u64, others);
    }
    assert!(ours.ways(host).iter().all(|way| way.2 == "tcp"), "{:?}", ours.ways(host));
    let refused = theirs.targets[0].stats().connections_refused;
    assert!(refused > 0, "their data server was asked and refused the ticket");

    // A data server that sees them: it must not get their numbers.
    let listen = tcp();
    let metaserver = ours.over_tcp();
    let mut disk = RamDisk::new(1024).unwrap();
    let file = disk.create(STORE_BYTES, STORE_BYTES).unwrap();
    let info = StoreInfo {
        uuid: [99; 16],
        generation: U32::new(1),
        block_bytes: U32::new(BLOCK_BYTES),
        blocks: U64::new(STORE_BYTES / u64::from(BLOCK_BYTES)),
    };
    let config = TargetConfig::new([98; 16], 1, vec![listen], metaserver);
    let store = OpenStore::new(file, info, 0);
    ours.targets.push(Target::new(config, fabric(), disk, vec![store]).unwrap());
    let start = Instant::now();
    while ours.targets_up() != [2; 2] {
        assert!(start.elapsed() < PATIENCE, "{:?}", ours.targets_up());
        ours.turn();
        theirs.turn();
    }
    assert_eq!(theirs.targets_up(), [1; 2], "theirs have their own data server alone");
}
