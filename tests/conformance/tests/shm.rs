//! The shm provider passes the suite, as one of those of a fabric that could reach others too.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use gannet_conformance::fabric::{Bounds, Provider};
use gannet_fabric::Address;
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::shm::ShmOptions;
use gannet_runtime::counting_allocator::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Makes sockets in a directory of its own.
struct Shm {
    directory: PathBuf,
}

impl Shm {
    fn new() -> Shm {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gannet-conformance-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        Shm { directory }
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        // A case that failed may have left something; the scratch directory is not its subject.
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

impl Provider for Shm {
    type Fabric = AnyFabric;

    fn fabric_with(&self, bounds: Bounds) -> AnyFabric {
        let options = ShmOptions {
            connections_max: bounds.connections_max,
            registrations_max: bounds.registrations_max,
            ..ShmOptions::default()
        };
        AnyFabric::new(FabricOptions { shm: options, ..FabricOptions::default() })
    }

    fn address(&self) -> Address {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Address::shm(self.directory.join(number.to_string())).expect("a short path")
    }

    fn kill(&self, fabric: AnyFabric) {
        fabric.abandon();
    }
}

gannet_conformance::fabric_conformance!(Shm::new());
