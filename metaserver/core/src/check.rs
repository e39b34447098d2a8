//! What always holds of the metadata, checked over one reactor's state or over all of them together.
//!
//! Each invariant is defined once, here: tests and the simulator check running cores by
//! [`Core::check_invariants`], `gannet fsck` checks cores that were replayed from the logs of a
//! stopped server by [`check_replayed`]. A check changes nothing that is durable, never stops at what
//! it finds, and takes memory in proportion to the metadata: a few words for each inode, entry and
//! extent, none for a block.
//!
//! What an operation over two shards leaves behind when a crash interrupts it is told from damage
//! where the state allows it ([`Severity::Unfinished`]). The shard that holds an inode and the one
//! that holds its entry have records of their own, and a crash may come
//!
//! * between making a directory and its entry: an empty directory without a name, whose parent lies
//!   on another shard;
//! * between removing a directory and its entry, or when of two names of a file that a rename left
//!   for a moment the new one was unlinked: an entry whose inode is gone;
//! * between removing or replacing an entry and removing its file: a file without a name;
//! * between the new and the old entry of a rename: several entries for one inode, which do not all
//!   lie on its shard;
//! * between a rename of a directory and its new parent: a directory that says that another one than
//!   the one that names it is its parent, not all on one shard;
//! * before reactor 0 could record a new generation of a store that another reactor wrote to.
//!
//! Where one record does it all this is an error, and so is everything while only one shard has
//! inodes.

mod files;
mod findings;
mod sessions;
mod space;
mod tree;

use std::collections::VecDeque;

use gannet_proto::control::Grant;
use gannet_proto::limits::SHARDS;
use gannet_proto::packet::Message;
use gannet_proto::{GrantNumber, Inode, StoreId, TargetId};

use crate::namespace::{Content, Node};
use crate::{Core, Enrollment, Lsn, Now, PeerMessage, SessionIndex, Sink};

pub use findings::{Finding, FindingKind, Findings, Place, Severity};

/// What there is, as a check has counted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Extents of all files.
    pub extents: u64,
    /// Sessions in the logs.
    pub sessions: u64,
    /// Answers that are kept for them.
    pub kept_replies: u64,
    /// The stores, by number.
    pub stores: Vec<StoreSummary>,
}

/// What there is of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSummary {
    /// Its number.
    pub store: StoreId,
    /// Its data server.
    pub target: TargetId,
    /// Blocks that can be used.
    pub blocks: u64,
    /// Zones that belong to shards.
    pub zones: u64,
    /// Blocks of those zones.
    pub zone_blocks: u64,
    /// Blocks that files map.
    pub mapped: u64,
    /// Blocks of those zones that are free.
    pub free: u64,
    /// Blocks that files map and whose content went with an earlier generation of the store.
    pub lost: u64,
}

/// Checks cores that were replayed from the logs of all reactors, one core for each in their order.
/// They are brought to where a server's start brings them; what that would write is forgotten.
///
/// # Panics
/// If a core is missing, or not in its place, or past its replay.
pub fn check_replayed(cores: &mut [Core], findings: &mut Findings) -> Summary {
    for (place, core) in cores.iter().enumerate() {
        assert_eq!(usize::from(core.config.reactor), place, "cores come in order");
        assert_eq!(usize::from(core.config.reactors), cores.len(), "all cores are there");
        assert!(core.replaying, "the replay goes on until the check");
    }
    let has_root = cores.iter().any(|core| core.nodes.contains_key(&Inode::ROOT));
    if !has_root && cores.iter().any(|core| !core.nodes.is_empty()) {
        findings.error(FindingKind::MissingRoot, Place::default(), || {
            "there are files or directories, but no root directory".to_owned()
        });
    }
    finish_all(cores);
    let cores: Vec<&Core> = cores.iter().collect();
    View::new(&cores).check(findings)
}

/// Takes what a start would let out: messages between the cores, and nothing else.
struct Discard {
    from: u16,
    messages: VecDeque<(u16, u16, PeerMessage)>,
}

impl Sink for Discard {
    fn record(&mut self, _record: &[u8]) -> Lsn {
        Lsn(0)
    }

    fn reply<T: Message>(&mut self, _: SessionIndex, _: Lsn, _: &T, _: &[&[u8]]) {}

    fn grant(&mut self, _: TargetId, _: Lsn, _: &Grant) {}

    fn revoke(&mut self, _: TargetId, _: GrantNumber) {}

    fn peer(&mut self, reactor: u16, _: Lsn, message: PeerMessage) {
        self.messages.push_back((self.from, reactor, message));
    }

    fn enrolled(&mut self, _: Lsn, _: Enrollment) {}
}

/// Ends the replay of all cores and carries their messages.
fn finish_all(cores: &mut [Core]) {
    let mut sink = Discard { from: 0, messages: VecDeque::new() };
    for (reactor, core) in cores.iter_mut().enumerate() {
        sink.from = reactor as u16;
        core.finish_replay(Now::default(), &mut sink);
    }
    while let Some((from, to, message)) = sink.messages.pop_front() {
        sink.from = to;
        if let Some(core) = cores.get_mut(usize::from(to)) {
            core.peer(Now::default(), from, message, &mut sink);
        }
    }
}

/// The cores that a check looks at.
pub(crate) struct View<'a> {
    cores: &'a [&'a Core],
    /// Where the core of each shard is among them.
    places: [Option<usize>; SHARDS],
    /// All reactors are there.
    whole: bool,
    /// No operation over several shards is under way.
    quiet: bool,
    /// More than one shard has given out numbers: operations may have been over several.
    several_shards: bool,
}

impl<'a> View<'a> {
    /// A look at some cores, or at all of them.
    pub(crate) fn new(cores: &'a [&'a Core]) -> View<'a> {
        let mut places = [None; SHARDS];
        for (place, core) in cores.iter().enumerate() {
            for (shard, known) in places.iter_mut().enumerate() {
                if u16::from(core.config.shard_map[shard]) == core.config.reactor {
                    *known = Some(place);
                }
            }
        }
        let reactors = cores.first().map_or(0, |core| usize::from(core.config.reactors));
        let quiet = cores.iter().all(|core| core.operations.live() == 0 && core.held.is_empty());
        let shards = cores.iter().flat_map(|core| &core.shards);
        let several_shards = shards.filter(|shard| shard.last_number > 0).nth(1).is_some();
        View { cores, places, whole: cores.len() == reactors, quiet, several_shards }
    }

    /// Whether every inode's names are known: all entries are here, and none is on its way.
    fn names_are_known(&self) -> bool {
        self.whole && self.quiet
    }

    /// How to judge what an interrupted operation over several shards may have left.
    fn left(&self, by_an_operation: bool) -> Severity {
        match by_an_operation && self.several_shards {
            true => Severity::Unfinished,
            false => Severity::Error,
        }
    }

    /// The core that an inode belongs to, if it is one of these.
    fn owner(&self, inode: Inode) -> Option<&'a Core> {
        let place = self.places[usize::from(inode.shard()?.0)]?;
        Some(self.cores[place])
    }

    /// An inode of one of these cores.
    fn node(&self, inode: Inode) -> Option<&'a Node> {
        self.owner(inode)?.nodes.get(&inode)
    }

    /// The core whose word on data servers and stores counts for `core`: reactor 0's, if it is here.
    fn authority(&self, core: &'a Core) -> &'a Core {
        if self.whole { self.cores[0] } else { core }
    }

    /// Checks everything.
    pub(crate) fn check(&self, findings: &mut Findings) -> Summary {
        let mut summary = Summary::default();
        if let Some(first) = self.cores.first() {
            self.check_stores(self.authority(first), findings);
            let stores = self.authority(first).targets.stores();
            summary.stores = stores
                .map(|(id, store)| StoreSummary {
                    store: id,
                    target: store.target,
                    blocks: store.blocks,
                    ..StoreSummary::default()
                })
                .collect();
        }
        let mut uses = Vec::new();
        let mut names = tree::Names::default();
        for core in self.cores {
            let mut inodes: Vec<Inode> = core.nodes.keys().copied().collect();
            inodes.sort_unstable();
            for node in inodes.iter().filter_map(|inode| core.nodes.get(inode)) {
                self.check_number(core, node.inode, findings);
                match &node.content {
                    Content::File(file) => {
                        summary.files += 1;
                        self.check_file(core, node, file, &mut uses, &mut summary, findings);
                    }
                    Content::Directory(directory) => {
                        summary.directories += 1;
                        self.check_directory(core, node, directory, &mut names, findings);
                    }
                }
            }
            self.check_sessions(core, &mut summary, findings);
        }
        names.sort();
        self.check_names(&names, findings);
        self.check_space(uses, &mut summary, findings);
        findings.complete(|place| {
            if let Some(inode) = place.inode {
                place.path = self.path(&names, inode);
            }
        });
        summary
    }

    /// An inode lies at the reactor of its shard and has a number that the shard can have given out.
    fn check_number(&self, core: &Core, inode: Inode, findings: &mut Findings) {
        let place = || Place::inode(core.config.reactor, inode);
        if !core.is_local(inode) {
            findings.error(FindingKind::InodeNumber, place(), || {
                "it belongs to a shard of another reactor".to_owned()
            });
        } else if !given_out(core, inode) {
            findings.error(FindingKind::InodeNumber, place(), || {
                "its number was never given out".to_owned()
            });
        }
    }
}

/// Whether a core's shard gave out the number of an inode. Number 1 is the root's, in shard 0.
fn given_out(core: &Core, inode: Inode) -> bool {
    let Some(shard) = inode.shard() else { return false };
    let last = core.shards[usize::from(shard.0)].last_number;
    inode == Inode::ROOT || (2..=last).contains(&inode.number())
}
