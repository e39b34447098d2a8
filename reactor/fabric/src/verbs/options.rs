//! What can be configured about the verbs fabric, with its bounds. Built also without the feature
//! `verbs`, so that configurations mean the same everywhere.

use std::time::Duration;

use ipnet::IpNet;

use crate::FabricError;
#[cfg(feature = "verbs")]
use crate::credits::Messages;

/// Settings of the verbs fabric. Devices bound most of them further; what a device cannot do is
/// lowered to what it can, and refused if nothing useful is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbsOptions {
    /// Connections that may exist at a time, those in set-up included.
    pub connections_max: usize,
    /// Registrations per connection.
    pub registrations_max: usize,
    /// Memory windows that may be open per connection.
    pub windows_max: usize,
    /// Reads and writes that may be under way per connection.
    pub transfers_max: usize,
    /// Messages of the small class that this side lets a peer have on their way.
    pub small_credits: u16,
    /// Messages of the large class that this side lets a peer have on their way.
    pub large_credits: u16,
    /// Receive entries that all accepted connections share. Peers that together send more than
    /// that between two polls are held up by the device, and lose nothing.
    pub shared_receives: u32,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long an orderly end waits for what was posted before.
    pub linger: Duration,
    /// Time after which the device sends an unacknowledged packet again; it does so 6 times, then
    /// the connection breaks. Rounded to 4.096 us times a power of two.
    pub acknowledge_timeout: Duration,
    /// Networks besides this machine's own addresses from which peers may connect.
    pub trusted_hosts: Vec<IpNet>,
}

impl Default for VerbsOptions {
    fn default() -> VerbsOptions {
        VerbsOptions {
            connections_max: 256,
            registrations_max: 4096,
            windows_max: 256,
            transfers_max: 128,
            small_credits: 128,
            large_credits: 16,
            shared_receives: 2048,
            connect_timeout: Duration::from_secs(5),
            linger: Duration::from_millis(200),
            acknowledge_timeout: Duration::from_millis(268),
            trusted_hosts: Vec::new(),
        }
    }
}

impl VerbsOptions {
    /// The credits that peers get.
    #[cfg(feature = "verbs")]
    pub(crate) fn granted(&self) -> Messages {
        Messages { small: self.small_credits, large: self.large_credits }
    }

    /// Refuses values that no device could serve.
    #[cfg_attr(not(feature = "verbs"), allow(dead_code))]
    #[allow(dead_code)]
    pub(crate) fn check(&self) -> Result<(), FabricError> {
        let bounds = [
            ("verbs connections_max", self.connections_max, 1 << 15),
            ("verbs registrations_max", self.registrations_max, 1 << 20),
            ("verbs windows_max", self.windows_max, 1 << 16),
            ("verbs transfers_max", self.transfers_max, 1 << 12),
            ("verbs small_credits", self.small_credits.into(), 1 << 12),
            ("verbs large_credits", self.large_credits.into(), 1 << 10),
            ("verbs shared_receives", self.shared_receives as usize, 1 << 16),
        ];
        match bounds.into_iter().find(|(_, value, limit)| value > limit) {
            Some((what, _, limit)) => Err(FabricError::Limit { what, limit }),
            None => Ok(()),
        }
    }
}
