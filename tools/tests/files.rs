//! Files in and out through the command, with all servers in one process.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{Server, gannet, gannet_at, must, write};
use serde_json::Value;

const MODES: [u32; 3] = [0o644, 0o600, 0o755];

/// Bytes that differ from file to file and from block to block.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tree with every length and name that is special somewhere.
fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("deep/er/and deeper")).unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    let lengths = [0, 1, 4095, 4096, 4097, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20];
    for (index, len) in lengths.into_iter().enumerate() {
        let path = root.join(format!("of {len} bytes"));
        write(&path, content(index as u64, len));
        let mode = MODES[index % MODES.len()];
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let long = OsString::from("l".repeat(255));
    for name in [OsStr::new("ünï cödé ☃"), OsStr::from_bytes(b"\xff\xfe\n"), &long] {
        write(&root.join("deep/er").join(name), name.as_bytes());
    }
    // More than one message of entries.
    for index in 0..400 {
        write(&root.join(format!("deep/er/and deeper/{index:060}")), content(index, 50));
    }
    std::fs::set_permissions(root.join("empty"), PermissionsExt::from_mode(0o555)).unwrap();
}

/// Everything about a tree that has to survive.
fn survey(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Option<Vec<u8>>)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let bytes = if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            None
        } else {
            Some(std::fs::read(&path).unwrap())
        };
        let mtime_ns = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        found.insert(name, (metadata.mode() & 0o7777, mtime_ns, bytes));
    }
    found
}

fn start(directory: &Path, options: &[&str]) -> Server {
    let mut command = gannet();
    command.arg("dev").arg("--dir").arg(directory).args(options);
    Server::start(command)
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_tree_survives_a_restart_byte_for_byte() {
    let top = tempfile::tempdir().unwrap();
    let (tree, copy) = (top.path().join("tree"), top.path().join("copy"));
    make_tree(&tree);
    let before = survey(&tree);
    let files = before.values().filter(|(_, _, bytes)| bytes.is_some()).count() as u64;
    let home = top.path().join("home");
    let mut server = start(&home, &["--store-size", "128M", "--reactors", "2"]);
    assert_eq!(server.said.len(), 3, "each thing that was formatted is told: {:?}", server.said);
    let uri = server.ready.clone();

    let summary = json(&must(&uri, &["put", "--json", "--verify", tree.to_str().unwrap(), "/t"]));
    assert_eq!(summary["files"], files);
    assert_eq!(summary["verified"]["files"], files);
    assert_eq!(summary["verified"]["bytes"], summary["bytes"]);
    assert_eq!(summary["failures"], 0);
    assert!(server.stop().success());

    let mut server = start(&home, &[]);
    assert!(server.said.is_empty(), "nothing is formatted twice: {:?}", server.said);
    must(&uri, &["get", "/t", copy.to_str().unwrap()]);
    assert!(survey(&copy) == before, "the copy differs");

    let stats = json(&must(&uri, &["stats", "--json"]));
    assert_eq!(stats["metaservers"].as_array().unwrap().len(), 2);
    assert_eq!(stats["targets"].as_array().unwrap().len(), 2);
    assert_eq!(stats["totals"]["metaservers"]["payload_bytes"], 0);
    assert!(stats["totals"]["reactors"]["busy_ns"].as_u64().unwrap() > 0);
    let table = String::from_utf8(must(&uri, &["stats"])).unwrap();
    assert!(table.contains("payload bytes seen by the metadata server"), "{table}");
    assert!(server.stop().success());
}

#[test]
fn names_are_made_moved_listed_and_removed() {
    let top = tempfile::tempdir().unwrap();
    let local = top.path().join("file");
    let bytes = content(7, 3 << 20);
    write(&local, &bytes);
    let file = local.to_str().unwrap();
    let home = top.path().join("home");
    let options = ["--store-size", "ram:64M", "--log-in-ram", "--targets", "1"];
    let mut server = start(&home, &options);
    let uri = server.ready.clone();
    let list = |path: &str| String::from_utf8(must(&uri, &["ls", path])).unwrap();
    let fails = |words: &[&str], hint: &str| {
        let output = gannet_at(&uri, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains(hint), "{words:?}: {said}");
    };

    must(&uri, &["mkdir", "-p", "/a/b/c", "/a/b"]);
    fails(&["mkdir", "/a"], "exists");
    fails(&["mkdir", "/x/y"], "no such");
    must(&uri, &["put", file, "/a"]);
    must(&uri, &["put", file, "/a/second"]);
    assert_eq!(list("/a"), "b/\nfile\nsecond\n");
    assert_eq!(must(&uri, &["cat", "/a/file", "/a/second"]), [&bytes[..], &bytes].concat());
    fails(&["cat", "/a", "/a/none"], "is a directory");
    fails(&["put", file, "/none/f"], "mkdir -p /none");
    fails(&["get", "/none", "/tmp"], "no such");

    must(&uri, &["mv", "/a/file", "/a/b"]);
    must(&uri, &["mv", "/a/second", "/a/b/file"]);
    assert_eq!(list("/a/b"), "c/\nfile\n");
    must(&uri, &["put", file, "/a/third"]);
    fails(&["mv", "-n", "/a/third", "/a/b/file"], "exists");
    fails(&["mv", "/a", "/a/b/c"], "into itself");

    let stat = json(&must(&uri, &["stat", "--json", "/a/b/file"]));
    assert_eq!((&stat["size"], &stat["type"]), (&Value::from(3 << 20), &Value::from("file")));
    let space = json(&must(&uri, &["df", "--json"]));
    assert!(space["used_bytes"].as_u64().unwrap() >= 6 << 20, "{space}");
    fails(&["rm", "/a"], "-r removes it");
    fails(&["rm", "/none"], "no such");
    must(&uri, &["rm", "-f", "/none"]);
    must(&uri, &["rm", "-r", "/a"]);
    assert_eq!(list("/"), "");
    assert!(server.stop().success());
}

#[test]
fn what_cannot_be_stored_is_skipped_and_told() {
    let top = tempfile::tempdir().unwrap();
    let tree = top.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    write(&tree.join("file"), b"content");
    symlink("file", tree.join("link")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    assert!(std::fs::metadata(tree.join("socket")).unwrap().file_type().is_socket());
    let home = top.path().join("home");
    let mut server = start(&home, &["--store-size", "ram:16M", "--log-in-ram"]);
    let uri = server.ready.clone();
    let tree = tree.to_str().unwrap();
    let output = gannet_at(&uri, &["put", "--json", tree, "/one"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output.stdout)["skipped"], 2);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("link is a symbolic link") && said.contains("a socket"), "{said}");
    must(&uri, &["put", "--skip-special", tree, "/two"]);
    assert_eq!(must(&uri, &["cat", "/two/file"]), b"content");
    drop(socket);
    assert!(server.stop().success());
}

#[test]
fn a_comparison_finds_one_wrong_byte() {
    let top = tempfile::tempdir().unwrap();
    let (tree, copy) = (top.path().join("tree"), top.path().join("copy"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::create_dir(&copy).unwrap();
    let mut bytes = content(3, (2 << 20) + 77);
    write(&tree.join("one"), &bytes);
    bytes[1 << 20] ^= 1;
    write(&tree.join("two"), &bytes);
    // Both files go to one place, so that one of them cannot be what it was.
    write(&copy.join("two"), b"");
    symlink("two", copy.join("one")).unwrap();
    let home = top.path().join("home");
    let mut server = start(&home, &["--store-size", "ram:16M", "--log-in-ram"]);
    let uri = server.ready.clone();
    must(&uri, &["put", "--verify", tree.to_str().unwrap(), "/tree"]);
    let words = ["get", "--verify", "-T", "/tree", copy.to_str().unwrap()];
    let output = gannet_at(&uri, &words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("differs at byte 1048576"), "{said}");
    assert!(server.stop().success());
}
