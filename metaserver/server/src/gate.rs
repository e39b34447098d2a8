//! Outputs that wait for the log (rule H14).
//!
//! An output whose log position is durable passes at once, unless an earlier output to the same data
//! server waits: grants keep their order. The rest waits here, encoded, in the order of its making.

use std::collections::VecDeque;

use gannet_meta_core::{Lsn, PeerMessage, SessionIndex};
use gannet_proto::TargetId;

/// Where an output goes.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Host(SessionIndex),
    Target(TargetId),
    Peer(u16, Box<PeerMessage>),
    Enrollment(Box<gannet_meta_core::Enrollment>),
    /// The receiver is gone.
    Nowhere,
}

struct Waiting {
    after: Lsn,
    destination: Destination,
    frame_bytes: usize,
}

/// Outputs in the order of their making, each with the log position it waits for.
#[derive(Default)]
pub(crate) struct Gate {
    queue: VecDeque<Waiting>,
    frames: VecDeque<u8>,
    scratch: Vec<u8>,
    /// Outputs waiting for each data server, by its number.
    targets: Vec<u32>,
}

impl Gate {
    /// Whether a grant for `target` would overtake one that waits.
    pub(crate) fn holds_target(&self, target: TargetId) -> bool {
        self.targets.get(target.0 as usize).is_some_and(|count| *count > 0)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Keeps an output.
    pub(crate) fn hold(&mut self, after: Lsn, destination: Destination, frame: &[u8]) {
        if let Destination::Target(target) = destination {
            let index = target.0 as usize;
            if self.targets.len() <= index {
                self.targets.resize(index + 1, 0);
            }
            self.targets[index] += 1;
        }
        self.frames.extend(frame);
        self.queue.push_back(Waiting { after, destination, frame_bytes: frame.len() });
    }

    /// Drops what waits for a data server whose channel broke.
    pub(crate) fn forget_target(&mut self, target: TargetId) {
        if !self.holds_target(target) {
            return;
        }
        self.targets[target.0 as usize] = 0;
        for waiting in &mut self.queue {
            if matches!(waiting.destination, Destination::Target(found) if found == target) {
                waiting.destination = Destination::Nowhere;
            }
        }
    }

    /// Drops what waits for a session that has ended: its index may be given to another.
    pub(crate) fn forget_host(&mut self, session: SessionIndex) {
        for waiting in &mut self.queue {
            if matches!(waiting.destination, Destination::Host(found) if found == session) {
                waiting.destination = Destination::Nowhere;
            }
        }
    }

    /// Takes the oldest output if it may leave.
    pub(crate) fn release(&mut self, durable: Lsn) -> Option<(Destination, &[u8])> {
        if self.queue.front()?.after > durable {
            return None;
        }
        let waiting = self.queue.pop_front()?;
        if let Destination::Target(target) = waiting.destination {
            self.targets[target.0 as usize] -= 1;
        }
        // By slices: byte by byte this was a fifth of all instructions of a small write.
        let (front, back) = self.frames.as_slices();
        let in_front = waiting.frame_bytes.min(front.len());
        self.scratch.clear();
        self.scratch.extend_from_slice(&front[..in_front]);
        self.scratch.extend_from_slice(&back[..waiting.frame_bytes - in_front]);
        self.frames.drain(..waiting.frame_bytes);
        Some((waiting.destination, &self.scratch))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn outputs_leave_in_order_and_not_before_their_position_is_durable() {
        let mut gate = Gate::default();
        gate.hold(Lsn(5), Destination::Target(TargetId(2)), b"grant");
        gate.hold(Lsn(3), Destination::Host(SessionIndex(1)), b"reply");
        assert!(gate.holds_target(TargetId(2)) && !gate.holds_target(TargetId(1)));
        assert!(gate.release(Lsn(4)).is_none());
        assert_eq!(gate.release(Lsn(5)).unwrap().1, b"grant");
        assert!(!gate.holds_target(TargetId(2)));
        assert_eq!(gate.release(Lsn(5)).unwrap().1, b"reply");
        assert!(gate.release(Lsn(9)).is_none() && gate.is_empty());
    }
}
