//! Receive buffers: posted to one queue pair or to a shared receive queue, and posted again as
//! soon as a message was copied out.

use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use gannet_runtime::memory::Mapping;
use rdma_sys as rdma;

use super::objects::{Domain, Exposure, Region, SharedReceiveQueue, failed};
use super::wire::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::FabricError;

/// Distance of two buffers: the longest frame, in whole cache lines. Not a multiple of a page, so
/// that the first lines of all buffers do not compete for the same sets of a cache.
const STRIDE: usize = FRAME_BYTES_MAX.next_multiple_of(64);
const _: () = assert!(!STRIDE.is_multiple_of(4096));

/// Where buffers are posted.
#[derive(Debug)]
pub(super) enum Queue {
    /// A queue pair of this connection.
    Own(*mut rdma::ibv_qp),
    /// What accepted connections share.
    Shared(SharedReceiveQueue),
}

/// The receive buffers of one queue.
pub(super) struct Receives {
    queue: Queue,
    region: Region,
    count: u32,
    /// What a buffer's work request is called: this and the buffer's number.
    tag: u64,
    /// Buffers to be posted with the next call of `post`.
    idle: Vec<u32>,
    requests: Vec<rdma::ibv_recv_wr>,
    ranges: Vec<rdma::ibv_sge>,
}

impl Receives {
    /// Takes the memory; `start` posts it.
    pub(super) fn new(
        domain: &Rc<Domain>,
        queue: Queue,
        count: u32,
        tag: u64,
    ) -> Result<Receives, FabricError> {
        let memory = Mapping::anonymous(count as usize * STRIDE)
            .map_err(|source| failed("mapping receive buffers", source))?;
        let region = Region::new(domain, &memory, Exposure::Local)?;
        let capacity = count as usize;
        Ok(Receives {
            queue,
            region,
            count,
            tag,
            idle: (0..count).collect(),
            requests: Vec::with_capacity(capacity),
            ranges: Vec::with_capacity(capacity),
        })
    }

    /// The shared queue, if it is one.
    pub(super) fn shared(&self) -> Option<&SharedReceiveQueue> {
        match &self.queue {
            Queue::Shared(queue) => Some(queue),
            Queue::Own(_) => None,
        }
    }

    /// The header of the frame in a buffer.
    pub(super) fn header(&self, buffer: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        self.memory().copy_out(self.offset(buffer), &mut header);
        header
    }

    /// Copies the body of the frame in a buffer.
    #[inline]
    pub(super) fn copy_body(&self, buffer: u32, into: &mut [u8]) {
        self.memory().copy_out(self.offset(buffer) + HEADER_BYTES, into);
    }

    /// The buffer was read; `post` posts it.
    #[inline]
    pub(super) fn give_back(&mut self, buffer: u32) {
        debug_assert!(buffer < self.count);
        self.idle.push(buffer);
    }

    /// Posts all buffers that were given back, in one call. What the device does not take stays
    /// for the next call.
    pub(super) fn post(&mut self) -> std::io::Result<()> {
        if self.idle.is_empty() {
            return Ok(());
        }
        self.requests.clear();
        self.ranges.clear();
        for buffer in &self.idle {
            let offset = *buffer as usize * STRIDE;
            self.ranges.push(rdma::ibv_sge {
                addr: self.region.memory().base().addr() as u64 + offset as u64,
                length: FRAME_BYTES_MAX as u32,
                lkey: self.region.local_key(),
            });
            self.requests.push(rdma::ibv_recv_wr {
                wr_id: self.tag | u64::from(*buffer),
                next: ptr::null_mut(),
                sg_list: ptr::null_mut(),
                num_sge: 1,
            });
        }
        let (first, ranges) = (self.requests.as_mut_ptr(), self.ranges.as_mut_ptr());
        for (at, request) in self.requests.iter_mut().enumerate() {
            request.sg_list = ranges.wrapping_add(at);
            if at + 1 < self.idle.len() {
                request.next = first.wrapping_add(at + 1);
            }
        }
        let mut refused = ptr::null_mut();
        let returned = match &self.queue {
            // SAFETY: the queue pair lives as long as its connection, which owns this; the list
            // and what it points to outlive the call, and the memory outlives the requests.
            Queue::Own(pair) => unsafe { rdma::ibv_post_recv(*pair, first, &raw mut refused) },
            // SAFETY: as above, with the shared queue that this owns.
            Queue::Shared(queue) => unsafe {
                rdma::ibv_post_srq_recv(queue.as_ptr(), first, &raw mut refused)
            },
        };
        // One that takes requests and then fails names none of them.
        let posted = if returned == 0 || refused.is_null() {
            self.idle.len()
        } else {
            (refused.addr() - first.addr()) / size_of::<rdma::ibv_recv_wr>()
        };
        self.idle.drain(..posted.min(self.idle.len()));
        super::objects::checked(returned)
    }

    fn memory(&self) -> &Arc<Mapping> {
        self.region.memory()
    }

    fn offset(&self, buffer: u32) -> usize {
        buffer as usize * STRIDE
    }
}

impl std::fmt::Debug for Receives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Receives({} of {} posted)", self.count as usize - self.idle.len(), self.count)
    }
}
