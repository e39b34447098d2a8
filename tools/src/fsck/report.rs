//! What a check found, as text and as JSON.

use std::fmt::Write;

use gannet_metaserver::check::{CheckReport, LogReport, Severity, StoreSummary, Summary};
use gannet_metaserver::log::decision::LogEnd;
use gannet_metaserver::log::superblock::Superblock;
use serde_json::{Value, json};

use crate::units::format_size;

/// The findings, one a line, behind what there is.
pub(super) fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    for log in &report.logs {
        log_text(&mut text, log);
    }
    match &report.state {
        Some(state) => state_text(&mut text, state),
        None => text += "the state of the file system was not checked: not all logs can be read\n",
    }
    for finding in report.findings.iter() {
        let _ = writeln!(text, "{finding}");
    }
    for (severity, kind, count, kept) in report.findings.counts() {
        let more = count - kept as u64;
        if more > 0 {
            let _ = writeln!(text, "{severity}: {more} more of {}", kind.word());
        }
    }
    let (errors, unfinished) =
        (report.findings.count(Severity::Error), report.findings.count(Severity::Unfinished));
    match (errors, unfinished) {
        (0, 0) => text += "clean\n",
        (0, _) => {
            let _ = writeln!(text, "clean, with {unfinished} unfinished operations");
        }
        _ => {
            let _ = writeln!(text, "{errors} errors, {unfinished} unfinished operations");
        }
    }
    text
}

fn end_text(end: Option<LogEnd>) -> &'static str {
    match end {
        Some(LogEnd::Clean) => "ends in order",
        Some(LogEnd::TornFrame) => "ends before a frame that a crash interrupted",
        Some(LogEnd::Remains) => "ends before remains of a frame that a crash interrupted",
        None => "could not be read to its end",
    }
}

fn log_text(text: &mut String, log: &LogReport) {
    let _ = write!(text, "{}: ", log.name);
    let Some(superblock) = &log.superblock else {
        *text += "no superblock\n";
        return;
    };
    let _ = writeln!(
        text,
        "reactor {} of {}, format {}, file system {}; {} frames, {} records, {}, run {}; {}",
        superblock.reactor,
        superblock.reactors,
        superblock.version,
        uuid(superblock),
        log.frames,
        log.records,
        format_size(log.end_bytes),
        log.term,
        end_text(log.end)
    );
}

fn uuid(superblock: &Superblock) -> String {
    format!("{:032x}", u128::from_be_bytes(superblock.file_system_uuid))
}

fn state_text(text: &mut String, state: &Summary) {
    let _ = writeln!(
        text,
        "{} files, {} directories, {} extents, {} sessions, {} kept answers",
        state.files, state.directories, state.extents, state.sessions, state.kept_replies
    );
    for store in &state.stores {
        let StoreSummary { store: id, target, blocks, zones, zone_blocks, mapped, free, lost } =
            store;
        let _ = write!(
            text,
            "store {id} of data server {target}: {blocks} blocks, {zone_blocks} of them in {zones} \
             zones of shards, {mapped} mapped, {free} free there"
        );
        if *lost > 0 {
            let _ = write!(text, "; the content of {lost} went with an earlier generation");
        }
        text.push('\n');
    }
}

/// The same as one object.
pub(super) fn json(report: &CheckReport) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            let place = &finding.place;
            let blocks = place.blocks.map(|(store, first, count)| {
                json!({ "store": store.0, "first": first.0, "count": count })
            });
            json!({
                "severity": severity_word(finding.severity),
                "kind": finding.kind.word(),
                "reactor": place.reactor,
                "shard": place.shard.map(|shard| shard.0),
                "inode": place.inode.map(|inode| inode.0),
                "path": place.path,
                "blocks": blocks,
                "log_offset": place.log_offset,
                "text": finding.text,
            })
        })
        .collect();
    let counts: Vec<Value> = report
        .findings
        .counts()
        .map(|(severity, kind, count, _)| {
            json!({
                "severity": severity_word(severity),
                "kind": kind.word(),
                "count": count,
            })
        })
        .collect();
    json!({
        "clean": report.findings.count(Severity::Error) == 0,
        "errors": report.findings.count(Severity::Error),
        "unfinished": report.findings.count(Severity::Unfinished),
        "logs": report.logs.iter().map(log_json).collect::<Vec<_>>(),
        "state": report.state.as_ref().map(state_json),
        "counts": counts,
        "findings": findings,
    })
}

fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Unfinished => "unfinished",
    }
}

fn log_json(log: &LogReport) -> Value {
    let end = match log.end {
        Some(LogEnd::Clean) => "clean",
        Some(LogEnd::TornFrame) => "torn-frame",
        Some(LogEnd::Remains) => "remains",
        None => "unreadable",
    };
    let superblock = log.superblock.as_ref().map(|superblock| {
        json!({
            "version": superblock.version.get(),
            "file_system": uuid(superblock),
            "reactor": superblock.reactor.get(),
            "reactors": superblock.reactors.get(),
            "stripe_width": superblock.stripe_width.get(),
            "stripe_blocks": superblock.stripe_blocks.get(),
            "map_version": superblock.map_version.get(),
            "features_compatible": superblock.features_compatible.get(),
        })
    });
    json!({
        "log": log.name,
        "superblock": superblock,
        "frames": log.frames,
        "records": log.records,
        "end_bytes": log.end_bytes,
        "run": log.term,
        "end": end,
    })
}

fn state_json(state: &Summary) -> Value {
    let stores: Vec<Value> = state
        .stores
        .iter()
        .map(|store| {
            json!({
                "store": store.store.0,
                "target": store.target.0,
                "blocks": store.blocks,
                "zones": store.zones,
                "zone_blocks": store.zone_blocks,
                "mapped": store.mapped,
                "free": store.free,
                "lost": store.lost,
            })
        })
        .collect();
    json!({
        "files": state.files,
        "directories": state.directories,
        "extents": state.extents,
        "sessions": state.sessions,
        "kept_replies": state.kept_replies,
        "stores": stores,
    })
}
