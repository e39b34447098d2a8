//! The tcp provider passes the suite.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use gannet_conformance::fabric::end::{Pair, pattern};
use gannet_conformance::fabric::{Bounds, Provider};
use gannet_fabric::Address;
use gannet_fabric::tcp::{TcpFabric, TcpOptions};
use gannet_runtime::counting_allocator::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Ports below those that the kernel gives to connections, where nobody listens by chance.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Over loopback.
struct Tcp {
    payload_checksums: bool,
}

impl Provider for Tcp {
    type Fabric = TcpFabric;

    fn fabric_with(&self, bounds: Bounds) -> TcpFabric {
        let options = TcpOptions {
            connections_max: bounds.connections_max,
            registrations_max: bounds.registrations_max,
            windows_max: bounds.windows_max,
            payload_checksums: self.payload_checksums,
            ..TcpOptions::default()
        };
        TcpFabric::new(options).expect("a fabric")
    }

    fn address(&self) -> Address {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let start = std::process::id() as u16;
            let port =
                PORTS.start + start.wrapping_mul(7).wrapping_add(number) % PORTS.len() as u16;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Address::Tcp { host: "127.0.0.1".to_owned(), port };
            }
        }
    }

    fn kill(&self, fabric: TcpFabric) {
        fabric.abandon();
    }

    fn slowdown(&self) -> u32 {
        4
    }
}

/// Ends that grant each other different numbers of credits return them in time, also to one that only
/// sends.
#[test]
fn one_way_traffic_goes_on_with_unequal_credits() {
    const MESSAGES: u64 = 1000;
    let provider = Tcp { payload_checksums: false };
    let few = || {
        let credits = TcpOptions { small_credits: 16, large_credits: 1, ..TcpOptions::default() };
        TcpFabric::new(credits).expect("a fabric")
    };
    for few_send in [true, false] {
        let (left, right) = match few_send {
            true => (few(), provider.fabric()),
            false => (provider.fabric(), few()),
        };
        let mut pair = Pair::of(&provider, left, right);
        let to_left = pair.to_left;
        for number in 0..MESSAGES {
            let len = if number % 3 == 0 { 1000 } else { 100 };
            pair.send_right(&pattern(number, len));
            while pair.right.message(to_left).is_some() {}
        }
    }
}

mod plain {
    use super::Tcp;

    gannet_conformance::fabric_conformance!(Tcp { payload_checksums: false });
}

mod with_checksums {
    use super::Tcp;

    gannet_conformance::fabric_conformance!(Tcp { payload_checksums: true });
}
