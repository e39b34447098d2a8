//! Where a log ends, and what is damage: one table over every case.
//!
//! Frames are written one at a time, each after the one before is durable, and always behind it. So
//! after a crash exactly one frame can be incomplete: the last, of which nobody was told. Any subset
//! of its sectors may have reached the medium. Whatever else is not as it was written is damage, and
//! a start refuses it: nobody may build on half of a log.
//!
//! At the place where the next frame belongs lies one of [`Here`], and further behind, up to the end
//! of the file, one of [`Behind`]. [`decide`] tells for each pair what to do.

use super::frame::{FRAME_BYTES_MAX, Verdict};

/// What lies where the next frame belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// The next frame, whole.
    Next,
    /// Its header; its payload is not what was to be written.
    TornPayload,
    /// Its header; the file ends before the frame does.
    CutOff,
    /// Zeros, as far as a frame could reach: nothing was ever written.
    Zeros,
    /// Bytes that begin no frame: the header is torn or damaged, or what a torn frame left was never
    /// written over.
    Remains,
    /// A whole header of a frame that was before: a write went astray, or the next one was lost.
    OlderFrame,
    /// A whole header with the number that is due, which does not continue the last frame.
    OtherHistory,
    /// A whole header of a frame that comes later: those between are lost.
    LaterFrame,
}

/// What lies further behind, up to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// No frame of this file system.
    NoFrame,
    /// A frame of one of the numbers that were read already.
    OlderFrame {
        /// Its number.
        number: u64,
        /// Where it lies, bytes.
        at: u64,
    },
    /// A frame with the number that is due or a later one.
    LaterFrame {
        /// Its number.
        number: u64,
        /// Where it lies, bytes.
        at: u64,
    },
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

/// Why a log is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The frame was durable once: the next was begun.
    #[error("is not readable, but frame {number} lies at byte {at}")]
    FrameLost {
        /// A later frame.
        number: u64,
        /// Where it lies, bytes.
        at: u64,
    },
    /// A frame lies behind the log's end, where none was ever written.
    #[error("is missing, and frame {number} lies at byte {at}, where it does not belong")]
    Astray {
        /// Its number.
        number: u64,
        /// Where it lies, bytes.
        at: u64,
    },
    /// An older frame lies in its place.
    #[error("is missing, and an older frame lies in its place")]
    OlderFrame,
    /// A later frame lies in its place.
    #[error("is missing, and a later frame lies in its place")]
    LaterFrame,
    /// It does not continue the frame before.
    #[error("does not continue the frame before: one of them is from another time or log")]
    OtherHistory,
}

/// What to do at a place where a frame could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Apply the frame and go on behind it.
    Apply,
    /// The log ends here; the next frame is written here.
    End(LogEnd),
    /// The log was damaged after it was written: refuse.
    Refuse(Damage),
}

impl Here {
    /// What a verdict means for a place where `number` is due and `rest` lies.
    #[must_use]
    pub fn of(verdict: Verdict, number: u64, rest: &[u8]) -> Here {
        match verdict {
            Verdict::Next { .. } => Here::Next,
            Verdict::TornPayload { .. } => Here::TornPayload,
            Verdict::Incomplete { .. } => Here::CutOff,
            Verdict::NoFrame => {
                let longest = &rest[..rest.len().min(FRAME_BYTES_MAX)];
                let is_zero = longest.iter().all(|byte| *byte == 0);
                if is_zero { Here::Zeros } else { Here::Remains }
            }
            Verdict::OutOfSequence { number: found } => match found.cmp(&number) {
                std::cmp::Ordering::Less => Here::OlderFrame,
                std::cmp::Ordering::Equal => Here::OtherHistory,
                std::cmp::Ordering::Greater => Here::LaterFrame,
            },
        }
    }
}

/// The decision table. `docs/disk-format.md` holds the same.
#[must_use]
pub fn decide(here: Here, behind: Behind) -> Decision {
    use Decision::{Apply, End, Refuse};
    match (here, behind) {
        (Here::Next, _) => Apply,
        // Frames are only ever appended: whatever frame lies here must be the next.
        (Here::OlderFrame, _) => Refuse(Damage::OlderFrame),
        (Here::OtherHistory, _) => Refuse(Damage::OtherHistory),
        (Here::LaterFrame, _) => Refuse(Damage::LaterFrame),
        // A later frame was begun, so this one was durable once.
        (_, Behind::LaterFrame { number, at }) => Refuse(Damage::FrameLost { number, at }),
        // A write went astray, and nobody knows which one is missing for it.
        (_, Behind::OlderFrame { number, at }) => Refuse(Damage::Astray { number, at }),
        // The only frame that was under way when the writer died, or none at all.
        (Here::TornPayload | Here::CutOff, Behind::NoFrame) => End(LogEnd::TornFrame),
        (Here::Remains, Behind::NoFrame) => End(LogEnd::Remains),
        (Here::Zeros, Behind::NoFrame) => End(LogEnd::Clean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::frame::Position;

    #[test]
    fn the_table_covers_every_case() {
        use Decision::{Apply, End, Refuse};
        let (number, at) = (7, 8192);
        let lost = Refuse(Damage::FrameLost { number, at });
        let astray = Refuse(Damage::Astray { number, at });
        let behind =
            [Behind::NoFrame, Behind::OlderFrame { number, at }, Behind::LaterFrame { number, at }];
        let table = [
            // What lies here, then what to do if behind it lies no frame, an older one, a later one.
            (Here::Next, [Apply, Apply, Apply]),
            (Here::TornPayload, [End(LogEnd::TornFrame), astray, lost]),
            (Here::CutOff, [End(LogEnd::TornFrame), astray, lost]),
            (Here::Zeros, [End(LogEnd::Clean), astray, lost]),
            (Here::Remains, [End(LogEnd::Remains), astray, lost]),
            (Here::OlderFrame, [Refuse(Damage::OlderFrame); 3]),
            (Here::OtherHistory, [Refuse(Damage::OtherHistory); 3]),
            (Here::LaterFrame, [Refuse(Damage::LaterFrame); 3]),
        ];
        for (here, row) in table {
            for (behind, expected) in behind.into_iter().zip(row) {
                assert_eq!(decide(here, behind), expected, "{here:?} {behind:?}");
            }
        }
    }

    #[test]
    fn every_verdict_has_its_row() {
        let zeros = [0; 8192];
        let mut remains = zeros;
        remains[5000] = 1;
        let next =
            Verdict::Next { position: Position::default(), padded_bytes: 4096, payload_bytes: 0 };
        let out_of_sequence = |number| Verdict::OutOfSequence { number };
        for (verdict, rest, expected) in [
            (next, &zeros, Here::Next),
            (Verdict::TornPayload { padded_bytes: 4096 }, &zeros, Here::TornPayload),
            (Verdict::Incomplete { padded_bytes: 16384 }, &zeros, Here::CutOff),
            (Verdict::NoFrame, &zeros, Here::Zeros),
            (Verdict::NoFrame, &remains, Here::Remains),
            (out_of_sequence(6), &zeros, Here::OlderFrame),
            (out_of_sequence(7), &zeros, Here::OtherHistory),
            (out_of_sequence(8), &zeros, Here::LaterFrame),
        ] {
            assert_eq!(Here::of(verdict, 7, rest), expected, "{verdict:?}");
        }
    }
}
