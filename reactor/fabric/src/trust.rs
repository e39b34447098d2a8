//! Who may connect over a network.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether `peer` may connect to `local`: addresses of this machine may, and those of the networks
/// named.
pub(crate) fn is_trusted(peer: IpAddr, local: IpAddr, networks: &[IpNet]) -> bool {
    peer == local || peer.is_loopback() || networks.iter().any(|network| network.contains(&peer))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_the_networks_named_may_connect() {
        let networks = ["10.1.0.0/16".parse().unwrap(), "fd00::7/128".parse().unwrap()];
        for (peer, local, trusted) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("::1", "::1", true),
            ("192.168.1.7", "192.168.1.7", true),
            ("192.168.1.8", "192.168.1.7", false),
            ("10.1.255.3", "10.1.0.1", true),
            ("10.2.0.1", "10.1.0.1", false),
            ("fd00::7", "fd00::1", true),
            ("fd00::8", "fd00::1", false),
        ] {
            let found = is_trusted(peer.parse().unwrap(), local.parse().unwrap(), &networks);
            assert_eq!(found, trusted, "{peer} to {local}");
        }
    }
}
