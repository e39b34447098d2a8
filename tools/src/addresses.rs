//! The addresses that follow from others, and which ones a server can listen at.
//!
//! A server listens at a list of addresses, of one fabric or of several. Hosts learn all of them from
//! the metadata server, so what a server listens at has to mean the same to them as it does here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use gannet_fabric::{Address, AddressError};
use gannet_proto::addresses::reactors_bytes;
use gannet_proto::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, REACTOR_ADDRESSES_BYTES_MAX};

/// Why no server can listen at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListenError {
    /// It means "every address of this machine".
    #[error(
        "{at} is every address of this machine, and hosts have to be told one: write the address of \
         {}, as in {}://192.168.1.10:7470", interface(at), at.scheme()
    )]
    Unspecified {
        /// The address.
        at: Address,
    },
    /// It stands for many machines.
    #[error("{at} is a multicast address: write the address of {}", interface(at))]
    Multicast {
        /// The address.
        at: Address,
    },
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
    /// More than a server listens at.
    #[error("{0} addresses: a server listens at {ADDRESSES_MAX} at most")]
    TooMany(usize),
    /// None at all.
    #[error("an empty list: name an address, as in \"shm:///run/gannet/meta.sock\"")]
    None,
    /// The same twice.
    #[error("{0} is named twice: leave one out")]
    Twice(Address),
    /// What follows from one address is what follows from another.
    #[error(transparent)]
    Overlap(Box<Overlap>),
    /// Longer in all than the protocol carries.
    #[error(
        "the addresses of {reactors} reactors have {len_bytes} bytes in all, and hosts can be told \
         {REACTOR_ADDRESSES_BYTES_MAX}: listen at fewer, or choose shorter paths and IP addresses"
    )]
    TooLongInAll {
        /// Reactors of the metadata server.
        reactors: usize,
        /// The length of all their addresses, as hosts are told them.
        len_bytes: usize,
    },
    /// The path of a socket is too long.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// Two addresses that lead to the same place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{first} and {second} overlap: {} would listen at {address} for one and {} for the other; \
     choose {}", whose.0, whose.1, self.way_out()
)]
pub(crate) struct Overlap {
    /// An address of the list.
    first: Address,
    /// A later one.
    second: Address,
    /// What both lead to.
    address: Address,
    /// Who listens there.
    whose: (String, String),
    /// How many addresses follow from each of the list.
    places: usize,
}

/// What has the address that is wanted.
fn interface(at: &Address) -> &'static str {
    match at {
        Address::Rdma { .. } => "the RDMA device's interface",
        Address::Shm(_) | Address::Tcp { .. } => "one interface",
    }
}

impl Overlap {
    /// How addresses are kept apart.
    fn way_out(&self) -> String {
        match self.address {
            Address::Shm(_) if self.first == self.second => "another name of the socket".to_owned(),
            Address::Shm(_) => "paths in different directories".to_owned(),
            Address::Rdma { .. } | Address::Tcp { .. } => {
                format!("ports that are at least {} apart", self.places)
            }
        }
    }
}

/// Checks that hosts can be told an address.
///
/// # Errors
/// Each variant of [`ListenError`] about one address but `NoPortLeft`.
pub(crate) fn check_listen(at: &Address) -> Result<(), ListenError> {
    if let Address::Rdma { host, port } | Address::Tcp { host, port } = at {
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => {
                return Err(ListenError::Unspecified { at: at.clone() });
            }
            Ok(ip) if ip.is_multicast() => return Err(ListenError::Multicast { at: at.clone() }),
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

/// Checks a list of addresses that one server listens at.
///
/// # Errors
/// As [`check_listen`] for each; too many, none, or one twice.
pub(crate) fn check_list(listen: &[Address]) -> Result<(), ListenError> {
    if listen.is_empty() {
        return Err(ListenError::None);
    }
    if listen.len() > ADDRESSES_MAX {
        return Err(ListenError::TooMany(listen.len()));
    }
    for (index, address) in listen.iter().enumerate() {
        check_listen(address)?;
        if listen[..index].iter().any(|other| Place::of(other) == Place::of(address)) {
            return Err(ListenError::Twice(address.clone()));
        }
    }
    Ok(())
}

/// Where one process at most can listen: an address without the ways of writing it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Socket(PathBuf),
    /// Ports of RDMA are counted apart from those of TCP.
    Port(&'static str, String, u16),
}

impl Place {
    fn of(address: &Address) -> Place {
        match address {
            // As components, so that doubled slashes count for one.
            Address::Shm(path) => Place::Socket(path.components().collect()),
            Address::Rdma { host, port } | Address::Tcp { host, port } => {
                let host = match host.parse::<IpAddr>() {
                    Ok(ip) => ip.to_canonical().to_string(),
                    Err(_) => host.to_ascii_lowercase(),
                };
                Place::Port(address.scheme(), host, *port)
            }
        }
    }
}

/// Servers that listen from the same list of addresses on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Reactors of the metadata server.
    pub(crate) reactors: usize,
    /// Data servers.
    pub(crate) targets: usize,
}

/// Where the servers of a [`Group`] listen, each at a list that begins as the group's does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupAddresses {
    /// One list per reactor of the metadata server.
    pub(crate) reactors: Vec<Vec<Address>>,
    /// One list per data server.
    pub(crate) targets: Vec<Vec<Address>>,
}

impl Group {
    /// Works out where everybody listens: at each address of the list reactor 0; the other reactors
    /// at the same path with a number behind it, or at the ports that follow; data servers at sockets
    /// beside, or at the ports behind those.
    ///
    /// # Errors
    /// As [`check_list`] for all that follows; addresses that lead to the same place.
    pub(crate) fn addresses(self, listen: &[Address]) -> Result<GroupAddresses, ListenError> {
        check_list(listen)?;
        let mut all = GroupAddresses {
            reactors: vec![Vec::with_capacity(listen.len()); self.reactors],
            targets: vec![Vec::with_capacity(listen.len()); self.targets],
        };
        let mut taken: BTreeMap<Place, (&Address, String)> = BTreeMap::new();
        for first in listen {
            let mut take = |address: &Address, who: String| match taken
                .insert(Place::of(address), (first, who.clone()))
            {
                Some((other, whose)) => Err(ListenError::Overlap(Box::new(Overlap {
                    first: other.clone(),
                    second: first.clone(),
                    address: address.clone(),
                    whose: (whose, who),
                    places: self.reactors + self.targets,
                }))),
                None => Ok(()),
            };
            for (reactor, list) in all.reactors.iter_mut().enumerate() {
                let address = reactor_address(first, reactor)?;
                take(&address, format!("reactor {reactor}"))?;
                list.push(address);
            }
            for (index, list) in all.targets.iter_mut().enumerate() {
                let address = target_address(first, self.reactors, index)?;
                take(&address, format!("data server {index}"))?;
                list.push(address);
            }
        }
        let length = |address: &Address| address.to_string().len();
        let len_bytes = reactors_bytes(all.reactors.iter().map(|list| list.iter().map(length)));
        if len_bytes > REACTOR_ADDRESSES_BYTES_MAX {
            return Err(ListenError::TooLongInAll { reactors: self.reactors, len_bytes });
        }
        Ok(all)
    }
}

/// Where a reactor of the metadata server listens, given the address of reactor 0: a suffix or the
/// port tells the others apart.
fn reactor_address(first: &Address, reactor: usize) -> Result<Address, ListenError> {
    let address = match first {
        _ if reactor == 0 => first.clone(),
        Address::Shm(path) => {
            let mut path = path.clone().into_os_string();
            path.push(format!(".{reactor}"));
            Address::shm(path)?
        }
        Address::Rdma { .. } | Address::Tcp { .. } => {
            port_further(first, reactor, || format!("reactor {reactor}"))?
        }
    };
    check_listen(&address)?;
    Ok(address)
}

/// Where a data server listens beside a metadata server.
fn target_address(first: &Address, reactors: usize, index: usize) -> Result<Address, ListenError> {
    let address = match first {
        Address::Shm(path) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            Address::shm(directory.join(format!("target-{index}.sock")))?
        }
        Address::Rdma { .. } | Address::Tcp { .. } => {
            port_further(first, reactors + index, || format!("data server {index}"))?
        }
    };
    check_listen(&address)?;
    Ok(address)
}

/// The address that is `offset` ports after `first`; one without ports is returned as it is.
fn port_further(
    first: &Address,
    offset: usize,
    what: impl FnOnce() -> String,
) -> Result<Address, ListenError> {
    let mut address = first.clone();
    if let Address::Rdma { port, .. } | Address::Tcp { port, .. } = &mut address {
        *port = u16::try_from(usize::from(*port) + offset)
            .map_err(|_| ListenError::NoPortLeft { first: first.clone(), what: what(), offset })?;
    }
    Ok(address)
}

/// Whether processes of other machines can reach an address, as far as it can be told from it.
pub(crate) fn is_for_other_machines(address: &Address) -> bool {
    match address {
        Address::Shm(_) => false,
        Address::Rdma { host, .. } | Address::Tcp { host, .. } => match host.parse::<IpAddr>() {
            Ok(ip) => !ip.to_canonical().is_loopback(),
            Err(_) => !host.eq_ignore_ascii_case("localhost"),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn reactors_are_told_apart() {
        for (first, reactor, expected) in [
            ("shm:///run/m.sock", 0, "shm:///run/m.sock"),
            ("shm:///run/m.sock", 3, "shm:///run/m.sock.3"),
            ("rdma://10.0.0.1:7470", 0, "rdma://10.0.0.1:7470"),
            ("rdma://10.0.0.1:7470", 3, "rdma://10.0.0.1:7473"),
            ("rdma://[fd00::1]:65472", 63, "rdma://[fd00::1]:65535"),
            ("tcp://127.0.0.1:7470", 1, "tcp://127.0.0.1:7471"),
        ] {
            let group = Group { reactors: reactor + 1, targets: 0 };
            let found = group.addresses(&addresses(&[first])).unwrap();
            assert_eq!(found.reactors[reactor], addresses(&[expected]));
        }
    }

    #[test]
    fn every_server_listens_at_every_fabric() {
        let listen = addresses(&["tcp://10.0.0.1:7470", "shm:///x/meta.sock"]);
        let found = Group { reactors: 2, targets: 2 }.addresses(&listen).unwrap();
        let expected = [
            ["tcp://10.0.0.1:7470", "shm:///x/meta.sock"],
            ["tcp://10.0.0.1:7471", "shm:///x/meta.sock.1"],
        ];
        assert_eq!(found.reactors, expected.map(|list| addresses(&list)));
        let expected = [
            ["tcp://10.0.0.1:7472", "shm:///x/target-0.sock"],
            ["tcp://10.0.0.1:7473", "shm:///x/target-1.sock"],
        ];
        assert_eq!(found.targets, expected.map(|list| addresses(&list)));
    }

    #[test]
    fn what_hosts_cannot_be_told_is_refused_with_the_remedy() {
        let long = format!("rdma://{}.example:7470", "storage".repeat(16));
        let long_path = format!("shm:///{}", "x".repeat(106));
        for (first, reactors, hint) in [
            ("rdma://0.0.0.0:7470", 1, "the RDMA device's interface, as in rdma://192"),
            ("rdma://[::]:7470", 2, "every address"),
            ("tcp://0.0.0.0:7470", 1, "one interface, as in tcp://192"),
            ("rdma://224.0.0.1:7470", 1, "multicast"),
            ("tcp://[ff02::1]:7470", 1, "multicast"),
            ("rdma://10.0.0.1:0", 1, "choose it"),
            ("tcp://10.0.0.1:0", 1, "choose it"),
            ("rdma://10.0.0.1:65535", 2, "at most 65534"),
            ("tcp://10.0.0.1:65500", 64, "reactor 36"),
            (&long, 1, "IP address instead"),
            (&long_path, 2, "at most 107"),
        ] {
            let group = Group { reactors, targets: 0 };
            let message = group.addresses(&addresses(&[first])).unwrap_err().to_string();
            assert!(message.contains(hint), "{first}: {message}");
        }
    }

    #[test]
    fn addresses_that_meet_are_refused() {
        let group = Group { reactors: 2, targets: 2 };
        for (listen, hints) in [
            (&["tcp://10.0.0.1:1", "tcp://10.0.0.1:1"][..], &["named twice"][..]),
            (&["tcp://[::ffff:10.0.0.1]:1", "tcp://10.0.0.1:1"], &["named twice"]),
            (&["tcp://Storage:1", "tcp://storage:1"], &["named twice"]),
            (&["shm:///a//m.sock", "shm:///a/m.sock"], &["named twice"]),
            (
                &["tcp://10.0.0.1:7470", "shm:///a/m.sock", "tcp://10.0.0.1:7473"],
                &["data server 1", "reactor 0", "at tcp://10.0.0.1:7473", "at least 4 apart"],
            ),
            (&["rdma://10.0.0.1:7474", "rdma://10.0.0.1:7471"], &["rdma://10.0.0.1:7474"]),
            (
                &["shm:///a/m.sock", "shm:///a/m.sock.1"],
                &["reactor 1", "reactor 0", "different directories"],
            ),
            (&["shm:///a/m.sock", "shm:///a/n.sock"], &["/a/target-0.sock", "directories"]),
            (&["shm:///a/target-0.sock"], &["data server 0", "another name of the socket"]),
            (&[], &["an empty list"]),
        ] {
            let message = group.addresses(&addresses(listen)).unwrap_err().to_string();
            for hint in hints {
                assert!(message.contains(hint), "{listen:?}: {message}");
            }
        }
        let many: Vec<String> = (0..9).map(|index| format!("tcp://10.0.0.{index}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let message = check_list(&addresses(&many)).unwrap_err().to_string();
        assert!(message.contains("9 addresses") && message.contains("8 at most"), "{message}");
        assert!(check_list(&addresses(&many[..8])).is_ok());
        for listen in [
            // Ports of different kinds, machines or names do not meet.
            ["tcp://10.0.0.1:7470", "rdma://10.0.0.1:7470"],
            ["tcp://10.0.0.1:7470", "tcp://10.0.0.2:7470"],
            ["tcp://10.0.0.1:7470", "tcp://10.0.0.1:7474"],
            ["shm:///a/m.sock", "shm:///b/m.sock"],
        ] {
            assert!(group.addresses(&addresses(&listen)).is_ok(), "{listen:?}");
        }
    }

    #[test]
    fn hosts_can_be_told_all_of_them() {
        let directories: Vec<String> =
            (0..8).map(|index| format!("shm:///{}/{index}/m.sock", "x".repeat(80))).collect();
        let listen: Vec<&str> = directories.iter().map(String::as_str).collect();
        let found = |reactors, count: usize| {
            Group { reactors, targets: 0 }.addresses(&addresses(&listen[..count]))
        };
        assert!(found(8, 8).is_ok() && found(64, 1).is_ok());
        let message = found(64, 2).unwrap_err().to_string();
        assert!(message.contains("64 reactors have 13"), "{message}");
        assert!(message.contains("told 7808"), "{message}");
    }

    #[test]
    fn loopback_is_for_this_machine_alone() {
        for (text, expected) in [
            ("shm:///m.sock", false),
            ("tcp://127.0.0.1:1", false),
            ("tcp://[::1]:1", false),
            ("tcp://[::ffff:127.0.0.1]:1", false),
            ("tcp://localhost:1", false),
            ("tcp://10.0.0.1:1", true),
            ("rdma://storage-1:1", true),
        ] {
            assert_eq!(is_for_other_machines(&text.parse().unwrap()), expected, "{text}");
        }
    }
}
