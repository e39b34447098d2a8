//! Files on disk and files in memory side by side, as one disk.
//!
//! A data server may have stores of both kinds. An [`AnyDisk`] gives them one space of file ids and
//! sends each operation to the provider of its file. It belongs to one thread.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use gannet_runtime::memory::{Mapping, Slice};
use gannet_runtime::time::Time;

use crate::open::{LockedFile, OpenOptions};
use crate::ram::RamDisk;
use crate::uring::{UringDisk, UringOptions};
use crate::{Completion, Disk, DiskError, Durability, FileId, Refused, SubmitError, Transfer};

/// Where a file is, with its id there.
#[derive(Clone, Copy, Debug)]
enum Place {
    Uring(FileId),
    Ram(FileId),
}

/// Both providers behind one space of file ids.
pub struct AnyDisk {
    /// `None` on a disk that was made for memory only.
    uring: Option<UringDisk>,
    ram: RamDisk,
    files: Vec<Place>,
}

impl AnyDisk {
    /// Makes a disk for files of both kinds; each kind holds `options.entries` operations.
    ///
    /// # Errors
    /// As [`UringDisk::new`].
    pub fn new(options: &UringOptions) -> Result<AnyDisk, DiskError> {
        let uring = Some(UringDisk::new(options)?);
        Ok(AnyDisk { uring, ram: RamDisk::new(options.entries)?, files: Vec::new() })
    }

    /// Makes a disk for files in memory only, which works where there is no io_uring.
    ///
    /// # Errors
    /// As [`RamDisk::new`].
    pub fn ram_only(entries: u32) -> Result<AnyDisk, DiskError> {
        Ok(AnyDisk { uring: None, ram: RamDisk::new(entries)?, files: Vec::new() })
    }

    /// Opens and locks a file or block device.
    ///
    /// # Errors
    /// As [`UringDisk::open`]; `Unsupported` on a disk for memory only.
    pub fn open(&mut self, path: &Path, options: &OpenOptions) -> Result<FileId, DiskError> {
        let id = self.uring(path)?.open(path, options)?;
        Ok(self.add(Place::Uring(id)))
    }

    /// Takes a file that is already open, perhaps shared with other reactors of this process.
    ///
    /// # Errors
    /// As [`UringDisk::attach`]; `Unsupported` on a disk for memory only.
    pub fn attach(&mut self, locked: LockedFile) -> Result<FileId, DiskError> {
        let id = self.uring(locked.path())?.attach(locked)?;
        Ok(self.add(Place::Uring(id)))
    }

    /// Makes a file in memory.
    ///
    /// # Errors
    /// As [`RamDisk::create`].
    pub fn create_ram(&mut self, len_bytes: u64, capacity_bytes: u64) -> Result<FileId, DiskError> {
        let id = self.ram.create(len_bytes, capacity_bytes)?;
        Ok(self.add(Place::Ram(id)))
    }

    /// Makes a mapping a file, perhaps shared with other reactors of this process.
    pub fn attach_ram(&mut self, mapping: Arc<Mapping>) -> FileId {
        let id = self.ram.attach(mapping);
        self.add(Place::Ram(id))
    }

    /// Undoes [`Disk::register_memory`].
    pub fn unregister_memory(&mut self, mapping: &Arc<Mapping>) {
        if let Some(uring) = &mut self.uring {
            uring.unregister_memory(mapping);
        }
    }

    /// The open file behind an id, `None` for a file in memory.
    #[must_use]
    pub fn file(&self, file: FileId) -> Option<&LockedFile> {
        match (self.place(file)?, &self.uring) {
            (Place::Uring(id), Some(uring)) => uring.file(id),
            _ => None,
        }
    }

    /// The memory behind a file in memory, to attach it to another reactor's disk.
    #[must_use]
    pub fn mapping(&self, file: FileId) -> Option<&Arc<Mapping>> {
        match self.place(file)? {
            Place::Ram(id) => self.ram.mapping(id),
            Place::Uring(_) => None,
        }
    }

    fn uring(&mut self, path: &Path) -> Result<&mut UringDisk, DiskError> {
        self.uring.as_mut().ok_or_else(|| {
            DiskError::Unsupported(format!(
                "{} needs io_uring, and this disk was made for memory only",
                path.display()
            ))
        })
    }

    fn add(&mut self, place: Place) -> FileId {
        let id = FileId(self.files.len() as u32);
        self.files.push(place);
        id
    }

    fn place(&self, file: FileId) -> Option<Place> {
        self.files.get(file.0 as usize).copied()
    }

    /// Sends a transfer on under the file's id there, and gives a refused one back under its own.
    fn start(
        &mut self,
        mut transfer: Transfer,
        on_uring: impl FnOnce(&mut UringDisk, Transfer) -> Result<(), Refused>,
        on_ram: impl FnOnce(&mut RamDisk, Transfer) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let file = transfer.file;
        let started = match (self.place(file), &mut self.uring) {
            (Some(Place::Uring(id)), Some(uring)) => {
                transfer.file = id;
                on_uring(uring, transfer)
            }
            (Some(Place::Ram(id)), _) => {
                transfer.file = id;
                on_ram(&mut self.ram, transfer)
            }
            _ => Err(Refused { error: SubmitError::Range, transfer }),
        };
        started.map_err(|mut refused| {
            refused.transfer.file = file;
            refused
        })
    }
}

impl Disk for AnyDisk {
    fn len_bytes(&self, file: FileId) -> u64 {
        match (self.place(file), &self.uring) {
            (Some(Place::Uring(id)), Some(uring)) => uring.len_bytes(id),
            (Some(Place::Ram(id)), _) => self.ram.len_bytes(id),
            _ => 0,
        }
    }

    fn grow(&mut self, file: FileId, len_bytes: u64) -> Result<(), DiskError> {
        match (self.place(file), &mut self.uring) {
            (Some(Place::Uring(id)), Some(uring)) => uring.grow(id, len_bytes),
            (Some(Place::Ram(id)), _) => self.ram.grow(id, len_bytes),
            _ => Err(DiskError::Unsupported(format!("no file {} is open", file.0))),
        }
    }

    fn is_direct(&self, file: FileId) -> bool {
        match (self.place(file), &self.uring) {
            (Some(Place::Uring(id)), Some(uring)) => uring.is_direct(id),
            (Some(Place::Ram(id)), _) => self.ram.is_direct(id),
            _ => false,
        }
    }

    fn resident(&self, file: FileId, offset: u64, len_bytes: usize) -> Option<Slice> {
        match self.place(file)? {
            Place::Ram(id) => self.ram.resident(id, offset, len_bytes),
            Place::Uring(_) => None,
        }
    }

    /// For the files on disk; those in memory need none.
    fn register_memory(&mut self, memory: &Arc<Mapping>) -> Result<(), DiskError> {
        self.uring.as_mut().map_or(Ok(()), |uring| uring.register_memory(memory))
    }

    fn read(&mut self, transfer: Transfer) -> Result<(), Refused> {
        self.start(transfer, UringDisk::read, RamDisk::read)
    }

    fn write(&mut self, transfer: Transfer, durability: Durability) -> Result<(), Refused> {
        self.start(
            transfer,
            |uring, transfer| uring.write(transfer, durability),
            |ram, transfer| ram.write(transfer, durability),
        )
    }

    fn sync(&mut self, token: u64, file: FileId) -> Result<(), SubmitError> {
        match (self.place(file), &mut self.uring) {
            (Some(Place::Uring(id)), Some(uring)) => uring.sync(token, id),
            (Some(Place::Ram(id)), _) => self.ram.sync(token, id),
            _ => Err(SubmitError::Range),
        }
    }

    fn flush(&mut self) {
        if let Some(uring) = &mut self.uring {
            uring.flush();
        }
    }

    fn poll(&mut self, now: Time, completions: &mut Vec<Completion>) {
        if let Some(uring) = &mut self.uring {
            uring.poll(now, completions);
        }
        self.ram.poll(now, completions);
    }

    fn in_flight(&self) -> usize {
        self.ram.in_flight() + self.uring.as_ref().map_or(0, UringDisk::in_flight)
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        if let Some(uring) = &self.uring {
            uring.wake_descriptors(visit);
        }
        self.ram.wake_descriptors(visit);
    }
}
