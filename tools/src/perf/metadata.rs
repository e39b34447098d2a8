//! `gannet perf metadata`: the arguments of the harness for operations on names.

use std::time::Duration;

use clap::Args;
use gannet_client::Protection;
use gannet_perf::Server;
use gannet_perf::metadata::{MetadataOperation, MetadataOptions, MetadataProgress};

use super::served::ServedArguments;
use super::{failure, print, tell};
use crate::connection::fabrics;
use crate::failure::Failure;
use crate::units::parse_duration;

const HELP: &str = "\
Directories are made, and files in them; each operation is measured over the same files, at each
depth in turn: as many operations outstanding, the next submitted as one ends. stat, open and readdir
are done for --time, create, rename and unlink once to each file, but no longer. Then everything is
removed, also after an error. Beside each rate stands its share of what one thread does on a tmpfs (in /dev/shm), and, with
an embedded server's log in a directory, of what synchronous writes there allow. Client and server
need a core each.

stat is one request, by a name in a directory; open finds a file and opens it, in two; readdir lists
a whole directory, in as many requests as it takes.

Examples:
  gannet perf metadata --embedded                        a server in memory, for this run only
  gannet perf metadata --embedded --metadata-log /data   the log on a disk
  gannet perf metadata --server shm:///tmp/gannet/meta.sock --depth 16
  gannet perf metadata --embedded --workload create,unlink --files 1000000 --repeat 5 --json";

/// `gannet perf metadata`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct MetadataArguments {
    #[command(flatten)]
    served: ServedArguments,
    /// How the paths of the directories begin; in the root they are spread over the shards.
    #[arg(long, value_name = "PATH", default_value = "/perf-metadata")]
    prefix: String,
    /// How many directories, 1 to 512.
    #[arg(long, value_name = "N", default_value_t = 64)]
    directories: u32,
    /// How many files in all of them.
    #[arg(long, value_name = "N", default_value_t = 65536)]
    files: u32,
    /// What to measure, in this order: create, stat, open, readdir, rename, unlink.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "create,stat,open,readdir,rename,unlink")]
    workload: Vec<MetadataOperation>,
    /// Operations outstanding at a time.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,16,64")]
    depth: Vec<u32>,
    /// How long to measure each operation, at most.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    time: Duration,
    /// How long stat, open and readdir run before they are measured.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    warm_up: Duration,
    /// How often to do all of it; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: u32,
    /// Which files are looked at.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// Measures and prints the report.
///
/// # Errors
/// What [`gannet_perf::metadata::run`] returns, and if nothing says which server to measure.
pub(super) fn run(arguments: &MetadataArguments) -> Result<(), Failure> {
    let options = options(arguments)?;
    let mut progress = |step: MetadataProgress| tell(&describe(&step));
    let report = gannet_perf::metadata::run(&options, &mut progress).map_err(failure)?;
    print(&report, arguments.served.json)
}

fn describe(step: &MetadataProgress) -> String {
    match step {
        MetadataProgress::Ceilings => "measuring what the machine itself can do".to_owned(),
        MetadataProgress::Making => "making directories".to_owned(),
        MetadataProgress::Measuring { operation, depth, run } => {
            format!("measuring {operation} at depth {depth}, run {run}")
        }
        MetadataProgress::Removing => "removing what is left".to_owned(),
    }
}

fn options(arguments: &MetadataArguments) -> Result<MetadataOptions, Failure> {
    let served = &arguments.served;
    let mut options = MetadataOptions::new(served.server(None)?);
    if let Server::Running(address) = &options.server {
        // No file content moves, so that there is no memory to guard.
        options.fabrics = fabrics(address, served.fabrics, Protection::Region)?;
    }
    options.core = served.core();
    options.server_core = served.server_core();
    options.prefix.clone_from(&arguments.prefix);
    options.directories = arguments.directories;
    options.files = arguments.files;
    options.operations.clone_from(&arguments.workload);
    options.depths.clone_from(&arguments.depth);
    options.time = arguments.time;
    options.warm_up = arguments.warm_up;
    options.repeat = arguments.repeat;
    options.tcp = served.tcp();
    options.idle = served.idle.unwrap_or(options.idle);
    options.ceilings = !served.no_ceilings;
    options.seed = arguments.seed;
    Ok(options)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;
    use gannet_perf::{EmbeddedFabric, EmbeddedOptions, LogPlace};
    use gannet_runtime::idle::IdlePolicy;

    use super::super::{PerfAction, PerfArguments};
    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        perf: PerfArguments,
    }

    fn parse(words: &str) -> Result<MetadataArguments, String> {
        let words = ["perf", "metadata"].into_iter().chain(words.split_whitespace());
        let parsed = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        let Some(PerfAction::Metadata(arguments)) = parsed.perf.action else {
            panic!("no subcommand: {:?}", parsed.perf)
        };
        Ok(*arguments)
    }

    #[test]
    fn the_defaults_are_those_of_the_harness() {
        let parsed = options(&parse("--embedded").unwrap()).unwrap();
        let defaults = MetadataOptions::new(Server::Embedded(EmbeddedOptions::default()));
        assert_eq!(format!("{parsed:?}"), format!("{defaults:?}"));
        assert!(parsed.check().is_ok());
    }

    #[test]
    fn every_argument_arrives() {
        let words = "--server shm:///run/meta.sock --core any --server-core 3 --prefix /a/b \
                     --directories 7 --files 99 --workload unlink,stat --depth 4,64 --time 10s \
                     --warm-up 1ms --repeat 5 --no-ceilings --seed 9 --idle adaptive \
                     --tcp-peer-timeout 7s --json";
        let arguments = parse(words).unwrap();
        assert!(arguments.served.json);
        let parsed = options(&arguments).unwrap();
        let mut expected =
            MetadataOptions::new(Server::Running("shm:///run/meta.sock".parse().unwrap()));
        (expected.core, expected.server_core) = (None, Some(3));
        expected.prefix = "/a/b".to_owned();
        (expected.directories, expected.files) = (7, 99);
        expected.operations = vec![MetadataOperation::Unlink, MetadataOperation::Stat];
        expected.depths = vec![4, 64];
        expected.time = Duration::from_secs(10);
        expected.warm_up = Duration::from_millis(1);
        expected.repeat = 5;
        expected.ceilings = false;
        expected.seed = 9;
        expected.idle = IdlePolicy::ADAPTIVE;
        expected.tcp.peer_timeout = Duration::from_secs(7);
        assert_eq!(format!("{parsed:?}"), format!("{expected:?}"));

        let parsed = options(&parse("--embedded --metadata-log /logs --fabric tcp").unwrap());
        let (log, fabric) = (LogPlace::Directory("/logs".into()), EmbeddedFabric::Tcp);
        let embedded = EmbeddedOptions { log, fabric, ..EmbeddedOptions::default() };
        let parsed = parsed.unwrap();
        assert_eq!(parsed.server, Server::Embedded(embedded));
        assert_eq!(parsed.idle, IdlePolicy::ADAPTIVE, "others need the cores, too");
        let words = "--embedded --metadata-log /logs --idle spin";
        assert_eq!(options(&parse(words).unwrap()).unwrap().idle, IdlePolicy::Spin);
    }

    #[test]
    fn mistakes_are_told_with_the_word_that_is_wrong() {
        for (words, wrong) in [
            ("--embedded --workload chmod", "\"chmod\""),
            ("--embedded --depth many", "many"),
            ("--embedded --directories -1", "-1"),
            ("--embedded --files lots", "lots"),
            ("--embedded --repeat x", "--repeat"),
            ("--embedded --time 3", "\"3\""),
            ("--embedded --core x", "\"x\""),
            ("--embedded --size 1G", "--size"),
            ("--embedded --reactors 2", "--reactors"),
            ("--server shm:///meta.sock --embedded", "--embedded"),
        ] {
            let message = parse(words).unwrap_err();
            assert!(message.contains(wrong), "{words}: {message}");
        }
        let words = ["perf", "--embedded", "metadata"];
        let message = Command::try_parse_from(words).unwrap_err().to_string();
        assert!(message.contains("metadata"), "arguments belong behind the word: {message}");
        for (words, wrong) in [
            ("--embedded --fabric rdma", "shm or tcp"),
            ("--server shm:///meta.sock --fabric tcp", "shm:///meta.sock"),
            ("--server shm:///meta.sock --metadata-log ram", "--embedded"),
        ] {
            let failure = options(&parse(words).unwrap()).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(failure.message.contains(wrong), "{words}: {failure}");
        }
    }
}
