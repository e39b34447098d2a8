//! A fabric that knows the connections its user made by their addresses, so that a test can break
//! one of them under the user.

use gannet_fabric::verbs::{VerbsFabric, VerbsOptions};
use gannet_fabric::{Address, ConnectionId, Fabric, FabricError};

/// The verbs fabric, and what was connected to what. Belongs to one thread.
#[derive(Debug)]
pub struct Tracked {
    inner: VerbsFabric,
    /// Connections that were asked for, oldest first. Those that ended are among them.
    made: Vec<(Address, ConnectionId)>,
}

impl Tracked {
    /// A fabric with the default settings for `address`.
    ///
    /// # Panics
    /// If there is no device, or `address` is not of RDMA.
    #[must_use]
    pub fn new(address: &Address) -> Tracked {
        assert!(matches!(address, Address::Rdma { .. }), "{address} is not of RDMA");
        let inner = VerbsFabric::new(VerbsOptions::default()).expect("a fabric");
        Tracked { inner, made: Vec::new() }
    }

    /// Puts the queue pair of the latest connection to `to` into the error state.
    ///
    /// # Panics
    /// If there was never one, or it has ended: the test is about one that is up.
    pub fn break_connection(&mut self, to: &Address) {
        let made = self.made.iter().rfind(|(address, _)| address == to);
        let (_, connection) = *made.unwrap_or_else(|| panic!("no connection to {to} was made"));
        assert!(self.inner.peer(connection).is_some(), "the connection to {to} has ended");
        self.inner.break_queue_pair(connection);
    }

    /// How often a connection to `to` was asked for.
    #[must_use]
    pub fn connections_to(&self, to: &Address) -> usize {
        self.made.iter().filter(|(address, _)| address == to).count()
    }
}

impl Fabric for Tracked {
    gannet_conformance::pass_on! {
        capabilities listen disconnect peer prepare register open_window deregister send write
        read map flush poll sleeping
    }

    fn connect(&mut self, to: &Address) -> Result<ConnectionId, FabricError> {
        let connection = self.inner.connect(to)?;
        self.made.push((to.clone(), connection));
        Ok(connection)
    }
}
