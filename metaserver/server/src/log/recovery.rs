//! Reads a log back at start and decides where it ends.
//!
//! Frames are written one at a time, each after the one before is durable. So exactly one frame can
//! be incomplete after a crash: the last, which nobody was told of. Everything else that does not
//! read as the next frame is damage. The decision is [`decide`], one table over all cases.

use gannet_disk::{Completion, Disk, DiskError, FileId, Transfer};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::{Buffer, BufferPool};

use super::frame::{self, FRAME_ALIGNMENT, FRAME_BYTES_MAX, HEADER_BYTES, Position, Verdict};
use super::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};

/// Bytes read at once: a longest frame, and behind it as much again to look for successors.
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
    /// Something in the middle of the log is not as it was written.
    #[error(
        "it is damaged at byte {offset}: frame {number} is not readable, but later frames exist; \
         restore the metadata directory from a backup"
    )]
    Damaged {
        /// Where.
        offset: u64,
        /// Which frame should be there.
        number: u64,
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

/// What to do at a place where a frame could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply the frame and go on behind it.
    Apply,
    /// The log ends here; the next frame is written here.
    End,
    /// The log was damaged after it was written: refuse.
    Refuse,
    /// Read more and judge again.
    ReadMore,
}

/// The decision table: what was found, whether the file ends within the bytes at hand, and whether
/// a later frame of this log lies behind.
#[must_use]
pub fn decide(verdict: Verdict, at_end_of_file: bool, later_frame: bool) -> Decision {
    match (verdict, at_end_of_file, later_frame) {
        (Verdict::Next { .. }, _, _) => Decision::Apply,
        // The header reached the medium, the rest of the frame lies behind the file's end or the
        // window: a window holds a longest frame, so only the end of the file cuts one off.
        (Verdict::Incomplete { .. }, false, _) => Decision::ReadMore,
        (Verdict::Incomplete { .. }, true, _) => Decision::End,
        // The only frame under way when the writer died.
        (Verdict::TornPayload | Verdict::NoFrame, _, false) => Decision::End,
        // A later frame was started, so this one was durable once.
        (Verdict::TornPayload | Verdict::NoFrame, _, true) => Decision::Refuse,
        // Frames are only ever appended: whatever frame lies here must be the next.
        (Verdict::OutOfSequence, _, _) => Decision::Refuse,
    }
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// Behind the last frame there is nothing.
    Clean,
    /// Behind the last frame lies the beginning of one that was never whole, and that nobody was told
    /// of: a crash interrupted it. Damage to the last frame of a log looks the same.
    TornFrame,
    /// Behind the last frame lie bytes that begin no frame: what a crash left of one whose beginning
    /// was not written, or was written over later. Damage to the last frame may look the same.
    Remains,
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
    Done(Superblock, Recovered),
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
            State::Frames(superblock) | State::Done(superblock, _) => Some(superblock),
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
        let left = file_bytes.saturating_sub(self.offset);
        let len_bytes = wanted.min(left) as usize / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
        if len_bytes == 0 {
            return self.end_of_file();
        }
        let Some(buffer) = self.buffers.take() else { return Ok(()) };
        let transfer = Transfer {
            token: self.offset,
            file: self.file,
            offset: self.offset,
            memory: Memory::Buffer(buffer),
            memory_offset: 0,
            len_bytes,
        };
        match disk.read(transfer) {
            Ok(()) => self.reading = true,
            Err(refused) if refused.error == gannet_disk::SubmitError::Full => {}
            Err(refused) => {
                let source = std::io::Error::other(refused.error);
                return Err(RecoveryError::Read { offset: self.offset, source });
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
        let offset = self.offset;
        completion.result.map_err(|source| RecoveryError::Read { offset, source })?;
        let Some(buffer) = completion.memory.and_then(Memory::into_buffer) else { return Ok(()) };
        let file_bytes = disk.len_bytes(self.file);
        if let State::Superblock = self.state {
            let superblock = Superblock::decode(&buffer)?;
            self.offset = SUPERBLOCK_BYTES as u64;
            self.state = State::Frames(superblock);
            return Ok(());
        }
        self.frames(&buffer, file_bytes, apply)
    }

    fn frames(
        &mut self,
        buffer: &Buffer,
        file_bytes: u64,
        apply: &mut impl FnMut(&Superblock, &[u8]) -> Result<(), String>,
    ) -> Result<(), RecoveryError> {
        let State::Frames(superblock) = &self.state else { return Ok(()) };
        let superblock = *superblock;
        let uuid = superblock.file_system_uuid;
        let left = file_bytes.saturating_sub(self.offset);
        let window_bytes = (WINDOW_BYTES as u64).min(left) as usize;
        let window = &buffer[..window_bytes / FRAME_ALIGNMENT * FRAME_ALIGNMENT];
        let at_end_of_file = (window.len() as u64) + (FRAME_ALIGNMENT as u64) > left;
        let mut start = 0;
        while start < window.len() {
            let rest = &window[start..];
            let verdict = frame::judge(rest, self.position, uuid);
            // What is no frame is judged by what lies behind it: that the next one's beginning is seen,
            // even behind a longest frame. Else read on from here.
            let successor_seen = at_end_of_file || rest.len() > FRAME_BYTES_MAX;
            if !matches!(verdict, Verdict::Next { .. }) && !successor_seen {
                break;
            }
            let later = later_frame(rest, self.position.number + 1, uuid);
            match decide(verdict, at_end_of_file, later) {
                Decision::Apply => {
                    let Verdict::Next { position, padded_bytes, payload_bytes } = verdict else {
                        break;
                    };
                    let payload = &rest[HEADER_BYTES..HEADER_BYTES + payload_bytes];
                    self.apply_frame(&superblock, position, payload, apply)?;
                    self.offset += padded_bytes as u64;
                    start += padded_bytes;
                }
                Decision::ReadMore => break,
                Decision::End => {
                    self.end = end_of(verdict, rest);
                    self.finish(superblock);
                    return Ok(());
                }
                Decision::Refuse => {
                    let number = self.position.number + 1;
                    return Err(RecoveryError::Damaged { offset: self.offset, number });
                }
            }
        }
        if at_end_of_file && start >= window.len() {
            self.finish(superblock);
        }
        Ok(())
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
            State::Done(..) => Ok(()),
        }
    }

    fn finish(&mut self, superblock: Superblock) {
        self.state = State::Done(superblock, self.progress());
    }
}

/// How a log ends at a place that was judged so; `rest` is what lies there.
fn end_of(verdict: Verdict, rest: &[u8]) -> LogEnd {
    let longest = &rest[..rest.len().min(FRAME_BYTES_MAX)];
    match verdict {
        Verdict::Incomplete { .. } | Verdict::TornPayload => LogEnd::TornFrame,
        _ if longest.iter().any(|byte| *byte != 0) => LogEnd::Remains,
        _ => LogEnd::Clean,
    }
}

/// Whether a frame of this log with a number above `number` begins behind the first block.
fn later_frame(bytes: &[u8], number: u64, uuid: [u8; 16]) -> bool {
    bytes
        .chunks(FRAME_ALIGNMENT)
        .skip(1)
        .any(|block| frame::frame_number(block, uuid).is_some_and(|found| found > number))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_covers_every_case() {
        let next =
            Verdict::Next { position: Position::default(), padded_bytes: 4096, payload_bytes: 0 };
        let incomplete = Verdict::Incomplete { padded_bytes: 8192 };
        use Decision::{Apply, End, ReadMore, Refuse};
        let table = [
            // verdict, then (end of file, later frame): (no, no) (no, yes) (yes, no) (yes, yes)
            (next, [Apply, Apply, Apply, Apply]),
            (incomplete, [ReadMore, ReadMore, End, End]),
            (Verdict::TornPayload, [End, Refuse, End, Refuse]),
            (Verdict::NoFrame, [End, Refuse, End, Refuse]),
            (Verdict::OutOfSequence, [Refuse, Refuse, Refuse, Refuse]),
        ];
        for (verdict, row) in table {
            for (index, expected) in row.into_iter().enumerate() {
                let (end, later) = (index & 2 != 0, index & 1 != 0);
                assert_eq!(decide(verdict, end, later), expected, "{verdict:?} {end} {later}");
            }
        }
    }
}
