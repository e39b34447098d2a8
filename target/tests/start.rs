//! What a data server does with its memory before it serves.
#![allow(clippy::unwrap_used)]

mod support;

use gannet_fabric::FabricError;
use gannet_target::TargetError;
use support::disk::FakeDisk;
use support::fabric::FakeFabric;
use support::script::{Script, config, start};

const BLOCKS: usize = 1024;

#[test]
fn memory_of_transfers_is_prepared_whatever_fabrics_will_move_the_bytes() {
    for (maps, resident, count) in
        [(true, true, 4), (true, false, 3), (false, false, 3), (false, true, 4)]
    {
        let fabric = FakeFabric::new(maps);
        let disk = FakeDisk::new(BLOCKS, resident);
        let _target = start(config(), &fabric, &disk).unwrap();
        let prepared = fabric.0.borrow().prepared.clone();
        assert_eq!(prepared.len(), count, "maps {maps}, in memory {resident}: {prepared:?}");
        // A store in memory as a whole, once.
        let store_bytes = disk.content().len();
        assert_eq!(prepared.iter().filter(|len| **len == store_bytes).count(), count / 4);
    }
}

#[test]
fn memory_that_cannot_be_pinned_is_named_with_the_way_out() {
    for taken in 0..4 {
        let fabric = FakeFabric::new(false);
        fabric.0.borrow_mut().prepares_left = taken;
        let disk = FakeDisk::new(BLOCKS, true);
        let error = start(config(), &fabric, &disk).err().unwrap();
        assert!(matches!(
            error,
            TargetError::Prepare { source: FabricError::LockedMemory { .. }, .. }
        ));
        let text = error.to_string();
        assert!(text.contains("ulimit -l") && text.contains("data server"), "{text}");
    }
}

#[test]
fn block_io_goes_through_registered_buffers() {
    for (registers, maps, resident) in
        [(true, false, false), (true, true, false), (true, false, true), (false, false, false)]
    {
        let fabric = FakeFabric::new(maps);
        let disk = FakeDisk::new(BLOCKS, resident);
        disk.0.borrow_mut().registers = registers;
        let target = start(config(), &fabric, &disk).unwrap();
        let pools = if resident || !registers { 0 } else { 2 };
        assert_eq!(disk.0.borrow().registered.len(), pools);
        let mut script = Script::over(fabric, disk, target);
        let host = script.host(11, 1, 1 << 20);
        for round in 0..4 {
            // Unaligned, so that mapped memory is bounced too, at the edges.
            script.grant(&host, 1 + round % 2, 1 + u64::from(round) * 50, 100_000, |grant| {
                grant.offset = 10.into();
            });
        }
        script.settle();
        assert_eq!(script.target.grants(), 0);
        assert_eq!(script.target.stats().grants_done, 4, "registered {registers}");
        let medium = script.disk.0.borrow();
        match (resident, registers, maps) {
            (true, ..) => assert!(medium.log.is_empty()),
            (_, false, _) => assert_eq!(medium.unregistered, medium.log.len()),
            (_, true, false) => {
                assert_eq!(medium.unregistered, 0, "{} transfers", medium.log.len())
            }
            // What goes straight into host memory cannot be registered: its pages may be replaced.
            (_, true, true) => assert!(medium.unregistered < medium.log.len()),
        }
    }
}
