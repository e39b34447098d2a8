//! What the protocol's source says: messages, their parts and constants, so that nothing of it can be
//! missing in the dissector unnoticed.

use std::collections::BTreeMap;
use std::path::Path;

/// A struct of the wire.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// Its name.
    pub(crate) name: String,
    /// Kind and length if it is a message, rather than a part of messages.
    pub(crate) message: Option<(u16, usize)>,
    /// Names and types of its fields.
    pub(crate) fields: Vec<(String, String)>,
}

/// A constant of a module of constants: a bit, or a value.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    /// The module.
    pub(crate) module: String,
    /// Its name.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: u64,
}

/// Everything that is on the wire.
#[derive(Debug)]
pub(crate) struct Protocol {
    /// By name.
    pub(crate) layouts: BTreeMap<String, Layout>,
    /// Operations and flags.
    pub(crate) constants: Vec<Constant>,
    /// Names, values and texts of the statuses.
    pub(crate) statuses: Vec<(String, u32, String)>,
}

/// Files of the protocol that define what is on the wire.
const FILES: [&str; 8] =
    ["ids", "packet", "handshake", "operations", "identity", "xattr", "control", "data"];

/// Reads the source.
pub(crate) fn protocol() -> Protocol {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/src");
    let text = |file: &str| {
        let path = root.join(format!("{file}.rs"));
        let text = std::fs::read_to_string(&path).expect("a source file of the protocol");
        text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
    };
    let mut protocol =
        Protocol { layouts: BTreeMap::new(), constants: Vec::new(), statuses: Vec::new() };
    for file in FILES {
        protocol.take(&text(file));
    }
    protocol.statuses = statuses(&text("status"));
    protocol
}

impl Protocol {
    /// All messages in the order of their kinds.
    pub(crate) fn messages(&self) -> Vec<(u16, &Layout)> {
        let all = self.layouts.values();
        let mut messages: Vec<_> =
            all.filter_map(|layout| layout.message.map(|(kind, _)| (kind, layout))).collect();
        messages.sort_by_key(|(kind, _)| *kind);
        messages
    }

    fn take(&mut self, text: &str) {
        let mut module = None;
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if let Some(name) = line.strip_prefix("pub mod ") {
                module = name.strip_suffix(" {").map(str::to_owned);
            } else if line == "}" {
                module = None;
            }
            if let (Some(module), Some(rest)) = (&module, line.strip_prefix("pub const ")) {
                let (name, rest) = rest.split_once(": ").expect("a constant has a type");
                let (_, value) = rest.split_once(" = ").expect("a constant has a value");
                if !["KNOWN", "MASK"].contains(&name) {
                    let (module, name) = (module.clone(), name.to_owned());
                    self.constants.push(Constant { module, name, value: value_of(value) });
                }
                continue;
            }
            let Some((name, message)) = header(line) else { continue };
            let mut fields = Vec::new();
            for line in lines.by_ref().take_while(|line| *line != "}") {
                if let Some((field, kind)) = line.trim_start_matches("pub ").split_once(": ")
                    && !line.starts_with("//")
                {
                    fields.push((field.to_owned(), kind.trim_end_matches(',').to_owned()));
                }
            }
            // What is not for the wire has references or numbers of the machine.
            if fields.iter().all(|(_, kind)| kind != "usize" && !kind.contains(['&', '\''])) {
                self.layouts.insert(name.clone(), Layout { name, message, fields });
            }
        }
    }

    /// Length of a type, bytes.
    pub(crate) fn size_of(&self, kind: &str) -> usize {
        match kind {
            "u8" => 1,
            "U16" => 2,
            "U32" => 4,
            "U64" | "I64" => 8,
            _ => match kind.strip_prefix("[u8; ") {
                Some(count) => count.trim_end_matches(']').parse().expect("a number of bytes"),
                None => {
                    let layout = self.layouts.get(kind);
                    let layout = layout.unwrap_or_else(|| panic!("{kind} is no type of the wire"));
                    layout.fields.iter().map(|(_, kind)| self.size_of(kind)).sum()
                }
            },
        }
    }
}

/// The struct that a line begins.
fn header(line: &str) -> Option<(String, Option<(u16, usize)>)> {
    let body = line.strip_suffix(" {")?;
    if let Some(name) = body.strip_prefix("pub struct ") {
        return (!name.contains(['<', '$'])).then(|| (name.to_owned(), None));
    }
    let mut parts = body.strip_prefix("0x")?.split(", ");
    let kind = u16::from_str_radix(parts.next()?, 16).ok()?;
    let len_bytes = parts.next()?.parse().ok()?;
    Some((parts.next()?.to_owned(), Some((kind, len_bytes))))
}

fn value_of(text: &str) -> u64 {
    let text = text.trim_end_matches(';').replace('_', "");
    let digits = |prefix: &str, radix| {
        text.strip_prefix(prefix).and_then(|rest| u64::from_str_radix(rest, radix).ok())
    };
    let value = digits("0x", 16).or_else(|| digits("0o", 8)).or_else(|| text.parse().ok());
    value.unwrap_or_else(|| panic!("{text} is no number"))
}

/// Lines such as `NOT_FOUND = 2, "no such file or directory";`.
fn statuses(text: &str) -> Vec<(String, u32, String)> {
    let entry = |line: &str| {
        let (name, rest) = line.trim().split_once(" = ")?;
        let (value, text) = rest.split_once(", \"")?;
        let is_name = name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
        let value = is_name.then(|| value_of(value) as u32)?;
        Some((name.to_owned(), value, text.strip_suffix("\";")?.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// The dissector's word for a name: `FrameHeader` is `frame_header`.
pub(crate) fn snake(name: &str) -> String {
    let mut word = String::new();
    let mut before = ' ';
    for letter in name.chars() {
        if before.is_lowercase() && letter.is_uppercase() {
            word.push('_');
        }
        word.extend(letter.to_lowercase());
        before = letter;
    }
    word
}
