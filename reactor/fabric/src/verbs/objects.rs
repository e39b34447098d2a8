//! Verbs objects that free themselves.
//!
//! Each type owns one object of libibverbs and destroys it when dropped. The order in which they
//! must go is kept by their users: regions, windows and queue pairs before their domain, queue
//! pairs before their completion queue. What a device context points to belongs to librdmacm,
//! which keeps it open as long as the process lives or, once the device is removed, as long as a
//! connection id of that device does. Each fabric has such an id per device: see
//! [`super::device::Device`].

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use gannet_runtime::memory::Mapping;
use libc::c_int;
use rdma_sys as rdma;

use crate::{Access, FabricError};

/// Turns what most of libibverbs returns, an error number or 0, into a result.
pub(super) fn checked(returned: c_int) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        error if error > 0 => Err(io::Error::from_raw_os_error(error)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What was tried, with the reason for its failure.
pub(super) fn failed(what: impl Into<String>, source: io::Error) -> FabricError {
    FabricError::System { what: what.into(), source }
}

/// Lets reads of a descriptor return at once when there is nothing.
pub(super) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(descriptor)?;
    Ok(rustix::fs::fcntl_setfl(descriptor, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// An open device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Context(NonNull<rdma::ibv_context>);

impl Context {
    /// `None` for the null pointer.
    pub(super) fn new(context: *mut rdma::ibv_context) -> Option<Context> {
        NonNull::new(context).map(Context)
    }

    /// Every device that the connection manager can use.
    pub(super) fn all() -> Vec<Context> {
        let mut count = 0;
        // SAFETY: the library fills in the count; the list is freed below.
        let list = unsafe { rdma::rdma_get_devices(&raw mut count) };
        if list.is_null() {
            return Vec::new();
        }
        let contexts = (0..usize::try_from(count).unwrap_or(0))
            .filter_map(|at| {
                // SAFETY: the list has `count` entries.
                let context = unsafe { *list.wrapping_add(at) };
                Context::new(context)
            })
            .collect();
        // SAFETY: from rdma_get_devices, and not used any more.
        unsafe { rdma::rdma_free_devices(list) };
        contexts
    }

    /// Lets librdmacm close the devices that are gone and that nobody uses any more. Drivers that
    /// cannot take a device from under its users, as that of soft-RoCE, wait for that. It looks
    /// at its devices only when asked for them, and only if there still is one: the last such
    /// device goes when the process ends.
    pub(super) fn close_removed() {
        let _present = Context::all();
    }

    pub(super) fn as_ptr(self) -> *mut rdma::ibv_context {
        self.0.as_ptr()
    }

    /// The device's name, such as `mlx5_0`.
    pub(super) fn name(self) -> String {
        // SAFETY: an open device (see the module).
        let device = unsafe { (*self.as_ptr()).device };
        // SAFETY: as above; the name is part of the device.
        let name = unsafe { rdma::ibv_get_device_name(device) };
        if name.is_null() {
            return "an unnamed device".to_owned();
        }
        // SAFETY: a string of the library, closed by NUL.
        let name = unsafe { CStr::from_ptr(name) };
        name.to_string_lossy().into_owned()
    }

    /// Where asynchronous events are announced.
    pub(super) fn event_descriptor(self) -> BorrowedFd<'static> {
        // SAFETY: an open device (see the module).
        let descriptor = unsafe { (*self.as_ptr()).async_fd };
        // SAFETY: open as long as the device is; users stop watching it when the device goes.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }

    /// Limits and features.
    pub(super) fn attributes(self) -> io::Result<rdma::ibv_device_attr> {
        // SAFETY: plain numbers, for which zero is valid; the call fills them in.
        let mut attributes = unsafe { std::mem::zeroed::<rdma::ibv_device_attr>() };
        // SAFETY: an open device (see the module) and a place to write to.
        checked(unsafe { rdma::ibv_query_device(self.as_ptr(), &raw mut attributes) })?;
        Ok(attributes)
    }
}

/// A protection domain: what is registered in it can be used by its queue pairs only.
#[derive(Debug)]
pub(super) struct Domain {
    domain: NonNull<rdma::ibv_pd>,
}

impl Domain {
    pub(super) fn new(context: Context) -> io::Result<Rc<Domain>> {
        // SAFETY: an open device (see the module).
        let domain = unsafe { rdma::ibv_alloc_pd(context.as_ptr()) };
        let domain = NonNull::new(domain).ok_or_else(io::Error::last_os_error)?;
        Ok(Rc::new(Domain { domain }))
    }

    pub(super) fn as_ptr(&self) -> *mut rdma::ibv_pd {
        self.domain.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; everything made in it holds a reference, so it is empty.
        unsafe { rdma::ibv_dealloc_pd(self.as_ptr()) };
    }
}

/// How a region may be used besides as the local side of transfers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exposure {
    /// Not at all.
    Local,
    /// By the peers of the domain's connections.
    Remote(Access),
    /// Through windows.
    Windows,
}

/// Memory that is pinned and known to a device.
#[derive(Debug)]
pub(super) struct Region {
    region: NonNull<rdma::ibv_mr>,
    local_key: u32,
    remote_key: u32,
    memory: Arc<Mapping>,
    _domain: Rc<Domain>,
}

impl Region {
    /// Registers all of `memory`.
    ///
    /// # Errors
    /// `LockedMemory` when the process may not pin so much; `System` for any other reason.
    pub(super) fn new(
        domain: &Rc<Domain>,
        memory: &Arc<Mapping>,
        exposure: Exposure,
    ) -> Result<Region, FabricError> {
        use rdma::ibv_access_flags as flags;
        let mut access = flags::IBV_ACCESS_LOCAL_WRITE;
        match exposure {
            Exposure::Local => {}
            Exposure::Remote(rights) => access |= remote_flags(rights),
            Exposure::Windows => access |= flags::IBV_ACCESS_MW_BIND,
        }
        let (base, len_bytes) = (memory.base().cast(), memory.len());
        // SAFETY: the mapping is live, and stays so as long as the region, which holds it.
        let region =
            unsafe { rdma::ibv_reg_mr(domain.as_ptr(), base, len_bytes, access.0 as c_int) };
        let Some(region) = NonNull::new(region) else {
            return Err(not_registered(len_bytes as u64, io::Error::last_os_error()));
        };
        // SAFETY: just made.
        let local_key = unsafe { (*region.as_ptr()).lkey };
        // SAFETY: just made.
        let remote_key = unsafe { (*region.as_ptr()).rkey };
        let (memory, domain) = (Arc::clone(memory), Rc::clone(domain));
        Ok(Region { region, local_key, remote_key, memory, _domain: domain })
    }

    pub(super) fn local_key(&self) -> u32 {
        self.local_key
    }

    pub(super) fn remote_key(&self) -> u32 {
        self.remote_key
    }

    pub(super) fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    pub(super) fn as_ptr(&self) -> *mut rdma::ibv_mr {
        self.region.as_ptr()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered by `new`. The device is done with it when this returns.
        unsafe { rdma::ibv_dereg_mr(self.as_ptr()) };
    }
}

/// The device's names of rights.
pub(super) fn remote_flags(access: Access) -> rdma::ibv_access_flags {
    use rdma::ibv_access_flags as flags;
    let read = if access.remote_read { flags::IBV_ACCESS_REMOTE_READ.0 } else { 0 };
    let write = if access.remote_write { flags::IBV_ACCESS_REMOTE_WRITE.0 } else { 0 };
    rdma::ibv_access_flags(read | write)
}

fn not_registered(len_bytes: u64, source: io::Error) -> FabricError {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match (source.raw_os_error(), limit) {
        (Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN), Some(limit_bytes)) => {
            FabricError::LockedMemory { len_bytes, limit_bytes }
        }
        _ => failed(format!("registering {len_bytes} bytes of memory with the device"), source),
    }
}

/// A type-2 memory window: a key for part of a region, bound and invalidated by work requests.
#[derive(Debug)]
pub(super) struct Window {
    window: NonNull<rdma::ibv_mw>,
    /// The key of the last binding, or the one it was made with.
    key: u32,
    _domain: Rc<Domain>,
}

impl Window {
    pub(super) fn new(domain: &Rc<Domain>) -> io::Result<Window> {
        let kind = rdma::ibv_mw_type::IBV_MW_TYPE_2;
        // SAFETY: a live domain.
        let window = unsafe { rdma::ibv_alloc_mw(domain.as_ptr(), kind) };
        let window = window.and_then(NonNull::new).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: just made.
        let key = unsafe { (*window.as_ptr()).rkey };
        Ok(Window { window, key, _domain: Rc::clone(domain) })
    }

    /// The key for the next binding: only its lowest byte is the user's to choose. Asked for when
    /// the last binding is over: the device takes a binding for one that it does not know unless
    /// it is told the last key.
    pub(super) fn next_key(&mut self) -> u32 {
        // SAFETY: a live window, which nothing else refers to.
        unsafe { (*self.as_ptr()).rkey = self.key };
        self.key = (self.key & !0xff) | (self.key.wrapping_add(1) & 0xff);
        self.key
    }

    pub(super) fn as_ptr(&self) -> *mut rdma::ibv_mw {
        self.window.as_ptr()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nothing reaches memory through it when this returns.
        unsafe { rdma::ibv_dealloc_mw(self.as_ptr()) };
    }
}

/// A completion queue and the channel that announces its entries.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    queue: NonNull<rdma::ibv_cq>,
    channel: NonNull<rdma::ibv_comp_channel>,
}

impl CompletionQueue {
    pub(super) fn new(context: Context, entries: u32) -> io::Result<CompletionQueue> {
        // SAFETY: an open device (see the module).
        let channel = unsafe { rdma::ibv_create_comp_channel(context.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(io::Error::last_os_error)?;
        let (entries, no_context) = (entries as c_int, ptr::null_mut());
        // SAFETY: an open device, and the channel just made on it.
        let queue = unsafe {
            rdma::ibv_create_cq(context.as_ptr(), entries, no_context, channel.as_ptr(), 0)
        };
        let Some(queue) = NonNull::new(queue) else {
            let error = io::Error::last_os_error();
            // SAFETY: made above, and used by nothing.
            unsafe { rdma::ibv_destroy_comp_channel(channel.as_ptr()) };
            return Err(error);
        };
        let made = CompletionQueue { queue, channel };
        set_nonblocking(made.descriptor())?;
        Ok(made)
    }

    pub(super) fn as_ptr(&self) -> *mut rdma::ibv_cq {
        self.queue.as_ptr()
    }

    /// Becomes readable after `request_notice` when an entry arrives.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: a live channel.
        let descriptor = unsafe { (*self.channel.as_ptr()).fd };
        // SAFETY: open as long as the channel, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }

    /// Number of entries that it can hold.
    pub(super) fn capacity(&self) -> u32 {
        // SAFETY: a live queue.
        unsafe { (*self.as_ptr()).cqe as u32 }
    }

    pub(super) fn resize(&mut self, entries: u32) -> io::Result<()> {
        // SAFETY: a live queue.
        checked(unsafe { rdma::ibv_resize_cq(self.as_ptr(), entries as c_int) })
    }

    /// Takes entries out; how many.
    #[inline]
    pub(super) fn poll(&self, into: &mut [Completion; POLL_BATCH]) -> usize {
        let (room, into) = (into.len() as c_int, into.as_mut_ptr().cast());
        // SAFETY: a live queue, and room for that many entries, of which `Completion` is the only
        // field.
        let taken = unsafe { rdma::ibv_poll_cq(self.as_ptr(), room, into) };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Asks for a notice of the next entry.
    pub(super) fn request_notice(&self) {
        // SAFETY: a live queue.
        unsafe { rdma::ibv_req_notify_cq(self.as_ptr(), 0) };
    }

    /// Takes notices out of the channel.
    pub(super) fn take_notices(&self) {
        let mut taken = 0;
        loop {
            let (mut queue, mut user) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: a live channel that does not block, and places to write to.
            let returned = unsafe {
                rdma::ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut user)
            };
            if returned != 0 {
                break;
            }
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: as many as were taken of this queue, which is the channel's only one.
            unsafe { rdma::ibv_ack_cq_events(self.as_ptr(), taken) };
        }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        self.take_notices();
        // SAFETY: made by `new`, its notices acknowledged, and its queue pairs are gone.
        unsafe { rdma::ibv_destroy_cq(self.as_ptr()) };
        // SAFETY: made by `new`, and its queue is gone.
        unsafe { rdma::ibv_destroy_comp_channel(self.channel.as_ptr()) };
    }
}

/// Entries taken from a completion queue at once.
pub(super) const POLL_BATCH: usize = 32;

/// An entry of a completion queue.
#[repr(transparent)]
pub(super) struct Completion(pub(super) rdma::ibv_wc);

impl Completion {
    /// Room for a batch.
    pub(super) fn batch() -> Box<[Completion; POLL_BATCH]> {
        // SAFETY: plain numbers, for which zero is valid.
        Box::new(std::array::from_fn(|_| Completion(unsafe { std::mem::zeroed() })))
    }
}

/// A shared receive queue.
#[derive(Debug)]
pub(super) struct SharedReceiveQueue {
    queue: NonNull<rdma::ibv_srq>,
    _domain: Rc<Domain>,
}

impl SharedReceiveQueue {
    pub(super) fn new(domain: &Rc<Domain>, entries: u32) -> io::Result<SharedReceiveQueue> {
        let attr = rdma::ibv_srq_attr { max_wr: entries, max_sge: 1, srq_limit: 0 };
        let mut attributes = rdma::ibv_srq_init_attr { srq_context: ptr::null_mut(), attr };
        // SAFETY: a live domain, and attributes that the call may update.
        let queue = unsafe { rdma::ibv_create_srq(domain.as_ptr(), &raw mut attributes) };
        let queue = NonNull::new(queue).ok_or_else(io::Error::last_os_error)?;
        Ok(SharedReceiveQueue { queue, _domain: Rc::clone(domain) })
    }

    pub(super) fn as_ptr(&self) -> *mut rdma::ibv_srq {
        self.queue.as_ptr()
    }
}

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and its queue pairs are gone.
        unsafe { rdma::ibv_destroy_srq(self.as_ptr()) };
    }
}
