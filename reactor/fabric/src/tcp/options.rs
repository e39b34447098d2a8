//! What can be configured about the tcp fabric, with its bounds.

use std::time::Duration;

use ipnet::IpNet;

use crate::FabricError;

/// Settings of the tcp fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Connections that may exist at a time, those in set-up included.
    pub connections_max: usize,
    /// Accepted connections that did not finish their handshake yet. Beyond that the oldest one of
    /// the peer address that has the most of them makes room.
    pub half_open_max: usize,
    /// Registrations per connection.
    pub registrations_max: usize,
    /// Memory windows that may be open per connection.
    pub windows_max: usize,
    /// Reads and writes that may be under way per connection, in each direction.
    pub transfers_max: usize,
    /// Messages of the small class that this side lets a peer have on their way.
    pub small_credits: u16,
    /// Messages of the large class that this side lets a peer have on their way.
    pub large_credits: u16,
    /// Whether payload carries a CRC32C too. In force on a connection if either end wants it.
    pub payload_checksums: bool,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long a peer may take for its part of the handshake after it connected.
    pub handshake_timeout: Duration,
    /// How long an orderly end keeps the owners of memory waiting: for what was posted before to be
    /// taken by the kernel, for this side's writes and reads to be done, for answers to the peer's
    /// reads to leave. Then the end is told, and so is what became of the transfers. Messages are not
    /// lost by that where the peer is merely slow: they go on being delivered, except those behind a
    /// write or answer of which a part is left, and those that wait behind a read which is not answered.
    pub linger: Duration,
    /// How long, from then on, the peer may take for such messages as long as it takes some of them
    /// within each `peer_timeout`. Nobody waits for it, but it costs a descriptor, and the memory
    /// in which the connection collected what it sends.
    pub delivery_timeout: Duration,
    /// A peer that acknowledges nothing for so long, or takes nothing, is lost. An idle connection
    /// is probed by the kernel, so that a dead peer is noticed within about twice this time.
    pub peer_timeout: Duration,
    /// Networks besides this machine's own addresses from which peers may connect.
    pub trusted_hosts: Vec<IpNet>,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions {
            connections_max: 1024,
            half_open_max: 256,
            registrations_max: 4096,
            windows_max: 256,
            transfers_max: 256,
            small_credits: 128,
            large_credits: 16,
            payload_checksums: false,
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(2),
            linger: Duration::from_millis(200),
            delivery_timeout: Duration::from_secs(60),
            peer_timeout: Duration::from_secs(5),
            trusted_hosts: Vec::new(),
        }
    }
}

/// Shortest time-out of a dead peer: the kernel's probes have a resolution of a second.
const PEER_TIMEOUT_MIN: Duration = Duration::from_secs(2);

impl TcpOptions {
    /// Refuses values out of bounds.
    pub(crate) fn check(&self) -> Result<(), FabricError> {
        let bounds = [
            ("tcp connections_max", self.connections_max, 1 << 16),
            ("tcp half_open_max", self.half_open_max, 1 << 14),
            ("tcp registrations_max", self.registrations_max, 1 << 20),
            ("tcp windows_max", self.windows_max, 1 << 16),
            ("tcp transfers_max", self.transfers_max, 1 << 12),
            ("tcp small_credits", self.small_credits.into(), 1 << 12),
            ("tcp large_credits", self.large_credits.into(), 1 << 10),
        ];
        if let Some((what, _, limit)) = bounds.into_iter().find(|(_, value, limit)| value > limit) {
            return Err(FabricError::Limit { what, limit });
        }
        let least = [
            ("tcp connections_max", self.connections_max),
            ("tcp half_open_max", self.half_open_max),
            ("tcp transfers_max", self.transfers_max),
            ("tcp small_credits", self.small_credits.into()),
            ("tcp large_credits", self.large_credits.into()),
        ];
        if let Some((what, _)) = least.into_iter().find(|(_, value)| *value == 0) {
            return Err(FabricError::Address(format!("{what} is 0: it has to be at least 1")));
        }
        if self.peer_timeout < PEER_TIMEOUT_MIN {
            return Err(FabricError::Address(format!(
                "tcp peer_timeout is {:?}: it has to be at least {PEER_TIMEOUT_MIN:?}",
                self.peer_timeout
            )));
        }
        Ok(())
    }
}
