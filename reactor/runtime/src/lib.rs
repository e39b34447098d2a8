//! What Gannet's reactors are made of: time, I/O memory, buffer pools, pollers and the loop that
//! drives them, and bounded rings between reactors.
//!
//! A reactor owns everything that its pollers change; nothing here is shared between reactors but
//! the rings and the wake-up flags.

pub mod memory;
pub mod poller;
pub mod pool;
pub mod time;
