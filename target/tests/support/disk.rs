//! A disk of one file in memory that completes, fails and stalls as the test says.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use gannet_disk::{
    BLOCK_BYTES, Completion, Disk, DiskError, Durability, FileId, Refused, SubmitError, Transfer,
};
use gannet_runtime::memory::{Mapping, Memory, Slice};
use gannet_runtime::time::Time;

struct Pending {
    transfer: Transfer,
    writes: bool,
}

pub struct Medium {
    pub content: Arc<Mapping>,
    /// `resident` shows the content.
    pub resident: bool,
    /// Operations stay under way until this is false.
    pub stalled: bool,
    /// Most operations under way.
    pub entries: usize,
    /// The next operations fail, this many of them.
    pub failures: usize,
    /// Operations complete last first.
    pub backwards: bool,
    /// Offset and whether it wrote, of each operation, in the order of posting.
    pub log: Vec<(u64, bool)>,
    /// Memory that was registered.
    pub registered: Vec<Arc<Mapping>>,
    /// Memory can be registered.
    pub registers: bool,
    /// Operations whose memory was not registered.
    pub unregistered: usize,
    pending: Vec<Pending>,
}

#[derive(Clone)]
pub struct FakeDisk(pub Rc<RefCell<Medium>>);

pub const FILE: FileId = FileId(0);

impl FakeDisk {
    pub fn new(blocks: usize, resident: bool) -> FakeDisk {
        FakeDisk(Rc::new(RefCell::new(Medium {
            content: Mapping::anonymous(blocks * BLOCK_BYTES).unwrap(),
            resident,
            stalled: false,
            entries: 64,
            failures: 0,
            backwards: false,
            log: Vec::new(),
            registered: Vec::new(),
            registers: true,
            unregistered: 0,
            pending: Vec::new(),
        })))
    }

    pub fn content(&self) -> Arc<Mapping> {
        Arc::clone(&self.0.borrow().content)
    }

    pub fn under_way(&self) -> usize {
        self.0.borrow().pending.len()
    }

    fn start(&mut self, transfer: Transfer, writes: bool) -> Result<(), Refused> {
        let mut medium = self.0.borrow_mut();
        let Transfer { offset, memory_offset, len_bytes, .. } = transfer;
        let address = transfer.memory.as_ptr() as usize + memory_offset;
        let fits = offset as usize + len_bytes <= medium.content.len()
            && memory_offset + len_bytes <= transfer.memory.len()
            && len_bytes > 0;
        let aligned = offset.is_multiple_of(BLOCK_BYTES as u64)
            && len_bytes.is_multiple_of(BLOCK_BYTES)
            && address.is_multiple_of(BLOCK_BYTES);
        if !fits || !aligned {
            return Err(Refused { error: SubmitError::Range, transfer });
        }
        if medium.pending.len() >= medium.entries {
            return Err(Refused { error: SubmitError::Full, transfer });
        }
        medium.log.push((offset, writes));
        let mapping = match &transfer.memory {
            Memory::Buffer(buffer) => buffer.mapping(),
            Memory::Shared(slice) => slice.mapping(),
        };
        let registered = medium.registered.iter().any(|known| Arc::ptr_eq(known, mapping));
        medium.unregistered += usize::from(!registered);
        medium.pending.push(Pending { transfer, writes });
        Ok(())
    }
}

impl Disk for FakeDisk {
    fn len_bytes(&self, _file: FileId) -> u64 {
        self.0.borrow().content.len() as u64
    }

    fn grow(&mut self, _file: FileId, _len_bytes: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported("a test's disk does not grow".to_owned()))
    }

    fn is_direct(&self, _file: FileId) -> bool {
        true
    }

    fn resident(&self, _file: FileId, offset: u64, len_bytes: usize) -> Option<Slice> {
        let medium = self.0.borrow();
        if !medium.resident {
            return None;
        }
        medium.content.slice(offset, len_bytes as u64)
    }

    fn register_memory(&mut self, memory: &Arc<Mapping>) -> Result<(), DiskError> {
        let mut medium = self.0.borrow_mut();
        if !medium.registers {
            return Err(DiskError::Limit { what: "pieces of registered memory", limit: 0 });
        }
        medium.registered.push(Arc::clone(memory));
        Ok(())
    }

    fn read(&mut self, transfer: Transfer) -> Result<(), Refused> {
        self.start(transfer, false)
    }

    fn write(&mut self, transfer: Transfer, durability: Durability) -> Result<(), Refused> {
        assert_eq!(durability, Durability::Durable);
        self.start(transfer, true)
    }

    fn sync(&mut self, _token: u64, _file: FileId) -> Result<(), SubmitError> {
        Err(SubmitError::Full)
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _now: Time, completions: &mut Vec<Completion>) {
        let mut medium = self.0.borrow_mut();
        if medium.stalled {
            return;
        }
        let mut pending = std::mem::take(&mut medium.pending);
        if medium.backwards {
            pending.reverse();
        }
        for Pending { mut transfer, writes } in pending.drain(..) {
            let fails = medium.failures > 0;
            if fails {
                medium.failures -= 1;
            } else {
                let len = transfer.len_bytes;
                let file = medium.content.slice(transfer.offset, len as u64).unwrap();
                let mut file = Memory::Shared(file);
                if writes {
                    transfer.memory.copy_to(transfer.memory_offset, &mut file, 0, len);
                } else {
                    file.copy_to(0, &mut transfer.memory, transfer.memory_offset, len);
                }
            }
            let result = if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) };
            let Transfer { token, memory, .. } = transfer;
            completions.push(Completion { token, memory: Some(memory), result });
        }
        medium.pending = pending;
    }

    fn in_flight(&self) -> usize {
        self.0.borrow().pending.len()
    }

    fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
}
