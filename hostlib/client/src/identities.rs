//! On whose behalf requests are made.
//!
//! A reactor is told who an identity is just before the first request that names it, and once more
//! on each new channel.

use gannet_proto::identity::{GROUPS_MAX, IDENTITIES_MAX, SetIdentity};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::error::ErrorKind;
use crate::outbox::{Outbox, OutboxFull};

/// The program's number for a user: 1 to 256, or [`IdentityId::OWN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdentityId(pub u16);

impl IdentityId {
    /// Who the metadata server takes the program itself for: its user on `shm://`, what
    /// [`crate::ClientOptions`] says elsewhere.
    pub const OWN: IdentityId = IdentityId(0);
}

/// A user with its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user; 0 is the superuser, whom no permission stops.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
    /// Supplementary groups, at most 16.
    pub groups: Vec<u32>,
}

/// Who an identity is, as the servers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    message: SetIdentity,
    groups: [U32; GROUPS_MAX],
}

impl Definition {
    fn push(&self, outbox: &mut Outbox) -> Result<(), OutboxFull> {
        let groups = &self.groups[..usize::from(self.message.groups.get())];
        outbox.push(&self.message, &[groups.as_bytes()])
    }
}

#[derive(Debug)]
struct Known {
    definition: Definition,
    /// Reactors that were told, as a mask.
    told: u64,
}

/// All identities of a client.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    /// From number 1.
    table: Vec<Option<Box<Known>>>,
}

impl Identities {
    /// Says who has a number from now on.
    pub(crate) fn set(&mut self, id: IdentityId, identity: &Identity) -> Result<(), ErrorKind> {
        if id == IdentityId::OWN || id.0 > IDENTITIES_MAX {
            return Err(ErrorKind::Invalid("identities have numbers from 1 to 256"));
        }
        let count = identity.groups.len();
        if count > GROUPS_MAX {
            return Err(ErrorKind::Invalid("an identity has at most 16 supplementary groups"));
        }
        let mut groups = [U32::ZERO; GROUPS_MAX];
        for (place, group) in groups.iter_mut().zip(&identity.groups) {
            *place = U32::new(*group);
        }
        let message = SetIdentity {
            identity: U16::new(id.0),
            groups: U16::new(count as u16),
            uid: U32::new(identity.uid),
            gid: U32::new(identity.gid),
            reserved: U32::ZERO,
        };
        let place = usize::from(id.0) - 1;
        if self.table.len() <= place {
            self.table.resize_with(place + 1, || None);
        }
        let definition = Definition { message, groups };
        self.table[place] = Some(Box::new(Known { definition, told: 0 }));
        Ok(())
    }

    /// Whether requests may be made in its name.
    pub(crate) fn is_known(&self, id: IdentityId) -> bool {
        let place = usize::from(id.0).checked_sub(1);
        place.is_none_or(|place| self.table.get(place).is_some_and(Option::is_some))
    }

    /// Sees to it that a reactor knows who an identity is when the next request gets there.
    #[inline]
    pub(crate) fn tell(
        &mut self,
        id: IdentityId,
        reactor: u16,
        outbox: &mut Outbox,
    ) -> Result<(), OutboxFull> {
        let Some(place) = usize::from(id.0).checked_sub(1) else { return Ok(()) };
        let Some(Some(known)) = self.table.get_mut(place) else { return Ok(()) };
        if known.told & (1 << reactor) == 0 {
            known.definition.push(outbox)?;
            known.told |= 1 << reactor;
        }
        Ok(())
    }

    /// Who an identity is.
    pub(crate) fn definition(&self, id: IdentityId) -> Option<Definition> {
        let place = usize::from(id.0).checked_sub(1)?;
        self.table.get(place)?.as_ref().map(|known| known.definition)
    }

    /// Sees to it that a reactor takes the number of a definition for whom that says when the next message
    /// gets there, whoever has it now: who that is, is told again before the next request.
    pub(crate) fn tell_former(
        &mut self,
        former: &Definition,
        reactor: u16,
        outbox: &mut Outbox,
    ) -> Result<(), OutboxFull> {
        let id = IdentityId(former.message.identity.get());
        if self.definition(id).as_ref() == Some(former) {
            return self.tell(id, reactor, outbox);
        }
        former.push(outbox)?;
        let place = usize::from(id.0).checked_sub(1);
        if let Some(Some(known)) = place.and_then(|place| self.table.get_mut(place)) {
            known.told &= !(1 << reactor);
        }
        Ok(())
    }

    /// A reactor has a new channel, or none.
    pub(crate) fn forget(&mut self, reactor: u16) {
        for known in self.table.iter_mut().flatten() {
            known.told &= !(1 << reactor);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reactor_is_told_once_per_channel_and_definition() {
        let mut identities = Identities::default();
        let (id, who) = (IdentityId(3), Identity { uid: 1000, gid: 100, groups: vec![4, 5] });
        assert!(identities.is_known(IdentityId::OWN) && !identities.is_known(id));
        identities.set(id, &who).unwrap();
        assert!(identities.is_known(id) && !identities.is_known(IdentityId(2)));
        let told = |identities: &mut Identities, reactor| {
            let mut outbox = Outbox::default();
            identities.tell(id, reactor, &mut outbox).unwrap();
            !outbox.is_empty()
        };
        assert!(told(&mut identities, 0) && !told(&mut identities, 0));
        assert!(told(&mut identities, 63) && !told(&mut identities, 63));
        identities.forget(63);
        assert!(told(&mut identities, 63) && !told(&mut identities, 0));
        identities.set(id, &who).unwrap();
        assert!(told(&mut identities, 0));
        let mut outbox = Outbox::default();
        identities.tell(IdentityId::OWN, 0, &mut outbox).unwrap();
        assert!(outbox.is_empty(), "the server knows who the program is");
    }

    #[test]
    fn numbers_and_groups_are_bounded() {
        let mut identities = Identities::default();
        let who = |count| Identity { groups: vec![1; count], ..Identity::default() };
        assert!(identities.set(IdentityId(0), &who(0)).is_err());
        assert!(identities.set(IdentityId(257), &who(0)).is_err());
        assert!(identities.set(IdentityId(256), &who(17)).is_err());
        assert!(identities.set(IdentityId(256), &who(16)).is_ok());
    }
}
