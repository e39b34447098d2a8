//! Counters of a core.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a core did so far, and how much is under way.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CoreCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl CoreCounters {
            /// Names and values.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// LOOKUP requests.
    lookups,
    /// READDIR requests.
    readdirs,
    /// Requests that change names.
    name_changes,
    /// STAT, OPEN and FSYNC requests.
    inode_requests,
    /// SETATTR requests.
    attribute_changes,
    /// Requests for extended attributes.
    xattr_requests,
    /// READ requests.
    reads,
    /// WRITE requests.
    writes,
    /// CANCEL requests.
    cancels,
    /// Bytes granted for reading.
    read_bytes,
    /// Bytes granted for writing.
    write_bytes,
    /// Grants sent.
    grants,
    /// Revocations sent.
    revokes,
    /// Notices and retirements of grants that are not outstanding.
    grants_unknown,
    /// Grants that ended with an error.
    grants_failed,
    /// Grants whose data server went away.
    grants_lost,
    /// Records made.
    commits,
    /// Requests answered RETRY.
    retries,
    /// Requests that had to wait for something.
    parked,
    /// Requests that were repeated while under way.
    duplicates,
    /// Changes that were answered from memory.
    replays,
    /// Requests whose sequence does not fit their slot.
    bad_sequences,
    /// Requests answered STALE_SET.
    stale_sets,
    /// Registrations beyond the bound.
    registrations_refused,
    /// Identities that a host may not speak for.
    identities_refused,
    /// Data servers or stores beyond the bound.
    enrollments_refused,
    /// Extents of the log that lie in no zone of their shard.
    extents_unplaced,
    /// Operations under way.
    live_operations,
    /// Grants outstanding.
    live_grants,
    /// Sessions known.
    sessions,
    /// Inodes of this reactor's shards.
    inodes,
}
