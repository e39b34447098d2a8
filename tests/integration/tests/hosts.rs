//! Hosts that die, and stores that are full.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use gannet_client::Ownership;
use gannet_integration::cluster::{Cluster, ClusterOptions};
use gannet_integration::load::open;
use gannet_integration::process::run;
use gannet_integration::{one_at_a_time, pattern};

const MIB: usize = 1 << 20;
/// How long the servers may take to clean up after a host, beyond its lease.
const CLEAN_UP_MAX: Duration = Duration::from_secs(20);

fn make_file(path: &Path, mib: usize) {
    let mut file = File::create_new(path).expect("a new file");
    let mut data = vec![0; MIB];
    for index in 0..mib {
        pattern::fill(&mut data, 1, (index * MIB) as u64);
        file.write_all(&data).expect("room on this machine");
    }
}

/// Asks again until the answer is the right one.
///
/// # Panics
/// With the last answer, when it takes too long.
fn eventually<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> T,
    right: impl Fn(&T) -> bool,
) {
    let end = Instant::now() + CLEAN_UP_MAX;
    loop {
        let answer = ask();
        if right(&answer) {
            return;
        }
        assert!(Instant::now() < end, "{what}: still {answer:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that is killed when dropped.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // It may be gone already.
        let _killed = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn a_host_killed_in_mid_transfer_leaves_nothing_behind() {
    let _turn = one_at_a_time();
    let options =
        ClusterOptions { store_size: "512M", lease: Duration::from_secs(1), ..Default::default() };
    let mut cluster = Cluster::new(options);
    let source = cluster.directory().join("large");
    // So large that no machine stores it before it is killed.
    File::create_new(&source).and_then(|file| file.set_len(900 << 20)).expect("a sparse file");
    let mut session = open(&cluster.address());
    let owner = Ownership { mode: 0o600, ..Ownership::default() };
    let file = session.create("/other", owner, true).expect("created").handle;
    let mut bytes = vec![0; 4 * MIB];
    pattern::fill(&mut bytes, 2, 0);
    session.write_at(file, 0, &bytes).expect("written");
    let before = session.statfs().expect("space").blocks_used;
    let sessions = cluster.stats().metaserver("sessions");

    for round in 0..3 {
        let mut command = cluster.command(&["put", "-T"]);
        command.arg(&source).arg("/large").stdout(Stdio::null()).stderr(Stdio::null());
        let mut victim = Victim(command.spawn().expect("started"));
        let used = |session: &mut gannet_client::blocking::Session<_>| {
            session.statfs().expect("space").blocks_used
        };
        let begun = before + (8 * MIB / 4096) as u64;
        eventually("the transfer runs", || used(&mut session), |used| *used > begun);
        assert!(cluster.stats().metaserver("sessions") > sessions, "the victim's session counts");
        assert!(victim.0.try_wait().expect("our child").is_none(), "killed in mid-transfer");
        victim.0.kill().expect("our child");
        victim.0.wait().expect("our child");

        // Another host goes on at once.
        let mut again = vec![0; bytes.len()];
        assert_eq!(session.read_at(file, 0, &mut again).expect("read"), bytes.len());
        assert!(again == bytes, "round {round}: another host's file is as it was");
        pattern::fill(&mut bytes, 3 + round, 0);
        session.write_at(file, 0, &bytes).expect("written");
        // The dead host's session ends with its lease; this test's own and that of the command
        // that asks are still there.
        eventually("sessions", || cluster.stats().metaserver("sessions"), |now| *now <= sessions);
        session.unlink("/large").expect("removed");
        eventually("blocks in use", || used(&mut session), |used| *used == before);
    }
    assert!(cluster.is_running());
    drop(session);
    cluster.stop();
}

#[test]
fn a_full_store_says_so_and_takes_more_when_there_is_room_again() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::new(ClusterOptions { store_size: "32M", ..Default::default() });
    let fits = cluster.directory().join("fits");
    let large = cluster.directory().join("large");
    make_file(&fits, 24);
    make_file(&large, 80);
    let put = |cluster: &Cluster, source: &Path, name: &str| {
        let mut command = cluster.command(&["put", "--verify", "-T"]);
        command.arg(source).arg(name);
        run(command)
    };
    let _said = put(&cluster, &fits, "/kept").success();
    let kept = cluster.used_bytes();

    for round in 0..3 {
        let refused = put(&cluster, &large, "/large");
        assert_eq!(refused.status.code(), Some(1), "round {round}: {}", refused.stderr);
        let says = |word: &str| refused.stderr.contains(word);
        assert!(says("no space left") && says("gannet df"), "{}", refused.stderr);
        assert!(!says("panicked"), "{}", refused.stderr);
        // Removing works in a full store too, and gives everything back.
        let _said = cluster.run(&["rm", "/large"]).success();
        assert_eq!(cluster.used_bytes(), kept, "round {round}: the space is free again");
        let _said = put(&cluster, &fits, "/more").success();
        let _said = cluster.run(&["rm", "/more"]).success();
        assert_eq!(cluster.used_bytes(), kept);
    }
    let back = cluster.directory().join("back");
    let mut get = cluster.command(&["get", "-T", "/kept"]);
    get.arg(&back);
    let _said = run(get).success();
    assert!(std::fs::read(&back).expect("read") == std::fs::read(&fits).expect("read"));
    assert!(cluster.is_running());
    cluster.stop();
}
