//! The virtual machine that a test runs in: its place among the guests, its address and device.
//! `tests/vm/run` sets the variables that this reads, and `tests/vm/guest/init` the device up.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process;

/// Name of the RDMA device in every guest.
pub const DEVICE: &str = "rxe0";
/// The network device that it sends through.
pub const NETWORK: &str = "eth0";
/// How long the barrier command itself may take beyond the wait that it was told.
const BARRIER_MARGIN: Duration = Duration::from_secs(10);
/// `TCP_LISTEN` of the kernel, as `/proc/net/tcp` prints it.
const TCP_LISTEN: &str = "0A";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs an RDMA device: run tests/run vm")
    })
}

fn address(name: &str) -> Ipv4Addr {
    let text = variable(name);
    text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
}

/// Which of the guests this is, from 1.
///
/// # Panics
/// Outside of a guest.
#[must_use]
pub fn number() -> u32 {
    let text = variable("GANNET_VM_GUEST");
    text.parse().unwrap_or_else(|error| panic!("GANNET_VM_GUEST={text}: {error}"))
}

/// The address of this guest's device.
///
/// # Panics
/// Outside of a guest.
#[must_use]
pub fn own_address() -> Ipv4Addr {
    address("GANNET_VM_ADDRESS")
}

/// The address of the other guest's device; of this one's where there is no other.
///
/// # Panics
/// Outside of a guest.
#[must_use]
pub fn peer_address() -> Ipv4Addr {
    address("GANNET_VM_PEER")
}

/// Waits until the other guest is at the barrier of this name too.
///
/// # Panics
/// If it is at another one or does not come within `at_most`, or there is no other guest.
pub fn barrier(name: &str, at_most: Duration) {
    let mut command = Command::new("vm-barrier");
    command.arg(name).arg(at_most.as_secs().max(1).to_string());
    let _said = process::run(command, at_most + BARRIER_MARGIN).success();
}

/// The `gannet` command that was brought into the guest.
///
/// # Panics
/// If it was not.
#[must_use]
pub fn gannet() -> PathBuf {
    let path = PathBuf::from("/payload/gannet");
    assert!(path.is_file(), "{} is missing: run tests/vm/test", path.display());
    path
}

/// Makes a block device that keeps its content in memory.
///
/// # Panics
/// If the guest refuses.
#[must_use]
pub fn disk(name: &str, size_mib: u32) -> PathBuf {
    let mut command = Command::new("vm-disk");
    command.arg(name).arg(size_mib.to_string());
    PathBuf::from(process::run(command, Duration::from_secs(30)).success().trim())
}

/// Whether some process accepts TCP connections on the port.
#[must_use]
pub fn tcp_listens(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .any(|table| table.lines().skip(1).any(|line| listens(line, port)))
}

/// One line of `/proc/net/tcp`: number, local address and port, remote ones, state, and more.
fn listens(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let (local, _remote, state) = (fields.next(), fields.next(), fields.next());
    let local_port = local.and_then(|local| local.rsplit_once(':')).map(|(_, port)| port);
    state == Some(TCP_LISTEN) && local_port == Some(format!("{port:04X}").as_str())
}

/// Whether some process accepts connections through RDMA's connection manager on the port.
///
/// # Panics
/// If the `rdma` command does not answer.
#[must_use]
pub fn rdma_listens(port: u16) -> bool {
    let mut command = Command::new("rdma");
    command.args(["resource", "show", "cm_id"]);
    let said = process::run(command, Duration::from_secs(30)).success();
    said.lines().any(|line| {
        line.contains("state LISTEN")
            && line.split_whitespace().any(|word| word.ends_with(&format!(":{port}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_port_is_read_from_the_kernels_table() {
        let line = "   0: 00000000:4853 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert!(listens(line, 18515));
        assert!(!listens(line, 18516));
        let connected = "   1: 01004D0A:4853 01004D0A:9C40 01 00000000:00000000 00:00000000";
        assert!(!listens(connected, 18515));
        assert!(!listens("", 18515));
    }

    #[test]
    fn a_listening_socket_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        assert!(tcp_listens(port));
        drop(socket);
        // A process that another test was about to start may hold a copy until it has begun.
        crate::wait::until("the socket to be gone", Duration::from_secs(10), || !tcp_listens(port));
    }
}
