//! Which server is measured, from where, and how the report is printed: the arguments that all of
//! `gannet perf` has.

use std::path::PathBuf;

use clap::Args;
use gannet_client::Fabrics;
use gannet_fabric::Address;
use gannet_fabric::tcp::TcpOptions;
use gannet_perf::{EmbeddedFabric, EmbeddedOptions, LogPlace, Server, StorePlace};
use gannet_runtime::idle::IdlePolicy;

use crate::cli::parse_server;
use crate::failure::Failure;
use crate::tcp::TcpArguments;

/// Where the address of a running server is looked for when no argument says.
const SERVER_VARIABLE: &str = "GANNET_SERVER";

/// Which server, from where.
#[derive(Debug, Args)]
pub(super) struct ServedArguments {
    /// Address of a running metadata server [default: the variable GANNET_SERVER].
    #[arg(long, value_name = "URI", conflicts_with = "embedded", value_parser = parse_server)]
    server: Option<Address>,
    /// Measure a server that runs in this process, on one core, for this run only.
    #[arg(long)]
    pub(super) embedded: bool,
    /// Embedded: the metadata log, "ram" or a directory [default: ram].
    #[arg(long, value_name = "PLACE", value_parser = parse_log)]
    metadata_log: Option<LogPlace>,
    /// Use addresses of these fabrics only, as in "tcp" or "rdma,tcp"; embedded: the first of "shm"
    /// and, over loopback, "tcp" that is named [default: the quickest that there is].
    #[arg(long = "fabric", value_name = "LIST", env = "GANNET_FABRICS")]
    pub(super) fabrics: Option<Fabrics>,
    /// Core of the measuring thread, a number or "any".
    #[arg(long, value_name = "CORE", default_value = "1", value_parser = parse_core)]
    core: Core,
    /// Core of the server, a number or "any"; a running server has to be there already.
    #[arg(long, value_name = "CORE", default_value = "0", value_parser = parse_core)]
    server_core: Core,
    #[command(flatten)]
    tcp: TcpArguments,
    /// What the measuring thread does while nothing has arrived: "spin", or "adaptive", which leaves
    /// the core to others and sleeps after a while; "metadata": an embedded server, too [default: spin;
    /// "metadata" with --metadata-log in a directory: adaptive].
    #[arg(long, value_name = "HOW")]
    pub(super) idle: Option<IdlePolicy>,
    /// Do not measure what the machine itself can do.
    #[arg(long)]
    pub(super) no_ceilings: bool,
    /// As JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// A core, or none in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Core(Option<usize>);

impl ServedArguments {
    /// The server that is measured; an embedded one has its blocks in `store`.
    ///
    /// # Errors
    /// A usage failure if nothing says which, or if arguments contradict each other.
    pub(super) fn server(&self, store: Option<StorePlace>) -> Result<Server, Failure> {
        if self.embedded {
            let defaults = EmbeddedOptions::default();
            return Ok(Server::Embedded(EmbeddedOptions {
                store: store.unwrap_or(defaults.store),
                log: self.metadata_log.clone().unwrap_or(defaults.log),
                fabric: embedded_fabric(self.fabrics.unwrap_or_default())?,
            }));
        }
        if self.metadata_log.is_some() {
            return Err(of_an_embedded_server("--metadata-log"));
        }
        if let Some(address) = &self.server {
            return Ok(Server::Running(address.clone()));
        }
        let text = std::env::var(SERVER_VARIABLE).map_err(|_| {
            Failure::usage(format!(
                "nothing says what to measure: give --embedded, or --server, or set \
                 {SERVER_VARIABLE}"
            ))
        })?;
        let address = parse_server(&text)
            .map_err(|error| Failure::usage(format!("{SERVER_VARIABLE}: {error}")))?;
        Ok(Server::Running(address))
    }

    /// The measuring thread's core.
    pub(super) fn core(&self) -> Option<usize> {
        self.core.0
    }

    /// The server's core.
    pub(super) fn server_core(&self) -> Option<usize> {
        self.server_core.0
    }

    /// How to connect over TCP.
    pub(super) fn tcp(&self) -> TcpOptions {
        self.tcp.fabric_options().tcp
    }
}

/// An argument without the server that it is about.
pub(super) fn of_an_embedded_server(argument: &str) -> Failure {
    Failure::usage(format!(
        "{argument} is about an embedded server: give --embedded too, or leave it"
    ))
}

/// How the client of an embedded server reaches it.
fn embedded_fabric(fabrics: Fabrics) -> Result<EmbeddedFabric, Failure> {
    match fabrics {
        Fabrics { shm: true, .. } => Ok(EmbeddedFabric::Shm),
        Fabrics { tcp: true, .. } => Ok(EmbeddedFabric::Tcp),
        _ => Err(Failure::usage(format!(
            "--fabric (or GANNET_FABRICS) is {fabrics}: an embedded server is reached over shm or tcp"
        ))),
    }
}

fn parse_core(text: &str) -> Result<Core, String> {
    if text == "any" {
        return Ok(Core(None));
    }
    let number = text.parse().map_err(|_| format!("{text:?} is no core: a number, or \"any\""))?;
    Ok(Core(Some(number)))
}

fn parse_log(text: &str) -> Result<LogPlace, String> {
    Ok(match text {
        "ram" => LogPlace::Ram,
        "" => return Err("name a directory, or \"ram\"".to_owned()),
        directory => LogPlace::Directory(PathBuf::from(directory)),
    })
}
