//! `gannet doctor` on machines made of files: what it finds, and what scripts see of it.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{gannet, run, write};
use serde_json::Value;
use tempfile::TempDir;

const LIMITS: &str = "Max locked memory         65536                65536                bytes";

/// A machine without RDMA: its files below a directory.
fn machine() -> TempDir {
    let top = tempfile::tempdir().unwrap();
    put(top.path(), "proc/sys/kernel/osrelease", "6.1.0-13-amd64");
    put(top.path(), "proc/self/status", "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-3");
    put(top.path(), "proc/self/limits", LIMITS);
    put(top.path(), "sys/class/net/ens5/type", "1");
    put(top.path(), "sys/class/net/ens5/operstate", "up");
    top
}

fn put(top: &Path, path: &str, content: &str) {
    let path = top.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    write(&path, format!("{content}\n"));
}

/// Runs the command on a machine; returns its exit code, output and messages.
fn doctor(top: &Path, options: &[&str]) -> (i32, String, String) {
    let mut command = gannet();
    command.arg("doctor").arg("--root").arg(top).args(options);
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The checks by name.
fn checks(output: &str) -> Vec<(String, String, Value)> {
    let findings: Value = serde_json::from_str(output).unwrap();
    let word = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = findings["checks"].as_array().unwrap().iter();
    checks.map(|check| (word(check, "name"), word(check, "level"), check.clone())).collect()
}

fn level<'a>(checks: &'a [(String, String, Value)], name: &str) -> &'a str {
    let found = checks.iter().find(|(other, ..)| other == name);
    &found.unwrap_or_else(|| panic!("no check {name}: {checks:?}")).1
}

#[test]
fn rdma_is_missing_only_where_it_is_asked_for() {
    let machine = machine();
    let (code, output, said) = doctor(machine.path(), &[]);
    assert_eq!((code, said.as_str()), (0, ""), "{output}");
    for words in ["Linux 6.1.0-13-amd64", "use 4", "note     devices", "netdev ens5"] {
        assert!(output.contains(words), "{words}: {output}");
    }
    let (code, output, said) = doctor(machine.path(), &["--rdma"]);
    assert_eq!(code, 1, "{output}");
    for words in ["problem  devices", "problem  providers", "problem  locked memory"] {
        assert!(output.contains(words), "{words}: {output}");
    }
    assert!(said.contains("problems were found") && said.contains("devices"), "{said}");
}

#[test]
fn small_buffers_are_a_warning_with_the_setting_that_helps() {
    let machine = machine();
    put(machine.path(), "sys/class/net/ens5/speed", "100000");
    put(machine.path(), "proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432");
    put(machine.path(), "proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304");
    put(machine.path(), "proc/sys/net/ipv4/ip_local_port_range", "32768\t60999");
    let (code, output, _) = doctor(machine.path(), &["--json"]);
    let found = checks(&output);
    assert_eq!((code, level(&found, "buffers"), level(&found, "ports")), (0, "warning", "ok"));
    let (_, output, _) = doctor(machine.path(), &[]);
    let remedy = "sysctl -w net.ipv4.tcp_wmem=\"4096 16384 25000000\"";
    assert!(output.contains(remedy) && !output.contains("tcp_rmem="), "{output}");
    put(machine.path(), "proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t25000000");
    let (_, output, _) = doctor(machine.path(), &["--json"]);
    assert_eq!(level(&checks(&output), "buffers"), "ok");
}

#[test]
fn json_says_the_same() {
    let machine = machine();
    let (code, output, _) = doctor(machine.path(), &["--json"]);
    let found = checks(&output);
    assert_eq!((code, level(&found, "devices")), (0, "note"));
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap()["usable"], true);
    let (code, output, _) = doctor(machine.path(), &["--json", "--rdma"]);
    let found = checks(&output);
    assert_eq!((code, level(&found, "devices")), (1, "problem"));
    assert_eq!(level(&found, "kernel"), "ok");
    let findings = serde_json::from_str::<Value>(&output).unwrap();
    assert_eq!(findings["usable"], false);
    for (name, level, check) in &found {
        assert_eq!(check["remedy"].is_null(), level == "ok", "{name}: {check}");
        assert!(!check["found"].as_str().unwrap().is_empty(), "{name}: {check}");
    }
}

#[test]
fn a_machine_with_a_device_is_usable() {
    let machine = machine();
    let port = "sys/class/infiniband/mlx5_0/ports/1";
    for (path, content) in [
        ("etc/libibverbs.d/mlx5.driver", "driver mlx5"),
        (&format!("{port}/state"), "4: ACTIVE"),
        (&format!("{port}/link_layer"), "Ethernet"),
        (&format!("{port}/rate"), "100 Gb/sec (4X EDR)"),
        (&format!("{port}/gids/3"), "0000:0000:0000:0000:0000:ffff:c0a8:010a"),
        (&format!("{port}/gid_attrs/types/3"), "RoCE v2"),
        (&format!("{port}/gid_attrs/ndevs/3"), "ens5"),
        ("sys/class/net/ens5/mtu", "9000"),
        ("sys/class/infiniband_verbs/uverbs0/ibdev", "mlx5_0"),
        ("dev/infiniband/uverbs0", ""),
        ("dev/infiniband/rdma_cm", ""),
        ("proc/self/limits", &LIMITS.replace("65536", "unlimited")),
    ] {
        put(machine.path(), path, content);
    }
    let (code, output, _) = doctor(machine.path(), &["--rdma", "--json"]);
    let found = checks(&output);
    for name in ["providers", "mlx5_0", "rdma_cm", "locked memory"] {
        assert_eq!(level(&found, name), "ok", "{output}");
    }
    // A build without RDMA is the one thing that files cannot mend.
    assert_eq!(code == 0, level(&found, "build") == "ok", "{output}");
    assert!(output.contains("ens5 mtu 9000 192.168.1.10"), "{output}");
}

#[test]
fn this_machine_is_looked_at_without_harm() {
    let mut command = gannet();
    command.args(["doctor", "--json"]);
    let output = run(command);
    // Everything else here needs a ring too.
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(level(&checks(std::str::from_utf8(&output.stdout).unwrap()), "io_uring"), "ok");
}

#[test]
fn a_place_without_files_panics_nobody() {
    for place in ["/no/such/place", "/dev/null"] {
        let (code, output, said) = doctor(Path::new(place), &["--rdma"]);
        assert_eq!(code, 1, "{output}");
        assert!(output.contains("its version cannot be read"), "{output}");
        assert!(!said.contains("panicked"), "{said}");
    }
    let mut command = gannet();
    command.args(["doctor", "--quick"]);
    assert_eq!(run(command).status.code(), Some(2));
}
