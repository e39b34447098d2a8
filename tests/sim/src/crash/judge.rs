//! Whether what is there is what must be there.

use std::collections::BTreeMap;

use gannet_disk::ram::RamDisk;
use gannet_disk::{Disk, FileId};
use gannet_metaserver::check::{CheckOptions, LogFile, Severity, check_logs};

use super::auditor::Seen;
use super::player::Progress;
use super::tree::{Node, NodeId, Tree};
use crate::disk::SimMedium;

/// Findings of a kind that are told.
const KEPT_MAX: usize = 5;

/// Which host a path belongs to: the first name that begins with a digit says so; what has none is
/// the stage, which host 0 builds.
fn owner(path: &str) -> u8 {
    let digits = path.split('/').filter_map(|name| name.bytes().next().filter(u8::is_ascii_digit));
    digits.map(|digit| digit - b'0').next().unwrap_or(0)
}

/// What became of steps that were outstanding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// They are there.
    pub whole: u32,
    /// They are not.
    pub absent: u32,
}

/// Compares what an auditor has seen with what the hosts have done.
///
/// # Errors
/// What does not fit.
pub fn compare(seen: &BTreeMap<String, Seen>, hosts: &[Progress]) -> Result<Fates, String> {
    let mut fates = Fates::default();
    for path in seen.keys() {
        if !hosts.iter().any(|host| host.number == owner(path)) {
            return Err(format!("{path} is there, and nobody made it"));
        }
    }
    for host in hosts {
        let own: BTreeMap<&str, &Seen> = seen
            .iter()
            .filter(|(path, _)| owner(path) == host.number)
            .map(|(path, seen)| (path.as_str(), seen))
            .collect();
        let candidates = host.candidates();
        let wrong: Vec<Option<String>> =
            candidates.iter().map(|tree| fits(&own, host, tree).err()).collect();
        match wrong[..] {
            [None, Some(_)] => fates.absent += 1,
            [Some(_), None] => fates.whole += 1,
            _ => {}
        }
        let wrong: Option<Vec<String>> = wrong.into_iter().collect();
        if let Some(wrong) = wrong {
            let Progress { number, acknowledged, script, .. } = host;
            let last = acknowledged.checked_sub(1).map(|last| script[last]);
            let next = script.get(*acknowledged).filter(|_| host.is_outstanding);
            return Err(format!(
                "host {number} had {acknowledged} steps acknowledged, the last {last:?}, and {next:?} \
                 outstanding: {}",
                wrong.join("; or with it: ")
            ));
        }
    }
    Ok(fates)
}

/// Whether what is there of a host is this tree.
fn fits(seen: &BTreeMap<&str, &Seen>, host: &Progress, tree: &Tree) -> Result<(), String> {
    let paths = tree.paths();
    let own = || paths.iter().filter(|(path, _)| owner(path) == host.number);
    if let Some(path) = seen.keys().find(|path| !paths.contains_key(**path)) {
        return Err(format!("{path} is there"));
    }
    let mut handles: BTreeMap<NodeId, _> = host.handles.clone();
    for (path, node) in own() {
        let Some(found) = seen.get(path.as_str()) else {
            return Err(format!("{path} is not there"));
        };
        // One inode has one handle, whatever leads to it.
        let handle = *handles.entry(*node).or_insert(found.handle);
        if handle != found.handle {
            return Err(format!("{path} leads to {:?} instead of {handle:?}", found.handle));
        }
        match tree.node(*node) {
            Node::Directory(_) if found.is_directory => {}
            Node::File(content) if !found.is_directory => {
                if found.links != tree.links(*node) {
                    let links = tree.links(*node);
                    return Err(format!("{path} has {} links instead of {links}", found.links));
                }
                if found.size != found.content.len() as u64 {
                    let len_bytes = found.content.len();
                    return Err(format!("{path} has size {} and {len_bytes} bytes", found.size));
                }
                if *content != found.content {
                    return Err(format!("{path}: {}", difference(content, &found.content)));
                }
            }
            _ => return Err(format!("{path} is something else")),
        }
    }
    Ok(())
}

/// Where two contents differ, in words.
#[must_use]
pub fn difference(expected: &[u8], found: &[u8]) -> String {
    let lengths = format!("{} bytes instead of {}", found.len(), expected.len());
    match expected.iter().zip(found).position(|(one, other)| one != other) {
        Some(at) => {
            let until = |bytes: &[u8]| bytes[at..bytes.len().min(at + 8)].to_vec();
            let (expected, found) = (until(expected), until(found));
            format!("{lengths}, at {at} {found:02x?} instead of {expected:02x?}")
        }
        None => lengths,
    }
}

/// Checks the logs on a medium as `gannet fsck` does. `at_rest`: nothing may be unfinished either.
///
/// # Errors
/// What was found.
///
/// # Panics
/// Without memory.
pub fn check(medium: &SimMedium, reactors: usize, at_rest: bool) -> Result<(), String> {
    // A copy: the check waits for its disk in real time.
    let mut disk = RamDisk::new(64).expect("a descriptor");
    for file in (0..medium.files() as u32).map(FileId) {
        let len_bytes = medium.len_bytes(file);
        let copy = disk.create(len_bytes, len_bytes).expect("memory");
        let mut bytes = vec![0; len_bytes as usize];
        medium.content(file, 0, &mut bytes);
        let view = disk.resident(copy, 0, bytes.len()).expect("a file in memory");
        view.copy_in(0, &bytes);
    }
    let logs: Vec<LogFile> = (0..reactors as u32)
        .map(|reactor| LogFile { file: FileId(reactor), name: format!("log.{reactor}") })
        .collect();
    let options = CheckOptions { kept_max: KEPT_MAX, in_order: true };
    let report = check_logs(&mut disk, &logs, options).map_err(|error| error.to_string())?;
    let found: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| at_rest || finding.severity == Severity::Error)
        .map(ToString::to_string)
        .collect();
    match (found.is_empty(), &report.state) {
        (true, Some(_)) => Ok(()),
        (true, None) => Err("fsck cannot tell what is there".to_owned()),
        (false, _) => Err(format!("fsck: {}", found.join("; "))),
    }
}
