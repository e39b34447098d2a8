//! Counts what happens on all disks of a run, and makes the run stand still at one of these moments.
//!
//! What counts is what a crash can come before or behind: a write or sync that is handed to a device,
//! a part of a write that takes effect, a write or sync that ends. Reads change nothing and do not
//! count. A run that is repeated from its seed meets the same events under the same numbers, so a run
//! that counts them tells where all crashes can be.
//!
//! While everything stands still, devices take nothing on and bring nothing to its end. What is
//! handed to them is held back until [`DiskEvents::go_on`]; a process that dies meanwhile takes it
//! along.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What happened on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A write was handed to the device.
    WriteBegun,
    /// A part of a write has taken effect.
    WriteInPart,
    /// A write has ended.
    WriteEnded,
    /// A sync was handed to the device.
    SyncBegun,
    /// A sync has ended.
    SyncEnded,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskEvent {
    /// On which disk, as numbered by whoever watches them.
    pub disk: usize,
    /// On which of its files.
    pub file: u32,
    /// What.
    pub kind: EventKind,
}

/// Where to stand still. Events are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The event is about to happen.
    Before(u64),
    /// It has just happened.
    After(u64),
}

#[derive(Default)]
struct Inner {
    count: Cell<u64>,
    stop: Cell<Option<Moment>>,
    stands_still: Rc<Cell<bool>>,
    /// The event that it stands still at.
    at: Cell<Option<DiskEvent>>,
    /// All of them, when they are recorded.
    recorded: RefCell<Option<Vec<DiskEvent>>>,
}

/// The events of a run; clones are handles of the same ones.
#[derive(Clone, Default)]
pub struct DiskEvents {
    inner: Rc<Inner>,
}

impl DiskEvents {
    /// Keeps all events from now on.
    pub fn record(&self) {
        *self.inner.recorded.borrow_mut() = Some(Vec::new());
    }

    /// The events that were recorded.
    #[must_use]
    pub fn recorded(&self) -> Vec<DiskEvent> {
        self.inner.recorded.borrow().clone().unwrap_or_default()
    }

    /// Events so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner.count.get()
    }

    /// Makes the run stand still there.
    pub fn stop_at(&self, moment: Moment) {
        self.inner.stop.set(Some(moment));
    }

    /// Whether the run stands still.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        self.inner.stands_still.get()
    }

    /// The same for a scheduler.
    #[must_use]
    pub fn standstill(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.inner.stands_still)
    }

    /// The event at which the run stands still.
    #[must_use]
    pub fn at(&self) -> Option<DiskEvent> {
        self.inner.at.get()
    }

    /// Lets everything go on, without another stop.
    pub fn go_on(&self) {
        self.inner.stop.set(None);
        self.inner.at.set(None);
        self.inner.stands_still.set(false);
    }

    /// Something is about to happen; true if it may.
    pub(super) fn may_happen(&self, event: DiskEvent) -> bool {
        if self.inner.stop.get() == Some(Moment::Before(self.count())) {
            self.stop(event);
        }
        !self.stands_still()
    }

    /// It has happened.
    pub(super) fn happened(&self, event: DiskEvent) {
        let number = self.count();
        self.inner.count.set(number + 1);
        if let Some(recorded) = &mut *self.inner.recorded.borrow_mut() {
            recorded.push(event);
        }
        if self.inner.stop.get() == Some(Moment::After(number)) {
            self.stop(event);
        }
    }

    fn stop(&self, event: DiskEvent) {
        if !self.stands_still() {
            self.inner.at.set(Some(event));
            self.inner.stands_still.set(true);
        }
    }
}
