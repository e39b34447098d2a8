//! Configuration files: TOML in, checked settings out.
//!
//! Whatever is wrong is named with file, line and key, and with what is allowed instead. Nothing is
//! guessed: unknown keys, wrong types and values out of range are refused before anything is tried.

mod document;
mod fabric;
mod metaserver;
mod target;

pub(crate) use fabric::{TCP_CONNECT_TIMEOUT, TCP_PEER_TIMEOUT, parse_network};
pub(crate) use metaserver::MetaServerSettings;
pub(crate) use target::{STORE_BYTES, StorePlace, StoreSettings, TargetSettings};
