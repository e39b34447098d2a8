//! After a start: what a crash left prepared is brought to its end before anything is served.
//!
//! The metadata server's cores start together. Each asks every other, once, for the decisions on what
//! its own shards have prepared; who is asked answers from its log, and what it does not know was
//! not decided. When a core has all answers and its free space is known it applies and aborts, by
//! records; when those are durable it tells all others. A core serves, and forgets its decisions, when
//! all have told it so: no operation begins anywhere before every old one has ended everywhere. That
//! keeps moves of directories in order too, and numbers of operations: who is asked about one never
//! uses it again. A core whose files map blocks that are not theirs ([`crate::conflict`]) goes no further
//! than its questions, and so no core of its server comes to serve.

use std::collections::BTreeSet;

use crate::peer::{Message, PeerMessage};
use crate::transactions::{Part, TransactionId};
use crate::{Core, Now, Sink};

/// How far a start has come.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Free space is rebuilt.
    pub placed: bool,
    /// Questions that came before the log was replayed.
    asked: Vec<(u16, Vec<Part>)>,
    /// What takes effect, of what is prepared here.
    commits: BTreeSet<Part>,
    /// Reactors that have told their decisions.
    answers: u16,
    /// Everything prepared has ended here.
    resolved: bool,
    /// Other reactors where it has.
    others_resolved: u16,
    /// It goes on beside a conflict over blocks: what it records is looked at, and forgotten.
    pub is_trial: bool,
}

impl Core {
    fn others(&self) -> impl Iterator<Item = u16> + use<> {
        let own = self.config.reactor;
        (0..self.config.reactors).filter(move |other| *other != own)
    }

    /// The log is replayed: asks for decisions, and tells those that were asked for.
    pub(crate) fn ask_for_decisions(&mut self, now: Now, sink: &mut impl Sink) {
        let prepared: Vec<Part> = self.transactions.prepared().collect();
        for reactor in self.others() {
            let theirs =
                prepared.iter().filter(|(id, _)| self.reactor_of(id.coordinator) == reactor);
            let message = Message::Undecided { parts: theirs.copied().collect() };
            self.send(reactor, PeerMessage(message), sink);
        }
        let own = prepared.into_iter().filter(|part| self.transactions.is_decided(*part));
        self.recovery.commits = own.collect();
        for (reactor, parts) in std::mem::take(&mut self.recovery.asked) {
            self.decisions_asked(reactor, parts, sink);
        }
        self.resolve_transactions(now, sink);
    }

    /// Another reactor asks for decisions.
    pub(crate) fn decisions_asked(&mut self, from: u16, parts: Vec<Part>, sink: &mut impl Sink) {
        if self.replaying {
            self.recovery.asked.push((from, parts));
            return;
        }
        let highest = parts.iter().map(|(id, _)| id.number).max();
        self.last_operation = self.last_operation.max(highest.unwrap_or(0));
        let mut commits = parts;
        commits.retain(|part| self.transactions.is_decided(*part));
        self.send(from, PeerMessage(Message::Decisions { commits }), sink);
    }

    /// Another reactor has told its decisions.
    pub(crate) fn decisions_told(&mut self, now: Now, commits: Vec<Part>, sink: &mut impl Sink) {
        self.recovery.commits.extend(commits);
        self.recovery.answers += 1;
        self.resolve_transactions(now, sink);
    }

    /// Ends what is prepared, once all decisions are known.
    pub(crate) fn resolve_transactions(&mut self, now: Now, sink: &mut impl Sink) {
        let Recovery { placed, answers, resolved, is_trial, .. } = self.recovery;
        if self.block_conflict.is_some() && !is_trial {
            // Nothing is recorded in such a log, and no blocks become free: it is to be looked at.
            return;
        }
        if resolved || self.replaying || !placed || answers + 1 < self.config.reactors {
            return;
        }
        let commits = std::mem::take(&mut self.recovery.commits);
        let prepared: Vec<Part> = self.transactions.prepared().collect();
        for part in prepared {
            self.apply_decision(now, part, commits.contains(&part), sink);
        }
        self.recovery.resolved = true;
        for reactor in self.others() {
            self.send(reactor, PeerMessage(Message::Resolved), sink);
        }
        self.serve_if_resolved(now, sink);
    }

    /// Everything prepared has ended at another reactor.
    pub(crate) fn reactor_resolved(&mut self, now: Now, sink: &mut impl Sink) {
        self.recovery.others_resolved += 1;
        self.serve_if_resolved(now, sink);
    }

    fn serve_if_resolved(&mut self, now: Now, sink: &mut impl Sink) {
        let Recovery { resolved, others_resolved, .. } = self.recovery;
        if self.ready || !resolved || others_resolved + 1 < self.config.reactors {
            return;
        }
        let decided: Vec<TransactionId> = self.transactions.decided().collect();
        for id in decided {
            self.forget_decision(now, id, sink);
        }
        self.ready = true;
        self.end_reclaim_if_all_returned(now, sink);
    }
}
