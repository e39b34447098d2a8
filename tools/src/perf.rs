//! `gannet perf`: the arguments of the performance harness.

mod metadata;
mod served;

use std::fmt;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use gannet_client::Protection;
use gannet_perf::{PerfError, PerfOptions, Progress, Server, StorePlace, WorkloadKind};
use serde::Serialize;

use crate::connection::fabrics;
use crate::failure::Failure;
use crate::units::{parse_duration, parse_size};
use metadata::MetadataArguments;
use served::ServedArguments;

const HELP: &str = "\
Each workload runs on a new file, at each depth in turn: as many requests outstanding, the next
submitted as one ends. One row tells the rate, the bandwidth and the latency's percentiles, and
beside them what share of the machine's own limits that is: of what one core can copy, and, at depth
1, of the time that one round trip between two cores and one copy take; over TCP, also of what a
plain service of requests and answers reaches, and the median in polled round trips. Client and
server need a core each.

Examples:
  gannet perf --embedded                                 a server in memory, for this run only
  gannet perf --embedded --store /data:4G --metadata-log /data
  gannet perf --embedded --fabric tcp                    the same over TCP on loopback
  gannet perf --server shm:///tmp/gannet/meta.sock --file /perf.dat --size 1G
  gannet perf --embedded --workload randread --depth 1,32,128 --time 10s --json
  gannet perf --embedded --verify --time 1s              also check every word
  gannet perf metadata --embedded                        create, stat, open, readdir, rename, unlink";

/// `gannet perf`.
#[derive(Debug, Args)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct PerfArguments {
    #[command(subcommand)]
    action: Option<PerfAction>,
    #[command(flatten)]
    served: ServedArguments,
    /// Embedded: the store, as in "ram:1G" in memory or "/data:4G" in a file in a directory
    /// [default: ram:512M].
    #[arg(long, value_name = "PLACE", value_parser = parse_store)]
    store: Option<StorePlace>,
    /// The file to work on; made before and removed after.
    #[arg(long, value_name = "PATH", default_value = "/perf.dat")]
    file: String,
    /// Its length.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    size: u64,
    /// Use the file although it exists, and lose its content.
    #[arg(long)]
    overwrite: bool,
    /// Leave the file there.
    #[arg(long)]
    keep: bool,
    /// What to do: randread, randwrite, read, write.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "randread,randwrite,read,write")]
    workload: Vec<WorkloadKind>,
    /// Requests outstanding at a time.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8,32")]
    depth: Vec<u32>,
    /// Length of the blocks [default: 4K of random workloads, 128K of sequential ones].
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size)]
    block_size: Option<u32>,
    /// How long to measure each.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    time: Duration,
    /// How long each runs before it is measured.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    warm_up: Duration,
    /// Check every word that is read, and write words that can be checked.
    #[arg(long)]
    verify: bool,
    /// Who tells the host that a read is complete: "direct" (the data servers) or "metaserver".
    #[arg(long, value_name = "WHO", default_value = "direct")]
    #[arg(value_parser = ["direct", "metaserver"])]
    completion: String,
    /// How the client's memory is guarded against the data servers: "region" or "window".
    #[arg(long, value_name = "HOW", env = "GANNET_PROTECTION", default_value = "region")]
    protection: Protection,
    /// Which blocks are chosen, and what they hold.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum PerfAction {
    /// Measure operations on names: create, stat, open, readdir, rename, unlink.
    Metadata(Box<MetadataArguments>),
}

/// Measures and prints the report.
///
/// # Errors
/// What [`gannet_perf::run`] returns, and if nothing says which server to measure.
pub(crate) fn run(arguments: &PerfArguments) -> Result<(), Failure> {
    if let Some(PerfAction::Metadata(arguments)) = &arguments.action {
        return metadata::run(arguments);
    }
    let options = options(arguments)?;
    let mut progress = |step: Progress| tell(&describe(&step));
    let report = gannet_perf::run(&options, &mut progress).map_err(failure)?;
    print(&report, arguments.served.json)
}

/// Tells somebody who waits what is being done.
fn tell(step: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{step}");
    }
}

fn failure(error: PerfError) -> Failure {
    match &error {
        PerfError::Fabric(fabric) => Failure::operation(crate::fabric::explain(fabric)),
        _ if error.is_usage() => Failure::usage(error),
        _ => Failure::operation(error),
    }
}

fn print<T: Serialize + fmt::Display>(report: &T, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let text = serde_json::to_string_pretty(report).map_err(Failure::operation)?;
        println!("{text}");
    } else {
        print!("{report}");
    }
    Ok(())
}

fn describe(step: &Progress) -> String {
    match step {
        Progress::Ceilings => "measuring what the machine itself can do".to_owned(),
        Progress::Filling => "writing the file".to_owned(),
        Progress::Measuring(workload, depth) => format!("measuring {workload} at depth {depth}"),
    }
}

fn options(arguments: &PerfArguments) -> Result<PerfOptions, Failure> {
    let served = &arguments.served;
    if !served.embedded && arguments.store.is_some() {
        return Err(served::of_an_embedded_server("--store"));
    }
    let mut options = PerfOptions::new(served.server(arguments.store.clone())?);
    if let Server::Running(address) = &options.server {
        options.fabrics = fabrics(address, served.fabrics, arguments.protection)?;
    }
    options.core = served.core();
    options.server_core = served.server_core();
    options.file.clone_from(&arguments.file);
    options.size_bytes = arguments.size;
    options.overwrite = arguments.overwrite;
    options.keep = arguments.keep;
    options.workloads.clone_from(&arguments.workload);
    options.depths.clone_from(&arguments.depth);
    options.block_bytes = arguments.block_size;
    options.time = arguments.time;
    options.warm_up = arguments.warm_up;
    options.verify = arguments.verify;
    options.complete_by_metaserver = arguments.completion == "metaserver";
    options.protection = arguments.protection;
    options.tcp = served.tcp();
    options.idle = served.idle.unwrap_or(options.idle);
    options.ceilings = !served.no_ceilings;
    options.seed = arguments.seed;
    Ok(options)
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| format!("{text:?} is more than any block"))
}

fn parse_store(text: &str) -> Result<StorePlace, String> {
    let Some((place, size)) = text.rsplit_once(':') else {
        return Err(format!("{text:?} is no store: write \"ram:512M\" or \"/directory:4G\""));
    };
    let size_bytes = parse_size(size)?;
    Ok(match place {
        "ram" => StorePlace::Ram { size_bytes },
        "" => return Err(format!("{text:?} names no directory: write \"/directory:4G\"")),
        directory => StorePlace::File { directory: PathBuf::from(directory), size_bytes },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;
    use gannet_perf::{EmbeddedFabric, EmbeddedOptions, LogPlace};
    use gannet_runtime::idle::IdlePolicy;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        perf: PerfArguments,
    }

    fn parse(words: &str) -> Result<PerfArguments, String> {
        let words = std::iter::once("perf").chain(words.split_whitespace());
        Command::try_parse_from(words).map(|it| it.perf).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_harness() {
        let parsed = options(&parse("--embedded").unwrap()).unwrap();
        let defaults = PerfOptions::new(Server::Embedded(EmbeddedOptions::default()));
        assert_eq!(format!("{parsed:?}"), format!("{defaults:?}"));
        assert!(parsed.check().is_ok());
    }

    #[test]
    fn every_argument_arrives() {
        let words = "--server shm:///run/meta.sock --core any --server-core 3 --file /a/b \
                     --size 1G --overwrite --keep --workload write,randread --depth 4,64 \
                     --block-size 8K --time 10s --warm-up 1ms --verify --completion metaserver \
                     --no-ceilings --seed 9 --protection region --idle adaptive \
                     --tcp-peer-timeout 7s";
        let parsed = options(&parse(words).unwrap()).unwrap();
        let mut expected =
            PerfOptions::new(Server::Running("shm:///run/meta.sock".parse().unwrap()));
        (expected.core, expected.server_core) = (None, Some(3));
        expected.idle = IdlePolicy::ADAPTIVE;
        expected.file = "/a/b".to_owned();
        expected.size_bytes = 1 << 30;
        (expected.overwrite, expected.keep) = (true, true);
        expected.workloads = vec![WorkloadKind::Write, WorkloadKind::RandomRead];
        expected.depths = vec![4, 64];
        expected.block_bytes = Some(8 << 10);
        expected.time = Duration::from_secs(10);
        expected.warm_up = Duration::from_millis(1);
        (expected.verify, expected.complete_by_metaserver) = (true, true);
        expected.ceilings = false;
        expected.seed = 9;
        expected.tcp.peer_timeout = Duration::from_secs(7);
        assert_eq!(format!("{parsed:?}"), format!("{expected:?}"));
        let words = words.replace("region", "window").replace("shm:///run/meta.sock", "tcp://h:1");
        let parsed = options(&parse(&format!("{words} --fabric shm,tcp")).unwrap()).unwrap();
        assert_eq!(parsed.protection, Protection::Window);
        assert_eq!(parsed.fabrics.to_string(), "tcp", "shared memory has no windows");

        let words = "--embedded --store /data:4G --metadata-log /logs --fabric tcp";
        let parsed = options(&parse(words).unwrap()).unwrap();
        let store = StorePlace::File { directory: "/data".into(), size_bytes: 4 << 30 };
        let log = LogPlace::Directory("/logs".into());
        let fabric = EmbeddedFabric::Tcp;
        assert_eq!(parsed.server, Server::Embedded(EmbeddedOptions { store, log, fabric }));
    }

    #[test]
    fn mistakes_are_told_with_the_word_that_is_wrong() {
        for (words, wrong) in [
            ("--embedded --core x", "\"x\""),
            ("--embedded --store ram", "\"ram\""),
            ("--embedded --store :1G", "\":1G\""),
            ("--embedded --store ram:x", "\"x\""),
            ("--embedded --fabric udp", "\"udp\""),
            ("--embedded --fabric tcp,tcp", "twice"),
            ("--embedded --workload scan", "\"scan\""),
            ("--embedded --depth many", "many"),
            ("--embedded --size big", "\"big\""),
            ("--embedded --block-size 5G", "\"5G\""),
            ("--embedded --time 3", "\"3\""),
            ("--embedded --completion nobody", "nobody"),
            ("--embedded --protection shared", "\"shared\""),
            ("--server nowhere", "nowhere"),
            ("--server shm:///meta.sock --embedded", "--embedded"),
        ] {
            let message = parse(words).unwrap_err();
            assert!(message.contains(wrong), "{words}: {message}");
        }
        for (words, wrong) in [
            ("--embedded --fabric rdma", "shm or tcp"),
            ("--server shm:///meta.sock --fabric tcp", "shm:///meta.sock"),
            ("--server shm:///meta.sock --protection window", "memory windows"),
        ] {
            let failure = options(&parse(words).unwrap()).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(failure.message.contains(wrong), "{words}: {failure}");
        }
        for words in ["--store ram:1G", "--metadata-log ram"] {
            let words = format!("--server shm:///meta.sock {words}");
            let failure = options(&parse(&words).unwrap()).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(failure.message.contains("--embedded"), "{words}: {failure}");
        }
    }
}
