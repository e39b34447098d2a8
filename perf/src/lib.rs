//! Gannet's performance harness
