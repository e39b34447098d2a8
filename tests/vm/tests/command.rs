//! The gannet command on a machine with an RDMA device, and on one that has just lost it.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gannet_vm::guest::{self, gannet};
use gannet_vm::process::{Finished, Process, run};
use rustix::process::Signal;

const START_MAX: Duration = Duration::from_secs(30);
const RUN_MAX: Duration = Duration::from_secs(60);
/// Where the servers of these tests listen, and on the ports behind it.
const PORT: u16 = 7470;
/// A user and group without privileges.
const NOBODY: u32 = 65534;

/// The command with arguments, in words.
fn command(arguments: &str) -> Command {
    let mut command = Command::new(gannet());
    command.args(arguments.split_whitespace());
    command
}

/// Runs the command; it has to end with this exit code. Returns what it said.
fn ends_with(code: i32, arguments: &str) -> String {
    let Finished { name, status, output } = run(command(arguments), RUN_MAX);
    assert_eq!(status.code(), Some(code), "{name}:\n{output}");
    output
}

/// A directory that is there and empty.
fn fresh(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("gannet-command-{name}"));
    let _absent = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a directory can be made");
    path
}

/// Takes the device away until it is dropped.
struct WithoutDevice;

impl WithoutDevice {
    fn new() -> WithoutDevice {
        rdma(&["link", "del", guest::DEVICE]);
        WithoutDevice
    }
}

impl Drop for WithoutDevice {
    fn drop(&mut self) {
        rdma(&["link", "add", guest::DEVICE, "type", "rxe", "netdev", guest::NETWORK]);
    }
}

fn rdma(arguments: &[&str]) {
    let mut command = Command::new("rdma");
    command.args(arguments);
    let _said = run(command, RUN_MAX).success();
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn the_doctor_finds_the_device_and_misses_it() {
    let found = ends_with(0, "doctor --rdma");
    let line = found.lines().find(|line| line.contains(guest::DEVICE)).expect("the device's line");
    for word in ["ok ", "soft-RoCE on eth0", "ACTIVE", &guest::own_address().to_string()] {
        assert!(line.contains(word), "{word}: {found}");
    }
    let without = WithoutDevice::new();
    let found = ends_with(1, "doctor --rdma");
    for words in ["problem  devices", "rdma link add rxe0 type rxe netdev eth0"] {
        assert!(found.contains(words), "{words}: {found}");
    }
    // Whoever does not want RDMA has no problem.
    assert!(ends_with(0, "doctor").contains("note     devices"));
    drop(without);
    let _found = ends_with(0, "doctor --rdma");
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn without_a_device_it_is_said_and_nothing_is_made() {
    let directory = fresh("without");
    let address = format!("rdma://{}:{PORT}", guest::own_address());
    let without = WithoutDevice::new();
    for arguments in [
        format!("ls --server {address}"),
        format!("dev --dir {} --listen {address}", directory.display()),
    ] {
        let said = ends_with(1, &arguments);
        for words in [&*address, "RDMA device", "gannet doctor --rdma"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
    let left = std::fs::read_dir(&directory).expect("it is there").count();
    assert_eq!(left, 0, "something was formatted for nothing");
    drop(without);
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn an_address_without_a_device_is_named() {
    let directory = fresh("address");
    let arguments = format!(
        "dev --dir {} --listen rdma://192.0.2.1:{PORT} --store-size ram:8M --log-in-ram",
        directory.display()
    );
    let said = ends_with(1, &arguments);
    assert!(said.contains("192.0.2.1"), "{said}");
    let said = ends_with(1, &format!("ls --patience 1s --server rdma://192.0.2.1:{PORT}"));
    assert!(said.contains("cannot be reached"), "{said}");
    let nobody = format!("rdma://{}:{}", guest::own_address(), PORT + 100);
    let said = ends_with(1, &format!("ls --patience 1s --server {nobody}"));
    assert!(said.contains("nobody listens"), "{said}");
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn one_process_serves_files_with_either_protection() {
    let directory = fresh("dev");
    let tree = fresh("tree");
    // Longer than a request, and no whole number of blocks.
    let long: Vec<u8> =
        (0..3_000_001_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (name, content) in [("long", &long[..]), ("short", &long[..5000]), ("empty", &[])] {
        std::fs::write(tree.join(name), content).expect("the tree can be written");
    }
    let address = format!("rdma://{}:{PORT}", guest::own_address());
    let arguments = format!(
        "dev --dir {} --listen {address} --reactors 2 --targets 2 --store-size ram:64M --log-in-ram",
        directory.display()
    );
    let server = Process::start("gannet dev", command(&arguments));
    let ready = server.wait_line(START_MAX, |line| line.starts_with("ready:"));
    assert_eq!(ready, format!("ready: GANNET_SERVER={address}"));

    for protection in ["region", "window"] {
        let with = format!("--server {address} --protection {protection} --verify");
        let _said = ends_with(0, &format!("put {with} -T {} /{protection}", tree.display()));
        let copy = fresh(protection);
        let _said = ends_with(0, &format!("get {with} -T /{protection} {}", copy.display()));
        for name in ["long", "short", "empty"] {
            let read = |directory: &PathBuf| std::fs::read(directory.join(name)).expect("a file");
            assert!(read(&copy) == read(&tree), "{protection}: {name} differs");
        }
    }
    server.signal(Signal::TERM);
    let _said = server.wait(RUN_MAX).success();
}

/// A user without privileges who may use the device and lock this much memory runs the command,
/// which has to fail. Returns what it said.
fn fails_with_locked_memory(kib: u32, arguments: &str) -> String {
    let mut chmod = Command::new("chmod");
    chmod.args(["0666", "/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"]);
    let _said = run(chmod, RUN_MAX).success();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -l {kib} && exec {} {arguments}", gannet().display()));
    shell.uid(NOBODY).gid(NOBODY);
    let Finished { name, status, output } = run(shell, RUN_MAX);
    assert_eq!(status.code(), Some(1), "{name}:\n{output}");
    output
}

#[test]
#[ignore = "needs an RDMA device: run tests/run vm"]
fn too_little_locked_memory_is_named_with_the_remedy() {
    let address = format!("rdma://{}:{PORT}", guest::own_address());
    let named = |said: &str, kib: u32| {
        for words in ["cannot be pinned", &(kib * 1024).to_string(), "ulimit -l"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    };
    // A data server's store and buffers.
    let directory = fresh("locked");
    std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).expect("this is root");
    let arguments = format!(
        "dev --dir {} --listen {address} --targets 1 --store-size ram:64M --log-in-ram",
        directory.display()
    );
    named(&fails_with_locked_memory(4 << 10, &arguments), 4 << 10);
    // A host's buffers: enough for its connections, not for what it transfers.
    let directory = fresh("locked-server");
    let arguments = format!(
        "dev --dir {} --listen {address} --targets 1 --store-size ram:64M --log-in-ram",
        directory.display()
    );
    let server = Process::start("gannet dev", command(&arguments));
    let _ready = server.wait_line(START_MAX, |line| line.starts_with("ready:"));
    let file = fresh("locked-file").join("file");
    std::fs::write(&file, vec![7; 1 << 20]).expect("the file can be written");
    let arguments = format!("put --server {address} {} /", file.display());
    named(&fails_with_locked_memory(4 << 10, &arguments), 4 << 10);
    assert!(server.is_running());
}
