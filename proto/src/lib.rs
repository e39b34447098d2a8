//! Gannet's wire protocol.
//!
//! Three channels connect the parties: the *operations channel* ([`operations`]) between a host and
//! each metadata-server reactor, the *back control channel* ([`control`]) between a
//! metadata-server reactor and a data server, and the *data session* ([`data`]) between a data
//! server and a host. Messages are fixed little-endian structs with an optional tail, packed into
//! *packets* ([`packet`]) that a fabric carries. [`handshake`] opens every channel; [`slots`] and
//! [`retirement`] hold the state machines that both ends share.
//!
//! No I/O, no clock, no allocation and no unsafe code in here. Every decoder bounds what it reads
//! and refuses the rest with a [`packet::DecodeError`]; nothing panics on a peer's bytes.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addresses;
pub mod control;
pub mod data;
pub mod handshake;
pub mod identity;
pub mod ids;
mod io;
pub mod limits;
pub mod operations;
pub mod packet;
pub mod retirement;
pub mod slots;
pub mod stats;
pub mod status;
pub mod xattr;

pub use ids::{
    Block, Epoch, GrantNumber, Handle, Inode, RegionId, SessionId, ShardId, StoreId, TargetId, Term,
};
pub use status::Status;

/// Version of the protocol that this build speaks.
pub const VERSION: u16 = 1;
