//! A cluster of separate processes: one metadata server, some data servers.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gannet_fabric::Address;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Finished, Server, build_directory, gannet, run};

/// Ports between the first of the metadata server and the first of the data servers.
const TARGET_PORTS: u16 = 100;

/// By which fabric the servers are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Processes of this machine, over sockets in a directory of the cluster's own.
    #[default]
    Shm,
    /// An RDMA device of this machine.
    Rdma {
        /// Its address.
        host: String,
        /// Where the metadata server listens: from here on, the data servers behind it.
        port: u16,
        /// Networks besides this machine that may connect, as in the configuration.
        trusted_hosts: Vec<String>,
    },
    /// All fabrics at once on this machine: each server listens over shared memory, at an RDMA device
    /// and over TCP. The servers reach each other over shared memory.
    Every {
        /// The device's address, and that of TCP.
        host: String,
        /// As for RDMA alone; the same numbers are ports of TCP.
        port: u16,
    },
    /// Places on a network, each server at one of its own.
    Tcp {
        /// The metadata server's.
        metaserver: Place,
        /// The data servers'.
        targets: Vec<Place>,
        /// Where commands run on the cluster.
        host: Place,
        /// Networks from which hosts and servers may connect, as in the configuration.
        trusted_hosts: Vec<String>,
    },
}

/// A place on a network that processes can be started at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub address: IpAddr,
    /// Where servers listen there, and on the ports behind it.
    pub port: u16,
    /// What goes in front of a command's own words, so that it runs there.
    pub prefix: Vec<String>,
}

impl Place {
    /// Where a server listens here.
    #[must_use]
    pub fn listens(&self) -> Address {
        Address::Tcp { host: self.address.to_string(), port: self.port }
    }

    /// The command, to be run here.
    #[must_use]
    pub fn command(&self, command: Command) -> Command {
        let Some((program, words)) = self.prefix.split_first() else { return command };
        let mut moved = Command::new(program);
        moved.args(words).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved
    }
}

impl Network {
    /// Whom the servers let in, as a line of a configuration.
    fn trust(&self) -> String {
        match self {
            Network::Rdma { trusted_hosts, .. } | Network::Tcp { trusted_hosts, .. }
                if !trusted_hosts.is_empty() =>
            {
                format!("trusted_hosts = {trusted_hosts:?}\n")
            }
            _ => String::new(),
        }
    }

    /// The command, to be run where a server is.
    fn at_server(&self, server: Option<usize>, command: Command) -> Command {
        match (self, server) {
            (Network::Tcp { metaserver, .. }, None) => metaserver.command(command),
            (Network::Tcp { targets, .. }, Some(index)) => targets[index].command(command),
            _ => command,
        }
    }
}

/// Where a data server keeps its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// In a file.
    #[default]
    File,
    /// In memory, which does not survive the process.
    Ram,
    /// On a whole block device.
    Device(PathBuf),
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Reactors of the metadata server.
    pub reactors: u32,
    /// Data servers, each with one store.
    pub targets: usize,
    /// What the stores of the first data servers are; those of the others are files.
    pub stores: Vec<Store>,
    /// Size of each store that is no device, as in the configuration.
    pub store_size: &'static str,
    /// How long a session outlives its connection, in whole milliseconds.
    pub lease: Duration,
    /// By which fabric the servers are reached.
    pub network: Network,
    /// More lines of the metadata server's configuration; tables are at their end.
    pub metaserver_settings: String,
    /// The same of the data servers'.
    pub target_settings: String,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            reactors: 2,
            targets: 2,
            stores: Vec::new(),
            store_size: "256M",
            lease: Duration::from_secs(10),
            network: Network::Shm,
            metaserver_settings: String::new(),
            target_settings: String::new(),
        }
    }
}

/// A cluster and its files, which are gone when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    // The servers first: they end before their files go.
    metaserver: Option<Server>,
    targets: Vec<Option<Server>>,
    directory: TempDir,
    /// Paths of sockets have at most 107 bytes, so they get a short directory.
    sockets: TempDir,
    network: Network,
}

impl Cluster {
    /// Writes configurations and formats; nothing runs yet.
    ///
    /// # Panics
    /// If the machine refuses files, or formatting fails.
    #[must_use]
    pub fn format(options: ClusterOptions) -> Cluster {
        let cluster = Cluster {
            metaserver: None,
            targets: (0..options.targets).map(|_| None).collect(),
            directory: scratch_directory(),
            sockets: tempfile::Builder::new().prefix("gannet-").tempdir().expect("a directory"),
            network: options.network.clone(),
        };
        cluster.write_configurations(&options);
        let format = |role: &str, config: PathBuf| {
            let mut command = Command::new(gannet());
            command.args([role, "format", "--config"]).arg(config);
            let _said = run(command).success();
        };
        format("metaserver", cluster.config("metaserver"));
        for index in 0..options.targets {
            format("target", cluster.config(&target_name(index)));
        }
        cluster
    }

    /// Formats a cluster and starts it.
    ///
    /// # Panics
    /// As [`Cluster::format`] and [`Cluster::start`].
    #[must_use]
    pub fn new(options: ClusterOptions) -> Cluster {
        let mut cluster = Cluster::format(options);
        cluster.start();
        cluster
    }

    fn write_configurations(&self, options: &ClusterOptions) {
        let ClusterOptions { reactors, targets, stores, store_size, network, .. } = options;
        let (directory, trust) = (self.directory.path().display(), network.trust());
        let metaserver = self.address();
        let listen = listed(&self.addresses());
        let text = format!(
            "directory = \"{directory}/meta\"\nlisten = {listen}\n\
             reactors = {reactors}\nidle = \"adaptive\"\nlease = \"{}ms\"\n{trust}{}",
            options.lease.as_millis(),
            options.metaserver_settings
        );
        std::fs::write(self.config("metaserver"), text).expect("a file");
        for index in 0..*targets {
            let (name, listen) = (target_name(index), listed(&self.target_addresses(index)));
            let store = match stores.get(index).cloned().unwrap_or_default() {
                Store::Device(path) => format!("path = {path:?}\nkind = \"device\"\n"),
                other => {
                    let kind = if other == Store::Ram { "ram" } else { "directory" };
                    let path = format!("{directory}/{name}");
                    format!("path = \"{path}\"\nkind = \"{kind}\"\nsize = \"{store_size}\"\n")
                }
            };
            let text = format!(
                "listen = {listen}\nmetaserver = \"{metaserver}\"\nidle = \"adaptive\"\n\
                 {trust}{}[[store]]\n{store}",
                options.target_settings
            );
            std::fs::write(self.config(&name), text).expect("a file");
        }
    }

    fn config(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.toml"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// Starts a data server, or the metadata server.
    fn spawn(&self, target: Option<usize>) -> Server {
        let (role, name) = match target {
            Some(index) => ("target", target_name(index)),
            None => ("metaserver", "metaserver".to_owned()),
        };
        let mut command = Command::new(gannet());
        command.env("GANNET_LOG", "info").args([role, "--config"]).arg(self.config(&name));
        Server::start(&name, self.network.at_server(target, command), &self.log(&name))
    }

    /// Starts all servers, waits until they serve and says since when.
    ///
    /// # Panics
    /// If one does not.
    pub fn start(&mut self) -> Instant {
        self.start_in_order(true)
    }

    /// As [`Cluster::start`]; data servers that are started before the metadata server wait for it.
    ///
    /// # Panics
    /// If one does not get ready.
    pub fn start_in_order(&mut self, metaserver_first: bool) -> Instant {
        if metaserver_first {
            self.metaserver = Some(self.spawn(None));
        }
        for index in 0..self.targets.len() {
            self.targets[index] = Some(self.spawn(Some(index)));
        }
        if !metaserver_first {
            self.metaserver = Some(self.spawn(None));
        }
        let servers = self.metaserver.iter_mut().chain(self.targets.iter_mut().flatten());
        servers.map(Server::wait_ready).max().expect("there is a server")
    }

    /// Starts the metadata server, waits until it serves and says since when.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start_metaserver(&mut self) -> Instant {
        let server = self.spawn(None);
        self.metaserver.insert(server).wait_ready()
    }

    /// Starts a data server, waits until it serves and says since when.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start_target(&mut self, index: usize) -> Instant {
        let server = self.spawn(Some(index));
        self.targets[index].insert(server).wait_ready()
    }

    /// Stops all servers in order.
    ///
    /// # Panics
    /// If one does not end in order.
    pub fn stop(&mut self) {
        self.targets.iter_mut().filter_map(Option::take).for_each(Server::stop);
        self.metaserver.take().into_iter().for_each(Server::stop);
    }

    /// Kills the metadata server.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_metaserver(&mut self) {
        self.metaserver.take().expect("the metadata server runs").kill();
    }

    /// Kills a data server.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_target(&mut self, index: usize) {
        self.kill_target_and(index, || ());
    }

    /// Kills a data server, and runs `meanwhile` before waiting until it is gone.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill_target_and(&mut self, index: usize, meanwhile: impl FnOnce()) {
        self.targets[index].take().expect("the data server runs").kill_and(meanwhile);
    }

    /// Sends a signal to a data server.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal_target(&self, index: usize, signal: Signal) {
        self.targets[index].as_ref().expect("the data server runs").signal(signal);
    }

    /// Stops a data server in order.
    ///
    /// # Panics
    /// If it does not run, or does not end in order.
    pub fn stop_target(&mut self, index: usize) {
        self.targets[index].take().expect("the data server runs").stop();
    }

    /// Stops the metadata server in order.
    ///
    /// # Panics
    /// If it does not run, or does not end in order.
    pub fn stop_metaserver(&mut self) {
        self.metaserver.take().expect("the metadata server runs").stop();
    }

    /// Whether all servers run.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        let running = |server: &mut Option<Server>| server.as_mut().is_some_and(Server::is_running);
        running(&mut self.metaserver) && self.targets.iter_mut().all(running)
    }

    /// The metadata server's process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn metaserver_pid(&self) -> u32 {
        self.metaserver.as_ref().expect("the metadata server runs").pid()
    }

    /// A data server's process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn target_pid(&self, index: usize) -> u32 {
        self.targets[index].as_ref().expect("the data server runs").pid()
    }

    /// A directory for the test's own files, on the file system of the stores.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of a data server's store.
    #[must_use]
    pub fn store_directory(&self, index: usize) -> PathBuf {
        self.directory.path().join(target_name(index))
    }

    /// Whether a store's file is read and written through the page cache, because its file system
    /// offers nothing else: the data server says so when it starts.
    #[must_use]
    pub fn is_buffered(&self, index: usize) -> bool {
        self.target_log(index).contains("the page cache is used")
    }

    /// Where hosts find the file system.
    ///
    /// # Panics
    /// If the machine's temporary directory has too long a path.
    #[must_use]
    pub fn address(&self) -> Address {
        self.addresses().swap_remove(0)
    }

    /// All addresses at which hosts find the file system.
    ///
    /// # Panics
    /// As [`Cluster::address`].
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        match &self.network {
            Network::Tcp { metaserver, .. } => vec![metaserver.listens()],
            _ => self.here("meta.sock", 0),
        }
    }

    /// Where a data server listens.
    ///
    /// # Panics
    /// As [`Cluster::address`].
    #[must_use]
    pub fn target_address(&self, index: usize) -> Address {
        self.target_addresses(index).swap_remove(0)
    }

    fn target_addresses(&self, index: usize) -> Vec<Address> {
        match &self.network {
            Network::Tcp { targets, .. } => vec![targets[index].listens()],
            _ => self.here(&format!("{}.sock", target_name(index)), TARGET_PORTS + index as u16),
        }
    }

    /// Where a server on this machine listens: its socket, or this far behind the first port.
    fn here(&self, socket: &str, behind: u16) -> Vec<Address> {
        let socket = || Address::shm(self.sockets.path().join(socket)).expect("a short path");
        match &self.network {
            Network::Rdma { host, port, .. } => {
                vec![Address::Rdma { host: host.clone(), port: port + behind }]
            }
            Network::Every { host, port } => {
                let (host, port) = (host.clone(), port + behind);
                let tcp = Address::Tcp { host: host.clone(), port };
                vec![socket(), tcp, Address::Rdma { host, port }]
            }
            Network::Shm | Network::Tcp { .. } => vec![socket()],
        }
    }

    /// What the metadata server has printed, all its processes together.
    #[must_use]
    pub fn metaserver_log(&self) -> String {
        std::fs::read_to_string(self.log("metaserver")).unwrap_or_default()
    }

    /// What a data server has printed, all its processes together.
    #[must_use]
    pub fn target_log(&self, index: usize) -> String {
        std::fs::read_to_string(self.log(&target_name(index))).unwrap_or_default()
    }

    /// The `gannet` command with these arguments, to be run on this cluster.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(gannet());
        command.env("GANNET_SERVER", self.address().to_string()).args(arguments);
        match &self.network {
            Network::Tcp { host, .. } => host.command(command),
            _ => command,
        }
    }

    /// Runs `gannet` with these arguments to its end.
    ///
    /// # Panics
    /// As [`run`].
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Finished {
        run(self.command(arguments))
    }

    /// What `gannet fsck` says of the metadata server's logs. The server must not run.
    ///
    /// # Panics
    /// If it finds errors, or cannot check.
    #[must_use]
    pub fn fsck(&self) -> Value {
        let config = self.config("metaserver");
        let mut command = Command::new(gannet());
        command.args(["fsck", "--json", "--config"]).arg(config);
        run(self.network.at_server(None, command)).json()
    }

    /// What `gannet stats` counts.
    ///
    /// # Panics
    /// If the command fails.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats(self.run(&["stats", "--json"]).json())
    }

    /// Bytes in use, by `gannet df`.
    ///
    /// # Panics
    /// If the command fails.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let space = self.run(&["df", "--json"]).json();
        space["used_bytes"].as_u64().expect("a number")
    }
}

/// Addresses as a configuration lists them.
fn listed(addresses: &[Address]) -> String {
    let texts: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[{}]", texts.join(", "))
}

fn target_name(index: usize) -> String {
    format!("target-{index}")
}

/// A directory on the file system that the build is on: that of the machine's temporary files may
/// be memory, which knows no direct I/O, and small.
///
/// # Panics
/// If the machine refuses one.
#[must_use]
pub fn scratch_directory() -> TempDir {
    let parent = build_directory().join("gannet-integration");
    std::fs::create_dir_all(&parent).expect("a directory beside the build");
    tempfile::tempdir_in(parent).expect("a directory beside the build")
}

/// Counters of a cluster.
#[derive(Clone, Debug)]
pub struct Stats(pub Value);

impl Stats {
    /// Sum over the metadata server's reactors.
    ///
    /// # Panics
    /// If there is no such counter.
    #[must_use]
    pub fn metaserver(&self, name: &str) -> u64 {
        self.total("metaservers", name)
    }

    /// Sum over the data servers.
    ///
    /// # Panics
    /// If there is no such counter.
    #[must_use]
    pub fn targets(&self, name: &str) -> u64 {
        self.total("targets", name)
    }

    fn total(&self, role: &str, name: &str) -> u64 {
        let value = self.0["totals"][role][name].as_u64();
        value.unwrap_or_else(|| panic!("no counter {name} of {role} in {:#}", self.0))
    }
}
