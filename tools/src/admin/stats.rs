//! `gannet stats`: the counters of every role, and its connections with the fabric of each.
//!
//! The metadata server answers for its reactors and asks the data servers for theirs. Roles that
//! share a reactor report the same thread; it is counted once.

use std::collections::BTreeMap;
use std::io::{self, Write};

use gannet_client::{Counters, Operation, Outcome, Peer, PeerConnection, Role};
use gannet_proto::SessionId;
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

/// What one role told, in its order.
struct One {
    index: u32,
    values: Vec<(String, u64)>,
    connections: Vec<PeerConnection>,
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
        let connections: Vec<Value> = self.connections.iter().map(connection_json).collect();
        object.insert("connections".to_owned(), connections.into());
        Value::Object(object)
    }
}

/// Who is at the other end: a host by its session, or a data server by its number.
fn connection_json(connection: &PeerConnection) -> Value {
    let (kind, key, id) = match connection.peer {
        Peer::Host(id) => ("host", "session", session(id).into()),
        Peer::Target(id) => ("target", "target", id.0.into()),
        Peer::DataSession(id) => ("data session", "session", session(id).into()),
        Peer::Unknown { id, .. } => ("unknown", "id", id.into()),
    };
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind.into());
    object.insert(key.to_owned(), id);
    object.insert("fabric".to_owned(), connection.fabric.clone().into());
    object.insert("peer".to_owned(), connection.at.clone().into());
    Value::Object(object)
}

/// A host's session, of whose number no digit may be lost.
fn session(id: SessionId) -> String {
    format!("{:016x}", id.0)
}

/// Counters of all roles.
struct Cluster {
    metaservers: Vec<One>,
    targets: Vec<One>,
}

impl Cluster {
    fn of(roles: Vec<Counters>) -> Cluster {
        let mut cluster = Cluster { metaservers: Vec::new(), targets: Vec::new() };
        for Counters { role, values, connections } in roles {
            let (list, index) = match role {
                Role::Metaserver(index) => (&mut cluster.metaservers, index),
                Role::Target(index) => (&mut cluster.targets, index),
                Role::Unknown { .. } => continue,
            };
            list.push(One { index, values, connections });
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
                "connections": self.fabrics(),
            },
        })
    }

    fn table(&self) -> String {
        let mut text = String::new();
        section(&mut text, "metadata server reactor", &self.metaservers);
        section(&mut text, "data server", &self.targets);
        text.push_str(&self.connections());
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
        let fabrics = self.fabrics().into_iter();
        let fabrics: Vec<String> = fabrics.map(|(name, count)| format!("{count} {name}")).collect();
        if !fabrics.is_empty() {
            line("connections, by fabric", fabrics.join(", "));
        }
        text
    }

    /// One line per connection of each role.
    fn connections(&self) -> String {
        let mut text = String::new();
        for (title, ones) in
            [("metadata server reactor", &self.metaservers), ("data server", &self.targets)]
        {
            for one in ones {
                for connection in &one.connections {
                    let other = match connection.peer {
                        Peer::Host(id) | Peer::DataSession(id) => {
                            format!("host session {}", session(id))
                        }
                        Peer::Target(id) => format!("data server {}", id.0),
                        Peer::Unknown { kind, id } => format!("{id} of unknown kind {kind}"),
                    };
                    let role = format!("{title} {}", one.index);
                    let PeerConnection { fabric, at, .. } = connection;
                    let line = format!("  {role:<28} {other:<32} {fabric:<6} {at}");
                    text.push_str(line.trim_end());
                    text.push('\n');
                }
            }
        }
        if text.is_empty() { text } else { format!("connections:\n{text}\n") }
    }

    /// How many connections each fabric has.
    fn fabrics(&self) -> BTreeMap<&str, u64> {
        let mut fabrics = BTreeMap::new();
        let roles = self.metaservers.iter().chain(&self.targets);
        for connection in roles.flat_map(|one| &one.connections) {
            *fabrics.entry(connection.fabric.as_str()).or_insert(0) += 1;
        }
        fabrics
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
    use gannet_proto::TargetId;

    use super::*;

    fn counters(role: Role, values: &[(&str, u64)]) -> Counters {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Counters { role, values, connections: Vec::new() }
    }

    fn joined(peer: Peer, fabric: &str, at: &str) -> PeerConnection {
        PeerConnection { peer, fabric: fabric.to_owned(), at: at.to_owned() }
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(vec![
            counters(Role::Target(1), &[("bytes_direct", 5), (REACTOR_THREAD, 7)]),
            counters(
                Role::Metaserver(0),
                &[("payload_bytes", 0), (REACTOR_THREAD, 7), ("reactor_busy_ns", 10)],
            ),
            counters(
                Role::Target(0),
                &[("bytes_direct", 3), (REACTOR_THREAD, 8), ("reactor_busy_ns", 2)],
            ),
        ]);
        let (host, target) = (Peer::Host(SessionId(u64::MAX - 1)), Peer::Target(TargetId(1)));
        cluster.metaservers[0].connections =
            vec![joined(host, "tcp", "10.0.0.7"), joined(target, "shm", "process 7")];
        cluster.targets[1].connections =
            vec![joined(Peer::DataSession(SessionId(0x1f)), "tcp", "10.0.0.7")];
        cluster
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

    #[test]
    fn every_connection_is_told_with_its_fabric() {
        let json = cluster().json();
        let host = json!({
            "kind": "host", "session": "fffffffffffffffe", "fabric": "tcp", "peer": "10.0.0.7",
        });
        assert_eq!(json["metaservers"][0]["connections"][0], host);
        assert_eq!(json["metaservers"][0]["connections"][1]["target"], 1);
        assert_eq!(json["targets"][0]["connections"], json!([]));
        assert_eq!(json["targets"][1]["connections"][0]["kind"], "data session");
        assert_eq!(json["totals"]["connections"], json!({ "shm": 1, "tcp": 2 }));

        let table = cluster().table();
        for words in [
            &["metadata", "server", "reactor", "0", "data", "server", "1", "shm", "process", "7"][..],
            &["data", "server", "1", "host", "session", "000000000000001f", "tcp", "10.0.0.7"],
            &["connections,", "by", "fabric", "1", "shm,", "2", "tcp"],
        ] {
            let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            assert!(lines.any(|line| line == words), "{words:?}: {table}");
        }
    }
}
