//! `gannet mkdir` and `gannet mv`.

use gannet_client::{Operation, Ownership};
use gannet_proto::Status;

use super::{REQUESTS_MAX, for_each};
use crate::cli::{MkdirArguments, MvArguments};
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;
use crate::remote::RemotePath;

/// Permission bits of a new directory, less those of the process's mask.
const DIRECTORY_MODE: u32 = 0o777;

/// Who makes files, with these permission bits.
pub(crate) fn ownership(mode: u32) -> Ownership {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Ownership { mode, uid: uid.as_raw(), gid: gid.as_raw() }
}

/// The process's file mode creation mask. Reading it means setting it, so it is set back at once;
/// no other thread runs yet.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}

/// Makes directories.
pub(crate) fn mkdir(arguments: &MkdirArguments) -> Result<(), Failure> {
    let paths = arguments.paths.iter().map(|path| RemotePath::parse(path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let mode = DIRECTORY_MODE & !umask();
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    for_each(&paths, |path| {
        if arguments.parents {
            let mut ancestors = path.ancestors();
            return ancestors.try_for_each(|path| make(&mut connection, &path, mode, true));
        }
        make(&mut connection, path, mode, false)
    })
}

fn make(
    connection: &mut Connection,
    path: &RemotePath,
    mode: u32,
    accept_existing: bool,
) -> Result<(), Failure> {
    let about = format!("making the directory {path}");
    let (Some(parent), Some(name)) = (path.parent(), path.name()) else {
        return Err(Failure::operation(format!("{about}: it exists")));
    };
    let parent = connection.lookup(&parent).map_err(|error| error.about(&about))?.handle;
    let operation = Operation::Mkdir { parent, name: name.to_vec(), ownership: ownership(mode) };
    match connection.entry(operation) {
        Ok(_) => Ok(()),
        Err(error) if accept_existing && error.status() == Some(Status::EXISTS) => {
            let found = connection.lookup(path).map_err(|error| error.about(&about))?;
            if is_directory(&found) { Ok(()) } else { Err(error.about(&about)) }
        }
        Err(error) => Err(error.about(&about)),
    }
}

/// Moves a name.
pub(crate) fn mv(arguments: &MvArguments) -> Result<(), Failure> {
    let source = RemotePath::parse(&arguments.source)?;
    let mut destination = RemotePath::parse(&arguments.destination)?;
    let about = format!("moving {source} to {destination}");
    let (Some(parent), Some(name)) = (source.parent(), source.name()) else {
        return Err(Failure::usage("the root cannot be moved"));
    };
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    match connection.lookup(&destination) {
        Ok(found) if is_directory(&found) => destination = destination.join(name),
        Ok(_) => {}
        Err(error) if error.status() == Some(Status::NOT_FOUND) => {}
        Err(error) => return Err(error.about(&about)),
    }
    if source != destination && source.contains(&destination) {
        return Err(Failure::operation(format!("{about}: a directory cannot go into itself")));
    }
    let (Some(to_parent), Some(to_name)) = (destination.parent(), destination.name()) else {
        return Err(Failure::usage("nothing can replace the root"));
    };
    let parent = connection.lookup(&parent).map_err(|error| error.about(&about))?.handle;
    let to_parent = connection.lookup(&to_parent).map_err(|error| error.about(&about))?.handle;
    let operation = Operation::Rename {
        parent,
        name: name.to_vec(),
        to_parent,
        to_name: to_name.to_vec(),
        no_replace: arguments.no_replace,
    };
    connection.entry(operation).map(|_| ()).map_err(|error| error.about(&about))
}
