//! What Gannet's reactors are made of: time, I/O memory, buffer pools, pollers and the loop that
//! drives them, and bounded rings between reactors.
//!
//! A reactor owns everything that its pollers change; nothing here is shared between reactors but
//! the rings, the wake-up flags, the stop flag and the counters.

pub mod copy;
#[cfg(feature = "counting-allocator")]
pub mod counting_allocator;
pub mod deadlines;
pub mod eventfd;
pub mod idle;
pub mod memory;
pub mod poller;
pub mod pool;
pub mod reactor;
pub mod ring;
mod sleep;
pub mod spawn;
pub mod stats;
pub mod stop;
pub mod stream;
pub mod time;
pub mod wake;
