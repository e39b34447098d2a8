//! Keeps `docs/wire.md` true: the tables of messages in it are made from the source.
//!
//! After a change of a message run the test once with `GANNET_BLESS=1` and read the difference.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

const BEGIN: &str = "<!-- messages: made from proto/src by proto/tests/wire_document.rs -->\n";
const END: &str = "<!-- end of messages -->\n";

/// Bytes of a field's type.
fn size_of(type_name: &str) -> usize {
    match type_name {
        "u8" => 1,
        "U16" => 2,
        "U32" => 4,
        "U64" | "I64" => 8,
        "Handle" | "RequestHeader" | "BufferRef" => 16,
        "ReplyHeader" => 24,
        "Trailer" => 32,
        "Attributes" => 72,
        array => {
            let inner = array.trim_start_matches('[').trim_end_matches(']');
            let (element, count) = inner.split_once("; ").unwrap_or_else(|| panic!("{array}"));
            size_of(element) * count.parse::<usize>().unwrap()
        }
    }
}

struct Item {
    heading: String,
    doc: String,
    fields: Vec<(String, String, String)>,
}

/// All messages and shared structs of a source file, in its order.
fn items(source: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut doc = String::new();
    let mut lines = source.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text.trim());
            doc.push(' ');
            continue;
        }
        let message = line.starts_with("0x") && line.ends_with('{');
        let shared =
            line.starts_with("pub struct ") && line.ends_with('{') && !line.contains(['<', '$']);
        if message || (shared && !line.contains("Names")) {
            let heading = if message {
                let mut parts = line.trim_end_matches(" {").split(", ");
                let (kind, size) = (parts.next().unwrap(), parts.next().unwrap());
                format!("{} (kind {kind}, {size} bytes)", parts.next().unwrap())
            } else {
                let name = line.trim_start_matches("pub struct ").trim_end_matches(" {");
                format!("{name} (part of messages)")
            };
            let mut fields = Vec::new();
            let mut field_doc = String::new();
            for line in lines.by_ref().take_while(|line| *line != "}") {
                if let Some(text) = line.strip_prefix("///") {
                    field_doc.push_str(text.trim());
                    field_doc.push(' ');
                } else if let Some((name, kind)) = line.trim_start_matches("pub ").split_once(": ")
                {
                    let kind = kind.trim_end_matches(',').to_owned();
                    fields.push((name.to_owned(), kind, std::mem::take(&mut field_doc)));
                }
            }
            items.push(Item { heading, doc: std::mem::take(&mut doc), fields });
        } else if !line.starts_with('#') && !line.starts_with("message!") {
            let derives = matches!(line, "Clone," | "Copy," | "Debug," | "Default," | "Eq," | ")]")
                || line.starts_with("zerocopy::")
                || line.starts_with("PartialEq")
                || line.starts_with("Clone, Copy")
                || matches!(line, "FromBytes," | "IntoBytes," | "Immutable,")
                || matches!(line, "KnownLayout," | "Unaligned,");
            if !derives {
                doc.clear();
            }
        }
    }
    items
}

fn tables() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = String::new();
    for (file, title) in [
        ("ids", "Shared"),
        ("packet", "Packets"),
        ("handshake", "Handshake"),
        ("operations", "Operations channel"),
        ("identity", "Identities"),
        ("xattr", "Extended attributes"),
        ("control", "Back control channel"),
        ("data", "Data session"),
    ] {
        let source = std::fs::read_to_string(root.join(format!("{file}.rs"))).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        writeln!(out, "## {title}\n").unwrap();
        for item in items(source) {
            let known = |kind: &str| kind.chars().next().is_some_and(|c| c == '[' || c != '&');
            if item.fields.is_empty() || !item.fields.iter().all(|(_, kind, _)| known(kind)) {
                continue;
            }
            if item.fields.iter().any(|(_, kind, _)| kind.contains("usize") || kind.contains("'a"))
            {
                continue;
            }
            let doc = item.doc.replace("[`", "`").replace("`]", "`").replace("crate::", "");
            writeln!(out, "### {}\n\n{}\n", item.heading, doc.trim()).unwrap();
            writeln!(out, "| at | bytes | field | meaning |\n|---:|---:|---|---|").unwrap();
            let mut at = 0;
            for (name, kind, doc) in &item.fields {
                let doc = doc.replace("[`", "`").replace("`]", "`").replace("crate::", "");
                let bytes = size_of(kind);
                writeln!(out, "| {at} | {bytes} | `{name}` | {} |", doc.trim()).unwrap();
                at += bytes;
            }
            out.push('\n');
            if let Some((_, rest)) = item.heading.split_once(", ") {
                let stated: usize = rest.trim_end_matches(" bytes)").parse().unwrap();
                assert_eq!(at, stated, "{}", item.heading);
            }
        }
    }
    out
}

#[test]
fn the_wire_document_matches_the_source() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/wire.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the document has the begin marker");
    let (current, after) = rest.split_once(END).expect("the document has the end marker");
    let tables = tables();
    assert!(tables.matches("### ").count() >= 40, "too few messages found:\n{tables}");
    if std::env::var_os("GANNET_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).unwrap();
    } else {
        assert!(current == tables, "docs/wire.md is out of date: run with GANNET_BLESS=1");
    }
}
