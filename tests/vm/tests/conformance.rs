//! The verbs provider passes the suite that every provider passes.

use std::sync::atomic::{AtomicU16, Ordering};

use gannet_conformance::fabric::{Bounds, Provider};
use gannet_fabric::Address;
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::verbs::VerbsOptions;
use gannet_runtime::counting_allocator::CountingAllocator;
use gannet_vm::guest;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The device of the machine that the tests run in.
struct Verbs;

impl Provider for Verbs {
    type Fabric = AnyFabric;

    fn fabric_with(&self, bounds: Bounds) -> AnyFabric {
        let options = VerbsOptions {
            connections_max: bounds.connections_max,
            registrations_max: bounds.registrations_max,
            windows_max: bounds.windows_max,
            ..VerbsOptions::default()
        };
        AnyFabric::new(FabricOptions { verbs: options, ..FabricOptions::default() })
    }

    fn address(&self) -> Address {
        static PORT: AtomicU16 = AtomicU16::new(20_000);
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        Address::Rdma { host: guest::own_address().to_string(), port }
    }

    fn kill(&self, fabric: AnyFabric) {
        fabric.abandon();
    }

    /// Emulated processors and a device made of software.
    fn slowdown(&self) -> u32 {
        50
    }

    /// Soft-RoCE looks at the registration that a window lies in.
    fn windows_are_exact(&self) -> bool {
        false
    }
}

gannet_conformance::fabric_conformance!(
    Verbs,
    #[ignore = "needs an RDMA device: run tests/run vm"]
);
