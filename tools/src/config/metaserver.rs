//! The configuration of `gannet metaserver`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_fabric::Address;
use gannet_fabric::any::FabricOptions;
use gannet_proto::limits::{GRANTS_MAX, PARTS_MAX, REACTORS_MAX, SLOTS_MAX};
use gannet_runtime::idle::IdlePolicy;
use serde::Deserialize;
use toml::Spanned;

use super::document::{CORE_MAX, Document, Field};
use super::fabric::{FabricKeys, RdmaKeys, TcpKeys, fabric_options};
use crate::addresses::Group;
use crate::failure::Failure;

const LEASE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// The keys of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    directory: Field,
    listen: Field,
    reactors: Field,
    cores: Field,
    idle: Field,
    lease: Field,
    handshake_timeout: Field,
    target_wait: Field,
    grants_max: Field,
    slots: Field,
    lock_wait: Field,
    stop_grace: Field,
    trusted_uids: Field,
    trusted_hosts: Field,
    rdma: Option<Spanned<RdmaKeys>>,
    tcp: Option<Spanned<TcpKeys>>,
}

/// Settings of a metadata server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetaServerSettings {
    /// Holds one log per reactor.
    pub(crate) directory: PathBuf,
    /// Where each reactor listens, reactor 0 first: a list of addresses each.
    pub(crate) addresses: Vec<Vec<Address>>,
    /// The core of each reactor; empty leaves them to the scheduler.
    pub(crate) cores: Vec<usize>,
    /// How reactors wait for work.
    pub(crate) idle: IdlePolicy,
    /// How long a session outlives its connection.
    pub(crate) lease: Duration,
    /// How long a new connection may take to say who it is.
    pub(crate) handshake_timeout: Duration,
    /// How long a request may wait for a data server that is away.
    pub(crate) target_wait: Duration,
    /// Most grants outstanding at one data server per reactor.
    pub(crate) grants_max: u32,
    /// Slots per shard of a session.
    pub(crate) slots: u16,
    /// How long to wait for a log that another process holds.
    pub(crate) lock_wait: Duration,
    /// How long an orderly end may take.
    pub(crate) stop_grace: Duration,
    /// The fabrics, and who may connect.
    pub(crate) fabric: FabricOptions,
}

impl MetaServerSettings {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<MetaServerSettings, Failure> {
        MetaServerSettings::of(&Document::read(path)?)
    }

    fn of(document: &Document) -> Result<MetaServerSettings, Failure> {
        let keys: Keys = document.parse()?;
        let directory = document
            .path("directory", &keys.directory)?
            .ok_or_else(|| document.missing("directory", "directory = \"/var/lib/gannet/meta\""))?;
        let listen = document.listen("listen", &keys.listen)?.ok_or_else(|| {
            document.missing("listen", "listen = \"shm:///run/gannet/meta.sock\"")
        })?;
        let reactors =
            document.integer("reactors", &keys.reactors, 1..=REACTORS_MAX as i64)?.unwrap_or(1);
        let group = Group { reactors: reactors as usize, targets: 0 };
        let addresses = group.addresses(&listen).map_err(|error| match &keys.listen {
            Some(value) => document.refuse(value.span(), "listen", error),
            None => Failure::usage(error),
        })?;
        let fabric = fabric_options(
            document,
            &listen,
            None,
            &FabricKeys {
                trusted_uids: &keys.trusted_uids,
                trusted_hosts: &keys.trusted_hosts,
                rdma: &keys.rdma,
                tcp: &keys.tcp,
            },
        )?;
        let cores = document.integers("cores", &keys.cores, 0..=CORE_MAX)?.unwrap_or_default();
        if let Some(value) = &keys.cores
            && !cores.is_empty()
            && cores.len() != reactors as usize
        {
            let what = format!(
                "{} cores for {reactors} reactors: name one core per reactor, or none at all",
                cores.len()
            );
            return Err(document.refuse(value.span(), "cores", what));
        }
        let timeout = |key, field| document.duration(key, field, TIMEOUT.0..=TIMEOUT.1);
        let seconds = Duration::from_secs;
        // A request may need this many grants at once, twice while it is resent.
        let grants_min = (2 * PARTS_MAX) as i64;
        let grants_range = grants_min..=GRANTS_MAX as i64;
        let grants_max =
            document.integer("grants_max", &keys.grants_max, grants_range)?.unwrap_or(1024);
        if let Some(value) = &keys.grants_max
            && !(grants_max as u64).is_power_of_two()
        {
            let what = format!("{grants_max} is no power of two");
            return Err(document.refuse(value.span(), "grants_max", what));
        }
        Ok(MetaServerSettings {
            directory,
            addresses: addresses.reactors,
            cores: cores.into_iter().map(|core| core as usize).collect(),
            idle: document.idle("idle", &keys.idle)?.unwrap_or_default(),
            lease: document
                .duration("lease", &keys.lease, LEASE.0..=LEASE.1)?
                .unwrap_or(seconds(10)),
            handshake_timeout: timeout("handshake_timeout", &keys.handshake_timeout)?
                .unwrap_or(seconds(5)),
            target_wait: timeout("target_wait", &keys.target_wait)?.unwrap_or(seconds(30)),
            grants_max: grants_max as u32,
            slots: document.integer("slots", &keys.slots, 1..=SLOTS_MAX as i64)?.unwrap_or(256)
                as u16,
            lock_wait: timeout("lock_wait", &keys.lock_wait)?.unwrap_or(seconds(10)),
            stop_grace: timeout("stop_grace", &keys.stop_grace)?.unwrap_or(seconds(5)),
            fabric,
        })
    }

    /// Reactors of the server.
    pub(crate) fn reactors(&self) -> usize {
        self.addresses.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = "directory = \"/m\"\nlisten = \"shm:///run/m.sock\"\n";

    fn read(text: &str) -> Result<MetaServerSettings, Failure> {
        MetaServerSettings::of(&Document::new(Path::new("m.toml"), text.to_owned()))
    }

    /// The addresses of each reactor.
    fn texts(settings: &MetaServerSettings) -> Vec<Vec<String>> {
        let list = |list: &Vec<Address>| list.iter().map(Address::to_string).collect();
        settings.addresses.iter().map(list).collect()
    }

    #[test]
    fn two_keys_are_enough() {
        let settings = read(GOOD).unwrap();
        assert_eq!(settings.directory, Path::new("/m"));
        assert_eq!(settings.reactors(), 1);
        assert_eq!((settings.grants_max, settings.slots), (1024, 256));
        assert_eq!(settings.idle, IdlePolicy::ADAPTIVE);
    }

    #[test]
    fn every_key_is_read() {
        let text = format!(
            "{GOOD}reactors = 2\ncores = [1, 0]\nidle = \"spin\"\nlease = \"3s\"\n\
             handshake_timeout = \"1s\"\ntarget_wait = \"2s\"\ngrants_max = 2048\nslots = 64\n\
             lock_wait = \"4s\"\nstop_grace = \"1s\"\ntrusted_uids = [1000]\n"
        );
        let settings = read(&text).unwrap();
        assert_eq!(texts(&settings), [["shm:///run/m.sock"], ["shm:///run/m.sock.1"]]);
        assert_eq!(settings.cores, [1, 0]);
        assert_eq!(settings.idle, IdlePolicy::Spin);
        assert_eq!(settings.lease, Duration::from_secs(3));
        assert_eq!(settings.handshake_timeout, Duration::from_secs(1));
        assert_eq!(settings.target_wait, Duration::from_secs(2));
        assert_eq!((settings.grants_max, settings.slots), (2048, 64));
        assert_eq!(settings.lock_wait, Duration::from_secs(4));
        assert_eq!(settings.stop_grace, Duration::from_secs(1));
        let shm = settings.fabric.shm;
        assert_eq!(shm.trusted_uids, [1000]);
    }

    #[test]
    fn every_key_about_rdma_is_read() {
        let settings = read(
            "directory = \"/m\"\nlisten = \"rdma://10.0.0.1:7470\"\nreactors = 3\n\
             trusted_hosts = [\"10.0.0.0/8\", \"fd00::7\"]\n[rdma]\nconnections_max = 1000\n\
             shared_receives = 8192\nacknowledge_timeout = \"67ms\"\n",
        );
        let settings = settings.unwrap();
        let expected =
            [["rdma://10.0.0.1:7470"], ["rdma://10.0.0.1:7471"], ["rdma://10.0.0.1:7472"]];
        assert_eq!(texts(&settings), expected);
        let verbs = settings.fabric.verbs;
        let hosts: Vec<String> = verbs.trusted_hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["10.0.0.0/8", "fd00::7/128"]);
        assert_eq!((verbs.connections_max, verbs.shared_receives), (1000, 8192));
        assert_eq!(verbs.acknowledge_timeout, Duration::from_millis(67));
    }

    #[test]
    fn every_key_about_tcp_is_read() {
        let settings = read(
            "directory = \"/m\"\nlisten = \"tcp://10.0.0.1:7470\"\n\
             trusted_hosts = [\"10.0.0.0/8\"]\n[tcp]\nconnections_max = 1000\n\
             half_open_max = 10\npayload_checksums = true\npeer_timeout = \"3s\"\n\
             connect_timeout = \"1s\"\n",
        );
        let tcp = settings.unwrap().fabric.tcp;
        let hosts: Vec<String> = tcp.trusted_hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["10.0.0.0/8"]);
        assert_eq!((tcp.connections_max, tcp.half_open_max), (1000, 10));
        assert!(tcp.payload_checksums);
        assert_eq!(tcp.peer_timeout, Duration::from_secs(3));
        assert_eq!(tcp.connect_timeout, Duration::from_secs(1));
    }

    #[test]
    fn a_server_listens_at_several_fabrics() {
        let text = "directory = \"/m\"\nreactors = 2\n\
                    listen = [\"shm:///run/m.sock\", \"tcp://10.0.0.1:7470\"]\n\
                    trusted_uids = [7]\ntrusted_hosts = [\"10.0.0.0/8\"]\n";
        let settings = read(text).unwrap();
        let expected = [
            ["shm:///run/m.sock", "tcp://10.0.0.1:7470"],
            ["shm:///run/m.sock.1", "tcp://10.0.0.1:7471"],
        ];
        assert_eq!(texts(&settings), expected);
        assert_eq!(settings.fabric.shm.trusted_uids, [7]);
        assert_eq!(settings.fabric.tcp.trusted_hosts.len(), 1);
        let message = read(&format!("{text}[rdma]\n")).unwrap_err().message;
        let hint = "m.toml:6: rdma: listen is shm:///run/m.sock, tcp://10.0.0.1:7470, not rdma://";
        assert!(message.contains(hint), "{message}");
        let near = text.replace("shm:///run/m.sock", "tcp://10.0.0.1:7471");
        let message = read(&near).unwrap_err().message;
        assert!(message.contains("m.toml:3: listen") && message.contains("overlap"), "{message}");
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_key() {
        for (extra, hints) in [
            ("lisen = 1", &["m.toml:3:", "unknown key `lisen`", "`listen`", "`slots`"][..]),
            ("reactors = 0", &["m.toml:3: reactors", "1 to 64"]),
            ("\n\nreactors = \"two\"", &["m.toml:5: reactors", "\"two\""]),
            ("cores = [0, 1]", &["m.toml:3: cores", "2 cores for 1 reactors"]),
            ("idle = \"lazy\"", &["m.toml:3: idle", "lazy", "adaptive", "spin"]),
            ("lease = \"1ms\"", &["m.toml:3: lease", "100ms to 1h"]),
            ("lease = 10", &["m.toml:3: lease", "in quotes"]),
            ("grants_max = 1000", &["m.toml:3: grants_max", "power of two"]),
            ("slots = 257", &["m.toml:3: slots", "1 to 256"]),
            ("listen = \"shm:///again\"", &["m.toml:3:", "duplicate key"]),
            ("slots = ", &["m.toml:3:"]),
        ] {
            let message = read(&format!("{GOOD}{extra}\n")).unwrap_err().message;
            for hint in hints {
                assert!(message.contains(hint), "{extra}: no {hint:?} in {message:?}");
            }
        }
        let message = read("listen = \"shm:///a\"\n").unwrap_err().message;
        assert!(message.contains("directory is missing"), "{message}");
        let message = read("directory = \"/m\"\n").unwrap_err().message;
        assert!(message.contains("listen is missing"), "{message}");
    }
}
