//! What the peer of one connection may reach: registrations and windows.

use std::sync::Arc;

use gannet_runtime::memory::Mapping;
use rustc_hash::FxHashMap;

use crate::{Access, Key, Registration, RemoteSlice, WindowError};

/// A range that a key opens.
#[derive(Debug)]
struct Region {
    start: u64,
    len_bytes: u64,
    access: Access,
    memory: Arc<Mapping>,
    /// The registration that it is a window of.
    base: Option<u32>,
}

/// All ranges of a connection.
#[derive(Debug, Default)]
pub(super) struct Regions {
    by_key: FxHashMap<u32, Region>,
    windows: usize,
}

impl Regions {
    pub(super) fn contains(&self, key: u32) -> bool {
        self.by_key.contains_key(&key)
    }

    pub(super) fn registrations(&self) -> usize {
        self.by_key.len() - self.windows
    }

    pub(super) fn windows(&self) -> usize {
        self.windows
    }

    pub(super) fn register(
        &mut self,
        key: u32,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Registration {
        let start = memory.base().addr() as u64;
        let memory = Arc::clone(memory);
        let len_bytes = memory.len() as u64;
        self.by_key.insert(key, Region { start, len_bytes, access, memory, base: None });
        Registration { address: start, key: Key(key) }
    }

    pub(super) fn open_window(
        &mut self,
        key: u32,
        base: u32,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        let found = self.by_key.get(&base).filter(|found| found.base.is_none());
        let found = found.filter(|found| found.access == Access::WINDOWS_ONLY);
        let inside = |found: &&Region| {
            offset.checked_add(len_bytes).is_some_and(|end| end <= found.len_bytes)
        };
        let found = found.filter(inside).ok_or(WindowError::Range)?;
        let (start, memory) = (found.start + offset, Arc::clone(&found.memory));
        let window = Region { start, len_bytes, access, memory, base: Some(base) };
        self.by_key.insert(key, window);
        self.windows += 1;
        Ok(Registration { address: start, key: Key(key) })
    }

    /// Ends a key, and with a registration its windows. What ended is appended.
    pub(super) fn end(&mut self, key: u32, ended: &mut Vec<u32>) {
        let Some(found) = self.by_key.remove(&key) else { return };
        if found.base.is_some() {
            self.windows -= 1;
        } else if self.windows > 0 {
            let windows = &mut self.windows;
            self.by_key.retain(|window, region| {
                let of_it = region.base == Some(key);
                if of_it {
                    *windows -= 1;
                    ended.push(*window);
                }
                !of_it
            });
        }
        ended.push(key);
    }

    /// The memory behind a range that the peer names, if it may write it (or read it).
    #[inline]
    pub(super) fn resolve(
        &self,
        remote: RemoteSlice,
        writes: bool,
    ) -> Option<(*mut u8, &Arc<Mapping>)> {
        let region = self.by_key.get(&remote.key.0)?;
        let allowed = if writes { region.access.remote_write } else { region.access.remote_read };
        let offset = remote.address.checked_sub(region.start)?;
        let end = offset.checked_add(remote.len_bytes.into())?;
        if !allowed || end > region.len_bytes {
            return None;
        }
        let within = (region.start - region.memory.base().addr() as u64 + offset) as usize;
        Some((region.memory.base().wrapping_add(within), &region.memory))
    }
}
