//! Servers that listen at several fabrics at once, and hosts that choose among them.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Server, gannet, gannet_at, must, run, write};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

/// More than a pipe and the requests under way hold, so that whoever writes it out waits for its
/// reader.
const LONG_BYTES: usize = 24 << 20;

/// An address of the loopback that no other process of these tests has, so that ports are free.
fn loopback() -> String {
    let pid = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", 1 + pid[2] % 127, pid[1], 1 + pid[0] % 254)
}

/// Bytes that tell their place.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

fn start(words: &[&str]) -> Server {
    let mut command = gannet();
    command.args(words);
    Server::start(command)
}

fn stats(uri: &str) -> Value {
    serde_json::from_slice(&must(uri, &["stats", "--json"])).unwrap()
}

/// Fabrics of the connections of one kind that servers of one kind told.
fn fabrics(stats: &Value, servers: &str, kind: &str) -> BTreeSet<String> {
    let roles = stats[servers].as_array().unwrap().iter();
    let connections = roles.flat_map(|role| role["connections"].as_array().unwrap());
    let of_kind = connections.filter(|connection| connection["kind"] == kind);
    of_kind.map(|connection| connection["fabric"].as_str().unwrap().to_owned()).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Reads `/long` with `gannet cat` and looks at its sessions while it waits for its reader. Returns
/// the fabrics of its channels to the metadata server, `watch` being a session of another one, and of
/// its data sessions.
fn reading(watch: &str, options: &[&str]) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut command = gannet();
    command.args(["cat", "/long"]).args(options).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    // Its data sessions are there once there is data.
    let mut found = vec![0; 1];
    output.read_exact(&mut found).unwrap();
    let stats = stats(watch);
    output.read_to_end(&mut found).unwrap();
    assert!(child.wait().unwrap().success(), "{options:?}");
    assert!(found == content(LONG_BYTES), "{options:?}: what was read differs");
    let data = fabrics(&stats, "targets", "data session");
    let sessions = |kind: &str, servers: &str| -> BTreeSet<(String, String)> {
        let roles = stats[servers].as_array().unwrap().iter();
        let all = roles.flat_map(|role| role["connections"].as_array().unwrap());
        let text = |connection: &Value, key: &str| connection[key].as_str().unwrap().to_owned();
        all.filter(|connection| connection["kind"] == kind)
            .map(|connection| (text(connection, "session"), text(connection, "fabric")))
            .collect()
    };
    // The session that looks has none at the data servers.
    let with_data: BTreeSet<String> =
        sessions("data session", "targets").into_iter().map(|(session, _)| session).collect();
    let hosts = sessions("host", "metaservers").into_iter();
    let own = hosts.filter(|(session, _)| with_data.contains(session));
    (own.map(|(_, fabric)| fabric).collect(), data)
}

fn put_long(top: &Path, uri: &str) {
    let file = top.join("long");
    write(&file, content(LONG_BYTES));
    must(uri, &["put", "--verify", file.to_str().unwrap(), "/long"]);
}

#[test]
fn hosts_take_the_best_fabric_that_both_ends_have() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("home");
    let shm = format!("shm://{}/meta.sock", home.display());
    let tcp = format!("tcp://{}:7470", loopback());
    std::fs::create_dir(&home).unwrap();
    let words = ["dev", "--dir", home.to_str().unwrap(), "--store-size=ram:64M", "--log-in-ram"];
    let listen = ["--reactors=2", "--targets=2", "--listen", &tcp, "--listen", &shm];
    let mut server = start(&[&words[..], &listen].concat());
    assert_eq!(server.ready, tcp, "the first address");
    assert!(server.said.iter().any(|line| line.trim_end() == format!("also at {shm}")));
    put_long(top.path(), &tcp);

    // The servers of one process use shared memory among themselves.
    let now = stats(&shm);
    assert_eq!(fabrics(&now, "metaservers", "target"), set(&["shm"]));
    assert_eq!(fabrics(&stats(&tcp), "metaservers", "host"), set(&["shm", "tcp"]), "reactor 0, 1");
    assert_eq!(fabrics(&stats(&shm), "metaservers", "host"), set(&["shm"]));
    let table = String::from_utf8(must(&shm, &["stats"])).unwrap();
    assert!(table.contains("connections, by fabric"), "{table}");

    let (_, data) = reading(&shm, &["--server", &shm]);
    assert_eq!(data, set(&["shm"]));
    let (_, data) = reading(&shm, &["--server", &tcp]);
    assert_eq!(data, set(&["shm"]), "the best that both ends have");
    let (meta, data) = reading(&shm, &["--server", &tcp, "--fabric", "tcp"]);
    assert_eq!((meta, data), (set(&["tcp"]), set(&["tcp"])));
    let (_, data) = reading(&shm, &["--server", &tcp, "--protection", "window"]);
    assert_eq!(data, set(&["tcp"]), "shared memory has no windows");
    let output = gannet_at(&shm, &["ls", "--fabric", "tcp"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(server.stop().success());
}

#[test]
fn one_process_can_use_tcp_alone() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("home");
    let tcp = format!("tcp://{}:7480", loopback());
    let words = ["dev", "--dir", home.to_str().unwrap(), "--store-size=ram:64M", "--log-in-ram"];
    let mut server = start(&[&words[..], &["--listen", &tcp]].concat());
    assert_eq!(server.ready, tcp);
    put_long(top.path(), &tcp);
    let (meta, data) = reading(&tcp, &["--server", &tcp]);
    assert_eq!((meta, data), (set(&["tcp"]), set(&["tcp"])));
    let now = stats(&tcp);
    assert_eq!(now["totals"]["connections"].as_object().unwrap().len(), 1, "{now}");
    assert_eq!(fabrics(&now, "metaservers", "target"), set(&["tcp"]));
    assert!(server.stop().success());
    let sockets = std::fs::read_dir(&home).unwrap().flatten();
    let names: Vec<String> =
        sockets.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".sock")), "{names:?}");
}

/// What a host says first on a TCP connection.
fn greeting(listener: &TcpListener, words: &[&str], variables: &[(&str, &str)]) -> [u8; 64] {
    let server = format!("tcp://{}", listener.local_addr().unwrap());
    let mut command = gannet();
    command.args(["ls", "--server", &server, "--patience", "100ms"]).args(words);
    command.envs(variables.iter().copied()).stderr(Stdio::null());
    let mut host = command.spawn().unwrap();
    let mut greeting = [0; 64];
    // A host that is refused never comes: the listener does not wait for ever.
    let readable = |timeout: &Timespec| {
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(timeout)).unwrap() == 1
    };
    assert!(readable(&Timespec { tv_sec: 60, tv_nsec: 0 }), "{words:?} {variables:?}");
    listener.accept().unwrap().0.read_exact(&mut greeting).unwrap();
    // It would wait for an answer.
    host.kill().unwrap();
    host.wait().unwrap();
    greeting
}

#[test]
fn hosts_ask_for_checksums_over_payload() {
    const ARGUMENT: &str = "--tcp-payload-checksums";
    const VARIABLE: &str = "GANNET_TCP_PAYLOAD_CHECKSUMS";
    for (words, variables, wanted) in [
        (&[][..], &[][..], 0),
        (&[ARGUMENT], &[], 1),
        (&[], &[(VARIABLE, "true")], 1),
        (&[], &[(VARIABLE, "false")], 0),
        (&["--tcp-payload-checksums=false"], &[(VARIABLE, "true")], 0),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let greeting = greeting(&listener, words, variables);
        assert_eq!(greeting[..5], *b"GNTC\x01", "a hello");
        assert_eq!(greeting[16] & 1, wanted, "{words:?} {variables:?}");
    }
}

/// A connection that is not answered: its packets are dropped, as by a firewall.
#[test]
fn hosts_give_a_connection_as_long_as_they_shall() {
    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, listen, socket};
    let new = || socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let listener = new();
    bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    listen(&listener, 0).unwrap();
    let address: SocketAddrV4 = getsockname(&listener).unwrap().try_into().unwrap();
    // The only one that may wait to be accepted.
    let waiting = new();
    connect(&waiting, &address).unwrap();
    let server = format!("tcp://{address}");
    let mut times = Vec::new();
    for (words, variables) in [
        (&["--tcp-connect-timeout", "50ms"][..], &[][..]),
        (&[], &[("GANNET_TCP_CONNECT_TIMEOUT", "3s")]),
    ] {
        let mut command = gannet();
        command.args(["ls", "--server", &server, "--patience", "1ms"]).args(words);
        command.envs(variables.iter().copied());
        let begun = Instant::now();
        let output = run(command);
        times.push(begun.elapsed());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    println!("given up after {times:?}");
    assert!(times[0] < Duration::from_secs(2), "{times:?}");
    assert!(times[1] >= Duration::from_secs(3), "{times:?}");
}

#[test]
fn what_hosts_set_about_tcp_holds_for_a_session() {
    let top = tempfile::tempdir().unwrap();
    let home = top.path().join("home");
    let tcp = format!("tcp://{}:7485", loopback());
    let words = ["dev", "--dir", home.to_str().unwrap(), "--store-size=ram:64M", "--log-in-ram"];
    let mut server = start(&[&words[..], &["--listen", &tcp]].concat());
    put_long(top.path(), &tcp);
    let settings = ["--tcp-peer-timeout=2s", "--tcp-connect-timeout=5s", "--tcp-payload-checksums"];
    let (meta, data) = reading(&tcp, &[&["--server", &tcp][..], &settings].concat());
    assert_eq!((meta, data), (set(&["tcp"]), set(&["tcp"])));
    assert!(server.stop().success());
}

#[test]
fn servers_of_their_own_may_listen_at_different_fabrics() {
    let top = tempfile::tempdir().unwrap();
    let base = top.path().display().to_string();
    let host = loopback();
    let (shm, tcp) = (format!("shm://{base}/meta.sock"), format!("tcp://{host}:7490"));
    write(
        &top.path().join("meta.toml"),
        format!(
            "directory = \"{base}/meta\"\nlisten = [\"{shm}\", \"{tcp}\"]\nreactors = 2\n\
             trusted_hosts = [\"127.0.0.0/8\"]\n[tcp]\npeer_timeout = \"3s\"\n"
        ),
    );
    // The first is reached over TCP alone, though it is here; the second as is best.
    for (index, listen, metaserver) in [
        (0, format!("\"tcp://{host}:7495\""), &tcp),
        (1, format!("[\"shm://{base}/target.sock\", \"tcp://{host}:7496\"]"), &shm),
    ] {
        let place = format!("path = \"{base}/store-{index}\"\nkind = \"ram\"\nsize = \"64M\"\n");
        write(
            &top.path().join(format!("target-{index}.toml")),
            format!(
                "listen = {listen}\nmetaserver = \"{metaserver}\"\n[[store]]\n{place}\
                 [tcp]\npayload_checksums = true\n"
            ),
        );
    }
    let mut servers = Vec::new();
    for (role, name) in [("metaserver", "meta"), ("target", "target-0"), ("target", "target-1")] {
        let config = format!("{base}/{name}.toml");
        must("", &[role, "format", "--config", &config]);
        servers.push(start(&[role, "--config", &config]));
    }
    assert_eq!(servers[0].ready, shm);
    assert!(
        servers[2].said.iter().any(|line| line.contains(&format!("also at tcp://{host}:7496")))
    );
    put_long(top.path(), &shm);
    let now = stats(&shm);
    assert_eq!(fabrics(&now, "metaservers", "target").len(), 2, "{now}");
    let (_, data) = reading(&shm, &["--server", &shm]);
    assert_eq!(data, set(&["shm", "tcp"]));
    let (_, data) = reading(&shm, &["--server", &tcp, "--fabric", "tcp"]);
    assert_eq!(data, set(&["tcp"]));
    for server in servers.iter_mut().rev() {
        assert!(server.stop().success());
    }
}
