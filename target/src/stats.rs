//! What a data server counts.
//!
//! Plain numbers that the reactor's thread adds to; a copy of them is a snapshot.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a data server since its start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Number of counters.
            pub const COUNT: usize = [$(stringify!($name)),*].len();

            /// Sets the counter of this name, if there is one.
            pub(crate) fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => {}
                }
            }

            /// Name and value of each counter.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Grants to read that were queued.
    grants_read,
    /// Grants to write that were queued.
    grants_write,
    /// Grants to zero that were queued.
    grants_zero,
    /// Grants answered without being queued: session, term or store were not right.
    grants_refused,
    /// Grants that had come before.
    grants_duplicate,
    /// Grants revoked before anything was posted for them.
    grants_revoked,
    /// Queued grants dropped because the back channel that they came on broke.
    grants_dropped,
    /// Grants that ended in success.
    grants_done,
    /// Grants that failed after they were begun.
    grants_failed,
    /// Bytes moved between host memory and a device without a copy by a processor.
    bytes_direct,
    /// Bytes moved between host memory and a file through the page cache.
    bytes_copied,
    /// Bytes moved through a buffer of the data server.
    bytes_bounced,
    /// Bytes moved between host memory and a store in memory.
    bytes_ram,
    /// Zeros written to host memory.
    bytes_zeroed,
    /// Notices to metadata-server reactors.
    notices,
    /// Reports of retired grants.
    retirement_reports,
    /// Arrival notices to hosts.
    arrivals,
    /// Those of them that were queued right behind the last write, before its completion.
    arrivals_chained,
    /// Arrival notices dropped because the session had ended.
    arrivals_dropped,
    /// Packets of arrival notices.
    arrival_packets,
    /// Times that a full connection refused a packet.
    sends_refused,
    /// Times that a full queue, or an empty pool, put a transfer off.
    posts_put_off,
    /// Transfers that the fabric refused for key, range or right.
    access_refused,
    /// Disk operations that failed.
    disk_errors,
    /// Sessions announced by the metadata server.
    sessions_opened,
    /// Sessions that a host connected.
    sessions_connected,
    /// Sessions that the metadata server closed.
    sessions_closed,
    /// Sessions whose connection was lost or cut.
    sessions_lost,
    /// Connections refused: bad hello, ticket or epoch, or too many.
    connections_refused,
    /// Connections ended because the peer broke the protocol.
    protocol_errors,
    /// Back channels that were welcomed.
    channels_welcomed,
    /// Back channels that were lost.
    channels_lost,
    /// Drains acknowledged.
    drains,
    /// The thread that the data server runs on. This and the following as
    /// [`crate::Target::set_reactor_counters`] tells, 0 without.
    reactor_thread,
    /// Turns of that thread.
    reactor_turns,
    /// Its time in turns with work.
    reactor_busy_ns,
    /// Its time in turns without work.
    reactor_idle_ns,
    /// Its time asleep.
    reactor_sleep_ns,
    /// Times that it slept.
    reactor_sleeps,
    /// Completions and messages that all its pollers handled.
    reactor_work,
}
