//! Disks in memory: the disk trait with every liberty that its contract leaves, and what is left
//! of them after a death or a power failure.
//!
//! A [`SimMedium`] is the hardware of one machine: files with a *visible* content (what reads
//! return, what survives the death of a process) and a *durable* content (what survives the loss
//! of power). A process takes the medium's lock and makes [`SimDisk`]s from it, one per reactor.
//! Operations take effect in any order, each perhaps in two parts, and complete in any order.
//!
//! When the process dies, what it had handed to the device goes on: reads go on landing in memory
//! that they hold, writes on the medium. The lock is free again when the last of it has ended, as
//! with `flock(2)` on the one open file description that all I/O runs on.
//!
//! When the power fails, each sector that was written and is not durable is kept or lost on its
//! own, or all of them are ([`PowerLoss`]); a sector itself is never torn.
//!
//! [`DiskEvents`] counts what happens on all disks of a run and stops the run at any of it.

mod events;
mod medium;
mod sim_disk;
#[cfg(test)]
mod tests;

pub use events::{DiskEvent, DiskEvents, EventKind, Moment};
pub use medium::{DiskOptions, DiskStats, PowerLoss, SimLock, SimMedium};
pub use sim_disk::SimDisk;

/// What a medium writes as a whole or not at all, bytes.
pub const SECTOR_BYTES: usize = 512;
