//! `gannet stats`: the counters of every role.
//!
//! The metadata server answers for its reactors and asks the data servers for theirs. Roles that
//! share a reactor report the same thread; it is counted once.

use std::collections::BTreeMap;
use std::io::{self, Write};

use gannet_client::{Counters, Operation, Outcome, Role};
use serde_json::{Map, Value, json};

use super::REQUESTS_MAX;
use super::list::output;
use crate::cli::StatsArguments;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::units::format_size;

/// Starts the names of counters of the thread that a role runs on.
const REACTOR_PREFIX: &str = "reactor_";
/// Names the thread.
const REACTOR_THREAD: &str = "reactor_thread";

/// Shows the counters.
pub(crate) fn stats(arguments: &StatsArguments) -> Result<(), Failure> {
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    let mut roles = ask(&mut connection, 0)?;
    for reactor in 1..connection.reactors() {
        roles.extend(ask(&mut connection, reactor)?);
    }
    let cluster = Cluster::of(roles);
    let text = if arguments.json { format!("{:#}\n", cluster.json()) } else { cluster.table() };
    io::stdout().write_all(text.as_bytes()).map_err(output)
}

fn ask(connection: &mut Connection, reactor: u16) -> Result<Vec<Counters>, Failure> {
    let answer = connection.call(Operation::Stats { reactor, targets: reactor == 0 });
    let answer = answer.and_then(|outcome| match outcome {
        Outcome::Counters(counters) => Ok(counters),
        _ => Err(unexpected("the answer is not counters")),
    });
    answer.map_err(|error| error.about("asking for counters"))
}

/// Counters of one role, in the order in which it told them.
struct One {
    index: u32,
    values: Vec<(String, u64)>,
}

impl One {
    fn value(&self, name: &str) -> Option<u64> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }

    fn json(&self, key: &str) -> Value {
        let mut object = Map::new();
        object.insert(key.to_owned(), self.index.into());
        for (name, value) in &self.values {
            object.insert(name.clone(), (*value).into());
        }
        Value::Object(object)
    }
}

/// Counters of all roles.
struct Cluster {
    metaservers: Vec<One>,
    targets: Vec<One>,
}

impl Cluster {
    fn of(roles: Vec<Counters>) -> Cluster {
        let mut cluster = Cluster { metaservers: Vec::new(), targets: Vec::new() };
        for Counters { role, values } in roles {
            match role {
                Role::Metaserver(index) => cluster.metaservers.push(One { index, values }),
                Role::Target(index) => cluster.targets.push(One { index, values }),
                Role::Unknown { .. } => {}
            }
        }
        cluster.metaservers.sort_by_key(|one| one.index);
        cluster.targets.sort_by_key(|one| one.index);
        cluster
    }

    /// Counters of the threads, each thread once.
    fn threads(&self) -> Vec<&One> {
        let mut threads: Vec<(u64, &One)> = Vec::new();
        for one in self.metaservers.iter().chain(&self.targets) {
            if let Some(thread) = one.value(REACTOR_THREAD)
                && threads.iter().all(|(known, _)| *known != thread)
            {
                threads.push((thread, one));
            }
        }
        threads.into_iter().map(|(_, one)| one).collect()
    }

    fn json(&self) -> Value {
        let list = |ones: &[One], key: &str| -> Vec<Value> {
            ones.iter().map(|one| one.json(key)).collect()
        };
        let threads = self.threads();
        let of_threads = |name: &str| -> u64 {
            threads.iter().filter_map(|one| one.value(name)).fold(0, u64::saturating_add)
        };
        json!({
            "metaservers": list(&self.metaservers, "reactor"),
            "targets": list(&self.targets, "target"),
            "totals": {
                "metaservers": sums(&self.metaservers),
                "targets": sums(&self.targets),
                "reactors": {
                    "threads": threads.len(),
                    "busy_ns": of_threads("reactor_busy_ns"),
                    "idle_ns": of_threads("reactor_idle_ns"),
                    "sleep_ns": of_threads("reactor_sleep_ns"),
                },
            },
        })
    }

    fn table(&self) -> String {
        let mut text = String::new();
        section(&mut text, "metadata server reactor", &self.metaservers);
        section(&mut text, "data server", &self.targets);
        text.push_str("totals\n");
        let meta = sums(&self.metaservers);
        let data = sums(&self.targets);
        let of = |sums: &BTreeMap<&str, u64>, name: &str| sums.get(name).copied().unwrap_or(0);
        let mut line =
            |name: &str, value: String| text.push_str(&format!("  {name:<44} {value}\n"));
        line("payload bytes seen by the metadata server", of(&meta, "payload_bytes").to_string());
        for (name, label) in [
            ("bytes_direct", "bytes moved direct (no copy by a processor)"),
            ("bytes_ram", "bytes moved to or from memory stores"),
            ("bytes_bounced", "bytes bounced through a data server's buffer"),
            ("bytes_copied", "bytes copied through the page cache"),
            ("bytes_zeroed", "zeros written to hosts"),
        ] {
            let bytes = of(&data, name);
            line(label, format!("{bytes} ({})", format_size(bytes)));
        }
        text
    }
}

/// Sums by name, without what belongs to threads.
fn sums(ones: &[One]) -> BTreeMap<&str, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in ones.iter().flat_map(|one| &one.values) {
        if !name.starts_with(REACTOR_PREFIX) {
            let sum = sums.entry(name.as_str()).or_insert(0_u64);
            *sum = sum.saturating_add(*value);
        }
    }
    sums
}

/// One line per counter, one column per role.
fn section(text: &mut String, title: &str, ones: &[One]) {
    let Some(first) = ones.first() else { return };
    text.push_str(&format!("{:<44}", format!("{title}:")));
    for one in ones {
        text.push_str(&format!(" {:>18}", one.index));
    }
    text.push('\n');
    let mut names: Vec<&str> = first.values.iter().map(|(name, _)| name.as_str()).collect();
    for (name, _) in ones.iter().flat_map(|one| &one.values) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        text.push_str(&format!("  {name:<42}"));
        for one in ones {
            let value = one.value(name).map_or_else(|| "-".to_owned(), |value| value.to_string());
            text.push_str(&format!(" {value:>18}"));
        }
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn counters(role: Role, values: &[(&str, u64)]) -> Counters {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Counters { role, values }
    }

    fn cluster() -> Cluster {
        Cluster::of(vec![
            counters(Role::Target(1), &[("bytes_direct", 5), (REACTOR_THREAD, 7)]),
            counters(
                Role::Metaserver(0),
                &[("payload_bytes", 0), (REACTOR_THREAD, 7), ("reactor_busy_ns", 10)],
            ),
            counters(
                Role::Target(0),
                &[("bytes_direct", 3), (REACTOR_THREAD, 8), ("reactor_busy_ns", 2)],
            ),
        ])
    }

    #[test]
    fn totals_sum_roles_and_count_threads_once() {
        let json = cluster().json();
        assert_eq!(json["metaservers"][0]["payload_bytes"], 0);
        assert_eq!(json["targets"][1]["target"], 1);
        assert_eq!(json["totals"]["targets"]["bytes_direct"], 8);
        assert_eq!(json["totals"]["reactors"]["threads"], 2);
        assert_eq!(json["totals"]["reactors"]["busy_ns"], 12);
        assert!(json["totals"]["metaservers"].get(REACTOR_THREAD).is_none());
    }

    #[test]
    fn the_table_has_a_column_for_each_role() {
        let table = cluster().table();
        let line = table.lines().find(|line| line.starts_with("  bytes_direct")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["bytes_direct", "3", "5"]);
        assert!(table.contains("8 (8 B)"), "{table}");
    }
}
