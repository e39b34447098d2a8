//! Block I/O over io_uring, direct where the file allows it.
//!
//! A [`UringDisk`] owns one ring, the operations in it with their memory, and a share of each file
//! it holds open. It belongs to the thread that made it. One [`Disk::flush`] is one system call;
//! [`Disk::poll`] reads completions from memory and enters the kernel only when the ring says that
//! completions wait for it.
//!
//! Memory is never freed under a transfer: operations own theirs until the kernel has answered, and
//! dropping the disk waits for all answers. A crash of the process leaves transfers running; see
//! [`crate::lock`] for how a successor learns that they have ended.

mod operation;
mod registered;
mod setup;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;
use io_uring::{IoUring, SubmissionQueue, opcode, squeue, types};
use rustix::io::ReadWriteFlags;

use crate::open::{LockedFile, OpenOptions};
use crate::ready::AlwaysReady;
use crate::{
    Completion, Disk, DiskError, Durability, FileId, Refused, SubmitError, Transfer, range,
};
use operation::{Action, Moving, Operation, Operations, Step};
use registered::Registered;
pub use setup::UringOptions;

/// Attempts to hand entries to the kernel within one flush.
const SUBMIT_ATTEMPTS_MAX: usize = 8;

/// A file as the ring knows it.
struct File {
    locked: LockedFile,
    /// Index in the ring's table of files, or the descriptor.
    target: types::Fd,
    /// Says which.
    flags: squeue::Flags,
}

/// Files and block devices behind one io_uring.
pub struct UringDisk {
    ring: IoUring,
    files: Vec<File>,
    files_max: usize,
    has_file_table: bool,
    operations: Operations,
    registered: Registered,
    /// Entries in the ring that the kernel has not taken.
    unsubmitted: usize,
    /// Shown to a reactor that wants to sleep while the kernel refuses entries.
    ready: AlwaysReady,
}

impl UringDisk {
    /// Makes a ring that holds no files yet.
    ///
    /// # Errors
    /// `System` when the kernel has no io_uring to give, `Limit` for a queue that is too long.
    pub fn new(options: &UringOptions) -> Result<UringDisk, DiskError> {
        UringDisk::over(setup::Ring::new(options)?, options)
    }

    fn over(ring: setup::Ring, options: &UringOptions) -> Result<UringDisk, DiskError> {
        let setup::Ring { ring, has_file_table, memory_pieces } = ring;
        let ready = AlwaysReady::new().map_err(|source| DiskError::System {
            what: "making an event descriptor".to_owned(),
            source,
        })?;
        Ok(UringDisk {
            ring,
            files: Vec::with_capacity(options.files_max as usize),
            files_max: options.files_max as usize,
            has_file_table,
            operations: Operations::new(options.entries),
            registered: Registered::new(memory_pieces),
            unsubmitted: 0,
            ready,
        })
    }

    /// Opens and locks a file or block device. May block for as long as the options allow.
    ///
    /// # Errors
    /// As [`LockedFile::open`] and [`UringDisk::attach`].
    pub fn open(&mut self, path: &Path, options: &OpenOptions) -> Result<FileId, DiskError> {
        self.check_file_limit()?;
        self.attach(LockedFile::open(path, options)?)
    }

    /// Takes a file that is already open, perhaps shared with other reactors of this process.
    ///
    /// # Errors
    /// `Limit` when there are too many files, `System` when the kernel does not take it.
    pub fn attach(&mut self, locked: LockedFile) -> Result<FileId, DiskError> {
        self.check_file_limit()?;
        let index = self.files.len() as u32;
        let descriptor = locked.as_fd().as_raw_fd();
        let (target, flags) = if self.has_file_table {
            self.ring.submitter().register_files_update(index, &[descriptor]).map_err(
                |source| DiskError::System {
                    what: format!("registering {} with io_uring", locked.path().display()),
                    source,
                },
            )?;
            (types::Fd(index.cast_signed()), squeue::Flags::FIXED_FILE)
        } else {
            (types::Fd(descriptor), squeue::Flags::empty())
        };
        self.files.push(File { locked, target, flags });
        Ok(FileId(index))
    }

    fn check_file_limit(&self) -> Result<(), DiskError> {
        if self.files.len() < self.files_max {
            return Ok(());
        }
        Err(DiskError::Limit { what: "files open on one disk", limit: self.files_max })
    }

    /// Undoes [`Disk::register_memory`]. Transfers in flight go on undisturbed.
    pub fn unregister_memory(&mut self, mapping: &Arc<Mapping>) {
        self.registered.remove(&self.ring.submitter(), mapping);
    }

    /// The open file itself: its path, why it is not direct, a share for another reactor.
    #[must_use]
    pub fn file(&self, file: FileId) -> Option<&LockedFile> {
        self.files.get(file.0 as usize).map(|file| &file.locked)
    }

    fn start(&mut self, action: Action, transfer: Transfer) -> Result<(), Refused> {
        if !range::is_valid(&transfer, self.len_bytes(transfer.file)) {
            return Err(Refused { error: SubmitError::Range, transfer });
        }
        if self.operations.is_full() {
            return Err(Refused { error: SubmitError::Full, transfer });
        }
        self.enqueue(self.operation(action, transfer));
        Ok(())
    }

    /// A transfer, through the table of registered memory if it lies there.
    fn operation(&self, action: Action, transfer: Transfer) -> Operation {
        let Transfer { memory, memory_offset, len_bytes, .. } = &transfer;
        let piece = self.registered.find(memory, *memory_offset, *len_bytes);
        Operation::moving(action, transfer, piece)
    }

    fn enqueue(&mut self, operation: Operation) {
        let entry = entry_of(&operation, &self.files);
        let index = self.operations.insert(operation);
        push(&mut self.ring.submission(), entry, index.into());
        self.unsubmitted += 1;
    }

    /// Hands all entries to the kernel, and lets it deliver completions that wait. What the kernel
    /// refuses for want of resources stays in the ring for the next attempt.
    fn submit(&mut self) {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            match self.ring.submit() {
                Ok(count) => self.unsubmitted = self.unsubmitted.saturating_sub(count),
                Err(error) if is_transient(&error) => {}
                Err(error) => panic!("io_uring_enter refused well-formed entries: {error}"),
            }
            if self.unsubmitted == 0 {
                return;
            }
        }
    }

    /// Reads all answers that lie in the ring; returns whether entries were added for the rest of
    /// short transfers.
    fn reap(&mut self, completions: &mut Vec<Completion>) -> bool {
        let (_, mut submissions, answers) = self.ring.split();
        let unsubmitted = self.unsubmitted;
        for answer in answers {
            let index = answer.user_data();
            let Some(operation) = self.operations.at(index) else {
                debug_assert!(false, "an answer to no operation");
                continue;
            };
            match operation.answer(answer.result()) {
                Step::Again => {
                    push(&mut submissions, entry_of(operation, &self.files), index);
                    self.unsubmitted += 1;
                }
                Step::Done(result) => completions.extend(
                    self.operations
                        .remove(index)
                        .map(|operation| operation.into_completion(result)),
                ),
            }
        }
        self.unsubmitted > unsubmitted
    }

    /// Waits until the kernel has answered every operation. False when it cannot be asked.
    fn wait_for_all(&mut self) -> bool {
        while self.operations.len() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(_) => return false,
            }
            // Whatever the answer says, the kernel has let go: nobody wants the rest.
            for answer in self.ring.completion() {
                drop(self.operations.remove(answer.user_data()));
            }
        }
        true
    }
}

impl Disk for UringDisk {
    fn len_bytes(&self, file: FileId) -> u64 {
        self.file(file).map_or(0, LockedFile::len_bytes)
    }

    fn grow(&mut self, file: FileId, len_bytes: u64) -> Result<(), DiskError> {
        match self.file(file) {
            Some(locked) => locked.grow(len_bytes),
            None => Err(DiskError::Unsupported(format!("no file {} is open", file.0))),
        }
    }

    fn is_direct(&self, file: FileId) -> bool {
        self.file(file).is_some_and(|locked| locked.buffered_reason().is_none())
    }

    fn resident(&self, _file: FileId, _offset: u64, _len_bytes: usize) -> Option<Slice> {
        None
    }

    fn register_memory(&mut self, memory: &Arc<Mapping>) -> Result<(), DiskError> {
        self.registered.add(&self.ring.submitter(), memory)
    }

    fn read(&mut self, transfer: Transfer) -> Result<(), Refused> {
        self.start(Action::Read, transfer)
    }

    fn write(&mut self, transfer: Transfer, durability: Durability) -> Result<(), Refused> {
        self.start(Action::Write(durability), transfer)
    }

    fn sync(&mut self, token: u64, file: FileId) -> Result<(), SubmitError> {
        if self.file(file).is_none() {
            return Err(SubmitError::Range);
        }
        if self.operations.is_full() {
            return Err(SubmitError::Full);
        }
        self.enqueue(Operation::syncing(token, file.0));
        Ok(())
    }

    fn flush(&mut self) {
        if self.unsubmitted > 0 {
            self.submit();
        }
    }

    fn poll(&mut self, _now: Time, completions: &mut Vec<Completion>) {
        if self.operations.len() == 0 {
            return;
        }
        let submissions = self.ring.submission();
        let waiting = submissions.taskrun() || submissions.cq_overflow();
        drop(submissions);
        if waiting {
            self.submit();
        }
        if self.reap(completions) {
            self.submit();
        }
    }

    fn in_flight(&self) -> usize {
        self.operations.len()
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.ring.as_fd());
        if self.unsubmitted > 0 {
            visit(self.ready.as_fd());
        }
    }
}

impl Drop for UringDisk {
    /// Waits for the transfers in flight: a device cannot be told to forget one.
    fn drop(&mut self) {
        if self.wait_for_all() {
            // The ring itself ends a little after its descriptor is closed; emptying its table
            // lets the files' locks go now.
            let _closed_with_the_ring = self.ring.submitter().unregister_files();
        } else {
            // The kernel may still write to the memory: it must never be used again.
            std::mem::forget(std::mem::replace(&mut self.operations, Operations::new(0)));
        }
    }
}

/// Describes an operation's next step to the kernel.
fn entry_of(operation: &Operation, files: &[File]) -> squeue::Entry {
    match operation {
        Operation::Moving(moving) => {
            let file = &files[moving.transfer.file.0 as usize];
            transfer_entry(moving, file.target).flags(file.flags)
        }
        Operation::Syncing { file, .. } => {
            let file = &files[*file as usize];
            let fsync = opcode::Fsync::new(file.target).flags(types::FsyncFlags::DATASYNC);
            fsync.build().flags(file.flags)
        }
    }
}

fn transfer_entry(moving: &Moving, target: types::Fd) -> squeue::Entry {
    let (address, len, offset) = (moving.address(), moving.len_bytes(), moving.offset());
    match (moving.action, moving.piece) {
        (Action::Read, None) => opcode::Read::new(target, address, len).offset(offset).build(),
        (Action::Read, Some(piece)) => {
            opcode::ReadFixed::new(target, address, len, piece).offset(offset).build()
        }
        (Action::Write(durability), None) => opcode::Write::new(target, address, len)
            .offset(offset)
            .rw_flags(write_flags(durability))
            .build(),
        (Action::Write(durability), Some(piece)) => {
            opcode::WriteFixed::new(target, address, len, piece)
                .offset(offset)
                .rw_flags(write_flags(durability))
                .build()
        }
    }
}

fn write_flags(durability: Durability) -> i32 {
    match durability {
        Durability::Visible => 0,
        Durability::Durable => ReadWriteFlags::DSYNC.bits().cast_signed(),
    }
}

/// Puts an entry into the ring, which has room: it is at least as long as the operations' table,
/// and an operation has at most one entry.
fn push(submissions: &mut SubmissionQueue<'_>, entry: squeue::Entry, index: u64) {
    // SAFETY: the memory that the entry names belongs to the operation at `index`, which keeps it
    // until the kernel has answered; see `Drop` for the end.
    let pushed = unsafe { submissions.push(&entry.user_data(index)) };
    pushed.expect("the ring has a place for every operation");
}

/// Whether the kernel may take entries a little later.
fn is_transient(error: &io::Error) -> bool {
    let number = error.raw_os_error().unwrap_or(0);
    matches!(number, libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_runtime::memory::Memory;
    use gannet_runtime::pool::BufferPool;

    use super::*;
    use crate::BLOCK_BYTES;

    #[test]
    fn transfers_of_registered_buffers_skip_the_look_up_of_pages() {
        let mut disk = UringDisk::new(&UringOptions::default()).unwrap();
        let pool = BufferPool::new(2 * BLOCK_BYTES, 4).unwrap();
        let opcodes = |disk: &UringDisk| {
            let actions = [Action::Read, Action::Write(Durability::Durable)];
            actions.map(|action| {
                let transfer = Transfer {
                    token: 1,
                    file: FileId(0),
                    offset: 0,
                    memory: Memory::Buffer(pool.take().unwrap()),
                    memory_offset: BLOCK_BYTES,
                    len_bytes: BLOCK_BYTES,
                };
                let Operation::Moving(moving) = disk.operation(action, transfer) else {
                    panic!("a transfer")
                };
                transfer_entry(&moving, types::Fd(0)).get_opcode()
            })
        };
        let plain = [opcode::Read::CODE, opcode::Write::CODE].map(u32::from);
        let fixed = [opcode::ReadFixed::CODE, opcode::WriteFixed::CODE].map(u32::from);
        assert_eq!(opcodes(&disk), plain);
        disk.register_memory(pool.mapping()).unwrap();
        assert_eq!(opcodes(&disk), fixed);
        disk.unregister_memory(pool.mapping());
        assert_eq!(opcodes(&disk), plain);
    }

    /// What an old kernel grants: no flags, no tables.
    #[test]
    fn a_plain_ring_without_tables_is_enough() {
        let options = UringOptions { entries: 8, ..UringOptions::default() };
        let mut disk = UringDisk::over(setup::Ring::plain(8).unwrap(), &options).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let create = OpenOptions { create: true, ..OpenOptions::default() };
        disk.open(&directory.path().join("first"), &create).unwrap();
        let file = disk.open(&directory.path().join("second"), &create).unwrap();
        disk.grow(file, 8 * BLOCK_BYTES as u64).unwrap();
        let mapping = Mapping::shareable(8 * BLOCK_BYTES).unwrap();
        let refused = disk.register_memory(&mapping).unwrap_err();
        assert!(matches!(refused, DiskError::Limit { limit: 0, .. }), "{refused}");
        disk.unregister_memory(&mapping);

        mapping.copy_in(0, &[0x77; 8 * BLOCK_BYTES]);
        let transfer = || Transfer {
            token: 1,
            file,
            offset: 0,
            memory: Memory::Shared(mapping.slice(0, mapping.len() as u64).unwrap()),
            memory_offset: 0,
            len_bytes: mapping.len(),
        };
        let finish = |disk: &mut UringDisk| {
            let mut completions = Vec::new();
            disk.flush();
            while disk.in_flight() > 0 {
                disk.poll(Time::monotonic(), &mut completions);
            }
            completions.pop().unwrap().result.unwrap();
        };
        disk.write(transfer(), Durability::Durable).unwrap();
        finish(&mut disk);
        disk.sync(2, file).unwrap();
        finish(&mut disk);
        mapping.zero(0, mapping.len());
        disk.read(transfer()).unwrap();
        finish(&mut disk);
        let mut seen = vec![0; mapping.len()];
        mapping.copy_out(0, &mut seen);
        assert!(seen.iter().all(|byte| *byte == 0x77));
    }
}
