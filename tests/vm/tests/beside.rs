//! RDMA beside other fabrics: one metadata server and two data servers listen over shared memory, TCP
//! and RDMA at once, and hosts choose.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;

use gannet_fabric::Address;
use gannet_integration::cluster::{Cluster, ClusterOptions, Network, Stats, Store};
use gannet_integration::{one_at_a_time, tree};
use gannet_vm::{cluster, guest};
use serde_json::Value;

const BLOCK_BYTES: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Around a block, around a request, and a file over several requests and stripes.
const SIZES: [u64; 6] = [0, 1, 4095, 4097, MIB + 1, 3 * MIB + 4093];
const SMALL_FILES: u64 = 60;
/// More than a pipe and the requests under way hold, so that who writes it out waits for its reader.
const LONG_BYTES: u64 = 48 * MIB;

/// Connections of each fabric, from one kind of servers and of one kind.
fn fabrics(stats: &Stats, servers: &str, kind: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for role in stats.0[servers].as_array().expect("a list") {
        for connection in role["connections"].as_array().expect("a list") {
            if connection["kind"] == kind {
                let fabric = connection["fabric"].as_str().expect("a text");
                *counts.entry(fabric.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

/// Hosts that have data sessions: to which reactors they are connected, and by which fabric.
fn channels_of_data_sessions(stats: &Stats) -> Vec<(u64, String)> {
    let connections = |servers: &str, kind: &'static str| -> Vec<(Value, Value)> {
        let roles = stats.0[servers].as_array().expect("a list").iter();
        roles
            .flat_map(|role| {
                let all = role["connections"].as_array().expect("a list").iter();
                all.map(|connection| (role["reactor"].clone(), connection.clone()))
            })
            .filter(|(_, connection)| connection["kind"] == kind)
            .collect()
    };
    let data = connections("targets", "data session");
    let has_data = |session: &Value| data.iter().any(|(_, other)| other["session"] == *session);
    let channels: Vec<(u64, String)> = connections("metaservers", "host")
        .into_iter()
        .filter(|(_, connection)| has_data(&connection["session"]))
        .map(|(reactor, connection)| {
            let fabric = connection["fabric"].as_str().expect("a text").to_owned();
            (reactor.as_u64().expect("a number"), fabric)
        })
        .collect();
    assert!(channels.iter().any(|(reactor, _)| *reactor == 0), "{:#}", stats.0);
    channels
}

/// So many connections, all of one fabric.
fn only(fabric: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(fabric.to_owned(), count)])
}

/// Whether sessions may use a fabric, as `--fabric` says it.
struct Way {
    /// Which fabrics; `None` leaves it to the host.
    asked: Option<&'static str>,
    /// By what address the host starts.
    server: &'static str,
    /// What its data sessions are over then.
    data: &'static str,
}

const WAYS: [Way; 7] = [
    Way { asked: Some("shm"), server: "shm", data: "shm" },
    Way { asked: Some("tcp"), server: "tcp", data: "tcp" },
    Way { asked: Some("rdma"), server: "rdma", data: "rdma" },
    Way { asked: Some("tcp,rdma"), server: "tcp", data: "rdma" },
    Way { asked: None, server: "rdma", data: "shm" },
    Way { asked: None, server: "tcp", data: "shm" },
    Way { asked: None, server: "shm", data: "shm" },
];

/// The address of the metadata server that is of a fabric.
fn server_at(cluster: &Cluster, scheme: &str) -> Address {
    let found = cluster.addresses().into_iter().find(|address| address.scheme() == scheme);
    found.expect("it listens at every fabric")
}

/// Reads `/long`, and looks at the sessions while the host waits for its reader.
fn while_reading(cluster: &Cluster, words: &[&str]) -> Stats {
    let mut command = cluster.command(&[&["cat", "/long"], words].concat());
    let mut host = command.stdout(Stdio::piped()).spawn().expect("gannet can be started");
    let mut output = host.stdout.take().expect("it was piped");
    // There is data once there are data sessions.
    let mut first = [0];
    output.read_exact(&mut first).expect("the first byte");
    let stats = cluster.stats();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("the rest");
    assert!(host.wait().expect("it ends").success(), "{words:?}");
    let expected = std::fs::read(cluster.directory().join("long")).expect("what was put");
    assert!(first == expected[..1] && rest == expected[1..], "{words:?}: it came back changed");
    stats
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn hosts_choose_among_shared_memory_tcp_and_rdma() {
    let _turn = one_at_a_time();
    let network = Network::Every { host: guest::own_address().to_string(), port: cluster::PORT };
    let stores = vec![Store::Ram; 2];
    let mut cluster = Cluster::new(ClusterOptions { network, ..cluster::options(stores) });
    let targets = 2;
    let servers = fabrics(&cluster.stats(), "metaservers", "target");
    let reactors = cluster::REACTORS as usize;
    assert_eq!(servers, only("shm", targets * reactors), "what is named for the servers");

    let long = cluster.directory().join("long");
    let words =
        (0..LONG_BYTES / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    std::fs::write(&long, words.collect::<Vec<u8>>()).expect("room for a file");
    let put = ["put", "-T", long.to_str().expect("text"), "/long"];
    let _said = cluster.run(&put).success();
    let source = cluster.directory().join("source");
    tree::make_with(&source, &SIZES, SMALL_FILES);

    for (number, Way { asked, server, data }) in WAYS.iter().enumerate() {
        let scheme = server;
        let server = server_at(&cluster, scheme).to_string();
        let mut way = vec!["--server", &server];
        way.extend(asked.iter().flat_map(|list| ["--fabric", *list]));
        let (there, copy) = (format!("/tree-{number}"), format!("copy-{number}"));
        let copy = cluster.directory().join(copy);
        let before = cluster::moved_bytes(&cluster.stats());
        let ends = [source.to_str(), copy.to_str()].map(|path| path.expect("text"));
        for words in [["put", "-T", ends[0], &there], ["get", "-T", &there, ends[1]]] {
            let _said = cluster.run(&[&words[..], &way].concat()).success();
        }
        let content = tree::compare(&source, &copy, BLOCK_BYTES);
        assert!(content.files >= SMALL_FILES + SIZES.len() as u64, "{way:?}: {content:?}");
        let stats = cluster.stats();
        let moved = cluster::moved_bytes(&stats) - before;
        assert_eq!(moved, 2 * content.bytes, "{way:?}: through the data servers");
        assert_eq!(stats.metaserver("payload_bytes"), 0, "{way:?}: through the metadata server");

        let stats = while_reading(&cluster, &way);
        let sessions = fabrics(&stats, "targets", "data session");
        println!("{way:?}: {content:?}; data sessions: {sessions:?}");
        assert_eq!(sessions, only(data, targets), "{way:?}");
        // To reactor 0 as the host was told, to the others as is best.
        for (reactor, fabric) in channels_of_data_sessions(&stats) {
            let expected = if reactor == 0 { scheme } else { data };
            assert_eq!(fabric, *expected, "{way:?}: to reactor {reactor}");
        }
    }

    // The kinds of protection, where the best fabric has no windows.
    let server = server_at(&cluster, "tcp").to_string();
    let stats = while_reading(&cluster, &["--server", &server, "--protection", "window"]);
    assert_eq!(fabrics(&stats, "targets", "data session"), only("rdma", targets));
    assert!(cluster.is_running());
    cluster.stop();
}
