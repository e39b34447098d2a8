//! Registered memory: what this side lets the peer reach, and what the peer lets this side reach.
//!
//! Registering hands the peer a descriptor of the memfd; from then on the peer's provider checks
//! key, range and rights of each operation. That protects against mistakes, not against a peer
//! process that means harm: peers are trusted by their credentials, and an owner that wants its
//! memory back from a silent peer replaces the pages.
//!
//! Belongs to one connection of one reactor. Regions of a dead connection stay mapped only as long
//! as views of them live.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use rustc_hash::FxBuildHasher;

use super::ring::Violation;
use crate::{Access, Registration, RemoteSlice};

/// File-system type of a memfd without huge pages. Memory of a hugetlbfs file can be taken away
/// under its users (their next access is a SIGBUS), sealed or not.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Where the range of `key` starts in the address space of its owner: ranges start far apart, so
/// that an address used with a wrong key is refused.
pub(crate) fn address_of(key: u32) -> u64 {
    u64::from(key) << 30
}

/// Longest range that can be registered; keeps `address_of(key) + length` far from overflow.
pub(crate) const REGION_BYTES_MAX: u64 = 1 << 46;

/// Whether a descriptor from a peer is memory that cannot be taken away under its users.
pub(crate) fn is_plain_memfd(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|status| status.f_type as u64 == TMPFS_MAGIC)
}

/// How far a registration of this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The peer has not confirmed yet.
    Registering,
    /// Usable.
    Registered,
    /// The peer has not confirmed the end yet.
    Deregistering,
}

/// What this side registered with the peer.
#[derive(Debug, Default)]
pub(crate) struct LocalRegions {
    /// The mapping is held so that its owner sees it in use.
    by_key: HashMap<u32, (Arc<Mapping>, Progress), FxBuildHasher>,
    awaited: usize,
}

impl LocalRegions {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn contains(&self, key: u32) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Answers of the peer that are outstanding.
    pub(crate) fn awaited(&self) -> usize {
        self.awaited
    }

    pub(crate) fn begin(&mut self, key: u32, mapping: &Arc<Mapping>) -> Registration {
        self.by_key.insert(key, (Arc::clone(mapping), Progress::Registering));
        self.awaited += 1;
        Registration { address: address_of(key), key: crate::Key(key) }
    }

    /// The peer confirmed. True if the user is to be told, false if it took the key back already.
    pub(crate) fn registered(&mut self, key: u32) -> Result<bool, Violation> {
        let (_, progress) = self.by_key.get_mut(&key).ok_or(Violation)?;
        match progress {
            Progress::Registering => {
                *progress = Progress::Registered;
                self.awaited -= 1;
                Ok(true)
            }
            Progress::Registered => Err(Violation),
            Progress::Deregistering => Ok(false),
        }
    }

    /// Starts to take a key back. False if there is nothing to do.
    pub(crate) fn end(&mut self, key: u32) -> bool {
        let Some((_, progress)) = self.by_key.get_mut(&key) else { return false };
        let before = std::mem::replace(progress, Progress::Deregistering);
        // A registration not confirmed yet is awaited already; its end takes that place.
        self.awaited += usize::from(before == Progress::Registered);
        before != Progress::Deregistering
    }

    pub(crate) fn ended(&mut self, key: u32) -> Result<(), Violation> {
        match self.by_key.get(&key) {
            Some((_, Progress::Deregistering)) => {
                self.by_key.remove(&key);
                self.awaited -= 1;
                Ok(())
            }
            _ => Err(Violation),
        }
    }
}

#[derive(Debug)]
struct Region {
    mapping: Arc<Mapping>,
    access: Access,
    address: u64,
}

/// What the peer registered with this side.
#[derive(Debug, Default)]
pub(crate) struct RemoteRegions {
    by_key: HashMap<u32, Region, FxBuildHasher>,
    /// Taken back by the peer, but views of them may live.
    releasing: Vec<(u32, Arc<Mapping>)>,
    total_bytes: u64,
}

/// Bounds on what a peer may register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionLimits {
    pub(crate) regions_max: usize,
    pub(crate) total_bytes_max: u64,
}

impl RemoteRegions {
    /// Maps what the peer registered.
    pub(crate) fn add(
        &mut self,
        key: u32,
        access: Access,
        address: u64,
        len_bytes: u64,
        file: OwnedFd,
        limits: RegionLimits,
    ) -> Result<(), Violation> {
        let known = self.by_key.contains_key(&key)
            || self.releasing.iter().any(|(releasing, _)| *releasing == key);
        let count = self.by_key.len() + self.releasing.len();
        let total_bytes = self.total_bytes.checked_add(len_bytes).ok_or(Violation)?;
        if known
            || count >= limits.regions_max
            || total_bytes > limits.total_bytes_max
            || address.checked_add(len_bytes).is_none()
            || !is_plain_memfd(&file)
        {
            return Err(Violation);
        }
        let len = usize::try_from(len_bytes).map_err(|_| Violation)?;
        let mapping = Mapping::from_peer(file, len).map_err(|_| Violation)?;
        self.by_key.insert(key, Region { mapping, access, address });
        self.total_bytes = total_bytes;
        Ok(())
    }

    /// A view of a remote range, if key, range and rights allow `access`.
    #[inline]
    pub(crate) fn resolve(&self, remote: RemoteSlice, access: Access) -> Option<Slice> {
        let region = self.by_key.get(&remote.key.0)?;
        let allowed = (region.access.remote_read || !access.remote_read)
            && (region.access.remote_write || !access.remote_write);
        if !allowed {
            return None;
        }
        let offset = remote.address.checked_sub(region.address)?;
        region.mapping.slice(offset, u64::from(remote.len_bytes))
    }

    /// The peer takes a key back: no new views from now on.
    pub(crate) fn remove(&mut self, key: u32) -> Result<(), Violation> {
        let region = self.by_key.remove(&key).ok_or(Violation)?;
        self.releasing.push((key, region.mapping));
        Ok(())
    }

    /// Unmaps what was taken back and has no views any more, calling `released` with each key.
    pub(crate) fn release(&mut self, mut released: impl FnMut(u32)) {
        let mut index = 0;
        while index < self.releasing.len() {
            let (key, mapping) = self.releasing.swap_remove(index);
            let len_bytes = mapping.len() as u64;
            // Succeeds only for the last owner, and then after everything that a view's last
            // owner did.
            match Arc::try_unwrap(mapping) {
                Ok(mapping) => {
                    drop(mapping);
                    self.total_bytes -= len_bytes;
                    released(key);
                }
                Err(mapping) => {
                    self.releasing.push((key, mapping));
                    let last = self.releasing.len() - 1;
                    self.releasing.swap(index, last);
                    index += 1;
                }
            }
        }
    }

    /// Keys taken back whose views still live.
    pub(crate) fn releasing(&self) -> usize {
        self.releasing.len()
    }
}

#[cfg(test)]
mod tests {
    use gannet_runtime::memory::PAGE_BYTES;

    use super::*;
    use crate::Key;

    const LIMITS: RegionLimits = RegionLimits { regions_max: 2, total_bytes_max: 1 << 20 };

    fn file_of(mapping: &Mapping) -> OwnedFd {
        mapping.file().expect("shareable").try_clone_to_owned().expect("dup")
    }

    #[test]
    fn ranges_and_rights_are_checked_without_overflow() {
        let memory = Mapping::shareable(2 * PAGE_BYTES).expect("memfd");
        let len = memory.len() as u64;
        let mut regions = RemoteRegions::default();
        let read = Access { remote_read: true, remote_write: false };
        let write = Access { remote_read: false, remote_write: true };
        let base = address_of(9);
        regions.add(9, read, base, len, file_of(&memory), LIMITS).expect("acceptable");
        let at = |address, len_bytes| RemoteSlice { address, key: Key(9), len_bytes };
        let len32 = len as u32;
        for (remote, access, allowed) in [
            (at(base, len32), read, true),
            (at(base + len, 0), read, true),
            (at(base + len - 1, 1), read, true),
            (at(base + len, 1), read, false),
            (at(base - 1, 2), read, false),
            (at(base + 1, len32), read, false),
            (at(u64::MAX, 1), read, false),
            (at(u64::MAX, u32::MAX), read, false),
            (at(0, 1), read, false),
            (at(base, 1), write, false),
            (at(base, 1), Access::READ_WRITE, false),
            (RemoteSlice { key: Key(8), ..at(base, 1) }, read, false),
        ] {
            assert_eq!(regions.resolve(remote, access).is_some(), allowed, "{remote:?} {access:?}");
        }
    }

    #[test]
    fn a_peer_cannot_register_without_bounds() {
        let memory = Mapping::shareable(PAGE_BYTES).expect("memfd");
        let len = memory.len() as u64;
        let access = Access::READ_WRITE;
        let mut regions = RemoteRegions::default();
        let mut add = |key, address, len_bytes| {
            regions.add(key, access, address, len_bytes, file_of(&memory), LIMITS).is_ok()
        };
        assert!(!add(1, u64::MAX, len), "address overflows");
        assert!(!add(1, 0, len + 1), "not the file's length");
        assert!(!add(1, 0, u64::MAX), "longer than the limit");
        assert!(!add(1, 0, 0), "empty");
        assert!(add(1, 0, len));
        assert!(!add(1, 0, len), "the same key again");
        assert!(add(2, 0, len));
        assert!(!add(3, 0, len), "too many");
        let regular = std::fs::File::open("/proc/self/exe").expect("a file").into();
        assert!(regions.add(4, access, 0, len, regular, LIMITS).is_err());
    }

    #[test]
    fn a_region_is_released_after_its_last_view() {
        let memory = Mapping::shareable(PAGE_BYTES).expect("memfd");
        let mut regions = RemoteRegions::default();
        let len = memory.len() as u64;
        for key in [1, 2] {
            let file = file_of(&memory);
            regions.add(key, Access::READ_WRITE, 0, len, file, LIMITS).expect("acceptable");
        }
        let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: 8 };
        let view = regions.resolve(remote, Access::READ_WRITE).expect("allowed");
        regions.remove(1).expect("known");
        regions.remove(2).expect("known");
        assert_eq!(regions.remove(2), Err(Violation));
        assert!(regions.resolve(remote, Access::READ_WRITE).is_none());
        let mut released = Vec::new();
        regions.release(|key| released.push(key));
        assert_eq!(released, [2]);
        drop(view);
        regions.release(|key| released.push(key));
        assert_eq!(released, [2, 1]);
        assert_eq!((regions.releasing(), regions.total_bytes), (0, 0));
    }

    #[test]
    fn a_peer_confirms_only_what_was_asked() {
        let memory = Mapping::shareable(PAGE_BYTES).expect("memfd");
        let mut regions = LocalRegions::default();
        assert_eq!(regions.registered(1), Err(Violation));
        regions.begin(1, &memory);
        assert_eq!(regions.ended(1), Err(Violation));
        assert_eq!(regions.registered(1), Ok(true));
        assert_eq!(regions.registered(1), Err(Violation));
        assert_eq!(regions.awaited(), 0);
        assert!(regions.end(1));
        assert!(!regions.end(1));
        assert_eq!(regions.awaited(), 1);
        assert_eq!(regions.ended(1), Ok(()));
        assert_eq!((regions.awaited(), regions.len()), (0, 0));

        regions.begin(2, &memory);
        assert!(regions.end(2));
        assert_eq!(regions.registered(2), Ok(false));
        assert_eq!(regions.ended(2), Ok(()));
        assert_eq!(regions.awaited(), 0);
    }
}
