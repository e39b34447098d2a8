//! Files that hosts have open, and those that nothing but that keeps.
//!
//! An open is a session's, at the reactor of its inode, wherever the names are. It leaves no record,
//! so a restart of the metadata server loses it, and the host declares it anew. Only when the last
//! name of an open file goes, the record that removes it follows one that keeps the inode
//! ([`Change::OpenKept`]): the file lives on without a name, as an *orphan*, readable and writable by
//! handle. It goes with its last open: when that is closed, or with its session.
//!
//! After a start the hosts of the last run may come back, and nobody knows what they have open. Until
//! [`Core::end_reclaim`] each file of the last run is taken for open: one whose last name goes, by
//! recovery or by a request, stays as an orphan, and so do the orphans that the log tells of. Those that
//! nobody has declared by then are dropped. That is when all sessions that the log knows have told what
//! they have open, or have ended; so a session is recorded before its first open is answered
//! ([`Change::SessionKnown`]). What is made after the start is nobody's of the last run.

use gannet_proto::limits::SHARDS;
use gannet_proto::operations::{
    Attributes, DeclareOpen, InodeRequest, NameRequest, inode_operation, name_flags, name_operation,
};
use gannet_proto::slots::Slot;
use gannet_proto::{Inode, Status};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::identities::{READ, WRITE};
use crate::record::{Change, Origin, Reply};
use crate::reply::{Context, ReplyKind};
use crate::sessions::KeptReply;
use crate::{Core, Lsn, Now, SessionIndex, Sink};

/// Most opens of one session at one reactor.
pub(crate) const OPENS_MAX: usize = 1 << 16;

/// What one open grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// Who opened the file.
    pub uid: u32,
    /// What it was opened for, as permission bits.
    pub rights: u32,
}

/// Which files of a reactor are open, or were.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    /// Opens of all sessions.
    counts: FxHashMap<Inode, u32>,
    /// Files that will stay when their last name goes: by records, as they stand in the log.
    kept: FxHashSet<Inode>,
    /// Files that have no name.
    orphans: FxHashSet<Inode>,
    /// Orphans of the last run, whose hosts may come back.
    awaited: FxHashSet<Inode>,
    /// While these may come back: the highest inode number that the last run gave out, by shard.
    reclaimable: Option<Box<[u64; SHARDS]>>,
    /// Sessions of the last run that have not told yet what they have open.
    returning: FxHashSet<u32>,
    /// Orphans that nobody has open: to be dropped.
    abandoned: Vec<Inode>,
}

impl Opens {
    /// Whether a file has no name.
    pub(crate) fn is_orphan(&self, inode: Inode) -> bool {
        self.orphans.contains(&inode)
    }

    fn abandon_if_unused(&mut self, inode: Inode) {
        let is_used = self.counts.contains_key(&inode) || self.awaited.contains(&inode);
        if self.is_orphan(inode) && !is_used {
            self.abandoned.push(inode);
        }
    }

    fn add(&mut self, inode: Inode) {
        *self.counts.entry(inode).or_default() += 1;
    }

    fn remove(&mut self, inode: Inode) {
        let Some(count) = self.counts.get_mut(&inode) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&inode);
            self.abandon_if_unused(inode);
        }
    }

    /// The log is read: what it knows, up to these inode numbers, waits for the hosts of the last run.
    fn replayed(&mut self, last_numbers: [u64; SHARDS]) {
        self.awaited = self.orphans.clone();
        self.reclaimable = Some(Box::new(last_numbers));
    }

    /// Whether a host of the last run may yet say that it has a file open.
    fn is_reclaimable(&self, inode: Inode) -> bool {
        let last_numbers = self.reclaimable.as_deref();
        let last = last_numbers.zip(inode.shard()).map(|(last, shard)| last[usize::from(shard.0)]);
        last.is_some_and(|last| inode.number() <= last)
    }

    /// Whether a file is open, or has to be taken for open.
    fn may_be_open(&self, inode: Inode) -> bool {
        self.counts.contains_key(&inode) || self.is_reclaimable(inode)
    }

    /// The last name of an inode goes. `true`: it stays as an orphan.
    pub(crate) fn orphan(&mut self, inode: Inode, replaying: bool) -> bool {
        if !self.kept.remove(&inode) {
            return false;
        }
        self.orphans.insert(inode);
        if self.is_reclaimable(inode) {
            self.awaited.insert(inode);
        }
        if !replaying {
            self.abandon_if_unused(inode);
        }
        true
    }

    /// An inode shall stay when its last name goes.
    pub(crate) fn keep(&mut self, inode: Inode) {
        self.kept.insert(inode);
    }

    /// An inode is gone.
    pub(crate) fn gone(&mut self, inode: Inode) {
        self.orphans.remove(&inode);
        self.awaited.remove(&inode);
    }

    /// The next orphan to be dropped.
    pub(crate) fn take_abandoned(&mut self) -> Option<Inode> {
        self.abandoned.pop()
    }
}

/// What an operation opens a file for, as permission bits; `None` for other operations.
fn rights_of(operation: u16) -> Option<u32> {
    match operation {
        inode_operation::OPEN_READ => Some(READ),
        inode_operation::OPEN_WRITE => Some(WRITE),
        inode_operation::OPEN_READ_WRITE => Some(READ | WRITE),
        _ => None,
    }
}

/// What a CREATE opens the file for as well, as permission bits; `None` for other requests.
pub(crate) fn rights_of_create(request: &NameRequest) -> Option<u32> {
    let flags = request.flags.get();
    let right = |flag, right| if flags & flag != 0 { right } else { 0 };
    let rights = right(name_flags::OPEN_READ, READ) | right(name_flags::OPEN_WRITE, WRITE);
    let creates = request.operation.get() == name_operation::CREATE;
    (creates && rights != 0).then_some(rights)
}

/// Whether the operation opens or closes a file.
pub(crate) fn opens_or_closes(operation: u16) -> bool {
    rights_of(operation).is_some() || operation == inode_operation::CLOSE
}

impl Core {
    /// `OPEN_READ`, `OPEN_WRITE`, `OPEN_READ_WRITE` and CLOSE. Each may be executed again: an open has
    /// a number of the host's.
    pub(crate) fn open_or_close(
        &mut self,
        now: Now,
        context: &Context,
        inode: Inode,
        request: &InodeRequest,
        sink: &mut impl Sink,
    ) {
        let number = request.open.get();
        let done = match rights_of(request.operation.get()) {
            Some(rights) => {
                let identity = request.identity.get();
                self.open_file(now, context.session, (inode, number), identity, rights, sink)
            }
            None => {
                self.close_file(context.session, inode, number);
                Ok(Lsn(0))
            }
        };
        match done {
            Ok(known_since) => {
                let node = self.nodes.get(&inode);
                let found = node.map(|node| (node.lsn, node.attributes()));
                let (after, attributes) = found.unwrap_or((Lsn(0), Attributes::default()));
                self.answer_entry(context, after.max(known_since), (attributes, 0), None, sink);
            }
            Err(status) => self.answer_status(context, ReplyKind::Entry, status, sink),
        }
        self.settle(now, sink);
    }

    /// The open that comes with a file which a CREATE is about to make, if it asks for one: whoever makes a
    /// file has it open for what it wanted, whatever the mode says.
    ///
    /// # Errors
    /// `TOO_MANY_OPEN`, `UNKNOWN_IDENTITY`.
    pub(crate) fn open_of_create(
        &self,
        session: SessionIndex,
        request: &NameRequest,
    ) -> Result<Option<Open>, Status> {
        let Some(rights) = rights_of_create(request) else { return Ok(None) };
        let known = self.sessions.view(session).ok_or(Status::STALE_HANDLE)?;
        if known.opens.len() >= OPENS_MAX {
            return Err(Status::TOO_MANY_OPEN);
        }
        let asker = self.asker(session, request.identity.get())?;
        Ok(Some(Open { uid: asker.map_or(0, |asker| asker.uid), rights }))
    }

    /// A CREATE that made and opened a file is asked again. Its answer is in the log, and the open may have
    /// gone with a restart: it is there again when the host has the answer.
    pub(crate) fn open_made_again(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &NameRequest,
        sink: &mut impl Sink,
    ) {
        let (header, Some(rights)) = (&request.header, rights_of_create(request)) else { return };
        let uid = match self.asker(session, request.identity.get()) {
            Ok(asker) if self.ready => asker.map_or(0, |asker| asker.uid),
            _ => return,
        };
        let slot = self.sessions.find(session).and_then(|session| session.used_slot(header));
        let made = match slot.map(|(state, _)| &state.slot) {
            Some(Slot::Answered { sequence, reply: Some(KeptReply::Entry(made)), .. })
                if *sequence == header.sequence.get() =>
            {
                made.handle.inode()
            }
            _ => return,
        };
        if self.nodes.contains_key(&made) {
            // Beyond the bound on opens it stays as long as it has a name.
            let key = (made, request.open.get());
            let _noted = self.note_open(now, session, key, Open { uid, rights }, sink);
        }
    }

    pub(crate) fn open_file(
        &mut self,
        now: Now,
        session: SessionIndex,
        (inode, number): (Inode, u32),
        identity: u16,
        rights: u32,
        sink: &mut impl Sink,
    ) -> Result<Lsn, Status> {
        let node = self.nodes.get(&inode).ok_or(Status::STALE_HANDLE)?;
        if node.file().is_none() && rights & WRITE != 0 {
            return Err(Status::IS_DIRECTORY);
        }
        let asker = self.asker(session, identity)?;
        if asker.is_some_and(|asker| !asker.may(node, rights)) {
            return Err(Status::ACCESS);
        }
        let uid = asker.map_or(0, |asker| asker.uid);
        self.note_open(now, session, (inode, number), Open { uid, rights }, sink)
    }

    /// Notes an open, and tells after what its answer may leave: a start has to know of the session.
    pub(crate) fn note_open(
        &mut self,
        now: Now,
        index: SessionIndex,
        key: (Inode, u32),
        open: Open,
        sink: &mut impl Sink,
    ) -> Result<Lsn, Status> {
        let session = self.sessions.find(index).ok_or(Status::STALE_HANDLE)?;
        if session.opens.len() >= OPENS_MAX && !session.opens.contains_key(&key) {
            return Err(Status::TOO_MANY_OPEN);
        }
        if session.opens.insert(key, open).is_none() {
            self.opens.add(key.0);
        }
        if let Some(known_since) = session.known_since {
            return Ok(known_since);
        }
        let change = Change::SessionKnown { session: session.id.0, instance: session.instance };
        let origin = self.origin_of_core(now, None);
        let (known_since, _) = self.commit(&origin, &change, sink);
        if let Some(session) = self.sessions.find(index) {
            session.known_since = Some(known_since);
        }
        Ok(known_since)
    }

    fn close_file(&mut self, session: SessionIndex, inode: Inode, number: u32) {
        let session = self.sessions.find(session);
        if session.is_some_and(|session| session.opens.remove(&(inode, number)).is_some()) {
            self.opens.remove(inode);
        }
    }

    /// A host says that it has a file open, since before the metadata server's start. It counts for files
    /// of the last run until [`Core::end_reclaim`], and for whom the file's mode lets or who owns it: an
    /// owner may have opened it whatever its mode, and has its way with it all the same. An open that is
    /// known stays as it is.
    pub fn declare_open(
        &mut self,
        now: Now,
        session: SessionIndex,
        request: &DeclareOpen,
        sink: &mut impl Sink,
    ) {
        let (inode, number) = (request.handle.inode(), request.open.get());
        let Some(rights) = rights_of(request.operation.get()) else { return };
        let known = self.sessions.view(session).map(|session| &session.opens);
        if known.is_none_or(|opens| opens.contains_key(&(inode, number))) {
            return;
        }
        let (Some(node), Ok(asker)) =
            (self.nodes.get(&inode), self.asker(session, request.identity.get()))
        else {
            return;
        };
        let may_open = asker.is_none_or(|asker| asker.uid == node.uid || asker.may(node, rights));
        let fits = node.file().is_some() || rights & WRITE == 0;
        if self.opens.is_reclaimable(inode) && may_open && fits {
            let uid = asker.map_or(0, |asker| asker.uid);
            // Beyond the bound the file is kept by whoever else has it open.
            let open = Open { uid, rights };
            let _noted = self.note_open(now, session, (inode, number), open, sink);
        }
    }

    /// Whether somebody has a file open, in this session, for all that is wanted.
    pub(crate) fn is_open_for(
        &self,
        session: SessionIndex,
        inode: Inode,
        uid: u32,
        wanted: u32,
    ) -> bool {
        let Some(session) = self.sessions.view(session) else { return false };
        let mut opens = session.opens.range((inode, 0)..=(inode, u32::MAX));
        opens.any(|(_, open)| open.uid == uid && open.rights & wanted == wanted)
    }

    /// Closes whatever a session has open.
    pub(crate) fn close_all(&mut self, session: SessionIndex) {
        let Some(session) = self.sessions.find(session) else { return };
        for (inode, _) in std::mem::take(&mut session.opens).into_keys() {
            self.opens.remove(inode);
        }
    }

    /// The log is read: from now on hosts of the last run may declare what they have open.
    pub(crate) fn begin_reclaim(&mut self) {
        self.opens.replayed(std::array::from_fn(|shard| self.shards[shard].last_number));
        self.opens.returning = self.sessions.iter().map(|(index, _)| index.0).collect();
    }

    /// A host has told all that it has open.
    pub fn reclaim_complete(&mut self, now: Now, session: SessionIndex, sink: &mut impl Sink) {
        self.opens.returning.remove(&session.0);
        self.end_reclaim_if_all_returned(now, sink);
    }

    /// Nobody of the last run is awaited any more: need not wait for the leases' end.
    pub(crate) fn end_reclaim_if_all_returned(&mut self, now: Now, sink: &mut impl Sink) {
        if self.ready && self.opens.reclaimable.is_some() && self.opens.returning.is_empty() {
            self.end_reclaim(now, sink);
        }
    }

    /// The hosts of the last run have come back by now, or do not: what none of them has declared
    /// open is dropped.
    pub fn end_reclaim(&mut self, now: Now, sink: &mut impl Sink) {
        self.opens.reclaimable = None;
        self.opens.returning.clear();
        let mut awaited: Vec<Inode> = std::mem::take(&mut self.opens.awaited).into_iter().collect();
        awaited.sort_unstable();
        awaited.into_iter().for_each(|inode| self.opens.abandon_if_unused(inode));
        self.settle(now, sink);
    }

    /// Drops an orphan, unless somebody has opened it meanwhile.
    pub(crate) fn drop_orphan(&mut self, now: Now, inode: Inode, sink: &mut impl Sink) {
        if self.opens.is_orphan(inode) && !self.opens.counts.contains_key(&inode) {
            let origin = self.origin_of_core(now, inode.shard());
            self.commit(&origin, &Change::NodeDropped { inode }, sink);
        }
    }

    /// Before a change is recorded that takes the last name of an open file: records that the file
    /// stays.
    pub(crate) fn keep_what_is_open(
        &mut self,
        origin: &Origin,
        change: &Change<'_>,
        sink: &mut impl Sink,
    ) {
        if self.opens.counts.is_empty() && self.opens.reclaimable.is_none() {
            return;
        }
        let inode = match *change {
            Change::EntryRemoved { directory, drop_inode: true, name } => {
                self.entry(directory, name).map(|entry| entry.inode)
            }
            Change::Renamed { to_directory, drop_inode: true, to_name, .. } => {
                self.entry(to_directory, to_name).map(|entry| entry.inode)
            }
            Change::Decided { effects, .. } => effects.unlinked(),
            Change::Applied { coordinator } => self.prepared_unlink(origin, coordinator),
            _ => None,
        };
        if let Some(inode) = inode {
            self.keep_if_open(origin, inode, sink);
        }
    }

    /// Records that a file stays when its last name goes, if it is open.
    fn keep_if_open(&mut self, origin: &Origin, inode: Inode, sink: &mut impl Sink) {
        let node = self.nodes.get(&inode);
        let is_last = node.is_some_and(|node| node.file().is_some() && node.links == 1);
        if is_last && self.opens.may_be_open(inode) && !self.opens.kept.contains(&inode) {
            let origin = Origin {
                shard: inode.shard(),
                session: 0,
                instance: 0,
                sequence: 0,
                slot: 0,
                reply: Reply::None,
                ..*origin
            };
            self.commit(&origin, &Change::OpenKept { inode }, sink);
        }
    }
}
