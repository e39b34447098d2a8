//! Slots and sequences: how a shard tells a new request from a repeated one.
//!
//! A slot carries one request at a time. The host numbers the requests of a slot with a sequence
//! that grows by one, and the attempts of a request from 1. A higher sequence acknowledges the reply
//! of the last. What a slot decides is [`Admission`]; the table of all state and input pairs is in
//! the tests.

/// What a slot knows. `R` is the kept reply of a change, `O` names the request under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Slot<R, O> {
    /// No request yet; the next sequence is 1.
    #[default]
    Fresh,
    /// A request is under way.
    Busy {
        /// Its sequence.
        sequence: u64,
        /// Its attempt.
        attempt: u32,
        /// Its name.
        operation: O,
    },
    /// The request is a read whose grants are out: the data servers' arrival notices answer it, so
    /// the next sequence acknowledges it although its grants may not be retired here.
    Delegated {
        /// Its sequence.
        sequence: u64,
        /// Its attempt.
        attempt: u32,
        /// Its name.
        operation: O,
    },
    /// The last request was answered.
    Answered {
        /// Its sequence.
        sequence: u64,
        /// Its attempt.
        attempt: u32,
        /// Its reply if it was a change; `None` if it may be executed again.
        reply: Option<R>,
    },
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission<R, O> {
    /// Execute it: the slot's next sequence.
    New,
    /// A later attempt of the request under way. The host has cut the former attempt off.
    Supersedes(O),
    /// A request that was answered and changed nothing: execute it again.
    Again,
    /// A change that was answered: send this reply again.
    Replay(R),
    /// The request under way, or an older attempt of it: ignore it.
    Duplicate,
    /// Neither the slot's last sequence nor its next one.
    BadSequence,
}

impl<R: Clone, O: Clone> Slot<R, O> {
    /// Judges a request by its sequence and attempt.
    #[must_use]
    pub fn admit(&self, sequence: u64, attempt: u32) -> Admission<R, O> {
        match self {
            Slot::Fresh if sequence == 1 => Admission::New,
            Slot::Fresh => Admission::BadSequence,
            Slot::Busy { sequence: current, attempt: last, operation } => {
                if sequence != *current {
                    // A slot holds one request: a further one before its answer breaks the rule.
                    Admission::BadSequence
                } else if attempt > *last {
                    Admission::Supersedes(operation.clone())
                } else {
                    Admission::Duplicate
                }
            }
            Slot::Delegated { sequence: current, attempt: last, operation } => {
                if sequence == current.wrapping_add(1) {
                    Admission::New
                } else if sequence != *current {
                    Admission::BadSequence
                } else if attempt > *last {
                    Admission::Supersedes(operation.clone())
                } else {
                    Admission::Duplicate
                }
            }
            Slot::Answered { sequence: current, attempt: last, reply } => {
                if sequence == current.wrapping_add(1) {
                    Admission::New
                } else if sequence != *current {
                    Admission::BadSequence
                } else if let Some(reply) = reply {
                    Admission::Replay(reply.clone())
                } else if attempt > *last {
                    Admission::Again
                } else {
                    Admission::Duplicate
                }
            }
        }
    }

    /// Notes that an admitted request is under way.
    pub fn begin(&mut self, sequence: u64, attempt: u32, operation: O) {
        *self = Slot::Busy { sequence, attempt, operation };
    }

    /// Notes that data servers will answer the read under way.
    pub fn delegate(&mut self) {
        if let Slot::Busy { sequence, attempt, operation } = self {
            let (sequence, attempt, operation) = (*sequence, *attempt, operation.clone());
            *self = Slot::Delegated { sequence, attempt, operation };
        }
    }

    /// Notes that the request under way was answered. With `reply` a repetition is answered from
    /// memory, without it is executed again.
    pub fn answer(&mut self, sequence: u64, attempt: u32, reply: Option<R>) {
        *self = Slot::Answered { sequence, attempt, reply };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_meets_every_input() {
        type S = Slot<&'static str, u32>;
        let busy = S::Busy { sequence: 5, attempt: 2, operation: 9 };
        let granted = S::Delegated { sequence: 5, attempt: 2, operation: 9 };
        let changed = S::Answered { sequence: 5, attempt: 2, reply: Some("r") };
        let read = S::Answered { sequence: 5, attempt: 2, reply: None };
        use Admission::{Again, BadSequence, Duplicate, New, Replay, Supersedes};
        let table: [(&S, u64, u32, Admission<&'static str, u32>); 27] = [
            (&S::Fresh, 1, 1, New),
            (&S::Fresh, 2, 1, BadSequence),
            (&S::Fresh, 0, 1, BadSequence),
            (&busy, 4, 1, BadSequence),
            (&busy, 5, 1, Duplicate),
            (&busy, 5, 2, Duplicate),
            (&busy, 5, 3, Supersedes(9)),
            (&busy, 6, 1, BadSequence),
            (&busy, 7, 1, BadSequence),
            (&granted, 4, 1, BadSequence),
            (&granted, 5, 1, Duplicate),
            (&granted, 5, 2, Duplicate),
            (&granted, 5, 3, Supersedes(9)),
            (&granted, 6, 1, New),
            (&granted, 7, 1, BadSequence),
            (&changed, 4, 1, BadSequence),
            (&changed, 5, 1, Replay("r")),
            (&changed, 5, 2, Replay("r")),
            (&changed, 5, 3, Replay("r")),
            (&changed, 6, 1, New),
            (&changed, 7, 1, BadSequence),
            (&read, 4, 1, BadSequence),
            (&read, 5, 1, Duplicate),
            (&read, 5, 2, Duplicate),
            (&read, 5, 3, Again),
            (&read, 6, 1, New),
            (&read, 7, 1, BadSequence),
        ];
        for (slot, sequence, attempt, expected) in table {
            assert_eq!(slot.admit(sequence, attempt), expected, "{slot:?} {sequence} {attempt}");
        }
    }
}
