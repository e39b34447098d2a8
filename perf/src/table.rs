//! A report for people.

use std::fmt;

use crate::machine::Machine;
use crate::report::{Build, Measurement, Report};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(self, f)?;
        write!(
            f,
            "{:<10} {:>6} {:>5} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10} {:>6} {:>6} {:>7}",
            "workload",
            "block",
            "depth",
            "k/s",
            "GB/s",
            "p50 us",
            "p90 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "copy",
            "floor",
            "srv ns"
        )?;
        let over_tcp = is_over_tcp(self);
        if over_tcp {
            write!(f, " {:>6} {:>6}", "echo", "trips")?;
        }
        writeln!(f)?;
        for result in &self.results {
            row(result, f)?;
            if over_tcp {
                let trips = result.latency_in_tcp_round_trips;
                let trips = trips.map_or("-".to_owned(), |trips| format!("{trips:.1} x"));
                write!(f, " {:>6} {trips:>6}", percent(result.share_of_tcp_echo))?;
            }
            writeln!(f)?;
        }
        if self.ceilings.is_some() {
            writeln!(f)?;
            ceilings(self, f)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// What was measured, and on what: two lines.
pub(crate) fn build_and_machine(
    build: &Build,
    machine: &Machine,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let commit = build.commit.as_deref().unwrap_or("unknown");
    writeln!(f, "gannet {} (commit {commit})", build.version)?;
    let kind = if machine.virtual_machine { ", virtual machine" } else { "" };
    writeln!(
        f,
        "{}, {} cores, {} memory{kind}, Linux {}",
        machine.cpu_model,
        machine.cores,
        size(machine.memory_bytes),
        machine.kernel
    )
}

/// A core in words.
pub(crate) fn core_name(core: Option<usize>) -> String {
    core.map_or("any".to_owned(), |core| core.to_string())
}

fn heading(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let settings = &report.settings;
    build_and_machine(&report.build, &report.machine, f)?;
    match (&settings.server, &settings.store, &settings.log) {
        (Some(server), ..) => write!(f, "server {server}")?,
        (None, store, log) => {
            let text = |place: &Option<String>| place.clone().unwrap_or_default();
            write!(f, "embedded server, store {}, log {}", text(store), text(log))?;
            if settings.fabric != "shm" {
                write!(f, ", over {}", settings.fabric)?;
            }
        }
    }
    writeln!(
        f,
        "; client on core {}, server on core {}; file of {}; {} completion, {} protection",
        core_name(settings.core),
        core_name(settings.server_core),
        size(settings.size_bytes),
        settings.completion,
        settings.protection
    )?;
    writeln!(f)
}

/// Whether there are figures of plain TCP to compare with.
fn is_over_tcp(report: &Report) -> bool {
    let ceilings = report.ceilings.as_ref();
    ceilings.is_some_and(|it| it.tcp_round_trip.is_some() || !it.tcp_echoes.is_empty())
}

/// A share in percent, a dash if there is none.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

/// Microseconds.
pub(crate) fn us(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

fn row(result: &Measurement, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let latency = &result.latency;
    write!(
        f,
        "{:<10} {:>6} {:>5} {:>9.1} {:>7.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>10.1} {:>6} {:>6} \
         {:>7}",
        result.workload,
        size(result.block_bytes as u64),
        result.depth,
        result.operations_per_second / 1e3,
        result.bytes_per_second / 1e9,
        us(latency.p50_ns),
        us(latency.p90_ns),
        us(latency.p99_ns),
        us(latency.p99_9_ns),
        us(latency.max_ns),
        percent(result.share_of_copy),
        percent(result.share_of_latency_floor),
        result.server_busy_ns_per_operation.map_or("-".to_owned(), |ns| format!("{ns:.0}")),
    )
}

fn ceilings(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Some(ceilings) = &report.ceilings else { return Ok(()) };
    writeln!(f, "ceilings of this machine, same run:")?;
    match &ceilings.round_trip {
        Some(round_trip) => writeln!(
            f,
            "  round trip of a cache line between the cores: {:.0} ns (fastest {:.0} ns)",
            round_trip.median_ns, round_trip.fastest_ns
        )?,
        None => writeln!(f, "  round trip between the cores: not measured, there is one core")?,
    }
    for copy in &ceilings.copies {
        writeln!(
            f,
            "  one-core copy for {:<9} {:>6}, depth {:>4}: {:>6.2} GB/s ({})",
            copy.workload,
            size(copy.block_bytes as u64),
            copy.depth,
            copy.bytes_per_second / 1e9,
            copy.best
        )?;
    }
    if let Some(round_trip) = &ceilings.tcp_round_trip {
        writeln!(
            f,
            "  polled round trip over TCP between the cores: {:.0} ns (fastest {:.0} ns)",
            round_trip.median_ns, round_trip.fastest_ns
        )?;
    }
    for echo in &ceilings.tcp_echoes {
        writeln!(
            f,
            "  plain service over TCP for {:<9} {:>6}, depth {:>4}: {:>7.1} k/s, {:>5.2} GB/s, p50 \
             {:.2} us, p99 {:.2} us (requests of {} bytes, notices of {})",
            echo.workload,
            size(echo.block_bytes as u64),
            echo.depth,
            echo.operations_per_second / 1e3,
            echo.bytes_per_second / 1e9,
            us(echo.p50_ns),
            us(echo.p99_ns),
            echo.request_bytes,
            echo.notice_bytes
        )?;
    }
    writeln!(
        f,
        "copy: bandwidth as a share of the one-core copy; floor: round trip and copy as a share of \
         the median; srv ns: server's busy time per request"
    )?;
    if is_over_tcp(report) {
        writeln!(
            f,
            "echo: rate and bandwidth as a share of the plain service over TCP; trips: the median \
             in round trips over TCP"
        )?;
    }
    Ok(())
}

/// A size in the largest unit of 1024 that leaves a whole number of it.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    match units.iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{}{unit}", (bytes + (1 << (shift - 1))) >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{example, example_over_tcp};

    #[test]
    fn the_table_shows_what_was_measured() {
        let text = example().to_string();
        let row = text.lines().find(|line| line.starts_with("randread")).expect("a row");
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "randread", "4K", "1", "600.0", "2.46", "1.80", "1.70", "2.00", "4.00", "90.0",
                "30", "%", "50", "%", "600"
            ]
        );
        assert!(text.contains("between the cores: 400 ns"), "{text}");
        assert!(text.contains("8.19 GB/s (memcpy)"), "{text}");
        assert!(!text.contains("TCP"), "nothing about a network without one: {text}");
    }

    #[test]
    fn over_tcp_the_table_compares_with_plain_tcp() {
        let text = example_over_tcp().to_string();
        let ends: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("randread"))
            .map(|line| line.split_whitespace().skip(15).collect())
            .collect();
        assert_eq!(ends, [vec!["-", "3.0", "x"], vec!["%", "-"]]);
        let row = text.lines().rfind(|line| line.starts_with("randread")).expect("a row");
        assert!(row.ends_with("80 %      -"), "{row:?}");
        assert!(text.contains("over TCP between the cores: 600 ns (fastest 550 ns)"), "{text}");
        assert!(text.contains("1250.0 k/s,  5.12 GB/s, p50 25.00 us, p99 40.00 us"), "{text}");
        assert!(text.contains("log ram, over tcp"), "{text}");
    }

    #[test]
    fn columns_line_up() {
        for report in [example(), example_over_tcp()] {
            let text = report.to_string();
            let lines: Vec<&str> = text
                .lines()
                .skip_while(|line| !line.starts_with("workload"))
                .take_while(|line| !line.is_empty())
                .collect();
            assert_eq!(lines.len(), 3);
            assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        }
    }

    #[test]
    fn sizes_are_rounded_to_a_unit() {
        for (bytes, text) in [(512, "512"), (4096, "4K"), (1536 << 10, "2M"), (24 << 30, "24G")] {
            assert_eq!(size(bytes), text);
        }
    }
}
