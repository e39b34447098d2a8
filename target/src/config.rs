//! What a data server is told at its start: who it is, where it listens, and its bounds.
//!
//! Only identity and addresses have to be given; every bound has a default that suits one reactor of
//! a small machine. Identity comes from outside because nothing in this crate draws random numbers.

use std::time::Duration;

use gannet_fabric::Address;

/// Everything a [`crate::Target`] is told.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Names the data server for good.
    pub uuid: [u8; 16],
    /// This run of it: a new random number at each start.
    pub instance: u64,
    /// Where hosts connect, at one or more addresses; told to the metadata server, and by it to
    /// hosts, who choose.
    pub listen: Vec<Address>,
    /// The metadata server's bootstrap address: that of reactor 0, which tells all others.
    pub metadata_server: Address,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timing: Timing,
}

/// Bounds of a data server. Memory for all of them is taken at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most data sessions known at a time.
    pub sessions_max: u32,
    /// Most arrival notices of one session that are under way or wait for the host to take them.
    pub arrivals_max: u32,
    /// Most transfers, on disk or fabric, under way at a time.
    pub operations_max: u32,
    /// Most connections that have not said who they are: of more, the oldest one has to go.
    pub handshakes_max: u32,
    /// Buffers for small bounced transfers, of [`SMALL_BUFFER_BYTES`] each. `None`: as many as the
    /// stores need.
    pub small_buffers: Option<u32>,
    /// Buffers for large bounced transfers, of [`LARGE_BUFFER_BYTES`] each. `None`: as many as the
    /// stores need.
    pub large_buffers: Option<u32>,
    /// Bytes of queued grants that one turn may begin to copy or to transfer over the fabric; 0
    /// counts as 1. What is left waits for the next turn, behind the completions and arrival notices
    /// of this one: hosts hear of a long batch in portions, and ask for more while the rest is on its
    /// way. What completions of block I/O lead on to is not counted.
    pub bytes_per_turn: u32,
}

/// Length of a buffer of the small class, bytes: two blocks for an unaligned block's worth of data,
/// and one to merge an edge from.
pub const SMALL_BUFFER_BYTES: usize = 12 << 10;
/// Length of a buffer of the large class, bytes: a piece, and a block to merge an edge from.
pub const LARGE_BUFFER_BYTES: usize = (256 << 10) + (4 << 10);

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions_max: 1024,
            arrivals_max: 512,
            operations_max: 1024,
            handshakes_max: 128,
            small_buffers: None,
            large_buffers: None,
            bytes_per_turn: 1 << 20,
        }
    }
}

impl Limits {
    /// Small and large buffers: the configured numbers, or enough to keep a device busy when blocks
    /// have to pass through them. Stores in memory need none.
    #[must_use]
    pub fn buffers(&self, all_resident: bool) -> (u32, u32) {
        let (small, large) = if all_resident { (1, 1) } else { (512, 64) };
        (self.small_buffers.unwrap_or(small).max(1), self.large_buffers.unwrap_or(large).max(1))
    }
}

/// Times of a data server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a peer may take to say who it is, or to welcome this server.
    pub handshake_timeout: Duration,
    /// Pause after the first failed attempt to reach a metadata-server reactor; doubles each time.
    pub reconnect_delay_min: Duration,
    /// Longest such pause.
    pub reconnect_delay_max: Duration,
    /// When to try again, although nothing arrived, to send what a full connection refused.
    pub resend_delay: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            handshake_timeout: Duration::from_secs(5),
            reconnect_delay_min: Duration::from_millis(10),
            reconnect_delay_max: Duration::from_secs(1),
            resend_delay: Duration::from_millis(5),
        }
    }
}

impl TargetConfig {
    /// A configuration with default bounds and times.
    #[must_use]
    pub fn new(
        uuid: [u8; 16],
        instance: u64,
        listen: Vec<Address>,
        metadata_server: Address,
    ) -> TargetConfig {
        let (limits, timing) = (Limits::default(), Timing::default());
        TargetConfig { uuid, instance, listen, metadata_server, limits, timing }
    }
}

const _: () = assert!(SMALL_BUFFER_BYTES.is_multiple_of(gannet_disk::BLOCK_BYTES));
const _: () = assert!(LARGE_BUFFER_BYTES.is_multiple_of(gannet_disk::BLOCK_BYTES));
// Two blocks hold any unaligned range of one block, a third its old content.
const _: () = assert!(SMALL_BUFFER_BYTES >= 3 * gannet_disk::BLOCK_BYTES);
