//! How one reactor of a metadata server is set up.

use std::time::Duration;

use gannet_fabric::Address;

/// Settings of one reactor. What belongs to the file system itself lies in the log's superblock.
#[derive(Clone, Debug)]
pub struct MetaServerConfig {
    /// Which reactor this is.
    pub reactor: u16,
    /// Where each reactor listens; its length is the number of reactors.
    pub addresses: Vec<Address>,
    /// How long a host's session outlives its connection.
    pub lease: Duration,
    /// How long a new connection may take to say who it is.
    pub handshake_timeout: Duration,
    /// How long a request may wait for a data server that is away.
    pub target_wait: Duration,
    /// Most grants outstanding at one data server; a power of two, at most
    /// [`gannet_proto::limits::GRANTS_MAX`].
    pub grants_max: u32,
    /// Slots per shard of a session, at most [`gannet_proto::limits::SLOTS_MAX`].
    pub slots: u16,
    /// Source of session tickets: random, never reused.
    pub seed: [u8; 32],
}

impl MetaServerConfig {
    /// The default settings of a reactor.
    #[must_use]
    pub fn new(reactor: u16, addresses: Vec<Address>, seed: [u8; 32]) -> MetaServerConfig {
        MetaServerConfig {
            reactor,
            addresses,
            lease: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            target_wait: Duration::from_secs(30),
            grants_max: 1024,
            slots: 256,
            seed,
        }
    }
}
