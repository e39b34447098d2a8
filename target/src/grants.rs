//! The state of every grant, without I/O: queued, posting, posted, ended.
//!
//! ```text
//!            admit            begin             all_posted          under_way = 0
//!   (Ended) --------> Queued --------> Posting ------------> Posted ------------> end
//!                        |                |                    ^
//!                        | cut, revoke    | cut, failure       |
//!                        +----------------+--------------------+
//! ```
//!
//! Each session has a queue in the order of arrival; its head alone is `Posting`. What is *begun*
//! (`Posting` or `Posted`) is counted per session and per channel, apart for the present *era* and
//! for earlier ones. An era ends when the grants of a session or channel are cut off: a higher epoch,
//! a close, a lost connection, a new welcome. A grant is live while both its eras are present ones:
//! that is the check before each post (HAZARDS H5), and it costs two comparisons. A drain is over
//! when the count of earlier eras is zero.
//!
//! Owned by one reactor's thread. All operations but the cuts take constant time; nothing is
//! allocated but by [`Grants::reserve`].

use gannet_fabric::ConnectionId;
use gannet_proto::Status;
use gannet_proto::control::{Grant, grant_flags, grant_operation};
use gannet_proto::limits::GRANTS_MAX;
use gannet_runtime::memory::Slice;

use crate::defects::Defects;

/// No grant.
const NONE: u32 = u32::MAX;

/// Where a grant is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is none in this place.
    Ended,
    /// Nothing was posted for it.
    Queued,
    /// At the head of its session's queue, with pieces still to post.
    Posting,
    /// Nothing is to be posted for it any more but what its pieces under way lead to.
    Posted,
}

/// A grant and how far it got.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) grant: Grant,
    pub(crate) channel: u16,
    pub(crate) store: u16,
    pub(crate) session: u32,
    pub(crate) connection: ConnectionId,
    pub(crate) stage: Stage,
    /// Host bytes whose pieces were posted or done.
    pub(crate) cursor: u32,
    /// Pieces posted and not done.
    pub(crate) under_way: u32,
    /// Those of them whose last step is not posted. Counts while nothing has failed.
    pub(crate) unfinished: u32,
    /// The host was told that its bytes are there: the notice follows the last of them.
    pub(crate) told: bool,
    /// The first failure, or that the connection broke off after block I/O failed; OK so far.
    pub(crate) status: Status,
    /// The host's buffer, where the fabric maps it.
    pub(crate) view: Option<Slice>,
    begun: bool,
    session_era: u32,
    channel_era: u32,
    previous: u32,
    next: u32,
}

/// What a grant that ended leaves to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) term: u64,
    pub(crate) number: u64,
    pub(crate) operation: u8,
    pub(crate) flags: u8,
    pub(crate) length: u32,
    pub(crate) trailer: [u8; 32],
    pub(crate) status: Status,
    /// The host was told when its last byte was posted.
    pub(crate) told: bool,
    pub(crate) channel: u16,
    pub(crate) session: u32,
    /// The channel is still the one that it came on.
    pub(crate) channel_is_current: bool,
    /// The session is still the one that it was queued for.
    pub(crate) session_is_current: bool,
    /// It was the last one under way of the session's earlier eras.
    pub(crate) session_drained: bool,
    /// It was the last one under way of the channel's earlier eras.
    pub(crate) channel_drained: bool,
}

#[derive(Clone, Debug)]
struct Session {
    era: u32,
    /// What the grants of the era before are answered.
    cut_status: Status,
    head: u32,
    tail: u32,
    begun: u32,
    begun_before: u32,
}

#[derive(Clone, Debug)]
struct Channel {
    era: u32,
    begun: u32,
    begun_before: u32,
    /// Place of each grant that has not ended, by its number modulo the window.
    places: Vec<u32>,
}

/// All grants of a data server that have not ended.
#[derive(Debug)]
pub(crate) struct Grants {
    /// Changed in place and never moved: they are large, and there are many.
    entries: Vec<Entry>,
    free: Vec<u32>,
    sessions: Vec<Session>,
    channels: Vec<Channel>,
    pub(crate) defects: Defects,
}

impl Grants {
    /// No grants; room for the queues of `sessions` sessions.
    pub(crate) fn new(sessions: u32) -> Grants {
        let session = Session {
            era: 0,
            cut_status: Status::SESSION_GONE,
            head: NONE,
            tail: NONE,
            begun: 0,
            begun_before: 0,
        };
        Grants {
            entries: Vec::new(),
            free: Vec::new(),
            sessions: vec![session; sessions as usize],
            channels: Vec::new(),
            defects: Defects::default(),
        }
    }

    /// Makes room for `channels` channels with `grants` grants that have not ended in all, beside
    /// those that are there now.
    pub(crate) fn reserve(&mut self, channels: usize, grants: u32) {
        let channel = Channel { era: 0, begun: 0, begun_before: 0, places: vec![NONE; GRANTS_MAX] };
        if self.channels.len() < channels {
            self.channels.resize(channels, channel);
        }
        let from = self.entries.len() as u32;
        let places = from.max(self.len().saturating_add(grants));
        self.entries.resize_with(places as usize, Entry::none);
        // The lowest places last, so that a lightly used table keeps using the same warm ones.
        let mut free = Vec::with_capacity(places as usize);
        free.extend((from..places).rev());
        free.append(&mut self.free);
        self.free = free;
    }

    /// Queues a grant for its session; `None` when there is no room.
    pub(crate) fn admit(
        &mut self,
        grant: &Grant,
        channel: u16,
        store: u16,
        session: u32,
        connection: ConnectionId,
    ) -> Option<u32> {
        let place = self.free.pop()?;
        let queue = &mut self.sessions[session as usize];
        let origin = &mut self.channels[usize::from(channel)];
        let last = std::mem::replace(&mut queue.tail, place);
        let entry = &mut self.entries[place as usize];
        entry.grant.clone_from(grant);
        entry.channel = channel;
        entry.store = store;
        entry.session = session;
        entry.connection = connection;
        entry.stage = Stage::Queued;
        entry.cursor = 0;
        entry.under_way = 0;
        entry.unfinished = 0;
        entry.told = false;
        entry.status = Status::OK;
        entry.begun = false;
        entry.session_era = queue.era;
        entry.channel_era = origin.era;
        entry.previous = last;
        entry.next = NONE;
        origin.places[number_index(grant)] = place;
        match self.entries.get_mut(last as usize) {
            Some(last) => last.next = place,
            None => queue.head = place,
        }
        Some(place)
    }

    /// The grant whose turn it is in a session.
    pub(crate) fn head(&self, session: u32) -> Option<u32> {
        let head = self.sessions[session as usize].head;
        (head != NONE).then_some(head)
    }

    pub(crate) fn get(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize).filter(|entry| entry.stage != Stage::Ended)
    }

    pub(crate) fn get_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize).filter(|entry| entry.stage != Stage::Ended)
    }

    /// Whether anything may be posted for a grant now; otherwise what it is to be answered.
    ///
    /// Every post, to disk, fabric or mapped memory, is preceded by this (HAZARDS H5).
    #[inline]
    pub(crate) fn check_live(&self, entry: &Entry) -> Result<(), Status> {
        if !entry.status.is_ok() {
            return Err(entry.status);
        }
        if self.defects.live_checks() {
            return Ok(());
        }
        let session = &self.sessions[entry.session as usize];
        if entry.session_era != session.era {
            return Err(session.cut_status);
        }
        if entry.channel_era != self.channels[usize::from(entry.channel)].era {
            return Err(Status::STALE_EPOCH);
        }
        Ok(())
    }

    /// Begins a queued grant: from now on it counts as under way.
    pub(crate) fn begin(&mut self, place: u32) {
        let Some(entry) = self.get_mut(place).filter(|entry| !entry.begun) else { return };
        entry.begun = true;
        entry.stage = Stage::Posting;
        let (session_era, channel_era) = (entry.session_era, entry.channel_era);
        let (session, channel) = (entry.session as usize, usize::from(entry.channel));
        let (session, channel) = (&mut self.sessions[session], &mut self.channels[channel]);
        // Only a defect begins what is of an earlier era.
        let is_current = session_era == session.era;
        *(if is_current { &mut session.begun } else { &mut session.begun_before }) += 1;
        let is_current = channel_era == channel.era;
        *(if is_current { &mut channel.begun } else { &mut channel.begun_before }) += 1;
    }

    /// Ends the posting of a grant, with its first failure if `status` is one, and takes it out of
    /// its queue. True if nothing of it is under way: then it is to be ended.
    pub(crate) fn stop(&mut self, place: u32, status: Status) -> bool {
        let Some(entry) = self.get_mut(place) else { return false };
        // Where the connection broke off, too, bytes may be on their way, and only the host can end
        // that: it has to be told to.
        let broke_off = entry.status == Status::IO && status == Status::SESSION_GONE;
        if entry.status.is_ok() || broke_off {
            entry.status = status;
        }
        let nothing_under_way = entry.under_way == 0;
        if entry.stage != Stage::Posted {
            entry.stage = Stage::Posted;
            self.unlink(place);
        }
        nothing_under_way
    }

    /// Takes an ended grant out and says what is left to do for it.
    pub(crate) fn end(&mut self, place: u32) -> Option<Ended> {
        if self.get(place)?.stage != Stage::Posted {
            self.unlink(place);
        }
        let entry = &mut self.entries[place as usize];
        entry.stage = Stage::Ended;
        entry.view = None;
        self.free.push(place);
        let session = &mut self.sessions[entry.session as usize];
        let channel = &mut self.channels[usize::from(entry.channel)];
        let session_is_current = entry.session_era == session.era;
        let channel_is_current = entry.channel_era == channel.era;
        let (mut session_drained, mut channel_drained) = (false, false);
        if entry.begun {
            session_drained =
                count_down(session_is_current, &mut session.begun, &mut session.begun_before);
            channel_drained =
                count_down(channel_is_current, &mut channel.begun, &mut channel.begun_before);
        }
        let known = &mut channel.places[number_index(&entry.grant)];
        if *known == place {
            *known = NONE;
        }
        // What ends after its session was cut off must not count as done for that session.
        let status = match entry.status {
            Status::OK if !session_is_current => session.cut_status,
            status => status,
        };
        Some(Ended {
            term: entry.grant.term.get(),
            number: entry.grant.number.get(),
            operation: entry.grant.operation,
            flags: entry.grant.flags,
            length: entry.grant.length.get(),
            trailer: entry.grant.trailer,
            status,
            told: entry.told,
            channel: entry.channel,
            session: entry.session,
            channel_is_current,
            session_is_current,
            session_drained,
            channel_drained,
        })
    }

    /// Cuts off the grants of a session: they are answered `status`. Those with nothing under way
    /// are put into `idle`, to be ended.
    pub(crate) fn cut_session(&mut self, session: u32, status: Status, idle: &mut Vec<u32>) {
        let state = &mut self.sessions[session as usize];
        state.era = state.era.wrapping_add(1);
        state.cut_status = status;
        state.begun_before += std::mem::take(&mut state.begun);
        if self.defects.live_checks() {
            return;
        }
        while let Some(place) = self.head(session) {
            if self.stop(place, status) {
                idle.push(place);
            }
        }
    }

    /// Cuts off the grants of a channel: a new welcome, or a higher term elsewhere. As for
    /// [`Grants::cut_session`]; they are answered to nobody.
    pub(crate) fn cut_channel(&mut self, channel: u16, idle: &mut Vec<u32>) {
        let Some(state) = self.channels.get_mut(usize::from(channel)) else { return };
        state.era = state.era.wrapping_add(1);
        state.begun_before += std::mem::take(&mut state.begun);
        state.places.fill(NONE);
        if self.defects.live_checks() {
            return;
        }
        let from = idle.len();
        self.collect(channel, &[Stage::Queued, Stage::Posting], idle);
        let mut keep = from;
        for index in from..idle.len() {
            let place = idle[index];
            if self.stop(place, Status::STALE_EPOCH) {
                idle[keep] = place;
                keep += 1;
            }
        }
        idle.truncate(keep);
    }

    /// Drops what is queued of a channel whose connection broke; what was begun goes on. The
    /// dropped grants are put into `idle`, to be ended.
    pub(crate) fn drop_queued(&mut self, channel: u16, idle: &mut Vec<u32>) {
        let from = idle.len();
        self.collect(channel, &[Stage::Queued], idle);
        for place in &idle[from..] {
            self.stop(*place, Status::STALE_EPOCH);
        }
    }

    /// Revokes a grant by its number. Its place, to be ended, if nothing was posted for it.
    pub(crate) fn revoke(&mut self, channel: u16, number: u64) -> Option<u32> {
        let places = &self.channels.get(usize::from(channel))?.places;
        let place = places[number as usize % GRANTS_MAX];
        let entry = self.get(place)?;
        if entry.stage != Stage::Queued
            || entry.grant.number.get() != number
            || entry.channel != channel
        {
            return None;
        }
        self.stop(place, Status::REVOKED);
        Some(place)
    }

    /// Grants of a session's present era that are begun.
    pub(crate) fn begun(&self, session: u32) -> u32 {
        self.sessions[session as usize].begun
    }

    /// Whether no grant of a session is left.
    pub(crate) fn is_idle(&self, session: u32) -> bool {
        let session = &self.sessions[session as usize];
        session.begun == 0 && session.begun_before == 0 && session.head == NONE
    }

    /// Whether nothing of a session's earlier eras is under way.
    pub(crate) fn session_is_drained(&self, session: u32) -> bool {
        self.sessions[session as usize].begun_before == 0 || self.defects.live_checks()
    }

    /// Whether nothing of a channel's earlier eras is under way.
    pub(crate) fn channel_is_drained(&self, channel: u16) -> bool {
        let drained = |channel: &Channel| channel.begun_before == 0;
        self.channels.get(usize::from(channel)).is_none_or(drained) || self.defects.live_checks()
    }

    /// Grants that have not ended.
    pub(crate) fn len(&self) -> u32 {
        (self.entries.len() - self.free.len()) as u32
    }

    /// Grants that are begun, of all eras.
    pub(crate) fn begun_in_all(&self) -> u32 {
        self.channels.iter().map(|channel| channel.begun + channel.begun_before).sum()
    }

    /// The grants of a channel that are in one of `stages`.
    fn collect(&self, channel: u16, stages: &[Stage], into: &mut Vec<u32>) {
        let all = (0..).zip(&self.entries);
        let its = all.filter(|(_, e)| e.channel == channel && stages.contains(&e.stage));
        into.extend(its.map(|(place, _)| place));
    }

    /// Takes a grant out of its session's queue.
    fn unlink(&mut self, place: u32) {
        let Some(entry) = self.entries.get_mut(place as usize) else { return };
        let (session, previous, next) = (entry.session, entry.previous, entry.next);
        (entry.previous, entry.next) = (NONE, NONE);
        let queue = &mut self.sessions[session as usize];
        match self.entries.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => queue.head = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(next) => next.previous = previous,
            None => queue.tail = previous,
        }
    }
}

/// Whether the host learns of a grant's end from an arrival notice, and not from the metadata server.
pub(crate) fn ends_with_arrival(operation: u8, flags: u8) -> bool {
    operation != grant_operation::WRITE && flags & grant_flags::NOTIFY_METASERVER == 0
}

impl Entry {
    /// Whether all bytes for the host are posted, none of them failed so far, and some are under
    /// way: an arrival notice that is posted now arrives if they do.
    pub(crate) fn may_be_told(&self) -> bool {
        ends_with_arrival(self.grant.operation, self.grant.flags)
            && self.stage == Stage::Posted
            && self.status.is_ok()
            && self.under_way > 0
            && self.unfinished == 0
            && !self.told
    }

    /// A place without a grant.
    fn none() -> Entry {
        Entry {
            grant: Grant::default(),
            channel: 0,
            store: 0,
            session: 0,
            connection: ConnectionId { index: 0, generation: 0 },
            stage: Stage::Ended,
            cursor: 0,
            under_way: 0,
            unfinished: 0,
            told: false,
            status: Status::OK,
            view: None,
            begun: false,
            session_era: 0,
            channel_era: 0,
            previous: NONE,
            next: NONE,
        }
    }
}

fn number_index(grant: &Grant) -> usize {
    grant.number.get() as usize % GRANTS_MAX
}

/// Counts one grant less; true if it was the last of the earlier eras.
fn count_down(current: bool, begun: &mut u32, begun_before: &mut u32) -> bool {
    if current {
        *begun -= 1;
        return false;
    }
    *begun_before -= 1;
    *begun_before == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
