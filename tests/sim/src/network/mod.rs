//! A network in memory: the fabric trait with every liberty that its contract leaves.
//!
//! One [`SimNetwork`] connects all roles of a simulation; each role has a [`SimFabric`]. What is
//! flushed takes effect at the other end after a delay of its own, in order on one connection and
//! in any order across connections. One-sided transfers touch the registered memory at that time,
//! perhaps in pieces, through a second mapping of its pages. Where providers differ, [`Model`]
//! chooses. Tests break, partition, stall and kill through [`SimNetwork`] and [`Endpoint`]; the
//! knobs of [`NetworkOptions`] do so by chance.
//!
//! Nothing here is lost silently: each posted transfer completes at a living end exactly once, and
//! nothing comes after the notice of an end. A death of a role ([`Endpoint::kill`], or dropping
//! its fabric) leaves its memory and its connections to the network, which lets the peers learn
//! of it late.
//!
//! A partition holds messages, transfers, completions and credits; the notices by which
//! registrations are made and taken back pass, since they only exist between processes of one
//! machine.

mod ending;
mod fabric;
mod lane;
mod link;
mod options;
mod post;
mod spell;
mod state;
#[cfg(test)]
mod tests;
mod window;

use std::cell::RefCell;
use std::rc::Rc;

use gannet_runtime::time::Time;

pub use fabric::SimFabric;
pub use options::{Model, NetworkOptions};

use crate::agenda::Device;
use crate::random::Random;
use crate::trace::Trace;
use link::Port;
use state::{State, Step};

/// What a network has done; for tests that demand to have seen something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Memory windows that were opened.
    pub windows: u64,
    /// Messages that reached the other end.
    pub messages: u64,
    /// Transfers that took effect.
    pub transfers: u64,
    /// Times that a transfer placed only a part of its bytes.
    pub split_transfers: u64,
    /// Transfers refused for their key, range or right.
    pub refused: u64,
    /// Connections that broke.
    pub breaks: u64,
    /// Pieces placed in memory whose owner had already disconnected.
    pub transfers_after_disconnect: u64,
    /// Transfers of which a part was placed although they completed as lost.
    pub cut_transfers: u64,
    /// Writes that landed after their initiator had been told of the loss, or was dead.
    pub ghost_writes: u64,
}

/// The network of a simulation; clones are handles of the same one.
#[derive(Clone)]
pub struct SimNetwork {
    state: Rc<RefCell<State>>,
}

/// A handle by which tests do things to the fabric value of a role.
#[derive(Clone)]
pub struct Endpoint {
    state: Rc<RefCell<State>>,
    index: usize,
}

impl SimNetwork {
    /// A network without end points, whose randomness is a stream of `random`.
    #[must_use]
    pub fn new(options: NetworkOptions, random: &Random, trace: &Trace) -> SimNetwork {
        let state = State::new(options, random.stream("network"), trace.clone());
        SimNetwork { state: Rc::new(RefCell::new(state)) }
    }

    /// A fabric value for a role. A restarted role gets a new one.
    #[must_use]
    pub fn fabric(&self, name: &str) -> SimFabric {
        let index = self.state.borrow_mut().add_endpoint(name);
        SimFabric::new(Endpoint { state: Rc::clone(&self.state), index })
    }

    /// Turns knobs. The model must stay what it is.
    ///
    /// # Panics
    /// If the model changes.
    pub fn tune(&self, change: impl FnOnce(&mut NetworkOptions)) {
        let mut state = self.state.borrow_mut();
        let model = state.options.model;
        change(&mut state.options);
        assert_eq!(model, state.options.model, "a network keeps its model");
    }

    /// Lets nothing through from one end point to another until [`SimNetwork::heal`].
    pub fn partition(&self, from: &Endpoint, to: &Endpoint) {
        let mut state = self.state.borrow_mut();
        state.blocked.insert((from.index, to.index));
        state.record(Step::Fault { what: "partition", endpoint: from.index, of: to.index as u64 });
    }

    /// Ends a partition of one direction; what was held goes on.
    pub fn heal(&self, from: &Endpoint, to: &Endpoint) {
        let mut state = self.state.borrow_mut();
        if state.blocked.remove(&(from.index, to.index)) {
            state.record(Step::Fault { what: "heal", endpoint: from.index, of: to.index as u64 });
            for port in state.ports_between(from.index, to.index) {
                state.release(port);
            }
        }
    }

    /// Ends all partitions.
    pub fn heal_all(&self) {
        let blocked: Vec<(usize, usize)> = self.state.borrow().blocked.iter().copied().collect();
        for (from, to) in blocked {
            self.heal(&self.handle(from), &self.handle(to));
        }
    }

    /// Breaks all connections between two end points, in whatever state they are. Returns how many
    /// there were.
    pub fn break_between(&self, one: &Endpoint, other: &Endpoint) -> usize {
        let mut state = self.state.borrow_mut();
        let ports = state.ports_between(one.index, other.index);
        let step = Step::Fault { what: "break", endpoint: one.index, of: other.index as u64 };
        state.record(step);
        for port in &ports {
            state.break_link(port.link);
        }
        ports.len()
    }

    /// What the network has done so far.
    #[must_use]
    pub fn stats(&self) -> NetworkStats {
        self.state.borrow().stats
    }

    fn handle(&self, index: usize) -> Endpoint {
        Endpoint { state: Rc::clone(&self.state), index }
    }
}

impl Device for SimNetwork {
    fn next_event(&self) -> Time {
        self.state.borrow().agenda.next()
    }

    fn advance(&self, now: Time) {
        self.state.borrow_mut().advance(now);
    }
}

impl Endpoint {
    /// Kills the process behind the fabric value: everything posted takes effect up to any point,
    /// peers learn of the loss later, and the fabric value does nothing any more.
    pub fn kill(&self) {
        self.state.borrow_mut().kill(self.index);
    }

    /// Whether the process behind the fabric value lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state.borrow().endpoints[self.index].alive
    }

    /// The process stands still. On shm its transfers do too; otherwise devices go on without it.
    /// That its role is not polled meanwhile is the scheduler's part.
    pub fn stall(&self) {
        let mut state = self.state.borrow_mut();
        state.endpoints[self.index].stalled = true;
        state.record(Step::Fault { what: "stall", endpoint: self.index, of: 0 });
    }

    /// The process runs again.
    pub fn resume(&self) {
        let mut state = self.state.borrow_mut();
        if std::mem::take(&mut state.endpoints[self.index].stalled) {
            state.record(Step::Fault { what: "resume", endpoint: self.index, of: 0 });
            for port in state.endpoints[self.index].ports() {
                let at = state.after_hop();
                state.look_at_lane(port, at);
            }
        }
    }

    /// Whether something waits to be polled.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.state.borrow().endpoints[self.index].inbox.is_empty()
    }
}

impl State {
    /// The ends at `from` of all connections that lead to `to`.
    fn ports_between(&self, from: usize, to: usize) -> Vec<Port> {
        let mut ports = self.endpoints[from].ports();
        ports.retain(|port| self.endpoint_of(port.other()) == Some(to));
        ports
    }
}
