//! `gannet metaserver` and `gannet target`: one role per process, from a configuration file.

use std::path::Path;

use gannet_metaserver::peers::link;
use gannet_metaserver::{MetaServerConfig, format as log_format};
use gannet_runtime::reactor::ReactorOptions;
use gannet_target::store::{StoreNames, store_exists};
use gannet_target::{StoreError, format_store};

use crate::cli::{DaemonArguments, MetaserverAction, RunArguments, TargetAction, TargetArguments};
use crate::config::{MetaServerSettings, TargetSettings};
use crate::fabric::{check_fabrics, check_ports, warn_of_strangers};
use crate::failure::Failure;
use crate::process::{Process, ready};
use crate::roles::{LogPlace, MetaServerPlan, RolePlan, TargetPlan, check_formatted, spec};
use crate::units::format_size;

/// Runs or formats a metadata server.
pub(crate) fn metaserver(arguments: DaemonArguments) -> Result<(), Failure> {
    match arguments.action {
        Some(MetaserverAction::Format { config }) => format_metaserver(&config),
        None => run_metaserver(&arguments.run),
    }
}

/// Runs or formats a data server.
pub(crate) fn target(arguments: TargetArguments) -> Result<(), Failure> {
    match arguments.action {
        Some(TargetAction::Format { config, force }) => format_target(&config, force),
        None => run_target(&arguments.run),
    }
}

fn config_of(run: &RunArguments) -> Result<&Path, Failure> {
    run.config.as_deref().ok_or_else(|| Failure::usage("--config FILE is missing"))
}

fn format_metaserver(config: &Path) -> Result<(), Failure> {
    let settings = MetaServerSettings::read(config)?;
    let uuid = random_uuid()?;
    log_format::format(&settings.directory, uuid, settings.reactors())
        .map_err(Failure::operation)?;
    println!(
        "formatted {}: file system {:032x}, {} reactor(s)",
        settings.directory.display(),
        u128::from_be_bytes(uuid),
        settings.reactors()
    );
    Ok(())
}

fn run_metaserver(run: &RunArguments) -> Result<(), Failure> {
    let config = config_of(run)?;
    let settings = MetaServerSettings::read(config)?;
    let format_command = format!("gannet metaserver format --config {}", config.display());
    check_formatted(&settings.directory, settings.reactors(), &format_command)?;
    let first = &settings.addresses[0];
    check_fabrics(&settings.fabric, first)?;
    warn_of_strangers(first, &settings.fabric.tcp.trusted_hosts, "trusted_hosts");
    check_ports(settings.addresses.iter().flatten())?;
    let mut process = Process::new()?;
    for (reactor, plan) in plans(&settings)?.into_iter().enumerate() {
        let options = ReactorOptions {
            core: settings.cores.get(reactor).copied(),
            idle: settings.idle,
            stop_grace: settings.stop_grace,
            ..ReactorOptions::new(format!("meta-{reactor}"))
        };
        process.start(options, vec![plan])?;
    }
    process.run(|| ready("GANNET_SERVER=", &settings.addresses[0], run.ready_file.as_deref()))
}

/// The reactors of a metadata server whose logs are in files.
fn plans(settings: &MetaServerSettings) -> Result<Vec<RolePlan>, Failure> {
    let links = link(settings.reactors()).map_err(Failure::operation)?;
    let mut plans = Vec::with_capacity(links.len());
    for (reactor, links) in links.into_iter().enumerate() {
        let seed = random_seed()?;
        let mut config = MetaServerConfig::new(reactor as u16, settings.addresses.clone(), seed);
        config.lease = settings.lease;
        config.handshake_timeout = settings.handshake_timeout;
        config.target_wait = settings.target_wait;
        config.grants_max = settings.grants_max;
        config.slots = settings.slots;
        let log = LogPlace::File {
            path: log_format::log_path(&settings.directory, reactor),
            lock_wait: settings.lock_wait,
        };
        let fabric = settings.fabric.clone();
        let plan = MetaServerPlan { config, log, links, fabric };
        plans.push(RolePlan::MetaServer(Box::new(plan)));
    }
    Ok(plans)
}

fn format_target(config: &Path, force: bool) -> Result<(), Failure> {
    let settings = TargetSettings::read(config)?;
    let specs: Vec<_> = settings.stores.iter().map(spec).collect();
    // All or nothing, as far as can be known before the first is written.
    for spec in &specs {
        if !force && store_exists(spec).map_err(Failure::operation)? {
            return Err(Failure::operation(format!(
                "{} holds a store already: nothing was formatted (--force overwrites it, and what \
                 it holds is lost)",
                spec.path.display()
            )));
        }
    }
    let target = random_uuid()?;
    for spec in &specs {
        let names = StoreNames { store: random_uuid()?, target };
        let info = format_store(spec, names, force)
            .map_err(|error: StoreError| Failure::operation(error))?;
        println!(
            "formatted {}: {} in {} blocks",
            spec.path.display(),
            format_size(info.blocks.get().saturating_mul(info.block_bytes.get().into())),
            info.blocks
        );
    }
    println!("data server {:032x}", u128::from_be_bytes(target));
    Ok(())
}

fn run_target(run: &RunArguments) -> Result<(), Failure> {
    let config = config_of(run)?;
    let settings = TargetSettings::read(config)?;
    check_fabrics(&settings.fabric, &settings.listen)?;
    check_fabrics(&settings.fabric, std::slice::from_ref(&settings.metaserver))?;
    warn_of_strangers(&settings.listen, &settings.fabric.tcp.trusted_hosts, "trusted_hosts");
    check_ports(&settings.listen)?;
    let listen = settings.listen.clone();
    let options = ReactorOptions {
        core: settings.core,
        idle: settings.idle,
        stop_grace: settings.stop_grace,
        ..ReactorOptions::new("target")
    };
    let plan = TargetPlan {
        name: format!("data server at {}", listen[0]),
        settings,
        format_command: format!("gannet target format --config {}", config.display()),
    };
    let mut process = Process::new()?;
    process.start(options, vec![RolePlan::Target(Box::new(plan))])?;
    process.run(|| ready("data server at ", &listen, run.ready_file.as_deref()))
}

/// 16 random bytes that name something for good.
pub(crate) fn random_uuid() -> Result<[u8; 16], Failure> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(Failure::operation)?;
    Ok(uuid)
}

/// What a metadata server mints its tickets from.
pub(crate) fn random_seed() -> Result<[u8; 32], Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(Failure::operation)?;
    Ok(seed)
}
