//! What the shm provider costs above the hardware: round trips and one-way rate between two pinned
//! threads, beside a bare cache-line ping-pong in the same run.
//!
//! `cargo run --release -p gannet-fabric --example shm_speed [rounds]`

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gannet_fabric::shm::{ShmFabric, ShmOptions};
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
    let rounds: u64 = match std::env::args().nth(1).map(|text| text.parse()) {
        Some(Ok(rounds)) if rounds >= 2 => rounds,
        None => 1_000_000,
        Some(_) => panic!("the argument is the number of rounds, at least 2"),
    };
    pin(0);
    let row = |name: &str, unit: &str, mut run: Box<dyn FnMut() -> f64>| {
        let mut values: Vec<f64> = (0..REPEATS).map(|_| run()).collect();
        values.sort_by(f64::total_cmp);
        let (least, median, most) = (values[0], values[REPEATS / 2], values[REPEATS - 1]);
        println!("{name:<44} {median:>9.3} {unit:<6} ({least:.3} to {most:.3})");
    };
    row("cache line, round trip", "us", Box::new(move || line_round_trip(rounds)));
    for len in [16, 56, 64, 128, 256, 4096] {
        let name = format!("message of {len} bytes, round trip");
        row(&name, "us", Box::new(move || message_round_trip(rounds, len)));
    }
    for len in [16, 64, 256] {
        let name = format!("messages of {len} bytes, one way");
        row(&name, "M/s", Box::new(move || one_way(rounds * 10, len)));
    }
    for len in [4096, 131_072] {
        let name = format!("write of {len} bytes and its notice, round trip");
        row(&name, "us", Box::new(move || write_round_trip(rounds / 8 + 2, len)));
    }
    row("poll of an idle connection", "ns", Box::new(move || idle_poll(rounds, 1)));
    row("poll of 100 idle connections", "ns", Box::new(move || idle_poll(rounds / 10 + 2, 100)));
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
    fabric: ShmFabric,
    events: Events,
}

impl Thread {
    fn new() -> Thread {
        let fabric = ShmFabric::new(ShmOptions::default()).expect("a fabric");
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
            self.fabric.poll(Time::monotonic(), &mut self.events);
        }
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
            self.fabric.poll(Time::monotonic(), &mut self.events);
        }
    }
}

/// Runs two connected threads on two cores and returns what the first one measured.
fn pair(
    near: impl FnOnce(&mut Thread, ConnectionId) -> f64,
    far: impl FnOnce(&mut Thread, ConnectionId) + Send,
) -> f64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("gannet-speed-{}-{number}", std::process::id());
    let address = Address::shm(std::env::temp_dir().join(name)).expect("a good path");
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

fn message_round_trip(rounds: u64, len: usize) -> f64 {
    let message = vec![1; len];
    let echo = message.clone();
    pair(
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

fn one_way(messages: u64, len: usize) -> f64 {
    pair(
        move |thread, _| {
            let start = Instant::now();
            let mut received = 0;
            while received < messages {
                while let Some(event) = thread.events.pop() {
                    received += u64::from(matches!(event, Event::Message { .. }));
                }
                thread.events.clear();
                thread.fabric.poll(Time::monotonic(), &mut thread.events);
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

/// A request, answered by a write into the requester's memory and a notice.
fn write_round_trip(rounds: u64, len: usize) -> f64 {
    pair(
        move |thread, id| {
            let memory = Mapping::shareable(len).expect("memory");
            let at = thread.fabric.register(id, &memory, Access::READ_WRITE).expect("registration");
            thread.wait(|_, event| matches!(event, Event::Registered { .. }).then_some(()));
            thread
                .send(id, &[at.address.to_le_bytes(), u64::from(at.key.0).to_le_bytes()].concat());
            let start = Instant::now();
            for _ in 0..rounds {
                thread.send(id, &[2]);
                thread.fabric.flush();
                thread.message();
            }
            start.elapsed().as_secs_f64() * 1e6 / rounds as f64
        },
        move |thread, id| {
            let pool = BufferPool::new(len, 1).expect("memory");
            let remote = thread.wait(|events, event| match event {
                Event::Message { bytes, .. } => {
                    let (address, key) = events.message(bytes).split_first_chunk::<8>()?;
                    let address = u64::from_le_bytes(*address);
                    let key = Key(u32::from_le_bytes(*key.first_chunk::<4>()?));
                    Some(RemoteSlice { address, key, len_bytes: len as u32 })
                }
                _ => None,
            });
            let mut memory = pool.take().map(Memory::Buffer);
            for _ in 0..rounds {
                thread.message();
                let local = memory.take().expect("the last write has completed");
                let transfer = Transfer { token: 0, memory: local, offset: 0, remote };
                thread.fabric.write(id, transfer).expect("room");
                thread.send(id, &[3]);
                thread.fabric.flush();
                memory = Some(thread.wait(|_, event| match event {
                    Event::Transferred { memory, .. } => Some(memory),
                    _ => None,
                }));
            }
        },
    )
}

fn idle_poll(rounds: u64, connections: usize) -> f64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("gannet-speed-idle-{}-{number}", std::process::id());
    let address = Address::shm(std::env::temp_dir().join(name)).expect("a good path");
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
