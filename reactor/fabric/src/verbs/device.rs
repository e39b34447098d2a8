//! What a fabric has at each device that it uses: a completion queue, the protection domain and
//! receive queue of accepted connections, and the memory registered for transfers of its own.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory};
use rustc_hash::FxHashMap;

use super::asynchronous::Watch;
use super::cm::CmId;
use super::objects::{
    CompletionQueue, Context, Domain, Exposure, Region, SharedReceiveQueue, failed,
};
use super::receive::{Queue, Receives};
use crate::FabricError;

/// Entries of a completion queue that is new.
const COMPLETIONS_FIRST: u32 = 4096;
/// `IBV_DEVICE_MEM_WINDOW_TYPE_2A` and `2B` of verbs.h.
const TYPE_2_WINDOWS: u32 = 1 << 23 | 1 << 24;

/// Memory that is the local side of transfers, in one protection domain.
#[derive(Debug)]
pub(super) struct LocalMemory {
    domain: Rc<Domain>,
    /// By first address.
    regions: FxHashMap<usize, Region>,
}

impl LocalMemory {
    pub(super) fn new(domain: Rc<Domain>) -> LocalMemory {
        LocalMemory { domain, regions: FxHashMap::default() }
    }

    /// Registers a mapping, if it is not registered yet; its key.
    pub(super) fn add(&mut self, memory: &Arc<Mapping>) -> Result<u32, FabricError> {
        let base = memory.base().addr();
        if let Some(region) = self.regions.get(&base) {
            return Ok(region.local_key());
        }
        // Whatever nobody else holds any more can be used by nobody.
        self.regions.retain(|_, region| Arc::strong_count(region.memory()) > 1);
        let region = Region::new(&self.domain, memory, Exposure::Local)?;
        let key = region.local_key();
        self.regions.insert(base, region);
        Ok(key)
    }

    /// The key under which the device knows memory.
    #[inline]
    pub(super) fn key(&mut self, memory: &Memory) -> Result<u32, FabricError> {
        let mapping = match memory {
            Memory::Buffer(buffer) => buffer.mapping(),
            Memory::Shared(slice) => slice.mapping(),
        };
        self.add(mapping)
    }
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceLimits {
    pub(super) sends_max: u32,
    pub(super) completions_max: u32,
    pub(super) shared_receives_max: u32,
    /// RDMA READs that a queue pair can have outstanding, and can serve.
    pub(super) reads_initiated: u8,
    pub(super) reads_served: u8,
    pub(super) windows: bool,
}

impl DeviceLimits {
    pub(super) fn of(context: Context) -> io::Result<DeviceLimits> {
        let found = context.attributes()?;
        let positive = |value: i32| u32::try_from(value).unwrap_or(0);
        let depth = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
        Ok(DeviceLimits {
            sends_max: positive(found.max_qp_wr),
            completions_max: positive(found.max_cqe),
            shared_receives_max: positive(found.max_srq_wr),
            reads_initiated: depth(found.max_qp_init_rd_atom),
            reads_served: depth(found.max_qp_rd_atom),
            windows: found.device_cap_flags & TYPE_2_WINDOWS != 0,
        })
    }
}

/// One device. Fields are dropped in this order: see [`super::objects`].
#[derive(Debug)]
pub(super) struct Device {
    pub(super) context: Context,
    pub(super) name: String,
    pub(super) limits: DeviceLimits,
    /// Of accepted connections; made for the first one.
    pub(super) receives: Option<Receives>,
    pub(super) completions: CompletionQueue,
    /// Entries that the queues of all connections may produce at a time.
    completions_reserved: u32,
    /// Memory for transfers on accepted connections.
    pub(super) memory: LocalMemory,
    pub(super) domain: Rc<Domain>,
    /// Asynchronous events of this fabric's queue pairs.
    pub(super) watch: Watch,
    /// An id that does nothing: because of it the device stays open until the rest is gone, and its
    /// removal is told also while there is no connection.
    _keeper: CmId,
}

impl Device {
    /// `keeper` is bound to the device.
    pub(super) fn open(context: Context, keeper: CmId) -> Result<Device, FabricError> {
        let name = context.name();
        let what = |what: &str| format!("{what} of RDMA device {name}");
        let limits = DeviceLimits::of(context)
            .map_err(|error| failed(what("asking for the limits"), error))?;
        let domain = Domain::new(context)
            .map_err(|error| failed(what("making a protection domain"), error))?;
        let entries = COMPLETIONS_FIRST.min(limits.completions_max);
        let completions = CompletionQueue::new(context, entries)
            .map_err(|error| failed(what("making a completion queue"), error))?;
        let watch = Watch::new(context)
            .map_err(|error| failed(what("watching the asynchronous events"), error))?;
        Ok(Device {
            context,
            limits,
            receives: None,
            completions,
            completions_reserved: 0,
            memory: LocalMemory::new(Rc::clone(&domain)),
            domain,
            watch,
            _keeper: keeper,
            name,
        })
    }

    /// Makes sure that the completion queue has room for `entries` more; to be given back with
    /// `release_completions`.
    pub(super) fn reserve_completions(&mut self, entries: u32) -> Result<(), FabricError> {
        let needed = self.completions_reserved + entries;
        if needed > self.completions.capacity() {
            let limit = self.limits.completions_max;
            if needed > limit {
                let what = "completion queue entries of the RDMA device, which all its \
                            connections share";
                return Err(FabricError::Limit { what, limit: limit as usize });
            }
            self.completions.resize(needed.saturating_mul(2).min(limit)).map_err(|error| {
                failed(format!("growing the completion queue of RDMA device {}", self.name), error)
            })?;
        }
        self.completions_reserved = needed;
        Ok(())
    }

    pub(super) fn release_completions(&mut self, entries: u32) {
        self.completions_reserved -= entries;
    }

    /// Makes the receive queue of accepted connections, if there is none yet.
    pub(super) fn share_receives(&mut self, wanted: u32, tag: u64) -> Result<(), FabricError> {
        if self.receives.is_some() {
            return Ok(());
        }
        let entries = wanted.min(self.limits.shared_receives_max);
        self.reserve_completions(entries)?;
        let receives = self.make_shared_receives(entries, tag);
        if receives.is_err() {
            self.release_completions(entries);
        }
        self.receives = Some(receives?);
        Ok(())
    }

    fn make_shared_receives(&self, entries: u32, tag: u64) -> Result<Receives, FabricError> {
        let queue = SharedReceiveQueue::new(&self.domain, entries).map_err(|error| {
            failed(format!("making a shared receive queue of RDMA device {}", self.name), error)
        })?;
        let mut receives = Receives::new(&self.domain, Queue::Shared(queue), entries, tag)?;
        receives.post().map_err(|error| {
            failed(format!("posting receives to RDMA device {}", self.name), error)
        })?;
        Ok(receives)
    }
}
