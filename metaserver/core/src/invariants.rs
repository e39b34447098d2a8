//! What always holds, checked by tests and by the simulator; and the state as text, to compare.

use std::fmt::Write as _;

use gannet_proto::{Block, Inode};

use crate::Core;
use crate::check::{FindingKind, Findings, Severity, View};
use crate::namespace::Content;

impl Core {
    /// Checks what always holds (see [`crate::check`]), as far as it can be told from this core alone
    /// and while operations are under way, and that nobody waits for room that there is. Costs time
    /// in proportion to the state.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut findings = Findings::new(1);
        View::new(&[self]).check(&mut findings);
        // Until its data server comes, a store may be known in an older generation than its data.
        let ahead = (Severity::Unfinished, FindingKind::UnknownGeneration);
        match findings.iter().find(|finding| (finding.severity, finding.kind) != ahead) {
            Some(finding) => Err(finding.to_string()),
            None => self.check_waiting(),
        }
    }

    /// Who waits first for room at a data server finds none: only then a grant that ends wakes it.
    fn check_waiting(&self) -> Result<(), String> {
        for (id, target) in self.targets.iter() {
            let first = target.waiting.front().and_then(|first| self.operations.find(*first));
            let needed = first.map(|operation| u32::from(operation.needed));
            if needed.is_some_and(|needed| target.has_room(needed, self.config.grants_max)) {
                return Err(format!("an operation waits for room that data server {id} has"));
            }
        }
        Ok(())
    }

    /// Whether nothing is under way: no operation, no hold, no held name, nothing prepared, and no
    /// decision that somebody may ask for.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.operations.live() == 0
            && self.holds.is_empty()
            && self.held.is_empty()
            && self.transactions.is_empty()
    }

    /// The durable state as text in a fixed order. A replay of the log gives the same text.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut inodes: Vec<&Inode> = self.nodes.keys().collect();
        inodes.sort_unstable();
        for inode in inodes {
            let Some(node) = self.nodes.get(inode) else { continue };
            let _ = writeln!(
                text,
                "{:#x} mode {:o} owner {}:{} links {} times {} {} {}",
                inode.0,
                node.mode,
                node.uid,
                node.gid,
                node.links,
                node.atime_ns,
                node.mtime_ns,
                node.ctime_ns
            );
            for (name, value) in self.xattrs.of(*inode) {
                let _ = writeln!(text, "  {:?} = {value:?}", String::from_utf8_lossy(name));
            }
            match &node.content {
                Content::File(file) => {
                    let set: Vec<u32> = file.set.iter().map(|store| store.0).collect();
                    let _ = writeln!(text, "  size {} set {set:?}", file.size);
                    for extent in file.extents.iter() {
                        let _ = writeln!(text, "  {extent:?}");
                    }
                }
                Content::Directory(directory) => {
                    let _ = writeln!(text, "  parent {:#x}", directory.parent.0);
                    for (name, entry) in directory.entries.iter() {
                        let name = String::from_utf8_lossy(name);
                        let _ = writeln!(text, "  {name:?} {entry:?}");
                    }
                }
            }
        }
        self.transactions.dump(&mut text);
        let mut sessions: Vec<_> = self.sessions.iter().map(|(_, session)| session).collect();
        sessions.sort_unstable_by_key(|session| session.id);
        for session in sessions.into_iter().filter(|session| session.durable) {
            let _ = writeln!(text, "session {:#x} instance {:#x}", session.id.0, session.instance);
        }
        for (id, store) in self.targets.stores() {
            let Block(blocks) = Block(store.blocks);
            let _ = writeln!(
                text,
                "store {id} of {} generation {} blocks {blocks}",
                store.target, store.generation
            );
        }
        for zone in self.zones.assigned() {
            let _ = writeln!(text, "zone {zone:?}");
        }
        text
    }

    /// The kept replies as text in a fixed order. Those of slots that went on to requests which
    /// leave no record are in the log still, so this compares with a replay only when every slot's
    /// last request was a change.
    #[must_use]
    pub fn dump_replies(&self) -> String {
        let mut sessions: Vec<_> = self.sessions.iter().map(|(_, session)| session).collect();
        sessions.sort_unstable_by_key(|session| session.id);
        let mut text = String::new();
        for session in sessions {
            for (shard, slot, sequence, reply) in session.kept() {
                let _ = writeln!(text, "{:#x} {shard} {slot} {sequence} {reply:?}", session.id.0);
            }
        }
        text
    }
}
