//! A host with many requests outstanding, on the calling thread.

use std::os::fd::OwnedFd;
use std::time::Duration;

use gannet_client::{Client, ClientOptions, Completion, Operation, RequestId};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_fabric::{Address, Fabric};
use gannet_runtime::time::Time;
use rustix::event::{Timespec, epoll};

/// How long to poll at full speed before sleeping.
const SPIN: Duration = Duration::from_micros(20);

/// A client that sleeps while there is nothing to do.
pub struct Host<F: Fabric = AnyFabric> {
    client: Client<F>,
    arena: Arena,
    epoll: OwnedFd,
    completions: Vec<Completion>,
}

impl Host {
    /// A client of `metaserver`, with `buffers` buffers of `buffer_bytes` for its requests. It
    /// connects with its first request.
    ///
    /// # Panics
    /// If the machine refuses memory or descriptors.
    #[must_use]
    pub fn new(
        metaserver: &Address,
        buffer_bytes: usize,
        buffers: u32,
        adjust: impl FnOnce(&mut ClientOptions),
    ) -> Host {
        let fabric = AnyFabric::new(FabricOptions::default());
        Host::over(fabric, metaserver, buffer_bytes, buffers, adjust)
    }
}

impl<F: Fabric> Host<F> {
    /// As [`Host::new`], over this fabric.
    ///
    /// # Panics
    /// As [`Host::new`].
    #[must_use]
    pub fn over(
        fabric: F,
        metaserver: &Address,
        buffer_bytes: usize,
        buffers: u32,
        adjust: impl FnOnce(&mut ClientOptions),
    ) -> Host<F> {
        let mut options = ClientOptions::random(metaserver.clone()).expect("randomness");
        adjust(&mut options);
        let arena = Arena::new(&RegionIds::new(), buffer_bytes, buffers).expect("memory");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor");
        Host { client: Client::new(options, fabric), arena, epoll, completions: Vec::new() }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client<F> {
        &self.client
    }

    /// The client's fabric, to break it.
    #[must_use]
    pub fn fabric_mut(&mut self) -> &mut F {
        self.client.fabric_mut()
    }

    /// A buffer that is not in use.
    ///
    /// # Panics
    /// If all are in use.
    #[must_use]
    pub fn buffer(&self) -> HostBuffer {
        self.arena.take().expect("as many buffers as requests")
    }

    /// Starts a request.
    ///
    /// # Panics
    /// If the client refuses it.
    pub fn submit(&mut self, operation: Operation, token: u64) -> RequestId {
        let timeout = self.client.options().request_timeout;
        self.submit_with(operation, token, timeout)
    }

    /// Starts a request with a time-out of its own.
    ///
    /// # Panics
    /// If the client refuses it.
    pub fn submit_with(
        &mut self,
        operation: Operation,
        token: u64,
        timeout: Option<Duration>,
    ) -> RequestId {
        match self.client.submit_with(operation, token, timeout) {
            Ok(request) => request,
            Err(refused) => panic!("refused: {}", refused.error),
        }
    }

    /// Asks to end a request early.
    pub fn cancel(&mut self, request: RequestId) {
        self.client.cancel(request);
    }

    /// Polls until there are completions, for `at_most` if there are none; they are taken.
    pub fn wait(&mut self, at_most: Duration) -> Vec<Completion> {
        let end = Time::monotonic() + at_most;
        let mut last_work = Time::monotonic();
        while self.completions.is_empty() {
            let now = Time::monotonic();
            if self.client.poll(now, &mut self.completions) > 0 {
                last_work = now;
            } else if now >= end {
                break;
            } else if now.since(last_work) < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep(end);
                last_work = Time::monotonic();
            }
        }
        std::mem::take(&mut self.completions)
    }

    /// Sleeps until a server signals, the client's deadline or `end`.
    fn sleep(&mut self, end: Time) {
        self.client.arm();
        let now = Time::monotonic();
        if self.client.poll(now, &mut self.completions) == 0 {
            let until = self.client.deadline().min(end);
            self.block(until.since(now));
        }
        self.client.disarm();
    }

    fn block(&self, at_most: Duration) {
        self.client.wake_descriptors(&mut |descriptor| {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN).expect("watched");
        });
        let limit = Timespec {
            tv_sec: at_most.as_secs() as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()),
        };
        let mut events = Vec::with_capacity(1);
        // Woken, timed out, interrupted: the client is polled in each case.
        let spare = rustix::buffer::spare_capacity(&mut events);
        let _woken = epoll::wait(&self.epoll, spare, Some(&limit));
        self.client.wake_descriptors(&mut |descriptor| {
            epoll::delete(&self.epoll, descriptor).expect("was watched");
        });
    }
}

impl<F: Fabric> std::fmt::Debug for Host<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.client.fmt(f)
    }
}
