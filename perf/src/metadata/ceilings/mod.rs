//! What the machine itself can do with names, measured in the same run.
//!
//! Measured before the operations and again after them, and the better of both counts, so that a
//! neighbour's moment of activity does not make a server look better than it is.

pub mod group_commit;
pub mod tmpfs;

use gannet_runtime::reactor::pin_to_core;
use serde::{Deserialize, Serialize};

use super::options::{MetadataOperation, MetadataOptions};
use crate::error::PerfError;
use crate::options::{LogPlace, Server};
use crate::run::on_a_thread;
use group_commit::GroupCommitCeiling;
use tmpfs::TmpfsCeiling;

/// All ceilings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataCeilings {
    /// One thread on a tmpfs, by operation.
    pub tmpfs: Vec<TmpfsCeiling>,
    /// Group commits in the directory of an embedded server's log, by operation and depth; empty where
    /// the log lies in memory or belongs to a running server.
    pub group_commits: Vec<GroupCommitCeiling>,
}

impl MetadataCeilings {
    /// Measures what the options ask for, on the server's core.
    ///
    /// # Errors
    /// If a core, memory or a place for files cannot be had.
    pub fn measure(options: &MetadataOptions) -> Result<MetadataCeilings, PerfError> {
        // A thread of its own, so that the caller's is not left on the server's core.
        on_a_thread("gannet-ceilings", || {
            if let Some(core) = options.server_core {
                pin_to_core(core)?;
            }
            let tmpfs = tmpfs::measure(options)?;
            let group_commits = match &options.server {
                Server::Embedded(embedded) => match &embedded.log {
                    LogPlace::Directory(directory) => group_commit::measure(options, directory)?,
                    LogPlace::Ram => Vec::new(),
                },
                Server::Running(_) => Vec::new(),
            };
            Ok(MetadataCeilings { tmpfs, group_commits })
        })
    }

    /// Takes over whatever a second measurement with the same options did better.
    pub fn merge(&mut self, other: &MetadataCeilings) {
        for theirs in &other.tmpfs {
            let mine = self.tmpfs.iter_mut().find(|mine| mine.operation == theirs.operation);
            match mine {
                Some(mine) if mine.operations_per_second >= theirs.operations_per_second => {}
                Some(mine) => mine.clone_from(theirs),
                None => self.tmpfs.push(theirs.clone()),
            }
        }
        for theirs in &other.group_commits {
            let mine = self
                .group_commits
                .iter_mut()
                .find(|mine| (mine.operation, mine.depth) == (theirs.operation, theirs.depth));
            match mine {
                Some(mine) if mine.operations_per_second >= theirs.operations_per_second => {}
                Some(mine) => mine.clone_from(theirs),
                None => self.group_commits.push(theirs.clone()),
            }
        }
    }

    /// What one thread reaches on a tmpfs.
    #[must_use]
    pub fn tmpfs(&self, operation: MetadataOperation) -> Option<&TmpfsCeiling> {
        self.tmpfs.iter().find(|ceiling| ceiling.operation == operation)
    }

    /// What the place of the log allows.
    #[must_use]
    pub fn group_commit(
        &self,
        operation: MetadataOperation,
        depth: u32,
    ) -> Option<&GroupCommitCeiling> {
        self.group_commits
            .iter()
            .find(|ceiling| ceiling.operation == operation && ceiling.depth == depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_of_two_measurements_counts() {
        let tmpfs = |operation, operations_per_second| TmpfsCeiling {
            operation,
            operations: 100,
            operations_per_second,
            cpu_share: 1.0,
        };
        let commit = |operations_per_second| GroupCommitCeiling {
            operation: MetadataOperation::Create,
            depth: 4,
            record_bytes: 112,
            group_bytes: 4096,
            direct: true,
            groups_per_second: operations_per_second / 4.0,
            operations_per_second,
        };
        let (create, stat) = (MetadataOperation::Create, MetadataOperation::Stat);
        let mut ceilings = MetadataCeilings {
            tmpfs: vec![tmpfs(create, 10.0), tmpfs(stat, 30.0)],
            group_commits: vec![commit(400.0)],
        };
        ceilings.merge(&MetadataCeilings {
            tmpfs: vec![tmpfs(create, 20.0), tmpfs(stat, 20.0)],
            group_commits: vec![commit(500.0)],
        });
        let rate = |operation| ceilings.tmpfs(operation).map(|it| it.operations_per_second);
        assert_eq!((rate(create), rate(stat)), (Some(20.0), Some(30.0)));
        assert_eq!(rate(MetadataOperation::Open), None);
        assert_eq!(ceilings.group_commit(create, 4), Some(&commit(500.0)));
        assert_eq!(ceilings.group_commit(create, 8), None);
        assert_eq!(ceilings.group_commit(stat, 4), None);
    }
}
