//! The suite's cases about memory windows pass with a model of windows over shm, and notice what is
//! wrong with a faulty one. So they can be trusted before a device with windows is at hand.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gannet_conformance::fabric::{Bounds, Provider, windows};
use gannet_fabric::shm::{ShmFabric, ShmOptions};
use gannet_fabric::{
    Access, Address, Capabilities, ConnectionId, Event, Events, Fabric, FabricError, Key, Refused,
    Registration, RemoteSlice, Transfer, WindowError,
};
use gannet_runtime::counting_allocator::CountingAllocator;
use gannet_runtime::memory::Mapping;
use gannet_runtime::time::Time;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What is wrong with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// Windows stay open.
    NeverCloses,
    /// Windows outlive their registration.
    OutlivesBase,
    /// A byte behind the window passes.
    OneByteMore,
    /// The other direction passes too.
    BothWays,
    /// The registration's own rights are not looked at.
    BaseIsOpen,
    /// As many windows as one likes.
    Boundless,
    /// A window may leave its registration.
    LeavesBase,
}

/// A registration, and who made it.
#[derive(Clone, Copy)]
struct Region {
    fabric: u32,
    connection: ConnectionId,
    at: Registration,
    len_bytes: u64,
    access: Access,
}

#[derive(Clone, Copy)]
struct Window {
    base: Region,
    address: u64,
    len_bytes: u64,
    access: Access,
    closed: bool,
}

/// What the peers of a thread registered and opened: each case runs in a thread of its own.
#[derive(Default)]
struct Table {
    regions: HashMap<u32, Region>,
    windows: HashMap<u32, Window>,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::default());
}

/// Keys of windows, apart from those of registrations.
const WINDOW_KEYS: u32 = 1 << 31;

/// Shm with windows: their keys are exchanged for those of their registrations when they are used.
struct Model {
    inner: ShmFabric,
    number: u32,
    defect: Defect,
    windows_max: usize,
    next_key: u32,
    pending: VecDeque<Event>,
    batch: Events,
}

impl Model {
    fn allows(access: Access, writes: bool) -> bool {
        if writes { access.remote_write } else { access.remote_read }
    }

    /// What a transfer of the peer reaches: the registration that its key stands for, or nothing.
    fn translate(&self, remote: RemoteSlice, writes: bool) -> RemoteSlice {
        let refused = RemoteSlice { key: Key(u32::MAX), ..remote };
        TABLE.with_borrow(|table| {
            if let Some(window) = table.windows.get(&remote.key.0) {
                let more = u64::from(self.defect == Defect::OneByteMore);
                let offset = remote.address.wrapping_sub(window.address);
                let end = offset.checked_add(u64::from(remote.len_bytes));
                let inside = end.is_some_and(|end| end <= window.len_bytes + more);
                let allowed =
                    self.defect == Defect::BothWays || Model::allows(window.access, writes);
                let key = window.base.at.key;
                return if inside && allowed { RemoteSlice { key, ..remote } } else { refused };
            }
            let region = table.regions.get(&remote.key.0);
            let allowed = region.is_some_and(|region| Model::allows(region.access, writes));
            if allowed || self.defect == Defect::BaseIsOpen { remote } else { refused }
        })
    }

    fn forget(&mut self, connection: ConnectionId) {
        let number = self.number;
        let stays = |region: &Region| (region.fabric, region.connection) != (number, connection);
        TABLE.with_borrow_mut(|table| {
            table.windows.retain(|_, window| stays(&window.base));
            table.regions.retain(|_, region| stays(region));
        });
    }
}

impl Fabric for Model {
    gannet_conformance::pass_on! {
        listen connect peer prepare send map flush sleeping
    }

    fn capabilities(&self, connection: ConnectionId) -> Capabilities {
        Capabilities { memory_windows: true, ..self.inner.capabilities(connection) }
    }

    fn disconnect(&mut self, connection: ConnectionId) {
        self.forget(connection);
        self.inner.disconnect(connection);
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, FabricError> {
        let at = self.inner.register(connection, memory, Access::READ_WRITE)?;
        let len_bytes = memory.len() as u64;
        let region = Region { fabric: self.number, connection, at, len_bytes, access };
        TABLE.with_borrow_mut(|table| table.regions.insert(at.key.0, region));
        Ok(at)
    }

    fn open_window(
        &mut self,
        connection: ConnectionId,
        base: Key,
        offset: u64,
        len_bytes: u64,
        access: Access,
    ) -> Result<Registration, WindowError> {
        self.inner.peer(connection).ok_or(WindowError::NotConnected)?;
        let number = self.number;
        let opened = TABLE.with_borrow_mut(|table| {
            let region = table.regions.get(&base.0).copied();
            let region = region.filter(|region| region.connection == connection);
            let region = region.ok_or(WindowError::Range)?;
            let end = offset.checked_add(len_bytes);
            let fits = end.is_some_and(|end| end <= region.len_bytes);
            if !fits && self.defect != Defect::LeavesBase {
                return Err(WindowError::Range);
            }
            let of_connection = |window: &&Window| {
                (window.base.fabric, window.base.connection) == (number, connection)
            };
            let open = table.windows.values().filter(of_connection).count();
            if open >= self.windows_max && self.defect != Defect::Boundless {
                return Err(WindowError::Full);
            }
            self.next_key += 1;
            let key = WINDOW_KEYS | self.next_key;
            let address = region.at.address.wrapping_add(offset);
            let closed = false;
            table.windows.insert(key, Window { base: region, address, len_bytes, access, closed });
            Ok(Registration { address, key: Key(key) })
        })?;
        self.pending.push_back(Event::Registered { connection, key: opened.key });
        Ok(opened)
    }

    fn deregister(&mut self, connection: ConnectionId, key: Key) {
        if key.0 & WINDOW_KEYS == 0 {
            TABLE.with_borrow_mut(|table| {
                table.regions.remove(&key.0);
                let outlives = self.defect == Defect::OutlivesBase;
                table.windows.retain(|_, window| outlives || window.base.at.key != key);
            });
            // In the model windows reach the memory through it: a defect needs it to stay.
            if self.defect == Defect::OutlivesBase {
                self.pending.push_back(Event::Deregistered { connection, key });
            } else {
                self.inner.deregister(connection, key);
            }
            return;
        }
        let known = TABLE.with_borrow_mut(|table| match self.defect {
            Defect::NeverCloses => {
                let window = table.windows.get_mut(&key.0);
                window.is_some_and(|window| !std::mem::replace(&mut window.closed, true))
            }
            _ => table.windows.remove(&key.0).is_some(),
        });
        if known {
            self.pending.push_back(Event::Deregistered { connection, key });
        }
    }

    fn write(&mut self, connection: ConnectionId, mut transfer: Transfer) -> Result<(), Refused> {
        transfer.remote = self.translate(transfer.remote, true);
        self.inner.write(connection, transfer)
    }

    fn read(&mut self, connection: ConnectionId, mut transfer: Transfer) -> Result<(), Refused> {
        transfer.remote = self.translate(transfer.remote, false);
        self.inner.read(connection, transfer)
    }

    fn poll(&mut self, now: Time, events: &mut Events) {
        while let Some(event) = self.pending.pop_front() {
            events.push(event);
        }
        self.inner.poll(now, &mut self.batch);
        while let Some(event) = self.batch.pop() {
            if let Event::Disconnected { connection, .. } = event {
                self.forget(connection);
            }
            events.push(event);
        }
        self.batch.clear();
    }
}

struct Models {
    defect: Defect,
    exact: bool,
    directory: tempfile::TempDir,
}

impl Models {
    fn new(defect: Defect) -> Models {
        Models { defect, exact: true, directory: tempfile::tempdir().unwrap() }
    }
}

impl Provider for Models {
    type Fabric = Model;

    fn fabric_with(&self, bounds: Bounds) -> Model {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let options = ShmOptions {
            connections_max: bounds.connections_max,
            registrations_max: bounds.registrations_max,
            ..ShmOptions::default()
        };
        Model {
            inner: ShmFabric::new(options).unwrap(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            defect: self.defect,
            windows_max: bounds.windows_max,
            next_key: 0,
            pending: VecDeque::with_capacity(64),
            batch: Events::with_capacity(64, 1 << 16),
        }
    }

    fn address(&self) -> Address {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Address::shm(self.directory.path().join(number.to_string())).unwrap()
    }

    fn kill(&self, fabric: Model) {
        fabric.inner.abandon();
    }

    fn windows_are_exact(&self) -> bool {
        self.exact
    }
}

mod model {
    use super::{Defect, Models};

    gannet_conformance::fabric_conformance! { @cases Models::new(Defect::None), [];
        windows: without_windows_none_is_opened, a_window_opens_its_range_and_direction,
            a_closed_window_is_refused, a_window_ends_with_its_base_and_its_connection,
            impossible_windows_are_not_opened, windows_are_bounded, many_windows_open_and_close;
        steady: windows_in_steady_state_allocate_nothing;
    }
}

/// A device that checks against the registration passes, if it says so.
#[test]
fn inexact_windows_may_be_stated() {
    let models = Models { exact: false, ..Models::new(Defect::OneByteMore) };
    windows::a_window_opens_its_range_and_direction(&models);
}

#[test]
#[should_panic(expected = "AccessRefused")]
fn a_window_that_is_too_long_is_noticed() {
    windows::a_window_opens_its_range_and_direction(&Models::new(Defect::OneByteMore));
}

#[test]
#[should_panic(expected = "AccessRefused")]
fn a_window_in_both_directions_is_noticed() {
    windows::a_window_opens_its_range_and_direction(&Models::new(Defect::BothWays));
}

#[test]
#[should_panic(expected = "AccessRefused")]
fn an_open_registration_is_noticed() {
    windows::a_window_opens_its_range_and_direction(&Models::new(Defect::BaseIsOpen));
}

#[test]
#[should_panic(expected = "AccessRefused")]
fn a_window_that_stays_open_is_noticed() {
    windows::a_closed_window_is_refused(&Models::new(Defect::NeverCloses));
}

#[test]
#[should_panic(expected = "AccessRefused")]
fn a_window_that_outlives_its_registration_is_noticed() {
    windows::a_window_ends_with_its_base_and_its_connection(&Models::new(Defect::OutlivesBase));
}

#[test]
#[should_panic(expected = "a fifth window")]
fn windows_without_a_bound_are_noticed() {
    windows::windows_are_bounded(&Models::new(Defect::Boundless));
}

#[test]
#[should_panic(expected = "bytes from")]
fn a_window_that_leaves_its_registration_is_noticed() {
    windows::impossible_windows_are_not_opened(&Models::new(Defect::LeavesBase));
}
