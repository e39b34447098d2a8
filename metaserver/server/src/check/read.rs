//! Reads one log after the other for a check, and waits for the disk in between.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use gannet_disk::{Completion, Disk, SubmitError, Transfer};
use gannet_meta_core::Core;
use gannet_meta_core::check::{FindingKind, Findings, Place};
use gannet_runtime::memory::Memory;
use gannet_runtime::pool::BufferPool;
use gannet_runtime::time::Time;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::{CheckError, LogFile, LogReport, is_damage};
use crate::config::MetaServerConfig;
use crate::log::recovery::{Recovery, RecoveryError};
use crate::log::superblock::{SUPERBLOCK_BYTES, Superblock, SuperblockError};
use crate::startup::core_config;

/// Reads logs through a disk.
pub(super) struct Reader<'a, D> {
    disk: &'a mut D,
    /// Become readable when the disk has something to tell.
    descriptors: Vec<OwnedFd>,
    completions: Vec<Completion>,
}

fn system(what: &'static str) -> impl Fn(io::Error) -> CheckError {
    move |source| CheckError::System { what, source }
}

fn of_log(log: &LogFile) -> impl Fn(RecoveryError) -> CheckError {
    let log = log.name.clone();
    move |source| CheckError::Log { log: log.clone(), source }
}

impl<'a, D: Disk> Reader<'a, D> {
    pub(super) fn new(disk: &'a mut D) -> Result<Reader<'a, D>, CheckError> {
        let mut descriptors = Ok(Vec::new());
        disk.wake_descriptors(&mut |descriptor| {
            if let Ok(known) = &mut descriptors {
                match descriptor.try_clone_to_owned() {
                    Ok(descriptor) => known.push(descriptor),
                    Err(error) => descriptors = Err(error),
                }
            }
        });
        let descriptors = descriptors.map_err(system("copying a descriptor"))?;
        Ok(Reader { disk, descriptors, completions: Vec::new() })
    }

    /// The superblock of a log; `None` if it is damaged.
    pub(super) fn superblock(
        &mut self,
        log: &LogFile,
        findings: &mut Findings,
    ) -> Result<Option<Superblock>, CheckError> {
        let refuse = |error: SuperblockError| Err(of_log(log)(error.into()));
        if self.disk.len_bytes(log.file) < SUPERBLOCK_BYTES as u64 {
            return refuse(SuperblockError::Magic);
        }
        let buffers = BufferPool::new(SUPERBLOCK_BYTES, 1).map_err(system("mapping a buffer"))?;
        let memory = self.read(log, &buffers, 0, SUPERBLOCK_BYTES)?;
        let decoded = memory.into_buffer().map(|buffer| Superblock::decode(&buffer));
        match decoded.unwrap_or(Err(SuperblockError::Magic)) {
            Ok(superblock) => Ok(Some(superblock)),
            Err(error) if is_damage(&error) => {
                findings.error(FindingKind::Superblock, Place::default(), || {
                    format!("{}: {error}", log.name)
                });
                Ok(None)
            }
            Err(error) => refuse(error),
        }
    }

    /// Replays a log into a core; without one if it cannot be read to its end.
    pub(super) fn replay(
        &mut self,
        log: &LogFile,
        superblock: &Superblock,
        findings: &mut Findings,
    ) -> Result<(LogReport, Option<Core>), CheckError> {
        let reactor = superblock.reactor.get();
        let config = MetaServerConfig::new(reactor, Vec::new(), [0; 32]);
        let mut core = Core::new(core_config(&config, superblock));
        let mut apply =
            |_: &Superblock, record: &[u8]| core.replay(record).map_err(|error| error.to_string());
        let mut recovery = Recovery::new(log.file).map_err(system("mapping a buffer"))?;
        let mut is_whole = true;
        while is_whole && recovery.recovered().is_none() {
            match self.step(&mut recovery, &mut apply) {
                Ok(()) if recovery.recovered().is_none() => self.wait()?,
                Ok(()) => {}
                Err(error) => {
                    report(reactor, log, error, findings)?;
                    is_whole = false;
                }
            }
        }
        let reached = recovery.progress();
        let report = LogReport {
            name: log.name.clone(),
            superblock: Some(*superblock),
            frames: reached.position.number,
            records: reached.position.lsn,
            end_bytes: reached.offset,
            term: reached.position.term,
            end: is_whole.then(|| recovery.end()),
        };
        Ok((report, is_whole.then_some(core)))
    }

    /// Goes on with a recovery as far as the disk has answered.
    fn step(
        &mut self,
        recovery: &mut Recovery,
        apply: &mut impl FnMut(&Superblock, &[u8]) -> Result<(), String>,
    ) -> Result<(), RecoveryError> {
        for completion in self.completions.drain(..) {
            recovery.complete(&*self.disk, completion, apply)?;
        }
        recovery.advance(self.disk)
    }

    /// Waits until the disk has something to tell, if something is under way.
    fn wait(&mut self) -> Result<(), CheckError> {
        self.disk.flush();
        loop {
            self.disk.poll(Time::monotonic(), &mut self.completions);
            if !self.completions.is_empty() || self.disk.in_flight() == 0 {
                return Ok(());
            }
            let mut entries: Vec<PollFd<'_>> = self
                .descriptors
                .iter()
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN))
                .collect();
            match poll(&mut entries, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(system("waiting for the disk")(error.into())),
            }
        }
    }

    fn read(
        &mut self,
        log: &LogFile,
        buffers: &BufferPool,
        offset: u64,
        len_bytes: usize,
    ) -> Result<Memory, CheckError> {
        let failed = |source| of_log(log)(RecoveryError::Read { offset, source });
        let buffer = buffers.take();
        let Some(buffer) = buffer else {
            return Err(failed(io::Error::other("the buffer is in use")));
        };
        let mut transfer = Transfer {
            token: offset,
            file: log.file,
            offset,
            memory: Memory::Buffer(buffer),
            memory_offset: 0,
            len_bytes,
        };
        loop {
            match self.disk.read(transfer) {
                Ok(()) => break,
                Err(refused) if refused.error == SubmitError::Full => {
                    transfer = refused.transfer;
                    self.wait()?;
                }
                Err(refused) => return Err(failed(io::Error::other(refused.error))),
            }
        }
        loop {
            self.wait()?;
            if let Some(completion) = self.completions.pop() {
                completion.result.map_err(failed)?;
                let lost = || failed(io::Error::other("the disk kept the buffer"));
                return completion.memory.ok_or_else(lost);
            }
        }
    }
}

/// Tells why a log could not be read on: as a finding, or as what keeps it from being checked.
fn report(
    reactor: u16,
    log: &LogFile,
    error: RecoveryError,
    findings: &mut Findings,
) -> Result<(), CheckError> {
    let place = |offset| Place { log_offset: Some(offset), ..Place::reactor(reactor) };
    match error {
        RecoveryError::Damaged { offset, number, damage } => {
            findings.error(FindingKind::LogDamaged, place(offset), || {
                format!("{}: frame {number} {damage}", log.name)
            });
            Ok(())
        }
        RecoveryError::Record { offset, number, reason } => {
            findings.error(FindingKind::Record, place(offset), || {
                format!("{}: a record of frame {number} cannot be applied: {reason}", log.name)
            });
            Ok(())
        }
        other => Err(of_log(log)(other)),
    }
}
