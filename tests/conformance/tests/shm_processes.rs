//! The shm provider between processes: the test binary starts itself as the other process.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gannet_conformance::fabric::end::{End, Note, pattern};
use gannet_fabric::arena::{Arena, RegionIds};
use gannet_fabric::shm::{ShmFabric, ShmOptions};
use gannet_fabric::{
    Access, Address, ConnectionId, DisconnectReason, Fabric, Key, PeerIdentity, PostError,
    RemoteSlice, Transfer,
};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;

const ROLE: &str = "GANNET_TEST_ROLE";
const SOCKET: &str = "GANNET_TEST_SOCKET";
const PATIENCE: Duration = Duration::from_secs(20);
/// A user that is neither root nor on anybody's list.
const NOBODY: u32 = 65534;

/// A process that is killed when the test ends, however it ends.
struct Other(Child);

impl Other {
    fn start(role: &str, scratch: &Scratch, uid: Option<u32>) -> Other {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "the_other_process", "--ignored", "--nocapture"]);
        command.env(ROLE, role).env(SOCKET, &scratch.socket);
        if let Some(uid) = uid {
            command.uid(uid);
        }
        Other(command.spawn().expect("the test binary starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("reaped");
    }

    fn succeeds(&mut self) {
        let status = self.0.wait().expect("reaped");
        assert!(status.success(), "the other process: {status}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _over = self.0.kill();
        let _over = self.0.wait();
    }
}

struct Scratch {
    directory: PathBuf,
    socket: PathBuf,
}

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gannet-processes-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        Scratch { socket: directory.join("socket"), directory }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.directory);
    }
}

fn end() -> End<ShmFabric> {
    End::new(ShmFabric::new(ShmOptions::default()).expect("a fabric"))
}

fn wait<T>(end: &mut End<ShmFabric>, mut done: impl FnMut(&mut End<ShmFabric>) -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done(end) {
            return value;
        }
        if !end.turn() {
            assert!(start.elapsed() < PATIENCE, "timed out; notes: {:?}", end.notes);
            std::thread::yield_now();
        }
    }
}

/// Connects to the other process, which may not listen yet.
fn connect(end: &mut End<ShmFabric>, address: &Address) -> ConnectionId {
    let start = Instant::now();
    loop {
        let id = end.fabric.connect(address).expect("room");
        let outcome = wait(end, |end| {
            end.take(|found, note| match note {
                Note::Connected if found == id => Some(Ok(())),
                Note::Disconnected(reason) if found == id => Some(Err(*reason)),
                _ => None,
            })
        });
        match outcome {
            Ok(()) => return id,
            Err(DisconnectReason::Unreachable) => assert!(start.elapsed() < PATIENCE),
            Err(reason) => panic!("{reason}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The roles of the other process. Only started by the tests below.
#[test]
#[ignore = "a role of the tests in this file"]
fn the_other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        eprintln!("nothing to do: the tests of this file start it");
        return;
    };
    let socket = std::env::var(SOCKET).expect("started by a test of this file");
    let address = Address::shm(socket).expect("a good path");
    match role.as_str() {
        "data server" => data_server(&address),
        "flood" => flood(&address),
        "stranger" => stranger(&address),
        other => panic!("unknown role {other}"),
    }
}

/// Takes requests (address, key, length, seed), writes the pattern there, answers; forever.
fn data_server(address: &Address) {
    let mut end = end();
    end.fabric.listen(address).expect("the address is free or stale");
    let pool = BufferPool::new(1 << 20, 1).expect("memory");
    loop {
        end.turn();
        let Some((id, note)) = end.notes.pop_front() else {
            std::thread::yield_now();
            continue;
        };
        let Note::Message(request) = note else { continue };
        let number =
            |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        let (len, seed) = (number(16) as usize, number(24));
        let mut buffer = pool.take().expect("one request at a time");
        buffer[..len].copy_from_slice(&pattern(seed, len));
        let remote =
            RemoteSlice { address: number(0), key: Key(number(8) as u32), len_bytes: len as u32 };
        let transfer = Transfer { token: seed, memory: Memory::Buffer(buffer), offset: 0, remote };
        end.fabric.write(id, transfer).expect("room");
        end.fabric.send(id, &seed.to_le_bytes()).expect("a credit");
        wait(&mut end, |end| end.completion(id).map(drop));
    }
}

/// Sends numbered messages as fast as it can, forever.
fn flood(address: &Address) {
    let mut end = end();
    let id = connect(&mut end, address);
    for number in 0u64.. {
        loop {
            match end.fabric.send(id, &number.to_le_bytes()) {
                Ok(()) => break,
                Err(PostError::Full) => drop(end.turn()),
                Err(PostError::NotConnected | PostError::TooLong) => return,
            }
        }
        if number % 64 == 0 {
            end.turn();
        }
    }
}

/// Runs as a user whom nobody trusts.
fn stranger(address: &Address) {
    let mut end = end();
    let id = end.fabric.connect(address).expect("room");
    let reason = wait(&mut end, |end| {
        assert!(end.notes.iter().all(|(_, note)| !matches!(note, Note::Connected)));
        end.ended(id)
    });
    assert_eq!(reason, DisconnectReason::NotTrusted);
}

fn request(
    end: &mut End<ShmFabric>,
    id: ConnectionId,
    remote: RemoteSlice,
    seed: u64,
) -> Result<(), DisconnectReason> {
    let mut message = Vec::new();
    for number in [remote.address, u64::from(remote.key.0), u64::from(remote.len_bytes), seed] {
        message.extend(number.to_le_bytes());
    }
    if end.fabric.send(id, &message).is_err() {
        return Err(wait(end, |end| end.ended(id)));
    }
    wait(end, |end| {
        if let Some(reason) = end.ended(id) {
            return Some(Err(reason));
        }
        end.message(id).map(|answer| {
            assert_eq!(answer, seed.to_le_bytes());
            Ok(())
        })
    })
}

/// A data server in another process writes into a host's arena; it is killed in the middle, a
/// successor takes over its socket, and the host goes on.
#[test]
fn a_killed_data_server_is_replaced() {
    let scratch = Scratch::new();
    let address = Address::shm(&scratch.socket).expect("a good path");
    let arena = Arena::new(&RegionIds::new(), 64 * 1024, 4).expect("memory");
    let mut end = end();
    for generation in 0..3u64 {
        let mut server = Other::start("data server", &scratch, None);
        let id = connect(&mut end, &address);
        let Some(PeerIdentity::Local { pid, .. }) = end.fabric.peer(id) else {
            panic!("a local peer")
        };
        assert_eq!(pid, server.0.id());
        let mut buffer = arena.take().expect("a free buffer");
        let mapping = arena.region(buffer.region()).expect("its region");
        let registration =
            end.fabric.register(id, &mapping, Access::READ_WRITE).expect("registration");
        wait(&mut end, |end| end.take(|_, note| matches!(note, Note::Registered(_)).then_some(())));
        let remote = RemoteSlice {
            address: registration.address + buffer.region_offset(),
            key: registration.key,
            len_bytes: buffer.len() as u32,
        };
        for round in 0..50 {
            let seed = generation * 1000 + round;
            request(&mut end, id, remote, seed).expect("alive");
            assert!(*buffer == *pattern(seed, buffer.len()), "round {round}");
        }
        server.kill();
        let mut answered = 0;
        let reason = loop {
            match request(&mut end, id, remote, 5) {
                Ok(()) => answered += 1,
                Err(reason) => break reason,
            }
        };
        assert_eq!((reason, answered), (DisconnectReason::PeerLost, 0));
        // The host takes its memory back before it uses the buffer again.
        buffer.replace_pages(true).expect("fresh pages");
        let last = generation * 1000 + 49;
        assert!(*buffer == *pattern(last, buffer.len()), "the content was kept");
    }
}

/// Whatever a killed process had published arrives, in order, without a gap; then its death.
#[test]
fn a_killed_sender_leaves_no_gap() {
    let scratch = Scratch::new();
    let address = Address::shm(&scratch.socket).expect("a good path");
    let mut end = end();
    end.fabric.listen(&address).expect("a free address");
    for messages_before_kill in [0u64, 1, 1000, 100_000] {
        let mut sender = Other::start("flood", &scratch, None);
        let id =
            wait(&mut end, |end| end.take(|id, note| matches!(note, Note::Accepted).then_some(id)));
        let mut received = 0u64;
        let mut killed = false;
        let reason = wait(&mut end, |end| {
            while let Some((from, note)) = end.notes.pop_front() {
                assert_eq!(from, id);
                match note {
                    Note::Message(bytes) => {
                        assert_eq!(bytes, received.to_le_bytes());
                        received += 1;
                    }
                    Note::Disconnected(reason) => return Some(reason),
                    other => panic!("{other:?}"),
                }
            }
            if received >= messages_before_kill && !killed {
                sender.kill();
                killed = true;
            }
            None
        });
        assert_eq!(reason, DisconnectReason::PeerLost);
        assert!(received >= messages_before_kill);
        assert_eq!(end.fabric.connections(), 0);
    }
}

/// Another user's process is refused, by the mode of the socket file or by its credentials.
#[test]
fn strangers_are_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return;
    }
    for trusted_uids in [vec![], vec![NOBODY - 1]] {
        let scratch = Scratch::new();
        let address = Address::shm(&scratch.socket).expect("a good path");
        let options = ShmOptions { trusted_uids, ..ShmOptions::default() };
        let mut end = End::new(ShmFabric::new(options).expect("a fabric"));
        end.fabric.listen(&address).expect("a free address");
        let mut stranger = Other::start("stranger", &scratch, Some(NOBODY));
        let start = Instant::now();
        while stranger.0.try_wait().expect("a child").is_none() {
            end.turn();
            assert!(end.notes.is_empty(), "{:?}", end.notes);
            assert!(start.elapsed() < PATIENCE, "the stranger got no answer");
        }
        stranger.succeeds();
        assert_eq!(end.fabric.connections(), 0);
    }
}
