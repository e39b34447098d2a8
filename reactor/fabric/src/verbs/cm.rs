//! The connection manager: connection ids, and the events about them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use libc::c_int;
use rdma_sys as rdma;
use rdma_sys::rdma_cm_event_type as events;

use super::objects::{Context, checked, set_nonblocking};
use crate::FabricError;

/// Longest private data that the manager carries for reliable connections.
const PRIVATE_BYTES_MAX: usize = 56;
/// How often the device sends an unacknowledged packet again. Not 7, the most that there is: the
/// driver of soft-RoCE takes that for ever.
const RETRIES: u8 = 6;
/// Connections that may wait to be accepted.
const BACKLOG: c_int = 128;
/// `RDMA_OPTION_ID` and `RDMA_OPTION_ID_ACK_TIMEOUT` of rdma_cma.h.
const OPTION_LEVEL_ID: c_int = 0;
const OPTION_ACK_TIMEOUT: c_int = 3;

/// Where the manager's events come in.
#[derive(Debug)]
pub(super) struct EventChannel(NonNull<rdma::rdma_event_channel>);

impl EventChannel {
    pub(super) fn new() -> Result<EventChannel, FabricError> {
        // SAFETY: no arguments; fails without the kernel's part of the connection manager.
        let channel = unsafe { rdma::rdma_create_event_channel() };
        let Some(channel) = NonNull::new(channel) else {
            let error = io::Error::last_os_error();
            return Err(FabricError::Missing(format!(
                "the RDMA connection manager cannot be used ({error}): load the kernel module \
                 rdma_ucm and make /dev/infiniband/rdma_cm accessible; `gannet doctor --rdma` tells \
                 what is missing"
            )));
        };
        let channel = EventChannel(channel);
        set_nonblocking(channel.descriptor())
            .map_err(|error| super::objects::failed("setting up the event channel", error))?;
        Ok(channel)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: a live channel.
        let descriptor = unsafe { (*self.0.as_ptr()).fd };
        // SAFETY: open as long as the channel, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }

    /// The next event, if there is one.
    pub(super) fn next(&self) -> Option<CmEvent> {
        let mut event = ptr::null_mut();
        // SAFETY: a live channel that does not block, and a place to write to.
        let returned = unsafe { rdma::rdma_get_cm_event(self.0.as_ptr(), &raw mut event) };
        if returned != 0 {
            return None;
        }
        let copied = CmEvent::copy_of(event);
        // SAFETY: the event just taken, of which nothing is used any more.
        unsafe { rdma::rdma_ack_cm_event(event) };
        Some(copied)
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: made by `new`; its ids are gone before it.
        unsafe { rdma::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CmEventKind {
    AddressResolved,
    RouteResolved,
    /// A peer asks for a connection, with this new id.
    Request,
    Established,
    /// A step of making a connection failed.
    Failed,
    /// The peer, or the manager there, said no.
    Rejected,
    Disconnected,
    DeviceRemoved,
    /// Nothing to be done about it.
    Other,
}

/// A copy of an event.
#[derive(Debug)]
pub(super) struct CmEvent {
    pub(super) kind: CmEventKind,
    /// The user's word of the id that the event is about; for a request, of the listener.
    pub(super) user: u64,
    /// The new id of a request.
    request: *mut rdma::rdma_cm_id,
    private: [u8; PRIVATE_BYTES_MAX],
    private_bytes: usize,
    /// RDMA READs that the receiver of the event may have outstanding, and has to serve.
    pub(super) reads: ReadDepths,
}

impl CmEvent {
    fn copy_of(event: *mut rdma::rdma_cm_event) -> CmEvent {
        // SAFETY: an event that is not acknowledged yet.
        let found = unsafe { &*event };
        let kind = match found.event {
            events::RDMA_CM_EVENT_ADDR_RESOLVED => CmEventKind::AddressResolved,
            events::RDMA_CM_EVENT_ROUTE_RESOLVED => CmEventKind::RouteResolved,
            events::RDMA_CM_EVENT_CONNECT_REQUEST => CmEventKind::Request,
            events::RDMA_CM_EVENT_ESTABLISHED => CmEventKind::Established,
            events::RDMA_CM_EVENT_ADDR_ERROR
            | events::RDMA_CM_EVENT_ROUTE_ERROR
            | events::RDMA_CM_EVENT_CONNECT_ERROR
            | events::RDMA_CM_EVENT_UNREACHABLE => CmEventKind::Failed,
            events::RDMA_CM_EVENT_REJECTED => CmEventKind::Rejected,
            events::RDMA_CM_EVENT_DISCONNECTED => CmEventKind::Disconnected,
            events::RDMA_CM_EVENT_DEVICE_REMOVAL => CmEventKind::DeviceRemoved,
            _ => CmEventKind::Other,
        };
        let mut copied = CmEvent {
            kind,
            user: 0,
            request: ptr::null_mut(),
            private: [0; PRIVATE_BYTES_MAX],
            private_bytes: 0,
            reads: ReadDepths { initiates: 0, serves: 0 },
        };
        let about = if kind == CmEventKind::Request {
            copied.request = found.id;
            found.listen_id
        } else {
            found.id
        };
        // SAFETY: ids live until they are destroyed, which waits for their events.
        copied.user = unsafe { (*about).context }.addr() as u64;
        let carries = [CmEventKind::Request, CmEventKind::Established, CmEventKind::Rejected];
        if carries.contains(&kind) {
            // SAFETY: of these events, on reliable connections, the parameters are of this kind.
            let parameters = unsafe { &found.param.conn };
            copied.reads = ReadDepths {
                initiates: parameters.initiator_depth,
                serves: parameters.responder_resources,
            };
            let len = usize::from(parameters.private_data_len).min(PRIVATE_BYTES_MAX);
            if !parameters.private_data.is_null() {
                let from = parameters.private_data.cast::<u8>();
                // SAFETY: the event has that many bytes of private data.
                let bytes = unsafe { std::slice::from_raw_parts(from, len) };
                copied.private[..len].copy_from_slice(bytes);
                copied.private_bytes = len;
            }
        }
        copied
    }

    pub(super) fn private(&self) -> &[u8] {
        &self.private[..self.private_bytes]
    }

    /// The id of the connection that a request asks for. Once: whoever takes it owns it.
    pub(super) fn take_request(&mut self) -> Option<CmId> {
        let id = NonNull::new(std::mem::replace(&mut self.request, ptr::null_mut()))?;
        Some(CmId { id, has_pair: false })
    }
}

/// What a queue pair is made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct PairAttributes {
    pub(super) completions: *mut rdma::ibv_cq,
    /// Null for a receive queue of its own.
    pub(super) shared_receives: *mut rdma::ibv_srq,
    pub(super) sends: u32,
    pub(super) receives: u32,
    /// Wanted; devices may take less.
    pub(super) inline_bytes: u32,
}

/// How many RDMA READs a side can have outstanding and can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadDepths {
    pub(super) initiates: u8,
    pub(super) serves: u8,
}

/// A connection or listener of the manager, with its queue pair if it has one.
#[derive(Debug)]
pub(super) struct CmId {
    id: NonNull<rdma::rdma_cm_id>,
    has_pair: bool,
}

impl CmId {
    /// `user` comes back with the id's events.
    pub(super) fn new(channel: &EventChannel, user: u64) -> io::Result<CmId> {
        let mut id = ptr::null_mut();
        let word = ptr::without_provenance_mut(user as usize);
        let space = rdma::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: a live channel, and a place to write to.
        checked(unsafe { rdma::rdma_create_id(channel.0.as_ptr(), &raw mut id, word, space) })?;
        let id = NonNull::new(id).ok_or_else(io::Error::last_os_error)?;
        Ok(CmId { id, has_pair: false })
    }

    fn as_ptr(&self) -> *mut rdma::rdma_cm_id {
        self.id.as_ptr()
    }

    /// Changes what comes back with the id's events.
    pub(super) fn set_user(&mut self, user: u64) {
        let word = ptr::without_provenance_mut(user as usize);
        // SAFETY: a live id, which nothing else refers to.
        unsafe { (*self.as_ptr()).context = word };
    }

    /// The device, once it is known.
    pub(super) fn context(&self) -> Option<Context> {
        // SAFETY: a live id.
        Context::new(unsafe { (*self.as_ptr()).verbs })
    }

    /// The queue pair.
    #[inline]
    pub(super) fn pair(&self) -> *mut rdma::ibv_qp {
        // SAFETY: a live id.
        unsafe { (*self.as_ptr()).qp }
    }

    /// The peer's address.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        // SAFETY: a live id.
        let address = unsafe { &(*self.as_ptr()).route.addr.dst_addr_union };
        // SAFETY: the family is at the same place in every member.
        let family = c_int::from(unsafe { address.dst_addr.sa_family });
        // SAFETY: plain numbers; the family tells below whether they mean anything.
        let (v4, v6) = unsafe { (address.dst_sin, address.dst_sin6) };
        address_of(family, v4, v6)
    }

    /// This side's address.
    pub(super) fn local(&self) -> Option<IpAddr> {
        // SAFETY: a live id.
        let address = unsafe { &(*self.as_ptr()).route.addr.src_addr_union };
        // SAFETY: the family is at the same place in every member.
        let family = c_int::from(unsafe { address.src_addr.sa_family });
        // SAFETY: plain numbers; the family tells below whether they mean anything.
        let (v4, v6) = unsafe { (address.src_sin, address.src_sin6) };
        address_of(family, v4, v6)
    }

    /// The address of this machine that the id has, with no port.
    pub(super) fn own_address(&self) -> io::Result<SocketAddress> {
        // SAFETY: a live id.
        let address = unsafe { &(*self.as_ptr()).route.addr.src_addr_union };
        // SAFETY: the family is at the same place in every member.
        let family = c_int::from(unsafe { address.src_addr.sa_family });
        match family {
            libc::AF_INET => {
                // SAFETY: the member of this family.
                let address = unsafe { address.src_sin };
                Ok(SocketAddress::V4(libc::sockaddr_in { sin_port: 0, ..address }))
            }
            libc::AF_INET6 => {
                // SAFETY: the member of this family.
                let address = unsafe { address.src_sin6 };
                Ok(SocketAddress::V6(libc::sockaddr_in6 { sin6_port: 0, ..address }))
            }
            _ => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    /// Binds to an address of a device, to which the id belongs from then on.
    pub(super) fn bind(&mut self, mut at: SocketAddress) -> io::Result<()> {
        // SAFETY: a live id and an address.
        checked(unsafe { rdma::rdma_bind_addr(self.as_ptr(), at.as_mut_ptr()) })
    }

    /// Binds to an address and listens.
    pub(super) fn listen(&mut self, at: SocketAddr) -> io::Result<()> {
        self.bind(SocketAddress::of(at))?;
        // SAFETY: a live id.
        checked(unsafe { rdma::rdma_listen(self.as_ptr(), BACKLOG) })
    }

    pub(super) fn resolve_address(&mut self, to: SocketAddr, within: Duration) -> io::Result<()> {
        let mut to = SocketAddress::of(to);
        let (from, within) = (ptr::null_mut(), milliseconds(within));
        // SAFETY: a live id and an address.
        checked(unsafe { rdma::rdma_resolve_addr(self.as_ptr(), from, to.as_mut_ptr(), within) })
    }

    pub(super) fn resolve_route(&mut self, within: Duration) -> io::Result<()> {
        // SAFETY: a live id.
        checked(unsafe { rdma::rdma_resolve_route(self.as_ptr(), milliseconds(within)) })
    }

    /// Sets how long the device waits for an acknowledgement, as a power of two of 4.096 us. Older
    /// kernels do not know it, and keep their own.
    pub(super) fn set_acknowledge_timeout(&mut self, exponent: u8) {
        let (value, len) = ((&raw const exponent).cast_mut().cast(), size_of::<u8>());
        let (level, option) = (OPTION_LEVEL_ID, OPTION_ACK_TIMEOUT);
        // SAFETY: a live id, and a value of this option's size.
        unsafe { rdma::rdma_set_option(self.as_ptr(), level, option, value, len) };
    }

    /// Makes the queue pair; its number, and the longest message that it takes by value.
    pub(super) fn make_pair(
        &mut self,
        domain: *mut rdma::ibv_pd,
        wanted: PairAttributes,
    ) -> io::Result<(u32, u32)> {
        // SAFETY: numbers and pointers, for which zero is valid.
        let mut attributes = unsafe { std::mem::zeroed::<rdma::ibv_qp_init_attr>() };
        attributes.send_cq = wanted.completions;
        attributes.recv_cq = wanted.completions;
        attributes.srq = wanted.shared_receives;
        attributes.cap.max_send_wr = wanted.sends;
        attributes.cap.max_recv_wr = wanted.receives;
        attributes.cap.max_send_sge = 1;
        attributes.cap.max_recv_sge = 1;
        attributes.cap.max_inline_data = wanted.inline_bytes;
        attributes.qp_type = rdma::ibv_qp_type::IBV_QPT_RC;
        let id = self.as_ptr();
        // SAFETY: a live id, whose domain and queues are live and outlive the pair.
        checked(unsafe { rdma::rdma_create_qp(id, domain, &raw mut attributes) })?;
        self.has_pair = true;
        // SAFETY: the queue pair just made.
        let number = unsafe { (*self.pair()).qp_num };
        Ok((number, attributes.cap.max_inline_data))
    }

    pub(super) fn connect(&mut self, private: &[u8], depths: ReadDepths) -> io::Result<()> {
        let mut parameters = parameters(private, depths);
        // SAFETY: a live id with a queue pair; the parameters outlive the call.
        checked(unsafe { rdma::rdma_connect(self.as_ptr(), &raw mut parameters) })
    }

    pub(super) fn accept(&mut self, private: &[u8], depths: ReadDepths) -> io::Result<()> {
        let mut parameters = parameters(private, depths);
        // SAFETY: a live id with a queue pair; the parameters outlive the call.
        checked(unsafe { rdma::rdma_accept(self.as_ptr(), &raw mut parameters) })
    }

    /// Refuses the connection that was asked for.
    pub(super) fn reject(&mut self, private: &[u8]) {
        let (data, len) = (private.as_ptr().cast(), private.len() as u8);
        // SAFETY: a live id; the data outlives the call. The peer sees a time-out if this fails.
        unsafe { rdma::rdma_reject(self.as_ptr(), data, len) };
    }

    /// Puts the queue pair into the error state, in which it neither sends nor lets the peer do
    /// anything, and tells the peer.
    pub(super) fn disconnect(&mut self) {
        // SAFETY: a live id. It fails only if the connection is not there any more.
        unsafe { rdma::rdma_disconnect(self.as_ptr()) };
    }

    /// Lets a peer whose message found no receive entry try again soon, instead of after 0.65 s.
    pub(super) fn set_receiver_not_ready_timer(&mut self, code: u8) {
        // SAFETY: numbers, for which zero is valid.
        let mut attributes = unsafe { std::mem::zeroed::<rdma::ibv_qp_attr>() };
        attributes.min_rnr_timer = code;
        let mask = rdma::ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER.0 as c_int;
        // SAFETY: a live queue pair. Without effect the default stays, which is slow and right.
        unsafe { rdma::ibv_modify_qp(self.pair(), &raw mut attributes, mask) };
    }

    /// Puts the queue pair into the error state without telling anybody.
    pub(super) fn fail_pair(&mut self) {
        // SAFETY: numbers, for which zero is valid.
        let mut attributes = unsafe { std::mem::zeroed::<rdma::ibv_qp_attr>() };
        attributes.qp_state = rdma::ibv_qp_state::IBV_QPS_ERR;
        let mask = rdma::ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int;
        // SAFETY: a live queue pair. If it fails, the state stays.
        unsafe { rdma::ibv_modify_qp(self.pair(), &raw mut attributes, mask) };
    }

    /// Destroys the queue pair: when this returns, nothing of it touches memory any more.
    pub(super) fn destroy_pair(&mut self) {
        if self.has_pair {
            self.has_pair = false;
            // SAFETY: a live id with a queue pair.
            unsafe { rdma::rdma_destroy_qp(self.as_ptr()) };
        }
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        self.destroy_pair();
        // SAFETY: a live id, with no queue pair and no event that is not acknowledged.
        unsafe { rdma::rdma_destroy_id(self.as_ptr()) };
    }
}

fn parameters(private: &[u8], depths: ReadDepths) -> rdma::rdma_conn_param {
    rdma::rdma_conn_param {
        private_data: private.as_ptr().cast(),
        private_data_len: private.len() as u8,
        responder_resources: depths.serves,
        initiator_depth: depths.initiates,
        flow_control: 0,
        retry_count: RETRIES,
        // For ever: a receiver that is out of entries gets some as soon as it polls.
        rnr_retry_count: 7,
        srq: 0,
        qp_num: 0,
    }
}

fn milliseconds(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

fn address_of(family: c_int, v4: libc::sockaddr_in, v6: libc::sockaddr_in6) -> Option<IpAddr> {
    match family {
        libc::AF_INET => Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into()),
        libc::AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(v6.sin6_addr.s6_addr)).to_canonical()),
        _ => None,
    }
}

/// An address as the manager takes it.
#[derive(Clone, Copy)]
pub(super) enum SocketAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl SocketAddress {
    fn of(address: SocketAddr) -> SocketAddress {
        match address {
            SocketAddr::V4(address) => SocketAddress::V4(v4_of(address)),
            SocketAddr::V6(address) => SocketAddress::V6(v6_of(address)),
        }
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        match self {
            SocketAddress::V4(address) => (&raw mut *address).cast(),
            SocketAddress::V6(address) => (&raw mut *address).cast(),
        }
    }
}

fn v4_of(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

fn v6_of(address: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as u16,
        sin6_port: address.port().to_be(),
        sin6_flowinfo: address.flowinfo(),
        sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
        sin6_scope_id: address.scope_id(),
    }
}
