//! What Gannet needs of any machine: a kernel with io_uring, cores, a quick clock, memory.

use gannet_disk::any::AnyDisk;
use gannet_disk::uring::UringOptions;

use super::system::{System, chosen, count_of_list};
use super::{Area, Check, Level};
use crate::units::format_size;

/// From here on rings spare the processor the interrupts.
const KERNEL_WANTED: (u64, u64) = (5, 19);
/// Clocks that programs read without a system call.
const CLOCKS_QUICK: [&str; 4] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];
/// Clocks that take a read of a device.
const CLOCKS_SLOW: [&str; 4] = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"];
/// What the kernel does with transparent huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";
/// Less does not do for a server and a client with their default settings.
const MEMORY_WANTED_BYTES: u64 = 1 << 30;

/// All checks; `ring` says why no io_uring can be had, if so.
pub(super) fn checks(system: &System, ring: impl Fn() -> Result<(), String>) -> Vec<Check> {
    let checks =
        [kernel(system), io_uring(system, ring()), cores(system), clock(system), memory(system)];
    checks.into_iter().chain(huge_pages(system)).collect()
}

/// Sets a ring up as the servers do, and takes it down again.
pub(super) fn try_ring() -> Result<(), String> {
    AnyDisk::new(&UringOptions::default()).map(drop).map_err(|error| error.to_string())
}

fn check(level: Level, name: &str, found: String, remedy: &str) -> Check {
    Check::bad(level, Area::Machine, name, found, remedy)
}

fn kernel(system: &System) -> Check {
    let name = "kernel";
    let Some(release) = system.read("/proc/sys/kernel/osrelease") else {
        let remedy = "mount /proc; without it little can be checked";
        return check(Level::Warning, name, "its version cannot be read".to_owned(), remedy);
    };
    let found = format!("Linux {release}");
    match version(&release) {
        Some(version) if version < KERNEL_WANTED => {
            let (major, minor) = KERNEL_WANTED;
            let remedy = format!("Linux {major}.{minor} or newer makes io_uring quicker");
            check(Level::Warning, name, found, &remedy)
        }
        _ => Check::ok(Area::Machine, name, found),
    }
}

/// Major and minor number of a release such as `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u64, u64)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn io_uring(system: &System, ring: Result<(), String>) -> Check {
    let name = "io_uring";
    let reason = match ring {
        Ok(()) => return Check::ok(Area::Machine, name, "a ring can be set up"),
        Err(reason) => reason,
    };
    let remedy = match system.read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("2") => "it is switched off for all: sysctl kernel.io_uring_disabled=0",
        Some("1") => {
            "it is for privileged processes only: join the group of sysctl \
             kernel.io_uring_group, or sysctl kernel.io_uring_disabled=0"
        }
        Some(_) => {
            "the kernel has it, so something forbids it to this process: in a container, allow \
             io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile"
        }
        None => {
            "use a kernel with CONFIG_IO_URING; in a container, allow io_uring_setup, \
             io_uring_enter and io_uring_register in the seccomp profile"
        }
    };
    check(Level::Problem, name, reason, remedy)
}

fn cores(system: &System) -> Check {
    let name = "cores";
    let allowed = system.field("/proc/self/status", "Cpus_allowed_list");
    // Also names cores that are not there.
    let present = system.read("/sys/devices/system/cpu/online");
    let count = |list: Option<String>| list.as_deref().and_then(count_of_list);
    let (allowed, present) = (count(allowed), count(present));
    match allowed.into_iter().chain(present).min() {
        Some(1) => {
            let found = "this process may use 1".to_owned();
            let remedy = "a client and a server that share a core wait for each other: give 2 or \
                          more, and leave idle = \"adaptive\"";
            check(Level::Warning, name, found, remedy)
        }
        Some(count) => Check::ok(Area::Machine, name, format!("this process may use {count}")),
        None => Check::ok(Area::Machine, name, "the system does not tell how many"),
    }
}

fn clock(system: &System) -> Check {
    let name = "clock";
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let Some(clock) = system.read(path) else {
        return Check::ok(Area::Machine, name, "the system does not tell which");
    };
    if CLOCKS_SLOW.contains(&clock.as_str()) {
        let remedy = "each turn of a reactor reads the clock, and this one is slow: see why the \
                      kernel does not use the processor's own (dmesg | grep -i clocksource)";
        return check(Level::Warning, name, clock, remedy);
    }
    let how = if CLOCKS_QUICK.contains(&clock.as_str()) { ", which is quick to read" } else { "" };
    Check::ok(Area::Machine, name, format!("{clock}{how}"))
}

fn memory(system: &System) -> Check {
    let name = "memory";
    let available = system.field("/proc/meminfo", "MemAvailable");
    let available = available.as_deref().and_then(kibibytes);
    let limit = control_group_limit(system);
    let Some(bytes) = available.into_iter().chain(limit).min() else {
        return Check::ok(Area::Machine, name, "the system does not tell how much");
    };
    let told = |what: &str, bytes: u64| format!("{} {what}", format_size(bytes));
    let found: Vec<String> = [
        available.map(|bytes| told("available", bytes)),
        limit.map(|bytes| told("allowed by the control group", bytes)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let found = found.join(", ");
    if bytes < MEMORY_WANTED_BYTES {
        let remedy = "use smaller stores in memory, a lower --depth and smaller grants_max, or \
                      give more memory";
        return check(Level::Warning, name, found, remedy);
    }
    Check::ok(Area::Machine, name, found)
}

/// The bytes of a value such as `24657312 kB`.
fn kibibytes(value: &str) -> Option<u64> {
    value.split(' ').next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory that the control groups of this process allow it, of either version; `None` if they do
/// not limit it.
fn control_group_limit(system: &System) -> Option<u64> {
    let groups = system.read("/proc/self/cgroup")?;
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or("/"));
        let (top, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // A group is also limited by those that it is in.
        let ancestors = std::path::Path::new(group).ancestors();
        let paths = ancestors.map(|group| format!("{top}{}/{file}", group.display()));
        paths.filter_map(|path| system.read(&path)?.parse::<u64>().ok()).collect()
    });
    // Version 1 says "no limit" as the largest number of whole pages.
    limits.filter(|bytes| *bytes < 1 << 60).min()
}

/// What the kernel does with large mappings, whose use of huge pages Gannet asks for.
fn huge_pages(system: &System) -> Option<Check> {
    let read = |file: &str| {
        let text = system.read(&format!("{HUGE_PAGES}/{file}"))?;
        chosen(&text).map(str::to_owned)
    };
    let (private, shared) = (read("enabled")?, read("shmem_enabled").unwrap_or_default());
    let found = format!("private memory: {private}, shared memory: {shared}");
    let off = |setting: &str| ["never", "deny", ""].contains(&setting);
    let mut remedy =
        "large buffers cost fewer translation misses with them; where that matters:".to_owned();
    for (setting, file, value) in
        [(&private, "enabled", "madvise"), (&shared, "shmem_enabled", "advise")]
    {
        if off(setting) {
            remedy.push_str(&format!("\necho {value} > {HUGE_PAGES}/{file}"));
        }
    }
    if off(&private) || off(&shared) {
        return Some(check(Level::Note, "huge pages", found, &remedy));
    }
    Some(Check::ok(Area::Machine, "huge pages", found))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::system::tests::machine;
    use super::*;

    /// Level and text of a check on a machine made of these files.
    fn of(name: &str, files: &[(&str, &str)]) -> (Level, String) {
        let (_root, system) = machine(files);
        let checks = checks(&system, || Err("io_uring_setup: refused".to_owned()));
        let found = checks.into_iter().find(|check| check.name == name).unwrap();
        (found.level, format!("{} | {}", found.found, found.remedy.unwrap_or_default()))
    }

    #[test]
    fn kernels_are_told_apart() {
        for (release, level) in [
            ("6.1.0-13-amd64", Level::Ok),
            ("5.19.0", Level::Ok),
            ("5.10.0-26-amd64", Level::Warning),
            ("4.19", Level::Warning),
            ("six", Level::Ok),
        ] {
            let (found, text) = of("kernel", &[("proc/sys/kernel/osrelease", release)]);
            assert_eq!(found, level, "{text}");
            assert!(text.contains(release), "{text}");
        }
        assert_eq!(of("kernel", &[]).0, Level::Warning);
    }

    #[test]
    fn a_refused_ring_is_a_problem_with_the_remedy_that_fits() {
        let setting = "proc/sys/kernel/io_uring_disabled";
        for (files, hint) in [
            (&[(setting, "2")][..], "kernel.io_uring_disabled=0"),
            (&[(setting, "1")], "kernel.io_uring_group"),
            (&[(setting, "0")], "seccomp"),
            (&[], "CONFIG_IO_URING"),
        ] {
            let (level, text) = of("io_uring", files);
            assert_eq!(level, Level::Problem);
            assert!(text.contains("io_uring_setup: refused") && text.contains(hint), "{text}");
        }
        let (_root, system) = machine(&[]);
        let found = io_uring(&system, Ok(()));
        assert_eq!((found.level, found.remedy), (Level::Ok, None));
    }

    #[test]
    fn one_core_is_too_few() {
        let status = "proc/self/status";
        for (allowed, online, level, hint) in [
            ("0-7", "0-3", Level::Ok, "use 4"),
            ("2", "0-3", Level::Warning, "use 1"),
            ("0-7", "0", Level::Warning, "use 1"),
        ] {
            let allowed = format!("Cpus_allowed_list:\t{allowed}");
            let files = [(status, allowed.as_str()), ("sys/devices/system/cpu/online", online)];
            let (found, text) = of("cores", &files);
            assert_eq!(found, level, "{text}");
            assert!(text.contains(hint), "{text}");
        }
    }

    #[test]
    fn slow_clocks_are_named() {
        let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        for (clock, level) in
            [("tsc", Level::Ok), ("hpet", Level::Warning), ("a-new-clock", Level::Ok)]
        {
            let (found, text) = of("clock", &[(path, clock)]);
            assert_eq!(found, level, "{text}");
            assert!(text.contains(clock), "{text}");
        }
    }

    #[test]
    fn the_smallest_limit_of_memory_counts() {
        let info = ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB");
        let two = ("sys/fs/cgroup/a/memory.max", "max");
        let (level, text) = of("memory", &[info, ("proc/self/cgroup", "0::/a/b"), two]);
        assert_eq!(level, Level::Ok);
        assert!(text.starts_with("4.0 GiB available |"), "{text}");

        let outer = ("sys/fs/cgroup/a/memory.max", "536870912");
        let inner = ("sys/fs/cgroup/a/b/memory.max", "max");
        let (level, text) = of("memory", &[info, ("proc/self/cgroup", "0::/a/b"), outer, inner]);
        assert_eq!(level, Level::Warning);
        assert!(text.contains("512.0 MiB allowed by the control group"), "{text}");

        let old = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648");
        let top = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
        let (level, text) = of("memory", &[info, ("proc/self/cgroup", "4:memory:/a"), old, top]);
        assert_eq!(level, Level::Ok);
        assert!(text.contains("2.0 GiB allowed"), "{text}");
        assert!(of("memory", &[]).1.contains("does not tell"));
    }

    #[test]
    fn huge_pages_are_optional() {
        let private = ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        let shared = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
        let (level, _) = of("huge pages", &[private, (shared, "always [advise] never")]);
        assert_eq!(level, Level::Ok);
        let (level, text) = of("huge pages", &[private, (shared, "always advise [never]")]);
        assert_eq!(level, Level::Note);
        assert!(text.contains("shared memory: never"), "{text}");
        assert!(text.contains("advise > ") && !text.contains("madvise > "), "{text}");
        let (_root, system) = machine(&[]);
        assert_eq!(huge_pages(&system), None);
    }
}
