//! What addresses of `rdma://` need: this build, the libraries' drivers, the kernel's devices, and
//! leave to pin memory.

use super::devices::{Device, Interface, Port, devices};
use super::system::System;
use super::{Area, Check, Level};
use crate::units::format_size;

/// Where libibverbs finds the drivers of devices.
const PROVIDERS: &str = "/etc/libibverbs.d";
/// Where connections are made.
const CONNECTION_MANAGER: &str = "/dev/infiniband/rdma_cm";
/// Bit of the capability that frees a process from the limit of locked memory.
const CAP_IPC_LOCK: u32 = 14;
/// What `gannet put` and `gannet get` pin for each data server, with their default depth.
const COMMAND_PINS_BYTES: u64 = 32 << 20;
/// From here on packets of a RoCE device carry 4096 bytes, whatever headers they have.
const MTU_WANTED_BYTES: u32 = 4200;

/// All checks; what is missing for RDMA is told at level `missing`.
pub(super) fn checks(system: &System, missing: Level) -> Vec<Check> {
    let found = devices(system);
    let mut checks = vec![build(missing), providers(system, missing, &found)];
    if found.is_empty() {
        checks.push(no_device(system, missing));
    } else {
        let usable = |device: &Device| device.ports.iter().any(Port::is_usable);
        // What is wrong with one port keeps nobody from using another.
        let level = if found.iter().any(usable) { Level::Warning } else { missing };
        for device in &found {
            checks.extend(device.ports.iter().map(|port| port_check(device, port, level)));
            checks.extend(character_device(system, missing, device));
        }
        checks.push(connection_manager(system, missing));
    }
    checks.push(locked_memory(system, missing));
    checks
}

impl Port {
    /// Connections can be made through it.
    fn is_usable(&self) -> bool {
        let has_address = self
            .interface
            .as_ref()
            .is_some_and(|interface| !interface.addresses.is_empty() && interface.name != "lo");
        self.state == "ACTIVE" && has_address
    }
}

fn ok(name: impl Into<String>, found: impl Into<String>) -> Check {
    Check::ok(Area::Rdma, name, found)
}

fn bad(level: Level, name: impl Into<String>, found: impl Into<String>, remedy: &str) -> Check {
    Check::bad(level, Area::Rdma, name, found, remedy)
}

fn build(missing: Level) -> Check {
    if cfg!(feature = "verbs") {
        return ok("build", "it knows rdma://");
    }
    let remedy = "apt-get install pkg-config libclang-dev libibverbs-dev librdmacm-dev, then build \
                  without --no-default-features";
    bad(missing, "build", "it was made without the feature verbs", remedy)
}

fn providers(system: &System, missing: Level, devices: &[Device]) -> Check {
    let name = "providers";
    let files = system.list(PROVIDERS);
    let drivers: Vec<&str> = files.iter().filter_map(|file| file.strip_suffix(".driver")).collect();
    let remedy = "libibverbs needs a driver for each kind of device: apt-get install \
                  ibverbs-providers";
    if drivers.is_empty() {
        let found = format!("{PROVIDERS} names no driver");
        return bad(missing, name, found, remedy);
    }
    let soft = devices.iter().any(|device| device.soft_roce_on.is_some());
    if soft && !drivers.contains(&"rxe") {
        let found = format!("{PROVIDERS} has no rxe.driver, for soft-RoCE");
        return bad(missing, name, found, remedy);
    }
    ok(name, format!("{PROVIDERS}: {}", drivers.join(" ")))
}

fn no_device(system: &System, missing: Level) -> Check {
    let found = if system.exists("/sys/module/ib_core") {
        "no RDMA device on this machine"
    } else {
        "no RDMA device on this machine, and none of the kernel's RDMA modules is loaded"
    };
    let interface = ethernet_interface(system);
    let interface = interface.as_deref().unwrap_or("eth0");
    let remedy = format!(
        "with an RDMA NIC: load its driver (apt-get install rdma-core, then see rdma link)\n\
         without one, soft-RoCE: modprobe rdma_rxe && modprobe rdma_ucm && rdma link add rxe0 type \
         rxe netdev {interface}\n\
         see docs/rdma.md"
    );
    bad(missing, "devices", found, &remedy)
}

/// An interface that soft-RoCE can sit on: up if there is one, and not the loopback.
fn ethernet_interface(system: &System) -> Option<String> {
    // The kernel's number for Ethernet; loopback has another.
    let mut names = system.list("/sys/class/net");
    let word = |name: &str, file: &str| system.read(&format!("/sys/class/net/{name}/{file}"));
    names.retain(|name| word(name, "type").as_deref() == Some("1"));
    let is_up = |name: &&String| word(name, "operstate").as_deref() == Some("up");
    names.iter().find(is_up).or(names.first()).cloned()
}

fn port_check(device: &Device, port: &Port, level: Level) -> Check {
    let several = device.ports.len() > 1;
    let name =
        if several { format!("{}:{}", device.name, port.number) } else { device.name.clone() };
    let kind = match &device.soft_roce_on {
        Some(interface) => format!("soft-RoCE on {interface}"),
        None if port.link_layer.is_empty() => "a port of an unknown kind".to_owned(),
        None => port.link_layer.clone(),
    };
    let state = if port.state.is_empty() { "of unknown state" } else { &port.state };
    let found = format!("{kind}, {state}, {}", port.rate);
    let found = found.trim_end_matches(", ").to_owned();
    if port.state != "ACTIVE" {
        return bad(level, name, found, &state_remedy(port));
    }
    let Some(interface) = &port.interface else {
        let remedy = if port.link_layer == "InfiniBand" {
            "addresses of rdma:// are IP addresses, so the port needs IP over InfiniBand: modprobe \
             ib_ipoib, then give the new interface an address"
        } else {
            "the device has no network interface here; in a container, share that of the host"
        };
        return bad(level, name, format!("{found}, no network interface"), remedy);
    };
    let found = format!("{found}, {}", describe(interface));
    if interface.name == "lo" {
        let remedy = format!(
            "the connection manager finds no route through lo: rdma link del {}, then add it to an \
             Ethernet interface",
            device.name
        );
        return bad(level, name, found, &remedy);
    }
    if interface.addresses.is_empty() {
        let remedy = format!(
            "give it one: ip addr add 192.168.1.10/24 dev {0} && ip link set {0} up",
            interface.name
        );
        return bad(level, name, format!("{found} without an address"), &remedy);
    }
    if port.link_layer == "Ethernet" && !port.has_roce_v2 {
        let remedy = format!(
            "both ends of a connection have to use the same version; elsewhere, too, then:\n\
             mkdir -p /sys/kernel/config/rdma_cm/{0} && echo 'IB/RoCE v1' > \
             /sys/kernel/config/rdma_cm/{0}/ports/{1}/default_roce_mode",
            device.name, port.number
        );
        return bad(Level::Note, name, format!("{found}, RoCE version 1 only"), &remedy);
    }
    if port.link_layer == "Ethernet"
        && interface.mtu_bytes.is_some_and(|mtu| mtu < MTU_WANTED_BYTES)
    {
        let remedy = format!(
            "packets carry 1024 or 2048 bytes at most; where the switches allow it: ip link set {} \
             mtu 9000, at all machines alike",
            interface.name
        );
        return bad(Level::Note, name, found, &remedy);
    }
    ok(name, found)
}

fn describe(interface: &Interface) -> String {
    let mtu = interface.mtu_bytes.map_or_else(String::new, |mtu| format!(" mtu {mtu}"));
    let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
    format!("{}{mtu} {}", interface.name, addresses.join(" ")).trim_end().to_owned()
}

fn state_remedy(port: &Port) -> String {
    if port.link_layer == "InfiniBand" {
        return match port.state.as_str() {
            "INIT" | "ARMED" => "the link is there and no subnet manager has set it up: start \
                                 opensm on one machine or on the switch"
                .to_owned(),
            _ => "there is no link: check cable and switch".to_owned(),
        };
    }
    let name = port.interface.as_ref().map_or("IFACE", |interface| &interface.name);
    format!("ip link set {name} up; if that does not help, check cable and switch")
}

fn character_device(system: &System, missing: Level, device: &Device) -> Option<Check> {
    let Some(name) = &device.character_device else {
        let found = format!("{} has no device file for programs", device.name);
        return Some(bad(missing, "verbs", found, "modprobe ib_uverbs"));
    };
    let path = format!("/dev/infiniband/{name}");
    if system.is_writable(&path) {
        return None;
    }
    let is_there = system.exists(&path);
    Some(bad(missing, "verbs", access_denied(&path, is_there), access_remedy(is_there)))
}

fn connection_manager(system: &System, missing: Level) -> Check {
    let name = "rdma_cm";
    let path = CONNECTION_MANAGER;
    if system.is_writable(path) {
        return ok(name, format!("{path} can be used"));
    }
    if !system.exists(path) && !system.exists("/sys/class/misc/rdma_cm") {
        return bad(missing, name, format!("{path} is missing"), "modprobe rdma_ucm");
    }
    let is_there = system.exists(path);
    bad(missing, name, access_denied(path, is_there), access_remedy(is_there))
}

fn access_denied(path: &str, is_there: bool) -> String {
    let what = if is_there { "may not be read and written" } else { "is missing" };
    format!("{path} {what}")
}

fn access_remedy(is_there: bool) -> &'static str {
    if is_there {
        "add this user to the group of the file (ls -l /dev/infiniband), or chmod 666 it with a \
         udev rule, as rdma-core does"
    } else {
        "apt-get install rdma-core, whose udev rules make it; in a container, share \
         /dev/infiniband (docker run --device=/dev/infiniband)"
    }
}

fn locked_memory(system: &System, missing: Level) -> Check {
    let name = "locked memory";
    let capabilities = system.field("/proc/self/status", "CapEff");
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(&text, 16).ok());
    if capabilities.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1) {
        return ok(name, "no limit for this process, which has CAP_IPC_LOCK");
    }
    let limit = system.field("/proc/self/limits", "Max locked memory");
    let limit = limit.as_deref().and_then(|line| line.split_whitespace().next());
    let remedy = "devices need memory pinned: ulimit -l unlimited, LimitMEMLOCK=infinity in the \
                  unit of a service, or memlock in /etc/security/limits.conf; in a container, \
                  --ulimit memlock=-1";
    match limit.map(|limit| (limit, limit.parse::<u64>())) {
        Some(("unlimited", _)) => ok(name, "no limit"),
        Some((_, Ok(bytes))) if bytes < COMMAND_PINS_BYTES => {
            let found = format!(
                "at most {}, and a command's buffers have {} for each data server",
                format_size(bytes),
                format_size(COMMAND_PINS_BYTES)
            );
            bad(missing, name, found, remedy)
        }
        Some((_, Ok(bytes))) => {
            let found = format!(
                "at most {}; a host pins its buffers once for each data server, a data server \
                 pins its stores in memory",
                format_size(bytes)
            );
            bad(missing.min(Level::Warning), name, found, remedy)
        }
        _ => ok(name, "the system does not tell the limit"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::system::tests::machine;
    use super::*;

    /// A machine with a working soft-RoCE device, with these files changed; "-" takes one away.
    fn soft_roce(changes: &[(&str, &str)]) -> Vec<Check> {
        let mut files = vec![
            ("etc/libibverbs.d/mlx5.driver", "driver mlx5"),
            ("etc/libibverbs.d/rxe.driver", "driver rxe"),
            ("sys/module/ib_core/refcnt", "1"),
            ("sys/class/infiniband/rxe0/parent", "eth0"),
            ("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE"),
            ("sys/class/infiniband/rxe0/ports/1/link_layer", "Ethernet"),
            ("sys/class/infiniband/rxe0/ports/1/rate", "2.5 Gb/sec (1X SDR)"),
            ("sys/class/infiniband/rxe0/ports/1/gids/1", "::ffff:10.77.0.1"),
            ("sys/class/infiniband/rxe0/ports/1/gid_attrs/types/1", "RoCE v2"),
            ("sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/1", "eth0"),
            ("sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0"),
            ("sys/class/net/eth0/mtu", "9000"),
            ("dev/infiniband/uverbs0", ""),
            ("dev/infiniband/rdma_cm", ""),
            ("proc/self/status", "CapEff:\t0000000000000000"),
            ("proc/self/limits", "Max locked memory         unlimited   unlimited   bytes"),
        ];
        for (path, content) in changes {
            files.retain(|(other, _)| other != path);
            if *content != "-" {
                files.push((path, content));
            }
        }
        let (_root, system) = machine(&files);
        checks(&system, Level::Problem)
    }

    fn worst(checks: &[Check]) -> &Check {
        checks.iter().max_by_key(|check| check.level).unwrap()
    }

    #[test]
    fn a_machine_with_soft_roce_is_fine() {
        let checks = soft_roce(&[]);
        let port = checks.iter().find(|check| check.name == "rxe0").unwrap();
        let expected = "soft-RoCE on eth0, ACTIVE, 2.5 Gb/sec (1X SDR), eth0 mtu 9000 10.77.0.1";
        assert_eq!(port.found, expected);
        let without_build: Vec<Check> =
            checks.into_iter().filter(|check| check.name != "build").collect();
        assert_eq!(worst(&without_build).level, Level::Ok, "{without_build:#?}");
    }

    #[test]
    fn the_build_is_told() {
        let check = build(Level::Problem);
        assert_eq!(check.level == Level::Ok, cfg!(feature = "verbs"), "{check:?}");
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_remedy() {
        const PORT: &str = "sys/class/infiniband/rxe0/ports/1";
        let (state, gid) = (format!("{PORT}/state"), format!("{PORT}/gids/1"));
        let limits = "proc/self/limits";
        for (changes, level, name, hint) in [
            (
                &[("etc/libibverbs.d/rxe.driver", "-")][..],
                Level::Problem,
                "providers",
                "ibverbs-providers",
            ),
            (
                &[("etc/libibverbs.d/rxe.driver", "-"), ("etc/libibverbs.d/mlx5.driver", "-")],
                Level::Problem,
                "providers",
                "ibverbs-providers",
            ),
            (&[(state.as_str(), "1: DOWN")], Level::Problem, "rxe0", "ip link set eth0 up"),
            (&[(gid.as_str(), "fe80::1")], Level::Problem, "rxe0", "ip addr add"),
            (
                &[("sys/class/infiniband_verbs/uverbs0/ibdev", "-")],
                Level::Problem,
                "verbs",
                "modprobe ib_uverbs",
            ),
            (&[("dev/infiniband/uverbs0", "-")], Level::Problem, "verbs", "--device"),
            (&[("dev/infiniband/rdma_cm", "-")], Level::Problem, "rdma_cm", "modprobe rdma_ucm"),
            (
                &[("dev/infiniband/rdma_cm", "-"), ("sys/class/misc/rdma_cm/dev", "10:1")],
                Level::Problem,
                "rdma_cm",
                "rdma-core",
            ),
            (
                &[(limits, "Max locked memory  8388608  8388608  bytes")],
                Level::Problem,
                "locked memory",
                "LimitMEMLOCK",
            ),
            (
                &[(limits, "Max locked memory  1073741824  1073741824  bytes")],
                Level::Warning,
                "locked memory",
                "ulimit -l",
            ),
            (
                &[("sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/1", "lo")],
                Level::Problem,
                "rxe0",
                "rdma link del rxe0",
            ),
            (&[("sys/class/net/eth0/mtu", "1500")], Level::Note, "rxe0", "mtu 9000"),
            (
                &[("sys/class/infiniband/rxe0/ports/1/gid_attrs/types/1", "IB/RoCE v1")],
                Level::Note,
                "rxe0",
                "default_roce_mode",
            ),
        ] {
            let mut checks = soft_roce(changes);
            checks.retain(|check| check.name != "build");
            let worst = worst(&checks);
            assert_eq!((worst.level, &*worst.name), (level, name), "{worst:?}");
            let remedy = worst.remedy.as_deref().unwrap();
            assert!(remedy.contains(hint), "{name}: {remedy}");
        }
    }

    #[test]
    fn a_capability_frees_from_the_limit() {
        let checks = soft_roce(&[
            ("proc/self/status", "CapEff:\t0000000000004000"),
            ("proc/self/limits", "Max locked memory  65536  65536  bytes"),
        ]);
        let check = checks.iter().find(|check| check.name == "locked memory").unwrap();
        assert_eq!(check.level, Level::Ok, "{check:?}");
    }

    #[test]
    fn one_port_that_works_makes_the_others_warnings() {
        let other = "sys/class/infiniband/mlx5_1";
        let (state, layer) =
            (format!("{other}/ports/1/state"), format!("{other}/ports/1/link_layer"));
        let checks = soft_roce(&[
            (state.as_str(), "2: INIT"),
            (layer.as_str(), "InfiniBand"),
            ("sys/class/infiniband_verbs/uverbs1/ibdev", "mlx5_1"),
            ("dev/infiniband/uverbs1", ""),
        ]);
        let check = checks.iter().find(|check| check.name == "mlx5_1").unwrap();
        assert_eq!(check.level, Level::Warning, "{check:?}");
        assert!(check.remedy.as_deref().unwrap().contains("opensm"), "{check:?}");
    }

    #[test]
    fn a_machine_without_a_device_is_told_how_to_get_one() {
        let files = [
            ("etc/libibverbs.d/rxe.driver", "driver rxe"),
            ("sys/class/net/lo/type", "772"),
            ("sys/class/net/dummy0/type", "1"),
            ("sys/class/net/dummy0/operstate", "down"),
            ("sys/class/net/ens5/type", "1"),
            ("sys/class/net/ens5/operstate", "up"),
        ];
        let (_root, system) = machine(&files);
        for level in [Level::Note, Level::Problem] {
            let checks = checks(&system, level);
            let check = checks.iter().find(|check| check.name == "devices").unwrap();
            assert_eq!(check.level, level);
            assert!(check.found.contains("no RDMA device on this machine"), "{check:?}");
            let remedy = check.remedy.as_deref().unwrap();
            assert!(remedy.contains("rdma link add rxe0 type rxe netdev ens5"), "{remedy}");
        }
        assert_eq!(ethernet_interface(&machine(&files[..2]).1), None);
        assert_eq!(ethernet_interface(&machine(&files[..4]).1).as_deref(), Some("dummy0"));
    }
}
