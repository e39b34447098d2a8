//! Requests under way: their states, attempts and the parts that have arrived.
//!
//! Transitions (what drives them is in `client/`):
//!
//! | state | leaves on | to |
//! |---|---|---|
//! | `Waiting` | what it waits for | `Sent`, another `Waiting`, or it fails |
//! | `Sent` | final answer, or all parts | done |
//! | `Sent` | RETRY, lost data session | `Cutting` (or cut at once), then `Delayed` |
//! | `Sent` | STALE_SET, WRONG_SHARD, AGAIN | `Delayed` or `Waiting`, as a new sequence |
//! | `Sent` | lost operations channel | `Stranded` |
//! | `Stranded` | all parts | done |
//! | `Stranded` | channel resumed | `Cutting`, then `Waiting` as the next attempt |
//! | `Stranded` | channel open, session new | `Cutting`, then `Waiting` as new, or it fails |
//! | `Delayed` | its time | `Waiting` or `Sent` |
//! | `Cutting` | all its data sessions ended | what `after_cut` says |
//! | `Closing` | all its windows are gone | done |
//!
//! Where requests have memory windows, each way to its completion leads over `Closing` as long as
//! one of them is not gone, and `Waiting` may mean that windows are on their way.
//!
//! A request that is being ended (`ending`) leaves each of these to its completion instead.

use gannet_proto::operations::RequestHeader;
use gannet_runtime::deadlines::DeadlineId;
use gannet_runtime::time::Time;
use zerocopy::little_endian::{U16, U32, U64};

use crate::counters::Counters;
use crate::error::ErrorKind;
use crate::identities::{Definition, IdentityId};
use crate::operation::{Operation, Outcome, RequestId};
use crate::slots::Place;

/// Which part of a read has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    arrived: [u64; 4],
    /// Parts of the answer; 0 until the first arrival.
    pub(crate) expected: u16,
    pub(crate) count: u16,
    pub(crate) total_bytes: u32,
    pub(crate) end_of_file: bool,
    /// Status of the first part that failed, else 0.
    pub(crate) failure: u32,
}

impl Parts {
    /// Notes a part; false if it had arrived before. `part` is below 256.
    pub(crate) fn insert(&mut self, part: u16) -> bool {
        let (word, bit) = (usize::from(part / 64) % 4, 1_u64 << (part % 64));
        // Not as one `bool` that is both counted and returned: where this is inlined, rustc 1.95
        // loses the count (rust-lang/rust#158206).
        if self.arrived[word] & bit != 0 {
            return false;
        }
        self.arrived[word] |= bit;
        self.count += 1;
        true
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.expected != 0 && self.count == self.expected
    }
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The table entry is not in use.
    Free,
    /// In a queue, or about to be.
    Waiting,
    /// Waits for its time before the next attempt.
    Delayed,
    /// With the server.
    Sent,
    /// Was with the server when its channel broke.
    Stranded,
    /// Waits until data sessions have ended, so that nothing reaches its memory.
    Cutting,
    /// Is over, and waits until its windows are gone.
    Closing,
}

/// Why a request is ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Cancelled,
    TimedOut,
}

/// What follows once a request's memory is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterCut {
    /// Send the next attempt of the same sequence.
    NextAttempt,
    /// The same, after a delay that grows with the number of tries.
    NextAttemptDelayed,
    /// Send it as a new request.
    Anew,
    /// It fails.
    Fail(ErrorKind),
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) generation: u32,
    pub(crate) state: State,
    pub(crate) token: u64,
    /// `None` only while the entry is free.
    pub(crate) operation: Option<Operation>,
    /// On whose behalf it is made.
    pub(crate) identity: IdentityId,
    /// Of what opens a file: who that was when the request was sent.
    pub(crate) opener: Option<Definition>,
    pub(crate) reactor: u16,
    pub(crate) place: Option<Place>,
    pub(crate) attempt: u32,
    /// Whether an attempt was sent that may have had an effect.
    pub(crate) uncertain: bool,
    pub(crate) parts: Parts,
    /// Data servers that the metadata server said the request needs.
    pub(crate) needs: u64,
    /// Value of the client's set counter when the request was sent.
    pub(crate) sent_sets: u64,
    /// Version of the shard map when the request was sent.
    pub(crate) sent_map: u64,
    /// STALE_SET answers although nothing had changed since.
    pub(crate) stale_sets: u32,
    /// Attempts beyond the first.
    pub(crate) tries: u32,
    /// When the request stops being tried; NEVER until it first fails.
    pub(crate) give_up_at: Time,
    pub(crate) ending: Option<Ending>,
    pub(crate) after_cut: AfterCut,
    /// Data sessions whose end it waits for, while `Cutting`.
    pub(crate) cut_waits: u64,
    pub(crate) timeout: Option<DeadlineId>,
    /// Of `Delayed`: when it goes on. Of `Closing`: when its windows are late.
    pub(crate) delay: Option<DeadlineId>,
    /// Its result, while `Closing`.
    pub(crate) result: Option<Result<Outcome, ErrorKind>>,
    /// Its windows have been late once.
    pub(crate) is_late: bool,
    /// LOOKUP: bytes of the path that are resolved.
    pub(crate) resolved: u16,
    /// LOOKUP: shards crossed.
    pub(crate) hops: u16,
    /// STATS: what has come in.
    pub(crate) counters: Vec<Counters>,
}

impl Request {
    fn free() -> Request {
        Request {
            generation: 0,
            state: State::Free,
            token: 0,
            operation: None,
            identity: IdentityId::OWN,
            opener: None,
            reactor: 0,
            place: None,
            attempt: 1,
            uncertain: false,
            parts: Parts::default(),
            needs: 0,
            sent_sets: 0,
            sent_map: 0,
            stale_sets: 0,
            tries: 0,
            give_up_at: Time::NEVER,
            ending: None,
            after_cut: AfterCut::NextAttempt,
            cut_waits: 0,
            timeout: None,
            delay: None,
            result: None,
            is_late: false,
            resolved: 0,
            hops: 0,
            counters: Vec::new(),
        }
    }

    /// The header of the current attempt.
    pub(crate) fn header(&self, place: Place) -> RequestHeader {
        RequestHeader {
            shard: U16::new(place.shard),
            slot: U16::new(place.slot),
            attempt: U32::new(self.attempt),
            sequence: U64::new(place.sequence),
        }
    }

    /// Whether data servers may reach its buffer.
    pub(crate) fn is_io(&self) -> bool {
        self.operation.as_ref().is_some_and(|operation| operation.buffer().is_some())
    }

    /// The error by which it ends, if it is being ended.
    pub(crate) fn ending_error(&self, maybe_applied: bool) -> Option<ErrorKind> {
        Some(match self.ending? {
            Ending::Cancelled => ErrorKind::Cancelled { maybe_applied },
            Ending::TimedOut => ErrorKind::TimedOut { maybe_applied },
        })
    }
}

/// All requests, in a table of fixed size.
#[derive(Debug)]
pub(crate) struct Requests {
    table: Vec<Request>,
    free: Vec<u32>,
}

impl Requests {
    pub(crate) fn new(capacity: usize) -> Requests {
        Requests {
            table: std::iter::repeat_with(Request::free).take(capacity).collect(),
            free: (0..capacity as u32).rev().collect(),
        }
    }

    /// Takes an entry for an operation; gives it back when all are in use.
    pub(crate) fn insert(&mut self, operation: Operation, token: u64) -> Result<u32, Operation> {
        let Some(index) = self.free.pop() else { return Err(operation) };
        let entry = &mut self.table[index as usize];
        let generation = entry.generation.wrapping_add(1);
        entry.generation = generation;
        entry.state = State::Waiting;
        entry.token = token;
        entry.operation = Some(operation);
        entry.identity = IdentityId::OWN;
        entry.opener = None;
        entry.reactor = 0;
        entry.place = None;
        entry.attempt = 1;
        entry.uncertain = false;
        entry.parts = Parts::default();
        entry.needs = 0;
        entry.stale_sets = 0;
        entry.tries = 0;
        entry.give_up_at = Time::NEVER;
        entry.ending = None;
        entry.cut_waits = 0;
        entry.is_late = false;
        entry.resolved = 0;
        entry.hops = 0;
        Ok(index)
    }

    /// Frees an entry and returns its operation.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Operation> {
        let entry = &mut self.table[index as usize];
        if entry.state == State::Free {
            return None;
        }
        entry.state = State::Free;
        self.free.push(index);
        entry.operation.take()
    }

    /// The index of a request that is still under way.
    pub(crate) fn find(&self, id: RequestId) -> Option<u32> {
        let entry = self.table.get(id.index as usize)?;
        (entry.state != State::Free && entry.generation == id.generation).then_some(id.index)
    }

    pub(crate) fn id(&self, index: u32) -> RequestId {
        RequestId { index, generation: self[index].generation }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.table.len()
    }

    /// Number of requests under way.
    pub(crate) fn len(&self) -> usize {
        self.table.len() - self.free.len()
    }
}

impl std::ops::Index<u32> for Requests {
    type Output = Request;
    #[inline]
    fn index(&self, index: u32) -> &Request {
        &self.table[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Requests {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Request {
        &mut self.table[index as usize]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_count_once_each() {
        let mut parts = Parts { expected: 256, ..Parts::default() };
        for part in (0..256).rev() {
            assert!(!parts.is_complete());
            assert!(parts.insert(part));
            assert!(!parts.insert(part));
        }
        assert!(parts.is_complete());
        assert!(!Parts::default().is_complete(), "nothing is known of an answer without parts");
    }

    #[test]
    fn the_table_is_bounded_and_ids_do_not_come_back() {
        let stats = || Operation::StatFs { reactor: 0 };
        let mut requests = Requests::new(1);
        let index = requests.insert(stats(), 7).unwrap();
        let id = requests.id(index);
        assert!(requests.insert(stats(), 8).is_err());
        assert_eq!(requests.find(id), Some(index));
        assert!(requests.remove(index).is_some());
        assert!(requests.remove(index).is_none());
        assert_eq!(requests.find(id), None);
        let again = requests.insert(stats(), 9).unwrap();
        assert_ne!(requests.id(again), id);
        assert_eq!(requests.find(id), None);
        assert_eq!((requests.len(), requests.capacity()), (1, 1));
    }
}
