//! Posts single steps: block I/O on the disk, transfers on the fabric, copies by the processor.
//!
//! Where the fabric maps host memory, bytes go into and out of the mapped view: block I/O straight
//! where it can, copies at once otherwise, so that their outcome is known when they return. Where it
//! does not, they go by one-sided transfers whose completion tells the outcome; their local memory is made
//! ready for the device at the start. Buffers that block I/O passes through are registered with the
//! disk. An operation owns its memory: the posted transfer holds it, or [`Operation::memory`] while it waits to be posted.

use std::collections::VecDeque;
use std::io;

use gannet_disk::{Disk, Durability, FileId, SubmitError};
use gannet_fabric::{Access, ConnectionId, Fabric, FabricError, Key, PostError, RemoteSlice};
use gannet_proto::Status;
use gannet_proto::control::{Grant, grant_operation};
use gannet_proto::limits::BLOCK_BYTES;
use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::pool::{Buffer, BufferPool};

use crate::config::{LARGE_BUFFER_BYTES, Limits, SMALL_BUFFER_BYTES};
use crate::grants::Entry;
use crate::pieces::{Cover, Edges, Piece, Step, Way, end_in_block};
use crate::slab::Slab;
use crate::stats::Stats;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Most bytes of one copy, or of one transfer of zeros or of a store in memory; and after so many a
/// visit to a grant yields.
pub(crate) const COPY_BYTES_MAX: u32 = 256 << 10;
/// Most bytes of blocks in one bounced piece: a block is left to merge an edge from.
pub(crate) const BOUNCE_BYTES_MAX: u32 = (LARGE_BUFFER_BYTES - BLOCK) as u32;

/// A store, as transfers need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    pub(crate) file: FileId,
    /// Where block 0 lies in the file, bytes.
    pub(crate) data_offset: u64,
    pub(crate) blocks: u64,
    pub(crate) generation: u32,
    /// The store lies in memory.
    pub(crate) resident: bool,
    /// Block I/O bypasses the page cache.
    pub(crate) direct: bool,
}

impl Store {
    /// Where a block lies in the file, bytes.
    pub(crate) fn offset(&self, block: u64) -> u64 {
        self.data_offset + block * u64::from(BLOCK_BYTES)
    }
}

/// A piece under way.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) grant: u32,
    pub(crate) piece: Piece,
    pub(crate) cover: Cover,
    pub(crate) edges: Edges,
    /// What is posted, or is to be posted next.
    pub(crate) step: Step,
    /// Tells successive operations of one place apart.
    pub(crate) generation: u32,
    /// The memory of an operation that waits to be posted.
    pub(crate) memory: Option<Memory>,
}

/// What came of trying a step.
#[derive(Debug)]
pub(crate) enum Performed {
    /// It is done; the memory is back.
    Now(Memory),
    /// Its completion follows.
    Posted,
    /// A queue is full; the memory is back.
    Full(Memory),
    /// It cannot be done.
    Failed(Status),
}

/// Disk, fabric, and what transfers between them need.
pub(crate) struct Engine<F, D> {
    pub(crate) fabric: F,
    pub(crate) disk: D,
    pub(crate) stores: Vec<Store>,
    pub(crate) operations: Slab<Operation>,
    /// Operations whose next step a full queue refused.
    pub(crate) put_off: VecDeque<u32>,
    /// Grants whose last bytes for the host were posted since the turn began: their arrival notices
    /// may follow.
    pub(crate) written: Vec<u32>,
    /// Bytes of those among them whose fabric streams.
    pub(crate) streamed_bytes: u32,
    /// The disk refused a transfer since the turn began.
    pub(crate) disk_full: bool,
    /// Bytes between hosts and this server that were copied or handed to the fabric, since the
    /// queues were last gone through.
    pub(crate) moved_bytes: u32,
    pub(crate) generation: u32,
    zeros: Slice,
    small: BufferPool,
    large: BufferPool,
}

impl<F: Fabric, D: Disk> Engine<F, D> {
    /// Takes the memory for all transfers.
    ///
    /// # Errors
    /// What mapping memory returns.
    pub(crate) fn new(
        fabric: F,
        disk: D,
        stores: Vec<Store>,
        limits: &Limits,
    ) -> io::Result<Engine<F, D>> {
        let (small, large) = limits.buffers(stores.iter().all(|store| store.resident));
        let zeros = Mapping::anonymous(COPY_BYTES_MAX as usize)?
            .slice(0, COPY_BYTES_MAX.into())
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Engine {
            fabric,
            disk,
            stores,
            operations: Slab::new(limits.operations_max),
            put_off: VecDeque::with_capacity(limits.operations_max as usize),
            // Each of them has an operation under way.
            written: Vec::with_capacity(limits.operations_max as usize),
            disk_full: false,
            streamed_bytes: 0,
            moved_bytes: 0,
            generation: 0,
            zeros,
            small: BufferPool::new(SMALL_BUFFER_BYTES, small)?,
            large: BufferPool::new(LARGE_BUFFER_BYTES, large)?,
        })
    }

    /// Makes all memory that transfers start from ready for the fabric's devices, where a device
    /// moves the bytes: buffers, zeros, and the stores in memory. Names what it cannot have.
    ///
    /// # Errors
    /// As [`Fabric::prepare`].
    pub(crate) fn prepare(&mut self) -> Result<(), (&'static str, FabricError)> {
        let ours = [
            ("the small buffers", self.small.mapping()),
            ("the large buffers", self.large.mapping()),
            ("a range of zeros", self.zeros.mapping()),
        ];
        for (what, mapping) in ours {
            self.fabric.prepare(mapping).map_err(|error| (what, error))?;
        }
        for store in self.stores.iter().filter(|store| store.resident) {
            if let Some(block) = self.disk.resident(store.file, store.data_offset, BLOCK) {
                let prepared = self.fabric.prepare(block.mapping());
                prepared.map_err(|error| ("a store in memory", error))?;
            }
        }
        Ok(())
    }

    /// Has the disk pin the buffers once and for all, if a store needs any. It works without, at more
    /// cost for each transfer.
    pub(crate) fn register_buffers(&mut self) {
        if self.stores.iter().all(|store| store.resident) {
            return;
        }
        for pool in [&self.small, &self.large] {
            if let Err(error) = self.disk.register_memory(pool.mapping()) {
                tracing::warn!(%error, "block I/O looks up the pages of its buffers each time");
                return;
            }
        }
    }

    /// A view of a grant's host buffer, or what the grant is to be answered.
    pub(crate) fn map(&mut self, connection: ConnectionId, grant: &Grant) -> Result<Slice, Status> {
        let reads_host = grant.operation == grant_operation::WRITE;
        let access = Access { remote_read: reads_host, remote_write: !reads_host };
        let remote = remote(grant, 0, grant.length.get());
        self.fabric.map(connection, remote, access).ok_or_else(|| {
            match self.fabric.peer(connection) {
                Some(_) => Status::ACCESS_REFUSED,
                None => Status::SESSION_GONE,
            }
        })
    }

    /// The memory that a piece travels through; `None` while no buffer is free.
    pub(crate) fn memory(
        &mut self,
        entry: &Entry,
        piece: Piece,
        cover: Cover,
        edges: Edges,
    ) -> Option<Result<Memory, Status>> {
        let memory = match piece.way {
            Way::Direct => entry.view.clone().map(Memory::Shared),
            Way::Zero => Some(Memory::Shared(self.zeros.clone())),
            Way::Resident => self.resident(entry, piece).map(Memory::Shared),
            Way::Bounce => {
                let spare = if edges.read_tail { BLOCK } else { 0 };
                Some(Memory::Buffer(self.buffer(cover.len_bytes() + spare)?))
            }
        };
        Some(memory.ok_or(Status::IO))
    }

    /// The store's bytes under a piece.
    pub(crate) fn resident(&self, entry: &Entry, piece: Piece) -> Option<Slice> {
        let store = self.stores.get(usize::from(entry.store))?;
        let position = u64::from(entry.grant.offset.get()) + u64::from(piece.start);
        let offset = store.offset(entry.grant.block.get()) + position;
        self.disk.resident(store.file, offset, piece.len_bytes as usize)
    }

    fn buffer(&self, len_bytes: usize) -> Option<Buffer> {
        if len_bytes <= SMALL_BUFFER_BYTES
            && let Some(buffer) = self.small.take()
        {
            return Some(buffer);
        }
        self.large.take()
    }

    /// Does or posts the next step of an operation. The caller has checked that its grant is live.
    pub(crate) fn perform(
        &mut self,
        entry: &Entry,
        place: u32,
        memory: Memory,
        stats: &mut Stats,
    ) -> Performed {
        let Some(operation) = self.operations.get(place) else {
            return Performed::Failed(Status::IO);
        };
        let Some(store) = self.stores.get(usize::from(entry.store)) else {
            return Performed::Failed(Status::UNKNOWN_STORE);
        };
        let (piece, cover, step) = (operation.piece, operation.cover, operation.step);
        let start = match piece.way {
            Way::Direct => piece.start as usize,
            Way::Bounce | Way::Resident | Way::Zero => 0,
        };
        let token = u64::from(operation.generation) << 32 | u64::from(place);
        let blocks = |block, memory_offset, len_bytes| Blocks {
            token,
            file: store.file,
            offset: store.offset(block),
            memory_offset,
            len_bytes,
        };
        let performed = match step {
            Step::Head => self.read(blocks(entry.grant.head_block.get(), 0, BLOCK), memory, stats),
            Step::Tail => {
                let scratch = cover.len_bytes();
                self.read(blocks(entry.grant.tail_block.get(), scratch, BLOCK), memory, stats)
            }
            Step::Fetch => self.read(blocks(cover.block, start, cover.len_bytes()), memory, stats),
            Step::Store => self.write(blocks(cover.block, start, cover.len_bytes()), memory, stats),
            Step::Pull => {
                let edges = operation.edges;
                let mut memory = memory;
                if let Memory::Buffer(buffer) = &mut memory {
                    merge_edges(buffer, &entry.grant, cover, edges);
                }
                self.pull(entry, token, piece, cover, memory)
            }
            Step::Push => self.push(entry, token, piece, cover, memory),
        };
        if matches!(
            (step, &performed),
            (Step::Pull | Step::Push, Performed::Now(_) | Performed::Posted)
        ) {
            self.moved_bytes += piece.len_bytes;
        }
        performed
    }

    fn read(&mut self, blocks: Blocks, memory: Memory, stats: &mut Stats) -> Performed {
        if self.disk_full {
            return Performed::Full(memory);
        }
        let posted = self.disk.read(blocks.transfer(memory));
        self.posted(posted, stats)
    }

    fn write(&mut self, blocks: Blocks, memory: Memory, stats: &mut Stats) -> Performed {
        if self.disk_full {
            return Performed::Full(memory);
        }
        let posted = self.disk.write(blocks.transfer(memory), Durability::Durable);
        self.posted(posted, stats)
    }

    fn posted(&mut self, posted: Result<(), gannet_disk::Refused>, stats: &mut Stats) -> Performed {
        match posted {
            Ok(()) => Performed::Posted,
            Err(refused) => match refused.error {
                SubmitError::Full => {
                    self.disk_full = true;
                    Performed::Full(refused.transfer.memory)
                }
                SubmitError::Range => {
                    stats.disk_errors += 1;
                    Performed::Failed(Status::IO)
                }
            },
        }
    }

    fn pull(
        &mut self,
        entry: &Entry,
        token: u64,
        piece: Piece,
        cover: Cover,
        mut memory: Memory,
    ) -> Performed {
        let (start, len_bytes) = (piece.start as usize, piece.len_bytes as usize);
        let offset = in_memory(piece, cover);
        if let (Some(view), Memory::Buffer(buffer)) = (&entry.view, &mut memory) {
            view.copy_out(start, &mut buffer[offset..offset + len_bytes]);
            return Performed::Now(memory);
        }
        let remote = remote(&entry.grant, piece.start, piece.len_bytes);
        let transfer = gannet_fabric::Transfer { token, memory, offset, remote };
        transferred(self.fabric.read(entry.connection, transfer))
    }

    fn push(
        &mut self,
        entry: &Entry,
        token: u64,
        piece: Piece,
        cover: Cover,
        memory: Memory,
    ) -> Performed {
        let (start, len_bytes) = (piece.start as usize, piece.len_bytes as usize);
        let offset = in_memory(piece, cover);
        if let (Some(view), Memory::Buffer(buffer)) = (&entry.view, &memory) {
            view.copy_in(start, &buffer[offset..offset + len_bytes]);
            return Performed::Now(memory);
        }
        let remote = remote(&entry.grant, piece.start, piece.len_bytes);
        let transfer = gannet_fabric::Transfer { token, memory, offset, remote };
        transferred(self.fabric.write(entry.connection, transfer))
    }

    /// Moves a piece between a store in memory and a mapped host buffer; `None` if the store does
    /// not have it.
    pub(crate) fn copy_resident(&mut self, entry: &mut Entry, piece: Piece) -> Option<()> {
        let (start, len_bytes) = (piece.start as usize, piece.len_bytes as usize);
        let mut ours = Memory::Shared(self.resident(entry, piece)?);
        // Taken and put back: cloning a view would cost an atomic operation.
        let mut host = Memory::Shared(entry.view.take()?);
        if entry.grant.operation == grant_operation::WRITE {
            host.copy_to(start, &mut ours, 0, len_bytes);
        } else {
            ours.copy_to(0, &mut host, start, len_bytes);
        }
        self.moved_bytes += piece.len_bytes;
        if let Memory::Shared(view) = host {
            entry.view = Some(view);
        }
        Some(())
    }

    /// Writes what surrounds the host's bytes in the first and last block of a write to a store in
    /// memory; `None` if the store does not have the blocks.
    pub(crate) fn merge_resident_edges(&self, entry: &Entry) -> Option<()> {
        let grant = &entry.grant;
        let store = self.stores.get(usize::from(entry.store))?;
        let view = |block| self.disk.resident(store.file, store.offset(block), BLOCK);
        let (head, end) = (grant.offset.get() as usize, end_in_block(grant) as usize);
        if head > 0 {
            let first = view(grant.block.get())?;
            let old = old_bytes(grant.head_block.get(), grant.head_valid.get(), 0..head);
            copy_or_zero(&first, 0..head, old, || view(grant.head_block.get()))?;
        }
        if end > 0 {
            let last = view(grant.block.get() + grant.blocks() - 1)?;
            let old = old_bytes(grant.tail_block.get(), grant.tail_valid.get(), end..BLOCK);
            copy_or_zero(&last, end..BLOCK, old, || view(grant.tail_block.get()))?;
        }
        Some(())
    }
}

/// A range of a file and where in memory it goes.
struct Blocks {
    token: u64,
    file: FileId,
    offset: u64,
    memory_offset: usize,
    len_bytes: usize,
}

impl Blocks {
    fn transfer(self, memory: Memory) -> gannet_disk::Transfer {
        let Blocks { token, file, offset, memory_offset, len_bytes } = self;
        gannet_disk::Transfer { token, file, offset, memory, memory_offset, len_bytes }
    }
}

fn transferred(posted: Result<(), gannet_fabric::Refused>) -> Performed {
    match posted {
        Ok(()) => Performed::Posted,
        Err(refused) => match refused.error {
            PostError::Full => Performed::Full(refused.transfer.memory),
            PostError::NotConnected => Performed::Failed(Status::SESSION_GONE),
            PostError::TooLong => Performed::Failed(Status::IO),
        },
    }
}

/// A range of a grant's host buffer.
fn remote(grant: &Grant, start: u32, len_bytes: u32) -> RemoteSlice {
    let address = grant.host_address.get() + u64::from(start);
    RemoteSlice { address, key: Key(grant.host_key.get()), len_bytes }
}

/// Where a piece's first byte lies in the memory that it travels through.
fn in_memory(piece: Piece, cover: Cover) -> usize {
    match piece.way {
        Way::Bounce => cover.in_block as usize,
        Way::Direct | Way::Resident | Way::Zero => 0,
    }
}

/// Number of bytes at the start of `range` that come from an old block.
fn old_bytes(block: u64, valid: u32, range: std::ops::Range<usize>) -> usize {
    if block == u64::MAX {
        return 0;
    }
    (valid as usize).clamp(range.start, range.end) - range.start
}

fn copy_or_zero(
    into: &Slice,
    range: std::ops::Range<usize>,
    old: usize,
    from: impl FnOnce() -> Option<Slice>,
) -> Option<()> {
    if old > 0 {
        let mut into = Memory::Shared(into.clone());
        Memory::Shared(from()?).copy_to(range.start, &mut into, range.start, old);
    }
    into.zero(range.start + old, range.len() - old);
    Some(())
}

/// Completes the first and last block in a buffer around the host's bytes. The old block at the head
/// was read into the first block, the one at the tail behind the last.
fn merge_edges(buffer: &mut [u8], grant: &Grant, cover: Cover, edges: Edges) {
    let scratch = cover.len_bytes();
    if edges.head {
        let head = grant.offset.get() as usize;
        let old = old_bytes(grant.head_block.get(), grant.head_valid.get(), 0..head);
        if old > 0 && !edges.read_head {
            buffer.copy_within(scratch..scratch + old, 0);
        }
        buffer[old..head].fill(0);
    }
    if edges.tail {
        let end = end_in_block(grant) as usize;
        let last = scratch - BLOCK;
        let old = old_bytes(grant.tail_block.get(), grant.tail_valid.get(), end..BLOCK);
        if old > 0 {
            buffer.copy_within(scratch + end..scratch + end + old, last + end);
        }
        buffer[last + end + old..scratch].fill(0);
    }
}
