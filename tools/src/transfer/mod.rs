//! `gannet put` and `gannet get`: files and trees, many requests at once.

mod fetch;
mod local;
mod outcome;
mod pipeline;
mod progress;
mod put;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gannet_fabric::arena::HostBuffer;
use gannet_proto::Status;

use crate::cli::{GetArguments, PutArguments, TransferArguments};
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;
use crate::remote::{RemotePath, local_name};
use fetch::{Fetch, Fetched, Purpose};
use local::LocalTree;
use outcome::{Pass, Summary};
use pipeline::PIECE_BYTES;
use put::{Destination, Put, Stored};

/// Requests beside those of files and pieces: listings and attributes of directories.
const REQUESTS_SPARE: usize = 64;

fn connect(arguments: &TransferArguments) -> Result<(Connection, Vec<HostBuffer>), Failure> {
    let requests = (arguments.files + arguments.depth) as usize + REQUESTS_SPARE;
    let connection = Connection::open_for_data(&arguments.server, &arguments.protection, requests)?;
    let buffers = connection.buffers(PIECE_BYTES, arguments.depth)?;
    Ok((connection, buffers))
}

/// Copies a file or tree into Gannet.
pub(crate) fn put(arguments: &PutArguments) -> Result<(), Failure> {
    let transfer = &arguments.transfer;
    let remote = RemotePath::parse(&arguments.destination)?;
    let tree = LocalTree::walk(&arguments.source)?;
    for special in &tree.specials {
        eprintln!("gannet: {} is {}: skipped", special.path.display(), special.kind);
    }
    let (mut connection, mut buffers) = connect(transfer)?;
    let is_tree = !tree.directories.is_empty();
    let destination = put_destination(
        &mut connection,
        &arguments.source,
        remote,
        transfer.no_target_directory,
        is_tree,
    )?;

    let begun = Instant::now();
    let copy = Put::new(&tree, &destination, &mut connection, &mut buffers, transfer.files)?;
    let (outcomes, stored, latencies) = copy.run()?;
    let pass = Pass::of(&outcomes, begun.elapsed(), &latencies);
    let is_hopeless = outcomes.is_hopeless;
    let verified = if transfer.verify && !is_hopeless {
        Some(compare(&mut connection, &mut buffers, transfer.files, stored)?)
    } else {
        None
    };
    let skipped = tree.specials.len() as u64;
    let summary = Summary { operation: "put", pass, skipped, verified };
    summary.finish(transfer.json, arguments.skip_special)
}

/// Where a tree or file goes, by the rules of `cp`.
fn put_destination(
    connection: &mut Connection,
    source: &Path,
    remote: RemotePath,
    exactly: bool,
    is_tree: bool,
) -> Result<Destination, Failure> {
    let about = |path: &RemotePath| format!("the destination {path}");
    let found = match connection.lookup(&remote) {
        Ok(found) => Some(found),
        Err(error) if error.status() == Some(Status::NOT_FOUND) => None,
        Err(error) => return Err(error.about(about(&remote))),
    };
    if let Some(found) = found
        && is_directory(&found)
    {
        if !exactly {
            return Ok(Destination::Name(found.handle, own_name(source)?));
        }
        if is_tree {
            return Ok(Destination::Directory(found.handle));
        }
        let what = format!("{} is a directory and cannot become a file", about(&remote));
        return Err(Failure::operation(what));
    }
    let (Some(parent), Some(name)) = (remote.parent(), remote.name()) else {
        return Err(Failure::operation(format!("{} is no directory", about(&remote))));
    };
    match connection.lookup(&parent) {
        Ok(found) if is_directory(&found) => Ok(Destination::Name(found.handle, name.to_vec())),
        Ok(_) => Err(Failure::operation(format!("{}: {parent} is no directory", about(&remote)))),
        Err(error) if error.status() == Some(Status::NOT_FOUND) => Err(Failure::operation(
            format!("{}: {parent} does not exist (gannet mkdir -p {parent})", about(&remote)),
        )),
        Err(error) => Err(error.about(about(&remote))),
    }
}

/// The name that a source has by itself, also when it was named as `.` or through `..`.
fn own_name(source: &Path) -> Result<Vec<u8>, Failure> {
    use std::os::unix::ffi::OsStrExt;
    let named = |path: &Path| path.file_name().map(|name| name.as_bytes().to_vec());
    if let Some(name) = named(source) {
        return Ok(name);
    }
    let absolute =
        source.canonicalize().map_err(|error| Failure::path("reading", source, &error))?;
    named(&absolute).ok_or_else(|| {
        Failure::usage(format!("{} has no name: say -T and name the copy", source.display()))
    })
}

/// Copies a file or tree from Gannet.
pub(crate) fn get(arguments: &GetArguments) -> Result<(), Failure> {
    let transfer = &arguments.transfer;
    let remote = RemotePath::parse(&arguments.source)?;
    let local = get_destination(&arguments.destination, &remote, transfer.no_target_directory)?;
    let (mut connection, mut buffers) = connect(transfer)?;
    let found =
        connection.lookup(&remote).map_err(|error| error.about(format!("getting {remote}")))?;
    if !is_directory(&found) && local.is_dir() {
        let what = format!("{} is a directory and cannot become a file", local.display());
        return Err(Failure::operation(what));
    }

    let begun = Instant::now();
    let mut fetch = Fetch::new(Purpose::Store, &mut connection, &mut buffers, transfer.files)?;
    fetch.add(&found, &local);
    let fetched = fetch.run()?;
    let pass = pass(&fetched, begun.elapsed());
    let verified = if transfer.verify && !fetched.outcomes.is_hopeless {
        Some(compare(&mut connection, &mut buffers, transfer.files, fetched.stored)?)
    } else {
        None
    };
    let summary = Summary { operation: "get", pass, skipped: fetched.skipped, verified };
    summary.finish(transfer.json, false)
}

/// Where a copy goes on this machine, by the rules of `cp`.
fn get_destination(
    destination: &Path,
    remote: &RemotePath,
    exactly: bool,
) -> Result<PathBuf, Failure> {
    if destination.is_dir() && !exactly {
        // The root has no name of its own: what is in it goes into the directory.
        return Ok(match remote.name() {
            Some(name) => destination.join(local_name(name)),
            None => destination.to_path_buf(),
        });
    }
    let parent = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match std::fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => Ok(destination.to_path_buf()),
        Ok(_) => Err(Failure::operation(format!("{} is no directory", parent.display()))),
        Err(error) => Err(Failure::path("the destination", parent, &error)),
    }
}

/// Reads files back from Gannet and compares them with those on this machine.
fn compare(
    connection: &mut Connection,
    buffers: &mut Vec<HostBuffer>,
    files_max: u32,
    stored: Vec<Stored>,
) -> Result<Pass, Failure> {
    let begun = Instant::now();
    let mut fetch = Fetch::new(Purpose::Compare, connection, buffers, files_max)?;
    fetch.add_files(stored);
    let fetched = fetch.run()?;
    Ok(pass(&fetched, begun.elapsed()))
}

fn pass(fetched: &Fetched, took: Duration) -> Pass {
    Pass::of(&fetched.outcomes, took, &fetched.latencies)
}
