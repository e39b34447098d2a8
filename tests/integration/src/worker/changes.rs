//! Which change comes next.

use gannet_client::Ownership;

use super::{SHARED, Workplace};
use crate::oracle::{Change, Node, Tree, split};
use crate::pattern::Random;

/// Owner and permissions of what is made.
pub(super) const OWNERSHIP: Ownership = Ownership { mode: 0o755, uid: 0, gid: 0 };
/// Names of files, and directories, that a generation has at a time.
const FILES_MAX: usize = 14;
const DIRECTORIES_MAX: usize = 4;
/// Longest write, and longest file, bytes.
const WRITE_BYTES_MAX: u64 = 16 << 10;
const FILE_BYTES_MAX: u64 = 40 << 10;
const BLOCK_BYTES: u64 = 4096;

/// What a generation has.
struct Have {
    files: Vec<String>,
    directories: Vec<String>,
}

impl Have {
    fn of(tree: &Tree, prefix: &str) -> Have {
        let mut have = Have { files: Vec::new(), directories: Vec::new() };
        for (path, node) in tree.paths() {
            if !path.contains(prefix) {
                continue;
            }
            match tree.node(node) {
                Node::File(_) => have.files.push(path),
                Node::Directory(_) => have.directories.push(path),
            }
        }
        have
    }

    fn file(&self, random: &mut Random) -> Option<String> {
        pick(&self.files, random)
    }
}

fn pick(paths: &[String], random: &mut Random) -> Option<String> {
    (!paths.is_empty()).then(|| paths[random.below(paths.len() as u64) as usize].clone())
}

fn shared(random: &mut Random) -> String {
    Workplace::shared().swap_remove(random.below(SHARED as u64) as usize)
}

/// A change that can succeed. Directories stay in those that are shared, so no path is ever long and no
/// directory can come to lie in itself.
pub(super) fn choose(tree: &Tree, prefix: &str, names: &mut u64, random: &mut Random) -> Change {
    let have = Have::of(tree, prefix);
    let mut fresh = |random: &mut Random, in_own: bool| {
        *names += 1;
        let own =
            if in_own && random.below(4) == 0 { pick(&have.directories, random) } else { None };
        format!("{}/{prefix}{names}", own.unwrap_or_else(|| shared(random)))
    };
    loop {
        let change = match random.below(100) {
            0..30 => have.file(random).map(|path| write(tree, path, random)),
            30..38 => have.file(random).and_then(|path| {
                let len_bytes = 1 + random.below(WRITE_BYTES_MAX);
                let fits = tree.content(&path).size() + len_bytes <= FILE_BYTES_MAX;
                fits.then_some(Change::Append(path, len_bytes))
            }),
            38..43 => have.file(random).map(|path| {
                let size = random.below(FILE_BYTES_MAX);
                Change::Truncate(path, size)
            }),
            43..58 => have.file(random).map(|from| Change::Rename(from, fresh(random, true))),
            58..65 => have
                .file(random)
                .zip(have.file(random))
                .and_then(|(from, to)| (from != to).then_some(Change::Rename(from, to))),
            65..72 => have.file(random).zip(have.file(random)).and_then(|(one, other)| {
                (tree.at(&one) != tree.at(&other)).then_some(Change::Exchange(one, other))
            }),
            72..78 => have
                .file(random)
                .filter(|_| have.files.len() < FILES_MAX)
                .map(|from| Change::Link(from, fresh(random, true))),
            78..84 => have.file(random).filter(|_| have.files.len() > 3).map(Change::Unlink),
            84..92 => (have.files.len() < FILES_MAX).then(|| Change::Create(fresh(random, true))),
            _ => directory_change(tree, &have, &mut |random| fresh(random, false), random),
        };
        if let Some(change) = change {
            return change;
        }
    }
}

fn write(tree: &Tree, path: String, random: &mut Random) -> Change {
    let len_bytes = 1 + random.below(WRITE_BYTES_MAX);
    // Over old bytes, at the end or behind it, with edges inside blocks or without.
    let offset = random.below(tree.content(&path).size().min(FILE_BYTES_MAX / 2) + BLOCK_BYTES);
    if random.below(3) == 0 {
        let blocks = len_bytes.div_ceil(BLOCK_BYTES);
        return Change::Write(path, offset / BLOCK_BYTES * BLOCK_BYTES, blocks * BLOCK_BYTES);
    }
    Change::Write(path, offset, len_bytes)
}

fn directory_change(
    tree: &Tree,
    have: &Have,
    fresh: &mut impl FnMut(&mut Random) -> String,
    random: &mut Random,
) -> Option<Change> {
    let is_empty = |path: &String| matches!(tree.node(tree.at(path)), Node::Directory(entries) if entries.is_empty());
    let directory = pick(&have.directories, random);
    match random.below(6) {
        0 | 1 => (have.directories.len() < DIRECTORIES_MAX).then(|| Change::Mkdir(fresh(random))),
        2 => directory.map(|from| Change::Rename(from, fresh(random))),
        3 => directory.zip(pick(&have.directories, random)).and_then(|(from, to)| {
            (from != to && is_empty(&to)).then_some(Change::Rename(from, to))
        }),
        4 => {
            // With anything that lies beside directories.
            let beside = |path: &String| Workplace::shared().iter().any(|s| split(path).0 == s);
            let all = have.files.iter().chain(&have.directories);
            let all: Vec<String> = all.filter(|path| beside(path)).cloned().collect();
            directory
                .zip(pick(&all, random))
                .and_then(|(one, other)| (one != other).then_some(Change::Exchange(one, other)))
        }
        _ => directory.filter(is_empty).map(Change::Rmdir),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The oracle panics at a change that cannot be.
    #[test]
    fn any_number_of_changes_can_be_done() {
        let (mut tree, mut names) = (Tree::new(&Workplace::shared()), 0);
        let (mut random, mut kinds) = (Random::new(5), BTreeSet::new());
        for number in 1..3000 {
            let change = choose(&tree, "w1g0-", &mut names, &mut random);
            let text = change.to_string();
            kinds.insert(text.split(' ').next().map(str::to_owned));
            assert_eq!(Change::parse(&text).as_ref(), Some(&change));
            tree.apply(&change, number);
            let deepest = tree.paths().into_keys().map(|path| path.matches('/').count()).max();
            assert!(deepest <= Some(3), "{change}");
        }
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        let have = Have::of(&tree, "w1g0-");
        assert!(have.files.len() <= FILES_MAX && have.directories.len() <= DIRECTORIES_MAX);
    }
}
