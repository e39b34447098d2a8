//! A small cluster of the real roles in one thread, over a real fabric, one turn at a time, with the
//! channels in sight.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gannet_client::{
    Client, ClientOptions, Completion, Operation, Outcome, RequestError, RequestId,
};
use gannet_disk::Disk;
use gannet_disk::ram::RamDisk;
use gannet_fabric::Address;
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_fabric::shm::{ShmFabric, ShmOptions};
use gannet_metaserver::{MetaServer, MetaServerConfig, format, peers};
use gannet_proto::control::StoreInfo;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_proto::{Handle, SessionId};
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};
use gannet_target::store::OpenStore;
use gannet_target::{Target, TargetConfig};
use zerocopy::little_endian::{U32, U64};

use crate::spy::{Notes, SpyFabric};

/// Bytes of each data server's store.
const STORE_BYTES: u64 = 64 << 20;
/// A cluster that does not get somewhere within this time is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

type Spied = SpyFabric<ShmFabric>;

/// A metadata server, data servers and a host; all stores and the log lie in memory.
pub struct Cluster {
    /// The metadata server's reactors.
    pub metaservers: Vec<MetaServer<Spied, RamDisk>>,
    /// The data servers.
    pub targets: Vec<Target<Spied, RamDisk>>,
    /// The host.
    pub client: Client<Spied>,
    /// What happened at each metadata-server reactor's fabric.
    pub metaserver_notes: Vec<Notes>,
    /// What happened at each data server's fabric.
    pub target_notes: Vec<Notes>,
    /// What happened at the host's fabric.
    pub client_notes: Notes,
    /// Memory for requests: 64 buffers of 256 KiB.
    pub arena: Arena,
    completions: Vec<Completion>,
    /// Data servers that are not polled: they are slow.
    pub stalled: Vec<bool>,
    _directory: tempfile::TempDir,
}

/// How a cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Metadata-server reactors.
    pub reactors: usize,
    /// Data servers.
    pub targets: usize,
    /// Reads are completed by the metadata server.
    pub complete_by_metaserver: bool,
    /// The fabric maps remote memory; otherwise payload goes by one-sided transfers.
    pub maps: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { reactors: 2, targets: 2, complete_by_metaserver: false, maps: true }
    }
}

fn spied(maps: bool) -> (Spied, Notes) {
    let notes = Notes::default();
    let fabric = ShmFabric::new(ShmOptions::default()).expect("the shm fabric needs no hardware");
    let wrap = if maps { SpyFabric::new } else { SpyFabric::without_maps };
    (wrap(fabric, notes.clone()), notes)
}

impl Cluster {
    /// Makes a cluster and waits until it serves.
    ///
    /// # Panics
    /// If it does not come up: tests have no use for less.
    #[must_use]
    pub fn new(shape: Shape) -> Cluster {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: String| -> PathBuf { directory.path().join(name) };
        let address = |name: String| Address::shm(path(name)).expect("a short path");
        let metaserver_addresses: Vec<Vec<Address>> =
            (0..shape.reactors).map(|index| vec![address(format!("meta.{index}"))]).collect();

        let links = peers::link(shape.reactors).expect("eventfds");
        let (mut metaservers, mut metaserver_notes) = (Vec::new(), Vec::new());
        for (reactor, link) in links.into_iter().enumerate() {
            let (fabric, notes) = spied(shape.maps);
            let mut disk = RamDisk::new(64).expect("memory");
            let log = disk.create(4 << 20, 256 << 20).expect("memory");
            let view = disk.resident(log, 0, BLOCK_BYTES as usize).expect("a resident log");
            format::format_resident(&view, [7; 16], reactor as u16, shape.reactors as u16);
            let config =
                MetaServerConfig::new(reactor as u16, metaserver_addresses.clone(), [9; 32]);
            let server = MetaServer::new(config, fabric, disk, log, "the log in memory", link);
            metaservers.push(server.expect("memory"));
            metaserver_notes.push(notes);
        }

        let (mut targets, mut target_notes) = (Vec::new(), Vec::new());
        for index in 0..shape.targets {
            let (fabric, notes) = spied(shape.maps);
            let mut disk = RamDisk::new(1024).expect("memory");
            let file = disk.create(STORE_BYTES, STORE_BYTES).expect("memory");
            let info = StoreInfo {
                uuid: [index as u8 + 1; 16],
                generation: U32::new(1),
                block_bytes: U32::new(BLOCK_BYTES),
                blocks: U64::new(STORE_BYTES / u64::from(BLOCK_BYTES)),
            };
            let config = TargetConfig::new(
                [index as u8 + 101; 16],
                index as u64 + 1,
                vec![address(format!("target.{index}"))],
                metaserver_addresses[0][0].clone(),
            );
            let store = OpenStore::new(file, info, 0);
            targets.push(Target::new(config, fabric, disk, vec![store]).expect("a usable store"));
            target_notes.push(notes);
        }

        let (fabric, client_notes) = spied(shape.maps);
        let options = ClientOptions {
            complete_by_metaserver: shape.complete_by_metaserver,
            ..ClientOptions::new(metaserver_addresses[0][0].clone(), SessionId(77), 1)
        };
        let mut cluster = Cluster {
            stalled: vec![false; targets.len()],
            metaservers,
            targets,
            client: Client::new(options, fabric),
            metaserver_notes,
            target_notes,
            client_notes,
            arena: Arena::new(&RegionIds::new(), 256 << 10, 64).expect("memory"),
            completions: Vec::new(),
            _directory: directory,
        };
        let wanted = shape.targets;
        cluster.until("the cluster serves", |cluster| {
            cluster.metaservers.iter().all(|server| {
                server.is_serving()
                    && server.core().is_some_and(|core| core.targets().count() == wanted)
            })
        });
        cluster
    }

    /// Polls every role once.
    ///
    /// # Panics
    /// If a metadata-server reactor fails.
    pub fn turn(&mut self) {
        let now = Now { time: Time::monotonic(), wall: WallTime::realtime() };
        for server in &mut self.metaservers {
            server.poll(now);
            assert_eq!(server.failure(), None);
        }
        for (target, stalled) in self.targets.iter_mut().zip(&self.stalled) {
            if !stalled {
                target.poll(now);
            }
        }
        self.client.poll(now.time, &mut self.completions);
    }

    /// Takes turns until `done`.
    ///
    /// # Panics
    /// If that takes longer than 20 s.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "it takes too long until {what}");
            self.turn();
        }
    }

    /// Submits a request.
    ///
    /// # Panics
    /// If the client refuses it.
    pub fn submit(&mut self, operation: Operation) -> RequestId {
        self.client.submit(operation, 0).expect("the client takes the request")
    }

    /// Takes the completion of a request if it has come.
    pub fn completed(&mut self, request: RequestId) -> Option<Completion> {
        let place = self.completions.iter().position(|done| done.request == request)?;
        Some(self.completions.swap_remove(place))
    }

    /// Runs a request to its end.
    ///
    /// # Panics
    /// If it does not complete.
    pub fn run(&mut self, operation: Operation) -> Completion {
        let request = self.submit(operation);
        let mut found = None;
        self.until("a request completes", |cluster| {
            found = cluster.completed(request);
            found.is_some()
        });
        found.expect("until returned")
    }

    /// Runs a request that has to succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&mut self, operation: Operation) -> Outcome {
        let completion = self.run(operation);
        completion.result.unwrap_or_else(|error: RequestError| panic!("{error}"))
    }

    /// A buffer whose bytes are all `fill`.
    ///
    /// # Panics
    /// If the arena is used up.
    #[must_use]
    pub fn buffer(&self, fill: u8) -> HostBuffer {
        let mut buffer = self.arena.take().expect("a free buffer");
        buffer.fill(fill);
        buffer
    }

    /// Makes a file in the root directory with `content` repeated over `length` bytes.
    ///
    /// # Panics
    /// If that fails.
    pub fn make_file(&mut self, name: &str, length: u32, fill: u8) -> Handle {
        let created = self.ok(Operation::Create {
            parent: Handle::new(gannet_proto::Inode::ROOT),
            name: name.into(),
            ownership: gannet_client::Ownership { mode: 0o644, uid: 0, gid: 0 },
            exclusive: true,
        });
        let Outcome::Entry(attributes) = created else { panic!("{created:?}") };
        let file = attributes.handle;
        if length > 0 {
            let buffer = self.buffer(fill);
            let (offset, buffer_offset, append) = (0, 0, false);
            self.ok(Operation::Write { file, offset, length, buffer, buffer_offset, append });
        }
        file
    }

    /// Lets the fabrics note nothing from now on.
    pub fn pause_notes(&self) {
        let all = self.metaserver_notes.iter().chain(&self.target_notes);
        all.chain([&self.client_notes]).for_each(Notes::pause);
    }

    /// Forgets what was noted at all fabrics so far.
    pub fn forget_notes(&self) {
        let all = self.metaserver_notes.iter().chain(&self.target_notes);
        all.chain([&self.client_notes]).for_each(|notes| drop(notes.take()));
    }
}
