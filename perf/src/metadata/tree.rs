//! The directories of a run at the server: made before, and removed after with whatever is in them.

use gannet_client::{Operation, Outcome, Ownership};
use gannet_fabric::Fabric;
use gannet_proto::{Handle, Status};
use gannet_runtime::time::Time;

use super::names::Spread;
use super::options::MetadataOptions;
use crate::error::PerfError;
use crate::host::{Host, request, unexpected};

/// Requests outstanding while files are made or removed that are not measured.
pub(crate) const SETUP_DEPTH: u32 = 64;
/// Permissions of the directories.
const MODE: u32 = 0o755;

/// Directories that exist.
pub(crate) struct Tree {
    pub(crate) spread: Spread,
    prefix: String,
    parent: Handle,
    /// How their names begin.
    name: Vec<u8>,
    directories: Vec<Handle>,
}

impl Tree {
    /// No directory yet, in a place that exists.
    pub(crate) fn find<F: Fabric>(
        host: &mut Host<F>,
        options: &MetadataOptions,
    ) -> Result<Tree, PerfError> {
        let (parent, name) = host.place(&options.prefix)?;
        Ok(Tree {
            spread: options.spread(),
            prefix: options.prefix.clone(),
            parent,
            name,
            directories: Vec::with_capacity(options.directories as usize),
        })
    }

    /// Makes the directories. What was made before a failure is known to [`Tree::remove`].
    pub(crate) fn make<F: Fabric>(&mut self, host: &mut Host<F>) -> Result<(), PerfError> {
        const WHAT: &str = "making";
        for index in 0..self.spread.directories {
            let ownership = Ownership { mode: MODE, uid: 0, gid: 0 };
            let operation =
                Operation::Mkdir { parent: self.parent, name: self.name_of(index), ownership };
            match host.call(operation)? {
                Ok(Outcome::Entry(attributes)) => self.directories.push(attributes.handle),
                Ok(_) => return Err(unexpected(WHAT, &self.path(index))),
                Err(error) if error.status() == Some(Status::EXISTS) => {
                    return Err(PerfError::DirectoryExists { directory: self.path(index) });
                }
                Err(error) => return Err(request(WHAT, &self.path(index), error)),
            }
        }
        Ok(())
    }

    /// Removes the directories and all files in them.
    pub(crate) fn remove<F: Fabric>(mut self, host: &mut Host<F>) -> Result<(), PerfError> {
        while let Some(directory) = self.directories.pop() {
            let index = self.directories.len() as u32;
            self.clear(host, directory, index)?;
            let operation = Operation::Rmdir { parent: self.parent, name: self.name_of(index) };
            let removed = host.call(operation)?;
            removed.map_err(|error| request("removing", &self.path(index), error))?;
        }
        Ok(())
    }

    /// Removes whatever a directory holds.
    fn clear<F: Fabric>(
        &self,
        host: &mut Host<F>,
        directory: Handle,
        index: u32,
    ) -> Result<(), PerfError> {
        loop {
            // From the start each time: what was listed is gone.
            let listed = host.call(Operation::Readdir { directory, after: Vec::new() })?;
            let listed = listed.map_err(|error| request("listing", &self.path(index), error))?;
            let Outcome::Directory(listing) = listed else {
                return Err(unexpected("listing", &self.path(index)));
            };
            if listing.entries.is_empty() {
                return Ok(());
            }
            let mut names = listing.entries.into_iter().map(|entry| entry.name);
            let mut outstanding = 0;
            loop {
                while outstanding < SETUP_DEPTH
                    && let Some(name) = names.next()
                {
                    let operation = Operation::Unlink { parent: directory, name };
                    host.submit(operation, 0, &self.path(index))?;
                    outstanding += 1;
                }
                if outstanding == 0 {
                    break;
                }
                host.poll(Time::monotonic())?;
                for completion in host.completions.drain(..) {
                    let removed = completion.result;
                    removed
                        .map_err(|error| request("removing a file of", &self.path(index), error))?;
                    outstanding -= 1;
                }
            }
        }
    }

    /// The handle of a directory.
    pub(crate) fn directory(&self, index: u32) -> Handle {
        self.directories[index as usize]
    }

    /// The path of a directory, for messages.
    pub(crate) fn path(&self, index: u32) -> String {
        format!("{}-{index:03}", self.prefix)
    }

    /// How the paths of all directories begin.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn name_of(&self, index: u32) -> Vec<u8> {
        let mut name = self.name.clone();
        name.extend_from_slice(format!("-{index:03}").as_bytes());
        name
    }
}
