//! Appends records to a log: one frame per group commit, one frame under way at a time.

use std::io;

use gannet_disk::{Disk, Durability, FileId, Transfer};
use gannet_meta_core::Lsn;
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;

use super::frame::{self, FRAME_BYTES_MAX, HEADER_BYTES, PAYLOAD_BYTES_MAX, Position};

/// The file grows by this much when its end comes near, bytes.
const GROWTH_BYTES: u64 = 64 << 20;
/// Records waiting for a frame before the reactor should take no new requests, bytes.
const BACKLOG_BYTES: usize = 8 << 20;

/// The writing end of a log.
pub struct LogWriter {
    file: FileId,
    file_system_uuid: [u8; 16],
    term: u64,
    /// Where the log on disk will stand after the frame under way.
    position: Position,
    /// Where the next frame begins, bytes.
    offset: u64,
    /// Records that are in no frame yet, each behind its length.
    staged: Vec<u8>,
    staged_records: u64,
    appended: Lsn,
    durable: Lsn,
    buffers: BufferPool,
    under_way: Option<Position>,
    failure: Option<String>,
    frames: u64,
    bytes: u64,
}

impl LogWriter {
    /// A writer that continues a log at `position`, whose next frame begins at `offset` bytes.
    ///
    /// # Errors
    /// What mapping its buffer returns.
    pub fn new(
        file: FileId,
        file_system_uuid: [u8; 16],
        term: u64,
        position: Position,
        offset: u64,
    ) -> io::Result<LogWriter> {
        Ok(LogWriter {
            file,
            file_system_uuid,
            term,
            position,
            offset,
            staged: Vec::with_capacity(BACKLOG_BYTES),
            staged_records: 0,
            appended: Lsn(position.lsn),
            durable: Lsn(position.lsn),
            buffers: BufferPool::new(FRAME_BYTES_MAX, 1)?,
            under_way: None,
            failure: None,
            frames: 0,
            bytes: 0,
        })
    }

    /// Frames from now on belong to `term`.
    pub fn begin_term(&mut self, term: u64) {
        self.term = term;
    }

    /// Whether a frame of the current term is durable.
    #[must_use]
    pub fn has_written_term(&self) -> bool {
        self.position.term == self.term
    }

    /// Appends a record and returns its position.
    ///
    /// # Panics
    /// If the record cannot fit a frame: records are bounded far below.
    pub fn append(&mut self, record: &[u8]) -> Lsn {
        assert!(record.len() + 4 <= PAYLOAD_BYTES_MAX, "a record must fit a frame");
        self.staged.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.staged.extend_from_slice(record);
        self.staged_records += 1;
        self.appended = Lsn(self.appended.0 + 1);
        self.appended
    }

    /// Everything up to here survives a crash.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Whether nothing waits and nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.staged.is_empty()
    }

    /// Whether so much waits that no new requests should be taken.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.staged.len() >= BACKLOG_BYTES / 2
    }

    /// Why the log can make nothing durable any more.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Frames and bytes written so far.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        (self.frames, self.bytes)
    }

    /// Starts a frame with what waits, or with nothing if `even_empty`, unless one is under way.
    pub fn commit<D: Disk>(&mut self, disk: &mut D, even_empty: bool) {
        if self.failure.is_some()
            || self.under_way.is_some()
            || (self.staged.is_empty() && !even_empty)
        {
            return;
        }
        let Some(mut buffer) = self.buffers.take() else { return };
        let (records, payload_bytes) = self.next_payload();
        buffer[HEADER_BYTES..HEADER_BYTES + payload_bytes]
            .copy_from_slice(&self.staged[..payload_bytes]);
        let (position, len_bytes) = frame::seal(
            &mut buffer,
            self.position,
            self.term,
            self.file_system_uuid,
            records,
            payload_bytes,
        );
        if let Err(error) = self.make_room(disk, len_bytes as u64) {
            self.failure = Some(format!("the metadata log cannot grow: {error}"));
            return;
        }
        let transfer = Transfer {
            token: position.number,
            file: self.file,
            offset: self.offset,
            memory: Memory::Buffer(buffer),
            memory_offset: 0,
            len_bytes,
        };
        match disk.write(transfer, Durability::Durable) {
            Ok(()) => {
                self.staged.drain(..payload_bytes);
                self.staged_records -= u64::from(records);
                self.offset += len_bytes as u64;
                self.frames += 1;
                self.bytes += len_bytes as u64;
                self.under_way = Some(position);
            }
            // A full queue is tried again on the next turn.
            Err(refused) if refused.error == gannet_disk::SubmitError::Full => {}
            Err(refused) => self.failure = Some(format!("the metadata log: {}", refused.error)),
        }
    }

    /// Takes the completion of the frame under way.
    pub fn complete(&mut self, token: u64, result: io::Result<()>) {
        let Some(position) = self.under_way.take() else { return };
        debug_assert_eq!(position.number, token, "one frame is under way at a time");
        match result {
            Ok(()) => {
                self.position = position;
                self.durable = Lsn(position.lsn);
            }
            // What reached the medium is unknown, so nothing later can be promised either.
            Err(error) => self.failure = Some(format!("writing the metadata log failed: {error}")),
        }
    }

    /// Number and bytes of the staged records that fit one frame.
    fn next_payload(&self) -> (u32, usize) {
        if self.staged.len() <= PAYLOAD_BYTES_MAX {
            return (self.staged_records as u32, self.staged.len());
        }
        let (mut records, mut bytes) = (0, 0);
        while let Some(len) = self.staged[bytes..].first_chunk::<4>() {
            let next = bytes + 4 + u32::from_le_bytes(*len) as usize;
            if next > PAYLOAD_BYTES_MAX {
                break;
            }
            (records, bytes) = (records + 1, next);
        }
        (records, bytes)
    }

    fn make_room<D: Disk>(
        &self,
        disk: &mut D,
        len_bytes: u64,
    ) -> Result<(), gannet_disk::DiskError> {
        let needed = self.offset + len_bytes;
        if needed <= disk.len_bytes(self.file) {
            return Ok(());
        }
        disk.grow(self.file, needed.next_multiple_of(GROWTH_BYTES))
    }
}
