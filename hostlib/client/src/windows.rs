//! Memory windows of requests: each reaches exactly the bytes of one request, for one data server.
//!
//! A state machine without I/O: the client opens and closes windows with the fabric and tells this
//! table what happened.
//!
//! | phase | input | next |
//! |---|---|---|
//! | (none) | `insert` | `Opening` |
//! | `Opening` | `usable` | `Open` |
//! | `Opening`, `Open` | `close` | `Closing` |
//! | all | `gone`, `target_lost` | (none) |
//!
//! A request's windows are its own from `insert` until each of them is gone; the table has room for
//! all windows of all requests, and entries of ended requests are used again.

use gannet_fabric::{Key, Registration};
use gannet_proto::limits::TARGETS_PER_FILE_MAX;
use rustc_hash::FxHashMap;

/// Most windows of a request.
pub(crate) const WINDOWS_MAX: usize = TARGETS_PER_FILE_MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The fabric is at it.
    Opening,
    /// The data server can use it.
    Open,
    /// It was taken back, but the fabric has not said yet that nothing passes it any more.
    Closing,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    target: u8,
    phase: Phase,
    registration: Registration,
}

const NONE: Window = Window {
    target: 0,
    phase: Phase::Closing,
    registration: Registration { address: 0, key: Key(0) },
};

#[derive(Clone, Copy, Debug)]
struct Entry {
    list: [Window; WINDOWS_MAX],
    count: u8,
}

impl Entry {
    fn windows(&self) -> &[Window] {
        &self.list[..usize::from(self.count)]
    }

    fn windows_mut(&mut self) -> &mut [Window] {
        &mut self.list[..usize::from(self.count)]
    }
}

/// The windows of all requests.
#[derive(Debug)]
pub(crate) struct Windows {
    /// By request.
    entries: Vec<Entry>,
    /// The request that has the window with this key at this data server.
    owners: FxHashMap<(u8, Key), u32>,
}

impl Windows {
    /// A table for requests with indices below `requests`.
    pub(crate) fn new(requests: usize) -> Windows {
        let mut owners = FxHashMap::default();
        owners.reserve(requests);
        Windows { entries: vec![Entry { list: [NONE; WINDOWS_MAX], count: 0 }; requests], owners }
    }

    /// Number of windows of all requests.
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }

    fn of(&self, request: u32) -> &[Window] {
        self.entries.get(request as usize).map_or(&[], Entry::windows)
    }

    /// Number of windows of a request, whatever phase they are in.
    pub(crate) fn count(&self, request: u32) -> usize {
        self.of(request).len()
    }

    pub(crate) fn is_empty(&self, request: u32) -> bool {
        self.of(request).is_empty()
    }

    /// The data servers at which the request has a window.
    pub(crate) fn targets(&self, request: u32) -> u64 {
        self.of(request).iter().fold(0, |mask, window| mask | 1 << window.target)
    }

    /// Whether every window of the request can be used.
    pub(crate) fn are_open(&self, request: u32) -> bool {
        self.of(request).iter().all(|window| window.phase == Phase::Open)
    }

    /// Whether a window of the request is being closed.
    pub(crate) fn are_closing(&self, request: u32) -> bool {
        self.of(request).iter().any(|window| window.phase == Phase::Closing)
    }

    /// Data servers and how they name the windows that the request has with them.
    pub(crate) fn iter(&self, request: u32) -> impl Iterator<Item = (u8, Registration)> {
        self.of(request).iter().map(|window| (window.target, window.registration))
    }

    /// The fabric began to open a window. The request has fewer than [`WINDOWS_MAX`].
    pub(crate) fn insert(&mut self, request: u32, target: u8, registration: Registration) {
        let entry = &mut self.entries[request as usize];
        let window = Window { target, phase: Phase::Opening, registration };
        entry.list[usize::from(entry.count)] = window;
        entry.count += 1;
        let former = self.owners.insert((target, registration.key), request);
        debug_assert_eq!(former, None, "the fabric gave a key twice");
    }

    /// The fabric has opened a window; returns its request.
    pub(crate) fn usable(&mut self, target: u8, key: Key) -> Option<u32> {
        let request = *self.owners.get(&(target, key))?;
        let windows = self.entries[request as usize].windows_mut().iter_mut();
        for window in windows {
            let is_it = window.target == target && window.registration.key == key;
            if is_it && window.phase == Phase::Opening {
                window.phase = Phase::Open;
            }
        }
        Some(request)
    }

    /// Calls `close` with each window of the request that is not being closed yet.
    pub(crate) fn close(&mut self, request: u32, mut close: impl FnMut(u8, Key)) {
        let Some(entry) = self.entries.get_mut(request as usize) else { return };
        for window in entry.windows_mut() {
            if window.phase != Phase::Closing {
                window.phase = Phase::Closing;
                close(window.target, window.registration.key);
            }
        }
    }

    /// Nothing passes a window any more; returns its request.
    pub(crate) fn gone(&mut self, target: u8, key: Key) -> Option<u32> {
        let request = self.owners.remove(&(target, key))?;
        let entry = &mut self.entries[request as usize];
        let found = entry
            .windows()
            .iter()
            .position(|window| window.target == target && window.registration.key == key)?;
        entry.count -= 1;
        entry.list.swap(found, usize::from(entry.count));
        Some(request)
    }

    /// A data session ended, and with it all windows for its data server: appends the requests that
    /// had one to `requests`.
    pub(crate) fn target_lost(&mut self, target: u8, requests: &mut Vec<u32>) {
        for (request, entry) in self.entries.iter_mut().enumerate() {
            let before = entry.count;
            for at in (0..usize::from(before)).rev() {
                if entry.list[at].target == target {
                    self.owners.remove(&(target, entry.list[at].registration.key));
                    entry.count -= 1;
                    entry.list.swap(at, usize::from(entry.count));
                }
            }
            if entry.count != before {
                requests.push(request as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(key: u32) -> Registration {
        Registration { address: u64::from(key) << 12, key: Key(key) }
    }

    #[test]
    fn windows_are_their_requests_until_they_are_gone() {
        let mut windows = Windows::new(2);
        windows.insert(1, 3, registration(7));
        windows.insert(1, 5, registration(8));
        windows.insert(0, 3, registration(9));
        assert_eq!((windows.targets(1), windows.count(1), windows.len()), (1 << 3 | 1 << 5, 2, 3));
        assert!(!windows.are_open(1));
        assert_eq!(windows.usable(3, Key(7)), Some(1));
        assert_eq!(windows.usable(5, Key(7)), None, "another data server's key");
        assert!(!windows.are_open(1));
        assert_eq!(windows.usable(5, Key(8)), Some(1));
        assert!(windows.are_open(1) && !windows.are_open(0));
        let named: Vec<_> = windows.iter(1).collect();
        assert_eq!(named, [(3, registration(7)), (5, registration(8))]);
        let mut closed = Vec::new();
        windows.close(1, |target, key| closed.push((target, key)));
        windows.close(1, |_, _| panic!("a window is closed once"));
        assert_eq!(closed, [(3, Key(7)), (5, Key(8))]);
        assert!(windows.are_closing(1) && !windows.are_closing(0));
        assert_eq!(windows.gone(3, Key(7)), Some(1));
        assert_eq!(windows.gone(3, Key(7)), None);
        assert!(!windows.is_empty(1));
        assert_eq!(windows.gone(5, Key(8)), Some(1));
        assert!(windows.is_empty(1) && windows.are_open(1) && windows.len() == 1);
    }

    #[test]
    fn a_window_that_is_closed_before_it_is_open_stays_closing() {
        let mut windows = Windows::new(1);
        windows.insert(0, 0, registration(1));
        windows.close(0, |_, _| {});
        assert_eq!(windows.usable(0, Key(1)), Some(0));
        assert!(windows.are_closing(0) && !windows.are_open(0));
    }

    #[test]
    fn a_lost_data_session_takes_its_windows_along() {
        let mut windows = Windows::new(3);
        for request in 0..2 {
            for target in 0..2 {
                windows.insert(request, target, registration(10 * request + u32::from(target)));
            }
        }
        windows.insert(2, 1, registration(90));
        let mut concerned = Vec::new();
        windows.target_lost(0, &mut concerned);
        assert_eq!(concerned, [0, 1]);
        assert_eq!((windows.targets(0), windows.targets(1), windows.targets(2)), (2, 2, 2));
        assert_eq!((windows.gone(0, Key(0)), windows.gone(1, Key(1))), (None, Some(0)));
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn requests_without_windows_need_no_table() {
        let mut windows = Windows::new(0);
        assert!(windows.is_empty(5) && windows.are_open(5) && !windows.are_closing(5));
        windows.close(5, |_, _| panic!("there are none"));
        assert_eq!((windows.targets(5), windows.usable(0, Key(1)), windows.len()), (0, None, 0));
    }
}
