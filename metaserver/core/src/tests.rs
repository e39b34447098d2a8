//! Tests of whole cores: a small world of hosts and data servers drives them.
#![allow(clippy::unwrap_used)]

mod check;
mod format;
mod plain;
mod random;
mod requests;
mod room;
mod safety;
mod shards;
mod windows;
mod world;
