//! Files in memory.
//!
//! Transfers are copied when they are started and complete at the next poll. Durability means
//! nothing here: nothing survives the process. Reactors may share a file by attaching the same
//! mapping; a [`RamDisk`] itself belongs to one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

use crate::ready::AlwaysReady;
use crate::{
    BLOCK_BYTES, Completion, Disk, DiskError, Durability, FileId, Refused, SubmitError, Transfer,
    range,
};

/// A file: the first `len_bytes` of a mapping.
struct File {
    /// All of the mapping.
    memory: Memory,
    mapping: Arc<Mapping>,
    len_bytes: usize,
}

/// Files in memory behind the same interface as files on disk.
pub struct RamDisk {
    files: Vec<File>,
    /// Operations done and not yet polled.
    done: Vec<Completion>,
    entries: usize,
    /// Shown to a reactor that wants to sleep over completions.
    ready: AlwaysReady,
}

impl RamDisk {
    /// Makes a disk without files that holds at most `entries` operations between two polls.
    ///
    /// # Errors
    /// `System` when the process may not open another descriptor.
    pub fn new(entries: u32) -> Result<RamDisk, DiskError> {
        let ready = AlwaysReady::new().map_err(|source| DiskError::System {
            what: "making an event descriptor".to_owned(),
            source,
        })?;
        let entries = entries as usize;
        Ok(RamDisk { files: Vec::new(), done: Vec::with_capacity(entries), entries, ready })
    }

    /// Makes a file of `len_bytes` zeros that can grow to `capacity_bytes`, both rounded up to
    /// blocks. Memory is used when it is first written, in huge pages if the system has them.
    ///
    /// # Errors
    /// `System` when there is not enough memory.
    pub fn create(&mut self, len_bytes: u64, capacity_bytes: u64) -> Result<FileId, DiskError> {
        let refused = |source| DiskError::System {
            what: format!("allocating a RAM store of {len_bytes} bytes (ask for less)"),
            source,
        };
        let too_large = || refused(io::ErrorKind::OutOfMemory.into());
        let capacity = usize::try_from(capacity_bytes.max(len_bytes)).map_err(|_| too_large())?;
        let mapping = Mapping::anonymous(capacity).map_err(refused)?;
        Ok(self.add(mapping, (len_bytes as usize).next_multiple_of(BLOCK_BYTES)))
    }

    /// Makes a mapping a file of its own length.
    pub fn attach(&mut self, mapping: Arc<Mapping>) -> FileId {
        let len_bytes = mapping.len();
        self.add(mapping, len_bytes)
    }

    fn add(&mut self, mapping: Arc<Mapping>, len_bytes: usize) -> FileId {
        let id = FileId(self.files.len() as u32);
        let whole = mapping.slice(0, mapping.len() as u64).expect("a mapping holds all of itself");
        self.files.push(File { memory: Memory::Shared(whole), mapping, len_bytes });
        id
    }

    /// The memory behind a file, to attach it to another reactor's disk.
    #[must_use]
    pub fn mapping(&self, file: FileId) -> Option<&Arc<Mapping>> {
        self.files.get(file.0 as usize).map(|file| &file.mapping)
    }

    fn start(
        &mut self,
        mut transfer: Transfer,
        copy: fn(&mut File, &mut Transfer),
    ) -> Result<(), Refused> {
        if !range::is_valid(&transfer, self.len_bytes(transfer.file)) {
            return Err(Refused { error: SubmitError::Range, transfer });
        }
        if self.done.len() == self.entries {
            return Err(Refused { error: SubmitError::Full, transfer });
        }
        copy(&mut self.files[transfer.file.0 as usize], &mut transfer);
        let Transfer { token, memory, .. } = transfer;
        self.done.push(Completion { token, memory: Some(memory), result: Ok(()) });
        Ok(())
    }
}

impl Disk for RamDisk {
    fn len_bytes(&self, file: FileId) -> u64 {
        self.files.get(file.0 as usize).map_or(0, |file| file.len_bytes as u64)
    }

    fn grow(&mut self, file: FileId, len_bytes: u64) -> Result<(), DiskError> {
        let Some(file) = self.files.get_mut(file.0 as usize) else {
            return Err(DiskError::Unsupported(format!("no file {} is open", file.0)));
        };
        let capacity_bytes = file.mapping.len();
        let rounded = usize::try_from(len_bytes)
            .ok()
            .and_then(|len| len.checked_next_multiple_of(BLOCK_BYTES))
            .filter(|len| *len <= capacity_bytes);
        let Some(rounded) = rounded else {
            return Err(DiskError::Unsupported(format!(
                "a RAM store of at most {capacity_bytes} bytes cannot grow to {len_bytes}"
            )));
        };
        file.len_bytes = file.len_bytes.max(rounded);
        Ok(())
    }

    /// True: no page cache stands between the caller and the file.
    fn is_direct(&self, file: FileId) -> bool {
        (file.0 as usize) < self.files.len()
    }

    fn resident(&self, file: FileId, offset: u64, len_bytes: usize) -> Option<Slice> {
        let file = self.files.get(file.0 as usize)?;
        let end = offset.checked_add(len_bytes as u64)?;
        if end > file.len_bytes as u64 {
            return None;
        }
        file.mapping.slice(offset, len_bytes as u64)
    }

    /// Nothing to do: the processor copies, and needs nothing pinned.
    fn register_memory(&mut self, _memory: &Arc<Mapping>) -> Result<(), DiskError> {
        Ok(())
    }

    fn read(&mut self, transfer: Transfer) -> Result<(), Refused> {
        self.start(transfer, |file, transfer| {
            let Transfer { offset, memory, memory_offset, len_bytes, .. } = transfer;
            file.memory.copy_to(*offset as usize, memory, *memory_offset, *len_bytes);
        })
    }

    fn write(&mut self, transfer: Transfer, _durability: Durability) -> Result<(), Refused> {
        self.start(transfer, |file, transfer| {
            let Transfer { offset, memory, memory_offset, len_bytes, .. } = transfer;
            memory.copy_to(*memory_offset, &mut file.memory, *offset as usize, *len_bytes);
        })
    }

    fn sync(&mut self, token: u64, file: FileId) -> Result<(), SubmitError> {
        if file.0 as usize >= self.files.len() {
            return Err(SubmitError::Range);
        }
        if self.done.len() == self.entries {
            return Err(SubmitError::Full);
        }
        self.done.push(Completion { token, memory: None, result: Ok(()) });
        Ok(())
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _now: Time, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        if !self.done.is_empty() {
            visit(self.ready.as_fd());
        }
    }
}
