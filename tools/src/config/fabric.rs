//! The keys about the fabric that a server's address belongs to: who may connect, and what can be
//! set about RDMA devices.

use std::net::IpAddr;
use std::time::Duration;

use gannet_fabric::Address;
use gannet_fabric::any::FabricOptions;
use gannet_fabric::shm::ShmOptions;
use gannet_fabric::verbs::VerbsOptions;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::document::{Document, Field};
use crate::failure::Failure;

/// Most networks that can be named.
pub(crate) const TRUSTED_HOSTS_MAX: usize = 1024;
const CONNECTIONS: (i64, i64) = (1, 32768);
const RECEIVES: (i64, i64) = (64, 65536);
/// The device rounds it to 4.096 us times a power of two.
const ACKNOWLEDGE_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_secs(10));

/// The keys of the table `[rdma]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RdmaKeys {
    connections_max: Field,
    shared_receives: Field,
    acknowledge_timeout: Field,
}

/// The keys of a server that say something about its fabric.
pub(super) struct FabricKeys<'a> {
    pub(super) trusted_uids: &'a Field,
    pub(super) trusted_hosts: &'a Field,
    pub(super) rdma: &'a Option<Spanned<RdmaKeys>>,
}

/// The settings of the fabric that `listen` belongs to. Keys that mean nothing there are refused:
/// who wrote them expects something of them.
pub(super) fn fabric_options(
    document: &Document,
    listen: &Address,
    keys: &FabricKeys<'_>,
) -> Result<FabricOptions, Failure> {
    let uids = document.integers("trusted_uids", keys.trusted_uids, 0..=i64::from(u32::MAX))?;
    let hosts = document.networks("trusted_hosts", keys.trusted_hosts, TRUSTED_HOSTS_MAX)?;
    let refuse = |key: &str, span, why: &str| {
        Err(document.refuse(span, key, format!("listen is {listen}, {why}")))
    };
    match listen {
        Address::Shm(_) => {
            if let Some(value) = keys.trusted_hosts {
                let why = "which other machines do not reach: leave the key out; trusted_uids says \
                           which users may connect";
                return refuse("trusted_hosts", value.span(), why);
            }
            if let Some(value) = keys.rdma {
                return refuse("rdma", value.span(), "not rdma://: leave the table out");
            }
            let uids = uids.unwrap_or_default();
            Ok(FabricOptions::Shm(ShmOptions {
                trusted_uids: uids.into_iter().map(|uid| uid as u32).collect(),
                ..ShmOptions::default()
            }))
        }
        Address::Rdma { .. } => {
            if let Some(value) = keys.trusted_uids {
                let why = "where users cannot be told apart: leave the key out; trusted_hosts says \
                           which machines may connect";
                return refuse("trusted_uids", value.span(), why);
            }
            let mut options = rdma_options(document, keys.rdma.as_ref().map(Spanned::as_ref))?;
            options.trusted_hosts = hosts.unwrap_or_default();
            Ok(FabricOptions::Verbs(options))
        }
    }
}

fn rdma_options(document: &Document, keys: Option<&RdmaKeys>) -> Result<VerbsOptions, Failure> {
    let mut options = VerbsOptions::default();
    let Some(keys) = keys else { return Ok(options) };
    let range = CONNECTIONS.0..=CONNECTIONS.1;
    if let Some(most) = document.integer("rdma.connections_max", &keys.connections_max, range)? {
        options.connections_max = most as usize;
    }
    let range = RECEIVES.0..=RECEIVES.1;
    if let Some(receives) =
        document.integer("rdma.shared_receives", &keys.shared_receives, range)?
    {
        options.shared_receives = receives as u32;
    }
    let (key, range) = ("rdma.acknowledge_timeout", ACKNOWLEDGE_TIMEOUT.0..=ACKNOWLEDGE_TIMEOUT.1);
    if let Some(timeout) = document.duration(key, &keys.acknowledge_timeout, range)? {
        options.acknowledge_timeout = timeout;
    }
    Ok(options)
}

/// Reads a network, or an address as the network of that address alone.
///
/// # Errors
/// A text that says what is allowed.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().ok();
    let parsed = parsed.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(network) = parsed else {
        return Err(format!(
            "{text:?} is no IP address and no network: write it as 192.168.1.7, 192.168.1.0/24 or \
             fd00::/64"
        ));
    };
    if network.trunc() != network {
        return Err(format!(
            "{text:?} is an address with the length of its network: write {} for the whole \
             network, or {} for that machine",
            network.trunc(),
            network.addr()
        ));
    }
    Ok(network)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_addresses_or_ranges() {
        for (text, expected) in [
            ("192.168.1.7", "192.168.1.7/32"),
            ("192.168.1.0/24", "192.168.1.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1", "fd00::1/128"),
            ("fd00::/64", "fd00::/64"),
        ] {
            assert_eq!(parse_network(text).unwrap().to_string(), expected);
        }
        for (text, hint) in [
            ("", "no IP address"),
            ("storage-1", "no IP address"),
            ("192.168.1", "no IP address"),
            ("192.168.1.0/33", "no IP address"),
            ("192.168.1.0/24/8", "no IP address"),
            ("192.168.1.*", "no IP address"),
            ("192.168.1.7/24", "192.168.1.0/24 for the whole"),
            ("192.168.1.7/24", "192.168.1.7 for that machine"),
            ("fd00::1/64", "fd00::/64"),
        ] {
            let message = parse_network(text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
