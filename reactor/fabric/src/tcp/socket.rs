//! Sockets: made, configured, asked.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::{Address, FabricError};

/// Connections that wait to be accepted, at most; the kernel's own limit lowers it.
const BACKLOG: i32 = 4096;
/// Probes of an idle connection that stay without an answer before the peer counts as lost.
const PROBES: u32 = 3;

/// An address as the kernel takes it.
pub(super) type SocketAddress = (libc::sockaddr_storage, libc::socklen_t);

/// Host and port of an address of this fabric.
pub(super) fn host_and_port(address: &Address) -> Result<(&str, u16), FabricError> {
    match address {
        Address::Tcp { host, port } => Ok((host, *port)),
        Address::Shm(_) | Address::Rdma { .. } => {
            Err(FabricError::Address(format!("{address} is not of the tcp fabric")))
        }
    }
}

/// What a name and port stand for, which may take long. The outer error: it is no address of this
/// fabric.
pub(super) fn resolve(address: &Address) -> Result<io::Result<SocketAddr>, FabricError> {
    let (host, port) = host_and_port(address)?;
    Ok(crate::address::look_up(host, port))
}

/// A socket that does not block.
pub(super) fn new(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = new(address)?;
    // Connections of a dead listener may linger at its port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Sends at once, and notices a dead peer: also an idle connection is probed, by the kernel, so that
/// nothing of this process has to wake up for it.
pub(super) fn configure(socket: impl AsFd, peer_timeout: Duration) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    let milliseconds = u32::try_from(peer_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, milliseconds)?;
    let interval = Duration::from_secs((peer_timeout.as_secs() / u64::from(PROBES)).max(1));
    sockopt::set_tcp_keepidle(socket, interval)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

/// The IP addresses of both ends: the peer's, this one's.
pub(super) fn ends(socket: impl AsFd) -> io::Result<(IpAddr, IpAddr)> {
    let socket = socket.as_fd();
    let address = |any: rustix::net::SocketAddrAny| {
        let address = SocketAddr::try_from(any).map_err(io::Error::from)?;
        Ok::<_, io::Error>(address.ip().to_canonical())
    };
    let peer = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok((address(peer)?, address(rustix::net::getsockname(socket)?)?))
}

/// An address as the kernel takes it.
pub(super) fn encode(address: SocketAddr) -> SocketAddress {
    // SAFETY: a socket address of zeros is valid: of no family.
    let mut storage = unsafe { std::mem::zeroed::<libc::sockaddr_storage>() };
    let place = &raw mut storage;
    let len = match address {
        SocketAddr::V4(v4) => {
            let encoded = encode_v4(v4);
            // SAFETY: the storage is made for every kind of address.
            unsafe { place.cast::<libc::sockaddr_in>().write(encoded) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let encoded = encode_v6(v6);
            // SAFETY: the storage is made for every kind of address.
            unsafe { place.cast::<libc::sockaddr_in6>().write(encoded) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

fn encode_v4(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn encode_v6(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: address.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}
