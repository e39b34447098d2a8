//! What a check found: counted by kind, and the first of each kind in words.

use std::collections::BTreeMap;
use std::fmt;

use gannet_proto::{Block, Inode, ShardId, StoreId};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A log's superblock is damaged or holds what cannot be.
    Superblock,
    /// The logs of the reactors do not belong together.
    LogsDiffer,
    /// Something in the middle of a log cannot be read.
    LogDamaged,
    /// A record of a whole frame cannot be applied.
    Record,
    /// There are inodes and no root directory.
    MissingRoot,
    /// An inode has a number that its shard cannot have given out.
    InodeNumber,
    /// An entry leads to an inode number that was never given out.
    EntryNumber,
    /// An entry leads to an inode that does not exist.
    EntryToNothing,
    /// An entry says another type than its inode.
    EntryType,
    /// The links of an inode are miscounted.
    Links,
    /// No entry leads to an inode.
    NoName,
    /// Several entries lead to an inode.
    SeveralNames,
    /// A directory says that another directory than the one that names it is its parent.
    WrongParent,
    /// Directories that contain each other.
    Cycle,
    /// An inode has a name and cannot be reached from the root.
    Unreachable,
    /// The extents of a file are out of order, miscounted, or have invalid lengths.
    Extents,
    /// A file has data beyond its end, or is larger than a file can be.
    Size,
    /// A file names a store that does not exist.
    UnknownStore,
    /// An extent lies beyond the end of its store.
    OutsideStore,
    /// An extent is of a generation that its store has not reached.
    UnknownGeneration,
    /// A block has two users.
    UsedTwice,
    /// A file's block lies in a zone that is not its shard's.
    ForeignZone,
    /// A zone belongs to two shards, lies beyond its store, or is not known to its owner.
    Zone,
    /// A block is neither used nor free.
    Leaked,
    /// A block is used and counts as free.
    Unmarked,
    /// Free blocks are miscounted.
    SpaceCount,
    /// Data servers or stores contradict each other.
    Target,
    /// A session or the answer that it keeps is out of bounds.
    Session,
    /// A shard has prepared its part of an operation and does not know the decision.
    Undecided,
}

impl FindingKind {
    /// A word for scripts; it stays what it is.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            FindingKind::Superblock => "superblock",
            FindingKind::LogsDiffer => "logs-differ",
            FindingKind::LogDamaged => "log-damaged",
            FindingKind::Record => "record",
            FindingKind::MissingRoot => "missing-root",
            FindingKind::InodeNumber => "inode-number",
            FindingKind::EntryNumber => "entry-number",
            FindingKind::EntryToNothing => "entry-to-nothing",
            FindingKind::EntryType => "entry-type",
            FindingKind::Links => "links",
            FindingKind::NoName => "no-name",
            FindingKind::SeveralNames => "several-names",
            FindingKind::WrongParent => "wrong-parent",
            FindingKind::Cycle => "cycle",
            FindingKind::Unreachable => "unreachable",
            FindingKind::Extents => "extents",
            FindingKind::Size => "size",
            FindingKind::UnknownStore => "unknown-store",
            FindingKind::OutsideStore => "outside-store",
            FindingKind::UnknownGeneration => "unknown-generation",
            FindingKind::UsedTwice => "used-twice",
            FindingKind::ForeignZone => "foreign-zone",
            FindingKind::Zone => "zone",
            FindingKind::Leaked => "leaked",
            FindingKind::Unmarked => "unmarked",
            FindingKind::SpaceCount => "space-count",
            FindingKind::Target => "target",
            FindingKind::Session => "session",
            FindingKind::Undecided => "undecided",
        }
    }
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something is not as the server ever makes it, crashes included.
    Error,
    /// A crash interrupted an operation: what is left of it harms nothing, and the next start brings
    /// it to its end.
    Unfinished,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Unfinished => "unfinished, harmless",
        })
    }
}

/// Where a finding is, as far as that can be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Which reactor's state or log.
    pub reactor: Option<u16>,
    /// Which shard.
    pub shard: Option<ShardId>,
    /// Which file or directory.
    pub inode: Option<Inode>,
    /// Its path, if it has one.
    pub path: Option<String>,
    /// Blocks of a store: the first, and how many.
    pub blocks: Option<(StoreId, Block, u64)>,
    /// Where in the log, bytes.
    pub log_offset: Option<u64>,
}

impl Place {
    /// A reactor as a whole.
    #[must_use]
    pub fn reactor(reactor: u16) -> Place {
        Place { reactor: Some(reactor), ..Place::default() }
    }

    /// An inode of a reactor.
    pub(crate) fn inode(reactor: u16, inode: Inode) -> Place {
        let shard = inode.shard();
        Place { reactor: Some(reactor), shard, inode: Some(inode), ..Place::default() }
    }

    /// With blocks of a store.
    pub(crate) fn at_blocks(self, store: StoreId, block: Block, blocks: u64) -> Place {
        Place { blocks: Some((store, block, blocks)), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            write!(f, "{separator}{text}")?;
            separator = ", ";
            Ok(())
        };
        if let Some(reactor) = self.reactor {
            part(f, format_args!("reactor {reactor}"))?;
        }
        if let Some(shard) = self.shard {
            part(f, format_args!("shard {shard}"))?;
        }
        match (self.inode, &self.path) {
            (Some(inode), Some(path)) => part(f, format_args!("inode {:#x} {path}", inode.0))?,
            (Some(inode), None) => part(f, format_args!("inode {:#x} without a path", inode.0))?,
            (None, _) => {}
        }
        if let Some((store, block, blocks)) = self.blocks {
            part(f, format_args!("store {store} block {block}"))?;
            if blocks > 1 {
                write!(f, "..{}", block.0 + (blocks - 1))?;
            }
        }
        if let Some(offset) = self.log_offset {
            part(f, format_args!("log byte {offset}"))?;
        }
        Ok(())
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// What it means.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// What is wrong, in one line.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { severity, place, text, .. } = self;
        if *place == Place::default() {
            return write!(f, "{severity}: {text}");
        }
        write!(f, "{severity}: {place}: {text}")
    }
}

/// Findings of one kind.
#[derive(Clone, Debug, Default)]
struct Counted {
    count: u64,
    kept: Vec<Finding>,
}

/// All findings: each is counted, the first of each kind are kept in words.
#[derive(Clone, Debug)]
pub struct Findings {
    kept_max: usize,
    kinds: BTreeMap<(Severity, FindingKind), Counted>,
}

impl Findings {
    /// None yet. Of each kind the first `kept_max` are kept.
    #[must_use]
    pub fn new(kept_max: usize) -> Findings {
        Findings { kept_max, kinds: BTreeMap::new() }
    }

    /// Adds a finding; its text is made only if it is kept.
    pub fn add(
        &mut self,
        severity: Severity,
        kind: FindingKind,
        place: Place,
        text: impl FnOnce() -> String,
    ) {
        let counted = self.kinds.entry((severity, kind)).or_default();
        counted.count += 1;
        if counted.kept.len() < self.kept_max {
            counted.kept.push(Finding { kind, severity, place, text: text() });
        }
    }

    /// Adds what is not as the server ever makes it.
    pub fn error(&mut self, kind: FindingKind, place: Place, text: impl FnOnce() -> String) {
        self.add(Severity::Error, kind, place, text);
    }

    /// The findings that were kept: errors first, then by kind, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kinds.values().flat_map(|counted| &counted.kept)
    }

    /// How many there are of each severity and kind, and how many of those are kept.
    pub fn counts(&self) -> impl Iterator<Item = (Severity, FindingKind, u64, usize)> {
        self.kinds.iter().map(|((severity, kind), counted)| {
            (*severity, *kind, counted.count, counted.kept.len())
        })
    }

    /// How many there are of a severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> u64 {
        let of = self.kinds.iter().filter(|((other, _), _)| *other == severity);
        of.map(|(_, counted)| counted.count).sum()
    }

    /// Lets places be completed, once everything is known.
    pub(crate) fn complete(&mut self, mut with: impl FnMut(&mut Place)) {
        for counted in self.kinds.values_mut() {
            counted.kept.iter_mut().for_each(|finding| with(&mut finding.place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_and_the_first_of_a_kind_are_kept() {
        let mut findings = Findings::new(2);
        for number in 0..5u64 {
            let place = Place::inode(1, Inode::new(ShardId(3), number + 2));
            findings.add(Severity::Unfinished, FindingKind::NoName, place, || {
                assert!(number < 2, "a text that nobody reads is not made");
                format!("number {number}")
            });
        }
        findings.error(FindingKind::LogDamaged, Place::reactor(0), || "damaged".to_owned());
        let kept: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert_eq!(
            kept,
            [
                "error: reactor 0: damaged",
                "unfinished, harmless: reactor 1, shard 3, inode 0x3000000000002 without a path: \
                 number 0",
                "unfinished, harmless: reactor 1, shard 3, inode 0x3000000000003 without a path: \
                 number 1",
            ]
        );
        assert_eq!((findings.count(Severity::Error), findings.count(Severity::Unfinished)), (1, 5));
        let counts: Vec<_> = findings.counts().collect();
        assert_eq!(counts[1], (Severity::Unfinished, FindingKind::NoName, 5, 2));
    }

    #[test]
    fn places_name_what_is_known() {
        let place = Place::reactor(2).at_blocks(StoreId(7), Block(100), 8);
        assert_eq!(place.to_string(), "reactor 2, store 7 block 100..107");
        let place = Place { log_offset: Some(4096), ..Place::reactor(2) };
        assert_eq!(place.to_string(), "reactor 2, log byte 4096");
        let path = Some("/a".to_owned());
        let place = Place { path, ..Place::inode(0, Inode::ROOT) };
        assert_eq!(place.to_string(), "reactor 0, shard 0, inode 0x1 /a");
    }
}
