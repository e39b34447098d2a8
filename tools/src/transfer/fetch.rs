//! From Gannet to this machine, into files or into a comparison with files.
//!
//! Directories are listed and files read at the same time: a file is opened, read in pieces that
//! land wherever they come, and closed with its attributes. Directories get theirs in the end,
//! since making entries changes their times. Names come from a server: each is checked before it
//! becomes part of a path.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gannet_client::{Listing, Operation, Outcome, RequestError};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::Handle;
use gannet_proto::operations::{Attributes, check_name, file_type};
use hdrhistogram::Histogram;

use super::local::Kept;
use super::outcome::Outcomes;
use super::pipeline::{Finished, PIECE_BYTES, Pipeline};
use super::progress::Progress;
use super::put::Stored;
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;
use crate::remote::local_name;

/// Permission bits of a directory while it is filled.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of a file while it is filled.
const FILE_MODE: u32 = 0o600;
/// Directories that are listed at the same time.
const LISTINGS_MAX: usize = 8;
/// Files known and not begun, above which no further directory is listed.
const FILES_AHEAD: usize = 4096;

/// What is done with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is written to files.
    Store,
    /// It is compared with files.
    Compare,
}

/// A remote directory and where it goes.
struct Directory {
    handle: Handle,
    path: PathBuf,
    /// Known after its attributes came.
    kept: Option<Kept>,
}

/// What a request is for.
enum Step {
    /// Listing a directory, by position.
    List(usize),
    /// The attributes of a directory, by position.
    DirectoryAttributes(usize),
    /// The attributes of a file, by place.
    Open(usize),
    /// A piece of a file.
    Read { place: usize, offset: u64, length: u32 },
}

/// A file being copied or compared.
struct Transfer {
    handle: Handle,
    path: PathBuf,
    /// The file on this machine, once the attributes came.
    local: Option<File>,
    kept: Kept,
    next: u64,
    size: u64,
    reads: u32,
    failed: bool,
}

/// A copy or comparison under way.
pub(super) struct Fetch<'a> {
    purpose: Purpose,
    pipeline: Pipeline<'a, Step>,
    files_max: usize,
    progress: Progress,
    directories: Vec<Directory>,
    next_directory: usize,
    listings: usize,
    waiting: VecDeque<(Handle, PathBuf)>,
    open: Vec<Option<Transfer>>,
    free_places: Vec<usize>,
    /// Places with something left to read.
    ready: VecDeque<usize>,
    /// What the local file holds, for comparisons.
    scratch: Vec<u8>,
    outcomes: Outcomes,
    skipped: u64,
    stored: Vec<Stored>,
}

/// What a fetch did.
pub(super) struct Fetched {
    pub(super) outcomes: Outcomes,
    pub(super) skipped: u64,
    pub(super) stored: Vec<Stored>,
    pub(super) latencies: Histogram<u64>,
}

impl<'a> Fetch<'a> {
    pub(super) fn new(
        purpose: Purpose,
        connection: &'a mut Connection,
        buffers: &'a mut Vec<HostBuffer>,
        files_max: u32,
    ) -> Result<Fetch<'a>, Failure> {
        let verb = if purpose == Purpose::Store { "get" } else { "compare" };
        Ok(Fetch {
            purpose,
            pipeline: Pipeline::new(connection, buffers)?,
            files_max: files_max as usize,
            progress: Progress::new(verb, 0),
            directories: Vec::new(),
            next_directory: 0,
            listings: 0,
            waiting: VecDeque::new(),
            open: Vec::new(),
            free_places: Vec::new(),
            ready: VecDeque::new(),
            scratch: if purpose == Purpose::Compare { vec![0; PIECE_BYTES] } else { Vec::new() },
            outcomes: Outcomes::default(),
            skipped: 0,
            stored: Vec::new(),
        })
    }

    /// Adds a file or directory to what is to be fetched to `path`.
    pub(super) fn add(&mut self, attributes: &Attributes, path: &Path) {
        if is_directory(attributes) {
            self.add_directory(attributes.handle, path.to_path_buf());
        } else {
            self.waiting.push_back((attributes.handle, path.to_path_buf()));
        }
    }

    /// Adds files whose handles are known.
    pub(super) fn add_files(&mut self, files: Vec<Stored>) {
        self.waiting.extend(files.into_iter().map(|file| (file.handle, file.path)));
    }

    /// Fetches everything. Failures are told as they happen and counted.
    ///
    /// # Errors
    /// When this machine lets nothing go on.
    pub(super) fn run(mut self) -> Result<Fetched, Failure> {
        loop {
            self.fill();
            if self.pipeline.outstanding() == 0 {
                break;
            }
            let mut finished = Vec::new();
            self.pipeline.wait(&mut finished)?;
            finished.into_iter().try_for_each(|one| self.finished(one))?;
        }
        self.finish_directories();
        Ok(Fetched {
            latencies: self.pipeline.latencies().clone(),
            outcomes: self.outcomes,
            skipped: self.skipped,
            stored: self.stored,
        })
    }

    /// Starts whatever can be started: pieces of open files first, new directories last, so that
    /// what is known and not done stays little.
    fn fill(&mut self) {
        while let Some(place) = self.ready.front().copied()
            && let Some(buffer) = self.pipeline.take_buffer()
        {
            self.ready.pop_front();
            self.read(place, buffer);
        }
        while self.open.len() - self.free_places.len() < self.files_max
            && !self.outcomes.is_hopeless
            && let Some((handle, path)) = self.waiting.pop_front()
        {
            self.begin(handle, path);
        }
        while self.next_directory < self.directories.len()
            && self.listings < LISTINGS_MAX
            && self.waiting.len() < FILES_AHEAD
            && !self.outcomes.is_hopeless
        {
            let index = self.next_directory;
            self.next_directory += 1;
            let handle = self.directories[index].handle;
            self.submit_directory(Operation::Stat { handle }, Step::DirectoryAttributes(index));
            self.list(index, Vec::new());
        }
    }

    fn finished(&mut self, finished: Finished<Step>) -> Result<(), Failure> {
        let Finished { step, result, buffer } = finished;
        match step {
            Step::List(index) => {
                self.listings -= 1;
                self.listed(index, result);
            }
            Step::DirectoryAttributes(index) => match result {
                Ok(Outcome::Entry(attributes)) => {
                    self.directories[index].kept = Some(kept(&attributes));
                }
                other => self.directory_failed(index, other),
            },
            Step::Open(place) => self.opened(place, result),
            Step::Read { place, offset, length } => {
                let Some(buffer) = buffer else {
                    let what = "the memory of a read could not be taken back";
                    return Err(Failure::operation(what));
                };
                self.read_done(place, offset, length, result, buffer);
            }
        }
        Ok(())
    }

    // Directories.

    fn add_directory(&mut self, handle: Handle, path: PathBuf) {
        if self.purpose == Purpose::Store {
            match DirBuilder::new().mode(DIRECTORY_MODE).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(error) => return self.outcomes.fail_path("making", &path, &error),
                Ok(()) => {}
            }
        }
        self.outcomes.directories += 1;
        self.directories.push(Directory { handle, path, kept: None });
    }

    fn submit_directory(&mut self, operation: Operation, step: Step) {
        let (Step::List(index) | Step::DirectoryAttributes(index)) = step else { return };
        if let Err(error) = self.pipeline.submit(operation, step) {
            self.outcomes.fail_request(&self.directories[index].path, &error);
        }
    }

    fn list(&mut self, index: usize, after: Vec<u8>) {
        let directory = self.directories[index].handle;
        let operation = Operation::Readdir { directory, after };
        match self.pipeline.submit(operation, Step::List(index)) {
            Ok(()) => self.listings += 1,
            Err(error) => self.outcomes.fail_request(&self.directories[index].path, &error),
        }
    }

    fn listed(&mut self, index: usize, result: Result<Outcome, RequestError>) {
        let Listing { entries, end } = match result {
            Ok(Outcome::Directory(listing)) => listing,
            other => return self.directory_failed(index, other),
        };
        let last = entries.last().map(|entry| entry.name.clone());
        for entry in entries {
            if let Err(status) = check_name(&entry.name) {
                let path = self.directories[index].path.display();
                let what = format!("{path}: an entry's name cannot be used here: {status}");
                self.outcomes.fail(what);
                continue;
            }
            let path = self.directories[index].path.join(local_name(&entry.name));
            match entry.file_type & file_type::MASK {
                file_type::DIRECTORY => self.add_directory(entry.handle, path),
                file_type::REGULAR => self.waiting.push_back((entry.handle, path)),
                _ => {
                    eprintln!(
                        "gannet: {}: of a type that is not known here: skipped",
                        path.display()
                    );
                    self.skipped += 1;
                }
            }
        }
        if let (false, Some(last)) = (end, last) {
            self.list(index, last);
        }
    }

    fn directory_failed(&mut self, index: usize, result: Result<Outcome, RequestError>) {
        let path = &self.directories[index].path;
        match result {
            Err(error) => self.outcomes.fail_request(path, &error),
            Ok(_) => self.outcomes.fail(format!("{}: not answered as asked", path.display())),
        }
    }

    /// Children before parents: the other way round would change the parents' times.
    fn finish_directories(&mut self) {
        if self.purpose == Purpose::Compare {
            return;
        }
        for Directory { path, kept, .. } in self.directories.iter().rev() {
            let Some(kept) = kept else { continue };
            let done = File::open(path).and_then(|directory| keep(&directory, *kept));
            if let Err(error) = done {
                self.outcomes.fail_path("setting the attributes of", path, &error);
            }
        }
    }

    // Files.

    fn begin(&mut self, handle: Handle, path: PathBuf) {
        let transfer = Transfer {
            handle,
            path,
            local: None,
            kept: Kept { mode: FILE_MODE, mtime_ns: 0 },
            next: 0,
            size: 0,
            reads: 0,
            failed: false,
        };
        let place = self.free_places.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[place] = Some(transfer);
        if let Err(error) =
            self.pipeline.submit(Operation::Open { file: handle }, Step::Open(place))
        {
            self.abandon(place, &error);
        }
    }

    fn opened(&mut self, place: usize, result: Result<Outcome, RequestError>) {
        let attributes = match result {
            Ok(Outcome::Entry(attributes)) => attributes,
            Ok(_) => return self.abandon_because(place, "not answered as asked"),
            Err(error) => return self.abandon(place, &error),
        };
        let Some(transfer) = &mut self.open[place] else { return };
        transfer.size = attributes.size.get();
        transfer.kept = kept(&attributes);
        let local = match self.purpose {
            Purpose::Store => create(&transfer.path),
            Purpose::Compare => File::open(&transfer.path),
        };
        let opened = local.and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((len_bytes, local)) => {
                let (wanted, is_store) = (transfer.size, self.purpose == Purpose::Store);
                transfer.local = Some(local);
                if !is_store && len_bytes != wanted {
                    let why = format!("differs: {len_bytes} bytes here, {wanted} in Gannet");
                    return self.abandon_because(place, &why);
                }
            }
            Err(error) => {
                let path = transfer.path.clone();
                self.outcomes.fail_path("opening", &path, &error);
                return self.give_up(place);
            }
        }
        self.progress.expect(attributes.size.get());
        if attributes.size.get() > 0 {
            self.ready.push_back(place);
        } else {
            self.close(place);
        }
    }

    /// Reads the next piece of a file.
    fn read(&mut self, place: usize, buffer: HostBuffer) {
        let Some(transfer) = self.open[place].as_mut().filter(|transfer| !transfer.failed) else {
            return self.pipeline.put_buffer(buffer);
        };
        let length = (transfer.size - transfer.next).min(PIECE_BYTES as u64) as u32;
        let offset = transfer.next;
        transfer.next += u64::from(length);
        if transfer.next < transfer.size {
            self.ready.push_back(place);
        }
        self.read_piece(place, offset, length, buffer);
    }

    fn read_piece(&mut self, place: usize, offset: u64, length: u32, buffer: HostBuffer) {
        let Some(transfer) = &mut self.open[place] else {
            return self.pipeline.put_buffer(buffer);
        };
        let file = transfer.handle;
        let operation = Operation::Read { file, offset, length, buffer, buffer_offset: 0 };
        transfer.reads += 1;
        if let Err(error) = self.pipeline.submit(operation, Step::Read { place, offset, length }) {
            if let Some(transfer) = &mut self.open[place] {
                transfer.reads -= 1;
            }
            self.abandon(place, &error);
        }
    }

    fn read_done(
        &mut self,
        place: usize,
        offset: u64,
        length: u32,
        result: Result<Outcome, RequestError>,
        buffer: HostBuffer,
    ) {
        let Some(transfer) = &mut self.open[place] else {
            return self.pipeline.put_buffer(buffer);
        };
        transfer.reads -= 1;
        let bytes = match result {
            Ok(Outcome::Read { bytes, .. }) => bytes.min(length),
            Ok(_) => 0,
            Err(error) => {
                self.pipeline.put_buffer(buffer);
                return self.abandon(place, &error);
            }
        };
        if transfer.failed || bytes == 0 {
            self.pipeline.put_buffer(buffer);
            return self.abandon_because(place, "it became shorter while it was read");
        }
        let used = self.use_piece(place, offset, &buffer[..bytes as usize]);
        if let Err(why) = used {
            self.pipeline.put_buffer(buffer);
            return self.abandon_because(place, &why);
        }
        self.progress.done(bytes.into());
        self.outcomes.bytes += u64::from(bytes);
        if bytes < length {
            // A read may deliver less than asked for; the rest is another one.
            return self.read_piece(place, offset + u64::from(bytes), length - bytes, buffer);
        }
        self.pipeline.put_buffer(buffer);
        let Some(transfer) = &self.open[place] else { return };
        if transfer.reads == 0 && transfer.next == transfer.size {
            self.close(place);
        }
    }

    /// Writes a piece to the local file, or compares it with it.
    fn use_piece(&mut self, place: usize, offset: u64, piece: &[u8]) -> Result<(), String> {
        let Some(local) = self.open[place].as_ref().and_then(|open| open.local.as_ref()) else {
            return Ok(());
        };
        if self.purpose == Purpose::Store {
            return local.write_all_at(piece, offset).map_err(|error| format!("writing: {error}"));
        }
        let here = &mut self.scratch[..piece.len()];
        local.read_exact_at(here, offset).map_err(|error| format!("reading: {error}"))?;
        if here == piece {
            return Ok(());
        }
        let same = here.iter().zip(piece).take_while(|(here, there)| here == there).count();
        Err(format!("differs at byte {}", offset + same as u64))
    }

    /// All content is here: the attributes follow.
    fn close(&mut self, place: usize) {
        let Some(transfer) = self.open[place].take() else { return };
        self.free_places.push(place);
        if let (Purpose::Store, Some(local)) = (self.purpose, &transfer.local)
            && let Err(error) = keep(local, transfer.kept)
        {
            let what = "setting the attributes of";
            return self.outcomes.fail_path(what, &transfer.path, &error);
        }
        self.outcomes.files += 1;
        self.stored.push(Stored { handle: transfer.handle, path: transfer.path });
    }

    /// Tells the failure of a request of a file, and gives the file up.
    fn abandon(&mut self, place: usize, error: &RequestError) {
        if let Some(transfer) = &self.open[place]
            && !transfer.failed
        {
            self.outcomes.fail_request(&transfer.path, error);
        }
        self.give_up(place);
    }

    fn abandon_because(&mut self, place: usize, why: &str) {
        if let Some(transfer) = &self.open[place]
            && !transfer.failed
        {
            self.outcomes.fail(format!("{}: {why}", transfer.path.display()));
        }
        self.give_up(place);
    }

    /// Starts nothing more for a file; its place is free when nothing is under way for it.
    fn give_up(&mut self, place: usize) {
        let Some(transfer) = &mut self.open[place] else { return };
        transfer.failed = true;
        if transfer.reads == 0 {
            self.ready.retain(|ready| *ready != place);
            self.open[place] = None;
            self.free_places.push(place);
        }
    }
}

fn kept(attributes: &Attributes) -> Kept {
    Kept { mode: attributes.mode.get() & 0o7777, mtime_ns: attributes.mtime_ns.get() }
}

/// Makes or empties a file of this machine. A file that may not be written is replaced.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_file() => {
            std::fs::remove_file(path)?;
            options.open(path)
        }
        other => other,
    }
}

fn keep(file: &File, kept: Kept) -> io::Result<()> {
    let nanoseconds = Duration::from_nanos(kept.mtime_ns.unsigned_abs());
    let time = if kept.mtime_ns < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(nanoseconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(nanoseconds)
    };
    if let Some(time) = time {
        file.set_times(FileTimes::new().set_modified(time))?;
    }
    file.set_permissions(Permissions::from_mode(kept.mode))
}
