//! How one reactor of a metadata server is set up.

use std::time::Duration;

use gannet_fabric::Address;
use gannet_proto::addresses::reactors_bytes;
use gannet_proto::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, REACTOR_ADDRESSES_BYTES_MAX, REACTORS_MAX,
};

/// Settings of one reactor. What belongs to the file system itself lies in the log's superblock.
#[derive(Clone, Debug)]
pub struct MetaServerConfig {
    /// Which reactor this is.
    pub reactor: u16,
    /// Where each reactor listens, at one or more addresses; its length is the number of reactors.
    /// Hosts and data servers are told all of them and choose.
    pub addresses: Vec<Vec<Address>>,
    /// How long a host's session outlives its connection.
    pub lease: Duration,
    /// How long a new connection may take to say who it is.
    pub handshake_timeout: Duration,
    /// How long a request may wait for a data server that is away.
    pub target_wait: Duration,
    /// Most grants outstanding at one data server; a power of two, at most
    /// [`gannet_proto::limits::GRANTS_MAX`].
    pub grants_max: u32,
    /// Slots per shard of a session, at most [`gannet_proto::limits::SLOTS_MAX`].
    pub slots: u16,
    /// Source of session tickets: random, never reused.
    pub seed: [u8; 32],
}

impl MetaServerConfig {
    /// The default settings of a reactor.
    #[must_use]
    pub fn new(reactor: u16, addresses: Vec<Vec<Address>>, seed: [u8; 32]) -> MetaServerConfig {
        MetaServerConfig {
            reactor,
            addresses,
            lease: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            target_wait: Duration::from_secs(30),
            grants_max: 1024,
            slots: 256,
            seed,
        }
    }

    /// Number of reactors.
    #[must_use]
    pub fn reactors(&self) -> u16 {
        self.addresses.len() as u16
    }

    /// Refuses addresses that handshakes could not carry.
    ///
    /// # Errors
    /// A text that names what there is too much of.
    pub(crate) fn check_addresses(&self) -> Result<(), String> {
        let reactors = self.addresses.len();
        if reactors == 0 || reactors > REACTORS_MAX {
            return Err(format!("{reactors} reactors: there are 1 to {REACTORS_MAX}"));
        }
        if usize::from(self.reactor) >= reactors {
            return Err(format!("reactor {} of {reactors}", self.reactor));
        }
        for (reactor, list) in self.addresses.iter().enumerate() {
            if list.is_empty() || list.len() > ADDRESSES_MAX {
                return Err(format!(
                    "{} addresses of reactor {reactor}: it listens at 1 to {ADDRESSES_MAX}",
                    list.len()
                ));
            }
            let lengths = list.iter().map(|address| (address, address.to_string().len()));
            if let Some((long, len)) = lengths.into_iter().find(|(_, len)| *len > ADDRESS_BYTES_MAX)
            {
                return Err(format!("{long} has {len} bytes: at most {ADDRESS_BYTES_MAX}"));
            }
        }
        let lists = self.addresses.iter();
        let bytes = reactors_bytes(lists.map(|list| list.iter().map(|a| a.to_string().len())));
        if bytes > REACTOR_ADDRESSES_BYTES_MAX {
            return Err(format!(
                "the addresses of all reactors take {bytes} bytes: at most \
                 {REACTOR_ADDRESSES_BYTES_MAX}, name fewer or shorter ones"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(addresses: Vec<Vec<String>>) -> Result<(), String> {
        let parsed = addresses
            .iter()
            .map(|list| list.iter().map(|text| text.parse().unwrap()).collect())
            .collect();
        MetaServerConfig::new(0, parsed, [0; 32]).check_addresses()
    }

    #[test]
    fn addresses_that_no_handshake_could_carry_are_refused_by_name() {
        let list = |count: usize, len: usize| -> Vec<String> {
            let name = "x".repeat(len - "tcp://:1000".len());
            (0..count).map(|port| format!("tcp://{name}:{}", 1000 + port)).collect()
        };
        for good in [
            vec![list(1, 20)],
            vec![list(ADDRESSES_MAX, ADDRESS_BYTES_MAX)],
            vec![list(1, ADDRESS_BYTES_MAX); REACTORS_MAX],
            vec![list(4, 26); REACTORS_MAX],
        ] {
            assert_eq!(config(good), Ok(()));
        }
        for (bad, what) in [
            (vec![], "0 reactors"),
            (vec![list(1, 20); REACTORS_MAX + 1], "65 reactors"),
            (vec![list(1, 20), vec![]], "0 addresses of reactor 1"),
            (vec![list(ADDRESSES_MAX + 1, 20)], "9 addresses of reactor 0"),
            (vec![list(1, ADDRESS_BYTES_MAX + 1)], "121 bytes"),
            (vec![list(2, ADDRESS_BYTES_MAX); REACTORS_MAX], "fewer or shorter"),
        ] {
            let refused = config(bad).unwrap_err();
            assert!(refused.contains(what), "{refused}");
        }
    }
}
