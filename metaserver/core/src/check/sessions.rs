//! Sessions that the log knows, and the answers that are kept for them.

use gannet_proto::limits::{FILE_BYTES_MAX, REQUEST_BYTES_MAX, SLOTS_MAX};
use gannet_proto::{Inode, ShardId};

use super::{FindingKind, Findings, Place, Summary, View};
use crate::Core;
use crate::sessions::{KeptReply, SESSIONS_MAX};

impl View<'_> {
    /// Sessions and kept answers are such as hosts can have been given.
    pub(super) fn check_sessions(
        &self,
        core: &Core,
        summary: &mut Summary,
        findings: &mut Findings,
    ) {
        let reactor = core.config.reactor;
        let mut sessions = 0;
        for (_, session) in core.sessions.iter() {
            sessions += 1;
            summary.sessions += u64::from(session.durable);
            if session.id.0 == 0 {
                findings.error(FindingKind::Session, Place::reactor(reactor), || {
                    "there is a session 0, which stands for none".to_owned()
                });
            }
            for (shard, slot, sequence, reply) in session.kept() {
                summary.kept_replies += 1;
                let shard = ShardId(shard as u16);
                let wrong = if !core.is_ours(shard) {
                    Some("of a shard of another reactor")
                } else if slot >= SLOTS_MAX {
                    Some("of a slot that no session has")
                } else if sequence == 0 {
                    Some("of sequence 0, which no request has")
                } else {
                    wrong_with(reply)
                };
                if let Some(wrong) = wrong {
                    let place = Place { shard: Some(shard), ..Place::reactor(reactor) };
                    findings.error(FindingKind::Session, place, || {
                        let id = session.id.0;
                        format!("session {id:#x} keeps in slot {slot} an answer {wrong}")
                    });
                }
            }
        }
        if sessions > SESSIONS_MAX {
            findings.error(FindingKind::Session, Place::reactor(reactor), || {
                format!("there are {sessions} sessions, at most {SESSIONS_MAX} are possible")
            });
        }
    }
}

/// What is wrong with an answer, whoever it is for.
fn wrong_with(reply: &KeptReply) -> Option<&'static str> {
    match reply {
        KeptReply::Xattr => None,
        KeptReply::Io(io) => {
            let (offset, length, size) = (io.offset.get(), io.length.get(), io.size.get());
            if length > REQUEST_BYTES_MAX {
                return Some("of a write longer than a request can be");
            }
            match offset.checked_add(length.into()) {
                Some(end) if end <= size && size <= FILE_BYTES_MAX => None,
                _ => Some("of a write beyond its file's end"),
            }
        }
        KeptReply::Entry(attributes) => {
            let inode = attributes.handle.inode();
            if inode != Inode(0) && inode.shard().is_none() {
                return Some("with an inode that no shard can have given out");
            }
            (attributes.size.get() > FILE_BYTES_MAX).then_some("with a size that no file can have")
        }
    }
}
