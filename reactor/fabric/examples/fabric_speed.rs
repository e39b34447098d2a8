//! What a provider costs above the hardware: round trips and rates between two pinned threads, beside
//! a bare cache-line ping-pong in the same run. Over tcp the connection is on loopback.
//!
//! `cargo run --release -p gannet-fabric --example fabric_speed [shm|tcp [rounds [part of a row's name]]]`

use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{
    Access, Address, ConnectionId, Event, Events, Fabric, Key, PostError, RemoteSlice, Transfer,
};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;

const REPEATS: usize = 5;

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

fn main() {
    let scheme = match std::env::args().nth(1).as_deref() {
        None | Some("shm") => Scheme::Shm,
        Some("tcp") => Scheme::Tcp,
        Some(_) => panic!("the first argument is shm or tcp"),
    };
    let rounds: u64 = match (std::env::args().nth(2).map(|text| text.parse()), scheme) {
        (Some(Ok(rounds)), _) if rounds >= 2 => rounds,
        (None, Scheme::Shm) => 1_000_000,
        (None, Scheme::Tcp) => 100_000,
        _ => panic!("the second argument is the number of rounds, at least 2"),
    };
    let only = std::env::args().nth(3).unwrap_or_default();
    pin(0);
    let row = |name: &str, unit: &str, mut run: Box<dyn FnMut() -> f64>| {
        if !name.contains(&only) {
            return;
        }
        let mut values: Vec<f64> = (0..REPEATS).map(|_| run()).collect();
        values.sort_by(f64::total_cmp);
        let (least, median, most) = (values[0], values[REPEATS / 2], values[REPEATS - 1]);
        println!("{name:<44} {median:>9.3} {unit:<6} ({least:.3} to {most:.3})");
    };
    row("cache line, round trip", "us", Box::new(move || line_round_trip(rounds)));
    for len in [16, 56, 64, 128, 256, 4096] {
        let name = format!("message of {len} bytes, round trip");
        row(&name, "us", Box::new(move || message_round_trip(scheme, rounds, len)));
    }
    for len in [16, 64, 256] {
        let name = format!("messages of {len} bytes, one way");
        row(&name, "M/s", Box::new(move || one_way(scheme, rounds * 10, len)));
    }
    for (len, depth) in [(4096, 1), (4096, 32), (4096, 128), (131_072, 1), (131_072, 8)] {
        let name = format!("requests for {len} bytes, {depth} outstanding");
        let rounds = if len > 4096 { rounds / 8 + 2 } else { rounds };
        row(&name, "k/s", Box::new(move || requests(scheme, rounds, len, depth)));
    }
    row("poll of an idle connection", "ns", Box::new(move || idle_poll(scheme, rounds, 1)));
    row(
        "poll of 100 idle connections",
        "ns",
        Box::new(move || idle_poll(scheme, rounds / 10 + 2, 100)),
    );
}

/// Which provider is measured.
#[derive(Clone, Copy)]
enum Scheme {
    Shm,
    Tcp,
}

impl Scheme {
    /// An address at which nobody listens.
    fn address(self) -> Address {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        match self {
            Scheme::Shm => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let name = format!("gannet-speed-{}-{number}", std::process::id());
                Address::shm(std::env::temp_dir().join(name)).expect("a good path")
            }
            Scheme::Tcp => {
                let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
                let port = free.local_addr().expect("a bound socket").port();
                Address::Tcp { host: "127.0.0.1".to_owned(), port }
            }
        }
    }
}

/// Pins the calling thread to the process's `number`th core.
fn pin(number: usize) {
    // Asked once, by the unpinned main thread: threads inherit the affinity of their parent.
    static CORES: OnceLock<Vec<core_affinity::CoreId>> = OnceLock::new();
    let cores = CORES.get_or_init(|| core_affinity::get_core_ids().unwrap_or_default());
    assert!(cores.len() >= 2, "two cores are needed, there are {}", cores.len());
    core_affinity::set_for_current(cores[number]);
}

fn line_round_trip(rounds: u64) -> f64 {
    let (there, back) = (Line(AtomicU64::new(0)), Line(AtomicU64::new(0)));
    let (there, back) = (&there.0, &back.0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            for round in 1..=rounds {
                while there.load(Ordering::Acquire) != round {
                    std::hint::spin_loop();
                }
                back.store(round, Ordering::Release);
            }
        });
        pin(0);
        let mut start = Instant::now();
        for round in 1..=rounds {
            if round == 2 {
                // The other thread runs now.
                start = Instant::now();
            }
            there.store(round, Ordering::Release);
            while back.load(Ordering::Acquire) != round {
                std::hint::spin_loop();
            }
        }
        start.elapsed().as_secs_f64() * 1e6 / rounds as f64
    })
}

/// A fabric with the events of its thread.
struct Thread {
    fabric: AnyFabric,
    events: Events,
}

impl Thread {
    fn new() -> Thread {
        let fabric = AnyFabric::new(FabricOptions::default());
        Thread { fabric, events: Events::with_capacity(1024, 1 << 21) }
    }

    /// Polls until `wanted` picks an event; others are dropped.
    fn wait<T>(&mut self, mut wanted: impl FnMut(&Events, Event) -> Option<T>) -> T {
        loop {
            while let Some(event) = self.events.pop() {
                if let Some(value) = wanted(&self.events, event) {
                    return value;
                }
            }
            self.events.clear();
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.fabric.flush();
        self.fabric.poll(Time::monotonic(), &mut self.events);
    }

    fn message(&mut self) -> u64 {
        self.wait(|events, event| match event {
            Event::Message { bytes, .. } => Some(u64::from(events.message(bytes)[0])),
            _ => None,
        })
    }

    fn send(&mut self, id: ConnectionId, message: &[u8]) {
        while let Err(error) = self.fabric.send(id, message) {
            assert_eq!(error, PostError::Full);
            self.turn();
        }
    }
}

/// Runs two connected threads on two cores and returns what the first one measured.
fn pair(
    scheme: Scheme,
    near: impl FnOnce(&mut Thread, ConnectionId) -> f64,
    far: impl FnOnce(&mut Thread, ConnectionId) + Send,
) -> f64 {
    let address = scheme.address();
    pin(0);
    let mut thread = Thread::new();
    thread.fabric.listen(&address).expect("a free address");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            let mut thread = Thread::new();
            let id = thread.fabric.connect(&address).expect("room");
            thread.wait(|_, event| matches!(event, Event::Connected { .. }).then_some(()));
            far(&mut thread, id);
            // The other side may still want to read what was sent.
            thread.wait(|_, event| matches!(event, Event::Disconnected { .. }).then_some(()));
        });
        let id = thread.wait(|_, event| match event {
            Event::Accepted { connection, .. } => Some(connection),
            _ => None,
        });
        let measured = near(&mut thread, id);
        drop(thread);
        measured
    })
}

fn message_round_trip(scheme: Scheme, rounds: u64, len: usize) -> f64 {
    let message = vec![1; len];
    let echo = message.clone();
    pair(
        scheme,
        move |thread, id| {
            let start = Instant::now();
            for _ in 0..rounds {
                thread.send(id, &message);
                thread.fabric.flush();
                thread.message();
            }
            start.elapsed().as_secs_f64() * 1e6 / rounds as f64
        },
        move |thread, id| {
            for _ in 0..rounds {
                thread.message();
                thread.send(id, &echo);
                thread.fabric.flush();
            }
        },
    )
}

fn one_way(scheme: Scheme, messages: u64, len: usize) -> f64 {
    pair(
        scheme,
        move |thread, _| {
            let start = Instant::now();
            let mut received = 0;
            while received < messages {
                while let Some(event) = thread.events.pop() {
                    received += u64::from(matches!(event, Event::Message { .. }));
                }
                thread.events.clear();
                thread.turn();
            }
            messages as f64 / start.elapsed().as_secs_f64() / 1e6
        },
        move |thread, id| {
            let message = vec![1; len];
            for number in 0..messages {
                thread.send(id, &message);
                // A turn's worth of messages per doorbell.
                if number % 32 == 31 {
                    thread.fabric.flush();
                }
            }
            thread.fabric.flush();
        },
    )
}

/// Requests of 96 bytes, each answered by a write into the requester's memory and a notice of 64.
fn requests(scheme: Scheme, rounds: u64, len: usize, depth: u64) -> f64 {
    pair(
        scheme,
        move |thread, id| {
            let memory = Mapping::shareable(len * depth as usize).expect("memory");
            let at = thread.fabric.register(id, &memory, Access::READ_WRITE).expect("registration");
            thread.wait(|_, event| matches!(event, Event::Registered { .. }).then_some(()));
            thread
                .send(id, &[at.address.to_le_bytes(), u64::from(at.key.0).to_le_bytes()].concat());
            let mut request = [0; 96];
            for number in 0..depth {
                request[0] = number as u8;
                thread.send(id, &request);
            }
            thread.fabric.flush();
            let start = Instant::now();
            let (mut sent, mut answered) = (depth, 0);
            while answered < rounds {
                while let Some(event) = thread.events.pop() {
                    let Event::Message { bytes, .. } = event else { continue };
                    request[0] = thread.events.message(bytes)[0];
                    answered += 1;
                    if sent < rounds {
                        sent += 1;
                        thread.fabric.send(id, &request).expect("a credit");
                    }
                }
                thread.events.clear();
                thread.turn();
            }
            rounds as f64 / start.elapsed().as_secs_f64() / 1e3
        },
        move |thread, id| {
            let pool = BufferPool::new(len, depth as u32).expect("memory");
            let (address, key) = thread.wait(|events, event| match event {
                Event::Message { bytes, .. } => {
                    let (address, key) = events.message(bytes).split_first_chunk::<8>()?;
                    Some((
                        u64::from_le_bytes(*address),
                        u32::from_le_bytes(*key.first_chunk::<4>()?),
                    ))
                }
                _ => None,
            });
            let mut memory: Vec<Memory> =
                (0..depth).map(|_| Memory::Buffer(pool.take().expect("a free buffer"))).collect();
            let mut waiting = std::collections::VecDeque::with_capacity(depth as usize);
            let mut answered = 0;
            while answered < rounds {
                while let Some(event) = thread.events.pop() {
                    match event {
                        Event::Message { bytes, .. } => {
                            waiting.push_back(thread.events.message(bytes)[0]);
                        }
                        Event::Transferred { memory: back, .. } => memory.push(back),
                        other => panic!("{other:?}"),
                    }
                }
                while !waiting.is_empty() && !memory.is_empty() {
                    let (Some(number), Some(local)) = (waiting.front(), memory.pop()) else {
                        break;
                    };
                    let to = address + u64::from(*number) * len as u64;
                    let remote = RemoteSlice { address: to, key: Key(key), len_bytes: len as u32 };
                    let transfer = Transfer { token: 0, memory: local, offset: 0, remote };
                    match thread.fabric.write(id, transfer) {
                        Ok(()) => {}
                        Err(refused) => {
                            memory.push(refused.transfer.memory);
                            break;
                        }
                    }
                    thread.fabric.send(id, &[*number; 64]).expect("a credit");
                    waiting.pop_front();
                    answered += 1;
                }
                thread.events.clear();
                thread.turn();
            }
        },
    )
}

fn idle_poll(scheme: Scheme, rounds: u64, connections: usize) -> f64 {
    let address = scheme.address();
    pin(0);
    let (mut near, mut far) = (Thread::new(), Thread::new());
    near.fabric.listen(&address).expect("a free address");
    let mut accepted = 0;
    for _ in 0..connections {
        far.fabric.connect(&address).expect("room");
    }
    while accepted < connections {
        far.fabric.poll(Time::monotonic(), &mut far.events);
        near.fabric.poll(Time::monotonic(), &mut near.events);
        while let Some(event) = near.events.pop() {
            accepted += usize::from(matches!(event, Event::Accepted { .. }));
        }
    }
    let start = Instant::now();
    for _ in 0..rounds {
        near.fabric.poll(Time::monotonic(), &mut near.events);
    }
    start.elapsed().as_secs_f64() * 1e9 / rounds as f64
}
