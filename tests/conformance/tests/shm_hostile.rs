//! The shm provider against peers that do not keep to its protocol.
//!
//! A raw peer speaks over the socket and the shared memory directly, with the formats written out
//! here once more. Whatever it does, the fabric answers with an end of that connection; it never
//! panics, and its other connections go on.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use gannet_conformance::fabric::end::{End, Note, Random, connect, until};
use gannet_fabric::shm::{ShmFabric, ShmOptions};
use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Events, Fabric, Key, RemoteSlice,
};
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::time::Time;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

const RING_SLOTS: u32 = 16;
const LARGE_SLOTS: u32 = 4;
const SLOT_BYTES: usize = 128;
const SMALL_BODY_BYTES: usize = 256;
const HEADER_BYTES: usize = 4096;

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;
const REGISTER: u32 = 4;
const REGISTERED: u32 = 5;
const DEREGISTER: u32 = 6;
const DEREGISTERED: u32 = 7;
const WAKE: u32 = 8;

fn ring_bytes() -> usize {
    (RING_SLOTS as usize * (SLOT_BYTES + SMALL_BODY_BYTES) + LARGE_SLOTS as usize * 8192)
        .next_multiple_of(PAGE_BYTES)
}

fn memory_bytes() -> usize {
    HEADER_BYTES + 2 * ring_bytes()
}

fn record(kind: u32, a: u32, b: u32, c: u32, d: u64, e: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [kind, a, b, c] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(d.to_le_bytes());
    bytes.extend(e.to_le_bytes());
    bytes
}

fn magic() -> u64 {
    u64::from_le_bytes(*b"gannshm\0")
}

fn hello(ring_slots: u32, large_slots: u32, memory_bytes: u64) -> Vec<u8> {
    record(HELLO, 1, ring_slots, large_slots, magic(), memory_bytes)
}

fn good_hello() -> Vec<u8> {
    hello(RING_SLOTS, LARGE_SLOTS, memory_bytes() as u64)
}

fn file_of(mapping: &Mapping) -> BorrowedFd<'_> {
    mapping.file().expect("shareable memory has a file")
}

/// A socket that says whatever it is told.
struct RawPeer {
    socket: OwnedFd,
}

impl RawPeer {
    fn dial(path: &Path) -> RawPeer {
        let socket = raw_socket();
        let address = SocketAddrUnix::new(path).expect("a short path");
        rustix::net::connect(&socket, &address).expect("somebody listens");
        RawPeer { socket }
    }

    /// Sends bytes and descriptors; false if the peer is gone.
    fn say(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut ancillary, flags).is_ok()
    }

    /// The kind and first argument of the next message; `None` when there is none or it ended.
    fn hear(&self) -> Option<(u32, u32)> {
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        for _ in 0..2 {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match rustix::net::recvmsg(&self.socket, &mut into, &mut ancillary, flags) {
                Ok(message) if message.bytes == 32 => {
                    let word = |at: usize| {
                        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
                    };
                    return Some((word(0), word(4)));
                }
                // A reset is told once, before what is queued.
                Err(rustix::io::Errno::CONNRESET) => {}
                _ => return None,
            }
        }
        None
    }
}

fn raw_socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socket")
}

/// A scratch directory with the path of a socket in it.
struct Scratch {
    directory: PathBuf,
    socket: PathBuf,
}

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gannet-hostile-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        Scratch { socket: directory.join("socket"), directory }
    }

    fn address(&self) -> Address {
        Address::shm(&self.socket).expect("a short path")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

fn options() -> ShmOptions {
    ShmOptions { registrations_max: 8, registered_bytes_max: 1 << 30, ..ShmOptions::default() }
}

fn server(scratch: &Scratch, options: ShmOptions) -> End<ShmFabric> {
    let mut fabric = ShmFabric::new(options).expect("a fabric");
    fabric.listen(&scratch.address()).expect("a free address");
    End::new(fabric)
}

fn turns(end: &mut End<ShmFabric>, duration: Duration) {
    let start = std::time::Instant::now();
    while start.elapsed() < duration {
        end.turn();
    }
}

/// Polls until the raw peer hears something.
fn answer(end: &mut End<ShmFabric>, peer: &RawPeer) -> (u32, u32) {
    let start = std::time::Instant::now();
    loop {
        end.turn();
        if let Some(heard) = peer.hear() {
            return heard;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no answer");
    }
}

/// Polls until the connection of the only raw peer ends.
fn end_of(end: &mut End<ShmFabric>, id: ConnectionId) -> DisconnectReason {
    let start = std::time::Instant::now();
    loop {
        end.turn();
        if let Some(reason) = end.ended(id) {
            return reason;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the violation was not noticed");
    }
}

/// A raw peer that completed the handshake.
fn established(
    end: &mut End<ShmFabric>,
    scratch: &Scratch,
) -> (RawPeer, Arc<Mapping>, ConnectionId) {
    let peer = RawPeer::dial(&scratch.socket);
    let memory = Mapping::shareable(memory_bytes()).expect("memory");
    assert!(peer.say(&good_hello(), &[file_of(&memory)]));
    assert_eq!(answer(end, &peer).0, WELCOME);
    let accepted = end.take(|id, note| matches!(note, Note::Accepted).then_some(id));
    (peer, memory, accepted.expect("accepted"))
}

/// The fabric still serves an honest client.
fn assert_alive(end: &mut End<ShmFabric>, scratch: &Scratch) {
    let mut client = End::new(ShmFabric::new(options()).expect("a fabric"));
    let (outward, inward) = connect(&mut client, end, &scratch.address());
    client.fabric.send(outward, b"still there?").expect("a credit");
    let message = until("a message", &mut client, end, |_, end| end.message(inward));
    assert_eq!(message, b"still there?");
    client.fabric.disconnect(outward);
    until("the end", &mut client, end, |_, end| end.ended(inward));
}

#[test]
fn malformed_handshakes_are_refused() {
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let right = Mapping::shareable(memory_bytes()).expect("memory");
    let short = Mapping::shareable(memory_bytes() - PAGE_BYTES).expect("memory");
    let long = Mapping::shareable(memory_bytes() + PAGE_BYTES).expect("memory");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let unsealed = rustix::fs::memfd_create("unsealed", flags).expect("a memfd");
    rustix::fs::ftruncate(&unsealed, memory_bytes() as u64).expect("its length");
    let read_only = rustix::fs::memfd_create("read-only", flags).expect("a memfd");
    rustix::fs::ftruncate(&read_only, memory_bytes() as u64).expect("its length");
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&read_only, seals).expect("seals");
    let regular = std::fs::File::open("/proc/self/exe").expect("a file");
    let directory = std::fs::File::open("/").expect("a directory");

    let good = good_hello();
    let fd = [file_of(&right)];
    let with = |at: usize, value: u8| {
        let mut bytes = good_hello();
        bytes[at] = value;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        ("no descriptor", good.clone(), vec![]),
        ("two descriptors", good.clone(), vec![fd[0], fd[0]]),
        ("unsealed memory", good.clone(), vec![unsealed.as_fd()]),
        ("memory that cannot be written", good.clone(), vec![read_only.as_fd()]),
        ("a regular file", good.clone(), vec![regular.as_fd()]),
        ("a directory", good.clone(), vec![directory.as_fd()]),
        ("too little memory", good.clone(), vec![file_of(&short)]),
        ("too much memory", good.clone(), vec![file_of(&long)]),
        ("another magic", with(16, b'x'), fd.to_vec()),
        ("another version", with(4, 2), fd.to_vec()),
        ("another kind", with(0, 99), fd.to_vec()),
        ("a record too short", good[..31].to_vec(), fd.to_vec()),
        ("a record too long", [&good[..], &[0]].concat(), fd.to_vec()),
        ("slots that are no power of two", hello(17, 4, memory_bytes() as u64), fd.to_vec()),
        ("no slots", hello(0, 0, HEADER_BYTES as u64), fd.to_vec()),
        ("more slots than memory", hello(1024, 4, memory_bytes() as u64), fd.to_vec()),
        ("huge geometry", hello(1 << 31, 1 << 31, u64::MAX), fd.to_vec()),
        ("another length", hello(RING_SLOTS, LARGE_SLOTS, 1 << 40), fd.to_vec()),
        ("a registration first", record(REGISTER, 1, 3, 0, 0, 4096), fd.to_vec()),
        ("a welcome first", record(WELCOME, 1, 0, 0, magic(), 0), vec![]),
        ("a wake-up first", record(WAKE, 0, 0, 0, 0, 0), vec![]),
    ];
    for (what, bytes, files) in &cases {
        let peer = RawPeer::dial(&scratch.socket);
        assert!(peer.say(bytes, files), "{what}");
        assert_eq!(answer(&mut end, &peer), (REFUSED, 2), "{what}");
        assert_eq!(end.fabric.connections(), 0, "{what}");
        assert!(end.notes.is_empty(), "{what}: {:?}", end.notes);
    }
    // The control: the very same greeting, unspoilt.
    drop(established(&mut end, &scratch));
    assert_alive(&mut end, &scratch);
}

#[test]
fn silent_peers_are_given_up_and_bounded() {
    let scratch = Scratch::new();
    let options =
        ShmOptions { half_open_max: 3, handshake_timeout: Duration::from_millis(200), ..options() };
    let mut end = server(&scratch, options);
    let silent: Vec<_> = (0..5).map(|_| RawPeer::dial(&scratch.socket)).collect();
    turns(&mut end, Duration::from_millis(5));
    assert_eq!(end.fabric.connections(), 3);
    assert_eq!(silent.iter().filter(|peer| peer.hear() == Some((REFUSED, 3))).count(), 2);
    let start = std::time::Instant::now();
    while end.fabric.connections() > 0 {
        end.turn();
        assert!(start.elapsed() < Duration::from_secs(10), "never given up");
    }
    assert!(start.elapsed() > Duration::from_millis(100), "given up before their time");
    assert!(end.notes.is_empty(), "{:?}", end.notes);

    // A peer that goes away in the middle of the handshake leaves nothing either.
    drop(RawPeer::dial(&scratch.socket));
    turns(&mut end, Duration::from_millis(5));
    assert_eq!(end.fabric.connections(), 0);
    assert_alive(&mut end, &scratch);
}

#[test]
fn nonsense_over_the_socket_ends_the_connection() {
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let page = Mapping::shareable(PAGE_BYTES).expect("memory");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let unsealed = rustix::fs::memfd_create("unsealed", flags).expect("a memfd");
    rustix::fs::ftruncate(&unsealed, PAGE_BYTES as u64).expect("its length");
    let fd = vec![file_of(&page)];
    let len = PAGE_BYTES as u64;
    let cases: Vec<(&str, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        ("a second greeting", good_hello(), fd.clone()),
        ("a welcome", record(WELCOME, 1, 0, 0, magic(), 0), vec![]),
        ("a registration without memory", record(REGISTER, 1, 3, 0, 0, len), vec![]),
        ("unsealed memory", record(REGISTER, 1, 3, 0, 0, len), vec![unsealed.as_fd()]),
        ("a wrong length", record(REGISTER, 1, 3, 0, 0, 2 * len), fd.clone()),
        ("a huge length", record(REGISTER, 1, 3, 0, 0, u64::MAX), fd.clone()),
        ("an empty range", record(REGISTER, 1, 3, 0, 0, 0), fd.clone()),
        ("an overflowing address", record(REGISTER, 1, 3, 0, u64::MAX, len), fd.clone()),
        ("unknown rights", record(REGISTER, 1, 0xff, 0, 0, len), fd.clone()),
        ("an unknown key's end", record(DEREGISTER, 77, 0, 0, 0, 0), vec![]),
        ("a confirmation of nothing", record(REGISTERED, 5, 0, 0, 0, 0), vec![]),
        ("the end of nothing", record(DEREGISTERED, 5, 0, 0, 0, 0), vec![]),
        ("a wake-up with a descriptor", record(WAKE, 0, 0, 0, 0, 0), fd.clone()),
        ("an unknown kind", record(4711, 0, 0, 0, 0, 0), vec![]),
        ("noise", vec![0xa5; 32], vec![]),
        ("one byte", vec![1], vec![]),
        ("a long record", vec![0; 4000], vec![]),
    ];
    for (what, bytes, files) in &cases {
        let (peer, _memory, id) = established(&mut end, &scratch);
        assert!(peer.say(bytes, files), "{what}");
        assert_eq!(end_of(&mut end, id), DisconnectReason::Protocol, "{what}");
    }
    // Registrations beyond the bound.
    let (peer, _memory, id) = established(&mut end, &scratch);
    for key in 0..9 {
        peer.say(&record(REGISTER, key, 3, 0, 0, len), &fd);
    }
    assert_eq!(end_of(&mut end, id), DisconnectReason::Protocol);
    assert_alive(&mut end, &scratch);
}

/// A wake-up that arrives while the fabric is on its way to sleep, with nothing to be done: the
/// next one must come too, so the sleeping word, which the peer took to send it, is set again.
#[test]
fn a_sleeper_stays_armed_after_a_needless_wake_up() {
    const ACCEPTOR_SLEEPING: usize = 256 + 128;
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let (peer, memory, _id) = established(&mut end, &scratch);
    let sleeping = || {
        let mut word = [0; 4];
        memory.copy_out(ACCEPTOR_SLEEPING, &mut word);
        u32::from_le_bytes(word)
    };
    assert_eq!(sleeping(), 0);
    end.fabric.arm();
    assert_eq!(sleeping(), 1);
    memory.copy_in(ACCEPTOR_SLEEPING, &0u32.to_le_bytes());
    assert!(peer.say(&record(WAKE, 0, 0, 0, 0, 0), &[]));
    assert!(!end.turn(), "{:?}", end.notes);
    assert_eq!(sleeping(), 1, "the next message would wake nobody");
    end.fabric.disarm();
    assert_eq!(sleeping(), 0);
}

/// Questions without end whose answers nobody reads: bounded, then cut off.
#[test]
fn a_peer_that_never_reads_is_cut_off() {
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let page = Mapping::shareable(PAGE_BYTES).expect("memory");
    let (peer, _memory, id) = established(&mut end, &scratch);
    let mut key = 0;
    let start = std::time::Instant::now();
    let reason = loop {
        let register = record(REGISTER, key, 3, 0, 0, PAGE_BYTES as u64);
        if peer.say(&register, &[file_of(&page)]) {
            peer.say(&record(DEREGISTER, key, 0, 0, 0, 0), &[]);
            key += 1;
        }
        end.turn();
        if let Some(reason) = end.ended(id) {
            break reason;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{key} registrations unread");
    };
    assert_eq!(reason, DisconnectReason::Protocol);
    assert_alive(&mut end, &scratch);
}

#[test]
fn garbage_in_the_ring_ends_the_connection() {
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let word = |position: u64, len: u64, kind: u64| (position + 1) | len << 32 | kind << 56;
    for garbage in [
        word(0, 257, 1),
        word(0, 0xff_ffff, 1),
        word(0, 8193, 2),
        word(0, 1, 3),
        word(0, 0, 0),
        word(0, 0, 4),
        word(0, 0xff_ffff, 255),
    ] {
        let (_peer, memory, id) = established(&mut end, &scratch);
        memory.copy_in(HEADER_BYTES, &garbage.to_le_bytes());
        assert_eq!(end_of(&mut end, id), DisconnectReason::Protocol, "{garbage:#x}");
    }
    // The control: a word as it should be.
    let (_peer, memory, id) = established(&mut end, &scratch);
    memory.copy_in(HEADER_BYTES + 8, b"raw");
    memory.copy_in(HEADER_BYTES, &word(0, 3, 1).to_le_bytes());
    turns(&mut end, Duration::from_millis(1));
    assert_eq!(end.message(id).as_deref(), Some(&b"raw"[..]));

    // Consumed more than was sent: noticed when credits are looked for.
    let (_peer, memory, id) = established(&mut end, &scratch);
    memory.copy_in(0, &1000u32.to_le_bytes());
    let mut sent = 0;
    while end.fabric.send(id, b"x").is_ok() {
        sent += 1;
        assert!(sent <= RING_SLOTS, "credits out of thin air");
    }
    assert_eq!(end_of(&mut end, id), DisconnectReason::Protocol);
    assert_alive(&mut end, &scratch);
}

/// A thread that overwrites the whole shared memory with plausible and implausible words while the
/// fabric sends, receives, sleeps and transfers.
#[test]
fn a_peer_that_scribbles_all_over_does_no_harm() {
    let scratch = Scratch::new();
    let mut end = server(&scratch, options());
    let region = Mapping::shareable(4 * PAGE_BYTES).expect("memory");
    let mut violations = 0;
    for round in 0..60u64 {
        let (peer, memory, id) = established(&mut end, &scratch);
        let register = record(REGISTER, 1, 3, 0, 0, region.len() as u64);
        assert!(peer.say(&register, &[file_of(&region)]));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random::new(round);
                while !stop.load(Ordering::Relaxed) {
                    let ring = HEADER_BYTES + random.below(2) as usize * ring_bytes();
                    let slot = random.below(u64::from(RING_SLOTS));
                    let position = slot + u64::from(RING_SLOTS) * random.below(3);
                    let word = match random.below(8) {
                        0 => random.below(u64::MAX),
                        _ => (position + 1) | random.below(257) << 32 | (1 + random.below(3)) << 56,
                    };
                    memory.copy_in(ring + slot as usize * SLOT_BYTES, &word.to_le_bytes());
                    if random.below(64) == 0 {
                        let at = [0, 128, 132, 256, 384, 388][random.below(6) as usize];
                        let value = random.below(1 << 32) as u32;
                        memory.copy_in(at, &value.to_le_bytes());
                    }
                }
            });
            for turn in 0..400u64 {
                let message = vec![turn as u8; (turn * 97 % 8193) as usize];
                let _refused = end.fabric.send(id, &message);
                let remote = RemoteSlice { address: turn * 64, key: Key(1), len_bytes: 4096 };
                drop(end.fabric.map(id, remote, Access::READ_WRITE));
                if turn % 10 == 0 {
                    end.fabric.arm();
                    end.turn();
                    end.fabric.disarm();
                }
                end.turn();
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(peer);
        let reason = end_of(&mut end, id);
        violations += u32::from(reason == DisconnectReason::Protocol);
        end.notes.clear();
        assert_eq!(end.fabric.connections(), 0);
    }
    assert!(violations > 0, "the scribbling was never noticed");
    assert_alive(&mut end, &scratch);
}

/// What a connector makes of a listener that is not ours.
#[test]
fn hostile_listeners_are_left() {
    let scratch = Scratch::new();
    let listener = raw_socket();
    let address = SocketAddrUnix::new(&scratch.socket).expect("a short path");
    rustix::net::bind(&listener, &address).expect("bind");
    rustix::net::listen(&listener, 16).expect("listen");
    let mut end = End::new(ShmFabric::new(options()).expect("a fabric"));
    let refused = |reason| record(REFUSED, reason, 0, 0, magic(), 0);
    for (what, bytes, expected) in [
        ("not trusted", refused(1), DisconnectReason::NotTrusted),
        ("a protocol error", refused(2), DisconnectReason::Protocol),
        ("no room", refused(3), DisconnectReason::Unreachable),
        ("an unknown refusal", refused(9), DisconnectReason::Protocol),
        ("another version", record(WELCOME, 2, 0, 0, magic(), 0), DisconnectReason::Protocol),
        ("noise", vec![7; 32], DisconnectReason::Protocol),
        ("a greeting", record(HELLO, 1, 16, 4, magic(), 0), DisconnectReason::Protocol),
        ("nothing", vec![], DisconnectReason::PeerLost),
    ] {
        let id = end.fabric.connect(&scratch.address()).expect("room");
        let peer = RawPeer { socket: rustix::net::accept(&listener).expect("a connection") };
        if !bytes.is_empty() {
            assert!(peer.say(&bytes, &[]), "{what}");
        }
        // The greeting stays unread, so this side sees a reset.
        drop(peer);
        assert_eq!(end_of(&mut end, id), expected, "{what}");
        assert_eq!(end.fabric.connections(), 0);
    }

    // A listener that accepts and says nothing.
    let id = end.fabric.connect(&scratch.address()).expect("room");
    let _peer = rustix::net::accept(&listener).expect("a connection");
    end.turn();
    let mut events = Events::default();
    end.fabric.poll(Time::monotonic() + Duration::from_secs(6), &mut events);
    let event = events.pop().expect("the end");
    assert!(
        matches!(event, gannet_fabric::Event::Disconnected { connection, reason }
            if (connection, reason) == (id, DisconnectReason::PeerLost)),
        "{event:?}"
    );

    // A listener whose queue is full: dialled again until the time is up or there is room.
    let ids: Vec<_> =
        (0..40).map(|_| end.fabric.connect(&scratch.address()).expect("room")).collect();
    turns(&mut end, Duration::from_millis(2));
    assert!(end.notes.is_empty(), "{:?}", end.notes);
    let mut peers = Vec::new();
    let start = std::time::Instant::now();
    while peers.len() < ids.len() {
        end.turn();
        if let Ok(socket) = rustix::net::accept(&listener) {
            let peer = RawPeer { socket };
            assert!(peer.say(&record(WELCOME, 1, 0, 0, magic(), 0), &[]));
            peers.push(peer);
        }
        assert!(start.elapsed() < Duration::from_secs(4), "{} of {}", peers.len(), ids.len());
    }
    for id in ids {
        while end
            .take(|found, note| (found == id && matches!(note, Note::Connected)).then_some(()))
            .is_none()
        {
            end.turn();
            assert!(start.elapsed() < Duration::from_secs(10), "{id:?} is not connected");
        }
    }
}
