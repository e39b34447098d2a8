//! The configuration of `gannet target`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_fabric::Address;
use gannet_fabric::any::FabricOptions;
use gannet_proto::limits::STORES_PER_TARGET_MAX;
use gannet_runtime::idle::IdlePolicy;
use gannet_target::store::STORE_BYTES_MIN;
use serde::Deserialize;
use toml::Spanned;

use super::document::{CORE_MAX, Document, Field};
use super::fabric::{FabricKeys, RdmaKeys, TcpKeys, fabric_options};
use crate::failure::Failure;

/// Smallest and largest store, bytes.
pub(crate) const STORE_BYTES: (u64, u64) = (STORE_BYTES_MIN, 1 << 50);
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// The keys of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    listen: Field,
    metaserver: Field,
    cores: Field,
    idle: Field,
    handshake_timeout: Field,
    stop_grace: Field,
    trusted_uids: Field,
    trusted_hosts: Field,
    rdma: Option<Spanned<RdmaKeys>>,
    tcp: Option<Spanned<TcpKeys>>,
    #[serde(default)]
    store: Vec<Spanned<StoreKeys>>,
}

/// The keys of a `[[store]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreKeys {
    path: Field,
    kind: Field,
    size: Field,
}

/// Where a store keeps its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StorePlace {
    /// In a file in a directory.
    Directory {
        /// Bytes of blocks.
        size_bytes: u64,
    },
    /// On a whole block device.
    Device,
    /// In memory; the directory holds the superblock only.
    Ram {
        /// Bytes of blocks.
        size_bytes: u64,
    },
}

/// A store of a data server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreSettings {
    /// The directory or device.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) place: StorePlace,
}

/// Settings of a data server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetSettings {
    /// Where hosts connect; at least one.
    pub(crate) listen: Vec<Address>,
    /// Where reactor 0 of the metadata server listens, on any fabric.
    pub(crate) metaserver: Address,
    /// The core of the reactor; `None` leaves it to the scheduler.
    pub(crate) core: Option<usize>,
    /// How the reactor waits for work.
    pub(crate) idle: IdlePolicy,
    /// How long a peer may take to say who it is.
    pub(crate) handshake_timeout: Duration,
    /// How long an orderly end may take.
    pub(crate) stop_grace: Duration,
    /// The fabrics, and who may connect.
    pub(crate) fabric: FabricOptions,
    /// At least one.
    pub(crate) stores: Vec<StoreSettings>,
}

impl TargetSettings {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<TargetSettings, Failure> {
        TargetSettings::of(&Document::read(path)?)
    }

    fn of(document: &Document) -> Result<TargetSettings, Failure> {
        let keys: Keys = document.parse()?;
        let listen = document.listen("listen", &keys.listen)?.ok_or_else(|| {
            document.missing("listen", "listen = \"shm:///run/gannet/target-0.sock\"")
        })?;
        let metaserver = document.server("metaserver", &keys.metaserver)?.ok_or_else(|| {
            document.missing("metaserver", "metaserver = \"shm:///run/gannet/meta.sock\"")
        })?;
        if let Some(value) = &keys.metaserver
            && listen.contains(&metaserver)
        {
            let what = format!("{metaserver} is also this data server's own listen address");
            return Err(document.refuse(value.span(), "metaserver", what));
        }
        let fabric = fabric_options(
            document,
            &listen,
            Some(&metaserver),
            &FabricKeys {
                trusted_uids: &keys.trusted_uids,
                trusted_hosts: &keys.trusted_hosts,
                rdma: &keys.rdma,
                tcp: &keys.tcp,
            },
        )?;
        let cores = document.integers("cores", &keys.cores, 0..=CORE_MAX)?.unwrap_or_default();
        if let Some(value) = &keys.cores
            && cores.len() > 1
        {
            let what = format!("{} cores: a data server runs on one", cores.len());
            return Err(document.refuse(value.span(), "cores", what));
        }
        let timeout = |key, field| document.duration(key, field, TIMEOUT.0..=TIMEOUT.1);
        let seconds = Duration::from_secs;
        Ok(TargetSettings {
            listen,
            metaserver,
            core: cores.first().map(|core| *core as usize),
            idle: document.idle("idle", &keys.idle)?.unwrap_or_default(),
            handshake_timeout: timeout("handshake_timeout", &keys.handshake_timeout)?
                .unwrap_or(seconds(5)),
            stop_grace: timeout("stop_grace", &keys.stop_grace)?.unwrap_or(seconds(5)),
            fabric,
            stores: stores(document, &keys.store)?,
        })
    }
}

fn stores(document: &Document, keys: &[Spanned<StoreKeys>]) -> Result<Vec<StoreSettings>, Failure> {
    if keys.is_empty() {
        let example = "[[store]] with path = \"/var/lib/gannet/store-0\", kind = \"directory\" and \
                       size = \"10G\"";
        return Err(document.missing("store", example));
    }
    if let Some(extra) = keys.get(STORES_PER_TARGET_MAX) {
        let what =
            format!("{} stores: a data server has at most {STORES_PER_TARGET_MAX}", keys.len());
        return Err(document.refuse(extra.span(), "store", what));
    }
    let mut stores: Vec<StoreSettings> = Vec::with_capacity(keys.len());
    for spanned in keys {
        let store = store(document, spanned)?;
        if stores.iter().any(|other| other.path == store.path) {
            let what = format!("{} is named twice", store.path.display());
            return Err(document.refuse(spanned.span(), "store.path", what));
        }
        stores.push(store);
    }
    Ok(stores)
}

fn store(document: &Document, spanned: &Spanned<StoreKeys>) -> Result<StoreSettings, Failure> {
    let keys = spanned.as_ref();
    let missing = |key: &str, example: &str| {
        document.refuse(spanned.span(), key, format!("missing in this store: add {example}"))
    };
    let path = document
        .path("store.path", &keys.path)?
        .ok_or_else(|| missing("store.path", "path = \"/var/lib/gannet/store-0\""))?;
    let kind = document
        .parsed("store.kind", &keys.kind, |text| match text {
            "directory" | "device" | "ram" => Ok(text.to_owned()),
            _ => Err(format!(
                "{text:?} is no kind of store: use \"directory\", \"device\" or \"ram\""
            )),
        })?
        .ok_or_else(|| missing("store.kind", "kind = \"directory\", \"device\" or \"ram\""))?;
    let size = document.size("store.size", &keys.size, STORE_BYTES.0..=STORE_BYTES.1)?;
    let needed = || size.ok_or_else(|| missing("store.size", "size = \"10G\""));
    let place = match kind.as_str() {
        "directory" => StorePlace::Directory { size_bytes: needed()? },
        "ram" => StorePlace::Ram { size_bytes: needed()? },
        _ => {
            if let Some(value) = &keys.size {
                let what = "a device is used as a whole: leave size out";
                return Err(document.refuse(value.span(), "store.size", what));
            }
            StorePlace::Device
        }
    };
    Ok(StoreSettings { path, place })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = "listen = \"shm:///run/t.sock\"\nmetaserver = \"shm:///run/m.sock\"\n";
    const STORE: &str = "[[store]]\npath = \"/s\"\nkind = \"directory\"\nsize = \"1G\"\n";

    fn read(text: &str) -> Result<TargetSettings, Failure> {
        TargetSettings::of(&Document::new(Path::new("t.toml"), text.to_owned()))
    }

    #[test]
    fn stores_of_every_kind_are_read() {
        let text = format!(
            "{GOOD}cores = [3]\nidle = \"spin\"\nhandshake_timeout = \"1s\"\n\
             stop_grace = \"3s\"\ntrusted_uids = [7]\n{STORE}\
             [[store]]\npath = \"/dev/x\"\nkind = \"device\"\n\
             [[store]]\npath = \"/r\"\nkind = \"ram\"\nsize = 2097152\n"
        );
        let settings = read(&text).unwrap();
        assert_eq!(settings.core, Some(3));
        assert_eq!(settings.idle, IdlePolicy::Spin);
        assert_eq!(settings.handshake_timeout, Duration::from_secs(1));
        assert_eq!(settings.stop_grace, Duration::from_secs(3));
        let shm = &settings.fabric.shm;
        assert_eq!(shm.trusted_uids, [7]);
        let places: Vec<StorePlace> = settings.stores.iter().map(|store| store.place).collect();
        let expected = [
            StorePlace::Directory { size_bytes: 1 << 30 },
            StorePlace::Device,
            StorePlace::Ram { size_bytes: 2 << 20 },
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn fabrics_may_differ() {
        let text = format!(
            "listen = [\"shm:///run/t.sock\", \"tcp://10.0.0.2:7480\"]\n\
             metaserver = \"rdma://10.0.0.1:7470\"\n{STORE}\
             [rdma]\nacknowledge_timeout = \"67ms\"\n[tcp]\npeer_timeout = \"3s\"\n"
        );
        let settings = read(&text).unwrap();
        let listen: Vec<String> = settings.listen.iter().map(Address::to_string).collect();
        assert_eq!(listen, ["shm:///run/t.sock", "tcp://10.0.0.2:7480"]);
        assert_eq!(settings.fabric.verbs.acknowledge_timeout, Duration::from_millis(67));
        assert_eq!(settings.fabric.tcp.peer_timeout, Duration::from_secs(3));
        // Nobody connects to it over RDMA.
        let text = text.replace("\"shm:///run/t.sock\", \"tcp://10.0.0.2:7480\"", "\"shm:///t\"");
        let message = read(&format!("trusted_hosts = [\"10.0.0.0/8\"]\n{text}")).unwrap_err();
        let message = message.message;
        assert!(message.contains("t.toml:1: trusted_hosts: listen is shm:///t,"), "{message}");
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_key() {
        for (text, hints) in [
            (GOOD.to_owned(), &["store is missing", "kind"][..]),
            (format!("{GOOD}cores = [0, 1]\n{STORE}"), &["t.toml:3: cores", "one"]),
            (format!("{GOOD}{STORE}{STORE}"), &["t.toml:7: store.path", "/s", "twice"]),
            (format!("{GOOD}[[store]]\nkind = \"ram\"\n"), &["t.toml:3: store.path", "missing"]),
            (format!("{GOOD}[[store]]\npath = \"/s\"\n"), &["store.kind", "directory"]),
            (
                format!("{GOOD}[[store]]\npath = \"/s\"\nkind = \"tape\"\n"),
                &["t.toml:5: store.kind", "tape", "directory", "device", "ram"],
            ),
            (
                format!("{GOOD}[[store]]\npath = \"/s\"\nkind = \"ram\"\n"),
                &["store.size", "missing"],
            ),
            (
                format!("{GOOD}[[store]]\npath = \"/s\"\nkind = \"ram\"\nsize = \"1K\"\n"),
                &["t.toml:6: store.size", "1K", "2M to 1P"],
            ),
            (
                format!("{GOOD}[[store]]\npath = \"/d\"\nkind = \"device\"\nsize = \"1G\"\n"),
                &["t.toml:6: store.size", "leave size out"],
            ),
            (
                format!("{GOOD}[[store]]\npath = \"s\"\nkind = \"device\"\n"),
                &["t.toml:4: store.path", "absolute"],
            ),
            (format!("{GOOD}{STORE}sise = 1\n"), &["t.toml:7:", "unknown key `sise`", "`size`"]),
            (
                "listen = [\"tcp://h:1\", \"shm:///a\"]\nmetaserver = \"shm:///a\"\n".to_owned(),
                &["t.toml:2: metaserver", "own listen"],
            ),
            (format!("{GOOD}{}", STORE.repeat(17)), &["17 stores", "at most 16"]),
        ] {
            let message = read(&text).unwrap_err().message;
            for hint in hints {
                assert!(message.contains(hint), "{text}: no {hint:?} in {message:?}");
            }
        }
    }
}
