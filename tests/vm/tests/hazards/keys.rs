//! H8: a data server that uses what was given to another one, or was taken back, or lies beyond what
//! it was given, is refused by the device; nobody else notices.

use std::sync::Arc;

use gannet_conformance::fabric::end::{End, buffer_with, connect, content, until};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{Access, Address, ConnectionId, Fabric, RemoteSlice, Transfer, TransferStatus};
use gannet_integration::one_at_a_time;
use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::pool::BufferPool;
use gannet_vm::guest;

/// Of the honest data server, outstanding while the other one trespasses.
const TRANSFERS: u64 = 30;
const PORT: u16 = 7700;
const CANARY: u8 = 0xc9;
const PAYLOAD: u8 = 0x3b;
const GARBAGE: u8 = 0x66;

/// What the second data server tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trespass {
    /// A key of the first one.
    Foreign,
    /// A window of its own that was closed.
    Closed,
    /// A registration of its own that was taken back.
    TakenBack,
    /// From within its own registration past the end of it.
    PastTheEnd,
}

fn end_at(index: u16) -> (End<AnyFabric>, Address) {
    let address = Address::Rdma { host: guest::own_address().to_string(), port: PORT + index };
    let fabric = AnyFabric::new(FabricOptions::default());
    (End::new(fabric), address)
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn a_trespassing_data_server_is_refused_and_its_neighbour_is_spared() {
    let _turn = one_at_a_time();
    for writes in [true, false] {
        for trespass in
            [Trespass::Foreign, Trespass::Closed, Trespass::TakenBack, Trespass::PastTheEnd]
        {
            try_it(trespass, writes);
        }
    }
}

fn try_it(trespass: Trespass, writes: bool) {
    let what = format!("{trespass:?}, writes {writes}");
    let (mut host, _) = end_at(0);
    let (mut honest, honest_address) = end_at(1);
    let (mut other, other_address) = end_at(2);
    honest.fabric.listen(&honest_address).expect("the address is free");
    other.fabric.listen(&other_address).expect("the address is free");
    let (to_honest, honest_to_host) = connect(&mut host, &mut honest, &honest_address);
    let (to_other, other_to_host) = connect(&mut host, &mut other, &other_address);

    let memory = Mapping::shareable(TRANSFERS as usize * PAGE_BYTES).expect("memory");
    let unwanted = Mapping::shareable(2 * PAGE_BYTES).expect("memory");
    for mapping in [&memory, &unwanted] {
        mapping.copy_in(0, &vec![CANARY; mapping.len()]);
    }
    let given = register(&mut host, &mut honest, to_honest, &memory, Access::READ_WRITE);
    let slice = match trespass {
        Trespass::Foreign => RemoteSlice { len_bytes: 64, ..given },
        Trespass::Closed => {
            let access = Access::WINDOWS_ONLY;
            let base = register(&mut host, &mut other, to_other, &unwanted, access);
            let (fabric, access) = (&mut host.fabric, Access::READ_WRITE);
            let window = fabric.open_window(to_other, base.key, 0, 64, access).expect("a window");
            let key = window.key;
            let open = |host: &mut End<_>, _: &mut End<_>| host.registered(to_other, key);
            until("the window", &mut host, &mut other, open);
            take_back(&mut host, &mut other, to_other, key);
            RemoteSlice { address: window.address, key, len_bytes: 64 }
        }
        Trespass::TakenBack => {
            let base = register(&mut host, &mut other, to_other, &unwanted, Access::READ_WRITE);
            take_back(&mut host, &mut other, to_other, base.key);
            RemoteSlice { len_bytes: 64, ..base }
        }
        Trespass::PastTheEnd => {
            let base = register(&mut host, &mut other, to_other, &unwanted, Access::READ_WRITE);
            let address = base.address + (unwanted.len() - 32) as u64;
            RemoteSlice { address, len_bytes: 64, ..base }
        }
    };

    let pool = BufferPool::new(PAGE_BYTES, TRANSFERS as u32 + 1).expect("memory");
    for token in 0..TRANSFERS {
        let remote = RemoteSlice {
            address: given.address + token * PAGE_BYTES as u64,
            len_bytes: PAGE_BYTES as u32,
            ..given
        };
        let local = buffer_with(&pool, &[PAYLOAD; PAGE_BYTES]);
        let transfer = Transfer { token, memory: local, offset: 0, remote };
        honest.fabric.write(honest_to_host, transfer).expect("room");
        if token == TRANSFERS / 2 {
            honest.fabric.flush();
            let local = buffer_with(&pool, &[GARBAGE; PAGE_BYTES]);
            let transfer = Transfer { token: 4711, memory: local, offset: 0, remote: slice };
            let fabric = &mut other.fabric;
            let posted = if writes {
                fabric.write(other_to_host, transfer)
            } else {
                fabric.read(other_to_host, transfer)
            };
            posted.expect("room");
            fabric.flush();
        }
    }
    let refused = until("the refusal", &mut host, &mut other, |_, other| {
        honest.turn();
        other.completion(other_to_host)
    });
    let (token, local, status) = refused;
    assert_eq!((token, status), (4711, TransferStatus::AccessRefused), "{what}");
    let local = local.into_buffer().expect("a buffer");
    assert!(local.iter().all(|byte| *byte == GARBAGE), "{what}: something was read");
    for expected in 0..TRANSFERS {
        let done = |_: &mut End<_>, honest: &mut End<_>| honest.completion(honest_to_host);
        let (token, _, status) = until("a neighbour", &mut host, &mut honest, done);
        assert_eq!((token, status), (expected, TransferStatus::Done), "{what}");
    }
    assert!(content(&memory).iter().all(|byte| *byte == PAYLOAD), "{what}: the neighbour's bytes");
    assert!(content(&unwanted).iter().all(|byte| *byte == CANARY), "{what}: a byte was written");
    honest.fabric.send(honest_to_host, b"still here").expect("a credit");
    let message = |host: &mut End<_>, _: &mut End<_>| host.message(to_honest);
    assert_eq!(until("a message", &mut host, &mut honest, message), b"still here", "{what}");
}

fn register(
    host: &mut End<AnyFabric>,
    server: &mut End<AnyFabric>,
    connection: ConnectionId,
    memory: &Arc<Mapping>,
    access: Access,
) -> RemoteSlice {
    let made = host.fabric.register(connection, memory, access).expect("registered");
    until("the registration", host, server, |host, _| host.registered(connection, made.key));
    RemoteSlice { address: made.address, key: made.key, len_bytes: memory.len() as u32 }
}

fn take_back(
    host: &mut End<AnyFabric>,
    server: &mut End<AnyFabric>,
    connection: ConnectionId,
    key: gannet_fabric::Key,
) {
    host.fabric.deregister(connection, key);
    until("the end of the key", host, server, |host, _| host.deregistered(connection, key));
}
