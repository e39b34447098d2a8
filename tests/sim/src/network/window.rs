//! Memory windows (`Model::Verbs`): keys of their own for exact ranges of registered memory.
//!
//! Opening and closing are work of the owner's device, done in the order of posting some time after
//! the flush: a window lets nobody through before it is open, and goes on letting the peer through
//! until it is closed. Then its key may come back for another window at once.

use std::sync::Arc;

use gannet_fabric::{Access, ConnectionId, Key, Registration, WindowError};

use super::Endpoint;
use super::link::{Notice, Phase, Port, Region, RegionState};
use super::state::{State, Timer};

/// What a device does to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowStep {
    Open,
    Close,
}

impl State {
    pub(super) fn open_window(
        &mut self,
        endpoint: usize,
        connection: ConnectionId,
        base: Key,
        (offset, len_bytes): (u64, u64),
        access: Access,
    ) -> Result<Registration, WindowError> {
        if !self.options.model.capabilities().memory_windows {
            return Err(WindowError::Unsupported);
        }
        let port = self.port(endpoint, connection).ok_or(WindowError::NotConnected)?;
        if self.phase(port) != Phase::Open {
            return Err(WindowError::NotConnected);
        }
        let spurious = self.random.happens(self.options.spurious_full);
        if spurious || self.windows_of(endpoint) >= self.options.windows_max {
            return Err(WindowError::Full);
        }
        let end = self.end(port).ok_or(WindowError::NotConnected)?;
        let region = end.regions.get(&base.0).ok_or(WindowError::Range)?;
        let leaves = offset.checked_add(len_bytes).is_none_or(|end| end > region.len_bytes as u64);
        if region.base.is_some() || region.state != RegionState::Usable || leaves {
            return Err(WindowError::Range);
        }
        let window = Region {
            access,
            address: region.address + offset,
            state: RegionState::Announced,
            view: Arc::clone(&region.view),
            start: region.start + offset as usize,
            len_bytes: len_bytes as usize,
            owner: region.owner + offset as usize,
            base: Some(base.0),
            pins: 0,
        };
        let address = window.address;
        let key = self.take_key(endpoint);
        if let Some(end) = self.end(port) {
            end.regions.insert(key, window);
            end.window_steps.push((key, WindowStep::Open));
        }
        Ok(Registration { address, key: Key(key) })
    }

    /// Windows that a fabric value has, in whatever state.
    fn windows_of(&self, endpoint: usize) -> usize {
        let ends = self.links.values().flat_map(|link| &link.ends);
        let own = ends.filter(|end| end.endpoint == Some(endpoint) && end.phase != Phase::Ended);
        own.flat_map(|end| end.regions.values()).filter(|region| region.base.is_some()).count()
    }

    /// Asks the device to close a window; once.
    pub(super) fn close_window(&mut self, port: Port, key: u32) {
        let Some(end) = self.end(port) else { return };
        if end.window_steps.contains(&(key, WindowStep::Close))
            || end.windows_closing.contains(&key)
        {
            return;
        }
        end.window_steps.push((key, WindowStep::Close));
    }

    /// Takes the windows of a registration along that is taken back.
    pub(super) fn end_windows_of(&mut self, port: Port, base: u32) {
        let Some(end) = self.end(port) else { return };
        let regions = end.regions.iter();
        let keys: Vec<u32> =
            regions.filter(|(_, region)| region.base == Some(base)).map(|(key, _)| *key).collect();
        for key in keys {
            self.end_window(port, key);
        }
    }

    /// Hands the steps to the device.
    pub(super) fn flush_windows(&mut self, port: Port) {
        let Some(end) = self.end(port) else { return };
        for (key, step) in std::mem::take(&mut end.window_steps) {
            let at = self.after_hop();
            let Some(end) = self.end(port) else { return };
            if step == WindowStep::Close {
                end.windows_closing.insert(key);
            }
            let at = at.max(end.last_window_step);
            end.last_window_step = at;
            self.agenda.add(at, Timer::Window(port, key, step));
        }
    }

    pub(super) fn window_step(&mut self, port: Port, key: u32, step: WindowStep) {
        if step == WindowStep::Close {
            if let Some(end) = self.end(port) {
                end.windows_closing.remove(&key);
            }
            return self.end_window(port, key);
        }
        let found = self.end(port).and_then(|end| end.regions.get_mut(&key));
        if let Some(window) = found
            && window.base.is_some()
            && window.state == RegionState::Announced
        {
            window.state = RegionState::Usable;
            self.stats.windows += 1;
            self.deliver(Notice::Registered(port, key));
        }
    }

    /// The device lets nothing new through a window; its end is told when nothing is on its way.
    fn end_window(&mut self, port: Port, key: u32) {
        let found = self.end(port).and_then(|end| end.regions.get_mut(&key));
        let Some(window) = found.filter(|window| window.state != RegionState::Leaving) else {
            return;
        };
        window.state = RegionState::Leaving;
        if window.pins == 0 {
            self.deliver(Notice::Deregistered(port, key));
        }
    }
}

impl Endpoint {
    /// Whether a peer can reach any of these bytes through a window: open, or on its way to it or
    /// from it, on a connection that this end has not given up.
    #[must_use]
    pub fn has_window_over(&self, bytes: &[u8]) -> bool {
        let range = bytes.as_ptr().addr()..bytes.as_ptr().addr() + bytes.len();
        let state = self.state.borrow();
        let ends = state.links.values().flat_map(|link| &link.ends);
        let mut own = ends.filter(|end| {
            end.endpoint == Some(self.index) && end.phase == Phase::Open && !end.out_of_reach
        });
        own.any(|end| {
            end.regions.values().any(|region| {
                region.base.is_some()
                    && region.owner < range.end
                    && region.owner + region.len_bytes > range.start
            })
        })
    }
}
