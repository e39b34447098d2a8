//! Whether what hosts read can be explained by the operations having happened one after the other,
//! each as a whole, each between its submission and its completion.
//!
//! Operations of a file are nodes of a graph, and edges say what came before what: real time says
//! so, and so does what reads saw. A read saw, in each part of its range, the last write before it
//! that covers the part; bytes tell which write that was ([`super::content`]). From there the
//! checker goes on until nothing more follows: if a read saw `w`, any other write to that part came
//! before `w` or after the read. A cycle, or bytes that no possible write explains, is a violation.
//! What is reported is wrong for certain; the converse holds nearly always.
//!
//! A write of unknown outcome is a node without an end: if nobody saw it, it constrains nothing.

use super::content;
use super::history::{History, Operation, Outcome, What};

/// Rounds of deduction after which the rest is left open.
const ROUNDS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Zero,
    BytesOf(u32),
}

#[derive(Clone, Copy, Debug)]
struct Write {
    node: usize,
    from: u64,
    until: u64,
    value: Value,
    begin: u64,
}

struct Segment {
    from: u64,
    until: u64,
    /// Indices of the writes that it can be of.
    candidates: Vec<usize>,
    settled: bool,
}

struct Read<'a> {
    node: usize,
    operation: &'a Operation,
    segments: Vec<Segment>,
}

/// Which nodes come after which.
struct Order {
    words: usize,
    rows: Vec<u64>,
    nodes: usize,
}

impl Order {
    fn new(nodes: usize) -> Order {
        let words = nodes.div_ceil(64);
        Order { words, rows: vec![0; words * nodes], nodes }
    }

    fn add(&mut self, before: usize, after: usize) -> bool {
        let word = &mut self.rows[before * self.words + after / 64];
        let bit = 1 << (after % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn has(&self, before: usize, after: usize) -> bool {
        self.rows[before * self.words + after / 64] >> (after % 64) & 1 == 1
    }

    /// Adds what follows from two edges in a row.
    fn close(&mut self) {
        for middle in 0..self.nodes {
            let via: Vec<u64> = self.rows[middle * self.words..][..self.words].to_vec();
            for before in 0..self.nodes {
                if self.has(before, middle) {
                    let row = &mut self.rows[before * self.words..][..self.words];
                    row.iter_mut().zip(&via).for_each(|(word, via)| *word |= via);
                }
            }
        }
    }

    fn cycle(&self) -> Option<usize> {
        (0..self.nodes).find(|node| self.has(*node, *node))
    }
}

/// Checks one file.
///
/// # Errors
/// What cannot be explained.
pub fn check_file(history: &History, file: usize) -> Result<(), String> {
    let operations = &history.files[file];
    let mut writes =
        vec![Write { node: 0, from: 0, until: u64::MAX, value: Value::Zero, begin: 0 }];
    let mut sizes = vec![0];
    let mut reads = Vec::new();
    // Node 0 is the file's creation.
    let mut spans = vec![(0, Some(0))];
    for operation in operations {
        let counts = !matches!(operation.outcome, Outcome::Never);
        let end = operation.end;
        match operation.what {
            What::Write { offset, end: until } if counts => {
                let (node, value) = (spans.len(), Value::BytesOf(operation.number));
                writes.push(Write { node, from: offset, until, value, begin: operation.begin });
                sizes.push(until);
            }
            What::Truncate { size } if counts => {
                let (node, value) = (spans.len(), Value::Zero);
                let until = u64::MAX;
                writes.push(Write { node, from: size, until, value, begin: operation.begin });
                sizes.push(size);
            }
            What::Read { .. } if operation.outcome == Outcome::Done => {
                reads.push(Read { node: spans.len(), operation, segments: Vec::new() });
            }
            _ => continue,
        }
        spans.push((operation.begin, end));
    }
    for read in &mut reads {
        read.segments = segments(history, file, read.operation, &writes, &sizes)?;
    }
    let mut order = Order::new(spans.len());
    for (before, (_, end)) in spans.iter().enumerate() {
        let Some(end) = end else { continue };
        for (after, (begin, _)) in spans.iter().enumerate() {
            if end < begin {
                order.add(before, after);
            }
        }
    }
    for _ in 0..ROUNDS_MAX {
        order.close();
        if let Some(node) = order.cycle() {
            return Err(describe_cycle(file, operations, &order, &reads, &writes, node));
        }
        if !deduce(file, &mut order, &mut reads, &writes)? {
            break;
        }
    }
    Ok(())
}

/// Adds what follows from the order so far. True if anything did.
fn deduce(
    file: usize,
    order: &mut Order,
    reads: &mut [Read<'_>],
    writes: &[Write],
) -> Result<bool, String> {
    let mut is_changed = false;
    for read in reads {
        for segment in &mut read.segments {
            let covers = |write: &Write| write.from <= segment.from && write.until >= segment.until;
            if !segment.settled {
                let before = segment.candidates.len();
                segment.candidates.retain(|index| {
                    let candidate = writes[*index].node;
                    let is_overwritten = writes.iter().any(|other| {
                        covers(other)
                            && order.has(candidate, other.node)
                            && order.has(other.node, read.node)
                    });
                    !is_overwritten && !order.has(read.node, candidate)
                });
                is_changed |= segment.candidates.len() != before;
            }
            let source = match segment.candidates[..] {
                [] => {
                    return Err(format!(
                        "file {file}: read {} of host {} saw old bytes at {}..{}",
                        read.operation.number, read.operation.host, segment.from, segment.until
                    ));
                }
                [one] => writes[one].node,
                _ => continue,
            };
            segment.settled = true;
            is_changed |= order.add(source, read.node);
            for other in writes.iter().filter(|other| covers(other) && other.node != source) {
                if order.has(source, other.node) {
                    is_changed |= order.add(read.node, other.node);
                }
                if order.has(other.node, read.node) {
                    is_changed |= order.add(other.node, source);
                }
            }
        }
    }
    Ok(is_changed)
}

/// Cuts what a read saw at the edges of all writes, and finds whose bytes each piece can be.
fn segments(
    history: &History,
    file: usize,
    operation: &Operation,
    writes: &[Write],
    sizes: &[u64],
) -> Result<Vec<Segment>, String> {
    let What::Read { offset, asked, bytes, end_of_file } = &operation.what else {
        return Ok(Vec::new());
    };
    let (number, host) = (operation.number, operation.host);
    let came_until = offset + bytes.len() as u64;
    if bytes.len() > *asked as usize {
        return Err(format!("file {file}: read {number} of host {host} got more than asked for"));
    }
    if bytes.is_empty() && !end_of_file {
        return Err(format!("file {file}: read {number} of host {host} got nothing"));
    }
    if *end_of_file && !bytes.is_empty() && !sizes.contains(&came_until) {
        return Err(format!(
            "file {file}: read {number} of host {host} found an end at {came_until}, where none was"
        ));
    }
    // An end says of what lies behind it that it is not there.
    let until =
        if *end_of_file { (offset + u64::from(*asked)).max(came_until) } else { came_until };
    let mut edges: Vec<u64> = writes
        .iter()
        .flat_map(|write| [write.from, write.until])
        .chain([*offset, came_until, until])
        .filter(|edge| (*offset..=until).contains(edge))
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let mut found = Vec::new();
    for pair in edges.windows(2) {
        let (from, until) = (pair[0], pair[1]);
        let seen = (from < came_until)
            .then(|| &bytes[(from - offset) as usize..(until - offset) as usize]);
        let is_zero = seen.is_none_or(|seen| content::is_all(0, seen));
        let ended = operation.end.unwrap_or(u64::MAX);
        let can_be = |write: &Write| {
            let covers = write.from <= from && write.until >= until;
            covers
                && write.begin < ended
                && match (write.value, seen) {
                    (Value::Zero, _) => is_zero,
                    (Value::BytesOf(number), Some(seen)) => content::is_of(number, from, seen),
                    (Value::BytesOf(_), None) => false,
                }
        };
        let candidates: Vec<usize> =
            writes.iter().enumerate().filter(|(_, write)| can_be(write)).map(|(i, _)| i).collect();
        if candidates.is_empty() {
            let seen = seen.unwrap_or_default();
            return Err(format!(
                "file {file}: read {number} of host {host} saw at {from}..{until} {}",
                describe_bytes(history, file, from, seen)
            ));
        }
        found.push(Segment { from, until, candidates, settled: false });
    }
    Ok(found)
}

/// Says whose bytes these could be, although they cannot be there.
fn describe_bytes(history: &History, file: usize, offset: u64, bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(16)];
    let name = match start.first() {
        Some(&content::CANARY) => "bytes of a buffer that no request owned",
        Some(&content::POISON) => "bytes that the read had put there itself",
        Some(0) => "zeros",
        Some(_) => "bytes",
        None => "nothing",
    };
    let mut text = format!("{name} {start:02x?} that no write put there");
    for (other, operations) in history.files.iter().enumerate() {
        for operation in operations {
            let What::Write { offset: from, end } = operation.what else { continue };
            let places = std::iter::once(offset).chain((from..end).step_by(512));
            for place in places {
                if start.len() >= 4 && content::is_of(operation.number, place, start) {
                    text += &format!(
                        "; they are of write {} ({:?}, {from}..{end}) at {place} of file {other}",
                        operation.number, operation.outcome
                    );
                    if other == file {
                        return text;
                    }
                    break;
                }
            }
        }
    }
    text
}

fn describe_cycle(
    file: usize,
    operations: &[Operation],
    order: &Order,
    reads: &[Read<'_>],
    writes: &[Write],
    node: usize,
) -> String {
    let mut numbers = vec![None];
    let counted = operations.iter().filter(|operation| match operation.what {
        What::Read { .. } => operation.outcome == Outcome::Done,
        _ => operation.outcome != Outcome::Never,
    });
    numbers.extend(counted.map(Some));
    let members: Vec<usize> = (0..order.nodes)
        .filter(|other| order.has(node, *other) && order.has(*other, node))
        .collect();
    let mut text = format!("file {file}: these cannot have happened one after the other:");
    for member in members.iter().take(12) {
        let Some(Some(operation)) = numbers.get(*member) else {
            text += " creation;";
            continue;
        };
        let what = match &operation.what {
            What::Write { offset, end } => format!("write {offset}..{end}"),
            What::Truncate { size } => format!("truncate to {size}"),
            What::Read { offset, bytes, .. } => {
                let read = reads.iter().find(|read| read.node == *member);
                let mut sources: Vec<String> = Vec::new();
                for segment in read.iter().flat_map(|read| &read.segments) {
                    if let [one] = segment.candidates[..] {
                        let source = match writes[one].value {
                            Value::Zero => "zeros".to_owned(),
                            Value::BytesOf(number) => format!("write {number}"),
                        };
                        sources.push(format!("{}..{} {source}", segment.from, segment.until));
                    }
                }
                let until = offset + bytes.len() as u64;
                format!("read {offset}..{until} saw [{}]", sources.join(", "))
            }
        };
        text += &format!(
            " #{} of host {} {what} ({:?}, at {}..{:?});",
            operation.number, operation.host, operation.outcome, operation.begin, operation.end
        );
    }
    text
}

/// Checks the log file: every acknowledged record is there once and where its host was told, every
/// other one at most once, and nothing else.
///
/// # Errors
/// What does not fit.
pub fn check_log(history: &History) -> Result<(), String> {
    let content = &history.log_content;
    let mut place = 0;
    let mut found = std::collections::BTreeMap::new();
    while place < content.len() {
        let record = history.appends.iter().find(|record| {
            let end = place + record.len_bytes as usize;
            end <= content.len() && content::is_of(record.number, 0, &content[place..end])
        });
        let Some(record) = record else {
            let start = &content[place..content.len().min(place + 16)];
            return Err(format!("the log file has bytes of no record at {place}: {start:02x?}"));
        };
        if record.outcome == Outcome::Never {
            return Err(format!("record {} was not to be appended and is there", record.number));
        }
        if let Some(other) = found.insert(record.number, place) {
            return Err(format!("record {} was appended at {other} and {place}", record.number));
        }
        place += record.len_bytes as usize;
    }
    for record in history.appends.iter().filter(|record| record.outcome == Outcome::Done) {
        let place = found.get(&record.number).map(|place| *place as u64);
        if place.is_none() || place != record.offset {
            let (number, told) = (record.number, record.offset);
            return Err(format!("record {number} was told to be at {told:?} and is at {place:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
