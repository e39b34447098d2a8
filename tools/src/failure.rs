//! How a command fails: what went wrong, in words that name the thing and the way out, and the exit
//! code that scripts see.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// The class of a failure, as the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command was understood and did not succeed.
    Operation,
    /// The command, a configuration or an address cannot be meant: nothing was tried.
    Usage,
    /// A check was carried through and found errors.
    Findings,
}

impl Exit {
    /// The exit code: 1 for a failed operation, 2 for a mistake in how it was asked for, 3 for errors
    /// that a check found.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Operation => 1,
            Exit::Usage => 2,
            Exit::Findings => 3,
        }
    }
}

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Which exit code.
    pub(crate) exit: Exit,
    /// What to tell; may have several lines.
    pub(crate) message: String,
}

impl Failure {
    /// Something was tried and failed.
    pub(crate) fn operation(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Operation, message: message.to_string() }
    }

    /// The command or its configuration is wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Usage, message: message.to_string() }
    }

    /// A check was carried through and found errors.
    pub(crate) fn findings(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Findings, message: message.to_string() }
    }

    /// A system call on a path failed.
    pub(crate) fn path(what: &str, path: &Path, error: &std::io::Error) -> Failure {
        let remedy = remedy(error).map_or_else(String::new, |remedy| format!(" ({remedy})"));
        Failure::operation(format!("{what} {}: {error}{remedy}", path.display()))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit.code())
    }
}

/// What usually helps against an error of the operating system.
fn remedy(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => Some("create it, or correct the path"),
        ErrorKind::PermissionDenied => Some("change its owner or mode, or run as its owner"),
        ErrorKind::NotADirectory => Some("a part of the path is no directory: correct the path"),
        ErrorKind::StorageFull => Some("free some space, or use another file system"),
        ErrorKind::ReadOnlyFilesystem => Some("use a file system that can be written"),
        _ => None,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_paths_name_path_and_remedy() {
        let error = std::io::Error::from(std::io::ErrorKind::NotFound);
        let failure = Failure::path("reading", Path::new("/no/such"), &error);
        assert_eq!(failure.exit.code(), 1);
        assert!(failure.message.starts_with("reading /no/such: "), "{failure}");
        assert!(failure.message.ends_with("(create it, or correct the path)"), "{failure}");
        assert_eq!(Failure::usage("x").exit.code(), 2);
        assert_eq!(Failure::findings("x").exit.code(), 3);
    }
}
