//! Operations channels: one per metadata-server reactor, and the shard map that routes to them.
//!
//! Reactor 0 is found at the address that the client was given; the others' addresses and the map
//! come with the welcomes.

use gannet_fabric::route::Route;
use gannet_fabric::{Address, ConnectionId, DisconnectReason};
use gannet_proto::addresses::split_reactors;
use gannet_proto::handshake::split_tail;
use gannet_proto::limits::{LARGE_PACKET_BYTES, REACTORS_MAX, REQUEST_BYTES_MAX, SHARDS};
use gannet_proto::operations::HostWelcome;
use gannet_proto::packet::{DecodeError, Message};
use gannet_proto::{ShardId, VERSION};

use crate::fabrics::Fabrics;
use crate::link::Link;
use crate::outbox::Outbox;

/// A channel to one reactor.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) link: Link,
    /// Where the reactor can be reached, and which address is tried.
    pub(crate) route: Route,
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
    fn new(route: Route) -> Channel {
        Channel {
            link: Link::new(),
            route,
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
    /// Which of the addresses that are learned may be used.
    fabrics: Fabrics,
    /// Named by the last welcome over the bootstrap address.
    file_system_uuid: Option<[u8; 16]>,
}

impl Channels {
    pub(crate) fn new(bootstrap: Address, fabrics: Fabrics) -> Channels {
        Channels {
            list: vec![Channel::new(Route::beginning_with(bootstrap, []))],
            map: None,
            map_version: 0,
            request_bytes_max: REQUEST_BYTES_MAX,
            block_bytes: gannet_proto::limits::BLOCK_BYTES,
            fabrics,
            file_system_uuid: None,
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
        let (map_bytes, rest) = split(tail, "shards", SHARDS, LARGE_PACKET_BYTES)?;
        let mut map = [0; SHARDS];
        map.copy_from_slice(map_bytes);
        if let Some(wrong) = map.iter().find(|reactor| u16::from(**reactor) >= reactors) {
            return field("map", u64::from(*wrong));
        }
        let uuid = message.file_system_uuid;
        // The bootstrap address is the user's word. Any other one may mean another server here than
        // it does there.
        let is_bootstrap = reactor == 0 && self.list[0].route.is_first();
        if !is_bootstrap && self.file_system_uuid.is_some_and(|known| known != uuid) {
            return field("file_system_uuid", 0);
        }
        let mut lists: Vec<Vec<Address>> = vec![Vec::new(); usize::from(reactors)];
        let further = message.further_addresses.get();
        split_reactors::<HostWelcome>(rest, reactors, further, |reactor, text| {
            lists[usize::from(reactor)].extend(text.parse::<Address>().ok());
        })?;
        if let Some(reactor) = lists.iter().position(Vec::is_empty) {
            return field("address", reactor as u64);
        }
        self.file_system_uuid = Some(uuid);
        let fabrics = self.fabrics;
        lists.iter_mut().for_each(|list| list.retain(|address| fabrics.allow(address)));
        let moved = self.adopt(map, message, lists.into_iter().map(Route::new));
        let channel = &mut self.list[usize::from(reactor)];
        channel.requests_max = message.requests_max.get();
        let resumed = message.resumed.get() != 0 && channel.was_open;
        channel.was_open = true;
        Ok(Welcome { resumed, slots: message.slots.get().max(1), moved })
    }

    fn len_if_known(&self) -> u16 {
        if self.is_known() { self.len() } else { 1 }
    }

    fn adopt(
        &mut self,
        map: [u8; SHARDS],
        message: &HostWelcome,
        routes: impl Iterator<Item = Route>,
    ) -> u64 {
        let former = self.map.replace(map).unwrap_or(map);
        let moved = former
            .iter()
            .zip(&map)
            .enumerate()
            .fold(0, |moved, (shard, (from, to))| moved | u64::from(from != to) << shard);
        self.map_version = message.map_version.get();
        self.request_bytes_max = message.request_bytes_max.get().min(REQUEST_BYTES_MAX);
        self.block_bytes = message.block_bytes.get().max(1);
        for (index, route) in routes.enumerate() {
            match self.list.get_mut(index) {
                Some(channel) if index == 0 => {
                    // The bootstrap address is the user's choice and stays the first.
                    let first = channel.route.addresses()[0].clone();
                    channel.route.renew(Route::beginning_with(first, route.into_addresses()));
                }
                Some(channel) => channel.route.renew(route),
                None => self.list.push(Channel::new(route)),
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
    use gannet_proto::addresses::push_text;
    use zerocopy::little_endian::{U16, U32, U64};

    use super::*;

    fn new(bootstrap: &str) -> Channels {
        Channels::new(bootstrap.parse().unwrap(), Fabrics::ALL)
    }

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
        let mut channels = new("shm:///boot");
        assert_eq!(channels.route(ShardId(3)), None);
        let welcome = channels.welcome(0, &message(), &tail()).unwrap();
        let first = Welcome { resumed: false, slots: 8, moved: 0 };
        assert_eq!(welcome, first, "nothing to resume at first");
        assert_eq!((channels.len(), channels.route(ShardId(3))), (2, Some(1)));
        let boot = ["shm:///boot".parse().unwrap(), "shm:///a".parse().unwrap()];
        assert_eq!(channels[0].route.addresses(), boot);
        assert_eq!(channels[1].route.addresses(), ["shm:///b".parse().unwrap()]);
        let mut other = tail();
        other[3] = 0;
        let welcome = channels.welcome(0, &message(), &other).unwrap();
        assert_eq!(welcome, Welcome { resumed: true, slots: 8, moved: 1 << 3 });
    }

    #[test]
    fn reactors_have_all_their_addresses_in_the_order_of_trial() {
        let mut channels = new("tcp://boot:1");
        let mut tail = tail();
        for (reactor, text) in [(1_u16, "rdma://b:1"), (0, "tcp://boot:1"), (1, "odd://b")] {
            tail.extend(reactor.to_le_bytes());
            push_text(&mut tail, text);
        }
        let message = HostWelcome { further_addresses: U16::new(3), ..message() };
        channels.welcome(0, &message, &tail).unwrap();
        let order = |reactor: u16| -> Vec<String> {
            channels[reactor].route.addresses().iter().map(Address::to_string).collect()
        };
        assert_eq!(order(0), ["tcp://boot:1", "shm:///a"], "the user's choice first");
        assert_eq!(order(1), ["shm:///b", "rdma://b:1"], "unknown fabrics are left out");
    }

    #[test]
    fn learned_addresses_of_fabrics_that_may_not_be_used_are_left_out() {
        let fabrics = "tcp".parse().unwrap();
        let mut channels = Channels::new("shm:///boot".parse().unwrap(), fabrics);
        let mut tail = tail();
        tail.extend(1_u16.to_le_bytes());
        push_text(&mut tail, "tcp://b:1");
        let message = HostWelcome { further_addresses: U16::new(1), ..message() };
        channels.welcome(0, &message, &tail).unwrap();
        assert_eq!(channels[0].route.addresses(), ["shm:///boot".parse().unwrap()]);
        assert_eq!(channels[1].route.addresses(), ["tcp://b:1".parse().unwrap()]);
    }

    #[test]
    fn another_file_systems_server_is_not_taken_for_this_ones() {
        let mut channels = new("shm:///boot");
        let ours = HostWelcome { file_system_uuid: [1; 16], ..message() };
        channels.welcome(0, &ours, &tail()).unwrap();
        let other = HostWelcome { file_system_uuid: [2; 16], reactor: U16::new(1), ..message() };
        let refused = channels.welcome(1, &other, &tail()).unwrap_err();
        assert!(
            matches!(refused, DecodeError::Field { field: "file_system_uuid", .. }),
            "{refused}"
        );
        assert!(
            channels.welcome(1, &HostWelcome { reactor: U16::new(1), ..ours }, &tail()).is_ok()
        );
        let again = HostWelcome { file_system_uuid: [2; 16], ..message() };
        assert!(channels.welcome(0, &again, &tail()).is_ok(), "formatted anew");
        channels[0].route.advance();
        assert!(channels.welcome(0, &ours, &tail()).is_err(), "not at the bootstrap address");
    }

    #[test]
    fn broken_welcomes_change_nothing() {
        let whole = tail();
        for length in 0..whole.len() {
            let mut channels = new("shm:///boot");
            assert!(channels.welcome(0, &message(), &whole[..length]).is_err(), "{length}");
            assert!(!channels.is_known());
        }
        let bad = |change: fn(&mut HostWelcome)| {
            let mut welcome = message();
            change(&mut welcome);
            let mut channels = new("shm:///boot");
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
