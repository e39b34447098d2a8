//! `gannet doctor`: what this machine has for running Gannet, and for RDMA.
//!
//! Everything is read from `/proc`, `/sys`, `/dev` and `/etc`; nothing is changed, and nothing that
//! is missing ends the command early. Each check tells what it found and, unless that is fine, what
//! helps.

mod devices;
mod machine;
mod rdma;
mod system;
mod tcp;

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use self::system::System;
use crate::cli::DoctorArguments;
use crate::failure::Failure;

/// How a check ended, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Missing, and not needed for what was asked.
    Note,
    /// It works, and could be better.
    Warning,
    /// It keeps Gannet from working.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "problem",
        })
    }
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Area {
    /// The machine in general.
    Machine,
    /// Addresses of `tcp://`.
    Tcp,
    /// Addresses of `rdma://`.
    Rdma,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    area: Area,
    name: String,
    level: Level,
    /// What is there.
    found: String,
    /// What helps, unless it is fine.
    remedy: Option<String>,
}

impl Check {
    fn ok(area: Area, name: impl Into<String>, found: impl Into<String>) -> Check {
        let (name, found) = (name.into(), found.into());
        Check { area, name, level: Level::Ok, found, remedy: None }
    }

    fn bad(
        level: Level,
        area: Area,
        name: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        let (name, found) = (name.into(), found.into());
        Check { area, name, level, found, remedy: Some(remedy.into()) }
    }
}

/// All checks.
#[derive(Debug, Serialize)]
struct Findings {
    /// No problem was found.
    usable: bool,
    checks: Vec<Check>,
}

/// Checks, and shows what was found.
///
/// # Errors
/// When a problem was found.
pub(crate) fn run(arguments: &DoctorArguments) -> Result<(), Failure> {
    let system = System::below(&arguments.root);
    let missing = if arguments.rdma { Level::Problem } else { Level::Note };
    let mut checks = machine::checks(&system, machine::try_ring);
    checks.extend(tcp::checks(&system, tcp::try_provider));
    checks.extend(rdma::checks(&system, missing));
    let problems: Vec<String> = checks
        .iter()
        .filter(|check| check.level == Level::Problem)
        .map(|check| check.name.clone())
        .collect();
    let findings = Findings { usable: problems.is_empty(), checks };
    let text = if arguments.json {
        let text = serde_json::to_string_pretty(&findings).map_err(Failure::operation)?;
        format!("{text}\n")
    } else {
        table(&findings.checks)
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::operation(format!("writing to standard output: {error}")))?;
    match problems.len() {
        0 => Ok(()),
        1 => Err(Failure::operation(format!("a problem was found: {}", problems[0]))),
        count => {
            Err(Failure::operation(format!("{count} problems were found: {}", problems.join(", "))))
        }
    }
}

fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for area in [Area::Machine, Area::Tcp, Area::Rdma] {
        text.push_str(match area {
            Area::Machine => "this machine\n",
            Area::Tcp => "\ntcp:// addresses\n",
            Area::Rdma => "\nrdma:// addresses\n",
        });
        for check in checks.iter().filter(|check| check.area == area) {
            let Check { name, level, found, .. } = check;
            text.push_str(&format!("  {level:<8} {name:<16} {found}\n"));
            for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
                text.push_str(&format!("  {:8} {:16} -> {line}\n", "", ""));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_listed_by_area_with_their_remedies() {
        let checks = [
            Check::ok(Area::Rdma, "build", "it has rdma://"),
            Check::ok(Area::Tcp, "sockets", "a ring can serve them"),
            Check::ok(Area::Machine, "kernel", "Linux 6.1"),
            Check::bad(Level::Problem, Area::Machine, "io_uring", "refused", "one\ntwo"),
        ];
        let expected = "this machine
  ok       kernel           Linux 6.1
  problem  io_uring         refused
                            -> one
                            -> two

tcp:// addresses
  ok       sockets          a ring can serve them

rdma:// addresses
  ok       build            it has rdma://
";
        assert_eq!(table(&checks), expected);
    }
}
