//! Messages between the cores of one metadata server.
//!
//! They travel inside one process, in order and without loss; a crash ends all cores together. A
//! message leaves when what it depends on is durable at its sender, so its receiver may build on
//! it. A core sends messages to itself in the same way, so operations over two shards run alike
//! wherever the shards are.

use gannet_proto::control::StoreInfo;
use gannet_proto::operations::Attributes;
use gannet_proto::{Inode, ShardId, Status, StoreId, TargetId};

use crate::identities::Identity;
use crate::{Core, Now, Sink};

/// A message between cores. Opaque to the shell, which carries it.
#[derive(Clone, Debug)]
pub struct PeerMessage(pub(crate) Message);

#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// Reactor 0 at its start: all data servers and stores, and the receiver's zones.
    Directory {
        targets: Vec<(TargetId, [u8; 16])>,
        stores: Vec<(StoreId, TargetId, StoreInfo)>,
        zones: Vec<(StoreId, u32, ShardId)>,
    },
    /// Reactor 0: a data server has a number.
    TargetKnown { target: TargetId, uuid: [u8; 16] },
    /// Reactor 0: a store has a number, or changed.
    StoreKnown { store: StoreId, target: TargetId, info: StoreInfo },
    /// Reactor 0: a data server enrolled with these stores, in the order of its hello.
    Enrolled { target: TargetId, stores: Vec<StoreId> },
    /// To reactor 0: a shard would like a zone.
    ZoneRequest { shard: ShardId, store: StoreId },
    /// Reactor 0: it has one.
    ZoneGranted { shard: ShardId, store: StoreId, zone: u32 },
    /// Reactor 0: there is none.
    ZoneRefused { shard: ShardId, store: StoreId },
    /// Reactor 0: give back all wholly free zones of the store.
    ZoneRecall { store: StoreId },
    /// To reactor 0: zones that come back; `recalled` if it asked.
    ZonesReturned { store: StoreId, zones: Vec<u32>, recalled: bool },
    /// Do a step of an operation over several shards.
    Step(StepRequest),
    /// How a step went.
    Outcome { token: u64, outcome: Outcome },
}

/// A step of an operation over several shards.
#[derive(Clone, Debug)]
pub(crate) struct StepRequest {
    /// The coordinator's reactor.
    pub reactor: u16,
    /// The operation there.
    pub token: u64,
    /// Age of the operation, which also names it in records.
    pub order: u64,
    pub step: Step,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Make a directory that has no entry yet.
    MakeDirectory { shard: ShardId, parent: Inode, mode: u32, uid: u32, gid: u32 },
    /// Remove a directory if it is empty.
    RemoveDirectory { inode: Inode },
    /// Remove a file whose last entry is gone.
    DropLink { inode: Inode },
    /// Enter an inode into a directory, over what is there.
    Link {
        directory: Inode,
        name: Box<[u8]>,
        inode: Inode,
        file_type: u32,
        no_replace: bool,
        /// The directory that was there is removed by now, and the name held for this.
        removed: bool,
    },
    /// Let go of a name that a `Link` held.
    Release { directory: Inode, name: Box<[u8]> },
    /// Answer when a name is not held.
    AwaitName { directory: Inode, name: Box<[u8]> },
    /// Set the parent of a directory.
    SetParent { inode: Inode, parent: Inode },
    /// Is `sought` the directory `from` or above it?
    Ancestry { from: Inode, sought: Inode },
    /// May this identity enter something here, over what is there? `Continue`: ask the owner of
    /// that inode.
    CheckEntering { directory: Inode, name: Box<[u8]>, replaces: bool, identity: Identity },
    /// Does the inode's mode grant this to the identity?
    CheckAccess { inode: Inode, wanted: u32, identity: Identity },
    /// Does the inode belong to this user?
    CheckOwner { inode: Inode, uid: u32 },
    /// Take the lock that serialises moves of directories.
    LockRenames,
    /// Let go of it.
    UnlockRenames,
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Done,
    Failed(Status),
    /// `MakeDirectory`.
    Made(Attributes),
    /// `Link`: done; a file that was there has to be dropped.
    Linked {
        replaced: Option<Inode>,
    },
    /// `Link`: the name names the inode already.
    Same,
    /// `Link`: an older operation holds the name.
    Held,
    /// `Link`: a directory is there and has to be removed first; the name is held.
    Replace(Inode),
    /// `Ancestry`: whether it is.
    Ancestor(bool),
    /// `Ancestry`: ask the shard of this directory.
    Continue(Inode),
}

impl Core {
    /// A message of another core.
    pub fn peer(&mut self, now: Now, from: u16, message: PeerMessage, sink: &mut impl Sink) {
        self.handle(now, from, message, sink);
        self.settle(now, sink);
    }

    pub(crate) fn handle(
        &mut self,
        now: Now,
        from: u16,
        message: PeerMessage,
        sink: &mut impl Sink,
    ) {
        match message.0 {
            Message::Directory { targets, stores, zones } => {
                self.learn_directory(&targets, &stores, &zones);
            }
            Message::TargetKnown { target, uuid } => {
                self.targets.add(target, Some(uuid));
            }
            Message::Enrolled { target, stores } => {
                if let Some(target) = self.targets.find(target) {
                    target.stores = stores;
                }
            }
            Message::StoreKnown { store, target, info } => {
                self.add_store(store, target, &info);
            }
            Message::ZoneRequest { shard, store } => {
                self.zone_requested(now, shard, store, sink);
            }
            Message::ZoneGranted { shard, store, zone } => self.zone_granted(shard, store, zone),
            Message::ZoneRefused { shard, store } => self.zone_refused(shard, store),
            Message::ZoneRecall { store } => self.zones_recalled(store, sink),
            Message::ZonesReturned { store, zones, recalled } => {
                self.zones_returned(now, (store, &zones), recalled, sink);
            }
            Message::Step(request) => self.perform(now, request, sink),
            Message::Outcome { token, outcome } => self.step_done(now, token, outcome, sink),
        }
        let _ = from;
    }
}
