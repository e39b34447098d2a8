//! The send queue of a connection: what is posted and not complete yet, and what leaves with the
//! next doorbell.
//!
//! Work requests are collected and posted as one chain. Only the last of a chain asks for a
//! completion, and those whose completion somebody waits for; since a queue pair completes in
//! order, an entry of the completion queue tells that everything before it succeeded. The number of
//! requests outstanding is bounded here, so that the device's queue never overflows.

use std::collections::VecDeque;
use std::ptr;
use std::rc::Rc;

use gannet_runtime::memory::{Mapping, Memory};
use rdma_sys as rdma;
use rdma_sys::ibv_wr_opcode as opcodes;

use super::objects::{Domain, Exposure, Region, checked, failed, remote_flags};
use super::wire::{FRAME_BYTES_MAX, HEADER_BYTES, Header, Kind};
use crate::credits::Class;
use crate::{Access, FabricError, RemoteSlice, SMALL_MESSAGE_BYTES};

const SIGNALED: u32 = rdma::ibv_send_flags::IBV_SEND_SIGNALED.0;
const INLINE: u32 = rdma::ibv_send_flags::IBV_SEND_INLINE.0;

const SMALL_STRIDE: usize = (HEADER_BYTES + SMALL_MESSAGE_BYTES).next_multiple_of(64);
const LARGE_STRIDE: usize = FRAME_BYTES_MAX.next_multiple_of(64);
/// Requests, and buffers of the small class, kept for credits, the goodbye and the marker at the
/// end.
pub(super) const RESERVE: usize = 4;
/// What of it credits leave: to the goodbye and the marker.
const RESERVE_OF_END: usize = 2;

/// A request that was made, from then until its completion.
#[derive(Debug)]
pub(super) enum Work {
    /// A message; its buffer.
    Message { class: Class, buffer: u32 },
    /// A read or write, with what its user gets back.
    Transfer { token: u64, memory: Memory },
    /// Opens the window with this key.
    Bind { key: u32 },
    /// Closes the window with this key.
    Invalidate { key: u32 },
    /// Marks the end of a broken queue pair's requests.
    Marker,
}

/// What a queue is made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendLimits {
    /// Requests that the queue pair takes.
    pub(super) depth: usize,
    /// Messages of the small class that may wait for their completion.
    pub(super) small_buffers: u16,
    /// The same for the large class.
    pub(super) large_buffers: u16,
}

/// See the module.
pub(super) struct SendQueue {
    depth: usize,
    /// Oldest first; those at the end are in `requests`.
    works: VecDeque<Work>,
    /// Number of the oldest work.
    first: u32,
    /// Works that were set aside when the queue pair broke.
    lost: VecDeque<Work>,
    /// What every request's name has besides its number.
    tag: u64,
    /// To be posted. The pointers are set when it is.
    requests: Vec<rdma::ibv_send_wr>,
    ranges: Vec<rdma::ibv_sge>,
    /// Longest message that the device takes by value.
    inline_bytes_max: u32,
    /// Messages, until they are complete.
    buffers: Region,
    free_small: Vec<u32>,
    free_large: Vec<u32>,
    large_offset: usize,
    /// Transfers among the works.
    transfers: usize,
}

impl SendQueue {
    pub(super) fn new(
        domain: &Rc<Domain>,
        limits: SendLimits,
        tag: u64,
    ) -> Result<SendQueue, FabricError> {
        let small = u32::from(limits.small_buffers) + RESERVE as u32;
        let large = u32::from(limits.large_buffers);
        let large_offset = small as usize * SMALL_STRIDE;
        let memory = Mapping::anonymous(large_offset + large as usize * LARGE_STRIDE)
            .map_err(|source| failed("mapping send buffers", source))?;
        Ok(SendQueue {
            depth: limits.depth,
            works: VecDeque::with_capacity(limits.depth),
            first: 0,
            lost: VecDeque::new(),
            tag,
            requests: Vec::with_capacity(limits.depth),
            ranges: Vec::with_capacity(limits.depth),
            inline_bytes_max: 0,
            buffers: Region::new(domain, &memory, Exposure::Local)?,
            free_small: (0..small).rev().collect(),
            free_large: (0..large).rev().collect(),
            large_offset,
            transfers: 0,
        })
    }

    /// What the device said when the queue pair was made.
    pub(super) fn set_inline_bytes_max(&mut self, bytes: u32) {
        self.inline_bytes_max = bytes;
    }

    /// Reads and writes that are not complete.
    pub(super) fn transfers(&self) -> usize {
        self.transfers
    }

    /// Whether nothing is outstanding, nor waits to be posted.
    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// Whether something waits for a doorbell.
    pub(super) fn has_unposted(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether the queue has room for one more request of a user.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.works.len() + RESERVE < self.depth
    }

    /// Whether a message of this class could be pushed.
    #[inline]
    pub(super) fn has_buffer(&self, class: Class) -> bool {
        match class {
            Class::Small => self.free_small.len() > RESERVE,
            Class::Large => !self.free_large.is_empty(),
        }
    }

    /// Whether a message that takes no credit could be pushed, with something left for the end.
    pub(super) fn has_room_in_reserve(&self) -> bool {
        self.works.len() + RESERVE_OF_END < self.depth && self.free_small.len() > RESERVE_OF_END
    }

    /// Pushes a message. The caller has asked `has_room` and `has_buffer`, or sends what the
    /// reserve is for; `false` if there is nothing left even so.
    #[inline]
    pub(super) fn push_message(&mut self, header: Header, body: &[u8]) -> bool {
        let class = match header.kind {
            Kind::Message(class) => class,
            Kind::Credits | Kind::Goodbye => Class::Small,
        };
        if self.works.len() == self.depth {
            return false;
        }
        let (free, start, stride) = match class {
            Class::Small => (&mut self.free_small, 0, SMALL_STRIDE),
            Class::Large => (&mut self.free_large, self.large_offset, LARGE_STRIDE),
        };
        let Some(buffer) = free.pop() else { return false };
        let offset = start + buffer as usize * stride;
        let memory = self.buffers.memory();
        memory.copy_in(offset, &header.encode());
        memory.copy_in(offset + HEADER_BYTES, body);
        let length = (HEADER_BYTES + body.len()) as u32;
        let range = rdma::ibv_sge {
            addr: memory.base().addr() as u64 + offset as u64,
            length,
            lkey: self.buffers.local_key(),
        };
        let inline = if length <= self.inline_bytes_max { INLINE } else { 0 };
        let request = request(opcodes::IBV_WR_SEND, inline);
        self.push(Work::Message { class, buffer }, request, Some(range));
        true
    }

    /// Pushes a read or write; the caller has checked room and ranges.
    #[inline]
    pub(super) fn push_transfer(
        &mut self,
        writes: bool,
        token: u64,
        memory: Memory,
        offset: usize,
        local_key: u32,
        remote: RemoteSlice,
    ) {
        let (opcode, flags) = if writes {
            (opcodes::IBV_WR_RDMA_WRITE, 0)
        } else {
            // What was read is waited for.
            (opcodes::IBV_WR_RDMA_READ, SIGNALED)
        };
        let mut request = request(opcode, flags);
        request.wr.rdma = rdma::rdma_t { remote_addr: remote.address, rkey: remote.key.0 };
        let range = (remote.len_bytes > 0).then(|| rdma::ibv_sge {
            addr: memory.as_ptr().addr() as u64 + offset as u64,
            length: remote.len_bytes,
            lkey: local_key,
        });
        self.transfers += 1;
        self.push(Work::Transfer { token, memory }, request, range);
    }

    /// Pushes the binding of a window to part of a region.
    pub(super) fn push_bind(
        &mut self,
        window: *mut rdma::ibv_mw,
        key: u32,
        region: &Region,
        address: u64,
        len_bytes: u64,
        access: Access,
    ) {
        let mut request = request(opcodes::IBV_WR_BIND_MW, SIGNALED);
        request.bind_mw_tso_union.bind_mw = rdma::bind_mw_t {
            mw: window,
            rkey: key,
            bind_info: rdma::ibv_mw_bind_info {
                mr: region.as_ptr(),
                addr: address,
                length: len_bytes,
                mw_access_flags: remote_flags(access).0,
            },
        };
        self.push(Work::Bind { key }, request, None);
    }

    /// Pushes the invalidation of a window.
    pub(super) fn push_invalidate(&mut self, key: u32) {
        let mut request = request(opcodes::IBV_WR_LOCAL_INV, SIGNALED);
        request.imm_data_invalidated_rkey_union.invalidated_rkey = key;
        self.push(Work::Invalidate { key }, request, None);
    }

    /// Pushes the marker behind which a broken queue pair has no more requests; `false` if there is
    /// no room.
    pub(super) fn push_marker(&mut self) -> bool {
        if self.works.len() == self.depth {
            return false;
        }
        let request = request(opcodes::IBV_WR_RDMA_WRITE, SIGNALED);
        self.push(Work::Marker, request, None);
        true
    }

    #[inline]
    fn push(&mut self, work: Work, mut request: rdma::ibv_send_wr, range: Option<rdma::ibv_sge>) {
        request.wr_id = self.tag | u64::from(self.first.wrapping_add(self.works.len() as u32));
        request.num_sge = i32::from(range.is_some());
        self.works.push_back(work);
        self.requests.push(request);
        self.ranges.push(range.unwrap_or(rdma::ibv_sge { addr: 0, length: 0, lkey: 0 }));
    }

    /// Posts what was pushed as one chain: one doorbell.
    ///
    /// # Errors
    /// What the device says. Some of the chain may have been posted; the queue pair is of no use
    /// then.
    pub(super) fn post(&mut self, pair: *mut rdma::ibv_qp) -> std::io::Result<()> {
        let count = self.requests.len();
        if count == 0 {
            return Ok(());
        }
        let (first, ranges) = (self.requests.as_mut_ptr(), self.ranges.as_mut_ptr());
        for (at, request) in self.requests.iter_mut().enumerate() {
            request.sg_list = ranges.wrapping_add(at);
            request.next = ptr::null_mut();
            if at + 1 < count {
                request.next = first.wrapping_add(at + 1);
            } else {
                request.send_flags |= SIGNALED;
            }
        }
        let mut refused = ptr::null_mut();
        // SAFETY: a live queue pair; the chain and its ranges outlive the call. The memory that
        // they name belongs to the works, which are kept until their completion.
        let returned = unsafe { rdma::ibv_post_send(pair, first, &raw mut refused) };
        let result = checked(returned);
        let posted = match &result {
            Ok(()) => count,
            // A device that takes requests and then fails names none of them.
            Err(_) if refused.is_null() => count,
            Err(_) => (refused.addr() - first.addr()) / size_of::<rdma::ibv_send_wr>(),
        };
        self.requests.drain(..posted.min(count));
        self.ranges.drain(..posted.min(count));
        result
    }

    /// The work that a completion with this number is about, after `done` was called with each one
    /// before it, all of which succeeded. `None` if there is no such work.
    #[inline]
    pub(super) fn complete(&mut self, number: u32, mut done: impl FnMut(Work)) -> Option<Work> {
        let before = number.wrapping_sub(self.first) as usize;
        if before >= self.works.len() - self.requests.len() {
            return None;
        }
        for _ in 0..before {
            if let Some(work) = self.take_oldest() {
                done(work);
            }
        }
        self.take_oldest()
    }

    fn take_oldest(&mut self) -> Option<Work> {
        let work = self.works.pop_front()?;
        self.first = self.first.wrapping_add(1);
        match &work {
            Work::Message { class: Class::Small, buffer } => self.free_small.push(*buffer),
            Work::Message { class: Class::Large, buffer } => self.free_large.push(*buffer),
            Work::Transfer { .. } => self.transfers -= 1,
            Work::Bind { .. } | Work::Invalidate { .. } | Work::Marker => {}
        }
        Some(work)
    }

    /// Sets aside what was pushed and not posted, for the end of a queue pair; `take_lost` takes it.
    pub(super) fn abandon_unposted(&mut self) {
        let posted = self.works.len() - self.requests.len();
        self.requests.clear();
        self.ranges.clear();
        self.lost.extend(self.works.drain(posted..));
    }

    /// Takes the oldest work of those that no completion will come for any more.
    pub(super) fn take_lost(&mut self) -> Option<Work> {
        self.take_oldest().or_else(|| {
            let work = self.lost.pop_front()?;
            self.transfers -= usize::from(matches!(work, Work::Transfer { .. }));
            Some(work)
        })
    }
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SendQueue({} of {}, {} unposted)",
            self.works.len(),
            self.depth,
            self.requests.len()
        )
    }
}

#[inline]
fn request(opcode: rdma::ibv_wr_opcode::Type, flags: u32) -> rdma::ibv_send_wr {
    // SAFETY: numbers and pointers, for which zero is valid.
    let mut request = unsafe { std::mem::zeroed::<rdma::ibv_send_wr>() };
    request.opcode = opcode;
    request.send_flags = flags;
    request
}
