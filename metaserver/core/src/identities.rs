//! On whose behalf the requests of a session are made, and what the mode bits grant them.
//!
//! A session's identities live in memory only: the host tells them on each new channel.

use gannet_proto::Status;
use gannet_proto::identity::{GROUPS_MAX, IDENTITIES_MAX, SetIdentity};
use zerocopy::little_endian::U32;

use crate::namespace::Node;
use crate::{Core, SessionIndex};

/// Permission to read: of a directory, to list it.
pub(crate) const READ: u32 = 4;
/// Permission to write: of a directory, to change its entries.
pub(crate) const WRITE: u32 = 2;
/// Permission to look names up in a directory.
pub(crate) const SEARCH: u32 = 1;

/// A user with its groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    groups: [U32; GROUPS_MAX],
    group_count: u8,
}

impl Identity {
    /// A user with supplementary groups, up to the bound.
    pub(crate) fn new(uid: u32, gid: u32, groups: &[U32]) -> Identity {
        let count = groups.len().min(GROUPS_MAX);
        let mut identity = Identity { uid, gid, group_count: count as u8, ..Identity::default() };
        identity.groups[..count].copy_from_slice(&groups[..count]);
        identity
    }

    /// Somebody who has no more rights than anybody else.
    pub(crate) fn nobody() -> Identity {
        Identity::new(u32::MAX, u32::MAX, &[])
    }

    /// Whether no permission stops it.
    pub(crate) fn is_superuser(&self) -> bool {
        self.uid == 0
    }

    fn groups(&self) -> &[U32] {
        &self.groups[..usize::from(self.group_count)]
    }

    /// Whether it belongs to a group.
    pub(crate) fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().iter().any(|group| group.get() == gid)
    }

    /// Whether the mode bits grant all that is wanted. Only the bits of the class that it belongs
    /// to count: an owner without a right does not have it as one of the others.
    pub(crate) fn may(&self, node: &Node, wanted: u32) -> bool {
        let granted = if self.uid == node.uid {
            node.mode >> 6
        } else if self.is_in_group(node.gid) {
            node.mode >> 3
        } else {
            node.mode
        };
        granted & wanted == wanted || self.is_superuser()
    }
}

/// The identities of a session.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// Number 0: the connection's own.
    own: Identity,
    /// The others from number 1.
    others: Vec<Option<Identity>>,
}

impl Identities {
    /// Who has a number.
    #[inline]
    pub(crate) fn find(&self, number: u16) -> Option<&Identity> {
        match number {
            0 => Some(&self.own),
            number => self.others.get(usize::from(number) - 1)?.as_ref(),
        }
    }

    /// Whether the inode alone grants what is wanted for I/O: to the superuser, to its owner, and to
    /// whom its mode lets.
    #[inline]
    pub(crate) fn may_plainly(&self, number: u16, node: &Node, wanted: u32) -> bool {
        self.find(number).is_some_and(|asker| asker.uid == node.uid || asker.may(node, wanted))
    }

    /// Gives a number to an identity, or takes it from whom the host may not speak for. `false`
    /// in that case.
    fn set(&mut self, number: u16, identity: Identity) -> bool {
        let own = &self.own;
        let is_itself =
            identity.uid == own.uid && identity.gid == own.gid && identity.group_count == 0;
        let is_granted = own.is_superuser() || is_itself;
        let place = usize::from(number.clamp(1, IDENTITIES_MAX)) - 1;
        if self.others.len() <= place {
            self.others.resize(place + 1, None);
        }
        self.others[place] = is_granted.then_some(identity);
        is_granted
    }
}

impl Core {
    /// Says who a session's host is itself. Until it is said, it is the superuser. What the host
    /// named before is kept only if it could name it now.
    pub fn session_identity(&mut self, session: SessionIndex, uid: u32, gid: u32) {
        let Some(session) = self.sessions.find(session) else { return };
        let identities = &mut session.identities;
        identities.own = Identity::new(uid, gid, &[]);
        if !identities.own.is_superuser() {
            identities.others.clear();
        }
    }

    /// Notes on whose behalf the host will ask, with the groups that [`SetIdentity::groups`] found.
    pub fn set_identity(&mut self, session: SessionIndex, request: &SetIdentity, groups: &[U32]) {
        let Some(session) = self.sessions.find(session) else { return };
        let identity = Identity::new(request.uid.get(), request.gid.get(), groups);
        if !session.identities.set(request.identity.get(), identity) {
            self.counters.identities_refused += 1;
        }
    }

    /// In whose name a request is made; `None` for the superuser, whom nothing stops.
    ///
    /// # Errors
    /// `UNKNOWN_IDENTITY`.
    #[inline]
    pub(crate) fn asker(
        &self,
        session: SessionIndex,
        number: u16,
    ) -> Result<Option<&Identity>, Status> {
        let identity = self.sessions.view(session).and_then(|known| known.identities.find(number));
        let identity = identity.ok_or(Status::UNKNOWN_IDENTITY)?;
        Ok((!identity.is_superuser()).then_some(identity))
    }
}
