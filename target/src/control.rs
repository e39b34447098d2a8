//! The back channels, without I/O: when to connect, what a welcome says, when to try again.
//!
//! ```text
//!   Waiting --due--> Connecting --connected--> Greeting --welcome--> Live
//!      ^                 |                        |                   |
//!      +-----------------+------------------------+-------------------+   lost, refused, timed out
//! ```
//!
//! Channel `i` leads to the metadata server's reactor `i`. At first only channel 0 is known, at the
//! bootstrap address; its welcome names the others, each with all its addresses, which are tried in
//! the order of [`Route`]. Who answers there must be of the same file system. A pause before a new attempt doubles from failure
//! to failure and starts over with a welcome. A welcome of a term below the highest one seen is
//! refused: it is a metadata server of the past.

use std::time::Duration;

use gannet_fabric::route::Route;
use gannet_fabric::{Address, ConnectionId};
use gannet_proto::addresses::split_reactors;
use gannet_proto::control::TargetWelcome;
use gannet_proto::limits::{GRANTS_MAX, REACTORS_MAX};
use gannet_runtime::time::Time;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::config::Timing;
use crate::outbox::Outbox;

/// Where a channel is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connects again at this time.
    Waiting(Time),
    /// Asked the fabric to connect.
    Connecting(ConnectionId),
    /// Said hello; gives up at this time.
    Greeting(ConnectionId, Time),
    /// Welcomed: grants flow.
    Live(ConnectionId),
    /// The metadata server has no such reactor any more.
    Unused,
}

/// The way to one metadata-server reactor.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Its addresses, and which of them is tried.
    pub(crate) route: Route,
    pub(crate) phase: Phase,
    /// Term of the last welcome.
    pub(crate) term: u64,
    /// Highest number granted on this connection.
    pub(crate) last_number: u64,
    /// Most grants that may be outstanding on this connection.
    pub(crate) grants_max: u32,
    /// The metadata server's numbers of our stores, in our order.
    pub(crate) store_ids: Vec<u32>,
    /// The term whose drain is to be acknowledged.
    pub(crate) draining: Option<u64>,
    pub(crate) outbox: Outbox,
    delay: Duration,
}

/// What a welcome changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Welcomed {
    /// Channels whose grants are cut off: this one, and those of lower terms.
    pub(crate) cut: Vec<u16>,
    /// Connections to end: channels of reactors that are no more, or moved.
    pub(crate) disconnect: Vec<(u16, ConnectionId)>,
}

/// A welcome that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WelcomeError {
    #[error("the welcome is out of bounds or cut short: {0}")]
    Malformed(&'static str),
    #[error("the metadata server's term {term} is below {known}: it is one of the past")]
    StaleTerm { term: u64, known: u64 },
}

/// All back channels of a data server.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) channels: Vec<Channel>,
    timing: Timing,
    stores: usize,
    term_max: u64,
    /// Named by the bootstrap reactor's first welcome that does.
    file_system_uuid: Option<[u8; 16]>,
}

impl Control {
    /// One channel, to the bootstrap address, that is due at once.
    pub(crate) fn new(bootstrap: Address, stores: usize, timing: Timing) -> Control {
        let route = Route::beginning_with(bootstrap, []);
        let channels = vec![Channel::new(route, Time::ZERO, &timing)];
        Control { channels, timing, stores, term_max: 0, file_system_uuid: None }
    }

    /// Whether every known reactor has welcomed this server.
    pub(crate) fn is_welcomed(&self) -> bool {
        let is_settled =
            |channel: &Channel| matches!(channel.phase, Phase::Live(_) | Phase::Unused);
        self.channels.iter().all(is_settled)
    }

    /// A channel that is to be connected now.
    pub(crate) fn due(&self, now: Time) -> Option<u16> {
        let is_due = |channel: &Channel| matches!(channel.phase, Phase::Waiting(at) if at <= now);
        self.channels.iter().position(is_due).map(|index| index as u16)
    }

    /// A connection whose peer took too long to welcome.
    pub(crate) fn overdue(&self, now: Time) -> Option<(u16, ConnectionId)> {
        self.channels.iter().enumerate().find_map(|(index, channel)| match channel.phase {
            Phase::Greeting(connection, until) if until <= now => Some((index as u16, connection)),
            _ => None,
        })
    }

    /// When [`Control::due`] or [`Control::overdue`] next has something.
    pub(crate) fn deadline(&self) -> Time {
        let times = self.channels.iter().filter_map(|channel| match channel.phase {
            Phase::Waiting(at) | Phase::Greeting(_, at) => Some(at),
            Phase::Connecting(_) | Phase::Live(_) | Phase::Unused => None,
        });
        times.min().unwrap_or(Time::NEVER)
    }

    /// The fabric was asked to connect.
    pub(crate) fn connecting(&mut self, index: u16, connection: ConnectionId) {
        self.channels[usize::from(index)].phase = Phase::Connecting(connection);
    }

    /// The connection is usable: hello is to be said.
    pub(crate) fn connected(&mut self, index: u16, connection: ConnectionId, now: Time) {
        let until = now + self.timing.handshake_timeout;
        self.channels[usize::from(index)].phase = Phase::Greeting(connection, until);
    }

    /// The file system that the peer of a channel has to serve, once it is known. The bootstrap
    /// address is the user's word: who answers there says which one it is.
    pub(crate) fn file_system_uuid(&self, index: u16) -> Option<[u8; 16]> {
        let is_bootstrap = index == 0 && self.channels[0].route.is_first();
        if is_bootstrap { None } else { self.file_system_uuid }
    }

    /// An attempt failed or the connection was lost. True if the channel was live. The reactor's next
    /// address is due at once; after the last one, and when a live channel is lost, a pause comes
    /// first, and then the best address again.
    pub(crate) fn lost(&mut self, index: u16, now: Time) -> bool {
        let delay_max = self.timing.reconnect_delay_max;
        let channel = &mut self.channels[usize::from(index)];
        let was_live = matches!(channel.phase, Phase::Live(_));
        if channel.phase != Phase::Unused {
            if was_live {
                channel.route.restart();
            }
            if !was_live && channel.route.advance() {
                channel.phase = Phase::Waiting(now);
            } else {
                channel.phase = Phase::Waiting(now + channel.delay);
                channel.delay = (channel.delay * 2).min(delay_max);
            }
        }
        channel.draining = None;
        channel.outbox.clear();
        was_live
    }

    /// The connection of a channel that is welcomed.
    #[inline]
    pub(crate) fn live(&self, index: u16) -> Option<ConnectionId> {
        match self.channels.get(usize::from(index))?.phase {
            Phase::Live(connection) => Some(connection),
            _ => None,
        }
    }

    /// Highest term seen: grants of lower ones are refused.
    #[inline]
    pub(crate) fn term_max(&self) -> u64 {
        self.term_max
    }

    /// A reactor welcomes the data server.
    pub(crate) fn welcome(
        &mut self,
        index: u16,
        welcome: &TargetWelcome,
        tail: &[u8],
        now: Time,
    ) -> Result<Welcomed, WelcomeError> {
        let malformed = |what| Err(WelcomeError::Malformed(what));
        let channel = &self.channels[usize::from(index)];
        let Phase::Greeting(connection, _) = channel.phase else {
            return malformed("nobody asked for it");
        };
        let reactors = usize::from(welcome.reactors.get());
        let grants_max = welcome.grants_max.get();
        let term = welcome.term.get();
        if welcome.version.get() != gannet_proto::VERSION {
            return malformed("version");
        }
        if reactors == 0 || reactors > REACTORS_MAX || welcome.reactor.get() != index {
            return malformed("reactors");
        }
        if grants_max == 0 || grants_max as usize > GRANTS_MAX {
            return malformed("grants_max");
        }
        if term < self.term_max {
            return Err(WelcomeError::StaleTerm { term, known: self.term_max });
        }
        if usize::from(welcome.stores.get()) != self.stores {
            return malformed("stores");
        }
        let Ok((ids, tail)) = <[U32]>::ref_from_prefix_with_elems(tail, self.stores) else {
            return malformed("store ids");
        };
        let store_ids = ids.iter().map(|id| id.get()).collect();
        let mut disconnect = Vec::new();
        let (routes, uuid) = routes(welcome, tail)?;
        let expected = self.file_system_uuid(index);
        if expected.is_some() && uuid.is_some() && expected != uuid {
            return malformed("another file system's metadata server");
        }
        self.file_system_uuid = uuid.or(self.file_system_uuid);
        if index == 0 {
            self.lead_to(routes, now, &mut disconnect);
        }
        self.term_max = term;
        let channel = &mut self.channels[usize::from(index)];
        channel.phase = Phase::Live(connection);
        channel.term = term;
        channel.last_number = 0;
        channel.grants_max = grants_max;
        channel.store_ids = store_ids;
        channel.draining = None;
        channel.delay = self.timing.reconnect_delay_min;
        channel.outbox.begin(grants_max);
        let numbered = (0..).zip(&self.channels);
        let cut = numbered
            .filter(|(other, channel)| *other == index || channel.term < term)
            .map(|(other, _)| other)
            .collect();
        Ok(Welcomed { cut, disconnect })
    }

    /// Most grants that can be outstanding on all channels.
    pub(crate) fn grants_max(&self) -> u32 {
        self.channels.iter().map(|channel| channel.grants_max).sum()
    }

    /// Takes the reactors' addresses from reactor 0, which knows them. Its own bootstrap address is
    /// the user's choice and stays the first one that is tried.
    fn lead_to(
        &mut self,
        routes: Vec<Route>,
        now: Time,
        disconnect: &mut Vec<(u16, ConnectionId)>,
    ) {
        let reactors = routes.len();
        for (index, route) in routes.into_iter().enumerate() {
            match self.channels.get_mut(index) {
                Some(channel) if index == 0 => {
                    let first = channel.route.addresses()[0].clone();
                    channel.route = Route::beginning_with(first, route.addresses().iter().cloned());
                }
                None => self.channels.push(Channel::new(route, now, &self.timing)),
                Some(channel)
                    if channel.route.is_same(&route) && channel.phase != Phase::Unused => {}
                Some(channel) => {
                    let ended = channel.connection();
                    disconnect.extend(ended.map(|connection| (index as u16, connection)));
                    channel.route = route;
                    channel.phase = Phase::Waiting(now);
                    channel.outbox.clear();
                }
            }
        }
        for (index, channel) in self.channels.iter_mut().enumerate().skip(reactors) {
            let ended = channel.connection();
            disconnect.extend(ended.map(|connection| (index as u16, connection)));
            channel.phase = Phase::Unused;
            channel.outbox.clear();
        }
    }
}

impl Channel {
    fn new(route: Route, due: Time, timing: &Timing) -> Channel {
        Channel {
            route,
            phase: Phase::Waiting(due),
            term: 0,
            last_number: 0,
            grants_max: 0,
            store_ids: Vec::new(),
            draining: None,
            outbox: Outbox::new(),
            delay: timing.reconnect_delay_min,
        }
    }

    /// The connection of the channel, whatever state it is in.
    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        match self.phase {
            Phase::Connecting(connection)
            | Phase::Greeting(connection, _)
            | Phase::Live(connection) => Some(connection),
            Phase::Waiting(_) | Phase::Unused => None,
        }
    }
}

/// The routes to all reactors at the end of a welcome, and the file system's name if it is there.
/// Addresses of fabrics that this build does not know are left out.
fn routes(
    welcome: &TargetWelcome,
    tail: &[u8],
) -> Result<(Vec<Route>, Option<[u8; 16]>), WelcomeError> {
    let malformed = |_| WelcomeError::Malformed("reactor addresses");
    let mut lists: Vec<Vec<Address>> = vec![Vec::new(); welcome.reactors.get().into()];
    let rest = split_reactors::<TargetWelcome>(
        tail,
        welcome.reactors.get(),
        welcome.further_addresses.get(),
        |reactor, text| lists[usize::from(reactor)].extend(text.parse::<Address>().ok()),
    )
    .map_err(malformed)?;
    if lists.iter().any(Vec::is_empty) {
        return Err(WelcomeError::Malformed("reactor addresses"));
    }
    let uuid = match welcome.names_file_system.get() {
        0 => None,
        _ => {
            let uuid = rest.first_chunk::<16>();
            Some(*uuid.ok_or(WelcomeError::Malformed("file system"))?)
        }
    };
    Ok((lists.into_iter().map(Route::new).collect(), uuid))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
