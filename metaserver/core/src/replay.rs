//! Start: the log is replayed, free space is rebuilt, the root exists, what a crash interrupted ends.

use gannet_proto::operations::file_type;
use gannet_proto::{Inode, ShardId};

use crate::record::{self, Change, RecordError};
use crate::{Core, Lsn, Now, Sink};

/// Permission bits of a new root directory.
const ROOT_MODE: u32 = 0o755;

impl Core {
    /// Applies a record of the log.
    ///
    /// # Errors
    /// The record is malformed or contradicts the records before it; nothing was changed.
    pub fn replay(&mut self, record: &[u8]) -> Result<(), RecordError> {
        debug_assert!(self.replaying, "records are replayed before finish_replay");
        let (origin, change) = record::decode(record)?;
        self.apply(&origin, &change, Lsn(0))?;
        if let (Some(kept), Some(shard)) = (self.kept(&origin, &change), origin.shard) {
            let session = (origin.session, origin.instance);
            let slot = (shard, origin.slot, origin.sequence);
            if !self.sessions.recorded(session, slot, kept) {
                let value = origin.session;
                return Err(RecordError::Contradiction { what: "session", value });
            }
        }
        Ok(())
    }

    /// Ends the replay: rebuilds free space, makes the root directory if it is ours and missing.
    /// Reactor 0 tells the others of data servers and zones, and all tell each other of what they
    /// decided: they are ready when that is known and applied everywhere. What does not fit together
    /// is told by [`Core::block_conflict`].
    pub fn finish_replay(&mut self, now: Now, sink: &mut impl Sink) {
        self.replaying = false;
        self.begin_reclaim();
        let root = Inode::ROOT;
        if self.is_local(root) && !self.nodes.contains_key(&root) {
            let origin = self.origin_of_core(now, Some(ShardId(0)));
            let mode = file_type::DIRECTORY | ROOT_MODE;
            let made = Change::DirectoryMade { parent: root, inode: root, mode, uid: 0, gid: 0 };
            self.commit(&origin, &made, sink);
        }
        if self.config.reactor == 0 {
            let zones: Vec<_> = self.zones.assigned().collect();
            self.place_extents(&zones);
            self.send_directory(sink);
        } else if let Some(zones) = self.told_zones.take() {
            self.place_extents(&zones);
        }
        self.ask_for_decisions(now, sink);
        self.settle(now, sink);
    }
}
