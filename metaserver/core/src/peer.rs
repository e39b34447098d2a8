//! Messages between the cores of one metadata server.
//!
//! They travel inside one process, in order and without loss; a crash ends all cores together. A
//! message leaves when what it depends on is durable at its sender, so its receiver may build on
//! it. A core sends messages to itself in the same way, so operations over two shards run alike
//! wherever the shards are.

use gannet_proto::control::StoreInfo;
use gannet_proto::operations::Attributes;
use gannet_proto::{Inode, ShardId, Status, StoreId, TargetId};

use crate::directory::Entry;
use crate::identities::Identity;
use crate::rename_checks::{Rights, Standing};
use crate::transactions::{Part, TransactionId};
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
    /// The coordinator has decided: what the participant prepared takes effect, or not.
    Decision { part: Part, commits: bool, token: u64 },
    /// The participant has applied a decision in memory. That may be lost: the decision is not.
    Applied { id: TransactionId, token: u64 },
    /// The participant has applied a decision durably, and will not ask for it.
    Confirmed { part: Part },
    /// After a start, to every other reactor: which of its decisions the sender does not know.
    Undecided { parts: Vec<Part> },
    /// Those of them that take effect. The others do not.
    Decisions { commits: Vec<Part> },
    /// After a start, to every other reactor: the sender has applied all decisions durably.
    Resolved,
}

/// A step of an operation over several shards.
#[derive(Clone, Debug)]
pub(crate) struct StepRequest {
    /// The coordinator's reactor.
    pub reactor: u16,
    /// The operation there.
    pub token: u64,
    /// Age of the operation.
    pub order: u64,
    /// The transaction for which the step prepares something.
    pub id: TransactionId,
    pub step: Step,
}

/// What may be asked of a shard. Those that prepare something are answered when it is durable; the
/// coordinator's own shard only takes what it will do into the operation's plan.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Prepare: make a directory that has no entry yet.
    MakeDirectory { shard: ShardId, parent: Inode, mode: u32, uid: u32, gid: u32 },
    /// Prepare: remove a directory, which is empty, and belongs to `owner` if there is one.
    RemoveDirectory { inode: Inode, owner: Option<u32> },
    /// Prepare: a file has one more name.
    Link { inode: Inode },
    /// Prepare: a file, which belongs to `owner` if there is one, has one name less.
    Unlink { inode: Inode, owner: Option<u32> },
    /// Prepare: enter an inode into a directory, over what is there, if who asks may change it.
    Enter {
        directory: Inode,
        name: Box<[u8]>,
        entry: Entry,
        mode: EnterMode,
        asker: Option<Identity>,
    },
    /// Prepare: a directory has another parent, if who asks may write to it, and if it belongs to
    /// `owner` where there is one.
    SetParent { inode: Inode, parent: Inode, asker: Option<Identity>, owner: Option<u32> },
    /// Prepare: the name of an inode has changed, which belongs to `owner` if there is one.
    Touch { inode: Inode, owner: Option<u32> },
    /// Answer when a name is not held.
    AwaitName { directory: Inode, name: Box<[u8]> },
    /// Is `sought` the directory `from` or above it?
    Ancestry { from: Inode, sought: Inode },
    /// What stands under a name, and may who asks change that?
    Look { directory: Inode, name: Box<[u8]>, asker: Option<Identity> },
    /// What may somebody do with an inode?
    Rights { inode: Inode, asker: Identity },
    /// Take the lock that serialises moves of directories.
    LockRenames,
    /// Let go of it.
    UnlockRenames,
}

/// What an entry may do to the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnterMode {
    /// Replace it, if the types fit.
    Replace,
    /// Nothing: the name has to be free.
    NoReplace,
    /// Take its place; it has to be there, and finds another.
    Exchange,
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Done,
    Failed(Status),
    /// `MakeDirectory`, `Link`: how the inode will be.
    Attributes(Attributes),
    /// `Enter`: what was there, and whether it has to belong to who asks.
    Entered {
        replaced: Option<Entry>,
        guarded: bool,
    },
    /// `Look`.
    Standing(Standing),
    /// `Rights`: of this inode.
    Rights(Inode, Rights),
    /// `Enter`: the name leads to the inode already.
    Same,
    /// Another operation holds this name, and waits for nobody younger.
    Held(Inode, Box<[u8]>),
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
                self.resolve_transactions(now, sink);
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
            Message::Decision { part, commits, token } => {
                self.decision_came(now, (from, token), part, commits, sink);
            }
            Message::Applied { id, token } => self.part_applied(token, id, sink),
            Message::Confirmed { part } => self.part_confirmed(now, part, sink),
            Message::Undecided { parts } => self.decisions_asked(from, parts, sink),
            Message::Decisions { commits } => self.decisions_told(now, commits, sink),
            Message::Resolved => self.reactor_resolved(now, sink),
        }
    }
}
