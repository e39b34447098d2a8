//! A whole Gannet cluster in one thread and virtual time, with faults.
//!
//! The roles that run here are the real ones: they are generic over `Fabric` and `Disk`, and get
//! [`network::SimFabric`] and [`disk::SimDisk`] instead of hardware. Everything that may differ
//! between two runs of a real cluster (delays, the order of completions, torn writes, deaths) is
//! drawn from one seed, so a run can be repeated exactly; [`trace::Trace`] proves that it was.
//!
//! - [`scheduler::Scheduler`] owns virtual time. It polls the roles in random order and, when all
//!   are idle, moves time to the next thing that happens.
//! - [`network::SimNetwork`] carries messages and one-sided transfers, late and in pieces, and
//!   breaks, partitions, stalls and kills.
//! - [`disk::SimMedium`] is what survives a process: visible and durable content, and transfers
//!   that go on after their owner's death.
//! - [`cluster::Cluster`] is the real roles on all this; they start, die and start again.
//! - [`workload`] is what hosts do to it, and the judgement of what they got.
//! - [`run::run`] is a whole run from a seed.
//! - [`crash`] tries a crash at every moment at which a disk does something.
//!
//! Nothing here may depend on an address of memory, on a hash map's order or on the real clock.

#![forbid(unsafe_code)]

pub mod agenda;
pub mod cluster;
pub mod crash;
pub mod disk;
pub mod network;
pub mod random;
pub mod run;
pub mod scheduler;
pub mod trace;
pub mod workload;
