//! Data sessions: one per data server that holds files of interest.
//!
//! A session begins with a ticket and an epoch that the metadata server mints; each new connection
//! takes new ones. Data servers are numbered here by small indices, so that sets of them are bit
//! masks.

use gannet_fabric::Address;
use gannet_fabric::route::Route;
use gannet_proto::addresses::{split_further, text_of};
use gannet_proto::handshake::split_tail;
use gannet_proto::limits::{ADDRESS_BYTES_MAX, TICKET_BYTES_MAX};
use gannet_proto::operations::TargetReply;
use gannet_proto::packet::{DecodeError, Message};
use gannet_proto::{Epoch, TargetId};

use crate::link::Link;

/// Most data servers that a client keeps sessions with.
pub(crate) const TARGETS_MAX: usize = 64;

/// A data server.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) id: TargetId,
    pub(crate) link: Link,
    /// Epoch of the session that is being opened or open.
    pub(crate) epoch: Epoch,
    pub(crate) ticket: Vec<u8>,
    /// Whether there was a ticket.
    pub(crate) has_ticket: bool,
    /// Where it can be reached with that ticket, and which address is tried.
    pub(crate) route: Route,
    /// Addresses of the route at which the fabric has no memory windows although they are needed.
    pub(crate) windowless: usize,
    /// Tag of the question for a ticket; 0 if none is open.
    pub(crate) asked: u64,
    /// Whether the question still has to be sent.
    pub(crate) ask: bool,
}

/// All data servers that were named to this client.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    list: Vec<Target>,
}

impl Targets {
    /// The index of a data server, a new one if need be; `None` beyond [`TARGETS_MAX`].
    pub(crate) fn index_of(&mut self, id: TargetId) -> Option<u8> {
        if let Some(found) = self.list.iter().position(|target| target.id == id) {
            return Some(found as u8);
        }
        if self.list.len() == TARGETS_MAX {
            return None;
        }
        self.list.push(Target {
            id,
            link: Link::new(),
            epoch: Epoch(0),
            ticket: Vec::new(),
            has_ticket: false,
            route: Route::new([]),
            windowless: 0,
            asked: 0,
            ask: false,
        });
        Some(self.list.len() as u8 - 1)
    }

    /// The data servers of a reply's tail as a mask.
    pub(crate) fn mask_of(&mut self, ids: &[u8]) -> Option<u64> {
        let mut mask = 0;
        for id in ids.as_chunks::<4>().0 {
            mask |= 1 << self.index_of(TargetId(u32::from_le_bytes(*id)))?;
        }
        Some(mask)
    }

    /// The data server whose ticket was asked for with this tag.
    pub(crate) fn asked(&self, tag: u64) -> Option<u8> {
        self.list.iter().position(|target| target.asked == tag && tag != 0).map(|index| index as u8)
    }

    pub(crate) fn indices(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.list.len() as u8
    }
}

impl std::ops::Index<u8> for Targets {
    type Output = Target;
    fn index(&self, index: u8) -> &Target {
        &self.list[usize::from(index)]
    }
}

impl std::ops::IndexMut<u8> for Targets {
    fn index_mut(&mut self, index: u8) -> &mut Target {
        &mut self.list[usize::from(index)]
    }
}

/// Route and ticket of a positive [`TargetReply`]. Addresses of fabrics that this build does not
/// know are left out.
pub(crate) fn ticket<'a>(
    reply: &TargetReply,
    tail: &'a [u8],
) -> Result<(Route, &'a [u8]), DecodeError> {
    let (address_bytes, ticket_bytes) = (reply.address_bytes.get(), reply.ticket_bytes.get());
    let split = split_tail::<TargetReply>;
    let (first, rest) = split(tail, "address_bytes", address_bytes.into(), ADDRESS_BYTES_MAX)?;
    let (ticket, rest) = split(rest, "ticket_bytes", ticket_bytes.into(), TICKET_BYTES_MAX)?;
    let mut addresses: Vec<Address> = Vec::new();
    addresses.extend(text_of::<TargetReply>(first)?.parse::<Address>().ok());
    split_further::<TargetReply>(rest, reply.further_addresses.get(), |text| {
        addresses.extend(text.parse::<Address>().ok());
    })?;
    if addresses.is_empty() {
        let (message, field) = (TargetReply::NAME, "address");
        return Err(DecodeError::Field { message, field, value: address_bytes.into() });
    }
    Ok((Route::new(addresses), ticket))
}

/// The indices in a mask.
pub(crate) fn members(mut mask: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let index = mask.trailing_zeros() as u8;
        mask &= mask - 1;
        Some(index)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_proto::addresses::push_text;
    use zerocopy::little_endian::U16;

    use super::*;

    #[test]
    fn a_ticket_comes_with_all_addresses_that_are_of_use() {
        let (first, ticket_bytes) = ("tcp://a:1", b"ticket");
        let reply = |further| TargetReply {
            address_bytes: U16::new(first.len() as u16),
            ticket_bytes: U16::new(6),
            further_addresses: U16::new(further),
            ..TargetReply::default()
        };
        let mut tail = [first.as_bytes(), ticket_bytes].concat();
        let (route, found) = ticket(&reply(0), &tail).unwrap();
        assert_eq!((route.addresses().len(), found), (1, &ticket_bytes[..]));
        for text in ["shm:///s", "quantum://b"] {
            push_text(&mut tail, text);
        }
        let (route, found) = ticket(&reply(2), &tail).unwrap();
        let addresses: Vec<String> = route.addresses().iter().map(Address::to_string).collect();
        assert_eq!(addresses, ["shm:///s", "tcp://a:1"]);
        assert_eq!(found, ticket_bytes);
        for (further, field) in [(3, "address"), (8, "further_addresses")] {
            let refused = ticket(&reply(further), &tail).unwrap_err();
            assert!(
                matches!(refused, DecodeError::Field { field: named, .. } if named == field),
                "{refused}"
            );
        }
        for length in 0..tail.len() {
            assert!(ticket(&reply(2), &tail[..length]).is_err(), "{length}");
        }
        let mut useless = reply(0);
        useless.address_bytes = U16::new(3);
        assert!(ticket(&useless, b"abcticket").is_err(), "no address of a fabric known here");
    }

    #[test]
    fn sets_are_masks_of_stable_indices() {
        let mut targets = Targets::default();
        let mut tail = Vec::new();
        for id in [7_u32, 3, 7, 9] {
            tail.extend(id.to_le_bytes());
        }
        assert_eq!(targets.mask_of(&tail), Some(0b111));
        assert_eq!(targets.index_of(TargetId(3)), Some(1));
        assert_eq!(members(0b1010_0001).collect::<Vec<_>>(), [0, 5, 7]);
        for id in 100..161 {
            assert!(targets.index_of(TargetId(id)).is_some());
        }
        assert_eq!(targets.index_of(TargetId(500)), None, "bounded");
        assert_eq!(targets.indices().count(), TARGETS_MAX);
    }
}
