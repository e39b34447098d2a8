//! A configuration file with its text, so that errors can name lines.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gannet_fabric::Address;
use gannet_runtime::idle::IdlePolicy;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use toml::{Spanned, Value};

use super::fabric::parse_network;
use crate::addresses::{check_list, check_listen};
use crate::failure::Failure;
use crate::units::{format_duration, format_size_exact, parse_duration, parse_size};

/// Longest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Highest number of a core that can be named.
pub(super) const CORE_MAX: i64 = 1023;

/// A key that may be absent. Values are read untyped, so that a wrong type is told like any other
/// wrong value.
pub(super) type Field = Option<Spanned<Value>>;

/// A configuration file.
#[derive(Debug)]
pub(super) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Document, Failure> {
        let metadata = std::fs::metadata(path)
            .map_err(|error| usage_of(Failure::path("reading the configuration", path, &error)))?;
        if metadata.is_file() && metadata.len() > FILE_BYTES_MAX {
            return Err(Failure::usage(format!(
                "{}: a configuration has at most {} bytes, this file has {}",
                path.display(),
                FILE_BYTES_MAX,
                metadata.len()
            )));
        }
        let bytes = std::fs::read(path)
            .map_err(|error| usage_of(Failure::path("reading the configuration", path, &error)))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Document::new(path, text)),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let line = line_of(error.as_bytes(), valid);
                Err(Failure::usage(format!("{}:{line}: not UTF-8 text", path.display())))
            }
        }
    }

    pub(super) fn new(path: &Path, text: String) -> Document {
        Document { path: path.to_path_buf(), text }
    }

    /// Parses the whole file.
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        toml::from_str(&self.text).map_err(|error| {
            let what = error.message().replace("unknown field", "unknown key");
            self.refuse_at(error.span(), what.trim_end())
        })
    }

    /// A refusal of the value of `key` at `span`.
    pub(super) fn refuse(&self, span: Range<usize>, key: &str, what: impl Display) -> Failure {
        self.refuse_at(Some(span), format!("{key}: {what}"))
    }

    /// A refusal because a key is missing; `example` is what to add.
    pub(super) fn missing(&self, key: &str, example: &str) -> Failure {
        self.refuse_at(None, format!("{key} is missing: add {example}"))
    }

    pub(super) fn refuse_at(&self, span: Option<Range<usize>>, what: impl Display) -> Failure {
        let path = self.path.display();
        match span {
            Some(span) => {
                let line = line_of(self.text.as_bytes(), span.start);
                Failure::usage(format!("{path}:{line}: {what}"))
            }
            None => Failure::usage(format!("{path}: {what}")),
        }
    }

    /// A text, if the key is there.
    pub(super) fn text<'a>(&self, key: &str, field: &'a Field) -> Result<Option<&'a str>, Failure> {
        let Some(value) = field else { return Ok(None) };
        match value.as_ref() {
            Value::String(text) => Ok(Some(text)),
            other => Err(self.wrong_type(key, value, other, "a text in quotes")),
        }
    }

    /// A text that `parse` understands, if the key is there.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &str,
        field: &Field,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Failure> {
        let (Some(text), Some(value)) = (self.text(key, field)?, field) else { return Ok(None) };
        parse(text).map(Some).map_err(|error| self.refuse(value.span(), key, error))
    }

    /// An absolute path, if the key is there.
    pub(super) fn path(&self, key: &str, field: &Field) -> Result<Option<PathBuf>, Failure> {
        self.parsed(key, field, |text| {
            let path = Path::new(text);
            match (path.is_absolute(), text.contains('\0')) {
                (true, false) => Ok(path.to_path_buf()),
                (true, true) => Err(format!("{text:?} has a NUL byte")),
                (false, _) => Err(format!("{text:?} is not an absolute path: begin it with /")),
            }
        })
    }

    /// An address of a fabric, if the key is there.
    pub(super) fn address(&self, key: &str, field: &Field) -> Result<Option<Address>, Failure> {
        self.parsed(key, field, str::parse)
    }

    /// An address that a server can listen at, if the key is there.
    pub(super) fn server(&self, key: &str, field: &Field) -> Result<Option<Address>, Failure> {
        let Some(address) = self.address(key, field)? else { return Ok(None) };
        match (check_listen(&address), field) {
            (Err(error), Some(value)) => Err(self.refuse(value.span(), key, error)),
            _ => Ok(Some(address)),
        }
    }

    /// An address, or a list of addresses, that a server can listen at, if the key is there.
    pub(super) fn listen(&self, key: &str, field: &Field) -> Result<Option<Vec<Address>>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let wanted =
            "an address in quotes, or a list of such, as in \"shm:///run/gannet/meta.sock\"";
        let items = match value.as_ref() {
            Value::Array(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut addresses = Vec::with_capacity(items.len());
        for item in items {
            let Value::String(text) = item else {
                return Err(self.wrong_type(key, value, item, wanted));
            };
            let address = text.parse().map_err(|error| self.refuse(value.span(), key, error))?;
            addresses.push(address);
        }
        match check_list(&addresses) {
            Ok(()) => Ok(Some(addresses)),
            Err(error) => Err(self.refuse(value.span(), key, error)),
        }
    }

    /// A list of different networks, if the key is there.
    pub(super) fn networks(
        &self,
        key: &str,
        field: &Field,
        count_max: usize,
    ) -> Result<Option<Vec<IpNet>>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let wanted = "a list of addresses or networks in quotes, as in [\"192.168.1.0/24\"]";
        let Value::Array(items) = value.as_ref() else {
            return Err(self.wrong_type(key, value, value.as_ref(), wanted));
        };
        if items.len() > count_max {
            let what = format!("{} networks: at most {count_max}", items.len());
            return Err(self.refuse(value.span(), key, what));
        }
        let mut networks = Vec::with_capacity(items.len());
        for item in items {
            let Value::String(text) = item else {
                return Err(self.wrong_type(key, value, item, wanted));
            };
            let network =
                parse_network(text).map_err(|error| self.refuse(value.span(), key, error))?;
            if networks.contains(&network) {
                let what = format!("{network} is named twice");
                return Err(self.refuse(value.span(), key, what));
            }
            networks.push(network);
        }
        Ok(Some(networks))
    }

    /// An idle policy, if the key is there.
    pub(super) fn idle(&self, key: &str, field: &Field) -> Result<Option<IdlePolicy>, Failure> {
        self.parsed(key, field, str::parse)
    }

    /// Yes or no, if the key is there.
    pub(super) fn boolean(&self, key: &str, field: &Field) -> Result<Option<bool>, Failure> {
        let Some(value) = field else { return Ok(None) };
        match value.as_ref() {
            Value::Boolean(wanted) => Ok(Some(*wanted)),
            other => Err(self.wrong_type(key, value, other, "true or false")),
        }
    }

    /// A whole number in a range, if the key is there.
    pub(super) fn integer(
        &self,
        key: &str,
        field: &Field,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let range = format!("{} to {}", allowed.start(), allowed.end());
        match value.as_ref() {
            Value::Integer(number) if allowed.contains(number) => Ok(Some(*number)),
            Value::Integer(number) => {
                Err(self.refuse(value.span(), key, format!("{number} is out of range: {range}")))
            }
            other => {
                Err(self.wrong_type(key, value, other, &format!("a whole number from {range}")))
            }
        }
    }

    /// A list of different whole numbers in a range, if the key is there.
    pub(super) fn integers(
        &self,
        key: &str,
        field: &Field,
        allowed: RangeInclusive<i64>,
    ) -> Result<Option<Vec<i64>>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let range = format!("{} to {}", allowed.start(), allowed.end());
        let wanted = format!("a list of whole numbers from {range}, as in [0, 1]");
        let Value::Array(items) = value.as_ref() else {
            return Err(self.wrong_type(key, value, value.as_ref(), &wanted));
        };
        let mut numbers = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::Integer(number) if numbers.contains(number) => {
                    let what = format!("{number} is named twice");
                    return Err(self.refuse(value.span(), key, what));
                }
                Value::Integer(number) if allowed.contains(number) => numbers.push(*number),
                Value::Integer(number) => {
                    let what = format!("{number} is out of range: {range}");
                    return Err(self.refuse(value.span(), key, what));
                }
                other => return Err(self.wrong_type(key, value, other, &wanted)),
            }
        }
        Ok(Some(numbers))
    }

    /// A size in a range, as a text with a unit or as a number of bytes, if the key is there.
    pub(super) fn size(
        &self,
        key: &str,
        field: &Field,
        allowed: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let bytes = match value.as_ref() {
            Value::String(text) => {
                parse_size(text).map_err(|error| self.refuse(value.span(), key, error))?
            }
            Value::Integer(number) if *number >= 0 => number.unsigned_abs(),
            other => return Err(self.wrong_type(key, value, other, "a size, as in \"512M\"")),
        };
        if allowed.contains(&bytes) {
            return Ok(Some(bytes));
        }
        let (least, most) =
            (format_size_exact(*allowed.start()), format_size_exact(*allowed.end()));
        let what = format!("{} is out of range: {least} to {most}", format_size_exact(bytes));
        Err(self.refuse(value.span(), key, what))
    }

    /// A duration in a range, if the key is there.
    pub(super) fn duration(
        &self,
        key: &str,
        field: &Field,
        allowed: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, Failure> {
        let Some(value) = field else { return Ok(None) };
        let Value::String(text) = value.as_ref() else {
            let wanted = "a duration with its unit in quotes, as in \"10s\"";
            return Err(self.wrong_type(key, value, value.as_ref(), wanted));
        };
        let duration =
            parse_duration(text).map_err(|error| self.refuse(value.span(), key, error))?;
        if allowed.contains(&duration) {
            return Ok(Some(duration));
        }
        let (least, most) = (format_duration(*allowed.start()), format_duration(*allowed.end()));
        let what = format!("{text} is out of range: {least} to {most}");
        Err(self.refuse(value.span(), key, what))
    }

    fn wrong_type(&self, key: &str, at: &Spanned<Value>, found: &Value, wanted: &str) -> Failure {
        let found = match found {
            Value::String(text) => format!("{text:?}"),
            Value::Array(_) | Value::Table(_) => format!("a {}", found.type_str()),
            other => other.to_string(),
        };
        self.refuse(at.span(), key, format!("{found} is not {wanted}"))
    }
}

/// A configuration that cannot be read is a mistake in how the command was called.
fn usage_of(failure: Failure) -> Failure {
    Failure::usage(failure.message)
}

/// The line of a byte offset, counted from 1.
fn line_of(text: &[u8], offset: usize) -> usize {
    let before = &text[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
