//! RDMA devices and their ports, as `/sys/class/infiniband` shows them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::system::System;

const CLASS: &str = "/sys/class/infiniband";

/// An RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// As in `ibv_devices`.
    pub(super) name: String,
    /// Its character device below `/dev/infiniband`.
    pub(super) character_device: Option<String>,
    /// The network interface that a soft-RoCE device sits on.
    pub(super) soft_roce_on: Option<String>,
    pub(super) ports: Vec<Port>,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// From 1.
    pub(super) number: String,
    /// ACTIVE, DOWN, INIT, ARMED.
    pub(super) state: String,
    /// Ethernet or InfiniBand.
    pub(super) link_layer: String,
    /// As the kernel writes it, as in `100 Gb/sec (4X EDR)`.
    pub(super) rate: String,
    /// The network interface that belongs to it.
    pub(super) interface: Option<Interface>,
    /// Whether one of its global identifiers is of RoCE version 2.
    pub(super) has_roce_v2: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mtu_bytes: Option<u32>,
    /// Addresses that other machines can use, without those of the link alone.
    pub(super) addresses: Vec<IpAddr>,
}

/// One entry of a port's table of global identifiers.
struct Identifier {
    value: Ipv6Addr,
    interface: Option<String>,
    is_roce_v2: bool,
}

/// All RDMA devices of a machine.
pub(super) fn devices(system: &System) -> Vec<Device> {
    system.list(CLASS).into_iter().map(|name| device(system, name)).collect()
}

fn device(system: &System, name: String) -> Device {
    let top = format!("{CLASS}/{name}");
    let character_device = system
        .list("/sys/class/infiniband_verbs")
        .into_iter()
        .filter(|entry| entry.starts_with("uverbs"))
        .find(|entry| {
            let path = format!("/sys/class/infiniband_verbs/{entry}/ibdev");
            system.read(&path).as_deref() == Some(&name)
        });
    let soft_roce_on = system.read(&format!("{top}/parent"));
    let behind = soft_roce_on.clone();
    let behind = behind.or_else(|| system.list(&format!("{top}/device/net")).into_iter().next());
    let numbers = system.list(&format!("{top}/ports"));
    let ports = numbers.into_iter().map(|number| port(system, &top, number, behind.as_deref()));
    Device { name, character_device, soft_roce_on, ports: ports.collect() }
}

/// A port; `behind` is the interface of the device as a whole.
fn port(system: &System, device: &str, number: String, behind: Option<&str>) -> Port {
    let top = format!("{device}/ports/{number}");
    let word = |file: &str| system.read(&format!("{top}/{file}")).unwrap_or_default();
    let state = word("state");
    let state = state.split_once(": ").map_or(state.as_str(), |(_, name)| name).to_owned();
    let link_layer = word("link_layer");
    let identifiers = identifiers(system, &top);
    let named = identifiers.iter().find_map(|identifier| identifier.interface.clone());
    let interface = named.or_else(|| behind.map(str::to_owned)).map(|name| {
        let addresses = if link_layer == "InfiniBand" {
            addresses_of(system, &name)
        } else {
            // The device uses those that it has identifiers for.
            usable(identifiers.iter().map(|identifier| address_in(identifier.value)))
        };
        let mtu = system.read(&format!("/sys/class/net/{name}/mtu"));
        Interface { mtu_bytes: mtu.and_then(|mtu| mtu.parse().ok()), addresses, name }
    });
    let has_roce_v2 = identifiers.iter().any(|identifier| identifier.is_roce_v2);
    Port { state, rate: word("rate"), interface, has_roce_v2, link_layer, number }
}

/// The entries in use of a port's table.
fn identifiers(system: &System, port: &str) -> Vec<Identifier> {
    let indexes = system.list(&format!("{port}/gids")).into_iter();
    let entries = indexes.filter_map(|index| {
        let value: Ipv6Addr = system.read(&format!("{port}/gids/{index}"))?.parse().ok()?;
        let attribute = |kind: &str| system.read(&format!("{port}/gid_attrs/{kind}/{index}"));
        Some(Identifier {
            value,
            interface: attribute("ndevs").filter(|name| !name.is_empty()),
            is_roce_v2: attribute("types").is_some_and(|kind| kind == "RoCE v2"),
        })
    });
    entries.filter(|identifier| !identifier.value.is_unspecified()).collect()
}

fn address_in(identifier: Ipv6Addr) -> IpAddr {
    identifier.to_ipv4_mapped().map_or(IpAddr::V6(identifier), IpAddr::V4)
}

/// Each address once, without those that mean something on one link only.
fn usable(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut usable = Vec::new();
    for address in addresses {
        let local = match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
            IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
        };
        if !local && !usable.contains(&address) {
            usable.push(address);
        }
    }
    usable
}

/// The addresses of an interface: those of the machine that lie in a network which the interface
/// leads to.
fn addresses_of(system: &System, interface: &str) -> Vec<IpAddr> {
    let networks = networks_of(&system.read("/proc/net/route").unwrap_or_default(), interface);
    let local = local_addresses(&system.read("/proc/net/fib_trie").unwrap_or_default());
    let inside = |address: &Ipv4Addr| {
        networks.iter().any(|(network, mask)| u32::from(*address) & mask == *network)
    };
    let version_4 = local.into_iter().filter(inside).map(IpAddr::V4);
    let table = system.read("/proc/net/if_inet6").unwrap_or_default();
    let version_6 = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (address, name) = (words.next()?, words.next_back()?);
        let bits = u128::from_str_radix(address, 16).ok()?;
        (name == interface).then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
    });
    usable(version_4.chain(version_6))
}

/// Networks with their masks that a table of routes reaches through an interface directly.
fn networks_of(routes: &str, interface: &str) -> Vec<(u32, u32)> {
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The kernel writes the bytes in the order of the network as a number of this machine.
        let number = |index: usize| {
            let text = words.get(index)?;
            Some(u32::from_be(u32::from_str_radix(text, 16).ok()?))
        };
        let (network, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        (words[0] == interface && gateway == 0 && mask != 0).then_some((network, mask))
    };
    routes.lines().filter_map(of_line).collect()
}

/// The machine's own addresses in a dump of the kernel's table of routes.
fn local_addresses(dump: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in dump.lines().skip_while(|line| !line.starts_with("Local:")) {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.take());
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::system::tests::machine;
    use super::*;

    #[test]
    fn a_soft_roce_device_is_read() {
        let port = "sys/class/infiniband/rxe0/ports/1";
        let files: Vec<(String, &str)> = [
            ("sys/class/infiniband/rxe0/parent".to_owned(), "eth0"),
            ("sys/class/infiniband_verbs/uverbs0/ibdev".to_owned(), "rxe0"),
            ("sys/class/infiniband_verbs/abi_version".to_owned(), "6"),
            (format!("{port}/state"), "4: ACTIVE"),
            (format!("{port}/link_layer"), "Ethernet"),
            (format!("{port}/rate"), "2.5 Gb/sec (1X SDR)"),
            (format!("{port}/gids/0"), "fe80:0000:0000:0000:5054:00ff:fe12:3456"),
            (format!("{port}/gids/1"), "0000:0000:0000:0000:0000:ffff:0a4d:0001"),
            (format!("{port}/gids/2"), "fd00:0000:0000:0000:0000:0000:0000:0001"),
            (format!("{port}/gids/3"), "0000:0000:0000:0000:0000:0000:0000:0000"),
            (format!("{port}/gid_attrs/types/1"), "RoCE v2"),
            (format!("{port}/gid_attrs/ndevs/1"), "eth0"),
            ("sys/class/net/eth0/mtu".to_owned(), "1500"),
        ]
        .into();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, *text)).collect();
        let (_root, system) = machine(&files);
        let interface = Interface {
            name: "eth0".to_owned(),
            mtu_bytes: Some(1500),
            addresses: vec!["10.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        let port = Port {
            number: "1".to_owned(),
            state: "ACTIVE".to_owned(),
            link_layer: "Ethernet".to_owned(),
            rate: "2.5 Gb/sec (1X SDR)".to_owned(),
            interface: Some(interface),
            has_roce_v2: true,
        };
        let device = Device {
            name: "rxe0".to_owned(),
            character_device: Some("uverbs0".to_owned()),
            soft_roce_on: Some("eth0".to_owned()),
            ports: vec![port],
        };
        assert_eq!(devices(&system), [device]);
    }

    #[test]
    fn an_infiniband_port_has_the_addresses_of_its_interface() {
        let port = "sys/class/infiniband/mlx5_0/ports/1";
        let files: Vec<(String, &str)> = [
            ("sys/class/infiniband/mlx5_0/device/net/ib0/mtu".to_owned(), "2044"),
            (format!("{port}/state"), "4: ACTIVE"),
            (format!("{port}/link_layer"), "InfiniBand"),
            (format!("{port}/gids/0"), "fe80:0000:0000:0000:506b:4b03:00f5:30ee"),
            (format!("{port}/gid_attrs/types/0"), "IB/RoCE v1"),
            ("sys/class/net/ib0/mtu".to_owned(), "2044"),
            (
                "proc/net/route".to_owned(),
                "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                 eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\n\
                 eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
                 ib0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0",
            ),
            (
                "proc/net/fib_trie".to_owned(),
                "Main:\n  |-- 10.9.9.9\n     /32 host LOCAL\nLocal:\n  +-- 0.0.0.0/0 3 0 5\n     \
                 |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.255.255.255\n        \
                 /32 link BROADCAST\n     |-- 192.168.0.7\n        /32 host LOCAL",
            ),
            (
                "proc/net/if_inet6".to_owned(),
                "fe80000000000000506b4b0300f530ee 04 40 20 80      ib0\n\
                 fd000000000000000000000000000009 04 40 00 80      ib0\n\
                 fd000000000000000000000000000008 05 40 00 80     eth0",
            ),
        ]
        .into();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, *text)).collect();
        let (_root, system) = machine(&files);
        let found = devices(&system);
        let port = &found[0].ports[0];
        let interface = port.interface.as_ref().unwrap();
        assert_eq!((interface.name.as_str(), interface.mtu_bytes), ("ib0", Some(2044)));
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.2.3", "fd00::9"]);
        assert!(!port.has_roce_v2 && found[0].character_device.is_none());
    }

    #[test]
    fn damaged_files_are_no_devices_of_their_own() {
        let (_root, system) = machine(&[
            ("sys/class/infiniband/x/ports/1/gids/0", "not an identifier"),
            ("sys/class/infiniband/x/ports/1/state", ""),
            ("proc/net/route", "Iface\nib0 1 2"),
        ]);
        let found = devices(&system);
        assert_eq!((found.len(), found[0].ports.len()), (1, 1));
        assert_eq!((&*found[0].ports[0].state, &found[0].ports[0].interface), ("", &None));
        assert!(networks_of("ib0 zz 0 0 0 0 0 zz", "ib0").is_empty());
        assert!(local_addresses("Local:\n/32 host LOCAL").is_empty());
    }
}
