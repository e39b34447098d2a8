//! A cluster on a network of its own: two hosts, a metadata server, three data servers, each in a
//! namespace of its own.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use gannet_client::Protection;
use gannet_fabric::any::FabricOptions;
use gannet_fabric::tcp::TcpOptions;
use gannet_integration::cluster::{ClusterOptions, Network, Place};
use gannet_integration::load::{LoadOptions, Outages};
use gannet_integration::process::gannet;

use crate::lab::{Family, Lab};
use crate::space::Space;

/// Hosts of a site.
pub const HOSTS: usize = 2;
/// Data servers of a site.
pub const TARGETS: usize = 3;
/// Where servers listen.
const PORT: u16 = 7470;

/// Who is on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A host, by number.
    Host(usize),
    /// The metadata server.
    Metaserver,
    /// A data server, by number.
    Target(usize),
}

impl Party {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Party> {
        let hosts = (0..HOSTS).map(Party::Host);
        hosts.chain([Party::Metaserver]).chain((0..TARGETS).map(Party::Target)).collect()
    }

    /// The party's number in the [`Lab`].
    #[must_use]
    pub fn number(self) -> usize {
        match self {
            Party::Host(host) => host,
            Party::Metaserver => HOSTS,
            Party::Target(target) => HOSTS + 1 + target,
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Host(host) => write!(f, "host-{host}"),
            Party::Metaserver => f.write_str("metaserver"),
            Party::Target(target) => write!(f, "target-{target}"),
        }
    }
}

/// Time-outs of a site, short ones, so that an outage that is longer than all of them is short too.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// After which a peer that acknowledges nothing is lost; one to which nothing is sent, after
    /// about twice that.
    pub peer: Duration,
    /// How long a session outlives its connection.
    pub lease: Duration,
    /// How long a connection may take until it works.
    pub handshake: Duration,
    /// How long a request waits for a data server that is away.
    pub target_wait: Duration,
    /// How long a host's request may take before it is cancelled.
    pub request: Duration,
    /// How long that may take before the host takes its memory back by force.
    pub cancel: Duration,
}

/// As short as the bounds of the configuration allow, or nearly.
pub const SHORT: Timeouts = Timeouts {
    peer: Duration::from_secs(2),
    lease: Duration::from_secs(2),
    handshake: Duration::from_secs(2),
    target_wait: Duration::from_secs(2),
    request: Duration::from_millis(2500),
    cancel: Duration::from_millis(500),
};

impl Timeouts {
    /// What outlasts all of them.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let silent = self.peer * 2;
        let request = self.request + self.cancel;
        silent.max(self.lease).max(self.handshake).max(self.target_wait).max(request)
    }
}

/// The network that a cluster is on.
#[derive(Debug)]
pub struct Site {
    lab: Lab,
}

impl Site {
    /// Makes the network.
    ///
    /// # Panics
    /// If the machine refuses.
    #[must_use]
    pub fn new(family: Family) -> Site {
        let names: Vec<String> = Party::all().iter().map(Party::to_string).collect();
        Site { lab: Lab::new(&names, family) }
    }

    /// The network.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A party's namespace.
    #[must_use]
    pub fn space(&self, party: Party) -> &Space {
        self.lab.party(party.number())
    }

    fn place(&self, party: Party) -> Place {
        let address = self.lab.address(party.number());
        Place { address, port: PORT, prefix: self.space(party).prefix() }
    }

    /// A cluster with its servers in their places; commands run on host 0.
    #[must_use]
    pub fn cluster(&self) -> ClusterOptions {
        ClusterOptions {
            targets: TARGETS,
            network: Network::Tcp {
                metaserver: self.place(Party::Metaserver),
                targets: (0..TARGETS).map(|target| self.place(Party::Target(target))).collect(),
                host: self.place(Party::Host(0)),
                trusted_hosts: vec![self.lab.network().to_owned()],
            },
            ..ClusterOptions::default()
        }
    }

    /// As [`Site::cluster`], with these time-outs.
    #[must_use]
    pub fn cluster_with(&self, timeouts: &Timeouts) -> ClusterOptions {
        let Timeouts { peer, handshake, target_wait, .. } = timeouts;
        let handshake = format!("handshake_timeout = \"{}ms\"\n", handshake.as_millis());
        let target_wait = format!("target_wait = \"{}ms\"\n", target_wait.as_millis());
        let tcp = format!("[tcp]\npeer_timeout = \"{}ms\"\n", peer.as_millis());
        ClusterOptions {
            lease: timeouts.lease,
            metaserver_settings: format!("{handshake}{target_wait}{tcp}"),
            target_settings: format!("{handshake}{tcp}"),
            ..self.cluster()
        }
    }

    /// The `gannet` command with these arguments, to be run by a host on the cluster.
    #[must_use]
    pub fn command(&self, host: usize, arguments: &[&str]) -> Command {
        let server = self.place(Party::Metaserver).listens();
        let mut command = Command::new(gannet());
        command.env("GANNET_SERVER", server.to_string()).args(arguments);
        self.place(Party::Host(host)).command(command)
    }
}

/// Directories of the loads of the hosts.
const DIRECTORIES: [&str; HOSTS] = ["load-0", "load-1"];

/// A host's load, where nothing is to be noticed but the time that it takes. The hosts guard their
/// memory in different ways.
#[must_use]
pub fn load(host: usize) -> LoadOptions {
    LoadOptions {
        directory: DIRECTORIES[host],
        protection: if host == 0 { Protection::Region } else { Protection::Window },
        depth: 32,
        seed: 1 + host as u64,
        ..LoadOptions::default()
    }
}

/// A host's load, where outages are longer than these time-outs.
#[must_use]
pub fn load_with(host: usize, timeouts: &Timeouts) -> LoadOptions {
    let tcp = TcpOptions { peer_timeout: timeouts.peer, ..TcpOptions::default() };
    LoadOptions {
        names: 512,
        fabric: FabricOptions { tcp, ..FabricOptions::default() },
        outages: Some(Outages {
            request_timeout: timeouts.request,
            cancel_timeout: timeouts.cancel,
            handshake_timeout: timeouts.handshake,
        }),
        ..load(host)
    }
}
