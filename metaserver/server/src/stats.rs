//! Counters, and how a host asks for them.

use gannet_fabric::ConnectionId;
use gannet_meta_core::{Core, SessionIndex};
use gannet_proto::operations::{CounterEntry, RequestHeader, StatsReply};
use gannet_proto::{Status, TargetId};
use gannet_runtime::time::Time;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::shell::Shell;

/// How long data servers may take to answer a question for their counters.
pub(crate) const STATS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
/// Most bytes of counters in one reply.
const TAIL_BYTES_MAX: usize = 7 << 10;

/// What the shell counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShellCounters {
    pub(crate) messages_received: u64,
    pub(crate) message_bytes_received: u64,
    pub(crate) outputs_held: u64,
    pub(crate) protocol_violations: u64,
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

/// Encodes counters as the tail of a [`StatsReply`]; returns their number. Counters that do not fit
/// are left out: there are far fewer.
fn encode(tail: &mut Vec<u8>, name: &str, value: u64) -> bool {
    if tail.len() + size_of::<CounterEntry>() + name.len() > TAIL_BYTES_MAX {
        return false;
    }
    let entry = CounterEntry {
        value: U64::new(value),
        name_bytes: U16::new(name.len() as u16),
        reserved: [0; 6],
    };
    tail.extend_from_slice(entry.as_bytes());
    tail.extend_from_slice(name.as_bytes());
    true
}

impl Shell {
    /// Answers a host with this reactor's counters.
    pub(crate) fn reply_stats(
        &mut self,
        core: &Core,
        reactor_counters: Option<&ReactorCounters>,
        reactor: u16,
        connection: ConnectionId,
        header: RequestHeader,
    ) {
        let mut tail = Vec::new();
        let mut count = 0;
        let mut add = |name: &str, value: u64| count += u16::from(encode(&mut tail, name, value));
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
        let reply = StatsReply {
            header: header.reply(Status::OK),
            role: U16::ZERO,
            count: U16::new(count),
            index: U32::new(reactor.into()),
            last: U16::new(1),
            reserved: [0; 6],
        };
        self.connections.push(connection, &reply, &[&tail]);
    }

    /// Passes a data server's counters on to the host that asked.
    pub(crate) fn forward_stats(&mut self, target: TargetId, tag: u64, count: u16, tail: &[u8]) {
        let Some(pending) = self.stats.iter_mut().find(|pending| pending.tag == tag) else {
            return;
        };
        let Some(place) = pending.waiting.iter().position(|waiting| *waiting == target) else {
            return;
        };
        pending.waiting.swap_remove(place);
        let (host, header) = (pending.host, pending.header);
        let reply = StatsReply {
            header: header.reply(Status::OK),
            role: U16::new(1),
            count: U16::new(count),
            index: U32::new(target.0),
            last: U16::ZERO,
            reserved: [0; 6],
        };
        if let Some(connection) = self.host_connection(host)
            && tail.len() <= TAIL_BYTES_MAX
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
