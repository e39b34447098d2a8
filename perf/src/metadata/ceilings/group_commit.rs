//! How many changes per second the place of a log allows: as if every operation that is outstanding
//! went into one group, and each group cost one synchronous write of the group's size and nothing else.
//!
//! The writes are direct where the file system can do it, `RWF_DSYNC` as the server's, and go to blocks
//! that were written before, so that no change of the file system's own has to follow.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::time::Duration;

use gannet_disk::open::{LockedFile, OpenOptions};
use gannet_metaserver::log::frame::{PAYLOAD_BYTES_MAX, padded_bytes};
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;
use rustix::io::ReadWriteFlags;
use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::metadata::names::NAME_BYTES;
use crate::metadata::options::{MetadataOperation, MetadataOptions};

/// For how long each length is written.
const TIME: Duration = Duration::from_millis(400);
/// Length of the file that is written over and over, bytes.
const FILE_BYTES: usize = 16 << 20;
/// Bytes of one write while the file is made; no group is longer.
const FILL_BYTES: usize = 1 << 20;
/// What stands before every record: its length, and its header.
const RECORD_HEAD_BYTES: usize = 4 + 56;

/// One change at one depth, by what its log costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCommitCeiling {
    /// The change.
    pub operation: MetadataOperation,
    /// Operations outstanding, all of them in one group.
    pub depth: u32,
    /// Bytes of each one's record.
    pub record_bytes: usize,
    /// Bytes of the group as it is written: its header, the records, and zeros up to a block.
    pub group_bytes: usize,
    /// Whether the writes bypassed the page cache.
    pub direct: bool,
    /// Groups written per second.
    pub groups_per_second: f64,
    /// Operations per second that these would carry.
    pub operations_per_second: f64,
}

/// Bytes of the record of a change, with the length that stands before it (`docs/disk-format.md`);
/// `None` for what changes nothing.
pub(crate) fn record_bytes(operation: MetadataOperation) -> Option<usize> {
    let body_bytes = match operation {
        // The file's number, parent and owner, its name, and one store.
        MetadataOperation::Create => 40 + NAME_BYTES + 4,
        MetadataOperation::Rename => 24 + 2 * NAME_BYTES,
        MetadataOperation::Unlink => 24 + NAME_BYTES,
        MetadataOperation::Stat | MetadataOperation::Open | MetadataOperation::Readdir => {
            return None;
        }
    };
    Some(RECORD_HEAD_BYTES + body_bytes)
}

/// Measures for each change and depth of the options, on a file of its own in `directory`.
pub(crate) fn measure(
    options: &MetadataOptions,
    directory: &Path,
) -> Result<Vec<GroupCommitCeiling>, PerfError> {
    let refused = |what| {
        let directory = directory.display().to_string();
        move |source: io::Error| PerfError::Ceiling { what, directory, source }
    };
    let place =
        tempfile::Builder::new().prefix("gannet-perf-").tempdir_in(directory).map_err(|error| {
            PerfError::Option {
                option: "metadata-log",
                reason: format!("no directory can be made in {}: {error}", directory.display()),
            }
        })?;
    let mut medium =
        Medium::make(place.path()).map_err(refused("making a file for synchronous writes"))?;
    let mut rates = BTreeMap::new();
    let mut ceilings = Vec::new();
    for operation in &options.operations {
        let Some(record_bytes) = record_bytes(*operation) else { continue };
        for depth in &options.depths {
            let payload_bytes = record_bytes * *depth as usize;
            let group_bytes = padded_bytes(payload_bytes.min(PAYLOAD_BYTES_MAX));
            let groups_per_second = match rates.get(&group_bytes) {
                Some(rate) => *rate,
                None => {
                    let rate = medium.write(group_bytes).map_err(refused("writing"))?;
                    rates.insert(group_bytes, rate);
                    rate
                }
            };
            ceilings.push(GroupCommitCeiling {
                operation: *operation,
                depth: *depth,
                record_bytes,
                group_bytes,
                direct: medium.file.buffered_reason().is_none(),
                groups_per_second,
                operations_per_second: groups_per_second * f64::from(*depth),
            });
        }
    }
    Ok(ceilings)
}

/// A file that is written synchronously.
struct Medium {
    file: LockedFile,
    buffers: BufferPool,
}

impl Medium {
    fn make(directory: &Path) -> io::Result<Medium> {
        let options = OpenOptions { create: true, ..OpenOptions::default() };
        let file = LockedFile::open(&directory.join("log"), &options).map_err(io::Error::other)?;
        file.grow(FILE_BYTES as u64).map_err(io::Error::other)?;
        let mut medium = Medium { file, buffers: BufferPool::new(FILL_BYTES, 1)? };
        for fill in 0..FILE_BYTES / FILL_BYTES {
            medium.write_at(fill * FILL_BYTES, FILL_BYTES)?;
        }
        Ok(medium)
    }

    /// Writes groups one behind the other, and from the start again at the end. Returns how many per
    /// second.
    fn write(&mut self, group_bytes: usize) -> io::Result<f64> {
        let (mut groups, mut offset) = (0_u64, 0);
        let begin = Time::monotonic();
        let mut now = begin;
        while now < begin + TIME {
            if offset + group_bytes > FILE_BYTES {
                offset = 0;
            }
            self.write_at(offset, group_bytes)?;
            groups += 1;
            offset += group_bytes;
            now = Time::monotonic();
        }
        Ok(groups as f64 / now.since(begin).as_secs_f64())
    }

    fn write_at(&mut self, offset: usize, len_bytes: usize) -> io::Result<()> {
        let buffer = self.buffers.take().expect("the only buffer comes back after each write");
        let slices = [IoSlice::new(&buffer[..len_bytes])];
        let written =
            rustix::io::pwritev2(&self.file, &slices, offset as u64, ReadWriteFlags::DSYNC)?;
        if written == len_bytes { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::options::{EmbeddedOptions, Server};

    #[test]
    fn a_group_is_as_long_as_its_records() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = MetadataOptions::new(Server::Embedded(EmbeddedOptions::default()));
        options.operations = vec![MetadataOperation::Stat, MetadataOperation::Create];
        options.depths = vec![1, 64];
        let ceilings = measure(&options, directory.path()).unwrap();
        let sizes: Vec<_> = ceilings.iter().map(|it| (it.depth, it.group_bytes)).collect();
        assert_eq!(sizes, [(1, 4096), (64, 8192)]);
        for ceiling in &ceilings {
            assert_eq!((ceiling.operation, ceiling.record_bytes), (MetadataOperation::Create, 112));
            assert!(ceiling.groups_per_second > 0.0);
            let expected = ceiling.groups_per_second * f64::from(ceiling.depth);
            assert_eq!(ceiling.operations_per_second, expected);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
