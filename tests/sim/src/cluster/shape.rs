//! How a cluster looks and how its world behaves; drawn from a seed.

use std::time::Duration;

use gannet_client::Protection;

use crate::disk::DiskOptions;
use crate::network::{Model, NetworkOptions};
use crate::random::{Chance, Delay, Random};
use crate::workload::host::HostOptions;

/// A safety rule that a test breaks on purpose, to see that the simulator notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// H1: a read completes before all of its data is there.
    Arrivals,
    /// H2: a buffer goes back to its user while data servers can reach it.
    Cuts,
    /// H2: a request completes before its memory windows are closed.
    Windows,
    /// H2, H5: an attempt that is given up has its memory windows closed, and the grants that name
    /// their keys stay alive.
    Sessions,
    /// H3: a write is committed although a later attempt superseded it.
    Attempts,
    /// H5: grants are not looked at again before what they allow is done.
    LiveChecks,
    /// H7: freed blocks are used again while transfers may refer to them.
    Pins,
    /// H14: outputs leave before what they depend on is durable.
    OutputGate,
    /// H14: shards learn of a decision before it is durable.
    Decisions,
}

/// What goes wrong from outside, and how often.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Pause between two of them.
    pub pause: Delay,
    /// When they end, after the start of the load.
    pub until: Duration,
    /// How long a process stays down before it is started again.
    pub down: Delay,
    /// How long partitions and standstills last.
    pub lasting: Delay,
    /// Weight of the death of the metadata server's process.
    pub metaserver_crash: u64,
    /// Weight of a loss of power at the metadata server.
    pub metaserver_power: u64,
    /// Weight of the death of a data server's process.
    pub target_crash: u64,
    /// Weight of a loss of power at a data server.
    pub target_power: u64,
    /// Weight of the death of a host.
    pub host_crash: u64,
    /// Weight of the break of all connections between two processes.
    pub breaks: u64,
    /// Weight of the break of a host's channel to the metadata server, beside the former.
    pub channel_breaks: u64,
    /// Weight of a partition between two processes, in one or both directions.
    pub partition: u64,
    /// Weight of a standstill of a process.
    pub stall: u64,
    /// Weight of a standstill of a data server, beside the former.
    pub target_stall: u64,
}

/// A cluster, its load and its faults.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Metadata-server reactors.
    pub reactors: usize,
    /// Data servers.
    pub targets: usize,
    /// Hosts.
    pub hosts: usize,
    /// Blocks of each data server's store.
    pub store_blocks: u64,
    /// Stores lie in memory, and are lost with their process.
    pub ram_stores: bool,
    /// Blocks of a file on one data server before the next takes over.
    pub stripe_blocks: u32,
    /// Most data servers of one file.
    pub stripe_width: u16,
    /// Reads are completed by the metadata server.
    pub complete_by_metaserver: bool,
    /// How hosts guard their memory; by windows on a network that has them only.
    pub protection: Protection,
    /// Slots per shard of a session.
    pub slots: u16,
    /// How long a host's session outlives its connection.
    pub lease: Duration,
    /// Time-out of requests.
    pub request_timeout: Option<Duration>,
    /// How long a cancelled request may take before its memory is taken back by force.
    pub cancel_timeout: Duration,
    /// Bounce buffers of a data server: small and large.
    pub bounce_buffers: (u32, u32),
    /// The network.
    pub network: NetworkOptions,
    /// The disks of data servers.
    pub target_disk: DiskOptions,
    /// The disk of the metadata server.
    pub metaserver_disk: DiskOptions,
    /// The load of each host; `number` is filled in.
    pub load: HostOptions,
    /// What goes wrong.
    pub faults: Faults,
    /// The rule that is broken on purpose.
    pub defect: Option<Defect>,
}

const fn micros(count: u64) -> Duration {
    Duration::from_micros(count)
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Faults {
    /// Nothing goes wrong from outside.
    #[must_use]
    pub fn none() -> Faults {
        Faults {
            pause: Delay::between(millis(5), millis(80)),
            until: Duration::ZERO,
            down: Delay::between(millis(1), millis(100)),
            lasting: Delay::between(millis(1), millis(80)),
            metaserver_crash: 0,
            metaserver_power: 0,
            target_crash: 0,
            target_power: 0,
            host_crash: 0,
            breaks: 0,
            channel_breaks: 0,
            partition: 0,
            stall: 0,
            target_stall: 0,
        }
    }
}

impl Shape {
    /// A small cluster that nothing happens to.
    #[must_use]
    pub fn calm(model: Model) -> Shape {
        Shape {
            reactors: 2,
            targets: 2,
            hosts: 2,
            store_blocks: 16 << 10,
            ram_stores: false,
            stripe_blocks: 4,
            stripe_width: 16,
            complete_by_metaserver: false,
            protection: Protection::Region,
            slots: 16,
            lease: Duration::from_secs(10),
            request_timeout: None,
            cancel_timeout: millis(20),
            bounce_buffers: (16, 4),
            network: NetworkOptions::calm(model),
            target_disk: DiskOptions::calm(),
            metaserver_disk: DiskOptions::calm(),
            load: HostOptions {
                number: 0,
                operations: 80,
                depth: 4,
                buffer_bytes: 64 << 10,
                buffers: 8,
                request_bytes_max: 48 << 10,
                file_bytes_max: 128 << 10,
                shared_files: 3,
                directories: 2,
                think: Delay::between(micros(1), millis(4)),
                cancel: Chance::NEVER,
                cancel_after: Delay::between(Duration::ZERO, millis(2)),
                weights: [40, 35, 4, 6, 5, 10],
                aligned: Chance::percent(40),
                may_be_full: false,
            },
            faults: Faults::none(),
            defect: None,
        }
    }

    /// Anything, with anything going wrong.
    #[must_use]
    pub fn drawn(random: &mut Random) -> Shape {
        let model = if random.coin() { Model::Shm } else { Model::Verbs };
        let calm = Shape::calm(model);
        let mut network = NetworkOptions::hostile(model);
        // Most runs keep their connections for a while, some lose them all the time.
        network.break_connection = Chance::per_million([0, 50, 300, 2000][random.index(4)]);
        let (mut target_disk, mut metaserver_disk) =
            (DiskOptions::hostile(), DiskOptions::hostile());
        if random.coin() {
            target_disk.write_delay =
                target_disk.write_delay.with_tail(Chance::percent(10), millis(60));
        }
        if random.coin() {
            metaserver_disk.write_delay =
                metaserver_disk.write_delay.with_tail(Chance::percent(10), millis(30));
        }
        let mut draw = |max: u64| random.below(max + 1);
        let ram_stores = draw(5) == 0;
        let survives = u64::from(!ram_stores);
        let faults = Faults {
            until: millis(300 + draw(700)),
            metaserver_crash: draw(3),
            metaserver_power: draw(3),
            target_crash: draw(3) * survives,
            target_power: draw(3) * survives,
            host_crash: draw(2),
            breaks: draw(4),
            channel_breaks: draw(2),
            partition: draw(4),
            stall: draw(3),
            target_stall: draw(3),
            ..Faults::none()
        };
        // Some stores are too small for everything, or for every shard.
        let store_blocks = [96, 2500, 64 << 10, 256 << 10][draw(3) as usize];
        let is_impatient = draw(1) == 0;
        let cancels = [0, 0, 5, 20][draw(3) as usize];
        let load = HostOptions {
            operations: 60 + draw(100) as u32,
            depth: 1 + draw(7) as usize,
            buffers: 10,
            shared_files: 1 + draw(3) as usize,
            directories: 1 + draw(2) as usize,
            file_bytes_max: [24 << 10, 96 << 10, 400 << 10][draw(2) as usize],
            request_bytes_max: [8 << 10, 32 << 10, 64 << 10][draw(2) as usize],
            cancel: Chance::percent(cancels),
            aligned: Chance::percent([0, 40, 100][draw(2) as usize]),
            may_be_full: store_blocks < 64 << 10,
            ..calm.load
        };
        Shape {
            reactors: 1 + draw(2) as usize,
            targets: 1 + draw(2) as usize,
            hosts: 1 + draw(2) as usize,
            store_blocks,
            ram_stores,
            stripe_blocks: [1, 4, 256][draw(2) as usize],
            stripe_width: [1, 2, 16][draw(2) as usize],
            complete_by_metaserver: draw(3) == 0,
            protection: match (model, draw(1)) {
                (Model::Verbs, 1) => Protection::Window,
                _ => Protection::Region,
            },
            slots: [2, 4, 64][draw(2) as usize],
            lease: [millis(200), Duration::from_secs(10)][draw(1) as usize],
            request_timeout: is_impatient.then(|| millis(5 + draw(100))),
            bounce_buffers: [(4, 2), (64, 16)][draw(1) as usize],
            network,
            target_disk,
            metaserver_disk,
            load,
            faults,
            ..calm
        }
    }
}
