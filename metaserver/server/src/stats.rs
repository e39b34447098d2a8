//! Counters, and how a host asks for them.

use gannet_fabric::{ConnectionId, Fabric};
use gannet_meta_core::{Core, SessionIndex};
use gannet_proto::control::TargetStatsReply;
use gannet_proto::operations::{RequestHeader, StatsReply, connection_kind};
use gannet_proto::stats::{STATS_TAIL_BYTES_MAX, StatsTail};
use gannet_proto::{Status, TargetId};
use gannet_runtime::time::Time;
use zerocopy::little_endian::{U16, U32};

use crate::shell::Shell;

/// How long data servers may take to answer a question for their counters.
pub(crate) const STATS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// What the shell counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShellCounters {
    pub(crate) messages_received: u64,
    pub(crate) message_bytes_received: u64,
    pub(crate) outputs_held: u64,
    pub(crate) protocol_violations: u64,
    /// Connections whose peers did not say in time who they are, or had to make room for others.
    pub(crate) connections_refused: u64,
    pub(crate) hosts_connected: u64,
    pub(crate) targets_connected: u64,
    /// Bytes that one-sided transfers moved through this server's memory: it registers none, so
    /// that this is anything but 0 would be a defect.
    pub(crate) payload_bytes: u64,
}

/// A host's question for counters that still waits for data servers.
#[derive(Debug)]
pub(crate) struct PendingStats {
    pub(crate) host: SessionIndex,
    pub(crate) header: RequestHeader,
    pub(crate) tag: u64,
    pub(crate) waiting: Vec<TargetId>,
    pub(crate) deadline: Time,
}

/// Further counters of the reactor, by name: what its thread is busy with.
pub type ReactorCounters = Box<dyn Fn(&mut dyn FnMut(&str, u64))>;

/// Whom to answer.
pub(crate) struct Asked {
    pub(crate) connection: ConnectionId,
    pub(crate) header: RequestHeader,
    pub(crate) reactor: u16,
}

impl Asked {
    fn reply(&self, tail: &StatsTail, last: bool) -> StatsReply {
        StatsReply {
            header: self.header.reply(Status::OK),
            role: U16::ZERO,
            count: U16::new(tail.counters()),
            index: U32::new(self.reactor.into()),
            last: U16::new(last.into()),
            connections: U16::new(tail.connections()),
            reserved: [0; 4],
        }
    }
}

impl Shell {
    /// Answers a host with this reactor's counters, and with the fabric of every host's and data
    /// server's connection. Counters that do not fit are left out: there are far fewer.
    pub(crate) fn reply_stats<F: Fabric>(
        &mut self,
        core: &Core,
        reactor_counters: Option<&ReactorCounters>,
        fabric: &F,
        asked: &Asked,
    ) {
        let mut tail = StatsTail::new();
        let mut add = |name: &str, value: u64| {
            let _fits = tail.push_counter(name, value);
        };
        let (log_frames, log_bytes) = self.log.written();
        let shell = &self.counters;
        for (name, value) in [
            ("payload_bytes", shell.payload_bytes),
            ("messages_received", shell.messages_received),
            ("message_bytes_received", shell.message_bytes_received),
            ("outputs_held", shell.outputs_held),
            ("protocol_violations", shell.protocol_violations),
            ("hosts_connected", shell.hosts_connected),
            ("targets_connected", shell.targets_connected),
            ("connections_refused", shell.connections_refused),
            ("log_frames", log_frames),
            ("log_bytes", log_bytes),
        ] {
            add(name, value);
        }
        for (name, value) in core.counters().iter() {
            add(name, value);
        }
        if let Some(reactor_counters) = reactor_counters {
            reactor_counters(&mut add);
        }
        let mut full = Vec::new();
        for (kind, id, connection) in self.peers_of_a_question() {
            let scheme = fabric.scheme(connection);
            let peer = fabric.peer(connection).map(|peer| peer.to_string()).unwrap_or_default();
            if tail.push_connection(kind, id, scheme, &peer).is_err() {
                full.push(std::mem::take(&mut tail));
                // One fits an empty tail.
                let _fits = tail.push_connection(kind, id, scheme, &peer);
            }
        }
        for tail in &full {
            self.connections.push(asked.connection, &asked.reply(tail, false), &[tail.bytes()]);
        }
        self.connections.push(asked.connection, &asked.reply(&tail, true), &[tail.bytes()]);
    }

    /// Hosts and data servers that are connected: kind, id and connection.
    fn peers_of_a_question(&self) -> impl Iterator<Item = (u16, u64, ConnectionId)> {
        let hosts = self.sessions.iter().flatten().filter_map(|session| {
            Some((connection_kind::HOST, session.session.0, session.connection?))
        });
        let targets = self.targets.iter().enumerate().filter_map(|(id, channel)| {
            Some((connection_kind::TARGET, id as u64, channel.as_ref()?.connection))
        });
        hosts.chain(targets)
    }

    /// Passes a part of a data server's answer on to the host that asked.
    pub(crate) fn forward_stats(&mut self, target: TargetId, part: &TargetStatsReply, tail: &[u8]) {
        let Some(pending) = self.stats.iter_mut().find(|pending| pending.tag == part.tag.get())
        else {
            return;
        };
        let Some(place) = pending.waiting.iter().position(|waiting| *waiting == target) else {
            return;
        };
        if part.more.get() == 0 {
            pending.waiting.swap_remove(place);
        }
        let (host, header) = (pending.host, pending.header);
        let reply = StatsReply {
            header: header.reply(Status::OK),
            role: U16::new(1),
            count: part.count,
            index: U32::new(target.0),
            last: U16::ZERO,
            connections: part.connections,
            reserved: [0; 4],
        };
        if let Some(connection) = self.host_connection(host)
            && tail.len() <= STATS_TAIL_BYTES_MAX
        {
            self.connections.push(connection, &reply, &[tail]);
        }
    }

    /// Takes a question that all data servers have answered, or whose time is over.
    pub(crate) fn take_finished_stats(&mut self, now: Time) -> Option<PendingStats> {
        let done = |pending: &PendingStats| pending.waiting.is_empty() || pending.deadline <= now;
        let place = self.stats.iter().position(done)?;
        Some(self.stats.swap_remove(place))
    }
}
