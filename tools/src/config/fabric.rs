//! The keys about the fabrics that a server's addresses belong to: who may connect, and what can be
//! set about RDMA devices and TCP.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use gannet_fabric::Address;
use gannet_fabric::any::FabricOptions;
use gannet_fabric::tcp::TcpOptions;
use gannet_fabric::verbs::VerbsOptions;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::document::{Document, Field};
use crate::failure::Failure;

/// Most networks that can be named.
pub(crate) const TRUSTED_HOSTS_MAX: usize = 1024;
const RDMA_CONNECTIONS: (i64, i64) = (1, 32768);
const RECEIVES: (i64, i64) = (64, 65536);
/// The device rounds it to 4.096 us times a power of two.
const ACKNOWLEDGE_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_secs(10));
const TCP_CONNECTIONS: (i64, i64) = (1, 65536);
const HALF_OPEN: (i64, i64) = (1, 16384);
/// Time-outs of dead peers over TCP. The kernel's probes have a resolution of a second.
pub(crate) const TCP_PEER_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(600);
/// Times that making a connection over TCP may take.
pub(crate) const TCP_CONNECT_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);

/// The keys of the table `[rdma]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RdmaKeys {
    connections_max: Field,
    shared_receives: Field,
    acknowledge_timeout: Field,
}

/// The keys of the table `[tcp]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpKeys {
    connections_max: Field,
    half_open_max: Field,
    payload_checksums: Field,
    peer_timeout: Field,
    connect_timeout: Field,
}

/// The keys of a server that say something about its fabrics.
pub(super) struct FabricKeys<'a> {
    pub(super) trusted_uids: &'a Field,
    pub(super) trusted_hosts: &'a Field,
    pub(super) rdma: &'a Option<Spanned<RdmaKeys>>,
    pub(super) tcp: &'a Option<Spanned<TcpKeys>>,
}

/// The settings of the fabrics of a server that listens at `listen` and connects to `connects`.
/// Keys that mean nothing there are refused: who wrote them expects something of them.
pub(super) fn fabric_options(
    document: &Document,
    listen: &[Address],
    connects: Option<&Address>,
    keys: &FabricKeys<'_>,
) -> Result<FabricOptions, Failure> {
    let uids = document.integers("trusted_uids", keys.trusted_uids, 0..=i64::from(u32::MAX))?;
    let hosts = document.networks("trusted_hosts", keys.trusted_hosts, TRUSTED_HOSTS_MAX)?;
    let listens = |schemes: &[&str]| listen.iter().any(|at| schemes.contains(&at.scheme()));
    let uses = |scheme| listens(&[scheme]) || connects.is_some_and(|to| to.scheme() == scheme);
    let listed: Vec<String> = listen.iter().map(Address::to_string).collect();
    let refuse = |key: &str, span, why: &str| {
        Err(document.refuse(span, key, format!("listen is {}, {why}", listed.join(", "))))
    };
    if let Some(value) = keys.trusted_uids
        && !listens(&["shm"])
    {
        let why = "where users cannot be told apart: leave the key out; trusted_hosts says which \
                   machines may connect";
        return refuse("trusted_uids", value.span(), why);
    }
    if let Some(value) = keys.trusted_hosts
        && !listens(&["rdma", "tcp"])
    {
        let why = "which other machines do not reach: leave the key out; trusted_uids says which \
                   users may connect";
        return refuse("trusted_hosts", value.span(), why);
    }
    if let Some(value) = keys.rdma
        && !uses("rdma")
    {
        return refuse("rdma", value.span(), "not rdma://: leave the table out");
    }
    if let Some(value) = keys.tcp
        && !uses("tcp")
    {
        return refuse("tcp", value.span(), "not tcp://: leave the table out");
    }
    let mut options = FabricOptions::default();
    if let Some(uids) = uids {
        options.shm.trusted_uids = uids.into_iter().map(|uid| uid as u32).collect();
    }
    let hosts = hosts.unwrap_or_default();
    options.verbs.trusted_hosts.clone_from(&hosts);
    options.tcp.trusted_hosts = hosts;
    if let Some(keys) = keys.rdma {
        read_rdma(document, keys.as_ref(), &mut options.verbs)?;
    }
    if let Some(keys) = keys.tcp {
        read_tcp(document, keys.as_ref(), &mut options.tcp)?;
    }
    Ok(options)
}

fn read_rdma(
    document: &Document,
    keys: &RdmaKeys,
    options: &mut VerbsOptions,
) -> Result<(), Failure> {
    let range = RDMA_CONNECTIONS.0..=RDMA_CONNECTIONS.1;
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
    Ok(())
}

fn read_tcp(document: &Document, keys: &TcpKeys, options: &mut TcpOptions) -> Result<(), Failure> {
    let range = TCP_CONNECTIONS.0..=TCP_CONNECTIONS.1;
    if let Some(most) = document.integer("tcp.connections_max", &keys.connections_max, range)? {
        options.connections_max = most as usize;
    }
    let range = HALF_OPEN.0..=HALF_OPEN.1;
    if let Some(most) = document.integer("tcp.half_open_max", &keys.half_open_max, range)? {
        options.half_open_max = most as usize;
    }
    if let Some(wanted) = document.boolean("tcp.payload_checksums", &keys.payload_checksums)? {
        options.payload_checksums = wanted;
    }
    let (key, range) = ("tcp.peer_timeout", TCP_PEER_TIMEOUT);
    if let Some(timeout) = document.duration(key, &keys.peer_timeout, range)? {
        options.peer_timeout = timeout;
    }
    let (key, range) = ("tcp.connect_timeout", TCP_CONNECT_TIMEOUT);
    if let Some(timeout) = document.duration(key, &keys.connect_timeout, range)? {
        options.connect_timeout = timeout;
    }
    Ok(())
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
