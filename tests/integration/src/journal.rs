//! What a process has asked for and what was acknowledged, in a file that outlives it.
//!
//! Each line is written by one call, before the request leaves and after its answer came, so the file
//! holds both however the process ends: `B number change`, then `D number`. `V count` tells that so many
//! things were verified. The last line may be cut off; then nothing had followed from it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::oracle::{Change, Tree};

/// A journal that is written.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// A new journal.
    ///
    /// # Errors
    /// What the operating system says; also if there is one already.
    pub fn create(path: &Path) -> io::Result<Journal> {
        Ok(Journal(File::options().append(true).create_new(true).open(path)?))
    }

    /// A change is about to be asked for.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn begin(&mut self, number: u64, change: &Change) -> io::Result<()> {
        self.0.write_all(format!("B {number} {change}\n").as_bytes())
    }

    /// It was acknowledged.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn done(&mut self, number: u64) -> io::Result<()> {
        self.0.write_all(format!("D {number}\n").as_bytes())
    }

    /// So many things were found as they must be.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn verified(&mut self, count: u64) -> io::Result<()> {
        self.0.write_all(format!("V {count}\n").as_bytes())
    }
}

/// What a journal tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Changes that were acknowledged.
    pub acknowledged: u64,
    /// Things that were verified.
    pub verified: u64,
    /// What there is after the acknowledged changes.
    pub tree: Tree,
    /// The change that was asked for last and not acknowledged, and its number.
    pub outstanding: Option<(u64, Change)>,
}

impl Record {
    /// Reads a journal that begins with a tree.
    ///
    /// # Errors
    /// What the operating system says.
    ///
    /// # Panics
    /// If it is no journal.
    pub fn read(path: &Path, tree: Tree) -> io::Result<Record> {
        Ok(Record::of(&std::fs::read_to_string(path)?, tree))
    }

    fn of(text: &str, tree: Tree) -> Record {
        let mut record = Record { acknowledged: 0, verified: 0, tree, outstanding: None };
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let number = |word: &str| word.parse().unwrap_or_else(|_| no_line(line));
            match line.splitn(3, ' ').collect::<Vec<&str>>()[..] {
                ["B", begun, change] => {
                    assert_eq!(record.outstanding, None, "one change after the other: {line}");
                    let change = Change::parse(change).unwrap_or_else(|| no_line(line));
                    record.outstanding = Some((number(begun), change));
                }
                ["D", done] => {
                    let (begun, change) =
                        record.outstanding.take().unwrap_or_else(|| no_line(line));
                    assert_eq!(number(done), begun, "{line}");
                    record.tree.apply(&change, begun);
                    record.acknowledged += 1;
                }
                ["V", count] => record.verified += number(count),
                _ => no_line(line),
            }
        }
        record
    }
}

fn no_line<T>(line: &str) -> T {
    panic!("no line of a journal: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_told_wherever_a_journal_ends() {
        let text = "B 1 mkdir /a\nD 1\nV 3\nB 2 create /a/f\nD 2\nB 3 write /a/f 0 10\n";
        // By the end of each line: acknowledged, verified, outstanding.
        let expected = [(0, 0, Some(1)), (1, 0, None), (1, 3, None), (1, 3, Some(2)), (2, 3, None)];
        let whole = (2, 3, Some(3));
        for cut in 0..=text.len() {
            let record = Record::of(&text[..cut], Tree::new(&[]));
            let lines = text[..cut].matches('\n').count();
            let found = (
                record.acknowledged,
                record.verified,
                record.outstanding.map(|(number, _)| number),
            );
            let expected = match lines {
                0 => (0, 0, None),
                6 => whole,
                _ => expected[lines - 1],
            };
            assert_eq!(found, expected, "cut at {cut}");
        }
    }
}
