//! The data path allocates nothing.

use gannet_fabric::{Access, Event, Events, Fabric, Transfer, WindowError};
use gannet_runtime::counting_allocator::allocations_on_this_thread;
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;

use super::Provider;
use super::end::Pair;
use super::transfers::remote;

const MESSAGE_BYTES: [usize; 4] = [16, 64, 200, 4000];

/// One turn of the right end: drops what arrived; true if a completion was among it.
fn drain<F: Fabric>(fabric: &mut F, events: &mut Events) -> (u32, u32) {
    let (mut messages, mut completions) = (0, 0);
    fabric.flush();
    fabric.poll(Time::monotonic(), events);
    while let Some(event) = events.pop() {
        match event {
            Event::Message { bytes, .. } => {
                assert!(!events.message(bytes).is_empty());
                messages += 1;
            }
            Event::Transferred { .. } => completions += 1,
            other => panic!("{other:?}"),
        }
    }
    events.clear();
    (messages, completions)
}

/// Messages, writes, reads and sleep flags in steady state allocate nothing at either end.
pub fn steady_state_allocates_nothing(provider: &impl Provider) {
    let before = allocations_on_this_thread();
    let witness = std::hint::black_box(vec![1u8; 100]);
    assert!(allocations_on_this_thread() > before, "the test binary does not count");
    drop(witness);

    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let memory = Mapping::shareable(1 << 20).expect("memory");
    let at = pair.register_left(&memory, Access::READ_WRITE);
    let pool = BufferPool::new(64 * 1024, 8).expect("memory");
    let mut events = Events::with_capacity(1024, 1 << 20);
    let message = [7u8; 4096];
    let mut rounds = |count: u64| {
        let (mut messages, mut completions) = (0, 0);
        for round in 0..count {
            for len in MESSAGE_BYTES {
                pair.left.fabric.send(to_right, &message[..len]).expect("a credit");
                pair.right.fabric.send(to_left, &message[..len]).expect("a credit");
            }
            for _ in 0..2 {
                let local = pool.take().expect("a free buffer");
                let transfer = Transfer {
                    token: round,
                    memory: Memory::Buffer(local),
                    offset: 0,
                    remote: remote(at, 4096, 65536),
                };
                pair.right.fabric.write(to_left, transfer).expect("room");
            }
            let target = remote(at, 0, 4096);
            if let Some(view) = pair.right.fabric.map(to_left, target, Access::READ_WRITE) {
                let transfer =
                    Transfer { token: 1, memory: Memory::Shared(view), offset: 0, remote: target };
                pair.right.fabric.read(to_left, transfer).expect("room");
                completions -= 1;
            }
            completions -= 2;
            messages -= 2 * MESSAGE_BYTES.len() as i32;
            if round % 16 == 0 {
                pair.left.fabric.arm();
                pair.right.fabric.arm();
            }
            while (messages, completions) != (0, 0) {
                for fabric in [&mut pair.left.fabric, &mut pair.right.fabric] {
                    let (new_messages, new_completions) = drain(fabric, &mut events);
                    messages += new_messages as i32;
                    completions += new_completions as i32;
                }
            }
            if round % 16 == 0 {
                pair.left.fabric.disarm();
                pair.right.fabric.disarm();
            }
        }
    };
    rounds(provider.rounds(100).max(20));
    let before = allocations_on_this_thread();
    rounds(provider.rounds(2000));
    assert_eq!(allocations_on_this_thread() - before, 0, "allocations on the data path");
}

/// Windows that open and close in steady state allocate nothing at their end.
pub fn windows_in_steady_state_allocate_nothing(provider: &impl Provider) {
    const OPEN: usize = 8;
    const BYTES: u64 = 4096;
    let mut pair = Pair::new(provider);
    let to_right = pair.to_right;
    let memory = Mapping::shareable(1 << 20).expect("memory");
    let at = pair.register_left(&memory, Access::WINDOWS_ONLY);
    if !pair.left.fabric.capabilities(to_right).memory_windows {
        let refused = pair.left.fabric.open_window(to_right, at.key, 0, BYTES, Access::READ_WRITE);
        assert_eq!(refused, Err(WindowError::Unsupported));
        return;
    }
    let mut events = Events::with_capacity(1024, 1 << 20);
    let mut rounds = |count: u64| {
        let access = Access { remote_read: false, remote_write: true };
        for _ in 0..count {
            let mut keys = [gannet_fabric::Key(0); OPEN];
            for (number, key) in (0..).zip(&mut keys) {
                let fabric = &mut pair.left.fabric;
                let window = fabric.open_window(to_right, at.key, number * BYTES, BYTES, access);
                *key = window.expect("room for a few windows").key;
            }
            let (mut opened, mut closed) = (0, 0);
            while closed < OPEN {
                for fabric in [&mut pair.left.fabric, &mut pair.right.fabric] {
                    fabric.flush();
                    fabric.poll(Time::monotonic(), &mut events);
                }
                while let Some(event) = events.pop() {
                    match event {
                        Event::Registered { .. } => opened += 1,
                        Event::Deregistered { .. } => closed += 1,
                        other => panic!("{other:?}"),
                    }
                }
                events.clear();
                if opened == OPEN {
                    opened = 0;
                    for key in keys {
                        pair.left.fabric.deregister(to_right, key);
                    }
                }
            }
        }
    };
    rounds(20);
    let before = allocations_on_this_thread();
    rounds(provider.rounds(500));
    assert_eq!(allocations_on_this_thread() - before, 0, "allocations by windows");
}
