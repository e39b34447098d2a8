//! Commands on names and attributes, and questions to the servers.

mod list;
mod names;
mod remove;
mod space;
mod stat;
mod stats;

pub(crate) use list::ls;
pub(crate) use names::{mkdir, mv, ownership};
pub(crate) use remove::rm;
pub(crate) use space::df;
pub(crate) use stat::{cat, stat};
pub(crate) use stats::stats;

use gannet_client::{Entry, Operation, Outcome};
use gannet_proto::Handle;

use crate::connection::{CallError, Connection};
use crate::failure::Failure;

/// Requests that a command of this kind has outstanding at most.
const REQUESTS_MAX: usize = 64;

/// All entries of a directory, in byte order of their names.
fn entries(connection: &mut Connection, directory: Handle) -> Result<Vec<Entry>, CallError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map(|entry| entry.name.clone()).unwrap_or_default();
        match connection.call(Operation::Readdir { directory, after })? {
            Outcome::Directory(listing) => {
                let none_came = listing.entries.is_empty();
                entries.extend(listing.entries);
                if listing.end || none_came {
                    return Ok(entries);
                }
            }
            _ => return Err(crate::connection::unexpected("the answer is not a directory")),
        }
    }
}

/// Runs `each` on every item, tells each failure as it happens, and fails in the end if any did.
fn for_each<T>(
    items: impl IntoIterator<Item = T>,
    mut each: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut pending: Option<Failure> = None;
    for item in items {
        if let Err(failure) = each(item)
            && let Some(earlier) = pending.replace(failure)
        {
            crate::tell(&earlier);
        }
    }
    pending.map_or(Ok(()), Err)
}
