//! `gannet rm`.
//!
//! A tree is removed from its leaves, one request after the other: a directory is gone only after
//! all that was in it is.

use gannet_client::Operation;
use gannet_proto::operations::file_type;
use gannet_proto::{Handle, Status};

use super::{REQUESTS_MAX, entries, for_each};
use crate::cli::RmArguments;
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;
use crate::remote::RemotePath;

/// A directory on the way down, with what is left of it.
struct Level {
    path: RemotePath,
    parent: Handle,
    handle: Handle,
    left: Vec<gannet_client::Entry>,
}

/// Removes files, and with -r directories.
pub(crate) fn rm(arguments: &RmArguments) -> Result<(), Failure> {
    let paths = arguments.paths.iter().map(|path| RemotePath::parse(path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    for_each(&paths, |path| remove(&mut connection, path, arguments))
}

fn remove(
    connection: &mut Connection,
    path: &RemotePath,
    arguments: &RmArguments,
) -> Result<(), Failure> {
    let about = format!("removing {path}");
    let Some(parent) = path.parent() else {
        return Err(Failure::usage("the root cannot be removed"));
    };
    let found = match connection.lookup(path) {
        Ok(found) => found,
        Err(error) if arguments.force && error.status() == Some(Status::NOT_FOUND) => {
            return Ok(());
        }
        Err(error) => return Err(error.about(&about)),
    };
    let parent = connection.lookup(&parent).map_err(|error| error.about(&about))?.handle;
    if !is_directory(&found) {
        return unlink(connection, parent, path);
    }
    if !arguments.recursive {
        return Err(Failure::operation(format!("{about}: is a directory (-r removes it)")));
    }
    remove_tree(connection, parent, found.handle, path)
}

fn remove_tree(
    connection: &mut Connection,
    parent: Handle,
    handle: Handle,
    path: &RemotePath,
) -> Result<(), Failure> {
    let mut levels = vec![enter(connection, parent, handle, path.clone())?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.left.pop() else {
            let about = format!("removing {}", level.path);
            let name = level.path.name().unwrap_or_default().to_vec();
            let operation = Operation::Rmdir { parent: level.parent, name };
            connection.entry(operation).map_err(|error| error.about(about))?;
            levels.pop();
            continue;
        };
        let path = level.path.join(&entry.name);
        let parent = level.handle;
        if entry.file_type & file_type::MASK == file_type::DIRECTORY {
            levels.push(enter(connection, parent, entry.handle, path)?);
        } else {
            unlink(connection, parent, &path)?;
        }
    }
    Ok(())
}

fn enter(
    connection: &mut Connection,
    parent: Handle,
    handle: Handle,
    path: RemotePath,
) -> Result<Level, Failure> {
    let left =
        entries(connection, handle).map_err(|error| error.about(format!("reading {path}")))?;
    Ok(Level { path, parent, handle, left })
}

fn unlink(connection: &mut Connection, parent: Handle, path: &RemotePath) -> Result<(), Failure> {
    let name = path.name().unwrap_or_default().to_vec();
    let removed = connection.entry(Operation::Unlink { parent, name });
    removed.map(|_| ()).map_err(|error| error.about(format!("removing {path}")))
}
