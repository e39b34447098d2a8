//! What leaves a connection: entries are collected in frames while the kernel has the frames before
//! them, and go in one piece, their payload straight from where it lies.

use std::sync::Arc;

use gannet_runtime::memory::Mapping;

use super::memory::checksum;
use super::ring::Vectors;
use super::wire::{
    ANSWER_ENTRY_BYTES, CONTROL_BYTES_MAX, Entry, FrameHeader, HEADER_BYTES, TRANSFER_ENTRY_BYTES,
    set_checksum,
};
use crate::credits::{Class, Messages};
use crate::{LARGE_MESSAGE_BYTES, RemoteSlice, SMALL_MESSAGE_BYTES};

/// Most payload of one frame, bytes, give or take one transfer.
const FRAME_PAYLOAD_BYTES_MAX: u32 = 16 << 20;

/// Bytes of a payload part.
#[derive(Debug)]
struct Segment {
    start: *mut u8,
    len_bytes: u32,
    /// Where its entry is.
    entry: usize,
    /// For an answer to a read: the key that was used, and what keeps the memory mapped.
    served: Option<(u32, Arc<Mapping>)>,
}

#[derive(Debug)]
struct Frame {
    start: usize,
    segments_start: usize,
    payload_bytes: u32,
}

/// Frames that are being filled, or on their way.
#[derive(Debug)]
struct Batch {
    /// Headers and control parts, one frame behind the other.
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    segments: Vec<Segment>,
    messages: Messages,
    writes: u32,
    reads: u32,
    served: usize,
}

impl Batch {
    fn with_capacity(bytes: usize, segments: usize) -> Batch {
        Batch {
            bytes: Vec::with_capacity(bytes),
            frames: Vec::with_capacity(bytes / CONTROL_BYTES_MAX * 2 + 2),
            segments: Vec::with_capacity(segments),
            messages: Messages::default(),
            writes: 0,
            reads: 0,
            served: 0,
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.segments.clear();
        self.messages = Messages::default();
        (self.writes, self.reads, self.served) = (0, 0, 0);
    }

    /// Makes room for an entry: in the last frame or a new one.
    #[inline]
    fn begin(&mut self, entry_bytes: usize, payload_bytes: u32) {
        if let Some(last) = self.frames.last_mut()
            && self.bytes.len() - last.start + entry_bytes <= HEADER_BYTES + CONTROL_BYTES_MAX
            && last.payload_bytes < FRAME_PAYLOAD_BYTES_MAX
        {
            last.payload_bytes += payload_bytes;
            return;
        }
        let (start, segments_start) = (self.bytes.len(), self.segments.len());
        self.frames.push(Frame { start, segments_start, payload_bytes });
        self.bytes.resize(start + HEADER_BYTES, 0);
    }

    /// Drops the first frame's payload that has any, and all frames behind it.
    fn cut_off_payload(&mut self) {
        if let Some(last) = self.frames.iter().position(|frame| frame.payload_bytes > 0) {
            let end = self.frames.get(last + 1).map_or(self.bytes.len(), |next| next.start);
            self.frames.truncate(last + 1);
            self.bytes.truncate(end);
        }
        self.segments.clear();
        self.served = 0;
    }
}

/// Bounds of what may wait at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutgoingLimits {
    /// Messages that the peer takes.
    pub(super) messages: Messages,
    /// Writes and reads that this side may have under way.
    pub(super) transfers: usize,
    /// Reads that the peer may have under way.
    pub(super) served: usize,
}

/// What leaves a connection. See the module.
pub(super) struct Outgoing {
    open: Batch,
    flying: Batch,
    vectors: Vectors,
    /// The kernel has `flying`.
    under_way: bool,
    sequence: u32,
    checksums: bool,
    /// Writes and reads that have left this process altogether.
    pub(super) writes_sent: u32,
    /// Reads that the kernel has, or had. An answer to one may arrive before the kernel is seen to be
    /// done with the request: it does not touch the memory that the answer is for.
    pub(super) reads_launched: u32,
}

impl Outgoing {
    pub(super) fn new(limits: OutgoingLimits, checksums: bool) -> Outgoing {
        let small = usize::from(limits.messages.small) * Entry::message_bytes(SMALL_MESSAGE_BYTES);
        let large = usize::from(limits.messages.large) * Entry::message_bytes(LARGE_MESSAGE_BYTES);
        let transfers = limits.transfers * TRANSFER_ENTRY_BYTES;
        // And the refusal or goodbye at the end.
        let answers = (limits.served + 2) * ANSWER_ENTRY_BYTES;
        let entries = small + large + transfers + answers;
        // A frame is left when the next entry does not fit, so at least half of it is full.
        let bytes = entries + HEADER_BYTES * (2 + entries / (CONTROL_BYTES_MAX / 2));
        let segments = limits.transfers + limits.served;
        Outgoing {
            open: Batch::with_capacity(bytes, segments),
            flying: Batch::with_capacity(bytes, segments),
            vectors: Vectors::with_capacity(segments + bytes / CONTROL_BYTES_MAX * 2 + 2),
            under_way: false,
            sequence: 0,
            checksums,
            writes_sent: 0,
            reads_launched: 0,
        }
    }

    /// Whether something waits to be sent.
    pub(super) fn has_open(&self) -> bool {
        !self.open.frames.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.under_way && self.open.frames.is_empty()
    }

    /// Whether something is left, of which the kernel has nothing.
    pub(super) fn has_rest(&self) -> bool {
        !self.vectors.is_empty() || self.has_open()
    }

    #[inline]
    pub(super) fn push_message(&mut self, message: &[u8]) {
        self.open.begin(Entry::message_bytes(message.len()), 0);
        match Class::of(message.len()) {
            Class::Small => self.open.messages.small += 1,
            Class::Large => self.open.messages.large += 1,
        }
        Entry::push_message(message, &mut self.open.bytes);
    }

    /// Messages that have not left: the peer has nothing to return for them.
    #[inline]
    pub(super) fn open_messages(&self) -> Messages {
        self.open.messages
    }

    /// A write of `remote.len_bytes` bytes from `start`, which stay until they are acknowledged.
    #[inline]
    pub(super) fn push_write(&mut self, start: *mut u8, remote: RemoteSlice) {
        self.open.begin(TRANSFER_ENTRY_BYTES, remote.len_bytes);
        self.push_segment(start, remote.len_bytes, None);
        Entry::Write { remote, checksum: 0 }.push(&mut self.open.bytes);
        self.open.writes += 1;
    }

    pub(super) fn push_read(&mut self, remote: RemoteSlice) {
        self.open.begin(TRANSFER_ENTRY_BYTES, 0);
        Entry::Read { remote }.push(&mut self.open.bytes);
        self.open.reads += 1;
    }

    /// Answers a read of the peer.
    pub(super) fn push_answer(
        &mut self,
        start: *mut u8,
        len_bytes: u32,
        served: Option<(u32, Arc<Mapping>)>,
    ) {
        self.open.begin(ANSWER_ENTRY_BYTES, len_bytes);
        self.open.served += 1;
        self.push_segment(start, len_bytes, served);
        Entry::ReadAnswer { len_bytes, checksum: 0 }.push(&mut self.open.bytes);
    }

    fn push_segment(
        &mut self,
        start: *mut u8,
        len_bytes: u32,
        served: Option<(u32, Arc<Mapping>)>,
    ) {
        if len_bytes > 0 {
            let entry = self.open.bytes.len();
            self.open.segments.push(Segment { start, len_bytes, entry, served });
        }
    }

    /// The last entry of a connection.
    pub(super) fn push_last(&mut self, entry: Entry) {
        self.open.begin(ANSWER_ENTRY_BYTES, 0);
        entry.push(&mut self.open.bytes);
    }

    /// An empty frame, which only returns credits and acknowledges.
    pub(super) fn push_nothing(&mut self) {
        if self.open.frames.is_empty() {
            self.open.begin(0, 0);
        }
    }

    /// Answers to reads that the peer may not have got yet.
    pub(super) fn serving(&self) -> usize {
        self.open.served + self.flying.served
    }

    /// Whether an answer to a read that is still to be sent was asked for by this key.
    pub(super) fn serves_key(&self, key: u32) -> bool {
        let by_it = |segment: &Segment| segment.served.as_ref().is_some_and(|(by, _)| *by == key);
        let mut segments = self.open.segments.iter().chain(&self.flying.segments);
        self.serving() > 0 && segments.any(by_it)
    }

    /// Closes what was collected and returns it for the kernel; nothing is under way. `writes_placed`
    /// and `returned` go into the first header.
    #[inline]
    pub(super) fn launch(&mut self, writes_placed: u32, returned: Messages) -> &mut Vectors {
        debug_assert!(!self.under_way, "one batch at a time");
        std::mem::swap(&mut self.open, &mut self.flying);
        self.reads_launched = self.reads_launched.wrapping_add(self.flying.reads);
        let Outgoing { flying, vectors, sequence, checksums, .. } = self;
        let Batch { bytes, frames, segments, .. } = flying;
        vectors.clear();
        if *checksums {
            for segment in &*segments {
                // SAFETY: the segment's transfer or region keeps its memory mapped.
                let sum = unsafe { checksum(segment.start, segment.len_bytes as usize) };
                set_checksum(&mut bytes[segment.entry..], sum);
            }
        }
        let mut returned = Some(returned);
        for (number, frame) in frames.iter().enumerate() {
            let next = frames.get(number + 1);
            let end = next.map_or(bytes.len(), |next| next.start);
            let segments_end = next.map_or(segments.len(), |next| next.segments_start);
            let returned = returned.take().unwrap_or_default();
            let header = FrameHeader {
                control_bytes: (end - frame.start - HEADER_BYTES) as u32,
                payload_bytes: frame.payload_bytes,
                sequence: *sequence,
                writes_placed,
                small_returned: returned.small,
                large_returned: returned.large,
            };
            *sequence = sequence.wrapping_add(1);
            let whole = &mut bytes[frame.start..end];
            header.encode(whole);
            vectors.push(whole.as_mut_ptr(), whole.len());
            for segment in &segments[frame.segments_start..segments_end] {
                vectors.push(segment.start, segment.len_bytes as usize);
            }
        }
        self.under_way = true;
        &mut self.vectors
    }

    /// The kernel took so many bytes. The rest, if it did not take all.
    #[inline]
    pub(super) fn sent(&mut self, len_bytes: usize) -> Option<&mut Vectors> {
        self.vectors.advance(len_bytes);
        if !self.vectors.is_empty() {
            return Some(&mut self.vectors);
        }
        self.under_way = false;
        self.writes_sent = self.writes_sent.wrapping_add(self.flying.writes);
        self.flying.clear();
        None
    }

    /// Memory that is not this value's own goes back to its owners, and the kernel has none of it.
    /// What stands in front of the first byte of it remains to be sent.
    pub(super) fn cut_off_payload(&mut self) {
        self.under_way = false;
        let own = self.flying.bytes.as_ptr_range();
        let cut = self.vectors.cut_at(|start| !own.contains(&start));
        self.flying.segments.clear();
        self.flying.served = 0;
        if cut {
            self.open.clear();
        }
        self.open.cut_off_payload();
    }

    /// What remains to be sent, for the kernel, which has nothing.
    pub(super) fn rest(&mut self, writes_placed: u32) -> Option<&mut Vectors> {
        if !self.vectors.is_empty() {
            self.under_way = true;
            return Some(&mut self.vectors);
        }
        self.has_open().then(|| self.launch(writes_placed, Messages::default()))
    }
}
