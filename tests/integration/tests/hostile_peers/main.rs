//! Servers of a real process that peers attack over tcp, while a host reads and writes, and checks
//! what it reads.

mod recorder;
mod stream;

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use gannet_client::Ownership;
use gannet_fabric::Address;
use gannet_integration::cluster::{Cluster, ClusterOptions, Network, Place, Store};
use gannet_integration::load::{Done, Load, LoadOptions, open};
use gannet_integration::process::{Server, gannet};
use gannet_integration::{one_at_a_time, procfs};
use gannet_proto::data::DataHello;
use gannet_proto::handshake::{Hello, Refusal};
use gannet_proto::operations::{HostHello, HostWelcome};
use gannet_proto::packet::{FrameHeader, Frames, Message, PacketWriter};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::recorder::Recorder;
use crate::stream::{Attacker, frame, hello};

/// Data servers of `gannet dev`: their ports are behind those of the metadata server's reactors.
const TARGETS: u16 = 2;
const REACTORS_MAX: u16 = 2;
const HALF_OPEN: usize = 10_000;
/// Half-open connections that a server keeps.
const HALF_OPEN_MAX: usize = 256;
/// A server that says nothing for so long has said what it had to say.
const QUIET: Duration = Duration::from_millis(10);
const MIB: f64 = (1 << 20) as f64;

/// `gannet dev` at ports of this machine.
struct Dev {
    // First: it ends before its files go.
    server: Server,
    port: u16,
    reactors: u16,
    _directory: TempDir,
}

impl Dev {
    fn start(reactors: u16) -> Dev {
        let directory = tempfile::Builder::new().prefix("gannet-").tempdir().expect("a directory");
        let port = free_ports();
        let mut command = Command::new(gannet());
        command.args(["dev", "--store-size", "ram:64M", "--reactors", &reactors.to_string()]);
        command.args(["--listen", &format!("tcp://127.0.0.1:{port}"), "--dir"]);
        command.arg(directory.path());
        let mut server = Server::start("dev", command, &directory.path().join("dev.log"));
        server.wait_ready();
        Dev { server, port, reactors, _directory: directory }
    }

    fn address(&self) -> Address {
        Address::Tcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    /// Where the data servers listen.
    fn target_ports(&self) -> Range<u16> {
        let first = self.port + self.reactors;
        first..first + TARGETS
    }

    /// Where all listen.
    fn ports(&self) -> Range<u16> {
        self.port..self.target_ports().end
    }

    fn resident(&self) -> usize {
        procfs::resident_bytes(self.server.pid())
    }

    fn descriptors(&self) -> usize {
        procfs::open_files(self.server.pid()).len()
    }

    /// A load that does not care what others do.
    fn load(&self) -> Load {
        let options = LoadOptions {
            files: 2,
            file_bytes: 2 << 20,
            names: 16,
            depth: 8,
            ..LoadOptions::default()
        };
        let mut load = Load::start(&self.address(), options);
        load.progress(200);
        load
    }

    /// Everything works still: the load's files are what they should be, and a new host is served.
    fn finish(mut self, load: Load) -> Done {
        let (model, done) = load.finish();
        assert!(self.server.is_running());
        let mut session = open(&self.address());
        model.verify(&mut session);
        assert_eq!(done.failures, 0, "{done:?}");
        drop(session);
        self.server.stop();
        done
    }
}

/// The first of some ports in a row at which nobody listens, below those that the kernel gives to
/// connections.
fn free_ports() -> u16 {
    // Never the same again: a host that looks for its servers must not find others.
    static NUMBER: AtomicU16 = AtomicU16::new(0);
    const PORTS: u16 = REACTORS_MAX + TARGETS;
    let first = 10_000 + (std::process::id() % 4000) as u16 * PORTS;
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..500)
        .map(|_| first + NUMBER.fetch_add(1, Ordering::Relaxed) * PORTS)
        .find(|port| (*port..port + PORTS).all(free))
        .expect("free ports")
}

/// What a host says to the only reactor in a session that uses many operations.
fn record(dev: &Dev, directory: &str) -> Vec<Vec<u8>> {
    let recorder = Recorder::start(dev.port);
    let mut session = open(&recorder.address());
    let owner = Ownership { mode: 0o644, ..Ownership::default() };
    session.mkdir(directory, owner).expect("made");
    let mut bytes = vec![7; 70_000];
    for name in ["a", "b", "c"] {
        let path = format!("{directory}/{name}");
        let file = session.create(&path, owner, true).expect("made").handle;
        session.write_at(file, 0, &bytes).expect("written");
        session.read_at(file, 0, &mut bytes).expect("read");
        session.truncate(file, 100).expect("truncated");
        session.fsync(file).expect("on disk");
        session.rename(&path, &format!("{path}-2")).expect("renamed");
        session.stat_handle(file).expect("answered");
    }
    session.readdir_all(directory).expect("listed");
    session.unlink(&format!("{directory}/a-2")).expect("removed");
    session.statfs().expect("answered");
    drop(session);
    let messages = recorder.messages();
    assert!(messages.len() > 10 && messages.len() < 100, "{} messages", messages.len());
    messages
}

/// Where in a packet a message's fields start.
fn body_of<T: Message>(packet: &[u8]) -> Option<usize> {
    let mut at = 0;
    for frame in Frames::new(packet) {
        let frame = frame.ok()?;
        let body = at + size_of::<FrameHeader>();
        if frame.kind == T::KIND {
            return Some(body);
        }
        at += usize::from(u16::from_le_bytes([packet[at], packet[at + 1]]));
    }
    None
}

/// Makes the session that a packet opens, if it opens one, a new one.
fn rename_session(packet: &mut [u8], session: u64) {
    let Some(body) = body_of::<HostHello>(packet) else { return };
    for field in [
        std::mem::offset_of!(HostHello, session),
        std::mem::offset_of!(HostHello, instance),
        std::mem::offset_of!(HostHello, host),
    ] {
        if let Some(place) = packet.get_mut(body + field..body + field + 8) {
            place.copy_from_slice(&session.to_le_bytes());
        }
    }
}

fn session_of(hello: &[u8]) -> u64 {
    let body = body_of::<HostHello>(hello).expect("a host's hello");
    let at = body + std::mem::offset_of!(HostHello, session);
    u64::from_le_bytes(hello[at..at + 8].try_into().expect("eight bytes"))
}

/// Makes the length of the last message of a packet agree with that of the packet.
fn reseal(packet: &mut [u8]) {
    let mut at = 0;
    while let Some(length) = packet.get(at..at + 2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        if length == 0 || at + length >= packet.len() {
            let rest = (packet.len() - at) as u16;
            packet[at..at + 2].copy_from_slice(&rest.to_le_bytes());
            return;
        }
        at += length;
    }
}

/// What becomes of one message of a session.
fn spoiled(message: &[u8]) -> Vec<Vec<u8>> {
    let len = message.len();
    let mut all = Vec::new();
    for cut in [0, 1, 7, 8, 9, len / 2, len - 9, len - 8, len - 1] {
        let mut short = message[..cut.min(len)].to_vec();
        all.push(short.clone());
        reseal(&mut short);
        all.push(short);
    }
    for more in [1, 8, 100, 4000] {
        let mut long = message.to_vec();
        long.resize(len + more, 0x55);
        all.push(long.clone());
        reseal(&mut long);
        all.push(long);
    }
    // Twice in one packet.
    all.push([message, message].concat());
    all
}

#[test]
fn spoiled_sessions_harm_nobody_else() {
    let _turn = one_at_a_time();
    let mut dev = Dev::start(1);
    let mut load = dev.load();
    let recorded = record(&dev, "/recorded");
    let (resident, descriptors) = (dev.resident(), dev.descriptors());
    let start = Instant::now();
    let (mut sessions, mut most) = (0, resident);
    let (mut welcomes, mut replies, mut refusals) = (0, 0, 0);
    let mut replay = |place: usize, instead: &[Vec<u8>], port: u16| {
        sessions += 1;
        let mut attacker = Attacker::establish(port);
        for message in recorded[..place].iter().chain(instead) {
            let mut message = message.clone();
            rename_session(&mut message, 0xbad0_0000 + sessions);
            attacker.send(&message);
        }
        attacker.listen(QUIET);
        for packet in attacker.finish() {
            for frame in Frames::new(&packet).map_while(Result::ok) {
                match frame.kind {
                    HostWelcome::KIND => welcomes += 1,
                    Refusal::KIND => refusals += 1,
                    _ => replies += 1,
                }
            }
        }
    };
    for (place, message) in recorded.iter().enumerate() {
        // Repeated as they are, and long after.
        replay(place, &[message.clone(), message.clone(), recorded[place / 2].clone()], dev.port);
        for spoilt in spoiled(message) {
            replay(place, &[spoilt, message.clone()], dev.port);
        }
        most = most.max(dev.resident());
        assert!(dev.server.is_running());
    }
    // The same at those to whom it was not said.
    for port in dev.ports().skip(1) {
        for place in 0..recorded.len().min(6) {
            replay(place, &recorded[place..], port);
        }
    }
    load.progress(200);
    let grown = (most as f64 - resident as f64) / MIB;
    println!(
        "{sessions} sessions of {} messages, each with one spoiled ({welcomes} welcomes, {replies} \
         replies, {refusals} refusals), in {:?}: resident memory {:.1} MiB, at most {grown:.1} MiB \
         more; descriptors {descriptors}, then {}",
        recorded.len(),
        start.elapsed(),
        resident as f64 / MIB,
        dev.descriptors()
    );
    assert!(welcomes > 100 && replies > 500, "accepted and served as far as they are good");
    assert!(refusals > 0, "and not beyond");
    assert!(grown < 64.0, "{grown} MiB more");
    let done = dev.finish(load);
    println!("the load meanwhile: {done:?}");
}

/// A packet that opens a data session.
fn data_hello(session: u64, epoch: u64, ticket: &[u8]) -> Vec<u8> {
    let opening = DataHello {
        session: session.into(),
        epoch: epoch.into(),
        ticket_bytes: (ticket.len() as u16).into(),
        ..DataHello::default()
    };
    let mut packet = PacketWriter::new();
    packet.push(&Hello::current(), &[]).expect("an empty packet");
    packet.push(&opening, &[ticket]).expect("room");
    packet.bytes().to_vec()
}

#[test]
fn the_ids_of_another_session_open_nothing() {
    let _turn = one_at_a_time();
    let mut dev = Dev::start(2);
    let mut load = dev.load();
    let recorder = Recorder::start(dev.port);
    let mut victim = open(&recorder.address());
    let owner = Ownership { mode: 0o644, ..Ownership::default() };
    let file = victim.create("/victim", owner, true).expect("made").handle;
    let mut bytes = vec![0; 300_000];
    for round in 0..20u64 {
        bytes.fill(round as u8 + 1);
        victim.write_at(file, 0, &bytes).expect("written");
        let said = recorder.messages();
        let session = session_of(&said[0]);
        // Its data sessions, without a ticket of the metadata server.
        for port in dev.target_ports() {
            for epoch in [0, 1, 2, u64::MAX] {
                for ticket in [&[][..], &[0; 16], &[0; 32], &[0xff; 256]] {
                    let mut attacker = Attacker::establish(port);
                    let packet = data_hello(session, epoch, ticket);
                    attacker.send(&packet[..packet.len() - (round as usize % 3)]);
                    let answers = attacker.finish();
                    let welcome = answers.iter().any(|answer| answer[2..4] == [0x81, 0]);
                    assert!(!welcome, "a data session of somebody else: {answers:?}");
                }
            }
        }
        // Everything it said, once more, word for word, on another connection.
        let mut attacker = Attacker::establish(dev.port);
        for message in said.iter().take(100) {
            attacker.send(message);
        }
        attacker.finish();
        let mut back = vec![0; bytes.len()];
        let count = victim.read_at(file, 0, &mut back).expect("read, whoever says the same");
        assert_eq!(count, back.len());
        assert!(back == bytes, "round {round}: old writes were not done again");
    }
    assert!(dev.server.is_running());
    drop(victim);
    load.progress(200);
    let done = dev.finish(load);
    println!("the load meanwhile: {done:?}");
}

/// # Panics
/// If this process may not have so many descriptors.
fn allow_descriptors(count: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        let hard = limit.maximum;
        assert!(
            hard.is_none_or(|hard| hard >= count),
            "the test needs {count} descriptors, and the hard limit is {hard:?}: raise it \
             (`ulimit -Hn`, LimitNOFILE=)"
        );
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).expect("within the hard limit");
    }
}

#[test]
fn ten_thousand_half_open_and_slow_connections_are_no_burden() {
    let _turn = one_at_a_time();
    allow_descriptors(HALF_OPEN as u64 + 1000);
    let mut dev = Dev::start(2);
    let mut load = dev.load();
    let (resident, descriptors) = (dev.resident(), dev.descriptors());
    let (mut most, mut most_descriptors) = (resident, descriptors);
    let mut newcomers = Vec::new();
    // Some of each kind at each of the ports, whose sessions are slow for as long as the rest takes.
    let slow = |say: &dyn Fn(u16) -> Attacker| -> Vec<Attacker> {
        dev.ports().cycle().take(32).map(say).collect()
    };
    let mut greeting = slow(&Attacker::dial);
    let mut framing = slow(&Attacker::establish);
    let greeting_bytes = hello();
    let frame_bytes = frame(0, &[0; 100]);

    let ports: Vec<u16> = dev.ports().collect();
    let start = Instant::now();
    let mut half_open = Vec::with_capacity(HALF_OPEN);
    for second in 0..5 {
        let begun = Instant::now();
        for attacker in &mut greeting {
            attacker.say(&greeting_bytes[second..=second]);
        }
        for attacker in &mut framing {
            // A frame may take long; but whoever opens no session is sent away.
            attacker.say(&frame_bytes[second..=second]);
        }
        for number in 0..HALF_OPEN / 5 {
            // Half of them from one address.
            let host = if number % 2 == 0 { 256 } else { 1000 + half_open.len() as u32 };
            let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + host);
            half_open.push(Attacker::begin(from, ports[number / 2 % ports.len()]));
        }
        most = most.max(dev.resident());
        most_descriptors = most_descriptors.max(dev.descriptors());
        let asked = Instant::now();
        let mut session = open(&dev.address());
        session.stat("/").expect("answered");
        newcomers.push(asked.elapsed());
        load.progress(100);
        assert!(dev.server.is_running());
        // One byte per second is what this is about.
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
    }
    let flooded = start.elapsed();
    // Whoever did not greet, or open a session, in time is given up.
    let mut attackers = [greeting, framing, half_open];
    while !attackers.iter_mut().flatten().all(Attacker::is_over) {
        load.progress(10);
        assert!(start.elapsed() < Duration::from_secs(30), "half-open connections are kept");
    }
    let gone = start.elapsed();
    drop(attackers);
    load.progress(100);
    let (resident_after, descriptors_after) = (dev.resident(), dev.descriptors());
    println!(
        "{HALF_OPEN} half-open connections and 64 of one byte per second in {flooded:?}, all given \
         up after {gone:?}: resident memory {:.1} MiB, at most {:.1} MiB more, then {:.1} MiB more; \
         descriptors {descriptors}, at most {most_descriptors}, then {descriptors_after}; new \
         sessions within {newcomers:?}",
        resident as f64 / MIB,
        (most as f64 - resident as f64) / MIB,
        (resident_after as f64 - resident as f64) / MIB
    );
    assert!(most < resident + (32 << 20));
    let bound = descriptors + ports.len() * (HALF_OPEN_MAX + 16) + 64;
    assert!(most_descriptors <= bound, "{most_descriptors} of {bound} descriptors");
    assert!(newcomers.iter().all(|took| *took < Duration::from_secs(5)), "{newcomers:?}");
    let done = dev.finish(load);
    println!("the load meanwhile: {done:?}");
    assert!(done.longest < Duration::from_secs(5), "{:?}", done.longest);
}

/// Peers that the fabric lets in, and that say nothing to the servers: as many as there are places for,
/// and more.
#[test]
fn silent_peers_leave_room_for_others_again() {
    let _turn = one_at_a_time();
    const SILENT: usize = 2500;
    allow_descriptors(SILENT as u64 + 1000);
    let dev = Dev::start(1);
    let mut load = dev.load();
    let (resident, descriptors) = (dev.resident(), dev.descriptors());
    let start = Instant::now();
    let mut silent = Vec::with_capacity(SILENT);
    let (mut most, mut most_descriptors) = (resident, descriptors);
    while silent.len() < SILENT {
        // All at one server, or all at another.
        let port = if silent.len() < SILENT / 2 { dev.port } else { dev.target_ports().start };
        let mut attacker = Attacker::dial(port);
        attacker.say(&hello());
        silent.push(attacker);
        if silent.len() % 250 == 0 {
            load.progress(50);
            most = most.max(dev.resident());
            most_descriptors = most_descriptors.max(dev.descriptors());
        }
    }
    let there = start.elapsed();
    let mut session = open(&dev.address());
    session.stat("/").expect("answered");
    let newcomer = start.elapsed() - there;
    most = most.max(dev.resident());
    while !silent.iter_mut().all(Attacker::is_over) {
        load.progress(10);
        assert!(start.elapsed() < Duration::from_secs(30), "silent connections are kept");
    }
    let gone = start.elapsed();
    drop(silent);
    load.progress(100);
    println!(
        "{SILENT} peers that open no session in {there:?}, all sent away after {gone:?}: resident \
         memory {:.1} MiB, at most {:.1} MiB more; descriptors {descriptors}, at most \
         {most_descriptors}; a new session within {newcomer:?}",
        resident as f64 / MIB,
        (most as f64 - resident as f64) / MIB
    );
    assert!(most < resident + (128 << 20));
    assert!(newcomer < Duration::from_secs(5), "{newcomer:?}");
    drop(session);
    let done = dev.finish(load);
    println!("the load meanwhile: {done:?}");
}

/// Where nobody is sent away for being slow, those who say nothing make room all the same: for a host
/// that is new, for one that comes back, and for its connections to the data servers.
#[test]
fn silent_peers_make_room_without_a_time_out() {
    let _turn = one_at_a_time();
    const PLACES: usize = 64;
    const SILENT: usize = 4 * PLACES;
    allow_descriptors(2 * SILENT as u64 + 1000);
    let port = free_ports();
    let place = |port| Place { address: Ipv4Addr::LOCALHOST.into(), port, prefix: Vec::new() };
    let settings = "handshake_timeout = \"1h\"\n";
    let tcp = format!("[tcp]\nconnections_max = {PLACES}\n");
    let mut cluster = Cluster::new(ClusterOptions {
        reactors: 1,
        targets: 1,
        stores: vec![Store::Ram],
        store_size: "64M",
        network: Network::Tcp {
            metaserver: place(port),
            targets: vec![place(port + 1)],
            host: place(port),
            trusted_hosts: Vec::new(),
        },
        metaserver_settings: format!("{settings}{tcp}"),
        target_settings: format!("{settings}{tcp}"),
        ..ClusterOptions::default()
    });
    let mut load = Load::start(
        &cluster.address(),
        LoadOptions { files: 1, file_bytes: 1 << 20, names: 4, depth: 4, ..LoadOptions::default() },
    );
    load.progress(50);
    let owner = Ownership { mode: 0o644, ..Ownership::default() };
    let mut silent = Vec::with_capacity(2 * SILENT);
    let mut newcomers = Vec::new();
    for round in 0..4 {
        for port in [port, port + 1] {
            for _ in 0..SILENT / 4 {
                silent.push(Attacker::establish(port));
            }
        }
        let asked = Instant::now();
        let mut session = open(&cluster.address());
        let path = format!("/newcomer-{round}");
        let file = session.create(&path, owner, true).expect("made").handle;
        let bytes = vec![round as u8 + 1; 300_000];
        session.write_at(file, 0, &bytes).expect("written, through a data session");
        let mut back = vec![0; bytes.len()];
        session.read_at(file, 0, &mut back).expect("read");
        assert!(back == bytes);
        newcomers.push(asked.elapsed());
        load.progress(20);
    }
    let stats = cluster.stats();
    let refused = ["metaserver", "data server"]
        .into_iter()
        .zip([stats.metaserver("connections_refused"), stats.targets("connections_refused")]);
    println!(
        "{SILENT} peers at each of two servers with {PLACES} places each, which say nothing and have \
         an hour for it: {:?} had to go; new sessions, with a write and a read, within {newcomers:?}",
        refused.clone().collect::<Vec<_>>()
    );
    for (server, refused) in refused {
        assert!(refused as usize >= SILENT - PLACES, "{refused} had to go at the {server}");
    }
    let over = silent.iter_mut().filter_map(|peer| peer.is_over().then_some(())).count();
    assert!(over >= 2 * (SILENT - PLACES), "{over} are gone");
    assert!(newcomers.iter().all(|took| *took < Duration::from_secs(3)), "{newcomers:?}");
    let (model, done) = load.finish();
    println!("the load meanwhile: {done:?}");
    assert_eq!(done.failures, 0, "who has a session keeps it: {done:?}");
    model.verify(&mut open(&cluster.address()));
    drop(silent);
    cluster.stop();
}
