//! What a key opens, against the plain definition.

use std::sync::Arc;

use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use proptest::prelude::*;

use crate::tcp::regions::Regions;
use crate::{Access, Key, RemoteSlice, WindowError};

const NONE: Access = Access { remote_read: false, remote_write: false };
const READ: Access = Access { remote_read: true, remote_write: false };
const WRITE: Access = Access { remote_read: false, remote_write: true };

fn memory() -> Arc<Mapping> {
    Mapping::anonymous(2 * PAGE_BYTES).expect("memory")
}

fn slice(key: u32, address: u64, len_bytes: u32) -> RemoteSlice {
    RemoteSlice { address, key: Key(key), len_bytes }
}

#[test]
fn a_registration_opens_its_range_and_nothing_else() {
    let memory = memory();
    let (start, len) = (memory.base().addr() as u64, memory.len() as u64);
    let mut regions = Regions::default();
    let at = regions.register(5, &memory, Access::READ_WRITE);
    assert_eq!((at.address, at.key), (start, Key(5)));
    assert!(regions.contains(5) && !regions.contains(6));
    let all = len as u32;
    for (address, len_bytes, inside) in [
        (start, all, true),
        (start, 0, true),
        (start + len, 0, true),
        (start + len - 1, 1, true),
        (start + len, 1, false),
        (start + 1, all, false),
        (start - 1, 1, false),
        (start - 1, 2, false),
        (0, 1, false),
        (0, u32::MAX, false),
        (u64::MAX, 1, false),
        (u64::MAX - 3, 8, false),
        (start, u32::MAX, false),
    ] {
        for writes in [false, true] {
            let found = regions.resolve(slice(5, address, len_bytes), writes);
            assert_eq!(found.is_some(), inside, "{address:#x} {len_bytes}");
            if let Some((place, of)) = found {
                assert_eq!(place.addr() as u64, address);
                assert!(Arc::ptr_eq(of, &memory));
            }
            assert!(regions.resolve(slice(6, address, len_bytes), writes).is_none());
        }
    }
}

#[test]
fn a_key_gives_its_rights_and_no_others() {
    let memory = memory();
    let mut regions = Regions::default();
    for (key, access) in [(1, NONE), (2, READ), (3, WRITE), (4, Access::READ_WRITE)] {
        let at = regions.register(key, &memory, access);
        let may = |writes| regions.resolve(slice(key, at.address, 1), writes).is_some();
        assert_eq!((may(false), may(true)), (access.remote_read, access.remote_write));
    }
    assert_eq!((regions.registrations(), regions.windows()), (4, 0));
}

#[test]
fn windows_open_a_part_of_what_is_for_windows() {
    let memory = memory();
    let len = memory.len() as u64;
    let mut regions = Regions::default();
    let base = regions.register(1, &memory, Access::WINDOWS_ONLY);
    let other = regions.register(2, &memory, Access::READ_WRITE);
    let mut open = |key, base, offset, len_bytes| {
        regions.open_window(key, base, offset, len_bytes, Access::READ_WRITE)
    };
    for (base, offset, len_bytes) in [
        (2, 0, 1),
        (9, 0, 1),
        (1, 0, len + 1),
        (1, len, 1),
        (1, u64::MAX, 1),
        (1, 1, u64::MAX),
        (1, u64::MAX, u64::MAX),
    ] {
        assert_eq!(open(10, base, offset, len_bytes), Err(WindowError::Range));
    }
    let window = open(10, 1, 100, 50).expect("inside");
    assert_eq!(window.address, base.address + 100);
    assert_eq!(open(11, 10, 0, 1), Err(WindowError::Range), "no window of a window");
    open(12, 1, 0, len).expect("inside");
    open(13, 1, len, 0).expect("nothing is inside, too");
    assert_eq!((regions.registrations(), regions.windows()), (2, 3));
    let may = |regions: &Regions, key, address, len_bytes| {
        regions.resolve(slice(key, address, len_bytes), true).is_some()
    };
    assert!(may(&regions, 10, window.address, 50));
    assert!(!may(&regions, 10, window.address, 51));
    assert!(!may(&regions, 10, window.address - 1, 1));
    assert!(!may(&regions, 1, base.address, 1), "the base itself opens nothing");

    // A window ends alone; a base with its windows; another registration with nothing.
    let mut ended = Vec::new();
    regions.end(10, &mut ended);
    assert_eq!(ended, [10]);
    assert!(!may(&regions, 10, window.address, 1) && may(&regions, 12, base.address, 1));
    ended.clear();
    regions.end(2, &mut ended);
    assert_eq!(ended, [2]);
    assert!(!may(&regions, 2, other.address, 1));
    ended.clear();
    regions.end(1, &mut ended);
    ended.sort_unstable();
    assert_eq!(ended, [1, 12, 13]);
    assert!(!may(&regions, 12, base.address, 1));
    assert_eq!((regions.registrations(), regions.windows()), (0, 0));
    ended.clear();
    regions.end(1, &mut ended);
    assert!(ended.is_empty(), "once");
}

proptest! {
    #[test]
    fn any_range_is_inside_or_refused(
        offset in 0..200u64,
        len in 0..200u64,
        address in prop_oneof![
            any::<u64>(),
            (0..500u64).prop_map(|small| small),
            (0..500u64).prop_map(|large| u64::MAX - large),
        ],
        near: bool,
        len_bytes in prop_oneof![0..400u32, any::<u32>()],
        writes: bool,
    ) {
        let memory = memory();
        let start = memory.base().addr() as u64;
        let mut regions = Regions::default();
        regions.register(1, &memory, Access::WINDOWS_ONLY);
        let window = regions.open_window(2, 1, offset, len, WRITE).expect("inside");
        let address = if near { start.wrapping_add(address % 500) } else { address };
        let found = regions.resolve(slice(2, address, len_bytes), writes);
        let end = u128::from(address) + u128::from(len_bytes);
        let inside = address >= window.address && end <= u128::from(window.address + len);
        prop_assert_eq!(found.is_some(), writes && inside);
    }
}
