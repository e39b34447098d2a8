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
    /// So many owed are returned even without a message to send.
    return_at: Messages,
}

impl Credits {
    pub(crate) fn new(granted: Messages) -> Credits {
        let none = Messages::default();
        let mut credits =
            Credits { granted, peer_granted: none, left: none, owed: none, return_at: none };
        credits.return_at_half_of(granted);
        credits
    }

    /// The peer has no use for more than `used` messages on their way: it is to get its credits back
    /// when half of them are owed.
    pub(crate) fn return_at_half_of(&mut self, used: Messages) {
        let half = |used: u16| used.div_ceil(2).max(1);
        self.return_at = Messages { small: half(used.small), large: half(used.large) };
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

    /// The peer gave credits back. It has none of the messages `unsent`, which took theirs.
    #[inline]
    pub(crate) fn returned(&mut self, more: Messages, unsent: Messages) -> Result<(), Overdrawn> {
        let most = |granted: u16, unsent: u16| granted.saturating_sub(unsent);
        add(&mut self.left.small, more.small, most(self.peer_granted.small, unsent.small))?;
        add(&mut self.left.large, more.large, most(self.peer_granted.large, unsent.large))
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
        self.owed.small >= self.return_at.small || self.owed.large >= self.return_at.large
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
            left.returned(right.take_owed(), Messages::default()).unwrap();
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
            let returned = left.returned(Messages { small, large }, Messages::default());
            assert_eq!(returned, Err(Overdrawn));
        }
    }

    #[test]
    fn a_peer_returns_nothing_for_what_it_cannot_have() {
        let (mut left, _) = pair();
        for _ in 0..3 {
            left.take(Class::Small);
        }
        let unsent = Messages { small: 2, large: 0 };
        left.returned(Messages { small: 1, large: 0 }, unsent).unwrap();
        let more = left.returned(Messages { small: 1, large: 0 }, unsent);
        assert_eq!(more, Err(Overdrawn));
    }

    #[test]
    fn a_peer_that_uses_few_gets_them_back_in_time() {
        let mut credits = Credits::new(Messages { small: 128, large: 16 });
        credits.return_at_half_of(Messages { small: 16, large: 1 });
        for _ in 0..7 {
            credits.received(Class::Small).unwrap();
        }
        assert!(!credits.should_return());
        credits.received(Class::Small).unwrap();
        assert!(credits.should_return());
        credits.take_owed();
        credits.received(Class::Large).unwrap();
        assert!(credits.should_return());
    }
}
