//! Operations channels: one per metadata-server reactor, and the shard map that routes to them.
//!
//! Reactor 0 is found at the address that the client was given; the others' addresses and the map
//! come with the welcomes.

use gannet_fabric::{Address, ConnectionId, DisconnectReason};
use gannet_proto::handshake::split_tail;
use gannet_proto::limits::{
    ADDRESS_BYTES_MAX, LARGE_PACKET_BYTES, REACTORS_MAX, REQUEST_BYTES_MAX, SHARDS,
};
use gannet_proto::operations::HostWelcome;
use gannet_proto::packet::{DecodeError, Message};
use gannet_proto::{ShardId, VERSION};

use crate::link::Link;
use crate::outbox::Outbox;

/// A channel to one reactor.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) link: Link,
    pub(crate) address: Option<Address>,
    pub(crate) outbox: Outbox,
    /// Requests with slots that are with the server.
    pub(crate) in_flight: u32,
    /// Most of them.
    pub(crate) requests_max: u32,
    /// How the last connection ended.
    pub(crate) last_reason: Option<DisconnectReason>,
    /// Whether it was open once.
    pub(crate) was_open: bool,
    /// Whether the server refused the session on the current connection.
    pub(crate) refused: bool,
    /// A connection that is given up for a new one. It ends when that is open: its end in order
    /// would end the session.
    pub(crate) former: Option<ConnectionId>,
}

impl Channel {
    fn new(address: Option<Address>) -> Channel {
        Channel {
            link: Link::new(),
            address,
            outbox: Outbox::default(),
            in_flight: 0,
            requests_max: 0,
            last_reason: None,
            was_open: false,
            refused: false,
            former: None,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < self.requests_max
    }
}

/// What a welcome says about the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) resumed: bool,
    pub(crate) slots: u16,
    /// Shards that have moved to other reactors, as a mask.
    pub(crate) moved: u64,
}

/// All channels and the map.
#[derive(Debug)]
pub(crate) struct Channels {
    list: Vec<Channel>,
    map: Option<[u8; SHARDS]>,
    map_version: u64,
    request_bytes_max: u32,
    block_bytes: u32,
}

impl Channels {
    pub(crate) fn new(bootstrap: Address) -> Channels {
        Channels {
            list: vec![Channel::new(Some(bootstrap))],
            map: None,
            map_version: 0,
            request_bytes_max: REQUEST_BYTES_MAX,
            block_bytes: gannet_proto::limits::BLOCK_BYTES,
        }
    }

    /// Number of reactors known.
    pub(crate) fn len(&self) -> u16 {
        self.list.len() as u16
    }

    pub(crate) fn is_known(&self) -> bool {
        self.map.is_some()
    }

    pub(crate) fn map_version(&self) -> u64 {
        self.map_version
    }

    pub(crate) fn request_bytes_max(&self) -> u32 {
        self.request_bytes_max
    }

    pub(crate) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// The reactor of a shard; `None` before the first welcome.
    #[inline]
    pub(crate) fn route(&self, shard: ShardId) -> Option<u16> {
        self.map.as_ref()?.get(usize::from(shard.0)).map(|reactor| u16::from(*reactor))
    }

    /// Takes a welcome of `reactor` in, all of it or nothing.
    pub(crate) fn welcome(
        &mut self,
        reactor: u16,
        message: &HostWelcome,
        tail: &[u8],
    ) -> Result<Welcome, DecodeError> {
        let field = |field, value: u64| {
            Err(DecodeError::Field { message: HostWelcome::NAME, field, value })
        };
        let (shards, reactors) = (message.shards.get(), message.reactors.get());
        if message.version.get() != VERSION {
            return field("version", message.version.get().into());
        }
        if usize::from(shards) != SHARDS {
            return field("shards", shards.into());
        }
        if reactors == 0 || usize::from(reactors) > REACTORS_MAX || reactors < self.len_if_known() {
            return field("reactors", reactors.into());
        }
        if message.reactor.get() != reactor {
            return field("reactor", message.reactor.get().into());
        }
        if message.requests_max.get() == 0 {
            return field("requests_max", 0);
        }
        if message.request_bytes_max.get() == 0 {
            return field("request_bytes_max", 0);
        }
        let split = split_tail::<HostWelcome>;
        let (map_bytes, mut rest) = split(tail, "shards", SHARDS, LARGE_PACKET_BYTES)?;
        let mut map = [0; SHARDS];
        map.copy_from_slice(map_bytes);
        if let Some(wrong) = map.iter().find(|reactor| u16::from(**reactor) >= reactors) {
            return field("map", u64::from(*wrong));
        }
        let mut addresses = Vec::with_capacity(usize::from(reactors));
        for _ in 0..reactors {
            let (length, after) = split(rest, "address", 2, 2)?;
            let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
            let (text, after) = split(after, "address", length, ADDRESS_BYTES_MAX)?;
            rest = after;
            let address = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            let Some(address) = address else { return field("address", length as u64) };
            addresses.push(address);
        }
        let moved = self.adopt(map, message, addresses);
        let channel = &mut self.list[usize::from(reactor)];
        channel.requests_max = message.requests_max.get();
        let resumed = message.resumed.get() != 0 && channel.was_open;
        channel.was_open = true;
        Ok(Welcome { resumed, slots: message.slots.get().max(1), moved })
    }

    fn len_if_known(&self) -> u16 {
        if self.is_known() { self.len() } else { 1 }
    }

    fn adopt(&mut self, map: [u8; SHARDS], message: &HostWelcome, addresses: Vec<Address>) -> u64 {
        let former = self.map.replace(map).unwrap_or(map);
        let moved = former
            .iter()
            .zip(&map)
            .enumerate()
            .fold(0, |moved, (shard, (from, to))| moved | u64::from(from != to) << shard);
        self.map_version = message.map_version.get();
        self.request_bytes_max = message.request_bytes_max.get().min(REQUEST_BYTES_MAX);
        self.block_bytes = message.block_bytes.get().max(1);
        for (index, address) in addresses.into_iter().enumerate() {
            match self.list.get_mut(index) {
                // The bootstrap address is the user's choice and stays.
                Some(_) if index == 0 => {}
                Some(channel) => channel.address = Some(address),
                None => self.list.push(Channel::new(Some(address))),
            }
        }
        moved
    }
}

impl std::ops::Index<u16> for Channels {
    type Output = Channel;
    #[inline]
    fn index(&self, reactor: u16) -> &Channel {
        &self.list[usize::from(reactor)]
    }
}

impl std::ops::IndexMut<u16> for Channels {
    #[inline]
    fn index_mut(&mut self, reactor: u16) -> &mut Channel {
        &mut self.list[usize::from(reactor)]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zerocopy::little_endian::{U16, U32, U64};

    use super::*;

    fn message() -> HostWelcome {
        HostWelcome {
            version: U16::new(1),
            shards: U16::new(64),
            reactors: U16::new(2),
            slots: U16::new(8),
            requests_max: U32::new(100),
            request_bytes_max: U32::new(1 << 20),
            block_bytes: U32::new(4096),
            map_version: U64::new(3),
            resumed: U16::new(1),
            ..HostWelcome::default()
        }
    }

    fn tail() -> Vec<u8> {
        let mut tail: Vec<u8> = (0..64).map(|shard| shard % 2).collect();
        for address in ["shm:///a", "shm:///b"] {
            tail.extend((address.len() as u16).to_le_bytes());
            tail.extend(address.as_bytes());
        }
        tail
    }

    #[test]
    fn a_welcome_brings_the_map_and_the_addresses() {
        let mut channels = Channels::new("shm:///boot".parse().unwrap());
        assert_eq!(channels.route(ShardId(3)), None);
        let welcome = channels.welcome(0, &message(), &tail()).unwrap();
        let first = Welcome { resumed: false, slots: 8, moved: 0 };
        assert_eq!(welcome, first, "nothing to resume at first");
        assert_eq!((channels.len(), channels.route(ShardId(3))), (2, Some(1)));
        assert_eq!(channels[0].address, Some("shm:///boot".parse().unwrap()));
        assert_eq!(channels[1].address, Some("shm:///b".parse().unwrap()));
        let mut other = tail();
        other[3] = 0;
        let welcome = channels.welcome(0, &message(), &other).unwrap();
        assert_eq!(welcome, Welcome { resumed: true, slots: 8, moved: 1 << 3 });
    }

    #[test]
    fn broken_welcomes_change_nothing() {
        let whole = tail();
        for length in 0..whole.len() {
            let mut channels = Channels::new("shm:///boot".parse().unwrap());
            assert!(channels.welcome(0, &message(), &whole[..length]).is_err(), "{length}");
            assert!(!channels.is_known());
        }
        let bad = |change: fn(&mut HostWelcome)| {
            let mut welcome = message();
            change(&mut welcome);
            let mut channels = Channels::new("shm:///boot".parse().unwrap());
            assert!(channels.welcome(0, &welcome, &tail()).is_err(), "{welcome:?}");
            assert!(!channels.is_known());
        };
        bad(|w| w.version = U16::new(2));
        bad(|w| w.shards = U16::new(63));
        bad(|w| w.reactors = U16::ZERO);
        bad(|w| w.reactors = U16::new(65));
        bad(|w| w.reactors = U16::new(1));
        bad(|w| w.reactor = U16::new(1));
        bad(|w| w.requests_max = U32::ZERO);
        bad(|w| w.request_bytes_max = U32::ZERO);
    }
}
