//! The life of one connection that is kept up: to a metadata-server reactor or to a data server.
//!
//! A state machine without I/O: the client performs what it returns and tells it what happened.
//!
//! | phase | input | next |
//! |---|---|---|
//! | `Idle` | `wake` | `Backoff`, due at once |
//! | `Backoff` | due | the caller begins: `asking` or `connecting`; after `reconnect_timeout`: `Idle`, given up |
//! | `Asking` | ticket | `Connecting` |
//! | `Asking` | due | `Idle`, given up |
//! | `Connecting` | connected | `Greeting` |
//! | `Connecting`, `Greeting` | due | `Closing`: the handshake took too long |
//! | `Greeting` | welcome | `Ready` |
//! | `Connecting`, `Greeting`, `Closing` before a welcome | lost, another address | `Connecting` |
//! | `Connecting`, `Greeting`, `Ready` | `close` | `Closing` |
//! | all but `Idle` | `lost` | `Backoff`; after `reconnect_timeout`: `Idle`, given up |

use std::time::Duration;

use gannet_fabric::ConnectionId;
use gannet_runtime::time::Time;

use crate::options::{ClientOptions, delay};

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Idle,
    Backoff,
    Asking,
    Connecting(ConnectionId),
    Greeting(ConnectionId),
    Ready(ConnectionId),
    Closing(ConnectionId),
}

/// What to do when a link is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// Ask for a ticket, or connect.
    Begin,
    /// End this connection: its handshake took too long.
    Abort(ConnectionId),
    /// The other side was sought for long enough.
    GaveUp,
}

/// What follows a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It is tried again, see [`Link::next`].
    Again,
    /// The other side was sought for long enough.
    GaveUp,
}

/// Delays and bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkTimes {
    reconnect_timeout: Duration,
    handshake_timeout: Duration,
    delay_min: Duration,
    delay_max: Duration,
}

impl LinkTimes {
    pub(crate) fn new(options: &ClientOptions) -> LinkTimes {
        LinkTimes {
            reconnect_timeout: options.reconnect_timeout,
            handshake_timeout: options.handshake_timeout,
            delay_min: options.reconnect_delay_min,
            delay_max: options.reconnect_delay_max,
        }
    }
}

/// A connection that is kept up.
#[derive(Debug)]
pub(crate) struct Link {
    phase: Phase,
    failures: u32,
    /// When the search ends; NEVER while it has not begun.
    give_up_at: Time,
    /// Whether the current connection, or the one that ended last, was welcomed.
    was_welcomed: bool,
    next: Time,
}

impl Link {
    pub(crate) fn new() -> Link {
        Link {
            phase: Phase::Idle,
            failures: 0,
            give_up_at: Time::NEVER,
            next: Time::NEVER,
            was_welcomed: false,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn ready(&self) -> Option<ConnectionId> {
        match self.phase {
            Phase::Ready(connection) => Some(connection),
            _ => None,
        }
    }

    /// Whether the connection that is there, or ended last, led to the right server.
    pub(crate) fn was_welcomed(&self) -> bool {
        self.was_welcomed
    }

    /// The connection, whatever it is good for.
    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        match self.phase {
            Phase::Idle | Phase::Backoff | Phase::Asking => None,
            Phase::Connecting(connection)
            | Phase::Greeting(connection)
            | Phase::Ready(connection)
            | Phase::Closing(connection) => Some(connection),
        }
    }

    /// When [`Link::due`] has something to say.
    pub(crate) fn next(&self) -> Time {
        self.next
    }

    /// Somebody needs the connection. The time is looked at when it is due, because callers
    /// outside the poll loop have none.
    pub(crate) fn wake(&mut self) {
        if self.phase == Phase::Idle {
            *self = Link { phase: Phase::Backoff, next: Time::ZERO, ..Link::new() };
        }
    }

    pub(crate) fn asking(&mut self) {
        self.phase = Phase::Asking;
        self.next = self.give_up_at;
    }

    pub(crate) fn connecting(&mut self, connection: ConnectionId, now: Time, times: &LinkTimes) {
        self.phase = Phase::Connecting(connection);
        self.next = now + times.handshake_timeout;
        self.was_welcomed = false;
    }

    pub(crate) fn greeting(&mut self) {
        if let Phase::Connecting(connection) = self.phase {
            self.phase = Phase::Greeting(connection);
        }
    }

    /// The welcome came.
    pub(crate) fn welcomed(&mut self) {
        if let Phase::Greeting(connection) = self.phase {
            *self = Link { phase: Phase::Ready(connection), was_welcomed: true, ..Link::new() };
        }
    }

    /// Gives the connection up; returns what is to be disconnected.
    pub(crate) fn close(&mut self) -> Option<ConnectionId> {
        match self.phase {
            Phase::Connecting(connection)
            | Phase::Greeting(connection)
            | Phase::Ready(connection) => {
                self.phase = Phase::Closing(connection);
                self.next = Time::NEVER;
                Some(connection)
            }
            _ => None,
        }
    }

    /// The connection ended, or could not be begun.
    pub(crate) fn lost(&mut self, now: Time, times: &LinkTimes) -> Lost {
        if self.give_up_at == Time::NEVER {
            self.give_up_at = now + times.reconnect_timeout;
        }
        let delay = delay(times.delay_min, times.delay_max, self.failures);
        self.failures = self.failures.saturating_add(1);
        if now >= self.give_up_at {
            *self = Link::new();
            return Lost::GaveUp;
        }
        self.phase = Phase::Backoff;
        self.next = (now + delay).min(self.give_up_at);
        Lost::Again
    }

    /// The search ends although its time has not passed.
    pub(crate) fn abandon(&mut self) {
        *self = Link::new();
    }

    /// Looks at the time.
    pub(crate) fn due(&mut self, now: Time, times: &LinkTimes) -> Due {
        if now < self.next {
            return Due::Nothing;
        }
        match self.phase {
            Phase::Idle | Phase::Ready(_) | Phase::Closing(_) => {
                self.next = Time::NEVER;
                Due::Nothing
            }
            Phase::Connecting(connection) | Phase::Greeting(connection) => {
                self.phase = Phase::Closing(connection);
                self.next = Time::NEVER;
                Due::Abort(connection)
            }
            Phase::Backoff if self.give_up_at == Time::NEVER => {
                self.give_up_at = now + times.reconnect_timeout;
                Due::Begin
            }
            Phase::Backoff if now < self.give_up_at => Due::Begin,
            Phase::Backoff | Phase::Asking => {
                *self = Link::new();
                Due::GaveUp
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: LinkTimes = LinkTimes {
        reconnect_timeout: Duration::from_nanos(1000),
        handshake_timeout: Duration::from_nanos(100),
        delay_min: Duration::from_nanos(10),
        delay_max: Duration::from_nanos(40),
    };
    const CONNECTION: ConnectionId = ConnectionId { index: 3, generation: 1 };

    #[test]
    fn a_link_comes_up_and_backs_off_when_lost() {
        let mut link = Link::new();
        assert_eq!(link.due(Time(5), &TIMES), Due::Nothing);
        link.wake();
        assert_eq!(link.due(Time(5), &TIMES), Due::Begin);
        link.connecting(CONNECTION, Time(5), &TIMES);
        link.wake();
        assert_eq!(link.phase(), Phase::Connecting(CONNECTION), "waking changes nothing now");
        link.greeting();
        assert_eq!(link.ready(), None);
        link.welcomed();
        assert_eq!((link.ready(), link.next()), (Some(CONNECTION), Time::NEVER));
        let mut now = Time(100);
        for delay in [10, 20, 40, 40] {
            assert_eq!(link.lost(now, &TIMES), Lost::Again);
            assert_eq!(link.next(), now + Duration::from_nanos(delay));
            now = link.next();
            assert_eq!(link.due(now, &TIMES), Due::Begin);
            link.connecting(CONNECTION, now, &TIMES);
        }
        assert_eq!(link.lost(Time(1100), &TIMES), Lost::GaveUp);
        assert_eq!(link.phase(), Phase::Idle);
    }

    #[test]
    fn silence_ends_in_bounded_time() {
        let mut link = Link::new();
        link.wake();
        assert_eq!(link.due(Time(0), &TIMES), Due::Begin);
        link.connecting(CONNECTION, Time(0), &TIMES);
        link.greeting();
        assert_eq!(link.due(Time(99), &TIMES), Due::Nothing);
        assert_eq!(link.due(Time(100), &TIMES), Due::Abort(CONNECTION));
        assert_eq!(link.close(), None, "closing already");
        assert_eq!(link.lost(Time(100), &TIMES), Lost::Again);
        link.asking();
        assert_eq!(link.due(Time(999), &TIMES), Due::Nothing);
        assert_eq!(link.due(Time(1000), &TIMES), Due::GaveUp);
    }
}
