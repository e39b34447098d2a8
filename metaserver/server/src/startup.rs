//! From a log on disk to a serving reactor.
//!
//! Each reactor reads its own log; reactor 0 learns the last term of all and begins the next; each
//! reactor makes that durable with an empty frame, and only then accepts connections.

use gannet_disk::Disk;
use gannet_fabric::Fabric;
use gannet_meta_core::{Core, CoreConfig};
use gannet_proto::Term;
use gannet_runtime::poller::Now;

use crate::log::recovery::{Recovery, RecoveryError};
use crate::log::superblock::Superblock;
use crate::log::writer::LogWriter;
use crate::peers::ReactorMessage;
use crate::server::{MetaServer, MetaServerError};
use crate::shell::{HostSession, core_now};

/// How far a reactor has come.
pub(crate) enum Phase {
    /// Reading the log.
    Recovering(Box<Recovery>),
    /// The log is read; reactor 0 collects the last terms of all, the others wait for it.
    AwaitingTerm {
        /// Last terms told so far, by reactor.
        last_terms: Vec<Option<u64>>,
    },
    /// The first frame of the term is on its way to the disk.
    Beginning,
    /// Requests are served.
    Serving,
    /// A stop was asked for: no new connections.
    Stopping,
    /// The reactor cannot go on.
    Failed(String),
}

impl<F: Fabric, D: Disk> MetaServer<F, D> {
    /// Goes on with what comes before serving. Returns whether something was done.
    pub(crate) fn start_up(&mut self, now: Now) -> bool {
        let step = match &mut self.phase {
            Phase::Recovering(_) => self.recover(),
            Phase::AwaitingTerm { .. } => self.await_term(),
            Phase::Beginning => self.begin_serving(now),
            Phase::Serving | Phase::Stopping | Phase::Failed(_) => Ok(false),
        };
        step.unwrap_or_else(|error| {
            self.phase = Phase::Failed(error.to_string());
            true
        })
    }

    fn recover(&mut self) -> Result<bool, MetaServerError> {
        let Phase::Recovering(recovery) = &mut self.phase else { return Ok(false) };
        let log = |source| MetaServerError::Recovery { log: self.log_name.clone(), source };
        let mut worked = false;
        for completion in self.completions.drain(..) {
            let (core, config) = (&mut self.core, &self.config);
            let mut apply = |superblock: &Superblock, record: &[u8]| {
                let core = core.get_or_insert_with(|| Core::new(core_config(config, superblock)));
                core.replay(record).map_err(|error| error.to_string())
            };
            recovery.complete(&self.disk, completion, &mut apply).map_err(log)?;
            worked = true;
        }
        recovery.advance(&mut self.disk).map_err(log)?;
        let Some(recovered) = recovery.recovered() else { return Ok(worked) };
        let Some(superblock) = recovery.superblock().copied() else { return Ok(worked) };
        self.check_superblock(&superblock)?;
        let config = &self.config;
        self.core.get_or_insert_with(|| Core::new(core_config(config, &superblock)));
        self.superblock = superblock;
        self.shell.log = LogWriter::new(
            self.log_file,
            superblock.file_system_uuid,
            0,
            recovered.position,
            recovered.offset,
        )?;
        let last_term = recovered.position.term;
        let mut last_terms = vec![None; self.config.addresses.len()];
        if self.config.reactor == 0 {
            last_terms[0] = Some(last_term);
        } else {
            self.shell.peers.send(0, ReactorMessage::Recovered { last_term });
        }
        self.phase = Phase::AwaitingTerm { last_terms };
        Ok(true)
    }

    fn check_superblock(&self, superblock: &Superblock) -> Result<(), MetaServerError> {
        let (reactor, reactors) = (superblock.reactor.get(), superblock.reactors.get());
        let configured = self.config.addresses.len();
        let foreign = |text: String| {
            let source = RecoveryError::Foreign(text);
            Err(MetaServerError::Recovery { log: self.log_name.clone(), source })
        };
        if usize::from(reactors) != configured {
            return foreign(format!(
                "the file system was formatted for {reactors} reactors, {configured} are \
                 configured: configure {reactors}"
            ));
        }
        if reactor != self.config.reactor {
            return foreign(format!("it is the log of reactor {reactor}, not of this one"));
        }
        Ok(())
    }

    fn await_term(&mut self) -> Result<bool, MetaServerError> {
        let mut worked = false;
        while let Phase::AwaitingTerm { last_terms } = &mut self.phase {
            if self.config.reactor == 0 && last_terms.iter().all(Option::is_some) {
                let term = last_terms.iter().flatten().max().unwrap_or(&0) + 1;
                for reactor in 1..self.config.addresses.len() {
                    self.shell.peers.send(reactor as u16, ReactorMessage::Begin { term });
                }
                self.begin(term);
                return Ok(true);
            }
            let Some((from, message)) = self.shell.peers.receive() else { break };
            worked = true;
            match message {
                ReactorMessage::Recovered { last_term } => {
                    last_terms[usize::from(from)] = Some(last_term);
                }
                ReactorMessage::Begin { term } => self.begin(term),
                ReactorMessage::Core(message) => self.early_messages.push((from, message)),
            }
        }
        Ok(worked)
    }

    fn begin(&mut self, term: u64) {
        self.shell.term = term;
        self.shell.log.begin_term(term);
        self.shell.log.commit(&mut self.disk, true);
        if let Some(core) = &mut self.core {
            core.begin_term(Term(term));
        }
        self.phase = Phase::Beginning;
    }

    fn begin_serving(&mut self, now: Now) -> Result<bool, MetaServerError> {
        let Some(core) = &mut self.core else { return Ok(false) };
        // An empty frame has no record, so it is durable when nothing is under way any more.
        if !self.shell.log.has_written_term() {
            self.shell.log.commit(&mut self.disk, true);
            return Ok(false);
        }
        core.finish_replay(core_now(now), &mut self.shell);
        if core.block_conflict().is_some() {
            self.refuse_conflicts();
            return Ok(true);
        }
        // Hosts of the last run may come back and ask what became of their requests.
        let lease_end = now.time + self.config.lease;
        self.shell.reclaim_end = lease_end;
        let sessions = &mut self.shell.sessions;
        for (index, session) in core.sessions() {
            let place = index.0 as usize;
            if sessions.len() <= place {
                sessions.resize(place + 1, None);
            }
            sessions[place] =
                Some(HostSession { session, connection: None, is_in_use: false, lease_end });
            self.shell.leases.push_back((lease_end, index));
        }
        for (from, message) in std::mem::take(&mut self.early_messages) {
            core.peer(core_now(now), from, message, &mut self.shell);
        }
        if core.block_conflict().is_some() {
            self.refuse_conflicts();
            return Ok(true);
        }
        for address in &self.config.addresses[usize::from(self.config.reactor)] {
            self.fabric
                .listen(address)
                .map_err(|source| MetaServerError::Listen { address: address.clone(), source })?;
        }
        self.phase = Phase::Serving;
        Ok(true)
    }
}

/// The core's configuration of this reactor.
pub(crate) fn core_config(config: &crate::MetaServerConfig, superblock: &Superblock) -> CoreConfig {
    CoreConfig {
        reactor: superblock.reactor.get(),
        reactors: superblock.reactors.get(),
        shard_map: superblock.shard_map,
        term: Term(0),
        stripe_blocks: superblock.stripe_blocks.get(),
        stripe_width: superblock.stripe_width.get() as u8,
        grants_max: config.grants_max,
        slots: config.slots,
        target_wait_ns: u64::try_from(config.target_wait.as_nanos()).unwrap_or(u64::MAX),
    }
}
