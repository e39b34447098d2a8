//! `gannet stat` and `gannet cat`.

use std::collections::VecDeque;
use std::io::{self, Write};

use gannet_client::{Completion, Operation, Outcome};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::Handle;
use gannet_proto::operations::{Attributes, file_type};

use super::list::{mode_text, output};
use super::{REQUESTS_MAX, for_each};
use crate::cli::{CatArguments, StatArguments};
use crate::connection::{Connection, explain, is_directory};
use crate::failure::Failure;
use crate::remote::RemotePath;
use crate::times::format_time;

/// Bytes of a read of `cat`.
const READ_BYTES: usize = 1 << 20;
/// Reads that `cat` has under way.
const READS: u32 = 8;

/// Shows all attributes.
pub(crate) fn stat(arguments: &StatArguments) -> Result<(), Failure> {
    let paths = arguments.paths.iter().map(|path| RemotePath::parse(path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    for_each(paths, |path| {
        let about = format!("stat {path}");
        let attributes = connection.lookup(&path).map_err(|error| error.about(about))?;
        let text =
            if arguments.json { json(&path, &attributes) } else { table(&path, &attributes) };
        writeln!(io::stdout(), "{text}").map_err(output)
    })
}

fn kind(attributes: &Attributes) -> &'static str {
    match attributes.mode.get() & file_type::MASK {
        file_type::DIRECTORY => "directory",
        file_type::REGULAR => "file",
        _ => "unknown",
    }
}

fn json(path: &RemotePath, attributes: &Attributes) -> String {
    serde_json::json!({
        "path": path.to_string(),
        "type": kind(attributes),
        "inode": attributes.handle.inode().0,
        "size": attributes.size.get(),
        "allocated_bytes": attributes.allocated_bytes.get(),
        "mode": attributes.mode.get() & 0o7777,
        "uid": attributes.uid.get(),
        "gid": attributes.gid.get(),
        "links": attributes.links.get(),
        "atime_ns": attributes.atime_ns.get(),
        "mtime_ns": attributes.mtime_ns.get(),
        "ctime_ns": attributes.ctime_ns.get(),
    })
    .to_string()
}

fn table(path: &RemotePath, attributes: &Attributes) -> String {
    let inode = attributes.handle.inode();
    let shard = inode.shard().map_or_else(|| "none".to_owned(), |shard| shard.to_string());
    format!(
        "path:      {path}\n\
         type:      {}, {} link(s)\n\
         size:      {} ({} bytes allocated)\n\
         inode:     {:#x} on shard {shard}\n\
         access:    {} uid {} gid {}\n\
         accessed:  {}\n\
         modified:  {}\n\
         changed:   {}",
        kind(attributes),
        attributes.links,
        attributes.size,
        attributes.allocated_bytes,
        inode.0,
        mode_text(attributes.mode.get()),
        attributes.uid,
        attributes.gid,
        format_time(attributes.atime_ns.get()),
        format_time(attributes.mtime_ns.get()),
        format_time(attributes.ctime_ns.get()),
    )
}

/// Writes files to standard output.
pub(crate) fn cat(arguments: &CatArguments) -> Result<(), Failure> {
    let paths = arguments.paths.iter().map(|path| RemotePath::parse(path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let protection = &arguments.protection;
    let mut connection = Connection::open_for_data(&arguments.server, protection, REQUESTS_MAX)?;
    let mut buffers = connection.buffers(READ_BYTES, READS)?;
    let mut absent = None;
    for path in paths {
        let about = format!("reading {path}");
        let file = match connection.lookup(&path) {
            Ok(found) if is_directory(&found) => {
                Err(Failure::operation(format!("{about}: is a directory")))
            }
            Ok(found) => Ok(found),
            Err(error) => Err(error.about(&about)),
        };
        match file {
            Ok(found) => Reader::new(&mut connection, &mut buffers, &found).copy(&about)?,
            Err(failure) => {
                if let Some(earlier) = absent.replace(failure) {
                    crate::tell(&earlier);
                }
            }
        }
    }
    absent.map_or(Ok(()), Err)
}

/// A read that was asked for, in the order of the file.
struct Piece {
    offset: u64,
    length: u32,
    /// Bytes in the buffer so far; a read may deliver less than asked for.
    done: u32,
    buffer: Option<HostBuffer>,
}

/// Reads a file in order with several reads under way.
struct Reader<'a> {
    connection: &'a mut Connection,
    file: Handle,
    free: &'a mut Vec<HostBuffer>,
    pieces: VecDeque<Piece>,
    next: u64,
    size: u64,
}

impl<'a> Reader<'a> {
    fn new(
        connection: &'a mut Connection,
        free: &'a mut Vec<HostBuffer>,
        attributes: &Attributes,
    ) -> Reader<'a> {
        let (file, size) = (attributes.handle, attributes.size.get());
        Reader { connection, file, free, pieces: VecDeque::new(), next: 0, size }
    }

    /// Writes the whole file out. After a failure reads may still be under way, so nothing more is
    /// read on this connection.
    fn copy(&mut self, about: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        loop {
            while self.next < self.size
                && let Some(buffer) = self.free.pop()
            {
                let length = (self.size - self.next).min(buffer.len() as u64) as u32;
                self.pieces.push_back(Piece { offset: self.next, length, done: 0, buffer: None });
                self.next += u64::from(length);
                self.read(self.pieces.len() - 1, buffer, about)?;
            }
            let Some(first) = self.pieces.front() else { break };
            if first.buffer.is_none() {
                self.complete(about)?;
                continue;
            }
            if let Some(Piece { done, buffer: Some(buffer), .. }) = self.pieces.pop_front() {
                let written = out.write_all(&buffer[..done as usize]);
                self.free.push(buffer);
                written.map_err(output)?;
            }
        }
        out.flush().map_err(output)
    }

    /// Asks for the rest of a piece.
    fn read(&mut self, index: usize, buffer: HostBuffer, about: &str) -> Result<(), Failure> {
        let piece = &self.pieces[index];
        let operation = Operation::Read {
            file: self.file,
            offset: piece.offset + u64::from(piece.done),
            length: piece.length - piece.done,
            buffer,
            buffer_offset: piece.done,
        };
        let token = piece.offset;
        self.connection
            .submit(operation, token)
            .map(|_| ())
            .map_err(|refused| Failure::operation(format!("{about}: {}", explain(&refused.error))))
    }

    /// Waits for a completion and notes what came.
    fn complete(&mut self, about: &str) -> Result<(), Failure> {
        let mut completions = Vec::new();
        self.connection.wait(&mut completions)?;
        completions.into_iter().try_for_each(|completion| self.completed(completion, about))
    }

    fn completed(&mut self, completion: Completion, about: &str) -> Result<(), Failure> {
        let Completion { token, result, buffer, .. } = completion;
        let place = self.pieces.iter().position(|piece| piece.offset == token);
        let (Some(index), Some(buffer)) = (place, buffer) else {
            return Err(Failure::operation(format!("{about}: a read has lost its memory")));
        };
        let (bytes, end_of_file) = match result {
            Ok(Outcome::Read { bytes, end_of_file }) => (bytes, end_of_file),
            Ok(_) => (0, true),
            Err(error) => {
                return Err(Failure::operation(format!("{about}: {}", explain(&error))));
            }
        };
        let piece = &mut self.pieces[index];
        piece.done = piece.length.min(piece.done.saturating_add(bytes));
        if piece.done < piece.length && !end_of_file && bytes > 0 {
            return self.read(index, buffer, about);
        }
        piece.buffer = Some(buffer);
        Ok(())
    }
}
