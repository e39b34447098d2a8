//! Parts of the provider, alone and against each other; those that make no system call, and those
//! that ask a kernel or a name server who does not do as asked.

mod ends;
mod held;
mod link;
#[allow(clippy::unwrap_used)]
mod listeners;
#[allow(clippy::unwrap_used)]
mod names;
mod peer;
mod regions;
#[allow(clippy::unwrap_used)]
mod ring;
mod stream;
mod transfers;
mod wire;

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::TcpFabric;
use crate::Fabric;

/// The port that the kernel gave to a fabric's listener.
fn port_of(fabric: &TcpFabric) -> u16 {
    let name = rustix::net::getsockname(&fabric.listeners[0].socket).expect("it is bound");
    SocketAddr::try_from(name).expect("an internet address").port()
}

/// Sleeps as a reactor does; whether something wakes it.
fn is_woken(fabric: &TcpFabric, within: Duration) -> bool {
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    // Duplicates, because they have to outlive the visit.
    fabric.wake_descriptors(&mut |descriptor: BorrowedFd<'_>| {
        descriptors.push(descriptor.try_clone_to_owned().expect("a free descriptor"));
    });
    let mut polled: Vec<_> =
        descriptors.iter().map(|one| PollFd::new(one, PollFlags::IN)).collect();
    let (tv_sec, tv_nsec) = (within.as_secs() as i64, within.subsec_nanos().into());
    poll(&mut polled, Some(&Timespec { tv_sec, tv_nsec })).expect("poll") > 0
}
