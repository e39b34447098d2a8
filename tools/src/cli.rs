//! The command line: what can be asked, with help that teaches by example.
//!
//! Words are parsed and checked here; nothing is done. clap reports mistakes with exit code 2.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gannet_client::{Fabrics, Protection};
use gannet_fabric::Address;
use gannet_proto::limits::REACTORS_MAX;
use gannet_runtime::idle::IdlePolicy;
use ipnet::IpNet;

use crate::addresses::check_listen;
use crate::config::{STORE_BYTES, parse_network};
use crate::tcp::TcpArguments;
use crate::units::{format_size_exact, parse_duration, parse_size};

/// Most data servers that `gannet dev` runs.
pub(crate) const DEV_TARGETS_MAX: u32 = 16;

const ABOUT: &str = "\
Gannet: a distributed file server whose data servers place bytes straight into their hosts' memory.

A metadata server keeps names, attributes and the map of files; data servers keep the blocks. A \
host asks the metadata server; the data servers then read or write the host's memory themselves.";

const EXAMPLES: &str = "\
First steps, on one machine:
  gannet dev --dir /tmp/gannet &                      all servers in one process
  export GANNET_SERVER=shm:///tmp/gannet/meta.sock    where the commands below find them
  gannet put ~/project /project                       store a tree
  gannet ls -l /project
  gannet get /project ./copy                          read it back
  gannet stats                                        who moved how many bytes, and how

Servers as processes of their own:
  gannet metaserver format --config meta.toml         once
  gannet target format --config target.toml           once for each data server
  gannet metaserver --config meta.toml &
  gannet target --config target.toml &

Exit codes: 0 success, 1 the operation failed, 2 the command or a configuration is wrong.";

/// The whole command.
#[derive(Debug, Parser)]
#[command(name = "gannet", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to log to standard error, as in "info", "debug" or "gannet_target=trace,warn".
    #[arg(long, global = true, value_name = "FILTER", env = "GANNET_LOG", default_value = "warn")]
    #[arg(hide_env_values = true)]
    pub(crate) log: String,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run all servers in one process on this machine.
    Dev(DevArguments),
    /// Run a metadata server, or format its directory.
    Metaserver(DaemonArguments),
    /// Run a data server, or format its stores.
    Target(TargetArguments),
    /// Make directories.
    Mkdir(MkdirArguments),
    /// List a directory.
    Ls(LsArguments),
    /// Show all attributes of files and directories.
    Stat(StatArguments),
    /// Write files to standard output.
    Cat(CatArguments),
    /// Copy a file or tree from this machine into Gannet.
    Put(PutArguments),
    /// Copy a file or tree from Gannet to this machine.
    Get(GetArguments),
    /// Rename or move a file or directory.
    Mv(MvArguments),
    /// Remove files, and with -r directories.
    Rm(RmArguments),
    /// Show how much space there is.
    Df(DfArguments),
    /// Show the counters of every server.
    Stats(StatsArguments),
    /// Measure a file system, beside what the machine itself can do.
    Perf(crate::perf::PerfArguments),
    /// Check what this machine has for running Gannet, and for RDMA.
    Doctor(DoctorArguments),
    /// Check the metadata of a server that is stopped.
    Fsck(crate::fsck::FsckArguments),
}

const DEV_HELP: &str = "\
Examples:
  gannet dev --dir /tmp/gannet
  gannet dev --dir /tmp/gannet --targets 4 --store-size 20G --cores 0,1
  gannet dev --dir /dev/shm/gannet --store-size ram:512M --log-in-ram --idle spin
  gannet dev --dir /tmp/gannet --listen rdma://192.168.1.10:7470 --trusted-hosts 192.168.1.0/24
  gannet dev --dir /tmp/gannet --listen shm:///tmp/gannet/meta.sock \\
             --listen tcp://192.168.1.10:7470 --trusted-hosts 192.168.1.0/24

What does not exist in the directory is formatted first, and said so; what exists is used as it
is. When everything serves, one line is printed:
  ready: GANNET_SERVER=shm:///tmp/gannet/meta.sock
With several --listen it names the first of them. SIGTERM or Ctrl-C ends it in order.";

/// `gannet dev`.
#[derive(Debug, Args)]
#[command(after_help = DEV_HELP)]
pub(crate) struct DevArguments {
    /// Directory for the log, the stores and the sockets; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Data servers to run, 1 to 16 [default: those in the directory, else 2].
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(DEV_TARGETS_MAX)))]
    pub(crate) targets: Option<u32>,
    /// Reactors of the metadata server, 1 to 64 [default: as formatted, else 1].
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=REACTORS_MAX as i64))]
    pub(crate) reactors: Option<u16>,
    /// Cores to run on, as in "0" or "0,2-3"; the roles are dealt out to them in turn. Without it
    /// all roles share one thread that the scheduler places.
    #[arg(long, value_name = "LIST", value_parser = parse_cores, allow_hyphen_values = true)]
    pub(crate) cores: Option<Cores>,
    /// How to wait for work: "adaptive" sleeps when idle, "spin" never does.
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    pub(crate) idle: IdlePolicy,
    /// Size of each new store: "10G" in a file, "ram:512M" in memory.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_store_size)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) store_size: StoreSize,
    /// Keep the metadata log in memory: nothing survives the end of the process.
    #[arg(long)]
    pub(crate) log_in_ram: bool,
    /// Listen here instead of at sockets in the directory; may be repeated, up to 8 times, with
    /// addresses of shm://, rdma:// and tcp://. The metadata server's reactors take this port and
    /// those after it, then the data servers; with shm://, sockets beside this one. The servers
    /// reach each other through shm:// if it is among them, else through the first address.
    #[arg(long, value_name = "URI", value_parser = parse_server)]
    pub(crate) listen: Vec<Address>,
    /// With --listen at addresses of rdma:// or tcp://: machines that may connect besides this one,
    /// as in "192.168.1.0/24,192.168.2.7".
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "listen")]
    #[arg(value_parser = parse_network)]
    pub(crate) trusted_hosts: Vec<IpNet>,
    /// Write the ready line to this file too, when everything serves.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

const METASERVER_HELP: &str = "\
A configuration, with everything but the defaults:
  directory = \"/var/lib/gannet/meta\"        holds one log per reactor
  listen = \"shm:///run/gannet/meta.sock\"    reactor 1 adds .1, and so on
  reactors = 2                              default 1; fixed by format
  cores = [0, 1]                            default: left to the scheduler
  idle = \"adaptive\"                         or \"spin\"
For other machines too, over any network; over RDMA it is rdma://192.168.1.10:7470:
  listen = [\"shm:///run/gannet/meta.sock\", \"tcp://192.168.1.10:7470\"]
                                            reactor 1 takes port 7471, and so on
  trusted_hosts = [\"192.168.1.0/24\"]        who may connect besides this machine
All keys: docs/operations.md

Examples:
  gannet metaserver format --config meta.toml
  gannet metaserver --config meta.toml";

const TARGET_HELP: &str = "\
A configuration, with everything but the defaults:
  listen = \"shm:///run/gannet/target-0.sock\"
  metaserver = \"shm:///run/gannet/meta.sock\"
  [[store]]
  path = \"/var/lib/gannet/store-0\"
  kind = \"directory\"                        or \"device\", \"ram\"
  size = \"10G\"                              not for a device
For other machines too, over any network; over RDMA it is rdma://192.168.1.11:7480:
  listen = [\"shm:///run/gannet/target-0.sock\", \"tcp://192.168.1.11:7480\"]
  metaserver = \"tcp://192.168.1.10:7470\"
  trusted_hosts = [\"192.168.1.0/24\"]        who may connect besides this machine
All keys: docs/operations.md

Examples:
  gannet target format --config target.toml
  gannet target --config target.toml";

/// `gannet metaserver`.
#[derive(Debug, Args)]
#[command(after_help = METASERVER_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct DaemonArguments {
    #[command(subcommand)]
    pub(crate) action: Option<MetaserverAction>,
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

/// `gannet target`.
#[derive(Debug, Args)]
#[command(after_help = TARGET_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct TargetArguments {
    #[command(subcommand)]
    pub(crate) action: Option<TargetAction>,
    #[command(flatten)]
    pub(crate) run: RunArguments,
}

/// How to run a daemon.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The configuration, a TOML file.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Write the ready line to this file too, when requests are served.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

/// What else to do with a metadata server.
#[derive(Debug, Subcommand)]
pub(crate) enum MetaserverAction {
    /// Make the log of a new, empty file system.
    Format {
        /// The configuration, a TOML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// What else to do with a data server.
#[derive(Debug, Subcommand)]
pub(crate) enum TargetAction {
    /// Make the stores of a new data server.
    Format {
        /// The configuration, a TOML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Overwrite stores that exist: what they hold is lost.
        #[arg(long)]
        force: bool,
    },
}

const DOCTOR_HELP: &str = "\
Each check says what was found: ok; note, for what is missing and not needed; warning, for what
works and could be better; problem, for what keeps Gannet from working. Nothing is changed, and
no root is needed.

Examples:
  gannet doctor                  can Gannet run here, over shm:// and tcp:// addresses?
  gannet doctor --rdma           and over rdma:// addresses?

Exit codes: 0 no problem was found, 1 there is one.";

/// Where the file system is.
#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// Address of the metadata server, as in shm:///run/gannet/meta.sock, tcp://192.168.1.10:7470 or
    /// rdma://192.168.1.10:7470.
    #[arg(long, value_name = "URI", env = "GANNET_SERVER", value_parser = parse_server)]
    pub(crate) server: Address,
    /// Use addresses of these fabrics only, of those that servers listen at, as in "tcp" or
    /// "rdma,tcp" [default: the quickest that this machine has, in the order shm, rdma, tcp].
    #[arg(long = "fabric", value_name = "LIST", env = "GANNET_FABRICS")]
    pub(crate) fabrics: Option<Fabrics>,
    /// How long to look for a server that does not answer.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    #[arg(allow_hyphen_values = true)]
    pub(crate) patience: std::time::Duration,
    #[command(flatten)]
    pub(crate) tcp: TcpArguments,
}

/// How the host's memory is guarded.
#[derive(Debug, Args)]
pub(crate) struct ProtectionArguments {
    /// What data servers may reach of this process's memory: all of its buffers ("region"), or
    /// what a request needs as long as it runs ("window"; over rdma:// and tcp:// only).
    #[arg(long, value_name = "HOW", env = "GANNET_PROTECTION", default_value = "region")]
    pub(crate) protection: Protection,
}

/// `gannet mkdir`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  gannet mkdir -p /projects/new/docs")]
pub(crate) struct MkdirArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Make missing parents too, and accept directories that exist.
    #[arg(short, long)]
    pub(crate) parents: bool,
    /// Directories to make.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
}

/// `gannet ls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  gannet ls\n  gannet ls -lR /projects")]
pub(crate) struct LsArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Show type, permissions, owner, size and time too.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// List directories in directories too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// What to list.
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) paths: Vec<OsString>,
}

/// `gannet stat`.
#[derive(Debug, Args)]
pub(crate) struct StatArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// As JSON, one object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// What to show.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
}

/// `gannet cat`.
#[derive(Debug, Args)]
pub(crate) struct CatArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(flatten)]
    pub(crate) protection: ProtectionArguments,
    /// Files to write out, one after the other.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
}

/// How to copy.
#[derive(Debug, Args)]
pub(crate) struct TransferArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(flatten)]
    pub(crate) protection: ProtectionArguments,
    /// Take DST as the copy's own name even if it is an existing directory.
    #[arg(short = 'T', long)]
    pub(crate) no_target_directory: bool,
    /// Afterwards read everything from Gannet and compare it with the files on this machine.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Files to work on at the same time, 1 to 1024.
    #[arg(long, value_name = "N", default_value_t = 64, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) files: u32,
    /// Reads or writes of up to 1 MiB to have under way at the same time, 1 to 256.
    #[arg(long, value_name = "N", default_value_t = 32, allow_hyphen_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) depth: u32,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

const PUT_HELP: &str = "\
As with cp: if DST is an existing directory, SRC goes into it under its own name; otherwise DST is
the copy. Permissions and modification times are kept. What exists under the same names is
replaced. Symbolic links and special files cannot be stored yet: they are listed and skipped, and
the exit code is 1 unless --skip-special says that this is fine.

Examples:
  gannet put notes.txt /
  gannet put ~/project /project
  gannet put --verify -T ~/project /project";

/// `gannet put`.
#[derive(Debug, Args)]
#[command(after_help = PUT_HELP)]
pub(crate) struct PutArguments {
    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
    /// Skipping links and special files is no failure.
    #[arg(long)]
    pub(crate) skip_special: bool,
    /// The file or directory on this machine.
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The path in Gannet.
    #[arg(value_name = "DST")]
    pub(crate) destination: OsString,
}

const GET_HELP: &str = "\
As with cp: if DST is an existing directory, SRC goes into it under its own name; otherwise DST is
the copy. Permissions and modification times are kept. What exists under the same names is
replaced.

Examples:
  gannet get /notes.txt .
  gannet get --verify /project ./project-copy";

/// `gannet get`.
#[derive(Debug, Args)]
#[command(after_help = GET_HELP)]
pub(crate) struct GetArguments {
    #[command(flatten)]
    pub(crate) transfer: TransferArguments,
    /// The path in Gannet.
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// The file or directory on this machine.
    #[arg(value_name = "DST")]
    pub(crate) destination: PathBuf,
}

/// `gannet mv`.
#[derive(Debug, Args)]
#[command(after_help = "\
If DST is an existing directory, SRC goes into it under its own name. An existing file is replaced
in one step; -n refuses instead.")]
pub(crate) struct MvArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Fail if DST exists.
    #[arg(short, long)]
    pub(crate) no_replace: bool,
    /// What to move.
    #[arg(value_name = "SRC")]
    pub(crate) source: OsString,
    /// Where to.
    #[arg(value_name = "DST")]
    pub(crate) destination: OsString,
}

/// `gannet rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Remove directories with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// What does not exist is no failure.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// What to remove.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
}

/// `gannet df`.
#[derive(Debug, Args)]
pub(crate) struct DfArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `gannet stats`.
#[derive(Debug, Args)]
#[command(after_help = "\
Counters count from the start of each server. What they mean: docs/operations.md")]
pub(crate) struct StatsArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `gannet doctor`.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_HELP)]
pub(crate) struct DoctorArguments {
    /// This machine shall use RDMA: what is missing for it is a problem, not a note.
    #[arg(long)]
    pub(crate) rdma: bool,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Look at the /proc, /sys, /dev and /etc below this directory, for what is not this process.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub(crate) root: PathBuf,
}

/// Cores in the order in which roles are dealt out to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) Vec<usize>);

/// Size and place of a new store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreSize {
    /// In a file of this many bytes.
    File(u64),
    /// In this many bytes of memory.
    Ram(u64),
}

/// An address that a server can have.
pub(crate) fn parse_server(text: &str) -> Result<Address, String> {
    let address = text.parse::<Address>().map_err(|error| error.to_string())?;
    check_listen(&address).map_err(|error| error.to_string())?;
    Ok(address)
}

fn parse_cores(text: &str) -> Result<Cores, String> {
    /// Highest number of a core that can be named.
    const CORE_MAX: usize = 1023;
    let number = |part: &str| {
        let core = part.trim().parse::<usize>().ok().filter(|core| *core <= CORE_MAX);
        core.ok_or_else(|| {
            format!("{part:?} is no core: write numbers up to {CORE_MAX}, as in 0 or 0,2-3")
        })
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(format!("{part:?} runs backwards: write {last}-{first}"));
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(format!("core {core} is named twice"));
            }
            cores.push(core);
        }
    }
    Ok(Cores(cores))
}

fn parse_store_size(text: &str) -> Result<StoreSize, String> {
    let (in_ram, size) = match text.strip_prefix("ram:") {
        Some(size) => (true, size),
        None => (false, text),
    };
    let bytes = parse_size(size)?;
    if !(STORE_BYTES.0..=STORE_BYTES.1).contains(&bytes) {
        let (least, most) = (format_size_exact(STORE_BYTES.0), format_size_exact(STORE_BYTES.1));
        return Err(format!("a store of {} is out of range: {least} to {most}", size));
    }
    Ok(if in_ram { StoreSize::Ram(bytes) } else { StoreSize::File(bytes) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cores_are_lists_of_numbers_and_ranges() {
        assert_eq!(parse_cores("0"), Ok(Cores(vec![0])));
        assert_eq!(parse_cores("3,0-1"), Ok(Cores(vec![3, 0, 1])));
        for text in ["", "x", "1,", "2-1", "0,0", "0-2,1", "-1", "1024", "0-99999999999"] {
            assert!(parse_cores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn stores_are_in_files_unless_ram_is_asked_for() {
        assert_eq!(parse_store_size("2G"), Ok(StoreSize::File(2 << 30)));
        assert_eq!(parse_store_size("ram:512M"), Ok(StoreSize::Ram(512 << 20)));
        for text in ["", "ram:", "1K", "ram:1K", "disk:1G", "9999P"] {
            assert!(parse_store_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn daemons_run_or_format() {
        let parse = |words: &[&str]| Cli::try_parse_from(words);
        assert!(parse(&["gannet", "metaserver", "--config", "m"]).is_ok());
        assert!(parse(&["gannet", "metaserver", "format", "--config", "m"]).is_ok());
        assert!(parse(&["gannet", "target", "format", "--config", "t", "--force"]).is_ok());
        for words in [
            &["gannet", "metaserver"][..],
            &["gannet", "target"],
            &["gannet", "target", "format"],
            &["gannet", "metaserver", "--config"],
            &["gannet", "metaserver", "--config", "m", "format", "--config", "m"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
