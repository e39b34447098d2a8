//! Reads a log back at start and decides where it ends.
//!
//! Frames are applied one after the other. At the first place where the next frame is not, the rest
//! of the file is searched for frames, up to its end, and [`decide`] tells the log's end from damage:
//! one table over all cases.

use gannet_disk::{Completion, Disk, DiskError, FileId, Transfer};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;

use super::decision::{Behind, Damage, Decision, Here, LogEnd, decide};
use super::frame::{self, FRAME_ALIGNMENT, FRAME_BYTES_MAX, HEADER_BYTES, Position, Verdict};
use super::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};

/// Bytes read at once: a longest frame fits, wherever it begins in the first half.
const WINDOW_BYTES: usize = 2 * FRAME_BYTES_MAX;

/// Why a log cannot be recovered. The server does not start, so that nobody builds on half of it.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The superblock cannot be used.
    #[error("{0}")]
    Superblock(#[from] SuperblockError),
    /// Reading failed.
    #[error("reading at byte {offset} failed: {source}")]
    Read {
        /// Where.
        offset: u64,
        /// What the disk said.
        source: std::io::Error,
    },
    /// Something in the log is not as it was written.
    #[error(
        "it is damaged at byte {offset}: frame {number} {damage}; restore the metadata directory \
         from a backup, and see what `gannet fsck` finds"
    )]
    Damaged {
        /// Where.
        offset: u64,
        /// Which frame should be there.
        number: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A whole frame holds records that make no sense.
    #[error("frame {number} at byte {offset} holds a record that cannot be applied: {reason}")]
    Record {
        /// Where.
        offset: u64,
        /// Which frame.
        number: u64,
        /// What is wrong.
        reason: String,
    },
    /// The log belongs to something else.
    #[error("{0}")]
    Foreign(String),
    /// The disk refused.
    #[error("{0}")]
    Disk(#[from] DiskError),
}

/// What was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where the log stands.
    pub position: Position,
    /// Where its next frame begins, bytes.
    pub offset: u64,
}

enum State {
    /// Reading the superblock.
    Superblock,
    /// Reading frames.
    Frames(Superblock),
    /// The next frame is not where it belongs: looking for others behind.
    Searching(Superblock, Search),
    Done(Superblock, Recovered),
}

/// A look at what lies behind the last frame that could be read.
#[derive(Clone, Copy, Debug)]
struct Search {
    here: Here,
    behind: Behind,
    /// Where to go on, bytes.
    at: u64,
}

/// Reads a log through a [`Disk`], one window at a time.
pub struct Recovery {
    file: FileId,
    state: State,
    position: Position,
    offset: u64,
    end: LogEnd,
    buffers: BufferPool,
    reading: bool,
}

impl Recovery {
    /// A recovery of the log in `file`.
    ///
    /// # Errors
    /// What mapping its buffer returns.
    pub fn new(file: FileId) -> std::io::Result<Recovery> {
        Ok(Recovery {
            file,
            state: State::Superblock,
            position: Position::default(),
            offset: 0,
            end: LogEnd::Clean,
            buffers: BufferPool::new(WINDOW_BYTES, 1)?,
            reading: false,
        })
    }

    /// The superblock, once it was read.
    #[must_use]
    pub fn superblock(&self) -> Option<&Superblock> {
        match &self.state {
            State::Superblock => None,
            State::Frames(superblock)
            | State::Searching(superblock, _)
            | State::Done(superblock, _) => Some(superblock),
        }
    }

    /// Where the log stands so far: when reading failed, up to where it could be read.
    #[must_use]
    pub fn progress(&self) -> Recovered {
        Recovered { position: self.position, offset: self.offset }
    }

    /// How the log ends, when all was read.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// The result, when all was read.
    #[must_use]
    pub fn recovered(&self) -> Option<Recovered> {
        match &self.state {
            State::Done(_, recovered) => Some(*recovered),
            _ => None,
        }
    }

    /// Starts the next read if none is under way.
    ///
    /// # Errors
    /// `Read` when the disk refuses the range for another reason than a full queue.
    pub fn advance<D: Disk>(&mut self, disk: &mut D) -> Result<(), RecoveryError> {
        if self.reading || matches!(self.state, State::Done(..)) {
            return Ok(());
        }
        let file_bytes = disk.len_bytes(self.file);
        let wanted = match self.state {
            State::Superblock => SUPERBLOCK_BYTES as u64,
            _ => WINDOW_BYTES as u64,
        };
        let offset = self.reads_at();
        let left = file_bytes.saturating_sub(offset);
        let len_bytes = wanted.min(left) as usize / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
        if len_bytes == 0 {
            return self.end_of_file();
        }
        let Some(buffer) = self.buffers.take() else { return Ok(()) };
        let transfer = Transfer {
            token: offset,
            file: self.file,
            offset,
            memory: Memory::Buffer(buffer),
            memory_offset: 0,
            len_bytes,
        };
        match disk.read(transfer) {
            Ok(()) => self.reading = true,
            Err(refused) if refused.error == gannet_disk::SubmitError::Full => {}
            Err(refused) => {
                let source = std::io::Error::other(refused.error);
                return Err(RecoveryError::Read { offset, source });
            }
        }
        Ok(())
    }

    /// Takes the completion of the read under way; `apply` gets every record in order.
    ///
    /// # Errors
    /// Everything of [`RecoveryError`].
    pub fn complete<D: Disk>(
        &mut self,
        disk: &D,
        completion: Completion,
        apply: &mut impl FnMut(&Superblock, &[u8]) -> Result<(), String>,
    ) -> Result<(), RecoveryError> {
        self.reading = false;
        let offset = self.reads_at();
        completion.result.map_err(|source| RecoveryError::Read { offset, source })?;
        let Some(buffer) = completion.memory.and_then(Memory::into_buffer) else { return Ok(()) };
        let file_bytes = disk.len_bytes(self.file);
        if let State::Superblock = self.state {
            let superblock = Superblock::decode(&buffer)?;
            self.offset = SUPERBLOCK_BYTES as u64;
            self.state = State::Frames(superblock);
            return Ok(());
        }
        let left = file_bytes.saturating_sub(offset);
        let window_bytes = (WINDOW_BYTES as u64).min(left) as usize;
        let window = &buffer[..window_bytes / FRAME_ALIGNMENT * FRAME_ALIGNMENT];
        let at_end_of_file = (window.len() as u64) + (FRAME_ALIGNMENT as u64) > left;
        match &mut self.state {
            State::Frames(superblock) => {
                let superblock = *superblock;
                self.frames(superblock, window, at_end_of_file, apply)
            }
            State::Searching(superblock, search) => {
                let (number, uuid) = (self.position.number + 1, superblock.file_system_uuid);
                search.through(window, number, uuid);
                let ends = at_end_of_file || matches!(search.behind, Behind::LaterFrame { .. });
                if ends { self.conclude() } else { Ok(()) }
            }
            State::Superblock | State::Done(..) => Ok(()),
        }
    }

    /// Where the next window begins, bytes.
    fn reads_at(&self) -> u64 {
        match &self.state {
            State::Searching(_, search) => search.at,
            _ => self.offset,
        }
    }

    fn frames(
        &mut self,
        superblock: Superblock,
        window: &[u8],
        at_end_of_file: bool,
        apply: &mut impl FnMut(&Superblock, &[u8]) -> Result<(), String>,
    ) -> Result<(), RecoveryError> {
        let uuid = superblock.file_system_uuid;
        let mut start = 0;
        while start < window.len() {
            let rest = &window[start..];
            let verdict = frame::judge(rest, self.position, uuid);
            if let Verdict::Next { position, padded_bytes, payload_bytes } = verdict {
                let payload = &rest[HEADER_BYTES..HEADER_BYTES + payload_bytes];
                self.apply_frame(&superblock, position, payload, apply)?;
                self.offset += padded_bytes as u64;
                start += padded_bytes;
                continue;
            }
            // What is no frame is judged by all that a frame could reach over. Else read on from here.
            if !at_end_of_file && rest.len() < FRAME_BYTES_MAX {
                return Ok(());
            }
            let here = Here::of(verdict, self.position.number + 1, rest);
            // The payload of a torn frame is nobody's place for another.
            let behind = match verdict {
                Verdict::TornPayload { padded_bytes } => padded_bytes,
                _ => FRAME_ALIGNMENT,
            };
            let at = self.offset + behind as u64;
            let mut search = Search { here, behind: Behind::NoFrame, at };
            search.through(&rest[behind.min(rest.len())..], self.position.number + 1, uuid);
            self.state = State::Searching(superblock, search);
            let ends = at_end_of_file || matches!(search.behind, Behind::LaterFrame { .. });
            return if ends { self.conclude() } else { Ok(()) };
        }
        if at_end_of_file {
            self.end = LogEnd::Clean;
            self.finish(superblock);
        }
        Ok(())
    }

    /// All that counts was seen: the log ends here, or it is damaged.
    fn conclude(&mut self) -> Result<(), RecoveryError> {
        let State::Searching(superblock, search) = &self.state else { return Ok(()) };
        let superblock = *superblock;
        match decide(search.here, search.behind) {
            Decision::End(end) => {
                self.end = end;
                self.finish(superblock);
                Ok(())
            }
            Decision::Refuse(damage) => {
                let number = self.position.number + 1;
                Err(RecoveryError::Damaged { offset: self.offset, number, damage })
            }
            Decision::Apply => Ok(()),
        }
    }

    fn apply_frame(
        &mut self,
        superblock: &Superblock,
        position: Position,
        payload: &[u8],
        apply: &mut impl FnMut(&Superblock, &[u8]) -> Result<(), String>,
    ) -> Result<(), RecoveryError> {
        let (offset, number) = (self.offset, position.number);
        let refuse = |reason: String| RecoveryError::Record { offset, number, reason };
        let mut count = 0;
        for record in frame::records(payload) {
            let record = record.map_err(|error| refuse(error.to_string()))?;
            apply(superblock, record).map_err(refuse)?;
            count += 1;
        }
        if self.position.lsn + count != position.lsn {
            return Err(refuse("the number of records differs from the header".into()));
        }
        self.position = position;
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), RecoveryError> {
        match &self.state {
            State::Superblock => Err(SuperblockError::Magic.into()),
            State::Frames(superblock) => {
                let superblock = *superblock;
                self.finish(superblock);
                Ok(())
            }
            State::Searching(..) => self.conclude(),
            State::Done(..) => Ok(()),
        }
    }

    fn finish(&mut self, superblock: Superblock) {
        self.state = State::Done(superblock, self.progress());
    }
}

impl Search {
    /// Looks for frames in what lies next.
    fn through(&mut self, bytes: &[u8], due: u64, uuid: [u8; 16]) {
        for block in bytes.chunks(FRAME_ALIGNMENT) {
            let at = self.at;
            self.at += block.len() as u64;
            match (frame::frame_number(block, uuid), self.behind) {
                (Some(number), _) if number >= due => {
                    self.behind = Behind::LaterFrame { number, at };
                    return;
                }
                (Some(number), Behind::NoFrame) => self.behind = Behind::OlderFrame { number, at },
                _ => {}
            }
        }
    }
}
