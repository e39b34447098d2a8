//! The verbs provider: RDMA devices, through libibverbs and librdmacm.
//!
//! A connection is a reliable-connected queue pair that the connection manager ([`cm`]) set up.
//! Per device a fabric has one completion queue ([`device`]), polled in batches. Sends, writes and
//! reads are collected per connection and posted as one chain by [`Fabric::flush`]: one doorbell
//! ([`send`]). Connections that were accepted share a protection domain and a receive queue
//! ([`receive`]); a connection that this side made has a domain of its own, so what is registered on
//! it can be reached through it alone.
//!
//! The credits of messages are counted by the two ends ([`wire`], [`connection`]), so that a
//! receive entry is there for every message; where accepted connections together have more credits
//! than the shared queue has entries, the device holds senders up and nothing is lost.
//!
//! **The end of a connection.** When this side ends it, everything posted completes, a goodbye
//! follows, and the queue pair is put into the error state; when it breaks, that comes at once. From
//! then on the device lets nobody in. Once the last completion is in, queue pair, windows and
//! registrations are destroyed, and only then [`Event::Disconnected`] is handed out. A peer that
//! ends without a goodbye is lost: the kernel destroys the queue pairs of a process that dies.
//!
//! One reactor owns a [`VerbsFabric`]. A poll in which nothing happened looks at the completion
//! queues, which are in memory, and makes no system call but for one every [`SERVICE_IDLE`] (or
//! [`SERVICE_BUSY`] while a connection is being made or ended). A sleeper waits for one epoll
//! descriptor that has the channels of completions, of the connection manager and of asynchronous
//! events, and a timer for the deadlines.

mod options;

#[cfg(feature = "verbs")]
mod asynchronous;
#[cfg(feature = "verbs")]
mod cm;
#[cfg(feature = "verbs")]
mod completions;
#[cfg(feature = "verbs")]
mod connection;
#[cfg(feature = "verbs")]
mod device;
#[cfg(feature = "verbs")]
mod fabric;
#[cfg(feature = "verbs")]
mod objects;
#[cfg(feature = "verbs")]
mod receive;
#[cfg(feature = "verbs")]
mod send;
#[cfg(feature = "verbs")]
mod setup;
#[cfg(all(test, feature = "verbs"))]
mod tests;
#[cfg(feature = "verbs")]
mod wire;

#[cfg(feature = "verbs")]
pub use self::fabric::{SERVICE_BUSY, SERVICE_IDLE, VerbsFabric};
pub use self::options::VerbsOptions;
