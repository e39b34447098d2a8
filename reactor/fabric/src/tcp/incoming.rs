//! What arrives on a connection.
//!
//! Header and control part of a frame are received into a buffer of the connection. From then on it
//! is known where all payload of the frame belongs ([`Landing`]), and the kernel is asked to put it
//! there: one request covers the landings of the whole frame and, behind them, room for the next
//! header. What arrived together with a header, before anything was known, is copied once; to keep
//! that small, no more is asked for than a header with as long a control part as the last one had
//! (and all of a short frame).

use std::collections::VecDeque;
use std::sync::Arc;

use gannet_runtime::memory::Mapping;

use super::memory::{checksum, copy_in};
use super::ring::Vectors;
use super::wire::{CONTROL_BYTES_MAX, Entry, FrameHeader, HEADER_BYTES, Violation};

/// Room behind the longest frame without payload, for the begin of the next one.
const TAIL_BYTES: usize = 4096;
/// Bytes of a connection's buffer.
const STAGING_BYTES: usize = HEADER_BYTES + CONTROL_BYTES_MAX + TAIL_BYTES;
/// A frame with no more payload than this is received in one piece, and its payload copied: another
/// request to the kernel takes longer (with requests for 4 KiB, one at a time, a tenth of all).
const COPIED_BYTES_MAX: u32 = 4096;
/// Landings of one request where payload has checksums: each is compared with those before it.
const CHECKED_MAX: usize = 64;

/// Where payload goes.
#[derive(Debug)]
pub(super) struct Landing {
    /// Null: nobody wants it.
    start: *mut u8,
    len_bytes: u32,
    left: u32,
    checksum: u32,
    /// For a write of the peer: its key, and what keeps the memory mapped.
    pub(super) key: Option<(u32, Arc<Mapping>)>,
    refused: bool,
}

impl Landing {
    /// For a write of the peer.
    pub(super) fn write(key: u32, start: *mut u8, memory: &Arc<Mapping>) -> Landing {
        let key = Some((key, Arc::clone(memory)));
        Landing { start, key, ..Landing::nowhere() }
    }

    /// For the answer to a read of this side, which keeps its memory until then.
    pub(super) fn answer(start: *mut u8) -> Landing {
        Landing { start, ..Landing::nowhere() }
    }

    /// For a write that is not permitted.
    pub(super) fn refused() -> Landing {
        Landing { refused: true, ..Landing::nowhere() }
    }

    /// For payload that nobody wants.
    pub(super) fn nowhere() -> Landing {
        Landing {
            start: std::ptr::null_mut(),
            len_bytes: 0,
            left: 0,
            checksum: 0,
            key: None,
            refused: false,
        }
    }

    fn overlaps(&self, other: &Landing) -> bool {
        let end = |landing: &Landing| landing.start.addr() + landing.len_bytes as usize;
        let somewhere = !self.start.is_null() && !other.start.is_null();
        somewhere && self.start.addr() < end(other) && other.start.addr() < end(self)
    }

    fn next(&self) -> *mut u8 {
        self.start.wrapping_add((self.len_bytes - self.left) as usize)
    }
}

/// A frame whose header and control part are there.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// The next entry, and the end of the entries.
    next: usize,
    control_end: usize,
}

/// What stands next in the stream.
pub(super) enum Next {
    /// Nothing yet.
    Nothing,
    /// An entry, and where its bytes are.
    Entry(Entry, usize),
    /// A write that was not permitted.
    Refused,
}

/// What arrives on a connection. See the module.
pub(super) struct Incoming {
    staging: Box<[u8]>,
    /// Bytes in `staging` that are not done with.
    start: usize,
    end: usize,
    /// In a frame: where payload, and what follows it, goes on.
    data: usize,
    frame: Option<Frame>,
    landings: VecDeque<Landing>,
    /// What the kernel was asked for: bytes for landings, then bytes for `staging`.
    vectors: Vectors,
    landing_bytes: usize,
    under_way: bool,
    sequence: u32,
    /// How much of the next frame is taken before its payload has places: as long as the last one's
    /// header and control part. Nothing if that had no payload.
    expected: Option<usize>,
    /// The socket had nothing more when it was asked last.
    drained: bool,
    checksums: bool,
}

impl Incoming {
    pub(super) fn new(checksums: bool) -> Incoming {
        let landings = CONTROL_BYTES_MAX / super::wire::ANSWER_ENTRY_BYTES;
        Incoming {
            staging: vec![0; STAGING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            data: 0,
            frame: None,
            landings: VecDeque::with_capacity(landings.min(512)),
            vectors: Vectors::with_capacity(landings.min(512) + 1),
            landing_bytes: 0,
            under_way: false,
            sequence: 0,
            expected: None,
            drained: true,
            checksums,
        }
    }

    /// Whether payload is awaited for which there is a place already.
    pub(super) fn awaits_payload(&self) -> bool {
        !self.landings.is_empty()
    }

    /// Whether payload that this key let in is still under way.
    pub(super) fn lands_by_key(&self, key: u32) -> bool {
        let by_it = |landing: &Landing| landing.key.as_ref().is_some_and(|(used, _)| *used == key);
        self.landings.iter().any(by_it)
    }

    /// Nobody wants the payload any more that the peer's writes still bring. Nothing is under way.
    pub(super) fn turn_away_writes(&mut self) {
        let writes = |landing: &&mut Landing| landing.key.is_some() || landing.refused;
        for landing in self.landings.iter_mut().filter(writes) {
            landing.start = std::ptr::null_mut();
            landing.key = None;
            landing.refused = false;
        }
    }

    /// Header and control part of the next frame are complete: checks them.
    ///
    /// # Errors
    /// What the peer did wrong.
    pub(super) fn begin_frame(&mut self) -> Result<Option<FrameHeader>, Violation> {
        let there = &self.staging[self.start..self.end];
        if self.frame.is_some() || there.len() < HEADER_BYTES {
            return Ok(None);
        }
        let whole = HEADER_BYTES + FrameHeader::control_bytes(there)?;
        let Some(bytes) = there.get(..whole) else { return Ok(None) };
        let header = FrameHeader::decode(bytes, self.sequence)?;
        self.sequence = self.sequence.wrapping_add(1);
        self.expected = match header.payload_bytes {
            0 => None,
            short @ 1..=COPIED_BYTES_MAX => Some(whole + short as usize),
            _ => Some(whole),
        };
        self.data = self.start + whole;
        let next = self.start + HEADER_BYTES;
        self.frame = Some(Frame { next, control_end: self.data });
        Ok(Some(header))
    }

    /// Finds the places of the frame's payload; `place` is asked for each, in order.
    ///
    /// # Errors
    /// What the peer did wrong.
    pub(super) fn place_payload(
        &mut self,
        header: FrameHeader,
        mut place: impl FnMut(Entry) -> Result<Landing, Violation>,
    ) -> Result<(), Violation> {
        let Some(frame) = self.frame else { return Ok(()) };
        let (mut at, mut payload_bytes) = (frame.next, 0u64);
        while at < frame.control_end {
            let (entry, len, payload) = Entry::read(&self.staging[at..frame.control_end])?;
            at += len;
            payload_bytes += u64::from(payload);
            let checksum = match entry {
                Entry::Write { checksum, .. } | Entry::ReadAnswer { checksum, .. } => checksum,
                _ => continue,
            };
            // Also where there is none: answers belong to reads in order.
            let landing = place(entry)?;
            if payload > 0 {
                self.landings.push_back(Landing {
                    len_bytes: payload,
                    left: payload,
                    checksum,
                    ..landing
                });
            }
        }
        if payload_bytes != header.payload_bytes.into() {
            return Err(Violation("a frame's payload has not the length that its header states"));
        }
        Ok(())
    }

    /// The next entry that can be handled, payload included.
    ///
    /// # Errors
    /// What the peer did wrong.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Next, Violation> {
        let Some(frame) = &mut self.frame else { return Ok(Next::Nothing) };
        if frame.next == frame.control_end {
            self.frame = None;
            self.start = self.data;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            return Ok(Next::Nothing);
        }
        let at = frame.next;
        let (entry, len, payload) = Entry::read(&self.staging[at..frame.control_end])?;
        if payload > 0
            && let Some(landing) = self.landings.front_mut()
        {
            if landing.refused {
                return Ok(Next::Refused);
            }
            let there = (self.end - self.data).min(landing.left as usize);
            if there > 0 && !landing.start.is_null() {
                // SAFETY: the landing has `left` bytes at `next`, which its key or its transfer
                // keeps mapped.
                unsafe { copy_in(&self.staging[self.data..self.data + there], landing.next()) };
            }
            self.data += there;
            landing.left -= there as u32;
            if landing.left > 0 {
                return Ok(Next::Nothing);
            }
            if self.checksums && !landing.start.is_null() {
                // SAFETY: as above, for the whole landing.
                let found = unsafe { checksum(landing.start, landing.len_bytes as usize) };
                if found != landing.checksum {
                    return Err(Violation("the checksum of a payload is wrong"));
                }
            }
            self.landings.pop_front();
        }
        frame.next += len;
        Ok(Next::Entry(entry, at))
    }

    /// Whether a frame is open: its entries are not all handled.
    pub(super) fn in_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// Whether the entry that was handled last is the last one of its frame.
    #[inline]
    pub(super) fn at_last_entry(&self) -> bool {
        self.frame.is_some_and(|frame| frame.next == frame.control_end)
    }

    /// The bytes of a message whose entry is at `at`.
    pub(super) fn message(&self, at: usize, len_bytes: usize) -> &[u8] {
        let start = at + Entry::MESSAGE_START;
        &self.staging[start..start + len_bytes]
    }

    /// What the kernel is to be asked for next, and whether it should wait for the socket first.
    /// `sink` takes what nobody wants.
    #[inline]
    pub(super) fn request(&mut self, sink: &mut [u8]) -> (&mut Vectors, bool) {
        debug_assert!(!self.under_way, "one request at a time");
        self.vectors.clear();
        self.landing_bytes = 0;
        let mut room = match self.frame {
            None => {
                if self.start > 0 {
                    self.staging.copy_within(self.start..self.end, 0);
                    (self.start, self.end) = (0, self.end - self.start);
                }
                self.wanted().min(self.staging.len()) - self.end
            }
            Some(_) => self.expected.unwrap_or(HEADER_BYTES).min(self.staging.len() - self.end),
        };
        if self.frame.is_some() {
            for (number, landing) in self.landings.iter().enumerate() {
                let mut waits = landing.refused;
                if self.checksums && !waits {
                    // Each is checked before the next one changes the same bytes.
                    let mut before = self.landings.iter().take(number);
                    waits = number >= CHECKED_MAX || before.any(|one| one.overlaps(landing));
                }
                // At the first one this was asked before.
                let later = self.landing_bytes > 0;
                if later && waits {
                    room = 0;
                    break;
                }
                if landing.start.is_null() {
                    let len = (landing.left as usize).min(sink.len());
                    self.vectors.push(sink.as_mut_ptr(), len);
                    self.landing_bytes += len;
                    if len < landing.left as usize {
                        room = 0;
                        break;
                    }
                } else {
                    self.vectors.push(landing.next(), landing.left as usize);
                    self.landing_bytes += landing.left as usize;
                }
                if self.vectors.is_full() {
                    room = 0;
                    break;
                }
            }
        }
        let tail = &mut self.staging[self.end..self.end + room];
        self.vectors.push(tail.as_mut_ptr(), tail.len());
        self.under_way = true;
        let poll_first = std::mem::replace(&mut self.drained, false);
        (&mut self.vectors, poll_first)
    }

    /// Up to where `staging` should be filled, outside of a frame.
    fn wanted(&self) -> usize {
        let there = &self.staging[..self.end];
        let control = FrameHeader::control_bytes(there.get(..HEADER_BYTES).unwrap_or(&[0; 8]));
        let whole = HEADER_BYTES + control.unwrap_or(0);
        match self.expected {
            // No payload lately: whatever comes.
            None => self.staging.len(),
            Some(expected) => expected.max(whole),
        }
    }

    /// The kernel brought so many bytes.
    #[inline]
    pub(super) fn arrived(&mut self, len_bytes: usize, more: bool) {
        self.under_way = false;
        self.drained = !more;
        let mut landed = len_bytes.min(self.landing_bytes);
        self.end += len_bytes - landed;
        for landing in &mut self.landings {
            if landed == 0 {
                break;
            }
            let part = landed.min(landing.left as usize);
            landing.left -= part as u32;
            landed -= part;
        }
    }

    /// The kernel brought nothing: the request was cancelled, or the stream is over.
    pub(super) fn gave_up(&mut self) {
        self.under_way = false;
    }
}
