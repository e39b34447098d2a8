//! Files: their extents against their sizes and against the stores; and the stores themselves.

use std::collections::BTreeMap;

use gannet_proto::Block;
use gannet_proto::limits::{BLOCK_BYTES, FILE_BYTES_MAX, LINKS_MAX};

use super::space::{Use, User};
use super::{FindingKind, Findings, Place, Severity, Summary, View};
use crate::Core;
use crate::extents::Extent;
use crate::namespace::{File, Node};

impl<'a> View<'a> {
    /// A file's extents: in order, within its size, on blocks that there are.
    pub(super) fn check_file(
        &self,
        core: &'a Core,
        node: &Node,
        file: &File,
        uses: &mut Vec<Use>,
        summary: &mut Summary,
        findings: &mut Findings,
    ) {
        let place = || Place::inode(core.config.reactor, node.inode);
        let (mut end, mut blocks, mut valid_end) = (0, 0, 0);
        for extent in file.extents.iter() {
            summary.extents += 1;
            if extent.file_block < end {
                findings.error(FindingKind::Extents, place(), || {
                    format!("two extents map its block {}", extent.file_block)
                });
            }
            if extent.tail_valid == 0 || u32::from(extent.tail_valid) > BLOCK_BYTES {
                findings.error(FindingKind::Extents, place(), || {
                    format!("{} bytes of an extent's last block are valid", extent.tail_valid)
                });
            }
            end = extent.end();
            blocks += u64::from(extent.blocks);
            valid_end = extent.file_block * u64::from(BLOCK_BYTES) + extent.valid_bytes();
            if self.check_extent(core, node, &extent, summary, findings) {
                uses.extend(node.inode.shard().map(|shard| Use {
                    store: extent.store,
                    block: extent.block.0,
                    blocks: extent.blocks.into(),
                    shard,
                    by: User::File(node.inode),
                }));
            }
        }
        if blocks != file.extents.blocks() {
            findings.error(FindingKind::Extents, place(), || {
                format!("it counts {} blocks and has {blocks}", file.extents.blocks())
            });
        }
        if valid_end > file.size {
            findings.error(FindingKind::Size, place(), || {
                format!("it is {} bytes long and has data up to byte {valid_end}", file.size)
            });
        }
        if file.size > FILE_BYTES_MAX {
            findings.error(FindingKind::Size, place(), || {
                format!("it is {} bytes long, more than a file can be", file.size)
            });
        }
        // Without a name it is there as long as somebody has it open.
        let fits = match node.links {
            0 => core.opens.is_orphan(node.inode),
            links => links <= LINKS_MAX && !core.opens.is_orphan(node.inode),
        };
        if !fits {
            findings
                .error(FindingKind::Links, place(), || format!("it counts {} links", node.links));
        }
        if core.ready {
            let known = |store| self.authority(core).targets.store(store).is_some();
            for store in file.set.iter().filter(|store| !known(*store)) {
                findings.error(FindingKind::UnknownStore, place(), || {
                    format!("it is striped over store {store}, which does not exist")
                });
            }
        }
    }

    /// Whether the blocks of an extent exist.
    fn check_extent(
        &self,
        core: &'a Core,
        node: &Node,
        extent: &Extent,
        summary: &mut Summary,
        findings: &mut Findings,
    ) -> bool {
        if !core.ready {
            // The stores are not known yet.
            return true;
        }
        let (Extent { store: id, block: Block(block), generation, .. }, count) =
            (*extent, u64::from(extent.blocks));
        let place = || {
            let place = Place::inode(core.config.reactor, node.inode);
            place.at_blocks(id, Block(block), count)
        };
        let Some(store) = self.authority(core).targets.store(id) else {
            findings.error(FindingKind::UnknownStore, place(), || {
                "it has data on a store that does not exist".to_owned()
            });
            return false;
        };
        if generation > store.generation {
            // Reactor 0 alone records generations. Another reactor may hear of one from the data
            // server itself, and record a write before a crash keeps reactor 0 from it.
            let severity = match core.config.reactor {
                0 => Severity::Error,
                _ => Severity::Unfinished,
            };
            findings.add(severity, FindingKind::UnknownGeneration, place(), || {
                let known = store.generation;
                format!("it has data of generation {generation}, the store is known in {known}")
            });
        }
        let of = summary.stores.binary_search_by_key(&id, |store| store.store);
        if let Ok(index) = of {
            let lost = generation < store.generation;
            summary.stores[index].mapped += count;
            summary.stores[index].lost += if lost { count } else { 0 };
        }
        if block.checked_add(count).is_none_or(|end| end > store.blocks) {
            findings.error(FindingKind::OutsideStore, place(), || {
                format!("it has data beyond the end of a store of {} blocks", store.blocks)
            });
            return false;
        }
        true
    }

    /// Data servers and stores have names of their own, and stores belong to data servers.
    pub(super) fn check_stores(&self, core: &Core, findings: &mut Findings) {
        let reactor = core.config.reactor;
        if reactor != 0 {
            // It learns of names later than of numbers.
            return;
        }
        let mut names = BTreeMap::new();
        for (id, target) in core.targets.iter() {
            if let Some(other) = names.insert(target.uuid, id) {
                findings.error(FindingKind::Target, Place::reactor(reactor), || {
                    format!("data servers {other} and {id} have one name")
                });
            }
        }
        let mut names = BTreeMap::new();
        for (id, store) in core.targets.stores() {
            if let Some(other) = names.insert(store.uuid, id) {
                findings.error(FindingKind::Target, Place::reactor(reactor), || {
                    format!("stores {other} and {id} have one name")
                });
            }
            if !core.targets.iter().any(|(target, _)| target == store.target) {
                findings.error(FindingKind::Target, Place::reactor(reactor), || {
                    format!("store {id} is of data server {}, which does not exist", store.target)
                });
            }
        }
    }
}
