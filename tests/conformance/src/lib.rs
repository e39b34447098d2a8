//! Conformance suites: what must hold whichever provider is used, and the claims.
//!
//! [`fabric`] is the suite that every fabric provider passes; a provider's own test binary
//! instantiates it with [`fabric_conformance!`]. [`cluster`] runs the real roles in one thread with
//! their channels in sight ([`spy`]), for the tests of the claims.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod fabric;
mod pass_on;
pub mod spy;

// For `pass_on!`.
pub use {gannet_fabric, gannet_runtime};
