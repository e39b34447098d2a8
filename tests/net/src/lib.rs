//! What tests need of clusters over plain TCP: network namespaces that are joined by links which can
//! be cut, made deaf and made lossy ([`lab`]), and clusters with each party in a namespace of its
//! own ([`site`]).
//!
//! The tests are the files in `tests/`. They need root, and the commands `ip` and `nft`, so they
//! are ignored by `cargo test`: `tests/run net` runs them. What goes wrong panics.
#![forbid(unsafe_code)]

pub mod exchange;
pub mod fabrics;
pub mod filter;
pub mod lab;
pub mod program;
pub mod site;
pub mod space;
