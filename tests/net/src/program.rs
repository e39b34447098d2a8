//! Programs that set the network up: they are short, and they have to succeed.

use std::io::ErrorKind;
use std::process::{Command, Output};

/// Runs a program to its end; returns what it printed.
///
/// # Errors
/// What it complained about.
///
/// # Panics
/// If there is no such program.
pub fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output: Output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{program} is missing: tests/run net installs what these tests need")
        }
        Err(error) => panic!("{program}: {error}"),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}: {}", arguments.join(" "), output.status, said.trim()))
}

/// As [`try_run`].
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|what| panic!("{what}"))
}
