//! Requests that name their memory by windows: opened before they are sent, closed before they
//! complete.
//!
//! A window ends in one of two ways. When a request has its final answer, no grant of it is under
//! way, so its windows are closed one by one and its completion waits until the fabric has said of
//! each that nothing passes it any more. When an attempt is given up without that, grants may be
//! under way that name its keys, and devices use the keys of closed windows again; so its data
//! sessions are ended (see `cut` in [`super::recovery`]), and with the epoch every such grant.
//!
//! Windows are few, so who waits for what is ordered: a request takes its slot first, then its
//! windows, then room on the channel. Only the request at the head of the queue for windows keeps
//! some while it lacks others; whoever waits for anything but windows or room gives them back. So
//! the windows that are missing are those of requests that will end, or there are too few for a
//! single request, which then fails in bounded time.

use gannet_fabric::{Access, ConnectionId, Fabric, Key, WindowError};
use gannet_proto::operations::Window;
use gannet_runtime::time::Time;
use zerocopy::little_endian::{U32, U64};

use super::dispatch::Ready;
use super::{Client, Role, Timer};
use crate::error::ErrorKind;
use crate::link::Phase;
use crate::operation::Operation;
use crate::options::Protection;
use crate::regions::Reach;
use crate::request::State;
use crate::targets::members;
use crate::waiting::Queue;
use crate::windows::WINDOWS_MAX;

/// How soon a window that the fabric refused is tried again if nothing happens before.
const REFUSED_RETRY: std::time::Duration = std::time::Duration::from_millis(1);

impl<F: Fabric> Client<F> {
    /// Whether requests name their memory by windows.
    #[inline]
    pub(super) fn is_windowed(&self) -> bool {
        self.options.protection == Protection::Window
    }

    /// The data servers at which a read or write needs a window: its set, as far as is known.
    pub(super) fn windows_needed(&self, index: u32) -> u64 {
        let needs = self.needs(index);
        // More than a set has: a hint is out of date.
        if needs.count_ones() as usize <= WINDOWS_MAX { needs } else { self.requests[index].needs }
    }

    /// Opens the windows that a request lacks. Data sessions and registrations are in place.
    pub(super) fn open_windows(&mut self, index: u32) -> Ready {
        let is_first = self.window_turn == Some(index) || self.waiting.is_empty(Queue::Windows);
        let needed = self.windows_needed(index);
        let present = self.windows.targets(index);
        if (needed | present).count_ones() as usize > WINDOWS_MAX {
            self.close_windows(index);
        }
        if self.windows.are_closing(index) {
            return if self.window_turn == Some(index) {
                Ready::Wait(Queue::Windows)
            } else {
                Ready::Windows
            };
        }
        let missing = needed & !present;
        if missing != 0 && (self.is_draining || !is_first) {
            // A new window may get the key of one whose end lies behind in the same batch of
            // events, so none is opened before all of them are taken.
            self.wakes.windows |= self.is_draining;
            self.close_windows(index);
            return Ready::Wait(Queue::Windows);
        }
        for target in members(missing) {
            match self.open_window(index, target) {
                Ready::Yes => {}
                other => return other,
            }
        }
        if self.windows.are_open(index) { Ready::Yes } else { Ready::Windows }
    }

    fn open_window(&mut self, index: u32, target: u8) -> Ready {
        let Some(operation) = &self.requests[index].operation else {
            return Ready::Never(ErrorKind::Invalid("no operation"));
        };
        let (buffer, offset, length) = match operation {
            Operation::Read { buffer, buffer_offset, length, .. }
            | Operation::Write { buffer, buffer_offset, length, .. } => {
                (buffer, *buffer_offset, *length)
            }
            _ => return Ready::Yes,
        };
        let is_read = operation.is_read();
        let access = Access { remote_read: !is_read, remote_write: is_read };
        let offset = buffer.region_offset() + u64::from(offset);
        let region = match self.regions.of(buffer) {
            Ok(region) => region,
            Err(kind) => return Ready::Never(kind),
        };
        let (Phase::Ready(connection), Reach::Usable(base)) =
            (self.targets[target].link.phase(), self.regions.reach(region, target))
        else {
            return Ready::Wait(Queue::Sets);
        };
        let length = u64::from(length);
        match self.fabric.open_window(connection, base.key, offset, length, access) {
            Ok(registration) => {
                self.windows.insert(index, target, registration);
                self.counters.windows += 1;
                self.unflushed = true;
                Ready::Yes
            }
            Err(WindowError::Full) => self.no_window_free(index),
            // Its end will be polled, and the session opened anew.
            Err(WindowError::NotConnected) => Ready::Wait(Queue::Sets),
            Err(WindowError::Range) => {
                Ready::Never(ErrorKind::Memory("the request leaves its registered memory"))
            }
            Err(WindowError::Unsupported) => Ready::Never(ErrorKind::NoWindows),
        }
    }

    /// The request at the head of the queue lacks a window.
    fn no_window_free(&mut self, index: u32) -> Ready {
        self.counters.window_waits += 1;
        self.windows_due = self.now + REFUSED_RETRY;
        let (now, timeout) = (self.now, self.options.reconnect_timeout);
        let request = &mut self.requests[index];
        if self.windows.len() > self.windows.count(index) {
            return Ready::Wait(Queue::Windows);
        }
        // No other request has one that could become free. The time is right within a poll only.
        if self.window_turn == Some(index) {
            request.give_up_at = request.give_up_at.min(now + timeout);
        }
        if self.window_turn != Some(index) || now < request.give_up_at {
            return Ready::Wait(Queue::Windows);
        }
        Ready::Never(ErrorKind::Memory("the fabric has too few memory windows for the request"))
    }

    /// Takes a request's windows back; whether any is still on its way out.
    pub(super) fn close_windows(&mut self, index: u32) -> bool {
        if self.windows.is_empty(index) {
            return false;
        }
        let (fabric, targets, unflushed) = (&mut self.fabric, &self.targets, &mut self.unflushed);
        self.windows.close(index, |target, key| {
            // A window whose connection has ended is gone; that end is, or will be, polled.
            if let Some(connection) = targets[target].link.connection() {
                fabric.deregister(connection, key);
                *unflushed = true;
            }
        });
        true
    }

    /// Looks at the requests that wait for windows, in their order.
    pub(super) fn run_windows(&mut self) {
        while let Some(index) = self.waiting.pop(Queue::Windows) {
            self.counters.wakes += 1;
            self.window_turn = Some(index);
            self.dispatch(index);
            self.window_turn = None;
            if self.waiting.is_in(Queue::Windows, index) {
                self.waiting.move_to_front(index);
                return;
            }
        }
        self.windows_due = Time::NEVER;
    }

    /// The fabric has opened a window, or registered a region.
    pub(super) fn on_registered(&mut self, connection: ConnectionId, key: Key) {
        let Role::Target(target) = self.role(connection) else { return };
        if let Some(index) = self.windows.usable(target, key) {
            self.windows_moved(index);
        } else if self.regions.usable(target, key) {
            self.sets_version += 1;
            self.wakes.sets = true;
        }
    }

    /// The fabric has closed a window. (A region is forgotten as it is deregistered.)
    pub(super) fn on_deregistered(&mut self, connection: ConnectionId, key: Key) {
        if let Role::Target(target) = self.role(connection)
            && let Some(index) = self.windows.gone(target, key)
        {
            self.windows_moved(index);
        }
    }

    /// A window of the request is open, or gone.
    pub(super) fn windows_moved(&mut self, index: u32) {
        self.wakes.windows |= !self.waiting.is_empty(Queue::Windows);
        match self.requests[index].state {
            State::Closing if self.windows.is_empty(index) => self.complete(index),
            State::Cutting if self.defects.sessions() && self.windows.is_empty(index) => {
                self.after_cut(index);
            }
            // Who is in a queue waits for something else.
            State::Waiting if !self.waiting.is_queued(index) && self.windows.are_open(index) => {
                self.dispatch(index);
            }
            _ => {}
        }
    }

    /// Sees to it that windows are gone in bounded time. It is looked at twice, since the time at
    /// which it began may be that of a poll long ago.
    pub(super) fn watch_closing(&mut self, index: u32) {
        let token = Timer::Delay(index).token();
        let deadline = self.now + self.options.cancel_timeout;
        self.requests[index].delay = self.deadlines.insert(deadline, token).ok();
    }

    /// Windows of a request that is over are not gone yet.
    pub(super) fn closing_is_late(&mut self, index: u32) {
        if !std::mem::replace(&mut self.requests[index].is_late, true) {
            return self.watch_closing(index);
        }
        for target in members(self.windows.targets(index)) {
            self.close_target(target);
        }
    }

    /// The request's windows as the wire carries them; returns their number.
    pub(super) fn named_windows(&self, index: u32, named: &mut [Window; WINDOWS_MAX]) -> usize {
        let mut count = 0;
        for ((target, registration), place) in self.windows.iter(index).zip(named) {
            *place = Window {
                target: U32::new(self.targets[target].id.0),
                key: U32::new(registration.key.0),
                epoch: U64::new(self.targets[target].epoch.0),
                address: U64::new(registration.address),
            };
            count += 1;
        }
        count
    }
}
