//! What addresses of `tcp://` need: rings that move bytes over sockets, buffers that keep a quick
//! network busy, and ports that are left to servers.

use gannet_fabric::tcp::{TcpFabric, TcpOptions};

use super::system::System;
use super::{Area, Check, Level};
use crate::units::format_size;

/// Where the kernel's settings are.
const SETTINGS: &str = "/proc/sys/net/ipv4";
/// Interfaces.
const INTERFACES: &str = "/sys/class/net";
/// The kernel's number for Ethernet; loopback has another.
const ETHERNET: &str = "1";
/// A connection keeps its network busy if what is under way fits its buffers. The round trip that
/// they should cover, as the reciprocal in seconds: 1 ms, of machines of one site under load.
const ROUND_TRIPS_PER_SECOND: u64 = 1000;
/// What a buffer holds beside each byte of payload, at the worst that the kernel accounts for.
const BUFFER_FACTOR: u64 = 2;
/// The port of the examples; servers and clusters of a machine take it and some behind it.
const PORT_USUAL: u16 = 7470;

/// All checks; `provider` says why no sockets can be served, if so.
pub(super) fn checks(system: &System, provider: impl Fn() -> Result<(), String>) -> Vec<Check> {
    vec![sockets(provider()), buffers(system), ports(system)]
}

/// Sets the provider up as the servers do, and takes it down again.
pub(super) fn try_provider() -> Result<(), String> {
    TcpFabric::new(TcpOptions::default()).map(drop).map_err(|error| error.to_string())
}

fn ok(name: &str, found: String) -> Check {
    Check::ok(Area::Tcp, name, found)
}

fn bad(level: Level, name: &str, found: String, remedy: &str) -> Check {
    Check::bad(level, Area::Tcp, name, found, remedy)
}

fn sockets(provider: Result<(), String>) -> Check {
    let name = "sockets";
    match provider {
        Ok(()) => ok(name, "a ring can serve them".to_owned()),
        Err(reason) => {
            let remedy = "see io_uring above; until then, use addresses of shm:// or rdma://";
            bad(Level::Warning, name, reason, remedy)
        }
    }
}

/// The quickest interface that is up, and its bits per second.
fn quickest(system: &System) -> Option<(String, u64)> {
    let word = |name: &str, file: &str| system.read(&format!("{INTERFACES}/{name}/{file}"));
    let usable = system.list(INTERFACES).into_iter().filter(|name| {
        word(name, "type").as_deref() == Some(ETHERNET)
            && word(name, "operstate").as_deref() == Some("up")
    });
    // In megabits; -1 where nobody knows.
    let speeds = usable.filter_map(|name| {
        let megabits: u64 = word(&name, "speed")?.parse().ok()?;
        (megabits > 0).then(|| (name, megabits.saturating_mul(1_000_000)))
    });
    speeds.max_by_key(|(_, speed)| *speed)
}

/// The largest length of a buffer that the kernel lets a connection grow to, of a setting with
/// least, first and largest.
fn largest(system: &System, setting: &str) -> Option<u64> {
    system.read(&format!("{SETTINGS}/{setting}"))?.split_whitespace().nth(2)?.parse().ok()
}

fn buffers(system: &System) -> Check {
    let name = "buffers";
    let settings = ["tcp_rmem", "tcp_wmem"];
    let [Some(receive), Some(send)] = settings.map(|setting| largest(system, setting)) else {
        return ok(name, "the system does not tell how far they grow".to_owned());
    };
    let found = format!(
        "of a connection grow to {} for receiving, {} for sending",
        format_size(receive),
        format_size(send)
    );
    let Some((interface, bits)) = quickest(system) else {
        return ok(name, format!("{found}; no interface tells its speed"));
    };
    let wanted = bits / 8 / ROUND_TRIPS_PER_SECOND * BUFFER_FACTOR;
    let found = format!("{found}; {interface} moves {} Gbit/s", bits as f64 / 1e9);
    if receive >= wanted && send >= wanted {
        return ok(name, found);
    }
    let mut remedy = format!(
        "one connection cannot keep {interface} busy over a round trip of 1 ms; at both ends, and in \
         /etc/sysctl.d to last:"
    );
    for (setting, value, first) in [("tcp_rmem", receive, 131_072), ("tcp_wmem", send, 16_384)] {
        if value < wanted {
            remedy.push_str(&format!("\nsysctl -w net.ipv4.{setting}=\"4096 {first} {wanted}\""));
        }
    }
    bad(Level::Warning, name, found, &remedy)
}

fn ports(system: &System) -> Check {
    let name = "ports";
    let range = system.read(&format!("{SETTINGS}/ip_local_port_range")).unwrap_or_default();
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return ok(name, "the system does not tell which it gives to outgoing connections".into());
    };
    let found = format!("outgoing connections take {first} to {last}");
    if (first..=last).contains(&PORT_USUAL) {
        let remedy = format!(
            "a server that starts anew may find its port taken: choose ports outside, or keep them \
             free: sysctl -w net.ipv4.ip_local_reserved_ports={PORT_USUAL}-{}",
            PORT_USUAL + 99
        );
        return bad(Level::Note, name, found, &remedy);
    }
    ok(name, format!("{found}: servers are safe at others"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::system::tests::machine;
    use super::*;

    /// Level and text of a check on a machine made of these files.
    fn of(name: &str, files: &[(&str, &str)]) -> (Level, String) {
        let (_root, system) = machine(files);
        let checks = checks(&system, || Err("refused".to_owned()));
        let found = checks.into_iter().find(|check| check.name == name).unwrap();
        (found.level, format!("{} | {}", found.found, found.remedy.unwrap_or_default()))
    }

    #[test]
    fn what_keeps_sockets_from_being_served_is_told() {
        let (level, text) = of("sockets", &[]);
        assert_eq!(level, Level::Warning);
        assert!(text.contains("refused | see io_uring"), "{text}");
        assert_eq!(sockets(Ok(())).level, Level::Ok);
    }

    #[test]
    fn buffers_are_held_against_the_quickest_interface() {
        let receive = ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456");
        let send = ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304");
        let port = |name: &'static str, speed: &'static str| {
            [("type", "1"), ("operstate", "up"), ("speed", speed)]
                .map(|(file, content)| (format!("sys/class/net/{name}/{file}"), content))
        };
        let with = |speeds: &[(&'static str, &'static str)]| {
            let files: Vec<(String, &str)> =
                speeds.iter().flat_map(|(name, speed)| port(name, speed)).collect();
            let mut all = vec![receive, send];
            all.extend(files.iter().map(|(path, content)| (path.as_str(), *content)));
            of("buffers", &all)
        };
        for (speeds, level, hints) in [
            (&[][..], Level::Ok, &["6.0 MiB", "4.0 MiB", "no interface tells"][..]),
            (&[("eth0", "-1")], Level::Ok, &["no interface tells"]),
            (&[("eth0", "1000"), ("eth1", "10000")], Level::Ok, &["eth1 moves 10 Gbit/s"]),
            (
                &[("eth0", "25000")],
                Level::Warning,
                &["eth0", "tcp_wmem=\"4096 16384 6250000\"", "/etc/sysctl.d"],
            ),
            (
                &[("eth0", "100000")],
                Level::Warning,
                &["tcp_rmem=\"4096 131072 25000000\"", "tcp_wmem=\"4096 16384 25000000\""],
            ),
        ] {
            let (found, text) = with(speeds);
            assert_eq!(found, level, "{text}");
            for hint in hints {
                assert!(text.contains(hint), "{hint}: {text}");
            }
        }
        // What suffices is not to be changed.
        assert!(!with(&[("eth0", "25000")]).1.contains("tcp_rmem="));
        // An interface that is down says nothing.
        let down = [
            ("sys/class/net/eth0/type", "1"),
            ("sys/class/net/eth0/operstate", "down"),
            ("sys/class/net/eth0/speed", "400000"),
        ];
        let files = [&[receive, send][..], &down].concat();
        assert_eq!(of("buffers", &files).0, Level::Ok);
        assert!(of("buffers", &[]).1.contains("does not tell"));
    }

    #[test]
    fn ports_that_others_may_take_are_a_note() {
        let setting = "proc/sys/net/ipv4/ip_local_port_range";
        for (range, level, hint) in [
            ("32768\t60999", Level::Ok, "32768 to 60999"),
            ("1024\t65535", Level::Note, "ip_local_reserved_ports=7470-7569"),
            ("7470 7470", Level::Note, "7470 to 7470"),
            ("many", Level::Ok, "does not tell"),
            ("-1 70000", Level::Ok, "does not tell"),
        ] {
            let (found, text) = of("ports", &[(setting, range)]);
            assert_eq!(found, level, "{range}: {text}");
            assert!(text.contains(hint), "{range}: {text}");
        }
        assert!(of("ports", &[]).1.contains("does not tell"));
    }
}
