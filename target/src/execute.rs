//! Takes grants and their operations from step to step.
//!
//! A visit posts pieces of the grant at the head of a session's queue until all are posted, a queue
//! or pool is exhausted, or the visit's share of bytes is begun. Completions then drive each
//! operation on. Before whatever is posted the grant is checked to be live: within a visit nothing
//! can change that, so one check at its start covers all of its posts.
//!
//! Where bytes go to the host by one-sided writes, the arrival notice of a read need not wait for
//! their completions: the fabric delivers a message only if the writes posted before it on the
//! connection took effect. The grant whose last write is posted is therefore noted in
//! [`Engine::written`], and the turn's end sends its notice behind. The grant itself ends with its
//! last completion, and not before: until then its buffers, its blocks and the host's key are in use.
//! If a write fails all the same, its connection ends with it: the host never gets the notice, and the
//! metadata server is told of the failure.

use gannet_disk::Disk;
use gannet_fabric::Fabric;
use gannet_proto::Status;
use gannet_proto::control::grant_operation;
use gannet_proto::limits::BLOCK_BYTES;
use gannet_runtime::memory::Memory;

use crate::engine::{BOUNCE_BYTES_MAX, COPY_BYTES_MAX, Engine, Operation, Performed};
use crate::grants::{Entry, Grants, Stage};
use crate::pieces::{Cover, Edges, Piece, Shape, Way, step_after};
use crate::stats::Stats;

/// What came of a visit to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// The grant is at its end: take it out.
    Ended,
    /// All is posted, or nothing more will be; completions end it.
    Posted,
    /// Something was done, and there is more to do.
    Yielded,
    /// Nothing can be done at present.
    Blocked,
}

/// What came of issuing a piece.
enum Issued {
    Done,
    /// Its completion leads on; with `last`, to its end.
    Posted {
        last: bool,
    },
    Blocked,
    Failed(Status),
}

/// How far an operation got.
enum Driven {
    Done,
    /// A step is posted; with `last`, none follows it.
    Posted {
        last: bool,
    },
    /// A full queue refused the step that the operation stands at.
    Full(Memory),
    Failed(Status),
}

impl<F: Fabric, D: Disk> Engine<F, D> {
    /// Posts what can be posted of the grant at the head of a queue; yields after
    /// [`COPY_BYTES_MAX`] bytes, so that sessions with less to do get their turn.
    pub(crate) fn visit(&mut self, grants: &mut Grants, place: u32, stats: &mut Stats) -> Visit {
        let Some(entry) = grants.get(place) else { return Visit::Blocked };
        if let Err(status) = grants.check_live(entry) {
            return stopped(grants.stop(place, status));
        }
        let Some(entry) = grants.get_mut(place) else { return Visit::Blocked };
        if entry.view.is_none() && self.fabric.capabilities(entry.connection).maps_remote_memory {
            match self.map(entry.connection, &entry.grant) {
                Ok(view) => entry.view = Some(view),
                Err(status) => {
                    stats.access_refused += u64::from(status == Status::ACCESS_REFUSED);
                    return stopped(grants.stop(place, status));
                }
            }
        }
        let shape = self.shape(entry);
        let (from, moved_before) = (entry.cursor, self.moved_bytes);
        let mut failure = Status::OK;
        let visit = loop {
            let Some(piece) = shape.piece(entry.cursor) else { break Visit::Posted };
            match self.issue(entry, place, piece, stats) {
                Issued::Done => entry.cursor += piece.len_bytes,
                Issued::Posted { last } => {
                    entry.cursor += piece.len_bytes;
                    entry.under_way += 1;
                    entry.unfinished += u32::from(!last);
                }
                Issued::Blocked if entry.cursor == from => break Visit::Blocked,
                Issued::Blocked => break Visit::Yielded,
                Issued::Failed(status) => {
                    failure = status;
                    break Visit::Posted;
                }
            }
            let moved = self.moved_bytes - moved_before;
            if moved >= COPY_BYTES_MAX && entry.cursor < entry.grant.length.get() {
                break Visit::Yielded;
            }
        };
        if visit == Visit::Posted {
            if entry.under_way == 0 {
                // Posted and ended within this call: it never counts as under way.
                entry.status = failure;
                return Visit::Ended;
            }
            grants.begin(place);
            grants.stop(place, failure);
            self.note_written(grants, place);
        } else if entry.cursor > 0 {
            grants.begin(place);
        } else {
            entry.view = None;
        }
        visit
    }

    /// Takes the completion of a posted step. The grant's place if that ended the grant.
    pub(crate) fn completed(
        &mut self,
        grants: &mut Grants,
        token: u64,
        memory: Option<Memory>,
        result: Result<(), Status>,
        stats: &mut Stats,
    ) -> Option<u32> {
        let place = token as u32;
        let operation = self.operations.get_mut(place)?;
        if u64::from(operation.generation) != token >> 32 {
            return None;
        }
        let grant = operation.grant;
        let entry = grants.get(grant)?;
        let next = result.and_then(|()| {
            let Operation { piece, edges, step, .. } = *operation;
            let next = step_after(entry.grant.operation, piece.way, edges, Some(step));
            if next.is_some() {
                grants.check_live(entry)?;
            }
            Ok(next)
        });
        let result = match (next, memory) {
            (Err(status), _) => Err(status),
            (Ok(None), _) => Ok(()),
            (Ok(Some(_)), None) => Err(Status::IO),
            (Ok(Some(step)), Some(memory)) => {
                operation.step = step;
                match self.drive(entry, place, memory, stats) {
                    Driven::Done => {
                        self.went_on(grants, grant, true);
                        Ok(())
                    }
                    Driven::Posted { last } => {
                        self.went_on(grants, grant, last);
                        return None;
                    }
                    Driven::Full(memory) => {
                        self.put_off(place, memory, stats);
                        return None;
                    }
                    Driven::Failed(status) => Err(status),
                }
            }
        };
        self.finish(grants, place, result, stats)
    }

    /// Tries again what full queues refused. Grants that end are put into `ended`; returns the
    /// number of operations that got on.
    pub(crate) fn retry(
        &mut self,
        grants: &mut Grants,
        ended: &mut Vec<u32>,
        stats: &mut Stats,
    ) -> usize {
        let mut progress = 0;
        for _ in 0..self.put_off.len() {
            let Some(place) = self.put_off.pop_front() else { break };
            let Some(operation) = self.operations.get_mut(place) else { continue };
            let (grant, memory) = (operation.grant, operation.memory.take());
            let (Some(entry), Some(memory)) = (grants.get(grant), memory) else { continue };
            let result = match grants.check_live(entry) {
                Err(status) => Err(status),
                Ok(()) => match self.drive(entry, place, memory, stats) {
                    Driven::Done => {
                        self.went_on(grants, grant, true);
                        Ok(())
                    }
                    Driven::Posted { last } => {
                        self.went_on(grants, grant, last);
                        progress += 1;
                        continue;
                    }
                    Driven::Full(memory) => {
                        self.put_off(place, memory, stats);
                        continue;
                    }
                    Driven::Failed(status) => Err(status),
                },
            };
            progress += 1;
            ended.extend(self.finish(grants, place, result, stats));
        }
        progress
    }

    fn shape(&self, entry: &Entry) -> Shape {
        let grant = &entry.grant;
        let resident =
            self.stores.get(usize::from(entry.store)).is_some_and(|store| store.resident);
        let direct = !resident
            && entry.view.as_ref().is_some_and(|view| {
                let block = BLOCK_BYTES as usize;
                (view.as_ptr() as usize) % block == grant.offset.get() as usize % block
            });
        Shape {
            operation: grant.operation,
            offset: grant.offset.get(),
            length: grant.length.get(),
            valid: grant.valid.get(),
            resident,
            direct,
            copy_bytes_max: COPY_BYTES_MAX,
            bounce_bytes_max: BOUNCE_BYTES_MAX,
        }
    }

    fn issue(&mut self, entry: &mut Entry, grant: u32, piece: Piece, stats: &mut Stats) -> Issued {
        match (piece.way, &entry.view) {
            (Way::Zero, Some(view)) => {
                view.zero(piece.start as usize, piece.len_bytes as usize);
                self.moved_bytes += piece.len_bytes;
                stats.bytes_zeroed += u64::from(piece.len_bytes);
                return Issued::Done;
            }
            (Way::Resident, view) => {
                let mapped = view.is_some();
                if entry.grant.operation == grant_operation::WRITE
                    && piece.start == 0
                    && self.merge_resident_edges(entry).is_none()
                {
                    return Issued::Failed(Status::IO);
                }
                if mapped {
                    if self.copy_resident(entry, piece).is_none() {
                        return Issued::Failed(Status::IO);
                    }
                    stats.bytes_ram += u64::from(piece.len_bytes);
                    return Issued::Done;
                }
            }
            _ => {}
        }
        self.start(entry, grant, piece, stats)
    }

    /// Makes an operation of a piece and posts its first step.
    fn start(&mut self, entry: &Entry, grant: u32, piece: Piece, stats: &mut Stats) -> Issued {
        if self.operations.is_full() {
            stats.posts_put_off += 1;
            return Issued::Blocked;
        }
        let cover = Cover::of(&entry.grant, piece);
        let edges = Edges::of(&entry.grant, piece);
        let Some(first) = step_after(entry.grant.operation, piece.way, edges, None) else {
            return Issued::Failed(Status::IO);
        };
        let memory = match self.memory(entry, piece, cover, edges) {
            Some(Ok(memory)) => memory,
            Some(Err(status)) => return Issued::Failed(status),
            None => {
                stats.posts_put_off += 1;
                return Issued::Blocked;
            }
        };
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let operation =
            Operation { grant, piece, cover, edges, step: first, generation, memory: None };
        let Ok(place) = self.operations.insert(operation) else { return Issued::Blocked };
        match self.drive(entry, place, memory, stats) {
            Driven::Posted { last } => Issued::Posted { last },
            Driven::Full(memory) => {
                if self.operations.get(place).is_some_and(|operation| operation.step != first) {
                    self.put_off(place, memory, stats);
                    return Issued::Posted { last: false };
                }
                // Nothing happened yet: forget the operation, so that it holds no buffer.
                self.operations.remove(place);
                stats.posts_put_off += 1;
                Issued::Blocked
            }
            Driven::Done => {
                self.operations.remove(place);
                self.count_bytes(entry, piece, stats);
                Issued::Done
            }
            Driven::Failed(status) => {
                self.operations.remove(place);
                Issued::Failed(status)
            }
        }
    }

    /// Does the steps of an operation that can be done at once, and posts the one that cannot.
    fn drive(
        &mut self,
        entry: &Entry,
        place: u32,
        mut memory: Memory,
        stats: &mut Stats,
    ) -> Driven {
        loop {
            let performed = self.perform(entry, place, memory, stats);
            let Some(operation) = self.operations.get_mut(place) else { return Driven::Done };
            let Operation { piece, edges, step, .. } = *operation;
            let next = step_after(entry.grant.operation, piece.way, edges, Some(step));
            memory = match performed {
                Performed::Now(memory) => memory,
                Performed::Posted => return Driven::Posted { last: next.is_none() },
                Performed::Full(memory) => return Driven::Full(memory),
                Performed::Failed(status) => return Driven::Failed(status),
            };
            match next {
                Some(step) => operation.step = step,
                None => return Driven::Done,
            }
        }
    }

    /// A further step of one of a grant's pieces was posted or, the last one, done.
    fn went_on(&mut self, grants: &mut Grants, place: u32, last: bool) {
        if last && let Some(entry) = grants.get_mut(place) {
            entry.unfinished -= 1;
            self.note_written(grants, place);
        }
    }

    /// Notes a grant if all its bytes for the host are posted. Where host memory is mapped there is
    /// no order between them and the notice: block I/O may place them.
    fn note_written(&mut self, grants: &Grants, place: u32) {
        let Some(entry) = grants.get(place) else { return };
        let capabilities = self.fabric.capabilities(entry.connection);
        if !capabilities.maps_remote_memory && entry.may_be_told() {
            self.written.push(place);
            if capabilities.streams {
                self.streamed_bytes += entry.grant.length.get();
            }
        }
    }

    fn put_off(&mut self, place: u32, memory: Memory, stats: &mut Stats) {
        if let Some(operation) = self.operations.get_mut(place) {
            operation.memory = Some(memory);
            self.put_off.push_back(place);
            stats.posts_put_off += 1;
        }
    }

    /// Takes an operation out that is done or failed. The grant's place if that ended the grant.
    fn finish(
        &mut self,
        grants: &mut Grants,
        place: u32,
        result: Result<(), Status>,
        stats: &mut Stats,
    ) -> Option<u32> {
        let operation = self.operations.remove(place)?;
        let grant = operation.grant;
        let entry = grants.get_mut(grant)?;
        entry.under_way -= 1;
        match result {
            Ok(()) => self.count_bytes(entry, operation.piece, stats),
            Err(status) => {
                if status == Status::ACCESS_REFUSED {
                    stats.access_refused += 1;
                } else if status == Status::IO {
                    stats.disk_errors += 1;
                }
                grants.stop(grant, status);
            }
        }
        let entry = grants.get(grant)?;
        (entry.stage == Stage::Posted && entry.under_way == 0).then_some(grant)
    }

    fn count_bytes(&self, entry: &Entry, piece: Piece, stats: &mut Stats) {
        let direct = self.stores.get(usize::from(entry.store)).is_some_and(|store| store.direct);
        let counter = match piece.way {
            Way::Direct if direct => &mut stats.bytes_direct,
            Way::Direct => &mut stats.bytes_copied,
            Way::Bounce => &mut stats.bytes_bounced,
            Way::Resident => &mut stats.bytes_ram,
            Way::Zero => &mut stats.bytes_zeroed,
        };
        *counter += u64::from(piece.len_bytes);
    }
}

fn stopped(nothing_under_way: bool) -> Visit {
    if nothing_under_way { Visit::Ended } else { Visit::Posted }
}

const _: () = assert!(COPY_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
