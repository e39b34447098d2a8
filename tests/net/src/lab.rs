//! Parties on a network: each in a namespace of its own, joined by a link to a switch, which is a
//! bridge in a namespace too.
//!
//! Nothing of it is in the machine's own network, so it cannot clash with anything there.

use std::net::IpAddr;

use crate::filter::{self, Drops};
use crate::space::Space;

/// Name of a party's end of its link.
pub const DEVICE: &str = "eth0";
const BRIDGE: &str = "switch0";

/// Which protocol the parties' addresses are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A direction on a party's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What others send to the party.
    ToParty,
    /// What the party sends.
    FromParty,
}

/// Both directions.
pub const DIRECTIONS: [Direction; 2] = [Direction::ToParty, Direction::FromParty];

/// The parties, by number, and what joins them.
#[derive(Debug)]
pub struct Lab {
    parties: Vec<Space>,
    switch: Space,
    family: Family,
}

impl Lab {
    /// Makes a network of parties with these names.
    ///
    /// # Panics
    /// If the machine refuses.
    #[must_use]
    pub fn new(names: &[String], family: Family) -> Lab {
        let switch = Space::new("switch");
        switch.ip(&["link", "add", BRIDGE, "type", "bridge"]);
        switch.ip(&["link", "set", BRIDGE, "up"]);
        let parties = names.iter().map(|name| Space::new(name)).collect();
        let lab = Lab { parties, switch, family };
        for party in 0..names.len() {
            lab.join(party);
        }
        lab
    }

    fn join(&self, party: usize) {
        let (space, port) = (&self.parties[party], port(party));
        let switch = self.switch.name();
        space.ip(&["link", "add", DEVICE, "type", "veth", "peer", "name", &port, "netns", switch]);
        self.switch.ip(&["link", "set", &port, "master", BRIDGE, "up"]);
        let (bits, more): (_, &[&str]) = match self.family {
            Family::V4 => (24, &[]),
            // Nobody else can have it: no need to wait until that is proven.
            Family::V6 => (64, &["nodad"]),
        };
        let address = format!("{}/{bits}", self.address(party));
        space.ip(&[&["address", "add", &address, "dev", DEVICE], more].concat());
        space.ip(&["link", "set", DEVICE, "up"]);
    }

    /// A party's address.
    #[must_use]
    pub fn address(&self, party: usize) -> IpAddr {
        let number = party as u8 + 1;
        match self.family {
            Family::V4 => IpAddr::from([10, 77, 0, number]),
            Family::V6 => IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, number.into()]),
        }
    }

    /// The network of all addresses, as configurations have it.
    #[must_use]
    pub fn network(&self) -> &'static str {
        match self.family {
            Family::V4 => "10.77.0.0/24",
            Family::V6 => "fd77::/64",
        }
    }

    /// A party's namespace.
    #[must_use]
    pub fn party(&self, party: usize) -> &Space {
        &self.parties[party]
    }

    /// How many parties there are.
    #[must_use]
    pub fn parties(&self) -> usize {
        self.parties.len()
    }

    /// Pulls the plug of a party's link out of the switch.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn unplug(&self, party: usize) {
        self.switch.ip(&["link", "set", &port(party), "down"]);
    }

    /// Puts it in again.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn plug(&self, party: usize) {
        self.switch.ip(&["link", "set", &port(party), "up"]);
    }

    /// Drops packets of a party's link in one direction, from now on.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn filter(&self, party: usize, direction: Direction, drops: Drops) {
        let port = port(party);
        match direction {
            Direction::ToParty => filter::set(&self.parties[party], DEVICE, drops),
            Direction::FromParty => filter::set(&self.switch, &port, drops),
        }
    }

    /// How many packets were dropped since [`Lab::filter`].
    ///
    /// # Panics
    /// If the machine does not say, or there was no filter.
    #[must_use]
    pub fn dropped(&self, party: usize, direction: Direction) -> u64 {
        match direction {
            Direction::ToParty => filter::dropped(&self.parties[party], DEVICE),
            Direction::FromParty => filter::dropped(&self.switch, &port(party)),
        }
    }

    /// Lets every device pass segments one by one, as a wire does, not in bundles: what is dropped
    /// is one packet then.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn unbundle(&self) {
        for (party, space) in self.parties.iter().enumerate() {
            space.ip(&["link", "set", DEVICE, "gso_max_segs", "1"]);
            self.switch.ip(&["link", "set", &port(party), "gso_max_segs", "1"]);
        }
    }

    /// A counter of the TCP connections of a party, of `/proc/net/netstat`.
    ///
    /// # Panics
    /// If the kernel has no such counter.
    #[must_use]
    pub fn tcp_counter(&self, party: usize, name: &str) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
        let text = self.parties[party].enter(read);
        tcp_counter(&text, name).unwrap_or_else(|| panic!("no counter {name} in {text}"))
    }
}

/// The switch's end of a party's link.
fn port(party: usize) -> String {
    format!("port{party}")
}

/// Lines come in pairs: names, and their values.
fn tcp_counter(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// How long a test waits for what comes, and for what must not come.
    const COMES_MAX: Duration = Duration::from_secs(10);
    const STAYS_AWAY: Duration = Duration::from_millis(300);

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: A TCPOFOQueue\nTcpExt: 1 42\nIpExt: TCPOFOQueue\nIpExt: 7\n";
        assert_eq!(tcp_counter(text, "TCPOFOQueue"), Some(42));
        assert_eq!(tcp_counter(text, "B"), None);
    }

    /// A connection of two parties.
    fn connected(lab: &Lab) -> (TcpStream, TcpStream) {
        let at = SocketAddr::new(lab.address(1), 5000);
        let listener = lab.party(1).enter(|| TcpListener::bind(at).expect("its own address"));
        let one = lab.party(0).enter(|| TcpStream::connect_timeout(&at, COMES_MAX));
        (one.expect("they are joined"), listener.accept().expect("it has connected").0)
    }

    /// Whether a byte comes through, and that it does when the network is whole again.
    fn passes(from: &mut TcpStream, to: &mut TcpStream, heal: impl FnOnce()) -> bool {
        from.set_nodelay(true).expect("a TCP socket");
        from.write_all(&[7]).expect("room");
        to.set_read_timeout(Some(STAYS_AWAY)).expect("a TCP socket");
        let mut byte = [0];
        let came = to.read(&mut byte).is_ok();
        heal();
        if !came {
            to.set_read_timeout(Some(COMES_MAX)).expect("a TCP socket");
            assert_eq!(to.read(&mut byte).expect("it was sent again"), 1);
        }
        came
    }

    fn names() -> Vec<String> {
        vec!["one".to_owned(), "two".to_owned()]
    }

    #[test]
    #[ignore = "needs root and network namespaces: run tests/run net"]
    fn a_link_can_be_unplugged_and_blocked_either_way() {
        for family in [Family::V4, Family::V6] {
            let lab = Lab::new(&names(), family);
            let (mut one, mut two) = connected(&lab);
            assert!(passes(&mut one, &mut two, || ()));
            lab.unplug(1);
            assert!(!passes(&mut one, &mut two, || lab.plug(1)), "{family:?}");
            for direction in DIRECTIONS {
                lab.filter(1, direction, Drops::All);
                // Without an answer what was sent is sent again, but it has come.
                let came = passes(&mut one, &mut two, || {
                    lab.filter(1, Direction::ToParty, Drops::None);
                });
                assert_eq!(came, direction == Direction::FromParty, "{family:?}");
                let came = passes(&mut two, &mut one, || {
                    lab.filter(1, Direction::FromParty, Drops::None);
                });
                assert_eq!(came, direction == Direction::ToParty, "{family:?}");
            }
        }
    }

    #[test]
    #[ignore = "needs root and network namespaces: run tests/run net"]
    fn single_packets_are_lost_and_counted() {
        let lab = Lab::new(&names(), Family::V4);
        lab.unbundle();
        lab.filter(1, Direction::ToParty, Drops::Percent(5));
        let (mut one, mut two) = connected(&lab);
        let sent = vec![0x5a; 4 << 20];
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.write_all(&sent).expect("the other one reads");
                one.shutdown(std::net::Shutdown::Write).expect("connected");
            });
            let mut got = Vec::new();
            two.read_to_end(&mut got).expect("all comes");
            assert!(got == sent, "TCP repeats what is lost");
        });
        let dropped = lab.dropped(1, Direction::ToParty);
        println!("{dropped} packets lost in {:?}", begun.elapsed());
        // 5 % of at least 2900 packets of 1448 bytes.
        assert!((60..600).contains(&dropped), "{dropped} packets were lost");
        assert!(lab.tcp_counter(1, "TCPOFOQueue") > 0, "gaps were seen");
    }
}
