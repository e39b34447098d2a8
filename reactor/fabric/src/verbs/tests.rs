//! What goes on inside of the provider, on a real device: orders of events that no user of it can
//! bring about, and peers that keep to no rules.

use std::rc::Rc;
use std::time::{Duration, Instant};

use gannet_runtime::memory::Mapping;
use gannet_runtime::time::Time;
use rdma_sys as rdma;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::connection::Own;
use super::objects::{Domain, Exposure, Region, checked};
use super::wire::{Header, Kind};
use super::{VerbsFabric, VerbsOptions};
use crate::credits::Class;
use crate::{
    Access, Address, ConnectionId, DisconnectReason, Event, Events, Fabric, PostError, Registration,
};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// An event without its connection; messages as bytes.
#[derive(Debug, PartialEq)]
enum Note {
    Connected,
    Accepted,
    Message(Vec<u8>),
    Registered,
    Deregistered,
    Disconnected(DisconnectReason),
    Transferred,
}

/// A fabric and what it told.
struct End {
    fabric: VerbsFabric,
    connection: Option<ConnectionId>,
    notes: Vec<Note>,
}

impl End {
    fn new() -> End {
        End::of(VerbsOptions::default())
    }

    fn of(options: VerbsOptions) -> End {
        let fabric = VerbsFabric::new(options).expect("an RDMA device");
        End { fabric, connection: None, notes: Vec::new() }
    }

    fn id(&self) -> ConnectionId {
        self.connection.expect("connected")
    }

    fn note(&mut self, events: &mut Events) {
        while let Some(event) = events.pop() {
            let note = match event {
                Event::Accepted { connection, .. } => {
                    self.connection = Some(connection);
                    Note::Accepted
                }
                Event::Connected { connection } => {
                    self.connection = Some(connection);
                    Note::Connected
                }
                Event::Disconnected { reason, .. } => Note::Disconnected(reason),
                Event::Message { bytes, .. } => Note::Message(events.message(bytes).to_vec()),
                Event::Registered { .. } => Note::Registered,
                Event::Deregistered { .. } => Note::Deregistered,
                Event::Transferred { .. } => Note::Transferred,
            };
            self.notes.push(note);
        }
        events.clear();
    }

    fn turn(&mut self) {
        let mut events = Events::default();
        self.fabric.flush();
        self.fabric.poll(Time::monotonic(), &mut events);
        self.note(&mut events);
    }

    fn ended(&self) -> bool {
        self.notes.iter().any(|note| matches!(note, Note::Disconnected(_)))
    }

    /// Whether what a sleeper waits for becomes readable within `limit`.
    fn wakes_within(&self, limit: Duration) -> bool {
        let mut woken = false;
        self.fabric.wake_descriptors(&mut |descriptor| {
            let limit =
                Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
            let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
            woken |= rustix::event::poll(&mut polled, Some(&limit)).expect("poll") > 0;
        });
        woken
    }
}

fn until(what: &str, left: &mut End, right: &mut End, done: impl Fn(&End, &End) -> bool) {
    let start = Instant::now();
    while !done(left, right) {
        left.turn();
        right.turn();
        let late = start.elapsed() > PATIENCE;
        assert!(!late, "{what} did not happen: {:?}, {:?}", left.notes, right.notes);
    }
}

fn address(port: u16) -> Address {
    let host = std::env::var("GANNET_VM_ADDRESS").expect("the address of an RDMA device");
    Address::Rdma { host, port }
}

/// Connects `left` to `right`, and forgets what they told before.
fn connect(left: &mut End, right: &mut End, address: &Address) {
    (left.connection, right.connection) = (None, None);
    left.fabric.connect(address).expect("room");
    until("the connection", left, right, |left, right| {
        left.connection.is_some() && right.connection.is_some()
    });
    left.notes.clear();
    right.notes.clear();
}

/// Two fabrics of which the first connected to the second.
fn pair(port: u16) -> (End, End) {
    let (mut left, mut right) = (End::new(), End::new());
    right.fabric.listen(&address(port)).expect("a free address");
    connect(&mut left, &mut right, &address(port));
    (left, right)
}

/// A completion that comes behind the last look at the completion queue, while the sleeper looks at
/// the rest, wakes it.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_completion_between_two_looks_wakes() {
    let (mut left, mut right) = pair(21_001);
    let mut events = Events::default();
    right.fabric.arm();
    right.fabric.poll_completions(&mut events);
    left.fabric.send(left.id(), b"wake up").expect("a credit");
    left.fabric.flush();
    assert!(right.wakes_within(PATIENCE), "the notice of the message");
    right.fabric.service(Time::monotonic(), &mut events);
    assert!(events.is_empty(), "it has not looked at the completions since");
    assert!(right.wakes_within(Duration::from_secs(1)), "asleep with a message in the queue");
    right.fabric.disarm();
    right.turn();
    assert_eq!(right.notes, [Note::Message(b"wake up".to_vec())]);
}

/// What a user did before a poll is told before the end of the connection that the poll finds.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn the_end_of_a_connection_is_its_last_event() {
    let (mut left, _right) = pair(21_002);
    let memory = Mapping::shareable(4096).expect("memory");
    let id = left.id();
    let gone = left.fabric.register(id, &memory, Access::READ_WRITE).expect("a registration");
    left.fabric.deregister(id, gone.key);
    left.fabric.register(id, &memory, Access::READ_WRITE).expect("a registration");
    left.fabric.begin_drain(id.index, DisconnectReason::PeerLost);
    // Until its last completion is in the queue.
    left.fabric.arm();
    assert!(left.wakes_within(PATIENCE));
    let start = Instant::now();
    while !left.ended() && start.elapsed() < PATIENCE {
        left.turn();
    }
    let end = Note::Disconnected(DisconnectReason::PeerLost);
    assert_eq!(left.notes, [Note::Registered, Note::Deregistered, Note::Registered, end]);
}

/// Each of two ends that end a connection at the same time is told that it did.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn both_ends_may_end_a_connection_at_once() {
    let (mut left, mut right) = pair(21_006);
    let (to_right, to_left) = (left.id(), right.id());
    left.fabric.disconnect(to_right);
    right.fabric.disconnect(to_left);
    until("the ends", &mut left, &mut right, |left, right| left.ended() && right.ended());
    let end = [Note::Disconnected(DisconnectReason::Local)];
    assert_eq!((&left.notes[..], &right.notes[..]), (&end[..], &end[..]));
}

/// A connection whose send queue is full when credits are to be returned lives on, and returns them
/// when there is room.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn credits_wait_for_room_in_the_send_queue() {
    let (mut left, mut right) = pair(21_003);
    let (to_right, to_left) = (left.id(), right.id());
    let found = right.fabric.connection(to_left).expect("connected");
    let wiring = found.usable().expect("connected");
    // As if the device had not acknowledged any of them.
    while wiring.send.push_message(Header::new(Kind::Credits, wiring.credits.take_owed()), &[]) {}
    for _ in 0..2 {
        let mut sent = 0;
        while left.fabric.send(to_right, b"small").is_ok() {
            sent += 1;
        }
        assert_eq!(sent, VerbsOptions::default().small_credits);
        let received = |right: &End| right.notes.len() == usize::from(sent);
        until("all messages", &mut left, &mut right, |_, right| received(right));
        assert!(right.notes.iter().all(|note| matches!(note, Note::Message(_))));
        right.notes.clear();
        right.fabric.mark_dirty(to_left.index);
        until("credits", &mut left, &mut right, |left, right| {
            let found = left.fabric.slots.find(to_right);
            let wiring = found.and_then(|found| found.wiring.as_ref());
            assert!(!left.ended() && !right.ended(), "{:?}, {:?}", left.notes, right.notes);
            wiring.is_some_and(|wiring| wiring.credits.has(Class::Small))
        });
        // The rest of them.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            left.turn();
            right.turn();
        }
    }
    assert_eq!(left.fabric.send(to_right, b"more"), Ok::<(), PostError>(()));
}

/// A peer that makes receive entries complete by writes, of more bytes than an entry has, is cut
/// off.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_write_that_announces_itself_is_no_message() {
    const BYTES: usize = 4 << 20;
    let (mut left, mut right) = pair(21_004);
    let memory = Mapping::shareable(BYTES).expect("memory");
    let at = left.fabric.register(left.id(), &memory, Access::READ_WRITE).expect("a registration");
    left.turn();
    assert_eq!(std::mem::take(&mut left.notes), [Note::Registered]);
    // Every receive entry has had the header of a long message before.
    let to_left = right.id();
    for number in 0..400 {
        while right.fabric.send(to_left, &[7; 4000]) == Err(PostError::Full) {
            left.turn();
            right.turn();
        }
        let count = |left: &End| left.notes.len() > number;
        until("a message", &mut left, &mut right, |left, _| count(left));
    }
    left.notes.clear();
    write_with_immediate(&mut right, at, BYTES);
    until("the end", &mut left, &mut right, |left, _| left.ended());
    assert_eq!(left.notes.len(), 1, "nothing but the end");
    assert_eq!(left.notes, [Note::Disconnected(DisconnectReason::Protocol)]);
}

/// Peers that end in the middle of a message, or send one that is too long, cost no receive entry
/// that all accepted connections share.
#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn broken_messages_cost_no_receive_entries() {
    const ENTRIES: u32 = 4;
    let few = VerbsOptions { shared_receives: ENTRIES, ..VerbsOptions::default() };
    let (mut left, mut right) = (End::new(), End::of(few));
    let address = address(21_005);
    right.fabric.listen(&address).expect("a free address");
    for (registered_bytes, len_bytes) in [(64 << 10, 64 << 10), (4096, 8192)] {
        for round in 0..2 * ENTRIES {
            connect(&mut left, &mut right, &address);
            send_raw(&mut left, registered_bytes, len_bytes);
            until("the ends", &mut left, &mut right, |left, right| left.ended() && right.ended());
            assert_eq!(right.notes.len(), 1, "round {round}: {:?}", right.notes);
        }
        connect(&mut left, &mut right, &address);
        let count = 4 * ENTRIES as usize;
        for _ in 0..count {
            left.fabric.send(left.id(), b"well-behaved").expect("a credit");
        }
        until("messages", &mut left, &mut right, |_, right| right.notes.len() == count);
    }
}

/// Posts a message straight to the queue pair, with memory of which only so much is registered.
fn send_raw(end: &mut End, registered_bytes: usize, len_bytes: u32) {
    let id = end.id();
    let found = end.fabric.connection(id).expect("connected");
    let domain = found.wiring.as_ref().and_then(|wiring| wiring.own.as_ref()).map(Own::domain);
    let domain = Rc::clone(domain.expect("the connecting side"));
    let request = rdma::ibv_wr_opcode::IBV_WR_SEND;
    post_raw(end, &domain, registered_bytes, len_bytes, |raw| raw.opcode = request);
}

/// Posts a write that completes a receive entry of the peer.
fn write_with_immediate(end: &mut End, at: Registration, len_bytes: usize) {
    let domain = end.fabric.devices[0].as_ref().map(|device| Rc::clone(&device.domain));
    post_raw(end, &domain.expect("a device"), len_bytes, len_bytes as u32, |raw| {
        raw.opcode = rdma::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
        raw.wr.rdma = rdma::rdma_t { remote_addr: at.address, rkey: at.key.0 };
    });
}

/// Posts a request behind the back of the send queue, from memory that is leaked.
fn post_raw(
    end: &mut End,
    domain: &Rc<Domain>,
    registered_bytes: usize,
    len_bytes: u32,
    set: impl FnOnce(&mut rdma::ibv_send_wr),
) {
    let local = Mapping::anonymous(registered_bytes).expect("memory");
    let region = Region::new(domain, &local, Exposure::Local).expect("pinned");
    let mut range = rdma::ibv_sge {
        addr: local.base().addr() as u64,
        length: len_bytes,
        lkey: region.local_key(),
    };
    // SAFETY: numbers and pointers, for which zero is valid.
    let mut request = unsafe { std::mem::zeroed::<rdma::ibv_send_wr>() };
    // Nobody waits for a number as far from those of the queue.
    request.wr_id = u64::from(u32::MAX / 2);
    request.send_flags = rdma::ibv_send_flags::IBV_SEND_SIGNALED.0;
    (request.sg_list, request.num_sge) = (&raw mut range, 1);
    set(&mut request);
    let id = end.id();
    let pair = end.fabric.connection(id).expect("connected").id.pair();
    let mut refused = std::ptr::null_mut();
    // SAFETY: a live queue pair; the request outlives the call, and the memory is leaked.
    checked(unsafe { rdma::ibv_post_send(pair, &raw mut request, &raw mut refused) })
        .expect("posted");
    std::mem::forget(region);
}
