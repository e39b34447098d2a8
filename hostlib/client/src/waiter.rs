//! Waiting for a client's next event: spin for a while, then yield, then sleep.
//!
//! For real time only; the simulator polls clients itself.

use std::io;
use std::time::Duration;

use gannet_fabric::Fabric;
use gannet_runtime::idle::{Idle, IdlePolicy, IdleStep};
use gannet_runtime::time::Time;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::client::Client;
use crate::operation::Completion;

/// Waits for one client. Belongs to its thread.
#[derive(Debug)]
pub struct Waiter {
    epoll: std::os::fd::OwnedFd,
    idle: Idle,
}

impl Waiter {
    /// A waiter that follows `policy` between polls.
    ///
    /// # Errors
    /// What making a descriptor to sleep on returns.
    pub fn new(policy: IdlePolicy) -> io::Result<Waiter> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Waiter { epoll, idle: Idle::new(policy, Time::monotonic()) })
    }

    /// Polls the client until a completion is there.
    pub fn wait<F: Fabric>(&mut self, client: &mut Client<F>, completions: &mut Vec<Completion>) {
        self.worked(Time::monotonic());
        while completions.is_empty() {
            let now = Time::monotonic();
            if client.poll(now, completions) > 0 {
                self.worked(now);
            } else {
                self.idle(client, completions, now);
            }
        }
    }

    /// For users that poll the client themselves: a poll found work.
    #[inline]
    pub fn worked(&mut self, now: Time) {
        self.idle.worked(now);
    }

    /// The same: a poll found none. Spins, yields, or sleeps; before a sleep the client is polled
    /// once more.
    pub fn idle<F: Fabric>(
        &mut self,
        client: &mut Client<F>,
        completions: &mut Vec<Completion>,
        now: Time,
    ) {
        match self.idle.step(now) {
            IdleStep::Spin => std::hint::spin_loop(),
            IdleStep::Yield => std::thread::yield_now(),
            IdleStep::Sleep => {
                if self.sleep(client, completions) {
                    self.worked(now);
                } else {
                    self.idle.slept(Time::monotonic());
                }
            }
        }
    }

    /// Blocks until a descriptor of the client is readable or its deadline has come; true if there
    /// was something to do instead.
    fn sleep<F: Fabric>(&self, client: &mut Client<F>, completions: &mut Vec<Completion>) -> bool {
        client.arm();
        // What was published before the flag was set announces itself to this poll only.
        let now = Time::monotonic();
        let worked = client.poll(now, completions) > 0 || !completions.is_empty();
        let deadline = client.deadline();
        if deadline > now && !worked {
            self.block(client, (deadline != Time::NEVER).then(|| deadline.since(now)));
        }
        client.disarm();
        worked
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
