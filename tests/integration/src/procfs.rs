//! Processes as the kernel shows them.

use std::path::PathBuf;
use std::time::Duration;

/// Names of what a process maps, by `/proc/PID/maps`, each once.
///
/// # Panics
/// If the process is gone or another user's.
#[must_use]
pub fn mapped(pid: u32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps of a process");
    // address perms offset device inode name
    let name = |line: &str| line.splitn(6, ' ').nth(5).map(|name| name.trim().to_owned());
    let mut names: Vec<String> = maps.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// What the descriptors of a process refer to, by `/proc/PID/fd`.
///
/// # Panics
/// If the process is gone or another user's.
#[must_use]
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fd of a process");
    // A descriptor may be closed between its listing and its reading.
    descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// Bytes that a process moved by system calls or to and from storage, whichever is more.
///
/// # Panics
/// If the process is gone or another user's, or the kernel does not count.
#[must_use]
pub fn io_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("io of a process");
    let value = |name: &str| -> u64 {
        let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {io}"))
    };
    (value("rchar") + value("wchar")).max(value("read_bytes") + value("write_bytes"))
}

/// Resident memory of a process, bytes.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// Processor time that a process used so far, all its threads, in user and kernel mode.
///
/// # Panics
/// If the process is gone.
#[must_use]
pub fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat of a process");
    // The name, in parentheses, may itself have spaces and parentheses; state is the third field.
    let fields: Vec<&str> =
        stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().collect();
    let ticks = |field: usize| -> u64 { fields[field - 3].parse().expect("a number") };
    let nanoseconds_per_tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    Duration::from_nanos((ticks(14) + ticks(15)) * nanoseconds_per_tick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let pid = std::process::id();
        assert!(mapped(pid).iter().any(|name| name == "[stack]"), "{:?}", mapped(pid));
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().canonicalize().expect("a path");
        assert!(open_files(pid).contains(&path));
        let before = processor_time(pid);
        while processor_time(pid) < before + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        std::fs::write(&path, vec![1; 100_000]).expect("written");
        assert!(io_bytes(pid) >= 100_000);
        assert!(resident_bytes(pid) > 100_000);
    }
}
