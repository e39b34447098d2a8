//! The medium as one reactor sees it.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_disk::{
    BLOCK_BYTES, Completion, Disk, DiskError, Durability, FileId, Refused, SubmitError, Transfer,
};
use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

use super::medium::{Done, DoneQueue, Owner, State, Work};

/// A disk over a [`super::SimMedium`]. When it is dropped, what it started goes on; what was not
/// flushed does not happen.
pub struct SimDisk {
    state: Rc<RefCell<State>>,
    owner: Rc<Owner>,
    /// Started, not flushed.
    staged: Vec<Work>,
    done: Rc<DoneQueue>,
    in_flight: usize,
}

impl SimDisk {
    pub(super) fn new(state: Rc<RefCell<State>>, owner: Rc<Owner>) -> SimDisk {
        SimDisk { state, owner, staged: Vec::new(), done: Rc::default(), in_flight: 0 }
    }

    fn is_full(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let chance = state.options.spurious_full;
        let spurious = state.random.happens(chance);
        // Something else is on its way, so that a refused user has something to wait for.
        (spurious && self.in_flight > 0) || self.in_flight >= state.options.entries
    }

    fn is_valid(&self, transfer: &Transfer) -> bool {
        let Transfer { offset, memory, memory_offset, len_bytes, .. } = transfer;
        let file_len_bytes = self.len_bytes(transfer.file);
        let address = (memory.as_ptr() as usize).wrapping_add(*memory_offset);
        let is_aligned = offset % BLOCK_BYTES as u64 == 0
            && len_bytes % BLOCK_BYTES == 0
            && address % BLOCK_BYTES == 0;
        let in_file =
            offset.checked_add(*len_bytes as u64).is_some_and(|end| end <= file_len_bytes);
        let in_memory =
            memory_offset.checked_add(*len_bytes).is_some_and(|end| end <= memory.len());
        *len_bytes > 0 && is_aligned && in_file && in_memory
    }

    fn start(
        &mut self,
        transfer: Transfer,
        work: impl FnOnce(Transfer) -> Work,
    ) -> Result<(), Refused> {
        if !self.is_valid(&transfer) {
            return Err(Refused { error: SubmitError::Range, transfer });
        }
        if self.is_full() {
            return Err(Refused { error: SubmitError::Full, transfer });
        }
        self.in_flight += 1;
        self.staged.push(work(transfer));
        Ok(())
    }
}

impl Disk for SimDisk {
    fn len_bytes(&self, file: FileId) -> u64 {
        self.state.borrow().files.get(file.0 as usize).map_or(0, |file| file.len_bytes)
    }

    fn grow(&mut self, file: FileId, len_bytes: u64) -> Result<(), DiskError> {
        let mut state = self.state.borrow_mut();
        let Some(file) = state.files.get_mut(file.0 as usize) else {
            return Err(DiskError::Unsupported(format!("no file {} is open", file.0)));
        };
        file.grow(len_bytes)
    }

    fn is_direct(&self, file: FileId) -> bool {
        (file.0 as usize) < self.state.borrow().files.len()
    }

    fn resident(&self, file: FileId, offset: u64, len_bytes: usize) -> Option<Slice> {
        let state = self.state.borrow();
        let file = state.files.get(file.0 as usize).filter(|file| file.is_ram)?;
        let end = offset.checked_add(len_bytes as u64)?;
        match file.visible() {
            Memory::Shared(slice) if end <= file.len_bytes => {
                slice.mapping().slice(offset, len_bytes as u64)
            }
            _ => None,
        }
    }

    /// Nothing here is pinned.
    fn register_memory(&mut self, _memory: &Arc<Mapping>) -> Result<(), DiskError> {
        Ok(())
    }

    fn read(&mut self, transfer: Transfer) -> Result<(), Refused> {
        self.start(transfer, Work::Read)
    }

    fn write(&mut self, transfer: Transfer, durability: Durability) -> Result<(), Refused> {
        self.start(transfer, |transfer| Work::Write(transfer, durability))
    }

    fn sync(&mut self, token: u64, file: FileId) -> Result<(), SubmitError> {
        if file.0 as usize >= self.state.borrow().files.len() {
            return Err(SubmitError::Range);
        }
        if self.is_full() {
            return Err(SubmitError::Full);
        }
        let sectors = self.state.borrow().sectors_to_sync(file);
        self.in_flight += 1;
        self.staged.push(Work::Sync { token, file, sectors });
        Ok(())
    }

    fn flush(&mut self) {
        if self.owner.killed.get() {
            self.staged.clear();
        }
        let mut state = self.state.borrow_mut();
        for work in self.staged.drain(..) {
            state.begin(work, Rc::downgrade(&self.done));
        }
    }

    fn poll(&mut self, _now: Time, completions: &mut Vec<Completion>) {
        if self.owner.killed.get() {
            return;
        }
        let mut state = self.state.borrow_mut();
        let most = state.options.completions_per_poll_max;
        let limit = 1 + state.random.index(most);
        for _ in 0..limit {
            let Some(Done { completion, written }) = self.done.borrow_mut().pop_front() else {
                break;
            };
            if let Some((file, sectors)) = written {
                state.acknowledge(file, sectors);
            }
            self.in_flight -= 1;
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    // Roles do not sleep in a simulation: the scheduler polls them when time has moved on.
    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
