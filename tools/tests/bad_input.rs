//! Whatever is wrong in an argument, a configuration or on disk is told with its name and ends with
//! exit code 1 (the operation failed) or 2 (it was asked for wrongly), never with a panic.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use common::table::{Table, text, without_rdma};
use common::{Server, gannet, run, write};

#[test]
fn arguments() {
    let top = tempfile::tempdir().unwrap();
    let directory = text(top.path());
    let dev = |option: &str, value: &str| -> Vec<String> {
        ["dev", "--dir", &directory, option, value].map(str::to_owned).to_vec()
    };
    let mut table = Table::default();
    table.case::<&str>(&[], 2, &["Usage"]);
    table.case(&["fly"], 2, &["fly"]);
    table.case(&["--log"], 2, &["--log"]);
    table.case(&["--log", "gannet=loud", "dev", "--dir", "/x"], 2, &["gannet=loud", "GANNET_LOG"]);
    table.case(&["dev"], 2, &["--dir"]);
    table.case(&["dev", "--dir"], 2, &["--dir"]);
    table.case(&["dev", "--dir", "/dev/null/x"], 1, &["/dev/null/x"]);
    table.case(&["dev", "--dir", "/dev/null"], 1, &["/dev/null"]);
    let long = format!("{directory}/{}", "d".repeat(100));
    table.case(&["dev", "--dir", &long], 2, &["ddd", "at most 107"]);
    for (option, values) in [
        ("--targets", &["0", "17", "-1", "two", ""][..]),
        ("--reactors", &["0", "65", "-1", "two", ""]),
        ("--cores", &["", "x", "1,", "2-1", "0,0", "1024", "99999999999999999999"]),
        ("--idle", &["lazy", ""]),
        ("--store-size", &["", "x", "1K", "ram:", "ram:1K", "-1", "9999P", "1.5G"]),
    ] {
        for value in values {
            let words = if value.is_empty() { vec![option] } else { vec![option, value] };
            table.case(&dev(option, value), 2, &words);
        }
    }
    table.case(&dev("--cores", "1000"), 2, &["core 1000"]);
    table.case(&dev("--ready-file", "/dev/null/ready"), 1, &["/dev/null/ready"]);
    table.case(&["dev", "--dir", &directory, "extra"], 2, &["extra"]);

    for command in ["metaserver", "target"] {
        table.case(&[command], 2, &["--config"]);
        table.case(&[command, "--config"], 2, &["--config"]);
        table.case(&[command, "format"], 2, &["--config"]);
        table.case(&[command, "--config", "/no/such.toml"], 2, &["/no/such.toml", "create it"]);
        table.case(&[command, "--config", "/dev"], 2, &["/dev"]);
        table.case(&[command, "burn", "--config", "x"], 2, &["burn"]);
    }
    table.finish("arguments of servers");
}

#[test]
fn arguments_of_commands_on_files() {
    let top = tempfile::tempdir().unwrap();
    let file = text(&top.path().join("file"));
    write(Path::new(&file), b"content");
    let nobody = format!("shm://{}/nobody.sock", text(top.path()));
    let mut table = Table::default();
    for command in [
        &["mkdir", "/d"][..],
        &["ls"],
        &["stat", "/f"],
        &["cat", "/f"],
        &["put", &file, "/f"],
        &["get", "/f", "/tmp/f"],
        &["mv", "/a", "/b"],
        &["rm", "/f"],
        &["df"],
        &["stats"],
    ] {
        let with = |server: &str| -> Vec<String> {
            let server = ["--server", server, "--patience", "100ms"];
            command.iter().chain(&server).map(|word| (*word).to_owned()).collect()
        };
        table.case(command, 2, &["--server"]);
        table.case(&with(""), 2, &["no scheme"]);
        table.case(&with("meta.sock"), 2, &["meta.sock", "no scheme"]);
        table.case(&with("udp://host:1"), 2, &["udp", "Gannet knows shm, rdma and tcp"]);
        table.case(&with("tcp://host"), 2, &["tcp://host", "a host and a port"]);
        table.case(&with("tcp://host:0"), 2, &["tcp://host:0", "leaves the port open"]);
        table.case(&with("tcp://0.0.0.0:7470"), 2, &["tcp://0.0.0.0:7470", "every address"]);
        table.case(&with("rdma://host"), 2, &["rdma://host", "a host and a port"]);
        table.case(&with("rdma://host:0"), 2, &["rdma://host:0", "leaves the port open"]);
        table.case(&with("rdma://[::]:7470"), 2, &["rdma://[::]:7470", "every address"]);
        table.case(&with("rdma://127.0.0.1:1"), 1, without_rdma());
        table.case(&with("shm://relative"), 2, &["shm://relative", "absolute"]);
        table.case(&with(&format!("shm:///{}", "x".repeat(200))), 2, &["at most 107"]);
        table.case(&with(&nobody), 1, &["metadata server", "running"]);
        let mut unknown = with(&nobody);
        unknown.push("--frobnicate".to_owned());
        table.case(&unknown, 2, &["--frobnicate"]);
    }
    let with = |words: &[&str]| -> Vec<String> {
        let server = ["--server", &nobody];
        words.iter().chain(&server).map(|word| (*word).to_owned()).collect()
    };
    for command in ["mkdir", "stat", "cat", "rm", "put", "get", "mv"] {
        table.case(&with(&[command]), 2, &["required"]);
    }
    let long = "n".repeat(256);
    for command in [&["mkdir"][..], &["ls"], &["stat"], &["cat"], &["rm"], &["mv", "/a"]] {
        for (path, word) in [("", "empty"), ("/a/../b", ".."), (long.as_str(), "too long")] {
            let mut words = command.to_vec();
            words.push(path);
            table.case(&with(&words), 2, &["path", word]);
        }
    }
    table.case(&with(&["rm", "/"]), 2, &["root"]);
    table.case(&with(&["mv", "/", "/a"]), 2, &["root"]);
    table.case(&with(&["put", "/no/such", "/x"]), 1, &["/no/such"]);
    table.case(&with(&["put", &file, "/.."]), 2, &[".."]);
    table.case(&with(&["get", "/../x", "/tmp/x"]), 2, &[".."]);
    table.case(&with(&["get", "/x", "/no/such/place"]), 1, &["/no/such"]);
    table.case(&with(&["get", "/x", "/dev/null/place"]), 1, &["/dev/null"]);
    for (option, values) in [
        ("--depth", &["0", "257", "-1", "x"][..]),
        ("--files", &["0", "1025", "-1", "x"]),
        ("--patience", &["5", "-1s", "x"]),
    ] {
        for value in values {
            table.case(&with(&["put", &file, "/f", option, value]), 2, &[option, value]);
        }
    }
    for command in [&["cat", "/f"][..], &["put", &file, "/f"], &["get", "/f", "/tmp/f"]] {
        let asked = |how: &str| with(&[command, &["--protection", how]].concat());
        table.case(&asked("shared"), 2, &["--protection", "\"region\" or \"window\""]);
        table.case(&asked("window"), 2, &["--protection", "memory windows", "rdma://"]);
    }
    let perf = ["perf", "--embedded", "--protection", "window"];
    table.case(&perf, 2, &["--protection", "memory windows", "rdma://"]);
    // Bytes that are no text are a name like any other until a server is asked.
    let odd = OsString::from_vec(b"/\xff\xfe".to_vec());
    let words: Vec<OsString> =
        vec!["cat".into(), odd, "--server".into(), nobody.clone().into(), "--patience=1ms".into()];
    table.case(&words, 1, &["reading"]);
    table.finish("arguments of commands on files");
}

/// Values that no key of this type takes.
const NO_TEXT: &[&str] = &["1", "true", "[]", "{}", "1.5", "1979-05-27"];
const NO_DURATION: &[&str] =
    &["5", "true", "[]", "\"5\"", "\"x\"", "\"-1s\"", "\"99999h\"", "\"0s\""];
/// What no list of networks may be where other machines do not reach; the last is a good one.
const NO_NETWORKS: &[&str] = &[
    "1",
    "\"10.0.0.0/8\"",
    "[1]",
    "[\"\"]",
    "[\"storage-1\"]",
    "[\"10.0.0.1/8\"]",
    "[\"10.0.0.1\", \"10.0.0.1/32\"]",
    "[\"10.0.0.0/8\"]",
];
const NO_LIST: &[&str] = &["1", "\"0\"", "[\"0\"]", "[-1]", "[0, 0]", "[99999999999]", "[1.5]"];

#[test]
fn configurations_of_metadata_servers() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("m.toml");
    let (config, directory) = (text(&path), text(&top.path().join("meta")));
    let good = [
        ("directory", format!("{directory:?}")),
        ("listen", format!("\"shm://{}/m.sock\"", text(top.path()))),
    ];
    let bad_uri: Vec<String> = [
        "\"\"",
        "\"m.sock\"",
        "\"rdma://h\"",
        "\"rdma://0.0.0.0:7470\"",
        "\"rdma://[::]:7470\"",
        "\"rdma://10.0.0.1:0\"",
        "\"udp://10.0.0.1:7470\"",
        "\"tcp://10.0.0.1\"",
        "\"tcp://0.0.0.0:7470\"",
        "\"tcp://10.0.0.1:0\"",
        "[\"shm:///m.sock\", 1]",
        "[\"shm:///m.sock\", \"m.sock\"]",
        "[\"tcp://10.0.0.1:7470\", \"tcp://10.0.0.1:7470\"]",
        "[[\"shm:///m.sock\"]]",
        "\"shm://relative\"",
        &format!("\"shm:///{}\"", "x".repeat(120)),
        "\"shm:///a\\u0000b\"",
    ]
    .map(str::to_owned)
    .to_vec();
    let bad: Vec<(&str, Vec<&str>)> = vec![
        ("directory", [NO_TEXT, &["\"\"", "\"relative\"", "\"/a\\u0000b\""]].concat()),
        ("listen", [NO_TEXT, &bad_uri.iter().map(String::as_str).collect::<Vec<_>>()].concat()),
        ("reactors", vec!["0", "65", "-1", "\"1\"", "1.5", "true", "[]"]),
        ("cores", [NO_LIST, &["[0, 1]"]].concat()),
        ("idle", [NO_TEXT, &["\"\"", "\"lazy\""]].concat()),
        ("lease", NO_DURATION.to_vec()),
        ("handshake_timeout", NO_DURATION.to_vec()),
        ("target_wait", NO_DURATION.to_vec()),
        ("grants_max", vec!["0", "-1", "511", "1000", "8192", "\"1024\"", "true"]),
        ("slots", vec!["0", "-1", "257", "\"256\"", "true"]),
        ("lock_wait", NO_DURATION.to_vec()),
        ("stop_grace", NO_DURATION.to_vec()),
        ("trusted_uids", NO_LIST.to_vec()),
        ("trusted_hosts", NO_NETWORKS.to_vec()),
    ];
    let mut table = Table::default();
    for (key, values) in &bad {
        for value in values {
            let others = good.iter().filter(|(name, _)| name != key);
            let mut content: String =
                others.map(|(name, value)| format!("{name} = {value}\n")).collect();
            let line = content.lines().count() + 1;
            content.push_str(&format!("{key} = {value}\n"));
            write(&path, content);
            let place = format!("m.toml:{line}: {key}");
            table.case(&["metaserver", "--config", &config], 2, &[&place]);
        }
    }
    let content: String = good.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    for (extra, words) in [
        ("sloths = 3", &["m.toml:3:", "unknown key `sloths`", "`slots`"][..]),
        ("[section]\nx = 1", &["m.toml:3:", "unknown key `section`"]),
        ("listen = \"shm:///again\"", &["m.toml:3:", "duplicate key"]),
        ("slots =", &["m.toml:3:"]),
        ("slots = \"256", &["m.toml:3:"]),
        ("= 3", &["m.toml:3:"]),
        ("\0", &["m.toml:3:"]),
    ] {
        write(&path, format!("{content}{extra}\n"));
        table.case(&["metaserver", "--config", &config], 2, words);
        table.case(&["metaserver", "format", "--config", &config], 2, words);
    }
    for (missing, _) in &good {
        let others = good.iter().filter(|(name, _)| name != missing);
        let content: String = others.map(|(name, value)| format!("{name} = {value}\n")).collect();
        write(&path, content);
        table.case(&["metaserver", "--config", &config], 2, &["m.toml", missing, "is missing"]);
    }
    write(&path, [content.as_bytes(), b"idle = \"\xff\"\n"].concat());
    table.case(&["metaserver", "--config", &config], 2, &["m.toml:3:", "UTF-8"]);
    write(&path, vec![b'#'; (1 << 20) + 1]);
    table.case(&["metaserver", "--config", &config], 2, &["m.toml", "1048576 bytes"]);
    assert!(!Path::new(&directory).exists(), "a refused configuration touched something");
    table.finish("configurations of metadata servers");
}

#[test]
fn configurations_of_data_servers() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("t.toml");
    let (config, store) = (text(&path), text(&top.path().join("store")));
    let good = [
        ("listen", format!("\"shm://{}/t.sock\"", text(top.path()))),
        ("metaserver", format!("\"shm://{}/m.sock\"", text(top.path()))),
    ];
    let good_store = [
        ("path", format!("{store:?}")),
        ("kind", "\"directory\"".to_owned()),
        ("size", "\"8M\"".to_owned()),
    ];
    let render = |pairs: &mut dyn Iterator<Item = &(&str, String)>| -> String {
        pairs.map(|(name, value)| format!("{name} = {value}\n")).collect()
    };
    let bad: Vec<(&str, Vec<&str>)> = vec![
        (
            "listen",
            [
                NO_TEXT,
                &[
                    "\"\"",
                    "\"x\"",
                    "\"udp://h:1\"",
                    "\"shm://r\"",
                    "[\"tcp://h:1\", \"tcp://h:1\"]",
                ],
            ]
            .concat(),
        ),
        (
            "metaserver",
            [
                NO_TEXT,
                &["\"\"", "\"x\"", "\"udp://h:1\"", "\"shm://r\"", "\"rdma://10.0.0.1:0\""],
                &["\"tcp://10.0.0.1:0\"", "[\"tcp://10.0.0.1:7470\"]"],
            ]
            .concat(),
        ),
        ("cores", [NO_LIST, &["[0, 1]"]].concat()),
        ("idle", [NO_TEXT, &["\"\"", "\"lazy\""]].concat()),
        ("handshake_timeout", NO_DURATION.to_vec()),
        ("stop_grace", NO_DURATION.to_vec()),
        ("trusted_uids", NO_LIST.to_vec()),
        ("trusted_hosts", NO_NETWORKS.to_vec()),
    ];
    let whole_store = format!("[[store]]\n{}", render(&mut good_store.iter()));
    let mut table = Table::default();
    for (key, values) in &bad {
        for value in values {
            let mut content = render(&mut good.iter().filter(|(name, _)| name != key));
            let line = content.lines().count() + 1;
            content.push_str(&format!("{key} = {value}\n{whole_store}"));
            write(&path, content);
            let place = format!("t.toml:{line}: {key}");
            table.case(&["target", "--config", &config], 2, &[&place]);
        }
    }
    let bad_store: Vec<(&str, Vec<&str>)> = vec![
        ("path", [NO_TEXT, &["\"\"", "\"relative\""]].concat()),
        ("kind", [NO_TEXT, &["\"\"", "\"tape\""]].concat()),
        ("size", vec!["true", "-1", "0", "1", "\"1M\"", "\"x\"", "\"9999P\"", "[]", "1.5", "\"\""]),
    ];
    for (key, values) in &bad_store {
        for value in values {
            let mut content = render(&mut good.iter());
            content.push_str("[[store]]\n");
            content.push_str(&render(&mut good_store.iter().filter(|(name, _)| name != key)));
            let line = content.lines().count() + 1;
            content.push_str(&format!("{key} = {value}\n"));
            write(&path, content);
            let place = format!("t.toml:{line}: store.{key}");
            table.case(&["target", "--config", &config], 2, &[&place]);
            table.case(&["target", "format", "--config", &config], 2, &[&place]);
        }
    }
    for (missing, _) in &good_store {
        let content = render(&mut good_store.iter().filter(|(name, _)| name != missing));
        write(&path, format!("{}[[store]]\n{content}", render(&mut good.iter())));
        let key = format!("store.{missing}");
        table.case(&["target", "--config", &config], 2, &["t.toml:3:", &key, "missing"]);
    }
    for (missing, _) in &good {
        let content = render(&mut good.iter().filter(|(name, _)| name != missing));
        write(&path, format!("{content}{whole_store}"));
        table.case(&["target", "--config", &config], 2, &["t.toml", missing, "is missing"]);
    }
    for (tail, words) in [
        (String::new(), &["store is missing"][..]),
        ("store = 1\n".to_owned(), &["t.toml:3:"]),
        ("store = []\n".to_owned(), &["store is missing"]),
        ("[store]\npath = \"/x\"\n".to_owned(), &["t.toml:3:"]),
        (format!("{whole_store}pat = 1\n"), &["t.toml:7:", "unknown key `pat`", "`path`"]),
        (format!("{whole_store}{whole_store}"), &["t.toml:7: store.path", "twice"]),
        (format!("disks = 2\n{whole_store}"), &["t.toml:3:", "unknown key `disks`", "`store`"]),
        (
            "[[store]]\npath = \"/dev/x\"\nkind = \"device\"\nsize = \"1G\"\n".to_owned(),
            &["t.toml:6: store.size", "leave size out"],
        ),
    ] {
        write(&path, format!("{}{tail}", render(&mut good.iter())));
        table.case(&["target", "--config", &config], 2, words);
    }
    assert!(!Path::new(&store).exists(), "a refused configuration touched something");
    table.finish("configurations of data servers");
}

#[test]
fn what_a_metadata_server_finds_on_disk() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("m.toml");
    let (config, base) = (text(&path), text(top.path()));
    let configure = |directory: &str, listen: &str, extra: &str| {
        let keys = format!("directory = \"{directory}\"\nlisten = \"shm://{listen}\"\n{extra}\n");
        write(&path, keys);
    };
    let run = ["metaserver", "--config", &config];
    let format = ["metaserver", "format", "--config", &config];
    let (meta, socket) = (format!("{base}/meta"), format!("{base}/m.sock"));
    let mut table = Table::default();

    configure(&format!("{base}/none"), &socket, "");
    table.case(&run, 1, &[&format!("{base}/none"), "create it"]);
    configure("/dev/null/meta", &socket, "");
    table.case(&run, 1, &["/dev/null/meta"]);
    table.case(&format, 1, &["/dev/null/meta"]);
    write(&top.path().join("file"), b"");
    configure(&format!("{base}/file"), &socket, "");
    table.case(&run, 1, &[&format!("{base}/file")]);
    table.case(&format, 1, &[&format!("{base}/file")]);

    std::fs::create_dir(&meta).unwrap();
    configure(&meta, &socket, "");
    table.case(&run, 1, &[&meta, "gannet metaserver format --config"]);
    let mut command = gannet();
    command.args(format);
    assert!(common::run(command).status.success());
    table.case(&format, 1, &["log.0", "already"]);
    configure(&meta, &socket, "reactors = 2");
    table.case(&run, 1, &[&meta, "formatted for 1", "reactors = 1"]);

    configure(&meta, &format!("{base}/none/m.sock"), "");
    table.case(&run, 1, &[&format!("{base}/none"), "create it"]);
    configure(&meta, &format!("{base}/file/m.sock"), "");
    table.case(&run, 1, &[&format!("{base}/file")]);
    configure(&meta, &format!("{base}/file"), "");
    table.case(&run, 1, &[&format!("{base}/file"), "in the way"]);
    configure(&meta, &socket, "cores = [1000]");
    table.case(&run, 2, &["core 1000"]);

    configure(&meta, &socket, "lock_wait = \"10ms\"");
    let mut command = gannet();
    command.args(run);
    let mut server = Server::start(command);
    table.case(&run, 1, &["log.0", "in use"]);
    assert!(server.stop().success());

    let log = top.path().join("meta/log.0");
    let intact = std::fs::read(&log).unwrap();
    for (content, words) in [
        (Vec::new(), &["log.0"][..]),
        (intact[..100].to_vec(), &["log.0"]),
        (vec![0; intact.len()], &["log.0"]),
        (vec![0xff; intact.len()], &["log.0"]),
        ([vec![0xff; 4096], intact[4096..].to_vec()].concat(), &["log.0"]),
    ] {
        write(&log, content);
        table.case(&run, 1, words);
    }
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    table.case(&run, 1, &["log.0", "directory"]);
    table.finish("what a metadata server finds on disk");
}

#[test]
fn what_a_data_server_finds_on_disk() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("t.toml");
    let (config, base) = (text(&path), text(top.path()));
    let configure = |listen: &str, place: &str, kind: &str, size: &str| {
        let size = if size.is_empty() { String::new() } else { format!("size = \"{size}\"\n") };
        let keys = format!(
            "listen = \"shm://{listen}\"\nmetaserver = \"shm://{base}/m.sock\"\n\
             [[store]]\npath = \"{place}\"\nkind = \"{kind}\"\n{size}"
        );
        write(&path, keys);
    };
    let run = ["target", "--config", &config];
    let format = ["target", "format", "--config", &config];
    let (store, socket) = (format!("{base}/store"), format!("{base}/t.sock"));
    let mut table = Table::default();

    for (place, kind, size) in [
        (format!("{base}/none"), "directory", "8M"),
        (format!("{base}/none"), "ram", "8M"),
        (format!("{base}/none"), "device", ""),
    ] {
        configure(&socket, &place, kind, size);
        table.case(&run, 1, &[&place, "format"]);
    }
    for place in ["/dev/null", &format!("{base}/none"), &base, &config] {
        configure(&socket, place, "device", "");
        table.case(&format, 1, &[place]);
    }
    configure(&socket, "/dev/null/store", "directory", "8M");
    table.case(&run, 1, &["/dev/null/store"]);
    table.case(&format, 1, &["/dev/null/store"]);
    configure(&socket, &store, "directory", "512T");
    table.case(&format, 1, &[&store]);
    let _left = std::fs::remove_dir_all(&store);

    configure(&socket, &store, "directory", "8M");
    let mut command = gannet();
    command.args(format);
    assert!(common::run(command).status.success());
    table.case(&format, 1, &[&store, "--force"]);
    configure(&format!("{base}/none/t.sock"), &store, "directory", "8M");
    table.case(&run, 1, &[&format!("{base}/none"), "create it"]);
    configure(&config, &store, "directory", "8M");
    table.case(&run, 1, &[&config, "in the way"]);
    configure(&socket, &store, "ram", "8M");
    table.case(&run, 1, &[&store]);

    configure(&socket, &store, "directory", "8M");
    let blocks = top.path().join("store/blocks");
    let intact = std::fs::read(&blocks).unwrap();
    let with_version = |version: u8| {
        let mut content = intact.clone();
        // The checksum no longer fits either: both copies are refused.
        content[8] = version;
        content[4096 + 8] = version;
        content
    };
    for content in [
        Vec::new(),
        intact[..100].to_vec(),
        intact[..1 << 20].to_vec(),
        vec![0; intact.len()],
        vec![0xff; intact.len()],
        [vec![0xff; 8192], intact[8192..].to_vec()].concat(),
        with_version(0xee),
    ] {
        write(&blocks, content);
        table.case(&run, 1, &[&store]);
    }
    std::fs::remove_file(&blocks).unwrap();
    std::fs::create_dir(&blocks).unwrap();
    table.case(&run, 1, &[&store]);
    table.finish("what a data server finds on disk");
}

#[test]
fn what_dev_finds_in_its_directory() {
    let top = tempfile::tempdir().unwrap();
    let base = text(top.path());
    let config = text(&top.path().join("config.toml"));
    write(
        Path::new(&config),
        format!("directory = \"{base}/meta\"\nlisten = \"shm://{base}/m.sock\"\nreactors = 2\n"),
    );
    let mut command = gannet();
    command.args(["metaserver", "format", "--config", &config]);
    assert!(run(command).status.success());
    let mut table = Table::default();
    let dev = |words: &[&str]| -> Vec<String> {
        ["dev", "--dir", &base].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    table.case(&dev(&["--reactors", "1"]), 2, &["--reactors 1", "formatted for 2"]);
    for index in 0..3 {
        std::fs::create_dir(top.path().join(format!("target-{index}"))).unwrap();
    }
    table.case(&dev(&["--targets", "2"]), 2, &["--targets 2", "3 data servers"]);
    write(
        Path::new(&config),
        format!(
            "listen = \"shm://{base}/t.sock\"\nmetaserver = \"shm://{base}/m.sock\"\n\
             [[store]]\npath = \"{base}/target-0\"\nkind = \"directory\"\nsize = \"8M\"\n"
        ),
    );
    let mut command = gannet();
    command.args(["target", "format", "--config", &config]);
    assert!(run(command).status.success());
    table.case(&dev(&["--store-size", "ram:8M"]), 2, &["--store-size", "target-0", "in a file"]);
    table.finish("what dev finds in its directory");
}
