//! Making a ring with the best flags that the kernel knows.

use std::io;

use io_uring::IoUring;

use crate::DiskError;

/// Entries of a ring, most that the kernel allows.
const RING_ENTRIES_MAX: u32 = 32_768;

/// How much a [`super::UringDisk`] can hold. All of it is allocated at start.
#[derive(Clone, Copy, Debug)]
pub struct UringOptions {
    /// Operations started and not yet polled as complete, at most (1 to 32,768).
    pub entries: u32,
    /// Files open, at most.
    pub files_max: u32,
    /// Pieces of registered memory, at most; a mapping takes one per GiB begun.
    pub memory_pieces_max: u16,
}

impl Default for UringOptions {
    fn default() -> UringOptions {
        UringOptions { entries: 512, files_max: 64, memory_pieces_max: 1024 }
    }
}

/// A ring and what the kernel granted.
pub(super) struct Ring {
    pub(super) ring: IoUring,
    /// Whether there is a table of registered files.
    pub(super) has_file_table: bool,
    /// Length of the table of registered memory, 0 when there is none.
    pub(super) memory_pieces: u16,
}

/// Flags of a ring, best first.
#[derive(Clone, Copy, Debug)]
enum Flavour {
    /// Linux 6.0. One thread submits, which saves the kernel locks.
    SingleIssuer,
    /// Linux 5.19. Completions wait for the thread's next system call instead of interrupting it,
    /// and a flag in the ring says that they wait. This suits a reactor, which looks at the flag in
    /// each turn. (`DEFER_TASKRUN` would batch still better, but then nothing wakes a thread that
    /// sleeps on the ring's descriptor: completions do not become visible until the ring itself is
    /// entered.)
    Cooperative,
    /// Any older kernel.
    Plain,
}

const FLAVOURS: [Flavour; 3] = [Flavour::SingleIssuer, Flavour::Cooperative, Flavour::Plain];

impl Ring {
    pub(super) fn new(options: &UringOptions) -> Result<Ring, DiskError> {
        if options.entries == 0 || options.entries > RING_ENTRIES_MAX {
            let limit = RING_ENTRIES_MAX as usize;
            return Err(DiskError::Limit {
                what: "entries of an io_uring (and at least 1)",
                limit,
            });
        }
        let mut failed = io::Error::from(io::ErrorKind::Unsupported);
        for flavour in FLAVOURS {
            match build(flavour, options.entries) {
                Ok(ring) => return Ok(Ring::with_tables(ring, options)),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => failed = error,
                Err(error) => return Err(refused(error)),
            }
        }
        Err(refused(failed))
    }

    /// The least that any kernel grants.
    #[cfg(test)]
    pub(super) fn plain(entries: u32) -> io::Result<Ring> {
        let ring = build(Flavour::Plain, entries)?;
        Ok(Ring { ring, has_file_table: false, memory_pieces: 0 })
    }

    /// Adds the tables; a kernel without them (before 5.19) is only slower.
    fn with_tables(ring: IoUring, options: &UringOptions) -> Ring {
        let submitter = ring.submitter();
        let has_file_table = submitter.register_files_sparse(options.files_max).is_ok();
        let wanted = options.memory_pieces_max;
        let has_memory_table =
            wanted > 0 && submitter.register_buffers_sparse(wanted.into()).is_ok();
        let memory_pieces = if has_memory_table { wanted } else { 0 };
        Ring { ring, has_file_table, memory_pieces }
    }
}

fn build(flavour: Flavour, entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    match flavour {
        Flavour::SingleIssuer => {
            builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
            builder.setup_submit_all();
        }
        Flavour::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        Flavour::Plain => {}
    }
    builder.build(entries)
}

fn refused(source: io::Error) -> DiskError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => {
            " (it may be switched off by the sysctl kernel.io_uring_disabled or by a container's \
             seccomp profile)"
        }
        Some(libc::ENOMEM) => " (raise the limit of locked memory, `ulimit -l`)",
        Some(libc::EMFILE | libc::ENFILE) => " (too many open files: raise `ulimit -n`)",
        _ => "",
    };
    DiskError::System { what: format!("setting up io_uring{remedy}"), source }
}
