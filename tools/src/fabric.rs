//! Opening the fabrics that addresses belong to, with errors that say what helps.

use std::io::ErrorKind;
use std::net::TcpListener;

use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{Address, FabricError};
use ipnet::IpNet;

use crate::addresses::is_for_other_machines;
use crate::failure::Failure;

/// A fabric that can reach `address`; it reaches those of other kinds too, once they are needed.
///
/// # Errors
/// What the machine, or this build, lacks for it.
pub(crate) fn open_fabric(options: FabricOptions, address: &Address) -> Result<AnyFabric, Failure> {
    open_fabrics(options, std::slice::from_ref(address))
}

/// A fabric that can serve all of `addresses`.
///
/// # Errors
/// What the machine, or this build, lacks for one.
pub(crate) fn open_fabrics(
    options: FabricOptions,
    addresses: &[Address],
) -> Result<AnyFabric, Failure> {
    let mut fabric = AnyFabric::new(options);
    for address in addresses {
        fabric
            .open(address)
            .map_err(|error| Failure::operation(format!("{address}: {}", explain(&error))))?;
    }
    Ok(fabric)
}

/// Looks whether there is what the addresses need, before anything is made for them.
///
/// # Errors
/// As [`open_fabrics`].
pub(crate) fn check_fabrics(options: &FabricOptions, addresses: &[Address]) -> Result<(), Failure> {
    open_fabrics(options.clone(), addresses).map(drop)
}

/// Looks whether the ports of `tcp://` addresses can be had, before anything is made for them.
///
/// # Errors
/// Which one cannot, and why.
pub(crate) fn check_ports<'a>(
    addresses: impl IntoIterator<Item = &'a Address>,
) -> Result<(), Failure> {
    for address in addresses {
        let Address::Tcp { host, port } = address else { continue };
        TcpListener::bind((host.as_str(), *port)).map(drop).map_err(|source| {
            let error = FabricError::System { what: format!("listening at {address}"), source };
            Failure::operation(explain(&error))
        })?;
    }
    Ok(())
}

/// Warns of an address that is there for other machines while none is trusted; `key` is where they
/// are named.
pub(crate) fn warn_of_strangers(listen: &[Address], trusted_hosts: &[IpNet], key: &str) {
    if !trusted_hosts.is_empty() {
        return;
    }
    for address in listen.iter().filter(|address| is_for_other_machines(address)) {
        tracing::warn!(
            "{address} accepts this machine's own addresses only: name the other machines that may \
             connect in {key}, as in 192.168.1.0/24"
        );
    }
}

/// What happened, and what helps where the error itself does not say it.
pub(crate) fn explain(error: &FabricError) -> String {
    let remedy = match error {
        FabricError::System { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            " (stop the server that listens there, or choose another address)"
        }
        FabricError::System { source, .. } if source.kind() == ErrorKind::AddrNotAvailable => {
            " (no interface of this machine has it: `ip addr` lists those that there are)"
        }
        FabricError::Missing(what) if !what.contains("gannet doctor") => {
            " (`gannet doctor --rdma` looks for what RDMA needs)"
        }
        _ => "",
    };
    format!("{error}{remedy}")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_helps_is_said_once() {
        let source = io::Error::from(ErrorKind::AddrInUse);
        let in_use = FabricError::System { what: "listening at x".to_owned(), source };
        let source = io::Error::from(ErrorKind::AddrNotAvailable);
        let foreign = FabricError::System { what: "listening at x".to_owned(), source };
        let missing = FabricError::Missing("no RDMA device".to_owned());
        for (error, hint) in
            [(in_use, "another address"), (foreign, "ip addr"), (missing, "gannet doctor --rdma")]
        {
            assert!(explain(&error).contains(hint), "{error}");
        }
        let named = FabricError::Missing("none; `gannet doctor --rdma` tells why".to_owned());
        assert_eq!(explain(&named), named.to_string());
        let locked = FabricError::LockedMemory { len_bytes: 4096, limit_bytes: 0 };
        assert_eq!(explain(&locked), locked.to_string(), "it brings its remedy");
    }
}
