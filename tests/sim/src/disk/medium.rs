//! The medium: files, operations under way, and what deaths leave of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use gannet_disk::{Completion, DiskError, Durability, FileId, Transfer};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;

use super::{DiskEvent, DiskEvents, EventKind, SECTOR_BYTES, SimDisk};
use crate::agenda::{Agenda, Device};
use crate::random::{Chance, Delay, Random};
use crate::trace::Trace;

/// What a loss of power leaves of what is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// Of each sector chance decides, and so of the order in which they were written.
    Drawn,
    /// Nothing.
    AllLost,
    /// Everything, also of what was under way.
    AllKept,
}

/// The knobs of a medium. All of them may be turned while it runs.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// How long a read takes.
    pub read_delay: Delay,
    /// How long a write takes.
    pub write_delay: Delay,
    /// How long a sync takes.
    pub sync_delay: Delay,
    /// How long what a dead process started still goes on.
    pub orphan_delay: Delay,
    /// Operations that a disk holds at once.
    pub entries: usize,
    /// Most completions per poll; each poll draws its own bound up to this.
    pub completions_per_poll_max: usize,
    /// How often an operation takes effect in two parts.
    pub split: Chance,
    /// How often an operation is refused as `Full` though there is room.
    pub spurious_full: Chance,
    /// How often an operation fails; of a failed write a part may have happened.
    pub io_error: Chance,
    /// How often a written sector becomes durable without a sync.
    pub write_back: Chance,
    /// What a loss of power leaves.
    pub power_loss: PowerLoss,
    /// The disk lies: a write that is to be durable completes when it is visible.
    pub lies: bool,
}

impl DiskOptions {
    /// A disk that does everything, in unhurried but changing time.
    #[must_use]
    pub fn calm() -> DiskOptions {
        DiskOptions {
            read_delay: Delay::between(Duration::from_micros(5), Duration::from_micros(100)),
            write_delay: Delay::between(Duration::from_micros(10), Duration::from_micros(200)),
            sync_delay: Delay::between(Duration::from_micros(100), Duration::from_millis(2)),
            orphan_delay: Delay::between(Duration::from_micros(10), Duration::from_millis(200)),
            entries: 256,
            completions_per_poll_max: 64,
            split: Chance::NEVER,
            spurious_full: Chance::NEVER,
            io_error: Chance::NEVER,
            write_back: Chance::NEVER,
            power_loss: PowerLoss::Drawn,
            lies: false,
        }
    }

    /// A disk that does everything it is allowed to, now and then. I/O errors are not among it:
    /// a cluster cannot hide them, so they have to be asked for.
    #[must_use]
    pub fn hostile() -> DiskOptions {
        let calm = DiskOptions::calm();
        let tail = Duration::from_millis(20);
        DiskOptions {
            read_delay: calm.read_delay.with_tail(Chance::percent(3), tail),
            write_delay: calm.write_delay.with_tail(Chance::percent(3), tail),
            sync_delay: calm.sync_delay.with_tail(Chance::percent(3), tail),
            entries: 32,
            completions_per_poll_max: 8,
            split: Chance::percent(30),
            spurious_full: Chance::percent(2),
            write_back: Chance::percent(20),
            ..calm
        }
    }
}

/// What a medium has seen; for tests that demand to have seen something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Operations that completed at a living owner.
    pub completed: u64,
    /// Operations that took effect in two parts.
    pub split: u64,
    /// Operations that took effect after the death of their owner.
    pub orphans: u64,
    /// Failed operations.
    pub errors: u64,
    /// Sectors that a loss of power took back.
    pub sectors_lost: u64,
    /// Sectors that a loss of power left although they were not durable.
    pub sectors_kept: u64,
}

/// A file. Both contents have the file's whole capacity.
pub(super) struct MediumFile {
    name: String,
    visible: Memory,
    durable: Memory,
    pub(super) len_bytes: u64,
    capacity_bytes: u64,
    pub(super) is_ram: bool,
    /// Sectors whose visible content is not known to be durable, each with whether its user has
    /// seen the write complete.
    dirty: BTreeMap<u64, bool>,
}

impl MediumFile {
    fn make_durable(&mut self, sector: u64) {
        let at = sector as usize * SECTOR_BYTES;
        self.visible.copy_to(at, &mut self.durable, at, SECTOR_BYTES);
        self.dirty.remove(&sector);
    }

    pub(super) fn visible(&self) -> &Memory {
        &self.visible
    }

    /// The new length is durable at once, as that of an allocated and synced file.
    pub(super) fn grow(&mut self, len_bytes: u64) -> Result<(), DiskError> {
        let rounded = len_bytes.checked_next_multiple_of(gannet_disk::BLOCK_BYTES as u64);
        match rounded.filter(|rounded| *rounded <= self.capacity_bytes) {
            Some(rounded) => {
                self.len_bytes = self.len_bytes.max(rounded);
                Ok(())
            }
            None => Err(DiskError::System {
                what: format!("growing {} to {len_bytes} bytes", self.name),
                source: io::ErrorKind::StorageFull.into(),
            }),
        }
    }
}

/// What an operation does.
pub(super) enum Work {
    Read(Transfer),
    Write(Transfer, Durability),
    /// The sectors that have to be durable when it completes.
    Sync {
        token: u64,
        file: FileId,
        sectors: Vec<u64>,
    },
}

/// An operation on its way to the owner.
pub(super) struct Done {
    pub(super) completion: Completion,
    /// Sectors that a completed write changed.
    pub(super) written: Option<(FileId, Range<u64>)>,
}

/// Completions that a disk has not polled yet.
pub(super) type DoneQueue = RefCell<VecDeque<Done>>;

impl Work {
    /// The file, what it is when it is handed to the device, and when it ends; `None` if it changes
    /// nothing.
    fn events(&self) -> Option<(FileId, EventKind, EventKind)> {
        match self {
            Work::Read(_) => None,
            Work::Write(transfer, _) => {
                Some((transfer.file, EventKind::WriteBegun, EventKind::WriteEnded))
            }
            Work::Sync { file, .. } => Some((*file, EventKind::SyncBegun, EventKind::SyncEnded)),
        }
    }
}

struct Operation {
    work: Work,
    /// Where completions go; dead when the owner is.
    done: Weak<DoneQueue>,
    /// Bytes that have taken effect.
    moved: usize,
    fails: bool,
    is_orphan: bool,
}

/// The life of a lock holder.
#[derive(Default)]
pub(super) struct Owner {
    pub(super) killed: Cell<bool>,
}

#[derive(Hash, Debug)]
enum Step<'a> {
    Begin { disk: &'a str, operation: u64, kind: &'a str, file: u32, offset: u64, len: usize },
    Effect { disk: &'a str, operation: u64, moved: usize },
    End { disk: &'a str, operation: u64, failed: bool, orphan: bool },
    Fault { disk: &'a str, what: &'a str, under_way: usize, sectors: u64 },
}

pub(super) struct State {
    name: String,
    pub(super) options: DiskOptions,
    now: Time,
    pub(super) random: Random,
    trace: Trace,
    pub(super) files: Vec<MediumFile>,
    operations: BTreeMap<u64, Operation>,
    operations_begun: u64,
    /// When each operation takes effect next.
    agenda: Agenda<u64>,
    owner: Weak<Owner>,
    stats: DiskStats,
    /// Where events are counted, and which disk this is there.
    events: (DiskEvents, usize),
    /// Handed to the device while everything stands still.
    held_back: VecDeque<(Work, Weak<DoneQueue>)>,
}

impl State {
    fn record(&self, step: Step<'_>) {
        self.trace.record(self.now, step);
    }

    /// An event of this disk.
    fn event(&self, file: FileId, kind: EventKind) -> DiskEvent {
        DiskEvent { disk: self.events.1, file: file.0, kind }
    }

    /// Whether something may happen now; what does not count always may.
    fn may_happen(&self, event: Option<DiskEvent>) -> bool {
        event.is_none_or(|event| self.events.0.may_happen(event))
    }

    fn happened(&self, event: Option<DiskEvent>) {
        event.into_iter().for_each(|event| self.events.0.happened(event));
    }

    /// Hands an operation to the device, in order.
    pub(super) fn begin(&mut self, work: Work, done: Weak<DoneQueue>) {
        let event = work.events().map(|(file, begun, _)| self.event(file, begun));
        if !self.held_back.is_empty() || !self.may_happen(event) {
            return self.held_back.push_back((work, done));
        }
        self.begin_now(work, done);
        self.happened(event);
    }

    /// Begins what was held back, if nothing stands still any more.
    fn begin_held_back(&mut self) {
        if self.held_back.is_empty() || self.events.0.stands_still() {
            return;
        }
        for (work, done) in std::mem::take(&mut self.held_back) {
            self.begin(work, done);
        }
    }

    fn begin_now(&mut self, work: Work, done: Weak<DoneQueue>) {
        let (delay, kind, file, offset, len) = match &work {
            Work::Read(t) => (self.options.read_delay, "read", t.file.0, t.offset, t.len_bytes),
            Work::Write(t, _) => {
                (self.options.write_delay, "write", t.file.0, t.offset, t.len_bytes)
            }
            Work::Sync { file, sectors, .. } => {
                (self.options.sync_delay, "sync", file.0, 0, sectors.len())
            }
        };
        let id = self.operations_begun;
        self.operations_begun += 1;
        self.record(Step::Begin { disk: &self.name, operation: id, kind, file, offset, len });
        let fails = self.random.happens(self.options.io_error);
        let at = self.now + self.random.delay(delay);
        self.agenda.add(at, id);
        let operation = Operation { work, done, moved: 0, fails, is_orphan: false };
        self.operations.insert(id, operation);
    }

    /// Lets an operation take effect, wholly or in part.
    fn run(&mut self, id: u64) {
        let splits = self.random.happens(self.options.split);
        let Some(mut operation) = self.operations.remove(&id) else { return };
        let is_first = operation.moved == 0;
        let len_bytes = match &operation.work {
            Work::Read(transfer) | Work::Write(transfer, _) => transfer.len_bytes,
            Work::Sync { .. } => 0,
        };
        let sectors = (len_bytes / SECTOR_BYTES) as u64;
        let splits = is_first && splits && sectors > 1;
        let event = operation.work.events().map(|(file, _, ended)| {
            self.event(file, if splits { EventKind::WriteInPart } else { ended })
        });
        if !self.may_happen(event) {
            self.agenda.add(self.now, id);
            self.operations.insert(id, operation);
            return;
        }
        if splits {
            let part = self.random.between(1, sectors - 1) as usize * SECTOR_BYTES;
            self.move_bytes(&mut operation, part);
            self.stats.split += 1;
            self.record(Step::Effect { disk: &self.name, operation: id, moved: part });
            let at = self.now + self.random.delay(self.options.read_delay);
            self.agenda.add(at, id);
            self.operations.insert(id, operation);
            self.happened(event);
            return;
        }
        let (failed, orphan) = (operation.fails, operation.is_orphan);
        if !failed {
            self.move_bytes(&mut operation, len_bytes);
        }
        self.record(Step::End { disk: &self.name, operation: id, failed, orphan });
        self.stats.errors += u64::from(failed);
        self.stats.orphans += u64::from(orphan);
        self.complete(operation);
        self.happened(event);
    }

    /// Moves the bytes of a transfer up to `until`.
    fn move_bytes(&mut self, operation: &mut Operation, until: usize) {
        let from = operation.moved;
        let len_bytes = until - from;
        operation.moved = until;
        match &mut operation.work {
            Work::Read(transfer) => {
                let visible = &self.files[transfer.file.0 as usize].visible;
                let (at, to) = (transfer.offset as usize + from, transfer.memory_offset + from);
                visible.copy_to(at, &mut transfer.memory, to, len_bytes);
            }
            Work::Write(transfer, _) => {
                let file = &mut self.files[transfer.file.0 as usize];
                let (at, to) = (transfer.memory_offset + from, transfer.offset as usize + from);
                transfer.memory.copy_to(at, &mut file.visible, to, len_bytes);
                let sectors = to / SECTOR_BYTES..(to + len_bytes) / SECTOR_BYTES;
                for sector in sectors.map(|sector| sector as u64) {
                    file.dirty.entry(sector).or_insert(false);
                    if self.random.happens(self.options.write_back) {
                        let acknowledged = file.dirty.get(&sector).copied();
                        file.make_durable(sector);
                        // A sync has to cover it all the same if an older write asked for it.
                        file.dirty.extend(acknowledged.map(|acknowledged| (sector, acknowledged)));
                    }
                }
            }
            Work::Sync { .. } => {}
        }
    }

    fn complete(&mut self, operation: Operation) {
        let Operation { work, done, fails, .. } = operation;
        let result = || if fails { Err(io::Error::other("simulated I/O error")) } else { Ok(()) };
        let done_now = match work {
            Work::Read(transfer) => Done {
                completion: Completion {
                    token: transfer.token,
                    memory: Some(transfer.memory),
                    result: result(),
                },
                written: None,
            },
            Work::Write(transfer, durability) => {
                let sectors = sectors_of(&transfer);
                if durability == Durability::Durable && !fails && !self.options.lies {
                    let file = &mut self.files[transfer.file.0 as usize];
                    sectors.clone().for_each(|sector| file.make_durable(sector));
                }
                let written = (!fails).then_some((transfer.file, sectors));
                let memory = Some(transfer.memory);
                let completion = Completion { token: transfer.token, memory, result: result() };
                Done { completion, written }
            }
            Work::Sync { token, file, sectors } => {
                if !fails {
                    let file = &mut self.files[file.0 as usize];
                    for sector in sectors {
                        if file.dirty.contains_key(&sector) {
                            file.make_durable(sector);
                        }
                    }
                }
                let completion = Completion { token, memory: None, result: result() };
                Done { completion, written: None }
            }
        };
        if let Some(queue) = done.upgrade() {
            self.stats.completed += 1;
            queue.borrow_mut().push_back(done_now);
        }
    }

    /// Notes that an owner has seen a write complete: syncs from now on cover it.
    pub(super) fn acknowledge(&mut self, file: FileId, sectors: Range<u64>) {
        let file = &mut self.files[file.0 as usize];
        for (_, acknowledged) in file.dirty.range_mut(sectors) {
            *acknowledged = true;
        }
    }

    /// The sectors that a sync has to make durable which starts now.
    pub(super) fn sectors_to_sync(&self, file: FileId) -> Vec<u64> {
        let dirty = &self.files[file.0 as usize].dirty;
        dirty.iter().filter(|(_, acknowledged)| **acknowledged).map(|(sector, _)| *sector).collect()
    }

    fn kill(&mut self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.killed.set(true);
        }
        self.held_back.clear();
        let under_way = self.operations.len();
        self.record(Step::Fault { disk: &self.name, what: "kill", under_way, sectors: 0 });
        let mut left = BTreeMap::new();
        for (id, mut operation) in std::mem::take(&mut self.operations) {
            // The kernel cancels what the device has not begun.
            if operation.moved == 0 && self.random.coin() {
                continue;
            }
            operation.is_orphan = true;
            operation.done = Weak::new();
            left.insert(id, operation);
        }
        self.agenda = Agenda::default();
        for id in left.keys() {
            let at = self.now + self.random.delay(self.options.orphan_delay);
            self.agenda.add(at, *id);
        }
        self.operations = left;
    }

    /// Whether something that is not durable is left by a loss of power.
    fn is_kept(&mut self) -> bool {
        match self.options.power_loss {
            PowerLoss::Drawn => self.random.coin(),
            PowerLoss::AllLost => false,
            PowerLoss::AllKept => true,
        }
    }

    fn lose_power(&mut self) {
        // Cancelled in the kernel or not: power says what is left.
        let operations = std::mem::take(&mut self.operations);
        self.kill();
        // What was under way reaches any of its sectors.
        for (_, operation) in operations {
            if let Work::Write(transfer, _) = operation.work {
                for sector in sectors_of(&transfer) {
                    if self.is_kept() {
                        let file = &mut self.files[transfer.file.0 as usize];
                        let to = sector as usize * SECTOR_BYTES;
                        let from = to - transfer.offset as usize + transfer.memory_offset;
                        transfer.memory.copy_to(from, &mut file.visible, to, SECTOR_BYTES);
                        file.dirty.insert(sector, false);
                    }
                }
            }
        }
        let (lost_before, kept_before) = (self.stats.sectors_lost, self.stats.sectors_kept);
        for index in 0..self.files.len() {
            for sector in std::mem::take(&mut self.files[index].dirty).into_keys() {
                let at = sector as usize * SECTOR_BYTES;
                let is_kept = !self.files[index].is_ram && self.is_kept();
                let file = &mut self.files[index];
                if is_kept {
                    self.stats.sectors_kept += 1;
                    file.visible.copy_to(at, &mut file.durable, at, SECTOR_BYTES);
                } else {
                    self.stats.sectors_lost += 1;
                    file.durable.copy_to(at, &mut file.visible, at, SECTOR_BYTES);
                }
            }
        }
        let changed =
            (self.stats.sectors_lost - lost_before, self.stats.sectors_kept - kept_before);
        let (what, sectors) = ("power", changed.0 << 32 | changed.1);
        self.record(Step::Fault { disk: &self.name, what, under_way: 0, sectors });
    }
}

/// The storage of one machine; clones are handles of the same one. Survives its processes.
#[derive(Clone)]
pub struct SimMedium {
    state: Rc<RefCell<State>>,
}

/// The exclusive lock on a medium. Free again when all clones and disks made from it are gone, or
/// their process was killed, *and* nothing that they started is under way.
#[derive(Clone)]
pub struct SimLock {
    state: Rc<RefCell<State>>,
    owner: Rc<Owner>,
}

impl SimLock {
    /// A disk for one reactor of the process that holds the lock.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        SimDisk::new(Rc::clone(&self.state), Rc::clone(&self.owner))
    }
}

impl SimMedium {
    /// A medium without files, whose randomness is a stream of `random`.
    #[must_use]
    pub fn new(name: &str, options: DiskOptions, random: &Random, trace: &Trace) -> SimMedium {
        let state = State {
            name: name.to_owned(),
            options,
            now: Time::ZERO,
            random: random.stream("disk").stream(name),
            trace: trace.clone(),
            files: Vec::new(),
            operations: BTreeMap::new(),
            operations_begun: 0,
            agenda: Agenda::default(),
            owner: Weak::new(),
            stats: DiskStats::default(),
            events: (DiskEvents::default(), 0),
            held_back: VecDeque::new(),
        };
        SimMedium { state: Rc::new(RefCell::new(state)) }
    }

    /// Makes a file of `len_bytes` zeros that can grow to `capacity_bytes`. Ids count from 0, and
    /// are the same for every disk of the medium.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create_file(
        &self,
        name: &str,
        len_bytes: u64,
        capacity_bytes: u64,
    ) -> io::Result<FileId> {
        self.create(name, len_bytes, capacity_bytes, false)
    }

    /// The same for a file in memory: `resident` returns its pages, and each new holder of the
    /// lock finds it empty.
    ///
    /// # Errors
    /// As for [`SimMedium::create_file`].
    pub fn create_ram(&self, name: &str, len_bytes: u64) -> io::Result<FileId> {
        self.create(name, len_bytes, len_bytes, true)
    }

    fn create(
        &self,
        name: &str,
        len_bytes: u64,
        capacity_bytes: u64,
        is_ram: bool,
    ) -> io::Result<FileId> {
        let block = gannet_disk::BLOCK_BYTES as u64;
        let len_bytes = len_bytes.next_multiple_of(block);
        let capacity_bytes = capacity_bytes.max(len_bytes).next_multiple_of(block);
        let file = MediumFile {
            name: name.to_owned(),
            visible: zeros(capacity_bytes)?,
            durable: zeros(capacity_bytes)?,
            len_bytes,
            capacity_bytes,
            is_ram,
            dirty: BTreeMap::new(),
        };
        let mut state = self.state.borrow_mut();
        state.files.push(file);
        Ok(FileId(state.files.len() as u32 - 1))
    }

    /// Takes the lock. It does not wait: try again after the next thing happened.
    ///
    /// # Errors
    /// `InUse` while another process lives or something of a dead one is under way; `System` when
    /// there is no memory for the files in memory.
    pub fn lock(&self) -> Result<SimLock, DiskError> {
        let mut state = self.state.borrow_mut();
        let lives = state.owner.upgrade().is_some_and(|owner| !owner.killed.get());
        if lives || !state.operations.is_empty() {
            return Err(DiskError::InUse { path: state.name.clone() });
        }
        for file in state.files.iter_mut().filter(|file| file.is_ram) {
            file.visible = zeros(file.capacity_bytes).map_err(|source| DiskError::System {
                what: format!("allocating the RAM store {}", file.name),
                source,
            })?;
        }
        let owner = Rc::new(Owner::default());
        state.owner = Rc::downgrade(&owner);
        Ok(SimLock { state: Rc::clone(&self.state), owner })
    }

    /// The process that holds the lock dies. What it started is cancelled or goes on for a while;
    /// its disks do nothing any more.
    pub fn kill(&self) {
        self.state.borrow_mut().kill();
    }

    /// The machine loses power: the process dies, nothing goes on, and of what was written but is
    /// not durable each sector is kept or lost.
    pub fn lose_power(&self) {
        self.state.borrow_mut().lose_power();
    }

    /// Counts what happens here from now on, as disk number `disk`.
    pub fn watch(&self, events: &DiskEvents, disk: usize) {
        self.state.borrow_mut().events = (events.clone(), disk);
    }

    /// Lets chance go another way from now on.
    pub fn stir(&self, salt: u64) {
        let mut state = self.state.borrow_mut();
        let other = state.random.stream(&format!("stirred {salt}"));
        state.random = other;
    }

    /// Bytes of a file.
    #[must_use]
    pub fn len_bytes(&self, file: FileId) -> u64 {
        self.state.borrow().files.get(file.0 as usize).map_or(0, |file| file.len_bytes)
    }

    /// Number of files.
    #[must_use]
    pub fn files(&self) -> usize {
        self.state.borrow().files.len()
    }

    /// Turns knobs.
    pub fn tune(&self, change: impl FnOnce(&mut DiskOptions)) {
        change(&mut self.state.borrow_mut().options);
    }

    /// Copies what reads would return; for checkers.
    ///
    /// # Panics
    /// If the range leaves the file.
    pub fn content(&self, file: FileId, offset: usize, into: &mut [u8]) {
        let state = self.state.borrow();
        let Memory::Shared(content) = &state.files[file.0 as usize].visible else { return };
        content.copy_out(offset, into);
    }

    /// Changes the medium behind everybody's back: a sector that went bad.
    ///
    /// # Panics
    /// If the range leaves the file.
    pub fn damage(&self, file: FileId, offset: usize, bytes: &[u8]) {
        let state = self.state.borrow();
        let file = &state.files[file.0 as usize];
        for content in [&file.visible, &file.durable] {
            if let Memory::Shared(content) = content {
                content.copy_in(offset, bytes);
            }
        }
    }

    /// Operations that the device has not finished, orphans included.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.state.borrow().operations.len()
    }

    /// What the medium has seen so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.state.borrow().stats
    }
}

impl Device for SimMedium {
    fn next_event(&self) -> Time {
        let state = self.state.borrow();
        let begins = !state.held_back.is_empty() && !state.events.0.stands_still();
        if begins { state.now } else { state.agenda.next() }
    }

    fn advance(&self, now: Time) {
        let mut state = self.state.borrow_mut();
        state.begin_held_back();
        while state.agenda.next() <= now && !state.events.0.stands_still() {
            state.now = state.now.max(state.agenda.next());
            let due = state.now;
            while !state.events.0.stands_still()
                && let Some(operation) = state.agenda.take_due(due)
            {
                state.run(operation);
            }
        }
        state.now = state.now.max(now);
    }
}

fn sectors_of(transfer: &Transfer) -> Range<u64> {
    let first = transfer.offset / SECTOR_BYTES as u64;
    first..first + (transfer.len_bytes / SECTOR_BYTES) as u64
}

fn zeros(len_bytes: u64) -> io::Result<Memory> {
    let mapping = Mapping::anonymous(len_bytes as usize)?;
    let slice = mapping.slice(0, len_bytes).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(Memory::Shared(slice))
}
