//! A report over names for people.

use std::fmt;

use super::report::{MetadataReport, OperationResult};
use crate::table::{build_and_machine, core_name, percent, us};

impl fmt::Display for MetadataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(self, f)?;
        writeln!(
            f,
            "{:<9} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>6} {:>6} {:>8} {:>7} {:>6} \
             {:>7}",
            "operation",
            "depth",
            "k/s",
            "lowest",
            "highest",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "tmpfs",
            "log",
            "srv ns",
            "cli ns",
            "req/op",
            "op/grp"
        )?;
        for result in &self.results {
            row(result, f)?;
        }
        writeln!(f)?;
        legend(self, f)?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

fn heading(report: &MetadataReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let settings = &report.settings;
    build_and_machine(&report.build, &report.machine, f)?;
    match (&settings.server, &settings.log) {
        (Some(server), _) => write!(f, "server {server}")?,
        (None, log) => {
            write!(f, "embedded server, log {}", log.as_deref().unwrap_or_default())?;
            if settings.fabric != "shm" {
                write!(f, ", over {}", settings.fabric)?;
            }
        }
    }
    let plural = if settings.reactors == 1 { "" } else { "s" };
    writeln!(
        f,
        ", {} reactor{plural}; client on core {}, server on core {}; {} files in {} directories; \
         medians of {}",
        settings.reactors,
        core_name(settings.core),
        core_name(settings.server_core),
        settings.files,
        settings.directories,
        settings.repeat
    )?;
    writeln!(f)
}

fn row(result: &OperationResult, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let latency = &result.latency;
    let (lowest, highest) = result.range();
    let whole = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    let per_group = result.log.map(|log| log.operations_per_group);
    writeln!(
        f,
        "{:<9} {:>5} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>10.1} {:>6} {:>6} {:>8} \
         {:>7.0} {:>6.1} {:>7}",
        result.operation,
        result.depth,
        result.operations_per_second / 1e3,
        lowest / 1e3,
        highest / 1e3,
        us(latency.p50_ns),
        us(latency.p99_ns),
        us(latency.p99_9_ns),
        us(latency.max_ns),
        percent(result.share_of_tmpfs),
        percent(result.share_of_group_commit),
        whole(result.server_busy_ns_per_operation),
        result.client_busy_ns_per_operation,
        result.requests_per_operation,
        per_group.map_or("-".to_owned(), |count| format!("{count:.1}")),
    )
}

fn legend(report: &MetadataReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(ceilings) = &report.ceilings {
        writeln!(f, "ceilings of this machine, same run:")?;
        for ceiling in &ceilings.tmpfs {
            writeln!(
                f,
                "  {:<9} by one thread on a tmpfs: {:>9.2} k/s",
                ceiling.operation,
                ceiling.operations_per_second / 1e3
            )?;
        }
        for ceiling in &ceilings.group_commits {
            let how = if ceiling.direct { "direct" } else { "through the page cache" };
            writeln!(
                f,
                "  {:<9} at depth {:>4}: {:>9.2} k/s, in {:.2} k/s synchronous writes of {} bytes \
                 ({how}; {} bytes a record)",
                ceiling.operation,
                ceiling.depth,
                ceiling.operations_per_second / 1e3,
                ceiling.groups_per_second / 1e3,
                ceiling.group_bytes,
                ceiling.record_bytes
            )?;
        }
    }
    for result in &report.results {
        if let Some(entries_per_second) = result.entries_per_second {
            let thousands = entries_per_second / 1e3;
            writeln!(f, "readdir at depth {}: {thousands:.1} k entries/s", result.depth)?;
        }
    }
    writeln!(
        f,
        "lowest, highest: of all runs; tmpfs: rate as a share of one thread's on a tmpfs; log: as a \
         share of what synchronous writes where the log is allow; srv ns, cli ns: busy time of server \
         and client per operation; req/op: requests per operation; op/grp: operations per group commit"
    )
}

#[cfg(test)]
mod tests {
    use crate::metadata::report::tests::example;

    #[test]
    fn the_table_shows_what_was_measured() {
        let text = example().to_string();
        let row = text.lines().find(|line| line.starts_with("create")).expect("a row");
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "create", "64", "200.00", "180.00", "220.00", "310.00", "400.00", "500.00",
                "900.0", "50", "%", "25", "%", "1500", "250", "1.0", "62.5"
            ]
        );
        assert!(text.contains("embedded server, log /log, 1 reactor; client on core 1"), "{text}");
        assert!(text.contains("create    by one thread on a tmpfs:    400.00 k/s"), "{text}");
        let group = "800.00 k/s, in 12.50 k/s synchronous writes of 8192 bytes (direct; 112 bytes";
        assert!(text.contains(group), "{text}");
        assert!(text.contains("readdir at depth 64: 2048.0 k entries/s"), "{text}");
    }

    #[test]
    fn columns_line_up() {
        let text = example().to_string();
        let lines: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.starts_with("operation"))
            .take_while(|line| !line.is_empty())
            .collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    }
}
