//! What kind of network it is, and how badly it behaves.

use std::time::Duration;

use gannet_fabric::Capabilities;

use crate::random::{Chance, Delay};

/// Whose semantics the network has where providers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// As the shm provider: the initiator's own CPU moves the bytes. Remote memory can be mapped;
    /// ending a connection takes nothing away from the peer until the peer notices; a process that
    /// stands still moves nothing; a deregistration needs the peer's answer.
    Shm,
    /// As RDMA hardware: devices move the bytes. An end that gave a connection up is out of reach
    /// at once, but until it did, packets of a dead or disconnected initiator may still land.
    Verbs,
}

impl Model {
    /// What users of the fabric are told.
    #[must_use]
    pub const fn capabilities(self) -> Capabilities {
        match self {
            Model::Shm => Capabilities {
                maps_remote_memory: true,
                disconnect_revokes_access: false,
                memory_windows: false,
                streams: false,
            },
            Model::Verbs => Capabilities {
                maps_remote_memory: false,
                disconnect_revokes_access: true,
                memory_windows: true,
                streams: false,
            },
        }
    }
}

/// The knobs of a network. All of them may be turned while it runs, except `model`.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// Whose semantics.
    pub model: Model,
    /// From a flush to the effect at the other end, and from there back to the completion.
    pub delay: Delay,
    /// From the loss of a connection until an end of it notices.
    pub peer_lost_delay: Delay,
    /// How long an end that disconnects waits for its own transfers before it gives them up.
    pub linger: Duration,
    /// How long a connection attempt waits for an answer that a partition holds back.
    pub connect_timeout: Duration,
    /// How long a partition holds something back before the connection breaks; `None`: for ever.
    pub partition_timeout: Option<Duration>,
    /// Messages of the small class that may be under way per connection and direction.
    pub small_credits: usize,
    /// Messages of the large class that may be under way per connection and direction.
    pub large_credits: usize,
    /// Reads and writes that may be under way per connection and direction.
    pub transfers_max: usize,
    /// Connections per fabric value.
    pub connections_max: usize,
    /// Registrations per connection.
    pub registrations_max: usize,
    /// Memory windows per fabric value (`Model::Verbs`).
    pub windows_max: usize,
    /// Most events per poll; each poll draws its own bound up to this.
    pub events_per_poll_max: usize,
    /// How often a transfer places only a part of its bytes now and the rest later.
    pub split_transfer: Chance,
    /// How often a post is refused as `Full` though there is room.
    pub spurious_full: Chance,
    /// How often an operation that takes effect is the last one before its connection breaks.
    pub break_connection: Chance,
    /// How often a write of an end that gave up lands later all the same (`Model::Verbs`).
    pub ghost_write: Chance,
    /// How often a registration gets the key and address of a former one.
    pub reuse_key: Chance,
}

impl NetworkOptions {
    /// A network that delivers everything, in unhurried but changing time.
    #[must_use]
    pub fn calm(model: Model) -> NetworkOptions {
        NetworkOptions {
            model,
            delay: Delay::between(Duration::from_micros(1), Duration::from_micros(20)),
            peer_lost_delay: Delay::between(Duration::from_micros(50), Duration::from_millis(2)),
            linger: Duration::from_millis(5),
            connect_timeout: Duration::from_millis(100),
            partition_timeout: None,
            small_credits: 256,
            large_credits: 32,
            transfers_max: 256,
            connections_max: 256,
            registrations_max: 1024,
            windows_max: 1024,
            events_per_poll_max: 64,
            split_transfer: Chance::NEVER,
            spurious_full: Chance::NEVER,
            break_connection: Chance::NEVER,
            ghost_write: Chance::NEVER,
            reuse_key: Chance::NEVER,
        }
    }

    /// A network that does everything it is allowed to, now and then.
    #[must_use]
    pub fn hostile(model: Model) -> NetworkOptions {
        let calm = NetworkOptions::calm(model);
        NetworkOptions {
            delay: calm.delay.with_tail(Chance::percent(5), Duration::from_millis(3)),
            peer_lost_delay: calm
                .peer_lost_delay
                .with_tail(Chance::percent(10), Duration::from_millis(50)),
            partition_timeout: Some(Duration::from_millis(300)),
            small_credits: 32,
            large_credits: 4,
            transfers_max: 32,
            windows_max: 4,
            events_per_poll_max: 8,
            split_transfer: Chance::percent(30),
            spurious_full: Chance::percent(2),
            break_connection: Chance::per_million(500),
            ghost_write: Chance::percent(50),
            reuse_key: Chance::percent(50),
            ..calm
        }
    }
}
