//! How a request ended, as the wire carries it.

/// Outcome of a request or grant. Values below 4096 are the `errno` of Linux; the protocol's own
/// begin there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:expr, $text:expr;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($value);)*

            /// What the status means, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($value => $text,)*
                    _ => "unknown status",
                }
            }
        }
    };
}

statuses! {
    /// Success.
    OK = 0, "success";
    /// The caller may not do this.
    NOT_PERMITTED = 1, "operation not permitted";
    /// No such file or directory.
    NOT_FOUND = 2, "no such file or directory";
    /// Block I/O failed, or the extent's store lost its content.
    IO = 5, "input/output error";
    /// Try again later: a bound is reached.
    AGAIN = 11, "resource temporarily unavailable";
    /// A server is out of memory.
    NO_MEMORY = 12, "out of memory";
    /// Access denied by mode bits.
    ACCESS = 13, "permission denied";
    /// The object is in use.
    BUSY = 16, "device or resource busy";
    /// The name is taken.
    EXISTS = 17, "file exists";
    /// A component of the path is no directory.
    NOT_DIRECTORY = 20, "not a directory";
    /// The object is a directory.
    IS_DIRECTORY = 21, "is a directory";
    /// An argument is out of its domain.
    INVALID = 22, "invalid argument";
    /// The session has as many inodes open as it may.
    TOO_MANY_OPEN = 24, "too many open files";
    /// The file would become too large.
    FILE_TOO_LARGE = 27, "file too large";
    /// No space is left on the data servers that the file may use.
    NO_SPACE = 28, "no space left on device";
    /// The file has as many names as it can have.
    TOO_MANY_LINKS = 31, "too many links";
    /// The answer is longer than the host has room for.
    RANGE = 34, "numerical result out of range";
    /// A name is longer than 255 bytes or a path longer than 4096.
    NAME_TOO_LONG = 36, "file name too long";
    /// The directory is not empty.
    NOT_EMPTY = 39, "directory not empty";
    /// There is no such extended attribute.
    NO_DATA = 61, "no data available";
    /// The server does not know the operation.
    NOT_SUPPORTED = 95, "operation not supported";
    /// A data server did not answer in time; the request did not take effect.
    TIMED_OUT = 110, "timed out";
    /// The inode does not exist (any more).
    STALE_HANDLE = 116, "stale file handle";
    /// The request was cancelled before it took effect.
    CANCELLED = 125, "operation cancelled";

    /// Another reactor owns the shard: the map has changed.
    WRONG_SHARD = 0x1000, "the shard is served elsewhere";
    /// The host lacks a session or registration with a data server of the file's set; the reply
    /// names the set.
    STALE_SET = 0x1001, "the set of data servers has changed";
    /// No grant of the attempt is live and nothing took effect: send it again as the next attempt.
    RETRY = 0x1002, "the attempt failed without effect";
    /// A change may or may not have taken effect, and the session that would know is lost.
    OUTCOME_UNKNOWN = 0x1003, "the outcome is unknown: the session was lost";
    /// The sequence is neither the slot's last nor its next.
    BAD_SEQUENCE = 0x1004, "the sequence does not fit the slot";
    /// A message violated the protocol.
    PROTOCOL = 0x1005, "protocol violation";
    /// No common protocol version.
    VERSION = 0x1006, "no common protocol version";
    /// A feature that the other side requires is missing.
    FEATURE = 0x1007, "a required feature is missing";
    /// The ticket is not the one that the metadata server minted.
    BAD_TICKET = 0x1008, "the session ticket is not valid";
    /// A grant names an epoch or term that is not (or no longer) live.
    STALE_EPOCH = 0x1009, "the session's epoch has passed";
    /// The host's end of the data session is gone.
    SESSION_GONE = 0x100a, "the data session is gone";
    /// A grant names a store or generation that the data server does not have.
    UNKNOWN_STORE = 0x100b, "the data server does not have the store";
    /// The key, range or right was refused by the fabric.
    ACCESS_REFUSED = 0x100c, "remote access was refused";
    /// The grant was revoked before anything was posted for it.
    REVOKED = 0x100d, "the grant was revoked";
    /// The peer is not who it may be here.
    NOT_TRUSTED = 0x100e, "the peer is not trusted";
    /// Payload and checksum do not fit.
    CHECKSUM = 0x100f, "checksum mismatch";
    /// A data server belongs to another file system than this metadata server's.
    OTHER_FILE_SYSTEM = 0x1010, "the peer belongs to another file system";
    /// The request names an identity that the reactor was not told of, or refused.
    UNKNOWN_IDENTITY = 0x1046, "the identity is not known";
}

impl Status {
    /// Whether it is success.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// The `errno` for a program: protocol statuses map to the nearest one.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Status(value) if value < 0x1000 => value as i32,
            Status::WRONG_SHARD | Status::STALE_SET | Status::RETRY => 11,
            Status::BAD_TICKET | Status::NOT_TRUSTED | Status::UNKNOWN_IDENTITY => 13,
            Status::VERSION | Status::FEATURE | Status::PROTOCOL => 71,
            _ => 5,
        }
    }
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.text() {
            "unknown status" => write!(f, "unknown status {}", self.0),
            text => f.write_str(text),
        }
    }
}
