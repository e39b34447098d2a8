//! A data server.

use gannet_disk::any::AnyDisk;
use gannet_fabric::any::AnyFabric;
use gannet_runtime::poller::Poller;
use gannet_target::{StoreKind, StoreSpec, Target, TargetConfig, open_store};

use super::{check_directories, disk_failure, disk_options};
use crate::config::{StorePlace, StoreSettings, TargetSettings};
use crate::fabric::open_fabrics;
use crate::failure::Failure;
use crate::process::LateStats;
use crate::watch::{Role, Watch, Watched};

/// What a data server is built from.
pub(crate) struct TargetPlan {
    /// Which one, for people.
    pub(crate) name: String,
    /// Its settings.
    pub(crate) settings: TargetSettings,
    /// The command that formats its stores, for error messages.
    pub(crate) format_command: String,
}

impl TargetPlan {
    pub(super) fn build(
        self: Box<Self>,
        watch: &Watch,
        stats: &LateStats,
    ) -> Result<(String, Box<dyn Poller>), Failure> {
        let TargetPlan { name, settings, format_command } = *self;
        check_directories(&settings.listen)?;
        let specs: Vec<StoreSpec> = settings.stores.iter().map(spec).collect();
        let uuid = owner(&specs, &format_command)?;
        let only_ram = specs.iter().all(|spec| matches!(spec.kind, StoreKind::Ram { .. }));
        let mut disk = if only_ram {
            AnyDisk::ram_only(disk_options().entries).map_err(disk_failure)?
        } else {
            AnyDisk::new(&disk_options()).map_err(disk_failure)?
        };
        let mut stores = Vec::with_capacity(specs.len());
        for spec in &specs {
            let store = open_store(&mut disk, spec, uuid).map_err(Failure::operation)?;
            if let Some(reason) = disk.file(store.file).and_then(|file| file.buffered_reason()) {
                tracing::info!(store = %spec.path.display(), reason, "the page cache is used");
            }
            stores.push(store);
        }
        let fabric = open_fabrics(settings.fabric, &settings.listen)?;
        let instance = getrandom::u64().map_err(Failure::operation)?;
        let mut config = TargetConfig::new(uuid, instance, settings.listen, settings.metaserver);
        config.timing.handshake_timeout = settings.handshake_timeout;
        let mut target = Target::new(config, fabric, disk, stores).map_err(Failure::operation)?;
        target.set_reactor_counters(super::reactor_counters(stats));
        let watched = Watched::new(target, name.clone(), watch.clone());
        Ok((name, Box::new(watched)))
    }
}

impl Role for Target<AnyFabric, AnyDisk> {
    fn is_ready(&self) -> bool {
        self.is_welcomed()
    }

    fn failure(&self) -> Option<&str> {
        None
    }
}

/// A store as the data server knows it.
pub(crate) fn spec(settings: &StoreSettings) -> StoreSpec {
    let kind = match settings.place {
        StorePlace::Directory { size_bytes } => StoreKind::Directory { size_bytes },
        StorePlace::Device => StoreKind::Device,
        StorePlace::Ram { size_bytes } => StoreKind::Ram { size_bytes },
    };
    StoreSpec { path: settings.path.clone(), kind }
}

/// The data server that the stores belong to.
fn owner(specs: &[StoreSpec], format_command: &str) -> Result<[u8; 16], Failure> {
    let Some(first) = specs.first() else {
        return Err(Failure::usage("a data server needs a store"));
    };
    gannet_target::store::store_target(first).map_err(|error| match error.problem {
        gannet_target::store::StoreProblem::NotFormatted => Failure::operation(format!(
            "{} holds no store: format it first with `{format_command}`",
            first.path.display()
        )),
        _ => Failure::operation(error),
    })
}
