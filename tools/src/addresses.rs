//! The addresses that follow from others, and which ones a server can listen at.
//!
//! Hosts learn a server's address from the metadata server, so what a server listens at has to mean
//! the same to them as it does here.

use std::net::IpAddr;

use gannet_fabric::{Address, AddressError};
use gannet_proto::limits::ADDRESS_BYTES_MAX;

/// Why no server can listen at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListenError {
    /// It means "every address of this machine".
    #[error(
        "{0} is every address of this machine, and hosts have to be told one: write the address of \
         the RDMA device's interface, as in rdma://192.168.1.10:7470"
    )]
    Unspecified(Address),
    /// It stands for many machines.
    #[error("{0} is a multicast address: write the address of the RDMA device's interface")]
    Multicast(Address),
    /// A port that is chosen anew at each start.
    #[error("{0} leaves the port open, and hosts have to be told one: choose it, as in :7470")]
    Port(Address),
    /// The ports behind the first one do not suffice.
    #[error(
        "{first} leaves no port for {what}, which listens {offset} ports further: choose a port of \
         at most {}", u16::MAX as usize - offset
    )]
    NoPortLeft {
        /// The address that the ports are counted from.
        first: Address,
        /// Who would listen there.
        what: String,
        /// How many ports further.
        offset: usize,
    },
    /// Longer than the protocol carries.
    #[error(
        "{address} has {len_bytes} bytes, and hosts can be told {ADDRESS_BYTES_MAX}: write the \
             IP address instead of the name"
    )]
    TooLong {
        /// The address.
        address: Address,
        /// Its length.
        len_bytes: usize,
    },
    /// The path of a socket is too long.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Checks that hosts can be told an address.
///
/// # Errors
/// Each variant of [`ListenError`] but `NoPortLeft`.
pub(crate) fn check_listen(at: &Address) -> Result<(), ListenError> {
    if let Address::Rdma { host, port } = at {
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => return Err(ListenError::Unspecified(at.clone())),
            Ok(ip) if ip.is_multicast() => return Err(ListenError::Multicast(at.clone())),
            _ => {}
        }
        if *port == 0 {
            return Err(ListenError::Port(at.clone()));
        }
    }
    let len_bytes = at.to_string().len();
    if len_bytes > ADDRESS_BYTES_MAX {
        return Err(ListenError::TooLong { address: at.clone(), len_bytes });
    }
    Ok(())
}

/// Where a reactor of the metadata server listens, given the address of reactor 0: a suffix or the
/// port tells the others apart.
///
/// # Errors
/// As [`check_listen`]; the suffix may make a path too long, or there may be no such port.
pub(crate) fn reactor_address(first: &Address, reactor: usize) -> Result<Address, ListenError> {
    let address = match first {
        _ if reactor == 0 => first.clone(),
        Address::Shm(path) => {
            let mut path = path.clone().into_os_string();
            path.push(format!(".{reactor}"));
            Address::shm(path)?
        }
        Address::Rdma { .. } => port_further(first, reactor, || format!("reactor {reactor}"))?,
    };
    check_listen(&address)?;
    Ok(address)
}

/// The address that is `offset` ports after `first`; one of another kind is returned as it is.
///
/// # Errors
/// `NoPortLeft`, naming `what` was to listen there.
pub(crate) fn port_further(
    first: &Address,
    offset: usize,
    what: impl FnOnce() -> String,
) -> Result<Address, ListenError> {
    let Address::Rdma { host, port } = first else { return Ok(first.clone()) };
    match u16::try_from(usize::from(*port) + offset) {
        Ok(port) => Ok(Address::Rdma { host: host.clone(), port }),
        Err(_) => Err(ListenError::NoPortLeft { first: first.clone(), what: what(), offset }),
    }
}

/// The fabric that an address belongs to, as its URI says it.
pub(crate) fn scheme(address: &Address) -> &'static str {
    match address {
        Address::Shm(_) => "shm",
        Address::Rdma { .. } => "rdma",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn reactors_are_told_apart() {
        for (first, reactor, expected) in [
            ("shm:///run/m.sock", 0, "shm:///run/m.sock"),
            ("shm:///run/m.sock", 3, "shm:///run/m.sock.3"),
            ("rdma://10.0.0.1:7470", 0, "rdma://10.0.0.1:7470"),
            ("rdma://10.0.0.1:7470", 3, "rdma://10.0.0.1:7473"),
            ("rdma://[fd00::1]:65472", 63, "rdma://[fd00::1]:65535"),
        ] {
            let found = reactor_address(&address(first), reactor).unwrap();
            assert_eq!(found, address(expected));
        }
    }

    #[test]
    fn what_hosts_cannot_be_told_is_refused_with_the_remedy() {
        let long = format!("rdma://{}.example:7470", "storage".repeat(16));
        let long_path = format!("shm:///{}", "x".repeat(106));
        for (first, reactor, hint) in [
            ("rdma://0.0.0.0:7470", 0, "every address"),
            ("rdma://[::]:7470", 1, "every address"),
            ("rdma://224.0.0.1:7470", 0, "multicast"),
            ("rdma://10.0.0.1:0", 0, "choose it"),
            ("rdma://10.0.0.1:65535", 1, "at most 65534"),
            ("rdma://10.0.0.1:65500", 63, "reactor 63"),
            (&long, 0, "IP address instead"),
            (&long_path, 1, "at most 107"),
        ] {
            let message = reactor_address(&address(first), reactor).unwrap_err().to_string();
            assert!(message.contains(hint), "{first}: {message}");
        }
    }
}
