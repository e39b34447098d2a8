//! Tails of answers to questions for counters: counters first, then connections.
//!
//! What does not fit one answer goes into the next: a writer is full when it refuses, and stays as
//! it was.

use core::mem::size_of;

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::handshake::split_tail;
use crate::limits::LARGE_PACKET_BYTES;
use crate::operations::{ConnectionEntry, CounterEntry};
use crate::packet::{DecodeError, Message};

/// Most bytes of one answer's tail.
pub const STATS_TAIL_BYTES_MAX: usize = 7 << 10;
/// Longest text of a [`ConnectionEntry`]; longer ones are cut off.
pub const CONNECTION_TEXT_BYTES_MAX: usize = 128;

/// The tail of one answer.
#[derive(Clone, Debug)]
pub struct StatsTail {
    bytes: [u8; STATS_TAIL_BYTES_MAX],
    used: usize,
    counters: u16,
    connections: u16,
}

/// No room is left; the tail is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailFull;

impl Default for StatsTail {
    fn default() -> StatsTail {
        StatsTail { bytes: [0; STATS_TAIL_BYTES_MAX], used: 0, counters: 0, connections: 0 }
    }
}

impl StatsTail {
    /// An empty tail.
    #[must_use]
    pub fn new() -> StatsTail {
        StatsTail::default()
    }

    /// Appends a counter; before all connections.
    ///
    /// # Errors
    /// [`TailFull`].
    pub fn push_counter(&mut self, name: &str, value: u64) -> Result<(), TailFull> {
        debug_assert_eq!(self.connections, 0, "counters come first");
        let entry = CounterEntry {
            value: U64::new(value),
            name_bytes: U16::new(name.len() as u16),
            ..CounterEntry::default()
        };
        self.append(&[entry.as_bytes(), name.as_bytes()])?;
        self.counters += 1;
        Ok(())
    }

    /// Appends a connection: see [`ConnectionEntry`].
    ///
    /// # Errors
    /// [`TailFull`].
    pub fn push_connection(
        &mut self,
        kind: u16,
        id: u64,
        fabric: &str,
        peer: &str,
    ) -> Result<(), TailFull> {
        let cut = |text: &str| text.floor_char_boundary(CONNECTION_TEXT_BYTES_MAX);
        let (fabric, peer) = (&fabric[..cut(fabric)], &peer[..cut(peer)]);
        let entry = ConnectionEntry {
            id: U64::new(id),
            kind: U16::new(kind),
            fabric_bytes: U16::new(fabric.len() as u16),
            peer_bytes: U16::new(peer.len() as u16),
            reserved: U16::ZERO,
        };
        self.append(&[entry.as_bytes(), fabric.as_bytes(), peer.as_bytes()])?;
        self.connections += 1;
        Ok(())
    }

    fn append(&mut self, parts: &[&[u8]]) -> Result<(), TailFull> {
        let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let room = self.bytes[self.used..].get_mut(..len_bytes).ok_or(TailFull)?;
        let mut at = 0;
        for part in parts {
            room[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.used += len_bytes;
        Ok(())
    }

    /// The encoded entries.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Number of counters.
    #[must_use]
    pub fn counters(&self) -> u16 {
        self.counters
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> u16 {
        self.connections
    }
}

/// One entry of a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsEntry<'a> {
    /// A counter.
    Counter {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: u64,
    },
    /// A connection.
    Connection {
        /// See [`crate::operations::connection_kind`].
        kind: u16,
        /// See [`crate::operations::connection_kind`].
        id: u64,
        /// The fabric's name.
        fabric: &'a [u8],
        /// Who is at the other end.
        peer: &'a [u8],
    },
}

/// Reads a tail of `counters` and `connections`.
///
/// # Errors
/// `Field` naming `count`, `name_bytes`, `connections`, `fabric_bytes` or `peer_bytes` of `T`.
pub fn read_stats<'a, T: Message>(
    mut tail: &'a [u8],
    counters: u16,
    connections: u16,
    mut each: impl FnMut(StatsEntry<'a>),
) -> Result<(), DecodeError> {
    let short =
        |field, value: u16| DecodeError::Field { message: T::NAME, field, value: value.into() };
    let split = |tail, field, length: U16| {
        split_tail::<T>(tail, field, length.get().into(), LARGE_PACKET_BYTES)
    };
    for _ in 0..counters {
        let (entry, rest) =
            CounterEntry::read_from_prefix(tail).map_err(|_| short("count", counters))?;
        let (name, rest) = split(rest, "name_bytes", entry.name_bytes)?;
        each(StatsEntry::Counter { name, value: entry.value.get() });
        tail = rest;
    }
    for _ in 0..connections {
        let (entry, rest) = ConnectionEntry::read_from_prefix(tail)
            .map_err(|_| short("connections", connections))?;
        let (fabric, rest) = split(rest, "fabric_bytes", entry.fabric_bytes)?;
        let (peer, rest) = split(rest, "peer_bytes", entry.peer_bytes)?;
        let (kind, id) = (entry.kind.get(), entry.id.get());
        each(StatsEntry::Connection { kind, id, fabric, peer });
        tail = rest;
    }
    Ok(())
}

const _: () = assert!(STATS_TAIL_BYTES_MAX + 256 <= LARGE_PACKET_BYTES);
const _: () =
    assert!(size_of::<ConnectionEntry>() + 2 * CONNECTION_TEXT_BYTES_MAX < STATS_TAIL_BYTES_MAX);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::operations::{StatsReply, connection_kind};

    fn read(
        tail: &[u8],
        counters: u16,
        connections: u16,
    ) -> Result<Vec<StatsEntry<'_>>, DecodeError> {
        let mut entries = Vec::new();
        read_stats::<StatsReply>(tail, counters, connections, |entry| entries.push(entry))?;
        Ok(entries)
    }

    #[test]
    fn what_was_written_is_read() {
        let mut tail = StatsTail::new();
        tail.push_counter("grants", 7).unwrap();
        tail.push_connection(connection_kind::HOST, 9, "tcp", "10.0.0.1").unwrap();
        assert_eq!((tail.counters(), tail.connections()), (1, 1));
        let entries = read(tail.bytes(), 1, 1).unwrap();
        let counter = StatsEntry::Counter { name: b"grants", value: 7 };
        let connection =
            StatsEntry::Connection { kind: 0, id: 9, fabric: b"tcp", peer: b"10.0.0.1" };
        assert_eq!(entries, [counter, connection]);
        assert_eq!(
            read(tail.bytes(), 1, 0).unwrap(),
            vec![counter],
            "as the first version reads it"
        );
        for length in 0..tail.bytes().len() {
            assert!(read(&tail.bytes()[..length], 1, 1).is_err(), "{length}");
        }
    }

    #[test]
    fn a_full_tail_refuses_and_stays_as_it_was() {
        let mut tail = StatsTail::new();
        while tail.push_connection(2, 1, "shm", &"x".repeat(500)).is_ok() {}
        let (used, count) = (tail.bytes().len(), tail.connections());
        assert!(used <= STATS_TAIL_BYTES_MAX && count >= 40, "{count}");
        assert_eq!(tail.push_connection(2, 1, "shm", &"x".repeat(500)), Err(TailFull));
        assert_eq!((tail.bytes().len(), tail.connections()), (used, count));
        assert_eq!(read(tail.bytes(), 0, count).unwrap().len(), usize::from(count));
    }

    #[test]
    fn texts_are_cut_at_characters() {
        let mut tail = StatsTail::new();
        tail.push_connection(0, 1, "tcp", &"ü".repeat(100)).unwrap();
        let entries = read(tail.bytes(), 0, 1).unwrap();
        let StatsEntry::Connection { peer, .. } = entries[0] else { panic!("{entries:?}") };
        assert_eq!(core::str::from_utf8(peer).unwrap().len(), CONNECTION_TEXT_BYTES_MAX);
    }

    #[test]
    fn lengths_beyond_the_tail_are_refused_by_field() {
        let mut tail = StatsTail::new();
        tail.push_connection(0, 1, "tcp", "peer").unwrap();
        for (at, field) in [(10, "fabric_bytes"), (12, "peer_bytes")] {
            let mut bytes = tail.bytes().to_vec();
            bytes[at] = 0xff;
            let refused = read(&bytes, 0, 1).unwrap_err();
            assert!(
                matches!(refused, DecodeError::Field { field: named, .. } if named == field),
                "{refused}"
            );
        }
    }
}
