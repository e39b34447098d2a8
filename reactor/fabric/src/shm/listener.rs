//! A listening socket in the file system, owned by one process at a time.
//!
//! The owner holds `flock` on `<path>.lock` for as long as it listens. With the lock a socket file
//! left by a dead process can be replaced without a race against another process that starts; a
//! process that listens at the path without our lock is found by connecting to it. A crash leaves
//! both files behind; the next owner takes them over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags};

use super::socket::{self, Dialled};
use crate::FabricError;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 256;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, to recognise it.
    identity: (u64, u64),
    lock_path: PathBuf,
    lock: File,
    /// Leave the files behind.
    abandoned: bool,
}

impl Listener {
    /// Listens at `path`. `open_to_all` lets other users connect (they are then judged by their
    /// credentials), otherwise the file's mode keeps them out.
    ///
    /// # Errors
    /// `System` when another process listens there, the path is taken by another kind of file, or
    /// the file system refuses.
    pub(crate) fn bind(path: &Path, open_to_all: bool) -> Result<Listener, FabricError> {
        let named = |what: &str, source: io::Error| FabricError::System {
            what: format!("{what} {}", path.display()),
            source,
        };
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = take_lock(&lock_path).map_err(|source| named("listening at", source))?;

        let socket = socket::unbound().map_err(|error| named("a socket for", error.into()))?;
        // The mode of an unbound socket is what its file gets, so the file never has a wider one.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)
            .map_err(|error| named("the mode of", error.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|error| named("binding", error.into()))?;
        let bound = match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path).map_err(|source| named("listening at", source))?;
                rustix::net::bind(&socket, &address)
            }
            other => other,
        };
        bound.map_err(|error| named("binding", error.into()))?;

        let metadata = std::fs::symlink_metadata(path).map_err(|e| named("binding", e))?;
        let identity = (metadata.dev(), metadata.ino());
        let path = path.to_path_buf();
        let listener = Listener { socket, path, identity, lock_path, lock, abandoned: false };
        if open_to_all {
            std::fs::set_permissions(&listener.path, std::fs::Permissions::from_mode(0o666))
                .map_err(|source| named("the mode of", source))?;
        }
        rustix::net::listen(&listener.socket, BACKLOG)
            .map_err(|error| named("listening at", error.into()))?;
        Ok(listener)
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Closes like the process's death: the files stay.
    pub(crate) fn abandon(mut self) {
        self.abandoned = true;
    }

    /// Takes a waiting connection; `AGAIN` when there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::accept_with(&self.socket, flags)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            // Failing leaves a stale socket, which the next owner replaces.
            let _left = std::fs::remove_file(&self.path);
        }
        // Still locked, so whoever opened the old file finds it replaced and tries again.
        let _left = std::fs::remove_file(&self.lock_path);
        let _ends_with_the_file = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")
}

/// Creates or opens the lock file and locks it, without waiting.
fn take_lock(path: &Path) -> io::Result<File> {
    // Each round means that another owner ended between our open and our lock.
    const ROUNDS_MAX: usize = 16;
    for _ in 0..ROUNDS_MAX {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use()),
            Err(error) => return Err(error.into()),
        }
        let locked = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if (found.dev(), found.ino()) == (locked.dev(), locked.ino()) => {
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(in_use())
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is in the way; remove it or choose another path",
        ));
    }
    match socket::dial(path)? {
        Dialled::Nobody => std::fs::remove_file(path),
        Dialled::Connected(_) | Dialled::Later | Dialled::Foreign | Dialled::Denied => {
            Err(in_use())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let directory =
            std::env::temp_dir().join(format!("gannet-listener-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        directory
    }

    #[test]
    fn a_path_has_one_listener_and_no_trace_is_left() {
        let directory = scratch("one");
        let path = directory.join("socket");
        let first = Listener::bind(&path, false).expect("a fresh path");
        let mode = std::fs::metadata(&path).expect("the socket file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = Listener::bind(&path, false).expect_err("in use").to_string();
        assert!(refused.contains("another process listens"), "{refused}");
        drop(first);
        assert_eq!(std::fs::read_dir(&directory).expect("readable").count(), 0);

        let open = Listener::bind(&path, true).expect("a free path");
        let mode = std::fs::metadata(&path).expect("the socket file").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        drop(open);
        std::fs::remove_dir(&directory).expect("empty");
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let directory = scratch("stale");
        let path = directory.join("socket");
        let stream = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        assert!(Listener::bind(&path, false).is_err(), "a listener of another kind is alive");
        drop(stream);
        std::fs::remove_file(&path).expect("the socket file");

        // What a killed process leaves behind.
        let dead = socket::unbound().expect("socket");
        let address = SocketAddrUnix::new(&path).expect("address");
        rustix::net::bind(&dead, &address).expect("bind");
        drop(dead);
        let owner = Listener::bind(&path, false).expect("the stale file is replaced");
        assert!(matches!(socket::dial(&path), Ok(Dialled::Connected(_))));
        drop(owner);

        let live = socket::unbound().expect("socket");
        rustix::net::bind(&live, &address).expect("bind");
        rustix::net::listen(&live, 1).expect("listen");
        assert!(Listener::bind(&path, false).is_err(), "somebody without our lock listens");
        drop(live);
        std::fs::remove_file(&path).expect("the socket file");

        std::fs::write(&path, b"precious").expect("a file");
        let refused = Listener::bind(&path, false).expect_err("not a socket").to_string();
        assert!(refused.contains("no socket"), "{refused}");
        assert_eq!(std::fs::read(&path).expect("untouched"), b"precious");
        std::fs::remove_dir_all(&directory).expect("scratch");
    }

    #[test]
    fn a_socket_file_that_is_not_ours_is_left_alone() {
        let directory = scratch("foreign");
        let path = directory.join("socket");
        let owner = Listener::bind(&path, false).expect("a fresh path");
        std::fs::remove_file(&path).expect("an administrator removes it");
        let other = std::os::unix::net::UnixListener::bind(&path).expect("somebody else");
        drop(owner);
        assert!(path.exists());
        drop(other);
        std::fs::remove_dir_all(&directory).expect("scratch");
    }
}
