//! What figures were taken on, so that they can be compared with others, or not be.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A machine, as far as it explains figures. What the system does not tell is empty or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's model.
    pub cpu_model: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Whether the system says that it runs in a virtual machine.
    pub virtual_machine: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// When the kernel gives huge pages to private memory: `always`, `madvise` or `never`.
    pub huge_pages: String,
    /// When it gives them to shared memory.
    pub huge_pages_shared: String,
}

impl Machine {
    /// The machine that this process runs on.
    #[must_use]
    pub fn of_this_process() -> Machine {
        let cpu = read("/proc/cpuinfo");
        let memory = read("/proc/meminfo");
        Machine {
            cpu_model: field(&cpu, "model name").unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            virtual_machine: field(&cpu, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: field(&memory, "MemTotal").map_or(0, kibibytes),
            huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            huge_pages_shared: chosen(&read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        }
    }
}

/// Memory that can be had without swapping, bytes; 0 if the system does not tell.
#[must_use]
pub(crate) fn memory_available_bytes() -> u64 {
    field(&read("/proc/meminfo"), "MemAvailable").map_or(0, kibibytes)
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The bytes of a value such as `24657312 kB`.
fn kibibytes(value: &str) -> u64 {
    let number = value.split(' ').next().and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// The word in brackets of a list such as `always [madvise] never`.
fn chosen(list: &str) -> String {
    let words = list.split_whitespace();
    words
        .filter_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_understood() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu vme\n";
        assert_eq!(field(cpuinfo, "model name"), Some("A Processor"));
        assert_eq!(field(cpuinfo, "flags"), Some("fpu vme"));
        assert_eq!(field(cpuinfo, "absent"), None);
        assert_eq!(field("MemTotal:       24657312 kB\n", "MemTotal"), Some("24657312 kB"));
        assert_eq!(kibibytes("24657312 kB"), 24_657_312 * 1024);
        assert_eq!(kibibytes("?"), 0);
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("always within_size\n"), "");
    }

    #[test]
    fn this_machine_has_cores_memory_and_a_kernel() {
        let machine = Machine::of_this_process();
        assert!(machine.cores >= 1);
        assert!(machine.memory_bytes > 64 << 20);
        assert!(machine.kernel.contains('.'), "{}", machine.kernel);
        assert!(memory_available_bytes() <= machine.memory_bytes);
    }
}
