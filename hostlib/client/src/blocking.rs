//! A client whose calls return when they are done.
//!
//! A [`Session`] owns a client and an arena. Reads and writes of any length are cut into requests
//! of at most a buffer each, several of which are under way at a time. The calling thread spins for
//! a moment, then yields, then sleeps until a server signals it. For real time only.

mod pieces;

use std::io;

use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::arena::{Arena, RegionIds};
use gannet_fabric::{Address, Fabric, FabricError};
use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::{Handle, Inode, Status};

use crate::client::Client;
use crate::counters::Counters;
use crate::error::{ErrorKind, RequestError};
use crate::identities::{Identity, IdentityId};
use crate::opens::{OpenAccess, OpenId};
use crate::operation::{
    AttributeChanges, Completion, Entry, Operation, Outcome, Ownership, Space, XattrMode,
};
use crate::options::ClientOptions;
use crate::waiter::Waiter;
use gannet_runtime::idle::IdlePolicy;
use pieces::{Piece, Pieces};

/// Buffers of [`Session::open_metaserver`], bytes each.
const BUFFER_BYTES: usize = 1 << 20;
/// Buffers of [`Session::open_metaserver`].
const BUFFERS: u32 = 32;

/// What can go wrong before a session is there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused memory, randomness or a descriptor.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The fabric could not be set up.
    #[error("the fabric: {0}")]
    Fabric(#[from] FabricError),
    /// The metadata server could not be reached, or refused.
    #[error("{metaserver}: {source}")]
    Request {
        /// The address that was tried.
        metaserver: Address,
        /// Why it failed.
        source: RequestError,
    },
}

/// A client with blocking calls. Belongs to one thread.
#[derive(Debug)]
pub struct Session<F: Fabric> {
    client: Client<F>,
    arena: Arena,
    waiter: Waiter,
    completions: Vec<Completion>,
    identity: IdentityId,
}

impl Session<AnyFabric> {
    /// Opens a session with the metadata server at `metaserver`, with default settings.
    ///
    /// # Errors
    /// [`OpenError`], `Request` if the server cannot be reached within `reconnect_timeout`.
    pub fn open_metaserver(metaserver: &Address) -> Result<Session<AnyFabric>, OpenError> {
        let options = ClientOptions::random(metaserver.clone()).map_err(|error| {
            let source = io::Error::other(error.to_string());
            OpenError::System { what: "a random session id", source }
        })?;
        Session::open_with(options)
    }

    /// Opens a session with settings of the caller's.
    ///
    /// # Errors
    /// As [`Session::open_metaserver`].
    pub fn open_with(options: ClientOptions) -> Result<Session<AnyFabric>, OpenError> {
        let system = |what| move |source| OpenError::System { what, source };
        let metaserver = options.metaserver.clone();
        let mut fabric = AnyFabric::new(FabricOptions::default());
        fabric.open(&metaserver)?;
        let arena = Arena::new(&RegionIds::new(), BUFFER_BYTES, BUFFERS)
            .map_err(system("memory for buffers"))?;
        let mut session = Session::new(Client::new(options, fabric), arena)
            .map_err(system("a descriptor to sleep on"))?;
        session.connect().map_err(|source| OpenError::Request { metaserver, source })?;
        Ok(session)
    }
}

impl<F: Fabric> Session<F> {
    /// Wraps a client that has no requests under way.
    ///
    /// # Errors
    /// What making a descriptor to sleep on returns.
    pub fn new(client: Client<F>, arena: Arena) -> io::Result<Session<F>> {
        Ok(Session {
            client,
            arena,
            waiter: Waiter::new(IdlePolicy::ADAPTIVE)?,
            completions: Vec::new(),
            identity: IdentityId::OWN,
        })
    }

    /// The client, for its counters.
    #[must_use]
    pub fn client(&self) -> &Client<F> {
        &self.client
    }

    /// The arena that reads and writes go through.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Ends the blocking use.
    #[must_use]
    pub fn into_client(self) -> (Client<F>, Arena) {
        (self.client, self.arena)
    }

    /// Says who a number stands for in [`Session::act_as`].
    ///
    /// # Errors
    /// `Invalid` for a number or a number of groups that is out of bounds.
    pub fn set_identity(
        &mut self,
        id: IdentityId,
        identity: &Identity,
    ) -> Result<(), RequestError> {
        let set = self.client.set_identity(id, identity);
        set.map_err(|kind| RequestError::new("set identity", kind))
    }

    /// Makes the calls that follow on behalf of a user, [`IdentityId::OWN`] for the program's own.
    pub fn act_as(&mut self, identity: IdentityId) {
        self.identity = identity;
    }

    /// Connects, and shows that the server answers.
    ///
    /// # Errors
    /// As every call: [`RequestError`].
    pub fn connect(&mut self) -> Result<(), RequestError> {
        self.entry(Operation::Stat { handle: root() }).map(|_root| ())
    }

    /// Performs one operation.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn call(&mut self, operation: Operation) -> Result<Outcome, RequestError> {
        let completion = self.perform(operation)?;
        completion.result
    }

    fn perform(&mut self, operation: Operation) -> Result<Completion, RequestError> {
        let timeout = self.client.options().request_timeout;
        let id = self.client.submit_as(operation, 0, timeout, self.identity);
        let id = id.map_err(|refused| refused.error)?;
        loop {
            self.waiter.wait(&mut self.client, &mut self.completions);
            if let Some(found) = self.completions.iter().position(|done| done.request == id) {
                return Ok(self.completions.swap_remove(found));
            }
            // Of a call that was left early by an error; nobody waits for them.
            self.completions.clear();
        }
    }

    /// Performs an operation that is answered by attributes.
    fn entry(&mut self, operation: Operation) -> Result<Attributes, RequestError> {
        let name = operation.name();
        match self.call(operation)? {
            Outcome::Entry(attributes) => Ok(attributes),
            _ => Err(unexpected(name)),
        }
    }

    /// Resolves a path from the root.
    ///
    /// # Errors
    /// `NOT_FOUND`, `NOT_DIRECTORY`, or as every call.
    pub fn resolve(&mut self, path: &str) -> Result<Attributes, RequestError> {
        self.resolve_bytes(path.as_bytes())
    }

    fn resolve_bytes(&mut self, path: &[u8]) -> Result<Attributes, RequestError> {
        self.entry(Operation::Lookup { parent: root(), path: path.to_vec() })
    }

    /// The directory that a path's last component is in, and that component.
    fn parent<'a>(&mut self, path: &'a str) -> Result<(Handle, &'a [u8]), RequestError> {
        let (directory, name) = split(path.as_bytes());
        if directory.is_empty() {
            return Ok((root(), name));
        }
        Ok((self.resolve_bytes(directory)?.handle, name))
    }

    /// Attributes of what a path names.
    ///
    /// # Errors
    /// As [`Session::resolve`].
    pub fn stat(&mut self, path: &str) -> Result<Attributes, RequestError> {
        self.resolve(path)
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `STALE_HANDLE`, or as every call.
    pub fn stat_handle(&mut self, handle: Handle) -> Result<Attributes, RequestError> {
        self.entry(Operation::Stat { handle })
    }

    /// Finds a file and prepares for I/O on it.
    ///
    /// # Errors
    /// As [`Session::resolve`].
    pub fn open(&mut self, path: &str) -> Result<Attributes, RequestError> {
        let file = self.resolve(path)?.handle;
        self.entry(Operation::Open { file })
    }

    /// Opens a file: see [`Operation::OpenFile`].
    ///
    /// # Errors
    /// `ACCESS`, `IS_DIRECTORY`, `TOO_MANY_OPEN`, or as [`Session::resolve`].
    pub fn open_file(
        &mut self,
        path: &str,
        access: OpenAccess,
    ) -> Result<(Attributes, OpenId), RequestError> {
        let file = self.resolve(path)?.handle;
        let open = self.client.new_open();
        let attributes = self.entry(Operation::OpenFile { file, access, open })?;
        Ok((attributes, open))
    }

    /// Ends an open.
    ///
    /// # Errors
    /// As every call.
    pub fn close_file(&mut self, file: Handle, open: OpenId) -> Result<(), RequestError> {
        self.entry(Operation::CloseFile { file, open }).map(|_attributes| ())
    }

    /// Makes a regular file; finds the existing one unless `exclusive`.
    ///
    /// # Errors
    /// `EXISTS`, or as [`Session::resolve`].
    pub fn create(
        &mut self,
        path: &str,
        ownership: Ownership,
        exclusive: bool,
    ) -> Result<Attributes, RequestError> {
        let (parent, name) = self.parent(path)?;
        let name = name.to_vec();
        self.entry(Operation::Create { parent, name, ownership, exclusive })
    }

    /// Makes a regular file and opens it, whatever its mode; opens the existing one unless `exclusive`. See
    /// [`Operation::CreateOpen`].
    ///
    /// # Errors
    /// `EXISTS`, `ACCESS`, or as [`Session::resolve`].
    pub fn create_open(
        &mut self,
        path: &str,
        ownership: Ownership,
        exclusive: bool,
        access: OpenAccess,
    ) -> Result<(Attributes, OpenId), RequestError> {
        let (parent, name) = self.parent(path)?;
        let (name, open) = (name.to_vec(), self.client.new_open());
        let operation = Operation::CreateOpen { parent, name, ownership, exclusive, access, open };
        self.entry(operation).map(|attributes| (attributes, open))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `EXISTS`, or as [`Session::resolve`].
    pub fn mkdir(&mut self, path: &str, ownership: Ownership) -> Result<Attributes, RequestError> {
        let (parent, name) = self.parent(path)?;
        self.entry(Operation::Mkdir { parent, name: name.to_vec(), ownership })
    }

    /// Makes a directory and those above it that are missing; finds it if it is there.
    ///
    /// # Errors
    /// `NOT_DIRECTORY` if something else has the name of one of them, or as every call.
    pub fn mkdir_all(
        &mut self,
        path: &str,
        ownership: Ownership,
    ) -> Result<Attributes, RequestError> {
        let mut at = self.entry(Operation::Stat { handle: root() })?;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let (parent, name) = (at.handle, name.as_bytes().to_vec());
            let made = self.entry(Operation::Mkdir { parent, name: name.clone(), ownership });
            at = match made {
                Ok(attributes) => attributes,
                Err(error) if error.status() == Some(Status::EXISTS) => {
                    let found = Operation::Lookup { parent, path: name };
                    let attributes = self.entry(found)?;
                    if attributes.mode.get() & file_type::MASK != file_type::DIRECTORY {
                        let kind = ErrorKind::Status(Status::NOT_DIRECTORY);
                        return Err(RequestError { kind, ..error });
                    }
                    attributes
                }
                Err(error) => return Err(error),
            };
        }
        Ok(at)
    }

    /// Removes a name of a file.
    ///
    /// # Errors
    /// `IS_DIRECTORY`, or as [`Session::resolve`].
    pub fn unlink(&mut self, path: &str) -> Result<(), RequestError> {
        let (parent, name) = self.parent(path)?;
        self.entry(Operation::Unlink { parent, name: name.to_vec() }).map(|_gone| ())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NOT_EMPTY`, or as [`Session::resolve`].
    pub fn rmdir(&mut self, path: &str) -> Result<(), RequestError> {
        let (parent, name) = self.parent(path)?;
        self.entry(Operation::Rmdir { parent, name: name.to_vec() }).map(|_gone| ())
    }

    /// Moves a name, replacing what has the new one.
    ///
    /// # Errors
    /// As [`Session::resolve`], and as `rename(2)`.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), RequestError> {
        let (parent, name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let (name, to_name) = (name.to_vec(), to_name.to_vec());
        let operation = Operation::Rename { parent, name, to_parent, to_name, no_replace: false };
        self.entry(operation).map(|_moved| ())
    }

    /// Lets two names change places; both exist, and are of files or directories alike.
    ///
    /// # Errors
    /// As [`Session::resolve`], and as `renameat2(2)` with `RENAME_EXCHANGE`.
    pub fn rename_exchange(&mut self, one: &str, other: &str) -> Result<(), RequestError> {
        let (parent, name) = self.parent(one)?;
        let (to_parent, to_name) = self.parent(other)?;
        let (name, to_name) = (name.to_vec(), to_name.to_vec());
        let operation = Operation::Exchange { parent, name, to_parent, to_name };
        self.entry(operation).map(|_exchanged| ())
    }

    /// Gives a file a further name. Its attributes, as they are then.
    ///
    /// # Errors
    /// `EXISTS`, `NOT_PERMITTED` for a directory, `TOO_MANY_LINKS`, or as [`Session::resolve`].
    pub fn link(&mut self, existing: &str, new: &str) -> Result<Attributes, RequestError> {
        let file = self.resolve(existing)?.handle;
        let (parent, name) = self.parent(new)?;
        self.entry(Operation::Link { file, parent, name: name.to_vec() })
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// As every call.
    pub fn set_attributes(
        &mut self,
        handle: Handle,
        changes: AttributeChanges,
    ) -> Result<Attributes, RequestError> {
        self.entry(Operation::SetAttributes { handle, changes })
    }

    /// Sets the size of a file.
    ///
    /// # Errors
    /// As every call.
    pub fn truncate(&mut self, file: Handle, size: u64) -> Result<(), RequestError> {
        let changes = AttributeChanges { size: Some(size), ..AttributeChanges::default() };
        self.set_attributes(file, changes).map(|_attributes| ())
    }

    /// Performs an operation on extended attributes.
    fn xattr(&mut self, operation: Operation) -> Result<Vec<u8>, RequestError> {
        let name = operation.name();
        match self.call(operation)? {
            Outcome::Xattr(value) => Ok(value),
            _ => Err(unexpected(name)),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NO_DATA` if there is none, `NOT_SUPPORTED` for names that there cannot be, `ACCESS`, or as
    /// every call.
    pub fn xattr_value(&mut self, handle: Handle, name: &str) -> Result<Vec<u8>, RequestError> {
        self.xattr(Operation::GetXattr { handle, name: name.as_bytes().to_vec() })
    }

    /// The names of all extended attributes that may be seen, in byte order.
    ///
    /// # Errors
    /// As every call.
    pub fn xattr_names(&mut self, handle: Handle) -> Result<Vec<Vec<u8>>, RequestError> {
        let list = self.xattr(Operation::ListXattrs { handle })?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(<[u8]>::to_vec).collect())
    }

    /// Gives an extended attribute a value.
    ///
    /// # Errors
    /// `EXISTS`, `NO_DATA` as `mode` has it, `NO_SPACE`, `ACCESS`, `NOT_PERMITTED`, or as
    /// every call.
    pub fn set_xattr(
        &mut self,
        handle: Handle,
        name: &str,
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), RequestError> {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.xattr(Operation::SetXattr { handle, name, value, mode }).map(|_empty| ())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NO_DATA`, `ACCESS`, `NOT_PERMITTED`, or as every call.
    pub fn remove_xattr(&mut self, handle: Handle, name: &str) -> Result<(), RequestError> {
        let name = name.as_bytes().to_vec();
        self.xattr(Operation::RemoveXattr { handle, name }).map(|_empty| ())
    }

    /// Waits until everything acknowledged on the file is durable.
    ///
    /// # Errors
    /// As every call.
    pub fn fsync(&mut self, file: Handle) -> Result<(), RequestError> {
        self.entry(Operation::Fsync { file }).map(|_attributes| ())
    }

    /// All entries of a directory, in byte order of their names.
    ///
    /// # Errors
    /// As [`Session::resolve`].
    pub fn readdir_all(&mut self, path: &str) -> Result<Vec<Entry>, RequestError> {
        let directory = self.resolve(path)?.handle;
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.name.clone()).unwrap_or_default();
            let operation = Operation::Readdir { directory, after: after.clone() };
            let name = operation.name();
            let Outcome::Directory(listing) = self.call(operation)? else {
                return Err(unexpected(name));
            };
            // A listing that goes back would never end.
            if listing.entries.first().is_some_and(|first| !after.is_empty() && first.name <= after)
            {
                let kind = ErrorKind::Protocol("a listing that goes back");
                return Err(RequestError {
                    inode: directory.inode(),
                    ..RequestError::new(name, kind)
                });
            }
            entries.extend(listing.entries);
            if listing.end {
                return Ok(entries);
            }
        }
    }

    /// Space and number of files over all reactors.
    ///
    /// # Errors
    /// As every call.
    pub fn statfs(&mut self) -> Result<Space, RequestError> {
        let mut total = self.space_of(0)?;
        for reactor in 1..self.client.reactors() {
            let space = self.space_of(reactor)?;
            // Stores are counted by every reactor, what lies in them only by the owner.
            total.blocks_used = total.blocks_used.saturating_add(space.blocks_used);
            total.inodes = total.inodes.saturating_add(space.inodes);
            total.blocks_total = total.blocks_total.max(space.blocks_total);
            total.targets = total.targets.max(space.targets);
        }
        Ok(total)
    }

    fn space_of(&mut self, reactor: u16) -> Result<Space, RequestError> {
        match self.call(Operation::StatFs { reactor })? {
            Outcome::Space(space) => Ok(space),
            _ => Err(unexpected("statfs")),
        }
    }

    /// Counters of all reactors, and of all data servers if `targets`.
    ///
    /// # Errors
    /// As every call.
    pub fn stats(&mut self, targets: bool) -> Result<Vec<Counters>, RequestError> {
        let mut all = Vec::new();
        let mut reactor = 0;
        loop {
            let operation = Operation::Stats { reactor, targets: targets && reactor == 0 };
            let Outcome::Counters(counters) = self.call(operation)? else {
                return Err(unexpected("stats"));
            };
            all.extend(counters);
            reactor += 1;
            if reactor >= self.client.reactors() {
                return Ok(all);
            }
        }
    }

    /// Reads at `offset` until `into` is full or the file ends; returns the number of bytes.
    ///
    /// Each request of at most a buffer is atomic; the whole is if it fits one.
    ///
    /// # Errors
    /// As every call; bytes of `into` may then have been changed.
    pub fn read_at(
        &mut self,
        file: Handle,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize, RequestError> {
        let mut end = into.len();
        let mut todo = Pieces::new(into.len(), self.piece_bytes());
        let mut failure = None;
        loop {
            while failure.is_none()
                && let Some(piece) = todo.next(end)
            {
                if let Err(error) = self.start_read(file, offset, piece, &mut todo) {
                    failure = Some(error);
                }
            }
            if todo.is_idle() {
                return failure.map_or(Ok(end), Err);
            }
            self.waiter.wait(&mut self.client, &mut self.completions);
            while let Some(done) = self.completions.pop() {
                let Some(piece) = todo.take(done.token) else { continue };
                match (done.result, done.buffer) {
                    (Ok(Outcome::Read { bytes, end_of_file }), Some(buffer)) => {
                        let bytes = (bytes as usize).min(piece.length);
                        let until = piece.start + bytes;
                        into[piece.start..until].copy_from_slice(&buffer[..bytes]);
                        if end_of_file {
                            end = end.min(until);
                        } else if bytes < piece.length && bytes > 0 {
                            todo.again(Piece { start: until, length: piece.length - bytes });
                        } else if bytes == 0 {
                            failure = Some(unexpected("read"));
                        }
                    }
                    (Err(error), _) => failure = failure.or(Some(error)),
                    _ => failure = failure.or_else(|| Some(unexpected("read"))),
                }
            }
        }
    }

    fn start_read(
        &mut self,
        file: Handle,
        offset: u64,
        piece: Piece,
        todo: &mut Pieces,
    ) -> Result<(), RequestError> {
        let Some(buffer) = self.arena.take() else { return todo.no_buffer(piece, "read") };
        let operation = Operation::Read {
            file,
            offset: offset.saturating_add(piece.start as u64),
            length: piece.length as u32,
            buffer,
            buffer_offset: 0,
        };
        let token = todo.put(piece);
        self.submit_piece(operation, token, todo)
    }

    /// Writes all of `from` at `offset`, durably.
    ///
    /// Each request of at most a buffer is atomic; the whole is if it fits one.
    ///
    /// # Errors
    /// As every call; some of the bytes may then have been written.
    pub fn write_at(&mut self, file: Handle, offset: u64, from: &[u8]) -> Result<(), RequestError> {
        let todo = Pieces::new(from.len(), self.piece_bytes());
        self.write_pieces(file, Some(offset), from, todo)
    }

    /// Writes all of `from` at the end of the file, durably, in order. Other writers may come
    /// between requests, each of at most a buffer.
    ///
    /// # Errors
    /// As [`Session::write_at`].
    pub fn append(&mut self, file: Handle, from: &[u8]) -> Result<(), RequestError> {
        let todo = Pieces::new(from.len(), self.piece_bytes()).one_by_one();
        self.write_pieces(file, None, from, todo)
    }

    fn write_pieces(
        &mut self,
        file: Handle,
        offset: Option<u64>,
        from: &[u8],
        mut todo: Pieces,
    ) -> Result<(), RequestError> {
        let mut failure = None;
        loop {
            while failure.is_none()
                && let Some(piece) = todo.next(from.len())
            {
                if let Err(error) = self.start_write(file, offset, from, piece, &mut todo) {
                    failure = Some(error);
                }
            }
            if todo.is_idle() {
                return failure.map_or(Ok(()), Err);
            }
            self.waiter.wait(&mut self.client, &mut self.completions);
            while let Some(done) = self.completions.pop() {
                let Some(piece) = todo.take(done.token) else { continue };
                match done.result {
                    Ok(Outcome::Write { bytes, .. }) => {
                        let bytes = (bytes as usize).min(piece.length);
                        if bytes == 0 {
                            failure = Some(unexpected("write"));
                        } else if bytes < piece.length {
                            let (start, length) = (piece.start + bytes, piece.length - bytes);
                            todo.again(Piece { start, length });
                        }
                    }
                    Err(error) => failure = failure.or(Some(error)),
                    Ok(_) => failure = failure.or_else(|| Some(unexpected("write"))),
                }
            }
        }
    }

    fn start_write(
        &mut self,
        file: Handle,
        offset: Option<u64>,
        from: &[u8],
        piece: Piece,
        todo: &mut Pieces,
    ) -> Result<(), RequestError> {
        let Some(mut buffer) = self.arena.take() else { return todo.no_buffer(piece, "write") };
        buffer[..piece.length].copy_from_slice(&from[piece.start..piece.start + piece.length]);
        let operation = Operation::Write {
            file,
            offset: offset.map_or(0, |offset| offset.saturating_add(piece.start as u64)),
            length: piece.length as u32,
            buffer,
            buffer_offset: 0,
            append: offset.is_none(),
        };
        let token = todo.put(piece);
        self.submit_piece(operation, token, todo)
    }

    fn submit_piece(
        &mut self,
        operation: Operation,
        token: u64,
        todo: &mut Pieces,
    ) -> Result<(), RequestError> {
        let timeout = self.client.options().request_timeout;
        match self.client.submit_as(operation, token, timeout, self.identity) {
            Ok(_id) => Ok(()),
            Err(refused) => {
                let _not_started = todo.take(token);
                Err(refused.error)
            }
        }
    }

    fn piece_bytes(&self) -> usize {
        self.arena.buffer_bytes().min(self.client.request_bytes_max() as usize).max(1)
    }
}

fn root() -> Handle {
    Handle::new(Inode::ROOT)
}

fn unexpected(operation: &'static str) -> RequestError {
    RequestError::new(operation, ErrorKind::Protocol("an answer that does not fit the request"))
}

/// A path's directory and last component; slashes at its end do not count.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = &path[..end];
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_into_directory_and_name() {
        for (path, directory, name) in [
            ("/a/b", "/a", "b"),
            ("a", "", "a"),
            ("/a", "", "a"),
            ("a/b//", "a", "b"),
            ("", "", ""),
            ("//", "", ""),
        ] {
            assert_eq!(split(path.as_bytes()), (directory.as_bytes(), name.as_bytes()), "{path}");
        }
    }
}
