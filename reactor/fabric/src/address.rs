//! Addresses of fabric end points, written as URIs.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest path of a unix socket that the kernel takes, bytes (108 with the closing NUL).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where an end point listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `shm:///path/of/socket`: processes on one machine, set up over a unix socket.
    Shm(PathBuf),
    /// `rdma://host:port`: over RDMA devices, set up by the RDMA connection manager.
    Rdma {
        /// An IP address, or a name that has one.
        host: String,
        /// Port of the connection manager's TCP port space; 0 lets a listener take any.
        port: u16,
    },
    /// `tcp://host:port`: over any network.
    Tcp {
        /// An IP address, or a name that has one.
        host: String,
        /// Port; 0 lets a listener take any.
        port: u16,
    },
}

/// A text that is no usable address; the message names the part and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not of the form `scheme://...`.
    #[error(
        "address {0:?} has no scheme: write it as shm:///absolute/path/of/socket, rdma://host:port or \
         tcp://host:port"
    )]
    NoScheme(String),
    /// A scheme that this build does not know.
    #[error("address {text:?} has the unknown scheme {scheme:?}: Gannet knows shm, rdma and tcp")]
    UnknownScheme {
        /// The whole text.
        text: String,
        /// Its scheme.
        scheme: String,
    },
    /// `shm://` without an absolute path.
    #[error("address {0:?} needs an absolute path: shm:///absolute/path/of/socket")]
    RelativePath(String),
    /// The socket's path is longer than the kernel takes.
    #[error(
        "address {text:?} has a path of {len_bytes} bytes: a unix socket's has at most {UNIX_PATH_BYTES_MAX}"
    )]
    PathTooLong {
        /// The whole text.
        text: String,
        /// The path's length.
        len_bytes: usize,
    },
    /// `rdma://` or `tcp://` without a host and a port from 0 to 65535.
    #[error(
        "address {text:?} needs a host and a port: {scheme}://192.168.1.10:7470 or \
         {scheme}://[fd00::10]:7470"
    )]
    NoHostAndPort {
        /// The whole text.
        text: String,
        /// Its scheme.
        scheme: &'static str,
    },
    /// A NUL byte in the path.
    #[error("address {0:?} has a NUL byte")]
    Nul(String),
}

impl Address {
    /// An address of the shm fabric.
    ///
    /// # Errors
    /// `RelativePath`, `PathTooLong` or `Nul`.
    pub fn shm(path: impl AsRef<Path>) -> Result<Address, AddressError> {
        let path = path.as_ref();
        let text = || format!("shm://{}", path.display());
        let len_bytes = path.as_os_str().len();
        if !path.is_absolute() {
            return Err(AddressError::RelativePath(text()));
        }
        if len_bytes > UNIX_PATH_BYTES_MAX {
            return Err(AddressError::PathTooLong { text: text(), len_bytes });
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(AddressError::Nul(text()));
        }
        Ok(Address::Shm(path.to_path_buf()))
    }

    /// An address of the verbs fabric, from `host:port`; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// `NoHostAndPort`.
    pub fn rdma(authority: &str) -> Result<Address, AddressError> {
        let (host, port) = host_and_port("rdma", authority)?;
        Ok(Address::Rdma { host, port })
    }

    /// An address of the tcp fabric, from `host:port`; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// `NoHostAndPort`.
    pub fn tcp(authority: &str) -> Result<Address, AddressError> {
        let (host, port) = host_and_port("tcp", authority)?;
        Ok(Address::Tcp { host, port })
    }

    /// The fabric that it belongs to, as its URI says it.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self {
            Address::Shm(_) => "shm",
            Address::Rdma { .. } => "rdma",
            Address::Tcp { .. } => "tcp",
        }
    }
}

/// What a host that is written as an IP address stands for, without asking anybody.
pub(crate) fn numeric(host: &str, port: u16) -> Option<SocketAddr> {
    host.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port))
}

/// One of the addresses of a host. May take as long as a name server does: see [`crate::names`] for
/// those who must not wait.
pub(crate) fn look_up(host: &str, port: u16) -> io::Result<SocketAddr> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    (host, port).to_socket_addrs()?.next().ok_or_else(unknown)
}

/// Reads `host:port`.
fn host_and_port(scheme: &'static str, authority: &str) -> Result<(String, u16), AddressError> {
    let wrong = || AddressError::NoHostAndPort { text: format!("{scheme}://{authority}"), scheme };
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let bare = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner,
        Some(_) => return Err(wrong()),
        None => host,
    };
    let strange = |c: char| !(c.is_ascii_alphanumeric() || "-._%".contains(c));
    let is_name = bare == host && !host.is_empty() && !host.contains(strange);
    if bare != host || is_name { Ok((bare.to_owned(), port)) } else { Err(wrong()) }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(AddressError::NoScheme(text.to_owned()));
        };
        match scheme {
            "shm" => Address::shm(rest),
            "rdma" => Address::rdma(rest),
            "tcp" => Address::tcp(rest),
            _ => Err(AddressError::UnknownScheme {
                text: text.to_owned(),
                scheme: scheme.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme();
        match self {
            Address::Shm(path) => write!(f, "{scheme}://{}", path.display()),
            Address::Rdma { host, port } | Address::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}")
            }
            Address::Rdma { host, port } | Address::Tcp { host, port } => {
                write!(f, "{scheme}://{host}:{port}")
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in [
            "shm:///run/gannet/meta.sock",
            "rdma://192.168.1.10:7470",
            "rdma://[fd00::10]:7470",
            "rdma://storage-1.example:0",
            "tcp://192.168.1.10:7470",
            "tcp://[::1]:7470",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_addresses_name_the_remedy() {
        let long = format!("shm:///{}", "x".repeat(200));
        for (text, hint) in [
            ("/run/gannet.sock", "no scheme"),
            ("", "no scheme"),
            ("nvme://host:1", "unknown scheme \"nvme\""),
            ("rdma://host", "a host and a port"),
            ("rdma://:7470", "a host and a port"),
            ("rdma://host:65536", "a host and a port"),
            ("rdma://fd00::10:7470", "a host and a port"),
            ("rdma://[host]:7470", "a host and a port"),
            ("rdma://a host:7470", "a host and a port"),
            ("tcp://host", "tcp://192.168.1.10:7470"),
            ("tcp://[::1]", "a host and a port"),
            ("shm://relative/path", "absolute path"),
            ("shm://", "absolute path"),
            (long.as_str(), "at most 107"),
            ("shm:///a\0b", "NUL"),
        ] {
            let message = text.parse::<Address>().unwrap_err().to_string();
            assert!(message.contains(hint), "{text:?}: {message}");
        }
    }
}
