//! The network's whole state, its end points and its timers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use gannet_fabric::{
    ConnectionId, DisconnectReason, Event, Events, Key, PeerIdentity, RemoteSlice,
};
use gannet_runtime::memory::Memory;
use gannet_runtime::time::Time;

use super::NetworkStats;
use super::link::{End, Lane, Link, Notice, Op, Phase, Port, RegionState};
use super::options::{Model, NetworkOptions};
use super::window::WindowStep;
use crate::agenda::Agenda;
use crate::random::Random;
use crate::trace::Trace;

/// What the network does by itself at some time.
pub(super) enum Timer {
    /// A connection attempt reaches the listener, if there is one.
    Arrive(u64, PathBuf),
    /// The first thing on a lane may take effect.
    Lane(Port),
    /// The first completion of a lane may be back.
    Ack(Port),
    /// A credit is back: at which end, of which class.
    Credit(Port, usize),
    /// Something reaches an end point.
    Deliver(Notice),
    /// An end that disconnects waits no longer.
    Linger(Port),
    /// A partition has lasted long enough to break a connection.
    HeldTooLong(Port),
    /// A write of an end that gave up lands at `owner`.
    Ghost { owner: Port, remote: RemoteSlice, bytes: Memory },
    /// A device opens or closes a window.
    Window(Port, u32, WindowStep),
}

/// A position in an end point's table of connections.
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) port: Option<Port>,
}

/// One fabric value.
pub(super) struct EndpointState {
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) stalled: bool,
    pub(super) inbox: VecDeque<Notice>,
    pub(super) table: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) next_key: u32,
    pub(super) free_keys: Vec<u32>,
    /// Registrations of peers that wait until nothing here uses them (`Model::Shm`).
    pub(super) leaving: Vec<(Port, u32)>,
}

impl EndpointState {
    fn new(name: &str, first_key: u32) -> EndpointState {
        EndpointState {
            name: name.to_owned(),
            alive: true,
            stalled: false,
            inbox: VecDeque::new(),
            table: Vec::new(),
            free: Vec::new(),
            next_key: first_key,
            free_keys: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// Takes a position in the table.
    pub(super) fn take_slot(&mut self, port: Port, limit: usize) -> Option<ConnectionId> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.table.len() < limit => {
                self.table.push(Slot { generation: 0, port: None });
                self.table.len() as u32 - 1
            }
            None => return None,
        };
        let slot = &mut self.table[index as usize];
        slot.port = Some(port);
        Some(ConnectionId { index, generation: slot.generation })
    }

    pub(super) fn port(&self, connection: ConnectionId) -> Option<Port> {
        let slot = self.table.get(connection.index as usize)?;
        slot.port.filter(|_| slot.generation == connection.generation)
    }

    pub(super) fn release_slot(&mut self, connection: ConnectionId) {
        let slot = &mut self.table[connection.index as usize];
        slot.generation += 1;
        slot.port = None;
        self.free.push(connection.index);
    }

    /// The ports of all connections.
    pub(super) fn ports(&self) -> Vec<Port> {
        self.table.iter().filter_map(|slot| slot.port).collect()
    }
}

/// What is recorded of the network's doings.
#[derive(Hash, Debug)]
pub(super) enum Step<'a> {
    Fault { what: &'a str, endpoint: usize, of: u64 },
    Arrive { link: u64, accepted: bool },
    Message { to: Port, len_bytes: usize, digest: u64 },
    Place { by: Port, key: u32, len_bytes: usize, left: usize },
    Executed { by: Port, token: u64, status: u8 },
    Ghost { at: Port, key: u32, landed: bool },
    Broken { link: u64, kept: [usize; 2] },
    Polled { endpoint: usize, events: usize },
    Ended { port: Port, reason: u8 },
}

pub(super) struct State {
    pub(super) options: NetworkOptions,
    pub(super) now: Time,
    pub(super) random: Random,
    pub(super) trace: Trace,
    pub(super) agenda: Agenda<Timer>,
    pub(super) endpoints: Vec<EndpointState>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) links_made: u64,
    pub(super) listeners: BTreeMap<PathBuf, usize>,
    /// Directions that let nothing through: from, to.
    pub(super) blocked: BTreeSet<(usize, usize)>,
    pub(super) stats: NetworkStats,
}

impl State {
    pub(super) fn new(options: NetworkOptions, random: Random, trace: Trace) -> State {
        State {
            options,
            now: Time::ZERO,
            random,
            trace,
            agenda: Agenda::default(),
            endpoints: Vec::new(),
            links: BTreeMap::new(),
            links_made: 0,
            listeners: BTreeMap::new(),
            blocked: BTreeSet::new(),
            stats: NetworkStats::default(),
        }
    }

    pub(super) fn add_endpoint(&mut self, name: &str) -> usize {
        let first_key = self.random.between(1, 1 << 20) as u32;
        self.endpoints.push(EndpointState::new(name, first_key));
        self.endpoints.len() - 1
    }

    pub(super) fn is_shm(&self) -> bool {
        self.options.model == Model::Shm
    }

    pub(super) fn record(&self, step: Step<'_>) {
        self.trace.record(self.now, step);
    }

    /// A time one hop from now.
    pub(super) fn after_hop(&mut self) -> Time {
        self.now + self.random.delay(self.options.delay)
    }

    pub(super) fn end(&mut self, port: Port) -> Option<&mut End> {
        self.links.get_mut(&port.link).map(|link| &mut link.ends[port.side])
    }

    pub(super) fn phase(&self, port: Port) -> Phase {
        self.links.get(&port.link).map_or(Phase::Ended, |link| link.ends[port.side].phase)
    }

    pub(super) fn lane(&mut self, port: Port) -> Option<&mut Lane> {
        self.links.get_mut(&port.link).map(|link| &mut link.lanes[port.side])
    }

    pub(super) fn endpoint_of(&self, port: Port) -> Option<usize> {
        self.links.get(&port.link).and_then(|link| link.ends[port.side].endpoint)
    }

    /// Whether a partition holds what leaves `port`.
    pub(super) fn is_held(&self, port: Port) -> bool {
        match (self.endpoint_of(port), self.endpoint_of(port.other())) {
            (Some(from), Some(to)) => self.blocked.contains(&(from, to)),
            _ => false,
        }
    }

    pub(super) fn advance(&mut self, now: Time) {
        loop {
            let next = self.agenda.next();
            if next > now {
                break;
            }
            self.now = self.now.max(next);
            while let Some(timer) = self.agenda.take_due(self.now) {
                self.fire(timer);
            }
        }
        self.now = self.now.max(now);
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Arrive(link, path) => self.arrive(link, &path),
            Timer::Lane(port) => {
                let now = self.now;
                // A timer that was overtaken by an earlier one finds another time noted.
                if let Some(lane) = self.lane(port)
                    && lane.timer == now
                {
                    lane.timer = Time::NEVER;
                    self.run_lane(port);
                }
            }
            Timer::Ack(port) => self.run_acks(port),
            Timer::Credit(port, class) => {
                let held = self.is_held(port.other());
                if held {
                    self.note_held(port.other());
                }
                if let Some(end) = self.end(port) {
                    if held {
                        end.credits_held[class] += 1;
                    } else {
                        end.messages_out[class] -= 1;
                    }
                }
            }
            Timer::Deliver(notice) => self.deliver(notice),
            Timer::Linger(port) => self.linger_is_over(port),
            Timer::HeldTooLong(port) => self.held_too_long(port),
            Timer::Ghost { owner, remote, bytes } => self.land_ghost(owner, remote, &bytes),
            Timer::Window(port, key, step) => self.window_step(port, key, step),
        }
    }

    /// Puts a notice into the inbox of its end point, if that still has the connection.
    pub(super) fn deliver(&mut self, notice: Notice) {
        let port = notice.port();
        if self.phase(port) != Phase::Ended
            && let Some(endpoint) = self.endpoint_of(port)
            && self.endpoints[endpoint].alive
        {
            self.endpoints[endpoint].inbox.push_back(notice);
        }
    }

    fn arrive(&mut self, id: u64, path: &PathBuf) {
        let connector = Port { link: id, side: 0 };
        if self.phase(connector) != Phase::Connecting {
            return;
        }
        let listener = self.listeners.get(path).copied();
        let from = self.endpoint_of(connector);
        if let (Some(from), Some(to)) = (from, listener)
            && (self.blocked.contains(&(from, to)) || self.blocked.contains(&(to, from)))
        {
            let at = self.now + self.options.connect_timeout;
            self.come_to_end(connector, DisconnectReason::Unreachable, at);
            return;
        }
        let acceptor = connector.other();
        let limit = self.options.connections_max;
        let slot = listener.and_then(|to| {
            self.endpoints[to].take_slot(acceptor, limit).map(|connection| (to, connection))
        });
        self.record(Step::Arrive { link: id, accepted: slot.is_some() });
        match slot {
            Some((to, connection)) => {
                if let Some(end) = self.end(acceptor) {
                    end.endpoint = Some(to);
                    end.connection = connection;
                }
                self.deliver(Notice::Accepted(acceptor));
            }
            None => {
                let at = self.after_hop();
                self.come_to_end(connector, DisconnectReason::Unreachable, at);
            }
        }
    }

    pub(super) fn poll(&mut self, endpoint: usize, events: &mut Events) {
        if !self.endpoints[endpoint].alive {
            return;
        }
        let limit = 1 + self.random.index(self.options.events_per_poll_max);
        let before = events.len();
        while events.len() - before < limit {
            let Some(notice) = self.endpoints[endpoint].inbox.pop_front() else { break };
            self.hand_over(endpoint, notice, events);
        }
        self.answer_deregistrations(endpoint);
        if events.len() > before {
            self.record(Step::Polled { endpoint, events: events.len() - before });
        }
    }

    /// Turns a notice into what the user sees of it.
    fn hand_over(&mut self, endpoint: usize, notice: Notice, events: &mut Events) {
        let port = notice.port();
        let phase = self.phase(port);
        let stops_listening = phase == Phase::Closing && self.random.coin();
        let Some(end) = self.end(port) else { return };
        let connection = end.connection;
        match (notice, phase) {
            (_, Phase::Ended) => {}
            (Notice::Accepted(_), Phase::Connecting) => {
                end.phase = Phase::Open;
                let peer = self.identity_of_peer(port);
                events.push(Event::Accepted { connection, peer });
                let at = self.after_hop();
                self.put(port, Op::Welcome, at);
            }
            (Notice::Connected(_), Phase::Connecting) => {
                end.phase = Phase::Open;
                events.push(Event::Connected { connection });
            }
            (Notice::Message(_, bytes), Phase::Open | Phase::Closing) => {
                // An end that disconnects may or may not see what arrives meanwhile.
                end.is_deaf |= stops_listening;
                if end.is_deaf {
                    return;
                }
                events.push_message(connection, bytes.len(), |into| into.copy_from_slice(&bytes));
                let class = usize::from(bytes.len() > gannet_fabric::SMALL_MESSAGE_BYTES);
                let at = self.after_hop();
                self.agenda.add(at, Timer::Credit(port.other(), class));
            }
            (Notice::Transferred(_, token, memory, status), _) => {
                end.transfers_out -= 1;
                events.push(Event::Transferred { connection, token, memory, status });
            }
            (Notice::PeerRegisters(_, key), _) => {
                let at = self.after_hop();
                if let Some(region) =
                    self.end(port.other()).and_then(|end| end.regions.get_mut(&key))
                    && region.state == RegionState::Announced
                {
                    region.state = RegionState::Usable;
                    self.agenda.add(at, Timer::Deliver(Notice::Registered(port.other(), key)));
                }
            }
            // A registration that was taken back meanwhile is not announced any more.
            (Notice::Registered(_, key), _) if end.regions.contains_key(&key) => {
                events.push(Event::Registered { connection, key: Key(key) });
            }
            (Notice::PeerDeregisters(_, key), _) => {
                if let Some(region) =
                    self.end(port.other()).and_then(|end| end.regions.get_mut(&key))
                {
                    region.state = RegionState::Leaving;
                    self.endpoints[endpoint].leaving.push((port, key));
                }
            }
            (Notice::Deregistered(_, key), _) => {
                end.regions.remove(&key);
                // Where nothing else keeps a late peer out, its key has to go on failing.
                if !self.is_shm() {
                    self.endpoints[endpoint].free_keys.push(key);
                }
                events.push(Event::Deregistered { connection, key: Key(key) });
            }
            (Notice::Ending(_, reason), _) => self.finish_end(endpoint, port, reason, events),
            // An attempt that its user gave up.
            (
                Notice::Accepted(_)
                | Notice::Connected(_)
                | Notice::Message(..)
                | Notice::Registered(..),
                _,
            ) => {}
        }
    }

    /// Tells owners that their memory is free, once neither a transfer nor a view of this end
    /// point uses it.
    fn answer_deregistrations(&mut self, endpoint: usize) {
        let mut leaving = std::mem::take(&mut self.endpoints[endpoint].leaving);
        leaving.retain(|(port, key)| {
            let owner = port.other();
            let Some(region) = self.end(owner).and_then(|end| end.regions.get(key)) else {
                return false;
            };
            if region.pins > 0 || Arc::strong_count(&region.view) > 1 {
                return true;
            }
            let at = self.after_hop();
            self.agenda.add(at, Timer::Deliver(Notice::Deregistered(owner, *key)));
            false
        });
        self.endpoints[endpoint].leaving = leaving;
    }

    pub(super) fn identity_of_peer(&self, port: Port) -> PeerIdentity {
        let peer = self.endpoint_of(port.other()).unwrap_or(0);
        match self.options.model {
            Model::Shm => PeerIdentity::Local { pid: 1000 + peer as u32, uid: 0, gid: 0 },
            Model::Verbs => PeerIdentity::Network(self.endpoints[peer].name.clone()),
        }
    }
}
