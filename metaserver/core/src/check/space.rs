//! Blocks: each has one user at most, lies in a zone of its user's shard, and is marked exactly if it
//! is used; and zones belong to one shard each.

use gannet_proto::{Block, Inode, ShardId, StoreId};

use super::{FindingKind, Findings, Place, StoreSummary, Summary, View};
use crate::Core;

/// Who uses blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// A file maps them.
    File(Inode),
    /// An operation has staged them, or keeps them from being used again.
    Operation(u32),
    /// They were freed a moment ago.
    Cooling,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            User::File(inode) => write!(f, "inode {:#x}", inode.0),
            User::Operation(index) => write!(f, "operation {index}"),
            User::Cooling => f.write_str("what was freed a moment ago"),
        }
    }
}

/// Blocks in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub store: StoreId,
    pub block: u64,
    pub blocks: u64,
    pub shard: ShardId,
    pub by: User,
}

impl Use {
    fn end(&self) -> u64 {
        self.block + self.blocks
    }
}

/// A zone that a shard has.
#[derive(Clone, Copy, Debug)]
struct ZoneOf {
    store: StoreId,
    number: u32,
    first: u64,
    end: u64,
    shard: ShardId,
}

/// Consecutive blocks of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    store: StoreId,
    shard: ShardId,
    first: u64,
    end: u64,
}

/// Sorts runs and joins those that touch or overlap.
fn coalesce(runs: &mut Vec<Run>) {
    runs.sort_unstable();
    runs.dedup_by(|next, last| {
        let joins = (next.store, next.shard) == (last.store, last.shard) && next.first <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
}

/// The blocks of `from` that are not in `without`; both coalesced.
fn difference(from: &[Run], without: &[Run], mut each: impl FnMut(Run)) {
    let mut rest = without;
    for run in from {
        let place = (run.store, run.shard);
        let mut first = run.first;
        let before = |other: &Run| ((other.store, other.shard), other.end) <= (place, run.first);
        rest = &rest[rest.partition_point(before)..];
        let inside = rest
            .iter()
            .take_while(|other| (other.store, other.shard) == place && other.first < run.end);
        for other in inside {
            if other.first > first {
                each(Run { first, end: other.first, ..*run });
            }
            first = first.max(other.end);
        }
        if first < run.end {
            each(Run { first, ..*run });
        }
    }
}

impl View<'_> {
    fn reactor_of(&self, shard: ShardId) -> u16 {
        self.cores.first().map_or(0, |core| core.reactor_of(shard))
    }

    /// Everything about blocks. `uses` are those of files.
    pub(super) fn check_space(
        &self,
        mut uses: Vec<Use>,
        summary: &mut Summary,
        findings: &mut Findings,
    ) {
        let ready = self.cores.iter().all(|core| core.ready);
        if ready {
            self.cores.iter().for_each(|core| transient_uses(core, &mut uses));
        }
        uses.sort_unstable_by_key(|one| (one.store, one.block, one.blocks, one.shard));
        self.check_shared(&uses, findings);
        if !ready {
            return;
        }
        let zones = self.check_zones(summary, findings);
        let mut used = self.check_placed(&uses, &zones, findings);
        drop(uses);
        coalesce(&mut used);
        let mut marked = self.marked(findings);
        coalesce(&mut marked);
        let place = |run: Run| {
            let shard = Some(run.shard);
            let place = Place { shard, ..Place::reactor(self.reactor_of(run.shard)) };
            place.at_blocks(run.store, Block(run.first), run.end - run.first)
        };
        difference(&marked, &used, |run| {
            findings.error(FindingKind::Leaked, place(run), || {
                "the blocks are neither used nor free".to_owned()
            });
        });
        difference(&used, &marked, |run| {
            findings.error(FindingKind::Unmarked, place(run), || {
                "the blocks are used and count as free".to_owned()
            });
        });
        for store in &summary.stores {
            check_sum(store, &used, findings);
        }
    }

    /// No block has two users.
    fn check_shared(&self, uses: &[Use], findings: &mut Findings) {
        let Some((first, rest)) = uses.split_first() else { return };
        let mut last = *first;
        for next in rest {
            if next.store == last.store && next.block < last.end() {
                let until = last.end().min(next.end());
                let place = match next.by {
                    User::File(inode) => Place::inode(self.reactor_of(next.shard), inode),
                    _ => Place::reactor(self.reactor_of(next.shard)),
                };
                let place = place.at_blocks(next.store, Block(next.block), until - next.block);
                findings.error(FindingKind::UsedTwice, place, || {
                    format!("the blocks are used by {} and by {}", last.by, next.by)
                });
            }
            if next.store != last.store || next.end() > last.end() {
                last = *next;
            }
        }
    }

    /// The zones of all shards, by store and place. Each has one owner, and reactor 0 knows it.
    fn check_zones(&self, summary: &mut Summary, findings: &mut Findings) -> Vec<ZoneOf> {
        let mut zones = Vec::new();
        for core in self.cores {
            for (shard, store, free, list) in core.space.pools() {
                let of = summary.stores.binary_search_by_key(&store, |known| known.store);
                if let Ok(index) = of {
                    let known = &mut summary.stores[index];
                    known.zones += list.len() as u64;
                    known.zone_blocks +=
                        list.iter().map(|zone| u64::from(zone.blocks)).sum::<u64>();
                    known.free += free;
                }
                zones.extend(list.iter().map(|zone| ZoneOf {
                    store,
                    number: zone.number,
                    first: zone.first,
                    end: zone.first + u64::from(zone.blocks),
                    shard,
                }));
            }
        }
        zones.sort_unstable_by_key(|zone| (zone.store, zone.first, zone.shard));
        for pair in zones.windows(2) {
            let [one, other] = pair else { continue };
            if one.store == other.store && other.first < one.end {
                let place = Place::reactor(self.reactor_of(one.shard));
                findings.error(FindingKind::Zone, place, || {
                    let (number, store) = (one.number, one.store);
                    let (one, other) = (one.shard, other.shard);
                    format!("zone {number} of store {store} belongs to shards {one} and {other}")
                });
            }
        }
        if self.names_are_known() {
            self.check_zone_table(&zones, findings);
        }
        zones
    }

    /// Reactor 0 gave each zone to the shard that has it, and to no other.
    fn check_zone_table(&self, zones: &[ZoneOf], findings: &mut Findings) {
        let Some(core) = self.cores.first() else { return };
        let mut given: Vec<(StoreId, u32, ShardId)> = core.zones.assigned().collect();
        given.sort_unstable();
        let mut had: Vec<(StoreId, u32, ShardId)> =
            zones.iter().map(|zone| (zone.store, zone.number, zone.shard)).collect();
        had.sort_unstable();
        for zone in had.iter().filter(|zone| given.binary_search(zone).is_err()) {
            let (store, number, shard) = *zone;
            let reactor = self.reactor_of(shard);
            let place = Place { shard: Some(shard), ..Place::reactor(reactor) };
            findings.error(FindingKind::Zone, place, || {
                format!(
                    "it has zone {number} of store {store}, which reactor 0 did not give to shard \
                     {shard}"
                )
            });
        }
        for zone in given.iter().filter(|zone| had.binary_search(zone).is_err()) {
            let (store, number, shard) = *zone;
            let place = Place { shard: Some(shard), ..Place::reactor(0) };
            findings.error(FindingKind::Zone, place, || {
                format!(
                    "zone {number} of store {store} is given to shard {shard}, whose reactor does \
                     not have it"
                )
            });
        }
    }

    /// The blocks in use, as far as they lie in zones of their shards.
    fn check_placed(&self, uses: &[Use], zones: &[ZoneOf], findings: &mut Findings) -> Vec<Run> {
        let mut used = Vec::with_capacity(uses.len());
        for one in uses {
            let mut block = one.block;
            while block < one.end() {
                let behind =
                    zones.partition_point(|zone| (zone.store, zone.first) <= (one.store, block));
                let zone = behind.checked_sub(1).map(|index| zones[index]);
                let zone = zone.filter(|zone| zone.store == one.store && block < zone.end);
                match zone {
                    Some(zone) if zone.shard == one.shard => {
                        let end = zone.end.min(one.end());
                        let Use { store, shard, .. } = *one;
                        used.push(Run { store, shard, first: block, end });
                        block = end;
                    }
                    _ => {
                        self.report_foreign(one, block, zone, findings);
                        // As a start does: what lies behind is not marked either.
                        break;
                    }
                }
            }
        }
        used
    }

    fn report_foreign(&self, one: &Use, block: u64, zone: Option<ZoneOf>, findings: &mut Findings) {
        let reactor = self.reactor_of(one.shard);
        let place = match one.by {
            User::File(inode) => Place::inode(reactor, inode),
            _ => Place { shard: Some(one.shard), ..Place::reactor(reactor) },
        };
        let place = place.at_blocks(one.store, Block(block), one.end() - block);
        findings.error(FindingKind::ForeignZone, place, || match zone {
            Some(zone) => format!(
                "{} uses blocks of zone {}, which belongs to shard {}",
                one.by, zone.number, zone.shard
            ),
            None => format!("{} uses blocks of a zone that belongs to nobody", one.by),
        });
    }

    /// The blocks that are marked as used; zones count them right.
    fn marked(&self, findings: &mut Findings) -> Vec<Run> {
        let mut marked = Vec::new();
        for core in self.cores {
            for (shard, store, free, zones) in core.space.pools() {
                let mut sum = 0;
                for zone in zones {
                    let (mut at, mut in_use) = (0, 0);
                    while at < zone.blocks {
                        let start = zone.seek(at, true);
                        let end = zone.seek(start, false);
                        if start < end {
                            let (first, end) =
                                (zone.first + u64::from(start), zone.first + u64::from(end));
                            marked.push(Run { store, shard, first, end });
                        }
                        in_use += end - start;
                        at = end;
                    }
                    sum += u64::from(zone.free);
                    if zone.free + in_use != zone.blocks {
                        let place =
                            Place { shard: Some(shard), ..Place::reactor(core.config.reactor) };
                        findings.error(FindingKind::SpaceCount, place, || {
                            let (number, free) = (zone.number, zone.free);
                            format!(
                                "zone {number} of store {store} counts {free} free blocks and uses \
                                 {in_use} of {}",
                                zone.blocks
                            )
                        });
                    }
                }
                if sum != free {
                    let place = Place { shard: Some(shard), ..Place::reactor(core.config.reactor) };
                    findings.error(FindingKind::SpaceCount, place, || {
                        format!(
                            "{free} blocks of store {store} count as free, its zones have {sum}"
                        )
                    });
                }
            }
        }
        marked
    }
}

/// What is used and what is free are together what shards have.
fn check_sum(store: &StoreSummary, used: &[Run], findings: &mut Findings) {
    let start = used.partition_point(|run| run.store < store.store);
    let runs = used[start..].iter().take_while(|run| run.store == store.store);
    let in_use: u64 = runs.map(|run| run.end - run.first).sum();
    if in_use + store.free != store.zone_blocks {
        findings.error(FindingKind::SpaceCount, Place::default(), || {
            format!(
                "{in_use} blocks of store {} are used and {} free, of {} in zones of shards",
                store.store, store.free, store.zone_blocks
            )
        });
    }
}

/// What operations under way use, and what cools down.
fn transient_uses(core: &Core, uses: &mut Vec<Use>) {
    let mut add = |shard, span: crate::space::Span, by| {
        let (store, block, blocks) = (span.store, span.block.0, u64::from(span.blocks));
        uses.push(Use { store, block, blocks, shard, by });
    };
    for (id, operation) in core.operations.iter() {
        for run in &operation.staged {
            add(operation.shard(), run.span, User::Operation(id.index));
        }
        for run in &operation.pinned {
            add(run.shard, run.span, User::Operation(id.index));
        }
    }
    for (shard, span) in core.space.cooling() {
        add(shard, span, User::Cooling);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Blocks = BTreeSet<(u32, u16, u64)>;

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let run = (1..3u32, 0..2u16, 0..60u64, 1..9u64);
        let run = run.prop_map(|(store, shard, first, blocks)| Run {
            store: StoreId(store),
            shard: ShardId(shard),
            first,
            end: first + blocks,
        });
        prop::collection::vec(run, 0..30)
    }

    fn blocks(runs: &[Run]) -> Blocks {
        let each = |run: &Run| {
            let run = *run;
            (run.first..run.end).map(move |block| (run.store.0, run.shard.0, block))
        };
        runs.iter().flat_map(each).collect()
    }

    proptest! {
        #[test]
        fn runs_behave_as_sets_of_blocks(from in runs(), without in runs()) {
            let (all, other) = (blocks(&from), blocks(&without));
            let (mut from, mut without) = (from, without);
            coalesce(&mut from);
            coalesce(&mut without);
            prop_assert_eq!(blocks(&from), all.clone());
            let apart = from.windows(2).all(|pair| {
                (pair[0].store, pair[0].shard) != (pair[1].store, pair[1].shard)
                    || pair[0].end < pair[1].first
            });
            prop_assert!(from.is_sorted() && apart);
            let mut left = Vec::new();
            difference(&from, &without, |run| left.push(run));
            let count: u64 = left.iter().map(|run| run.end - run.first).sum();
            let expected: Blocks = all.difference(&other).copied().collect();
            prop_assert_eq!(count, expected.len() as u64);
            prop_assert_eq!(blocks(&left), expected);
        }
    }
}
