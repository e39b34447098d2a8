//! The metadata server's shell: what connects the metadata state machine to the world.
//!
//! [`MetaServer`] is one reactor's part. It recovers and appends the reactor's log ([`log`]), speaks
//! with hosts and data servers over a [`gannet_fabric::Fabric`], carries messages between the cores
//! of the reactors ([`peers`]), and lets an output leave only when the log position that it depends
//! on is durable (`gate`). It touches no payload: it registers no memory and opens no store.

#![forbid(unsafe_code)]

pub mod check;
pub mod config;
mod connections;
pub mod format;
mod gate;
mod hosts;
pub mod log;
mod outbox;
pub mod peers;
pub mod server;
mod shell;
mod startup;
pub mod stats;
mod targets;

pub use config::MetaServerConfig;
pub use server::{MetaServer, MetaServerError};
