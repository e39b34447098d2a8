//! Compares what there is with what a journal tells.

use std::collections::BTreeMap;

use gannet_client::blocking::Session;
use gannet_fabric::any::AnyFabric;
use gannet_proto::Handle;
use gannet_proto::operations::file_type;

use super::Workplace;
use crate::oracle::{Node, NodeId, Tree};

/// What a comparison came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Names that were compared, with what they lead to.
    pub things: u64,
    /// Whether the last change, which was not acknowledged, is there; `None` if there is none.
    pub outstanding: Option<bool>,
}

/// Compares everything of a generation that has ended, as its journal tells: what was acknowledged is
/// there, and of what was asked for last all or nothing.
///
/// # Errors
/// What is not so.
///
/// # Panics
/// If the journal cannot be read.
pub fn verify(
    place: &Workplace,
    generation: u32,
    session: &mut Session<AnyFabric>,
) -> Result<Verified, String> {
    let (record, prefix) = (place.record(generation), place.prefix(generation));
    let handles = BTreeMap::new();
    let wrong = match compare_all(session, &record.tree, &handles, &prefix) {
        Ok(things) => {
            return Ok(Verified { things, outstanding: record.outstanding.map(|_| false) });
        }
        Err(text) => format!("{prefix}, after {} changes: {text}", record.acknowledged),
    };
    let Some((number, change)) = &record.outstanding else { return Err(wrong) };
    let mut after = record.tree.clone();
    after.apply(change, *number);
    match compare_all(session, &after, &handles, &prefix) {
        Ok(things) => Ok(Verified { things, outstanding: Some(true) }),
        Err(text) => {
            Err(format!("{wrong}; or with \"{change}\", which was not acknowledged: {text}"))
        }
    }
}

/// Compares everything that has the prefix. Returns how much that is.
///
/// # Errors
/// The first difference.
pub(super) fn compare_all(
    session: &mut Session<AnyFabric>,
    tree: &Tree,
    handles: &BTreeMap<NodeId, Handle>,
    prefix: &str,
) -> Result<u64, String> {
    let mut count = 0;
    // One inode has one handle, whatever leads to it.
    let mut known = handles.clone();
    for (path, node) in tree.paths() {
        if let Node::Directory(entries) = tree.node(node) {
            let found = session.readdir_all(&path).map_err(|error| error.to_string())?;
            let names = found.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned());
            let names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
            let expected: Vec<&String> = entries.keys().collect();
            if names.iter().collect::<Vec<_>>() != expected {
                return Err(format!("{path} holds {names:?} instead of {expected:?}"));
            }
        }
        if path.contains(prefix) {
            let handle = compare(session, tree, &known, &path)?;
            known.insert(node, handle);
            count += 1;
        }
    }
    Ok(count)
}

/// Compares what a path leads to. Returns its handle.
///
/// # Errors
/// The difference.
pub(super) fn compare(
    session: &mut Session<AnyFabric>,
    tree: &Tree,
    handles: &BTreeMap<NodeId, Handle>,
    path: &str,
) -> Result<Handle, String> {
    let node = tree.at(path);
    let found = session.stat(path).map_err(|error| format!("{path}: {error}"))?;
    let handle = found.handle;
    if let Some(known) = handles.get(&node)
        && *known != handle
    {
        return Err(format!("{path} leads to {handle:?} instead of {known:?}"));
    }
    let is_directory = found.mode.get() & file_type::MASK == file_type::DIRECTORY;
    let content = match tree.node(node) {
        Node::Directory(_) if is_directory => return Ok(handle),
        Node::File(content) if !is_directory => content,
        _ => return Err(format!("{path} is something else")),
    };
    let links = tree.paths().values().filter(|other| **other == node).count() as u64;
    if (u64::from(found.links.get()), found.size.get()) != (links, content.size()) {
        return Err(format!(
            "{path} has {} links and {} bytes instead of {links} and {}",
            found.links.get(),
            found.size.get(),
            content.size()
        ));
    }
    let expected = content.bytes();
    let mut bytes = vec![0xee; expected.len() + 1];
    let count =
        session.read_at(handle, 0, &mut bytes).map_err(|error| format!("{path}: {error}"))?;
    if bytes[..count] != expected {
        let at = bytes[..count].iter().zip(&expected).position(|(one, other)| one != other);
        return Err(format!(
            "{path} holds {count} bytes instead of {}, and others from {at:?} on",
            expected.len()
        ));
    }
    Ok(handle)
}
