//! Checks the logs of a metadata server that is stopped, for `gannet fsck`.
//!
//! Every log is read by the recovery that a start uses and replayed into a real core, then the cores
//! are checked together ([`gannet_meta_core::check`]). Nothing is written: not a frame, not the
//! length of a file. Whoever calls holds the logs' locks (rule H13), so no server writes meanwhile.
//!
//! What can be said is a finding; what keeps a check from saying anything is a [`CheckError`].

mod read;

use gannet_disk::{Disk, FileId};
use gannet_meta_core::Core;
use gannet_meta_core::check::check_replayed;
use gannet_proto::limits::REACTORS_MAX;

use crate::log::decision::LogEnd;
use crate::log::recovery::RecoveryError;
use crate::log::superblock::{Superblock, SuperblockError};
use read::Reader;

pub use gannet_meta_core::check::{
    Finding, FindingKind, Findings, Place, Severity, StoreSummary, Summary,
};

/// A log to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The open file.
    pub file: FileId,
    /// What it is called in messages.
    pub name: String,
}

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Findings of a kind that are told in words.
    pub kept_max: usize,
    /// The logs are named in the order of their reactors.
    pub in_order: bool,
}

/// Why logs cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A log cannot be read at all.
    #[error("{log}: {source}")]
    Log {
        /// Which log.
        log: String,
        /// Why.
        source: RecoveryError,
    },
    /// A log of the file system was not named.
    #[error(
        "the file system has {reactors} reactors, and the log of reactor {missing} is not among \
         those named: name all of them, or the server's configuration"
    )]
    Incomplete {
        /// How many reactors there are.
        reactors: u16,
        /// The first one whose log is missing.
        missing: u16,
    },
    /// Two logs are of one reactor.
    #[error("{one} and {other} are both the log of reactor {reactor}: name each log once")]
    Twice {
        /// Which reactor.
        reactor: u16,
        /// One log.
        one: String,
        /// The other log.
        other: String,
    },
    /// Logs are of different file systems.
    #[error("{one} and {other} are logs of different file systems: name those of one")]
    OtherFileSystem {
        /// One log.
        one: String,
        /// The other log.
        other: String,
    },
    /// There are none, or more than a file system has.
    #[error("{0} logs: a file system has 1 to {REACTORS_MAX}")]
    Count(usize),
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
}

/// What a log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogReport {
    /// What it is called.
    pub name: String,
    /// Its superblock, unless that is damaged.
    pub superblock: Option<Superblock>,
    /// Frames that were read.
    pub frames: u64,
    /// Records that were applied.
    pub records: u64,
    /// Where the first byte lies that belongs to no frame that was read.
    pub end_bytes: u64,
    /// Run of the server that wrote the last frame.
    pub term: u64,
    /// How it ends; `None` if it could not be read to its end.
    pub end: Option<LogEnd>,
}

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// The logs, in the order in which they were named.
    pub logs: Vec<LogReport>,
    /// What there is; `None` if the logs do not tell, as some finding says.
    pub state: Option<Summary>,
    /// Everything that is not as it should be.
    pub findings: Findings,
}

/// Checks the logs of all reactors of a file system.
///
/// # Errors
/// What keeps the check from coming to a result, see [`CheckError`].
pub fn check_logs<D: Disk>(
    disk: &mut D,
    logs: &[LogFile],
    options: CheckOptions,
) -> Result<CheckReport, CheckError> {
    if logs.is_empty() || logs.len() > REACTORS_MAX {
        return Err(CheckError::Count(logs.len()));
    }
    let mut findings = Findings::new(options.kept_max);
    let mut reader = Reader::new(disk)?;
    let mut superblocks = Vec::with_capacity(logs.len());
    for (place, log) in logs.iter().enumerate() {
        let superblock = reader.superblock(log, &mut findings)?;
        if let Some(superblock) = &superblock
            && options.in_order
            && usize::from(superblock.reactor.get()) != place
        {
            findings.error(FindingKind::LogsDiffer, Place::default(), || {
                format!("{} is the log of reactor {}", log.name, superblock.reactor)
            });
        }
        superblocks.push(superblock);
    }
    let belong_together = check_together(logs, &superblocks, &mut findings)?;
    let mut reports = Vec::with_capacity(logs.len());
    let mut cores = Vec::with_capacity(logs.len());
    for (log, superblock) in logs.iter().zip(&superblocks) {
        let Some(superblock) = superblock else {
            reports.push(unread(log));
            continue;
        };
        let (report, core) = reader.replay(log, superblock, &mut findings)?;
        reports.push(report);
        cores.extend(core.map(|core| (superblock.reactor.get(), core)));
    }
    let whole = belong_together && cores.len() == logs.len();
    let state = whole.then(|| {
        cores.sort_by_key(|(reactor, _)| *reactor);
        let mut cores: Vec<Core> = cores.into_iter().map(|(_, core)| core).collect();
        check_replayed(&mut cores, &mut findings)
    });
    Ok(CheckReport { logs: reports, state, findings })
}

/// The report on a log of which not even the superblock can be read.
fn unread(log: &LogFile) -> LogReport {
    let name = log.name.clone();
    LogReport { name, superblock: None, frames: 0, records: 0, end_bytes: 0, term: 0, end: None }
}

/// Whether the logs are those of one file system, each of another reactor, and agree on its layout.
/// What was named wrongly is an error, what cannot be is a finding.
fn check_together(
    logs: &[LogFile],
    superblocks: &[Option<Superblock>],
    findings: &mut Findings,
) -> Result<bool, CheckError> {
    let named = || logs.iter().zip(superblocks);
    let known: Vec<(&LogFile, &Superblock)> =
        named().filter_map(|(log, superblock)| Some((log, superblock.as_ref()?))).collect();
    let Some(((first_log, first), rest)) = known.split_first() else { return Ok(false) };
    let mut agree = known.len() == logs.len();
    for (log, superblock) in rest {
        if superblock.file_system_uuid != first.file_system_uuid {
            let (one, other) = (first_log.name.clone(), log.name.clone());
            return Err(CheckError::OtherFileSystem { one, other });
        }
        let layout = |s: &Superblock| {
            (s.reactors, s.stripe_width, s.stripe_blocks, s.map_version, s.shard_map)
        };
        if layout(superblock) != layout(first) {
            agree = false;
            findings.error(FindingKind::LogsDiffer, Place::default(), || {
                let (one, other) = (&first_log.name, &log.name);
                format!("{one} and {other} say different things of the file system's layout")
            });
        }
    }
    for (index, (log, superblock)) in known.iter().enumerate() {
        let same = |other: &&(&LogFile, &Superblock)| other.1.reactor == superblock.reactor;
        if let Some((other, _)) = known[..index].iter().find(same) {
            let (one, other) = (other.name.clone(), log.name.clone());
            return Err(CheckError::Twice { reactor: superblock.reactor.get(), one, other });
        }
    }
    let reactors = first.reactors.get();
    if usize::from(reactors) > logs.len() {
        let is_there = |reactor: u16| known.iter().any(|(_, s)| s.reactor.get() == reactor);
        let missing = (0..reactors).find(|reactor| !is_there(*reactor)).unwrap_or(0);
        return Err(CheckError::Incomplete { reactors, missing });
    }
    if usize::from(reactors) < logs.len() {
        return Err(CheckError::Count(logs.len()));
    }
    Ok(agree)
}

/// Whether a superblock tells of damage, and not of something that is no log of this version.
fn is_damage(error: &SuperblockError) -> bool {
    match error {
        SuperblockError::Checksum | SuperblockError::Field { .. } => true,
        SuperblockError::Magic
        | SuperblockError::Version { .. }
        | SuperblockError::Features { .. } => false,
    }
}

#[cfg(test)]
mod tests;
