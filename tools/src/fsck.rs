//! `gannet fsck`: checks the metadata of a server that is stopped.
//!
//! The logs of all reactors are opened and locked as a server does (rule H13), so none runs
//! meanwhile, and are only read.

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use gannet_disk::DiskError;
use gannet_disk::any::AnyDisk;
use gannet_disk::open::OpenOptions;
use gannet_disk::uring::UringOptions;
use gannet_metaserver::check::{CheckOptions, LogFile, Severity, check_logs};
use gannet_metaserver::format::{formatted_reactors, log_path};

use crate::config::MetaServerSettings;
use crate::failure::Failure;
use crate::roles::check_formatted;

/// How long to wait for a log that another process holds: the last I/O of one that was just killed
/// takes less, a server that runs keeps it.
const LOCK_WAIT: Duration = Duration::from_secs(1);

const FSCK_HELP: &str = "\
Reads the metadata logs of a server that does not run, and checks whether all that they say can be:
the tree of names, files and their blocks, free space, sessions, over all reactors together. Nothing
is changed, and nothing is repaired. The logs have to be writable, since they are locked meanwhile.

Each finding is one line: an error is damage; \"unfinished, harmless\" is what an operation over two
shards left when the server was killed. What the words mean: docs/operations.md

Examples:
  gannet fsck --config meta.toml
  gannet fsck /var/lib/gannet/meta              a directory of logs
  gannet fsck backup/log.0 backup/log.1 --json

Exit codes: 0 no error was found, 1 it could not be checked, 2 the command or a configuration is
wrong, 3 errors were found.";

/// `gannet fsck`.
#[derive(Debug, Args)]
#[command(after_help = FSCK_HELP)]
pub(crate) struct FsckArguments {
    /// The configuration of the metadata server, a TOML file.
    #[arg(long, value_name = "FILE", conflicts_with = "logs", required_unless_present = "logs")]
    config: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Most findings of a kind to list, 1 to 1000000; all are counted.
    #[arg(long, value_name = "N", default_value_t = 20, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    most: u32,
    /// The logs of all reactors, or the directory that holds them.
    #[arg(value_name = "LOG")]
    logs: Vec<PathBuf>,
}

/// Checks, and shows what was found.
///
/// # Errors
/// When it cannot be checked, and when errors were found.
pub(crate) fn run(arguments: &FsckArguments) -> Result<(), Failure> {
    let (paths, in_order) = logs(arguments)?;
    let mut disk = AnyDisk::new(&UringOptions::default()).map_err(Failure::operation)?;
    let options = OpenOptions { lock_wait: LOCK_WAIT, ..OpenOptions::default() };
    let mut logs = Vec::with_capacity(paths.len());
    for path in &paths {
        let file = disk.open(path, &options).map_err(refused)?;
        logs.push(LogFile { file, name: path.display().to_string() });
    }
    let options = CheckOptions { kept_max: arguments.most as usize, in_order };
    let report = check_logs(&mut disk, &logs, options)
        .map_err(|error| Failure::operation(format!("it cannot be checked: {error}")))?;
    let text = match arguments.json {
        true => format!("{:#}\n", report::json(&report)),
        false => report::text(&report),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::operation(format!("writing to standard output: {error}")))?;
    match report.findings.count(Severity::Error) {
        0 => Ok(()),
        1 => Err(Failure::findings("1 error was found")),
        count => Err(Failure::findings(format!("{count} errors were found"))),
    }
}

/// The logs to check, and whether they come in the order of their reactors.
fn logs(arguments: &FsckArguments) -> Result<(Vec<PathBuf>, bool), Failure> {
    if let Some(config) = &arguments.config {
        let settings = MetaServerSettings::read(config)?;
        let format_command = format!("gannet metaserver format --config {}", config.display());
        check_formatted(&settings.directory, settings.reactors(), &format_command)?;
        return Ok((logs_in(&settings.directory, settings.reactors()), true));
    }
    match &arguments.logs[..] {
        [directory] if directory.is_dir() => match formatted_reactors(directory) {
            Some(reactors) => Ok((logs_in(directory, reactors), true)),
            None => Err(Failure::operation(format!(
                "{} holds no metadata log (log.0): name a metadata directory or its logs",
                directory.display()
            ))),
        },
        paths => Ok((paths.to_vec(), false)),
    }
}

fn logs_in(directory: &Path, reactors: usize) -> Vec<PathBuf> {
    (0..reactors).map(|reactor| log_path(directory, reactor)).collect()
}

fn refused(error: DiskError) -> Failure {
    match error {
        DiskError::InUse { path } => Failure::operation(format!(
            "{path} is in use by another process: the metadata server runs, or another check does; \
             stop it first"
        )),
        error => Failure::operation(error),
    }
}
