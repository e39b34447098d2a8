//! Asynchronous events: a queue pair that failed by itself, a port that went down, a device that
//! is broken.
//!
//! librdmacm opens each device once per process, so all fabrics of a process share one queue of
//! these events. Whichever reads an event passes it on to the fabric that owns the queue pair; the
//! descriptor wakes all of them, and a second one wakes the owner. Control path: a lock is taken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rdma_sys as rdma;
use rdma_sys::ibv_event_type as kinds;
use rustix::event::EventfdFlags;

use super::objects::{Context, set_nonblocking};

/// Events of one fabric's queue pairs at one device.
#[derive(Debug)]
struct Inbox {
    /// Address of the device's context.
    device: usize,
    /// Numbers of queue pairs that failed, and whether the whole device did.
    failed: Mutex<(Vec<u32>, bool)>,
    wake: OwnedFd,
}

static INBOXES: Mutex<Vec<Arc<Inbox>>> = Mutex::new(Vec::new());

/// What happened to a fabric's connections at a device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Queue pairs, by number. May name some that are gone, or are another fabric's.
    pub(super) pairs: Vec<u32>,
    /// All of them.
    pub(super) device: bool,
}

/// A fabric's view of a device's events.
#[derive(Debug)]
pub(super) struct Watch {
    context: Context,
    inbox: Arc<Inbox>,
}

impl Watch {
    pub(super) fn new(context: Context) -> io::Result<Watch> {
        set_nonblocking(context.event_descriptor())?;
        let inbox = Arc::new(Inbox {
            device: context.as_ptr().addr(),
            failed: Mutex::default(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        inboxes(|list| list.push(Arc::clone(&inbox)));
        Ok(Watch { context, inbox })
    }

    /// What becomes readable when there is something to take.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.context.event_descriptor(), self.inbox.wake.as_fd()]
    }

    /// Reads the device's events and takes those of this fabric.
    pub(super) fn take(&self) -> Failures {
        // Nothing is lost if this fails: the events stay for the next call.
        let mut count = [0; 8];
        let _empty = rustix::io::read(&self.inbox.wake, &mut count);
        while let Some(event) = next_event(self.context) {
            self.pass_on(event);
        }
        let mut failed = self.inbox.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (pairs, device) = (std::mem::take(&mut failed.0), std::mem::take(&mut failed.1));
        Failures { pairs, device }
    }

    fn pass_on(&self, event: Asynchronous) {
        match event {
            Asynchronous::Port { number, up } => {
                let device = self.context.name();
                if up {
                    tracing::info!(%device, port = number, "an RDMA port is active");
                } else {
                    tracing::warn!(
                        %device, port = number,
                        "an RDMA port is down: connections break unless it is back soon"
                    );
                }
            }
            Asynchronous::PairFailed(number) => self.deliver(|failed| failed.0.push(number)),
            Asynchronous::DeviceFailed => {
                tracing::error!(device = %self.context.name(), "an RDMA device failed");
                self.deliver(|failed| failed.1 = true);
            }
            Asynchronous::Other => {}
        }
    }

    /// Numbers of queue pairs are unique per device, so every fabric there may have it.
    fn deliver(&self, mut note: impl FnMut(&mut (Vec<u32>, bool))) {
        inboxes(|list| {
            for inbox in list.iter().filter(|inbox| inbox.device == self.inbox.device) {
                note(&mut inbox.failed.lock().unwrap_or_else(PoisonError::into_inner));
                // Full only if it was not read for 2^64 events.
                let _full = rustix::io::write(&inbox.wake, &1u64.to_ne_bytes());
            }
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        inboxes(|list| list.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox)));
    }
}

fn inboxes<T>(with: impl FnOnce(&mut Vec<Arc<Inbox>>) -> T) -> T {
    with(&mut INBOXES.lock().unwrap_or_else(PoisonError::into_inner))
}

enum Asynchronous {
    PairFailed(u32),
    Port { number: i32, up: bool },
    DeviceFailed,
    Other,
}

/// `ibv_async_event` with the kind as a number: later libraries have kinds of which the enumeration
/// does not know.
#[repr(C)]
struct RawEvent {
    element: rdma::ibv_async_event_element_t,
    kind: u32,
}
const _: () = assert!(size_of::<RawEvent>() == size_of::<rdma::ibv_async_event>());

fn next_event(context: Context) -> Option<Asynchronous> {
    let nothing = rdma::ibv_async_event_element_t { port_num: 0 };
    let mut event = RawEvent { element: nothing, kind: u32::MAX };
    let place = (&raw mut event).cast();
    // SAFETY: an open device whose descriptor does not block, and a place to write to.
    let returned = unsafe { rdma::ibv_get_async_event(context.as_ptr(), place) };
    if returned != 0 {
        return None;
    }
    let is = |wanted: kinds| event.kind == wanted as u32;
    let found = if is(kinds::IBV_EVENT_QP_FATAL)
        || is(kinds::IBV_EVENT_QP_REQ_ERR)
        || is(kinds::IBV_EVENT_QP_ACCESS_ERR)
    {
        // SAFETY: these kinds are about a queue pair.
        let pair = unsafe { event.element.qp };
        // SAFETY: it is not destroyed before its events are acknowledged.
        Asynchronous::PairFailed(unsafe { (*pair).qp_num })
    } else if is(kinds::IBV_EVENT_PORT_ACTIVE) || is(kinds::IBV_EVENT_PORT_ERR) {
        // SAFETY: these kinds are about a port.
        let number = unsafe { event.element.port_num };
        Asynchronous::Port { number, up: is(kinds::IBV_EVENT_PORT_ACTIVE) }
    } else if is(kinds::IBV_EVENT_DEVICE_FATAL) || is(kinds::IBV_EVENT_CQ_ERR) {
        Asynchronous::DeviceFailed
    } else {
        Asynchronous::Other
    };
    // SAFETY: the event just taken.
    unsafe { rdma::ibv_ack_async_event((&raw mut event).cast()) };
    Some(found)
}
