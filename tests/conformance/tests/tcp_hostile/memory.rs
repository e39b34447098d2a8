//! What the process uses, as the kernel counts it.

/// Resident memory of this process, bytes.
pub(crate) fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    let kibibytes: usize =
        line.trim().trim_end_matches(" kB").parse().expect("a number of kibibytes");
    kibibytes * 1024
}

/// Descriptors of this process.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors of this process").count()
}

/// How much more there is, in MiB, for messages.
pub(crate) fn growth_mib(before: usize, after: usize) -> f64 {
    (after as f64 - before as f64) / f64::from(1 << 20)
}
