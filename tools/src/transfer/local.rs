//! A tree on this machine, walked before it is copied.

use std::ffi::OsString;
use std::fs::{FileType, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Permission bits that are kept.
const MODE_MASK: u32 = 0o7777;

/// What is kept of a file or directory besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Permission bits.
    pub(super) mode: u32,
    /// Modification time, nanoseconds since the epoch.
    pub(super) mtime_ns: i64,
}

impl Kept {
    pub(super) fn of(metadata: &Metadata) -> Kept {
        let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec();
        Kept { mode: metadata.mode() & MODE_MASK, mtime_ns }
    }
}

/// A directory of the tree. Parents come before their children.
#[derive(Debug)]
pub(super) struct LocalDirectory {
    /// Position of the parent; `None` for the top.
    pub(super) parent: Option<usize>,
    /// Name in the parent; empty for the top.
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    pub(super) kept: Kept,
}

/// A regular file of the tree.
#[derive(Debug)]
pub(super) struct LocalFile {
    /// Position of its directory; `None` if the tree is this one file.
    pub(super) parent: Option<usize>,
    /// Name in the directory; empty if the tree is this one file.
    pub(super) name: OsString,
    pub(super) path: PathBuf,
    /// Length when the tree was walked, bytes.
    pub(super) size: u64,
}

/// Something that cannot be stored.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) kind: &'static str,
}

/// What is to be copied.
#[derive(Debug, Default)]
pub(super) struct LocalTree {
    pub(super) directories: Vec<LocalDirectory>,
    pub(super) files: Vec<LocalFile>,
    pub(super) specials: Vec<Special>,
}

impl LocalTree {
    /// Walks the tree at `root`. A symbolic link at the root itself is followed, as the user named
    /// it; below it none is.
    ///
    /// # Errors
    /// What cannot be read, by path.
    pub(super) fn walk(root: &Path) -> Result<LocalTree, Failure> {
        let metadata =
            std::fs::metadata(root).map_err(|error| Failure::path("reading", root, &error))?;
        let mut tree = LocalTree::default();
        let path = root.to_path_buf();
        if !metadata.is_dir() {
            tree.add(None, OsString::new(), path, &metadata);
            return Ok(tree);
        }
        let (name, kept) = (OsString::new(), Kept::of(&metadata));
        tree.directories.push(LocalDirectory { parent: None, name, path, kept });
        let mut next = 0;
        while next < tree.directories.len() {
            tree.enter(next)?;
            next += 1;
        }
        Ok(tree)
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn enter(&mut self, index: usize) -> Result<(), Failure> {
        let directory = self.directories[index].path.clone();
        let failed = |error| Failure::path("reading the directory", &directory, &error);
        let mut entries = std::fs::read_dir(&directory)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed)?;
        // The order of a directory is the file system's whim: a sorted one can be repeated.
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata =
                entry.metadata().map_err(|error| Failure::path("reading", &path, &error))?;
            self.add(Some(index), entry.file_name(), path, &metadata);
        }
        Ok(())
    }

    fn add(&mut self, parent: Option<usize>, name: OsString, path: PathBuf, metadata: &Metadata) {
        if metadata.is_dir() {
            let kept = Kept::of(metadata);
            self.directories.push(LocalDirectory { parent, name, path, kept });
        } else if metadata.is_file() {
            self.files.push(LocalFile { parent, name, path, size: metadata.len() });
        } else {
            self.specials.push(Special { path, kind: kind(metadata.file_type()) });
        }
    }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_symlink() {
        "a symbolic link"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_walked_parents_first_and_links_are_set_apart() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path();
        std::fs::create_dir_all(root.join("b/c")).unwrap();
        std::fs::write(root.join("a"), b"12345").unwrap();
        std::fs::write(root.join("b/c/d"), b"1").unwrap();
        std::fs::set_permissions(root.join("b"), PermissionsExt::from_mode(0o750)).unwrap();
        symlink("a", root.join("link")).unwrap();
        let tree = LocalTree::walk(root).unwrap();
        let directories: Vec<_> = tree.directories.iter().map(|d| (d.parent, &d.name)).collect();
        assert_eq!(
            directories,
            [(None, &OsString::new()), (Some(0), &"b".into()), (Some(1), &"c".into())]
        );
        assert_eq!(tree.directories[1].kept.mode, 0o750);
        let files: Vec<_> = tree.files.iter().map(|f| (f.parent, &f.name, f.size)).collect();
        assert_eq!(files, [(Some(0), &"a".into(), 5), (Some(2), &"d".into(), 1)]);
        assert_eq!(tree.bytes(), 6);
        assert_eq!(tree.specials.len(), 1);
        assert_eq!(tree.specials[0].kind, "a symbolic link");
    }

    #[test]
    fn one_file_is_a_tree_too() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("f");
        std::fs::write(&path, b"123").unwrap();
        let tree = LocalTree::walk(&path).unwrap();
        assert!(tree.directories.is_empty());
        assert_eq!((tree.files.len(), tree.files[0].size), (1, 3));
        assert!(LocalTree::walk(&top.path().join("none")).is_err());
    }
}
