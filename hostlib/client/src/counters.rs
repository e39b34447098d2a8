//! What a client counts.

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
