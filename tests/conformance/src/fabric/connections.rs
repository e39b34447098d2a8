//! Making, bounding and ending connections.

use std::collections::{HashMap, HashSet};

use gannet_fabric::{
    Access, ConnectionId, DisconnectReason, Fabric, FabricError, Key, PeerIdentity, PostError,
    RemoteSlice, Transfer, WindowError,
};
use gannet_runtime::memory::Mapping;
use gannet_runtime::pool::BufferPool;

use super::end::{End, Note, Pair, buffer_with, connect, until};
use super::{Bounds, Provider};

/// Both ends are told, know each other, and may end the connection.
pub fn a_connection_is_made(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    for peer in [pair.left.fabric.peer(to_right), pair.right.fabric.peer(to_left)] {
        match peer.expect("an established connection has a peer") {
            PeerIdentity::Local { pid, .. } => assert_eq!(pid, std::process::id()),
            PeerIdentity::Network(name) => assert!(!name.is_empty()),
        }
    }
    pair.left.fabric.disconnect(to_right);
    let reason = pair.until("the local end", |left, _| left.ended(to_right));
    assert_eq!(reason, DisconnectReason::Local);
    let reason = pair.until("the remote end", |_, right| right.ended(to_left));
    assert_eq!(reason, DisconnectReason::Remote);
    assert_eq!(pair.left.fabric.peer(to_right), None);
    assert_eq!(pair.right.fabric.peer(to_left), None);
    // Ending it once more does nothing.
    pair.left.fabric.disconnect(to_right);
    pair.left.turn();
    assert!(pair.left.notes.is_empty(), "{:?}", pair.left.notes);
}

/// Connecting where nobody listens ends with an event.
pub fn nobody_listens(provider: &impl Provider) {
    let mut left = End::new(provider.fabric());
    let mut idle = End::new(provider.fabric());
    let connection = left.fabric.connect(&provider.address()).expect("room for a connection");
    let reason = until("the answer", &mut left, &mut idle, |left, _| left.ended(connection));
    assert_eq!(reason, DisconnectReason::Unreachable);
}

/// A second listener is refused while the first lives, and takes over after it.
pub fn an_address_has_one_listener(provider: &impl Provider) {
    let address = provider.address();
    let mut first = provider.fabric();
    first.listen(&address).expect("a free address");
    let mut second = provider.fabric();
    let refused = second.listen(&address).expect_err("the address is taken");
    assert!(matches!(refused, FabricError::System { .. }), "{refused}");
    drop(first);
    second.listen(&address).expect("the address is free again");
    let mut left = End::new(provider.fabric());
    connect(&mut left, &mut End::new(second), &address);
}

/// Full tables refuse on either side, and room made is room.
pub fn connections_are_bounded(provider: &impl Provider) {
    let few = || provider.fabric_with(Bounds { connections_max: 2, ..Bounds::default() });
    let many = || provider.fabric();

    // At the side that connects.
    let mut pair = Pair::of(provider, few(), many());
    let address = pair.address.clone();
    connect(&mut pair.left, &mut pair.right, &address);
    let refused = pair.left.fabric.connect(&address).expect_err("the table is full");
    assert!(matches!(refused, FabricError::Limit { limit: 2, .. }), "{refused}");
    let to_right = pair.to_right;
    pair.left.fabric.disconnect(to_right);
    pair.until("the end", |left, _| left.ended(to_right));
    connect(&mut pair.left, &mut pair.right, &address);

    // At the side that accepts.
    let mut pair = Pair::of(provider, many(), few());
    let address = pair.address.clone();
    connect(&mut pair.left, &mut pair.right, &address);
    let third = pair.left.fabric.connect(&address).expect("room at this side");
    pair.until("the refusal", |left, _| left.ended(third));
    let to_right = pair.to_right;
    let to_left = pair.to_left;
    pair.left.fabric.disconnect(to_right);
    pair.until("the end", |_, right| right.ended(to_left));
    connect(&mut pair.left, &mut pair.right, &address);
}

/// Messages of many connections stay apart, also when some of them end.
pub fn many_connections_do_not_mix(provider: &impl Provider) {
    const CONNECTIONS: usize = 40;
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let mut connections = vec![(pair.to_right, pair.to_left)];
    while connections.len() < CONNECTIONS {
        connections.push(connect(&mut pair.left, &mut pair.right, &address));
    }
    let distinct: HashSet<_> = connections.iter().map(|(left, _)| *left).collect();
    assert_eq!(distinct.len(), CONNECTIONS);
    for round in 0..20u32 {
        for (number, (to_right, _)) in connections.iter().enumerate() {
            let message = [(number as u32).to_le_bytes(), round.to_le_bytes()].concat();
            pair.left.fabric.send(*to_right, &message).expect("a credit");
        }
        let mut seen: HashMap<ConnectionId, Vec<u8>> = HashMap::new();
        pair.until("all messages", |_, right| {
            while let Some((id, bytes)) = right.take(|id, note| match note {
                Note::Message(bytes) => Some((id, bytes.clone())),
                _ => None,
            }) {
                assert!(seen.insert(id, bytes).is_none(), "one message per round");
            }
            (seen.len() == connections.len()).then_some(())
        });
        for (number, (_, to_left)) in connections.iter().enumerate() {
            let message = [(number as u32).to_le_bytes(), round.to_le_bytes()].concat();
            assert_eq!(seen.get(to_left), Some(&message));
        }
        if connections.len() > 4 {
            let (to_right, to_left) = connections.swap_remove(round as usize % 4);
            pair.right.fabric.disconnect(to_left);
            pair.until("the end", |left, _| left.ended(to_right));
        }
    }
}

/// Two roles on one fabric value may talk to each other.
pub fn a_fabric_reaches_itself(provider: &impl Provider) {
    let mut only = End::new(provider.fabric());
    let mut idle = End::new(provider.fabric());
    let address = provider.address();
    only.fabric.listen(&address).expect("a free address");
    let outward = only.fabric.connect(&address).expect("room for a connection");
    let inward = until("both events", &mut only, &mut idle, |only, _| {
        let connected =
            only.notes.iter().any(|(id, note)| *id == outward && matches!(note, Note::Connected));
        let accepted = only.notes.iter().find(|(_, note)| matches!(note, Note::Accepted));
        accepted.filter(|_| connected).map(|(id, _)| *id)
    });
    only.fabric.send(outward, b"there").expect("a credit");
    only.fabric.send(inward, b"back").expect("a credit");
    let there = until("a message", &mut only, &mut idle, |only, _| only.message(inward));
    let back = until("a message", &mut only, &mut idle, |only, _| only.message(outward));
    assert_eq!((there.as_slice(), back.as_slice()), (&b"there"[..], &b"back"[..]));
}

/// After the end, posts are refused and give their memory back.
pub fn an_ended_connection_takes_nothing(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let (to_right, to_left) = (pair.to_right, pair.to_left);
    let pool = BufferPool::new(4096, 1).expect("memory");
    pair.left.fabric.disconnect(to_right);
    assert_refuses(&mut pair.left.fabric, to_right, &pool);
    assert_registers_nothing(&mut pair.left.fabric, to_right);
    pair.until("the end", |_, right| right.ended(to_left));
    assert_refuses(&mut pair.right.fabric, to_left, &pool);
    pair.until("the end", |left, _| left.ended(to_right));
    assert_refuses(&mut pair.left.fabric, to_right, &pool);
    assert_registers_nothing(&mut pair.left.fabric, to_right);
}

/// Every post on `id` is refused and gives its memory back.
fn assert_refuses<F: Fabric>(fabric: &mut F, id: ConnectionId, pool: &BufferPool) {
    assert_eq!(fabric.send(id, b"late"), Err(PostError::NotConnected));
    let remote = RemoteSlice { address: 0, key: Key(1), len_bytes: 8 };
    for writes in [true, false] {
        let memory = buffer_with(pool, b"kept");
        let transfer = Transfer { token: 1, memory, offset: 0, remote };
        let posted = if writes { fabric.write(id, transfer) } else { fabric.read(id, transfer) };
        let refused = posted.expect_err("not connected");
        assert_eq!(refused.error, PostError::NotConnected);
        let buffer = refused.transfer.memory.into_buffer().expect("the buffer is back");
        assert_eq!(&buffer[..4], b"kept");
    }
    assert!(fabric.map(id, remote, Access::READ_WRITE).is_none());
    fabric.deregister(id, Key(1));
}

/// Nothing is registered on `id`.
fn assert_registers_nothing<F: Fabric>(fabric: &mut F, id: ConnectionId) {
    let memory = Mapping::shareable(4096).expect("memory");
    let refused = fabric.register(id, &memory, Access::READ_WRITE).expect_err("not connected");
    assert!(matches!(refused, FabricError::NotConnected), "{refused}");
    if fabric.capabilities(id).memory_windows {
        let window = fabric.open_window(id, Key(1), 0, 8, Access::READ_WRITE);
        assert_eq!(window, Err(WindowError::NotConnected));
    }
}

/// A new connection never has the id of an ended one.
pub fn ids_are_not_reused(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    let mut seen = HashSet::from([pair.to_right]);
    let (mut to_right, mut to_left) = (pair.to_right, pair.to_left);
    for _ in 0..10 {
        pair.left.fabric.disconnect(to_right);
        pair.until("the end", |_, right| right.ended(to_left));
        let old = to_right;
        (to_right, to_left) = connect(&mut pair.left, &mut pair.right, &address);
        assert!(seen.insert(to_right), "{to_right:?} was used before");
        assert_eq!(pair.left.fabric.send(old, b"stale"), Err(PostError::NotConnected));
    }
}

/// Disconnecting before the connection is usable leaves both sides usable.
pub fn disconnecting_early_is_clean(provider: &impl Provider) {
    let mut pair = Pair::new(provider);
    let address = pair.address.clone();
    for turns in 0..4 {
        let early = pair.left.fabric.connect(&address).expect("room for a connection");
        for _ in 0..turns {
            pair.left.turn();
        }
        pair.left.fabric.disconnect(early);
        let reason = pair.until("the end", |left, _| left.ended(early));
        assert_eq!(reason, DisconnectReason::Local);
    }
    // The first connection works, and so does a new one. What the right end was told about the others,
    // perhaps late, is consistent.
    let first = (pair.to_right, pair.to_left);
    let fresh = pair.left.fabric.connect(&address).expect("room for a connection");
    pair.until("the connection", |left, _| {
        left.take(|id, note| (id == fresh && matches!(note, Note::Connected)).then_some(()))
    });
    for id in [first.0, fresh] {
        pair.left.fabric.send(id, b"still here").expect("a credit");
    }
    let mut open = HashSet::from([first.1]);
    let mut heard = HashSet::new();
    pair.until("both messages, and the ends of all others", |_, right| {
        while let Some((id, note)) = right.notes.pop_front() {
            match note {
                Note::Accepted => assert!(open.insert(id)),
                Note::Disconnected(_) => assert!(open.remove(&id), "ended but never accepted"),
                Note::Message(_) => assert!(open.contains(&id) && heard.insert(id)),
                other => panic!("{other:?}"),
            }
        }
        (heard.len() == 2 && open == heard).then_some(())
    });
}
