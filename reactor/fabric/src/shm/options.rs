//! What can be configured about the shm fabric, with its bounds.

use std::time::Duration;

use super::layout::{Geometry, LARGE_SLOTS_MAX, RING_SLOTS_MAX};
use super::regions::{REGION_BYTES_MAX, RegionLimits};
use crate::FabricError;

/// Most connections that can be configured.
pub const CONNECTIONS_MAX: usize = 1 << 15;

/// Settings of a [`super::ShmFabric`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShmOptions {
    /// Connections that may exist at a time, those in set-up included.
    pub connections_max: usize,
    /// Accepted connections that may be in set-up at a time.
    pub half_open_max: usize,
    /// How long a peer may take for the set-up.
    pub handshake_timeout: Duration,
    /// Messages that may be on their way per connection and direction, both classes together; a
    /// power of two. The connecting side's value counts.
    pub ring_slots: u32,
    /// Of these, messages of the large class; a power of two, at most half.
    pub large_slots: u32,
    /// Registrations per connection and direction.
    pub registrations_max: usize,
    /// Memory that one peer may register on one connection, bytes of address space.
    pub registered_bytes_max: u64,
    /// Completed transfers that may wait for the next poll, over all connections.
    pub transfers_max: usize,
    /// Users besides root and this process's own whose processes may connect or be connected to.
    pub trusted_uids: Vec<u32>,
}

impl Default for ShmOptions {
    fn default() -> ShmOptions {
        ShmOptions {
            connections_max: 1024,
            half_open_max: 64,
            handshake_timeout: Duration::from_secs(5),
            ring_slots: 1024,
            large_slots: 64,
            registrations_max: 4096,
            registered_bytes_max: 1 << 44,
            transfers_max: 4096,
            trusted_uids: Vec::new(),
        }
    }
}

impl ShmOptions {
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { ring_slots: self.ring_slots, large_slots: self.large_slots }
    }

    pub(crate) fn region_limits(&self) -> RegionLimits {
        RegionLimits {
            regions_max: self.registrations_max,
            total_bytes_max: self.registered_bytes_max.min(REGION_BYTES_MAX),
        }
    }

    /// Control messages that may wait for a slow peer: an honest one has at most a registration
    /// and a deregistration of each key outstanding, in both directions.
    pub(crate) fn unsent_max(&self) -> usize {
        4 * self.registrations_max + 16
    }

    pub(crate) fn check(&self) -> Result<(), FabricError> {
        let limit = |what, limit| Err(FabricError::Limit { what, limit });
        if self.connections_max > CONNECTIONS_MAX {
            return limit("shm connections_max", CONNECTIONS_MAX);
        }
        if self.ring_slots > RING_SLOTS_MAX {
            return limit("shm ring_slots", RING_SLOTS_MAX as usize);
        }
        if self.large_slots > LARGE_SLOTS_MAX {
            return limit("shm large_slots", LARGE_SLOTS_MAX as usize);
        }
        if !self.geometry().is_valid() {
            return limit(
                "shm ring_slots and large_slots are powers of two, large_slots",
                self.ring_slots as usize / 2,
            );
        }
        Ok(())
    }
}
