//! Credits of messages: how many the peer may still be sent, and how many it gets back. For providers
//! whose ends count them themselves.

use crate::SMALL_MESSAGE_BYTES;

/// The two classes of messages, each with credits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Small,
    Large,
}

impl Class {
    /// The class of a message of this length.
    pub(crate) fn of(len_bytes: usize) -> Class {
        if len_bytes <= SMALL_MESSAGE_BYTES { Class::Small } else { Class::Large }
    }
}

/// A number of messages of each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    pub(crate) small: u16,
    pub(crate) large: u16,
}

/// A peer sent without a credit, or returned credits that it never had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overdrawn;

/// Messages that may be on their way, in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credits {
    /// What this side lets the peer have on its way, in all.
    granted: Messages,
    /// What the peer lets this side have on its way, in all.
    peer_granted: Messages,
    /// How many more this side may send.
    left: Messages,
    /// Messages received for which the peer did not get its credit back yet.
    owed: Messages,
}

impl Credits {
    pub(crate) fn new(granted: Messages) -> Credits {
        let none = Messages::default();
        Credits { granted, peer_granted: none, left: none, owed: none }
    }

    /// The peer said what it grants.
    pub(crate) fn begin(&mut self, peer: Messages) {
        (self.peer_granted, self.left) = (peer, peer);
    }

    #[inline]
    pub(crate) fn has(&self, class: Class) -> bool {
        match class {
            Class::Small => self.left.small > 0,
            Class::Large => self.left.large > 0,
        }
    }

    /// A message of `class`, for which there is a credit, is about to be sent.
    #[inline]
    pub(crate) fn take(&mut self, class: Class) {
        match class {
            Class::Small => self.left.small -= 1,
            Class::Large => self.left.large -= 1,
        }
    }

    /// What the next frame gives back to the peer.
    #[inline]
    pub(crate) fn take_owed(&mut self) -> Messages {
        std::mem::take(&mut self.owed)
    }

    /// The peer gave credits back.
    #[inline]
    pub(crate) fn returned(&mut self, more: Messages) -> Result<(), Overdrawn> {
        add(&mut self.left.small, more.small, self.peer_granted.small)?;
        add(&mut self.left.large, more.large, self.peer_granted.large)
    }

    /// A message of the peer arrived.
    #[inline]
    pub(crate) fn received(&mut self, class: Class) -> Result<(), Overdrawn> {
        match class {
            Class::Small => add(&mut self.owed.small, 1, self.granted.small),
            Class::Large => add(&mut self.owed.large, 1, self.granted.large),
        }
    }

    /// Whether so much is owed that it should be returned even without a message to send.
    #[inline]
    pub(crate) fn should_return(&self) -> bool {
        let half = |owed: u16, granted: u16| owed > 0 && owed >= granted.div_ceil(2);
        half(self.owed.small, self.granted.small) || half(self.owed.large, self.granted.large)
    }
}

#[inline]
fn add(have: &mut u16, more: u16, max: u16) -> Result<(), Overdrawn> {
    *have = have.checked_add(more).filter(|sum| *sum <= max).ok_or(Overdrawn)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pair() -> (Credits, Credits) {
        let (mine, yours) = (Messages { small: 4, large: 2 }, Messages { small: 6, large: 1 });
        let (mut left, mut right) = (Credits::new(mine), Credits::new(yours));
        left.begin(yours);
        right.begin(mine);
        (left, right)
    }

    #[test]
    fn credits_are_bounded_and_come_back() {
        let (mut left, mut right) = pair();
        let mut sent = 0;
        for _ in 0..100 {
            while left.has(Class::Small) {
                left.take(Class::Small);
                right.received(Class::Small).unwrap();
                sent += 1;
            }
            assert!(left.has(Class::Large), "the other class has credits of its own");
            assert!(right.should_return());
            left.returned(right.take_owed()).unwrap();
            assert!(!right.should_return());
        }
        assert_eq!(sent, 600);
    }

    #[test]
    fn a_message_without_a_credit_is_a_violation() {
        let (_, mut right) = pair();
        assert_eq!(right.received(Class::Large), Ok(()));
        assert_eq!(right.received(Class::Large), Err(Overdrawn));
    }

    #[test]
    fn credits_that_were_never_granted_are_a_violation() {
        for (small, large) in [(1, 0), (0, 1), (u16::MAX, 0)] {
            let (mut left, _) = pair();
            assert_eq!(left.returned(Messages { small, large }), Err(Overdrawn));
        }
    }
}
