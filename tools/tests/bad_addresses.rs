//! Addresses that servers cannot listen at, that commands cannot reach, and keys that mean nothing for
//! them: each is told with its name, with exit code 1 (the operation failed) or 2 (it was asked for
//! wrongly).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;

use common::table::{Table, text, without_rdma};
use common::{gannet, run, write};

/// A port of this machine that nobody listens at: bound and not listened at, so that nobody can.
fn port_of_nobody() -> u16 {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    rustix::net::bind(&socket, &address).unwrap();
    let bound = std::net::SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    // Held until the process ends.
    std::mem::forget(socket);
    bound.port()
}

/// A server that greets everybody with something that is not of Gannet.
struct Babbler {
    port: u16,
}

impl Babbler {
    fn start() -> Babbler {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let _told = stream.write_all(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
                      Connection: close\r\n\r\n400 Bad Request",
                );
                // What the client says is read, so that its end is no reset.
                let _said = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        Babbler { port }
    }
}

#[test]
fn addresses_of_dev() {
    let top = tempfile::tempdir().unwrap();
    let directory = text(top.path());
    let dev = |option: &str, value: &str| -> Vec<String> {
        ["dev", "--dir", &directory, option, value].map(str::to_owned).to_vec()
    };
    let mut table = Table::default();
    for (listen, words) in [
        ("", &["--listen"][..]),
        ("shm://m.sock", &["--listen", "absolute"]),
        ("udp://10.0.0.1:7470", &["--listen", "udp", "shm, rdma and tcp"]),
        ("rdma://10.0.0.1", &["--listen", "a host and a port"]),
        ("tcp://10.0.0.1", &["--listen", "a host and a port", "tcp://192.168.1.10:7470"]),
        ("tcp://10.0.0.1:70000", &["--listen", "a host and a port"]),
        ("tcp://0.0.0.0:7470", &["--listen", "every address", "tcp://192.168.1.10:7470"]),
        ("tcp://[::]:7470", &["--listen", "every address"]),
        ("tcp://224.0.0.1:7470", &["--listen", "multicast"]),
        ("tcp://10.0.0.1:0", &["--listen", "leaves the port open"]),
        ("tcp://10.0.0.1:65534", &["--listen", "no port for data server 1", "at most 65533"]),
        ("rdma://0.0.0.0:7470", &["--listen", "every address"]),
        ("rdma://10.0.0.1:0", &["--listen", "leaves the port open"]),
        ("rdma://10.0.0.1:65534", &["--listen", "no port for data server 1", "at most 65533"]),
    ] {
        table.case(&dev("--listen", listen), 2, words);
    }
    for (listen, words) in [
        (&["tcp://10.0.0.1:1", "tcp://10.0.0.1:1"][..], &["tcp://10.0.0.1:1 is named twice"][..]),
        (&["tcp://10.0.0.1:7470", "tcp://10.0.0.1:7472"], &["overlap", "at least 3 apart"]),
        (&["rdma://10.0.0.1:7472", "rdma://10.0.0.1:7470"], &["overlap", "data server 1"]),
        (&["shm:///x/m.sock", "shm:///x/n.sock"], &["/x/target-0.sock", "different directories"]),
        (&["shm:///x/m.sock"; 9], &["9 addresses", "8 at most"]),
    ] {
        let mut words_of = vec!["dev".to_owned(), "--dir".to_owned(), directory.clone()];
        words_of.extend(listen.iter().map(|address| format!("--listen={address}")));
        table.case(&words_of, 2, &[&["--listen"], words].concat());
    }
    for (hosts, words) in [
        ("storage-1", &["storage-1", "192.168.1.0/24"][..]),
        ("10.0.0.1/8", &["10.0.0.1/8", "10.0.0.0/8"]),
        ("10.0.0.0/8,", &["--trusted-hosts"]),
    ] {
        let mut words_of = dev("--listen", "rdma://10.0.0.1:7470");
        words_of.extend(["--trusted-hosts".to_owned(), hosts.to_owned()]);
        table.case(&words_of, 2, words);
    }
    table.case(&dev("--trusted-hosts", "10.0.0.0/8"), 2, &["--listen"]);
    let mut alone = dev("--listen", "shm:///run/m.sock");
    alone.extend(["--trusted-hosts".to_owned(), "10.0.0.0/8".to_owned()]);
    table.case(&alone, 2, &["--trusted-hosts", "tcp:// or rdma:// too"]);
    // Here the address is no device's, whatever the machine has.
    let unmade = format!("{directory}/unmade");
    let listen = ["dev", "--dir", &unmade, "--listen", "rdma://192.0.2.1:7470"];
    table.case(&listen, 1, without_rdma());
    let listen = ["dev", "--dir", &unmade, "--listen=tcp://127.0.0.1:7470"];
    let listen = [&listen[..], &["--listen=rdma://192.0.2.1:7470"]].concat();
    table.case(&listen, 1, without_rdma());
    if !without_rdma().is_empty() {
        let left = std::fs::read_dir(&unmade).unwrap().count();
        assert_eq!(left, 0, "something was formatted for nothing");
    }
    table.finish("addresses of gannet dev");
}

#[test]
fn addresses_of_commands() {
    let top = tempfile::tempdir().unwrap();
    let file = text(&top.path().join("file"));
    write(&top.path().join("file"), b"content");
    let local = format!("shm://{}/nobody.sock", text(top.path()));
    let nobody = format!("tcp://127.0.0.1:{}", port_of_nobody());
    let babbler = Babbler::start();
    let somebody = format!("tcp://127.0.0.1:{}", babbler.port);
    let mut table = Table::default();
    for command in [&["ls"][..], &["cat", "/f"], &["put", &file, "/f"], &["stats"]] {
        let with = |words: &[&str]| -> Vec<String> {
            let words = [command, words, &["--patience", "100ms"]].concat();
            words.into_iter().map(str::to_owned).collect()
        };
        let at = |server: &str| with(&["--server", server]);
        table.case(&at(&nobody), 1, &["nobody listens", "metadata server running"]);
        table.case(&at(&somebody), 1, &["does something else listen"]);
        table.case(&at("tcp://no-such-host.invalid:7470"), 1, &["no-such-host.invalid"]);
        let only = |list: &str| with(&["--server", &local, "--fabric", list]);
        table.case(&only(""), 2, &["--fabric", "no fabric"]);
        table.case(&only("udp"), 2, &["--fabric", "\"udp\"", "shm, rdma or tcp"]);
        table.case(&only("tcp,"), 2, &["--fabric"]);
        table.case(&only("tcp,tcp"), 2, &["--fabric", "twice"]);
        table.case(&only("tcp,rdma"), 2, &["rdma,tcp", "--server", &local, "or shm:// too"]);
        // What it leaves is tried.
        table.case(&only("tcp,shm"), 1, &["metadata server running"]);
        for (word, value, hint) in [
            ("--tcp-peer-timeout", "1999ms", "2s to 10m"),
            ("--tcp-peer-timeout", "601s", "2s to 10m"),
            ("--tcp-peer-timeout", "5", "as in \"10s\""),
            ("--tcp-peer-timeout", "-5s", "as in \"10s\""),
            ("--tcp-connect-timeout", "9ms", "10ms to 1m"),
            ("--tcp-connect-timeout", "61s", "10ms to 1m"),
            ("--tcp-connect-timeout", "", "as in \"10s\""),
            ("--tcp-payload-checksums", "on", "true, false"),
        ] {
            let argument = format!("{word}={value}");
            table.case(&with(&["--server", &nobody, &argument]), 2, &[word, value, hint]);
        }
        let slow = ["--tcp-peer-timeout", "10m", "--tcp-connect-timeout", "1m"];
        let all = with(&[&["--server", &nobody, "--tcp-payload-checksums"][..], &slow].concat());
        table.case(&all, 1, &["nobody listens"]);
    }
    let window = ["cat", "/f", "--server", &local, "--fabric=shm,tcp", "--protection=window"];
    table.case(&window, 2, &["--protection", "memory windows"]);
    table.finish("addresses of commands");
}

#[test]
fn configurations_for_rdma() {
    let top = tempfile::tempdir().unwrap();
    let base = text(top.path());
    let (meta, target) = (top.path().join("m.toml"), top.path().join("t.toml"));
    let store =
        format!("[[store]]\npath = \"{base}/store\"\nkind = \"directory\"\nsize = \"8M\"\n");
    let mut table = Table::default();
    // The lines from the second on, and what is said about them.
    for (lines, words) in [
        ("trusted_uids = [1000]", &["2: trusted_uids", "trusted_hosts"][..]),
        ("trusted_hosts = [\"storage-1\"]", &["2: trusted_hosts", "storage-1", "192.168.1.0/24"]),
        ("trusted_hosts = [\"10.0.0.1/8\"]", &["2: trusted_hosts", "10.0.0.0/8 for the whole"]),
        ("rdma = 1", &["2:"]),
        ("[rdma]\nconections_max = 1", &["3:", "unknown key `conections_max`"]),
        ("[rdma]\nconnections_max = 0", &["3: rdma.connections_max", "1 to 32768"]),
        ("[rdma]\nconnections_max = \"1\"", &["3: rdma.connections_max"]),
        ("[rdma]\nshared_receives = 1", &["3: rdma.shared_receives", "64 to 65536"]),
        ("[rdma]\nacknowledge_timeout = 5", &["3: rdma.acknowledge_timeout", "in quotes"]),
        ("[rdma]\nacknowledge_timeout = \"1us\"", &["3: rdma.acknowledge_timeout", "1ms to 10s"]),
    ] {
        for (command, path) in [("metaserver", &meta), ("target", &target)] {
            let rest = match command {
                "metaserver" => format!("directory = \"{base}/meta\"\n"),
                _ => "metaserver = \"rdma://10.0.0.1:7470\"\n".to_owned(),
            };
            // A table ends at the next one, so that other keys come first.
            let (lines, rest, shift) = match lines.starts_with('[') {
                true => (format!("{rest}{lines}"), String::new(), 1),
                false => (lines.to_owned(), rest, 0),
            };
            let store = if command == "target" { store.as_str() } else { "" };
            write(path, format!("listen = \"rdma://10.0.0.2:7480\"\n{lines}\n{rest}{store}"));
            let place = path.file_name().unwrap().to_str().unwrap();
            let (line, what) = words[0].split_once(':').unwrap();
            let line = line.parse::<u32>().unwrap() + shift;
            let mut words = words.to_vec();
            let first = format!("{place}:{line}:{what}");
            words[0] = &first;
            table.case(&[command, "--config", &text(path)], 2, &words);
        }
    }
    let keys = format!("directory = \"{base}/meta\"\nlisten = \"rdma://10.0.0.1:65535\"\n");
    write(&meta, format!("{keys}reactors = 2\n"));
    let words = ["m.toml:2: listen", "no port for reactor 1", "at most 65534"];
    table.case(&["metaserver", "--config", &text(&meta)], 2, &words);

    // What is right as far as the files go: now the machine is asked.
    write(&meta, keys.replace("10.0.0.1:65535", "192.0.2.1:7470"));
    write(
        &target,
        format!(
            "listen = \"rdma://192.0.2.1:7480\"\nmetaserver = \"rdma://192.0.2.1:7470\"\n\
             trusted_hosts = [\"192.0.2.0/24\"]\n{store}[rdma]\nacknowledge_timeout = \"10ms\"\n"
        ),
    );
    for (command, path) in [("metaserver", &meta), ("target", &target)] {
        let mut format = gannet();
        format.args([command, "format", "--config", &text(path)]);
        assert!(run(format).status.success());
        table.case(&[command, "--config", &text(path)], 1, without_rdma());
    }
    table.finish("configurations for RDMA");
}

#[test]
fn configurations_for_several_fabrics() {
    let top = tempfile::tempdir().unwrap();
    let base = text(top.path());
    let path = top.path().join("m.toml");
    let config = text(&path);
    let mut table = Table::default();
    let (shm, tcp, rdma) = ("shm:///m.sock", "tcp://10.0.0.2:7480", "rdma://10.0.0.2:7480");
    // The addresses, the lines from the third on, and what is said about them.
    for (listen, lines, words) in [
        (&[tcp][..], "trusted_uids = [1]", &["3: trusted_uids", tcp, "trusted_hosts"][..]),
        (&[tcp, rdma], "trusted_uids = [1]", &["3: trusted_uids", tcp, rdma]),
        (&[shm], "trusted_hosts = [\"10.0.0.1\"]", &["3: trusted_hosts", shm, "trusted_uids"]),
        (&[shm, rdma], "[tcp]", &["3: tcp", "not tcp://", "leave the table out"]),
        (&[shm, tcp], "[rdma]", &["3: rdma", "not rdma://", "leave the table out"]),
        (&[shm, tcp], "trusted_hosts = [\"10.0.0.1/8\"]", &["3: trusted_hosts", "10.0.0.0/8"]),
        (&[tcp], "tcp = 1", &["3:"]),
        (&[tcp], "[tcp]\nconnection_max = 1", &["4:", "unknown key `connection_max`"]),
        (&[tcp], "[tcp]\nconnections_max = 0", &["4: tcp.connections_max", "1 to 65536"]),
        (&[tcp], "[tcp]\nconnections_max = \"1\"", &["4: tcp.connections_max"]),
        (&[tcp], "[tcp]\nhalf_open_max = 20000", &["4: tcp.half_open_max", "1 to 16384"]),
        (&[tcp], "[tcp]\npayload_checksums = 1", &["4: tcp.payload_checksums", "true or false"]),
        (&[tcp], "[tcp]\npeer_timeout = \"1s\"", &["4: tcp.peer_timeout", "2s to 10m"]),
        (&[tcp], "[tcp]\npeer_timeout = 5", &["4: tcp.peer_timeout", "in quotes"]),
        (&[tcp], "[tcp]\nconnect_timeout = \"1h\"", &["4: tcp.connect_timeout", "10ms to 1m"]),
        (&[tcp, tcp], "", &["2: listen", tcp, "named twice"]),
        (&["shm:///m.sock", "shm:////m.sock"], "", &["2: listen", "named twice"]),
        (&[tcp, "tcp://10.0.0.2:7481"], "reactors = 2", &["2: listen", "overlap", "reactor 1"]),
        (&[shm, "shm:///m.sock.1"], "reactors = 2", &["2: listen", "overlap", "directories"]),
        (&["tcp://10.0.0.2:65535"], "reactors = 2", &["2: listen", "no port for reactor 1"]),
        (&[shm; 9], "", &["2: listen", "9 addresses", "8 at most"]),
    ] {
        let listed: Vec<String> = listen.iter().map(|address| format!("{address:?}")).collect();
        let head = format!("directory = \"{base}/meta\"\nlisten = [{}]\n", listed.join(", "));
        write(&path, format!("{head}{lines}\n"));
        let first = format!("m.toml:{}", words[0]);
        let words: Vec<&str> = [&[first.as_str()], &words[1..]].concat();
        table.case(&["metaserver", "--config", &config], 2, &words);
    }
    let target = top.path().join("t.toml");
    let store =
        format!("[[store]]\npath = \"{base}/store\"\nkind = \"directory\"\nsize = \"8M\"\n");
    for (lines, words) in [
        (
            "listen = [\"tcp://10.0.0.2:7480\", \"shm:///t.sock\"]\nmetaserver = \"shm:///t.sock\"\n",
            &["t.toml:2: metaserver", "own listen address"][..],
        ),
        // Only the metadata server is reached there, and it connects to nobody.
        (
            "listen = \"shm:///t.sock\"\nmetaserver = \"tcp://10.0.0.1:7470\"\n\
             trusted_hosts = [\"10.0.0.0/8\"]\n",
            &["t.toml:3: trusted_hosts", "leave the key out"],
        ),
        (
            "listen = \"shm:///t.sock\"\nmetaserver = \"tcp://10.0.0.1:7470\"\n[rdma]\n",
            &["t.toml:3: rdma", "leave the table out"],
        ),
    ] {
        write(&target, format!("{lines}{store}"));
        table.case(&["target", "--config", &text(&target)], 2, words);
    }
    assert!(!top.path().join("meta").exists(), "a refused configuration touched something");
    table.finish("configurations for several fabrics");
}

#[test]
fn ports_and_sockets_that_are_taken() {
    let top = tempfile::tempdir().unwrap();
    let base = text(top.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut table = Table::default();
    let directory = format!("{base}/dev");
    let small = ["--store-size=ram:8M", "--log-in-ram", "--targets=1"];
    let dev = |listen: &[&str]| -> Vec<String> {
        let listen = listen.iter().map(|address| format!("--listen={address}"));
        let words = ["dev", "--dir", &directory].into_iter().chain(small).map(str::to_owned);
        words.chain(listen).collect()
    };
    let socket = format!("shm://{base}/meta.sock");
    let tcp = format!("tcp://127.0.0.1:{port}");
    table.case(&dev(&[&socket, &tcp]), 1, &[&tcp, "another address"]);
    // No address of this machine, whatever it is; and one that others could reach.
    let foreign = "tcp://192.0.2.1:7470";
    table.case(&dev(&[&socket, foreign]), 1, &[&format!("listening at {foreign}"), "ip addr"]);
    let accepts = format!("{foreign} accepts this machine's own addresses only");
    table.case(&dev(&[&socket, foreign]), 1, &[&accepts, "--trusted-hosts, as in"]);
    table.case(&dev(&["tcp://no-such-host.invalid:7470"]), 1, &["no-such-host.invalid"]);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "formatted for nothing");
    table.case(&dev(&[&format!("shm://{base}/none/meta.sock")]), 1, &["none", "create it"]);
    drop(taken);

    // The same of servers of their own.
    let (meta, target) = (top.path().join("m.toml"), top.path().join("t.toml"));
    let store = format!("[[store]]\npath = \"{base}/store\"\nkind = \"ram\"\nsize = \"8M\"\n");
    let listen = format!("listen = [\"shm://{base}/x.sock\", \"{foreign}\"]\n");
    write(&meta, format!("directory = \"{base}/meta\"\n{listen}"));
    write(&target, format!("{listen}metaserver = \"{socket}\"\n{store}"));
    for (command, path) in [("metaserver", &meta), ("target", &target)] {
        let mut format = gannet();
        format.args([command, "format", "--config", &text(path)]);
        assert!(run(format).status.success());
        let words = [foreign, "ip addr", &accepts, "in trusted_hosts, as in"];
        table.case(&[command, "--config", &text(path)], 1, &words);
    }
    table.finish("ports and sockets that are taken");
}
