//! Why a request failed: a stable kind, what was asked, and the status that a server gave.

use std::fmt;

use gannet_fabric::{DisconnectReason, FabricError};
use gannet_proto::{Inode, Status, TargetId};

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A server answered with this status.
    Status(Status),
    /// The client holds as many requests as it may: take completions first.
    Busy {
        /// The limit of `ClientOptions::requests_max`.
        limit: usize,
    },
    /// An argument cannot be sent; nothing happened.
    Invalid(&'static str),
    /// The request was cancelled. A change may have taken effect if `maybe_applied` is set.
    Cancelled {
        /// Whether a server may have executed it, or still may.
        maybe_applied: bool,
    },
    /// The request's time-out passed. A change may have taken effect if `maybe_applied` is set.
    TimedOut {
        /// Whether a server may have executed it, or still may.
        maybe_applied: bool,
    },
    /// The change may or may not have taken effect: the session that would know is lost.
    OutcomeUnknown,
    /// The metadata server could not be reached for the whole of `reconnect_timeout`; the request
    /// has not taken effect.
    MetaserverLost {
        /// Which of its reactors.
        reactor: u16,
        /// How the last connection to it ended, if there was one.
        reason: Option<DisconnectReason>,
    },
    /// A data server that holds the file could not be reached for the whole of
    /// `reconnect_timeout`.
    TargetLost {
        /// Which data server.
        target: TargetId,
    },
    /// The metadata server refused the session.
    Refused {
        /// Why.
        status: Status,
        /// Lowest protocol version that the server speaks.
        version_min: u16,
        /// Highest protocol version that the server speaks.
        version_max: u16,
    },
    /// The request failed without effect again and again; the last status.
    RetriesExhausted(Status),
    /// All slots of the shard are taken by requests that never got their final answer, and of which
    /// the server cannot be asked.
    SlotsLost,
    /// The fabric cannot reach the buffer's memory, or no fresh pages could be had.
    Memory(&'static str),
    /// The device needs the memory pinned, and this process may not pin that much.
    LockedMemory {
        /// Length of the memory.
        len_bytes: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// None of the fabrics that lead to a data server has memory windows, by which alone
    /// `ClientOptions::protection` lets data servers reach memory.
    NoWindows,
    /// A data server listens at no address of a fabric that this client may use
    /// ([`crate::ClientOptions::fabrics`]).
    NoFabric {
        /// Which data server.
        target: TargetId,
    },
    /// A server broke the protocol in its answer to this request.
    Protocol(&'static str),
    /// More data servers than a client can keep sessions with.
    TooManyTargets {
        /// The limit.
        limit: usize,
    },
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// The operation, in lower case.
    pub operation: &'static str,
    /// The file, or the directory that the name is relative to; 0 where there is none.
    pub inode: Inode,
    /// The name or path, where the operation has one.
    pub name: Option<Box<[u8]>>,
    /// Where in the file, for reads and writes.
    pub offset: Option<u64>,
}

impl RequestError {
    /// The error of an operation that is not tied to an inode.
    #[must_use]
    pub fn new(operation: &'static str, kind: ErrorKind) -> RequestError {
        RequestError { kind, operation, inode: Inode(0), name: None, offset: None }
    }

    /// The `errno` for a program.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::Status(status) | ErrorKind::RetriesExhausted(status) => status.errno(),
            ErrorKind::Refused { status, .. } => status.errno(),
            ErrorKind::Busy { .. } | ErrorKind::SlotsLost => Status::AGAIN.errno(),
            ErrorKind::Invalid(_) => Status::INVALID.errno(),
            ErrorKind::Cancelled { .. } => Status::CANCELLED.errno(),
            ErrorKind::TimedOut { .. } => Status::TIMED_OUT.errno(),
            ErrorKind::Memory(_) | ErrorKind::LockedMemory { .. } => Status::NO_MEMORY.errno(),
            ErrorKind::NoWindows | ErrorKind::NoFabric { .. } => Status::NOT_SUPPORTED.errno(),
            ErrorKind::Protocol(_) => Status::PROTOCOL.errno(),
            ErrorKind::OutcomeUnknown
            | ErrorKind::MetaserverLost { .. }
            | ErrorKind::TargetLost { .. }
            | ErrorKind::TooManyTargets { .. } => Status::IO.errno(),
        }
    }

    /// The status that a server answered, if one did.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self.kind {
            ErrorKind::Status(status) | ErrorKind::RetriesExhausted(status) => Some(status),
            ErrorKind::Refused { status, .. } => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = |maybe: bool| if maybe { "; it may have taken effect" } else { "" };
        match self {
            ErrorKind::Status(status) => status.fmt(f),
            ErrorKind::Busy { limit } => {
                write!(f, "{limit} requests are outstanding: take completions first")
            }
            ErrorKind::Invalid(what) => write!(f, "invalid argument: {what}"),
            ErrorKind::Cancelled { maybe_applied } => {
                write!(f, "cancelled{}", effect(*maybe_applied))
            }
            ErrorKind::TimedOut { maybe_applied } => {
                write!(f, "timed out{}", effect(*maybe_applied))
            }
            ErrorKind::OutcomeUnknown => Status::OUTCOME_UNKNOWN.fmt(f),
            ErrorKind::MetaserverLost { reactor, reason: Some(reason) } => {
                write!(f, "reactor {reactor} of the metadata server cannot be reached: {reason}")
            }
            ErrorKind::MetaserverLost { reactor, reason: None } => {
                write!(f, "reactor {reactor} of the metadata server cannot be reached")
            }
            ErrorKind::TargetLost { target } => {
                write!(f, "data server {target} cannot be reached")
            }
            ErrorKind::Refused { status: status @ Status::VERSION, version_min, version_max } => {
                write!(
                    f,
                    "{status}: the server speaks {version_min} to {version_max}, this host {}",
                    gannet_proto::VERSION
                )
            }
            ErrorKind::Refused { status, .. } => {
                write!(f, "the metadata server refused the session: {status}")
            }
            ErrorKind::RetriesExhausted(status) => {
                write!(f, "given up after many attempts: {status}")
            }
            ErrorKind::SlotsLost => {
                f.write_str("earlier requests to this shard never got their final answers")
            }
            ErrorKind::Memory(what) => f.write_str(what),
            // The fabric's words, with the remedy.
            ErrorKind::LockedMemory { len_bytes, limit_bytes } => {
                let (len_bytes, limit_bytes) = (*len_bytes, *limit_bytes);
                FabricError::LockedMemory { len_bytes, limit_bytes }.fmt(f)
            }
            ErrorKind::NoWindows => f.write_str(
                "protection \"window\" needs memory windows, which the fabrics that lead to a data \
                 server do not have: use protection \"region\", or have data servers listen at an \
                 rdma:// or tcp:// address",
            ),
            ErrorKind::NoFabric { target } => write!(
                f,
                "data server {} listens at no address of a fabric that this program may use: allow \
                 more fabrics, or have the data server listen at an address of one of these",
                target.0
            ),
            ErrorKind::Protocol(what) => write!(f, "the server broke the protocol: {what}"),
            ErrorKind::TooManyTargets { limit } => {
                write!(f, "a client keeps sessions with at most {limit} data servers")
            }
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if let Some(name) = &self.name {
            write!(f, " {:?}", String::from_utf8_lossy(name))?;
        }
        match self.inode {
            Inode(0) => {}
            inode if self.name.is_some() => write!(f, " in inode {inode:#x}", inode = inode.0)?,
            inode => write!(f, " of inode {inode:#x}", inode = inode.0)?,
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for RequestError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_thing_and_errnos_are_those_of_linux() {
        let error = RequestError {
            kind: ErrorKind::Status(Status::NOT_FOUND),
            operation: "lookup",
            inode: Inode::ROOT,
            name: Some(Box::from(&b"a/b"[..])),
            offset: None,
        };
        assert_eq!(error.errno(), 2);
        assert_eq!(error.to_string(), "lookup \"a/b\" in inode 0x1: no such file or directory");
        let read = RequestError {
            kind: ErrorKind::TimedOut { maybe_applied: false },
            operation: "read",
            inode: Inode(17),
            name: None,
            offset: Some(4096),
        };
        assert_eq!(read.errno(), 110);
        assert_eq!(read.to_string(), "read of inode 0x11 at byte 4096: timed out");
        let refused =
            ErrorKind::Refused { status: Status::VERSION, version_min: 2, version_max: 3 };
        assert!(refused.to_string().contains("speaks 2 to 3, this host 1"));
        let locked = ErrorKind::LockedMemory { len_bytes: 1 << 25, limit_bytes: 1 << 16 };
        let text = RequestError::new("read", locked).to_string();
        for part in ["read: 33554432 bytes", "65536 bytes", "ulimit -l", "LimitMEMLOCK"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(RequestError::new("read", locked).errno(), 12);
    }
}
