//! Paths in Gannet, as the command line names them.
//!
//! A path counts from the root whether it begins with a slash or not. Names are bytes: nothing is
//! assumed about their encoding.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use gannet_proto::limits::PATH_BYTES_MAX;
use gannet_proto::operations::check_name;

use crate::failure::Failure;

/// A path from the root; no component is empty, `.` or `..`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RemotePath {
    components: Vec<Vec<u8>>,
}

impl RemotePath {
    /// Reads an argument.
    ///
    /// # Errors
    /// A usage failure for `..` and for names that are too long.
    pub(crate) fn parse(text: &OsStr) -> Result<RemotePath, Failure> {
        let refuse = |why: String| Err(Failure::usage(format!("path {}: {why}", text.display())));
        if text.is_empty() {
            return refuse("is empty: / is the root".to_owned());
        }
        let mut components = Vec::new();
        for component in text.as_bytes().split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return refuse("\"..\" is not resolved: write the path from /".to_owned()),
                name => match check_name(name) {
                    Ok(()) => components.push(name.to_vec()),
                    Err(status) => {
                        let name = String::from_utf8_lossy(name);
                        return refuse(format!("the name {name:?}: {status}"));
                    }
                },
            }
        }
        Ok(RemotePath { components })
    }

    /// The last name; `None` for the root.
    pub(crate) fn name(&self) -> Option<&[u8]> {
        self.components.last().map(Vec::as_slice)
    }

    /// The directory that the last name is in; `None` for the root.
    pub(crate) fn parent(&self) -> Option<RemotePath> {
        let (_, before) = self.components.split_last()?;
        Some(RemotePath { components: before.to_vec() })
    }

    /// The path of an entry of this directory.
    pub(crate) fn join(&self, name: &[u8]) -> RemotePath {
        let mut components = self.components.clone();
        components.push(name.to_vec());
        RemotePath { components }
    }

    /// All directories on the way, from the first below the root to the path itself.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = RemotePath> {
        (1..=self.components.len())
            .map(|depth| RemotePath { components: self.components[..depth].to_vec() })
    }

    /// The path in pieces that fit one request each; none for the root.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut rest = self.components.as_slice();
        std::iter::from_fn(move || {
            let mut piece = rest.first()?.clone();
            rest = &rest[1..];
            while let Some(next) = rest.first()
                && piece.len() + 1 + next.len() <= PATH_BYTES_MAX
            {
                piece.push(b'/');
                piece.extend_from_slice(next);
                rest = &rest[1..];
            }
            Some(piece)
        })
    }

    /// Whether `other` is this path or lies below it.
    pub(crate) fn contains(&self, other: &RemotePath) -> bool {
        other.components.starts_with(&self.components)
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.components.is_empty() {
            return f.write_str("/");
        }
        for component in &self.components {
            write!(f, "/{}", OsStr::from_bytes(component).display())?;
        }
        Ok(())
    }
}

/// A name as a part of a local path.
pub(crate) fn local_name(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        RemotePath::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn paths_count_from_the_root() {
        for text in ["a/b", "/a/b", "//a//b/", "/./a/./b/."] {
            assert_eq!(path(text).to_string(), "/a/b", "{text}");
        }
        assert_eq!(path("/").to_string(), "/");
        assert_eq!((path("/").name(), path("/").parent()), (None, None));
        assert_eq!(path("/a/b").name(), Some(&b"b"[..]));
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").join(b"c"), path("/a/c"));
        let ancestors: Vec<String> = path("/a/b/c").ancestors().map(|p| p.to_string()).collect();
        assert_eq!(ancestors, ["/a", "/a/b", "/a/b/c"]);
        assert!(path("/a").contains(&path("/a/b")) && path("/a").contains(&path("/a")));
        assert!(!path("/a").contains(&path("/ab")));
    }

    #[test]
    fn names_are_bytes() {
        let text = OsStr::from_bytes(b"/\xff \n/x");
        let path = RemotePath::parse(text).unwrap();
        assert_eq!(path.parent().unwrap().name(), Some(&b"\xff \n"[..]));
    }

    #[test]
    fn what_cannot_be_a_path_is_refused() {
        let long = "x".repeat(256);
        for (text, hint) in [("", "empty"), ("/a/../b", ".."), (long.as_str(), "too long")] {
            let message = RemotePath::parse(OsStr::new(text)).unwrap_err().message;
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn long_paths_are_cut_between_names() {
        let name = "n".repeat(255);
        let text = vec![name.as_str(); 40].join("/");
        let pieces: Vec<Vec<u8>> = path(&text).pieces().collect();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= PATH_BYTES_MAX));
        assert_eq!(pieces.join(&b'/'), text.as_bytes());
        assert_eq!(path("/").pieces().count(), 0);
    }
}
