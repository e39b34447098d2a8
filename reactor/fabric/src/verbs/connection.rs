//! One connection: its queue pair, what is outstanding on it, and what its peer may reach.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use gannet_runtime::memory::Mapping;
use gannet_runtime::time::Time;
use rustc_hash::FxHashMap;

use super::cm::CmId;
use super::device::LocalMemory;
use super::objects::{Domain, Exposure, Region, Window};
use super::receive::Receives;
use super::send::SendQueue;
use super::wire::{Header, Kind};
use crate::credits::{Class, Credits};
use crate::{
    Access, DisconnectReason, FabricError, Key, PeerIdentity, PostError, Registration, WindowError,
};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Looking for the peer's address, or for a route to it.
    Resolving,
    /// The peer was asked.
    Connecting,
    /// The peer was told yes.
    Accepting,
    Established,
    /// To be ended by this side once everything posted is complete.
    Lingering,
    /// The queue pair is in the error state; its last completions are awaited.
    Draining(DisconnectReason),
    /// Over; the event that says so is on its way.
    Ended,
}

/// Frames that take no credit and that a peer may have on its way at a time: three times credits,
/// since half of a class has to be used up for each, and the goodbye.
pub(super) const FRAMES_WITHOUT_CREDIT: u32 = 6;

/// A window that is open, or about to be opened or closed.
#[derive(Debug)]
struct OpenWindow {
    window: Window,
    base: u32,
    closing: bool,
}

/// Memory that the peer may reach.
#[derive(Debug)]
struct Registered {
    region: Region,
    takes_windows: bool,
    windows: u32,
    ending: bool,
}

/// Everything that exists together with the queue pair.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) send: SendQueue,
    pub(super) credits: Credits,
    /// Number of the queue pair.
    pub(super) pair: u32,
    /// Entries reserved in the completion queue.
    pub(super) completions: u32,
    /// Receive entries of its own; otherwise those of the device.
    pub(super) receives: Option<Receives>,
    /// A protection domain of its own, at the connecting side.
    pub(super) own: Option<Own>,
}

/// What only the connecting side has: keys work on this connection alone, as its protection domain
/// has no other.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) memory: LocalMemory,
    domain: Rc<Domain>,
    windows: FxHashMap<u32, OpenWindow>,
    free_windows: Vec<Window>,
    windows_made: usize,
    /// Windows to be closed as soon as the send queue has room.
    to_close: VecDeque<u32>,
    registrations: FxHashMap<u32, Registered>,
}

impl Own {
    pub(super) fn new(domain: &Rc<Domain>) -> Own {
        Own {
            memory: LocalMemory::new(Rc::clone(domain)),
            domain: Rc::clone(domain),
            windows: FxHashMap::default(),
            free_windows: Vec::new(),
            windows_made: 0,
            to_close: VecDeque::new(),
            registrations: FxHashMap::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn domain(&self) -> &Rc<Domain> {
        &self.domain
    }

    /// Registers memory for the peer.
    pub(super) fn register(
        &mut self,
        memory: &Arc<Mapping>,
        access: Access,
        registrations_max: usize,
        windows: bool,
    ) -> Result<Registration, FabricError> {
        if self.registrations.len() >= registrations_max {
            let what = "registrations of one connection";
            return Err(FabricError::Limit { what, limit: registrations_max });
        }
        let takes_windows = access == Access::WINDOWS_ONLY && windows;
        let exposure = if takes_windows { Exposure::Windows } else { Exposure::Remote(access) };
        let region = Region::new(&self.domain, memory, exposure)?;
        let (key, address) = (region.remote_key(), memory.base().addr() as u64);
        let registered = Registered { region, takes_windows, windows: 0, ending: false };
        self.registrations.insert(key, registered);
        Ok(Registration { address, key: Key(key) })
    }

    /// Takes a registration or window back. True if nothing but `forget` is left to do; otherwise a
    /// completion tells, or nothing, if there is no such key.
    pub(super) fn deregister(&mut self, key: u32, send: &mut SendQueue) -> bool {
        if self.windows.contains_key(&key) {
            self.close(key, send);
            return false;
        }
        let Some(found) = self.registrations.get_mut(&key) else { return false };
        if found.ending {
            return false;
        }
        found.ending = true;
        if found.windows == 0 {
            return true;
        }
        let of_base = |window: &OpenWindow| window.base == key && !window.closing;
        let open: Vec<u32> = self
            .windows
            .iter()
            .filter(|(_, window)| of_base(window))
            .map(|(key, _)| *key)
            .collect();
        for key in open {
            self.close(key, send);
        }
        false
    }

    /// Ends a registration that was taken back: from now on its key may come back.
    pub(super) fn forget(&mut self, key: u32) {
        self.registrations.remove(&key);
    }

    fn close(&mut self, key: u32, send: &mut SendQueue) {
        let Some(found) = self.windows.get_mut(&key) else { return };
        if !found.closing {
            found.closing = true;
            self.to_close.push_back(key);
            self.close_waiting(send);
        }
    }

    /// Closes windows that wait for room in the send queue.
    pub(super) fn close_waiting(&mut self, send: &mut SendQueue) {
        while send.has_room()
            && let Some(key) = self.to_close.pop_front()
        {
            send.push_invalidate(key);
        }
    }

    /// Opens a window.
    pub(super) fn open_window(
        &mut self,
        base: u32,
        offset: u64,
        len_bytes: u64,
        access: Access,
        windows_max: usize,
        send: &mut SendQueue,
    ) -> Result<Registration, WindowError> {
        let found = self.registrations.get_mut(&base);
        let found = found.filter(|found| found.takes_windows && !found.ending);
        let found = found.ok_or(WindowError::Range)?;
        let memory = found.region.memory();
        let end = offset.checked_add(len_bytes).ok_or(WindowError::Range)?;
        if end > memory.len() as u64 || len_bytes == 0 {
            return Err(WindowError::Range);
        }
        if !send.has_room() {
            return Err(WindowError::Full);
        }
        let mut window = match self.free_windows.pop() {
            Some(window) => window,
            None if self.windows_made >= windows_max => return Err(WindowError::Full),
            None => {
                let window = Window::new(&self.domain).map_err(|_| WindowError::Full)?;
                self.windows_made += 1;
                window
            }
        };
        let key = window.next_key();
        let address = memory.base().addr() as u64 + offset;
        send.push_bind(window.as_ptr(), key, &found.region, address, len_bytes, access);
        found.windows += 1;
        self.windows.insert(key, OpenWindow { window, base, closing: false });
        Ok(Registration { address, key: Key(key) })
    }

    /// A window is closed; the key of its base if that is gone now too.
    pub(super) fn closed(&mut self, key: u32) -> Option<u32> {
        let found = self.windows.remove(&key)?;
        self.free_windows.push(found.window);
        let base = self.registrations.get_mut(&found.base)?;
        base.windows -= 1;
        if base.ending && base.windows == 0 {
            self.registrations.remove(&found.base);
            return Some(found.base);
        }
        None
    }

    /// Frees the windows, which have to go before the queue pair that they are bound to.
    fn free_windows(&mut self) {
        self.windows.clear();
        self.free_windows.clear();
    }
}

/// A place in the table of connections, taken.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: CmId,
    pub(super) state: State,
    /// When the present state has to be over.
    pub(super) deadline: Option<Time>,
    pub(super) peer: Option<PeerIdentity>,
    /// Index of the device, once it is known.
    pub(super) device: usize,
    pub(super) wiring: Option<Wiring>,
    /// The peer said that it ends the connection in order.
    pub(super) goodbye: bool,
    /// The send queue waits for a doorbell, and the fabric knows.
    pub(super) dirty: bool,
    /// Receive entries of its own wait to be posted, and the fabric knows.
    pub(super) refill: bool,
}

impl Connection {
    pub(super) fn new(id: CmId, state: State, deadline: Time) -> Connection {
        Connection {
            id,
            state,
            deadline: Some(deadline),
            peer: None,
            device: usize::MAX,
            wiring: None,
            goodbye: false,
            dirty: false,
            refill: false,
        }
    }

    /// The wiring, if users may post.
    #[inline]
    pub(super) fn usable(&mut self) -> Option<&mut Wiring> {
        match self.state {
            State::Established => self.wiring.as_mut(),
            _ => None,
        }
    }

    /// Posts a message if there is a credit, a buffer and a queue entry.
    #[inline]
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), PostError> {
        let wiring = self.usable().ok_or(PostError::NotConnected)?;
        let class = Class::of(message.len());
        let (send, credits) = (&mut wiring.send, &mut wiring.credits);
        if !credits.has(class) || !send.has_room() || !send.has_buffer(class) {
            return Err(PostError::Full);
        }
        credits.take(class);
        let header = Header::new(Kind::Message(class), credits.take_owed());
        send.push_message(header, message);
        Ok(())
    }

    /// Rings the doorbell; false if the queue pair does not take it.
    pub(super) fn post(&mut self) -> bool {
        let pair = self.id.pair();
        self.wiring.as_mut().is_none_or(|wiring| wiring.send.post(pair).is_ok())
    }

    /// Destroys the queue pair and the windows bound to it: when this returns, nothing of it touches
    /// memory any more.
    pub(super) fn destroy_pair(&mut self) {
        if let Some(Wiring { own: Some(own), .. }) = &mut self.wiring {
            own.free_windows();
        }
        self.id.destroy_pair();
    }

    /// Destroys the queue pair and everything that goes with it.
    pub(super) fn tear_down(&mut self) {
        self.destroy_pair();
        self.wiring = None;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tear_down();
    }
}
