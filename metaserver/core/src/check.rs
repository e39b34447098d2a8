//! What always holds of the metadata, checked over one reactor's state or over all of them together.
//!
//! Each invariant is defined once, here: tests and the simulator check running cores by
//! [`Core::check_invariants`], `gannet fsck` checks cores that were replayed from the logs of a
//! stopped server by [`check_replayed`]. A check changes nothing that is durable, never stops at what
//! it finds, and takes memory in proportion to the metadata: a few words for each inode, entry and
//! extent, none for a block.
//!
//! What a crash leaves of an operation over several shards that was under way is told apart from
//! damage ([`Severity::Unfinished`]): a shard has prepared its part and does not know the decision,
//! which the next start brings to its end, wholly or not at all. The state is checked as it is after
//! that. The same for a new generation of a store that another reactor wrote to before reactor 0
//! could record it.

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
    report_undecided(cores, findings);
    finish_all(cores);
    let cores: Vec<&Core> = cores.iter().collect();
    View::new(&cores).check(findings)
}

/// Tells what shards have prepared and do not know the decision of.
fn report_undecided(cores: &[Core], findings: &mut Findings) {
    for core in cores {
        for part in core.transactions.prepared() {
            let (id, shard) = part;
            let commits = cores.iter().any(|other| other.transactions.is_decided(part));
            let place = Place { shard: Some(shard), ..Place::reactor(core.config.reactor) };
            findings.add(Severity::Unfinished, FindingKind::Undecided, place, || {
                let (coordinator, number) = (id.coordinator, id.number);
                let end = if commits { "takes effect" } else { "is undone" };
                format!("operation {number} of shard {coordinator} {end} at the next start")
            });
        }
    }
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
        core.recovery.is_trial = true;
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
        let quiet = cores.iter().all(|core| {
            core.operations.live() == 0 && core.held.is_empty() && !core.transactions.has_prepared()
        });
        View { cores, places, whole: cores.len() == reactors, quiet }
    }

    /// Whether every inode's names are known: all entries are here, and none is on its way.
    fn names_are_known(&self) -> bool {
        self.whole && self.quiet
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
