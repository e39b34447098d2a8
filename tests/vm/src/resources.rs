//! What programs hold of the guest's RDMA device, as the kernel counts it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::{guest, process};

/// How long the `rdma` command may take.
const ASK_MAX: Duration = Duration::from_secs(30);
/// What the kernel counts of what this project makes, by the command's words.
const KINDS: [&str; 7] = ["pd", "cq", "qp", "cm_id", "mr", "ctx", "srq"];

/// How many objects of each kind there are, those of the kernel itself included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources(BTreeMap<&'static str, u64>);

impl Resources {
    /// Counts them now.
    ///
    /// # Panics
    /// If the device is gone, or the `rdma` command prints something else than it does.
    #[must_use]
    pub fn now() -> Resources {
        let mut command = Command::new("rdma");
        command.args(["resource", "show"]);
        let said = process::run(command, ASK_MAX).success();
        let counted = said.lines().find_map(|line| parse(line, guest::DEVICE));
        counted.unwrap_or_else(|| panic!("no counts of {} in {said:?}", guest::DEVICE))
    }

    /// Whether there is no more of anything than in `other`.
    #[must_use]
    pub fn is_within(&self, other: &Resources) -> bool {
        self.0.iter().all(|(kind, count)| count <= &other.0[kind])
    }

    /// Objects of one kind.
    ///
    /// # Panics
    /// If there is no such kind.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        self.0[kind]
    }
}

/// Packets that the device has sent. The kernel looks every 10 ms.
///
/// # Panics
/// If the device is gone.
#[must_use]
pub fn packets_sent() -> u64 {
    let path = format!("/sys/class/infiniband/{}/ports/1/hw_counters/sent_pkts", guest::DEVICE);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().parse().unwrap_or_else(|error| panic!("{path}: {text:?}: {error}"))
}

/// A line such as `0: rxe0: pd 8 cq 4 qp 5 cm_id 7 mr 13 ctx 2 srq 3`.
fn parse(line: &str, device: &str) -> Option<Resources> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != format!("{device}:") {
        return None;
    }
    let words: Vec<&str> = words.collect();
    let mut counts = BTreeMap::new();
    for kind in KINDS {
        let at = words.iter().position(|word| *word == kind)?;
        counts.insert(kind, words.get(at + 1)?.parse().ok()?);
    }
    Some(Resources(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_compared() {
        let line = "0: rxe0: pd 8 cq 4 qp 5 cm_id 7 mr 13 ctx 2 srq 3 ";
        let few = parse(line, "rxe0").expect("the command's format");
        assert_eq!((few.count("pd"), few.count("mr"), few.count("srq")), (8, 13, 3));
        let more = parse(&line.replace("qp 5", "qp 6"), "rxe0").expect("the command's format");
        assert!(few.is_within(&more) && few.is_within(&few) && !more.is_within(&few));
        assert_eq!(parse(line, "rxe1"), None);
        assert_eq!(parse("0: rxe0: pd 8", "rxe0"), None);
    }
}
