//! The files in which the kernel and the distribution tell about a machine.
//!
//! They are read below a root that tests choose. A file that is missing or cannot be read is the same
//! as one that says nothing: it is for the checks to say what that means.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// A machine as its files show it.
#[derive(Debug)]
pub(super) struct System {
    root: PathBuf,
}

impl System {
    /// The machine whose files are below `root`.
    pub(super) fn below(root: &Path) -> System {
        System { root: root.to_path_buf() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The content of a file without the line's end; `None` if there is none to be had.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// The names in a directory, in order.
    pub(super) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether this process may read and write a file.
    pub(super) fn is_writable(&self, path: &str) -> bool {
        rustix::fs::access(self.path(path), Access::READ_OK | Access::WRITE_OK).is_ok()
    }

    /// The value of a line `name: value` or `name  value` of a file of `/proc`.
    pub(super) fn field(&self, path: &str, name: &str) -> Option<String> {
        let text = self.read(path)?;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.find(|rest| rest.starts_with([':', ' ', '\t']))?;
        Some(value.trim_start_matches(':').trim().to_owned())
    }
}

/// The word in brackets of a list such as `always [madvise] never`.
pub(super) fn chosen(list: &str) -> Option<&str> {
    list.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// How many numbers a list such as `0-3,8` has.
pub(super) fn count_of_list(list: &str) -> Option<usize> {
    let mut count = 0_usize;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A machine made of these files.
    pub(in crate::doctor) fn machine(files: &[(&str, &str)]) -> (TempDir, System) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        let system = System::below(root.path());
        (root, system)
    }

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let status = "Name:\tgannet\nCapEff:\t000001ffffffffff\nCapEffective:\t0";
        let limits = "Limit          Soft Limit  Hard Limit  Units\n\
                      Max locked memory         8388608              8388608              bytes";
        let (_root, system) =
            machine(&[("proc/self/status", status), ("proc/self/limits", limits)]);
        let field = |path, name| system.field(path, name);
        assert_eq!(field("/proc/self/status", "CapEff").as_deref(), Some("000001ffffffffff"));
        assert_eq!(field("/proc/self/status", "Cap"), None);
        let locked = field("/proc/self/limits", "Max locked memory").unwrap();
        assert!(locked.starts_with("8388608 "), "{locked}");
        assert_eq!(field("/proc/none", "x"), None);

        assert_eq!(chosen("always [madvise] never"), Some("madvise"));
        assert_eq!(chosen("always madvise"), None);
        for (list, count) in
            [("0", Some(1)), ("0-3,8", Some(5)), ("", None), ("3-1", None), ("x", None)]
        {
            assert_eq!(count_of_list(list), count, "{list}");
        }
        assert_eq!(count_of_list("0-18446744073709551615"), None);
    }

    #[test]
    fn names_are_listed_as_people_count() {
        let (_root, system) = machine(&[("d/uverbs10", ""), ("d/uverbs9", ""), ("d/a", "")]);
        assert_eq!(system.list("/d"), ["a", "uverbs9", "uverbs10"]);
        assert!(system.list("/none").is_empty());
        assert!(system.exists("/d/a") && !system.exists("/d/b"));
        assert!(system.is_writable("/d/a") && !system.is_writable("/d/b"));
    }
}
