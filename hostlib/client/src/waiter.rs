//! Waiting for a client's next event: spin for a while, then yield, then sleep.
//!
//! For real time only; the simulator polls clients itself.

use std::io;
use std::time::Duration;

use gannet_fabric::Fabric;
use gannet_runtime::time::Time;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::client::Client;
use crate::operation::Completion;

/// How long to spin before yielding.
const SPIN: Duration = Duration::from_micros(50);
/// How long to spin and yield before sleeping.
const YIELD: Duration = Duration::from_micros(500);

/// Waits for one client. Belongs to its thread.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: std::os::fd::OwnedFd,
    idle_since: Option<Time>,
}

impl Waiter {
    pub(crate) fn new() -> io::Result<Waiter> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Waiter { epoll, idle_since: None })
    }

    /// Polls the client until a completion is there.
    pub(crate) fn wait<F: Fabric>(
        &mut self,
        client: &mut Client<F>,
        completions: &mut Vec<Completion>,
    ) {
        while completions.is_empty() {
            let now = Time::monotonic();
            if client.poll(now, completions) > 0 {
                self.idle_since = None;
                continue;
            }
            let since = *self.idle_since.get_or_insert(now);
            match now.since(since) {
                idle if idle < SPIN => std::hint::spin_loop(),
                idle if idle < YIELD => std::thread::yield_now(),
                _ => self.sleep(client, completions),
            }
        }
        self.idle_since = None;
    }

    /// Blocks until a descriptor of the client is readable or its deadline has come.
    fn sleep<F: Fabric>(&self, client: &mut Client<F>, completions: &mut Vec<Completion>) {
        client.arm();
        // What was published before the flag was set announces itself to this poll only.
        let now = Time::monotonic();
        let deadline =
            if client.poll(now, completions) > 0 { Time::ZERO } else { client.deadline() };
        if deadline > now && completions.is_empty() {
            self.block(client, (deadline != Time::NEVER).then(|| deadline.since(now)));
        }
        client.disarm();
    }

    fn block<F: Fabric>(&self, client: &Client<F>, timeout: Option<Duration>) {
        let mut watched = true;
        client.wake_descriptors(&mut |descriptor| {
            let data = epoll::EventData::new_u64(0);
            match epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(_) => watched = false,
            }
        });
        if watched {
            let limit = timeout.map(|timeout| Timespec {
                tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            });
            let mut events = Vec::with_capacity(1);
            let spare = rustix::buffer::spare_capacity(&mut events);
            // Woken, timed out, interrupted: the client is polled in each case.
            let _woken = epoll::wait(&self.epoll, spare, limit.as_ref());
        } else {
            // A descriptor cannot be watched: go on polling, at a price.
            std::thread::yield_now();
        }
        // The set may be another one next time, and a number may be another file's.
        client.wake_descriptors(&mut |descriptor| {
            let _was_watched = epoll::delete(&self.epoll, descriptor);
        });
    }
}
