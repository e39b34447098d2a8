//! One reactor's part of the metadata server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::{BLOCK_BYTES, Disk, FileId};
use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_metaserver::format::{LOG_BYTES, format_resident, formatted_reactors, log_path};
use gannet_metaserver::peers::PeerLinks;
use gannet_metaserver::{MetaServer, MetaServerConfig};
use gannet_runtime::poller::Poller;

use super::{check_directories, disk_failure, disk_options};
use crate::fabric::open_fabrics;
use crate::failure::Failure;
use crate::process::LateStats;
use crate::watch::{Role, Watch, Watched};

/// Most that a log in memory grows to, bytes. Only what is written takes memory, but the kernel
/// refuses address space that a small machine could never fill.
const RAM_LOG_BYTES_MAX: u64 = 1 << 30;

/// Where a reactor's log is.
#[derive(Clone, Debug)]
pub(crate) enum LogPlace {
    /// In a file that exists.
    File {
        /// The log.
        path: PathBuf,
        /// How long to wait for another process to let go of it.
        lock_wait: Duration,
    },
    /// In memory, formatted when the role is built.
    Ram {
        /// Names the file system.
        file_system_uuid: [u8; 16],
    },
}

/// What a reactor of the metadata server is built from.
pub(crate) struct MetaServerPlan {
    /// The reactor's settings.
    pub(crate) config: MetaServerConfig,
    /// Its log.
    pub(crate) log: LogPlace,
    /// Its ends of the rings to the other reactors.
    pub(crate) links: PeerLinks,
    /// Its fabric.
    pub(crate) fabric: FabricOptions,
}

impl MetaServerPlan {
    pub(super) fn build(
        self: Box<Self>,
        watch: &Watch,
        stats: &LateStats,
    ) -> Result<(String, Box<dyn Poller>), Failure> {
        let name = format!("metadata server reactor {}", self.config.reactor);
        let listen = &self.config.addresses[usize::from(self.config.reactor)];
        check_directories(listen)?;
        let fabric = open_fabrics(self.fabric.clone(), listen)?;
        let (disk, log_file, log_name) = self.open_log()?;
        let mut server = MetaServer::new(self.config, fabric, disk, log_file, log_name, self.links)
            .map_err(Failure::operation)?;
        server.set_reactor_counters(super::reactor_counters(stats));
        let watched = Watched::new(server, name.clone(), watch.clone());
        Ok((name, Box::new(watched)))
    }

    fn open_log(&self) -> Result<(AnyDisk, FileId, String), Failure> {
        let (reactor, reactors) = (self.config.reactor, self.config.addresses.len() as u16);
        match &self.log {
            LogPlace::File { path, lock_wait } => {
                let mut disk = AnyDisk::new(&disk_options()).map_err(disk_failure)?;
                let options = OpenOptions { lock_wait: *lock_wait, ..OpenOptions::default() };
                let file = disk.open(path, &options).map_err(disk_failure)?;
                if let Some(reason) = disk.file(file).and_then(|file| file.buffered_reason()) {
                    tracing::info!(log = %path.display(), reason, "the page cache is used");
                }
                Ok((disk, file, path.display().to_string()))
            }
            LogPlace::Ram { file_system_uuid } => {
                let mut disk = AnyDisk::ram_only(disk_options().entries).map_err(disk_failure)?;
                let file = disk.create_ram(LOG_BYTES, RAM_LOG_BYTES_MAX).map_err(disk_failure)?;
                let start = disk.resident(file, 0, BLOCK_BYTES).ok_or_else(|| {
                    Failure::operation("a log in memory has no room for its superblock")
                })?;
                format_resident(&start, *file_system_uuid, reactor, reactors);
                Ok((disk, file, format!("in memory of reactor {reactor}")))
            }
        }
    }
}

impl Role for MetaServer<AnyFabric, AnyDisk> {
    fn is_ready(&self) -> bool {
        self.is_serving()
    }

    fn failure(&self) -> Option<&str> {
        MetaServer::failure(self)
    }
}

/// Checks that a directory holds the logs of `reactors` reactors.
///
/// # Errors
/// What is there instead; `format_command` is how to make what is missing.
pub(crate) fn check_formatted(
    directory: &Path,
    reactors: usize,
    format_command: &str,
) -> Result<(), Failure> {
    std::fs::read_dir(directory)
        .map_err(|error| Failure::path("the metadata directory", directory, &error))?;
    match formatted_reactors(directory) {
        Some(formatted) if formatted == reactors => Ok(()),
        Some(formatted) => Err(Failure::operation(format!(
            "{} was formatted for {formatted} reactors, {reactors} are configured: configure \
             reactors = {formatted}",
            directory.display()
        ))),
        None => {
            let log = log_path(directory, 0);
            // Tells a log that may not be seen from one that is not there.
            match std::fs::metadata(&log) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Failure::path("the metadata log", &log, &error))
                }
                _ => Err(Failure::operation(format!(
                    "{} holds no metadata log: format it first with `{format_command}`",
                    directory.display()
                ))),
            }
        }
    }
}
