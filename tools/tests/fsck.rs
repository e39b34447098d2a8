//! `gannet fsck`: on logs of servers that were killed, that run, and that somebody damaged.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::table::{Table, text};
use common::{Server, gannet, must, run, write};
use serde_json::Value;

/// Runs the command; returns its exit code, output and messages.
fn fsck(arguments: &[&str]) -> (i32, String, String) {
    let mut command = gannet();
    command.arg("fsck").args(arguments);
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn start(home: &Path) -> Server {
    let mut command = gannet();
    command.arg("dev").arg("--dir").arg(home).args(["--store-size", "64M", "--reactors", "2"]);
    Server::start(command)
}

/// A flipped bit.
fn damage(log: &Path, offset: u64) {
    let file = std::fs::File::options().read(true).write(true).open(log).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_server_killed_under_load_leaves_logs_without_an_error() {
    let top = tempfile::tempdir().unwrap();
    let (tree, home) = (top.path().join("tree"), top.path().join("home"));
    for directory in 0..40 {
        let directory = tree.join(format!("{directory}"));
        std::fs::create_dir_all(&directory).unwrap();
        (0..50).for_each(|file| write(&directory.join(format!("{file}")), vec![7; file * 300]));
    }
    let meta = home.join("meta");
    let server = start(&home);
    let uri = server.ready.clone();
    let (code, _, said) = fsck(&[meta.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("log.0 is in use") && said.contains("the metadata server runs"),
        "{said}"
    );

    must(&uri, &["put", tree.to_str().unwrap(), "/before"]);
    let mut putting = gannet()
        .env("GANNET_SERVER", &uri)
        .args(["put", "--files", "16", tree.to_str().unwrap(), "/during"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let made = || {
        let stats = json(std::str::from_utf8(&must(&uri, &["stats", "--json"])).unwrap());
        stats["totals"]["metaservers"]["name_changes"].as_u64().unwrap()
    };
    let before = made();
    while made() < before + 100 {}
    // By SIGKILL, both of them.
    drop(server);
    putting.kill().unwrap();
    putting.wait().unwrap();

    let (code, output, said) = fsck(&[meta.to_str().unwrap(), "--json"]);
    assert_eq!((code, said.as_str()), (0, ""), "{output}");
    let report = json(&output);
    assert_eq!((&report["clean"], &report["errors"]), (&true.into(), &0.into()), "{output}");
    assert!(report["state"]["files"].as_u64().unwrap() >= 2000, "{output}");
    assert!(report["state"]["directories"].as_u64().unwrap() >= 41, "{output}");
    let stores = report["state"]["stores"].as_array().unwrap();
    assert!(stores.len() == 2 && stores.iter().all(|store| store["mapped"].as_u64() > Some(0)));
    let logs = report["logs"].as_array().unwrap();
    let ends = ["clean", "torn-frame", "remains"];
    for (reactor, log) in logs.iter().enumerate() {
        assert_eq!((&log["superblock"]["reactor"], &log["run"]), (&reactor.into(), &1.into()));
        assert!(log["records"].as_u64() > Some(10), "{log}");
        assert!(ends.contains(&log["end"].as_str().unwrap()), "{log}");
    }

    // The server goes on from there, and nothing that the check did is in its way.
    let mut server = start(&home);
    must(&uri, &["get", "/before", top.path().join("copy").to_str().unwrap()]);
    assert!(server.stop().success());
    let paths: Vec<PathBuf> = (0..2).map(|log| meta.join(format!("log.{log}"))).collect();
    let logs: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let (code, output, _) = fsck(&logs);
    assert!(code == 0 && output.contains("\nclean"), "{output}");
    assert!(output.contains("reactor 1 of 2, format 1, file system "), "{output}");
    assert!(output.contains("run 2; ends in order"), "{output}");

    // Damage in the middle of a log: the first frame of the first run is not the last one.
    damage(&paths[1], 4096 + 20);
    let (code, output, said) = fsck(&logs);
    assert_eq!(code, 3, "{output}");
    let words = "error: reactor 1, log byte 4096: ";
    assert!(output.contains(words) && output.contains("frame 1 is not readable"), "{output}");
    assert!(output.contains("log.1: reactor 1 of 2") && output.contains("not be read to its end"));
    assert!(said.contains("1 error was found"), "{said}");
    let (code, output, _) = fsck(&[meta.to_str().unwrap(), "--json"]);
    let report = json(&output);
    assert_eq!((code, &report["state"], &report["clean"]), (3, &Value::Null, &false.into()));
    let finding = &report["findings"][0];
    assert_eq!((&finding["kind"], &finding["severity"]), (&"log-damaged".into(), &"error".into()));
    assert_eq!((&finding["log_offset"], &finding["reactor"]), (&4096.into(), &1.into()));
    assert_eq!(report["counts"][0]["count"], 1);
    damage(&paths[1], 4096 + 20);
    damage(&paths[0], 200);
    let (code, output, _) = fsck(&[meta.to_str().unwrap()]);
    assert!(code == 3 && output.contains("its superblock is damaged"), "{output}");
}

#[test]
fn what_cannot_be_checked() {
    let top = tempfile::tempdir().unwrap();
    let base = text(top.path());
    let path = top.path().join("m.toml");
    let (config, meta) = (text(&path), format!("{base}/meta"));
    let configure = |reactors: u16| {
        let listen = format!("listen = \"shm://{base}/m.sock\"");
        write(&path, format!("directory = \"{meta}\"\n{listen}\nreactors = {reactors}\n"));
    };
    configure(2);
    let mut table = Table::default();
    table.case(&["fsck"], 2, &["--config", "LOG"]);
    table.case(&["fsck", "--config", &config, "x"], 2, &["cannot be used with"]);
    table.case(&["fsck", "--most", "0", "x"], 2, &["--most"]);
    table.case(&["fsck", "--config", &format!("{base}/none.toml")], 2, &["none.toml"]);
    table.case(&["fsck", "--config", &config], 1, &[&meta, "create it"]);
    table.case(&["fsck", &format!("{base}/none")], 1, &["none"]);
    table.case(&["fsck", &base], 1, &["holds no metadata log", "log.0"]);
    table.case(&["fsck", "/dev/null"], 1, &["/dev/null"]);
    table.case(&["fsck", &config], 1, &["m.toml", "not a Gannet log"]);

    let mut command = gannet();
    command.args(["metaserver", "format", "--config", &config]);
    assert!(run(command).status.success());
    let (code, output, said) = fsck(&["--config", &config]);
    assert!(code == 0 && said.is_empty() && output.ends_with("clean\n"), "{output}{said}");
    let (first, second) = (format!("{meta}/log.0"), format!("{meta}/log.1"));
    table.case(&["fsck", &second], 1, &["log of reactor 0", "2 reactors"]);
    table.case(&["fsck", &first, &first], 1, &["log.0", "in use"]);
    std::fs::copy(&first, top.path().join("copy")).unwrap();
    let copy = format!("{base}/copy");
    table.case(&["fsck", &first, &copy], 1, &["both the log of reactor 0"]);
    configure(1);
    table.case(&["fsck", "--config", &config], 1, &["formatted for 2"]);
    let mut command = gannet();
    std::fs::rename(&meta, top.path().join("old")).unwrap();
    command.args(["metaserver", "format", "--config", &config]);
    assert!(run(command).status.success());
    let old = format!("{base}/old/log.1");
    table.case(&["fsck", &first, &old], 1, &["different file systems"]);
    table.finish("what cannot be checked");
    // Logs that are in each other's place are damage that a start refuses.
    std::fs::rename(&old, format!("{base}/old/log.x")).unwrap();
    std::fs::rename(format!("{base}/old/log.0"), &old).unwrap();
    std::fs::rename(format!("{base}/old/log.x"), format!("{base}/old/log.0")).unwrap();
    let (code, output, _) = fsck(&[&format!("{base}/old")]);
    assert!(code == 3 && output.contains("is the log of reactor 1"), "{output}");
}
