//! Tests of whole cores: a small world of hosts and data servers drives them.
#![allow(clippy::unwrap_used)]

mod access;
mod check;
mod conflict;
mod crash;
mod format;
mod links;
mod model;
mod opens;
mod plain;
mod random;
mod requests;
mod room;
mod safety;
mod shards;
mod windows;
mod world;
mod xattrs;
