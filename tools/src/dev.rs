//! `gannet dev`: all roles in one process.
//!
//! ```text
//! DIR/meta/log.0 ...           the metadata log, one per reactor
//! DIR/target-0/blocks ...      the stores (in memory: target-0/superblock)
//! DIR/meta.sock, meta.sock.1   where hosts find the metadata server's reactors
//! DIR/target-0.sock ...        where hosts find the data servers
//! ```
//!
//! The roles still speak the protocol with each other exactly as they do between processes: through
//! shared memory, or through the fabric of the first address if `--listen` names none of `shm://`.
//! Hosts on other machines take part where it names addresses that they can reach.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_fabric::Address;
use gannet_fabric::any::FabricOptions;
use gannet_metaserver::peers::link;
use gannet_metaserver::{MetaServerConfig, format as log_format};
use gannet_runtime::reactor::{ReactorOptions, STOP_GRACE_DEFAULT};
use gannet_target::store::{StoreNames, store_exists};
use gannet_target::{StoreKind, StoreSpec, format_store};

use crate::addresses::{Group, GroupAddresses};
use crate::cli::{DEV_TARGETS_MAX, DevArguments, StoreSize};
use crate::config::{StorePlace, StoreSettings, TargetSettings};
use crate::daemon::{random_seed, random_uuid};
use crate::fabric::{check_fabrics, check_ports, warn_of_strangers};
use crate::failure::Failure;
use crate::process::{Process, ready};
use crate::roles::{LogPlace, MetaServerPlan, RolePlan, TargetPlan, spec};
use crate::units::format_size;

/// How long to wait for a log that another process, perhaps a dead one's last I/O, holds.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Runs all roles until a signal.
pub(crate) fn run(arguments: &DevArguments) -> Result<(), Failure> {
    let directory = prepare(&arguments.dir)?;
    let reactors = reactors(&directory, arguments)?;
    let targets = targets(&directory, arguments)?;
    let addresses = Addresses::choose(&directory, arguments, reactors, targets)?;
    // So that nothing is formatted where nothing can be served.
    check_fabrics(&addresses.fabric, &addresses.servers.reactors[0])?;
    let servers = &addresses.servers;
    warn_of_strangers(&servers.reactors[0], &arguments.trusted_hosts, "--trusted-hosts");
    check_ports(servers.reactors.iter().chain(&servers.targets).flatten())?;
    format_log(&directory, arguments, reactors)?;
    let mut roles = metaserver_plans(&directory, arguments, &addresses)?;
    for index in 0..targets {
        roles.push(target_plan(&directory, arguments, &addresses, index)?);
    }

    let cores = arguments.cores.as_ref().map_or(&[][..], |cores| &cores.0);
    let mut process = Process::new()?;
    for (index, roles) in deal(roles, cores.len().max(1)).into_iter().enumerate() {
        let options = ReactorOptions {
            core: cores.get(index).copied(),
            idle: arguments.idle,
            ..ReactorOptions::new(format!("reactor-{index}"))
        };
        process.start(options, roles)?;
    }
    let listen = &addresses.servers.reactors[0];
    process.run(|| ready("GANNET_SERVER=", listen, arguments.ready_file.as_deref()))
}

/// Makes the directory and returns its absolute path.
fn prepare(directory: &Path) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(directory)
        .and_then(|()| directory.canonicalize())
        .map_err(|error| Failure::path("creating the directory", directory, &error))
}

/// Deals roles out to reactors in turn; reactors without a role are left out.
fn deal<T>(roles: Vec<T>, reactors: usize) -> Vec<Vec<T>> {
    let mut dealt: Vec<Vec<T>> = (0..reactors.min(roles.len())).map(|_| Vec::new()).collect();
    for (index, role) in roles.into_iter().enumerate() {
        let hand = index % dealt.len();
        dealt[hand].push(role);
    }
    dealt
}

/// How many reactors the metadata server has: as formatted, or as asked for.
fn reactors(directory: &Path, arguments: &DevArguments) -> Result<usize, Failure> {
    let asked = arguments.reactors.map(usize::from);
    let log = directory.join("meta");
    if arguments.log_in_ram {
        return Ok(asked.unwrap_or(1));
    }
    match (log_format::formatted_reactors(&log), asked) {
        (Some(formatted), Some(asked)) if formatted != asked => Err(Failure::usage(format!(
            "--reactors {asked}: {} was formatted for {formatted}; leave the option out, or use \
             another --dir",
            log.display()
        ))),
        (formatted, asked) => Ok(formatted.or(asked).unwrap_or(1)),
    }
}

/// Makes the log of a new file system, unless there is one or none shall last.
fn format_log(directory: &Path, arguments: &DevArguments, reactors: usize) -> Result<(), Failure> {
    let log = directory.join("meta");
    if arguments.log_in_ram || log_format::formatted_reactors(&log).is_some() {
        return Ok(());
    }
    log_format::format(&log, random_uuid()?, reactors).map_err(Failure::operation)?;
    println!("formatted {}: a new file system, {reactors} reactor(s)", log.display());
    Ok(())
}

/// How many data servers there are: those in the directory, or as asked for.
fn targets(directory: &Path, arguments: &DevArguments) -> Result<u32, Failure> {
    let exists = |index: &u32| directory.join(format!("target-{index}")).is_dir();
    let present = (0..DEV_TARGETS_MAX).filter(exists).map(|index| index + 1).max();
    match (present, arguments.targets) {
        (Some(present), Some(asked)) if asked < present => Err(Failure::usage(format!(
            "--targets {asked}: {} has {present} data servers, and files may lie on all of them; \
             use at least --targets {present}, or another --dir",
            directory.display()
        ))),
        (present, asked) => Ok(asked.or(present).unwrap_or(2)),
    }
}

/// Where the roles listen, and who may connect.
struct Addresses {
    servers: GroupAddresses,
    /// Where the data servers find reactor 0 of the metadata server.
    metaserver: Address,
    fabric: FabricOptions,
}

impl Addresses {
    /// What `--listen` names, else sockets in the directory.
    fn choose(
        directory: &Path,
        arguments: &DevArguments,
        reactors: usize,
        targets: u32,
    ) -> Result<Addresses, Failure> {
        let group = Group { reactors, targets: targets as usize };
        let servers = match arguments.listen.as_slice() {
            [] => {
                let socket = Address::shm(directory.join("meta.sock")).map_err(Failure::usage)?;
                group.addresses(&[socket]).map_err(Failure::usage)?
            }
            listen => group
                .addresses(listen)
                .map_err(|error| Failure::usage(format!("--listen: {error}")))?,
        };
        let trusts = !arguments.trusted_hosts.is_empty();
        let first = &servers.reactors[0];
        if trusts && first.iter().all(|address| matches!(address, Address::Shm(_))) {
            return Err(Failure::usage(
                "--trusted-hosts: other machines reach no address of --listen: leave it out, or \
                 listen at one of tcp:// or rdma:// too",
            ));
        }
        let mut fabric = FabricOptions::default();
        fabric.verbs.trusted_hosts.clone_from(&arguments.trusted_hosts);
        fabric.tcp.trusted_hosts.clone_from(&arguments.trusted_hosts);
        // Within this process nothing is quicker than shared memory.
        let shm = first.iter().find(|address| matches!(address, Address::Shm(_)));
        let metaserver = shm.unwrap_or(&first[0]).clone();
        Ok(Addresses { servers, metaserver, fabric })
    }
}

fn metaserver_plans(
    directory: &Path,
    arguments: &DevArguments,
    addresses: &Addresses,
) -> Result<Vec<RolePlan>, Failure> {
    let reactors = addresses.servers.reactors.len();
    let file_system_uuid = random_uuid()?;
    let links = link(reactors).map_err(Failure::operation)?;
    let mut plans = Vec::with_capacity(reactors);
    for (reactor, links) in links.into_iter().enumerate() {
        let log = if arguments.log_in_ram {
            LogPlace::Ram { file_system_uuid }
        } else {
            let path = log_format::log_path(&directory.join("meta"), reactor);
            LogPlace::File { path, lock_wait: LOCK_WAIT }
        };
        let listen = addresses.servers.reactors.clone();
        plans.push(RolePlan::MetaServer(Box::new(MetaServerPlan {
            config: MetaServerConfig::new(reactor as u16, listen, random_seed()?),
            log,
            links,
            fabric: addresses.fabric.clone(),
        })));
    }
    Ok(plans)
}

fn target_plan(
    directory: &Path,
    arguments: &DevArguments,
    addresses: &Addresses,
    index: u32,
) -> Result<RolePlan, Failure> {
    let path = directory.join(format!("target-{index}"));
    let store = StoreSettings { place: place(&path, arguments.store_size)?, path };
    let store_spec = spec(&store);
    if !store_exists(&store_spec).map_err(Failure::operation)? {
        format_new(&store_spec)?;
    }
    let settings = TargetSettings {
        listen: addresses.servers.targets[index as usize].clone(),
        metaserver: addresses.metaserver.clone(),
        core: None,
        idle: arguments.idle,
        handshake_timeout: Duration::from_secs(5),
        stop_grace: STOP_GRACE_DEFAULT,
        fabric: addresses.fabric.clone(),
        stores: vec![store],
    };
    Ok(RolePlan::Target(Box::new(TargetPlan {
        name: format!("data server {index}"),
        settings,
        format_command: format!("gannet dev --dir {}", directory.display()),
    })))
}

/// What a store is: as it was made, or as asked for.
fn place(path: &Path, asked: StoreSize) -> Result<StorePlace, Failure> {
    let exists = |place| {
        let spec = spec(&StoreSettings { path: path.to_path_buf(), place });
        store_exists(&spec).map_err(Failure::operation)
    };
    match asked {
        StoreSize::File(size_bytes) => {
            let place = StorePlace::Directory { size_bytes };
            if !exists(place)? && exists(StorePlace::Ram { size_bytes })? {
                return Err(other_kind(path, "in memory", "--store-size ram:SIZE"));
            }
            Ok(place)
        }
        StoreSize::Ram(size_bytes) => {
            let place = StorePlace::Ram { size_bytes };
            if !exists(place)? && exists(StorePlace::Directory { size_bytes })? {
                return Err(other_kind(path, "in a file", "--store-size SIZE"));
            }
            Ok(place)
        }
    }
}

fn other_kind(path: &Path, is: &str, option: &str) -> Failure {
    Failure::usage(format!(
        "--store-size: the store {} is one {is}; use {option}, or another --dir",
        path.display()
    ))
}

fn format_new(spec: &StoreSpec) -> Result<(), Failure> {
    let names = StoreNames { store: random_uuid()?, target: random_uuid()? };
    let info = format_store(spec, names, false).map_err(Failure::operation)?;
    let bytes = info.blocks.get().saturating_mul(info.block_bytes.get().into());
    let kind = match spec.kind {
        StoreKind::Ram { .. } => " in memory",
        StoreKind::Directory { .. } | StoreKind::Device => "",
    };
    println!("formatted {}: a new store of {}{kind}", spec.path.display(), format_size(bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_dealt_out_in_turn() {
        assert_eq!(deal(vec![1, 2, 3], 1), [vec![1, 2, 3]]);
        assert_eq!(deal(vec![1, 2, 3], 2), [vec![1, 3], vec![2]]);
        assert_eq!(deal(vec![1, 2], 4), [vec![1], vec![2]]);
    }
}
