//! Gannet's host library.
//!
//! A [`Client`] is one host session: it keeps operations channels to the metadata server's reactors
//! and data sessions with the data servers, and runs many requests at once. It is single-threaded
//! and driven by [`Client::poll`]; it reads no clock, starts no thread and draws no random number,
//! so the simulator runs the same code. [`blocking::Session`] wraps a client for programs that want
//! a call to return when it is done.
//!
//! Data servers write into and read from the host's own memory. A request therefore owns its
//! [`gannet_fabric::arena::HostBuffer`] until its [`Completion`], and a request that is given up
//! completes only after no transfer can reach the buffer any more.

#![forbid(unsafe_code)]

pub mod blocking;
mod channels;
mod client;
mod counters;
mod defects;
mod error;
mod fabrics;
mod identities;
mod link;
mod opens;
mod operation;
mod options;
mod outbox;
mod regions;
mod request;
mod sets;
mod slots;
mod targets;
pub mod waiter;
mod waiting;
mod windows;

pub use client::Client;
pub use counters::{ClientCounters, Counters, Peer, PeerConnection, Role, ServerConnection};
pub use error::{ErrorKind, RequestError};
pub use fabrics::{Fabrics, UnknownFabrics};
pub use identities::{Identity, IdentityId};
pub use opens::{OpenAccess, OpenId};
pub use operation::{
    AttributeChanges, Completion, Entry, Listing, Operation, Outcome, Ownership, Refused,
    RequestId, SetTime, Space, XattrMode,
};
pub use options::{ClientOptions, Protection, UnknownProtection};
