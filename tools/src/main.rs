//! The `gannet` command: servers, and commands on what they serve.
//!
//! Everything here is the control path: it may allocate, block and log. What must be fast runs in
//! the roles' pollers, on threads that this crate only starts.

#![forbid(unsafe_code)]

mod addresses;
mod admin;
mod cli;
mod config;
mod connection;
mod daemon;
mod dev;
mod doctor;
mod fabric;
mod failure;
mod fsck;
mod perf;
mod process;
mod remote;
mod roles;
mod tcp;
mod times;
mod transfer;
mod units;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match log_to_stderr(&cli.log).and_then(|()| run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            failure.exit_code()
        }
    }
}

/// Tells the user what went wrong.
fn tell(failure: &Failure) {
    eprintln!("gannet: {failure}");
}

fn log_to_stderr(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        let what = format!("--log {filter:?} (or GANNET_LOG): {error}");
        Failure::usage(format!(
            "{what}; write a level (error, warn, info, debug, trace) or crate=level"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Dev(arguments) => dev::run(&arguments),
        Command::Metaserver(arguments) => daemon::metaserver(arguments),
        Command::Target(arguments) => daemon::target(arguments),
        Command::Mkdir(arguments) => admin::mkdir(&arguments),
        Command::Ls(arguments) => admin::ls(&arguments),
        Command::Stat(arguments) => admin::stat(&arguments),
        Command::Cat(arguments) => admin::cat(&arguments),
        Command::Put(arguments) => transfer::put(&arguments),
        Command::Get(arguments) => transfer::get(&arguments),
        Command::Mv(arguments) => admin::mv(&arguments),
        Command::Rm(arguments) => admin::rm(&arguments),
        Command::Df(arguments) => admin::df(&arguments),
        Command::Stats(arguments) => admin::stats(&arguments),
        Command::Perf(arguments) => perf::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Fsck(arguments) => fsck::run(&arguments),
    }
}
