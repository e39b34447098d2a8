//! From this machine into Gannet.
//!
//! First the directories, parents before children; then the files, many at once, each through
//! create - (truncate) - writes - attributes; in the end the directories' attributes, since making
//! entries changes their times.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use gannet_client::{AttributeChanges, Operation, Outcome, RequestError, SetTime};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::operations::Attributes;
use gannet_proto::{Handle, Status};
use hdrhistogram::Histogram;

use super::local::{Kept, LocalTree};
use super::outcome::Outcomes;
use super::pipeline::{Finished, PIECE_BYTES, Pipeline};
use super::progress::Progress;
use crate::admin::ownership;
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;

/// Permission bits of a directory while it is filled.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of a file while it is filled.
const FILE_MODE: u32 = 0o600;

/// Where a tree goes.
pub(super) enum Destination {
    /// To this name in this directory.
    Name(Handle, Vec<u8>),
    /// The tree's top becomes this directory, which exists.
    Directory(Handle),
}

/// A file that was stored, for the comparison.
pub(super) struct Stored {
    pub(super) handle: Handle,
    pub(super) path: PathBuf,
}

/// What a request is for: positions in the tree, or places among the open files.
enum Step {
    MakeDirectory(usize),
    FindDirectory(usize),
    DirectoryAttributes(usize),
    Create(usize),
    Truncate(usize),
    Write { place: usize, length: u32 },
    FileAttributes(usize),
}

/// A file being copied.
struct Open {
    /// Position in the tree.
    file: usize,
    source: File,
    kept: Kept,
    handle: Handle,
    /// Where the part begins that no write was started for, bytes.
    next: u64,
    size: u64,
    writes: u32,
    failed: bool,
}

/// A copy under way.
pub(super) struct Put<'a> {
    tree: &'a LocalTree,
    destination: &'a Destination,
    pipeline: Pipeline<'a, Step>,
    files_max: usize,
    progress: Progress,
    /// By position in the tree, once made.
    directories: Vec<Option<Handle>>,
    open: Vec<Option<Open>>,
    free_places: Vec<usize>,
    next_file: usize,
    /// Places with something left to write.
    ready: VecDeque<usize>,
    outcomes: Outcomes,
    stored: Vec<Stored>,
}

impl<'a> Put<'a> {
    pub(super) fn new(
        tree: &'a LocalTree,
        destination: &'a Destination,
        connection: &'a mut Connection,
        buffers: &'a mut Vec<HostBuffer>,
        files_max: u32,
    ) -> Result<Put<'a>, Failure> {
        Ok(Put {
            tree,
            destination,
            pipeline: Pipeline::new(connection, buffers)?,
            files_max: files_max as usize,
            progress: Progress::new("put", tree.bytes()),
            directories: vec![None; tree.directories.len()],
            open: Vec::new(),
            free_places: Vec::new(),
            next_file: 0,
            ready: VecDeque::new(),
            outcomes: Outcomes::default(),
            stored: Vec::new(),
        })
    }

    /// Copies everything. Failures are told as they happen and counted.
    ///
    /// # Errors
    /// When this machine lets nothing go on.
    pub(super) fn run(mut self) -> Result<(Outcomes, Vec<Stored>, Histogram<u64>), Failure> {
        self.make_directories()?;
        loop {
            self.fill();
            if self.pipeline.outstanding() == 0 {
                break;
            }
            self.react()?;
        }
        self.finish_directories()?;
        let latencies = self.pipeline.latencies().clone();
        Ok((self.outcomes, self.stored, latencies))
    }

    /// Waits for completions and handles them.
    fn react(&mut self) -> Result<(), Failure> {
        let mut finished = Vec::new();
        self.pipeline.wait(&mut finished)?;
        finished.into_iter().try_for_each(|one| self.finished(one))
    }

    fn finished(&mut self, finished: Finished<Step>) -> Result<(), Failure> {
        let Finished { step, result, buffer } = finished;
        if let Some(buffer) = buffer {
            self.pipeline.put_buffer(buffer);
        } else if matches!(step, Step::Write { .. }) {
            return Err(Failure::operation("the memory of a write could not be taken back"));
        }
        match step {
            Step::MakeDirectory(index) => self.directory_made(index, result),
            Step::FindDirectory(index) => self.directory_found(index, result),
            Step::DirectoryAttributes(index) => {
                if let Err(error) = result {
                    self.outcomes.fail_request(&self.tree.directories[index].path, &error);
                }
            }
            Step::Create(place) => self.created(place, result),
            Step::Truncate(place) => match result {
                Ok(_) => self.opened(place),
                Err(error) => self.abandon(place, &error),
            },
            Step::Write { place, length } => self.written(place, length, result),
            Step::FileAttributes(place) => self.completed(place, result),
        }
        Ok(())
    }

    // Directories.

    fn make_directories(&mut self) -> Result<(), Failure> {
        let mut next = 0;
        if let (Destination::Directory(handle), Some(top)) =
            (self.destination, self.directories.first_mut())
        {
            *top = Some(*handle);
            self.outcomes.directories += 1;
            next = 1;
        }
        while next < self.directories.len() && !self.outcomes.is_hopeless {
            let parent = self.tree.directories[next].parent;
            let parent_is_open = parent.is_some_and(|parent| self.directories[parent].is_none());
            if self.pipeline.outstanding() >= self.files_max
                || (parent_is_open && self.pipeline.outstanding() > 0)
            {
                // The parent may be on its way.
                self.react()?;
                continue;
            }
            // Without its parent a directory fails silently: the parent's failure was told.
            if let Some((parent, name)) = self.directory_place(next) {
                let ownership = ownership(DIRECTORY_MODE);
                let operation = Operation::Mkdir { parent, name, ownership };
                self.submit_directory(operation, Step::MakeDirectory(next), next);
            }
            next += 1;
        }
        while self.pipeline.outstanding() > 0 {
            self.react()?;
        }
        Ok(())
    }

    /// Parent and name of a directory in Gannet; `None` if its parent could not be made.
    fn directory_place(&self, index: usize) -> Option<(Handle, Vec<u8>)> {
        let directory = &self.tree.directories[index];
        match (directory.parent, self.destination) {
            (Some(parent), _) => {
                Some((self.directories[parent]?, directory.name.as_bytes().to_vec()))
            }
            (None, Destination::Name(parent, name)) => Some((*parent, name.clone())),
            (None, Destination::Directory(_)) => None,
        }
    }

    fn submit_directory(&mut self, operation: Operation, step: Step, index: usize) {
        if let Err(error) = self.pipeline.submit(operation, step) {
            self.outcomes.fail_request(&self.tree.directories[index].path, &error);
        }
    }

    fn directory_made(&mut self, index: usize, result: Result<Outcome, RequestError>) {
        match result {
            Ok(Outcome::Entry(attributes)) => self.directory_ready(index, &attributes),
            Err(error) if error.status() == Some(Status::EXISTS) => {
                if let Some((parent, path)) = self.directory_place(index) {
                    let operation = Operation::Lookup { parent, path };
                    self.submit_directory(operation, Step::FindDirectory(index), index);
                }
            }
            other => self.directory_failed(index, other),
        }
    }

    fn directory_found(&mut self, index: usize, result: Result<Outcome, RequestError>) {
        match result {
            Ok(Outcome::Entry(attributes)) if is_directory(&attributes) => {
                self.directory_ready(index, &attributes);
            }
            Ok(_) => {
                let path = self.tree.directories[index].path.display();
                let what = format!("{path}: a file of this name is in Gannet and stays there");
                self.outcomes.fail(what);
            }
            other => self.directory_failed(index, other),
        }
    }

    fn directory_ready(&mut self, index: usize, attributes: &Attributes) {
        self.directories[index] = Some(attributes.handle);
        self.outcomes.directories += 1;
    }

    fn directory_failed(&mut self, index: usize, result: Result<Outcome, RequestError>) {
        let path = &self.tree.directories[index].path;
        match result {
            Err(error) => self.outcomes.fail_request(path, &error),
            Ok(_) => self.outcomes.fail(format!("{}: not answered as asked", path.display())),
        }
    }

    fn finish_directories(&mut self) -> Result<(), Failure> {
        for index in (0..self.directories.len()).rev() {
            if self.outcomes.is_hopeless {
                break;
            }
            let Some(handle) = self.directories[index] else { continue };
            while self.pipeline.outstanding() >= self.files_max {
                self.react()?;
            }
            let changes = changes(self.tree.directories[index].kept);
            let operation = Operation::SetAttributes { handle, changes };
            self.submit_directory(operation, Step::DirectoryAttributes(index), index);
        }
        while self.pipeline.outstanding() > 0 {
            self.react()?;
        }
        Ok(())
    }

    // Files.

    /// Starts whatever can be started.
    fn fill(&mut self) {
        while self.open.len() - self.free_places.len() < self.files_max
            && self.next_file < self.tree.files.len()
            && !self.outcomes.is_hopeless
        {
            self.next_file += 1;
            self.begin(self.next_file - 1);
        }
        while let Some(place) = self.ready.front().copied()
            && let Some(buffer) = self.pipeline.take_buffer()
        {
            self.ready.pop_front();
            self.write(place, buffer);
        }
    }

    fn begin(&mut self, index: usize) {
        let file = &self.tree.files[index];
        let (parent, name) = match (file.parent, self.destination) {
            (Some(directory), _) => match self.directories[directory] {
                Some(parent) => (parent, file.name.as_bytes().to_vec()),
                // The directory's failure was told.
                None => return,
            },
            (None, Destination::Name(parent, name)) => (*parent, name.clone()),
            (None, Destination::Directory(_)) => return,
        };
        let opened = File::open(&file.path).and_then(|source| {
            let metadata = source.metadata()?;
            Ok((source, metadata))
        });
        let (source, metadata) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.outcomes.fail_path("opening", &file.path, &error),
        };
        let open = Open {
            file: index,
            source,
            kept: Kept::of(&metadata),
            handle: parent,
            next: 0,
            size: metadata.len(),
            writes: 0,
            failed: false,
        };
        let place = self.free_places.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[place] = Some(open);
        let ownership = ownership(FILE_MODE);
        let operation = Operation::Create { parent, name, ownership, exclusive: false };
        self.submit_file(operation, Step::Create(place), place);
    }

    fn submit_file(&mut self, operation: Operation, step: Step, place: usize) {
        if let Err(error) = self.pipeline.submit(operation, step) {
            self.abandon(place, &error);
        }
    }

    fn created(&mut self, place: usize, result: Result<Outcome, RequestError>) {
        let attributes = match result {
            Ok(Outcome::Entry(attributes)) => attributes,
            Ok(_) => return self.abandon_because(place, "not answered as asked"),
            Err(error) => return self.abandon(place, &error),
        };
        if is_directory(&attributes) {
            return self.abandon_because(place, "a directory of this name is in Gannet");
        }
        let Some(open) = &mut self.open[place] else { return };
        open.handle = attributes.handle;
        if attributes.size.get() == 0 {
            return self.opened(place);
        }
        let changes = AttributeChanges { size: Some(0), ..AttributeChanges::default() };
        let operation = Operation::SetAttributes { handle: attributes.handle, changes };
        self.submit_file(operation, Step::Truncate(place), place);
    }

    /// The file exists and is empty.
    fn opened(&mut self, place: usize) {
        if self.open[place].as_ref().is_some_and(|open| open.size > 0) {
            self.ready.push_back(place);
        } else {
            self.close(place);
        }
    }

    /// Reads the next piece and writes it.
    fn write(&mut self, place: usize, mut buffer: HostBuffer) {
        let Some(open) = self.open[place].as_mut().filter(|open| !open.failed) else {
            return self.pipeline.put_buffer(buffer);
        };
        let length = (open.size - open.next).min(PIECE_BYTES as u64) as u32;
        let piece = &mut buffer[..length as usize];
        if let Err(error) = open.source.read_exact_at(piece, open.next) {
            self.pipeline.put_buffer(buffer);
            return self.read_failed(place, &error);
        }
        let operation = Operation::Write {
            file: open.handle,
            offset: open.next,
            length,
            buffer,
            buffer_offset: 0,
            append: false,
        };
        open.next += u64::from(length);
        open.writes += 1;
        if open.next < open.size {
            self.ready.push_back(place);
        }
        if let Err(error) = self.pipeline.submit(operation, Step::Write { place, length }) {
            if let Some(open) = &mut self.open[place] {
                open.writes -= 1;
            }
            self.abandon(place, &error);
        }
    }

    fn read_failed(&mut self, place: usize, error: &std::io::Error) {
        let Some(open) = &self.open[place] else { return };
        let path = &self.tree.files[open.file].path;
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.abandon_because(place, "it became shorter while it was copied");
        }
        self.outcomes.fail_path("reading", path, error);
        self.give_up(place);
    }

    fn written(&mut self, place: usize, length: u32, result: Result<Outcome, RequestError>) {
        let Some(open) = &mut self.open[place] else { return };
        open.writes -= 1;
        match result {
            Ok(Outcome::Write { bytes, .. }) if bytes == length => {
                self.progress.done(length.into());
                self.outcomes.bytes += u64::from(length);
                if open.failed {
                    self.give_up(place);
                } else if open.writes == 0 && open.next == open.size {
                    self.close(place);
                }
            }
            Ok(_) => self.abandon_because(place, "a write was not done in full"),
            Err(error) => self.abandon(place, &error),
        }
    }

    /// All content is stored: the attributes follow.
    fn close(&mut self, place: usize) {
        let Some(open) = &self.open[place] else { return };
        let (handle, changes) = (open.handle, changes(open.kept));
        let operation = Operation::SetAttributes { handle, changes };
        self.submit_file(operation, Step::FileAttributes(place), place);
    }

    fn completed(&mut self, place: usize, result: Result<Outcome, RequestError>) {
        if let Err(error) = result {
            return self.abandon(place, &error);
        }
        if let Some(open) = self.open[place].take() {
            self.outcomes.files += 1;
            let path = self.tree.files[open.file].path.clone();
            self.stored.push(Stored { handle: open.handle, path });
            self.free_places.push(place);
        }
    }

    /// Tells the failure of a request of a file, and gives the file up.
    fn abandon(&mut self, place: usize, error: &RequestError) {
        if let Some(open) = &self.open[place]
            && !open.failed
        {
            self.outcomes.fail_request(&self.tree.files[open.file].path, error);
        }
        self.give_up(place);
    }

    fn abandon_because(&mut self, place: usize, why: &str) {
        if let Some(open) = &self.open[place]
            && !open.failed
        {
            let path = self.tree.files[open.file].path.display();
            self.outcomes.fail(format!("{path}: {why}"));
        }
        self.give_up(place);
    }

    /// Starts nothing more for a file; its place is free when nothing is under way for it.
    fn give_up(&mut self, place: usize) {
        let Some(open) = &mut self.open[place] else { return };
        open.failed = true;
        if open.writes == 0 {
            self.ready.retain(|ready| *ready != place);
            self.open[place] = None;
            self.free_places.push(place);
        }
    }
}

fn changes(kept: Kept) -> AttributeChanges {
    AttributeChanges {
        mode: Some(kept.mode),
        mtime: Some(SetTime::At(kept.mtime_ns)),
        ..AttributeChanges::default()
    }
}
