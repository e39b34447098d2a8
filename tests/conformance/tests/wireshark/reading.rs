//! What tshark reads in a capture with the dissector of `tools/wireshark`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::capture::Capture;

/// A field of a packet, as tshark found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Its abbreviation, as in a display filter.
    pub(crate) name: String,
    /// Its value as a display filter compares it.
    pub(crate) show: String,
    /// Its line.
    pub(crate) line: String,
    /// Its bytes, as digits.
    pub(crate) value: String,
}

/// The dissector's fields of one packet, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Only fields of Gannet, and what was found to be wrong.
    pub(crate) fields: Vec<Field>,
}

/// The dissector.
pub(crate) fn dissector() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/wireshark/gannet.lua")
}

/// Reads a capture; packets by their numbers.
pub(crate) fn read(capture: &Capture) -> BTreeMap<u32, Packet> {
    read_with(capture, &["-T", "pdml", "-J", "frame gannet"])
}

/// As [`read`], each packet a second time after all others, as Wireshark does when one is selected.
pub(crate) fn read_twice(capture: &Capture) -> BTreeMap<u32, Packet> {
    read_with(capture, &["-2", "-T", "pdml", "-J", "frame gannet"])
}

fn read_with(capture: &Capture, arguments: &[&str]) -> BTreeMap<u32, Packet> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("capture.pcap");
    capture.write(&path);
    let text = tshark(&path, arguments);
    let mut packets = BTreeMap::new();
    let mut number = 0;
    for line in text.lines() {
        let Some(field) = field_of(line) else { continue };
        // An empty line of the protocol's own, which tshark adds to some.
        if field.name == "_ws.lua.fake" {
            continue;
        }
        if field.name == "frame.number" {
            number = field.show.parse().expect("a packet's number");
            packets.insert(number, Packet::default());
        } else if field.name.starts_with("gannet.") || field.name.starts_with("_ws.") {
            let packet: &mut Packet = packets.get_mut(&number).expect("a packet has a number");
            packet.fields.push(field);
        }
    }
    packets
}

/// What tshark writes about a file, having loaded the dissector.
pub(crate) fn tshark(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(path)
        .arg("-X")
        .arg(format!("lua_script:{}", dissector().display()))
        .args(arguments)
        // Nothing of whoever runs the test.
        .env("HOME", "/nonexistent")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .output();
    let output = output.expect("tshark runs: tests/run conformance installs it");
    let errors = String::from_utf8_lossy(&output.stderr);
    let serious = errors.lines().filter(|line| !line.starts_with("Running as user"));
    let serious: Vec<&str> = serious.filter(|line| !line.trim().is_empty()).collect();
    assert!(output.status.success() && serious.is_empty(), "tshark: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The field that a line of PDML begins, if it begins one.
fn field_of(line: &str) -> Option<Field> {
    let line = line.trim_start();
    if !line.starts_with("<field ") && !line.starts_with("<proto ") {
        return None;
    }
    let attribute = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=\""))?;
        Some(unescaped(rest.split_once('"')?.0))
    };
    Some(Field {
        name: attribute("name")?,
        show: attribute("show").unwrap_or_default(),
        line: attribute("showname").unwrap_or_default(),
        value: attribute("value").unwrap_or_default(),
    })
}

fn unescaped(text: &str) -> String {
    let entities =
        [("&quot;", "\""), ("&lt;", "<"), ("&gt;", ">"), ("&apos;", "'"), ("&amp;", "&")];
    entities.iter().fold(text.to_owned(), |text, (entity, plain)| text.replace(entity, plain))
}

impl Field {
    /// Whether a field of two values is set; versions of tshark write it in two ways.
    pub(crate) fn is_true(&self) -> bool {
        ["1", "True"].contains(&self.show.as_str())
    }
}

impl Packet {
    /// All fields with this abbreviation.
    pub(crate) fn all<'a, 'b>(
        &'a self,
        name: &'b str,
    ) -> impl Iterator<Item = &'a Field> + use<'a, 'b> {
        self.fields.iter().filter(move |field| field.name == name)
    }

    /// The first field with this abbreviation.
    pub(crate) fn one(&self, name: &str) -> &Field {
        self.all(name).next().unwrap_or_else(|| panic!("no {name} among {self:#?}"))
    }

    /// The values of a field as a display filter compares them.
    pub(crate) fn shown(&self, name: &str) -> Vec<&str> {
        self.all(name).map(|field| field.show.as_str()).collect()
    }

    /// Whether the dissector found this: one of its `gannet.` findings.
    pub(crate) fn has(&self, finding: &str) -> bool {
        self.all(finding).next().is_some()
    }

    /// What was found to be wrong, in words.
    pub(crate) fn complaints(&self) -> Vec<&str> {
        self.shown("_ws.expert.message")
    }
}
