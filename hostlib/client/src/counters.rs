//! What a client counts, and what servers tell of their counters and connections.

use gannet_fabric::Address;
use gannet_proto::{SessionId, TargetId};

/// What a client has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Requests submitted.
    pub requests: u64,
    /// Requests completed.
    pub completions: u64,
    /// Completions with an error.
    pub failures: u64,
    /// Replies of metadata servers.
    pub replies: u64,
    /// Replies to requests that were over, or to former attempts.
    pub late_replies: u64,
    /// Arrival notices of data servers.
    pub arrivals: u64,
    /// Arrival notices that came twice, or for former attempts or requests that were over.
    pub late_arrivals: u64,
    /// Attempts and new requests sent in the place of failed ones.
    pub resends: u64,
    /// Requests whose memory was taken back from data servers.
    pub cuts: u64,
    /// Memory windows opened.
    pub windows: u64,
    /// How often a request found no memory window free.
    pub window_waits: u64,
    /// Connections to servers that ended.
    pub disconnects: u64,
    /// Connections that came up, the first ones included.
    pub connects: u64,
    /// Packets that broke the protocol.
    pub protocol_errors: u64,
    /// Packets sent.
    pub packets: u64,
    /// How often a waiting request was looked at.
    pub wakes: u64,
}

impl ClientCounters {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("requests", self.requests),
            ("completions", self.completions),
            ("failures", self.failures),
            ("replies", self.replies),
            ("late_replies", self.late_replies),
            ("arrivals", self.arrivals),
            ("late_arrivals", self.late_arrivals),
            ("resends", self.resends),
            ("cuts", self.cuts),
            ("windows", self.windows),
            ("window_waits", self.window_waits),
            ("disconnects", self.disconnects),
            ("connects", self.connects),
            ("protocol_errors", self.protocol_errors),
            ("packets", self.packets),
            ("wakes", self.wakes),
        ]
        .into_iter()
    }
}

/// Whose counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A metadata-server reactor, by index.
    Metaserver(u32),
    /// A data server, by number.
    Target(u32),
    /// A role that this build does not know.
    Unknown {
        /// The role's number.
        role: u16,
        /// Which one of them.
        index: u32,
    },
}

/// Counters of one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Whose.
    pub role: Role,
    /// Names and values.
    pub values: Vec<(String, u64)>,
    /// Who is connected to it, and over which fabric: hosts and data servers to a metadata-server
    /// reactor, data sessions of hosts to a data server.
    pub connections: Vec<PeerConnection>,
}

/// A connection that a role told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConnection {
    /// Whose it is.
    pub peer: Peer,
    /// The fabric, as addresses write it: `shm`, `rdma`, `tcp`.
    pub fabric: String,
    /// Where the peer is, as the fabric knows it.
    pub at: String,
}

/// A connection of a client to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConnection {
    /// Which server.
    pub server: Role,
    /// The address that led to it.
    pub address: Address,
}

/// The other end of a [`PeerConnection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host's operations channel: its session.
    Host(SessionId),
    /// A data server's back control channel.
    Target(TargetId),
    /// A host's data session: the host's session.
    DataSession(SessionId),
    /// Something that this version does not know.
    Unknown {
        /// Its kind as the server numbers them.
        kind: u16,
        /// Which one of them.
        id: u64,
    },
}
