//! The data server: it takes grants from metadata-server reactors, moves blocks between its stores
//! and the hosts' memory, and tells both sides when they have moved. It keeps no map of what the
//! blocks mean.
//!
//! [`Target`] is one poller over one [`gannet_fabric::Fabric`] and one [`gannet_disk::Disk`], driven
//! by `poll(now)` alone: no clock, environment or randomness in here, so that it runs in the
//! simulator as it does on a reactor. What decides without I/O lies apart from what does I/O:
//!
//! | module | what it decides or does |
//! |---|---|
//! | [`mod@config`] | identity, addresses, bounds |
//! | [`mod@store`] | the superblock; formatting and opening stores |
//! | `sessions` | data sessions: epochs, tickets, connections (no I/O) |
//! | `grants` | the queue, state and liveness of every grant (no I/O) |
//! | `pieces` | how a grant is cut into transfers (no I/O) |
//! | `control` | back channels: connect, greet, retry (no I/O) |
//! | `outbox` | what waits to be sent on a back channel (no I/O) |
//! | `engine`, `execute` | posts transfers, and takes each through its steps |
//! | `report` | ends grants, and sends what is told to hosts and metadata server |
//! | [`mod@target`] | the poller that ties them together |
//!
//! One reactor's thread touches all of it. A crash loses every session and every grant: hosts and
//! metadata server see broken connections, and the stores hold what durable writes put there.

#![forbid(unsafe_code)]

pub mod config;
pub mod stats;
pub mod store;
pub mod target;

mod arrivals;
mod control;
mod defects;
mod dispatch;
mod engine;
mod execute;
mod grants;
mod outbox;
mod pieces;
mod report;
mod seats;
mod sessions;
mod slab;

pub use config::TargetConfig;
pub use stats::Stats;
pub use store::{OpenStore, StoreError, StoreKind, StoreSpec, format_store, open_store};
pub use target::{ReactorCounters, Target, TargetError};
